/* Text as sequences of token ids (see corpus.h). */

#define _XOPEN_SOURCE     700 /* S_ISLNK, fseeko */
#define _FILE_OFFSET_BITS 64

#include "corpus.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "chat.h"
#include "json.h"
#include "text.h"

#define BLOCK     (1u << 20)  /* bytes of a .txt file that are one document */
#define BEGINNING (64u << 10) /* bytes of a file that the fingerprint looks at */
#define MAX_DEPTH 32          /* folders in folders */
#define ROLE_CAP  16

/* Sets the error text and returns -1. */
#define FAIL(...) err_set(err, err_cap, __VA_ARGS__)

/* One file of text. */
typedef struct file {
    char *path;               /* to open it */
    char *name;               /* below its source, inside path */
    uint64_t size, beginning; /* bytes; hash of the first ones */
    int lines;                /* .jsonl */
} file;

/* One document, as ids. */
typedef struct document {
    int32_t *ids; /* [n] */
    uint8_t *classes;
    size_t n, cap;
    uint64_t next, next_line; /* where the one after it begins */
} document;

typedef struct source {
    char *path;
    double weight;
    file *files; /* [n_files] */
    size_t n_files, cap_files;
    FILE *f; /* files[open], at byte f_at */
    size_t open;
    uint64_t f_at;
    document doc; /* at the cursor's place, if loaded */
    int loaded;
} source;

/* Control tokens of the chat template. */
enum { IM_START, IM_END, THINK, N_MARKS = 8 };

struct corpus {
    const qsae_model *model;
    qsae_model_info info;
    source sources[CORPUS_MAX_SOURCES];
    size_t n_sources, context;
    char *text_field;
    int special;
    int32_t marks[N_MARKS]; /* -1: the tokenizer has none */
    char *bytes;            /* [cap_bytes] the text of a document */
    size_t cap_bytes;
    corpus_cursor at;
    int failed;
    char why[ERR_CAP];
};

const char *corpus_class_name(corpus_class c)
{
    static const char *const names[] = {"text", "system", "user", "assistant",
                                        "template"};
    return c < CORPUS_CLASSES ? names[c] : NULL;
}

/* ------------------------------------------------------------------------- the files */

static int ends_in(const char *s, const char *tail)
{
    size_t n = strlen(s), m = strlen(tail);
    return n > m && strcmp(s + n - m, tail) == 0;
}

static char *join(const char *a, const char *between, const char *b)
{
    size_t n = strlen(a) + strlen(between) + strlen(b) + 1;
    char *s = malloc(n);
    if (s)
        snprintf(s, n, "%s%s%s", a, between, b);
    return s;
}

static int look_at(file *f, char *err, size_t err_cap)
{
    unsigned char part[4096];
    qsae_hash h;
    size_t n, left = BEGINNING;
    FILE *in = fopen(f->path, "rb");
    if (!in)
        return FAIL("%.300s: %s", f->path, strerror(errno));
    qsae_hash_begin(&h);
    while (left > 0 && (n = fread(part, 1, sizeof part, in)) > 0) {
        qsae_hash_add(&h, part, n);
        left -= n;
    }
    f->beginning = qsae_hash_end(&h);
    int bad = ferror(in);
    fclose(in);
    return bad ? FAIL("%.300s: it cannot be read", f->path) : 0;
}

/* Takes the path over. */
static int add_file(source *s, char *path, size_t name_at, const struct stat *st,
                    char *err, size_t err_cap)
{
    if (s->n_files == s->cap_files) {
        size_t cap = s->cap_files ? 2 * s->cap_files : 16;
        file *more = realloc(s->files, cap * sizeof *more);
        if (!more) {
            free(path);
            return FAIL("out of memory for %zu files", cap);
        }
        s->files = more;
        s->cap_files = cap;
    }
    file *f = &s->files[s->n_files++];
    memset(f, 0, sizeof *f);
    f->path = path;
    f->name = path + name_at;
    f->size = (uint64_t)st->st_size;
    f->lines = ends_in(path, ".jsonl");
    if (!S_ISREG(st->st_mode))
        return FAIL("%.300s is not a regular file", path);
    if (!f->lines && !ends_in(path, ".txt"))
        return FAIL("%.300s: text is read from .txt and .jsonl files, by that name",
                    path);
    return look_at(f, err, err_cap);
}

static int add_folder(source *s, const char *path, size_t name_at, int depth, char *err,
                      size_t err_cap);

/* One name of a folder. */
static int add_entry(source *s, const char *folder, const char *name, size_t name_at,
                     int depth, char *err, size_t err_cap)
{
    struct stat link, st;
    char *path = join(folder, ends_in(folder, "/") ? "" : "/", name);
    if (!path)
        return FAIL("out of memory");
    if (lstat(path, &link) || stat(path, &st)) {
        FAIL("%.300s: %s", path, strerror(errno));
    } else if (!S_ISDIR(st.st_mode)) {
        return add_file(s, path, name_at, &st, err, err_cap);
    } else if (S_ISLNK(link.st_mode)) {
        FAIL("%.300s is a symbolic link to a folder: name that as a source", path);
    } else {
        int status = add_folder(s, path, name_at, depth + 1, err, err_cap);
        free(path);
        return status;
    }
    free(path);
    return -1;
}

static int add_folder(source *s, const char *path, size_t name_at, int depth, char *err,
                      size_t err_cap)
{
    int status = 0;
    struct dirent *e;
    if (depth > MAX_DEPTH)
        return FAIL("%.300s: more than %d folders in one another", path, MAX_DEPTH);
    DIR *d = opendir(path);
    if (!d)
        return FAIL("%.300s: %s", path, strerror(errno));
    while (status == 0 && (e = readdir(d)) != NULL)
        if (e->d_name[0] != '.')
            status = add_entry(s, path, e->d_name, name_at, depth, err, err_cap);
    closedir(d);
    return status;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const file *)a)->name, ((const file *)b)->name);
}

static int find_files(source *s, char *err, size_t err_cap)
{
    struct stat st;
    size_t n = strlen(s->path);
    if (stat(s->path, &st))
        return FAIL("%.300s: %s", s->path, strerror(errno));
    if (!S_ISDIR(st.st_mode)) {
        const char *slash = strrchr(s->path, '/');
        char *path = join(s->path, "", "");
        return path ? add_file(s, path, slash ? (size_t)(slash + 1 - s->path) : 0, &st,
                               err, err_cap)
                    : FAIL("out of memory");
    }
    if (add_folder(s, s->path, n + (ends_in(s->path, "/") ? 0 : 1), 0, err, err_cap))
        return -1;
    if (s->n_files == 0)
        return FAIL("%.300s: no .txt or .jsonl file in this folder", s->path);
    qsort(s->files, s->n_files, sizeof *s->files, by_name);
    return 0;
}

static int exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

/* "PATH" or "PATH:WEIGHT". */
static int read_source(source *s, const char *text, char *err, size_t err_cap)
{
    s->weight = 1;
    s->path = join(text, "", "");
    if (!s->path)
        return FAIL("out of memory");
    char *colon = strrchr(s->path, ':'), *end;
    if (!colon || strspn(colon + 1, "0123456789.eE+-") != strlen(colon + 1) ||
        !colon[1])
        return 0;
    int whole = exists(text);
    *colon = 0;
    if (whole && exists(s->path))
        return FAIL("%.300s: there is a file of this name, and one called %.200s: "
                    "rename one, or give a weight to both",
                    text, s->path);
    if (whole) {
        *colon = ':';
        return 0;
    }
    s->weight = strtod(colon + 1, &end);
    if (*end || !(s->weight > 0) || !isfinite(s->weight))
        return FAIL("%.300s: the weight '%.40s' is not a number above 0", text,
                    colon + 1);
    return 0;
}

/* --------------------------------------------------------------------------- classes */

static void find_marks(corpus *c)
{
    static const char *const texts[N_MARKS] = {
        "<|im_start|>", "<|im_end|>",   "<think>",         "</think>",
        "<tool_call>",  "</tool_call>", "<tool_response>", "</tool_response>"};
    for (int i = 0; i < N_MARKS; i++) {
        int32_t id[2];
        size_t n = 0;
        c->marks[i] = -1;
        if (qsae_tokenize(c->model, texts[i], strlen(texts[i]), QSAE_TOK_SPECIAL, id, 2,
                          &n, NULL) == QSAE_OK &&
            n == 1)
            c->marks[i] = id[0];
    }
}

static int mark_of(const corpus *c, int32_t id)
{
    for (int i = 0; i < N_MARKS; i++)
        if (c->marks[i] == id)
            return i;
    return -1;
}

static int only_breaks(const corpus *c, int32_t id)
{
    size_t n, i = 0;
    const char *s = qsae_token_text(c->model, id, &n);
    while (i < n && s[i] == '\n')
        i++;
    return n > 0 && i == n;
}

static corpus_class class_of_role(const char *role)
{
    return strcmp(role, "system") == 0      ? CORPUS_SYSTEM
           : strcmp(role, "user") == 0      ? CORPUS_USER
           : strcmp(role, "assistant") == 0 ? CORPUS_ASSISTANT
                                            : CORPUS_TEXT;
}

/* What stands where, read off the control tokens: a message cannot forge these. */
typedef struct scan {
    corpus_class turn; /* of what is said now */
    int header;        /* in the role, up to its line break */
    int beside;        /* behind a control token */
    int thought;       /* that was <think> or the like: several line breaks */
    char role[ROLE_CAP];
    size_t n;
} scan;

static void scan_header(const corpus *c, scan *s, int32_t id)
{
    size_t n;
    const char *text = qsae_token_text(c->model, id, &n);
    for (size_t i = 0; i < n && s->header; i++) {
        s->header = text[i] != '\n';
        if (s->header && s->n + 1 < ROLE_CAP)
            s->role[s->n++] = text[i];
    }
    s->role[s->n] = 0;
    if (!s->header)
        s->turn = class_of_role(s->role);
}

static void classify(const corpus *c, document *d)
{
    scan s;
    memset(&s, 0, sizeof s);
    for (size_t i = 0; i < d->n; i++) {
        int mark = mark_of(c, d->ids[i]);
        int breaks = mark < 0 && only_breaks(c, d->ids[i]);
        int inside = mark >= 0 || s.header || (s.beside && breaks);
        d->classes[i] = (uint8_t)(inside ? CORPUS_TEMPLATE : s.turn);
        for (size_t k = i; mark >= THINK && k > 0 && only_breaks(c, d->ids[k - 1]); k--)
            d->classes[k - 1] = CORPUS_TEMPLATE;
        s.beside = mark == IM_END || mark >= THINK || (s.thought && breaks);
        s.thought = mark >= THINK || (s.thought && breaks);
        if (mark == IM_START) {
            s.header = 1;
            s.n = 0;
        } else if (mark == IM_END) {
            s.header = 0;
            s.turn = CORPUS_TEXT;
        } else if (s.header) {
            scan_header(c, &s, d->ids[i]);
        }
    }
}

/* ------------------------------------------------------------------------- documents */

static int room_for_ids(document *d, size_t n, char *err, size_t err_cap)
{
    if (n <= d->cap)
        return 0;
    free(d->ids);
    free(d->classes);
    d->cap = 0;
    d->ids = n <= SIZE_MAX / sizeof *d->ids ? malloc(n * sizeof *d->ids) : NULL;
    d->classes = malloc(n);
    if (!d->ids || !d->classes)
        return FAIL("out of memory for %zu tokens", n);
    d->cap = n;
    return 0;
}

/* The ids are in place: no more than the vocabulary has, and their classes. */
static int take_ids(const corpus *c, document *d, char *err, size_t err_cap)
{
    for (size_t i = 0; i < d->n; i++)
        if (d->ids[i] < 0 || d->ids[i] >= c->info.vocab_size)
            return FAIL("the tokenizer gave token %d; the model has %d", (int)d->ids[i],
                        (int)c->info.vocab_size);
    classify(c, d);
    return 0;
}

/* A text seldom has more ids than bytes; where it has, a second pass is needed. */
static int take_text(const corpus *c, document *d, const char *text, size_t len,
                     char *err, size_t err_cap)
{
    qsae_error e;
    unsigned flags = c->special ? QSAE_TOK_SPECIAL : 0;
    qsae_status status = QSAE_E_LIMIT;
    d->n = len + 16;
    for (int pass = 0; pass < 2 && status == QSAE_E_LIMIT; pass++) {
        if (room_for_ids(d, d->n, err, err_cap))
            return -1;
        status = qsae_tokenize(c->model, text, len, flags, d->ids, d->cap, &d->n, &e);
    }
    if (status != QSAE_OK)
        return FAIL("%s", e.text);
    return take_ids(c, d, err, err_cap);
}

static int take_messages(const corpus *c, document *d, const chat *talk, char *err,
                         size_t err_cap)
{
    qsae_error e;
    qsae_status status = QSAE_E_LIMIT;
    for (size_t i = 0; i < talk->n; i++)
        if (talk->messages[i].role[0] == '(') /* chat.c: another */
            return FAIL(
                "message %zu: its role is none of system, user, assistant, tool", i);
    d->n = 256;
    for (int pass = 0; pass < 2 && status == QSAE_E_LIMIT; pass++) {
        if (room_for_ids(d, d->n, err, err_cap))
            return -1;
        status = qsae_chat_tokens(c->model, talk->messages, talk->n,
                                  QSAE_CHAT_NO_GENERATION, d->ids, d->cap, &d->n, &e);
    }
    if (status != QSAE_OK)
        return FAIL("%s", e.text);
    return take_ids(c, d, err, err_cap);
}

/* One line of JSON; takes the doc over. */
static int take_object(const corpus *c, document *d, json_doc *doc, char *err,
                       size_t err_cap)
{
    chat talk;
    const char *field = c->text_field ? c->text_field : "text";
    const json_value *root = json_root(doc), *text = json_get(doc, root, field);
    const json_value *messages = c->text_field ? NULL : json_get(doc, root, "messages");
    int status;
    if (messages && !text) {
        status = chat_take(&talk, doc, messages, json_get(doc, root, "tools"),
                           c->info.chat_format, err, err_cap);
        if (status == 0)
            status = take_messages(c, d, &talk, err, err_cap);
        chat_free(&talk);
        return status;
    }
    if (root->type != JSON_OBJECT)
        status = FAIL("an object is expected");
    else if (messages)
        status =
            FAIL("it has \"text\" and \"messages\"; --text-field text takes the first");
    else if (!text)
        status =
            FAIL(c->text_field ? "it has no \"%.60s\""
                               : "it has neither \"%.60s\" nor \"messages\" (another "
                                 "name: --text-field)",
                 field);
    else if (text->type != JSON_STRING)
        status = FAIL("its \"%.60s\" is not a string", field);
    else
        status = take_text(c, d, text->str, text->len, err, err_cap);
    json_free(doc);
    return status;
}

/* -------------------------------------------------------------------- from the files */

static int room_for_bytes(corpus *c, size_t n, char *err, size_t err_cap)
{
    size_t cap = c->cap_bytes ? c->cap_bytes : BLOCK;
    while (cap < n)
        cap *= 2; /* n is at most about CORPUS_MAX_LINE */
    if (c->bytes && cap == c->cap_bytes)
        return 0;
    char *more = realloc(c->bytes, cap);
    if (!more)
        return FAIL("out of memory for a document of %zu bytes", n);
    c->bytes = more;
    c->cap_bytes = cap;
    return 0;
}

/* The file open, at that byte. */
static int go_to(source *s, size_t number, uint64_t offset, char *err, size_t err_cap)
{
    const file *f = &s->files[number];
    struct stat st;
    if (s->f && s->open != number) {
        fclose(s->f);
        s->f = NULL;
    }
    if (!s->f) {
        s->f = fopen(f->path, "rb");
        s->open = number;
        s->f_at = 0;
        if (!s->f || fstat(fileno(s->f), &st))
            return FAIL("%.300s: %s", f->path, strerror(errno));
        if ((uint64_t)st.st_size != f->size)
            return FAIL("%.300s has changed: %llu bytes, %llu when it was looked at",
                        f->path, (unsigned long long)st.st_size,
                        (unsigned long long)f->size);
    }
    if (s->f_at != offset && fseeko(s->f, (off_t)offset, SEEK_SET))
        return FAIL("%.300s: %s", f->path, strerror(errno));
    s->f_at = offset;
    return 0;
}

static uint64_t count_lines(const char *s, size_t n)
{
    uint64_t lines = 0;
    for (const char *p = s; (p = memchr(p, '\n', n - (size_t)(p - s))) != NULL; p++)
        lines++;
    return lines;
}

/* err: line N of the text, when `line` lines are before it. */
static int check_utf8(const char *s, size_t n, uint64_t line, char *err, size_t err_cap)
{
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        int valid;
        size_t step = text_next(s + i, n - i, &cp, &valid);
        if (!valid)
            return FAIL("line %llu: byte 0x%02x is not UTF-8",
                        (unsigned long long)(line + count_lines(s, i) + 1),
                        (unsigned)(unsigned char)s[i]);
        i += step;
    }
    return 0;
}

/* A document of a .txt file from the cursor's place on. */
static int load_text(corpus *c, source *s, uint64_t offset, uint64_t line, char *err,
                     size_t err_cap)
{
    const file *f = &s->files[s->open];
    uint64_t left = f->size - offset;
    size_t n = left < BLOCK ? (size_t)left : BLOCK, mark = 0;
    if (room_for_bytes(c, n, err, err_cap))
        return -1;
    if (fread(c->bytes, 1, n, s->f) != n)
        return FAIL("it cannot be read, or became shorter");
    s->f_at += n;
    if (n < left) {
        size_t cut = n;
        while (cut > 0 && c->bytes[cut - 1] != '\n')
            cut--;
        n = cut > 0 ? cut : qsae_utf8_complete(c->bytes, n);
    }
    if (offset == 0 && n >= 3 && memcmp(c->bytes, "\xEF\xBB\xBF", 3) == 0)
        mark = 3; /* of byte order */
    s->doc.next = offset + n;
    s->doc.next_line = line + count_lines(c->bytes, n);
    if (check_utf8(c->bytes, n, line, err, err_cap))
        return -1;
    return take_text(c, &s->doc, c->bytes + mark, n - mark, err, err_cap);
}

/* The next line of a .jsonl file, without its break. */
static int load_line(corpus *c, source *s, uint64_t offset, uint64_t line, char *err,
                     size_t err_cap)
{
    size_t n = 0;
    int ch;
    while ((ch = getc(s->f)) != EOF && ch != '\n') {
        if (n == CORPUS_MAX_LINE)
            return FAIL("line %llu has more than %u bytes",
                        (unsigned long long)line + 1, CORPUS_MAX_LINE);
        if ((n == c->cap_bytes || !c->bytes) && room_for_bytes(c, n + 1, err, err_cap))
            return -1;
        c->bytes[n++] = (char)ch;
    }
    if (ferror(s->f))
        return FAIL("it cannot be read");
    s->doc.next = offset + n + (ch == '\n');
    s->doc.next_line = line + 1;
    s->f_at = s->doc.next;
    if (ch == EOF && s->doc.next != s->files[s->open].size)
        return FAIL("it became shorter");
    json_doc *doc = json_parse(n ? c->bytes : "", n, err, err_cap);
    if (!doc || take_object(c, &s->doc, doc, err, err_cap))
        return err_prefix(err, err_cap, "line %llu", (unsigned long long)line + 1);
    return 0;
}

static int load(corpus *c, size_t i, char *err, size_t err_cap)
{
    source *s = &c->sources[i];
    size_t number = (size_t)c->at.source[i].file;
    uint64_t offset = c->at.source[i].offset, line = c->at.source[i].line;
    if (go_to(s, number, offset, err, err_cap))
        return -1;
    if ((s->files[number].lines ? load_line : load_text)(c, s, offset, line, err,
                                                         err_cap))
        return err_prefix(err, err_cap, "%.200s", s->files[number].path);
    if (c->at.source[i].at > s->doc.n)
        return FAIL("%.300s: %llu of the tokens of a document were read before; it has "
                    "%zu",
                    s->files[number].path, (unsigned long long)c->at.source[i].at,
                    s->doc.n);
    s->loaded = 1;
    return 0;
}

/* ------------------------------------------------------------------------- sequences */

static int ended(const corpus *c, size_t i)
{
    return c->at.source[i].file == c->sources[i].n_files;
}

static void next_document(corpus *c, size_t i)
{
    source *s = &c->sources[i];
    c->at.source[i].offset = s->doc.next;
    c->at.source[i].line = s->doc.next_line;
    c->at.source[i].at = 0;
    s->loaded = 0;
}

/* Source i at a document with a sequence left: 1; or at its end: 0. */
static int ready(corpus *c, size_t i, char *err, size_t err_cap)
{
    source *s = &c->sources[i];
    while (!ended(c, i)) {
        if (c->at.source[i].offset == s->files[c->at.source[i].file].size) {
            c->at.source[i].file++;
            c->at.source[i].offset = c->at.source[i].line = c->at.source[i].at = 0;
            s->loaded = 0;
            continue;
        }
        if (!s->loaded && load(c, i, err, err_cap))
            return -1;
        if (s->doc.n - c->at.source[i].at >= 2)
            return 1;
        if (c->at.source[i].at < s->doc.n || s->doc.n == 0)
            c->at.dropped++;
        next_document(c, i);
    }
    return 0;
}

/* Whose turn it is; n_sources if all have ended. */
static size_t neediest(const corpus *c)
{
    size_t best = c->n_sources;
    for (size_t i = 0; i < c->n_sources; i++)
        if (!ended(c, i) &&
            (best == c->n_sources ||
             (double)c->at.source[i].tokens * c->sources[best].weight <
                 (double)c->at.source[best].tokens * c->sources[i].weight))
            best = i;
    return best;
}

static size_t give(corpus *c, size_t i, int32_t *ids, uint8_t *classes)
{
    const document *d = &c->sources[i].doc;
    size_t at = (size_t)c->at.source[i].at, n = d->n - at;
    if (n > c->context)
        n = c->context;
    memcpy(ids, d->ids + at, n * sizeof *ids);
    if (classes)
        memcpy(classes, d->classes + at, n);
    c->at.source[i].at += n;
    c->at.source[i].tokens += n;
    c->at.tokens += n;
    c->at.sequences++;
    return n;
}

static int next(corpus *c, int32_t *ids, uint8_t *classes, size_t cap, size_t *n,
                char *err, size_t err_cap)
{
    if (cap < c->context)
        return FAIL("room for %zu tokens, the context is %zu", cap, c->context);
    for (size_t i; (i = neediest(c)) < c->n_sources;) {
        int status = ready(c, i, err, err_cap);
        if (status < 0)
            return -1;
        if (status > 0) {
            *n = give(c, i, ids, classes);
            return 1;
        }
    }
    if (c->at.sequences == 0)
        return FAIL("%.200s%s: no text of at least 2 tokens (%llu shorter documents)",
                    c->sources[0].path, c->n_sources > 1 ? " and the others" : "",
                    (unsigned long long)c->at.dropped);
    return 0;
}

int corpus_next(corpus *c, int32_t *ids, uint8_t *classes, size_t cap, size_t *n,
                char *err, size_t err_cap)
{
    if (c->failed)
        return FAIL("%s", c->why);
    int status = next(c, ids, classes, cap, n, err, err_cap);
    if (status < 0) {
        c->failed = 1;
        snprintf(c->why, sizeof c->why, "%s", err);
    }
    return status;
}

/* ---------------------------------------------------------------------------- places */

void corpus_tell(const corpus *c, corpus_cursor *out)
{
    *out = c->at;
}

int corpus_seek(corpus *c, const corpus_cursor *to, char *err, size_t err_cap)
{
    for (size_t i = 0; i < CORPUS_MAX_SOURCES; i++) {
        uint64_t number = to->source[i].file;
        uint64_t n_files = i < c->n_sources ? c->sources[i].n_files : 0;
        uint64_t size = number < n_files ? c->sources[i].files[number].size : 0;
        if (number > n_files || to->source[i].offset > size)
            return FAIL(
                "a place in other text: source %zu has %llu files, place in file "
                "%llu, byte %llu of %llu",
                i, (unsigned long long)n_files, (unsigned long long)number,
                (unsigned long long)to->source[i].offset, (unsigned long long)size);
    }
    c->at = *to;
    c->failed = 0;
    for (size_t i = 0; i < c->n_sources; i++) {
        source *s = &c->sources[i];
        if (s->f)
            fclose(s->f); /* where it stands is not known after an error */
        s->f = NULL;
        s->loaded = 0;
    }
    return 0;
}

void corpus_rewind(corpus *c)
{
    corpus_cursor begin;
    memset(&begin, 0, sizeof begin);
    corpus_seek(c, &begin, NULL, 0); /* the beginning is always there */
}

/* ----------------------------------------------------------------------- the corpus */

static int begin(corpus *c, const corpus_options *o, char *err, size_t err_cap)
{
    if (c->info.n_tokens == 0)
        return FAIL("the model has no tokenizer: it can read no text");
    if (o->n_sources == 0 || o->n_sources > CORPUS_MAX_SOURCES)
        return FAIL("%zu sources of text; 1 to %d are possible", o->n_sources,
                    CORPUS_MAX_SOURCES);
    if (o->context < 2)
        return FAIL("a context of %zu tokens; at least 2 are needed", o->context);
    if (o->text_field && !(c->text_field = join(o->text_field, "", "")))
        return FAIL("out of memory");
    c->context = o->context;
    c->special = o->special;
    for (size_t i = 0; i < o->n_sources; i++) {
        c->n_sources++;
        if (read_source(&c->sources[i], o->sources[i], err, err_cap) ||
            find_files(&c->sources[i], err, err_cap))
            return -1;
    }
    find_marks(c);
    return 0;
}

corpus *corpus_open(const corpus_options *o, const qsae_model *model, char *err,
                    size_t err_cap)
{
    corpus *c = calloc(1, sizeof *c);
    if (!c) {
        FAIL("out of memory");
        return NULL;
    }
    c->model = model;
    qsae_model_get_info(model, &c->info);
    if (begin(c, o, err, err_cap)) {
        corpus_close(c);
        return NULL;
    }
    return c;
}

void corpus_close(corpus *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < c->n_sources; i++) {
        source *s = &c->sources[i];
        for (size_t k = 0; k < s->n_files; k++)
            free(s->files[k].path);
        if (s->f)
            fclose(s->f);
        free(s->files);
        free(s->path);
        free(s->doc.ids);
        free(s->doc.classes);
    }
    free(c->text_field);
    free(c->bytes);
    free(c);
}

uint64_t corpus_bytes(const corpus *c)
{
    uint64_t n = 0;
    for (size_t i = 0; i < c->n_sources; i++)
        for (size_t k = 0; k < c->sources[i].n_files; k++)
            n += c->sources[i].files[k].size;
    return n;
}

static void hash_number(qsae_hash *h, uint64_t v)
{
    unsigned char b[8];
    for (int i = 0; i < 8; i++)
        b[i] = (unsigned char)(v >> 8 * i);
    qsae_hash_add(h, b, sizeof b);
}

static void hash_text(qsae_hash *h, const char *s)
{
    hash_number(h, strlen(s));
    qsae_hash_add(h, s, strlen(s));
}

uint64_t corpus_fingerprint(const corpus *c)
{
    qsae_hash h;
    qsae_hash_begin(&h);
    hash_number(&h, c->n_sources);
    for (size_t i = 0; i < c->n_sources; i++) {
        const source *s = &c->sources[i];
        uint64_t weight;
        memcpy(&weight, &s->weight, sizeof weight);
        hash_number(&h, weight);
        hash_number(&h, s->n_files);
        for (size_t k = 0; k < s->n_files; k++) {
            hash_text(&h, s->files[k].name);
            hash_number(&h, s->files[k].size);
            hash_number(&h, s->files[k].beginning);
        }
    }
    hash_number(&h, c->context);
    hash_number(&h, (uint64_t)c->special);
    hash_text(&h, c->text_field ? c->text_field : "");
    hash_number(&h, (uint64_t)c->info.n_tokens);
    return qsae_hash_end(&h);
}
