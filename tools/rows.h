/* Dense rows from a file: the matrix [n, width] that encode reads and decode's --input
 * names. Functions return 0, or -1 with err set. */

#ifndef QSAE_ROWS_H
#define QSAE_ROWS_H

#include "tensors.h"

typedef struct rows_in {
    tensor_file *file;
    const tensor *matrix;
    uint64_t n, width;
} rows_in;

/* The one tensor of floats in the file, or the one called `name` if that is not NULL:
 * F32, F16 or BF16 (F64 would be rounded: refused), [n, width]. */
int rows_open(rows_in *r, const char *path, const char *name, uint64_t width, char *err,
              size_t cap);
void rows_close(rows_in *r); /* a zeroed one is closed */

/* Rows first .. first + n - 1 to out[n, width]; all finite, or refused by row and
 * column. */
int rows_read(const rows_in *r, uint64_t first, uint64_t n, float *out, char *err,
              size_t cap);

#endif
