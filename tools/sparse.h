/* Sparse rows of features in files, as `qsae encode` writes and `qsae decode` reads:
 *
 *     .jsonl        a line for each row: {"row":0,"features":[[i,v],...]}
 *     .safetensors  CSR: indptr I64 [n + 1], indices I32, values F32
 *
 * Rows count from 0, indices ascend within a row. Both hold the same bits: nine digits
 * bring a float back exactly. Indices are feature numbers (sae_choice.h). Functions
 * return 0, or -1 with err set. */

#ifndef QSAE_SPARSE_H
#define QSAE_SPARSE_H

#include "sae_choice.h"

/* ---- writing: the file appears at commit ---- */

typedef struct sparse_writer sparse_writer;

/* 1 if the name ends in .jsonl or .safetensors. */
int sparse_name_ok(const char *path);
sparse_writer *sparse_create(const char *path, const sae_numbers *numbers, char *err,
                             size_t cap);
/* Appends the rows. */
int sparse_write(sparse_writer *w, const qsae_rows *rows, char *err, size_t cap);
int sparse_commit(sparse_writer *w, char *err, size_t cap); /* frees w either way */
void sparse_abort(sparse_writer *w);                        /* NULL is a no-op */

/* ---- reading: which of the two it is shows the content ---- */

typedef struct sparse_reader sparse_reader;

sparse_reader *sparse_open(const char *path, const sae_numbers *numbers, char *err,
                           size_t cap);
uint64_t sparse_count(const sparse_reader *r); /* rows of the file */
/* The next rows, at least one and at most max (fewer where they are dense), to *out,
 * whose index and value grow by realloc; start has room for max + 1. Everything is
 * checked: order, range, numbers finite and not negative. n_rows is 0 at the end. */
int sparse_read(sparse_reader *r, size_t max, qsae_rows *out, char *err, size_t cap);
void sparse_close(sparse_reader *r); /* NULL is a no-op */

/* Room for cap entries in rows; -1 if out of memory. */
int sparse_reserve(qsae_rows *rows, size_t cap);

#endif
