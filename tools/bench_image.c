/* Random models and SAEs in memory (see bench_image.h). */

#define _POSIX_C_SOURCE 200809L

#include "bench_image.h"
#include "bench_team.h"
#include "screen.h"
#include "checked.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { HEAD_DIM = 128, KV_HEADS = 8 };

/* The numbers of each checkpoint's config.json. */
static const image_shape shapes[] = {
    {"0.6B", 28, 1024, 3072, 16, 151936, 1},
    {"1.7B", 28, 2048, 6144, 16, 151936, 1},
    {"4B", 36, 2560, 9728, 32, 151936, 1},
    {"8B", 36, 4096, 12288, 32, 151936, 0},
};

const image_shape *image_find_shape(const char *name)
{
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (strcmp(shapes[i].name, name) == 0)
            return &shapes[i];
    return NULL;
}

/* ------------------------------------------------------------------------ filling */

typedef enum fill_kind {
    FILL_RANDOM = 0, /* weights of rms about 1 / sqrt(cols) */
    FILL_CONSTANT,   /* a vector of `constant` */
    FILL_ROPE,       /* inverse frequencies of theta 1e6 */
    FILL_LATER       /* the screen of an SAE, from its encoder */
} fill_kind;

typedef struct part {
    qsae_tensor_record t;
    fill_kind fill;
    float constant;
} part;

/* The image before it has bytes: its tensors, in the file's order. */
typedef struct plan {
    part parts[512]; /* 36 layers x 11 and some */
    size_t n;
    uint64_t size; /* of the data */
    int failed;    /* a tensor that the library does not know */
} plan;

static void add(plan *p, uint32_t group, uint32_t role, uint32_t type, uint32_t layout,
                uint64_t rows, uint64_t cols, fill_kind fill, float constant)
{
    part *s = &p->parts[p->n++];
    memset(s, 0, sizeof *s);
    s->t.group = group;
    s->t.role = role;
    s->t.type = type;
    s->t.layout = layout;
    s->t.rows = rows;
    s->t.cols = cols;
    s->t.size = qsae_tensor_bytes(type, layout, rows, cols);
    s->fill = fill;
    s->constant = constant;
    if (s->t.size == 0 || size_add(p->size, s->t.size, &p->size))
        p->failed = 1;
}

static void add_matrix(plan *p, uint32_t group, uint32_t role, uint32_t type,
                       uint64_t rows, uint64_t cols)
{
    add(p, group, role, type, QSAE_LAYOUT_BLOCK16, rows, cols, FILL_RANDOM, 0);
}

static void add_vector(plan *p, uint32_t group, uint32_t role, uint64_t cols,
                       float value)
{
    add(p, group, role, QSAE_TYPE_F32, QSAE_LAYOUT_VECTOR, 1, cols, FILL_CONSTANT,
        value);
}

static uint64_t next(uint64_t *s) /* xorshift64 */
{
    uint64_t x = *s;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *s = x;
}

/* Words of random bits of which `keep` stays and `set` is set: sign and mantissa of a
 * float are random, its exponent is not, so that it is between 1 and 2 times a power of
 * two. n is a multiple of 8. */
static void fill_words(uint8_t *at, size_t n, uint64_t keep, uint64_t set,
                       uint64_t *seed)
{
    for (size_t i = 0; i < n; i += 8) {
        uint64_t w = (next(seed) & keep) | set;
        memcpy(at + i, &w, 8);
    }
}

static void fill_scales(uint8_t *at, float scale)
{
    for (int i = 0; i < 16; i++)
        memcpy(at + 4 * i, &scale, 4);
}

/* The exponent of weights that are between 1 and 2 times 2^e at random, whose rms then is
 * 1.5275 2^e: as near to 1 / sqrt(cols) as a power of two comes. */
static int exponent(uint64_t cols)
{
    return (int)floor(log2(1 / sqrt((double)cols) / 1.5275) + 0.5);
}

/* `size` bytes of a matrix: whole lines, or whole superblocks of a quantized one. */
static void fill_matrix(uint32_t type, uint8_t *at, size_t size, uint64_t cols,
                        uint64_t *seed)
{
    double rms = 1 / sqrt((double)cols);
    uint64_t e = (uint64_t)(127 + exponent(cols));
    switch (type) {
    case QSAE_TYPE_F32:
        fill_words(at, size, 0x807FFFFF807FFFFFu, e << 23 | e << 55, seed);
        break;
    case QSAE_TYPE_BF16:
        fill_words(at, size, 0x807F807F807F807Fu, e << 7 | e << 23 | e << 39 | e << 55,
                   seed);
        break;
    case QSAE_TYPE_Q8: /* odd numbers, -127..127: there is no -128 */
        for (size_t i = 0; i < size; i += 4160) {
            fill_words(at + i, 4096, UINT64_MAX, 0x0101010101010101u, seed);
            fill_scales(at + i + 4096, (float)(rms / 73.9));
        }
        break;
    case QSAE_TYPE_Q4: /* odd m of 1..15 times q of -8..7 has an rms of 42.7 */
        for (size_t i = 0; i < size; i += 2176) {
            fill_words(at + i, 2048, UINT64_MAX, 0, seed);
            fill_words(at + i + 2048, 64, UINT64_MAX, 0x1111111111111111u, seed);
            fill_scales(at + i + 2112, (float)(rms / 42.7));
            for (size_t r = 0; r < 16; r++) /* the signs of m */
                at[i + 2112 + 4 * r] = at[i + 2048 + 4 * r];
        }
        break;
    default: break;
    }
}

static void fill_vector(const part *s, uint8_t *at)
{
    memset(at, 0, (size_t)s->t.size);
    for (uint64_t i = 0; i < s->t.cols; i++) {
        float v = s->constant;
        if (s->fill == FILL_ROPE)
            v = 1 / (float)pow(1e6, (double)((float)(2 * i) / (float)HEAD_DIM));
        memcpy(at + 4 * i, &v, 4);
    }
}

typedef struct filling {
    const plan *p;
    uint8_t *data;
} filling;

/* Thread t's share of every tensor, in whole superblocks of any type. */
static void fill_share(void *arg, size_t t, size_t n)
{
    const filling *f = arg;
    for (size_t i = 0; i < f->p->n; i++) {
        const part *s = &f->p->parts[i];
        uint8_t *at = f->data + s->t.offset;
        if (s->fill != FILL_RANDOM) {
            if (t == 0 && s->fill != FILL_LATER)
                fill_vector(s, at);
            continue;
        }
        size_t unit = s->t.type == QSAE_TYPE_Q8   ? 4160
                      : s->t.type == QSAE_TYPE_Q4 ? 2176
                                                  : 64;
        size_t units = (size_t)s->t.size / unit;
        size_t lo = units / n * t + (t < units % n ? t : units % n);
        size_t count = units / n + (t < units % n);
        uint64_t seed = (i + 1) * 0x9E3779B97F4A7C15u + (t + 1) * 0xD1B54A32D192ED03u;
        fill_matrix(s->t.type, at + lo * unit, count * unit, s->t.cols, &seed);
    }
}

/* ------------------------------------------------------------------------ the image */

/* A number of a small text file, UINT64_MAX if it has none. `after`: what stands before
 * it. */
static uint64_t read_number(const char *path, const char *after)
{
    char text[2048];
    FILE *f = fopen(path, "r");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f)
        fclose(f);
    text[n] = '\0';
    char *at = strstr(text, after), *end;
    if (!at)
        return UINT64_MAX;
    at += strlen(after);
    unsigned long long v = strtoull(at, &end, 10);
    return end == at ? UINT64_MAX : v;
}

uint64_t image_memory(void)
{
    uint64_t kb = read_number("/proc/meminfo", "MemAvailable:");
    uint64_t available = kb > UINT64_MAX / 1024 ? UINT64_MAX : kb * 1024;
    uint64_t most = read_number("/sys/fs/cgroup/memory.max", "");
    uint64_t used = read_number("/sys/fs/cgroup/memory.current", "");
    if (most != UINT64_MAX && used != UINT64_MAX && most - used < available)
        available = most > used ? most - used : 0;
#if defined(_SC_PHYS_PAGES)
    if (available == UINT64_MAX && sysconf(_SC_PHYS_PAGES) > 0)
        available = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
#endif
    return available;
}

/* Header, record and directory before the data. */
static void write_index(plan *p, uint32_t kind, const void *record, uint8_t *data,
                        size_t size)
{
    qsae_hash h;
    qsae_file_header *head = (void *)data;
    size_t index = 256 + 64 * p->n;
    memset(head, 0, sizeof *head);
    memcpy(head->magic, QSAE_FILE_MAGIC, 8);
    head->version = QSAE_FILE_VERSION;
    head->endian = QSAE_FILE_ENDIAN;
    head->file_size = size;
    head->kind = kind;
    head->n_records = 1;
    head->n_tensors = (uint32_t)p->n;
    head->index_size = index;
    memcpy(data + 64, record, 256);
    uint64_t at = 64 + index;
    for (size_t i = 0; i < p->n; i++) {
        p->parts[i].t.offset = at;
        at += p->parts[i].t.size;
        memcpy(data + 64 + 256 + 64 * i, &p->parts[i].t, 64);
    }
    qsae_hash_begin(&h);
    qsae_hash_add(&h, data, 64 + index);
    head->hash = qsae_hash_end(&h);
}

static int build(plan *p, uint32_t kind, const void *record, int threads,
                 uint64_t besides, const char *what, image_file *out, char *err,
                 size_t cap)
{
    uint64_t size, need, available = image_memory();
    size_t n;
    void *data = NULL;
    if (p->failed)
        return err_set(err, cap, "%s: the library has no size for one of its tensors",
                       what);
    if (size_add(p->size, 64 + 256 + 64 * (uint64_t)p->n, &size) ||
        size_add(size, besides, &need) || size_native(size, &n))
        return err_set(err, cap, "%s: its size has no number", what);
    if (need > available)
        return err_set(err, cap, "%s needs %.1f GB of memory, %.1f GB are available",
                       what, (double)need / 1e9, (double)available / 1e9);
    if (posix_memalign(&data, 4096, n) != 0)
        return err_set(err, cap, "%s: no memory for %.1f GB", what, (double)n / 1e9);
    out->data = data;
    out->size = n;
    write_index(p, kind, record, out->data, n);
    filling f = {p, out->data};
    team_run(threads, fill_share, &f);
    return 0;
}

void image_free(image_file *im)
{
    free(im->data);
    im->data = NULL;
    im->size = 0;
}

static void plan_model(plan *p, const image_shape *s, uint32_t type)
{
    uint64_t d = s->d_model, dq = (uint64_t)s->n_heads * HEAD_DIM;
    uint64_t dkv = KV_HEADS * HEAD_DIM;
    add_matrix(p, 0, QSAE_ROLE_EMBED, type, s->vocab_size, d);
    add_vector(p, 0, QSAE_ROLE_FINAL_NORM, d, 1);
    if (!s->tied)
        add_matrix(p, 0, QSAE_ROLE_LM_HEAD, type, s->vocab_size, d);
    add(p, 0, QSAE_ROLE_ROPE, QSAE_TYPE_F32, QSAE_LAYOUT_VECTOR, 1, HEAD_DIM / 2,
        FILL_ROPE, 0);
    for (uint32_t l = 1; l <= s->n_layers; l++) {
        add_vector(p, l, QSAE_ROLE_ATTN_NORM, d, 1);
        add_matrix(p, l, QSAE_ROLE_Q, type, dq, d);
        add_matrix(p, l, QSAE_ROLE_K, type, dkv, d);
        add_matrix(p, l, QSAE_ROLE_V, type, dkv, d);
        add_vector(p, l, QSAE_ROLE_Q_NORM, HEAD_DIM, 1);
        add_vector(p, l, QSAE_ROLE_K_NORM, HEAD_DIM, 1);
        add_matrix(p, l, QSAE_ROLE_O, type, d, dq);
        add_vector(p, l, QSAE_ROLE_MLP_NORM, d, 1);
        add_matrix(p, l, QSAE_ROLE_GATE, type, s->d_ff, d);
        add_matrix(p, l, QSAE_ROLE_UP, type, s->d_ff, d);
        add_matrix(p, l, QSAE_ROLE_DOWN, type, d, s->d_ff);
    }
}

int image_model(const image_shape *s, uint32_t type, int threads, uint64_t besides,
                image_file *out, char *err, size_t cap)
{
    char what[64];
    qsae_model_record r;
    plan *p = calloc(1, sizeof *p);
    if (!p)
        return err_set(err, cap, "out of memory");
    plan_model(p, s, type);
    memset(&r, 0, sizeof r);
    snprintf(r.name, sizeof r.name, "random-%s", s->name);
    r.n_layers = s->n_layers;
    r.d_model = s->d_model;
    r.n_heads = s->n_heads;
    r.n_kv_heads = KV_HEADS;
    r.head_dim = HEAD_DIM;
    r.d_ff = s->d_ff;
    r.vocab_size = s->vocab_size;
    r.max_positions = 40960;
    r.rope_theta = 1e6;
    r.rms_eps = 1e-6f;
    r.flags = s->tied ? QSAE_MODEL_TIED : 0;
    r.bos = -1;
    snprintf(what, sizeof what, "a model of shape %s", s->name);
    int bad = build(p, QSAE_KIND_MODEL, &r, threads, besides, what, out, err, cap);
    free(p);
    return bad;
}

/* The z that a normal distribution exceeds with probability 64 / d_sae, of a row of random
 * weights with numbers of variance 1. */
static float threshold(uint32_t d_in, uint32_t d_sae)
{
    double spread = 1.5275 * ldexp(sqrt((double)d_in), exponent(d_in));
    double wanted = 64.0 / d_sae, lo = 0, hi = 8;
    for (int i = 0; i < 40; i++) {
        double z = (lo + hi) / 2;
        if (0.5 * erfc(z / sqrt(2)) > wanted)
            lo = z;
        else
            hi = z;
    }
    return (float)(lo * spread);
}

/* Row r of a ROWS matrix as floats. */
static void read_row(const part *s, const uint8_t *data, uint64_t r, float *out)
{
    const uint8_t *p = data + s->t.offset + r * (s->t.size / s->t.rows);
    uint32_t u;
    for (uint64_t k = 0; k < s->t.cols; k++) {
        if (s->t.type == QSAE_TYPE_F32) {
            memcpy(&u, p + 4 * k, 4);
        } else {
            uint16_t h;
            memcpy(&h, p + 2 * k, 2);
            u = (uint32_t)h << 16;
        }
        memcpy(out + k, &u, 4);
    }
}

typedef struct screening {
    const part *enc, *screen, *rest, *norm;
    uint8_t *data;
} screening;

/* Every n-th panel of 16 features from the t-th on. */
static void screen_share(void *arg, size_t t, size_t n)
{
    const screening *s = arg;
    size_t I = (size_t)s->enc->t.cols, block = (I + 255) / 256 * 4160;
    float *rows = malloc(16 * I * sizeof *rows);
    for (size_t at = 16 * t; rows && at < s->enc->t.rows; at += 16 * n) {
        double rest[16], norm[16];
        for (size_t r = 0; r < 16; r++)
            read_row(s->enc, s->data, at + r, rows + r * I);
        screen_panel(rows, I, 16, I, s->data + s->screen->t.offset + at / 16 * block,
                     rest, norm);
        for (size_t r = 0; r < 16; r++) {
            float bound[2] = {screen_bound(rest[r]), screen_bound(norm[r])};
            memcpy(s->data + s->rest->t.offset + 4 * (at + r), &bound[0], 4);
            memcpy(s->data + s->norm->t.offset + 4 * (at + r), &bound[1], 4);
        }
    }
    free(rows);
}

int image_sae(uint32_t d_in, uint32_t d_sae, uint32_t type, int threads,
              image_file *out, char *err, size_t cap)
{
    char what[64];
    qsae_sae_record r;
    plan *p = calloc(1, sizeof *p);
    if (!p)
        return err_set(err, cap, "out of memory");
    uint32_t rows = QSAE_LAYOUT_ROWS;
    add(p, 1, QSAE_ROLE_ENC, type, rows, d_sae, d_in, FILL_RANDOM, 0);
    add(p, 1, QSAE_ROLE_DEC, type, rows, d_sae, d_in, FILL_RANDOM, 0);
    add_vector(p, 1, QSAE_ROLE_B_ENC, d_sae, 0);
    add_vector(p, 1, QSAE_ROLE_THETA, d_sae, threshold(d_in, d_sae));
    add_vector(p, 1, QSAE_ROLE_B_DEC, d_in, 0);
    add(p, 1, QSAE_ROLE_SCREEN, QSAE_TYPE_Q8, QSAE_LAYOUT_BLOCK16, d_sae, d_in,
        FILL_LATER, 0);
    const uint32_t f32 = QSAE_TYPE_F32, vec = QSAE_LAYOUT_VECTOR;
    add(p, 1, QSAE_ROLE_SCREEN_REST, f32, vec, 1, d_sae, FILL_LATER, 0);
    add(p, 1, QSAE_ROLE_SCREEN_NORM, f32, vec, 1, d_sae, FILL_LATER, 0);
    memset(&r, 0, sizeof r);
    strcpy(r.name, "random");
    r.site_in = r.site_out = QSAE_RESID_POST;
    r.d_in = r.d_out = d_in;
    r.d_sae = d_sae;
    r.activation = QSAE_ACT_JUMPRELU;
    snprintf(what, sizeof what, "an SAE of %u x %u", (unsigned)d_in, (unsigned)d_sae);
    int bad = build(p, QSAE_KIND_SAE, &r, threads, 0, what, out, err, cap);
    screening s = {&p->parts[0], &p->parts[5], &p->parts[6], &p->parts[7], out->data};
    if (!bad)
        team_run(threads, screen_share, &s);
    free(p);
    return bad;
}

/* ----------------------------------------------------------------------------- cost */

image_cost image_model_cost(const qsae_tensor_record *list, size_t n)
{
    image_cost c;
    int tied = 1;
    memset(&c, 0, sizeof c);
    for (size_t i = 0; i < n; i++)
        tied &= list[i].role != QSAE_ROLE_LM_HEAD;
    for (size_t i = 0; i < n; i++) {
        const qsae_tensor_record *t = &list[i];
        double ops = 2.0 * (double)t->rows * (double)t->cols;
        int whole = t->type == QSAE_TYPE_F32 || t->type == QSAE_TYPE_BF16 ? 0 : 1;
        if (t->layout != QSAE_LAYOUT_BLOCK16)
            continue;
        if (t->group > 0) {
            c.layer_bytes += (double)t->size;
            *(whole ? &c.layer_int : &c.layer_float) += ops;
        } else if (t->role == QSAE_ROLE_LM_HEAD || tied) {
            c.head_bytes += (double)t->size;
            *(whole ? &c.head_int : &c.head_float) += ops;
        }
    }
    return c;
}
