#ifndef _XOPEN_SOURCE
#define _XOPEN_SOURCE 700 /* pread, posix_fallocate */
#endif
#define _FILE_OFFSET_BITS 64

#include "shuffle.h"
#include "checked.h"
#include "sinks.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- opening ---- */

uint64_t shuffle_bytes(const size_t *widths, size_t n_columns, size_t cap)
{
    uint64_t sum = 0, part;
    for (size_t c = 0; c < n_columns; c++)
        if (size_mul(widths[c], cap, &part) || size_mul(part, 4, &part) ||
            size_add(sum, part, &sum))
            return UINT64_MAX;
    return sum;
}

uint64_t shuffle_memory(const shuffle *s)
{
    uint64_t norms = (uint64_t)s->n_columns * s->cap * 4;
    return norms + (s->path ? 0 : shuffle_bytes(s->width, s->n_columns, s->cap));
}

static int fail(const shuffle *s, const char *what, int code, char *err, size_t cap)
{
    return err_set(err, cap, "%s: the buffer file: %s: %s", name_z(s->path).text, what,
                   strerror(code));
}

static int open_file(shuffle *s, int keep, char *err, size_t cap)
{
    uint64_t size = shuffle_bytes(s->width, s->n_columns, s->cap);
    struct stat st;
    s->fd = open(s->path, O_RDWR | (keep ? 0 : O_CREAT), 0666);
    if (s->fd < 0)
        return fail(s, "cannot open", errno, err, cap);
    if (fstat(s->fd, &st) || !S_ISREG(st.st_mode))
        return err_set(err, cap, "%s: the buffer file is no regular file",
                       name_z(s->path).text);
    if (keep) {
        if ((uint64_t)st.st_size == size)
            return 0;
        return err_set(err, cap,
                       "%s: the buffer file has %" PRIu64 " bytes, the checkpoint "
                       "needs the one of %" PRIu64,
                       name_z(s->path).text, (uint64_t)st.st_size, size);
    }
    if (st.st_size > 0 && (uint64_t)st.st_size != size)
        return err_set(err, cap,
                       "%s exists, has %" PRIu64 " bytes and is not a buffer file of "
                       "this run, which has %" PRIu64 ": delete it or choose another",
                       name_z(s->path).text, (uint64_t)st.st_size, size);
    int code = posix_fallocate(s->fd, 0, (off_t)size);
    if (!code)
        return 0;
    unlink(s->path);
    return err_set(err, cap, "%s: no room for a buffer file of %" PRIu64 " bytes: %s",
                   name_z(s->path).text, size, strerror(code));
}

static int open_all(shuffle *s, const size_t *widths, const char *path, int keep,
                    char *err, size_t cap)
{
    uint64_t at = 0;
    s->width = calloc(s->n_columns + 1, sizeof *s->width);
    s->norm = calloc(s->n_columns + 1, sizeof *s->norm);
    s->rows = calloc(s->n_columns + 1, sizeof *s->rows);
    s->offset = calloc(s->n_columns + 1, sizeof *s->offset);
    s->path = path ? malloc(strlen(path) + 1) : NULL;
    if (!s->width || !s->norm || !s->rows || !s->offset || (path && !s->path))
        return err_set(err, cap, "out of memory");
    if (path)
        strcpy(s->path, path);
    for (size_t c = 0; c < s->n_columns; c++) {
        s->width[c] = widths[c];
        s->offset[c] = at;
        at += (uint64_t)widths[c] * s->cap * 4;
        s->norm[c] = malloc(s->cap * sizeof *s->norm[c]);
        if (!path)
            s->rows[c] = malloc(s->cap * widths[c] * sizeof *s->rows[c]);
        if (!s->norm[c] || (!path && !s->rows[c]))
            return err_set(err, cap, "out of memory for a buffer of %zu rows", s->cap);
    }
    return path ? open_file(s, keep, err, cap) : 0;
}

int shuffle_open(shuffle *s, const size_t *widths, size_t n_columns, size_t cap,
                 const char *path, int keep, char *err, size_t err_cap)
{
    memset(s, 0, sizeof *s);
    s->fd = -1;
    s->cap = cap;
    s->n_columns = n_columns;
    if (cap == 0 || cap > UINT32_MAX ||
        shuffle_bytes(widths, n_columns, cap) > (uint64_t)INT64_MAX)
        return err_set(err, err_cap, "a buffer of %zu rows cannot be", cap);
    if (open_all(s, widths, path, keep, err, err_cap) == 0)
        return 0;
    shuffle_close(s);
    return -1;
}

void shuffle_close(shuffle *s)
{
    for (size_t c = 0; c < s->n_columns; c++) {
        free(s->norm ? s->norm[c] : NULL);
        free(s->rows ? s->rows[c] : NULL);
    }
    free(s->width);
    free(s->norm);
    free(s->rows);
    free(s->offset);
    if (s->path && s->fd >= 0)
        close(s->fd);
    free(s->path);
    memset(s, 0, sizeof *s);
}

/* ---- rows ---- */

static int write_file(const shuffle *s, size_t c, const float *rows, size_t n,
                      char *err, size_t cap)
{
    const char *p = (const char *)rows;
    size_t left = n * s->width[c] * sizeof *rows;
    uint64_t at = s->offset[c] + (uint64_t)s->n * s->width[c] * sizeof *rows;
    while (left > 0) {
        ssize_t done =
            pwrite(s->fd, p, left < ((size_t)1 << 30) ? left : 1u << 30, (off_t)at);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return fail(s, "cannot write", done ? errno : ENOSPC, err, cap);
        p += done;
        at += (uint64_t)done;
        left -= (size_t)done;
    }
    return 0;
}

int shuffle_append(shuffle *s, const float *const *columns, size_t n, size_t *bad_row,
                   size_t *bad_column, char *err, size_t err_cap)
{
    if (n > s->cap - s->n)
        return err_set(err, err_cap,
                       "internal: %zu rows for a buffer with room for %zu", n,
                       s->cap - s->n);
    for (size_t c = 0; c < s->n_columns; c++) {
        size_t w = s->width[c];
        for (size_t r = 0; r < n; r++) {
            float norm = sinks_norm(columns[c] + r * w, w);
            if (!isfinite(norm)) {
                *bad_row = r;
                *bad_column = c;
                return err_set(err, err_cap, "a row is not finite");
            }
            s->norm[c][s->n + r] = norm;
        }
        if (s->path && write_file(s, c, columns[c], n, err, err_cap))
            return -1;
        if (!s->path)
            memcpy(s->rows[c] + s->n * w, columns[c], n * w * sizeof(float));
    }
    s->n += n;
    return 0;
}

void shuffle_clear(shuffle *s)
{
    s->n = 0;
}

int shuffle_sync(shuffle *s, char *err, size_t err_cap)
{
    if (s->path && fsync(s->fd) && errno != EINVAL)
        return fail(s, "cannot flush to the disk", errno, err, err_cap);
    return 0;
}

static int read_file(const shuffle *s, size_t column, size_t row, float *out, char *err,
                     size_t cap)
{
    char *p = (char *)out;
    size_t left = s->width[column] * sizeof *out;
    uint64_t at = s->offset[column] + (uint64_t)row * left;
    while (left > 0) {
        ssize_t done = pread(s->fd, p, left, (off_t)at);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return fail(s, "cannot read", done ? errno : EIO, err, cap);
        p += done;
        at += (uint64_t)done;
        left -= (size_t)done;
    }
    if (sinks_norm(out, s->width[column]) != s->norm[column][row])
        return err_set(err, cap, "%s: the buffer file was changed by someone else",
                       name_z(s->path).text);
    return 0;
}

int shuffle_get(const shuffle *s, size_t column, size_t row, float *out, char *err,
                size_t err_cap)
{
    size_t w = s->width[column];
    if (s->path)
        return read_file(s, column, row, out, err, err_cap);
    memcpy(out, s->rows[column] + row * w, w * sizeof *out);
    return 0;
}

/* ---- the order ---- */

/* SplitMix64 (Steele, Lea, Flood 2014): a counter, and a function that mixes its bits. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

static uint64_t next(uint64_t *state)
{
    *state += 0x9E3779B97F4A7C15u;
    return mix(*state);
}

uint64_t shuffle_seed(uint64_t seed, const char *name)
{
    uint64_t h = mix(seed + 0x9E3779B97F4A7C15u);
    for (const unsigned char *p = (const unsigned char *)name; *p; p++)
        h = mix((h ^ *p) + 0x9E3779B97F4A7C15u);
    return h;
}

/* 0 .. n - 1 without bias: numbers of the last, incomplete round are drawn again. */
static uint64_t below(uint64_t *state, uint64_t n)
{
    uint64_t limit = UINT64_MAX - UINT64_MAX % n, x;
    do
        x = next(state);
    while (x >= limit);
    return x % n;
}

void shuffle_order(uint32_t *order, size_t n, uint64_t seed, uint64_t bucket)
{
    uint64_t state = mix(seed ^ mix(bucket + 1));
    for (size_t i = n; i > 1; i--) {
        size_t j = (size_t)below(&state, i);
        uint32_t t = order[i - 1];
        order[i - 1] = order[j];
        order[j] = t;
    }
}
