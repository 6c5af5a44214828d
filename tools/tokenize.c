/* `qsae tokenize` and `qsae detokenize`: text to token ids and back. */

#include "checked.h"
#include "cmd.h"
#include "input.h"
#include "json.h"
#include "slurp.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char tokenize_usage[] =
    "Usage: qsae tokenize MODEL.qsae [--special] [--jsonl]\n"
    "Prints the token ids of standard input, to its last byte, as one JSON array.\n"
    "\n"
    "  --special   recognise added tokens such as <|im_start|> and <think> in the text\n"
    "  --jsonl     every line is a JSON string, and gives one line with its ids\n"
    "  --help      this text\n"
    "Bytes that are not UTF-8 are read as U+FFFD, one for each maximal invalid part.\n";

static const char detokenize_usage[] =
    "Usage: qsae detokenize MODEL.qsae\n"
    "Reads a JSON array of token ids from standard input and writes the bytes of their\n"
    "texts, added tokens included.\n";

enum { SPECIAL = 1, JSONL = 2 };

static const args_option tokenize_options[] = {
    {"special", 0, SPECIAL, 0}, {"jsonl", 0, JSONL, 0}, {NULL, 0, 0, 0}};
static const args_option detokenize_options[] = {{NULL, 0, 0, 0}};

typedef struct ids_buffer {
    int32_t *ids;
    size_t cap;
} ids_buffer;

static int reserve(ids_buffer *b, size_t n)
{
    if (n <= b->cap)
        return CMD_OK;
    free(b->ids);
    b->ids = n <= SIZE_MAX / sizeof *b->ids ? malloc(n * sizeof *b->ids) : NULL;
    b->cap = b->ids ? n : 0;
    if (!b->ids)
        return complain(CMD_FAILED, "out of memory for %zu tokens", n);
    return CMD_OK;
}

static void print_ids(const int32_t *ids, size_t n)
{
    char digits[16];
    putchar('[');
    for (size_t i = 0; i < n; i++) {
        char *p = digits + sizeof digits;
        for (int32_t v = ids[i]; v || p == digits + sizeof digits; v /= 10)
            *--p = (char)('0' + v % 10);
        if (i)
            putchar(',');
        fwrite(p, 1, (size_t)(digits + sizeof digits - p), stdout);
    }
    fputs("]\n", stdout);
}

/* A token has at least one byte of text, but text may grow: three bytes for a bad one,
 * and NFC. So a second pass may be needed. */
static int tokenize(const qsae_model *model, const char *text, size_t len, int flags,
                    ids_buffer *b)
{
    qsae_error err;
    qsae_status s = QSAE_E_LIMIT;
    size_t n = 0;
    int code = reserve(b, len + 16);
    for (int pass = 0; pass < 2 && code == CMD_OK && s == QSAE_E_LIMIT; pass++) {
        s = qsae_tokenize(model, text, len, flags & SPECIAL ? QSAE_TOK_SPECIAL : 0,
                          b->ids, b->cap, &n, &err);
        if (s == QSAE_E_LIMIT && n > b->cap)
            code = reserve(b, n);
    }
    if (code != CMD_OK)
        return code;
    if (s != QSAE_OK)
        return complain_library(NULL, &err);
    print_ids(b->ids, n);
    return CMD_OK;
}

static int tokenize_line(const qsae_model *model, const char *line, size_t len,
                         size_t number, int flags, ids_buffer *b)
{
    char err[ERR_CAP];
    json_doc *doc = json_parse(line, len, err, sizeof err);
    if (!doc)
        return complain(CMD_FAILED, "line %zu: %s", number, err);
    const json_value *v = json_root(doc);
    int code = v->type == JSON_STRING
                   ? tokenize(model, v->str, v->len, flags, b)
                   : complain(CMD_FAILED, "line %zu is not a JSON string", number);
    json_free(doc);
    return code;
}

static int tokenize_lines(const qsae_model *model, const char *text, size_t len,
                          int flags, ids_buffer *b)
{
    size_t number = 0;
    for (size_t at = 0; at < len;) {
        const char *end = memchr(text + at, '\n', len - at);
        size_t n = end ? (size_t)(end - text) - at : len - at;
        int code = tokenize_line(model, text + at, n, ++number, flags, b);
        if (code != CMD_OK)
            return code;
        at += n + 1;
    }
    return CMD_OK;
}

int cmd_tokenize(int argc, char **argv)
{
    const char *path;
    char *text = NULL;
    size_t len = 0;
    int flags;
    qsae_model *model = NULL;
    ids_buffer b = {NULL, 0};
    int code =
        slurp_arguments(argc, argv, tokenize_options, tokenize_usage, &path, &flags);
    if (code != CMD_OK || !path)
        return code;
    code = slurp_open(path, &model);
    if (code == CMD_OK)
        code = slurp_stdin(&text, &len);
    if (code == CMD_OK)
        code = (flags & JSONL ? tokenize_lines : tokenize)(model, text, len, flags, &b);
    free(b.ids);
    free(text);
    qsae_model_close(model);
    return code;
}

/* Everything is checked before the first byte is written. */
static int detokenize(const qsae_model *model, const json_doc *doc)
{
    const json_value *list = json_root(doc);
    size_t len, i = 0;
    int64_t id = 0;
    if (list->type != JSON_ARRAY)
        return complain(CMD_FAILED, "standard input is not a JSON array");
    for (const json_value *v = json_first(doc, list); v; v = json_next(doc, v), i++) {
        if (!json_int(v, &id))
            return complain(CMD_FAILED, "item %zu is not an integer", i);
        if (id < 0 || id > INT32_MAX || !qsae_token_text(model, (int32_t)id, &len))
            return complain(CMD_FAILED, "item %zu: %lld is not a token of the model", i,
                            (long long)id);
    }
    for (const json_value *v = json_first(doc, list); v; v = json_next(doc, v)) {
        json_int(v, &id);
        const char *text = qsae_token_text(model, (int32_t)id, &len);
        fwrite(text, 1, len, stdout);
    }
    return CMD_OK;
}

int cmd_detokenize(int argc, char **argv)
{
    const char *path;
    char *text = NULL, err[ERR_CAP];
    size_t len = 0;
    int flags;
    qsae_model *model = NULL;
    json_doc *doc = NULL;
    int code = slurp_arguments(argc, argv, detokenize_options, detokenize_usage, &path,
                               &flags);
    if (code != CMD_OK || !path)
        return code;
    code = slurp_open(path, &model);
    if (code == CMD_OK)
        code = slurp_stdin(&text, &len);
    if (code == CMD_OK && !(doc = json_parse(text, len, err, sizeof err)))
        code = complain(CMD_FAILED, "standard input: %s", err);
    if (code == CMD_OK)
        code = detokenize(model, doc);
    json_free(doc);
    free(text);
    qsae_model_close(model);
    return code;
}
