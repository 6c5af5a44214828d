/* Slices of an evaluation to one (see eval.h). A run of the whole goes through here as one
 * slice, so that both write the same bytes. */

#define _POSIX_C_SOURCE 200809L

#include "eval.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>

#include "cmd.h"
#include "json.h"
#include "outfile.h"
#include "text.h"

#define MOST_BYTES ((size_t)1 << 30) /* of a slice */

int eval_read(const char *path, char **text, size_t *len)
{
    size_t cap = 1 << 16, n;
    FILE *f = fopen(path, "rb");
    *text = NULL;
    if (!f)
        return complain(CMD_FAILED, "%.300s: %s", path, strerror(errno));
    char *p = malloc(cap);
    for (*len = 0; p && (n = fread(p + *len, 1, cap - *len, f)) > 0;) {
        *len += n;
        if (*len < cap)
            continue;
        cap *= 2;
        char *more = cap <= MOST_BYTES ? realloc(p, cap) : NULL;
        if (!more)
            free(p);
        p = more;
    }
    int bad = ferror(f);
    fclose(f);
    if (!p || bad) {
        free(p);
        return complain(CMD_FAILED, "%.300s: %s", path,
                        bad ? "it cannot be read" : "it is too large");
    }
    *text = p;
    return CMD_OK;
}

/* -------------------------------------------------------------------- values as they are */

static void put(FILE *f, const json_doc *doc, const json_value *v);

static void put_members(FILE *f, const json_doc *doc, const json_value *v, int object)
{
    int first = 1;
    fputc(object ? '{' : '[', f);
    for (const json_value *m = json_first(doc, v); m; m = json_next(doc, m)) {
        size_t n;
        const char *key = object ? json_key(doc, m, &n) : NULL;
        if (!first)
            fputc(',', f);
        first = 0;
        if (key) {
            text_json(f, key, n);
            fputc(':', f);
        }
        put(f, doc, m);
    }
    fputc(object ? '}' : ']', f);
}

/* Depth is bounded by the reader's. */
static void put(FILE *f, const json_doc *doc, const json_value *v)
{
    switch (v->type) {
    case JSON_STRING: text_json(f, v->str, v->len); break;
    case JSON_NUMBER: fputs(v->str, f); break;
    case JSON_TRUE: fputs("true", f); break;
    case JSON_FALSE: fputs("false", f); break;
    case JSON_NULL: fputs("null", f); break;
    default: put_members(f, doc, v, v->type == JSON_OBJECT); break;
    }
}

/* ------------------------------------------------------------------------------ checking */

typedef struct slices {
    json_doc **docs; /* [n] in the order of their numbers */
    size_t n;
} slices;

static const json_value *get(const json_doc *doc, const char *key)
{
    return json_get(doc, json_root(doc), key);
}

/* The slice's number, 1 .. *n; 0 if this is no evaluation. */
static int64_t number_of(const json_doc *doc, int64_t *n)
{
    int64_t i = 0;
    const json_value *v = get(doc, "slice"), *units = get(doc, "units");
    const json_value *format = get(doc, "format");
    const json_value *first = v && v->n == 2 ? json_first(doc, v) : NULL;
    if (!format || format->type != JSON_STRING || !units || units->type != JSON_ARRAY ||
        strcmp(format->str, "qsae-eval-1") != 0 || !first || !json_int(first, &i) ||
        !json_int(json_next(doc, first), n) || i < 1 || i > *n)
        return 0;
    return i;
}

/* What stands before the units and is not the slice's number, as text: all slices of one
 * evaluation have the same. */
static char *head_of(const json_doc *doc)
{
    char *text = NULL;
    size_t len;
    FILE *f = open_memstream(&text, &len);
    if (!f)
        return NULL;
    fputc('{', f);
    for (const json_value *m = json_first(doc, json_root(doc)); m;
         m = json_next(doc, m)) {
        size_t n;
        const char *key = json_key(doc, m, &n);
        if (strcmp(key, "slice") == 0 || strcmp(key, "units") == 0)
            continue;
        text_json(f, key, n);
        fputc(':', f);
        if (strcmp(key, "formulas") == 0) {
            fputs("{\n", f);
            for (const json_value *w = json_first(doc, m); w; w = json_next(doc, w)) {
                text_json(f, json_key(doc, w, &n), strlen(json_key(doc, w, &n)));
                fputc(':', f);
                put(f, doc, w);
                fputs(json_next(doc, w) ? ",\n" : "\n}", f);
            }
        } else {
            put(f, doc, m);
        }
        fputs(",\n", f);
    }
    if (fclose(f)) {
        free(text);
        return NULL;
    }
    return text;
}

/* Takes the document over. */
static int place(slices *s, json_doc *doc, const char *what)
{
    int64_t n = 0, i = number_of(doc, &n);
    if (i > 0 && (uint64_t)n == s->n && !s->docs[i - 1]) {
        s->docs[i - 1] = doc;
        return CMD_OK;
    }
    json_free(doc);
    if (i == 0)
        return complain(CMD_FAILED, "%.300s is not the result of qsae eval", what);
    if ((uint64_t)n != s->n)
        return complain(CMD_FAILED, "%.300s is one of %lld slices; there are %zu files",
                        what, (long long)n, s->n);
    return complain(CMD_FAILED, "%.300s: slice %lld is there twice", what,
                    (long long)i);
}

static int check_heads(const slices *s)
{
    int code = CMD_OK;
    char *first = head_of(s->docs[0]);
    for (size_t i = 1; i < s->n && code == CMD_OK; i++) {
        char *other = head_of(s->docs[i]);
        const json_value *a = get(s->docs[0], "settings"),
                         *b = get(s->docs[i], "settings");
        if (!first || !other)
            code = complain(CMD_FAILED, "out of memory");
        else if (strcmp(first, other) != 0)
            code = complain(CMD_FAILED,
                            "slices 1 and %zu are of different settings, files or "
                            "machines' arithmetic (%.20s and %.20s)",
                            i + 1, a && a->type == JSON_STRING ? a->str : "none",
                            b && b->type == JSON_STRING ? b->str : "none");
        free(other);
    }
    free(first);
    return code;
}

/* ------------------------------------------------------------------------------- writing */

static char *join(const slices *s, size_t *len)
{
    char *text = NULL, *head = head_of(s->docs[0]);
    int first = 1;
    FILE *f = head ? open_memstream(&text, len) : NULL;
    if (!f) {
        free(head);
        return NULL;
    }
    fprintf(f, "%s\"units\":[", head);
    for (size_t i = 0; i < s->n; i++) {
        const json_value *units = get(s->docs[i], "units");
        for (const json_value *u = json_first(s->docs[i], units); u;
             u = json_next(s->docs[i], u)) {
            fputs(first ? "\n" : ",\n", f);
            first = 0;
            put(f, s->docs[i], u);
        }
    }
    fputs("\n]}\n", f);
    free(head);
    if (fclose(f)) {
        free(text);
        return NULL;
    }
    return text;
}

static const char *const columns[] = {"kind",  "name",  "site", "layer",
                                      "d_out", "d_sae", "rank", "group"};
static const char *const metrics[] = {"tokens",
                                      "L0",
                                      "MSE",
                                      "MSE_coord",
                                      "FVU_mean",
                                      "EV_mean",
                                      "FVE_var",
                                      "FVU_zero",
                                      "nMSE",
                                      "EV_legacy",
                                      "cosine",
                                      "L2_ratio",
                                      "norm_ratio",
                                      "bias",
                                      "mean_f",
                                      "labels",
                                      "CE_orig",
                                      "CE_spliced",
                                      "CE_zero",
                                      "CE_mean",
                                      "delta_loss",
                                      "delta_loss_percent",
                                      "recovered_zero",
                                      "recovered_mean",
                                      "KL",
                                      "KL_zero",
                                      "KL_mean",
                                      "KL_score_zero",
                                      "KL_score_mean",
                                      "top1"};
static const char *const of_features[] = {"dead", "high_density_0.1",
                                          "high_density_0.01"};

#define COUNT(list) (sizeof(list) / sizeof *(list))

/* Numbers as they are, nothing for what is not there, texts in quotes. */
static void put_cell(FILE *f, const json_value *v)
{
    if (v && v->type == JSON_NUMBER) {
        fputs(v->str, f);
    } else if (v && v->type == JSON_STRING) {
        fputc('"', f);
        for (size_t i = 0; i < v->len; i++) {
            if (v->str[i] == '"')
                fputc('"', f);
            fputc(v->str[i] == '\n' || v->str[i] == '\r' ? ' ' : v->str[i], f);
        }
        fputc('"', f);
    }
}

static void put_table(FILE *f, const json_doc *doc)
{
    for (size_t i = 0; i < COUNT(columns); i++)
        fprintf(f, "%s,", columns[i]);
    for (size_t i = 0; i < COUNT(metrics); i++)
        fprintf(f, "%s,", metrics[i]);
    for (size_t i = 0; i < COUNT(of_features); i++)
        fprintf(f, "%s%s", of_features[i], i + 1 < COUNT(of_features) ? "," : "\n");
    const json_value *units = get(doc, "units");
    for (const json_value *u = json_first(doc, units); u; u = json_next(doc, u)) {
        const json_value *groups = json_get(doc, u, "groups");
        const json_value *features = json_get(doc, u, "features");
        for (const json_value *g = json_first(doc, groups); g; g = json_next(doc, g)) {
            size_t n;
            for (size_t i = 0; i + 1 < COUNT(columns); i++) {
                put_cell(f, json_get(doc, u, columns[i]));
                fputc(',', f);
            }
            fprintf(f, "%s", json_key(doc, g, &n));
            for (size_t i = 0; i < COUNT(metrics); i++) {
                fputc(',', f);
                put_cell(f, json_get(doc, g, metrics[i]));
            }
            int kept = strcmp(json_key(doc, g, &n), "kept") == 0;
            for (size_t i = 0; i < COUNT(of_features); i++) {
                fputc(',', f);
                put_cell(f, kept ? json_get(doc, features, of_features[i]) : NULL);
            }
            fputc('\n', f);
        }
    }
}

static char *table(const json_doc *doc, size_t *len)
{
    char *text = NULL;
    FILE *f = open_memstream(&text, len);
    if (!f)
        return NULL;
    put_table(f, doc);
    if (fclose(f)) {
        free(text);
        return NULL;
    }
    return text;
}

/* Takes the text over. */
static int write_file(const char *folder, const char *name, char *text, size_t len)
{
    char path[4096], err[ERR_CAP] = "out of memory";
    int status = -1;
    snprintf(path, sizeof path, "%.4000s/%s", folder, name);
    outfile *out = text ? outfile_create(path, err, sizeof err) : NULL;
    if (out)
        status = outfile_write(out, text, len, err, sizeof err);
    free(text);
    if (out && status == 0)
        status = outfile_commit(out, err, sizeof err);
    else
        outfile_abort(out);
    return status ? complain(CMD_FAILED, "%s", err) : CMD_OK;
}

/* eval.json comes last: where it is, the others are. */
static int write_all(const char *folder, const slices *s)
{
    size_t len = 0, n = 0;
    char err[ERR_CAP], *text = join(s, &len), *other;
    json_doc *doc = text ? json_parse(text, len, err, sizeof err) : NULL;
    if (!doc) {
        free(text);
        return complain(CMD_FAILED, "the results cannot be put together: %s",
                        text ? err : "out of memory");
    }
    other = table(doc, &n);
    int code = write_file(folder, "eval.csv", other, n);
    if (code == CMD_OK) {
        other = eval_report(doc, &n);
        code = write_file(folder, "report.html", other, n);
    }
    json_free(doc);
    if (code == CMD_OK)
        return write_file(folder, "eval.json", text, len);
    free(text);
    return code;
}

static int finish(const char *out, char *const *texts, const size_t *lens, size_t n,
                  const char *const *names)
{
    char err[ERR_CAP];
    slices s = {calloc(n, sizeof *s.docs), n};
    int code = s.docs ? CMD_OK : complain(CMD_FAILED, "out of memory");
    for (size_t i = 0; i < n && code == CMD_OK; i++) {
        json_doc *doc = json_parse(texts[i], lens[i], err, sizeof err);
        code = doc ? place(&s, doc, names ? names[i] : out)
                   : complain(CMD_FAILED, "%.300s: %s", names ? names[i] : out, err);
    }
    if (code == CMD_OK)
        code = check_heads(&s);
    if (code == CMD_OK)
        code = write_all(out, &s);
    for (size_t i = 0; i < n && s.docs; i++)
        json_free(s.docs[i]);
    free(s.docs);
    return code;
}

int eval_finish(const char *out, char *const *texts, const size_t *lens, size_t n)
{
    return finish(out, texts, lens, n, NULL);
}

/* ------------------------------------------------------------------------------- merging */

/* "eval-I-of-N.json" */
static int is_slice(const char *name)
{
    long long i, n;
    int end = 0;
    return sscanf(name, "eval-%lld-of-%lld.json%n", &i, &n, &end) == 2 && end > 0 &&
           !name[end];
}

typedef struct found {
    char **names, **texts;
    size_t *lens, n;
} found;

static int add_slice(found *f, const char *folder, const char *name)
{
    char **names = realloc(f->names, (f->n + 1) * sizeof *names);
    f->names = names ? names : f->names;
    char **texts = realloc(f->texts, (f->n + 1) * sizeof *texts);
    f->texts = texts ? texts : f->texts;
    size_t *lens = realloc(f->lens, (f->n + 1) * sizeof *lens);
    f->lens = lens ? lens : f->lens;
    size_t size = strlen(folder) + strlen(name) + 2;
    char *path = names && texts && lens ? malloc(size) : NULL;
    if (!path)
        return complain(CMD_FAILED, "out of memory");
    snprintf(path, size, "%s/%s", folder, name);
    f->names[f->n] = path;
    f->texts[f->n] = NULL;
    f->n++;
    return eval_read(path, &f->texts[f->n - 1], &f->lens[f->n - 1]);
}

int eval_merge(const eval_options *o)
{
    found f = {NULL, NULL, NULL, 0};
    struct dirent *entry;
    int code = CMD_OK;
    DIR *d = opendir(o->merge);
    if (!d)
        return complain(CMD_FAILED, "--merge %.300s: %s", o->merge, strerror(errno));
    while (code == CMD_OK && (entry = readdir(d)) != NULL)
        if (is_slice(entry->d_name))
            code = add_slice(&f, o->merge, entry->d_name);
    closedir(d);
    if (code == CMD_OK && f.n == 0)
        code = complain(CMD_FAILED, "--merge %.300s: no eval-I-of-N.json is there",
                        o->merge);
    if (code == CMD_OK)
        code = finish(o->out, f.texts, f.lens, f.n, (const char *const *)f.names);
    for (size_t i = 0; i < f.n; i++) {
        free(f.names[i]);
        free(f.texts[i]);
    }
    free(f.names);
    free(f.texts);
    free(f.lens);
    return code;
}
