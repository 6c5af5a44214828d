/* The tokenizer and the chat template of a folder, and a file of a folder that has nothing
 * else. */

#include "convert.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "tok_build.h"

/* ---- tokenizer.json ---- */

/* One more than the largest id of tokenizer.json. */
static int count_tokens(const char *text, size_t len, uint64_t *count, char *err,
                        size_t cap)
{
    char why[ERR_CAP];
    json_doc *doc = json_parse(text, len, why, sizeof why);
    int64_t id;
    if (!doc)
        return err_set(err, cap, "tokenizer.json: %s", why);
    const json_value *root = json_root(doc);
    const json_value *vocab = json_get(doc, json_get(doc, root, "model"), "vocab");
    const json_value *added = json_get(doc, root, "added_tokens");
    *count = 0;
    for (const json_value *v = json_first(doc, vocab); v; v = json_next(doc, v))
        if (json_int(v, &id) && id >= (int64_t)*count)
            *count = (uint64_t)id + 1;
    for (const json_value *v = json_first(doc, added); v; v = json_next(doc, v))
        if (json_int(json_get(doc, v, "id"), &id) && id >= (int64_t)*count)
            *count = (uint64_t)id + 1;
    json_free(doc);
    return 0;
}

int convert_build_tokenizer(const char *dir, uint64_t max_tokens, uint8_t **blob,
                            size_t *size, uint64_t *count, char *err, size_t cap)
{
    char *text, why[ERR_CAP] = "";
    size_t len;
    if (convert_read(dir, "tokenizer.json", (uint64_t)64 << 20, &text, &len, err, cap))
        return -1;
    int status = count_tokens(text, len, count, err, cap);
    if (!status && *count > max_tokens)
        status = err_set(err, cap,
                         "tokenizer.json has token ids up to %" PRIu64
                         ", vocab_size is %" PRIu64,
                         *count - 1, max_tokens);
    if (!status && !tok_build_from_json(text, len, blob, size, why, sizeof why))
        status =
            err_set(err, cap, "tokenizer.json: %s (--no-tokenizer leaves it out)", why);
    free(text);
    return status;
}

/* ---- chat template ---- */

/* XXH64 of Qwen3's templates, without a line end at the end. */
static const struct {
    uint64_t hash;
    uint32_t flags;
    const char *name;
} known[] = {
    {0xebed4c75e31de940, 0, "qwen3"},
    {0xa2f2632e64077a8e, QSAE_MODEL_CHAT_LATER, "qwen3, later version"},
};

#define TEMPLATE_FILE "chat_template.jinja" /* counts more than tokenizer_config.json */
#define NO_OPTION     "; --chat-template qwen3 takes it for Qwen3's"

static void judge(const char *text, size_t len, qfile_meta *meta, uint32_t *flags)
{
    qsae_hash h;
    if (len > 0 && text[len - 1] == '\n')
        len--;
    qsae_hash_begin(&h);
    qsae_hash_add(&h, text, len);
    uint64_t hash = qsae_hash_end(&h);
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (known[i].hash != hash)
            continue;
        *flags = known[i].flags;
        qfile_meta_add(meta, "chat.template", "%s", known[i].name);
        return;
    }
    *flags = QSAE_MODEL_CHAT_OTHER;
    qfile_meta_add(meta, "chat.template", "another (%zu bytes, XXH64 %016" PRIx64 ")",
                   len, hash);
    convert_note(
        "the chat template is none of Qwen3's: chats will be refused" NO_OPTION);
}

/* The template of tokenizer_config.json, or the one named "default" of its list; NULL: none. */
static const json_value *config_template(const json_doc *doc)
{
    const json_value *v = json_get(doc, json_root(doc), "chat_template");
    if (!v || v->type != JSON_ARRAY)
        return v && v->type == JSON_NULL ? NULL : v;
    for (const json_value *i = json_first(doc, v); i; i = json_next(doc, i)) {
        const json_value *name = json_get(doc, i, "name");
        if (v->n == 1 && name && name->type == JSON_STRING &&
            strcmp(name->str, "default") == 0)
            return json_get(doc, i, "template");
    }
    return v; /* several: none of them alone is what a chat would get */
}

void convert_judge_template(const char *text, size_t len, const convert_options *o,
                            qfile_meta *meta, uint32_t *flags)
{
    *flags = 0;
    if (o->assume_chat)
        qfile_meta_add(meta, "chat.template", "qwen3, because of --chat-template");
    else if (!text)
        qfile_meta_add(meta, "chat.template", "none; qwen3 is assumed");
    else
        judge(text, len, meta, flags);
}

int convert_chat_template(const char *dir, const convert_options *o, qfile_meta *meta,
                          uint32_t *flags, char *err, size_t cap)
{
    json_doc *doc = NULL;
    char *text = NULL;
    size_t len = 0;
    const json_value *v = NULL;
    if (o->assume_chat) {
        convert_judge_template(NULL, 0, o, meta, flags);
        return 0;
    }
    if (convert_exists(dir, TEMPLATE_FILE)) {
        if (convert_read(dir, TEMPLATE_FILE, (uint64_t)1 << 20, &text, &len, err, cap))
            return -1;
        convert_judge_template(text, len, o, meta, flags);
        free(text);
        return 0;
    }
    if (convert_exists(dir, "tokenizer_config.json")) {
        if (convert_read_json(dir, "tokenizer_config.json", &doc, err, cap))
            return -1;
        v = config_template(doc);
    }
    if (v && v->type == JSON_STRING)
        convert_judge_template(v->str, v->len, o, meta, flags);
    else
        convert_judge_template(v ? "" : NULL, 0, o, meta, flags);
    json_free(doc);
    return 0;
}

/* ---- a file of its own ---- */

static int write_file(const char *dir, const convert_options *o, uint32_t flags,
                      uint64_t count, const uint8_t *blob, size_t size,
                      const qfile_meta *meta, char *err, size_t cap)
{
    qfile *q = qfile_create(o->out, QSAE_KIND_MODEL, 1, err, cap);
    if (!q)
        return -1;
    qsae_model_record *r = qfile_record(q, 0);
    r->flags = flags | QSAE_MODEL_TOKENIZER_ONLY;
    r->vocab_size = (uint32_t)count;
    r->bos = -1;
    int status = convert_name(dir, o, r->name, sizeof r->name, err, cap);
    if (!status)
        status = qfile_declare(q, 0, QSAE_ROLE_TOKENIZER, QSAE_TYPE_BYTES,
                               QSAE_LAYOUT_BYTES, 1, size, err, cap) ||
                 qfile_declare(q, 0, QSAE_ROLE_META, QSAE_TYPE_BYTES, QSAE_LAYOUT_BYTES,
                               1, meta->len, err, cap) ||
                 qfile_bytes(q, blob, err, cap) || qfile_bytes(q, meta->text, err, cap);
    if (!status)
        return qfile_finish(q, qfile_check_model, err, cap);
    qfile_abort(q);
    return -1;
}

int convert_tokenizer(const char *dir, const convert_options *o, char *err, size_t cap)
{
    uint8_t *blob = NULL;
    size_t size = 0;
    uint64_t count = 0;
    uint32_t flags = 0;
    qfile_meta meta;
    memset(&meta, 0, sizeof meta);
    int status =
        convert_build_tokenizer(dir, (uint64_t)1 << 20, &blob, &size, &count, err, cap);
    qfile_meta_add(&meta, "converter", "qsae %d.%d.%d", QSAE_VERSION_MAJOR,
                   QSAE_VERSION_MINOR, QSAE_VERSION_PATCH);
    qfile_meta_add(&meta, "source", "tokenizer files without weights");
    if (!status)
        status = convert_chat_template(dir, o, &meta, &flags, err, cap);
    if (!status)
        status = qfile_meta_finish(&meta, err, cap) ||
                 write_file(dir, o, flags, count, blob, size, &meta, err, cap);
    if (!status)
        printf("%s: tokenizer of %" PRIu64 " tokens, no weights\n", o->out, count);
    free(blob);
    qfile_meta_free(&meta);
    return status ? -1 : 0;
}
