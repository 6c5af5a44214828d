#include "quantize.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

/* No product and sum in one statement here: a compiler may fuse those, and then machines
 * would differ. */

/* To the nearest integer, ties to even; |x| < 2^51. */
static double nearest(double x)
{
#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD == 0
    const double shift = 6755399441055744.0; /* 1.5 * 2^52: its last bit is worth 1 */
    x += shift;
    return x - shift;
#else
    return rint(x);
#endif
}

static double clamp(double x, double least, double most)
{
    x = x < least ? least : x;
    return x > most ? most : x;
}

/* ---- Q8 ---- */

#define Q8_SCALES 4096

static size_t q8_at(size_t r, size_t k)
{
    return k / 4 * 64 + r * 4 + k % 4;
}

static float q8_scale(const float *x)
{
    float most = 0;
    for (size_t k = 0; k < QUANTIZE_COLS; k++) {
        float v = fabsf(x[k]);
        most = v > most ? v : most;
    }
    float a = most / 127;
    /* next to the largest float: every weight stays finite */
    while ((double)a * 127 > (double)FLT_MAX)
        a = nextafterf(a, 0);
    return a;
}

void quantize_q8(const float *panel, unsigned char *out)
{
    for (size_t r = 0; r < QUANTIZE_ROWS; r++) {
        const float *x = panel + r * QUANTIZE_COLS;
        float a = q8_scale(x);
        for (size_t k = 0; k < QUANTIZE_COLS; k++) {
            /* in double the quotient of two floats has the ties of the exact one */
            double w = a > 0 ? (double)x[k] / (double)a : 0;
            out[q8_at(r, k)] = (unsigned char)(int)nearest(clamp(w, -127, 127));
        }
        memcpy(out + Q8_SCALES + r * 4, &a, 4);
    }
}

void dequantize_q8(const unsigned char *block, float *panel)
{
    for (size_t r = 0; r < QUANTIZE_ROWS; r++) {
        float a;
        memcpy(&a, block + Q8_SCALES + r * 4, 4);
        for (size_t k = 0; k < QUANTIZE_COLS; k++) {
            int w = block[q8_at(r, k)];
            panel[r * QUANTIZE_COLS + k] = a * (float)(w < 128 ? w : w - 256);
        }
    }
}

/* ---- Q4 ---- */

#define Q4_STEPS  2048
#define Q4_SCALES 2112
#define PARTS     8 /* of a row, 32 numbers each, with one m */
#define PART      32

static size_t q4_at(size_t r, size_t k)
{
    return k / 8 * 64 + r * 4 + k % 4;
}

/* What a row becomes. q follows: x / (d m) to the nearest of -8..7. */
typedef struct row_q4 {
    float d;
    int m[PARTS];
    double error; /* sum of squares */
} row_q4;

/* The squared error of 32 numbers as multiples of step, which may be negative. In loops
 * that a compiler makes vectors of: the four sums fix the order. */
static double error_of(const double *x, double step)
{
    double e[PART], by = 1 / step;
    for (size_t k = 0; k < PART; k++) {
        double q = x[k] * by;
        q = nearest(q);
        /* to -8..7: exact, and without a branch */
        q = 0.5 * (fabs(q + 8) - fabs(q - 7) - 1);
        q *= step;
        e[k] = x[k] - q;
        e[k] *= e[k];
    }
    double sum[4] = {0, 0, 0, 0};
    for (size_t k = 0; k < PART; k += 4)
        for (size_t j = 0; j < 4; j++)
            sum[j] += e[k + j];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* The least step that clips none of 32 numbers, with the sign that lets the largest
 * become -8. */
static double whole_step(const double *x)
{
    double up = 0, down = 0;
    for (size_t k = 0; k < PART; k++) {
        up = x[k] > up ? x[k] : up;
        down = -x[k] > down ? -x[k] : down;
    }
    double a = up > down ? up : down, b = up > down ? down : up;
    double step = a / 8 > b / 7 ? a / 8 : b / 7;
    return up > down ? -step : step;
}

/* A step of less error. Clipping the largest number a little serves the others. */
static double good_step(const double *x, double whole)
{
    double best = whole, least = whole != 0 ? error_of(x, whole) : 0;
    for (int i = 0; i < 10 && whole != 0; i++) {
        double step = whole * (1.04 - 0.04 * i);
        double error = error_of(x, step);
        if (error < least) {
            least = error;
            best = step;
        }
    }
    return best;
}

/* As a row's scale is stored: a float whose low 8 bits are 0, the nearest one above 0. */
static float stored_scale(double scale)
{
    float d =
        (float)(scale < FLT_MAX / 128 ? scale : FLT_MAX / 128); /* d m q is finite */
    uint32_t bits;
    memcpy(&bits, &d, 4);
    bits = (bits + 128) & ~(uint32_t)255;
    memcpy(&d, &bits, 4);
    return d;
}

/* The better of the two m around the wish of a part; its squared error. */
static double choose_m(const double *x, double wish, double d, int *m)
{
    double sign = wish < 0 ? -1 : 1;
    double low = clamp(floor(fabs(wish) / d), 1, 15), high = clamp(low + 1, 1, 15);
    double a = error_of(x, d * low * sign), b = error_of(x, d * high * sign);
    *m = (int)(sign * (a <= b ? low : high));
    return a <= b ? a : b;
}

/* With this d and, for each part, the better of the m around its wish, `both`: of either
 * sign: *best, if it is better than what is there. */
static void try_scale(const double *x, const double *wish, double scale, int both,
                      row_q4 *best)
{
    row_q4 t;
    t.d = stored_scale(scale);
    t.error = 0;
    if (!(t.d > 0))
        return;
    for (size_t g = 0; g < PARTS && t.error < best->error; g++) {
        int other;
        double a = choose_m(x + g * PART, wish[g], (double)t.d, &t.m[g]), b = a;
        if (both)
            b = choose_m(x + g * PART, -wish[g], (double)t.d, &other);
        if (b < a)
            t.m[g] = other;
        t.error += b < a ? b : a;
    }
    if (t.error < best->error)
        *best = t;
}

static int q_of(double x, double step)
{
    double by = 1 / step;
    return (int)nearest(clamp(x * by, -8, 7));
}

/* The d of least squared error for the m and q of t. */
static double refit(const double *x, const row_q4 *t)
{
    double product = 0, square = 0;
    for (size_t k = 0; k < QUANTIZE_COLS; k++) {
        int m = t->m[k / PART];
        double w = m * q_of(x[k], (double)t->d * m), a = w * x[k], b = w * w;
        product += a;
        square += b;
    }
    return square > 0 ? product / square : 0;
}

static row_q4 choose_q4(const double *x)
{
    row_q4 best;
    memset(&best, 0, sizeof best);
    for (size_t k = 0; k < QUANTIZE_COLS; k++) {
        double a = x[k] * x[k];
        best.error += a; /* that of zeros */
    }
    double whole[PARTS], good[PARTS], most_whole = 0, most = 0;
    for (size_t g = 0; g < PARTS; g++) {
        whole[g] = whole_step(x + g * PART);
        good[g] = good_step(x + g * PART, whole[g]);
        most_whole = fabs(whole[g]) > most_whole ? fabs(whole[g]) : most_whole;
        most = fabs(good[g]) > most ? fabs(good[g]) : most;
    }
    /* the first one a little larger: rounded to its bits it still clips nothing */
    try_scale(x, whole, most_whole / 15 * (1 + 1.0 / 65536), 0, &best);
    for (int i = -3; i <= 3; i++)
        try_scale(x, good, most / 15 * (1 + 0.02 * i), 0, &best);
    for (int i = 0; i < 2 && best.d > 0; i++) {
        double d = refit(x, &best);
        double wish[PARTS]; /* the steps as they are */
        for (size_t g = 0; g < PARTS; g++)
            wish[g] = d * (best.m[g] + (best.m[g] < 0 ? -0.5 : 0.5));
        try_scale(x, wish, d, 1, &best);
    }
    return best;
}

static void put_row_q4(const double *x, const row_q4 *t, size_t r, unsigned char *out)
{
    uint32_t steps = 0, scale;
    memcpy(&scale, &t->d, 4);
    for (size_t g = 0; g < PARTS; g++) {
        int any = 0, m = t->m[g];
        for (size_t k = g * PART; k < (g + 1) * PART; k++) {
            int q = t->d > 0 ? q_of(x[k], (double)t->d * m) : 0;
            any |= q;
            out[q4_at(r, k)] |= (unsigned char)((q + 8) << (k % 8 < 4 ? 0 : 4));
        }
        if (!any) /* where all are 0, m says nothing: 1 */
            m = 1;
        steps |= (uint32_t)(m < 0 ? -m : m) << (4 * g);
        scale |= (uint32_t)(m < 0) << g;
    }
    memcpy(out + Q4_STEPS + r * 4, &steps, 4);
    memcpy(out + Q4_SCALES + r * 4, &scale, 4);
}

void quantize_q4(const float *panel, unsigned char *out)
{
    memset(out, 0, QUANTIZE_Q4_BYTES);
    for (size_t r = 0; r < QUANTIZE_ROWS; r++) {
        double x[QUANTIZE_COLS];
        for (size_t k = 0; k < QUANTIZE_COLS; k++)
            x[k] = panel[r * QUANTIZE_COLS + k];
        row_q4 t = choose_q4(x);
        put_row_q4(x, &t, r, out);
    }
}

void dequantize_q4(const unsigned char *block, float *panel)
{
    for (size_t r = 0; r < QUANTIZE_ROWS; r++) {
        uint32_t steps, signs, scale;
        float d;
        memcpy(&steps, block + Q4_STEPS + r * 4, 4);
        memcpy(&signs, block + Q4_SCALES + r * 4, 4);
        scale = signs & ~(uint32_t)255;
        memcpy(&d, &scale, 4);
        for (size_t k = 0; k < QUANTIZE_COLS; k++) {
            int q = (block[q4_at(r, k)] >> (k % 8 < 4 ? 0 : 4) & 15) - 8;
            int m = (int)(steps >> (k / PART * 4) & 15);
            m = signs >> k / PART & 1 ? -m : m;
            panel[r * QUANTIZE_COLS + k] = d * (float)(m * q);
        }
    }
}
