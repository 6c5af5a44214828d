/* bench_probe.h: what this machine can do at most: how fast it reads memory, how fast it
 * multiplies and adds. A measurement next to its probe tells what a program leaves
 * unused, on whatever machine and at whatever moment it runs. */

#ifndef QSAE_BENCH_PROBE_H
#define QSAE_BENCH_PROBE_H

#include "../qsae.h"

typedef enum probe_kind {
    PROBE_READ = 0, /* bytes/s: memory far larger than a core's caches, read once */
    PROBE_FMA,      /* f32 multiply-adds, counted as 2 */
    PROBE_MADD, /* int16 products added in pairs (AVX2 vpmaddwd + vpaddd), as 2 each */
    PROBE_VNNI, /* int8 dot products (VNNI; NEON dotprod), 2 a product */
    PROBE_COUNT
} probe_kind;

typedef struct probe probe;

/* `bytes` of memory are made for reading. NULL: out of memory. */
probe *probe_open(int threads, size_t bytes);
void probe_close(probe *p); /* NULL is a no-op */

/* The best of `times` runs of some milliseconds, in units a second, of the units above;
 * 0 where the processor, or the instruction set `isa`, has no such unit. `isa` AUTO:
 * whatever the processor has. */
double probe_run(probe *p, probe_kind kind, qsae_isa isa, int times);

/* The processor's own name, or "unknown". */
const char *probe_cpu_name(const probe *p);

#endif
