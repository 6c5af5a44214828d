/* sae_apply.h: an SAE applied to many rows, with the room that takes. */

#ifndef QSAE_TOOLS_SAE_APPLY_H
#define QSAE_TOOLS_SAE_APPLY_H

#include "../qsae.h"

#define SAE_APPLY_ROWS 32 /* most rows of a call */

typedef struct sae_apply {
    const qsae_sae *sae; /* borrowed */
    qsae_sae_info info;
    qsae_rows sparse; /* of the last call */
    void *scratch;
    size_t scratch_size;
    int threads;
} sae_apply;

/* 0, or -1 if out of memory. */
int sae_apply_begin(sae_apply *a, const qsae_sae *sae, int threads);
void sae_apply_end(sae_apply *a); /* a zeroed one is ended */

/* The features of x [n, d_in], rows ld floats apart (0: d_in), to a->sparse; and the
 * reconstruction to made [n, d_out], unless that is NULL. Room for features grows as
 * needed: a sink may have nearly all of them. */
qsae_status sae_apply_rows(sae_apply *a, const float *x, size_t ld, size_t n,
                           float *made, qsae_error *err);

#endif
