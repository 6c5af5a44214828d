/* NumPy's .npy (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html):
 *
 *     "\x93NUMPY", major, minor, length of the header (2 bytes; from version 2 on 4)
 *     {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }   a Python literal
 *     data
 *
 * and .npz: a zip of them, NAME.npy each. */

#include "npy.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "outfile.h"
#include "tensors_impl.h"
#include "zip.h"

#define MAX_HEADER ((uint64_t)1 << 16) /* as numpy itself: more is refused there too */

static const struct {
    const char *descr;
    tensor_type type;
} descrs[] = {
    {"<f2", TENSOR_F16}, {"<f4", TENSOR_F32}, {"<f8", TENSOR_F64}, {"|b1", TENSOR_BOOL},
    {"|u1", TENSOR_U8},  {"|i1", TENSOR_I8},  {"<u2", TENSOR_U16}, {"<i2", TENSOR_I16},
    {"<u4", TENSOR_U32}, {"<i4", TENSOR_I32}, {"<u8", TENSOR_U64}, {"<i8", TENSOR_I64},
};

/* ---- the literal ---- */

typedef struct scan {
    const char *p, *end;
    char *err;
    size_t cap;
} scan;

static void blanks(scan *s)
{
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\n'))
        s->p++;
}

static int take(scan *s, const char *text)
{
    size_t n = strlen(text);
    blanks(s);
    if ((size_t)(s->end - s->p) < n || memcmp(s->p, text, n) != 0)
        return 0;
    s->p += n;
    return 1;
}

static int unexpected(scan *s, const char *wanted)
{
    size_t left = (size_t)(s->end - s->p);
    return err_set(s->err, s->cap, "the header has \"%s\" where %s should be",
                   name_n(s->p, left < 24 ? left : 24).text, wanted);
}

/* 'text': no escapes. */
static int quoted(scan *s, const char **text, size_t *n)
{
    if (!take(s, "'"))
        return unexpected(s, "a text in single quotes");
    const char *end = memchr(s->p, '\'', (size_t)(s->end - s->p));
    if (!end || memchr(s->p, '\\', (size_t)(end - s->p)))
        return unexpected(s, "a text in single quotes");
    *text = s->p;
    *n = (size_t)(end - s->p);
    s->p = end + 1;
    return 0;
}

static int read_descr(scan *s, tensor *t)
{
    const char *text;
    size_t n;
    if (take(s, "["))
        return err_set(s->err, s->cap,
                       "a structured array; one plain type is supported");
    if (quoted(s, &text, &n))
        return -1;
    for (size_t i = 0; i < sizeof descrs / sizeof descrs[0]; i++) {
        if (n == 3 && memcmp(text, descrs[i].descr, 3) == 0) {
            t->type = descrs[i].type;
            return 0;
        }
    }
    const char *what = n == 0               ? "an empty type"
                       : text[0] == '>'     ? "big-endian numbers; save x.astype('<f4')"
                       : text[n > 1] == 'O' ? "Python objects, which are never read"
                       : text[n > 1] == 'V'
                           ? "raw bytes (numpy has no bf16): save as float32"
                       : text[n > 1] == 'U' || text[n > 1] == 'S' ? "text, not numbers"
                                                                  : "not supported";
    return err_set(s->err, s->cap, "type '%s': %s", name_n(text, n).text, what);
}

static int read_order(scan *s, int *fortran)
{
    *fortran = take(s, "True");
    return *fortran || take(s, "False") ? 0 : unexpected(s, "True or False");
}

static int read_number(scan *s, uint64_t *out)
{
    blanks(s);
    const char *from = s->p;
    *out = 0;
    while (s->p < s->end && *s->p >= '0' && *s->p <= '9') {
        if (size_mul(*out, 10, out) || size_add(*out, (uint64_t)(*s->p - '0'), out))
            return err_set(s->err, s->cap, "a dimension does not fit in 64 bits");
        s->p++;
    }
    if (s->p == from || (s->p - from > 1 && *from == '0'))
        return unexpected(s, "a whole number of at least 0");
    return 0;
}

/* (), (3,), (3, 4), with or without a comma behind the last of several */
static int read_shape(scan *s, tensor *t)
{
    int comma = 1;
    if (!take(s, "("))
        return unexpected(s, "'('");
    t->rank = 0;
    while (!take(s, ")")) {
        if (!comma)
            return unexpected(s, "',' or ')'");
        if (t->rank == TENSOR_MAX_RANK)
            return err_set(s->err, s->cap, "more than %d dimensions", TENSOR_MAX_RANK);
        if (read_number(s, &t->shape[t->rank++]))
            return -1;
        comma = take(s, ",");
    }
    if (t->rank == 1 && !comma) /* (3) is a number in Python, not a tuple */
        return err_set(s->err, s->cap, "the header's shape is not a tuple");
    return 0;
}

static int read_literal(scan *s, tensor *t, int *fortran)
{
    static const char *const keys[] = {"descr", "fortran_order", "shape"};
    int seen[3] = {0, 0, 0}, comma = 1;
    if (!take(s, "{"))
        return unexpected(s, "'{'");
    while (!take(s, "}")) {
        const char *key;
        size_t n, k = 0;
        if (!comma)
            return unexpected(s, "',' or '}'");
        if (quoted(s, &key, &n))
            return -1;
        while (k < 3 && (n != strlen(keys[k]) || memcmp(key, keys[k], n) != 0))
            k++;
        if (k == 3)
            return err_set(s->err, s->cap, "the header has an unknown key '%s'",
                           name_n(key, n).text);
        if (seen[k]++)
            return err_set(s->err, s->cap, "the header has the key '%s' twice",
                           keys[k]);
        if (!take(s, ":"))
            return unexpected(s, "':'");
        if (k == 0   ? read_descr(s, t)
            : k == 1 ? read_order(s, fortran)
                     : read_shape(s, t))
            return -1;
        comma = take(s, ",");
    }
    for (int k = 0; k < 3; k++)
        if (!seen[k])
            return err_set(s->err, s->cap, "the header has no '%s'", keys[k]);
    blanks(s);
    return s->p == s->end ? 0 : unexpected(s, "the end of the header");
}

/* ---- one array ---- */

static int set_strides(tensor *t, int fortran)
{
    uint64_t n = 1;
    if (!fortran)
        return tensors_row_major(t);
    for (uint32_t i = 0; i < t->rank; i++) {
        t->stride[i] = n;
        if (size_mul(n, t->shape[i], &n))
            return -1;
    }
    return 0;
}

/* An array in the file's bytes offset .. offset + size - 1. */
static int read_array(tensor_file *f, const char *name, size_t name_len,
                      uint64_t offset, uint64_t size, char *err, size_t cap)
{
    unsigned char b[12];
    tensor t;
    int fortran = 0;
    memset(&t, 0, sizeof t);
    if (size < 12)
        return err_set(err, cap, "%" PRIu64 " bytes, a .npy has more", size);
    if (tensors_read(f, offset, b, sizeof b, err, cap))
        return -1;
    if (memcmp(b, "\x93NUMPY", 6) != 0)
        return err_set(err, cap, "not a .npy: it does not begin with \\x93NUMPY");
    if (b[6] < 1 || b[6] > 3 || b[7] != 0)
        return err_set(err, cap,
                       "version %u.%u of the .npy format; 1.0 to 3.0 are known", b[6],
                       b[7]);
    uint64_t at = b[6] == 1 ? 10 : 12, n = b[8] | (uint64_t)b[9] << 8;
    if (b[6] > 1)
        n |= (uint64_t)b[10] << 16 | (uint64_t)b[11] << 24;
    if (n > MAX_HEADER)
        return err_set(err, cap, "a header of %" PRIu64 " bytes, the limit is %" PRIu64,
                       n, MAX_HEADER);
    if (n > size - at)
        return err_set(err, cap, "cut off: a header of %" PRIu64 " bytes in %" PRIu64,
                       n, size);
    char *text = malloc((size_t)n + 1);
    if (!text)
        return err_set(err, cap, "out of memory");
    int status = tensors_read(f, offset + at, text, n, err, cap);
    scan s = {text, text + n, err, cap};
    if (!status)
        status = read_literal(&s, &t, &fortran);
    free(text);
    if (status)
        return -1;
    uint64_t bytes = tensor_type_bytes(t.type), data = size - at - n;
    for (uint32_t i = 0; i < t.rank; i++)
        if (size_mul(bytes, t.shape[i], &bytes))
            return err_set(err, cap, "the shape %s does not fit in 64 bits",
                           tensor_shape(&t).text);
    if (set_strides(&t, fortran))
        return err_set(err, cap, "the shape %s does not fit in 64 bits",
                       tensor_shape(&t).text);
    if (bytes != data)
        return err_set(err, cap, "%s %s takes %" PRIu64 " bytes, there are %" PRIu64,
                       tensor_type_name(t.type), tensor_shape(&t).text, bytes, data);
    t.offset = offset + at + n;
    return tensors_add(f, name, name_len, &t, err, cap);
}

int npy_read(tensor_file *f, char *err, size_t cap)
{
    return read_array(f, "", 0, 0, f->size, err, cap);
}

/* ---- .npz ---- */

static int by_place(const void *a, const void *b)
{
    const zip_member *x = a, *y = b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static int read_member(tensor_file *f, const zip_member *m, char *err, size_t cap)
{
    size_t n = strlen(m->name);
    if (n <= 4 || strcmp(m->name + n - 4, ".npy") != 0)
        return err_set(err, cap,
                       "a zip, but neither PyTorch's (it has no data.pkl) nor NumPy's: "
                       "member %s is not a .npy",
                       name_z(m->name).text);
    if (read_array(f, m->name, n - 4, m->offset, m->size, err, cap))
        return err_prefix(err, cap, "member %s", name_z(m->name).text);
    return tensors_add_piece(f, m->name, m->offset, m->size, m->crc, err, cap);
}

int npz_read(tensor_file *f, char *err, size_t cap)
{
    zip z;
    int status = zip_open(f, &z, err, cap);
    if (!status && z.n == 0)
        status = err_set(err, cap, "a zip without members");
    if (!status)
        qsort(z.list, z.n, sizeof *z.list, by_place); /* in the order of the file */
    for (size_t i = 0; i < z.n && !status; i++)
        status = read_member(f, &z.list[i], err, cap);
    zip_free(&z);
    return status;
}

/* ---- writing ---- */

/* The bytes before the data into out[512], as numpy writes them: version 1.0, padded so
 * that the data is aligned to 64. *bytes: how much data there will be. */
static int make_header(tensor_type type, uint32_t rank, const uint64_t *shape,
                       unsigned char *out, size_t *size, uint64_t *bytes, char *err,
                       size_t cap)
{
    const char *descr = NULL;
    char dims[TENSOR_MAX_RANK * 24] = "", text[400];
    size_t at = 0;
    *size = 0;
    *bytes = tensor_type_bytes(type);
    for (size_t i = 0; i < sizeof descrs / sizeof descrs[0]; i++)
        if (descrs[i].type == type)
            descr = descrs[i].descr;
    if (!descr || rank > TENSOR_MAX_RANK)
        return err_set(err, cap, "numpy has no type for %s", tensor_type_name(type));
    for (uint32_t i = 0; i < rank; i++) {
        if (size_mul(*bytes, shape[i], bytes))
            return err_set(err, cap, "the shape %s does not fit in 64 bits",
                           tensor_shape_of(rank, shape).text);
        at += (size_t)snprintf(dims + at, sizeof dims - at, "%s%" PRIu64 "%s",
                               i ? ", " : "", shape[i], rank == 1 ? "," : "");
    }
    int n = snprintf(text, sizeof text,
                     "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }", descr,
                     dims);
    *size = (10 + (size_t)n + 1 + 63) / 64 * 64;
    memset(out, ' ', *size);
    memcpy(out, "\x93NUMPY\x01", 8);
    out[8] = (unsigned char)(*size - 10);
    out[9] = (unsigned char)((*size - 10) >> 8);
    memcpy(out + 10, text, (size_t)n);
    out[*size - 1] = '\n';
    return 0;
}

struct npy_writer {
    outfile *out;
    uint64_t left;
};

npy_writer *npy_writer_create(const char *path, tensor_type type, uint32_t rank,
                              const uint64_t *shape, char *err, size_t cap)
{
    unsigned char header[512];
    size_t n;
    npy_writer *w = calloc(1, sizeof *w);
    int status = w ? 0 : err_set(err, cap, "out of memory");
    if (!status && make_header(type, rank, shape, header, &n, &w->left, err, cap))
        status = err_prefix(err, cap, "%s", name_z(path).text);
    if (!status)
        w->out = outfile_create(path, err, cap);
    if (!status && w->out && outfile_write(w->out, header, n, err, cap) == 0)
        return w;
    npy_writer_abort(w);
    return NULL;
}

int npy_writer_data(npy_writer *w, const void *data, size_t size, char *err, size_t cap)
{
    if (size > w->left)
        return err_set(err, cap, "npy: %" PRIu64 " bytes more than the shape has",
                       size - w->left);
    w->left -= size;
    return outfile_write(w->out, data, size, err, cap);
}

int npy_writer_commit(npy_writer *w, char *err, size_t cap)
{
    if (w->left > 0) {
        err_set(err, cap, "npy: %" PRIu64 " bytes are missing", w->left);
        npy_writer_abort(w);
        return -1;
    }
    int status = outfile_commit(w->out, err, cap);
    free(w);
    return status;
}

void npy_writer_abort(npy_writer *w)
{
    if (!w)
        return;
    outfile_abort(w->out);
    free(w);
}

struct npz_writer {
    zip_writer *zip;
};

npz_writer *npz_writer_create(const char *path, char *err, size_t cap)
{
    npz_writer *w = calloc(1, sizeof *w);
    if (!w) {
        err_set(err, cap, "out of memory");
        return NULL;
    }
    w->zip = zip_writer_create(path, err, cap);
    if (w->zip)
        return w;
    free(w);
    return NULL;
}

int npz_writer_array(npz_writer *w, const char *name, tensor_type type, uint32_t rank,
                     const uint64_t *shape, char *err, size_t cap)
{
    unsigned char header[512];
    char member[TENSOR_MAX_NAME + 8];
    size_t n;
    uint64_t bytes;
    if (strlen(name) > TENSOR_MAX_NAME)
        return err_set(err, cap, "array %s: the name is too long", name_z(name).text);
    snprintf(member, sizeof member, "%s.npy", name);
    if (make_header(type, rank, shape, header, &n, &bytes, err, cap) ||
        size_add(bytes, n, &bytes))
        return err_prefix(err, cap, "array %s", name_z(name).text);
    return zip_writer_member(w->zip, member, bytes, err, cap) ||
                   zip_writer_data(w->zip, header, n, err, cap)
               ? -1
               : 0;
}

int npz_writer_data(npz_writer *w, const void *data, size_t size, char *err, size_t cap)
{
    return zip_writer_data(w->zip, data, size, err, cap);
}

int npz_writer_commit(npz_writer *w, char *err, size_t cap)
{
    int status = zip_writer_commit(w->zip, err, cap);
    free(w);
    return status;
}

void npz_writer_abort(npz_writer *w)
{
    if (!w)
        return;
    zip_writer_abort(w->zip);
    free(w);
}
