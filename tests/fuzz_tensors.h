/* What the fuzz targets of the tensor readers do with a file that opened: read all of it
 * in every way, which must agree. */

#ifndef QSAE_FUZZ_TENSORS_H
#define QSAE_FUZZ_TENSORS_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../tools/tensors.h"
#include "../tools/tensors_impl.h"

static inline void need(int ok)
{
    if (!ok)
        abort();
}

/* In parts of 64 as float and double: equal, or a NaN or an infinity. */
static inline void fuzz_floats(const tensor *t)
{
    char err[ERR_CAP];
    float x[64];
    double y[64];
    for (uint64_t k = 0; k < t->n; k += 64) {
        uint64_t n = t->n - k < 64 ? t->n - k : 64;
        err[0] = 0;
        int wide = tensor_f64(t, k, n, y, err, sizeof err);
        need((wide == 0) == (err[0] == 0));
        if (tensor_f32(t, k, n, x, err, sizeof err))
            continue; /* F64 may also be too large */
        need(wide == 0);
        for (uint64_t j = 0; j < n; j++)
            need((double)x[j] == y[j] || t->type == TENSOR_F64);
    }
}

/* Blocks of 3 x 5, and those of the transposed matrix, against single elements. */
static inline void fuzz_blocks(const tensor *t)
{
    char err[ERR_CAP];
    tensor back = tensor_transposed(t);
    for (uint64_t r = 0; r < t->shape[0] && r < 40; r += 3) {
        for (uint64_t c = 0; c < t->shape[1] && c < 40; c += 5) {
            uint64_t nr = t->shape[0] - r < 3 ? t->shape[0] - r : 3;
            uint64_t nc = t->shape[1] - c < 5 ? t->shape[1] - c : 5;
            float a[15], b[15], x;
            int s = tensor_block_f32(t, r, nr, c, nc, a, err, sizeof err);
            int u = tensor_block_f32(&back, c, nc, r, nr, b, err, sizeof err);
            need(s == u);
            for (uint64_t i = 0; i < nr * nc && s == 0; i++) {
                uint64_t row = i / nc, col = i % nc;
                need(tensor_f32(t, (r + row) * t->shape[1] + c + col, 1, &x, err,
                                sizeof err) == 0);
                need(x == a[i] && x == b[col * nr + row]);
            }
        }
    }
}

static inline void fuzz_file(const tensor_file *f)
{
    char err[ERR_CAP];
    for (size_t i = 0; i < tensors_count(f); i++) {
        const tensor *t = tensors_at(f, i);
        need(tensors_find(f, t->name) == t);
        need(t->n <= f->size * tensor_type_block(t->type));
        for (uint64_t k = 0; k < t->n && tensor_is_int(t); k++) {
            int64_t x;
            if (tensor_int(t, k, &x, err, sizeof err))
                break;
        }
        if (tensor_is_float(t))
            fuzz_floats(t);
        if (tensor_is_float(t) && t->rank == 2)
            fuzz_blocks(t);
    }
    for (size_t i = 0; i < tensors_meta_count(f) && i < 100; i++) {
        const char *value, *key = tensors_meta_at(f, i, &value);
        need(strcmp(tensors_meta(f, key), value) == 0);
    }
}

/* The target itself: an error text and no file, or a file and none. */
static inline void fuzz_tensors(const uint8_t *data, size_t size)
{
    char err[ERR_CAP] = "";
    tensor_file *f = tensors_open_memory(data, size, "fuzz", err, sizeof err);
    need((f == NULL) == (err[0] != 0));
    if (f)
        fuzz_file(f);
    tensors_close(f);
}

#endif
