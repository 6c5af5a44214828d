/* Fuzz target: an SAE file from hostile bytes, encoding and decoding with it. */

#include "fuzz.h"

enum { MAX_WIDTH = 64, MAX_FEATURES = 256 };

static void run(const qsae_sae *sae)
{
    static float x[2 * MAX_WIDTH], y[2 * MAX_WIDTH], value[2 * MAX_FEATURES];
    static uint32_t index[2 * MAX_FEATURES];
    size_t start[3];
    qsae_sae_info info;
    qsae_error e;
    qsae_sae_get_info(sae, &info);
    if (info.d_in > MAX_WIDTH || info.d_out > MAX_WIDTH || info.d_sae > MAX_FEATURES)
        return;
    for (int i = 0; i < 2 * MAX_WIDTH; i++)
        x[i] = (float)(i % 7 - 3) * 0.5f;
    qsae_rows rows = {0, start, index, value, 2 * MAX_FEATURES};
    size_t size = qsae_sae_scratch_size(sae, 2);
    void *scratch = malloc(size ? size : 1);
    if (scratch &&
        qsae_sae_encode(sae, x, 2, 0, &rows, scratch, size, 1, &e) == QSAE_OK)
        qsae_sae_decode(sae, &rows, x, 0, y, scratch, size, 1, &e);
    qsae_sae_feature(sae, 0, x, y, value, value + 1, &e);
    free(scratch);
}

static uint8_t *base_image(int k, size_t *size)
{
    static const tiny_sae shapes[4] = {{QSAE_RESID_POST, 0, QSAE_RESID_POST, 0, 4, 4, 6,
                                        0, QSAE_ACT_JUMPRELU, QSAE_NORM_NONE, 0, 0, 0},
                                       {QSAE_MLP_INPUT, 0, QSAE_MLP_OUT, 0, 4, 4, 5, 2,
                                        QSAE_ACT_TOPK, QSAE_NORM_LAYER, QSAE_SAE_SKIP,
                                        1, 2},
                                       {QSAE_RESID_PRE, 0, QSAE_RESID_PRE, 0, 4, 4, 5,
                                        0, QSAE_ACT_GATED, QSAE_NORM_CONSTANT, 0, 0, 0},
                                       {QSAE_ATTN_OUT, 1, QSAE_ATTN_OUT, 1, 4, 4, 5, 0,
                                        QSAE_ACT_RELU, QSAE_NORM_NONE, 0, 1, 3}};
    static uint8_t *base[4];
    static size_t sizes[4];
    if (!base[k])
        base[k] = tiny_sae_file(&shapes[k], 1, &sizes[k]);
    *size = sizes[k];
    return base[k];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    qsae_sae_options options;
    qsae_error e;
    size_t n, base_size;
    const uint8_t *base = base_image(size > 0 ? data[0] >> 2 & 3 : 0, &base_size);
    uint8_t *image = fuzz_image(base, base_size, data, size, &n);
    memset(&options, 0, sizeof options);
    options.open.verify = size > 0 && data[0] & 16;
    options.select = QSAE_SELECT_INDEX;
    qsae_sae *sae = NULL;
    if (qsae_sae_open_memory(image, n, &options, &sae, &e) == QSAE_OK)
        run(sae);
    qsae_sae_close(sae);
    free(image);
    return 0;
}
