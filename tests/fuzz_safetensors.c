/* Fuzz target of the safetensors reader: no input crashes it, and every tensor that it
 * gives can be read. With -DFUZZ_MAIN a program of its own that replays the files given
 * as arguments. */

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
    st_close(f);
    return 0;
}

#ifdef FUZZ_MAIN
int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        FILE *f = fopen(argv[i], "rb");
        static uint8_t data[1 << 20];
        size_t n = f ? fread(data, 1, sizeof data, f) : 0;
        uint8_t *copy =
            malloc(n ? n : 1); /* of exactly this size, for the sanitizers */
        if (!f || !copy)
            return 1;
        fclose(f);
        memcpy(copy, data, n);
        LLVMFuzzerTestOneInput(copy, n);
        free(copy);
    }
    printf("%d files replayed\n", argc - 1);
    return 0;
}
#endif
