/* screen.h: the numbers of an SAE's screen (FORMAT.md): 8-bit copies of encoder rows, and
 * what the copies lose and hold. */

#ifndef QSAE_TOOLS_SCREEN_H
#define QSAE_TOOLS_SCREEN_H

#include <stddef.h>
#include <stdint.h>

/* n <= 16 rows of `width` finite numbers, `ld` apart: their superblocks to
 * blocks[(width + 255) / 256], 4160 bytes each (NULL: not wanted); squares of the rows'
 * errors and of the copies' lengths to rest[n] and norm[n]. */
void screen_panel(const float *rows, size_t ld, uint64_t n, uint64_t width,
                  unsigned char *blocks, double *rest, double *norm);

/* The root of a square, rounded up: a millionth more covers the sum in double. */
float screen_bound(double square);

#endif
