/* Prints every tensor of a file, for tests/reference/containers.py:
 *
 *     tensor NAME TYPE [SHAPE] VALUE VALUE ...      tab between the parts
 *     meta KEY VALUE
 *
 * and with a second argument writes what is float as F32 into it, a .npz.
 * Numbers are read as a whole; a matrix also in blocks of odd sizes and transposed, which
 * must give the same. Exit code 1 with the error on stderr. */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../tools/npy.h"
#include "../tools/tensors.h"

static char err[ERR_CAP];

static int complain(const char *what)
{
    fprintf(stderr, "%s\n", what);
    return 1;
}

static int check_blocks(const tensor *t, const double *all)
{
    const uint64_t high = 5, wide = 7, R = t->shape[0], C = t->shape[1];
    double part[35];
    float rough[35];
    tensor back = tensor_transposed(t);
    for (uint64_t r = 0; r < R; r += high) {
        for (uint64_t c = 0; c < C; c += wide) {
            uint64_t nr = R - r < high ? R - r : high, nc = C - c < wide ? C - c : wide;
            for (int turn = 0; turn < 2; turn++) {
                if (turn ? tensor_block_f64(&back, c, nc, r, nr, part, err, sizeof err)
                         : tensor_block_f64(t, r, nr, c, nc, part, err, sizeof err))
                    return complain(err);
                if (turn ? tensor_block_f32(&back, c, nc, r, nr, rough, err, sizeof err)
                         : tensor_block_f32(t, r, nr, c, nc, rough, err, sizeof err))
                    return complain(err);
                for (uint64_t i = 0; i < nr; i++)
                    for (uint64_t j = 0; j < nc; j++) {
                        uint64_t k = turn ? j * nr + i : i * nc + j;
                        double want = all[(r + i) * C + c + j];
                        if (part[k] != want || rough[k] != (float)want)
                            return complain("a block differs from the whole");
                    }
            }
        }
    }
    return 0;
}

static int print_floats(const tensor *t)
{
    double *all = malloc((size_t)t->n * sizeof *all + 1);
    float *rough = malloc((size_t)t->n * sizeof *rough + 1);
    if (!all || !rough)
        return complain("out of memory");
    int status = tensor_f64(t, 0, t->n, all, err, sizeof err) ||
                 tensor_f32(t, 0, t->n, rough, err, sizeof err);
    if (status)
        complain(err);
    for (uint64_t i = 0; i < t->n && !status; i++) {
        printf("%s%.17g", i ? " " : "", all[i]);
        status = rough[i] != (float)all[i];
    }
    if (!status && t->rank == 2)
        status = check_blocks(t, all);
    free(all);
    free(rough);
    return status;
}

static int print_ints(const tensor *t)
{
    for (uint64_t i = 0; i < t->n; i++) {
        int64_t x;
        if (tensor_int(t, i, &x, err, sizeof err))
            return complain(err);
        printf("%s%" PRId64, i ? " " : "", x);
    }
    return 0;
}

static int write_npz(const tensor_file *f, const char *path)
{
    npz_writer *w = npz_writer_create(path, err, sizeof err);
    int status = w ? 0 : -1;
    for (size_t i = 0; i < tensors_count(f) && !status; i++) {
        const tensor *t = tensors_at(f, i);
        float x[100];
        if (!tensor_is_float(t))
            continue;
        status = npz_writer_array(w, t->name, TENSOR_F32, t->rank, t->shape, err,
                                  sizeof err);
        for (uint64_t k = 0; k < t->n && !status; k += 100) {
            uint64_t m = t->n - k < 100 ? t->n - k : 100;
            status = tensor_f32(t, k, m, x, err, sizeof err) ||
                     npz_writer_data(w, x, (size_t)m * 4, err, sizeof err);
        }
    }
    if (!status)
        return npz_writer_commit(w, err, sizeof err) ? complain(err) : 0;
    npz_writer_abort(w);
    return complain(err);
}

int main(int argc, char **argv)
{
    int right = argc == 2 || argc == 3;
    tensor_file *f = right ? tensors_open(argv[1], err, sizeof err) : NULL;
    int status = f ? 0 : complain(right ? err : "usage: print_tensors FILE [OUT.npz]");
    for (size_t i = 0; f && i < tensors_count(f) && !status; i++) {
        const tensor *t = tensors_at(f, i);
        printf("tensor\t%s\t%s\t%s\t", t->name, tensor_type_name(t->type),
               tensor_shape(t).text);
        status = tensor_is_float(t) ? print_floats(t) : print_ints(t);
        printf("\n");
    }
    for (size_t i = 0; f && i < tensors_meta_count(f); i++) {
        const char *value, *key = tensors_meta_at(f, i, &value);
        printf("meta\t%s\t%s\n", key, value);
    }
    if (argc == 3 && !status)
        status = write_npz(f, argv[2]);
    tensors_close(f);
    return status;
}
