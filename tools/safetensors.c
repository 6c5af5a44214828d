#include "safetensors.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "json.h"
#include "outfile.h"
#include "tensors_impl.h"

/* ---- reading ---- */

typedef struct placed { /* a tensor and its place, while the header is checked */
    tensor t;
    const char *name;
    size_t len;
    uint64_t begin, end; /* bytes of the data section */
} placed;

typedef struct reader {
    tensor_file *f;
    const json_doc *header;
    uint64_t data, data_size; /* the data section */
    char *err;
    size_t cap;
} reader;

static int fail(reader *r, const char *what)
{
    return err_set(r->err, r->cap, "%s", what);
}

static int fail_tensor(reader *r, const char *name, const char *what)
{
    return err_set(r->err, r->cap, "tensor %s: %s", name_z(name).text, what);
}

static int read_dtype(reader *r, const char *name, const json_value *v,
                      tensor_type *out)
{
    if (!v || v->type != JSON_STRING)
        return fail_tensor(r, name, "dtype is missing or is not a string");
    for (int i = 0; i <= TENSOR_F64; i++) {
        const char *known = tensor_type_name((tensor_type)i);
        if (strcmp(v->str, known) == 0 && v->len == strlen(known)) {
            *out = (tensor_type)i;
            return 0;
        }
    }
    return err_set(r->err, r->cap, "tensor %s: unknown dtype \"%s\"", name_z(name).text,
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

static int read_shape(reader *r, const json_value *v, placed *p)
{
    const json_doc *d = r->header;
    tensor *t = &p->t;
    if (!v || v->type != JSON_ARRAY)
        return fail_tensor(r, p->name, "shape is missing or is not an array");
    if (v->n > TENSOR_MAX_RANK)
        return err_set(r->err, r->cap, "tensor %s: %u dimensions, the limit is %d",
                       name_z(p->name).text, v->n, TENSOR_MAX_RANK);
    t->rank = v->n;
    t->n = 1;
    uint32_t i = 0;
    for (const json_value *e = json_first(d, v); e; e = json_next(d, e), i++) {
        if (read_index(e, &t->shape[i]))
            return err_set(
                r->err, r->cap,
                "tensor %s: dimension %u of the shape is not a whole number of "
                "at least 0",
                name_z(p->name).text, i);
        if (size_mul(t->n, t->shape[i], &t->n))
            return fail_tensor(r, p->name,
                               "the number of elements does not fit in 64 bits");
    }
    if (tensors_row_major(t))
        return fail_tensor(r, p->name,
                           "the number of elements does not fit in 64 bits");
    return 0;
}

/* data_offsets, and that they agree with shape and type. */
static int read_place(reader *r, const json_value *v, placed *p)
{
    const json_doc *d = r->header;
    uint64_t bytes;
    const json_value *a = json_first(d, v), *b = json_next(d, a);
    if (!v || v->type != JSON_ARRAY || v->n != 2 || read_index(a, &p->begin) ||
        read_index(b, &p->end))
        return fail_tensor(r, p->name,
                           "data_offsets is missing or is not two whole numbers");
    if (p->begin > p->end || p->end > r->data_size)
        return err_set(r->err, r->cap,
                       "tensor %s: data_offsets [%" PRIu64 ", %" PRIu64
                       "] do not lie in the file's %" PRIu64 " bytes of data",
                       name_z(p->name).text, p->begin, p->end, r->data_size);
    if (size_mul(p->t.n, tensor_type_bytes(p->t.type), &bytes))
        return fail_tensor(r, p->name, "the number of bytes does not fit in 64 bits");
    if (bytes != p->end - p->begin)
        return err_set(r->err, r->cap,
                       "tensor %s: %s %s takes %" PRIu64
                       " bytes, data_offsets give %" PRIu64,
                       name_z(p->name).text, tensor_type_name(p->t.type),
                       tensor_shape(&p->t).text, bytes, p->end - p->begin);
    p->t.offset = r->data + p->begin;
    return 0;
}

static int read_tensor(reader *r, const json_value *v, placed *p)
{
    const json_doc *d = r->header;
    size_t len;
    const char *name = json_key(d, v, &len);
    memset(p, 0, sizeof *p);
    if (len > TENSOR_MAX_NAME || len == 0)
        return err_set(r->err, r->cap,
                       "tensor %s: the name has %zu bytes, it may have 1 to %u",
                       name_n(name, len).text, len, TENSOR_MAX_NAME);
    if (strlen(name) != len)
        return err_set(r->err, r->cap, "tensor %s: a NUL in the name",
                       name_n(name, len).text);
    p->name = name;
    p->len = len;
    if (v->type != JSON_OBJECT)
        return fail_tensor(r, name, "its entry is not an object");
    if (read_dtype(r, name, json_get(d, v, "dtype"), &p->t.type) ||
        read_shape(r, json_get(d, v, "shape"), p) ||
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
                           "tensor %s: begins at byte %" PRIu64
                           " of the data, the one before it ends at %" PRIu64 " (%s)",
                           name_z(list[i].name).text, list[i].begin, at,
                           list[i].begin < at ? "overlap" : "gap");
        at = list[i].end;
    }
    if (at != r->data_size)
        return err_set(r->err, r->cap,
                       "the tensors end at byte %" PRIu64
                       " of the data, the file has %" PRIu64,
                       at, r->data_size);
    return 0;
}

static int read_metadata(reader *r, const json_value *v)
{
    const json_doc *d = r->header;
    if (v->type != JSON_OBJECT)
        return fail(r, "__metadata__ is not an object");
    for (const json_value *e = json_first(d, v); e; e = json_next(d, e)) {
        size_t len;
        const char *key = json_key(d, e, &len);
        if (e->type != JSON_STRING)
            return fail(r, "__metadata__ has a value that is not a string");
        if (tensors_add_meta(r->f, key, len, e->str, e->len, r->err, r->cap))
            return -1;
    }
    return 0;
}

static int read_tensors(reader *r, const json_value *root)
{
    const json_doc *d = r->header;
    placed *list = calloc((size_t)root->n + 1, sizeof *list);
    size_t n = 0;
    int status = 0;
    if (!list)
        return fail(r, "out of memory");
    for (const json_value *e = json_first(d, root); e && !status; e = json_next(d, e)) {
        if (strcmp(json_key(d, e, NULL), "__metadata__") == 0)
            status = read_metadata(r, e);
        else
            status = read_tensor(r, e, &list[n++]);
    }
    for (size_t i = 0; i < n && !status; i++) /* before the tiling sorts the list */
        status =
            tensors_add(r->f, list[i].name, list[i].len, &list[i].t, r->err, r->cap);
    if (!status)
        status = check_tiling(r, list, n);
    free(list);
    return status;
}

static int read_text(reader *r, const char *text, uint64_t n)
{
    char why[ERR_CAP];
    json_doc *doc = json_parse(text, (size_t)n, why, sizeof why);
    if (!doc)
        return err_set(r->err, r->cap, "header: %s", why);
    const json_value *root = json_root(doc);
    int status = 0;
    r->header = doc;
    if (root->type != JSON_OBJECT)
        status = fail(r, "the header is not a JSON object");
    else if (root->n > TENSOR_MAX + 1)
        status =
            err_set(r->err, r->cap, "%u tensors, the limit is %u", root->n, TENSOR_MAX);
    else
        status = read_tensors(r, root);
    json_free(doc);
    return status;
}

int safetensors_read(tensor_file *f, char *err, size_t cap)
{
    reader r = {f, NULL, 0, 0, err, cap};
    unsigned char length[8];
    uint64_t n = 0;
    if (f->size < 8)
        return err_set(err, cap, "%" PRIu64 " bytes, a safetensors file has at least 8",
                       f->size);
    if (tensors_read(f, 0, length, 8, err, cap))
        return -1;
    for (int i = 7; i >= 0; i--)
        n = n << 8 | length[i];
    if (n > ST_MAX_HEADER)
        return err_set(
            err, cap,
            "not a file of tensors that is known here (safetensors, PyTorch's .pt, "
            ".npy, .npz, GGUF): as safetensors its header would have %" PRIu64
            " bytes, the limit is %u",
            n, ST_MAX_HEADER);
    if (n > f->size - 8)
        return err_set(err, cap,
                       "the file is cut off: a header of %" PRIu64
                       " bytes in a file of %" PRIu64,
                       n, f->size);
    if (n == 0)
        return fail(&r, "the header does not begin with '{'");
    r.data = 8 + n;
    r.data_size = f->size - r.data;
    char *text = malloc((size_t)n);
    int status = text ? 0 : fail(&r, "out of memory");
    if (!status)
        status = tensors_read(f, 8, text, n, err, cap);
    /* json_parse would take a byte order mark, the format has none */
    if (!status && (unsigned char)text[0] == 0xEF)
        status = fail(&r, "the header does not begin with '{'");
    if (!status)
        status = read_text(&r, text, n);
    free(text);
    return status;
}

/* ---- writing ---- */

typedef struct declared {
    char *name;
    tensor_type type;
    uint32_t rank;
    uint64_t shape[TENSOR_MAX_RANK], begin, end; /* bytes of the data section */
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

int st_writer_declare(st_writer *w, const char *name, tensor_type type, uint32_t rank,
                      const uint64_t *shape, char *err, size_t cap)
{
    uint64_t bytes = tensor_type_bytes(type);
    size_t len = strlen(name);
    if (w->started || len == 0 || len > TENSOR_MAX_NAME || rank > TENSOR_MAX_RANK ||
        type > TENSOR_F64 || w->n == TENSOR_MAX)
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
    d->type = type;
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
    char name[6 * TENSOR_MAX_NAME + 3], dims[TENSOR_MAX_RANK * 22 + 1] = "";
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
                        tensor_type_name(d->type), dims, d->begin, d->end);
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
