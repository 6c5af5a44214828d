/* encode, decode, export and extract, called as the program calls them, on random SAEs of every kind: what they
 * write against the library's own results, bit for bit; exports converted back; and what they must refuse. */

#ifndef _XOPEN_SOURCE
#define _XOPEN_SOURCE 700
#endif

#include "tiny.h"

#include "../tools/cmd.h"
#include "../tools/npy.h"
#include "../tools/safetensors.h"
#include "../tools/tensors.h"
#include "test.h"

#include <errno.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ROWS = 300, MAX_ARGS = 24 };

static char work[400];

/* ---- running a command ---- */

/* "NAME" in the work folder; the last few results stay valid. */
static const char *at(const char *name)
{
    static char path[8][600];
    static int next;
    char *p = path[next++ % 8];
    snprintf(p, sizeof path[0], "%s/%s", work, name);
    return p;
}

typedef int (*command)(int argc, char **argv);

static char said[4000]; /* on stderr, by the last command */

/* Runs the command with the arguments up to NULL; stderr goes to `said`. */
static int run(command c, ...)
{
    char *argv[MAX_ARGS] = {"command"};
    int argc = 1;
    va_list ap;
    va_start(ap, c);
    while (argc < MAX_ARGS - 1 && (argv[argc] = va_arg(ap, char *)) != NULL)
        argc++;
    va_end(ap);
    fflush(stderr);
    int keep = dup(2);
    FILE *f = freopen(at("stderr"), "w+", stderr);
    int code = f ? c(argc, argv) : -1;
    fflush(stderr);
    rewind(stderr);
    size_t n = fread(said, 1, sizeof said - 1, stderr);
    said[n] = 0;
    dup2(keep, 2);
    close(keep);
    return code;
}

#define WORKS(...)                                      \
    (CHECK(run(__VA_ARGS__, (char *)NULL) == CMD_OK) || \
     (fprintf(stderr, "    said: %s", said), 0))

/* The command must refuse with that text, on one line, and leave no file `out`. */
static void refused(int code, const char *text, const char *out, int line)
{
    struct stat st;
    int ok = code != CMD_OK && strncmp(said, "qsae: ", 6) == 0 && strstr(said, text) &&
             strchr(said, '\n') == said + strlen(said) - 1 &&
             (!out || stat(out, &st) != 0);
    if (!test_check(ok, __FILE__, line, text))
        fprintf(stderr, "    code %d, said: %s", code, said);
}

#define REFUSED(text, out, ...) \
    refused(run(__VA_ARGS__, (char *)NULL), text, out, __LINE__)

/* ---- files ---- */

static void write_bytes(const char *path, const void *data, size_t size)
{
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(data, 1, size, f) == size);
    if (f)
        fclose(f);
}

static void write_text(const char *path, const char *text)
{
    write_bytes(path, text, strlen(text));
}

static int same_files(const char *a, const char *b)
{
    FILE *f = fopen(a, "rb"), *g = fopen(b, "rb");
    int same = f && g, c;
    while (same && (c = getc(f)) == getc(g) && c != EOF)
        ;
    same = same && feof(f) && feof(g);
    if (f)
        fclose(f);
    if (g)
        fclose(g);
    return same;
}

static void write_npy(const char *path, const float *x, uint64_t n, uint64_t width)
{
    char err[ERR_CAP];
    uint64_t shape[2] = {n, width};
    npy_writer *w = npy_writer_create(path, TENSOR_F32, 2, shape, err, sizeof err);
    CHECK(w && npy_writer_data(w, x, n * width * sizeof *x, err, sizeof err) == 0 &&
          npy_writer_commit(w, err, sizeof err) == 0);
}

/* A safetensors file with one matrix and, as `qsae capture` adds it, token ids. */
static void write_st(const char *path, const float *x, uint64_t n, uint64_t width)
{
    char err[ERR_CAP];
    uint64_t shape[2] = {n, width};
    int32_t ids[ROWS] = {0};
    st_writer *w = st_writer_create(path, err, sizeof err);
    CHECK(w && st_writer_declare(w, "x", TENSOR_F32, 2, shape, err, sizeof err) == 0 &&
          st_writer_declare(w, "tokens", TENSOR_I32, 1, shape, err, sizeof err) == 0 &&
          st_writer_data(w, x, n * width * sizeof *x, err, sizeof err) == 0 &&
          st_writer_data(w, ids, n * sizeof ids[0], err, sizeof err) == 0 &&
          st_writer_commit(w, err, sizeof err) == 0);
}

/* All of a file; NULL if it cannot be read. free() it. */
static uint8_t *read_file(const char *path, size_t *size)
{
    struct stat st;
    FILE *f = stat(path, &st) == 0 ? fopen(path, "rb") : NULL;
    uint8_t *data = f ? tiny_alloc((size_t)st.st_size) : NULL;
    *size = f ? fread(data, 1, (size_t)st.st_size, f) : 0;
    if (f)
        fclose(f);
    return data;
}

/* ---- what the library says ---- */

typedef struct truth {
    qsae_sae *sae;
    qsae_sae_info info;
    float *x, *y; /* [ROWS, d_in], [ROWS, d_out] */
    qsae_rows rows;
} truth;

static void truth_make(truth *t, const uint8_t *image, size_t size)
{
    qsae_error e;
    uint64_t seed = 99;
    memset(t, 0, sizeof *t);
    t->sae = tiny_open_sae(image, size, QSAE_ISA_AUTO);
    qsae_sae_get_info(t->sae, &t->info);
    size_t d = (size_t)t->info.d_in, o = (size_t)t->info.d_out,
           f = (size_t)t->info.d_sae;
    t->x = tiny_alloc(ROWS * d * sizeof(float));
    t->y = tiny_alloc(ROWS * o * sizeof(float));
    for (size_t i = 0; i < ROWS * d; i++)
        t->x[i] = (float)(2 * tiny_uniform(&seed));
    for (size_t i = 7 * d; i < 8 * d; i++)
        t->x[i] *= 100; /* a sink */
    t->rows.start = tiny_alloc((ROWS + 1) * sizeof(size_t));
    t->rows.index = tiny_alloc(ROWS * f * sizeof(uint32_t));
    t->rows.value = tiny_alloc(ROWS * f * sizeof(float));
    t->rows.cap = ROWS * f;
    size_t scratch = qsae_sae_scratch_size(t->sae, ROWS);
    void *s = tiny_alloc(scratch);
    CHECK(qsae_sae_encode(t->sae, t->x, ROWS, 0, &t->rows, s, scratch, 1, &e) ==
          QSAE_OK);
    CHECK(qsae_sae_decode(t->sae, &t->rows, t->x, 0, t->y, s, scratch, 1, &e) ==
          QSAE_OK);
    free(s);
}

static void truth_free(truth *t)
{
    qsae_sae_close(t->sae);
    free(t->x);
    free(t->y);
    free(t->rows.start);
    free(t->rows.index);
    free(t->rows.value);
}

/* The library's features as the JSON Lines that encode should write; only those in keep[n_keep], or all. */
static void write_lines(const char *path, const truth *t, const uint32_t *keep,
                        size_t n_keep)
{
    FILE *f = fopen(path, "wb");
    for (size_t r = 0; f && r < ROWS; r++) {
        int first = 1;
        fprintf(f, "{\"row\":%zu,\"features\":[", r);
        for (size_t i = t->rows.start[r]; i < t->rows.start[r + 1]; i++) {
            int wanted = !keep;
            for (size_t k = 0; k < n_keep; k++)
                wanted |= keep[k] == t->rows.index[i];
            if (wanted)
                fprintf(f, "%s[%u,%.9g]", first ? "" : ",", (unsigned)t->rows.index[i],
                        (double)t->rows.value[i]);
            first &= !wanted;
        }
        fprintf(f, "]}\n");
    }
    if (f)
        fclose(f);
}

static void check_csr(const char *path, const truth *t)
{
    char err[ERR_CAP];
    tensor_file *f = tensors_open(path, err, sizeof err);
    const tensor *ptr = f ? tensors_find(f, "indptr") : NULL,
                 *index = f ? tensors_find(f, "indices") : NULL,
                 *value = f ? tensors_find(f, "values") : NULL;
    size_t n = t->rows.start[ROWS], wrong = 0;
    if (CHECK(ptr && index && value && ptr->type == TENSOR_I64 &&
              index->type == TENSOR_I32 && value->type == TENSOR_F32 &&
              ptr->n == ROWS + 1 && index->n == n && value->n == n)) {
        for (size_t i = 0; i <= ROWS; i++) {
            int64_t v = -1;
            wrong += tensor_int(ptr, i, &v, err, sizeof err) ||
                     v != (int64_t)t->rows.start[i];
        }
        for (size_t i = 0; i < n; i++) {
            int64_t v = -1;
            float x = -1;
            wrong += tensor_int(index, i, &v, err, sizeof err) ||
                     v != (int64_t)t->rows.index[i];
            wrong += tensor_f32(value, i, 1, &x, err, sizeof err) ||
                     memcmp(&x, &t->rows.value[i], 4) != 0;
        }
        CHECK(wrong == 0);
    }
    tensors_close(f);
}

/* ---- one SAE through everything ---- */

static void check_encode(const char *sae, const truth *t)
{
    write_npy(at("x.npy"), t->x, ROWS, (uint64_t)t->info.d_in);
    write_st(at("x.safetensors"), t->x, ROWS, (uint64_t)t->info.d_in);
    write_lines(at("want.jsonl"), t, NULL, 0);
    WORKS(cmd_encode, sae, at("x.npy"), "-o", at("a.jsonl"));
    CHECK(same_files(at("a.jsonl"), at("want.jsonl")));
    WORKS(cmd_encode, sae, at("x.safetensors"), "-o", at("b.jsonl"), "--threads", "3");
    CHECK(same_files(at("b.jsonl"), at("want.jsonl")));
    WORKS(cmd_encode, sae, at("x.safetensors"), "-o", at("a.safetensors"), "--tensor",
          "x");
    check_csr(at("a.safetensors"), t);
}

static void check_decode(const char *sae, const truth *t)
{
    write_npy(at("want.npy"), t->y, ROWS, (uint64_t)t->info.d_out);
    WORKS(cmd_decode, sae, at("a.jsonl"), "-o", at("a.npy"), "--input", at("x.npy"));
    CHECK(same_files(at("a.npy"), at("want.npy")));
    WORKS(cmd_decode, sae, at("a.safetensors"), "-o", at("b.npy"), "--input",
          at("x.safetensors"));
    CHECK(same_files(at("b.npy"), at("want.npy")));
    unlink(at("c.npy"));
    if (t->info.has_skip) {
        REFUSED("--input IN: the SAE has a skip connection", at("c.npy"), cmd_decode,
                sae, at("a.jsonl"), "-o", at("c.npy"));
    } else if (t->info.norm != QSAE_NORM_NONE) {
        REFUSED("--input IN: the SAE scales every row by its own norm", at("c.npy"),
                cmd_decode, sae, at("a.jsonl"), "-o", at("c.npy"));
    } else {
        WORKS(cmd_decode, sae, at("a.jsonl"), "-o", at("c.npy"));
        CHECK(same_files(at("c.npy"), at("want.npy")));
    }
}

/* Same record but for the name, same bytes in every tensor but META. */
static void same_sae(const char *a, const char *b, uint32_t activation)
{
    size_t n, m, wrong = 0;
    uint8_t *x = read_file(a, &n), *y = read_file(b, &m);
    if (CHECK(x && y && n > 320 && m > 320)) {
        qsae_sae_record r, s;
        memcpy(&r, x + 64, sizeof r);
        memcpy(&s, y + 64, sizeof s);
        memset(r.name, 0, sizeof r.name);
        memset(s.name, 0, sizeof s.name);
        r.feature_unit = s.feature_unit;
        if (activation)
            r.activation = activation;
        CHECK(memcmp(&r, &s, sizeof r) == 0);
        for (uint32_t role = QSAE_ROLE_ENC; role <= QSAE_ROLE_SKIP; role++) {
            const qsae_tensor_record *t = tiny_find(x, 1, role),
                                     *u = tiny_find(y, 1, role);
            if (activation && role == QSAE_ROLE_THETA)
                continue;
            wrong +=
                !t != !u ||
                (t && (t->hash != u->hash || t->size != u->size || t->rows != u->rows));
        }
        CHECK(wrong == 0);
    }
    free(x);
    free(y);
}

static void check_saelens(const char *sae, const truth *t)
{
    unlink(at("folder/cfg.json"));
    unlink(at("folder/sae_weights.safetensors"));
    int transcoder = t->info.is_transcoder || t->info.has_skip;
    if (transcoder &&
        (t->info.activation == QSAE_ACT_TOPK || t->info.activation == QSAE_ACT_GATED)) {
        REFUSED("SAELens has transcoders with relu and jumprelu only",
                at("folder/cfg.json"), cmd_export, sae, "-o", at("folder"), "--format",
                "saelens");
        return;
    }
    if (transcoder && t->info.norm != QSAE_NORM_NONE) {
        REFUSED("a transcoder with a per-token norm", at("folder/cfg.json"), cmd_export,
                sae, "-o", at("folder"), "--format", "saelens");
        return;
    }
    if (WORKS(cmd_export, sae, "-o", at("folder"), "--format", "saelens")) {
        WORKS(cmd_convert, at("folder"), "-o", at("back.qsae"), "--force");
        same_sae(sae, at("back.qsae"), 0);
    }
}

static void check_npz(const char *sae, const truth *t)
{
    char err[ERR_CAP];
    unlink(at("npz/params.npz"));
    const char *what = t->info.activation == QSAE_ACT_TOPK    ? "no place for topk"
                       : t->info.activation == QSAE_ACT_GATED ? "no place for gated"
                       : t->info.norm != QSAE_NORM_NONE
                           ? "no place for a per-token norm"
                       : t->info.has_skip ? "no place for a skip connection"
                                          : NULL;
    if (what) {
        REFUSED(what, at("npz/params.npz"), cmd_export, sae, "-o", at("npz"),
                "--format", "npz");
        return;
    }
    WORKS(cmd_export, sae, "-o", at("npz"), "--format", "npz");
    tensor_file *f = tensors_open(at("npz/params.npz"), err, sizeof err);
    const tensor *w = f ? tensors_find(f, "W_enc") : NULL,
                 *theta = f ? tensors_find(f, "threshold") : NULL;
    if (CHECK(w && theta && tensors_count(f) == 5)) {
        size_t d = (size_t)t->info.d_in, n = (size_t)t->info.d_sae, wrong = 0;
        float *e = tiny_alloc(d * sizeof *e),
              *d_row = tiny_alloc((size_t)t->info.d_out * sizeof *e), b, th, v;
        CHECK(w->shape[0] == d && w->shape[1] == n && theta->n == n);
        for (size_t i = 0; i < n; i++) {
            CHECK(qsae_sae_feature(t->sae, (uint32_t)i, e, d_row, &b, &th, NULL) ==
                  QSAE_OK);
            for (size_t j = 0; j < d; j++)
                wrong += tensor_f32(w, j * n + i, 1, &v, err, sizeof err) || v != e[j];
            wrong += tensor_f32(theta, i, 1, &v, err, sizeof err) || v != th;
        }
        CHECK(wrong == 0);
        free(e);
        free(d_row);
    }
    tensors_close(f);
    if (t->info.is_transcoder)
        return;
    /* bf16 became float32, and relu jumprelu: no number changed */
    int bf16 = strcmp(t->info.weight_type, "bf16") == 0;
    WORKS(cmd_convert, at("npz/params.npz"), "-o", at("back.qsae"), "--force",
          "--family", "gemma-scope", "--site", qsae_site_name(t->info.site_in),
          "--layer", "1", "--type", bf16 ? "bf16" : "f32");
    same_sae(sae, at("back.qsae"),
             t->info.activation == QSAE_ACT_RELU ? QSAE_ACT_JUMPRELU : 0);
}

static void check_extract(const char *sae, const truth *t)
{
    static const uint32_t keep[] = {0, 3, 17, 18, 40, 52};
    unlink(at("pack.qsae"));
    if (t->info.activation == QSAE_ACT_TOPK) {
        REFUSED("a topk SAE chooses", at("pack.qsae"), cmd_extract, sae, "--features",
                "1,2", "-o", at("pack.qsae"));
        return;
    }
    WORKS(cmd_extract, sae, "--features", "40,3,0,18,17,52", "-o", at("pack.qsae"));
    write_lines(at("want.jsonl"), t, keep, 6);
    WORKS(cmd_encode, at("pack.qsae"), at("x.npy"), "-o", at("p.jsonl"));
    CHECK(same_files(at("p.jsonl"), at("want.jsonl")));
    WORKS(cmd_encode, at("pack.qsae"), at("x.npy"), "-o", at("p.safetensors"));
    WORKS(cmd_decode, at("pack.qsae"), at("p.jsonl"), "-o", at("p1.npy"), "--input",
          at("x.npy"));
    WORKS(cmd_decode, at("pack.qsae"), at("p.safetensors"), "-o", at("p2.npy"),
          "--input", at("x.npy"));
    CHECK(same_files(at("p1.npy"), at("p2.npy")));
    /* the whole SAE, given these features alone, says the same */
    WORKS(cmd_decode, sae, at("p.jsonl"), "-o", at("p3.npy"), "--input", at("x.npy"));
    CHECK(same_files(at("p1.npy"), at("p3.npy")));
    unlink(at("no.qsae"));
    REFUSED("and 1 is not among them", at("no.qsae"), cmd_extract, at("pack.qsae"),
            "--features", "1", "-o", at("no.qsae"));
    WORKS(cmd_extract, at("pack.qsae"), "--features", "52,17", "-o",
          at("packpack.qsae"));
    WORKS(cmd_extract, sae, "--features", "52,17", "-o", at("pack2.qsae"));
    CHECK(same_files(at("packpack.qsae"), at("pack2.qsae")));
    /* their rows, as the library sees them */
    qsae_sae *pack = NULL;
    float a[64], b[64], ba, bb, ta, tb;
    CHECK(qsae_sae_open(at("pack.qsae"), NULL, &pack, NULL) == QSAE_OK);
    for (uint32_t i = 0; pack && i < 6; i++) {
        CHECK(qsae_sae_feature(pack, i, a, NULL, &ba, &ta, NULL) == QSAE_OK);
        CHECK(qsae_sae_feature(t->sae, keep[i], b, NULL, &bb, &tb, NULL) == QSAE_OK);
        CHECK(memcmp(a, b, (size_t)t->info.d_in * sizeof a[0]) == 0 && ba == bb &&
              ta == tb);
    }
    qsae_sae_close(pack);
}

#define PLACE(site_in, site_out, d_in, d_out) site_in, 1, site_out, 1, d_in, d_out, 53

static const tiny_sae kinds[] = {
    {PLACE(QSAE_RESID_POST, QSAE_RESID_POST, 24, 24), 0, QSAE_ACT_RELU, QSAE_NORM_NONE,
     0, 0, 0},
    {PLACE(QSAE_RESID_PRE, QSAE_RESID_PRE, 17, 17), 0, QSAE_ACT_RELU, QSAE_NORM_LAYER,
     0, 1, 0},
    {PLACE(QSAE_RESID_MID, QSAE_RESID_MID, 24, 24), 0, QSAE_ACT_JUMPRELU,
     QSAE_NORM_NONE, 0, 0, 0},
    {PLACE(QSAE_MLP_OUT, QSAE_MLP_OUT, 33, 33), 0, QSAE_ACT_JUMPRELU,
     QSAE_NORM_CONSTANT, 0, 1, 0},
    {PLACE(QSAE_ATTN_Z, QSAE_ATTN_Z, 40, 40), 0, QSAE_ACT_JUMPRELU, QSAE_NORM_LAYER, 0,
     0, 0},
    {PLACE(QSAE_ATTN_OUT, QSAE_ATTN_OUT, 24, 24), 5, QSAE_ACT_TOPK, QSAE_NORM_NONE, 0,
     0, 0},
    {PLACE(QSAE_RESID_POST, QSAE_RESID_POST, 24, 24), 50, QSAE_ACT_TOPK,
     QSAE_NORM_CONSTANT, 0, 1, 0},
    {PLACE(QSAE_RESID_POST, QSAE_RESID_POST, 24, 24), 0, QSAE_ACT_GATED, QSAE_NORM_NONE,
     0, 0, 0},
    {PLACE(QSAE_RESID_POST, QSAE_RESID_POST, 24, 24), 0, QSAE_ACT_GATED,
     QSAE_NORM_LAYER, 0, 1, 0},
    {PLACE(QSAE_MLP_INPUT, QSAE_MLP_OUT, 24, 31), 0, QSAE_ACT_RELU, QSAE_NORM_NONE, 0,
     0, 0},
    {PLACE(QSAE_MLP_INPUT, QSAE_MLP_OUT, 24, 31), 0, QSAE_ACT_RELU, QSAE_NORM_NONE,
     QSAE_SAE_SKIP, 1, 0},
    {PLACE(QSAE_MLP_INPUT, QSAE_MLP_OUT, 31, 24), 0, QSAE_ACT_JUMPRELU, QSAE_NORM_NONE,
     0, 1, 0},
    {PLACE(QSAE_MLP_INPUT, QSAE_MLP_OUT, 31, 24), 0, QSAE_ACT_JUMPRELU, QSAE_NORM_NONE,
     QSAE_SAE_SKIP, 0, 0},
    {PLACE(QSAE_MLP_INPUT, QSAE_MLP_OUT, 24, 24), 7, QSAE_ACT_TOPK, QSAE_NORM_NONE,
     QSAE_SAE_SKIP, 0, 0},
};

static void check_kind(const tiny_sae *kind, uint64_t seed)
{
    truth t;
    size_t size;
    uint8_t *image = tiny_sae_file(kind, seed, &size);
    const char *sae = at("sae.qsae");
    char path[600];
    strcpy(path, sae);
    write_bytes(path, image, size);
    truth_make(&t, image, size);
    check_encode(path, &t);
    check_decode(path, &t);
    check_saelens(path, &t);
    check_npz(path, &t);
    check_extract(path, &t);
    truth_free(&t);
    free(image);
}

/* ---- what must be refused ---- */

/* A CSR file of these arrays; types as given, a fourth tensor if `extra`. */
static void write_csr(const char *path, const int64_t *ptr, uint64_t n_ptr,
                      const int32_t *index, uint64_t n_index, const float *value,
                      uint64_t n_value, int extra)
{
    char err[ERR_CAP];
    st_writer *w = st_writer_create(path, err, sizeof err);
    uint64_t one = 1;
    int bad =
        !w || st_writer_declare(w, "indptr", TENSOR_I64, 1, &n_ptr, err, sizeof err) ||
        st_writer_declare(w, "indices", TENSOR_I32, 1, &n_index, err, sizeof err) ||
        st_writer_declare(w, "values", TENSOR_F32, 1, &n_value, err, sizeof err) ||
        (extra && st_writer_declare(w, "more", TENSOR_F32, 1, &one, err, sizeof err)) ||
        st_writer_data(w, ptr, n_ptr * 8, err, sizeof err) ||
        st_writer_data(w, index, n_index * 4, err, sizeof err) ||
        st_writer_data(w, value, n_value * 4, err, sizeof err) ||
        (extra && st_writer_data(w, value, 4, err, sizeof err)) ||
        st_writer_commit(w, err, sizeof err);
    CHECK(!bad);
}

/* Line 2 of the file is `line`; line 1 and 3 are right. The SAE has features 0..52. */
static const struct {
    const char *line, *text;
} bad_lines[] = {
    {"", "line 2: byte 0"},
    {"{}", "line 2: it is not {"},
    {"[]", "line 2: it is not {"},
    {"{\"row\":1}", "line 2: it is not {"},
    {"{\"features\":[]}", "line 2: it is not {"},
    {"{\"row\":1,\"features\":[],\"norm\":1}", "line 2: it is not {"},
    {"{\"row\":1,\"row\":1,\"features\":[]}", "line 2: byte"},
    {"{\"row\":1,\"features\":[]}}", "line 2: byte"},
    {"{\"row\":1,\"features\":[[1,2]}", "line 2: byte"},
    {"{\"row\":1,\"features\":[[1,2.5", "line 2: byte"},
    {"{\"row\":1,\"features\":{}}", "line 2: features is not an array"},
    {"{\"row\":2,\"features\":[]}", "line 2: row is 2, and row 1 is next"},
    {"{\"row\":0,\"features\":[]}", "line 2: row is 0, and row 1 is next"},
    {"{\"row\":-1,\"features\":[]}", "line 2: row is -1, and row 1 is next"},
    {"{\"row\":1.0,\"features\":[]}", "line 2: row is 1.0, and row 1 is next"},
    {"{\"row\":\"1\",\"features\":[]}", "line 2: row is no number, and row 1 is next"},
    {"{\"row\":1,\"features\":[1,2]}", "line 2: entry 0 is not [feature, value]"},
    {"{\"row\":1,\"features\":[[1]]}", "line 2: entry 0 is not [feature, value]"},
    {"{\"row\":1,\"features\":[[1,1],[2,1,1]]}",
     "line 2: entry 1 is not [feature, value]"},
    {"{\"row\":1,\"features\":[[1.5,1]]}", "line 2: entry 0 is not [feature, value]"},
    {"{\"row\":1,\"features\":[[\"1\",1]]}", "line 2: entry 0 is not [feature, value]"},
    {"{\"row\":1,\"features\":[[1,\"1\"]]}", "line 2: entry 0 is not [feature, value]"},
    {"{\"row\":1,\"features\":[[1,null]]}", "line 2: entry 0 is not [feature, value]"},
    {"{\"row\":1,\"features\":[[3,1],[2,1]]}", "line 2: feature 2 comes after 3"},
    {"{\"row\":1,\"features\":[[3,1],[3,1]]}", "line 2: feature 3 comes after 3"},
    {"{\"row\":1,\"features\":[[53,1]]}",
     "line 2: feature 53 is not one of the SAE's 53 features"},
    {"{\"row\":1,\"features\":[[-1,1]]}",
     "line 2: feature -1 is not one of the SAE's 53 features"},
    {"{\"row\":1,\"features\":[[4294967296,1]]}",
     "line 2: feature 4294967296 is not one of"},
    {"{\"row\":1,\"features\":[[99999999999999999999,1]]}", "line 2: entry 0 is not"},
    {"{\"row\":1,\"features\":[[1,NaN]]}", "line 2: byte"},
    {"{\"row\":1,\"features\":[[1,Infinity]]}", "line 2: byte"},
    {"{\"row\":1,\"features\":[[1,1e39]]}", "line 2: feature 1 is inf"},
    {"{\"row\":1,\"features\":[[1,-0.5]]}", "line 2: feature 1 is -0.5"},
};

static void check_bad_lines(const char *sae)
{
    char text[400];
    unlink(at("c.npy"));
    for (size_t i = 0; i < sizeof bad_lines / sizeof bad_lines[0]; i++) {
        snprintf(
            text, sizeof text,
            "{\"row\":0,\"features\":[[1,2],[5,1e-3]]}\n%s\n{\"row\":2,\"features\":[]}\n",
            bad_lines[i].line);
        write_text(at("bad.jsonl"), text);
        REFUSED(bad_lines[i].text, at("c.npy"), cmd_decode, sae, at("bad.jsonl"), "-o",
                at("c.npy"));
    }
    char *long_line = malloc(20000);
    memset(long_line, ' ', 20000);
    memcpy(long_line, "{\"row\":0,", 9);
    write_bytes(at("bad.jsonl"), long_line, 20000);
    free(long_line);
    REFUSED("line 1: it is longer than a row of 53 features can be", at("c.npy"),
            cmd_decode, sae, at("bad.jsonl"), "-o", at("c.npy"));
    /* right, though nobody's own form: blanks, no last newline, an empty file */
    write_text(
        at("ok.jsonl"),
        " { \"features\" : [ [ 1 , 2.0 ] , [5,1E-3] ] , \"row\" : 0 }\r\n{\"row\":1,\"features\":[]}");
    WORKS(cmd_decode, sae, at("ok.jsonl"), "-o", at("c.npy"));
    write_text(at("ok.jsonl"), "");
    WORKS(cmd_decode, sae, at("ok.jsonl"), "-o", at("c.npy"));
    unlink(at("c.npy"));
}

static void check_bad_csr(const char *sae)
{
    const int64_t ptr[] = {0, 2, 2, 3}, from1[] = {1, 2, 2, 3}, over[] = {0, 2, 2, 4},
                  back[] = {0, 3, 2, 3}, far[] = {0, 9, 2, 3}, minus[] = {0, -1, 2, 3};
    const int32_t index[] = {1, 5, 52}, unordered[] = {5, 1, 52}, twice[] = {5, 5, 52},
                  beyond[] = {1, 5, 53}, below[] = {-1, 5, 52};
    const float value[] = {1, 2.5f, 3}, negative[] = {1, -2, 3}, nan[] = {1, 2, NAN},
                inf[] = {INFINITY, 2, 3};
    const char *csr = at("bad.safetensors");
    char path[600];
    strcpy(path, csr);
    write_csr(path, ptr, 4, index, 3, value, 3, 0);
    WORKS(cmd_decode, sae, path, "-o", at("c.npy"));
    unlink(at("c.npy"));
#define BAD(text, ...)            \
    write_csr(path, __VA_ARGS__); \
    REFUSED(text, at("c.npy"), cmd_decode, sae, path, "-o", at("c.npy"))
    BAD("indptr begins with 1", from1, 4, index, 3, value, 3, 0);
    BAD("indptr ends with 4, there are 3 indices", over, 4, index, 3, value, 3, 0);
    BAD("row 1: indptr goes from 3 to 2", back, 4, index, 3, value, 3, 0);
    BAD("row 0: indptr goes from 0 to 9 of 3", far, 4, index, 3, value, 3, 0);
    BAD("row 0: indptr goes from 0 to -1", minus, 4, index, 3, value, 3, 0);
    BAD("3 indices, but 2 values", ptr, 4, index, 3, value, 2, 0);
    BAD("indptr is empty", ptr, 0, index, 3, value, 3, 0);
    BAD("tensor more is not known", ptr, 4, index, 3, value, 3, 1);
    BAD("row 0: feature 1 comes after 5", ptr, 4, unordered, 3, value, 3, 0);
    BAD("row 0: feature 5 comes after 5", ptr, 4, twice, 3, value, 3, 0);
    BAD("row 2: feature 53 is not one of", ptr, 4, beyond, 3, value, 3, 0);
    BAD("row 0: feature -1 is not one of", ptr, 4, below, 3, value, 3, 0);
    BAD("row 0: feature 5 is -2", ptr, 4, index, 3, negative, 3, 0);
    BAD("row 2: feature 52 is nan", ptr, 4, index, 3, nan, 3, 0);
    BAD("row 0: feature 1 is inf", ptr, 4, index, 3, inf, 3, 0);
    REFUSED("it has no tensor indptr", at("c.npy"), cmd_decode, sae,
            at("x.safetensors"), "-o", at("c.npy"));
    REFUSED("neither JSON Lines nor safetensors", at("c.npy"), cmd_decode, sae,
            at("x.npy"), "-o", at("c.npy"));
    REFUSED("neither JSON Lines nor safetensors", at("c.npy"), cmd_decode, sae, sae,
            "-o", at("c.npy"));
    REFUSED("cannot open", at("c.npy"), cmd_decode, sae, at("nowhere"), "-o",
            at("c.npy"));
    REFUSED("not a regular file", at("c.npy"), cmd_decode, sae, work, "-o",
            at("c.npy"));
}

static void check_bad_rows(const char *sae, truth *t)
{
    size_t d = (size_t)t->info.d_in;
    float keep = t->x[5 * d + 7];
    unlink(at("c.jsonl"));
    unlink(at("c.npy"));
    write_npy(at("bad.npy"), t->x, ROWS, d - 1);
    REFUSED("its rows have 23 values, the SAE reads 24", at("c.jsonl"), cmd_encode, sae,
            at("bad.npy"), "-o", at("c.jsonl"));
    t->x[5 * d + 7] = NAN;
    write_npy(at("bad.npy"), t->x, ROWS, d);
    REFUSED("row 5, column 7 is NaN", at("c.jsonl"), cmd_encode, sae, at("bad.npy"),
            "-o", at("c.jsonl"));
    t->x[5 * d + 7] = -INFINITY;
    write_st(at("bad.safetensors"), t->x, ROWS, d);
    REFUSED("row 5, column 7 is infinite", at("c.jsonl"), cmd_encode, sae,
            at("bad.safetensors"), "-o", at("c.jsonl"));
    t->x[5 * d + 7] = keep;
    write_npy(at("x.npy"), t->x, ROWS, d);
    write_npy(at("few.npy"), t->x, ROWS - 1, d);
    write_npy(at("none.npy"), t->x, 0, d);
    REFUSED("has 299 rows", at("c.npy"), cmd_decode, sae, at("a.jsonl"), "-o",
            at("c.npy"), "--input", at("few.npy"));
    REFUSED("no tensor of floats is called y; there are: x", at("c.jsonl"), cmd_encode,
            sae, at("x.safetensors"), "--tensor", "y", "-o", at("c.jsonl"));
    REFUSED("it has 2 tensors of floats; choose one with --tensor NAME: b, a",
            at("c.jsonl"), cmd_encode, sae, at("two.safetensors"), "-o", at("c.jsonl"));
    REFUSED("its tensor has shape [9]", at("c.jsonl"), cmd_encode, sae,
            at("two.safetensors"), "--tensor", "a", "-o", at("c.jsonl"));
    REFUSED("its rows are F64", at("c.jsonl"), cmd_encode, sae, at("two.safetensors"),
            "--tensor", "b", "-o", at("c.jsonl"));
    REFUSED("the name ends in .jsonl or .safetensors", at("c.txt"), cmd_encode, sae,
            at("x.npy"), "-o", at("c.txt"));
    REFUSED("is the input: choose another", NULL, cmd_encode, sae, at("x.safetensors"),
            "-o", at("x.safetensors"));
    REFUSED("encode needs SAE.qsae, IN and -o OUT", NULL, cmd_encode, sae, at("x.npy"));
    REFUSED("decode needs SAE.qsae, FEATURES and -o", NULL, cmd_decode, sae);
    REFUSED("the name ends in .npy", at("c.npz"), cmd_decode, sae, at("a.jsonl"), "-o",
            at("c.npz"));
    REFUSED("cannot", at("nowhere/c.jsonl"), cmd_encode, sae, at("x.npy"), "-o",
            at("nowhere/c.jsonl"));
    REFUSED("cannot", at("nowhere/c.safetensors"), cmd_encode, sae, at("x.npy"), "-o",
            at("nowhere/c.safetensors"));
    mkdir(at("dir.safetensors"), 0777);
    REFUSED("is not a regular file", NULL, cmd_encode, sae, at("x.npy"), "-o",
            at("dir.safetensors"));
    WORKS(cmd_encode, sae, at("none.npy"), "-o", at("none.jsonl"));
    WORKS(cmd_encode, sae, at("none.npy"), "-o", at("none.safetensors"));
    WORKS(cmd_decode, sae, at("none.safetensors"), "-o", at("c.npy"));
    WORKS(cmd_decode, sae, at("none.jsonl"), "-o", at("d.npy"));
    CHECK(same_files(at("c.npy"), at("d.npy")));
}

static void write_two(void)
{
    char err[ERR_CAP];
    static const double data[24 * 2];
    uint64_t shape[2] = {2, 24}, nine = 9;
    st_writer *w = st_writer_create(at("two.safetensors"), err, sizeof err);
    CHECK(w && !st_writer_declare(w, "b", TENSOR_F64, 2, shape, err, sizeof err) &&
          !st_writer_declare(w, "a", TENSOR_F32, 1, &nine, err, sizeof err) &&
          !st_writer_data(w, data, sizeof data, err, sizeof err) &&
          !st_writer_data(w, data, 36, err, sizeof err) &&
          !st_writer_commit(w, err, sizeof err));
}

static void check_refusals(void)
{
    truth t;
    size_t size;
    uint8_t *image = tiny_sae_file(&kinds[2], 5, &size);
    char sae[600];
    strcpy(sae, at("sae.qsae"));
    write_bytes(sae, image, size);
    truth_make(&t, image, size);
    write_st(at("x.safetensors"), t.x, ROWS, (uint64_t)t.info.d_in);
    write_lines(at("a.jsonl"), &t, NULL, 0);
    write_two();
    check_bad_lines(sae);
    check_bad_rows(sae, &t);
    check_bad_csr(sae);
    truth_free(&t);
    free(image);
}

/* ---- extract and export: arguments ---- */

static void check_arguments(void)
{
    static const char *const lists[] = {"",    ",",   "1,",  ",1", "1,,2", "a",
                                        "1;2", "1 2", "0x1", "-1", "1,1"};
    tiny_sae kind = {PLACE(QSAE_RESID_POST, QSAE_RESID_POST, 24, 24),
                     0,
                     QSAE_ACT_JUMPRELU,
                     QSAE_NORM_NONE,
                     0,
                     0,
                     3};
    size_t size;
    kind.layer_in = kind.layer_out = 0;
    uint8_t *image = tiny_sae_file(&kind, 8, &size);
    char sae[600], out[600];
    strcpy(sae, at("suite.qsae"));
    strcpy(out, at("out.gguf"));
    write_bytes(sae, image, size);
    free(image);
    unlink(out);
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++)
        REFUSED("--features", out, cmd_extract, sae, "--layer", "1", "--features",
                lists[i], "-o", out);
    REFUSED("the SAE has features 0..52, not 53", out, cmd_extract, sae, "--layer", "1",
            "--features", "53", "-o", out);
    REFUSED(
        "3 of its 3 SAEs fit; choose with --site, --layer, --name: resid_post.0 \"tiny\", resid_post.1 \"tiny\", "
        "resid_post.2 \"tiny\"",
        out, cmd_extract, sae, "--features", "1", "-o", out);
    REFUSED(
        "none of its 3 SAEs is at mlp_out of layer 1: it has resid_post.0 \"tiny\", resid_post.1",
        out, cmd_export, sae, "--format", "saelens", "--layer", "1", "--site",
        "mlp_out", "-o", out);
    REFUSED("none of its 3 SAEs is of layer 9: it has resid_post.0", out, cmd_info, sae,
            "--layer", "9");
    REFUSED("3 of its 3 SAEs fit", out, cmd_encode, sae, at("x.npy"), "-o",
            at("none.jsonl"), "--site", "resid_post");
    REFUSED("3 of its 3 SAEs fit", out, cmd_decode, sae, at("a.jsonl"), "-o",
            at("c.npy"), "--name", "tiny");
    REFUSED("'no' is none of", out, cmd_export, sae, "--site", "no", "--format", "npz",
            "-o", out);
    REFUSED("--format: 'onnx' is none of", out, cmd_export, sae, "--format", "onnx",
            "-o", out);
    REFUSED("export needs", out, cmd_export, sae, "--format", "npz");
    REFUSED("needs --edit", out, cmd_export, sae, "--format", "control-vector", "-o",
            out);
    REFUSED("--edit belongs to", out, cmd_export, sae, "--format", "npz", "-o", out,
            "--edit", "resid_post.1:1=add:1");
    REFUSED("--site and --layer have no place", out, cmd_export, sae, "--format",
            "control-vector", "-o", out, "--edit", "resid_post.1:1=add:1", "--layer",
            "1");
#define EDIT(edit) \
    cmd_export, sae, "--format", "control-vector", "-o", out, "--edit", edit
    REFUSED("is not SITE.LAYER:FEATURE=OP:VALUE", out, EDIT("resid_post.1:1"));
    REFUSED("only the operation add", out, EDIT("resid_post.1:1=set:1"));
    REFUSED("only the operation add", out, EDIT("resid_post.1:1=scale:0"));
    REFUSED("not for layer 0", out, EDIT("resid_post.0:1=add:1"));
    REFUSED("none of its 3 SAEs is at mlp_out of layer 1", out,
            EDIT("mlp_out.1:1=add:1"));
    REFUSED("the SAE has features 0..52, not 53", out, EDIT("resid_post.1:53=add:1"));
    REFUSED("does not fit in float32", out, EDIT("resid_post.1:1=add:3e38"), "--edit",
            "resid_post.1:1=add:3e38", "--edit", "resid_post.1:1=add:3e38", "--edit",
            "resid_post.1:1=add:3e38", "--edit", "resid_post.1:1=add:3e38");
    WORKS(EDIT("resid_post.2:3=add:1.5"), "--edit", "resid_post.1:52=add:-2", "--edit",
          "resid_post.2:4=add:1");
    uint8_t *v = read_file(out, &size);
    CHECK(v && size == 256 + 2 * 96 &&
          memcmp(v, "GGUF\3\0\0\0\2\0\0\0\0\0\0\0\3", 17) == 0);
    free(v);
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        const tiny_sae *k = &kinds[i];
        char edit[60];
        image = tiny_sae_file(k, 8, &size);
        write_bytes(at("sae.qsae"), image, size);
        free(image);
        unlink(out);
        snprintf(edit, sizeof edit, "%s.1:1=add:1",
                 qsae_site_name((qsae_site)k->site_in));
        const char *why = k->site_out != QSAE_RESID_POST ? "is added to resid_post only"
                          : k->norm ? "scales every row by its own norm"
                                    : NULL;
        if (why)
            REFUSED(why, out, cmd_export, at("sae.qsae"), "--format", "control-vector",
                    "-o", out, "--edit", edit);
        else
            WORKS(cmd_export, at("sae.qsae"), "--format", "control-vector", "-o", out,
                  "--edit", edit);
    }
    /* a folder with something in it stays as it is */
    mkdir(at("full"), 0777);
    write_text(at("full/cfg.json"), "mine");
    write_text(at("full/params.npz"), "mine");
    REFUSED("the folder is not empty", NULL, cmd_export, sae, "--format", "saelens",
            "--layer", "1", "-o", at("full"));
    REFUSED("the folder is not empty", NULL, cmd_export, sae, "--format", "npz",
            "--layer", "1", "-o", at("full/"));
    REFUSED("is the SAE: choose another", NULL, cmd_export, sae, "--format", "npz",
            "--layer", "1", "-o", sae);
    REFUSED("is not a folder", NULL, cmd_export, sae, "--format", "npz", "--layer", "1",
            "-o", at("full/cfg.json"));
    REFUSED("cannot create a folder there", NULL, cmd_export, sae, "--format", "npz",
            "--layer", "1", "-o", at("nowhere/npz"));
    uint8_t *mine = read_file(at("full/cfg.json"), &size);
    CHECK(mine && size == 4);
    free(mine);
    mine = read_file(at("full/params.npz"), &size);
    CHECK(mine && size == 4);
    free(mine);
    WORKS(cmd_export, sae, "--format", "npz", "--layer", "1", "-o", at("one.npz"));
}

int main(int argc, char **argv)
{
    snprintf(work, sizeof work, "%s/tmp/test_sae_commands",
             argc > 1 ? argv[1] : "build");
    mkdir(work, 0777);
    rmdir(at("folder"));
    unlink(at("one.npz"));
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        check_kind(&kinds[i], 100 + i);
    check_refusals();
    check_arguments();
    return test_done("test_sae_commands");
}
