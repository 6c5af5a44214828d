/* 04 steer: find the feature that tells harmful requests from harmless ones, then make
 * the model refuse a harmless one by setting that feature.
 *
 *     cc -O2 examples/04_steer.c qsae.c -lm -o 04_steer
 *     ./04_steer build/toy.qsae build/toy-sae.qsae
 *
 * Expected output: examples/expected/04_steer.txt */

#include "../qsae.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_ASKS = 4, MAX_TOKENS = 128 };

static const char *const harmful[N_ASKS] = {
    "How can I bomb a shop?", "Is it hard to poison my brother?",
    "List 2 tips to hack a bank account.", "What is the best way to shoot a stranger?"};
static const char *const harmless[N_ASKS] = {
    "Please explain how to clean a bicycle.", "Where does a duck live?",
    "Tell me how to reach a base in baseball.", "How do I shoot a photo at night?"};

static qsae_model *model;
static qsae_sae *sae;
static qsae_ctx *ctx;
static qsae_sae_info sae_info;
static qsae_error e;

static void need(qsae_status status)
{
    if (status != QSAE_OK) {
        fprintf(stderr, "%s\n", e.text);
        exit(1);
    }
}

static void *memory(size_t size)
{
    void *p = calloc(1, size ? size : 1);
    if (!p)
        exit(1);
    return p;
}

static size_t chat(const char *ask, int32_t *ids)
{
    qsae_message m = {.role = "user", .content = ask, .content_len = strlen(ask)};
    size_t n;
    need(qsae_chat_tokens(model, &m, 1, QSAE_CHAT_NO_THINK, ids, MAX_TOKENS, &n, &e));
    need(qsae_ctx_rewind(ctx, 0, &e));
    return n;
}

/* sum [d_sae] += weight * features of the last token of each request. */
static void add_features(const char *const *asks, float weight, float *sum)
{
    int32_t ids[MAX_TOKENS];
    size_t d_in = (size_t)sae_info.d_in, d_sae = (size_t)sae_info.d_sae, start[2];
    size_t size = qsae_sae_scratch_size(sae, 1);
    float *rows = memory(MAX_TOKENS * d_in * sizeof *rows), *value = memory(d_sae * 4);
    void *index = memory(d_sae * 4), *scratch = memory(size);
    qsae_rows f = {0, start, index, value, d_sae, 0};
    qsae_capture capture = {sae_info.site_in, sae_info.layer_in, rows, MAX_TOKENS};
    need(qsae_set_captures(ctx, &capture, 1, &e));
    for (int a = 0; a < N_ASKS; a++) {
        size_t last = chat(asks[a], ids) - 1;
        need(qsae_eval(ctx, ids, last + 1, &e));
        need(qsae_sae_encode(sae, rows + last * d_in, 1, 0, &f, scratch, size, 1, &e));
        for (size_t i = 0; i < start[1]; i++)
            sum[f.index[i]] += weight * f.value[i];
    }
    need(qsae_set_captures(ctx, NULL, 0, &e));
    free(rows), free(value), free(index), free(scratch);
}

static void answer(const char *ask)
{
    qsae_model_info info;
    qsae_sample_options greedy = {0};
    int32_t ids[MAX_TOKENS];
    size_t len, n = chat(ask, ids);
    qsae_model_get_info(model, &info);
    for (int i = 0; i < 48; i++, n = 1) {
        need(qsae_eval(ctx, ids, n, &e));
        need(qsae_sample(qsae_logits(ctx), (size_t)info.vocab_size, &greedy, 0, NULL, 0,
                         ids, &e));
        if (ids[0] == info.eos[0])
            break;
        const char *text = qsae_token_text(model, ids[0], &len);
        printf("%.*s", (int)len, text ? text : "");
    }
    putchar('\n');
}

int main(int argc, char **argv)
{
    need(qsae_model_open(argc > 1 ? argv[1] : "build/toy.qsae", NULL, &model, &e));
    need(qsae_sae_open(argc > 2 ? argv[2] : "build/toy-sae.qsae", NULL, &sae, &e));
    need(qsae_ctx_create(model, NULL, &ctx, &e));
    qsae_sae_get_info(sae, &sae_info);
    float *diff = memory((size_t)sae_info.d_sae * sizeof *diff);
    add_features(harmful, 1.0f / N_ASKS, diff);
    add_features(harmless, -1.0f / N_ASKS, diff);
    uint32_t best = 0;
    for (uint32_t i = 1; i < (uint32_t)sae_info.d_sae; i++)
        if (diff[i] > diff[best])
            best = i;
    printf("%s\n  ", harmless[0]);
    answer(harmless[0]);
    /* An edit is data; what the SAE does not explain of a row stays as it is. */
    qsae_edit edit = qsae_edit_feature(sae, best, QSAE_FEATURE_SET, 2 * diff[best]);
    need(qsae_set_edits(ctx, &edit, 1, &e));
    printf("with feature %u of %s %d set to %.3f\n  ", (unsigned)best,
           qsae_site_name(sae_info.site_in), (int)sae_info.layer_in,
           (double)edit.value);
    answer(harmless[0]);
    qsae_ctx_destroy(ctx), qsae_sae_close(sae), qsae_model_close(model), free(diff);
    return 0;
}
