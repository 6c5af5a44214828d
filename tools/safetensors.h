/* safetensors.h: the writer of the safetensors format; the reader is behind tensors.h
 * (https://github.com/huggingface/safetensors):
 *
 *     u64 little-endian n
 *     n bytes of JSON {"name": {"dtype", "shape", "data_offsets"}, ...}
 *     data
 *
 * The reader checks the header completely before anything is used: every tensor lies where its shape and type say, in one row without gap or overlap,
 * and the file ends where the last one does. Stricter than the reference implementation
 * in one point: a name or key that appears twice is refused. Limits: header 100,000,000
 * bytes, 65,536 tensors, names of 1 KiB, 8 dimensions. */

#ifndef QSAE_TOOLS_SAFETENSORS_H
#define QSAE_TOOLS_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "tensors.h"

#define ST_MAX_HEADER 100000000u

/* ---- writing: declare every tensor, then append their data in the same order ----
 *
 *     st_writer *w = st_writer_create("out.safetensors", err, sizeof err);
 *     uint64_t shape[2] = {n, width};
 *     if (!w || st_writer_metadata(w, "model", name, err, sizeof err)
 *            || st_writer_declare(w, "rows", TENSOR_F32, 2, shape, err, sizeof err)
 *            || st_writer_data(w, rows, n * width * 4, err, sizeof err))
 *         st_writer_abort(w), complain about err;
 *     else if (st_writer_commit(w, err, sizeof err))
 *         complain about err;
 *
 * Functions return 0 or -1 with err set. Data of one tensor may come in any number of
 * parts; a part must not cross into the next tensor. The file appears at commit, whole,
 * or not at all (outfile.h). */

typedef struct st_writer st_writer;

st_writer *st_writer_create(const char *path, char *err, size_t cap);
int st_writer_metadata(st_writer *w, const char *key, const char *value, char *err,
                       size_t cap);
int st_writer_declare(st_writer *w, const char *name, tensor_type type, uint32_t rank,
                      const uint64_t *shape, char *err, size_t cap);
int st_writer_data(st_writer *w, const void *data, size_t size, char *err, size_t cap);
int st_writer_commit(st_writer *w, char *err,
                     size_t cap);   /* frees w, also on failure */
void st_writer_abort(st_writer *w); /* frees w; NULL is a no-op */

#endif
