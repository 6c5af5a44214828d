/* zip.h: reads and writes zip files whose members are stored, not compressed: PyTorch's .pt and NumPy's
 * .npz. Sizes and CRC-32 are those of the central directory (torch.save leaves them zero
 * in front of a member and puts a data descriptor behind it; np.savez writes 0xFFFFFFFF
 * and a zip64 field there); where the local header states a value, it must be the same.
 * Refused by name: compressed and encrypted members, several disks, a member twice, names
 * that are paths out of the archive, members that overlap or leave gaps, a comment, and
 * anything before the first member or behind the end. */

#ifndef QSAE_TOOLS_ZIP_H
#define QSAE_TOOLS_ZIP_H

#include <stddef.h>
#include <stdint.h>

#include "tensors.h"

#define ZIP_MAX_MEMBERS (2 * TENSOR_MAX)

typedef struct zip_member {
    char *name;
    uint64_t offset, size; /* of the data, in the file */
    uint32_t crc;
    /* private */
    uint64_t local; /* of its local header */
    uint16_t flags;
} zip_member;

typedef struct zip {
    zip_member *list; /* [n] by name */
    size_t n;
} zip;

/* The directory of f, checked. z is to be freed also on failure. */
int zip_open(const tensor_file *f, zip *z, char *err, size_t cap);
void zip_free(zip *z);
const zip_member *zip_find(const zip *z, const char *name); /* NULL if absent */

/* All of a member, CRC checked, from malloc; at most `limit` bytes. */
int zip_load(const tensor_file *f, const zip_member *m, uint64_t limit, char **data,
             char *err, size_t cap);

/* *torch = 1 if a member is called data.pkl in a folder. */
int zip_is_torch(const tensor_file *f, int *torch, char *err, size_t cap);

/* The CRC-32 of what `crc` (0 at first) stands for, followed by n more bytes. */
uint32_t zip_crc(uint32_t crc, const void *data, size_t n);

/* ---- writing ---- */

typedef struct zip_writer zip_writer;

zip_writer *zip_writer_create(const char *path, char *err, size_t cap);
/* Begins a member of exactly `size` bytes; its data follows, in any number of parts. */
int zip_writer_member(zip_writer *w, const char *name, uint64_t size, char *err,
                      size_t cap);
int zip_writer_data(zip_writer *w, const void *data, size_t size, char *err,
                    size_t cap);
int zip_writer_commit(zip_writer *w, char *err, size_t cap); /* frees w either way */
void zip_writer_abort(zip_writer *w);                        /* NULL is a no-op */

#endif
