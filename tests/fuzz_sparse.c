/* Fuzz target of the reader of sparse rows (`qsae decode`'s input): whatever the file
 * holds, what is read is in order and in range, and there are as many rows as the file
 * says. */

#ifndef _XOPEN_SOURCE
#define _XOPEN_SOURCE 700 /* mkstemp, pwrite */
#endif

#include "../tools/checked.h"
#include "../tools/sparse.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char path[64];

static void need(int ok)
{
    if (!ok)
        abort();
}

static void remove_file(void)
{
    unlink(path);
}

/* The reader wants a file: always the same one. */
static void put_file(const uint8_t *data, size_t size)
{
    static int fd = -1;
    if (fd < 0) {
        strcpy(path, "/dev/shm/fuzz_sparse-XXXXXX"); /* memory: many times faster */
        fd = mkstemp(path);
        if (fd < 0) {
            strcpy(path, "/tmp/fuzz_sparse-XXXXXX");
            fd = mkstemp(path);
        }
        atexit(remove_file);
    }
    need(fd >= 0 && ftruncate(fd, 0) == 0 &&
         pwrite(fd, data, size, 0) == (ssize_t)size);
}

static void check_rows(const qsae_rows *rows, uint32_t n_features)
{
    for (size_t r = 0; r < rows->n_rows; r++) {
        need(rows->start[r] <= rows->start[r + 1]);
        for (size_t i = rows->start[r]; i < rows->start[r + 1]; i++) {
            need(rows->index[i] < n_features);
            need(i == rows->start[r] || rows->index[i] > rows->index[i - 1]);
            need(isfinite(rows->value[i]) && rows->value[i] >= 0);
        }
    }
}

static void read_as(const sae_numbers *numbers)
{
    enum { MAX = 3 };
    char err[ERR_CAP] = "";
    size_t start[MAX + 1];
    uint64_t n = 0;
    qsae_rows rows;
    memset(&rows, 0, sizeof rows);
    rows.start = start;
    sparse_reader *r = sparse_open(path, numbers, err, sizeof err);
    need((r == NULL) == (err[0] != 0));
    while (r) {
        if (sparse_read(r, MAX, &rows, err, sizeof err)) {
            need(err[0] != 0);
            break;
        }
        need(rows.n_rows <= MAX);
        check_rows(&rows, numbers->n);
        n += rows.n_rows;
        if (rows.n_rows == 0) {
            need(n == sparse_count(r));
            break;
        }
    }
    sparse_close(r);
    free(rows.index);
    free(rows.value);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint32_t list[] = {1, 2, 5, 52, 70000};
    sae_numbers whole = {53, NULL}, pack = {5, list};
    put_file(data, size);
    read_as(&whole);
    read_as(&pack);
    return 0;
}
