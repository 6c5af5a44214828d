/* harvest.h: the folders that `qsae harvest` writes. DIR/shard-00000.safetensors and so on
 * hold the rows, whole sequences each:
 *
 *     layers.<L>.<site>  [n, width] F32 or BF16, one for every stream
 *     tokens, positions  [n] I32: the id of the row's token, its place in its sequence
 *     sequences          [n] I32: which sequence of the shard it belongs to
 *     classes            [n] I32: text, system, user, assistant, template (corpus.h)
 *
 * and as metadata the settings and where the text goes on. DIR/harvest.json, which comes
 * last, says that all is there, and what. */

#ifndef QSAE_TOOLS_HARVEST_H
#define QSAE_TOOLS_HARVEST_H

#include "feed.h"

#define HARVEST_MAX_STREAMS 4096
#define HARVEST_MAX_EXCLUDE 64

typedef struct harvest {
    char *folder;
    feed_stream *streams; /* [n_streams] */
    size_t n_streams, n_shards;
    uint64_t *shard_rows; /* [n_shards] */
    uint64_t rows, context, skip_first, exclude_classes, text_hash, model_hash;
    int32_t exclude[HARVEST_MAX_EXCLUDE];
    size_t n_exclude;
    int bf16;
} harvest;

/* Reads harvest.json. 0, or -1 with err set. A zeroed harvest is closed. */
int harvest_open(harvest *h, const char *folder, char *err, size_t cap);
void harvest_close(harvest *h);
/* DIR/shard-00012.safetensors */
void harvest_shard_path(const char *folder, uint64_t shard, char *out, size_t cap);
/* "layers.3.resid_post" */
void harvest_tensor_name(const feed_stream *s, char *out, size_t cap);

/* See feed.h; h is borrowed. Of the options the streams and `once` count. */
feed *feed_open_files(const harvest *h, const feed_options *o, char *err, size_t cap);

#endif
