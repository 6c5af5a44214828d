/* A context that runs only the first layers: what it computes is, bit for bit, what the whole model computes there;
 * it has no logits, and takes nothing that lies deeper. */
#define QSAE_WITH_FORMAT
#include "../qsae.h"

#include "test.h"
#include "tiny.h"

enum { LAYERS = 3, D = 16, TOKENS = 21, CTX = 40 };

static const tiny_shape SHAPE = {LAYERS, D, 2, 2, 16, 17, 200, 0, 0};
static int32_t ids[TOKENS];

static qsae_ctx *make(const qsae_model *m, int32_t n_layers, int32_t n_batch)
{
    qsae_ctx_options o = {CTX, n_batch, 1, {NULL, NULL, NULL}, QSAE_KV_F32, n_layers};
    qsae_ctx *c = NULL;
    qsae_error e;
    if (!CHECK(qsae_ctx_create(m, &o, &c, &e) == QSAE_OK)) printf("%s\n", e.text);
    return c;
}

/* resid_post of layers 0 .. n_layers - 1 after two evals, each [TOKENS, D] */
static void rows_of(qsae_ctx *c, int32_t n_layers, float *rows)
{
    qsae_capture list[LAYERS];
    qsae_error e;
    for (int32_t l = 0; l < n_layers; l++)
        list[l] = (qsae_capture){QSAE_RESID_POST, l, rows + l * TOKENS * D, TOKENS};
    CHECK(qsae_set_captures(c, list, (size_t)n_layers, &e) == QSAE_OK);
    CHECK(qsae_eval(c, ids, 8, &e) == QSAE_OK);
    for (int32_t l = 0; l < n_layers; l++) list[l].rows += 8 * D;
    CHECK(qsae_set_captures(c, list, (size_t)n_layers, &e) == QSAE_OK);
    CHECK(qsae_eval(c, ids + 8, TOKENS - 8, &e) == QSAE_OK);
}

static void test_same(const qsae_model *m, int32_t n_layers, int32_t n_batch)
{
    float whole[LAYERS * TOKENS * D], part[LAYERS * TOKENS * D];
    qsae_ctx *a = make(m, 0, 64), *b = make(m, n_layers, n_batch);
    rows_of(a, LAYERS, whole);
    rows_of(b, n_layers, part);
    CHECK(memcmp(whole, part, (size_t)n_layers * TOKENS * D * sizeof(float)) == 0);
    CHECK(qsae_logits(a) != NULL);
    CHECK((qsae_logits(b) != NULL) == (n_layers == LAYERS));
    CHECK(qsae_ctx_pos(b) == TOKENS);
    qsae_ctx_destroy(a);
    qsae_ctx_destroy(b);
}

static void test_refused(const qsae_model *m)
{
    float rows[TOKENS * 200], vector[D] = {0};
    qsae_error e;
    qsae_ctx_options o = {CTX, 0, 1, {NULL, NULL, NULL}, QSAE_KV_F32, LAYERS + 1};
    qsae_ctx *c = NULL, *all = make(m, 0, 64), *two = make(m, 2, 64);
    CHECK(qsae_ctx_size(m, &o) == 0);
    CHECK(qsae_ctx_create(m, &o, &c, &e) == QSAE_E_ARG && strstr(e.text, "n_layers is 4, the model has 3"));
    o.n_layers = -1;
    CHECK(qsae_ctx_create(m, &o, &c, &e) == QSAE_E_ARG);

    qsae_capture deep = {QSAE_RESID_PRE, 2, rows, TOKENS}, logits = {QSAE_LOGITS, 0, rows, TOKENS};
    CHECK(qsae_set_captures(two, &deep, 1, &e) == QSAE_E_ARG && strstr(e.text, "layer 2, the context runs 2"));
    CHECK(qsae_set_captures(two, &logits, 1, &e) == QSAE_E_ARG && strstr(e.text, "runs 2 of 3 layers"));
    CHECK(qsae_set_captures(all, &logits, 1, &e) == QSAE_OK);
    qsae_edit edit;
    memset(&edit, 0, sizeof edit);
    edit.kind = QSAE_ADD;
    edit.site = QSAE_RESID_POST;
    edit.layer = 2;
    edit.strength = 1;
    edit.vector = vector;
    CHECK(qsae_set_edits(all, &edit, 1, &e) == QSAE_OK);
    CHECK(qsae_set_edits(two, &edit, 1, &e) == QSAE_E_ARG && strstr(e.text, "layer 2, the context runs 2"));
    edit.layer = 1;
    CHECK(qsae_set_edits(two, &edit, 1, &e) == QSAE_OK);

    qsae_batch both[2] = {{all, ids, 3}, {two, ids, 3}};
    CHECK(qsae_eval_many(both, 2, &e) == QSAE_E_MISMATCH && strstr(e.text, "context 0 runs 3 layers, context 1 2"));
    CHECK(qsae_ctx_copy(two, all, &e) == QSAE_E_MISMATCH);
    qsae_ctx_destroy(all);
    qsae_ctx_destroy(two);
}

int main(void)
{
    size_t size;
    uint8_t *image = tiny_model(&SHAPE, 5, &size);
    qsae_model *m = tiny_open_model(image, size, QSAE_ISA_AUTO);
    for (int i = 0; i < TOKENS; i++) ids[i] = (i * 37 + 11) % 200;
    for (int32_t n = 1; n <= LAYERS; n++) {
        test_same(m, n, 64);
        test_same(m, n, 5);
    }
    /* the cache is of the layers that are run */
    qsae_ctx_options one = {4096, 1, 1, {NULL, NULL, NULL}, QSAE_KV_F32, 1}, three = one;
    three.n_layers = 3;
    CHECK(qsae_ctx_size(m, &three) - qsae_ctx_size(m, &one) == (size_t)2 * 2 * 2 * 16 * 4096 * sizeof(float));
    test_refused(m);
    qsae_model_close(m);
    free(image);
    return test_done("test_depth");
}
