/* Every public function with every wrong argument: the status, a text that names the thing and both numbers,
 * outputs untouched, the object usable as before. And what calls promise about each other: order of the hook's
 * events, cancelling, batches. Sampling, encode and decode have tests of their own. */

#include "test.h"
#include "tiny.h"

#include <limits.h>
#include <math.h>

static const tiny_shape SHAPE = {2, 24, 4, 2, 10, 50, 101, 0, 0};
static const tiny_shape OTHER = {1, 16, 2, 1, 8, 20, 30, 1, 0};
static const tiny_sae SAE = {QSAE_RESID_POST, 1, QSAE_RESID_POST, 1, 24, 24, 60, 0, QSAE_ACT_RELU,
    QSAE_NORM_NONE, 0, 0, 0};
enum { N_CTX = 32, VOCAB = 101, WIDTH = 24 };
static const int32_t IDS[N_CTX] = {5, 100, 0, 17, 3, 3, 88, 41, 9, 60, 2, 77, 31, 8, 99, 50,
                                   6, 7,   8, 9,  1, 2, 4,  5,  6, 7,  8, 9,  10, 11, 12, 13};

/* What all tests use; opened once. */
static uint8_t *image, *other_image, *sae_image;
static size_t image_size, other_size, sae_size;
static qsae_model *model, *other;
static qsae_sae *sae;

static qsae_error err;
static char wanted[300];

/* The call failed with this status, the error says so, and its text has this part. */
static void failed(qsae_status st, qsae_status want, const char *text, int line)
{
    int ok = st == want && err.status == want && strstr(err.text, text) != NULL;
    for (const char *p = err.text; *p; p++) ok = ok && *p >= 32 && *p < 127;
    test_check(ok, __FILE__, line, text);
    if (!ok) fprintf(stderr, "    status %d, wanted %d; text: %s\n", (int)st, (int)want, err.text);
    memset(&err, 0, sizeof err);
}

#define FAILS(call, status, text) failed((call), (status), (text), __LINE__)

static qsae_ctx *new_ctx(const qsae_model *m, int32_t n_ctx, int32_t n_batch)
{
    qsae_ctx_options o = {n_ctx, n_batch, 1, {NULL, NULL, NULL}, QSAE_KV_F32, 0};
    qsae_ctx *c = NULL;
    if (!CHECK(qsae_ctx_create(m, &o, &c, &err) == QSAE_OK)) exit(1);
    return c;
}

/* ---- names and numbers ---- */

static void check_constants(void)
{
    CHECK(qsae_version() == QSAE_VERSION_HEX);
    CHECK(QSAE_VERSION_HEX == (QSAE_VERSION_MAJOR << 16 | QSAE_VERSION_MINOR << 8 | QSAE_VERSION_PATCH));
    CHECK_STR(qsae_status_string(QSAE_OK), "ok");
    for (int i = QSAE_OK; i <= QSAE_E_NUM; i++) {
        const char *a = qsae_status_string((qsae_status)i);
        CHECK(a && *a && strcmp(a, "unknown status") != 0);
        for (int j = QSAE_OK; j < i; j++) CHECK(strcmp(a, qsae_status_string((qsae_status)j)) != 0);
    }
    CHECK_STR(qsae_status_string((qsae_status)(QSAE_E_NUM + 1)), "unknown status");
    CHECK_STR(qsae_status_string((qsae_status)-1), "unknown status");
    CHECK_STR(qsae_isa_name(QSAE_ISA_AUTO), "auto");
    CHECK_STR(qsae_isa_name(QSAE_ISA_SCALAR), "scalar");
    CHECK_STR(qsae_isa_name(QSAE_ISA_AVX2), "avx2");
    CHECK_STR(qsae_isa_name(QSAE_ISA_AVX512), "avx512");
    CHECK_STR(qsae_isa_name(QSAE_ISA_AVX512_VNNI), "avx512vnni");
    CHECK_STR(qsae_isa_name(QSAE_ISA_NEON), "neon");
    CHECK_STR(qsae_isa_name(QSAE_ISA_NEON_DOT), "neondot");
    CHECK_STR(qsae_isa_name(QSAE_ISA_NEON_I8MM), "neoni8mm");
    CHECK(qsae_isa_name(QSAE_ISA_COUNT) == NULL && qsae_isa_name((qsae_isa)-1) == NULL);
    CHECK(qsae_isa_available(QSAE_ISA_AUTO) == 1 && qsae_isa_available(QSAE_ISA_SCALAR) == 1);
    CHECK(qsae_isa_available(QSAE_ISA_COUNT) == 0 && qsae_isa_available((qsae_isa)-1) == 0);
    CHECK(!(qsae_isa_available(QSAE_ISA_NEON) && qsae_isa_available(QSAE_ISA_AVX2)));
}

static void check_sites(void)
{
    static const char *const names[] = {"resid_pre", "attn_z", "attn_out", "resid_mid", "mlp_input", "mlp_out",
        "resid_post"};
    CHECK(QSAE_SITE_COUNT == 7);
    for (int i = 0; i < QSAE_SITE_COUNT; i++) {
        CHECK_STR(qsae_site_name((qsae_site)i), names[i]);
        CHECK(qsae_site_from_name(names[i]) == i);
        CHECK(qsae_site_width(model, (qsae_site)i) == (size_t)(i == QSAE_ATTN_Z ? 40 : WIDTH));
    }
    CHECK(qsae_site_width(model, QSAE_LOGITS) == VOCAB);
    CHECK(qsae_site_name(QSAE_SITE_COUNT) == NULL && qsae_site_name((qsae_site)-1) == NULL);
    CHECK(qsae_site_from_name(NULL) == -1 && qsae_site_from_name("") == -1);
    CHECK(qsae_site_from_name("resid_pre ") == -1 && qsae_site_from_name("RESID_PRE") == -1);
    CHECK(qsae_site_from_name("resid") == -1 && qsae_site_from_name("logits") == -1);
}

static void check_info(void)
{
    qsae_model_info i;
    memset(&i, 0xff, sizeof i);
    qsae_model_get_info(model, &i);
    CHECK(i.n_layers == 2 && i.d_model == 24 && i.n_heads == 4 && i.n_kv_heads == 2 && i.head_dim == 10);
    CHECK(i.d_ff == 50 && i.vocab_size == VOCAB && i.max_positions == 4096 && i.tied == 0 && i.n_eos == 0);
    CHECK(i.rope_theta == 1e6 && i.rms_eps == 1e-6f && i.n_tokens == 0 && i.file_size == image_size);
    for (int k = 0; k < QSAE_MAX_EOS; k++) CHECK(i.eos[k] == 0);
    CHECK_STR(i.weight_type, "f32");
    CHECK(i.isa != QSAE_ISA_AUTO && qsae_isa_available(i.isa));
    qsae_model_get_info(other, &i);
    CHECK(i.tied == 1);
}

/* ---- open and close ---- */

static void *half_alloc(void *user, size_t size, size_t align)
{
    (void)user, (void)size, (void)align;
    return NULL;
}

static void half_release(void *user, void *p, size_t size) { (void)user, (void)p, (void)size; }

static void check_open(void)
{
    qsae_model *m = (void *)&err; /* must stay */
    qsae_sae *s = (void *)&err;
    qsae_open_options o;
    qsae_sae_options so;
    memset(&o, 0, sizeof o);
    memset(&so, 0, sizeof so);
    FAILS(qsae_model_open(NULL, NULL, &m, &err), QSAE_E_ARG, "path is NULL");
    FAILS(qsae_model_open("x", NULL, NULL, &err), QSAE_E_ARG, "out is NULL");
    FAILS(qsae_model_open("/no/such file", NULL, &m, &err), QSAE_E_IO, "/no/such file: ");
    FAILS(qsae_model_open_memory(NULL, 100, NULL, &m, &err), QSAE_E_ARG, "NULL");
    FAILS(qsae_model_open_memory(image + 1, 100, NULL, &m, &err), QSAE_E_ARG, "not 64-byte aligned");
    FAILS(qsae_model_open_memory(image, image_size, NULL, NULL, &err), QSAE_E_ARG, "out is NULL");
    FAILS(qsae_model_open_memory(image, 0, NULL, &m, &err), QSAE_E_TRUNC, "0 bytes");
    FAILS(qsae_model_open_memory(sae_image, sae_size, NULL, &m, &err), QSAE_E_MISMATCH, "holds SAEs, not a model");
    FAILS(qsae_sae_open(NULL, NULL, &s, &err), QSAE_E_ARG, "path is NULL");
    FAILS(qsae_sae_open("x", NULL, NULL, &err), QSAE_E_ARG, "out is NULL");
    FAILS(qsae_sae_open("/no/such file", NULL, &s, &err), QSAE_E_IO, "/no/such file: ");
    FAILS(qsae_sae_open_memory(NULL, 100, NULL, &s, &err), QSAE_E_ARG, "NULL");
    FAILS(qsae_sae_open_memory(sae_image + 8, 100, NULL, &s, &err), QSAE_E_ARG, "not 64-byte aligned");
    FAILS(qsae_sae_open_memory(sae_image, sae_size, NULL, NULL, &err), QSAE_E_ARG, "out is NULL");
    FAILS(qsae_sae_open_memory(image, image_size, NULL, &s, &err), QSAE_E_MISMATCH, "holds a model, not SAEs");
    for (int i = 0; i < 2; i++) {
        o.isa = so.open.isa = i ? QSAE_ISA_COUNT : (qsae_isa)-1;
        FAILS(qsae_model_open_memory(image, image_size, &o, &m, &err), QSAE_E_ARG, i ? "isa 8" : "isa -1");
        FAILS(qsae_sae_open_memory(sae_image, sae_size, &so, &s, &err), QSAE_E_ARG, i ? "isa 8" : "isa -1");
    }
    o.isa = so.open.isa = qsae_isa_available(QSAE_ISA_NEON) ? QSAE_ISA_AVX2 : QSAE_ISA_NEON;
    FAILS(qsae_model_open_memory(image, image_size, &o, &m, &err), QSAE_E_UNSUP, qsae_isa_name(o.isa));
    FAILS(qsae_sae_open_memory(sae_image, sae_size, &so, &s, &err), QSAE_E_UNSUP, qsae_isa_name(o.isa));
    o.isa = so.open.isa = QSAE_ISA_AUTO;
    for (int i = 0; i < 2; i++) {
        o.allocator.alloc = so.open.allocator.alloc = i ? half_alloc : NULL;
        o.allocator.release = so.open.allocator.release = i ? NULL : half_release;
        FAILS(qsae_model_open_memory(image, image_size, &o, &m, &err), QSAE_E_ARG, "allocator");
        FAILS(qsae_sae_open_memory(sae_image, sae_size, &so, &s, &err), QSAE_E_ARG, "allocator");
    }
    CHECK(m == (void *)&err && s == (void *)&err);
    CHECK(qsae_model_open(NULL, NULL, &m, NULL) == QSAE_E_ARG);
    CHECK(qsae_sae_open("/no/such file", NULL, &s, NULL) == QSAE_E_IO);
    qsae_model_close(NULL);
    qsae_sae_close(NULL);
    qsae_ctx_destroy(NULL);
}

/* ---- tokenizer calls on a model without one ---- */

static void check_no_tokenizer(void)
{
    int32_t ids[4] = {7, 7, 7, 7};
    size_t n = 99, len = 99;
    qsae_message msg = {.role = "user", .content = "x", .content_len = 1};
    FAILS(qsae_tokenize(model, "x", 1, 0, ids, 4, &n, &err), QSAE_E_STATE, "no tokenizer");
    FAILS(qsae_tokenize(NULL, "x", 1, 0, ids, 4, &n, &err), QSAE_E_ARG, "NULL");
    FAILS(qsae_tokenize(model, NULL, 1, 0, ids, 4, &n, &err), QSAE_E_ARG, "NULL");
    FAILS(qsae_tokenize(model, "x", 1, 0, NULL, 4, &n, &err), QSAE_E_ARG, "NULL");
    FAILS(qsae_tokenize(model, "x", 1, 0, ids, 4, NULL, &err), QSAE_E_ARG, "NULL");
    FAILS(qsae_tokenize(model, "x", 1, 6, ids, 4, &n, &err), QSAE_E_ARG, "flags 0x6");
    FAILS(qsae_tokenize(model, "x", (size_t)INT_MAX + 1, 0, ids, 4, &n, &err), QSAE_E_LIMIT,
        "2147483648 bytes, at most 2147483647");
    FAILS(qsae_chat_tokens(model, &msg, 1, 0, ids, 4, &n, &err), QSAE_E_STATE, "<|im_start|>");
    FAILS(qsae_chat_tokens(NULL, &msg, 1, 0, ids, 4, &n, &err), QSAE_E_ARG, "NULL");
    FAILS(qsae_chat_tokens(model, NULL, 1, 0, ids, 4, &n, &err), QSAE_E_ARG, "NULL");
    FAILS(qsae_chat_tokens(model, &msg, 1, 0, NULL, 4, &n, &err), QSAE_E_ARG, "NULL");
    FAILS(qsae_chat_tokens(model, &msg, 1, 0, ids, 4, NULL, &err), QSAE_E_ARG, "NULL");
    FAILS(qsae_chat_tokens(model, &msg, 1, 16, ids, 4, &n, &err), QSAE_E_ARG, "flags 0x10");
    CHECK(n == 99 && ids[0] == 7 && ids[3] == 7);
    CHECK(qsae_tokenize(model, "x", 1, 0, ids, 4, &n, NULL) == QSAE_E_STATE);
    CHECK(qsae_token_text(model, 0, &len) == NULL && len == 0);
    len = 99;
    CHECK(qsae_token_text(model, -1, &len) == NULL && len == 0);
    CHECK(qsae_utf8_complete("", 0) == 0 && qsae_utf8_complete("abc", 3) == 3);
    CHECK(qsae_utf8_complete("a\303", 2) == 1 && qsae_utf8_complete("a\303\244", 3) == 3);
    CHECK(qsae_utf8_complete("\377\377", 2) == 2);
}

/* ---- contexts ---- */

static void check_bad_options(qsae_ctx_options o, const char *text)
{
    qsae_ctx *c = (void *)&err;
    FAILS(qsae_ctx_create(model, &o, &c, &err), QSAE_E_ARG, text);
    CHECK(c == (void *)&err && qsae_ctx_size(model, &o) == 0);
    CHECK(qsae_ctx_create(model, &o, &c, NULL) == QSAE_E_ARG);
}

static void check_ctx_options(void)
{
    const qsae_allocator none = {NULL, NULL, NULL}, half = {half_alloc, NULL, NULL}, no = {half_alloc,
        half_release, NULL};
    static const int32_t bad_ctx[] = {-1, INT32_MIN, 1048577, INT32_MAX};
    static const int32_t bad_batch[] = {-1, INT32_MIN, 65537, INT32_MAX};
    static const int32_t bad_threads[] = {-1, INT32_MIN, 1025, INT32_MAX};
    for (int i = 0; i < 4; i++) {
        qsae_ctx_options a = {bad_ctx[i], 0, 0, none, QSAE_KV_F32, 0}, b = {8, bad_batch[i], 0, none, QSAE_KV_F32, 0},
                         c = {8, 0, bad_threads[i], none, QSAE_KV_F32, 0};
        snprintf(wanted, sizeof wanted, "n_ctx is %d, must be 1..1048576", bad_ctx[i]);
        check_bad_options(a, wanted);
        snprintf(wanted, sizeof wanted, "n_batch is %d, must be 1..65536", bad_batch[i]);
        check_bad_options(b, wanted);
        snprintf(wanted, sizeof wanted, "n_threads is %d, must be 0..1024", bad_threads[i]);
        check_bad_options(c, wanted);
    }
    qsae_ctx_options d = {8, 0, 0, half, QSAE_KV_F32, 0}, starved = {8, 0, 0, no, QSAE_KV_F32, 0}, zero,
                     no_type = {8, 0, 0, none, QSAE_KV_COUNT, 0};
    check_bad_options(no_type, "kv_type 3");
    check_bad_options(d, "allocator");
    qsae_ctx *c = (void *)&err;
    snprintf(wanted, sizeof wanted, "context of %zu bytes", qsae_ctx_size(model, &starved));
    FAILS(qsae_ctx_create(model, &starved, &c, &err), QSAE_E_NOMEM, wanted);
    FAILS(qsae_ctx_create(NULL, NULL, &c, &err), QSAE_E_ARG, "model is NULL");
    FAILS(qsae_ctx_create(model, NULL, NULL, &err), QSAE_E_ARG, "out is NULL");
    CHECK(c == (void *)&err && qsae_ctx_size(NULL, NULL) == 0);
    memset(&zero, 0, sizeof zero);
    CHECK(qsae_ctx_size(model, NULL) > 0 && qsae_ctx_size(model, NULL) == qsae_ctx_size(model, &zero));
    qsae_ctx_options explicit_defaults = {4096, 64, 1, none, QSAE_KV_F32, 0},
                     large = {1048576, 65536, 1024, none, QSAE_KV_F32, 0};
    CHECK(qsae_ctx_size(model, &explicit_defaults) == qsae_ctx_size(model, NULL));
    CHECK(qsae_ctx_size(model, &large) > qsae_ctx_size(model, NULL));
    CHECK(qsae_ctx_create(model, NULL, &c, &err) == QSAE_OK && qsae_ctx_pos(c) == 0 && qsae_logits(c) == NULL);
    CHECK(qsae_eval(c, IDS, 4, NULL) == QSAE_OK && qsae_ctx_pos(c) == 4);
    CHECK(memcmp(qsae_ctx_tokens(c), IDS, 16) == 0);
    qsae_ctx_destroy(c);
}

static void check_copy_rewind(void)
{
    qsae_ctx *a = new_ctx(model, N_CTX, 8), *small = new_ctx(model, 4, 8), *b = new_ctx(other, N_CTX, 8);
    float logits[VOCAB];
    CHECK(qsae_eval(a, IDS, 5, NULL) == QSAE_OK && qsae_eval(small, IDS + 9, 2, NULL) == QSAE_OK);
    memcpy(logits, qsae_logits(small), sizeof logits);
    FAILS(qsae_ctx_copy(NULL, a, &err), QSAE_E_ARG, "NULL");
    FAILS(qsae_ctx_copy(a, NULL, &err), QSAE_E_ARG, "NULL");
    FAILS(qsae_ctx_copy(b, a, &err), QSAE_E_MISMATCH, "two models");
    FAILS(qsae_ctx_copy(small, a, &err), QSAE_E_MISMATCH, "source has 5 positions, the target holds 4");
    CHECK(qsae_ctx_pos(small) == 2 && qsae_ctx_tokens(small)[1] == IDS[10]);
    CHECK(memcmp(qsae_logits(small), logits, sizeof logits) == 0);
    FAILS(qsae_ctx_rewind(NULL, 0, &err), QSAE_E_ARG, "NULL");
    FAILS(qsae_ctx_rewind(small, -1, &err), QSAE_E_ARG, "cannot rewind to -1, the position is 2");
    FAILS(qsae_ctx_rewind(small, 3, &err), QSAE_E_ARG, "cannot rewind to 3, the position is 2");
    CHECK(qsae_ctx_rewind(small, INT32_MAX, NULL) == QSAE_E_ARG);
    CHECK(memcmp(qsae_logits(small), logits, sizeof logits) == 0);
    CHECK(qsae_ctx_rewind(small, 2, &err) == QSAE_OK && qsae_logits(small) != NULL); /* the present position */
    CHECK(qsae_ctx_rewind(small, 1, &err) == QSAE_OK && qsae_logits(small) == NULL);
    CHECK(qsae_ctx_rewind(small, 0, &err) == QSAE_OK && qsae_ctx_pos(small) == 0);
    CHECK(qsae_ctx_rewind(small, 0, &err) == QSAE_OK);
    CHECK(qsae_ctx_rewind(a, 4, &err) == QSAE_OK && qsae_ctx_copy(small, a, &err) == QSAE_OK); /* just fits */
    CHECK(qsae_ctx_pos(small) == 4 && qsae_logits(small) == NULL);
    CHECK(qsae_eval(small, IDS, 1, NULL) == QSAE_E_STATE);
    qsae_ctx_destroy(a);
    qsae_ctx_destroy(small);
    qsae_ctx_destroy(b);
}

/* A copy goes on as the original would, at every position of a block of the cache. */
static void check_copy_goes_on(void)
{
    qsae_ctx *a = new_ctx(model, N_CTX, 8), *b = new_ctx(model, N_CTX + 9, 3), *empty = new_ctx(model, N_CTX, 8);
    const size_t bytes = VOCAB * sizeof(float);
    for (int32_t pos = 1; pos < 20; pos++) {
        CHECK(qsae_eval(a, IDS + pos - 1, 1, &err) == QSAE_OK && qsae_ctx_copy(b, a, &err) == QSAE_OK);
        CHECK(qsae_ctx_pos(b) == pos && memcmp(qsae_ctx_tokens(b), IDS, (size_t)pos * sizeof *IDS) == 0);
        CHECK(qsae_logits(b) && memcmp(qsae_logits(a), qsae_logits(b), bytes) == 0);
        float want[VOCAB];
        CHECK(qsae_eval(a, IDS + pos, 1, &err) == QSAE_OK);
        memcpy(want, qsae_logits(a), bytes);
        CHECK(qsae_eval(b, IDS + pos, 1, &err) == QSAE_OK && memcmp(qsae_logits(b), want, bytes) == 0);
        CHECK(qsae_ctx_rewind(a, pos, &err) == QSAE_OK && qsae_ctx_copy(b, empty, &err) == QSAE_OK);
        CHECK(qsae_ctx_pos(b) == 0 && qsae_logits(b) == NULL); /* what the source has not, the copy has not */
        CHECK(qsae_eval(b, IDS + 20, 5, &err) == QSAE_OK);     /* something else for the next round to replace */
    }
    qsae_ctx_destroy(a);
    qsae_ctx_destroy(b);
    qsae_ctx_destroy(empty);
}

/* ---- captures and hook lists ---- */

static void check_captures(void)
{
    static float rows[N_CTX * VOCAB], again[N_CTX * WIDTH];
    qsae_ctx *c = new_ctx(model, N_CTX, 8);
    qsae_capture good = {QSAE_RESID_POST, 1, rows, 4}, bad;
    memset(rows, 0, sizeof rows);
    CHECK(qsae_set_captures(c, &good, 1, &err) == QSAE_OK);
    FAILS(qsae_set_captures(NULL, &good, 1, &err), QSAE_E_ARG, "NULL");
    FAILS(qsae_set_captures(c, NULL, 1, &err), QSAE_E_ARG, "NULL");
    qsae_capture two[2] = {good, good};
    two[1].rows = NULL;
    FAILS(qsae_set_captures(c, two, 2, &err), QSAE_E_ARG, "capture 1: rows is NULL");
    bad = good, bad.site = (qsae_site)8;
    FAILS(qsae_set_captures(c, &bad, 1, &err), QSAE_E_ARG, "capture 0: 8 is not a site");
    bad.site = (qsae_site)-1;
    FAILS(qsae_set_captures(c, &bad, 1, &err), QSAE_E_ARG, "capture 0: -1 is not a site");
    bad = good, bad.layer = 2;
    FAILS(qsae_set_captures(c, &bad, 1, &err), QSAE_E_ARG, "capture 0: layer 2, the model has 2");
    bad.layer = -1;
    FAILS(qsae_set_captures(c, &bad, 1, &err), QSAE_E_ARG, "capture 0: layer -1");
    bad.site = QSAE_LOGITS, bad.layer = 1;
    FAILS(qsae_set_captures(c, &bad, 1, &err), QSAE_E_ARG, "capture 0: logits have layer 0, not 1");
    /* the old list is still there, and too small for five tokens */
    FAILS(qsae_eval(c, IDS, 5, &err), QSAE_E_ARG, "capture 0 holds 4 rows, the eval has 5");
    CHECK(qsae_ctx_pos(c) == 0 && rows[0] == 0);
    CHECK(qsae_eval(c, IDS, 4, &err) == QSAE_OK && rows[0] != 0 && rows[4 * WIDTH - 1] != 0 && rows[4 * WIDTH] == 0);
    /* one site twice, and the logits */
    qsae_capture three[3] = {{QSAE_RESID_POST, 1, rows, N_CTX}, {QSAE_RESID_POST, 1, again, N_CTX},
        {QSAE_LOGITS, 0, rows + N_CTX * WIDTH, 20}};
    CHECK(qsae_set_captures(c, three, 3, NULL) == QSAE_OK && qsae_eval(c, IDS + 4, 20, NULL) == QSAE_OK);
    CHECK(memcmp(rows, again, 20 * WIDTH * sizeof(float)) == 0);
    CHECK(memcmp(rows + N_CTX * WIDTH + 19 * VOCAB, qsae_logits(c), VOCAB * sizeof(float)) == 0);
    CHECK(qsae_set_captures(c, NULL, 0, NULL) == QSAE_OK);
    float before = rows[0];
    CHECK(qsae_eval(c, IDS, 8, NULL) == QSAE_OK && rows[0] == before);
    qsae_ctx_destroy(c);
}

typedef struct trace {
    int32_t last_layer, last_site, last_pos; /* of the latest event */
    int seen[2][QSAE_SITE_COUNT][N_CTX];     /* how often a row came by */
    int bad;
    qsae_ctx *ctx;
    int stop_layer, stop_site, stop_pos; /* stop where this row comes by */
} trace;

static int watch(void *user, const qsae_event *e, float *rows)
{
    trace *t = user;
    int32_t layer = e->layer, site = (int32_t)e->site;
    if (e->ctx != t->ctx || e->width != qsae_site_width(model, e->site) || e->ld < e->width || !rows) t->bad++;
    if (!e->n_rows || e->pos < 0 || (size_t)e->pos + e->n_rows > N_CTX) return t->bad++, 1;
    /* within a pass, sites come in the order of the picture in qsae.h */
    if (e->pos == t->last_pos && (layer < t->last_layer || (layer == t->last_layer &&
        site <= t->last_site))) t->bad++;
    t->last_layer = layer, t->last_site = site, t->last_pos = e->pos;
    for (size_t r = 0; r < e->n_rows; r++) {
        t->seen[layer][site][(size_t)e->pos + r]++;
        if (layer == t->stop_layer && site == t->stop_site && e->pos + (int32_t)r == t->stop_pos) return 1;
    }
    return 0;
}

static void check_hook(void)
{
    trace t;
    memset(&t, 0, sizeof t);
    t.ctx = new_ctx(model, N_CTX, 8);
    t.last_pos = t.stop_pos = -1;
    qsae_hook h = {watch, &t, 0x7f, 0, 0}, bad = h;
    FAILS(qsae_set_hook(NULL, &h, &err), QSAE_E_ARG, "NULL");
    bad.sites = 0x80;
    FAILS(qsae_set_hook(t.ctx, &bad, &err), QSAE_E_ARG, "sites 0x80");
    bad = h, bad.layer_begin = -1;
    FAILS(qsae_set_hook(t.ctx, &bad, &err), QSAE_E_ARG, "layers -1..0");
    bad = h, bad.layer_end = -2;
    FAILS(qsae_set_hook(t.ctx, &bad, &err), QSAE_E_ARG, "layers 0..-2");
    CHECK(qsae_set_hook(t.ctx, &h, &err) == QSAE_OK);
    CHECK(qsae_eval(t.ctx, IDS, 20, &err) == QSAE_OK && t.bad == 0);
    int wrong = 0;
    for (int l = 0; l < 2; l++)
        for (int s = 0; s < QSAE_SITE_COUNT; s++)
            for (int p = 0; p < N_CTX; p++) wrong += t.seen[l][s][p] != (p < 20);
    CHECK(wrong == 0);
    h.sites = 1u << QSAE_ATTN_Z | 1u << QSAE_MLP_OUT;
    h.layer_begin = 1, h.layer_end = 2;
    CHECK(qsae_set_hook(t.ctx, &h, NULL) == QSAE_OK && qsae_eval(t.ctx, IDS + 20, 3, NULL) == QSAE_OK);
    for (int l = 0; l < 2; l++)
        for (int s = 0; s < QSAE_SITE_COUNT; s++)
            for (int p = 20; p < N_CTX; p++)
                wrong += t.seen[l][s][p] != (p < 23 && l == 1 && (s == QSAE_ATTN_Z || s == QSAE_MLP_OUT));
    CHECK(wrong == 0 && t.bad == 0);
    CHECK(qsae_set_hook(t.ctx, NULL, &err) == QSAE_OK && qsae_eval(t.ctx, IDS + 23, 3, NULL) == QSAE_OK);
    for (int p = 23; p < N_CTX; p++) wrong += t.seen[1][QSAE_ATTN_Z][p];
    CHECK(wrong == 0);
    qsae_ctx_destroy(t.ctx);
}

/* ---- eval ---- */

static void check_eval(void)
{
    qsae_ctx *c = new_ctx(model, 8, 8), *d = new_ctx(model, 8, 3), *o = new_ctx(other, 8, 3);
    float logits[VOCAB];
    int32_t bad[2] = {1, VOCAB};
    FAILS(qsae_eval(NULL, IDS, 1, &err), QSAE_E_ARG, "NULL");
    FAILS(qsae_eval(c, NULL, 1, &err), QSAE_E_ARG, "NULL");
    CHECK(qsae_eval(c, IDS, 0, &err) == QSAE_OK && qsae_eval(c, NULL, 0, NULL) == QSAE_OK);
    CHECK(qsae_ctx_pos(c) == 0 && qsae_logits(c) == NULL);
    CHECK(qsae_eval(c, IDS, 6, &err) == QSAE_OK);
    memcpy(logits, qsae_logits(c), sizeof logits);
    FAILS(qsae_eval(c, bad, 2, &err), QSAE_E_ARG, "token 1 is 101, vocab_size is 101");
    bad[1] = -1;
    FAILS(qsae_eval(c, bad, 2, &err), QSAE_E_ARG, "token 1 is -1, vocab_size is 101");
    bad[1] = INT32_MIN;
    CHECK(qsae_eval(c, bad, 2, NULL) == QSAE_E_ARG);
    bad[1] = INT32_MAX;
    CHECK(qsae_eval(c, bad, 2, NULL) == QSAE_E_ARG);
    FAILS(qsae_eval(c, IDS, 3, &err), QSAE_E_STATE, "3 tokens at position 6, it holds 8");
    FAILS(qsae_eval(c, IDS, SIZE_MAX, &err), QSAE_E_STATE, "at position 6, it holds 8");
    CHECK(qsae_ctx_pos(c) == 6 && memcmp(qsae_ctx_tokens(c), IDS, 24) == 0);
    CHECK(qsae_logits(c) && memcmp(qsae_logits(c), logits, sizeof logits) == 0);
    CHECK(qsae_eval(c, IDS, 0, &err) == QSAE_OK && qsae_logits(c) != NULL);
    CHECK(qsae_eval(c, IDS + 6, 2, &err) == QSAE_OK && qsae_ctx_pos(c) == 8);
    FAILS(qsae_eval(c, IDS, 1, &err), QSAE_E_STATE, "1 tokens at position 8, it holds 8");
    qsae_batch b[3] = {{d, IDS, 2}, {c, IDS, 0}, {d, IDS, 1}};
    FAILS(qsae_eval_many(b, 3, &err), QSAE_E_ARG, "entries 0 and 2 are one context");
    b[2].ctx = o;
    FAILS(qsae_eval_many(b, 3, &err), QSAE_E_MISMATCH, "contexts 0 and 2 have two models");
    b[2].ctx = NULL;
    FAILS(qsae_eval_many(b, 3, &err), QSAE_E_ARG, "entry 2 has a NULL");
    b[0].tokens = NULL;
    FAILS(qsae_eval_many(b, 2, &err), QSAE_E_ARG, "entry 0 has a NULL");
    b[0].tokens = IDS, b[0].ctx = NULL;
    FAILS(qsae_eval_many(b, 2, &err), QSAE_E_ARG, "NULL");
    FAILS(qsae_eval_many(NULL, 2, &err), QSAE_E_ARG, "NULL");
    b[0].ctx = d, b[1].n = 1;
    FAILS(qsae_eval_many(b, 2, &err), QSAE_E_STATE, "context 1 of 2: 1 tokens at position 8, it holds 8");
    CHECK(qsae_ctx_pos(d) == 0 && qsae_logits(d) == NULL && qsae_ctx_pos(c) == 8 && qsae_logits(c));
    CHECK(qsae_eval_many(NULL, 0, &err) == QSAE_OK && qsae_eval_many(b, 0, NULL) == QSAE_OK);
    b[1].n = 0;
    CHECK(qsae_eval_many(b, 2, &err) == QSAE_OK && qsae_ctx_pos(d) == 2 && qsae_ctx_pos(c) == 8);
    qsae_ctx_destroy(c);
    qsae_ctx_destroy(d);
    qsae_ctx_destroy(o);
}

/* An eval that the hook stops leaves no trace: going on gives the bits of a run that was never stopped. */
static void check_cancel(void)
{
    float want[VOCAB];
    qsae_ctx *c = new_ctx(model, N_CTX, 4);
    CHECK(qsae_eval(c, IDS, 14, &err) == QSAE_OK);
    memcpy(want, qsae_logits(c), sizeof want);
    for (int layer = 0; layer < 2; layer++)
        for (int site = 0; site < QSAE_SITE_COUNT; site++)
            for (int pos = 5; pos < 14; pos += 4) {
                trace t;
                memset(&t, 0, sizeof t);
                t.ctx = c, t.last_pos = -1;
                t.stop_layer = layer, t.stop_site = site, t.stop_pos = pos;
                qsae_hook h = {watch, &t, 0x7f, 0, 0};
                CHECK(qsae_ctx_rewind(c, 0, &err) == QSAE_OK && qsae_eval(c, IDS, 3, &err) == QSAE_OK);
                CHECK(qsae_set_hook(c, &h, &err) == QSAE_OK);
                snprintf(wanted, sizeof wanted, "the hook stopped at %s of layer %d",
                    qsae_site_name((qsae_site)site), layer);
                FAILS(qsae_eval(c, IDS + 3, 11, &err), QSAE_E_CANCELLED, wanted);
                CHECK(qsae_ctx_pos(c) == 3 && t.bad == 0);
                CHECK(qsae_eval(c, IDS + 3, 11, NULL) == QSAE_E_CANCELLED);
                CHECK(qsae_set_hook(c, NULL, &err) == QSAE_OK);
                CHECK(qsae_eval(c, IDS + 3, 11, &err) == QSAE_OK && qsae_ctx_pos(c) == 14);
                CHECK(memcmp(qsae_logits(c), want, sizeof want) == 0);
            }
    qsae_ctx_destroy(c);
}

/* In a joint pass one hook stops all, and nobody has moved. */
static void check_cancel_many(void)
{
    float want[3][VOCAB];
    qsae_ctx *c[3];
    qsae_batch b[3];
    for (int i = 0; i < 3; i++) {
        c[i] = new_ctx(model, N_CTX, 5);
        CHECK(qsae_eval(c[i], IDS + i, 9, &err) == QSAE_OK);
        memcpy(want[i], qsae_logits(c[i]), sizeof want[i]);
        CHECK(qsae_ctx_rewind(c[i], 2, &err) == QSAE_OK);
        qsae_batch one = {c[i], IDS + i + 2, 7};
        b[i] = one;
    }
    trace t;
    memset(&t, 0, sizeof t);
    t.ctx = c[2], t.last_pos = -1, t.stop_layer = 1, t.stop_site = QSAE_MLP_OUT, t.stop_pos = 8;
    qsae_hook h = {watch, &t, 0x7f, 0, 0};
    CHECK(qsae_set_hook(c[2], &h, &err) == QSAE_OK);
    FAILS(qsae_eval_many(b, 3, &err), QSAE_E_CANCELLED, "the hook stopped at mlp_out of layer 1");
    for (int i = 0; i < 3; i++) CHECK(qsae_ctx_pos(c[i]) == 2);
    t.stop_pos = -1;
    CHECK(qsae_eval_many(b, 3, &err) == QSAE_OK);
    for (int i = 0; i < 3; i++) {
        CHECK(qsae_ctx_pos(c[i]) == 9 && memcmp(qsae_logits(c[i]), want[i], sizeof want[i]) == 0);
        qsae_ctx_destroy(c[i]);
    }
}

/* A hook may use another context, but not the one that is busy. */
typedef struct nested {
    qsae_ctx *own, *free;
    qsae_status own_status, free_status;
    int depth;
} nested;

static int nest(void *user, const qsae_event *e, float *rows)
{
    nested *n = user;
    (void)e, (void)rows;
    if (n->depth++) return 0; /* a library that lets us in must not drown us */
    n->own_status = qsae_eval(n->own, IDS, 1, NULL);
    qsae_batch b[2] = {{n->free, IDS, 1}, {n->own, IDS, 1}};
    FAILS(qsae_eval_many(b, 2, &err), QSAE_E_STATE, "context 1 is in an eval");
    FAILS(qsae_ctx_rewind(n->own, 0, &err), QSAE_E_STATE, "in an eval");
    FAILS(qsae_ctx_copy(n->own, n->free, &err), QSAE_E_STATE, "in an eval");
    FAILS(qsae_set_captures(n->own, NULL, 0, &err), QSAE_E_STATE, "in an eval");
    FAILS(qsae_set_edits(n->own, NULL, 0, &err), QSAE_E_STATE, "in an eval");
    FAILS(qsae_set_hook(n->own, NULL, &err), QSAE_E_STATE, "in an eval");
    CHECK(qsae_ctx_pos(n->free) == 0);
    n->free_status = qsae_eval(n->free, IDS, 1, NULL);
    return 0;
}

static void check_nested(void)
{
    nested n = {new_ctx(model, N_CTX, 4), new_ctx(model, N_CTX, 4), QSAE_OK, QSAE_E_STATE, 0};
    qsae_hook h = {nest, &n, 1u << QSAE_ATTN_OUT, 1, 2};
    float want[VOCAB];
    CHECK(qsae_eval(n.own, IDS, 4, &err) == QSAE_OK);
    memcpy(want, qsae_logits(n.own), sizeof want);
    CHECK(qsae_ctx_rewind(n.own, 0, &err) == QSAE_OK && qsae_set_hook(n.own, &h, &err) == QSAE_OK);
    CHECK(qsae_eval(n.own, IDS, 4, &err) == QSAE_OK);
    CHECK(n.own_status == QSAE_E_STATE && n.free_status == QSAE_OK && qsae_ctx_pos(n.free) == 1);
    CHECK(qsae_ctx_pos(n.own) == 4 && memcmp(qsae_logits(n.own), want, sizeof want) == 0);
    qsae_ctx_destroy(n.own);
    qsae_ctx_destroy(n.free);
}

/* ---- edit lists ---- */

static float vector[64], probe[64];

static qsae_edit vector_edit(void)
{
    qsae_edit e;
    memset(&e, 0, sizeof e);
    e.kind = QSAE_ADD, e.strength = 1, e.site = QSAE_RESID_MID, e.layer = 1, e.vector = vector;
    return e;
}

static void bad_edit(qsae_ctx *c, const qsae_edit *bad, qsae_status status, const char *text, int line)
{
    qsae_edit list[2] = {vector_edit(), *bad};
    char full[300];
    snprintf(full, sizeof full, "edit 1: %s", text);
    failed(qsae_set_edits(c, list, 2, &err), status, full, line);
    test_check(qsae_set_edits(c, list, 2, NULL) == status, __FILE__, line, "without an error");
}

#define BAD(field_change, status, text)          \
    do {                                         \
        e = good;                                \
        field_change;                            \
        bad_edit(c, &e, status, text, __LINE__); \
    } while (0)

static void check_vector_edits(qsae_ctx *c)
{
    qsae_edit good = vector_edit(), e;
    BAD(e.kind = (qsae_edit_kind)0, QSAE_E_ARG, "0 is not a kind");
    BAD(e.kind = (qsae_edit_kind)10, QSAE_E_ARG, "10 is not a kind");
    BAD(e.strength = NAN, QSAE_E_NUM, "strength or value is not finite");
    BAD(e.strength = INFINITY, QSAE_E_NUM, "strength or value is not finite");
    BAD(e.value = -INFINITY, QSAE_E_NUM, "strength or value is not finite");
    BAD(e.pos_begin = -1, QSAE_E_ARG, "positions -1..0");
    BAD(e.pos_end = -1, QSAE_E_ARG, "positions 0..-1");
    BAD((e.pos_begin = 5, e.pos_end = 4), QSAE_E_ARG, "positions 5..4");
    BAD(e.vector = NULL, QSAE_E_ARG, "vector is NULL");
    BAD(e.site = QSAE_LOGITS, QSAE_E_ARG, "7 is not a site");
    BAD(e.site = (qsae_site)-1, QSAE_E_ARG, "-1 is not a site");
    BAD(e.layer = 2, QSAE_E_ARG, "layer 2, the model has 2");
    BAD(e.layer = -1, QSAE_E_ARG, "layer -1, the model has 2");
    vector[23] = NAN;
    FAILS(qsae_set_edits(c, &good, 1, &err), QSAE_E_NUM, "edit 0: the vector is not finite");
    good.site = QSAE_ATTN_Z;
    vector[23] = 0, vector[39] = INFINITY; /* within the width of attn_z, beyond that of others */
    FAILS(qsae_set_edits(c, &good, 1, &err), QSAE_E_NUM, "edit 0: the vector is not finite");
    good.site = QSAE_MLP_OUT;
    CHECK(qsae_set_edits(c, &good, 1, &err) == QSAE_OK);
    vector[39] = 0;
}

static void check_feature_edits(qsae_ctx *c, const qsae_sae *narrow, const qsae_sae *deep)
{
    qsae_edit good = qsae_edit_feature(sae, 59, QSAE_FEATURE_SET, 2), e;
    CHECK(good.strength == 1 && good.value == 2 && good.sae == sae && good.feature == 59 &&
        good.kind == QSAE_FEATURE_SET);
    CHECK(good.pos_begin == 0 && good.pos_end == QSAE_END && !good.gate.sae && !good.gate.probe && !good.vector);
    CHECK(qsae_set_edits(c, &good, 1, &err) == QSAE_OK);
    BAD(e.sae = NULL, QSAE_E_ARG, "sae is NULL");
    BAD((e.sae = NULL, e.kind = QSAE_SAE_REPLACE), QSAE_E_ARG, "sae is NULL");
    BAD(e.feature = 60, QSAE_E_ARG, "feature 60, d_sae is 60");
    BAD(e.feature = UINT32_MAX, QSAE_E_ARG, "feature 4294967295, d_sae is 60");
    BAD(e.value = NAN, QSAE_E_NUM, "strength or value is not finite");
    BAD(e.sae = narrow, QSAE_E_MISMATCH, "the SAE maps 16 to 16, the model's sites are 24 and 24");
    BAD(e.sae = deep, QSAE_E_MISMATCH, "the SAE is of layer 2, the model has 2");
    e = good, e.kind = QSAE_SAE_REPLACE, e.feature = 1000; /* not used */
    CHECK(qsae_set_edits(c, &e, 1, &err) == QSAE_OK);
    e = good, e.pos_begin = 3, e.pos_end = 3; /* nowhere, and INT32_MAX is a position like any */
    CHECK(qsae_set_edits(c, &e, 1, &err) == QSAE_OK);
    e.pos_begin = e.pos_end = INT32_MAX;
    CHECK(qsae_set_edits(c, &e, 1, &err) == QSAE_OK);
}

static void check_gates(qsae_ctx *c, const qsae_sae *narrow, const qsae_sae *deep)
{
    qsae_edit good = vector_edit(), e;
    good.gate.probe = probe, good.gate.site = QSAE_RESID_MID, good.gate.layer = 1;
    CHECK(qsae_set_edits(c, &good, 1, &err) == QSAE_OK); /* at the same site: read first */
    BAD(e.gate.sae = sae, QSAE_E_ARG, "the gate has an SAE and a probe");
    BAD(e.gate.threshold = NAN, QSAE_E_NUM, "the gate's threshold is not finite");
    BAD(e.gate.site = QSAE_MLP_INPUT, QSAE_E_ARG,
        "acts at resid_mid of layer 1, before its gate is read (mlp_input of 1)");
    BAD((e.layer = 0, e.gate.site = QSAE_RESID_PRE), QSAE_E_ARG,
        "acts at resid_mid of layer 0, before its gate is read (resid_pre of 1)");
    probe[23] = INFINITY;
    BAD((void)0, QSAE_E_NUM, "the gate's probe is not finite");
    probe[23] = 0;
    e = good, e.gate.site = QSAE_LOGITS;
    FAILS(qsae_set_edits(c, &e, 1, &err), QSAE_E_ARG, "gate of edit 0: 7 is not a site");
    e = good, e.gate.layer = 2;
    FAILS(qsae_set_edits(c, &e, 1, &err), QSAE_E_ARG, "gate of edit 0: layer 2, the model has 2");
    good.gate.probe = NULL, good.gate.sae = sae, good.site = QSAE_RESID_POST;
    CHECK(qsae_set_edits(c, &good, 1, &err) == QSAE_OK);
    BAD(e.gate.feature = 60, QSAE_E_ARG, "feature 60, d_sae is 60");
    BAD(e.gate.sae = narrow, QSAE_E_MISMATCH, "the SAE maps 16 to 16");
    BAD(e.gate.sae = deep, QSAE_E_MISMATCH, "the SAE is of layer 2, the model has 2");
    BAD(e.site = QSAE_MLP_OUT, QSAE_E_ARG, "acts at mlp_out of layer 1, before its gate is read (resid_post of 1)");
}

static void check_edits(void)
{
    tiny_sae narrow_shape = SAE, deep_shape = SAE;
    narrow_shape.d_in = narrow_shape.d_out = 16;
    deep_shape.layer_in = deep_shape.layer_out = 2;
    size_t narrow_size, deep_size;
    uint8_t *narrow_image = tiny_sae_file(&narrow_shape, 4, &narrow_size);
    uint8_t *deep_image = tiny_sae_file(&deep_shape, 5, &deep_size);
    qsae_sae *narrow = tiny_open_sae(narrow_image, narrow_size, QSAE_ISA_AUTO);
    qsae_sae *deep = tiny_open_sae(deep_image, deep_size, QSAE_ISA_AUTO);
    qsae_ctx *c = new_ctx(model, N_CTX, 8);
    qsae_edit good = vector_edit();
    FAILS(qsae_set_edits(NULL, &good, 1, &err), QSAE_E_ARG, "NULL");
    FAILS(qsae_set_edits(c, NULL, 1, &err), QSAE_E_ARG, "NULL");
    check_vector_edits(c);
    check_feature_edits(c, narrow, deep);
    check_gates(c, narrow, deep);
    /* after all these failures the list that was set last still acts */
    float plain[VOCAB], steered[VOCAB];
    for (int j = 0; j < WIDTH; j++) vector[j] = 1;
    CHECK(qsae_set_edits(c, NULL, 0, &err) == QSAE_OK && qsae_eval(c, IDS, 3, &err) == QSAE_OK);
    memcpy(plain, qsae_logits(c), sizeof plain);
    CHECK(qsae_set_edits(c, &good, 1, &err) == QSAE_OK && qsae_ctx_rewind(c, 0, &err) == QSAE_OK);
    CHECK(qsae_eval(c, IDS, 3, &err) == QSAE_OK);
    memcpy(steered, qsae_logits(c), sizeof steered);
    CHECK(memcmp(plain, steered, sizeof plain) != 0);
    good.layer = 7;
    memset(vector, 0, sizeof vector); /* copied: what the caller does to it now is nothing to us */
    CHECK(qsae_set_edits(c, &good, 1, NULL) == QSAE_E_ARG && qsae_ctx_rewind(c, 0, &err) == QSAE_OK);
    CHECK(qsae_eval(c, IDS, 3, &err) == QSAE_OK && memcmp(qsae_logits(c), steered, sizeof steered) == 0);
    qsae_ctx_destroy(c);
    qsae_sae_close(narrow);
    qsae_sae_close(deep);
    free(narrow_image);
    free(deep_image);
}

/* err is filled on failure only. */
static void check_err_on_success(void)
{
    qsae_error e;
    memset(&e, 0x55, sizeof e);
    qsae_error copy = e;
    qsae_model *m = NULL;
    qsae_sae *s = NULL;
    qsae_ctx *c = NULL;
    qsae_capture cap = {QSAE_RESID_PRE, 0, vector, 1};
    qsae_edit edit = vector_edit();
    qsae_hook none;
    memset(&none, 0, sizeof none);
    CHECK(qsae_model_open_memory(image, image_size, NULL, &m, &e) == QSAE_OK);
    CHECK(qsae_sae_open_memory(sae_image, sae_size, NULL, &s, &e) == QSAE_OK);
    CHECK(qsae_ctx_create(m, NULL, &c, &e) == QSAE_OK);
    CHECK(qsae_set_captures(c, &cap, 1, &e) == QSAE_OK && qsae_set_edits(c, &edit, 1, &e) == QSAE_OK);
    CHECK(qsae_set_hook(c, &none, &e) == QSAE_OK && qsae_eval(c, IDS, 1, &e) == QSAE_OK);
    CHECK(qsae_ctx_rewind(c, 0, &e) == QSAE_OK && qsae_ctx_copy(c, c, &e) == QSAE_OK);
    CHECK(memcmp(&e, &copy, sizeof e) == 0);
    qsae_ctx_destroy(c);
    qsae_sae_close(s);
    qsae_model_close(m);
}

int main(void)
{
    image = tiny_model(&SHAPE, 1, &image_size);
    other_image = tiny_model(&OTHER, 2, &other_size);
    sae_image = tiny_sae_file(&SAE, 3, &sae_size);
    model = tiny_open_model(image, image_size, QSAE_ISA_AUTO);
    other = tiny_open_model(other_image, other_size, QSAE_ISA_AUTO);
    sae = tiny_open_sae(sae_image, sae_size, QSAE_ISA_AUTO);
    if (!CHECK(model && other && sae)) return test_done("test_api");
    check_constants();
    check_sites();
    check_info();
    check_open();
    check_no_tokenizer();
    check_ctx_options();
    check_copy_rewind();
    check_copy_goes_on();
    check_captures();
    check_hook();
    check_eval();
    check_cancel();
    check_cancel_many();
    check_edits();
    check_err_on_success();
    check_nested();
    qsae_sae_close(sae);
    qsae_model_close(model);
    qsae_model_close(other);
    free(image);
    free(other_image);
    free(sae_image);
    return test_done("test_api");
}
