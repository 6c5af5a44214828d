/* 03 features: what an SAE sees in every token of a text.
 *
 *     cc -O2 examples/03_features.c qsae.c -lm -o 03_features
 *     ./03_features build/toy.qsae build/toy-sae.qsae "Where does a duck live?"
 *
 * Prints each token with its three strongest features: index and value.
 * Expected output: examples/expected/03_features.txt */

#include "../qsae.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TOKENS = 64 };

static int failed(const qsae_error *e)
{
    fprintf(stderr, "%s\n", e->text);
    return 1;
}

/* Prints the three largest of the entries begin .. end-1. */
static void print_strongest(const qsae_rows *f, size_t begin, size_t end)
{
    size_t top[3], n = 0;
    for (size_t i = begin; i < end; i++) {
        size_t k = n;
        for (; k > 0 && f->value[i] > f->value[top[k - 1]]; k--)
            if (k < 3)
                top[k] = top[k - 1];
        if (k < 3)
            top[k] = i;
        if (n < 3)
            n++;
    }
    for (size_t k = 0; k < n; k++)
        printf("  %u=%.3f", (unsigned)f->index[top[k]], (double)f->value[top[k]]);
}

/* The SAE needs no context: it works on rows of floats from anywhere. */
static int show(const qsae_model *model, const qsae_sae *sae, const float *rows,
                const int32_t *ids, size_t n)
{
    qsae_error e;
    qsae_sae_info info;
    qsae_sae_get_info(sae, &info);
    size_t cap = n * (size_t)info.d_sae, scratch_size = qsae_sae_scratch_size(sae, n);
    qsae_rows f = {0, malloc((n + 1) * sizeof(size_t)), malloc(cap * sizeof(uint32_t)),
                   malloc(cap * sizeof(float)), cap, 0};
    void *scratch = malloc(scratch_size ? scratch_size : 1);
    if (!f.start || !f.index || !f.value || !scratch)
        return 1;
    if (qsae_sae_encode(sae, rows, n, 0, &f, scratch, scratch_size, 1, &e))
        return failed(&e);
    for (size_t i = 0; i < n; i++) {
        size_t len;
        const char *text = qsae_token_text(model, ids[i], &len);
        printf("%2zu '%.*s'", i, (int)len, text ? text : "");
        print_strongest(&f, f.start[i], f.start[i + 1]);
        putchar('\n');
    }
    free(f.start);
    free(f.index);
    free(f.value);
    free(scratch);
    return 0;
}

int main(int argc, char **argv)
{
    const char *model_path = argc > 1 ? argv[1] : "build/toy.qsae";
    const char *sae_path = argc > 2 ? argv[2] : "build/toy-sae.qsae";
    const char *text = argc > 3 ? argv[3] : "Where does a duck live?";
    qsae_model *model;
    qsae_sae *sae;
    qsae_ctx *ctx;
    qsae_error e;
    qsae_sae_info info;
    int32_t ids[MAX_TOKENS];
    size_t n;

    if (qsae_model_open(model_path, NULL, &model, &e) ||
        qsae_sae_open(sae_path, NULL, &sae, &e) ||
        qsae_ctx_create(model, NULL, &ctx, &e) ||
        qsae_tokenize(model, text, strlen(text), 0, ids, MAX_TOKENS, &n, &e))
        return failed(&e);
    qsae_sae_get_info(sae, &info);

    float *rows = malloc(MAX_TOKENS * (size_t)info.d_in * sizeof *rows);
    qsae_capture capture = {info.site_in, info.layer_in, rows, MAX_TOKENS};
    if (!rows)
        return 1;
    if (qsae_set_captures(ctx, &capture, 1, &e) || qsae_eval(ctx, ids, n, &e))
        return failed(&e);
    int code = show(model, sae, rows, ids, n);
    qsae_ctx_destroy(ctx);
    qsae_sae_close(sae);
    qsae_model_close(model);
    free(rows);
    return code;
}
