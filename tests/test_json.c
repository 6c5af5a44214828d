/* The JSON reader: what it takes, what it refuses and where it says so. */

#include "test.h"

#include <locale.h>
#include <stdint.h>
#include <stdlib.h>

#include "../tools/json.h"

static char err[256];

static json_doc *parse(const char *text)
{
    err[0] = 0;
    return json_parse(text, strlen(text), err, sizeof err);
}

static const char levels64[] =
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[0"
    "]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]";

/* Text, and where the message must say the trouble is and what it is. */
static const struct {
    const char *text, *message;
} bad[] = {
    /* J1: not JSON */
    {"", "byte 0: the text ends"},
    {" ", "byte 1: the text ends"},
    {"\xEF\xBB\xBF", "byte 3: the text ends"},
    {"\xEF\xBB", "byte 0: not a JSON value"},
    {"\xFF\xFE{\x01}", "byte 0: not a JSON value"},
    {"[1,]", "byte 3: not a JSON value"},
    {"{\"a\":1,}", "byte 7: expected a member name"},
    {"[1 2]", "byte 3: expected ',' or ']'"},
    {"{\"a\" 1}", "byte 5: expected ':'"},
    {"{\"a\":1 \"b\":2}", "byte 7: expected ',' or '}'"},
    {"{a:1}", "byte 1: expected a member name"},
    {"{'a':1}", "byte 1: expected a member name"},
    {"'a'", "byte 0: not a JSON value"},
    {"// x\n1", "byte 0: not a JSON value"},
    {"[1/**/]", "byte 2: expected ',' or ']'"},
    {"NaN", "byte 0: not a JSON value"},
    {"[Infinity]", "byte 1: not a JSON value"},
    {"[-Infinity]", "byte 1: not a JSON value"},
    {"nul", "byte 0: not a JSON value"},
    {"truE", "byte 0: not a JSON value"},
    {"True", "byte 0: not a JSON value"},
    {"nulls", "byte 4: something follows"},
    {"{}{}", "byte 2: something follows"},
    {"[1]]", "byte 3: something follows"},
    {"[}", "byte 1: not a JSON value"},
    {"[1}", "byte 2: expected ',' or ']'"},
    {"{\"a\":1]", "byte 6: expected ',' or '}'"},
    {"{\"a\":}", "byte 5: not a JSON value"},
    {"{1:2}", "byte 1: expected a member name"},
    {"\f1", "byte 0: not a JSON value"},
    {"\xC2\xA0"
     "1",
     "byte 0: not a JSON value"},
    /* J3: duplicate keys, also when they are spelled differently */
    {"{\"a\":1,\"a\":2}", "byte 7: the key \"a\" appears twice"},
    {"{\"a\":1,\"\\u0061\":2}", "byte 7: the key \"a\" appears twice"},
    {"[{\"\":{},\"\":1}]", "byte 8: the key \"\" appears twice"},
    /* J4: numbers */
    {"01", "byte 0: a number with a leading zero"},
    {"-01", "byte 0: a number with a leading zero"},
    {"1.", "byte 0: a number that ends in its point"},
    {".5", "byte 0: not a JSON value"},
    {"+1", "byte 0: not a JSON value"},
    {"-", "byte 0: not a JSON value"},
    {"--1", "byte 0: not a JSON value"},
    {"1e", "byte 0: a number without digits"},
    {"1e+", "byte 0: a number without digits"},
    {"0x10", "byte 1: something follows"},
    {"1_000", "byte 1: something follows"},
    /* J5: strings */
    {"\"abc", "byte 0: a string that does not end"},
    {"\"abc\\\"", "byte 0: a string that does not end"},
    {"\"\\x41\"", "byte 1: an escape that JSON does not have"},
    {"\"\\", "byte 1: an escape that JSON does not have"},
    {"\"\\u12\"", "byte 5: \\u needs four"},
    {"\"\\u12G4\"", "byte 5: \\u needs four"},
    {"\"\\ud800\"", "byte 1: a high surrogate without"},
    {"\"\\ud800x\"", "byte 1: a high surrogate without"},
    {"\"\\ud800\\n\"", "byte 1: a high surrogate without"},
    {"\"\\ud800\\ud800\"", "byte 1: a high surrogate without"},
    {"\"\\udc00\"", "byte 1: a low surrogate without"},
    {"\"a\nb\"", "byte 2: a raw control byte"},
    {"\"a\tb\"", "byte 2: a raw control byte"},
    {"\"\x1f\"", "byte 1: a raw control byte"},
    {"\"\x80\"", "byte 1: not UTF-8"},
    {"\"\xC0\x80\"", "byte 1: not UTF-8"},         /* overlong NUL */
    {"\"\xE0\x80\x80\"", "byte 1: not UTF-8"},     /* overlong */
    {"\"\xF0\x80\x80\x80\"", "byte 1: not UTF-8"}, /* overlong */
    {"\"\xED\xA0\x80\"", "byte 1: not UTF-8"},     /* surrogate */
    {"\"\xF4\x90\x80\x80\"", "byte 1: not UTF-8"}, /* beyond U+10FFFF */
    {"\"\xF5\x80\x80\x80\"", "byte 1: not UTF-8"},
    {"\"\xE2\x82\"", "byte 1: not UTF-8"},
    {"\"a\xFF\"", "byte 2: not UTF-8"},
};

static void test_bad(void)
{
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        json_doc *d = parse(bad[i].text);
        if (!CHECK(d == NULL) || !CHECK(strstr(err, bad[i].message) == err))
            fprintf(stderr, "    text %s: \"%s\", wanted \"%s\"\n", bad[i].text, err,
                    bad[i].message);
        json_free(d);
    }
}

/* J2: 64 levels are read, 65 are refused, a million do not exhaust the stack. */
static void test_depth(void)
{
    size_t n = 1000000;
    char *deep = malloc(n + 1), more[sizeof levels64 + 2];
    json_doc *d = parse(levels64);
    CHECK(d != NULL);
    json_free(d);
    snprintf(more, sizeof more, "[%s]", levels64);
    CHECK(parse(more) == NULL && strstr(err, "64 levels"));
    if (!CHECK(deep != NULL))
        return;
    memset(deep, '[', n);
    deep[n] = 0;
    CHECK(parse(deep) == NULL && strstr(err, "64 levels"));
    for (size_t i = 0; i + 5 <= n; i += 5)
        memcpy(deep + i, "{\"a\":", 5);
    CHECK(parse(deep) == NULL && strstr(err, "64 levels"));
    free(deep);
}

static void test_values(void)
{
    json_doc *d =
        parse("\xEF\xBB\xBF { \"a\" : [1, -2.5e3, true, false, null, \"x\"],\r\n"
              "\"b\\u0000c\":{}, "
              "\"\":\"\\u00e9\\ud83d\\ude00\\/\\\"\\\\\\b\\f\\n\\r\\t\\u0000z\" }\t");
    const json_value *v, *root;
    size_t len;
    int truth = -1;
    double x = 0;
    if (!CHECK(d != NULL))
        return;
    root = json_root(d);
    CHECK(root->type == JSON_OBJECT && root->n == 3);
    v = json_get(d, root, "a");
    if (!CHECK(v && v->type == JSON_ARRAY && v->n == 6))
        return;
    CHECK(json_key(d, v, &len) && len == 1);
    v = json_first(d, v);
    CHECK(v->type == JSON_NUMBER && v->len == 1 && json_key(d, v, &len) == NULL &&
          len == 0);
    CHECK_STR(v->str, "1");
    v = json_next(d, v);
    CHECK(json_real(v, &x) && x == -2500.0);
    v = json_next(d, v);
    CHECK(json_bool(v, &truth) && truth == 1 && !json_real(v, &x));
    v = json_next(d, v);
    CHECK(json_bool(v, &truth) && truth == 0);
    v = json_next(d, v);
    CHECK(v->type == JSON_NULL && !json_bool(v, &truth));
    v = json_next(d, v);
    CHECK(v->type == JSON_STRING && json_next(d, v) == NULL);
    v = json_get(d, root, "");
    CHECK(v && v->len == 16 &&
          memcmp(v->str, "\xC3\xA9\xF0\x9F\x98\x80/\"\\\b\f\n\r\t\0z", 16) == 0);
    v = json_next(d, json_first(d, root)); /* a NUL in a key is part of it */
    CHECK(memcmp(json_key(d, v, &len), "b\0c", 3) == 0 && len == 3);
    CHECK(json_get(d, root, "b") == NULL && json_first(d, v) == NULL);
    CHECK(json_get(d, v, "a") == NULL && json_get(d, json_first(d, root), "a") == NULL);
    CHECK(json_first(d, NULL) == NULL && json_next(d, NULL) == NULL &&
          !json_get(d, NULL, "a"));
    json_free(d);
    json_free(NULL);
}

static const struct {
    const char *text;
    int ok;
    int64_t value;
} ints[] = {
    {"0", 1, 0},
    {"-0", 1, 0},
    {"28", 1, 28},
    {"9223372036854775807", 1, INT64_MAX},
    {"-9223372036854775808", 1, INT64_MIN},
    {"9223372036854775808", 0, 0},
    {"-9223372036854775809", 0, 0},
    {"1000000000000000000000000000000", 0, 0},
    {"1.0", 0, 0},
    {"1e3", 0, 0},
    {"\"28\"", 0, 0},
    {"true", 0, 0},
    {"null", 0, 0},
};

static const struct {
    const char *text;
    int ok;
    double value;
} reals[] = {
    {"0", 1, 0},
    {"1e-06", 1, 1e-06},
    {"0.1", 1, 0.1},
    {"1000000", 1, 1e6},
    {"2.2250738585072011e-308", 1, 2.2250738585072011e-308},
    {"1.7976931348623157e308", 1, 1.7976931348623157e308},
    {"1e400", 0, 0},
    {"-1e400", 0, 0},
    {"1e-400", 1, 0},
    {"\"0.1\"", 0, 0},
};

static void test_numbers(void)
{
    for (size_t i = 0; i < sizeof ints / sizeof ints[0]; i++) {
        int64_t x = -77;
        json_doc *d = parse(ints[i].text);
        if (!CHECK(d != NULL))
            continue;
        CHECK(json_int(json_root(d), &x) == ints[i].ok);
        CHECK(x == (ints[i].ok ? ints[i].value : -77));
        json_free(d);
    }
    for (size_t i = 0; i < sizeof reals / sizeof reals[0]; i++) {
        double x = -77;
        json_doc *d = parse(reals[i].text);
        if (!CHECK(d != NULL))
            continue;
        CHECK(json_real(json_root(d), &x) == reals[i].ok);
        CHECK(x == (reals[i].ok ? reals[i].value : -77));
        json_free(d);
    }
    CHECK(!json_int(NULL, NULL) && !json_real(NULL, NULL) && !json_bool(NULL, NULL));
}

/* A locale with a decimal comma changes nothing. Where none is installed, nothing is
 * shown. */
static void test_locale(void)
{
    static const char *const names[] = {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8",
                                        "ru_RU.UTF-8"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (setlocale(LC_ALL, names[i]))
            test_numbers();
    setlocale(LC_ALL, "C");
}

/* An object with as many members as a vocabulary, and one key of it a second time at
 * the end. */
static void test_large(void)
{
    size_t n = 151643, cap = n * 24 + 64, at = 0;
    char *text = malloc(cap), key[24];
    int64_t id;
    if (!CHECK(text != NULL))
        return;
    for (size_t i = 0; i < n; i++)
        at += (size_t)snprintf(text + at, cap - at, "%c\"tok%zu\":%zu", i ? ',' : '{',
                               i, i);
    snprintf(text + at, cap - at, "}");
    json_doc *d = parse(text);
    if (CHECK(d != NULL)) {
        CHECK(json_root(d)->n == n);
        for (size_t i = 0; i < n; i += 997) {
            snprintf(key, sizeof key, "tok%zu", i);
            CHECK(json_int(json_get(d, json_root(d), key), &id) && id == (int64_t)i);
        }
        CHECK(json_get(d, json_root(d), "tok151643") == NULL);
        json_free(d);
    }
    snprintf(text + at, cap - at, ",\"tok0\":1}");
    CHECK(parse(text) == NULL && strstr(err, "the key \"tok0\" appears twice"));
    free(text);
}

/* Every prefix is refused, every changed byte is read or refused, nothing crashes. The
 * text lies in a block of exactly its length, so that the sanitizers see a read past
 * its end. */
static void test_damage(void)
{
    static const char text[] = "{\"k\":[1,-2.5e+3,{\"\\u00e9\\ud83d\\ude00\":null}],"
                               "\"\xC3\xA9\":[true,false],\"s\":\"a\\nb\"}";
    size_t n = strlen(text);
    for (size_t len = 0; len < n; len++) {
        char *copy = malloc(len ? len : 1);
        memcpy(copy, text, len);
        json_doc *d = json_parse(copy, len, err, sizeof err);
        CHECK(d == NULL && strncmp(err, "byte ", 5) == 0);
        json_free(d);
        free(copy);
    }
    char *copy = malloc(n);
    for (size_t i = 0; i < n; i++) {
        for (int c = 0; c < 256; c++) {
            memcpy(copy, text, n);
            copy[i] = (char)(unsigned char)c;
            err[0] = 0;
            json_doc *d = json_parse(copy, n, err, sizeof err);
            if ((d == NULL) != (err[0] != 0))
                CHECK(0 && "refused without a message, or read with one");
            json_free(d);
        }
    }
    free(copy);
}

/* Names from a file are printed escaped and cut. */
static void test_messages(void)
{
    char text[3000], tiny[8];
    snprintf(text, sizeof text, "{\"\\u001b[31m\":1,\"\\u001b[31m\":2}");
    CHECK(parse(text) == NULL && strstr(err, "\\x1b[31m") && !strchr(err, 0x1b));
    int at = snprintf(text, sizeof text, "{\"");
    memset(text + at, 'a', 1000);
    at += 1000 + snprintf(text + at + 1000, 100, "\":1,\"");
    memset(text + at, 'a', 1000);
    snprintf(text + at + 1000, 100, "\":2}");
    CHECK(parse(text) == NULL && strstr(err, "aaa...\"") && strlen(err) < 200);
    CHECK(json_parse("[", 1, tiny, sizeof tiny) == NULL && strlen(tiny) == 7);
    CHECK(json_parse("[", 1, NULL, 0) == NULL);
}

int main(void)
{
    test_bad();
    test_depth();
    test_values();
    test_numbers();
    test_locale();
    test_large();
    test_damage();
    test_messages();
    return test_done("test_json");
}
