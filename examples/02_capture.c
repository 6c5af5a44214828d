/* 02 capture: copy the residual stream out of every layer and look at it.
 *
 *     cc -O2 examples/02_capture.c qsae.c -lm -o 02_capture
 *     ./02_capture build/toy.qsae "Where does a duck live?"
 *
 * Prints, for each layer, the length of the residual stream at the first and at the
 * last token, and how much of the last one is new in this layer.
 * Expected output: examples/expected/02_capture.txt */

#include "../qsae.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TOKENS = 64 };

static int failed(const qsae_error *e)
{
    fprintf(stderr, "%s\n", e->text);
    return 1;
}

static double length(const float *x, const float *minus, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)x[i] - (minus ? (double)minus[i] : 0);
        sum += d * d;
    }
    return sqrt(sum);
}

static void print_layer(const qsae_capture *pre, const qsae_capture *post, size_t n,
                        size_t width)
{
    const float *before = pre->rows + (n - 1) * width,
                *after = post->rows + (n - 1) * width;
    printf("layer %d: first token %8.3f, last token %8.3f, of which new %8.3f\n",
           (int)post->layer, length(post->rows, NULL, width),
           length(after, NULL, width), length(after, before, width));
}

int main(int argc, char **argv)
{
    const char *path = argc > 1 ? argv[1] : "build/toy.qsae";
    const char *text = argc > 2 ? argv[2] : "Where does a duck live?";
    qsae_model *model;
    qsae_ctx *ctx;
    qsae_error e;
    qsae_model_info info;
    int32_t ids[MAX_TOKENS];
    size_t n;

    if (qsae_model_open(path, NULL, &model, &e) ||
        qsae_ctx_create(model, NULL, &ctx, &e))
        return failed(&e);
    if (qsae_tokenize(model, text, strlen(text), 0, ids, MAX_TOKENS, &n, &e) || n == 0)
        return failed(&e);
    qsae_model_get_info(model, &info);

    /* One buffer per site and layer, ours: row i will be token i of the eval call. */
    size_t layers = (size_t)info.n_layers,
           width = qsae_site_width(model, QSAE_RESID_POST);
    float *rows = malloc(2 * layers * MAX_TOKENS * width * sizeof *rows);
    qsae_capture *list = malloc(2 * layers * sizeof *list);
    if (!rows || !list)
        return 1;
    for (size_t i = 0; i < 2 * layers; i++) {
        list[i].site = i % 2 == 0 ? QSAE_RESID_PRE : QSAE_RESID_POST;
        list[i].layer = (int32_t)(i / 2);
        list[i].rows = rows + i * MAX_TOKENS * width;
        list[i].max_rows = MAX_TOKENS;
    }
    if (qsae_set_captures(ctx, list, 2 * layers, &e) || qsae_eval(ctx, ids, n, &e))
        return failed(&e);
    for (size_t i = 0; i < layers; i++)
        print_layer(&list[2 * i], &list[2 * i + 1], n, width);

    qsae_ctx_destroy(ctx); /* before the buffers that it borrows */
    qsae_model_close(model);
    free(list);
    free(rows);
    return 0;
}
