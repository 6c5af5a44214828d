/* tensors.h itself: numbers by element, row and block, along and against the grain, from
 * a file and from memory; what is refused when numbers are read. */

#define _POSIX_C_SOURCE 200809L

#include "test.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../tools/safetensors.h"
#include "../tools/tensors_impl.h"

static char err[ERR_CAP];
static char folder[512];

static const char *in_folder(const char *name)
{
    static char path[640];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

/* Element i as stored: a number that every float type has. */
static double number(uint64_t i)
{
    return (double)((i * 2654435761u >> 7) % 255) - 127;
}

/* The same as bytes of a type; returns how many. */
static size_t store(tensor_type type, double x, unsigned char *out)
{
    float f = (float)x;
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if (type == TENSOR_F64) {
        memcpy(out, &x, 8);
        return 8;
    }
    if (type == TENSOR_F32) {
        memcpy(out, &f, 4);
        return 4;
    }
    uint32_t half = bits >> 16;
    if (type == TENSOR_F16)
        half = x == 0 ? 0
                      : (bits >> 16 & 0x8000) | ((bits >> 23 & 255) - 112) << 10 |
                            (bits >> 13 & 1023);
    out[0] = (unsigned char)half;
    out[1] = (unsigned char)(half >> 8);
    return 2;
}

#define ROWS 5000u /* more than the readers transpose at once */
#define COLS 37u

/* The file's matrix, or (turned) the same seen as [COLS, ROWS]. */
static void check_matrix(const tensor *t, int turned)
{
    const uint64_t R = t->shape[0], C = t->shape[1];
    const struct {
        uint64_t row, n_rows, col, n_cols;
    } blocks[] = {{0, R, 0, C},         {1, R - 1, 0, C}, {0, R, 1, C - 1},
                  {R - 1, 1, 0, C},     {0, R, C - 1, 1}, {3, 17, 5, 18},
                  {R - 5, 5, C - 3, 3}, {2, 0, 2, 5},     {R, 0, C, 0},
                  {7, R / 2, 0, C},     {0, 16, 0, C},    {1, 1, 1, 1}};
    float *f = malloc((size_t)(R * C) * sizeof *f);
    double *d = malloc((size_t)(R * C) * sizeof *d);
    for (size_t k = 0; k < sizeof blocks / sizeof blocks[0]; k++) {
        uint64_t nr = blocks[k].n_rows, nc = blocks[k].n_cols, wrong = 0;
        CHECK(tensor_block_f32(t, blocks[k].row, nr, blocks[k].col, nc, f, err,
                               sizeof err) == 0);
        CHECK(tensor_block_f64(t, blocks[k].row, nr, blocks[k].col, nc, d, err,
                               sizeof err) == 0);
        for (uint64_t i = 0; i < nr * nc; i++) {
            uint64_t row = blocks[k].row + i / nc, col = blocks[k].col + i % nc;
            double want = number(turned ? col * R + row : row * C + col);
            wrong += (double)f[i] != want || d[i] != want;
        }
        CHECK(wrong == 0);
    }
    /* all, from the middle of a row, one */
    const uint64_t first[] = {0, C + 3, R * C - 1}, n[] = {R * C, 5 * C + 2, 1};
    for (int k = 0; k < 3; k++) {
        uint64_t wrong = 0;
        CHECK(tensor_f32(t, first[k], n[k], f, err, sizeof err) == 0);
        CHECK(tensor_f64(t, first[k], n[k], d, err, sizeof err) == 0);
        for (uint64_t i = 0; i < n[k]; i++) {
            uint64_t row = (first[k] + i) / C, col = (first[k] + i) % C;
            double want = number(turned ? col * R + row : row * C + col);
            wrong += (double)f[i] != want || d[i] != want;
        }
        CHECK(wrong == 0);
    }
    free(f);
    free(d);
}

static void write_matrix(const char *path, tensor_type type)
{
    const uint64_t shape[2] = {ROWS, COLS};
    unsigned char *data = malloc((size_t)ROWS * COLS * 8);
    size_t n = 0;
    for (uint64_t i = 0; i < ROWS * COLS; i++)
        n += store(type, number(i), data + n);
    st_writer *w = st_writer_create(path, err, sizeof err);
    CHECK(w && !st_writer_metadata(w, "k", "v", err, sizeof err) &&
          !st_writer_declare(w, "m", type, 2, shape, err, sizeof err) &&
          !st_writer_data(w, data, n, err, sizeof err) &&
          !st_writer_commit(w, err, sizeof err));
    free(data);
}

static void test_matrices(void)
{
    static const tensor_type types[] = {TENSOR_F32, TENSOR_F16, TENSOR_BF16,
                                        TENSOR_F64};
    for (size_t k = 0; k < sizeof types / sizeof types[0]; k++) {
        const char *path = in_folder("m.safetensors");
        write_matrix(path, types[k]);
        tensor_file *f = tensors_open(path, err, sizeof err);
        if (!CHECK(f != NULL))
            continue;
        CHECK(tensors_container(f) == TENSORS_SAFETENSORS);
        CHECK_STR(tensors_path(f), path);
        CHECK_STR(tensors_meta(f, "k"), "v");
        const char *value;
        CHECK(tensors_meta_count(f) == 1);
        CHECK_STR(tensors_meta_at(f, 0, &value), "k");
        CHECK_STR(value, "v");
        const tensor *t = tensors_find(f, "m");
        CHECK_STR(tensor_shape(t).text, "[5000, 37]");
        tensor turned = tensor_transposed(t), back = tensor_transposed(&turned);
        check_matrix(t, 0);
        check_matrix(&turned, 1);
        CHECK(memcmp(&back, t, sizeof back) == 0);
        tensors_close(f);
        unlink(path);
    }
}

/* Steps between the elements of a row, small and large; a dimension that stands still. */
static void test_strides(void)
{
    const char *path = in_folder("s.safetensors");
    write_matrix(path, TENSOR_F32);
    tensor_file *f = tensors_open(path, err, sizeof err);
    if (!CHECK(f != NULL))
        return;
    static const struct {
        uint64_t stride[3], shape[3];
    } rows[] = {{{1000, 2, 0}, {20, 300, 1}},  {{7, 63, 0}, {9, 90, 1}},
                {{1, 64, 0}, {30, 200, 1}},    {{3, 0, 0}, {10, 7, 1}},
                {{0, 1, 0}, {7, 100, 1}},      {{1, 900, 30}, {20, 9, 30}},
                {{5000, 100, 1}, {3, 40, 60}}, {{2, 2000, 5}, {30, 3, 70}}};
    for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++) {
        tensor t = *tensors_find(f, "m");
        t.rank = rows[k].shape[2] > 1 ? 3 : 2;
        t.n = 1;
        for (uint32_t i = 0; i < t.rank; i++) {
            t.shape[i] = rows[k].shape[i];
            t.stride[i] = rows[k].stride[i];
            t.n *= t.shape[i];
        }
        float *x = malloc((size_t)t.n * sizeof *x), one,
              *y = malloc((size_t)t.n * sizeof *y);
        uint64_t wrong = 0;
        CHECK(tensor_f32(&t, 0, t.n, x, err, sizeof err) == 0);
        for (uint64_t i = 0; i < t.n; i++) {
            uint64_t last = t.shape[t.rank - 1], rest = i / last, at;
            at = i % last * t.stride[t.rank - 1];
            for (uint32_t d = t.rank - 1; d-- > 0; rest /= t.shape[d])
                at += rest % t.shape[d] * t.stride[d];
            wrong += (double)x[i] != number(at);
            if (i % 17 == 0)
                wrong +=
                    tensor_f32(&t, i, 1, &one, err, sizeof err) != 0 || one != x[i];
        }
        if (t.rank == 2) {
            CHECK(tensor_block_f32(&t, 0, t.shape[0], 0, t.shape[1], y, err,
                                   sizeof err) == 0);
            CHECK(memcmp(x, y, (size_t)t.n * sizeof *x) == 0);
        }
        CHECK(wrong == 0);
        free(x);
        free(y);
    }
    tensors_close(f);
    unlink(path);
}

/* ---- small files in memory ---- */

static tensor_file *open_text(const char *header, const void *data, size_t n,
                              unsigned char **file)
{
    size_t len = strlen(header);
    *file = calloc(1, 8 + len + n + 1);
    (*file)[0] = (unsigned char)len;
    (*file)[1] = (unsigned char)(len >> 8);
    memcpy(*file + 8, header, len);
    memcpy(*file + 8 + len, data, n);
    tensor_file *f = tensors_open_memory(*file, 8 + len + n, "x", err, sizeof err);
    if (!CHECK(f != NULL))
        fprintf(stderr, "    %s\n", err);
    return f;
}

#define ONE(type, shape, n) \
    "{\"W\":{\"dtype\":\"" type "\",\"shape\":" shape ",\"data_offsets\":[0," n "]}}"

static void test_refused(void)
{
    float v[12] = {0}, out[12];
    double wide[12], large = 1e39;
    unsigned char *file;
    v[7] = NAN;
    v[10] = -INFINITY;
    tensor_file *f = open_text(ONE("F32", "[3,4]", "48"), v, sizeof v, &file);
    const tensor *t = f ? tensors_at(f, 0) : NULL;
    if (t) {
        tensor turned = tensor_transposed(t);
        CHECK(tensor_f32(t, 0, 7, out, err, sizeof err) == 0);
        CHECK(tensor_f32(t, 0, 12, out, err, sizeof err) == -1);
        CHECK_STR(err, "tensor W: element [1, 3] is NaN");
        CHECK(tensor_f64(t, 8, 4, wide, err, sizeof err) == -1);
        CHECK_STR(err, "tensor W: element [2, 2] is infinite");
        CHECK(tensor_block_f32(t, 1, 2, 2, 1, out, err, sizeof err) == -1);
        CHECK_STR(err, "tensor W: element [2, 2] is infinite");
        CHECK(tensor_block_f64(t, 0, 2, 1, 3, wide, err, sizeof err) == -1);
        CHECK_STR(err, "tensor W: element [1, 3] is NaN");
        CHECK(tensor_block_f32(&turned, 3, 1, 0, 3, out, err, sizeof err) == -1);
        CHECK_STR(err, "tensor W: element [1, 3] is NaN");
        CHECK(tensor_f32(t, 12, 1, out, err, sizeof err) == -1);
        CHECK(tensor_f32(t, 1, UINT64_MAX, out, err, sizeof err) == -1);
        CHECK(tensor_block_f32(t, 0, 4, 0, 4, out, err, sizeof err) == -1);
        CHECK(tensor_block_f32(t, 0, 1, 1, 4, out, err, sizeof err) == -1);
        CHECK(tensor_block_f32(t, UINT64_MAX, 2, 0, 1, out, err, sizeof err) == -1);
        CHECK_STR(err,
                  "internal: rows 18446744073709551615 + 2, columns 0 + 1 of tensor W "
                  "F32 [3, 4]");
    }
    tensors_close(f);
    free(file);
    f = open_text(ONE("F64", "[1]", "8"), &large, 8, &file);
    if (f) {
        CHECK(tensor_f64(tensors_at(f, 0), 0, 1, wide, err, sizeof err) == 0);
        CHECK(tensor_f32(tensors_at(f, 0), 0, 1, out, err, sizeof err) == -1);
        CHECK_STR(err, "tensor W: element [0] is too large for f32");
    }
    tensors_close(f);
    free(file);
}

static void test_ints(void)
{
    static const struct {
        const char *header;
        const char *bytes;
        size_t n;
        int64_t value;
        const char *message;
    } rows[] = {
        {ONE("U8", "[1]", "1"), "\xFF", 1, 255, NULL},
        {ONE("I8", "[1]", "1"), "\xFF", 1, -1, NULL},
        {ONE("I16", "[]", "2"), "\x00\x80", 2, -32768, NULL},
        {ONE("U16", "[]", "2"), "\x00\x80", 2, 32768, NULL},
        {ONE("I32", "[]", "4"), "\xFE\xFF\xFF\xFF", 4, -2, NULL},
        {ONE("U32", "[]", "4"), "\xFE\xFF\xFF\xFF", 4, 4294967294, NULL},
        {ONE("I64", "[]", "8"), "\0\0\0\0\0\0\0\x80", 8, INT64_MIN, NULL},
        {ONE("U64", "[]", "8"), "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F", 8, INT64_MAX, NULL},
        {ONE("U64", "[]", "8"), "\0\0\0\0\0\0\0\x80", 8, 0,
         "tensor W: element 0 is 9223372036854775808, which is more than 2^63 - 1"},
        {ONE("BOOL", "[1]", "1"), "\1", 1, 1, NULL},
        {ONE("BOOL", "[1]", "1"), "\2", 1, 0, "tensor W: element 0 is neither 0 nor 1"},
        {ONE("F32", "[1]", "4"), "\0\0\0\0", 4, 0,
         "internal: element 0 of tensor W F32 [1]"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        unsigned char *file;
        int64_t x = 0;
        tensor_file *f = open_text(rows[i].header, rows[i].bytes, rows[i].n, &file);
        if (f && !rows[i].message)
            CHECK(tensor_int(tensors_at(f, 0), 0, &x, err, sizeof err) == 0 &&
                  x == rows[i].value);
        else if (f && CHECK(tensor_int(tensors_at(f, 0), 0, &x, err, sizeof err) == -1))
            CHECK_STR(err, rows[i].message);
        if (f)
            CHECK(tensor_int(tensors_at(f, 0), 1, &x, err, sizeof err) == -1);
        tensors_close(f);
        free(file);
    }
}

/* Quantized blocks: a scale as f16, then 32 values. */
static void test_blocks_of_32(void)
{
    unsigned char data[4 * 34] = {0}, *file;
    float out[128];
    for (size_t b = 0; b < 4; b++) {
        data[b * 34 + 1] = (unsigned char)(0x38 + 4 * b); /* 0.5, 1, 2, 4 */
        for (size_t i = 0; i < 32; i++)
            data[b * 34 + 2 + i] = (unsigned char)(i * 8 + b);
    }
    tensor_file *f = open_text(ONE("U8", "[136]", "136"), data, sizeof data, &file);
    if (f) {
        tensor t = *tensors_at(f, 0);
        t.type = TENSOR_Q8_0;
        t.rank = 2;
        t.n = 128;
        t.shape[0] = 2;
        t.shape[1] = t.stride[0] = 64;
        t.stride[1] = 1;
        CHECK(tensor_f32(&t, 0, 128, out, err, sizeof err) == 0);
        int wrong = 0;
        for (int i = 0; i < 128; i++)
            wrong += out[i] != (float)(signed char)(i % 32 * 8 + i / 32) *
                                   (float)(1 << i / 32) * 0.5f;
        CHECK(wrong == 0);
        float part[64], two[4];
        CHECK(tensor_f32(&t, 31, 64, part, err, sizeof err) == 0 &&
              memcmp(part, out + 31, sizeof part) == 0);
        tensor turned = tensor_transposed(&t);
        CHECK(tensor_block_f32(&turned, 33, 2, 0, 2, two, err, sizeof err) == 0);
        CHECK(two[0] == out[33] && two[1] == out[97] && two[2] == out[34]);
        t.type = TENSOR_Q4_0; /* 18 bytes each: low nibbles, then high ones, less 8 */
        t.rank = 1;
        t.n = t.shape[0] = 32;
        t.stride[0] = 1;
        CHECK(tensor_f32(&t, 0, 32, out, err, sizeof err) == 0);
        CHECK(out[0] == 0.5f * (float)(0 - 8) && out[1] == 0.5f * (float)(8 - 8) &&
              out[3] == 0.5f * (float)(8 - 8) && out[18] == 0.5f * (float)(1 - 8));
    }
    tensors_close(f);
    free(file);
}

static void test_containers(void)
{
    static const struct {
        const char *bytes;
        size_t n;
        const char *message;
    } rows[] = {
        {"", 0, "x: the file is empty"},
        {"PK\3\4", 4, "x: a zip that is cut off: 4 bytes"},
        {"PK\5\6", 4, "x: a zip that is cut off: 4 bytes"},
        {"\x93NUMPY", 6, "x: 6 bytes, a .npy has more"},
        {"\x80\x02\x8a\x0al\xfc\x9c", 7, "x: a PyTorch file of before version 1.6"},
        {"Rar!\x1a\x07\x01\x00", 8, "x: not a file of tensors that is known here"},
        {"<html>..", 8, "x: not a file of tensors that is known here"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        CHECK(tensors_open_memory(rows[i].bytes, rows[i].n, "x", err, sizeof err) ==
              NULL);
        if (!CHECK(strstr(err, rows[i].message) != NULL))
            fprintf(stderr, "    \"%s\", wanted \"%s\"\n", err, rows[i].message);
    }
}

/* A file that someone cuts off while it is open: an error, no signal. */
static void test_cut_off(void)
{
    const char *path = in_folder("cut.safetensors");
    write_matrix(path, TENSOR_F32);
    tensor_file *f = tensors_open(path, err, sizeof err);
    float *x = malloc(ROWS * COLS * sizeof *x);
    if (CHECK(f != NULL)) {
        CHECK(truncate(path, 1000) == 0);
        CHECK(tensor_f32(tensors_at(f, 0), 0, ROWS * COLS, x, err, sizeof err) == -1 &&
              strstr(err, "the file became shorter while it was read"));
    }
    free(x);
    tensors_close(f);
    unlink(path);
}

int main(int argc, char **argv)
{
    snprintf(folder, sizeof folder, "%s/tmp", argc > 1 ? argv[1] : ".");
    mkdir(folder, 0777);
    strncat(folder, "/tensors-XXXXXX", sizeof folder - strlen(folder) - 1);
    if (!CHECK(mkdtemp(folder) != NULL))
        return test_done("test_tensors");
    test_matrices();
    test_strides();
    test_refused();
    test_ints();
    test_blocks_of_32();
    test_containers();
    test_cut_off();
    rmdir(folder);
    return test_done("test_tensors");
}
