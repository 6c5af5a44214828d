/* fidelity.h: how well rows are reconstructed, by formulas with names. For `eval` and
 * `convert --check`.
 *
 * Over N rows with target x [d], reconstruction z, error e = z - x; sums in double, in the
 * order of the rows:
 *     L0          mean number of active features
 *     MSE         sum |e|^2 / N                  (summed over the coordinates)
 *     MSE_coord   MSE / d
 *     FVU_mean    sum |e|^2 / sum |x - xbar|^2,  xbar the mean of these rows
 *     EV_mean     1 - FVU_mean
 *     FVE_var     1 - sum_j Var(e_j) / sum_j Var(x_j): does not charge a constant error
 *     FVU_zero    sum |e|^2 / sum |x|^2: the baseline is 0, not the mean
 *     nMSE        mean of |e|^2 / |x|^2
 *     EV_legacy   1 - mean of |e|^2 / |x - m|^2, m a given mean
 *     cosine      mean of x.z / (|x| |z|), 0 where one of them is 0
 *     L2_ratio    mean of |z| / |x|
 *     norm_ratio  sum |z| / sum |x|
 *     bias        E|z|^2 / E[x.z]: 1 is unbiased, below 1 is shrinkage
 *     mean_f      mean value of an active feature
 * A mean of ratios leaves out rows whose denominator is 0. What cannot be had (no rows,
 * a denominator of 0) is NaN, but a perfect reconstruction has an FVU of 0. */

#ifndef QSAE_TOOLS_FIDELITY_H
#define QSAE_TOOLS_FIDELITY_H

#include <stddef.h>

/* One row. */
typedef struct fidelity_row {
    double error, target, made, dot; /* |e|^2, |x|^2, |z|^2, x.z */
    double about;                    /* |x - m|^2 */
    double l0, sum_f;
} fidelity_row;

/* mean: m [d], NULL for 0. l0 and sum_f are the caller's. */
void fidelity_measure(fidelity_row *r, const float *x, const float *z,
                      const float *mean, size_t d);

/* The sums of rows: fidelity_size(d) doubles, at first 0. Plain numbers, to be kept in a
 * file or in an array of the caller. */
size_t fidelity_size(size_t d);
void fidelity_add(double *sums, const fidelity_row *r, const float *x, const float *z,
                  size_t d);

typedef struct fidelity {
    double n, l0, mse, mse_coord, fvu_mean, ev_mean, fve_var, fvu_zero, nmse, ev_legacy,
        cosine, l2_ratio, norm_ratio, bias, mean_f;
} fidelity;

void fidelity_result(const double *sums, size_t d, fidelity *out);

#endif
