/* The screen of an SAE file (FORMAT.md): a Q8 copy c_i of every encoder row e_i, |e_i - c_i| and |c_i|, from which
 * the library proves that most features cannot fire. Rows are read once more as they were written, so the bounds are
 * those of the stored numbers. */

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include "sae_source.h"

#include <math.h>
#include <stdlib.h>

#include "quantize.h"
#include "screen.h"

#define SMALLEST 4096 /* features: with fewer the encoder is read in no time */

int sae_has_screen(const sae_source *s)
{
    if (s->record.activation == QSAE_ACT_GROUPMAX) /* encoded densely */
        return 0;
    return s->o->screen ? s->o->screen == SCREEN_YES : s->record.d_sae >= SMALLEST;
}

int sae_screen_declare(const sae_source *s, qfile *q, uint32_t group, char *err,
                       size_t cap)
{
    const qsae_sae_record *r = &s->record;
    const uint32_t f32 = QSAE_TYPE_F32, vec = QSAE_LAYOUT_VECTOR;
    return qfile_declare(q, group, QSAE_ROLE_SCREEN, QSAE_TYPE_Q8, QSAE_LAYOUT_BLOCK16,
                         r->d_sae, r->d_in, err, cap) ||
                   qfile_declare(q, group, QSAE_ROLE_SCREEN_REST, f32, vec, 1, r->d_sae,
                                 err, cap) ||
                   qfile_declare(q, group, QSAE_ROLE_SCREEN_NORM, f32, vec, 1, r->d_sae,
                                 err, cap)
               ? -1
               : 0;
}

typedef struct screen {
    sae_source *s;
    qfile_fill rows;     /* of the encoder, as they were written */
    double *rest, *norm; /* [d_sae]: squares */
} screen;

static int fill(void *user, const qfile_part *p, float *out, char *err, size_t cap)
{
    screen *t = user;
    uint64_t I = t->s->record.d_in;
    if (t->rows(t->s, p, out, err, cap))
        return -1;
    for (uint64_t i = 0; i < p->n_rows * I; i++)
        if (!isfinite(out[i]))
            return 0; /* the writer says where */
#if defined(_OPENMP)
#pragma omp parallel for schedule(static)
#endif
    for (uint64_t r = 0; r < p->n_rows; r += QUANTIZE_ROWS)
        screen_panel(out + r * I, (size_t)I,
                     p->n_rows - r < QUANTIZE_ROWS ? p->n_rows - r : QUANTIZE_ROWS, I,
                     NULL, t->rest + p->row + r, t->norm + p->row + r);
    return 0;
}

static int write_bound(const screen *t, qfile *q, const double *squares)
{
    size_t F = t->s->record.d_sae;
    float *v = malloc(F * sizeof *v);
    int status = v ? 0 : err_set(t->s->err, t->s->cap, "out of memory");
    for (size_t i = 0; i < F && !status; i++) {
        v[i] = screen_bound(squares[i]);
        if (!isfinite(v[i]))
            status = err_set(t->s->err, t->s->cap,
                             "feature %zu: its encoder row is too long for a screen "
                             "(--screen no leaves it out)",
                             i);
    }
    if (!status)
        status = qfile_vector(q, v, t->s->err, t->s->cap);
    free(v);
    return status;
}

int sae_screen_write(sae_source *s, qfile *q, qfile_fill rows)
{
    size_t F = s->record.d_sae;
    screen t = {s, rows, calloc(F, sizeof(double)), calloc(F, sizeof(double))};
    int status = t.rest && t.norm ? qfile_matrix(q, fill, &t, s->err, s->cap)
                                  : err_set(s->err, s->cap, "out of memory");
    if (!status)
        status = write_bound(&t, q, t.rest) || write_bound(&t, q, t.norm) ? -1 : 0;
    free(t.rest);
    free(t.norm);
    return status;
}
