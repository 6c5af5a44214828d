/* JSON values as Python writes them (see pytext.h). */

#include "pytext.h"

#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "text.h"

#include "printable.h"

#define MAX_DIGITS 4300 /* sys.get_int_max_str_digits() */

void pytext_add(pytext *t, const char *s, size_t n)
{
    if (t->failed || n == 0)
        return;
    if (n > t->cap - t->n) {
        size_t cap = t->cap < 64 ? 128 : t->cap;
        while (cap - t->n < n && cap <= SIZE_MAX / 2)
            cap *= 2;
        char *grown = cap - t->n < n ? NULL : realloc(t->s, cap);
        if (!grown) {
            t->failed = 1;
            return;
        }
        t->s = grown;
        t->cap = cap;
    }
    memcpy(t->s + t->n, s, n);
    t->n += n;
}

static void add_z(pytext *t, const char *s)
{
    pytext_add(t, s, strlen(s));
}

void pytext_free(pytext *t)
{
    free(t->s);
    memset(t, 0, sizeof *t);
}

/* ---- numbers ---- */

/* The fewest digits that read back as x > 0, in the form d.ddde+XX. The printf of a
 * number of digits is the nearest decimal of that length; where the floats below x are closer
 * than those above (a power of two), only its upper neighbour may read back. */
static void shortest(double x, char *out, size_t cap)
{
    for (int digits = 0; digits < 17; digits++) {
        snprintf(out, cap, "%.*e", digits, x);
        if (strtod(out, NULL) == x)
            return;
        char *last = strchr(out, 'e') - 1;
        if (*last < '9' && digits > 0) {
            ++*last;
            if (strtod(out, NULL) == x)
                return;
        }
    }
}

/* repr() of a float */
static void add_float(pytext *t, double x, const char *infinity)
{
    char form[40], digits[24];
    size_t n = 0;
    if (x < 0 || (x == 0 && 1 / x < 0)) {
        add_z(t, "-");
        x = -x;
    }
    if (x - x != 0) {
        add_z(t, infinity);
        return;
    }
    if (x == 0) {
        add_z(t, "0.0");
        return;
    }
    shortest(x, form, sizeof form);
    for (const char *p = form; *p != 'e'; p++)
        if (*p != '.')
            digits[n++] = *p;
    int point = atoi(strchr(form, 'e') + 1) + 1; /* digits before the point */
    while (n > 1 && digits[n - 1] == '0')
        n--;
    if (point > 16 || point < -3) {
        pytext_add(t, digits, 1);
        if (n > 1) {
            add_z(t, ".");
            pytext_add(t, digits + 1, n - 1);
        }
        snprintf(form, sizeof form, "e%c%02d", point > 0 ? '+' : '-', abs(point - 1));
        add_z(t, form);
        return;
    }
    if (point <= 0)
        add_z(t, "0.");
    for (int i = point; i < 0; i++)
        add_z(t, "0");
    for (int i = 0; i < (int)n || i < point; i++) {
        if (i == point && point > 0)
            add_z(t, ".");
        pytext_add(t, i < (int)n ? digits + i : "0", 1);
    }
    if (point >= (int)n)
        add_z(t, ".0");
}

static int add_number(pytext *t, const json_value *v, const char *infinity, char *err,
                      size_t cap)
{
    if (memchr(v->str, '.', v->len) || memchr(v->str, 'e', v->len) ||
        memchr(v->str, 'E', v->len)) {
        add_float(t, strtod(v->str, NULL), infinity);
        return 0;
    }
    if (v->len - (v->str[0] == '-') > MAX_DIGITS)
        return err_set(err, cap, "an integer of %zu digits; Python reads at most %d",
                       v->len - (v->str[0] == '-'), MAX_DIGITS);
    if (strcmp(v->str, "-0") == 0)
        add_z(t, "0");
    else
        pytext_add(t, v->str, v->len);
    return 0;
}

/* ---- strings ---- */

static void add_json_string(pytext *t, const char *s, size_t n)
{
    static const char plain[] = "\"\\\n\r\t\b\f", letter[] = "\"\\nrtbf";
    char code[8];
    add_z(t, "\"");
    size_t from = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        const char *short_form = c ? strchr(plain, c) : NULL;
        if (c >= 0x20 && !short_form)
            continue;
        pytext_add(t, s + from, i - from);
        from = i + 1;
        if (short_form)
            snprintf(code, sizeof code, "\\%c", letter[short_form - plain]);
        else
            snprintf(code, sizeof code, "\\u%04x", c);
        add_z(t, code);
    }
    pytext_add(t, s + from, n - from);
    add_z(t, "\"");
}

static int printable(uint32_t c)
{
    size_t lo = 0, hi = sizeof not_printable / sizeof not_printable[0];
    if (c < 0x80)
        return c >= 0x20 && c != 0x7F;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (not_printable[mid][1] < c)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo == sizeof not_printable / sizeof not_printable[0] ||
           c < not_printable[lo][0];
}

static void add_escape(pytext *t, uint32_t c)
{
    char code[12];
    if (c == '\n' || c == '\r' || c == '\t')
        snprintf(code, sizeof code, "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
    else
        snprintf(code, sizeof code,
                 c < 0x100     ? "\\x%02x"
                 : c < 0x10000 ? "\\u%04x"
                               : "\\U%08x",
                 (unsigned)c);
    add_z(t, code);
}

/* repr() of a str */
static void add_repr_string(pytext *t, const char *s, size_t n)
{
    const char *quote = memchr(s, '\'', n) && !memchr(s, '"', n) ? "\"" : "'";
    add_z(t, quote);
    for (size_t i = 0; i < n;) {
        uint32_t c;
        int valid;
        size_t len = text_next(s + i, n - i, &c, &valid);
        if (c == '\\' || c == (uint32_t)*quote)
            add_z(t, "\\");
        if (printable(c))
            pytext_add(t, s + i, len);
        else
            add_escape(t, c);
        i += len;
    }
    add_z(t, quote);
}

/* ---- values ---- */

typedef struct style {
    const char *null, *yes, *no, *infinity;
    void (*string)(pytext *t, const char *s, size_t n);
} style;

static const style as_json = {"null", "true", "false", "Infinity", add_json_string};
static const style as_repr = {"None", "True", "False", "inf", add_repr_string};

/* Recursion ends with the nesting that json.h allows. */
static int add_value(pytext *t, const json_doc *doc, const json_value *v,
                     const style *how, char *err, size_t cap)
{
    size_t len;
    int object = v->type == JSON_OBJECT, first = 1;
    switch (v->type) {
    case JSON_NULL: add_z(t, how->null); return 0;
    case JSON_TRUE: add_z(t, how->yes); return 0;
    case JSON_FALSE: add_z(t, how->no); return 0;
    case JSON_NUMBER: return add_number(t, v, how->infinity, err, cap);
    case JSON_STRING: how->string(t, v->str, v->len); return 0;
    default: break;
    }
    add_z(t, object ? "{" : "[");
    for (const json_value *i = json_first(doc, v); i; i = json_next(doc, i)) {
        if (!first)
            add_z(t, ", ");
        first = 0;
        if (object) {
            const char *key = json_key(doc, i, &len);
            how->string(t, key, len);
            add_z(t, ": ");
        }
        if (add_value(t, doc, i, how, err, cap))
            return -1;
    }
    add_z(t, object ? "}" : "]");
    return 0;
}

static int finish(const pytext *t, char *err, size_t cap)
{
    return t->failed ? err_set(err, cap, "out of memory") : 0;
}

int pytext_dumps(pytext *t, const json_doc *doc, const json_value *v, char *err,
                 size_t cap)
{
    return add_value(t, doc, v, &as_json, err, cap) ? -1 : finish(t, err, cap);
}

int pytext_str(pytext *t, const json_doc *doc, const json_value *v, char *err,
               size_t cap)
{
    if (v->type == JSON_STRING) {
        pytext_add(t, v->str, v->len);
        return finish(t, err, cap);
    }
    return add_value(t, doc, v, &as_repr, err, cap) ? -1 : finish(t, err, cap);
}

int pytext_truth(const json_value *v)
{
    if (!v || v->type == JSON_NULL || v->type == JSON_FALSE)
        return 0;
    if (v->type == JSON_NUMBER)
        return strtod(v->str, NULL) != 0;
    if (v->type == JSON_STRING)
        return v->len > 0;
    return v->type == JSON_TRUE || v->n > 0;
}
