/* What a row of logits says (see logits.h). */

#include "logits.h"

#include <math.h>

double logits_log_sum(const float *logits, size_t n, size_t *top)
{
    double sum = 0;
    *top = 0;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(logits[i]))
            return NAN;
        if (logits[i] > logits[*top])
            *top = i;
    }
    for (size_t i = 0; i < n; i++)
        sum += exp((double)logits[i] - (double)logits[*top]);
    return (double)logits[*top] + log(sum);
}

double logits_kl(const float *a, double la, const float *b, double lb, size_t n)
{
    double kl = 0;
    for (size_t i = 0; i < n; i++) {
        double p = (double)a[i] - la, q = (double)b[i] - lb;
        kl += exp(p) * (p - q);
    }
    return kl;
}
