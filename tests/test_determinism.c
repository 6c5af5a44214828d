/* The signature of the library: the same bits whatever the instruction set, threads, chunks, companions in the
 * pass, copies and rewinds. Everything is compared with memcmp against one reference run of the portable
 * kernels, token by token, one thread; and that run against a checksum made on x86-64, so that another
 * architecture must give the same bits too. */

#include "test.h"
#include "tiny.h"

#include <math.h>

/* more than two attention tiles in the second shape; the others are short to be quick under emulation */
static int N_TOKENS, N_CTX;
enum { MAX_TOKENS = 300 };

typedef struct run {
    float *rows; /* every site of every layer, then logits; [N_TOKENS, width] each */
    size_t n;    /* floats */
} run;

static void fill_tokens(int32_t *ids, uint32_t vocab, uint64_t seed)
{
    for (int i = 0; i < N_TOKENS; i++) {
        double u = (tiny_uniform(&seed) + 1) / 2;
        ids[i] = (int32_t)(u * vocab) % (int32_t)vocab;
    }
}

/* Captures for all sites and the logits of N_TOKENS rows, into r->rows, starting at row `first`. */
static size_t make_captures(const qsae_model *m, const tiny_shape *s, float *rows, int first, qsae_capture *c)
{
    size_t n = 0, at = 0;
    for (int32_t l = 0; l < (int32_t)s->n_layers; l++)
        for (int site = 0; site <= QSAE_LOGITS; site++) {
            if (site == QSAE_LOGITS && l) continue;
            size_t w = qsae_site_width(m, (qsae_site)site);
            qsae_capture one = {(qsae_site)site, l, rows + at + (size_t)first * w,
                                (size_t)(N_TOKENS - first)};
            c[n++] = one;
            at += w * (size_t)N_TOKENS;
        }
    return n;
}

static size_t run_floats(const qsae_model *m, const tiny_shape *s)
{
    size_t w = qsae_site_width(m, QSAE_LOGITS);
    for (int site = 0; site < QSAE_SITE_COUNT; site++) w += s->n_layers * qsae_site_width(m, (qsae_site)site);
    return w * (size_t)N_TOKENS;
}

/* Evaluates in calls of `call` tokens with n_batch and n_threads, capturing everything. */
static run run_model(const qsae_model *m, const tiny_shape *s, const int32_t *ids, int call, int n_batch,
                     int n_threads, qsae_kv_type kv)
{
    qsae_error e;
    run r = {NULL, run_floats(m, s)};
    r.rows = calloc(r.n, sizeof(float));
    qsae_ctx_options o = {N_CTX, n_batch, n_threads, {NULL, NULL, NULL}, kv, 0};
    qsae_ctx *c = NULL;
    qsae_capture caps[200];
    CHECK(qsae_ctx_create(m, &o, &c, &e) == QSAE_OK);
    for (int i = 0; i < N_TOKENS; i += call) {
        size_t n = (size_t)(N_TOKENS - i < call ? N_TOKENS - i : call);
        size_t k = make_captures(m, s, r.rows, i, caps);
        CHECK(qsae_set_captures(c, caps, k, &e) == QSAE_OK);
        CHECK(qsae_eval(c, ids + i, n, &e) == QSAE_OK);
    }
    qsae_ctx_destroy(c);
    return r;
}

static int same(run a, run b) { return a.n == b.n && memcmp(a.rows, b.rows, a.n * sizeof(float)) == 0; }

/* Alone or beside seven others, with other tokens, lengths and n_batch. */
static void check_many(const qsae_model *m, const tiny_shape *s, const int32_t *ids, run want)
{
    qsae_error e;
    enum { N = 8 };
    qsae_ctx *c[N];
    qsae_batch b[N];
    int32_t other[N][MAX_TOKENS];
    qsae_capture caps[200];
    run r = {calloc(want.n, sizeof(float)), want.n};
    for (int place = 0; place < N; place += 3) {
        memset(r.rows, 0, r.n * sizeof(float));
        for (int i = 0; i < N; i++) {
            qsae_kv_type kv = i == place ? QSAE_KV_F32 : (qsae_kv_type)(i % QSAE_KV_COUNT);
            qsae_ctx_options o = {N_CTX, 1 + 5 * i, 1 + i % 3, {NULL, NULL, NULL}, kv, 0};
            CHECK(qsae_ctx_create(m, &o, &c[i], &e) == QSAE_OK);
            fill_tokens(other[i], s->vocab_size, 100 + (uint64_t)i);
            b[i].ctx = c[i];
            b[i].tokens = i == place ? ids : other[i];
            b[i].n = i == place ? (size_t)N_TOKENS : (size_t)(i * 9 % 71);
        }
        size_t k = make_captures(m, s, r.rows, 0, caps);
        CHECK(qsae_set_captures(c[place], caps, k, &e) == QSAE_OK);
        CHECK(qsae_eval_many(b, N, &e) == QSAE_OK);
        CHECK(same(r, want));
        for (int i = 0; i < N; i++) {
            CHECK(qsae_ctx_pos(c[i]) == (int32_t)b[i].n);
            CHECK((qsae_logits(c[i]) != NULL) == (b[i].n > 0));
            qsae_ctx_destroy(c[i]);
        }
    }
    free(r.rows);
}

/* Copy into a context of another size, rewind, and go on. */
static void check_copy_rewind(const qsae_model *m, const tiny_shape *s, const int32_t *ids, run want)
{
    qsae_error e;
    qsae_ctx_options small = {N_CTX, 16, 1, {NULL, NULL, NULL}, QSAE_KV_F32, 0}, large = {3 * N_CTX + 1, 7, 1, {NULL, NULL, NULL}, QSAE_KV_F32, 0};
    qsae_ctx *a = NULL, *b = NULL;
    int32_t noise[20];
    const float *last = want.rows; /* find the last logits row: logits follow layer 0's sites */
    for (int site = 0; site < QSAE_SITE_COUNT; site++) last += (size_t)N_TOKENS * qsae_site_width(m, (qsae_site)site);
    last += (size_t)(N_TOKENS - 1) * qsae_site_width(m, QSAE_LOGITS);
    size_t bytes = qsae_site_width(m, QSAE_LOGITS) * sizeof(float);
    for (int i = 0; i < 20; i++) noise[i] = i % (int32_t)s->vocab_size;
    CHECK(qsae_ctx_create(m, &small, &a, &e) == QSAE_OK);
    CHECK(qsae_ctx_create(m, &large, &b, &e) == QSAE_OK);
    CHECK(qsae_eval(a, ids, 37, &e) == QSAE_OK);
    CHECK(qsae_eval(b, noise, 20, &e) == QSAE_OK);
    CHECK(qsae_ctx_copy(b, a, &e) == QSAE_OK);
    CHECK(qsae_ctx_pos(b) == 37 && memcmp(qsae_ctx_tokens(b), ids, 37 * 4) == 0);
    CHECK(memcmp(qsae_logits(a), qsae_logits(b), bytes) == 0);
    CHECK(qsae_eval(b, noise, 20, &e) == QSAE_OK);
    CHECK(qsae_ctx_rewind(b, 37, &e) == QSAE_OK && qsae_logits(b) == NULL);
    CHECK(qsae_eval(b, ids + 37, (size_t)N_TOKENS - 37, &e) == QSAE_OK);
    CHECK(memcmp(qsae_logits(b), last, bytes) == 0);
    CHECK(qsae_ctx_rewind(a, 5, &e) == QSAE_OK);
    CHECK(qsae_eval(a, ids + 5, (size_t)N_TOKENS - 5, &e) == QSAE_OK);
    CHECK(memcmp(qsae_logits(a), last, bytes) == 0);
    CHECK(qsae_ctx_copy(a, b, &e) == QSAE_OK && qsae_ctx_copy(a, a, &e) == QSAE_OK);
    qsae_ctx_destroy(a);
    qsae_ctx_destroy(b);
}

/* XXH64 of everything that was captured */
static uint64_t run_hash(run r)
{
    qsae_hash h;
    qsae_hash_begin(&h);
    qsae_hash_add(&h, r.rows, r.n * sizeof(float));
    return qsae_hash_end(&h);
}

/* Largest difference of two runs, and the largest value of the first. */
static double distance(run a, run b, double *largest)
{
    double d = 0;
    *largest = 0;
    for (size_t i = 0; i < a.n; i++) {
        d = fmax(d, fabs((double)a.rows[i] - (double)b.rows[i]));
        *largest = fmax(*largest, fabs((double)a.rows[i]));
    }
    return d;
}

/* A 16-bit cache: its own bits, the same for every instruction set, split and number of threads; close to f32's
 * as far as the rounding lets it be. */
static void check_narrow(const qsae_model *const *models, const tiny_shape *s, const int32_t *ids, run f32,
                         qsae_kv_type kv, uint64_t golden)
{
    static const int how[][3] = {{1, 1, 1}, {300, 64, 2}, {300, 999, 3}, {7, 3, 8}};
    run want = {NULL, 0};
    for (int isa = QSAE_ISA_SCALAR; isa < QSAE_ISA_COUNT; isa++)
        for (size_t i = 0; models[isa] && i < sizeof how / sizeof *how; i++) {
            run r = run_model(models[isa], s, ids, how[i][0], how[i][1], how[i][2], kv);
            if (!want.rows) {
                want = r;
                continue;
            }
            CHECK(same(r, want));
            free(r.rows);
        }
    double largest, d = distance(f32, want, &largest);
    CHECK(d > 0 && d < largest * (kv == QSAE_KV_F16 ? 0.01 : 0.08));
    if (!CHECK(run_hash(want) == golden))
        printf("checksum of d_model %u, KV %s: 0x%016llx (distance %g of %g)\n", s->d_model, qsae_kv_name(kv),
               (unsigned long long)run_hash(want), d, largest);
    free(want.rows);
}

/* Another type cannot be copied into; both need half of f32's memory for keys and values. */
static void check_kv_api(const qsae_model *m)
{
    qsae_error e;
    qsae_ctx *a = NULL, *b = NULL;
    qsae_ctx_options o = {1024, 1, 1, {NULL, NULL, NULL}, QSAE_KV_F16, 0};
    size_t f16 = qsae_ctx_size(m, &o), f32;
    CHECK(qsae_ctx_create(m, &o, &a, &e) == QSAE_OK);
    o.kv_type = QSAE_KV_BF16;
    CHECK(qsae_ctx_size(m, &o) == f16 && qsae_ctx_create(m, &o, &b, &e) == QSAE_OK);
    CHECK(qsae_ctx_copy(b, a, &e) == QSAE_E_MISMATCH && strstr(e.text, "f16") && strstr(e.text, "bf16"));
    qsae_model_info i;
    qsae_model_get_info(m, &i);
    size_t numbers = 1024 * (size_t)i.n_layers * (size_t)i.n_kv_heads * (size_t)(i.head_dim + (i.head_dim + 15) / 16 * 16);
    o.kv_type = QSAE_KV_F32;
    f32 = qsae_ctx_size(m, &o);
    CHECK(f32 - f16 >= 2 * numbers - 256 && f32 - f16 <= 2 * numbers + 256); /* each array ends at a multiple of 64 */
    qsae_ctx_destroy(a);
    qsae_ctx_destroy(b);
}

enum { POISONED = 40 };

static int poison(void *user, const qsae_event *event, float *rows)
{
    int32_t row = POISONED - event->pos;
    (void)user;
    if (row < 0 || row >= (int32_t)event->n_rows) return 0;
    for (size_t k = 0; k < event->width; k++) rows[(size_t)row * event->ld + k] = k % 2 ? NAN : INFINITY;
    return 0;
}

/* A row that is not finite must not reach the rows before it, though they go through attention together. */
static void check_poison(const qsae_model *m, const tiny_shape *s, const int32_t *ids)
{
    qsae_error e;
    qsae_hook hook = {poison, NULL, 1u << QSAE_RESID_PRE, 0, 1};
    size_t width = qsae_site_width(m, QSAE_RESID_POST), bytes = POISONED * width * sizeof(float);
    float *rows[2];
    for (int i = 0; i < 2; i++) {
        rows[i] = calloc((size_t)N_TOKENS * width, sizeof(float));
        qsae_ctx_options o = {N_CTX, 64, 2, {NULL, NULL, NULL}, QSAE_KV_F32, 0};
        qsae_capture cap = {QSAE_RESID_POST, (int32_t)s->n_layers - 1, rows[i], (size_t)N_TOKENS};
        qsae_ctx *c = NULL;
        CHECK(qsae_ctx_create(m, &o, &c, &e) == QSAE_OK);
        CHECK(qsae_set_captures(c, &cap, 1, &e) == QSAE_OK);
        if (i) CHECK(qsae_set_hook(c, &hook, &e) == QSAE_OK);
        CHECK(qsae_eval(c, ids, (size_t)N_TOKENS, &e) == QSAE_OK);
        qsae_ctx_destroy(c);
    }
    CHECK(memcmp(rows[0], rows[1], bytes) == 0);
    CHECK(rows[1][POISONED * width] != rows[1][POISONED * width]);
    CHECK(rows[1][(POISONED + 5) * width] != rows[1][(POISONED + 5) * width]);
    free(rows[0]);
    free(rows[1]);
}

static void check_shape(const tiny_shape *s, uint64_t golden, const uint64_t *narrow)
{
    qsae_error e;
    size_t size;
    uint8_t *image = tiny_model(s, 7, &size);
    int32_t ids[MAX_TOKENS];
    run want = {NULL, 0};
    qsae_model *models[QSAE_ISA_COUNT] = {NULL};
    fill_tokens(ids, s->vocab_size, 3);
    for (int isa = QSAE_ISA_SCALAR; isa < QSAE_ISA_COUNT; isa++) {
        if (!qsae_isa_available((qsae_isa)isa)) continue;
        qsae_open_options o;
        memset(&o, 0, sizeof o);
        o.isa = (qsae_isa)isa;
        o.verify = 1;
        qsae_model *m = NULL;
        if (!CHECK(qsae_model_open_memory(image, size, &o, &m, &e) == QSAE_OK)) return;
        const int how[][3] = {{1, 1, 1},  {N_TOKENS, 999, 1}, {N_TOKENS, 64, 2}, {N_TOKENS, 16, 3},
                              {3, 96, 8}, {16, 16, 2},        {N_TOKENS, 3, 1},  {64, 1, 3}};
        for (size_t i = 0; i < sizeof how / sizeof *how; i++) {
            run r = run_model(m, s, ids, how[i][0], how[i][1], how[i][2], QSAE_KV_F32);
            if (!want.rows) {
                want = r;
                if (!CHECK(run_hash(want) == golden))
                    printf("checksum of d_model %u: 0x%016llx\n", s->d_model,
                           (unsigned long long)run_hash(want));
            } else {
                CHECK(same(r, want));
                free(r.rows);
            }
        }
        check_many(m, s, ids, want);
        check_copy_rewind(m, s, ids, want);
        check_poison(m, s, ids);
        models[isa] = m;
    }
    for (int kv = QSAE_KV_F16; narrow[0] && kv < QSAE_KV_COUNT; kv++)
        check_narrow((const qsae_model *const *)models, s, ids, want, (qsae_kv_type)kv, narrow[kv - 1]);
    check_kv_api(models[QSAE_ISA_SCALAR]);
    for (int isa = 0; isa < QSAE_ISA_COUNT; isa++) qsae_model_close(models[isa]);
    free(want.rows);
    free(image);
}

int main(void)
{
    /* n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ff, vocab_size, tied, type: awkward on purpose */
    static const struct {
        tiny_shape shape;
        int n_tokens;
        uint64_t golden, narrow[2]; /* f32; f16 and bf16 caches, 0: not looked at */
    } list[] = {
        {{2, 24, 4, 2, 10, 50, 101, 0, 0}, 75, 0x240b8ad66739a526u, {0, 0}},
        {{1, 12, 2, 1, 6, 20, 40, 1, 0}, 290, 0x1d5d62127d2edf62u, {0x1a833a53b8209b3fu, 0xd12e78bab6ede046u}},
        {{2, 33, 6, 1, 8, 300, 64, 1, QSAE_TYPE_BF16}, 75, 0x3044132a8416bcd2u, {0, 0}},
        {{1, 272, 8, 8, 34, 40, 33, 1, 0}, 75, 0xaf44ac3ea192f401u, {0x1f00d7e71d6cc319u, 0x0bbff14446a91adau}},
        {{3, 16, 2, 2, 16, 17, 200, 0, QSAE_TYPE_BF16}, 75, 0x125539083fa6a3c7u, {0x577c7bf9a5f2274au, 0x009e46779ac5562du}},
        {{2, 24, 4, 2, 10, 50, 101, 0, QSAE_TYPE_Q8}, 75, 0x76dc21557eaf30bfu, {0, 0}},
        {{2, 272, 6, 1, 8, 530, 33, 1, QSAE_TYPE_Q8}, 75, 0xafab93e4fcd8284fu, {0, 0}},
        {{2, 272, 4, 2, 10, 50, 101, 0, QSAE_TYPE_Q4}, 75, 0x8939914caeefb21eu, {0, 0}},
        {{2, 33, 6, 1, 8, 530, 64, 1, QSAE_TYPE_Q4}, 75, 0xce9c3fea50e81bf3u, {0, 0}},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        N_TOKENS = list[i].n_tokens;
        N_CTX = N_TOKENS + 20;
        check_shape(&list[i].shape, list[i].golden, list[i].narrow);
    }
    return test_done("test_determinism");
}
