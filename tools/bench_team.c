/* A team of threads and a clock (see bench_team.h). */

#define _POSIX_C_SOURCE 200809L

#include "bench_team.h"

#include <time.h>
#if defined(_OPENMP)
#include <omp.h>
#endif

void team_run(int threads, team_fn fn, void *arg)
{
#if defined(_OPENMP)
    if (threads > 1) {
#pragma omp parallel num_threads(threads)
        fn(arg, (size_t)omp_get_thread_num(), (size_t)omp_get_num_threads());
        return;
    }
#endif
    (void)threads;
    fn(arg, 0, 1);
}

int team_size(int threads)
{
#if defined(_OPENMP)
    return threads;
#else
    (void)threads;
    return 1;
#endif
}

double team_clock(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}
