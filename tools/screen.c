/* See screen.h. */

#include "screen.h"

#include <math.h>
#include <string.h>

#include "quantize.h"

static void one_group(const float *panel, uint64_t n, unsigned char *block, double *rest,
                      double *norm)
{
    float copy[QUANTIZE_ROWS * QUANTIZE_COLS];
    quantize_q8(panel, block);
    dequantize_q8(block, copy);
    for (uint64_t i = 0; i < n * QUANTIZE_COLS; i++) {
        double lost = (double)panel[i] - copy[i];
        rest[i / QUANTIZE_COLS] += lost * lost;
        norm[i / QUANTIZE_COLS] += (double)copy[i] * copy[i];
    }
}

void screen_panel(const float *rows, size_t ld, uint64_t n, uint64_t width,
                  unsigned char *blocks, double *rest, double *norm)
{
    static const size_t group = QUANTIZE_COLS;
    float panel[QUANTIZE_ROWS * QUANTIZE_COLS];
    unsigned char unused[QUANTIZE_Q8_BYTES];
    memset(rest, 0, (size_t)n * sizeof *rest);
    memset(norm, 0, (size_t)n * sizeof *norm);
    for (uint64_t from = 0; from < width; from += group) {
        uint64_t m = width - from < group ? width - from : group;
        memset(panel, 0, sizeof panel);
        for (uint64_t r = 0; r < n; r++)
            memcpy(panel + r * group, rows + r * ld + from, (size_t)m * sizeof *panel);
        one_group(panel, n,
                  blocks ? blocks + from / group * QUANTIZE_Q8_BYTES : unused, rest, norm);
    }
}

float screen_bound(double square)
{
    return (float)(sqrt(square) * 1.000001);
}
