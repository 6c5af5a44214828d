/* harvest.h: the folders that `qsae harvest` writes: DIR/harvest.json says what is in them,
 * DIR/shard-00000.safetensors and so on hold the rows:
 *
 *     layers.<L>.<site>  [n, width] f32 or bf16, one for every stream
 *     tokens, positions  [n] i32: the row's token id and its place in its sequence
 *     classes            [n] u8: text, system, user, assistant, template
 *
 * A shard holds whole sequences. Its metadata has the settings of the harvest and where
 * the text goes on. Functions return 0, or -1 with err set. */

#ifndef QSAE_TOOLS_HARVEST_H
#define QSAE_TOOLS_HARVEST_H

#include <stddef.h>
#include <stdint.h>

#include "../qsae.h"

/* The width of a stream; refused if the harvest has it not. */
int harvest_width(const char *folder, qsae_site site, int32_t layer, size_t *width,
                  char *err, size_t cap);
/* One more than the deepest layer. */
int harvest_layers(const char *folder, int32_t *n_layers, char *err, size_t cap);
/* Rows, and a number that stands for the settings and the text. */
int harvest_summary(const char *folder, uint64_t *rows, uint64_t *longest,
                    uint64_t *hash, char *err, size_t cap);

#endif
