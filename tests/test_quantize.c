/* The quantisers of tools/quantize.c against slow code that says the same in another way,
 * against their bounds, and through qfile. Prints the errors beside those of ggml's
 * simplest schemes (Q8_0, Q4_0), written here from their description. */

#include "../tools/qfile.h"
#include "../tools/quantize.h"
#include "test.h"
#include "tiny.h"

#include <float.h>

#define GOLDEN_Q8 0xc8adb89eaae48121u
#define GOLDEN_Q4 0x5921117a9a0b6d57u

enum { ROWS = QUANTIZE_ROWS, COLS = QUANTIZE_COLS, N = ROWS * COLS };

static float panel[N], back[N];
static unsigned char block[QUANTIZE_Q8_BYTES];

/* ---- numbers to try ---- */

enum {
    BELL,
    HEAVY,
    UNIFORM,
    OUTLIERS,
    SUBNORMAL,
    HUGE,
    ONE,
    ALIKE,
    TIES,
    ZEROS,
    KINDS
};
static const char *const kinds[KINDS] = {
    "gaussian", "heavy tails", "uniform", "outliers", "subnormal",
    "huge",     "one number",  "alike",   "ties",     "zeros"};

static double bell(uint64_t *s) /* a sum of twelve: no libm, the same everywhere */
{
    double sum = 0;
    for (int i = 0; i < 12; i++) {
        double u = tiny_uniform(s);
        sum += u;
    }
    return sum / 2;
}

static double draw(int kind, int i, uint64_t *s)
{
    double x = bell(s);
    switch (kind) {
    case BELL: return 0.02 * x;
    case HEAVY: return 0.02 * x * x * x;
    case UNIFORM: return tiny_uniform(s);
    case OUTLIERS: return tiny_uniform(s) > 0.99 ? x : 0.02 * x;
    case SUBNORMAL: return x * 1e-42 / (1 << i / COLS); /* the last rows: 0 or 1 unit */
    case HUGE: return 1e38 * tiny_uniform(s) * 3.4;
    case ONE: return i % COLS == i / COLS * 15 ? x : 0;
    case ALIKE: return i / COLS % 2 ? 0.25 : -0.25;
    case TIES: return i % COLS ? (i * 7 % 255 - 127) / 2.0 : 127;
    default: return i % 3 ? 0.0 : -0.0;
    }
}

static void fill(int kind, uint64_t seed)
{
    for (int i = 0; i < N; i++)
        panel[i] = (float)draw(kind, i, &seed);
    if (kind == HUGE) {
        panel[3] = FLT_MAX;
        panel[COLS + 200] = -FLT_MAX;
        panel[2 * COLS] = 3e38f;
    }
}

/* ---- the format again, as FORMAT.md says it ---- */

static float f32_at(size_t at)
{
    float f;
    memcpy(&f, block + at, 4);
    return f;
}

static uint32_t u32_at(size_t at)
{
    uint32_t u;
    memcpy(&u, block + at, 4);
    return u;
}

static int w_at(size_t n, size_t k)
{
    return (int8_t)block[k / 4 * 64 + 4 * n + k % 4];
}

static int q_at(size_t n, size_t k)
{
    size_t t = k / 8, j = k % 8;
    return (j < 4 ? block[64 * t + 4 * n + j] & 15
                  : block[64 * t + 4 * n + j - 4] >> 4) -
           8;
}

static int m_at(size_t n, size_t k)
{
    int m = (int)(u32_at(2048 + 4 * n) >> 4 * (k / 32) & 15);
    return u32_at(2112 + 4 * n) >> k / 32 & 1 ? -m : m;
}

static float d_at(size_t n)
{
    uint32_t bits = u32_at(2112 + 4 * n) / 256 * 256;
    float d;
    memcpy(&d, &bits, 4);
    return d;
}

/* ---- Q8 ---- */

/* x / a to the nearest integer, ties to even, found by trying. */
static int nearest_q8(float x, float a)
{
    int best = 0;
    for (int w = -127; w <= 127; w++) { /* all in double, where w a is exact */
        double d = fabs((double)x - w * (double)a),
               b = fabs((double)x - best * (double)a);
        if (d < b || (d == b && w % 2 == 0))
            best = w;
    }
    return best;
}

static void check_q8(int kind)
{
    int places = 0, scales = 0, rounding = 0, values = 0, finite = 0, bound = 0,
        zero = 0;
    quantize_q8(panel, block);
    dequantize_q8(block, back);
    for (size_t n = 0; n < ROWS; n++) {
        float most = 0, a = f32_at(4096 + 4 * n);
        int any = 0;
        for (size_t k = 0; k < COLS; k++)
            most = fmaxf(most, fabsf(panel[n * COLS + k]));
        float want = most / 127;
        scales += a == want || (kind == HUGE && a == nextafterf(want, 0));
        zero += !signbit(a);
        for (size_t k = 0; k < COLS; k++) {
            float x = panel[n * COLS + k], y = back[n * COLS + k];
            int w = w_at(n, k);
            any |= w;
            places += w >= -127;
            rounding += w == (a > 0 ? nearest_q8(x, a) : 0);
            values += y == a * (float)w;
            finite += isfinite(y) != 0;
            /* half a step, and the float product's rounding; a subnormal scale has few
             * bits, and may be too small for the largest number */
            bound += fabs((double)x - (double)y) <=
                         (a > 0 ? 0.5 * a + 1e-7 * fabs((double)x) + 1e-45 : 90e-45) ||
                     (kind == SUBNORMAL && abs(w) == 127);
        }
        zero += (a == 0) == (any == 0);
    }
    if (!CHECK(places == N && rounding == N && values == N && finite == N &&
               bound == N && scales == ROWS && zero == 2 * ROWS))
        fprintf(stderr, "    q8, %s: %d %d %d %d %d of %d, %d %d of %d\n", kinds[kind],
                places, rounding, values, finite, bound, N, scales, zero, ROWS);
}

/* ---- Q4 ---- */

static double squares(const float *x, const float *y, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
    return sum;
}

/* What steps that clip nothing guarantee for a row: half a step everywhere. The sign of m
 * makes the larger side of a 32 the one that goes to -8. */
static double bound_q4(const float *x)
{
    double whole[8] = {0}, most = 0, sum = 0;
    for (size_t g = 0; g < 8; g++) {
        double up = 0, down = 0;
        for (size_t k = 32 * g; k < 32 * g + 32; k++) {
            up = fmax(up, (double)x[k]);
            down = fmax(down, -(double)x[k]);
        }
        whole[g] = fmax(fmax(up, down) / 8, fmin(up, down) / 7);
        most = fmax(most, whole[g]);
    }
    for (size_t g = 0; g < 8; g++) {
        double step = whole[g] + most / 15; /* m rounded up */
        sum += 32 * step * step / 4;
    }
    return sum;
}

static void check_q4(int kind)
{
    int values = 0, finite = 0, bound = 0, zero = 0, parts = 0;
    quantize_q4(panel, block);
    dequantize_q4(block, back);
    for (size_t n = 0; n < ROWS; n++) {
        float d = d_at(n);
        int any = 0;
        for (size_t k = 0; k < COLS; k++) {
            any |= q_at(n, k);
            values += back[n * COLS + k] == d * (float)(m_at(n, k) * q_at(n, k));
            finite += isfinite(back[n * COLS + k]) != 0;
        }
        for (size_t k = 0; k < COLS; k += 32) {
            int some = 0;
            for (size_t i = k; i < k + 32; i++)
                some |= q_at(n, i);
            parts += m_at(n, k) != 0 && (some || m_at(n, k) == 1);
        }
        zero += (d == 0) == (any == 0) && !signbit(d);
        double error = squares(panel + n * COLS, back + n * COLS, COLS);
        /* subnormal scales have few bits: there the error of zeros is the bound */
        double most = kind == SUBNORMAL
                          ? squares(panel + n * COLS, (float[COLS]){0}, COLS)
                          : 1.0001 * bound_q4(panel + n * COLS);
        bound += error <= most;
    }
    CHECK(values == N && finite == N && zero == ROWS && parts == 8 * ROWS);
    if (!CHECK(bound == ROWS))
        fprintf(stderr, "    q4, %s: %d of %d rows within the bound\n", kinds[kind],
                bound, ROWS);
}

/* ---- both ---- */

/* Numbers that a superblock stands for give that superblock again: scales are powers of
 * two here, and every scale's largest number occurs, so that there is nothing to choose. */
static void check_round_trip(void)
{
    static unsigned char first[QUANTIZE_Q8_BYTES];
    uint64_t s = 5;
    for (int i = 0; i < N; i++)
        panel[i] = ldexpf((float)(int)(127.9 * tiny_uniform(&s)), i / COLS * 15 - 120);
    for (int i = 0; i < N; i += COLS)
        panel[i + 77] = ldexpf(i / COLS % 2 ? 127 : -127, i / COLS * 15 - 120);
    quantize_q8(panel, first);
    dequantize_q8(first, back);
    CHECK(memcmp(panel, back, sizeof panel) == 0);
    quantize_q8(back, block);
    CHECK(memcmp(first, block, QUANTIZE_Q8_BYTES) == 0);
    for (int i = 0; i < N; i++) {
        int q = i % 32 == 3   ? -8
                : i % 32 == 9 ? 7
                              : (int)(8 * (tiny_uniform(&s) + 1)) - 8;
        int m = i % COLS < 32 ? 15 : 1 + (i / 32 * 5 + i / COLS) % 15;
        if (i / 32 % 3 == 1)
            m = -m;
        panel[i] = ldexpf((float)(m * q), i / COLS * 14 - 115);
    }
    quantize_q4(panel, first);
    dequantize_q4(first, back);
    int same = 0;
    for (int i = 0; i < N; i++)
        same += panel[i] == back[i];
    CHECK(same == N);
    quantize_q4(back, block);
    CHECK(memcmp(first, block, QUANTIZE_Q4_BYTES) == 0);
}

/* ggml's Q8_0 and Q4_0, without their rounding of the scale to f16: 32 numbers a scale,
 * absmax / 127, or the number of largest magnitude to -8. */
static void ggml_q8_0(const float *x, float *y)
{
    double most = 0;
    for (int i = 0; i < 32; i++)
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    for (int i = 0; i < 32; i++)
        y[i] = most > 0 ? (float)(rint(x[i] / (most / 127)) * (most / 127)) : 0;
}

static double nearest_q4_0(double x)
{
    double q = floor(x + 8.5);
    return q > 15 ? 15 : q;
}

static void ggml_q4_0(const float *x, float *y)
{
    int top = 0;
    for (int i = 1; i < 32; i++)
        top = fabsf(x[i]) > fabsf(x[top]) ? i : top;
    double d = (double)x[top] / -8;
    for (int i = 0; i < 32; i++)
        y[i] = x[top] != 0 ? (float)((nearest_q4_0(x[i] / d) - 8) * d) : 0;
}

static void compare(int kind)
{
    double sum = 0, q8 = 0, q4 = 0, q8_0 = 0, q4_0 = 0;
    for (uint64_t seed = 0; seed < 20; seed++) {
        fill(kind, 100 + seed);
        sum += squares(panel, (float[N]){0}, N);
        quantize_q8(panel, block);
        dequantize_q8(block, back);
        q8 += squares(panel, back, N);
        quantize_q4(panel, block);
        dequantize_q4(block, back);
        q4 += squares(panel, back, N);
        for (int i = 0; i < N; i += 32)
            ggml_q8_0(panel + i, back + i);
        q8_0 += squares(panel, back, N);
        for (int i = 0; i < N; i += 32)
            ggml_q4_0(panel + i, back + i);
        q4_0 += squares(panel, back, N);
    }
    printf("rms error of %-12s q8 %.5f (Q8_0 %.5f)  q4 %.5f (Q4_0 %.5f)\n", kinds[kind],
           sqrt(q8 / sum), sqrt(q8_0 / sum), sqrt(q4 / sum), sqrt(q4_0 / sum));
    if (kind == BELL || kind == UNIFORM) {
        CHECK(sqrt(q8 / q8_0) < 1.6); /* 256 numbers a scale instead of 32 */
        CHECK(sqrt(q4 / q4_0) < (kind == BELL ? 0.97 : 1.0)); /* 4.25 bits, not 4.5 */
    }
}

/* The same bytes from every compiler and machine. */
static void check_bytes(void)
{
    qsae_hash h8, h4;
    qsae_hash_begin(&h8);
    qsae_hash_begin(&h4);
    for (int kind = 0; kind < KINDS; kind++) {
        fill(kind, 9);
        quantize_q8(panel, block);
        qsae_hash_add(&h8, block, QUANTIZE_Q8_BYTES);
        quantize_q4(panel, block);
        qsae_hash_add(&h4, block, QUANTIZE_Q4_BYTES);
    }
    uint64_t q8 = qsae_hash_end(&h8), q4 = qsae_hash_end(&h4);
    if (!CHECK(q8 == GOLDEN_Q8 && q4 == GOLDEN_Q4))
        fprintf(stderr, "    bytes: 0x%016llx 0x%016llx\n", (unsigned long long)q8,
                (unsigned long long)q4);
}

/* ---- through qfile ---- */

enum { BIG_ROWS = 37, BIG_COLS = 600 };
static float big[BIG_ROWS * BIG_COLS];

static int give(void *user, const qfile_part *p, float *out, char *err, size_t cap)
{
    (void)user, (void)err, (void)cap;
    for (uint64_t i = 0; i < p->n_rows; i++)
        memcpy(out + i * p->n_cols, big + (p->row + i) * BIG_COLS + p->col,
               (size_t)p->n_cols * sizeof *big);
    return 0;
}

static int write_big(const char *path, uint32_t type, char *err, size_t cap)
{
    qfile *q = qfile_create(path, QSAE_KIND_MODEL, 1, err, cap);
    if (q &&
        qfile_declare(q, 0, QSAE_ROLE_EMBED, type, QSAE_LAYOUT_BLOCK16, BIG_ROWS,
                      BIG_COLS, err, cap) == 0 &&
        qfile_matrix(q, give, NULL, err, cap) == 0)
        return qfile_finish(q, NULL, err, cap);
    qfile_abort(q);
    return -1;
}

/* The superblocks of a file, one after another, are those of the matrix's panels. */
static void check_file(const char *path, uint32_t type)
{
    char err[512] = "";
    static unsigned char data[9 * QUANTIZE_Q8_BYTES + 512];
    const size_t size = type == QSAE_TYPE_Q8 ? QUANTIZE_Q8_BYTES : QUANTIZE_Q4_BYTES;
    if (!CHECK(write_big(path, type, err, sizeof err) == 0)) {
        fprintf(stderr, "    %s\n", err);
        return;
    }
    FILE *f = fopen(path, "rb");
    size_t n = f ? fread(data, 1, sizeof data, f) : 0, at = 64 + 256 + 64;
    if (f)
        fclose(f);
    CHECK(n == at + 9 * size);
    for (size_t row = 0; row < 48; row += ROWS)
        for (size_t col = 0; col < 768; col += COLS, at += size) {
            for (size_t i = 0; i < N; i++) {
                size_t r = row + i / COLS, c = col + i % COLS;
                panel[i] = r < BIG_ROWS && c < BIG_COLS ? big[r * BIG_COLS + c] : 0;
            }
            (type == QSAE_TYPE_Q8 ? quantize_q8 : quantize_q4)(panel, block);
            CHECK(memcmp(block, data + at, size) == 0);
        }
    remove(path);
}

static void check_refused(const char *path, uint32_t type)
{
    static const struct {
        float x;
        const char *message;
    } bad[] = {{NAN, "row 20 column 513: nan is not finite"},
               {-NAN, "row 20 column 513: -nan is not finite"},
               {INFINITY, "row 20 column 513: inf is not finite"},
               {-INFINITY, "row 20 column 513: -inf is not finite"}};
    float kept = big[20 * BIG_COLS + 513];
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char err[512] = "";
        big[20 * BIG_COLS + 513] = bad[i].x;
        CHECK(write_big(path, type, err, sizeof err) == -1);
        CHECK_STR(err, bad[i].message);
        FILE *f = fopen(path, "rb");
        CHECK(f == NULL);
        if (f)
            fclose(f);
    }
    big[20 * BIG_COLS + 513] = kept;
}

int main(int argc, char **argv)
{
    char path[512];
    snprintf(path, sizeof path, "%s/quantize.qsae", argc > 1 ? argv[1] : ".");
    for (int kind = 0; kind < KINDS; kind++)
        for (uint64_t seed = 1; seed < 5; seed++) {
            fill(kind, seed);
            check_q8(kind);
            check_q4(kind);
        }
    check_round_trip();
    for (int kind = BELL; kind <= OUTLIERS; kind++)
        compare(kind);
    check_bytes();
    uint64_t s = 3;
    for (int i = 0; i < BIG_ROWS * BIG_COLS; i++)
        big[i] = (float)bell(&s);
    for (uint32_t type = QSAE_TYPE_Q8; type;
         type = type == QSAE_TYPE_Q8 ? QSAE_TYPE_Q4 : 0) {
        check_file(path, type);
        check_refused(path, type);
    }
    return test_done("test_quantize");
}
