#include "pickle.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"

#define ORDERED_DICT "collections\nOrderedDict"

struct pickle {
    pickle_value *values; /* [n] */
    uint32_t n, room;
    uint32_t root;
};

typedef struct machine {
    pickle *p;
    const unsigned char *at, *begin, *end;
    const char *const *allowed;
    uint32_t *stack, depth, stack_room;
    uint32_t *marks, n_marks, marks_room; /* heights of the stack */
    uint32_t *memo, memo_room;            /* value + 1, 0: unset */
    char *err;
    size_t cap;
} machine;

static int fail(machine *m, const char *what)
{
    return err_set(m->err, m->cap, "byte %zu: %s", (size_t)(m->at - m->begin), what);
}

/* ---- values, stack ---- */

static int grow(uint32_t **list, uint32_t *room, uint32_t need)
{
    uint32_t want = *room ? *room : 16;
    if (need <= *room)
        return 0;
    if (need > 2 * PICKLE_MAX_VALUES)
        return -1;
    while (want < need)
        want *= 2;
    uint32_t *more = realloc(*list, (size_t)want * sizeof *more);
    if (!more)
        return -1;
    memset(more + *room, 0, (size_t)(want - *room) * sizeof *more);
    *list = more;
    *room = want;
    return 0;
}

static pickle_value *value(machine *m, uint32_t i)
{
    return &m->p->values[i];
}

/* Pushes a new value; NULL on failure. It may move when the next one is made. */
static pickle_value *push_new(machine *m, pickle_kind kind)
{
    pickle *p = m->p;
    if (p->n == PICKLE_MAX_VALUES) {
        fail(m, "more than 2^21 values");
        return NULL;
    }
    if (p->n == p->room) {
        uint32_t room = p->room ? 2 * p->room : 256;
        pickle_value *more = realloc(p->values, (size_t)room * sizeof *more);
        if (!more) {
            fail(m, "out of memory");
            return NULL;
        }
        p->values = more;
        p->room = room;
    }
    if (grow(&m->stack, &m->stack_room, m->depth + 1)) {
        fail(m, "out of memory");
        return NULL;
    }
    pickle_value *v = &p->values[p->n];
    memset(v, 0, sizeof *v);
    v->kind = kind;
    m->stack[m->depth++] = p->n++;
    return v;
}

static int push_old(machine *m, uint32_t i)
{
    if (m->depth == PICKLE_MAX_VALUES || grow(&m->stack, &m->stack_room, m->depth + 1))
        return fail(m, "the stack is too high");
    m->stack[m->depth++] = i;
    return 0;
}

/* Where the stack may not be popped below: the last mark. */
static uint32_t floor_of(const machine *m)
{
    return m->n_marks ? m->marks[m->n_marks - 1] : 0;
}

static int need(machine *m, uint32_t n)
{
    return m->depth - floor_of(m) < n ? fail(m, "the stack is empty") : 0;
}

static int append(machine *m, pickle_value *v, const uint32_t *items, uint32_t n)
{
    if (n == 0)
        return 0;
    if (grow(&v->items, &v->room, v->n + n))
        return fail(m, "out of memory");
    memcpy(v->items + v->n, items, (size_t)n * sizeof *items);
    v->n += n;
    return 0;
}

/* The last n values of the stack become the items of a new one. */
static int pack(machine *m, pickle_kind kind, uint32_t n)
{
    if (need(m, n))
        return -1;
    m->depth -= n;
    uint32_t from = m->depth, first = n ? m->stack[from] : 0;
    /* the new value takes the place of the first item on the stack */
    pickle_value *v = push_new(m, kind);
    if (!v)
        return -1;
    uint32_t self = m->stack[from];
    if (n)
        m->stack[from] = first;
    int status = append(m, v, m->stack + from, n);
    m->stack[from] = self;
    return status;
}

static int pop_mark(machine *m, uint32_t *n)
{
    *n = 0;
    if (m->n_marks == 0)
        return fail(m, "there is no mark");
    *n = m->depth - m->marks[--m->n_marks];
    return 0;
}

/* ---- bytes ---- */

static int take(machine *m, size_t n, const unsigned char **p)
{
    *p = m->at;
    if ((size_t)(m->end - m->at) < n)
        return fail(m, "the pickle is cut off");
    m->at += n;
    return 0;
}

/* n little-endian bytes */
static int take_number(machine *m, size_t n, uint64_t *out)
{
    const unsigned char *p;
    *out = 0;
    if (take(m, n, &p))
        return -1;
    while (n-- > 0)
        *out = *out << 8 | p[n];
    return 0;
}

static int push_int(machine *m, int64_t x)
{
    pickle_value *v = push_new(m, PICKLE_INT);
    if (!v)
        return -1;
    v->i = x;
    return 0;
}

/* Two's complement of n <= 8 bytes. */
static int push_long(machine *m, size_t n)
{
    uint64_t x;
    if (n > 8)
        return fail(m, "a whole number of more than 64 bits");
    if (take_number(m, n, &x))
        return -1;
    if (n > 0 && n < 8 && x >> (8 * n - 1))
        x |= UINT64_MAX << 8 * n;
    return push_int(m, x > (uint64_t)INT64_MAX ? -(int64_t)(UINT64_MAX - x) - 1
                                               : (int64_t)x);
}

static int push_float(machine *m)
{
    const unsigned char *p;
    uint64_t bits = 0;
    if (take(m, 8, &p))
        return -1;
    for (int i = 0; i < 8; i++) /* big-endian */
        bits = bits << 8 | p[i];
    pickle_value *v = push_new(m, PICKLE_FLOAT);
    if (!v)
        return -1;
    memcpy(&v->f, &bits, sizeof bits);
    return 0;
}

static int push_string(machine *m)
{
    uint64_t n;
    const unsigned char *p;
    if (take_number(m, 4, &n) || take(m, (size_t)n, &p))
        return -1;
    pickle_value *v = push_new(m, PICKLE_STRING);
    if (!v)
        return -1;
    v->str = (const char *)p;
    v->len = (size_t)n;
    return 0;
}

static int push_bool(machine *m, int x)
{
    pickle_value *v = push_new(m, PICKLE_BOOL);
    if (!v)
        return -1;
    v->i = x;
    return 0;
}

/* ---- names ---- */

static int is_allowed(const machine *m, const char *text, size_t n)
{
    if (n == strlen(ORDERED_DICT) && memcmp(text, ORDERED_DICT, n) == 0)
        return 1;
    for (const char *const *a = m->allowed; *a; a++)
        if (n == strlen(*a) && memcmp(text, *a, n) == 0)
            return 1;
    return 0;
}

/* "module\nname\n" */
static int push_global(machine *m)
{
    const char *text = (const char *)m->at;
    size_t left = (size_t)(m->end - m->at);
    const char *first = memchr(text, '\n', left);
    const char *last =
        first ? memchr(first + 1, '\n', left - (size_t)(first + 1 - text)) : NULL;
    if (!last)
        return fail(m, "the pickle is cut off");
    size_t n = (size_t)(last - text);
    if (!is_allowed(m, text, n))
        return err_set(
            m->err, m->cap,
            "byte %zu: the pickle names %s.%s, which is not among what is read "
            "here (nothing was executed); save a plain state dict with "
            "torch.save, or safetensors",
            (size_t)(m->at - m->begin), name_n(text, (size_t)(first - text)).text,
            name_n(first + 1, (size_t)(last - first - 1)).text);
    m->at += n + 1;
    pickle_value *v = push_new(m, PICKLE_GLOBAL);
    if (!v)
        return -1;
    v->str = text;
    v->len = n;
    return 0;
}

static int is_global(const pickle_value *v, const char *name)
{
    return v->kind == PICKLE_GLOBAL && v->len == strlen(name) &&
           memcmp(v->str, name, v->len) == 0;
}

/* callable, tuple -> a call; OrderedDict() is an empty dict */
static int reduce(machine *m)
{
    if (need(m, 2))
        return -1;
    const pickle_value *f = value(m, m->stack[m->depth - 2]);
    const pickle_value *args = value(m, m->stack[m->depth - 1]);
    if (f->kind != PICKLE_GLOBAL || args->kind != PICKLE_TUPLE)
        return fail(m, "a call of something that is not a name, or not with a tuple");
    if (!is_global(f, ORDERED_DICT))
        return pack(m, PICKLE_CALL, 2);
    if (args->n != 0)
        return fail(m, "an OrderedDict made from arguments");
    m->depth -= 2;
    return push_new(m, PICKLE_DICT) ? 0 : -1;
}

/* ---- containers ---- */

/* A mutable value below n items of the stack, which are added to it. */
static int extend(machine *m, pickle_kind kind, uint32_t n)
{
    if (m->depth - floor_of(m) < n + 1)
        return fail(m, "the stack is empty");
    pickle_value *v = value(m, m->stack[m->depth - n - 1]);
    if (v->kind != kind)
        return fail(m, kind == PICKLE_DICT
                           ? "items are set in something that is not a dict"
                           : "items are appended to something that is not "
                             "a list");
    if (kind == PICKLE_DICT && n % 2 != 0)
        return fail(m, "a key without a value");
    if (append(m, v, m->stack + m->depth - n, n))
        return -1;
    m->depth -= n;
    return 0;
}

static int extend_marked(machine *m, pickle_kind kind)
{
    uint32_t n;
    return pop_mark(m, &n) || extend(m, kind, n);
}

/* State of an object. A state dict has one attribute, _metadata, which says versions of
 * modules and no number; it is left out. */
static int build(machine *m)
{
    if (need(m, 2))
        return -1;
    const pickle_value *v = value(m, m->stack[m->depth - 2]);
    const pickle_value *state = value(m, m->stack[m->depth - 1]);
    if (v->kind != PICKLE_DICT || state->kind != PICKLE_DICT)
        return fail(m, "BUILD of something that is not a state dict");
    for (uint32_t i = 0; i < state->n; i += 2) {
        const pickle_value *key = value(m, state->items[i]);
        if (key->kind != PICKLE_STRING || key->len != 9 ||
            memcmp(key->str, "_metadata", 9) != 0)
            return err_set(
                m->err, m->cap,
                "byte %zu: a state dict with an attribute besides _metadata: %s",
                (size_t)(m->at - m->begin),
                key->kind == PICKLE_STRING ? name_n(key->str, key->len).text
                                           : "(not a text)");
    }
    m->depth--;
    return 0;
}

/* ---- memo ---- */

static int put(machine *m, size_t bytes)
{
    uint64_t i;
    if (take_number(m, bytes, &i) || need(m, 1))
        return -1;
    if (i >= PICKLE_MAX_VALUES || grow(&m->memo, &m->memo_room, (uint32_t)i + 1))
        return fail(m, "a memo number of 2^21 or more");
    if (m->memo[i])
        return fail(m, "a memo number is used twice");
    m->memo[i] = m->stack[m->depth - 1] + 1;
    return 0;
}

static int get(machine *m, size_t bytes)
{
    uint64_t i;
    if (take_number(m, bytes, &i))
        return -1;
    if (i >= m->memo_room || !m->memo[i])
        return fail(m, "a memo number that was not set");
    return push_old(m, m->memo[i] - 1);
}

/* ---- the loop ---- */

static int mark(machine *m)
{
    if (grow(&m->marks, &m->marks_room, m->n_marks + 1))
        return fail(m, "too many marks");
    m->marks[m->n_marks++] = m->depth;
    return 0;
}

static int pack_marked(machine *m)
{
    uint32_t n;
    return pop_mark(m, &n) || pack(m, PICKLE_TUPLE, n);
}

static int protocol(machine *m)
{
    uint64_t x;
    if (take_number(m, 1, &x))
        return -1;
    if (x != 2)
        return err_set(m->err, m->cap,
                       "a pickle of protocol %" PRIu64
                       "; torch.save writes protocol 2 unless told otherwise, and only "
                       "that is read",
                       x);
    return m->at - m->begin == 2 ? 0 : fail(m, "PROTO in the middle");
}

static int step(machine *m, unsigned char op)
{
    uint64_t n;
    switch (op) {
    case 0x80: return protocol(m);
    case '(': return mark(m);
    case '}': return push_new(m, PICKLE_DICT) ? 0 : -1;
    case ']': return push_new(m, PICKLE_LIST) ? 0 : -1;
    case ')': return push_new(m, PICKLE_TUPLE) ? 0 : -1;
    case 'N': return push_new(m, PICKLE_NONE) ? 0 : -1;
    case 0x88: return push_bool(m, 1);
    case 0x89: return push_bool(m, 0);
    case 'K': return take_number(m, 1, &n) || push_int(m, (int64_t)n);
    case 'M': return take_number(m, 2, &n) || push_int(m, (int64_t)n);
    case 'J': return push_long(m, 4);
    case 0x8A: return take_number(m, 1, &n) || push_long(m, (size_t)n);
    case 'G': return push_float(m);
    case 'X': return push_string(m);
    case 'c': return push_global(m);
    case 't': return pack_marked(m);
    case 0x85: return pack(m, PICKLE_TUPLE, 1);
    case 0x86: return pack(m, PICKLE_TUPLE, 2);
    case 0x87: return pack(m, PICKLE_TUPLE, 3);
    case 'Q': return pack(m, PICKLE_PERSISTENT, 1);
    case 'R': return reduce(m);
    case 'b': return build(m);
    case 's': return extend(m, PICKLE_DICT, 2);
    case 'u': return extend_marked(m, PICKLE_DICT);
    case 'a': return extend(m, PICKLE_LIST, 1);
    case 'e': return extend_marked(m, PICKLE_LIST);
    case 'q': return put(m, 1);
    case 'r': return put(m, 4);
    case 'h': return get(m, 1);
    case 'j': return get(m, 4);
    default: break;
    }
    m->at--;
    return err_set(m->err, m->cap,
                   "byte %zu: opcode 0x%02x is not among those that torch.save writes",
                   (size_t)(m->at - m->begin), op);
}

static int run(machine *m)
{
    if (m->end - m->at < 2 || m->at[0] != 0x80)
        return fail(m, "not a pickle of protocol 2");
    for (;;) {
        const unsigned char *op;
        if (take(m, 1, &op))
            return -1;
        if (*op == '.')
            break;
        if (step(m, *op))
            return -1;
    }
    if (m->n_marks || m->depth != 1)
        return fail(m, "the pickle does not end with one value");
    if (m->at != m->end)
        return fail(m, "something follows the end of the pickle");
    m->p->root = m->stack[0];
    return 0;
}

/* ---- no value in itself ---- */

/* mark: 0 at first, OPEN on the way down, then the levels from here down, which a value
 * that is shared must have room for wherever it stands. */
enum { OPEN = -1 };

static int check_tree(pickle *p, uint32_t i, int depth, char *err, size_t cap)
{
    pickle_value *v = &p->values[i];
    int levels = 1;
    if (v->mark == OPEN)
        return err_set(err, cap, "the pickle has a value that contains itself");
    if (depth + v->mark >= PICKLE_MAX_DEPTH)
        return err_set(err, cap, "the pickle is nested more than %d levels deep",
                       PICKLE_MAX_DEPTH);
    if (v->mark > 0)
        return 0;
    v->mark = OPEN;
    for (uint32_t k = 0; k < v->n; k++) {
        if (check_tree(p, v->items[k], depth + 1, err, cap))
            return -1;
        int below = p->values[v->items[k]].mark;
        levels = below + 1 > levels ? below + 1 : levels;
    }
    v->mark = levels;
    return 0;
}

pickle *pickle_parse(const char *data, size_t size, const char *const *allowed,
                     char *err, size_t cap)
{
    machine m;
    memset(&m, 0, sizeof m);
    m.p = calloc(1, sizeof *m.p);
    if (!m.p) {
        err_set(err, cap, "out of memory");
        return NULL;
    }
    m.at = m.begin = (const unsigned char *)data;
    m.end = m.begin + size;
    m.allowed = allowed;
    m.err = err;
    m.cap = cap;
    int status = run(&m) || check_tree(m.p, m.p->root, 0, err, cap);
    free(m.stack);
    free(m.marks);
    free(m.memo);
    if (!status)
        return m.p;
    pickle_free(m.p);
    return NULL;
}

void pickle_free(pickle *p)
{
    if (!p)
        return;
    for (uint32_t i = 0; i < p->n; i++)
        free(p->values[i].items);
    free(p->values);
    free(p);
}

const pickle_value *pickle_root(const pickle *p)
{
    return &p->values[p->root];
}

const pickle_value *pickle_item(const pickle *p, const pickle_value *v, uint32_t i)
{
    return &p->values[v->items[i]];
}

int pickle_is(const pickle *p, const pickle_value *v, const char *global)
{
    return is_global(v->kind == PICKLE_CALL ? pickle_item(p, v, 0) : v, global);
}
