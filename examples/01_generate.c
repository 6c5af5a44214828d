/* 01 generate: answer a chat message, token by token.
 *
 *     cc -O2 examples/01_generate.c qsae.c -lm -o 01_generate
 *     ./01_generate build/toy.qsae "Where does a duck live?"
 *
 * Expected output: examples/expected/01_generate.txt */

#include "../qsae.h"

#include <stdio.h>
#include <string.h>

static int failed(const qsae_error *e)
{
    fprintf(stderr, "%s\n", e->text);
    return 1;
}

static int is_end(const qsae_model_info *info, int32_t id)
{
    for (int32_t i = 0; i < info->n_eos; i++)
        if (info->eos[i] == id)
            return 1;
    return 0;
}

/* Greedy answer to the tokens ids[n]; ctx is empty. */
static int answer(const qsae_model *model, qsae_ctx *ctx, const int32_t *ids, size_t n)
{
    qsae_error e;
    qsae_model_info info;
    qsae_sample_options greedy = {0};
    qsae_model_get_info(model, &info);
    if (qsae_eval(ctx, ids, n, &e)) /* the whole prompt in one call */
        return failed(&e);
    for (int i = 0; i < 64; i++) {
        int32_t id;
        size_t len;
        if (qsae_sample(qsae_logits(ctx), (size_t)info.vocab_size, &greedy,
                        (uint64_t)qsae_ctx_pos(ctx), NULL, 0, &id, &e))
            return failed(&e);
        if (is_end(&info, id))
            break;
        /* A token may end inside a UTF-8 character; a terminal puts the parts together
         * again, other displays need qsae_utf8_complete. */
        const char *text = qsae_token_text(model, id, &len);
        if (text)
            fwrite(text, 1, len, stdout);
        if (qsae_eval(ctx, &id, 1, &e)) /* then one token at a time */
            return failed(&e);
    }
    putchar('\n');
    return 0;
}

int main(int argc, char **argv)
{
    const char *path = argc > 1 ? argv[1] : "build/toy.qsae";
    const char *ask = argc > 2 ? argv[2] : "Where does a duck live?";
    qsae_message message = {.role = "user", .content = ask, .content_len = strlen(ask)};
    qsae_model *model;
    qsae_ctx *ctx;
    qsae_error e;
    int32_t ids[256];
    size_t n;

    if (qsae_model_open(path, NULL, &model, &e))
        return failed(&e);
    if (qsae_ctx_create(model, NULL, &ctx, &e))
        return failed(&e);
    if (qsae_chat_tokens(model, &message, 1, QSAE_CHAT_NO_THINK, ids, 256, &n, &e))
        return failed(&e);
    int code = answer(model, ctx, ids, n);
    qsae_ctx_destroy(ctx);
    qsae_model_close(model);
    return code;
}
