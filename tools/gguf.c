/* The header of a GGUF file: metadata and where the tensors lie. */

#include "gguf.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "tensors_impl.h"

#define CHUNK (64u << 10) /* bytes of the header that are read at first */

/* ---- types ---- */

static const struct {
    const char *name;
    size_t size; /* bytes of one, of a string and an array at least */
} value_types[GGUF_TYPE_COUNT] = {
    {"u8", 1},  {"i8", 1},  {"u16", 2},  {"i16", 2},    {"u32", 4},
    {"i32", 4}, {"f32", 4}, {"bool", 1}, {"string", 8}, {"array", 12},
    {"u64", 8}, {"i64", 8}, {"f64", 8},
};

const char *gguf_type_name(gguf_type type)
{
    return (unsigned)type < GGUF_TYPE_COUNT ? value_types[type].name : "unknown";
}

/* ggml's tensor types by number (ggml.h, enum ggml_type); TENSOR_TYPE_COUNT: not read. */
typedef struct data_type {
    uint32_t id;
    const char *name;
    tensor_type type;
} data_type;

static const data_type data_types[] = {
    {0, "F32", TENSOR_F32},
    {1, "F16", TENSOR_F16},
    {2, "Q4_0", TENSOR_Q4_0},
    {3, "Q4_1", TENSOR_TYPE_COUNT},
    {6, "Q5_0", TENSOR_TYPE_COUNT},
    {7, "Q5_1", TENSOR_TYPE_COUNT},
    {8, "Q8_0", TENSOR_Q8_0},
    {9, "Q8_1", TENSOR_TYPE_COUNT},
    {10, "Q2_K", TENSOR_TYPE_COUNT},
    {11, "Q3_K", TENSOR_TYPE_COUNT},
    {12, "Q4_K", TENSOR_TYPE_COUNT},
    {13, "Q5_K", TENSOR_TYPE_COUNT},
    {14, "Q6_K", TENSOR_Q6_K},
    {15, "Q8_K", TENSOR_TYPE_COUNT},
    {16, "IQ2_XXS", TENSOR_TYPE_COUNT},
    {17, "IQ2_XS", TENSOR_TYPE_COUNT},
    {18, "IQ3_XXS", TENSOR_TYPE_COUNT},
    {19, "IQ1_S", TENSOR_TYPE_COUNT},
    {20, "IQ4_NL", TENSOR_TYPE_COUNT},
    {21, "IQ3_S", TENSOR_TYPE_COUNT},
    {22, "IQ2_S", TENSOR_TYPE_COUNT},
    {23, "IQ4_XS", TENSOR_TYPE_COUNT},
    {24, "I8", TENSOR_I8},
    {25, "I16", TENSOR_I16},
    {26, "I32", TENSOR_I32},
    {27, "I64", TENSOR_I64},
    {28, "F64", TENSOR_F64},
    {29, "IQ1_M", TENSOR_TYPE_COUNT},
    {30, "BF16", TENSOR_BF16},
    {34, "TQ1_0", TENSOR_TYPE_COUNT},
    {35, "TQ2_0", TENSOR_TYPE_COUNT},
    {39, "MXFP4", TENSOR_TYPE_COUNT},
    {40, "NVFP4", TENSOR_TYPE_COUNT},
};

static const data_type *find_type(uint32_t id)
{
    for (size_t i = 0; i < sizeof data_types / sizeof data_types[0]; i++)
        if (data_types[i].id == id)
            return &data_types[i];
    return NULL;
}

/* ---- the reader ---- */

/* The header is copied to the heap as far as it has been read, and the copy is what is
 * checked. While it grows, places in it are offsets. */
typedef struct gguf {
    unsigned char *text;
    gguf_value *pairs; /* [n_pairs] in the order of the file */
    const gguf_value **by_key;
    size_t n_pairs;
} gguf;

typedef struct reader {
    tensor_file *f;
    gguf *g;
    size_t have; /* bytes of g->text */
    size_t at;   /* the next to be parsed */
    char *err;
    size_t cap;
} reader;

/* Makes the next n bytes be in g->text; `what` is being read. */
static int need(reader *r, uint64_t n, const char *what)
{
    if (n <= r->have - r->at)
        return 0;
    if (n > r->f->size - r->at)
        return err_set(r->err, r->cap,
                       "the file ends inside %s: %" PRIu64
                       " bytes from byte %zu on, it has %" PRIu64,
                       what, n, r->at, r->f->size);
    uint64_t want = r->at + n, more = 2 * (uint64_t)r->have;
    if (want > GGUF_MAX_HEADER)
        return err_set(r->err, r->cap, "the header has more than %u bytes",
                       GGUF_MAX_HEADER);
    if (more < CHUNK)
        more = CHUNK;
    if (want < more)
        want = more < r->f->size ? more : r->f->size;
    unsigned char *text = realloc(r->g->text, (size_t)want);
    if (!text)
        return err_set(r->err, r->cap, "out of memory");
    r->g->text = text;
    if (tensors_read(r->f, r->have, text + r->have, want - r->have, r->err, r->cap))
        return -1;
    r->have = (size_t)want;
    return 0;
}

static uint64_t load(const unsigned char *p, size_t n)
{
    uint64_t x = 0;
    for (size_t i = 0; i < n; i++)
        x |= (uint64_t)p[i] << 8 * i;
    return x;
}

static int take(reader *r, size_t n, const char *what, uint64_t *out)
{
    if (need(r, n, what))
        return -1;
    *out = load(r->g->text + r->at, n);
    r->at += n;
    return 0;
}

static int take_u32(reader *r, const char *what, uint32_t *out)
{
    uint64_t x;
    if (take(r, 4, what, &x))
        return -1;
    *out = (uint32_t)x;
    return 0;
}

/* A key or a tensor's name; its offset and length. */
static int take_name(reader *r, const char *what, size_t limit, size_t *at, size_t *len)
{
    uint64_t n;
    if (take(r, 8, what, &n))
        return -1;
    if (n == 0 || n > limit)
        return err_set(r->err, r->cap, "%s has %" PRIu64 " bytes, allowed are 1 to %zu",
                       what, n, limit);
    if (need(r, n, what))
        return -1;
    *at = r->at;
    *len = (size_t)n;
    r->at += (size_t)n;
    if (memchr(r->g->text + *at, 0, *len))
        return err_set(r->err, r->cap, "%s has a NUL in it: %s", what,
                       name_n((const char *)r->g->text + *at, *len).text);
    return 0;
}

/* ---- metadata ---- */

typedef struct pair_place { /* while the header grows */
    size_t key, key_len, data;
} pair_place;

static int skip_string(reader *r, const char *key)
{
    uint64_t n;
    if (take(r, 8, key, &n) || need(r, n, key))
        return -1;
    r->at += (size_t)n;
    return 0;
}

static int check_bools(reader *r, const char *key, size_t at, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        if (r->g->text[at + i] > 1)
            return err_set(r->err, r->cap, "metadata %s: %u is no boolean", key,
                           (unsigned)r->g->text[at + i]);
    return 0;
}

/* v->n values of v->type. */
static int skip_values(reader *r, const char *key, const gguf_value *v)
{
    uint64_t bytes;
    size_t from = r->at;
    if (size_mul(v->n, value_types[v->type].size, &bytes) || bytes > r->f->size - r->at)
        return err_set(r->err, r->cap,
                       "metadata %s: %" PRIu64
                       " values of type %s do not fit in the file",
                       key, v->n, gguf_type_name(v->type));
    if (v->type == GGUF_STRING) {
        for (uint64_t i = 0; i < v->n; i++)
            if (skip_string(r, key))
                return -1;
        return 0;
    }
    if (need(r, bytes, key))
        return -1;
    r->at += (size_t)bytes;
    return v->type == GGUF_BOOL ? check_bools(r, key, from, v->n) : 0;
}

static int read_type(reader *r, const char *key, gguf_type *type)
{
    uint32_t t;
    if (take_u32(r, key, &t))
        return -1;
    if (t >= GGUF_TYPE_COUNT)
        return err_set(r->err, r->cap, "metadata %s: unknown type %u", key, t);
    *type = (gguf_type)t;
    return 0;
}

static int read_pair(reader *r, gguf_value *v, pair_place *p)
{
    if (take_name(r, "a metadata key", GGUF_MAX_KEY, &p->key, &p->key_len))
        return -1;
    safe_name key = name_n((const char *)r->g->text + p->key, p->key_len);
    if (read_type(r, key.text, &v->type))
        return -1;
    v->n = 1;
    v->is_array = v->type == GGUF_ARRAY;
    if (v->is_array) {
        if (read_type(r, key.text, &v->type) || take(r, 8, key.text, &v->n))
            return -1;
        if (v->type == GGUF_ARRAY)
            return err_set(r->err, r->cap,
                           "metadata %s: arrays of arrays are not supported", key.text);
    }
    p->data = r->at;
    if (skip_values(r, key.text, v))
        return -1;
    v->size = r->at - p->data;
    return 0;
}

static const gguf_value *find(const gguf *g, const char *key)
{
    size_t low = 0, high = g->n_pairs;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        int c = strcmp(key, g->by_key[mid]->key);
        if (c == 0)
            return g->by_key[mid];
        if (c < 0)
            high = mid;
        else
            low = mid + 1;
    }
    return NULL;
}

static int order_values(const void *a, const void *b)
{
    return strcmp((*(const gguf_value *const *)a)->key,
                  (*(const gguf_value *const *)b)->key);
}

/* n things of at least `least` bytes each: can the rest of the file hold them? */
static int check_count(reader *r, const char *what, uint64_t n, uint64_t limit,
                       uint64_t least)
{
    if (n > limit)
        return err_set(r->err, r->cap, "%" PRIu64 " %s, the limit is %" PRIu64, n, what,
                       limit);
    if (n > (r->f->size - r->at) / least)
        return err_set(r->err, r->cap,
                       "%" PRIu64 " %s do not fit in a file of %" PRIu64 " bytes", n,
                       what, r->f->size);
    return 0;
}

static int read_pairs(reader *r, uint64_t n, pair_place **places)
{
    gguf *g = r->g;
    if (check_count(r, "metadata pairs", n, GGUF_MAX_PAIRS, 8 + 1 + 4 + 1))
        return -1;
    g->pairs = calloc((size_t)n + 1, sizeof *g->pairs);
    *places = calloc((size_t)n + 1, sizeof **places);
    if (!g->pairs || !*places)
        return err_set(r->err, r->cap, "out of memory");
    for (size_t i = 0; i < n; i++)
        if (read_pair(r, &g->pairs[i], &(*places)[i]))
            return -1;
    g->n_pairs = (size_t)n;
    return 0;
}

/* Pointers into the header, which does not grow any more; no key twice. */
static int bind_pairs(reader *r, const pair_place *places)
{
    gguf *g = r->g;
    g->by_key = malloc((g->n_pairs + 1) * sizeof *g->by_key);
    if (!g->by_key)
        return err_set(r->err, r->cap, "out of memory");
    for (size_t i = 0; i < g->n_pairs; i++) {
        /* the NUL takes the first byte of the pair's type, which has been read */
        g->text[places[i].key + places[i].key_len] = 0;
        g->pairs[i].key = (const char *)g->text + places[i].key;
        g->pairs[i].data = g->text + places[i].data;
        g->by_key[i] = &g->pairs[i];
    }
    qsort(g->by_key, g->n_pairs, sizeof *g->by_key, order_values);
    for (size_t i = 1; i < g->n_pairs; i++)
        if (strcmp(g->by_key[i - 1]->key, g->by_key[i]->key) == 0)
            return err_set(r->err, r->cap, "metadata %s is there twice",
                           name_z(g->by_key[i]->key).text);
    return 0;
}

/* ---- tensors ---- */

typedef struct place {
    tensor t; /* type and shape */
    size_t name, name_len;
    uint64_t offset, bytes; /* in the data */
} place;

static int check_type(reader *r, const char *name, uint32_t id, tensor *t)
{
    const data_type *type = find_type(id);
    if (!type)
        return err_set(r->err, r->cap, "tensor %s has type %u, which is not known",
                       name, id);
    t->type = type->type;
    if (t->type == TENSOR_TYPE_COUNT)
        return err_set(
            r->err, r->cap,
            "tensor %s is %s; F32, F16, BF16, Q8_0, Q6_K and Q4_0 are read: convert "
            "the original checkpoint, or make a GGUF file of one of these types "
            "(llama-quantize --pure)",
            name, type->name);
    return 0;
}

/* The dims of the file, contiguous one first, as t's shape. */
static int check_shape(reader *r, const char *name, const uint64_t *dims, place *p)
{
    tensor *t = &p->t;
    uint64_t n = 1, block = tensor_type_block(t->type);
    for (uint32_t i = 0; i < t->rank; i++) {
        t->shape[t->rank - 1 - i] = dims[i];
        if (dims[i] == 0)
            return err_set(r->err, r->cap, "tensor %s: dimension %u is 0", name, i);
        if (size_mul(n, dims[i], &n))
            return err_set(r->err, r->cap,
                           "tensor %s: the number of elements does not fit in 64 bits",
                           name);
    }
    if (dims[0] % block != 0)
        return err_set(r->err, r->cap,
                       "tensor %s: rows of %" PRIu64 " are not whole blocks of %" PRIu64
                       " (%s)",
                       name, dims[0], block, tensor_type_name(t->type));
    if (size_mul(n / block, tensor_type_bytes(t->type), &p->bytes))
        return err_set(r->err, r->cap,
                       "tensor %s: the number of bytes does not fit in 64 bits", name);
    return tensors_row_major(t);
}

static int read_tensor(reader *r, place *p)
{
    uint32_t id;
    uint64_t dims[GGUF_MAX_RANK] = {1, 1, 1, 1};
    if (take_name(r, "a tensor's name", TENSOR_MAX_NAME, &p->name, &p->name_len))
        return -1;
    safe_name name = name_n((const char *)r->g->text + p->name, p->name_len);
    if (take_u32(r, name.text, &p->t.rank))
        return -1;
    if (p->t.rank > GGUF_MAX_RANK)
        return err_set(r->err, r->cap, "tensor %s has %u dimensions, the limit is %u",
                       name.text, p->t.rank, GGUF_MAX_RANK);
    for (uint32_t i = 0; i < p->t.rank; i++)
        if (take(r, 8, name.text, &dims[i]))
            return -1;
    if (take_u32(r, name.text, &id) || check_type(r, name.text, id, &p->t) ||
        check_shape(r, name.text, dims, p))
        return -1;
    return take(r, 8, name.text, &p->offset);
}

static int read_places(reader *r, uint64_t n, place **places)
{
    if (check_count(r, "tensors", n, TENSOR_MAX, 8 + 1 + 4 + 4 + 8))
        return -1;
    *places = calloc((size_t)n + 1, sizeof **places);
    if (!*places)
        return err_set(r->err, r->cap, "out of memory");
    for (size_t i = 0; i < n; i++)
        if (read_tensor(r, &(*places)[i]))
            return -1;
    return 0;
}

static int read_alignment(reader *r, uint64_t *align)
{
    const gguf_value *v = find(r->g, "general.alignment");
    int64_t x = 32;
    if (v && !gguf_int(v, &x))
        return err_set(r->err, r->cap,
                       "metadata general.alignment is %s, not a whole number",
                       gguf_text(v).text);
    if (x < 8 || x > 1 << 20 || (x & (x - 1)) != 0)
        return err_set(r->err, r->cap,
                       "metadata general.alignment is %" PRId64
                       ", it must be a power of two from 8 to 1048576",
                       x);
    *align = (uint64_t)x;
    return 0;
}

/* Adds the tensor at its place: behind the one before, whose data ends at *end. */
static int add_tensor(reader *r, place *p, uint64_t base, uint64_t align, uint64_t *end)
{
    const char *text = (const char *)r->g->text + p->name;
    safe_name name = name_n(text, p->name_len);
    uint64_t want, last;
    if (size_align(*end, align, &want) || size_add(want, p->bytes, end) ||
        size_add(base, *end, &last))
        return err_set(r->err, r->cap, "tensor %s: its place does not fit in 64 bits",
                       name.text);
    if (p->offset != want)
        return err_set(r->err, r->cap,
                       "tensor %s is at byte %" PRIu64
                       " of the data, the end of the one before makes that %" PRIu64,
                       name.text, p->offset, want);
    if (last > r->f->size)
        return err_set(r->err, r->cap,
                       "tensor %s: it ends at byte %" PRIu64 ", the file has %" PRIu64,
                       name.text, last, r->f->size);
    p->t.offset = base + want;
    return tensors_add(r->f, text, p->name_len, &p->t, r->err, r->cap);
}

/* The tensors stand in the order of the list, as ggml's own reader demands: then none
 * overlaps another, and no byte belongs to none. */
static int add_tensors(reader *r, place *places, uint64_t n)
{
    uint64_t align = 32, base, end = 0, stop;
    if (read_alignment(r, &align))
        return -1;
    if (size_align(r->at, align, &base))
        return err_set(r->err, r->cap, "the header's size does not fit in 64 bits");
    for (uint64_t i = 0; i < n; i++)
        if (add_tensor(r, &places[i], base, align, &end))
            return -1;
    if (size_align(n ? base + end : r->at, align, &stop))
        return err_set(r->err, r->cap, "the file's size does not fit in 64 bits");
    if (r->f->size > stop)
        return err_set(r->err, r->cap,
                       "%" PRIu64 " bytes behind the last tensor belong to nothing",
                       r->f->size - stop);
    return 0;
}

/* ---- all of it ---- */

static void gguf_free(void *own)
{
    gguf *g = own;
    free(g->text);
    free(g->pairs);
    free(g->by_key);
    free(g);
}

static int read_counts(reader *r, uint64_t *n_tensors, uint64_t *n_pairs)
{
    uint32_t magic, version;
    /* the magic number is why we are here */
    if (take_u32(r, "the magic number", &magic) || take_u32(r, "the version", &version))
        return -1;
    if (version != 0 && (version & 0xFFFF) == 0)
        return err_set(r->err, r->cap,
                       "a big-endian GGUF file; only little-endian ones are read");
    if (version != 2 && version != 3)
        return err_set(r->err, r->cap, "GGUF version %u; 2 and 3 are read", version);
    if (take(r, 8, "the number of tensors", n_tensors))
        return -1;
    return take(r, 8, "the number of metadata pairs", n_pairs);
}

int gguf_read(tensor_file *f, char *err, size_t cap)
{
    uint64_t n_tensors = 0, n_pairs = 0;
    pair_place *pairs = NULL;
    place *places = NULL;
    reader r = {f, calloc(1, sizeof(gguf)), 0, 0, err, cap};
    if (!r.g)
        return err_set(err, cap, "out of memory");
    f->own = r.g;
    f->own_free = gguf_free;
    int status = read_counts(&r, &n_tensors, &n_pairs) ||
                 read_pairs(&r, n_pairs, &pairs) ||
                 read_places(&r, n_tensors, &places) || bind_pairs(&r, pairs) ||
                 add_tensors(&r, places, n_tensors);
    free(pairs);
    free(places);
    return status ? -1 : 0;
}

/* ---- values ---- */

static const gguf *gguf_of(const tensor_file *f)
{
    return tensors_container(f) == TENSORS_GGUF ? f->own : NULL;
}

const gguf_value *gguf_at(const tensor_file *f, size_t i)
{
    const gguf *g = gguf_of(f);
    return g && i < g->n_pairs ? &g->pairs[i] : NULL;
}

const gguf_value *gguf_find(const tensor_file *f, const char *key)
{
    const gguf *g = gguf_of(f);
    return g ? find(g, key) : NULL;
}

int gguf_int_at(const gguf_value *v, uint64_t i, int64_t *out)
{
    if (!v || i >= v->n || v->type == GGUF_F32 || v->type == GGUF_F64 ||
        v->type == GGUF_BOOL || v->type == GGUF_STRING)
        return 0;
    size_t size = value_types[v->type].size;
    uint64_t x = load(v->data + i * size, size);
    uint64_t sign = (uint64_t)1 << (8 * size - 1);
    int is_signed = v->type == GGUF_I8 || v->type == GGUF_I16 || v->type == GGUF_I32 ||
                    v->type == GGUF_I64;
    if (is_signed && (x & sign))
        *out = -(int64_t)(~x & (sign - 1)) - 1;
    else if (x > INT64_MAX)
        return 0;
    else
        *out = (int64_t)x;
    return 1;
}

int gguf_int(const gguf_value *v, int64_t *out)
{
    return v && !v->is_array && gguf_int_at(v, 0, out);
}

int gguf_real(const gguf_value *v, double *out)
{
    if (!v || v->is_array)
        return 0;
    if (v->type == GGUF_F32) {
        uint32_t bits = (uint32_t)load(v->data, 4);
        float x;
        memcpy(&x, &bits, sizeof x);
        *out = (double)x;
        return 1;
    }
    if (v->type != GGUF_F64)
        return 0;
    uint64_t bits = load(v->data, 8);
    memcpy(out, &bits, sizeof *out);
    return 1;
}

int gguf_bool(const gguf_value *v, int *out)
{
    if (!v || v->is_array || v->type != GGUF_BOOL)
        return 0;
    *out = v->data[0];
    return 1;
}

const char *gguf_next_string(const gguf_value *v, size_t *at, size_t *len)
{
    if (!v || !v->is_array || v->type != GGUF_STRING || *at >= v->size)
        return NULL;
    const unsigned char *p = v->data + *at;
    *len = (size_t)load(p, 8);
    *at += 8 + *len;
    return (const char *)p + 8;
}

const char *gguf_string(const gguf_value *v, size_t *len)
{
    if (!v || v->is_array || v->type != GGUF_STRING)
        return NULL;
    *len = v->size - 8;
    return (const char *)v->data + 8;
}

int gguf_is(const gguf_value *v, const char *text)
{
    size_t len = 0;
    const char *s = gguf_string(v, &len);
    return s && len == strlen(text) && memcmp(s, text, len) == 0;
}

safe_name gguf_text(const gguf_value *v)
{
    char text[NAME_CAP];
    int64_t x;
    double d;
    int b;
    size_t len = 0;
    const char *s = gguf_string(v, &len);
    if (!v)
        return name_z("(absent)");
    if (s)
        return name_n(s, len);
    if (v->is_array)
        snprintf(text, sizeof text, "an array of %" PRIu64 " %s", v->n,
                 gguf_type_name(v->type));
    else if (gguf_int(v, &x))
        snprintf(text, sizeof text, "%" PRId64, x);
    else if (gguf_real(v, &d))
        snprintf(text, sizeof text, "%g", d);
    else if (gguf_bool(v, &b))
        return name_z(b ? "true" : "false");
    else
        snprintf(text, sizeof text, "%" PRIu64, load(v->data, 8)); /* beyond int64 */
    return name_z(text);
}
