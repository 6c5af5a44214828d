/* Fuzz target of the conversation reader and the renderer: no JSON crashes them, counting and filling agree, and the
 * ids of what is rendered have texts. The model is a tokenizer made of the toy's: run in the repository's root. The
 * first byte chooses the flags. */

#include "tiny.h"

#include "../tools/chat.h"
#include "../tools/tok_build.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_IDS = 1 << 14, MAX_JSON = 1 << 20 };

static void need(int ok)
{
    if (!ok) abort();
}

/* A file with the toy's tokenizer alone. */
static qsae_model *make_model(void)
{
    static char json[MAX_JSON];
    uint8_t *blob, *padded;
    size_t n, size, file_size;
    char err[256] = "";
    qsae_model *m = NULL;
    qsae_error e;
    qsae_model_record r;
    qsae_tensor_record t;
    FILE *f = fopen("examples/toy/model/tokenizer.json", "rb");
    need(f != NULL);
    n = fread(json, 1, sizeof json, f);
    fclose(f);
    need(tok_build_from_json(json, n, &blob, &size, err, sizeof err));
    memset(&r, 0, sizeof r);
    strcpy(r.name, "fuzz");
    r.flags = QSAE_MODEL_TOKENIZER_ONLY;
    memcpy(&r.vocab_size, blob + 12, 4);
    r.bos = -1;
    memset(&t, 0, sizeof t);
    t.role = QSAE_ROLE_TOKENIZER;
    t.type = QSAE_TYPE_BYTES;
    t.layout = QSAE_LAYOUT_BYTES;
    t.rows = 1;
    t.cols = size;
    t.size = qsae_tensor_bytes(t.type, t.layout, t.rows, t.cols);
    padded = tiny_alloc(t.size);
    memset(padded, 0, t.size);
    memcpy(padded, blob, size);
    tiny_file file = {padded, (size_t)t.size, tiny_alloc(sizeof t), 1, 0};
    file.list[0] = t;
    uint8_t *image = tiny_finish(&file, QSAE_KIND_MODEL, &r, 1, &file_size);
    need(qsae_model_open_memory(image, file_size, NULL, &m, &e) == QSAE_OK);
    free(blob);
    return m;
}

static void try_chat(const qsae_model *m, const chat *c, unsigned flags)
{
    static int32_t ids[MAX_IDS];
    qsae_error e;
    size_t len = 0, again, n = 0, one;
    qsae_status s = qsae_chat_render(m, c->messages, c->n, flags, NULL, 0, &len, &e);
    need(s == QSAE_OK || s == QSAE_E_LIMIT); /* what was read can be rendered */
    char *text = malloc(len ? len : 1);
    need(text != NULL);
    need(qsae_chat_render(m, c->messages, c->n, flags, text, len, &again, &e) == QSAE_OK && again == len);
    free(text);
    s = qsae_chat_tokens(m, c->messages, c->n, flags, ids, MAX_IDS, &n, &e);
    need(s == QSAE_OK || (s == QSAE_E_LIMIT && n > MAX_IDS));
    for (size_t i = 0; s == QSAE_OK && i < n; i++) need(qsae_token_text(m, ids[i], &one) != NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static qsae_model *m;
    char err[256] = "";
    chat c;
    if (size == 0) return 0;
    if (!m) m = make_model();
    unsigned flags = (data[0] & 7u) | QSAE_CHAT_ANY_ROLE;
    int status = chat_read(&c, (const char *)data + 1, size - 1, data[0] >> 3 & 1, err, sizeof err);
    need((status == 0) == (err[0] == 0));
    if (status == 0) try_chat(m, &c, flags);
    chat_free(&c);
    return 0;
}
