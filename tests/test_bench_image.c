/* Random models and SAEs of `qsae bench`: valid to the last bit, finite, and as sparse as
 * they say. Hashes of tensors are not part of such an image; the test adds them. */

#include "../tools/bench_image.h"
#include "test.h"
#include "tiny.h"

static const image_shape tied = {"tied", 2, 256, 512, 8, 320, 1};
static const image_shape apart = {"apart", 1, 512, 768, 16, 256, 0};

static void test_model(const image_shape *shape, uint32_t type)
{
    char err[600];
    qsae_error e;
    image_file im = {NULL, 0};
    qsae_ctx *ctx = NULL;
    int32_t ids[3] = {1, 2, 255};
    CHECK(image_model(shape, type, 2, 0, &im, err, sizeof err) == 0);
    if (!im.data)
        return;
    tiny_rehash(im.data);
    qsae_model *m = tiny_open_model(im.data, im.size, QSAE_ISA_AUTO); /* verifies */
    CHECK(m != NULL);
    if (m && qsae_ctx_create(m, NULL, &ctx, &e) == QSAE_OK) {
        CHECK(qsae_eval(ctx, ids, 3, &e) == QSAE_OK);
        const float *logits = qsae_logits(ctx);
        double sum = 0;
        for (uint32_t i = 0; i < shape->vocab_size; i++)
            sum += (double)logits[i] * (double)logits[i];
        CHECK(sum > 1e-3 * shape->vocab_size && sum < 1e3 * shape->vocab_size);
    }
    qsae_ctx_destroy(ctx);
    qsae_model_close(m);
    image_free(&im);
}

/* The cost counts every matrix once: the embedding as the head if it is one. */
static void test_cost(const image_shape *s, uint32_t type)
{
    char err[600];
    image_file im = {NULL, 0};
    CHECK(image_model(s, type, 1, 0, &im, err, sizeof err) == 0);
    if (!im.data)
        return;
    const qsae_file_header *h = (const void *)im.data;
    image_cost c = image_model_cost((const void *)(im.data + 64 + 256), h->n_tensors);
    double d = s->d_model, q = 128.0 * s->n_heads, kv = 1024;
    double layers = 2 * s->n_layers * (2 * d * q + 2 * d * kv + 3 * d * s->d_ff);
    double head = 2 * d * s->vocab_size, bytes = (layers + head) / 2;
    bytes *= type == QSAE_TYPE_F32 ? 4 : type == QSAE_TYPE_BF16 ? 2 : 4160.0 / 4096;
    int whole = type == QSAE_TYPE_Q8;
    CHECK((whole ? c.layer_int : c.layer_float) == layers);
    CHECK((whole ? c.head_int : c.head_float) == head);
    CHECK((whole ? c.layer_float + c.head_float : c.layer_int + c.head_int) == 0);
    CHECK(fabs(c.layer_bytes + c.head_bytes - bytes) < 0.5);
    image_free(&im);
}

/* About 64 features fire for normal rows. */
static void test_sae(uint32_t type)
{
    enum { D = 512, SAE = 4096, ROWS = 16, CAP = ROWS * SAE };
    char err[600];
    qsae_error e;
    image_file im = {NULL, 0};
    qsae_rows out = {0, tiny_alloc((ROWS + 1) * sizeof(size_t)), tiny_alloc(CAP * 4),
                     tiny_alloc(CAP * 4), CAP, 0};
    float *x = tiny_alloc(ROWS * D * sizeof *x);
    uint64_t seed = 5;
    for (int i = 0; i < ROWS * D; i++)
        x[i] = (float)(tiny_uniform(&seed) + tiny_uniform(&seed) + tiny_uniform(&seed));
    CHECK(image_sae(D, SAE, type, 2, &im, err, sizeof err) == 0);
    tiny_rehash(im.data);
    qsae_sae *sae = tiny_open_sae(im.data, im.size, QSAE_ISA_AUTO);
    CHECK(sae != NULL);
    if (sae) {
        size_t size = qsae_sae_scratch_size(sae, ROWS);
        void *scratch = tiny_alloc(size);
        CHECK(qsae_sae_encode(sae, x, ROWS, 0, &out, scratch, size, 1, &e) == QSAE_OK);
        CHECK(out.start[ROWS] > 40 * ROWS && out.start[ROWS] < 100 * ROWS);
        free(scratch);
    }
    qsae_sae_close(sae);
    image_free(&im);
    free(x);
    free(out.start);
    free(out.index);
    free(out.value);
}

/* What memory cannot hold is refused with both numbers, and nothing is made. */
static void test_refusal(void)
{
    char err[600] = "";
    image_file im = {NULL, 0};
    CHECK(image_model(&tied, QSAE_TYPE_BF16, 1, (uint64_t)1 << 52, &im, err,
                      sizeof err) == -1);
    CHECK(im.data == NULL);
    CHECK(strstr(err, "needs 4503599.6 GB of memory, ") &&
          strstr(err, " are available"));
    CHECK(image_find_shape("1.7B") && image_find_shape("1.7B")->d_ff == 6144);
    CHECK(!image_find_shape("2B"));
}

int main(void)
{
    static const uint32_t types[] = {QSAE_TYPE_F32, QSAE_TYPE_BF16, QSAE_TYPE_Q8,
                                     QSAE_TYPE_Q4};
    for (int i = 0; i < 4; i++) {
        test_model(&tied, types[i]);
        test_model(&apart, types[i]);
    }
    for (int i = 0; i < 3; i++) {
        test_cost(&tied, types[i]);
        test_cost(&apart, types[i]);
    }
    test_sae(QSAE_TYPE_F32);
    test_sae(QSAE_TYPE_BF16);
    test_refusal();
    return test_done("test_bench_image");
}
