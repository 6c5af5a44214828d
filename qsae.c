/* qsae.c: the whole library. qsae.h says what it does; this file says how.
 *
 * How to read it
 *   the transformer        6, 7, 21        an SAE                  6, 7, 17
 *   an intervention        19, 20          why bits never differ   6, then 8-11
 *   the file               14, tools/FORMAT.md      training               25, 24
 *
 * Contents
 *    1 compiler and headers                                                  (private)
 *    2 status and errors                                                     (public)
 *    3 memory: checked sizes, allocator, carving                             (private)
 *    4 platform: files, floating-point state, threads                        (private)
 *    5 checksum: XXH64                                                       (public)
 *    6 numerics: the order of every sum; exp, sine, 16-bit floats            (private)
 *    7 kernels: portable reference                                           (private)
 *    8 kernels: what the instruction sets share                              (private)
 *    9 kernels: AVX2 + FMA                                                   (private)
 *   10 kernels: AVX-512 F                                                    (private)
 *   11 kernels: NEON                                                         (private)
 *   12 instruction sets: detection and choice                                (public)
 *   13 sites: names and widths                                               (public)
 *   14 container: header, directory, verification                            (public)
 *   15 tokenizer                                                             (private)
 *   16 model: binding tensors; text to ids                                   (public)
 *   17 SAE: open, encode, decode                                             (public)
 *   18 context: layout, copy, rewind                                         (public)
 *   19 captures and hook                                                     (public)
 *   20 edits                                                                 (public)
 *   21 transformer: one pass over a batch of rows                            (public)
 *   22 sampling                                                              (public)
 *   23 chat format                                                           (public)
 *   24 training: kernels                                                    (private)
 *   25 training: the trainer                                                 (public)
 */

/* ===================================================================================================
 * 1 Compiler and headers (private)
 * =================================================================================================== */

/* A fused multiply-add happens where fmaf or an intrinsic says so, and nowhere else: otherwise the bits
 * would depend on the compiler. gcc ignores the standard pragma, clang ignores gcc's. */
#if defined(__FAST_MATH__)
#error "qsae: -ffast-math breaks the promise of identical bits; compile qsae.c without it"
#endif
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#if !defined(_WIN32) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L
#endif

#define QSAE_WITH_FORMAT
#include "qsae.h"

#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "qsae: only little-endian machines are supported"
#endif
#if SIZE_MAX < 0xFFFFFFFFFFFFFFFFu
#error "qsae: only 64-bit machines are supported"
#endif

#if !defined(_WIN32)
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#if !defined(QSAE_NO_MMAP)
#include <sys/mman.h>
#define QS_MMAP 1
#endif
#define QS_POSIX 1
#endif

#if defined(_OPENMP) && defined(__GNUC__) && !defined(QSAE_NO_OPENMP) /* with its atomic operations */
#include <omp.h>
#define QS_OPENMP 1
#endif

#if defined(__GNUC__)
#define QS_PRINTF(f, a) __attribute__((format(printf, f, a)))
#else
#define QS_PRINTF(f, a)
#endif

/* The structs of the file are read by copying bytes: their sizes are part of the format. */
typedef char qs_size_of_header[sizeof(qsae_file_header) == 64 ? 1 : -1];
typedef char qs_size_of_model[sizeof(qsae_model_record) == 256 ? 1 : -1];
typedef char qs_size_of_sae[sizeof(qsae_sae_record) == 256 ? 1 : -1];
typedef char qs_size_of_tensor[sizeof(qsae_tensor_record) == 64 ? 1 : -1];

/* ===================================================================================================
 * 2 Status and errors (public)
 * =================================================================================================== */

uint32_t qsae_version(void) { return QSAE_VERSION_HEX; }

const char *qsae_status_string(qsae_status status)
{
    switch (status) {
    case QSAE_OK: return "ok";
    case QSAE_E_ARG: return "bad argument";
    case QSAE_E_NOMEM: return "out of memory";
    case QSAE_E_IO: return "input/output error";
    case QSAE_E_TRUNC: return "file too short";
    case QSAE_E_MAGIC: return "not a .qsae file";
    case QSAE_E_VERSION: return "other format version";
    case QSAE_E_FORMAT: return "malformed file";
    case QSAE_E_UNSUP: return "not supported";
    case QSAE_E_LIMIT: return "over a limit";
    case QSAE_E_MISMATCH: return "parts do not match";
    case QSAE_E_STATE: return "not possible now";
    case QSAE_E_CANCELLED: return "cancelled";
    case QSAE_E_NUM: return "not a finite number";
    }
    return "unknown status";
}

/* Fills *err (may be NULL) and returns st, so that callers can write `return qs_fail(...)`. */
static qsae_status qs_fail(qsae_error *err, qsae_status st, uint64_t offset, const char *fmt, ...)
    QS_PRINTF(4, 5);

static qsae_status qs_fail(qsae_error *err, qsae_status st, uint64_t offset, const char *fmt, ...)
{
    if (!err) return st;
    va_list args;
    va_start(args, fmt);
    vsnprintf(err->text, sizeof err->text, fmt, args);
    va_end(args);
    /* names come from files: keep the promise of one ASCII line */
    for (char *p = err->text; *p; p++)
        if ((unsigned char)*p < 32 || (unsigned char)*p > 126) *p = '?';
    err->status = st;
    err->offset = offset;
    return st;
}

/* ===================================================================================================
 * 3 Memory: checked sizes, allocator, carving (private)
 *
 * Sizes that come from a file or a caller go through these three and nothing else.
 * =================================================================================================== */

static int qs_add(size_t a, size_t b, size_t *sum) /* 1 and *sum, or 0 on overflow */
{
    if (a > SIZE_MAX - b) return 0;
    *sum = a + b;
    return 1;
}

static int qs_mul(size_t a, size_t b, size_t *product)
{
    if (b && a > SIZE_MAX / b) return 0;
    *product = a * b;
    return 1;
}

static int qs_round_up(size_t a, size_t unit, size_t *rounded) /* unit: a power of two */
{
    if (!qs_add(a, unit - 1, rounded)) return 0;
    *rounded &= ~(unit - 1);
    return 1;
}

/* For widths that were checked at open: cannot overflow. */
static size_t qs_up16(size_t n) { return (n + 15) & ~(size_t)15; }
static size_t qs_min(size_t a, size_t b) { return a < b ? a : b; }

/* malloc promises 16 bytes; kernels like 64. The raw pointer is kept just below the aligned one. */
static void *qs_default_alloc(void *user, size_t size, size_t align)
{
    (void)user;
    size_t total;
    if (!qs_add(size, align + sizeof(void *), &total)) return NULL;
    char *raw = malloc(total);
    if (!raw) return NULL;
    uintptr_t at = ((uintptr_t)raw + sizeof(void *) + align - 1) & ~(uintptr_t)(align - 1);
    memcpy((char *)at - sizeof(void *), &raw, sizeof(void *));
    return (void *)at;
}

static void qs_default_release(void *user, void *ptr, size_t size)
{
    (void)user;
    (void)size;
    void *raw;
    memcpy(&raw, (char *)ptr - sizeof(void *), sizeof(void *));
    free(raw);
}

/* Copies the caller's allocator, or the default one; both functions or none. */
static qsae_status qs_take_allocator(const qsae_allocator *in, qsae_allocator *out, qsae_error *err)
{
    if (in && (!in->alloc != !in->release))
        return qs_fail(err, QSAE_E_ARG, 0, "allocator: alloc and release must both be set");
    if (in && in->alloc) {
        *out = *in;
    } else {
        out->alloc = qs_default_alloc;
        out->release = qs_default_release;
        out->user = NULL;
    }
    return QSAE_OK;
}

static void *qs_alloc(const qsae_allocator *a, size_t size)
{
    return a->alloc(a->user, size ? size : 1, QSAE_FILE_ALIGN);
}

static void qs_release(const qsae_allocator *a, void *ptr, size_t size)
{
    if (ptr) a->release(a->user, ptr, size ? size : 1);
}

/* Cuts one block into 64-byte aligned arrays. With base NULL it only adds up: the same function that lays
 * a block out also says how large it must be. */
typedef struct qs_carve {
    char *base;
    size_t used;
    int overflow;
} qs_carve;

static void *qs_cut(qs_carve *c, size_t count, size_t elem)
{
    size_t bytes, next;
    if (!qs_mul(count, elem, &bytes) || !qs_round_up(bytes, 64, &bytes) ||
        !qs_add(c->used, bytes, &next)) {
        c->overflow = 1;
        return NULL;
    }
    void *p = c->base ? c->base + c->used : NULL;
    c->used = next;
    return p;
}

/* ===================================================================================================
 * 4 Platform: files, floating-point state, threads (private)
 *
 * The only place with operating system calls and machine state.
 * =================================================================================================== */

typedef struct qs_file {
    const uint8_t *data;
    size_t size;
    int mapped; /* munmap it */
    void *owned; /* or release it */
} qs_file;

static void qs_file_close(qs_file *f, const qsae_allocator *a)
{
#if defined(QS_MMAP)
    if (f->mapped) munmap((void *)(uintptr_t)f->data, f->size);
#endif
    qs_release(a, f->owned, f->size);
    memset(f, 0, sizeof *f);
}

#if defined(QS_POSIX)

static qsae_status qs_file_read_fd(int fd, qs_file *f, const qsae_allocator *a, const char *path,
                                   qsae_error *err)
{
    uint8_t *buf = qs_alloc(a, f->size);
    if (!buf) return qs_fail(err, QSAE_E_NOMEM, 0, "%.120s: no memory for %zu bytes", path, f->size);
    f->owned = buf;
    f->data = buf;
    for (size_t done = 0; done < f->size;) {
        ssize_t n = read(fd, buf + done, qs_min(f->size - done, (size_t)1 << 30));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0)
            return qs_fail(err, n ? QSAE_E_IO : QSAE_E_TRUNC, done, "%.120s: read stopped at byte %zu of %zu",
                           path, done, f->size);
        done += (size_t)n;
    }
    return QSAE_OK;
}

static qsae_status qs_file_open_fd(int fd, const char *path, int no_mmap, const qsae_allocator *a,
                                   qs_file *f, qsae_error *err)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return qs_fail(err, QSAE_E_IO, 0, "%.120s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode)) return qs_fail(err, QSAE_E_IO, 0, "%.120s: not a regular file", path);
    if (st.st_size == 0) return qs_fail(err, QSAE_E_TRUNC, 0, "%.120s: the file is empty", path);
    f->size = (size_t)st.st_size;
#if defined(QS_MMAP)
    if (!no_mmap) {
        void *p = mmap(NULL, f->size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p != MAP_FAILED) {
            f->data = p;
            f->mapped = 1;
            return QSAE_OK;
        } /* some file systems cannot map: read instead */
    }
#endif
    (void)no_mmap;
    return qs_file_read_fd(fd, f, a, path, err);
}

static qsae_status qs_file_open(const char *path, int no_mmap, const qsae_allocator *a, qs_file *f,
                                qsae_error *err)
{
    memset(f, 0, sizeof *f);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* not to hang on a FIFO */
    if (fd < 0) return qs_fail(err, QSAE_E_IO, 0, "%.120s: %s", path, strerror(errno));
    qsae_status st = qs_file_open_fd(fd, path, no_mmap, a, f, err);
    close(fd);
    if (st) qs_file_close(f, a);
    return st;
}

#else /* plain stdio */

static qsae_status qs_file_open(const char *path, int no_mmap, const qsae_allocator *a, qs_file *f,
                                qsae_error *err)
{
    (void)no_mmap;
    memset(f, 0, sizeof *f);
    FILE *in = fopen(path, "rb");
    if (!in) return qs_fail(err, QSAE_E_IO, 0, "%.120s: cannot open", path);
    qsae_status st = QSAE_OK;
    long size = -1;
    if (fseek(in, 0, SEEK_END) == 0) size = ftell(in);
    if (size <= 0 || size == LONG_MAX || fseek(in, 0, SEEK_SET) != 0) {
        st = qs_fail(err, QSAE_E_IO, 0, "%.120s: not a readable regular file", path);
    } else {
        f->size = (size_t)size;
        f->owned = qs_alloc(a, f->size);
        f->data = f->owned;
        if (!f->owned)
            st = qs_fail(err, QSAE_E_NOMEM, 0, "%.120s: no memory for %zu bytes", path, f->size);
        else if (fread(f->owned, 1, f->size, in) != f->size)
            st = qs_fail(err, QSAE_E_TRUNC, 0, "%.120s: cannot read %zu bytes", path, f->size);
    }
    fclose(in);
    if (st) qs_file_close(f, a);
    return st;
}

#endif

/* A host program may have switched denormals off (gcc's -ffast-math does, for the whole process) or changed the
 * rounding: the bits must not follow. Saves the state of this thread and sets IEEE's defaults; leave restores. */
typedef uint64_t qs_fp_state;

#if defined(__GNUC__) && defined(__x86_64__)
static qs_fp_state qs_fp_enter(void)
{
    uint32_t old, ieee = 0x1f80; /* MXCSR after reset: round to nearest, all exceptions masked */
    __asm__ volatile("stmxcsr %0" : "=m"(old));
    __asm__ volatile("ldmxcsr %0" : : "m"(ieee) : "memory"); /* no float leaves memory across it */
    return old;
}

static void qs_fp_leave(qs_fp_state old)
{
    uint32_t mxcsr = (uint32_t)old;
    __asm__ volatile("ldmxcsr %0" : : "m"(mxcsr) : "memory");
}
#elif defined(__GNUC__) && defined(__aarch64__)
static qs_fp_state qs_fp_enter(void)
{
    uint64_t old, ieee = 0;
    __asm__ volatile("mrs %0, fpcr" : "=r"(old));
    __asm__ volatile("msr fpcr, %0" : : "r"(ieee) : "memory");
    return old;
}

static void qs_fp_leave(qs_fp_state old) { __asm__ volatile("msr fpcr, %0" : : "r"(old) : "memory"); }
#else
static qs_fp_state qs_fp_enter(void) { return 0; }
static void qs_fp_leave(qs_fp_state old) { (void)old; }
#endif

/* ---- threads
 *
 * A team works through a row of jobs inside one parallel region. A job is a number of units; who computes a unit never
 * changes its value. Every thread has a share of the units, takes bites from its front, and when it is empty from the
 * back of the others' shares: alone on the machine all read their weights in order, and a thread that another program
 * keeps from its processor holds nobody up but for the bite in its hands. There is no barrier: who finishes the last
 * unit of a job makes the next job, whichever thread that is. Who finds nothing to do gives the processor away soon. */

#define QS_MAX_THREADS 1024

typedef void (*qs_task)(void *arg, size_t lo, size_t hi, size_t thread);

typedef struct qs_job {
    qs_task task; /* task(arg, lo, hi, thread): units lo..hi - 1 */
    void *arg;    /* lives until the next job is asked for */
    size_t units;
    size_t cost;  /* multiply-adds of a unit, roughly */
    size_t grain; /* units that are best done together; 0: 1 */
} qs_job;

/* Fills in the next job, or returns 0: there is none. Called by one thread at a time, when the last job is done. */
typedef int (*qs_next)(void *state, qs_job *job);

static void qs_run_alone(qs_next next, void *state, qs_job *job)
{
    do {
        if (job->units) job->task(job->arg, 0, job->units, 0);
    } while (next(state, job));
}

#if defined(QS_OPENMP)

/* Small work stays on the thread that made it. */
static int qs_is_small(const qs_job *j) { return j->units < 2 || (double)j->units * (double)j->cost <= 16384.0; }

/* The next job that is not small; small ones are done on the way. */
static int qs_next_large(qs_next next, void *state, size_t thread, qs_job *job)
{
    while (next(state, job)) {
        if (!qs_is_small(job)) return 1;
        if (job->units) job->task(job->arg, 0, job->units, thread);
    }
    return 0;
}

#define QS_SHARES ((size_t)64)       /* threads beyond share */
#define QS_BITE_COST ((size_t)131072) /* multiply-adds that are worth a bite */

/* (job number << 32 | first << 16 | end) of the pieces that are left. The number tells a thread that comes late. */
typedef struct qs_share {
    uint64_t word;
    uint64_t apart[7]; /* a cache line each */
} qs_share;

typedef struct qs_team {
    qs_next next;
    void *state;
    size_t n_shares;
    uint32_t number; /* of the job */
    int over;
    qs_job job;      /* in pieces of `piece` units, `bite` pieces at a time */
    size_t piece, bite, n_pieces;
    size_t done;     /* pieces */
    qs_share share[QS_SHARES];
} qs_team;

#define QS_GET(p)      __atomic_load_n(p, __ATOMIC_RELAXED)
#define QS_SEE(p)      __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define QS_PUT(p, v)   __atomic_store_n(p, v, __ATOMIC_RELAXED)
#define QS_SHOW(p, v)  __atomic_store_n(p, v, __ATOMIC_RELEASE)

/* Waits a little, the longer the more often it was called in a row: some instructions, then for whoever else wants
 * the processor, then for some microseconds. */
static void qs_idle(unsigned *times)
{
    unsigned n = (*times)++;
#if defined(QS_POSIX)
    if (n >= 2000) {
        struct timespec t = {0, 50000};
        nanosleep(&t, NULL);
        return;
    }
    if (n >= 100) {
        sched_yield();
        return;
    }
#endif
    (void)n;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Makes m->job known. */
static void qs_team_show(qs_team *m, const qs_job *job)
{
    size_t piece = (job->units + 65534) / 65535, n = (job->units + piece - 1) / piece;
    size_t bite = 1 + QS_BITE_COST / (job->cost * piece + 1), grain = job->grain / piece;
    uint32_t number = m->number + 1;
    QS_PUT(&m->job.task, job->task);
    QS_PUT(&m->job.arg, job->arg);
    QS_PUT(&m->job.units, job->units);
    QS_PUT(&m->piece, piece);
    QS_PUT(&m->bite, bite < grain ? grain : bite);
    QS_PUT(&m->n_pieces, n);
    QS_PUT(&m->done, 0);
    for (size_t i = 0, at = 0; i < m->n_shares; i++) {
        size_t end = n * (i + 1) / m->n_shares;
        QS_SHOW(&m->share[i].word, (uint64_t)number << 32 | (uint64_t)at << 16 | (uint64_t)end);
        at = end;
    }
    QS_SHOW(&m->number, number);
}

/* Takes up to `bite` pieces of job `number` for thread t: pieces *first .. *first + returned - 1. */
static size_t qs_team_take(qs_team *m, uint32_t number, size_t bite, size_t t, size_t *first)
{
    for (size_t i = 0; i < m->n_shares; i++) {
        uint64_t *at = &m->share[(t + i) % m->n_shares].word, w = QS_SEE(at);
        for (;;) {
            size_t lo = (size_t)(w >> 16 & 65535), hi = (size_t)(w & 65535), n;
            if (w >> 32 != number || lo >= hi) break;
            n = qs_min(bite, hi - lo);
            *first = i ? hi - n : lo;
            if (__atomic_compare_exchange_n(at, &w, i ? w - n : w + ((uint64_t)n << 16), 0, __ATOMIC_ACQ_REL,
                                            __ATOMIC_ACQUIRE))
                return n;
        }
    }
    return 0;
}

/* Works on the present job until nothing of it is left to take. Returns 1 to the thread that made it complete. What was
 * read of a job that ended meanwhile is never used: then there is nothing of its number to take. */
static int qs_team_work(qs_team *m, uint32_t number, size_t t)
{
    qs_task task = QS_GET(&m->job.task);
    void *arg = QS_GET(&m->job.arg);
    size_t units = QS_GET(&m->job.units), piece = QS_GET(&m->piece), bite = QS_GET(&m->bite);
    size_t all = QS_GET(&m->n_pieces), first, n;
    while ((n = qs_team_take(m, number, bite, t, &first)) != 0) {
        task(arg, first * piece, qs_min((first + n) * piece, units), t);
        if (__atomic_add_fetch(&m->done, n, __ATOMIC_ACQ_REL) == all) return 1;
    }
    return 0;
}

static void qs_team_member(qs_team *m, size_t t)
{
    uint32_t last = 0;
    unsigned idle = 0;
    qs_job job;
    while (!QS_SEE(&m->over)) {
        uint32_t number = QS_SEE(&m->number);
        if (number == last) {
            qs_idle(&idle);
            continue;
        }
        last = number;
        idle = 0;
        while (qs_team_work(m, last, t)) {
            memset(&job, 0, sizeof job);
            if (!qs_next_large(m->next, m->state, t, &job)) {
                QS_SHOW(&m->over, 1);
                return;
            }
            qs_team_show(m, &job);
            last = QS_GET(&m->number);
        }
    }
}

/* Runs all jobs on up to n_threads threads. What is small before the first large job costs no team. */
static void qs_team_run(int n_threads, qs_next next, void *state)
{
    qs_job job;
    memset(&job, 0, sizeof job);
    if (n_threads < 2) {
        if (next(state, &job)) qs_run_alone(next, state, &job);
        return;
    }
    if (!qs_next_large(next, state, 0, &job)) return;
    qs_team m;
    memset(&m, 0, sizeof m);
    m.next = next;
    m.state = state;
    m.n_shares = qs_min((size_t)n_threads, QS_SHARES);
    qs_team_show(&m, &job);
#pragma omp parallel num_threads(n_threads)
    {
        qs_fp_state fp = qs_fp_enter();
        qs_team_member(&m, (size_t)omp_get_thread_num());
        qs_fp_leave(fp);
    }
}

#else

static void qs_team_run(int n_threads, qs_next next, void *state)
{
    qs_job job;
    (void)n_threads;
    memset(&job, 0, sizeof job);
    if (next(state, &job)) qs_run_alone(next, state, &job);
}

#endif

static int qs_next_only(void *state, qs_job *job)
{
    qs_job *only = state;
    *job = *only;
    only->task = NULL;
    return job->task != NULL;
}

/* One job. */
static void qs_parallel(int n_threads, size_t units, size_t cost, qs_task task, void *arg)
{
    qs_job only = {task, arg, units, cost, 0};
    qs_team_run(n_threads, qs_next_only, &only);
}

/* ===================================================================================================
 * 5 Checksum: XXH64 (public)
 *
 * Seed 0, streaming. Source: the XXH64 algorithm description (xxHash specification, section "XXH64").
 * =================================================================================================== */

#define QS_XXP1 0x9E3779B185EBCA87u
#define QS_XXP2 0xC2B2AE3D27D4EB4Fu
#define QS_XXP3 0x165667B19E3779F9u
#define QS_XXP4 0x85EBCA77C2B2AE63u
#define QS_XXP5 0x27D4EB2F165667C5u

static uint64_t qs_rotl(uint64_t v, int n) { return (v << n) | (v >> (64 - n)); }

static uint64_t qs_load64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

static uint32_t qs_load32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

static uint64_t qs_xx_round(uint64_t acc, uint64_t lane)
{
    return qs_rotl(acc + lane * QS_XXP2, 31) * QS_XXP1;
}

void qsae_hash_begin(qsae_hash *h)
{
    memset(h, 0, sizeof *h);
    h->acc[0] = QS_XXP1 + QS_XXP2;
    h->acc[1] = QS_XXP2;
    h->acc[2] = 0;
    h->acc[3] = 0 - QS_XXP1;
}

void qsae_hash_add(qsae_hash *h, const void *data, size_t size)
{
    if (!size) return;
    const uint8_t *p = data;
    size_t have = (size_t)(h->total % 32);
    h->total += size;
    if (have) {
        size_t n = qs_min(32 - have, size);
        memcpy(h->part + have, p, n);
        p += n;
        size -= n;
        if (have + n < 32) return;
        for (int i = 0; i < 4; i++) h->acc[i] = qs_xx_round(h->acc[i], qs_load64(h->part + 8 * i));
    }
    uint64_t a = h->acc[0], b = h->acc[1], c = h->acc[2], d = h->acc[3];
    for (; size >= 32; p += 32, size -= 32) {
        a = qs_xx_round(a, qs_load64(p));
        b = qs_xx_round(b, qs_load64(p + 8));
        c = qs_xx_round(c, qs_load64(p + 16));
        d = qs_xx_round(d, qs_load64(p + 24));
    }
    h->acc[0] = a;
    h->acc[1] = b;
    h->acc[2] = c;
    h->acc[3] = d;
    memcpy(h->part, p, size);
}

uint64_t qsae_hash_end(const qsae_hash *h)
{
    uint64_t v = QS_XXP5;
    if (h->total >= 32) {
        v = qs_rotl(h->acc[0], 1) + qs_rotl(h->acc[1], 7) + qs_rotl(h->acc[2], 12) +
            qs_rotl(h->acc[3], 18);
        for (int i = 0; i < 4; i++) v = (v ^ qs_xx_round(0, h->acc[i])) * QS_XXP1 + QS_XXP4;
    }
    v += h->total;
    const uint8_t *p = h->part, *end = h->part + h->total % 32;
    for (; end - p >= 8; p += 8) v = qs_rotl(v ^ qs_xx_round(0, qs_load64(p)), 27) * QS_XXP1 + QS_XXP4;
    for (; end - p >= 4; p += 4)
        v = qs_rotl(v ^ (qs_load32(p) * QS_XXP1), 23) * QS_XXP2 + QS_XXP3;
    for (; p < end; p++) v = qs_rotl(v ^ (*p * QS_XXP5), 11) * QS_XXP1;
    v = (v ^ (v >> 33)) * QS_XXP2;
    v = (v ^ (v >> 29)) * QS_XXP3;
    return v ^ (v >> 32);
}

static uint64_t qs_hash(const void *data, size_t size)
{
    qsae_hash h;
    qsae_hash_begin(&h);
    qsae_hash_add(&h, data, size);
    return qsae_hash_end(&h);
}

/* ===================================================================================================
 * 6 Numerics (private)
 *
 * The contract. Every output is one fixed sequence of IEEE float32 operations, whatever computes it:
 *
 *   matrix product   y[r] = sum over groups of 256 consecutive k, in order, each added by y = y + c from
 *                    y = +0; c is one chain c = fma(w[r][k], x[k], c) from +0. A lane is an output row.
 *   integer weights  see "integer products" in section 7: an exact sum and one fma per 256 k.
 *   SAE row          16 chains, chain j = fma over k = j, j+16, ... from +0; then pairwise:
 *                    j + (j+8), j + (j+4), j + (j+2), 0 + 1.
 *   y += a d         y[j] = fma(a, d[j], y[j]).
 *   mean square      in double: 8 chains over j, j+8, ... of exact squares, then j+4, j+2, j+1.
 *   attention        positions in tiles of 256; scores and weighted values are matrix products over a tile;
 *                    maximum, sum (16 chains and the tree above) and values of tile after tile joined by
 *                    acc = acc * exp(old - new) + part.
 *                    Rows that share a tile count positions they do not see with probability 0, which leaves their
 *                    bits alone where the values are finite; where not, each row goes by itself.
 *   elsewhere        plain float operations in the order written, never fused.
 *
 * Threads split outputs, never a sum. Padding is zero and belongs to the chain.
 * =================================================================================================== */

static float qs_bf16_f32(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* Rounded to nearest even; NaN stays NaN. */
static uint16_t qs_f32_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7FFFu + (u >> 16 & 1u)) >> 16);
}

static float qs_f16_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, e = h >> 10 & 31u, m = h & 1023u, u;
    float f;
    if (e == 0) {
        f = (float)m * (1.0f / 16777216.0f);
        return sign ? -f : f;
    }
    if (e == 31) u = sign | 0x7F800000u | (m ? m << 13 | 0x400000u : 0);
    else u = sign | (e + 112) << 23 | m << 13;
    memcpy(&f, &u, 4);
    return f;
}

/* Rounded to nearest even, 65520 and more to infinity; NaN stays NaN. */
static uint16_t qs_f32_f16(float f)
{
    uint32_t u, a;
    memcpy(&u, &f, 4);
    uint16_t sign = (uint16_t)(u >> 16 & 0x8000u);
    a = u & 0x7FFFFFFFu;
    if (a > 0x7F800000u) return (uint16_t)(sign | 0x7E00u);
    if (a >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u);
    if (a < 0x38800000u) { /* a multiple of 2^-24, which is the last place of 0.5 */
        float half = 0.5f, sum;
        memcpy(&sum, &a, 4);
        sum = sum + half;
        memcpy(&a, &sum, 4);
        return (uint16_t)(sign | (a - 0x3F000000u));
    }
    return (uint16_t)(sign | ((a + 0xFFFu + (a >> 13 & 1u) - 0x38000000u) >> 13));
}

static int qs_finite(float x) { return x - x == 0.0f; }

static int qs_all_finite(const float *x, size_t n)
{
    float zero = 0.0f; /* x - x is 0, or NaN for NaN and Inf: one sum finds any of them */
    for (size_t j = 0; j < n; j++) zero += x[j] - x[j];
    return zero == 0.0f;
}

/* exp(x) to about 1 ulp in plain multiplies and adds, so that vector code repeats it exactly. x < -87 gives 0
 * (a softmax tail, kept away from denormals), x > 88 Inf, NaN NaN. Coefficients: Cephes expf. */
static float qs_exp(float x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    float n = (x * 1.44269504088896341f + magic) - magic;
    float r = (x - n * 0.693359375f) - n * -2.12194440e-4f; /* ln 2 in two parts, n * the first is exact */
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * (r * r) + r) + 1.0f;
    if (!(x >= -87.0f)) return x != x ? x : 0.0f;
    if (x > 88.0f) return INFINITY;
    uint32_t u;
    memcpy(&u, &p, 4);
    u += (uint32_t)(int32_t)n << 23;
    memcpy(&p, &u, 4);
    return p;
}

/* sin and cos of 0 <= a < 2^21, in double, for RoPE; NaN outside, where only a file that was opened without
 * verification can lead. The quarter turns are subtracted in two parts, the first
 * of 33 bits, so that n * it is exact; then Taylor to below 1e-16 on |r| <= pi/4. */
static void qs_sincos(double a, double *s, double *c)
{
    const double magic = 6755399441055744.0; /* 1.5 * 2^52 */
    if (!(a >= 0 && a < 2097152.0)) {
        *s = *c = NAN;
        return;
    }
    double n = (a * 0.63661977236758134308 + magic) - magic;
    double r = (a - n * 1.57079632673412561417e+00) - n * 6.07710050650619224932e-11;
    double q = r * r;
    double sr = r + r * q * (-1.0 / 6 + q * (1.0 / 120 + q * (-1.0 / 5040 + q * (1.0 / 362880 +
                q * (-1.0 / 39916800 + q * (1.0 / 6227020800.0 + q * (-1.0 / 1307674368000.0)))))));
    double cr = 1.0 + q * (-0.5 + q * (1.0 / 24 + q * (-1.0 / 720 + q * (1.0 / 40320 +
                q * (-1.0 / 3628800 + q * (1.0 / 479001600.0 + q * (-1.0 / 87178291200.0 +
                q * (1.0 / 20922789888000.0))))))));
    switch ((int)((int64_t)n & 3)) {
    case 0: *s = sr; *c = cr; break;
    case 1: *s = cr; *c = -sr; break;
    case 2: *s = -sr; *c = -cr; break;
    default: *s = -cr; *c = sr; break;
    }
}

/* sum of a[j] b[j] over 0..n, in double, where a product of two float32 is exact: 8 chains and the tree */
static double qs_dot_double(const float *a, const float *b, size_t n)
{
    double c[8] = {0};
    size_t j = 0;
    for (; j + 8 <= n; j += 8)
        for (size_t i = 0; i < 8; i++) c[i] += (double)a[j + i] * (double)b[j + i];
    for (size_t i = 0; j < n; j++, i++) c[i] += (double)a[j] * (double)b[j];
    for (size_t s = 4; s > 0; s /= 2)
        for (size_t i = 0; i < s; i++) c[i] += c[i + s];
    return c[0];
}

/* sum of x[0..n): 16 chains and the tree */
static float qs_sum16(const float *x, size_t n)
{
    float c[16] = {0};
    size_t j = 0;
    for (; j + 16 <= n; j += 16)
        for (size_t i = 0; i < 16; i++) c[i] += x[j + i];
    for (size_t i = 0; j < n; j++, i++) c[i] += x[j];
    for (size_t s = 8; s > 0; s /= 2)
        for (size_t i = 0; i < s; i++) c[i] += c[i + s];
    return c[0];
}

/* largest of x[0..n), n >= 1; a NaN is passed over here and comes back through exp */
static float qs_max(const float *x, size_t n)
{
    float m[8];
    for (size_t i = 0; i < 8; i++) m[i] = -INFINITY;
    size_t j = 0;
    for (; j + 8 <= n; j += 8)
        for (size_t i = 0; i < 8; i++) m[i] = x[j + i] > m[i] ? x[j + i] : m[i];
    for (; j < n; j++) m[0] = x[j] > m[0] ? x[j] : m[0];
    for (size_t i = 1; i < 8; i++) m[0] = m[i] > m[0] ? m[i] : m[0];
    return m[0];
}

/* y = w * x / sqrt(mean(x^2) + eps), all [n]; x may be y. Source: Qwen3RMSNorm: statistics in float32, the
 * normalised value is rounded before the weight is applied. */
static void qs_rms_norm(const float *x, const float *w, size_t n, float eps, float *y)
{
    float mean = (float)(qs_dot_double(x, x, n) / (double)n);
    float inv = 1.0f / sqrtf(mean + eps);
    for (size_t j = 0; j < n; j++) y[j] = w[j] * (x[j] * inv);
}

/* ===================================================================================================
 * 7 Kernels: portable reference (private)
 *
 * The readable version of the five loops that take the time, one table of them per instruction set. The
 * vector versions in 9-11 must give the same bits for any shape (tests/test_kernels.c).
 * =================================================================================================== */

/* 256 values of one row of x as integers X = 256 p1 + p2, and what kernels need of them: see "integer
 * products" below. */
#define QS_GROUP 256

typedef struct qs_group {
    int8_t p1[QS_GROUP], p2[QS_GROUP];
    int16_t pairs[QS_GROUP]; /* of four X: 0, 2, 1, 3 */
    int32_t sums[8];         /* of 32 X each */
    int32_t sum;
    float scale;             /* x = scale X */
    int32_t zero[6];
} qs_group;

/* A table's entries by weight type: index QSAE_TYPE_F32 or QSAE_TYPE_BF16.
 *
 * mm: y[t][r] = sum_k w[r][k] x[t][k] for nb blocks of 16 rows and nt tokens
 *   w  nb blocks, ws bytes apart; f32: [kp][16], bf16: [kp/2][16][2] (kp even)
 *   x  [nt, kp], rows xs apart    y [nt, 16 nb], rows ys apart, overwritten    no overlap
 * dots: z[t][r] = w[r] . x[t] by 16 chains, for nr rows and nt tokens
 *   w  [nr, n], rows row_bytes apart, n a multiple of 16    x [nt, n], rows xs apart    z [nt, nr], zs apart
 * axpy: y += a w, all [n], n a multiple of 16
 * silu_mul: g = g / (1 + exp(-g)) * u, all [n]
 * soften: s = exp(scale s - max), [n], where max is the largest of scale s and old; returns their sum. s has room
 *   for a multiple of 16
 * widen: 16-bit floats to f32, n a multiple of 16; [0] f16, [1] bf16
 * pack: x [n] to integers, the last group filled up with zeros; group g to out[g * step]
 * mmq: as mm for integer weights, [0] Q8 and [1] Q4; x [ng, nt] groups: those of all tokens side by side */
typedef struct qs_kernels {
    void (*mm[3])(const void *w, size_t ws, size_t nb, size_t kp, const float *x, size_t xs, size_t nt,
                  float *y, size_t ys);
    void (*dots[3])(const void *w, size_t row_bytes, size_t nr, size_t n, const float *x, size_t xs,
                    size_t nt, float *z, size_t zs);
    void (*axpy[3])(float a, const void *w, size_t n, float *y);
    void (*silu_mul)(float *g, const float *u, size_t n);
    float (*soften)(float *s, size_t n, float scale, float *max, float old);
    void (*widen[2])(const uint16_t *h, size_t n, float *x);
    void (*pack)(const float *x, size_t n, qs_group *out, size_t step);
    void (*mmq[2])(const void *w, size_t ws, size_t nb, size_t ng, const qs_group *x, size_t nt, float *y,
                   size_t ys);
} qs_kernels;

/* one token, one block, one group of k: c[r] = chain over k in [g, end) */
static void qs_chain_f32(const float *w, size_t g, size_t end, const float *x, float *c)
{
    for (size_t k = g; k < end; k++)
        for (size_t r = 0; r < 16; r++) c[r] = fmaf(w[16 * k + r], x[k], c[r]);
}

static void qs_chain_bf16(const uint16_t *w, size_t g, size_t end, const float *x, float *c)
{
    for (size_t k = g; k < end; k++)
        for (size_t r = 0; r < 16; r++)
            c[r] = fmaf(qs_bf16_f32(w[k / 2 * 32 + 2 * r + k % 2]), x[k], c[r]);
}

static void qs_mm_scalar(int type, const void *w, size_t ws, size_t nb, size_t kp, const float *x,
                         size_t xs, size_t nt, float *y, size_t ys)
{
    for (size_t b = 0; b < nb; b++) {
        const void *wb = (const char *)w + b * ws;
        for (size_t t = 0; t < nt; t++) {
            float *yt = y + t * ys + 16 * b;
            for (size_t r = 0; r < 16; r++) yt[r] = 0.0f;
            for (size_t g = 0; g < kp; g += 256) {
                size_t end = qs_min(kp, g + 256);
                float c[16] = {0};
                if (type == QSAE_TYPE_F32) qs_chain_f32(wb, g, end, x + t * xs, c);
                else qs_chain_bf16(wb, g, end, x + t * xs, c);
                for (size_t r = 0; r < 16; r++) yt[r] = yt[r] + c[r];
            }
        }
    }
}

static void qs_mm_f32_scalar(const void *w, size_t ws, size_t nb, size_t kp, const float *x, size_t xs,
                             size_t nt, float *y, size_t ys)
{
    qs_mm_scalar(QSAE_TYPE_F32, w, ws, nb, kp, x, xs, nt, y, ys);
}

static void qs_mm_bf16_scalar(const void *w, size_t ws, size_t nb, size_t kp, const float *x, size_t xs,
                              size_t nt, float *y, size_t ys)
{
    qs_mm_scalar(QSAE_TYPE_BF16, w, ws, nb, kp, x, xs, nt, y, ys);
}

/* the 16 chains' values to one: j + (j+8), j + (j+4), j + (j+2), 0 + 1 */
static float qs_tree16(float *c)
{
    for (size_t s = 8; s > 0; s /= 2)
        for (size_t j = 0; j < s; j++) c[j] = c[j] + c[j + s];
    return c[0];
}

static void qs_dots_f32_scalar(const void *w, size_t row_bytes, size_t nr, size_t n, const float *x,
                               size_t xs, size_t nt, float *z, size_t zs)
{
    for (size_t t = 0; t < nt; t++)
        for (size_t r = 0; r < nr; r++) {
            const float *wr = (const void *)((const char *)w + r * row_bytes);
            float c[16] = {0};
            for (size_t k = 0; k < n; k += 16)
                for (size_t j = 0; j < 16; j++) c[j] = fmaf(wr[k + j], x[t * xs + k + j], c[j]);
            z[t * zs + r] = qs_tree16(c);
        }
}

static void qs_dots_bf16_scalar(const void *w, size_t row_bytes, size_t nr, size_t n, const float *x,
                                size_t xs, size_t nt, float *z, size_t zs)
{
    for (size_t t = 0; t < nt; t++)
        for (size_t r = 0; r < nr; r++) {
            const uint16_t *wr = (const void *)((const char *)w + r * row_bytes);
            float c[16] = {0};
            for (size_t k = 0; k < n; k += 16)
                for (size_t j = 0; j < 16; j++)
                    c[j] = fmaf(qs_bf16_f32(wr[k + j]), x[t * xs + k + j], c[j]);
            z[t * zs + r] = qs_tree16(c);
        }
}

static void qs_axpy_f32_scalar(float a, const void *w, size_t n, float *y)
{
    const float *v = w;
    for (size_t j = 0; j < n; j++) y[j] = fmaf(a, v[j], y[j]);
}

static void qs_axpy_bf16_scalar(float a, const void *w, size_t n, float *y)
{
    const uint16_t *v = w;
    for (size_t j = 0; j < n; j++) y[j] = fmaf(a, qs_bf16_f32(v[j]), y[j]);
}

static void qs_silu_mul_scalar(float *g, const float *u, size_t n)
{
    for (size_t j = 0; j < n; j++) g[j] = (g[j] / (1.0f + qs_exp(-g[j]))) * u[j];
}

static float qs_soften_scalar(float *s, size_t n, float scale, float *max, float old)
{
    for (size_t j = 0; j < n; j++) s[j] = s[j] * scale;
    float m = qs_max(s, n);
    if (old > m) m = old;
    for (size_t j = 0; j < n; j++) s[j] = qs_exp(s[j] - m);
    *max = m;
    return qs_sum16(s, n);
}

static void qs_widen_f16_scalar(const uint16_t *h, size_t n, float *x)
{
    for (size_t j = 0; j < n; j++) x[j] = qs_f16_f32(h[j]);
}

static void qs_widen_bf16_scalar(const uint16_t *h, size_t n, float *x)
{
    for (size_t j = 0; j < n; j++) x[j] = qs_bf16_f32(h[j]);
}

/* ---- integer products
 *
 * Weights are integers w in -128..127 with one scale a per row and group of 256 k. x becomes integers X of 16
 * bits with one scale b per token and group: b = max|x| / 32639, X = x * (32639 / max|x|) rounded to nearest
 * even. Then per group, in order:
 *
 *     S = sum of w X, exact in 32 bits (at most 128 * 32639 * 256)        y = fma((float)S, a b, y), from y = +0
 *
 * Whatever adds up S gets the same S. X = 256 p1 + p2 with both in -128..127, for units that multiply bytes.
 * A group whose 32639 / max|x| overflows is zero; one with a value that is not finite has scale NaN and X = 0.
 *
 * A superblock is 16 rows x 256 k, then the rows' scales, 16 f32: Q8, 64 lines of 16 rows x 4 k bytes; Q4, see
 * qs_unpack_scalar, which makes a Q8 superblock of it: exactly the same integers. */

#define QS_Q8_BYTES 4160
#define QS_Q4_BYTES 2176

static void qs_put_group(qs_group *g, size_t j, int32_t v)
{
    static const uint8_t place[4] = {0, 2, 1, 3};
    int32_t p1 = (v + 128 + 32768) / 256 - 128; /* floor((v + 128) / 256) */
    g->p1[j] = (int8_t)p1;
    g->p2[j] = (int8_t)(v - 256 * p1);
    g->pairs[j / 4 * 4 + place[j % 4]] = (int16_t)v;
    g->sums[j / 32] += v;
    g->sum += v;
}

/* x [n], n <= 256 */
static void qs_pack_group(const float *x, size_t n, qs_group *g)
{
    const float magic = 12582912.0f;
    float max = 0.0f;
    memset(g, 0, sizeof *g);
    if (!qs_all_finite(x, n)) {
        g->scale = NAN;
        return;
    }
    for (size_t j = 0; j < n; j++) max = fabsf(x[j]) > max ? fabsf(x[j]) : max;
    float inv = max > 0.0f ? 32639.0f / max : INFINITY;
    if (!qs_finite(inv)) return;
    g->scale = max / 32639.0f;
    for (size_t j = 0; j < n; j++) {
        float v = x[j] * inv; /* at most half an ulp beyond 32639, which rounds to it */
        qs_put_group(g, j, (int32_t)((v + magic) - magic));
    }
}

static void qs_pack_scalar(const float *x, size_t n, qs_group *out, size_t step)
{
    for (size_t at = 0; at < n; at += QS_GROUP, out += step)
        qs_pack_group(x + at, qs_min(n - at, QS_GROUP), out);
}

/* A Q4 superblock: 32 lines of 16 rows x 8 k, in byte 4 r + j the q + 8 of row r, k = 8 line + j (low half) and 8 line
 * + 4 + j; a line of 16 u32, nibble i of row r is |m| of its i-th 32 k; the scales' line, whose u32 are the bits of a
 * float but for the low 8: bit i is 1 where that m is negative. w = m q. */
#define QS_Q4_SIGNS 255u

/* The i-th m of row r */
static int qs_q4_multiplier(const uint8_t *w, size_t r, size_t i)
{
    uint32_t nibbles, signs;
    memcpy(&nibbles, w + 2048 + 4 * r, 4);
    memcpy(&signs, w + 2112 + 4 * r, 4);
    int m = (int)(nibbles >> 4 * i & 15);
    return signs >> i & 1 ? -m : m;
}

static void qs_unpack_scalar(const uint8_t *w, uint8_t *out)
{
    for (size_t i = 0; i < 2048; i++) {
        size_t line = i / 64;
        int m = qs_q4_multiplier(w, i % 64 / 4, line / 4);
        out[line * 128 + i % 64] = (uint8_t)(m * ((w[i] & 15) - 8));
        out[line * 128 + 64 + i % 64] = (uint8_t)(m * ((w[i] >> 4) - 8));
    }
    for (size_t r = 0; r < 16; r++) {
        uint32_t scale;
        memcpy(&scale, w + 2112 + 4 * r, 4);
        scale &= ~QS_Q4_SIGNS;
        memcpy(out + 4096 + 4 * r, &scale, 4);
    }
}

/* one superblock, one token */
static void qs_mmq_group(const uint8_t *w, const qs_group *x, float *y)
{
    int32_t sum[16] = {0};
    const float *a = (const void *)(w + 4096);
    for (size_t k = 0; k < QS_GROUP; k++)
        for (size_t r = 0; r < 16; r++)
            sum[r] += (int8_t)w[k / 4 * 64 + 4 * r + k % 4] * (256 * x->p1[k] + x->p2[k]);
    for (size_t r = 0; r < 16; r++) y[r] = fmaf((float)sum[r], a[r] * x->scale, y[r]);
}

static void qs_mmq_q8_scalar(const void *w, size_t ws, size_t nb, size_t ng, const qs_group *x, size_t nt,
                             float *y, size_t ys)
{
    for (size_t b = 0; b < nb; b++)
        for (size_t t = 0; t < nt; t++) {
            memset(y + t * ys + 16 * b, 0, 16 * sizeof *y);
            for (size_t g = 0; g < ng; g++)
                qs_mmq_group((const uint8_t *)w + b * ws + g * QS_Q8_BYTES, x + g * nt + t, y + t * ys + 16 * b);
        }
}

static void qs_mmq_q4_scalar(const void *w, size_t ws, size_t nb, size_t ng, const qs_group *x, size_t nt,
                             float *y, size_t ys)
{
    float q8[QS_Q8_BYTES / 4]; /* floats for their alignment */
    for (size_t b = 0; b < nb; b++) {
        for (size_t t = 0; t < nt; t++) memset(y + t * ys + 16 * b, 0, 16 * sizeof *y);
        for (size_t g = 0; g < ng; g++) {
            qs_unpack_scalar((const uint8_t *)w + b * ws + g * QS_Q4_BYTES, (uint8_t *)q8);
            for (size_t t = 0; t < nt; t++)
                qs_mmq_group((const uint8_t *)q8, x + g * nt + t, y + t * ys + 16 * b);
        }
    }
}

static const qs_kernels QS_KERNELS_SCALAR = {
    {NULL, qs_mm_f32_scalar, qs_mm_bf16_scalar},
    {NULL, qs_dots_f32_scalar, qs_dots_bf16_scalar},
    {NULL, qs_axpy_f32_scalar, qs_axpy_bf16_scalar},
    qs_silu_mul_scalar,
    qs_soften_scalar,
    {qs_widen_f16_scalar, qs_widen_bf16_scalar},
    qs_pack_scalar,
    {qs_mmq_q8_scalar, qs_mmq_q4_scalar},
};

/* ==================================================================================
 * 8 Kernels: what the instruction sets share (private)
 * ================================================================================== */

/* clang has __GNUC__ as well. gcc for Windows does not align the stack for ymm, zmm. */
#if defined(__GNUC__) && defined(__x86_64__) && (!defined(_WIN32) || defined(__clang__))
#if !defined(QSAE_NO_AVX2)
#define QS_HAVE_AVX2 1
#endif
#if !defined(QSAE_NO_AVX512)
#define QS_HAVE_AVX512 1
#endif
#endif
#if defined(__GNUC__) && defined(__aarch64__) && !defined(QSAE_NO_NEON)
#define QS_HAVE_NEON 1
#endif

#if defined(QS_HAVE_AVX2) || defined(QS_HAVE_AVX512) || defined(QS_HAVE_NEON)

/* Loops with constant bounds over a tile must disappear: the sums live in registers. */
#if defined(__clang__)
#if __has_feature(undefined_behavior_sanitizer) /* its checks would grow without end */
#define QS_UNROLL
#else
#define QS_UNROLL _Pragma("clang loop unroll(full)")
#endif
#else
#define QS_UNROLL _Pragma("GCC unroll 32")
#endif

#define QS_TILE_TOKENS ((size_t)6)  /* at most so many tokens in a tile */
#define QS_CHAIN ((size_t)256)      /* mm: k of one FMA chain, as in qs_mm_f32_scalar */
#define QS_DOTS_PANEL ((size_t)32)  /* dots: rows in the L2 cache while tokens pass */
#define QS_DOTS_PIECE ((size_t)512) /* dots: values of a row in the L1 cache */

/* Asks for a line, into L2. It may lie outside of the weights: nothing is read then. */
#define QS_FETCH(p, ahead)                                                             \
    __builtin_prefetch((const void *)((uintptr_t)(p) + (ahead)), 0, 2)

/* For the compiler alone: what is loaded through the pointers a and b from here on is
 * loaded when the sum is there. Else clang loads early and then spills the sums. */
#define QS_AFTER(sum, a, b) __asm__("" : "+r"(a), "+r"(b), sum)

/* A tile works on a constant number of blocks (rows) and of tokens; their sums stay in
 * registers.
 *   mm    one group of n <= 256 k: y = y + chain
 *   dots  whole rows of n values: y = tree
 * For each line that it reads it fetches the one `ahead` bytes further on. */
#define QS_TILE_ARGS                                                                   \
    const char *w, size_t ws, size_t n, const float *x, size_t xs, float *y,           \
        size_t ys, size_t ahead
typedef void qs_tile(QS_TILE_ARGS);

/* Tiles of `size` blocks (rows) by number of tokens 1..6; NULL: none so large */
typedef struct qs_level {
    size_t size;
    qs_tile *tile[QS_TILE_TOKENS + 1];
} qs_level;

/* Tokens of the next tile. All tiles are of nearly equal size: 7 = 4 + 3, not 6 + 1. */
static size_t qs_tile_tokens(size_t left)
{
    size_t tiles = (left + QS_TILE_TOKENS - 1) / QS_TILE_TOKENS;
    return (left + tiles - 1) / tiles;
}

/* One panel of blocks, whole k. The weights of a group (blocks x 256 k) stay in the
 * cache while the tokens pass. The first tile of a group fetches the next group; the
 * last group fetches the first one of the next panel. */
static void qs_mm_panel(const qs_level *level, unsigned shift, const char *w, size_t ws,
                        size_t kp, const float *x, size_t xs, size_t nt, float *y,
                        size_t ys)
{
    for (size_t t = 0; t < nt; t++) memset(y + t * ys, 0, level->size * 16 * sizeof *y);
    for (size_t g = 0; g < kp; g += QS_CHAIN) {
        size_t n = kp - g < QS_CHAIN ? kp - g : QS_CHAIN, at = g * 64 >> shift, tt;
        size_t ahead = g + n < kp ? QS_CHAIN * 64 >> shift : level->size * ws - at;
        for (size_t t = 0; t < nt; t += tt, ahead = 0) {
            tt = qs_tile_tokens(nt - t);
            level->tile[tt](w + at, ws, n, x + t * xs + g, xs, y + t * ys, ys, ahead);
        }
    }
}

/* mm of all ISAs. shift 0: f32, a line (64 bytes) is one k; 1: bf16, a line is two k */
static void qs_mm_drive(const qs_level *level, unsigned shift, const void *w, size_t ws,
                        size_t nb, size_t kp, const float *x, size_t xs, size_t nt,
                        float *y, size_t ys)
{
    if (nt == 0) return;
    const char *wb = (const char *)w;
    size_t tt = qs_tile_tokens(nt), b = 0; /* tt: the largest tile */
    for (; b < nb; level++) {
        if (!level->tile[tt]) continue;
        for (; b + level->size <= nb; b += level->size)
            qs_mm_panel(level, shift, wb + b * ws, ws, kp, x, xs, nt, y + 16 * b, ys);
    }
}

/* dots of all ISAs, by panels of rows: one pass over the tokens serves many rows */
static void qs_dots_drive(const qs_level *levels, const void *w, size_t ws, size_t nr,
                          size_t n, const float *x, size_t xs, size_t nt, float *z,
                          size_t zs)
{
    const char *wb = (const char *)w;
    for (size_t r0 = 0; r0 < nr; r0 += QS_DOTS_PANEL) {
        size_t r1 = nr - r0 < QS_DOTS_PANEL ? nr : r0 + QS_DOTS_PANEL, tt;
        for (size_t t = 0; t < nt; t += tt) {
            const qs_level *l = levels;
            tt = qs_tile_tokens(nt - t);
            for (size_t r = r0; r < r1; l++) {
                if (!l->tile[tt]) continue;
                for (; r + l->size <= r1; r += l->size)
                    l->tile[tt](wb + r * ws, ws, n, x + t * xs, xs, z + t * zs + r, zs,
                                l->size * ws);
            }
        }
    }
}

/* Integer products. A tile takes one group of a constant number of blocks and tokens: y += a b S. `ahead` as
 * above. Weights come to it as they are in the file; or as Q8, made of Q4; or, if so many tokens share the work
 * of making them, as 16-bit numbers: a wide superblock is 128 lines of 16 rows x 2 k in the order of qs_group.pairs,
 * then the scales. */
#define QS_QTILE_TOKENS ((size_t)6)
#define QS_WIDE_BYTES ((size_t)8256)
#define QS_QROOM (2 * QS_WIDE_BYTES) /* of the blocks that are made together: they stay in the L1 cache */
#define QS_QTILE_ARGS                                                                  \
    const char *w, size_t ws, const qs_group *x, float *y, size_t ys, size_t ahead
typedef void qs_qtile(QS_QTILE_ARGS);
typedef void qs_qmake(const char *w, char *out, size_t ahead);

typedef struct qs_qlevel {
    size_t size;
    qs_qtile *tile[QS_QTILE_TOKENS + 1];
} qs_qlevel;

/* Tiles for one form of the weights: they end with 1 block. tokens: the largest. */
typedef struct qs_qtiles {
    size_t tokens;
    qs_qlevel level[4];
} qs_qtiles;

/* What an ISA has for integer weights. */
typedef struct qs_qset {
    qs_qtiles q8;      /* all numbers of tokens */
    qs_qtiles q4;      /* one token straight from Q4; or tokens 0: none */
    qs_qmake *unpack;  /* Q4 superblock to Q8 */
    size_t wide_from;  /* as many tokens or more: by way of 16-bit numbers; 0: never */
    qs_qtiles wide;
    qs_qmake *widen[2]; /* Q8, Q4 superblock to a wide one */
} qs_qset;

/* How a call goes about it: the tiles, and what makes their form of the weights, `made` bytes a superblock; or NULL */
typedef struct qs_qway {
    const qs_qtiles *tiles;
    qs_qmake *make;
    size_t made;
} qs_qway;

static qs_qway qs_mmq_way(const qs_qset *set, int q4, size_t nt)
{
    qs_qway way = {&set->q8, NULL, QS_Q8_BYTES};
    if (set->wide_from && nt >= set->wide_from) {
        way.tiles = &set->wide;
        way.make = set->widen[q4];
        way.made = QS_WIDE_BYTES;
    } else if (q4 && nt <= set->q4.tokens) {
        way.tiles = &set->q4;
    } else if (q4) {
        way.make = set->unpack;
    }
    return way;
}

static void qs_mmq_tokens(const qs_qlevel *level, size_t most, const char *w, size_t ws,
                          const qs_group *x, size_t nt, float *y, size_t ys, size_t ahead)
{
    for (size_t t = 0, tt; t < nt; t += tt, ahead = 0) {
        size_t tiles = (nt - t + most - 1) / most;
        tt = (nt - t + tiles - 1) / tiles;
        level->tile[tt](w, ws, x + t, y + t * ys, ys, ahead);
    }
}

/* One panel of blocks, all groups. */
static void qs_mmq_panel(const qs_qway *way, const qs_qlevel *level, size_t super, const char *w,
                         size_t ws, size_t ng, const qs_group *x, size_t nt, float *y, size_t ys)
{
    __attribute__((aligned(64))) char room[QS_QROOM];
    for (size_t t = 0; t < nt; t++) memset(y + t * ys, 0, level->size * 16 * sizeof *y);
    for (size_t g = 0; g < ng; g++) {
        const char *p = w + g * super;
        size_t ahead = g + 1 < ng ? super : level->size * ws - g * super;
        if (way->make) {
            for (size_t b = 0; b < level->size; b++) way->make(p + b * ws, room + b * way->made, ahead);
            qs_mmq_tokens(level, way->tiles->tokens, room, way->made, x + g * nt, nt, y, ys, 0);
        } else {
            qs_mmq_tokens(level, way->tiles->tokens, p, ws, x + g * nt, nt, y, ys, ahead);
        }
    }
}

static void qs_mmq_drive(const qs_qset *set, int q4, const void *w, size_t ws, size_t nb, size_t ng,
                         const qs_group *x, size_t nt, float *y, size_t ys)
{
    if (nt == 0) return;
    qs_qway way = qs_mmq_way(set, q4, nt);
    const qs_qlevel *level = way.tiles->level;
    size_t super = q4 ? QS_Q4_BYTES : QS_Q8_BYTES, b = 0, tt = qs_min(nt, way.tiles->tokens);
    for (; b < nb; level++) {
        if (!level->tile[tt] || (way.make && level->size * way.made > QS_QROOM)) continue;
        for (; b + level->size <= nb; b += level->size)
            qs_mmq_panel(&way, level, super, (const char *)w + b * ws, ws, ng, x, nt, y + 16 * b, ys);
    }
}

#define QS_QTILE(attr, name, body, nb, nt)                                             \
    attr static void name##_##nb##x##nt(QS_QTILE_ARGS)                                 \
    {                                                                                  \
        body(nb, nt, w, ws, x, y, ys, ahead);                                          \
    }

/* The entries for integer weights of the set qs_qset_isa. */
#define QS_QENTRIES(isa)                                                               \
    static void qs_mmq_q8_##isa(const void *w, size_t ws, size_t nb, size_t ng,        \
                                const qs_group *x, size_t nt, float *y, size_t ys)     \
    {                                                                                  \
        qs_mmq_drive(&qs_qset_##isa, 0, w, ws, nb, ng, x, nt, y, ys);                  \
    }                                                                                  \
    static void qs_mmq_q4_##isa(const void *w, size_t ws, size_t nb, size_t ng,        \
                                const qs_group *x, size_t nt, float *y, size_t ys)     \
    {                                                                                  \
        qs_mmq_drive(&qs_qset_##isa, 1, w, ws, nb, ng, x, nt, y, ys);                  \
    }

/* Of a tile of scores: fills up to a multiple of 16 with what exp makes 0. Returns the number then. */
static size_t qs_soften_fill(float *s, size_t n)
{
    for (; n % 16; n++) s[n] = -INFINITY;
    return n;
}

static float qs_soften_top(const float *lanes, size_t n, float old)
{
    for (size_t i = 0; i < n; i++) old = lanes[i] > old ? lanes[i] : old;
    return old;
}

/* One tile as a function of its own: the body with constant sizes. */
#define QS_TILE(attr, name, body, bf16, nb, nt)                                        \
    attr static void name##_##nb##x##nt(QS_TILE_ARGS)                                  \
    {                                                                                  \
        body(bf16, nb, nt, w, ws, n, x, xs, y, ys, ahead);                             \
    }
#define QS_TILES_1(attr, name, body, bf16, nb) QS_TILE(attr, name, body, bf16, nb, 1)
#define QS_TILES_3(attr, name, body, bf16, nb)                                         \
    QS_TILES_1(attr, name, body, bf16, nb)                                             \
    QS_TILE(attr, name, body, bf16, nb, 2)                                             \
    QS_TILE(attr, name, body, bf16, nb, 3)
#define QS_TILES_6(attr, name, body, bf16, nb)                                         \
    QS_TILES_3(attr, name, body, bf16, nb)                                             \
    QS_TILE(attr, name, body, bf16, nb, 4)                                             \
    QS_TILE(attr, name, body, bf16, nb, 5)                                             \
    QS_TILE(attr, name, body, bf16, nb, 6)
#define QS_NAMES_1(name, nb) {nb, {0, name##_##nb##x1}}
#define QS_NAMES_3(name, nb)                                                           \
    {nb, {0, name##_##nb##x1, name##_##nb##x2, name##_##nb##x3}}
#define QS_NAMES_6(name, nb)                                                           \
    {nb, {0, name##_##nb##x1, name##_##nb##x2, name##_##nb##x3, name##_##nb##x4,       \
          name##_##nb##x5, name##_##nb##x6}}
/* All tiles of a kernel: n0 blocks for 1..m0 tokens, n1 for 1..m1, 1 block for 1..6 */
#define QS_LEVELS(attr, name, body, bf16, n0, m0, n1, m1)                              \
    QS_TILES_##m0(attr, name, body, bf16, n0)                                          \
    QS_TILES_##m1(attr, name, body, bf16, n1)                                          \
    QS_TILES_6(attr, name, body, bf16, 1)                                              \
    static const qs_level name[3] = {QS_NAMES_##m0(name, n0), QS_NAMES_##m1(name, n1), \
                                     QS_NAMES_6(name, 1)}

/* The functions of the table that only pass on what they are given, by type. */
#define QS_ENTRIES(attr, isa, type, bf16)                                              \
    static void qs_mm_##type##_##isa(const void *w, size_t ws, size_t nb, size_t kp,   \
                                     const float *x, size_t xs, size_t nt, float *y,   \
                                     size_t ys)                                        \
    {                                                                                  \
        qs_mm_drive(qs_mm_##type##_tiles_##isa, bf16, w, ws, nb, kp, x, xs, nt, y,     \
                    ys);                                                               \
    }                                                                                  \
    static void qs_dots_##type##_##isa(const void *w, size_t row_bytes, size_t nr,     \
                                       size_t n, const float *x, size_t xs, size_t nt, \
                                       float *z, size_t zs)                            \
    {                                                                                  \
        qs_dots_drive(qs_dots_##type##_tiles_##isa, w, row_bytes, nr, n, x, xs, nt, z, \
                      zs);                                                             \
    }                                                                                  \
    attr static void qs_axpy_##type##_##isa(float a, const void *w, size_t n,          \
                                            float *y)                                  \
    {                                                                                  \
        qs_axpy_##isa(bf16, a, (const char *)w, n, y);                                 \
    }
#define QS_TABLE(isa, pack, integers)                                                  \
    {                                                                                  \
        {0, qs_mm_f32_##isa, qs_mm_bf16_##isa},                                        \
            {0, qs_dots_f32_##isa, qs_dots_bf16_##isa},                                \
            {0, qs_axpy_f32_##isa, qs_axpy_bf16_##isa}, qs_silu_mul_##isa,             \
            qs_soften_##isa, {qs_widen_f16_##isa, qs_widen_bf16_##isa},                \
            qs_pack_##pack,                                                            \
            {qs_mmq_q8_##integers, qs_mmq_q4_##integers}                               \
    }

#endif /* any ISA */

#if defined(QS_HAVE_AVX2) || defined(QS_HAVE_AVX512)
#include <cpuid.h>
#include <immintrin.h>
#endif

/* ==================================================================================
 * 9 Kernels: AVX2 + FMA (private)
 * ================================================================================== */

#if defined(QS_HAVE_AVX2)

#define QS_AVX2 __attribute__((target("avx2,fma,f16c")))
#define QS_AVX2_INLINE __attribute__((target("avx2,fma,f16c"), always_inline)) static inline

/* Half h of a line: rows 8h..8h+7. bf16: pairs (k, k + 1), of which odd picks one */
QS_AVX2_INLINE __m256 qs_line_avx2(int bf16, const char *p, int h, size_t odd)
{
    if (!bf16) return _mm256_loadu_ps((const float *)(const void *)p + 8 * h);
    __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)p + h);
    if (odd) return _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(-65536)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
}

/* nb blocks x nt tokens x n k: 2 nb nt accumulators */
QS_AVX2_INLINE void qs_mm_tile_avx2(int bf16, int nb, int nt, QS_TILE_ARGS)
{
    __m256 c[16];
    QS_UNROLL for (int i = 0; i < 2 * nb * nt; i++) c[i] = _mm256_setzero_ps();
    for (size_t k = 0; k < n; k += bf16 ? 2 : 1, w += 64) {
        QS_UNROLL for (int b = 0; b < nb; b++) QS_FETCH(w + (size_t)b * ws, ahead);
        QS_UNROLL for (size_t odd = 0; odd <= (size_t)bf16; odd++) {
            QS_UNROLL for (int b = 0; b < nb; b++) {
                __m256 v0 = qs_line_avx2(bf16, w + (size_t)b * ws, 0, odd);
                __m256 v1 = qs_line_avx2(bf16, w + (size_t)b * ws, 1, odd);
                QS_UNROLL for (int t = 0; t < nt; t++) {
                    const float *xt = x + (size_t)t * xs + k + odd;
                    __m256 xv = _mm256_broadcast_ss(xt);
                    int i = 2 * (b * nt + t);
                    c[i] = _mm256_fmadd_ps(v0, xv, c[i]);
                    c[i + 1] = _mm256_fmadd_ps(v1, xv, c[i + 1]);
                }
            }
        }
    }
    QS_UNROLL for (int i = 0; i < 2 * nb * nt; i++) {
        float *p = y + (size_t)(i / 2 % nt) * ys + 16 * (i / 2 / nt) + 8 * (i % 2);
        _mm256_storeu_ps(p, _mm256_add_ps(_mm256_loadu_ps(p), c[i]));
    }
}

QS_LEVELS(QS_AVX2, qs_mm_f32_tiles_avx2, qs_mm_tile_avx2, 0, 8, 1, 2, 3);
QS_LEVELS(QS_AVX2, qs_mm_bf16_tiles_avx2, qs_mm_tile_avx2, 1, 8, 1, 2, 3);

/* 8 values of a row */
QS_AVX2_INLINE __m256 qs_row_avx2(int bf16, const char *w, size_t k)
{
    if (!bf16) return _mm256_loadu_ps((const float *)(const void *)w + k);
    __m128i v = _mm_loadu_si128((const __m128i *)(const void *)(w + 2 * k));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}

/* The tree over the 16 chains */
QS_AVX2_INLINE float qs_tree_avx2(__m256 lo, __m256 hi)
{
    __m256 s = _mm256_add_ps(lo, hi);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}

/* nr rows x nt tokens: nr nt accumulators of 8 chains. Chains 0-7 and 8-15 take turns
 * over a piece of the rows: both at once would halve the tile, and loads would
 * outnumber the products. */
QS_AVX2_INLINE void qs_dots_tile_avx2(int bf16, int nr, int nt, QS_TILE_ARGS)
{
    __m256 sum[2][12];
    QS_UNROLL for (int i = 0; i < nr * nt; i++)
        sum[0][i] = sum[1][i] = _mm256_setzero_ps();
    for (size_t from = 0; from < n; from += QS_DOTS_PIECE) {
        size_t to = n - from < QS_DOTS_PIECE ? n : from + QS_DOTS_PIECE;
        for (size_t h = 0; h < 2; h++) {
            __m256 c[12], v[4];
            QS_UNROLL for (int i = 0; i < nr * nt; i++) c[i] = sum[h][i];
            for (size_t k = from + 8 * h; k < to; k += 16) {
                QS_UNROLL for (int r = 0; r < nr; r++) {
                    QS_FETCH(w + (size_t)r * ws + (bf16 ? 2 : 4) * k, ahead);
                    v[r] = qs_row_avx2(bf16, w + (size_t)r * ws, k);
                }
                QS_UNROLL for (int t = 0; t < nt; t++) {
                    __m256 xv = _mm256_loadu_ps(x + (size_t)t * xs + k);
                    QS_UNROLL for (int r = 0; r < nr; r++)
                        c[r * nt + t] = _mm256_fmadd_ps(v[r], xv, c[r * nt + t]);
                }
            }
            QS_UNROLL for (int i = 0; i < nr * nt; i++) sum[h][i] = c[i];
        }
    }
    QS_UNROLL for (int i = 0; i < nr * nt; i++)
        y[(size_t)(i % nt) * ys + (size_t)(i / nt)] =
            qs_tree_avx2(sum[0][i], sum[1][i]);
}

QS_LEVELS(QS_AVX2, qs_dots_f32_tiles_avx2, qs_dots_tile_avx2, 0, 4, 3, 2, 6);
QS_LEVELS(QS_AVX2, qs_dots_bf16_tiles_avx2, qs_dots_tile_avx2, 1, 4, 3, 2, 6);

QS_AVX2_INLINE void qs_axpy_avx2(int bf16, float a, const char *w, size_t n, float *y)
{
    __m256 av = _mm256_set1_ps(a);
    for (size_t j = 0; j < n; j += 8) {
        __m256 v = qs_row_avx2(bf16, w, j);
        _mm256_storeu_ps(y + j, _mm256_fmadd_ps(av, v, _mm256_loadu_ps(y + j)));
    }
}

QS_ENTRIES(QS_AVX2, avx2, f32, 0)
QS_ENTRIES(QS_AVX2, avx2, bf16, 1)

/* p * r + a, rounded twice like qs_exp */
QS_AVX2_INLINE __m256 qs_muladd_avx2(__m256 p, __m256 r, float a)
{
    return _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(a));
}

/* qs_exp on 8 values, operation for operation */
QS_AVX2_INLINE __m256 qs_exp_avx2(__m256 x)
{
    const float magic = 12582912.0f;
    __m256 n = qs_muladd_avx2(x, _mm256_set1_ps(1.44269504088896341f), magic);
    n = _mm256_sub_ps(n, _mm256_set1_ps(magic));
    __m256 r = _mm256_sub_ps(x, _mm256_mul_ps(n, _mm256_set1_ps(0.693359375f)));
    r = _mm256_sub_ps(r, _mm256_mul_ps(n, _mm256_set1_ps(-2.12194440e-4f)));
    __m256 p = qs_muladd_avx2(_mm256_set1_ps(1.9875691500e-4f), r, 1.3981999507e-3f);
    p = qs_muladd_avx2(p, r, 8.3334519073e-3f);
    p = qs_muladd_avx2(p, r, 4.1665795894e-2f);
    p = qs_muladd_avx2(p, r, 1.6666665459e-1f);
    p = qs_muladd_avx2(p, r, 5.0000001201e-1f);
    p = _mm256_add_ps(_mm256_mul_ps(p, _mm256_mul_ps(r, r)), r);
    p = _mm256_add_ps(p, _mm256_set1_ps(1.0f));
    __m256i u = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    p = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), u));
    __m256 small = _mm256_cmp_ps(x, _mm256_set1_ps(-87.0f), _CMP_LT_OQ);
    __m256 large = _mm256_cmp_ps(x, _mm256_set1_ps(88.0f), _CMP_GT_OQ);
    p = _mm256_andnot_ps(small, p);
    p = _mm256_blendv_ps(p, _mm256_set1_ps(INFINITY), large);
    return _mm256_blendv_ps(p, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

QS_AVX2 static void qs_silu_mul_avx2(float *g, const float *u, size_t n)
{
    size_t j = 0;
    for (; n - j >= 8; j += 8) {
        __m256 v = _mm256_loadu_ps(g + j);
        __m256 e = qs_exp_avx2(_mm256_xor_ps(v, _mm256_set1_ps(-0.0f)));
        v = _mm256_div_ps(v, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
        _mm256_storeu_ps(g + j, _mm256_mul_ps(v, _mm256_loadu_ps(u + j)));
    }
    qs_silu_mul_scalar(g + j, u + j, n - j);
}

QS_AVX2 static float qs_soften_avx2(float *s, size_t n, float scale, float *max, float old)
{
    float lanes[8];
    __m256 k = _mm256_set1_ps(scale), m = _mm256_set1_ps(-INFINITY);
    __m256 lo = _mm256_setzero_ps(), hi = lo;
    n = qs_soften_fill(s, n);
    for (size_t j = 0; j < n; j += 8) {
        __m256 v = _mm256_mul_ps(_mm256_loadu_ps(s + j), k);
        _mm256_storeu_ps(s + j, v);
        m = _mm256_max_ps(v, m); /* of a NaN the second */
    }
    _mm256_storeu_ps(lanes, m);
    *max = qs_soften_top(lanes, 8, old);
    m = _mm256_set1_ps(*max);
    for (size_t j = 0; j < n; j += 16) {
        __m256 a = qs_exp_avx2(_mm256_sub_ps(_mm256_loadu_ps(s + j), m));
        __m256 b = qs_exp_avx2(_mm256_sub_ps(_mm256_loadu_ps(s + j + 8), m));
        _mm256_storeu_ps(s + j, a);
        _mm256_storeu_ps(s + j + 8, b);
        lo = _mm256_add_ps(lo, a);
        hi = _mm256_add_ps(hi, b);
    }
    return qs_tree_avx2(lo, hi);
}

QS_AVX2 static void qs_widen_f16_avx2(const uint16_t *h, size_t n, float *x)
{
    for (size_t j = 0; j < n; j += 8)
        _mm256_storeu_ps(x + j, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(h + j))));
}

QS_AVX2 static void qs_widen_bf16_avx2(const uint16_t *h, size_t n, float *x)
{
    for (size_t j = 0; j < n; j += 8)
        _mm256_storeu_ps(x + j, qs_row_avx2(1, (const char *)h, j));
}

/* 8 integers as X of a group, from place j on */
QS_AVX2_INLINE void qs_put_avx2(qs_group *g, size_t j, __m256i v)
{
    __m256i p1 = _mm256_srai_epi32(_mm256_add_epi32(v, _mm256_set1_epi32(128)), 8);
    __m256i p2 = _mm256_sub_epi32(v, _mm256_slli_epi32(p1, 8));
    __m256i planes = _mm256_packs_epi32(p1, p2), pairs; /* per half: 4 of p1, 4 of p2 */
    planes = _mm256_packs_epi16(planes, planes);
    uint32_t lo1 = (uint32_t)_mm256_extract_epi32(planes, 0), lo2 = (uint32_t)_mm256_extract_epi32(planes, 1);
    uint32_t hi1 = (uint32_t)_mm256_extract_epi32(planes, 4), hi2 = (uint32_t)_mm256_extract_epi32(planes, 5);
    memcpy(g->p1 + j, &lo1, 4);
    memcpy(g->p1 + j + 4, &hi1, 4);
    memcpy(g->p2 + j, &lo2, 4);
    memcpy(g->p2 + j + 4, &hi2, 4);
    pairs = _mm256_shuffle_epi32(v, 0xD8); /* 0 2 1 3 */
    pairs = _mm256_permute4x64_epi64(_mm256_packs_epi32(pairs, pairs), 0x08);
    _mm_storeu_si128((__m128i *)(void *)(g->pairs + j), _mm256_castsi256_si128(pairs));
}

QS_AVX2_INLINE int32_t qs_sum_avx2(__m256i v)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1)));
}

/* qs_pack_group of 256 finite values */
QS_AVX2 static void qs_pack_full_avx2(const float *x, qs_group *g)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 max = _mm256_setzero_ps(), bad = max;
    for (size_t j = 0; j < QS_GROUP; j += 8) {
        __m256 v = _mm256_loadu_ps(x + j);
        bad = _mm256_add_ps(bad, _mm256_sub_ps(v, v));
        max = _mm256_max_ps(max, _mm256_andnot_ps(sign, v));
    }
    float m[8], b[8], top = 0.0f, not_finite = 0.0f;
    _mm256_storeu_ps(m, max);
    _mm256_storeu_ps(b, bad);
    for (size_t i = 0; i < 8; i++) {
        top = m[i] > top ? m[i] : top;
        not_finite += b[i];
    }
    float inv = top > 0.0f ? 32639.0f / top : INFINITY;
    if (not_finite != 0.0f || !qs_finite(inv)) {
        qs_pack_group(x, QS_GROUP, g);
        return;
    }
    g->scale = top / 32639.0f;
    g->sum = 0;
    memset(g->zero, 0, sizeof g->zero);
    for (size_t i = 0; i < 8; i++) {
        __m256i sum = _mm256_setzero_si256();
        for (size_t j = 32 * i; j < 32 * i + 32; j += 8) {
            __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + j), _mm256_set1_ps(inv));
            __m256i n = _mm256_cvtps_epi32(v); /* nearest even */
            sum = _mm256_add_epi32(sum, n);
            qs_put_avx2(g, j, n);
        }
        g->sums[i] = qs_sum_avx2(sum);
        g->sum += g->sums[i];
    }
}

static void qs_pack_avx2(const float *x, size_t n, qs_group *out, size_t step)
{
    size_t at = 0;
    for (; n - at >= QS_GROUP; at += QS_GROUP, out += step) qs_pack_full_avx2(x + at, out);
    qs_pack_scalar(x + at, n - at, out, step);
}

/* nb blocks x nt tokens: 2 nb nt accumulators of 8 rows. Bytes become 16-bit numbers in place, k = 0, 2 and
 * 1, 3 of each row apart, and meet the X of these k. */
QS_AVX2_INLINE void qs_mmq_tile_avx2(int nb, int nt, QS_QTILE_ARGS)
{
    __v8si c[8]; /* as __m256i gcc would store them all along */
    QS_UNROLL for (int i = 0; i < 2 * nb * nt; i++) c[i] = (__v8si)_mm256_setzero_si256();
    for (size_t l = 0; l < 64; l++) {
        QS_UNROLL for (int b = 0; b < nb; b++) {
            const char *p = w + (size_t)b * ws + 64 * l;
            QS_FETCH(p, ahead);
            QS_UNROLL for (int h = 0; h < 2; h++) {
                __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)p + h);
                __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8);
                __m256i odd = _mm256_srai_epi16(v, 8);
                QS_UNROLL for (int t = 0; t < nt; t++) {
                    int32_t pair[2];
                    memcpy(pair, x[t].pairs + 4 * l, 8);
                    __m256i s = _mm256_madd_epi16(even, _mm256_set1_epi32(pair[0]));
                    s = _mm256_add_epi32(s, _mm256_madd_epi16(odd, _mm256_set1_epi32(pair[1])));
                    int i = 2 * (b * nt + t) + h;
                    c[i] = (__v8si)_mm256_add_epi32((__m256i)c[i], s);
                }
            }
        }
    }
    QS_UNROLL for (int i = 0; i < 2 * nb * nt; i++) {
        int b = i / 2 / nt, t = i / 2 % nt, h = i % 2;
        __m256 a = _mm256_loadu_ps((const float *)(const void *)(w + (size_t)b * ws + 4096) + 8 * h);
        float *to = y + (size_t)t * ys + 16 * b + 8 * h;
        a = _mm256_mul_ps(a, _mm256_set1_ps(x[t].scale));
        _mm256_storeu_ps(to, _mm256_fmadd_ps(_mm256_cvtepi32_ps((__m256i)c[i]), a, _mm256_loadu_ps(to)));
    }
}

/* Both halves of a line's bytes are multiplied by |m| as 16-bit numbers: |m| (q + 8) stays below 256, then 8 |m|
 * goes off each byte. Where m is negative, q + 8 with all bits turned is 7 - q, and 7 |m| goes off. */
QS_AVX2 static void qs_unpack_avx2(const char *w, char *out, size_t ahead)
{
    const __m256i low = _mm256_set1_epi8(15);
    for (size_t h = 0; h < 2; h++) {
        __m256i all = _mm256_loadu_si256((const __m256i *)(const void *)(w + 2048) + h);
        __m256i scale = _mm256_loadu_si256((const __m256i *)(const void *)(w + 2112) + h);
        for (size_t i = 0; i < 8; i++) {
            __m256i m = _mm256_and_si256(_mm256_srli_epi32(all, (int)(4 * i)), _mm256_set1_epi32(15));
            __m256i turn = _mm256_srai_epi32(_mm256_slli_epi32(scale, (int)(31 - i)), 31);
            m = _mm256_or_si256(m, _mm256_slli_epi32(m, 16));
            __m256i off = _mm256_sub_epi16(_mm256_slli_epi16(m, 3), _mm256_and_si256(m, turn));
            off = _mm256_or_si256(off, _mm256_slli_epi16(off, 8));
            for (size_t l = 4 * i; l < 4 * i + 4; l++) {
                const char *p = w + 64 * l + 32 * h;
                QS_FETCH(p, ahead);
                __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)p);
                v = _mm256_xor_si256(v, turn);
                __m256i lo = _mm256_mullo_epi16(_mm256_and_si256(v, low), m);
                __m256i hi = _mm256_mullo_epi16(_mm256_and_si256(_mm256_srli_epi16(v, 4), low), m);
                __m256i *to = (__m256i *)(void *)(out + 128 * l + 32 * h);
                _mm256_storeu_si256(to, _mm256_sub_epi8(lo, off));
                _mm256_storeu_si256(to + 2, _mm256_sub_epi8(hi, off));
            }
        }
        scale = _mm256_andnot_si256(_mm256_set1_epi32(QS_Q4_SIGNS), scale);
        _mm256_storeu_si256((__m256i *)(void *)(out + 4096) + h, scale);
    }
}

/* A wide superblock: 2 nt accumulators of 8 rows */
QS_AVX2_INLINE void qs_mmw_block_avx2(int nt, const char *w, const qs_group *x, float *y, size_t ys)
{
    __v8si c[12];
    QS_UNROLL for (int i = 0; i < 2 * nt; i++) c[i] = (__v8si)_mm256_setzero_si256();
    for (size_t l = 0; l < 128; l++) {
        const __m256i *line = (const __m256i *)(const void *)(w + 64 * l);
        __m256i v0 = _mm256_loadu_si256(line), v1 = _mm256_loadu_si256(line + 1);
        QS_UNROLL for (int t = 0; t < nt; t++) {
            int32_t pair;
            memcpy(&pair, x[t].pairs + 2 * l, 4);
            __m256i xv = _mm256_set1_epi32(pair);
            c[2 * t] = (__v8si)_mm256_add_epi32((__m256i)c[2 * t], _mm256_madd_epi16(v0, xv));
            c[2 * t + 1] = (__v8si)_mm256_add_epi32((__m256i)c[2 * t + 1], _mm256_madd_epi16(v1, xv));
        }
    }
    QS_UNROLL for (int i = 0; i < 2 * nt; i++) {
        __m256 a = _mm256_loadu_ps((const float *)(const void *)(w + 8192) + 8 * (i % 2));
        float *to = y + (size_t)(i / 2) * ys + 8 * (i % 2);
        a = _mm256_mul_ps(a, _mm256_set1_ps(x[i / 2].scale));
        _mm256_storeu_ps(to, _mm256_fmadd_ps(_mm256_cvtepi32_ps((__m256i)c[i]), a, _mm256_loadu_ps(to)));
    }
}

/* nb of them, one after another: the tokens come into the L1 cache once for all */
QS_AVX2_INLINE void qs_mmw_tile_avx2(int nb, int nt, QS_QTILE_ARGS)
{
    (void)ahead;
    for (int b = 0; b < nb; b++) qs_mmw_block_avx2(nt, w + (size_t)b * ws, x, y + 16 * b, ys);
}

QS_AVX2 static void qs_widen_q8_avx2(const char *w, char *out, size_t ahead)
{
    for (size_t l = 0; l < 128; l++) { /* half lines */
        QS_FETCH(w + 32 * l, ahead);
        __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)(w + 32 * l));
        __m256i *to = (__m256i *)(void *)(out + 128 * (l / 2) + 32 * (l % 2));
        _mm256_storeu_si256(to, _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8));
        _mm256_storeu_si256(to + 2, _mm256_srai_epi16(v, 8));
    }
    memcpy(out + 8192, w + 4096, 64);
}

QS_AVX2 static void qs_widen_q4_avx2(const char *w, char *out, size_t ahead)
{
    const __m256i low = _mm256_set1_epi16(15);
    for (size_t h = 0; h < 2; h++) {
        __m256i all = _mm256_loadu_si256((const __m256i *)(const void *)(w + 2048) + h);
        __m256i scale = _mm256_loadu_si256((const __m256i *)(const void *)(w + 2112) + h);
        for (size_t i = 0; i < 8; i++) {
            __m256i m = _mm256_and_si256(_mm256_srli_epi32(all, (int)(4 * i)), _mm256_set1_epi32(15));
            __m256i turn = _mm256_srai_epi32(_mm256_slli_epi32(scale, (int)(31 - i)), 31);
            m = _mm256_sub_epi16(_mm256_xor_si256(_mm256_or_si256(m, _mm256_slli_epi32(m, 16)), turn), turn);
            __m256i off = _mm256_slli_epi16(m, 3);
            for (size_t l = 4 * i; l < 4 * i + 4; l++) {
                const char *p = w + 64 * l + 32 * h;
                QS_FETCH(p, ahead);
                __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)p);
                __m256i *to = (__m256i *)(void *)(out + 256 * l + 32 * h);
                __m256i q[4] = {_mm256_and_si256(v, low), _mm256_and_si256(_mm256_srli_epi16(v, 8), low),
                                _mm256_and_si256(_mm256_srli_epi16(v, 4), low), _mm256_srli_epi16(v, 12)};
                QS_UNROLL for (int j = 0; j < 4; j++)
                    _mm256_storeu_si256(to + 2 * j, _mm256_sub_epi16(_mm256_mullo_epi16(q[j], m), off));
            }
        }
        scale = _mm256_andnot_si256(_mm256_set1_epi32(QS_Q4_SIGNS), scale);
        _mm256_storeu_si256((__m256i *)(void *)(out + 8192) + h, scale);
    }
}

QS_QTILE(QS_AVX2, qs_mmw_avx2, qs_mmw_tile_avx2, 2, 3)
QS_QTILE(QS_AVX2, qs_mmw_avx2, qs_mmw_tile_avx2, 2, 4)
QS_QTILE(QS_AVX2, qs_mmw_avx2, qs_mmw_tile_avx2, 2, 5)
QS_QTILE(QS_AVX2, qs_mmw_avx2, qs_mmw_tile_avx2, 2, 6)
QS_QTILE(QS_AVX2, qs_mmw_avx2, qs_mmw_tile_avx2, 1, 3)
QS_QTILE(QS_AVX2, qs_mmw_avx2, qs_mmw_tile_avx2, 1, 4)
QS_QTILE(QS_AVX2, qs_mmw_avx2, qs_mmw_tile_avx2, 1, 5)
QS_QTILE(QS_AVX2, qs_mmw_avx2, qs_mmw_tile_avx2, 1, 6)
QS_QTILE(QS_AVX2, qs_mmq_avx2, qs_mmq_tile_avx2, 4, 1)
QS_QTILE(QS_AVX2, qs_mmq_avx2, qs_mmq_tile_avx2, 1, 1)
QS_QTILE(QS_AVX2, qs_mmq_avx2, qs_mmq_tile_avx2, 1, 2)
QS_QTILE(QS_AVX2, qs_mmq_avx2, qs_mmq_tile_avx2, 1, 3)
static const qs_qset qs_qset_avx2 = {
    {3, {{4, {0, qs_mmq_avx2_4x1}}, {1, {0, qs_mmq_avx2_1x1, qs_mmq_avx2_1x2, qs_mmq_avx2_1x3}}}},
    {0, {{0, {0}}}},
    qs_unpack_avx2,
    4,
    {6,
     {{2, {0, 0, 0, qs_mmw_avx2_2x3, qs_mmw_avx2_2x4, qs_mmw_avx2_2x5, qs_mmw_avx2_2x6}},
      {1, {0, 0, 0, qs_mmw_avx2_1x3, qs_mmw_avx2_1x4, qs_mmw_avx2_1x5, qs_mmw_avx2_1x6}}}},
    {qs_widen_q8_avx2, qs_widen_q4_avx2},
};
QS_QENTRIES(avx2)

static const qs_kernels QS_KERNELS_AVX2 = QS_TABLE(avx2, avx2, avx2);

#endif /* QS_HAVE_AVX2 */

/* ==================================================================================
 * 10 Kernels: AVX-512 F (private)
 * ================================================================================== */

#if defined(QS_HAVE_AVX512)

#define QS_AVX512 __attribute__((target("avx512f")))
#define QS_AVX512_INLINE __attribute__((target("avx512f"), always_inline)) static inline

/* A line: 16 rows. bf16: the pairs (k, k + 1), of which odd picks one */
QS_AVX512_INLINE __m512 qs_line_avx512(int bf16, const char *p, size_t odd)
{
    if (!bf16) return _mm512_loadu_ps(p);
    __m512i v = _mm512_loadu_si512(p);
    if (odd) return _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(-65536)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
}

/* nb blocks x nt tokens x n k: nb nt accumulators; the shorter side is in registers */
QS_AVX512_INLINE void qs_mm_tile_avx512(int bf16, int nb, int nt, QS_TILE_ARGS)
{
    __m512 c[24], v[6];
    QS_UNROLL for (int i = 0; i < nb * nt; i++) c[i] = _mm512_setzero_ps();
    for (size_t k = 0; k < n; k += bf16 ? 2 : 1, w += 64) {
        QS_UNROLL for (int b = 0; b < nb; b++) QS_FETCH(w + (size_t)b * ws, ahead);
        QS_UNROLL for (size_t odd = 0; odd <= (size_t)bf16; odd++) {
            if (odd) QS_AFTER("+v"(c[nb * nt - 1]), w, x);
            if (nt < nb) {
                QS_UNROLL for (int t = 0; t < nt; t++)
                    v[t] = _mm512_set1_ps(x[(size_t)t * xs + k + odd]);
                QS_UNROLL for (int b = 0; b < nb; b++) {
                    __m512 wv = qs_line_avx512(bf16, w + (size_t)b * ws, odd);
                    QS_UNROLL for (int t = 0; t < nt; t++)
                        c[b * nt + t] = _mm512_fmadd_ps(wv, v[t], c[b * nt + t]);
                }
            } else {
                QS_UNROLL for (int b = 0; b < nb; b++)
                    v[b] = qs_line_avx512(bf16, w + (size_t)b * ws, odd);
                QS_UNROLL for (int t = 0; t < nt; t++) {
                    if (t > 0) QS_AFTER("+v"(c[(nb - 1) * nt + t - 1]), w, x);
                    __m512 xv = _mm512_set1_ps(x[(size_t)t * xs + k + odd]);
                    QS_UNROLL for (int b = 0; b < nb; b++)
                        c[b * nt + t] = _mm512_fmadd_ps(v[b], xv, c[b * nt + t]);
                }
            }
        }
    }
    QS_UNROLL for (int i = 0; i < nb * nt; i++) {
        float *p = y + (size_t)(i % nt) * ys + 16 * (i / nt);
        _mm512_storeu_ps(p, _mm512_add_ps(_mm512_loadu_ps(p), c[i]));
    }
}

QS_LEVELS(QS_AVX512, qs_mm_f32_tiles_avx512, qs_mm_tile_avx512, 0, 8, 3, 4, 6);
QS_LEVELS(QS_AVX512, qs_mm_bf16_tiles_avx512, qs_mm_tile_avx512, 1, 8, 3, 4, 6);

/* 16 values of a row */
QS_AVX512_INLINE __m512 qs_row_avx512(int bf16, const char *w, size_t k)
{
    if (!bf16) return _mm512_loadu_ps(w + 4 * k);
    __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)(w + 2 * k));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

/* The tree over the 16 chains */
QS_AVX512_INLINE float qs_tree_avx512(__m512 c)
{
    __m512 s = _mm512_add_ps(c, _mm512_shuffle_f32x4(c, c, 0x4E));
    s = _mm512_add_ps(s, _mm512_shuffle_f32x4(s, s, 0xB1));
    s = _mm512_add_ps(s, _mm512_permute_ps(s, 0x4E));
    s = _mm512_add_ps(s, _mm512_permute_ps(s, 0xB1));
    return _mm_cvtss_f32(_mm512_castps512_ps128(s));
}

/* nr rows x nt tokens: nr nt accumulators of 16 chains */
QS_AVX512_INLINE void qs_dots_tile_avx512(int bf16, int nr, int nt, QS_TILE_ARGS)
{
    __m512 c[24], v[6];
    QS_UNROLL for (int i = 0; i < nr * nt; i++) c[i] = _mm512_setzero_ps();
    for (size_t k = 0; k < n; k += 16) {
        QS_UNROLL for (int t = 0; t < nt; t++)
            v[t] = _mm512_loadu_ps(x + (size_t)t * xs + k);
        QS_UNROLL for (int r = 0; r < nr; r++) {
            __m512 wv = qs_row_avx512(bf16, w + (size_t)r * ws, k);
            QS_FETCH(w + (size_t)r * ws + (bf16 ? 2 : 4) * k, ahead);
            QS_UNROLL for (int t = 0; t < nt; t++)
                c[r * nt + t] = _mm512_fmadd_ps(wv, v[t], c[r * nt + t]);
        }
    }
    QS_UNROLL for (int i = 0; i < nr * nt; i++)
        y[(size_t)(i % nt) * ys + (size_t)(i / nt)] = qs_tree_avx512(c[i]);
}

QS_LEVELS(QS_AVX512, qs_dots_f32_tiles_avx512, qs_dots_tile_avx512, 0, 8, 3, 4, 6);
QS_LEVELS(QS_AVX512, qs_dots_bf16_tiles_avx512, qs_dots_tile_avx512, 1, 8, 3, 4, 6);

QS_AVX512_INLINE void qs_axpy_avx512(int bf16, float a, const char *w, size_t n,
                                     float *y)
{
    __m512 av = _mm512_set1_ps(a);
    for (size_t j = 0; j < n; j += 16) {
        __m512 v = qs_row_avx512(bf16, w, j);
        _mm512_storeu_ps(y + j, _mm512_fmadd_ps(av, v, _mm512_loadu_ps(y + j)));
    }
}

QS_ENTRIES(QS_AVX512, avx512, f32, 0)
QS_ENTRIES(QS_AVX512, avx512, bf16, 1)

/* p * r + a, rounded twice like qs_exp */
QS_AVX512_INLINE __m512 qs_muladd_avx512(__m512 p, __m512 r, float a)
{
    return _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(a));
}

/* qs_exp on 16 values, operation for operation */
QS_AVX512_INLINE __m512 qs_exp_avx512(__m512 x)
{
    const float magic = 12582912.0f;
    __m512 n = qs_muladd_avx512(x, _mm512_set1_ps(1.44269504088896341f), magic);
    n = _mm512_sub_ps(n, _mm512_set1_ps(magic));
    __m512 r = _mm512_sub_ps(x, _mm512_mul_ps(n, _mm512_set1_ps(0.693359375f)));
    r = _mm512_sub_ps(r, _mm512_mul_ps(n, _mm512_set1_ps(-2.12194440e-4f)));
    __m512 p = qs_muladd_avx512(_mm512_set1_ps(1.9875691500e-4f), r, 1.3981999507e-3f);
    p = qs_muladd_avx512(p, r, 8.3334519073e-3f);
    p = qs_muladd_avx512(p, r, 4.1665795894e-2f);
    p = qs_muladd_avx512(p, r, 1.6666665459e-1f);
    p = qs_muladd_avx512(p, r, 5.0000001201e-1f);
    p = _mm512_add_ps(_mm512_mul_ps(p, _mm512_mul_ps(r, r)), r);
    p = _mm512_add_ps(p, _mm512_set1_ps(1.0f));
    __m512i u = _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23);
    p = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), u));
    __mmask16 small = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_LT_OQ);
    __mmask16 large = _mm512_cmp_ps_mask(x, _mm512_set1_ps(88.0f), _CMP_GT_OQ);
    p = _mm512_mask_mov_ps(p, small, _mm512_setzero_ps());
    p = _mm512_mask_mov_ps(p, large, _mm512_set1_ps(INFINITY));
    return _mm512_mask_mov_ps(p, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x);
}

/* The sign is flipped as an integer: AVX-512 F has no xor of floats. */
QS_AVX512 static void qs_silu_mul_avx512(float *g, const float *u, size_t n)
{
    size_t j = 0;
    for (; n - j >= 16; j += 16) {
        __m512 v = _mm512_loadu_ps(g + j);
        __m512i neg = _mm512_castps_si512(v);
        neg = _mm512_xor_si512(neg, _mm512_set1_epi32(INT32_MIN));
        __m512 e = qs_exp_avx512(_mm512_castsi512_ps(neg));
        v = _mm512_div_ps(v, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
        _mm512_storeu_ps(g + j, _mm512_mul_ps(v, _mm512_loadu_ps(u + j)));
    }
    qs_silu_mul_scalar(g + j, u + j, n - j);
}

QS_AVX512 static float qs_soften_avx512(float *s, size_t n, float scale, float *max, float old)
{
    float lanes[16];
    __m512 k = _mm512_set1_ps(scale), m = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    n = qs_soften_fill(s, n);
    for (size_t j = 0; j < n; j += 16) {
        __m512 v = _mm512_mul_ps(_mm512_loadu_ps(s + j), k);
        _mm512_storeu_ps(s + j, v);
        m = _mm512_max_ps(v, m); /* of a NaN the second */
    }
    _mm512_storeu_ps(lanes, m);
    *max = qs_soften_top(lanes, 16, old);
    m = _mm512_set1_ps(*max);
    for (size_t j = 0; j < n; j += 16) {
        __m512 v = qs_exp_avx512(_mm512_sub_ps(_mm512_loadu_ps(s + j), m));
        _mm512_storeu_ps(s + j, v);
        sum = _mm512_add_ps(sum, v);
    }
    return qs_tree_avx512(sum);
}

QS_AVX512 static void qs_widen_f16_avx512(const uint16_t *h, size_t n, float *x)
{
    for (size_t j = 0; j < n; j += 16)
        _mm512_storeu_ps(x + j, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(h + j))));
}

QS_AVX512 static void qs_widen_bf16_avx512(const uint16_t *h, size_t n, float *x)
{
    for (size_t j = 0; j < n; j += 16) {
        __m512i v = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(h + j)));
        _mm512_storeu_ps(x + j, _mm512_castsi512_ps(_mm512_slli_epi32(v, 16)));
    }
}

/* Without VNNI 512 bits have nothing on 256 for integers. */
#if defined(QS_HAVE_AVX2)
static const qs_kernels QS_KERNELS_AVX512 = QS_TABLE(avx512, avx2, avx2);
#else
static const qs_kernels QS_KERNELS_AVX512 = QS_TABLE(avx512, scalar, scalar);
#endif

#define QS_VNNI __attribute__((target("avx512f,avx512bw,avx512vnni")))
#define QS_VNNI_INLINE                                                                 \
    __attribute__((target("avx512f,avx512bw,avx512vnni"), always_inline)) static inline

/* The 4 bytes of a plane at p, in every lane */
QS_VNNI_INLINE __m512i qs_quad_vnni(const int8_t *p)
{
    int32_t v;
    memcpy(&v, p, 4);
    return _mm512_set1_epi32(v);
}

/* S from the sums over the two planes, minus `off` */
QS_VNNI_INLINE __m512i qs_planes_vnni(__m512i p1, __m512i p2, int32_t off)
{
    __m512i s = _mm512_add_epi32(_mm512_slli_epi32(p1, 8), p2);
    return _mm512_sub_epi32(s, _mm512_set1_epi32(off));
}

/* y += a b S, the scales of the rows in a */
QS_VNNI_INLINE void qs_scaled_vnni(__m512i s, __m512 a, float scale, float *y)
{
    a = _mm512_mul_ps(a, _mm512_set1_ps(scale));
    _mm512_storeu_ps(y, _mm512_fmadd_ps(_mm512_cvtepi32_ps(s), a, _mm512_loadu_ps(y)));
}

/* nb blocks x nt tokens: 2 nb nt accumulators. The unit wants one side unsigned: w + 128, and 128 times
 * the sum of X comes off at the end. Sums may wrap: the last difference does not. */
QS_VNNI_INLINE void qs_mmq_tile_vnni(int nb, int nt, QS_QTILE_ARGS)
{
    const __m512i flip = _mm512_set1_epi8(-128);
    __v16si c[24]; /* the two planes side by side. As __m512i gcc would store them all along */
    __m512i v[12];
    QS_UNROLL for (int i = 0; i < 2 * nb * nt; i++) c[i] = (__v16si)_mm512_setzero_si512();
    for (size_t l = 0; l < 64; l++) {
        QS_UNROLL for (int b = 0; b < nb; b++) {
            QS_FETCH(w + (size_t)b * ws + 64 * l, ahead);
            v[b] = _mm512_xor_si512(_mm512_loadu_si512(w + (size_t)b * ws + 64 * l), flip);
        }
        QS_UNROLL for (int t = 0; t < 2 * nt; t++) {
            __m512i xv = qs_quad_vnni((t % 2 ? x[t / 2].p2 : x[t / 2].p1) + 4 * l);
            QS_UNROLL for (int b = 0; b < nb; b++) {
                int i = 2 * b * nt + t;
                c[i] = (__v16si)_mm512_dpbusd_epi32((__m512i)c[i], v[b], xv);
            }
        }
    }
    QS_UNROLL for (int i = 0; i < nb * nt; i++) {
        int b = i / nt, t = i % nt;
        __m512i s = qs_planes_vnni((__m512i)c[2 * i], (__m512i)c[2 * i + 1], 128 * x[t].sum);
        qs_scaled_vnni(s, _mm512_loadu_ps(w + (size_t)b * ws + 4096), x[t].scale, y + (size_t)t * ys + 16 * b);
    }
}

/* nb blocks, one token, straight from Q4: q + 8 is unsigned as it is. Per 32 k: minus 8 times the sum of X, times m. */
QS_VNNI_INLINE void qs_mmq4_tile_vnni(int nb, int nt, QS_QTILE_ARGS)
{
    const __m512i low = _mm512_set1_epi8(15);
    __v16si sum[4], m[4], scale[4];
    (void)nt;
    (void)ys;
    QS_UNROLL for (int b = 0; b < nb; b++) {
        sum[b] = (__v16si)_mm512_setzero_si512();
        m[b] = (__v16si)_mm512_loadu_si512(w + (size_t)b * ws + 2048);
        scale[b] = (__v16si)_mm512_loadu_si512(w + (size_t)b * ws + 2112);
    }
    for (size_t i = 0; i < 8; i++) {
        __v16si c1[4], c2[4];
        QS_UNROLL for (int b = 0; b < nb; b++) {
            c1[b] = (__v16si)_mm512_setzero_si512();
            c2[b] = (__v16si)_mm512_set1_epi32(-8 * x->sums[i]);
        }
        QS_UNROLL for (size_t l = 0; l < 4; l++) {
            const int8_t *p1 = x->p1 + 32 * i + 8 * l, *p2 = x->p2 + 32 * i + 8 * l;
            __m512i a1 = qs_quad_vnni(p1), a2 = qs_quad_vnni(p2);
            __m512i b1 = qs_quad_vnni(p1 + 4), b2 = qs_quad_vnni(p2 + 4);
            QS_UNROLL for (int b = 0; b < nb; b++) {
                const char *p = w + (size_t)b * ws + 64 * (4 * i + l);
                QS_FETCH(p, ahead);
                __m512i v = _mm512_loadu_si512(p);
                __m512i lo = _mm512_and_si512(v, low), hi = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
                c1[b] = (__v16si)_mm512_dpbusd_epi32((__m512i)c1[b], lo, a1);
                c2[b] = (__v16si)_mm512_dpbusd_epi32((__m512i)c2[b], lo, a2);
                c1[b] = (__v16si)_mm512_dpbusd_epi32((__m512i)c1[b], hi, b1);
                c2[b] = (__v16si)_mm512_dpbusd_epi32((__m512i)c2[b], hi, b2);
            }
        }
        QS_UNROLL for (int b = 0; b < nb; b++) {
            __m512i mi = _mm512_and_si512((__m512i)m[b], _mm512_set1_epi32(15));
            __mmask16 turn = _mm512_test_epi32_mask((__m512i)scale[b], _mm512_set1_epi32(1 << i));
            mi = _mm512_mask_sub_epi32(mi, turn, _mm512_setzero_si512(), mi);
            __m512i s = _mm512_add_epi32(_mm512_slli_epi32((__m512i)c1[b], 8), (__m512i)c2[b]);
            sum[b] = (__v16si)_mm512_add_epi32((__m512i)sum[b], _mm512_mullo_epi32(s, mi));
            m[b] = (__v16si)_mm512_srli_epi32((__m512i)m[b], 4);
        }
    }
    QS_UNROLL for (int b = 0; b < nb; b++) {
        __m512i d = _mm512_andnot_si512(_mm512_set1_epi32(QS_Q4_SIGNS), (__m512i)scale[b]);
        qs_scaled_vnni((__m512i)sum[b], _mm512_castsi512_ps(d), x->scale, y + 16 * b);
    }
}

QS_VNNI static void qs_unpack_vnni(const char *w, char *out, size_t ahead)
{
    const __m512i low = _mm512_set1_epi8(15);
    __m512i all = _mm512_loadu_si512(w + 2048), scale = _mm512_loadu_si512(w + 2112);
    for (size_t i = 0; i < 8; i++, all = _mm512_srli_epi32(all, 4)) { /* as qs_unpack_avx2 */
        __m512i m = _mm512_and_si512(all, _mm512_set1_epi32(15));
        __m512i turn = _mm512_srai_epi32(_mm512_slli_epi32(scale, (unsigned)(31 - i)), 31);
        m = _mm512_or_si512(m, _mm512_slli_epi32(m, 16));
        __m512i off = _mm512_sub_epi16(_mm512_slli_epi16(m, 3), _mm512_and_si512(m, turn));
        off = _mm512_or_si512(off, _mm512_slli_epi16(off, 8));
        for (size_t l = 4 * i; l < 4 * i + 4; l++) {
            QS_FETCH(w + 64 * l, ahead);
            __m512i v = _mm512_xor_si512(_mm512_loadu_si512(w + 64 * l), turn);
            __m512i lo = _mm512_mullo_epi16(_mm512_and_si512(v, low), m);
            __m512i hi = _mm512_mullo_epi16(_mm512_and_si512(_mm512_srli_epi16(v, 4), low), m);
            _mm512_storeu_si512(out + 128 * l, _mm512_sub_epi8(lo, off));
            _mm512_storeu_si512(out + 128 * l + 64, _mm512_sub_epi8(hi, off));
        }
    }
    _mm512_storeu_si512(out + 4096, _mm512_andnot_si512(_mm512_set1_epi32(QS_Q4_SIGNS), scale));
}

QS_QTILE(QS_VNNI, qs_mmq_vnni, qs_mmq_tile_vnni, 12, 1)
QS_QTILE(QS_VNNI, qs_mmq_vnni, qs_mmq_tile_vnni, 4, 1)
QS_QTILE(QS_VNNI, qs_mmq_vnni, qs_mmq_tile_vnni, 4, 2)
QS_QTILE(QS_VNNI, qs_mmq_vnni, qs_mmq_tile_vnni, 3, 2)
QS_QTILE(QS_VNNI, qs_mmq_vnni, qs_mmq_tile_vnni, 3, 3)
QS_QTILE(QS_VNNI, qs_mmq_vnni, qs_mmq_tile_vnni, 3, 4)
QS_QTILE(QS_VNNI, qs_mmq_vnni, qs_mmq_tile_vnni, 1, 1)
QS_QTILE(QS_VNNI, qs_mmq_vnni, qs_mmq_tile_vnni, 1, 2)
QS_QTILE(QS_VNNI, qs_mmq_vnni, qs_mmq_tile_vnni, 1, 3)
QS_QTILE(QS_VNNI, qs_mmq_vnni, qs_mmq_tile_vnni, 1, 4)
QS_QTILE(QS_VNNI, qs_mmq4_vnni, qs_mmq4_tile_vnni, 4, 1)
QS_QTILE(QS_VNNI, qs_mmq4_vnni, qs_mmq4_tile_vnni, 1, 1)
static const qs_qset qs_qset_vnni = {
    {4,
     {{12, {0, qs_mmq_vnni_12x1}},
      {4, {0, qs_mmq_vnni_4x1, qs_mmq_vnni_4x2}},
      {3, {0, 0, qs_mmq_vnni_3x2, qs_mmq_vnni_3x3, qs_mmq_vnni_3x4}},
      {1, {0, qs_mmq_vnni_1x1, qs_mmq_vnni_1x2, qs_mmq_vnni_1x3, qs_mmq_vnni_1x4}}}},
    {1, {{4, {0, qs_mmq4_vnni_4x1}}, {1, {0, qs_mmq4_vnni_1x1}}}},
    qs_unpack_vnni,
    0, /* 16-bit numbers: as fast as the planes, no faster */
    {0, {{0, {0}}}},
    {NULL, NULL},
};
QS_QENTRIES(vnni)

#if defined(QS_HAVE_AVX2)
static const qs_kernels QS_KERNELS_AVX512_VNNI = QS_TABLE(avx512, avx2, vnni);
#else
static const qs_kernels QS_KERNELS_AVX512_VNNI = QS_TABLE(avx512, scalar, vnni);
#endif

#endif /* QS_HAVE_AVX512 */

/* ==================================================================================
 * 11 Kernels: NEON (private)
 * ================================================================================== */

#if defined(QS_HAVE_NEON)
#include <arm_neon.h>

#define QS_NEON
#define QS_NEON_INLINE __attribute__((always_inline)) static inline

/* Quarter q of a line: rows 4q..4q+3. bf16: pairs (k, k + 1), odd picks one */
QS_NEON_INLINE float32x4_t qs_line_neon(int bf16, const char *p, int q, size_t odd)
{
    if (!bf16) return vld1q_f32((const float *)(const void *)p + 4 * q);
    uint32x4_t v = vld1q_u32((const uint32_t *)(const void *)p + 4 * q);
    if (odd) return vreinterpretq_f32_u32(vandq_u32(v, vdupq_n_u32(0xFFFF0000u)));
    return vreinterpretq_f32_u32(vshlq_n_u32(v, 16));
}

/* nb blocks x nt tokens x n k: 4 nb nt accumulators */
QS_NEON_INLINE void qs_mm_tile_neon(int bf16, int nb, int nt, QS_TILE_ARGS)
{
    float32x4_t c[24], v[4];
    QS_UNROLL for (int i = 0; i < 4 * nb * nt; i++) c[i] = vdupq_n_f32(0.0f);
    for (size_t k = 0; k < n; k += bf16 ? 2 : 1, w += 64) {
        QS_UNROLL for (int b = 0; b < nb; b++) QS_FETCH(w + (size_t)b * ws, ahead);
        QS_UNROLL for (size_t odd = 0; odd <= (size_t)bf16; odd++) {
            QS_UNROLL for (int b = 0; b < nb; b++) {
                QS_UNROLL for (int q = 0; q < 4; q++)
                    v[q] = qs_line_neon(bf16, w + (size_t)b * ws, q, odd);
                QS_UNROLL for (int t = 0; t < nt; t++) {
                    float xv = x[(size_t)t * xs + k + odd];
                    QS_UNROLL for (int q = 0; q < 4; q++) {
                        int i = 4 * (b * nt + t) + q;
                        c[i] = vfmaq_n_f32(c[i], v[q], xv);
                    }
                }
            }
        }
    }
    QS_UNROLL for (int i = 0; i < 4 * nb * nt; i++) {
        float *p = y + (size_t)(i / 4 % nt) * ys + 16 * (i / 4 / nt) + 4 * (i % 4);
        vst1q_f32(p, vaddq_f32(vld1q_f32(p), c[i]));
    }
}

QS_LEVELS(QS_NEON, qs_mm_f32_tiles_neon, qs_mm_tile_neon, 0, 4, 1, 2, 3);
QS_LEVELS(QS_NEON, qs_mm_bf16_tiles_neon, qs_mm_tile_neon, 1, 4, 1, 2, 3);

/* 4 values of a row */
QS_NEON_INLINE float32x4_t qs_row_neon(int bf16, const char *w, size_t k)
{
    if (!bf16) return vld1q_f32((const float *)(const void *)w + k);
    uint16x4_t v = vld1_u16((const uint16_t *)(const void *)w + k);
    return vreinterpretq_f32_u32(vshll_n_u16(v, 16));
}

/* The tree over the 16 chains of output i */
QS_NEON_INLINE float qs_tree_neon(float32x4_t (*c)[24], int i)
{
    float32x4_t s = vaddq_f32(vaddq_f32(c[0][i], c[2][i]), vaddq_f32(c[1][i], c[3][i]));
    float32x2_t d = vadd_f32(vget_low_f32(s), vget_high_f32(s));
    return vget_lane_f32(d, 0) + vget_lane_f32(d, 1);
}

/* nr rows x nt tokens: nr nt accumulators of 4 chains. The quarters of the 16 chains
 * take turns over a piece of the rows: all at once would leave a small tile, and loads
 * would outnumber the products. */
QS_NEON_INLINE void qs_dots_tile_neon(int bf16, int nr, int nt, QS_TILE_ARGS)
{
    float32x4_t sum[4][24];
    QS_UNROLL for (int i = 0; i < nr * nt; i++)
        sum[0][i] = sum[1][i] = sum[2][i] = sum[3][i] = vdupq_n_f32(0.0f);
    for (size_t from = 0; from < n; from += QS_DOTS_PIECE) {
        size_t to = n - from < QS_DOTS_PIECE ? n : from + QS_DOTS_PIECE;
        for (size_t q = 0; q < 4; q++) {
            float32x4_t c[24], v[8];
            QS_UNROLL for (int i = 0; i < nr * nt; i++) c[i] = sum[q][i];
            for (size_t k = from + 4 * q; k < to; k += 16) {
                QS_UNROLL for (int r = 0; r < nr; r++) {
                    QS_FETCH(w + (size_t)r * ws + (bf16 ? 2 : 4) * k, ahead);
                    v[r] = qs_row_neon(bf16, w + (size_t)r * ws, k);
                }
                QS_UNROLL for (int t = 0; t < nt; t++) {
                    float32x4_t xv = vld1q_f32(x + (size_t)t * xs + k);
                    QS_UNROLL for (int r = 0; r < nr; r++)
                        c[r * nt + t] = vfmaq_f32(c[r * nt + t], v[r], xv);
                }
            }
            QS_UNROLL for (int i = 0; i < nr * nt; i++) sum[q][i] = c[i];
        }
    }
    QS_UNROLL for (int i = 0; i < nr * nt; i++)
        y[(size_t)(i % nt) * ys + (size_t)(i / nt)] = qs_tree_neon(sum, i);
}

QS_LEVELS(QS_NEON, qs_dots_f32_tiles_neon, qs_dots_tile_neon, 0, 8, 3, 4, 6);
QS_LEVELS(QS_NEON, qs_dots_bf16_tiles_neon, qs_dots_tile_neon, 1, 8, 3, 4, 6);

QS_NEON_INLINE void qs_axpy_neon(int bf16, float a, const char *w, size_t n, float *y)
{
    for (size_t j = 0; j < n; j += 4)
        vst1q_f32(y + j, vfmaq_n_f32(vld1q_f32(y + j), qs_row_neon(bf16, w, j), a));
}

QS_ENTRIES(QS_NEON, neon, f32, 0)
QS_ENTRIES(QS_NEON, neon, bf16, 1)

/* p * r + a, rounded twice like qs_exp */
QS_NEON_INLINE float32x4_t qs_muladd_neon(float32x4_t p, float32x4_t r, float a)
{
    return vaddq_f32(vmulq_f32(p, r), vdupq_n_f32(a));
}

/* qs_exp on 4 values, operation for operation */
QS_NEON_INLINE float32x4_t qs_exp_neon(float32x4_t x)
{
    const float magic = 12582912.0f;
    float32x4_t n = qs_muladd_neon(x, vdupq_n_f32(1.44269504088896341f), magic);
    n = vsubq_f32(n, vdupq_n_f32(magic));
    float32x4_t r = vsubq_f32(x, vmulq_f32(n, vdupq_n_f32(0.693359375f)));
    r = vsubq_f32(r, vmulq_f32(n, vdupq_n_f32(-2.12194440e-4f)));
    float32x4_t p = qs_muladd_neon(vdupq_n_f32(1.9875691500e-4f), r, 1.3981999507e-3f);
    p = qs_muladd_neon(p, r, 8.3334519073e-3f);
    p = qs_muladd_neon(p, r, 4.1665795894e-2f);
    p = qs_muladd_neon(p, r, 1.6666665459e-1f);
    p = qs_muladd_neon(p, r, 5.0000001201e-1f);
    p = vaddq_f32(vmulq_f32(p, vmulq_f32(r, r)), r);
    p = vaddq_f32(p, vdupq_n_f32(1.0f));
    int32x4_t u = vshlq_n_s32(vcvtq_s32_f32(n), 23);
    p = vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), u));
    p = vbslq_f32(vcltq_f32(x, vdupq_n_f32(-87.0f)), vdupq_n_f32(0.0f), p);
    p = vbslq_f32(vcgtq_f32(x, vdupq_n_f32(88.0f)), vdupq_n_f32(INFINITY), p);
    return vbslq_f32(vceqq_f32(x, x), p, x);
}

static void qs_silu_mul_neon(float *g, const float *u, size_t n)
{
    size_t j = 0;
    for (; n - j >= 4; j += 4) {
        float32x4_t v = vld1q_f32(g + j);
        float32x4_t e = qs_exp_neon(vnegq_f32(v));
        v = vdivq_f32(v, vaddq_f32(vdupq_n_f32(1.0f), e));
        vst1q_f32(g + j, vmulq_f32(v, vld1q_f32(u + j)));
    }
    qs_silu_mul_scalar(g + j, u + j, n - j);
}

static float qs_soften_neon(float *s, size_t n, float scale, float *max, float old)
{
    float lanes[16];
    float32x4_t m = vdupq_n_f32(-INFINITY), c[4];
    n = qs_soften_fill(s, n);
    for (size_t j = 0; j < n; j += 4) {
        float32x4_t v = vmulq_n_f32(vld1q_f32(s + j), scale);
        vst1q_f32(s + j, v);
        m = vbslq_f32(vcgtq_f32(v, m), v, m);
    }
    vst1q_f32(lanes, m);
    *max = qs_soften_top(lanes, 4, old);
    m = vdupq_n_f32(*max);
    QS_UNROLL for (size_t i = 0; i < 4; i++) c[i] = vdupq_n_f32(0.0f);
    for (size_t j = 0; j < n; j += 16)
        QS_UNROLL for (size_t i = 0; i < 4; i++) {
            float32x4_t v = qs_exp_neon(vsubq_f32(vld1q_f32(s + j + 4 * i), m));
            vst1q_f32(s + j + 4 * i, v);
            c[i] = vaddq_f32(c[i], v);
        }
    QS_UNROLL for (size_t i = 0; i < 4; i++) vst1q_f32(lanes + 4 * i, c[i]);
    return qs_tree16(lanes);
}

static void qs_widen_f16_neon(const uint16_t *h, size_t n, float *x)
{
    for (size_t j = 0; j < n; j += 4) vst1q_f32(x + j, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(h + j))));
}

static void qs_widen_bf16_neon(const uint16_t *h, size_t n, float *x)
{
    for (size_t j = 0; j < n; j += 4) vst1q_f32(x + j, vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(h + j), 16)));
}

/* One block, one token: per plane and quarter of the rows two accumulators, (0, 0, 1, 1) and (2, 2, 3, 3) of its
 * rows. A product of bytes fits 16 bits, two of them do not: they are added in pairs to 32. */
QS_NEON_INLINE void qs_mmq_tile_neon(int nb, int nt, QS_QTILE_ARGS)
{
    int32x4_t c[2][8];
    (void)nb;
    (void)nt;
    (void)ws;
    (void)ys;
    for (int i = 0; i < 8; i++) c[0][i] = c[1][i] = vdupq_n_s32(0);
    for (size_t l = 0; l < 64; l++) {
        int32_t quad[2];
        memcpy(&quad[0], x->p1 + 4 * l, 4);
        memcpy(&quad[1], x->p2 + 4 * l, 4);
        QS_FETCH(w + 64 * l, ahead);
        QS_UNROLL for (int q = 0; q < 4; q++) {
            int8x16_t v = vld1q_s8((const int8_t *)w + 64 * l + 16 * (size_t)q);
            QS_UNROLL for (int p = 0; p < 2; p++) {
                int8x16_t xv = vreinterpretq_s8_s32(vdupq_n_s32(quad[p]));
                c[p][2 * q] = vpadalq_s16(c[p][2 * q], vmull_s8(vget_low_s8(v), vget_low_s8(xv)));
                c[p][2 * q + 1] = vpadalq_s16(c[p][2 * q + 1], vmull_high_s8(v, xv));
            }
        }
    }
    QS_UNROLL for (int q = 0; q < 4; q++) {
        int32x4_t p1 = vpaddq_s32(c[0][2 * q], c[0][2 * q + 1]), p2 = vpaddq_s32(c[1][2 * q], c[1][2 * q + 1]);
        float32x4_t a = vld1q_f32((const float *)(const void *)(w + 4096) + 4 * q);
        float32x4_t sum = vcvtq_f32_s32(vaddq_s32(vshlq_n_s32(p1, 8), p2));
        vst1q_f32(y + 4 * q, vfmaq_f32(vld1q_f32(y + 4 * q), sum, vmulq_n_f32(a, x->scale)));
    }
}

/* 16 bytes of halves times m, less off */
QS_NEON_INLINE int8x16_t qs_times_neon(uint8x16_t q, uint8x16_t m, uint8x16_t off)
{
    return vreinterpretq_s8_u8(vsubq_u8(vmulq_u8(q, m), off));
}

/* q + 8 with all bits turned is 7 - q: with 7 |m| off instead of 8 |m| it serves a negative m. */
static void qs_unpack_neon(const char *w, char *out, size_t ahead)
{
    for (size_t q = 0; q < 4; q++) {
        uint32x4_t all = vld1q_u32((const uint32_t *)(const void *)(w + 2048) + 4 * q);
        uint32x4_t scale = vld1q_u32((const uint32_t *)(const void *)(w + 2112) + 4 * q);
        for (size_t i = 0; i < 8; i++, all = vshrq_n_u32(all, 4)) {
            uint32x4_t one = vandq_u32(all, vdupq_n_u32(15));
            uint8x16_t m = vreinterpretq_u8_u32(vmulq_n_u32(one, 0x01010101u));
            uint8x16_t turn = vreinterpretq_u8_u32(vtstq_u32(scale, vdupq_n_u32(1u << i)));
            uint8x16_t off = vsubq_u8(vshlq_n_u8(m, 3), vandq_u8(m, turn));
            for (size_t l = 4 * i; l < 4 * i + 4; l++) {
                QS_FETCH(w + 64 * l + 16 * q, ahead);
                uint8x16_t v = veorq_u8(vld1q_u8((const uint8_t *)w + 64 * l + 16 * q), turn);
                int8_t *to = (int8_t *)out + 128 * l + 16 * q;
                vst1q_s8(to, qs_times_neon(vandq_u8(v, vdupq_n_u8(15)), m, off));
                vst1q_s8(to + 64, qs_times_neon(vshrq_n_u8(v, 4), m, off));
            }
        }
        vst1q_u32((uint32_t *)(void *)(out + 4096) + 4 * q, vbicq_u32(scale, vdupq_n_u32(QS_Q4_SIGNS)));
    }
}

QS_QTILE(QS_NEON, qs_mmq_neon, qs_mmq_tile_neon, 1, 1)
static const qs_qset qs_qset_neon = {
    {1, {{1, {0, qs_mmq_neon_1x1}}}}, {0, {{0, {0}}}}, qs_unpack_neon, 0, {0, {{0, {0}}}}, {NULL, NULL}};
QS_QENTRIES(neon)

static const qs_kernels QS_KERNELS_NEON = QS_TABLE(neon, scalar, neon);

/* ---- dot products of four bytes (ARMv8.2 dotprod) ---- */

#define QS_DOT __attribute__((target("arch=armv8.2-a+dotprod")))
#define QS_DOT_INLINE __attribute__((target("arch=armv8.2-a+dotprod"), always_inline)) static inline

/* nb blocks x nt tokens: 8 nb nt accumulators of 4 rows; 16 bytes of a plane serve 4 lines */
QS_DOT_INLINE void qs_mmq_tile_neondot(int nb, int nt, QS_QTILE_ARGS)
{
    int32x4_t c1[12], c2[12];
    QS_UNROLL for (int i = 0; i < 4 * nb * nt; i++) c1[i] = c2[i] = vdupq_n_s32(0);
    for (size_t l = 0; l < 64; l += 4) {
        int8x16_t v1[3], v2[3];
        QS_UNROLL for (int t = 0; t < nt; t++) {
            v1[t] = vld1q_s8(x[t].p1 + 4 * l);
            v2[t] = vld1q_s8(x[t].p2 + 4 * l);
        }
#define QS_DOT_LINE(lane)                                                              \
        QS_UNROLL for (int b = 0; b < nb; b++) {                                       \
            const char *p = w + (size_t)b * ws + 64 * (l + (lane));                    \
            QS_FETCH(p, ahead);                                                        \
            QS_UNROLL for (int q = 0; q < 4; q++) {                                    \
                int8x16_t wv = vld1q_s8((const int8_t *)p + 16 * q);                   \
                QS_UNROLL for (int t = 0; t < nt; t++) {                               \
                    int i = 4 * (b * nt + t) + q;                                      \
                    c1[i] = vdotq_laneq_s32(c1[i], wv, v1[t], lane);                   \
                    c2[i] = vdotq_laneq_s32(c2[i], wv, v2[t], lane);                   \
                }                                                                      \
            }                                                                          \
        }
        QS_DOT_LINE(0)
        QS_DOT_LINE(1)
        QS_DOT_LINE(2)
        QS_DOT_LINE(3)
    }
    QS_UNROLL for (int i = 0; i < 4 * nb * nt; i++) {
        int b = i / 4 / nt, t = i / 4 % nt, q = i % 4;
        const qs_group *g = &x[t];
        float32x4_t a = vld1q_f32((const float *)(const void *)(w + (size_t)b * ws + 4096) + 4 * q);
        float32x4_t sum = vcvtq_f32_s32(vaddq_s32(vshlq_n_s32(c1[i], 8), c2[i]));
        float *to = y + (size_t)t * ys + 16 * b + 4 * q;
        vst1q_f32(to, vfmaq_f32(vld1q_f32(to), sum, vmulq_n_f32(a, g->scale)));
    }
}

QS_QTILE(QS_DOT, qs_mmq_neondot, qs_mmq_tile_neondot, 2, 1)
QS_QTILE(QS_DOT, qs_mmq_neondot, qs_mmq_tile_neondot, 1, 1)
QS_QTILE(QS_DOT, qs_mmq_neondot, qs_mmq_tile_neondot, 1, 2)
static const qs_qset qs_qset_neondot = {
    {2, {{2, {0, qs_mmq_neondot_2x1}}, {1, {0, qs_mmq_neondot_1x1, qs_mmq_neondot_1x2}}}},
    {0, {{0, {0}}}},
    qs_unpack_neon,
    0,
    {0, {{0, {0}}}},
    {NULL, NULL}};
QS_QENTRIES(neondot)

static const qs_kernels QS_KERNELS_NEON_DOT = QS_TABLE(neon, scalar, neondot);

/* ---- products of 2 x 8 with 8 x 2 bytes (ARMv8.6 i8mm) ---- */

#define QS_I8MM __attribute__((target("arch=armv8.2-a+dotprod+i8mm")))
#define QS_I8MM_INLINE __attribute__((target("arch=armv8.2-a+dotprod+i8mm"), always_inline)) static inline

/* One block x nt tokens: 8 nt accumulators, each (row, plane 1), (row, plane 2), (next row, plane 1), (next row,
 * plane 2). Two lines give 8 k of 16 rows, the planes of a token are the two columns. */
QS_I8MM_INLINE void qs_mmq_tile_neoni8mm(int nb, int nt, QS_QTILE_ARGS)
{
    int32x4_t c[24];
    (void)nb;
    (void)ws;
    QS_UNROLL for (int i = 0; i < 8 * nt; i++) c[i] = vdupq_n_s32(0);
    for (size_t l = 0; l < 64; l += 2) {
        int8x16_t v[3];
        QS_FETCH(w + 64 * l, ahead);
        QS_FETCH(w + 64 * l + 64, ahead);
        QS_UNROLL for (int t = 0; t < nt; t++) v[t] = vcombine_s8(vld1_s8(x[t].p1 + 4 * l), vld1_s8(x[t].p2 + 4 * l));
        QS_UNROLL for (int q = 0; q < 4; q++) {
            int32x4_t lo = vreinterpretq_s32_s8(vld1q_s8((const int8_t *)w + 64 * l + 16 * (size_t)q));
            int32x4_t hi = vreinterpretq_s32_s8(vld1q_s8((const int8_t *)w + 64 * l + 64 + 16 * (size_t)q));
            int8x16_t r01 = vreinterpretq_s8_s32(vzip1q_s32(lo, hi)), r23 = vreinterpretq_s8_s32(vzip2q_s32(lo, hi));
            QS_UNROLL for (int t = 0; t < nt; t++) {
                c[8 * t + 2 * q] = vmmlaq_s32(c[8 * t + 2 * q], r01, v[t]);
                c[8 * t + 2 * q + 1] = vmmlaq_s32(c[8 * t + 2 * q + 1], r23, v[t]);
            }
        }
    }
    QS_UNROLL for (int i = 0; i < 4 * nt; i++) {
        int t = i / 4, q = i % 4;
        int32x4_t p1 = vuzp1q_s32(c[2 * i], c[2 * i + 1]), p2 = vuzp2q_s32(c[2 * i], c[2 * i + 1]);
        float32x4_t a = vld1q_f32((const float *)(const void *)(w + 4096) + 4 * q);
        float32x4_t sum = vcvtq_f32_s32(vaddq_s32(vshlq_n_s32(p1, 8), p2));
        float *to = y + (size_t)t * ys + 4 * q;
        vst1q_f32(to, vfmaq_f32(vld1q_f32(to), sum, vmulq_n_f32(a, x[t].scale)));
    }
}

QS_QTILE(QS_I8MM, qs_mmq_neoni8mm, qs_mmq_tile_neoni8mm, 1, 1)
QS_QTILE(QS_I8MM, qs_mmq_neoni8mm, qs_mmq_tile_neoni8mm, 1, 2)
QS_QTILE(QS_I8MM, qs_mmq_neoni8mm, qs_mmq_tile_neoni8mm, 1, 3)
static const qs_qset qs_qset_neoni8mm = {
    {3, {{1, {0, qs_mmq_neoni8mm_1x1, qs_mmq_neoni8mm_1x2, qs_mmq_neoni8mm_1x3}}}},
    {0, {{0, {0}}}},
    qs_unpack_neon,
    0,
    {0, {{0, {0}}}},
    {NULL, NULL}};
QS_QENTRIES(neoni8mm)

static const qs_kernels QS_KERNELS_NEON_I8MM = QS_TABLE(neon, scalar, neoni8mm);

#endif /* QS_HAVE_NEON */

/* ===================================================================================================
 * 12 Instruction sets: detection and choice (public)
 *
 * Asked at every open: a few instructions, and no state to keep.
 * =================================================================================================== */

#if defined(QS_HAVE_AVX2) || defined(QS_HAVE_AVX512)

/* XCR0: which registers the system saves on a context switch; 0 if it cannot be read.
 * xgetbv is written as bytes: its intrinsic would need a target attribute. */
static unsigned qs_xcr0(void)
{
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & 1u << 27)) return 0; /* OSXSAVE */
    __asm__ volatile(".byte 0x0f, 0x01, 0xd0" : "=a"(a), "=d"(d) : "c"(0));
    return a;
}

/* 0: baseline, 2: also AVX2, FMA and F16C, 3: also AVX-512 F, 4: also its BW and VNNI; with the registers saved */
static int qs_x86_level(void)
{
    unsigned a = 0, b = 0, c = 0, d = 0, xcr0 = qs_xcr0();
    if ((xcr0 & 6) != 6) return 0; /* XMM, YMM */
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    if (!(c & 1u << 28) || !(c & 1u << 12) || !(c & 1u << 29)) return 0; /* AVX, FMA, F16C */
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    if (!(b & 1u << 5)) return 0;                     /* AVX2 */
    if (!(b & 1u << 16) || (xcr0 & 0xE6) != 0xE6) return 2; /* AVX-512 F; ZMM, masks */
    return b & 1u << 30 && c & 1u << 11 ? 4 : 3;            /* BW, VNNI */
}

#endif

#if defined(QS_HAVE_NEON)
#if defined(__linux__)
#include <sys/auxv.h>
static int qs_has_dotprod(void) { return getauxval(AT_HWCAP) >> 20 & 1; /* HWCAP_ASIMDDP */ }
static int qs_has_i8mm(void) { return getauxval(AT_HWCAP2) >> 13 & 1; /* HWCAP2_I8MM */ }
#elif defined(__APPLE__)
static int qs_has_dotprod(void) { return 1; /* every Apple machine of this architecture */ }
static int qs_has_i8mm(void) { return 0; /* not all have it: not used there */ }
#else
static int qs_has_dotprod(void) { return 0; }
static int qs_has_i8mm(void) { return 0; }
#endif
#endif

/* 1 if this build has kernels for isa and this machine runs them */
static int qs_isa_runs(qsae_isa isa)
{
    switch (isa) {
    case QSAE_ISA_SCALAR: return 1;
#if defined(QS_HAVE_AVX2)
    case QSAE_ISA_AVX2: return qs_x86_level() >= 2;
#endif
#if defined(QS_HAVE_AVX512)
    case QSAE_ISA_AVX512: return qs_x86_level() >= 3;
    case QSAE_ISA_AVX512_VNNI: return qs_x86_level() >= 4;
#endif
#if defined(QS_HAVE_NEON)
    case QSAE_ISA_NEON: return 1;
    case QSAE_ISA_NEON_DOT: return qs_has_dotprod();
    case QSAE_ISA_NEON_I8MM: return qs_has_i8mm();
#endif
    default: return 0;
    }
}
static const qs_kernels *qs_kernels_of(qsae_isa isa) /* NULL if not in this build */
{
    switch (isa) {
    case QSAE_ISA_SCALAR: return &QS_KERNELS_SCALAR;
#if defined(QS_HAVE_AVX2)
    case QSAE_ISA_AVX2: return &QS_KERNELS_AVX2;
#endif
#if defined(QS_HAVE_AVX512)
    case QSAE_ISA_AVX512: return &QS_KERNELS_AVX512;
    case QSAE_ISA_AVX512_VNNI: return &QS_KERNELS_AVX512_VNNI;
#endif
#if defined(QS_HAVE_NEON)
    case QSAE_ISA_NEON: return &QS_KERNELS_NEON;
    case QSAE_ISA_NEON_DOT: return &QS_KERNELS_NEON_DOT;
    case QSAE_ISA_NEON_I8MM: return &QS_KERNELS_NEON_I8MM;
#endif
    default: return NULL;
    }
}

const char *qsae_isa_name(qsae_isa isa)
{
    static const char *const names[QSAE_ISA_COUNT] = {"auto",       "scalar", "avx2",    "avx512",
                                                      "avx512vnni", "neon",   "neondot", "neoni8mm"};
    return (unsigned)isa < QSAE_ISA_COUNT ? names[isa] : NULL;
}

int qsae_isa_available(qsae_isa isa)
{
    if (isa == QSAE_ISA_AUTO || isa == QSAE_ISA_SCALAR) return 1;
    return qs_kernels_of(isa) && qs_isa_runs(isa);
}

/* AUTO becomes the widest that runs; anything that does not run is refused. */
static qsae_status qs_choose_isa(qsae_isa *isa, qsae_error *err)
{
    static const qsae_isa best_first[] = {QSAE_ISA_AVX512_VNNI, QSAE_ISA_AVX512, QSAE_ISA_AVX2,
                                          QSAE_ISA_NEON_I8MM,   QSAE_ISA_NEON_DOT, QSAE_ISA_NEON, QSAE_ISA_SCALAR};
    if ((unsigned)*isa >= QSAE_ISA_COUNT)
        return qs_fail(err, QSAE_E_ARG, 0, "isa %d is not an instruction set", (int)*isa);
    if (*isa == QSAE_ISA_AUTO) {
        size_t i = 0;
        while (!qsae_isa_available(best_first[i])) i++;
        *isa = best_first[i];
    } else if (!qsae_isa_available(*isa)) {
        return qs_fail(err, QSAE_E_UNSUP, 0, "instruction set %s is not available here",
                       qsae_isa_name(*isa));
    }
    return QSAE_OK;
}

/* ===================================================================================================
 * 13 Sites: names and widths (public)
 * =================================================================================================== */

static const char *const QS_SITE_NAMES[QSAE_SITE_COUNT] = {
    "resid_pre", "attn_z", "attn_out", "resid_mid", "mlp_input", "mlp_out", "resid_post"};

const char *qsae_site_name(qsae_site site)
{
    return (unsigned)site < QSAE_SITE_COUNT ? QS_SITE_NAMES[site] : NULL;
}

int qsae_site_from_name(const char *name)
{
    for (int i = 0; name && i < QSAE_SITE_COUNT; i++)
        if (strcmp(name, QS_SITE_NAMES[i]) == 0) return i;
    return -1;
}

/* 1 if (layer, site) a is computed before b */
static int qs_site_before(uint32_t layer_a, uint32_t site_a, uint32_t layer_b, uint32_t site_b)
{
    return layer_a != layer_b ? layer_a < layer_b : site_a < site_b;
}

/* ===================================================================================================
 * 14 Container: header, directory, verification (public)
 *
 * Everything is checked here once, on a heap copy of the tables (a mapped file can change under us), in
 * time proportional to the number of tensors and without touching weights. Later sections trust it.
 * =================================================================================================== */

#define QS_MAX_LAYERS  512u
#define QS_MAX_WIDTH   65536u   /* d_model, n_heads * head_dim, d_in, d_out */
#define QS_MAX_FF      1048576u
#define QS_MAX_VOCAB   1048576u
#define QS_MAX_D_SAE   16777216u
#define QS_MAX_TENSORS 1048576u
#define QS_MAX_POS     1048576u /* qs_sincos is exact up to here */
#define QS_MAX_SAES    65536u

typedef struct qs_container {
    qsae_allocator alloc;
    qs_file file;
    qsae_file_header head;
    uint8_t *index; /* [head.index_size], heap */
    const qsae_tensor_record *tensors; /* [head.n_tensors], into index */
} qs_container;

static void qs_container_close(qs_container *c)
{
    qs_release(&c->alloc, c->index, (size_t)c->head.index_size);
    qs_file_close(&c->file, &c->alloc);
}

/* Bytes of a row of cols values in ROWS layout. */
static uint64_t qs_row_bytes(uint32_t type, uint64_t cols)
{
    uint64_t bytes = cols * (type == QSAE_TYPE_F32 ? 4u : 2u);
    return (bytes + 63) & ~(uint64_t)63;
}

uint64_t qsae_tensor_bytes(uint32_t type, uint32_t layout, uint64_t rows, uint64_t cols)
{
    const uint64_t cap = (uint64_t)1 << 40; /* both below it: no sum or product here can wrap */
    if (!rows || !cols || rows > cap || cols > cap) return 0;
    if (layout == QSAE_LAYOUT_BYTES)
        return type == QSAE_TYPE_BYTES && rows == 1 ? (cols + 63) & ~(uint64_t)63 : 0;
    if (layout == QSAE_LAYOUT_VECTOR)
        return type == QSAE_TYPE_F32 && rows == 1 ? (cols * 4 + 63) & ~(uint64_t)63 : 0;
    uint64_t per_row, n;
    if (layout == QSAE_LAYOUT_BLOCK16 && (type == QSAE_TYPE_Q8 || type == QSAE_TYPE_Q4)) {
        per_row = (cols + QS_GROUP - 1) / QS_GROUP * (type == QSAE_TYPE_Q8 ? QS_Q8_BYTES : QS_Q4_BYTES);
        n = (rows + 15) / 16; /* superblocks have no padding of their own */
    } else if (type != QSAE_TYPE_F32 && type != QSAE_TYPE_BF16) {
        return 0;
    } else if (layout == QSAE_LAYOUT_BLOCK16) {
        per_row = ((cols + 15) & ~(uint64_t)15) * (type == QSAE_TYPE_F32 ? 4u : 2u);
        n = (rows + 15) & ~(uint64_t)15;
    } else if (layout == QSAE_LAYOUT_ROWS) {
        per_row = qs_row_bytes(type, cols);
        n = rows;
    } else {
        return 0;
    }
    return n > (uint64_t)INT64_MAX / per_row ? 0 : n * per_row;
}

/* "layer 3 role 17 (attn q)"-style names for messages */
static const char *qs_role_name(uint32_t role)
{
    switch (role) {
    case QSAE_ROLE_EMBED: return "embed";
    case QSAE_ROLE_FINAL_NORM: return "final_norm";
    case QSAE_ROLE_LM_HEAD: return "lm_head";
    case QSAE_ROLE_ROPE: return "rope";
    case QSAE_ROLE_TOKENIZER: return "tokenizer";
    case QSAE_ROLE_META: return "meta";
    case QSAE_ROLE_ATTN_NORM: return "attn_norm";
    case QSAE_ROLE_Q: return "q";
    case QSAE_ROLE_K: return "k";
    case QSAE_ROLE_V: return "v";
    case QSAE_ROLE_Q_NORM: return "q_norm";
    case QSAE_ROLE_K_NORM: return "k_norm";
    case QSAE_ROLE_O: return "o";
    case QSAE_ROLE_MLP_NORM: return "mlp_norm";
    case QSAE_ROLE_GATE: return "gate";
    case QSAE_ROLE_UP: return "up";
    case QSAE_ROLE_DOWN: return "down";
    case QSAE_ROLE_ENC: return "enc";
    case QSAE_ROLE_DEC: return "dec";
    case QSAE_ROLE_B_ENC: return "b_enc";
    case QSAE_ROLE_THETA: return "theta";
    case QSAE_ROLE_MAG_SCALE: return "mag_scale";
    case QSAE_ROLE_MAG_BIAS: return "mag_bias";
    case QSAE_ROLE_B_DEC: return "b_dec";
    case QSAE_ROLE_SKIP: return "skip";
    case QSAE_ROLE_SCREEN: return "screen";
    case QSAE_ROLE_SCREEN_REST: return "screen_rest";
    case QSAE_ROLE_SCREEN_NORM: return "screen_norm";
    default: return "unknown";
    }
}

static qsae_status qs_tensor_fail(qsae_error *err, qsae_status st, const qsae_tensor_record *t,
                                  const char *what, uint64_t found, uint64_t expected)
{
    return qs_fail(err, st, t->offset, "tensor %s (group %u): %s is %llu, expected %llu",
                   qs_role_name(t->role), t->group, what, (unsigned long long)found,
                   (unsigned long long)expected);
}

static qsae_status qs_bad_magic(const uint8_t *p, size_t n, qsae_error *err)
{
    const char *what = "it is none of the formats known here";
    if (n >= 4 && memcmp(p, "GGUF", 4) == 0) what = "it looks like a GGUF file: use qsae convert";
    else if (n >= 4 && memcmp(p, "PK\3\4", 4) == 0) what = "it looks like a zip (.pt, .npz): use qsae convert";
    else if (n >= 9 && p[8] == '{') what = "it looks like a safetensors file: use qsae convert";
    else if (n >= 1 && p[0] == '{') what = "it looks like JSON";
    else if (n >= 4 && memcmp(p, "QSAE", 4) == 0) what = "its line ends were changed by a text-mode copy";
    return qs_fail(err, QSAE_E_MAGIC, 0, "not a .qsae file: %s", what);
}

static qsae_status qs_check_header(const qsae_file_header *h, size_t size, qsae_error *err)
{
    if (h->endian != QSAE_FILE_ENDIAN)
        return qs_fail(err, h->endian == 0x04030201u ? QSAE_E_UNSUP : QSAE_E_FORMAT, 12,
                       "endian mark is 0x%08x, expected 0x%08x", h->endian, QSAE_FILE_ENDIAN);
    if (h->version != QSAE_FILE_VERSION)
        return qs_fail(err, QSAE_E_VERSION, 8, "format version is %u, this library reads %u", h->version,
                       QSAE_FILE_VERSION);
    if (h->file_size != size)
        return qs_fail(err, size < h->file_size ? QSAE_E_TRUNC : QSAE_E_FORMAT, 16,
                       "the file has %zu bytes, its header says %llu", size,
                       (unsigned long long)h->file_size);
    if (h->kind != QSAE_KIND_MODEL && h->kind != QSAE_KIND_SAE)
        return qs_fail(err, QSAE_E_UNSUP, 24, "file kind is %u, expected 1 (model) or 2 (SAE)", h->kind);
    uint32_t most = h->kind == QSAE_KIND_MODEL ? 1 : QS_MAX_SAES;
    if (h->n_records < 1 || h->n_records > most)
        return qs_fail(err, QSAE_E_FORMAT, 28, "n_records is %u, must be 1..%u", h->n_records, most);
    if (h->n_tensors < 1 || h->n_tensors > QS_MAX_TENSORS)
        return qs_fail(err, h->n_tensors ? QSAE_E_LIMIT : QSAE_E_FORMAT, 32, "n_tensors is %u, must be 1..%u",
                       h->n_tensors, QS_MAX_TENSORS);
    if (h->zero0 || h->zero1) return qs_fail(err, QSAE_E_FORMAT, 36, "a reserved header field is not 0");
    uint64_t index = (uint64_t)256 * h->n_records + (uint64_t)64 * h->n_tensors;
    if (h->index_size != index)
        return qs_fail(err, QSAE_E_FORMAT, 40, "index_size is %llu, expected %llu",
                       (unsigned long long)h->index_size, (unsigned long long)index);
    if (index > size - 64)
        return qs_fail(err, QSAE_E_TRUNC, 40, "the index needs %llu bytes, the file has %zu",
                       (unsigned long long)index, size - 64);
    return QSAE_OK;
}

static qsae_status qs_check_hash(const qsae_file_header *h, const uint8_t *index, qsae_error *err)
{
    qsae_file_header zeroed = *h;
    zeroed.hash = 0;
    qsae_hash s;
    qsae_hash_begin(&s);
    qsae_hash_add(&s, &zeroed, sizeof zeroed);
    qsae_hash_add(&s, index, (size_t)h->index_size);
    uint64_t found = qsae_hash_end(&s);
    if (found == h->hash) return QSAE_OK;
    return qs_fail(err, QSAE_E_FORMAT, 56, "header checksum is %016llx, computed %016llx",
                   (unsigned long long)h->hash, (unsigned long long)found);
}

/* Directory: sorted, sizes as their types and shapes say, contiguous from the index to the file's end. */
static qsae_status qs_check_directory(const qs_container *c, qsae_error *err)
{
    uint64_t at = 64 + c->head.index_size;
    for (uint32_t i = 0; i < c->head.n_tensors; i++) {
        const qsae_tensor_record *t = &c->tensors[i];
        if (i && (t[-1].group > t->group || (t[-1].group == t->group && t[-1].role >= t->role)))
            return qs_fail(err, QSAE_E_FORMAT, 0, "directory entry %u is not in order", i);
        if (t->type == 5)
            return qs_fail(err, QSAE_E_UNSUP, 0,
                           "tensor %s (group %u): type 5 is an earlier q4, which is not read any more: convert the model again",
                           qs_role_name(t->role), t->group);
        if (t->type < QSAE_TYPE_F32 || t->type > QSAE_TYPE_Q4)
            return qs_tensor_fail(err, QSAE_E_UNSUP, t, "type", t->type, QSAE_TYPE_F32);
        uint64_t size = qsae_tensor_bytes(t->type, t->layout, t->rows, t->cols);
        if (!size)
            return qs_fail(err, QSAE_E_FORMAT, 0,
                           "tensor %s (group %u): type %u, layout %u, shape [%llu, %llu] do not go together",
                           qs_role_name(t->role), t->group, t->type, t->layout,
                           (unsigned long long)t->rows, (unsigned long long)t->cols);
        if (t->size != size) return qs_tensor_fail(err, QSAE_E_FORMAT, t, "size", t->size, size);
        if (t->offset != at) return qs_tensor_fail(err, QSAE_E_FORMAT, t, "offset", t->offset, at);
        if (size > c->head.file_size - at)
            return qs_tensor_fail(err, QSAE_E_TRUNC, t, "size", size, c->head.file_size - at);
        if (t->zero) return qs_tensor_fail(err, QSAE_E_FORMAT, t, "reserved field", t->zero, 0);
        at += size;
    }
    if (at != c->head.file_size)
        return qs_fail(err, QSAE_E_FORMAT, at, "data ends at byte %llu, the file at %llu",
                       (unsigned long long)at, (unsigned long long)c->head.file_size);
    return QSAE_OK;
}

/* ---- verification: reads every byte ---- */

/* Inf and NaN have all exponent bits set. *at receives the first bad element. */
static int qs_find_not_finite(const uint8_t *p, uint32_t type, uint64_t n, uint64_t *at)
{
    const uint64_t step = 4096; /* a branch-free block, searched only if something is in it */
    for (uint64_t i = 0; i < n; i += step) {
        uint64_t end = n - i < step ? n : i + step;
        uint32_t bad = 0;
        if (type == QSAE_TYPE_F32) {
            const uint32_t *v = (const void *)p;
            for (uint64_t j = i; j < end; j++) bad |= (v[j] & 0x7f800000u) == 0x7f800000u;
            for (uint64_t j = i; bad && j < end; j++)
                if ((v[j] & 0x7f800000u) == 0x7f800000u) return *at = j, 1;
        } else {
            const uint16_t *v = (const void *)p;
            for (uint64_t j = i; j < end; j++) bad |= (v[j] & 0x7f80u) == 0x7f80u;
            for (uint64_t j = i; bad && j < end; j++)
                if ((v[j] & 0x7f80u) == 0x7f80u) return *at = j, 1;
        }
    }
    return 0;
}

static int qs_all_zero(const uint8_t *p, uint64_t n)
{
    uint8_t any = 0;
    for (uint64_t i = 0; i < n; i++) any |= p[i];
    return any == 0;
}

/* Padding of a BLOCK16 matrix: columns cols.. of every block, and rows rows.. of the last one. */
static int qs_block16_padding_zero(const uint8_t *p, const qsae_tensor_record *t)
{
    uint64_t elem = t->type == QSAE_TYPE_F32 ? 4 : 2, kp = (t->cols + 15) & ~(uint64_t)15;
    uint64_t nb = (t->rows + 15) / 16, block = 16 * elem * kp;
    uint64_t pair = t->type == QSAE_TYPE_F32 ? 1 : 2; /* columns that share a 64-byte line */
    for (uint64_t b = 0; b < nb; b++) {
        uint64_t valid = t->rows - 16 * b < 16 ? t->rows - 16 * b : 16;
        for (uint64_t k = valid == 16 ? t->cols : 0; k < kp; k++)
            for (uint64_t r = k < t->cols ? valid : 0; r < 16; r++) {
                uint64_t at = b * block + k / pair * 64 + r * 4 + (pair == 2 ? k % 2 * 2 : 0);
                if (!qs_all_zero(p + at, elem)) return 0;
            }
    }
    return 1;
}

/* One superblock: rows and columns from `rows` and `cols` on are padding. NULL, or what is wrong. */
static const char *qs_superblock_wrong(const uint8_t *p, uint32_t type, uint64_t rows, uint64_t cols)
{
    float room[QS_Q8_BYTES / 4];
    uint8_t *q8 = (uint8_t *)room;
    if (type == QSAE_TYPE_Q4) qs_unpack_scalar(p, q8);
    else memcpy(q8, p, QS_Q8_BYTES);
    for (uint64_t r = 0; r < 16; r++) {
        float a = room[1024 + r];
        uint8_t any = 0, any32[8] = {0}; /* in the row; in each 32 */
        int most = 0;
        for (uint64_t k = 0; k < QS_GROUP; k++) {
            uint8_t w = q8[k / 4 * 64 + 4 * r + k % 4];
            any |= w;
            any32[k / 32] |= w;
            most = abs((int8_t)w) > most ? abs((int8_t)w) : most;
            if (w && (r >= rows || k >= cols)) return "padding is not zero";
            if (w == 0x80 && type == QSAE_TYPE_Q8) return "a weight is -128";
        }
        if (!(a >= 0.0f && qs_finite(a * (float)most)) || (a == 0.0f && 1.0f / a < 0))
            return "a scale is negative or a weight not finite";
        if ((a == 0.0f) != (any == 0)) return "a scale is zero and its weights are not, or the other way round";
        for (size_t i = 0; i < 8 && type == QSAE_TYPE_Q4; i++) {
            int m = qs_q4_multiplier(p, r, i);
            if (m == 0) return "a multiplier is 0";
            if (!any32[i] && m != 1) return "32 zeros have a multiplier that is not 1";
        }
    }
    return NULL;
}

static qsae_status qs_verify_integers(const uint8_t *p, const qsae_tensor_record *t, qsae_error *err)
{
    uint64_t ng = (t->cols + QS_GROUP - 1) / QS_GROUP, super = t->type == QSAE_TYPE_Q8 ? QS_Q8_BYTES : QS_Q4_BYTES;
    for (uint64_t i = 0; i < t->size / super; i++) {
        uint64_t row = i / ng * 16, col = i % ng * QS_GROUP;
        const char *wrong = qs_superblock_wrong(p + i * super, t->type, t->rows - row, t->cols - col);
        if (wrong)
            return qs_fail(err, QSAE_E_FORMAT, t->offset + i * super, "tensor %s (group %u): rows %llu.., columns %llu..: %s",
                           qs_role_name(t->role), t->group, (unsigned long long)row, (unsigned long long)col, wrong);
    }
    return QSAE_OK;
}

static int qs_padding_zero(const uint8_t *p, const qsae_tensor_record *t)
{
    uint64_t elem = t->type == QSAE_TYPE_F32 ? 4 : t->type == QSAE_TYPE_BF16 ? 2 : 1;
    if (t->layout == QSAE_LAYOUT_BLOCK16) return qs_block16_padding_zero(p, t);
    uint64_t row = t->size / t->rows, used = t->cols * elem;
    for (uint64_t r = 0; r < t->rows; r++)
        if (!qs_all_zero(p + r * row + used, row - used)) return 0;
    return 1;
}

static qsae_status qs_verify_tensor(const uint8_t *p, const qsae_tensor_record *t, qsae_error *err)
{
    uint64_t at, hash = qs_hash(p, (size_t)t->size);
    if (hash != t->hash)
        return qs_fail(err, QSAE_E_FORMAT, t->offset,
                       "tensor %s (group %u): checksum is %016llx, computed %016llx", qs_role_name(t->role),
                       t->group, (unsigned long long)t->hash, (unsigned long long)hash);
    if (t->type == QSAE_TYPE_Q8 || t->type == QSAE_TYPE_Q4) return qs_verify_integers(p, t, err);
    if (!qs_padding_zero(p, t))
        return qs_fail(err, QSAE_E_FORMAT, t->offset, "tensor %s (group %u): padding is not zero",
                       qs_role_name(t->role), t->group);
    if (t->type == QSAE_TYPE_BYTES) return QSAE_OK;
    if (qs_find_not_finite(p, t->type, t->size / (t->type == QSAE_TYPE_F32 ? 4 : 2), &at))
        return qs_fail(err, QSAE_E_NUM, t->offset, "tensor %s (group %u): stored element %llu is not finite",
                       qs_role_name(t->role), t->group, (unsigned long long)at);
    int scale = t->role == QSAE_ROLE_MAG_SCALE, rope = t->role == QSAE_ROLE_ROPE;
    if (t->role == QSAE_ROLE_THETA || scale || rope) {
        const float *v = (const void *)p;
        for (uint64_t i = 0; i < t->cols; i++)
            if (v[i] < 0 || (scale && v[i] == 0) || (rope && v[i] > 1))
                return qs_fail(err, QSAE_E_FORMAT, t->offset, "tensor %s (group %u): element %llu is %g",
                               qs_role_name(t->role), t->group, (unsigned long long)i, (double)v[i]);
    }
    return QSAE_OK;
}

static qsae_status qs_verify(const qs_container *c, qsae_error *err)
{
    for (uint32_t i = 0; i < c->head.n_tensors; i++) {
        qsae_status st = qs_verify_tensor(c->file.data + c->tensors[i].offset, &c->tensors[i], err);
        if (st) return st;
    }
    return QSAE_OK;
}

/* ---- opening ---- */

static qsae_status qs_container_load(qs_container *c, uint32_t kind, int verify, qsae_error *err)
{
    const uint8_t *p = c->file.data;
    size_t size = c->file.size;
    if (size < 8 || memcmp(p, QSAE_FILE_MAGIC, 8) != 0) {
        if (size < 8 && memcmp(p, QSAE_FILE_MAGIC, size) == 0)
            return qs_fail(err, QSAE_E_TRUNC, size, "the file has %zu bytes, a header has 64", size);
        return qs_bad_magic(p, size, err);
    }
    if (size < 64)
        return qs_fail(err, QSAE_E_TRUNC, size, "the file has %zu bytes, a header has 64", size);
    qsae_file_header head;
    memcpy(&head, p, sizeof head);
    qsae_status st = qs_check_header(&head, size, err);
    if (st) return st;
    c->index = qs_alloc(&c->alloc, (size_t)head.index_size);
    if (!c->index)
        return qs_fail(err, QSAE_E_NOMEM, 0, "no memory for an index of %llu bytes",
                       (unsigned long long)head.index_size);
    c->head = head;
    memcpy(c->index, p + 64, (size_t)head.index_size);
    c->tensors = (const void *)(c->index + (size_t)256 * head.n_records);
    if ((st = qs_check_hash(&head, c->index, err)) != QSAE_OK) return st;
    if (head.kind != kind)
        return qs_fail(err, QSAE_E_MISMATCH, 24, "the file holds %s, not %s",
                       head.kind == QSAE_KIND_MODEL ? "a model" : "SAEs",
                       kind == QSAE_KIND_MODEL ? "a model" : "SAEs");
    if ((st = qs_check_directory(c, err)) != QSAE_OK) return st;
    return verify ? qs_verify(c, err) : QSAE_OK;
}

/* From path, or from data[size] if path is NULL. On failure *c owns nothing. */
static qsae_status qs_container_open(qs_container *c, const char *path, const void *data, size_t size,
                                     const qsae_open_options *o, uint32_t kind, qsae_error *err)
{
    static const qsae_open_options defaults;
    if (!o) o = &defaults;
    memset(c, 0, sizeof *c);
    if (!path && (!data || ((uintptr_t)data & 63)))
        return qs_fail(err, QSAE_E_ARG, 0, path || data ? "data is not 64-byte aligned" : "NULL path or data");
    qsae_status st = qs_take_allocator(&o->allocator, &c->alloc, err);
    if (st) return st;
    if (path) {
        if ((st = qs_file_open(path, o->no_mmap, &c->alloc, &c->file, err)) != QSAE_OK) return st;
    } else {
        c->file.data = data;
        c->file.size = size;
    }
    st = qs_container_load(c, kind, o->verify, err);
    if (st) qs_container_close(c);
    return st;
}

/* Walks the sorted directory: the next entry must be (group, role) with this layout and shape. Optional
 * tensors are asked for with qs_next_is first. */
typedef struct qs_cursor {
    const qs_container *c;
    uint32_t next;
} qs_cursor;

static int qs_next_is(const qs_cursor *k, uint32_t group, uint32_t role)
{
    if (k->next >= k->c->head.n_tensors) return 0;
    const qsae_tensor_record *t = &k->c->tensors[k->next];
    return t->group == group && t->role == role;
}

static qsae_status qs_expect(qs_cursor *k, uint32_t group, uint32_t role, uint32_t layout, uint64_t rows,
                             uint64_t cols, const qsae_tensor_record **out, qsae_error *err)
{
    if (!qs_next_is(k, group, role)) {
        if (k->next >= k->c->head.n_tensors)
            return qs_fail(err, QSAE_E_MISMATCH, 0, "tensor %s (group %u) is missing", qs_role_name(role),
                           group);
        const qsae_tensor_record *t = &k->c->tensors[k->next];
        return qs_fail(err, QSAE_E_MISMATCH, 0, "expected tensor %s (group %u), found %s (group %u, role %u)",
                       qs_role_name(role), group, qs_role_name(t->role), t->group, t->role);
    }
    const qsae_tensor_record *t = &k->c->tensors[k->next++];
    if (t->layout != layout) return qs_tensor_fail(err, QSAE_E_FORMAT, t, "layout", t->layout, layout);
    if (t->rows != rows || t->cols != cols)
        return qs_fail(err, QSAE_E_MISMATCH, t->offset,
                       "tensor %s (group %u): shape is [%llu, %llu], the record says [%llu, %llu]",
                       qs_role_name(role), group, (unsigned long long)t->rows, (unsigned long long)t->cols,
                       (unsigned long long)rows, (unsigned long long)cols);
    *out = t;
    return QSAE_OK;
}

static qsae_status qs_expect_vector(qs_cursor *k, uint32_t group, uint32_t role, uint64_t n,
                                    const float **out, qsae_error *err)
{
    const qsae_tensor_record *t;
    qsae_status st = qs_expect(k, group, role, QSAE_LAYOUT_VECTOR, 1, n, &t, err);
    if (st == QSAE_OK) *out = (const void *)(k->c->file.data + t->offset);
    return st;
}

/* A BLOCK16 matrix as the kernels take it. */
typedef struct qs_mat {
    const uint8_t *w;
    size_t n, k, np, kp; /* logical and padded shape */
    size_t block;        /* bytes of one block of 16 rows */
    uint32_t type;
} qs_mat;

static qsae_status qs_expect_mat(qs_cursor *k, uint32_t group, uint32_t role, uint64_t rows, uint64_t cols,
                                 qs_mat *m, qsae_error *err)
{
    const qsae_tensor_record *t;
    qsae_status st = qs_expect(k, group, role, QSAE_LAYOUT_BLOCK16, rows, cols, &t, err);
    if (st) return st;
    m->w = k->c->file.data + t->offset;
    m->n = (size_t)rows;
    m->k = (size_t)cols;
    m->np = qs_up16(m->n);
    m->kp = qs_up16(m->k);
    m->type = t->type;
    m->block = (size_t)(t->size / (m->np / 16));
    return QSAE_OK;
}

static int qs_mat_integer(const qs_mat *m) { return m->type == QSAE_TYPE_Q8 || m->type == QSAE_TYPE_Q4; }

/* Groups of 256 k in a row of k values. */
static size_t qs_groups(size_t k) { return (k + QS_GROUP - 1) / QS_GROUP; }

/* Integer weights: the superblock at b, row r of 16, column k of 256. */
static float qs_superblock_at(const uint8_t *b, uint32_t type, size_t r, size_t k)
{
    uint32_t bits;
    float a;
    int w;
    if (type == QSAE_TYPE_Q8) {
        w = (int8_t)b[k / 4 * 64 + 4 * r + k % 4];
        memcpy(&a, b + 4096 + 4 * r, 4);
    } else {
        w = qs_q4_multiplier(b, r, k / 32) * ((b[k / 8 * 64 + 4 * r + k % 4] >> (k & 4) & 15) - 8);
        memcpy(&bits, b + 2112 + 4 * r, 4);
        bits &= ~QS_Q4_SIGNS;
        memcpy(&a, &bits, 4);
    }
    return a * (float)w;
}

/* element (n, k) */
static float qs_mat_at(const qs_mat *m, size_t n, size_t k)
{
    const uint8_t *b = m->w + n / 16 * m->block;
    float f;
    uint16_t h;
    if (qs_mat_integer(m))
        return qs_superblock_at(b + k / QS_GROUP * (m->type == QSAE_TYPE_Q8 ? QS_Q8_BYTES : QS_Q4_BYTES), m->type,
                                n % 16, k % QS_GROUP);
    if (m->type == QSAE_TYPE_F32) {
        memcpy(&f, b + k * 64 + n % 16 * 4, 4);
        return f;
    }
    memcpy(&h, b + k / 2 * 64 + n % 16 * 4 + k % 2 * 2, 2);
    return qs_bf16_f32(h);
}

static qsae_status qs_expect_end(const qs_cursor *k, qsae_error *err)
{
    if (k->next == k->c->head.n_tensors) return QSAE_OK;
    const qsae_tensor_record *t = &k->c->tensors[k->next];
    return qs_fail(err, QSAE_E_MISMATCH, t->offset, "unexpected tensor %s (group %u, role %u)",
                   qs_role_name(t->role), t->group, t->role);
}

/* Optional UTF-8 lines of provenance; any group may end its shared part with them. */
static qsae_status qs_skip_meta(qs_cursor *k, uint32_t group, qsae_error *err)
{
    if (!qs_next_is(k, group, QSAE_ROLE_META)) return QSAE_OK;
    const qsae_tensor_record *t = &k->c->tensors[k->next++];
    if (t->layout == QSAE_LAYOUT_BYTES) return QSAE_OK;
    return qs_tensor_fail(err, QSAE_E_FORMAT, t, "layout", t->layout, QSAE_LAYOUT_BYTES);
}

/* A range check with the field's name. */
static qsae_status qs_in_range(const char *what, uint64_t v, uint64_t lo, uint64_t hi, qsae_error *err)
{
    if (v >= lo && v <= hi) return QSAE_OK;
    return qs_fail(err, QSAE_E_FORMAT, 64, "%s is %llu, must be %llu..%llu", what, (unsigned long long)v,
                   (unsigned long long)lo, (unsigned long long)hi);
}

/* A record's fixed-size name: NUL-terminated, zeros behind, not a control character inside. */
static qsae_status qs_check_name(const char *name, size_t cap, qsae_error *err)
{
    size_t n = 0;
    while (n < cap && name[n]) n++;
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)name[i] < 32 || name[i] == 127)
            return qs_fail(err, QSAE_E_FORMAT, 64, "the record's name has a control character");
    if (n == cap || !qs_all_zero((const uint8_t *)name + n, cap - n))
        return qs_fail(err, QSAE_E_FORMAT, 64, "the record's name is not NUL-padded");
    return QSAE_OK;
}

#if !defined(QSAE_NO_TOKENIZER)

/* ===================================================================================================
 * 15 Tokenizer (private; its public calls are with the model, section 16)
 *
 * text -> ids as the reference (Hugging Face `tokenizers`) does for Qwen2 and Qwen3:
 *
 *   1. split the text at added tokens, leftmost-longest   (only if the caller asks)
 *   2. each piece between them to Unicode NFC
 *   3. split by the Qwen expression (qs_piece)
 *   4. bytes -> ids, then byte-pair merges, lowest rank first, ties leftmost
 *
 * Bytes that are not UTF-8 are first replaced: each maximal invalid subpart becomes one U+FFFD, as Python's
 * errors="replace". All steps are linear in the text but the merges of one long piece, which are
 * O(n log n). Nothing is allocated.
 *
 * The tokenizer is a blob of the container, used in place: little-endian u32, 64-byte aligned, specified in
 * tools/FORMAT.md, validated completely by qs_tok_bind. The Unicode tables are made by tools/gen_unicode.py.
 * =================================================================================================== */

#define QS_TOK_MAGIC 0x4B4F5451u         /* "QTOK" */
#define QS_TOK_MAX_TOKENS (1u << 20)
#define QS_TOK_MAX_MERGES (1u << 21)
#define QS_TOK_MAX_ADDED (1u << 16)
#define QS_TOK_MAX_TEXT (1u << 28)       /* bytes of all tokens together */
#define QS_TOK_MAX_TOKEN 1024u           /* bytes of one token */
#define QS_TOK_MAX_PROBES 1024u          /* places tried for a merge of the index */
#define QS_TOK_NONE UINT32_MAX

/* Header of the blob.  Every offset follows from the counts and is checked so. */
typedef struct qs_tok_header {
    uint32_t magic, version, pipeline, n_tokens;
    uint32_t n_merges, n_added, text_bytes, off_byte_id;
    uint32_t off_text_off, off_text, off_merges, off_added;
    uint32_t total_size, zero[3];
} qs_tok_header;

/* A merge; its index is its rank. */
typedef struct qs_tok_merge { uint32_t left, right, result; } qs_tok_merge;

typedef struct qs_tok_added { uint32_t id, flags; } qs_tok_added;   /* bit 0: special */

/* What makes it fast, made by bind. */
typedef struct qs_tok_tables {
    uint64_t pairs[1 << 14];             /* a bit of the hash of every merge is set */
    uint32_t whole[0xD800 - 0x2E80];     /* of a code point from U+2E80: see qs_tok_whole */
    uint8_t kind[0x10000];               /* of a code point: its class, QS_KIND_ flags */
} qs_tok_tables;

typedef struct qs_tok {
    const uint8_t *blob;
    size_t size;
    uint32_t n_tokens, n_merges, n_added;
    const uint32_t *byte_id;             /* [256] */
    const uint32_t *text_off;            /* [n_tokens + 1] */
    const uint8_t *text;                 /* [text_off[n_tokens]] */
    const qs_tok_merge *merges;          /* [n_merges], by rank */
    const qs_tok_added *added;           /* [n_added], ascending by content */
    uint32_t added_first[8];             /* 256 bits: a content starts with this byte */
    qs_tok_tables *fast;
    uint64_t *index;                     /* [index_mask + 1]: see qs_tok_rank */
    uint32_t index_mask;
} qs_tok;

/* Unicode tables, written by tools/gen_unicode.py from tokenizers 0.23.3:
   classes as Unicode 16.0.0, NFC as Unicode 9.0 (940 pairs; 124 younger marks are
   starters).  Do not edit. */

/* runs of one class, (first << 2 | class): 1 letter, 2 number, 3 blank */
static const uint32_t qs_uni_class[] = {
    0, 39, 56, 131, 132, 194, 232, 261, 364, 389, 492, 535, 536, 643, 644, 681, 684,
    714, 720, 725, 728, 742, 745, 748, 754, 764, 769, 860, 865, 988, 993, 2824, 2841,
    2888, 2945, 2964, 2993, 2996, 3001, 3004, 3521, 3540, 3545, 3552, 3561, 3576, 3581,
    3584, 3609, 3612, 3617, 3628, 3633, 3636, 3641, 3720, 3725, 4056, 4061, 4616, 4649,
    5312, 5317, 5468, 5477, 5480, 5505, 5668, 5953, 6060, 6077, 6092, 6273, 6444, 6530,
    6568, 6585, 6592, 6597, 6992, 6997, 7000, 7061, 7068, 7097, 7106, 7145, 7156, 7165,
    7168, 7233, 7236, 7241, 7360, 7477, 7832, 7877, 7880, 7938, 7977, 8108, 8145, 8152,
    8169, 8172, 8193, 8280, 8297, 8300, 8337, 8340, 8353, 8356, 8449, 8548, 8577, 8620,
    8641, 8736, 8741, 8764, 8833, 9000, 9233, 9448, 9461, 9464, 9537, 9540, 9569, 9608,
    9626, 9664, 9669, 9732, 9749, 9780, 9789, 9796, 9805, 9892, 9897, 9924, 9929, 9932,
    9945, 9960, 9973, 9976, 10041, 10044, 10097, 10104, 10109, 10120, 10138, 10177,
    10184, 10194, 10216, 10225, 10228, 10261, 10284, 10301, 10308, 10317, 10404, 10409,
    10436, 10441, 10448, 10453, 10460, 10465, 10472, 10597, 10612, 10617, 10620, 10650,
    10688, 10697, 10708, 10773, 10808, 10813, 10824, 10829, 10916, 10921, 10948, 10953,
    10960, 10965, 10984, 10997, 11000, 11073, 11076, 11137, 11144, 11162, 11200, 11237,
    11240, 11285, 11316, 11325, 11332, 11341, 11428, 11433, 11460, 11465, 11472, 11477,
    11496, 11509, 11512, 11633, 11640, 11645, 11656, 11674, 11712, 11717, 11722, 11744,
    11789, 11792, 11797, 11820, 11833, 11844, 11849, 11864, 11877, 11884, 11889, 11892,
    11897, 11904, 11917, 11924, 11937, 11948, 11961, 12008, 12097, 12100, 12186, 12236,
    12309, 12340, 12345, 12356, 12361, 12452, 12457, 12520, 12533, 12536, 12641, 12652,
    12661, 12664, 12673, 12680, 12698, 12736, 12770, 12796, 12801, 12804, 12821, 12852,
    12857, 12868, 12873, 12964, 12969, 13008, 13013, 13032, 13045, 13048, 13173, 13180,
    13185, 13192, 13210, 13248, 13253, 13260, 13329, 13364, 13369, 13380, 13385, 13548,
    13557, 13560, 13625, 13628, 13649, 13660, 13666, 13693, 13704, 13722, 13796, 13801,
    13824, 13845, 13916, 13929, 14024, 14029, 14064, 14069, 14072, 14081, 14108, 14234,
    14272, 14341, 14532, 14537, 14544, 14593, 14620, 14658, 14696, 14853, 14860, 14865,
    14868, 14873, 14892, 14897, 14992, 14997, 15000, 15005, 15044, 15049, 15056, 15093,
    15096, 15105, 15124, 15129, 15132, 15170, 15208, 15217, 15232, 15361, 15364, 15490,
    15568, 15617, 15648, 15653, 15796, 15905, 15924, 16385, 16556, 16637, 16642, 16680,
    16705, 16728, 16745, 16760, 16773, 16776, 16789, 16796, 16825, 16836, 16853, 16904,
    16953, 16956, 16962, 17000, 17025, 17176, 17181, 17184, 17205, 17208, 17217, 17388,
    17393, 18724, 18729, 18744, 18753, 18780, 18785, 18788, 18793, 18808, 18817, 18980,
    18985, 19000, 19009, 19140, 19145, 19160, 19169, 19196, 19201, 19204, 19209, 19224,
    19233, 19292, 19297, 19524, 19529, 19544, 19553, 19820, 19878, 19956, 19969, 20032,
    20097, 20440, 20449, 20472, 20485, 22964, 22973, 23043, 23045, 23148, 23169, 23468,
    23482, 23493, 23524, 23553, 23624, 23677, 23752, 23809, 23880, 23937, 23988, 23993,
    24004, 24065, 24272, 24413, 24416, 24433, 24436, 24450, 24488, 24514, 24552, 24642,
    24680, 24705, 25060, 25089, 25108, 25117, 25252, 25257, 25260, 25281, 25560, 25601,
    25724, 25882, 25921, 26040, 26049, 26068, 26113, 26288, 26305, 26408, 26434, 26476,
    26625, 26716, 26753, 26964, 27138, 27176, 27202, 27240, 27293, 27296, 27669, 27856,
    27925, 27956, 27970, 28008, 28173, 28292, 28345, 28354, 28393, 28568, 28673, 28816,
    28930, 28968, 28981, 28994, 29033, 29176, 29185, 29228, 29249, 29420, 29429, 29440,
    29605, 29620, 29625, 29648, 29653, 29660, 29673, 29676, 29697, 30464, 30721, 31832,
    31841, 31864, 31873, 32024, 32033, 32056, 32065, 32096, 32101, 32104, 32109, 32112,
    32117, 32120, 32125, 32248, 32257, 32468, 32473, 32500, 32505, 32508, 32521, 32532,
    32537, 32564, 32577, 32592, 32601, 32624, 32641, 32692, 32713, 32724, 32729, 32756,
    32771, 32812, 32931, 32936, 32959, 32960, 33151, 33152, 33218, 33221, 33224, 33234,
    33256, 33277, 33282, 33320, 33345, 33396, 33801, 33804, 33821, 33824, 33833, 33872,
    33877, 33880, 33893, 33912, 33937, 33940, 33945, 33948, 33953, 33956, 33961, 33976,
    33981, 34024, 34033, 34048, 34069, 34088, 34105, 34108, 34114, 34317, 34326, 34344,
    37250, 37488, 37802, 37888, 40410, 40528, 45057, 45972, 45997, 46012, 46025, 46032,
    46070, 46072, 46081, 46232, 46237, 46240, 46261, 46264, 46273, 46496, 46525, 46528,
    46593, 46684, 46721, 46748, 46753, 46780, 46785, 46812, 46817, 46844, 46849, 46876,
    46881, 46908, 46913, 46940, 46945, 46972, 47293, 47296, 49155, 49156, 49173, 49182,
    49184, 49286, 49320, 49349, 49368, 49378, 49389, 49396, 49413, 49756, 49781, 49792,
    49797, 50156, 50161, 50176, 50197, 50368, 50373, 50748, 50762, 50776, 50817, 50944,
    51137, 51200, 51330, 51368, 51490, 51520, 51526, 51584, 51714, 51752, 51910, 51968,
    53249, 79616, 79873, 168500, 168769, 168952, 168961, 170036, 170049, 170114, 170153,
    170160, 170241, 170428, 170493, 170616, 170625, 170906, 170944, 171101, 171136,
    171145, 171556, 171565, 171832, 171841, 171848, 171853, 171856, 171861, 171892,
    171977, 172040, 172045, 172056, 172061, 172076, 172081, 172172, 172226, 172248,
    172289, 172496, 172553, 172752, 172866, 172904, 173001, 173024, 173037, 173040,
    173045, 173052, 173058, 173097, 173208, 173249, 173340, 173441, 173556, 173585,
    173772, 173885, 173890, 173928, 173953, 173972, 173977, 174018, 174057, 174076,
    174081, 174244, 174337, 174348, 174353, 174384, 174402, 174440, 174465, 174556,
    174569, 174572, 174585, 174784, 174789, 174792, 174805, 174812, 174821, 174840,
    174849, 174852, 174857, 174860, 174957, 174968, 174977, 175020, 175049, 175060,
    175109, 175132, 175141, 175164, 175173, 175196, 175233, 175260, 175265, 175292,
    175297, 175468, 175473, 175528, 175553, 176012, 176066, 176104, 176129, 220816,
    220865, 220956, 220973, 221168, 254977, 256440, 256449, 256872, 257025, 257052,
    257101, 257120, 257141, 257144, 257149, 257188, 257193, 257244, 257249, 257268,
    257273, 257276, 257281, 257288, 257293, 257300, 257305, 257736, 257869, 259320,
    259393, 259648, 259657, 259872, 260033, 260080, 260545, 260564, 260569, 261108,
    261186, 261224, 261253, 261356, 261381, 261484, 261529, 261884, 261897, 261920,
    261929, 261952, 261961, 261984, 261993, 262004, 262145, 262192, 262197, 262300,
    262305, 262380, 262385, 262392, 262397, 262456, 262465, 262520, 262657, 263148,
    263198, 263376, 263426, 263652, 263722, 263728, 264705, 264820, 264833, 265028,
    265094, 265200, 265217, 265346, 265360, 265397, 265478, 265481, 265514, 265516,
    265537, 265688, 265729, 265848, 265857, 266000, 266017, 266048, 266054, 266072,
    266241, 266872, 266882, 266920, 266945, 267088, 267105, 267248, 267265, 267424,
    267457, 267664, 267713, 267756, 267761, 267820, 267825, 267852, 267857, 267864,
    267869, 267912, 267917, 267976, 267981, 268008, 268013, 268020, 268033, 268240,
    268289, 269532, 269569, 269656, 269697, 269728, 269825, 269848, 269853, 270020,
    270025, 270060, 270337, 270360, 270369, 270372, 270377, 270552, 270557, 270564,
    270577, 270580, 270589, 270680, 270690, 270721, 270812, 270822, 270849, 270972,
    271006, 271040, 271233, 271308, 271313, 271320, 271342, 271361, 271450, 271472,
    271489, 271592, 271873, 272096, 272114, 272121, 272130, 272192, 272202, 272385,
    272388, 272449, 272464, 272469, 272480, 272485, 272600, 272642, 272676, 272769,
    272886, 272892, 272897, 273014, 273024, 273153, 273184, 273189, 273300, 273326,
    273344, 273409, 273624, 273665, 273752, 273762, 273793, 273868, 273890, 273921,
    273992, 274086, 274112, 274433, 274724, 274945, 275148, 275201, 275404, 275434,
    275457, 275600, 275650, 275688, 275714, 275753, 275864, 275901, 275992, 276866,
    276988, 276993, 277160, 277185, 277192, 277257, 277268, 277505, 277622, 277661,
    277664, 277697, 277784, 277830, 277844, 277953, 278024, 278209, 278294, 278320,
    278401, 278492, 278541, 278752, 278858, 278976, 278981, 278988, 278997, 279000,
    279053, 279232, 279361, 279460, 279490, 279528, 279565, 279708, 279770, 279808,
    279825, 279828, 279837, 279840, 279873, 280012, 280025, 280028, 280077, 280268,
    280325, 280340, 280386, 280425, 280428, 280433, 280436, 280454, 280532, 280577,
    280648, 280653, 280752, 280829, 280836, 281089, 281116, 281121, 281124, 281129,
    281144, 281149, 281208, 281213, 281252, 281281, 281468, 281538, 281576, 281621,
    281652, 281661, 281668, 281677, 281764, 281769, 281796, 281801, 281808, 281813,
    281832, 281845, 281848, 281921, 281924, 281973, 281992, 282113, 282152, 282157,
    282160, 282169, 282172, 282177, 282328, 282333, 282336, 282437, 282440, 282445,
    282448, 282625, 282836, 282909, 282924, 282946, 282984, 283005, 283016, 283137,
    283328, 283409, 283416, 283421, 283424, 283458, 283496, 284161, 284348, 284513,
    284528, 284673, 284864, 284945, 284948, 284994, 285032, 285185, 285356, 285409,
    285412, 285442, 285480, 285506, 285584, 285697, 285804, 285890, 285936, 285953,
    285980, 286721, 286896, 287361, 287618, 287692, 287741, 287772, 287781, 287784,
    287793, 287824, 287829, 287836, 287841, 287936, 287997, 288000, 288005, 288008,
    288066, 288104, 288385, 288416, 288425, 288580, 288645, 288648, 288653, 288656,
    288769, 288772, 288813, 288972, 289001, 289004, 289089, 289092, 289137, 289320,
    289397, 289400, 289473, 289764, 290561, 290692, 290754, 290792, 290817, 290852,
    290857, 291004, 291073, 291076, 291138, 291252, 291273, 291392, 291841, 291868,
    291873, 291880, 291885, 292036, 292121, 292124, 292162, 292200, 292225, 292248,
    292253, 292260, 292265, 292392, 292449, 292452, 292482, 292520, 293761, 293836,
    293897, 293900, 293905, 293956, 293961, 294096, 294210, 294248, 294593, 294596,
    294658, 294740, 294913, 298600, 299010, 299452, 299521, 300304, 310849, 311236,
    311297, 315584, 315653, 315676, 315777, 331756, 331777, 334108, 361473, 361592,
    361666, 361704, 368641, 370916, 370945, 371068, 371074, 371112, 371137, 371452,
    371458, 371496, 371521, 371640, 371713, 371904, 371969, 371984, 372034, 372072,
    372078, 372104, 372109, 372192, 372213, 372288, 374017, 374196, 374210, 374248,
    375041, 375298, 375388, 375809, 376108, 376129, 376132, 376397, 376448, 376705,
    376712, 376717, 376720, 376833, 401376, 401409, 406360, 406525, 406564, 442305,
    442320, 442325, 442352, 442357, 442364, 442369, 443532, 443593, 443596, 443713,
    443724, 443733, 443736, 443793, 443808, 443841, 445424, 454657, 455084, 455105,
    455156, 455169, 455204, 455233, 455272, 472002, 472040, 477954, 478032, 478082,
    478160, 478594, 478692, 479233, 479572, 479577, 479860, 479865, 479872, 479881,
    479884, 479893, 479900, 479909, 479924, 479929, 479976, 479981, 479984, 479989,
    480016, 480021, 480280, 480285, 480300, 480309, 480340, 480345, 480372, 480377,
    480488, 480493, 480508, 480513, 480532, 480537, 480540, 480553, 480580, 480585,
    481944, 481953, 482052, 482057, 482156, 482161, 482284, 482289, 482388, 482393,
    482516, 482521, 482620, 482625, 482748, 482753, 482852, 482857, 482980, 482985,
    483084, 483089, 483120, 483130, 483328, 490497, 490620, 490645, 490668, 491713,
    491960, 492545, 492724, 492765, 492792, 492802, 492840, 492857, 492860, 494145,
    494264, 494337, 494512, 494530, 494568, 496449, 496560, 496578, 496616, 497473,
    497592, 497601, 497606, 497644, 499585, 499612, 499617, 499632, 499637, 499644,
    499649, 499708, 499713, 500500, 500510, 500544, 500737, 501008, 501037, 501040,
    501058, 501096, 504262, 504496, 504502, 504512, 504518, 504532, 504838, 505016,
    505022, 505080, 505857, 505872, 505877, 505984, 505989, 505996, 506001, 506004,
    506013, 506016, 506021, 506060, 506065, 506080, 506085, 506088, 506093, 506096,
    506121, 506124, 506141, 506144, 506149, 506152, 506157, 506160, 506165, 506176,
    506181, 506188, 506193, 506196, 506205, 506208, 506213, 506216, 506221, 506224,
    506229, 506232, 506237, 506240, 506245, 506252, 506257, 506260, 506269, 506284,
    506289, 506316, 506321, 506336, 506341, 506356, 506361, 506364, 506369, 506408,
    506413, 506480, 506501, 506512, 506517, 506536, 506541, 506608, 508930, 508980,
    520130, 520168, 524289, 695168, 695297, 711912, 711937, 712824, 712833, 735880,
    735937, 765828, 765889, 768376, 778241, 780408, 786433, 806188, 806209, 822976,
};

/* runs, (first << 9 | not NFC_QC=Yes << 8 | combining class) */
static const uint32_t qs_uni_norm[] = {
    0, 393702, 396006, 396774, 400102, 401382, 401638, 402406, 402662, 403430, 404200,
    404700, 406760, 407512, 407772, 410314, 411612, 413642, 414428, 416732, 417500,
    418268, 419036, 419841, 422145, 422620, 424678, 426240, 427494, 427776, 429040,
    429286, 429788, 431334, 432860, 433664, 434406, 435932, 437990, 438504, 439004,
    440038, 440553, 441066, 442089, 442602, 443625, 444134, 450560, 452864, 453120,
    457984, 458240, 462592, 462848, 591590, 593920, 729820, 730342, 732380, 732902,
    734430, 734940, 735462, 738524, 741606, 742620, 743142, 744158, 744676, 745190,
    745482, 745995, 746508, 747021, 747534, 748047, 748560, 749073, 749586, 750099,
    751124, 751637, 752150, 752640, 753175, 753664, 754200, 754713, 755200, 755942,
    756444, 756736, 757266, 757760, 794854, 798750, 799263, 799776, 800256, 824859,
    825372, 825885, 826398, 826911, 827424, 827937, 828450, 829414, 830428, 830684,
    831206, 833756, 834278, 835292, 835584, 843811, 844288, 896230, 899584, 900838,
    902876, 903398, 903680, 904934, 905728, 906460, 906982, 907996, 908288, 926244,
    926720, 942310, 942812, 943334, 944348, 944870, 945884, 947430, 947932, 948966,
    949468, 949990, 951516, 952038, 952540, 953062, 953564, 954086, 954588, 955110,
    955904, 1038054, 1041628, 1042150, 1042432, 1060070, 1061888, 1062630, 1067008,
    1067750, 1069056, 1069798, 1072128, 1094364, 1095680, 1157350, 1164288, 1165020,
    1165542, 1166556, 1167078, 1168092, 1168614, 1170140, 1171483, 1171996, 1172509,
    1173222, 1174748, 1175270, 1176284, 1177318, 1179648, 1210631, 1210880, 1219081,
    1219584, 1221350, 1221852, 1222374, 1223168, 1224960, 1228800, 1275911, 1276416,
    1277184, 1277440, 1284617, 1285120, 1289984, 1290240, 1292544, 1293312, 1294080,
    1294336, 1337088, 1337344, 1338624, 1338880, 1341447, 1341952, 1350153, 1350656,
    1356544, 1357824, 1359104, 1359360, 1406983, 1407488, 1415689, 1416192, 1472519,
    1473024, 1473792, 1474048, 1481225, 1481728, 1486080, 1486848, 1489152, 1489920,
    1539328, 1539584, 1546761, 1547264, 1552128, 1552384, 1612297, 1612800, 1616468,
    1617243, 1617408, 1669127, 1669632, 1672448, 1672704, 1677833, 1678336, 1682176,
    1682944, 1735936, 1736192, 1743369, 1743872, 1748736, 1748992, 1807625, 1807872,
    1810176, 1810432, 1818368, 1818624, 1863783, 1864713, 1865216, 1871979, 1873920,
    1929334, 1930240, 1937530, 1939456, 1978588, 1979392, 1993436, 1993728, 1994460,
    1994752, 1995480, 1995776, 2000640, 2000896, 2005760, 2006016, 2008320, 2008576,
    2010880, 2011136, 2013440, 2013696, 2020096, 2020352, 2024065, 2024578, 2025216,
    2025604, 2026240, 2027008, 2027776, 2028032, 2028674, 2030592, 2031746, 2032384,
    2032870, 2033673, 2034176, 2034918, 2035712, 2041600, 2041856, 2046720, 2046976,
    2049280, 2049536, 2051840, 2052096, 2054400, 2054656, 2061056, 2061312, 2067676,
    2067968, 2120960, 2121216, 2125319, 2125824, 2126345, 2127360, 2169564, 2169856,
    2278144, 2288640, 2314496, 2328064, 2538214, 2539520, 3024905, 3025408, 3041289,
    3041792, 3122185, 3122688, 3128038, 3128320, 3232484, 3232768, 3306206, 3306726,
    3307228, 3307520, 3419878, 3420380, 3420672, 3457033, 3457536, 3468006, 3471872,
    3473116, 3473408, 3498214, 3500764, 3503846, 3504860, 3505152, 3565575, 3566336,
    3566592, 3573769, 3574272, 3593958, 3594460, 3594982, 3598336, 3625993, 3627008,
    3656711, 3657216, 3662857, 3663872, 3698183, 3698688, 3776742, 3778048, 3778561,
    3779292, 3781862, 3782876, 3784934, 3785216, 3785729, 3789312, 3791580, 3791872,
    3795174, 3795456, 3797222, 3798016, 3899622, 3900636, 3901158, 3904732, 3905254,
    3906282, 3906774, 3907292, 3907786, 3908326, 3927040, 3929830, 3930345, 3930844,
    3931366, 3931868, 3932160, 4121344, 4121600, 4122368, 4122624, 4123392, 4123648,
    4124416, 4124672, 4125440, 4125696, 4126464, 4126720, 4127488, 4127744, 4159232,
    4159488, 4160768, 4161024, 4166400, 4166656, 4167424, 4167680, 4171520, 4171776,
    4175616, 4175872, 4179712, 4179968, 4183808, 4184064, 4185344, 4186112, 4190976,
    4191232, 4192000, 4192256, 4193024, 4193280, 4194560, 4195328, 4301030, 4301825,
    4303078, 4304897, 4306662, 4307456, 4309734, 4310016, 4311553, 4312806, 4313308,
    4313830, 4314113, 4315356, 4317414, 4317696, 4345088, 4345344, 4347136, 4347904,
    4608768, 4609536, 5617920, 5618176, 5889766, 5891072, 5963273, 5963776, 6013158,
    6029312, 6313178, 6313700, 6314216, 6314718, 6315232, 6316032, 6370056, 6370816,
    21815014, 21815296, 21817574, 21822464, 21839078, 21839872, 21881062, 21881856,
    22023177, 22023680, 22120457, 22120960, 22135014, 22144000, 22173404, 22174720,
    22193673, 22194176, 22242823, 22243328, 22249481, 22249984, 22372582, 22372864,
    22373606, 22374620, 22374912, 22376166, 22376960, 22379750, 22380544, 22381286,
    22381568, 22408201, 22408704, 22534665, 22535168, 32637184, 32775168, 32776448,
    32776704, 32777472, 32777728, 32779008, 32783872, 32784640, 32784896, 32785664,
    32785920, 32787200, 32787968, 32789760, 32824320, 32825600, 32879616, 32914176,
    32914458, 32915200, 32915456, 32920832, 32927232, 32928000, 32930304, 32931072,
    32931328, 32932096, 32932864, 32933632, 32934400, 32935168, 32939520, 33308902,
    33312476, 33316070, 33316864, 33815260, 33815552, 33931484, 33931776, 34008294,
    34010624, 34872028, 34872320, 34873062, 34873344, 34894054, 34894337, 34895068,
    34895360, 34897417, 34897920, 34982630, 34983132, 34983424, 35687433, 35687936,
    35716617, 35717120, 35746313, 35747079, 35747328, 35782886, 35784192, 35802880,
    35803136, 35808777, 35809792, 35841543, 35842048, 35880969, 35881472, 35886087,
    35886592, 35940873, 35941383, 35941888, 36033031, 36033545, 36034048, 36075527,
    36076032, 36076800, 36077056, 36084233, 36084736, 36089600, 36089856, 36097254,
    36100608, 36102374, 36104704, 36209673, 36210176, 36211719, 36212224, 36266240,
    36266496, 36271360, 36271616, 36272896, 36273152, 36275209, 36275719, 36276224,
    36396800, 36397056, 36404745, 36405255, 36405760, 36470281, 36470784, 36531209,
    36531719, 36532224, 36591113, 36591616, 37256713, 37257216, 47570945, 47573504,
    47603942, 47607296, 58276865, 58277376, 60996864, 61000408, 61001217, 61002752,
    61004514, 61005016, 61007360, 61011676, 61015552, 61016806, 61019356, 61020160,
    61035750, 61037568, 61044480, 61047296, 61113574, 61114880, 62914790, 62918144,
    62918886, 62927360, 62928614, 62931968, 62932710, 62933504, 62934246, 62936576,
    64069852, 64073216, 64129254, 64132103, 64132608, 99614976, 99892224,
};

/* primary composites, ascending: composite, its first, its second */
static const uint32_t qs_uni_comp[] = {
    192, 65, 768, 193, 65, 769, 194, 65, 770, 195, 65, 771, 196, 65, 776, 197, 65, 778,
    199, 67, 807, 200, 69, 768, 201, 69, 769, 202, 69, 770, 203, 69, 776, 204, 73, 768,
    205, 73, 769, 206, 73, 770, 207, 73, 776, 209, 78, 771, 210, 79, 768, 211, 79, 769,
    212, 79, 770, 213, 79, 771, 214, 79, 776, 217, 85, 768, 218, 85, 769, 219, 85, 770,
    220, 85, 776, 221, 89, 769, 224, 97, 768, 225, 97, 769, 226, 97, 770, 227, 97, 771,
    228, 97, 776, 229, 97, 778, 231, 99, 807, 232, 101, 768, 233, 101, 769, 234, 101,
    770, 235, 101, 776, 236, 105, 768, 237, 105, 769, 238, 105, 770, 239, 105, 776, 241,
    110, 771, 242, 111, 768, 243, 111, 769, 244, 111, 770, 245, 111, 771, 246, 111, 776,
    249, 117, 768, 250, 117, 769, 251, 117, 770, 252, 117, 776, 253, 121, 769, 255, 121,
    776, 256, 65, 772, 257, 97, 772, 258, 65, 774, 259, 97, 774, 260, 65, 808, 261, 97,
    808, 262, 67, 769, 263, 99, 769, 264, 67, 770, 265, 99, 770, 266, 67, 775, 267, 99,
    775, 268, 67, 780, 269, 99, 780, 270, 68, 780, 271, 100, 780, 274, 69, 772, 275,
    101, 772, 276, 69, 774, 277, 101, 774, 278, 69, 775, 279, 101, 775, 280, 69, 808,
    281, 101, 808, 282, 69, 780, 283, 101, 780, 284, 71, 770, 285, 103, 770, 286, 71,
    774, 287, 103, 774, 288, 71, 775, 289, 103, 775, 290, 71, 807, 291, 103, 807, 292,
    72, 770, 293, 104, 770, 296, 73, 771, 297, 105, 771, 298, 73, 772, 299, 105, 772,
    300, 73, 774, 301, 105, 774, 302, 73, 808, 303, 105, 808, 304, 73, 775, 308, 74,
    770, 309, 106, 770, 310, 75, 807, 311, 107, 807, 313, 76, 769, 314, 108, 769, 315,
    76, 807, 316, 108, 807, 317, 76, 780, 318, 108, 780, 323, 78, 769, 324, 110, 769,
    325, 78, 807, 326, 110, 807, 327, 78, 780, 328, 110, 780, 332, 79, 772, 333, 111,
    772, 334, 79, 774, 335, 111, 774, 336, 79, 779, 337, 111, 779, 340, 82, 769, 341,
    114, 769, 342, 82, 807, 343, 114, 807, 344, 82, 780, 345, 114, 780, 346, 83, 769,
    347, 115, 769, 348, 83, 770, 349, 115, 770, 350, 83, 807, 351, 115, 807, 352, 83,
    780, 353, 115, 780, 354, 84, 807, 355, 116, 807, 356, 84, 780, 357, 116, 780, 360,
    85, 771, 361, 117, 771, 362, 85, 772, 363, 117, 772, 364, 85, 774, 365, 117, 774,
    366, 85, 778, 367, 117, 778, 368, 85, 779, 369, 117, 779, 370, 85, 808, 371, 117,
    808, 372, 87, 770, 373, 119, 770, 374, 89, 770, 375, 121, 770, 376, 89, 776, 377,
    90, 769, 378, 122, 769, 379, 90, 775, 380, 122, 775, 381, 90, 780, 382, 122, 780,
    416, 79, 795, 417, 111, 795, 431, 85, 795, 432, 117, 795, 461, 65, 780, 462, 97,
    780, 463, 73, 780, 464, 105, 780, 465, 79, 780, 466, 111, 780, 467, 85, 780, 468,
    117, 780, 469, 220, 772, 470, 252, 772, 471, 220, 769, 472, 252, 769, 473, 220, 780,
    474, 252, 780, 475, 220, 768, 476, 252, 768, 478, 196, 772, 479, 228, 772, 480, 550,
    772, 481, 551, 772, 482, 198, 772, 483, 230, 772, 486, 71, 780, 487, 103, 780, 488,
    75, 780, 489, 107, 780, 490, 79, 808, 491, 111, 808, 492, 490, 772, 493, 491, 772,
    494, 439, 780, 495, 658, 780, 496, 106, 780, 500, 71, 769, 501, 103, 769, 504, 78,
    768, 505, 110, 768, 506, 197, 769, 507, 229, 769, 508, 198, 769, 509, 230, 769, 510,
    216, 769, 511, 248, 769, 512, 65, 783, 513, 97, 783, 514, 65, 785, 515, 97, 785,
    516, 69, 783, 517, 101, 783, 518, 69, 785, 519, 101, 785, 520, 73, 783, 521, 105,
    783, 522, 73, 785, 523, 105, 785, 524, 79, 783, 525, 111, 783, 526, 79, 785, 527,
    111, 785, 528, 82, 783, 529, 114, 783, 530, 82, 785, 531, 114, 785, 532, 85, 783,
    533, 117, 783, 534, 85, 785, 535, 117, 785, 536, 83, 806, 537, 115, 806, 538, 84,
    806, 539, 116, 806, 542, 72, 780, 543, 104, 780, 550, 65, 775, 551, 97, 775, 552,
    69, 807, 553, 101, 807, 554, 214, 772, 555, 246, 772, 556, 213, 772, 557, 245, 772,
    558, 79, 775, 559, 111, 775, 560, 558, 772, 561, 559, 772, 562, 89, 772, 563, 121,
    772, 901, 168, 769, 902, 913, 769, 904, 917, 769, 905, 919, 769, 906, 921, 769, 908,
    927, 769, 910, 933, 769, 911, 937, 769, 912, 970, 769, 938, 921, 776, 939, 933, 776,
    940, 945, 769, 941, 949, 769, 942, 951, 769, 943, 953, 769, 944, 971, 769, 970, 953,
    776, 971, 965, 776, 972, 959, 769, 973, 965, 769, 974, 969, 769, 979, 978, 769, 980,
    978, 776, 1024, 1045, 768, 1025, 1045, 776, 1027, 1043, 769, 1031, 1030, 776, 1036,
    1050, 769, 1037, 1048, 768, 1038, 1059, 774, 1049, 1048, 774, 1081, 1080, 774, 1104,
    1077, 768, 1105, 1077, 776, 1107, 1075, 769, 1111, 1110, 776, 1116, 1082, 769, 1117,
    1080, 768, 1118, 1091, 774, 1142, 1140, 783, 1143, 1141, 783, 1217, 1046, 774, 1218,
    1078, 774, 1232, 1040, 774, 1233, 1072, 774, 1234, 1040, 776, 1235, 1072, 776, 1238,
    1045, 774, 1239, 1077, 774, 1242, 1240, 776, 1243, 1241, 776, 1244, 1046, 776, 1245,
    1078, 776, 1246, 1047, 776, 1247, 1079, 776, 1250, 1048, 772, 1251, 1080, 772, 1252,
    1048, 776, 1253, 1080, 776, 1254, 1054, 776, 1255, 1086, 776, 1258, 1256, 776, 1259,
    1257, 776, 1260, 1069, 776, 1261, 1101, 776, 1262, 1059, 772, 1263, 1091, 772, 1264,
    1059, 776, 1265, 1091, 776, 1266, 1059, 779, 1267, 1091, 779, 1268, 1063, 776, 1269,
    1095, 776, 1272, 1067, 776, 1273, 1099, 776, 1570, 1575, 1619, 1571, 1575, 1620,
    1572, 1608, 1620, 1573, 1575, 1621, 1574, 1610, 1620, 1728, 1749, 1620, 1730, 1729,
    1620, 1747, 1746, 1620, 2345, 2344, 2364, 2353, 2352, 2364, 2356, 2355, 2364, 2507,
    2503, 2494, 2508, 2503, 2519, 2888, 2887, 2902, 2891, 2887, 2878, 2892, 2887, 2903,
    2964, 2962, 3031, 3018, 3014, 3006, 3019, 3015, 3006, 3020, 3014, 3031, 3144, 3142,
    3158, 3264, 3263, 3285, 3271, 3270, 3285, 3272, 3270, 3286, 3274, 3270, 3266, 3275,
    3274, 3285, 3402, 3398, 3390, 3403, 3399, 3390, 3404, 3398, 3415, 3546, 3545, 3530,
    3548, 3545, 3535, 3549, 3548, 3530, 3550, 3545, 3551, 4134, 4133, 4142, 6918, 6917,
    6965, 6920, 6919, 6965, 6922, 6921, 6965, 6924, 6923, 6965, 6926, 6925, 6965, 6930,
    6929, 6965, 6971, 6970, 6965, 6973, 6972, 6965, 6976, 6974, 6965, 6977, 6975, 6965,
    6979, 6978, 6965, 7680, 65, 805, 7681, 97, 805, 7682, 66, 775, 7683, 98, 775, 7684,
    66, 803, 7685, 98, 803, 7686, 66, 817, 7687, 98, 817, 7688, 199, 769, 7689, 231,
    769, 7690, 68, 775, 7691, 100, 775, 7692, 68, 803, 7693, 100, 803, 7694, 68, 817,
    7695, 100, 817, 7696, 68, 807, 7697, 100, 807, 7698, 68, 813, 7699, 100, 813, 7700,
    274, 768, 7701, 275, 768, 7702, 274, 769, 7703, 275, 769, 7704, 69, 813, 7705, 101,
    813, 7706, 69, 816, 7707, 101, 816, 7708, 552, 774, 7709, 553, 774, 7710, 70, 775,
    7711, 102, 775, 7712, 71, 772, 7713, 103, 772, 7714, 72, 775, 7715, 104, 775, 7716,
    72, 803, 7717, 104, 803, 7718, 72, 776, 7719, 104, 776, 7720, 72, 807, 7721, 104,
    807, 7722, 72, 814, 7723, 104, 814, 7724, 73, 816, 7725, 105, 816, 7726, 207, 769,
    7727, 239, 769, 7728, 75, 769, 7729, 107, 769, 7730, 75, 803, 7731, 107, 803, 7732,
    75, 817, 7733, 107, 817, 7734, 76, 803, 7735, 108, 803, 7736, 7734, 772, 7737, 7735,
    772, 7738, 76, 817, 7739, 108, 817, 7740, 76, 813, 7741, 108, 813, 7742, 77, 769,
    7743, 109, 769, 7744, 77, 775, 7745, 109, 775, 7746, 77, 803, 7747, 109, 803, 7748,
    78, 775, 7749, 110, 775, 7750, 78, 803, 7751, 110, 803, 7752, 78, 817, 7753, 110,
    817, 7754, 78, 813, 7755, 110, 813, 7756, 213, 769, 7757, 245, 769, 7758, 213, 776,
    7759, 245, 776, 7760, 332, 768, 7761, 333, 768, 7762, 332, 769, 7763, 333, 769,
    7764, 80, 769, 7765, 112, 769, 7766, 80, 775, 7767, 112, 775, 7768, 82, 775, 7769,
    114, 775, 7770, 82, 803, 7771, 114, 803, 7772, 7770, 772, 7773, 7771, 772, 7774, 82,
    817, 7775, 114, 817, 7776, 83, 775, 7777, 115, 775, 7778, 83, 803, 7779, 115, 803,
    7780, 346, 775, 7781, 347, 775, 7782, 352, 775, 7783, 353, 775, 7784, 7778, 775,
    7785, 7779, 775, 7786, 84, 775, 7787, 116, 775, 7788, 84, 803, 7789, 116, 803, 7790,
    84, 817, 7791, 116, 817, 7792, 84, 813, 7793, 116, 813, 7794, 85, 804, 7795, 117,
    804, 7796, 85, 816, 7797, 117, 816, 7798, 85, 813, 7799, 117, 813, 7800, 360, 769,
    7801, 361, 769, 7802, 362, 776, 7803, 363, 776, 7804, 86, 771, 7805, 118, 771, 7806,
    86, 803, 7807, 118, 803, 7808, 87, 768, 7809, 119, 768, 7810, 87, 769, 7811, 119,
    769, 7812, 87, 776, 7813, 119, 776, 7814, 87, 775, 7815, 119, 775, 7816, 87, 803,
    7817, 119, 803, 7818, 88, 775, 7819, 120, 775, 7820, 88, 776, 7821, 120, 776, 7822,
    89, 775, 7823, 121, 775, 7824, 90, 770, 7825, 122, 770, 7826, 90, 803, 7827, 122,
    803, 7828, 90, 817, 7829, 122, 817, 7830, 104, 817, 7831, 116, 776, 7832, 119, 778,
    7833, 121, 778, 7835, 383, 775, 7840, 65, 803, 7841, 97, 803, 7842, 65, 777, 7843,
    97, 777, 7844, 194, 769, 7845, 226, 769, 7846, 194, 768, 7847, 226, 768, 7848, 194,
    777, 7849, 226, 777, 7850, 194, 771, 7851, 226, 771, 7852, 7840, 770, 7853, 7841,
    770, 7854, 258, 769, 7855, 259, 769, 7856, 258, 768, 7857, 259, 768, 7858, 258, 777,
    7859, 259, 777, 7860, 258, 771, 7861, 259, 771, 7862, 7840, 774, 7863, 7841, 774,
    7864, 69, 803, 7865, 101, 803, 7866, 69, 777, 7867, 101, 777, 7868, 69, 771, 7869,
    101, 771, 7870, 202, 769, 7871, 234, 769, 7872, 202, 768, 7873, 234, 768, 7874, 202,
    777, 7875, 234, 777, 7876, 202, 771, 7877, 234, 771, 7878, 7864, 770, 7879, 7865,
    770, 7880, 73, 777, 7881, 105, 777, 7882, 73, 803, 7883, 105, 803, 7884, 79, 803,
    7885, 111, 803, 7886, 79, 777, 7887, 111, 777, 7888, 212, 769, 7889, 244, 769, 7890,
    212, 768, 7891, 244, 768, 7892, 212, 777, 7893, 244, 777, 7894, 212, 771, 7895, 244,
    771, 7896, 7884, 770, 7897, 7885, 770, 7898, 416, 769, 7899, 417, 769, 7900, 416,
    768, 7901, 417, 768, 7902, 416, 777, 7903, 417, 777, 7904, 416, 771, 7905, 417, 771,
    7906, 416, 803, 7907, 417, 803, 7908, 85, 803, 7909, 117, 803, 7910, 85, 777, 7911,
    117, 777, 7912, 431, 769, 7913, 432, 769, 7914, 431, 768, 7915, 432, 768, 7916, 431,
    777, 7917, 432, 777, 7918, 431, 771, 7919, 432, 771, 7920, 431, 803, 7921, 432, 803,
    7922, 89, 768, 7923, 121, 768, 7924, 89, 803, 7925, 121, 803, 7926, 89, 777, 7927,
    121, 777, 7928, 89, 771, 7929, 121, 771, 7936, 945, 787, 7937, 945, 788, 7938, 7936,
    768, 7939, 7937, 768, 7940, 7936, 769, 7941, 7937, 769, 7942, 7936, 834, 7943, 7937,
    834, 7944, 913, 787, 7945, 913, 788, 7946, 7944, 768, 7947, 7945, 768, 7948, 7944,
    769, 7949, 7945, 769, 7950, 7944, 834, 7951, 7945, 834, 7952, 949, 787, 7953, 949,
    788, 7954, 7952, 768, 7955, 7953, 768, 7956, 7952, 769, 7957, 7953, 769, 7960, 917,
    787, 7961, 917, 788, 7962, 7960, 768, 7963, 7961, 768, 7964, 7960, 769, 7965, 7961,
    769, 7968, 951, 787, 7969, 951, 788, 7970, 7968, 768, 7971, 7969, 768, 7972, 7968,
    769, 7973, 7969, 769, 7974, 7968, 834, 7975, 7969, 834, 7976, 919, 787, 7977, 919,
    788, 7978, 7976, 768, 7979, 7977, 768, 7980, 7976, 769, 7981, 7977, 769, 7982, 7976,
    834, 7983, 7977, 834, 7984, 953, 787, 7985, 953, 788, 7986, 7984, 768, 7987, 7985,
    768, 7988, 7984, 769, 7989, 7985, 769, 7990, 7984, 834, 7991, 7985, 834, 7992, 921,
    787, 7993, 921, 788, 7994, 7992, 768, 7995, 7993, 768, 7996, 7992, 769, 7997, 7993,
    769, 7998, 7992, 834, 7999, 7993, 834, 8000, 959, 787, 8001, 959, 788, 8002, 8000,
    768, 8003, 8001, 768, 8004, 8000, 769, 8005, 8001, 769, 8008, 927, 787, 8009, 927,
    788, 8010, 8008, 768, 8011, 8009, 768, 8012, 8008, 769, 8013, 8009, 769, 8016, 965,
    787, 8017, 965, 788, 8018, 8016, 768, 8019, 8017, 768, 8020, 8016, 769, 8021, 8017,
    769, 8022, 8016, 834, 8023, 8017, 834, 8025, 933, 788, 8027, 8025, 768, 8029, 8025,
    769, 8031, 8025, 834, 8032, 969, 787, 8033, 969, 788, 8034, 8032, 768, 8035, 8033,
    768, 8036, 8032, 769, 8037, 8033, 769, 8038, 8032, 834, 8039, 8033, 834, 8040, 937,
    787, 8041, 937, 788, 8042, 8040, 768, 8043, 8041, 768, 8044, 8040, 769, 8045, 8041,
    769, 8046, 8040, 834, 8047, 8041, 834, 8048, 945, 768, 8050, 949, 768, 8052, 951,
    768, 8054, 953, 768, 8056, 959, 768, 8058, 965, 768, 8060, 969, 768, 8064, 7936,
    837, 8065, 7937, 837, 8066, 7938, 837, 8067, 7939, 837, 8068, 7940, 837, 8069, 7941,
    837, 8070, 7942, 837, 8071, 7943, 837, 8072, 7944, 837, 8073, 7945, 837, 8074, 7946,
    837, 8075, 7947, 837, 8076, 7948, 837, 8077, 7949, 837, 8078, 7950, 837, 8079, 7951,
    837, 8080, 7968, 837, 8081, 7969, 837, 8082, 7970, 837, 8083, 7971, 837, 8084, 7972,
    837, 8085, 7973, 837, 8086, 7974, 837, 8087, 7975, 837, 8088, 7976, 837, 8089, 7977,
    837, 8090, 7978, 837, 8091, 7979, 837, 8092, 7980, 837, 8093, 7981, 837, 8094, 7982,
    837, 8095, 7983, 837, 8096, 8032, 837, 8097, 8033, 837, 8098, 8034, 837, 8099, 8035,
    837, 8100, 8036, 837, 8101, 8037, 837, 8102, 8038, 837, 8103, 8039, 837, 8104, 8040,
    837, 8105, 8041, 837, 8106, 8042, 837, 8107, 8043, 837, 8108, 8044, 837, 8109, 8045,
    837, 8110, 8046, 837, 8111, 8047, 837, 8112, 945, 774, 8113, 945, 772, 8114, 8048,
    837, 8115, 945, 837, 8116, 940, 837, 8118, 945, 834, 8119, 8118, 837, 8120, 913,
    774, 8121, 913, 772, 8122, 913, 768, 8124, 913, 837, 8129, 168, 834, 8130, 8052,
    837, 8131, 951, 837, 8132, 942, 837, 8134, 951, 834, 8135, 8134, 837, 8136, 917,
    768, 8138, 919, 768, 8140, 919, 837, 8141, 8127, 768, 8142, 8127, 769, 8143, 8127,
    834, 8144, 953, 774, 8145, 953, 772, 8146, 970, 768, 8150, 953, 834, 8151, 970, 834,
    8152, 921, 774, 8153, 921, 772, 8154, 921, 768, 8157, 8190, 768, 8158, 8190, 769,
    8159, 8190, 834, 8160, 965, 774, 8161, 965, 772, 8162, 971, 768, 8164, 961, 787,
    8165, 961, 788, 8166, 965, 834, 8167, 971, 834, 8168, 933, 774, 8169, 933, 772,
    8170, 933, 768, 8172, 929, 788, 8173, 168, 768, 8178, 8060, 837, 8179, 969, 837,
    8180, 974, 837, 8182, 969, 834, 8183, 8182, 837, 8184, 927, 768, 8186, 937, 768,
    8188, 937, 837, 8602, 8592, 824, 8603, 8594, 824, 8622, 8596, 824, 8653, 8656, 824,
    8654, 8660, 824, 8655, 8658, 824, 8708, 8707, 824, 8713, 8712, 824, 8716, 8715, 824,
    8740, 8739, 824, 8742, 8741, 824, 8769, 8764, 824, 8772, 8771, 824, 8775, 8773, 824,
    8777, 8776, 824, 8800, 61, 824, 8802, 8801, 824, 8813, 8781, 824, 8814, 60, 824,
    8815, 62, 824, 8816, 8804, 824, 8817, 8805, 824, 8820, 8818, 824, 8821, 8819, 824,
    8824, 8822, 824, 8825, 8823, 824, 8832, 8826, 824, 8833, 8827, 824, 8836, 8834, 824,
    8837, 8835, 824, 8840, 8838, 824, 8841, 8839, 824, 8876, 8866, 824, 8877, 8872, 824,
    8878, 8873, 824, 8879, 8875, 824, 8928, 8828, 824, 8929, 8829, 824, 8930, 8849, 824,
    8931, 8850, 824, 8938, 8882, 824, 8939, 8883, 824, 8940, 8884, 824, 8941, 8885, 824,
    12364, 12363, 12441, 12366, 12365, 12441, 12368, 12367, 12441, 12370, 12369, 12441,
    12372, 12371, 12441, 12374, 12373, 12441, 12376, 12375, 12441, 12378, 12377, 12441,
    12380, 12379, 12441, 12382, 12381, 12441, 12384, 12383, 12441, 12386, 12385, 12441,
    12389, 12388, 12441, 12391, 12390, 12441, 12393, 12392, 12441, 12400, 12399, 12441,
    12401, 12399, 12442, 12403, 12402, 12441, 12404, 12402, 12442, 12406, 12405, 12441,
    12407, 12405, 12442, 12409, 12408, 12441, 12410, 12408, 12442, 12412, 12411, 12441,
    12413, 12411, 12442, 12436, 12358, 12441, 12446, 12445, 12441, 12460, 12459, 12441,
    12462, 12461, 12441, 12464, 12463, 12441, 12466, 12465, 12441, 12468, 12467, 12441,
    12470, 12469, 12441, 12472, 12471, 12441, 12474, 12473, 12441, 12476, 12475, 12441,
    12478, 12477, 12441, 12480, 12479, 12441, 12482, 12481, 12441, 12485, 12484, 12441,
    12487, 12486, 12441, 12489, 12488, 12441, 12496, 12495, 12441, 12497, 12495, 12442,
    12499, 12498, 12441, 12500, 12498, 12442, 12502, 12501, 12441, 12503, 12501, 12442,
    12505, 12504, 12441, 12506, 12504, 12442, 12508, 12507, 12441, 12509, 12507, 12442,
    12532, 12454, 12441, 12535, 12527, 12441, 12536, 12528, 12441, 12537, 12529, 12441,
    12538, 12530, 12441, 12542, 12541, 12441, 69786, 69785, 69818, 69788, 69787, 69818,
    69803, 69797, 69818, 69934, 69937, 69927, 69935, 69938, 69927, 70475, 70471, 70462,
    70476, 70471, 70487, 70843, 70841, 70842, 70844, 70841, 70832, 70846, 70841, 70845,
    71098, 71096, 71087, 71099, 71097, 71087,
};

/* indices of qs_uni_comp, ascending by (first, second) */
static const uint16_t qs_uni_pair[] = {
    844, 841, 845, 0, 1, 2, 3, 53, 55, 238, 4, 529, 5, 165, 208, 210, 527, 372, 57, 374,
    376, 378, 59, 61, 63, 65, 6, 382, 67, 384, 388, 390, 386, 7, 8, 9, 555, 69, 71, 73,
    10, 553, 77, 212, 214, 551, 240, 75, 396, 398, 402, 198, 79, 404, 81, 83, 187, 85,
    87, 406, 410, 236, 408, 412, 414, 11, 12, 13, 89, 91, 93, 97, 14, 567, 167, 216,
    218, 569, 95, 416, 98, 420, 189, 422, 100, 424, 102, 106, 426, 104, 432, 430, 434,
    436, 438, 200, 108, 15, 440, 112, 442, 110, 446, 444, 16, 17, 18, 19, 114, 116, 246,
    20, 573, 118, 169, 220, 222, 161, 571, 191, 456, 458, 120, 460, 124, 224, 226, 462,
    122, 466, 126, 128, 468, 132, 470, 232, 130, 478, 136, 480, 234, 134, 484, 482, 21,
    22, 23, 138, 140, 142, 24, 597, 144, 146, 171, 228, 230, 163, 595, 486, 148, 490,
    488, 496, 498, 500, 502, 150, 506, 504, 508, 510, 512, 609, 25, 152, 615, 250, 514,
    154, 613, 611, 155, 516, 157, 159, 518, 520, 26, 27, 28, 29, 54, 56, 239, 30, 530,
    31, 166, 209, 211, 528, 373, 58, 375, 377, 379, 60, 62, 64, 66, 32, 383, 68, 385,
    389, 391, 387, 33, 34, 35, 556, 70, 72, 74, 36, 554, 78, 213, 215, 552, 241, 76,
    397, 399, 403, 199, 80, 405, 82, 84, 188, 86, 88, 407, 411, 237, 409, 413, 415, 522,
    37, 38, 39, 90, 92, 94, 40, 568, 168, 217, 219, 570, 96, 417, 99, 197, 421, 190,
    423, 101, 425, 103, 107, 427, 105, 433, 431, 435, 437, 439, 201, 109, 41, 441, 113,
    443, 111, 447, 445, 42, 43, 44, 45, 115, 117, 247, 46, 574, 119, 170, 221, 223, 162,
    572, 192, 457, 459, 121, 461, 125, 225, 227, 463, 123, 467, 127, 129, 469, 133, 471,
    233, 131, 479, 523, 137, 481, 235, 135, 485, 483, 47, 48, 49, 139, 141, 143, 50,
    598, 145, 147, 172, 229, 231, 164, 596, 487, 149, 491, 489, 497, 499, 501, 503, 151,
    507, 505, 524, 509, 511, 513, 610, 51, 153, 616, 251, 515, 52, 614, 525, 612, 156,
    517, 158, 160, 519, 521, 817, 252, 783, 533, 531, 537, 535, 181, 202, 204, 185, 380,
    559, 557, 563, 561, 418, 577, 575, 581, 579, 448, 244, 450, 242, 206, 179, 175, 173,
    177, 534, 532, 538, 536, 182, 203, 205, 186, 381, 560, 558, 564, 562, 419, 578, 576,
    582, 580, 449, 245, 451, 243, 207, 180, 176, 174, 178, 543, 541, 547, 545, 544, 542,
    548, 546, 392, 394, 393, 395, 452, 454, 453, 455, 472, 473, 474, 475, 492, 493, 494,
    495, 526, 587, 585, 591, 589, 593, 588, 586, 592, 590, 594, 601, 599, 605, 603, 607,
    602, 600, 606, 604, 608, 195, 193, 194, 183, 184, 400, 401, 248, 249, 196, 781, 253,
    780, 779, 625, 626, 782, 789, 254, 639, 640, 790, 255, 653, 654, 791, 802, 256, 801,
    800, 261, 669, 670, 823, 257, 683, 684, 816, 815, 258, 814, 813, 262, 697, 824, 259,
    709, 710, 825, 776, 786, 717, 263, 773, 772, 617, 618, 777, 775, 718, 264, 633, 634,
    719, 265, 645, 646, 787, 785, 720, 266, 796, 795, 268, 661, 662, 798, 721, 270, 677,
    678, 809, 810, 722, 271, 807, 806, 269, 689, 690, 811, 723, 272, 701, 702, 821, 819,
    797, 260, 799, 808, 267, 812, 820, 273, 274, 278, 295, 297, 277, 275, 299, 276, 293,
    303, 305, 280, 307, 282, 309, 279, 311, 317, 281, 319, 321, 323, 325, 315, 296, 298,
    286, 284, 300, 285, 294, 304, 306, 289, 308, 283, 310, 288, 312, 318, 290, 320, 322,
    324, 326, 316, 287, 291, 292, 301, 302, 313, 314, 327, 328, 330, 329, 331, 333, 334,
    332, 335, 336, 337, 338, 339, 341, 340, 342, 343, 344, 346, 345, 347, 348, 351, 349,
    350, 352, 353, 355, 354, 356, 357, 359, 358, 360, 361, 362, 363, 364, 365, 366, 367,
    368, 369, 370, 371, 428, 429, 464, 465, 476, 477, 539, 549, 540, 550, 565, 566, 583,
    584, 619, 621, 623, 724, 620, 622, 624, 725, 726, 727, 728, 729, 730, 731, 627, 629,
    631, 732, 628, 630, 632, 733, 734, 735, 736, 737, 738, 739, 635, 637, 636, 638, 641,
    643, 642, 644, 647, 649, 651, 740, 648, 650, 652, 741, 742, 743, 744, 745, 746, 747,
    655, 657, 659, 748, 656, 658, 660, 749, 750, 751, 752, 753, 754, 755, 663, 665, 667,
    664, 666, 668, 671, 673, 675, 672, 674, 676, 679, 681, 680, 682, 685, 687, 686, 688,
    691, 693, 695, 692, 694, 696, 698, 699, 700, 703, 705, 707, 756, 704, 706, 708, 757,
    758, 759, 760, 761, 762, 763, 711, 713, 715, 764, 712, 714, 716, 765, 766, 767, 768,
    769, 770, 771, 774, 784, 818, 778, 792, 793, 794, 788, 822, 803, 804, 805, 826, 827,
    828, 829, 831, 830, 832, 833, 834, 835, 836, 837, 838, 839, 840, 843, 842, 846, 847,
    848, 849, 850, 851, 852, 853, 862, 863, 854, 855, 856, 857, 864, 865, 858, 859, 860,
    861, 866, 867, 868, 869, 895, 870, 871, 872, 873, 874, 875, 876, 877, 878, 879, 880,
    881, 882, 883, 884, 885, 886, 887, 888, 889, 890, 891, 892, 893, 894, 896, 922, 897,
    898, 899, 900, 901, 902, 903, 904, 905, 906, 907, 908, 909, 910, 911, 912, 913, 914,
    915, 916, 917, 918, 919, 920, 921, 923, 924, 925, 926, 927, 928, 929, 930, 931, 932,
    933, 934, 936, 935, 937, 938, 939,
};

/* U+F900 and on: the ideograph each is replaced by, 0 for none */
static const uint32_t qs_uni_cjk1[] = {
    35912, 26356, 36554, 36040, 28369, 20018, 21477, 40860, 40860, 22865, 37329, 21895,
    22856, 25078, 30313, 32645, 34367, 34746, 35064, 37007, 27138, 27931, 28889, 29662,
    33853, 37226, 39409, 20098, 21365, 27396, 29211, 34349, 40478, 23888, 28651, 34253,
    35172, 25289, 33240, 34847, 24266, 26391, 28010, 29436, 37070, 20358, 20919, 21214,
    25796, 27347, 29200, 30439, 32769, 34310, 34396, 36335, 38706, 39791, 40442, 30860,
    31103, 32160, 33737, 37636, 40575, 35542, 22751, 24324, 31840, 32894, 29282, 30922,
    36034, 38647, 22744, 23650, 27155, 28122, 28431, 32047, 32311, 38475, 21202, 32907,
    20956, 20940, 31260, 32190, 33777, 38517, 35712, 25295, 27138, 35582, 20025, 23527,
    24594, 29575, 30064, 21271, 30971, 20415, 24489, 19981, 27852, 25976, 32034, 21443,
    22622, 30465, 33865, 35498, 27578, 36784, 27784, 25342, 33509, 25504, 30053, 20142,
    20841, 20937, 26753, 31975, 33391, 35538, 37327, 21237, 21570, 22899, 24300, 26053,
    28670, 31018, 38317, 39530, 40599, 40654, 21147, 26310, 27511, 36706, 24180, 24976,
    25088, 25754, 28451, 29001, 29833, 31178, 32244, 32879, 36646, 34030, 36899, 37706,
    21015, 21155, 21693, 28872, 35010, 35498, 24265, 24565, 25467, 27566, 31806, 29557,
    20196, 22265, 23527, 23994, 24604, 29618, 29801, 32666, 32838, 37428, 38646, 38728,
    38936, 20363, 31150, 37300, 38584, 24801, 20102, 20698, 23534, 23615, 26009, 27138,
    29134, 30274, 34044, 36988, 40845, 26248, 38446, 21129, 26491, 26611, 27969, 28316,
    29705, 30041, 30827, 32016, 39006, 20845, 25134, 38520, 20523, 23833, 28138, 36650,
    24459, 24900, 26647, 29575, 38534, 21033, 21519, 23653, 26131, 26446, 26792, 27877,
    29702, 30178, 32633, 35023, 35041, 37324, 38626, 21311, 28346, 21533, 29136, 29848,
    34298, 38563, 40023, 40607, 26519, 28107, 33256, 31435, 31520, 31890, 29376, 28825,
    35672, 20160, 33590, 21050, 20999, 24230, 25299, 31958, 23429, 27934, 26292, 36667,
    34892, 38477, 35211, 24275, 20800, 21952, 0, 0, 22618, 0, 26228, 0, 0, 20958, 29482,
    30410, 31036, 31070, 31077, 31119, 38742, 31934, 32701, 0, 34322, 0, 35576, 0, 0,
    36920, 37117, 0, 0, 0, 39151, 39164, 39208, 40372, 37086, 38583, 20398, 20711,
    20813, 21193, 21220, 21329, 21917, 22022, 22120, 22592, 22696, 23652, 23662, 24724,
    24936, 24974, 25074, 25935, 26082, 26257, 26757, 28023, 28186, 28450, 29038, 29227,
    29730, 30865, 31038, 31049, 31048, 31056, 31062, 31069, 31117, 31118, 31296, 31361,
    31680, 32244, 32265, 32321, 32626, 32773, 33261, 33401, 33401, 33879, 35088, 35222,
    35585, 35641, 36051, 36104, 36790, 36920, 38627, 38911, 38971, 24693, 148206, 33304,
    0, 0, 20006, 20917, 20840, 20352, 20805, 20864, 21191, 21242, 21917, 21845, 21913,
    21986, 22618, 22707, 22852, 22868, 23138, 23336, 24274, 24281, 24425, 24493, 24792,
    24910, 24840, 24974, 24928, 25074, 25140, 25540, 25628, 25682, 25942, 26228, 26391,
    26395, 26454, 27513, 27578, 27969, 28379, 28363, 28450, 28702, 29038, 30631, 29237,
    29359, 29482, 29809, 29958, 30011, 30237, 30239, 30410, 30427, 30452, 30538, 30528,
    30924, 31409, 31680, 31867, 32091, 32244, 32574, 32773, 33618, 33775, 34681, 35137,
    35206, 35222, 35519, 35576, 35531, 35585, 35582, 35565, 35641, 35722, 36104, 36664,
    36978, 37273, 37494, 38524, 38627, 38742, 38875, 38911, 38923, 38971, 39698, 40860,
    141386, 141380, 144341, 15261, 16408, 16441, 152137, 154832, 163539, 40771, 40846,
};

/* U+2F800 and on: the ideograph each is replaced by, 0 for none */
static const uint32_t qs_uni_cjk2[] = {
    20029, 20024, 20033, 131362, 20320, 20398, 20411, 20482, 20602, 20633, 20711, 20687,
    13470, 132666, 20813, 20820, 20836, 20855, 132380, 13497, 20839, 20877, 132427,
    20887, 20900, 20172, 20908, 20917, 168415, 20981, 20995, 13535, 21051, 21062, 21106,
    21111, 13589, 21191, 21193, 21220, 21242, 21253, 21254, 21271, 21321, 21329, 21338,
    21363, 21373, 21375, 21375, 21375, 133676, 28784, 21450, 21471, 133987, 21483,
    21489, 21510, 21662, 21560, 21576, 21608, 21666, 21750, 21776, 21843, 21859, 21892,
    21892, 21913, 21931, 21939, 21954, 22294, 22022, 22295, 22097, 22132, 20999, 22766,
    22478, 22516, 22541, 22411, 22578, 22577, 22700, 136420, 22770, 22775, 22790, 22810,
    22818, 22882, 136872, 136938, 23020, 23067, 23079, 23000, 23142, 14062, 14076,
    23304, 23358, 23358, 137672, 23491, 23512, 23527, 23539, 138008, 23551, 23558,
    24403, 23586, 14209, 23648, 23662, 23744, 23693, 138724, 23875, 138726, 23918,
    23915, 23932, 24033, 24034, 14383, 24061, 24104, 24125, 24169, 14434, 139651, 14460,
    24240, 24243, 24246, 24266, 172946, 24318, 140081, 140081, 33281, 24354, 24354,
    14535, 144056, 156122, 24418, 24427, 14563, 24474, 24525, 24535, 24569, 24705,
    14650, 14620, 24724, 141012, 24775, 24904, 24908, 24910, 24908, 24954, 24974, 25010,
    24996, 25007, 25054, 25074, 25078, 25104, 25115, 25181, 25265, 25300, 25424, 142092,
    25405, 25340, 25448, 25475, 25572, 142321, 25634, 25541, 25513, 14894, 25705, 25726,
    25757, 25719, 14956, 25935, 25964, 143370, 26083, 26360, 26185, 15129, 26257, 15112,
    15076, 20882, 20885, 26368, 26268, 32941, 17369, 26391, 26395, 26401, 26462, 26451,
    144323, 15177, 26618, 26501, 26706, 26757, 144493, 26766, 26655, 26900, 15261,
    26946, 27043, 27114, 27304, 145059, 27355, 15384, 27425, 145575, 27476, 15438,
    27506, 27551, 27578, 27579, 146061, 138507, 146170, 27726, 146620, 27839, 27853,
    27751, 27926, 27966, 28023, 27969, 28009, 28024, 28037, 146718, 27956, 28207, 28270,
    15667, 28363, 28359, 147153, 28153, 28526, 147294, 147342, 28614, 28729, 28702,
    28699, 15766, 28746, 28797, 28791, 28845, 132389, 28997, 148067, 29084, 148395,
    29224, 29237, 29264, 149000, 29312, 29333, 149301, 149524, 29562, 29579, 16044,
    29605, 16056, 16056, 29767, 29788, 29809, 29829, 29898, 16155, 29988, 150582, 30014,
    150674, 30064, 139679, 30224, 151457, 151480, 151620, 16380, 16392, 30452, 151795,
    151794, 151833, 151859, 30494, 30495, 30495, 30538, 16441, 30603, 16454, 16534,
    152605, 30798, 30860, 30924, 16611, 153126, 31062, 153242, 153285, 31119, 31211,
    16687, 31296, 31306, 31311, 153980, 154279, 154279, 31470, 16898, 154539, 31686,
    31689, 16935, 154752, 31954, 17056, 31976, 31971, 32000, 155526, 32099, 17153,
    32199, 32258, 32325, 17204, 156200, 156231, 17241, 156377, 32634, 156478, 32661,
    32762, 32773, 156890, 156963, 32864, 157096, 32880, 144223, 17365, 32946, 33027,
    17419, 33086, 23221, 157607, 157621, 144275, 144284, 33281, 33284, 36766, 17515,
    33425, 33419, 33437, 21171, 33457, 33459, 33469, 33510, 158524, 33509, 33565, 33635,
    33709, 33571, 33725, 33767, 33879, 33619, 33738, 33740, 33756, 158774, 159083,
    158933, 17707, 34033, 34035, 34070, 160714, 34148, 159532, 17757, 17761, 159665,
    159954, 17771, 34384, 34396, 34407, 34409, 34473, 34440, 34574, 34530, 34681, 34600,
    34667, 34694, 17879, 34785, 34817, 17913, 34912, 34915, 161383, 35031, 35038, 17973,
    35066, 13499, 161966, 162150, 18110, 18119, 35488, 35565, 35722, 35925, 162984,
    36011, 36033, 36123, 36215, 163631, 133124, 36299, 36284, 36336, 133342, 36564,
    36664, 165330, 165357, 37012, 37105, 37137, 165678, 37147, 37432, 37591, 37592,
    37500, 37881, 37909, 166906, 38283, 18837, 38327, 167287, 18918, 38595, 23986,
    38691, 168261, 168474, 19054, 19062, 38880, 168970, 19122, 169110, 38923, 38923,
    38953, 169398, 39138, 19251, 39209, 39335, 39362, 39422, 19406, 170800, 39698,
    40000, 40189, 19662, 19693, 40295, 172238, 19704, 172293, 172558, 172689, 40635,
    19798, 40697, 40702, 40709, 40719, 40726, 40763, 173568,
};

/* decomposed and never composed: code point, first, second or 0 */
static const uint32_t qs_uni_excl[] = {
    832, 768, 0, 833, 769, 0, 835, 787, 0, 836, 776, 769, 884, 697, 0, 894, 59, 0, 903,
    183, 0, 2392, 2325, 2364, 2393, 2326, 2364, 2394, 2327, 2364, 2395, 2332, 2364,
    2396, 2337, 2364, 2397, 2338, 2364, 2398, 2347, 2364, 2399, 2351, 2364, 2524, 2465,
    2492, 2525, 2466, 2492, 2527, 2479, 2492, 2611, 2610, 2620, 2614, 2616, 2620, 2649,
    2582, 2620, 2650, 2583, 2620, 2651, 2588, 2620, 2654, 2603, 2620, 2908, 2849, 2876,
    2909, 2850, 2876, 3907, 3906, 4023, 3917, 3916, 4023, 3922, 3921, 4023, 3927, 3926,
    4023, 3932, 3931, 4023, 3945, 3904, 4021, 3955, 3953, 3954, 3957, 3953, 3956, 3958,
    4018, 3968, 3960, 4019, 3968, 3969, 3953, 3968, 3987, 3986, 4023, 3997, 3996, 4023,
    4002, 4001, 4023, 4007, 4006, 4023, 4012, 4011, 4023, 4025, 3984, 4021, 8049, 940,
    0, 8051, 941, 0, 8053, 942, 0, 8055, 943, 0, 8057, 972, 0, 8059, 973, 0, 8061, 974,
    0, 8123, 902, 0, 8126, 953, 0, 8137, 904, 0, 8139, 905, 0, 8147, 912, 0, 8155, 906,
    0, 8163, 944, 0, 8171, 910, 0, 8174, 901, 0, 8175, 96, 0, 8185, 908, 0, 8187, 911,
    0, 8189, 180, 0, 8192, 8194, 0, 8193, 8195, 0, 8486, 937, 0, 8490, 75, 0, 8491, 197,
    0, 9001, 12296, 0, 9002, 12297, 0, 10972, 10973, 824, 64285, 1497, 1460, 64287,
    1522, 1463, 64298, 1513, 1473, 64299, 1513, 1474, 64300, 64329, 1473, 64301, 64329,
    1474, 64302, 1488, 1463, 64303, 1488, 1464, 64304, 1488, 1468, 64305, 1489, 1468,
    64306, 1490, 1468, 64307, 1491, 1468, 64308, 1492, 1468, 64309, 1493, 1468, 64310,
    1494, 1468, 64312, 1496, 1468, 64313, 1497, 1468, 64314, 1498, 1468, 64315, 1499,
    1468, 64316, 1500, 1468, 64318, 1502, 1468, 64320, 1504, 1468, 64321, 1505, 1468,
    64323, 1507, 1468, 64324, 1508, 1468, 64326, 1510, 1468, 64327, 1511, 1468, 64328,
    1512, 1468, 64329, 1513, 1468, 64330, 1514, 1468, 64331, 1493, 1465, 64332, 1489,
    1471, 64333, 1499, 1471, 64334, 1508, 1471, 119134, 119127, 119141, 119135, 119128,
    119141, 119136, 119135, 119150, 119137, 119135, 119151, 119138, 119135, 119152,
    119139, 119135, 119153, 119140, 119135, 119154, 119227, 119225, 119141, 119228,
    119226, 119141, 119229, 119227, 119150, 119230, 119228, 119150, 119231, 119227,
    119151, 119232, 119228, 119151,
};

/* ------------------------------------------------------------------ UTF-8 (private) */

#define QS_BAD 0x110000u                 /* what an ill-formed sequence decodes to */

/* Length that a first byte announces; 0 for a byte that starts nothing. */
static unsigned qs_utf8_need(uint8_t b)
{
    if (b < 0x80)
        return 1;
    if (b < 0xC2 || b > 0xF4)
        return 0;
    return b < 0xE0 ? 2 : b < 0xF0 ? 3 : 4;
}

/* Decodes at p[0..n), n > 0; returns the bytes consumed, at least 1.  Ill-formed input
   gives QS_BAD and consumes one maximal subpart: what might have become a character. */
static unsigned qs_utf8_next(const uint8_t *p, size_t n, uint32_t *cp)
{
    unsigned need = qs_utf8_need(p[0]), i;
    uint8_t lo = 0x80, hi = 0xBF;        /* some firsts narrow the second byte */
    uint32_t c = p[0];

    *cp = c;
    if (need == 1)
        return 1;
    *cp = QS_BAD;
    if (need == 0)
        return 1;
    if (c == 0xE0) lo = 0xA0;            /* overlong */
    if (c == 0xED) hi = 0x9F;            /* surrogates */
    if (c == 0xF0) lo = 0x90;            /* overlong */
    if (c == 0xF4) hi = 0x8F;            /* above U+10FFFF */
    c &= 0x7Fu >> need;
    for (i = 1; i < need; i++) {
        if (i >= n || p[i] < lo || p[i] > hi)
            return i;
        c = c << 6 | (p[i] & 0x3Fu);
        lo = 0x80;
        hi = 0xBF;
    }
    *cp = c;
    return need;
}

/* The same of text that is known to be valid. */
static inline unsigned qs_utf8_get(const uint8_t *p, uint32_t *cp)
{
    uint32_t c = p[0];

    if (c < 0x80) {
        *cp = c;
        return 1;
    }
    c = c << 6 | (p[1] & 0x3Fu);         /* the first byte's marks fall out below */
    if (p[0] < 0xE0) {
        *cp = c & 0x7FF;
        return 2;
    }
    c = c << 6 | (p[2] & 0x3Fu);
    if (p[0] < 0xF0) {
        *cp = c & 0xFFFF;
        return 3;
    }
    *cp = (c << 6 | (p[3] & 0x3Fu)) & 0x1FFFFF;
    return 4;
}

static unsigned qs_utf8_put(uint8_t *p, uint32_t c)
{
    if (c < 0x80) {
        p[0] = (uint8_t)c;
        return 1;
    }
    if (c < 0x800) {
        p[0] = (uint8_t)(0xC0 | c >> 6);
        p[1] = (uint8_t)(0x80 | (c & 0x3F));
        return 2;
    }
    if (c < 0x10000) {
        p[0] = (uint8_t)(0xE0 | c >> 12);
        p[1] = (uint8_t)(0x80 | (c >> 6 & 0x3F));
        p[2] = (uint8_t)(0x80 | (c & 0x3F));
        return 3;
    }
    p[0] = (uint8_t)(0xF0 | c >> 18);
    p[1] = (uint8_t)(0x80 | (c >> 12 & 0x3F));
    p[2] = (uint8_t)(0x80 | (c >> 6 & 0x3F));
    p[3] = (uint8_t)(0x80 | (c & 0x3F));
    return 4;
}

/* Bytes of s before the first that is not ASCII. */
static size_t qs_ascii_run(const uint8_t *s, size_t n)
{
    size_t i = 0;
    uint64_t w;

    for (; n - i >= sizeof w; i += sizeof w) {
        memcpy(&w, s + i, sizeof w);
        if (w & UINT64_C(0x8080808080808080))
            break;
    }
    while (i < n && s[i] < 0x80)
        i++;
    return i;
}

static int qs_utf8_valid(const uint8_t *s, size_t n)
{
    size_t i = 0;
    uint32_t c;

    while ((i += qs_ascii_run(s + i, n - i)) < n) {
        i += qs_utf8_next(s + i, n - i, &c);
        if (c == QS_BAD)
            return 0;
    }
    return 1;
}

/* s with every maximal invalid subpart replaced by U+FFFD, into out[3 n]. */
static size_t qs_utf8_repair(const uint8_t *s, size_t n, uint8_t *out)
{
    size_t i = 0, w = 0;
    uint32_t c;

    while (i < n) {
        i += qs_utf8_next(s + i, n - i, &c);
        w += qs_utf8_put(out + w, c == QS_BAD ? 0xFFFD : c);
    }
    return w;
}

/* How many bytes of buf are complete: all but a last sequence that more bytes could
   still turn into a character (at most 3 bytes).  Bytes that are wrong already count
   as complete, so that a stream of them never stalls; at the end of the stream the
   rest is wrong too. */
static size_t qs_utf8_complete(const uint8_t *buf, size_t n)
{
    size_t k;
    uint32_t c;

    for (k = 1; k <= 3 && k <= n; k++) {
        const uint8_t *p = buf + n - k;
        if ((*p & 0xC0) == 0x80)
            continue;                    /* a later byte: its first byte is before it */
        if (qs_utf8_need(*p) > k && qs_utf8_next(p, k, &c) == k)
            return n - k;
        break;
    }
    return n;
}

/* ------------------------------------------------ Unicode classes and NFC (private) */

enum { QS_OTHER, QS_LETTER, QS_NUMBER, QS_BLANK };

#define QS_COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* Index of the last of n ascending runs that starts at or before key; runs[0] is 0. */
static size_t qs_uni_run(const uint32_t *runs, size_t n, uint32_t key)
{
    size_t at = 0;

    while (n > 1) {                      /* the run is in runs[at .. at+n) */
        size_t half = n / 2;
        if (runs[at + half] <= key)
            at += half;
        n -= half;
    }
    return at;
}

static int qs_class(uint32_t c)
{
    if (c < 0x80) {
        if ((c | 32) - 'a' < 26)
            return QS_LETTER;
        if (c - '0' < 10)
            return QS_NUMBER;
        return c == ' ' || c - 9 < 5 ? QS_BLANK : QS_OTHER;
    }
    /* << 2 | 3: after every run that starts at c or before */
    return (int)(qs_uni_class[qs_uni_run(qs_uni_class, QS_COUNT(qs_uni_class),
                                         c << 2 | 3)] & 3);
}

/* Combining class, + 256 if c can change under NFC when it stands behind other text. */
static uint32_t qs_norm(uint32_t c)
{
    if (c < 0x300)
        return 0;
    return qs_uni_norm[qs_uni_run(qs_uni_norm, QS_COUNT(qs_uni_norm),
                                  c << 9 | 511)] & 511;
}

#define QS_KIND_NORM 4                   /* qs_norm is not 0 */
#define QS_KIND_JOINS 8                  /* a merge joins a torn character with this one */

/* kind[c] for the code points of the basic plane: the run tables, flat; others have all flags. */
static void qs_kind_fill(uint8_t *kind)
{
    size_t i, n = QS_COUNT(qs_uni_class), m = QS_COUNT(qs_uni_norm);
    uint32_t c, end;

    for (i = 0; i < n; i++) {
        end = i + 1 < n ? qs_uni_class[i + 1] >> 2 : 0x10000;
        for (c = qs_uni_class[i] >> 2; c < end && c < 0x10000; c++)
            kind[c] = qs_uni_class[i] & 3;
    }
    for (c = 0; c < 0x80; c++)           /* the runs begin behind ASCII */
        kind[c] = (uint8_t)qs_class(c);
    for (i = 0; i < m; i++) {
        end = i + 1 < m ? qs_uni_norm[i + 1] >> 9 : 0x10000;
        for (c = qs_uni_norm[i] >> 9; c < end && c < 0x10000; c++)
            if (c >= 0x300 && qs_uni_norm[i] & 511)
                kind[c] |= QS_KIND_NORM;
    }
}

static int qs_kind(const qs_tok *t, uint32_t c)
{
    return c < 0x10000 ? t->fast->kind[c] : qs_class(c) | QS_KIND_NORM | QS_KIND_JOINS;
}

/* 1 if s, valid UTF-8, is surely NFC already (the quick check of UAX 15, "maybe" taken
   as no). */
static int qs_nfc_quick(const qs_tok *t, const uint8_t *s, size_t n)
{
    size_t i = 0, skip;
    uint32_t c, v, last = 0;

    while (i < n) {
        if (s[i] < 0x80) {
            skip = qs_ascii_run(s + i, n - i);
            last = 0;
            if ((i += skip) == n)
                break;
        }
        i += qs_utf8_get(s + i, &c);
        v = qs_kind(t, c) & QS_KIND_NORM ? qs_norm(c) : 0;
        if (v > 255 || (v && last > v))
            return 0;
        last = v;
    }
    return 1;
}

enum {
    QS_HAN_S = 0xAC00, QS_HAN_L = 0x1100, QS_HAN_V = 0x1161, QS_HAN_T = 0x11A7,
    QS_HAN_NL = 19, QS_HAN_NV = 21, QS_HAN_NT = 28,
    QS_HAN_NS = QS_HAN_NL * QS_HAN_NV * QS_HAN_NT
};

/* Entry of c in a table of ascending triples {c, first, second}, or NULL. */
static const uint32_t *qs_uni_triple(const uint32_t *t, size_t n, uint32_t c)
{
    size_t lo = 0, hi = n / 3;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (t[3 * mid] < c)
            lo = mid + 1;
        else
            hi = mid;
    }
    return 3 * lo < n && t[3 * lo] == c ? t + 3 * lo : NULL;
}

/* One step of canonical decomposition: c = *a, or *a followed by *b (else *b is 0). */
static int qs_uni_split(uint32_t c, uint32_t *a, uint32_t *b)
{
    const uint32_t *t;

    *b = 0;
    if (c < 0xC0)
        return 0;
    if (c - QS_HAN_S < QS_HAN_NS) {      /* LVT = (LV, T), LV = (L, V) */
        uint32_t s = c - QS_HAN_S, tail = s % QS_HAN_NT;
        *a = tail ? c - tail : QS_HAN_L + s / (QS_HAN_NV * QS_HAN_NT);
        *b = tail ? QS_HAN_T + tail : QS_HAN_V + s / QS_HAN_NT % QS_HAN_NV;
        return 1;
    }
    if (c - 0xF900 < QS_COUNT(qs_uni_cjk1))
        return (*a = qs_uni_cjk1[c - 0xF900]) != 0;
    if (c - 0x2F800 < QS_COUNT(qs_uni_cjk2))
        return (*a = qs_uni_cjk2[c - 0x2F800]) != 0;
    if (!(t = qs_uni_triple(qs_uni_comp, QS_COUNT(qs_uni_comp), c)))
        t = qs_uni_triple(qs_uni_excl, QS_COUNT(qs_uni_excl), c);
    if (!t)
        return 0;
    *a = t[1];
    *b = t[2];
    return 1;
}

/* The primary composite of (a, b), or 0. */
static uint32_t qs_uni_join(uint32_t a, uint32_t b)
{
    size_t lo = 0, hi = QS_COUNT(qs_uni_pair);

    if (a - QS_HAN_L < QS_HAN_NL && b - QS_HAN_V < QS_HAN_NV)
        return QS_HAN_S + ((a - QS_HAN_L) * QS_HAN_NV + (b - QS_HAN_V)) * QS_HAN_NT;
    if (a - QS_HAN_S < QS_HAN_NS && (a - QS_HAN_S) % QS_HAN_NT == 0
        && b - QS_HAN_T - 1 < QS_HAN_NT - 1)
        return a + (b - QS_HAN_T);
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        const uint32_t *t = qs_uni_comp + 3 * (size_t)qs_uni_pair[mid];
        if (t[1] == a && t[2] == b)
            return t[0];
        if (t[1] < a || (t[1] == a && t[2] < b))
            lo = mid + 1;
        else
            hi = mid;
    }
    return 0;
}

/* Below, a code point carries its combining class: class << 24 | code point. */

/* s fully decomposed into d[cap]; returns the count, or SIZE_MAX if it does not fit. */
static size_t qs_nfc_decompose(const uint8_t *s, size_t n, uint32_t *d, size_t cap)
{
    size_t i = 0, w = 0;
    uint32_t c, a, b, tail[4];

    while (i < n) {
        unsigned k = 0;
        i += qs_utf8_next(s + i, n - i, &c);
        while (k < 4 && qs_uni_split(c, &a, &b)) {
            if (b)
                tail[k++] = b;
            c = a;
        }
        if (cap - w <= k)
            return SIZE_MAX;
        d[w++] = c | qs_norm(c) << 24;   /* << 24 drops the flag at bit 8 */
        while (k-- > 0)
            d[w++] = tail[k] | qs_norm(tail[k]) << 24;
    }
    return w;
}

/* Stable sort of one run of marks by class. tmp[n] is touched for long runs only:
   those are counted, so that a text of marks alone stays linear. */
static void qs_nfc_sort(uint32_t *d, size_t n, uint32_t *tmp)
{
    size_t start[257] = {0}, i, j;

    if (n <= 24) {
        for (i = 1; i < n; i++) {
            uint32_t x = d[i];
            for (j = i; j > 0 && d[j - 1] >> 24 > x >> 24; j--)
                d[j] = d[j - 1];
            d[j] = x;
        }
        return;
    }
    for (i = 0; i < n; i++)
        start[(d[i] >> 24) + 1]++;
    for (i = 0; i < 256; i++)
        start[i + 1] += start[i];
    for (i = 0; i < n; i++)
        tmp[start[d[i] >> 24]++] = d[i];
    memcpy(d, tmp, n * sizeof *d);
}

/* Canonical order of d[n]; tmp[n_tmp].  0 if a run of marks is longer than tmp. */
static int qs_nfc_order(uint32_t *d, size_t n, uint32_t *tmp, size_t n_tmp)
{
    size_t i = 0, from;

    while (i < n) {
        if (!(d[i] >> 24)) {
            i++;
            continue;
        }
        for (from = i; i < n && d[i] >> 24; i++)
            ;
        if (i - from > n_tmp)
            return 0;
        qs_nfc_sort(d + from, i - from, tmp);
    }
    return 1;
}

/* Canonical composition in place; returns the new count. */
static size_t qs_nfc_compose(uint32_t *d, size_t n)
{
    size_t i, w = 0, starter = SIZE_MAX;

    for (i = 0; i < n; i++) {
        uint32_t cls = d[i] >> 24, c;
        /* a mark reaches its starter past marks of lower class only */
        if (starter != SIZE_MAX && (w - 1 == starter || d[w - 1] >> 24 < cls)
            && (c = qs_uni_join(d[starter], d[i] & 0xFFFFFF)) != 0) {
            d[starter] = c;
            continue;
        }
        if (cls == 0)
            starter = w;
        d[w++] = d[i];
    }
    return w;
}

/* NFC of s, valid UTF-8. room[size], 4-byte aligned, receives the text; returns its
   length, or SIZE_MAX if room is too small. 12 bytes per byte of s are enough: the
   worst is U+0390, 2 bytes, 3 code points, each with its place for the sort. */
static size_t qs_nfc(const uint8_t *s, size_t n, void *room, size_t size)
{
    uint32_t *d = room;
    uint8_t *out = room;
    size_t cap = size / sizeof *d, count, i, w = 0;

    count = qs_nfc_decompose(s, n, d, cap);
    if (count == SIZE_MAX || !qs_nfc_order(d, count, d + count, cap - count))
        return SIZE_MAX;
    count = qs_nfc_compose(d, count);
    for (i = 0; i < count; i++)          /* w <= 4 i: never past the code point read */
        w += qs_utf8_put(out + w, d[i] & 0xFFFFFF);
    return w;
}

/* ------------------------------------------------ splitting into pieces (private)

   The expression, by alternatives; the first that matches here wins, each backtracks:

     (?i:'s|'t|'re|'ve|'m|'ll|'d)      A   (?i) also takes U+017F for s
     [^\r\n\p{L}\p{N}]?\p{L}+          B
     \p{N}                             C   one digit at a time
      ?[^\s\p{L}\p{N}]+[\r\n]*         D
     \s*[\r\n]+                        E   up to the last newline of the run of blanks
     \s+(?!\S)                         F   the run, less its last if text follows
     \s+                               G

   Every character matches one of them, so the pieces tile the text. */

/* Class of the character at s[0..n), its length in *len; n == 0 gives -1. */
static inline int qs_class_at(const qs_tok *t, const uint8_t *s, size_t n, size_t *len)
{
    uint32_t c;

    *len = 0;
    if (n == 0)
        return -1;
    *len = qs_utf8_get(s, &c);
    return qs_kind(t, c) & 3;
}

/* End of the run of one class that contains s[at) if anything. */
static size_t qs_class_run(const qs_tok *t, const uint8_t *s, size_t n, size_t at,
                           int cls)
{
    size_t len;

    while (qs_class_at(t, s + at, n - at, &len) == cls)
        at += len;
    return at;
}

/* A: length of a contraction at s, s[0] being the apostrophe; or 0. */
static size_t qs_contraction(const uint8_t *s, size_t n)
{
    int c, d;

    if (n < 2)
        return 0;
    c = s[1] < 0x80 ? s[1] | 32 : 0;     /* s[1] | 32: ASCII letters to lower case */
    if (c == 's' || c == 't' || c == 'm' || c == 'd')
        return 2;
    if (n < 3)
        return 0;
    if (s[1] == 0xC5 && s[2] == 0xBF)    /* U+017F, the long s */
        return 3;
    d = s[2] < 0x80 ? s[2] | 32 : 0;
    return ((c == 'r' || c == 'v') && d == 'e') || (c == 'l' && d == 'l') ? 3 : 0;
}

/* E, F, G at a run of blanks.  What E and F leave behind is scanned once more at most:
   all work stays linear. */
static size_t qs_blank_piece(const qs_tok *t, const uint8_t *s, size_t n)
{
    size_t at = 0, newline = 0, last = 0, len;

    while (qs_class_at(t, s + at, n - at, &len) == QS_BLANK) {
        last = at;
        at += len;
        if (s[last] == '\r' || s[last] == '\n')
            newline = at;
    }
    if (newline)
        return newline;
    return at == n || last == 0 ? at : last;
}

/* Length of the first piece of s[0..n), n > 0, valid UTF-8. */
static size_t qs_piece(const qs_tok *t, const uint8_t *s, size_t n)
{
    size_t len, next_len, at;
    int cls = qs_class_at(t, s, n, &len), next;

    if (s[0] == '\'' && (at = qs_contraction(s, n)) > 0)
        return at;
    if (cls == QS_LETTER)
        return qs_class_run(t, s, n, len, QS_LETTER);
    if (cls == QS_NUMBER)
        return len;
    next = qs_class_at(t, s + len, n - len, &next_len);
    if (next == QS_LETTER && s[0] != '\r' && s[0] != '\n')
        return qs_class_run(t, s, n, len + next_len, QS_LETTER);
    if (cls == QS_OTHER || (s[0] == ' ' && next == QS_OTHER)) {
        at = qs_class_run(t, s, n, len, QS_OTHER);
        while (at < n && (s[at] == '\r' || s[at] == '\n'))
            at++;
        return at;
    }
    return qs_blank_piece(t, s, n);
}

/* ----------------------------------------------------------- merges (private)

   Small pieces keep (token, rank of the pair that starts here) in two short arrays.
   A long piece of n bytes lies in four arrays of n: a token that covers bytes [i, j)
   has its id at id[i] and at id[j-1], so both neighbours are found without links;
   rank[i] belongs to the pair that starts at i; heap holds the starts of all
   mergeable pairs, the lowest (rank, start) first, and slot[i] is where i lies in
   it. */

#define QS_SMALL 64

static uint32_t qs_tok_hash(uint32_t left, uint32_t right)
{
    uint32_t h = left * 0x9E3779B1u ^ right * 0x85EBCA6Bu;

    h ^= h >> 15;
    h *= 0xC2B2AE35u;
    return h ^ h >> 16;
}

/* The bit of `pairs` that a hash sets: most pairs that are no merge end there, in the
   fast cache. */
static inline int qs_tok_maybe(const qs_tok *t, uint32_t hash)
{
    return t->fast->pairs[hash >> 18] >> (hash >> 12 & 63) & 1;
}

/* An entry of the index is key << 21 | rank, 0 if free; a merge lies at its hash or, in a
   row without a gap, behind it. A row of free places ends every search: at most two
   thirds are taken. */
#define QS_RANK_BITS 21

static inline uint64_t qs_tok_key(uint32_t left, uint32_t right)
{
    return ((uint64_t)left << 20 | right) + 1;
}

/* Rank of the merge (left, right), or NONE. */
static inline uint32_t qs_tok_rank(const qs_tok *t, uint32_t left, uint32_t right)
{
    uint32_t hash = qs_tok_hash(left, right), i;
    uint64_t key = qs_tok_key(left, right), at;

    if (!qs_tok_maybe(t, hash))
        return QS_TOK_NONE;
    for (i = hash; (at = t->index[i & t->index_mask]) != 0; i++)
        if (at >> QS_RANK_BITS == key)
            return (uint32_t)at & ((1u << QS_RANK_BITS) - 1);
    return QS_TOK_NONE;
}

/* The token that the merges may start from at s[at]: of a whole character where that
   gives what its bytes would give, else of the byte. */
static inline uint32_t qs_tok_start(const qs_tok *t, const uint8_t *s, size_t n, size_t at,
                                    uint32_t *len)
{
    uint32_t c, next;

    *len = 1;
    if (s[at] < 0xE2 || s[at] > 0xED || (at > 0 && s[at - 1] < 0x80))
        return t->byte_id[s[at]];
    qs_utf8_get(s + at, &c);
    if (c < 0x2E80 || c >= 0xD800 || t->fast->whole[c - 0x2E80] == QS_TOK_NONE)
        return t->byte_id[s[at]];
    if (at + 3 < n) {
        qs_utf8_get(s + at + 3, &next);
        if (qs_kind(t, next) & QS_KIND_JOINS)
            return t->byte_id[s[at]];
    }
    *len = 3;
    return t->fast->whole[c - 0x2E80];
}

/* s[0..n), 0 < n <= QS_SMALL, to ids; returns their count. */
static size_t qs_bpe_small(const qs_tok *t, const uint8_t *s, size_t n, uint32_t *id)
{
    uint32_t rank[QS_SMALL], len;
    size_t i, at, best;

    for (i = at = 0; at < n; i++, at += len)
        id[i] = qs_tok_start(t, s, n, at, &len);
    n = i;
    for (i = 0; i + 1 < n; i++)
        rank[i] = qs_tok_rank(t, id[i], id[i + 1]);
    while (n > 1) {
        for (best = 0, i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best])
                best = i;
        if (rank[best] == QS_TOK_NONE)
            break;
        id[best] = t->merges[rank[best]].result;
        n--;
        for (i = best + 1; i < n; i++) {
            id[i] = id[i + 1];
            rank[i - 1] = rank[i];
        }
        if (best + 1 < n)
            rank[best] = qs_tok_rank(t, id[best], id[best + 1]);
        if (best > 0)
            rank[best - 1] = qs_tok_rank(t, id[best - 1], id[best]);
    }
    return n;
}

typedef struct qs_bpe {
    const qs_tok *t;
    uint32_t *id, *rank, *heap, *slot;   /* [n] each */
    uint32_t n, n_heap;
} qs_bpe;

static int qs_bpe_less(const qs_bpe *b, uint32_t i, uint32_t j)
{
    return b->rank[i] != b->rank[j] ? b->rank[i] < b->rank[j] : i < j;
}

static uint32_t qs_bpe_len(const qs_bpe *b, uint32_t at)
{
    return b->t->text_off[b->id[at] + 1] - b->t->text_off[b->id[at]];
}

static void qs_bpe_place(qs_bpe *b, uint32_t h, uint32_t pair)
{
    b->heap[h] = pair;
    b->slot[pair] = h;
}

/* Places `pair` at h or below; its children are heaps. */
static void qs_bpe_down(qs_bpe *b, uint32_t h, uint32_t pair)
{
    while (h < b->n_heap / 2) {          /* h has a child */
        uint32_t kid = 2 * h + 1;
        if (kid + 1 < b->n_heap && qs_bpe_less(b, b->heap[kid + 1], b->heap[kid]))
            kid++;
        if (!qs_bpe_less(b, b->heap[kid], pair))
            break;
        qs_bpe_place(b, h, b->heap[kid]);
        h = kid;
    }
    qs_bpe_place(b, h, pair);
}

/* Places `pair` where it belongs, the free place of the heap being h. */
static void qs_bpe_sift(qs_bpe *b, uint32_t h, uint32_t pair)
{
    while (h > 0 && qs_bpe_less(b, pair, b->heap[(h - 1) / 2])) {
        qs_bpe_place(b, h, b->heap[(h - 1) / 2]);
        h = (h - 1) / 2;
    }
    qs_bpe_down(b, h, pair);
}

/* The pair that starts at i now has this rank; NONE takes it off the heap. */
static void qs_bpe_set(qs_bpe *b, uint32_t i, uint32_t rank)
{
    uint32_t h = b->slot[i], moved;

    b->rank[i] = rank;
    if (rank != QS_TOK_NONE) {
        qs_bpe_sift(b, h != QS_TOK_NONE ? h : b->n_heap++, i);
    } else if (h != QS_TOK_NONE) {
        b->slot[i] = QS_TOK_NONE;
        moved = b->heap[--b->n_heap];
        if (moved != i)
            qs_bpe_sift(b, h, moved);
    }
}

static void qs_bpe_start(qs_bpe *b, const uint8_t *s)
{
    uint32_t i, len, second;

    b->n_heap = 0;
    for (i = 0; i < b->n; i += len) {
        b->id[i] = qs_tok_start(b->t, s, b->n, i, &len);
        b->id[i + len - 1] = b->id[i];
    }
    for (i = 0; i < b->n; i++)
        b->rank[i] = b->slot[i] = QS_TOK_NONE;
    for (i = 0; i < b->n; i = second) {
        second = i + qs_bpe_len(b, i);
        if (second < b->n)
            b->rank[i] = qs_tok_rank(b->t, b->id[i], b->id[second]);
        if (b->rank[i] != QS_TOK_NONE) {
            b->slot[i] = b->n_heap;
            b->heap[b->n_heap++] = i;
        }
    }
    for (i = b->n_heap / 2; i-- > 0;)
        qs_bpe_down(b, i, b->heap[i]);
}

/* Merges the pair on top of the heap. */
static void qs_bpe_merge(qs_bpe *b)
{
    uint32_t at = b->heap[0], result = b->t->merges[b->rank[at]].result;
    uint32_t second = at + qs_bpe_len(b, at), end = second + qs_bpe_len(b, second);

    qs_bpe_set(b, second, QS_TOK_NONE);
    b->id[at] = b->id[end - 1] = result;
    qs_bpe_set(b, at, end < b->n ? qs_tok_rank(b->t, result, b->id[end]) : QS_TOK_NONE);
    if (at > 0) {
        uint32_t before = at - qs_bpe_len(b, at - 1);
        qs_bpe_set(b, before, qs_tok_rank(b->t, b->id[before], result));
    }
}

/* ------------------------------------------------------- binding a blob (private) */

static uint64_t qs_tok_align(uint64_t x)
{
    return (x + 63) & ~UINT64_C(63);
}

/* The header that belongs to these counts (all within their caps: nothing wraps). */
static qs_tok_header qs_tok_layout(uint32_t n_tokens, uint32_t n_merges,
                                   uint32_t n_added, uint32_t text_bytes)
{
    qs_tok_header h = {QS_TOK_MAGIC, 2, 1, n_tokens, n_merges, n_added, text_bytes, 64,
                       0, 0, 0, 0, 0, {0, 0, 0}};
    uint64_t at = h.off_byte_id + 256 * 4;

    h.off_text_off = (uint32_t)at;
    at = qs_tok_align(at + 4 * ((uint64_t)n_tokens + 1));
    h.off_text = (uint32_t)at;
    at = qs_tok_align(at + text_bytes);
    h.off_merges = (uint32_t)at;
    at = qs_tok_align(at + 12 * (uint64_t)n_merges);
    h.off_added = (uint32_t)at;
    at = qs_tok_align(at + 8 * (uint64_t)n_added);
    h.total_size = (uint32_t)at;
    return h;
}

/* The header: known kind, counts within caps, and every offset the one that follows. */
static qsae_status qs_tok_bind_header(qs_tok *t, qs_tok_header *h, qsae_error *err)
{
    qs_tok_header want;

    if (t->size < sizeof *h)
        return qs_fail(err, QSAE_E_FORMAT, 0, "tokenizer: %llu bytes, header needs 64",
                       (unsigned long long)t->size);
    memcpy(h, t->blob, sizeof *h);
    if (h->magic != QS_TOK_MAGIC)
        return qs_fail(err, QSAE_E_FORMAT, 0, "tokenizer: magic %08x, not QTOK",
                       (unsigned)h->magic);
    if (h->version != 2 || h->pipeline != 1)
        return qs_fail(err, QSAE_E_UNSUP, 4, "tokenizer: version %u, pipeline %u; this "
                       "library reads 2 and 1", (unsigned)h->version,
                       (unsigned)h->pipeline);
    if (h->n_tokens == 0 || h->n_tokens > QS_TOK_MAX_TOKENS
        || h->n_merges > QS_TOK_MAX_MERGES || h->n_added > QS_TOK_MAX_ADDED
        || h->text_bytes > QS_TOK_MAX_TEXT)
        return qs_fail(err, QSAE_E_LIMIT, 12, "tokenizer: %u tokens, %u merges, "
                       "%u added, %u text bytes: beyond the caps",
                       (unsigned)h->n_tokens, (unsigned)h->n_merges,
                       (unsigned)h->n_added, (unsigned)h->text_bytes);
    want = qs_tok_layout(h->n_tokens, h->n_merges, h->n_added, h->text_bytes);
    if (memcmp(&want, h, sizeof *h) != 0)
        return qs_fail(err, QSAE_E_FORMAT, 24, "tokenizer: offsets do not follow from "
                       "the counts");
    if (t->size != h->total_size)
        return qs_fail(err, QSAE_E_FORMAT, 56, "tokenizer: %llu bytes, header says %u",
                       (unsigned long long)t->size, (unsigned)h->total_size);
    return QSAE_OK;
}

static uint32_t qs_tok_len(const qs_tok *t, uint32_t id)
{
    return t->text_off[id + 1] - t->text_off[id];
}

/* Texts within bounds, the last id in use, byte tokens what they claim to be. */
static qsae_status qs_tok_bind_texts(const qs_tok *t, const qs_tok_header *h, qsae_error *err)
{
    uint32_t i;

    if (t->text_off[0] != 0 || t->text_off[t->n_tokens] != h->text_bytes)
        return qs_fail(err, QSAE_E_FORMAT, h->off_text_off,
                       "tokenizer: texts do not cover their %u bytes",
                       (unsigned)h->text_bytes);
    for (i = 0; i < t->n_tokens; i++)
        if (t->text_off[i + 1] < t->text_off[i] || qs_tok_len(t, i) > QS_TOK_MAX_TOKEN)
            return qs_fail(err, QSAE_E_FORMAT, h->off_text_off + 4 * (uint64_t)i,
                           "tokenizer: text of token %u runs from %u to %u",
                           (unsigned)i, (unsigned)t->text_off[i],
                           (unsigned)t->text_off[i + 1]);
    if (qs_tok_len(t, t->n_tokens - 1) == 0)
        return qs_fail(err, QSAE_E_FORMAT, 12, "tokenizer: last token %u is unused",
                       (unsigned)(t->n_tokens - 1));
    for (i = 0; i < 256; i++) {
        uint32_t id = t->byte_id[i];
        if (id >= t->n_tokens || qs_tok_len(t, id) != 1
            || t->text[t->text_off[id]] != i)
            return qs_fail(err, QSAE_E_FORMAT, h->off_byte_id + 4 * (uint64_t)i,
                           "tokenizer: byte %02x is given to token %u", (unsigned)i,
                           (unsigned)id);
    }
    return QSAE_OK;
}

/* A merge's result spells its left and right side. */
static int qs_tok_merge_spells(const qs_tok *t, const qs_tok_merge *m)
{
    uint32_t a, b;
    const uint8_t *text;

    if (m->left >= t->n_tokens || m->right >= t->n_tokens || m->result >= t->n_tokens)
        return 0;
    a = qs_tok_len(t, m->left);
    b = qs_tok_len(t, m->right);
    text = t->text + t->text_off[m->result];
    return a > 0 && b > 0 && qs_tok_len(t, m->result) == a + b
        && memcmp(text, t->text + t->text_off[m->left], a) == 0
        && memcmp(text + a, t->text + t->text_off[m->right], b) == 0;
}

/* Places of the index for so many merges, at most two thirds of them taken. */
static size_t qs_tok_index_count(uint32_t n_merges)
{
    size_t n = 64;

    while (n < n_merges + n_merges / 2)
        n *= 2;
    return n;
}

/* Adds merge `rank` to index and pairs. */
static qsae_status qs_tok_index_add(qs_tok *t, uint32_t rank, uint64_t offset, qsae_error *err)
{
    const qs_tok_merge *m = &t->merges[rank];
    uint32_t hash = qs_tok_hash(m->left, m->right), i;
    uint64_t key = qs_tok_key(m->left, m->right), at;

    for (i = 0; (at = t->index[(hash + i) & t->index_mask]) != 0; i++) {
        if (at >> QS_RANK_BITS == key)
            return qs_fail(err, QSAE_E_FORMAT, offset, "tokenizer: merges %u and %u are of one pair",
                           (unsigned)at & ((1u << QS_RANK_BITS) - 1), (unsigned)rank);
        if (i == QS_TOK_MAX_PROBES)
            return qs_fail(err, QSAE_E_LIMIT, offset, "tokenizer: merge %u: over %u merges "
                           "crowd at one place of the index", (unsigned)rank, QS_TOK_MAX_PROBES);
    }
    t->index[(hash + i) & t->index_mask] = key << QS_RANK_BITS | rank;
    t->fast->pairs[hash >> 18] |= UINT64_C(1) << (hash >> 12 & 63);
    return QSAE_OK;
}

/* Asks for the line that p lies in, where the compiler can say so. */
static inline void qs_tok_fetch(const void *p)
{
#if defined(__GNUC__)
    __builtin_prefetch(p);
#else
    (void)p;
#endif
}

/* Every merge spells its result, and no pair has two. */
static qsae_status qs_tok_bind_merges(qs_tok *t, const qs_tok_header *h, qsae_error *err)
{
    qsae_status st = QSAE_OK;
    uint32_t i;

    for (i = 0; i < t->n_merges; i++)
        if (!qs_tok_merge_spells(t, &t->merges[i]))
            return qs_fail(err, QSAE_E_FORMAT, h->off_merges + 12 * (uint64_t)i,
                           "tokenizer: merge %u: %u + %u is not token %u", (unsigned)i,
                           (unsigned)t->merges[i].left, (unsigned)t->merges[i].right,
                           (unsigned)t->merges[i].result);
    for (i = 0; i < t->n_merges && st == QSAE_OK; i++) {
        const qs_tok_merge *ahead = &t->merges[i + 16 < t->n_merges ? i + 16 : i];
        qs_tok_fetch(&t->index[qs_tok_hash(ahead->left, ahead->right) & t->index_mask]);
        st = qs_tok_index_add(t, i, h->off_merges + 12 * (uint64_t)i, err);
    }
    return st;
}

/* memcmp order, a prefix before what it starts. */
static int qs_tok_order(const uint8_t *a, size_t na, const uint8_t *b, size_t nb)
{
    int c = memcmp(a, b, na < nb ? na : nb);

    return c != 0 ? c : na < nb ? -1 : na > nb;
}

static const uint8_t *qs_tok_added_text(const qs_tok *t, uint32_t i, size_t *len)
{
    *len = qs_tok_len(t, t->added[i].id);
    return t->text + t->text_off[t->added[i].id];
}

/* Added tokens: UTF-8, strictly ascending by content; fills the set of first bytes. */
static qsae_status qs_tok_bind_added(qs_tok *t, const qs_tok_header *h, qsae_error *err)
{
    const uint8_t *text, *before = NULL;
    size_t len, len_before = 0;
    uint32_t i;

    for (i = 0; i < t->n_added; i++) {
        uint64_t at = h->off_added + 8 * (uint64_t)i;
        if (t->added[i].id >= t->n_tokens || t->added[i].flags > 1)
            return qs_fail(err, QSAE_E_FORMAT, at, "tokenizer: added token %u: id %u, "
                           "flags %u", (unsigned)i, (unsigned)t->added[i].id,
                           (unsigned)t->added[i].flags);
        text = qs_tok_added_text(t, i, &len);
        if (len == 0 || !qs_utf8_valid(text, len))
            return qs_fail(err, QSAE_E_FORMAT, at, "tokenizer: added token %u (id %u) "
                           "is empty or not UTF-8", (unsigned)i,
                           (unsigned)t->added[i].id);
        if (i > 0 && qs_tok_order(before, len_before, text, len) >= 0)
            return qs_fail(err, QSAE_E_FORMAT, at, "tokenizer: added token %u (id %u) "
                           "is out of order", (unsigned)i, (unsigned)t->added[i].id);
        t->added_first[text[0] / 32] |= 1u << text[0] % 32;
        before = text;
        len_before = len;
    }
    return QSAE_OK;
}

/* Between the tables lie zeros only. */
static int qs_tok_gap_ok(const uint8_t *blob, uint64_t from, uint64_t to)
{
    while (from < to)
        if (blob[from++] != 0)
            return 0;
    return 1;
}

static qsae_status qs_tok_bind_gaps(const qs_tok *t, const qs_tok_header *h, qsae_error *err)
{
    const uint64_t end[4] = {
        h->off_text_off + 4 * ((uint64_t)h->n_tokens + 1),
        h->off_text + (uint64_t)h->text_bytes,
        h->off_merges + 12 * (uint64_t)h->n_merges,
        h->off_added + 8 * (uint64_t)h->n_added };
    const uint64_t next[4] = { h->off_text, h->off_merges, h->off_added, h->total_size };
    int i;

    for (i = 0; i < 4; i++)
        if (!qs_tok_gap_ok(t->blob, end[i], next[i]))
            return qs_fail(err, QSAE_E_FORMAT, end[i],
                           "tokenizer: padding is not zero");
    return QSAE_OK;
}

/* ---- characters that the merges may start from whole

   Merges go by rank, so the bytes of a character become one token before anything else
   touches them if every merge that could tear it apart ranks behind those that build
   it. Such a merge joins text before the character with a beginning of it (`first`,
   below: the lowest rank by the character's first byte), or an end of it with text after
   it (few: the characters that such text begins with are marked QS_KIND_JOINS, and what
   stands before one starts from bytes). Text before it that ends in ASCII is left out:
   after that, too, a character starts from bytes. */

typedef struct qs_tearing {
    uint32_t first[2][256];              /* by 1 byte of the character, by 2 or more */
    uint32_t any;                        /* merges that tear characters on both sides */
} qs_tearing;

static int qs_utf8_inside(const uint8_t *s, size_t n)
{
    while (n > 0 && (s[n - 1] & 0xC0) == 0x80)
        n--;
    return n == 0;
}

static void qs_tok_tearing(qs_tok *t, qs_tearing *k)
{
    uint32_t i, c, na, nb, *low;

    memset(k, 0xFF, sizeof *k);
    for (i = 0; i < t->n_merges; i++) {
        const qs_tok_merge *m = &t->merges[i];
        const uint8_t *a = t->text + t->text_off[m->left], *b = t->text + t->text_off[m->right];
        int torn;
        if ((b[0] & 0xC0) == 0x80 || (b[0] < 0x80 && (a[0] & 0xC0) != 0x80))
            continue;                    /* both inside one character; or nothing torn */
        na = qs_tok_len(t, m->left);
        nb = qs_tok_len(t, m->right);
        torn = qs_utf8_need(b[0]) == 0 || nb < qs_utf8_need(b[0]);
        low = torn && a[na - 1] >= 0x80 ? &k->first[nb > 1][b[0]] : NULL;
        if (low && i < *low)
            *low = i;
        if (!qs_utf8_inside(a, na))
            continue;
        if (torn) {
            k->any = i < k->any ? i : k->any;
        } else {
            qs_utf8_get(b, &c);
            if (c < 0x10000)
                t->fast->kind[c] |= QS_KIND_JOINS;
        }
    }
}

/* The token of a character of three bytes if it may start from whole, or NONE. */
static uint32_t qs_tok_whole(const qs_tok *t, const qs_tearing *k, const uint8_t *s)
{
    uint32_t a = t->byte_id[s[0]], b = t->byte_id[s[1]], c = t->byte_id[s[2]];
    uint32_t r1 = qs_tok_rank(t, a, b), r2 = qs_tok_rank(t, b, c), last, limit = k->any;

    limit = k->first[0][s[0]] < limit ? k->first[0][s[0]] : limit;
    if (r1 < r2) {
        last = qs_tok_rank(t, t->merges[r1].result, c);
        limit = k->first[1][s[0]] < limit ? k->first[1][s[0]] : limit;
    } else if (r2 != QS_TOK_NONE) {
        r1 = r2;
        last = qs_tok_rank(t, a, t->merges[r2].result);
    } else {
        return QS_TOK_NONE;
    }
    return last == QS_TOK_NONE || last >= limit || r1 >= limit ? QS_TOK_NONE
                                                               : t->merges[last].result;
}

static void qs_tok_fill_whole(qs_tok *t)
{
    qs_tearing k;
    uint32_t i, c;

    qs_tok_tearing(t, &k);
    memset(t->fast->whole, 0xFF, sizeof t->fast->whole);
    for (i = 0; i < t->n_tokens; i++) {
        const uint8_t *s = t->text + t->text_off[i];
        if (qs_tok_len(t, i) == 3 && s[0] >= 0xE2 && qs_utf8_next(s, 3, &c) == 3
            && c >= 0x2E80 && c < 0xD800)
            t->fast->whole[c - 0x2E80] = qs_tok_whole(t, &k, s);
    }
}

/* Bytes of the tables that binding this blob makes, whatever the blob is. */
static size_t qs_tok_room(const uint8_t *blob, size_t size)
{
    qs_tok_header h = {0};

    if (size >= sizeof h)
        memcpy(&h, blob, sizeof h);
    return sizeof(qs_tok_tables)
        + 8 * qs_tok_index_count(h.n_merges < size / 12 ? h.n_merges : (uint32_t)(size / 12));
}

/* Points t into the blob, which must outlive it as must `room`, qs_tok_room bytes aligned
   to 8, after checking all of it: afterwards no call on t can read outside, loop, or
   depend on anything that was not checked.  Time is linear in the blob.  On failure t is
   not usable. */
static qsae_status qs_tok_bind(qs_tok *t, const uint8_t *blob, size_t size, void *room,
                               qsae_error *err)
{
    qs_tok_header h;
    qsae_status st;

    memset(t, 0, sizeof *t);
    if (!blob || (uintptr_t)blob % 64 != 0)
        return qs_fail(err, QSAE_E_ARG, 0, "tokenizer: blob is not 64-byte aligned");
    t->blob = blob;
    t->size = size;
    if ((st = qs_tok_bind_header(t, &h, err)) != QSAE_OK)
        return st;
    t->n_tokens = h.n_tokens;
    t->n_merges = h.n_merges;
    t->n_added = h.n_added;
    t->fast = room;
    t->index = (uint64_t *)(void *)(t->fast + 1);
    t->index_mask = (uint32_t)qs_tok_index_count(h.n_merges) - 1;
    memset(t->fast->pairs, 0, sizeof t->fast->pairs);
    memset(t->index, 0, 8 * ((size_t)t->index_mask + 1));
    t->byte_id = (const uint32_t *)(const void *)(blob + h.off_byte_id);
    t->text_off = (const uint32_t *)(const void *)(blob + h.off_text_off);
    t->text = blob + h.off_text;
    t->merges = (const qs_tok_merge *)(const void *)(blob + h.off_merges);
    t->added = (const qs_tok_added *)(const void *)(blob + h.off_added);
    if ((st = qs_tok_bind_gaps(t, &h, err)) != QSAE_OK
        || (st = qs_tok_bind_texts(t, &h, err)) != QSAE_OK
        || (st = qs_tok_bind_merges(t, &h, err)) != QSAE_OK
        || (st = qs_tok_bind_added(t, &h, err)) != QSAE_OK)
        return st;
    qs_kind_fill(t->fast->kind);
    qs_tok_fill_whole(t);
    return QSAE_OK;
}

/* ------------------------------------------------------------- queries (private) */

/* The bytes of a token, in the blob; NULL if there is no such token. */
static const uint8_t *qs_tok_text(const qs_tok *t, int32_t id, size_t *len)
{
    *len = 0;
    if (id < 0 || (uint32_t)id >= t->n_tokens || qs_tok_len(t, (uint32_t)id) == 0)
        return NULL;
    *len = qs_tok_len(t, (uint32_t)id);
    return t->text + t->text_off[id];
}

/* First of added[lo..hi) whose byte k is at least c.  All share their first k bytes and
   ascend; a content of k bytes counts as byte -1. */
static uint32_t qs_tok_added_at(const qs_tok *t, uint32_t lo, uint32_t hi, size_t k,
                                int c)
{
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        size_t len;
        const uint8_t *text = qs_tok_added_text(t, mid, &len);
        if ((k < len ? text[k] : -1) < c)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* Length of the longest added token that s starts with, or 0. */
static size_t qs_tok_added_match(const qs_tok *t, const uint8_t *s, size_t n,
                                 int32_t *id)
{
    uint32_t lo = 0, hi = t->n_added;
    size_t k, len, best = 0;

    for (k = 0; k < n && lo < hi; k++) {
        lo = qs_tok_added_at(t, lo, hi, k, s[k]);
        hi = qs_tok_added_at(t, lo, hi, k, s[k] + 1);
        if (lo == hi)
            break;
        qs_tok_added_text(t, lo, &len);
        if (len == k + 1) {              /* the shortest of those left comes first */
            *id = (int32_t)t->added[lo].id;
            best = len;
            lo++;
        }
    }
    return best;
}

/* 1 and the id if an added token has exactly this content. */
static int qs_tok_find_added(const qs_tok *t, const char *content, size_t len,
                             int32_t *id)
{
    int32_t found = 0;

    if (len == 0 || qs_tok_added_match(t, (const uint8_t *)content, len, &found) != len)
        return 0;
    *id = found;
    return 1;
}

/* ------------------------------------------------------------ encoding (private) */

/* A piece that was met before in this text, with its ids. */
typedef struct qs_seen {
    uint8_t len, count;                  /* len 0: free */
    uint8_t text[30];
    uint32_t id[8];
} qs_seen;

/* How many of them a text of this many bytes gets: clearing them must not cost more
   than they save. */
static size_t qs_seen_count(size_t text_len)
{
    size_t n = 4096;

    while (n > text_len / 16)
        n /= 2;
    return n;
}

static size_t qs_seen_hash(const uint8_t *s, size_t n)
{
    uint64_t a, b = 0, h;

    if (n >= 8) {
        a = qs_load64(s);
        b = qs_load64(s + n - 8);
    } else {
        a = (uint64_t)s[0] | (uint64_t)s[n / 2] << 8 | (uint64_t)s[n - 1] << 16;
        b = (uint64_t)s[n / 4] | (uint64_t)s[n - n / 4 - 1] << 8;
    }
    h = (a ^ (b << 29 | b >> 35) ^ n) * UINT64_C(0x9E3779B97F4A7C15);
    return (size_t)(h >> 40);
}

typedef struct qs_enc {
    const qs_tok *t;
    int32_t *ids;
    size_t cap, n;
    uint8_t *room;                       /* scratch not in use, 8-byte aligned */
    size_t room_size;
    qs_seen *seen;                       /* [n_seen], a power of two; NULL: none */
    size_t n_seen;
    qsae_error *err;
} qs_enc;

static void qs_enc_put(qs_enc *e, uint32_t id)
{
    if (e->n < e->cap)
        e->ids[e->n] = (int32_t)id;
    e->n++;
}

/* Takes the first `bytes` of the scratch out of use. */
static void qs_enc_take(qs_enc *e, size_t bytes)
{
    bytes = (bytes + 7) & ~(size_t)7;
    bytes = bytes < e->room_size ? bytes : e->room_size;
    e->room += bytes;
    e->room_size -= bytes;
}

static qsae_status qs_enc_no_room(qs_enc *e)
{
    return qs_fail(e->err, QSAE_E_NOMEM, 0, "tokenizer: scratch is too small");
}

static qsae_status qs_enc_long(qs_enc *e, const uint8_t *s, size_t n)
{
    qs_bpe b = {0};
    uint32_t i;

    if (n > INT32_MAX)
        return qs_fail(e->err, QSAE_E_LIMIT, 0, "tokenizer: a piece of %llu bytes",
                       (unsigned long long)n);
    if (n > e->room_size / 16)
        return qs_enc_no_room(e);
    b.t = e->t;
    b.n = (uint32_t)n;
    b.id = (uint32_t *)(void *)e->room;
    b.rank = b.id + n;
    b.heap = b.rank + n;
    b.slot = b.heap + n;
    qs_bpe_start(&b, s);
    while (b.n_heap > 0)
        qs_bpe_merge(&b);
    for (i = 0; i < b.n; i += qs_bpe_len(&b, i))
        qs_enc_put(e, b.id[i]);
    return QSAE_OK;
}

/* A piece of at most QS_SMALL bytes. */
static void qs_enc_small(qs_enc *e, const uint8_t *s, size_t n)
{
    qs_seen *seen = NULL;
    uint32_t small[QS_SMALL], *id = small;
    size_t i, count;

    if (n == 1) {
        qs_enc_put(e, e->t->byte_id[s[0]]);
        return;
    }
    if (e->seen && n <= sizeof seen->text)
        seen = &e->seen[qs_seen_hash(s, n) & (e->n_seen - 1)];
    if (seen && seen->len == n && memcmp(seen->text, s, n) == 0) {
        id = seen->id;
        count = seen->count;
    } else {
        count = qs_bpe_small(e->t, s, n, id);
        if (seen && count <= QS_COUNT(seen->id)) {
            seen->len = (uint8_t)n;
            seen->count = (uint8_t)count;
            memcpy(seen->text, s, n);
            memcpy(seen->id, id, count * sizeof *id);
        }
    }
    for (i = 0; i < count; i++)
        qs_enc_put(e, id[i]);
}

/* s[0..n), valid UTF-8 without added tokens. */
static qsae_status qs_enc_plain(qs_enc *e, const uint8_t *s, size_t n)
{
    uint8_t *room = e->room;
    size_t room_size = e->room_size, at, len;
    qsae_status st = QSAE_OK;

    if (!qs_nfc_quick(e->t, s, n)) {
        n = qs_nfc(s, n, e->room, e->room_size);
        if (n == SIZE_MAX)
            return qs_enc_no_room(e);
        s = e->room;
        qs_enc_take(e, n);
    }
    for (at = 0; at < n && st == QSAE_OK; at += len) {
        len = qs_piece(e->t, s + at, n - at);
        if (len > QS_SMALL)
            st = qs_enc_long(e, s + at, len);
        else
            qs_enc_small(e, s + at, len);
    }
    e->room = room;                      /* the next plain text may use it all again */
    e->room_size = room_size;
    return st;
}

static qsae_status qs_enc_text(qs_enc *e, const uint8_t *s, size_t n, int parse_special)
{
    size_t from = 0, at = 0, len;
    int32_t id = 0;
    qsae_status st;

    while (parse_special && at < n) {
        if (!(e->t->added_first[s[at] / 32] >> s[at] % 32 & 1)
            || (len = qs_tok_added_match(e->t, s + at, n - at, &id)) == 0) {
            at++;
            continue;
        }
        if ((st = qs_enc_plain(e, s + from, at - from)) != QSAE_OK)
            return st;
        qs_enc_put(e, (uint32_t)id);
        from = at += len;
    }
    return qs_enc_plain(e, s + from, n - from);
}

/* Scratch that is enough for any text of this many bytes; SIZE_MAX if it has no
   size.  Per byte: 3 for the repaired text (a bad byte becomes three), 3 for its NFC
   (never longer than 3 times), and for each of those 16 in the arrays of a long
   piece, and what was seen.  Ordinary text (NFC, valid, no word over QS_SMALL bytes)
   touches none but that. */
static size_t qs_tok_scratch(size_t text_len)
{
    size_t seen = qs_seen_count(text_len) * sizeof(qs_seen) + 64;

    return text_len > (SIZE_MAX - seen) / 54 ? SIZE_MAX : 54 * text_len + seen;
}

/* Writes the first `cap` ids of the text and returns the count of all in *n (cap may
   be 0). parse_special 0: added tokens in the text are plain text. */
static qsae_status qs_tok_encode(const qs_tok *t, const char *text, size_t len,
                               int parse_special, int32_t *ids, size_t cap, size_t *n,
                               void *scratch, size_t scratch_size, qsae_error *err)
{
    const uint8_t *s = (const uint8_t *)text;
    size_t skew = (size_t)(8 - (uintptr_t)scratch % 8) % 8;
    qs_enc e = {0};
    qsae_status st;

    *n = 0;
    if ((!text && len) || (!ids && cap) || (!scratch && scratch_size))
        return qs_fail(err, QSAE_E_ARG, 0, "tokenizer: null text, ids or scratch");
    if (len > INT32_MAX)
        return qs_fail(err, QSAE_E_LIMIT, 0, "tokenizer: a text of %llu bytes, the "
                       "cap is %ld", (unsigned long long)len, (long)INT32_MAX);
    if (len == 0)
        return QSAE_OK;
    e.t = t;
    e.ids = ids;
    e.cap = cap;
    e.err = err;
    if (scratch_size > skew) {
        e.room = (uint8_t *)scratch + skew;
        e.room_size = scratch_size - skew;
    }
    e.n_seen = qs_seen_count(len);
    if (e.n_seen > 0 && e.n_seen * sizeof *e.seen <= e.room_size) {
        e.seen = (qs_seen *)(void *)e.room;
        memset(e.seen, 0, e.n_seen * sizeof *e.seen);
        qs_enc_take(&e, e.n_seen * sizeof *e.seen);
    }
    if (!qs_utf8_valid(s, len)) {
        if (e.room_size / 3 < len)
            return qs_enc_no_room(&e);
        len = qs_utf8_repair(s, len, e.room);
        s = e.room;
        qs_enc_take(&e, len);
    }
    if ((st = qs_enc_text(&e, s, len, parse_special)) == QSAE_OK)
        *n = e.n;
    return st;
}

#endif /* QSAE_NO_TOKENIZER */

/* ===================================================================================================
 * 16 Model: binding tensors (public)
 * =================================================================================================== */

typedef struct qs_layer {
    const float *attn_norm; /* [d_model] */
    const float *q_norm, *k_norm; /* [head_dim] */
    const float *mlp_norm;  /* [d_model] */
    qs_mat q;               /* [n_heads * head_dim, d_model] */
    qs_mat k, v;            /* [n_kv_heads * head_dim, d_model] */
    qs_mat o;               /* [d_model, n_heads * head_dim] */
    qs_mat gate, up;        /* [d_ff, d_model] */
    qs_mat down;            /* [d_model, d_ff] */
} qs_layer;

struct qsae_model {
    qs_container file;
    qsae_model_info info;
    int integers; /* some matrices have integer weights */
    const qs_kernels *kernels;
    qs_layer *layers; /* [n_layers] */
    size_t layers_size; /* bytes */
    qs_mat embed;     /* [vocab_size, d_model] */
    qs_mat head;      /* [vocab_size, d_model]; the embedding if tied */
    const float *final_norm; /* [d_model] */
    const float *rope;       /* [head_dim / 2] inverse frequencies */
#if !defined(QSAE_NO_TOKENIZER)
    qs_tok tok;
#endif
    uint8_t *tok_blob; /* heap copy: its offsets are trusted after validation, a mapped file's may change */
    size_t tok_size;
    void *tok_room;
    size_t tok_room_size;
};

/* The part of the record that describes the network. */
static qsae_status qs_check_sizes(const qsae_model_record *r, qsae_error *err)
{
    qsae_status st;
    if ((st = qs_in_range("n_layers", r->n_layers, 1, QS_MAX_LAYERS, err)) ||
        (st = qs_in_range("d_model", r->d_model, 1, QS_MAX_WIDTH, err)) ||
        (st = qs_in_range("n_heads", r->n_heads, 1, 1024, err)) ||
        (st = qs_in_range("n_kv_heads", r->n_kv_heads, 1, r->n_heads, err)) ||
        (st = qs_in_range("head_dim", r->head_dim, 2, 1024, err)) ||
        (st = qs_in_range("n_heads * head_dim", (uint64_t)r->n_heads * r->head_dim, 2, QS_MAX_WIDTH, err)) ||
        (st = qs_in_range("d_ff", r->d_ff, 1, QS_MAX_FF, err)) ||
        (st = qs_in_range("max_positions", r->max_positions, 1, (uint64_t)1 << 30, err)))
        return st;
    if (r->n_heads % r->n_kv_heads)
        return qs_fail(err, QSAE_E_FORMAT, 64, "n_heads %u is not a multiple of n_kv_heads %u", r->n_heads,
                       r->n_kv_heads);
    if (r->head_dim % 2) return qs_fail(err, QSAE_E_FORMAT, 64, "head_dim %u is odd", r->head_dim);
    if (!(r->rope_theta >= 1 && r->rope_theta <= 1e30))
        return qs_fail(err, QSAE_E_FORMAT, 64, "rope_theta is %g", r->rope_theta);
    if (!(r->rms_eps > 0 && r->rms_eps < 1))
        return qs_fail(err, QSAE_E_FORMAT, 64, "rms_eps is %g", (double)r->rms_eps);
    return QSAE_OK;
}

static qsae_status qs_check_no_sizes(const qsae_model_record *r, qsae_error *err)
{
    if (r->flags & QSAE_MODEL_TIED)
        return qs_fail(err, QSAE_E_FORMAT, 64, "flags are %u: without weights nothing is tied", r->flags);
    if (r->n_layers || r->d_model || r->n_heads || r->n_kv_heads || r->head_dim || r->d_ff ||
        r->max_positions || !qs_all_zero((const uint8_t *)&r->rope_theta, sizeof r->rope_theta) ||
        !qs_all_zero((const uint8_t *)&r->rms_eps, sizeof r->rms_eps))
        return qs_fail(err, QSAE_E_FORMAT, 64, "the file has only a tokenizer, but a size of a network");
    return QSAE_OK;
}

static int qs_tokenizer_only(const qsae_model_record *r) { return (r->flags & QSAE_MODEL_TOKENIZER_ONLY) != 0; }

static qsae_status qs_check_model_record(const qsae_model_record *r, qsae_error *err)
{
    qsae_status st;
    if ((st = qs_check_name(r->name, sizeof r->name, err)) ||
        (st = qs_in_range("flags", r->flags, 0, 15, err)) ||
        (st = qs_tokenizer_only(r) ? qs_check_no_sizes(r, err) : qs_check_sizes(r, err)) ||
        (st = qs_in_range("vocab_size", r->vocab_size, 1, QS_MAX_VOCAB, err)) ||
        (st = qs_in_range("n_eos", r->n_eos, 0, QSAE_MAX_EOS, err)))
        return st;
    if ((r->flags & QSAE_MODEL_CHAT_OTHER) && (r->flags & QSAE_MODEL_CHAT_LATER))
        return qs_fail(err, QSAE_E_FORMAT, 64, "flags are %u: two chat formats", r->flags);
    for (uint32_t i = 0; i < 8; i++)
        if (r->eos[i] < 0 || (uint32_t)r->eos[i] >= r->vocab_size || (i >= r->n_eos && r->eos[i]))
            return qs_fail(err, QSAE_E_FORMAT, 64, "end token %u is %d, vocab_size is %u", i, r->eos[i],
                           r->vocab_size);
    if (r->bos < -1 || (r->bos >= 0 && (uint32_t)r->bos >= r->vocab_size))
        return qs_fail(err, QSAE_E_FORMAT, 64, "bos is %d, vocab_size is %u", r->bos, r->vocab_size);
    if (!qs_all_zero(r->zero, sizeof r->zero))
        return qs_fail(err, QSAE_E_FORMAT, 64, "a reserved field of the model record is not 0");
    return QSAE_OK;
}

static void qs_fill_info(const qsae_model_record *r, qsae_model_info *i)
{
    i->n_layers = (int32_t)r->n_layers;
    i->d_model = (int32_t)r->d_model;
    i->n_heads = (int32_t)r->n_heads;
    i->n_kv_heads = (int32_t)r->n_kv_heads;
    i->head_dim = (int32_t)r->head_dim;
    i->d_ff = (int32_t)r->d_ff;
    i->vocab_size = (int32_t)r->vocab_size;
    i->max_positions = (int32_t)r->max_positions;
    i->rope_theta = r->rope_theta;
    i->rms_eps = r->rms_eps;
    i->tied = (r->flags & QSAE_MODEL_TIED) != 0;
    i->n_eos = (int32_t)r->n_eos;
    memcpy(i->eos, r->eos, sizeof r->eos);
    i->chat_format = r->flags & QSAE_MODEL_CHAT_OTHER   ? QSAE_CHAT_OTHER
                     : r->flags & QSAE_MODEL_CHAT_LATER ? QSAE_CHAT_QWEN3_LATER
                                                        : QSAE_CHAT_QWEN3;
}

static qsae_status qs_bind_layer(qs_cursor *k, uint32_t l, const qsae_model_record *r, qs_layer *y,
                                 qsae_error *err)
{
    uint64_t d = r->d_model, dq = (uint64_t)r->n_heads * r->head_dim;
    uint64_t dkv = (uint64_t)r->n_kv_heads * r->head_dim;
    uint32_t g = 1 + l;
    qsae_status st;
    if ((st = qs_expect_vector(k, g, QSAE_ROLE_ATTN_NORM, d, &y->attn_norm, err)) ||
        (st = qs_expect_mat(k, g, QSAE_ROLE_Q, dq, d, &y->q, err)) ||
        (st = qs_expect_mat(k, g, QSAE_ROLE_K, dkv, d, &y->k, err)) ||
        (st = qs_expect_mat(k, g, QSAE_ROLE_V, dkv, d, &y->v, err)) ||
        (st = qs_expect_vector(k, g, QSAE_ROLE_Q_NORM, r->head_dim, &y->q_norm, err)) ||
        (st = qs_expect_vector(k, g, QSAE_ROLE_K_NORM, r->head_dim, &y->k_norm, err)) ||
        (st = qs_expect_mat(k, g, QSAE_ROLE_O, d, dq, &y->o, err)) ||
        (st = qs_expect_vector(k, g, QSAE_ROLE_MLP_NORM, d, &y->mlp_norm, err)) ||
        (st = qs_expect_mat(k, g, QSAE_ROLE_GATE, r->d_ff, d, &y->gate, err)) ||
        (st = qs_expect_mat(k, g, QSAE_ROLE_UP, r->d_ff, d, &y->up, err)) ||
        (st = qs_expect_mat(k, g, QSAE_ROLE_DOWN, d, r->d_ff, &y->down, err)))
        return st;
    return QSAE_OK;
}

static qsae_status qs_bind_tokenizer(qs_cursor *k, qsae_model *m, qsae_error *err)
{
    if (!qs_next_is(k, 0, QSAE_ROLE_TOKENIZER)) return QSAE_OK;
    const qsae_tensor_record *t = &k->c->tensors[k->next++];
    if (t->layout != QSAE_LAYOUT_BYTES)
        return qs_tensor_fail(err, QSAE_E_FORMAT, t, "layout", t->layout, QSAE_LAYOUT_BYTES);
#if defined(QSAE_NO_TOKENIZER)
    (void)m;
    return QSAE_OK;
#else
    m->tok_blob = qs_alloc(&m->file.alloc, (size_t)t->cols);
    if (!m->tok_blob)
        return qs_fail(err, QSAE_E_NOMEM, t->offset, "no memory for a tokenizer of %llu bytes",
                       (unsigned long long)t->cols);
    m->tok_size = (size_t)t->cols;
    memcpy(m->tok_blob, k->c->file.data + t->offset, m->tok_size);
    m->tok_room_size = qs_tok_room(m->tok_blob, m->tok_size);
    m->tok_room = qs_alloc(&m->file.alloc, m->tok_room_size);
    if (!m->tok_room)
        return qs_fail(err, QSAE_E_NOMEM, t->offset, "no memory for a tokenizer's tables of %zu bytes",
                       m->tok_room_size);
    qsae_status st = qs_tok_bind(&m->tok, m->tok_blob, m->tok_size, m->tok_room, err);
    if (st) return st;
    if (m->tok.n_tokens > (uint32_t)m->info.vocab_size)
        return qs_fail(err, QSAE_E_MISMATCH, t->offset, "the tokenizer has %u tokens, vocab_size is %d",
                       m->tok.n_tokens, m->info.vocab_size);
    m->info.n_tokens = (int32_t)m->tok.n_tokens;
    return QSAE_OK;
#endif
}

/* A file without weights: its tokens are its vocabulary. */
static qsae_status qs_bind_tokenizer_only(qsae_model *m, qsae_error *err)
{
    qs_cursor k = {&m->file, 0};
    qsae_status st;
    m->info.weight_type = "none";
    if (!qs_next_is(&k, 0, QSAE_ROLE_TOKENIZER))
        return qs_fail(err, QSAE_E_MISMATCH, 0, "the file has neither weights nor a tokenizer");
    if ((st = qs_bind_tokenizer(&k, m, err)) || (st = qs_skip_meta(&k, 0, err))) return st;
    if (m->tok_blob && m->info.n_tokens != m->info.vocab_size)
        return qs_fail(err, QSAE_E_MISMATCH, 0, "the tokenizer has %d tokens, vocab_size is %d",
                       m->info.n_tokens, m->info.vocab_size);
    return qs_expect_end(&k, err);
}

static qsae_status qs_bind_model(qsae_model *m, qsae_error *err)
{
    const qsae_model_record *r = (const void *)m->file.index;
    qsae_status st = qs_check_model_record(r, err);
    if (st) return st;
    qs_fill_info(r, &m->info);
    if (qs_tokenizer_only(r)) return qs_bind_tokenizer_only(m, err);
    m->layers_size = r->n_layers * sizeof(qs_layer);
    m->layers = qs_alloc(&m->file.alloc, m->layers_size);
    if (!m->layers) return qs_fail(err, QSAE_E_NOMEM, 0, "no memory for %u layers", r->n_layers);
    qs_cursor k = {&m->file, 0};
    int tied = m->info.tied;
    if ((st = qs_expect_mat(&k, 0, QSAE_ROLE_EMBED, r->vocab_size, r->d_model, &m->embed, err)) ||
        (st = qs_expect_vector(&k, 0, QSAE_ROLE_FINAL_NORM, r->d_model, &m->final_norm, err)) ||
        (!tied &&
         (st = qs_expect_mat(&k, 0, QSAE_ROLE_LM_HEAD, r->vocab_size, r->d_model, &m->head, err))) ||
        (st = qs_expect_vector(&k, 0, QSAE_ROLE_ROPE, r->head_dim / 2, &m->rope, err)) ||
        (st = qs_bind_tokenizer(&k, m, err)) || (st = qs_skip_meta(&k, 0, err)))
        return st;
    if (tied) m->head = m->embed;
    uint32_t types = 1u << m->embed.type | 1u << m->head.type;
    for (uint32_t l = 0; l < r->n_layers; l++) {
        qs_layer *y = &m->layers[l];
        if ((st = qs_bind_layer(&k, l, r, y, err)) != QSAE_OK) return st;
        types |= 1u << y->q.type | 1u << y->k.type | 1u << y->v.type | 1u << y->o.type |
                 1u << y->gate.type | 1u << y->up.type | 1u << y->down.type;
    }
    m->info.weight_type = types == 1u << QSAE_TYPE_F32    ? "f32"
                          : types == 1u << QSAE_TYPE_BF16 ? "bf16"
                          : types == 1u << QSAE_TYPE_Q8   ? "q8"
                          : types == 1u << QSAE_TYPE_Q4   ? "q4"
                                                          : "mixed";
    m->integers = (types & (1u << QSAE_TYPE_Q8 | 1u << QSAE_TYPE_Q4)) != 0;
    return qs_expect_end(&k, err);
}

static qsae_status qs_model_open(const char *path, const void *data, size_t size,
                                 const qsae_open_options *options, qsae_model **out, qsae_error *err)
{
    if (!out) return qs_fail(err, QSAE_E_ARG, 0, "out is NULL");
    qsae_isa isa = options ? options->isa : QSAE_ISA_AUTO;
    qsae_status st = qs_choose_isa(&isa, err);
    if (st) return st;
    qs_container file;
    if ((st = qs_container_open(&file, path, data, size, options, QSAE_KIND_MODEL, err)) != QSAE_OK)
        return st;
    qsae_model *m = qs_alloc(&file.alloc, sizeof *m);
    if (!m) {
        qs_container_close(&file);
        return qs_fail(err, QSAE_E_NOMEM, 0, "no memory for a model");
    }
    memset(m, 0, sizeof *m);
    m->file = file;
    m->kernels = qs_kernels_of(isa);
    m->info.isa = isa;
    m->info.file_size = file.head.file_size;
    if ((st = qs_bind_model(m, err)) != QSAE_OK) {
        qsae_model_close(m);
        return st;
    }
    *out = m;
    return QSAE_OK;
}

qsae_status qsae_model_open(const char *path, const qsae_open_options *options, qsae_model **out,
                            qsae_error *err)
{
    if (!path) return qs_fail(err, QSAE_E_ARG, 0, "path is NULL");
    return qs_model_open(path, NULL, 0, options, out, err);
}

qsae_status qsae_model_open_memory(const void *data, size_t size, const qsae_open_options *options,
                                   qsae_model **out, qsae_error *err)
{
    return qs_model_open(NULL, data, size, options, out, err);
}

void qsae_model_close(qsae_model *model)
{
    if (!model) return;
    qs_container file = model->file;
    qs_release(&file.alloc, model->tok_blob, model->tok_size);
    qs_release(&file.alloc, model->tok_room, model->tok_room_size);
    qs_release(&file.alloc, model->layers, model->layers_size);
    qs_release(&file.alloc, model, sizeof *model);
    qs_container_close(&file);
}

void qsae_model_get_info(const qsae_model *model, qsae_model_info *info) { *info = model->info; }

size_t qsae_site_width(const qsae_model *model, qsae_site site)
{
    if (site == QSAE_ATTN_Z) return (size_t)model->info.n_heads * (size_t)model->info.head_dim;
    return (size_t)(site == QSAE_LOGITS ? model->info.vocab_size : model->info.d_model);
}

#if !defined(QSAE_NO_TOKENIZER)

/* parse_special: recognise added tokens. *n may exceed cap. Shared by qsae_tokenize and the chat format. */
static qsae_status qs_tokenize(const qsae_model *m, const char *text, size_t len, int parse_special,
                               int32_t *ids, size_t cap, size_t *n, qsae_error *err)
{
    if (!m->tok_blob) return qs_fail(err, QSAE_E_STATE, 0, "the file has no tokenizer");
    size_t scratch_size = qs_tok_scratch(len);
    void *scratch = scratch_size == SIZE_MAX ? NULL : qs_alloc(&m->file.alloc, scratch_size);
    if (!scratch) return qs_fail(err, QSAE_E_NOMEM, 0, "no memory to tokenize %zu bytes", len);
    qsae_status st =
        qs_tok_encode(&m->tok, text, len, parse_special, ids, cap, n, scratch, scratch_size, err);
    qs_release(&m->file.alloc, scratch, scratch_size);
    return st;
}

qsae_status qsae_tokenize(const qsae_model *model, const char *text, size_t len, unsigned flags,
                          int32_t *ids, size_t cap, size_t *n, qsae_error *err)
{
    if (!model || !n || (!text && len) || (!ids && cap))
        return qs_fail(err, QSAE_E_ARG, 0, "tokenize: a pointer is NULL");
    if (flags & ~QSAE_TOK_SPECIAL) return qs_fail(err, QSAE_E_ARG, 0, "tokenize: unknown flags 0x%x", flags);
    if (len > INT32_MAX)
        return qs_fail(err, QSAE_E_LIMIT, 0, "text has %zu bytes, at most %d", len, INT32_MAX);
    qsae_status st =
        qs_tokenize(model, text ? text : "", len, flags & QSAE_TOK_SPECIAL ? 1 : 0, ids, cap, n, err);
    if (st == QSAE_OK && *n > cap)
        return qs_fail(err, QSAE_E_LIMIT, 0, "the text has %zu tokens, the buffer holds %zu", *n, cap);
    return st;
}

const char *qsae_token_text(const qsae_model *model, int32_t id, size_t *len)
{
    *len = 0;
    return model->tok_blob ? (const char *)qs_tok_text(&model->tok, id, len) : NULL;
}

size_t qsae_utf8_complete(const char *text, size_t len)
{
    return qs_utf8_complete((const uint8_t *)text, len);
}

#else

qsae_status qsae_tokenize(const qsae_model *model, const char *text, size_t len, unsigned flags,
                          int32_t *ids, size_t cap, size_t *n, qsae_error *err)
{
    (void)model, (void)text, (void)len, (void)flags, (void)ids, (void)cap, (void)n;
    return qs_fail(err, QSAE_E_UNSUP, 0, "this build has no tokenizer (QSAE_NO_TOKENIZER)");
}

const char *qsae_token_text(const qsae_model *model, int32_t id, size_t *len)
{
    (void)model, (void)id;
    *len = 0;
    return NULL;
}

size_t qsae_utf8_complete(const char *text, size_t len)
{
    (void)text;
    return len;
}

#endif

/* ===================================================================================================
 * 17 SAE: open, encode, decode (public)
 *
 * One function turns the product e_i . x into a feature's value (qs_feature_value): the dense encode and the
 * edits, which read single rows, share it, and so agree to the bit.
 * =================================================================================================== */

#define QS_SAE_ROWS 32 /* rows encoded per pass over the weights */
#define QS_SAE_TILE 64 /* features per unit of work */
#define QS_SCREEN_TILE 192 /* the same of a screen: 12 blocks, which suits the kernels */

struct qsae_sae {
    qs_container file;
    qsae_sae_info info;
    const qs_kernels *kernels;
    size_t d_in, d_out, d_sae;
    size_t in_ld;  /* floats of a padded input row: what an encoder row holds */
    size_t out_ld; /* the same for the decoder */
    const uint8_t *enc, *dec; /* [d_sae] rows */
    size_t enc_row, dec_row;  /* bytes */
    uint32_t enc_type, dec_type;
    const float *b_enc, *theta, *mag_scale, *mag_bias; /* [d_sae] */
    const float *b_dec;                                /* [d_out] */
    qs_mat skip;                                       /* [d_out, d_in], if info.has_skip */
    qs_mat screen;             /* [d_sae, d_in] Q8, if info.has_screen */
    const float *rest, *norm;  /* [d_sae]: how far a row of it is from the encoder's, and its length */
    qsae_sae_record record;
};

/* ---- opening ---- */

static qsae_status qs_check_sae_record(const qsae_sae_record *r, qsae_error *err)
{
    qsae_status st;
    if ((st = qs_check_name(r->name, sizeof r->name, err)) ||
        (st = qs_in_range("site_in", r->site_in, 0, QSAE_SITE_COUNT - 1, err)) ||
        (st = qs_in_range("site_out", r->site_out, 0, QSAE_SITE_COUNT - 1, err)) ||
        (st = qs_in_range("layer_in", r->layer_in, 0, QS_MAX_LAYERS - 1, err)) ||
        (st = qs_in_range("layer_out", r->layer_out, 0, QS_MAX_LAYERS - 1, err)) ||
        (st = qs_in_range("d_in", r->d_in, 1, QS_MAX_WIDTH, err)) ||
        (st = qs_in_range("d_out", r->d_out, 1, QS_MAX_WIDTH, err)) ||
        (st = qs_in_range("d_sae", r->d_sae, 1, QS_MAX_D_SAE, err)) ||
        (st = qs_in_range("activation", r->activation, QSAE_ACT_RELU, QSAE_ACT_TOPK_SCALED, err)) ||
        (st = qs_in_range("norm", r->norm, 0, QSAE_NORM_LAYER, err)) ||
        (st = qs_in_range("flags", r->flags, 0, QSAE_SAE_SKIP, err)) ||
        (st = qs_in_range("feature_unit", r->feature_unit, 0, QSAE_UNIT_NORMALIZED, err)))
        return st;
    uint32_t groups = r->activation == QSAE_ACT_GROUPMAX;
    uint32_t has_k = groups || r->activation == QSAE_ACT_TOPK || r->activation == QSAE_ACT_TOPK_SCALED;
    if ((st = qs_in_range("k", r->k, has_k, has_k ? r->d_sae : 0, err)) != QSAE_OK) return st;
    if (groups && r->d_sae % r->k)
        return qs_fail(err, QSAE_E_FORMAT, 64, "k is %u, it must divide d_sae, which is %u", r->k, r->d_sae);
    if (qs_site_before(r->layer_out, r->site_out, r->layer_in, r->site_in))
        return qs_fail(err, QSAE_E_FORMAT, 64, "the SAE writes %s of layer %u before it reads %s of layer %u",
                       QS_SITE_NAMES[r->site_out], r->layer_out, QS_SITE_NAMES[r->site_in], r->layer_in);
    if (r->site_in == r->site_out && r->layer_in == r->layer_out && r->d_in != r->d_out)
        return qs_fail(err, QSAE_E_FORMAT, 64, "d_in is %u, d_out %u, at one site", r->d_in, r->d_out);
    if (r->norm == QSAE_NORM_LAYER && r->d_in < 2)
        return qs_fail(err, QSAE_E_FORMAT, 64, "layer norm needs d_in >= 2, it is %u", r->d_in);
    if (!qs_all_zero(r->zero, sizeof r->zero))
        return qs_fail(err, QSAE_E_FORMAT, 64, "a reserved field of an SAE record is not 0");
    return QSAE_OK;
}

/* Members are sorted by (layer_in, site_in, layer_out, site_out, name), strictly. */
static int qs_member_order(const qsae_sae_record *a, const qsae_sae_record *b)
{
    if (a->layer_in != b->layer_in) return a->layer_in < b->layer_in ? -1 : 1;
    if (a->site_in != b->site_in) return a->site_in < b->site_in ? -1 : 1;
    if (a->layer_out != b->layer_out) return a->layer_out < b->layer_out ? -1 : 1;
    if (a->site_out != b->site_out) return a->site_out < b->site_out ? -1 : 1;
    return strcmp(a->name, b->name);
}

static const qsae_sae_record *qs_members(const qs_container *c) { return (const void *)c->index; }

/* Which member the options mean, into *member. */
static qsae_status qs_select_member(const qs_container *c, const qsae_sae_options *o, uint32_t *member,
                                    qsae_error *err)
{
    const qsae_sae_record *r = qs_members(c);
    uint32_t n = c->head.n_records, hits = 0;
    qsae_select how = o ? o->select : QSAE_SELECT_ONLY;
    *member = 0;
    if (how == QSAE_SELECT_ONLY) {
        if (n == 1) return QSAE_OK;
        return qs_fail(err, QSAE_E_ARG, 0, "the file holds %u SAEs (first: %s layer %u, %.60s): say which", n,
                       QS_SITE_NAMES[r->site_in], r->layer_in, r->name);
    }
    if (how == QSAE_SELECT_INDEX) {
        if (o->index >= 0 && (uint32_t)o->index < n) return *member = (uint32_t)o->index, QSAE_OK;
        return qs_fail(err, QSAE_E_ARG, 0, "SAE index %d, the file holds %u", o->index, n);
    }
    if (how != QSAE_SELECT_SITE || (unsigned)o->site >= QSAE_SITE_COUNT)
        return qs_fail(err, QSAE_E_ARG, 0, "the selection of the SAE is not valid");
    for (uint32_t i = 0; i < n; i++) {
        if (r[i].site_in != (uint32_t)o->site || (int64_t)r[i].layer_in != o->layer) continue;
        if (o->name && strcmp(o->name, r[i].name) != 0) continue;
        if (!hits++) *member = i;
    }
    if (hits == 1) return QSAE_OK;
    return qs_fail(err, QSAE_E_ARG, 0, "%u of %u SAEs read %s of layer %d%s%.60s", hits, n,
                   QS_SITE_NAMES[o->site], o->layer, o->name ? " and are called " : ": name one",
                   o->name ? o->name : "");
}

static qsae_status qs_expect_rows(qs_cursor *k, uint32_t group, uint32_t role, uint64_t rows, uint64_t cols,
                                  const uint8_t **w, size_t *row_bytes, uint32_t *type, qsae_error *err)
{
    const qsae_tensor_record *t;
    qsae_status st = qs_expect(k, group, role, QSAE_LAYOUT_ROWS, rows, cols, &t, err);
    if (st) return st;
    *w = k->c->file.data + t->offset;
    *row_bytes = (size_t)qs_row_bytes(t->type, cols);
    *type = t->type;
    return QSAE_OK;
}

/* Binds member g - 1's tensors into *s; every member is checked, the last call's result is not kept. */
static qsae_status qs_bind_member(qs_cursor *k, uint32_t g, const qsae_sae_record *r, qsae_sae *s,
                                  qsae_error *err)
{
    int jump = r->activation == QSAE_ACT_JUMPRELU, gated = r->activation == QSAE_ACT_GATED;
    int scaled = gated || r->activation == QSAE_ACT_TOPK_SCALED;
    qsae_status st;
    if ((st = qs_skip_meta(k, g, err)) ||
        (st = qs_expect_rows(k, g, QSAE_ROLE_ENC, r->d_sae, r->d_in, &s->enc, &s->enc_row, &s->enc_type,
                             err)) ||
        (st = qs_expect_rows(k, g, QSAE_ROLE_DEC, r->d_sae, r->d_out, &s->dec, &s->dec_row, &s->dec_type,
                             err)) ||
        (st = qs_expect_vector(k, g, QSAE_ROLE_B_ENC, r->d_sae, &s->b_enc, err)) ||
        (jump && (st = qs_expect_vector(k, g, QSAE_ROLE_THETA, r->d_sae, &s->theta, err))) ||
        (scaled && (st = qs_expect_vector(k, g, QSAE_ROLE_MAG_SCALE, r->d_sae, &s->mag_scale, err))) ||
        (gated && (st = qs_expect_vector(k, g, QSAE_ROLE_MAG_BIAS, r->d_sae, &s->mag_bias, err))) ||
        (st = qs_expect_vector(k, g, QSAE_ROLE_B_DEC, r->d_out, &s->b_dec, err)) ||
        ((r->flags & QSAE_SAE_SKIP) &&
         (st = qs_expect_mat(k, g, QSAE_ROLE_SKIP, r->d_out, r->d_in, &s->skip, err))))
        return st;
    if (qs_next_is(k, g, QSAE_ROLE_SCREEN)) {
        if ((st = qs_expect_mat(k, g, QSAE_ROLE_SCREEN, r->d_sae, r->d_in, &s->screen, err)) ||
            (st = qs_expect_vector(k, g, QSAE_ROLE_SCREEN_REST, r->d_sae, &s->rest, err)) ||
            (st = qs_expect_vector(k, g, QSAE_ROLE_SCREEN_NORM, r->d_sae, &s->norm, err)))
            return st;
        if (s->screen.type != QSAE_TYPE_Q8)
            return qs_fail(err, QSAE_E_FORMAT, 0, "tensor %s: type %u, must be %d",
                           qs_role_name(QSAE_ROLE_SCREEN), s->screen.type, QSAE_TYPE_Q8);
    }
    if ((r->flags & QSAE_SAE_SKIP) && qs_mat_integer(&s->skip))
        return qs_fail(err, QSAE_E_FORMAT, 0, "tensor %s: type %u; an SAE's matrices are f32 or bf16",
                       qs_role_name(QSAE_ROLE_SKIP), s->skip.type);
    s->record = *r;
    s->d_in = r->d_in;
    s->d_out = r->d_out;
    s->d_sae = r->d_sae;
    s->in_ld = s->enc_row / (s->enc_type == QSAE_TYPE_F32 ? 4 : 2);
    s->out_ld = s->dec_row / (s->dec_type == QSAE_TYPE_F32 ? 4 : 2);
    return QSAE_OK;
}

static qsae_status qs_bind_sae(qsae_sae *s, uint32_t member, qsae_error *err)
{
    const qs_container *c = &s->file;
    const qsae_sae_record *r = qs_members(c);
    qs_cursor k = {c, 0};
    qsae_status st = qs_skip_meta(&k, 0, err);
    if (st) return st;
    for (uint32_t i = 0; i < c->head.n_records; i++) {
        qsae_sae other;
        memset(&other, 0, sizeof other);
        if ((st = qs_check_sae_record(&r[i], err)) != QSAE_OK) return st;
        if (i && qs_member_order(&r[i - 1], &r[i]) >= 0)
            return qs_fail(err, QSAE_E_FORMAT, 64, "SAE %u of the file is not in order", i);
        if ((st = qs_bind_member(&k, 1 + i, &r[i], i == member ? s : &other, err)) != QSAE_OK) return st;
    }
    return qs_expect_end(&k, err);
}

/* With verification: are rest and norm of the screen as large as they must be? Else encode would lose features. */
static qsae_status qs_check_screen(const qsae_sae *s, qsae_error *err)
{
    for (size_t i = 0; s->screen.w && i < s->d_sae; i++) {
        const uint8_t *row = s->enc + i * s->enc_row;
        double rest = 0, norm = 0;
        for (size_t j = 0; j < s->d_in; j++) {
            uint16_t h = 0;
            float e, c = qs_mat_at(&s->screen, i, j);
            if (s->enc_type == QSAE_TYPE_F32) memcpy(&e, row + 4 * j, 4);
            else memcpy(&h, row + 2 * j, 2), e = qs_bf16_f32(h);
            rest += ((double)e - c) * ((double)e - c);
            norm += (double)c * c;
        }
        if (!(s->rest[i] >= sqrt(rest)) || !(s->norm[i] >= sqrt(norm)))
            return qs_fail(err, QSAE_E_FORMAT, 0,
                           "screen of feature %zu: rest %g and norm %g are below the %g and %g of its row", i,
                           (double)s->rest[i], (double)s->norm[i], sqrt(rest), sqrt(norm));
    }
    return QSAE_OK;
}

static void qs_fill_sae_info(qsae_sae *s, uint32_t member, qsae_isa isa)
{
    const qsae_sae_record *r = &s->record;
    qsae_sae_info *i = &s->info;
    i->name = r->name;
    i->feature_unit = r->feature_unit == QSAE_UNIT_RAW ? "raw" : "normalized";
    i->site_in = (qsae_site)r->site_in;
    i->site_out = (qsae_site)r->site_out;
    i->layer_in = (int32_t)r->layer_in;
    i->layer_out = (int32_t)r->layer_out;
    i->d_in = (int32_t)r->d_in;
    i->d_out = (int32_t)r->d_out;
    i->d_sae = (int32_t)r->d_sae;
    i->k = (int32_t)r->k;
    i->activation = (qsae_activation)r->activation;
    i->norm = (qsae_norm)r->norm;
    i->has_skip = (r->flags & QSAE_SAE_SKIP) != 0;
    i->is_transcoder = r->site_in != r->site_out || r->layer_in != r->layer_out;
    i->has_screen = s->screen.w != NULL;
    i->weight_type = s->enc_type != s->dec_type ? "mixed" : s->enc_type == QSAE_TYPE_F32 ? "f32" : "bf16";
    i->index = (int32_t)member;
    i->n_members = (int32_t)s->file.head.n_records;
    i->isa = isa;
    i->file_size = s->file.head.file_size;
}

static qsae_status qs_sae_open(const char *path, const void *data, size_t size,
                               const qsae_sae_options *options, qsae_sae **out, qsae_error *err)
{
    if (!out) return qs_fail(err, QSAE_E_ARG, 0, "out is NULL");
    qsae_isa isa = options ? options->open.isa : QSAE_ISA_AUTO;
    qsae_status st = qs_choose_isa(&isa, err);
    if (st) return st;
    qs_container file;
    st = qs_container_open(&file, path, data, size, options ? &options->open : NULL, QSAE_KIND_SAE, err);
    if (st) return st;
    qsae_sae *s = qs_alloc(&file.alloc, sizeof *s);
    if (!s) {
        qs_container_close(&file);
        return qs_fail(err, QSAE_E_NOMEM, 0, "no memory for an SAE");
    }
    memset(s, 0, sizeof *s);
    s->file = file;
    s->kernels = qs_kernels_of(isa);
    uint32_t member;
    if ((st = qs_bind_sae(s, UINT32_MAX, err)) || /* all records valid before one is chosen by them */
        (st = qs_select_member(&s->file, options, &member, err)) || (st = qs_bind_sae(s, member, err)) ||
        (options && options->open.verify && (st = qs_check_screen(s, err)))) {
        qsae_sae_close(s);
        return st;
    }
    qs_fill_sae_info(s, member, isa);
    if (options && options->no_screen) s->info.has_screen = 0;
    *out = s;
    return QSAE_OK;
}

qsae_status qsae_sae_open(const char *path, const qsae_sae_options *options, qsae_sae **out,
                          qsae_error *err)
{
    if (!path) return qs_fail(err, QSAE_E_ARG, 0, "path is NULL");
    return qs_sae_open(path, NULL, 0, options, out, err);
}

qsae_status qsae_sae_open_memory(const void *data, size_t size, const qsae_sae_options *options,
                                 qsae_sae **out, qsae_error *err)
{
    return qs_sae_open(NULL, data, size, options, out, err);
}

void qsae_sae_close(qsae_sae *sae)
{
    if (!sae) return;
    qs_container file = sae->file;
    qs_release(&file.alloc, sae, sizeof *sae);
    qs_container_close(&file);
}

void qsae_sae_get_info(const qsae_sae *sae, qsae_sae_info *info) { *info = sae->info; }

/* ---- a small heap, for top-k here and for sampling ---- */

typedef struct qs_pair {
    float value;
    uint32_t index;
} qs_pair;

typedef int (*qs_before)(qs_pair a, qs_pair b); /* a total order */

static int qs_larger_first(qs_pair a, qs_pair b) /* ties to the lower index */
{
    return a.value != b.value ? a.value > b.value : a.index < b.index;
}

static int qs_smaller_first(qs_pair a, qs_pair b) { return qs_larger_first(b, a); }
static int qs_index_first(qs_pair a, qs_pair b) { return a.index < b.index; }

/* h[0] is the last in order of the heap h[0..n); restores that below `at`. */
static void qs_sift(qs_pair *h, size_t n, size_t at, qs_before before)
{
    for (;;) {
        size_t last = at, l = 2 * at + 1, r = l + 1;
        if (l < n && before(h[last], h[l])) last = l;
        if (r < n && before(h[last], h[r])) last = r;
        if (last == at) return;
        qs_pair t = h[at];
        h[at] = h[last];
        h[last] = t;
        at = last;
    }
}

static void qs_heapify(qs_pair *h, size_t n, qs_before before)
{
    for (size_t i = n / 2; i-- > 0;) qs_sift(h, n, i, before);
}

static void qs_sort(qs_pair *h, size_t n, qs_before before)
{
    qs_heapify(h, n, before);
    for (; n > 1; n--) {
        qs_pair t = h[0];
        h[0] = h[n - 1];
        h[n - 1] = t;
        qs_sift(h, n - 1, 0, before);
    }
}

/* ---- encode ---- */

/* Scale of one row under the SAE's per-token norm: norm(x) = (x - shift) * in, unnorm(y) = y * out + shift. */
typedef struct qs_row_norm {
    float shift, in, out;
} qs_row_norm;

/* Copies x [d_in] into to [in_ld], normalised and zero-padded. A row of zeros stays one. */
static qs_row_norm qs_normalize(const qsae_sae *s, const float *x, float *to)
{
    qs_row_norm m = {0.0f, 1.0f, 1.0f};
    size_t n = s->d_in;
    memset(to + n, 0, (s->in_ld - n) * sizeof *to);
    memcpy(to, x, n * sizeof *to);
    if (s->info.norm == QSAE_NORM_CONSTANT) {
        double norm = sqrt(qs_dot_double(x, x, n));
        if (norm > 0) {
            m.in = (float)(sqrt((double)n) / norm);
            m.out = (float)(norm / sqrt((double)n));
        }
    } else if (s->info.norm == QSAE_NORM_LAYER) {
        double sum = 0;
        for (size_t j = 0; j < n; j++) sum += (double)x[j];
        m.shift = (float)(sum / (double)n);
        for (size_t j = 0; j < n; j++) to[j] = x[j] - m.shift;
        float std = (float)sqrt(qs_dot_double(to, to, n) / (double)(n - 1));
        m.in = 1.0f / (std + 1e-5f);
        m.out = std;
    }
    if (m.in != 1.0f)
        for (size_t j = 0; j < n; j++) to[j] = to[j] * m.in;
    if (s->info.is_transcoder) m.out = 1.0f, m.shift = 0.0f; /* a prediction has its own scale */
    return m;
}

const char *qsae_activation_name(qsae_activation a)
{
    static const char *const names[] = {NULL, "relu", "jumprelu", "topk", "gated", "groupmax", "topk-scaled"};
    return (unsigned)a < sizeof names / sizeof names[0] ? names[a] : NULL;
}

/* Does a feature's value depend on other features? Then every feature must be computed. */
static int qs_selects(const qsae_sae *s)
{
    return s->info.activation == QSAE_ACT_TOPK || s->info.activation == QSAE_ACT_GROUPMAX ||
           s->info.activation == QSAE_ACT_TOPK_SCALED;
}

/* f_i from e_i . norm(x); of those that select, the value that is selected on. */
static float qs_feature_value(const qsae_sae *s, size_t i, float dot)
{
    float z = dot + s->b_enc[i];
    if (z != z) return z; /* Inf - Inf in the product: the caller's check must find it */
    switch (s->info.activation) {
    case QSAE_ACT_RELU: return z > 0.0f ? z : 0.0f;
    case QSAE_ACT_JUMPRELU: return z > s->theta[i] && z > 0.0f ? z : 0.0f;
    case QSAE_ACT_GATED: {
        float mag = s->mag_scale[i] * dot + s->mag_bias[i];
        return z > 0.0f && mag > 0.0f ? mag : 0.0f;
    }
    default: return z;
    }
}

/* z[t][i] = value of feature i for nt normalised rows x, all features */
typedef struct qs_encode_job {
    const qsae_sae *s;
    const float *x; /* [nt, in_ld] */
    size_t nt;
    float *z; /* [nt, d_sae up to 16] */
} qs_encode_job;

static void qs_encode_task(void *arg, size_t lo, size_t hi, size_t thread)
{
    const qs_encode_job *j = arg;
    const qsae_sae *s = j->s;
    (void)thread;
    size_t i0 = lo * QS_SAE_TILE, i1 = qs_min(hi * QS_SAE_TILE, s->d_sae);
    s->kernels->dots[s->enc_type](s->enc + i0 * s->enc_row, s->enc_row, i1 - i0, s->in_ld, j->x, s->in_ld,
                                  j->nt, j->z + i0, qs_up16(s->d_sae));
    for (size_t t = 0; t < j->nt; t++)
        for (size_t i = i0; i < i1; i++) {
            float *z = &j->z[t * qs_up16(s->d_sae) + i];
            *z = qs_feature_value(s, i, *z);
        }
}

static void qs_encode_dense(const qsae_sae *s, const float *x, size_t nt, float *z, int n_threads)
{
    qs_encode_job job = {s, x, nt, z};
    qs_parallel(n_threads, (s->d_sae + QS_SAE_TILE - 1) / QS_SAE_TILE, nt * s->in_ld * QS_SAE_TILE,
                qs_encode_task, &job);
}

/* Keeps the k largest of z [d_sae] and zeroes the rest and what is not positive. heap: [k] scratch. */
static void qs_keep_top_k(const qsae_sae *s, float *z, qs_pair *heap)
{
    size_t k = (size_t)s->info.k, n = 0;
    for (size_t i = 0; i < s->d_sae; i++) {
        qs_pair p = {z[i], (uint32_t)i};
        if (n < k) {
            heap[n++] = p;
            if (n == k) qs_heapify(heap, k, qs_larger_first);
        } else if (qs_larger_first(p, heap[0])) {
            heap[0] = p;
            qs_sift(heap, k, 0, qs_larger_first);
        }
    }
    qs_sort(heap, k, qs_index_first);
    memset(z, 0, s->d_sae * sizeof *z);
    for (size_t i = 0; i < k; i++)
        if (heap[i].value > 0.0f) z[heap[i].index] = heap[i].value;
}

/* The values that were selected on to those of the features. */
static void qs_scale_features(const qsae_sae *s, float *z)
{
    for (size_t i = 0; i < s->d_sae; i++)
        if (z[i] > 0.0f) z[i] = z[i] * s->mag_scale[i];
}

/* Keeps the largest of each of k groups of z [d_sae], the first of equals, and zeroes the rest and what is
 * not positive. */
static void qs_keep_group_max(const qsae_sae *s, float *z)
{
    size_t size = s->d_sae / (size_t)s->info.k;
    for (size_t g = 0; g < s->d_sae; g += size) {
        size_t best = g;
        for (size_t i = g + 1; i < g + size; i++)
            if (z[i] > z[best]) best = i;
        float largest = z[best];
        memset(z + g, 0, size * sizeof *z);
        if (largest > 0.0f) z[best] = largest;
    }
}

static size_t qs_screen_units(const qsae_sae *s) { return (s->d_sae + QS_SCREEN_TILE - 1) / QS_SCREEN_TILE; }

/* The scratch of encode and decode. */
typedef struct qs_sae_scratch {
    float *x;      /* [QS_SAE_ROWS, in_ld] normalised inputs */
    float *z;      /* [QS_SAE_ROWS, d_sae up to 16] */
    float *y;      /* [out_ld up to 16] one output row; and the skip's */
    float *skip;
    qs_pair *heap; /* [QS_SAE_ROWS, 2 k] */
    qs_group *packed;  /* [groups of d_in, QS_SAE_ROWS], for a screen */
    uint32_t *checked; /* [units of QS_SCREEN_TILE features, then rows]: values computed exactly */
} qs_sae_scratch;

static size_t qs_lay_sae_scratch(const qsae_sae *s, size_t n, void *base, qs_sae_scratch *to)
{
    qs_carve c = {base, 0, 0};
    size_t rows = qs_min(n, QS_SAE_ROWS), d_out = qs_up16(s->out_ld), cells;
    if (!qs_mul(rows, qs_up16(s->d_sae), &cells)) return SIZE_MAX;
    to->x = qs_cut(&c, rows * s->in_ld, sizeof(float));
    to->z = qs_cut(&c, cells, sizeof(float));
    to->y = qs_cut(&c, d_out, sizeof(float));
    to->skip = qs_cut(&c, d_out, sizeof(float));
    to->heap = qs_cut(&c, 2 * rows * (size_t)s->info.k, sizeof(qs_pair));
    to->packed = qs_cut(&c, s->info.has_screen ? rows * qs_groups(s->d_in) : 0, sizeof(qs_group));
    to->checked = qs_cut(&c, s->info.has_screen ? qs_screen_units(s) + rows : 0, sizeof(uint32_t));
    return c.overflow ? SIZE_MAX : c.used;
}

size_t qsae_sae_scratch_size(const qsae_sae *sae, size_t n)
{
    qs_sae_scratch unused;
    size_t size = qs_lay_sae_scratch(sae, n, NULL, &unused);
    return size == SIZE_MAX || !qs_add(size, 63, &size) ? SIZE_MAX : size; /* any alignment */
}

static qsae_status qs_check_threads(int n_threads, qsae_error *err)
{
    if (n_threads >= 0 && n_threads <= QS_MAX_THREADS) return QSAE_OK;
    return qs_fail(err, QSAE_E_ARG, 0, "n_threads is %d, must be 0..%d", n_threads, QS_MAX_THREADS);
}

/* Lays the scratch into the caller's block, or says how much it lacks. */
static qsae_status qs_take_scratch(const qsae_sae *s, size_t n, void *scratch, size_t size,
                                   qs_sae_scratch *to, qsae_error *err)
{
    size_t need = qsae_sae_scratch_size(s, n);
    if (!scratch || size < need)
        return qs_fail(err, QSAE_E_ARG, 0, "scratch has %zu bytes, needs %zu", scratch ? size : 0, need);
    char *base = (char *)scratch + (64 - (uintptr_t)scratch % 64) % 64;
    qs_lay_sae_scratch(s, n, base, to);
    return QSAE_OK;
}

/* ---- screened encode
 *
 * The screen is a copy of the encoder with integer weights: row i is e'_i, |e_i - e'_i| <= rest_i and |e'_i| <=
 * norm_i. Its product with x' (x as 16-bit integers) is read at half the bytes and bounds the exact one:
 *
 *     |z_i - z'_i| <= rest_i |x| + norm_i |x - x'| + roundings =: eps_i      (Cauchy and Schwarz)
 *
 * What cannot fire for certain is 0; every other row is computed by the kernel that the dense encode uses. So the
 * result has the dense encode's bits, whatever the screen holds as long as rest and norm are true.
 *
 *   threshold t    row i is out if z'_i + eps_i <= t
 *   top k          the k largest z' are computed exactly; the least of them is at most the true k-th, so row i is out
 *                  if z'_i + eps_i is below it
 *
 * Roundings, u = 2^-24: the exact kernel's chain, the screen's sums and its factors are each at most m u |.| |x| with
 * m below; the last additions at most 16 u (|z'| + |b|). A row with eps >= 1e30 is computed: below that no partial sum
 * of the exact kernel overflows. */

static int qs_screens(const qsae_sae *s)
{
    return s->info.has_screen && s->info.activation != QSAE_ACT_GROUPMAX;
}

typedef struct qs_bound {
    float rest, norm; /* what multiplies rest_i and norm_i */
} qs_bound;

/* x [in_ld] and the same packed, groups `step` apart */
static qs_bound qs_screen_bound(const qsae_sae *s, const float *x, const qs_group *g, size_t step)
{
    static const uint8_t place[4] = {0, 2, 1, 3};
    double length = sqrt(qs_dot_double(x, x, s->d_in)), lost = 0;
    double mu = ((double)(s->in_ld / 16) + (double)qs_groups(s->d_in) + 64) / 16777216.0;
    for (size_t j = 0; j < s->d_in; j++) {
        const qs_group *of = &g[j / QS_GROUP * step];
        double d = (double)x[j] - (double)of->scale * of->pairs[j % QS_GROUP / 4 * 4 + place[j % 4]];
        lost += d * d;
    }
    lost = sqrt(lost);
    qs_bound b = {(float)(length * (1 + mu) * 1.000001), (float)((lost + mu * (length + lost)) * 1.000001)};
    return b;
}

static float qs_screen_eps(const qsae_sae *s, qs_bound b, size_t i, float score)
{
    const float u16 = 16.0f / 16777216.0f;
    return (s->rest[i] * b.rest + s->norm[i] * b.norm + u16 * (fabsf(score) + fabsf(s->b_enc[i]))) * 1.00001f + 1e-30f;
}

typedef struct qs_screen_job {
    const qsae_sae *s;
    const qs_sae_scratch *w;
    size_t nt;
    qs_bound bound[QS_SAE_ROWS];
} qs_screen_job;

static float qs_exact_dot(const qsae_sae *s, size_t i, const float *x)
{
    float dot;
    s->kernels->dots[s->enc_type](s->enc + i * s->enc_row, s->enc_row, 1, s->in_ld, x, s->in_ld, 1, &dot, 1);
    return dot;
}

/* Which of features i .. i + 15 may fire, as bits; z: their screen products. Vectors are padded to 16. */
static unsigned qs_screen_16(const qsae_sae *s, qs_bound b, size_t i, const float *z)
{
    float least[16] = {0};
    int maybe[16], any = 0;
    unsigned bits = 0;
    if (s->theta) memcpy(least, s->theta + i, sizeof least);
    for (size_t r = 0; r < 16; r++) {
        float score = z[r] + s->b_enc[i + r], eps = qs_screen_eps(s, b, i + r, score);
        maybe[r] = !((score + eps <= least[r]) & (eps < 1e30f));
    }
    for (size_t r = 0; r < 16; r++) any |= maybe[r];
    for (size_t r = 0; r < 16 && any; r++) bits |= (unsigned)maybe[r] << r;
    return bits;
}

/* Up to 16 features from i on of row t: screen products in, values out. Returns how many were computed exactly. */
static uint32_t qs_screen_block(const qs_screen_job *j, size_t t, size_t i)
{
    const qsae_sae *s = j->s;
    const float *x = j->w->x + t * s->in_ld;
    float *z = j->w->z + t * qs_up16(s->d_sae) + i;
    size_t n = qs_min(16, s->d_sae - i);
    unsigned bits = qs_screen_16(s, j->bound[t], i, z) & (unsigned)((1ul << n) - 1);
    uint32_t count = 0;
    for (unsigned b = bits; b; b &= b - 1) count++;
    if (count > 4) { /* so many are cheaper together */
        s->kernels->dots[s->enc_type](s->enc + i * s->enc_row, s->enc_row, n, s->in_ld, x, s->in_ld, 1, z, 16);
        for (size_t r = 0; r < n; r++) z[r] = qs_feature_value(s, i + r, z[r]);
        return (uint32_t)n;
    }
    for (size_t r = 0; r < n; r++) z[r] = bits >> r & 1 ? qs_feature_value(s, i + r, qs_exact_dot(s, i + r, x)) : 0.0f;
    return count;
}

static void qs_screen_task(void *arg, size_t lo, size_t hi, size_t thread)
{
    const qs_screen_job *j = arg;
    const qsae_sae *s = j->s;
    (void)thread;
    for (size_t u = lo; u < hi; u++) {
        size_t i0 = u * QS_SCREEN_TILE, i1 = qs_min(i0 + QS_SCREEN_TILE, s->d_sae);
        s->kernels->mmq[0](s->screen.w + i0 / 16 * s->screen.block, s->screen.block, qs_up16(i1 - i0) / 16,
                           qs_groups(s->d_in), j->w->packed, j->nt, j->w->z + i0, qs_up16(s->d_sae));
        j->w->checked[u] = 0;
        for (size_t t = 0; t < j->nt && !qs_selects(s); t++)
            for (size_t i = i0; i < i1; i += 16) j->w->checked[u] += qs_screen_block(j, t, i);
    }
}

/* The k first of p [n] by `before`, as a heap in h, whose h[0] is the last of them. */
static void qs_heap_offer(qs_pair *h, size_t *n, size_t k, qs_pair p)
{
    if (*n < k) {
        h[(*n)++] = p;
        if (*n == k) qs_heapify(h, k, qs_larger_first);
    } else if (qs_larger_first(p, h[0])) {
        h[0] = p;
        qs_sift(h, k, 0, qs_larger_first);
    }
}

/* Row t of z: screen products in; the k largest exact values, if positive, out, all else 0. */
static uint32_t qs_screen_top_k(const qs_screen_job *j, size_t t)
{
    const qsae_sae *s = j->s;
    const float *x = j->w->x + t * s->in_ld;
    size_t k = (size_t)s->info.k, n = 0, kept = 0, next = 0;
    float *z = j->w->z + t * qs_up16(s->d_sae);
    qs_pair *likely = j->w->heap + 2 * t * k, *best = likely + k;
    uint32_t count = (uint32_t)k;
    for (size_t i = 0; i < s->d_sae; i++) {
        qs_pair p = {z[i] + s->b_enc[i], (uint32_t)i};
        if (p.value != p.value) p.value = INFINITY; /* must be computed */
        z[i] = p.value;
        qs_heap_offer(likely, &n, k, p);
    }
    qs_sort(likely, k, qs_index_first);
    int bad = 0;
    for (size_t i = 0; i < k; i++) {
        qs_pair p = {qs_feature_value(s, likely[i].index, qs_exact_dot(s, likely[i].index, x)), likely[i].index};
        bad |= !qs_finite(p.value);
        qs_heap_offer(best, &kept, k, p);
    }
    for (size_t i = 0; i < s->d_sae && !bad; i++) {
        if (next < k && likely[next].index == i) {
            next++;
            continue;
        }
        float eps = qs_screen_eps(s, j->bound[t], i, z[i]);
        if (z[i] + eps < best[0].value && eps < 1e30f) continue;
        qs_pair p = {qs_feature_value(s, i, qs_exact_dot(s, i, x)), (uint32_t)i};
        count++;
        bad |= !qs_finite(p.value);
        qs_heap_offer(best, &kept, k, p);
    }
    qs_sort(best, k, qs_index_first);
    memset(z, 0, s->d_sae * sizeof *z);
    for (size_t i = 0; i < k; i++)
        if (best[i].value > 0.0f) z[best[i].index] = best[i].value;
    if (bad) z[0] = NAN; /* the caller's check finds it */
    return count;
}

static void qs_screen_top_k_task(void *arg, size_t lo, size_t hi, size_t thread)
{
    const qs_screen_job *j = arg;
    (void)thread;
    for (size_t t = lo; t < hi; t++) j->w->checked[qs_screen_units(j->s) + t] = qs_screen_top_k(j, t);
}

/* The values of nt normalised rows w->x into w->z, selected. Returns how many were computed exactly. */
static uint64_t qs_encode_screened(const qsae_sae *s, const qs_sae_scratch *w, size_t nt, int n_threads)
{
    qs_screen_job job;
    uint64_t checked = 0;
    job.s = s;
    job.w = w;
    job.nt = nt;
    for (size_t t = 0; t < nt; t++) {
        s->kernels->pack(w->x + t * s->in_ld, s->d_in, w->packed + t, nt);
        job.bound[t] = qs_screen_bound(s, w->x + t * s->in_ld, w->packed + t, nt);
    }
    qs_parallel(n_threads, qs_screen_units(s), nt * s->in_ld * QS_SCREEN_TILE, qs_screen_task, &job);
    for (size_t t = 0; t < nt; t++) w->checked[qs_screen_units(s) + t] = 0;
    if (qs_selects(s)) /* not GROUPMAX, which has no screen */
        qs_parallel(n_threads, nt, 16 * s->d_sae, qs_screen_top_k_task, &job);
    for (size_t u = 0; u < qs_screen_units(s) + nt; u++) checked += w->checked[u];
    return checked;
}

/* Full features of nt <= QS_SAE_ROWS rows of x (ld apart) into w->z, the rows' norms into m [nt]; `first`
 * names row 0 in messages. */
static qsae_status qs_encode_rows(const qsae_sae *s, const float *x, size_t ld, size_t nt, size_t first,
                                  const qs_sae_scratch *w, qs_row_norm *m, uint64_t *checked, int n_threads,
                                  qsae_error *err)
{
    for (size_t t = 0; t < nt; t++) {
        m[t] = qs_normalize(s, x + t * ld, w->x + t * s->in_ld);
        if (!qs_all_finite(w->x + t * s->in_ld, s->d_in))
            return qs_fail(err, QSAE_E_NUM, 0, "SAE input row %zu is not finite", first + t);
    }
    int screen = qs_screens(s);
    if (screen) *checked += qs_encode_screened(s, w, nt, n_threads);
    else qs_encode_dense(s, w->x, nt, w->z, n_threads), *checked += (uint64_t)nt * s->d_sae;
    for (size_t t = 0; t < nt; t++) {
        float *z = w->z + t * qs_up16(s->d_sae);
        if (!qs_all_finite(z, s->d_sae))
            return qs_fail(err, QSAE_E_NUM, 0, "SAE input row %zu overflows the encoder", first + t);
        if (s->info.activation == QSAE_ACT_GROUPMAX) qs_keep_group_max(s, z);
        else if (qs_selects(s) && !screen) qs_keep_top_k(s, z, w->heap);
        if (s->info.activation != QSAE_ACT_TOPK_SCALED) continue;
        qs_scale_features(s, z);
        if (!qs_all_finite(z, s->d_sae))
            return qs_fail(err, QSAE_E_NUM, 0, "SAE input row %zu overflows the scales", first + t);
    }
    return QSAE_OK;
}

/* Appends row r's features in w->z row t; counts on beyond cap. */
static void qs_emit_row(const qsae_sae *s, const float *z, qsae_rows *out, size_t *used)
{
    for (size_t i = 0; i < s->d_sae; i++) {
        if (z[i] == 0.0f) continue;
        if (*used < out->cap) out->index[*used] = (uint32_t)i, out->value[*used] = z[i];
        ++*used;
    }
}

static qsae_status qs_check_input(const float *x, size_t n, size_t ld, size_t width, qsae_error *err)
{
    for (size_t r = 0; r < n; r++)
        if (!qs_all_finite(x + r * ld, width))
            return qs_fail(err, QSAE_E_NUM, 0, "SAE input row %zu is not finite", r);
    return QSAE_OK;
}

static qsae_status qs_encode(const qsae_sae *s, const float *x, size_t n, size_t ld, qsae_rows *out,
                             const qs_sae_scratch *w, int n_threads, qsae_error *err)
{
    qs_row_norm m[QS_SAE_ROWS];
    size_t used = 0;
    out->n_exact = 0;
    for (size_t r = 0; r < n; r += QS_SAE_ROWS) {
        size_t nt = qs_min(QS_SAE_ROWS, n - r);
        qsae_status st = qs_encode_rows(s, x + r * ld, ld, nt, r, w, m, &out->n_exact, n_threads, err);
        if (st) return st;
        for (size_t t = 0; t < nt; t++) {
            out->start[r + t] = used;
            qs_emit_row(s, w->z + t * qs_up16(s->d_sae), out, &used);
        }
    }
    out->start[n] = used;
    out->n_rows = n;
    if (used <= out->cap) return QSAE_OK;
    return qs_fail(err, QSAE_E_LIMIT, 0, "encode: %zu features fired, the buffer holds %zu", used, out->cap);
}

qsae_status qsae_sae_encode(const qsae_sae *sae, const float *x, size_t n, size_t ld, qsae_rows *out,
                            void *scratch, size_t scratch_size, int n_threads, qsae_error *err)
{
    if (!sae || (!x && n) || !out || !out->start || ((!out->index || !out->value) && out->cap))
        return qs_fail(err, QSAE_E_ARG, 0, "encode: a pointer is NULL");
    if (!ld) ld = sae->d_in;
    if (ld < sae->d_in)
        return qs_fail(err, QSAE_E_ARG, 0, "encode: ld is %zu, rows have %zu values", ld, sae->d_in);
    qs_sae_scratch w;
    qsae_status st = qs_check_threads(n_threads, err);
    if (st || (st = qs_take_scratch(sae, n, scratch, scratch_size, &w, err)) ||
        (st = qs_check_input(x, n, ld, sae->d_in, err)) != QSAE_OK) return st;
    qs_fp_state fp = qs_fp_enter();
    st = qs_encode(sae, x, n, ld, out, &w, n_threads, err);
    qs_fp_leave(fp);
    return st;
}

/* ---- decode ---- */

/* w->y = b_dec, zero-padded */
static void qs_decode_begin(const qsae_sae *s, const qs_sae_scratch *w)
{
    memset(w->y, 0, s->out_ld * sizeof *w->y);
    memcpy(w->y, s->b_dec, s->d_out * sizeof *w->y);
}

static void qs_decode_add(const qsae_sae *s, size_t feature, float value, const qs_sae_scratch *w)
{
    s->kernels->axpy[s->dec_type](value, s->dec + feature * s->dec_row, s->out_ld, w->y);
}

/* w->y = unnorm(w->y) + skip x; x: the raw input row, needed for the skip only. Overwrites w->x. */
static void qs_decode_end(const qsae_sae *s, const float *x, qs_row_norm m, const qs_sae_scratch *w)
{
    float *y = w->y;
    if (m.out != 1.0f || m.shift != 0.0f)
        for (size_t j = 0; j < s->d_out; j++) y[j] = y[j] * m.out + m.shift;
    if (!s->info.has_skip) return;
    memset(w->x, 0, s->in_ld * sizeof *w->x); /* a padded copy: the kernel reads kp values */
    memcpy(w->x, x, s->d_in * sizeof *w->x);
    s->kernels->mm[s->skip.type](s->skip.w, s->skip.block, s->skip.np / 16, s->skip.kp, w->x, s->in_ld, 1,
                                 w->skip, s->skip.np);
    for (size_t j = 0; j < s->d_out; j++) y[j] = y[j] + w->skip[j];
}

static qsae_status qs_check_rows(const qsae_sae *s, const qsae_rows *in, qsae_error *err)
{
    for (size_t r = 0; r < in->n_rows; r++) {
        if (in->start[r] > in->start[r + 1])
            return qs_fail(err, QSAE_E_ARG, 0, "decode: row %zu ends before it starts", r);
        for (size_t e = in->start[r]; e < in->start[r + 1]; e++) {
            if (in->index[e] >= s->d_sae)
                return qs_fail(err, QSAE_E_ARG, 0, "decode: row %zu has feature %u, d_sae is %zu", r,
                               in->index[e], s->d_sae);
            if (e > in->start[r] && in->index[e] <= in->index[e - 1])
                return qs_fail(err, QSAE_E_ARG, 0, "decode: row %zu, feature %u: indices do not ascend", r,
                               in->index[e]);
            if (!qs_finite(in->value[e]))
                return qs_fail(err, QSAE_E_NUM, 0, "decode: row %zu, feature %u is not finite", r,
                               in->index[e]);
        }
    }
    return QSAE_OK;
}

static int qs_decode_needs_input(const qsae_sae *s)
{
    return s->info.has_skip || (s->info.norm != QSAE_NORM_NONE && !s->info.is_transcoder);
}

static void qs_decode(const qsae_sae *s, const qsae_rows *in, const float *x, size_t ld, float *y,
                      const qs_sae_scratch *w)
{
    for (size_t r = 0; r < in->n_rows; r++) {
        const float *xr = qs_decode_needs_input(s) ? x + r * ld : NULL;
        qs_row_norm m = {0.0f, 1.0f, 1.0f};
        if (xr) m = qs_normalize(s, xr, w->x);
        qs_decode_begin(s, w);
        for (size_t e = in->start[r]; e < in->start[r + 1]; e++)
            qs_decode_add(s, in->index[e], in->value[e], w);
        qs_decode_end(s, xr, m, w);
        memcpy(y + r * s->d_out, w->y, s->d_out * sizeof *y);
    }
}

qsae_status qsae_sae_decode(const qsae_sae *sae, const qsae_rows *in, const float *x, size_t ld, float *y,
                            void *scratch, size_t scratch_size, int n_threads, qsae_error *err)
{
    if (!sae || !in || !in->start || !y) return qs_fail(err, QSAE_E_ARG, 0, "decode: a pointer is NULL");
    if (in->n_rows && in->start[in->n_rows] && (!in->index || !in->value))
        return qs_fail(err, QSAE_E_ARG, 0, "decode: a pointer is NULL");
    if (qs_decode_needs_input(sae) && !x)
        return qs_fail(err, QSAE_E_ARG, 0, "decode: this SAE needs its input (%s)",
                       sae->info.has_skip ? "skip connection" : "per-token norm");
    if (!ld) ld = sae->d_in;
    if (ld < sae->d_in)
        return qs_fail(err, QSAE_E_ARG, 0, "decode: ld is %zu, rows have %zu values", ld, sae->d_in);
    qs_sae_scratch w;
    qsae_status st = qs_check_threads(n_threads, err);
    if (st || (st = qs_take_scratch(sae, in->n_rows ? 1 : 0, scratch, scratch_size, &w, err)) ||
        (st = qs_check_rows(sae, in, err)) != QSAE_OK) return st;
    if (qs_decode_needs_input(sae) && (st = qs_check_input(x, in->n_rows, ld, sae->d_in, err)) != QSAE_OK)
        return st;
    qs_fp_state fp = qs_fp_enter();
    qs_decode(sae, in, x, ld, y, &w);
    qs_fp_leave(fp);
    return QSAE_OK;
}

static float qs_row_value(const uint8_t *rows, size_t row_bytes, uint32_t type, size_t i, size_t j)
{
    float f;
    uint16_t h;
    if (type == QSAE_TYPE_F32) {
        memcpy(&f, rows + i * row_bytes + 4 * j, 4);
        return f;
    }
    memcpy(&h, rows + i * row_bytes + 2 * j, 2);
    return qs_bf16_f32(h);
}

qsae_status qsae_sae_feature(const qsae_sae *sae, uint32_t feature, float *encoder, float *decoder,
                             float *bias, float *threshold, qsae_error *err)
{
    if (!sae) return qs_fail(err, QSAE_E_ARG, 0, "sae is NULL");
    if (feature >= sae->d_sae)
        return qs_fail(err, QSAE_E_ARG, 0, "feature %u, d_sae is %zu", feature, sae->d_sae);
    for (size_t j = 0; encoder && j < sae->d_in; j++)
        encoder[j] = qs_row_value(sae->enc, sae->enc_row, sae->enc_type, feature, j);
    for (size_t j = 0; decoder && j < sae->d_out; j++)
        decoder[j] = qs_row_value(sae->dec, sae->dec_row, sae->dec_type, feature, j);
    if (bias) *bias = sae->b_enc[feature];
    if (threshold) *threshold = sae->theta ? sae->theta[feature] : 0.0f;
    return QSAE_OK;
}

/* ===================================================================================================
 * 18 Context: layout, copy, rewind (public)
 *
 * One block: tokens, KV cache, logits, and the scratch of the passes that this context hosts.
 *
 * KV cache, laid out so that attention is two calls of the matrix kernel; 16-bit types are widened tile by tile:
 *   keys    [layer][kv head][position / 16][head_dim][16]         a lane is a position
 *   values  [layer][kv head][head_dim / 16][position][16]         a lane is a dimension
 * It is not written before its positions are: the system gives it memory as the context grows.
 * =================================================================================================== */

#define QS_ATT_TILE  256 /* positions joined at a time: part of the contract of section 6 */
#define QS_ATT_QUERIES ((size_t)60) /* at most so many share a tile, if one row has no more; kernels take 6 or 3 at a time */
#define QS_HEAD_ROWS 8   /* rows whose logits are computed together */

/* One token of a pass. */
typedef struct qs_row {
    qsae_ctx *ctx;
    int32_t pos, token;
    size_t index; /* place in its eval call */
} qs_row;

/* Rows of one context that follow one another and attend together. */
typedef struct qs_block {
    size_t first, n;
} qs_block;

/* Buffers of a pass over up to n_batch rows; each [n_batch, width up to 16], padding always zero. */
typedef struct qs_scratch {
    qs_row *rows;      /* [n_batch] */
    qs_block *blocks;  /* [n_batch] */
    uint8_t *finite;   /* [n_batch]: the row's values are, as the cache holds them */
    float *x, *xn;     /* d_model: residual stream; normalised */
    float *q, *k, *v;  /* n_heads * head_dim; n_kv_heads * head_dim, twice */
    float *z;          /* n_heads * head_dim: attention heads joined */
    float *out;        /* d_model: attention's or the MLP's output */
    float *gate, *up;  /* d_ff */
    float *cos, *sin;  /* head_dim / 2 */
    float *att;        /* [n_threads, att_size] of qs_attend */
    size_t att_size, att_rows; /* of att_rows rows at most */
    float *head_x;     /* [QS_HEAD_ROWS, d_model] */
    float *head_y;     /* [QS_HEAD_ROWS, vocab_size] */
    qs_group *packed;  /* [groups of the widest input, n_batch or QS_HEAD_ROWS], for integer weights */
} qs_scratch;

typedef struct qs_captures qs_captures;
typedef struct qs_edits qs_edits;

struct qsae_ctx {
    const qsae_model *model;
    qsae_allocator alloc;
    size_t block; /* bytes of the one allocation, which starts with this struct */
    size_t written; /* of it, by qsae_ctx_create: all but the KV cache */
    int32_t n_ctx, n_batch;
    int32_t n_layers; /* that are run */
    int n_threads;
    size_t ctx16; /* n_ctx up to 16 */
    int32_t pos;
    int has_logits;
    int busy; /* an eval is running: its hook may not start another or change the lists */
    int32_t *tokens; /* [n_ctx] */
    qsae_kv_type kv_type;
    size_t kv_size; /* bytes of a number in the cache */
    uint8_t *keys, *values;
    float *logits;      /* [vocab_size up to 16] */
    uint8_t *site_mask; /* [n_layers]: bit site set if an edit, the hook or a capture waits there */
    uint8_t *apart_mask; /* [n_layers]: those that want the caller's thread, or all threads: the hook, whole encodes */
    qs_captures *captures; /* or NULL */
    qs_edits *edits;       /* or NULL */
    qsae_hook hook;
    qs_scratch scratch;
    const int32_t *ev_tokens; /* the eval in progress: [ev_n], of which ev_done are computed */
    size_t ev_n, ev_done;
};

static void qs_free_captures(qsae_ctx *c);
static void qs_free_edits(qsae_ctx *c);

/* Floats of a qs_att for n queries. The tile of a narrow cache is always there: a pass may bring any context. */
static size_t qs_att_floats(size_t n, size_t hd)
{
    size_t hd16 = qs_up16(hd);
    return qs_up16(n * (QS_ATT_TILE + 3 * hd16 + 3)) + QS_ATT_TILE * hd16;
}

static void qs_lay_scratch(qs_carve *c, const qsae_model *m, size_t n_batch, size_t n_threads,
                           qs_scratch *s)
{
    const qsae_model_info *i = &m->info;
    size_t d = qs_up16((size_t)i->d_model), hd = (size_t)i->head_dim, ff = qs_up16((size_t)i->d_ff);
    size_t dq = qs_up16((size_t)i->n_heads * hd), dkv = qs_up16((size_t)i->n_kv_heads * hd);
    size_t f = sizeof(float), rep = (size_t)(i->n_heads / i->n_kv_heads);
    s->rows = qs_cut(c, n_batch, sizeof *s->rows);
    s->blocks = qs_cut(c, n_batch, sizeof *s->blocks);
    s->finite = qs_cut(c, n_batch, sizeof *s->finite);
    s->x = qs_cut(c, n_batch * d, f);
    s->xn = qs_cut(c, n_batch * d, f);
    s->q = qs_cut(c, n_batch * dq, f);
    s->k = qs_cut(c, n_batch * dkv, f);
    s->v = qs_cut(c, n_batch * dkv, f);
    s->z = qs_cut(c, n_batch * dq, f);
    s->out = qs_cut(c, n_batch * d, f);
    s->gate = qs_cut(c, n_batch * ff, f);
    s->up = qs_cut(c, n_batch * ff, f);
    s->cos = qs_cut(c, n_batch * hd / 2, f);
    s->sin = qs_cut(c, n_batch * hd / 2, f);
    s->att_rows = qs_min(rep < QS_ATT_QUERIES ? QS_ATT_QUERIES / rep : 1, n_batch);
    s->att_size = qs_att_floats(s->att_rows * rep, hd);
    s->att = qs_cut(c, n_threads * s->att_size, f);
    s->head_x = qs_cut(c, QS_HEAD_ROWS * d, f);
    s->head_y = qs_cut(c, QS_HEAD_ROWS * m->head.np, f);
    size_t widest = d > dq ? d : dq, rows = n_batch > QS_HEAD_ROWS ? n_batch : QS_HEAD_ROWS;
    widest = ff > widest ? ff : widest;
    s->packed = qs_cut(c, m->integers ? rows * qs_groups(widest) : 0, sizeof *s->packed);
}

/* Lays c out from base (NULL: only adds up) and returns the bytes, or 0 on overflow. */
static size_t qs_lay_ctx(const qsae_model *m, char *base, qsae_ctx *c)
{
    const qsae_model_info *i = &m->info;
    qs_carve v = {base, 0, 0};
    size_t heads = (size_t)c->n_layers * (size_t)i->n_kv_heads, hd = (size_t)i->head_dim, cells;
    qs_cut(&v, 1, sizeof *c);
    c->ctx16 = qs_up16((size_t)c->n_ctx);
    c->tokens = qs_cut(&v, (size_t)c->n_ctx, sizeof *c->tokens);
    if (!qs_mul(heads * qs_up16(hd), c->ctx16, &cells)) return 0; /* heads * hd < 2^40 */
    c->logits = qs_cut(&v, m->head.np, sizeof(float));
    c->site_mask = qs_cut(&v, (size_t)i->n_layers, 1);
    c->apart_mask = qs_cut(&v, (size_t)i->n_layers, 1);
    qs_lay_scratch(&v, m, (size_t)c->n_batch, (size_t)c->n_threads, &c->scratch);
    c->written = v.used;
    c->keys = qs_cut(&v, heads * hd * c->ctx16, c->kv_size);
    c->values = qs_cut(&v, cells, c->kv_size);
    return v.overflow ? 0 : v.used;
}

/* Options with defaults filled in, into the fields of *c. */
static qsae_status qs_ctx_take_options(const qsae_model *m, const qsae_ctx_options *o, qsae_ctx *c,
                                       qsae_error *err)
{
    static const qsae_ctx_options defaults;
    qsae_status st;
    if (!m) return qs_fail(err, QSAE_E_ARG, 0, "model is NULL");
    if (m->info.n_layers == 0)
        return qs_fail(err, QSAE_E_STATE, 0, "the file has only a tokenizer, no weights: it cannot be run");
    if (!o) o = &defaults;
    c->model = m;
    c->n_ctx = o->n_ctx ? o->n_ctx : (int32_t)qs_min((size_t)m->info.max_positions, 4096);
    c->n_batch = o->n_batch ? o->n_batch : 64;
    c->n_threads = o->n_threads ? o->n_threads : 1;
    c->n_layers = o->n_layers ? o->n_layers : m->info.n_layers;
    if (c->n_layers < 1 || c->n_layers > m->info.n_layers)
        return qs_fail(err, QSAE_E_ARG, 0, "n_layers is %d, the model has %d", c->n_layers, m->info.n_layers);
    c->kv_type = o->kv_type;
    c->kv_size = o->kv_type == QSAE_KV_F32 ? 4 : 2;
    if (!qsae_kv_name(o->kv_type))
        return qs_fail(err, QSAE_E_ARG, 0, "kv_type %d is not a type of the KV cache", (int)o->kv_type);
    if (c->n_ctx < 1 || (uint32_t)c->n_ctx > QS_MAX_POS)
        return qs_fail(err, QSAE_E_ARG, 0, "n_ctx is %d, must be 1..%u", c->n_ctx, QS_MAX_POS);
    if (c->n_batch < 1 || c->n_batch > 65536)
        return qs_fail(err, QSAE_E_ARG, 0, "n_batch is %d, must be 1..65536", c->n_batch);
    if ((st = qs_check_threads(o->n_threads, err)) != QSAE_OK) return st;
    if (c->n_batch > c->n_ctx) c->n_batch = c->n_ctx;
    return qs_take_allocator(&o->allocator, &c->alloc, err);
}

const char *qsae_kv_name(qsae_kv_type type)
{
    static const char *const names[QSAE_KV_COUNT] = {"f32", "f16", "bf16"};
    return (unsigned)type < QSAE_KV_COUNT ? names[type] : NULL;
}

size_t qsae_ctx_size(const qsae_model *model, const qsae_ctx_options *options)
{
    qsae_ctx c;
    memset(&c, 0, sizeof c);
    if (qs_ctx_take_options(model, options, &c, NULL)) return 0;
    return qs_lay_ctx(model, NULL, &c);
}

qsae_status qsae_ctx_create(const qsae_model *model, const qsae_ctx_options *options, qsae_ctx **out,
                            qsae_error *err)
{
    if (!out) return qs_fail(err, QSAE_E_ARG, 0, "out is NULL");
    qsae_ctx c;
    memset(&c, 0, sizeof c);
    qsae_status st = qs_ctx_take_options(model, options, &c, err);
    if (st) return st;
    size_t size = qs_lay_ctx(model, NULL, &c);
    if (!size) return qs_fail(err, QSAE_E_LIMIT, 0, "a context of %d positions has no size", c.n_ctx);
    char *base = qs_alloc(&c.alloc, size);
    if (!base) return qs_fail(err, QSAE_E_NOMEM, 0, "no memory for a context of %zu bytes", size);
    c.block = size;
    qs_lay_ctx(model, base, &c);
    memset(base, 0, c.written);
    memcpy(base, &c, sizeof c);
    *out = (void *)base;
    return QSAE_OK;
}

void qsae_ctx_destroy(qsae_ctx *ctx)
{
    if (!ctx) return;
    qs_free_captures(ctx);
    qs_free_edits(ctx);
    qsae_allocator a = ctx->alloc;
    qs_release(&a, ctx, ctx->block);
}

/* Whether the pass goes on to the logits */
static int qs_has_head(const qsae_ctx *c) { return c->n_layers == c->model->info.n_layers; }

static qsae_status qs_check_idle(const qsae_ctx *c, qsae_error *err)
{
    if (!c) return qs_fail(err, QSAE_E_ARG, 0, "ctx is NULL");
    return c->busy ? qs_fail(err, QSAE_E_STATE, 0, "the context is in an eval: its hook may not change it")
                   : QSAE_OK;
}

qsae_status qsae_ctx_copy(qsae_ctx *dst, const qsae_ctx *src, qsae_error *err)
{
    qsae_status st = qs_check_idle(dst, err);
    if (st || (st = qs_check_idle(src, err)) != QSAE_OK) return st;
    if (dst == src) return QSAE_OK;
    if (dst->model != src->model) return qs_fail(err, QSAE_E_MISMATCH, 0, "the contexts have two models");
    if (src->pos > dst->n_ctx)
        return qs_fail(err, QSAE_E_MISMATCH, 0, "the source has %d positions, the target holds %d", src->pos,
                       dst->n_ctx);
    if (dst->kv_type != src->kv_type)
        return qs_fail(err, QSAE_E_MISMATCH, 0, "the source's KV cache is %s, the target's %s",
                       qsae_kv_name(src->kv_type), qsae_kv_name(dst->kv_type));
    if (dst->n_layers != src->n_layers)
        return qs_fail(err, QSAE_E_MISMATCH, 0, "the source runs %d layers, the target %d", src->n_layers,
                       dst->n_layers);
    const qsae_model_info *i = &src->model->info;
    size_t pos = (size_t)src->pos, hd = (size_t)i->head_dim, vb = qs_up16(hd) / 16;
    size_t heads = (size_t)src->n_layers * (size_t)i->n_kv_heads, to = dst->ctx16 * dst->kv_size,
           from = src->ctx16 * src->kv_size;
    for (size_t h = 0; h < heads; h++) {
        memcpy(dst->keys + h * hd * to, src->keys + h * hd * from, qs_up16(pos) * hd * src->kv_size);
        for (size_t b = h * vb; b < (h + 1) * vb; b++)
            memcpy(dst->values + b * 16 * to, src->values + b * 16 * from, pos * 16 * src->kv_size);
    }
    memcpy(dst->tokens, src->tokens, pos * sizeof *dst->tokens);
    memcpy(dst->logits, src->logits, src->model->head.np * sizeof(float));
    dst->has_logits = src->has_logits;
    dst->pos = src->pos;
    return QSAE_OK;
}

qsae_status qsae_ctx_rewind(qsae_ctx *ctx, int32_t pos, qsae_error *err)
{
    qsae_status st = qs_check_idle(ctx, err);
    if (st) return st;
    if (pos < 0 || pos > ctx->pos)
        return qs_fail(err, QSAE_E_ARG, 0, "cannot rewind to %d, the position is %d", pos, ctx->pos);
    if (pos < ctx->pos) ctx->has_logits = 0;
    ctx->pos = pos;
    return QSAE_OK;
}

int32_t qsae_ctx_pos(const qsae_ctx *ctx) { return ctx->pos; }
const int32_t *qsae_ctx_tokens(const qsae_ctx *ctx) { return ctx->tokens; }
const float *qsae_logits(const qsae_ctx *ctx) { return ctx->has_logits ? ctx->logits : NULL; }

/* ===================================================================================================
 * 19 Captures and hook (public)
 * =================================================================================================== */

struct qs_captures {
    size_t block; /* bytes of the allocation */
    size_t n;
    qsae_capture list[1]; /* [n] */
};

static void qs_free_captures(qsae_ctx *c)
{
    if (c->captures) qs_release(&c->alloc, c->captures, c->captures->block);
    c->captures = NULL;
}

static int qs_hook_wants(const qsae_hook *h, uint32_t site, int32_t layer)
{
    return h->fn && (h->sites >> site & 1) && layer >= h->layer_begin &&
           (!h->layer_end || layer < h->layer_end);
}

static void qs_mark_edits(const qsae_ctx *c); /* section 20 */

/* Rebuilds the one byte per layer that a pass looks at. */
static void qs_mark_sites(qsae_ctx *c)
{
    int32_t n = c->model->info.n_layers;
    for (int32_t l = 0; l < n; l++) {
        c->apart_mask[l] = 0;
        for (uint32_t s = 0; s < QSAE_SITE_COUNT; s++)
            if (qs_hook_wants(&c->hook, s, l)) c->apart_mask[l] |= (uint8_t)(1u << s);
        c->site_mask[l] = c->apart_mask[l];
    }
    for (size_t i = 0; c->captures && i < c->captures->n; i++) {
        const qsae_capture *p = &c->captures->list[i];
        if (p->site != QSAE_LOGITS) c->site_mask[p->layer] |= (uint8_t)(1u << p->site);
    }
    qs_mark_edits(c);
}

/* That a layer exists, and is run */
static qsae_status qs_check_layer(const qsae_ctx *c, const char *what, size_t i, int32_t layer, qsae_error *err)
{
    int32_t n = c->model->info.n_layers;
    if (layer < 0 || layer >= n)
        return qs_fail(err, QSAE_E_ARG, 0, "%s %zu: layer %d, the model has %d", what, i, layer, n);
    if (layer >= c->n_layers)
        return qs_fail(err, QSAE_E_ARG, 0, "%s %zu: layer %d, the context runs %d", what, i, layer, c->n_layers);
    return QSAE_OK;
}

static qsae_status qs_check_place(const qsae_ctx *c, const char *what, size_t i, qsae_site site,
                                  int32_t layer, qsae_error *err)
{
    if ((unsigned)site >= QSAE_SITE_COUNT)
        return qs_fail(err, QSAE_E_ARG, 0, "%s %zu: %d is not a site", what, i, (int)site);
    return qs_check_layer(c, what, i, layer, err);
}

qsae_status qsae_set_captures(qsae_ctx *ctx, const qsae_capture *list, size_t n, qsae_error *err)
{
    qsae_status st = qs_check_idle(ctx, err);
    if (st) return st;
    if (!list && n) return qs_fail(err, QSAE_E_ARG, 0, "captures: list is NULL");
    for (size_t i = 0; i < n; i++) {
        if (!list[i].rows) return qs_fail(err, QSAE_E_ARG, 0, "capture %zu: rows is NULL", i);
        if (list[i].site == QSAE_LOGITS) {
            if (list[i].layer)
                return qs_fail(err, QSAE_E_ARG, 0, "capture %zu: logits have layer 0, not %d", i,
                               list[i].layer);
            if (!qs_has_head(ctx))
                return qs_fail(err, QSAE_E_ARG, 0, "capture %zu: no logits, the context runs %d of %d layers", i,
                               ctx->n_layers, ctx->model->info.n_layers);
            continue;
        }
        st = qs_check_place(ctx, "capture", i, list[i].site, list[i].layer, err);
        if (st) return st;
    }
    qs_captures *c = NULL;
    if (n) {
        size_t size;
        if (!qs_mul(n, sizeof *list, &size) || !qs_add(size, sizeof *c, &size) ||
            !(c = qs_alloc(&ctx->alloc, size)))
            return qs_fail(err, QSAE_E_NOMEM, 0, "no memory for %zu captures", n);
        c->block = size;
        c->n = n;
        memcpy(c->list, list, n * sizeof *list);
    }
    qs_free_captures(ctx);
    ctx->captures = c;
    qs_mark_sites(ctx);
    return QSAE_OK;
}

qsae_status qsae_set_hook(qsae_ctx *ctx, const qsae_hook *hook, qsae_error *err)
{
    static const qsae_hook none;
    qsae_status st = qs_check_idle(ctx, err);
    if (st) return st;
    if (!hook) hook = &none;
    if (hook->sites >> QSAE_SITE_COUNT)
        return qs_fail(err, QSAE_E_ARG, 0, "hook: sites 0x%x has a bit that is not a site", hook->sites);
    if (hook->layer_begin < 0 || hook->layer_end < 0)
        return qs_fail(err, QSAE_E_ARG, 0, "hook: layers %d..%d", hook->layer_begin, hook->layer_end);
    ctx->hook = *hook;
    qs_mark_sites(ctx);
    return QSAE_OK;
}

/* ===================================================================================================
 * 20 Edits (public)
 *
 * A list becomes two tables. A *slot* is a value read per row: a feature's activation or a probe's product;
 * edits and gates of one feature share one. An *item* is one edit. When a pass reaches a site, first the
 * slots of the site are filled from the untouched rows, then the items of the site act in list order.
 * =================================================================================================== */

typedef struct qs_slot {
    const qsae_sae *sae; /* a feature, or NULL: a probe */
    uint32_t feature;
    const float *probe;  /* [width up to 16] */
    uint32_t site;
    int32_t layer;
    float *value;        /* [n_batch] as read */
    float *current;      /* [n_batch] after the edits so far */
    float *scale;        /* [n_batch] of the decoder row (per-token norm) */
} qs_slot;

typedef struct qs_item {
    qsae_edit_kind kind;
    float strength, value;
    int32_t pos_begin, pos_end;
    uint32_t site; /* where it acts */
    int32_t layer;
    const qsae_sae *sae;
    const float *vector; /* [width up to 16] */
    double square;       /* v.v */
    qs_slot *slot, *gate; /* or NULL */
    float threshold;
    float *recon; /* SAE_REPLACE by a transcoder: [n_batch, out_ld up to 16], made at the read site */
} qs_item;

struct qs_edits {
    size_t block; /* bytes of the allocation */
    size_t n_slots, n_items;
    qs_slot *slots;
    qs_item *items;
    void *scratch; /* of the largest SAE, for QS_SAE_ROWS rows */
    size_t scratch_size;
    float *row; /* [widest out_ld up to 16]: one reconstruction */
};

static void qs_free_edits(qsae_ctx *c)
{
    if (c->edits) qs_release(&c->alloc, c->edits, c->edits->block);
    c->edits = NULL;
}

static int qs_is_vector_kind(qsae_edit_kind k)
{
    return k == QSAE_ADD || k == QSAE_PROJECT_OUT || k == QSAE_REPLACE;
}

static void qs_mark_edits(const qsae_ctx *c)
{
    const qs_edits *e = c->edits;
    for (size_t i = 0; e && i < e->n_slots; i++) {
        const qs_slot *t = &e->slots[i];
        c->site_mask[t->layer] |= (uint8_t)(1u << t->site);
        if (t->sae && qs_selects(t->sae)) c->apart_mask[t->layer] |= (uint8_t)(1u << t->site);
    }
    for (size_t i = 0; e && i < e->n_items; i++) {
        const qs_item *t = &e->items[i];
        c->site_mask[t->layer] |= (uint8_t)(1u << t->site);
        if (t->kind == QSAE_SAE_REPLACE && !t->recon) c->apart_mask[t->layer] |= (uint8_t)(1u << t->site);
        if (!t->recon) continue;
        c->site_mask[t->sae->info.layer_in] |= (uint8_t)(1u << t->sae->info.site_in);
        c->apart_mask[t->sae->info.layer_in] |= (uint8_t)(1u << t->sae->info.site_in);
    }
}

qsae_edit qsae_edit_feature(const qsae_sae *sae, uint32_t feature, qsae_edit_kind kind, float value)
{
    qsae_edit e;
    memset(&e, 0, sizeof e);
    e.kind = kind;
    e.strength = 1.0f;
    e.value = value;
    e.sae = sae;
    e.feature = feature;
    return e;
}

/* ---- validation ---- */

static qsae_status qs_check_edit_sae(const qsae_ctx *c, size_t i, const qsae_sae *s, uint32_t feature,
                                     qsae_error *err)
{
    const qsae_sae_info *f = &s->info;
    const qsae_model *m = c->model;
    if (f->layer_in >= m->info.n_layers || f->layer_out >= m->info.n_layers)
        return qs_fail(err, QSAE_E_MISMATCH, 0, "edit %zu: the SAE is of layer %d, the model has %d", i,
                       f->layer_out, m->info.n_layers);
    qsae_status st = qs_check_layer(c, "SAE of edit", i, f->layer_out > f->layer_in ? f->layer_out : f->layer_in, err);
    if (st) return st;
    size_t in = qsae_site_width(m, f->site_in), out = qsae_site_width(m, f->site_out);
    if (s->d_in != in || s->d_out != out)
        return qs_fail(err, QSAE_E_MISMATCH, 0, "edit %zu: the SAE maps %zu to %zu, the model's sites are %zu and %zu",
                       i, s->d_in, s->d_out, in, out);
    if (feature >= s->d_sae)
        return qs_fail(err, QSAE_E_ARG, 0, "edit %zu: feature %u, d_sae is %zu", i, feature, s->d_sae);
    return QSAE_OK;
}

/* Where an edit acts. */
static void qs_edit_place(const qsae_edit *e, uint32_t *site, int32_t *layer)
{
    int vector = qs_is_vector_kind(e->kind);
    *site = (uint32_t)(vector ? e->site : e->sae->info.site_out);
    *layer = vector ? e->layer : e->sae->info.layer_out;
}

static qsae_status qs_check_gate(const qsae_ctx *c, size_t i, const qsae_edit *e, qsae_error *err)
{
    const qsae_gate *g = &e->gate;
    if (!g->sae && !g->probe) return QSAE_OK;
    if (g->sae && g->probe) return qs_fail(err, QSAE_E_ARG, 0, "edit %zu: the gate has an SAE and a probe", i);
    if (!qs_finite(g->threshold))
        return qs_fail(err, QSAE_E_NUM, 0, "edit %zu: the gate's threshold is not finite", i);
    uint32_t site, at = g->sae ? (uint32_t)g->sae->info.site_in : (uint32_t)g->site;
    int32_t layer, at_layer = g->sae ? g->sae->info.layer_in : g->layer;
    qsae_status st = g->sae ? qs_check_edit_sae(c, i, g->sae, g->feature, err)
                            : qs_check_place(c, "gate of edit", i, g->site, g->layer, err);
    if (st) return st;
    if (g->probe && !qs_all_finite(g->probe, qsae_site_width(c->model, g->site)))
        return qs_fail(err, QSAE_E_NUM, 0, "edit %zu: the gate's probe is not finite", i);
    qs_edit_place(e, &site, &layer);
    if (qs_site_before((uint32_t)layer, site, (uint32_t)at_layer, at))
        return qs_fail(err, QSAE_E_ARG, 0, "edit %zu: acts at %s of layer %d, before its gate is read (%s of %d)",
                       i, QS_SITE_NAMES[site], layer, QS_SITE_NAMES[at], at_layer);
    return QSAE_OK;
}

static qsae_status qs_check_edit(const qsae_ctx *c, size_t i, const qsae_edit *e, qsae_error *err)
{
    qsae_status st;
    if (e->kind < QSAE_ADD || e->kind > QSAE_SAE_REPLACE)
        return qs_fail(err, QSAE_E_ARG, 0, "edit %zu: %d is not a kind", i, (int)e->kind);
    if (!qs_finite(e->strength) || !qs_finite(e->value))
        return qs_fail(err, QSAE_E_NUM, 0, "edit %zu: strength or value is not finite", i);
    if (e->pos_begin < 0 || e->pos_end < 0 || (e->pos_end && e->pos_end < e->pos_begin))
        return qs_fail(err, QSAE_E_ARG, 0, "edit %zu: positions %d..%d", i, e->pos_begin, e->pos_end);
    if (qs_is_vector_kind(e->kind)) {
        if (!e->vector) return qs_fail(err, QSAE_E_ARG, 0, "edit %zu: vector is NULL", i);
        if ((st = qs_check_place(c, "edit", i, e->site, e->layer, err)) != QSAE_OK) return st;
        if (!qs_all_finite(e->vector, qsae_site_width(c->model, e->site)))
            return qs_fail(err, QSAE_E_NUM, 0, "edit %zu: the vector is not finite", i);
    } else {
        if (!e->sae) return qs_fail(err, QSAE_E_ARG, 0, "edit %zu: sae is NULL", i);
        uint32_t feature = e->kind == QSAE_SAE_REPLACE ? 0 : e->feature;
        if ((st = qs_check_edit_sae(c, i, e->sae, feature, err)) != QSAE_OK) return st;
    }
    return qs_check_gate(c, i, e, err);
}

/* ---- building the tables ---- */

static float *qs_copy_vector(qs_carve *c, const float *v, size_t width)
{
    size_t padded = qs_up16(width);
    float *to = qs_cut(c, padded, sizeof *to);
    if (!c->base) return NULL;
    memset(to, 0, padded * sizeof *to);
    memcpy(to, v, width * sizeof *to);
    return to;
}

/* The slot of (sae, feature) or of a probe, new if there is none. n_batch values each. */
static qs_slot *qs_take_slot(qs_edits *e, qs_carve *c, const qsae_model *m, size_t n_batch,
                             const qsae_sae *sae, uint32_t feature, const qsae_gate *probe)
{
    for (size_t i = 0; sae && c->base && i < e->n_slots; i++)
        if (e->slots[i].sae == sae && e->slots[i].feature == feature) return &e->slots[i];
    qs_slot s;
    memset(&s, 0, sizeof s);
    s.sae = sae;
    s.feature = feature;
    s.site = (uint32_t)(sae ? sae->info.site_in : probe->site);
    s.layer = sae ? sae->info.layer_in : probe->layer;
    if (!sae) s.probe = qs_copy_vector(c, probe->probe, qsae_site_width(m, probe->site));
    s.value = qs_cut(c, n_batch, sizeof *s.value);
    s.current = qs_cut(c, n_batch, sizeof *s.current);
    s.scale = qs_cut(c, n_batch, sizeof *s.scale);
    e->n_slots++;
    if (!c->base) return NULL;
    e->slots[e->n_slots - 1] = s;
    return &e->slots[e->n_slots - 1];
}

static void qs_build_item(qs_edits *e, qs_carve *c, const qsae_ctx *ctx, const qsae_edit *d)
{
    const qsae_model *m = ctx->model;
    size_t n_batch = (size_t)ctx->n_batch;
    qs_item t;
    memset(&t, 0, sizeof t);
    t.kind = d->kind;
    t.strength = d->strength;
    t.value = d->value;
    t.pos_begin = d->pos_begin;
    t.pos_end = d->pos_end == QSAE_END ? INT32_MAX : d->pos_end;
    qs_edit_place(d, &t.site, &t.layer);
    t.threshold = d->gate.threshold;
    if (qs_is_vector_kind(d->kind)) {
        size_t width = qsae_site_width(m, d->site);
        float *v = qs_copy_vector(c, d->vector, width);
        t.vector = v;
        if (v) t.square = qs_dot_double(v, v, width);
    } else {
        t.sae = d->sae;
        if (d->kind != QSAE_SAE_REPLACE)
            t.slot = qs_take_slot(e, c, m, n_batch, d->sae, d->feature, NULL);
        else if (d->sae->info.is_transcoder)
            t.recon = qs_cut(c, n_batch * qs_up16(d->sae->out_ld), sizeof *t.recon);
    }
    if (d->gate.sae || d->gate.probe)
        t.gate = qs_take_slot(e, c, m, n_batch, d->gate.sae, d->gate.feature, &d->gate);
    if (c->base) e->items[e->n_items] = t;
    e->n_items++;
}

/* Lays the tables out from base (NULL: only adds up) and returns the bytes, 0 on overflow. */
static size_t qs_build_edits(char *base, const qsae_ctx *ctx, const qsae_edit *list, size_t n)
{
    qs_carve c = {base, 0, 0};
    qs_edits sum, *e = qs_cut(&c, 1, sizeof *e);
    if (!e) e = &sum;
    memset(e, 0, sizeof *e);
    e->items = qs_cut(&c, n, sizeof *e->items);
    e->slots = qs_cut(&c, n, 2 * sizeof *e->slots); /* at most a feature and a gate each */
    size_t widest = 0;
    for (size_t i = 0; i < n; i++) {
        const qsae_sae *of[2] = {qs_is_vector_kind(list[i].kind) ? NULL : list[i].sae, list[i].gate.sae};
        for (int j = 0; j < 2; j++) {
            size_t size = of[j] ? qsae_sae_scratch_size(of[j], QS_SAE_ROWS) : 0;
            if (size > e->scratch_size) e->scratch_size = size;
            if (of[j] && of[j]->out_ld > widest) widest = of[j]->out_ld;
        }
        qs_build_item(e, &c, ctx, &list[i]);
    }
    e->scratch = qs_cut(&c, e->scratch_size, 1);
    e->row = qs_cut(&c, qs_up16(widest), sizeof *e->row);
    e->block = c.used;
    return c.overflow ? 0 : c.used;
}

qsae_status qsae_set_edits(qsae_ctx *ctx, const qsae_edit *list, size_t n, qsae_error *err)
{
    qsae_status st = qs_check_idle(ctx, err);
    if (st) return st;
    if (!list && n) return qs_fail(err, QSAE_E_ARG, 0, "edits: list is NULL");
    for (size_t i = 0; i < n; i++)
        if ((st = qs_check_edit(ctx, i, &list[i], err)) != QSAE_OK) return st;
    char *base = NULL;
    size_t size = 0;
    if (n) {
        size = qs_build_edits(NULL, ctx, list, n);
        base = size ? qs_alloc(&ctx->alloc, size) : NULL;
        if (!base) return qs_fail(err, QSAE_E_NOMEM, 0, "no memory for %zu edits (%zu bytes)", n, size);
        memset(base, 0, size);
        qs_fp_state fp = qs_fp_enter();
        qs_build_edits(base, ctx, list, n);
        qs_fp_leave(fp);
        ((qs_edits *)(void *)base)->block = size; /* shared slots use less than was added up */
    }
    qs_free_edits(ctx);
    ctx->edits = (void *)base;
    qs_mark_sites(ctx);
    return QSAE_OK;
}

/* ---- acting: rows h [n, ld] of one context at one site ---- */

/* Reads the features of one SAE for nt <= QS_SAE_ROWS rows, into every slot of that SAE. */
static qsae_status qs_read_features(qs_edits *e, const qsae_sae *s, const float *h, size_t ld, size_t nt,
                                    size_t first, int n_threads, qsae_error *err)
{
    qs_sae_scratch w;
    qs_row_norm m[QS_SAE_ROWS];
    float dot[QS_SAE_ROWS];
    uint64_t unused = 0;
    int all = qs_selects(s);
    qsae_status st = qs_take_scratch(s, QS_SAE_ROWS, e->scratch, e->scratch_size, &w, err);
    if (st) return st;
    if (all && (st = qs_encode_rows(s, h, ld, nt, first, &w, m, &unused, n_threads, err)) != QSAE_OK) return st;
    for (size_t t = 0; !all && t < nt; t++) m[t] = qs_normalize(s, h + t * ld, w.x + t * s->in_ld);
    for (size_t i = 0; i < e->n_slots; i++) {
        qs_slot *slot = &e->slots[i];
        if (slot->sae != s) continue;
        if (!all)
            s->kernels->dots[s->enc_type](s->enc + slot->feature * s->enc_row, s->enc_row, 1, s->in_ld, w.x,
                                          s->in_ld, nt, dot, 1);
        for (size_t t = 0; t < nt; t++) {
            if (!all && !qs_finite(dot[t]))
                return qs_fail(err, QSAE_E_NUM, 0, "%s of layer %d is not finite where feature %u reads it",
                               QS_SITE_NAMES[slot->site], slot->layer, slot->feature);
            float f = all ? w.z[t * qs_up16(s->d_sae) + slot->feature] : qs_feature_value(s, slot->feature, dot[t]);
            slot->value[first + t] = slot->current[first + t] = f;
            slot->scale[first + t] = m[t].out;
        }
    }
    return QSAE_OK;
}

/* Reconstructions of nt <= QS_SAE_ROWS rows into y [nt, y_ld]. */
static qsae_status qs_reconstruct(qs_edits *e, const qsae_sae *s, const float *h, size_t ld, size_t nt,
                                  float *y, size_t y_ld, int n_threads, qsae_error *err)
{
    qs_sae_scratch w;
    qs_row_norm m[QS_SAE_ROWS];
    qsae_status st = qs_take_scratch(s, QS_SAE_ROWS, e->scratch, e->scratch_size, &w, err);
    uint64_t unused = 0;
    if (st || (st = qs_encode_rows(s, h, ld, nt, 0, &w, m, &unused, n_threads, err)) != QSAE_OK) return st;
    for (size_t t = 0; t < nt; t++) {
        qs_decode_begin(s, &w);
        for (size_t i = 0; i < s->d_sae; i++)
            if (w.z[t * qs_up16(s->d_sae) + i] != 0.0f)
                qs_decode_add(s, i, w.z[t * qs_up16(s->d_sae) + i], &w);
        qs_decode_end(s, h + t * ld, m[t], &w);
        memcpy(y + t * y_ld, w.y, s->d_out * sizeof *y);
    }
    return QSAE_OK;
}

/* Fills the slots that are read here, and what a transcoder will put in place of a later site. */
static qsae_status qs_read_slots(qsae_ctx *c, uint32_t site, int32_t layer, const float *h, size_t ld,
                                 size_t n, int n_threads, qsae_error *err)
{
    qs_edits *e = c->edits;
    qsae_status st = QSAE_OK;
    for (size_t i = 0; i < e->n_slots; i++) {
        qs_slot *s = &e->slots[i];
        if (s->site != site || s->layer != layer) continue;
        size_t same = 0; /* an earlier slot of the same SAE has read this one too */
        while (e->slots[same].sae != s->sae) same++;
        if (!s->sae)
            c->model->kernels->dots[QSAE_TYPE_F32](
                s->probe, 0, 1, qs_up16(qsae_site_width(c->model, (qsae_site)site)), h, ld, n, s->value, 1);
        else if (same == i)
            for (size_t r = 0; !st && r < n; r += QS_SAE_ROWS)
                st = qs_read_features(e, s->sae, h + r * ld, ld, qs_min(QS_SAE_ROWS, n - r), r, n_threads,
                                      err);
        if (st) return st;
    }
    for (size_t i = 0; i < e->n_items; i++) {
        qs_item *t = &e->items[i];
        if (!t->recon || (uint32_t)t->sae->info.site_in != site || t->sae->info.layer_in != layer) continue;
        size_t y_ld = qs_up16(t->sae->out_ld);
        for (size_t r = 0; !st && r < n; r += QS_SAE_ROWS)
            st = qs_reconstruct(e, t->sae, h + r * ld, ld, qs_min(QS_SAE_ROWS, n - r), t->recon + r * y_ld,
                                y_ld, n_threads, err);
        if (st) return st;
    }
    return QSAE_OK;
}

/* The value that an edit gives a feature whose value is a. */
static float qs_edited_value(const qs_item *t, float a)
{
    switch (t->kind) {
    case QSAE_FEATURE_ADD: return a + t->value;
    case QSAE_FEATURE_SET: return t->value;
    case QSAE_FEATURE_SCALE: return a * t->value;
    case QSAE_FEATURE_MIN: return a < t->value ? t->value : a;
    case QSAE_FEATURE_MAX: return a > t->value ? t->value : a;
    default: return a;
    }
}

/* h += strength * (edited - current) * decoder row */
static void qs_apply_feature(const qs_item *t, size_t row, float *h)
{
    const qsae_sae *s = t->sae;
    float a = t->slot->current[row], g = qs_edited_value(t, a);
    float change = t->kind == QSAE_FEATURE_ADD ? t->value : g - a;
    change = change * t->strength;
    t->slot->current[row] = t->strength == 1.0f ? g : a + change;
    change = change * t->slot->scale[row];
    if (change != 0.0f)
        s->kernels->axpy[s->dec_type](change, s->dec + t->slot->feature * s->dec_row, qs_up16(s->d_out), h);
}

/* h += strength * (y - h), and exactly y at strength 1 */
static void qs_apply_replace(float strength, const float *y, size_t width, float *h)
{
    if (strength == 1.0f) memcpy(h, y, width * sizeof *h);
    else
        for (size_t j = 0; j < width; j++)
            if (y[j] != h[j]) h[j] = h[j] + strength * (y[j] - h[j]);
}

/* h -= strength * v (v.h)/(v.v), in double: v may be of any length */
static void qs_apply_project_out(const qs_item *t, size_t width, float *h)
{
    double c = (double)t->strength * (qs_dot_double(t->vector, h, width) / t->square);
    for (size_t j = 0; c != 0 && j < width; j++) h[j] = (float)((double)h[j] - c * (double)t->vector[j]);
}

static qsae_status qs_apply_item(qsae_ctx *c, qs_item *t, size_t row, float *h, size_t width,
                                 int n_threads, qsae_error *err)
{
    switch (t->kind) {
    case QSAE_ADD:
        if (t->square != 0)
            c->model->kernels->axpy[QSAE_TYPE_F32](t->strength, t->vector, qs_up16(width), h);
        return QSAE_OK;
    case QSAE_PROJECT_OUT:
        if (t->square != 0) qs_apply_project_out(t, width, h);
        return QSAE_OK;
    case QSAE_REPLACE:
        qs_apply_replace(t->strength, t->vector, width, h);
        return QSAE_OK;
    case QSAE_SAE_REPLACE: {
        const float *y = t->recon ? t->recon + row * qs_up16(t->sae->out_ld) : NULL;
        if (!y) { /* of the row as the edits before this one left it */
            y = c->edits->row;
            qsae_status st = qs_reconstruct(c->edits, t->sae, h, 0, 1, c->edits->row, 0, n_threads, err);
            if (st) return st;
        }
        qs_apply_replace(t->strength, y, width, h);
        return QSAE_OK;
    }
    default:
        qs_apply_feature(t, row, h);
        return QSAE_OK;
    }
}

/* All edits of a site on rows h [n, width], ld apart, of positions pos.. */
static qsae_status qs_apply_edits(qsae_ctx *c, uint32_t site, int32_t layer, int32_t pos, float *h, size_t n,
                                  size_t width, size_t ld, int n_threads, qsae_error *err)
{
    qsae_status st = qs_read_slots(c, site, layer, h, ld, n, n_threads, err);
    if (st) return st;
    for (size_t i = 0; i < c->edits->n_items; i++) {
        qs_item *t = &c->edits->items[i];
        if (t->site != site || t->layer != layer || t->strength == 0.0f) continue;
        for (size_t r = 0; r < n; r++) {
            int32_t p = pos + (int32_t)r;
            if (p < t->pos_begin || p >= t->pos_end) continue;
            if (t->gate && !(t->gate->value[r] > t->threshold)) continue;
            if ((st = qs_apply_item(c, t, r, h + r * ld, width, n_threads, err)) != QSAE_OK) return st;
        }
    }
    return QSAE_OK;
}

/* ===================================================================================================
 * 21 Transformer: one pass over a batch of rows (public)
 *
 * A pass takes up to n_batch tokens, of one context or of many, through all layers. Rows never meet except
 * in the weights they share and in their own context's cache. Source: transformers modeling_qwen3.py.
 * =================================================================================================== */

/* A pass is a row of jobs (section 4). Steps of single rows are gathered until one needs all rows, or a site is
 * looked at: then they run as one job, each row through all of them. */
enum { QS_MOST_ROW_STEPS = 8 };

typedef struct qs_product {
    const qs_mat *w;
    float *y; /* [n, w->np] */
} qs_product;

typedef struct qs_pass {
    const qsae_model *m;
    qs_scratch *s;
    size_t n; /* rows */
    size_t n_blocks;
    int n_threads;
    qsae_error *err;
    int32_t layer, n_layers; /* the present one; that are run */
    size_t step;       /* the next of qs_steps */
    qsae_status status;
    uint8_t row_steps[QS_MOST_ROW_STEPS], run_steps[QS_MOST_ROW_STEPS]; /* gathered; of the job */
    size_t n_row_steps, n_run_steps;
    qs_product list[3];     /* of the present product */
    size_t n_list, n_x;     /* matrices; rows of x */
    const float *x;
    size_t of[QS_HEAD_ROWS], n_head, head_next; /* rows whose logits are computed; the first not looked at */
} qs_pass;

/* ---- y = W x for up to three matrices of one input ---- */

#define QS_GRAIN ((size_t)12) /* blocks of 16 outputs that kernels take side by side at best */

/* y [n, w->np] = x W, of blocks b0 .. b1 - 1; x [n, kp], or packed for integer weights */
static void qs_mat_mul(const qs_kernels *k, const qs_mat *w, size_t b0, size_t b1, const float *x,
                       const qs_group *packed, size_t n, float *y)
{
    const uint8_t *from = w->w + b0 * w->block;
    if (qs_mat_integer(w))
        k->mmq[w->type == QSAE_TYPE_Q4](from, w->block, b1 - b0, qs_groups(w->k), packed, n, y + 16 * b0, w->np);
    else k->mm[w->type](from, w->block, b1 - b0, w->kp, x, w->kp, n, y + 16 * b0, w->np);
}

static void qs_product_task(void *arg, size_t lo, size_t hi, size_t thread)
{
    const qs_pass *p = arg;
    (void)thread;
    for (size_t i = 0, first = 0; i < p->n_list; i++) {
        const qs_mat *w = p->list[i].w;
        size_t nb = w->np / 16, b0 = lo > first ? lo - first : 0, b1 = hi > first ? hi - first : 0;
        b1 = qs_min(b1, nb);
        if (b0 < b1) qs_mat_mul(p->m->kernels, w, b0, b1, p->x, p->s->packed, p->n_x, p->list[i].y);
        first += nb;
    }
}

static void qs_add_product(qs_pass *p, const qs_mat *w, float *y)
{
    qs_product one = {w, y};
    p->list[p->n_list++] = one;
}

/* The job of p->list with x [n, kp], which has been packed; every matrix has the same number of columns. */
static void qs_product_job(qs_pass *p, const float *x, size_t n, qs_job *job)
{
    p->x = x;
    p->n_x = n;
    job->task = qs_product_task;
    for (size_t i = 0; i < p->n_list; i++) job->units += p->list[i].w->np / 16;
    job->cost = 16 * p->list[0].w->kp * n;
    job->grain = QS_GRAIN;
}

/* ---- steps of a row ---- */

/* Token row into x; sines and cosines of its position: the angle is rounded to float32 first, as the reference
 * does. */
static void qs_embed_row(const qs_pass *p, size_t r)
{
    const qs_mat *e = &p->m->embed;
    const qs_row *row = &p->s->rows[r];
    size_t half = (size_t)p->m->info.head_dim / 2;
    for (size_t k = 0; k < e->k; k++) p->s->x[r * e->kp + k] = qs_mat_at(e, (size_t)row->token, k);
    for (size_t i = 0; i < half; i++) {
        double s, c;
        float angle = (float)row->pos * p->m->rope[i];
        qs_sincos(angle, &s, &c);
        p->s->sin[r * half + i] = (float)s;
        p->s->cos[r * half + i] = (float)c;
    }
}

/* x += out */
static void qs_add_row(const qs_pass *p, size_t r)
{
    size_t ld = qs_up16((size_t)p->m->info.d_model);
    float *x = p->s->x + r * ld;
    const float *out = p->s->out + r * ld;
    for (size_t j = 0; j < ld; j++) x[j] = x[j] + out[j];
}

/* xn = norm(x) */
static void qs_norm_row(const qs_pass *p, const float *w, size_t r)
{
    size_t d = (size_t)p->m->info.d_model, ld = qs_up16(d);
    qs_rms_norm(p->s->x + r * ld, w, d, p->m->info.rms_eps, p->s->xn + r * ld);
}

/* Row r of x [n, width] as the integer matrices of this model want it, into the scratch. */
static void qs_pack_row(const qs_pass *p, const float *x, size_t width, size_t n, size_t r)
{
    if (p->m->integers) p->m->kernels->pack(x + r * width, width, p->s->packed + r, n);
}

/* One head: normalise, then rotate dimension i with i + half. x [head_dim] in place. */
static void qs_norm_rotate(float *x, const float *w, size_t hd, float eps, const float *cos,
                           const float *sin)
{
    size_t half = hd / 2;
    qs_rms_norm(x, w, hd, eps, x);
    for (size_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = b * cos[i] + a * sin[i];
    }
}

/* x [n] into the cache: x[i] to number at + place(i), which is 16 i for keys, and 16-blocks `block` apart for values.
 * Returns 0 if values are not all finite there. */
static int qs_kv_put(const qsae_ctx *c, uint8_t *cache, size_t at, size_t block, const float *x, size_t n)
{
    int finite = 1;
    if (c->kv_type == QSAE_KV_F32) {
        float *to = (float *)(void *)cache + at;
        for (size_t i = 0; block && i < n; i += 16) memcpy(to + i / 16 * block, x + i, qs_min(16, n - i) * sizeof *x);
        for (size_t i = 0; !block && i < n; i++) to[16 * i] = x[i];
        return !block || qs_all_finite(x, n); /* nobody asks it of keys */
    }
    for (size_t i = 0; i < n; i++) {
        size_t to = at + (block ? i / 16 * block + i % 16 : 16 * i);
        uint16_t h = c->kv_type == QSAE_KV_F16 ? qs_f32_f16(x[i]) : qs_f32_bf16(x[i]);
        memcpy(cache + 2 * to, &h, 2);
        finite &= c->kv_type == QSAE_KV_F16 ? (h & 0x7C00) != 0x7C00 : (h & 0x7F80) != 0x7F80;
    }
    return finite;
}

/* The lanes after position pos in its block of 16 keys hold zeros: kernels read whole blocks. */
static void qs_clear_lanes(const qsae_ctx *c, size_t head, size_t hd, size_t pos)
{
    size_t at = head * hd * c->ctx16 + pos / 16 * 16 * hd, lane = pos % 16 + 1;
    for (size_t d = 0; d < hd && lane < 16; d++)
        memset(c->keys + (at + 16 * d + lane) * c->kv_size, 0, (16 - lane) * c->kv_size);
}

/* k and v of row r into the cache */
static void qs_cache_row(const qs_pass *p, size_t r)
{
    const qsae_model_info *i = &p->m->info;
    const qs_layer *y = &p->m->layers[p->layer];
    qsae_ctx *c = p->s->rows[r].ctx;
    size_t hd = (size_t)i->head_dim, vb = qs_up16(hd) / 16, n_kv = (size_t)i->n_kv_heads;
    size_t pos = (size_t)p->s->rows[r].pos;
    const float *k = p->s->k + r * y->k.np, *v = p->s->v + r * y->v.np;
    int last = r + 1 == p->n || p->s->rows[r + 1].ctx != c, finite = 1;
    for (size_t h = 0; h < n_kv; h++) {
        size_t head = (size_t)p->layer * n_kv + h;
        size_t keys = head * hd * c->ctx16 + pos / 16 * 16 * hd + pos % 16;
        size_t values = head * vb * 16 * c->ctx16 + pos * 16;
        qs_kv_put(c, c->keys, keys, 0, k + h * hd, hd);
        finite &= qs_kv_put(c, c->values, values, 16 * c->ctx16, v + h * hd, hd);
        if (last) qs_clear_lanes(c, head, hd, pos);
        if (hd % 16)
            memset(c->values + (values + (vb - 1) * 16 * c->ctx16 + hd % 16) * c->kv_size, 0, (16 - hd % 16) * c->kv_size);
    }
    p->s->finite[r] = (uint8_t)finite;
}

/* q and k of row r: norm and rotation; k and v into the cache */
static void qs_rope_row(const qs_pass *p, size_t r)
{
    const qsae_model_info *i = &p->m->info;
    const qs_layer *y = &p->m->layers[p->layer];
    size_t hd = (size_t)i->head_dim;
    const float *cos = p->s->cos + r * hd / 2, *sin = p->s->sin + r * hd / 2;
    float *q = p->s->q + r * y->q.np, *k = p->s->k + r * y->k.np;
    for (size_t h = 0; h < (size_t)i->n_heads; h++)
        qs_norm_rotate(q + h * hd, y->q_norm, hd, i->rms_eps, cos, sin);
    for (size_t h = 0; h < (size_t)i->n_kv_heads; h++)
        qs_norm_rotate(k + h * hd, y->k_norm, hd, i->rms_eps, cos, sin);
    qs_cache_row(p, r);
}

/* ---- attention ---- */

/* The queries of some rows that share a kv head, row by row. */
typedef struct qs_att {
    size_t rep, n;     /* queries of a row; rows */
    size_t hd, hd16;
    const float *q;    /* [n rep, head_dim] */
    float *own_q;      /* memory for them */
    float *s;          /* [n rep, QS_ATT_TILE] scores, then probabilities */
    float *acc;        /* [n rep, hd16] */
    float *part;       /* the same, of one tile */
    float *max, *sum, *carry; /* [n rep] */
    float *wide;       /* keys or values of a narrow cache: [QS_ATT_TILE, hd16] at most */
} qs_att;

static void qs_att_lay(qs_att *a, float *scratch, size_t most)
{
    a->s = scratch;
    a->own_q = a->s + most * QS_ATT_TILE;
    a->acc = a->own_q + most * a->hd16;
    a->part = a->acc + most * a->hd16;
    a->max = a->part + most * a->hd16;
    a->sum = a->max + most;
    a->carry = a->sum + most;
    a->wide = scratch + qs_up16(most * (QS_ATT_TILE + 3 * a->hd16 + 3));
}

/* Query i's scores of a tile to probabilities: len of them, then zeros up to `end`. */
static void qs_att_soften(const qs_kernels *k, qs_att *a, size_t i, size_t len, size_t end, float scale, int first)
{
    float *s = a->s + i * QS_ATT_TILE, old = first ? -INFINITY : a->max[i], sum;
    sum = k->soften(s, len, scale, &a->max[i], old);
    memset(s + len, 0, (end - len) * sizeof *s);
    a->carry[i] = first ? 0.0f : qs_exp(old - a->max[i]);
    a->sum[i] = first ? sum : a->sum[i] * a->carry[i] + sum;
}

/* acc = acc carry + part */
static void qs_att_join(qs_att *a, size_t i, int first)
{
    float *acc = a->acc + i * a->hd16, carry = a->carry[i];
    const float *part = a->part + i * a->hd16;
    if (first) {
        memcpy(acc, part, a->hd16 * sizeof *acc);
        return;
    }
    for (size_t d = 0; d < a->hd16; d += 16)
        for (size_t j = d; j < d + 16; j++) acc[j] = acc[j] * carry + part[j];
}

/* Blocks of a narrow cache that are widened together: all for many queries, else what stays in the L1 cache. */
static size_t qs_att_step(size_t n_q, size_t blocks) { return n_q > 6 ? blocks : qs_min(4, blocks); }

/* s = scores of queries q0 .. q0 + n_q - 1 over `end` positions from `at` on */
static void qs_att_scores(const qsae_ctx *c, const qs_kernels *k, const qs_att *a, size_t head, size_t at, size_t end,
                          size_t q0, size_t n_q)
{
    const uint8_t *from = c->keys + (head * c->ctx16 + at) * a->hd * c->kv_size;
    const float *q = a->q + q0 * a->hd;
    float *s = a->s + q0 * QS_ATT_TILE;
    size_t blocks = qs_up16(end) / 16, step = qs_att_step(n_q, blocks), n;
    if (c->kv_type == QSAE_KV_F32) {
        k->mm[QSAE_TYPE_F32](from, a->hd * 64, blocks, a->hd, q, a->hd, n_q, s, QS_ATT_TILE);
        return;
    }
    for (size_t b = 0; b < blocks; b += n) {
        n = qs_min(step, blocks - b);
        k->widen[c->kv_type == QSAE_KV_BF16]((const void *)(from + b * 16 * a->hd * 2), n * 16 * a->hd, a->wide);
        k->mm[QSAE_TYPE_F32](a->wide, a->hd * 64, n, a->hd, q, a->hd, n_q, s + 16 * b, QS_ATT_TILE);
    }
}

/* part = probabilities of the same queries times the values of the same positions */
static void qs_att_values(const qsae_ctx *c, const qs_kernels *k, const qs_att *a, size_t head, size_t at, size_t end,
                          size_t q0, size_t n_q)
{
    const uint8_t *from = c->values + (head * a->hd16 * c->ctx16 + at * 16) * c->kv_size;
    const float *s = a->s + q0 * QS_ATT_TILE;
    float *part = a->part + q0 * a->hd16;
    size_t blocks = a->hd16 / 16, step = qs_att_step(n_q, blocks), n;
    if (c->kv_type == QSAE_KV_F32) {
        k->mm[QSAE_TYPE_F32](from, c->ctx16 * 64, blocks, end, s, QS_ATT_TILE, n_q, part, a->hd16);
        return;
    }
    for (size_t b = 0; b < blocks; b += n) {
        n = qs_min(step, blocks - b);
        for (size_t i = 0; i < n; i++)
            k->widen[c->kv_type == QSAE_KV_BF16]((const void *)(from + (b + i) * 16 * c->ctx16 * 2), end * 16,
                                                 a->wide + i * 16 * end);
        k->mm[QSAE_TYPE_F32](a->wide, end * 64, n, end, s, QS_ATT_TILE, n_q, part + 16 * b, a->hd16);
    }
}

/* z of n rows' heads of kv head h, each over its own position and those before. Later positions count nothing for a
 * row: their probability is 0, and 0 times a finite value leaves every sum's bits. */
static void qs_attend(const qs_pass *p, size_t first, size_t n, size_t h, float *scratch)
{
    const qsae_model_info *i = &p->m->info;
    const qs_layer *y = &p->m->layers[p->layer];
    const qs_kernels *k = p->m->kernels;
    const qsae_ctx *c = p->s->rows[first].ctx;
    size_t head = (size_t)p->layer * (size_t)i->n_kv_heads + h, pos = (size_t)p->s->rows[first].pos;
    qs_att a;
    memset(&a, 0, sizeof a);
    a.rep = (size_t)(i->n_heads / i->n_kv_heads);
    a.n = n;
    a.hd = (size_t)i->head_dim;
    a.hd16 = qs_up16(a.hd);
    qs_att_lay(&a, scratch, p->s->att_rows * a.rep);
    const float *q = p->s->q + first * y->q.np + h * a.rep * a.hd;
    for (size_t r = 0; n > 1 && r < n; r++)
        memcpy(a.own_q + r * a.rep * a.hd, q + r * y->q.np, a.rep * a.hd * sizeof *q);
    a.q = n > 1 ? a.own_q : q;
    float scale = 1.0f / sqrtf((float)a.hd);
    for (size_t at = 0; at < pos + n; at += QS_ATT_TILE) {
        size_t end = qs_min(pos + n - at, QS_ATT_TILE), r0 = at > pos ? at - pos : 0; /* r0: the first that sees it */
        size_t q0 = r0 * a.rep, n_q = (n - r0) * a.rep;
        qs_att_scores(c, k, &a, head, at, end, q0, n_q);
        for (size_t j = q0; j < q0 + n_q; j++)
            qs_att_soften(k, &a, j, qs_min(pos + j / a.rep + 1 - at, end), end, scale, at == 0);
        qs_att_values(c, k, &a, head, at, end, q0, n_q);
        for (size_t j = q0; j < q0 + n_q; j++) qs_att_join(&a, j, at == 0);
    }
    for (size_t j = 0; j < n * a.rep; j++) {
        float *z = p->s->z + (first + j / a.rep) * y->o.kp + (h * a.rep + j % a.rep) * a.hd;
        for (size_t d = 0; d < a.hd; d++) z[d] = a.acc[j * a.hd16 + d] / a.sum[j];
    }
}

/* Units: kv head by kv head, all blocks of rows. */
static void qs_attend_task(void *arg, size_t lo, size_t hi, size_t thread)
{
    const qs_pass *p = arg;
    float *scratch = p->s->att + thread * p->s->att_size;
    for (size_t u = lo; u < hi; u++) {
        const qs_block *b = &p->s->blocks[u % p->n_blocks];
        size_t together = 1;
        while (together < b->n && p->s->finite[b->first + together]) together++;
        if (together < b->n) together = 1; /* what one row sees must not reach another */
        for (size_t r = 0; r < b->n; r += together) qs_attend(p, b->first + r, together, u / p->n_blocks, scratch);
    }
}

/* Cuts the rows into blocks: as many rows as go together, but enough blocks for all threads. */
static void qs_make_blocks(qs_pass *p)
{
    size_t most = p->s->att_rows, n_kv = (size_t)p->m->info.n_kv_heads;
    while (most > 1 && (p->n + most - 1) / most * n_kv < 4 * (size_t)p->n_threads) most = (most + 1) / 2;
    p->n_blocks = 0;
    for (size_t r = 0; r < p->n; r++) {
        qs_block *b = &p->s->blocks[p->n_blocks];
        if (r && p->s->rows[r].ctx == p->s->rows[r - 1].ctx && b[-1].n < most) {
            b[-1].n++;
            continue;
        }
        b->first = r;
        b->n = 1;
        p->n_blocks++;
    }
}

static void qs_attention_job(const qs_pass *p, qs_job *job)
{
    const qsae_model_info *i = &p->m->info;
    size_t pos = 0;
    for (size_t r = 0; r < p->n; r++)
        if ((size_t)p->s->rows[r].pos > pos) pos = (size_t)p->s->rows[r].pos;
    job->task = qs_attend_task;
    job->units = p->n_blocks * (size_t)i->n_kv_heads;
    job->cost = 2 * (pos + 1) * (size_t)i->head_dim * (size_t)(i->n_heads / i->n_kv_heads) * p->n / p->n_blocks;
}

/* ---- MLP: gate and up of the same outputs on one thread, so that silu(gate) * up follows at once ---- */

static void qs_gate_up_task(void *arg, size_t lo, size_t hi, size_t thread)
{
    const qs_pass *p = arg;
    const qs_layer *y = &p->m->layers[p->layer];
    const qs_kernels *k = p->m->kernels;
    (void)thread;
    qs_mat_mul(k, &y->gate, lo, hi, p->s->xn, p->s->packed, p->n, p->s->gate);
    qs_mat_mul(k, &y->up, lo, hi, p->s->xn, p->s->packed, p->n, p->s->up);
    for (size_t r = 0; r < p->n; r++)
        k->silu_mul(p->s->gate + r * y->gate.np + 16 * lo, p->s->up + r * y->up.np + 16 * lo, 16 * (hi - lo));
}

/* ---- sites ---- */

static void qs_capture_rows(qsae_ctx *c, uint32_t site, int32_t layer, size_t index, const float *h,
                            size_t n, size_t width, size_t ld)
{
    for (size_t i = 0; c->captures && i < c->captures->n; i++) {
        const qsae_capture *p = &c->captures->list[i];
        if ((uint32_t)p->site != site || p->layer != layer) continue;
        for (size_t r = 0; r < n; r++)
            memcpy(p->rows + (index + r) * width, h + r * ld, width * sizeof *h);
    }
}

/* Rows first..first+n of the pass, all of one context: edits, hook, capture. */
static qsae_status qs_site_of_ctx(const qs_pass *p, qsae_site site, size_t first, size_t n, float *h,
                                  size_t width, size_t ld, int n_threads)
{
    const qs_row *row = &p->s->rows[first];
    qsae_ctx *c = row->ctx;
    if (!(c->site_mask[p->layer] >> site & 1)) return QSAE_OK;
    if (c->edits) {
        qsae_status st = qs_apply_edits(c, site, p->layer, row->pos, h, n, width, ld, n_threads, p->err);
        if (st) return st;
    }
    if (qs_hook_wants(&c->hook, site, p->layer)) {
        qsae_event e = {c, site, p->layer, row->pos, n, width, ld};
        if (c->hook.fn(c->hook.user, &e, h))
            return qs_fail(p->err, QSAE_E_CANCELLED, 0, "the hook stopped at %s of layer %d, position %d",
                           QS_SITE_NAMES[site], p->layer, row->pos);
    }
    qs_capture_rows(c, site, p->layer, row->index, h, n, width, ld);
    return QSAE_OK;
}

/* h [n, width up to 16]: the rows of a site, in pass order */
static qsae_status qs_site(const qs_pass *p, qsae_site site, float *h, int n_threads)
{
    size_t width = qsae_site_width(p->m, site), ld = qs_up16(width);
    for (size_t i = 0, end; i < p->n; i = end) {
        for (end = i + 1; end < p->n && p->s->rows[end].ctx == p->s->rows[i].ctx; end++) {}
        qsae_status st = qs_site_of_ctx(p, site, i, end - i, h + i * ld, width, ld, n_threads);
        if (st) return st;
    }
    return QSAE_OK;
}

/* 0: nobody looks at the site in this layer; 1: somebody; 2: outside of the team */
static int qs_site_watched(const qs_pass *p, qsae_site site)
{
    unsigned any = 0, apart = 0;
    for (size_t r = 0; r < p->n; r++) {
        any |= p->s->rows[r].ctx->site_mask[p->layer];
        apart |= p->s->rows[r].ctx->apart_mask[p->layer];
    }
    return apart >> site & 1 ? 2 : (int)(any >> site & 1);
}

/* ---- the block ---- */

/* The steps of a layer. The first are sites, by their numbers. */
enum {
    QS_NORM_ATTN = QSAE_SITE_COUNT, /* from here on: of a row */
    QS_NORM_MLP,
    QS_PACK_XN,
    QS_ROPE,
    QS_PACK_Z,
    QS_PACK_GATE,
    QS_ADD,
    QS_EMBED,
    QS_QKV, /* from here on: jobs */
    QS_ATTEND,
    QS_O,
    QS_GATE_UP,
    QS_DOWN
};

static const uint8_t QS_STEPS[] = {
    QSAE_RESID_PRE, QS_NORM_ATTN, QS_PACK_XN, QS_QKV, QS_ROPE, QS_ATTEND,
    QSAE_ATTN_Z,    QS_PACK_Z,    QS_O,
    QSAE_ATTN_OUT,  QS_ADD,
    QSAE_RESID_MID, QS_NORM_MLP,
    QSAE_MLP_INPUT, QS_PACK_XN,   QS_GATE_UP, QS_PACK_GATE, QS_DOWN,
    QSAE_MLP_OUT,   QS_ADD,
    QSAE_RESID_POST,
};

static void qs_row_step(const qs_pass *p, unsigned step, size_t r)
{
    const qs_layer *y = &p->m->layers[p->layer];
    qs_scratch *s = p->s;
    switch (step) {
    case QS_NORM_ATTN: qs_norm_row(p, y->attn_norm, r); break;
    case QS_NORM_MLP: qs_norm_row(p, y->mlp_norm, r); break;
    case QS_PACK_XN: qs_pack_row(p, s->xn, y->gate.kp, p->n, r); break;
    case QS_ROPE: qs_rope_row(p, r); break;
    case QS_PACK_Z: qs_pack_row(p, s->z, y->o.kp, p->n, r); break;
    case QS_PACK_GATE: qs_pack_row(p, s->gate, y->down.kp, p->n, r); break;
    case QS_ADD: qs_add_row(p, r); break;
    default: qs_embed_row(p, r); break;
    }
}

static void qs_row_task(void *arg, size_t lo, size_t hi, size_t thread)
{
    const qs_pass *p = arg;
    (void)thread;
    for (size_t r = lo; r < hi; r++)
        for (size_t i = 0; i < p->n_run_steps; i++) qs_row_step(p, p->run_steps[i], r);
}

/* The job of the steps gathered, if there are any. */
static int qs_row_job(qs_pass *p, qs_job *job)
{
    if (!p->n_row_steps) return 0;
    memcpy(p->run_steps, p->row_steps, sizeof p->run_steps);
    p->n_run_steps = p->n_row_steps;
    p->n_row_steps = 0;
    job->task = qs_row_task;
    job->units = p->n;
    job->cost = 4 * (size_t)p->m->info.d_model * p->n_run_steps;
    return 1;
}

/* The job of a step that needs all rows. */
static void qs_whole_job(qs_pass *p, unsigned step, qs_job *job)
{
    const qs_layer *y = &p->m->layers[p->layer];
    qs_scratch *s = p->s;
    p->n_list = 0;
    switch (step) {
    case QS_QKV:
        qs_add_product(p, &y->q, s->q);
        qs_add_product(p, &y->k, s->k);
        qs_add_product(p, &y->v, s->v);
        qs_product_job(p, s->xn, p->n, job);
        break;
    case QS_ATTEND: qs_attention_job(p, job); break;
    case QS_O:
        qs_add_product(p, &y->o, s->out);
        qs_product_job(p, s->z, p->n, job);
        break;
    case QS_GATE_UP:
        job->task = qs_gate_up_task;
        job->units = y->gate.np / 16;
        job->cost = 32 * y->gate.kp * p->n;
        job->grain = QS_GRAIN;
        break;
    default:
        qs_add_product(p, &y->down, s->out);
        qs_product_job(p, s->gate, p->n, job);
        break;
    }
}

/* The rows of a site */
static float *qs_site_rows(const qs_pass *p, unsigned site)
{
    switch (site) {
    case QSAE_ATTN_Z: return p->s->z;
    case QSAE_MLP_INPUT: return p->s->xn;
    case QSAE_ATTN_OUT:
    case QSAE_MLP_OUT: return p->s->out;
    default: return p->s->x;
    }
}

/* ---- the head: final norm and logits, for rows that somebody wants them of: an eval's last, or all under a capture */

static int qs_wants_logits(const qs_row *row)
{
    const qsae_ctx *c = row->ctx;
    if (!qs_has_head(c)) return 0;
    if (row->index + 1 == c->ev_n) return 1;
    for (size_t i = 0; c->captures && i < c->captures->n; i++)
        if (c->captures->list[i].site == QSAE_LOGITS) return 1;
    return 0;
}

static void qs_put_logits(const qs_row *row, const float *y, size_t vocab)
{
    qsae_ctx *c = row->ctx;
    for (size_t i = 0; c->captures && i < c->captures->n; i++)
        if (c->captures->list[i].site == QSAE_LOGITS)
            memcpy(c->captures->list[i].rows + row->index * vocab, y, vocab * sizeof *y);
    if (row->index + 1 == c->ev_n) memcpy(c->logits, y, vocab * sizeof *y);
}

/* Hands out the logits that are there and begins with the next rows; 0: there are none. */
static int qs_head_job(qs_pass *p, qs_job *job)
{
    const qsae_model *m = p->m;
    qs_scratch *s = p->s;
    size_t d = (size_t)m->info.d_model, ld = qs_up16(d);
    for (size_t i = 0; i < p->n_head; i++)
        qs_put_logits(&s->rows[p->of[i]], s->head_y + i * m->head.np, (size_t)m->info.vocab_size);
    p->n_head = 0;
    for (; p->head_next < p->n && p->n_head < QS_HEAD_ROWS; p->head_next++) {
        if (!qs_wants_logits(&s->rows[p->head_next])) continue;
        qs_rms_norm(s->x + p->head_next * ld, m->final_norm, d, m->info.rms_eps, s->head_x + p->n_head * ld);
        p->of[p->n_head++] = p->head_next;
    }
    if (!p->n_head) return 0;
    for (size_t i = 0; i < p->n_head; i++) qs_pack_row(p, s->head_x, ld, p->n_head, i);
    p->n_list = 0;
    qs_add_product(p, &m->head, s->head_y);
    qs_product_job(p, s->head_x, p->n_head, job);
    return 1;
}

/* ---- the pass ---- */

/* The site that is the present step. n_threads: 1 inside of a team */
static void qs_do_site(qs_pass *p, int n_threads)
{
    unsigned site = QS_STEPS[p->step];
    p->status = qs_site(p, (qsae_site)site, qs_site_rows(p, site), n_threads);
}

/* A qs_next. Ends also where a site must be looked at outside of the team: qs_run_pass does that and comes back. */
static int qs_pass_next(void *state, qs_job *job)
{
    qs_pass *p = state;
    memset(job, 0, sizeof *job);
    job->arg = p;
    while (p->layer < p->n_layers && p->status == QSAE_OK) {
        unsigned step = QS_STEPS[p->step];
        if (step < QSAE_SITE_COUNT) {
            int watched = qs_site_watched(p, (qsae_site)step);
            if (watched && qs_row_job(p, job)) return 1;
            if (watched == 2) return 0;
            if (watched) qs_do_site(p, 1);
        } else if (step < QS_QKV) {
            p->row_steps[p->n_row_steps++] = (uint8_t)step;
        } else {
            if (qs_row_job(p, job)) return 1;
            qs_whole_job(p, step, job);
        }
        if (++p->step == sizeof QS_STEPS) p->step = 0, p->layer++; /* QS_ADD may wait: it is alike in all layers */
        if (job->units) return 1;
    }
    return p->status == QSAE_OK && (qs_row_job(p, job) || qs_head_job(p, job));
}

static qsae_status qs_run_pass(qs_pass *p)
{
    p->layer = 0;
    p->step = 0;
    p->row_steps[0] = QS_EMBED;
    p->n_row_steps = 1;
    p->n_head = p->head_next = 0;
    qs_make_blocks(p);
    for (;;) {
        qs_team_run(p->n_threads, qs_pass_next, p);
        if (p->status || p->layer == p->n_layers) return p->status;
        qs_do_site(p, p->n_threads);
        p->step = (p->step + 1) % sizeof QS_STEPS;
        p->layer += p->step == 0;
    }
}
/* ---- eval ---- */

static qsae_status qs_check_batch(const qsae_batch *b, size_t n, size_t i, qsae_error *err)
{
    const qsae_ctx *c = b[i].ctx;
    if (!c || (!b[i].tokens && b[i].n)) return qs_fail(err, QSAE_E_ARG, 0, "eval: entry %zu has a NULL", i);
    if (c->busy)
        return qs_fail(err, QSAE_E_STATE, 0, "eval: context %zu is in an eval, whose hook may not start one", i);
    if (c->model != b[0].ctx->model)
        return qs_fail(err, QSAE_E_MISMATCH, 0, "eval: contexts 0 and %zu have two models", i);
    if (c->n_layers != b[0].ctx->n_layers)
        return qs_fail(err, QSAE_E_MISMATCH, 0, "eval: context 0 runs %d layers, context %zu %d", b[0].ctx->n_layers, i,
                       c->n_layers);
    for (size_t j = 0; j < i; j++)
        if (b[j].ctx == c) return qs_fail(err, QSAE_E_ARG, 0, "eval: entries %zu and %zu are one context", j, i);
    if (b[i].n > (size_t)(c->n_ctx - c->pos))
        return qs_fail(err, QSAE_E_STATE, 0, "context %zu of %zu: %zu tokens at position %d, it holds %d", i, n,
                       b[i].n, c->pos, c->n_ctx);
    for (size_t t = 0; t < b[i].n; t++)
        if (b[i].tokens[t] < 0 || b[i].tokens[t] >= c->model->info.vocab_size)
            return qs_fail(err, QSAE_E_ARG, 0, "token %zu is %d, vocab_size is %d", t, b[i].tokens[t],
                           c->model->info.vocab_size);
    for (size_t k = 0; c->captures && k < c->captures->n; k++)
        if (c->captures->list[k].max_rows < b[i].n)
            return qs_fail(err, QSAE_E_ARG, 0, "capture %zu holds %zu rows, the eval has %zu", k,
                           c->captures->list[k].max_rows, b[i].n);
    return QSAE_OK;
}

/* Takes tokens in entry order until the pass is full; never more of a context than its own n_batch, which
 * its edits' tables are made for. Returns the rows taken. */
static size_t qs_fill_pass(const qsae_batch *b, size_t n, const qsae_ctx *host, qs_row *rows)
{
    size_t used = 0, cap = (size_t)host->n_batch;
    for (size_t i = 0; i < n && used < cap; i++) {
        qsae_ctx *c = b[i].ctx;
        size_t take = qs_min(qs_min(c->ev_n - c->ev_done, cap - used), (size_t)c->n_batch);
        for (size_t t = 0; t < take; t++, c->ev_done++, used++) {
            rows[used].ctx = c;
            rows[used].pos = c->pos + (int32_t)c->ev_done;
            rows[used].token = c->ev_tokens[c->ev_done];
            rows[used].index = c->ev_done;
        }
    }
    return used;
}

qsae_status qsae_eval_many(const qsae_batch *batch, size_t n, qsae_error *err)
{
    qsae_status st = QSAE_OK;
    if (!n) return QSAE_OK;
    if (!batch || !batch[0].ctx) return qs_fail(err, QSAE_E_ARG, 0, "eval: a pointer is NULL");
    for (size_t i = 0; i < n; i++)
        if ((st = qs_check_batch(batch, n, i, err)) != QSAE_OK) return st;
    qsae_ctx *host = batch[0].ctx;
    for (size_t i = 0; i < n; i++) {
        qsae_ctx *c = batch[i].ctx;
        c->ev_tokens = batch[i].tokens;
        c->ev_n = batch[i].n;
        c->ev_done = 0;
        if (batch[i].n) c->has_logits = 0;
        c->busy = 1;
    }
    qs_pass p;
    memset(&p, 0, sizeof p);
    p.m = host->model;
    p.s = &host->scratch;
    p.n_layers = host->n_layers;
    p.n_threads = host->n_threads;
    p.err = err;
    qs_fp_state fp = qs_fp_enter();
    while (!st && (p.n = qs_fill_pass(batch, n, host, host->scratch.rows)) != 0) st = qs_run_pass(&p);
    qs_fp_leave(fp);
    for (size_t i = 0; i < n; i++) {
        qsae_ctx *c = batch[i].ctx;
        c->busy = 0;
        if (st || !c->ev_n) continue;
        memcpy(c->tokens + c->pos, c->ev_tokens, c->ev_n * sizeof *c->tokens);
        c->pos += (int32_t)c->ev_n;
        c->has_logits = qs_has_head(c);
    }
    return st;
}

qsae_status qsae_eval(qsae_ctx *ctx, const int32_t *tokens, size_t n, qsae_error *err)
{
    qsae_batch b = {ctx, tokens, n};
    return qsae_eval_many(&b, 1, err);
}

/* ===================================================================================================
 * 22 Sampling (public)
 * =================================================================================================== */

/* 53 random bits from (seed, position), uniform in [0, 1): two rounds of the splitmix64 finaliser. */
static double qs_uniform(uint64_t seed, uint64_t position)
{
    uint64_t x = seed * 0x9E3779B97F4A7C15u + 0x632BE59BD9B4E019u;
    for (int i = 0; i < 2; i++) {
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
        x ^= x >> 31;
        x += position * 0x9E3779B97F4A7C15u;
    }
    x = (x ^ (x >> 32)) * 0xD6E8FEB86659FD93u;
    x ^= x >> 32;
    return (double)(x >> 11) * (1.0 / 9007199254740992.0);
}

size_t qsae_sample_scratch_size(size_t n)
{
    size_t size;
    return qs_mul(n, sizeof(qs_pair), &size) && qs_add(size, 63, &size) ? size : SIZE_MAX;
}

static const struct qs_preset {
    const char *name;
    float temperature, top_p;
    int32_t top_k;
} qs_presets[QSAE_PRESET_COUNT] = {
    {"greedy", 0, 0, 0}, {"thinking", 0.6f, 0.95f, 20}, {"non-thinking", 0.7f, 0.8f, 20}};

const char *qsae_preset_name(qsae_preset preset)
{
    return (unsigned)preset < QSAE_PRESET_COUNT ? qs_presets[preset].name : NULL;
}

qsae_sample_options qsae_preset_options(qsae_preset preset)
{
    qsae_sample_options o;
    memset(&o, 0, sizeof o);
    if ((unsigned)preset >= QSAE_PRESET_COUNT) return o;
    o.temperature = qs_presets[preset].temperature;
    o.top_p = qs_presets[preset].top_p;
    o.top_k = qs_presets[preset].top_k;
    return o;
}

static qsae_status qs_check_history(const qsae_sample_options *o, size_t n, qsae_error *err)
{
    if (!(o->repetition_penalty >= 0.0f) || !qs_finite(o->repetition_penalty))
        return qs_fail(err, QSAE_E_ARG, 0, "repetition_penalty is %g, must be > 0", (double)o->repetition_penalty);
    if (!qs_finite(o->presence_penalty))
        return qs_fail(err, QSAE_E_ARG, 0, "presence_penalty is %g", (double)o->presence_penalty);
    if ((!o->history && o->n_history) || o->n_prompt > o->n_history)
        return qs_fail(err, QSAE_E_ARG, 0, "a history of %zu ids, %zu of them the prompt, at %s", o->n_history,
                       o->n_prompt, o->history ? "a place" : "NULL");
    for (size_t i = 0; i < o->n_history; i++)
        if (o->history[i] < 0 || (size_t)o->history[i] >= n)
            return qs_fail(err, QSAE_E_ARG, 0, "id %zu of the history is %d, there are %zu logits", i,
                           o->history[i], n);
    return QSAE_OK;
}

static qsae_status qs_check_sample(const qsae_sample_options *o, size_t n, qsae_error *err)
{
    if (!(o->temperature >= 0.0f) || !qs_finite(o->temperature))
        return qs_fail(err, QSAE_E_ARG, 0, "temperature is %g, must be >= 0", (double)o->temperature);
    if (o->top_k < 0) return qs_fail(err, QSAE_E_ARG, 0, "top_k is %d, must be >= 0", o->top_k);
    if (!(o->top_p >= 0.0f && o->top_p <= 1.0f))
        return qs_fail(err, QSAE_E_ARG, 0, "top_p is %g, must be 0..1", (double)o->top_p);
    if (!(o->min_p >= 0.0f && o->min_p <= 1.0f))
        return qs_fail(err, QSAE_E_ARG, 0, "min_p is %g, must be 0..1", (double)o->min_p);
    return qs_check_history(o, n, err);
}

/* Index of the largest logit, ties to the lower; SIZE_MAX if one is NaN or +Inf, or all are -Inf. */
static size_t qs_argmax(const float *x, size_t n)
{
    size_t best = 0;
    for (size_t i = 0; i < n; i++) {
        if (x[i] != x[i] || x[i] == INFINITY) return SIZE_MAX;
        if (x[i] > x[best]) best = i;
    }
    return x[best] == -INFINITY ? SIZE_MAX : best;
}

static int qs_has_penalty(const qsae_sample_options *o)
{
    int repetition = o->repetition_penalty != 0.0f && o->repetition_penalty != 1.0f;
    return o->n_history && (repetition || o->presence_penalty != 0.0f);
}

#define QS_SEEN 0x80000000u /* in the index of a pair: the id was met */

/* p [n]: value = logit, index = id; on return as well. Both penalties count an id once. */
static void qs_penalize(qs_pair *p, const qsae_sample_options *o)
{
    float r = o->repetition_penalty == 0.0f ? 1.0f : o->repetition_penalty;
    for (size_t i = 0; i < o->n_history; i++) {
        qs_pair *c = &p[o->history[i]];
        if (c->index & QS_SEEN) continue;
        c->index |= QS_SEEN;
        c->value = c->value < 0.0f ? c->value * r : c->value / r;
    }
    for (size_t i = o->n_prompt; i < o->n_history; i++) { /* the mark now means: not yet counted */
        qs_pair *c = &p[o->history[i]];
        if (c->index & QS_SEEN) c->value -= o->presence_penalty;
        c->index &= ~QS_SEEN;
    }
    for (size_t i = 0; i < o->n_prompt; i++) p[o->history[i]].index &= ~QS_SEEN;
}

/* The largest value, ties to the lower id; SIZE_MAX as in qs_argmax. */
static size_t qs_best_pair(const qs_pair *p, size_t n)
{
    size_t best = 0;
    for (size_t i = 0; i < n; i++) {
        if (p[i].value != p[i].value || p[i].value == INFINITY) return SIZE_MAX;
        if (p[i].value > p[best].value) best = i;
    }
    return p[best].value == -INFINITY ? SIZE_MAX : best;
}

/* value / temperature, which is what top-k compares. Where the quotient of the largest has no float, all are
 * taken relative to the largest: the probabilities are the same. Returns the new largest. */
static float qs_scale_pairs(qs_pair *p, size_t n, float best, float temperature)
{
    float top = best / temperature;
    int relative = !qs_finite(top);
    for (size_t i = 0; i < n; i++) p[i].value = (relative ? p[i].value - best : p[i].value) / temperature;
    return relative ? 0.0f : top;
}

/* Have the largest, `seen` of `total`, reached top-p? Hugging Face adds up from the smallest and compares in
 * float, which decides where the rest is only just above 1 - top-p: 4 equal ones and a thousand of no weight. */
static int qs_top_p_reached(double seen, double total, double top_p)
{
    return (float)((total - seen) / total) <= (float)(1.0 - top_p);
}

/* Sorts the leading candidates to the end of p, largest last, until top-k and top-p have enough; returns how
 * many are kept: p[n - 1], p[n - 2], ... The heap lies before them. */
static size_t qs_keep_candidates(qs_pair *p, size_t n, float top, size_t top_k, double top_p)
{
    double total = 0, seen = 0;
    size_t kept = 0, most = top_k && top_k < n ? top_k : n;
    if (most == n && top_p < 1.0) /* top-p is a share of all */
        for (size_t i = 0; i < n; i++) total += (double)qs_exp(p[i].value - top);
    qs_heapify(p, n, qs_smaller_first); /* p[0] is the largest */
    for (; kept < n; kept++) {
        qs_pair t = p[0];
        if (t.value == -INFINITY) break; /* never drawn */
        if (kept >= most && t.value < p[n - kept].value) break; /* ties with the k-th stay */
        p[0] = p[n - 1 - kept];
        p[n - 1 - kept] = t;
        qs_sift(p, n - 1 - kept, 0, qs_smaller_first);
        if (most < n || top_p >= 1.0) continue;
        seen += (double)qs_exp(t.value - top);
        if (qs_top_p_reached(seen, total, top_p)) return kept + 1;
    }
    if (most == n || top_p >= 1.0) return kept;
    for (size_t i = 0; i < kept; i++) total += (double)qs_exp(p[n - 1 - i].value - top); /* a share of the top-k */
    for (size_t i = 0; i < kept; i++) {
        seen += (double)qs_exp(p[n - 1 - i].value - top);
        if (qs_top_p_reached(seen, total, top_p)) return i + 1;
    }
    return kept;
}

/* p [n]: value = logit after penalties; best: the largest */
static int32_t qs_draw(qs_pair *p, size_t n, const qsae_sample_options *o, uint64_t position, size_t best)
{
    int32_t id = (int32_t)best;
    float top = qs_scale_pairs(p, n, p[best].value, o->temperature);
    double top_p = o->top_p == 0.0f ? 1.0 : (double)o->top_p;
    int sorted = o->top_k || top_p < 1.0; /* candidates p[n-1], p[n-2], ... then; p[0], p[1], ... else */
    size_t kept = sorted ? qs_keep_candidates(p, n, top, (size_t)o->top_k, top_p) : n;
    double total = 0, seen = 0;
    for (size_t i = 0; i < kept; i++) {
        qs_pair *c = &p[sorted ? n - 1 - i : i];
        c->value = qs_exp(c->value - top); /* 1 for the largest */
        if (c->value < o->min_p) c->value = 0.0f;
        total += (double)c->value;
    }
    double u = qs_uniform(o->seed, position) * total;
    for (size_t i = 0; i < kept; i++) {
        const qs_pair *c = &p[sorted ? n - 1 - i : i];
        seen += (double)c->value;
        if (c->value > 0.0f && seen > u) return (int32_t)c->index;
        if (c->value > 0.0f) id = (int32_t)c->index; /* if rounding leaves u at the very end: the last */
    }
    return id;
}

static qsae_status qs_sample(const float *logits, size_t n, const qsae_sample_options *o, uint64_t position,
                             qs_pair *p, size_t best, int32_t *id, qsae_error *err)
{
    for (size_t i = 0; i < n; i++) {
        p[i].value = logits[i];
        p[i].index = (uint32_t)i;
    }
    if (qs_has_penalty(o)) {
        qs_penalize(p, o);
        best = qs_best_pair(p, n);
        if (best == SIZE_MAX)
            return qs_fail(err, QSAE_E_NUM, 0, "after the penalties a logit is NaN or +Inf, or all are -Inf");
    }
    *id = o->temperature == 0.0f ? (int32_t)best : qs_draw(p, n, o, position, best);
    return QSAE_OK;
}

qsae_status qsae_sample(const float *logits, size_t n, const qsae_sample_options *options, uint64_t position,
                        void *scratch, size_t scratch_size, int32_t *id, qsae_error *err)
{
    static const qsae_sample_options greedy;
    const qsae_sample_options *o = options ? options : &greedy;
    if (!logits || !id || !n || n > INT32_MAX)
        return qs_fail(err, QSAE_E_ARG, 0, "sample: a pointer is NULL, or %zu logits", n);
    qsae_status st = qs_check_sample(o, n, err);
    if (st) return st;
    size_t best = qs_argmax(logits, n);
    if (best == SIZE_MAX) return qs_fail(err, QSAE_E_NUM, 0, "a logit is NaN or +Inf, or all are -Inf");
    if (o->temperature == 0.0f && !qs_has_penalty(o)) return *id = (int32_t)best, QSAE_OK;
    if (!scratch || scratch_size < qsae_sample_scratch_size(n))
        return qs_fail(err, QSAE_E_ARG, 0, "scratch has %zu bytes, needs %zu", scratch ? scratch_size : 0,
                       qsae_sample_scratch_size(n));
    qs_pair *p = (void *)((char *)scratch + (64 - (uintptr_t)scratch % 64) % 64);
    qs_fp_state fp = qs_fp_enter();
    st = qs_sample(logits, n, o, position, p, best, id, err);
    qs_fp_leave(fp);
    return st;
}

/* ===================================================================================================
 * 23 Chat format (public)
 *
 * What Qwen3's chat_template means. One walk over the messages writes text to a qs_chat_out, called twice: to
 * count, and to fill. What the template itself writes may hold control tokens; their places are marked. To
 * tokenize, these go in as ids and the text between is tokenized without looking for any, so a message cannot
 * forge a turn.
 * =================================================================================================== */

typedef struct qs_str {
    const char *s;
    size_t n;
} qs_str;

typedef struct qs_mark { /* a control token of the template in the rendered text */
    size_t at;
    const char *token;
} qs_mark;

typedef struct qs_chat_out {
    char *text;
    size_t cap, n; /* bytes; n counts on beyond cap */
    qs_mark *marks;
    size_t cap_marks, n_marks;
    int overflow; /* more bytes than size_t counts */
} qs_chat_out;

/* ---- strings, as the template's methods treat them ---- */

static qs_str qs_str_of(const char *s, size_t n)
{
    qs_str r = {s, s ? n : 0};
    return r;
}

/* Where `what`, which starts with '<' and has no other, first is in s; s.n if nowhere. */
static size_t qs_str_find(qs_str s, const char *what)
{
    size_t len = strlen(what);
    for (size_t i = 0; len <= s.n && i <= s.n - len; i++) {
        const char *at = memchr(s.s + i, '<', s.n - len - i + 1);
        if (!at) break;
        i = (size_t)(at - s.s);
        if (memcmp(at, what, len) == 0) return i;
    }
    return s.n;
}

static qs_str qs_str_after_last(qs_str s, const char *what)
{
    size_t len = strlen(what), at;
    while ((at = qs_str_find(s, what)) < s.n) s = qs_str_of(s.s + at + len, s.n - at - len);
    return s;
}

static qs_str qs_str_lstrip(qs_str s)
{
    while (s.n && s.s[0] == '\n') s.s++, s.n--;
    return s;
}

static qs_str qs_str_rstrip(qs_str s)
{
    while (s.n && s.s[s.n - 1] == '\n') s.n--;
    return s;
}

static int qs_str_is(const char *s, size_t n, const char *what)
{
    size_t len = strlen(what);
    return n >= len && memcmp(s, what, len) == 0;
}

/* ---- the sink ---- */

static void qs_chat_text(qs_chat_out *o, qs_str t)
{
    if (o->n < o->cap && t.n) memcpy(o->text + o->n, t.s, qs_min(t.n, o->cap - o->n));
    if (!qs_add(o->n, t.n, &o->n)) o->overflow = 1;
}

/* Text of the template, in which control tokens are meant as such. */
static void qs_chat_own(qs_chat_out *o, const char *t)
{
    static const char *const control[] = {"<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>",
                                          "</tool_call>", "<tool_response>", "</tool_response>"};
    for (const char *at = t; *at; at++)
        for (size_t i = 0; *at == '<' && i < sizeof control / sizeof control[0]; i++) {
            if (strncmp(at, control[i], strlen(control[i])) != 0) continue;
            if (o->n_marks < o->cap_marks) {
                o->marks[o->n_marks].at = o->n + (size_t)(at - t);
                o->marks[o->n_marks].token = control[i];
            }
            o->n_marks++;
        }
    qs_chat_text(o, qs_str_of(t, strlen(t)));
}

/* ---- the walk ---- */

typedef enum qs_chat_kind {
    QS_ROLE_OTHER,
    QS_ROLE_SYSTEM,
    QS_ROLE_USER,
    QS_ROLE_ASSISTANT,
    QS_ROLE_TOOL
} qs_chat_kind;

static qs_chat_kind qs_chat_role(const qsae_message *g)
{
    if (strcmp(g->role, "system") == 0) return QS_ROLE_SYSTEM;
    if (strcmp(g->role, "user") == 0) return QS_ROLE_USER;
    if (strcmp(g->role, "assistant") == 0) return QS_ROLE_ASSISTANT;
    return strcmp(g->role, "tool") == 0 ? QS_ROLE_TOOL : QS_ROLE_OTHER;
}

/* Index of the last message in which a user asks something: not the response of a tool in a user's turn. */
static size_t qs_chat_last_query(const qsae_message *g, size_t n)
{
    static const char begin[] = "<tool_response>", end[] = "</tool_response>";
    const size_t n_end = sizeof end - 1;
    for (size_t i = n; i-- > 0;) {
        size_t len = g[i].content_len;
        if (qs_chat_role(&g[i]) != QS_ROLE_USER) continue;
        if (!len || !qs_str_is(g[i].content, len, begin) || len < n_end ||
            memcmp(g[i].content + len - n_end, end, n_end) != 0)
            return i;
    }
    return n - 1;
}

static void qs_chat_system(qs_chat_out *o, const qsae_message *g)
{
    int system = qs_chat_role(g) == QS_ROLE_SYSTEM;
    if (!system && !g->tools) return;
    qs_chat_own(o, "<|im_start|>system\n");
    if (system) qs_chat_text(o, qs_str_of(g->content, g->content_len));
    if (g->tools) {
        if (system) qs_chat_own(o, "\n\n");
        qs_chat_own(o, "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
                       "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n");
        qs_chat_text(o, qs_str_of(g->tools, g->tools_len));
        qs_chat_own(o, "\n</tools>\n\nFor each function call, return a json object with function name and "
                       "arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
                       "{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>");
    }
    qs_chat_own(o, "<|im_end|>\n");
}

static void qs_chat_calls(qs_chat_out *o, const qsae_message *g, int after_content)
{
    for (size_t i = 0; i < g->n_tool_calls; i++) {
        const qsae_tool_call *c = &g->tool_calls[i];
        if (i || after_content) qs_chat_own(o, "\n");
        qs_chat_own(o, "<tool_call>\n{\"name\": \"");
        qs_chat_text(o, qs_str_of(c->name, c->name_len));
        qs_chat_own(o, "\", \"arguments\": ");
        qs_chat_text(o, qs_str_of(c->arguments, c->arguments_len));
        qs_chat_own(o, "}\n</tool_call>");
    }
}

/* recent: after the last query; last: of all messages */
static void qs_chat_answer(qs_chat_out *o, const qsae_message *g, int recent, int last)
{
    qs_str content = qs_str_of(g->content, g->content_len);
    qs_str reasoning = qs_str_of(g->reasoning, g->reasoning_len);
    size_t end = qs_str_find(content, "</think>");
    if (!g->reasoning && end < content.n) {
        reasoning = qs_str_rstrip(qs_str_of(content.s, end));
        reasoning = qs_str_lstrip(qs_str_after_last(reasoning, "<think>"));
        content = qs_str_lstrip(qs_str_after_last(content, "</think>"));
    }
    qs_chat_own(o, "<|im_start|>assistant\n");
    if (recent && (last || reasoning.n)) {
        qs_chat_own(o, "<think>\n");
        qs_chat_text(o, qs_str_rstrip(qs_str_lstrip(reasoning)));
        qs_chat_own(o, "\n</think>\n\n");
        qs_chat_text(o, qs_str_lstrip(content));
    } else {
        qs_chat_text(o, content);
    }
    qs_chat_calls(o, g, content.n > 0);
    qs_chat_own(o, "<|im_end|>\n");
}

static void qs_chat_turn(qs_chat_out *o, const char *head, const qsae_message *g)
{
    qs_chat_own(o, head);
    qs_chat_text(o, qs_str_of(g->content, g->content_len));
    qs_chat_own(o, "<|im_end|>\n");
}

/* Responses that follow one another share a turn. */
static void qs_chat_response(qs_chat_out *o, const qsae_message *g, size_t i, size_t n)
{
    if (i == 0 || qs_chat_role(&g[i - 1]) != QS_ROLE_TOOL) qs_chat_own(o, "<|im_start|>user");
    qs_chat_own(o, "\n<tool_response>\n");
    qs_chat_text(o, qs_str_of(g[i].content, g[i].content_len));
    qs_chat_own(o, "\n</tool_response>");
    if (i + 1 == n || qs_chat_role(&g[i + 1]) != QS_ROLE_TOOL) qs_chat_own(o, "<|im_end|>\n");
}

static void qs_chat_walk(qs_chat_out *o, const qsae_message *g, size_t n, unsigned flags)
{
    size_t query = qs_chat_last_query(g, n);
    qs_chat_system(o, g);
    for (size_t i = 0; i < n; i++) {
        switch (qs_chat_role(&g[i])) {
        case QS_ROLE_USER: qs_chat_turn(o, "<|im_start|>user\n", &g[i]); break;
        case QS_ROLE_SYSTEM:
            if (i) qs_chat_turn(o, "<|im_start|>system\n", &g[i]);
            break;
        case QS_ROLE_ASSISTANT: qs_chat_answer(o, &g[i], i > query, i + 1 == n); break;
        case QS_ROLE_TOOL: qs_chat_response(o, g, i, n); break;
        case QS_ROLE_OTHER: break;
        }
    }
    if (flags & QSAE_CHAT_NO_GENERATION) return;
    qs_chat_own(o, "<|im_start|>assistant\n");
    if (flags & QSAE_CHAT_NO_THINK) qs_chat_own(o, "<think>\n\n</think>\n\n");
}

/* ---- what the caller gave ---- */

static qsae_status qs_check_message(const qsae_message *g, size_t i, unsigned flags, qsae_error *err)
{
    if (!g->role || (qs_chat_role(g) == QS_ROLE_OTHER && !(flags & QSAE_CHAT_ANY_ROLE)))
        return qs_fail(err, QSAE_E_ARG, 0, "message %zu: role %.40s is not system, user, assistant or tool", i,
                       g->role ? g->role : "NULL");
    if ((!g->content && g->content_len) || (!g->reasoning && g->reasoning_len) ||
        (!g->tool_calls && g->n_tool_calls) || (!g->tools && g->tools_len))
        return qs_fail(err, QSAE_E_ARG, 0, "message %zu: NULL has a length", i);
    if (g->tools && i) return qs_fail(err, QSAE_E_ARG, 0, "message %zu: only the first can have tools", i);
    if ((g->reasoning || g->n_tool_calls) && qs_chat_role(g) != QS_ROLE_ASSISTANT)
        return qs_fail(err, QSAE_E_ARG, 0, "message %zu: only an assistant reasons and calls tools", i);
    for (size_t k = 0; k < g->n_tool_calls; k++) {
        const qsae_tool_call *c = &g->tool_calls[k];
        if ((!c->name && c->name_len) || (!c->arguments && c->arguments_len))
            return qs_fail(err, QSAE_E_ARG, 0, "message %zu, tool call %zu: NULL has a length", i, k);
    }
    return QSAE_OK;
}

static qsae_status qs_check_chat(const qsae_model *m, const qsae_message *g, size_t n, unsigned flags,
                                 qsae_error *err)
{
    const unsigned known =
        QSAE_CHAT_NO_GENERATION | QSAE_CHAT_NO_THINK | QSAE_CHAT_SPECIAL | QSAE_CHAT_ANY_ROLE;
    if (flags & ~known) return qs_fail(err, QSAE_E_ARG, 0, "chat: unknown flags 0x%x", flags);
    if (!n) return qs_fail(err, QSAE_E_ARG, 0, "chat: there is no message");
    for (size_t i = 0; i < n; i++) {
        qsae_status st = qs_check_message(&g[i], i, flags, err);
        if (st) return st;
    }
    if (m->info.chat_format == QSAE_CHAT_OTHER)
        return qs_fail(err, QSAE_E_UNSUP, 0, "the checkpoint's chat template is not Qwen3's; convert it with "
                       "--chat-template qwen3 if Qwen3's is right all the same");
    return QSAE_OK;
}

/* Counts bytes and marks. */
static qsae_status qs_chat_count(const qsae_message *g, size_t n, unsigned flags, qs_chat_out *o,
                                 qsae_error *err)
{
    memset(o, 0, sizeof *o);
    qs_chat_walk(o, g, n, flags);
    if (o->overflow) return qs_fail(err, QSAE_E_LIMIT, 0, "the chat has more bytes than can be counted");
    return QSAE_OK;
}

qsae_status qsae_chat_render(const qsae_model *model, const qsae_message *messages, size_t n_messages,
                             unsigned flags, char *text, size_t cap, size_t *len, qsae_error *err)
{
    qs_chat_out o;
    qsae_status st;
    if (!model || (!messages && n_messages) || !len || (!text && cap))
        return qs_fail(err, QSAE_E_ARG, 0, "chat: a pointer is NULL");
    if ((st = qs_check_chat(model, messages, n_messages, flags, err)) ||
        (st = qs_chat_count(messages, n_messages, flags, &o, err)))
        return st;
    memset(&o, 0, sizeof o);
    o.text = text;
    o.cap = cap;
    qs_chat_walk(&o, messages, n_messages, flags);
    *len = o.n;
    if (o.n > cap) return qs_fail(err, QSAE_E_LIMIT, 0, "the chat has %zu bytes, the buffer holds %zu", o.n, cap);
    return QSAE_OK;
}

#if defined(QSAE_NO_TOKENIZER)

qsae_status qsae_chat_tokens(const qsae_model *model, const qsae_message *messages, size_t n_messages,
                             unsigned flags, int32_t *ids, size_t cap, size_t *n, qsae_error *err)
{
    (void)model, (void)messages, (void)n_messages, (void)flags, (void)ids, (void)cap, (void)n;
    return qs_fail(err, QSAE_E_UNSUP, 0, "this build has no tokenizer (QSAE_NO_TOKENIZER)");
}

#else

static int qs_chat_find(const qsae_model *m, const char *text, int32_t *id)
{
    return m->tok_blob && qs_tok_find_added(&m->tok, text, strlen(text), id);
}

/* Appends the ids of a part of the rendered text. *n counts on beyond cap. */
static qsae_status qs_chat_part(const qsae_model *m, const char *text, size_t len, int special, int32_t *ids,
                                size_t cap, size_t *n, qsae_error *err)
{
    size_t room = *n < cap ? cap - *n : 0, more = 0;
    qsae_status st = qs_tokenize(m, text, len, special, room ? ids + *n : NULL, room, &more, err);
    if (st == QSAE_OK) *n += more;
    return st;
}

static qsae_status qs_chat_ids(const qsae_model *m, const qs_chat_out *o, unsigned flags, int32_t *ids,
                               size_t cap, size_t *n, qsae_error *err)
{
    size_t from = 0;
    qsae_status st;
    int32_t id;
    if (flags & QSAE_CHAT_SPECIAL) return qs_chat_part(m, o->text, o->n, 1, ids, cap, n, err);
    for (size_t i = 0; i < o->n_marks; i++) {
        const qs_mark *k = &o->marks[i];
        if (!qs_chat_find(m, k->token, &id)) continue; /* then it is text to the reference, too */
        if (k->at > from && (st = qs_chat_part(m, o->text + from, k->at - from, 0, ids, cap, n, err))) return st;
        if (*n < cap) ids[*n] = id;
        ++*n;
        from = k->at + strlen(k->token);
    }
    return from < o->n ? qs_chat_part(m, o->text + from, o->n - from, 0, ids, cap, n, err) : QSAE_OK;
}

qsae_status qsae_chat_tokens(const qsae_model *model, const qsae_message *messages, size_t n_messages,
                             unsigned flags, int32_t *ids, size_t cap, size_t *n, qsae_error *err)
{
    qs_chat_out o, count;
    qsae_status st;
    size_t size, total = 0;
    int32_t id;
    if (!model || (!messages && n_messages) || !n || (!ids && cap))
        return qs_fail(err, QSAE_E_ARG, 0, "chat: a pointer is NULL");
    if ((st = qs_check_chat(model, messages, n_messages, flags, err)) ||
        (st = qs_chat_count(messages, n_messages, flags, &count, err)))
        return st;
    if (!qs_chat_find(model, "<|im_start|>", &id) || !qs_chat_find(model, "<|im_end|>", &id))
        return qs_fail(err, QSAE_E_STATE, 0, "the file has no tokenizer with <|im_start|> and <|im_end|>");
    if (count.n > INT32_MAX)
        return qs_fail(err, QSAE_E_LIMIT, 0, "the chat has %zu bytes, at most %d", count.n, INT32_MAX);
    if (!qs_mul(count.n_marks, sizeof(qs_mark), &size) || !qs_add(size, count.n, &size)) size = SIZE_MAX;
    memset(&o, 0, sizeof o);
    o.marks = size < SIZE_MAX ? qs_alloc(&model->file.alloc, size) : NULL;
    if (!o.marks) return qs_fail(err, QSAE_E_NOMEM, 0, "no memory for a chat of %zu bytes", count.n);
    o.cap_marks = count.n_marks;
    o.text = (char *)(o.marks + count.n_marks);
    o.cap = count.n;
    qs_chat_walk(&o, messages, n_messages, flags);
    st = qs_chat_ids(model, &o, flags, ids, cap, &total, err);
    qs_release(&model->file.alloc, o.marks, size);
    if (st) return st;
    *n = total;
    if (total > cap)
        return qs_fail(err, QSAE_E_LIMIT, 0, "the chat has %zu tokens, the buffer holds %zu", total, cap);
    return QSAE_OK;
}

#endif

#ifndef QSAE_NO_TRAINING

/* ===================================================================================================
 * 24 Training: kernels (private)
 *
 * The loops of a training step, one body for all instruction sets: V is a vector of W floats, and every output has
 * the same chain of operations in any lane. So here the portable set is not the reference; the SAE row contract of
 * section 6 is, which tests hold against qs_dots_f32_scalar.
 * =================================================================================================== */

/* The dense encode works on QS_LATENTS rows of the encoder and QS_PANEL rows of x at a time. Both are packed in chain
 * order, [n][QS_LATENTS] and [n][QS_PANEL]: first k = 0, 16, 32, ... (chain 0), then chains 8, 4, 12, ... in the order
 * in which the tree takes them, so that one chain at a time fills the registers and a finished one is folded into those
 * before it (a binary counter of tiles). */
#define QS_PANEL 48
#define QS_LATENTS 8
#define QS_COLUMNS 64 /* of the reconstruction, decoded at a time: QS_COLUMNS x max_rows floats stay in the cache */

static const uint8_t QS_CHAIN_ORDER[16] = {0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15};

/* What decides whether a pair is kept: (z + bias) norm past least and past the row's own cut */
typedef struct qs_latent {
    float bias, norm, least;
} qs_latent;

/* An encoder row w as scale * codes: sum of the codes; at least |w - scale codes|; at least |scale codes| */
typedef struct qs_code {
    float scale, rest, norm;
    int32_t sum;
} qs_code;

/* The rows of x of a panel as scale * (byte - 128); what multiplies a latent's rest and norm in the bound; cut-offs.
 * [QS_PANEL] each */
typedef struct qs_shadow {
    const float *scale, *rest, *norm, *cut;
} qs_shadow;

#define QS_CODE_ALIGN 64

/* One step of Adam: m += (g scale - m) gain1; v = v beta2 + (g scale)^2 gain2; p -= rate (m / (sqrt(v) root + eps)) */
typedef struct qs_adam {
    float scale, gain1, beta2, gain2, root, eps, rate;
} qs_adam;

/* n is a multiple of 16; rows of x and y are counted in units of ld floats.
 * gram       z[r][t] = w_r . x_t for QS_LATENTS x QS_PANEL, z [QS_LATENTS][QS_PANEL]; the SAE row contract
 * pick       of z [QS_PANEL] appends the kept: row = first + t, value = z + bias. What is not a number is kept. Returns
 *            how many; writes no more
 * pair_dots  value[p] = w . x[row[p]]; the SAE row contract
 * gather     y += a[p] x[row[p]] for p in order, y [n]
 * scatter    y[row[p]] += a[p] d, y [][QS_COLUMNS], d [n], n <= QS_COLUMNS
 * adam       g NULL: zeros
 * code       an encoder row as bytes, codes [n up to QS_CODE_ALIGN]
 * screen     for QS_LATENTS x QS_PANEL pairs whether they may be kept: of each latent l[r] appends the numbers of the rows,
 *            from first on, to row [r][QS_PANEL], n[r] receiving how many. x [ld / 4][QS_PANEL][4]. Both NULL: no screen */
typedef struct qs_train_kernels {
    void (*gram)(const float *w, const float *x, size_t n, float *z);
    size_t (*pick)(const float *z, const qs_latent *l, const float *cut, uint32_t first, uint32_t *row,
                   float *value);
    void (*pair_dots)(const float *w, size_t n, const float *x, size_t ld, const uint32_t *row, size_t count,
                      float *value);
    void (*gather)(const float *a, const uint32_t *row, size_t count, const float *x, size_t ld, size_t n,
                   float *y);
    void (*scatter)(const float *a, const uint32_t *row, size_t count, const float *d, size_t n, float *y);
    void (*adam)(const qs_adam *a, const float *g, size_t n, float *p, float *m, float *v);
    void (*code)(const float *w, size_t n, int8_t *codes, qs_code *c);
    void (*screen)(const int8_t *codes, size_t ld, const qs_code *c, const qs_latent *l, const uint8_t *x,
                   const qs_shadow *s, uint32_t first, uint32_t *row, size_t *n);
} qs_train_kernels;

#if !defined(QS_UNROLL)
#define QS_UNROLL
#endif

/* gather's columns j.. by N vectors at a time */
#define QS_GATHER(isa, V, W, N)                                                                                        \
    for (; j + (N) * (W) <= n; j += (N) * (W)) {                                                                       \
        V c[N];                                                                                                        \
        QS_UNROLL for (int i = 0; i < (N); i++) c[i] = qs_vload_##isa(y + j + (size_t)(i * (W)));                      \
        for (size_t p = 0; p < count; p++) {                                                                           \
            const float *at = x + row[p] * ld + j;                                                                     \
            V av = qs_vset_##isa(a[p]);                                                                                \
            QS_UNROLL for (int i = 0; i < (N); i++)                                                                    \
                c[i] = qs_vfma_##isa(av, qs_vload_##isa(at + i * (W)), c[i]);                                          \
        }                                                                                                              \
        QS_UNROLL for (int i = 0; i < (N); i++) qs_vstore_##isa(y + j + (size_t)(i * (W)), c[i]);                      \
    }

/* R x T: latents and vectors of rows in gram's registers. P: pairs of pair_dots, U: vectors of gather. */
#define QS_TRAIN_SET(isa, attr, V, W, R, T, P, U)                                                                      \
    attr static void qs_gram_##isa(const float *w, const float *x, size_t n, float *z)                                 \
    {                                                                                                                  \
        float kept[4][QS_LATENTS * QS_PANEL];                                                                          \
        for (size_t at = 0; at < QS_LATENTS / (R) * (QS_PANEL / ((T) * (W))); at++) {                                  \
            size_t r0 = at % (QS_LATENTS / (R)) * (R), t0 = at / (QS_LATENTS / (R)) * ((T) * (W));                     \
            const float *wp = w + r0, *xp = x + t0;                                                                    \
            size_t depth = 0;                                                                                          \
            for (unsigned chain = 0; chain < 16; chain++) {                                                            \
                V c[(R) * (T)], xv[T];                                                                                 \
                QS_UNROLL for (int i = 0; i < (R) * (T); i++) c[i] = qs_vset_##isa(0.0f);                              \
                for (size_t k = 0; k < n / 16; k++, wp += QS_LATENTS, xp += QS_PANEL) {                                \
                    QS_UNROLL for (int t = 0; t < (T); t++) xv[t] = qs_vload_##isa(xp + t * (W));                      \
                    QS_UNROLL for (int r = 0; r < (R); r++) {                                                          \
                        V wv = qs_vset_##isa(wp[r]);                                                                   \
                        QS_UNROLL for (int t = 0; t < (T); t++)                                                        \
                            c[r * (T) + t] = qs_vfma_##isa(wv, xv[t], c[r * (T) + t]);                                 \
                    }                                                                                                  \
                }                                                                                                      \
                for (unsigned b = chain; b & 1; b >>= 1) {                                                             \
                    depth--;                                                                                           \
                    QS_UNROLL for (int i = 0; i < (R) * (T); i++)                                                      \
                        c[i] = qs_vadd_##isa(qs_vload_##isa(kept[depth] + i * (W)), c[i]);                             \
                }                                                                                                      \
                if (chain < 15) {                                                                                      \
                    QS_UNROLL for (int i = 0; i < (R) * (T); i++) qs_vstore_##isa(kept[depth] + i * (W), c[i]);        \
                    depth++;                                                                                           \
                } else {                                                                                               \
                    QS_UNROLL for (int i = 0; i < (R) * (T); i++)                                                      \
                        qs_vstore_##isa(z + (r0 + (size_t)(i / (T))) * QS_PANEL + t0 + (size_t)(i % (T) * (W)), c[i]); \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    attr static size_t qs_pick_##isa(const float *z, const qs_latent *l, const float *cut, uint32_t first,             \
                                     uint32_t *row, float *value)                                                      \
    {                                                                                                                  \
        size_t n = 0;                                                                                                  \
        float kept[W];                                                                                                 \
        V bias = qs_vset_##isa(l->bias), norm = qs_vset_##isa(l->norm), least = qs_vset_##isa(l->least);               \
        for (uint32_t t = 0; t < QS_PANEL; t += (W)) {                                                                 \
            V v = qs_vadd_##isa(qs_vload_##isa(z + t), bias);                                                          \
            unsigned past = qs_vpast_##isa(qs_vmul_##isa(v, norm), qs_vmax_##isa(least, qs_vload_##isa(cut + t)));     \
            if (!past) continue;                                                                                       \
            qs_vstore_##isa(kept, v);                                                                                  \
            for (uint32_t j = 0; j < (W); j++)                                                                         \
                if (past >> j & 1) {                                                                                   \
                    row[n] = first + t + j;                                                                            \
                    value[n++] = kept[j];                                                                              \
                }                                                                                                      \
        }                                                                                                              \
        return n;                                                                                                      \
    }                                                                                                                  \
    attr static void qs_pair_dots_##isa(const float *w, size_t n, const float *x, size_t ld, const uint32_t *row,      \
                                        size_t count, float *value)                                                    \
    {                                                                                                                  \
        size_t p = 0;                                                                                                  \
        for (; p + (P) <= count; p += (P)) {                                                                           \
            V c[(P) * (16 / (W))];                                                                                     \
            const float *at[P];                                                                                        \
            QS_UNROLL for (int q = 0; q < (P); q++) at[q] = x + row[p + (size_t)q] * ld;                               \
            QS_UNROLL for (int i = 0; i < (P) * (16 / (W)); i++) c[i] = qs_vset_##isa(0.0f);                           \
            for (size_t k = 0; k < n; k += 16) {                                                                       \
                QS_UNROLL for (int j = 0; j < 16 / (W); j++) {                                                         \
                    V wv = qs_vload_##isa(w + k + (size_t)(j * (W)));                                                  \
                    QS_UNROLL for (int q = 0; q < (P); q++)                                                            \
                        c[q * (16 / (W)) + j] =                                                                        \
                            qs_vfma_##isa(wv, qs_vload_##isa(at[q] + k + (size_t)(j * (W))), c[q * (16 / (W)) + j]);   \
                }                                                                                                      \
            }                                                                                                          \
            QS_UNROLL for (int q = 0; q < (P); q++) value[p + (size_t)q] = qs_vtree_##isa(c + q * (16 / (W)));         \
        }                                                                                                              \
        for (; p < count; p++) {                                                                                       \
            V c[16 / (W)];                                                                                             \
            const float *at = x + row[p] * ld;                                                                         \
            QS_UNROLL for (int j = 0; j < 16 / (W); j++) c[j] = qs_vset_##isa(0.0f);                                   \
            for (size_t k = 0; k < n; k += 16)                                                                         \
                QS_UNROLL for (int j = 0; j < 16 / (W); j++)                                                           \
                    c[j] = qs_vfma_##isa(qs_vload_##isa(w + k + (size_t)(j * (W))),                                    \
                                         qs_vload_##isa(at + k + (size_t)(j * (W))), c[j]);                            \
            value[p] = qs_vtree_##isa(c);                                                                              \
        }                                                                                                              \
    }                                                                                                                  \
    attr static void qs_gather_##isa(const float *a, const uint32_t *row, size_t count, const float *x, size_t ld,     \
                                     size_t n, float *y)                                                               \
    {                                                                                                                  \
        size_t j = 0;                                                                                                  \
        QS_GATHER(isa, V, W, U)                                                                                        \
        QS_GATHER(isa, V, W, (U) / 2)                                                                                  \
        for (; j < n; j += (W)) {                                                                                      \
            V c = qs_vload_##isa(y + j);                                                                               \
            for (size_t p = 0; p < count; p++)                                                                         \
                c = qs_vfma_##isa(qs_vset_##isa(a[p]), qs_vload_##isa(x + row[p] * ld + j), c);                        \
            qs_vstore_##isa(y + j, c);                                                                                 \
        }                                                                                                              \
    }                                                                                                                  \
    attr static void qs_scatter_##isa(const float *a, const uint32_t *row, size_t count, const float *d, size_t n,     \
                                      float *y)                                                                        \
    {                                                                                                                  \
        size_t j = 0;                                                                                                  \
        for (; j + 4 * (W) <= n; j += 4 * (W)) {                                                                       \
            V v[4];                                                                                                    \
            QS_UNROLL for (int i = 0; i < 4; i++) v[i] = qs_vload_##isa(d + j + (size_t)(i * (W)));                    \
            for (size_t p = 0; p < count; p++) {                                                                       \
                float *to = y + row[p] * (size_t)QS_COLUMNS + j;                                                       \
                V av = qs_vset_##isa(a[p]);                                                                            \
                QS_UNROLL for (int i = 0; i < 4; i++)                                                                  \
                    qs_vstore_##isa(to + i * (W), qs_vfma_##isa(av, v[i], qs_vload_##isa(to + i * (W))));              \
            }                                                                                                          \
        }                                                                                                              \
        for (; j < n; j += (W)) {                                                                                      \
            V v = qs_vload_##isa(d + j);                                                                               \
            for (size_t p = 0; p < count; p++) {                                                                       \
                float *to = y + row[p] * (size_t)QS_COLUMNS + j;                                                       \
                qs_vstore_##isa(to, qs_vfma_##isa(qs_vset_##isa(a[p]), v, qs_vload_##isa(to)));                        \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    attr static void qs_adam_##isa(const qs_adam *a, const float *g, size_t n, float *p, float *m, float *v)           \
    {                                                                                                                  \
        V b1 = qs_vset_##isa(a->gain1), b2 = qs_vset_##isa(a->beta2), c2 = qs_vset_##isa(a->gain2);                    \
        V scale = qs_vset_##isa(a->scale), root = qs_vset_##isa(a->root), eps = qs_vset_##isa(a->eps);                 \
        V rate = qs_vset_##isa(a->rate);                                                                               \
        for (size_t j = 0; j < n; j += (W)) {                                                                          \
            V gv = g ? qs_vmul_##isa(qs_vload_##isa(g + j), scale) : qs_vset_##isa(0.0f);                              \
            V mv = qs_vload_##isa(m + j), vv = qs_vload_##isa(v + j);                                                  \
            mv = qs_vadd_##isa(mv, qs_vmul_##isa(qs_vsub_##isa(gv, mv), b1));                                          \
            vv = qs_vadd_##isa(qs_vmul_##isa(vv, b2), qs_vmul_##isa(qs_vmul_##isa(gv, gv), c2));                       \
            V down = qs_vadd_##isa(qs_vmul_##isa(qs_vsqrt_##isa(vv), root), eps);                                      \
            V pv = qs_vload_##isa(p + j);                                                                              \
            qs_vstore_##isa(p + j, qs_vsub_##isa(pv, qs_vmul_##isa(rate, qs_vdiv_##isa(mv, down))));                   \
            qs_vstore_##isa(m + j, mv);                                                                                \
            qs_vstore_##isa(v + j, vv);                                                                                \
        }                                                                                                              \
    }                                                                                                                  \
    static const qs_train_kernels QS_TRAIN_##isa = {qs_gram_##isa, qs_pick_##isa, qs_pair_dots_##isa,                  \
                                                    qs_gather_##isa, qs_scatter_##isa, qs_adam_##isa, NULL, NULL}

static float qs_vset_scalar(float a) { return a; }
static float qs_vload_scalar(const float *p) { return *p; }
static void qs_vstore_scalar(float *p, float a) { *p = a; }
static float qs_vfma_scalar(float a, float b, float c) { return fmaf(a, b, c); }
static float qs_vadd_scalar(float a, float b) { return a + b; }
static float qs_vsub_scalar(float a, float b) { return a - b; }
static float qs_vmul_scalar(float a, float b) { return a * b; }
static float qs_vdiv_scalar(float a, float b) { return a / b; }
static float qs_vsqrt_scalar(float a) { return sqrtf(a); }
static float qs_vmax_scalar(float a, float b) { return a > b ? a : b; }
static unsigned qs_vpast_scalar(float a, float b) { return !(a <= b); }
static float qs_vtree_scalar(float *c) { return qs_tree16(c); }

#define QS_NO_ATTR
QS_TRAIN_SET(scalar, QS_NO_ATTR, float, 1, 4, 3, 1, 8);

#if defined(QS_HAVE_AVX2)
QS_AVX2_INLINE __m256 qs_vset_avx2(float a) { return _mm256_set1_ps(a); }
QS_AVX2_INLINE __m256 qs_vload_avx2(const float *p) { return _mm256_loadu_ps(p); }
QS_AVX2_INLINE void qs_vstore_avx2(float *p, __m256 a) { _mm256_storeu_ps(p, a); }
QS_AVX2_INLINE __m256 qs_vfma_avx2(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
QS_AVX2_INLINE __m256 qs_vadd_avx2(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
QS_AVX2_INLINE __m256 qs_vsub_avx2(__m256 a, __m256 b) { return _mm256_sub_ps(a, b); }
QS_AVX2_INLINE __m256 qs_vmul_avx2(__m256 a, __m256 b) { return _mm256_mul_ps(a, b); }
QS_AVX2_INLINE __m256 qs_vdiv_avx2(__m256 a, __m256 b) { return _mm256_div_ps(a, b); }
QS_AVX2_INLINE __m256 qs_vmax_avx2(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
QS_AVX2_INLINE __m256 qs_vsqrt_avx2(__m256 a) { return _mm256_sqrt_ps(a); }
QS_AVX2_INLINE unsigned qs_vpast_avx2(__m256 a, __m256 b)
{
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NLE_UQ));
}
QS_AVX2_INLINE float qs_vtree_avx2(__m256 *c) { return qs_tree_avx2(c[0], c[1]); }

QS_TRAIN_SET(avx2, QS_AVX2, __m256, 8, 4, 3, 4, 8);
#endif

#if defined(QS_HAVE_AVX512)
QS_AVX512_INLINE __m512 qs_vset_avx512(float a) { return _mm512_set1_ps(a); }
QS_AVX512_INLINE __m512 qs_vload_avx512(const float *p) { return _mm512_loadu_ps(p); }
QS_AVX512_INLINE void qs_vstore_avx512(float *p, __m512 a) { _mm512_storeu_ps(p, a); }
QS_AVX512_INLINE __m512 qs_vfma_avx512(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
QS_AVX512_INLINE __m512 qs_vadd_avx512(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
QS_AVX512_INLINE __m512 qs_vsub_avx512(__m512 a, __m512 b) { return _mm512_sub_ps(a, b); }
QS_AVX512_INLINE __m512 qs_vmul_avx512(__m512 a, __m512 b) { return _mm512_mul_ps(a, b); }
QS_AVX512_INLINE __m512 qs_vdiv_avx512(__m512 a, __m512 b) { return _mm512_div_ps(a, b); }
QS_AVX512_INLINE __m512 qs_vmax_avx512(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }
QS_AVX512_INLINE __m512 qs_vsqrt_avx512(__m512 a) { return _mm512_sqrt_ps(a); }
QS_AVX512_INLINE unsigned qs_vpast_avx512(__m512 a, __m512 b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ); }
QS_AVX512_INLINE float qs_vtree_avx512(__m512 *c) { return qs_tree_avx512(c[0]); }

QS_TRAIN_SET(avx512, QS_AVX512, __m512, 16, 8, 3, 6, 16);

QS_VNNI static void qs_code_vnni(const float *w, size_t n, int8_t *codes, qs_code *c)
{
    __m512 most = _mm512_setzero_ps(), rest = most, square = most;
    __m512i sum = _mm512_setzero_si512();
    for (size_t k = 0; k < n; k += 16) most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_loadu_ps(w + k)));
    float max = _mm512_reduce_max_ps(most), inverse = max > 0.0f ? 127.0f / max : 0.0f;
    c->scale = max / 127.0f;
    if (!qs_finite(inverse)) inverse = c->scale = 0.0f;
    for (size_t k = 0; k < n; k += 16) {
        __m512 v = _mm512_loadu_ps(w + k);
        __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(v, _mm512_set1_ps(inverse)));
        __m512 back = _mm512_cvtepi32_ps(q), off = _mm512_fnmadd_ps(back, _mm512_set1_ps(c->scale), v);
        rest = _mm512_fmadd_ps(off, off, rest);
        square = _mm512_fmadd_ps(back, back, square);
        sum = _mm512_add_epi32(sum, q);
        _mm_storeu_si128((__m128i *)(void *)(codes + k), _mm512_cvtsepi32_epi8(q));
    }
    c->sum = _mm512_reduce_add_epi32(sum);
    c->rest = sqrtf(_mm512_reduce_add_ps(rest)) * 1.0001f + 1e-20f;
    c->norm = c->scale * sqrtf(_mm512_reduce_add_ps(square)) * 1.0001f;
    if (!(c->rest < 1e15f && c->norm < 1e15f)) c->rest = c->norm = INFINITY;
}

QS_VNNI static void qs_screen_vnni(const int8_t *codes, size_t ld, const qs_code *c, const qs_latent *l,
                                   const uint8_t *x, const qs_shadow *s, uint32_t first, uint32_t *row, size_t *n)
{
    __v16si sum[24]; /* as __m512i gcc would store them all along */
    QS_UNROLL for (int i = 0; i < 24; i++) sum[i] = (__v16si)_mm512_setzero_si512();
    for (size_t k = 0; k < ld; k += 4, x += 4 * QS_PANEL) {
        __m512i v[3];
        QS_UNROLL for (int t = 0; t < 3; t++) v[t] = _mm512_loadu_si512(x + 64 * t);
        QS_UNROLL for (int r = 0; r < 8; r++) {
            __m512i w = qs_quad_vnni(codes + (size_t)r * ld + k);
            QS_UNROLL for (int t = 0; t < 3; t++)
                sum[3 * r + t] = (__v16si)_mm512_dpbusd_epi32((__m512i)sum[3 * r + t], v[t], w);
        }
    }
    __m512i at = _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                  _mm512_set1_epi32((int)first));
    QS_UNROLL for (int r = 0; r < 8; r++) {
        uint32_t *to = row + r * QS_PANEL;
        __m512i off = _mm512_set1_epi32(128 * c[r].sum);
        __m512 scale = _mm512_set1_ps(c[r].scale), bias = _mm512_set1_ps(l[r].bias);
        __m512 slack = _mm512_set1_ps(fabsf(l[r].bias) * 1e-6f + 1e-30f);
        n[r] = 0;
        QS_UNROLL for (int t = 0; t < 3; t++) {
            __m512 z = _mm512_cvtepi32_ps(_mm512_sub_epi32((__m512i)sum[3 * r + t], off));
            z = _mm512_mul_ps(z, _mm512_mul_ps(scale, _mm512_loadu_ps(s->scale + 16 * t)));
            __m512 eps = _mm512_fmadd_ps(_mm512_set1_ps(c[r].rest), _mm512_loadu_ps(s->rest + 16 * t), slack);
            eps = _mm512_fmadd_ps(_mm512_set1_ps(c[r].norm), _mm512_loadu_ps(s->norm + 16 * t), eps);
            __m512 key = _mm512_mul_ps(_mm512_add_ps(_mm512_add_ps(z, bias), eps), _mm512_set1_ps(l[r].norm));
            __m512 cut = _mm512_max_ps(_mm512_set1_ps(l[r].least), _mm512_loadu_ps(s->cut + 16 * t));
            __mmask16 maybe = _mm512_cmp_ps_mask(key, cut, _CMP_NLE_UQ);
            if (!maybe) continue;
            _mm512_mask_compressstoreu_epi32(to + n[r], maybe,
                                             _mm512_add_epi32(at, _mm512_set1_epi32(16 * t)));
            n[r] += (size_t)__builtin_popcount(maybe);
        }
    }
}

static const qs_train_kernels QS_TRAIN_vnni = {qs_gram_avx512,    qs_pick_avx512,    qs_pair_dots_avx512,
                                               qs_gather_avx512,  qs_scatter_avx512, qs_adam_avx512,
                                               qs_code_vnni,      qs_screen_vnni};
#endif

#if defined(QS_HAVE_NEON)
QS_NEON_INLINE float32x4_t qs_vset_neon(float a) { return vdupq_n_f32(a); }
QS_NEON_INLINE float32x4_t qs_vload_neon(const float *p) { return vld1q_f32(p); }
QS_NEON_INLINE void qs_vstore_neon(float *p, float32x4_t a) { vst1q_f32(p, a); }
QS_NEON_INLINE float32x4_t qs_vfma_neon(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmaq_f32(c, a, b); }
QS_NEON_INLINE float32x4_t qs_vadd_neon(float32x4_t a, float32x4_t b) { return vaddq_f32(a, b); }
QS_NEON_INLINE float32x4_t qs_vsub_neon(float32x4_t a, float32x4_t b) { return vsubq_f32(a, b); }
QS_NEON_INLINE float32x4_t qs_vmul_neon(float32x4_t a, float32x4_t b) { return vmulq_f32(a, b); }
QS_NEON_INLINE float32x4_t qs_vdiv_neon(float32x4_t a, float32x4_t b) { return vdivq_f32(a, b); }
QS_NEON_INLINE float32x4_t qs_vmax_neon(float32x4_t a, float32x4_t b) { return vmaxq_f32(a, b); }
QS_NEON_INLINE float32x4_t qs_vsqrt_neon(float32x4_t a) { return vsqrtq_f32(a); }
QS_NEON_INLINE unsigned qs_vpast_neon(float32x4_t a, float32x4_t b)
{
    static const uint32_t bit[4] = {1, 2, 4, 8};
    return vaddvq_u32(vbicq_u32(vld1q_u32(bit), vcleq_f32(a, b)));
}
QS_NEON_INLINE float qs_vtree_neon(float32x4_t *c)
{
    float32x4_t s = vaddq_f32(vaddq_f32(c[0], c[2]), vaddq_f32(c[1], c[3]));
    float32x2_t h = vadd_f32(vget_low_f32(s), vget_high_f32(s));
    return vget_lane_f32(h, 0) + vget_lane_f32(h, 1);
}

QS_TRAIN_SET(neon, QS_NEON, float32x4_t, 4, 8, 3, 4, 16);
#endif

static const qs_train_kernels *qs_train_kernels_of(qsae_isa isa)
{
    switch (isa) {
#if defined(QS_HAVE_AVX2)
    case QSAE_ISA_AVX2: return &QS_TRAIN_avx2;
#endif
#if defined(QS_HAVE_AVX512)
    case QSAE_ISA_AVX512: return &QS_TRAIN_avx512;
    case QSAE_ISA_AVX512_VNNI: return &QS_TRAIN_vnni;
#endif
#if defined(QS_HAVE_NEON)
    case QSAE_ISA_NEON: return &QS_TRAIN_neon;
    case QSAE_ISA_NEON_DOT: return &QS_TRAIN_neon;
#endif
    default: return &QS_TRAIN_scalar;
    }
}

/* ===================================================================================================
 * 25 Training: the trainer (public)
 *
 * A step, with B rows and m latents. No array of B x m values exists:
 *
 *   prepare   x' = scale x - c, row-major and packed by panels of QS_PANEL rows
 *   encode    per block of latents, panel by panel: z, and what of it is kept goes to the latent's list of (row, z), rows
 *             ascending. Kept is what fires or lies in the window (JumpReLU), or may be among the largest (TopK kinds)
 *   select    TopK kinds: the lists shrink to the largest
 *   decode    per QS_COLUMNS columns: from c, latents ascending, y += z d_i. Then the error e, the loss, and
 *             G = dL/dy = 2 e / B, in place. Matryoshka: an e per prefix, and G_k the sum of those from k on
 *   aux       the same for lists over the dead latents
 *   backward  per latent: dL/df = d_i . G_b for its list, then two weighted sums of rows, of G and of x'
 *   update    clip, Adam. Without a clip a latent is updated as soon as its gradient is there
 *
 * Every sum has one owner and one order: z the row contract of section 6; y over latents; gradients over the list, rows
 * ascending; c's gradient over rows, then over parts of QS_PART latents; the loss in double, per chunk of columns, then
 * over chunks; the norm in double over latents. Threads split latents or columns, never a sum.
 *
 * The lists share one arena; with a clip, those of JumpReLU lie where their latents' gradients will be, if they fit. A
 * JumpReLU SAE may at first fire almost everywhere: when the arena overflows, latents are taken in several rounds, and
 * encoded again for the backward pass. The same bits, more time, no more memory.
 * =================================================================================================== */

#define QS_PART ((size_t)64)
#define QS_SLAB_ROWS 48u /* of x or the error, QS_SLAB_COLUMNS wide: in the L1 cache while a part passes */
#define QS_SLAB_COLUMNS ((size_t)128)
#define QS_DOT_ROWS ((size_t)96) /* of the error: in the L2 cache while a part's latents pass */
#define QS_SLAB_WIDE ((size_t)1024) /* columns copied at a time */
#define QS_MAX_PREFIXES ((size_t)64)
#define QS_MAX_ROWS ((size_t)1 << 20)
#define QS_SCREEN_WIDEST ((size_t)1 << 16) /* 255 * 127 * this fits 31 bits */
#define QS_SCREEN_MOST 0.08                /* of the pairs: when more may be kept, a dense encode is faster */
#define QS_BLOCK_BYTES ((size_t)1 << 19) /* of packed encoder rows that stay in the L2 cache while the rows of x pass */
#define QS_SAMPLE QS_PANEL               /* rows from which the cut-off of the TopK kinds is guessed */

#define QS_AT_HOME SIZE_MAX /* of a list: not in the arena but where the latent's gradient will be */

typedef struct qs_list {
    size_t at; /* in the arena */
    size_t n;
} qs_list;

struct qsae_trainer {
    qsae_trainer_options o; /* with the defaults filled in */
    size_t prefix[QS_MAX_PREFIXES];
    float weight[QS_MAX_PREFIXES];
    size_t n_prefixes; /* 1 for all but Matryoshka */
    const qs_kernels *kernels;
    const qs_train_kernels *train;
    size_t size;
    size_t in_ld, out_ld; /* widths up to 16 */
    size_t rows_ld;       /* max_rows up to QS_PANEL */
    size_t block;         /* latents per block, a multiple of QS_LATENTS */
    size_t n_chunks, n_parts;
    int broken;           /* a load failed half way */

    /* the state */
    uint64_t step;
    double average; /* BatchTopK: moving average of the least key kept */
    float *p[5], *m[5], *v[5]; /* by qsae_train_part: ENC [d_sae, in_ld], DEC [d_sae, out_ld], B_ENC, THETA, B_DEC */
    uint32_t *fired;           /* [d_sae] steps since */

    /* what follows from it */
    float *norm;    /* [d_sae] |d_i| */
    int screens;    /* there is a screen: codes [d_sae up to QS_LATENTS, code_ld], code [the same] */
    size_t code_ld; /* in_ld up to QS_CODE_ALIGN */
    int8_t *codes;
    qs_code *code;

    /* one step's; see above */
    size_t n;
    const float *rows_y;
    size_t y_ld;
    float y_scale, l0_coefficient, least;
    float *x, *packed;            /* [max_rows, in_ld]; [panel][in_ld][QS_PANEL] */
    uint8_t *bytes;               /* [panel][code_ld / 4][QS_PANEL][4] x' for the screen; and [rows_ld] each: */
    float *x_scale, *x_rest, *x_norm;
    int screening;                /* this encode */
    size_t exact;                 /* pairs computed exactly by screened encodes */
    float *e, *aux_e;             /* [n_prefixes][max_rows, out_ld]; [max_rows, out_ld], where `packed` was */
    float *length, *cut, *lambda; /* [rows_ld] |x'|; cut-off; dS/dL0_b */
    uint32_t *active;             /* [rows_ld + 1] L0_b; before that, TopK: where a row begins in `work` */
    qs_pair *limit;               /* [rows_ld] TopK: the last pair kept */
    double *sums;                 /* [n_chunks][n_prefixes + 3]: losses, aux, sum of |y|^2, that of their means */
    qs_list *list, *aux_list;     /* [d_sae] */
    uint32_t *dead;               /* [d_sae], the first n_dead */
    size_t n_dead;
    int with_aux;
    float aux_scale;              /* of e_aux: 2 a min(..) / B */
    uint32_t *row;                /* the arena, [cap] */
    float *value;
    size_t cap, used;
    qs_pair *work;                /* [work_cap] TopK: the arena by rows, where e will be */
    size_t work_cap;
    float *keys;                  /* [d_sae][QS_PANEL] TopK kinds, before the encode: in the arena */
    float *grad;                  /* [d_sae, in_ld + out_ld] with a clip, else NULL */
    float *g_bias, *g_theta;      /* [d_sae] */
    double *square, *penalty;     /* [d_sae] |gradient|^2; tanh and pre-act loss */
    uint8_t *touched, *hit;       /* [d_sae] has a gradient; fired */
    float *parts, *g_c;           /* [n_parts, out_ld]; [out_ld] */
    char *scratch;
    size_t scratch_size;          /* per thread */
    size_t rounds, pairs;         /* JumpReLU: into which latents are split; pairs of the last step */
    qs_adam adam;
    double since, seconds[8];
};

/* ---- options and layout ---- */

static int qs_part_rows(const qsae_trainer *t, int part, size_t *rows, size_t *cols) /* 0: there is no such part */
{
    const size_t m = t->o.d_sae;
    *rows = m;
    *cols = 1;
    switch (part) {
    case QSAE_PART_ENC: *cols = t->o.d_in; return 1;
    case QSAE_PART_DEC: *cols = t->o.d_out; return 1;
    case QSAE_PART_B_ENC: return 1;
    case QSAE_PART_THETA: return t->o.arch == QSAE_TRAIN_JUMPRELU;
    default: *rows = t->o.d_out; return 1;
    }
}

static size_t qs_part_ld(const qsae_trainer *t, int part)
{
    return part == QSAE_PART_ENC ? t->in_ld : part == QSAE_PART_DEC ? t->out_ld : 1;
}

static qsae_status qs_option_fail(qsae_error *err, const char *name, double is, const char *must)
{
    return qs_fail(err, QSAE_E_ARG, 0, "trainer: %s is %.9g, must be %s", name, is, must);
}

/* A float option: 0 becomes `standard`; must be in lo..hi, hi excluded if it is 1 */
static qsae_status qs_take_float(float *v, const char *name, float standard, float lo, float hi, qsae_error *err)
{
    char must[64];
    if (*v == 0.0f) *v = standard;
    if (*v >= lo && (hi == 1.0f ? *v < hi : *v <= hi)) return QSAE_OK;
    snprintf(must, sizeof must, "%g..%g%s", (double)lo, (double)hi, hi == 1.0f ? " (excluded)" : "");
    return qs_option_fail(err, name, (double)*v, must);
}

static qsae_status qs_take_prefixes(const qsae_trainer_options *o, qsae_trainer *t, qsae_error *err)
{
    t->n_prefixes = 1;
    t->prefix[0] = o->d_sae;
    t->weight[0] = 1.0f;
    if (o->arch != QSAE_TRAIN_MATRYOSHKA) {
        if (o->n_prefixes) return qs_option_fail(err, "n_prefixes", (double)o->n_prefixes, "0 for this arch");
        return QSAE_OK;
    }
    if (!o->n_prefixes || o->n_prefixes > QS_MAX_PREFIXES || !o->prefixes)
        return qs_option_fail(err, "n_prefixes", (double)o->n_prefixes, "1..64, with prefixes set");
    t->n_prefixes = o->n_prefixes;
    for (size_t k = 0; k < o->n_prefixes; k++) {
        t->prefix[k] = o->prefixes[k];
        t->weight[k] = o->prefix_weights ? o->prefix_weights[k] : 1.0f;
        if (t->prefix[k] <= (k ? t->prefix[k - 1] : 0) || t->prefix[k] > o->d_sae)
            return qs_fail(err, QSAE_E_ARG, 0, "trainer: prefix %zu is %zu, prefixes ascend from 1 to d_sae, %zu", k,
                           t->prefix[k], o->d_sae);
        if (!(t->weight[k] >= 0.0f && t->weight[k] <= 1e6f))
            return qs_option_fail(err, "a prefix weight", (double)t->weight[k], "0..1e6");
    }
    if (t->prefix[o->n_prefixes - 1] != o->d_sae)
        return qs_fail(err, QSAE_E_ARG, 0, "trainer: the last prefix is %zu, must be d_sae, %zu",
                       t->prefix[o->n_prefixes - 1], o->d_sae);
    return QSAE_OK;
}

static qsae_status qs_take_sparsity(qsae_trainer_options *o, qsae_error *err)
{
    qsae_status st;
    if (o->arch != QSAE_TRAIN_JUMPRELU) {
        if (!(o->k > 0.0 && o->k <= (double)o->d_sae))
            return qs_option_fail(err, "k", o->k, "> 0 and at most d_sae");
        if (o->arch == QSAE_TRAIN_TOPK && o->k != floor(o->k))
            return qs_option_fail(err, "k", o->k, "a whole number for TOPK");
        return qs_take_float(&o->aux_coefficient, "aux_coefficient", 0, 0, 1e9f, err);
    }
    int target = o->sparsity == QSAE_TRAIN_TARGET || o->sparsity == QSAE_TRAIN_QUADRATIC;
    if ((unsigned)o->sparsity >= QSAE_TRAIN_SPARSITY_COUNT)
        return qs_option_fail(err, "sparsity", o->sparsity, "0..3");
    if (target && !(o->l0_target > 0.0f && o->l0_target <= (float)o->d_sae))
        return qs_option_fail(err, "l0_target", (double)o->l0_target, "> 0 and at most d_sae");
    if ((st = qs_take_float(&o->l0_coefficient, "l0_coefficient", 0, 0, 1e9f, err)) ||
        (st = qs_take_float(&o->bandwidth, "bandwidth", 0.05f, 1e-9f, 1e9f, err)) ||
        (st = qs_take_float(&o->threshold_init, "threshold_init", 0.01f, 0, 1e9f, err)) ||
        (st = qs_take_float(&o->tanh_scale, "tanh_scale", 4, 1e-9f, 1e9f, err)))
        return st;
    return qs_take_float(&o->pre_act_coefficient, "pre_act_coefficient", 0, 0, 1e9f, err);
}

static qsae_status qs_take_optimizer(qsae_trainer_options *o, qsae_error *err)
{
    qsae_status st;
    if (!o->has_betas) {
        o->beta1 = 0.9f;
        o->beta2 = 0.999f;
    }
    if ((st = qs_take_float(&o->lr, "lr", 3e-4f, 0, 1e3f, err)) ||
        (st = qs_take_float(&o->beta1, "beta1", 0, 0, 1, err)) ||
        (st = qs_take_float(&o->beta2, "beta2", 0, 0, 1, err)) ||
        (st = qs_take_float(&o->eps, "eps", 1e-8f, 1e-30f, 1e3f, err)) ||
        (st = qs_take_float(&o->clip, "clip", 0, 0, 1e30f, err)) ||
        (st = qs_take_float(&o->scale_in, "scale_in", 1, 1e-30f, 1e30f, err)) ||
        (st = qs_take_float(&o->scale_out, "scale_out", o->scale_in, 1e-30f, 1e30f, err)) ||
        (st = qs_take_float(&o->decoder_norm, "decoder_norm", o->unit_decoder ? 1.0f : 0.1f, 1e-9f, 1e9f, err)))
        return st;
    if (o->unit_decoder && o->decoder_norm != 1.0f)
        return qs_option_fail(err, "decoder_norm", (double)o->decoder_norm, "1 with unit_decoder");
    if (o->lr_decay && o->lr_decay > o->steps)
        return qs_fail(err, QSAE_E_ARG, 0, "trainer: lr_decay is %llu, of %llu steps", (unsigned long long)o->lr_decay,
                       (unsigned long long)o->steps);
    return QSAE_OK;
}

/* Fills in the defaults and checks; t gets all that follows from the options but memory. */
static qsae_status qs_take_trainer_options(const qsae_trainer_options *in, qsae_trainer *t, qsae_error *err)
{
    const size_t widest = (size_t)1 << 24;
    qsae_status st;
    memset(t, 0, sizeof *t);
    if (!in) return qs_fail(err, QSAE_E_ARG, 0, "trainer: options is NULL");
    qsae_trainer_options *o = &t->o;
    *o = *in;
    if (!o->d_out) o->d_out = o->d_in;
    if (!o->max_rows) o->max_rows = 4096;
    if (!o->n_threads) o->n_threads = 1;
    if (!o->dead_steps) o->dead_steps = 1000;
    if (!o->d_in || o->d_in > widest) return qs_option_fail(err, "d_in", (double)o->d_in, "1..2^24");
    if (o->d_out > widest) return qs_option_fail(err, "d_out", (double)o->d_out, "1..2^24");
    if (!o->d_sae || o->d_sae > (size_t)1 << 28) return qs_option_fail(err, "d_sae", (double)o->d_sae, "1..2^28");
    if (o->max_rows > QS_MAX_ROWS) return qs_option_fail(err, "max_rows", (double)o->max_rows, "1..2^20");
    if ((unsigned)o->arch >= QSAE_TRAIN_ARCH_COUNT) return qs_option_fail(err, "arch", o->arch, "0..3");
    if (o->d_in != o->d_out && !o->no_b_dec_input)
        return qs_fail(err, QSAE_E_ARG, 0, "trainer: b_dec has d_out = %zu values and cannot be taken from d_in = %zu: "
                       "set no_b_dec_input", o->d_out, o->d_in);
    if ((st = qs_take_sparsity(o, err)) || (st = qs_take_optimizer(o, err)) || (st = qs_take_prefixes(in, t, err)) ||
        (st = qs_check_threads(o->n_threads, err)) || (st = qs_take_allocator(&in->allocator, &o->allocator, err)) ||
        (st = qs_choose_isa(&o->isa, err)))
        return st;
    o->prefixes = NULL;
    o->prefix_weights = NULL;
    t->kernels = qs_kernels_of(o->isa);
    t->train = qs_train_kernels_of(o->isa);
    t->in_ld = qs_up16(o->d_in);
    t->out_ld = qs_up16(o->d_out);
    t->rows_ld = (o->max_rows + QS_PANEL - 1) / QS_PANEL * QS_PANEL;
    t->block = QS_BLOCK_BYTES / (t->in_ld * sizeof(float)) / QS_LATENTS * QS_LATENTS;
    t->block = t->block < QS_LATENTS ? QS_LATENTS : qs_min(t->block, 256);
    t->n_chunks = (t->out_ld + QS_COLUMNS - 1) / QS_COLUMNS;
    t->n_parts = (o->d_sae + QS_PART - 1) / QS_PART;
    t->rounds = 1;
    t->code_ld = (t->in_ld + QS_CODE_ALIGN - 1) / QS_CODE_ALIGN * QS_CODE_ALIGN;
    t->screens = t->train->screen && !o->no_screen && t->code_ld <= QS_SCREEN_WIDEST;
    return QSAE_OK;
}

static int qs_is_jump(const qsae_trainer *t) { return t->o.arch == QSAE_TRAIN_JUMPRELU; }

/* Scratch of one thread, a layout per phase */
typedef struct qs_encode_scratch {
    float *w, *z, *value; /* [block][in_ld] packed; [QS_LATENTS][QS_PANEL]; [block][rows_ld] */
    uint32_t *row;        /* [block][rows_ld] */
    size_t *count;        /* [block] */
    uint32_t *maybe;      /* [QS_LATENTS][QS_PANEL] what the screen lets through, and its values */
    float *exact;         /* [QS_PANEL] */
} qs_encode_scratch;

typedef struct qs_backward_scratch {
    float *gf, *a, *c, *grad; /* [rows_ld]; [QS_PART][in_ld + out_ld], but without a clip [in_ld + out_ld] */
    uint32_t *row;
    float *gfs, *as, *cs;     /* a part that fires densely: [rows_ld][QS_PART]; [QS_PART][rows_ld] */
    uint32_t *rows;
    uint32_t *start;          /* [QS_PART][slabs + 1] where a list's slabs begin */
    float *slab;              /* [QS_SLAB_ROWS x QS_SLAB_WIDE] */
} qs_backward_scratch;

typedef struct qs_decode_scratch {
    float *y, *a; /* [rows_ld][QS_COLUMNS]; [rows_ld] */
    uint32_t *row;
} qs_decode_scratch;

typedef struct qs_rank_scratch {
    float *w, *z, *keys, *key; /* [QS_LATENTS][in_ld] packed; [d_sae][QS_PANEL]; [d_sae] */
} qs_rank_scratch;

static size_t qs_lay_encode(const qsae_trainer *t, void *base, qs_encode_scratch *s)
{
    qs_carve c = {base, 0, 0};
    s->w = qs_cut(&c, t->block * t->in_ld, sizeof(float));
    s->z = qs_cut(&c, QS_LATENTS * QS_PANEL, sizeof(float));
    s->value = qs_cut(&c, t->block * t->rows_ld, sizeof(float));
    s->row = qs_cut(&c, t->block * t->rows_ld, sizeof(uint32_t));
    s->count = qs_cut(&c, t->block, sizeof(size_t));
    s->maybe = qs_cut(&c, QS_LATENTS * QS_PANEL, sizeof(uint32_t));
    s->exact = qs_cut(&c, QS_PANEL, sizeof(float));
    return c.overflow ? SIZE_MAX : c.used;
}

static size_t qs_slabs_of(const qsae_trainer *t) { return (t->rows_ld + QS_SLAB_ROWS - 1) / QS_SLAB_ROWS; }

static size_t qs_lay_backward(const qsae_trainer *t, void *base, qs_backward_scratch *s)
{
    qs_carve c = {base, 0, 0};
    s->gf = qs_cut(&c, t->rows_ld, sizeof(float));
    s->a = qs_cut(&c, t->rows_ld, sizeof(float));
    s->c = qs_cut(&c, t->rows_ld, sizeof(float));
    s->grad = qs_cut(&c, t->o.clip > 0.0f ? 0 : QS_PART * (t->in_ld + t->out_ld), sizeof(float));
    s->row = qs_cut(&c, t->rows_ld, sizeof(uint32_t));
    size_t many = qs_is_jump(t) ? QS_PART * t->rows_ld : 0;
    s->gfs = qs_cut(&c, many, sizeof(float));
    s->as = qs_cut(&c, many, sizeof(float));
    s->cs = qs_cut(&c, many, sizeof(float));
    s->rows = qs_cut(&c, many, sizeof(uint32_t));
    s->start = qs_cut(&c, many ? QS_PART * (qs_slabs_of(t) + 1) : 0, sizeof(uint32_t));
    s->slab = qs_cut(&c, many ? QS_SLAB_ROWS * QS_SLAB_WIDE : 0, sizeof(float));
    return c.overflow ? SIZE_MAX : c.used;
}

static size_t qs_lay_decode(const qsae_trainer *t, void *base, qs_decode_scratch *s)
{
    qs_carve c = {base, 0, 0};
    s->y = qs_cut(&c, t->rows_ld * QS_COLUMNS, sizeof(float));
    s->a = qs_cut(&c, t->rows_ld, sizeof(float));
    s->row = qs_cut(&c, t->rows_ld, sizeof(uint32_t));
    return c.overflow ? SIZE_MAX : c.used;
}

static size_t qs_lay_rank(const qsae_trainer *t, void *base, qs_rank_scratch *s)
{
    qs_carve c = {base, 0, 0};
    size_t m = t->o.aux_coefficient > 0.0f ? t->o.d_sae : 0;
    s->w = qs_cut(&c, QS_LATENTS * t->in_ld, sizeof(float));
    s->z = qs_cut(&c, QS_LATENTS * QS_PANEL, sizeof(float));
    s->keys = qs_cut(&c, m, QS_PANEL * sizeof(float));
    s->key = qs_cut(&c, m, sizeof(float));
    return c.overflow ? SIZE_MAX : c.used;
}

static size_t qs_lay_thread(const qsae_trainer *t)
{
    qs_encode_scratch e;
    qs_backward_scratch b;
    qs_decode_scratch d;
    qs_rank_scratch r;
    size_t sizes[4] = {qs_lay_encode(t, NULL, &e), qs_lay_backward(t, NULL, &b), qs_lay_decode(t, NULL, &d),
                       qs_lay_rank(t, NULL, &r)};
    for (size_t i = 1; i < 4; i++) sizes[0] = sizes[i] > sizes[0] ? sizes[i] : sizes[0];
    return sizes[0];
}

/* Pairs among which the TopK kinds select, at least: twice what they keep and more, or all */
static double qs_candidates(const qsae_trainer *t)
{
    double some = (double)t->o.max_rows * (2 * t->o.k + 64), all = (double)t->o.max_rows * (double)t->o.d_sae;
    return some < all ? some : all;
}

/* Pairs that the arena holds at least: a block per thread, or what a TopK selection may have to look at */
static size_t qs_least_pairs(const qsae_trainer *t)
{
    const qsae_trainer_options *o = &t->o;
    double rows = (double)o->max_rows, pairs = (double)o->n_threads * (double)t->block * (double)t->rows_ld;
    if (o->arch != QSAE_TRAIN_JUMPRELU) {
        double some = qs_candidates(t), keys = QS_PANEL * (double)o->d_sae;
        pairs = keys > pairs ? keys : pairs;
        if (o->aux_coefficient > 0.0f)
            some += rows * (double)qs_min(o->d_in / 2 ? o->d_in / 2 : 1, o->d_sae);
        pairs = some > pairs ? some : pairs;
    }
    return pairs < 1e15 ? (size_t)pairs + 16 : SIZE_MAX / 16;
}

static void qs_lay_vectors(qs_carve *c, qsae_trainer *t)
{
    const size_t m = t->o.d_sae;
    const size_t coded = t->screens ? (m + QS_LATENTS - 1) / QS_LATENTS * QS_LATENTS : 0;
    t->norm = qs_cut(c, m, sizeof(float));
    t->codes = qs_cut(c, coded, t->code_ld);
    t->code = qs_cut(c, coded, sizeof(qs_code));
    t->fired = qs_cut(c, m, sizeof(uint32_t));
    t->list = qs_cut(c, m, sizeof(qs_list));
    t->aux_list = qs_cut(c, t->o.aux_coefficient > 0.0f ? m : 0, sizeof(qs_list));
    t->dead = qs_cut(c, m, sizeof(uint32_t));
    t->g_bias = qs_cut(c, m, sizeof(float));
    t->g_theta = qs_cut(c, m, sizeof(float));
    t->square = qs_cut(c, m, sizeof(double));
    t->penalty = qs_cut(c, m, sizeof(double));
    t->touched = qs_cut(c, m, 1);
    t->hit = qs_cut(c, m, 1);
    t->parts = qs_cut(c, t->o.no_b_dec_input ? 0 : t->n_parts * t->out_ld, sizeof(float));
    t->g_c = qs_cut(c, t->out_ld, sizeof(float));
}

static void qs_lay_batch(qs_carve *c, qsae_trainer *t)
{
    size_t rows = 0;
    int topk = t->o.arch != QSAE_TRAIN_JUMPRELU, aux = t->o.aux_coefficient > 0.0f;
    t->x = qs_cut(c, t->rows_ld * t->in_ld, sizeof(float));
    t->packed = qs_cut(c, (t->rows_ld + (topk ? QS_PANEL : 0)) * (aux && t->out_ld > t->in_ld ? t->out_ld : t->in_ld),
                       sizeof(float));
    t->aux_e = t->packed;
    t->bytes = qs_cut(c, t->screens ? t->rows_ld : 0, t->code_ld);
    t->x_scale = qs_cut(c, t->screens ? t->rows_ld : 0, sizeof(float));
    t->x_rest = qs_cut(c, t->screens ? t->rows_ld : 0, sizeof(float));
    t->x_norm = qs_cut(c, t->screens ? t->rows_ld : 0, sizeof(float));
    if (!qs_mul(t->rows_ld, t->n_prefixes, &rows)) c->overflow = 1;
    size_t floats = rows * t->out_ld;
    if (t->o.arch == QSAE_TRAIN_TOPK && (double)floats < 2 * qs_candidates(t))
        floats = 2 * ((size_t)qs_candidates(t) + 1);
    t->e = qs_cut(c, floats, sizeof(float));
    t->work = (qs_pair *)(void *)t->e;
    t->work_cap = floats / 2;
    t->length = qs_cut(c, t->rows_ld, sizeof(float));
    t->cut = qs_cut(c, t->rows_ld, sizeof(float));
    t->lambda = qs_cut(c, t->rows_ld, sizeof(float));
    t->active = qs_cut(c, t->rows_ld + 1, sizeof(uint32_t));
    t->limit = qs_cut(c, topk ? t->rows_ld : 0, sizeof(qs_pair));
    t->sums = qs_cut(c, t->n_chunks * (t->n_prefixes + 3), sizeof(double));
}

/* Bytes of the block; the trainer itself comes first. The arena takes what is left of 18 bytes per parameter. */
static size_t qs_lay_trainer(char *base, qsae_trainer *t)
{
    const size_t m = t->o.d_sae;
    size_t least = qs_least_pairs(t), threads = 0;
    size_t lds[5] = {t->in_ld, t->out_ld, 1, 1, t->out_ld}, rows[5] = {m, m, m, m, 1};
    qs_carve c = {base, 0, 0};
    rows[QSAE_PART_THETA] = t->o.arch == QSAE_TRAIN_JUMPRELU ? m : 0;
    qs_cut(&c, 1, sizeof *t);
    for (int part = 0; part < 5; part++) {
        t->p[part] = qs_cut(&c, rows[part], lds[part] * sizeof(float));
        t->m[part] = qs_cut(&c, rows[part], lds[part] * sizeof(float));
        t->v[part] = qs_cut(&c, rows[part], lds[part] * sizeof(float));
    }
    t->grad = t->o.clip > 0.0f ? qs_cut(&c, m, (t->in_ld + t->out_ld) * sizeof(float)) : NULL;
    qs_lay_vectors(&c, t);
    qs_lay_batch(&c, t);
    t->scratch_size = qs_lay_thread(t);
    if (!qs_mul(t->scratch_size, (size_t)t->o.n_threads, &threads) || t->scratch_size == SIZE_MAX) c.overflow = 1;
    t->scratch = qs_cut(&c, threads, 1);
    double left = 17.9 * (double)m * (double)(t->o.d_in + t->o.d_out) - (double)c.used;
    double all = (double)t->rows_ld * (double)m + 16.0, fit = left / 8 < all ? left / 8 : all;
    t->cap = fit > (double)least ? (size_t)fit : least;
    t->row = qs_cut(&c, t->cap, sizeof(uint32_t));
    t->keys = (float *)(void *)t->row;
    t->value = qs_cut(&c, t->cap, sizeof(float));
    return c.overflow ? 0 : c.used;
}

static size_t qs_trainer_size(const qsae_trainer_options *options, qsae_trainer *t, qsae_error *err)
{
    if (qs_take_trainer_options(options, t, err)) return 0;
    t->size = qs_lay_trainer(NULL, t);
    if (!t->size || t->size > SIZE_MAX / 2) {
        qs_fail(err, QSAE_E_LIMIT, 0, "trainer: the memory for d_in %zu, d_sae %zu, %zu rows cannot be counted",
                t->o.d_in, t->o.d_sae, t->o.max_rows);
        return 0;
    }
    return t->size;
}

size_t qsae_trainer_size(const qsae_trainer_options *options, qsae_error *err)
{
    qsae_trainer t;
    return qs_trainer_size(options, &t, err);
}

/* ---- create ---- */

/* The bits of a counter: SplitMix64's output function */
static uint64_t qs_mix(uint64_t x)
{
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

static float qs_row_norm_of(const qsae_trainer *t, const float *row, size_t ld)
{
    float s;
    t->kernels->dots[QSAE_TYPE_F32](row, ld * sizeof(float), 1, ld, row, ld, 1, &s, 1);
    return sqrtf(s);
}

/* row [n] uniform in (-1, 1), scaled to the norm */
static void qs_draw_row(const qsae_trainer *t, uint64_t stream, size_t n, size_t ld, float *row)
{
    for (size_t j = 0; j < n; j++) {
        uint64_t r = qs_mix(qs_mix(t->o.seed ^ qs_mix(stream)) + j);
        row[j] = ((float)(int32_t)(r >> 40) + 0.5f) / 8388608.0f - 1.0f;
    }
    float by = t->o.decoder_norm / qs_row_norm_of(t, row, ld);
    for (size_t j = 0; j < n; j++) row[j] *= by;
}

/* |d_i| of latents lo..hi, again after every change of the decoder */
static void qs_norm_latent(qsae_trainer *t, size_t i)
{
    t->norm[i] = qs_row_norm_of(t, t->p[QSAE_PART_DEC] + i * t->out_ld, t->out_ld);
}

/* The bytes of the encoder row, again after every change */
static void qs_code_latent(qsae_trainer *t, size_t i)
{
    if (t->screens)
        t->train->code(t->p[QSAE_PART_ENC] + i * t->in_ld, t->in_ld, t->codes + i * t->code_ld, &t->code[i]);
}

static void qs_init_task(void *arg, size_t lo, size_t hi, size_t thread)
{
    qsae_trainer *t = arg;
    (void)thread;
    for (size_t i = lo; i < hi; i++) {
        float *enc = t->p[QSAE_PART_ENC] + i * t->in_ld, *dec = t->p[QSAE_PART_DEC] + i * t->out_ld;
        qs_draw_row(t, 2 * i, t->o.d_out, t->out_ld, dec);
        if (t->o.d_in == t->o.d_out) memcpy(enc, dec, t->o.d_in * sizeof *enc);
        else qs_draw_row(t, 2 * i + 1, t->o.d_in, t->in_ld, enc);
        if (t->o.arch == QSAE_TRAIN_JUMPRELU) t->p[QSAE_PART_THETA][i] = t->o.threshold_init;
        qs_norm_latent(t, i);
        qs_code_latent(t, i);
    }
}

qsae_status qsae_trainer_create(const qsae_trainer_options *options, qsae_trainer **out, qsae_error *err)
{
    qsae_trainer t;
    qsae_error e = {QSAE_E_ARG, 0, ""};
    if (!out) return qs_fail(err, QSAE_E_ARG, 0, "trainer: out is NULL");
    if (!qs_trainer_size(options, &t, &e)) {
        if (err) *err = e;
        return e.status;
    }
    char *base = qs_alloc(&t.o.allocator, t.size);
    if (!base) return qs_fail(err, QSAE_E_NOMEM, 0, "trainer: no memory for %zu bytes", t.size);
    memset(base, 0, t.size);
    qs_lay_trainer(base, &t);
    memcpy(base, &t, sizeof t);
    *out = (qsae_trainer *)(void *)base;
    qs_fp_state fp = qs_fp_enter();
    qs_parallel(t.o.n_threads, t.o.d_sae, t.in_ld + t.out_ld, qs_init_task, *out);
    qs_fp_leave(fp);
    return QSAE_OK;
}

void qsae_trainer_destroy(qsae_trainer *trainer)
{
    if (!trainer) return;
    qsae_allocator a = trainer->o.allocator;
    qs_release(&a, trainer, trainer->size);
}

/* ---- prepare ---- */

static double qs_now(const qsae_trainer *t) { return t->o.clock ? t->o.clock(t->o.clock_user) : 0; }

/* Gives the time since the last tick to a part of the step. */
static void qs_tick(qsae_trainer *t, int part)
{
    double now = qs_now(t);
    t->seconds[part] += now - t->since;
    t->since = now;
}

static int qs_rescales(const qsae_trainer *t) { return !qs_is_jump(t) && !t->o.no_rescale; }

/* 16-wide rows r[0..count) to [n][wide] in chain order; what is missing is zero */
static void qs_interleave(const float *const *r, size_t count, size_t n, size_t wide, float *to)
{
    for (size_t j = 0; j < wide; j++) {
        if (j < count) continue;
        for (size_t k = 0; k < n; k++) to[k * wide + j] = 0.0f;
    }
    for (size_t j = 0; j < count; j++) {
        float *p = to + j;
        for (size_t chain = 0; chain < 16; chain++)
            for (size_t k = QS_CHAIN_ORDER[chain]; k < n; k += 16, p += wide) *p = r[j][k];
    }
}

/* Row b as bytes. The screen's bound, with w = w' + r, x = x' + q, primes the coded values:
 *
 *     w . x = w' . x' + r . x + w' . q       |z - z'| <= |r| |x| + |w'| |q| + roundings      (Cauchy and Schwarz)
 *
 * Roundings: the exact kernel's chains, at most mu |w| |x| with |w| <= |w'| + |r|; the screen's own few, 8 u (|x| + |q|)
 * |w'|; those with the bias in the kernel's slack. A row so long that a product might overflow is always kept. */
static void qs_shadow_row(qsae_trainer *t, size_t b)
{
    const float *x = t->x + b * t->in_ld;
    uint8_t *to = t->bytes + b / QS_PANEL * QS_PANEL * t->code_ld + b % QS_PANEL * 4;
    const double u = 1.0 / 16777216.0, mu = ((double)(t->in_ld / 16) + 16) * u;
    const float magic = 12582912.0f;
    float max = 0.0f, inverse;
    double lost = 0, length = sqrt(qs_dot_double(x, x, t->o.d_in));
    for (size_t j = 0; j < t->in_ld; j++) max = fabsf(x[j]) > max ? fabsf(x[j]) : max;
    t->x_scale[b] = max / 127.0f;
    inverse = max > 0.0f ? 127.0f / max : 0.0f;
    if (!qs_finite(inverse)) inverse = t->x_scale[b] = 0.0f;
    for (size_t j = 0; j < t->code_ld; j += 4, to += 4 * QS_PANEL)
        for (size_t i = 0; i < 4; i++) {
            float v = j + i < t->in_ld ? x[j + i] : 0.0f, q = (v * inverse + magic) - magic;
            double off = (double)v - (double)t->x_scale[b] * (double)q;
            lost += off * off;
            to[i] = (uint8_t)((int)q + 128);
        }
    lost = sqrt(lost);
    t->x_rest[b] = (float)(length * (1 + mu) * 1.00001);
    t->x_norm[b] = (float)((lost + (mu + 8 * u) * (length + lost)) * 1.00001);
    if (!(length < 1e15)) t->x_rest[b] = t->x_norm[b] = INFINITY;
}

typedef struct qs_prepare_job {
    qsae_trainer *t;
    const float *x;
} qs_prepare_job;

static void qs_prepare_task(void *arg, size_t lo, size_t hi, size_t thread)
{
    const qs_prepare_job *job = arg;
    qsae_trainer *t = job->t;
    const float *c = t->p[QSAE_PART_B_DEC], scale = t->o.scale_in;
    const float *rows[QS_PANEL];
    (void)thread;
    for (size_t panel = lo; panel < hi; panel++) {
        size_t b0 = panel * QS_PANEL, n = qs_min(QS_PANEL, t->n - b0);
        for (size_t b = b0; b < b0 + n; b++) {
            float *to = t->x + b * t->in_ld;
            const float *x = job->x + b * t->o.d_in;
            if (t->o.no_b_dec_input)
                for (size_t j = 0; j < t->o.d_in; j++) to[j] = x[j] * scale;
            else
                for (size_t j = 0; j < t->o.d_in; j++) to[j] = x[j] * scale - c[j];
            rows[b - b0] = to;
            t->length[b] = qs_row_norm_of(t, to, t->in_ld);
            if (t->screens) qs_shadow_row(t, b);
        }
        qs_interleave(rows, n, t->in_ld, QS_PANEL, t->packed + b0 * t->in_ld);
    }
}

/* ---- encode ---- */

/* Lists of latents first..end, or of index[first..end) */
typedef struct qs_encode_run {
    qsae_trainer *t;
    const uint32_t *index;
    size_t first, end;
    qs_list *list;
} qs_encode_run;

static qs_latent qs_latent_of(const qsae_trainer *t, size_t i, int aux)
{
    qs_latent l = {t->p[QSAE_PART_B_ENC][i], qs_rescales(t) ? t->norm[i] : 1.0f, aux ? -INFINITY : 0.0f};
    if (qs_is_jump(t)) l.least = t->p[QSAE_PART_THETA][i] - 0.5001f * t->o.bandwidth;
    return l;
}

/* Room for n pairs, where `used` also counts what finds none */
static size_t qs_reserve(qsae_trainer *t, size_t n)
{
    size_t at;
#if defined(QS_OPENMP)
#pragma omp atomic capture
#endif
    {
        at = t->used;
        t->used += n;
    }
    return at;
}

/* Whether a list of n pairs lies where the gradient will be: values, then rows */
static int qs_is_at_home(const qsae_trainer *t, size_t n)
{
    return t->grad && qs_is_jump(t) && n <= (t->in_ld + t->out_ld) / 2;
}

/* Where the list of latent i lies */
typedef struct qs_span {
    uint32_t *row;
    float *value;
} qs_span;

static qs_span qs_span_of(const qsae_trainer *t, size_t i, const qs_list *l)
{
    qs_span s;
    int home = l->at == QS_AT_HOME;
    s.value = home ? t->grad + i * (t->in_ld + t->out_ld) : t->value + l->at;
    s.row = home ? (uint32_t *)(void *)(s.value + l->n) : t->row + l->at;
    return s;
}

static void qs_keep_lists(const qs_encode_run *run, size_t at, size_t count, const qs_encode_scratch *s)
{
    qsae_trainer *t = run->t;
    size_t total = 0, to;
    for (size_t r = 0; r < count; r++) total += qs_is_at_home(t, s->count[r]) ? 0 : s->count[r];
    to = qs_reserve(t, total);
    int fits = total <= t->cap && to <= t->cap - total;
    for (size_t r = 0; r < count; r++) {
        size_t i = run->index ? run->index[at + r] : at + r;
        int home = qs_is_at_home(t, s->count[r]);
        qs_list *l = &run->list[i];
        l->at = home ? QS_AT_HOME : fits ? to : 0;
        l->n = home || fits ? s->count[r] : 0;
        qs_span span = qs_span_of(t, i, l);
        memcpy(span.row, s->row + r * t->rows_ld, l->n * sizeof *s->row);
        memcpy(span.value, s->value + r * t->rows_ld, l->n * sizeof *s->value);
        to += home ? 0 : l->n;
    }
}

static void qs_pack_latents(const qs_encode_run *run, size_t at, size_t count, float *to)
{
    const qsae_trainer *t = run->t;
    const float *rows[QS_LATENTS];
    for (size_t g = 0; g < count; g += QS_LATENTS) {
        size_t n = qs_min(QS_LATENTS, count - g);
        for (size_t r = 0; r < n; r++)
            rows[r] = t->p[QSAE_PART_ENC] + (run->index ? run->index[at + g + r] : at + g + r) * t->in_ld;
        qs_interleave(rows, n, t->in_ld, QS_LATENTS, to + g * t->in_ld);
    }
}

/* The pairs of latents at..at + 7 and the panel at row b: computed, and what is kept added to the lists in s */
static void qs_encode_tile(const qs_encode_run *run, size_t at, size_t count, size_t b, const float *w, float *value,
                           uint32_t *row, size_t *n, const qs_encode_scratch *s)
{
    qsae_trainer *t = run->t;
    t->train->gram(w, t->packed + b * t->in_ld, t->in_ld, s->z);
    for (size_t r = 0; r < count; r++) {
        qs_latent l = qs_latent_of(t, run->index ? run->index[at + r] : at + r, run->index != NULL);
        n[r] += t->train->pick(s->z + r * QS_PANEL, &l, t->cut + b, (uint32_t)b, row + r * t->rows_ld + n[r],
                               value + r * t->rows_ld + n[r]);
    }
}

/* Numbers of rows that may be kept, [QS_LATENTS][QS_PANEL] in s->maybe and how many of each in n */
static void qs_screen_tile(qsae_trainer *t, size_t at, size_t count, size_t b, size_t *n, const qs_encode_scratch *s)
{
    qs_latent l[QS_LATENTS];
    qs_shadow x = {t->x_scale + b, t->x_rest + b, t->x_norm + b, t->cut + b};
    memset(l, 0, sizeof l);
    for (size_t r = 0; r < count; r++) l[r] = qs_latent_of(t, at + r, 0);
    for (size_t r = count; r < QS_LATENTS; r++) l[r].least = INFINITY;
    t->train->screen(t->codes + at * t->code_ld, t->code_ld, t->code + at, l, t->bytes + b * t->code_ld, &x,
                     (uint32_t)b, s->maybe, n);
}

/* As qs_encode_tile, but only what the screen lets through is computed. Returns how many pairs that were. */
static size_t qs_encode_tile_screened(qsae_trainer *t, size_t at, size_t count, size_t b, float *value, uint32_t *row,
                                      size_t *n, const qs_encode_scratch *s)
{
    size_t maybe[QS_LATENTS], total = 0;
    qs_screen_tile(t, at, count, b, maybe, s);
    for (size_t r = 0; r < count; r++) {
        if (!maybe[r]) continue;
        const uint32_t *rows = s->maybe + r * QS_PANEL;
        const qs_latent l = qs_latent_of(t, at + r, 0);
        float *v = value + r * t->rows_ld;
        uint32_t *to = row + r * t->rows_ld;
        size_t kept = n[r];
        total += maybe[r];
        t->train->pair_dots(t->p[QSAE_PART_ENC] + (at + r) * t->in_ld, t->in_ld, t->x, t->in_ld, rows, maybe[r],
                            s->exact);
        for (size_t j = 0; j < maybe[r]; j++) {
            float z = s->exact[j] + l.bias, cut = t->cut[rows[j]];
            to[kept] = rows[j];
            v[kept] = z;
            kept += !(z * l.norm <= (l.least > cut ? l.least : cut));
        }
        n[r] = kept;
    }
    return total;
}

/* Units are blocks. */
static void qs_train_encode_task(void *arg, size_t lo, size_t hi, size_t thread)
{
    const qs_encode_run *run = arg;
    qsae_trainer *t = run->t;
    qs_encode_scratch s;
    size_t exact = 0;
    qs_lay_encode(t, t->scratch + thread * t->scratch_size, &s);
    for (size_t block = lo; block < hi; block++) {
        size_t at = run->first + block * t->block, count = qs_min(t->block, run->end - at);
        if (!t->screening) qs_pack_latents(run, at, count, s.w);
        memset(s.count, 0, count * sizeof *s.count);
        for (size_t b = 0; b < t->n; b += QS_PANEL)
            for (size_t g = 0; g < count; g += QS_LATENTS) {
                size_t n = qs_min(QS_LATENTS, count - g), to = g * t->rows_ld;
                if (t->screening)
                    exact += qs_encode_tile_screened(t, at + g, n, b, s.value + to, s.row + to, s.count + g, &s);
                else
                    qs_encode_tile(run, at + g, n, b, s.w + g * t->in_ld, s.value + to, s.row + to, s.count + g, &s);
            }
        qs_keep_lists(run, at, count, &s);
    }
#if defined(QS_OPENMP)
#pragma omp atomic
#endif
    t->exact += exact;
}

/* Whether few enough pairs pass the screen, by a panel of rows and every eighth group of latents */
static int qs_screen_pays(qsae_trainer *t)
{
    qs_encode_scratch s;
    size_t n[QS_LATENTS], maybe = 0, seen = 0, b = t->n / QS_PANEL / 2 * QS_PANEL;
    if (!t->screens) return 0;
    qs_lay_encode(t, t->scratch, &s);
    for (size_t at = 0; at < t->o.d_sae; at += 8 * QS_LATENTS) {
        size_t count = qs_min(QS_LATENTS, t->o.d_sae - at);
        qs_screen_tile(t, at, count, b, n, &s);
        for (size_t r = 0; r < count; r++) maybe += n[r];
        seen += count * qs_min(QS_PANEL, t->n - b);
    }
    return (double)maybe <= QS_SCREEN_MOST * (double)seen;
}

/* Appends the lists of first..end to the arena; 0 if it is too small. */
static int qs_encode_range(qsae_trainer *t, const uint32_t *index, size_t first, size_t end, qs_list *list)
{
    qs_encode_run run = {t, index, first, end, list};
    qs_tick(t, QSAE_TIME_SELECT);
    t->screening = !index && qs_screen_pays(t);
    if (!index && !t->screening) t->exact += (end - first) * t->n;
    qs_parallel(t->o.n_threads, (end - first + t->block - 1) / t->block, t->block * t->in_ld * t->n,
                qs_train_encode_task, &run);
    qs_tick(t, index ? QSAE_TIME_AUX : t->screening ? QSAE_TIME_SCREEN : QSAE_TIME_ENCODE);
    return t->used <= t->cap;
}

/* Every row's cut-off to v; rows that are not there keep nothing. */
static void qs_set_cuts(qsae_trainer *t, float v)
{
    for (size_t b = 0; b < t->rows_ld; b++) t->cut[b] = b < t->n ? v : INFINITY;
}

/* ---- select: TopK kinds ---- */

/* The k-th largest of a set of floats, by three histograms of parts of their bits: pass over the set three times with
 * qs_rank_add, calling qs_rank_next after each. Then value is the k-th largest, and k says which of its equals. */
typedef struct qs_rank {
    uint64_t k;
    uint32_t mask, prefix;
    unsigned shift;
    uint32_t count[2048];
} qs_rank;

static void qs_rank_begin(qs_rank *r, uint64_t k)
{
    memset(r, 0, sizeof *r);
    r->k = k;
    r->shift = 21;
}

static uint32_t qs_rank_bits(float v) /* ascending with v; -0 as 0 */
{
    uint32_t u;
    v += 0.0f;
    memcpy(&u, &v, 4);
    return u >> 31 ? ~u : u | 0x80000000u;
}

static void qs_rank_add(qs_rank *r, float v)
{
    uint32_t u = qs_rank_bits(v);
    if ((u & r->mask) == r->prefix) r->count[u >> r->shift & 2047]++;
}

static void qs_rank_next(qs_rank *r)
{
    uint32_t bin = 2047;
    while (bin > 0 && r->count[bin] < r->k) r->k -= r->count[bin--];
    r->prefix |= bin << r->shift;
    r->mask |= (r->shift ? 2047u : 1023u) << r->shift;
    r->shift = r->shift == 21 ? 10 : 0;
    memset(r->count, 0, sizeof r->count);
}

static float qs_rank_value(const qs_rank *r)
{
    uint32_t u = r->prefix;
    float v;
    u = u >> 31 ? u & 0x7FFFFFFFu : ~u;
    memcpy(&v, &u, 4);
    return v;
}

/* k-th largest of v[0..n), 1 <= k <= n */
static qs_rank qs_rank_of(const float *v, size_t n, uint64_t k)
{
    qs_rank r;
    qs_rank_begin(&r, k);
    for (int pass = 0; pass < 3; pass++) {
        for (size_t i = 0; i < n; i++) qs_rank_add(&r, v[i]);
        qs_rank_next(&r);
    }
    return r;
}

/* Keys (z, with rescale z n) of `count` latents, index[..] or from 0 on, for one packed panel: keys [count][QS_PANEL] */
static void qs_panel_keys(const qsae_trainer *t, const uint32_t *index, size_t lo, size_t hi, const float *panel,
                          float *w, float *z, float *keys)
{
    qs_encode_run run = {(qsae_trainer *)(uintptr_t)t, index, 0, hi, NULL};
    for (size_t g = lo; g < hi; g += QS_LATENTS) {
        size_t n = qs_min(QS_LATENTS, hi - g);
        qs_pack_latents(&run, g, n, w);
        t->train->gram(w, panel, t->in_ld, z);
        for (size_t r = 0; r < n; r++) {
            qs_latent l = qs_latent_of(t, index ? index[g + r] : g + r, 0);
            for (size_t b = 0; b < QS_PANEL; b++)
                keys[(g + r) * QS_PANEL + b] = (z[r * QS_PANEL + b] + l.bias) * l.norm;
        }
    }
}

static void qs_sample_task(void *arg, size_t lo, size_t hi, size_t thread)
{
    qsae_trainer *t = arg;
    qs_rank_scratch s;
    qs_lay_rank(t, t->scratch + thread * t->scratch_size, &s);
    qs_panel_keys(t, NULL, lo * QS_LATENTS, qs_min(hi * QS_LATENTS, t->o.d_sae), t->packed + t->rows_ld * t->in_ld,
                  s.w, s.z, t->keys);
}

static float qs_below(float v) /* the largest float below v, which is finite */
{
    uint32_t u;
    memcpy(&u, &v, 4);
    if (v == 0.0f) u = 0x80000001u;
    else u += u >> 31 ? 1u : UINT32_MAX;
    memcpy(&v, &u, 4);
    return v;
}

/* Computes the keys of rows at[0 .. n - 1], n at most QS_SAMPLE, into t->keys: there the lists lie otherwise. */
static void qs_keys_of(qsae_trainer *t, const size_t *at, size_t n)
{
    const float *rows[QS_SAMPLE];
    for (size_t j = 0; j < n; j++) rows[j] = t->x + at[j] * t->in_ld;
    qs_interleave(rows, n, t->in_ld, QS_PANEL, t->packed + t->rows_ld * t->in_ld);
    qs_parallel(t->o.n_threads, (t->o.d_sae + QS_LATENTS - 1) / QS_LATENTS, QS_LATENTS * QS_PANEL * t->in_ld,
                qs_sample_task, t);
}

/* Computes the keys of evenly spaced rows; returns how many rows, at[] their numbers. */
static size_t qs_sample_keys(qsae_trainer *t, size_t *at)
{
    size_t n = qs_min(QS_SAMPLE, (t->n + 15) / 16);
    for (size_t j = 0; j < n; j++) at[j] = (2 * j + 1) * t->n / (2 * n);
    qs_keys_of(t, at, n);
    return n;
}

/* The k-th largest of the keys of row j of qs_keys_of */
static float qs_kth_key(qsae_trainer *t, size_t j)
{
    float *column = t->value; /* the arena is free now, and holds d_sae values */
    for (size_t i = 0; i < t->o.d_sae; i++) column[i] = t->keys[i * QS_PANEL + j];
    qs_rank r = qs_rank_of(column, t->o.d_sae, (uint64_t)t->o.k);
    return qs_rank_value(&r);
}

/* BatchTopK: a cut-off that somewhat more than k per row are likely to pass */
static float qs_guess_batch(qsae_trainer *t)
{
    size_t at[QS_SAMPLE], n = qs_sample_keys(t, at);
    double wanted = (double)n * t->o.k * (1.1 + 1.0 / sqrt((double)n)) + 8;
    if (wanted >= (double)n * (double)t->o.d_sae) return 0.0f;
    qs_rank r;
    qs_rank_begin(&r, (uint64_t)wanted);
    for (int pass = 0; pass < 3; pass++) {
        for (size_t i = 0; i < t->o.d_sae; i++)
            for (size_t j = 0; j < n; j++) qs_rank_add(&r, t->keys[i * QS_PANEL + j]);
        qs_rank_next(&r);
    }
    float v = qs_rank_value(&r);
    return v > 0.0f ? v : 0.0f;
}

/* A number between, for a search of at most 32 steps */
static float qs_between(float lo, float hi)
{
    uint32_t a, b;
    memcpy(&a, &lo, 4);
    memcpy(&b, &hi, 4);
    a += (b - a) / 2;
    memcpy(&lo, &a, 4);
    return lo;
}

static qsae_status qs_crowded(const qsae_trainer *t, qsae_error *err)
{
    return qs_fail(err, QSAE_E_LIMIT, 0, "step: too many pairs tie for the k largest; there is room for %zu", t->cap);
}

/* BatchTopK: keeps the `wanted` largest keys of the lists; *least gets the least key kept, 0 if there is none. */
static uint64_t qs_keep_batch(qsae_trainer *t, uint64_t wanted, float *least)
{
    uint64_t kept = qs_min(wanted, t->used);
    *least = 0.0f;
    if (!kept) return 0;
    qs_rank r;
    qs_rank_begin(&r, kept);
    for (int pass = 0; pass < 3; pass++) {
        for (size_t i = 0; i < t->o.d_sae; i++) {
            float norm = qs_latent_of(t, i, 0).norm;
            const float *z = t->value + t->list[i].at;
            for (size_t j = 0; j < t->list[i].n; j++) qs_rank_add(&r, z[j] * norm);
        }
        qs_rank_next(&r);
    }
    *least = qs_rank_value(&r);
    for (size_t i = 0; i < t->o.d_sae; i++) {
        float norm = qs_latent_of(t, i, 0).norm, *z = t->value + t->list[i].at;
        uint32_t *row = t->row + t->list[i].at;
        size_t n = 0;
        for (size_t j = 0; j < t->list[i].n; j++) {
            float key = z[j] * norm;
            int tie = key == *least;
            if (key < *least || (tie && !r.k)) continue;
            r.k -= (uint64_t)tie;
            row[n] = row[j];
            z[n++] = z[j];
        }
        t->list[i].n = n;
    }
    return kept;
}

/* Whether the batch has as many pairs as are wanted above the cut-off is known when it has been encoded. */
static qsae_status qs_select_batch(qsae_trainer *t, qsae_error *err)
{
    double pairs = t->o.k * (double)t->n;
    uint64_t wanted = (uint64_t)pairs;
    float lo = -1.0f, hi = INFINITY, cut = qs_guess_batch(t);
    for (;;) {
        qs_set_cuts(t, cut);
        t->used = 0;
        if (!qs_encode_range(t, NULL, 0, t->o.d_sae, t->list)) {
            lo = cut;
            if (!(qs_between(lo, hi) > lo)) return qs_crowded(t, err);
            cut = hi < INFINITY ? qs_between(lo, hi) : lo > 0.0f ? 2 * lo : 1e-6f;
        } else if (t->used < wanted && cut > 0.0f) {
            hi = cut;
            if (lo >= 0.0f && !(qs_between(lo, hi) > lo)) return qs_crowded(t, err);
            cut = lo >= 0.0f ? qs_between(lo, hi) : cut > 1e-9f ? 0.7f * cut : 0.0f;
        } else {
            break;
        }
    }
    qs_keep_batch(t, wanted, &t->least);
    return QSAE_OK;
}

/* TopK: the lists by rows, in t->work; start [n + 1] */
static void qs_transpose_lists(qsae_trainer *t, uint32_t *start)
{
    memset(start, 0, (t->n + 1) * sizeof *start);
    for (size_t i = 0; i < t->used; i++) start[t->row[i] + 1]++;
    for (size_t b = 0; b < t->n; b++) start[b + 1] += start[b];
    for (size_t i = 0; i < t->o.d_sae; i++) {
        float norm = qs_latent_of(t, i, 0).norm;
        for (size_t j = t->list[i].at; j < t->list[i].at + t->list[i].n; j++) {
            qs_pair p = {t->value[j] * norm, (uint32_t)i};
            t->work[start[t->row[j]]++] = p;
        }
    }
    for (size_t b = t->n; b > 0; b--) start[b] = start[b - 1];
    start[0] = 0;
}

typedef struct qs_limit_job {
    qsae_trainer *t;
    const uint32_t *start;
} qs_limit_job;

/* limit[b] = the k-th of row b's pairs, in the order larger first, ties to the lower latent */
static void qs_limit_task(void *arg, size_t lo, size_t hi, size_t thread)
{
    const qs_limit_job *job = arg;
    qsae_trainer *t = job->t;
    size_t k = (size_t)t->o.k;
    (void)thread;
    for (size_t b = lo; b < hi; b++) {
        qs_pair *h = t->work + job->start[b], all = {-INFINITY, 0};
        size_t n = job->start[b + 1] - job->start[b];
        t->limit[b] = all;
        if (n <= k) continue;
        qs_heapify(h, k, qs_larger_first);
        for (size_t i = k; i < n; i++)
            if (qs_larger_first(h[i], h[0])) {
                h[0] = h[i];
                qs_sift(h, k, 0, qs_larger_first);
            }
        t->limit[b] = h[0];
    }
}

/* Drops what comes after its row's limit. */
static void qs_keep_limits(qsae_trainer *t, qs_list *list, const uint32_t *index, size_t count)
{
    for (size_t at = 0; at < count; at++) {
        size_t i = index ? index[at] : at, n = 0;
        float norm = qs_latent_of(t, i, 0).norm, *z = t->value + list[i].at;
        uint32_t *row = t->row + list[i].at;
        for (size_t j = 0; j < list[i].n; j++) {
            qs_pair p = {z[j] * norm, (uint32_t)i}, last = t->limit[row[j]];
            if (p.value < last.value || (p.value == last.value && p.index > last.index)) continue;
            row[n] = row[j];
            z[n++] = z[j];
        }
        list[i].n = n;
    }
}

/* The least ratio of the k-th key to |x'| in a sample */
static double qs_guess_rows(qsae_trainer *t)
{
    size_t at[QS_SAMPLE], n = qs_sample_keys(t, at);
    double least = -1;
    for (size_t j = 0; j < n; j++) {
        float length = t->length[at[j]];
        double ratio = length > 0.0f ? (double)qs_kth_key(t, j) / (double)length : 0;
        if (least < 0 || ratio < least) least = ratio;
    }
    return least > 0 ? least : 0;
}

/* Rows at[0 .. n - 1] get the cut-off that their k largest keys pass, and nothing below these. */
static void qs_cut_exactly(qsae_trainer *t, const size_t *at, size_t n)
{
    qs_keys_of(t, at, n);
    for (size_t j = 0; j < n; j++) {
        float kth = qs_kth_key(t, j);
        t->cut[at[j]] = kth > 0.0f ? qs_below(kth) : 0.0f;
    }
}

/* Cuts exactly where the lists (by rows from start) have fewer than k of a row; start NULL: all rows. Returns how many. */
static size_t qs_cut_poor(qsae_trainer *t, const uint32_t *start)
{
    size_t at[QS_SAMPLE], n = 0, poor = 0;
    for (size_t b = 0; b < t->n; b++) {
        if (start && (start[b + 1] - start[b] >= (size_t)t->o.k || !(t->cut[b] > 0.0f))) continue;
        at[n++] = b;
        poor++;
        if (n == QS_SAMPLE) {
            qs_cut_exactly(t, at, n);
            n = 0;
        }
    }
    if (n) qs_cut_exactly(t, at, n);
    return poor;
}

/* Encodes with a guess of each row's cut-off; where that was too high, or all too low, again with the exact one. */
static qsae_status qs_select_rows(qsae_trainer *t, qsae_error *err)
{
    size_t k = (size_t)t->o.k;
    uint32_t *start = t->active;
    double ratio = k < t->o.d_sae ? 0.9 * qs_guess_rows(t) : 0;
    qs_set_cuts(t, 0.0f);
    for (size_t b = 0; b < t->n; b++) t->cut[b] = (float)(ratio * (double)t->length[b]);
    for (int tries = 0;; tries++) {
        t->used = 0;
        int fits = qs_encode_range(t, NULL, 0, t->o.d_sae, t->list) && t->used <= t->work_cap;
        if (!fits && tries == 2) return qs_crowded(t, err);
        if (fits) qs_transpose_lists(t, start);
        if (!qs_cut_poor(t, fits ? start : NULL) || tries == 3) break; /* 3: keys that are NaN */
    }
    qs_limit_job job = {t, start};
    qs_parallel(t->o.n_threads, t->n, 64 * k, qs_limit_task, &job);
    qs_keep_limits(t, t->list, NULL, t->o.d_sae);
    return QSAE_OK;
}

/* ---- decode ---- */

/* Decodes latents first..end, all rows, for chunks of columns. `open`: these are the first; `close`: the last. */
typedef struct qs_decode_run {
    qsae_trainer *t;
    size_t first, end;
    int open, close;
} qs_decode_run;

/* The pairs of a list that fire, and their values; those of a JumpReLU latent may only lie in the window. */
static size_t qs_firing(const qsae_trainer *t, size_t i, const qs_list *l, const qs_decode_scratch *s,
                        const uint32_t **row, const float **value)
{
    if (!qs_is_jump(t)) {
        *row = t->row + l->at;
        *value = t->value + l->at;
        return l->n;
    }
    const qs_span all = qs_span_of(t, i, l);
    float theta = t->p[QSAE_PART_THETA][i];
    size_t n = 0;
    for (size_t j = 0; j < l->n; j++) {
        s->row[n] = all.row[j];
        s->a[n] = all.value[j];
        n += !(all.value[j] <= theta);
    }
    *row = s->row;
    *value = s->a;
    return n;
}

static size_t qs_columns_of(size_t ld, size_t chunk) { return qs_min(QS_COLUMNS, ld - chunk * QS_COLUMNS); }

/* Turns y (from s) into the error of prefix k, times `by`; sums its squares */
static void qs_close_prefix(const qsae_trainer *t, size_t chunk, size_t k, float by, const float *y)
{
    size_t at = chunk * QS_COLUMNS, wide = qs_columns_of(t->out_ld, chunk), real = 0;
    float *to = t->e + k * t->rows_ld * t->out_ld + at;
    double loss = 0;
    if (at < t->o.d_out) real = qs_min(wide, t->o.d_out - at);
    for (size_t b = 0; b < t->n; b++, y += QS_COLUMNS, to += t->out_ld) {
        const float *target = t->rows_y + b * t->o.d_out + at;
        float e[QS_COLUMNS];
        for (size_t j = 0; j < real; j++) e[j] = y[j] - target[j] * t->o.scale_out;
        loss += qs_dot_double(e, e, real);
        for (size_t j = 0; j < real; j++) to[j] = e[j] * by;
        for (size_t j = real; j < wide; j++) to[j] = 0.0f;
    }
    t->sums[chunk * (t->n_prefixes + 3) + k] = loss;
}

/* sum of y^2 and n times the square of its mean, over rows, for a chunk */
static void qs_sum_targets(const qsae_trainer *t, size_t chunk)
{
    size_t at = chunk * QS_COLUMNS, real = at < t->o.d_out ? qs_min(QS_COLUMNS, t->o.d_out - at) : 0;
    double sum[QS_COLUMNS] = {0}, squares = 0, means = 0, *to = t->sums + chunk * (t->n_prefixes + 3) + t->n_prefixes;
    for (size_t b = 0; b < t->n; b++) {
        float y[QS_COLUMNS];
        const float *target = t->rows_y + b * t->o.d_out + at;
        for (size_t j = 0; j < real; j++) y[j] = target[j] * t->o.scale_out;
        for (size_t j = 0; j < real; j++) sum[j] += (double)y[j];
        squares += qs_dot_double(y, y, real);
    }
    for (size_t j = 0; j < real; j++) means += sum[j] * sum[j] / (double)t->n;
    to[1] = squares;
    to[2] = means;
}

static float qs_error_factor(const qsae_trainer *t, size_t k)
{
    return (float)(2.0 * (double)t->weight[k] / (double)t->n);
}

static void qs_train_decode_task(void *arg, size_t lo, size_t hi, size_t thread)
{
    const qs_decode_run *run = arg;
    qsae_trainer *t = run->t;
    qs_decode_scratch s;
    qs_lay_decode(t, t->scratch + thread * t->scratch_size, &s);
    for (size_t chunk = lo; chunk < hi; chunk++) {
        size_t at = chunk * QS_COLUMNS, wide = qs_columns_of(t->out_ld, chunk), k = 0, outer = t->n_prefixes - 1;
        float *e = t->e + outer * t->rows_ld * t->out_ld + at;
        for (size_t b = 0; b < t->n; b++)
            memcpy(s.y + b * QS_COLUMNS, run->open ? t->p[QSAE_PART_B_DEC] + at : e + b * t->out_ld,
                   wide * sizeof(float));
        if (run->open && chunk == 0) memset(t->active, 0, t->n * sizeof *t->active);
        for (size_t i = run->first; i < run->end; i++) {
            const uint32_t *row;
            const float *value;
            for (; k < outer && t->prefix[k] == i; k++) qs_close_prefix(t, chunk, k, qs_error_factor(t, k), s.y);
            size_t n = qs_firing(t, i, &t->list[i], &s, &row, &value);
            t->train->scatter(value, row, n, t->p[QSAE_PART_DEC] + i * t->out_ld + at, wide, s.y);
            if (chunk == 0)
                for (size_t j = 0; j < n; j++) t->active[row[j]]++;
        }
        if (run->close) {
            qs_close_prefix(t, chunk, outer, t->with_aux ? 1.0f : qs_error_factor(t, outer), s.y);
            qs_sum_targets(t, chunk);
        } else {
            for (size_t b = 0; b < t->n; b++)
                memcpy(e + b * t->out_ld, s.y + b * QS_COLUMNS, wide * sizeof(float));
        }
    }
}

static void qs_decode_range(qsae_trainer *t, size_t first, size_t end, int open, int close)
{
    qs_decode_run run = {t, first, end, open, close};
    qs_parallel(t->o.n_threads, t->n_chunks, t->n * QS_COLUMNS, qs_train_decode_task, &run);
}

/* After the whole reconstruction: aux error from the dead latents' lists; then all errors become gradients, and those
 * of Matryoshka's prefixes sums from k on. */
static void qs_aux_task(void *arg, size_t lo, size_t hi, size_t thread)
{
    qsae_trainer *t = arg;
    qs_decode_scratch s;
    size_t outer = t->n_prefixes - 1, ld = t->out_ld;
    qs_lay_decode(t, t->scratch + thread * t->scratch_size, &s);
    for (size_t chunk = lo; chunk < hi; chunk++) {
        size_t at = chunk * QS_COLUMNS, wide = qs_columns_of(ld, chunk);
        float *e = t->e + outer * t->rows_ld * ld + at, by = qs_error_factor(t, outer);
        double loss = 0;
        if (t->with_aux) {
            for (size_t b = 0; b < t->n; b++)
                memcpy(s.y + b * QS_COLUMNS, e + b * ld, wide * sizeof(float));
            for (size_t j = 0; j < t->n_dead; j++) {
                const qs_list *l = &t->aux_list[t->dead[j]];
                t->train->scatter(t->value + l->at, t->row + l->at, l->n,
                                  t->p[QSAE_PART_DEC] + t->dead[j] * ld + at, wide, s.y);
            }
            for (size_t b = 0; b < t->n; b++) {
                loss += qs_dot_double(s.y + b * QS_COLUMNS, s.y + b * QS_COLUMNS, wide);
                for (size_t j = 0; j < wide; j++) {
                    t->aux_e[b * ld + at + j] = s.y[b * QS_COLUMNS + j] * t->aux_scale;
                    e[b * ld + j] *= by;
                }
            }
        }
        t->sums[chunk * (t->n_prefixes + 3) + t->n_prefixes] = loss;
        for (size_t k = outer; k-- > 0;) {
            float *part = t->e + k * t->rows_ld * ld + at, *rest = part + t->rows_ld * ld;
            for (size_t b = 0; b < t->n; b++)
                for (size_t j = 0; j < wide; j++) part[b * ld + j] += rest[b * ld + j];
        }
    }
}

/* ---- aux: the dead latents' lists ---- */

static void qs_find_dead(qsae_trainer *t)
{
    t->n_dead = 0;
    for (size_t i = 0; i < t->o.d_sae; i++)
        if (t->fired[i] > t->o.dead_steps) t->dead[t->n_dead++] = (uint32_t)i;
    t->with_aux = t->n_dead > 0 && t->o.aux_coefficient > 0.0f;
}

/* limit[b] = the last of the k dead latents with the largest keys; units are panels */
static void qs_aux_limit_task(void *arg, size_t lo, size_t hi, size_t thread)
{
    qsae_trainer *t = arg;
    qs_rank_scratch s;
    size_t k = qs_min(t->o.d_in / 2, t->n_dead);
    qs_lay_rank(t, t->scratch + thread * t->scratch_size, &s);
    for (size_t panel = lo; panel < hi; panel++) {
        size_t b0 = panel * QS_PANEL;
        qs_panel_keys(t, t->dead, 0, t->n_dead, t->packed + b0 * t->in_ld, s.w, s.z, s.keys);
        for (size_t b = b0; b < qs_min(b0 + QS_PANEL, t->n); b++) {
            for (size_t j = 0; j < t->n_dead; j++) s.key[j] = s.keys[j * QS_PANEL + b - b0];
            qs_rank r = qs_rank_of(s.key, t->n_dead, k);
            qs_pair last = {qs_rank_value(&r), 0};
            for (size_t j = 0; j < t->n_dead && r.k; j++) {
                if (!(s.key[j] == last.value)) continue;
                last.index = t->dead[j];
                r.k--;
            }
            t->limit[b] = last;
            t->cut[b] = qs_below(last.value);
        }
    }
}

static qsae_status qs_encode_aux(qsae_trainer *t, qsae_error *err)
{
    size_t half = t->o.d_in / 2, k = qs_min(half, t->n_dead);
    if (!t->with_aux) return QSAE_OK;
    if (!k) { /* d_in is 1 */
        t->with_aux = 0;
        return QSAE_OK;
    }
    double part = (double)t->n_dead / (double)half;
    t->aux_scale = (float)(2.0 * (double)t->o.aux_coefficient * (part < 1 ? part : 1) / (double)t->n);
    qs_set_cuts(t, -INFINITY);
    if (k < t->n_dead)
        qs_parallel(t->o.n_threads, (t->n + QS_PANEL - 1) / QS_PANEL, t->n_dead * t->in_ld, qs_aux_limit_task, t);
    if (!qs_encode_range(t, t->dead, 0, t->n_dead, t->aux_list)) return qs_crowded(t, err);
    if (k < t->n_dead) qs_keep_limits(t, t->aux_list, t->dead, t->n_dead);
    return QSAE_OK;
}

/* ---- backward ---- */

/* tanh to about 1 ulp, from operations that are the same everywhere */
static float qs_tanh(float x)
{
    float a = fabsf(x), q = x * x, e;
    if (a < 0.25f)
        return x * (1.0f + q * (-1.0f / 3 + q * (2.0f / 15 + q * (-17.0f / 315 + q * (62.0f / 2835)))));
    e = qs_exp(-2.0f * a);
    e = (1.0f - e) / (1.0f + e);
    return x < 0.0f ? -e : e;
}

/* What one latent's list comes to */
typedef struct qs_grads {
    double bias, theta, penalty;
    float along; /* gradient of the decoder row along itself, from |d_i| in the tanh and pre-act terms */
    int fires;
} qs_grads;

/* The pairs of latent i that have a gradient go to s->row with a = dL/d(d_i) / G, c = dL/dz. Returns how many. */
static size_t qs_jump_pairs(const qsae_trainer *t, size_t i, const qs_list *l, const qs_backward_scratch *s,
                            qs_grads *g)
{
    const float theta = t->p[QSAE_PART_THETA][i], width = t->o.bandwidth, norm = t->norm[i];
    const int smooth = t->o.sparsity == QSAE_TRAIN_TANH;
    const float steep = t->l0_coefficient * t->o.tanh_scale / (float)t->n;
    const qs_span all = qs_span_of(t, i, l);
    size_t n = 0;
    for (size_t j = 0; j < l->n; j++) {
        uint32_t b = all.row[j];
        float z = all.value[j], gf = s->gf[j], u = (z - theta) / width, gz = 0.0f, f = 0.0f;
        int fires = !(z <= theta), window = u > -0.5f && u < 0.5f;
        if (fires) f = z;
        g->fires |= fires;
        if (smooth) {
            float h = qs_tanh(t->o.tanh_scale * f * norm), q = steep * (1.0f - h * h);
            gf += q * norm;
            g->along += q * f;
            g->penalty += (double)h;
        }
        if (fires) gz = gf;
        if (window) {
            float ste = (theta * gf + (smooth ? 0.0f : t->lambda[b])) / width;
            g->theta -= (double)ste;
            if (t->o.ste_to_input) gz += ste;
        }
        if (!fires && !(window && t->o.ste_to_input)) continue;
        g->bias += (double)gz;
        s->row[n] = b;
        s->a[n] = f;
        s->c[n++] = gz;
    }
    g->penalty *= (double)t->l0_coefficient / (double)t->n;
    return n;
}

/* + p mean_b max(theta - z_b, 0) |d_i| of a dead latent: every row */
static void qs_pre_act(const qsae_trainer *t, size_t i, const qs_backward_scratch *s, float *enc, qs_grads *g)
{
    const float theta = t->p[QSAE_PART_THETA][i], p = t->o.pre_act_coefficient / (float)t->n;
    const float *w = t->p[QSAE_PART_ENC] + i * t->in_ld;
    size_t n = 0;
    double rest = 0;
    for (size_t b = 0; b < t->n; b++) s->row[b] = (uint32_t)b;
    t->train->pair_dots(w, t->in_ld, t->x, t->in_ld, s->row, t->n, s->gf);
    for (size_t b = 0; b < t->n; b++) {
        float r = theta - (s->gf[b] + t->p[QSAE_PART_B_ENC][i]);
        if (!(r > 0.0f)) continue;
        rest += (double)r;
        s->row[n] = (uint32_t)b;
        s->c[n++] = -p * t->norm[i];
    }
    t->train->gather(s->c, s->row, n, t->x, t->in_ld, t->in_ld, enc);
    g->bias -= (double)(p * t->norm[i]) * (double)n;
    g->theta += (double)(p * t->norm[i]) * (double)n;
    g->along += (float)((double)p * rest);
    g->penalty += (double)p * (double)t->norm[i] * rest;
}

/* A weighted list: dL/dz = gf of each pair, without conditions (TopK kinds, aux) */
static void qs_plain_pairs(const qsae_trainer *t, size_t i, const qs_list *l, const float *errors,
                           const qs_backward_scratch *s, float *enc, float *dec, qs_grads *g)
{
    const uint32_t *row = t->row + l->at;
    t->train->pair_dots(t->p[QSAE_PART_DEC] + i * t->out_ld, t->out_ld, errors, t->out_ld, row, l->n, s->gf);
    for (size_t j = 0; j < l->n; j++) g->bias += (double)s->gf[j];
    t->train->gather(t->value + l->at, row, l->n, errors, t->out_ld, t->out_ld, dec);
    t->train->gather(s->gf, row, l->n, t->x, t->in_ld, t->in_ld, enc);
}

/* Removes from g [ld] its part along d. */
static void qs_project(const qsae_trainer *t, size_t i, float *g)
{
    const float *d = t->p[QSAE_PART_DEC] + i * t->out_ld;
    float dot, n = t->norm[i];
    if (!(n > 0.0f)) return;
    t->kernels->dots[QSAE_TYPE_F32](d, t->out_ld * sizeof(float), 1, t->out_ld, g, t->out_ld, 1, &dot, 1);
    t->kernels->axpy[QSAE_TYPE_F32](-(dot / n) / n, d, t->out_ld, g);
}

static int qs_is_dead(const qsae_trainer *t, size_t i) { return t->fired[i] > t->o.dead_steps; }

static int qs_has_gradient(const qsae_trainer *t, size_t i)
{
    if (t->list[i].n) return 1;
    if (qs_is_jump(t)) return qs_is_dead(t, i) && t->o.pre_act_coefficient > 0.0f;
    return t->with_aux && qs_is_dead(t, i) && t->aux_list[i].n;
}

/* The errors that latent i's value answers for */
static const float *qs_errors_of(const qsae_trainer *t, size_t i)
{
    size_t group = 0;
    while (t->prefix[group] <= i) group++;
    return t->e + group * t->rows_ld * t->out_ld;
}

/* The gradient of latent i over its lists into grad [in_ld + out_ld], where its list may lie */
static qs_grads qs_backward_lists(qsae_trainer *t, size_t i, const qs_backward_scratch *s, float *grad)
{
    const qs_list *l = &t->list[i];
    const float *errors = qs_errors_of(t, i);
    float *enc = grad, *dec = grad + t->in_ld;
    const size_t wide = t->in_ld + t->out_ld;
    qs_grads g = {0, 0, 0, 0.0f, 0};
    if (qs_is_jump(t)) {
        t->train->pair_dots(t->p[QSAE_PART_DEC] + i * t->out_ld, t->out_ld, errors, t->out_ld,
                            qs_span_of(t, i, l).row, l->n, s->gf);
        size_t n = qs_jump_pairs(t, i, l, s, &g);
        memset(grad, 0, wide * sizeof *grad);
        t->train->gather(s->a, s->row, n, errors, t->out_ld, t->out_ld, dec);
        t->train->gather(s->c, s->row, n, t->x, t->in_ld, t->in_ld, enc);
    } else {
        memset(grad, 0, wide * sizeof *grad);
        g.fires = l->n > 0;
        if (l->n) qs_plain_pairs(t, i, l, errors, s, enc, dec, &g);
        if (t->with_aux && qs_is_dead(t, i)) qs_plain_pairs(t, i, &t->aux_list[i], t->aux_e, s, enc, dec, &g);
    }
    return g;
}

/* What comes after the lists: the terms of |d_i|, the projection, the norm */
static void qs_backward_end(qsae_trainer *t, size_t i, const qs_backward_scratch *s, float *grad, qs_grads g)
{
    float *enc = grad, *dec = grad + t->in_ld, e2, d2;
    if (qs_is_jump(t) && qs_is_dead(t, i) && t->o.pre_act_coefficient > 0.0f) qs_pre_act(t, i, s, enc, &g);
    if (g.along > 0.0f && t->norm[i] > 0.0f)
        t->kernels->axpy[QSAE_TYPE_F32](g.along / t->norm[i], t->p[QSAE_PART_DEC] + i * t->out_ld, t->out_ld, dec);
    if (t->o.unit_decoder) qs_project(t, i, dec);
    t->hit[i] = (uint8_t)g.fires;
    t->g_bias[i] = (float)g.bias;
    t->g_theta[i] = (float)g.theta;
    t->penalty[i] = g.penalty;
    t->kernels->dots[QSAE_TYPE_F32](enc, t->in_ld * sizeof(float), 1, t->in_ld, enc, t->in_ld, 1, &e2, 1);
    t->kernels->dots[QSAE_TYPE_F32](dec, t->out_ld * sizeof(float), 1, t->out_ld, dec, t->out_ld, 1, &d2, 1);
    t->square[i] = (double)e2 + (double)d2 + g.bias * g.bias + g.theta * g.theta;
}

/* Makes rows, which ascend, numbers within their slabs; start[k] becomes where slab k begins, k = 0..slabs */
static void qs_split_rows(uint32_t *row, size_t n, uint32_t *start, size_t slabs)
{
    memset(start, 0, (slabs + 1) * sizeof *start);
    for (size_t p = 0; p < n; p++) {
        uint32_t slab = row[p] / QS_SLAB_ROWS;
        start[slab + 1]++;
        row[p] -= slab * QS_SLAB_ROWS;
    }
    for (size_t k = 0; k < slabs; k++) start[k + 1] += start[k];
}

/* Rows of x, up to QS_SLAB_WIDE columns, to [column / QS_SLAB_COLUMNS][QS_SLAB_ROWS][QS_SLAB_COLUMNS] */
static void qs_copy_slab(const float *x, size_t ld, size_t rows, size_t columns, float *slab)
{
    for (size_t b = 0; b < rows; b++)
        for (size_t j = 0; j < columns; j += 16) /* of a fixed size: no call */
            memcpy(slab + (j / QS_SLAB_COLUMNS * QS_SLAB_ROWS + b) * QS_SLAB_COLUMNS + j % QS_SLAB_COLUMNS,
                   x + b * ld + j, 16 * sizeof *x);
}

/* Asks for p [n] to be brought near. */
static void qs_ask(const float *p, size_t n)
{
#if defined(__GNUC__)
    for (size_t j = 0; j < n; j += 16) __builtin_prefetch(p + j, 0, 2);
#else
    (void)p, (void)n;
#endif
}

/* y_r += sum_p a_r[p] x[row_r[p]] for latents r, as gather, but a slab of x serves all latents before the next: the same
 * chains. It is copied, because rows a power of two apart would push each other out of the cache. */
static void qs_gather_slabs(const qsae_trainer *t, size_t count, const float *a, const float *x, size_t ld, float *y,
                            const qs_backward_scratch *s)
{
    const size_t slabs = qs_slabs_of(t), wide = t->in_ld + t->out_ld;
    for (size_t j0 = 0; j0 < ld; j0 += QS_SLAB_WIDE)
        for (size_t k = 0; k * QS_SLAB_ROWS < t->n; k++) {
            const size_t columns = qs_min(QS_SLAB_WIDE, ld - j0), b = k * QS_SLAB_ROWS;
            const size_t after = qs_min(b + QS_SLAB_ROWS, t->n), ahead = qs_min(QS_SLAB_ROWS, t->n - after);
            const float *next = x + after * ld + j0;
            qs_copy_slab(x + b * ld + j0, ld, qs_min(QS_SLAB_ROWS, t->n - b), columns, s->slab);
            for (size_t j = 0; j < columns; j += QS_SLAB_COLUMNS)
                for (size_t r = 0; r < count; r++) {
                    const uint32_t *start = s->start + r * (slabs + 1) + k;
                    const size_t at = r * t->rows_ld + start[0], n = start[1] - start[0];
                    if (r < ahead) qs_ask(next + r * ld + j, qs_min(QS_SLAB_COLUMNS, columns - j));
                    if (n)
                        t->train->gather(a + at, s->rows + at, n, s->slab + j * QS_SLAB_ROWS, QS_SLAB_COLUMNS,
                                         qs_min(QS_SLAB_COLUMNS, columns - j), y + r * wide + j0 + j);
                }
        }
}

/* s->as = d_r . e of the pairs of latents i0.., a slab of rows at a time, which stays in the L2 cache */
static void qs_dots_slabs(const qsae_trainer *t, size_t i0, size_t count, const qs_backward_scratch *s)
{
    size_t done[QS_PART] = {0};
    for (size_t b = QS_DOT_ROWS; b < t->n + QS_DOT_ROWS; b += QS_DOT_ROWS)
        for (size_t r = 0; r < count; r++) {
            const qs_list *l = &t->list[i0 + r];
            const uint32_t *row = qs_span_of(t, i0 + r, l).row;
            size_t from = done[r], to = from;
            while (to < l->n && row[to] < b) to++;
            t->train->pair_dots(t->p[QSAE_PART_DEC] + (i0 + r) * t->out_ld, t->out_ld, t->e, t->out_ld, row + from,
                                to - from, s->as + r * t->rows_ld + from);
            done[r] = to;
        }
}

/* JumpReLU latents i0.. whose lists are long: as qs_backward_lists of each, into grad [count][in_ld + out_ld]. `most`:
 * so long that all products are computed, not those of the lists */
static void qs_backward_dense(qsae_trainer *t, size_t i0, size_t count, int most, const qs_backward_scratch *s, float *grad,
                              qs_grads *g)
{
    const qs_grads none = {0, 0, 0, 0.0f, 0};
    const size_t wide = t->in_ld + t->out_ld, slabs = qs_slabs_of(t);
    if (most)
        t->kernels->dots[QSAE_TYPE_F32](t->p[QSAE_PART_DEC] + i0 * t->out_ld, t->out_ld * sizeof(float), count,
                                        t->out_ld, t->e, t->out_ld, t->n, s->gfs, QS_PART);
    else
        qs_dots_slabs(t, i0, count, s);
    for (size_t r = 0; r < count; r++) {
        const qs_list *l = &t->list[i0 + r];
        qs_backward_scratch own = *s;
        own.a = own.gf = s->as + r * t->rows_ld; /* a pair's gf is read before its a is written */
        own.c = s->cs + r * t->rows_ld;
        own.row = s->rows + r * t->rows_ld;
        const uint32_t *row = qs_span_of(t, i0 + r, l).row;
        for (size_t j = 0; most && j < l->n; j++) own.gf[j] = s->gfs[row[j] * QS_PART + r];
        g[r] = none;
        size_t n = qs_jump_pairs(t, i0 + r, l, &own, &g[r]);
        qs_split_rows(own.row, n, s->start + r * (slabs + 1), slabs);
    }
    memset(grad, 0, count * wide * sizeof *grad);
    qs_gather_slabs(t, count, s->as, t->e, t->out_ld, grad + t->in_ld, s);
    qs_gather_slabs(t, count, s->cs, t->x, t->in_ld, grad, s);
}

/* ---- update ---- */

/* Adam on latent i; grad [in_ld + out_ld], or NULL where it is zero */
static void qs_update_latent(qsae_trainer *t, size_t i, const float *grad)
{
    const qs_adam *a = &t->adam;
    const size_t enc = i * t->in_ld, dec = i * t->out_ld;
    t->train->adam(a, grad, t->in_ld, t->p[0] + enc, t->m[0] + enc, t->v[0] + enc);
    t->train->adam(a, grad ? grad + t->in_ld : NULL, t->out_ld, t->p[1] + dec, t->m[1] + dec, t->v[1] + dec);
    QS_TRAIN_scalar.adam(a, grad ? t->g_bias + i : NULL, 1, t->p[2] + i, t->m[2] + i, t->v[2] + i);
    if (qs_is_jump(t)) {
        QS_TRAIN_scalar.adam(a, grad ? t->g_theta + i : NULL, 1, t->p[3] + i, t->m[3] + i, t->v[3] + i);
        if (t->p[3][i] < 0.0f) t->p[3][i] = 0.0f;
    }
    qs_norm_latent(t, i);
    if (t->o.unit_decoder && t->norm[i] > 0.0f) {
        float n = t->norm[i];
        for (size_t j = 0; j < t->o.d_out; j++) t->p[1][dec + j] /= n;
        qs_norm_latent(t, i);
    }
    qs_code_latent(t, i);
    t->fired[i] = t->hit[i] ? 0 : t->fired[i] + (t->fired[i] < UINT32_MAX);
}

/* Latents first..end, units are parts of QS_PART */
typedef struct qs_backward_run {
    qsae_trainer *t;
    size_t first, end;
} qs_backward_run;

/* Latents i0..i0 + count - 1, of one part */
static void qs_backward_part(qsae_trainer *t, size_t i0, size_t count, const qs_backward_scratch *s)
{
    const size_t wide = t->in_ld + t->out_ld;
    float *grad = t->grad ? t->grad + i0 * wide : s->grad, *sum = t->parts + i0 / QS_PART * t->out_ld;
    size_t pairs = 0, dense;
    qs_grads g[QS_PART];
    for (size_t r = 0; r < count; r++) pairs += t->list[i0 + r].n;
    dense = qs_is_jump(t) && pairs > count * t->n / 8;
    if (dense) qs_backward_dense(t, i0, count, pairs > count * t->n / 3, s, grad, g);
    for (size_t i = i0; i < i0 + count; i++, grad += wide) {
        t->touched[i] = (uint8_t)(dense || qs_has_gradient(t, i));
        t->hit[i] = 0;
        t->square[i] = t->penalty[i] = 0;
        if (t->touched[i]) {
            if (!dense) g[i - i0] = qs_backward_lists(t, i, s, grad);
            qs_backward_end(t, i, s, grad, g[i - i0]);
            if (!t->o.no_b_dec_input)
                t->kernels->axpy[QSAE_TYPE_F32](-t->g_bias[i], t->p[QSAE_PART_ENC] + i * t->in_ld, t->in_ld, sum);
        }
        if (!t->grad) qs_update_latent(t, i, t->touched[i] ? grad : NULL);
    }
}

static void qs_backward_task(void *arg, size_t lo, size_t hi, size_t thread)
{
    const qs_backward_run *run = arg;
    qs_backward_scratch s;
    qs_lay_backward(run->t, run->t->scratch + thread * run->t->scratch_size, &s);
    for (size_t part = run->first / QS_PART + lo; part < run->first / QS_PART + hi; part++) {
        size_t i = part * QS_PART > run->first ? part * QS_PART : run->first;
        qs_backward_part(run->t, i, qs_min((part + 1) * QS_PART, run->end) - i, &s);
    }
}

static void qs_backward_range(qsae_trainer *t, size_t first, size_t end)
{
    qs_backward_run run = {t, first, end};
    qs_parallel(t->o.n_threads, (end + QS_PART - 1) / QS_PART - first / QS_PART, QS_PART * t->in_ld * 16,
                qs_backward_task, &run);
}

static void qs_update_task(void *arg, size_t lo, size_t hi, size_t thread)
{
    qsae_trainer *t = arg;
    (void)thread;
    for (size_t i = lo; i < hi; i++)
        qs_update_latent(t, i, t->touched[i] ? t->grad + i * (t->in_ld + t->out_ld) : NULL);
}

/* dL/dc for columns lo..hi: from the error, then from x - c */
static void qs_bias_task(void *arg, size_t lo, size_t hi, size_t thread)
{
    qsae_trainer *t = arg;
    (void)thread;
    for (size_t chunk = lo; chunk < hi; chunk++) {
        size_t at = chunk * QS_COLUMNS, wide = qs_columns_of(t->out_ld, chunk);
        float *g = t->g_c + at;
        memset(g, 0, wide * sizeof *g);
        for (size_t b = 0; b < t->n; b++)
            for (size_t j = 0; j < wide; j++) g[j] += t->e[b * t->out_ld + at + j];
        for (size_t part = 0; part < t->n_parts && !t->o.no_b_dec_input; part++)
            for (size_t j = 0; j < wide; j++) g[j] += t->parts[part * t->out_ld + at + j];
    }
}

/* ---- schedules ---- */

static double qs_power(double b, uint64_t n)
{
    double r = 1;
    for (; n; n >>= 1, b *= b)
        if (n & 1) r *= b;
    return r;
}

static double qs_rate_at(const qsae_trainer_options *o, uint64_t n)
{
    double lr = (double)o->lr, s, c;
    if (n < o->lr_warmup && o->lr_cosine) {
        qs_sincos(3.14159265358979323846 * (double)n / (double)o->lr_warmup, &s, &c);
        lr *= 0.1 + 0.9 * (1 - c) / 2;
    } else if (n < o->lr_warmup) {
        lr *= (double)(n + 1) / (double)o->lr_warmup;
    }
    if (o->lr_decay && n >= o->steps) return 0;
    if (o->lr_decay && n > o->steps - o->lr_decay) lr *= (double)(o->steps - n) / (double)o->lr_decay;
    return lr;
}

static double qs_penalty_at(const qsae_trainer_options *o, uint64_t n)
{
    return (double)o->l0_coefficient * (n < o->l0_warmup ? (double)n / (double)o->l0_warmup : 1.0);
}

static void qs_set_adam(qsae_trainer *t, double rate, double scale)
{
    const qsae_trainer_options *o = &t->o;
    double left1 = 1 - qs_power((double)o->beta1, t->step + 1), left2 = 1 - qs_power((double)o->beta2, t->step + 1);
    qs_adam a = {(float)scale, (float)(1 - (double)o->beta1), o->beta2, (float)(1 - (double)o->beta2),
                 (float)(1 / sqrt(left2)), o->eps, (float)(rate / left1)};
    t->adam = a;
}

/* ---- step ---- */

static size_t qs_round_end(const qsae_trainer *t, size_t round)
{
    size_t blocks = (t->o.d_sae + t->block - 1) / t->block;
    return qs_min(blocks * (round + 1) / t->rounds * t->block, t->o.d_sae);
}

/* JumpReLU: encode and decode, in as many rounds as the arena asks for */
static void qs_forward_jump(qsae_trainer *t)
{
    size_t blocks = (t->o.d_sae + t->block - 1) / t->block, round = 0, pairs = 0;
    t->rounds = qs_min(blocks, (size_t)(1.1 * (double)t->pairs / (double)t->cap) + 1);
    qs_set_cuts(t, -INFINITY);
    while (round < t->rounds) {
        size_t first = round ? qs_round_end(t, round - 1) : 0, end = qs_round_end(t, round);
        t->used = 0;
        int fits = qs_encode_range(t, NULL, first, end, t->list);
        if (!fits) { /* `used` has counted all pairs of this range */
            double all = 1.1 * (double)t->used * (double)t->rounds / (double)t->cap;
            t->rounds = all > 2 * (double)t->rounds ? (size_t)all : 2 * t->rounds;
            t->rounds = qs_min(t->rounds, blocks);
            round = pairs = 0;
            continue;
        }
        pairs += t->used;
        qs_decode_range(t, first, end, round == 0, round + 1 == t->rounds);
        round++;
        qs_tick(t, QSAE_TIME_DECODE);
    }
    t->pairs = pairs;
}

static qsae_status qs_forward(qsae_trainer *t, qsae_error *err)
{
    qsae_status st;
    if (qs_is_jump(t)) {
        qs_forward_jump(t);
        return QSAE_OK;
    }
    t->rounds = 1;
    st = t->o.arch == QSAE_TRAIN_TOPK ? qs_select_rows(t, err) : qs_select_batch(t, err);
    qs_tick(t, QSAE_TIME_SELECT);
    if (st) return st;
    if ((st = qs_encode_aux(t, err)) != QSAE_OK) return st;
    qs_tick(t, QSAE_TIME_AUX);
    qs_decode_range(t, 0, t->o.d_sae, 1, 1);
    qs_tick(t, QSAE_TIME_DECODE);
    if (t->with_aux || t->n_prefixes > 1)
        qs_parallel(t->o.n_threads, t->n_chunks, t->n * QS_COLUMNS, qs_aux_task, t);
    qs_tick(t, QSAE_TIME_AUX);
    return QSAE_OK;
}

/* Losses from the chunks' sums */
static void qs_add_up(const qsae_trainer *t, qsae_train_stats *s)
{
    double squares = 0, means = 0, aux = 0, n = (double)t->n;
    for (size_t k = 0; k < t->n_prefixes; k++) {
        double sum = 0;
        for (size_t c = 0; c < t->n_chunks; c++) sum += t->sums[c * (t->n_prefixes + 3) + k];
        s->mse = sum / n;
        s->loss += (double)t->weight[k] * s->mse;
    }
    for (size_t c = 0; c < t->n_chunks; c++) {
        const double *of = t->sums + c * (t->n_prefixes + 3) + t->n_prefixes;
        if (t->with_aux) aux += of[0];
        squares += of[1];
        means += of[2];
    }
    s->ev = squares > means ? 1 - s->mse * n / (squares - means) : 0;
    s->aux = aux * (double)t->aux_scale / 2;
    if (!t->with_aux) s->aux = 0;
    s->loss += s->aux;
    for (size_t b = 0; b < t->n; b++) s->l0 += (double)t->active[b];
    s->l0 /= n;
}

/* S and its derivative by each row's L0; tanh's comes with the backward pass */
static void qs_penalize_rows(qsae_trainer *t, qsae_train_stats *s)
{
    const double l = (double)t->l0_coefficient, target = (double)t->o.l0_target, n = (double)t->n;
    if (!qs_is_jump(t) || t->o.sparsity == QSAE_TRAIN_TANH) return;
    double off = s->l0 / target - 1, slope = l / n;
    if (t->o.sparsity == QSAE_TRAIN_STEP) s->sparsity = l * s->l0;
    if (t->o.sparsity == QSAE_TRAIN_TARGET) {
        s->sparsity = l * off * off;
        slope = l * 2 * off / (target * n);
    }
    for (size_t b = 0; b < t->n; b++) {
        if (t->o.sparsity == QSAE_TRAIN_QUADRATIC) {
            double more = (double)t->active[b] - target;
            s->sparsity += l * 2 / target * more * more / n;
            slope = l * 4 * more / (target * n);
        }
        t->lambda[b] = (float)slope;
    }
}

static int qs_finite_double(double v) { return v - v == 0; }

static qsae_status qs_diverged(const char *what, double v, qsae_error *err)
{
    return qs_fail(err, QSAE_E_NUM, 0, "step: the %s is %g: values too large, or training diverged", what, v);
}

/* Backward and update. */
static qsae_status qs_learn(qsae_trainer *t, qsae_train_stats *s, qsae_error *err)
{
    double square = 0, scale = 1;
    memset(t->parts, 0, t->o.no_b_dec_input ? 0 : t->n_parts * t->out_ld * sizeof(float));
    qs_set_adam(t, s->lr, 1);
    for (size_t round = 0; round < t->rounds; round++) {
        size_t first = round ? qs_round_end(t, round - 1) : 0, end = qs_round_end(t, round);
        if (t->rounds > 1) {
            t->used = 0;
            qs_encode_range(t, NULL, first, end, t->list);
        }
        qs_backward_range(t, first, end);
        qs_tick(t, QSAE_TIME_BACKWARD);
    }
    qs_parallel(t->o.n_threads, t->n_chunks, t->n * QS_COLUMNS, qs_bias_task, t);
    for (size_t i = 0; i < t->o.d_sae; i++) {
        square += t->square[i];
        s->sparsity += t->penalty[i];
        s->loss += t->penalty[i];
    }
    square += qs_dot_double(t->g_c, t->g_c, t->o.d_out);
    s->grad_norm = sqrt(square);
    qs_tick(t, QSAE_TIME_BACKWARD);
    if (!qs_finite_double(square) || !qs_finite_double(s->loss)) {
        if (!t->grad) t->broken = 1;
        return qs_diverged("gradient's norm", s->grad_norm, err);
    }
    if (t->o.clip > 0.0f) {
        scale = (double)t->o.clip / (s->grad_norm + 1e-6);
        qs_set_adam(t, s->lr, scale < 1 ? scale : 1);
        qs_parallel(t->o.n_threads, t->o.d_sae, 4 * (t->in_ld + t->out_ld), qs_update_task, t);
    }
    t->train->adam(&t->adam, t->g_c, t->out_ld, t->p[QSAE_PART_B_DEC], t->m[QSAE_PART_B_DEC], t->v[QSAE_PART_B_DEC]);
    qs_tick(t, QSAE_TIME_UPDATE);
    return QSAE_OK;
}

static qsae_status qs_train_step(qsae_trainer *t, const float *x, qsae_train_stats *s, qsae_error *err)
{
    qs_prepare_job job = {t, x};
    s->step = t->step;
    s->n_rows = t->n;
    s->lr = qs_rate_at(&t->o, t->step);
    s->l0_coefficient = qs_is_jump(t) ? qs_penalty_at(&t->o, t->step) : 0;
    memset(t->seconds, 0, sizeof t->seconds);
    t->since = qs_now(t);
    t->exact = 0;
    t->l0_coefficient = (float)s->l0_coefficient;
    t->least = 0.0f;
    qs_parallel(t->o.n_threads, (t->n + QS_PANEL - 1) / QS_PANEL, QS_PANEL * t->in_ld, qs_prepare_task, &job);
    qs_find_dead(t);
    s->n_dead = t->n_dead;
    qs_tick(t, QSAE_TIME_PREPARE);
    qsae_status st = qs_forward(t, err);
    if (st) return st;
    double share = (double)t->exact / ((double)t->n * (double)t->o.d_sae);
    s->screened = share < 1 ? share : 1; /* a dense encode may be repeated */
    qs_add_up(t, s);
    qs_penalize_rows(t, s);
    s->loss += s->sparsity;
    if (!qs_finite_double(s->loss)) return qs_diverged("loss", s->loss, err);
    if ((st = qs_learn(t, s, err)) != QSAE_OK) return st;
    if (t->least > 0.0f) t->average = (1 - 0.01) * t->average + 0.01 * (double)t->least;
    t->step++;
    memcpy(s->seconds, t->seconds, sizeof s->seconds);
    return QSAE_OK;
}

static qsae_status qs_trainer_usable(const qsae_trainer *t, qsae_error *err)
{
    if (!t) return qs_fail(err, QSAE_E_ARG, 0, "trainer is NULL");
    if (t->broken) return qs_fail(err, QSAE_E_STATE, 0, "the trainer's state was lost: load a saved one");
    return QSAE_OK;
}

qsae_status qsae_trainer_step(qsae_trainer *trainer, const float *x, const float *y, size_t n,
                              qsae_train_stats *stats, qsae_error *err)
{
    qsae_trainer *t = trainer;
    qsae_train_stats s = {0};
    qsae_status st = qs_trainer_usable(t, err);
    if (st) return st;
    if (!x || !n) return qs_fail(err, QSAE_E_ARG, 0, "step: no rows");
    if (n > t->o.max_rows)
        return qs_fail(err, QSAE_E_LIMIT, 0, "step: %zu rows, max_rows is %zu", n, t->o.max_rows);
    if (!y && t->o.d_in != t->o.d_out)
        return qs_fail(err, QSAE_E_ARG, 0, "step: y is NULL, but d_in is %zu and d_out %zu", t->o.d_in, t->o.d_out);
    if ((st = qs_check_input(x, n, t->o.d_in, t->o.d_in, err)) != QSAE_OK ||
        (y && (st = qs_check_input(y, n, t->o.d_out, t->o.d_out, err)) != QSAE_OK))
        return st;
    t->n = n;
    t->rows_y = y ? y : x;
    qs_fp_state fp = qs_fp_enter();
    st = qs_train_step(t, x, &s, err);
    qs_fp_leave(fp);
    t->rows_y = NULL;
    if (!st && stats) *stats = s;
    return st;
}

/* ---- save and load ---- */

#define QS_STATE_MAGIC   "QSAETRN\n" /* 8 bytes */
#define QS_STATE_VERSION 1u
#define QS_STATE_OPTIONS 32

/* The options that shape training, as bits to compare, with their names */
typedef struct qs_print {
    size_t n;
    const char *name[QS_STATE_OPTIONS];
    uint64_t bits[QS_STATE_OPTIONS + 2 * QS_MAX_PREFIXES]; /* then prefixes and their weights */
} qs_print;

static void qs_print_integer(qs_print *p, const char *name, uint64_t v)
{
    p->name[p->n] = name;
    p->bits[p->n++] = v;
}

static void qs_print_float(qs_print *p, const char *name, double v)
{
    uint64_t bits;
    memcpy(&bits, &v, 8);
    qs_print_integer(p, name, bits);
}

static void qs_print_options(const qsae_trainer *t, qs_print *p)
{
    const qsae_trainer_options *o = &t->o;
    p->n = 0;
    qs_print_integer(p, "d_in", o->d_in);
    qs_print_integer(p, "d_out", o->d_out);
    qs_print_integer(p, "d_sae", o->d_sae);
    qs_print_integer(p, "arch", (uint64_t)o->arch);
    qs_print_integer(p, "sparsity", (uint64_t)o->sparsity);
    qs_print_integer(p, "ste_to_input", o->ste_to_input != 0);
    qs_print_integer(p, "no_b_dec_input", o->no_b_dec_input != 0);
    qs_print_integer(p, "no_rescale", o->no_rescale != 0);
    qs_print_integer(p, "unit_decoder", o->unit_decoder != 0);
    qs_print_integer(p, "lr_cosine", o->lr_cosine != 0);
    qs_print_integer(p, "dead_steps", o->dead_steps);
    qs_print_integer(p, "steps", o->steps);
    qs_print_integer(p, "lr_warmup", o->lr_warmup);
    qs_print_integer(p, "lr_decay", o->lr_decay);
    qs_print_integer(p, "l0_warmup", o->l0_warmup);
    qs_print_integer(p, "seed", o->seed);
    qs_print_float(p, "l0_coefficient", (double)o->l0_coefficient);
    qs_print_float(p, "l0_target", (double)o->l0_target);
    qs_print_float(p, "bandwidth", (double)o->bandwidth);
    qs_print_float(p, "threshold_init", (double)o->threshold_init);
    qs_print_float(p, "tanh_scale", (double)o->tanh_scale);
    qs_print_float(p, "pre_act_coefficient", (double)o->pre_act_coefficient);
    qs_print_float(p, "k", o->k);
    qs_print_float(p, "aux_coefficient", (double)o->aux_coefficient);
    qs_print_float(p, "lr", (double)o->lr);
    qs_print_float(p, "beta1", (double)o->beta1);
    qs_print_float(p, "beta2", (double)o->beta2);
    qs_print_float(p, "eps", (double)o->eps);
    qs_print_float(p, "clip", (double)o->clip);
    qs_print_float(p, "scale_in", (double)o->scale_in);
    qs_print_float(p, "scale_out", (double)o->scale_out);
    qs_print_float(p, "decoder_norm", (double)o->decoder_norm);
    for (size_t k = 0; k < QS_MAX_PREFIXES; k++) {
        double weight = (double)t->weight[k];
        p->bits[QS_STATE_OPTIONS + 2 * k] = t->prefix[k];
        memcpy(&p->bits[QS_STATE_OPTIONS + 2 * k + 1], &weight, 8);
    }
}

/* Reads or writes the state with one walk, so that both have the same order. */
typedef struct qs_stream {
    int (*write)(void *user, const void *data, size_t size);
    int (*read)(void *user, void *data, size_t size);
    void *user;
    qsae_hash hash;
    uint64_t done;
    int failed;
} qs_stream;

static void qs_stream_pass(qs_stream *s, void *data, size_t size)
{
    if (s->failed || !size) return;
    s->failed = s->write ? s->write(s->user, data, size) : s->read(s->user, data, size);
    if (s->failed) return;
    qsae_hash_add(&s->hash, data, size);
    s->done += size;
}

static void qs_stream_state(qs_stream *s, qsae_trainer *t)
{
    float **sets[3] = {t->p, t->m, t->v};
    qs_stream_pass(s, &t->step, sizeof t->step);
    qs_stream_pass(s, &t->average, sizeof t->average);
    for (int set = 0; set < 3; set++)
        for (int part = 0; part < 5; part++) {
            size_t rows, cols, ld = qs_part_ld(t, part);
            if (!qs_part_rows(t, part, &rows, &cols)) continue;
            for (size_t r = 0; r < rows; r++) qs_stream_pass(s, sets[set][part] + r * ld, cols * sizeof(float));
        }
    qs_stream_pass(s, t->fired, t->o.d_sae * sizeof *t->fired);
}

qsae_status qsae_trainer_save(const qsae_trainer *trainer, int (*write)(void *user, const void *data, size_t size),
                              void *user, qsae_error *err)
{
    qs_print p;
    qs_stream s = {write, NULL, user, {{0}, 0, {0}}, 0, 0};
    char magic[8];
    uint32_t version = QS_STATE_VERSION, count = QS_STATE_OPTIONS + 2 * QS_MAX_PREFIXES;
    qsae_status st = qs_trainer_usable(trainer, err);
    if (st) return st;
    if (!write) return qs_fail(err, QSAE_E_ARG, 0, "save: write is NULL");
    memcpy(magic, QS_STATE_MAGIC, 8);
    qs_print_options(trainer, &p);
    qsae_hash_begin(&s.hash);
    qs_stream_pass(&s, magic, 8);
    qs_stream_pass(&s, &version, 4);
    qs_stream_pass(&s, &count, 4);
    qs_stream_pass(&s, p.bits, sizeof p.bits);
    qs_stream_state(&s, (qsae_trainer *)(uintptr_t)trainer); /* only read: s has no `read` */
    uint64_t hash = qsae_hash_end(&s.hash);
    qs_stream_pass(&s, &hash, 8);
    if (s.failed)
        return qs_fail(err, QSAE_E_IO, s.done, "save: writing stopped after %llu bytes", (unsigned long long)s.done);
    return QSAE_OK;
}

static qsae_status qs_short(const qs_stream *s, qsae_error *err)
{
    return qs_fail(err, QSAE_E_TRUNC, s->done, "load: the state ends after %llu bytes", (unsigned long long)s->done);
}

static qsae_status qs_check_print(const qsae_trainer *t, const uint64_t *is, qsae_error *err)
{
    qs_print p;
    qs_print_options(t, &p);
    for (size_t i = 0; i < QS_STATE_OPTIONS + 2 * QS_MAX_PREFIXES; i++) {
        double a, b;
        if (is[i] == p.bits[i]) continue;
        if (i >= QS_STATE_OPTIONS)
            return qs_fail(err, QSAE_E_MISMATCH, 0, "load: prefix %zu or its weight differs",
                           (i - QS_STATE_OPTIONS) / 2);
        memcpy(&a, &is[i], 8);
        memcpy(&b, &p.bits[i], 8);
        if (i < 16) { /* the integers */
            return qs_fail(err, QSAE_E_MISMATCH, 0, "load: the state was saved with %s %llu, the trainer has %llu",
                           p.name[i], (unsigned long long)is[i], (unsigned long long)p.bits[i]);
        }
        return qs_fail(err, QSAE_E_MISMATCH, 0, "load: the state was saved with %s %.9g, the trainer has %.9g",
                       p.name[i], a, b);
    }
    return QSAE_OK;
}

/* What a value of a part must be: finite; thresholds and second moments not below 0 */
static qsae_status qs_check_values(int set, int part, size_t row, const float *v, size_t n, qsae_error *err)
{
    static const char *const names[5] = {"enc", "dec", "b_enc", "theta", "b_dec"};
    static const char *const sets[3] = {"", "_m", "_v"};
    if (!qs_all_finite(v, n))
        return qs_fail(err, QSAE_E_NUM, 0, "%s%s: row %zu is not finite", names[part], sets[set], row);
    for (size_t j = 0; j < n && (set == 2 || (set == 0 && part == QSAE_PART_THETA)); j++)
        if (v[j] < 0.0f)
            return qs_fail(err, QSAE_E_ARG, 0, "%s%s: a value of row %zu is %g, must not be below 0", names[part],
                           sets[set], row, (double)v[j]);
    return QSAE_OK;
}

static qsae_status qs_check_state(const qsae_trainer *t, qsae_error *err)
{
    float *const *sets[3] = {t->p, t->m, t->v};
    if (!(t->average >= 0) || !qs_finite_double(t->average))
        return qs_fail(err, QSAE_E_NUM, 0, "the moving average is %g", t->average);
    for (int set = 0; set < 3; set++)
        for (int part = 0; part < 5; part++) {
            size_t rows, cols, ld = qs_part_ld(t, part);
            if (!qs_part_rows(t, part, &rows, &cols)) continue;
            for (size_t r = 0; r < rows; r++) {
                qsae_status st = qs_check_values(set, part, r, sets[set][part] + r * ld, cols, err);
                if (st) return st == QSAE_E_ARG ? QSAE_E_FORMAT : st;
            }
        }
    return QSAE_OK;
}

static void qs_norms_task(void *arg, size_t lo, size_t hi, size_t thread)
{
    (void)thread;
    for (size_t i = lo; i < hi; i++) {
        qs_norm_latent(arg, i);
        qs_code_latent(arg, i);
    }
}

qsae_status qsae_trainer_load(qsae_trainer *trainer, int (*read)(void *user, void *data, size_t size), void *user,
                              qsae_error *err)
{
    qsae_trainer *t = trainer;
    qs_stream s = {NULL, read, user, {{0}, 0, {0}}, 0, 0};
    uint64_t bits[QS_STATE_OPTIONS + 2 * QS_MAX_PREFIXES], is, hash;
    char magic[8];
    uint32_t version = 0, count = 0;
    qsae_status st;
    if (!t || !read) return qs_fail(err, QSAE_E_ARG, 0, "load: %s is NULL", t ? "read" : "trainer");
    qsae_hash_begin(&s.hash);
    qs_stream_pass(&s, magic, 8);
    qs_stream_pass(&s, &version, 4);
    qs_stream_pass(&s, &count, 4);
    if (s.failed) return qs_short(&s, err);
    if (memcmp(magic, QS_STATE_MAGIC, 8) != 0)
        return qs_fail(err, QSAE_E_FORMAT, 0, "load: these bytes are not the state of a trainer");
    if (version != QS_STATE_VERSION || count != QS_STATE_OPTIONS + 2 * QS_MAX_PREFIXES)
        return qs_fail(err, QSAE_E_VERSION, 8, "load: state version %u with %u options, this is %u with %u", version,
                       count, QS_STATE_VERSION, (unsigned)(QS_STATE_OPTIONS + 2 * QS_MAX_PREFIXES));
    qs_stream_pass(&s, bits, sizeof bits);
    if (s.failed) return qs_short(&s, err);
    if ((st = qs_check_print(t, bits, err)) != QSAE_OK) return st;
    t->broken = 1;
    qs_stream_state(&s, t);
    hash = qsae_hash_end(&s.hash);
    qs_stream_pass(&s, &is, 8);
    if (s.failed) return qs_short(&s, err);
    if (is != hash) return qs_fail(err, QSAE_E_FORMAT, s.done - 8, "load: the checksum of the state is wrong");
    if ((st = qs_check_state(t, err)) != QSAE_OK) return st;
    t->broken = 0;
    qs_fp_state fp = qs_fp_enter();
    qs_parallel(t->o.n_threads, t->o.d_sae, t->out_ld, qs_norms_task, t);
    qs_fp_leave(fp);
    return QSAE_OK;
}

/* ---- parts ---- */

void qsae_trainer_shape(const qsae_trainer *trainer, qsae_train_part part, size_t *rows, size_t *cols)
{
    size_t r = 0, c = 0;
    if (trainer && (unsigned)part < QSAE_PART_FIRED) {
        if (!qs_part_rows(trainer, (int)part % 5, &r, &c)) r = c = 0;
        /* of BatchTopK's one threshold there are no moments */
        if (part == QSAE_PART_THETA && (trainer->o.arch == QSAE_TRAIN_BATCHTOPK ||
                                        trainer->o.arch == QSAE_TRAIN_MATRYOSHKA))
            r = c = 1;
    } else if (trainer && part == QSAE_PART_FIRED) {
        r = trainer->o.d_sae;
        c = 1;
    }
    if (rows) *rows = r;
    if (cols) *cols = c;
}

static qsae_status qs_check_part(const qsae_trainer *t, qsae_train_part part, size_t first, size_t n, const void *p,
                                 qsae_error *err)
{
    size_t rows, cols;
    qsae_status st = qs_trainer_usable(t, err);
    if (st) return st;
    qsae_trainer_shape(t, part, &rows, &cols);
    if (!rows) return qs_fail(err, QSAE_E_ARG, 0, "trainer: there is no part %d", (int)part);
    if (first > rows || n > rows - first)
        return qs_fail(err, QSAE_E_ARG, 0, "trainer: rows %zu and %zu more of part %d, which has %zu", first, n,
                       (int)part, rows);
    if (!p && n) return qs_fail(err, QSAE_E_ARG, 0, "trainer: the rows' pointer is NULL");
    return QSAE_OK;
}

/* Where a part's row is; NULL for those that are no floats */
static float *qs_part_at(const qsae_trainer *t, qsae_train_part part, size_t row)
{
    float *const *sets[3] = {t->p, t->m, t->v};
    if (part == QSAE_PART_FIRED || (part == QSAE_PART_THETA && !qs_is_jump(t))) return NULL;
    return sets[part / 5][part % 5] + row * qs_part_ld(t, (int)part % 5);
}

qsae_status qsae_trainer_get(const qsae_trainer *trainer, qsae_train_part part, size_t first, size_t n, float *out,
                             qsae_error *err)
{
    size_t rows, cols;
    qsae_status st = qs_check_part(trainer, part, first, n, out, err);
    if (st) return st;
    qsae_trainer_shape(trainer, part, &rows, &cols);
    for (size_t r = 0; r < n; r++) {
        const float *from = qs_part_at(trainer, part, first + r);
        if (from) memcpy(out + r * cols, from, cols * sizeof *out);
        else out[r] = part == QSAE_PART_FIRED ? (float)trainer->fired[first + r] : (float)trainer->average;
    }
    return QSAE_OK;
}

static qsae_status qs_check_set(const qsae_trainer *t, qsae_train_part part, size_t first, size_t n, const float *in,
                                qsae_error *err)
{
    size_t rows, cols;
    qsae_status st;
    qsae_trainer_shape(t, part, &rows, &cols);
    for (size_t r = 0; r < n; r++) {
        if (part == QSAE_PART_FIRED) {
            if (in[r] >= 0.0f && in[r] <= 4294967040.0f && in[r] == floorf(in[r])) continue;
            return qs_fail(err, QSAE_E_ARG, 0, "fired: value %zu is %g, must be a count", first + r, (double)in[r]);
        }
        if ((st = qs_check_values((int)part / 5, (int)part % 5, first + r, in + r * cols, cols, err)) != QSAE_OK)
            return st;
    }
    return QSAE_OK;
}

qsae_status qsae_trainer_set(qsae_trainer *trainer, qsae_train_part part, size_t first, size_t n, const float *in,
                             qsae_error *err)
{
    size_t rows, cols;
    qsae_status st = qs_check_part(trainer, part, first, n, in, err);
    if (st || (st = qs_check_set(trainer, part, first, n, in, err)) != QSAE_OK) return st;
    qsae_trainer_shape(trainer, part, &rows, &cols);
    qs_fp_state fp = qs_fp_enter();
    for (size_t r = 0; r < n; r++) {
        float *to = qs_part_at(trainer, part, first + r);
        if (to) memcpy(to, in + r * cols, cols * sizeof *in);
        else if (part == QSAE_PART_FIRED) trainer->fired[first + r] = (uint32_t)in[r];
        else trainer->average = (double)in[r];
        if (part == QSAE_PART_DEC) qs_norm_latent(trainer, first + r);
        if (part == QSAE_PART_ENC) qs_code_latent(trainer, first + r);
    }
    qs_fp_leave(fp);
    return QSAE_OK;
}

/* ---- export ----
 *
 * In raw units x_raw = x / scale_in and y_raw = y / scale_out. With q = |d_i| scale_in / scale_out (1 if norms stay)
 *     w'_i = q w_i    b'_i = q (b_i - w_i . c) / scale_in    theta'_i = q theta_i / scale_in    f'_i = q f_i / scale_in
 *     d'_i = d_i scale_in / (scale_out q)    c' = c / scale_out
 * For BatchTopK, which selects by z |d_i|, the average a is theta_i = a / |d_i| in units of z. */

qsae_activation qsae_trainer_activation(const qsae_trainer *trainer)
{
    return trainer && trainer->o.arch == QSAE_TRAIN_TOPK ? QSAE_ACT_TOPK : QSAE_ACT_JUMPRELU;
}

/* q of latent i; a decoder row of zeros stays as it is */
static double qs_fold_of(const qsae_trainer *t, size_t i)
{
    const float *d = t->p[QSAE_PART_DEC] + i * t->out_ld;
    double norm = sqrt(qs_dot_double(d, d, t->o.d_out));
    if (t->o.arch == QSAE_TRAIN_TOPK && t->o.no_rescale) return 1;
    return norm > 0 ? norm * (double)t->o.scale_in / (double)t->o.scale_out : 1;
}

static void qs_export_row(const qsae_trainer *t, qsae_train_part part, size_t i, float *out)
{
    const float *w = t->p[QSAE_PART_ENC] + i * t->in_ld, *d = t->p[QSAE_PART_DEC] + i * t->out_ld;
    const float *c = t->p[QSAE_PART_B_DEC];
    double in = (double)t->o.scale_in, to = (double)t->o.scale_out, v;
    double q = part == QSAE_PART_B_DEC ? 1 : qs_fold_of(t, i);
    switch (part) {
    case QSAE_PART_ENC:
        for (size_t j = 0; j < t->o.d_in; j++) out[j] = (float)((double)w[j] * q);
        break;
    case QSAE_PART_DEC:
        for (size_t j = 0; j < t->o.d_out; j++) out[j] = (float)((double)d[j] * (in / to) / q);
        break;
    case QSAE_PART_B_ENC:
        v = (double)t->p[QSAE_PART_B_ENC][i];
        if (!t->o.no_b_dec_input) v -= qs_dot_double(w, c, t->o.d_in);
        *out = (float)(v * q / in);
        break;
    case QSAE_PART_THETA:
        if (qs_is_jump(t)) *out = (float)((double)t->p[QSAE_PART_THETA][i] * q / in);
        else if (t->o.no_rescale) *out = (float)(t->average * q / in);
        else *out = (float)(t->average / to);
        break;
    default: *out = (float)((double)c[i] / to);
    }
}

qsae_status qsae_trainer_export(const qsae_trainer *trainer, qsae_train_part part, size_t first, size_t n, float *out,
                                qsae_error *err)
{
    const qsae_trainer *t = trainer;
    qsae_status st = qs_trainer_usable(t, err);
    if (st) return st;
    size_t rows = part == QSAE_PART_B_DEC ? t->o.d_out : t->o.d_sae;
    size_t cols = part == QSAE_PART_ENC ? t->o.d_in : part == QSAE_PART_DEC ? t->o.d_out : 1;
    if ((unsigned)part > QSAE_PART_B_DEC || (part == QSAE_PART_THETA && t->o.arch == QSAE_TRAIN_TOPK))
        return qs_fail(err, QSAE_E_ARG, 0, "export: there is no part %d", (int)part);
    if (first > rows || n > rows - first || (!out && n))
        return qs_fail(err, QSAE_E_ARG, 0, "export: rows %zu and %zu more of %zu", first, n, rows);
    qs_fp_state fp = qs_fp_enter();
    for (size_t r = 0; r < n; r++) qs_export_row(t, part, first + r, out + r * cols);
    qs_fp_leave(fp);
    for (size_t r = 0; r < n; r++)
        if (!qs_all_finite(out + r * cols, cols))
            return qs_fail(err, QSAE_E_NUM, 0, "export: row %zu of part %d overflows", first + r, (int)part);
    return QSAE_OK;
}

#endif /* QSAE_NO_TRAINING */
