/* SAEs: encode and decode against plain double precision, exact rules (ties, thresholds, capacity), and the same
 * bits whatever the batch, the threads and the instruction set. */

#include "test.h"
#include "tiny.h"

#include <math.h>

enum { ROWS = 21, MAX_D = 300, MAX_SAE = 400, CAP = ROWS * MAX_SAE };

/* An open SAE with its parameters as the public functions give them, its input and its output. */
typedef struct bench {
    tiny_sae shape;
    uint8_t *image;
    size_t size;
    qsae_sae *sae;
    float x[ROWS][MAX_D];
    size_t start[ROWS + 1];
    uint32_t index[CAP];
    float value[CAP];
    float y[ROWS * MAX_D]; /* [n, d_out] */
    char *scratch;
    size_t scratch_size;
} bench;

static bench *open_bench(const tiny_sae *shape, uint64_t seed, qsae_isa isa)
{
    bench *b = tiny_alloc(sizeof *b);
    memset(b, 0, sizeof *b);
    b->shape = *shape;
    b->image = tiny_sae_file(shape, seed, &b->size);
    b->sae = tiny_open_sae(b->image, b->size, isa);
    if (!CHECK(b->sae != NULL)) exit(1);
    b->scratch_size = qsae_sae_scratch_size(b->sae, ROWS);
    b->scratch = tiny_alloc(b->scratch_size + 1);
    uint64_t s = seed + 1000;
    for (int r = 0; r < ROWS; r++)
        for (uint32_t j = 0; j < shape->d_in; j++) b->x[r][j] = (float)(2 * tiny_uniform(&s) + 0.1);
    for (uint32_t j = 0; j < shape->d_in; j++) b->x[3][j] = 0; /* a row of zeros has no norm */
    return b;
}

static void close_bench(bench *b)
{
    qsae_sae_close(b->sae);
    free(b->image);
    free(b->scratch);
    free(b);
}

static qsae_rows rows_of(bench *b)
{
    qsae_rows r = {0, b->start, b->index, b->value, CAP, 0};
    return r;
}

static qsae_status encode(bench *b, size_t n, qsae_rows *out, int threads)
{
    qsae_error e;
    return qsae_sae_encode(b->sae, b->x[0], n, MAX_D, out, b->scratch + 1, b->scratch_size, threads, &e);
}

static qsae_status decode(bench *b, const qsae_rows *in, float *y, int threads)
{
    qsae_error e;
    return qsae_sae_decode(b->sae, in, b->x[0], MAX_D, y, b->scratch, b->scratch_size, threads, &e);
}

/* ---- the reference ---- */

static float tensor_value(bench *b, uint32_t role, uint64_t n, uint64_t k)
{
    const qsae_tensor_record *t = tiny_find(b->image, 1, role);
    const uint8_t *p = b->image + t->offset;
    uint64_t kp = (t->cols + 15) / 16 * 16;
    float v;
    if (t->type == QSAE_TYPE_F32) {
        size_t at = (size_t)(t->layout == QSAE_LAYOUT_BLOCK16 ? n / 16 * 64 * kp + k * 64 + n % 16 * 4
                                                              : n * (t->size / t->rows) + k * 4);
        memcpy(&v, p + at, 4);
        return v;
    }
    size_t at = (size_t)(t->layout == QSAE_LAYOUT_BLOCK16 ? n / 16 * 32 * kp + k / 2 * 64 + n % 16 * 4 + k % 2 * 2
                                                          : n * (t->size / t->rows) + k * 2);
    uint16_t h;
    memcpy(&h, p + at, 2);
    uint32_t u = (uint32_t)h << 16;
    memcpy(&v, &u, 4);
    return v;
}

typedef struct ref_row {
    double x[MAX_D];         /* normalised */
    double shift, out;       /* unnorm(y) = y * out + shift */
    double z[MAX_SAE], f[MAX_SAE];
    double margin[MAX_SAE];  /* distance of z from where the feature would switch */
    double y[MAX_D];
} ref_row;

static void ref_normalize(const bench *b, const float *x, ref_row *r)
{
    double n = b->shape.d_in, sum = 0, squares = 0;
    r->shift = 0, r->out = 1;
    for (uint32_t j = 0; j < b->shape.d_in; j++) sum += (double)x[j];
    double mean = b->shape.norm == QSAE_NORM_LAYER ? sum / n : 0;
    for (uint32_t j = 0; j < b->shape.d_in; j++) {
        r->x[j] = (double)x[j] - mean;
        squares += r->x[j] * r->x[j];
    }
    double in = 1;
    if (b->shape.norm == QSAE_NORM_CONSTANT && squares > 0) in = sqrt(n) / sqrt(squares), r->out = 1 / in;
    if (b->shape.norm == QSAE_NORM_LAYER) {
        double std = sqrt(squares / (n - 1));
        in = 1 / (std + 1e-5), r->out = std, r->shift = mean;
    }
    for (uint32_t j = 0; j < b->shape.d_in; j++) r->x[j] *= in;
    if (b->shape.site_in != b->shape.site_out) r->out = 1, r->shift = 0; /* a prediction has its own scale */
}

static void ref_top_k(const bench *b, ref_row *r)
{
    for (uint32_t i = 0; i < b->shape.d_sae; i++) {
        uint32_t above = 0;
        double last_in = -INFINITY, first_out = -INFINITY;
        for (uint32_t j = 0; j < b->shape.d_sae; j++)
            if (j != i && (r->z[j] > r->z[i] || (!(r->z[j] < r->z[i]) && j < i))) above++;
        r->f[i] = above < b->shape.k && r->z[i] > 0 ? r->z[i] : 0;
        for (uint32_t j = 0; j < b->shape.d_sae; j++) { /* how near another value is */
            if (j == i) continue;
            if (r->z[j] <= r->z[i] && r->z[j] > last_in) last_in = r->z[j];
            if (r->z[j] > r->z[i] && -r->z[j] > first_out) first_out = -r->z[j];
        }
        r->margin[i] = fmin(fabs(r->z[i]), fmin(r->z[i] - last_in, -first_out - r->z[i]));
    }
}

static void ref_group_max(const bench *b, ref_row *r)
{
    uint32_t size = b->shape.d_sae / b->shape.k;
    for (uint32_t i = 0; i < b->shape.d_sae; i++) {
        double best = -INFINITY; /* of the others of its group */
        int first = 1;
        for (uint32_t j = i / size * size; j < i / size * size + size; j++) {
            if (j == i) continue;
            best = fmax(best, r->z[j]);
            if (r->z[j] > r->z[i] || (!(r->z[j] < r->z[i]) && j < i)) first = 0;
        }
        r->f[i] = first && r->z[i] > 0 ? r->z[i] : 0;
        r->margin[i] = fmin(fabs(r->z[i]), fabs(r->z[i] - best));
    }
}

static void ref_encode(bench *b, const float *x, ref_row *r)
{
    ref_normalize(b, x, r);
    for (uint32_t i = 0; i < b->shape.d_sae; i++) {
        double dot = 0;
        for (uint32_t j = 0; j < b->shape.d_in; j++) dot += r->x[j] * (double)tensor_value(b, QSAE_ROLE_ENC, i, j);
        double z = r->z[i] = dot + (double)tensor_value(b, QSAE_ROLE_B_ENC, 0, i);
        r->margin[i] = fabs(z);
        r->f[i] = z > 0 ? z : 0;
        if (b->shape.activation == QSAE_ACT_JUMPRELU) {
            double theta = (double)tensor_value(b, QSAE_ROLE_THETA, 0, i);
            r->margin[i] = fabs(z - theta);
            if (!(z > theta)) r->f[i] = 0;
        } else if (b->shape.activation == QSAE_ACT_GATED) {
            double mag = (double)tensor_value(b, QSAE_ROLE_MAG_SCALE, 0, i) * dot +
                         (double)tensor_value(b, QSAE_ROLE_MAG_BIAS, 0, i);
            r->f[i] = z > 0 && mag > 0 ? mag : 0;
            r->margin[i] = fmin(fabs(z), fabs(mag));
        }
    }
    if (b->shape.activation == QSAE_ACT_TOPK || b->shape.activation == QSAE_ACT_TOPK_SCALED) ref_top_k(b, r);
    for (uint32_t i = 0; i < b->shape.d_sae && b->shape.activation == QSAE_ACT_TOPK_SCALED; i++)
        r->f[i] *= (double)tensor_value(b, QSAE_ROLE_MAG_SCALE, 0, i);
    if (b->shape.activation == QSAE_ACT_GROUPMAX) ref_group_max(b, r);
}

/* From the features the library found, so that encode's rounding is not counted twice. */
static void ref_decode(bench *b, const float *x, const float *f, ref_row *r)
{
    ref_normalize(b, x, r);
    for (uint32_t j = 0; j < b->shape.d_out; j++) {
        double y = (double)tensor_value(b, QSAE_ROLE_B_DEC, 0, j);
        for (uint32_t i = 0; i < b->shape.d_sae; i++)
            if (f[i] != 0) y += (double)f[i] * (double)tensor_value(b, QSAE_ROLE_DEC, i, j);
        y = y * r->out + r->shift;
        for (uint32_t k = 0; (b->shape.flags & QSAE_SAE_SKIP) && k < b->shape.d_in; k++)
            y += (double)x[k] * (double)tensor_value(b, QSAE_ROLE_SKIP, j, k);
        r->y[j] = y;
    }
}

static void check_reference(bench *b)
{
    ref_row *ref = tiny_alloc(sizeof *ref);
    qsae_rows rows = rows_of(b);
    size_t fired = 0;
    CHECK(encode(b, ROWS, &rows, 1) == QSAE_OK && rows.n_rows == ROWS && b->start[0] == 0);
    CHECK(decode(b, &rows, b->y, 1) == QSAE_OK);
    for (int r = 0; r < ROWS; r++) {
        float f[MAX_SAE] = {0};
        for (size_t e = b->start[r]; e < b->start[r + 1]; e++) {
            CHECK(b->value[e] > 0 && b->index[e] < b->shape.d_sae);
            CHECK(e == b->start[r] || b->index[e] > b->index[e - 1]);
            f[b->index[e]] = b->value[e];
            fired++;
        }
        ref_encode(b, b->x[r], ref);
        int bad = 0;
        for (uint32_t i = 0; i < b->shape.d_sae; i++)
            if (ref->margin[i] > 1e-4 && fabs((double)f[i] - ref->f[i]) > 1e-5 * (1 + fabs(ref->f[i]))) bad++;
        CHECK(bad == 0);
        ref_decode(b, b->x[r], f, ref);
        double rms = 0, worst = 0;
        for (uint32_t j = 0; j < b->shape.d_out; j++) {
            double d = fabs((double)b->y[(size_t)r * b->shape.d_out + j] - ref->y[j]);
            rms += ref->y[j] * ref->y[j];
            worst = d > worst ? d : worst;
        }
        CHECK(worst <= 1e-5 * sqrt(rms / b->shape.d_out));
    }
    CHECK(fired > 0 && fired < (size_t)ROWS * b->shape.d_sae); /* a test in which nothing switches is none */
    free(ref);
}

/* ---- the same bits ---- */

static int same_rows(const bench *b, const size_t *start, const uint32_t *index, const float *value)
{
    size_t n = b->start[ROWS];
    return memcmp(start, b->start, sizeof b->start) == 0 && memcmp(index, b->index, n * sizeof *index) == 0 &&
           memcmp(value, b->value, n * sizeof *value) == 0;
}

/* b holds the result of encode and decode; other: another instance of the same file. */
static void check_same(bench *b, bench *other, int threads)
{
    qsae_rows rows = rows_of(other);
    size_t d_out = b->shape.d_out;
    qsae_error e;
    CHECK(encode(other, ROWS, &rows, threads) == QSAE_OK);
    CHECK(same_rows(b, other->start, other->index, other->value));
    CHECK(decode(other, &rows, other->y, threads) == QSAE_OK);
    CHECK(memcmp(other->y, b->y, ROWS * d_out * sizeof(float)) == 0);
    /* one by one, densely packed, with the scratch of one row */
    size_t need = qsae_sae_scratch_size(other->sae, 1);
    CHECK(need <= other->scratch_size);
    for (size_t r = 0; r < ROWS; r++) {
        size_t start[2], n = b->start[r + 1] - b->start[r];
        float y[MAX_D];
        qsae_rows one = {0, start, other->index, other->value, n, 0}; /* as many as needed, no more */
        CHECK(qsae_sae_encode(other->sae, b->x[r], 1, 0, &one, other->scratch, need, threads, &e) == QSAE_OK);
        CHECK(start[0] == 0 && start[1] == n);
        CHECK(memcmp(other->index, b->index + b->start[r], n * sizeof(uint32_t)) == 0);
        CHECK(memcmp(other->value, b->value + b->start[r], n * sizeof(float)) == 0);
        CHECK(qsae_sae_decode(other->sae, &one, b->x[r], 0, y, other->scratch, need, threads, &e) == QSAE_OK);
        CHECK(memcmp(y, b->y + r * d_out, d_out * sizeof(float)) == 0);
    }
}

/* ---- shapes ---- */

#define POST QSAE_RESID_POST, 0, QSAE_RESID_POST, 0
#define TRANS QSAE_MLP_INPUT, 0, QSAE_MLP_OUT, 0
#define RELU QSAE_ACT_RELU
#define JUMP QSAE_ACT_JUMPRELU
#define TOPK QSAE_ACT_TOPK
#define GATED QSAE_ACT_GATED
#define GROUPMAX QSAE_ACT_GROUPMAX
#define SCALED QSAE_ACT_TOPK_SCALED

static const tiny_sae SHAPES[] = {
    /* sites, d_in, d_out, d_sae, k, activation, norm, flags, bf16, copies */
    {POST, 24, 24, 100, 0, RELU, QSAE_NORM_NONE, 0, 0, 0},
    {POST, 24, 24, 100, 0, RELU, QSAE_NORM_LAYER, 0, 1, 0},
    {POST, 33, 33, 65, 0, JUMP, QSAE_NORM_NONE, 0, 0, 0},
    {POST, 33, 33, 65, 0, JUMP, QSAE_NORM_CONSTANT, 0, 1, 0},
    {POST, 272, 272, 257, 0, JUMP, QSAE_NORM_LAYER, 0, 0, 0},
    {POST, 17, 17, 130, 9, TOPK, QSAE_NORM_NONE, 0, 0, 0},
    {POST, 300, 300, 399, 32, TOPK, QSAE_NORM_CONSTANT, 0, 1, 0},
    {POST, 5, 5, 7, 1, TOPK, QSAE_NORM_LAYER, 0, 0, 0},
    {POST, 16, 16, 64, 64, TOPK, QSAE_NORM_NONE, 0, 0, 0}, /* k = d_sae */
    {POST, 40, 40, 63, 0, GATED, QSAE_NORM_NONE, 0, 0, 0},
    {POST, 40, 40, 129, 0, GATED, QSAE_NORM_CONSTANT, 0, 1, 0},
    {POST, 1, 1, 3, 0, RELU, QSAE_NORM_NONE, 0, 0, 0},
    {POST, 2, 2, 5, 0, RELU, QSAE_NORM_LAYER, 0, 0, 0},
    {POST, 256, 256, 80, 0, RELU, QSAE_NORM_NONE, QSAE_SAE_SKIP, 0, 0},
    {TRANS, 20, 31, 90, 0, JUMP, QSAE_NORM_NONE, QSAE_SAE_SKIP, 0, 0},
    {TRANS, 65, 18, 90, 12, TOPK, QSAE_NORM_NONE, QSAE_SAE_SKIP, 1, 0},
    {TRANS, 33, 33, 90, 0, RELU, QSAE_NORM_CONSTANT, 0, 1, 0},
    {TRANS, 20, 31, 90, 0, GATED, QSAE_NORM_LAYER, QSAE_SAE_SKIP, 0, 0},
    {POST, 17, 17, 130, 13, GROUPMAX, QSAE_NORM_NONE, 0, 0, 0},
    {POST, 24, 24, 63, 1, GROUPMAX, QSAE_NORM_LAYER, 0, 1, 0},
    {POST, 24, 24, 63, 63, GROUPMAX, QSAE_NORM_NONE, 0, 0, 0}, /* groups of one */
    {TRANS, 20, 31, 90, 9, GROUPMAX, QSAE_NORM_NONE, QSAE_SAE_SKIP, 0, 0},
    {POST, 33, 33, 130, 9, SCALED, QSAE_NORM_NONE, 0, 0, 0},
    {TRANS, 20, 31, 90, 12, SCALED, QSAE_NORM_CONSTANT, QSAE_SAE_SKIP, 1, 0},
};

static void check_shape(const tiny_sae *s, uint64_t seed)
{
    bench *b = open_bench(s, seed, QSAE_ISA_SCALAR);
    check_reference(b);
    static const int threads[] = {1, 2, 3, 8};
    for (int isa = QSAE_ISA_SCALAR; isa < QSAE_ISA_COUNT; isa++) {
        if (!qsae_isa_available((qsae_isa)isa)) continue;
        bench *o = open_bench(s, seed, (qsae_isa)isa);
        for (size_t i = 0; i < 4; i++) check_same(b, o, threads[i]);
        close_bench(o);
    }
    close_bench(b);
}

/* ---- exact rules ---- */

/* Features 2, 5, 6 and 9 have one encoder row and bias: equal to the bit. */
static void check_ties(qsae_isa isa)
{
    const tiny_sae s = {POST, 24, 24, 12, 3, TOPK, QSAE_NORM_NONE, 0, 0, 0};
    size_t size;
    uint8_t *image = tiny_sae_file(&s, 8, &size);
    static const uint32_t equal[] = {2, 5, 6, 9};
    for (uint32_t i = 0; i < 12; i++) {
        int one_of = i == 2 || i == 5 || i == 6 || i == 9;
        for (uint32_t j = 0; j < 24; j++) tiny_poke(image, 1, QSAE_ROLE_ENC, i, j,
            one_of ? 0.25f * (float)(j % 3) : 0.01f);
        tiny_poke(image, 1, QSAE_ROLE_B_ENC, 0, i, one_of ? 0.5f : -1.0f);
    }
    tiny_rehash(image);
    qsae_sae *sae = tiny_open_sae(image, size, isa);
    float x[24];
    char scratch[8192];
    CHECK(qsae_sae_scratch_size(sae, 1) <= sizeof scratch);
    for (int j = 0; j < 24; j++) x[j] = 0.5f + 0.01f * (float)j;
    size_t start[2];
    uint32_t index[12];
    float value[12];
    qsae_rows rows = {0, start, index, value, 12, 0};
    CHECK(qsae_sae_encode(sae, x, 1, 0, &rows, scratch, sizeof scratch, 1, NULL) == QSAE_OK);
    CHECK(start[1] == 3);
    for (size_t i = 0; i < 3 && i < start[1]; i++) CHECK(index[i] == equal[i] && value[i] == value[0]);
    for (int j = 0; j < 24; j++) x[j] = -x[j]; /* all are negative: the largest are cut to zero, none is left */
    CHECK(qsae_sae_encode(sae, x, 1, 0, &rows, scratch, sizeof scratch, 1, NULL) == QSAE_OK && start[1] == 0);
    qsae_sae_close(sae);
    free(image);
}

/* Of equal values the first of each group is kept; of a group without a positive one, none. */
static void check_group_ties(qsae_isa isa)
{
    const tiny_sae s = {POST, 8, 8, 12, 3, GROUPMAX, QSAE_NORM_NONE, 0, 0, 0};
    size_t size, start[2];
    uint8_t *image = tiny_sae_file(&s, 8, &size);
    static const float bias[12] = {1, 2, 2, 2, -1, -2, -3, -1, 5, 4, 3, 5};
    for (uint32_t i = 0; i < 12; i++) {
        for (uint32_t j = 0; j < 8; j++) tiny_poke(image, 1, QSAE_ROLE_ENC, i, j, 0.0f);
        tiny_poke(image, 1, QSAE_ROLE_B_ENC, 0, i, bias[i]);
    }
    tiny_rehash(image);
    qsae_sae *sae = tiny_open_sae(image, size, isa);
    float x[8] = {1, 2, 3, 4, 5, 6, 7, 8}, value[12];
    char scratch[8192];
    uint32_t index[12];
    qsae_rows rows = {0, start, index, value, 12, 0};
    CHECK(qsae_sae_encode(sae, x, 1, 0, &rows, scratch, sizeof scratch, 1, NULL) == QSAE_OK);
    CHECK(start[1] == 2 && index[0] == 1 && index[1] == 8 && value[0] == 2 && value[1] == 5);
    qsae_sae_close(sae);
    free(image);
}

/* z exactly at the threshold, one step above, one below; theta 0; all sums here are exact. */
static void check_thresholds(qsae_isa isa)
{
    const tiny_sae s = {POST, 4, 4, 6, 0, JUMP, QSAE_NORM_NONE, 0, 0, 0};
    size_t size;
    uint8_t *image = tiny_sae_file(&s, 9, &size);
    const float z = 0.75f; /* 0.5 + 0.25 */
    const float theta[6] = {z, nextafterf(z, 0), nextafterf(z, 1), 0, 0, 0};
    const float bias[6] = {0.25f, 0.25f, 0.25f, -0.5f, nextafterf(-0.5f, 0), -2};
    for (uint32_t i = 0; i < 6; i++) {
        for (uint32_t j = 0; j < 4; j++) tiny_poke(image, 1, QSAE_ROLE_ENC, i, j, j == 1 ? 0.5f : 0);
        tiny_poke(image, 1, QSAE_ROLE_B_ENC, 0, i, bias[i]);
        tiny_poke(image, 1, QSAE_ROLE_THETA, 0, i, theta[i]);
    }
    tiny_rehash(image);
    qsae_sae *sae = tiny_open_sae(image, size, isa);
    const float x[4] = {3, 1, -7, 0};
    char scratch[4096];
    size_t start[2];
    uint32_t index[6];
    float value[6];
    qsae_rows rows = {0, start, index, value, 6, 0};
    CHECK(qsae_sae_encode(sae, x, 1, 0, &rows, scratch, sizeof scratch, 1, NULL) == QSAE_OK);
    CHECK(start[1] == 2 && index[0] == 1 && index[1] == 4 && value[0] == z);
    CHECK(value[1] == 0.5f + nextafterf(-0.5f, 0));
    qsae_sae_close(sae);
    free(image);
}

/* ---- errors and limits ---- */

static void check_capacity(void)
{
    bench *b = open_bench(&SHAPES[2], 20, QSAE_ISA_AUTO);
    qsae_rows rows = rows_of(b);
    CHECK(encode(b, ROWS, &rows, 1) == QSAE_OK);
    size_t need = b->start[ROWS];
    size_t start[ROWS + 1];
    uint32_t *index = tiny_alloc(need * sizeof *index);
    float *value = tiny_alloc(need * sizeof *value);
    for (size_t cap = 0; cap <= need; cap += cap + 1 < need ? need / 3 : 1) {
        qsae_rows small = {0, start, cap ? index : NULL, cap ? value : NULL, cap, 0};
        qsae_error e;
        memset(start, 0, sizeof start);
        memset(&e, 0, sizeof e);
        qsae_status st = qsae_sae_encode(b->sae, b->x[0], ROWS, MAX_D, &small, b->scratch, b->scratch_size, 1, &e);
        CHECK(st == (cap < need ? QSAE_E_LIMIT : QSAE_OK));
        CHECK(memcmp(start, b->start, sizeof start) == 0); /* filled either way */
        char text[64];
        snprintf(text, sizeof text, "%zu features fired, the buffer holds %zu", need, cap);
        if (cap < need) CHECK(strstr(e.text, text) != NULL);
    }
    qsae_rows exact = {0, start, index, value, start[ROWS], 0}; /* what the failed call said is enough */
    CHECK(encode(b, ROWS, &exact, 1) == QSAE_OK && same_rows(b, start, index, value));
    free(index);
    free(value);
    close_bench(b);
}

static void check_empty(void)
{
    bench *b = open_bench(&SHAPES[5], 21, QSAE_ISA_AUTO);
    size_t start[1] = {99}, need = qsae_sae_scratch_size(b->sae, 0);
    qsae_rows rows = {7, start, NULL, NULL, 0, 0};
    float y = 5;
    CHECK(need <= b->scratch_size);
    CHECK(qsae_sae_encode(b->sae, NULL, 0, 0, &rows, b->scratch, need, 1, NULL) == QSAE_OK);
    CHECK(start[0] == 0 && rows.n_rows == 0);
    CHECK(qsae_sae_decode(b->sae, &rows, NULL, 0, &y, b->scratch, need, 1, NULL) == QSAE_OK && y == 5);
    /* rows without any feature give the bias */
    size_t none[3] = {0, 0, 0};
    float out[2][MAX_D], bias[MAX_D];
    qsae_rows two = {2, none, NULL, NULL, 0, 0};
    for (uint32_t j = 0; j < b->shape.d_out; j++) bias[j] = tensor_value(b, QSAE_ROLE_B_DEC, 0, j);
    CHECK(qsae_sae_decode(b->sae, &two, NULL, 0, out[0], b->scratch, b->scratch_size, 1, NULL) == QSAE_OK);
    CHECK(memcmp(out[0], bias, b->shape.d_out * sizeof(float)) == 0);
    CHECK(memcmp(out[0] + b->shape.d_out, bias, b->shape.d_out * sizeof(float)) == 0);
    close_bench(b);
}

static void encode_fails(bench *b, const float *x, size_t n, size_t ld, qsae_rows *out, void *scratch, size_t size,
                         int threads, int status, const char *text)
{
    qsae_error e;
    memset(&e, 0, sizeof e);
    CHECK((int)qsae_sae_encode(b ? b->sae : NULL, x, n, ld, out, scratch, size, threads, &e) == status);
    CHECK((int)e.status == status);
    if (!CHECK(strstr(e.text, text) != NULL)) fprintf(stderr, "    %s, wanted %s\n", e.text, text);
    CHECK((int)qsae_sae_encode(b ? b->sae : NULL, x, n, ld, out, scratch, size, threads, NULL) == status);
}

static void check_encode_errors(void)
{
    bench *b = open_bench(&SHAPES[0], 22, QSAE_ISA_AUTO);
    float (*x)[MAX_D] = b->x;
    qsae_rows good = rows_of(b), r = good;
    size_t size = b->scratch_size;
    char text[64];
    good.n_rows = 1234;
    encode_fails(NULL, x[0], 1, 0, &good, b->scratch, size, 1, QSAE_E_ARG, "NULL");
    encode_fails(b, NULL, 1, 0, &good, b->scratch, size, 1, QSAE_E_ARG, "NULL");
    encode_fails(b, x[0], 1, 0, NULL, b->scratch, size, 1, QSAE_E_ARG, "NULL");
    r.start = NULL;
    encode_fails(b, x[0], 1, 0, &r, b->scratch, size, 1, QSAE_E_ARG, "NULL");
    r = good, r.index = NULL;
    encode_fails(b, x[0], 1, 0, &r, b->scratch, size, 1, QSAE_E_ARG, "NULL");
    r = good, r.value = NULL;
    encode_fails(b, x[0], 1, 0, &r, b->scratch, size, 1, QSAE_E_ARG, "NULL");
    encode_fails(b, x[0], 1, 23, &good, b->scratch, size, 1, QSAE_E_ARG, "ld is 23, rows have 24");
    encode_fails(b, x[0], 1, 0, &good, NULL, size, 1, QSAE_E_ARG, "scratch has 0 bytes");
    for (size_t n = 1; n <= ROWS; n += 4) {
        size_t need = qsae_sae_scratch_size(b->sae, n);
        snprintf(text, sizeof text, "scratch has %zu bytes, needs %zu", need - 1, need);
        encode_fails(b, x[0], n, MAX_D, &good, b->scratch, need - 1, 1, QSAE_E_ARG, text);
    }
    encode_fails(b, x[0], 1, 0, &good, b->scratch, size, -1, QSAE_E_ARG, "n_threads is -1");
    encode_fails(b, x[0], 1, 0, &good, b->scratch, size, 1025, QSAE_E_ARG, "n_threads is 1025");
    static const float wrong[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++)
        for (int row = 0; row < ROWS; row += 10) {
            float keep = x[row][23];
            x[row][23] = wrong[i];
            snprintf(text, sizeof text, "row %d is not finite", row);
            encode_fails(b, x[0], ROWS, MAX_D, &good, b->scratch, size, 1, QSAE_E_NUM, text);
            x[row][23] = keep;
            x[row][24] = wrong[i]; /* between the rows: nobody looks */
            CHECK(encode(b, ROWS, &good, 1) == QSAE_OK);
            x[row][24] = 0;
            good.n_rows = 1234;
        }
    CHECK(qsae_sae_scratch_size(b->sae, SIZE_MAX) >= qsae_sae_scratch_size(b->sae, 1));
    close_bench(b);
}

/* A finite row whose product with a feature is +Inf - Inf: not a feature that is off, but no number. */
static void check_overflow(const tiny_sae *s)
{
    size_t size;
    uint8_t *image = tiny_sae_file(s, 25, &size);
    for (uint32_t j = 0; j < s->d_in; j++) tiny_poke(image, 1, QSAE_ROLE_ENC, 5, j, j < 2 ? 4.0f : 0.0f);
    tiny_rehash(image);
    qsae_sae *sae = tiny_open_sae(image, size, QSAE_ISA_AUTO);
    float x[MAX_D] = {3e38f, -3e38f}, value[MAX_SAE];
    uint32_t index[MAX_SAE];
    char *scratch = tiny_alloc(qsae_sae_scratch_size(sae, 1));
    size_t start[2];
    qsae_rows rows = {0, start, index, value, MAX_SAE, 0};
    qsae_error e;
    CHECK(qsae_sae_encode(sae, x, 1, 0, &rows, scratch, qsae_sae_scratch_size(sae, 1), 1, &e) == QSAE_E_NUM);
    x[1] = 0; /* +Inf alone */
    CHECK(qsae_sae_encode(sae, x, 1, 0, &rows, scratch, qsae_sae_scratch_size(sae, 1), 1, &e) == QSAE_E_NUM);
    free(scratch);
    qsae_sae_close(sae);
    free(image);
}

/* On failure outputs are untouched: a bad row is found before a good one is written. */
static void check_untouched(void)
{
    bench *b = open_bench(&SHAPES[1], 24, QSAE_ISA_AUTO);
    qsae_rows good = rows_of(b);
    CHECK(encode(b, ROWS, &good, 1) == QSAE_OK && decode(b, &good, b->y, 1) == QSAE_OK);
    bench *before = tiny_alloc(sizeof *before);
    float keep = b->x[ROWS - 1][0];
    b->x[ROWS - 1][0] = NAN;
    for (int r = 0; r < ROWS - 1; r++) b->x[r][1] += 1; /* another result, if there was one */
    memcpy(before, b, sizeof *b);
    CHECK(encode(b, ROWS, &good, 1) == QSAE_E_NUM);
    CHECK(memcmp(before->start, b->start, sizeof b->start) == 0);
    CHECK(memcmp(before->index, b->index, sizeof b->index) == 0);
    CHECK(memcmp(before->value, b->value, sizeof b->value) == 0);
    CHECK(good.n_rows == ROWS);
    memcpy(b->start, before->start, sizeof b->start);
    memcpy(b->index, before->index, sizeof b->index);
    memcpy(b->value, before->value, sizeof b->value);
    CHECK(decode(b, &good, b->y, 1) == QSAE_E_NUM);
    CHECK(memcmp(before->y, b->y, sizeof b->y) == 0);
    b->x[ROWS - 1][0] = keep;
    free(before);
    close_bench(b);
}

static void decode_fails(bench *b, const qsae_rows *in, const float *x, size_t ld, int status, const char *text)
{
    qsae_error e;
    float *y = b->y, first = y[0];
    memset(&e, 0, sizeof e);
    CHECK((int)qsae_sae_decode(b->sae, in, x, ld, y, b->scratch, b->scratch_size, 1, &e) == status);
    CHECK((int)e.status == status && y[0] == first);
    if (!CHECK(strstr(e.text, text) != NULL)) fprintf(stderr, "    %s, wanted %s\n", e.text, text);
}

static void check_decode_errors(void)
{
    bench *b = open_bench(&SHAPES[1], 23, QSAE_ISA_AUTO); /* layer norm: needs x */
    size_t start[3] = {0, 2, 4};
    uint32_t index[4] = {3, 99, 0, 5};
    float value[4] = {1, 2, 3, 4};
    qsae_rows in = {2, start, index, value, 4, 0}, r = in;
    CHECK(decode(b, &in, b->y, 1) == QSAE_OK);
    decode_fails(b, NULL, b->x[0], 0, QSAE_E_ARG, "NULL");
    r.start = NULL;
    decode_fails(b, &r, b->x[0], 0, QSAE_E_ARG, "NULL");
    r = in, r.index = NULL;
    decode_fails(b, &r, b->x[0], 0, QSAE_E_ARG, "NULL");
    r = in, r.value = NULL;
    decode_fails(b, &r, b->x[0], 0, QSAE_E_ARG, "NULL");
    decode_fails(b, &in, NULL, 0, QSAE_E_ARG, "needs its input (per-token norm)");
    decode_fails(b, &in, b->x[0], 23, QSAE_E_ARG, "ld is 23, rows have 24");
    index[1] = 100;
    decode_fails(b, &in, b->x[0], 0, QSAE_E_ARG, "row 0 has feature 100, d_sae is 100");
    index[1] = 3;
    decode_fails(b, &in, b->x[0], 0, QSAE_E_ARG, "row 0, feature 3: indices do not ascend");
    index[1] = 99, index[3] = 0;
    decode_fails(b, &in, b->x[0], 0, QSAE_E_ARG, "row 1, feature 0: indices do not ascend");
    index[3] = 5, value[2] = NAN;
    decode_fails(b, &in, b->x[0], 0, QSAE_E_NUM, "row 1, feature 0 is not finite");
    value[2] = -INFINITY;
    decode_fails(b, &in, b->x[0], 0, QSAE_E_NUM, "row 1, feature 0 is not finite");
    value[2] = -3; /* negative values are the caller's business */
    CHECK(decode(b, &in, b->y, 1) == QSAE_OK);
    start[1] = 5;
    decode_fails(b, &in, b->x[0], 0, QSAE_E_ARG, "row ");
    start[1] = 2, start[0] = 3;
    decode_fails(b, &in, b->x[0], 0, QSAE_E_ARG, "row 0 ends before it starts");
    start[0] = 0;
    b->x[1][7] = INFINITY;
    decode_fails(b, &in, b->x[0], MAX_D, QSAE_E_NUM, "row 1 is not finite");
    b->x[1][7] = 0;
    CHECK(qsae_sae_decode(b->sae, &in, b->x[0], 0, NULL, b->scratch, b->scratch_size, 1, NULL) == QSAE_E_ARG);
    CHECK(qsae_sae_decode(NULL, &in, b->x[0], 0, b->y, b->scratch, b->scratch_size, 1, NULL) == QSAE_E_ARG);
    CHECK(qsae_sae_decode(b->sae, &in, b->x[0], 0, b->y, NULL, b->scratch_size, 1, NULL) == QSAE_E_ARG);
    CHECK(qsae_sae_decode(b->sae, &in, b->x[0], 0, b->y, b->scratch, 10, 1, NULL) == QSAE_E_ARG);
    CHECK(qsae_sae_decode(b->sae, &in, b->x[0], 0, b->y, b->scratch, b->scratch_size, -1, NULL) == QSAE_E_ARG);
    close_bench(b);
    b = open_bench(&SHAPES[14], 23, QSAE_ISA_AUTO);
    size_t one[2] = {0, 0};
    qsae_rows none = {1, one, NULL, NULL, 0, 0};
    decode_fails(b, &none, NULL, 0, QSAE_E_ARG, "needs its input (skip connection)");
    close_bench(b);
}

/* ---- parameters, info, selection ---- */

static void check_features(const tiny_sae *s)
{
    bench *b = open_bench(s, 30, QSAE_ISA_AUTO);
    float enc[MAX_D], dec[MAX_D], bias, theta;
    qsae_error e;
    for (uint32_t i = 0; i < s->d_sae; i += 7) {
        CHECK(qsae_sae_feature(b->sae, i, enc, dec, &bias, &theta, &e) == QSAE_OK);
        int bad = bias != tensor_value(b, QSAE_ROLE_B_ENC, 0, i);
        for (uint32_t j = 0; j < s->d_in; j++) bad += enc[j] != tensor_value(b, QSAE_ROLE_ENC, i, j);
        for (uint32_t j = 0; j < s->d_out; j++) bad += dec[j] != tensor_value(b, QSAE_ROLE_DEC, i, j);
        bad += theta != (s->activation == JUMP ? tensor_value(b, QSAE_ROLE_THETA, 0, i) : 0);
        CHECK(bad == 0);
        CHECK(qsae_sae_feature(b->sae, i, NULL, NULL, NULL, NULL, NULL) == QSAE_OK);
    }
    bias = 5;
    char text[64];
    snprintf(text, sizeof text, "feature %u, d_sae is %u", s->d_sae, s->d_sae);
    CHECK(qsae_sae_feature(b->sae, s->d_sae, enc, dec, &bias, &theta, &e) == QSAE_E_ARG && bias == 5);
    CHECK_STR(e.text, text);
    CHECK(qsae_sae_feature(b->sae, UINT32_MAX, enc, dec, &bias, &theta, NULL) == QSAE_E_ARG);
    CHECK(qsae_sae_feature(NULL, 0, enc, dec, &bias, &theta, &e) == QSAE_E_ARG);
    qsae_sae_info f;
    qsae_sae_get_info(b->sae, &f);
    CHECK_STR(f.name, "tiny");
    CHECK_STR(f.feature_unit, "raw");
    CHECK_STR(f.weight_type, s->bf16 ? "bf16" : "f32");
    CHECK(f.d_in == (int32_t)s->d_in && f.d_out == (int32_t)s->d_out && f.d_sae == (int32_t)s->d_sae);
    CHECK(f.k == (int32_t)s->k && f.activation == (qsae_activation)s->activation && f.norm == (qsae_norm)s->norm);
    CHECK(f.has_skip == ((s->flags & QSAE_SAE_SKIP) != 0) && f.is_transcoder == (s->site_in != s->site_out));
    CHECK(f.site_in == (qsae_site)s->site_in && f.site_out == (qsae_site)s->site_out && f.layer_in == 0);
    CHECK(f.index == 0 && f.n_members == 1 && f.file_size == b->size && f.isa != QSAE_ISA_AUTO);
    close_bench(b);
}

static qsae_sae_options choose(qsae_select how, int32_t index, qsae_site site, int32_t layer, const char *name)
{
    qsae_sae_options o;
    memset(&o, 0, sizeof o);
    o.select = how, o.index = index, o.site = site, o.layer = layer, o.name = name;
    return o;
}

static void check_choice(const uint8_t *image, size_t size, qsae_sae_options o, int want, const char *text)
{
    qsae_sae *s = NULL;
    qsae_error e;
    memset(&e, 0, sizeof e);
    qsae_status st = qsae_sae_open_memory(image, size, &o, &s, &e);
    if (want < 0) {
        CHECK(st == QSAE_E_ARG && !s);
        if (!CHECK(strstr(e.text, text) != NULL)) fprintf(stderr, "    %s\n", e.text);
        return;
    }
    if (!CHECK(st == QSAE_OK)) return;
    qsae_sae_info f;
    qsae_sae_get_info(s, &f);
    CHECK(f.index == want && f.n_members == 4);
    CHECK_STR(f.name, text);
    qsae_sae_close(s);
}

/* Four members: layer 0, then three of layer 1: one named "b" of the same site, one of another. */
static void check_selection(void)
{
    tiny_sae s = {POST, 8, 8, 6, 2, TOPK, QSAE_NORM_NONE, 0, 0, 4};
    size_t size;
    uint8_t *image = tiny_sae_file(&s, 31, &size);
    qsae_sae_record *r = (void *)(image + 64);
    for (int i = 1; i < 4; i++) r[i].layer_in = r[i].layer_out = 1;
    r[1].site_in = r[1].site_out = QSAE_MLP_OUT;
    memcpy(r[2].name, "a\0\0\0", 4);
    memcpy(r[3].name, "b\0\0\0", 4);
    tiny_rehash(image);
    const qsae_site post = QSAE_RESID_POST;
    check_choice(image, size, choose(QSAE_SELECT_ONLY, 0, post, 0, NULL), -1,
        "the file holds 4 SAEs (first: resid_post layer 0, tiny)");
    for (int32_t i = 0; i < 4; i++)
        check_choice(image, size, choose(QSAE_SELECT_INDEX, i, post, 9, "x"), i,
            i == 2 ? "a" : i == 3 ? "b" : "tiny");
    check_choice(image, size, choose(QSAE_SELECT_INDEX, 4, post, 0, NULL), -1, "SAE index 4, the file holds 4");
    check_choice(image, size, choose(QSAE_SELECT_INDEX, -1, post, 0, NULL), -1, "SAE index -1, the file holds 4");
    check_choice(image, size, choose(QSAE_SELECT_SITE, 0, post, 0, NULL), 0, "tiny");
    check_choice(image, size, choose(QSAE_SELECT_SITE, 0, QSAE_MLP_OUT, 1, NULL), 1, "tiny");
    check_choice(image, size, choose(QSAE_SELECT_SITE, 0, post, 1, "a"), 2, "a");
    check_choice(image, size, choose(QSAE_SELECT_SITE, 0, post, 1, "b"), 3, "b");
    check_choice(image, size, choose(QSAE_SELECT_SITE, 0, post, 1, NULL), -1,
        "2 of 4 SAEs read resid_post of layer 1: name one");
    check_choice(image, size, choose(QSAE_SELECT_SITE, 0, post, 1, "c"), -1,
        "0 of 4 SAEs read resid_post of layer 1 and are called c");
    check_choice(image, size, choose(QSAE_SELECT_SITE, 0, post, 2, NULL), -1, "0 of 4");
    check_choice(image, size, choose(QSAE_SELECT_SITE, 0, post, -1, NULL), -1, "0 of 4");
    check_choice(image, size, choose(QSAE_SELECT_SITE, 0, QSAE_LOGITS, 0, NULL), -1, "not valid");
    check_choice(image, size, choose((qsae_select)7, 0, post, 0, NULL), -1, "not valid");
    free(image);
}

int main(void)
{
    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++) {
        check_shape(&SHAPES[i], 100 + i);
        check_features(&SHAPES[i]);
    }
    for (int isa = QSAE_ISA_SCALAR; isa < QSAE_ISA_COUNT; isa++)
        if (qsae_isa_available((qsae_isa)isa)) {
            check_ties((qsae_isa)isa);
            check_group_ties((qsae_isa)isa);
            check_thresholds((qsae_isa)isa);
        }
    check_capacity();
    check_empty();
    check_encode_errors();
    check_untouched();
    check_overflow(&SHAPES[0]);
    check_overflow(&SHAPES[2]);
    check_overflow(&SHAPES[5]);
    check_overflow(&SHAPES[9]);
    check_decode_errors();
    check_selection();
    return test_done("test_sae");
}
