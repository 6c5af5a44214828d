/* tensors.h: the named tensors of a file, whatever its container.
 *
 *     safetensors.c  safetensors
 *     torch.c        PyTorch's zip (.pt): zip.c finds the members, pickle.c reads data.pkl
 *     npy.c          NumPy's .npy (one tensor, named "") and .npz (zip.c again)
 *     gguf.c         GGUF
 *
 * The container is told by content, never by name. Every reader checks everything about
 * where tensors lie before the first is used. Numbers are read from the file when they
 * are asked for, so that a file larger than memory can be read; no call keeps pages of
 * it mapped. The file must not change while it is open: what is then read is refused or
 * is what the file holds, never an access outside it.
 *
 * One thread at a time uses a file.
 *
 * Functions return 0, or -1 with err set, unless they say otherwise. */

#ifndef QSAE_TOOLS_TENSORS_H
#define QSAE_TOOLS_TENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "checked.h"

#define TENSOR_MAX_RANK 8
#define TENSOR_MAX      65536u /* tensors of one file */
#define TENSOR_MAX_NAME 1024u  /* bytes of a name */

typedef enum tensor_type {
    TENSOR_BOOL,
    TENSOR_U8,
    TENSOR_I8,
    TENSOR_I16,
    TENSOR_U16,
    TENSOR_I32,
    TENSOR_U32,
    TENSOR_I64,
    TENSOR_U64,
    TENSOR_F8_E4M3,
    TENSOR_F8_E5M2,
    TENSOR_F16,
    TENSOR_BF16,
    TENSOR_F32,
    TENSOR_F64,
    TENSOR_Q8_0, /* GGUF: blocks of 32 with one f16 scale */
    TENSOR_Q4_0,
    TENSOR_TYPE_COUNT
} tensor_type;

const char *tensor_type_name(tensor_type type); /* "BF16" */

typedef enum tensor_container {
    TENSORS_SAFETENSORS,
    TENSORS_TORCH,
    TENSORS_NPY,
    TENSORS_NPZ,
    TENSORS_GGUF
} tensor_container;

typedef struct tensor_file tensor_file;

typedef struct tensor {
    const char *name; /* NUL-terminated, holds none; in a dict "ae.encoder.weight" */
    tensor_type type;
    uint32_t rank; /* 0: one number */
    uint64_t shape[TENSOR_MAX_RANK];
    uint64_t stride[TENSOR_MAX_RANK]; /* elements from one index to the next; row-major
                                         but for .pt and Fortran-order .npy */
    uint64_t n;                       /* elements */
    const tensor_file *file;
    uint64_t offset; /* byte of element [0, 0, ...] in the file */
} tensor;

/* NULL on failure: "PATH: what is wrong". */
tensor_file *tensors_open(const char *path, char *err, size_t cap);
/* The same from memory, which is borrowed; `label` stands for the path in messages. */
tensor_file *tensors_open_memory(const void *data, size_t size, const char *label,
                                 char *err, size_t cap);
void tensors_close(tensor_file *f); /* NULL is a no-op */

tensor_container tensors_container(const tensor_file *f);
const char *tensors_path(const tensor_file *f);
size_t tensors_count(const tensor_file *f);
const tensor *tensors_at(const tensor_file *f, size_t i); /* in the order of the file */
const tensor *tensors_find(const tensor_file *f, const char *name); /* NULL if absent */

/* What stands beside the tensors, as text: safetensors' __metadata__, the numbers, strings
 * and booleans of a .pt's dict ("step", "config.k": whole numbers in decimal, floats as
 * %.17g, "true"/"false"). NULL if absent. GGUF's typed metadata: gguf.h. */
const char *tensors_meta(const tensor_file *f, const char *key);
size_t tensors_meta_count(const tensor_file *f);
/* The key. */
const char *tensors_meta_at(const tensor_file *f, size_t i, const char **value);

/* "[4, 128]" */
typedef struct tensor_shape_text {
    char text[200];
} tensor_shape_text;
tensor_shape_text tensor_shape(const tensor *t);
tensor_shape_text tensor_shape_of(uint32_t rank, const uint64_t *shape);

/* 1 for F16, BF16, F32, F64, Q8_0, Q4_0: what tensor_f32 and tensor_f64 read. */
int tensor_is_float(const tensor *t);
/* 1 for whole numbers (BOOL too); then tensor_int reads one element, by row-major index. */
int tensor_is_int(const tensor *t);
int tensor_int(const tensor *t, uint64_t i, int64_t *out, char *err, size_t cap);

/* A matrix [R, C] read as [C, R]: the same numbers, nothing is copied. rank 2 only. */
tensor tensor_transposed(const tensor *t);

/* Elements first .. first + n - 1 in row-major order as numbers, exactly; F64 is rounded
 * to nearest by tensor_f32. A NaN or an infinity is refused, naming the tensor and the
 * index: "tensor W_enc: element [3, 17] is NaN". */
int tensor_f32(const tensor *t, uint64_t first, uint64_t n, float *out, char *err,
               size_t cap);
int tensor_f64(const tensor *t, uint64_t first, uint64_t n, double *out, char *err,
               size_t cap);
/* Rows row .. row + n_rows - 1, columns col .. col + n_cols - 1 of a matrix, to
 * out[n_rows, n_cols]. Large blocks are read in long runs along whichever axis is
 * contiguous; needs O(block) memory. */
int tensor_block_f32(const tensor *t, uint64_t row, uint64_t n_rows, uint64_t col,
                     uint64_t n_cols, float *out, char *err, size_t cap);
int tensor_block_f64(const tensor *t, uint64_t row, uint64_t n_rows, uint64_t col,
                     uint64_t n_cols, double *out, char *err, size_t cap);

#endif
