/* The container against bytes that were not written by the converter: whatever comes in, an error with a text
 * comes out, or a file that can be used; never a crash. Every prefix, every byte, every field. */

#if !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L
#endif
#include <sys/stat.h>

#include "test.h"
#include "tiny.h"

/* Small on purpose: every byte of these is changed in several ways. */
static const tiny_shape SMALL = {1, 4, 2, 1, 2, 3, 5, 0, 0};
static const tiny_shape SMALL_TIED = {2, 3, 1, 1, 2, 2, 4, 1, QSAE_TYPE_BF16};
static const tiny_shape SMALL_Q8 = {1, 2, 1, 1, 2, 257, 3, 1, QSAE_TYPE_Q8}; /* two groups in down */
static const tiny_shape SMALL_Q4 = {1, 34, 1, 1, 2, 3, 17, 1, QSAE_TYPE_Q4}; /* two 32s, two panels */
static const tiny_sae SMALL_SAE = {QSAE_RESID_POST, 0, QSAE_RESID_POST, 0, 4, 4, 6, 0, QSAE_ACT_JUMPRELU,
                                   QSAE_NORM_NONE, 0, 0, 0};
static const tiny_sae SMALL_SUITE = {QSAE_MLP_INPUT, 0, QSAE_MLP_OUT, 0, 4, 4, 5, 2, QSAE_ACT_TOPK,
                                     QSAE_NORM_LAYER, QSAE_SAE_SKIP, 1, 2};
static const tiny_sae SMALL_GATED = {QSAE_RESID_PRE, 0, QSAE_RESID_PRE, 0, 4, 4, 5, 0, QSAE_ACT_GATED,
                                     QSAE_NORM_CONSTANT, 0, 0, 0};

/* One image of either kind, and how to open it. */
typedef struct subject {
    uint8_t *image;
    size_t size;
    int is_sae;
} subject;

static qsae_status open_options(const subject *s, const qsae_open_options *open, void **out, qsae_error *e)
{
    *out = NULL;
    if (!s->is_sae) {
        qsae_model *m = NULL;
        qsae_status st = qsae_model_open_memory(s->image, s->size, open, &m, e);
        *out = m;
        return st;
    }
    qsae_sae_options o;
    memset(&o, 0, sizeof o);
    o.open = *open;
    o.select = QSAE_SELECT_INDEX;
    qsae_sae *a = NULL;
    qsae_status st = qsae_sae_open_memory(s->image, s->size, &o, &a, e);
    *out = a;
    return st;
}

static qsae_status open_image(const subject *s, int verify, void **out, qsae_error *e)
{
    qsae_open_options o;
    memset(&o, 0, sizeof o);
    o.verify = verify;
    return open_options(s, &o, out, e);
}

/* Uses what was opened from hostile bytes: any result is fine, a crash is not. */
static void use(const subject *s, void *object)
{
    qsae_error e;
    if (!s->is_sae) {
        static const int32_t ids[] = {0, 1, 2, 3};
        qsae_ctx_options o = {8, 4, 1, {NULL, NULL, NULL}, QSAE_KV_F32, 0};
        qsae_ctx *c = NULL;
        if (qsae_ctx_create(object, &o, &c, &e) == QSAE_OK) (void)qsae_eval(c, ids, 4, &e);
        qsae_ctx_destroy(c);
        return;
    }
    static const float x[2 * 8] = {1, -2, 3, 0.5f, -1, 2, 0, 1};
    float y[2 * 8], value[64];
    uint32_t index[64];
    size_t start[3];
    char scratch[8192];
    qsae_rows rows = {0, start, index, value, 64, 0};
    if (qsae_sae_scratch_size(object, 2) > sizeof scratch) return;
    if (qsae_sae_encode(object, x, 2, 0, &rows, scratch, sizeof scratch, 1, &e) == QSAE_OK)
        (void)qsae_sae_decode(object, &rows, x, 0, y, scratch, sizeof scratch, 1, &e);
}

static void close_object(const subject *s, void *object)
{
    if (s->is_sae) qsae_sae_close(object);
    else qsae_model_close(object);
}

/* A line of printable ASCII, which the error promises. */
static int good_text(const qsae_error *e)
{
    size_t n = strlen(e->text);
    for (size_t i = 0; i < n; i++)
        if (e->text[i] < 32 || e->text[i] > 126) return 0;
    return n > 0 && n < sizeof e->text;
}

/* The image must be refused with this status (or any, if -1) and a text that contains `text` (or any). */
static int refused(const subject *s, int verify, int status, const char *text, const char *what)
{
    qsae_error e;
    void *object = NULL;
    memset(&e, 0, sizeof e);
    qsae_status st = open_image(s, verify, &object, &e);
    int ok = st != QSAE_OK && (status < 0 || (int)st == status) && e.status == st && !object &&
             good_text(&e) && (!text || strstr(e.text, text));
    CHECK(ok);
    if (!ok)
        fprintf(stderr, "    %s: status %d (%s), wanted %d with \"%s\"\n", what, (int)st,
                st ? e.text : "opened", status, text ? text : "");
    if (object) close_object(s, object);
    return ok;
}

/* ---- every prefix, every byte ---- */

static void check_prefixes(const subject *s)
{
    long bad = 0;
    for (size_t n = 0; n < s->size; n++)
        for (int verify = 0; verify < 2; verify++) {
            subject cut = {tiny_copy(s->image, n), n, s->is_sae};
            qsae_error e;
            void *object;
            memset(&e, 0, sizeof e);
            if (open_image(&cut, verify, &object, &e) != QSAE_E_TRUNC || !good_text(&e) || object) bad++;
            free(cut.image);
        }
    CHECK(bad == 0);
    subject longer = {tiny_alloc(s->size + 64), s->size + 64, s->is_sae};
    memcpy(longer.image, s->image, s->size);
    memset(longer.image + s->size, 0, 64);
    refused(&longer, 0, QSAE_E_FORMAT, "header says", "trailing bytes");
    free(longer.image);
}

/* Every byte with some bits turned: refused if checked; otherwise refused or usable. */
static void check_flips(const subject *s, int with_use)
{
    static const uint8_t patterns[] = {0x01, 0x80, 0x7f};
    long accepted = 0, silent = 0, opened = 0;
    for (size_t n = 0; n < s->size; n++)
        for (size_t p = 0; p < sizeof patterns; p++) {
            qsae_error e;
            void *object;
            memset(&e, 0, sizeof e);
            s->image[n] ^= patterns[p];
            qsae_status st = open_image(s, 1, &object, &e);
            if (st == QSAE_OK) accepted++, close_object(s, object);
            else if (!good_text(&e)) silent++;
            if (open_image(s, 0, &object, &e) == QSAE_OK) {
                opened++;
                if (with_use && p % 2) use(s, object);
                close_object(s, object);
            }
            s->image[n] ^= patterns[p];
        }
    CHECK(accepted == 0);
    CHECK(silent == 0);
    CHECK(opened > 0); /* data is not read without verify */
}

/* Every byte of the tables set to bad values with checksums made right again: only meaning can refuse it. */
static void check_rehashed(const subject *s)
{
    static const uint8_t values[] = {0x00, 0xff, 0x7f, 0x80, 0x01};
    const qsae_file_header *h = (const void *)s->image;
    size_t tables = 64 + (size_t)h->index_size;
    long silent = 0;
    for (size_t n = 64; n < tables; n++)
        for (size_t v = 0; v < sizeof values; v++) {
            subject t = {tiny_copy(s->image, s->size), s->size, s->is_sae};
            qsae_error e;
            void *object;
            memset(&e, 0, sizeof e);
            t.image[n] = values[v];
            tiny_rehash(t.image);
            if (open_image(&t, 1, &object, &e) == QSAE_OK) {
                use(&t, object);
                close_object(&t, object);
            } else if (!good_text(&e)) {
                silent++;
            }
            free(t.image);
        }
    CHECK(silent == 0);
}

/* ---- fields ---- */

enum { HEAD, RECORD, SECOND_RECORD, TENSOR };

typedef struct field_case {
    const char *what;
    int where;
    uint32_t group, role; /* TENSOR */
    size_t offset, width; /* of the field in its struct */
    uint64_t value;       /* its bits */
    int status;
    const char *text; /* part of the message */
} field_case;

#define IN(type, field) offsetof(type, field), sizeof(((type *)0)->field)
#define HD(field) HEAD, 0, 0, IN(qsae_file_header, field)
#define MR(field) RECORD, 0, 0, IN(qsae_model_record, field)
#define SR(field) RECORD, 0, 0, IN(qsae_sae_record, field)
#define S2(field) SECOND_RECORD, 0, 0, IN(qsae_sae_record, field)
#define TR(group, role, field) TENSOR, group, QSAE_ROLE_##role, IN(qsae_tensor_record, field)
#define NAN32  0x7fc00000u
#define INF32  0x7f800000u
#define NAN64  0x7ff8000000000000u
#define INF64  0x7ff0000000000000u
#define BIG    0x0000000100000000u /* 2^32: wraps a 32-bit field */
#define MAX64  0xffffffffffffffffu

static const field_case HEAD_CASES[] = {
    {"endian swapped", HD(endian), 0x04030201u, QSAE_E_UNSUP, "0x04030201"},
    {"endian garbage", HD(endian), 7, QSAE_E_FORMAT, "endian"},
    {"version 0", HD(version), 0, QSAE_E_VERSION, "is 0, this library reads 1"},
    {"version 2", HD(version), 2, QSAE_E_VERSION, "is 2, this library reads 1"},
    {"version max", HD(version), 0xffffffffu, QSAE_E_VERSION, "4294967295"},
    {"file_size + 1", HD(file_size), 1, -1, "header says 1"},
    {"file_size max", HD(file_size), MAX64, QSAE_E_TRUNC, "header says 18446744073709551615"},
    {"kind 0", HD(kind), 0, QSAE_E_UNSUP, "kind is 0"},
    {"kind 3", HD(kind), 3, QSAE_E_UNSUP, "kind is 3"},
    {"n_records 0", HD(n_records), 0, QSAE_E_FORMAT, "n_records is 0"},
    {"n_records max", HD(n_records), 0xffffffffu, QSAE_E_FORMAT, "n_records is 4294967295"},
    {"n_tensors 0", HD(n_tensors), 0, -1, "n_tensors is 0"},
    {"n_tensors max", HD(n_tensors), 0xffffffffu, QSAE_E_LIMIT, "n_tensors is 4294967295"},
    {"n_tensors a million", HD(n_tensors), 1048576, QSAE_E_FORMAT, "index_size"},
    {"zero0", HD(zero0), 1, QSAE_E_FORMAT, "reserved header field"},
    {"zero1", HD(zero1), 1u << 31, QSAE_E_FORMAT, "reserved header field"},
    {"index_size 0", HD(index_size), 0, QSAE_E_FORMAT, "index_size is 0"},
    {"index_size max", HD(index_size), MAX64, QSAE_E_FORMAT, "index_size is 18446744073709551615"},
    {"hash", HD(hash), 1, QSAE_E_FORMAT, "header checksum is 0000000000000001"},
};

static const field_case MODEL_CASES[] = {
    {"n_layers 0", MR(n_layers), 0, QSAE_E_FORMAT, "n_layers is 0"},
    {"n_layers 513", MR(n_layers), 513, QSAE_E_FORMAT, "n_layers is 513, must be 1..512"},
    {"n_layers one more than there is", MR(n_layers), 2, QSAE_E_MISMATCH, "attn_norm (group 2) is missing"},
    {"d_model 0", MR(d_model), 0, QSAE_E_FORMAT, "d_model is 0"},
    {"d_model max", MR(d_model), 0xffffffffu, QSAE_E_FORMAT, "d_model is 4294967295"},
    {"d_model other", MR(d_model), 5, QSAE_E_MISMATCH, "shape is [5, 4], the record says [5, 5]"},
    {"n_heads 0", MR(n_heads), 0, QSAE_E_FORMAT, "n_heads is 0"},
    {"n_heads 1025", MR(n_heads), 1025, QSAE_E_FORMAT, "n_heads is 1025"},
    {"n_heads other", MR(n_heads), 4, QSAE_E_MISMATCH, "tensor q (group 1)"},
    {"n_kv_heads 0", MR(n_kv_heads), 0, QSAE_E_FORMAT, "n_kv_heads is 0"},
    {"n_kv_heads > n_heads", MR(n_kv_heads), 3, QSAE_E_FORMAT, "n_kv_heads is 3"},
    {"n_kv_heads other", MR(n_kv_heads), 2, QSAE_E_MISMATCH, "tensor k (group 1)"},
    {"head_dim 0", MR(head_dim), 0, QSAE_E_FORMAT, "head_dim is 0"},
    {"head_dim odd", MR(head_dim), 3, QSAE_E_FORMAT, "head_dim 3 is odd"},
    {"head_dim 1026", MR(head_dim), 1026, QSAE_E_FORMAT, "head_dim is 1026"},
    {"head_dim other", MR(head_dim), 4, QSAE_E_MISMATCH, "tensor rope"},
    {"d_ff 0", MR(d_ff), 0, QSAE_E_FORMAT, "d_ff is 0"},
    {"d_ff max", MR(d_ff), 0xffffffffu, QSAE_E_FORMAT, "d_ff is 4294967295"},
    {"d_ff other", MR(d_ff), 4, QSAE_E_MISMATCH, "tensor gate (group 1): shape is [3, 4], the record says [4, 4]"},
    {"vocab_size 0", MR(vocab_size), 0, QSAE_E_FORMAT, "vocab_size is 0"},
    {"vocab_size max", MR(vocab_size), 0x80000000u, QSAE_E_FORMAT, "vocab_size is 2147483648"},
    {"vocab_size other", MR(vocab_size), 6, QSAE_E_MISMATCH, "tensor embed"},
    {"max_positions 0", MR(max_positions), 0, QSAE_E_FORMAT, "max_positions is 0"},
    {"max_positions max", MR(max_positions), 0xffffffffu, QSAE_E_FORMAT, "max_positions"},
    {"theta 0", MR(rope_theta), 0, QSAE_E_FORMAT, "rope_theta is 0"},
    {"theta negative", MR(rope_theta), 0xc000000000000000u, QSAE_E_FORMAT, "rope_theta is -2"},
    {"theta NaN", MR(rope_theta), NAN64, QSAE_E_FORMAT, "rope_theta is"},
    {"theta Inf", MR(rope_theta), INF64, QSAE_E_FORMAT, "rope_theta is inf"},
    {"eps 0", MR(rms_eps), 0, QSAE_E_FORMAT, "rms_eps is 0"},
    {"eps negative", MR(rms_eps), 0x80000001u, QSAE_E_FORMAT, "rms_eps is -"},
    {"eps NaN", MR(rms_eps), NAN32, QSAE_E_FORMAT, "rms_eps is"},
    {"eps Inf", MR(rms_eps), INF32, QSAE_E_FORMAT, "rms_eps is inf"},
    {"eps 1", MR(rms_eps), 0x3f800000u, QSAE_E_FORMAT, "rms_eps is 1"},
    {"flags", MR(flags), 16, QSAE_E_FORMAT, "flags is 16"},
    {"no weights, but sizes", MR(flags), 2, QSAE_E_FORMAT, "a size of a network"},
    {"two chat formats", MR(flags), 12, QSAE_E_FORMAT, "two chat formats"},
    {"tied with a head", MR(flags), 1, QSAE_E_MISMATCH, "lm_head"},
    {"n_eos 9", MR(n_eos), 9, QSAE_E_FORMAT, "n_eos is 9, must be 0..8"},
    {"eos[0] negative", MR(eos[0]), 0xffffffffu, QSAE_E_FORMAT, "end token 0 is -1, vocab_size is 5"},
    {"eos[7] too large", MR(eos[7]), 5, QSAE_E_FORMAT, "end token 7 is 5, vocab_size is 5"},
    {"eos[3] unused but set", MR(eos[3]), 1, QSAE_E_FORMAT, "end token 3 is 1"},
    {"bos -2", MR(bos), 0xfffffffeu, QSAE_E_FORMAT, "bos is -2"},
    {"bos too large", MR(bos), 5, QSAE_E_FORMAT, "bos is 5, vocab_size is 5"},
    {"reserved", MR(zero[103]), 1, QSAE_E_FORMAT, "reserved field of the model record"},
    {"name control", MR(name[1]), '\n', QSAE_E_FORMAT, "control character"},
    {"name not padded", MR(name[63]), 'x', QSAE_E_FORMAT, "not NUL-padded"},
};

static const field_case TENSOR_CASES[] = {
    {"type 0", TR(0, EMBED, type), 0, QSAE_E_UNSUP, "tensor embed (group 0): type is 0"},
    {"type of the first q4", TR(1, Q, type), 5, QSAE_E_UNSUP, "tensor q (group 1): type 5 is an earlier q4, which is not read any more: convert the model again"},
    {"type future", TR(1, Q, type), 7, QSAE_E_UNSUP, "tensor q (group 1): type is 7"},
    {"type bytes for a matrix", TR(1, Q, type), QSAE_TYPE_BYTES, QSAE_E_FORMAT, "do not go together"},
    {"type bf16 for a vector", TR(0, FINAL_NORM, type), QSAE_TYPE_BF16, QSAE_E_FORMAT, "do not go together"},
    {"type bf16, size f32", TR(1, Q, type), QSAE_TYPE_BF16, QSAE_E_FORMAT, "size is 1024, expected 512"},
    {"layout 0", TR(1, Q, layout), 0, QSAE_E_FORMAT, "layout 0"},
    {"layout future", TR(1, Q, layout), 5, QSAE_E_FORMAT, "layout 5"},
    {"layout rows, size block16", TR(1, Q, layout), QSAE_LAYOUT_ROWS, QSAE_E_FORMAT, "size is 1024"},
    {"rows 0", TR(1, Q, rows), 0, QSAE_E_FORMAT, "shape [0, 4]"},
    {"cols 0", TR(1, Q, cols), 0, QSAE_E_FORMAT, "shape [4, 0]"},
    {"vector of two rows", TR(1, ATTN_NORM, rows), 2, QSAE_E_FORMAT, "shape [2, 4]"},
    {"rows 2^32", TR(1, Q, rows), BIG, QSAE_E_FORMAT, "size is 1024"},
    {"rows 2^60: size wraps", TR(1, Q, rows), (uint64_t)1 << 60, QSAE_E_FORMAT, "do not go together"},
    {"rows max: round-up wraps", TR(1, Q, rows), MAX64, QSAE_E_FORMAT, "do not go together"},
    {"cols max: round-up wraps", TR(1, Q, cols), MAX64, QSAE_E_FORMAT, "do not go together"},
    {"cols 2^62: bytes wrap to 0", TR(1, ATTN_NORM, cols), (uint64_t)1 << 62, QSAE_E_FORMAT, "do not go together"},
    {"rows within padding", TR(1, Q, rows), 5, QSAE_E_MISMATCH, "shape is [5, 4], the record says [4, 4]"},
    {"size 0", TR(1, Q, size), 0, QSAE_E_FORMAT, "size is 0, expected 1024"},
    {"size max", TR(1, Q, size), MAX64, QSAE_E_FORMAT, "size is 18446744073709551615"},
    {"offset 0: overlap", TR(1, Q, offset), 0, QSAE_E_FORMAT, "offset is 0"},
    {"offset unaligned", TR(1, Q, offset), 2113, QSAE_E_FORMAT, "offset is 2113"},
    {"offset max: sum wraps", TR(1, Q, offset), MAX64 - 63, QSAE_E_FORMAT, "offset is 18446744073709551552"},
    {"reserved", TR(1, Q, zero), 1, QSAE_E_FORMAT, "reserved field is 1"},
    {"group unordered", TR(1, Q, group), 0, QSAE_E_FORMAT, "is not in order"},
    {"group of no layer", TR(1, DOWN, group), 2, QSAE_E_MISMATCH, "found down (group 2"},
    {"role unordered", TR(1, Q, role), QSAE_ROLE_O, QSAE_E_FORMAT, "is not in order"},
    {"role duplicate", TR(1, Q, role), QSAE_ROLE_K, QSAE_E_FORMAT, "is not in order"},
    {"role unknown", TR(1, DOWN, role), 99, QSAE_E_MISMATCH, "found unknown (group 1, role 99)"},
    {"role 0", TR(0, EMBED, role), 0, QSAE_E_MISMATCH, "expected tensor embed"},
    {"role of an SAE", TR(1, DOWN, role), QSAE_ROLE_ENC, QSAE_E_MISMATCH, "found enc"},
};

static const field_case SAE_CASES[] = {
    {"site_in 7", SR(site_in), 7, QSAE_E_FORMAT, "site_in is 7, must be 0..6"},
    {"site_in max", SR(site_in), 0xffffffffu, QSAE_E_FORMAT, "site_in is 4294967295"},
    {"site_out 7", SR(site_out), 7, QSAE_E_FORMAT, "site_out is 7"},
    {"layer_in 512", SR(layer_in), 512, QSAE_E_FORMAT, "layer_in is 512"},
    {"layer_out max", SR(layer_out), 0xffffffffu, QSAE_E_FORMAT, "layer_out is 4294967295"},
    {"written before read", SR(site_out), 0, QSAE_E_FORMAT, "before it reads"},
    {"read after written", SR(layer_in), 1, QSAE_E_FORMAT, "before it reads"},
    {"d_in 0", SR(d_in), 0, QSAE_E_FORMAT, "d_in is 0"},
    {"d_in max", SR(d_in), 0xffffffffu, QSAE_E_FORMAT, "d_in is 4294967295"},
    {"d_in other", SR(d_in), 5, QSAE_E_FORMAT, "d_in is 5, d_out 4"},
    {"d_out other", SR(d_out), 5, QSAE_E_FORMAT, "d_in is 4, d_out 5"},
    {"d_out 0", SR(d_out), 0, QSAE_E_FORMAT, "d_out is 0"},
    {"d_sae 0", SR(d_sae), 0, QSAE_E_FORMAT, "d_sae is 0"},
    {"d_sae max", SR(d_sae), 0xffffffffu, QSAE_E_FORMAT, "d_sae is 4294967295"},
    {"d_sae other", SR(d_sae), 7, QSAE_E_MISMATCH, "tensor enc (group 1): shape is [6, 4], the record says [7, 4]"},
    {"k without topk", SR(k), 1, QSAE_E_FORMAT, "k is 1, must be 0..0"},
    {"activation 0", SR(activation), 0, QSAE_E_FORMAT, "activation is 0"},
    {"activation 7", SR(activation), 7, QSAE_E_FORMAT, "activation is 7"},
    {"groupmax with k = 0", SR(activation), QSAE_ACT_GROUPMAX, QSAE_E_FORMAT, "k is 0, must be 1.."},
    {"activation without its tensor", SR(activation), QSAE_ACT_RELU, QSAE_E_MISMATCH, "found theta"},
    {"topk with k = 0", SR(activation), QSAE_ACT_TOPK, QSAE_E_FORMAT, "k is 0, must be 1..6"},
    {"norm 3", SR(norm), 3, QSAE_E_FORMAT, "norm is 3"},
    {"flags 2", SR(flags), 2, QSAE_E_FORMAT, "flags is 2"},
    {"skip without its tensor", SR(flags), 1, QSAE_E_MISMATCH, "skip (group 1) is missing"},
    {"feature_unit 2", SR(feature_unit), 2, QSAE_E_FORMAT, "feature_unit is 2"},
    {"reserved", SR(zero[0]), 1, QSAE_E_FORMAT, "reserved field of an SAE record"},
    {"name control", SR(name[0]), 27, QSAE_E_FORMAT, "control character"},
    {"name not padded", SR(name[95]), 1, QSAE_E_FORMAT, "padded"},
    {"layout block16 for enc", TR(1, ENC, layout), QSAE_LAYOUT_BLOCK16, QSAE_E_FORMAT, "tensor enc"},
    {"type bytes for rows", TR(1, DEC, type), QSAE_TYPE_BYTES, QSAE_E_FORMAT, "do not go together"},
    {"group 0", TR(1, ENC, group), 0, QSAE_E_MISMATCH, "expected tensor enc (group 1), found enc (group 0"},
};

static const field_case SUITE_CASES[] = {
    {"k = 0", SR(k), 0, QSAE_E_FORMAT, "k is 0, must be 1..5"},
    {"k > d_sae", SR(k), 6, QSAE_E_FORMAT, "k is 6, must be 1..5"},
    {"k max", SR(k), 0xffffffffu, QSAE_E_FORMAT, "k is 4294967295"},
    {"no flag but a skip", SR(flags), 0, QSAE_E_MISMATCH, "found skip (group 1"},
    {"first written before it is read", SR(layer_in), 2, QSAE_E_FORMAT, "before it reads"},
    {"second written before it is read", S2(layer_out), 0, QSAE_E_FORMAT, "before it reads"},
    {"second bad", S2(d_sae), 0, QSAE_E_FORMAT, "d_sae is 0"},
    {"second bad k", S2(k), 7, QSAE_E_FORMAT, "k is 7, must be 1..5"},
};

static uint8_t *case_place(uint8_t *image, const field_case *c)
{
    if (c->where == HEAD) return image;
    if (c->where == RECORD) return image + 64;
    if (c->where == SECOND_RECORD) return image + 64 + 256;
    return (uint8_t *)tiny_find(image, c->group, c->role);
}

static void check_cases(const subject *s, const field_case *list, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const field_case *c = &list[i];
        subject t = {tiny_copy(s->image, s->size), s->size, s->is_sae};
        uint8_t *p = case_place(t.image, c);
        if (!CHECK(p != NULL)) continue;
        memcpy(p + c->offset, &c->value, c->width);
        /* the header's own checks come before its checksum, and bad counts would lead the hashing astray */
        if (c->where != HEAD) tiny_rehash(t.image);
        refused(&t, 0, c->status, c->text, c->what);
        refused(&t, 1, c->status, c->text, c->what);
        free(t.image);
    }
}

/* Members that are equal, or in the wrong order. */
static void check_member_order(const subject *s)
{
    subject t = {tiny_copy(s->image, s->size), s->size, 1};
    qsae_sae_record *r = (void *)(t.image + 64), first = r[0], second = r[1];
    r[1] = first;
    tiny_rehash(t.image);
    refused(&t, 1, QSAE_E_FORMAT, "SAE 1 of the file is not in order", "a member twice");
    r[0] = second;
    tiny_rehash(t.image);
    refused(&t, 1, QSAE_E_FORMAT, "SAE 1 of the file is not in order", "members swapped");
    r[0] = r[1] = first;
    r[1].name[0] = 'a'; /* "ainy" before "tiny" */
    tiny_rehash(t.image);
    refused(&t, 1, QSAE_E_FORMAT, "SAE 1 of the file is not in order", "names not in order");
    r[1].name[0] = 'u';
    tiny_rehash(t.image);
    void *object;
    qsae_error e;
    CHECK(open_image(&t, 1, &object, &e) == QSAE_OK);
    close_object(&t, object);
    free(t.image);
}

/* What no single field of the other images can say. */
static void check_special(const subject *s)
{
    static const tiny_shape three_heads = {1, 4, 3, 3, 2, 3, 5, 0, 0};
    subject t = {NULL, 0, 0};
    t.image = tiny_model(&three_heads, 1, &t.size);
    qsae_model_record *r = (void *)(t.image + 64);
    r->n_kv_heads = 2;
    tiny_rehash(t.image);
    refused(&t, 1, QSAE_E_FORMAT, "n_heads 3 is not a multiple of n_kv_heads 2", "heads do not divide");
    free(t.image);
    t.size = s->size + 64; /* a hole at the end that the header counts in */
    t.image = tiny_alloc(t.size);
    memset(t.image, 0, t.size);
    memcpy(t.image, s->image, s->size);
    tiny_header(t.image)->file_size = t.size;
    tiny_rehash(t.image);
    refused(&t, 1, QSAE_E_FORMAT, "data ends at byte", "a hole at the end");
    free(t.image);
}

#define CASES(s, list) check_cases(s, list, sizeof(list) / sizeof *(list))

static void check_other_kind(const subject *model, const subject *sae)
{
    subject a = *model, b = *sae;
    a.is_sae = 1;
    b.is_sae = 0;
    refused(&a, 0, QSAE_E_MISMATCH, "holds a model, not SAEs", "model as SAE");
    refused(&b, 0, QSAE_E_MISMATCH, "holds SAEs, not a model", "SAE as model");
    /* the kind says otherwise than the tables */
    subject c = {tiny_copy(sae->image, sae->size), sae->size, 0};
    tiny_header(c.image)->kind = QSAE_KIND_MODEL;
    tiny_rehash(c.image);
    refused(&c, 0, -1, NULL, "SAE file that says it is a model");
    free(c.image);
}

/* ---- tensors missing, twice, too many, in another order ---- */

enum { MAX_PARTS = 64 };

typedef struct parts {
    qsae_tensor_record list[MAX_PARTS];
    const uint8_t *data[MAX_PARTS];
    uint32_t n;
} parts;

static parts take_apart(uint8_t *image)
{
    parts p;
    memset(&p, 0, sizeof p);
    p.n = tiny_header(image)->n_tensors;
    for (uint32_t i = 0; i < p.n; i++) {
        p.list[i] = tiny_tensors(image)[i];
        p.data[i] = image + p.list[i].offset;
    }
    return p;
}

static void insert_part(parts *p, uint32_t at, qsae_tensor_record t, const uint8_t *data)
{
    memmove(p->list + at + 1, p->list + at, (p->n - at) * sizeof *p->list);
    memmove(p->data + at + 1, p->data + at, (p->n - at) * sizeof *p->data);
    p->list[at] = t;
    p->data[at] = data;
    p->n++;
}

static void remove_part(parts *p, uint32_t at)
{
    p->n--;
    memmove(p->list + at, p->list + at + 1, (p->n - at) * sizeof *p->list);
    memmove(p->data + at, p->data + at + 1, (p->n - at) * sizeof *p->data);
}

static void parts_refused(const subject *s, const parts *p, int status, const char *text, const char *what)
{
    subject t = {NULL, 0, s->is_sae};
    t.image = tiny_repack(s->image, p->list, p->data, p->n, &t.size);
    refused(&t, 1, status, text, what);
    free(t.image);
}

static void check_parts(const subject *s)
{
    parts all = take_apart(s->image), p;
    for (uint32_t i = 0; i < all.n; i++) {
        p = all;
        remove_part(&p, i);
        parts_refused(s, &p, QSAE_E_MISMATCH, NULL, "a tensor missing");
        p = all;
        insert_part(&p, i, all.list[i], all.data[i]);
        parts_refused(s, &p, QSAE_E_FORMAT, "not in order", "a tensor twice");
        if (i == 0) continue;
        p = all;
        p.list[i] = all.list[i - 1], p.data[i] = all.data[i - 1];
        p.list[i - 1] = all.list[i], p.data[i - 1] = all.data[i];
        parts_refused(s, &p, QSAE_E_FORMAT, "not in order", "two tensors swapped");
    }
    /* one too many at the end, with a role that nobody has or the next group */
    p = all;
    insert_part(&p, p.n, all.list[all.n - 1], all.data[all.n - 1]);
    p.list[p.n - 1].role = 99;
    parts_refused(s, &p, QSAE_E_MISMATCH, "unexpected tensor", "a tensor of an unknown role");
    p.list[p.n - 1] = all.list[all.n - 1];
    p.list[p.n - 1].group++;
    parts_refused(s, &p, QSAE_E_MISMATCH, "unexpected tensor", "a tensor of the next group");
}

/* META is allowed in its place, and only as bytes. */
static void check_meta(const subject *s, uint32_t at, uint32_t group)
{
    static const uint8_t text[64] = "key=value\n";
    parts p = take_apart(s->image);
    qsae_tensor_record t = {group, QSAE_ROLE_META, QSAE_TYPE_BYTES, QSAE_LAYOUT_BYTES, 1, 10, 0, 64, 0, 0};
    insert_part(&p, at, t, text);
    subject u = {NULL, 0, s->is_sae};
    u.image = tiny_repack(s->image, p.list, p.data, p.n, &u.size);
    void *object;
    qsae_error e;
    CHECK(open_image(&u, 1, &object, &e) == QSAE_OK);
    close_object(&u, object);
    free(u.image);
    p.list[at].cols = 9; /* the line end is then padding, and not zero */
    parts_refused(s, &p, QSAE_E_FORMAT, "padding is not zero", "dirty padding of bytes");
    p.list[at].type = QSAE_TYPE_F32;
    p.list[at].layout = QSAE_LAYOUT_VECTOR;
    p.list[at].cols = 16;
    parts_refused(s, &p, QSAE_E_FORMAT, "tensor meta", "meta as a vector");
}

/* ---- values that only verify sees ---- */

typedef struct value_case {
    const char *what;
    uint32_t group, role;
    uint64_t n, k;
    uint32_t bits;
    int status;
    const char *text;
} value_case;

static void check_values(const subject *s, const value_case *list, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        subject t = {tiny_copy(s->image, s->size), s->size, s->is_sae};
        float v;
        memcpy(&v, &list[i].bits, 4);
        tiny_poke(t.image, list[i].group, list[i].role, list[i].n, list[i].k, v);
        tiny_rehash(t.image);
        refused(&t, 1, list[i].status, list[i].text, list[i].what);
        void *object;
        qsae_error e;
        CHECK(open_image(&t, 0, &object, &e) == QSAE_OK); /* not looked at */
        use(&t, object);
        close_object(&t, object);
        free(t.image);
    }
}

static void check_model_values(const subject *s, const subject *bf16)
{
    static const value_case f32[] = {
        {"NaN in embed", 0, QSAE_ROLE_EMBED, 4, 3, NAN32, QSAE_E_NUM,
         "tensor embed (group 0): stored element 52 is not finite"},
        {"Inf in down", 1, QSAE_ROLE_DOWN, 0, 0, INF32, QSAE_E_NUM, "tensor down (group 1): stored element 0 "},
        {"-Inf in a norm", 1, QSAE_ROLE_MLP_NORM, 0, 3, 0xff800000u, QSAE_E_NUM,
            "tensor mlp_norm (group 1): stored element 3 "},
        {"NaN in rope", 0, QSAE_ROLE_ROPE, 0, 0, NAN32, QSAE_E_NUM, "tensor rope"},
        {"padding of a vector", 1, QSAE_ROLE_Q_NORM, 0, 2, 0x3f800000u, QSAE_E_FORMAT, "q_norm (group 1): padding"},
        {"padding columns", 1, QSAE_ROLE_UP, 1, 4, 0x3f800000u, QSAE_E_FORMAT, "up (group 1): padding"},
        {"padding rows", 1, QSAE_ROLE_UP, 3, 0, 1, QSAE_E_FORMAT, "up (group 1): padding"},
        {"padding corner", 1, QSAE_ROLE_UP, 15, 15, 0x80000000u, QSAE_E_FORMAT, "up (group 1): padding"},
    };
    static const value_case h16[] = {
        {"NaN in bf16", 2, QSAE_ROLE_GATE, 1, 2, NAN32, QSAE_E_NUM, "tensor gate (group 2): stored element"},
        {"Inf in bf16", 0, QSAE_ROLE_EMBED, 0, 0, INF32, QSAE_E_NUM, "tensor embed (group 0): stored element 0 "},
        {"odd padding column of bf16", 0, QSAE_ROLE_EMBED, 0, 3, 0x3f800000u, QSAE_E_FORMAT,
            "embed (group 0): padding"},
        {"padding row of bf16", 0, QSAE_ROLE_EMBED, 4, 0, 0x3f800000u, QSAE_E_FORMAT, "embed (group 0): padding"},
    };
    check_values(s, f32, sizeof f32 / sizeof *f32);
    check_values(bf16, h16, sizeof h16 / sizeof *h16);
}

/* One byte of a quantized tensor changed: of its first superblock, or (last) of the last. */
static void check_quantized(const subject *s, uint32_t type)
{
    static const struct {
        const char *what;
        uint32_t type, role;
        int last;
        size_t at;
        uint8_t to;
        const char *text; /* NULL: allowed */
    } list[] = {
        {"a weight -128", QSAE_TYPE_Q8, QSAE_ROLE_EMBED, 0, 4, 0x80, "tensor embed (group 0): rows 0.., columns 0..: a weight is -128"},
        {"a weight -127", QSAE_TYPE_Q8, QSAE_ROLE_EMBED, 0, 4, 0x81, NULL},
        {"padding row", QSAE_TYPE_Q8, QSAE_ROLE_EMBED, 0, 12, 1, "padding is not zero"},
        {"padding column", QSAE_TYPE_Q8, QSAE_ROLE_EMBED, 0, 2, 1, "padding is not zero"},
        {"padding column of a later group", QSAE_TYPE_Q8, QSAE_ROLE_DOWN, 1, 1, 1, "tensor down (group 1): rows 0.., columns 256..: padding"},
        {"scale of a padding row", QSAE_TYPE_Q8, QSAE_ROLE_EMBED, 1, 4096 + 63, 1, "a scale is zero and its weights are not"},
        {"negative scale", QSAE_TYPE_Q8, QSAE_ROLE_EMBED, 0, 4096 + 3, 0xbf, "a scale is negative or a weight not finite"},
        {"minus zero", QSAE_TYPE_Q8, QSAE_ROLE_EMBED, 0, 4096 + 63, 0x80, "a scale is negative or a weight not finite"},
        {"padding rows", QSAE_TYPE_Q4, QSAE_ROLE_EMBED, 1, 4, 0x89, "tensor embed (group 0): rows 16.., columns 0..: padding"},
        {"padding columns", QSAE_TYPE_Q4, QSAE_ROLE_EMBED, 0, 31 * 64, 0x98, "padding is not zero"},
        {"m of a padding row", QSAE_TYPE_Q4, QSAE_ROLE_EMBED, 1, 2048 + 4, 0x12, "32 zeros have a multiplier that is not 1"},
        {"m of 0", QSAE_TYPE_Q4, QSAE_ROLE_EMBED, 0, 2048, 0x10, "a multiplier is 0"},
        {"m of 0 in a padding row", QSAE_TYPE_Q4, QSAE_ROLE_EMBED, 1, 2048 + 7, 0x01, "a multiplier is 0"},
        {"m of 15", QSAE_TYPE_Q4, QSAE_ROLE_EMBED, 0, 2048, 0x1f, NULL},
        {"signs of m", QSAE_TYPE_Q4, QSAE_ROLE_EMBED, 0, 2112, 0x00, NULL},
        {"sign of a padding 32", QSAE_TYPE_Q4, QSAE_ROLE_EMBED, 0, 2112, 0x04, "32 zeros have a multiplier that is not 1"},
        {"sign of a padding row", QSAE_TYPE_Q4, QSAE_ROLE_EMBED, 1, 2112 + 4, 0x80, "32 zeros have a multiplier that is not 1"},
        {"scale of a padding row", QSAE_TYPE_Q4, QSAE_ROLE_EMBED, 1, 2112 + 7, 0x3f, "a scale is zero and its weights are not"},
        {"negative scale", QSAE_TYPE_Q4, QSAE_ROLE_EMBED, 0, 2112 + 3, 0xbf, "a scale is negative or a weight not finite"},
        {"a weight", QSAE_TYPE_Q4, QSAE_ROLE_EMBED, 0, 0, 0xf0, NULL},
    };
    const size_t block = type == QSAE_TYPE_Q8 ? 4160 : 2176, scales = block - 64;
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        if (list[i].type != type) continue;
        subject t = {tiny_copy(s->image, s->size), s->size, 0};
        qsae_tensor_record *r = tiny_find(t.image, list[i].last && list[i].role == QSAE_ROLE_DOWN, list[i].role);
        uint8_t *p = t.image + r->offset + (list[i].last ? r->size - block : 0);
        p[list[i].at] = list[i].to;
        tiny_rehash(t.image);
        void *object;
        qsae_error e;
        if (list[i].text) refused(&t, 1, QSAE_E_FORMAT, list[i].text, list[i].what);
        else if (CHECK(open_image(&t, 1, &object, &e) == QSAE_OK)) close_object(&t, object);
        CHECK(open_image(&t, 0, &object, &e) == QSAE_OK); /* not looked at */
        use(&t, object);
        close_object(&t, object);
        free(t.image);
    }
    /* scales that are no numbers, and one that takes the weights away */
    static const uint32_t bad[] = {NAN32, INF32, 0xff800000u, 0, 0x80000000u};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        subject t = {tiny_copy(s->image, s->size), s->size, 0};
        void *object;
        qsae_error e;
        memcpy(t.image + tiny_find(t.image, 0, QSAE_ROLE_EMBED)->offset + scales, &bad[i], 4);
        tiny_rehash(t.image);
        refused(&t, 1, QSAE_E_FORMAT, bad[i] ? "a scale is negative or a weight not finite" : "a scale is zero", "bad scale");
        CHECK(open_image(&t, 0, &object, &e) == QSAE_OK);
        use(&t, object);
        close_object(&t, object);
        free(t.image);
    }
}

static void check_sae_values(const subject *jump, const subject *gated)
{
    static const value_case a[] = {
        {"theta negative", 1, QSAE_ROLE_THETA, 0, 5, 0xbf800000u, QSAE_E_FORMAT,
            "tensor theta (group 1): element 5 is -1"},
        {"theta NaN", 1, QSAE_ROLE_THETA, 0, 2, NAN32, QSAE_E_NUM, "tensor theta (group 1): stored element 2 "},
        {"NaN in enc", 1, QSAE_ROLE_ENC, 5, 3, NAN32, QSAE_E_NUM, "tensor enc (group 1): stored element"},
        {"padding of a row", 1, QSAE_ROLE_DEC, 2, 4, 1, QSAE_E_FORMAT, "tensor dec (group 1): padding"},
        {"padding of the last row", 1, QSAE_ROLE_DEC, 5, 15, 0x80000000u, QSAE_E_FORMAT, "padding"},
    };
    static const value_case b[] = {
        {"mag_scale 0", 1, QSAE_ROLE_MAG_SCALE, 0, 4, 0, QSAE_E_FORMAT, "tensor mag_scale (group 1): element 4 is 0"},
        {"mag_scale negative", 1, QSAE_ROLE_MAG_SCALE, 0, 0, 0xc0000000u, QSAE_E_FORMAT, "element 0 is -2"},
        {"mag_bias Inf", 1, QSAE_ROLE_MAG_BIAS, 0, 1, INF32, QSAE_E_NUM,
            "tensor mag_bias (group 1): stored element 1 "},
    };
    check_values(jump, a, sizeof a / sizeof *a);
    check_values(gated, b, sizeof b / sizeof *b);
}

/* Inverse frequencies that no theta gives must not lead the sines astray (undefined conversions, loops). */
static void check_wild_rope(const subject *s)
{
    static const uint32_t bits[] = {NAN32, INF32, 0xff800000u, 0x7f7fffffu, 0xff7fffffu, 0x4f000000u, 0xbf800000u, 1};
    for (size_t i = 0; i < sizeof bits / sizeof *bits; i++) {
        subject t = {tiny_copy(s->image, s->size), s->size, 0};
        float v;
        void *object;
        qsae_error e;
        memcpy(&v, &bits[i], 4);
        tiny_poke(t.image, 0, QSAE_ROLE_ROPE, 0, 0, v);
        tiny_rehash(t.image);
        for (int verify = 0; verify < 2; verify++)
            if (open_image(&t, verify, &object, &e) == QSAE_OK) {
                use(&t, object);
                close_object(&t, object);
            }
        free(t.image);
    }
    CHECK(1);
}

/* ---- what other files look like ---- */

static void check_magic(const char *start, size_t n, const char *text)
{
    for (int is_sae = 0; is_sae < 2; is_sae++) {
        subject s = {tiny_alloc(256), 256, is_sae};
        memset(s.image, ' ', 256);
        memcpy(s.image, start, n);
        refused(&s, 0, QSAE_E_MAGIC, text, start);
        s.size = n; /* nothing behind it either */
        uint8_t *all = s.image;
        s.image = tiny_copy(all, n);
        refused(&s, 0, QSAE_E_MAGIC, n >= 4 ? text : NULL, start);
        free(s.image);
        free(all);
    }
}

static void check_magics(void)
{
    check_magic("GGUF\3\0\0\0", 8, "GGUF");
    check_magic("PK\3\4\0\0\0\0", 8, "zip");
    check_magic("\100\0\0\0\0\0\0\0{\"__metadata__\"", 22, "safetensors");
    check_magic("{\"architectures\"", 16, "JSON");
    check_magic("QSAE\n\x1a\n\0", 8, "text-mode copy");
    check_magic("QSAE\r\r\n\x1a\r\n", 10, "text-mode copy");
    check_magic("EASQ\n\r\n\x1a", 8, "none of the formats");
    check_magic("\0\0\0\0\0\0\0\0", 8, "none of the formats");
    check_magic("#!/bin/sh\n", 10, "none of the formats");
    check_magic("x", 1, NULL);
}

/* ---- files ---- */

static char folder[512];

static const char *in_folder(const char *name)
{
    static char path[600];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void write_file(const char *path, const void *data, size_t size)
{
    FILE *f = fopen(path, "wb");
    if (!CHECK(f != NULL)) return;
    CHECK(fwrite(data, 1, size, f) == size);
    CHECK(fclose(f) == 0);
}

static void path_refused(const char *path, int status, const char *text)
{
    for (int no_mmap = 0; no_mmap < 2; no_mmap++) {
        qsae_open_options o;
        qsae_sae_options so;
        qsae_error e;
        memset(&o, 0, sizeof o);
        memset(&so, 0, sizeof so);
        o.no_mmap = so.open.no_mmap = no_mmap;
        qsae_model *m = NULL;
        qsae_sae *s = NULL;
        memset(&e, 0, sizeof e);
        int ok = (int)qsae_model_open(path, &o, &m, &e) == status && !m && good_text(&e) && strstr(e.text, text);
        CHECK(ok);
        if (!ok) fprintf(stderr, "    %s: status %d, %s\n", path, (int)e.status, e.text);
        CHECK((int)qsae_sae_open(path, &so, &s, &e) == status && !s && strstr(e.text, text));
    }
}

static void check_paths(const subject *s)
{
    path_refused(folder, QSAE_E_IO, "not a regular file");
    path_refused("/dev/null", QSAE_E_IO, "not a regular file");
    path_refused(in_folder("missing"), QSAE_E_IO, "missing");
    path_refused("", QSAE_E_IO, ":");
    write_file(in_folder("empty"), "", 0);
    path_refused(in_folder("empty"), QSAE_E_TRUNC, "empty");
    write_file(in_folder("short"), s->image, 63);
    path_refused(in_folder("short"), QSAE_E_TRUNC, "63 bytes");
    write_file(in_folder("name\n\033[31m\303\244"), "x", 1); /* nothing of it may reach a terminal */
    path_refused(in_folder("name\n\033[31m\303\244"), QSAE_E_MAGIC, "none of the formats");
    remove(in_folder("name\n\033[31m\303\244"));
    path_refused(in_folder("no\n\033[31m\303\244such"), QSAE_E_IO, "no??[31m??such");
    remove(in_folder("fifo"));
    if (mkfifo(in_folder("fifo"), 0600) == 0) {
        path_refused(in_folder("fifo"), QSAE_E_IO, "not a regular file"); /* and does not wait for a writer */
        remove(in_folder("fifo"));
    }
    remove(in_folder("empty"));
    remove(in_folder("short"));
}

/* The same file mapped, read, and from memory gives the same logits; read, it survives the file's end. */
static void check_modes(const subject *s)
{
    static const int32_t ids[] = {4, 0, 2, 1};
    float want[5], got[5];
    qsae_error e;
    for (int mode = 0; mode < 3; mode++) {
        qsae_model *m = NULL;
        qsae_ctx *c = NULL;
        qsae_open_options o;
        memset(&o, 0, sizeof o);
        o.no_mmap = mode == 2;
        o.verify = 1;
        write_file(in_folder("model"), s->image, s->size);
        qsae_status st = mode ? qsae_model_open(in_folder("model"), &o, &m, &e)
                              : qsae_model_open_memory(s->image, s->size, &o, &m, &e);
        if (!CHECK(st == QSAE_OK)) return;
        if (mode == 2) write_file(in_folder("model"), "", 0);
        else remove(in_folder("model"));
        qsae_ctx_options co = {8, 4, 1, {NULL, NULL, NULL}, QSAE_KV_F32, 0};
        CHECK(qsae_ctx_create(m, &co, &c, &e) == QSAE_OK && qsae_eval(c, ids, 4, &e) == QSAE_OK);
        memcpy(mode ? got : want, qsae_logits(c), sizeof got);
        if (mode) CHECK(memcmp(got, want, sizeof got) == 0);
        qsae_model_info info;
        qsae_model_get_info(m, &info);
        CHECK(info.file_size == s->size);
        CHECK_STR(info.weight_type, "f32");
        qsae_ctx_destroy(c);
        qsae_model_close(m);
    }
    remove(in_folder("model"));
}

/* ---- a real file: the toy model, if it was built ---- */

static uint8_t *read_whole(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    CHECK(fseek(f, 0, SEEK_END) == 0);
    *size = (size_t)ftell(f);
    rewind(f);
    uint8_t *data = tiny_alloc(*size);
    CHECK(fread(data, 1, *size, f) == *size);
    fclose(f);
    return data;
}

/* Too large for every byte: every byte of the tables against their checksum, some hundred of the data. */
static void check_toy(const char *path, int is_sae)
{
    subject s = {NULL, 0, is_sae};
    void *object;
    qsae_error e;
    s.image = read_whole(path, &s.size);
    if (!s.image) return;
    if (!CHECK(open_image(&s, 1, &object, &e) == QSAE_OK)) return;
    close_object(&s, object);
    size_t tables = 64 + (size_t)tiny_header(s.image)->index_size;
    uint64_t seed = 6;
    long accepted = 0, cut = 0;
    for (size_t n = 0; n < tables; n++) {
        s.image[n] ^= 0x20;
        if (open_image(&s, 0, &object, &e) == QSAE_OK) accepted++, close_object(&s, object);
        s.image[n] ^= 0x20;
    }
    for (int i = 0; i < 150; i++) {
        size_t at = (size_t)((tiny_uniform(&seed) + 1) / 2 * (double)s.size) % s.size;
        uint8_t bit = (uint8_t)(1u << (i % 8));
        s.image[at] ^= bit;
        if (open_image(&s, 1, &object, &e) == QSAE_OK) accepted++, close_object(&s, object);
        s.image[at] ^= bit;
        subject t = {s.image, i % 2 ? at : at % (2 * tables), is_sae};
        if (open_image(&t, 0, &object, &e) != QSAE_E_TRUNC) cut++;
    }
    CHECK(accepted == 0 && cut == 0);
    free(s.image);
}

/* ---- sizes ---- */

static void check_tensor_bytes(void)
{
    const uint32_t f32 = QSAE_TYPE_F32, bf16 = QSAE_TYPE_BF16, bytes = QSAE_TYPE_BYTES;
    CHECK(qsae_tensor_bytes(f32, QSAE_LAYOUT_VECTOR, 1, 1) == 64);
    CHECK(qsae_tensor_bytes(f32, QSAE_LAYOUT_VECTOR, 1, 17) == 128);
    CHECK(qsae_tensor_bytes(f32, QSAE_LAYOUT_VECTOR, 2, 17) == 0);
    CHECK(qsae_tensor_bytes(bf16, QSAE_LAYOUT_VECTOR, 1, 17) == 0);
    CHECK(qsae_tensor_bytes(f32, QSAE_LAYOUT_BLOCK16, 1, 1) == 1024);
    CHECK(qsae_tensor_bytes(bf16, QSAE_LAYOUT_BLOCK16, 17, 33) == 32 * 48 * 2);
    CHECK(qsae_tensor_bytes(f32, QSAE_LAYOUT_ROWS, 3, 17) == 3 * 128);
    CHECK(qsae_tensor_bytes(QSAE_TYPE_Q8, QSAE_LAYOUT_BLOCK16, 1, 1) == 4160);
    CHECK(qsae_tensor_bytes(QSAE_TYPE_Q8, QSAE_LAYOUT_BLOCK16, 17, 257) == 4 * 4160);
    CHECK(qsae_tensor_bytes(QSAE_TYPE_Q4, QSAE_LAYOUT_BLOCK16, 16, 256) == 2176);
    CHECK(qsae_tensor_bytes(QSAE_TYPE_Q4, QSAE_LAYOUT_BLOCK16, 33, 512) == 6 * 2176);
    for (uint32_t q = QSAE_TYPE_Q8; q; q = q == QSAE_TYPE_Q8 ? QSAE_TYPE_Q4 : 0) {
        CHECK(qsae_tensor_bytes(q, QSAE_LAYOUT_ROWS, 16, 256) == 0);
        CHECK(qsae_tensor_bytes(q, QSAE_LAYOUT_VECTOR, 1, 256) == 0);
        CHECK(qsae_tensor_bytes(q, QSAE_LAYOUT_BYTES, 1, 256) == 0);
        CHECK(qsae_tensor_bytes(q, QSAE_LAYOUT_BLOCK16, (uint64_t)1 << 40, (uint64_t)1 << 40) == 0);
    }
    CHECK(qsae_tensor_bytes(bf16, QSAE_LAYOUT_ROWS, 3, 17) == 3 * 64);
    CHECK(qsae_tensor_bytes(bf16, QSAE_LAYOUT_ROWS, 3, 33) == 3 * 128);
    CHECK(qsae_tensor_bytes(bytes, QSAE_LAYOUT_BYTES, 1, 65) == 128);
    CHECK(qsae_tensor_bytes(bytes, QSAE_LAYOUT_BYTES, 2, 65) == 0);
    CHECK(qsae_tensor_bytes(bytes, QSAE_LAYOUT_ROWS, 2, 65) == 0);
    CHECK(qsae_tensor_bytes(f32, QSAE_LAYOUT_BYTES, 1, 65) == 0);
    for (uint32_t layout = 0; layout < 7; layout++) {
        CHECK(qsae_tensor_bytes(f32, layout, 0, 4) == 0);
        CHECK(qsae_tensor_bytes(f32, layout, 4, 0) == 0);
        CHECK(qsae_tensor_bytes(f32, layout, MAX64, MAX64) == 0);
        CHECK(qsae_tensor_bytes(f32, layout, (uint64_t)1 << 32, (uint64_t)1 << 32) == 0);
        CHECK(qsae_tensor_bytes(f32, layout, (uint64_t)1 << 31, (uint64_t)1 << 31) == 0); /* 2^64 bytes */
        CHECK(qsae_tensor_bytes(9, layout, 4, 4) == 0);
    }
}

/* XXH64 with seed 0 in pieces of every size, and its published values. */
static void check_hash(void)
{
    uint8_t data[200];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)(i * 37 + 11);
    qsae_hash h;
    qsae_hash_begin(&h);
    CHECK(qsae_hash_end(&h) == 0xEF46DB3751D8E999u);
    qsae_hash_add(&h, "abc", 3);
    CHECK(qsae_hash_end(&h) == 0x44BC2CF5AD770999u);
    qsae_hash_begin(&h);
    qsae_hash_add(&h, data, sizeof data);
    uint64_t want = qsae_hash_end(&h);
    for (size_t step = 1; step < sizeof data; step++) {
        qsae_hash_begin(&h);
        for (size_t i = 0; i < sizeof data; i += step)
            qsae_hash_add(&h, data + i, sizeof data - i < step ? sizeof data - i : step);
        if (!CHECK(qsae_hash_end(&h) == want)) break;
    }
}

int main(int argc, char **argv)
{
    const char *build = argc > 1 ? argv[1] : ".";
    snprintf(folder, sizeof folder, "%s/tmp", build);
    (void)mkdir(folder, 0777);
    snprintf(folder, sizeof folder, "%s/tmp/format", build);
    (void)mkdir(folder, 0777);
    subject model = {NULL, 0, 0}, tied = {NULL, 0, 0}, jump = {NULL, 0, 1}, suite = {NULL, 0, 1};
    subject gated = {NULL, 0, 1}, q8 = {NULL, 0, 0}, q4 = {NULL, 0, 0};
    model.image = tiny_model(&SMALL, 1, &model.size);
    tied.image = tiny_model(&SMALL_TIED, 2, &tied.size);
    jump.image = tiny_sae_file(&SMALL_SAE, 3, &jump.size);
    suite.image = tiny_sae_file(&SMALL_SUITE, 4, &suite.size);
    gated.image = tiny_sae_file(&SMALL_GATED, 5, &gated.size);
    q8.image = tiny_model(&SMALL_Q8, 1, &q8.size);
    q4.image = tiny_model(&SMALL_Q4, 2, &q4.size);
    subject *all[] = {&model, &tied, &jump, &suite, &gated};
    for (size_t i = 0; i < 5; i++) {
        void *object;
        qsae_error e;
        CHECK(open_image(all[i], 1, &object, &e) == QSAE_OK);
        use(all[i], object);
        close_object(all[i], object);
        check_prefixes(all[i]);
        check_flips(all[i], 1);
        check_rehashed(all[i]);
        check_parts(all[i]);
        CASES(all[i], HEAD_CASES);
    }
    CASES(&model, MODEL_CASES);
    CASES(&model, TENSOR_CASES);
    CASES(&jump, SAE_CASES);
    CASES(&suite, SUITE_CASES);
    check_special(&model);
    check_member_order(&suite);
    check_other_kind(&model, &jump);
    check_meta(&model, 4, 0);
    check_meta(&jump, 0, 0);
    check_meta(&jump, 0, 1);
    check_meta(&suite, 5, 2);
    check_model_values(&model, &tied);
    check_sae_values(&jump, &gated);
    check_rehashed(&q8);
    check_rehashed(&q4);
    check_quantized(&q8, QSAE_TYPE_Q8);
    check_quantized(&q4, QSAE_TYPE_Q4);
    check_wild_rope(&model);
    check_magics();
    check_paths(&model);
    check_modes(&model);
    char path[600];
    snprintf(path, sizeof path, "%s/toy.qsae", build);
    check_toy(path, 0);
    snprintf(path, sizeof path, "%s/toy-sae.qsae", build);
    check_toy(path, 1);
    check_tensor_bytes();
    check_hash();
    for (size_t i = 0; i < 5; i++) free(all[i]->image);
    free(q8.image);
    free(q4.image);
    remove(folder);
    return test_done("test_format");
}
