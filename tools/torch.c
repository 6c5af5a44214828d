/* PyTorch's .pt: a zip with one folder of any name,
 *
 *     NAME/data.pkl     the saved object: pickle.h
 *     NAME/data/KEY     the numbers of storage KEY
 *     NAME/byteorder    "little" or "big"; files from before torch 2.1 have none
 *     NAME/version, .format_version, .storage_alignment, .data/serialization_id
 *
 * A tensor is a call torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...),
 * its storage a persistent id ("storage", torch.FloatStorage, KEY, device, elements). Of
 * the object, tensors and plain values are kept, under the path that leads to them:
 * {"ae": {"encoder.weight": ...}} is tensor ae.encoder.weight. Followed: torch 2.13,
 * torch/_utils.py and torch/serialization.py. */

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "pickle.h"
#include "tensors_impl.h"
#include "zip.h"

#define MAX_PICKLE ((uint64_t)1 << 26)
#define MAX_NODES  ((uint64_t)1 << 21)
#define MAX_PATH   TENSOR_MAX_NAME

#define REBUILD   "torch._utils\n_rebuild_tensor_v2"
#define PARAMETER "torch._utils\n_rebuild_parameter"
#define SIZE      "torch\nSize"
#define DEVICE    "torch\ndevice"

static const struct {
    const char *name;
    tensor_type type;
} storages[] = {
    {"torch\nFloatStorage", TENSOR_F32}, {"torch\nBFloat16Storage", TENSOR_BF16},
    {"torch\nHalfStorage", TENSOR_F16},  {"torch\nDoubleStorage", TENSOR_F64},
    {"torch\nBoolStorage", TENSOR_BOOL}, {"torch\nByteStorage", TENSOR_U8},
    {"torch\nCharStorage", TENSOR_I8},   {"torch\nShortStorage", TENSOR_I16},
    {"torch\nIntStorage", TENSOR_I32},   {"torch\nLongStorage", TENSOR_I64},
};

static const char *const allowed[] = {
    REBUILD,
    PARAMETER,
    SIZE,
    DEVICE,
    "torch\nFloatStorage",
    "torch\nBFloat16Storage",
    "torch\nHalfStorage",
    "torch\nDoubleStorage",
    "torch\nBoolStorage",
    "torch\nByteStorage",
    "torch\nCharStorage",
    "torch\nShortStorage",
    "torch\nIntStorage",
    "torch\nLongStorage",
    /* dtypes, as values of a config */
    "torch\nfloat32",
    "torch\nfloat64",
    "torch\nfloat16",
    "torch\nbfloat16",
    "torch\nint8",
    "torch\nuint8",
    "torch\nint16",
    "torch\nint32",
    "torch\nint64",
    "torch\nbool",
    NULL,
};

typedef struct walk {
    tensor_file *f;
    const pickle *p;
    zip z;
    const char *folder; /* "NAME/" */
    size_t folder_len;
    char path[MAX_PATH + 1]; /* of the value at hand */
    size_t len;
    uint64_t nodes;
    char *err;
    size_t cap;
} walk;

static int fail(walk *w, const char *what)
{
    return err_set(w->err, w->cap, "data.pkl: %s: %s", name_n(w->path, w->len).text,
                   what);
}

static const pickle_value *item(const walk *w, const pickle_value *v, uint32_t i)
{
    return pickle_item(w->p, v, i);
}

static int is_text(const pickle_value *v, const char *text)
{
    return v->kind == PICKLE_STRING && v->len == strlen(text) &&
           memcmp(v->str, text, v->len) == 0;
}

/* The arguments of a call, if there are `low` to `high` of them. */
static const pickle_value *arguments(const walk *w, const pickle_value *call,
                                     uint32_t low, uint32_t high)
{
    const pickle_value *args = item(w, call, 1);
    return args->n >= low && args->n <= high ? args : NULL;
}

/* ---- tensors ---- */

/* A tuple of whole numbers, or torch.Size of one. */
static int read_sizes(walk *w, const pickle_value *v, uint64_t *out, uint32_t *n)
{
    if (v->kind == PICKLE_CALL && pickle_is(w->p, v, SIZE) && arguments(w, v, 1, 1))
        v = item(w, item(w, v, 1), 0);
    if (v->kind != PICKLE_TUPLE)
        return fail(w, "a shape or stride that is not a tuple");
    if (v->n > TENSOR_MAX_RANK)
        return err_set(w->err, w->cap, "data.pkl: %s: %u dimensions, the limit is %d",
                       name_n(w->path, w->len).text, v->n, TENSOR_MAX_RANK);
    for (uint32_t i = 0; i < v->n; i++) {
        const pickle_value *x = item(w, v, i);
        if (x->kind != PICKLE_INT || x->i < 0)
            return fail(w,
                        "a shape or stride that is not a whole number of at least 0");
        out[i] = (uint64_t)x->i;
    }
    *n = v->n;
    return 0;
}

static const zip_member *find_storage(walk *w, const pickle_value *key)
{
    char name[TENSOR_MAX_NAME + 128];
    if (key->kind != PICKLE_STRING || key->len > 64 || memchr(key->str, 0, key->len))
        return NULL;
    if (w->folder_len + key->len + 6 > sizeof name)
        return NULL;
    snprintf(name, sizeof name, "%.*sdata/%.*s", (int)w->folder_len, w->folder,
             (int)key->len, key->str);
    return zip_find(&w->z, name);
}

/* ("storage", type, key, device, elements) */
static int read_storage(walk *w, const pickle_value *v, tensor *t, uint64_t *elements)
{
    const pickle_value *id = v->kind == PICKLE_PERSISTENT ? item(w, v, 0) : NULL;
    if (!id || id->kind != PICKLE_TUPLE || id->n != 5 ||
        !is_text(item(w, id, 0), "storage"))
        return fail(w, "a tensor without a storage");
    const pickle_value *type = item(w, id, 1), *n = item(w, id, 4);
    size_t k = 0, known = sizeof storages / sizeof storages[0];
    while (k < known &&
           !(type->kind == PICKLE_GLOBAL && pickle_is(w->p, type, storages[k].name)))
        k++;
    if (k == known || item(w, id, 3)->kind != PICKLE_STRING || n->kind != PICKLE_INT ||
        n->i < 0)
        return fail(w, "a storage whose type, device or size is damaged");
    const zip_member *m = find_storage(w, item(w, id, 2));
    if (!m)
        return fail(w, "its storage is not in the file");
    uint64_t bytes;
    t->type = storages[k].type;
    if (size_mul((uint64_t)n->i, tensor_type_bytes(t->type), &bytes) ||
        bytes != m->size)
        return err_set(w->err, w->cap,
                       "data.pkl: %s: a storage of %" PRId64
                       " x %s, but member %s has %" PRIu64 " bytes",
                       name_n(w->path, w->len).text, n->i, tensor_type_name(t->type),
                       name_z(m->name).text, m->size);
    *elements = (uint64_t)n->i;
    t->offset = m->offset;
    return 0;
}

/* Every element lies in the storage, and there are not more of them than it has: a view
 * that repeats numbers (stride 0) could be as large as it likes. */
static int check_view(walk *w, tensor *t, uint64_t begin, uint64_t elements)
{
    uint64_t n = 1, last = begin;
    for (uint32_t i = 0; i < t->rank; i++)
        if (size_mul(n, t->shape[i], &n))
            return fail(w, "the number of elements does not fit in 64 bits");
    for (uint32_t i = 0; i < t->rank && n > 0; i++) {
        uint64_t far;
        if (size_mul(t->shape[i] - 1, t->stride[i], &far) || size_add(last, far, &last))
            return fail(w, "its strides do not fit in 64 bits");
    }
    if (n == 0 ? begin > elements : last >= elements)
        return err_set(w->err, w->cap,
                       "data.pkl: %s: element %" PRIu64
                       " of a storage that has %" PRIu64,
                       name_n(w->path, w->len).text, last, elements);
    if (n > elements)
        return err_set(w->err, w->cap,
                       "data.pkl: %s: shape %s repeats the %" PRIu64
                       " numbers of its storage (an expanded view); save "
                       "tensor.contiguous()",
                       name_n(w->path, w->len).text, tensor_shape(t).text, elements);
    return 0;
}

static int read_tensor(walk *w, const pickle_value *v)
{
    const pickle_value *args = arguments(w, v, 6, 7);
    tensor t;
    uint64_t elements = 0;
    uint32_t rank = 0;
    memset(&t, 0, sizeof t);
    if (!args || item(w, args, 1)->kind != PICKLE_INT || item(w, args, 1)->i < 0 ||
        item(w, args, 4)->kind != PICKLE_BOOL ||
        item(w, args, 5)->kind != PICKLE_DICT || item(w, args, 5)->n != 0)
        return fail(w,
                    "the arguments of _rebuild_tensor_v2 are not those of torch.save");
    if (args->n == 7 &&
        (item(w, args, 6)->kind != PICKLE_DICT || item(w, args, 6)->n != 0) &&
        item(w, args, 6)->kind != PICKLE_NONE)
        return fail(w, "a view that is conjugated or negated");
    if (read_storage(w, item(w, args, 0), &t, &elements) ||
        read_sizes(w, item(w, args, 2), t.shape, &t.rank) ||
        read_sizes(w, item(w, args, 3), t.stride, &rank))
        return -1;
    if (rank != t.rank)
        return fail(w, "its shape and its stride have different lengths");
    uint64_t begin = (uint64_t)item(w, args, 1)->i;
    if (check_view(w, &t, begin, elements))
        return -1;
    t.offset += begin * tensor_type_bytes(t.type);
    return tensors_add(w->f, w->path, w->len, &t, w->err, w->cap);
}

/* ---- everything else ---- */

static int add_text(walk *w, const char *text, size_t n)
{
    return tensors_add_meta(w->f, w->path, w->len, text, n, w->err, w->cap);
}

/* torch.device("cuda", 0), torch.device("cpu") */
static int add_device(walk *w, const pickle_value *v)
{
    char text[96];
    const pickle_value *args = arguments(w, v, 1, 2);
    if (!args || item(w, args, 0)->kind != PICKLE_STRING ||
        item(w, args, 0)->len > 32 ||
        (args->n == 2 && item(w, args, 1)->kind != PICKLE_INT))
        return fail(w, "the arguments of torch.device are not those of torch.save");
    int n = snprintf(text, sizeof text, "%.*s", (int)item(w, args, 0)->len,
                     item(w, args, 0)->str);
    if (args->n == 2)
        n += snprintf(text + n, sizeof text - (size_t)n, ":%" PRId64,
                      item(w, args, 1)->i);
    return add_text(w, text, (size_t)n);
}

static int visit(walk *w, const pickle_value *v);

/* Goes on to v under PATH.key; an empty path has no dot. */
static int visit_child(walk *w, const char *key, size_t n, const pickle_value *v)
{
    size_t was = w->len, dot = was > 0;
    if (n > MAX_PATH - was - dot || was + dot + n > MAX_PATH)
        return fail(w, "a name of more than 1024 bytes");
    if (dot)
        w->path[w->len++] = '.';
    memcpy(w->path + w->len, key, n);
    w->len += n;
    int status = visit(w, v);
    w->len = was;
    return status;
}

static int visit_dict(walk *w, const pickle_value *v)
{
    for (uint32_t i = 0; i < v->n; i += 2) {
        const pickle_value *key = item(w, v, i);
        char number[24];
        int status;
        if (key->kind == PICKLE_STRING) {
            status = visit_child(w, key->str, key->len, item(w, v, i + 1));
        } else if (key->kind == PICKLE_INT) { /* of an optimizer's state */
            int n = snprintf(number, sizeof number, "%" PRId64, key->i);
            status = visit_child(w, number, (size_t)n, item(w, v, i + 1));
        } else {
            status =
                fail(w, "a dict with a key that is neither text nor a whole number");
        }
        if (status)
            return -1;
    }
    return 0;
}

static int visit_list(walk *w, const pickle_value *v)
{
    for (uint32_t i = 0; i < v->n; i++) {
        char number[24];
        int n = snprintf(number, sizeof number, "%" PRIu32, i);
        if (visit_child(w, number, (size_t)n, item(w, v, i)))
            return -1;
    }
    return 0;
}

static int visit_call(walk *w, const pickle_value *v)
{
    if (pickle_is(w->p, v, REBUILD))
        return read_tensor(w, v);
    if (pickle_is(w->p, v, PARAMETER)) { /* (tensor, requires_grad, hooks) */
        const pickle_value *args = arguments(w, v, 3, 3);
        if (!args || item(w, args, 0)->kind != PICKLE_CALL ||
            !pickle_is(w->p, item(w, args, 0), REBUILD))
            return fail(w, "the arguments of _rebuild_parameter are not those of "
                           "torch.save");
        return read_tensor(w, item(w, args, 0));
    }
    if (pickle_is(w->p, v, DEVICE))
        return add_device(w, v);
    if (pickle_is(w->p, v, SIZE) && arguments(w, v, 1, 1))
        return visit(w, item(w, item(w, v, 1), 0));
    return fail(w, "a call that makes no tensor");
}

static int visit(walk *w, const pickle_value *v)
{
    char text[48];
    int n;
    if (++w->nodes > MAX_NODES) /* values that are shared count each time */
        return fail(w, "more than 2^21 values");
    switch (v->kind) {
    case PICKLE_NONE: return 0;
    case PICKLE_BOOL: return add_text(w, v->i ? "true" : "false", v->i ? 4 : 5);
    case PICKLE_INT:
        n = snprintf(text, sizeof text, "%" PRId64, v->i);
        return add_text(w, text, (size_t)n);
    case PICKLE_FLOAT:
        n = snprintf(text, sizeof text, "%.17g", v->f);
        return add_text(w, text, (size_t)n);
    case PICKLE_STRING: return add_text(w, v->str, v->len);
    case PICKLE_TUPLE:
    case PICKLE_LIST: return visit_list(w, v);
    case PICKLE_DICT: return visit_dict(w, v);
    case PICKLE_CALL: return visit_call(w, v);
    case PICKLE_GLOBAL: /* "torch\nfloat32" as torch.float32 */
        if (v->len >= sizeof text)
            break;
        memcpy(text, v->str, v->len);
        *(char *)memchr(text, '\n', v->len) = '.';
        return add_text(w, text, v->len);
    default: break;
    }
    return fail(w, "a storage outside a tensor");
}

/* ---- the archive ---- */

static int has_end(const char *name, const char *end)
{
    size_t n = strlen(name), k = strlen(end);
    return n > k && strcmp(name + n - k, end) == 0;
}

/* NAME/ of the one NAME/data.pkl. TorchScript archives have it too, and code. */
static const zip_member *find_folder(walk *w)
{
    const zip_member *found = NULL;
    for (size_t i = 0; i < w->z.n; i++) {
        const zip_member *m = &w->z.list[i];
        if (has_end(m->name, "/constants.pkl") || strstr(m->name, "/code/")) {
            err_set(w->err, w->cap,
                    "a TorchScript program (member %s); save its state_dict() with "
                    "torch.save",
                    name_z(m->name).text);
            return NULL;
        }
        if (!has_end(m->name, "/data.pkl"))
            continue;
        if (found) {
            err_set(w->err, w->cap, "both %s and %s: not a file of torch.save",
                    name_z(found->name).text, name_z(m->name).text);
            return NULL;
        }
        found = m;
    }
    if (!found || strchr(found->name, '/') != strrchr(found->name, '/')) {
        err_set(w->err, w->cap, "no data.pkl in one folder: not a file of torch.save");
        return NULL;
    }
    w->folder = found->name;
    w->folder_len = strlen(found->name) - strlen("data.pkl");
    return found;
}

static int check_members(walk *w)
{
    static const char *const others[] = {
        "data.pkl",        "byteorder",          "version",
        ".format_version", ".storage_alignment", ".data/serialization_id"};
    for (size_t i = 0; i < w->z.n; i++) {
        const zip_member *m = &w->z.list[i];
        int known = 0;
        const char *rest = m->name;
        if (strncmp(m->name, w->folder, w->folder_len) == 0)
            rest += w->folder_len;
        for (size_t k = 0; k < sizeof others / sizeof others[0]; k++)
            known |= rest != m->name && strcmp(rest, others[k]) == 0;
        if (known)
            continue;
        if (rest == m->name || strncmp(rest, "data/", 5) != 0)
            return err_set(w->err, w->cap, "member %s is not one of torch.save",
                           name_z(m->name).text);
        if (tensors_add_piece(w->f, m->name, m->offset, m->size, m->crc, w->err,
                              w->cap))
            return -1;
    }
    return 0;
}

static int check_order(walk *w)
{
    char name[TENSOR_MAX_NAME + 128], *text;
    snprintf(name, sizeof name, "%.*sbyteorder", (int)w->folder_len, w->folder);
    const zip_member *m = zip_find(&w->z, name);
    if (!m)
        return 0;
    if (zip_load(w->f, m, 64, &text, w->err, w->cap))
        return -1;
    int little = m->size == 6 && memcmp(text, "little", 6) == 0;
    if (!little)
        err_set(w->err, w->cap,
                "its byte order is \"%s\"; only little-endian files are read",
                name_n(text, (size_t)m->size).text);
    free(text);
    return little ? 0 : -1;
}

static int read_object(walk *w, const zip_member *m)
{
    char *text;
    if (zip_load(w->f, m, MAX_PICKLE, &text, w->err, w->cap))
        return -1;
    pickle *p = pickle_parse(text, (size_t)m->size, allowed, w->err, w->cap);
    int status;
    if (p) {
        w->p = p;
        status = visit(w, pickle_root(p));
    } else {
        status = err_prefix(w->err, w->cap, "data.pkl");
    }
    pickle_free(p);
    free(text);
    return status;
}

int torch_read(tensor_file *f, char *err, size_t cap)
{
    walk *w = calloc(1, sizeof *w);
    if (!w)
        return err_set(err, cap, "out of memory");
    w->f = f;
    w->err = err;
    w->cap = cap;
    int status = zip_open(f, &w->z, err, cap);
    const zip_member *m = status ? NULL : find_folder(w);
    status = !m || check_members(w) || check_order(w) || read_object(w, m);
    zip_free(&w->z);
    free(w);
    return status ? -1 : 0;
}
