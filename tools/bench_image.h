/* bench_image.h: models and SAEs of random weights, made in memory as .qsae files
 * (FORMAT.md), to measure speed at a shape without a checkpoint. Only the header's
 * checksum is right: to be opened without verify. */

#ifndef QSAE_BENCH_IMAGE_H
#define QSAE_BENCH_IMAGE_H

#ifndef QSAE_WITH_FORMAT
#define QSAE_WITH_FORMAT
#endif
#include "../qsae.h"

/* A shape of Qwen3: head_dim 128, 8 heads of keys. Widths are multiples of 256, the
 * vocabulary of 16: no tensor has padding. */
typedef struct image_shape {
    const char *name;
    uint32_t n_layers, d_model, d_ff, n_heads, vocab_size;
    int tied;
} image_shape;

/* A published one; NULL: none of that name. */
const image_shape *image_find_shape(const char *name);

typedef struct image_file {
    uint8_t *data; /* [size], 64-byte aligned */
    size_t size;
} image_file;

/* Every weight of a row of K numbers is about 1 / sqrt(K) large, so that activations stay
 * finite. Return 0, or -1 with err set: memory does not suffice for the image and `besides` bytes more (both numbers are named). */
int image_model(const image_shape *shape, uint32_t type, int threads, uint64_t besides,
                image_file *out, char *err, size_t cap);
/* A JumpReLU SAE of resid_post of layer 0, with a screen, of which about 64 features fire where the
 * input's numbers have mean 0 and variance 1. type: F32 or BF16. */
int image_sae(uint32_t d_in, uint32_t d_sae, uint32_t type, int threads,
              image_file *out, char *err, size_t cap);
void image_free(image_file *im);

/* Bytes that this process may still take; UINT64_MAX if the system does not say. */
uint64_t image_memory(void);

/* What one token costs in the matrices of a model. */
typedef struct image_cost {
    double layer_bytes, head_bytes; /* of weights */
    double layer_float,
        layer_int; /* operations, 2 a weight, of float and integer dots */
    double head_float, head_int;
} image_cost;

/* From the n directory entries of a model file. */
image_cost image_model_cost(const qsae_tensor_record *list, size_t n);

#endif
