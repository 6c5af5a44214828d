#include "json.h"

#include <errno.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"

/* ---- the document: an array of values linked by index, a pool of decoded text ---- */

typedef struct member_slot {
    uint32_t hash, parent, member;
} member_slot; /* member 0: empty */

struct json_doc {
    json_value
        *values; /* [cap]; index 0 is unused so that 0 can mean none, the root is 1 */
    uint32_t n_values, cap;
    char *pool; /* decoded strings, each with a NUL; never moves */
    member_slot
        *slots; /* open-addressed table of (object, key); size is a power of two */
    uint32_t n_members, n_slots;
    uint64_t seed; /* so that a file cannot be built to collide */
};

typedef struct parser {
    json_doc *doc;
    const unsigned char *text;
    size_t len, at;
    size_t used; /* of the pool */
    char *err;
    size_t err_cap;
    uint32_t depth;
    uint32_t open[JSON_MAX_DEPTH]; /* containers being filled */
    uint32_t last[JSON_MAX_DEPTH]; /* their last child so far, 0: none */
} parser;

static int bad_at(parser *p, size_t at, const char *what)
{
    return err_set(p->err, p->err_cap, "byte %zu: %s", at, what);
}

static int bad(parser *p, const char *what)
{
    return bad_at(p, p->at, what);
}

void json_free(json_doc *doc)
{
    if (!doc)
        return;
    free(doc->values);
    free(doc->pool);
    free(doc->slots);
    free(doc);
}

/* Index of a fresh, zeroed value; 0 if out of memory. */
static uint32_t value_new(parser *p, json_type type)
{
    json_doc *d = p->doc;
    if (d->n_values >= d->cap) {
        uint32_t cap =
            d->cap < 64 ? 64 : d->cap + d->cap / 2; /* < 2^31: one byte of text each */
        json_value *v = realloc(d->values, (size_t)cap * sizeof *v);
        if (!v)
            return 0;
        d->values = v;
        d->cap = cap;
    }
    memset(&d->values[d->n_values], 0, sizeof *d->values);
    d->values[d->n_values].type = type;
    return d->n_values++;
}

/* ---- members by name ---- */

static uint32_t key_hash(const json_doc *d, uint32_t parent, const char *key,
                         size_t len)
{
    uint64_t h = d->seed ^ ((uint64_t)parent * 0x9E3779B97F4A7C15u);
    for (size_t i = 0; i < len; i++) {
        h = (h ^ (unsigned char)key[i]) * 0x100000001B3u;
        h ^= h >> 29;
    }
    h *= 0xBF58476D1CE4E5B9u;
    return (uint32_t)(h >> 32);
}

/* The slot of (parent, key), or the empty slot where it would go. The table has empty
 * slots. */
static member_slot *slot_of(const json_doc *d, uint32_t parent, uint32_t hash,
                            const char *key, size_t len)
{
    uint32_t mask = d->n_slots - 1;
    for (uint32_t i = hash & mask;; i = (i + 1) & mask) {
        member_slot *s = &d->slots[i];
        if (!s->member)
            return s;
        if (s->hash != hash || s->parent != parent)
            continue;
        const json_value *v = &d->values[s->member];
        if (v->key_len == len && memcmp(v->key, key, len) == 0)
            return s;
    }
}

static int slots_grow(json_doc *d)
{
    uint32_t n =
        d->n_slots ? d->n_slots * 2 : 64; /* at most 2^31: members are half the slots */
    member_slot *old = d->slots, *s = calloc(n, sizeof *s);
    if (!s)
        return -1;
    for (uint32_t i = 0; i < d->n_slots; i++) {
        if (!old[i].member)
            continue;
        uint32_t at = old[i].hash & (n - 1);
        while (s[at].member)
            at = (at + 1) & (n - 1);
        s[at] = old[i];
    }
    free(old);
    d->slots = s;
    d->n_slots = n;
    return 0;
}

/* Enters a member whose key is set; fails on a name that the object already has. */
static int member_add(parser *p, uint32_t parent, uint32_t member, size_t key_at)
{
    json_doc *d = p->doc;
    if (d->n_members + 1 > d->n_slots / 2 && slots_grow(d))
        return bad(p, "out of memory");
    const json_value *v = &d->values[member];
    uint32_t hash = key_hash(d, parent, v->key, v->key_len);
    member_slot *s = slot_of(d, parent, hash, v->key, v->key_len);
    if (s->member) {
        return err_set(p->err, p->err_cap,
                       "byte %zu: the key \"%s\" appears twice in one object", key_at,
                       name_n(v->key, v->key_len).text);
    }
    *s = (member_slot){hash, parent, member};
    d->n_members++;
    return 0;
}

/* ---- tokens ---- */

static void skip_blank(parser *p)
{
    while (p->at < p->len) {
        unsigned char c = p->text[p->at];
        if (c != ' ' && c != '\t' && c != '\n' && c != '\r')
            return;
        p->at++;
    }
}

static int peek(const parser *p)
{
    return p->at < p->len ? p->text[p->at] : -1;
}

/* Length of the valid UTF-8 sequence at s (2..4 for a lead byte >= 0x80), 0 if there is
 * none: no overlong form, no surrogate, nothing beyond U+10FFFF. */
static size_t utf8_len(const unsigned char *s, size_t left)
{
    unsigned char c = s[0], lo = 0x80, hi = 0xBF;
    size_t n = c >= 0xC2 && c <= 0xDF   ? 2
               : c >= 0xE0 && c <= 0xEF ? 3
               : c >= 0xF0 && c <= 0xF4 ? 4
                                        : 0;
    if (n == 0 || left < n)
        return 0;
    if (c == 0xE0)
        lo = 0xA0;
    if (c == 0xED)
        hi = 0x9F;
    if (c == 0xF0)
        lo = 0x90;
    if (c == 0xF4)
        hi = 0x8F;
    if (s[1] < lo || s[1] > hi)
        return 0;
    for (size_t i = 2; i < n; i++)
        if (s[i] < 0x80 || s[i] > 0xBF)
            return 0;
    return n;
}

static int hex4(parser *p, uint32_t *out)
{
    uint32_t v = 0;
    for (int i = 0; i < 4; i++, p->at++) {
        int c = peek(p);
        if (c >= '0' && c <= '9')
            v = v * 16 + (uint32_t)(c - '0');
        else if (c >= 'a' && c <= 'f')
            v = v * 16 + (uint32_t)(c - 'a' + 10);
        else if (c >= 'A' && c <= 'F')
            v = v * 16 + (uint32_t)(c - 'A' + 10);
        else
            return bad(p, "\\u needs four hexadecimal digits");
    }
    *out = v;
    return 0;
}

static void put(parser *p, uint32_t byte)
{
    p->doc->pool[p->used++] = (char)(unsigned char)byte;
}

static void put_utf8(parser *p, uint32_t c)
{
    if (c < 0x80) {
        put(p, c);
    } else if (c < 0x800) {
        put(p, 0xC0 | c >> 6), put(p, 0x80 | (c & 63));
    } else if (c < 0x10000) {
        put(p, 0xE0 | c >> 12), put(p, 0x80 | (c >> 6 & 63)), put(p, 0x80 | (c & 63));
    } else {
        put(p, 0xF0 | c >> 18), put(p, 0x80 | (c >> 12 & 63)),
            put(p, 0x80 | (c >> 6 & 63));
        put(p, 0x80 | (c & 63));
    }
}

/* \uXXXX, after the u; a pair of surrogates is one character. */
static int escape_u(parser *p, size_t at)
{
    uint32_t c, low;
    if (hex4(p, &c))
        return -1;
    if (c >= 0xDC00 && c <= 0xDFFF)
        return bad_at(p, at, "a low surrogate without its high one");
    if (c >= 0xD800 && c <= 0xDBFF) {
        if (p->len - p->at < 2 || p->text[p->at] != '\\' || p->text[p->at + 1] != 'u')
            return bad_at(p, at, "a high surrogate without its low one");
        p->at += 2;
        if (hex4(p, &low))
            return -1;
        if (low < 0xDC00 || low > 0xDFFF)
            return bad_at(p, at, "a high surrogate without its low one");
        c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
    }
    put_utf8(p, c);
    return 0;
}

static int escape(parser *p)
{
    size_t at = p->at++; /* the backslash */
    int c = peek(p);
    p->at++;
    switch (c) {
    case '"':
    case '\\':
    case '/': put(p, (uint32_t)c); return 0;
    case 'b': put(p, '\b'); return 0;
    case 'f': put(p, '\f'); return 0;
    case 'n': put(p, '\n'); return 0;
    case 'r': put(p, '\r'); return 0;
    case 't': put(p, '\t'); return 0;
    case 'u': return escape_u(p, at);
    default: return bad_at(p, at, "an escape that JSON does not have");
    }
}

/* A string token into the pool. The decoded text and its NUL never exceed the token
 * with its quotes, so a pool as long as the text cannot overflow. */
static int string_token(parser *p, const char **str, size_t *len)
{
    size_t start = p->at++, first = p->used;
    for (;;) {
        if (p->at >= p->len)
            return bad_at(p, start, "a string that does not end");
        unsigned char c = p->text[p->at];
        if (c == '"')
            break;
        if (c < 0x20)
            return bad(p, "a raw control byte in a string");
        if (c == '\\') {
            if (escape(p))
                return -1;
            continue;
        }
        size_t n = c < 0x80 ? 1 : utf8_len(p->text + p->at, p->len - p->at);
        if (n == 0)
            return bad(p, "not UTF-8");
        memcpy(p->doc->pool + p->used, p->text + p->at, n);
        p->used += n;
        p->at += n;
    }
    p->at++;
    *str = p->doc->pool + first;
    *len = p->used - first;
    p->doc->pool[p->used++] = 0;
    return 0;
}

static size_t digits(parser *p)
{
    size_t from = p->at;
    while (peek(p) >= '0' && peek(p) <= '9')
        p->at++;
    return p->at - from;
}

static int number_token(parser *p, const char **str, size_t *len)
{
    size_t start = p->at;
    if (peek(p) == '-')
        p->at++;
    if (peek(p) == '0') {
        p->at++;
        if (peek(p) >= '0' && peek(p) <= '9')
            return bad_at(p, start, "a number with a leading zero");
    } else if (digits(p) == 0) {
        return bad_at(p, start, "not a JSON value");
    }
    if (peek(p) == '.') {
        p->at++;
        if (digits(p) == 0)
            return bad_at(p, start, "a number that ends in its point");
    }
    if (peek(p) == 'e' || peek(p) == 'E') {
        p->at++;
        if (peek(p) == '+' || peek(p) == '-')
            p->at++;
        if (digits(p) == 0)
            return bad_at(p, start, "a number without digits in its exponent");
    }
    *str = p->doc->pool + p->used;
    *len = p->at - start;
    memcpy(p->doc->pool + p->used, p->text + start, *len);
    p->used += *len;
    p->doc->pool[p->used++] = 0;
    return 0;
}

static int literal(parser *p, const char *word)
{
    size_t n = strlen(word);
    if (p->len - p->at < n || memcmp(p->text + p->at, word, n) != 0)
        return bad(p, "not a JSON value");
    p->at += n;
    return 0;
}

/* ---- structure ---- */

typedef struct member_name {
    const char *key;
    size_t len, at;
} member_name;

/* "key" : */
static int name_token(parser *p, member_name *out)
{
    skip_blank(p);
    out->at = p->at;
    if (peek(p) != '"')
        return bad(p, "expected a member name in double quotes");
    if (string_token(p, &out->key, &out->len))
        return -1;
    skip_blank(p);
    if (peek(p) != ':')
        return bad(p, "expected ':'");
    p->at++;
    return 0;
}

/* Links value v behind the last child of the innermost open container. */
static int attach(parser *p, uint32_t v, const member_name *name)
{
    if (p->depth == 0)
        return 0;
    uint32_t top = p->depth - 1, parent = p->open[top];
    json_value *values = p->doc->values;
    if (p->last[top])
        values[p->last[top]].next = v;
    else
        values[parent].first = v;
    p->last[top] = v;
    values[parent].n++;
    if (values[parent].type != JSON_OBJECT)
        return 0;
    values[v].key = name->key;
    values[v].key_len = (uint32_t)name->len;
    return member_add(p, parent, v, name->at);
}

/* One value, or the opening of a container that has something in it (*opened). */
static int value_token(parser *p, const member_name *name, int *opened)
{
    const char *str = NULL;
    size_t len = 0;
    int c, status = 0;
    json_type type = JSON_NUMBER;
    *opened = 0;
    skip_blank(p);
    c = peek(p);
    if (c == '{')
        type = JSON_OBJECT, p->at++;
    else if (c == '[')
        type = JSON_ARRAY, p->at++;
    else if (c == '"')
        type = JSON_STRING, status = string_token(p, &str, &len);
    else if (c == 't')
        type = JSON_TRUE, status = literal(p, "true");
    else if (c == 'f')
        type = JSON_FALSE, status = literal(p, "false");
    else if (c == 'n')
        type = JSON_NULL, status = literal(p, "null");
    else if (c < 0)
        status = bad(p, "the text ends where a value should be");
    else
        status = number_token(p, &str, &len);
    if (status)
        return -1;

    uint32_t v = value_new(p, type);
    if (!v)
        return bad(p, "out of memory");
    p->doc->values[v].str = str;
    p->doc->values[v].len = len;
    if (attach(p, v, name))
        return -1;
    if (type != JSON_OBJECT && type != JSON_ARRAY)
        return 0;
    skip_blank(p);
    if (peek(p) == (type == JSON_OBJECT ? '}' : ']')) {
        p->at++;
        return 0;
    }
    if (p->depth == JSON_MAX_DEPTH)
        return bad(p, "more than 64 levels of nesting");
    p->open[p->depth] = v;
    p->last[p->depth] = 0;
    p->depth++;
    *opened = 1;
    return 0;
}

/* After a value: closes what ends here. *more is 1 if another value follows. */
static int after_value(parser *p, int *more)
{
    *more = 0;
    while (p->depth > 0) {
        int object = p->doc->values[p->open[p->depth - 1]].type == JSON_OBJECT;
        skip_blank(p);
        int c = peek(p);
        if (c == ',') {
            p->at++;
            *more = 1;
            return 0;
        }
        if (c != (object ? '}' : ']'))
            return bad(p, object ? "expected ',' or '}'" : "expected ',' or ']'");
        p->at++;
        p->depth--;
    }
    return 0;
}

static int parse_text(parser *p)
{
    int more = 1;
    if (p->len >= 3 && memcmp(p->text, "\xEF\xBB\xBF", 3) == 0)
        p->at = 3;
    while (more) {
        member_name name = {NULL, 0, 0};
        int opened;
        if (p->depth > 0 && p->doc->values[p->open[p->depth - 1]].type == JSON_OBJECT &&
            name_token(p, &name))
            return -1;
        if (value_token(p, &name, &opened))
            return -1;
        if (!opened && after_value(p, &more))
            return -1;
    }
    skip_blank(p);
    if (p->at < p->len)
        return bad(p, "something follows the end of the JSON value");
    return 0;
}

json_doc *json_parse(const char *text, size_t len, char *err, size_t err_cap)
{
    parser p;
    memset(&p, 0, sizeof p);
    p.text = (const unsigned char *)text;
    p.len = len;
    p.err = err;
    p.err_cap = err_cap;
    if (len >= (size_t)1 << 31) {
        bad(&p, "2 GiB of JSON or more");
        return NULL;
    }
    p.doc = calloc(1, sizeof *p.doc);
    if (!p.doc) {
        bad(&p, "out of memory");
        return NULL;
    }
    p.doc->seed = (uint64_t)(uintptr_t)p.doc * 0x9E3779B97F4A7C15u;
    p.doc->n_values = 1;
    p.doc->pool = malloc(len + 2); /* a number at the very end still needs its NUL */
    if (!p.doc->pool || parse_text(&p)) {
        if (!p.doc->pool)
            bad(&p, "out of memory");
        json_free(p.doc);
        return NULL;
    }
    return p.doc;
}

/* ---- reading ---- */

const json_value *json_root(const json_doc *doc)
{
    return &doc->values[1];
}

const json_value *json_get(const json_doc *doc, const json_value *obj, const char *key)
{
    if (!obj || obj->type != JSON_OBJECT || obj->n == 0)
        return NULL;
    uint32_t parent = (uint32_t)(obj - doc->values);
    size_t len = strlen(key);
    member_slot *s = slot_of(doc, parent, key_hash(doc, parent, key, len), key, len);
    return s->member ? &doc->values[s->member] : NULL;
}

const json_value *json_first(const json_doc *doc, const json_value *container)
{
    return container && container->first ? &doc->values[container->first] : NULL;
}

const json_value *json_next(const json_doc *doc, const json_value *v)
{
    return v && v->next ? &doc->values[v->next] : NULL;
}

const char *json_key(const json_doc *doc, const json_value *member, size_t *len)
{
    (void)doc;
    if (len)
        *len = member ? member->key_len : 0;
    return member ? member->key : NULL;
}

int json_int(const json_value *v, int64_t *out)
{
    if (!v || v->type != JSON_NUMBER)
        return 0;
    const char *s = v->str;
    int negative = *s == '-';
    uint64_t limit = negative ? (uint64_t)INT64_MAX + 1 : (uint64_t)INT64_MAX, x = 0;
    for (s += negative; *s; s++) {
        if (*s < '0' || *s > '9')
            return 0; /* 1.0 and 1e3 are not written as integers */
        uint64_t digit = (uint64_t)(*s - '0');
        if (x > (limit - digit) / 10)
            return 0;
        x = x * 10 + digit;
    }
    if (!negative)
        *out = (int64_t)x;
    else
        *out = x == 0 ? 0 : -(int64_t)(x - 1) - 1;
    return 1;
}

int json_real(const json_value *v, double *out)
{
    char copy[512];
    if (!v || v->type != JSON_NUMBER || v->len >= sizeof copy - 8)
        return 0;
    /* strtod wants the locale's decimal point */
    const char *point = localeconv()->decimal_point;
    const char *dot = strchr(v->str, '.');
    if (!dot || strlen(point) > 8) {
        memcpy(copy, v->str, v->len + 1);
    } else {
        size_t head = (size_t)(dot - v->str), mid = strlen(point);
        memcpy(copy, v->str, head);
        memcpy(copy + head, point, mid);
        memcpy(copy + head + mid, dot + 1, v->len - head); /* with the NUL */
    }
    double x = strtod(copy, NULL);
    if (x - x != 0)
        return 0; /* 1e400 */
    *out = x;
    return 1;
}

int json_bool(const json_value *v, int *out)
{
    if (!v || (v->type != JSON_TRUE && v->type != JSON_FALSE))
        return 0;
    *out = v->type == JSON_TRUE;
    return 1;
}
