/* npy.h: writers of NumPy's .npy and .npz (stored, as np.savez makes them); the readers
 * are behind tensors.h. Arrays are row-major, of the types that numpy has: no BF16.
 *
 *     npy_writer *w = npy_writer_create("out.npy", TENSOR_F32, 2, shape, err, sizeof err);
 *     npy_writer_data(w, rows, n * width * 4, err, sizeof err), ...
 *     npy_writer_commit(w, err, sizeof err);
 *
 * Functions return 0, or -1 with err set. Data may come in any number of parts. A file
 * appears at commit, whole, or not at all (outfile.h). */

#ifndef QSAE_TOOLS_NPY_H
#define QSAE_TOOLS_NPY_H

#include <stddef.h>
#include <stdint.h>

#include "tensors.h"

typedef struct npy_writer npy_writer;

npy_writer *npy_writer_create(const char *path, tensor_type type, uint32_t rank,
                              const uint64_t *shape, char *err, size_t cap);
int npy_writer_data(npy_writer *w, const void *data, size_t size, char *err,
                    size_t cap);
int npy_writer_commit(npy_writer *w, char *err, size_t cap); /* frees w either way */
void npy_writer_abort(npy_writer *w);                        /* NULL is a no-op */

/* One array after the other: npz_writer_array, then its data. */
typedef struct npz_writer npz_writer;

npz_writer *npz_writer_create(const char *path, char *err, size_t cap);
int npz_writer_array(npz_writer *w, const char *name, tensor_type type, uint32_t rank,
                     const uint64_t *shape, char *err, size_t cap);
int npz_writer_data(npz_writer *w, const void *data, size_t size, char *err,
                    size_t cap);
int npz_writer_commit(npz_writer *w, char *err, size_t cap); /* frees w either way */
void npz_writer_abort(npz_writer *w);                        /* NULL is a no-op */

#endif
