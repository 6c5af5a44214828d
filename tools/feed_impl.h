/* feed_impl.h: what the two kinds of feeds share; feed.c and feed_files.c only. */

#ifndef QSAE_TOOLS_FEED_IMPL_H
#define QSAE_TOOLS_FEED_IMPL_H

#include "feed.h"

struct feed {
    feed_options o;
    feed_cursor at;
    int (*next)(feed *f, size_t most, feed_part *part, char *err, size_t cap);
    int (*rewind)(feed *f, char *err, size_t cap);
    int (*seek)(feed *f, const feed_cursor *to, char *err, size_t cap);
    void (*close)(feed *f);
    /* room for `room` rows */
    size_t room;
    float **rows; /* [n_streams]: [room, width] */
    int32_t *ids, *positions;
    uint8_t *classes;
    uint32_t *sequence;
    uint64_t pass_rows; /* of the present pass */
};

/* Room in a zeroed feed that has its options. */
int feed_make_room(feed *f, size_t room, char *err, size_t cap);

#endif
