/* quantize.h: superblocks of Q8 and Q4 (FORMAT.md) from floats, and back.
 *
 * A panel is 16 rows of 256 numbers, panel[16, 256], all finite; rows and columns that the
 * matrix does not have are zeros. The format says what a superblock means; which one
 * stands for given numbers is chosen here, from them alone: equal panels make equal
 * bytes on every machine. */

#ifndef QSAE_TOOLS_QUANTIZE_H
#define QSAE_TOOLS_QUANTIZE_H

#define QUANTIZE_ROWS     16
#define QUANTIZE_COLS     256
#define QUANTIZE_Q8_BYTES 4160
#define QUANTIZE_Q4_BYTES 2176

/* Row by row: a = absmax / 127 as a float, w = x / a to the nearest integer, ties to even.
 * Of a row so small that a is 0, every w is 0. */
void quantize_q8(const float *panel, unsigned char *out);
/* Row by row d, m and q of the least squared error that a search finds; at most that of
 * the steps that clip nothing. A row so small that d is 0 becomes zeros. */
void quantize_q4(const float *panel, unsigned char *out);

/* The numbers that a superblock stands for. */
void dequantize_q8(const unsigned char *block, float *panel);
void dequantize_q4(const unsigned char *block, float *panel);

#endif
