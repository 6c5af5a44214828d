/* bench_run.h: the measurements of `qsae bench`. */

#ifndef QSAE_BENCH_RUN_H
#define QSAE_BENCH_RUN_H

#include "bench_image.h"
#include "bench_probe.h"

typedef enum bench_name { /* in the order in which they are measured */
                          BENCH_RSS = 0,
                          BENCH_OPEN,
                          BENCH_DECODE,
                          BENCH_PREFILL,
                          BENCH_EVAL_MANY,
                          BENCH_EVAL_EDITS,
                          BENCH_SAE_ALL,
                          BENCH_SENSORS,
                          BENCH_CAPTURE_ALL,
                          BENCH_SAE,
                          BENCH_SAE_DENSE,
                          BENCH_DECODE_CONTEXT, /* these before the SAEs of their own */
                          BENCH_EVAL_MANY_BATCH,
                          BENCH_COUNT
} bench_name;

const char *bench_name_text(bench_name name); /* as --only and "name" have it */

typedef struct bench_setup {
    const char *model_path;   /* a file, or */
    const image_shape *shape; /* random weights, if anything but SAEs is measured */
    uint32_t type;            /* of the random weights; SAEs: F32 or else BF16 */
    qsae_isa isa;
    int threads;
    int32_t batch;   /* tokens computed together in a prefill */
    int32_t context; /* tokens before the first that decode is timed on; 0: default */
    qsae_kv_type kv;
    double seconds; /* for each measurement, about */
    unsigned only;  /* bit 1 << bench_name */
    int progress;   /* tell on stderr what is being measured */
} bench_setup;

enum { BENCH_SAMPLES = 16, BENCH_RESULTS = 64 };

typedef struct bench_result {
    bench_name name;
    char type[16], shape[64];
    int64_t n; /* tokens of a prefill, contexts, rows an encode call; see --help */
    int64_t context;  /* decode, decode_context; else 0 */
    const char *unit; /* "tok/s", "rows/s", "s", "bytes" */
    double value;     /* the best sample */
    double limit;     /* in the same unit, by the probes around that sample; 0: none */
    double share;     /* value / limit */
    double samples[BENCH_SAMPLES];
    double limits[BENCH_SAMPLES]; /* of each sample, where there is a limit */
    size_t n_samples;
    double exact; /* sae_encode: share of the encoder rows computed exactly; else -1 */
} bench_result;

typedef struct bench_report {
    char cpu[64];
    qsae_isa isa;              /* of the kernels that ran */
    int threads;               /* as used: 1 without OpenMP */
    double probe[PROBE_COUNT]; /* units a second, 0 where there is no such unit */
    bench_result results[BENCH_RESULTS];
    size_t n;
} bench_report;

/* CMD_OK, or CMD_FAILED after a complaint. */
int bench_run(const bench_setup *setup, bench_report *report);

#endif
