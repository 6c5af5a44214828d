#ifndef _XOPEN_SOURCE
#define _XOPEN_SOURCE 700 /* pread */
#endif
#define _FILE_OFFSET_BITS 64

#include "qread.h"
#include "checked.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_META  ((uint64_t)1 << 28)
#define MAX_INDEX ((uint64_t)1 << 28)
#define PIECE     4096 /* columns of a row that are read at once */

static int fail(const qread *q, const char *what, char *err, size_t cap)
{
    return err_set(err, cap, "%.300s: %s", q->path, what);
}

static int read_at(const qread *q, uint64_t offset, void *out, uint64_t size, char *err,
                   size_t cap)
{
    unsigned char *p = out;
    while (size > 0) {
        size_t part = size < ((uint64_t)1 << 30) ? (size_t)size : (size_t)1 << 30;
        if (offset > INT64_MAX)
            return fail(q, "it changed while it was read", err, cap);
        ssize_t done = pread(q->fd, p, part, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return fail(q, strerror(errno), err, cap);
        if (done == 0)
            return fail(q, "it became shorter while it was read", err, cap);
        p += done;
        offset += (uint64_t)done;
        size -= (uint64_t)done;
    }
    return 0;
}

static int check_index(const qread *q, char *err, size_t cap)
{
    qsae_file_header h = q->head;
    qsae_hash s;
    h.hash = 0;
    qsae_hash_begin(&s);
    qsae_hash_add(&s, &h, sizeof h);
    qsae_hash_add(&s, q->index, (size_t)h.index_size);
    return qsae_hash_end(&s) == q->head.hash
               ? 0
               : fail(q, "it changed while it was read", err, cap);
}

static int read_index(qread *q, char *err, size_t cap)
{
    const qsae_file_header *h = &q->head;
    struct stat st;
    if (fstat(q->fd, &st) != 0 || !S_ISREG(st.st_mode))
        return fail(q, "not a regular file", err, cap);
    if (read_at(q, 0, &q->head, sizeof q->head, err, cap))
        return -1;
    uint64_t records = 256 * (uint64_t)h->n_records, dir = 64 * (uint64_t)h->n_tensors;
    if (memcmp(h->magic, QSAE_FILE_MAGIC, 8) != 0 || h->index_size != records + dir ||
        h->index_size > MAX_INDEX)
        return fail(q, "not a .qsae file", err, cap);
    q->index = malloc((size_t)h->index_size + 1);
    if (!q->index)
        return fail(q, "out of memory", err, cap);
    if (read_at(q, sizeof *h, q->index, h->index_size, err, cap))
        return -1;
    q->records = q->index;
    q->dir = (void *)(q->index + records); /* 256 and malloc keep it aligned */
    return check_index(q, err, cap);
}

int qread_open(qread *q, const char *path, char *err, size_t cap)
{
    memset(q, 0, sizeof *q);
    q->path = path;
    q->fd = open(path, O_RDONLY | O_NONBLOCK); /* a FIFO would make us wait */
    if (q->fd < 0)
        return err_set(err, cap, "%.300s: cannot open: %s", path, strerror(errno));
    if (read_index(q, err, cap) == 0)
        return 0;
    qread_close(q);
    return -1;
}

void qread_close(qread *q)
{
    if (!q->path)
        return;
    if (q->fd >= 0)
        close(q->fd);
    free(q->index);
    memset(q, 0, sizeof *q);
}

const qsae_tensor_record *qread_find(const qread *q, uint32_t group, uint32_t role)
{
    for (uint32_t i = 0; i < q->head.n_tensors; i++)
        if (q->dir[i].group == group && q->dir[i].role == role)
            return &q->dir[i];
    return NULL;
}

qsae_sae_record qread_sae(const qread *q, uint32_t i)
{
    qsae_sae_record r;
    memcpy(&r, q->records + 256 * (size_t)i, sizeof r);
    r.name[sizeof r.name - 1] = 0;
    return r;
}

/* ---- META ---- */

int qread_meta(const qread *q, uint32_t group, char **text, char *err, size_t cap)
{
    const qsae_tensor_record *t = qread_find(q, group, QSAE_ROLE_META);
    *text = NULL;
    if (!t)
        return 0;
    if (t->cols > MAX_META)
        return fail(q, "its notes are too long", err, cap);
    char *out = malloc((size_t)t->cols + 1);
    if (!out)
        return fail(q, "out of memory", err, cap);
    if (read_at(q, t->offset, out, t->cols, err, cap)) {
        free(out);
        return -1;
    }
    out[t->cols] = 0;
    *text = out;
    return 0;
}

const char *qread_meta_value(const char *text, const char *key, size_t *len)
{
    size_t n = strlen(key);
    while (text && *text) {
        size_t line = strcspn(text, "\n");
        if (line > n && memcmp(text, key, n) == 0 && text[n] == '=') {
            *len = line - n - 1;
            return text + n + 1;
        }
        text += line + (text[line] != 0);
    }
    return NULL;
}

/* ---- tensors ---- */

int qread_bytes(const qread *q, const qsae_tensor_record *t, uint64_t offset,
                size_t size, void *out, char *err, size_t cap)
{
    if (offset > t->size || size > t->size - offset)
        return fail(q, "internal: a part of a tensor that is not there", err, cap);
    return read_at(q, t->offset + offset, out, size, err, cap);
}

/* n values from byte `at` on, `step` bytes apart in a run of whole values. */
static int read_run(const qread *q, const qsae_tensor_record *t, uint64_t at, size_t n,
                    size_t step, float *out, char *err, size_t cap)
{
    unsigned char raw[PIECE * 4];
    size_t width = t->type == QSAE_TYPE_F32 ? 4 : 2, per = sizeof raw / step;
    while (n > 0) {
        size_t part = n < per ? n : per, bytes = (part - 1) * step + width;
        if (read_at(q, t->offset + at, raw, bytes, err, cap))
            return -1;
        for (size_t i = 0; i < part; i++) {
            uint32_t bits = 0;
            const unsigned char *p = raw + i * step;
            for (size_t b = 0; b < width; b++)
                bits |= (uint32_t)p[b] << 8 * (b + 4 - width);
            memcpy(&out[i], &bits, 4);
        }
        at += part * step;
        out += part;
        n -= part;
    }
    return 0;
}

/* Row n of a BLOCK16 matrix: F32 has its values 64 bytes apart, BF16 has pairs of them,
 * 4 bytes that are 64 apart. */
static int read_block16(const qread *q, const qsae_tensor_record *t, uint64_t n,
                        uint64_t col, uint64_t n_cols, float *out, char *err,
                        size_t cap)
{
    uint64_t kp = (t->cols + 15) / 16 * 16, end = col + n_cols;
    if (t->type == QSAE_TYPE_F32)
        return read_run(q, t, n / 16 * 64 * kp + col * 64 + n % 16 * 4, (size_t)n_cols,
                        64, out, err, cap);
    for (uint64_t k = col - col % 2; k < end; k += 512) {
        uint32_t pair[256];
        size_t pairs = (size_t)((end - k < 512 ? end - k : 512) + 1) / 2;
        float v[256]; /* a pair read as an f32: its bits are what counts */
        qsae_tensor_record wide = *t;
        wide.type = QSAE_TYPE_F32;
        if (read_run(q, &wide, n / 16 * 32 * kp + k / 2 * 64 + n % 16 * 4, pairs, 64, v,
                     err, cap))
            return -1;
        memcpy(pair, v, pairs * 4);
        for (uint64_t c = k < col ? col : k; c < end && c < k + 512; c++) {
            uint32_t bits =
                c % 2 ? pair[(c - k) / 2] & 0xFFFF0000u : pair[(c - k) / 2] << 16;
            memcpy(&out[c - col], &bits, 4);
        }
    }
    return 0;
}

int qread_block(const qread *q, const qsae_tensor_record *t, uint64_t row,
                uint64_t n_rows, uint64_t col, uint64_t n_cols, float *out, char *err,
                size_t cap)
{
    size_t width = t->type == QSAE_TYPE_F32 ? 4 : 2;
    if (t->type == QSAE_TYPE_BYTES || row > t->rows || n_rows > t->rows - row ||
        col > t->cols || n_cols > t->cols - col)
        return fail(q, "internal: a part of a tensor that is not there", err, cap);
    for (uint64_t i = 0; i < n_rows; i++, out += n_cols) {
        int bad = t->layout == QSAE_LAYOUT_BLOCK16
                      ? read_block16(q, t, row + i, col, n_cols, out, err, cap)
                      : read_run(q, t, (row + i) * (t->size / t->rows) + col * width,
                                 (size_t)n_cols, width, out, err, cap);
        if (bad)
            return -1;
    }
    return 0;
}
