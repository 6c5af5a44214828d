/* A model file of random weights of a published shape, with the tokenizer of another file, to
 * run commands at true scale without a checkpoint:
 *
 *     random_model SHAPE TYPE TOKENIZER.qsae OUT.qsae        1.7B q8 build/toy.qsae big.qsae */

#include <stdlib.h>

#include "../tools/bench_image.h"
#include "../tools/checked.h"
#include "../tools/qfile.h"
#include "../tools/qread.h"

static const qsae_tensor_record *dir;
static const uint8_t *image;
static uint32_t at;

static int from_image(void *user, uint64_t offset, void *out, size_t size, char *err,
                      size_t cap)
{
    (void)user, (void)err, (void)cap;
    memcpy(out, image + dir[at].offset + offset, size);
    return 0;
}

static uint64_t hash_of(const qsae_tensor_record *t)
{
    qsae_hash h;
    qsae_hash_begin(&h);
    qsae_hash_add(&h, image + t->offset, (size_t)t->size);
    return qsae_hash_end(&h);
}

static int write_model(const char *out, const qread *tok, char *err, size_t cap)
{
    qsae_file_header h;
    memcpy(&h, image, sizeof h);
    dir = (const void *)(image + sizeof h + 256 * h.n_records);
    const qsae_tensor_record *words = qread_find(tok, 0, QSAE_ROLE_TOKENIZER);
    uint8_t *text = words ? malloc((size_t)words->size) : NULL;
    qfile *q = qfile_create(out, QSAE_KIND_MODEL, 1, err, cap);
    if (!text || !q || qread_bytes(tok, words, 0, (size_t)words->size, text, err, cap))
        return -1;
    memcpy(qfile_record(q, 0), image + sizeof h, 256);
    int said = 0;
    for (uint32_t i = 0; i < h.n_tensors; i++) {
        if (!said && (dir[i].group > 0 || dir[i].role > QSAE_ROLE_TOKENIZER))
            said = !qfile_declare(q, 0, QSAE_ROLE_TOKENIZER, QSAE_TYPE_BYTES,
                                  QSAE_LAYOUT_BYTES, 1, words->cols, err, cap);
        if (qfile_declare(q, dir[i].group, dir[i].role, dir[i].type, dir[i].layout,
                          dir[i].rows, dir[i].cols, err, cap))
            return -1;
    }
    said = 0;
    for (at = 0; at < h.n_tensors; at++) {
        if (!said && (dir[at].group > 0 || dir[at].role > QSAE_ROLE_TOKENIZER)) {
            said = 1;
            if (qfile_bytes(q, text, err, cap))
                return -1;
        }
        if (qfile_copy(q, from_image, NULL, hash_of(&dir[at]), err, cap))
            return -1;
    }
    free(text);
    return qfile_finish(q, qfile_check_model, err, cap);
}

int main(int argc, char **argv)
{
    char err[ERR_CAP] =
        "usage: random_model SHAPE f32|bf16|q8|q4 TOKENIZER.qsae OUT.qsae";
    const image_shape *shape = argc == 5 ? image_find_shape(argv[1]) : NULL;
    image_file im;
    qread tok;
    if (!shape) {
        fprintf(stderr, "%s\n", err);
        return 2;
    }
    uint32_t type = argv[2][0] == 'f'   ? QSAE_TYPE_F32
                    : argv[2][0] == 'b' ? QSAE_TYPE_BF16
                    : argv[2][1] == '8' ? QSAE_TYPE_Q8
                                        : QSAE_TYPE_Q4;
    int bad = qread_open(&tok, argv[3], err, sizeof err) ||
              image_model(shape, type, 2, 0, &im, err, sizeof err);
    image = im.data;
    if (bad || write_model(argv[4], &tok, err, sizeof err)) {
        fprintf(stderr, "%s\n", err);
        return 1;
    }
    return 0;
}
