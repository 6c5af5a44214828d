/* Fuzz target of the GGUF reader: no input crashes it, every value of the metadata and
 * every tensor that it gives can be read. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../tools/gguf.h"
#include "../tools/tensors_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void need(int ok)
{
    if (!ok)
        abort();
}

static volatile size_t read_all; /* what read_value read: so that it is read */

static void read_value(const tensor_file *f, const gguf_value *v)
{
    int64_t whole;
    double real;
    size_t at = 0, len = 0, sum = 0;
    int yes;
    need(gguf_find(f, v->key) == v);
    need(gguf_int(v, &whole) + gguf_real(v, &real) + gguf_bool(v, &yes) +
             (gguf_string(v, &len) != NULL) <=
         1);
    for (uint64_t i = 0; i < v->n && gguf_int_at(v, i, &whole); i++)
        sum += (size_t)whole;
    for (const char *s; (s = gguf_next_string(v, &at, &len)) != NULL;)
        for (size_t i = 0; i < len; i++)
            sum += (unsigned char)s[i];
    need(v->type != GGUF_STRING || !v->is_array || at == v->size);
    const safe_name shown = gguf_text(v);
    need(memchr(shown.text, 0, sizeof shown.text) != NULL);
    read_all = sum;
}

static void read_tensor(const tensor *t)
{
    char err[512];
    float x[64];
    int64_t whole;
    for (uint64_t k = 0; k < t->n && tensor_is_int(t); k++)
        need(tensor_int(t, k, &whole, err, sizeof err) == 0);
    for (uint64_t k = 0; k < t->n && tensor_is_float(t); k += 64)
        tensor_f32(t, k, t->n - k < 64 ? t->n - k : 64, x, err, sizeof err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char err[512] = "";
    uint64_t total = 0;
    uint8_t *copy = malloc(size + 4); /* with the magic number: not another's reader */
    need(copy != NULL);
    memcpy(copy, "GGUF", 4);
    if (size > 4)
        memcpy(copy + 4, data + 4, size - 4);
    tensor_file *f =
        tensors_open_memory(copy, size < 4 ? 4 : size, "fuzz", err, sizeof err);
    need((f == NULL) == (err[0] != 0));
    const gguf_value *v;
    for (size_t i = 0; f && (v = gguf_at(f, i)) != NULL; i++)
        read_value(f, v);
    for (size_t i = 0; f && i < tensors_count(f); i++) {
        const tensor *t = tensors_at(f, i);
        need(tensors_find(f, t->name) == t);
        total += t->n / tensor_type_block(t->type) * tensor_type_bytes(t->type);
        read_tensor(t);
    }
    need(total <= size); /* tensors do not overlap */
    tensors_close(f);
    free(copy);
    return 0;
}
