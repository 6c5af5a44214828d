/* The library against Hugging Face and SAELens: the goldens of tests/golden (its README tells what they are),
 * read through the public API. Every instruction set, way to split a prompt and number of threads must give
 * the same bits, and those bits must be within rounding of the goldens.
 *
 *     test_golden [BUILD]            run in the repository's root; BUILD gets the converted files
 *     test_golden BUILD BITS         also write a new tests/golden/bits.txt to the file BITS
 *
 * bits.txt holds a hash of everything evaluated here, so that the same bits are demanded of every machine. */

#include "../qsae.h"
#include "../tools/cmd.h"
#include "../tools/tensors.h"
#include "test.h"

#include <math.h>
#include <stdlib.h>

#define GOLDEN      "tests/golden/"
#define BOUND       2e-5 /* max abs error over the rms of the golden tensor */
#define VALUE_BOUND 1e-5 /* of a feature, relative */

enum { N_SITES = QSAE_SITE_COUNT, MAX_SAES = 32 };

static const char *build = "build";
static FILE *new_bits;

/* ------------------------------------------------------------------------- small helpers */

static void *must(void *p)
{
    if (!p) {
        fprintf(stderr, "test_golden: out of memory, or a file cannot be made\n");
        exit(1);
    }
    return p;
}

/* "%s%s%s" in a buffer that lives until the fourth next call */
static const char *join(const char *a, const char *b, const char *c)
{
    static char text[4][512];
    static int next;
    char *t = text[next++ % 4];
    snprintf(t, sizeof text[0], "%s%s%s", a, b, c);
    return t;
}

static int check_named(int ok, const char *what, const char *name, double number)
{
    test_check(ok, __FILE__, __LINE__, what);
    if (!ok && test_failed <= TEST_MAX_SHOWN)
        fprintf(stderr, "    %s: %.3g\n", name, number);
    return ok;
}

static int exists(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (f)
        fclose(f);
    return f != NULL;
}

static const char *convert(const char *source, const char *name)
{
    static char out[512];
    snprintf(out, sizeof out, "%s/tmp/golden-%s.qsae", build, name);
    remove(out);
    char command[] = "convert", option[] = "-o", source_copy[512];
    snprintf(source_copy, sizeof source_copy, "%s", source);
    /* two thresholds of saes/jumprelu are below 0 */
    char negative[] = "--negative-thresholds", zero[] = "zero";
    char *argv[] = {command, source_copy, option, out, negative, zero, NULL};
    int argc = strstr(source, "saes/jumprelu") ? 6 : 4;
    check_named(cmd_convert(argc, argv) == CMD_OK, "convert", source, 0);
    return out;
}

/* ------------------------------------------------------------------------------- goldens */

static tensor_file *open_golden(const char *path)
{
    char err[512];
    tensor_file *f = tensors_open(path, err, sizeof err);
    if (!f)
        fprintf(stderr, "test_golden: %s\n", err);
    return CHECK(f != NULL) ? f : NULL;
}

static const tensor *find(const tensor_file *f, const char *name)
{
    const tensor *t = tensors_find(f, name);
    check_named(t != NULL, "tensor in golden", name, 0);
    return t;
}

static float *floats(const tensor_file *f, const char *name, size_t *n)
{
    const tensor *t = find(f, name);
    float *x = must(malloc((t ? (size_t)t->n : 0) * 4 + 4));
    *n = t ? (size_t)t->n : 0;
    char err[512];
    if (t && !CHECK(tensor_f32(t, 0, t->n, x, err, sizeof err) == 0))
        fprintf(stderr, "test_golden: %s\n", err);
    return x;
}

static int32_t *ints(const tensor_file *f, const char *name, size_t *n)
{
    const tensor *t = find(f, name);
    *n = t && t->type == TENSOR_I32 ? (size_t)t->n : 0;
    int32_t *x = must(malloc(*n * 4 + 4));
    for (size_t i = 0; i < *n; i++) {
        int64_t v = 0;
        CHECK(tensor_int(t, i, &v, NULL, 0) == 0);
        x[i] = (int32_t)v;
    }
    return x;
}

/* Largest absolute error over the rms of want; NaN counts as infinite. */
static double error_of(const float *got, const float *want, size_t n)
{
    double worst = 0, sum = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)got[i] - want[i]);
        if (!(d <= worst))
            worst = d == d ? d : INFINITY;
        sum += (double)want[i] * want[i];
    }
    return n ? worst / sqrt(sum / (double)n + 1e-300) : INFINITY;
}

/* Rows `rows` of got [., width] against the golden tensor. */
static void check_rows(const tensor_file *f, const char *name, const float *got,
                       size_t width, const int32_t *rows, size_t n_rows, double *worst)
{
    size_t n;
    float *want = floats(f, name, &n), *picked = must(malloc(n_rows * width * 4 + 4));
    for (size_t i = 0; i < n_rows; i++)
        memcpy(picked + i * width, got + (size_t)rows[i] * width, width * 4);
    if (check_named(n == n_rows * width, "golden's size", name, (double)n)) {
        double e = error_of(picked, want, n);
        check_named(e <= BOUND, "within 2e-5 rms of the golden", name, e);
        if (e > *worst)
            *worst = e;
    }
    free(want);
    free(picked);
}

/* ---------------------------------------------------------------------------------- bits */

/* FNV-1a over the bits of floats, low byte first. */
static uint64_t hash_floats(uint64_t h, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, x + i, 4);
        for (int b = 0; b < 32; b += 8)
            h = (h ^ (u >> b & 255)) * 0x100000001b3u;
    }
    return h;
}

#define HASH_START 0xcbf29ce484222325u

static void check_bits(const char *name, uint64_t h)
{
    if (new_bits) {
        fprintf(new_bits, "%s %016llx\n", name, (unsigned long long)h);
        return;
    }
    FILE *f = fopen(GOLDEN "bits.txt", "r");
    if (!CHECK(f != NULL))
        return;
    char key[64];
    unsigned long long value;
    int found = 0;
    while (fscanf(f, "%63s %llx", key, &value) == 2) {
        if (strcmp(key, name) == 0) {
            found = 1;
            check_named(value == h, "the bits of bits.txt", name, 0);
        }
    }
    fclose(f);
    check_named(found, "a line in bits.txt", name, 0);
}

/* ---------------------------------------------------------------------------- evaluation */

typedef struct way {
    int32_t batch, threads; /* of the ctx */
    size_t piece;           /* tokens of each eval, 0: all */
} way;

static const way ways[] = {{64, 1, 0}, {16, 1, 0},  {3, 2, 16}, {1, 3, 0},
                           {64, 2, 1}, {512, 8, 0}, {7, 1, 13}};
enum { N_WAYS = (int)(sizeof ways / sizeof ways[0]) };

typedef struct result { /* every site of every layer, then the logits */
    float **tensor;
    size_t *width, count, n;
} result;

static result new_result(const qsae_model *m, size_t n)
{
    qsae_model_info info;
    qsae_model_get_info(m, &info);
    result r = {0};
    r.count = (size_t)info.n_layers * N_SITES + 1;
    r.n = n;
    r.tensor = must(calloc(r.count, sizeof *r.tensor));
    r.width = must(calloc(r.count, sizeof *r.width));
    for (size_t i = 0; i < r.count; i++) {
        r.width[i] = qsae_site_width(m, i + 1 == r.count ? QSAE_LOGITS
                                                         : (qsae_site)(i % N_SITES));
        r.tensor[i] = must(calloc(n * r.width[i] + 1, sizeof(float)));
    }
    return r;
}

static void free_result(result *r)
{
    for (size_t i = 0; i < r->count; i++)
        free(r->tensor[i]);
    free(r->tensor);
    free(r->width);
}

static int same(const result *a, const result *b)
{
    int ok = a->count == b->count && a->n == b->n;
    for (size_t i = 0; ok && i < a->count; i++)
        ok =
            memcmp(a->tensor[i], b->tensor[i], a->n * a->width[i] * sizeof(float)) == 0;
    return ok;
}

static uint64_t hash_result(const result *r)
{
    uint64_t h = HASH_START;
    for (size_t i = 0; i < r->count; i++)
        h = hash_floats(h, r->tensor[i], r->n * r->width[i]);
    return h;
}

/* Evaluates ids the given way, and captures everything into r. */
static int evaluate(const qsae_model *m, const int32_t *ids, size_t n, const way *w,
                    const qsae_edit *edits, size_t n_edits, result *r)
{
    qsae_ctx_options o = {0};
    o.n_ctx = (int32_t)n;
    o.n_batch = w->batch;
    o.n_threads = w->threads;
    qsae_error e = {QSAE_OK, 0, ""};
    qsae_ctx *c = NULL;
    qsae_capture *list = must(calloc(r->count, sizeof *list));
    int ok = qsae_ctx_create(m, &o, &c, &e) == QSAE_OK;
    ok = ok && qsae_set_edits(c, edits, n_edits, &e) == QSAE_OK;
    for (size_t done = 0; ok && done < n;) {
        size_t part = w->piece && w->piece < n - done ? w->piece : n - done;
        for (size_t i = 0; i < r->count; i++) {
            list[i].site = i + 1 == r->count ? QSAE_LOGITS : (qsae_site)(i % N_SITES);
            list[i].layer = i + 1 == r->count ? 0 : (int32_t)(i / N_SITES);
            list[i].rows = r->tensor[i] + done * r->width[i];
            list[i].max_rows = part;
        }
        ok = qsae_set_captures(c, list, r->count, &e) == QSAE_OK &&
             qsae_eval(c, ids + done, part, &e) == QSAE_OK;
        done += part;
    }
    /* the logits of the last token are also there without a capture */
    if (ok)
        ok = CHECK(memcmp(qsae_logits(c),
                          r->tensor[r->count - 1] + (n - 1) * r->width[r->count - 1],
                          r->width[r->count - 1] * sizeof(float)) == 0);
    else
        check_named(0, "evaluate", e.text, e.status);
    qsae_ctx_destroy(c);
    free(list);
    return ok;
}

static qsae_model *open_model(const char *path, int isa)
{
    qsae_open_options o;
    memset(&o, 0, sizeof o);
    o.isa = (qsae_isa)isa;
    o.verify = 1;
    qsae_error e = {QSAE_OK, 0, ""};
    qsae_model *m = NULL;
    qsae_model_open(path, &o, &m, &e);
    return check_named(m != NULL, "open", e.text, e.status) ? m : NULL;
}

static qsae_sae *open_sae(const char *path, int isa)
{
    qsae_sae_options o;
    memset(&o, 0, sizeof o);
    o.open.isa = (qsae_isa)isa;
    o.open.verify = 1;
    qsae_error e = {QSAE_OK, 0, ""};
    qsae_sae *s = NULL;
    qsae_sae_open(path, &o, &s, &e);
    return check_named(s != NULL, "open", e.text, e.status) ? s : NULL;
}

/* All ways on all instruction sets; *first, already made, receives the result. */
static void all_ways(const char *path, const char *name, const int32_t *ids, size_t n,
                     result *first)
{
    int have = 0;
    for (int isa = QSAE_ISA_SCALAR; isa < QSAE_ISA_COUNT; isa++) {
        if (!qsae_isa_available((qsae_isa)isa))
            continue;
        qsae_model *m = open_model(path, isa);
        if (!m)
            continue;
        for (int i = 0; i < N_WAYS; i++) {
            result r = new_result(m, n);
            if (evaluate(m, ids, n, &ways[i], NULL, 0, have ? &r : first)) {
                if (have)
                    check_named(same(first, &r), "the same bits in every way",
                                join(name, " ", qsae_isa_name((qsae_isa)isa)), i);
                have = 1;
            }
            free_result(&r);
        }
        qsae_model_close(m);
    }
}

/* -------------------------------------------------------------------------------- models */

static void test_model(const char *name)
{
    const char *path = convert(join(GOLDEN, name, ""), name);
    tensor_file *f = open_golden(join(GOLDEN, name, ".safetensors"));
    qsae_model *m = open_model(path, QSAE_ISA_AUTO);
    if (f && m) {
        size_t n, n_rows;
        double worst = 0;
        int32_t *ids = ints(f, "tokens", &n), *rows = ints(f, "rows", &n_rows);
        result r = new_result(m, n);
        all_ways(path, name, ids, n, &r);
        for (size_t i = 0; i < r.count; i++) {
            char key[64];
            if (i + 1 == r.count)
                snprintf(key, sizeof key, "logits");
            else
                snprintf(key, sizeof key, "layers.%d.%s", (int)(i / N_SITES),
                         qsae_site_name((qsae_site)(i % N_SITES)));
            check_rows(f, key, r.tensor[i], r.width[i], rows, n_rows, &worst);
        }
        check_bits(name, hash_result(&r));
        printf("%s: worst error %.1e rms\n", name, worst);
        free_result(&r);
        free(ids);
        free(rows);
    }
    qsae_model_close(m);
    tensors_close(f);
}

/* ---------------------------------------------------------------------------------- SAEs */

typedef struct sparse {
    qsae_rows rows;
    float *y; /* [n, d_out] */
    size_t n_y;
} sparse;

static void free_sparse(sparse *s)
{
    free(s->rows.start);
    free(s->rows.index);
    free(s->rows.value);
    free(s->y);
}

/* Encodes and decodes x in pieces of `piece` rows. */
static int encode_decode(const qsae_sae *sae, const float *x, size_t n, size_t piece,
                         int threads, sparse *out)
{
    qsae_sae_info info;
    qsae_sae_get_info(sae, &info);
    size_t d_in = (size_t)info.d_in, d_out = (size_t)info.d_out,
           cap = n * (size_t)info.d_sae;
    memset(out, 0, sizeof *out);
    out->rows.start = must(calloc(n + 1, sizeof(size_t)));
    out->rows.index = must(malloc(cap * sizeof(uint32_t)));
    out->rows.value = must(malloc(cap * sizeof(float)));
    out->y = must(calloc(n * d_out, sizeof(float)));
    out->n_y = n * d_out;
    qsae_error e = {QSAE_OK, 0, ""};
    size_t *start = must(malloc((piece + 1) * sizeof(size_t)));
    int ok = 1;
    for (size_t done = 0; ok && done < n; done += piece) {
        size_t part = piece < n - done ? piece : n - done, at = out->rows.start[done];
        size_t size = qsae_sae_scratch_size(sae, part);
        void *scratch = must(malloc(size + 1));
        qsae_rows part_rows = {0, start, out->rows.index + at, out->rows.value + at,
                               cap - at, 0};
        ok = qsae_sae_encode(sae, x + done * d_in, part, 0, &part_rows, scratch, size,
                             threads, &e) == QSAE_OK &&
             part_rows.n_rows == part &&
             qsae_sae_decode(sae, &part_rows, x + done * d_in, 0, out->y + done * d_out,
                             scratch, size, threads, &e) == QSAE_OK;
        for (size_t i = 0; ok && i <= part; i++)
            out->rows.start[done + i] = at + start[i];
        free(scratch);
    }
    out->rows.n_rows = n;
    free(start);
    return check_named(ok, "encode and decode", e.text, e.status);
}

static int same_sparse(const sparse *a, const sparse *b)
{
    size_t n = a->rows.n_rows;
    if (n != b->rows.n_rows ||
        memcmp(a->rows.start, b->rows.start, (n + 1) * sizeof(size_t)) != 0)
        return 0;
    size_t total = a->rows.start[n];
    return memcmp(a->rows.index, b->rows.index, total * sizeof(uint32_t)) == 0 &&
           memcmp(a->rows.value, b->rows.value, total * sizeof(float)) == 0 &&
           a->n_y == b->n_y && memcmp(a->y, b->y, a->n_y * sizeof(float)) == 0;
}

/* The SAE against golden tensors <prefix>x, start, index, y, and the values by SAELens in
 * float32 (value) and in float64 (exact): a value may be near either. */
static void check_sae(const char *path, const char *name, const tensor_file *f,
                      const char *prefix)
{
    size_t nx, ny, n_start, n_index, n_value, n_exact;
    float *x = floats(f, join(prefix, "x", ""), &nx),
          *y = floats(f, join(prefix, "y", ""), &ny);
    float *value = floats(f, join(prefix, "value", ""), &n_value);
    float *exact = floats(f, join(prefix, "exact", ""), &n_exact);
    int32_t *start = ints(f, join(prefix, "start", ""), &n_start),
            *index = ints(f, join(prefix, "index", ""), &n_index);
    sparse first = {{0, NULL, NULL, NULL, 0, 0}, NULL, 0};
    int have = 0;
    for (int isa = QSAE_ISA_SCALAR; isa < QSAE_ISA_COUNT && n_start > 1; isa++) {
        if (!qsae_isa_available((qsae_isa)isa))
            continue;
        qsae_sae *sae = open_sae(path, isa);
        if (!sae)
            continue;
        size_t n = n_start - 1;
        for (int i = 0; i < 4; i++) {
            static const size_t pieces[] = {1000, 1, 7, 16};
            sparse s;
            int ok = encode_decode(sae, x, n, pieces[i] < n ? pieces[i] : n, 1 + i, &s);
            if (ok && have)
                check_named(same_sparse(&first, &s), "the same features in every way",
                            name, i);
            if (ok && !have) {
                first = s;
                have = 1;
            } else {
                free_sparse(&s);
            }
        }
        qsae_sae_close(sae);
    }
    int equal = have && first.rows.start[n_start - 1] == n_index &&
                n_index == n_value && n_index == n_exact && n_index > 0;
    for (size_t i = 0; equal && i < n_start; i++)
        equal = first.rows.start[i] == (size_t)start[i];
    for (size_t i = 0; equal && i < n_index; i++)
        equal = first.rows.index[i] == (uint32_t)index[i];
    if (check_named(equal, "the active set of SAELens", name, 0)) {
        double worst = 0;
        for (size_t i = 0; i < n_value; i++) {
            double got = first.rows.value[i], e = fabs(got - value[i]) / value[i];
            double e64 = fabs(got - exact[i]) / exact[i];
            if (e64 < e)
                e = e64;
            if (!(e <= worst))
                worst = e == e ? e : INFINITY;
        }
        check_named(worst <= VALUE_BOUND, "values within 1e-5 of SAELens", name, worst);
        double e = first.n_y == ny ? error_of(first.y, y, ny) : INFINITY;
        check_named(e <= BOUND, "the reconstruction of SAELens", name, e);
        check_bits(name, hash_floats(hash_floats(HASH_START, first.rows.value, n_value),
                                     first.y, ny));
        printf("%s: worst value %.1e, reconstruction %.1e rms\n", name, worst, e);
    }
    if (have)
        free_sparse(&first);
    free(x);
    free(y);
    free(value);
    free(exact);
    free(start);
    free(index);
}

static const char *const sae_names[] = {
    "standard",  "jumprelu",     "jumprelu_const", "jumprelu_bf16",
    "topk",      "topk_rescale", "gated",          "gated_ln",
    "batchtopk", "hook_z",       "transcoder",     "skip_transcoder"};
enum { N_SAES = (int)(sizeof sae_names / sizeof sae_names[0]) };

static void test_saes(void)
{
    for (int i = 0; i < N_SAES; i++) {
        tensor_file *f = open_golden(join(GOLDEN "saes/", sae_names[i], ".safetensors"));
        if (f)
            check_sae(convert(join(GOLDEN "saes/", sae_names[i], ""), sae_names[i]),
                      sae_names[i], f, "");
        tensors_close(f);
    }
}

/* --------------------------------------------------------------------------------- edits */

typedef struct case_line {
    int number, layer;
    char op[32], sae[32], site[32], gate[32], vector[32];
    unsigned feature, gate_feature;
    float value, strength, threshold;
    int32_t begin, end;
} case_line;

static int kind_of(const char *op)
{
    static const struct {
        const char *op;
        qsae_edit_kind kind;
    } kinds[] = {{"add", QSAE_FEATURE_ADD},         {"set", QSAE_FEATURE_SET},
                 {"scale", QSAE_FEATURE_SCALE},     {"min", QSAE_FEATURE_MIN},
                 {"max", QSAE_FEATURE_MAX},         {"add_vector", QSAE_ADD},
                 {"project_out", QSAE_PROJECT_OUT}, {"replace", QSAE_REPLACE},
                 {"sae_replace", QSAE_SAE_REPLACE}};
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (strcmp(op, kinds[i].op) == 0)
            return (int)kinds[i].kind;
    return 0;
}

static const qsae_sae *sae_called(qsae_sae *const *saes, const char *name)
{
    for (int i = 0; i < N_SAES; i++)
        if (strcmp(name, sae_names[i]) == 0)
            return saes[i];
    return NULL;
}

/* One case: its edits, evaluated as a prompt at once, a token at a time, and both. */
static void check_case(const tensor_file *f, const qsae_model *m, qsae_sae *const *saes,
                       const case_line *lines, int n_lines, const result *plain,
                       double *worst)
{
    qsae_edit edits[8];
    float *vectors[8] = {NULL};
    memset(edits, 0, sizeof edits);
    for (int i = 0; i < n_lines; i++) {
        const case_line *l = &lines[i];
        size_t n;
        edits[i].kind = (qsae_edit_kind)kind_of(l->op);
        edits[i].strength = l->strength;
        edits[i].value = l->value;
        edits[i].pos_begin = l->begin;
        edits[i].pos_end = l->end;
        edits[i].site = (qsae_site)qsae_site_from_name(l->site);
        edits[i].layer = l->layer;
        edits[i].sae = sae_called(saes, l->sae);
        edits[i].feature = l->feature;
        if (strcmp(l->vector, "-") != 0)
            edits[i].vector = vectors[i] = floats(f, l->vector, &n);
        if (strcmp(l->gate, "-") != 0) {
            edits[i].gate.sae = sae_called(saes, l->gate);
            edits[i].gate.feature = l->gate_feature;
            edits[i].gate.threshold = l->threshold;
        }
    }
    char name[32];
    snprintf(name, sizeof name, "logits.%d", lines[0].number);
    size_t n, n_rows;
    int32_t *ids = ints(f, "tokens", &n), *rows = ints(f, "rows", &n_rows);
    static const way edit_ways[] = {{64, 1, 0}, {64, 1, 1}, {16, 2, 24}};
    result first = new_result(m, n), other = new_result(m, n);
    if (evaluate(m, ids, n, &edit_ways[0], edits, (size_t)n_lines, &first)) {
        check_rows(f, name, first.tensor[first.count - 1], first.width[first.count - 1],
                   rows, n_rows, worst);
        CHECK(!same(&first, plain));
        for (int i = 1; i < 3; i++)
            if (evaluate(m, ids, n, &edit_ways[i], edits, (size_t)n_lines, &other))
                check_named(same(&first, &other),
                            "an edit acts the same token by token", name, i);
        check_bits(join("edit-", name, ""), hash_result(&first));
    }
    free_result(&first);
    free_result(&other);
    free(ids);
    free(rows);
    for (int i = 0; i < 8; i++)
        free(vectors[i]);
}

static void test_edits(void)
{
    tensor_file *f = open_golden(GOLDEN "edits.safetensors");
    FILE *text = fopen(GOLDEN "edits.txt", "r");
    char model_path[512];
    snprintf(model_path, sizeof model_path, "%s", convert(GOLDEN "model_a", "model_a"));
    qsae_model *m = open_model(model_path, QSAE_ISA_AUTO);
    qsae_sae *saes[MAX_SAES] = {NULL};
    for (int i = 0; i < N_SAES; i++)
        saes[i] =
            open_sae(convert(join(GOLDEN "saes/", sae_names[i], ""), sae_names[i]),
                     QSAE_ISA_AUTO);
    if (CHECK(f && text && m)) {
        size_t n;
        int32_t *ids = ints(f, "tokens", &n);
        result plain = new_result(m, n);
        evaluate(m, ids, n, &ways[0], NULL, 0, &plain);
        case_line lines[8], l;
        int n_lines = 0, more = 1, cases = 0;
        double worst = 0;
        while (more) {
            more = fscanf(text, "%d %31s %31s %u %31s %d %f %f %d %d %31s %u %f %31s",
                          &l.number, l.op, l.sae, &l.feature, l.site, &l.layer,
                          &l.value, &l.strength, &l.begin, &l.end, l.gate,
                          &l.gate_feature, &l.threshold, l.vector) == 14;
            if (n_lines && (!more || l.number != lines[0].number)) {
                check_case(f, m, saes, lines, n_lines, &plain, &worst);
                n_lines = 0;
                cases++;
            }
            if (more && CHECK(n_lines < 8 && kind_of(l.op) != 0))
                lines[n_lines++] = l;
        }
        CHECK(cases == 36);
        printf("%d lists of edits: worst error %.1e rms\n", cases, worst);
        free_result(&plain);
        free(ids);
    }
    for (int i = 0; i < N_SAES; i++)
        qsae_sae_close(saes[i]);
    qsae_model_close(m);
    tensors_close(f);
    if (text)
        fclose(text);
}

/* ----------------------------------------------------------------------------------- toy */

/* The prompt as chat tokens, its logits, one site of each layer; and the features of the toy's SAE. */
static void test_toy_prompt(const tensor_file *f, const char *path, const qsae_model *m,
                            int number)
{
    char prefix[16];
    snprintf(prefix, sizeof prefix, "%d.", number);
    size_t n, n_rows, n_ids = 0;
    int32_t *ids = ints(f, join(prefix, "tokens", ""), &n),
            *rows = ints(f, join(prefix, "rows", ""), &n_rows);
    const tensor *ask = find(f, join(prefix, "ask", ""));
    int32_t *own = must(calloc(n + 1, sizeof *own));
    qsae_error e = {QSAE_OK, 0, ""};
    if (ask) {
        char *text = must(malloc((size_t)ask->n + 1));
        for (size_t i = 0; i < ask->n; i++) {
            int64_t c = 0;
            CHECK(tensor_int(ask, i, &c, NULL, 0) == 0);
            text[i] = (char)c;
        }
        qsae_message message = {
            .role = "user", .content = text, .content_len = (size_t)ask->n};
        qsae_status st = qsae_chat_tokens(m, &message, 1, 0, own, n, &n_ids, &e);
        check_named(st == QSAE_OK && n_ids == n &&
                        memcmp(own, ids, n * sizeof *ids) == 0,
                    "the tokens of the chat", e.text, (double)n_ids);
        free(text);
    }
    free(own);
    result r = new_result(m, n);
    double worst = 0;
    char name[32];
    snprintf(name, sizeof name, "toy.%d", number);
    all_ways(path, name, ids, n, &r);
    int found = 0;
    for (size_t i = 0; i < r.count; i++) {
        char key[64];
        if (i + 1 == r.count)
            snprintf(key, sizeof key, "%slogits", prefix);
        else
            snprintf(key, sizeof key, "%slayers.%d.%s", prefix, (int)(i / N_SITES),
                     qsae_site_name((qsae_site)(i % N_SITES)));
        if (tensors_find(f, key)) {
            check_rows(f, key, r.tensor[i], r.width[i], rows, n_rows, &worst);
            found++;
        }
    }
    CHECK(found == (int)(r.count - 1) / N_SITES + 1);
    check_bits(name, hash_result(&r));
    printf("%s: %d tokens, worst error %.1e rms\n", name, (int)n, worst);
    free_result(&r);
    free(ids);
    free(rows);
}

static void test_toy(void)
{
    tensor_file *f = open_golden(GOLDEN "toy.safetensors");
    char path[512];
    snprintf(path, sizeof path, "%s", convert("examples/toy/model", "toy"));
    qsae_model *m = open_model(path, QSAE_ISA_AUTO);
    for (int i = 0; f && m && i < 3; i++)
        test_toy_prompt(f, path, m, i);
    if (f && CHECK(exists("examples/toy/sae/cfg.json"))) {
        snprintf(path, sizeof path, "%s", convert("examples/toy/sae", "toy-sae"));
        for (int i = 0; i < 3; i++) {
            char prefix[16], name[32];
            snprintf(prefix, sizeof prefix, "%d.sae_", i);
            snprintf(name, sizeof name, "toy-sae.%d", i);
            check_sae(path, name, f, prefix);
        }
    }
    qsae_model_close(m);
    tensors_close(f);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        build = argv[1];
    if (argc > 2)
        new_bits = must(fopen(argv[2], "w"));
    test_model("model_a");
    test_model("model_b");
    test_saes();
    test_edits();
    test_toy();
    if (new_bits)
        CHECK(fclose(new_bits) == 0);
    return test_done("test_golden");
}
