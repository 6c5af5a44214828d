/* Small random models and SAEs as .qsae images in memory, for tests that must not depend on the converter.
 * Everything is a function of the seed. The caller frees the image with free(). */

#ifndef QSAE_TINY_H
#define QSAE_TINY_H

#define QSAE_WITH_FORMAT
#include "../qsae.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* POSIX, declared here because a test may have included <stdlib.h> as plain C99 before. */
int posix_memalign(void **ptr, size_t align, size_t size);

/* 64-byte aligned, to free(); a test without memory cannot go on. */
static inline void *tiny_alloc(size_t size)
{
    void *p = NULL;
    if (posix_memalign(&p, 64, size ? size : 1) != 0) {
        fprintf(stderr, "no memory for a test\n");
        exit(2);
    }
    return p;
}

typedef struct tiny_shape {
    uint32_t n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ff, vocab_size;
    int tied;
    uint32_t type; /* of the matrices; 0: F32 */
} tiny_shape;

typedef struct tiny_sae {
    uint32_t site_in, layer_in, site_out, layer_out, d_in, d_out, d_sae, k;
    uint32_t activation, norm, flags;
    int bf16;
    uint32_t copies; /* 0: one SAE; else a suite of so many, at layers layer_in, layer_in + 1, ... */
} tiny_sae;

/* The image as it grows. */
typedef struct tiny_file {
    uint8_t *data; /* 64-byte aligned */
    size_t size;
    qsae_tensor_record *list;
    uint32_t n;
    uint64_t seed;
} tiny_file;

static inline double tiny_uniform(uint64_t *s) /* -1..1 */
{
    *s = *s * 6364136223846793005u + 1442695040888963407u;
    return (double)(int64_t)(*s >> 11) / 4503599627370496.0 - 1.0;
}

static inline void tiny_put_bf16(uint8_t *p, float v)
{
    uint32_t u;
    memcpy(&u, &v, 4);
    uint16_t h = (uint16_t)(u >> 16);
    memcpy(p, &h, 2);
}

/* Writes value (n, k) of a tensor record into its bytes. Not for Q8 and Q4, where values share a scale. */
static inline void tiny_put(const qsae_tensor_record *t, uint8_t *p, uint64_t n, uint64_t k, float v)
{
    uint64_t kp = (t->cols + 15) / 16 * 16, row = t->size / t->rows;
    int f32 = t->type == QSAE_TYPE_F32;
    uint64_t at = t->layout == QSAE_LAYOUT_BLOCK16
                      ? (f32 ? n / 16 * 64 * kp + k * 64 + n % 16 * 4
                             : n / 16 * 32 * kp + k / 2 * 64 + n % 16 * 4 + k % 2 * 2)
                      : n * row + k * (f32 ? 4 : 2);
    if (f32) memcpy(p + at, &v, 4);
    else tiny_put_bf16(p + at, v);
}

/* One row of a Q8 superblock: n weights, as tiny_add spreads them, the rest of the 256 zero. One row in twenty is
 * zero as a whole, with its scale. */
static inline void tiny_row_q8(uint8_t *block, uint32_t r, uint64_t n, double spread, uint64_t *seed)
{
    int zero = tiny_uniform(seed) > 0.9, any = 0;
    for (uint64_t k = 0; k < n; k++) {
        int w = zero ? 0 : (int)(127.99 * tiny_uniform(seed));
        block[k / 4 * 64 + 4 * r + k % 4] = (uint8_t)w;
        any |= w;
    }
    double a = 0.5 * tiny_uniform(seed); /* two statements, as below */
    a += 1;
    float scale = any ? (float)(spread * a / 127) : 0;
    memcpy(block + 4096 + 4 * r, &scale, 4);
}

/* The same of Q4, whose superblock was filled with q and m of zeros. */
static inline void tiny_row_q4(uint8_t *block, uint32_t r, uint64_t n, double spread, uint64_t *seed)
{
    int zero = tiny_uniform(seed) > 0.9, any = 0;
    uint32_t ms = 0x11111111, signs = 0, bits;
    for (uint64_t k = 0; k < n; k += 32) {
        int some = 0, m = (int)(14.99 * tiny_uniform(seed)); /* less its 1 */
        for (uint64_t i = k; i < k + 32 && i < n; i++) {
            int q = zero ? 0 : (int)(8 * (tiny_uniform(seed) + 1)) - 8;
            uint8_t *at = block + i / 8 * 64 + 4 * r + i % 4;
            int low = *at & 15, high = *at >> 4;
            if (i % 8 < 4) low = q + 8;
            else high = q + 8;
            *at = (uint8_t)(high << 4 | low);
            some |= q;
        }
        if (some) {
            ms += (uint32_t)abs(m) << k / 8; /* 4 bits each 32 */
            signs |= (uint32_t)(m < 0) << k / 32;
        }
        any |= some;
    }
    double d = 0.5 * tiny_uniform(seed);
    d += 1;
    float scale = any ? (float)(spread * d / 75) : 0; /* m q has an rms of 43 */
    memcpy(&bits, &scale, 4);
    bits = (bits & ~255u) | signs;
    memcpy(block + 2048 + 4 * r, &ms, 4);
    memcpy(block + 2112 + 4 * r, &bits, 4);
}

static inline void tiny_fill_quantized(const qsae_tensor_record *t, uint8_t *p, double spread, uint64_t *seed)
{
    int q8 = t->type == QSAE_TYPE_Q8;
    if (!q8) memset(p, 0x88, t->size);
    for (uint64_t n = 0; n < t->rows; n += 16)
        for (uint64_t k = 0; k < t->cols; k += 256, p += q8 ? 4160 : 2176) {
            if (!q8) memset(p + 2048, 0x11, 64);
            if (!q8) memset(p + 2112, 0, 64);
            for (uint32_t r = 0; r < 16 && n + r < t->rows; r++)
                (q8 ? tiny_row_q8 : tiny_row_q4)(p, r, t->cols - k < 256 ? t->cols - k : 256, spread, seed);
        }
}

static inline void tiny_add(tiny_file *f, uint32_t group, uint32_t role, uint32_t type, uint32_t layout,
                     uint64_t rows, uint64_t cols, double mean, double spread)
{
    qsae_tensor_record t = {group, role, type, layout, rows, cols, 0, 0, 0, 0};
    t.size = qsae_tensor_bytes(type, layout, rows, cols);
    f->list = realloc(f->list, (f->n + 1) * sizeof t);
    f->data = realloc(f->data, f->size + t.size);
    uint8_t *p = f->data + f->size;
    memset(p, 0, t.size);
    int quantized = type == QSAE_TYPE_Q8 || type == QSAE_TYPE_Q4; /* a screen is for the caller to fill */
    if (quantized && role != QSAE_ROLE_SCREEN) tiny_fill_quantized(&t, p, spread, &f->seed);
    for (uint64_t n = 0; n < rows && !quantized; n++)
        for (uint64_t k = 0; k < cols; k++)
        {
            double v = spread * tiny_uniform(&f->seed); /* two statements: no fused multiply-add */
            v += mean;
            tiny_put(&t, p, n, k, (float)v);
        }
    f->size += t.size;
    f->list[f->n++] = t;
}

/* Refreshes the checksums of a whole image: of every tensor and of the header. Sizes must be sane. */
static inline void tiny_rehash(uint8_t *image)
{
    qsae_file_header *h = (void *)image;
    qsae_tensor_record *t = (void *)(image + 64 + 256 * (size_t)h->n_records);
    qsae_hash s;
    for (uint32_t i = 0; i < h->n_tensors; i++) {
        if (t[i].offset > h->file_size || t[i].size > h->file_size - t[i].offset) continue;
        qsae_hash_begin(&s);
        qsae_hash_add(&s, image + t[i].offset, (size_t)t[i].size);
        t[i].hash = qsae_hash_end(&s);
    }
    h->hash = 0;
    qsae_hash_begin(&s);
    qsae_hash_add(&s, image, 64 + (size_t)h->index_size);
    h->hash = qsae_hash_end(&s);
}

/* Joins header, records, directory and data; frees f's parts. */
static inline uint8_t *tiny_finish(tiny_file *f, uint32_t kind, const void *records, uint32_t n_records,
                            size_t *size)
{
    size_t index = 256 * (size_t)n_records + 64 * (size_t)f->n;
    qsae_file_header h = {{0}, QSAE_FILE_VERSION, QSAE_FILE_ENDIAN, 0, kind, n_records, f->n, 0, 0, 0, 0};
    memcpy(h.magic, QSAE_FILE_MAGIC, 8);
    h.index_size = index;
    h.file_size = 64 + index + f->size;
    uint8_t *image = tiny_alloc((size_t)h.file_size);
    memcpy(image, &h, 64);
    memcpy(image + 64, records, 256 * (size_t)n_records);
    uint64_t at = 64 + index;
    for (uint32_t i = 0; i < f->n; i++) {
        f->list[i].offset = at;
        at += f->list[i].size;
    }
    memcpy(image + 64 + 256 * (size_t)n_records, f->list, 64 * (size_t)f->n);
    memcpy(image + 64 + index, f->data, f->size);
    tiny_rehash(image);
    free(f->list);
    free(f->data);
    *size = (size_t)h.file_size;
    return image;
}

static inline uint8_t *tiny_model(const tiny_shape *s, uint64_t seed, size_t *size)
{
    tiny_file f = {NULL, 0, NULL, 0, seed};
    uint32_t w = s->type ? s->type : QSAE_TYPE_F32, b = QSAE_LAYOUT_BLOCK16;
    uint64_t d = s->d_model, dq = s->n_heads * s->head_dim, dkv = s->n_kv_heads * s->head_dim;
    tiny_add(&f, 0, QSAE_ROLE_EMBED, w, b, s->vocab_size, d, 0, 1);
    tiny_add(&f, 0, QSAE_ROLE_FINAL_NORM, QSAE_TYPE_F32, QSAE_LAYOUT_VECTOR, 1, d, 1, 0.5);
    if (!s->tied) tiny_add(&f, 0, QSAE_ROLE_LM_HEAD, w, b, s->vocab_size, d, 0, 2 / sqrt((double)d));
    tiny_add(&f, 0, QSAE_ROLE_ROPE, QSAE_TYPE_F32, QSAE_LAYOUT_VECTOR, 1, s->head_dim / 2, 0.5, 0.5);
    for (uint32_t l = 1; l <= s->n_layers; l++) {
        double rd = 1.7 / sqrt((double)d), rq = 1.7 / sqrt((double)dq), rf = 1.7 / sqrt((double)s->d_ff);
        uint32_t v = QSAE_LAYOUT_VECTOR, f32 = QSAE_TYPE_F32;
        tiny_add(&f, l, QSAE_ROLE_ATTN_NORM, f32, v, 1, d, 1, 0.5);
        tiny_add(&f, l, QSAE_ROLE_Q, w, b, dq, d, 0, rd);
        tiny_add(&f, l, QSAE_ROLE_K, w, b, dkv, d, 0, rd);
        tiny_add(&f, l, QSAE_ROLE_V, w, b, dkv, d, 0, rd);
        tiny_add(&f, l, QSAE_ROLE_Q_NORM, f32, v, 1, s->head_dim, 1, 0.5);
        tiny_add(&f, l, QSAE_ROLE_K_NORM, f32, v, 1, s->head_dim, 1, 0.5);
        tiny_add(&f, l, QSAE_ROLE_O, w, b, d, dq, 0, rq);
        tiny_add(&f, l, QSAE_ROLE_MLP_NORM, f32, v, 1, d, 1, 0.5);
        tiny_add(&f, l, QSAE_ROLE_GATE, w, b, s->d_ff, d, 0, rd);
        tiny_add(&f, l, QSAE_ROLE_UP, w, b, s->d_ff, d, 0, rd);
        tiny_add(&f, l, QSAE_ROLE_DOWN, w, b, d, s->d_ff, 0, rf);
    }
    qsae_model_record r;
    memset(&r, 0, sizeof r);
    strcpy(r.name, "tiny");
    r.n_layers = s->n_layers;
    r.d_model = s->d_model;
    r.n_heads = s->n_heads;
    r.n_kv_heads = s->n_kv_heads;
    r.head_dim = s->head_dim;
    r.d_ff = s->d_ff;
    r.vocab_size = s->vocab_size;
    r.max_positions = 4096;
    r.rope_theta = 1e6;
    r.rms_eps = 1e-6f;
    r.flags = s->tied ? QSAE_MODEL_TIED : 0;
    r.bos = -1;
    return tiny_finish(&f, QSAE_KIND_MODEL, &r, 1, size);
}

#include "tiny_screen.h"

/* Not 0: SAEs get a screen whose integers are at most this; 127 makes a good one. */
static int tiny_screen;

static inline void tiny_add_sae(tiny_file *f, uint32_t group, const tiny_sae *s)
{
    uint32_t enc = f->n;
    uint32_t w = s->bf16 ? QSAE_TYPE_BF16 : QSAE_TYPE_F32, f32 = QSAE_TYPE_F32, v = QSAE_LAYOUT_VECTOR;
    double r = 1.7 / sqrt((double)s->d_in);
    tiny_add(f, group, QSAE_ROLE_ENC, w, QSAE_LAYOUT_ROWS, s->d_sae, s->d_in, 0, r);
    tiny_add(f, group, QSAE_ROLE_DEC, w, QSAE_LAYOUT_ROWS, s->d_sae, s->d_out, 0, r);
    tiny_add(f, group, QSAE_ROLE_B_ENC, f32, v, 1, s->d_sae, -0.5, 0.5);
    if (s->activation == QSAE_ACT_JUMPRELU)
        tiny_add(f, group, QSAE_ROLE_THETA, f32, v, 1, s->d_sae, 0.5, 0.4);
    if (s->activation == QSAE_ACT_GATED || s->activation == QSAE_ACT_TOPK_SCALED)
        tiny_add(f, group, QSAE_ROLE_MAG_SCALE, f32, v, 1, s->d_sae, 1, 0.5);
    if (s->activation == QSAE_ACT_GATED) tiny_add(f, group, QSAE_ROLE_MAG_BIAS, f32, v, 1, s->d_sae, 0, 0.5);
    tiny_add(f, group, QSAE_ROLE_B_DEC, f32, v, 1, s->d_out, 0, 0.5);
    if (s->flags & QSAE_SAE_SKIP)
        tiny_add(f, group, QSAE_ROLE_SKIP, w, QSAE_LAYOUT_BLOCK16, s->d_out, s->d_in, 0, r);
    if (tiny_screen) tiny_add_screen(f, group, enc, tiny_screen);
}

static inline uint8_t *tiny_sae_file(const tiny_sae *s, uint64_t seed, size_t *size)
{
    tiny_file f = {NULL, 0, NULL, 0, seed};
    uint32_t n = s->copies ? s->copies : 1;
    qsae_sae_record *r = calloc(n, sizeof *r);
    for (uint32_t i = 0; i < n; i++) {
        strcpy(r[i].name, "tiny");
        r[i].site_in = s->site_in;
        r[i].layer_in = s->layer_in + i;
        r[i].site_out = s->site_out;
        r[i].layer_out = s->layer_out + i;
        r[i].d_in = s->d_in;
        r[i].d_out = s->d_out;
        r[i].d_sae = s->d_sae;
        r[i].k = s->k;
        r[i].activation = s->activation;
        r[i].norm = s->norm;
        r[i].flags = s->flags;
        tiny_add_sae(&f, 1 + i, s);
    }
    uint8_t *image = tiny_finish(&f, QSAE_KIND_SAE, r, n, size);
    free(r);
    return image;
}

/* ---- taking images apart and putting them together again ---- */

/* An exact copy, so that a reader that goes past the end is caught by the sanitizer. */
static inline uint8_t *tiny_copy(const uint8_t *image, size_t size)
{
    uint8_t *copy = tiny_alloc(size);
    memcpy(copy, image, size);
    return copy;
}

static inline qsae_file_header *tiny_header(uint8_t *image) { return (void *)image; }

/* The directory. */
static inline qsae_tensor_record *tiny_tensors(uint8_t *image)
{
    return (void *)(image + 64 + 256 * (size_t)tiny_header(image)->n_records);
}

/* The directory entry of a tensor, NULL if there is none. */
static inline qsae_tensor_record *tiny_find(uint8_t *image, uint32_t group, uint32_t role)
{
    qsae_tensor_record *t = tiny_tensors(image);
    for (uint32_t i = 0; i < tiny_header(image)->n_tensors; i++)
        if (t[i].group == group && t[i].role == role) return &t[i];
    return NULL;
}

/* Changes value (n, k) of a tensor; the checksums are stale until tiny_rehash. */
static inline void tiny_poke(uint8_t *image, uint32_t group, uint32_t role, uint64_t n, uint64_t k, float v)
{
    qsae_tensor_record *t = tiny_find(image, group, role);
    if (t) tiny_put(t, image + t->offset, n, k, v);
}

/* A file with the records of `image` and the n tensors of `list`, of which each comes with its bytes. Offsets,
 * sizes of the file and checksums are made new; everything else is taken as it is. */
static inline uint8_t *tiny_repack(const uint8_t *image, const qsae_tensor_record *list,
                                   const uint8_t *const *data, uint32_t n, size_t *size)
{
    const qsae_file_header *h = (const void *)image;
    tiny_file f = {NULL, 0, NULL, n, 0};
    f.list = tiny_alloc(n * sizeof *list);
    memcpy(f.list, list, n * sizeof *list);
    for (uint32_t i = 0; i < n; i++) {
        f.data = realloc(f.data, f.size + (size_t)list[i].size);
        memcpy(f.data + f.size, data[i], (size_t)list[i].size);
        f.size += (size_t)list[i].size;
    }
    return tiny_finish(&f, h->kind, image + 64, h->n_records, size);
}

/* ---- an allocator that counts, and that can fail ---- */

typedef struct tiny_heap {
    size_t blocks, bytes; /* live */
    size_t calls;         /* of alloc, so far */
    size_t last;          /* bytes of the last request */
    size_t total;         /* bytes of all requests */
    size_t fail_at;       /* this call (from 1) returns NULL; 0: none */
    size_t wrong;         /* bad alignments asked for, or sizes in release that were not asked for */
} tiny_heap;

static inline void *tiny_heap_alloc(void *user, size_t size, size_t align)
{
    tiny_heap *h = user;
    h->last = size;
    if (!align || align > 64 || (align & (align - 1))) h->wrong++;
    if (++h->calls == h->fail_at) return NULL;
    char *p = tiny_alloc(size + 64); /* the size sits before the block */
    memcpy(p, &size, sizeof size);
    memset(p + 64, 0xA5, size); /* nobody may count on zeros */
    h->blocks++;
    h->bytes += size;
    h->total += size;
    return p + 64;
}

static inline void tiny_heap_release(void *user, void *ptr, size_t size)
{
    tiny_heap *h = user;
    size_t asked;
    memcpy(&asked, (char *)ptr - 64, sizeof asked);
    if (asked != size) h->wrong++;
    h->blocks--;
    h->bytes -= asked;
    free((char *)ptr - 64);
}

static inline qsae_allocator tiny_allocator(tiny_heap *h)
{
    qsae_allocator a = {tiny_heap_alloc, tiny_heap_release, h};
    return a;
}

/* ---- opening; NULL on failure, with the reason on stderr ---- */

static inline qsae_model *tiny_open_model(const uint8_t *image, size_t size, qsae_isa isa)
{
    qsae_open_options o;
    qsae_model *m = NULL;
    qsae_error e;
    memset(&o, 0, sizeof o);
    o.isa = isa;
    o.verify = 1;
    if (qsae_model_open_memory(image, size, &o, &m, &e)) fprintf(stderr, "model: %s\n", e.text);
    return m;
}

static inline qsae_sae *tiny_open_sae(const uint8_t *image, size_t size, qsae_isa isa)
{
    qsae_sae_options o;
    qsae_sae *s = NULL;
    qsae_error e;
    memset(&o, 0, sizeof o);
    o.open.isa = isa;
    o.open.verify = 1;
    if (qsae_sae_open_memory(image, size, &o, &s, &e)) fprintf(stderr, "sae: %s\n", e.text);
    return s;
}

#endif
