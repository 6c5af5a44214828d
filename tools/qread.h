/* qread.h: reads the index and the tensors of a .qsae file, for what the public structs
 * do not carry: META, the tensors as they are stored.
 *
 *     the library opens the file (and verifies it, unless told not to)
 *     qread_open(&q, path, err, cap)
 *     qread_find, qread_meta, qread_block ...
 *     qread_close(&q);
 *
 * The library's opening comes first because it is what checks the meaning of the index.
 * Here only its checksum is looked at again, so that a file which changed in between is
 * refused. Functions return 0, or -1 with err set: "PATH: what is wrong". */

#ifndef QSAE_TOOLS_QREAD_H
#define QSAE_TOOLS_QREAD_H

#include <stddef.h>
#include <stdint.h>

#ifndef QSAE_WITH_FORMAT
#define QSAE_WITH_FORMAT
#endif
#include "../qsae.h"

typedef struct qread {
    const char *path; /* borrowed */
    int fd;
    qsae_file_header head;
    unsigned char *index;    /* [index_size]: records, then the directory */
    unsigned char *records;  /* [n_records, 256], in index */
    qsae_tensor_record *dir; /* [n_tensors], in index */
} qread;

int qread_open(qread *q, const char *path, char *err, size_t cap);
void qread_close(qread *q); /* a zeroed qread is closed */

/* NULL if the file has none. */
const qsae_tensor_record *qread_find(const qread *q, uint32_t group, uint32_t role);

/* Record i of an SAE file. */
qsae_sae_record qread_sae(const qread *q, uint32_t i);

/* META of a group into *text (malloc, NUL-terminated); *text is NULL if it has none. */
int qread_meta(const qread *q, uint32_t group, char **text, char *err, size_t cap);
/* The value of a line key=value of such a text, [*len], or NULL. text may be NULL. */
const char *qread_meta_value(const char *text, const char *key, size_t *len);

/* Bytes of a tensor as they are stored, from byte `offset` of it on. */
int qread_bytes(const qread *q, const qsae_tensor_record *t, uint64_t offset,
                size_t size, void *out, char *err, size_t cap);

/* Rows row .. row + n_rows - 1, columns col .. col + n_cols - 1 of a tensor of any
 * layout but BYTES, as f32 (exactly), to out[n_rows, n_cols]. */
int qread_block(const qread *q, const qsae_tensor_record *t, uint64_t row,
                uint64_t n_rows, uint64_t col, uint64_t n_cols, float *out, char *err,
                size_t cap);

#endif
