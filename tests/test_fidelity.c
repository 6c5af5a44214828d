/* The formulas of fidelity.h on numbers worked out by hand, and eigenvectors. */

#include "../tools/eigen.h"
#include "../tools/fidelity.h"
#include "../tools/logits.h"
#include "test.h"

#include <math.h>
#include <stdlib.h>

#define NEAR(a, b) CHECK(fabs((a) - (b)) <= 1e-12 * (1 + fabs((double)(b))))

enum { D = 2, ROWS = 3 };

static void measure(const float *x, const float *z, const float *mean, fidelity *out)
{
    double sums[64] = {0};
    CHECK(fidelity_size(D) <= 64);
    for (size_t i = 0; i < ROWS; i++) {
        fidelity_row r;
        fidelity_measure(&r, x + i * D, z + i * D, mean, D);
        r.l0 = (double)i;
        r.sum_f = 3;
        fidelity_add(sums, &r, x + i * D, z + i * D, D);
    }
    fidelity_result(sums, D, out);
}

/* x = (10,0) (12,0) (11,3), its mean (11,1): |x - mean|^2 is 2, 2, 4. */
static const float x[] = {10, 0, 12, 0, 11, 3}, mean[] = {11, 1};

static void test_formulas(void)
{
    static const float z[] = {10, 1, 12, 1, 11, 3}; /* |e|^2: 1, 1, 0 */
    fidelity f;
    measure(x, z, mean, &f);
    CHECK(f.n == 3 && f.l0 == 1 && f.mean_f == 3);
    NEAR(f.mse, 2.0 / 3);
    NEAR(f.mse_coord, 1.0 / 3);
    NEAR(f.fvu_mean, 2.0 / 8);
    NEAR(f.ev_mean, 0.75);
    NEAR(f.fve_var, 1 - (2 - 4.0 / 3) / 8);
    NEAR(f.fvu_zero, 2.0 / (100 + 144 + 130));
    NEAR(f.nmse, (1.0 / 100 + 1.0 / 144) / 3);
    NEAR(f.ev_legacy, 1 - (1.0 / 2 + 1.0 / 2) / 3);
    NEAR(f.cosine, (10 / sqrt(101) + 12 / sqrt(145) + 1) / 3);
    NEAR(f.l2_ratio, (sqrt(101) / 10 + sqrt(145) / 12 + 1) / 3);
    NEAR(f.norm_ratio, (sqrt(101) + sqrt(145) + sqrt(130)) / (22 + sqrt(130)));
    NEAR(f.bias, (101 + 145 + 130) / (100.0 + 144 + 130));
}

/* The mistake of others: variance about zero. A dictionary that gives the mean and no more
 * explains nothing of what varies; about zero it seems to explain nearly all. And a constant
 * error is free in FVE_var. */
static void test_baselines(void)
{
    static const float constant[] = {11, 1, 11, 1, 11, 1};
    static const float moved[] = {15, 0, 17, 0, 16, 3}, nothing[6] = {0};
    fidelity f;
    measure(x, constant, mean, &f);
    NEAR(f.ev_mean, 0);
    NEAR(f.fve_var, 0);
    NEAR(f.ev_legacy, 0);
    CHECK(1 - f.fvu_zero > 0.97);
    measure(x, moved, mean, &f);
    NEAR(f.fve_var, 1);
    NEAR(f.ev_mean, 1 - 75.0 / 8);
    measure(x, nothing, mean, &f);
    NEAR(f.fvu_zero, 1);
    CHECK(f.cosine == 0 && f.l2_ratio == 0 && isnan(f.bias) && f.ev_mean < -40);
    measure(x, x, mean, &f);
    CHECK(f.mse == 0 && f.ev_mean == 1 && f.fve_var == 1 && f.fvu_zero == 0);
    NEAR(f.cosine, 1);
    CHECK(f.bias == 1 && f.l2_ratio == 1 && f.ev_legacy == 1);
}

/* Rows that are all the same have no variance: nothing to explain, unless they are missed. */
static void test_degenerate(void)
{
    static const float same[] = {1, 2, 1, 2, 1, 2}, off[] = {1, 3, 1, 3, 1, 3};
    static const float zeros[6] = {0};
    double sums[64] = {0};
    fidelity f;
    measure(same, same, NULL, &f);
    CHECK(f.ev_mean == 1);
    measure(same, off, NULL, &f);
    CHECK(isnan(f.ev_mean));
    measure(zeros, off, NULL, &f);
    CHECK(isnan(f.nmse) && isnan(f.fvu_zero) && f.cosine == 0);
    fidelity_result(sums, D, &f);
    CHECK(f.n == 0 && isnan(f.ev_mean) && isnan(f.l0) && isnan(f.fvu_zero));
}

static void check_eigen(const double *a, size_t n)
{
    double *v = malloc(n * n * sizeof *v), *values = malloc(n * sizeof *values);
    double *work = malloc(2 * n * sizeof *work), size = 0, worst = 0, skew = 0;
    memcpy(v, a, n * n * sizeof *v);
    CHECK(eigen_symmetric(v, n, values, work) == 0);
    for (size_t i = 0; i < n * n; i++)
        size += a[i] * a[i];
    for (size_t i = 0; i < n; i++) {
        CHECK(i == 0 || values[i] <= values[i - 1]);
        for (size_t j = 0; j < n; j++) {
            double av = 0, dot = 0;
            for (size_t k = 0; k < n; k++) {
                av += a[j * n + k] * v[i * n + k];
                dot += v[i * n + k] * v[j * n + k];
            }
            double off = fabs(av - values[i] * v[i * n + j]);
            double away = fabs(dot - (i == j));
            worst = off <= worst ? worst : off; /* NaN stays */
            skew = away <= skew ? skew : away;
        }
    }
    CHECK(worst <= 1e-12 * (sqrt(size) + 1));
    CHECK(skew <= 1e-12);
    free(v);
    free(values);
    free(work);
}

static void test_eigen(void)
{
    static const size_t sizes[] = {1, 2, 3, 17, 64, 128};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int kind = 0; kind < 5; kind++) {
            size_t n = sizes[s];
            double *a = malloc(n * n * sizeof *a);
            unsigned x32 = 7 + (unsigned)s;
            for (size_t i = 0; i < n; i++)
                for (size_t j = 0; j <= i; j++) {
                    x32 = x32 * 1664525u + 1013904223u;
                    double r = (double)(x32 >> 8) / 8388608.0 - 1;
                    a[i * n + j] = a[j * n + i] =
                        kind == 0   ? r
                        : kind == 1 ? i == j
                        : kind == 2 ? 0
                                    : (double)(i + 1) * (double)(j + 1);
                }
            if (kind == 4) { /* as the covariance of fewer rows than columns */
                memset(a, 0, n * n * sizeof *a);
                for (size_t k = 0; k < n / 2 + 1; k++) {
                    double v[128];
                    for (size_t i = 0; i < n; i++) {
                        x32 = x32 * 1664525u + 1013904223u;
                        v[i] = (double)(x32 >> 8) / 8388608.0 - 1 + (double)(i % 7);
                    }
                    for (size_t i = 0; i < n * n; i++)
                        a[i] += v[i / n] * v[i % n] / (double)n;
                }
            }
            check_eigen(a, n); /* random, one, zero, of rank 1, of half rank */
            free(a);
        }
    double bad[4] = {1, NAN, NAN, 1}, values[2], work[4];
    CHECK(eigen_symmetric(bad, 2, values, work) == -1);
}

static void test_logits(void)
{
    static const float a[] = {0, 1, 1, -1}, b[] = {1, 0, 0.5f, 90},
                       bad[] = {0, INFINITY};
    size_t top;
    double la = logits_log_sum(a, 4, &top), lb, kl = 0;
    CHECK(top == 1);
    NEAR(la, log(1 + 2 * exp(1) + exp(-1)));
    CHECK(fabs(logits_kl(a, la, a, la, 4)) == 0);
    lb = logits_log_sum(b, 4, &top);
    CHECK(top == 3);
    for (int i = 0; i < 4; i++)
        kl += exp((double)a[i] - la) * ((double)a[i] - la - (double)b[i] + lb);
    NEAR(logits_kl(a, la, b, lb, 4), kl);
    CHECK(isnan(logits_log_sum(bad, 2, &top)));
}

int main(void)
{
    test_formulas();
    test_baselines();
    test_degenerate();
    test_eigen();
    test_logits();
    return test_done("test_fidelity");
}
