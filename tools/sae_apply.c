/* An SAE applied to many rows (see sae_apply.h). */

#include "sae_apply.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_CAP 16384 /* entries */

static int reserve(qsae_rows *s, size_t cap)
{
    free(s->index);
    free(s->value);
    s->index = malloc(cap * sizeof *s->index);
    s->value = malloc(cap * sizeof *s->value);
    s->cap = s->index && s->value ? cap : 0;
    return s->cap ? 0 : -1;
}

int sae_apply_begin(sae_apply *a, const qsae_sae *sae, int threads)
{
    memset(a, 0, sizeof *a);
    a->sae = sae;
    a->threads = threads;
    qsae_sae_get_info(sae, &a->info);
    a->scratch_size = qsae_sae_scratch_size(sae, SAE_APPLY_ROWS);
    a->scratch = a->scratch_size < SIZE_MAX ? malloc(a->scratch_size + 1) : NULL;
    a->sparse.start = malloc((SAE_APPLY_ROWS + 1) * sizeof *a->sparse.start);
    if (a->scratch && a->sparse.start && reserve(&a->sparse, FIRST_CAP) == 0)
        return 0;
    sae_apply_end(a);
    return -1;
}

void sae_apply_end(sae_apply *a)
{
    free(a->sparse.start);
    free(a->sparse.index);
    free(a->sparse.value);
    free(a->scratch);
    memset(a, 0, sizeof *a);
}

qsae_status sae_apply_rows(sae_apply *a, const float *x, size_t ld, size_t n,
                           float *made, qsae_error *err)
{
    qsae_status s = qsae_sae_encode(a->sae, x, n, ld, &a->sparse, a->scratch,
                                    a->scratch_size, a->threads, err);
    if (s == QSAE_E_LIMIT) {
        size_t need = a->sparse.start[n];
        if (reserve(&a->sparse, need)) {
            snprintf(err->text, sizeof err->text, "out of memory for %zu features",
                     need);
            err->offset = 0;
            return err->status = QSAE_E_NOMEM;
        }
        s = qsae_sae_encode(a->sae, x, n, ld, &a->sparse, a->scratch, a->scratch_size,
                            a->threads, err);
    }
    if (s == QSAE_OK && made)
        s = qsae_sae_decode(a->sae, &a->sparse, x, ld, made, a->scratch,
                            a->scratch_size, a->threads, err);
    return s;
}
