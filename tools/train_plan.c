/* What a run will take: memory and disk are calculated, time is measured on some rows and
 * some steps. */

#ifndef _XOPEN_SOURCE
#define _XOPEN_SOURCE 700
#endif

#include "bench_image.h"
#include "cmd.h"
#include "train.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>

#define OWN_MEMORY  (24u << 20) /* the program, the text, the log */
#define DISK_SPEED  3e8         /* bytes a second of a checkpoint, with its fsync */
#define MEASURE     5.0         /* seconds, about, that a measurement may take; */
#define ENOUGH      4096        /* rows are measured after a tenth of that, too */
#define MATCH_STEPS 12          /* to find the thresholds that give the L0 aimed at */

typedef struct amounts {
    uint64_t model, contexts, buffer, batches, trainers, writing, memory; /* bytes */
    uint64_t checkpoint, file, suite, disk;
} amounts;

/* ---- memory and disk ---- */

static uint64_t suite_bytes(const train_run *r)
{
    uint64_t sum = 4096, n = r->s.base.d_sae;
    for (size_t i = 0; i < r->n_members; i++) {
        const train_lane *l = &r->lanes[r->members[i].lane];
        uint64_t in = r->streams[l->in].width, out = r->streams[l->out].width;
        sum += n * 4 * (in + out + 2) + (n >= 4096 ? n * in + n * in / 64 + 8 * n : 0);
    }
    return sum;
}

static uint64_t most_width(const train_run *r)
{
    uint64_t most = 0;
    for (size_t i = 0; i < r->n_streams; i++)
        if (r->streams[i].width > most)
            most = r->streams[i].width;
    return most;
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static int add_trainers(train_run *r, amounts *a)
{
    for (size_t i = 0; i < r->n_members; i++) {
        qsae_trainer_options o = train_options(r, &r->members[i]);
        qsae_error e;
        size_t size = qsae_trainer_size(&o, &e);
        if (size == 0)
            return complain(CMD_FAILED, "%s: %s", r->members[i].name, e.text);
        if (size_add(a->trainers, size, &a->trainers))
            return complain(CMD_FAILED, "the trainers' memory has no number");
    }
    return CMD_OK;
}

static int add_up(train_run *r, amounts *a)
{
    size_t widths[2 * PLACES_MAX * TRAIN_MAX_LAYERS];
    size_t cap = train_buffer_rows(r) + (size_t)r->s.context;
    memset(a, 0, sizeof *a);
    for (size_t i = 0; i < r->n_streams; i++)
        widths[i] = r->streams[i].width;
    uint64_t rows = shuffle_bytes(widths, r->n_streams, cap);
    a->model = r->model_size;
    if (r->model) {
        feed_options f = r->feed_options;
        f.streams = r->streams;
        f.n_streams = r->n_streams;
        a->contexts = feed_model_bytes(r->model, &f);
        if (a->contexts == 0)
            return complain(CMD_FAILED,
                            "--context %" PRIu64 ": the model has no contexts "
                            "of that size",
                            r->s.context);
    }
    a->file = r->s.buffer_file ? rows : 0;
    a->buffer = (a->file ? 0 : rows) + (uint64_t)cap * 4 * (r->n_streams + 1);
    for (size_t i = 0; i < r->n_lanes; i++) {
        const train_lane *l = &r->lanes[i];
        uint64_t w = widths[l->in] + (l->in != l->out ? widths[l->out] : 0);
        a->batches += r->s.batch * w * 4;
    }
    int code = add_trainers(r, a);
    a->writing = smaller(4096, r->s.base.d_sae) * most_width(r) * 8;
    a->memory = OWN_MEMORY;
    a->checkpoint = train_state_bytes(r);
    a->suite = suite_bytes(r);
    a->disk = 2 * a->checkpoint + a->file + (r->s.export ? 2 : 1) * a->suite;
    uint64_t parts[] = {a->contexts, a->buffer, a->batches, a->trainers, a->writing};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (size_add(a->memory, parts[i], &a->memory))
            a->memory = UINT64_MAX;
    return code;
}

/* Free bytes where `path` is, or will be. */
static uint64_t disk_free(const char *path)
{
    char at[4096];
    struct statvfs v;
    snprintf(at, sizeof at, "%.4000s", path);
    while (statvfs(at, &v) != 0) {
        char *slash = strrchr(at, '/');
        if (!slash || slash == at)
            strcpy(at, slash ? "/" : ".");
        else
            *slash = 0;
        if (strcmp(at, "/") == 0 || strcmp(at, ".") == 0)
            return statvfs(at, &v) ? UINT64_MAX : (uint64_t)v.f_bavail * v.f_frsize;
    }
    return (uint64_t)v.f_bavail * v.f_frsize;
}

static uint64_t memory_free(void)
{
    struct rlimit limit;
    uint64_t n = image_memory();
    if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
        n = smaller(n, limit.rlim_cur);
    return n;
}

static double gb(uint64_t bytes)
{
    return (double)bytes / 1e9;
}

int train_check_room(train_run *r)
{
    amounts a;
    int code = add_up(r, &a);
    if (code != CMD_OK || r->s.plan)
        return code;
    uint64_t memory = memory_free(), disk = disk_free(r->s.out);
    if (a.memory > memory)
        return complain(
            CMD_FAILED,
            "%zu SAEs of width %zu need %.2f GB of memory (%.2f GB for the "
            "trainers, %.2f GB for the buffer), %.2f GB are available: a smaller "
            "--width, fewer SAEs at once (--only), --buffer or --buffer-file",
            r->n_members, r->s.base.d_sae, gb(a.memory), gb(a.trainers), gb(a.buffer),
            gb(memory));
    if (a.disk > disk)
        return complain(
            CMD_FAILED,
            "the run needs %.2f GB of disk (twice a checkpoint of %.2f GB, a "
            "suite of %.2f GB), %.2f GB are free at %.200s",
            gb(a.disk), gb(a.checkpoint), gb(a.suite), gb(disk), r->s.out);
    return CMD_OK;
}

/* ---- time ---- */

typedef struct sample {
    size_t n, cap;
    float **rows; /* [n_streams]: [cap, width] */
    double seconds_per_row;
} sample;

/* Rows up to one batch, and how long one takes; the first call only warms up. */
static int take_rows(train_run *r, sample *s)
{
    char err[ERR_CAP];
    double start = 0;
    size_t timed = 0, before = 0;
    for (int call = 0;; call++) {
        feed_part p;
        if (feed_next(r->feed, s->cap, &p, err, sizeof err) != 1)
            return complain(CMD_FAILED, "%s", err);
        size_t n = smaller(p.n, s->cap - s->n);
        for (size_t i = 0; i < r->n_streams; i++)
            memcpy(s->rows[i] + s->n * r->streams[i].width, p.rows[i],
                   n * r->streams[i].width * sizeof(float));
        s->n += n;
        timed += p.n;
        if (call == 0) {
            before = timed;
            start = train_now();
            continue;
        }
        double spent = train_now() - start;
        if (timed > before &&
            (spent > MEASURE || (spent > MEASURE / 10 && timed - before >= ENOUGH))) {
            s->seconds_per_row = spent / (double)(timed - before);
            break;
        }
        if (call > 100000)
            return complain(CMD_FAILED, "the text gives no rows");
    }
    for (size_t i = s->n; i < s->cap && s->n;
         i++) /* the rest of the batch: once more */
        for (size_t k = 0; k < r->n_streams; k++) {
            size_t w = r->streams[k].width;
            memcpy(s->rows[k] + i * w, s->rows[k] + i % s->n * w, w * sizeof(float));
        }
    return s->n ? CMD_OK : complain(CMD_FAILED, "the text gives no rows");
}

static float scale_of(const sample *s, size_t stream, size_t width)
{
    double sum = 0;
    for (size_t i = 0; i < s->cap * width; i++)
        sum += (double)s->rows[stream][i] * (double)s->rows[stream][i];
    return sum > 0 ? (float)(1 / sqrt(sum / (double)s->cap)) : 1;
}

static int one_step(train_run *r, qsae_trainer *t, const train_lane *l, const sample *s,
                    qsae_train_stats *stats, double *seconds)
{
    qsae_error e;
    double start = train_now();
    if (qsae_trainer_step(t, s->rows[l->in], l->in == l->out ? NULL : s->rows[l->out],
                          s->cap, stats, &e))
        return complain(CMD_FAILED, "%s: %s", l->name, e.text);
    (void)r;
    *seconds = train_now() - start;
    return CMD_OK;
}

/* Thresholds that let about as many features fire as are aimed at: what most steps of a
 * JumpReLU run are like. */
static int sparse_state(train_run *r, qsae_trainer *t, const train_lane *l,
                        const sample *s, double target)
{
    size_t n = r->s.base.d_sae;
    float *theta = malloc(n * sizeof *theta);
    double low = 0, high = 1, unused;
    int code = theta ? CMD_OK : complain(CMD_FAILED, "out of memory");
    for (int i = 0; i < MATCH_STEPS && code == CMD_OK; i++) {
        qsae_train_stats stats;
        qsae_error e;
        double mid = (low + high) / 2;
        for (size_t k = 0; k < n; k++)
            theta[k] = (float)mid;
        if (qsae_trainer_set(t, QSAE_PART_THETA, 0, n, theta, &e))
            code = complain(CMD_FAILED, "%s", e.text);
        if (code == CMD_OK)
            code = one_step(r, t, l, s, &stats, &unused);
        if (code == CMD_OK && stats.l0 > target)
            low = mid;
        else
            high = mid;
    }
    free(theta);
    return code;
}

/* Of three, so that a moment in which the machine was busy does not count. */
static double middle(const double *v)
{
    double low = fmin(v[0], v[1]), high = fmax(v[0], v[1]);
    return fmin(fmax(low, v[2]), high);
}

/* Seconds of a step at the start, and later. */
static int time_steps(train_run *r, const train_member *m, const sample *s,
                      double *early, double *later)
{
    train_lane *l = &r->lanes[m->lane];
    qsae_train_stats stats;
    qsae_trainer *t = NULL;
    qsae_error e;
    double unused;
    l->scale_in = scale_of(s, l->in, r->streams[l->in].width);
    l->scale_out = scale_of(s, l->out, r->streams[l->out].width);
    qsae_trainer_options o = train_options(r, m);
    if (qsae_trainer_create(&o, &t, &e))
        return complain(CMD_FAILED, "%s: %s", m->name, e.text);
    int code = one_step(r, t, l, s, &stats, &unused);
    if (code == CMD_OK)
        code = one_step(r, t, l, s, &stats, early);
    if (code == CMD_OK && o.arch == QSAE_TRAIN_JUMPRELU && m->target > 0)
        code = sparse_state(r, t, l, s, m->target);
    double of[3] = {0, 0, 0};
    for (int i = 0; i < 3 && code == CMD_OK; i++)
        code = one_step(r, t, l, s, &stats, &of[i]);
    *later = middle(of);
    qsae_trainer_destroy(t);
    return code;
}

static int same_shape(const train_run *r, size_t a, size_t b)
{
    const train_lane *x = &r->lanes[r->members[a].lane],
                     *y = &r->lanes[r->members[b].lane];
    return r->streams[x->in].width == r->streams[y->in].width &&
           r->streams[x->out].width == r->streams[y->out].width;
}

/* Steps of all members: those of one shape are taken to be like the first of it. */
static int time_training(train_run *r, const sample *s, double *seconds, double *one)
{
    double early = 0, later = 0;
    double *of = calloc(r->n_members, sizeof *of);
    int code = of ? CMD_OK : complain(CMD_FAILED, "out of memory");
    *seconds = 0;
    for (size_t i = 0; i < r->n_members && code == CMD_OK; i++) {
        size_t like = 0;
        while (!same_shape(r, like, i))
            like++;
        if (like == i) {
            code = time_steps(r, &r->members[i], s, &early, &later);
            /* of JumpReLU, while the penalty grows, and as long again, much fires */
            uint64_t n = r->s.base.arch == QSAE_TRAIN_JUMPRELU
                             ? smaller(r->steps, 2 * r->s.base.l0_warmup + 10)
                             : 0;
            of[i] = (double)n * early + (double)(r->steps - n) * later;
        } else {
            of[i] = of[like];
        }
        *seconds += of[i];
    }
    *one = later;
    free(of);
    return code;
}

static const char *duration(double s, char *out, size_t cap)
{
    if (s < 120)
        snprintf(out, cap, "%.0f s", s);
    else if (s < 7200)
        snprintf(out, cap, "%.0f min", s / 60);
    else if (s < 172800)
        snprintf(out, cap, "%.1f h", s / 3600);
    else
        snprintf(out, cap, "%.1f days", s / 86400);
    return out;
}

static void print_amounts(const train_run *r, const amounts *a)
{
    printf("memory  %.2f GB: trainers %.2f, buffer %.2f, contexts %.2f, batches %.2f, "
           "writing %.2f; %.2f available\n",
           gb(a->memory), gb(a->trainers), gb(a->buffer), gb(a->contexts),
           gb(a->batches), gb(a->writing), gb(memory_free()));
    if (r->model)
        printf("        and the model's file, %.2f GB, mapped: %.2f GB in all\n",
               gb(a->model), gb(a->model + a->memory));
    printf("disk    %.2f GB: checkpoint %.2f (while one is written, twice), suite %.2f",
           gb(a->disk), gb(a->checkpoint), gb(a->suite));
    if (a->file)
        printf(", buffer file %.2f", gb(a->file));
    printf("; %.2f free\n", gb(disk_free(r->s.out)));
}

static void print_time(const train_run *r, const amounts *a, const sample *s,
                       double steps, double one)
{
    char text[3][32];
    double rows = (double)(r->steps * r->s.batch),
           text_time = rows * s->seconds_per_row;
    double work = text_time + steps;
    double every =
        r->s.checkpoint_minutes > 0 ? 60 * (double)r->s.checkpoint_minutes : INFINITY;
    double saves = floor(work / every) * (double)a->checkpoint / DISK_SPEED;
    double last = (double)a->suite / DISK_SPEED;
    printf("rate    %.4g rows/s from the text; %.4g s a step of %" PRIu64
           " rows of one SAE: %.4g rows/s\n",
           1 / s->seconds_per_row, one, r->s.batch, (double)r->s.batch / one);
    printf("time    %s: text %s, %" PRIu64 " steps of %zu SAEs %s\n",
           duration(work + saves + last, text[0], sizeof text[0]),
           duration(text_time, text[1], sizeof text[1]), r->steps, r->n_members,
           duration(steps, text[2], sizeof text[2]));
}

int train_plan_print(train_run *r)
{
    amounts a;
    sample s = {0, (size_t)r->s.batch, NULL, 0};
    double steps = 0, one = 0;
    int code = add_up(r, &a);
    s.rows = calloc(r->n_streams + 1, sizeof *s.rows);
    if (code != CMD_OK || !s.rows)
        return code != CMD_OK ? code : complain(CMD_FAILED, "out of memory");
    for (size_t i = 0; i < r->n_streams && code == CMD_OK; i++) {
        s.rows[i] = malloc(s.cap * r->streams[i].width * sizeof(float));
        if (!s.rows[i])
            code = complain(CMD_FAILED, "out of memory");
    }
    if (code == CMD_OK) {
        printf("suite   %zu SAEs of width %zu, %" PRIu64 " rows each\n", r->n_members,
               r->s.base.d_sae, r->steps * r->s.batch);
        print_amounts(r, &a);
        fflush(stdout);
        code = take_rows(r, &s);
    }
    if (code == CMD_OK)
        code = time_training(r, &s, &steps, &one);
    if (code == CMD_OK)
        print_time(r, &a, &s, steps, one);
    for (size_t i = 0; i < r->n_streams; i++)
        free(s.rows[i]);
    free(s.rows);
    return code;
}
