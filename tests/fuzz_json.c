/* Fuzz target of the JSON reader: no input crashes it, and what it reads is consistent. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../tools/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void need(int ok)
{
    if (!ok)
        abort();
}

/* Every value: its children counted and found again by name. Depth is at most 64, so
 * recursion is safe. */
static void walk(const json_doc *d, const json_value *v)
{
    uint32_t n = 0;
    int64_t i;
    double x;
    int b;
    json_int(v, &i);
    json_real(v, &x);
    json_bool(v, &b);
    if (v->type == JSON_STRING || v->type == JSON_NUMBER)
        need(v->str[v->len] == 0);
    for (const json_value *c = json_first(d, v); c; c = json_next(d, c), n++) {
        size_t len;
        const char *key = json_key(d, c, &len);
        need((key != NULL) == (v->type == JSON_OBJECT));
        if (key && strlen(key) == len)
            need(json_get(d, v, key) == c);
        walk(d, c);
    }
    need(n == v->n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char err[256] = "";
    json_doc *d = json_parse((const char *)data, size, err, sizeof err);
    need((d == NULL) == (err[0] != 0));
    if (d)
        walk(d, json_root(d));
    json_free(d);
    return 0;
}
