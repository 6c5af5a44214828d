/* `qsae convert` of SAEs of every family. tests/fixtures/sae/ has a small file of each
 * family and class, written by its producer's own code (tests/reference/families.py
 * --fixtures), with inputs and what the producer makes of them; and here are files that
 * are wrong in one way each, with what is said about them. */

#define _POSIX_C_SOURCE 200809L

#include "test.h"

#include <dirent.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../tools/cmd.h"
#include "../tools/convert.h"
#include "../tools/safetensors.h"
#include "../tools/tensors.h"

#define FIXTURES "tests/fixtures/sae"

static char folder[512], said[2048], told[4096]; /* stderr and stdout of the last */

static const char *path_of(const char *name)
{
    static char paths[4][1024];
    static int next;
    char *p = paths[next++ % 4];
    snprintf(p, sizeof paths[0], "%s/%s", folder, name);
    return p;
}

/* Removes a folder with all that is in it. */
static void remove_all(const char *path)
{
    char inner[2048];
    DIR *d = opendir(path);
    for (struct dirent *e; d && (e = readdir(d)) != NULL;) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        snprintf(inner, sizeof inner, "%s/%s", path, e->d_name);
        if (unlink(inner))
            remove_all(inner);
    }
    if (d)
        closedir(d);
    rmdir(path);
}

/* From here to give_back(), what goes to fd is written to a file. */
static FILE *take_over(int fd, int *was, const char *name)
{
    FILE *f = fopen(path_of(name), "w+b");
    fflush(fd == 1 ? stdout : stderr);
    *was = dup(fd);
    dup2(fileno(f), fd);
    return f;
}

static void give_back(int fd, int was, FILE *f, const char *name, char *text,
                      size_t cap)
{
    fflush(fd == 1 ? stdout : stderr);
    dup2(was, fd);
    close(was);
    rewind(f);
    text[fread(text, 1, cap - 1, f)] = 0;
    fclose(f);
    unlink(path_of(name));
}

/* `qsae convert IN -o out.qsae OPTIONS`; what it says is kept in `said` and `told`. */
static int run_convert(const char *in, const char *options)
{
    char copy[512], *argv[32], out[1024];
    int argc = 0;
    snprintf(copy, sizeof copy, "%s", options);
    snprintf(out, sizeof out, "%s", path_of("out.qsae"));
    argv[argc++] = "convert";
    argv[argc++] = (char *)(uintptr_t)in;
    argv[argc++] = "-o";
    argv[argc++] = out;
    for (char *word = strtok(copy, " \n"); word && argc < 31;
         word = strtok(NULL, " \n"))
        argv[argc++] = word;
    argv[argc] = NULL;
    unlink(out);
    int was[2];
    FILE *f = take_over(1, &was[0], "stdout"), *g = take_over(2, &was[1], "stderr");
    int code = cmd_convert(argc, argv);
    give_back(2, was[1], g, "stderr", said, sizeof said);
    give_back(1, was[0], f, "stdout", told, sizeof told);
    return code;
}

/* ---- what the producers made ---- */

/* A tensor [rows, cols] as floats, from malloc. */
static float *values(const tensor_file *f, const char *name, size_t *rows, size_t *cols)
{
    char err[ERR_CAP] = "";
    const tensor *t = tensors_find(f, name);
    if (!CHECK(t && t->rank == 2))
        return NULL;
    *rows = (size_t)t->shape[0];
    *cols = (size_t)t->shape[1];
    float *v = malloc((size_t)t->n * sizeof *v + 1);
    CHECK(tensor_f32(t, 0, t->n, v, err, sizeof err) == 0);
    return v;
}

typedef struct expected {
    size_t n, d, features, out;
    float *x, *f, *y; /* [n, d], [n, features], [n, out] */
} expected;

/* Row r's features and reconstruction are the producer's: the same set, values within
 * 1e-5 of the largest of the row. */
static int same_row(const expected *e, size_t r, const float *f, const float *y)
{
    const float *want_f = e->f + r * e->features, *want_y = e->y + r * e->out;
    float top_f = 0, top_y = 0;
    int same = 1;
    for (size_t i = 0; i < e->features; i++)
        top_f = fmaxf(top_f, want_f[i]);
    for (size_t i = 0; i < e->out; i++)
        top_y = fmaxf(top_y, fabsf(want_y[i]));
    for (size_t i = 0; i < e->features; i++)
        same &=
            (f[i] > 0) == (want_f[i] > 0) && fabsf(f[i] - want_f[i]) <= 1e-5f * top_f;
    for (size_t i = 0; i < e->out; i++)
        same &= fabsf(y[i] - want_y[i]) <= 1e-5f * top_y;
    return same;
}

static void check_sae(const char *name, const expected *e)
{
    qsae_sae *s;
    qsae_error error;
    qsae_sae_info info;
    if (!CHECK(!qsae_sae_open(path_of("out.qsae"), NULL, &s, &error)))
        return;
    qsae_sae_get_info(s, &info);
    if (CHECK((size_t)info.d_in == e->d && (size_t)info.d_sae == e->features &&
              (size_t)info.d_out == e->out)) {
        size_t size = qsae_sae_scratch_size(s, 1), start[2], bad = 0, fired = 0;
        char *scratch = malloc(size);
        uint32_t *index = malloc(e->features * sizeof *index);
        float *value = malloc(e->features * sizeof *value);
        float *f = malloc(e->features * sizeof *f), *y = malloc(e->out * sizeof *y);
        qsae_rows rows = {0, start, index, value, e->features, 0};
        for (size_t r = 0; r < e->n; r++) {
            const float *x = e->x + r * e->d;
            CHECK(!qsae_sae_encode(s, x, 1, 0, &rows, scratch, size, 1, &error));
            CHECK(!qsae_sae_decode(s, &rows, x, 0, y, scratch, size, 1, &error));
            memset(f, 0, e->features * sizeof *f);
            for (size_t i = 0; i < start[1]; i++)
                f[index[i]] = value[i];
            fired += start[1];
            bad += !same_row(e, r, f, y);
        }
        if (!CHECK(bad == 0 && fired > 0))
            fprintf(stderr, "    %s: %zu of %zu rows differ, %zu features fired\n",
                    name, bad, e->n, fired);
        free(y);
        free(f);
        free(value);
        free(index);
        free(scratch);
    }
    qsae_sae_close(s);
}

static void test_fixture(const char *name)
{
    char path[1024], line[512] = "", err[ERR_CAP] = "";
    expected e;
    size_t n;
    snprintf(path, sizeof path, FIXTURES "/%s/convert", name);
    FILE *f = fopen(path, "rb");
    if (!CHECK(f && fgets(line, sizeof line, f)))
        return;
    fclose(f);
    line[strcspn(line, "\n")] = 0;
    char *options = line + strcspn(line, " ");
    if (*options)
        *options++ = 0;
    snprintf(path, sizeof path, FIXTURES "/%s/%s", name, strcmp(line, ".") ? line : "");
    if (!CHECK(run_convert(path, options) == CMD_OK)) {
        fprintf(stderr, "    %s: %s", name, said);
        return;
    }
    snprintf(path, sizeof path, FIXTURES "/%s/expected", name);
    tensor_file *t = tensors_open(path, err, sizeof err);
    if (!CHECK(t != NULL))
        return;
    e.x = values(t, "x", &e.n, &e.d);
    e.f = values(t, "f", &n, &e.features);
    e.y = values(t, "y", &n, &e.out);
    if (e.x && e.f && e.y)
        check_sae(name, &e);
    free(e.x);
    free(e.f);
    free(e.y);
    tensors_close(t);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void test_fixtures(void)
{
    char *names[256];
    size_t n = 0;
    DIR *d = opendir(FIXTURES);
    for (struct dirent *e; d && n < 256 && (e = readdir(d)) != NULL;)
        if (e->d_name[0] != '.' && strcmp(e->d_name, "bad") != 0)
            names[n++] = strdup(e->d_name);
    if (d)
        closedir(d);
    CHECK(n > 60);
    qsort(names, n, sizeof names[0], by_name);
    for (size_t i = 0; i < n; i++) {
        test_fixture(names[i]);
        free(names[i]);
    }
}

/* ---- wrong files ---- */

static uint32_t random_state = 1;

static float next_value(void)
{
    random_state = random_state * 1664525u + 1013904223u;
    return ((float)(random_state >> 24) - 128) / 64;
}

/* One tensor of a list: "W_enc:11x6" of random F32, "b_enc:11", "k=3" for one number,
 * "b_enc:11!7" with a NaN at 7, "W_enc:11x6/I8" of another type (of zeros), "t:11/0" of
 * zeros. */
typedef struct item {
    char name[128];
    tensor_type type;
    uint32_t rank;
    uint64_t shape[3], n;
    float value; /* of a number */
    long odd;    /* -1: none */
    int zeros;
} item;

static int parse_item(const char *word, item *t)
{
    size_t n = strcspn(word, ":=");
    char *at;
    memset(t, 0, sizeof *t);
    memcpy(t->name, word, n);
    t->type = TENSOR_F32;
    t->odd = -1;
    t->n = 1;
    if (word[n] == '=') {
        t->value = strtof(word + n + 1, &at);
    } else {
        for (at = (char *)(uintptr_t)word + n; *at == ':' || *at == 'x';) {
            t->shape[t->rank] = strtoull(at + 1, &at, 10);
            t->n *= t->shape[t->rank++];
        }
    }
    if (*at == '!')
        t->odd = strtol(at + 1, &at, 10);
    t->zeros = strcmp(at, "/0") == 0;
    if (*at == '/')
        t->type = strcmp(at, "/0") == 0     ? TENSOR_F32
                  : strcmp(at, "/I8") == 0  ? TENSOR_I8
                  : strcmp(at, "/I64") == 0 ? TENSOR_I64
                                            : TENSOR_BOOL;
    return *word != 0;
}

static size_t bytes_of(const item *t)
{
    return t->type == TENSOR_F32 ? 4 : t->type == TENSOR_I64 ? 8 : 1;
}

static int write_item(st_writer *w, const item *t, char *err, size_t cap)
{
    size_t size = bytes_of(t);
    unsigned char *data = calloc((size_t)t->n + 1, 8);
    for (uint64_t i = 0; i < t->n && t->type == TENSOR_F32; i++) {
        float v = t->zeros ? 0 : t->rank ? next_value() : t->value;
        if ((long)i == t->odd)
            v = (float)NAN;
        memcpy(data + 4 * i, &v, 4);
    }
    int status = st_writer_data(w, data, (size_t)t->n * size, err, cap);
    free(data);
    return status;
}

/* A safetensors file with the tensors of the list. */
static void write_tensors(const char *path, const char *list)
{
    char copy[2048], err[ERR_CAP] = "";
    item items[24];
    int n = 0;
    snprintf(copy, sizeof copy, "%s", list);
    for (char *word = strtok(copy, " "); word && n < 24; word = strtok(NULL, " "))
        parse_item(word, &items[n++]);
    st_writer *w = st_writer_create(path, err, sizeof err);
    int bad = w == NULL;
    for (int i = 0; i < n && !bad; i++)
        bad = st_writer_declare(w, items[i].name, items[i].type, items[i].rank,
                                items[i].shape, err, sizeof err);
    for (int i = 0; i < n && !bad; i++)
        bad = write_item(w, &items[i], err, sizeof err);
    if (!bad)
        bad = st_writer_commit(w, err, sizeof err);
    if (!CHECK(!bad))
        fprintf(stderr, "    %s: %s\n", path, err);
}

static void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "wb");
    if (!CHECK(f != NULL))
        return;
    fwrite(text, 1, strlen(text), f);
    fclose(f);
}

/* It is refused in one line that says this, and nothing is left. */
static void refused(const char *in, const char *options, const char *message)
{
    int code = run_convert(in, options);
    size_t n = strlen(said);
    int one_line =
        n > 6 && strncmp(said, "qsae: ", 6) == 0 && strchr(said, '\n') == said + n - 1;
    if (!CHECK(code == CMD_FAILED && one_line && strstr(said, message)))
        fprintf(stderr, "    %s %s: code %d, \"%.*s\", wanted \"%s\"\n", in, options,
                code, (int)n, said, message);
    CHECK(access(path_of("out.qsae"), F_OK) != 0);
}

/* d 6, F 11 */
#define QWEN    "W_enc:11x6 W_dec:6x11 b_enc:11 b_dec:6"
#define TRACER  "W_enc:11x6 W_dec:11x6 b_enc:11 b_dec:6"
#define DL_TOPK "encoder.weight:11x6 decoder.weight:6x11 encoder.bias:11 b_dec:6 "
#define NESTED                                                                     \
    "ae.encoder.weight:11x6 ae.decoder.weight:6x11 ae.encoder.bias:11 ae.b_dec:6 " \
    "ae.k=3 ae.threshold=1 "
#define DL_REST \
    "\"activation_dim\":6,\"dict_size\":11,\"layer\":9,\"submodule_name\":\"resid_post_layer_9\"}}"
#define DL_CFG(class) "{\"trainer\":{\"dict_class\":\"" class "\"," DL_REST
#define SPARSE        "encoder.weight:11x6 encoder.bias:11 W_dec:11x6 b_dec:6"
#define SPARSE_CFG(more) \
    "{\"d_in\":6,\"num_latents\":11,\"expansion_factor\":32," more "}"
#define SCOPIUM "W_E:6x11 W_D:11x6 b_E:11 b_D:6"
#define SCOPIUM_CFG(more)                                                \
    "{\"sae_type\":\"sae\",\"d_model\":6,\"expansion_factor\":1.8334,"   \
    "\"hook_point_in\":\"blocks.2.hook_resid_post\",\"hook_point_out\":" \
    "\"blocks.2.hook_resid_post\"," more "}"
#define LLAMA "encoder.weight:11x6 encoder.bias:11 decoder.weight:6x11 decoder.bias:6"
#define LLAMA_CFG(more)                                                              \
    "{\"d_model\":6,\"d_sae\":11,\"use_decoder_bias\":true,"                         \
    "\"apply_decoder_bias_to_pre_encoder\":false,\"sparsity_include_decoder_norm\":" \
    "true,\"hook_point_in\":\"blocks.2.hook_resid_post\"," more "}"
#define YAML(more) \
    "model_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\nfeature_output_hook: mlp.hook_out\n" more
#define GEMMA_0 "W_enc:6x11 W_dec:11x6 b_enc:11 b_dec:6 threshold:11/0"
#define GEMMA   "W_enc:6x11 W_dec:11x6 b_enc:11 b_dec:6 threshold:11"

static const struct {
    const char *config, *text; /* NULL: none */
    const char *weights, *tensors, *options, *message;
} wrong[] = {
    /* Qwen-Scope */
    {NULL, NULL, "layer3.sae.safetensors", QWEN, "",
     "could be of 2 SAE families, which compute differently: --family qwen-scope or "
     "--family circuit-tracer"},
    {NULL, NULL, "layer3.sae.safetensors", QWEN, "--family qwen-scope",
     "k is not in the file; --k K says how many"},
    {NULL, NULL, "layer3.sae.safetensors", QWEN, "--family qwen-scope --k 12",
     "--k is 12, it must be a whole number in 1..11 (d_sae)"},
    {NULL, NULL, "x.safetensors", QWEN, "--family qwen-scope --k 3",
     "which layer is meant is not clear; --site SITE and --layer N settle it"},
    {NULL, NULL, "layer3.sae.safetensors", "W_enc:6x11 W_dec:11x6 b_enc:11 b_dec:6",
     "--family qwen-scope --k 3",
     "tensor W_enc has shape [6, 11], the biases' length implies [11, 6]"},
    {NULL, NULL, "layer3.sae.safetensors", QWEN " scale:11",
     "--family qwen-scope --k 3", "tensor scale is not known"},
    {NULL, NULL, "layer3.sae.safetensors", "W_enc:11x6 W_dec:6x11 b_enc:11",
     "--family qwen-scope --k 3", "tensor b_dec is missing"},
    {NULL, NULL, "x.safetensors", "weight:11x6", "",
     "which SAE family it is cannot be told from its tensors (weight [11, 6])"},
    {NULL, NULL, "x.safetensors", "W_enc:6x11 W_dec:11x6 b_enc:11 b_dec:6", "",
     "which SAE family it is cannot be told"},
    {NULL, NULL, "x.safetensors", "W_enc:6x11 W_dec:11x6 b_enc:11 b_dec:6", "",
     "W_enc [6, 11] with b_enc [11] is as saelens has it, whose cfg.json is not beside it; "
     "for qwen-scope it is transposed; --family NAME says it"},
    {NULL, NULL, "x.safetensors", "W_enc:11x6 W_dec:6x11 b_enc:11", "",
     ": b_dec is missing, which qwen-scope, saelens and others have"},
    {NULL, NULL, "x.safetensors", "W_enc:11x5 W_dec:6x11 b_enc:11 b_dec:6", "",
     ": W_enc [11, 5] does not fit b_enc [11] and b_dec [6]"},
    {NULL, NULL, "x.safetensors", "W_enc:6x11 W_dec:6x12 b_enc:11 b_dec:6", "",
     ": W_dec [6, 12] does not fit b_enc [11] and b_dec [6]"},
    {NULL, NULL, "x.safetensors", "encoder.weight:11x6", "",
     ": encoder.weight comes with decoder.weight"},
    {NULL, NULL, "x.safetensors", "W_E:6x11", "",
     ": llamascopium has both W_E and W_D"},
    {NULL, NULL, "x.safetensors", "pre_bias:6 latent_bias:11 encoder.weight:11x6", "",
     "an SAE of OpenAI's sparse_autoencoder"},
    {NULL, NULL, "x.safetensors", "encoder_linear.weight:11x6", "",
     "an SAE of Goodfire"},
    {NULL, NULL, "W_enc_0.safetensors", "W_enc_0:11x6 b_enc_0:11 b_dec_0:6", "",
     "a part of a cross-layer transcoder"},
    {NULL, NULL, "x.safetensors", "model.embed_tokens.weight:11x6", "",
     "a language model, not an SAE"},
    /* dictionary_learning */
    {NULL, NULL, "ae.pt", DL_TOPK "k=3 threshold=1", "",
     "whether it is an AutoEncoderTopK or a BatchTopKSAE"},
    {NULL, NULL, "ae.pt", DL_TOPK "k=3 threshold=1", "--class BatchTopKSAE",
     "submodule_name is (absent): which site is meant is not clear"},
    {"config.json", DL_CFG("BatchTopKSAE"), "ae.pt", DL_TOPK "k=3 threshold=-1", "",
     "threshold is -1: training had not set it; --k 3 makes it keep the 3 largest"},
    {"config.json", DL_CFG("BatchTopKSAE"), "ae.pt", DL_TOPK "k=3 threshold=1", "--k 3",
     "--k has no place: BatchTopKSAE has a threshold (1)"},
    {"config.json", DL_CFG("BatchTopKSAE"), "ae.pt", DL_TOPK "k=3 threshold=-1",
     "--k 4", "k is 3, --k says 4"},
    {"config.json", DL_CFG("BatchTopKSAE"), "ae.pt", DL_TOPK "k=3 threshold=1!0", "",
     "tensor threshold is NaN"},
    {"config.json", DL_CFG("BatchTopKSAE"), "ae.pt", DL_TOPK "k=3 threshold:11", "",
     "threshold has shape [11], it must be one number"},
    {"config.json", DL_CFG("AutoEncoderTopK"), "ae.pt", DL_TOPK "k=0 threshold=1", "",
     "k is 0, it must be a whole number in 1..11"},
    {"config.json", DL_CFG("AutoEncoderTopK"), "ae.pt", DL_TOPK "k=12 threshold=1", "",
     "k is 12, it must be a whole number in 1..11"},
    {"config.json", DL_CFG("AutoEncoderTopK"), "ae.pt", DL_TOPK "k=2.5 threshold=1", "",
     "k is 2.5, it must be a whole number"},
    {"config.json", DL_CFG("AutoEncoderTopK"), "ae.pt", DL_TOPK "threshold=1", "",
     "tensor k is missing, which class AutoEncoderTopK has"},
    {"config.json", DL_CFG("AutoEncoder"), "ae.pt", DL_TOPK "k=3 threshold=1", "",
     "tensor bias is missing, which class AutoEncoder has"},
    {"config.json", DL_CFG("IdentityDict"), "ae.pt", DL_TOPK, "",
     "dict_class is IdentityDict; supported are"},
    {"config.json", DL_CFG("AutoEncoderTopK"), "ae.pt", DL_TOPK "k=3 threshold=1",
     "--class BatchTopKSAE",
     "dict_class is AutoEncoderTopK, --class says BatchTopKSAE"},
    {"config.json", DL_CFG("JumpReluAutoEncoder"), "ae.pt",
     "W_enc:11x6 W_dec:6x11 b_enc:11 b_dec:6 threshold:11", "",
     "tensor W_enc has shape [11, 6], the biases' length implies [6, 11]"},
    {"config.json", DL_CFG("JumpReluAutoEncoder"), "ae.pt",
     "W_enc:6x11 W_dec:11x6 b_enc:11 b_dec:6 log_threshold:11", "",
     "tensor threshold is missing, which class JumpReluAutoEncoder has"},
    {"config.json", DL_CFG("JumpReluAutoEncoder"), "ae.pt",
     "W_enc:6x11 W_dec:11x6 b_enc:11 b_dec:6 threshold:11", "", "tensor threshold: "},
    {"config.json", DL_CFG("BatchTopKSAE"), "ae.pt", DL_TOPK "k=3 threshold=1",
     "--negative-thresholds zero", "--negative-thresholds has no place"},
    {"config.json", DL_CFG("MatryoshkaBatchTopKSAE"), "ae.pt",
     "W_enc:6x11 W_dec:11x6 b_enc:11 b_dec:6 k=3 threshold=1 group_sizes:2/I64", "",
     "group_sizes has 0 at 0"},
    {"config.json",
     "{\"trainer\":{\"dict_class\":\"AutoEncoderTopK\",\"activation_dim\":7," DL_REST,
     "ae.pt", DL_TOPK "k=3 threshold=1", "", "config.json: byte"},
    {"config.json",
     "{\"trainer\":{\"dict_class\":\"AutoEncoderTopK\",\"dict_size\":12,\"layer\":9,"
     "\"submodule_name\":\"resid_post_layer_9\"}}",
     "ae.pt", DL_TOPK "k=3 threshold=1", "", "dict_size is 12, the biases have 11"},
    {"config.json",
     "{\"trainer\":{\"dict_class\":\"AutoEncoderTopK\",\"layer\":8,"
     "\"submodule_name\":\"resid_post_layer_9\"}}",
     "ae.pt", DL_TOPK "k=3 threshold=1", "",
     "layer is 8, submodule_name is resid_post_layer_9; --layer N"},
    {"config.json",
     "{\"trainer\":{\"dict_class\":\"AutoEncoderTopK\",\"layer\":9,"
     "\"submodule_name\":\"attn_9\"}}",
     "ae.pt", DL_TOPK "k=3 threshold=1", "",
     "submodule_name is attn_9: which site is meant is not clear"},
    {NULL, NULL, "ae.pt", NESTED "optimizer.x:3",
     "--class BatchTopKSAE --site resid_post --layer 1",
     "its norm_factor is (absent): what its inputs were divided by is not known"},
    {NULL, NULL, "ae.pt", NESTED "norm_factor:2 optimizer.x:3",
     "--class BatchTopKSAE --site resid_post --layer 1", "its norm_factor is (absent)"},
    {NULL, NULL, "ae.pt", NESTED "norm_factor=-1",
     "--class BatchTopKSAE --site resid_post --layer 1", "its norm_factor is -1"},
    /* sparsify */
    {NULL, NULL, "sae.safetensors", SPARSE, "", "sparsify's cfg.json is not beside it"},
    {"cfg.json", SPARSE_CFG("\"activation\":\"topk\",\"k\":0"), "sae.safetensors",
     SPARSE, "", "k is 0, it must be a whole number in 1..11"},
    {"cfg.json", SPARSE_CFG("\"activation\":\"topk\",\"k\":12"), "sae.safetensors",
     SPARSE, "", "k is 12, it must be a whole number in 1..11"},
    {"cfg.json", SPARSE_CFG("\"activation\":\"groupmax\",\"k\":3"), "sae.safetensors",
     SPARSE, "", "k is 3, groupmax needs a divisor of d_sae, which is 11"},
    {"cfg.json", SPARSE_CFG("\"activation\":\"tanh\",\"k\":3"), "sae.safetensors",
     SPARSE, "", "activation is tanh; topk and groupmax"},
    {"cfg.json", SPARSE_CFG("\"k\":3,\"signed\":true"), "sae.safetensors", SPARSE, "",
     "signed"},
    {"cfg.json", SPARSE_CFG("\"k\":3,\"new\":1"), "sae.safetensors", SPARSE, "",
     "the key new is not known here (--ignore-key new"},
    {"cfg.json", SPARSE_CFG("\"k\":3,\"skip_connection\":true"), "sae.safetensors",
     SPARSE, "", "tensor W_skip is missing"},
    {"cfg.json", SPARSE_CFG("\"k\":3"), "sae.safetensors", SPARSE " W_skip:6x6", "",
     "tensor W_skip is not known"},
    {"cfg.json", SPARSE_CFG("\"k\":3"), "sae.safetensors", SPARSE, "",
     "the folder's name is in: which site is meant is not clear"},
    {"cfg.json", "{\"d_in\":7,\"num_latents\":11,\"k\":3}", "sae.safetensors", SPARSE,
     "", "d_in is 7, tensor b_dec has 6"},
    {"cfg.json", "{\"d_in\":6,\"num_latents\":0,\"expansion_factor\":2,\"k\":3}",
     "sae.safetensors", SPARSE, "",
     "it implies 12 features, tensor encoder.bias has 11"},
    /* llamascopium */
    {NULL, NULL, "sae_weights.safetensors", SCOPIUM, "",
     "llamascopium's config.json is not beside it"},
    {"config.json",
     SCOPIUM_CFG("\"act_fn\":\"relu\",\"norm_activation\":\"batch-wise\""),
     "sae_weights.safetensors", SCOPIUM, "", "batch-wise depends on the other tokens"},
    {"config.json",
     SCOPIUM_CFG("\"act_fn\":\"relu\",\"norm_activation\":\"dataset-wise\""),
     "sae_weights.safetensors", SCOPIUM, "",
     "tensor dataset_average_activation_norm.blocks.2.hook_resid_post is missing"},
    {"config.json",
     SCOPIUM_CFG("\"act_fn\":\"relu\",\"norm_activation\":\"dataset-wise\""),
     "sae_weights.safetensors",
     SCOPIUM " dataset_average_activation_norm.blocks.2.hook_resid_post=0", "",
     "is 0, it must be above 0"},
    {"config.json",
     SCOPIUM_CFG("\"act_fn\":\"jumprelu\",\"norm_activation\":\"inference\""),
     "sae_weights.safetensors", SCOPIUM " activation_function.jumprelu_threshold:11",
     "", "tensor activation_function.log_jumprelu_threshold is missing"},
    {"config.json",
     SCOPIUM_CFG(
         "\"act_fn\":\"batchtopk\",\"top_k\":3,\"norm_activation\":\"inference\""),
     "sae_weights.safetensors", SCOPIUM, "",
     "act_fn is batchtopk: what fires depends on the other tokens of a batch; --k 3"},
    {"config.json",
     SCOPIUM_CFG("\"act_fn\":\"topk\",\"top_k\":12,\"norm_activation\":\"inference\""),
     "sae_weights.safetensors", SCOPIUM, "", "top_k is 12"},
    {"config.json",
     SCOPIUM_CFG("\"act_fn\":\"relu\",\"norm_activation\":\"inference\","
                 "\"use_glu_encoder\":true"),
     "sae_weights.safetensors", SCOPIUM, "", "gated linear encoders are not supported"},
    {"config.json", "{\"sae_type\":\"lorsa\",\"d_model\":6}", "sae_weights.safetensors",
     SCOPIUM, "", "sae_type is lorsa, a sparse replacement of attention"},
    {"config.json", "{\"sae_type\":\"clt\",\"d_model\":6}", "sae_weights.safetensors",
     SCOPIUM, "", "sae_type is clt, a cross-layer transcoder"},
    {"config.json", "{\"sae_type\":\"crosscoder\",\"d_model\":6}",
     "sae_weights.safetensors", SCOPIUM, "", "sae_type is crosscoder"},
    {"config.json", "{\"sae_type\":\"molt\",\"d_model\":6}", "sae_weights.safetensors",
     SCOPIUM, "", "sae_type is molt"},
    {"config.json",
     "{\"d_model\":6,\"expansion_factor\":2,\"hook_point_in\":\"blocks.2.hook_resid_post\"}",
     "sae_weights.safetensors", SCOPIUM, "", "sae_type is (absent); only sae"},
    {"config.json",
     SCOPIUM_CFG("\"act_fn\":\"jumprelu\",\"norm_activation\":\"inference\""),
     "sae_weights.safetensors", LLAMA, "", "tensor log_jumprelu_threshold is missing"},
    {"config.json",
     SCOPIUM_CFG("\"act_fn\":\"relu\",\"norm_activation\":\"inference\""),
     "sae_weights.safetensors", "W_E:6x11 W_D:6x11 b_E:11 b_D:6", "",
     "tensor W_D has shape [6, 11], config.json implies [11, 6]"},
    {"hyperparams.json", LLAMA_CFG("\"act_fn\":\"relu\",\"norm_activation\":\"none\""),
     "y.safetensors",
     "encoder.weight:11x6 encoder.bias:11 decoder.weight:6x11 decoder.bias:6", "--k 3",
     "--k 3 has no place"},
    /* Llama-Scope */
    {"hyperparams.json",
     LLAMA_CFG("\"act_fn\":\"jumprelu\",\"norm_activation\":\"none\""),
     "sae_weights.safetensors", LLAMA, "", "there is no jump_relu_threshold"},
    {"hyperparams.json",
     LLAMA_CFG("\"act_fn\":\"jumprelu\",\"jump_relu_threshold\":-1,\"norm_activation\":"
               "\"none\""),
     "sae_weights.safetensors", LLAMA, "",
     "jump_relu_threshold is -1, it cannot be below 0"},
    {"hyperparams.json",
     LLAMA_CFG("\"act_fn\":\"jumprelu\",\"jump_relu_threshold\":1,\"norm_activation\":"
               "\"dataset-wise\",\"dataset_average_activation_norm\":{\"in\":1}"),
     "sae_weights.safetensors", LLAMA, "",
     "dataset_average_activation_norm.out is (absent)"},
    {"hyperparams.json", LLAMA_CFG("\"act_fn\":\"gelu\",\"norm_activation\":\"none\""),
     "sae_weights.safetensors", LLAMA, "", "act_fn is gelu; relu, jumprelu and topk"},
    {"hyperparams.json", "{\"d_model\":6,\"d_sae\":11}", "sae_weights.safetensors",
     LLAMA, "", "use_decoder_bias is missing, which decides what is computed"},
    {"hyperparams.json", LLAMA_CFG("\"act_fn\":\"relu\",\"norm_activation\":\"none\""),
     "y.safetensors",
     "encoder.weight:6x11 encoder.bias:11 decoder.weight:11x6 decoder.bias:6", "",
     "tensor encoder.weight has shape [6, 11], hyperparams.json implies [11, 6]"},
    {"hyperparams.json",
     LLAMA_CFG("\"act_fn\":\"relu\",\"norm_activation\":\"none\",\"new\":1"),
     "sae_weights.safetensors", LLAMA, "", "the key new is not known here"},
    /* circuit-tracer */
    {NULL, NULL, "layer_0.safetensors", TRACER, "",
     "feature_input_hook is (absent): which site is meant is not clear"},
    {"config.yaml", YAML(""), "layer_0.safetensors",
     "W_enc:6x11 W_dec:11x6 b_enc:11 b_dec:6", "",
     "tensor W_enc has shape [6, 11], the biases' length implies [11, 6]"},
    {"config.yaml", YAML(""), "layer_0.safetensors",
     "W_enc:6x6 W_dec:6x6 b_enc:6 b_dec:6", "",
     "d_sae and d_in are both 6, so the shape of W_dec does not say"},
    {"config.yaml", YAML(""), "x.safetensors", TRACER, "", "which layer is meant"},
    {"config.yaml", YAML("activation: topk\n"), "layer_0.safetensors", TRACER, "",
     "activation is topk, but there is no k; --k K says it"},
    {"config.yaml", YAML("activation: gelu\n"), "layer_0.safetensors", TRACER, "",
     "activation is gelu; relu, jumprelu and topk"},
    {"config.yaml", YAML("activation: jumprelu\n"), "layer_0.safetensors", TRACER, "",
     "but the file has no activation_function.threshold"},
    {"config.yaml", YAML("activation: relu\n"), "layer_0.safetensors",
     TRACER " activation_function.threshold:11", "",
     "activation is relu, but the file has activation_function.threshold"},
    {"config.yaml", YAML(""), "layer_0.safetensors",
     TRACER " activation_function.threshold=-0.5", "",
     "activation_function.threshold is -0.5, it cannot be below 0"},
    {"config.yaml", YAML("k: 5\n"), "layer_0.safetensors", TRACER, "",
     "k is 5, but activation is absent; --k 5 says that it is topk"},
    {"config.yaml", YAML("k: 5\nactivation: relu\n"), "layer_0.safetensors", TRACER, "",
     "k is 5, but activation is relu"},
    {"config.yaml", YAML("scan: a\nscan: b\n"), "layer_0.safetensors", TRACER, "",
     "the key scan appears twice"},
    {"config.yaml", YAML("scan:\n  a: b\n"), "layer_0.safetensors", TRACER, "",
     "the line \"  a: b\" under scan is not understood"},
    {"config.yaml", YAML("transcoders: [layer_0.safetensors]\n"), "layer_0.safetensors",
     TRACER, "", "transcoders is [layer_0.safetensors]; only a list of lines"},
    {"config.yaml", YAML("transcoders:\n- layer_0\n- layer_0\n"), "layer_0.safetensors",
     TRACER, "", "transcoders names layer_0.safetensors more than once"},
    {"config.yaml", YAML("transcoders:\n- id: a\n  layer: x\n  filepath: layer_0\n"),
     "layer_0.safetensors", TRACER, "", "transcoders: the layer of entry 0 is x"},
    {"config.yaml", YAML("transcoders:\n- id: a\n  scale: 2\n"), "layer_0.safetensors",
     TRACER, "", "transcoders: the key scale of entry 0 is not known here"},
    {"config.yaml", YAML("transcoders:\n- {filepath: layer_0}\n"),
     "layer_0.safetensors", TRACER, "",
     "transcoders: entry 0, \"{filepath: layer_0}\", is not understood"},
    {"config.yaml", YAML("transcoders:\n- id: a\n"), "layer_0.safetensors", TRACER, "",
     "transcoders: entry 0 has no path"},
    {"config.yaml", YAML("transcoders:\n-\n"), "layer_0.safetensors", TRACER, "",
     "transcoders: entry 0, \"\", is not understood"},
    {"config.yaml", YAML("transcoders:\n  layer_0\n"), "layer_0.safetensors", TRACER,
     "", "transcoders: the line \"  layer_0\" is not understood"},
    {"config.yaml", YAML("new: 1\n"), "layer_0.safetensors", TRACER, "",
     "the key new is not known here"},
    {"config.yaml", YAML("{a: b}\n"), "layer_0.safetensors", TRACER, "",
     "config.yaml: the key {a is not known"},
    {"config.yaml", YAML("nonsense\n"), "layer_0.safetensors", TRACER, "",
     "the line \"nonsense\" is not \"key: value\""},
    {"config.yaml", "model_kind: cross_layer_transcoder\n", "layer_0.safetensors",
     TRACER, "", "model_kind is cross_layer_transcoder; only transcoder_set"},
    {"config.yaml", YAML(""), "layer_0.safetensors", TRACER " W_skip:6x7", "",
     "tensor W_skip has shape [6, 7], the biases' length implies [6, 6]"},
    {"config.yaml", YAML(""), "layer_0.safetensors", TRACER, "--norm-scale 2",
     "--norm-scale has no place"},
    {"config.yaml", YAML(""), "layer_0.safetensors", TRACER, "--class AutoEncoder",
     "--class has no place"},
    /* Gemma-Scope */
    {NULL, NULL, "params.safetensors", GEMMA_0, "--family gemma-scope",
     "which site and layer is meant is not clear: nothing in the file"},
    {NULL, NULL, "params.safetensors", GEMMA,
     "--family gemma-scope --site resid_post --layer 3",
     " of 11 are below 0, the first "},
    {NULL, NULL, "params.safetensors", "w_enc:6x11 w_dec:11x6 b_enc:11 b_dec:6", "",
     "tensor threshold is missing"},
    {NULL, NULL, "params.safetensors",
     "w_enc:6x11 w_dec:11x3x6 b_enc:11 b_dec:6 threshold:11", "",
     "w_dec has shape [11, 3, 6]: a cross-layer transcoder"},
    {NULL, NULL, "params.safetensors",
     "w_enc:6x11 w_dec:11x6 b_enc:11 b_dec:6 threshold:11 affine_skip_connection:6x6",
     "--site mlp_input --layer 3", "it is a transcoder: --site-out SITE"},
    {NULL, NULL, "params.safetensors",
     "w_enc:6x6 w_dec:6x6 b_enc:6 b_dec:6 threshold:6", "--site resid_post --layer 3",
     "d_sae and d_in are both 6, so the shapes do not say which way the matrices lie: "
     "--family gemma-scope"},
    {"config.json", "{\"architecture\":\"jump_relu\",\"l0\":3,\"new\":2}",
     "params.safetensors", GEMMA, "", "the key new is not known here"},
    {NULL, NULL, "params.safetensors", GEMMA,
     "--family gemma-scope --site resid_post "
     "--layer 3 --k 3 --negative-thresholds zero",
     "--k 3 has no place"},
    {NULL, NULL, "params.safetensors", GEMMA_0,
     "--family gemma-scope --site resid_post "
     "--layer 3 --decoder-layout columns",
     "--decoder-layout has no place"},
    /* numbers */
    {"config.yaml", YAML(""), "layer_0.safetensors",
     "W_enc:11x6!20 W_dec:11x6 b_enc:11 b_dec:6", "",
     "tensor W_enc: element [3, 2] is NaN"},
    {"config.yaml", YAML(""), "layer_0.safetensors",
     "W_enc:11x6 W_dec:11x6!65 b_enc:11 b_dec:6", "",
     "tensor W_dec: element [10, 5] is NaN"},
    {NULL, NULL, "params.safetensors",
     "w_enc:6x11!25 w_dec:11x6 b_enc:11 b_dec:6 threshold:11/0",
     "--site resid_post --layer 3", "tensor w_enc: element [2, 3] is NaN"},
    {"config.yaml", YAML(""), "layer_0.safetensors",
     "W_enc:11x6 W_dec:11x6 b_enc:11 b_dec:6!4", "",
     "tensor b_dec: element [4] is NaN"},
    {"config.yaml", YAML(""), "layer_0.safetensors",
     "W_enc:11x6/I8 W_dec:11x6 b_enc:11 b_dec:6", "",
     "tensor W_enc is I8; F32, BF16, F16 and F64"},
    {"config.yaml", YAML(""), "layer_0.safetensors",
     "W_enc:11x6 W_dec:11x6 b_enc:11x1 b_dec:6", "",
     "tensor b_enc has shape [11, 1], it must be"},
    /* configurations */
    {"cfg.json", "{", "sae.safetensors", SPARSE, "", "cfg.json: byte 1"},
    {"cfg.json", "", "sae.safetensors", SPARSE, "", "cfg.json: the file is empty"},
    {"cfg.json", "version https://git-lfs.github.com/spec/v1\n", "sae.safetensors",
     SPARSE, "", "cfg.json: a pointer file of Git LFS"},
    {"cfg.json", SPARSE_CFG("\"k\":3,\"transcode\":\"false\""), "sae.safetensors",
     SPARSE, "", "transcode is the string \"false\", not true or false"},
    {"cfg.json", "[]", "sae.safetensors", SPARSE, "", "cfg.json: not a JSON object"},
    {"cfg.json", "{\"architecture\":\"topk\"}", "", "", "",
     "holds cfg.json and 0 files of tensors"},
};

static void test_wrong(void)
{
    char path[2048], in[1024];
    snprintf(in, sizeof in, "%s", path_of("in"));
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        remove_all(in);
        mkdir(in, 0777);
        if (wrong[i].config) {
            snprintf(path, sizeof path, "%s/%s", in, wrong[i].config);
            write_text(path, wrong[i].text);
        }
        if (*wrong[i].weights) {
            snprintf(path, sizeof path, "%s/%s", in, wrong[i].weights);
            write_tensors(path, wrong[i].tensors);
        }
        refused(in, wrong[i].options, wrong[i].message);
        /* the same for the file itself, unless the folder is what is wrong */
        if (*wrong[i].weights)
            refused(path, wrong[i].options, wrong[i].message);
    }
}

/* What is taken, and what is said about it on the way. */
static const struct {
    const char *config, *text; /* NULL: none */
    const char *weights, *tensors, *options, *message;
} right[] = {
    {NULL, NULL, "params.safetensors", GEMMA,
     "--family gemma-scope --site resid_post --layer 3 --negative-thresholds zero",
     " below 0 became 0 (--negative-thresholds zero)"},
    /* a threshold of -0 is not below 0 */
    {NULL, NULL, "params.safetensors", GEMMA_0,
     "--family gemma-scope --site resid_post --layer 3", "SAE \""},
    {NULL, NULL, "layer3.sae.pt", "W_enc:6x6 W_dec:6x6 b_enc:6 b_dec:6",
     "--family qwen-scope --k 3",
     "note: d_sae = d_in = 6: which way the matrices lie is taken from the family's"},
    {"config.json", DL_CFG("JumpReluAutoEncoder"), "ae.pt",
     "W_enc:6x11 W_dec:11x6 b_enc:11 b_dec:6 threshold:11",
     "--negative-thresholds zero", " below 0 became 0"},
    {NULL, NULL, "ae.pt", NESTED "step=3 norm_factor=2.5",
     "--class BatchTopKSAE --site resid_post --layer 1", "jumprelu"},
    {"config.json",
     SCOPIUM_CFG("\"act_fn\":\"jumprelu\",\"norm_activation\":\"inference\""),
     "sae_weights.safetensors",
     "W_E:6x11 W_D:11x6/0 b_E:11 b_D:6 activation_function.log_jumprelu_threshold:11",
     "", "11 features whose decoder rows are zero never fire"},
};

static void test_right(void)
{
    char path[2048], in[1024];
    snprintf(in, sizeof in, "%s", path_of("in"));
    for (size_t i = 0; i < sizeof right / sizeof right[0]; i++) {
        remove_all(in);
        mkdir(in, 0777);
        if (right[i].config) {
            snprintf(path, sizeof path, "%s/%s", in, right[i].config);
            write_text(path, right[i].text);
        }
        snprintf(path, sizeof path, "%s/%s", in, right[i].weights);
        write_tensors(path, right[i].tensors);
        if (!CHECK(run_convert(in, right[i].options) == CMD_OK &&
                   strstr(told, right[i].message)))
            fprintf(stderr, "    %s: said \"%s\", told \"%s\", wanted \"%s\"\n",
                    right[i].weights, said, told, right[i].message);
    }
}

/* Options that are wrong in themselves. */
static void test_usage(void)
{
    CHECK(run_convert("nowhere", "--family foo") == CMD_USAGE &&
          strstr(said, "--family: 'foo' is not saelens, qwen-scope"));
    CHECK(run_convert("nowhere", "--negative-thresholds keep") == CMD_USAGE &&
          strstr(said, "--negative-thresholds: 'keep' is not zero"));
}

/* Files that producers' libraries wrote and that are not taken. */
static void test_bad_files(void)
{
    static const struct {
        const char *name, *options, *message;
    } rows[] = {
        {"deflated.npz", "--site resid_post --layer 1", "it is compressed (deflate)"},
        {"object.npz", "", "W_enc"},
        {"global.pt", "--k 3 --layer 1", "getcwd"},
        {"legacy.pt", "--k 3 --layer 1", "legacy.pt"},
        {"module.pt", "--k 3 --layer 1", "Linear"},
        {"list.pt", "--k 3 --layer 1", "list.pt"},
        {"int8.pt", "--k 3 --layer 1", "tensor W_dec is I8"},
        {"turned.pt", "--k 3 --layer 1", "is W_dec [11, 6] transposed?"},
        {"square.pt", "--k 3 --layer 1", "--family qwen-scope says that it is such"},
        {"nan.pt", "--k 3 --layer 1", "tensor b_enc: element [7] is NaN"},
        {"beside-k.pt", "--k 4 --layer 1", "k is 3, --k says 4"},
        {"beside-scale.pt", "--k 3 --layer 1",
         "scale is 2 beside the tensors, which is not known here (--ignore-key scale"},
        {"beside-config.pt", "--k 3 --layer 1", "cfg.d_in is 6 beside the tensors"},
        {"beside-config.pt", "--k 3 --layer 1 --ignore-key cfg.d_in",
         "cfg.activation is relu beside the tensors"},
        {"beside-gelu.pt", "--layer 1", "activation is gelu beside the tensors"},
        {"beside-text.pt", "--layer 1", "k is three, it must be a whole number"},
    };
    char path[1024];
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        snprintf(path, sizeof path, FIXTURES "/bad/%s", rows[i].name);
        refused(path, rows[i].options, rows[i].message);
    }
    snprintf(path, sizeof path, FIXTURES "/bad/beside-k.pt");
    CHECK(run_convert(path, "--layer 1 --site resid_post") == CMD_OK &&
          strstr(told, "topk 3,"));
    snprintf(path, sizeof path, FIXTURES "/bad/beside-config.pt");
    CHECK(run_convert(path, "--layer 1 --k 2 --ignore-key cfg") == CMD_OK &&
          strstr(told, "topk 2,"));
    /* a name is no content */
    write_text(path_of("text.safetensors"), "not tensors at all");
    refused(path_of("text.safetensors"), "", "not a file of tensors");
    write_text(path_of("empty.pt"), "");
    refused(path_of("empty.pt"), "", "empty.pt: the file is empty");
    write_text(path_of("pointer.pt"),
               "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n");
    refused(path_of("pointer.pt"), "", "pointer.pt: a pointer file of Git LFS");
}

/* Every fixture, cut somewhere, is refused. */
static void test_truncated(void)
{
    static const char *const files[] = {
        "qwen-scope/layer11.sae.pt",
        "gemma-scope-npz/layer_12/width_x/average_l0_9/params.npz",
        "circuit-tracer-relu/layer_0.safetensors"};
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        char path[1024];
        static unsigned char data[1 << 16];
        snprintf(path, sizeof path, FIXTURES "/%s", files[i]);
        FILE *f = fopen(path, "rb");
        if (!CHECK(f != NULL))
            continue;
        size_t n = fread(data, 1, sizeof data, f);
        fclose(f);
        for (int part = 1; part < 8; part++) {
            snprintf(path, sizeof path, "%s", path_of("cut"));
            f = fopen(path, "wb");
            fwrite(data, 1, n * (size_t)part / 8, f);
            fclose(f);
            refused(path, "--k 3 --site resid_post --layer 1", "cut");
        }
    }
}

/* More features than are written at once. */
static void test_many_features(void)
{
    char in[1024];
    snprintf(in, sizeof in, "%s", path_of("in"));
    remove_all(in);
    mkdir(in, 0777);
    write_text(path_of("in/hyperparams.json"),
               "{\"d_model\":3,\"d_sae\":300000,\"use_decoder_bias\":true,"
               "\"apply_decoder_bias_to_pre_encoder\":true,"
               "\"sparsity_include_decoder_norm\":true,\"act_fn\":\"jumprelu\","
               "\"jump_relu_threshold\":1,\"norm_activation\":\"dataset-wise\","
               "\"dataset_average_activation_norm\":{\"in\":2,\"out\":3},"
               "\"hook_point_in\":\"blocks.2.hook_resid_post\"}");
    write_tensors(path_of("in/x.safetensors"),
                  "encoder.weight:300000x3 encoder.bias:300000 "
                  "decoder.weight:3x300000 decoder.bias:3");
    CHECK(run_convert(in, "") == CMD_OK);
}

/* ---- suites ---- */

static int members(void)
{
    qsae_sae_options o;
    qsae_sae_info info;
    qsae_error e;
    qsae_sae *s;
    memset(&o, 0, sizeof o);
    o.select = QSAE_SELECT_INDEX;
    if (qsae_sae_open(path_of("out.qsae"), &o, &s, &e))
        return 0;
    qsae_sae_get_info(s, &info);
    qsae_sae_close(s);
    return info.n_members;
}

static int has_member(const char *name)
{
    qsae_sae_options o;
    qsae_error e;
    qsae_sae *s;
    memset(&o, 0, sizeof o);
    o.select = QSAE_SELECT_SITE;
    o.site = QSAE_RESID_POST;
    o.layer = 9;
    o.name = name;
    if (qsae_sae_open(path_of("out.qsae"), &o, &s, &e))
        return 0;
    qsae_sae_close(s);
    return 1;
}

static void make_folder(const char *name)
{
    mkdir(path_of(name), 0777);
}

static void test_suites(void)
{
    char in[1024];
    snprintf(in, sizeof in, "%s", path_of("in"));
    /* layer files beside each other */
    remove_all(in);
    make_folder("in");
    write_tensors(path_of("in/layer_0.safetensors"), TRACER);
    write_tensors(path_of("in/layer_1.safetensors"), TRACER);
    write_tensors(path_of("in/layer_10.safetensors"), TRACER);
    write_text(path_of("in/config.yaml"), YAML("scan: x\n"));
    CHECK(run_convert(in, "") == CMD_OK && members() == 3);
    CHECK(strstr(told, "mlp_input.10\", mlp_input of layer 10 to"));
    write_text(path_of("in/config.yaml"),
               "# circuit-tracer\n---\n" YAML(
                   "scan: x\ntranscoders: # by layer\n"
                   "- hf://o/r/layer_10.safetensors?revision=a1\r\n\n"
                   "  # a comment\n  - \"a/layer_0.safetensors\" # b\n- layer_1\n"));
    CHECK(run_convert(in, "") == CMD_OK && members() == 3);
    CHECK(strstr(told, "makes layer_10.safetensors layer 0: it is followed"));
    CHECK(strstr(told, "makes layer_1.safetensors layer 2: it is followed"));
    CHECK(strstr(told, "makes layer_0.safetensors layer 1: it is followed"));
    write_text(
        path_of("in/config.yaml"),
        YAML("transcoders:\n- id: a\n  layer: 7\n  filepath: layer_0.safetensors\n"
             "- filepath: layer_1.safetensors\n  layer: 5\n"
             "- layer_10.safetensors\n"));
    CHECK(run_convert(in, "") == CMD_OK && members() == 3);
    CHECK(strstr(told, "makes layer_0.safetensors layer 7:"));
    CHECK(strstr(told, "makes layer_1.safetensors layer 5:"));
    CHECK(strstr(told, "makes layer_10.safetensors layer 2:"));
    write_text(path_of("in/config.yaml"),
               YAML("transcoders:\n- layer_0.safetensors\n"));
    refused(in, "", "in: config.yaml: transcoders names layer_1.safetensors nowhere");
    write_text(path_of("in/config.yaml"), YAML("scan: x\n"));
    refused(in, "--layer 3", "go with one SAE, here are 3");
    refused(in, "--name x", "go with one SAE, here are 3");
    write_tensors(path_of("in/layer_11.safetensors"), QWEN " threshold:11");
    refused(in, "", "tensor threshold is not known");
    /* one site and layer twice, under one name */
    remove_all(in);
    make_folder("in");
    make_folder("in/a");
    make_folder("in/b");
    make_folder("in/a/layers.3");
    make_folder("in/b/layers.3");
    write_text(path_of("in/config.json"), "{\"sae\":{},\"batch_size\":4}");
    write_text(path_of("in/a/layers.3/cfg.json"), SPARSE_CFG("\"k\":3"));
    write_text(path_of("in/b/layers.3/cfg.json"), SPARSE_CFG("\"k\":3"));
    write_tensors(path_of("in/a/layers.3/sae.safetensors"), SPARSE);
    write_tensors(path_of("in/b/layers.3/sae.safetensors"), SPARSE);
    refused(in, "", "nothing tells them apart");
    CHECK(rename(path_of("in/b/layers.3"), path_of("in/b/layers.4")) == 0);
    CHECK(run_convert(in, "") == CMD_OK && members() == 2);
    /* two families */
    make_folder("in/c");
    write_text(path_of("in/c/config.json"), DL_CFG("AutoEncoderTopK"));
    write_tensors(path_of("in/c/ae.pt"), DL_TOPK "k=3 threshold=1");
    refused(in, "", "a file holds SAEs of one family; these are mixed");
    /* two SAEs of one site, in folders that are called alike in every layer */
    remove_all(in);
    make_folder("in");
    for (int i = 0; i < 4; i++) {
        char name[64], to[256];
        snprintf(name, sizeof name, "in/%d", 8 + i / 2);
        make_folder(name);
        snprintf(name, sizeof name, "in/%d/trainer_%d", 8 + i / 2, i % 2);
        make_folder(name);
        snprintf(to, sizeof to,
                 "{\"trainer\":{\"dict_class\":\"AutoEncoderTopK\",\"layer\":%d,"
                 "\"submodule_name\":\"resid_post_layer_%d\"}}",
                 8 + i / 2, 8 + i / 2);
        snprintf(name, sizeof name, "in/%d/trainer_%d/config.json", 8 + i / 2, i % 2);
        write_text(path_of(name), to);
        snprintf(name, sizeof name, "in/%d/trainer_%d/ae.pt", 8 + i / 2, i % 2);
        write_tensors(path_of(name), DL_TOPK "k=3 threshold=1");
    }
    CHECK(run_convert(in, "") == CMD_OK && members() == 4);
    CHECK(has_member("resid_post.9.trainer_1"));
    make_folder("in/c");
    write_text(path_of("in/c/config.json"), DL_CFG("AutoEncoderTopK"));
    /* configurations of two SAEs in one folder */
    write_text(path_of("in/c/cfg.json"), SPARSE_CFG("\"k\":3"));
    refused(in, "", "holds both cfg.json and config.json");
    remove_all(in);
    make_folder("in");
    refused(in, "", "neither config.json");
    /* the root of a run of sparsify's trainer */
    make_folder("in/layers.3");
    write_text(path_of("in/layers.3/cfg.json"), SPARSE_CFG("\"k\":3"));
    write_tensors(path_of("in/layers.3/sae.safetensors"), SPARSE);
    write_tensors(path_of("in/state.pt"), "global_step=3");
    write_tensors(path_of("in/optimizer_0.pt"), "x:3");
    write_tensors(path_of("in/lr_scheduler_0.pt"), "x:3");
    CHECK(run_convert(in, "") == CMD_OK && members() == 1);
    write_tensors(path_of("in/other.pt"), "x:3");
    refused(in, "", "in: other.pt: which SAE family it is cannot be told");
    unlink(path_of("in/other.pt"));
    /* what is broken one folder down is named with its folder */
    write_text(path_of("in/layers.3/cfg.json"), SPARSE_CFG("\"k\":0"));
    refused(in, "", "in/layers.3: cfg.json: k is 0");
    remove_all(in);
    make_folder("in");
    make_folder("in/a");
    write_text(path_of("in/a/config.json"), "{\"trainer\":");
    write_tensors(path_of("in/a/ae.pt"), DL_TOPK "k=3 threshold=1");
    refused(in, "", "in/a: config.json: byte 11");
    /* names of folders that say something else */
    remove_all(in);
    make_folder("in");
    make_folder("in/resid_pre_layer_8");
    make_folder("in/resid_pre_layer_8/trainer_0");
    write_text(path_of("in/resid_pre_layer_8/trainer_0/config.json"),
               DL_CFG("AutoEncoderTopK"));
    write_tensors(path_of("in/resid_pre_layer_8/trainer_0/ae.pt"),
                  DL_TOPK "k=3 threshold=1");
    CHECK(run_convert(in, "") == CMD_OK &&
          strstr(told,
                 "called resid_pre_layer_8, but the SAE is taken to read layer 9") &&
          strstr(told,
                 "called resid_pre_layer_8, but the SAE is taken to read resid_post"));
    remove_all(in);
    make_folder("in");
    make_folder("in/SAE-L0_5");
    write_tensors(path_of("in/SAE-L0_5/layer3.sae.pt"), QWEN);
    CHECK(run_convert(in, "--family qwen-scope --k 3") == CMD_OK &&
          strstr(told, "called SAE-L0_5, but --k is 3: --k is followed"));
    CHECK(run_convert(in, "--family qwen-scope --k 5") == CMD_OK &&
          !strstr(told, "note:"));
}

int main(int argc, char **argv)
{
    snprintf(folder, sizeof folder, "%s/tmp", argc > 1 ? argv[1] : ".");
    mkdir(folder, 0777);
    strncat(folder, "/families-XXXXXX", sizeof folder - strlen(folder) - 1);
    if (!mkdtemp(folder)) {
        CHECK(0 && "a folder for temporary files");
        return test_done("test_families");
    }
    test_fixtures();
    test_wrong();
    test_right();
    test_usage();
    test_bad_files();
    test_truncated();
    test_many_features();
    test_suites();
    remove_all(folder);
    return test_done("test_families");
}
