/* Sparse rows of features in files (see sparse.h). */

#ifndef _XOPEN_SOURCE
#define _XOPEN_SOURCE 700 /* mkstemp, getline */
#endif
#define _FILE_OFFSET_BITS 64

#include "sparse.h"
#include "checked.h"
#include "json.h"
#include "outfile.h"
#include "safetensors.h"
#include "tensors.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_ENTRIES ((size_t)1 << 22) /* after so many a read ends its batch */

int sparse_reserve(qsae_rows *rows, size_t cap)
{
    if (cap <= rows->cap)
        return 0;
    if (cap > SIZE_MAX / 2 / sizeof *rows->index)
        return -1;
    if (cap < 2 * rows->cap)
        cap = 2 * rows->cap;
    uint32_t *index = realloc(rows->index, cap * sizeof *index);
    if (index)
        rows->index = index;
    float *value = realloc(rows->value, cap * sizeof *value);
    if (value)
        rows->value = value;
    if (!index || !value)
        return -1;
    rows->cap = cap;
    return 0;
}

/* ---- writing ---- */

enum { INDPTR, INDICES, VALUES, N_PARTS };

/* safetensors wants sizes before data, and all of one tensor before the next: what comes
 * row by row waits in three files next to the destination, without names, so that they
 * are gone whatever happens. */
struct sparse_writer {
    char *path;
    const sae_numbers *numbers;
    outfile *lines; /* JSON Lines; NULL: CSR */
    st_writer *csr;
    FILE *part[N_PARTS];
    uint64_t n_rows, n_entries;
};

static int ends_in(const char *path, const char *end)
{
    size_t n = strlen(path), m = strlen(end);
    return n >= m && strcmp(path + n - m, end) == 0;
}

int sparse_name_ok(const char *path)
{
    return ends_in(path, ".jsonl") || ends_in(path, ".safetensors");
}

static FILE *spool(const char *path, char *err, size_t cap)
{
    size_t n = strlen(path);
    char *name = malloc(n + 16);
    FILE *f = NULL;
    if (!name) {
        err_set(err, cap, "out of memory");
        return NULL;
    }
    sprintf(name, "%s.part-XXXXXX", path);
    int fd = mkstemp(name);
    if (fd >= 0) {
        unlink(name);
        f = fdopen(fd, "w+b");
        if (!f)
            close(fd);
    }
    if (!f)
        err_set(err, cap, "%.300s: cannot create a file in its directory: %s", path,
                strerror(errno));
    free(name);
    return f;
}

sparse_writer *sparse_create(const char *path, const sae_numbers *numbers, char *err,
                             size_t cap)
{
    sparse_writer *w = calloc(1, sizeof *w);
    if (w)
        w->path = malloc(strlen(path) + 1);
    if (!w || !w->path) {
        free(w);
        err_set(err, cap, "out of memory");
        return NULL;
    }
    strcpy(w->path, path);
    w->numbers = numbers;
    int bad = 0;
    if (ends_in(path, ".jsonl"))
        bad = !(w->lines = outfile_create(path, err, cap));
    else /* now, so that a destination that cannot be is refused before the work */
        bad = !(w->csr = st_writer_create(path, err, cap));
    for (int i = 0; !w->lines && i < N_PARTS && !bad; i++)
        bad = !(w->part[i] = spool(path, err, cap));
    if (bad) {
        sparse_abort(w);
        return NULL;
    }
    return w;
}

static int put(sparse_writer *w, int part, const void *data, size_t size, char *err,
               size_t cap)
{
    if (fwrite(data, 1, size, w->part[part]) == size)
        return 0;
    return err_set(err, cap, "%.300s: cannot write: %s", w->path, strerror(errno));
}

static int write_csr(sparse_writer *w, const qsae_rows *rows, char *err, size_t cap)
{
    for (size_t r = 0; r < rows->n_rows; r++) {
        int64_t begin = (int64_t)(w->n_entries + rows->start[r]);
        if (put(w, INDPTR, &begin, sizeof begin, err, cap))
            return -1;
    }
    for (size_t i = 0; i < rows->start[rows->n_rows]; i++) {
        int32_t number = (int32_t)sae_number(w->numbers, rows->index[i]);
        if (put(w, INDICES, &number, sizeof number, err, cap))
            return -1;
    }
    return put(w, VALUES, rows->value, rows->start[rows->n_rows] * sizeof(float), err,
               cap);
}

static int write_lines(sparse_writer *w, const qsae_rows *rows, char *err, size_t cap)
{
    for (size_t r = 0; r < rows->n_rows; r++) {
        char text[64];
        int n = snprintf(text, sizeof text, "{\"row\":%" PRIu64 ",\"features\":[",
                         w->n_rows + r);
        if (outfile_write(w->lines, text, (size_t)n, err, cap))
            return -1;
        for (size_t i = rows->start[r]; i < rows->start[r + 1]; i++) {
            n = snprintf(text, sizeof text, "%s[%u,%.9g]",
                         i > rows->start[r] ? "," : "",
                         (unsigned)sae_number(w->numbers, rows->index[i]),
                         (double)rows->value[i]);
            if (outfile_write(w->lines, text, (size_t)n, err, cap))
                return -1;
        }
        if (outfile_write(w->lines, "]}\n", 3, err, cap))
            return -1;
    }
    return 0;
}

int sparse_write(sparse_writer *w, const qsae_rows *rows, char *err, size_t cap)
{
    if ((w->lines ? write_lines : write_csr)(w, rows, err, cap))
        return -1;
    w->n_rows += rows->n_rows;
    w->n_entries += rows->start[rows->n_rows];
    return 0;
}

static int copy_part(sparse_writer *w, int part, st_writer *out, char *err, size_t cap)
{
    char buffer[1 << 16];
    size_t n;
    if (fflush(w->part[part]) != 0 || fseeko(w->part[part], 0, SEEK_SET) != 0)
        return err_set(err, cap, "%.300s: cannot write: %s", w->path, strerror(errno));
    while ((n = fread(buffer, 1, sizeof buffer, w->part[part])) > 0)
        if (st_writer_data(out, buffer, n, err, cap))
            return -1;
    if (ferror(w->part[part]))
        return err_set(err, cap, "%.300s: cannot read back: %s", w->path,
                       strerror(errno));
    return 0;
}

static int finish_csr(sparse_writer *w, char *err, size_t cap)
{
    int64_t end = (int64_t)w->n_entries;
    uint64_t n_ptr = w->n_rows + 1;
    if (put(w, INDPTR, &end, sizeof end, err, cap))
        return -1;
    st_writer *out = w->csr;
    int bad =
        st_writer_declare(out, "indptr", TENSOR_I64, 1, &n_ptr, err, cap) ||
        st_writer_declare(out, "indices", TENSOR_I32, 1, &w->n_entries, err, cap) ||
        st_writer_declare(out, "values", TENSOR_F32, 1, &w->n_entries, err, cap);
    for (int i = 0; i < N_PARTS && !bad; i++)
        bad = copy_part(w, i, out, err, cap);
    if (bad)
        return -1;
    w->csr = NULL;
    return st_writer_commit(out, err, cap);
}

int sparse_commit(sparse_writer *w, char *err, size_t cap)
{
    int bad;
    if (w->lines) {
        bad = outfile_commit(w->lines, err, cap);
        w->lines = NULL;
    } else {
        bad = finish_csr(w, err, cap);
    }
    sparse_abort(w);
    return bad;
}

void sparse_abort(sparse_writer *w)
{
    if (!w)
        return;
    outfile_abort(w->lines);
    st_writer_abort(w->csr);
    for (int i = 0; i < N_PARTS; i++)
        if (w->part[i])
            fclose(w->part[i]);
    free(w->path);
    free(w);
}

/* ---- reading ---- */

struct sparse_reader {
    const char *path;
    const sae_numbers *numbers;
    FILE *f;
    uint64_t n_rows, at; /* rows of the file; the next one */
    /* JSON Lines */
    char *line;
    size_t line_cap;
    /* CSR */
    tensor_file *file; /* NULL: JSON Lines */
    const tensor *part[N_PARTS];
};

/* One entry, checked against the one before it in its row. */
static int add_entry(const sparse_reader *r, qsae_rows *out, size_t *n, size_t begin,
                     int64_t number, float value, char *err, size_t cap)
{
    uint32_t row;
    if (number < 0 || number > UINT32_MAX ||
        !sae_row(r->numbers, (uint32_t)number, &row))
        return err_set(err, cap,
                       "feature %" PRId64 " is not one of the SAE's %u features",
                       number, (unsigned)r->numbers->n);
    if (*n > begin && row <= out->index[*n - 1])
        return err_set(err, cap,
                       "feature %" PRId64 " comes after %u; features ascend, each once",
                       number, (unsigned)sae_number(r->numbers, out->index[*n - 1]));
    if (!isfinite(value) || value < 0)
        return err_set(err, cap,
                       "feature %" PRId64 " is %g; a feature is a finite number, "
                       "at least 0",
                       number, (double)value);
    if (sparse_reserve(out, *n + 1))
        return err_set(err, cap, "out of memory");
    out->index[*n] = row;
    out->value[(*n)++] = value;
    return 0;
}

/* ---- JSON Lines ---- */

/* How many lines there are; the last may lack its end. */
static int count_lines(sparse_reader *r, char *err, size_t cap)
{
    char buffer[1 << 16], last = '\n';
    size_t n;
    while ((n = fread(buffer, 1, sizeof buffer, r->f)) > 0) {
        for (size_t i = 0; i < n; i++)
            r->n_rows += buffer[i] == '\n';
        last = buffer[n - 1];
    }
    r->n_rows += last != '\n';
    if (ferror(r->f) || fseeko(r->f, 0, SEEK_SET) != 0)
        return err_set(err, cap, "cannot read: %s", strerror(errno));
    return 0;
}

/* The next line without its end, [*len]. A row has at most d_sae entries; what is much
 * longer than that needs no more memory to be refused. */
static int next_line(sparse_reader *r, size_t *len, char *err, size_t cap)
{
    uint64_t most = 64 * (uint64_t)r->numbers->n + 4096;
    *len = 0;
    for (int c; (c = getc(r->f)) != EOF && c != '\n';) {
        if (*len + 1 >= r->line_cap) {
            size_t room = 2 * r->line_cap + 4096;
            char *line = realloc(r->line, room);
            if (!line)
                return err_set(err, cap, "out of memory");
            r->line = line;
            r->line_cap = room;
        }
        if (*len >= most)
            return err_set(err, cap, "it is longer than a row of %u features can be",
                           (unsigned)r->numbers->n);
        r->line[(*len)++] = (char)c;
    }
    if (ferror(r->f))
        return err_set(err, cap, "cannot read: %s", strerror(errno));
    return 0;
}

static int parse_entry(const sparse_reader *r, const json_doc *doc, const json_value *v,
                       qsae_rows *out, size_t *n, size_t begin, char *err, size_t cap)
{
    int64_t number;
    const json_value *index = json_first(doc, v),
                     *value = index ? json_next(doc, index) : NULL;
    if (v->type != JSON_ARRAY || v->n != 2 || !json_int(index, &number) ||
        value->type != JSON_NUMBER)
        return err_set(err, cap, "entry %zu is not [feature, value]", *n - begin);
    return add_entry(r, out, n, begin, number, strtof(value->str, NULL), err, cap);
}

static int parse_line(const sparse_reader *r, const json_doc *doc, qsae_rows *out,
                      size_t *n, char *err, size_t cap)
{
    const json_value *root = json_root(doc), *row = json_get(doc, root, "row"),
                     *list = json_get(doc, root, "features");
    size_t begin = *n;
    int64_t number;
    if (!row || !list || root->n != 2)
        return err_set(err, cap, "it is not {\"row\":N,\"features\":[...]}");
    if (!json_int(row, &number) || number < 0 || (uint64_t)number != r->at)
        return err_set(err, cap, "row is %.40s, and row %" PRIu64 " is next",
                       row->type == JSON_NUMBER ? row->str : "no number", r->at);
    if (list->type != JSON_ARRAY)
        return err_set(err, cap, "features is not an array");
    for (const json_value *v = json_first(doc, list); v; v = json_next(doc, v))
        if (parse_entry(r, doc, v, out, n, begin, err, cap))
            return -1;
    return 0;
}

static int read_line(sparse_reader *r, qsae_rows *out, size_t *n, char *err, size_t cap)
{
    size_t len;
    char why[200];
    if (next_line(r, &len, err, cap))
        return err_prefix(err, cap, "line %" PRIu64, r->at + 1);
    json_doc *doc = json_parse(len ? r->line : "", len, why, sizeof why);
    int bad = doc ? parse_line(r, doc, out, n, err, cap) : err_set(err, cap, "%s", why);
    json_free(doc);
    return bad ? err_prefix(err, cap, "line %" PRIu64, r->at + 1) : 0;
}

/* ---- CSR ---- */

static int find_parts(sparse_reader *r, char *err, size_t cap)
{
    static const struct {
        const char *name;
        tensor_type type;
    } parts[N_PARTS] = {
        {"indptr", TENSOR_I64}, {"indices", TENSOR_I32}, {"values", TENSOR_F32}};
    for (int i = 0; i < N_PARTS; i++) {
        const tensor *t = r->part[i] = tensors_find(r->file, parts[i].name);
        if (!t)
            return err_set(err, cap, "it has no tensor %s; sparse rows are %s",
                           parts[i].name, "indptr, indices and values");
        if (t->type != parts[i].type || t->rank != 1)
            return err_set(err, cap, "%s is %s %s, it must be %s of one dimension",
                           parts[i].name, tensor_type_name(t->type),
                           tensor_shape(t).text, tensor_type_name(parts[i].type));
    }
    if (tensors_count(r->file) != N_PARTS)
        for (size_t i = 0; i < tensors_count(r->file); i++) {
            const tensor *t = tensors_at(r->file, i);
            if (t != r->part[0] && t != r->part[1] && t != r->part[2])
                return err_set(err, cap, "tensor %s is not known here",
                               name_z(t->name).text);
        }
    if (r->part[INDPTR]->n == 0)
        return err_set(err, cap, "indptr is empty; it has one more entry than rows");
    if (r->part[INDICES]->n != r->part[VALUES]->n)
        return err_set(err, cap, "%" PRIu64 " indices, but %" PRIu64 " values",
                       r->part[INDICES]->n, r->part[VALUES]->n);
    r->n_rows = r->part[INDPTR]->n - 1;
    return 0;
}

/* The bytes of n elements, straight from the file: tensors.h has checked where they
 * lie, and whole numbers are not floats. */
static int read_raw(sparse_reader *r, int part, uint64_t first, size_t n, size_t width,
                    void *out, char *err, size_t cap)
{
    const tensor *t = r->part[part];
    uint64_t at = t->offset + first * width;
    if (first + n > t->n || at > INT64_MAX || fseeko(r->f, (off_t)at, SEEK_SET) != 0 ||
        fread(out, width, n, r->f) != n)
        return err_set(err, cap, "it became shorter while it was read");
    return 0;
}

static int check_ends(sparse_reader *r, char *err, size_t cap)
{
    int64_t first, last;
    if (read_raw(r, INDPTR, 0, 1, sizeof first, &first, err, cap) ||
        read_raw(r, INDPTR, r->n_rows, 1, sizeof last, &last, err, cap))
        return -1;
    if (first != 0)
        return err_set(err, cap, "indptr begins with %" PRId64 ", not 0", first);
    if (last < 0 || (uint64_t)last != r->part[INDICES]->n)
        return err_set(err, cap,
                       "indptr ends with %" PRId64 ", there are %" PRIu64 " indices",
                       last, r->part[INDICES]->n);
    return 0;
}

static int read_entries(sparse_reader *r, uint64_t begin, uint64_t count,
                        qsae_rows *out, size_t *n, char *err, size_t cap)
{
    int32_t index[1024];
    float value[1024];
    size_t row_begin = *n;
    while (count > 0) {
        size_t part = count < 1024 ? (size_t)count : 1024;
        if (read_raw(r, INDICES, begin, part, 4, index, err, cap) ||
            read_raw(r, VALUES, begin, part, 4, value, err, cap))
            return -1;
        for (size_t i = 0; i < part; i++)
            if (add_entry(r, out, n, row_begin, index[i], value[i], err, cap))
                return -1;
        begin += part;
        count -= part;
    }
    return 0;
}

static int read_csr_row(sparse_reader *r, qsae_rows *out, size_t *n, char *err,
                        size_t cap)
{
    int64_t ends[2];
    if (read_raw(r, INDPTR, r->at, 2, sizeof ends[0], ends, err, cap))
        return -1;
    if (ends[0] < 0 || ends[1] < ends[0] || (uint64_t)ends[1] > r->part[INDICES]->n)
        return err_set(err, cap,
                       "row %" PRIu64 ": indptr goes from %" PRId64 " to %" PRId64
                       " of %" PRIu64 " entries",
                       r->at, ends[0], ends[1], r->part[INDICES]->n);
    if (read_entries(r, (uint64_t)ends[0], (uint64_t)(ends[1] - ends[0]), out, n, err,
                     cap))
        return err_prefix(err, cap, "row %" PRIu64, r->at);
    return 0;
}

/* ---- either ---- */

/* JSON Lines begin with a brace; safetensors with the size of its header, 8 bytes of
 * which the upper ones are 0. */
static int is_lines(sparse_reader *r)
{
    unsigned char head[8];
    size_t n = fread(head, 1, sizeof head, r->f), at = 0;
    rewind(r->f);
    while (at < n && head[at] && strchr(" \t\r\n", head[at]))
        at++;
    return n < sizeof head || (at < n && head[at] == '{' && head[7] != 0);
}

static int open_file(sparse_reader *r, char *err, size_t cap)
{
    struct stat st;
    if (stat(r->path, &st) == 0 && !S_ISREG(st.st_mode))
        return err_set(err, cap, "not a regular file");
    r->f = fopen(r->path, "rb");
    if (!r->f)
        return err_set(err, cap, "cannot open: %s", strerror(errno));
    if (is_lines(r))
        return count_lines(r, err, cap);
    r->file = tensors_open(r->path, err, cap);
    if (!r->file)
        return err_prefix(err, cap, "neither JSON Lines nor safetensors");
    if (tensors_container(r->file) != TENSORS_SAFETENSORS)
        return err_set(err, cap, "neither JSON Lines nor safetensors");
    return find_parts(r, err, cap) || check_ends(r, err, cap) ? -1 : 0;
}

sparse_reader *sparse_open(const char *path, const sae_numbers *numbers, char *err,
                           size_t cap)
{
    sparse_reader *r = calloc(1, sizeof *r);
    if (!r) {
        err_set(err, cap, "out of memory");
        return NULL;
    }
    r->path = path;
    r->numbers = numbers;
    if (open_file(r, err, cap) == 0)
        return r;
    err_prefix(err, cap, "%.200s", path);
    sparse_close(r);
    return NULL;
}

uint64_t sparse_count(const sparse_reader *r)
{
    return r->n_rows;
}

int sparse_read(sparse_reader *r, size_t max, qsae_rows *out, char *err, size_t cap)
{
    size_t n = 0;
    out->n_rows = 0;
    out->start[0] = 0;
    while (out->n_rows < max && r->at < r->n_rows && n < MAX_ENTRIES) {
        if ((r->file ? read_csr_row : read_line)(r, out, &n, err, cap))
            return err_prefix(err, cap, "%.200s", r->path);
        out->start[++out->n_rows] = n;
        r->at++;
    }
    return sparse_reserve(out, 1) ? err_set(err, cap, "out of memory") : 0;
}

void sparse_close(sparse_reader *r)
{
    if (!r)
        return;
    tensors_close(r->file);
    if (r->f)
        fclose(r->f);
    free(r->line);
    free(r);
}
