/* The passes of the model over the text (see eval.h). */

#define _POSIX_C_SOURCE 200809L

#include "eval.h"

#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "cmd.h"
#include "logits.h"

/* ------------------------------------------------------------------------- progress */

static void show(const eval *e, const char *what)
{
    if (!isatty(STDERR_FILENO))
        return;
    if (e->total_tokens)
        fprintf(stderr, "\r\033[Kqsae eval: %s, %llu of %llu tokens", what,
                (unsigned long long)e->given, (unsigned long long)e->total_tokens);
    else
        fprintf(stderr, "\r\033[Kqsae eval: %s, %llu tokens", what,
                (unsigned long long)e->given);
}

static void wipe(void)
{
    if (isatty(STDERR_FILENO))
        fputs("\r\033[K", stderr);
}

/* ------------------------------------------------------------------------ sequences */

/* The next sequence of at most `limit` tokens in all (0: no limit): 1, 0 at the end, -1
 * after a complaint. */
static int next_sequence(eval *e, uint64_t limit)
{
    char err[ERR_CAP];
    if (limit && limit - e->given < 2)
        return 0;
    int status =
        corpus_next(e->text, e->ids, e->classes, e->context, &e->n, err, sizeof err);
    if (status < 0) {
        wipe();
        complain(CMD_FAILED, "--data: %s", err);
    }
    if (status <= 0)
        return status;
    if (limit && e->n > limit - e->given)
        e->n = (size_t)(limit - e->given);
    e->given += e->n;
    return 1;
}

static int fail(const char *where, const qsae_error *err)
{
    wipe();
    return complain_library(where, err);
}

/* The model as it is: rows of every spot and, if asked for, the logits. */
static int run_original(eval *e, int logits)
{
    qsae_error err;
    qsae_capture *list = malloc((e->n_spots + 1) * sizeof *list);
    size_t n = e->n_spots;
    if (!list)
        return complain(CMD_FAILED, "out of memory");
    for (size_t i = 0; i < n; i++)
        list[i] = (qsae_capture){e->spots[i].site, e->spots[i].layer, e->spots[i].rows,
                                 e->context};
    if (logits)
        list[n++] = (qsae_capture){QSAE_LOGITS, 0, e->logits, e->context};
    qsae_status s = qsae_set_hook(e->ctx, NULL, &err);
    if (s == QSAE_OK)
        s = qsae_set_captures(e->ctx, list, n, &err);
    if (s == QSAE_OK)
        s = qsae_ctx_rewind(e->ctx, 0, &err);
    if (s == QSAE_OK)
        s = qsae_eval(e->ctx, e->ids, e->n, &err);
    free(list);
    if (s != QSAE_OK)
        return fail(e->o->model, &err);
    for (size_t i = 0; i < e->n_spots; i++) {
        eval_spot *p = &e->spots[i];
        for (size_t t = 0; t < e->n; t++) {
            p->norm[t] = sinks_norm(p->rows + t * p->width, p->width);
            if (isfinite(p->norm[t]))
                continue;
            wipe();
            return complain(CMD_FAILED,
                            "%.200s: %s of layer %d is not finite at token %zu of "
                            "sequence %llu",
                            e->o->model, qsae_site_name(p->site), p->layer, t,
                            (unsigned long long)e->n_seq);
        }
    }
    return CMD_OK;
}

static void mark_excluded(eval *e)
{
    for (size_t i = 0; i < e->n_places; i++) {
        eval_place *p = &e->places[i];
        const eval_spot *in = &e->spots[p->in], *out = &e->spots[p->out];
        for (size_t t = 0; t < e->n; t++)
            p->excluded[t] = (uint8_t)(t == 0 || sinks_is(in->norm[t], in->median) ||
                                       sinks_is(out->norm[t], out->median));
    }
}

/* ---------------------------------------------------------------- the first two passes */

static int find_medians(eval *e)
{
    int status, code = CMD_OK;
    corpus_rewind(e->text);
    e->given = 0;
    while (code == CMD_OK && (status = next_sequence(e, MEDIAN_TOKENS)) != 0) {
        if (status < 0)
            return CMD_FAILED;
        show(e, "norms");
        code = run_original(e, 0);
        for (size_t i = 0; i < e->n_spots && code == CMD_OK; i++)
            for (size_t t = 0; t < e->n; t++)
                sinks_add(&e->spots[i].sinks, t, e->spots[i].norm[t]);
    }
    for (size_t i = 0; i < e->n_spots; i++)
        e->spots[i].median = sinks_median(&e->spots[i].sinks);
    return code;
}

static void add_products(double *sums, const float *x, size_t d)
{
    for (size_t i = 0; i < d; i++)
        for (size_t j = 0; j < d; j++)
            sums[i * d + j] += (double)x[i] * (double)x[j];
}

static void add_place(eval *e, const eval_place *p)
{
    double *sums = e->sums + p->sums;
    const float *rows = e->spots[p->out].rows;
    for (size_t t = 0; t < e->n; t++) {
        if (p->excluded[t])
            continue;
        sums[0] += 1;
        for (size_t k = 0; k < p->d; k++)
            sums[1 + k] += (double)rows[t * p->d + k];
        if (p->needs_products)
            add_products(sums + 1 + p->d, rows + t * p->d, p->d);
    }
}

/* Features of rows `at` .. of a member; made: their reconstruction, or NULL. */
static int apply(eval *e, eval_member *m, size_t at, size_t n, float *made)
{
    qsae_error err;
    const eval_spot *in = &e->spots[e->places[m->place].in];
    if (sae_apply_rows(&m->apply, in->rows + at * in->width, 0, n, made, &err) !=
        QSAE_OK)
        return fail(e->o->sae, &err);
    return CMD_OK;
}

static size_t block(const eval *e, size_t at)
{
    return e->n - at < SAE_APPLY_ROWS ? e->n - at : SAE_APPLY_ROWS;
}

/* Only for the rank of principal components. */
static int count_features(eval *e, eval_member *m)
{
    const eval_place *p = &e->places[m->place];
    for (size_t at = 0; at < e->n; at += SAE_APPLY_ROWS) {
        size_t n = block(e, at);
        if (apply(e, m, at, n, NULL) != CMD_OK)
            return CMD_FAILED;
        for (size_t i = 0; i < n; i++)
            if (!p->excluded[at + i]) {
                e->sums[m->sums] +=
                    (double)(m->apply.sparse.start[i + 1] - m->apply.sparse.start[i]);
                e->sums[m->sums + 1] += 1;
            }
    }
    return CMD_OK;
}

static int add_means(eval *e)
{
    int code = run_original(e, 0);
    if (code != CMD_OK)
        return code;
    mark_excluded(e);
    for (size_t t = 0; t < e->n; t++)
        e->sums[e->at_classes + e->classes[t]] += 1;
    for (size_t i = 0; i < e->n_places; i++)
        add_place(e, &e->places[i]);
    for (size_t i = 0; i < e->n_members && code == CMD_OK; i++)
        if (e->places[e->members[i].place].needs_products)
            code = count_features(e, &e->members[i]);
    return code;
}

/* What the metrics need of the means. */
static int end_means(eval *e)
{
    for (size_t i = 0; i < e->n_places; i++) {
        eval_place *p = &e->places[i];
        const double *sums = e->sums + p->sums;
        if (!(sums[0] > 0))
            return complain(CMD_FAILED,
                            "%s of layer %d: every token is excluded as a sink; more "
                            "text, or longer sequences, are needed",
                            qsae_site_name(e->spots[p->out].site),
                            e->spots[p->out].layer);
        for (size_t k = 0; k < p->d; k++)
            p->mean[k] = (float)(sums[1 + k] / sums[0]);
    }
    for (size_t i = 0; i < e->n_members; i++) {
        eval_member *m = &e->members[i];
        double n = e->sums[m->sums + 1];
        m->rank = n > 0 ? (size_t)floor(e->sums[m->sums] / n + 0.5) : 0;
        if (m->rank < 1)
            m->rank = 1;
    }
    return eval_components(e);
}

/* -------------------------------------------------------------------- spliced timelines */

/* New rows for a place: row t is at rows + t ld (ld 0: one row for all); or rows NULL, and
 * the member does it live, for rows that other splices have changed. */
typedef struct splice {
    const eval_place *place;
    const float *rows;
    size_t ld;
    eval_member *member;
} splice;

typedef struct timeline {
    eval *e;
    const splice *list;
    size_t n;
} timeline;

static int is_at(const eval *e, size_t spot, const qsae_event *event)
{
    return e->spots[spot].site == event->site && e->spots[spot].layer == event->layer;
}

static void put_rows(const splice *s, const qsae_event *event, const float *from,
                     size_t ld, float *rows)
{
    size_t first = (size_t)event->pos;
    for (size_t i = 0; i < event->n_rows; i++)
        if (!s->place->excluded[first + i])
            memcpy(rows + i * event->ld, from + i * ld, event->width * sizeof *rows);
}

static int live_rows(timeline *l, const splice *s, const qsae_event *event, float *rows)
{
    qsae_error err;
    eval *e = l->e;
    const eval_place *p = s->place;
    size_t first = (size_t)event->pos;
    int in = is_at(e, p->in, event), out = is_at(e, p->out, event);
    float *made = s->member->live ? s->member->live + first * p->d : e->extra;
    for (size_t at = 0; in && at < event->n_rows; at += SAE_APPLY_ROWS) {
        size_t n = event->n_rows - at;
        n = n < SAE_APPLY_ROWS ? n : SAE_APPLY_ROWS;
        if (sae_apply_rows(&s->member->apply, rows + at * event->ld, event->ld, n,
                           made + at * p->d, &err) != QSAE_OK)
            return err_set(e->err, sizeof e->err, "%s", err.text);
    }
    if (out)
        put_rows(s, event, made, p->d, rows);
    return 0;
}

static int hook(void *user, const qsae_event *event, float *rows)
{
    timeline *l = user;
    int status = 0;
    for (size_t i = 0; i < l->n && !status; i++) {
        const splice *s = &l->list[i];
        if (!s->rows)
            status = live_rows(l, s, event, rows);
        else if (is_at(l->e, s->place->out, event))
            put_rows(s, event, s->rows + (size_t)event->pos * s->ld, s->ld, rows);
    }
    return status ? 1 : 0;
}

/* Tokens at .. at + n - 1 have new logits. */
static int compare_logits(eval *e, size_t at, size_t n, double *ce, double *kl,
                          uint8_t *same)
{
    size_t vocab = (size_t)e->info.vocab_size, top;
    for (size_t i = 0; i < n && at + i + 1 < e->n; i++) {
        const float *new = e->other + i *vocab, *old = e->logits + (at + i) * vocab;
        double log_sum = logits_log_sum(new, vocab, &top);
        if (isnan(log_sum)) {
            wipe();
            return complain(
                CMD_FAILED,
                "a logit after token %zu of sequence %llu is not finite when "
                "rows are replaced",
                at + i, (unsigned long long)e->n_seq);
        }
        ce[at + i] = log_sum - (double)new[e->ids[at + i + 1]];
        kl[at + i] = logits_kl(old, e->log_sum[at + i], new, log_sum, vocab);
        if (same)
            same[at + i] = top == e->top[at + i];
    }
    return CMD_OK;
}

/* Of every token that has a next one: -log p(next), KL from the original, and whether the
 * most likely next one is the same. */
static int run_spliced(eval *e, const splice *list, size_t n_list, double *ce,
                       double *kl, uint8_t *same)
{
    qsae_error err;
    timeline l = {e, list, n_list};
    qsae_hook h = {hook, &l, 0, 0, 0};
    qsae_capture logits = {QSAE_LOGITS, 0, e->other, e->n_batch};
    for (size_t i = 0; i < n_list; i++)
        h.sites |= 1u << e->spots[list[i].place->in].site |
                   1u << e->spots[list[i].place->out].site;
    qsae_status s = qsae_set_hook(e->ctx, &h, &err);
    if (s == QSAE_OK)
        s = qsae_set_captures(e->ctx, &logits, 1, &err);
    if (s == QSAE_OK)
        s = qsae_ctx_rewind(e->ctx, 0, &err);
    int code = CMD_OK;
    e->err[0] = 0;
    for (size_t at = 0; at < e->n && s == QSAE_OK && code == CMD_OK; at += e->n_batch) {
        size_t n = e->n - at < e->n_batch ? e->n - at : e->n_batch;
        s = qsae_eval(e->ctx, e->ids + at, n, &err);
        if (s == QSAE_OK)
            code = compare_logits(e, at, n, ce, kl, same);
    }
    qsae_set_hook(e->ctx, NULL, NULL);
    if (s == QSAE_E_CANCELLED && e->err[0]) {
        wipe();
        return complain(CMD_FAILED, "%.200s: %s", e->o->sae, e->err);
    }
    return s == QSAE_OK ? code : fail(e->o->model, &err);
}

static int run_ablation(eval *e, eval_ablation *a)
{
    splice *list = calloc(a->n, sizeof *list);
    int code = list ? CMD_OK : complain(CMD_FAILED, "out of memory");
    for (int mean = 0; mean < 2 && code == CMD_OK; mean++) {
        float *zero = e->made;
        for (size_t i = 0; i < a->n; i++) {
            list[i].place = &e->places[a->places[i]];
            list[i].rows = mean ? list[i].place->mean : zero;
            memset(zero, 0, list[i].place->d * sizeof *zero);
        }
        code = run_spliced(e, list, a->n, a->ce[mean], a->kl[mean], NULL);
    }
    free(list);
    return code;
}

/* ------------------------------------------------------------------------------ sums */

static void add_original(eval *e)
{
    double *sums = e->sums + e->at_orig;
    for (size_t t = 0; t + 1 < e->n; t++) {
        size_t class = 1 + e->classes[t + 1];
        sums[0] += 1;
        sums[1] += e->ce[t];
        sums[2 * class] += 1;
        sums[2 * class + 1] += e->ce[t];
    }
}

static int read_original(eval *e)
{
    size_t vocab = (size_t)e->info.vocab_size;
    for (size_t t = 0; t < e->n; t++) {
        const float *row = e->logits + t * vocab;
        e->log_sum[t] = logits_log_sum(row, vocab, &e->top[t]);
        if (isnan(e->log_sum[t])) {
            wipe();
            return complain(CMD_FAILED,
                            "%.200s: a logit after token %zu of sequence %llu is not "
                            "finite",
                            e->o->model, t, (unsigned long long)e->n_seq);
        }
        if (t + 1 < e->n)
            e->ce[t] = e->log_sum[t] - (double)row[e->ids[t + 1]];
    }
    add_original(e);
    return CMD_OK;
}

/* One row of a unit's reconstruction. */
static void add_row(eval *e, const eval_unit *u, size_t t, double l0, double sum_f,
                    double *seq)
{
    const eval_place *p = &e->places[e->members[u->members[0]].place];
    size_t d = p->d, size = fidelity_size(d);
    const float *x = e->spots[p->out].rows + t * d, *z = e->made + t * d;
    double *sums = e->sums + u->sums;
    fidelity_row r;
    fidelity_measure(&r, x, z, p->mean, d);
    r.l0 = l0;
    r.sum_f = sum_f;
    fidelity_add(sums + GROUP_ALL * size, &r, x, z, d);
    if (p->excluded[t])
        return;
    fidelity_add(sums + GROUP_KEPT * size, &r, x, z, d);
    fidelity_add(sums + (GROUP_CLASS + e->classes[t]) * size, &r, x, z, d);
    seq[S_N] += 1;
    seq[S_ERROR] += r.error;
    seq[S_ABOUT] += r.about;
    seq[S_L0] += l0;
    if (r.target > 0 && r.made > 0)
        seq[S_COSINE] += r.dot / (sqrt(r.target) * sqrt(r.made));
}

static int sae_rows(eval *e, const eval_unit *u, double *seq)
{
    eval_member *m = &e->members[u->members[0]];
    const eval_place *p = &e->places[m->place];
    const qsae_rows *f = &m->apply.sparse;
    double *kept = e->sums + u->fired, *all = kept + m->info.d_sae;
    for (size_t at = 0; at < e->n; at += SAE_APPLY_ROWS) {
        size_t n = block(e, at);
        if (apply(e, m, at, n, e->made + at * p->d) != CMD_OK)
            return CMD_FAILED;
        for (size_t i = 0; i < n; i++) {
            double sum_f = 0;
            for (size_t k = f->start[i]; k < f->start[i + 1]; k++) {
                sum_f += (double)f->value[k];
                all[f->index[k]] += 1;
                kept[f->index[k]] += !p->excluded[at + i];
            }
            e->l0[at + i] = (double)(f->start[i + 1] - f->start[i]);
            add_row(e, u, at + i, e->l0[at + i], sum_f, seq);
        }
    }
    return CMD_OK;
}

/* After the SAE of its family, whose L0 it takes over, token by token. */
static int random_rows(eval *e, const eval_unit *u, double *seq)
{
    eval_member *m = &e->members[u->members[0]];
    const eval_place *p = &e->places[m->place];
    eval_random *r = eval_random_get(e, p->d, (size_t)m->info.d_sae);
    double *scratch = malloc((2 * (size_t)m->info.d_sae + p->d) * sizeof *scratch);
    if (!r || !scratch) {
        free(scratch);
        return complain(CMD_FAILED, "out of memory for a random dictionary of %d rows",
                        (int)m->info.d_sae);
    }
    for (size_t t = 0; t < e->n; t++) {
        size_t n = eval_random_row(r, e->spots[p->out].rows + t * p->d, p->mean,
                                   (size_t)e->l0[t], e->made + t * p->d, scratch);
        add_row(e, u, t, (double)n, 0, seq);
    }
    free(scratch);
    return CMD_OK;
}

static int component_rows(eval *e, const eval_unit *u, double *seq)
{
    eval_member *m = &e->members[u->members[0]];
    const eval_place *p = &e->places[m->place];
    double *scratch = malloc(p->d * sizeof *scratch);
    if (!scratch)
        return complain(CMD_FAILED, "out of memory");
    size_t rank = m->rank < p->n_basis ? m->rank : p->n_basis;
    for (size_t t = 0; t < e->n; t++) {
        eval_component_row(p, rank, e->spots[p->out].rows + t * p->d,
                           e->made + t * p->d, scratch);
        add_row(e, u, t, (double)rank, 0, seq);
    }
    free(scratch);
    return CMD_OK;
}

static int is_excluded(const eval *e, const eval_unit *u, size_t t)
{
    int any = 0;
    for (size_t i = 0; i < u->n_members; i++)
        any |= e->places[e->members[u->members[i]].place].excluded[t];
    return any;
}

static void add_predictions(eval *e, const eval_unit *u, double *seq)
{
    const eval_ablation *a = &e->ablations[u->ablation];
    size_t rows =
        u->kind == UNIT_JOINT ? 0 : N_GROUPS * fidelity_size(eval_unit_d(e, u));
    double *sums = e->sums + u->sums + rows;
    for (size_t t = 0; t + 1 < e->n; t++) {
        const double v[P_SUMS] = {1,           e->ce[t],    e->new_ce[t],
                                  a->ce[0][t], a->ce[1][t], e->new_kl[t],
                                  a->kl[0][t], a->kl[1][t], e->same[t]};
        int kept = !is_excluded(e, u, t);
        double *class = sums + (GROUP_CLASS + e->classes[t + 1]) * P_SUMS;
        for (size_t k = 0; k < P_SUMS; k++) {
            sums[GROUP_ALL * P_SUMS + k] += v[k];
            if (!kept)
                continue;
            sums[GROUP_KEPT * P_SUMS + k] += v[k];
            class[k] += v[k];
            seq[S_PREDICTIONS + k] += v[k];
        }
    }
}

/* Splicing z + (x - z), which is x but for rounding, must not change the loss: on the first
 * sequence of the text. */
static int self_test(eval *e, const eval_unit *u)
{
    eval_member *m = &e->members[u->members[0]];
    splice s = {&e->places[m->place], e->made, e->places[m->place].d, m};
    const float *x = e->spots[s.place->out].rows;
    double *sums = e->sums + u->self;
    for (size_t i = 0; i < e->n * s.ld; i++) {
        float rest = x[i] - e->made[i];
        e->made[i] += rest;
    }
    int code = run_spliced(e, &s, 1, e->new_ce, e->new_kl, e->same);
    for (size_t t = 0; t + 1 < e->n && code == CMD_OK; t++) {
        sums[0] += 1;
        sums[1] += e->new_ce[t] - e->ce[t];
    }
    return code;
}

static int run_unit(eval *e, const eval_unit *u, double *seq)
{
    splice *list = calloc(u->n_members, sizeof *list);
    int code = list ? CMD_OK : complain(CMD_FAILED, "out of memory");
    if (code == CMD_OK && u->kind == UNIT_SAE)
        code = sae_rows(e, u, seq);
    if (code == CMD_OK && u->kind == UNIT_RANDOM)
        code = random_rows(e, u, seq);
    if (code == CMD_OK && u->kind == UNIT_PCA)
        code = component_rows(e, u, seq);
    for (size_t i = 0; i < u->n_members && code == CMD_OK; i++) {
        list[i].member = &e->members[u->members[i]];
        list[i].place = &e->places[list[i].member->place];
        list[i].rows = u->kind == UNIT_JOINT ? NULL : e->made;
        list[i].ld = list[i].place->d;
    }
    if (code == CMD_OK)
        code = run_spliced(e, list, u->n_members, e->new_ce, e->new_kl, e->same);
    free(list);
    if (code == CMD_OK)
        add_predictions(e, u, seq);
    if (code == CMD_OK && u->kind == UNIT_SAE && e->n_seq == 0)
        code = self_test(e, u);
    return code;
}

/* The sums of one more sequence, at first 0. */
static double *room_for_sequence(eval *e)
{
    if (e->n_seq == e->cap_seq) {
        size_t cap = e->cap_seq ? 2 * e->cap_seq : 256;
        double *more = realloc(e->seq, cap * e->seq_width * sizeof *more);
        if (!more)
            return NULL;
        e->seq = more;
        e->cap_seq = cap;
    }
    double *seq = e->seq + e->n_seq * e->seq_width;
    memset(seq, 0, e->seq_width * sizeof *seq);
    return seq;
}

static int add_metrics(eval *e)
{
    double *seq = room_for_sequence(e);
    if (!seq)
        return complain(CMD_FAILED, "out of memory for %zu sequences", e->n_seq);
    int code = run_original(e, 1);
    if (code == CMD_OK)
        code = read_original(e);
    if (code != CMD_OK)
        return code;
    mark_excluded(e);
    for (size_t i = 0; i < e->n_ablations && code == CMD_OK; i++)
        code = run_ablation(e, &e->ablations[i]);
    for (size_t i = 0; i < e->n_units && code == CMD_OK; i++)
        code = run_unit(e, &e->units[i], seq + e->units[i].seq);
    return code;
}

/* --------------------------------------------------------------------------- the passes */

static int run_phase(eval *e)
{
    int status, code = CMD_OK;
    uint64_t every = (uint64_t)e->o->save_every, since = 0;
    while (code == CMD_OK && (status = next_sequence(e, (uint64_t)e->o->tokens)) != 0) {
        if (status < 0)
            return CMD_FAILED;
        show(e, e->phase == 1 ? "means" : "metrics");
        code = e->phase == 1 ? add_means(e) : add_metrics(e);
        e->n_seq++;
        if (code == CMD_OK && ++since == every) {
            since = 0;
            code = eval_state_save(e);
        }
    }
    return code;
}

int eval_run(eval *e)
{
    corpus_cursor end;
    int code = find_medians(e);
    corpus_rewind(e->text);
    e->given = 0;
    e->phase = 1;
    if (code == CMD_OK)
        code = eval_state_load(e);
    if (code == CMD_OK && e->phase == 1) {
        code = run_phase(e);
        e->total_sequences = e->n_seq;
        e->total_tokens = e->given;
        corpus_tell(e->text, &end);
        e->dropped = end.dropped;
        e->phase = 2;
        e->given = e->n_seq = 0;
        corpus_rewind(e->text);
        if (code == CMD_OK)
            code = eval_state_save(e);
    }
    if (code == CMD_OK)
        code = end_means(e);
    if (code == CMD_OK)
        code = run_phase(e);
    wipe();
    return code;
}
