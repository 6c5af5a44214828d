#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#include "qfile.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "outfile.h"
#include "progress.h"
#include "quantize.h"

/* A part is large, so that a source whose columns are what lies together is still read
 * in long runs: 64 MiB of f32. */
#define PART_VALUES ((uint64_t)1 << 24)
#define PART_ROWS   ((uint64_t)1 << 12)
#define PACK_VALUES ((uint64_t)1 << 18) /* written at once */

struct qfile {
    outfile *out;
    uint32_t kind, n_records;
    unsigned char *records;  /* [n_records, 256] */
    qsae_tensor_record *dir; /* [n] */
    uint32_t n, cap;
    uint32_t at; /* tensor to be written next */
    uint64_t index_size;
    float *tile;           /* what the source fills */
    unsigned char *packed; /* the same in the file's layout */
    qsae_hash hash;        /* of the tensor being written */
    progress shown;
};

/* ---- beginning ---- */

static int little_endian(void)
{
    const uint16_t one = 1;
    unsigned char first;
    memcpy(&first, &one, 1);
    return first == 1;
}

qfile *qfile_create(const char *path, uint32_t kind, uint32_t n_records, char *err,
                    size_t cap)
{
    if (!little_endian()) {
        err_set(err, cap,
                "this program writes .qsae files on little-endian machines only");
        return NULL;
    }
    qfile *q = calloc(1, sizeof *q);
    if (!q) {
        err_set(err, cap, "out of memory");
        return NULL;
    }
    q->kind = kind;
    q->n_records = n_records;
    q->records = calloc(n_records, 256);
    if (!q->records)
        err_set(err, cap, "out of memory");
    else
        q->out = outfile_create(path, err, cap);
    if (!q->out) {
        qfile_abort(q);
        return NULL;
    }
    return q;
}

void qfile_abort(qfile *q)
{
    if (!q)
        return;
    progress_end(&q->shown);
    outfile_abort(q->out);
    free(q->records);
    free(q->dir);
    free(q->tile);
    free(q->packed);
    free(q);
}

void *qfile_record(qfile *q, uint32_t i)
{
    return q->records + (size_t)i * 256;
}

int qfile_declare(qfile *q, uint32_t group, uint32_t role, uint32_t type,
                  uint32_t layout, uint64_t rows, uint64_t cols, char *err, size_t cap)
{
    uint64_t size = qsae_tensor_bytes(type, layout, rows, cols);
    if (size == 0)
        return err_set(err, cap,
                       "a tensor of type %u, layout %u, %" PRIu64 " x %" PRIu64
                       " cannot be "
                       "stored",
                       type, layout, rows, cols);
    if (q->n > 0) {
        const qsae_tensor_record *last = &q->dir[q->n - 1];
        if (group < last->group || (group == last->group && role <= last->role))
            return err_set(err, cap, "tensors declared out of order: group %u role %u",
                           group, role);
    }
    if (q->n == q->cap) {
        uint32_t room = q->cap ? 2 * q->cap : 64;
        qsae_tensor_record *dir = realloc(q->dir, (size_t)room * sizeof *dir);
        if (!dir)
            return err_set(err, cap, "out of memory");
        q->dir = dir;
        q->cap = room;
    }
    qsae_tensor_record *t = &q->dir[q->n++];
    memset(t, 0, sizeof *t);
    t->group = group;
    t->role = role;
    t->type = type;
    t->layout = layout;
    t->rows = rows;
    t->cols = cols;
    t->size = size;
    return 0;
}

/* Places every tensor and leaves room for header, records and directory. */
static int lay_out(qfile *q, char *err, size_t cap)
{
    static const unsigned char zeros[256];
    q->index_size = 256 * (uint64_t)q->n_records + 64 * (uint64_t)q->n;
    uint64_t at = 64 + q->index_size;
    for (uint32_t i = 0; i < q->n; i++) {
        q->dir[i].offset = at;
        if (size_add(at, q->dir[i].size, &at))
            return err_set(err, cap, "the file would be too large");
    }
    if (at > (uint64_t)INT64_MAX)
        return err_set(err, cap, "the file would be too large");
    for (uint64_t left = 64 + q->index_size; left > 0;) {
        size_t n = left < sizeof zeros ? (size_t)left : sizeof zeros;
        if (outfile_write(q->out, zeros, n, err, cap))
            return -1;
        left -= n;
    }
    progress_begin(&q->shown, "writing", at);
    return 0;
}

/* ---- one tensor ---- */

static int tensor_begin(qfile *q, uint32_t layout_a, uint32_t layout_b, char *err,
                        size_t cap)
{
    if (q->at == 0 && lay_out(q, err, cap))
        return -1;
    if (q->at >= q->n ||
        (q->dir[q->at].layout != layout_a && q->dir[q->at].layout != layout_b))
        return err_set(err, cap, "the data of a tensor that was not declared here");
    qsae_hash_begin(&q->hash);
    return 0;
}

static int emit(qfile *q, const void *data, size_t size, char *err, size_t cap)
{
    qsae_hash_add(&q->hash, data, size);
    if (outfile_write(q->out, data, size, err, cap))
        return -1;
    progress_add(&q->shown, size);
    return 0;
}

/* Zeros up to the tensor's size, and its hash. */
static int tensor_end(qfile *q, char *err, size_t cap)
{
    static const unsigned char zeros[64];
    qsae_tensor_record *t = &q->dir[q->at];
    uint64_t end = t->offset + t->size, at = outfile_size(q->out);
    if (at > end || end - at >= 64)
        return err_set(err, cap,
                       "internal: tensor %u ended at %" PRIu64 " instead of %" PRIu64,
                       q->at, at, end);
    if (end > at && emit(q, zeros, (size_t)(end - at), err, cap))
        return -1;
    t->hash = qsae_hash_end(&q->hash);
    q->at++;
    return 0;
}

/* What the library demands of some vectors. */
static int in_range(uint32_t role, float x)
{
    switch (role) {
    case QSAE_ROLE_THETA: return x >= 0;
    case QSAE_ROLE_MAG_SCALE: return x > 0;
    case QSAE_ROLE_ROPE: return x >= 0 && x <= 1;
    default: return 1;
    }
}

int qfile_vector(qfile *q, const float *values, char *err, size_t cap)
{
    if (tensor_begin(q, QSAE_LAYOUT_VECTOR, QSAE_LAYOUT_VECTOR, err, cap))
        return -1;
    uint64_t n = q->dir[q->at].cols;
    uint32_t role = q->dir[q->at].role;
    for (uint64_t i = 0; i < n; i++) {
        if (!isfinite(values[i]))
            return err_set(err, cap, "element %" PRIu64 " is not finite", i);
        if (!in_range(role, values[i]))
            return err_set(err, cap, "element %" PRIu64 " is %g, which %s cannot be", i,
                           (double)values[i],
                           role == QSAE_ROLE_THETA  ? "a threshold"
                           : role == QSAE_ROLE_ROPE ? "a frequency"
                                                    : "a scale");
    }
    if (emit(q, values, (size_t)n * 4, err, cap))
        return -1;
    return tensor_end(q, err, cap);
}

int qfile_bytes(qfile *q, const void *data, char *err, size_t cap)
{
    if (tensor_begin(q, QSAE_LAYOUT_BYTES, QSAE_LAYOUT_BYTES, err, cap))
        return -1;
    if (emit(q, data, (size_t)q->dir[q->at].cols, err, cap))
        return -1;
    return tensor_end(q, err, cap);
}

/* ---- matrices ---- */

static uint32_t bits_of(float x)
{
    uint32_t b;
    memcpy(&b, &x, sizeof b);
    return b;
}

/* Finite x to bf16, nearest even. 0x7F80 or 0xFF80 if it does not fit. */
static uint32_t bf16_of(float x)
{
    uint32_t b = bits_of(x);
    return (b + 0x7FFFu + (b >> 16 & 1)) >> 16;
}

float qfile_round_bf16(float x)
{
    uint32_t b = bf16_of(x) << 16;
    memcpy(&x, &b, sizeof x);
    return x;
}

/* Every value finite, also after rounding to the tensor's type. */
static int check_tile(const qsae_tensor_record *t, const qfile_part *p, const float *v,
                      char *err, size_t cap)
{
    /* the largest magnitude that is allowed, as bits: below it comparing bits is
     * comparing numbers */
    const uint32_t limit = t->type == QSAE_TYPE_BF16 ? 0x7F7F7FFFu : 0x7F7FFFFFu;
    uint64_t n = p->n_rows * p->n_cols;
    for (uint64_t i = 0; i < n; i++) {
        uint32_t over = 0;
        for (uint64_t k = i; i % 1024 == 0 && n - i >= 1024 && k < i + 1024; k++)
            over |= (bits_of(v[k]) & 0x7FFFFFFFu) > limit;
        if (i % 1024 == 0 && n - i >= 1024 && !over) {
            i += 1023;
            continue;
        }
        if ((bits_of(v[i]) & 0x7FFFFFFFu) <= limit)
            continue;
        uint64_t row = p->row + i / p->n_cols, col = p->col + i % p->n_cols;
        return err_set(err, cap, "row %" PRIu64 " column %" PRIu64 ": %g %s", row, col,
                       (double)v[i],
                       isfinite(v[i]) ? "does not fit in bf16" : "is not finite");
    }
    return 0;
}

static void store_bf16(unsigned char *out, float x)
{
    uint32_t b = bf16_of(x);
    out[0] = (unsigned char)b;
    out[1] = (unsigned char)(b >> 8);
}

/* tile [n_rows, n_cols] to 16 interleaved rows; columns beyond n_cols up to kp are
 * zero. */
static void pack_block16(uint32_t type, const qfile_part *p, uint64_t kp,
                         const float *tile, unsigned char *out)
{
    size_t line = type == QSAE_TYPE_BF16 ? 32 : 64; /* bytes for one k of all 16 rows */
    memset(out, 0, line * (size_t)kp);
    for (size_t r = 0; r < p->n_rows; r++) {
        const float *row = tile + r * (size_t)p->n_cols;
        if (type == QSAE_TYPE_BF16) {
            for (size_t k = 0; k < p->n_cols; k++)
                store_bf16(out + k / 2 * 64 + r * 4 + k % 2 * 2, row[k]);
        } else {
            for (size_t k = 0; k < p->n_cols; k++)
                memcpy(out + k * 64 + r * 4, &row[k], 4);
        }
    }
}

static int is_quantized(uint32_t type)
{
    return type == QSAE_TYPE_Q8 || type == QSAE_TYPE_Q4;
}

/* Superblocks of 16 rows. */
static uint64_t superblocks(uint64_t cols)
{
    return (cols + QUANTIZE_COLS - 1) / QUANTIZE_COLS;
}

/* 16 rows each, quantized at once: about a MiB of superblocks. */
static uint64_t panels_packed(uint64_t cols)
{
    uint64_t n = 256 / superblocks(cols);
    return n < 1 ? 1 : n;
}

/* Superblock `at` of the tile's, its numbers from row `row` on. */
static void quantize_at(const qfile *q, const qfile_part *p, uint64_t row, uint64_t at)
{
    int q8 = q->dir[q->at].type == QSAE_TYPE_Q8;
    uint64_t groups = superblocks(p->n_cols), col = at % groups * QUANTIZE_COLS;
    uint64_t left = p->n_cols - col;
    size_t n = left < QUANTIZE_COLS ? (size_t)left : QUANTIZE_COLS;
    float panel[QUANTIZE_ROWS * QUANTIZE_COLS];
    memset(panel, 0, sizeof panel);
    row += at / groups * QUANTIZE_ROWS;
    for (size_t r = 0; r < QUANTIZE_ROWS && row + r < p->n_rows; r++)
        memcpy(panel + r * QUANTIZE_COLS, q->tile + (row + r) * p->n_cols + col,
               n * sizeof *panel);
    size_t size = q8 ? QUANTIZE_Q8_BYTES : QUANTIZE_Q4_BYTES;
    (q8 ? quantize_q8 : quantize_q4)(panel, q->packed + at * size);
}

/* The tile as superblocks: 16 rows after 16 rows, of them 256 columns after 256. The
 * search of q4 takes long, so threads share the superblocks; no byte depends on them. */
static int write_quantized(qfile *q, const qfile_part *p, char *err, size_t cap)
{
    size_t size =
        q->dir[q->at].type == QSAE_TYPE_Q8 ? QUANTIZE_Q8_BYTES : QUANTIZE_Q4_BYTES;
    uint64_t groups = superblocks(p->n_cols), step = panels_packed(p->n_cols) * 16;
    for (uint64_t row = 0; row < p->n_rows; row += step) {
        uint64_t rows = p->n_rows - row < step ? p->n_rows - row : step;
        int64_t n = (int64_t)((rows + 15) / 16 * groups);
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic)
#endif
        for (int64_t i = 0; i < n; i++)
            quantize_at(q, p, row, (uint64_t)i);
        if (emit(q, q->packed, (size_t)n * size, err, cap))
            return -1;
    }
    return 0;
}

/* The tile, 16 rows after 16 rows. */
static int write_block16(qfile *q, const qfile_part *p, char *err, size_t cap)
{
    uint32_t type = q->dir[q->at].type;
    uint64_t kp = (p->n_cols + 15) / 16 * 16;
    for (uint64_t row = 0; row < p->n_rows; row += 16) {
        qfile_part block = {p->row + row, p->n_rows - row < 16 ? p->n_rows - row : 16,
                            0, p->n_cols};
        pack_block16(type, &block, kp, q->tile + row * p->n_cols, q->packed);
        if (emit(q, q->packed, (type == QSAE_TYPE_BF16 ? 32 : 64) * (size_t)kp, err,
                 cap))
            return -1;
    }
    return 0;
}

/* tile [n_rows, n_cols] to rows that are padded to 64 bytes. */
static size_t pack_rows(uint32_t type, const qfile_part *p, const float *tile,
                        unsigned char *out)
{
    size_t item = type == QSAE_TYPE_BF16 ? 2 : 4, used = item * (size_t)p->n_cols;
    size_t stride = (used + 63) / 64 * 64;
    for (size_t r = 0; r < p->n_rows; r++) {
        const float *row = tile + r * (size_t)p->n_cols;
        unsigned char *to = out + r * stride;
        if (type == QSAE_TYPE_BF16) {
            for (size_t k = 0; k < p->n_cols; k++)
                store_bf16(to + 2 * k, row[k]);
        } else {
            memcpy(to, row, used);
        }
        memset(to + used, 0, stride - used);
    }
    return stride * (size_t)p->n_rows;
}

static uint64_t rows_packed(uint64_t cols)
{
    uint64_t n = PACK_VALUES / cols;
    return n < 1 ? 1 : n;
}

static int write_rows(qfile *q, const qfile_part *p, char *err, size_t cap)
{
    uint64_t step = rows_packed(p->n_cols);
    for (uint64_t row = 0; row < p->n_rows; row += step) {
        qfile_part some = {p->row + row,
                           p->n_rows - row < step ? p->n_rows - row : step, 0,
                           p->n_cols};
        size_t n =
            pack_rows(q->dir[q->at].type, &some, q->tile + row * p->n_cols, q->packed);
        if (emit(q, q->packed, n, err, cap))
            return -1;
    }
    return 0;
}

/* Rows of a part: whole blocks of 16. */
static uint64_t rows_at_once(const qsae_tensor_record *t)
{
    uint64_t n = PART_VALUES / t->cols / 16 * 16;
    n = n < 16 ? 16 : n > PART_ROWS ? PART_ROWS : n;
    return n < t->rows ? n : t->rows;
}

static int make_room(qfile *q, const qsae_tensor_record *t, uint64_t rows, char *err,
                     size_t cap)
{
    uint64_t kp = (t->cols + 15) / 16 * 16; /* cols <= 2^24: nothing here wraps */
    uint64_t packed = t->layout == QSAE_LAYOUT_BLOCK16 ? 16 : rows_packed(t->cols);
    free(q->tile);
    free(q->packed);
    q->packed = NULL;
    q->tile = malloc((size_t)(rows * t->cols) * sizeof *q->tile);
    uint64_t size = packed * kp * 4;
    if (is_quantized(t->type))
        size = panels_packed(t->cols) * superblocks(t->cols) * QUANTIZE_Q8_BYTES;
    q->packed = malloc((size_t)size);
    return q->tile && q->packed ? 0 : err_set(err, cap, "out of memory");
}

int qfile_matrix(qfile *q, qfile_fill fill, void *user, char *err, size_t cap)
{
    if (tensor_begin(q, QSAE_LAYOUT_BLOCK16, QSAE_LAYOUT_ROWS, err, cap))
        return -1;
    const qsae_tensor_record *t = &q->dir[q->at];
    uint64_t step = rows_at_once(t);
    if (make_room(q, t, step, err, cap))
        return -1;
    for (uint64_t row = 0; row < t->rows; row += step) {
        qfile_part p = {row, t->rows - row < step ? t->rows - row : step, 0, t->cols};
        if (fill(user, &p, q->tile, err, cap) || check_tile(t, &p, q->tile, err, cap))
            return -1;
        if (is_quantized(t->type)              ? write_quantized(q, &p, err, cap)
            : t->layout == QSAE_LAYOUT_BLOCK16 ? write_block16(q, &p, err, cap)
                                               : write_rows(q, &p, err, cap))
            return -1;
    }
    return tensor_end(q, err, cap);
}

/* ---- copies ---- */

int qfile_copy(qfile *q, qfile_read read, void *user, uint64_t hash, char *err,
               size_t cap)
{
    const size_t part = (size_t)PACK_VALUES * 4;
    uint32_t layout = q->at < q->n ? q->dir[q->at].layout : 0;
    if (tensor_begin(q, layout, layout, err, cap))
        return -1;
    const qsae_tensor_record *t = &q->dir[q->at];
    unsigned char *data = malloc(part);
    int status = data ? 0 : err_set(err, cap, "out of memory");
    for (uint64_t at = 0; at < t->size && !status;) {
        size_t n = t->size - at < part ? (size_t)(t->size - at) : part;
        status = read(user, at, data, n, err, cap) || emit(q, data, n, err, cap);
        at += n;
    }
    free(data);
    if (status || tensor_end(q, err, cap))
        return -1;
    return q->dir[q->at - 1].hash == hash
               ? 0
               : err_set(err, cap, "tensor %u has not the checksum that its file says",
                         q->at - 1);
}

/* ---- ending ---- */

static int write_index(qfile *q, char *err, size_t cap)
{
    const qsae_tensor_record *last = &q->dir[q->n - 1];
    qsae_file_header h;
    qsae_hash hash;
    memset(&h, 0, sizeof h);
    memcpy(h.magic, QSAE_FILE_MAGIC, 8);
    h.version = QSAE_FILE_VERSION;
    h.endian = QSAE_FILE_ENDIAN;
    h.file_size = last->offset + last->size;
    h.kind = q->kind;
    h.n_records = q->n_records;
    h.n_tensors = q->n;
    h.index_size = q->index_size;
    size_t n_rec = 256 * (size_t)q->n_records, n_dir = 64 * (size_t)q->n;
    qsae_hash_begin(&hash);
    qsae_hash_add(&hash, &h, sizeof h);
    qsae_hash_add(&hash, q->records, n_rec);
    qsae_hash_add(&hash, q->dir, n_dir);
    h.hash = qsae_hash_end(&hash);
    return outfile_write_at(q->out, 0, &h, sizeof h, err, cap) ||
           outfile_write_at(q->out, 64, q->records, n_rec, err, cap) ||
           outfile_write_at(q->out, 64 + n_rec, q->dir, n_dir, err, cap);
}

/* Reads back every tensor and compares its hash with that of what was written. */
static int read_back(qfile *q, char *err, size_t cap)
{
    const size_t part = (size_t)PACK_VALUES * 4;
    unsigned char *data = malloc(part);
    int status = data ? 0 : err_set(err, cap, "out of memory");
    const qsae_tensor_record *last = &q->dir[q->n - 1];
    progress_begin(&q->shown, "checking", last->offset + last->size);
    for (uint32_t i = 0; i < q->n && !status; i++) {
        const qsae_tensor_record *t = &q->dir[i];
        qsae_hash hash;
        qsae_hash_begin(&hash);
        for (uint64_t at = 0; at < t->size && !status;) {
            size_t n = t->size - at < part ? (size_t)(t->size - at) : part;
            status = outfile_read(q->out, t->offset + at, data, n, err, cap);
            if (!status)
                qsae_hash_add(&hash, data, n);
            progress_add(&q->shown, n);
            at += n;
        }
        if (!status && qsae_hash_end(&hash) != t->hash)
            status =
                err_set(err, cap,
                        "the finished file differs from what was written to it, at "
                        "byte %" PRIu64 " or later",
                        t->offset);
    }
    progress_end(&q->shown);
    free(data);
    return status;
}

int qfile_finish(qfile *q, qfile_check check, char *err, size_t cap)
{
    int status = 0;
    if (q->n == 0 || q->at != q->n)
        status =
            err_set(err, cap, "internal: %u of %u tensors were written", q->at, q->n);
    if (!status)
        status = write_index(q, err, cap);
    progress_end(&q->shown);
    if (!status)
        status = outfile_flush(q->out, err, cap) || read_back(q, err, cap);
    if (!status && check)
        status = check(outfile_temp(q->out), err, cap);
    if (status) {
        qfile_abort(q);
        return -1;
    }
    status = outfile_commit(q->out, err, cap);
    q->out = NULL;
    qfile_abort(q);
    return status;
}

/* What the library says about a file that we wrote, without the name of the temporary
 * file. */
static int own_reader_refused(const qsae_error *e, char *err, size_t cap)
{
    return err_set(err, cap, "the finished file does not pass its own reader: %s",
                   e->text);
}

int qfile_check_model(const char *path, char *err, size_t cap)
{
    qsae_open_options options;
    qsae_model *m = NULL;
    qsae_error e;
    memset(&options, 0, sizeof options);
    if (qsae_model_open(path, &options, &m, &e))
        return own_reader_refused(&e, err, cap);
    qsae_model_close(m);
    return 0;
}

int qfile_check_sae(const char *path, char *err, size_t cap)
{
    int32_t n = 1;
    for (int32_t i = 0; i < n; i++) {
        qsae_sae_options options;
        qsae_sae_info info;
        qsae_sae *s = NULL;
        qsae_error e;
        memset(&options, 0, sizeof options);
        options.select = QSAE_SELECT_INDEX;
        options.index = i;
        if (qsae_sae_open(path, &options, &s, &e))
            return own_reader_refused(&e, err, cap);
        qsae_sae_get_info(s, &info);
        n = info.n_members;
        qsae_sae_close(s);
    }
    return 0;
}

/* ---- META ---- */

void qfile_meta_add(qfile_meta *m, const char *key, const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    int len = vsnprintf(NULL, 0, format, ap);
    va_end(ap);
    size_t at = m->len + strlen(key) + 1, need = at + (size_t)(len < 0 ? 0 : len) + 2;
    if (len < 0)
        m->failed = 1;
    if (need > m->cap) {
        size_t cap = 2 * need + 256;
        char *text = realloc(m->text, cap);
        if (!text) {
            m->failed = 1;
            return;
        }
        m->text = text;
        m->cap = cap;
    }
    sprintf(m->text + m->len, "%s=", key);
    va_start(ap, format);
    vsnprintf(m->text + at, m->cap - at, format, ap);
    va_end(ap);
    for (char *p = m->text + at; *p; p++)
        if (*p == '\n' || *p == '\r')
            *p = ' ';
    m->len = at + strlen(m->text + at);
    m->text[m->len++] = '\n';
    m->text[m->len] = 0;
}

/* By key; the keys are what stands before the first '='. */
static int by_key(const void *a, const void *b)
{
    const char *x = *(const char *const *)a, *y = *(const char *const *)b;
    size_t nx = strcspn(x, "="), ny = strcspn(y, "=");
    int c = memcmp(x, y, nx < ny ? nx : ny);
    return c ? c : nx < ny ? -1 : nx > ny;
}

int qfile_meta_finish(qfile_meta *m, char *err, size_t cap)
{
    size_t n = 0, at = 0;
    for (size_t i = 0; i < m->len; i++)
        n += m->text[i] == '\n';
    char **lines = malloc((n + 1) * sizeof *lines), *sorted = malloc(m->len + 1);
    if (!lines || !sorted || m->failed) {
        free(lines);
        free(sorted);
        return err_set(err, cap, "out of memory");
    }
    char *p = m->text;
    for (size_t i = 0; i < n; i++) {
        lines[i] = p;
        p = strchr(p, '\n');
        *p++ = 0;
    }
    qsort(lines, n, sizeof *lines, by_key);
    int twice = 0;
    for (size_t i = 0; i < n; i++) {
        if (i > 0 && by_key(&lines[i - 1], &lines[i]) == 0)
            twice = 1;
        at += (size_t)sprintf(sorted + at, "%s\n", lines[i]);
    }
    free(lines);
    free(m->text);
    m->text = sorted;
    return twice ? err_set(err, cap, "internal: a META key twice") : 0;
}

void qfile_meta_free(qfile_meta *m)
{
    free(m->text);
    memset(m, 0, sizeof *m);
}
