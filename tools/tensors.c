#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#define _FILE_OFFSET_BITS 64

#include "tensors_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "zip.h"

#define WINDOW    ((size_t)1 << 12) /* small reads are served from it */
#define SMALL     ((size_t)1 << 9)
#define SCRATCH   ((size_t)1 << 16) /* bytes decoded at once */
#define TILE      16u /* columns transposed at once: one cache line of f32 */
#define TILE_ROWS ((uint64_t)1 << 12)
#define TILE_PAD  16u /* so that the columns do not share a set of the cache */

struct tensor_cache {
    uint64_t at; /* window holds bytes at .. at + n - 1 of the file */
    size_t n;
    unsigned char window[WINDOW];
    unsigned char scratch[SCRATCH];
};

static const struct {
    const char *name;
    size_t bytes;
    uint64_t block;
} types[TENSOR_TYPE_COUNT] = {
    [TENSOR_BOOL] = {"BOOL", 1, 1},       [TENSOR_U8] = {"U8", 1, 1},
    [TENSOR_I8] = {"I8", 1, 1},           [TENSOR_I16] = {"I16", 2, 1},
    [TENSOR_U16] = {"U16", 2, 1},         [TENSOR_I32] = {"I32", 4, 1},
    [TENSOR_U32] = {"U32", 4, 1},         [TENSOR_I64] = {"I64", 8, 1},
    [TENSOR_U64] = {"U64", 8, 1},         [TENSOR_F8_E4M3] = {"F8_E4M3", 1, 1},
    [TENSOR_F8_E5M2] = {"F8_E5M2", 1, 1}, [TENSOR_F16] = {"F16", 2, 1},
    [TENSOR_BF16] = {"BF16", 2, 1},       [TENSOR_F32] = {"F32", 4, 1},
    [TENSOR_F64] = {"F64", 8, 1},         [TENSOR_Q8_0] = {"Q8_0", 34, 32},
    [TENSOR_Q4_0] = {"Q4_0", 18, 32},     [TENSOR_Q6_K] = {"Q6_K", 210, 256},
};

const char *tensor_type_name(tensor_type type)
{
    return types[type].name;
}

size_t tensor_type_bytes(tensor_type type)
{
    return types[type].bytes;
}

uint64_t tensor_type_block(tensor_type type)
{
    return types[type].block;
}

tensor_shape_text tensor_shape(const tensor *t)
{
    return tensor_shape_of(t->rank, t->shape);
}

tensor_shape_text tensor_shape_of(uint32_t rank, const uint64_t *shape)
{
    tensor_shape_text out;
    size_t at = 1;
    out.text[0] = '[';
    for (uint32_t i = 0; i < rank && i < TENSOR_MAX_RANK;
         i++) /* at most 22 bytes each */
        at += (size_t)snprintf(out.text + at, sizeof out.text - at, "%s%" PRIu64,
                               i ? ", " : "", shape[i]);
    snprintf(out.text + at, sizeof out.text - at, "]");
    return out;
}

/* ---- bytes of the file ---- */

static int read_all(const tensor_file *f, uint64_t offset, unsigned char *out, size_t n,
                    char *err, size_t cap)
{
    while (n > 0) {
        size_t part = n < ((size_t)1 << 30) ? n : (size_t)1 << 30;
        ssize_t done = pread(f->fd, out, part, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return err_set(err, cap, "cannot read: %s", strerror(errno));
        if (done == 0)
            return err_set(err, cap, "the file became shorter while it was read");
        out += done;
        offset += (uint64_t)done;
        n -= (size_t)done;
    }
    return 0;
}

int tensors_read(const tensor_file *f, uint64_t offset, void *out, uint64_t n,
                 char *err, size_t cap)
{
    tensor_cache *c = f->cache;
    size_t size;
    if (offset > f->size || n > f->size - offset || size_native(n, &size))
        return err_set(
            err, cap, "%" PRIu64 " bytes at %" PRIu64 " are beyond the file's %" PRIu64,
            n, offset, f->size);
    if (size == 0)
        return 0;
    if (f->memory) {
        memcpy(out, f->memory + offset, size);
        return 0;
    }
    if (size > SMALL)
        return read_all(f, offset, out, size, err, cap);
    if (offset < c->at || offset - c->at > c->n ||
        c->n - (size_t)(offset - c->at) < size) {
        size_t all = f->size - offset < WINDOW ? (size_t)(f->size - offset) : WINDOW;
        c->n = 0;
        if (read_all(f, offset, c->window, all, err, cap))
            return -1;
        c->at = offset;
        c->n = all;
    }
    memcpy(out, c->window + (offset - c->at), size);
    return 0;
}

/* ---- what readers add ---- */

/* Room for one more item; NULL if out of memory. */
static void *grow(void *list, size_t n, size_t *room, size_t item)
{
    if (n < *room)
        return list;
    size_t want = *room ? 2 * *room : 32;
    void *more = realloc(list, want * item);
    if (more)
        *room = want;
    return more;
}

static char *copy_text(const char *s, size_t n)
{
    char *out = malloc(n + 1);
    if (out) {
        memcpy(out, s, n);
        out[n] = 0;
    }
    return out;
}

int tensors_row_major(tensor *t)
{
    uint64_t n = 1;
    for (uint32_t i = t->rank; i-- > 0;) {
        t->stride[i] = n;
        if (size_mul(n, t->shape[i], &n))
            return -1;
    }
    return 0;
}

/* Sizes that do not wrap, and the last element inside the file. */
static int check_place(const tensor_file *f, tensor *t, const char *name, char *err,
                       size_t cap)
{
    uint64_t last = 0, bytes, end, block = types[t->type].block;
    t->n = 1;
    for (uint32_t i = 0; i < t->rank; i++) /* an empty dimension must not hide a wrap */
        if (size_mul(t->n, t->shape[i], &t->n))
            return err_set(err, cap,
                           "tensor %s: the number of elements does not fit in 64 bits",
                           name);
    for (uint32_t i = 0; i < t->rank; i++) {
        uint64_t far = 0;
        if (t->n > 0 && (size_mul(t->shape[i] - 1, t->stride[i], &far) ||
                         size_add(last, far, &last)))
            return err_set(err, cap, "tensor %s: its strides do not fit in 64 bits",
                           name);
    }
    bytes = t->n ? last / block + 1 : 0;
    if (block > 1 && t->n % block != 0)
        return err_set(err, cap,
                       "tensor %s: %" PRIu64
                       " elements of %s, which has blocks of %" PRIu64,
                       name, t->n, types[t->type].name, block);
    if (size_mul(bytes, types[t->type].bytes, &bytes) ||
        size_add(t->offset, bytes, &end))
        return err_set(err, cap,
                       "tensor %s: the number of bytes does not fit in 64 bits", name);
    if (end > f->size)
        return err_set(err, cap,
                       "tensor %s: it ends at byte %" PRIu64 ", the file has %" PRIu64,
                       name, end, f->size);
    return 0;
}

int tensors_add(tensor_file *f, const char *name, size_t name_len, const tensor *t,
                char *err, size_t cap)
{
    safe_name shown = name_n(name, name_len);
    if (f->n == TENSOR_MAX)
        return err_set(err, cap, "more than %u tensors", TENSOR_MAX);
    if (name_len > TENSOR_MAX_NAME)
        return err_set(err, cap, "tensor %s: the name has %zu bytes, it may have %u",
                       shown.text, name_len, TENSOR_MAX_NAME);
    if (memchr(name, 0, name_len))
        return err_set(err, cap, "tensor %s: a NUL in the name", shown.text);
    tensor copy = *t;
    if (check_place(f, &copy, shown.text, err, cap))
        return -1;
    tensor *list = grow(f->list, f->n, &f->room, sizeof *list);
    char *text = copy_text(name, name_len);
    if (list)
        f->list = list;
    if (!list || !text) {
        free(text);
        return err_set(err, cap, "out of memory");
    }
    copy.name = text;
    copy.file = f;
    f->list[f->n++] = copy;
    return 0;
}

int tensors_add_meta(tensor_file *f, const char *key, size_t key_len, const char *value,
                     size_t value_len, char *err, size_t cap)
{
    if (memchr(key, 0, key_len) || memchr(value, 0, value_len))
        return err_set(err, cap, "metadata %s: a NUL in the key or the value",
                       name_n(key, key_len).text);
    if (f->n_meta == TENSOR_MAX)
        return err_set(err, cap, "more than %u values beside the tensors", TENSOR_MAX);
    tensor_meta *list = grow(f->meta, f->n_meta, &f->meta_room, sizeof *list);
    if (!list)
        return err_set(err, cap, "out of memory");
    f->meta = list;
    tensor_meta *m = &list[f->n_meta];
    m->key = copy_text(key, key_len);
    m->value = copy_text(value, value_len);
    f->n_meta++;
    return m->key && m->value ? 0 : err_set(err, cap, "out of memory");
}

int tensors_add_piece(tensor_file *f, const char *name, uint64_t offset, uint64_t size,
                      uint32_t crc, char *err, size_t cap)
{
    tensor_piece *list = grow(f->pieces, f->n_pieces, &f->piece_room, sizeof *list);
    char *text = copy_text(name, strlen(name));
    if (list)
        f->pieces = list;
    if (!list || !text) {
        free(text);
        return err_set(err, cap, "out of memory");
    }
    list[f->n_pieces++] = (tensor_piece){text, offset, size, crc, 0};
    return 0;
}

/* ---- opening ---- */

static int by_name(const void *a, const void *b)
{
    const tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static int by_key(const void *a, const void *b)
{
    const tensor_meta *const *x = a, *const *y = b;
    return strcmp((*x)->key, (*y)->key);
}

static int by_offset(const void *a, const void *b)
{
    const tensor_piece *x = a, *y = b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static int check_keys(const tensor_file *f, char *err, size_t cap)
{
    const tensor_meta **list = malloc((f->n_meta + 1) * sizeof *list);
    int status = list ? 0 : err_set(err, cap, "out of memory");
    for (size_t i = 0; i < f->n_meta && list; i++)
        list[i] = &f->meta[i];
    if (list)
        qsort(list, f->n_meta, sizeof *list, by_key);
    for (size_t i = 1; i < f->n_meta && !status; i++)
        if (strcmp(list[i - 1]->key, list[i]->key) == 0)
            status = err_set(err, cap, "metadata %s appears twice",
                             name_z(list[i]->key).text);
    for (size_t i = 0; i < f->n_meta && !status && f->container == TENSORS_TORCH; i++)
        if (tensors_find(f, f->meta[i].key)) /* one dict held both, or dicts in it */
            status = err_set(err, cap, "%s is a tensor and a value as well",
                             name_z(f->meta[i].key).text);
    free(list);
    return status;
}

static int seal(tensor_file *f, char *err, size_t cap)
{
    f->sorted = malloc((f->n + 1) * sizeof *f->sorted);
    if (!f->sorted)
        return err_set(err, cap, "out of memory");
    for (size_t i = 0; i < f->n; i++)
        f->sorted[i] = &f->list[i];
    qsort(f->sorted, f->n, sizeof *f->sorted, by_name);
    for (size_t i = 1; i < f->n; i++)
        if (strcmp(f->sorted[i - 1]->name, f->sorted[i]->name) == 0)
            return err_set(err, cap, "tensor %s appears twice",
                           name_z(f->sorted[i]->name).text);
    if (f->n_pieces)
        qsort(f->pieces, f->n_pieces, sizeof *f->pieces, by_offset);
    return check_keys(f, err, cap);
}

static int starts(const unsigned char *head, size_t n, const char *magic, size_t len)
{
    return n >= len && memcmp(head, magic, len) == 0;
}

/* Which reader: by the first bytes, of a zip by its members. */
static int read_content(tensor_file *f, char *err, size_t cap)
{
    static const char pointer[] = "version https://git-lfs";
    unsigned char head[sizeof pointer - 1];
    size_t n = f->size < sizeof head ? (size_t)f->size : sizeof head;
    if (f->size == 0)
        return err_set(err, cap, "the file is empty");
    if (tensors_read(f, 0, head, n, err, cap))
        return -1;
    if (starts(head, n, pointer, sizeof pointer - 1))
        return err_set(err, cap,
                       "a pointer file of Git LFS, not the file itself (git lfs "
                       "pull fetches it)");
    if (starts(head, n, "PK\3\4", 4) || starts(head, n, "PK\5\6", 4)) {
        int torch;
        if (zip_is_torch(f, &torch, err, cap))
            return -1;
        f->container = torch ? TENSORS_TORCH : TENSORS_NPZ;
        return torch ? torch_read(f, err, cap) : npz_read(f, err, cap);
    }
    if (starts(head, n, "\x93NUMPY", 6)) {
        f->container = TENSORS_NPY;
        return npy_read(f, err, cap);
    }
    if (starts(head, n, "GGUF", 4)) {
        f->container = TENSORS_GGUF;
        return gguf_read(f, err, cap);
    }
    /* a pickle of protocol 2 that begins with torch's old magic number */
    if (starts(head, n, "\x80\x02\x8a\x0a", 4))
        return err_set(
            err, cap,
            "a PyTorch file of before version 1.6 (a bare pickle, not a zip); "
            "load and save it again with a current torch.save");
    f->container = TENSORS_SAFETENSORS;
    return safetensors_read(f, err, cap);
}

static tensor_file *open_content(tensor_file *f, char *err, size_t cap)
{
    f->cache = malloc(sizeof *f->cache);
    if (!f->cache) {
        err_set(err, cap, "out of memory");
    } else {
        f->cache->at = 0;
        f->cache->n = 0;
        if (read_content(f, err, cap) == 0 && seal(f, err, cap) == 0)
            return f;
    }
    err_prefix(err, cap, "%s", name_z(f->path).text);
    tensors_close(f);
    return NULL;
}

static tensor_file *new_file(const char *path, char *err, size_t cap)
{
    tensor_file *f = calloc(1, sizeof *f);
    if (f)
        f->path = copy_text(path, strlen(path));
    if (!f || !f->path) {
        free(f);
        err_set(err, cap, "out of memory");
        return NULL;
    }
    f->fd = -1;
    return f;
}

tensor_file *tensors_open_memory(const void *data, size_t size, const char *label,
                                 char *err, size_t cap)
{
    tensor_file *f = new_file(label, err, cap);
    if (!f)
        return NULL;
    f->memory = size ? data : (const unsigned char *)"";
    f->size = size;
    return open_content(f, err, cap);
}

tensor_file *tensors_open(const char *path, char *err, size_t cap)
{
    struct stat st;
    safe_name shown = name_z(path);
    tensor_file *f = new_file(path, err, cap);
    if (!f)
        return NULL;
    f->fd = open(path,
                 O_RDONLY | O_NONBLOCK | O_CLOEXEC); /* a FIFO must not make us wait */
    int status = 0;
    if (f->fd < 0)
        status = err_set(err, cap, "%s: cannot open: %s", shown.text, strerror(errno));
    else if (fstat(f->fd, &st))
        status = err_set(err, cap, "%s: %s", shown.text, strerror(errno));
    else if (!S_ISREG(st.st_mode))
        status = err_set(err, cap, "%s: not a regular file", shown.text);
    if (status) {
        tensors_close(f);
        return NULL;
    }
    f->size = (uint64_t)st.st_size;
    return open_content(f, err, cap);
}

void tensors_close(tensor_file *f)
{
    if (!f)
        return;
    for (size_t i = 0; i < f->n; i++)
        free((char *)(uintptr_t)f->list[i].name);
    for (size_t i = 0; i < f->n_meta; i++) {
        free(f->meta[i].key);
        free(f->meta[i].value);
    }
    for (size_t i = 0; i < f->n_pieces; i++)
        free(f->pieces[i].name);
    if (f->own_free)
        f->own_free(f->own);
    free(f->list);
    free(f->sorted);
    free(f->meta);
    free(f->pieces);
    free(f->cache);
    free(f->path);
    if (f->fd >= 0)
        close(f->fd);
    free(f);
}

/* ---- what is in it ---- */

tensor_container tensors_container(const tensor_file *f)
{
    return f->container;
}

const char *tensors_path(const tensor_file *f)
{
    return f->path;
}

size_t tensors_count(const tensor_file *f)
{
    return f->n;
}

const tensor *tensors_at(const tensor_file *f, size_t i)
{
    return i < f->n ? &f->list[i] : NULL;
}

const tensor *tensors_find(const tensor_file *f, const char *name)
{
    size_t low = 0, high = f->n;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        int c = strcmp(name, f->sorted[mid]->name);
        if (c == 0)
            return f->sorted[mid];
        if (c < 0)
            high = mid;
        else
            low = mid + 1;
    }
    return NULL;
}

const char *tensors_meta(const tensor_file *f, const char *key)
{
    for (size_t i = 0; i < f->n_meta; i++)
        if (strcmp(f->meta[i].key, key) == 0)
            return f->meta[i].value;
    return NULL;
}

size_t tensors_meta_count(const tensor_file *f)
{
    return f->n_meta;
}

const char *tensors_meta_at(const tensor_file *f, size_t i, const char **value)
{
    *value = f->meta[i].value;
    return f->meta[i].key;
}

int tensor_is_float(const tensor *t)
{
    return (t->type >= TENSOR_F16 && t->type <= TENSOR_F64) || t->type == TENSOR_Q8_0 ||
           t->type == TENSOR_Q4_0 || t->type == TENSOR_Q6_K;
}

int tensor_is_int(const tensor *t)
{
    return t->type <= TENSOR_U64;
}

tensor tensor_transposed(const tensor *t)
{
    tensor out = *t;
    out.shape[0] = t->shape[1];
    out.shape[1] = t->shape[0];
    out.stride[0] = t->stride[1];
    out.stride[1] = t->stride[0];
    return out;
}

/* ---- checksums ---- */

static int check_piece(const tensor_file *f, tensor_piece *p, char *err, size_t cap)
{
    uint32_t crc = 0;
    for (uint64_t at = 0; at < p->size;) {
        size_t n = p->size - at < SCRATCH ? (size_t)(p->size - at) : SCRATCH;
        if (tensors_read(f, p->offset + at, f->cache->scratch, n, err, cap))
            return -1;
        crc = zip_crc(crc, f->cache->scratch, n);
        at += n;
    }
    if (crc != p->crc)
        return err_set(err, cap,
                       "member %s is damaged: the CRC-32 of its data is %08" PRIx32
                       ", the directory says %08" PRIx32,
                       name_z(p->name).text, crc, p->crc);
    p->checked = 1;
    return 0;
}

/* The piece that holds a tensor's first byte holds all of it: readers see to that. */
static int check_sum(const tensor *t, char *err, size_t cap)
{
    const tensor_file *f = t->file;
    size_t low = 0, high = f->n_pieces;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (f->pieces[mid].offset <= t->offset)
            low = mid + 1;
        else
            high = mid;
    }
    if (low == 0 || f->pieces[low - 1].checked ||
        t->offset - f->pieces[low - 1].offset >= f->pieces[low - 1].size)
        return 0;
    return check_piece(f, &f->pieces[low - 1], err, cap);
}

/* ---- numbers from bytes ---- */

static float f32_of_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* IEEE half to single: every half is a single. */
static float f32_of_f16(uint32_t h)
{
    uint32_t sign = (h & 0x8000u) << 16, e = h >> 10 & 31, m = h & 1023;
    if (e == 31)
        return f32_of_bits(sign | 0x7F800000u | m << 13);
    if (e != 0)
        return f32_of_bits(sign | (e + 112) << 23 | m << 13);
    float tiny = (float)m * 0x1p-24f; /* subnormal or zero */
    return sign ? -tiny : tiny;
}

static uint32_t load16(const unsigned char *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

/* Q8_0 and Q4_0: a scale as f16, then 32 values as bytes, or as nibbles (the low ones are the
 * first 16) less 8. */
static void decode_q8_0(const unsigned char *p, float *out)
{
    float scale = f32_of_f16(load16(p));
    for (int i = 0; i < 32; i++)
        out[i] = scale * (float)(p[2 + i] < 128 ? p[2 + i] : p[2 + i] - 256);
}

static void decode_q4_0(const unsigned char *p, float *out)
{
    float scale = f32_of_f16(load16(p));
    for (int i = 0; i < 16; i++) {
        out[i] = scale * (float)((p[2 + i] & 15) - 8);
        out[i + 16] = scale * (float)((p[2 + i] >> 4) - 8);
    }
}

/* 256 numbers of 6 bits, less 32: their low halves (128 bytes), their upper bits (64
 * bytes), a scale for every 16 of them as a byte, one scale for all as f16. Rounded as
 * ggml does it (dequantize_row_q6_K): the scales' product is exact, the number's is not. */
static void decode_q6_k(const unsigned char *p, float *out)
{
    float scale = f32_of_f16(load16(p + 208));
    for (int i = 0; i < 256; i++) {
        int half = i / 128, quarter = i % 128 / 32, k = i % 32;
        int low = p[64 * half + 32 * (quarter & 1) + k] >> (quarter & 2 ? 4 : 0) & 15;
        int high = p[128 + 32 * half + k] >> 2 * quarter & 3;
        int s = p[192 + 8 * half + 2 * quarter + k / 16];
        out[i] =
            scale * (float)(s < 128 ? s : s - 256) * (float)((low | high << 4) - 32);
    }
}

static void decode_block(tensor_type type, const unsigned char *p, float *out)
{
    if (type == TENSOR_Q8_0)
        decode_q8_0(p, out);
    else if (type == TENSOR_Q4_0)
        decode_q4_0(p, out);
    else
        decode_q6_k(p, out);
}

static void decode(tensor_type type, const unsigned char *p, uint64_t n, float *out)
{
    switch (type) {
    case TENSOR_BF16:
        for (uint64_t i = 0; i < n; i++)
            out[i] = f32_of_bits(load16(p + 2 * i) << 16);
        break;
    case TENSOR_F16:
        for (uint64_t i = 0; i < n; i++)
            out[i] = f32_of_f16(load16(p + 2 * i));
        break;
    case TENSOR_F64:
        for (uint64_t i = 0; i < n; i++) {
            double x;
            memcpy(&x, p + 8 * i, sizeof x);
            out[i] = (float)x;
        }
        break;
    default: memcpy(out, p, (size_t)n * 4); break;
    }
}

/* n elements of blocks from element `at` on, in storage order. */
static int run_blocks(const tensor *t, uint64_t at, uint64_t n, float *out, char *err,
                      size_t cap)
{
    size_t bytes = types[t->type].bytes;
    unsigned char *scratch = t->file->cache->scratch;
    while (n > 0) {
        uint64_t size = types[t->type].block;
        uint64_t block = at / size, skip = at % size, most = SCRATCH / bytes;
        uint64_t blocks = (skip + n + size - 1) / size;
        if (blocks > most)
            blocks = most;
        if (tensors_read(t->file, t->offset + block * bytes, scratch, blocks * bytes,
                         err, cap))
            return -1;
        for (uint64_t b = 0; b < blocks; b++) {
            float v[256];
            uint64_t m = size - skip < n ? size - skip : n;
            decode_block(t->type, scratch + b * bytes, v);
            memcpy(out, v + skip, (size_t)m * sizeof *out);
            out += m;
            n -= m;
            at += m;
            skip = 0;
        }
    }
    return 0;
}

/* n elements from element `at` on, in storage order. */
static int run_f32(const tensor *t, uint64_t at, uint64_t n, float *out, char *err,
                   size_t cap)
{
    size_t size = types[t->type].bytes;
    if (types[t->type].block > 1)
        return run_blocks(t, at, n, out, err, cap);
    if (t->type == TENSOR_F32)
        return tensors_read(t->file, t->offset + at * 4, out, n * 4, err, cap);
    for (uint64_t i = 0; i < n;) {
        uint64_t m = n - i < SCRATCH / size ? n - i : SCRATCH / size;
        unsigned char *scratch = t->file->cache->scratch;
        if (tensors_read(t->file, t->offset + (at + i) * size, scratch, m * size, err,
                         cap))
            return -1;
        decode(t->type, scratch, m, out + i);
        i += m;
    }
    return 0;
}

static int run_f64(const tensor *t, uint64_t at, uint64_t n, double *out, char *err,
                   size_t cap)
{
    float part[1024];
    if (t->type == TENSOR_F64)
        return tensors_read(t->file, t->offset + at * 8, out, n * 8, err, cap);
    for (uint64_t i = 0; i < n;) {
        uint64_t m = n - i < 1024 ? n - i : 1024;
        if (run_f32(t, at + i, m, part, err, cap))
            return -1;
        for (uint64_t j = 0; j < m; j++)
            out[i + j] = (double)part[j];
        i += m;
    }
    return 0;
}

/* ---- numbers in the order of the shape, as float or (wide) double ---- */

static size_t item_of(int wide)
{
    return wide ? sizeof(double) : sizeof(float);
}

static void *item_at(void *out, int wide, uint64_t i)
{
    return (char *)out + i * item_of(wide);
}

static int run(const tensor *t, uint64_t at, uint64_t n, int wide, void *out, char *err,
               size_t cap)
{
    return wide ? run_f64(t, at, n, out, err, cap) : run_f32(t, at, n, out, err, cap);
}

/* n elements, `stride` apart: what lies between is read too while that is little. */
static int line(const tensor *t, uint64_t at, uint64_t stride, uint64_t n, int wide,
                void *out, char *err, size_t cap)
{
    double part[512];
    size_t item = item_of(wide);
    if (stride == 1 || n <= 1)
        return run(t, at, n, wide, out, err, cap);
    uint64_t step = stride == 0 ? n : stride < 64 ? (512 - 1) / stride + 1 : 1;
    for (uint64_t i = 0; i < n; i += step) {
        uint64_t m = n - i < step ? n - i : step;
        if (run(t, at + i * stride, (m - 1) * stride + 1, wide, part, err, cap))
            return -1;
        for (uint64_t j = 0; j < m; j++)
            memcpy(item_at(out, wide, i + j), item_at(part, wide, j * stride), item);
    }
    return 0;
}

/* Columns of `tile` [n_cols, n_rows + TILE_PAD] to rows of out, `width` apart. */
static void transpose_f32(const float *tile, uint64_t n_rows, uint64_t n_cols,
                          float *out, uint64_t width)
{
    for (uint64_t i = 0; i < n_rows; i++)
        for (uint64_t j = 0; j < n_cols; j++)
            out[i * width + j] = tile[j * (n_rows + TILE_PAD) + i];
}

static void transpose_f64(const double *tile, uint64_t n_rows, uint64_t n_cols,
                          double *out, uint64_t width)
{
    for (uint64_t i = 0; i < n_rows; i++)
        for (uint64_t j = 0; j < n_cols; j++)
            out[i * width + j] = tile[j * (n_rows + TILE_PAD) + i];
}

/* Rows row .., `rows` of them, of a block whose columns are what lies together: 16 columns
 * at a time, so that whole cache lines are written. */
static int slab_by_columns(const tensor *t, uint64_t row, uint64_t rows, uint64_t col,
                           uint64_t n_cols, int wide, void *tile, void *out, char *err,
                           size_t cap)
{
    for (uint64_t j = 0; j < n_cols; j += TILE) {
        uint64_t cols = n_cols - j < TILE ? n_cols - j : TILE;
        uint64_t at = row * t->stride[0] + (col + j) * t->stride[1];
        for (uint64_t k = 0; k < cols; k++)
            if (line(t, at + k * t->stride[1], t->stride[0], rows, wide,
                     item_at(tile, wide, k * (rows + TILE_PAD)), err, cap))
                return -1;
        if (wide)
            transpose_f64(tile, rows, cols, item_at(out, wide, j), n_cols);
        else
            transpose_f32(tile, rows, cols, item_at(out, wide, j), n_cols);
    }
    return 0;
}

static int block_by_columns(const tensor *t, uint64_t row, uint64_t n_rows,
                            uint64_t col, uint64_t n_cols, int wide, void *out,
                            char *err, size_t cap)
{
    uint64_t step = n_rows < TILE_ROWS ? n_rows : TILE_ROWS;
    void *tile = malloc((size_t)((step + TILE_PAD) * TILE) * item_of(wide));
    int status = tile ? 0 : err_set(err, cap, "out of memory");
    for (uint64_t i = 0; i < n_rows && !status; i += step)
        status = slab_by_columns(t, row + i, n_rows - i < step ? n_rows - i : step, col,
                                 n_cols, wide, tile, item_at(out, wide, i * n_cols),
                                 err, cap);
    free(tile);
    return status;
}

static int block_raw(const tensor *t, uint64_t row, uint64_t n_rows, uint64_t col,
                     uint64_t n_cols, int wide, void *out, char *err, size_t cap)
{
    uint64_t s0 = t->stride[0], s1 = t->stride[1], at = row * s0 + col * s1;
    if (n_rows == 0 || n_cols == 0)
        return 0;
    if (s1 == 1 && s0 == n_cols)
        return run(t, at, n_rows * n_cols, wide, out, err, cap);
    if (s0 < s1 && n_rows > 1)
        return block_by_columns(t, row, n_rows, col, n_cols, wide, out, err, cap);
    for (uint64_t i = 0; i < n_rows; i++)
        if (line(t, at + i * s0, s1, n_cols, wide, item_at(out, wide, i * n_cols), err,
                 cap))
            return -1;
    return 0;
}

static int is_row_major(const tensor *t)
{
    uint64_t n = 1;
    for (uint32_t i = t->rank; i-- > 0;) {
        if (t->shape[i] != 1 && t->stride[i] != n)
            return 0;
        n *= t->shape[i];
    }
    return 1;
}

/* The place of element i in the storage. */
static uint64_t place_of(const tensor *t, uint64_t i)
{
    uint64_t at = 0;
    for (uint32_t k = t->rank; k-- > 0;) {
        at += i % t->shape[k] * t->stride[k];
        i /= t->shape[k];
    }
    return at;
}

static int elements_raw(const tensor *t, uint64_t first, uint64_t n, int wide,
                        void *out, char *err, size_t cap)
{
    if (n == 0)
        return 0;
    if (is_row_major(t))
        return run(t, first, n, wide, out, err, cap);
    uint64_t width = t->shape[t->rank - 1], stride = t->stride[t->rank - 1];
    for (uint64_t i = 0; i < n;) {
        uint64_t at = first + i, col = at % width, m = width - col;
        if (t->rank == 2 && col == 0 && n - i >= width) {
            m = (n - i) / width;
            if (block_raw(t, at / width, m, 0, width, wide, item_at(out, wide, i), err,
                          cap))
                return -1;
            i += m * width;
            continue;
        }
        if (m > n - i)
            m = n - i;
        if (line(t, place_of(t, at), stride, m, wide, item_at(out, wide, i), err, cap))
            return -1;
        i += m;
    }
    return 0;
}

/* ---- only finite numbers ---- */

/* The index of the first of n that is not finite, n if there is none. */
static uint64_t find_odd(const void *values, uint64_t n, int wide)
{
    const float *f = values;
    const double *d = values;
    for (uint64_t i = 0; i < n;) {
        uint64_t m = n - i < 256 ? n - i : 256;
        int odd = 0;
        if (wide)
            for (uint64_t j = 0; j < m; j++)
                odd |= !(fabs(d[i + j]) <= 1.7976931348623157e308);
        else
            for (uint64_t j = 0; j < m; j++) {
                uint32_t bits;
                memcpy(&bits, &f[i + j], sizeof bits);
                odd |= (bits & 0x7F800000u) == 0x7F800000u;
            }
        for (uint64_t j = 0; j < m && odd; j++)
            if (wide ? !isfinite(d[i + j]) : !isfinite(f[i + j]))
                return i + j;
        i += m;
    }
    return n;
}

/* Is t what tensor_transposed makes of the tensor of this name? */
static int is_turned(const tensor *t)
{
    const tensor *o = t->rank == 2 ? tensors_find(t->file, t->name) : NULL;
    return o && o->rank == 2 && o->shape[0] == t->shape[1] &&
           o->shape[1] == t->shape[0] && o->stride[0] == t->stride[1] &&
           o->stride[1] == t->stride[0] &&
           (o->shape[0] != t->shape[0] || o->stride[0] != t->stride[0]);
}

/* Names the element as the file has it. */
static int odd_element(const tensor *t, uint64_t i, char *err, size_t cap)
{
    uint64_t index[TENSOR_MAX_RANK] = {0}, left = i;
    double x = 0;
    for (uint32_t k = t->rank; k-- > 0;) {
        index[k] = left % t->shape[k];
        left /= t->shape[k];
    }
    if (elements_raw(t, i, 1, 1, &x, err, cap))
        return -1;
    if (is_turned(t)) {
        uint64_t first = index[0];
        index[0] = index[1];
        index[1] = first;
    }
    return err_set(err, cap, "tensor %s%s%s is %s", name_z(t->name).text,
                   t->rank ? ": element " : "",
                   t->rank ? tensor_shape_of(t->rank, index).text : "",
                   isnan(x)      ? "NaN"
                   : isfinite(x) ? "too large for f32"
                                 : "infinite");
}

static int broken(const tensor *t, char *err, size_t cap)
{
    return err_prefix(err, cap, "%s", name_z(t->file->path).text);
}

static int elements(const tensor *t, uint64_t first, uint64_t n, int wide, void *out,
                    char *err, size_t cap)
{
    if (!tensor_is_float(t) || first > t->n || n > t->n - first)
        return err_set(
            err, cap, "internal: elements %" PRIu64 " + %" PRIu64 " of tensor %s %s %s",
            first, n, name_z(t->name).text, tensor_type_name(t->type),
            tensor_shape(t).text);
    if (check_sum(t, err, cap) || elements_raw(t, first, n, wide, out, err, cap))
        return broken(t, err, cap);
    uint64_t odd = find_odd(out, n, wide);
    return odd < n ? odd_element(t, first + odd, err, cap) : 0;
}

static int block(const tensor *t, uint64_t row, uint64_t n_rows, uint64_t col,
                 uint64_t n_cols, int wide, void *out, char *err, size_t cap)
{
    if (!tensor_is_float(t) || t->rank != 2 || row > t->shape[0] || col > t->shape[1] ||
        n_rows > t->shape[0] - row || n_cols > t->shape[1] - col)
        return err_set(err, cap,
                       "internal: rows %" PRIu64 " + %" PRIu64 ", columns %" PRIu64
                       " + %" PRIu64 " of tensor %s %s %s",
                       row, n_rows, col, n_cols, name_z(t->name).text,
                       tensor_type_name(t->type), tensor_shape(t).text);
    if (check_sum(t, err, cap) ||
        block_raw(t, row, n_rows, col, n_cols, wide, out, err, cap))
        return broken(t, err, cap);
    uint64_t n = n_rows * n_cols, odd = find_odd(out, n, wide);
    if (odd == n)
        return 0;
    return odd_element(t, (row + odd / n_cols) * t->shape[1] + col + odd % n_cols, err,
                       cap);
}

int tensor_f32(const tensor *t, uint64_t first, uint64_t n, float *out, char *err,
               size_t cap)
{
    return elements(t, first, n, 0, out, err, cap);
}

int tensor_f64(const tensor *t, uint64_t first, uint64_t n, double *out, char *err,
               size_t cap)
{
    return elements(t, first, n, 1, out, err, cap);
}

int tensor_block_f32(const tensor *t, uint64_t row, uint64_t n_rows, uint64_t col,
                     uint64_t n_cols, float *out, char *err, size_t cap)
{
    return block(t, row, n_rows, col, n_cols, 0, out, err, cap);
}

int tensor_block_f64(const tensor *t, uint64_t row, uint64_t n_rows, uint64_t col,
                     uint64_t n_cols, double *out, char *err, size_t cap)
{
    return block(t, row, n_rows, col, n_cols, 1, out, err, cap);
}

int tensor_int(const tensor *t, uint64_t i, int64_t *out, char *err, size_t cap)
{
    unsigned char b[8] = {0};
    size_t size = types[t->type].bytes;
    uint64_t x = 0;
    if (!tensor_is_int(t) || i >= t->n)
        return err_set(err, cap, "internal: element %" PRIu64 " of tensor %s %s %s", i,
                       name_z(t->name).text, tensor_type_name(t->type),
                       tensor_shape(t).text);
    if (check_sum(t, err, cap) ||
        tensors_read(t->file, t->offset + place_of(t, i) * size, b, size, err, cap))
        return broken(t, err, cap);
    for (size_t k = size; k-- > 0;)
        x = x << 8 | b[k];
    if (t->type == TENSOR_BOOL && x > 1)
        return err_set(err, cap, "tensor %s: element %" PRIu64 " is neither 0 nor 1",
                       name_z(t->name).text, i);
    if (t->type == TENSOR_U64 && x > (uint64_t)INT64_MAX)
        return err_set(err, cap,
                       "tensor %s: element %" PRIu64 " is %" PRIu64
                       ", which is more than 2^63 - 1",
                       name_z(t->name).text, i, x);
    int is_signed = t->type == TENSOR_I8 || t->type == TENSOR_I16 ||
                    t->type == TENSOR_I32 || t->type == TENSOR_I64;
    if (is_signed && size < 8 && x >> (8 * size - 1))
        *out = (int64_t)x - ((int64_t)1 << 8 * size);
    else if (x > (uint64_t)INT64_MAX)
        *out = -(int64_t)(UINT64_MAX - x) - 1;
    else
        *out = (int64_t)x;
    return 0;
}
