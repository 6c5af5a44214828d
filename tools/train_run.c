/* The work of `qsae train`: a bucket of rows from the model, then the lanes train on it,
 * each in an order of its own; and again. */

#include "cmd.h"
#include "sinks.h"
#include "train.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- the log, and what a person sees ---- */

static uint64_t dead(const train_member *m)
{
    return m->last.n_dead;
}

static int write_log(train_run *r, const train_member *m)
{
    const qsae_train_stats *t = &m->last;
    fprintf(r->log,
            "{\"sae\":\"%s\",\"step\":%" PRIu64 ",\"rows\":%" PRIu64
            ",\"loss\":%.9g,\"mse\":%.9g,\"l0\":%.9g,\"ev\":%.9g,\"dead\":%" PRIu64
            ",\"sparsity\":%.9g,\"aux\":%.9g,\"lr\":%.9g,\"l0_coefficient\":%.9g,"
            "\"grad_norm\":%.9g,\"exact\":%.4g}\n",
            m->name, t->step + 1, (t->step + 1) * r->s.batch, t->loss, t->mse, t->l0,
            t->ev, dead(m), t->sparsity, t->aux, t->lr, t->l0_coefficient, t->grad_norm,
            t->screened);
    return fflush(r->log) == 0 && !ferror(r->log)
               ? CMD_OK
               : complain(CMD_FAILED, "%.300s: cannot write", r->log_path);
}

/* Seconds that are left, by what rows and steps have taken so far. */
static double time_left(const train_run *r)
{
    uint64_t total = r->steps * r->s.batch, got = r->pushed + r->buffer.n, steps = 0;
    for (size_t i = 0; i < r->n_lanes; i++)
        steps += r->steps - r->lanes[i].steps;
    double row = r->rows_now ? r->busy_forward / (double)r->rows_now : 0;
    double step = r->steps_now ? r->busy_train / (double)r->steps_now : 0;
    return row * (double)(total > got ? total - got : 0) + step * (double)steps;
}

static void show_fill(train_run *r, size_t target)
{
    progress_say(&r->shown,
                 "bucket %" PRIu64 ": %zu of %zu rows, %.0f rows/s  ETA %.0f s",
                 r->bucket + 1, r->buffer.n, target,
                 r->busy_forward > 0 ? (double)r->rows_now / r->busy_forward : 0.0,
                 time_left(r));
}

static void show_step(train_run *r, const train_lane *l)
{
    const train_member *m = &r->members[l->member];
    double rate =
        r->busy_train > 0 ? (double)(r->steps_now * r->s.batch) / r->busy_train : 0.0;
    progress_say(&r->shown,
                 "%s %" PRIu64 "/%" PRIu64 " loss %.4f L0 %.1f EV %.4f dead %.1f %%  "
                 "%.0f rows/s  ETA %.0f s",
                 m->name, l->steps, r->steps, m->last.loss, m->last.l0, m->last.ev,
                 100.0 * (double)dead(m) / (double)r->s.base.d_sae, rate, time_left(r));
}

/* ---- stops ---- */

/* Between any two pieces of work: is it time for a checkpoint, or for the end? */
static int pause_here(train_run *r)
{
    double now = train_now();
    int due = r->s.checkpoint_minutes > 0 &&
              now - r->saved >= 60.0 * (double)r->s.checkpoint_minutes;
    if (!train_stop && !due)
        return CMD_OK;
    progress_end(&r->shown);
    int code = train_save(r);
    progress_begin(&r->shown, "training", 0);
    if (code != CMD_OK || !train_stop)
        return code;
    fprintf(stderr, "qsae: stopped; --resume goes on from %s\n", r->state_path);
    return CMD_STOPPED;
}

/* ---- filling ---- */

static uint64_t more(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* Rows of the present bucket. When the text has given as many rows as there are steps
 * for, some are missing that were left out as too long: a little more. */
static size_t bucket_rows(const train_run *r)
{
    uint64_t n = train_buffer_rows(r), total = r->steps * r->s.batch;
    uint64_t want =
        total > r->pushed ? total - r->pushed : more(r->s.batch, r->s.context);
    return (size_t)(want < n ? want : n);
}

static int append(train_run *r, const feed_part *part)
{
    char err[ERR_CAP];
    size_t row = SIZE_MAX, column = 0;
    if (shuffle_append(&r->buffer, part->rows, part->n, &row, &column, err,
                       sizeof err) == 0)
        return CMD_OK;
    if (row != SIZE_MAX)
        feed_bad_row(&r->feed_options, part, column, row, err, sizeof err);
    return complain(CMD_FAILED, "%s", err);
}

static int fill(train_run *r)
{
    char err[ERR_CAP];
    size_t target = bucket_rows(r);
    while (r->buffer.n < target) {
        feed_part part;
        double start = train_now();
        if (feed_next(r->feed, target - r->buffer.n, &part, err, sizeof err) != 1)
            return complain(CMD_FAILED, "%s", err);
        int code = append(r, &part);
        r->busy_forward += train_now() - start;
        r->rows_now += part.n;
        show_fill(r, target);
        if (code == CMD_OK)
            code = pause_here(r);
        if (code != CMD_OK)
            return code;
    }
    r->phase = TRAIN_USE;
    r->lane = 0;
    return CMD_OK;
}

/* ---- the first bucket: limits, scales, means; the trainers ---- */

static int limit_of(const train_run *r, size_t stream, float *limit)
{
    sinks s;
    *limit = 0;
    if (sinks_begin(&s))
        return complain(CMD_FAILED, "out of memory");
    for (size_t i = 0; i < r->buffer.n; i++)
        sinks_add(&s, i, r->buffer.norm[stream][i]);
    *limit = r->s.norm_ratio * sinks_median(&s);
    sinks_end(&s);
    return CMD_OK;
}

static int is_kept(const train_run *r, const train_lane *l, size_t row)
{
    if (r->s.norm_ratio == 0)
        return 1;
    return r->buffer.norm[l->in][row] <= l->limit_in &&
           r->buffer.norm[l->out][row] <= l->limit_out;
}

static int scale_of(const train_run *r, const train_lane *l, size_t stream,
                    float *scale)
{
    double sum = 0;
    size_t n = 0;
    for (size_t i = 0; i < r->buffer.n; i++) {
        double norm = (double)r->buffer.norm[stream][i];
        if (!is_kept(r, l, i))
            continue;
        sum += norm * norm;
        n++;
    }
    if (n == 0 || sum == 0)
        return complain(CMD_FAILED, "%s: the first %zu rows of %s are all zero",
                        l->name, r->buffer.n,
                        feed_stream_name(&r->streams[stream]).text);
    *scale = (float)(1 / sqrt(sum / (double)n));
    return CMD_OK;
}

static int calibrate_lane(train_run *r, train_lane *l)
{
    int code = limit_of(r, l->in, &l->limit_in);
    if (code == CMD_OK)
        code = limit_of(r, l->out, &l->limit_out);
    if (code == CMD_OK)
        code = scale_of(r, l, l->in, &l->scale_in);
    return code == CMD_OK ? scale_of(r, l, l->out, &l->scale_out) : code;
}

int train_create_trainers(train_run *r)
{
    for (size_t i = 0; i < r->n_members; i++) {
        train_member *m = &r->members[i];
        qsae_trainer_options o = train_options(r, m);
        qsae_error e;
        if (qsae_trainer_create(&o, &m->trainer, &e))
            return complain(CMD_FAILED, "%s: %s", m->name, e.text);
    }
    return CMD_OK;
}

/* The mean of what is to be predicted, in the units of training. */
static int mean_of(const train_run *r, const train_lane *l, float *mean, double *sum)
{
    char err[ERR_CAP];
    size_t width = r->streams[l->out].width, n = 0;
    memset(sum, 0, width * sizeof *sum);
    for (size_t i = 0; i < r->buffer.n; i++) {
        if (!is_kept(r, l, i))
            continue;
        if (shuffle_get(&r->buffer, l->out, i, mean, err, sizeof err))
            return complain(CMD_FAILED, "%s", err);
        for (size_t k = 0; k < width; k++)
            sum[k] += (double)mean[k];
        n++;
    }
    for (size_t k = 0; k < width; k++)
        mean[k] = (float)(sum[k] / (double)n * (double)l->scale_out);
    return CMD_OK;
}

static int set_means(train_run *r, const train_lane *l)
{
    size_t width = r->streams[l->out].width;
    float *mean = malloc(width * sizeof *mean);
    double *sum = malloc(width * sizeof *sum);
    qsae_error e;
    int code =
        mean && sum ? mean_of(r, l, mean, sum) : complain(CMD_FAILED, "out of memory");
    for (size_t i = 0; code == CMD_OK && i < l->n; i++)
        if (qsae_trainer_set(r->members[l->member + i].trainer, QSAE_PART_B_DEC, 0,
                             width, mean, &e))
            code = complain(CMD_FAILED, "%s: %s", l->name, e.text);
    free(mean);
    free(sum);
    return code;
}

static int calibrate(train_run *r)
{
    int code = CMD_OK;
    for (size_t i = 0; code == CMD_OK && i < r->n_lanes; i++)
        code = calibrate_lane(r, &r->lanes[i]);
    if (code == CMD_OK)
        code = train_create_trainers(r);
    for (size_t i = 0; code == CMD_OK && i < r->n_lanes && !r->s.b_dec_zero; i++)
        code = set_means(r, &r->lanes[i]);
    r->calibrated = 1;
    return code;
}

/* ---- using ---- */

/* The rows of the bucket that the lane keeps, in its order. */
static int make_order(const train_run *r, train_lane *l)
{
    l->n_order = 0;
    l->order = malloc((r->buffer.n + 1) * sizeof *l->order);
    if (!l->order)
        return complain(CMD_FAILED, "out of memory");
    for (size_t i = 0; i < r->buffer.n; i++)
        if (is_kept(r, l, i))
            l->order[l->n_order++] = (uint32_t)i;
    shuffle_order(l->order, l->n_order, shuffle_seed(r->s.seed, l->name), r->bucket);
    return CMD_OK;
}

static int collect(train_run *r, train_lane *l)
{
    char err[ERR_CAP];
    size_t row = l->order[l->at++];
    size_t in = r->streams[l->in].width, out = r->streams[l->out].width;
    if (shuffle_get(&r->buffer, l->in, row, l->x + l->filled * in, err, sizeof err) ||
        (l->y &&
         shuffle_get(&r->buffer, l->out, row, l->y + l->filled * out, err, sizeof err)))
        return complain(CMD_FAILED, "%s", err);
    l->filled++;
    return CMD_OK;
}

static int step(train_run *r, train_lane *l)
{
    int code = CMD_OK;
    double start = train_now();
    for (size_t i = 0; code == CMD_OK && i < l->n; i++) {
        train_member *m = &r->members[l->member + i];
        qsae_error e;
        if (qsae_trainer_step(m->trainer, l->x, l->y, (size_t)r->s.batch, &m->last, &e))
            return complain(CMD_FAILED, "%s: step %" PRIu64 ": %s", m->name,
                            l->steps + 1, e.text);
        if ((l->steps + 1) % r->s.log_every == 0 || l->steps + 1 == r->steps)
            code = write_log(r, m);
    }
    l->filled = 0;
    l->steps++;
    r->busy_train += train_now() - start;
    r->steps_now++;
    show_step(r, l);
    return code == CMD_OK ? pause_here(r) : code;
}

static int use_lane(train_run *r, train_lane *l)
{
    int code = CMD_OK;
    if (l->steps == r->steps)
        return CMD_OK;
    if (!l->order)
        code = make_order(r, l);
    while (code == CMD_OK && l->at < l->n_order && l->steps < r->steps) {
        code = collect(r, l);
        if (code == CMD_OK && l->filled == r->s.batch)
            code = step(r, l);
    }
    if (code != CMD_OK)
        return code;
    l->left_out += r->buffer.n - l->n_order;
    free(l->order);
    l->order = NULL;
    l->at = 0;
    return CMD_OK;
}

static int use(train_run *r)
{
    int code = r->calibrated ? CMD_OK : calibrate(r);
    for (; code == CMD_OK && r->lane < r->n_lanes; r->lane++) {
        code = use_lane(r, &r->lanes[r->lane]);
        if (code != CMD_OK)
            break;
    }
    if (code != CMD_OK)
        return code;
    r->pushed += r->buffer.n;
    r->bucket++;
    shuffle_clear(&r->buffer);
    r->phase = TRAIN_FILL;
    /* the file is about to be overwritten: no checkpoint may count on it any more */
    return r->buffer.path ? train_save(r) : CMD_OK;
}

/* ---- all of it ---- */

static int is_done(const train_run *r)
{
    for (size_t i = 0; i < r->n_lanes; i++)
        if (r->lanes[i].steps < r->steps)
            return 0;
    return 1;
}

int train_make_room(train_run *r, int keep_file)
{
    char err[ERR_CAP];
    size_t widths[2 * PLACES_MAX * TRAIN_MAX_LAYERS];
    for (size_t i = 0; i < r->n_streams; i++)
        widths[i] = r->streams[i].width;
    for (size_t i = 0; i < r->n_lanes; i++) {
        train_lane *l = &r->lanes[i];
        l->x = l->x ? l->x : malloc((size_t)r->s.batch * widths[l->in] * sizeof *l->x);
        if (l->in != l->out && !l->y)
            l->y = malloc((size_t)r->s.batch * widths[l->out] * sizeof *l->y);
        if (!l->x || (l->in != l->out && !l->y))
            return complain(CMD_FAILED, "out of memory for batches of %" PRIu64 " rows",
                            r->s.batch);
    }
    if (r->buffer.n_columns == 0 &&
        shuffle_open(&r->buffer, widths, r->n_streams,
                     train_buffer_rows(r) + (size_t)r->s.context, r->s.buffer_file,
                     keep_file, err, sizeof err))
        return complain(CMD_FAILED, "%s", err);
    return CMD_OK;
}

static void report(const train_run *r)
{
    for (size_t i = 0; i < r->n_members; i++) {
        const train_member *m = &r->members[i];
        const train_lane *l = &r->lanes[m->lane];
        printf("%s: %" PRIu64 " steps of %" PRIu64
               " rows, loss %.4f, L0 %.1f, EV %.4f, "
               "%" PRIu64 " of %zu features dead, %" PRIu64 " rows left out\n",
               m->name, l->steps, r->s.batch, m->last.loss, m->last.l0, m->last.ev,
               dead(m), r->s.base.d_sae, l->left_out);
    }
    feed_cursor at;
    feed_tell(r->feed, &at);
    if (at.passes > 0)
        printf("the text ended %" PRIu64 " times and was read again\n", at.passes);
}

static int finish(train_run *r)
{
    progress_end(&r->shown);
    int code = train_write_suite(r);
    if (code == CMD_OK && r->s.export)
        code = train_write_exports(r);
    if (code != CMD_OK)
        return code;
    report(r);
    if (!r->s.keep_checkpoint)
        train_remove_state(r);
    if (r->buffer.path)
        remove(r->buffer.path);
    return CMD_OK;
}

int train_work(train_run *r)
{
    int code = train_make_room(r, 0);
    if (code == CMD_OK && !r->log) {
        r->log = fopen(r->log_path, "w");
        if (!r->log)
            code = complain(CMD_FAILED, "%.300s: cannot create", r->log_path);
    }
    progress_begin(&r->shown, "training", 0);
    while (code == CMD_OK && !is_done(r))
        code = r->phase == TRAIN_FILL ? fill(r) : use(r);
    if (code == CMD_OK && r->s.keep_checkpoint)
        code = train_save(r);
    progress_end(&r->shown);
    return code == CMD_OK ? finish(r) : code;
}
