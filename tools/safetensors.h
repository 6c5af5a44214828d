/* safetensors.h: reader and writer of the safetensors format
 * (https://github.com/huggingface/safetensors):
 *
 *     u64 little-endian n
 *     n bytes of JSON {"name": {"dtype", "shape", "data_offsets"}, ...}
 *     data
 *
 * The reader maps the file and checks the header completely before anything is used:
 * every tensor lies where its shape and type say, in one row without gap or overlap,
 * and the file ends where the last one does. Stricter than the reference implementation
 * in one point: a name or key that appears twice is refused. Limits: header 100,000,000
 * bytes, 65,536 tensors, names of 1 KiB, 8 dimensions. */

#ifndef QSAE_TOOLS_SAFETENSORS_H
#define QSAE_TOOLS_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#define ST_MAX_HEADER  100000000u
#define ST_MAX_TENSORS 65536u
#define ST_MAX_NAME    1024u
#define ST_MAX_RANK    8

typedef enum st_dtype {
    ST_BOOL,
    ST_U8,
    ST_I8,
    ST_I16,
    ST_U16,
    ST_I32,
    ST_U32,
    ST_I64,
    ST_U64,
    ST_F8_E4M3,
    ST_F8_E5M2,
    ST_F16,
    ST_BF16,
    ST_F32,
    ST_F64,
    ST_DTYPE_COUNT
} st_dtype;

const char *st_dtype_name(st_dtype dtype); /* as in the file: "BF16" */
size_t st_dtype_size(st_dtype dtype);      /* bytes of one element */

/* ---- reading ---- */

typedef struct st_file st_file;

typedef struct st_tensor {
    const char *name; /* NUL-terminated, holds no NUL */
    st_dtype dtype;
    uint32_t rank;
    uint64_t shape[ST_MAX_RANK];
    uint64_t n;                /* elements */
    const unsigned char *data; /* of any alignment: read with st_f32 and st_f64 */
} st_tensor;

/* NULL on failure, err then says what is wrong ("PATH: ..."). The file must not change
 * while it is open. */
st_file *st_open(const char *path, char *err, size_t cap);
/* The same from memory, which is borrowed; `label` stands for the path in messages. */
st_file *st_open_memory(const void *data, size_t size, const char *label, char *err,
                        size_t cap);
void st_close(st_file *f); /* NULL is a no-op */

size_t st_count(const st_file *f);
const st_tensor *st_at(const st_file *f, size_t i); /* in the order of the header */
const st_tensor *st_find(const st_file *f, const char *name); /* NULL if absent */
const char *st_metadata(const st_file *f,
                        const char *key); /* of __metadata__, NULL if absent */

/* Elements first .. first + n - 1 as numbers, exactly; F64 is rounded to nearest by
 * st_f32. The tensor is of type F16, BF16, F32 or F64 (st_is_float) and has the
 * elements. */
int st_is_float(const st_tensor *t);
void st_f32(const st_tensor *t, uint64_t first, uint64_t n, float *out);
void st_f64(const st_tensor *t, uint64_t first, uint64_t n, double *out);

/* "[4, 128]" */
typedef struct st_shape_text {
    char text[200];
} st_shape_text;
st_shape_text st_shape(uint32_t rank, const uint64_t *shape);

/* ---- writing: declare every tensor, then append their data in the same order ----
 *
 *     st_writer *w = st_writer_create("out.safetensors", err, sizeof err);
 *     uint64_t shape[2] = {n, width};
 *     if (!w || st_writer_metadata(w, "model", name, err, sizeof err)
 *            || st_writer_declare(w, "rows", ST_F32, 2, shape, err, sizeof err)
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
int st_writer_declare(st_writer *w, const char *name, st_dtype dtype, uint32_t rank,
                      const uint64_t *shape, char *err, size_t cap);
int st_writer_data(st_writer *w, const void *data, size_t size, char *err, size_t cap);
int st_writer_commit(st_writer *w, char *err,
                     size_t cap);   /* frees w, also on failure */
void st_writer_abort(st_writer *w); /* frees w; NULL is a no-op */

#endif
