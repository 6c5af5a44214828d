/* `qsae convert`: small checkpoints and SAEs written here, converted, and read back
 * through the library and through a reader of the file format that is written down here
 * once more; and everything that is refused, with its message. */

#define _POSIX_C_SOURCE 200809L

#include "test.h"

#include <dirent.h>
#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../tools/cmd.h"
#include "../tools/convert.h"
#include "../tools/quantize.h"
#include "../tools/safetensors.h"
#include "../tools/tensors_impl.h"

static char err[ERR_CAP],
    folder[512]; /* folder/src is the source, folder/out.qsae the result */

static const char *path_of(const char *name)
{
    static char paths[4][700];
    static int next;
    char *p = paths[next++ % 4];
    snprintf(p, sizeof paths[0], "%s/%s", folder, name);
    return p;
}

static void write_text(const char *name, const char *text)
{
    FILE *f = fopen(path_of(name), "wb");
    if (!CHECK(f != NULL))
        return;
    fwrite(text, 1, strlen(text), f);
    fclose(f);
}

/* text with the first `from` replaced by `to`; from "" appends nothing and changes
 * nothing. */
static void replaced(char *out, size_t cap, const char *text, const char *from,
                     const char *to)
{
    const char *at = strstr(text, from);
    if (!CHECK(at != NULL)) {
        fprintf(stderr, "    not in the text: %s\n", from);
        return;
    }
    snprintf(out, cap, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
}

static int files_in(const char *dir)
{
    int n = 0;
    DIR *d = opendir(dir);
    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return n;
}

static void empty_folder(const char *dir)
{
    char path[1400];
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d)) != NULL;) {
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            unlink(path);
    }
    if (d)
        closedir(d);
}

/* ---- tensors with known values ---- */

typedef struct source {
    const char *name;
    tensor_type type;
    uint32_t rank;
    uint64_t shape[2];
    const char *file; /* shard; NULL: any */
    int64_t odd_at;   /* this element is... */
    float odd;        /* ...this */
    int skip;         /* not written */
} source;

#define MATRIX(name, dtype, rows, cols)              \
    {                                                \
        name, dtype, 2, {rows, cols}, NULL, -1, 0, 0 \
    }
#define VECTOR(name, dtype, n)                 \
    {                                          \
        name, dtype, 1, {n, 0}, NULL, -1, 0, 0 \
    }
#define NUMBER(name, dtype, x)                \
    {                                         \
        name, dtype, 0, {0, 0}, NULL, 0, x, 0 \
    }
#define ODD_MATRIX(name, dtype, rows, cols, at, x)   \
    {                                                \
        name, dtype, 2, {rows, cols}, NULL, at, x, 0 \
    }
#define ODD_VECTOR(name, dtype, n, at, x)      \
    {                                          \
        name, dtype, 1, {n, 0}, NULL, at, x, 0 \
    }
#define GONE(name)                                  \
    {                                               \
        name, TENSOR_F32, 1, {1, 0}, NULL, -1, 0, 1 \
    }

static uint32_t random_state;

/* A value that every float type holds exactly. */
static float next_value(void)
{
    random_state = random_state * 1664525u + 1013904223u;
    return ((float)(random_state >> 24) - 128) / 64;
}

static void seed_for(const char *name)
{
    random_state = 1;
    for (; *name; name++)
        random_state = random_state * 31 + (unsigned char)*name;
}

static uint64_t elements(const source *s)
{
    return s->rank == 0 ? 1 : s->rank == 1 ? s->shape[0] : s->shape[0] * s->shape[1];
}

/* All values of a tensor, from malloc. */
static float *values_of(const source *s)
{
    uint64_t n = elements(s);
    float *v = malloc((size_t)n * sizeof *v + 1);
    seed_for(s->name);
    for (uint64_t i = 0; i < n; i++) {
        v[i] = next_value();
        if (strcmp(s->name, "threshold") == 0)
            v[i] = fabsf(v[i]);
    }
    if (s->odd_at >= 0)
        v[s->odd_at] = s->odd;
    return v;
}

static size_t encode(const source *s, const float *v, unsigned char *out)
{
    size_t n = (size_t)elements(s), at = 0;
    for (size_t i = 0; i < n; i++) {
        double wide = (double)v[i];
        uint32_t bits;
        uint16_t half;
        memcpy(&bits, &v[i], 4);
        int e = (int)(bits >> 23 & 255) -
                112; /* f16: the values here are normal, zero or not finite */
        half = (uint16_t)((bits >> 16 & 0x8000) |
                          (e > 30  ? 0x7C00u | (isnan(v[i]) ? 1u : 0u)
                           : e < 1 ? 0
                                   : (uint32_t)e << 10 | (bits >> 13 & 1023)));
        if (s->type == TENSOR_BF16)
            half = (uint16_t)(bits >> 16);
        if (s->type == TENSOR_F64)
            memcpy(out + at, &wide, 8);
        else if (s->type == TENSOR_F32)
            memcpy(out + at, &bits, 4);
        else
            memcpy(out + at, &half, 2);
        at += tensor_type_bytes(s->type);
    }
    return at;
}

static int belongs(const source *s, const char *file)
{
    return !s->file || strcmp(s->file, file) == 0;
}

/* The tensors of `list` that belong to `file` as a safetensors file in src. */
static void write_tensors(const source *list, size_t n, const char *file)
{
    char name[128];
    snprintf(name, sizeof name, "src/%s", file);
    st_writer *w = st_writer_create(path_of(name), err, sizeof err);
    int bad = w == NULL;
    for (size_t i = 0; i < n && !bad; i++)
        if (!list[i].skip && belongs(&list[i], file))
            bad = st_writer_declare(w, list[i].name, list[i].type, list[i].rank,
                                    list[i].shape, err, sizeof err);
    for (size_t i = 0; i < n && !bad; i++) {
        if (list[i].skip || !belongs(&list[i], file))
            continue;
        float *v = values_of(&list[i]);
        unsigned char *bytes = calloc((size_t)elements(&list[i]) + 1, 8);
        size_t size = tensor_type_bytes(list[i].type) < 2 ? (size_t)elements(&list[i])
                                                          : encode(&list[i], v, bytes);
        bad = st_writer_data(w, bytes, size, err, sizeof err);
        free(bytes);
        free(v);
    }
    if (!bad)
        bad = st_writer_commit(w, err, sizeof err);
    if (!CHECK(!bad))
        fprintf(stderr, "    %s\n", err);
}

/* ---- reading the result, written after FORMAT.md ---- */

static unsigned char *result;
static size_t result_size;

static int load_result(void)
{
    free(result);
    result = NULL;
    FILE *f = fopen(path_of("out.qsae"), "rb");
    if (!f)
        return 0;
    fseek(f, 0, SEEK_END);
    result_size = (size_t)ftell(f);
    rewind(f);
    result = malloc(result_size + 1);
    size_t n = fread(result, 1, result_size, f);
    fclose(f);
    return n == result_size;
}

static const qsae_tensor_record *tensor_of(uint32_t group, uint32_t role)
{
    static qsae_tensor_record t;
    qsae_file_header h;
    memcpy(&h, result, sizeof h);
    for (uint32_t i = 0; i < h.n_tensors; i++) {
        memcpy(&t, result + 64 + 256 * (size_t)h.n_records + 64 * (size_t)i, sizeof t);
        if (t.group == group && t.role == role)
            return &t;
    }
    return NULL;
}

static float number_at(const qsae_tensor_record *t, uint64_t r, uint64_t c)
{
    const unsigned char *p = result + t->offset;
    uint64_t kp = (t->cols + 15) / 16 * 16, item = t->type == QSAE_TYPE_BF16 ? 2 : 4,
             at;
    if (t->layout == QSAE_LAYOUT_VECTOR)
        at = c * 4;
    else if (t->layout == QSAE_LAYOUT_ROWS)
        at = r * ((t->cols * item + 63) / 64 * 64) + c * item;
    else if (item == 4)
        at = r / 16 * 64 * kp + c * 64 + r % 16 * 4;
    else
        at = r / 16 * 32 * kp + c / 2 * 64 + r % 16 * 4 + c % 2 * 2;
    uint32_t bits = 0;
    memcpy(item == 4 ? (unsigned char *)&bits : (unsigned char *)&bits + 2, p + at,
           (size_t)item);
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* A tensor of the result is the source's, of this type. */
static int same_tensor(const source *s, uint32_t group, uint32_t role, uint32_t type)
{
    const qsae_tensor_record *t = tensor_of(group, role);
    uint64_t rows = s->rank == 2 ? s->shape[0] : 1,
             cols = s->rank == 2 ? s->shape[1] : s->shape[0];
    float *v = values_of(s);
    int same = t && t->type == type && t->rows == rows && t->cols == cols;
    for (uint64_t i = 0; i < rows * cols && same; i++)
        same = number_at(t, i / cols, i % cols) == v[i];
    free(v);
    return same;
}

/* ---- a checkpoint ---- */

static const char config[] = "{\"architectures\":[\"Qwen3ForCausalLM\"],\"attention_"
                             "bias\":false,\"attention_dropout\":0.0,"
                             "\"bos_token_id\":1,\"eos_token_id\":2,\"head_dim\":6,"
                             "\"hidden_act\":\"silu\",\"hidden_size\":20,"
                             "\"initializer_range\":0.02,\"intermediate_size\":35,"
                             "\"max_position_embeddings\":512,"
                             "\"max_window_layers\":28,\"model_type\":\"qwen3\",\"num_"
                             "attention_heads\":4,\"num_hidden_layers\":2,"
                             "\"num_key_value_heads\":2,\"rms_norm_eps\":1e-06,\"rope_"
                             "scaling\":null,\"rope_theta\":1000000,"
                             "\"sliding_window\":null,\"tie_word_embeddings\":false,"
                             "\"torch_dtype\":\"bfloat16\","
                             "\"transformers_version\":\"4.51.0\",\"use_cache\":true,"
                             "\"use_sliding_window\":false,\"vocab_size\":33}";

#define ONE "model.safetensors"

static const struct {
    const char *name;
    tensor_type type;
    uint64_t rows, cols; /* cols 0: a vector */
    uint32_t role;
} parts[11] = {
    {"input_layernorm", TENSOR_BF16, 20, 0, QSAE_ROLE_ATTN_NORM},
    {"self_attn.q_proj", TENSOR_BF16, 24, 20, QSAE_ROLE_Q},
    {"self_attn.k_proj", TENSOR_F32, 12, 20, QSAE_ROLE_K},
    {"self_attn.v_proj", TENSOR_F16, 12, 20, QSAE_ROLE_V},
    {"self_attn.q_norm", TENSOR_F32, 6, 0, QSAE_ROLE_Q_NORM},
    {"self_attn.k_norm", TENSOR_F16, 6, 0, QSAE_ROLE_K_NORM},
    {"self_attn.o_proj", TENSOR_BF16, 20, 24, QSAE_ROLE_O},
    {"post_attention_layernorm", TENSOR_BF16, 20, 0, QSAE_ROLE_MLP_NORM},
    {"mlp.gate_proj", TENSOR_BF16, 35, 20, QSAE_ROLE_GATE},
    {"mlp.up_proj", TENSOR_BF16, 35, 20, QSAE_ROLE_UP},
    {"mlp.down_proj", TENSOR_BF16, 20, 35, QSAE_ROLE_DOWN},
};

enum { EMBED, NORM, HEAD, LAYER0, LAYER1 = LAYER0 + 11, N_TENSORS = LAYER1 + 11 };

static source model[N_TENSORS];

static void make_model(void)
{
    static char names[22][64];
    model[EMBED] = (source)MATRIX("model.embed_tokens.weight", TENSOR_BF16, 33, 20);
    model[NORM] = (source)VECTOR("model.norm.weight", TENSOR_F32, 20);
    model[HEAD] = (source)MATRIX("lm_head.weight", TENSOR_BF16, 33, 20);
    for (int i = 0; i < 22; i++) {
        int k = i % 11;
        snprintf(names[i], sizeof names[i], "model.layers.%d.%s.weight", i / 11,
                 parts[k].name);
        source t = {names[i],
                    parts[k].type,
                    parts[k].cols ? 2u : 1u,
                    {parts[k].rows, parts[k].cols},
                    NULL,
                    -1,
                    0,
                    0};
        model[LAYER0 + i] = t;
    }
}

static convert_options plain_options(void)
{
    static char out[700];
    convert_options o;
    memset(&o, 0, sizeof o);
    snprintf(out, sizeof out, "%s", path_of("out.qsae"));
    o.out = out;
    o.site = o.layer = o.site_out = o.layer_out = -1;
    return o;
}

static void write_model(const source *list, size_t n, const char *cfg)
{
    empty_folder(path_of("src"));
    write_text("src/config.json", cfg);
    write_tensors(list, n, ONE);
}

static int run_model(const convert_options *o)
{
    err[0] = 0;
    unlink(path_of("out.qsae"));
    return convert_model(path_of("src"), o, err, sizeof err);
}

/* The source in src is refused with this message, and there is no output, whole or
 * temporary. */
static void refused(const convert_options *o, int sae, const char *message)
{
    char src[700];
    const char *dirs[1] = {src};
    snprintf(src, sizeof src, "%s", path_of("src"));
    err[0] = 0;
    unlink(path_of("out.qsae"));
    int before = files_in(folder);
    int status = sae ? convert_sae(dirs, 1, o, err, sizeof err)
                     : convert_model(src, o, err, sizeof err);
    if (!CHECK(status != 0) || !CHECK(strstr(err, message) != NULL))
        fprintf(stderr, "    \"%s\", wanted \"%s\"\n", err, message);
    CHECK(strchr(err, '\n') == NULL);
    CHECK(files_in(folder) == before);
}

/* The source in src is taken, and the library reads the result. */
static int accepted_model(const convert_options *o, qsae_model_info *info)
{
    qsae_open_options open;
    qsae_model *m;
    qsae_error e;
    memset(&open, 0, sizeof open);
    open.verify = 1;
    if (!CHECK(run_model(o) == 0)) {
        fprintf(stderr, "    %s\n", err);
        return 0;
    }
    if (!CHECK(qsae_model_open(path_of("out.qsae"), &open, &m, &e) == QSAE_OK) ||
        !CHECK(load_result()))
        return 0;
    qsae_model_get_info(m, info); /* its strings are constants or not used after this */
    qsae_model_close(m);
    return 1;
}

static uint32_t kept_type(const source *s)
{
    return s->rank == 2 && s->type == TENSOR_BF16 ? QSAE_TYPE_BF16 : QSAE_TYPE_F32;
}

static void check_layers(void)
{
    for (uint32_t l = 0; l < 2; l++)
        for (size_t i = 0; i < 11; i++) {
            const source *s = &model[(l ? LAYER1 : LAYER0) + i];
            if (!CHECK(same_tensor(s, 1 + l, parts[i].role, kept_type(s))))
                fprintf(stderr, "    %s\n", s->name);
        }
}

static void test_model(void)
{
    qsae_model_info info;
    convert_options o = plain_options();
    write_model(model, N_TENSORS, config);
    if (!accepted_model(&o, &info))
        return;
    CHECK(info.n_layers == 2 && info.d_model == 20 && info.n_heads == 4 &&
          info.n_kv_heads == 2);
    CHECK(info.head_dim == 6 && info.d_ff == 35 && info.vocab_size == 33 &&
          info.max_positions == 512);
    CHECK(info.rope_theta == 1e6 && info.rms_eps == 1e-6f && !info.tied &&
          info.n_tokens == 0);
    CHECK(info.n_eos == 1 && info.eos[0] == 2);
    CHECK_STR(info.weight_type, "mixed");
    CHECK(same_tensor(&model[EMBED], 0, QSAE_ROLE_EMBED, QSAE_TYPE_BF16));
    CHECK(same_tensor(&model[NORM], 0, QSAE_ROLE_FINAL_NORM, QSAE_TYPE_F32));
    CHECK(same_tensor(&model[HEAD], 0, QSAE_ROLE_LM_HEAD, QSAE_TYPE_BF16));
    check_layers();
    const qsae_tensor_record *t = tensor_of(0, QSAE_ROLE_ROPE);
    CHECK(t && t->cols == 3 && number_at(t, 0, 0) == 1.0f &&
          number_at(t, 0, 1) == 1.0f / (float)pow(1e6, (double)(2.0f / 6.0f)));
    /* equal sources make equal files */
    unsigned char *first = result;
    size_t size = result_size;
    result = NULL;
    CHECK(run_model(&o) == 0 && load_result() && size == result_size &&
          memcmp(first, result, size) == 0);
    free(first);
}

static void test_types(void)
{
    qsae_model_info info;
    convert_options o = plain_options();
    source list[N_TENSORS];
    memcpy(list, model, sizeof list);
    o.type = QSAE_TYPE_F32;
    write_model(list, N_TENSORS, config);
    if (accepted_model(&o, &info)) {
        CHECK_STR(info.weight_type, "f32");
        CHECK(same_tensor(&list[EMBED], 0, QSAE_ROLE_EMBED, QSAE_TYPE_F32));
    }
    /* nearest, ties to even: 1 + 2^-8 is half-way to the next, 1 + 3 2^-8 too, 1 + 5
     * 2^-9 is below */
    static const struct {
        float from, to;
    } rounds[] = {{0x1.01p0f, 0x1.00p0f},
                  {0x1.03p0f, 0x1.04p0f},
                  {0x1.010002p0f, 0x1.02p0f},
                  {-0x1.05p0f, -0x1.04p0f},
                  {0x1.fefffep127f, 0x1.fep127f}};
    o.type = QSAE_TYPE_BF16;
    for (size_t i = 0; i < sizeof rounds / sizeof rounds[0]; i++) {
        list[LAYER0 + 2].odd_at = 47; /* k_proj, F32 */
        list[LAYER0 + 2].odd = rounds[i].from;
        write_model(list, N_TENSORS, config);
        if (!accepted_model(&o, &info))
            continue;
        const qsae_tensor_record *t = tensor_of(1, QSAE_ROLE_K);
        CHECK(t->type == QSAE_TYPE_BF16 && number_at(t, 2, 7) == rounds[i].to);
        CHECK_STR(info.weight_type, "bf16");
    }
    list[LAYER0 + 2].odd = 0x1.ffp127f;
    write_model(list, N_TENSORS, config);
    refused(&o, 0,
            "tensor model.layers.0.self_attn.k_proj.weight: row 2 column 7: "
            "3.39618e+38 does not fit in bf16");
    o.type = 0;
    CHECK(accepted_model(&o, &info));
}

/* A matrix of the result is what quantize.h makes of the source's values. */
static int same_quantized(const source *s, uint32_t group, uint32_t role, uint32_t type)
{
    const qsae_tensor_record *t = tensor_of(group, role);
    uint64_t rows = s->shape[0], cols = s->shape[1], at = 0;
    if (!t || t->type != type || t->rows != rows || t->cols != cols)
        return 0;
    int q8 = type == QSAE_TYPE_Q8, same = 1;
    size_t size = q8 ? QUANTIZE_Q8_BYTES : QUANTIZE_Q4_BYTES;
    float panel[QUANTIZE_ROWS * QUANTIZE_COLS], *v = values_of(s);
    unsigned char block[QUANTIZE_Q8_BYTES];
    for (uint64_t row = 0; row < rows;
         row += QUANTIZE_ROWS, at += size) { /* cols < 256 */
        memset(panel, 0, sizeof panel);
        for (uint64_t r = row; r < rows && r < row + QUANTIZE_ROWS; r++)
            memcpy(panel + (r - row) * QUANTIZE_COLS, v + r * cols,
                   (size_t)cols * sizeof *v);
        (q8 ? quantize_q8 : quantize_q4)(panel, block);
        same &= memcmp(block, result + t->offset + at, size) == 0;
    }
    free(v);
    return same && at == t->size;
}

/* From every stored type: the matrices of `model` are BF16, F16 and F32. */
static void test_quantized(void)
{
    qsae_model_info info;
    convert_options o = plain_options();
    source list[N_TENSORS];
    memcpy(list, model, sizeof list);
    for (uint32_t type = QSAE_TYPE_Q8; type;
         type = type == QSAE_TYPE_Q8 ? QSAE_TYPE_Q4 : 0) {
        o.type = type;
        write_model(list, N_TENSORS, config);
        if (!accepted_model(&o, &info))
            continue;
        CHECK_STR(info.weight_type, type == QSAE_TYPE_Q8 ? "q8" : "q4");
        CHECK(same_quantized(&list[EMBED], 0, QSAE_ROLE_EMBED, type));
        CHECK(same_quantized(&list[HEAD], 0, QSAE_ROLE_LM_HEAD, type));
        CHECK(same_tensor(&list[NORM], 0, QSAE_ROLE_FINAL_NORM, QSAE_TYPE_F32));
        for (uint32_t i = 0; i < 22; i++) {
            const source *s = &list[LAYER0 + i];
            uint32_t role = parts[i % 11].role, group = 1 + i / 11;
            if (!CHECK(s->rank == 2 ? same_quantized(s, group, role, type)
                                    : same_tensor(s, group, role, QSAE_TYPE_F32)))
                fprintf(stderr, "    %s\n", s->name);
        }
        const qsae_tensor_record *t = tensor_of(0, QSAE_ROLE_META);
        const char *note = type == QSAE_TYPE_Q8 ? "\nweights=all quantized to q8: "
                                                : "\nweights=all quantized to q4: ";
        if (CHECK(t != NULL)) {
            char *text = calloc(1, (size_t)t->cols + 1);
            memcpy(text, result + t->offset, (size_t)t->cols);
            CHECK(strstr(text, note) != NULL);
            free(text);
        }
        list[LAYER0 + 2].odd_at = 47; /* k_proj, F32 */
        list[LAYER0 + 2].odd = NAN;
        write_model(list, N_TENSORS, config);
        refused(&o, 0,
                "tensor model.layers.0.self_attn.k_proj.weight: element [2, 7] is NaN");
        list[LAYER0 + 2].odd = FLT_MAX; /* fits, whatever it does to its row */
        write_model(list, N_TENSORS, config);
        CHECK(accepted_model(&o, &info));
        list[LAYER0 + 2].odd_at = -1;
    }
}

/* config.json with one thing changed, and the message. */
static const struct {
    const char *from, *to, *message;
} bad_configs[] = {
    /* J6 */
    {"\"model_type\":\"qwen3\"", "\"model_type\":\"qwen3_moe\"",
     "model_type is qwen3_moe; only qwen3"},
    {"\"model_type\":\"qwen3\"", "\"model_type\":\"qwen3_vl\"",
     "model_type is qwen3_vl; only qwen3"},
    {"\"model_type\":\"qwen3\",", "", "model_type is (absent)"},
    {"[\"Qwen3ForCausalLM\"]", "[\"Qwen3MoeForCausalLM\"]",
     "architectures is Qwen3MoeForCausalLM"},
    {"[\"Qwen3ForCausalLM\"]", "[\"Qwen3ForSequenceClassification\"]",
     "architectures is Qwen3ForSeq"},
    {"[\"Qwen3ForCausalLM\"]", "\"Qwen3ForCausalLM\"", "architectures is"},
    /* J7 */
    {"\"rope_theta\":1000000",
     "\"rope_theta\":1000000,\"rope_parameters\":{\"rope_type\":\"default\",\"rope_"
     "theta\":10000}",
     "rope_theta is 1000000 in one place and 10000 in rope_parameters"},
    {"\"rope_theta\":1000000", "\"rope_theta\":0",
     "rope_theta is 0, it must be above 0"},
    {"\"rope_theta\":1000000", "\"rope_theta\":-1", "rope_theta is -1"},
    {"\"rope_theta\":1000000", "\"rope_theta\":1e400", "rope_theta is not a number"},
    {"\"rope_theta\":1000000", "\"rope_theta\":\"1000000\"",
     "rope_theta is not a number"},
    /* J8 */
    {"\"rope_scaling\":null",
     "\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4.0}",
     "rope_scaling.rope_type is yarn"},
    {"\"rope_scaling\":null", "\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.0}",
     "rope_scaling.type is linear"},
    {"\"rope_scaling\":null",
     "\"rope_parameters\":{\"rope_type\":\"dynamic\",\"factor\":2.0}",
     "rope_parameters.rope_type is dynamic"},
    {"\"rope_scaling\":null",
     "\"rope_parameters\":{\"full_attention\":{\"rope_theta\":1e6}}",
     "rope_parameters has the key full_attention"},
    {"\"rope_scaling\":null",
     "\"rope_parameters\":{\"rope_theta\":1e6,\"partial_rotary_factor\":0.5}",
     "partial_rotary_factor is 0.5"},
    {"\"rope_scaling\":null", "\"partial_rotary_factor\":0.25",
     "partial_rotary_factor is 0.25"},
    {"\"rope_scaling\":null", "\"rope_scaling\":\"yarn\"",
     "rope_scaling is not an object"},
    {"\"use_sliding_window\":false",
     "\"use_sliding_window\":true,\"layer_types\":[\"full_attention\",\"sliding_"
     "attention\"]",
     "layer_types: layer 1 is sliding_attention"},
    {"\"sliding_window\":null,", "\"sliding_window\":4096,\"x\":0,", ""},
    {"\"use_sliding_window\":false", "\"layer_types\":[\"full_attention\"]",
     "layer_types has 1 entries for 2 layers"},
    {"\"attention_bias\":false", "\"attention_bias\":true", "attention_bias is true"},
    {"\"attention_bias\":false", "\"attention_bias\":1",
     "attention_bias is not true or false"},
    {"\"hidden_act\":\"silu\"", "\"hidden_act\":\"gelu\"",
     "hidden_act is gelu; only silu"},
    {"\"hidden_act\":\"silu\"", "\"quantization_config\":{\"quant_method\":\"fp8\"}",
     "quantization_config (fp8)"},
    /* keys that may matter, and are not known */
    {"\"hidden_act\":\"silu\"", "\"num_experts\":8",
     "the key num_experts is not known here"},
    {"\"hidden_act\":\"silu\"", "\"logit_scale\":0.5",
     "the key logit_scale is not known here"},
    {"\"hidden_act\":\"silu\"", "\"per_layer_config\":{\"0\":{\"head_dim\":4}}",
     "the key per_layer_config is not known"},
    {"\"hidden_act\":\"silu\"", "\"auto_map\":{\"AutoModel\":\"m.py\"}",
     "the key auto_map is not known here"},
    /* sizes: J4, J9 */
    {"\"head_dim\":6", "\"head_dim\":5", "head_dim 5 is odd"},
    {"\"head_dim\":6", "\"head_dim\":null", "head_dim is not a whole number"},
    {"\"head_dim\":6", "\"head_dim\":0", "head_dim is 0, it must be in 2..1024"},
    {"\"head_dim\":6,", "",
     "q_proj.weight has shape [24, 20], config.json implies [512, 20]"},
    {"\"num_key_value_heads\":2", "\"num_key_value_heads\":3",
     "num_attention_heads 4 is not a multiple of num_key_value_heads 3"},
    {"\"num_key_value_heads\":2,", "",
     "num_attention_heads 4 is not a multiple of num_key_value_heads 32"},
    {"\"num_hidden_layers\":2", "\"num_hidden_layers\":513",
     "num_hidden_layers is 513, it must be in 1..512"},
    {"\"num_hidden_layers\":2", "\"num_hidden_layers\":0", "num_hidden_layers is 0"},
    {"\"num_hidden_layers\":2", "\"num_hidden_layers\":2.0",
     "num_hidden_layers is not a whole number"},
    {"\"hidden_size\":20", "\"hidden_size\":\"20\"",
     "hidden_size is not a whole number"},
    {"\"hidden_size\":20", "\"hidden_size\":65537",
     "hidden_size is 65537, it must be in 1..65536"},
    {"\"vocab_size\":33", "\"vocab_size\":1e30", "vocab_size is not a whole number"},
    {"\"rms_norm_eps\":1e-06", "\"rms_norm_eps\":0",
     "rms_norm_eps is 0, it must be above 0"},
    {"\"rms_norm_eps\":1e-06", "\"rms_norm_eps\":-1e-6", "rms_norm_eps is -1e-06"},
    {"\"rms_norm_eps\":1e-06", "\"rms_norm_eps\":1e-60", "rms_norm_eps is 1e-60"},
    /* tokens */
    {"\"eos_token_id\":2", "\"eos_token_id\":33",
     "eos_token_id 33 is not a token below vocab_size 33"},
    {"\"eos_token_id\":2", "\"eos_token_id\":[2,-1]", "eos_token_id -1 is not a token"},
    {"\"eos_token_id\":2", "\"eos_token_id\":[1,2,3,4,5,6,7,8,9]",
     "more than 8 end tokens"},
    {"\"bos_token_id\":1", "\"bos_token_id\":99", "bos_token_id 99 is not a token"},
    /* J1, J3 */
    {"\"vocab_size\":33}", "\"vocab_size\":33,}", "config.json: byte "},
    {"\"vocab_size\":33", "\"vocab_size\":33,\"vocab_size\":34",
     "the key \"vocab_size\" appears twice"},
    /* shapes and tensors that follow from it */
    {"\"num_hidden_layers\":2", "\"num_hidden_layers\":3",
     "tensor model.layers.2.input_layernorm.weight is missing"},
    {"\"num_hidden_layers\":2", "\"num_hidden_layers\":1",
     "tensor model.layers.1.input_layernorm.weight is not known"},
    {"\"vocab_size\":33", "\"vocab_size\":34",
     "embed_tokens.weight has shape [33, 20], config.json implies [34, 20] "
     "(vocab_size, hidden_size)"},
    {"\"intermediate_size\":35", "\"intermediate_size\":36",
     "mlp.gate_proj.weight has shape [35, 20], config.json implies [36, 20]"},
};

static const struct {
    const char *from, *to;
} good_configs[] = {
    {"\"rope_theta\":1000000",
     "\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":1000000.0}"},
    {"\"rope_theta\":1000000",
     "\"rope_theta\":1e6,\"rope_parameters\":{\"rope_theta\":1000000,\"rope_type\":"
     "\"default\",\"partial_rotary_factor\":1.0}"},
    {"\"rope_scaling\":null", "\"rope_scaling\":{\"type\":\"default\"}"},
    {"\"torch_dtype\":\"bfloat16\"",
     "\"dtype\":\"bfloat16\",\"pad_token_id\":null,\"layer_types\":[\"full_attention\","
     "\"full_attention\"]"},
    {"\"architectures\":[\"Qwen3ForCausalLM\"],", ""},
    {"\"use_sliding_window\":false",
     "\"use_sliding_window\":true"},  /* from layer 28 on: none */
    {"\"hidden_act\":\"silu\",", ""}, /* the default */
    {"\"rms_norm_eps\":1e-06,", ""},  /* the default */
    {"\"attention_bias\":false,", ""},
    {"\"tie_word_embeddings\":false,", ""}, /* the default */
    {"\"use_cache\":true", "\"use_cache\":true,\"unsloth_fixed\":true,\"_name_or_"
                           "path\":\"x\",\"mlp_bias\":false,\"num_experts\":null"},
    {"\"use_cache\":true", "\"something_new\":[1,2]"}, /* noted, not refused */
    {"\"eos_token_id\":2", "\"eos_token_id\":[2,3,2]"},
    {"\"eos_token_id\":2", "\"eos_token_id\":null"},
};

static void test_configs(void)
{
    char text[4096];
    qsae_model_info info;
    convert_options o = plain_options();
    for (size_t i = 0; i < sizeof bad_configs / sizeof bad_configs[0]; i++) {
        replaced(text, sizeof text, config, bad_configs[i].from, bad_configs[i].to);
        write_model(model, N_TENSORS, text);
        if (bad_configs[i].message[0])
            refused(&o, 0, bad_configs[i].message);
        else
            accepted_model(&o, &info);
    }
    for (size_t i = 0; i < sizeof good_configs / sizeof good_configs[0]; i++) {
        replaced(text, sizeof text, config, good_configs[i].from, good_configs[i].to);
        write_model(model, N_TENSORS, text);
        if (accepted_model(&o, &info))
            CHECK(info.rope_theta == 1e6 && info.rms_eps == 1e-6f);
    }
    /* windows that act, and a key that the user vouches for */
    replaced(text, sizeof text, config, "\"max_window_layers\":28",
             "\"max_window_layers\":1");
    char slid[4096];
    replaced(slid, sizeof slid, text, "\"sliding_window\":null",
             "\"sliding_window\":128");
    replaced(text, sizeof text, slid, "\"use_sliding_window\":false",
             "\"use_sliding_window\":true");
    write_model(model, N_TENSORS, text);
    refused(&o, 0, "use_sliding_window is true and acts on layers 1..1");
    replaced(text, sizeof text, config, "\"hidden_act\":\"silu\"",
             "\"logit_scale\":0.5");
    write_model(model, N_TENSORS, text);
    o.ignore[o.n_ignore++] = "logit_scale";
    CHECK(accepted_model(&o, &info));
}

static void test_end_tokens(void)
{
    qsae_model_info info;
    convert_options o = plain_options();
    write_model(model, N_TENSORS, config);
    write_text("src/generation_config.json", "{\"eos_token_id\":[7,5]}"); /* wins */
    if (accepted_model(&o, &info))
        CHECK(info.n_eos == 2 && info.eos[0] == 7 && info.eos[1] == 5);
    write_text("src/generation_config.json",
               "{\"do_sample\":true}"); /* says nothing: config.json */
    if (accepted_model(&o, &info))
        CHECK(info.n_eos == 1 && info.eos[0] == 2);
    write_text("src/generation_config.json", "{\"eos_token_id\":[7,500]}");
    refused(&o, 0, "generation_config.json: eos_token_id 500 is not a token");
    write_text("src/generation_config.json", "{");
    refused(&o, 0, "generation_config.json: byte 1");
}

/* Tensors that are missing, unknown, of a wrong shape or type, or not finite. */
static void test_tensors(void)
{
    convert_options o = plain_options();
    source list[N_TENSORS + 1];
    static const struct {
        int at;
        source with;
        const char *message;
    } rows[] = {
        {LAYER1 + 4, GONE("model.layers.1.self_attn.q_norm.weight"),
         "tensor model.layers.1.self_attn.q_norm.weight is missing"},
        {LAYER0 + 1,
         MATRIX("model.layers.0.self_attn.q_proj.weight", TENSOR_BF16, 20, 24),
         "has shape [20, 24], config.json implies [24, 20] (num_attention_heads x "
         "head_dim, hidden_size)"},
        {LAYER0 + 1, VECTOR("model.layers.0.self_attn.q_proj.weight", TENSOR_BF16, 480),
         "has shape [480], config.json implies [24, 20]"},
        {NORM, VECTOR("model.norm.weight", TENSOR_F32, 21),
         "model.norm.weight has shape [21], config.json implies [20]"},
        {LAYER0 + 1,
         MATRIX("model.layers.0.self_attn.q_proj.weight", TENSOR_F8_E4M3, 24, 20),
         "q_proj.weight is F8_E4M3; F32, BF16 and F16"},
        {LAYER0 + 1,
         MATRIX("model.layers.0.self_attn.q_proj.weight", TENSOR_F64, 24, 20),
         "q_proj.weight is F64"},
        {LAYER0 + 8,
         ODD_MATRIX("model.layers.0.mlp.gate_proj.weight", TENSOR_BF16, 35, 20, 345,
                    (float)NAN),
         "tensor model.layers.0.mlp.gate_proj.weight: element [17, 5] "
         "is NaN"},
        {EMBED,
         ODD_MATRIX("model.embed_tokens.weight", TENSOR_F16, 33, 20, 659,
                    (float)INFINITY),
         "tensor model.embed_tokens.weight: element [32, 19] is "
         "infinite"},
        {LAYER0,
         ODD_VECTOR("model.layers.0.input_layernorm.weight", TENSOR_BF16, 20, 3,
                    -(float)INFINITY),
         "tensor model.layers.0.input_layernorm.weight: element [3] is infinite"},
        {N_TENSORS, VECTOR("model.layers.0.self_attn.q_proj.bias", TENSOR_BF16, 24),
         "q_proj.bias is not known: Qwen3 with biases"},
        {N_TENSORS,
         VECTOR("model.layers.0.mlp.experts.0.up_proj.weight", TENSOR_BF16, 4),
         "mixtures of experts"},
        {N_TENSORS, VECTOR("model.layers.0.mlp.up_proj.weight_scale", TENSOR_F32, 4),
         "quantized checkpoints"},
        {N_TENSORS,
         VECTOR("model.layers.0.self_attn.q_proj.lora_A.weight", TENSOR_F32, 4),
         "an adapter"},
        {N_TENSORS, VECTOR("model.layers.2.mlp.up_proj.weight", TENSOR_F32, 4),
         "is not known: a dense Qwen3"},
        {N_TENSORS, VECTOR("model.layers.00.mlp.up_proj.weight", TENSOR_F32, 4),
         "is not known: a dense Qwen3"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        memcpy(list, model, sizeof model);
        list[rows[i].at] = rows[i].with;
        write_model(list, N_TENSORS + (rows[i].at == N_TENSORS), config);
        refused(&o, 0, rows[i].message);
    }
}

/* J10: which matrix is the output head. */
static void test_head(void)
{
    qsae_model_info info;
    convert_options o = plain_options();
    source list[N_TENSORS];
    char tied[4096];
    replaced(tied, sizeof tied, config, "\"tie_word_embeddings\":false",
             "\"tie_word_embeddings\":true");
    memcpy(list, model, sizeof list);

    write_model(list, N_TENSORS, tied); /* tied, and stored with other values */
    refused(&o, 0,
            "config.json ties the output head to the embedding, but lm_head.weight is "
            "stored with other values; --head");
    o.head = HEAD_STORED;
    if (accepted_model(&o, &info))
        CHECK(!info.tied &&
              same_tensor(&model[HEAD], 0, QSAE_ROLE_LM_HEAD, QSAE_TYPE_BF16));
    o.head = HEAD_TIED;
    if (accepted_model(&o, &info))
        CHECK(info.tied && !tensor_of(0, QSAE_ROLE_LM_HEAD));

    o.head = HEAD_FROM_CONFIG;
    list[HEAD].skip = 1;
    write_model(list, N_TENSORS, config); /* untied, and not stored */
    refused(&o, 0, "tensor lm_head.weight is missing, and config.json does not tie");
    o.head = HEAD_TIED;
    CHECK(accepted_model(&o, &info) && info.tied);
    o.head = HEAD_STORED;
    refused(&o, 0, "--head stored: the checkpoint has no lm_head.weight");
    o.head = HEAD_FROM_CONFIG;
    write_model(list, N_TENSORS, tied); /* the ordinary tied checkpoint */
    CHECK(accepted_model(&o, &info) && info.tied && !tensor_of(0, QSAE_ROLE_LM_HEAD));

    list[EMBED].skip = 1; /* tied, and stored under the other name only */
    list[HEAD].skip = 0;
    write_model(list, N_TENSORS, tied);
    if (accepted_model(&o, &info))
        CHECK(info.tied &&
              same_tensor(&model[HEAD], 0, QSAE_ROLE_EMBED, QSAE_TYPE_BF16));
    write_model(list, N_TENSORS, config);
    refused(&o, 0, "tensor model.embed_tokens.weight is missing");
}

/* Tied, and the same values stored twice: one matrix is written. */
static void test_head_twice(void)
{
    qsae_model_info info;
    convert_options o = plain_options();
    char tied[4096];
    source only[1] = {model[EMBED]};
    replaced(tied, sizeof tied, config, "\"tie_word_embeddings\":false",
             "\"tie_word_embeddings\":true");
    write_model(model, N_TENSORS, tied);
    /* copy the bytes of the embedding over those of the head */
    tensor_file *f = tensors_open(path_of("src/" ONE), err, sizeof err);
    if (!CHECK(f != NULL))
        return;
    size_t n = (size_t)elements(only) * 2;
    unsigned char *copy = malloc(n);
    long from = (long)tensors_find(f, "model.embed_tokens.weight")->offset;
    long to = (long)tensors_find(f, "lm_head.weight")->offset;
    tensors_close(f);
    FILE *file = fopen(path_of("src/" ONE), "r+b");
    CHECK(file && fseek(file, from, SEEK_SET) == 0 && fread(copy, 1, n, file) == n);
    fseek(file, to, SEEK_SET);
    CHECK(fwrite(copy, 1, n, file) == n && fclose(file) == 0);
    free(copy);
    CHECK(accepted_model(&o, &info) && info.tied && !tensor_of(0, QSAE_ROLE_LM_HEAD));
}

/* ---- shards ---- */

#define S1    "model-00001-of-00002.safetensors"
#define S2    "model-00002-of-00002.safetensors"
#define INDEX "src/model.safetensors.index.json"

/* The index of `list`, with one entry changed: from "" is none. */
static void write_index(const source *list, const char *from, const char *to)
{
    static char text[16384], changed[16384];
    size_t at = (size_t)snprintf(text, sizeof text,
                                 "{\"metadata\":{\"total_size\":1},\"weight_map\":{");
    for (size_t i = 0; i < N_TENSORS; i++)
        at += (size_t)snprintf(text + at, sizeof text - at, "%s\"%s\":\"%s\"",
                               i ? "," : "", list[i].name, list[i].file);
    snprintf(text + at, sizeof text - at, "}}");
    replaced(changed, sizeof changed, text, from, to);
    write_text(INDEX, changed);
}

static void write_shards(const source *list)
{
    empty_folder(path_of("src"));
    write_text("src/config.json", config);
    write_tensors(list, N_TENSORS, S1);
    write_tensors(list, N_TENSORS, S2);
}

static void test_shards(void)
{
    static const struct {
        const char *from, *to, *message;
    } rows[] = {
        /* I1 */
        {"\"lm_head.weight\":\"" S1, "\"lm_head.weight\":\"../" S1,
         "is not the plain name"},
        {"\"lm_head.weight\":\"" S1, "\"lm_head.weight\":\"/" S1,
         "is not the plain name"},
        {"\"lm_head.weight\":\"" S1, "\"lm_head.weight\":\"x\\\\" S1,
         "is not the plain name"},
        {"\"lm_head.weight\":\"" S1, "\"lm_head.weight\":\"c:" S1,
         "is not the plain name"},
        {"\"lm_head.weight\":\"" S1, "\"lm_head.weight\":\"a\\u0000.safetensors",
         "is not the plain name"},
        {"\"lm_head.weight\":\"" S1 "\"", "\"lm_head.weight\":1",
         "is not the plain name"},
        {"\"lm_head.weight\":\"" S1, "\"lm_head.weight\":\"config.json",
         "is not the plain name"},
        /* I2, I3 */
        {"\"lm_head.weight\":\"" S1, "\"lm_head.weight\":\"model-3.safetensors",
         "model-3.safetensors: cannot open"},
        {"\"lm_head.weight\":\"" S1, "\"lm_head.weight\":\"" S2,
         "tensor lm_head.weight is mapped to " S2 ", which does not have it"},
        {"\"lm_head.weight\":\"" S1 "\",", "",
         S1 " has tensor lm_head.weight, which model.safetensors.index.json does not "
            "list"},
        {"\"weight_map\":", "\"weight_mop\":", "weight_map is missing"},
        {"\"lm_head.weight\":", "\"lm_head.weight\":\"" S1 "\",\"lm_head.weight\":",
         "appears twice"},
    };
    convert_options o = plain_options();
    qsae_model_info info;
    source list[N_TENSORS];
    memcpy(list, model, sizeof list);
    for (size_t i = 0; i < N_TENSORS; i++)
        list[i].file = i < LAYER1 ? S1 : S2;
    write_shards(list);
    write_index(list, "\"metadata\"", "\"metadata\"");
    if (accepted_model(&o, &info))
        check_layers();
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        write_index(list, rows[i].from, rows[i].to);
        refused(&o, 0, rows[i].message);
    }
    write_index(list, "\"metadata\"", "\"metadata\"");
    write_text("src/model-00003-of-00003.safetensors",
               "x"); /* I2: present, not listed */
    refused(&o, 0, "model-00003-of-00003.safetensors is in the folder, but");
    unlink(path_of("src/model-00003-of-00003.safetensors"));
    if (symlink(S1, path_of("src/also.safetensors")) == 0) { /* I5 */
        write_index(list, "\"lm_head.weight\":\"" S1,
                    "\"lm_head.weight\":\"also.safetensors");
        refused(&o, 0, "are one file");
        write_index(list, "\"metadata\"", "\"metadata\"");
    }
    write_text("src/adapter_config.json", "{}");
    refused(&o, 0, "holds an adapter");
    unlink(path_of("src/adapter_config.json"));
    list[LAYER1].file = S1; /* S17: one tensor in both shards */
    write_tensors(list, N_TENSORS, S1);
    list[LAYER1].file = S2;
    refused(&o, 0,
            "tensor model.layers.1.input_layernorm.weight is in " S2 " and in " S1);
    write_tensors(model, N_TENSORS, ONE);
    refused(&o, 0, "holds both model.safetensors and model.safetensors.index.json");
    empty_folder(path_of("src"));
    write_text("src/config.json", config);
    refused(&o, 0, "neither model.safetensors nor model.safetensors.index.json");
    write_text("src/pytorch_model.bin", "x");
    refused(&o, 0, "pytorch_model.bin is not read");
}

/* ---- tokenizer ---- */

static void test_tokenizer(void)
{
    convert_options o = plain_options();
    qsae_model_info info;
    write_model(model, N_TENSORS, config);
    write_text("src/tokenizer.json",
               "{\"model\":{\"vocab\":{\"a\":0,\"b\":33}},\"added_tokens\":[]}");
    refused(&o, 0, "tokenizer.json has token ids up to 33, vocab_size is 33");
    write_text(
        "src/tokenizer.json",
        "{\"model\":{\"vocab\":{}},\"added_tokens\":[{\"id\":40,\"content\":\"x\"}]}");
    refused(&o, 0, "tokenizer.json has token ids up to 40");
    write_text("src/tokenizer.json", "{\"model\":");
    refused(&o, 0, "tokenizer.json: byte ");
    write_text("src/tokenizer.json", "{\"model\":{\"type\":\"Unigram\"}}");
    refused(&o, 0, "(--no-tokenizer leaves it out)");
    o.no_tokenizer = 1;
    CHECK(accepted_model(&o, &info) && info.n_tokens == 0);
}

/* ---- SAEs ---- */

enum { I = 5, F = 19, O = 7 };

static const char sae_cfg[] =
    "{\"d_in\":5,\"d_sae\":19,\"dtype\":\"float32\",\"device\":\"cpu\",\"apply_b_dec_"
    "to_input\":true,"
    "\"normalize_activations\":\"none\",\"reshape_activations\":\"none\","
    "\"architecture\":\"ARCH\",\"k\":4,"
    "\"metadata\":{\"sae_lens_version\":\"6.54.12\",\"hook_name\":\"blocks.3.hook_"
    "resid_post\",\"model_name\":\"m\"}}";

#define W "sae_weights.safetensors"

enum { W_ENC, W_DEC, B_ENC, B_DEC, THETA, R_MAG, B_MAG, SKIPPED, N_SAE };

static const source sae[N_SAE] = {
    MATRIX("W_enc", TENSOR_F32, I, F),
    MATRIX("W_dec", TENSOR_F32, F, I),
    VECTOR("b_enc", TENSOR_F32, F),
    VECTOR("b_dec", TENSOR_F32, I),
    GONE("threshold"),
    GONE("r_mag"),
    GONE("b_mag"),
    GONE("W_skip"),
};

/* The tensors that this architecture has. */
static void sae_tensors(const char *arch, source *list)
{
    memcpy(list, sae, sizeof sae);
    if (strstr(arch, "jumprelu"))
        list[THETA] = (source)VECTOR("threshold", TENSOR_F32, F);
    if (strstr(arch, "batchtopk"))
        list[THETA] = (source)NUMBER("topk_threshold", TENSOR_F64, 0.375f);
    if (strcmp(arch, "gated") == 0) {
        list[B_ENC].name = "b_gate";
        list[R_MAG] = (source)VECTOR("r_mag", TENSOR_F32, F);
        list[B_MAG] = (source)VECTOR("b_mag", TENSOR_F32, F);
    }
    if (strstr(arch, "transcoder"))
        list[W_DEC].shape[1] = list[B_DEC].shape[0] = O;
    if (strstr(arch, "skip"))
        list[SKIPPED] = (source)MATRIX("W_skip", TENSOR_F32, O, I);
}

static void write_sae(const source *list, const char *cfg)
{
    empty_folder(path_of("src"));
    write_text("src/cfg.json", cfg);
    write_tensors(list, N_SAE, W);
}

static int run_sae(const convert_options *o)
{
    char src[700];
    const char *dirs[1] = {src};
    snprintf(src, sizeof src, "%s", path_of("src"));
    unlink(path_of("out.qsae"));
    return convert_sae(dirs, 1, o, err, sizeof err);
}

/* SAELens' forward pass, written from its formulas in double, for one row x: f [F] and
 * y [O or I]. */
typedef struct forward {
    const char *arch, *norm;
    int subtract, rescale, k;
    double scale; /* of expected_average_only_in */
} forward;

static double norm_in(const forward *w, const double *x, double *out, double *mean)
{
    double sum = 0, squares = 0, by = 1;
    *mean = 0;
    for (int j = 0; j < I; j++)
        sum += x[j];
    if (strcmp(w->norm, "layer_norm") == 0)
        *mean = sum / I;
    for (int j = 0; j < I; j++)
        squares += (x[j] - *mean) * (x[j] - *mean);
    if (strcmp(w->norm, "layer_norm") == 0)
        by = sqrt(squares / (I - 1));
    if (strcmp(w->norm, "constant_norm_rescale") == 0)
        by = sqrt(squares) / sqrt((double)I);
    for (int j = 0; j < I; j++)
        out[j] = (x[j] - *mean) /
                 (by + (strcmp(w->norm, "layer_norm") == 0 ? 1e-5 : 0)) * w->scale;
    return by;
}

static void activate(const forward *w, const double *z, const double *p,
                     float *const *v, double *f)
{
    for (int i = 0; i < F; i++) {
        int larger = 0;
        for (int j = 0; j < F; j++)
            larger += z[j] > z[i] || (z[j] == z[i] && j < i);
        double theta = strstr(w->arch, "batchtopk")  ? (double)v[THETA][0]
                       : strstr(w->arch, "jumprelu") ? (double)v[THETA][i]
                                                     : 0;
        f[i] = z[i] > 0 && z[i] > theta ? z[i] : 0;
        if (strcmp(w->arch, "topk") == 0 && larger >= w->k)
            f[i] = 0;
        if (strcmp(w->arch, "gated") == 0)
            f[i] = z[i] > 0
                       ? fmax(p[i] * exp((double)v[R_MAG][i]) + (double)v[B_MAG][i], 0)
                       : 0;
    }
}

static void reference(const forward *w, const source *list, const double *x, double *f,
                      double *y)
{
    float *v[N_SAE];
    double in[I], z[F], p[F], n[F], mean;
    int out = (int)list[B_DEC].shape[0];
    for (int i = 0; i < N_SAE; i++)
        v[i] = values_of(&list[i]);
    double by = norm_in(w, x, in, &mean);
    for (int i = 0; i < F; i++) {
        p[i] = n[i] = 0;
        for (int j = 0; j < I; j++)
            p[i] += (in[j] - (w->subtract ? (double)v[B_DEC][j] : 0)) *
                    (double)v[W_ENC][j * F + i];
        for (int j = 0; j < out; j++)
            n[i] += (double)v[W_DEC][i * out + j] * (double)v[W_DEC][i * out + j];
        n[i] = w->rescale ? sqrt(n[i]) : 1;
        z[i] = (p[i] + (double)v[B_ENC][i]) * n[i];
    }
    activate(w, z, p, v, f);
    for (int j = 0; j < out; j++) {
        y[j] = (double)v[B_DEC][j];
        for (int i = 0; i < F; i++)
            y[j] += f[i] / n[i] * (double)v[W_DEC][i * out + j];
        if (!strstr(w->arch, "transcoder"))
            y[j] = y[j] / w->scale * by + mean;
        for (int i = 0; i < I && strstr(w->arch, "skip"); i++)
            y[j] += x[i] * (double)v[SKIPPED][j * I + i];
    }
    for (int i = 0; i < N_SAE; i++)
        free(v[i]);
}

/* The converted file gives the features and the output of the reference, up to f32. */
static void compare(const forward *w, const source *list)
{
    double x[I], f[F], y[O], worst_f = 0, worst_y = 0;
    float xf[I], yf[O], value[F];
    size_t start[2], total = 0;
    uint32_t index[F];
    qsae_rows rows = {1, start, index, value, F, 0};
    qsae_sae_info info;
    qsae_error e;
    qsae_sae *s;
    if (!CHECK(qsae_sae_open(path_of("out.qsae"), NULL, &s, &e) == QSAE_OK))
        return;
    qsae_sae_get_info(s, &info);
    size_t room = qsae_sae_scratch_size(s, 1);
    void *scratch = malloc(room + 1);
    random_state = 77;
    for (int row = 0; row < 40; row++) {
        for (int j = 0; j < I; j++)
            x[j] = (double)(xf[j] = next_value() * 2);
        reference(w, list, x, f, y);
        if (!CHECK(!qsae_sae_encode(s, xf, 1, 0, &rows, scratch, room, 0, &e)) ||
            !CHECK(!qsae_sae_decode(s, &rows, xf, 0, yf, scratch, room, 0, &e)))
            break;
        /* with a decoder norm folded after a scale, SAELens' features are in the site's
         * units */
        double unit = w->rescale ? w->scale : 1;
        for (size_t i = 0, at = 0; i < F; i++) {
            double got = at < start[1] && index[at] == i ? (double)value[at++] : 0;
            worst_f = fmax(worst_f, fabs(got * unit - f[i]));
        }
        for (int j = 0; j < info.d_out; j++)
            worst_y = fmax(worst_y, fabs((double)yf[j] - y[j]));
        total += start[1];
    }
    if (!CHECK(worst_f < 2e-4 && worst_y < 1e-3 && total > 20))
        fprintf(stderr, "    %s %s: f %g, y %g, %zu features\n", w->arch, w->norm,
                worst_f, worst_y, total);
    free(scratch);
    qsae_sae_close(s);
}

/* One cfg.json: the architecture, its norm and flags. */
static void sae_config(char *text, size_t cap, const forward *w)
{
    char a[2048], b[2048];
    replaced(a, sizeof a, sae_cfg, "ARCH", w->arch);
    replaced(b, sizeof b, a, "\"normalize_activations\":\"none\"",
             "\"normalize_activations\":\"NORM\"");
    replaced(a, sizeof a, b, "NORM", w->norm);
    if (strstr(w->arch, "transcoder")) {
        replaced(b, sizeof b, a, "\"d_in\":5", "\"d_in\":5,\"d_out\":7");
        replaced(a, sizeof a, b, "hook_resid_post\"",
                 "mlp.hook_in\",\"hook_name_out\":\"blocks.3.hook_mlp_out\"");
    }
    if (w->rescale)
        replaced(b, sizeof b, a, "\"k\":4",
                 "\"k\":4,\"rescale_acts_by_decoder_norm\":true");
    else
        replaced(b, sizeof b, a, "\"k\":4",
                 "\"k\":4,\"rescale_acts_by_decoder_norm\":false");
    replaced(text, cap, b, "\"apply_b_dec_to_input\":true",
             w->subtract ? "\"apply_b_dec_to_input\":true"
                         : "\"apply_b_dec_to_input\":false");
}

static void test_sae_folds(void)
{
    static const char *const archs[] = {"standard",
                                        "jumprelu",
                                        "topk",
                                        "gated",
                                        "batchtopk",
                                        "matryoshka_batchtopk",
                                        "transcoder",
                                        "skip_transcoder",
                                        "jumprelu_transcoder",
                                        "jumprelu_skip_transcoder"};
    static const char *const norms[] = {"none", "constant_norm_rescale", "layer_norm",
                                        "expected_average_only_in"};
    char text[4096];
    for (size_t a = 0; a < sizeof archs / sizeof archs[0]; a++) {
        for (int v = 0; v < 16; v++) {
            int transcoder = strstr(archs[a], "transcoder") != NULL;
            int topk = strstr(archs[a], "topk") != NULL;
            forward w = {archs[a], norms[v & 3], v >> 2 & 1, v >> 3 & 1, 4, 1};
            if ((transcoder && (v & 3) != v) || (transcoder && v == 3) ||
                (w.rescale && !topk))
                continue;
            source list[N_SAE];
            convert_options o = plain_options();
            if ((v & 3) == 3)
                w.scale = o.norm_scale = 0.625;
            sae_tensors(archs[a], list);
            sae_config(text, sizeof text, &w);
            write_sae(list, text);
            if (!CHECK(run_sae(&o) == 0)) {
                fprintf(stderr, "    %s: %s\n", text, err);
                continue;
            }
            compare(&w, list);
        }
    }
}

static const struct {
    const char *arch, *from, *to, *message;
} bad_saes[] = {
    /* names */
    {"abstopk", "", "", "architecture is abstopk; supported are"},
    {"temporal", "", "", "architecture is temporal"},
    {"matching_pursuit", "", "", "architecture is matching_pursuit"},
    {"standard", "\"architecture\":\"standard\",", "", "architecture is (absent)"},
    {"standard", "\"architecture\":\"standard\"", "\"architecture\":3",
     "architecture is 3"},
    {"standard", "\"k\":4", "\"new_option\":true",
     "the key new_option is not known here (--ignore-key"},
    {"standard", "\"k\":4", "\"activation_fn\":\"tanh-relu\"",
     "activation_fn is tanh-relu"},
    {"standard", "\"normalize_activations\":\"none\"",
     "\"normalize_activations\":\"covariance_whitening\"",
     "normalize_activations is covariance_whitening"},
    {"standard", "\"normalize_activations\":\"none\"",
     "\"normalize_activations\":\"constant_scalar_rescale\"",
     "normalize_activations is constant_scalar_rescale"},
    {"standard", "\"normalize_activations\":\"none\"",
     "\"normalize_activations\":\"expected_average_only_in\"",
     "the scale is not in the file; --norm-scale X settles it"},
    {"standard", "\"reshape_activations\":\"none\"",
     "\"reshape_activations\":\"hook_q\"", "reshape_activations is hook_q"},
    {"standard", "\"reshape_activations\":\"none\"",
     "\"reshape_activations\":\"hook_z\"", "is hook_z, but the site is not attn_z"},
    {"standard", "hook_resid_post", "attn.hook_z",
     "the site is attn_z, but reshape_activations is not hook_z"},
    {"standard", "\"apply_b_dec_to_input\":true", "\"apply_b_dec_to_input\":1",
     "apply_b_dec_to_input is 1, not true or false"},
    {"transcoder", "\"apply_b_dec_to_input\":false", "\"apply_b_dec_to_input\":true",
     "does not allow for a transcoder"},
    {"transcoder", "\"normalize_activations\":\"none\"",
     "\"normalize_activations\":\"expected_average_only_in\"",
     "a transcoder with normalize_activations"},
    /* sizes */
    {"standard", "\"d_in\":5", "\"d_in\":0",
     "d_in is 0, it must be a whole number in 1..65536"},
    {"standard", "\"d_in\":5", "\"d_in\":5.0",
     "d_in is 5.0, it must be a whole number"},
    {"standard", "\"d_in\":5,", "", "d_in is (absent), it must be a whole number"},
    {"standard", "\"d_in\":5", "\"d_in\":6",
     "tensor W_enc has shape [5, 19], cfg.json implies [6, 19]"},
    {"standard", "\"d_sae\":19", "\"d_sae\":16777217", "d_sae is 16777217"},
    {"topk", "\"k\":4", "\"k\":20", "k is 20, it must be a whole number in 1..19"},
    {"topk", "\"k\":4", "\"k\":0", "k is 0"},
    {"topk", "\"k\":4,", "", "architecture is topk, but there is no k; --k K says it"},
    {"transcoder", "\"d_out\":7,", "\"d_out\":8,",
     "tensor W_dec has shape [19, 7], cfg.json implies [19, 8]"},
    /* places */
    {"standard", "blocks.3.hook_resid_post", "blocks.3.hook_mlp_in",
     "which site is meant is not clear (hook_mlp_in is before the norm"},
    {"standard", "blocks.3.hook_resid_post", "blocks.3.ln2.hook_normalized",
     "which site is meant is not clear (the norm's output without"},
    {"standard", "blocks.3.hook_resid_post", "blocks.512.hook_resid_post",
     "which site is meant is not clear; --site SITE and --layer N"},
    {"standard", "blocks.3.hook_resid_post", "blocks.x.hook_resid_post",
     "which site is meant"},
    {"standard", "blocks.3.hook_resid_post", "blocks.3hook_resid_post",
     "which site is meant"},
    {"standard", "blocks.3.hook_resid_post", "hook_embed", "which site is meant"},
    {"standard", "\"hook_name\":\"blocks.3.hook_resid_post\",", "",
     "hook_name is (absent): which site is meant"},
    {"standard", "\"model_name\"", "\"hook_head_index\":2,\"model_name\"",
     "hook_head_index is 2; SAEs of a single head"},
    {"standard", "\"k\":4", "\"hook_layer\":4",
     "hook_layer is 4, the hook's name says layer 3"},
    {"transcoder", "blocks.3.hook_mlp_out", "blocks.2.hook_mlp_out",
     "it writes a site that comes before"},
    {"transcoder", "blocks.3.hook_mlp_out", "blocks.3.hook_resid_mid",
     "it writes a site that comes before"},
    {"transcoder", ",\"hook_name_out\":\"blocks.3.hook_mlp_out\"", "",
     "hook_name_out is (absent): which site is meant is not clear; --site-out"},
};

static void test_sae_refusals(void)
{
    char text[4096], changed[4096];
    for (size_t i = 0; i < sizeof bad_saes / sizeof bad_saes[0]; i++) {
        forward w = {bad_saes[i].arch,
                     "none",
                     strstr(bad_saes[i].arch, "transcoder") == NULL,
                     0,
                     4,
                     1};
        source list[N_SAE];
        convert_options o = plain_options();
        sae_tensors(w.arch, list);
        sae_config(text, sizeof text, &w);
        replaced(changed, sizeof changed, text, bad_saes[i].from, bad_saes[i].to);
        write_sae(list, changed);
        refused(&o, 1, bad_saes[i].message);
    }
}

/* One tensor of an SAE is not as it should be. */
static void test_sae_tensors(void)
{
    static const struct {
        const char *arch;
        int at;
        source with;
        const char *message;
    } rows[] = {
        {"standard", B_ENC, GONE("b_enc"),
         "tensor b_enc is missing, which architecture standard has"},
        {"jumprelu", THETA, GONE("threshold"), "tensor threshold is missing"},
        {"batchtopk", THETA, GONE("topk_threshold"), "tensor threshold is missing"},
        {"batchtopk", THETA, VECTOR("topk_threshold", TENSOR_F32, F),
         "topk_threshold has shape [19], it must be one number"},
        {"gated", R_MAG, GONE("r_mag"), "tensor r_mag is missing"},
        {"gated", R_MAG, ODD_VECTOR("r_mag", TENSOR_F32, F, 2, 200.0f),
         "exp(r_mag) of feature 2 does not fit in f32: r_mag is 200"},
        {"gated", R_MAG, ODD_VECTOR("r_mag", TENSOR_F32, F, 2, -200.0f),
         "exp(r_mag) of feature 2 does not fit"},
        {"skip_transcoder", SKIPPED, GONE("W_skip"), "tensor W_skip is missing"},
        {"skip_transcoder", SKIPPED, MATRIX("W_skip", TENSOR_F32, I, O),
         "tensor W_skip has shape [5, 7], cfg.json implies [7, 5]"},
        {"skip_transcoder", SKIPPED,
         ODD_MATRIX("W_skip", TENSOR_F32, O, I, 6, (float)NAN),
         "tensor W_skip: element [1, 1] is NaN"},
        {"standard", R_MAG, VECTOR("log_threshold", TENSOR_F32, F),
         "tensor log_threshold is not known: architecture standard"},
        {"standard", R_MAG, VECTOR("scaling_factor", TENSOR_F32, F),
         "finetuning scales other than 1"},
        {"standard", W_ENC, MATRIX("W_enc", TENSOR_F32, F, I),
         "tensor W_enc has shape [19, 5], cfg.json implies [5, 19]"},
        {"standard", W_ENC, MATRIX("W_enc", TENSOR_I8, I, F),
         "tensor W_enc is I8; F32, BF16, F16 and F64"},
        {"standard", W_ENC, ODD_MATRIX("W_enc", TENSOR_F32, I, F, 20, (float)NAN),
         "tensor W_enc: element [1, 1] is NaN"},
        {"standard", W_DEC, ODD_MATRIX("W_dec", TENSOR_F16, F, I, 94, (float)INFINITY),
         "tensor W_dec: element [18, 4] is infinite"},
        {"standard", B_DEC, ODD_VECTOR("b_dec", TENSOR_F64, I, 4, -(float)INFINITY),
         "tensor b_dec: element [4] is infinite"},
        {"batchtopk", THETA, NUMBER("topk_threshold", TENSOR_F64, -0.5f),
         "topk_threshold is -0.5, it cannot be below 0"},
        {"jumprelu", THETA, ODD_VECTOR("threshold", TENSOR_F32, F, 3, (float)NAN),
         "tensor threshold: element [3] is NaN"},
    };
    char text[4096];
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        forward w = {
            rows[i].arch, "none", strstr(rows[i].arch, "transcoder") == NULL, 0, 4, 1};
        source list[N_SAE];
        convert_options o = plain_options();
        sae_tensors(w.arch, list);
        list[rows[i].at] = rows[i].with;
        sae_config(text, sizeof text, &w);
        write_sae(list, text);
        refused(&o, 1, rows[i].message);
    }
}

/* JumpReLU thresholds below 0 act as 0, for SAELens takes relu(z) where z > theta; but
 * whoever converts has to say that they are thresholds. */
static void test_sae_negative_threshold(void)
{
    char text[4096];
    convert_options o = plain_options();
    forward w = {"jumprelu", "none", 1, 0, 4, 1};
    source list[N_SAE];
    sae_tensors(w.arch, list);
    list[THETA].odd_at = 3;
    list[THETA].odd = -0.5f;
    sae_config(text, sizeof text, &w);
    write_sae(list, text);
    refused(&o, 1,
            "tensor threshold: 1 of 19 are below 0, the first at 3: -0.5. Logarithms");
    o.negative_thresholds = 1;
    CHECK(run_sae(&o) == 0 && load_result());
    CHECK(number_at(tensor_of(1, QSAE_ROLE_THETA), 0, 3) == 0.0f);
    compare(&w, list);
}

/* What cfg.json leaves out: k by --k, d_out by W_dec's shape. --layer moves both ends of
 * a transcoder in one layer, with --layer-out it moves where it reads. */
static void test_sae_absent(void)
{
    char text[4096], changed[4096];
    convert_options o = plain_options();
    forward topk = {"topk", "none", 1, 0, 4, 1}, w = {"transcoder", "none", 0, 0, 4, 1};
    source list[N_SAE];
    qsae_sae_info info;
    qsae_sae *s;
    qsae_error e;
    sae_tensors(topk.arch, list);
    sae_config(text, sizeof text, &topk);
    replaced(changed, sizeof changed, text, "\"k\":4,", "");
    write_sae(list, changed);
    o.k = 4;
    if (CHECK(run_sae(&o) == 0 && load_result()))
        compare(&topk, list);
    sae_tensors(w.arch, list);
    sae_config(text, sizeof text, &w);
    replaced(changed, sizeof changed, text, "\"d_out\":7,", "");
    write_sae(list, changed);
    for (int out = -1; out < 8; out += 8) {
        o = plain_options();
        o.layer = 5;
        o.layer_out = out;
        if (!CHECK(run_sae(&o) == 0 && load_result()) ||
            !CHECK(!qsae_sae_open(path_of("out.qsae"), NULL, &s, &e)))
            continue;
        qsae_sae_get_info(s, &info);
        CHECK(info.d_out == O && info.layer_in == 5 &&
              info.layer_out == (out < 0 ? 5 : 7));
        qsae_sae_close(s);
        compare(&w, list);
    }
}

/* Names of hooks, and options that take their place. */
static void test_sae_sites(void)
{
    static const struct {
        const char *hook;
        int site_option, layer_option, site, layer;
    } rows[] = {
        {"blocks.0.hook_resid_pre", -1, -1, QSAE_RESID_PRE, 0},
        {"blocks.11.hook_resid_mid", -1, -1, QSAE_RESID_MID, 11},
        {"blocks.3.hook_attn_out", -1, -1, QSAE_ATTN_OUT, 3},
        {"blocks.3.hook_mlp_out", -1, -1, QSAE_MLP_OUT, 3},
        {"blocks.3.mlp.hook_out", -1, -1, QSAE_MLP_OUT, 3},
        {"blocks.3.mlp.hook_in", -1, -1, QSAE_MLP_INPUT, 3},
        {"model.layers.7", -1, -1, QSAE_RESID_POST, 7},
        {"model.layers.7.mlp", -1, -1, QSAE_MLP_OUT, 7},
        {"blocks.3.hook_mlp_in", QSAE_MLP_INPUT, -1, QSAE_MLP_INPUT, 3},
        {"somewhere", QSAE_RESID_POST, 5, QSAE_RESID_POST, 5},
        {"blocks.3.hook_resid_post", QSAE_RESID_PRE, 4, QSAE_RESID_PRE, 4},
    };
    char text[4096], changed[4096];
    forward w = {"standard", "none", 1, 0, 4, 1};
    sae_config(text, sizeof text, &w);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        convert_options o = plain_options();
        qsae_sae_info info;
        qsae_sae *s;
        qsae_error e;
        o.site = rows[i].site_option;
        o.layer = rows[i].layer_option;
        replaced(changed, sizeof changed, text, "blocks.3.hook_resid_post",
                 rows[i].hook);
        write_sae(sae, changed);
        if (!CHECK(run_sae(&o) == 0) ||
            !CHECK(!qsae_sae_open(path_of("out.qsae"), NULL, &s, &e)))
            continue;
        qsae_sae_get_info(s, &info);
        CHECK((int)info.site_in == rows[i].site && info.layer_in == rows[i].layer &&
              !info.is_transcoder);
        qsae_sae_close(s);
    }
}

/* Files from before SAELens 6: flat keys, other names. */
static void test_sae_legacy(void)
{
    static const char text[] = "{\"d_in\":5,\"d_sae\":19,\"dtype\":\"torch.float32\","
                               "\"hook_point\":\"blocks.2.hook_resid_pre\","
                               "\"hook_point_layer\":2,\"l1_coefficient\":1e-3,"
                               "\"normalize_activations\":false,\"unheard_of\":[1],"
                               "\"sae_lens_version\":\"3.22.1\",\"activation_fn_str\":"
                               "\"topk\",\"activation_fn_kwargs\":{\"k\":4}}";
    char changed[2048];
    convert_options o = plain_options();
    forward w = {"topk", "none", 1, 0, 4, 1};
    qsae_sae_info info;
    qsae_sae *s;
    qsae_error e;
    write_sae(sae, text);
    if (CHECK(run_sae(&o) == 0) &&
        CHECK(!qsae_sae_open(path_of("out.qsae"), NULL, &s, &e))) {
        qsae_sae_get_info(s, &info);
        CHECK(info.activation == QSAE_ACT_TOPK && info.k == 4 &&
              info.site_in == QSAE_RESID_PRE && info.layer_in == 2);
        qsae_sae_close(s);
        compare(&w, sae);
    }
    replaced(changed, sizeof changed, text, "\"normalize_activations\":false",
             "\"normalize_activations\":true");
    write_sae(sae, changed);
    refused(&o, 1, "normalize_activations is expected_average_only_in");
    write_text("src/activation_scaler.json", "{\"scaling_factor\": 0.125}");
    refused(&o, 1, "activation_scaler.json next to it says: --norm-scale 0.125");
    replaced(changed, sizeof changed, text, ",\"activation_fn_kwargs\":{\"k\":4}", "");
    write_sae(sae, changed);
    refused(&o, 1, "activation_fn is topk, but there is no k");
}

/* bf16 is kept where nothing but biases is folded, else the file is f32; --type decides
 * over both. */
static void test_sae_types(void)
{
    char text[4096];
    for (int v = 0; v < 4; v++) {
        forward w = {"standard", v == 1 ? "expected_average_only_in" : "none",
                     1,          0,
                     4,          v == 1 ? 0.625 : 1};
        source list[N_SAE];
        convert_options o = plain_options();
        memcpy(list, sae, sizeof list);
        list[W_ENC].type = list[W_DEC].type = v == 3 ? TENSOR_F64 : TENSOR_BF16;
        o.norm_scale = v == 1 ? 0.625 : 0;
        o.type = v == 2 ? QSAE_TYPE_F32 : v == 3 ? QSAE_TYPE_BF16 : 0;
        sae_config(text, sizeof text, &w);
        write_sae(list, text);
        if (!CHECK(run_sae(&o) == 0) || !CHECK(load_result()))
            continue;
        CHECK(tensor_of(1, QSAE_ROLE_ENC)->type ==
              (v == 0 || v == 3 ? QSAE_TYPE_BF16 : QSAE_TYPE_F32));
        compare(&w, list);
    }
    forward w = {"standard", "none", 1,
                 0,          4,      1}; /* --norm-scale where nothing asks for it */
    convert_options o = plain_options();
    sae_config(text, sizeof text, &w);
    write_sae(sae, text);
    o.norm_scale = 2;
    refused(&o, 1, "--norm-scale has no place");
}

/* Several folders make a suite, sorted by layer; folders of one name are told apart by
 * their site. */
static void test_suite(void)
{
    char text[4096], changed[4096], a[700], b[700];
    const char *dirs[2] = {a, b};
    forward w = {"standard", "none", 1, 0, 4, 1};
    convert_options o = plain_options();
    qsae_sae_options pick;
    qsae_sae_info info;
    qsae_sae *s;
    qsae_error e;
    sae_config(text, sizeof text, &w);
    replaced(changed, sizeof changed, text, "blocks.3", "blocks.1");
    write_sae(sae, text);
    snprintf(a, sizeof a, "%s", path_of("src"));
    snprintf(b, sizeof b, "%s", path_of("two"));
    CHECK(mkdir(b, 0777) == 0 && mkdir(path_of("two/src"), 0777) == 0);
    snprintf(b, sizeof b, "%s", path_of("two/src"));
    write_text("two/src/cfg.json", changed);
    CHECK(rename(path_of("src/" W), path_of("two/src/" W)) == 0);
    write_sae(sae, text);
    CHECK(convert_sae(dirs, 2, &o, err, sizeof err) == 0);
    memset(&pick, 0, sizeof pick);
    pick.select = QSAE_SELECT_INDEX;
    if (CHECK(!qsae_sae_open(path_of("out.qsae"), &pick, &s, &e))) {
        qsae_sae_get_info(s, &info);
        CHECK(info.n_members == 2 && info.layer_in == 1);
        CHECK_STR(info.name, "resid_post.1");
        qsae_sae_close(s);
    }
    write_text("two/src/cfg.json", text); /* both read one site under one name */
    CHECK(convert_sae(dirs, 2, &o, err, sizeof err) != 0 &&
          strstr(err, "nothing tells them apart"));
    empty_folder(path_of("two/src"));
    rmdir(path_of("two/src"));
    rmdir(path_of("two"));
}

/* ---- the command ---- */

static char said[1024]; /* on stderr */

/* Runs a command with stdout and stderr going to files; *out receives what it printed,
 * in `said` what it said on stderr. Returns its exit code. */
static int run_caught(int (*command)(int, char **), int argc, char **argv, char *out,
                      size_t cap)
{
    FILE *f[2];
    int was[2];
    for (int i = 0; i < 2; i++) {
        FILE *stream = i ? stderr : stdout;
        fflush(stream);
        was[i] = dup(i + 1);
        f[i] = fopen(path_of(i ? "stderr" : "stdout"), "w+b");
        dup2(fileno(f[i]), i + 1);
    }
    int code = command(argc, argv);
    for (int i = 0; i < 2; i++) {
        FILE *stream = i ? stderr : stdout;
        fflush(stream);
        dup2(was[i], i + 1);
        close(was[i]);
        rewind(f[i]);
        char *to = i ? said : out;
        to[fread(to, 1, (i ? sizeof said : cap) - 1, f[i])] = 0;
        fclose(f[i]);
        unlink(path_of(i ? "stderr" : "stdout"));
    }
    return code;
}

static int run_command(const char *first, const char *second, const char *third,
                       const char *fourth)
{
    static char out[700], printed[4096];
    char *argv[8];
    int argc = 0;
    const char *const more[] = {first, second, third, fourth};
    snprintf(out, sizeof out, "%s", path_of("out.qsae"));
    argv[argc++] = "convert";
    argv[argc++] = "-o";
    argv[argc++] = out;
    for (int i = 0; i < 4 && more[i]; i++)
        argv[argc++] = (char *)(uintptr_t)more[i];
    argv[argc] = NULL;
    return run_caught(cmd_convert, argc, argv, printed, sizeof printed);
}

static int says(const char *text)
{
    size_t n = strlen(said);
    int one_line =
        n > 6 && strncmp(said, "qsae: ", 6) == 0 && strchr(said, '\n') == said + n - 1;
    if (one_line && strstr(said, text))
        return 1;
    fprintf(stderr, "    said: %s\n", said);
    return 0;
}

static void test_command(void)
{
    char src[700], text[4096];
    forward w = {"standard", "none", 1, 0, 4, 1};
    snprintf(src, sizeof src, "%s", path_of("src"));
    write_model(model, N_TENSORS, config);
    unlink(path_of("out.qsae"));
    CHECK(run_command(src, "--type", "bf16", NULL) == CMD_OK && said[0] == 0);
    CHECK(run_command(src, NULL, NULL, NULL) == CMD_OK); /* a .qsae file is replaced */
    write_text("out.qsae", "something dear");
    CHECK(run_command(src, NULL, NULL, NULL) == CMD_FAILED &&
          says("exists and is not a .qsae file; --force"));
    CHECK(run_command(src, "--force", NULL, NULL) == CMD_OK);
    CHECK(run_command(NULL, NULL, NULL, NULL) == CMD_USAGE && says("which folder?"));
    CHECK(run_command(src, "--type", "f16", NULL) == CMD_USAGE &&
          says("'f16' is not f32, bf16, q8 or q4"));
    CHECK(run_command(src, "--type", "q8", NULL) == CMD_OK && said[0] == 0);
    CHECK(run_command(src, "--type", "q4", NULL) == CMD_OK && said[0] == 0);
    CHECK(run_command(src, "--head", "none", NULL) == CMD_USAGE &&
          says("'none' is not tied or stored"));
    CHECK(run_command(src, "--site", "nowhere", NULL) == CMD_USAGE &&
          says("'nowhere' is not a site"));
    CHECK(run_command(src, "--layer", "512", NULL) == CMD_USAGE && says("--layer"));
    CHECK(run_command(src, "--norm-scale", "0", NULL) == CMD_USAGE &&
          says("--norm-scale"));
    CHECK(run_command(src, "--site", "resid_post", NULL) == CMD_FAILED &&
          says("is a model; --site"));
    CHECK(run_command(src, "--name", "", NULL) == CMD_FAILED &&
          says("--name: 1 to 63 bytes"));
    CHECK(run_command(src, src, NULL, NULL) == CMD_FAILED &&
          says("a model goes into a file of its own"));
    CHECK(run_command(folder, NULL, NULL, NULL) == CMD_FAILED &&
          says("neither config.json"));
    CHECK(run_command(path_of("none"), NULL, NULL, NULL) == CMD_FAILED &&
          says("No such file"));
    CHECK(run_command(path_of("src/config.json"), NULL, NULL, NULL) == CMD_FAILED &&
          says("not a file of tensors that is known here"));
    write_text("src/cfg.json", "{}");
    CHECK(run_command(src, NULL, NULL, NULL) == CMD_FAILED &&
          says("holds both config.json"));
    sae_config(text, sizeof text, &w);
    write_sae(sae, text);
    CHECK(run_command(src, "--head", "tied", NULL) == CMD_FAILED &&
          says("is an SAE; --head"));
    CHECK(run_command(src, "--type", "q8", NULL) == CMD_FAILED &&
          says("is an SAE; --type q8 and q4 are for models"));
    CHECK(run_command(src, "--type", "q4", NULL) == CMD_FAILED &&
          says("is an SAE; --type q8 and q4 are for models"));
    CHECK(run_command(src, "--type", "bf16", NULL) == CMD_OK);
    CHECK(run_command(src, "--name", "mine", NULL) == CMD_OK);
    /* output over an input: the input is a file that is not a .qsae file; with --force
       it is the user's will, and even then the result is whole, because the source
       stays mapped until the rename */
    char *over[] = {"convert", src, "-o", NULL, "--force", NULL};
    char target[700];
    snprintf(target, sizeof target, "%s", path_of("src/" W));
    over[3] = target;
    CHECK(cmd_convert(5, over) == CMD_OK);
    qsae_sae *s;
    qsae_error e;
    if (CHECK(!qsae_sae_open(target, NULL, &s, &e)))
        qsae_sae_close(s);
}

/* ---- info ---- */

static char printed[65536];

static int run_info(const char *option, const char *file)
{
    char *argv[4] = {"info", (char *)(uintptr_t)file, (char *)(uintptr_t)option, NULL};
    return run_caught(cmd_info, option ? 3 : 2, argv, printed, sizeof printed);
}

static int64_t number_in(const json_doc *d, const json_value *object, const char *key)
{
    int64_t x = -1;
    return json_int(json_get(d, object, key), &x) ? x : -1;
}

static const char *text_in(const json_doc *d, const json_value *object, const char *key)
{
    const json_value *v = json_get(d, object, key);
    return v && v->type == JSON_STRING ? v->str : NULL;
}

static void test_info(void)
{
    char text[4096];
    convert_options o = plain_options();
    write_model(model, N_TENSORS, config);
    CHECK(run_model(&o) == 0);
    CHECK(run_info(NULL, o.out) == CMD_OK && said[0] == 0 &&
          strstr(printed, "vocabulary   33"));
    CHECK(run_info("--json", o.out) == CMD_OK && said[0] == 0);
    json_doc *d = json_parse(printed, strlen(printed), err, sizeof err);
    if (CHECK(d != NULL)) {
        const json_value *root = json_root(d);
        CHECK_STR(text_in(d, root, "kind"), "model");
        CHECK_STR(text_in(d, root, "weight_type"), "mixed");
        CHECK(number_in(d, root, "d_ff") == 35 && number_in(d, root, "bos") == 1);
        CHECK_STR(text_in(d, json_get(d, root, "meta"), "eos.from"), "config.json");
    }
    json_free(d);
    forward w = {"topk", "layer_norm", 1, 0, 4, 1};
    sae_config(text, sizeof text, &w);
    write_sae(sae, text);
    o.name = "a \"quoted\" name";
    CHECK(run_sae(&o) == 0);
    CHECK(run_info("--json", o.out) == CMD_OK);
    d = json_parse(printed, strlen(printed), err, sizeof err);
    if (CHECK(d != NULL)) {
        const json_value *member = json_first(d, json_get(d, json_root(d), "members"));
        CHECK_STR(text_in(d, member, "name"), "a \"quoted\" name");
        CHECK_STR(text_in(d, member, "norm"), "layer");
        CHECK_STR(text_in(d, member, "feature_unit"), "normalized");
        CHECK_STR(text_in(d, member, "site_in"), "resid_post");
        CHECK(number_in(d, member, "k") == 4 && number_in(d, member, "layer_in") == 3);
    }
    json_free(d);
    CHECK(run_info("--tensors", o.out) == CMD_OK && strstr(printed, "b_enc"));
    /* damage anywhere is one line and exit code 1 */
    CHECK(load_result());
    for (size_t i = 0; i < result_size; i += 61) {
        FILE *f = fopen(o.out, "r+b");
        fseek(f, (long)i, SEEK_SET);
        fputc(result[i] ^ 16, f);
        fclose(f);
        CHECK(run_info(NULL, o.out) == CMD_FAILED && says("out.qsae: "));
        f = fopen(o.out, "r+b");
        fseek(f, (long)i, SEEK_SET);
        fputc(result[i], f);
        fclose(f);
    }
    CHECK(run_info(NULL, o.out) == CMD_OK);
    CHECK(run_info(NULL, path_of("src/cfg.json")) == CMD_FAILED && says("cfg.json: "));
    CHECK(run_info(NULL, folder) == CMD_FAILED && says("not a regular file"));
    CHECK(run_info(NULL, path_of("none")) == CMD_FAILED && says("No such file"));
    CHECK(run_info("--what", o.out) == CMD_USAGE && says("unknown option"));
    CHECK(run_info("again", o.out) == CMD_USAGE && says("one argument too many"));
}

int main(int argc, char **argv)
{
    snprintf(folder, sizeof folder, "%s/tmp", argc > 1 ? argv[1] : ".");
    mkdir(folder, 0777);
    strncat(folder, "/convert-XXXXXX", sizeof folder - strlen(folder) - 1);
    if (!mkdtemp(folder) || mkdir(path_of("src"), 0777)) {
        CHECK(0 && "a folder for temporary files");
        return test_done("test_convert");
    }
    make_model();
    test_model();
    test_types();
    test_quantized();
    test_configs();
    test_end_tokens();
    test_tensors();
    test_head();
    test_head_twice();
    test_shards();
    test_tokenizer();
    test_sae_folds();
    test_sae_refusals();
    test_sae_tensors();
    test_sae_negative_threshold();
    test_sae_absent();
    test_sae_sites();
    test_sae_legacy();
    test_sae_types();
    test_suite();
    test_command();
    test_info();
    empty_folder(path_of("src"));
    rmdir(path_of("src"));
    empty_folder(folder);
    rmdir(folder);
    free(result);
    return test_done("test_convert");
}
