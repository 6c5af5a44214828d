/* Safetensors: the reader against bad files, the writer against the reader; and the
 * output files under both, which appear whole or not at all. */

#define _POSIX_C_SOURCE 200809L

#include "test.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../tools/outfile.h"
#include "../tools/safetensors.h"

static char err[ERR_CAP];
static char folder[512]; /* for our files */

static const char *in_folder(const char *name)
{
    static char paths[4][640];
    static int next;
    char *p = paths[next++ % 4];
    snprintf(p, sizeof paths[0], "%s/%s", folder, name);
    return p;
}

/* ---- reading ---- */

/* A file of this header and n bytes of data, in a block of exactly its size. */
static unsigned char *build(const char *header, size_t header_len, size_t n,
                            size_t *size)
{
    *size = 8 + header_len + n;
    unsigned char *file = calloc(1, *size);
    for (int i = 0; i < 8; i++)
        file[i] = (unsigned char)((uint64_t)header_len >> 8 * i);
    memcpy(file + 8, header, header_len);
    for (size_t i = 0; i < n; i++)
        file[8 + header_len + i] = (unsigned char)i;
    return file;
}

static tensor_file *open_header(const char *header, size_t n, unsigned char **file)
{
    size_t size;
    *file = build(header, strlen(header), n, &size);
    err[0] = 0;
    return tensors_open_memory(*file, size, "x.st", err, sizeof err);
}

#define T(dtype, shape, offsets) \
    "{\"t\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}}"
#define ENTRY(dtype, shape, offsets) \
    "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static const struct {
    const char *header;
    size_t data;
    const char *message;
} bad[] = {
    /* S2, S3: the text of the header */
    {"{\"t\xFF\":{}}", 0, "header: byte 3: not UTF-8"},
    {"{\"t\xED\xA0\x80\":{}}", 0, "header: byte 3: not UTF-8"},
    {"{", 0, "header: byte 1: expected a member name"},
    {"{} x", 0, "header: byte 3: something follows"},
    {"{}{}", 0, "header: byte 2: something follows"},
    {"\xEF\xBB\xBF{}", 0, "does not begin with '{'"},
    /* S4: the wrong kind of value */
    {"[]", 0, "the header is not a JSON object"},
    {"\"t\"", 0, "the header is not a JSON object"},
    {"{\"t\":[]}", 0, "tensor t: its entry is not an object"},
    {"{\"t\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "tensor t: dtype is missing"},
    {"{\"t\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
     "tensor t: dtype is missing or"},
    {"{\"t\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4,
     "tensor t: shape is missing"},
    {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4,
     "tensor t: data_offsets is missing"},
    {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4,
     "tensor t: its entry has a key"},
    {T("F32", "[1]", "[0,4,8]"), 8, "tensor t: data_offsets is missing or is not two"},
    {T("F32", "[1]", "[4]"), 4, "tensor t: data_offsets is missing or is not two"},
    {T("F32", "[1]", "{}"), 4, "tensor t: data_offsets is missing or is not two"},
    {T("F32", "{}", "[0,4]"), 4, "tensor t: shape is missing or is not an array"},
    /* S5: twice */
    {"{\"t\":" ENTRY("F32", "[1]", "[0,4]") ",\"t\":" ENTRY("F32", "[1]", "[4,8]") "}",
     8, "the key \"t\" appears twice"},
    {"{\"t\":{\"dtype\":\"F32\",\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[0,4]}"
     "}",
     4, "the key \"dtype\" appears twice"},
    /* S6 */
    {"{\"__metadata__\":[]}", 0, "__metadata__ is not an object"},
    {"{\"__metadata__\":{\"a\":1}}", 0,
     "__metadata__ has a value that is not a string"},
    /* S7 */
    {T("F33", "[1]", "[0,4]"), 4, "tensor t: unknown dtype \"F33\""},
    {T("f32", "[1]", "[0,4]"), 4, "tensor t: unknown dtype \"f32\""},
    {T("F4", "[3]", "[0,2]"), 2, "tensor t: unknown dtype \"F4\""},
    {T("F32\\u0000", "[1]", "[0,4]"), 4, "tensor t: unknown dtype \"F32\\x00\""},
    /* S8 */
    {T("F32", "[-1]", "[0,4]"), 4, "tensor t: dimension 0 of the shape is not"},
    {T("F32", "[1,2.0]", "[0,8]"), 8, "tensor t: dimension 1 of the shape is not"},
    {T("F32", "[1e3]", "[0,4000]"), 4000, "tensor t: dimension 0 of the shape is not"},
    {T("F32", "[\"1\"]", "[0,4]"), 4, "tensor t: dimension 0 of the shape is not"},
    {T("F32", "[[1]]", "[0,4]"), 4, "tensor t: dimension 0 of the shape is not"},
    {T("F32", "[-0]", "[0,0]"), 0, "tensor t: dimension 0 of the shape is not"},
    {T("F32", "[9223372036854775808]", "[0,4]"), 4,
     "tensor t: dimension 0 of the shape is not"},
    {T("F32", "[01]", "[0,4]"), 4, "a number with a leading zero"},
    {T("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4,
     "tensor t: 9 dimensions, the limit is 8"},
    /* S9: products that wrap around */
    {T("U8", "[4294967296,4294967296,4]", "[0,4]"), 4,
     "elements does not fit in 64 bits"},
    {T("U8", "[9223372036854775807,3]", "[0,4]"), 4,
     "elements does not fit in 64 bits"},
    {T("U8", "[5,3689348814741910324]", "[0,4]"), 4,
     "elements does not fit in 64 bits"},
    {T("F32", "[4611686018427387905]", "[0,4]"), 4, "bytes does not fit in 64 bits"},
    {T("F64", "[2305843009213693952,4]", "[0,0]"), 0, "bytes does not fit in 64 bits"},
    /* S10 */
    {T("F32", "[2]", "[0,4]"), 4,
     "tensor t: F32 [2] takes 8 bytes, data_offsets give 4"},
    {T("BF16", "[2,3]", "[0,16]"), 16,
     "tensor t: BF16 [2, 3] takes 12 bytes, data_offsets give 16"},
    {T("F32", "[]", "[0,8]"), 8, "tensor t: F32 [] takes 4 bytes, data_offsets give 8"},
    /* S11 */
    {T("F32", "[1]", "[4,0]"), 4, "do not lie in the file's 4 bytes"},
    {T("F32", "[1]", "[0,8]"), 4, "do not lie in the file's 4 bytes"},
    {T("F32", "[1]", "[-4,0]"), 4, "data_offsets is missing or is not two whole"},
    {T("F32", "[1]", "[4,8]"), 8,
     "begins at byte 4 of the data, the one before it ends at 0 (gap)"},
    {T("F32", "[1]", "[0,4]"), 5,
     "the tensors end at byte 4 of the data, the file has 5"},
    {"{}", 1, "the tensors end at byte 0 of the data, the file has 1"},
    {"{\"a\":" ENTRY("F32", "[1]", "[0,4]") ",\"b\":" ENTRY("F32", "[1]", "[8,12]") "}",
     12, "tensor b: begins at byte 8 of the data, the one before it ends at 4 (gap)"},
    {"{\"a\":" ENTRY("F32", "[2]", "[0,8]") ",\"b\":" ENTRY("F32", "[2]", "[4,12]") "}",
     12,
     "tensor b: begins at byte 4 of the data, the one before it ends at 8 (overlap)"},
    {"{\"a\":" ENTRY("F32", "[1]", "[0,4]") ",\"b\":" ENTRY("F32", "[1]", "[0,4]") "}",
     4, "(overlap)"},
    {"{\"a\":" ENTRY("U8", "[0]", "[2,2]") ",\"b\":" ENTRY("F32", "[1]", "[0,4]") "}",
     4, "(overlap)"},
    /* S15 */
    {"{\"\":" ENTRY("F32", "[1]", "[0,4]") "}", 4, "the name has 0 bytes"},
    {"{\"a\\u0000b\":" ENTRY("F32", "[1]", "[0,4]") "}", 4,
     "tensor a\\x00b: a NUL in the name"},
    {"{\"\\u001b[2J\\n\":7}", 4, "tensor \\x1b[2J\\x0a: its entry is not"},
};

static void test_bad_headers(void)
{
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        unsigned char *file;
        tensor_file *f = open_header(bad[i].header, bad[i].data, &file);
        if (!CHECK(f == NULL) || !CHECK(strncmp(err, "x.st: ", 6) == 0) ||
            !CHECK(strstr(err, bad[i].message) != NULL))
            fprintf(stderr, "    header %s: \"%s\", wanted \"%s\"\n", bad[i].header,
                    err, bad[i].message);
        tensors_close(f);
        free(file);
    }
}

/* S1: the length of the header. */
static void test_lengths(void)
{
    static const struct {
        uint64_t length;
        size_t size;
        const char *message;
    } rows[] = {
        {0, 0, "the file is empty"},
        {2, 7, "7 bytes, a safetensors file has at least 8"},
        {0, 8, "does not begin with '{'"},
        {1, 10, "header: byte 1"},
        {2, 9, "the file is cut off: a header of 2 bytes in a file of 9"},
        {3, 10, "the file is cut off: a header of 3 bytes in a file of 10"},
        {100000000, 10, "the file is cut off"},
        {100000001, 10, "the limit is 100000000"},
        {UINT64_MAX, 10, "the limit is 100000000"},
        {UINT64_MAX - 7, 10, "the limit is 100000000"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        unsigned char *file = malloc(rows[i].size + 1), all[16] = {0};
        for (int b = 0; b < 8; b++)
            all[b] = (unsigned char)(rows[i].length >> 8 * b);
        all[8] = '{', all[9] = '}';
        memcpy(file, all, rows[i].size);
        tensor_file *f = tensors_open_memory(file, rows[i].size, "x.st", err, sizeof err);
        if (!CHECK(f == NULL) || !CHECK(strstr(err, rows[i].message) != NULL))
            fprintf(stderr, "    length %zu: \"%s\"\n", i, err);
        tensors_close(f);
        free(file);
    }
}

static void test_good(void)
{
    unsigned char *file;
    tensor_file *f = open_header("{}", 0, &file);
    CHECK(f && tensors_count(f) == 0 && tensors_at(f, 0) == NULL && tensors_meta(f, "a") == NULL);
    tensors_close(f);
    free(file);
    f = open_header(" \t\n{\"__metadata__\":{\"format\":\"pt\"}}   ", 0,
                    &file); /* blanks around are legal */
    CHECK(f && tensors_count(f) == 0);
    if (f)
        CHECK_STR(tensors_meta(f, "format"), "pt");
    tensors_close(f);
    free(file);
    /* S12, S13, S16: empty tensors anywhere, a tensor without dimensions, data at odd
     * addresses */
    f = open_header(
        "{\"z\":" ENTRY("F32", "[0,4]", "[1,1]") ",\"byte\":" ENTRY(
            "U8", "[1]",
            "[0,1]") ",\"one\":" ENTRY("F32", "[]",
                                       "[1,5]") ",\"e\":" ENTRY("I64", "[0]",
                                                                "[5,5]") "}",
        5, &file);
    if (CHECK(f != NULL)) {
        float x;
        const tensor *t = tensors_find(f, "one");
        CHECK(tensors_count(f) == 4 && strcmp(tensors_at(f, 0)->name, "z") == 0 &&
              tensors_find(f, "y") == NULL);
        CHECK(t && t->rank == 0 && t->n == 1 && t->type == TENSOR_F32);
        CHECK(tensor_f32(t, 0, 1, &x, err, sizeof err) == 0);
        CHECK(memcmp(&x, "\1\2\3\4", 4) == 0);
        CHECK(tensors_find(f, "z")->n == 0 && !tensor_is_float(tensors_find(f, "byte")));
        CHECK_STR(tensor_shape_of(2, tensors_find(f, "z")->shape).text, "[0, 4]");
    }
    tensors_close(f);
    free(file);
}

/* S14: 65,536 tensors are read in good time, one more is refused; a long name is. */
static void test_many(void)
{
    for (int extra = 0; extra < 2; extra++) {
        size_t n = TENSOR_MAX + (size_t)extra * 2, cap = n * 70, at = 0, size;
        char *text = malloc(cap);
        for (size_t i = 0; i < n; i++)
            at += (size_t)snprintf(text + at, cap - at,
                                   "%c\"%zu\":" ENTRY("U8", "[1]", "[%zu,%zu]"),
                                   i ? ',' : '{', i, i, i + 1);
        text[at++] = '}';
        unsigned char *file = build(text, at, n, &size);
        tensor_file *f = tensors_open_memory(file, size, "x.st", err, sizeof err);
        CHECK((f != NULL) == (extra == 0));
        if (f)
            CHECK(tensors_find(f, "65535") == tensors_at(f, 65535));
        else
            CHECK(strstr(err, "65538 tensors, the limit is 65536") != NULL);
        tensors_close(f);
        free(file);
        free(text);
    }
    char name[2000], text[2200];
    unsigned char *file;
    memset(name, 'n', sizeof name);
    name[1025] = 0;
    snprintf(text, sizeof text, "{\"%s\":7}", name);
    CHECK(open_header(text, 0, &file) == NULL &&
          strstr(err, "nnn...: the name has 1025 bytes"));
    free(file);
}

/* Every prefix of a small file is refused; every byte changed to every value does not
 * crash. */
static void test_damage(void)
{
    static const char header[] = "{\"a\":" ENTRY(
        "BF16", "[2,1]", "[0,4]") ",\"b\":" ENTRY("F32", "[1]", "[4,8]") "}";
    size_t size;
    unsigned char *file = build(header, sizeof header - 1, 8, &size);
    tensor_file *f = tensors_open_memory(file, size, "x.st", err, sizeof err);
    CHECK(f != NULL);
    tensors_close(f);
    for (size_t len = 0; len < size; len++) {
        unsigned char *copy = malloc(len ? len : 1);
        memcpy(copy, file, len);
        f = tensors_open_memory(copy, len, "x.st", err, sizeof err);
        CHECK(f == NULL);
        tensors_close(f);
        free(copy);
    }
    for (size_t i = 0; i < size - 8; i++) {
        unsigned char was = file[i];
        for (int c = 0; c < 256; c++) {
            double sum = 0, x;
            file[i] = (unsigned char)c;
            f = tensors_open_memory(file, size, "x.st", err, sizeof err);
            for (size_t j = 0; f && j < tensors_count(f); j++)
                for (uint64_t k = 0; tensor_is_float(tensors_at(f, j)) && k < tensors_at(f, j)->n;
                     k++)
                    sum += tensor_f64(tensors_at(f, j), k, 1, &x, err, sizeof err) ? 0 : x;
            tensors_close(f);
            if (sum > 1e300)
                err[0] = 0; /* so that the reads are not optimised away */
        }
        file[i] = was;
    }
    free(file);
}

/* S18: numbers of every float type, with the odd ones. */
static void test_numbers(void)
{
    static const struct {
        uint16_t bits;
        double value;
    } halves[] = {
        {0x0000, 0},
        {0x3C00, 1},
        {0xC000, -2},
        {0x7BFF, 65504},
        {0x0400, 0x1p-14},
        {0x0001, 0x1p-24},
        {0x83FF, -0x3FFp-24},
        {0x3555, 0.333251953125},
        {0x7C00, (double)INFINITY},
        {0xFC00, -(double)INFINITY},
    };
    unsigned char *file;
    float f;
    double d;
    tensor_file *a = open_header(T("F16", "[1]", "[0,2]"), 2, &file);
    unsigned char *data = file + sizeof T("F16", "[1]", "[0,2]") - 1 + 8;
    for (size_t i = 0; CHECK(a != NULL) && i < sizeof halves / sizeof halves[0]; i++) {
        int finite = isfinite(halves[i].value) != 0;
        data[0] = (unsigned char)halves[i].bits;
        data[1] = (unsigned char)(halves[i].bits >> 8);
        CHECK((tensor_f32(tensors_at(a, 0), 0, 1, &f, err, sizeof err) == 0) == finite);
        CHECK((tensor_f64(tensors_at(a, 0), 0, 1, &d, err, sizeof err) == 0) == finite);
        CHECK((double)f == halves[i].value && d == halves[i].value);
        if (!finite)
            CHECK_STR(err, "tensor t: element [0] is infinite");
    }
    if (a) {
        memcpy(data, "\x00\x7E", 2);
        CHECK(tensor_f32(tensors_at(a, 0), 0, 1, &f, err, sizeof err) == -1);
        CHECK_STR(err, "tensor t: element [0] is NaN");
        memcpy(data, "\x00\x80", 2);
        CHECK(tensor_f32(tensors_at(a, 0), 0, 1, &f, err, sizeof err) == 0);
        CHECK(f == 0 && signbit(f));
    }
    tensors_close(a);
    free(file);
    a = open_header(T("BF16", "[1,2]", "[0,4]"), 4, &file);
    data = file + sizeof T("BF16", "[1,2]", "[0,4]") - 1 + 8;
    if (CHECK(a != NULL)) {
        memcpy(data, "\xC0\x3F\x80\xFF", 4);
        CHECK(tensor_f32(tensors_at(a, 0), 0, 1, &f, err, sizeof err) == 0 && f == 1.5f);
        CHECK(tensor_f64(tensors_at(a, 0), 1, 1, &d, err, sizeof err) == -1);
        CHECK_STR(err, "tensor t: element [0, 1] is infinite");
    }
    tensors_close(a);
    free(file);
    double third = 1.0 / 3, large = 1e300;
    a = open_header(T("F64", "[1]", "[0,8]"), 8, &file);
    data = file + sizeof T("F64", "[1]", "[0,8]") - 1 + 8;
    if (CHECK(a != NULL)) {
        memcpy(data, &third, 8);
        CHECK(tensor_f32(tensors_at(a, 0), 0, 1, &f, err, sizeof err) == 0);
        CHECK(tensor_f64(tensors_at(a, 0), 0, 1, &d, err, sizeof err) == 0);
        CHECK(f == (float)third && d == third);
        memcpy(data, &large, 8);
        CHECK(tensor_f64(tensors_at(a, 0), 0, 1, &d, err, sizeof err) == 0 && d == large);
        CHECK(tensor_f32(tensors_at(a, 0), 0, 1, &f, err, sizeof err) == -1);
        CHECK_STR(err, "tensor t: element [0] is too large for f32");
    }
    tensors_close(a);
    free(file);
}

static void test_paths(void)
{
    CHECK(tensors_open(in_folder("none.st"), err, sizeof err) == NULL &&
          strstr(err, "cannot open"));
    CHECK(tensors_open(folder, err, sizeof err) == NULL &&
          strstr(err, "not a regular file"));
    const char *fifo = in_folder("fifo");
    if (mkfifo(fifo, 0600) == 0)
        CHECK(tensors_open(fifo, err, sizeof err) == NULL &&
              strstr(err, "not a regular file"));
    FILE *f = fopen(in_folder("empty.st"), "wb");
    if (f)
        fclose(f);
    CHECK(tensors_open(in_folder("empty.st"), err, sizeof err) == NULL &&
          strstr(err, "the file is empty"));
}

/* ---- writing ---- */

static int count_files(void)
{
    int n = 0;
    DIR *d = opendir(folder);
    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return n;
}

static void test_round_trip(void)
{
    uint64_t shape[2] = {3, 5}, none[1] = {0};
    float rows[15], back[15];
    uint16_t ids[3] = {1, 2, 3};
    const char *path = in_folder("round.st");
    for (int i = 0; i < 15; i++)
        rows[i] = (float)i / 7;
    st_writer *w = st_writer_create(path, err, sizeof err);
    if (!CHECK(w != NULL))
        return;
    CHECK(!st_writer_metadata(w, "a\"b", "line\n\\ \xC3\xA9", err, sizeof err));
    CHECK(!st_writer_metadata(w, "k", "v", err, sizeof err));
    CHECK(!st_writer_declare(w, "empty", TENSOR_F32, 1, none, err, sizeof err));
    CHECK(!st_writer_declare(w, "rows \"x\"\t", TENSOR_F32, 2, shape, err, sizeof err));
    CHECK(!st_writer_declare(w, "ids", TENSOR_U16, 1, shape, err, sizeof err));
    CHECK(st_writer_declare(w, "ids", TENSOR_U16, 1, shape, err, sizeof err) &&
          strstr(err, "declared twice"));
    CHECK(!st_writer_data(w, rows, 7 * 4, err, sizeof err) &&
          !st_writer_data(w, rows + 7, 8 * 4, err, sizeof err));
    CHECK(st_writer_declare(w, "late", TENSOR_U16, 1, shape, err, sizeof err));
    CHECK(st_writer_data(w, ids, 7, err, sizeof err) &&
          strstr(err, "more data than was declared for ids"));
    CHECK(!st_writer_data(w, ids, 6, err, sizeof err));
    CHECK(st_writer_data(w, ids, 1, err, sizeof err));
    CHECK(access(path, F_OK) != 0); /* not before commit */
    CHECK(!st_writer_commit(w, err, sizeof err));
    tensor_file *f = tensors_open(path, err, sizeof err);
    if (!CHECK(f != NULL))
        return;
    CHECK_STR(tensors_meta(f, "a\"b"), "line\n\\ \xC3\xA9");
    const tensor *t = tensors_find(f, "rows \"x\"\t");
    if (CHECK(t && t->rank == 2 && t->shape[0] == 3 && t->shape[1] == 5)) {
        CHECK(tensor_f32(t, 0, 15, back, err, sizeof err) == 0);
        CHECK(memcmp(rows, back, sizeof rows) == 0);
    }
    t = tensors_find(f, "ids");
    CHECK(t && t->n == 3);
    for (uint64_t i = 0; t && i < t->n; i++) {
        int64_t x = 0;
        CHECK(tensor_int(t, i, &x, err, sizeof err) == 0 && x == ids[i]);
    }
    tensors_close(f);
}

/* What does not end in a complete commit leaves nothing behind. */
static void test_nothing_left(void)
{
    uint64_t shape[1] = {4};
    int before = count_files();
    const char *path = in_folder("never.st");
    st_writer *w = st_writer_create(path, err, sizeof err);
    CHECK(w && !st_writer_declare(w, "t", TENSOR_F32, 1, shape, err, sizeof err));
    CHECK(count_files() <= before + 1); /* none where files without a name can be had */
    st_writer_abort(w);
    CHECK(count_files() == before);
    w = st_writer_create(path, err, sizeof err);
    CHECK(w && !st_writer_declare(w, "t", TENSOR_F32, 1, shape, err, sizeof err));
    CHECK(st_writer_commit(w, err, sizeof err) &&
          strstr(err, "0 bytes of data written, 16 declared"));
    CHECK(count_files() == before);
    st_writer_abort(NULL);
    outfile_abort(NULL);
}

static int holds(const char *path, const char *text)
{
    char got[64] = {0};
    FILE *f = fopen(path, "rb");
    if (!f)
        return 0;
    size_t n = fread(got, 1, sizeof got - 1, f);
    fclose(f);
    return n == strlen(text) && memcmp(got, text, n) == 0;
}

static void test_outfile(void)
{
    const char *path = in_folder("out"), *link = in_folder("link");
    outfile *o = outfile_create(path, err, sizeof err);
    CHECK(o && !outfile_text(o, err, sizeof err, "a%dc", 1) &&
          !outfile_write(o, "defg", 4, err, sizeof err));
    CHECK(!outfile_write_at(o, 0, "A", 1, err, sizeof err) && outfile_size(o) == 7);
    CHECK(outfile_write_at(o, 7, "x", 1, err, sizeof err));
    CHECK(!outfile_flush(o, err, sizeof err) && holds(outfile_temp(o), "A1cdefg"));
    CHECK(!outfile_commit(o, err, sizeof err) && holds(path, "A1cdefg"));
    /* R9, R10: replacing, twice at once; the last to commit stays */
    outfile *a = outfile_create(path, err, sizeof err),
            *b = outfile_create(path, err, sizeof err);
    CHECK(a && b && !outfile_text(a, err, sizeof err, "first") &&
          !outfile_text(b, err, sizeof err, "second"));
    CHECK(holds(path, "A1cdefg"));
    CHECK(!outfile_commit(b, err, sizeof err) && !outfile_commit(a, err, sizeof err) &&
          holds(path, "first"));
    /* a link is followed, and stays a link */
    struct stat st;
    if (symlink("out", link) == 0) {
        o = outfile_create(link, err, sizeof err);
        CHECK(o && !outfile_text(o, err, sizeof err, "linked") &&
              !outfile_commit(o, err, sizeof err));
        CHECK(holds(path, "linked") && lstat(link, &st) == 0 && S_ISLNK(st.st_mode));
    }
    CHECK(!outfile_create(folder, err, sizeof err) &&
          strstr(err, "not a regular file"));
    CHECK(!outfile_create("", err, sizeof err) && strstr(err, "empty"));
    CHECK(!outfile_create(in_folder("no/such/folder"), err, sizeof err) &&
          strstr(err, "cannot create"));
    CHECK(!outfile_create("/dev/null", err, sizeof err) &&
          strstr(err, "not a regular file"));
    char longest[300];
    memset(longest, 'n', 255);
    longest[255] = 0;
    o = outfile_create(in_folder(longest), err,
                       sizeof err); /* the temporary name must still be legal */
    CHECK(o && !outfile_commit(o, err, sizeof err) &&
          access(in_folder(longest), F_OK) == 0);
}

/* R6: a full disk, at every kind of write; the limit on the size of a file stands for
 * it. */
static void test_full_disk(void)
{
    static char data[200000];
    struct rlimit was, small;
    const char *path = in_folder("full");
    int before = count_files();
    signal(SIGXFSZ, SIG_IGN);
    if (getrlimit(RLIMIT_FSIZE, &was))
        return;
    small = was;
    small.rlim_cur = 100000;
    if (setrlimit(RLIMIT_FSIZE, &small))
        return;
    outfile *o = outfile_create(path, err, sizeof err);
    CHECK(o && outfile_write(o, data, sizeof data, err, sizeof err) &&
          strstr(err, "full: cannot write: "));
    CHECK(outfile_write(o, data, 1, err, sizeof err) &&
          strstr(err, "cannot write")); /* stays failed */
    CHECK(outfile_commit(o, err, sizeof err) && strstr(err, "cannot write"));
    o = outfile_create(path, err,
                       sizeof err); /* the failure comes in commit, from the buffer */
    CHECK(o && !outfile_write(o, data, 60000, err, sizeof err) &&
          !outfile_write(o, data, 50000, err, sizeof err));
    CHECK(outfile_commit(o, err, sizeof err) && strstr(err, "cannot write"));
    setrlimit(RLIMIT_FSIZE, &was);
    CHECK(count_files() == before);
}

/* R7: a signal in the middle of writing leaves no file, and ends the program as it
 * would without us. */
static void test_signals(void)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++) {
        int before = count_files(), status = 0;
        pid_t child = fork();
        if (child == 0) {
            outfile *o = outfile_create(in_folder("signal"), err, sizeof err);
            if (!o || outfile_write(o, "x", 1, err, sizeof err) ||
                outfile_flush(o, err, sizeof err))
                _exit(9);
            raise(signals[i]);
            _exit(8);
        }
        if (child < 0 || waitpid(child, &status, 0) != child)
            return;
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == signals[i]);
        CHECK(count_files() == before);
    }
}

/* R4: a file that is cut off while it is mapped. `ours` is 0 where the program came
 * with a handler for that signal, as under AddressSanitizer. */
static void test_cut_off(int ours)
{
    static char zeros[65536];
    int before = count_files(), status = 0;
    pid_t child = ours ? fork() : -1;
    if (child == 0) {
        int fd = open(in_folder("cut"), O_RDWR | O_CREAT, 0600);
        outfile *o = outfile_create(in_folder("signal"), err, sizeof err);
        if (!o || write(fd, zeros, sizeof zeros) != (ssize_t)sizeof zeros)
            _exit(9);
        void *map = mmap(NULL, sizeof zeros, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED || ftruncate(fd, 0))
            _exit(9);
        close(2); /* the line that it says is not for our log */
        _exit(((volatile char *)map)[20000] ? 7 : 8);
    }
    if (child < 0 || waitpid(child, &status, 0) != child)
        return;
    unlink(in_folder("cut"));
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    CHECK(count_files() == before);
}

int main(int argc, char **argv)
{
    signal(SIGINT, SIG_DFL); /* a shell starts what runs in the background with these ignored */
    signal(SIGHUP, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    struct sigaction bus;
    int ours = sigaction(SIGBUS, NULL, &bus) == 0 && bus.sa_handler == SIG_DFL;
    snprintf(folder, sizeof folder, "%s", argc > 1 ? argv[1] : ".");
    strncat(folder, "/tmp", sizeof folder - strlen(folder) - 1);
    mkdir(folder, 0777);
    strncat(folder, "/safetensors-XXXXXX", sizeof folder - strlen(folder) - 1);
    if (!mkdtemp(folder)) {
        CHECK(0 && "a folder for temporary files");
        return test_done("test_safetensors");
    }
    test_bad_headers();
    test_lengths();
    test_good();
    test_many();
    test_damage();
    test_numbers();
    test_paths();
    test_round_trip();
    test_nothing_left();
    test_outfile();
    test_full_disk();
    test_signals();
    test_cut_off(ours);
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d)) != NULL;)
        if (e->d_name[0] != '.')
            unlink(in_folder(e->d_name));
    if (d)
        closedir(d);
    rmdir(folder);
    return test_done("test_safetensors");
}
