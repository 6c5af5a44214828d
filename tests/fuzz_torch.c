/* Fuzz target of the reader of PyTorch's .pt. An input that begins with the opcode PROTO
 * is taken as the data.pkl of an archive that is made around it: a changed byte inside an
 * archive would only ever be found by its CRC-32. */

#include "fuzz_tensors.h"

#include "../tools/zip.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct bytes {
    uint8_t *p;
    size_t n;
} bytes;

static void put(bytes *b, uint64_t x, int n)
{
    for (int i = 0; i < n; i++)
        b->p[b->n++] = (uint8_t)(i < 8 ? x >> 8 * i : 0);
}

static void put_text(bytes *b, const void *s, size_t n)
{
    if (n)
        memcpy(b->p + b->n, s, n);
    b->n += n;
}

/* The local (or central) header of one member. */
static void put_header(bytes *b, int central, const char *name, const void *data,
                       size_t n, size_t local)
{
    put(b, central ? 0x02014B50 : 0x04034B50, 4);
    put(b, 0, central ? 12 : 10);
    put(b, zip_crc(0, data, n), 4);
    put(b, n, 4);
    put(b, n, 4);
    put(b, strlen(name), 2);
    put(b, 0, 2);
    if (central) {
        put(b, 0, 8);
        put(b, 0, 2);
        put(b, local, 4);
    }
    put_text(b, name, strlen(name));
    if (!central)
        put_text(b, data, n);
}

/* The storages are those of the seed views.pkl. */
static void fuzz_pickle(const uint8_t *data, size_t size)
{
    static const float numbers[32] = {1, 2, 3, -4, 5};
    const struct {
        const char *name;
        const void *data;
        size_t n;
    } list[] = {{"a/data.pkl", data, size}, {"a/byteorder", "little", 6},
                {"a/data/0", numbers, 48},  {"a/data/1", numbers, 120},
                {"a/data/2", numbers, 6},   {"a/data/3", numbers, 8}};
    const size_t n = sizeof list / sizeof list[0];
    size_t local[sizeof list / sizeof list[0]];
    bytes b = {malloc(size + 2048), 0};
    need(b.p != NULL);
    for (size_t i = 0; i < n; i++) {
        local[i] = b.n;
        put_header(&b, 0, list[i].name, list[i].data, list[i].n, 0);
    }
    size_t directory = b.n;
    for (size_t i = 0; i < n; i++)
        put_header(&b, 1, list[i].name, list[i].data, list[i].n, local[i]);
    size_t end = b.n;
    put(&b, 0x06054B50, 4);
    put(&b, 0, 4);
    put(&b, n, 2);
    put(&b, n, 2);
    put(&b, end - directory, 4);
    put(&b, directory, 4);
    put(&b, 0, 2);
    fuzz_tensors(b.p, b.n);
    free(b.p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > 0 && data[0] == 0x80)
        fuzz_pickle(data, size);
    else
        fuzz_tensors(data, size);
    return 0;
}
