/* json.h: a strict JSON reader (RFC 8259) for config.json, tokenizer.json and
 * safetensors headers.
 *
 * Refused with a message that starts with the byte offset: anything the grammar does
 * not have (comments, trailing commas, NaN, single quotes), bytes that are not UTF-8,
 * lone surrogates, raw control bytes in a string, a member name twice in one object,
 * more than 64 levels, text of 2 GiB or more. A UTF-8 byte order mark is skipped. Time
 * and memory are linear in the text; nothing recurses. */

#ifndef QSAE_TOOLS_JSON_H
#define QSAE_TOOLS_JSON_H

#include <stddef.h>
#include <stdint.h>

#define JSON_MAX_DEPTH 64

typedef enum {
    JSON_NULL,
    JSON_FALSE,
    JSON_TRUE,
    JSON_NUMBER,
    JSON_STRING,
    JSON_ARRAY,
    JSON_OBJECT
} json_type;

typedef struct json_doc json_doc; /* owns everything; one json_free ends it all */

typedef struct json_value {
    json_type type;
    uint32_t n;      /* items of an array, members of an object, else 0 */
    const char *str; /* STRING: decoded UTF-8, may hold NUL. NUMBER: its source text.
                        NUL-terminated */
    size_t len;      /* bytes of str */
    /* private */
    const char *key; /* member name, NULL for an item */
    uint32_t key_len;
    uint32_t first,
        next; /* indices of the first child and of the next sibling, 0: none */
} json_value;

/* NULL on failure; err then holds "byte N: what is wrong". text may be freed after the
 * call. */
json_doc *json_parse(const char *text, size_t len, char *err, size_t err_cap);
const json_value *json_root(const json_doc *doc);
/* Member of an object; NULL if absent or if obj is not an object. Constant time. */
const json_value *json_get(const json_doc *doc, const json_value *obj, const char *key);
const json_value *json_first(const json_doc *doc,
                             const json_value *container); /* NULL if empty */
const json_value *json_next(const json_doc *doc,
                            const json_value *v); /* NULL after the last */
const char *json_key(const json_doc *doc, const json_value *member, size_t *len);

/* 1 and *out set, or 0 if v is NULL, of another type, or (int) not written as an
 * integer or out of range, (real) beyond double. The decimal point is '.', whatever the
 * locale. */
int json_int(const json_value *v, int64_t *out);
int json_real(const json_value *v, double *out);
int json_bool(const json_value *v, int *out);

void json_free(json_doc *doc); /* NULL is a no-op */

#endif
