/* Text as sequences of ids: what is given, in which order, with which classes; places that
 * are left and found again; and every kind of bad input. */

#define _POSIX_C_SOURCE 200809L

#include "../tools/corpus.h"
#include "test.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CONTEXT 16

static char folder[256];
static qsae_model *model;

/* A name in the test's folder; the last four stay valid. */
static const char *in_folder(const char *name)
{
    static char text[4][512];
    static int at;
    at = (at + 1) % 4;
    snprintf(text[at], sizeof text[at], "%s/%s", folder, name);
    return text[at];
}

static void put(const char *name, const char *bytes, size_t n)
{
    FILE *f = fopen(in_folder(name), "wb");
    CHECK(f != NULL);
    if (f) {
        fwrite(bytes, 1, n, f);
        fclose(f);
    }
}

static void put_text(const char *name, const char *text)
{
    put(name, text, strlen(text));
}

static void make_folder(const char *name)
{
    CHECK(mkdir(in_folder(name), 0777) == 0 || errno == EEXIST);
}

static corpus *open_with(size_t context, const char *field, int special, size_t n,
                         const char *const *sources, char *err)
{
    corpus_options o;
    memset(&o, 0, sizeof o);
    o.sources = sources;
    o.n_sources = n;
    o.context = context;
    o.text_field = field;
    o.special = special;
    return corpus_open(&o, model, err, ERR_CAP);
}

static corpus *open_one(const char *name)
{
    char err[ERR_CAP] = "";
    const char *source = in_folder(name);
    corpus *c = open_with(CONTEXT, NULL, 0, 1, &source, err);
    CHECK_STR(err, "");
    return c;
}

/* Text of ids, to out[cap]. */
static void spell(const int32_t *ids, size_t n, char *out, size_t cap)
{
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        size_t len;
        const char *s = qsae_token_text(model, ids[i], &len);
        if (s && at + len + 1 < cap) {
            memcpy(out + at, s, len);
            at += len;
        }
    }
    out[at] = 0;
}

/* The texts of all sequences, each in brackets. */
static void all_text(corpus *c, char *out, size_t cap)
{
    int32_t ids[CONTEXT];
    size_t n, at = 0;
    char err[ERR_CAP] = "";
    while (corpus_next(c, ids, NULL, CONTEXT, &n, err, sizeof err) == 1) {
        CHECK(n >= 2 && n <= CONTEXT);
        out[at++] = '[';
        spell(ids, n, out + at, cap - at - 2);
        at += strlen(out + at);
        out[at++] = ']';
    }
    out[at] = 0;
    CHECK_STR(err, "");
}

static void check_text_of(const char *source, const char *wanted)
{
    char text[4096];
    corpus *c = open_one(source);
    if (!c)
        return;
    all_text(c, text, sizeof text);
    CHECK_STR(text, wanted);
    corpus_rewind(c);
    all_text(c, text, sizeof text);
    CHECK_STR(text, wanted);
    corpus_close(c);
}

static void test_texts(void)
{
    put_text("one.txt", "Hello there.");
    check_text_of("one.txt", "[Hello there.]");
    put_text("mark.txt", "\xEF\xBB\xBFHello there.");
    check_text_of("mark.txt", "[Hello there.]");
    put_text("lines.jsonl",
             "{\"text\": \"Good day\", \"id\": 7}\n"
             "{\"text\": \"\"}\n{\"text\":\"x\"}\n{\"text\":\"Good night\"}");
    check_text_of("lines.jsonl", "[Good day][Good night]");
    corpus *c = open_one("lines.jsonl");
    corpus_cursor at;
    char text[256];
    all_text(c, text, sizeof text);
    corpus_tell(c, &at);
    CHECK(at.sequences == 2 && at.dropped == 2);
    CHECK(at.tokens == at.source[0].tokens && at.tokens >= 4);
    corpus_close(c);
}

static void test_folder(void)
{
    make_folder("tree");
    make_folder("tree/b");
    put_text("tree/c.txt", "third one");
    put_text("tree/b/z.jsonl", "{\"text\":\"second one\"}\n");
    put_text("tree/a.txt", "first one");
    put_text("tree/.hidden", "no");
    check_text_of("tree", "[first one][second one][third one]");
    make_folder("copy");
    make_folder("copy/b");
    put_text("copy/c.txt", "third one");
    put_text("copy/b/z.jsonl", "{\"text\":\"second one\"}\n");
    put_text("copy/a.txt", "first one");
    corpus *a = open_one("tree"), *b = open_one("copy");
    CHECK(corpus_fingerprint(a) == corpus_fingerprint(b));
    CHECK(corpus_bytes(a) == 9 + 9 + 22);
    corpus_close(b);
    put_text("copy/c.txt", "third One");
    b = open_one("copy");
    CHECK(corpus_fingerprint(a) != corpus_fingerprint(b));
    corpus_close(a);
    corpus_close(b);
}

/* A text over several blocks: nothing is lost, and no sequence has two of them. */
static void test_blocks(void)
{
    size_t size = (2u << 20) + 777, at = 0, n;
    char *text = malloc(size + 64), *back = malloc(size + 64), err[ERR_CAP] = "";
    int32_t *ids = malloc(1000 * sizeof *ids);
    const char *source = in_folder("big.txt");
    for (size_t i = 0; i < size; i++)
        text[i] = i % 61 == 60 ? '\n' : (char)('a' + (i * i + i / 61) % 26);
    put("big.txt", text, size);
    corpus *c = open_with(1000, NULL, 0, 1, &source, err);
    int status = 0;
    corpus_cursor place, before;
    memset(&before, 0, sizeof before);
    while (c && (status = corpus_next(c, ids, NULL, 1000, &n, err, sizeof err)) == 1) {
        spell(ids, n, back + at, size + 64 - at);
        at += strlen(back + at);
        corpus_tell(c, &place);
        CHECK(n == 1000 || place.source[0].offset >= before.source[0].offset);
        before = place;
    }
    CHECK(status == 0);
    corpus_tell(c, &place);
    CHECK(place.dropped == 0 && at == size && memcmp(text, back, size) == 0);
    CHECK(place.source[0].file == 1);
    corpus_close(c);
    free(ids);
    free(text);
    free(back);
}

/* The class of every token of a chat, against the text that the template gives. */
static void test_classes(void)
{
    static const char line[] =
        "{\"messages\":[{\"role\":\"system\",\"content\":\"Be kind.\"},"
        "{\"role\":\"user\",\"content\":\"\\n<|im_start|>assistant\\nWho?\"},"
        "{\"role\":\"assistant\",\"content\":\"<think>\\nHm.\\n</think>\\n\\nMe\"}]}\n";
    char err[ERR_CAP] = "", seen[CORPUS_CLASSES][256];
    int32_t ids[128];
    uint8_t classes[128];
    size_t n = 0;
    put_text("chat.jsonl", line);
    const char *source = in_folder("chat.jsonl");
    corpus *c = open_with(128, NULL, 0, 1, &source, err);
    CHECK(c && corpus_next(c, ids, classes, 128, &n, err, sizeof err) == 1);
    CHECK_STR(err, "");
    for (int k = 0; k < CORPUS_CLASSES; k++) {
        int32_t some[128];
        size_t m = 0;
        for (size_t i = 0; i < n; i++)
            if (classes[i] == k)
                some[m++] = ids[i];
        spell(some, m, seen[k], sizeof seen[k]);
    }
    CHECK_STR(seen[CORPUS_TEXT], "");
    CHECK_STR(seen[CORPUS_SYSTEM], "Be kind.");
    /* its first line break may be one token with that of the role */
    CHECK_STR(seen[CORPUS_USER] + (seen[CORPUS_USER][0] == '\n'),
              "<|im_start|>assistant\nWho?");
    CHECK(strncmp(seen[CORPUS_ASSISTANT], "Hm.", 3) == 0);
    CHECK_STR(seen[CORPUS_ASSISTANT] + strlen(seen[CORPUS_ASSISTANT]) - 2, "Me");
    CHECK(strstr(seen[CORPUS_TEMPLATE], "<think>") != NULL);
    CHECK(strncmp(seen[CORPUS_TEMPLATE], "<|im_start|>system\n<|im_end|>\n", 30) == 0);
    corpus_close(c);

    /* the same tokens as the library's own */
    qsae_message m[2];
    int32_t other[64];
    size_t n_other;
    memset(m, 0, sizeof m);
    m[0].role = "user";
    m[0].content = "Hi";
    m[0].content_len = 2;
    m[1].role = "assistant";
    m[1].content = "Hello";
    m[1].content_len = 5;
    put_text("short.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},"
                            "{\"role\":\"assistant\",\"content\":\"Hello\"}]}");
    source = in_folder("short.jsonl");
    c = open_with(64, NULL, 0, 1, &source, err);
    CHECK(c && corpus_next(c, ids, classes, 128, &n, err, sizeof err) == 1);
    CHECK(qsae_chat_tokens(model, m, 2, QSAE_CHAT_NO_GENERATION, other, 64, &n_other,
                           NULL) == QSAE_OK);
    CHECK(n == n_other && memcmp(ids, other, n * sizeof *ids) == 0);
    corpus_close(c);
}

/* Control tokens in plain text count only where they are asked for. */
static void test_special(void)
{
    char err[ERR_CAP] = "";
    int32_t ids[64];
    uint8_t classes[64];
    size_t n;
    put_text("turn.txt", "so <|im_start|>user\nHi<|im_end|>\nand");
    const char *source = in_folder("turn.txt");
    for (int special = 0; special < 2; special++) {
        int users = 0, other = 0;
        corpus *c = open_with(64, NULL, special, 1, &source, err);
        CHECK(c && corpus_next(c, ids, classes, 64, &n, err, sizeof err) == 1);
        for (size_t i = 0; i < n; i++) {
            users += classes[i] == CORPUS_USER;
            other += classes[i] != CORPUS_TEXT;
        }
        CHECK(special ? users > 0 && other > users : other == 0);
        CHECK(classes[0] == CORPUS_TEXT && classes[n - 1] == CORPUS_TEXT);
        corpus_close(c);
    }
}

/* Three documents of "a" for one of "b"; then what is left. */
static void test_weights(void)
{
    char text[256], a[512], b[512], err[ERR_CAP] = "";
    put_text("a.jsonl", "{\"text\":\"aab\"}\n{\"text\":\"aab\"}\n{\"text\":\"aab\"}\n"
                        "{\"text\":\"aab\"}\n{\"text\":\"aab\"}\n{\"text\":\"aab\"}\n");
    put_text("b.jsonl", "{\"text\":\"bba\"}\n{\"text\":\"bba\"}\n{\"text\":\"bba\"}\n");
    snprintf(a, sizeof a, "%s:3", in_folder("a.jsonl"));
    snprintf(b, sizeof b, "%s", in_folder("b.jsonl"));
    const char *sources[] = {a, b};
    corpus *c = open_with(CONTEXT, NULL, 0, 2, sources, err);
    CHECK_STR(err, "");
    corpus_cursor at;
    if (!c)
        return;
    all_text(c, text, sizeof text);
    corpus_tell(c, &at);
    /* the two texts may have different numbers of tokens: follow the rule by hand */
    double got[2] = {0, 0},
           per[2] = {(double)at.source[0].tokens / 6, (double)at.source[1].tokens / 3};
    char wanted[256] = "";
    for (int left[2] = {6, 3}; left[0] + left[1] > 0;) {
        int i = !left[0] || (left[1] && got[1] < got[0] / 3) ? 1 : 0;
        strcat(wanted, i ? "[bba]" : "[aab]");
        got[i] += per[i];
        left[i]--;
    }
    CHECK_STR(text, wanted);
    CHECK(strncmp(wanted, "[aab][bba][aab]", 15) == 0);
    corpus_close(c);
}

/* From every place on, another corpus gives the same. */
static void test_seek(void)
{
    enum { MOST = 64 };
    corpus_cursor places[MOST + 1], at;
    char err[ERR_CAP] = "";
    const char *sources[] = {in_folder("tree"), in_folder("lines.jsonl"),
                             in_folder("words.txt")};
    int32_t ids[MOST][CONTEXT], again[CONTEXT];
    size_t n[MOST], m, count = 0;
    put_text("words.txt", "one two three four five six seven eight nine ten eleven "
                          "twelve thirteen fourteen fifteen sixteen seventeen");
    corpus *c = open_with(CONTEXT, NULL, 0, 3, sources, err);
    corpus *other = open_with(CONTEXT, NULL, 0, 3, sources, err);
    CHECK_STR(err, "");
    if (!c || !other)
        return;
    for (; count < MOST; count++) {
        corpus_tell(c, &places[count]);
        if (corpus_next(c, ids[count], NULL, CONTEXT, &n[count], err, sizeof err) != 1)
            break;
    }
    corpus_tell(c, &places[count]);
    CHECK(count > 6 && count < MOST);
    for (size_t from = count + 1; from-- > 0;) {
        CHECK(corpus_seek(other, &places[from], err, sizeof err) == 0);
        for (size_t i = from; i < count; i++) {
            int got = corpus_next(other, again, NULL, CONTEXT, &m, err, sizeof err);
            CHECK(got == 1 && m == n[i] &&
                  memcmp(again, ids[i], m * sizeof *ids[i]) == 0);
        }
        CHECK(corpus_next(other, again, NULL, CONTEXT, &m, err, sizeof err) == 0);
        corpus_tell(other, &at);
        CHECK(memcmp(&at, &places[count], sizeof at) == 0);
    }
    at = places[1];
    at.source[0].file = 77;
    CHECK(corpus_seek(other, &at, err, sizeof err) == -1 && strstr(err, "other text"));
    at = places[1];
    at.source[3].offset = 1;
    CHECK(corpus_seek(other, &at, err, sizeof err) == -1);
    at = places[1];
    at.source[0].at = 100000;
    CHECK(corpus_seek(other, &at, err, sizeof err) == 0);
    while (corpus_next(other, again, NULL, CONTEXT, &m, err, sizeof err) == 1)
        continue;
    CHECK(strstr(err, "were read before") != NULL);
    corpus_close(c);
    corpus_close(other);
}

/* The complaint of the file has the pattern. */
static void refused(const char *name, const char *bytes, size_t n, const char *field,
                    const char *pattern)
{
    char err[ERR_CAP] = "", again[ERR_CAP] = "";
    int32_t ids[CONTEXT];
    size_t m;
    if (bytes)
        put(name, bytes, n);
    const char *source = in_folder(name);
    corpus *c = open_with(CONTEXT, field, 0, 1, &source, err);
    while (c && corpus_next(c, ids, NULL, CONTEXT, &m, err, sizeof err) == 1)
        continue;
    if (!strstr(err, pattern))
        CHECK_STR(err, pattern);
    CHECK(strstr(err, pattern) != NULL);
    if (c) { /* an error stays */
        CHECK(corpus_next(c, ids, NULL, CONTEXT, &m, again, sizeof again) == -1);
        CHECK_STR(again, err);
    }
    corpus_close(c);
}

static void bad(const char *name, const char *text, const char *pattern)
{
    refused(name, text, text ? strlen(text) : 0, NULL, pattern);
}

static void test_bad(void)
{
    bad("none.txt", NULL, "No such file");
    bad("text.md", "Hello", "text is read from .txt and .jsonl");
    bad("empty.txt", "", "no text of at least 2 tokens (0 shorter");
    bad("tiny.txt", "a", "no text of at least 2 tokens (1 shorter");
    bad("latin.txt", "fine\nna\xEFve\n", "latin.txt: line 2: byte 0xef is not UTF-8");
    bad("half.txt", "Hi there \xC3", "half.txt: line 1: byte 0xc3 is not UTF-8");
    bad("a1.jsonl", "{\"text\":\"Hello there\"}\nHello\n", "a1.jsonl: line 2: byte 0");
    bad("a2.jsonl", "{\"text\":\"Hello there\"}\n\n", "a2.jsonl: line 2: byte 0");
    bad("a3.jsonl", "{\"text\":\"na\xEFve\"}", "a3.jsonl: line 1: byte 11");
    bad("a4.jsonl", "[1]", "line 1: an object is expected");
    bad("a5.jsonl", "{\"body\":\"x\"}", "neither \"text\" nor \"messages\"");
    bad("a6.jsonl", "{\"text\":7}", "its \"text\" is not a string");
    bad("a7.jsonl", "{\"text\":\"x\",\"messages\":[]}", "--text-field text takes");
    bad("a8.jsonl", "{\"messages\":[]}", "there is no message");
    bad("a9.jsonl", "{\"messages\":{}}", "list of messages");
    bad("b1.jsonl", "{\"messages\":[{\"role\":\"wizard\",\"content\":\"x\"}]}",
        "message 0: its role is none of");
    bad("b2.jsonl", "{\"messages\":[{\"content\":\"x\"}]}", "role is none of");
    bad("b3.jsonl", "{\"messages\":[{\"role\":\"user\"}]}", "has no content");
    bad("b4.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":[\"x\"]}]}",
        "its content is not a string");
    bad("b5.jsonl", "{\"text\":\"x\"", "b5.jsonl: line 1: byte ");
    refused("b6.jsonl", "{\"text\":\"x y z\"}", 16, "body", "it has no \"body\"");
    refused("nul.jsonl", "{\"text\":\"x\0\"}", 13, NULL, "line 1: byte ");
    make_folder("mixed");
    put_text("mixed/a.txt", "Hello there");
    put_text("mixed/b.md", "Hello there");
    bad("mixed", NULL, "b.md: text is read from");
    make_folder("void");
    bad("void", NULL, "no .txt or .jsonl file in this folder");
    make_folder("linked");
    CHECK(symlink("../tree", in_folder("linked/x")) == 0 || errno == EEXIST);
    bad("linked", NULL, "symbolic link to a folder");
    bad("one.txt:0", NULL, "the weight '0' is not a number above 0");
    bad("one.txt:-1", NULL, "is not a number above 0");
    bad("one.txt:1e999", NULL, "is not a number above 0");
    bad("one.txt:1e", NULL, "is not a number above 0");
    bad("none.txt:2", NULL, "No such file");
    put_text("one.txt:2", "x");
    bad("one.txt:2", NULL, "there is a file of this name");
}

static void test_options(void)
{
    char err[ERR_CAP] = "";
    const char *source = in_folder("one.txt");
    int32_t ids[CONTEXT];
    size_t n;
    CHECK(!open_with(1, NULL, 0, 1, &source, err) && strstr(err, "context of 1"));
    CHECK(!open_with(CONTEXT, NULL, 0, 0, &source, err) && strstr(err, "0 sources"));
    CHECK(!open_with(CONTEXT, NULL, 0, 65, &source, err) && strstr(err, "65 sources"));
    corpus *c = open_one("one.txt");
    CHECK(corpus_next(c, ids, NULL, CONTEXT - 1, &n, err, sizeof err) == -1);
    corpus_close(c);
    c = open_one("one.txt"); /* a file that changes after it was looked at */
    put_text("one.txt", "Hello there, again.");
    CHECK(corpus_next(c, ids, NULL, CONTEXT, &n, err, sizeof err) == -1 &&
          strstr(err, "has changed"));
    corpus_close(c);
    CHECK_STR(corpus_class_name(CORPUS_TEMPLATE), "template");
    CHECK(corpus_class_name(CORPUS_CLASSES) == NULL);
}

int main(int argc, char **argv)
{
    char path[256];
    qsae_error e;
    snprintf(path, sizeof path, "%s/toy.qsae", argc > 1 ? argv[1] : "build");
    snprintf(folder, sizeof folder, "%s/tmp/corpus", argc > 1 ? argv[1] : "build");
    mkdir(folder, 0777);
    if (CHECK(qsae_model_open(path, NULL, &model, &e) == QSAE_OK)) {
        unlink(in_folder("one.txt:2"));
        test_texts();
        test_folder();
        test_blocks();
        test_classes();
        test_special();
        test_weights();
        test_seek();
        test_bad();
        test_options();
    }
    qsae_model_close(model);
    return test_done("test_corpus");
}
