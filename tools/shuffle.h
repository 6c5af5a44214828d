/* shuffle.h: the buffer between the model, which gives rows in the order of the text, and
 * the trainers, which want them mixed.
 *
 * The buffer is filled with one bucket of rows after the other; what a bucket holds is
 * drawn in an order that a generator of our own makes from (seed, name, bucket) alone, so
 * that nothing of it needs to be saved. A row stands for a token and has a part, a
 * column, for every stream of activations. The rows lie in memory or in a file: a bucket
 * is only appended to until it is cleared, so that the file of a program that was killed
 * still holds what a checkpoint of this bucket counts on.
 *
 * Functions return 0, or -1 with err set. */

#ifndef QSAE_TOOLS_SHUFFLE_H
#define QSAE_TOOLS_SHUFFLE_H

#include <stddef.h>
#include <stdint.h>

typedef struct shuffle {
    size_t cap, n, n_columns; /* rows there is room for, rows in it */
    size_t *width;            /* [n_columns] */
    float **norm;             /* [n_columns]: [cap] lengths of the rows */
    float **rows;             /* [n_columns]: [cap, width]; NULL: in the file */
    uint64_t *offset;         /* [n_columns] in the file */
    char *path;               /* NULL: in memory */
    int fd;
} shuffle;

/* path NULL: in memory. The file is made, or taken over (keep) if it has the right size;
 * its room on the disk is reserved at once. A zeroed shuffle is closed. */
int shuffle_open(shuffle *s, const size_t *widths, size_t n_columns, size_t cap,
                 const char *path, int keep, char *err, size_t err_cap);
void shuffle_close(shuffle *s);
/* Bytes of memory, or of the file, that `cap` rows take; UINT64_MAX if too many. */
uint64_t shuffle_bytes(const size_t *widths, size_t n_columns, size_t cap);
uint64_t shuffle_memory(const shuffle *s);

/* Appends n rows: columns[c] is [n, width[c]]. A row whose length is no finite number is
 * refused: *bad_row and *bad_column say which, and err only that. */
int shuffle_append(shuffle *s, const float *const *columns, size_t n, size_t *bad_row,
                   size_t *bad_column, char *err, size_t err_cap);
void shuffle_clear(shuffle *s);
int shuffle_sync(shuffle *s, char *err, size_t err_cap); /* the file to the disk */

/* One row's column to out[width]. Of a file that is no longer what was written: -1. */
int shuffle_get(const shuffle *s, size_t column, size_t row, float *out, char *err,
                size_t err_cap);

/* A seed from a seed and a name; of different pairs practically never the same. */
uint64_t shuffle_seed(uint64_t seed, const char *name);
/* Mixes order[n], every order being as likely: Fisher and Yates. */
void shuffle_order(uint32_t *order, size_t n, uint64_t seed, uint64_t bucket);

#endif
