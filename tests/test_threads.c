/* A team of threads (section 4 of qsae.c): every unit of every job is done once, no job begins before the one before
 * it has ended, whoever makes it; with few threads, and with more than there are processors or shares. */
#include "../qsae.c"

#include "test.h"

enum { MOST_UNITS = 200000 };

typedef struct course {
    uint32_t seed;
    size_t jobs, made; /* to make; so far */
    size_t units;      /* of the present job */
    size_t most;       /* units */
    int threads;
    uint32_t *done;    /* [MOST_UNITS]: the job that last did the unit */
    int making;        /* a thread is in course_next */
    size_t wrong;
    size_t by[QS_MAX_THREADS]; /* units by thread */
} course;

static void course_task(void *arg, size_t lo, size_t hi, size_t thread)
{
    course *c = arg;
    size_t wrong = thread >= (size_t)c->threads || lo >= hi || hi > c->units;
    for (size_t u = lo; u < hi && !wrong; u++) {
        wrong += c->done[u] != c->made - 1; /* this unit of every job before, and not yet of this one */
        c->done[u] = (uint32_t)c->made;
    }
    if (wrong) c->wrong++;
    else c->by[thread] += hi - lo;
}

static uint32_t course_random(course *c)
{
    c->seed = c->seed * 1664525u + 1013904223u;
    return c->seed >> 8;
}

static int course_next(void *state, qs_job *job)
{
    course *c = state;
    if (c->making++) c->wrong++;
    for (size_t u = 0; u < c->units; u++) c->wrong += c->done[u] != c->made;
    for (size_t u = 0; u < c->most; u++) c->done[u] = (uint32_t)c->made; /* those that the job did not have */
    int more = c->made < c->jobs;
    if (more) {
        size_t kind = course_random(c) % 8;
        c->units = kind == 0 ? 0 : kind == 1 ? 1 : kind < 5 ? course_random(c) % 40 : course_random(c) % c->most;
        c->made++;
        job->task = course_task;
        job->arg = c;
        job->units = c->units;
        job->cost = kind & 1 ? 1 + course_random(c) % 200000 : 17000;
        job->grain = course_random(c) % 3 * 12;
    }
    c->making--;
    return more;
}

static void check_course(int threads, size_t jobs, size_t most)
{
    static uint32_t done[MOST_UNITS];
    course *c = calloc(1, sizeof *c);
    memset(done, 0, sizeof done);
    c->seed = (uint32_t)(threads * 7919) + (uint32_t)most;
    c->jobs = jobs;
    c->most = most;
    c->threads = threads < 2 ? 1 : threads;
    c->done = done;
    qs_team_run(threads, course_next, c);
    CHECK(c->made == jobs && c->wrong == 0 && c->making == 0);
    free(c);
}

/* No job at all, and one by qs_parallel. */
static void sum_task(void *arg, size_t lo, size_t hi, size_t thread)
{
    unsigned char *seen = arg;
    (void)thread;
    for (size_t u = lo; u < hi; u++) seen[u]++;
}

static void check_single(int threads)
{
    static unsigned char seen[100000];
    course none;
    memset(&none, 0, sizeof none);
    qs_team_run(threads, course_next, &none);
    CHECK(none.made == 0 && none.wrong == 0);
    static const size_t units[] = {0, 1, 2, 63, 65535, 65536, 100000};
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        for (size_t cost = 1; cost < 1000000; cost *= 30) {
            size_t wrong = 0;
            memset(seen, 0, sizeof seen);
            qs_parallel(threads, units[i], cost, sum_task, seen);
            for (size_t u = 0; u < sizeof seen; u++) wrong += seen[u] != (u < units[i]);
            CHECK(wrong == 0);
        }
}

int main(void)
{
    static const int threads[] = {0, 1, 2, 3, 8, 70};
    for (size_t i = 0; i < sizeof threads / sizeof *threads; i++) {
        check_single(threads[i]);
        check_course(threads[i], threads[i] > 8 ? 60 : 400, 3000);
        check_course(threads[i], threads[i] > 8 ? 8 : 20, MOST_UNITS);
    }
    return test_done("test_threads");
}
