/* Sinks: rows whose length is far from that of the others. Qwen3 puts a hundred times
 * the usual length on the first token, and on a few more of a long text; an SAE then
 * fires on nearly everything, or on nothing that means something. Such rows are marked,
 * never left out.
 *
 * A sink is a row longer than SINK_RATIO times the median length of all rows (the rule
 * of dictionary_learning's max_activation_norm_multiple). The median is that of 65,536
 * classes of lengths, so that memory does not grow with the rows; it is exact to 0.8 %.
 * Of an even number of rows it is the lower one of the two in the middle. */

#ifndef QSAE_SINKS_H
#define QSAE_SINKS_H

#include <stddef.h>
#include <stdint.h>

#define SINK_RATIO 10
#define SINK_NAMED 8 /* rows that a report names */

typedef struct sinks {
    uint64_t *count; /* of each class */
    uint64_t n;
    struct {
        uint64_t row;
        float norm;
    } top[SINK_NAMED]; /* the longest rows, longest first */
} sinks;

int sinks_begin(sinks *s); /* 0, or -1 if out of memory */
void sinks_end(sinks *s);

float sinks_norm(const float *row, size_t width); /* Euclidean */
void sinks_add(sinks *s, uint64_t row, float norm);
float sinks_median(const sinks *s); /* 0 if there are no rows */
int sinks_is(float norm, float median);
uint64_t sinks_count(const sinks *s);

#endif
