/* tensors_impl.h: what the readers behind tensors.h share. A reader looks at the bytes
 * of an open file and adds what it finds:
 *
 *     int NAME_read(tensor_file *f, char *err, size_t cap);
 *
 * It returns 0, or -1 with err set; tensors_open puts the file's name in front, sorts the
 * names and refuses one that appears twice. */

#ifndef QSAE_TOOLS_TENSORS_IMPL_H
#define QSAE_TOOLS_TENSORS_IMPL_H

#include "tensors.h"

typedef struct tensor_meta {
    char *key, *value;
} tensor_meta;

/* Bytes of the file that one checksum stands for: a member of a zip. */
typedef struct tensor_piece {
    char *name;
    uint64_t offset, size;
    uint32_t crc;
    int checked;
} tensor_piece;

typedef struct tensor_cache tensor_cache;

struct tensor_file {
    char *path;
    int fd;                      /* -1: in memory */
    const unsigned char *memory; /* NULL: fd */
    uint64_t size;
    tensor_container container;
    tensor *list;          /* [n] in the order of the file */
    const tensor **sorted; /* [n] by name */
    size_t n, room;
    tensor_meta *meta; /* [n_meta] */
    size_t n_meta, meta_room;
    tensor_piece *pieces; /* [n_pieces] by offset once the reader is done */
    size_t n_pieces, piece_room;
    tensor_cache *cache;
    void *own; /* what a reader keeps beside the tensors; own_free ends it */
    void (*own_free)(void *own);
};

/* n bytes at `offset`; beyond the end is an error. */
int tensors_read(const tensor_file *f, uint64_t offset, void *out, uint64_t n,
                 char *err, size_t cap);

/* Adds a tensor after checking all that holds for every container: its sizes do not
 * wrap, and every element lies in the file. From *t are taken type, rank, shape, stride
 * and offset; the name is copied. */
int tensors_add(tensor_file *f, const char *name, size_t name_len, const tensor *t,
                char *err, size_t cap);
/* Row-major strides of t's shape; -1 if the number of elements does not fit. */
int tensors_row_major(tensor *t);
/* Both are copied. A key that appears twice is refused when the reader is done. */
int tensors_add_meta(tensor_file *f, const char *key, size_t key_len, const char *value,
                     size_t value_len, char *err, size_t cap);
/* Before the first number of a tensor in these bytes is read, their CRC-32 is checked. */
int tensors_add_piece(tensor_file *f, const char *name, uint64_t offset, uint64_t size,
                      uint32_t crc, char *err, size_t cap);

/* One element, or of Q8_0 and Q4_0 one block. */
size_t tensor_type_bytes(tensor_type type);
uint64_t tensor_type_block(tensor_type type); /* elements of a block: 32, else 1 */

/* The readers. */
int safetensors_read(tensor_file *f, char *err, size_t cap);
int torch_read(tensor_file *f, char *err, size_t cap); /* a zip with NAME/data.pkl */
int npy_read(tensor_file *f, char *err, size_t cap);
int npz_read(tensor_file *f, char *err, size_t cap);
int gguf_read(tensor_file *f, char *err, size_t cap);

#endif
