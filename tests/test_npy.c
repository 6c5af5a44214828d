/* .npy and .npz: the readers against bad files, the writers against the readers. */

#define _POSIX_C_SOURCE 200809L

#include "test.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../tools/npy.h"
#include "../tools/zip.h"

static char err[ERR_CAP];
static char folder[512];

static const char *in_folder(const char *name)
{
    static char path[640];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

/* A .npy of this version, header and n bytes of data, in a block of exactly its size. */
static unsigned char *build(int version, const char *header, size_t n, size_t *size)
{
    size_t len = strlen(header), at = version == 1 ? 10 : 12;
    *size = at + len + n;
    unsigned char *file = calloc(1, *size + 1);
    memcpy(file, "\x93NUMPY", 6);
    file[6] = (unsigned char)version;
    file[8] = (unsigned char)len;
    file[9] = (unsigned char)(len >> 8);
    memcpy(file + at, header, len);
    for (size_t i = 0; i < n; i++)
        file[at + len + i] = (unsigned char)i;
    return file;
}

#define H(descr, order, shape) \
    "{'descr': '" descr "', 'fortran_order': " order ", 'shape': " shape ", }\n"

static void test_good(void)
{
    static const struct {
        const char *header;
        int version;
        size_t n;
        tensor_type type;
        uint32_t rank;
        uint64_t shape[2], stride[2];
    } rows[] = {
        {H("<f4", "False", "(3,)"), 1, 12, TENSOR_F32, 1, {3, 0}, {1, 0}},
        {H("<f8", "False", "()"), 1, 8, TENSOR_F64, 0, {0, 0}, {0, 0}},
        {H("<f2", "True", "(2, 3)"), 2, 12, TENSOR_F16, 2, {2, 3}, {1, 2}},
        {H("|b1", "False", "(2,3)"), 3, 6, TENSOR_BOOL, 2, {2, 3}, {3, 1}},
        {"{'shape':(1,2,),'descr':'<i8','fortran_order':False}",
         1,
         16,
         TENSOR_I64,
         2,
         {1, 2},
         {2, 1}},
        {H("<u4", "False", "(0, 7)"), 1, 0, TENSOR_U32, 2, {0, 7}, {7, 1}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        size_t size;
        unsigned char *file = build(rows[i].version, rows[i].header, rows[i].n, &size);
        tensor_file *f = tensors_open_memory(file, size, "x.npy", err, sizeof err);
        if (!CHECK(f && tensors_count(f) == 1)) {
            fprintf(stderr, "    %s: %s\n", rows[i].header, err);
        } else {
            const tensor *t = tensors_find(f, "");
            CHECK(tensors_container(f) == TENSORS_NPY && t && t->type == rows[i].type &&
                  t->rank == rows[i].rank);
            CHECK(t && memcmp(t->shape, rows[i].shape, t->rank * 8) == 0 &&
                  memcmp(t->stride, rows[i].stride, t->rank * 8) == 0);
        }
        tensors_close(f);
        free(file);
    }
}

static const struct {
    const char *header;
    size_t n;
    const char *message;
} bad[] = {
    {H(">f4", "False", "(3,)"), 12, "type '>f4': big-endian numbers"},
    {H("|O", "False", "(3,)"), 24, "type '|O': Python objects, which are never read"},
    {H("|V2", "False", "(3,)"), 6, "type '|V2': raw bytes (numpy has no bf16)"},
    {H("<U5", "False", "(3,)"), 60, "type '<U5': text, not numbers"},
    {H("<c8", "False", "(3,)"), 24, "type '<c8': not supported"},
    {H("", "False", "(3,)"), 24, "type '': an empty type"},
    {"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,)}", 12,
     "a structured array"},
    {H("<f4", "False", "(3)"), 12, "the header's shape is not a tuple"},
    {H("<f4", "False", "(-3,)"), 12, "where a whole number of at least 0 should be"},
    {H("<f4", "False", "(03,)"), 12, "where a whole number of at least 0 should be"},
    {H("<f4", "False", "(3 4)"), 48, "where ',' or ')' should be"},
    {H("<f4", "False", "(3L,)"), 12, "where ',' or ')' should be"},
    {H("<f4", "False", "[3]"), 12, "where '(' should be"},
    {H("<f4", "False", "(1,1,1,1,1,1,1,1,1)"), 4, "more than 8 dimensions"},
    {H("<f4", "False", "(99999999999999999999,)"), 4,
     "a dimension does not fit in 64 bits"},
    {H("<f4", "False", "(4611686018427387905,)"), 4, "does not fit in 64 bits"},
    {H("<f4", "False", "(4294967296, 4294967296)"), 0, "does not fit in 64 bits"},
    {H("<f4", "False", "(0, 4294967296, 4294967296)"), 0, "does not fit in 64 bits"},
    {H("<f4", "False", "(3,)"), 11, "F32 [3] takes 12 bytes, there are 11"},
    {H("<f4", "False", "(3,)"), 13, "F32 [3] takes 12 bytes, there are 13"},
    {H("<f4", "0", "(3,)"), 12, "where True or False should be"},
    {H("<f4", "false", "(3,)"), 12, "where True or False should be"},
    {"{'descr': '<f4', 'shape': (3,)}", 12, "the header has no 'fortran_order'"},
    {"{'descr': '<f4', 'fortran_order': False}", 12, "the header has no 'shape'"},
    {"{'shape': (3,), 'fortran_order': False}", 12, "the header has no 'descr'"},
    {"{'descr': '<f4', 'descr': '<f4'}", 12, "the header has the key 'descr' twice"},
    {"{'order': 1}", 12, "the header has an unknown key 'order'"},
    {"{'descr' '<f4'}", 12, "where ':' should be"},
    {"{'descr': '<f4' 'shape': (3,)}", 12, "where ',' or '}' should be"},
    {"{descr: '<f4'}", 12, "where a text in single quotes should be"},
    {"{'descr': '<f\\x34'}", 12, "where a text in single quotes should be"},
    {"{'descr", 0, "where a text in single quotes should be"},
    {H("<f4", "False", "(3,)") "x", 12, "where the end of the header should be"},
    {"", 12, "where '{' should be"},
    {"__import__('os').system('x')", 12, "where '{' should be"},
};

static void expect(const unsigned char *file, size_t size, const char *message)
{
    err[0] = 0;
    tensor_file *f = tensors_open_memory(file, size, "x.npy", err, sizeof err);
    if (!CHECK(f == NULL) || !CHECK(strncmp(err, "x.npy: ", 7) == 0) ||
        !CHECK(strstr(err, message) != NULL))
        fprintf(stderr, "    \"%s\", wanted \"%s\"\n", err, message);
    tensors_close(f);
}

static void test_bad(void)
{
    size_t size;
    unsigned char *file;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        file = build(1, bad[i].header, bad[i].n, &size);
        expect(file, size, bad[i].message);
        free(file);
    }
    file = build(4, H("<f4", "False", "(3,)"), 12, &size);
    expect(file, size, "version 4.0 of the .npy format");
    file[6] = 1;
    file[7] = 1;
    expect(file, size, "version 1.1 of the .npy format");
    file[7] = 0;
    file[9] = 0x40;
    expect(file, size, "cut off: a header of");
    file[6] = 2;
    file[11] = 1;
    expect(file, size, "a header of 16793");
    expect(file, 11, "11 bytes, a .npy has more");
    free(file);
}

/* ---- .npz, and what the writers make ---- */

static void test_round_trip(void)
{
    const float rows[6] = {1, -2, 3.5f, 0, 1e-30f, 7};
    const int64_t ids[2] = {-5, INT64_MAX};
    const uint64_t shape[2] = {2, 3}, two = 2;
    char path[640];
    float back[6];
    int64_t x;
    snprintf(path, sizeof path, "%s", in_folder("a.npy"));
    npy_writer *w = npy_writer_create(path, TENSOR_F32, 2, shape, err, sizeof err);
    if (!CHECK(w != NULL))
        return;
    CHECK(npy_writer_data(w, rows, 4, err, sizeof err) == 0);
    CHECK(npy_writer_data(w, rows + 1, 20, err, sizeof err) == 0);
    CHECK(npy_writer_data(w, rows, 1, err, sizeof err) == -1);
    CHECK(access(path, F_OK) != 0);
    CHECK(npy_writer_commit(w, err, sizeof err) == 0);
    tensor_file *f = tensors_open(path, err, sizeof err);
    if (CHECK(f && tensors_count(f) == 1)) {
        CHECK(tensors_at(f, 0)->offset % 64 == 0);
        CHECK(tensor_f32(tensors_at(f, 0), 0, 6, back, err, sizeof err) == 0 &&
              memcmp(back, rows, sizeof rows) == 0);
    }
    tensors_close(f);
    unlink(path);
    w = npy_writer_create(path, TENSOR_F32, 2, shape, err, sizeof err);
    CHECK(w && npy_writer_commit(w, err, sizeof err) == -1 &&
          strstr(err, "24 bytes are missing") && access(path, F_OK) != 0);
    CHECK(npy_writer_create(path, TENSOR_BF16, 2, shape, err, sizeof err) == NULL &&
          strstr(err, "numpy has no type for BF16"));

    snprintf(path, sizeof path, "%s", in_folder("a.npz"));
    npz_writer *z = npz_writer_create(path, err, sizeof err);
    if (!CHECK(z != NULL))
        return;
    CHECK(npz_writer_array(z, "W_enc", TENSOR_F32, 2, shape, err, sizeof err) == 0);
    CHECK(npz_writer_data(z, rows, sizeof rows, err, sizeof err) == 0);
    CHECK(npz_writer_data(z, rows, 1, err, sizeof err) == -1 &&
          strstr(err, "member W_enc.npy: 1 bytes too many"));
    CHECK(npz_writer_array(z, "ids", TENSOR_I64, 1, &two, err, sizeof err) == 0);
    CHECK(npz_writer_array(z, "x", TENSOR_I64, 1, &two, err, sizeof err) == -1 &&
          strstr(err, "member ids.npy: 16 bytes are missing"));
    CHECK(npz_writer_data(z, ids, sizeof ids, err, sizeof err) == 0);
    CHECK(npz_writer_array(z, "ids", TENSOR_I64, 1, &two, err, sizeof err) == -1 &&
          strstr(err, "member ids.npy is there twice"));
    CHECK(npz_writer_commit(z, err, sizeof err) == 0);
    f = tensors_open(path, err, sizeof err);
    if (CHECK(f && tensors_count(f) == 2 && tensors_container(f) == TENSORS_NPZ)) {
        const tensor *t = tensors_find(f, "W_enc");
        CHECK(t && tensor_f32(t, 0, 6, back, err, sizeof err) == 0 &&
              memcmp(back, rows, sizeof rows) == 0);
        t = tensors_find(f, "ids");
        CHECK(t && tensor_int(t, 0, &x, err, sizeof err) == 0 && x == -5);
        CHECK(t && tensor_int(t, 1, &x, err, sizeof err) == 0 && x == INT64_MAX);
    } else {
        fprintf(stderr, "    %s\n", err);
    }
    tensors_close(f);

    /* one flipped bit in the numbers is found when they are read */
    FILE *file = fopen(path, "r+b");
    if (!CHECK(file != NULL))
        return;
    fseek(file, 30 + 9 + 128 + 5, SEEK_SET);
    fputc(0x55, file);
    fclose(file);
    f = tensors_open(path, err, sizeof err);
    if (CHECK(f != NULL)) {
        CHECK(tensor_int(tensors_find(f, "ids"), 0, &x, err, sizeof err) == 0);
        CHECK(tensor_f32(tensors_find(f, "W_enc"), 0, 6, back, err, sizeof err) == -1 &&
              strstr(err,
                     "a.npz: member W_enc.npy is damaged: the CRC-32 of its data is"));
    }
    tensors_close(f);
    unlink(path);

    zip_writer *other = zip_writer_create(path, err, sizeof err);
    CHECK(other && !zip_writer_member(other, "notes.txt", 2, err, sizeof err) &&
          !zip_writer_data(other, "hi", 2, err, sizeof err) &&
          !zip_writer_commit(other, err, sizeof err));
    CHECK(tensors_open(path, err, sizeof err) == NULL &&
          strstr(err, "member notes.txt is not a .npy"));
    unlink(path);
}

int main(int argc, char **argv)
{
    snprintf(folder, sizeof folder, "%s/tmp", argc > 1 ? argv[1] : ".");
    mkdir(folder, 0777);
    strncat(folder, "/npy-XXXXXX", sizeof folder - strlen(folder) - 1);
    if (!CHECK(mkdtemp(folder) != NULL))
        return test_done("test_npy");
    test_good();
    test_bad();
    test_round_trip();
    rmdir(folder);
    return test_done("test_npy");
}
