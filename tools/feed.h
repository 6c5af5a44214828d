/* feed.h: activations of the tokens of a text, sequence after sequence, for `train` and
 * `harvest`: from a model that reads the text, or from files that `harvest` wrote.
 *
 *     feed *f = feed_open_model(model, corpus, &options, err, cap);
 *     while ((got = feed_next(f, most, &part, err, cap)) == 1) use part
 *     feed_close(f);
 *
 * The model runs once for all streams, and only up to the deepest of them. Some short
 * sequences run together (qsae_eval_many), which changes no bit. A token that the options
 * exclude is read by the model and has no row. */

#ifndef QSAE_TOOLS_FEED_H
#define QSAE_TOOLS_FEED_H

#include "corpus.h"

typedef struct feed_stream {
    qsae_site site;
    int32_t layer;
    size_t width;
} feed_stream;

/* "resid_post.3" */
typedef struct feed_name {
    char text[40];
} feed_name;
feed_name feed_stream_name(const feed_stream *s);

typedef struct feed_options {
    const feed_stream *streams; /* [n_streams], borrowed */
    size_t n_streams;
    size_t context;         /* most ids of a sequence */
    size_t skip_first;      /* tokens of every sequence that are excluded */
    const int32_t *exclude; /* [n_exclude] ids, borrowed */
    size_t n_exclude;
    uint32_t exclude_classes; /* bit 1 << corpus_class */
    int once; /* end after the text; else begin again, again and again */
    int32_t threads;
} feed_options;

/* Rows of whole sequences; valid until the next call. */
typedef struct feed_part {
    size_t n;                 /* rows, perhaps 0 */
    const float *const *rows; /* [n_streams]: [n, width] */
    const int32_t *ids,
        *positions;           /* [n]: of the row's token, its place in its sequence */
    const uint8_t *classes;   /* [n] corpus_class */
    const uint32_t *sequence; /* [n] counted from `first` */
    uint64_t first;           /* number of the first sequence in this pass */
    size_t n_tokens;          /* that were read, the excluded ones too */
} feed_part;

/* Where the next call goes on: integers only. */
typedef struct feed_cursor {
    uint64_t passes; /* times the text was read to its end */
    uint64_t tokens; /* read so far, in all passes */
    uint64_t rows;
    uint64_t shard, row; /* of files */
    corpus_cursor text;
} feed_cursor;

typedef struct feed feed;

/* Model and corpus are borrowed. */
feed *feed_open_model(const qsae_model *model, corpus *text, const feed_options *o,
                      char *err, size_t cap);
void feed_close(feed *f); /* NULL is a no-op */

/* 1: the next sequences, as many as there is room for, but no more after the one that
 * brings the rows to `most` or more. 0: the end (once). -1: err is set. */
int feed_next(feed *f, size_t most, feed_part *part, char *err, size_t cap);
void feed_tell(const feed *f, feed_cursor *out);
int feed_seek(feed *f, const feed_cursor *to, char *err, size_t cap);

/* -1 with err: "NaN or infinity in resid_post.3, at token 7 (id 40) of sequence 12". */
int feed_bad_row(const feed_options *o, const feed_part *part, size_t stream,
                 size_t row, char *err, size_t cap);

/* Memory that feed_open_model will take beside the model; 0 if the options are invalid. */
uint64_t feed_model_bytes(const qsae_model *model, const feed_options *o);

/* The rows that one pass gives, without running the model; reads the text, but no more
 * than `enough` tokens of it (0: all), and goes back to the beginning. */
int feed_count(corpus *text, const feed_options *o, uint64_t enough, uint64_t *tokens,
               uint64_t *rows, char *err, size_t cap);

#endif
