/* Fuzz target: opening and running a model from hostile bytes. */

#include "fuzz.h"

static void run(const qsae_model *model)
{
    static const int32_t ids[] = {0, 1, 2, 3, 1};
    qsae_ctx_options options = {8, 3, 1, {NULL, NULL, NULL}};
    qsae_model_info info;
    qsae_error e;
    qsae_ctx *ctx;
    qsae_model_get_info(model, &info);
    size_t size = qsae_ctx_size(model, &options);
    if (size == 0 || size > 1u << 24)
        return;
    if (qsae_ctx_create(model, &options, &ctx, &e) != QSAE_OK)
        return;
    if (qsae_eval(ctx, ids, 5, &e) == QSAE_OK) {
        qsae_sample_options greedy = {0, 0, 0, 0, 0};
        int32_t id;
        qsae_sample(qsae_logits(ctx), (size_t)info.vocab_size, &greedy, 0, NULL, 0, &id,
                    &e);
    }
    qsae_ctx_destroy(ctx);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const tiny_shape shapes[2] = {{1, 4, 2, 1, 2, 3, 5, 0, 0},
                                         {2, 3, 1, 1, 2, 2, 4, 1, 1}};
    static uint8_t *base[2];
    static size_t base_size[2];
    qsae_open_options options;
    qsae_error e;
    int k = size > 0 && data[0] & 4;
    if (!base[k])
        base[k] = tiny_model(&shapes[k], 1, &base_size[k]);
    size_t n;
    uint8_t *image = fuzz_image(base[k], base_size[k], data, size, &n);
    memset(&options, 0, sizeof options);
    options.verify = size > 0 && data[0] & 8;
    qsae_model *model = NULL;
    if (qsae_model_open_memory(image, n, &options, &model, &e) == QSAE_OK)
        run(model);
    qsae_model_close(model);
    free(image);
    return 0;
}
