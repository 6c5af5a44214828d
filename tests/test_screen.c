/* The screened encode: the dense encode's bits, whatever the SAE, the input, the batch, the threads, the instruction
 * set and however crude the screen; and what a file may not say about its screen. */

#include "test.h"
#include "tiny.h"

#include <math.h>

enum { ROWS = 37, MAX_D = 1030, MAX_SAE = 2100, CAP = ROWS * MAX_SAE };

typedef struct result {
    qsae_status status;
    size_t start[ROWS + 1];
    uint32_t *index;
    float *value;
    uint64_t n_exact;
} result;

static float x[ROWS][MAX_D];

static double gauss(uint64_t *s)
{
    double v = 0;
    for (int i = 0; i < 6; i++) v += tiny_uniform(s);
    return v / sqrt(2.0);
}

/* Kinds of rows: plain, with few very large dimensions, tiny, huge, zeros, of very unequal scales. */
static void make_input(size_t d, uint64_t seed)
{
    for (size_t r = 0; r < ROWS; r++)
        for (size_t j = 0; j < d; j++) {
            double v = gauss(&seed);
            switch (r % 8) {
            case 1: v *= j % 97 == 5 ? 900 : 1; break;
            case 2: v *= 1e-20; break;
            case 3: v *= 1e15; break;
            case 4: v = 0; break;
            case 5: v *= exp(2.5 * gauss(&seed)); break;
            case 6: v = j % 3 ? v * 1e-36 : v; break;
            default: break;
            }
            x[r][j] = (float)v;
        }
}

static qsae_sae *open_one(const uint8_t *image, size_t size, qsae_isa isa, int no_screen)
{
    qsae_sae_options o;
    qsae_error e;
    qsae_sae *s = NULL;
    memset(&o, 0, sizeof o);
    o.open.isa = isa;
    o.open.verify = 1;
    o.no_screen = no_screen;
    e.text[0] = 0;
    if (!CHECK(qsae_sae_open_memory(image, size, &o, &s, &e) == QSAE_OK)) fprintf(stderr, "    %s\n", e.text);
    return s;
}

static void encode(const qsae_sae *sae, size_t first, size_t n, int threads, result *r)
{
    size_t size = qsae_sae_scratch_size(sae, n);
    void *scratch = malloc(size);
    qsae_rows rows;
    qsae_error e;
    memset(&rows, 0, sizeof rows);
    rows.start = r->start;
    rows.index = r->index;
    rows.value = r->value;
    rows.cap = CAP;
    r->status = qsae_sae_encode(sae, x[first], n, MAX_D, &rows, scratch, size, threads, &e);
    r->n_exact = rows.n_exact;
    free(scratch);
}

static int equal(const result *a, const result *b, size_t n)
{
    if (a->status != b->status) return 0;
    if (a->status) return 1;
    return memcmp(a->start, b->start, (n + 1) * sizeof *a->start) == 0 &&
           memcmp(a->index, b->index, a->start[n] * sizeof *a->index) == 0 &&
           memcmp(a->value, b->value, a->start[n] * sizeof *a->value) == 0;
}

static result *new_result(void)
{
    result *r = malloc(sizeof *r);
    r->index = malloc(CAP * sizeof *r->index);
    r->value = malloc(CAP * sizeof *r->value);
    return r;
}

static void free_result(result *r)
{
    free(r->index);
    free(r->value);
    free(r);
}

static double share; /* of the rows of the last SAE that were computed exactly */

/* Every batch and number of threads of one SAE on one instruction set. */
static void compare(const uint8_t *image, size_t size, qsae_isa isa, size_t d_sae, result *a, result *b)
{
    qsae_sae *dense = open_one(image, size, d_sae < 100 ? QSAE_ISA_SCALAR : QSAE_ISA_AUTO, 1), *screened = open_one(image, size, isa, 0);
    qsae_sae_info info;
    if (!dense || !screened) return;
    qsae_sae_get_info(screened, &info);
    CHECK(info.has_screen == 1);
    qsae_sae_get_info(dense, &info);
    CHECK(info.has_screen == 0);
    encode(dense, 0, ROWS, 1, a);
    CHECK(a->status == QSAE_OK && a->n_exact == (uint64_t)ROWS * d_sae);
    for (int threads = 1; threads <= 3; threads++) {
        encode(screened, 0, ROWS, threads, b);
        CHECK(equal(a, b, ROWS));
        CHECK(b->n_exact <= (uint64_t)ROWS * d_sae);
    }
    for (size_t r = 0; r < 16; r++) {
        encode(dense, r, 1, 1, a);
        encode(screened, r, 1, 2, b);
        CHECK(equal(a, b, 1));
        if (r % 8 == 0) share = (double)b->n_exact / (double)d_sae;
    }
    qsae_sae_close(dense);
    qsae_sae_close(screened);
}

static void test_same_bits(void)
{
    static const uint32_t acts[] = {QSAE_ACT_RELU, QSAE_ACT_JUMPRELU, QSAE_ACT_TOPK, QSAE_ACT_GATED, QSAE_ACT_GROUPMAX,
                                    QSAE_ACT_TOPK_SCALED};
    static const uint32_t shapes[][2] = {{7, 50}, {64, 90}, {257, 100}, {300, 1000}, {1024, 2100}};
    result *a = new_result(), *b = new_result();
    uint64_t seed = 1;
    for (size_t s = 0; s < 5; s++)
        for (size_t act = 0; act < 6; act++)
            for (uint32_t norm = 0; norm < (s == 4 ? 1u : 3u); norm++)
                for (int most = 127; most > 0; most = most == 127 ? 3 : 0) {
                    tiny_sae shape = {QSAE_RESID_POST, 0, QSAE_RESID_POST, 0, shapes[s][0], shapes[s][0], shapes[s][1], 0,
                                      acts[act], norm, 0, (int)(seed % 2), 0};
                    tiny_screen = most;
                    size_t size;
                    if (shape.activation >= QSAE_ACT_TOPK && shape.activation != QSAE_ACT_GATED) shape.k = 10;
                    uint8_t *image = tiny_sae_file(&shape, seed, &size);
                    make_input(shape.d_in, seed++);
                    for (int isa = QSAE_ISA_SCALAR; isa < QSAE_ISA_COUNT; isa++)
                        if (qsae_isa_available((qsae_isa)isa) && (s < 2 || isa != QSAE_ISA_SCALAR))
                            compare(image, size, (qsae_isa)isa, shape.d_sae, a, b);
                    if (s == 4 && most == 127 && norm == 0 && shape.activation != QSAE_ACT_GROUPMAX) {
                        printf("screen  activation %u, %u of %u: %.1f %% of the rows computed exactly\n", shape.activation,
                               shape.d_sae, shape.d_in, 100 * share);
                        /* of these random features a third fires; sparse selection is where a screen must shine */
                        CHECK(shape.activation != QSAE_ACT_TOPK || share < 0.05);
                        CHECK(shape.activation != QSAE_ACT_JUMPRELU || share < 0.5);
                    }
                    free(image);
                }
    free_result(a);
    free_result(b);
}

/* Rows of the encoder that are alike have values that are alike: the lower index wins, with a screen as without. */
static void test_ties(void)
{
    tiny_sae shape = {QSAE_RESID_POST, 0, QSAE_RESID_POST, 0, 40, 40, 200, 12, QSAE_ACT_TOPK, 0, 0, 0, 0};
    tiny_screen = 127;
    size_t size;
    result *a = new_result(), *b = new_result();
    uint8_t *image = tiny_sae_file(&shape, 99, &size);
    qsae_file_header *h = tiny_header(image);
    for (uint32_t i = 0; i < h->n_tensors; i++) {
        const qsae_tensor_record *t = &tiny_tensors(image)[i];
        uint8_t *p = image + t->offset;
        uint64_t row = t->size / shape.d_sae;
        if (t->role == QSAE_ROLE_ENC)
            for (uint32_t n = 1; n < shape.d_sae; n++) memcpy(p + n * row, p + n % 5 * row, row);
        if (t->role == QSAE_ROLE_B_ENC) memset(p, 0, t->size);
        if (t->role == QSAE_ROLE_SCREEN) /* superblocks of 16 rows: row n is row n % 5 of the first */
            for (uint32_t n = 0; n < shape.d_sae; n++)
                for (uint32_t line = 0; line < 65; line++)
                    memcpy(p + n / 16 * 4160 + line * 64 + n % 16 * 4, p + line * 64 + n % 5 * 4, 4);
        if (t->role == QSAE_ROLE_SCREEN_REST || t->role == QSAE_ROLE_SCREEN_NORM)
            for (uint32_t n = 0; n < shape.d_sae; n++) memcpy(p + 4 * n, p + 4 * (n % 5), 4);
    }
    tiny_rehash(image);
    make_input(40, 5);
    for (int isa = QSAE_ISA_SCALAR; isa < QSAE_ISA_COUNT; isa++)
        if (qsae_isa_available((qsae_isa)isa)) compare(image, size, (qsae_isa)isa, shape.d_sae, a, b);
    free(image);
    free_result(a);
    free_result(b);
}

/* Numbers so large that a sum overflows: the same error, or the same features. */
static void test_overflow(void)
{
    static const float sizes[] = {1e18f, 1e30f, 1e36f, 3e38f};
    result *a = new_result(), *b = new_result();
    for (uint32_t act = 0; act < 2; act++) {
        tiny_sae shape = {QSAE_RESID_POST, 0, QSAE_RESID_POST, 0, 300, 300, 150, 0, QSAE_ACT_RELU, 0, 0, 0, 0};
    tiny_screen = 127;
        size_t size;
        if (act) shape.activation = QSAE_ACT_TOPK, shape.k = 5;
        uint8_t *image = tiny_sae_file(&shape, 7, &size);
        qsae_sae *dense = open_one(image, size, QSAE_ISA_AUTO, 1), *screened = open_one(image, size, QSAE_ISA_AUTO, 0);
        for (size_t i = 0; i < 4; i++) {
            for (uint32_t j = 0; j < 300; j++) x[0][j] = j % 2 ? sizes[i] : -sizes[i];
            encode(dense, 0, 1, 1, a);
            encode(screened, 0, 1, 1, b);
            CHECK(equal(a, b, 1));
        }
        qsae_sae_close(dense);
        qsae_sae_close(screened);
        free(image);
    }
    free_result(a);
    free_result(b);
}

static qsae_tensor_record *find(uint8_t *image, uint32_t role)
{
    for (uint32_t i = 0; i < tiny_header(image)->n_tensors; i++)
        if (tiny_tensors(image)[i].role == role) return &tiny_tensors(image)[i];
    exit(2);
}

static void refused(uint8_t *image, size_t size, int verify, qsae_status status, const char *says)
{
    qsae_sae_options o;
    qsae_error e;
    qsae_sae *s = NULL;
    memset(&o, 0, sizeof o);
    o.open.verify = verify;
    e.text[0] = 0;
    tiny_rehash(image);
    if (!CHECK(qsae_sae_open_memory(image, size, &o, &s, &e) == status && strstr(e.text, says)))
        fprintf(stderr, "    %s\n", e.text);
    qsae_sae_close(s);
}

static void test_bad_screens(void)
{
    tiny_sae shape = {QSAE_RESID_POST, 0, QSAE_RESID_POST, 0, 300, 300, 50, 0, QSAE_ACT_RELU, 0, 0, 1, 0};
    tiny_screen = 127;
    size_t size;
    uint8_t *good = tiny_sae_file(&shape, 3, &size), *bad;
    float v;
    for (int norm = 0; norm < 2; norm++) { /* one bound a little too small */
        bad = tiny_copy(good, size);
        uint8_t *p = bad + find(bad, norm ? QSAE_ROLE_SCREEN_NORM : QSAE_ROLE_SCREEN_REST)->offset + 4 * 49;
        memcpy(&v, p, 4);
        v *= 0.999f;
        memcpy(p, &v, 4);
        refused(bad, size, 1, QSAE_E_FORMAT, "screen of feature 49");
        free(bad);
    }
    bad = tiny_copy(good, size); /* a weight in the padding; -128; a scale that is no number */
    bad[find(bad, QSAE_ROLE_SCREEN)->offset + 4160 + 12 * 64] = 1;
    refused(bad, size, 1, QSAE_E_FORMAT, "padding is not zero");
    free(bad);
    bad = tiny_copy(good, size);
    bad[find(bad, QSAE_ROLE_SCREEN)->offset] = 0x80;
    refused(bad, size, 1, QSAE_E_FORMAT, "-128");
    free(bad);
    bad = tiny_copy(good, size);
    v = NAN;
    memcpy(bad + find(bad, QSAE_ROLE_SCREEN)->offset + 4096, &v, 4);
    refused(bad, size, 1, QSAE_E_FORMAT, "scale");
    free(bad);
    bad = tiny_copy(good, size); /* a role that does not belong to it */
    find(bad, QSAE_ROLE_SCREEN_NORM)->role = 43;
    refused(bad, size, 0, QSAE_E_MISMATCH, "");
    free(bad);
    free(good);
}

int main(void)
{
    test_same_bits();
    test_ties();
    test_overflow();
    test_bad_screens();
    return test_done("test_screen");
}
