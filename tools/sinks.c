/* Sinks (see sinks.h). */

#include "sinks.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CLASSES 65536

/* The upper bits of a positive float order as the float does: 128 classes an octave. */
static uint32_t class_of(float norm)
{
    uint32_t bits;
    memcpy(&bits, &norm, sizeof bits);
    return bits >> 16;
}

static float class_floor(uint32_t class)
{
    uint32_t bits = class << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

int sinks_begin(sinks *s)
{
    memset(s, 0, sizeof *s);
    s->count = calloc(CLASSES, sizeof *s->count);
    return s->count ? 0 : -1;
}

void sinks_end(sinks *s)
{
    free(s->count);
    s->count = NULL;
}

float sinks_norm(const float *row, size_t width)
{
    double sum = 0;
    for (size_t i = 0; i < width; i++)
        sum += (double)row[i] * (double)row[i];
    return (float)sqrt(sum);
}

void sinks_add(sinks *s, uint64_t row, float norm)
{
    size_t at = s->n < SINK_NAMED ? (size_t)s->n : SINK_NAMED;
    s->count[class_of(norm)]++;
    s->n++;
    while (at > 0 && s->top[at - 1].norm < norm) {
        if (at < SINK_NAMED)
            s->top[at] = s->top[at - 1];
        at--;
    }
    if (at < SINK_NAMED) {
        s->top[at].row = row;
        s->top[at].norm = norm;
    }
}

float sinks_median(const sinks *s)
{
    uint64_t seen = 0;
    for (uint32_t c = 0; c < CLASSES && s->n; c++) {
        seen += s->count[c];
        if (seen > (s->n - 1) / 2)
            return class_floor(c);
    }
    return 0;
}

/* By class, so that sinks_count counts what this marks. */
int sinks_is(float norm, float median)
{
    return median > 0 && class_floor(class_of(norm)) > SINK_RATIO * median;
}

uint64_t sinks_count(const sinks *s)
{
    uint64_t count = 0;
    float median = sinks_median(s);
    for (uint32_t c = 0; c < CLASSES; c++)
        if (s->count[c] && sinks_is(class_floor(c), median))
            count += s->count[c];
    return count;
}
