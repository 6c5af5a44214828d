/* The zip reader: a good archive as np.savez writes it, and one as torch.save does, with
 * single fields changed; each refused with its own message. */

#define _POSIX_C_SOURCE 200809L

#include "test.h"

#include <stdint.h>
#include <stdlib.h>

#include "../tools/tensors.h"
#include "../tools/zip.h"

static char err[ERR_CAP];

/* ---- archives made by hand, after the format's description (APPNOTE.TXT) ---- */

typedef struct bytes {
    unsigned char *p; /* a block of exactly n bytes after seal() */
    size_t n;
} bytes;

/* Where the parts begin. */
typedef struct places {
    size_t local[2], data[2], descriptor[2], central[2], end64, locator, end;
} places;

enum { NUMPY, TORCH };

static void put(bytes *b, uint64_t x, int n)
{
    for (int i = 0; i < n; i++)
        b->p[b->n++] = (unsigned char)(i < 8 ? x >> 8 * i : 0);
}

static void put_text(bytes *b, const char *s, size_t n)
{
    memcpy(b->p + b->n, s, n);
    b->n += n;
}

/* A .npy of n bytes: 64 bytes of header and what `fill` says. */
static void make_npy(unsigned char *out, size_t n, int fill)
{
    static const char header[] =
        "{'descr': '|u1', 'fortran_order': False, 'shape': (%d,)}";
    char text[100];
    int len = snprintf(text, sizeof text, header, (int)n - 80);
    memset(out, ' ', 80);
    memcpy(out, "\x93NUMPY\x01\0\x46\0", 10);
    memcpy(out + 10, text, (size_t)len);
    memset(out + 80, fill, n - 80);
}

/* Two members. NUMPY: sizes all ones with a zip64 field in the local header; TORCH: zero,
 * with a data descriptor, and a zip64 end record. */
static bytes make(int kind, places *at)
{
    static const char *const names[2] = {"a.npy", "bb.npy"};
    const uint64_t sizes[2] = {84, 90};
    unsigned char data[2][100];
    bytes b = {calloc(1, 4096), 0};
    int torch = kind == TORCH;
    memset(at, 0, sizeof *at);
    for (int i = 0; i < 2; i++) {
        size_t len = strlen(names[i]);
        make_npy(data[i], sizes[i], i + 1);
        at->local[i] = b.n;
        put(&b, 0x04034B50, 4);
        put(&b, torch ? 0 : 45, 2);
        put(&b, torch ? 0x0808 : 0, 2);
        put(&b, 0, 2); /* method */
        put(&b, 0, 4);
        put(&b, torch ? 0 : zip_crc(0, data[i], sizes[i]), 4);
        put(&b, torch ? 0 : 0xFFFFFFFF, 4);
        put(&b, torch ? 0 : 0xFFFFFFFF, 4);
        put(&b, len, 2);
        put(&b, torch ? 9 : 20, 2);
        put_text(&b, names[i], len);
        if (torch) {
            put_text(&b, "FB\5\0ZZZZZ", 9);
        } else {
            put(&b, 1, 2);
            put(&b, 16, 2);
            put(&b, sizes[i], 8);
            put(&b, sizes[i], 8);
        }
        at->data[i] = b.n;
        put_text(&b, (const char *)data[i], sizes[i]);
        at->descriptor[i] = b.n;
        if (torch) {
            put(&b, 0x08074B50, 4);
            put(&b, zip_crc(0, data[i], sizes[i]), 4);
            put(&b, sizes[i], i ? 8 : 4); /* both forms */
            put(&b, sizes[i], i ? 8 : 4);
        }
    }
    size_t directory = b.n;
    for (int i = 0; i < 2; i++) {
        at->central[i] = b.n;
        put(&b, 0x02014B50, 4);
        put(&b, 0, 4);
        put(&b, torch ? 0x0808 : 0, 2);
        put(&b, 0, 6);
        put(&b, zip_crc(0, data[i], sizes[i]), 4);
        put(&b, sizes[i], 4);
        put(&b, sizes[i], 4);
        put(&b, strlen(names[i]), 2);
        put(&b, 0, 12);
        put(&b, at->local[i], 4);
        put_text(&b, names[i], strlen(names[i]));
    }
    size_t size = b.n - directory;
    if (torch) {
        at->end64 = b.n;
        put(&b, 0x06064B50, 4);
        put(&b, 44, 8);
        put(&b, 0, 12);
        put(&b, 2, 8);
        put(&b, 2, 8);
        put(&b, size, 8);
        put(&b, directory, 8);
        at->locator = b.n;
        put(&b, 0x07064B50, 4);
        put(&b, 0, 4);
        put(&b, at->end64, 8);
        put(&b, 1, 4);
    }
    at->end = b.n;
    put(&b, 0x06054B50, 4);
    put(&b, 0, 4);
    put(&b, 2, 2);
    put(&b, 2, 2);
    put(&b, size, 4);
    put(&b, directory, 4);
    put(&b, 0, 2);
    return b;
}

static void check(const bytes *b, const char *message, int line)
{
    unsigned char *exact = malloc(b->n ? b->n : 1);
    memcpy(exact, b->p, b->n);
    err[0] = 0;
    tensor_file *f = tensors_open_memory(exact, b->n, "x.npz", err, sizeof err);
    if (!message) {
        if (!CHECK(f && tensors_count(f) == 2 && tensors_container(f) == TENSORS_NPZ))
            fprintf(stderr, "    line %d: %s\n", line, err);
    } else if (!CHECK(f == NULL) || !CHECK(strstr(err, message) != NULL)) {
        fprintf(stderr, "    line %d: \"%s\", wanted \"%s\"\n", line, err, message);
    }
    tensors_close(f);
    free(exact);
}

static void set(bytes *b, size_t at, uint64_t x, int n)
{
    for (int i = 0; i < n; i++)
        b->p[at + (size_t)i] = (unsigned char)(i < 8 ? x >> 8 * i : 0);
}

/* A field of a good archive changed: n bytes at `where` become x. */
#define CHANGED(kind, where, n, x, message) \
    do {                                    \
        places at;                          \
        bytes b = make(kind, &at);          \
        set(&b, where, x, n);               \
        check(&b, message, __LINE__);       \
        free(b.p);                          \
    } while (0)

static void test_fields(void)
{
    CHANGED(NUMPY, 0, 0, 0, NULL);
    CHANGED(TORCH, 0, 0, 0, NULL);
    /* the end records */
    CHANGED(NUMPY, at.end, 4, 0, "does not end with its end record");
    CHANGED(NUMPY, at.end + 20, 2, 1, "does not end with its end record");
    CHANGED(NUMPY, at.end + 4, 2, 1, "a zip of several disks");
    CHANGED(NUMPY, at.end + 6, 2, 1, "a zip of several disks");
    CHANGED(NUMPY, at.end + 8, 2, 1, "a zip of several disks");
    CHANGED(NUMPY, at.end + 8, 4, 0x00010001, "its directory has");
    CHANGED(NUMPY, at.end + 8, 4, 0x00030003, "3 members in a directory of 103 bytes");
    CHANGED(NUMPY, at.end + 8, 4, 0x00400040, "64 members in a directory of");
    CHANGED(NUMPY, at.end + 8, 4, 0xFFFFFFFF, "its zip64 end record is missing");
    CHANGED(NUMPY, at.end + 12, 4, 0xFFFFFFFF, "its zip64 end record is missing");
    CHANGED(NUMPY, at.end + 16, 4, 0xFFFFFFFF, "its zip64 end record is missing");
    CHANGED(NUMPY, at.end + 12, 4, 7, "which should end at");
    CHANGED(NUMPY, at.end + 12, 4, 0x7FFFFFFF,
            "a zip with 2 members in a directory of");
    CHANGED(NUMPY, at.end + 16, 4, 7, "which should end at");
    CHANGED(TORCH, at.end + 8, 4, 0xFFFFFFFF, NULL); /* "look in the zip64 record" */
    CHANGED(TORCH, at.end + 12, 4, 0xFFFFFFFF, NULL);
    CHANGED(TORCH, at.end + 16, 4, 0xFFFFFFFF, NULL);
    CHANGED(TORCH, at.end + 8, 4, 0x00030003, "its two end records say different");
    CHANGED(TORCH, at.end + 12, 4, 7, "its two end records say different things");
    CHANGED(TORCH, at.end + 16, 4, 7, "its two end records say different things");
    CHANGED(TORCH, at.locator, 4, 0, "which should end at");
    CHANGED(TORCH, at.locator + 4, 4, 1, "a zip of several disks");
    CHANGED(TORCH, at.locator + 8, 8, 7, "its zip64 end record is not where");
    CHANGED(TORCH, at.locator + 8, 8, UINT64_MAX, "its zip64 end record is not where");
    CHANGED(TORCH, at.locator + 16, 4, 2, "a zip of several disks");
    CHANGED(TORCH, at.end64, 4, 0,
            "its zip64 end record is not where its locator says");
    CHANGED(TORCH, at.end64 + 4, 8, 45,
            "its zip64 end record is not where its locator");
    CHANGED(TORCH, at.end64 + 16, 4, 1, "a zip of several disks");
    CHANGED(TORCH, at.end64 + 24, 8, 1, "a zip of several disks");
    CHANGED(TORCH, at.end64 + 40, 8, UINT64_MAX, "its two end records say different");
    /* the directory */
    CHANGED(NUMPY, at.central[0], 4, 0, "an entry of its directory is cut off");
    CHANGED(NUMPY, at.central[1] + 28, 2, 60000,
            "an entry of its directory is cut off");
    CHANGED(NUMPY, at.central[0] + 8, 2, 1, "member a.npy: it is encrypted");
    CHANGED(NUMPY, at.central[0] + 8, 2, 0x40, "member a.npy: flags 0x0040 are not");
    CHANGED(NUMPY, at.central[0] + 8, 2, 8,
            "member a.npy: its local header does not agree");
    CHANGED(
        NUMPY, at.central[0] + 10, 2, 8,
        "member a.npy: it is compressed (deflate), only stored members are read: save "
        "with np.savez");
    CHANGED(NUMPY, at.central[0] + 10, 2, 12, "it is compressed (method 12)");
    CHANGED(NUMPY, at.central[0] + 16, 4, 7, "the directory 84, 00000007");
    CHANGED(NUMPY, at.central[0] + 20, 4, 7, "it is stored, but takes 7 bytes for 84");
    CHANGED(NUMPY, at.central[0] + 24, 4, 7, "it is stored, but takes 84 bytes for 7");
    CHANGED(NUMPY, at.central[0] + 24, 4, 0xFFFFFFFF, "its zip64 field is missing");
    CHANGED(NUMPY, at.central[0] + 42, 4, 0xFFFFFFFF, "its zip64 field is missing");
    CHANGED(NUMPY, at.central[0] + 34, 2, 1, "a zip of several disks");
    CHANGED(NUMPY, at.central[0] + 42, 4, 7, "member a.npy: its local header does not");
    CHANGED(NUMPY, at.central[0] + 42, 4, 0x7FFFFFFF,
            "it does not lie in front of the di");
    CHANGED(NUMPY, at.central[0] + 46, 1, '/', "member /.npy: not a plain name");
    CHANGED(NUMPY, at.central[0] + 46, 2, 0x2F2E, "member ./npy: not a plain name");
    CHANGED(NUMPY, at.central[0] + 46, 3, 0x2F2E2E, "member ../py: not a plain name");
    CHANGED(NUMPY, at.central[0] + 46, 1, '\\', "not a plain name");
    CHANGED(NUMPY, at.central[0] + 46, 1, 0, "member \\x00.npy: not a plain name");
    CHANGED(NUMPY, at.central[0] + 50, 1, '/', "member a.np/: not a plain name");
    CHANGED(NUMPY, at.central[0] + 46, 1, 'z',
            "member z.npy: its local header has anoth");
    /* local headers */
    CHANGED(NUMPY, at.local[0], 4, 0x04034B51, "");
    CHANGED(NUMPY, at.local[1], 4, 0, "member bb.npy: its local header does not agree");
    CHANGED(NUMPY, at.local[1] + 6, 2, 0x0800,
            "member bb.npy: its local header does not");
    CHANGED(NUMPY, at.local[1] + 8, 2, 8,
            "member bb.npy: its local header does not agree");
    CHANGED(NUMPY, at.local[1] + 14, 4, 7,
            "its local header says 90 bytes, CRC-32 00000007");
    CHANGED(NUMPY, at.local[1] + 18, 4, 7, "member bb.npy:");
    CHANGED(NUMPY, at.local[1] + 22, 4, 7, "member bb.npy:");
    CHANGED(NUMPY, at.local[1] + 36 + 4, 8, 91, "its local header says 91 bytes");
    CHANGED(NUMPY, at.local[1] + 36 + 2, 2, 8,
            "a damaged extra field in its local header");
    CHANGED(NUMPY, at.local[1] + 36 + 2, 2, 60000,
            "a damaged extra field in its local he");
    CHANGED(NUMPY, at.local[1] + 26, 2, 5, "its local header does not agree");
    CHANGED(NUMPY, at.local[1] + 28, 2, 60000,
            "it does not lie in front of the directory");
    CHANGED(NUMPY, at.local[1] + 30, 1, 'z', "its local header has another name");
    CHANGED(TORCH, at.local[0] + 14, 4, 7,
            "its local header says 0 bytes, CRC-32 00000007");
    CHANGED(TORCH, at.local[0] + 22, 4, 84, "its local header says 84 bytes");
    /* data descriptors */
    CHANGED(TORCH, at.descriptor[0], 4, 0,
            "member a.npy: its data descriptor does not");
    CHANGED(TORCH, at.descriptor[0] + 4, 4, 0,
            "member a.npy: its data descriptor does no");
    CHANGED(TORCH, at.descriptor[0] + 8, 4, 0,
            "member a.npy: its data descriptor does no");
    CHANGED(TORCH, at.descriptor[1] + 16, 8, 0,
            "member bb.npy: its data descriptor does");
}

/* Members where they should not be. */
static void test_places(void)
{
    places at;
    bytes b = make(NUMPY, &at);
    /* both entries say the first member */
    memcpy(b.p + at.central[1] + 16, b.p + at.central[0] + 16, 12);
    set(&b, at.central[1] + 42, 0, 4);
    check(&b, "member bb.npy: its local header does not agree", __LINE__);
    free(b.p);
    /* one entry twice */
    b = make(NUMPY, &at);
    size_t one = at.central[1] - at.central[0];
    memmove(b.p + at.central[1] + one, b.p + at.end, b.n - at.end);
    memcpy(b.p + at.central[1], b.p + at.central[0], one);
    b.n -= at.end - (at.central[1] + one);
    set(&b, b.n - 22 + 12, 2 * one, 4);
    check(&b, "member a.npy: it begins at byte 0, the one before it ends at", __LINE__);
    /* one entry dropped: its member is a gap */
    memmove(b.p + at.central[1], b.p + b.n - 22, 22);
    b.n = at.central[1] + 22;
    set(&b, b.n - 22 + 8, 0x00010001, 4);
    set(&b, b.n - 22 + 12, one, 4);
    check(&b, "(gap)", __LINE__);
    free(b.p);
    /* something in front; something behind */
    b = make(NUMPY, &at);
    bytes c = {calloc(1, b.n + 64), b.n + 1};
    memcpy(c.p, b.p, b.n);
    check(&c, "does not end with its end record", __LINE__);
    c.n = b.n;
    memmove(c.p + 30, c.p, b.n);
    memcpy(c.p, b.p, 30);
    c.n += 30;
    check(&c, "which should end at", __LINE__);
    free(c.p);
    free(b.p);
    /* two names alike */
    b = make(TORCH, &at);
    b.p[at.local[1] + 30] = b.p[at.central[1] + 46] = 'a';
    check(&b, NULL, __LINE__); /* ab.npy */
    free(b.p);
    /* the member of the next one begins inside this one's data */
    b = make(TORCH, &at);
    set(&b, at.central[0] + 20, 200, 4);
    set(&b, at.central[0] + 24, 200, 4);
    check(&b, "(overlap)", __LINE__);
    set(&b, at.central[0] + 20, 80, 4);
    set(&b, at.central[0] + 24, 80, 4);
    check(&b, "there is no data descriptor behind its data", __LINE__);
    free(b.p);
}

/* Every prefix is refused; every byte changed to every value crashes nothing, and what
 * still opens holds the numbers that the CRC stands for. */
static void test_damage(void)
{
    for (int kind = NUMPY; kind <= TORCH; kind++) {
        places at;
        bytes b = make(kind, &at), cut;
        size_t n = b.n;
        for (cut = b; cut.n-- > 0;)
            check(&cut, "", __LINE__);
        for (size_t i = 0; i < n; i++) {
            unsigned char was = b.p[i];
            for (int c = 0; c < 256; c++) {
                int64_t x;
                b.p[i] = (unsigned char)c;
                tensor_file *f = tensors_open_memory(b.p, n, "x.npz", err, sizeof err);
                for (size_t k = 0; f && k < tensors_count(f); k++) {
                    const tensor *t = tensors_at(f, k);
                    if (t->n == 4 + 6 * k && tensor_int(t, 0, &x, err, sizeof err) == 0)
                        CHECK(x == (int64_t)k + 1);
                }
                tensors_close(f);
            }
            b.p[i] = was;
        }
        free(b.p);
    }
}

static void test_crc(void)
{
    CHECK(zip_crc(0, "123456789", 9) == 0xCBF43926u); /* the check value of CRC-32 */
    CHECK(zip_crc(0, "", 0) == 0);
    uint32_t parts = 0;
    static const char text[] = "any text, cut at every place in turn, gives one CRC";
    for (size_t i = 0; i < sizeof text; i++) {
        parts = zip_crc(zip_crc(0, text, i), text + i, sizeof text - i);
        CHECK(parts == zip_crc(0, text, sizeof text));
    }
}

int main(void)
{
    test_crc();
    test_fields();
    test_places();
    test_damage();
    return test_done("test_zip");
}
