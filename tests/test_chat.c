/* The chat format: goldens of Qwen3's template (tests/golden/chat.jsonl, by tests/reference/make_chat_golden.py), the
 * library's own promises, and files that hold only a tokenizer. */

#include "test.h"
#include "tiny.h"

#include "../tools/chat.h"
#include "../tools/pytext.h"

static qsae_model *model; /* of the toy, whose tokenizer has Qwen3's added tokens */
static qsae_error err;

#define FAILS(call, code, says)                                                                   \
    do {                                                                                          \
        memset(&err, 0, sizeof err);                                                              \
        CHECK((call) == (code));                                                                  \
        if (!CHECK(strstr(err.text, says) != NULL)) fprintf(stderr, "    %s\n", err.text);        \
    } while (0)

static char *read_file(const char *path, size_t *len)
{
    FILE *f = fopen(path, "rb");
    char *text = malloc(1 << 22);
    *len = f && text ? fread(text, 1, (1 << 22) - 1, f) : 0;
    if (f) fclose(f);
    if (text) text[*len] = 0;
    return text;
}

/* ---- goldens ---- */

static int flag_of(const json_doc *d, const char *key)
{
    int64_t v = -1;
    CHECK(json_int(json_get(d, json_root(d), key), &v));
    return v == 1;
}

/* Rendered into a buffer of exactly the right size, and into ones too small. */
static void check_text(const chat *c, unsigned flags, const char *want, size_t n)
{
    size_t len = 7;
    char *text = tiny_alloc(n + 1);
    text[n] = 'x';
    if (!CHECK(qsae_chat_render(model, c->messages, c->n, flags, text, n, &len, &err) == QSAE_OK && len == n &&
               memcmp(text, want, n) == 0 && text[n] == 'x'))
        fprintf(stderr, "    is:     %.*s\n    wanted: %s\n", (int)len, text, want);
    for (size_t cap = 0; cap < n; cap += 1 + n / 5) {
        memset(text, 'x', n);
        FAILS(qsae_chat_render(model, c->messages, c->n, flags, text, cap, &len, &err), QSAE_E_LIMIT, "the buffer holds");
        CHECK(len == n && memcmp(text, want, cap) == 0 && text[cap] == 'x');
    }
    free(text);
}

/* With QSAE_CHAT_SPECIAL the ids are those of the rendered text; without it no id of an added token is there that
 * the template did not write. */
static void check_ids(const chat *c, unsigned flags, const char *text, size_t len)
{
    enum { CAP = 1 << 13 };
    static int32_t ids[CAP], want[CAP];
    size_t n = 0, n_want = 0, part;
    CHECK(qsae_tokenize(model, text, len, QSAE_TOK_SPECIAL, want, CAP, &n_want, &err) == QSAE_OK);
    CHECK(qsae_chat_tokens(model, c->messages, c->n, flags | QSAE_CHAT_SPECIAL, ids, CAP, &n, &err) == QSAE_OK);
    CHECK(n == n_want && memcmp(ids, want, n * sizeof *ids) == 0);
    CHECK(qsae_chat_tokens(model, c->messages, c->n, flags, ids, CAP, &n, &err) == QSAE_OK);
    if (n == 0) return; /* nothing but other roles */
    FAILS(qsae_chat_tokens(model, c->messages, c->n, flags, want, n - 1, &part, &err), QSAE_E_LIMIT, "the buffer holds");
    CHECK(part == n && memcmp(ids, want, (n - 1) * sizeof *ids) == 0);
}

static void check_golden(const char *line, size_t len, size_t number)
{
    char why[512] = "";
    chat c;
    json_doc *d = json_parse(line, len, why, sizeof why);
    if (!CHECK(d != NULL)) return;
    const json_value *in = json_get(d, json_root(d), "in"), *out = json_get(d, json_root(d), "out");
    unsigned flags = QSAE_CHAT_ANY_ROLE | (flag_of(d, "think") ? 0 : QSAE_CHAT_NO_THINK) |
                     (flag_of(d, "prompt") ? 0 : QSAE_CHAT_NO_GENERATION);
    int32_t format = flag_of(d, "later") ? QSAE_CHAT_QWEN3_LATER : QSAE_CHAT_QWEN3;
    int status = chat_read(&c, in->str, in->len, format, why, sizeof why);
    if (!CHECK((status == 0) == (out->type == JSON_STRING)))
        fprintf(stderr, "    line %zu of the goldens: %s\n", number, why);
    else if (status == 0) {
        check_text(&c, flags, out->str, out->len);
        check_ids(&c, flags, out->str, out->len);
    } else {
        CHECK(why[0] != 0);
    }
    chat_free(&c);
    json_free(d);
}

static void check_goldens(void)
{
    size_t len, number = 0;
    char *text = read_file("tests/golden/chat.jsonl", &len);
    for (char *at = text, *end; at && (end = strchr(at, '\n')) != NULL; at = end + 1)
        check_golden(at, (size_t)(end - at), ++number);
    CHECK(number > 300);
    free(text);
}

/* ---- what a message cannot do ---- */

static int32_t one_id(const char *text)
{
    int32_t ids[16] = {-1};
    size_t n = 0;
    CHECK(qsae_tokenize(model, text, strlen(text), QSAE_TOK_SPECIAL, ids, 16, &n, &err) == QSAE_OK && n == 1);
    return ids[0];
}

static qsae_message message(const char *role, const char *content)
{
    qsae_message m;
    memset(&m, 0, sizeof m);
    m.role = role;
    m.content = content;
    m.content_len = strlen(content);
    return m;
}

static void check_forgery(void)
{
    static const char *const control[] = {"<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>",
                                          "</tool_call>", "<tool_response>", "</tool_response>", "<|endoftext|>"};
    int32_t ids[512];
    size_t n;
    for (size_t i = 0; i < sizeof control / sizeof control[0]; i++) {
        int32_t id = one_id(control[i]);
        size_t honest = 0, found = 0;
        qsae_tool_call call = {control[i], strlen(control[i]), control[i], strlen(control[i])};
        for (int forged = 0; forged < 2; forged++) {
            const char *text = forged ? control[i] : "x";
            qsae_message m[4] = {message("system", text), message("user", text), message("assistant", text),
                                 message("tool", text)};
            m[0].tools = text;
            m[0].tools_len = strlen(text);
            m[2].reasoning = text;
            m[2].reasoning_len = strlen(text);
            m[2].tool_calls = &call;
            m[2].n_tool_calls = 1;
            if (!forged) call.name = call.arguments = "x", call.name_len = call.arguments_len = 1;
            else call.name = call.arguments = text, call.name_len = call.arguments_len = strlen(text);
            CHECK(qsae_chat_tokens(model, m, 4, 0, ids, 512, &n, &err) == QSAE_OK);
            for (size_t k = 0; k < n; k++) *(forged ? &found : &honest) += ids[k] == id;
        }
        CHECK(found == honest);
    }
    qsae_message m = message("user", "<|im_end|>");
    size_t before = 0, after = 0;
    CHECK(qsae_chat_tokens(model, &m, 1, 0, ids, 512, &n, &err) == QSAE_OK);
    for (size_t k = 0; k < n; k++) before += ids[k] == one_id("<|im_end|>");
    CHECK(qsae_chat_tokens(model, &m, 1, QSAE_CHAT_SPECIAL, ids, 512, &n, &err) == QSAE_OK);
    for (size_t k = 0; k < n; k++) after += ids[k] == one_id("<|im_end|>");
    CHECK(before == 1 && after == 2);
}

/* ---- arguments ---- */

static qsae_status render(const qsae_message *m, size_t n, unsigned flags)
{
    char text[4096];
    size_t len;
    return qsae_chat_render(model, m, n, flags, text, sizeof text, &len, &err);
}

static void check_arguments(void)
{
    qsae_message m[2] = {message("user", "a"), message("assistant", "b")};
    qsae_tool_call call = {NULL, 1, "{}", 2};
    size_t len;
    FAILS(render(m, 0, 0), QSAE_E_ARG, "no message");
    FAILS(render(m, 2, 16), QSAE_E_ARG, "flags 0x10");
    FAILS(qsae_chat_render(NULL, m, 2, 0, NULL, 0, &len, &err), QSAE_E_ARG, "NULL");
    FAILS(qsae_chat_render(model, NULL, 2, 0, NULL, 0, &len, &err), QSAE_E_ARG, "NULL");
    FAILS(qsae_chat_render(model, m, 2, 0, NULL, 9, &len, &err), QSAE_E_ARG, "NULL");
    FAILS(qsae_chat_render(model, m, 2, 0, NULL, 0, NULL, &err), QSAE_E_ARG, "NULL");
    m[1].tools = "{}";
    m[1].tools_len = 2;
    FAILS(render(m, 2, 0), QSAE_E_ARG, "message 1: only the first can have tools");
    m[1] = message("user", "b");
    m[1].reasoning = "";
    FAILS(render(m, 2, 0), QSAE_E_ARG, "message 1: only an assistant");
    m[1] = message("tool", "b");
    m[1].tool_calls = &call;
    m[1].n_tool_calls = 1;
    FAILS(render(m, 2, 0), QSAE_E_ARG, "message 1: only an assistant");
    m[1].role = "assistant";
    FAILS(render(m, 2, 0), QSAE_E_ARG, "message 1, tool call 0: NULL has a length");
    m[1] = message("developer", "b");
    FAILS(render(m, 2, 0), QSAE_E_ARG, "message 1: role developer is not");
    CHECK(render(m, 2, QSAE_CHAT_ANY_ROLE) == QSAE_OK);
    m[1].role = NULL;
    FAILS(render(m, 2, QSAE_CHAT_ANY_ROLE), QSAE_E_ARG, "role NULL");
    m[1] = message("user", "b");
    m[1].content = NULL;
    FAILS(render(m, 2, 0), QSAE_E_ARG, "message 1: NULL has a length");
    m[1].content_len = 0;
    CHECK(render(m, 2, 0) == QSAE_OK);
}

/* A bad run of bytes of a message stays within it. */
static void check_bytes(void)
{
    int32_t ids[64], last = one_id("<|im_end|>");
    size_t n;
    qsae_message m = message("user", "\xE4\xBD");
    CHECK(qsae_chat_tokens(model, &m, 1, QSAE_CHAT_NO_GENERATION, ids, 64, &n, &err) == QSAE_OK);
    CHECK(n > 3 && ids[n - 2] == last);
}

/* ---- streaming: at every split of a text its complete part is a prefix, and the parts join to the whole ---- */

static void check_streaming(void)
{
    static const char text[] = "a\xC3\xA4\xE4\xBD\xA0\xF0\x9F\x98\x80\xE2\x80\x8D\xEF\xBF\xBD z\xCC\x88";
    size_t n = sizeof text - 1;
    for (size_t a = 0; a <= n; a++)
        for (size_t b = a; b <= n; b++) {
            char held[64];
            size_t have = 0, done = 0, cuts[4] = {0, a, b, n};
            for (int k = 0; k < 3; k++) {
                memcpy(held + have, text + cuts[k], cuts[k + 1] - cuts[k]);
                have += cuts[k + 1] - cuts[k];
                size_t whole = qsae_utf8_complete(held, have);
                CHECK(whole <= have && have - whole <= 3 && memcmp(held, text + done, whole) == 0);
                CHECK(done + whole == n || ((unsigned char)text[done + whole] & 0xC0) != 0x80);
                memmove(held, held + whole, have - whole);
                have -= whole;
                done += whole;
            }
            CHECK(done == n && have == 0);
        }
}

/* ---- a file of a tokenizer alone ---- */

/* The toy's tokenizer, and the record that goes with it. */
static uint8_t *toy;
static qsae_model_record record;

/* A file with this record and the roles given of the toy. */
static uint8_t *small_file(const qsae_model_record *r, const uint32_t *roles, uint32_t n, size_t *size)
{
    qsae_tensor_record list[4];
    const uint8_t *data[4];
    uint8_t head[64 + 256];
    memcpy(head, toy, sizeof head);
    memcpy(head + 64, r, sizeof *r);
    for (uint32_t i = 0; i < n; i++) {
        list[i] = *tiny_find(toy, 0, roles[i]);
        data[i] = toy + list[i].offset;
    }
    return tiny_repack(head, list, data, n, size);
}

/* The image of the model that was opened last: it is borrowed. */
static uint8_t *opened;

static qsae_status open_small(const qsae_model_record *r, const uint32_t *roles, uint32_t n, qsae_model **m)
{
    size_t size;
    uint8_t *image = small_file(r, roles, n, &size);
    qsae_open_options o;
    memset(&o, 0, sizeof o);
    o.verify = 1;
    qsae_status s = qsae_model_open_memory(image, size, &o, m, &err);
    free(s ? image : opened);
    if (!s) opened = image;
    return s;
}

static const uint32_t both[] = {QSAE_ROLE_TOKENIZER, QSAE_ROLE_META}, meta[] = {QSAE_ROLE_META},
                      weights[] = {QSAE_ROLE_FINAL_NORM, QSAE_ROLE_TOKENIZER};

static void check_small(void)
{
    qsae_model *m = NULL;
    qsae_model_info info;
    qsae_ctx *ctx = NULL;
    int32_t ids[64], want[64];
    size_t n, n_want;
    qsae_message hello = message("user", "Hello <think>");
    if (!CHECK(open_small(&record, both, 2, &m) == QSAE_OK)) {
        fprintf(stderr, "    %s\n", err.text);
        return;
    }
    qsae_model_get_info(m, &info);
    CHECK(info.n_layers == 0 && info.d_model == 0 && info.vocab_size == info.n_tokens && info.n_tokens > 1000);
    CHECK_STR(info.weight_type, "none");
    CHECK(qsae_site_width(m, QSAE_RESID_PRE) == 0);
    CHECK(qsae_ctx_size(m, NULL) == 0);
    FAILS(qsae_ctx_create(m, NULL, &ctx, &err), QSAE_E_STATE, "only a tokenizer, no weights");
    CHECK(qsae_chat_tokens(m, &hello, 1, 0, ids, 64, &n, &err) == QSAE_OK);
    CHECK(qsae_chat_tokens(model, &hello, 1, 0, want, 64, &n_want, &err) == QSAE_OK);
    CHECK(n == n_want && memcmp(ids, want, n * sizeof *ids) == 0);
    qsae_model_close(m);
    CHECK(open_small(&record, both, 1, &m) == QSAE_OK); /* META is optional */
    qsae_model_close(m);
}

static void check_small_errors(void)
{
    qsae_model *m = NULL;
    qsae_model_record r = record;
    FAILS(open_small(&r, meta, 1, &m), QSAE_E_MISMATCH, "neither weights nor a tokenizer");
    FAILS(open_small(&r, weights, 2, &m), QSAE_E_MISMATCH, "neither weights nor a tokenizer");
    r.vocab_size++;
    FAILS(open_small(&r, both, 2, &m), QSAE_E_MISMATCH, "vocab_size is");
    r = record, r.n_layers = 1;
    FAILS(open_small(&r, both, 2, &m), QSAE_E_FORMAT, "a size of a network");
    r = record, r.rope_theta = 1e6;
    FAILS(open_small(&r, both, 2, &m), QSAE_E_FORMAT, "a size of a network");
    r = record, r.rms_eps = -0.0f; /* one valid byte string */
    FAILS(open_small(&r, both, 2, &m), QSAE_E_FORMAT, "a size of a network");
    r = record, r.flags |= QSAE_MODEL_TIED;
    FAILS(open_small(&r, both, 2, &m), QSAE_E_FORMAT, "nothing is tied");
    r = record, r.flags |= QSAE_MODEL_CHAT_OTHER | QSAE_MODEL_CHAT_LATER;
    FAILS(open_small(&r, both, 2, &m), QSAE_E_FORMAT, "two chat formats");
    r = record, r.flags |= 16;
    FAILS(open_small(&r, both, 2, &m), QSAE_E_FORMAT, "flags is");
    r = record, r.flags = 0; /* a model without weights */
    FAILS(open_small(&r, both, 2, &m), QSAE_E_FORMAT, "n_layers is 0");
    CHECK(m == NULL);
}

static void check_formats(void)
{
    qsae_model *m = NULL;
    qsae_model_info info;
    qsae_message hello = message("user", "Hello");
    qsae_model_record r = record;
    size_t n;
    r.flags |= QSAE_MODEL_CHAT_LATER;
    CHECK(open_small(&r, both, 2, &m) == QSAE_OK);
    qsae_model_get_info(m, &info);
    CHECK(info.chat_format == QSAE_CHAT_QWEN3_LATER);
    qsae_model_close(m);
    r.flags = QSAE_MODEL_TOKENIZER_ONLY | QSAE_MODEL_CHAT_OTHER;
    CHECK(open_small(&r, both, 2, &m) == QSAE_OK);
    qsae_model_get_info(m, &info);
    CHECK(info.chat_format == QSAE_CHAT_OTHER);
    FAILS(qsae_chat_tokens(m, &hello, 1, 0, NULL, 0, &n, &err), QSAE_E_UNSUP, "--chat-template qwen3");
    FAILS(qsae_chat_render(m, &hello, 1, 0, NULL, 0, &n, &err), QSAE_E_UNSUP, "--chat-template qwen3");
    qsae_model_close(m);
    qsae_model_get_info(model, &info);
    CHECK(info.chat_format == QSAE_CHAT_QWEN3);
}

static void make_record(size_t size)
{
    qsae_model_info info;
    CHECK(size > sizeof(qsae_file_header));
    qsae_model_get_info(model, &info);
    memset(&record, 0, sizeof record);
    strcpy(record.name, "tokenizer");
    record.flags = QSAE_MODEL_TOKENIZER_ONLY;
    record.vocab_size = (uint32_t)info.n_tokens;
    record.bos = -1;
}

/* ---- JSON values as Python writes them ---- */

static void check_python(const char *json, const char *dumps, const char *str)
{
    char why[512] = "";
    pytext a = {NULL, 0, 0, 0}, b = {NULL, 0, 0, 0};
    json_doc *d = json_parse(json, strlen(json), why, sizeof why);
    if (!CHECK(d != NULL)) return;
    CHECK(pytext_dumps(&a, d, json_root(d), why, sizeof why) == 0);
    CHECK(pytext_str(&b, d, json_root(d), why, sizeof why) == 0);
    pytext_add(&a, "", 1);
    pytext_add(&b, "", 1);
    CHECK_STR(a.s, dumps);
    CHECK_STR(b.s, str);
    pytext_free(&a);
    pytext_free(&b);
    json_free(d);
}

static void check_values(void)
{
    check_python("null", "null", "None");
    check_python("[true,false]", "[true, false]", "[True, False]");
    check_python("-0", "0", "0");
    check_python("-0.0", "-0.0", "-0.0");
    check_python("1E400", "Infinity", "inf");
    check_python("-1e400", "-Infinity", "-inf");
    check_python("1e16", "1e+16", "1e+16");
    check_python("1e15", "1000000000000000.0", "1000000000000000.0");
    check_python("0.0001", "0.0001", "0.0001");
    check_python("0.00001", "1e-05", "1e-05");
    check_python("5e-324", "5e-324", "5e-324");
    check_python("9007199254740993.0", "9007199254740992.0", "9007199254740992.0");
    check_python("5.684341886080802e-14", "5.684341886080802e-14", "5.684341886080802e-14"); /* 2^-44 */
    check_python("123456789012345678901234567890", "123456789012345678901234567890", "123456789012345678901234567890");
    check_python("{\"b\":1,\"a\":{}}", "{\"b\": 1, \"a\": {}}", "{'b': 1, 'a': {}}");
    check_python("[\"it's\",\"\\\"\",\"'\\\"\"]", "[\"it's\", \"\\\"\", \"'\\\"\"]",
                 "[\"it's\", '\"', '\\'\"']");
    check_python("[\"\\u0000\\u007f\\n<&>\\u00a0\\u2028\"]", "[\"\\u0000\x7f\\n<&>\xC2\xA0\xE2\x80\xA8\"]",
                 "['\\x00\\x7f\\n<&>\\xa0\\u2028']");
}

int main(int argc, char **argv)
{
    char path[1024];
    size_t size;
    snprintf(path, sizeof path, "%s/toy.qsae", argc > 1 ? argv[1] : "build");
    if (!CHECK(qsae_model_open(path, NULL, &model, &err) == QSAE_OK)) {
        fprintf(stderr, "%s: %s\n", path, err.text);
        return test_done("test_chat");
    }
    toy = (uint8_t *)read_file(path, &size);
    make_record(size);
    check_goldens();
    check_forgery();
    check_arguments();
    check_bytes();
    check_streaming();
    check_small();
    check_small_errors();
    check_formats();
    check_values();
    free(opened);
    free(toy);
    qsae_model_close(model);
    return test_done("test_chat");
}
