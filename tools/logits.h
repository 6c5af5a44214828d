/* logits.h: what a row of logits says, in double, for the commands that compare two of
 * them (compare, eval). */

#ifndef QSAE_TOOLS_LOGITS_H
#define QSAE_TOOLS_LOGITS_H

#include <stddef.h>

/* The log of the sum of exp(logit), and the largest logit's id in *top (ties: the lower
 * one); NaN if a logit is not finite. */
double logits_log_sum(const float *logits, size_t n, size_t *top);

/* KL = sum of p (log p - log q), p of the logits a, q of b; la, lb: their log sums. */
double logits_kl(const float *a, double la, const float *b, double lb, size_t n);

#endif
