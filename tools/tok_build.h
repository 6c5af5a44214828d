/* tok_build.h - tokenizer.json (Hugging Face) -> tokenizer blob (tools/FORMAT.md). */
#ifndef TOK_BUILD_H
#define TOK_BUILD_H

#include <stddef.h>
#include <stdint.h>

/* Builds the blob from the text of a tokenizer.json.  Returns 1 and a blob from malloc in
   *blob (free it), its size in *blob_size; or 0 and in err[err_cap] one line that names
   what is wrong.  Whatever the file asks for that the blob cannot express is refused, never
   approximated. */
int tok_build_from_json(const char *json, size_t len, uint8_t **blob, size_t *blob_size,
                        char *err, size_t err_cap);

/* The same pipeline from bare lists: token i has id i. */
typedef enum tok_kind {
    TOK_UNUSED = 0, /* the id has no text */
    TOK_NORMAL,     /* text in byte symbols */
    TOK_ADDED,      /* the text itself, matched before everything else */
    TOK_SPECIAL     /* TOK_ADDED, and marked as special */
} tok_kind;

typedef struct tok_item {
    const char *text; /* [len] */
    size_t len;
    tok_kind kind; /* of a merge, "a b", unused */
} tok_item;

int tok_build_from_lists(const tok_item *tokens, size_t n_tokens, const tok_item *merges,
                         size_t n_merges, uint8_t **blob, size_t *blob_size, char *err,
                         size_t err_cap);

#endif
