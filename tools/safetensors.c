#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#define _FILE_OFFSET_BITS 64

#include "safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checked.h"
#include "json.h"
#include "outfile.h"

static const struct {
    const char *name;
    size_t size;
} dtypes[ST_DTYPE_COUNT] = {
    [ST_BOOL] = {"BOOL", 1},       [ST_U8] = {"U8", 1},           [ST_I8] = {"I8", 1},
    [ST_I16] = {"I16", 2},         [ST_U16] = {"U16", 2},         [ST_I32] = {"I32", 4},
    [ST_U32] = {"U32", 4},         [ST_I64] = {"I64", 8},         [ST_U64] = {"U64", 8},
    [ST_F8_E4M3] = {"F8_E4M3", 1}, [ST_F8_E5M2] = {"F8_E5M2", 1}, [ST_F16] = {"F16", 2},
    [ST_BF16] = {"BF16", 2},       [ST_F32] = {"F32", 4},         [ST_F64] = {"F64", 8},
};

const char *st_dtype_name(st_dtype dtype)
{
    return dtypes[dtype].name;
}

size_t st_dtype_size(st_dtype dtype)
{
    return dtypes[dtype].size;
}

st_shape_text st_shape(uint32_t rank, const uint64_t *shape)
{
    st_shape_text out;
    size_t at = 1;
    out.text[0] = '[';
    for (uint32_t i = 0; i < rank && i < ST_MAX_RANK; i++) /* at most 22 bytes each */
        at += (size_t)snprintf(out.text + at, sizeof out.text - at, "%s%" PRIu64,
                               i ? ", " : "", shape[i]);
    snprintf(out.text + at, sizeof out.text - at, "]");
    return out;
}

/* ---- reading ---- */

typedef struct placed { /* a tensor and its place, while the header is checked */
    st_tensor t;
    uint64_t begin, end;
} placed;

struct st_file {
    unsigned char *map; /* mapped by us, NULL if borrowed */
    size_t map_size;
    json_doc *header;          /* owns the names */
    st_tensor *tensors;        /* [n] */
    const st_tensor **by_name; /* [n], sorted */
    size_t n;
};

typedef struct reader {
    st_file *f;
    const char *label;
    const unsigned char *data; /* the data section */
    uint64_t data_size;
    char *err;
    size_t cap;
} reader;

static int fail(reader *r, const char *what)
{
    return err_set(r->err, r->cap, "%s: %s", name_z(r->label).text, what);
}

static int fail_tensor(reader *r, const char *name, const char *what)
{
    return err_set(r->err, r->cap, "%s: tensor %s: %s", name_z(r->label).text,
                   name_z(name).text, what);
}

static int read_dtype(reader *r, const char *name, const json_value *v, st_dtype *out)
{
    if (!v || v->type != JSON_STRING)
        return fail_tensor(r, name, "dtype is missing or is not a string");
    for (int i = 0; i < ST_DTYPE_COUNT; i++) {
        if (strcmp(v->str, dtypes[i].name) == 0 && v->len == strlen(v->str)) {
            *out = (st_dtype)i;
            return 0;
        }
    }
    return err_set(r->err, r->cap, "%s: tensor %s: unknown dtype \"%s\"",
                   name_z(r->label).text, name_z(name).text,
                   name_n(v->str, v->len).text);
}

/* An index: digits only, so not -0, not 2.0, not 1e3. */
static int read_index(const json_value *v, uint64_t *out)
{
    int64_t x;
    if (!json_int(v, &x) || v->str[0] == '-')
        return -1;
    *out = (uint64_t)x;
    return 0;
}

static int read_shape(reader *r, const json_value *v, st_tensor *t)
{
    const json_doc *d = r->f->header;
    if (!v || v->type != JSON_ARRAY)
        return fail_tensor(r, t->name, "shape is missing or is not an array");
    if (v->n > ST_MAX_RANK)
        return err_set(r->err, r->cap, "%s: tensor %s: %u dimensions, the limit is %d",
                       name_z(r->label).text, name_z(t->name).text, v->n, ST_MAX_RANK);
    t->rank = v->n;
    t->n = 1;
    uint32_t i = 0;
    for (const json_value *e = json_first(d, v); e; e = json_next(d, e), i++) {
        if (read_index(e, &t->shape[i]))
            return err_set(r->err, r->cap,
                           "%s: tensor %s: dimension %u of the shape is not a whole "
                           "number of at least 0",
                           name_z(r->label).text, name_z(t->name).text, i);
        if (size_mul(t->n, t->shape[i], &t->n))
            return fail_tensor(r, t->name,
                               "the number of elements does not fit in 64 bits");
    }
    return 0;
}

/* data_offsets, and that they agree with shape and type. */
static int read_place(reader *r, const json_value *v, placed *p)
{
    const json_doc *d = r->f->header;
    uint64_t bytes;
    const char *label = r->label, *name = p->t.name;
    const json_value *a = json_first(d, v), *b = json_next(d, a);
    if (!v || v->type != JSON_ARRAY || v->n != 2 || read_index(a, &p->begin) ||
        read_index(b, &p->end))
        return fail_tensor(r, name,
                           "data_offsets is missing or is not two whole numbers");
    if (p->begin > p->end || p->end > r->data_size)
        return err_set(
            r->err, r->cap,
            "%s: tensor %s: data_offsets [%" PRIu64 ", %" PRIu64 "] do not lie "
            "in the file's %" PRIu64 " bytes of data",
            name_z(label).text, name_z(name).text, p->begin, p->end, r->data_size);
    if (size_mul(p->t.n, dtypes[p->t.dtype].size, &bytes))
        return fail_tensor(r, name, "the number of bytes does not fit in 64 bits");
    if (bytes != p->end - p->begin)
        return err_set(r->err, r->cap,
                       "%s: tensor %s: %s %s takes %" PRIu64
                       " bytes, data_offsets give "
                       "%" PRIu64,
                       name_z(label).text, name_z(name).text, dtypes[p->t.dtype].name,
                       st_shape(p->t.rank, p->t.shape).text, bytes, p->end - p->begin);
    p->t.data = r->data + p->begin;
    return 0;
}

static int read_tensor(reader *r, const json_value *v, placed *p)
{
    const json_doc *d = r->f->header;
    size_t len;
    const char *name = json_key(d, v, &len);
    memset(p, 0, sizeof *p);
    if (len > ST_MAX_NAME || len == 0)
        return err_set(r->err, r->cap,
                       "%s: tensor %s: the name has %zu bytes, it may have 1 to %u",
                       name_z(r->label).text, name_n(name, len).text, len, ST_MAX_NAME);
    if (strlen(name) != len)
        return err_set(r->err, r->cap, "%s: tensor %s: a NUL in the name",
                       name_z(r->label).text, name_n(name, len).text);
    p->t.name = name;
    if (v->type != JSON_OBJECT)
        return fail_tensor(r, name, "its entry is not an object");
    if (read_dtype(r, name, json_get(d, v, "dtype"), &p->t.dtype) ||
        read_shape(r, json_get(d, v, "shape"), &p->t) ||
        read_place(r, json_get(d, v, "data_offsets"), p))
        return -1;
    if (v->n != 3)
        return fail_tensor(r, name,
                           "its entry has a key besides dtype, shape and data_offsets");
    return 0;
}

static int by_place(const void *a, const void *b)
{
    const placed *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->end < y->end
               ? -1
               : x->end > y->end; /* an empty tensor before the one it touches */
}

/* The tensors tile the data section: no gap, no overlap, nothing left over. */
static int check_tiling(reader *r, placed *list, size_t n)
{
    uint64_t at = 0;
    qsort(list, n, sizeof *list, by_place);
    for (size_t i = 0; i < n; i++) {
        if (list[i].begin != at)
            return err_set(r->err, r->cap,
                           "%s: tensor %s: begins at byte %" PRIu64
                           " of the data, the one "
                           "before it ends at %" PRIu64 " (%s)",
                           name_z(r->label).text, name_z(list[i].t.name).text,
                           list[i].begin, at, list[i].begin < at ? "overlap" : "gap");
        at = list[i].end;
    }
    if (at != r->data_size)
        return err_set(r->err, r->cap,
                       "%s: the tensors end at byte %" PRIu64
                       " of the data, the file has "
                       "%" PRIu64,
                       name_z(r->label).text, at, r->data_size);
    return 0;
}

static int check_metadata(reader *r, const json_value *v)
{
    const json_doc *d = r->f->header;
    if (v->type != JSON_OBJECT)
        return fail(r, "__metadata__ is not an object");
    for (const json_value *e = json_first(d, v); e; e = json_next(d, e))
        if (e->type != JSON_STRING)
            return fail(r, "__metadata__ has a value that is not a string");
    return 0;
}

static int by_name(const void *a, const void *b)
{
    const st_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static int index_names(reader *r, const placed *list, size_t n)
{
    r->f->n = n;
    r->f->tensors = calloc(n + 1, sizeof *r->f->tensors);
    r->f->by_name = calloc(n + 1, sizeof *r->f->by_name);
    if (!r->f->tensors || !r->f->by_name)
        return fail(r, "out of memory");
    for (size_t i = 0; i < n; i++) {
        r->f->tensors[i] = list[i].t;
        r->f->by_name[i] = &r->f->tensors[i];
    }
    qsort(r->f->by_name, n, sizeof *r->f->by_name, by_name);
    return 0;
}

static int read_tensors(reader *r, const json_value *root)
{
    const json_doc *d = r->f->header;
    placed *list = calloc((size_t)root->n + 1, sizeof *list);
    size_t n = 0;
    int status = 0;
    if (!list)
        return fail(r, "out of memory");
    for (const json_value *e = json_first(d, root); e && !status; e = json_next(d, e)) {
        if (strcmp(json_key(d, e, NULL), "__metadata__") == 0)
            status = check_metadata(r, e);
        else
            status = read_tensor(r, e, &list[n++]);
    }
    if (!status)
        status = index_names(r, list, n); /* before the tiling sorts the list */
    if (!status)
        status = check_tiling(r, list, n);
    free(list);
    return status;
}

static int read_header(reader *r, const unsigned char *bytes, uint64_t size)
{
    char why[ERR_CAP];
    uint64_t n = 0;
    if (size < 8)
        return err_set(r->err, r->cap,
                       "%s: %" PRIu64 " bytes, a safetensors file has at least 8",
                       name_z(r->label).text, size);
    for (int i = 7; i >= 0; i--)
        n = n << 8 | bytes[i];
    if (n > ST_MAX_HEADER)
        return err_set(r->err, r->cap,
                       "%s: not a safetensors file: a header of %" PRIu64 " bytes, the "
                       "limit is %u",
                       name_z(r->label).text, n, ST_MAX_HEADER);
    if (n > size - 8)
        return err_set(r->err, r->cap,
                       "%s: the file is cut off: a header of %" PRIu64
                       " bytes in a file "
                       "of %" PRIu64,
                       name_z(r->label).text, n, size);
    if (n == 0 ||
        bytes[8] ==
            0xEF) /* json_parse would take a byte order mark, the format has none */
        return fail(r, "the header does not begin with '{'");
    r->data = bytes + 8 + n;
    r->data_size = size - 8 - n;
    r->f->header = json_parse((const char *)bytes + 8, (size_t)n, why, sizeof why);
    if (!r->f->header)
        return err_set(r->err, r->cap, "%s: header: %s", name_z(r->label).text, why);
    const json_value *root = json_root(r->f->header);
    if (root->type != JSON_OBJECT)
        return fail(r, "the header is not a JSON object");
    if (root->n > ST_MAX_TENSORS + 1)
        return err_set(r->err, r->cap, "%s: %u tensors, the limit is %u",
                       name_z(r->label).text, root->n, ST_MAX_TENSORS);
    return read_tensors(r, root);
}

st_file *st_open_memory(const void *data, size_t size, const char *label, char *err,
                        size_t cap)
{
    reader r = {calloc(1, sizeof(st_file)), label, NULL, 0, err, cap};
    if (!r.f) {
        err_set(err, cap, "out of memory");
        return NULL;
    }
    if (read_header(&r, data, size)) {
        st_close(r.f);
        return NULL;
    }
    return r.f;
}

st_file *st_open(const char *path, char *err, size_t cap)
{
    struct stat st;
    void *map = NULL;
    size_t size = 0;
    safe_name shown = name_z(path);
    int fd = open(path, O_RDONLY | O_NONBLOCK); /* a FIFO must not make us wait */
    if (fd < 0) {
        err_set(err, cap, "%s: cannot open: %s", shown.text, strerror(errno));
        return NULL;
    }
    int status = fstat(fd, &st);
    if (status)
        err_set(err, cap, "%s: %s", shown.text, strerror(errno));
    else if (!S_ISREG(st.st_mode))
        status = err_set(err, cap, "%s: not a regular file", shown.text);
    else if (size_native((uint64_t)st.st_size, &size))
        status = err_set(err, cap, "%s: too large for this machine's address space",
                         shown.text);
    else if (size > 0) {
        map = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED)
            status =
                err_set(err, cap, "%s: cannot map: %s", shown.text, strerror(errno));
    }
    close(fd);
    if (status)
        return NULL;
    st_file *f = st_open_memory(map ? map : "", size, path, err, cap);
    if (!f) {
        if (map)
            munmap(map, size);
        return NULL;
    }
    f->map = map;
    f->map_size = size;
    return f;
}

void st_close(st_file *f)
{
    if (!f)
        return;
    json_free(f->header);
    free(f->tensors);
    free(f->by_name);
    if (f->map)
        munmap(f->map, f->map_size);
    free(f);
}

size_t st_count(const st_file *f)
{
    return f->n;
}

const st_tensor *st_at(const st_file *f, size_t i)
{
    return i < f->n ? &f->tensors[i] : NULL;
}

const st_tensor *st_find(const st_file *f, const char *name)
{
    size_t low = 0, high = f->n;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        int c = strcmp(name, f->by_name[mid]->name);
        if (c == 0)
            return f->by_name[mid];
        if (c < 0)
            high = mid;
        else
            low = mid + 1;
    }
    return NULL;
}

const char *st_metadata(const st_file *f, const char *key)
{
    const json_value *meta = json_get(f->header, json_root(f->header), "__metadata__");
    const json_value *v = json_get(f->header, meta, key);
    return v ? v->str : NULL;
}

/* ---- numbers ---- */

int st_is_float(const st_tensor *t)
{
    return t->dtype == ST_F16 || t->dtype == ST_BF16 || t->dtype == ST_F32 ||
           t->dtype == ST_F64;
}

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

void st_f32(const st_tensor *t, uint64_t first, uint64_t n, float *out)
{
    const unsigned char *p = t->data + first * dtypes[t->dtype].size;
    switch (t->dtype) {
    case ST_F32: memcpy(out, p, (size_t)n * 4); break;
    case ST_BF16:
        for (uint64_t i = 0; i < n; i++)
            out[i] = f32_of_bits(load16(p + 2 * i) << 16);
        break;
    case ST_F16:
        for (uint64_t i = 0; i < n; i++)
            out[i] = f32_of_f16(load16(p + 2 * i));
        break;
    default: /* F64 */
        for (uint64_t i = 0; i < n; i++) {
            double x;
            memcpy(&x, p + 8 * i, sizeof x);
            out[i] = (float)x;
        }
    }
}

void st_f64(const st_tensor *t, uint64_t first, uint64_t n, double *out)
{
    float part[256];
    if (t->dtype == ST_F64) {
        memcpy(out, t->data + first * 8, (size_t)n * 8);
        return;
    }
    for (uint64_t i = 0; i < n;) {
        uint64_t m = n - i < 256 ? n - i : 256;
        st_f32(t, first + i, m, part);
        for (uint64_t j = 0; j < m; j++)
            out[i + j] = (double)part[j];
        i += m;
    }
}

/* ---- writing ---- */

typedef struct declared {
    char *name;
    st_dtype dtype;
    uint32_t rank;
    uint64_t shape[ST_MAX_RANK], begin, end; /* bytes of the data section */
} declared;

struct st_writer {
    outfile *out;
    declared *list;
    size_t n, cap;
    char *meta; /* "key":"value",... as JSON text, NULL: none */
    size_t meta_len;
    int started;      /* the header is written */
    uint64_t written; /* bytes of data */
    uint64_t total;
    size_t at; /* tensor that the next byte belongs to */
};

st_writer *st_writer_create(const char *path, char *err, size_t cap)
{
    st_writer *w = calloc(1, sizeof *w);
    if (!w) {
        err_set(err, cap, "out of memory");
        return NULL;
    }
    w->out = outfile_create(path, err, cap);
    if (!w->out) {
        free(w);
        return NULL;
    }
    return w;
}

static void writer_free(st_writer *w)
{
    for (size_t i = 0; i < w->n; i++)
        free(w->list[i].name);
    free(w->list);
    free(w->meta);
    free(w);
}

void st_writer_abort(st_writer *w)
{
    if (!w)
        return;
    outfile_abort(w->out);
    writer_free(w);
}

/* s as a JSON string into out, which has room for 6 bytes per byte and 2 quotes.
 * Returns the length. */
static size_t quote(const char *s, char *out)
{
    size_t o = 0;
    out[o++] = '"';
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c < 0x20)
            o += (size_t)sprintf(out + o, "\\u%04x", c);
        else {
            if (c == '"' || c == '\\')
                out[o++] = '\\';
            out[o++] = (char)c;
        }
    }
    out[o++] = '"';
    return o;
}

int st_writer_metadata(st_writer *w, const char *key, const char *value, char *err,
                       size_t cap)
{
    if (w->started)
        return err_set(err, cap, "safetensors: metadata after the first data");
    size_t more = 6 * (strlen(key) + strlen(value)) + 6;
    char *meta = realloc(w->meta, w->meta_len + more);
    if (!meta)
        return err_set(err, cap, "out of memory");
    w->meta = meta;
    if (w->meta_len > 0)
        meta[w->meta_len++] = ',';
    w->meta_len += quote(key, meta + w->meta_len);
    meta[w->meta_len++] = ':';
    w->meta_len += quote(value, meta + w->meta_len);
    return 0;
}

int st_writer_declare(st_writer *w, const char *name, st_dtype dtype, uint32_t rank,
                      const uint64_t *shape, char *err, size_t cap)
{
    uint64_t bytes = dtypes[dtype].size;
    size_t len = strlen(name);
    if (w->started || len == 0 || len > ST_MAX_NAME || rank > ST_MAX_RANK ||
        w->n == ST_MAX_TENSORS)
        return err_set(err, cap, "safetensors: tensor %s cannot be declared now",
                       name_z(name).text);
    for (size_t i = 0; i < w->n; i++)
        if (strcmp(w->list[i].name, name) == 0)
            return err_set(err, cap, "safetensors: tensor %s declared twice",
                           name_z(name).text);
    if (w->n == w->cap) {
        size_t room = w->cap ? 2 * w->cap : 16;
        declared *list = realloc(w->list, room * sizeof *list);
        if (!list)
            return err_set(err, cap, "out of memory");
        w->list = list;
        w->cap = room;
    }
    declared *d = &w->list[w->n];
    memset(d, 0, sizeof *d);
    d->dtype = dtype;
    d->rank = rank;
    for (uint32_t i = 0; i < rank; i++) {
        d->shape[i] = shape[i];
        if (size_mul(bytes, shape[i], &bytes))
            return err_set(err, cap, "safetensors: tensor %s is too large",
                           name_z(name).text);
    }
    d->begin = w->total;
    if (size_add(w->total, bytes, &w->total))
        return err_set(err, cap, "safetensors: tensor %s is too large",
                       name_z(name).text);
    d->end = w->total;
    d->name = malloc(len + 1);
    if (!d->name)
        return err_set(err, cap, "out of memory");
    strcpy(d->name, name);
    w->n++;
    return 0;
}

static int write_entry(st_writer *w, const declared *d, int comma, char *err,
                       size_t cap)
{
    char name[6 * ST_MAX_NAME + 3], dims[ST_MAX_RANK * 22 + 1] = "";
    name[quote(d->name, name)] = 0;
    for (size_t i = 0, at = 0; i < d->rank; i++)
        at += (size_t)snprintf(dims + at, sizeof dims - at, "%s%" PRIu64, i ? "," : "",
                               d->shape[i]);
    if (outfile_write(w->out, comma ? "," : "", (size_t)comma, err, cap) ||
        outfile_write(w->out, name, strlen(name), err, cap))
        return -1;
    return outfile_text(w->out, err, cap,
                        ":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%" PRIu64
                        ",%" PRIu64 "]}",
                        dtypes[d->dtype].name, dims, d->begin, d->end);
}

/* Length, then the JSON padded with blanks so that the data is 8-byte aligned. */
static int write_header(st_writer *w, char *err, size_t cap)
{
    unsigned char length[8] = {0};
    w->started = 1;
    if (outfile_write(w->out, length, 8, err, cap) ||
        outfile_write(w->out, "{", 1, err, cap))
        return -1;
    if (w->meta && (outfile_text(w->out, err, cap, "\"__metadata__\":{") ||
                    outfile_write(w->out, w->meta, w->meta_len, err, cap) ||
                    outfile_write(w->out, "}", 1, err, cap)))
        return -1;
    for (size_t i = 0; i < w->n; i++)
        if (write_entry(w, &w->list[i], i > 0 || w->meta != NULL, err, cap))
            return -1;
    if (outfile_write(w->out, "}", 1, err, cap))
        return -1;
    while (outfile_size(w->out) % 8 != 0)
        if (outfile_write(w->out, " ", 1, err, cap))
            return -1;
    uint64_t n = outfile_size(w->out) - 8;
    if (n > ST_MAX_HEADER)
        return err_set(err, cap,
                       "safetensors: the header would have %" PRIu64
                       " bytes, the limit is %u",
                       n, ST_MAX_HEADER);
    for (int i = 0; i < 8; i++)
        length[i] = (unsigned char)(n >> 8 * i);
    return outfile_write_at(w->out, 0, length, 8, err, cap);
}

int st_writer_data(st_writer *w, const void *data, size_t size, char *err, size_t cap)
{
    if (!w->started && write_header(w, err, cap))
        return -1;
    while (w->at < w->n && w->list[w->at].end == w->written)
        w->at++;
    if (size == 0)
        return 0;
    if (w->at == w->n || size > w->list[w->at].end - w->written)
        return err_set(err, cap, "safetensors: more data than was declared%s%s",
                       w->at < w->n ? " for " : "",
                       w->at < w->n ? name_z(w->list[w->at].name).text : "");
    w->written += size;
    return outfile_write(w->out, data, size, err, cap);
}

int st_writer_commit(st_writer *w, char *err, size_t cap)
{
    int status = st_writer_data(w, NULL, 0, err, cap);
    if (!status && w->written != w->total)
        status = err_set(err, cap,
                         "safetensors: %" PRIu64 " bytes of data written, %" PRIu64
                         " declared",
                         w->written, w->total);
    if (status) {
        st_writer_abort(w);
        return -1;
    }
    status = outfile_commit(w->out, err, cap);
    writer_free(w);
    return status;
}
