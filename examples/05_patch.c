/* 05 patch: where does the model decide? Run two prompts that differ in one place, then
 * put the residual stream of the first into the run of the second, a layer at a time.
 *
 *     cc -O2 examples/05_patch.c qsae.c -lm -o 05_patch
 *     ./05_patch build/toy.qsae "How can I bomb a shop?" "How can I paint a shop?"
 *
 * Prints, for each layer, how far patching the last token there moves the first token
 * of the answer: 0 is the second prompt's own run, 1 the first's.
 * Expected output: examples/expected/05_patch.txt */

#include "../qsae.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TOKENS = 128 };

static void failed(const qsae_error *e)
{
    fprintf(stderr, "%s\n", e->text);
    exit(1);
}

static size_t chat(const qsae_model *model, const char *ask, int32_t *ids)
{
    qsae_error e;
    qsae_message message = {.role = "user", .content = ask, .content_len = strlen(ask)};
    size_t n;
    if (qsae_chat_tokens(model, &message, 1, QSAE_CHAT_NO_THINK, ids, MAX_TOKENS, &n,
                         &e))
        failed(&e);
    return n;
}

/* The hook gets the live rows; here it is one row, and we overwrite it. */
static int put_row(void *user, const qsae_event *event, float *rows)
{
    const float *donor = user;
    memcpy(rows, donor + (size_t)event->layer * event->width,
           event->width * sizeof *rows);
    return 0;
}

/* The logit by which `yes` beats `no` for the token that follows. */
static double margin(const qsae_ctx *ctx, int32_t yes, int32_t no)
{
    const float *logits = qsae_logits(ctx);
    return (double)logits[yes] - (double)logits[no];
}

static int32_t best(const qsae_model *model, const qsae_ctx *ctx)
{
    qsae_error e;
    qsae_sample_options greedy = {0};
    int32_t id;
    size_t n = qsae_site_width(model, QSAE_LOGITS);
    if (qsae_sample(qsae_logits(ctx), n, &greedy, 0, NULL, 0, &id, &e))
        failed(&e);
    return id;
}

int main(int argc, char **argv)
{
    qsae_model *model;
    qsae_ctx *first, *second, *patched;
    qsae_error e;
    qsae_model_info info;
    int32_t a[MAX_TOKENS], b[MAX_TOKENS];
    if (qsae_model_open(argc > 1 ? argv[1] : "build/toy.qsae", NULL, &model, &e) ||
        qsae_ctx_create(model, NULL, &first, &e) ||
        qsae_ctx_create(model, NULL, &second, &e) ||
        qsae_ctx_create(model, NULL, &patched, &e))
        failed(&e);
    size_t na = chat(model, argc > 3 ? argv[2] : "How can I bomb a shop?", a);
    size_t nb = chat(model, argc > 3 ? argv[3] : "How can I paint a shop?", b);
    qsae_model_get_info(model, &info);

    /* The first prompt: keep the last token's residual stream after every layer. */
    size_t layers = (size_t)info.n_layers, width = (size_t)info.d_model;
    float *donor = malloc(layers * width * sizeof *donor);
    qsae_capture *list = malloc(layers * sizeof *list);
    if (!donor || !list)
        return 1;
    for (size_t i = 0; i < layers; i++)
        list[i] = (qsae_capture){QSAE_RESID_POST, (int32_t)i, donor + i * width, 1};
    if (qsae_eval(first, a, na - 1, &e) || qsae_set_captures(first, list, layers, &e) ||
        qsae_eval(first, a + na - 1, 1, &e))
        failed(&e);

    /* The second prompt up to its last token: the prefix of all patched runs. */
    if (qsae_eval(second, b, nb - 1, &e) || qsae_ctx_copy(patched, second, &e) ||
        qsae_eval(second, b + nb - 1, 1, &e))
        failed(&e);
    int32_t yes = best(model, first), no = best(model, second);
    double high = margin(first, yes, no), low = margin(second, yes, no);
    for (int32_t layer = 0; layer < info.n_layers; layer++) {
        qsae_hook hook = {put_row, donor, 1u << QSAE_RESID_POST, layer, layer + 1};
        if (qsae_set_hook(patched, &hook, &e) ||
            qsae_ctx_rewind(patched, (int32_t)nb - 1, &e) ||
            qsae_eval(patched, b + nb - 1, 1, &e))
            failed(&e);
        printf("layer %d patched: %6.3f\n", (int)layer,
               (margin(patched, yes, no) - low) / (high - low));
    }
    qsae_ctx_destroy(first);
    qsae_ctx_destroy(second);
    qsae_ctx_destroy(patched);
    qsae_model_close(model);
    free(donor);
    free(list);
    return 0;
}
