/* Edits: what each kind does to the rows, computed by hand from captures, encode and the decoder rows; what must
 * not change, to the bit; gates, positions, order; and the same bits however the tokens are passed in. */

#include "test.h"
#include "tiny.h"

#include <fenv.h>
#include <math.h>

enum { N = 14, N_CTX = 32, LAYERS = 3, D = 24, Z = 40, VOCAB = 61, MAX_W = 64, MAX_SAE = 64, N_SAES = 9 };

static const tiny_shape SHAPE = {LAYERS, D, 4, 2, 10, 44, VOCAB, 0, 0};

#define AT(site, layer) QSAE_##site, layer, QSAE_##site, layer
static const tiny_sae SAES[N_SAES] = {
    /* read, written, d_in, d_out, d_sae, k, activation, norm, flags, bf16, copies */
    {AT(RESID_POST, 1), D, D, 50, 0, QSAE_ACT_RELU, QSAE_NORM_NONE, 0, 0, 0},
    {AT(RESID_POST, 1), D, D, 37, 0, QSAE_ACT_JUMPRELU, QSAE_NORM_CONSTANT, 0, 1, 0},
    {AT(RESID_MID, 0), D, D, 64, 9, QSAE_ACT_TOPK, QSAE_NORM_LAYER, 0, 0, 0},
    {AT(ATTN_Z, 2), Z, Z, 45, 0, QSAE_ACT_GATED, QSAE_NORM_NONE, 0, 1, 0},
    {AT(RESID_PRE, 0), D, D, 33, 0, QSAE_ACT_JUMPRELU, QSAE_NORM_LAYER, QSAE_SAE_SKIP, 0, 0},
    {AT(MLP_OUT, 2), D, D, 50, 0, QSAE_ACT_GATED, QSAE_NORM_CONSTANT, 0, 0, 0},
    {QSAE_MLP_INPUT, 1, QSAE_MLP_OUT, 1, D, D, 50, 0, QSAE_ACT_JUMPRELU, QSAE_NORM_NONE, QSAE_SAE_SKIP, 0, 0},
    {QSAE_RESID_PRE, 0, QSAE_ATTN_Z, 2, D, Z, 41, 7, QSAE_ACT_TOPK, QSAE_NORM_NONE, QSAE_SAE_SKIP, 1, 0},
    {QSAE_MLP_INPUT, 0, QSAE_MLP_OUT, 0, D, D, 40, 0, QSAE_ACT_RELU, QSAE_NORM_LAYER, 0, 0, 0},
};

/* One model and its SAEs under one instruction set. */
typedef struct world {
    qsae_model *model;
    qsae_sae *sae[N_SAES];
} world;

static uint8_t *model_image, *sae_image[N_SAES];
static size_t model_size, sae_size[N_SAES];
static int32_t ids[N_CTX];
static float vec[4][MAX_W]; /* random vectors */
static world W;             /* the reference: portable kernels */
static float *PLAIN;        /* run without edits */

static world open_world(qsae_isa isa)
{
    world w;
    w.model = tiny_open_model(model_image, model_size, isa);
    if (!CHECK(w.model != NULL)) exit(1);
    for (int i = 0; i < N_SAES; i++)
        if (w.sae[i] = tiny_open_sae(sae_image[i], sae_size[i], isa), !CHECK(w.sae[i] != NULL)) exit(1);
    return w;
}

static void close_world(world *w)
{
    for (int i = 0; i < N_SAES; i++) qsae_sae_close(w->sae[i]);
    qsae_model_close(w->model);
}

/* ---- running: everything of every token, [layer][site][N, width], then logits ---- */

enum { LAYER_FLOATS = N * (6 * D + Z), ALL = LAYERS * LAYER_FLOATS + N * VOCAB };

static size_t width_of(int site) { return site == QSAE_ATTN_Z ? Z : D; }

static float *rows_at(float *all, int layer, int site)
{
    if (site == QSAE_LOGITS) return all + LAYERS * LAYER_FLOATS;
    float *p = all + layer * LAYER_FLOATS;
    for (int s = 0; s < site; s++) p += N * width_of(s);
    return p;
}

static void capture_all(qsae_ctx *c, float *all, size_t first)
{
    qsae_capture list[LAYERS * QSAE_SITE_COUNT + 1];
    size_t n = 0;
    for (int l = 0; l < LAYERS; l++)
        for (int s = 0; s < QSAE_SITE_COUNT; s++) {
            qsae_capture one = {(qsae_site)s, l, rows_at(all, l, s) + first * width_of(s), N - first};
            list[n++] = one;
        }
    qsae_capture logits = {QSAE_LOGITS, 0, rows_at(all, 0, QSAE_LOGITS) + first * VOCAB, N - first};
    list[n++] = logits;
    CHECK(qsae_set_captures(c, list, n, NULL) == QSAE_OK);
}

static qsae_ctx *new_ctx(const world *w, int n_batch, int threads)
{
    qsae_ctx_options o = {N_CTX, n_batch, threads, {NULL, NULL, NULL}, QSAE_KV_F32, 0};
    qsae_ctx *c = NULL;
    if (!CHECK(qsae_ctx_create(w->model, &o, &c, NULL) == QSAE_OK)) exit(1);
    return c;
}

static void set_edits(qsae_ctx *c, const qsae_edit *list, size_t n)
{
    qsae_error e;
    if (!CHECK(qsae_set_edits(c, list, n, &e) == QSAE_OK)) fprintf(stderr, "    %s\n", e.text);
}

/* In calls of `call` tokens; the caller frees. */
static float *run_how(const world *w, const qsae_edit *list, size_t n, const qsae_hook *hook, size_t call,
    int n_batch,
                      int threads)
{
    float *all = tiny_alloc(ALL * sizeof *all);
    qsae_ctx *c = new_ctx(w, n_batch, threads);
    set_edits(c, list, n);
    CHECK(qsae_set_hook(c, hook, NULL) == QSAE_OK);
    for (size_t i = 0; i < N; i += call) {
        capture_all(c, all, i);
        CHECK(qsae_eval(c, ids + i, N - i < call ? N - i : call, NULL) == QSAE_OK);
    }
    qsae_ctx_destroy(c);
    return all;
}

static float *run(const qsae_edit *list, size_t n) { return run_how(&W, list, n, NULL, N, 64, 1); }

static int same(const float *a, const float *b) { return memcmp(a, b, ALL * sizeof *a) == 0; }

static void check_unchanged(const qsae_edit *list, size_t n, int line)
{
    float *got = run(list, n);
    test_check(same(got, PLAIN), __FILE__, line, "nothing changes");
    free(got);
}

/* Rows of one site that differ from the run without edits, as bits. */
static unsigned changed_rows(float *all, int layer, int site)
{
    unsigned bits = 0;
    size_t w = width_of(site);
    for (size_t r = 0; r < N; r++)
        if (memcmp(rows_at(all, layer, site) + r * w, rows_at(PLAIN, layer, site) + r * w, w * sizeof *all) != 0)
            bits |= 1u << r;
    return bits;
}

static unsigned changed_by(const qsae_edit *list, size_t n, int layer, int site)
{
    float *got = run(list, n);
    unsigned bits = changed_rows(got, layer, site);
    free(got);
    return bits;
}

/* ---- what encode says of the captured rows ---- */

typedef struct reading {
    float f[N][MAX_SAE];
    double scale[N]; /* of the decoder row, under a per-token norm */
} reading;

static double row_scale(const tiny_sae *s, const float *x)
{
    double sum = 0, squares = 0, n = s->d_in;
    if (s->site_in != s->site_out || s->norm == QSAE_NORM_NONE) return 1;
    for (uint32_t j = 0; j < s->d_in; j++) sum += (double)x[j];
    for (uint32_t j = 0; j < s->d_in; j++) {
        double v = (double)x[j] - (s->norm == QSAE_NORM_LAYER ? sum / n : 0);
        squares += v * v;
    }
    return sqrt(squares / (s->norm == QSAE_NORM_LAYER ? n - 1 : n));
}

/* Encodes rows [n, d_in] and returns dense features. */
static void encode_rows(const qsae_sae *sae, size_t d_sae, const float *x, size_t n, float f[][MAX_SAE])
{
    static uint32_t index[N * MAX_SAE];
    static float value[N * MAX_SAE];
    size_t start[N + 1], need = qsae_sae_scratch_size(sae, n);
    char *scratch = tiny_alloc(need);
    qsae_rows rows = {0, start, index, value, N * MAX_SAE, 0};
    CHECK(d_sae <= MAX_SAE && qsae_sae_encode(sae, x, n, 0, &rows, scratch, need, 1, NULL) == QSAE_OK);
    memset(f[0], 0, n * sizeof f[0]);
    for (size_t r = 0; r < n; r++)
        for (size_t e = start[r]; e < start[r + 1]; e++) f[r][index[e]] = value[e];
    free(scratch);
}

static reading read_features(int i)
{
    reading r;
    const tiny_sae *s = &SAES[i];
    float *x = rows_at(PLAIN, (int)s->layer_in, (int)s->site_in);
    encode_rows(W.sae[i], s->d_sae, x, N, r.f);
    for (size_t t = 0; t < N; t++) r.scale[t] = row_scale(s, x + t * s->d_in);
    return r;
}

/* A feature that fires on some rows and not on others. */
static uint32_t mixed_feature(int i, const reading *r)
{
    uint32_t best = 0;
    int most = -1;
    for (uint32_t f = 0; f < SAES[i].d_sae; f++) {
        int on = 0;
        for (size_t t = 0; t < N; t++) on += r->f[t][f] > 0;
        int worth = on < N - on ? on : N - on;
        if (worth > most) most = worth, best = f;
    }
    CHECK(most > 0);
    return best;
}

/* ---- the reference: edits of one site on one row, in double ---- */

typedef struct model_row {
    double h[MAX_W], current[MAX_SAE];
    double size; /* largest number that came in: the measure of rounding */
} model_row;

static double edited(const qsae_edit *e, double a)
{
    double x = (double)e->value;
    switch (e->kind) {
    case QSAE_FEATURE_ADD: return a + x;
    case QSAE_FEATURE_SET: return x;
    case QSAE_FEATURE_SCALE: return a * x;
    case QSAE_FEATURE_MIN: return a < x ? x : a;
    case QSAE_FEATURE_MAX: return a > x ? x : a;
    default: return a;
    }
}

static void add_to(model_row *m, size_t w, double c, const float *v)
{
    for (size_t j = 0; j < w; j++) {
        m->h[j] += c * (double)v[j];
        if (fabs(c * (double)v[j]) > m->size) m->size = fabs(c * (double)v[j]);
        if (fabs(m->h[j]) > m->size) m->size = fabs(m->h[j]);
    }
}

static void apply(model_row *m, const qsae_edit *e, size_t w, double scale)
{
    double c = (double)e->strength, vh = 0, vv = 0;
    if (e->kind == QSAE_ADD) {
        add_to(m, w, c, e->vector);
    } else if (e->kind == QSAE_PROJECT_OUT) {
        for (size_t j = 0; j < w; j++) vh += (double)e->vector[j] * m->h[j],
            vv += (double)e->vector[j] * (double)e->vector[j];
        add_to(m, w, vv > 0 ? -c * vh / vv : 0, e->vector);
    } else if (e->kind == QSAE_REPLACE) {
        for (size_t j = 0; j < w; j++) m->h[j] += c * ((double)e->vector[j] - m->h[j]);
    } else {
        float d[MAX_W];
        CHECK(qsae_sae_feature(e->sae, e->feature, NULL, d, NULL, NULL, NULL) == QSAE_OK);
        double change = c * (edited(e, m->current[e->feature]) - m->current[e->feature]);
        m->current[e->feature] += change;
        add_to(m, w, change * scale, d);
    }
}

/* Edits of SAE i (and vector edits at the place it writes) against the captured rows. Rows out of an edit's
 * positions keep their bits. */
static void check_against_model(int i, const reading *r, const qsae_edit *list, size_t n)
{
    const tiny_sae *s = &SAES[i];
    int layer = (int)s->layer_out, site = (int)s->site_out;
    size_t w = width_of(site);
    float *got = run(list, n);
    for (size_t t = 0; t < N; t++) {
        const float *h = rows_at(PLAIN, layer, site) + t * w, *g = rows_at(got, layer, site) + t * w;
        model_row m;
        memset(&m, 0, sizeof m);
        add_to(&m, w, 1, h);
        for (uint32_t f = 0; f < s->d_sae; f++) m.current[f] = (double)r->f[t][f];
        int touched = 0;
        for (size_t k = 0; k < n; k++) {
            int32_t p = (int32_t)t;
            if (p < list[k].pos_begin || (list[k].pos_end && p >= list[k].pos_end)) continue;
            apply(&m, &list[k], w, r->scale[t]);
            touched = 1;
        }
        double worst = 0;
        for (size_t j = 0; j < w; j++) worst = fmax(worst, fabs((double)g[j] - m.h[j]));
        if (!CHECK(worst <= 3e-6 * m.size))
            fprintf(stderr, "    sae %d, row %zu, first kind %d: off by %g of %g\n", i, t, (int)list->kind,
                worst, m.size);
        if (!touched) CHECK(memcmp(g, h, w * sizeof *g) == 0);
    }
    /* nothing before the written site moves */
    for (int l = 0; l <= layer; l++)
        for (int q = 0; q < (l < layer ? QSAE_SITE_COUNT : site); q++) CHECK(changed_rows(got, l, q) == 0);
    free(got);
}

/* ---- 1: what must change nothing ---- */

static qsae_edit vector_edit(qsae_edit_kind kind, float strength, qsae_site site, int layer, const float *v)
{
    qsae_edit e;
    memset(&e, 0, sizeof e);
    e.kind = kind, e.strength = strength, e.site = site, e.layer = layer, e.vector = v;
    return e;
}

static void check_no_change(void)
{
    check_unchanged(NULL, 0, __LINE__);
    for (int i = 0; i < N_SAES; i++) {
        for (int kind = QSAE_ADD; kind <= QSAE_SAE_REPLACE; kind++) {
            qsae_edit e = qsae_edit_feature(W.sae[i], 3, (qsae_edit_kind)kind, 2.5f);
            e.site = (qsae_site)SAES[i].site_out, e.layer = (int)SAES[i].layer_out, e.vector = vec[0];
            e.strength = 0;
            check_unchanged(&e, 1, __LINE__);
            e.strength = -0.0f;
            check_unchanged(&e, 1, __LINE__);
            e.strength = 1, e.pos_begin = e.pos_end = 5;
            check_unchanged(&e, 1, __LINE__);
            e.pos_begin = N, e.pos_end = QSAE_END;
            check_unchanged(&e, 1, __LINE__);
        }
        reading r = read_features(i);
        qsae_edit none[4] = {qsae_edit_feature(W.sae[i], mixed_feature(i, &r), QSAE_FEATURE_SCALE, 1),
                             qsae_edit_feature(W.sae[i], mixed_feature(i, &r), QSAE_FEATURE_ADD, 0),
                             qsae_edit_feature(W.sae[i], mixed_feature(i, &r), QSAE_FEATURE_MIN, 0),
                             qsae_edit_feature(W.sae[i], mixed_feature(i, &r), QSAE_FEATURE_MAX, 1e30f)};
        check_unchanged(none, 4, __LINE__);
        for (int k = 0; k < 4; k++) none[k].strength = 0.3f;
        check_unchanged(none, 4, __LINE__);
    }
}

/* SET, and MIN and MAX, to the very value that encode reports, on the row where it is: not a bit moves. */
static void check_set_current(void)
{
    for (int i = 0; i < N_SAES; i++) {
        reading r = read_features(i);
        uint32_t f = mixed_feature(i, &r);
        qsae_edit list[3 * N];
        size_t n = 0;
        for (int32_t t = 0; t < N; t++)
            for (int k = 0; k < 3; k++) {
                static const qsae_edit_kind kinds[] = {QSAE_FEATURE_SET, QSAE_FEATURE_MIN, QSAE_FEATURE_MAX};
                list[n] = qsae_edit_feature(W.sae[i], f, kinds[k], r.f[t][f]);
                list[n].pos_begin = t, list[n++].pos_end = t + 1;
            }
        check_unchanged(list, n, __LINE__);
    }
}

/* "A change of 0 leaves the row's bits alone": the sign of a zero is a bit. */
static void check_negative_zero(void)
{
    float zero[MAX_W], negative[MAX_W];
    for (int j = 0; j < MAX_W; j++) zero[j] = 0, negative[j] = -0.0f;
    qsae_edit list[2];
    list[0] = vector_edit(QSAE_REPLACE, 1, QSAE_RESID_POST, 1, negative);
    float *want = run(list, 1);
    for (int j = 0; j < D; j++) CHECK(signbit(rows_at(want, 1, QSAE_RESID_POST)[j]));
    for (int k = 0; k < 6; k++) {
        list[1] = k == 0   ? vector_edit(QSAE_ADD, 1, QSAE_RESID_POST, 1, zero)
                  : k == 1 ? vector_edit(QSAE_PROJECT_OUT, 1, QSAE_RESID_POST, 1, zero)
                  : k == 2 ? vector_edit(QSAE_PROJECT_OUT, 1, QSAE_RESID_POST, 1, vec[0])
                  : k == 3 ? vector_edit(QSAE_REPLACE, 0.5f, QSAE_RESID_POST, 1, negative)
                  : k == 4 ? qsae_edit_feature(W.sae[0], 1, QSAE_FEATURE_ADD, 0)
                           : qsae_edit_feature(W.sae[1], 1, QSAE_FEATURE_SCALE, 1);
        float *got = run(list, 2);
        if (!CHECK(same(got, want))) fprintf(stderr, "    case %d\n", k);
        free(got);
    }
    free(want);
}

/* ---- 2: each kind, one edit ---- */

static void check_kinds(void)
{
    static const struct { qsae_edit_kind kind; float value; } how[] = {
        {QSAE_FEATURE_ADD, 1.5f},   {QSAE_FEATURE_ADD, -2},   {QSAE_FEATURE_SET, 3},   {QSAE_FEATURE_SET, 0},
        {QSAE_FEATURE_SET, -1},     {QSAE_FEATURE_SCALE, 0},  {QSAE_FEATURE_SCALE, 4}, {QSAE_FEATURE_SCALE, -0.5f},
        {QSAE_FEATURE_MIN, 0.4f},   {QSAE_FEATURE_MIN, 10},   {QSAE_FEATURE_MAX, 0.4f}, {QSAE_FEATURE_MAX, 0},
    };
    static const float strengths[] = {1, 0.5f, -0.3f, 2};
    for (int i = 0; i < N_SAES; i++) {
        reading r = read_features(i);
        uint32_t f = mixed_feature(i, &r);
        for (size_t h = 0; h < sizeof how / sizeof *how; h++) {
            qsae_edit e = qsae_edit_feature(W.sae[i], f, how[h].kind, how[h].value);
            e.strength = strengths[(h + (size_t)i) % 4];
            check_against_model(i, &r, &e, 1);
            e.strength = 1, e.pos_begin = 3, e.pos_end = 9;
            check_against_model(i, &r, &e, 1);
        }
    }
}

/* MIN and MAX leave rows alone that are already there. */
static void check_min_max(void)
{
    reading r = read_features(0);
    uint32_t f = mixed_feature(0, &r);
    unsigned below = 0, above = 0;
    for (size_t t = 0; t < N; t++) {
        below |= r.f[t][f] < 0.3f ? 1u << t : 0;
        above |= r.f[t][f] > 0.3f ? 1u << t : 0;
    }
    CHECK(below && above);
    qsae_edit e = qsae_edit_feature(W.sae[0], f, QSAE_FEATURE_MIN, 0.3f);
    CHECK(changed_by(&e, 1, 1, QSAE_RESID_POST) == below);
    e.kind = QSAE_FEATURE_MAX;
    CHECK(changed_by(&e, 1, 1, QSAE_RESID_POST) == above);
    e.kind = QSAE_FEATURE_SCALE, e.value = 0; /* ablation: what was off stays to the bit */
    unsigned on = 0;
    for (size_t t = 0; t < N; t++) on |= r.f[t][f] > 0 ? 1u << t : 0;
    CHECK(changed_by(&e, 1, 1, QSAE_RESID_POST) == on);
}

/* ---- 3: many edits, in list order ---- */

/* largest difference of one site's rows between two runs */
static double distance(float *a, float *b, int layer, int site)
{
    double worst = 0;
    for (size_t j = 0; j < N * width_of(site); j++)
        worst = fmax(worst, fabs((double)rows_at(a, layer, site)[j] - (double)rows_at(b, layer, site)[j]));
    return worst;
}

static int pick(uint64_t *seed, int n) { return (int)((tiny_uniform(seed) + 1) / 2 * n) % n; }

static qsae_edit random_edit(int i, const reading *r, uint64_t *seed)
{
    static const qsae_edit_kind kinds[] = {QSAE_FEATURE_ADD, QSAE_FEATURE_SET, QSAE_FEATURE_SCALE, QSAE_FEATURE_MIN,
                                           QSAE_FEATURE_MAX, QSAE_ADD, QSAE_PROJECT_OUT, QSAE_REPLACE};
    static const float strengths[] = {1, 1, 0.5f, -0.25f};
    uint32_t f = pick(seed, 2) ? mixed_feature(i, r) : (uint32_t)pick(seed, 3); /* few, so that they meet */
    qsae_edit_kind kind = kinds[pick(seed, 8)]; /* one draw a statement: arguments have no order */
    qsae_edit e = qsae_edit_feature(W.sae[i], f, kind, (float)(2 * tiny_uniform(seed)));
    e.strength = strengths[pick(seed, 4)];
    e.site = (qsae_site)SAES[i].site_out, e.layer = (int)SAES[i].layer_out, e.vector = vec[pick(seed, 4)];
    e.pos_begin = pick(seed, 4), e.pos_end = pick(seed, 2) ? QSAE_END : 6 + pick(seed, 8);
    return e;
}

static void check_lists(void)
{
    uint64_t seed = 77;
    for (int i = 0; i < N_SAES; i++) {
        reading r = read_features(i);
        for (int round = 0; round < 6; round++) {
            qsae_edit list[8];
            size_t n = 2 + (size_t)pick(&seed, 7);
            for (size_t k = 0; k < n; k++) list[k] = random_edit(i, &r, &seed);
            check_against_model(i, &r, list, n);
        }
    }
    /* the order is the list's: set then scale is not scale then set */
    qsae_edit a[2] = {qsae_edit_feature(W.sae[0], 4, QSAE_FEATURE_SET, 2), qsae_edit_feature(W.sae[0], 4,
        QSAE_FEATURE_SCALE, 3)};
    qsae_edit b[2] = {a[1], a[0]}, six = qsae_edit_feature(W.sae[0], 4, QSAE_FEATURE_SET, 6);
    float *ab = run(a, 2), *ba = run(b, 2), *one = run(&six, 1);
    CHECK(distance(ab, ba, 1, QSAE_RESID_POST) > 0.1);
    CHECK(distance(ab, one, 1, QSAE_RESID_POST) < 1e-4);
    free(ab);
    free(ba);
    free(one);
}

/* ---- 4: reconstruction ---- */

static void decode_rows(int i, const float *x, size_t n, float *y)
{
    static uint32_t index[N * MAX_SAE];
    static float value[N * MAX_SAE];
    size_t start[N + 1], need = qsae_sae_scratch_size(W.sae[i], n);
    char *scratch = tiny_alloc(need);
    qsae_rows rows = {0, start, index, value, N * MAX_SAE, 0};
    CHECK(qsae_sae_encode(W.sae[i], x, n, 0, &rows, scratch, need, 1, NULL) == QSAE_OK);
    CHECK(qsae_sae_decode(W.sae[i], &rows, x, 0, y, scratch, need, 1, NULL) == QSAE_OK);
    free(scratch);
}

static void check_sae_replace(void)
{
    for (int i = 0; i < N_SAES; i++) {
        const tiny_sae *s = &SAES[i];
        int layer = (int)s->layer_out, site = (int)s->site_out;
        size_t w = width_of(site);
        float want[N * MAX_W];
        decode_rows(i, rows_at(PLAIN, (int)s->layer_in, (int)s->site_in), N, want);
        qsae_edit e = qsae_edit_feature(W.sae[i], 0, QSAE_SAE_REPLACE, 0);
        float *got = run(&e, 1);
        CHECK(memcmp(rows_at(got, layer, site), want, N * w * sizeof *want) == 0);
        free(got);
        e.pos_begin = 4, e.pos_end = 11, e.strength = 0.25f;
        got = run(&e, 1);
        double worst = 0, size = 0;
        for (size_t t = 4; t < 11; t++)
            for (size_t j = 0; j < w; j++) {
                double h = (double)rows_at(PLAIN, layer, site)[t * w + j], y = (double)want[t * w + j];
                worst = fmax(worst, fabs((double)rows_at(got, layer, site)[t * w + j] - (h + 0.25 * (y - h))));
                size = fmax(size, fmax(fabs(h), fabs(y)));
            }
        CHECK(worst <= 1e-6 * size);
        CHECK(changed_rows(got, layer, site) == 0x7f0u);
        free(got);
    }
    /* of the row as the edits before it left it; and what comes after acts on the reconstruction */
    qsae_edit list[3] = {vector_edit(QSAE_REPLACE, 1, QSAE_RESID_POST, 1, vec[1]), qsae_edit_feature(W.sae[0],
        0, QSAE_SAE_REPLACE, 0),
                         vector_edit(QSAE_ADD, 1, QSAE_RESID_POST, 1, vec[2])};
    float want[D], *got = run(list, 3);
    decode_rows(0, vec[1], 1, want);
    for (int j = 0; j < D; j++) want[j] += vec[2][j];
    for (size_t t = 0; t < N; t++) CHECK(memcmp(rows_at(got, 1, QSAE_RESID_POST) + t * D, want, sizeof want) == 0);
    free(got);
}

/* ---- 5: vector kinds ---- */

static double dot(const float *a, const float *b, size_t n)
{
    double s = 0;
    for (size_t j = 0; j < n; j++) s += (double)a[j] * (double)b[j];
    return s;
}

static void check_vectors_at(int layer, int site)
{
    size_t w = width_of(site);
    qsae_edit list[2];
    list[0] = vector_edit(QSAE_REPLACE, 1, (qsae_site)site, layer, vec[0]);
    float *got = run(list, 1), *again;
    for (size_t t = 0; t < N; t++) CHECK(memcmp(rows_at(got, layer, site) + t * w, vec[0], w * sizeof *got) == 0);
    free(got);
    list[0] = vector_edit(QSAE_ADD, 1.5f, (qsae_site)site, layer, vec[1]);
    list[1] = vector_edit(QSAE_ADD, -1.5f, (qsae_site)site, layer, vec[1]);
    got = run(list, 2);
    CHECK(distance(got, PLAIN, layer, site) < 2e-6);
    free(got);
    list[0] = list[1] = vector_edit(QSAE_PROJECT_OUT, 1, (qsae_site)site, layer, vec[2]);
    got = run(list, 1);
    again = run(list, 2);
    CHECK(changed_rows(got, layer, site) == (1u << N) - 1);
    for (size_t t = 0; t < N; t++) {
        const float *h = rows_at(got, layer, site) + t * w;
        CHECK(fabs(dot(h, vec[2], w)) < 1e-5 * sqrt(dot(h, h, w) * dot(vec[2], vec[2], w)));
    }
    CHECK(distance(got, again, layer, site) < 2e-6);
    free(again);
    /* the direction matters, not the length: a direction far from 1 is one, too */
    static const int powers[] = {-100, -70, -20, 20, 60, 100};
    for (int k = 0; k < 6; k++) {
        float scaled[MAX_W];
        for (size_t j = 0; j < w; j++) scaled[j] = ldexpf(vec[2][j], powers[k]);
        list[0].vector = scaled;
        again = run(list, 1);
        if (!CHECK(distance(got, again, layer, site) < 1e-5)) fprintf(stderr, "    vector times 2^%d\n", powers[k]);
        free(again);
    }
    free(got);
}

/* ---- 6: gates ---- */

static unsigned rows_above(const reading *r, uint32_t f, float threshold)
{
    unsigned bits = 0;
    for (size_t t = 0; t < N; t++) bits |= r->f[t][f] > threshold ? 1u << t : 0;
    return bits;
}

static void check_feature_gates(void)
{
    for (int i = 0; i < N_SAES; i++) {
        reading r = read_features(i);
        uint32_t f = mixed_feature(i, &r);
        float most = 0;
        for (size_t t = 0; t < N; t++) most = r.f[t][f] > most ? r.f[t][f] : most;
        qsae_edit e = vector_edit(QSAE_ADD, 2, QSAE_RESID_POST, 2, vec[0]); /* after every site that is read */
        e.gate.sae = W.sae[i], e.gate.feature = f;
        e.gate.threshold = most; /* strictly above: the largest itself does not open it */
        check_unchanged(&e, 1, __LINE__);
        e.gate.threshold = 0;
        CHECK(changed_by(&e, 1, 2, QSAE_RESID_POST) == rows_above(&r, f, 0));
        e.gate.threshold = most / 2;
        CHECK(changed_by(&e, 1, 2, QSAE_RESID_POST) == rows_above(&r, f, most / 2));
        e.gate.threshold = -1;
        CHECK(changed_by(&e, 1, 2, QSAE_RESID_POST) == (1u << N) - 1);
        e.gate.threshold = 0, e.pos_begin = 5, e.pos_end = 10; /* both conditions */
        CHECK(changed_by(&e, 1, 2, QSAE_RESID_POST) == (rows_above(&r, f, 0) & 0x3e0u));
    }
}

static void check_probe_gates(void)
{
    for (int site = 0; site < QSAE_SITE_COUNT; site++) {
        size_t w = width_of(site);
        float *h = rows_at(PLAIN, 1, site);
        double value[N], middle, low = INFINITY, high = -INFINITY;
        unsigned want = 0;
        for (size_t t = 0; t < N; t++) {
            value[t] = dot(h + t * w, vec[3], w);
            low = fmin(low, value[t]), high = fmax(high, value[t]);
        }
        middle = (low + high) / 2;
        for (size_t t = 0; t < N; t++) want |= value[t] > middle ? 1u << t : 0;
        qsae_edit e = qsae_edit_feature(W.sae[5], 7, QSAE_FEATURE_ADD, 3); /* mlp_out of layer 2 */
        e.gate.probe = vec[3], e.gate.site = (qsae_site)site, e.gate.layer = 1, e.gate.threshold = (float)middle;
        CHECK(want != 0 && want != (1u << N) - 1);
        CHECK(changed_by(&e, 1, 2, QSAE_MLP_OUT) == want);
        e.gate.threshold = (float)high + 1e-3f;
        check_unchanged(&e, 1, __LINE__);
        e.gate.threshold = (float)low - 1e-3f;
        CHECK(changed_by(&e, 1, 2, QSAE_MLP_OUT) == (1u << N) - 1);
    }
}

/* A gate reads its site before any edit of that site acts, also one of the same feature. */
static void check_gate_reads_first(void)
{
    reading r = read_features(0);
    uint32_t f = mixed_feature(0, &r);
    unsigned on = rows_above(&r, f, 0);
    float zero[MAX_W] = {0};
    for (int how = 0; how < 3; how++) {
        qsae_edit list[2];
        list[0] = how == 0   ? vector_edit(QSAE_REPLACE, 1, QSAE_RESID_POST, 1, zero)
                  : how == 1 ? qsae_edit_feature(W.sae[0], f, QSAE_FEATURE_SET, 0)
                             : qsae_edit_feature(W.sae[0], f, QSAE_FEATURE_SET, 5);
        list[1] = vector_edit(QSAE_ADD, 1, QSAE_RESID_POST, 1, vec[0]);
        list[1].gate.sae = W.sae[0], list[1].gate.feature = f;
        float *one = run(list, 1), *both = run(list, 2);
        unsigned added = 0;
        for (size_t t = 0; t < N; t++)
            if (memcmp(rows_at(one, 1, QSAE_RESID_POST) + t * D, rows_at(both, 1, QSAE_RESID_POST) + t * D,
                       D * sizeof *one) != 0)
                added |= 1u << t;
        CHECK(added == on);
        free(one);
        free(both);
    }
    /* but it sees what an edit of an earlier site did: the row is zero at layer 0, so the probe reads 0 */
    qsae_edit list[2] = {vector_edit(QSAE_REPLACE, 1, QSAE_MLP_OUT, 1, zero), vector_edit(QSAE_REPLACE, 1,
        QSAE_RESID_MID, 1, zero)};
    qsae_edit gated = vector_edit(QSAE_ADD, 1, QSAE_RESID_POST, 1, vec[0]);
    gated.gate.probe = vec[3], gated.gate.site = QSAE_RESID_POST, gated.gate.layer = 1, gated.gate.threshold = 1e-6f;
    qsae_edit three[3] = {list[0], list[1], gated};
    float *a = run(list, 2), *b = run(three, 3);
    CHECK(same(a, b));
    three[2].gate.threshold = -1e-6f;
    free(b);
    b = run(three, 3);
    for (size_t t = 0; t < N; t++) CHECK(memcmp(rows_at(b, 1, QSAE_RESID_POST) + t * D, vec[0], D * 4) == 0);
    free(a);
    free(b);
}

/* ---- 7: decoding ---- */

static void check_decoding(void)
{
    reading r = read_features(0);
    qsae_edit e = qsae_edit_feature(W.sae[0], mixed_feature(0, &r), QSAE_FEATURE_SET, 8);
    const int32_t prompt = 6;
    e.pos_begin = prompt;
    qsae_ctx *c = new_ctx(&W, 64, 1);
    set_edits(c, &e, 1);
    CHECK(qsae_eval(c, ids, (size_t)prompt, NULL) == QSAE_OK);
    float *plain = rows_at(PLAIN, 0, QSAE_LOGITS);
    CHECK(memcmp(qsae_logits(c), plain + (prompt - 1) * VOCAB, VOCAB * 4) == 0);
    CHECK(qsae_eval(c, ids + prompt, 1, NULL) == QSAE_OK); /* the second decoded token comes from these */
    CHECK(memcmp(qsae_logits(c), plain + prompt * VOCAB, VOCAB * 4) != 0);
    /* the cache remembers: with the edit gone, the next token still sees the steered one */
    set_edits(c, NULL, 0);
    CHECK(qsae_eval(c, ids + prompt + 1, 1, NULL) == QSAE_OK);
    CHECK(memcmp(qsae_logits(c), plain + (prompt + 1) * VOCAB, VOCAB * 4) != 0);
    /* and rewinding undoes */
    CHECK(qsae_ctx_rewind(c, prompt, NULL) == QSAE_OK && qsae_eval(c, ids + prompt, 2, NULL) == QSAE_OK);
    CHECK(memcmp(qsae_logits(c), plain + (prompt + 1) * VOCAB, VOCAB * 4) == 0);
    qsae_ctx_destroy(c);
}

/* ---- 8: an edit is what a hook could do ---- */

typedef struct by_hand {
    const qsae_edit *e;
    int sae;
    int wrong;
} by_hand;

static int do_by_hand(void *user, const qsae_event *ev, float *rows)
{
    by_hand *b = user;
    const qsae_edit *e = b->e;
    float f[1][MAX_SAE], d[MAX_W];
    for (size_t r = 0; r < ev->n_rows; r++) {
        float *h = rows + r * ev->ld;
        if (e->kind == QSAE_ADD)
            for (size_t j = 0; j < ev->width; j++) h[j] = h[j] + e->vector[j];
        else if (e->kind == QSAE_REPLACE)
            memcpy(h, e->vector, ev->width * sizeof *h);
        else if (e->kind == QSAE_SAE_REPLACE) {
            float y[MAX_W];
            decode_rows(b->sae, h, 1, y);
            memcpy(h, y, ev->width * sizeof *h);
        } else {
            encode_rows(W.sae[b->sae], SAES[b->sae].d_sae, h, 1, f);
            if (qsae_sae_feature(W.sae[b->sae], e->feature, NULL, d, NULL, NULL, NULL)) b->wrong++;
            float a = f[0][e->feature], scale = (float)row_scale(&SAES[b->sae], h);
            float change = ((float)edited(e, (double)a) - a) * scale;
            for (size_t j = 0; change != 0 && j < ev->width; j++) h[j] = fmaf(change, d[j], h[j]);
        }
    }
    return 0;
}

static void check_hook_equals(int sae, qsae_edit e, int exact)
{
    by_hand b = {&e, sae, 0};
    int layer = (int)SAES[sae].layer_out, site = (int)SAES[sae].site_out;
    qsae_hook h = {do_by_hand, &b, 1u << site, layer, layer + 1};
    e.site = (qsae_site)site, e.layer = layer, e.vector = vec[1];
    float *data = run(&e, 1), *hook = run_how(&W, NULL, 0, &h, N, 5, 1);
    CHECK(b.wrong == 0 && !same(data, PLAIN));
    if (exact) CHECK(same(data, hook));
    else CHECK(distance(data, hook, layer, site) < 1e-5);
    free(data);
    free(hook);
}

static void check_hooks(void)
{
    for (int i = 0; i < 6; i++) { /* those that write where they read */
        reading r = read_features(i);
        uint32_t f = mixed_feature(i, &r);
        int exact = SAES[i].norm == QSAE_NORM_NONE; /* with a norm the hook's own scale rounds otherwise */
        check_hook_equals(i, qsae_edit_feature(W.sae[i], f, QSAE_ADD, 0), 1);
        check_hook_equals(i, qsae_edit_feature(W.sae[i], f, QSAE_REPLACE, 0), 1);
        check_hook_equals(i, qsae_edit_feature(W.sae[i], f, QSAE_SAE_REPLACE, 0), 1);
        check_hook_equals(i, qsae_edit_feature(W.sae[i], f, QSAE_FEATURE_SET, 2), exact);
        check_hook_equals(i, qsae_edit_feature(W.sae[i], f, QSAE_FEATURE_SCALE, 0), exact);
        check_hook_equals(i, qsae_edit_feature(W.sae[i], f, QSAE_FEATURE_MIN, 1), exact);
        check_hook_equals(i, qsae_edit_feature(W.sae[i], f, QSAE_FEATURE_MAX, 0.25f), exact);
    }
}

/* Edits, then the hook, then the captures. */
static int negate(void *user, const qsae_event *ev, float *rows)
{
    int *right = user;
    for (size_t r = 0; r < ev->n_rows; r++) {
        *right += memcmp(rows + r * ev->ld, vec[0], ev->width * sizeof *rows) == 0;
        for (size_t j = 0; j < ev->width; j++) rows[r * ev->ld + j] *= -1;
    }
    return 0;
}

static void check_order(void)
{
    for (int site = 0; site < QSAE_SITE_COUNT; site++) {
        int right = 0;
        size_t w = width_of(site);
        qsae_edit e = vector_edit(QSAE_REPLACE, 1, (qsae_site)site, 2, vec[0]);
        qsae_hook h = {negate, &right, 1u << site, 2, 3};
        float *got = run_how(&W, &e, 1, &h, N, 4, 1);
        CHECK(right == N);
        int wrong = 0;
        for (size_t j = 0; j < N * w; j++) wrong += rows_at(got, 2, site)[j] != -vec[0][j % w];
        CHECK(wrong == 0);
        free(got);
    }
}

/* ---- 9: the same bits ---- */

/* Eight lists of all sorts, on the SAEs of one world. */
static size_t make_list(const world *w, int which, qsae_edit *list)
{
    uint64_t seed = 500 + (uint64_t)which;
    size_t n = which ? (size_t)which : 0;
    for (size_t k = 0; k < n; k++) {
        int i = (which + 2 * (int)k) % N_SAES;
        reading r = read_features(i);
        list[k] = random_edit(i, &r, &seed);
        list[k].sae = w->sae[i];
        if (k % 3 == 0) list[k].kind = QSAE_SAE_REPLACE, list[k].strength = k ? 0.5f : 1;
        if (k % 3 == 1 && SAES[i].layer_out == 2) {
            list[k].gate.sae = w->sae[0], list[k].gate.feature = 4;
        } else if (k % 3 == 2) {
            list[k].gate.probe = vec[3], list[k].gate.site = QSAE_RESID_PRE;
        }
    }
    return n;
}

static void check_bits(const world *w, float *const *want)
{
    static const int how[][3] = {{1, 64, 1}, {3, 64, 2}, {16, 16, 1}, {N, 3, 3}, {N, 64, 8}, {5, 1, 1}};
    for (int which = 0; which < 8; which++) {
        qsae_edit list[8];
        size_t n = make_list(w, which, list);
        for (size_t i = 0; i < sizeof how / sizeof *how; i++) {
            float *got = run_how(w, list, n, NULL, (size_t)how[i][0], how[i][1], how[i][2]);
            if (!CHECK(same(got, want[which]))) fprintf(stderr, "    list %d, way %zu\n", which, i);
            free(got);
        }
    }
}

/* Eight contexts with their lists in one pass, as one call and in steps of unequal size. */
static void check_many(const world *w, float *const *want, int n_batch)
{
    qsae_ctx *c[8];
    qsae_batch b[8];
    float *got[8];
    for (int i = 0; i < 8; i++) {
        qsae_edit list[8];
        size_t n = make_list(w, i, list);
        int batches = n_batch > 0 ? n_batch : n_batch == 0 ? 1 + 3 * i : 22 - 3 * i; /* rising, or falling */
        c[i] = new_ctx(w, batches, 1 + i % 2);
        got[i] = tiny_alloc(ALL * sizeof(float));
        set_edits(c[i], list, n);
    }
    for (int left = 8, round = 0; left > 0; round++) {
        size_t n = 0;
        for (int i = 0; i < 8; i++) {
            size_t pos = (size_t)qsae_ctx_pos(c[i]), step = round % 2 ? 1 : 1 + (size_t)(i * 5 % 11);
            qsae_batch one = {c[i], ids + pos, N - pos < step ? N - pos : step};
            if (!one.n) continue;
            capture_all(c[i], got[i], pos);
            b[n++] = one;
        }
        left = (int)n;
        CHECK(qsae_eval_many(b, n, NULL) == QSAE_OK);
    }
    for (int i = 0; i < 8; i++) {
        if (!CHECK(same(got[i], want[i]))) fprintf(stderr, "    context %d, n_batch %d\n", i, n_batch);
        qsae_ctx_destroy(c[i]);
        free(got[i]);
    }
}

static void check_same_bits(void)
{
    float *want[8];
    for (int i = 0; i < 8; i++) {
        qsae_edit list[8];
        size_t n = make_list(&W, i, list);
        want[i] = run_how(&W, list, n, NULL, 1, 1, 1);
        CHECK((i == 0) == same(want[i], PLAIN));
    }
    for (int isa = QSAE_ISA_SCALAR; isa < QSAE_ISA_COUNT; isa++) {
        if (!qsae_isa_available((qsae_isa)isa)) continue;
        world w = open_world((qsae_isa)isa);
        check_bits(&w, want);
        check_many(&w, want, 64);
        check_many(&w, want, 2);
        check_many(&w, want, 0);
        check_many(&w, want, -1);
        close_world(&w);
    }
    for (int i = 0; i < 8; i++) free(want[i]);
}

/* A copy takes the cache and leaves the lists; a rewind replays with the edits. */
static void check_copies(void)
{
    qsae_edit list[8], part[8];
    size_t n = make_list(&W, 6, list);
    qsae_ctx *a = new_ctx(&W, 64, 1), *b = new_ctx(&W, 5, 1);
    memcpy(part, list, sizeof part);
    for (size_t k = 0; k < n; k++)
        if (!part[k].pos_end || part[k].pos_end > 7) part[k].pos_end = 7;
    float *want = run(part, n), *full = run(list, n);
    set_edits(a, list, n);
    CHECK(qsae_eval(a, ids, 7, NULL) == QSAE_OK && qsae_ctx_copy(b, a, NULL) == QSAE_OK);
    CHECK(qsae_eval(b, ids + 7, N - 7, NULL) == QSAE_OK);
    CHECK(memcmp(qsae_logits(b), rows_at(want, 0, QSAE_LOGITS) + (N - 1) * VOCAB, VOCAB * 4) == 0);
    CHECK(qsae_eval(a, ids + 3, 5, NULL) == QSAE_OK && qsae_ctx_rewind(a, 4, NULL) == QSAE_OK);
    CHECK(qsae_eval(a, ids + 4, N - 4, NULL) == QSAE_OK);
    CHECK(memcmp(qsae_logits(a), rows_at(full, 0, QSAE_LOGITS) + (N - 1) * VOCAB, VOCAB * 4) == 0);
    CHECK(!same(want, full));
    free(want);
    free(full);
    qsae_ctx_destroy(a);
    qsae_ctx_destroy(b);
}

/* The caller's rounding mode changes nothing, and is what it was afterwards; nor does that of other threads. */
static void check_rounding(void)
{
#if defined(FE_UPWARD) && defined(FE_TOWARDZERO)
    static const int modes[] = {FE_UPWARD, FE_TOWARDZERO};
    qsae_edit list[8];
    size_t n = make_list(&W, 7, list);
    list[n++] = vector_edit(QSAE_PROJECT_OUT, 0.7f, QSAE_RESID_MID, 1, vec[1]);
    float *want = run(list, n);
    for (int isa = QSAE_ISA_SCALAR; isa < QSAE_ISA_COUNT; isa++) {
        if (!qsae_isa_available((qsae_isa)isa)) continue;
        world w = open_world((qsae_isa)isa);
        qsae_edit mine[8];
        (void)make_list(&w, 7, mine);
        mine[n - 1] = list[n - 1];
        for (int i = 0; i < 2; i++) {
            fesetround(modes[i]);
#if defined(_OPENMP)
#pragma omp parallel num_threads(3)
            fesetround(modes[i]);
#endif
            float *one = run_how(&w, mine, n, NULL, N, 64, 1), *three = run_how(&w, mine, n, NULL, N, 64, 3);
            int mode = fegetround();
            fesetround(FE_TONEAREST);
            CHECK(mode == modes[i] && same(one, want) && same(three, want));
            free(one);
            free(three);
        }
        close_world(&w);
    }
    free(want);
#if defined(_OPENMP)
#pragma omp parallel num_threads(3)
    fesetround(FE_TONEAREST);
#endif
#endif
}

/* ---- 10: numbers out of range ---- */

/* A row that an edit made infinite cannot be read by an SAE: an error, not a wrong feature. */
static void check_not_finite(void)
{
    float huge[MAX_W];
    for (int j = 0; j < MAX_W; j++) huge[j] = 3e38f;
    for (int i = 0; i < 4; i++) {
        qsae_edit list[3];
        list[0] = vector_edit(QSAE_ADD, 3, QSAE_RESID_PRE, 0, huge);
        list[1] = list[2] = qsae_edit_feature(W.sae[i], 1, QSAE_FEATURE_SET, 1);
        list[2].kind = QSAE_SAE_REPLACE;
        for (int k = 1; k <= 2; k++) {
            qsae_edit two[2] = {list[0], list[k]};
            qsae_ctx *c = new_ctx(&W, 8, 1);
            qsae_error e;
            CHECK(qsae_eval(c, ids, 2, NULL) == QSAE_OK);
            set_edits(c, two, 2);
            CHECK(qsae_eval(c, ids + 2, 3, &e) == QSAE_E_NUM && strstr(e.text, "finite"));
            CHECK(qsae_ctx_pos(c) == 2);
            set_edits(c, NULL, 0);
            CHECK(qsae_eval(c, ids + 2, N - 2, NULL) == QSAE_OK);
            CHECK(memcmp(qsae_logits(c), rows_at(PLAIN, 0, QSAE_LOGITS) + (N - 1) * VOCAB, VOCAB * 4) == 0);
            qsae_ctx_destroy(c);
        }
    }
}

static void make_everything(void)
{
    uint64_t seed = 12;
    model_image = tiny_model(&SHAPE, 11, &model_size);
    for (int i = 0; i < N_SAES; i++) sae_image[i] = tiny_sae_file(&SAES[i], 20 + (uint64_t)i, &sae_size[i]);
    for (int i = 0; i < N_CTX; i++) ids[i] = pick(&seed, VOCAB);
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < MAX_W; j++) vec[i][j] = (float)tiny_uniform(&seed);
    W = open_world(QSAE_ISA_SCALAR);
    PLAIN = run_how(&W, NULL, 0, NULL, 1, 1, 1);
}

int main(void)
{
    make_everything();
    check_no_change();
    check_set_current();
    check_kinds();
    check_min_max();
    check_lists();
    check_sae_replace();
    for (int site = 0; site < QSAE_SITE_COUNT; site++) check_vectors_at(site % LAYERS, site);
    check_feature_gates();
    check_probe_gates();
    check_gate_reads_first();
    check_decoding();
    check_hooks();
    check_order();
    check_same_bits();
    check_copies();
    check_rounding();
    check_not_finite();
    check_negative_zero();
    close_world(&W);
    free(PLAIN);
    free(model_image);
    for (int i = 0; i < N_SAES; i++) free(sae_image[i]);
    return test_done("test_edits");
}
