/* Shared by the fuzz targets: hostile .qsae images made from good ones.
 *
 * Random bytes never get past a checksum, so the input is read as a list of patches of
 * a small valid image, whose checksums are then made right again; one mode passes the
 * bytes as they are. A target is run by libFuzzer (`make fuzz`), and by replay.c under
 * any compiler. */

#ifndef QSAE_FUZZ_H
#define QSAE_FUZZ_H

#include "tiny.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* One patch is 5 bytes: where (24 bits), how, and with what. */
static inline void fuzz_patch_one(uint8_t *image, size_t size, size_t index,
                                  const uint8_t *p)
{
    static const uint8_t odd[8] = {0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF, 0x40};
    size_t at = (size_t)p[0] | (size_t)p[1] << 8 | (size_t)p[2] << 16;
    int how = p[3];
    at = how & 1 ? at % size : at % index; /* mostly where the structure is */
    switch (how >> 1 & 3) {
    case 0: image[at] = p[4]; break;
    case 1: image[at] = (uint8_t)(image[at] + (int8_t)p[4]); break;
    case 2: image[at] = odd[p[4] & 7]; break;
    default: /* a whole field */
        at &= ~(size_t)3;
        memset(image + at, odd[p[4] & 7], at + 4 <= size ? 4 : size - at);
    }
}

/* The hostile image for this input, in memory that ends where it does; free() it. */
static inline uint8_t *fuzz_image(const uint8_t *base, size_t size, const uint8_t *data,
                                  size_t n, size_t *out_size)
{
    qsae_file_header h;
    if (n > 0 && data[0] % 4 == 0) { /* the bytes themselves */
        uint8_t *raw = tiny_alloc(n);
        memcpy(raw, data + 1, n - 1);
        *out_size = n - 1;
        return raw;
    }
    uint8_t *image = tiny_alloc(size);
    memcpy(image, base, size);
    memcpy(&h, base, sizeof h);
    for (size_t i = 1; i + 5 <= n; i += 5)
        fuzz_patch_one(image, size, 64 + (size_t)h.index_size, data + i);
    qsae_file_header *now = (void *)image;
    if (n > 0 && data[0] % 4 != 1 && now->n_records == h.n_records &&
        now->n_tensors == h.n_tensors && now->file_size == h.file_size &&
        now->index_size == h.index_size)
        tiny_rehash(image);
    *out_size = n > 0 && data[0] % 4 == 3 && n > 2 ? size - data[1] % size : size;
    return image;
}

#endif
