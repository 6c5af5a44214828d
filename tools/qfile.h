/* qfile.h: writes a .qsae file (FORMAT.md) from tensors that never are in memory as a
 * whole.
 *
 *     qfile *q = qfile_create("out.qsae", QSAE_KIND_SAE, 1, err, cap);
 *     fill the record at qfile_record(q, 0);
 *     qfile_declare(...) every tensor, in the order of the file
 *     qfile_matrix, qfile_vector, qfile_bytes: their data, in the same order
 *     qfile_finish(q, check, err, cap);
 *
 * The data is hashed as it is written, header and directory come last. Before the file
 * takes its name it is read back and hashed again, and opened by `check`, normally the
 * library itself. (Not with its verify: that maps the file, and pages of a large one
 * would count as memory of ours.)
 * Functions return 0, or -1 with err set; then qfile_abort ends the file. qfile_finish
 * ends it either way. */

#ifndef QSAE_TOOLS_QFILE_H
#define QSAE_TOOLS_QFILE_H

#include <stddef.h>
#include <stdint.h>

#ifndef QSAE_WITH_FORMAT
#define QSAE_WITH_FORMAT
#endif
#include "../qsae.h"

typedef struct qfile qfile;

qfile *qfile_create(const char *path, uint32_t kind, uint32_t n_records, char *err,
                    size_t cap);
void qfile_abort(qfile *q); /* NULL is a no-op */

/* Record i, 256 zeroed bytes: a qsae_model_record or a qsae_sae_record. To be filled
 * before finish. */
void *qfile_record(qfile *q, uint32_t i);

/* Groups and roles strictly ascending: that is the order of the file. */
int qfile_declare(qfile *q, uint32_t group, uint32_t role, uint32_t type,
                  uint32_t layout, uint64_t rows, uint64_t cols, char *err, size_t cap);

/* Part of a matrix: rows row .. row + n_rows - 1, all columns, to out[n_rows, n_cols].
 * Parts come in the order of the rows and are large, up to 4,096 rows and about 64 MiB
 * of f32, so that a transposed source can be read in long runs; what `fill` needs
 * besides should be small. */
typedef struct qfile_part {
    uint64_t row, n_rows, col, n_cols; /* col is 0 */
} qfile_part;
typedef int (*qfile_fill)(void *user, const qfile_part *part, float *out, char *err,
                          size_t cap);

/* The next declared tensor. Every number must be finite; a bf16 matrix takes them
 * rounded to nearest even, and refuses one that would become infinite. For q8 and q4 see
 * quantize.h. */
int qfile_matrix(qfile *q, qfile_fill fill, void *user, char *err, size_t cap);
int qfile_vector(qfile *q, const float *values, char *err, size_t cap); /* [cols] */
int qfile_bytes(qfile *q, const void *data, char *err, size_t cap); /* [cols] bytes */

/* The next declared tensor as another file stores it, padding and all: `read` gives bytes
 * offset .. offset + size - 1 of it, whose hash must be `hash`. */
typedef int (*qfile_read)(void *user, uint64_t offset, void *out, size_t size, char *err,
                          size_t cap);
int qfile_copy(qfile *q, qfile_read read, void *user, uint64_t hash, char *err,
               size_t cap);

typedef int (*qfile_check)(const char *path, char *err, size_t cap);
int qfile_finish(qfile *q, qfile_check check, char *err,
                 size_t cap); /* check may be NULL; frees q */

/* Checks for qfile_finish: the library opens every part of the file. */
int qfile_check_model(const char *path, char *err, size_t cap);
int qfile_check_sae(const char *path, char *err, size_t cap);

/* x rounded to bf16, nearest even, as the float it stands for; infinite if x is beyond
 * the largest. */
float qfile_round_bf16(float x);

/* The lines key=value of a META tensor. Keys may come in any order; finish sorts them.
 * A line break in a value becomes a blank. A zeroed qfile_meta is empty. */
typedef struct qfile_meta {
    char *text;
    size_t len, cap;
    int failed;
} qfile_meta;
void qfile_meta_add(qfile_meta *m, const char *key, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 3, 4)))
#endif
    ;
int qfile_meta_finish(qfile_meta *m, char *err,
                      size_t cap); /* -1: out of memory, or a key twice */
void qfile_meta_free(qfile_meta *m);

#endif
