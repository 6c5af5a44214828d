/* bench_team.h: runs a function on every thread of a team, as the library does: with
 * OpenMP where the build has it, else on one. */

#ifndef QSAE_BENCH_TEAM_H
#define QSAE_BENCH_TEAM_H

#include <stddef.h>

/* Thread t of n. */
typedef void (*team_fn)(void *arg, size_t t, size_t n);

void team_run(int threads, team_fn fn, void *arg);
/* Threads that team_run can use when so many are asked for: 1 without OpenMP. */
int team_size(int threads);
/* Seconds of a clock that only goes forward. */
double team_clock(void);

#endif
