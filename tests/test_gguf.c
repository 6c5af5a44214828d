/* GGUF: the reader against bad files, its values against those that the package `gguf`
 * computes, and the conversion of a Qwen3 against files that must be refused. */

#define _POSIX_C_SOURCE 200809L
#define QSAE_WITH_FORMAT

#include "test.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../tools/convert.h"
#include "../tools/gguf.h"
#include "../tools/outfile.h"

static char err[ERR_CAP];
static char folder[512];

static const char *in_folder(const char *name)
{
    static char paths[4][640];
    static int next;
    char *p = paths[next++ % 4];
    snprintf(p, sizeof paths[0], "%s/%s", folder, name);
    return p;
}

/* ---- building files ---- */

typedef struct bytes {
    unsigned char p[1 << 16];
    size_t n;
} bytes;

static void put(bytes *b, uint64_t x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        b->p[b->n++] = (unsigned char)(i < 8 ? x >> 8 * i : 0);
}

static void put_string(bytes *b, const char *s)
{
    put(b, strlen(s), 8);
    memcpy(b->p + b->n, s, strlen(s));
    b->n += strlen(s);
}

static void begin(bytes *b, uint32_t version, uint64_t tensors, uint64_t pairs)
{
    b->n = 0;
    put(b, 0x46554747, 4);
    put(b, version, 4);
    put(b, tensors, 8);
    put(b, pairs, 8);
}

static void pair(bytes *b, const char *key, uint32_t type, uint64_t value, size_t size)
{
    put_string(b, key);
    put(b, type, 4);
    put(b, value, size);
}

static void pair_u32(bytes *b, const char *key, uint32_t value)
{
    pair(b, key, GGUF_U32, value, 4);
}

static void pair_f32(bytes *b, const char *key, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    pair(b, key, GGUF_F32, bits, 4);
}

static void pair_string(bytes *b, const char *key, const char *value)
{
    put_string(b, key);
    put(b, GGUF_STRING, 4);
    put_string(b, value);
}

static void entry(bytes *b, const char *name, uint32_t rank, uint64_t d0, uint64_t d1,
                  uint32_t type, uint64_t offset)
{
    put_string(b, name);
    put(b, rank, 4);
    if (rank > 0)
        put(b, d0, 8);
    if (rank > 1)
        put(b, d1, 8);
    for (uint32_t i = 2; i < rank && i < 8; i++)
        put(b, 1, 8);
    put(b, type, 4);
    put(b, offset, 8);
}

static void data(bytes *b, size_t n)
{
    while (b->n % 32 != 0)
        put(b, 0, 1);
    for (size_t i = 0; i < n; i++)
        put(b, i & 0x3F, 1);
}

/* In a block of exactly its size, so that a sanitizer sees a read beyond it. */
static tensor_file *open_exact(const unsigned char *p, size_t n, unsigned char **block)
{
    *block = malloc(n ? n : 1);
    memcpy(*block, p, n);
    err[0] = 0;
    return tensors_open_memory(*block, n, "x.gguf", err, sizeof err);
}

static void refuse(const bytes *b, const char *message)
{
    unsigned char *block;
    tensor_file *f = open_exact(b->p, b->n, &block);
    if (!CHECK(f == NULL && strstr(err, message)))
        fprintf(stderr, "    is:     %s\n    wanted: %s\n", f ? "(opened)" : err,
                message);
    CHECK(f || strncmp(err, "x.gguf: ", 8) == 0);
    tensors_close(f);
    free(block);
}

/* ---- bad files ---- */

static void test_bad_head(void)
{
    static bytes b;
    begin(&b, 1, 0, 0);
    refuse(&b, "GGUF version 1; 2 and 3 are read");
    begin(&b, 4, 0, 0);
    refuse(&b, "GGUF version 4; 2 and 3 are read");
    begin(&b, 0, 0, 0);
    refuse(&b, "GGUF version 0; 2 and 3 are read");
    begin(&b, 3u << 24, 0, 0);
    refuse(&b, "a big-endian GGUF file");
    begin(&b, 3, 0, 0);
    for (size_t n = 4; n < 24; n++) {
        b.n = n;
        refuse(&b, "the file ends inside the ");
    }
    begin(&b, 3, 1, 0);
    refuse(&b, "1 tensors do not fit in a file of 24 bytes");
    begin(&b, 3, 65537, 0);
    refuse(&b, "65537 tensors, the limit is 65536");
    begin(&b, 3, UINT64_MAX, 0);
    refuse(&b, "18446744073709551615 tensors, the limit is");
    begin(&b, 3, 0, 65537);
    refuse(&b, "65537 metadata pairs, the limit is 65536");
    begin(&b, 3, 0, UINT64_MAX);
    refuse(&b, "18446744073709551615 metadata pairs, the limit is");
    begin(&b, 3, 0, 2);
    refuse(&b, "2 metadata pairs do not fit in a file of 24 bytes");
    begin(&b, 3, 0, 0);
    put(&b, 0, 64);
    refuse(&b, "56 bytes behind the last tensor belong to nothing");
}

/* A pair whose key is "k" and whose value follows. */
static void begin_value(bytes *b, uint32_t type)
{
    begin(b, 3, 0, 1);
    put_string(b, "k");
    put(b, type, 4);
}

static void test_bad_pairs(void)
{
    static bytes b;
    begin(&b, 3, 0, 1);
    pair(&b, "", GGUF_U8, 1, 8);
    refuse(&b, "a metadata key has 0 bytes, allowed are 1 to 1024");
    begin(&b, 3, 0, 1);
    put(&b, UINT64_MAX, 8);
    put(&b, 0, 8);
    refuse(&b, "a metadata key has 18446744073709551615 bytes");
    begin(&b, 3, 0, 1);
    put(&b, 500, 8);
    put(&b, 0, 8);
    refuse(&b,
           "the file ends inside a metadata key: 500 bytes from byte 32 on, it has 40");
    begin(&b, 3, 0, 1);
    put(&b, 3, 8);
    put(&b, 0x610061, 3);
    put(&b, 0, 8);
    refuse(&b, "a metadata key has a NUL in it: a\\x00a");
    begin_value(&b, GGUF_TYPE_COUNT);
    put(&b, 0, 8);
    refuse(&b, "metadata k: unknown type 13");
    begin_value(&b, UINT32_MAX);
    put(&b, 0, 8);
    refuse(&b, "metadata k: unknown type 4294967295");
    begin_value(&b, GGUF_BOOL);
    put(&b, 2, 1);
    refuse(&b, "metadata k: 2 is no boolean");
    begin_value(&b, GGUF_F64);
    put(&b, 0, 7);
    refuse(&b, "metadata k: 1 values of type f64 do not fit in the file");
    begin_value(&b, GGUF_STRING);
    put(&b, UINT64_MAX, 8);
    refuse(&b, "the file ends inside k: 18446744073709551615 bytes");
    begin_value(&b, GGUF_STRING);
    put(&b, 4, 8);
    put(&b, 0, 3);
    refuse(&b, "the file ends inside k: 4 bytes");
    begin_value(&b, GGUF_ARRAY);
    put(&b, GGUF_ARRAY, 4);
    put(&b, 0, 8);
    refuse(&b, "metadata k: arrays of arrays are not supported");
    begin_value(&b, GGUF_ARRAY);
    put(&b, 77, 4);
    put(&b, 0, 8);
    refuse(&b, "metadata k: unknown type 77");
    begin_value(&b, GGUF_ARRAY);
    put(&b, GGUF_U64, 4);
    put(&b, (uint64_t)1 << 61, 8); /* x 8 wraps to 0 */
    refuse(&b, "metadata k: 2305843009213693952 values of type u64 do not fit");
    begin_value(&b, GGUF_ARRAY);
    put(&b, GGUF_STRING, 4);
    put(&b, (uint64_t)1 << 60, 8);
    refuse(&b, "metadata k: 1152921504606846976 values of type string do not fit");
    begin_value(&b, GGUF_ARRAY);
    put(&b, GGUF_STRING, 4);
    put(&b, 2, 8);
    put_string(&b, "abcdefgh");
    refuse(&b, "the file ends inside k: 8 bytes");
    begin_value(&b, GGUF_ARRAY);
    put(&b, GGUF_BOOL, 4);
    put(&b, 3, 8);
    put(&b, 0x030001, 3);
    refuse(&b, "metadata k: 3 is no boolean");
    begin(&b, 3, 0, 2);
    pair_u32(&b, "twice", 1);
    pair_string(&b, "twice", "x");
    refuse(&b, "metadata twice is there twice");
    begin(&b, 3, 0, 1);
    pair_string(&b, "general.alignment", "32");
    refuse(&b, "metadata general.alignment is 32, not a whole number");
    begin(&b, 3, 0, 1);
    pair_u32(&b, "general.alignment", 0);
    refuse(&b, "metadata general.alignment is 0, it must be a power of two");
    begin(&b, 3, 0, 1);
    pair_u32(&b, "general.alignment", 48);
    refuse(&b, "metadata general.alignment is 48, it must be a power of two");
    begin(&b, 3, 0, 1);
    pair_u32(&b, "general.alignment", 1u << 31);
    refuse(&b, "metadata general.alignment is 2147483648, it must be");
}

/* One tensor t of these dims. */
static void one(bytes *b, uint32_t rank, uint64_t d0, uint64_t d1, uint32_t type,
                uint64_t offset, size_t n)
{
    begin(b, 3, 1, 0);
    entry(b, "t", rank, d0, d1, type, offset);
    data(b, n);
}

static void test_bad_tensors(void)
{
    static bytes b;
    one(&b, 5, 1, 1, 0, 0, 4);
    refuse(&b, "tensor t has 5 dimensions, the limit is 4");
    one(&b, UINT32_MAX, 1, 1, 0, 0, 4);
    refuse(&b, "tensor t has 4294967295 dimensions, the limit is 4");
    one(&b, 2, 4, 0, 0, 0, 0);
    refuse(&b, "tensor t: dimension 1 is 0");
    one(&b, 2, (uint64_t)1 << 32, (uint64_t)1 << 32, 0, 0, 4);
    refuse(&b, "tensor t: the number of elements does not fit in 64 bits");
    one(&b, 2, INT64_MAX, 2, 0, 0, 4);
    refuse(&b, "tensor t: the number of bytes does not fit in 64 bits");
    one(&b, 2, (uint64_t)1 << 61, 1, 28, 0, 4);
    refuse(&b, "tensor t: the number of bytes does not fit in 64 bits");
    one(&b, 1, (uint64_t)1 << 40, 1, 0, 0, 4);
    refuse(&b, "tensor t: it ends at byte 4398046511");
    one(&b, 1, 2, 1, 0, 0, 7);
    refuse(&b, "tensor t: it ends at byte 72, the file has 71");
    one(&b, 1, 33, 1, 8, 0, 68);
    refuse(&b, "tensor t: rows of 33 are not whole blocks of 32 (Q8_0)");
    one(&b, 2, 16, 2, 2, 0, 18);
    refuse(&b, "tensor t: rows of 16 are not whole blocks of 32 (Q4_0)");
    one(&b, 0, 1, 1, 8, 0, 34);
    refuse(&b, "tensor t: rows of 1 are not whole blocks of 32 (Q8_0)");
    one(&b, 1, 256, 1, 12, 0, 144);
    refuse(
        &b,
        "tensor t is Q4_K; F32, F16, BF16, Q8_0, Q6_K and Q4_0 are read: convert the "
        "original checkpoint");
    one(&b, 1, 256, 1, 13, 0, 176);
    refuse(&b, "tensor t is Q5_K; ");
    one(&b, 1, 128, 2, 14, 0, 210);
    refuse(&b, "tensor t: rows of 128 are not whole blocks of 256 (Q6_K)");
    one(&b, 1, 32, 1, 39, 0, 17);
    refuse(&b, "tensor t is MXFP4; ");
    one(&b, 1, 32, 1, 4, 0, 18);
    refuse(&b, "tensor t has type 4, which is not known");
    one(&b, 1, 32, 1, UINT32_MAX, 0, 18);
    refuse(&b, "tensor t has type 4294967295, which is not known");
    one(&b, 1, 8, 1, 0, 32, 64);
    refuse(
        &b,
        "tensor t is at byte 32 of the data, the end of the one before makes that 0");
    one(&b, 1, 8, 1, 0, UINT64_MAX - 31, 64);
    refuse(&b, "tensor t is at byte 18446744073709551584 of the data");
    one(&b, 1, 8, 1, 0, 0, 32 + 32);
    refuse(&b, "32 bytes behind the last tensor belong to nothing");
    begin(&b, 3, 2, 0);
    entry(&b, "a", 1, 9, 1, 0, 0);
    entry(&b, "b", 1, 8, 1, 0, 32); /* a goes to 36 */
    data(&b, 96);
    refuse(
        &b,
        "tensor b is at byte 32 of the data, the end of the one before makes that 64");
    begin(&b, 3, 2, 0);
    entry(&b, "a", 1, 8, 1, 0, 0);
    entry(&b, "b", 1, 8, 1, 0, 0);
    data(&b, 64);
    refuse(
        &b,
        "tensor b is at byte 0 of the data, the end of the one before makes that 32");
    begin(&b, 3, 2, 0);
    entry(&b, "a", 1, 8, 1, 0, 0);
    entry(&b, "a", 1, 8, 1, 0, 32);
    data(&b, 64);
    refuse(&b, "tensor a appears twice");
    begin(&b, 3, 2, 0);
    entry(&b, "a", 1, 8, 1, 0, 0);
    entry(&b, "b", 1, (uint64_t)1 << 59, 1, 28, 32);
    data(&b, 64);
    refuse(&b, "tensor b: it ends at byte 4611686018427388");
    begin(&b, 3, 1, 0);
    put(&b, 0, 8);
    put(&b, 0, 64);
    refuse(&b, "a tensor's name has 0 bytes");
    begin(&b, 3, 1, 0);
    put(&b, 1025, 8);
    put(&b, 0, 64);
    refuse(&b, "a tensor's name has 1025 bytes, allowed are 1 to 1024");
}

/* ---- good ones ---- */

static void test_values(void)
{
    static bytes b;
    unsigned char *block;
    int64_t whole = 0;
    double real = 0;
    int yes = 0;
    size_t len = 0, at = 0;
    begin(&b, 2, 0, 12);
    pair(&b, "i8", GGUF_I8, 0x80, 1);
    pair(&b, "i64", GGUF_I64, (uint64_t)1 << 63, 8);
    pair(&b, "u64", GGUF_U64, UINT64_MAX, 8);
    pair(&b, "u16", GGUF_U16, 65535, 2);
    pair(&b, "i32", GGUF_I32, (uint32_t)-5, 4);
    pair_f32(&b, "f32", 0.5f);
    pair(&b, "f64", GGUF_F64, 0x4000000000000000, 8);
    pair(&b, "yes", GGUF_BOOL, 1, 1);
    pair_string(&b, "string", "a\xC3\xA4");
    pair_string(&b, "nothing", "");
    put_string(&b, "list");
    put(&b, GGUF_ARRAY, 4);
    put(&b, GGUF_STRING, 4);
    put(&b, 3, 8);
    put_string(&b, "one");
    put_string(&b, "");
    put_string(&b, "three");
    put_string(&b, "numbers");
    put(&b, GGUF_ARRAY, 4);
    put(&b, GGUF_I16, 4);
    put(&b, 2, 8);
    put(&b, 0xFFFF0007, 4);
    tensor_file *f = open_exact(b.p, b.n, &block);
    if (!CHECK(f != NULL)) {
        fprintf(stderr, "    %s\n", err);
        free(block);
        return;
    }
    CHECK(tensors_container(f) == TENSORS_GGUF && tensors_count(f) == 0);
    CHECK(gguf_int(gguf_find(f, "i8"), &whole) && whole == -128);
    CHECK(gguf_int(gguf_find(f, "i64"), &whole) && whole == INT64_MIN);
    CHECK(!gguf_int(gguf_find(f, "u64"), &whole));
    CHECK_STR(gguf_text(gguf_find(f, "u64")).text, "18446744073709551615");
    CHECK(gguf_int(gguf_find(f, "u16"), &whole) && whole == 65535);
    CHECK(gguf_int(gguf_find(f, "i32"), &whole) && whole == -5);
    CHECK(!gguf_int(gguf_find(f, "f32"), &whole) &&
          !gguf_int(gguf_find(f, "yes"), &whole));
    CHECK(gguf_real(gguf_find(f, "f32"), &real) && real == 0.5);
    CHECK(gguf_real(gguf_find(f, "f64"), &real) && real == 2);
    CHECK(!gguf_real(gguf_find(f, "i32"), &real));
    CHECK(gguf_bool(gguf_find(f, "yes"), &yes) && yes == 1);
    CHECK(gguf_is(gguf_find(f, "string"), "a\xC3\xA4") &&
          !gguf_is(gguf_find(f, "string"), "a"));
    CHECK(gguf_string(gguf_find(f, "nothing"), &len) && len == 0);
    CHECK(!gguf_string(gguf_find(f, "list"), &len));
    const gguf_value *v = gguf_find(f, "list");
    CHECK(v && v->is_array && v->n == 3);
    const char *s = gguf_next_string(v, &at, &len);
    CHECK(s && len == 3 && memcmp(s, "one", 3) == 0);
    CHECK(gguf_next_string(v, &at, &len) && len == 0);
    s = gguf_next_string(v, &at, &len);
    CHECK(s && len == 5 && memcmp(s, "three", 5) == 0);
    CHECK(!gguf_next_string(v, &at, &len));
    v = gguf_find(f, "numbers");
    CHECK(gguf_int_at(v, 0, &whole) && whole == 7 && gguf_int_at(v, 1, &whole) &&
          whole == -1);
    CHECK(!gguf_int_at(v, 2, &whole) && !gguf_int(v, &whole));
    CHECK_STR(gguf_text(v).text, "an array of 2 i16");
    CHECK(!gguf_find(f, "none") && !gguf_find(f, "") && !gguf_at(f, 12));
    CHECK_STR(gguf_at(f, 0)->key, "i8");
    tensors_close(f);
    free(block);
}

/* Both block types by hand: scale 0.5 and -2, all numbers. */
static void test_blocks(void)
{
    static bytes b;
    unsigned char *block;
    float x[64];
    begin(&b, 3, 3, 1);
    pair_u32(&b, "general.alignment", 64);
    entry(&b, "q8", 2, 32, 2, 8, 0);
    entry(&b, "q4", 1, 32, 1, 2, 128);
    entry(&b, "bad", 1, 32, 1, 2, 192);
    while (b.n % 64 != 0)
        put(&b, 0, 1);
    put(&b, 0x3800, 2);
    for (int i = 0; i < 32; i++)
        put(&b, (uint64_t)(i - 16), 1);
    put(&b, 0xC000, 2);
    for (int i = 0; i < 32; i++)
        put(&b, (uint64_t)(8 * i - 128), 1);
    put(&b, 0, 128 - 68);
    put(&b, 0x3800, 2);
    for (int i = 0; i < 16; i++)
        put(&b, (uint64_t)(i | (15 - i) << 4), 1);
    put(&b, 0, 64 - 18);
    put(&b, 0x7C00, 2); /* infinite */
    put(&b, 0, 16);
    for (int i = 0; i < 16; i++)
        b.p[b.n - 1 - (size_t)i] = 0x99;
    tensor_file *f = open_exact(b.p, b.n, &block);
    if (!CHECK(f != NULL)) {
        fprintf(stderr, "    %s\n", err);
        free(block);
        return;
    }
    const tensor *q8 = tensors_find(f, "q8"), *q4 = tensors_find(f, "q4");
    CHECK(q8 && q8->rank == 2 && q8->shape[0] == 2 && q8->shape[1] == 32 &&
          q8->n == 64);
    CHECK(q8 && tensor_f32(q8, 0, 64, x, err, sizeof err) == 0);
    for (int i = 0; i < 32; i++)
        CHECK(x[i] == 0.5f * (float)(i - 16) &&
              x[32 + i] == -2.0f * (float)(8 * i - 128));
    CHECK(q8 && tensor_block_f32(q8, 1, 1, 5, 7, x, err, sizeof err) == 0 &&
          x[0] == 176);
    CHECK(q4 && tensor_f32(q4, 0, 32, x, err, sizeof err) == 0);
    for (int i = 0; i < 16; i++)
        CHECK(x[i] == 0.5f * (float)(i - 8) && x[16 + i] == 0.5f * (float)(7 - i));
    CHECK(tensor_f32(tensors_find(f, "bad"), 0, 32, x, err, sizeof err) != 0);
    CHECK(strstr(err, "tensor bad: element [0] is infinite") != NULL);
    tensors_close(f);
    free(block);
}

/* Q6_K by hand: number i of every 16 scales, and what lies in two blocks. */
static void test_q6_k(void)
{
    static bytes b;
    unsigned char *block;
    float x[512];
    begin(&b, 3, 1, 0);
    entry(&b, "q6", 1, 512, 1, 14, 0);
    data(&b, 0);
    for (int n = 0; n < 2; n++) {
        unsigned char p[210] = {0};
        for (int i = 0; i < 256; i++) {
            int q = (i * 7 + n) % 64, quarter = i % 128 / 32, k = i % 32,
                half = i / 128;
            p[64 * half + 32 * (quarter % 2) + k] |=
                (unsigned char)((q & 15) << (quarter > 1 ? 4 : 0));
            p[128 + 32 * half + k] |= (unsigned char)(q >> 4 << 2 * quarter);
            p[192 + i / 16] = (unsigned char)(i / 16 * 16 - 120);
        }
        p[209] = n ? 0xB8 : 0x38; /* -0.5, 0.5 */
        for (size_t i = 0; i < sizeof p; i++)
            put(&b, p[i], 1);
    }
    tensor_file *f = open_exact(b.p, b.n, &block);
    if (!CHECK(f != NULL)) {
        fprintf(stderr, "    %s\n", err);
        free(block);
        return;
    }
    const tensor *t = tensors_at(f, 0);
    CHECK(t->n == 512 && tensor_f32(t, 0, 512, x, err, sizeof err) == 0);
    for (int i = 0; i < 512; i++) {
        int n = i / 256, k = i % 256;
        CHECK(x[i] == (n ? -0.5f : 0.5f) * (float)(k / 16 * 16 - 120) *
                          (float)((k * 7 + n) % 64 - 32));
    }
    float part[10];
    CHECK(tensor_f32(t, 250, 10, part, err, sizeof err) == 0 &&
          memcmp(part, x + 250, sizeof part) == 0);
    tensors_close(f);
    free(block);
}

#define FIXTURE "tests/fixtures/qwen3.gguf"

/* XXH64 of the float values of every tensor of the fixture, as printed by
 * tests/reference/gguf_file.py --fixture: gguf 0.19's own dequantize. */
static void test_fixture(void)
{
    static const struct {
        const char *name;
        uint64_t hash;
    } sums[] = {
        {"token_embd.weight", 0x5ee842b1137e293b},
        {"blk.0.attn_q.weight", 0x4154017392d0658a},
        {"blk.0.attn_k.weight", 0xf82cdace7b7d729d},
        {"blk.0.attn_v.weight", 0xb4d23300f8980dc0},
        {"blk.0.attn_output.weight", 0xca1744f74b4e42b7},
        {"blk.0.ffn_gate.weight", 0xe318add3c22463be},
        {"blk.0.ffn_up.weight", 0x7c5cb4a8a5e0a7c9},
        {"blk.0.ffn_down.weight", 0x672c49a5cb5161cb},
        {"output_norm.weight", 0xf1198bc6c893c827},
        {"blk.0.attn_norm.weight", 0xc65765dd46d4465d},
        {"blk.0.ffn_norm.weight", 0x825f7c66b991037a},
        {"blk.0.attn_q_norm.weight", 0x3b2bfc4fc68038ae},
        {"blk.0.attn_k_norm.weight", 0x6433137251202247},
    };
    tensor_file *f = tensors_open(FIXTURE, err, sizeof err);
    if (!CHECK(f != NULL)) {
        fprintf(stderr, "    %s\n", err);
        return;
    }
    CHECK(tensors_count(f) == sizeof sums / sizeof sums[0]);
    for (size_t i = 0; i < sizeof sums / sizeof sums[0]; i++) {
        static float x[1 << 14];
        qsae_hash h;
        const tensor *t = tensors_find(f, sums[i].name);
        if (!CHECK(t && t->n <= 1 << 14))
            continue;
        CHECK(tensor_f32(t, 0, t->n, x, err, sizeof err) == 0);
        qsae_hash_begin(&h);
        qsae_hash_add(&h, x, (size_t)t->n * sizeof x[0]);
        if (!CHECK(qsae_hash_end(&h) == sums[i].hash))
            fprintf(stderr, "    tensor %s\n", sums[i].name);
    }
    tensors_close(f);
}

/* Every prefix of the fixture, but for the padding at its end. */
static void test_prefixes(void)
{
    static unsigned char whole[1 << 15];
    FILE *in = fopen(FIXTURE, "rb");
    size_t n = in ? fread(whole, 1, sizeof whole, in) : 0;
    if (in)
        fclose(in);
    CHECK(n > 1000);
    for (size_t k = 4; k + 32 < n; k += k < 2000 ? 1 : 37) {
        unsigned char *block;
        tensor_file *f = open_exact(whole, k, &block);
        CHECK(f == NULL && err[0]);
        tensors_close(f);
        free(block);
    }
}

/* ---- conversion ---- */

static int convert(const char *path, const convert_options *options)
{
    convert_options o;
    memset(&o, 0, sizeof o);
    if (options)
        o = *options;
    o.site = o.layer = o.site_out = o.layer_out = -1;
    o.out = in_folder("out.qsae");
    err[0] = 0;
    remove(o.out);
    return convert_gguf(path, &o, err, sizeof err);
}

static void test_convert_fixture(void)
{
    qsae_model *m = NULL;
    qsae_model_info info;
    int32_t ids[32];
    size_t n = 0;
    convert_options o;
    CHECK(convert(FIXTURE, NULL) == 0);
    if (!CHECK(qsae_model_open(in_folder("out.qsae"), NULL, &m, NULL) == QSAE_OK)) {
        fprintf(stderr, "    %s\n", err);
        return;
    }
    qsae_model_get_info(m, &info);
    CHECK(info.n_layers == 1 && info.d_model == 32 && info.n_heads == 2 &&
          info.n_kv_heads == 1 && info.head_dim == 16 && info.d_ff == 32 &&
          info.vocab_size == 264 && info.max_positions == 512 && info.tied == 1);
    CHECK(info.rope_theta == 10000 && info.rms_eps == 1e-6f);
    CHECK(info.n_eos == 1 && info.eos[0] == 261 && info.n_tokens == 263);
    CHECK_STR(info.weight_type, "mixed");
    CHECK(qsae_tokenize(m, "hello<|im_end|>", 15, QSAE_TOK_SPECIAL, ids, 32, &n,
                        NULL) == QSAE_OK);
    CHECK(n == 3 && ids[0] == 258 && ids[1] == 'o' && ids[2] == 261);
    qsae_model_close(m);
    memset(&o, 0, sizeof o);
    o.no_tokenizer = 1;
    o.type = QSAE_TYPE_BF16;
    o.name = "other";
    CHECK(convert(FIXTURE, &o) == 0);
    CHECK(qsae_model_open(in_folder("out.qsae"), NULL, &m, NULL) == QSAE_OK);
    qsae_model_get_info(m, &info);
    CHECK(info.n_tokens == 0);
    CHECK_STR(info.weight_type, "bf16");
    qsae_model_close(m);
}

/* The metadata of a small model, each pair of which a case can change or leave out. */
typedef struct change {
    const char *key;     /* of the pair that changes, or a new one; NULL: none */
    int type;            /* -1: left out */
    uint64_t value;      /* of whole numbers; the bits of a float */
    const char *text;    /* of strings */
    const char *message; /* part of the error; NULL: it must convert */
} change;

static const struct {
    const char *key;
    int type;
    uint64_t value;
    const char *text;
} base[] = {
    {"general.architecture", GGUF_STRING, 0, "qwen3"},
    {"qwen3.block_count", GGUF_U32, 1, NULL},
    {"qwen3.context_length", GGUF_U32, 64, NULL},
    {"qwen3.embedding_length", GGUF_U32, 4, NULL},
    {"qwen3.feed_forward_length", GGUF_U32, 6, NULL},
    {"qwen3.attention.head_count", GGUF_U32, 2, NULL},
    {"qwen3.attention.head_count_kv", GGUF_U32, 1, NULL},
    {"qwen3.attention.key_length", GGUF_U32, 2, NULL},
    {"qwen3.attention.value_length", GGUF_U32, 2, NULL},
    {"qwen3.attention.layer_norm_rms_epsilon", GGUF_F32, 0x358637BD, NULL},
    {"qwen3.rope.freq_base", GGUF_F32, 0x461C4000, NULL},
};

static void put_pair(bytes *b, const char *key, int type, uint64_t value,
                     const char *text)
{
    static const size_t size[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    if (type == GGUF_STRING) {
        pair_string(b, key, text);
    } else if (type == GGUF_ARRAY) { /* of two whole numbers */
        put_string(b, key);
        put(b, GGUF_ARRAY, 4);
        put(b, GGUF_U32, 4);
        put(b, 2, 8);
        put(b, value, 4);
        put(b, value, 4);
    } else {
        pair(b, key, (uint32_t)type, value, size[type]);
    }
}

typedef struct tensor_change {
    const char *name; /* left out, or, with d0, of these dims; or a new one */
    uint32_t rank;
    uint64_t d0, d1;
} tensor_change;

static const tensor_change tensors[] = {
    {"token_embd.weight", 2, 4, 7},        {"output_norm.weight", 1, 4, 1},
    {"blk.0.attn_norm.weight", 1, 4, 1},   {"blk.0.attn_q.weight", 2, 4, 4},
    {"blk.0.attn_k.weight", 2, 4, 2},      {"blk.0.attn_v.weight", 2, 4, 2},
    {"blk.0.attn_q_norm.weight", 1, 2, 1}, {"blk.0.attn_k_norm.weight", 1, 2, 1},
    {"blk.0.attn_output.weight", 2, 4, 4}, {"blk.0.ffn_norm.weight", 1, 4, 1},
    {"blk.0.ffn_gate.weight", 2, 4, 6},    {"blk.0.ffn_up.weight", 2, 4, 6},
    {"blk.0.ffn_down.weight", 2, 6, 4},
};

enum {
    N_BASE = sizeof base / sizeof base[0],
    N_TENSORS = sizeof tensors / sizeof tensors[0]
};

static void write_model(const char *path, const change *c, const tensor_change *t)
{
    static bytes b;
    uint64_t n_pairs = 0, n_tensors = 0, at = 0;
    int found = !c || !c->key, there = !t;
    for (int pass = 0; pass < 2; pass++) { /* to count, to write */
        if (pass)
            begin(&b, 3, n_tensors, n_pairs);
        n_pairs = n_tensors = 0;
        for (size_t i = 0; i < N_BASE; i++) {
            int hit = c && c->key && strcmp(c->key, base[i].key) == 0;
            found |= hit;
            if (hit && c->type < 0)
                continue;
            n_pairs++;
            if (pass && hit)
                put_pair(&b, c->key, c->type, c->value, c->text);
            else if (pass)
                put_pair(&b, base[i].key, base[i].type, base[i].value, base[i].text);
        }
        if (!found && c->type >= 0) {
            n_pairs++;
            if (pass)
                put_pair(&b, c->key, c->type, c->value, c->text);
        }
        for (size_t i = 0; i <= N_TENSORS; i++) {
            const tensor_change *e = i < N_TENSORS ? &tensors[i] : t;
            int hit = t && i < N_TENSORS && strcmp(t->name, e->name) == 0;
            there |= hit;
            if (i == N_TENSORS && there)
                continue;
            if (hit)
                e = t;
            if (e->d0 == 0)
                continue;
            n_tensors++;
            if (pass)
                entry(&b, e->name, e->rank, e->d0, e->d1, 0, at);
            at += pass ? (4 * e->d0 * e->d1 + 31) / 32 * 32 : 0;
        }
        if (!pass) {
            found = !c || !c->key;
            there = !t;
        }
    }
    data(&b, 0);
    for (uint64_t i = 0; i < at; i += 4)
        put(&b, 0x3E000000 + i, 4);
    FILE *f = fopen(path, "wb");
    if (CHECK(f != NULL)) {
        CHECK(fwrite(b.p, 1, b.n, f) == b.n);
        fclose(f);
    }
}

static void try_model(const change *c, const tensor_change *t, const char *message)
{
    const char *path = in_folder("model.gguf");
    struct stat st;
    write_model(path, c, t);
    int status = convert(path, NULL);
    if (!CHECK(message ? status != 0 && strstr(err, message) : status == 0))
        fprintf(stderr, "    is:     %s\n    wanted: %s\n",
                status ? err : "(converted)", message ? message : "to convert");
    CHECK((stat(in_folder("out.qsae"), &st) == 0) == (status == 0));
}

#define M "metadata qwen3."

static void test_convert_bad(void)
{
    static const change cases[] = {
        {NULL, 0, 0, NULL, NULL},
        {"general.architecture", -1, 0, NULL,
         "metadata general.architecture is missing"},
        {"general.architecture", GGUF_U32, 3, NULL, "general.architecture is 3; only"},
        {"general.architecture", GGUF_STRING, 0, "qwen3moe",
         "general.architecture is qwen3moe; only qwen3 (dense Qwen3, not MoE, not VL)"},
        {"general.type", GGUF_STRING, 0, "adapter",
         "general.type is adapter; only model"},
        {"general.quantization_version", GGUF_U32, 1, NULL,
         "general.quantization_version is 1, not 2"},
        {"general.name", GGUF_STRING, 0, "x", NULL},
        {"split.count", GGUF_U16, 2, NULL, "one of 2; put them together"},
        {"split.count", GGUF_U16, 1, NULL, NULL},
        {"vendor.remark", GGUF_U8, 1, NULL, NULL},
        {"qwen3.block_count", -1, 0, NULL, M "block_count is missing"},
        {"qwen3.block_count", GGUF_U32, 0, NULL,
         M "block_count is 0, it must be in 1..512"},
        {"qwen3.block_count", GGUF_I32, 0xFFFFFFFF, NULL,
         M "block_count is -1, it must be"},
        {"qwen3.block_count", GGUF_U64, UINT64_MAX, NULL,
         M "block_count is 18446744073709551615, not a whole number"},
        {"qwen3.block_count", GGUF_F32, 0x3F800000, NULL,
         M "block_count is 1, not a whole"},
        {"qwen3.block_count", GGUF_ARRAY, 1, NULL,
         M "block_count is an array of 2 u32"},
        {"qwen3.block_count", GGUF_U32, 2, NULL,
         "tensor blk.1.attn_norm.weight is missing"},
        {"qwen3.context_length", -1, 0, NULL, M "context_length is missing"},
        {"qwen3.embedding_length", -1, 0, NULL, M "embedding_length is missing"},
        {"qwen3.embedding_length", GGUF_U32, 5, NULL,
         "tensor token_embd.weight has shape [7, 4], the metadata implies [7, 5] (rows of "
         "token_embd, qwen3.embedding_length)"},
        {"qwen3.embedding_length", GGUF_U32, 70000, NULL,
         "70000, it must be in 1..65536"},
        {"qwen3.feed_forward_length", GGUF_U32, 8, NULL,
         "tensor blk.0.ffn_gate.weight has shape [6, 4], the metadata implies [8, 4]"},
        {"qwen3.attention.head_count", GGUF_U32, 4, NULL,
         "tensor blk.0.attn_q.weight has shape [4, 4], the metadata implies [8, 4] "
         "(qwen3.attention.head_count x qwen3.attention.key_length, "
         "qwen3.embedding_length)"},
        {"qwen3.attention.head_count", GGUF_ARRAY, 2, NULL,
         "is an array of 2 u32, not"},
        {"qwen3.attention.head_count_kv", GGUF_U32, 3, NULL, "2 is not a multiple of"},
        {"qwen3.attention.head_count_kv", -1, 0, NULL,
         "tensor blk.0.attn_k.weight has shape [2, 4], the metadata implies [4, 4]"},
        {"qwen3.attention.key_length", GGUF_U32, 3, NULL, "key_length 3 is odd"},
        {"qwen3.attention.key_length", GGUF_U32, 4, NULL,
         M "attention.value_length is 2, key_length 4; they must be equal"},
        {"qwen3.attention.key_length", -1, 0, NULL, NULL}, /* 4 / 2 */
        {"qwen3.attention.value_length", GGUF_U32, 6, NULL, "value_length is 6"},
        {"qwen3.attention.layer_norm_rms_epsilon", -1, 0, NULL,
         "rms_epsilon is missing"},
        {"qwen3.attention.layer_norm_rms_epsilon", GGUF_F32, 0, NULL,
         "rms_epsilon is 0, it must be above 0 and below 1"},
        {"qwen3.attention.layer_norm_rms_epsilon", GGUF_F32, 0x7FC00000, NULL,
         "it must be above 0 and below 1"},
        {"qwen3.attention.layer_norm_rms_epsilon", GGUF_U32, 1, NULL,
         "rms_epsilon is 1, not a floating-point number"},
        {"qwen3.rope.freq_base", -1, 0, NULL, M "rope.freq_base is missing"},
        {"qwen3.rope.freq_base", GGUF_F32, 0xC61C4000, NULL,
         M "rope.freq_base is -10000, it must be in 1..1e30"},
        {"qwen3.rope.dimension_count", GGUF_U32, 1, NULL,
         M "rope.dimension_count is 1, the heads have 2"},
        {"qwen3.rope.dimension_count", GGUF_U32, 2, NULL, NULL},
        {"qwen3.rope.scaling.type", GGUF_STRING, 0, "none", NULL},
        {"qwen3.rope.scaling.type", GGUF_STRING, 0, "yarn",
         M "rope.scaling.type is yarn; only none (plain RoPE) is supported"},
        {"qwen3.rope.scaling.factor", GGUF_F32, 0x40800000, NULL,
         M "rope.scaling.factor is 4; only plain RoPE is supported"},
        {"qwen3.rope.scaling.factor", GGUF_F32, 0x3F800000, NULL, NULL},
        {"qwen3.vocab_size", GGUF_U32, 9, NULL,
         M "vocab_size is 9, tensor token_embd.weight has 7 rows"},
        {"qwen3.expert_count", GGUF_U32, 8, NULL,
         M "expert_count is 8, it must be in 0..0"},
        {"qwen3.expert_count", GGUF_U32, 0, NULL, NULL},
        {"qwen3.attention.sliding_window", GGUF_U32, 512, NULL,
         M
         "attention.sliding_window (512) is not known; --ignore-key qwen3.attention."},
        {"qwen3.attention.causal", GGUF_BOOL, 0, NULL,
         "attention.causal (false) is not"},
        {"tokenizer.ggml.eos_token_id", GGUF_U32, 7, NULL,
         "eos_token_id is 7, not a token below 7 (the rows of token_embd.weight)"},
        {"tokenizer.ggml.eos_token_id", GGUF_U32, 6, NULL, NULL},
        {"tokenizer.ggml.bos_token_id", GGUF_I32, 0xFFFFFFFF, NULL,
         "bos_token_id is -1"},
        {"tokenizer.ggml.model", GGUF_STRING, 0, "llama",
         "tokenizer.ggml.model is llama; only gpt2 is supported (--no-tokenizer"},
        {"tokenizer.ggml.model", GGUF_STRING, 0, "gpt2",
         "tokenizer.ggml.pre is (absent); only qwen2 is supported"},
        {"tokenizer.ggml.precompiled_charsmap", GGUF_U8, 0, NULL,
         "is not known; --ignore"},
    };
    static const struct {
        tensor_change t;
        const char *message;
    } changed[] = {
        {{"output.weight", 2, 4, 7}, NULL},
        {{"output.weight", 2, 4, 8}, "tensor output.weight has shape [8, 4]"},
        {{"token_embd.weight", 0, 0, 0}, "tensor token_embd.weight is missing"},
        {{"token_embd.weight", 1, 28, 1}, "tensor token_embd.weight has shape [28]"},
        {{"output_norm.weight", 0, 0, 0}, "tensor output_norm.weight is missing"},
        {{"blk.0.attn_q_norm.weight", 0, 0, 0},
         "tensor blk.0.attn_q_norm.weight is missing"},
        {{"blk.0.ffn_down.weight", 2, 4, 6},
         "tensor blk.0.ffn_down.weight has shape [6, 4], the metadata implies [4, 6]"},
        {{"blk.0.attn_q.bias", 1, 4, 1},
         "tensor blk.0.attn_q.bias is not known: Qwen3 with biases"},
        {{"blk.0.ffn_gate_exps.weight", 2, 4, 6},
         "mixtures of experts are not supported"},
        {{"rope_freqs.weight", 1, 1, 1},
         "rope_freqs.weight is not known: only plain RoPE"},
        {{"blk.1.attn_norm.weight", 1, 4, 1}, "no such tensor"},
        {{"model.norm.weight", 1, 4, 1}, "tensor model.norm.weight is not known"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        try_model(&cases[i], NULL, cases[i].message);
    for (size_t i = 0; i < sizeof changed / sizeof changed[0]; i++)
        try_model(NULL, &changed[i].t, changed[i].message);
    CHECK(convert(in_folder("none.gguf"), NULL) != 0);
}

/* The fixture with one byte of its tokenizer changed. */
static void test_convert_tokenizer(void)
{
    static const struct {
        const char *find; /* after this text of the file */
        size_t skip;
        unsigned char value;
        const char *message;
    } cases[] = {
        {"tokenizer.ggml.pre", 4 + 8, 'Q', "tokenizer.ggml.pre is Qwen2; only qwen2"},
        {"tokenizer.ggml.token_type", 4 + 4 + 8, 6,
         "token 0 has type 6; 1 (normal), 3"},
        {"tokenizer.ggml.token_type", 4 + 4 + 8, 3, "byte 0x00, is missing"},
        {"tokenizer.ggml.token_type", 4 + 4 + 8, 5, "byte 0x00, is missing"},
        {"tokenizer.ggml.token_typ", 0, 'X', "tokenizer.ggml.token_typX (an array of"},
        {"tokenizer.ggml.merges", 4 + 4 + 8 + 8, 'x',
         "the tokenizer: merge 0: the result of"},
        {"tokenizer.ggml.merges", 4 + 4 + 8 + 8 + 1, 'x', "merge 0 is not \"a b\""},
        {"tokenizer.ggml.merges", 4 + 4 + 8 + 8, 0xFF, "merge 0 is not UTF-8"},
        {"tokenizer.ggml.add_bos_token", 4, 1,
         "add_bos_token is true; Qwen3's tokenizer adds"},
    };
    static unsigned char whole[1 << 15], copy[1 << 15];
    FILE *f = fopen(FIXTURE, "rb");
    size_t n = f ? fread(whole, 1, sizeof whole, f) : 0;
    if (f)
        fclose(f);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t at = 0, len = strlen(cases[i].find);
        while (at + len < n && memcmp(whole + at, cases[i].find, len) != 0)
            at++;
        if (!CHECK(at + len < n))
            continue;
        memcpy(copy, whole, n);
        copy[at + len + cases[i].skip] = cases[i].value;
        f = fopen(in_folder("t.gguf"), "wb");
        if (!CHECK(f != NULL))
            continue;
        CHECK(fwrite(copy, 1, n, f) == n);
        fclose(f);
        int status = convert(in_folder("t.gguf"), NULL);
        const char *message = cases[i].message;
        if (!CHECK(message ? status != 0 && strstr(err, message) : status == 0))
            fprintf(stderr, "    is:     %s\n    wanted: %s\n",
                    status ? err : "(converted)", message ? message : "to convert");
    }
}

int main(int argc, char **argv)
{
    snprintf(folder, sizeof folder, "%s/tmp/gguf-XXXXXX", argc > 1 ? argv[1] : "build");
    if (!CHECK(mkdtemp(folder) != NULL))
        return test_done("test_gguf");
    test_bad_head();
    test_bad_pairs();
    test_bad_tensors();
    test_values();
    test_blocks();
    test_q6_k();
    test_fixture();
    test_prefixes();
    test_convert_fixture();
    test_convert_bad();
    test_convert_tokenizer();
    remove(in_folder("model.gguf"));
    remove(in_folder("t.gguf"));
    remove(in_folder("out.qsae"));
    CHECK(rmdir(folder) == 0);
    return test_done("test_gguf");
}
