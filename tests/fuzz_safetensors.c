/* Fuzz target of the safetensors reader: no input crashes it, and every tensor that it
 * gives can be read. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../tools/tensors.h"
#include "../tools/tensors_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void need(int ok)
{
    if (!ok)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char err[512] = "";
    uint64_t total = 0;
    tensor_file *f = tensors_open_memory(data, size, "fuzz", err, sizeof err);
    need((f == NULL) == (err[0] != 0));
    for (size_t i = 0; f && i < tensors_count(f); i++) {
        const tensor *t = tensors_at(f, i);
        float x[64];
        double y[64];
        need(tensors_find(f, t->name) == t);
        total += t->n * tensor_type_bytes(t->type);
        for (uint64_t k = 0; k < t->n && tensor_is_int(t); k++) {
            int64_t whole;
            need(tensor_int(t, k, &whole, err, sizeof err) == 0 ||
                 t->type == TENSOR_U64 || t->type == TENSOR_BOOL);
        }
        for (uint64_t k = 0; k < t->n && tensor_is_float(t); k += 64) {
            uint64_t n = t->n - k < 64 ? t->n - k : 64;
            int wide = tensor_f64(t, k, n, y, err, sizeof err);
            if (tensor_f32(t, k, n, x, err, sizeof err))
                continue; /* a NaN; of F64 also what is too large */
            need(wide == 0);
            for (uint64_t j = 0; j < n; j++)
                need((double)x[j] == y[j] || t->type == TENSOR_F64);
        }
    }
    need(total <= size); /* tensors do not overlap */
    tensors_close(f);
    return 0;
}
