/* Dense rows from a file (see rows.h). */

#include "rows.h"

#include <inttypes.h>
#include <string.h>

/* The names of the file's tensors of floats, for a choice. */
static void list_floats(const tensor_file *f, char *text, size_t cap)
{
    size_t at = 0;
    for (size_t i = 0; i < tensors_count(f) && at + NAME_CAP + 8 < cap; i++)
        if (tensor_is_float(tensors_at(f, i)))
            at += (size_t)snprintf(text + at, cap - at, "%s%s", at ? ", " : "",
                                   name_z(tensors_at(f, i)->name).text);
}

static int choose(rows_in *r, const char *name, char *err, size_t cap)
{
    char list[300] = "";
    size_t n_floats = 0;
    for (size_t i = 0; i < tensors_count(r->file); i++) {
        const tensor *t = tensors_at(r->file, i);
        if (!tensor_is_float(t))
            continue;
        n_floats++;
        if (!name || strcmp(name, t->name) == 0)
            r->matrix = t;
    }
    list_floats(r->file, list, sizeof list);
    if (n_floats == 0)
        return err_set(err, cap, "it has no tensor of floats");
    if (!name && n_floats > 1)
        return err_set(
            err, cap, "it has %zu tensors of floats; choose one with --tensor NAME: %s",
            n_floats, list);
    if (!r->matrix)
        return err_set(err, cap, "no tensor of floats is called %s; there are: %s",
                       name_z(name).text, list);
    return 0;
}

static int check(rows_in *r, uint64_t width, char *err, size_t cap)
{
    const tensor *t = r->matrix;
    if (t->type != TENSOR_F32 && t->type != TENSOR_F16 && t->type != TENSOR_BF16)
        return err_set(err, cap,
                       "its rows are %s; F32, F16 and BF16 are read, others would be "
                       "rounded (NumPy: x.astype(numpy.float32))",
                       tensor_type_name(t->type));
    if (t->rank != 2)
        return err_set(err, cap, "its tensor has shape %s, rows are [n, %" PRIu64 "]",
                       tensor_shape(t).text, width);
    if (t->shape[1] != width)
        return err_set(err, cap,
                       "its rows have %" PRIu64 " values, the SAE reads %" PRIu64,
                       t->shape[1], width);
    r->n = t->shape[0];
    r->width = width;
    return 0;
}

int rows_open(rows_in *r, const char *path, const char *name, uint64_t width, char *err,
              size_t cap)
{
    memset(r, 0, sizeof *r);
    r->file = tensors_open(path, err, cap);
    if (!r->file)
        return -1;
    if (choose(r, name, err, cap) || check(r, width, err, cap)) {
        rows_close(r);
        return err_prefix(err, cap, "%.200s", path);
    }
    return 0;
}

void rows_close(rows_in *r)
{
    tensors_close(r->file);
    memset(r, 0, sizeof *r);
}

/* The first number that tensor_f32 refuses, by row and column. */
static int name_place(const rows_in *r, uint64_t first, uint64_t n, char *err,
                      size_t cap)
{
    char why[ERR_CAP];
    float x;
    for (uint64_t i = first * r->width; i < (first + n) * r->width; i++) {
        if (!tensor_f32(r->matrix, i, 1, &x, why, sizeof why))
            continue;
        const char *what = strstr(why, " is ");
        if (what)
            return err_set(err, cap, "row %" PRIu64 ", column %" PRIu64 "%s",
                           i / r->width, i % r->width, what);
        break;
    }
    return -1;
}

int rows_read(const rows_in *r, uint64_t first, uint64_t n, float *out, char *err,
              size_t cap)
{
    if (tensor_f32(r->matrix, first * r->width, n * r->width, out, err, cap) == 0)
        return 0;
    name_place(r, first, n, err, cap);
    return err_prefix(err, cap, "%.200s", tensors_path(r->file));
}
