/* Fuzz target of the safetensors reader: no input crashes it, and every tensor that it
 * gives can be read. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../tools/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void need(int ok)
{
    if (!ok)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char err[256] = "";
    volatile unsigned sum = 0;
    uint64_t total = 0;
    st_file *f = st_open_memory(data, size, "fuzz", err, sizeof err);
    need((f == NULL) == (err[0] != 0));
    for (size_t i = 0; f && i < st_count(f); i++) {
        const st_tensor *t = st_at(f, i);
        float x[64];
        double y[64];
        need(st_find(f, t->name) == t);
        total += t->n * st_dtype_size(t->dtype);
        for (uint64_t k = 0; k < t->n * st_dtype_size(t->dtype); k++)
            sum += t->data[k];
        for (uint64_t k = 0; k < t->n && st_is_float(t); k += 64) {
            uint64_t n = t->n - k < 64 ? t->n - k : 64;
            st_f32(t, k, n, x);
            st_f64(t, k, n, y);
            for (uint64_t j = 0; j < n; j++)
                need(t->dtype == ST_F64 || (double)x[j] == y[j] || x[j] != x[j]);
        }
    }
    need(total <= size); /* tensors do not overlap */
    (void)sum; /* reading every byte was the point */
    st_close(f);
    return 0;
}
