/* gguf.h: the metadata of a GGUF file, and its header's reader. The tensors come through
 * tensors.h.
 *
 * Source: github.com/ggml-org/ggml docs/gguf.md, versions 2 and 3, little-endian:
 *
 *     "GGUF"  u32 version  u64 tensors  u64 pairs
 *     pairs    string key, u32 type, value
 *     tensors  string name, u32 rank, u64 dims[rank], u32 type, u64 offset
 *     data     from the next multiple of general.alignment (32) on
 *
 * The dims of the file run from the contiguous one outwards; a tensor's shape is theirs
 * reversed. Checked before anything is used: every length against the bytes that are
 * left, every size for overflow, keys and names for duplicates, every tensor against its
 * place: aligned, behind the one before with no more than padding between, and inside
 * the file, which ends where the last one does. */

#ifndef QSAE_TOOLS_GGUF_H
#define QSAE_TOOLS_GGUF_H

#include "tensors.h"

#define GGUF_MAX_HEADER (256u << 20) /* bytes before the data */
#define GGUF_MAX_PAIRS  65536u
#define GGUF_MAX_KEY    1024u
#define GGUF_MAX_RANK   4u

typedef enum gguf_type { /* the numbers of the file */
                         GGUF_U8 = 0,
                         GGUF_I8,
                         GGUF_U16,
                         GGUF_I16,
                         GGUF_U32,
                         GGUF_I32,
                         GGUF_F32,
                         GGUF_BOOL,
                         GGUF_STRING,
                         GGUF_ARRAY,
                         GGUF_U64,
                         GGUF_I64,
                         GGUF_F64,
                         GGUF_TYPE_COUNT
} gguf_type;

const char *gguf_type_name(gguf_type type); /* "u32", "string", ... */

typedef struct gguf_value {
    const char *key; /* NUL-terminated */
    gguf_type type;  /* of an array: that of its elements */
    int is_array;
    uint64_t n;                /* elements; 1 if it is no array */
    const unsigned char *data; /* of any alignment; read with the functions below */
    size_t size;               /* bytes at data */
} gguf_value;

/* Pairs of a GGUF file in its order. NULL past the end, and of any other container. */
const gguf_value *gguf_at(const tensor_file *f, size_t i);
const gguf_value *gguf_find(const tensor_file *f, const char *key);

/* 1 and the value, or 0 if v is NULL, an array or of another type. */
int gguf_int(const gguf_value *v, int64_t *out); /* a whole number that int64_t holds */
int gguf_real(const gguf_value *v, double *out); /* F32, F64 */
int gguf_bool(const gguf_value *v, int *out);
/* Its bytes, not NUL-terminated; NULL if it is not one string. */
const char *gguf_string(const gguf_value *v, size_t *len);
int gguf_is(const gguf_value *v, const char *text); /* 1: this string */

/* Element i of an array of whole numbers: 1, or 0 if there is none. */
int gguf_int_at(const gguf_value *v, uint64_t i, int64_t *out);
/* The strings of an array in order: *at is 0 before the first. NULL after the last, and
 * of anything else. */
const char *gguf_next_string(const gguf_value *v, size_t *at, size_t *len);

/* "32", "\"qwen3\"", "array of 12 i32": a value for a message. */
safe_name gguf_text(const gguf_value *v);

#endif
