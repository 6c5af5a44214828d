/* Fuzz target: any bytes as a .qsae file, opened as a model and as SAEs, with and without verify, as they are and
 * with their checksums made right, so that a change of any field gets past the door. What opens is used a little:
 * a model evaluates with an SAE's edits on it, an SAE encodes and decodes.
 *
 * With -DFUZZ_MAIN a program of its own that writes the seeds into a folder: fuzz_qsae tests/corpus/qsae */

#include "tiny.h"

#if defined(FUZZ_MAIN)
#include "test.h"
#endif

enum { MAX_WIDTH = 64, MAX_FEATURES = 128, MAX_CTX_BYTES = 1 << 24 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The SAEs of the seeds; the first steers the models. */
static const tiny_sae SAES[4] = {
    {QSAE_RESID_POST, 0, QSAE_RESID_POST, 0, 2, 2, 3, 0, QSAE_ACT_JUMPRELU, QSAE_NORM_NONE, 0, 0, 0},
    {QSAE_MLP_INPUT, 0, QSAE_MLP_OUT, 0, 2, 2, 4, 2, QSAE_ACT_TOPK, QSAE_NORM_LAYER, QSAE_SAE_SKIP, 1, 2},
    {QSAE_ATTN_Z, 0, QSAE_ATTN_Z, 0, 2, 2, 3, 0, QSAE_ACT_GATED, QSAE_NORM_CONSTANT, 0, 0, 0},
    {QSAE_RESID_PRE, 1, QSAE_RESID_PRE, 1, 4, 4, 2, 0, QSAE_ACT_RELU, QSAE_NORM_NONE, 0, 0, 0},
};

static const qsae_sae *steering_sae(void)
{
    static uint8_t *image; /* lives as long as the process: the fuzzer calls millions of times */
    static qsae_sae *sae;
    size_t size;
    if (!image) {
        image = tiny_sae_file(&SAES[0], 1, &size);
        sae = tiny_open_sae(image, size, QSAE_ISA_AUTO);
    }
    return sae;
}

static void use_model(const qsae_model *model)
{
    static const int32_t ids[] = {0, 1, 0, 0, 1};
    qsae_ctx_options options = {8, 3, 1, {NULL, NULL, NULL}, QSAE_KV_F32, 0};
    qsae_ctx *ctx = NULL;
    qsae_error e;
    size_t size = qsae_ctx_size(model, &options);
    if (size == 0 || size > MAX_CTX_BYTES) return;
    if (qsae_ctx_create(model, &options, &ctx, &e)) return;
    qsae_edit edits[2] = {qsae_edit_feature(steering_sae(), 1, QSAE_FEATURE_SET, 3),
                          qsae_edit_feature(steering_sae(), 0, QSAE_SAE_REPLACE, 0)};
    (void)qsae_set_edits(ctx, edits, 2, &e); /* fits the seeds' model only */
    if (qsae_eval(ctx, ids, 5, &e)) {
        (void)qsae_set_edits(ctx, NULL, 0, &e);
        (void)qsae_eval(ctx, ids, 2, &e);
    }
    qsae_ctx_destroy(ctx);
}

static void use_sae(const qsae_sae *sae)
{
    static float x[3 * MAX_WIDTH], y[3 * MAX_WIDTH], value[3 * MAX_FEATURES];
    static uint32_t index[3 * MAX_FEATURES];
    static char scratch[1 << 17];
    size_t start[4];
    qsae_sae_info info;
    qsae_error e;
    qsae_rows rows = {0, start, index, value, 3 * MAX_FEATURES, 0};
    qsae_sae_get_info(sae, &info);
    size_t need = qsae_sae_scratch_size(sae, 3);
    if (info.d_in > MAX_WIDTH || info.d_out > MAX_WIDTH || info.d_sae > MAX_FEATURES || need > sizeof scratch) return;
    for (int i = 0; i < 3 * MAX_WIDTH; i++) x[i] = (float)(i % 11 - 5) * 0.75f;
    if (qsae_sae_encode(sae, x, 3, 0, &rows, scratch, need, 1, &e) == QSAE_OK)
        (void)qsae_sae_decode(sae, &rows, x, 0, y, scratch, need, 1, &e);
    (void)qsae_sae_feature(sae, (uint32_t)info.d_sae - 1, y, y + MAX_WIDTH, value, value + 1, &e);
}

static void open_all(const uint8_t *image, size_t size)
{
    for (int verify = 0; verify < 2; verify++) {
        qsae_model *model = NULL;
        qsae_sae *sae = NULL;
        qsae_sae_options o;
        qsae_error e;
        memset(&o, 0, sizeof o);
        o.open.verify = verify;
        if (qsae_model_open_memory(image, size, &o.open, &model, &e) == QSAE_OK) use_model(model);
        qsae_model_close(model);
        o.select = QSAE_SELECT_INDEX;
        for (o.index = 0; o.index < 2; o.index++) {
            if (qsae_sae_open_memory(image, size, &o, &sae, &e) == QSAE_OK) use_sae(sae);
            qsae_sae_close(sae);
            sae = NULL;
        }
    }
}

/* Makes the checksums right, if the tables are where the counts say; else there is nothing to make right. */
static int repair(uint8_t *image, size_t size)
{
    qsae_file_header *h = (void *)image;
    if (size < 64) return 0;
    h->file_size = size;
    uint64_t index = (uint64_t)256 * h->n_records + (uint64_t)64 * h->n_tensors;
    if (h->index_size != index || index > size - 64) return 0;
    tiny_rehash(image);
    return 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *image = tiny_alloc(size); /* ends where the input does */
    if (size) memcpy(image, data, size);
    open_all(image, size);
    if (repair(image, size)) open_all(image, size);
    free(image);
    return 0;
}

#if defined(FUZZ_MAIN)

static void write_seed(const char *folder, const char *name, const uint8_t *data, size_t size)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s.qsae", folder, name);
    FILE *f = fopen(path, "wb");
    if (CHECK(f != NULL)) {
        CHECK(fwrite(data, 1, size, f) == size);
        CHECK(fclose(f) == 0);
    }
}

static void write_seeds(const char *folder)
{
    static const tiny_shape shapes[2] = {{1, 2, 1, 1, 2, 2, 3, 1, QSAE_TYPE_BF16}, {1, 3, 2, 1, 2, 2, 4, 0, 0}};
    static const char *const models[2] = {"model_bf16", "model_f32"};
    static const char *const saes[4] = {"jumprelu", "suite", "gated", "relu"};
    size_t size;
    for (int i = 0; i < 6; i++) {
        uint8_t *image = i < 2 ? tiny_model(&shapes[i], 1, &size) : tiny_sae_file(&SAES[i - 2], 1, &size);
        write_seed(folder, i < 2 ? models[i] : saes[i - 2], image, size);
        free(image);
    }
    tiny_screen = 127;
    uint8_t *screened = tiny_sae_file(&SAES[0], 1, &size);
    write_seed(folder, "screen", screened, size);
    free(screened);
}

int main(int argc, char **argv)
{
    if (argc == 2) write_seeds(argv[1]);
    return test_done("fuzz_qsae");
}

#endif
