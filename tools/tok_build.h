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

#endif
