/* How well rows are reconstructed (see fidelity.h). */

#include "fidelity.h"

#include <math.h>

/* The sums: these, then sum x [d], then sum e [d]. */
enum {
    N,
    L0,
    SUM_F,
    ERROR,
    TARGET,
    MADE,
    DOT,
    NORM_X,
    NORM_Z,
    COSINE,
    NONZERO,    /* rows with |x| > 0 */
    ERROR_PART, /* |e|^2 / |x|^2 */
    NORM_PART,  /* |z| / |x| */
    AWAY,       /* rows with |x - m| > 0 */
    LEGACY,     /* |e|^2 / |x - m|^2 */
    SCALARS
};

size_t fidelity_size(size_t d)
{
    return SCALARS + 2 * d;
}

void fidelity_measure(fidelity_row *r, const float *x, const float *z,
                      const float *mean, size_t d)
{
    r->error = r->target = r->made = r->dot = r->about = 0;
    for (size_t k = 0; k < d; k++) {
        double a = (double)x[k], b = (double)z[k], m = a - (mean ? (double)mean[k] : 0);
        r->error += (b - a) * (b - a);
        r->target += a * a;
        r->made += b * b;
        r->dot += a * b;
        r->about += m * m;
    }
}

void fidelity_add(double *sums, const fidelity_row *r, const float *x, const float *z,
                  size_t d)
{
    double *sum_x = sums + SCALARS, *sum_e = sum_x + d;
    sums[N] += 1;
    sums[L0] += r->l0;
    sums[SUM_F] += r->sum_f;
    sums[ERROR] += r->error;
    sums[TARGET] += r->target;
    sums[MADE] += r->made;
    sums[DOT] += r->dot;
    sums[NORM_X] += sqrt(r->target);
    sums[NORM_Z] += sqrt(r->made);
    if (r->target > 0 && r->made > 0)
        sums[COSINE] += r->dot / (sqrt(r->target) * sqrt(r->made));
    if (r->target > 0) {
        sums[NONZERO] += 1;
        sums[ERROR_PART] += r->error / r->target;
        sums[NORM_PART] += sqrt(r->made) / sqrt(r->target);
    }
    if (r->about > 0) {
        sums[AWAY] += 1;
        sums[LEGACY] += r->error / r->about;
    }
    for (size_t k = 0; k < d; k++) {
        sum_x[k] += (double)x[k];
        sum_e[k] += (double)z[k] - (double)x[k];
    }
}

/* An error over a spread: nothing wrong is 0, whatever the spread. */
static double part(double error, double spread)
{
    return spread > 0 ? error / spread : error > 0 ? NAN : 0;
}

/* N times the variances of all coordinates, from the sum of squares. */
static double spread(double squares, const double *sum, size_t d, double n)
{
    double of_mean = 0;
    for (size_t k = 0; k < d; k++)
        of_mean += sum[k] * sum[k];
    double v = squares - of_mean / n;
    return v > 0 ? v : 0;
}

void fidelity_result(const double *s, size_t d, fidelity *out)
{
    double n = s[N], nan = NAN;
    double in_x = spread(s[TARGET], s + SCALARS, d, n);
    double in_e = spread(s[ERROR], s + SCALARS + d, d, n);
    out->n = n;
    out->l0 = s[L0] / n;
    out->mse = s[ERROR] / n;
    out->mse_coord = s[ERROR] / n / (double)d;
    out->fvu_mean = n > 0 ? part(s[ERROR], in_x) : nan;
    out->ev_mean = 1 - out->fvu_mean;
    out->fve_var = n > 0 ? 1 - part(in_e, in_x) : nan;
    out->fvu_zero = n > 0 ? part(s[ERROR], s[TARGET]) : nan;
    out->nmse = s[ERROR_PART] / s[NONZERO];
    out->ev_legacy = 1 - s[LEGACY] / s[AWAY];
    out->cosine = s[COSINE] / n;
    out->l2_ratio = s[NORM_PART] / s[NONZERO];
    out->norm_ratio = s[NORM_Z] / s[NORM_X];
    out->bias = s[MADE] / s[DOT];
    out->mean_f = s[L0] > 0 ? s[SUM_F] / s[L0] : 0;
}
