/* The writer of .qsae files: matrices of several parts in every layout, and a file that
 * changes between writing and the end. (What it writes for whole models and SAEs:
 * test_convert.) */

#define _POSIX_C_SOURCE 200809L

#include "test.h"

#include <dirent.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../tools/checked.h"
#include "../tools/qfile.h"

static char err[ERR_CAP];
static char folder[512], path[640];

static float value(uint64_t row, uint64_t col)
{
    return (float)((row * 31 + col * 7) % 251) - 125; /* exact in bf16 */
}

static uint64_t parts, most_rows;

static int fill(void *user, const qfile_part *p, float *out, char *e, size_t cap)
{
    (void)user, (void)e, (void)cap;
    parts++;
    most_rows = p->n_rows > most_rows ? p->n_rows : most_rows;
    CHECK(p->col == 0);
    for (uint64_t i = 0; i < p->n_rows; i++)
        for (uint64_t j = 0; j < p->n_cols; j++)
            out[i * p->n_cols + j] = value(p->row + i, j);
    return 0;
}

static float load(uint32_t type, const unsigned char *p)
{
    uint32_t bits = 0;
    float x;
    memcpy(type == QSAE_TYPE_F32 ? (void *)&bits : (void *)((char *)&bits + 2), p,
           type == QSAE_TYPE_F32 ? 4 : 2);
    memcpy(&x, &bits, 4);
    return x;
}

/* After FORMAT.md: where element [row, col] lies. */
static uint64_t place(const qsae_tensor_record *t, uint64_t row, uint64_t col)
{
    uint64_t item = t->type == QSAE_TYPE_F32 ? 4 : 2, kp = (t->cols + 15) / 16 * 16;
    if (t->layout == QSAE_LAYOUT_ROWS)
        return row * (t->size / t->rows) + col * item;
    if (item == 4)
        return row / 16 * 64 * kp + col * 64 + row % 16 * 4;
    return row / 16 * 32 * kp + col / 2 * 64 + row % 16 * 4 + col % 2 * 2;
}

static void test_matrix(uint32_t type, uint32_t layout, uint64_t rows, uint64_t cols)
{
    qfile *q = qfile_create(path, QSAE_KIND_SAE, 1, err, sizeof err);
    parts = most_rows = 0;
    if (!CHECK(q != NULL))
        return;
    CHECK(qfile_declare(q, 1, QSAE_ROLE_ENC, type, layout, rows, cols, err,
                        sizeof err) == 0);
    CHECK(qfile_matrix(q, fill, NULL, err, sizeof err) == 0);
    CHECK(most_rows <= 4096 && (parts == 1 || most_rows % 16 == 0));
    if (!CHECK(qfile_finish(q, NULL, err, sizeof err) == 0)) {
        fprintf(stderr, "    %s\n", err);
        return;
    }
    FILE *f = fopen(path, "rb");
    struct stat st;
    if (!CHECK(f && fstat(fileno(f), &st) == 0))
        return;
    size_t size = (size_t)st.st_size;
    unsigned char *file = malloc(size);
    CHECK(fread(file, 1, size, f) == size);
    fclose(f);
    qsae_tensor_record t;
    memcpy(&t, file + 64 + 256, sizeof t);
    uint64_t wrong = 0;
    CHECK(t.rows == rows && t.cols == cols && t.offset + t.size == size);
    for (uint64_t i = 0; i < rows; i++)
        for (uint64_t j = 0; j < cols; j++)
            wrong += load(type, file + t.offset + place(&t, i, j)) != value(i, j);
    CHECK(wrong == 0);
    free(file);
    unlink(path);
}

static void test_matrices(void)
{
    static const uint64_t sizes[][2] = {{1, 1},      {15, 17},   {16, 16},
                                        {17, 5},     {4096, 3},  {4097, 3},
                                        {10000, 33}, {40, 9000}, {17, 70000}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        for (uint32_t type = QSAE_TYPE_F32; type <= QSAE_TYPE_BF16; type++) {
            test_matrix(type, QSAE_LAYOUT_ROWS, sizes[i][0], sizes[i][1]);
            test_matrix(type, QSAE_LAYOUT_BLOCK16, sizes[i][0], sizes[i][1]);
        }
}

/* ---- what is refused ---- */

static int count_files(void)
{
    int n = 0;
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d)) != NULL;)
        n += e->d_name[0] != '.';
    if (d)
        closedir(d);
    return n;
}

/* One bit of the temporary file, from outside. */
static int damage(void *user, const qfile_part *p, float *out, char *e, size_t cap)
{
    char temp[900] = "", target[900];
    DIR *d = opendir(folder);
    for (struct dirent *entry; d && (entry = readdir(d)) != NULL;)
        if (strstr(entry->d_name, ".tmp-"))
            snprintf(temp, sizeof temp, "%s/%s", folder, entry->d_name);
    if (d)
        closedir(d);
    for (int i = 3; i < 64 && !temp[0]; i++) { /* without a name: one of our own open files */
        char own[32];
        snprintf(own, sizeof own, "/proc/self/fd/%d", i);
        ssize_t n = readlink(own, target, sizeof target - 1);
        target[n > 0 ? n : 0] = 0;
        if (strstr(target, " (deleted)") && strstr(target, "/#"))
            strcpy(temp, own);
    }
    FILE *f = fopen(temp, "r+b");
    if (CHECK(f != NULL)) {
        fseek(f, 64 + 256 + 128 + 70000, SEEK_SET);
        fputc(0x41, f);
        fclose(f);
    }
    return fill(user, p, out, e, cap);
}

static void test_damage(void)
{
    qfile *q = qfile_create(path, QSAE_KIND_SAE, 1, err, sizeof err);
    if (!CHECK(q != NULL))
        return;
    CHECK(!qfile_declare(q, 1, QSAE_ROLE_ENC, QSAE_TYPE_F32, QSAE_LAYOUT_ROWS, 400, 600,
                         err, sizeof err) &&
          !qfile_declare(q, 1, QSAE_ROLE_DEC, QSAE_TYPE_F32, QSAE_LAYOUT_ROWS, 400, 600,
                         err, sizeof err));
    CHECK(qfile_matrix(q, fill, NULL, err, sizeof err) == 0);
    CHECK(qfile_matrix(q, damage, NULL, err, sizeof err) == 0);
    CHECK(qfile_finish(q, NULL, err, sizeof err) == -1);
    CHECK_STR(err,
              "the finished file differs from what was written to it, at byte 448 or "
              "later");
    CHECK(count_files() == 0);
}

static void test_vectors(void)
{
    static const struct {
        uint32_t role;
        float x;
        const char *message;
    } rows[] = {
        {QSAE_ROLE_THETA, -1, "element 1 is -1, which a threshold cannot be"},
        {QSAE_ROLE_MAG_SCALE, 0, "element 1 is 0, which a scale cannot be"},
        {QSAE_ROLE_ROPE, 2, "element 1 is 2, which a frequency cannot be"},
        {QSAE_ROLE_B_ENC, (float)INFINITY, "element 1 is not finite"},
        {QSAE_ROLE_B_ENC, -1, NULL},
        {QSAE_ROLE_THETA, 0, NULL},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        float v[3] = {1, rows[i].x, 1};
        qfile *q = qfile_create(path, QSAE_KIND_SAE, 1, err, sizeof err);
        if (!CHECK(q != NULL))
            return;
        CHECK(!qfile_declare(q, 1, rows[i].role, QSAE_TYPE_F32, QSAE_LAYOUT_VECTOR, 1,
                             3, err, sizeof err));
        int status = qfile_vector(q, v, err, sizeof err);
        CHECK((status == 0) == (rows[i].message == NULL));
        if (status && rows[i].message)
            CHECK_STR(err, rows[i].message);
        qfile_abort(q);
    }
    CHECK(count_files() == 0);
}

int main(int argc, char **argv)
{
    snprintf(folder, sizeof folder, "%s/tmp", argc > 1 ? argv[1] : ".");
    mkdir(folder, 0777);
    strncat(folder, "/qfile-XXXXXX", sizeof folder - strlen(folder) - 1);
    if (!CHECK(mkdtemp(folder) != NULL))
        return test_done("test_qfile");
    snprintf(path, sizeof path, "%s/x.qsae", folder);
    test_matrices();
    test_damage();
    test_vectors();
    rmdir(folder);
    return test_done("test_qfile");
}
