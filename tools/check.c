/* What a model says about converted SAEs (see check.h). */

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include "check.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check_text.h"
#include "cmd.h"
#include "fidelity.h"
#include "input.h"
#include "sae_apply.h"

#define MAX_TOKENS  4096         /* of a text file */
#define MAX_PIECE   512          /* tokens of one sequence */
#define MAX_TEXT    (1u << 20)   /* bytes of a text file that are read */
#define MAX_ROWS    (256u << 20) /* bytes of captured rows at once */
#define SINK        10.0         /* times the median norm */
#define BAD_EV      0.3          /* below: probably a wrong load */
#define BETTER      0.05         /* of EV, to name another site */
#define SCAN_PIECES 3            /* beginnings of sequences that are tried elsewhere */
#define SCAN_TOKENS 72           /* all of them together */
#define LOW_EV      0.6

typedef struct piece {
    size_t first, n; /* tokens */
} piece;

struct sae_check {
    char *model_path;
    const char *text_path; /* NULL: built in */
    qsae_model *model;
    qsae_model_info info;
    qsae_ctx *ctx;
    int32_t *ids;  /* [n] */
    piece *pieces; /* [n_pieces] */
    size_t n, n_pieces, cap_ids, cap_pieces;
    int cut; /* the text goes on beyond MAX_TOKENS */
};

/* One SAE of the file. Rows are those of all tokens. */
typedef struct member {
    qsae_sae *sae;
    qsae_sae_info info;
    float *in;  /* [n, d_in] */
    float *out; /* [n, d_out]: what it should give; == in unless it is a transcoder */
} member;

enum { KEPT, ALL }; /* tokens that are no sinks; all */

/* ---- the text ---- */

/* Room for `need` items; NULL after a complaint, the list is then as before. */
static void *grow(void *list, size_t item, size_t need, size_t *cap)
{
    size_t more = *cap ? *cap : 64;
    while (more < need)
        more *= 2;
    void *p = more == *cap ? list : realloc(list, more * item);
    if (!p)
        complain(CMD_FAILED, "out of memory");
    else
        *cap = more;
    return p;
}

/* The tokens of one text, cut into sequences. */
static int add_text(sae_check *c, const char *text, size_t len)
{
    qsae_error e;
    size_t n = 0, most = MAX_PIECE;
    qsae_status s =
        qsae_tokenize(c->model, text, len, QSAE_TOK_SPECIAL, NULL, 0, &n, &e);
    if (s != QSAE_OK && !(s == QSAE_E_LIMIT && n > 0))
        return complain(CMD_FAILED, "--check: %.300s: %s", c->model_path, e.text);
    int32_t *ids = grow(c->ids, sizeof *ids, c->n + n + 1, &c->cap_ids);
    if (!ids)
        return CMD_FAILED;
    c->ids = ids;
    if (n > 0 && qsae_tokenize(c->model, text, len, QSAE_TOK_SPECIAL, c->ids + c->n, n,
                               &n, &e) != QSAE_OK)
        return complain(CMD_FAILED, "--check: %.300s: %s", c->model_path, e.text);
    if (n > MAX_TOKENS - c->n) {
        n = MAX_TOKENS - c->n;
        c->cut = 1;
    }
    if (c->info.max_positions < MAX_PIECE)
        most = (size_t)c->info.max_positions;
    for (size_t end = c->n + n; c->n < end;) {
        size_t m = end - c->n < most ? end - c->n : most;
        piece *pieces =
            grow(c->pieces, sizeof *pieces, c->n_pieces + 1, &c->cap_pieces);
        if (!pieces)
            return CMD_FAILED;
        c->pieces = pieces;
        c->pieces[c->n_pieces++] = (piece){c->n, m};
        c->n += m;
    }
    return CMD_OK;
}

static int add_file(sae_check *c, const char *path)
{
    char *text = malloc(MAX_TEXT);
    FILE *f = text ? fopen(path, "rb") : NULL;
    int code = CMD_OK;
    if (!text)
        return complain(CMD_FAILED, "out of memory");
    size_t n = f ? fread(text, 1, MAX_TEXT, f) : 0;
    if (!f || ferror(f))
        code = complain(CMD_FAILED, "--check-text: %.300s: %s", path, strerror(errno));
    else
        c->cut = fgetc(f) != EOF;
    if (f)
        fclose(f);
    if (code == CMD_OK)
        code = add_text(c, text, c->cut ? qsae_utf8_complete(text, n) : n);
    free(text);
    return code;
}

static int check_ids(const sae_check *c)
{
    for (size_t i = 0; i < c->n; i++)
        if (c->ids[i] < 0 || c->ids[i] >= c->info.vocab_size)
            return complain(CMD_FAILED,
                            "--check: the tokenizer gave token %d, the model has %d",
                            (int)c->ids[i], (int)c->info.vocab_size);
    if (c->n < 2)
        return complain(CMD_FAILED, "--check: %.300s: %zu tokens are too few",
                        c->text_path ? c->text_path : "the built-in text", c->n);
    return CMD_OK;
}

int check_open(const char *model_path, const char *text_path, sae_check **out)
{
    input in;
    size_t chunk;
    sae_check *c = calloc(1, sizeof *c);
    memset(&in, 0, sizeof in);
    *out = c;
    if (!c || !(c->model_path = malloc(strlen(model_path) + 1)))
        return complain(CMD_FAILED, "out of memory");
    strcpy(c->model_path, model_path);
    c->text_path = text_path;
    int code = input_open_model(&in, model_path, &c->model);
    if (code != CMD_OK)
        return code;
    qsae_model_get_info(c->model, &c->info);
    if (c->info.n_tokens == 0)
        return complain(CMD_FAILED, "--check: %.300s has no tokenizer", model_path);
    if (text_path)
        code = add_file(c, text_path);
    for (size_t i = 0; i < sizeof check_pieces / sizeof check_pieces[0] && !text_path &&
                       code == CMD_OK;
         i++)
        code = add_text(c, check_pieces[i], strlen(check_pieces[i]));
    if (code == CMD_OK)
        code = check_ids(c);
    if (code == CMD_OK)
        code = input_context(&in, c->model, MAX_PIECE, MAX_PIECE, &c->ctx, &chunk);
    return code;
}

void check_close(sae_check *c)
{
    if (!c)
        return;
    qsae_ctx_destroy(c->ctx);
    qsae_model_close(c->model);
    free(c->model_path);
    free(c->ids);
    free(c->pieces);
    free(c);
}

/* ---- before anything is written ---- */

static int fits(const sae_check *c, const qsae_sae_record *r, const char *does,
                uint32_t site, uint32_t layer, uint32_t width, char *err, size_t cap)
{
    size_t have = qsae_site_width(c->model, (qsae_site)site);
    const char *where = qsae_site_name((qsae_site)site);
    if (layer >= (uint32_t)c->info.n_layers)
        return err_set(err, cap,
                       "--check: SAE %s %s layer %u, the model has layers 0..%d",
                       name_z(r->name).text, does, layer, (int)c->info.n_layers - 1);
    if (width != have)
        return err_set(
            err, cap,
            "--check: SAE %s %s rows of %u (%s of layer %u), those of the model "
            "have %zu",
            name_z(r->name).text, does, width, where, layer, have);
    return 0;
}

int check_fits(const sae_check *c, const qsae_sae_record *r, char *err, size_t cap)
{
    if (!c)
        return 0;
    if (fits(c, r, "reads", r->site_in, r->layer_in, r->d_in, err, cap))
        return -1;
    return fits(c, r, "writes", r->site_out, r->layer_out, r->d_out, err, cap);
}

/* ---- rows of the model ---- */

/* A list of captures, every (site, layer) once. */
typedef struct rows {
    qsae_capture *list; /* [n]; rows [n_tokens, width] */
    size_t n;
} rows;

static float *find_rows(const rows *r, qsae_site site, int32_t layer)
{
    for (size_t i = 0; i < r->n; i++)
        if (r->list[i].site == site && r->list[i].layer == layer)
            return r->list[i].rows;
    return NULL;
}

static float *want_rows(const sae_check *c, rows *r, qsae_site site, int32_t layer)
{
    float *p = find_rows(r, site, layer);
    if (p)
        return p;
    p = malloc(c->n * qsae_site_width(c->model, site) * sizeof *p);
    if (p)
        r->list[r->n++] = (qsae_capture){site, layer, p, c->n};
    return p;
}

static void free_rows(rows *r)
{
    for (size_t i = 0; i < r->n; i++)
        free(r->list[i].rows);
    free(r->list);
}

static int run_model(sae_check *c, const rows *r)
{
    qsae_error e;
    qsae_capture *moved = malloc((r->n + 1) * sizeof *moved);
    qsae_status s = moved ? QSAE_OK : QSAE_E_NOMEM;
    if (!moved)
        return complain(CMD_FAILED, "out of memory");
    for (size_t i = 0; i < c->n_pieces && s == QSAE_OK; i++) {
        const piece *p = &c->pieces[i];
        for (size_t k = 0; k < r->n; k++) {
            moved[k] = r->list[k];
            moved[k].rows += p->first * qsae_site_width(c->model, moved[k].site);
            moved[k].max_rows = p->n;
        }
        s = qsae_ctx_rewind(c->ctx, 0, &e);
        if (s == QSAE_OK)
            s = qsae_set_captures(c->ctx, moved, r->n, &e);
        if (s == QSAE_OK)
            s = qsae_eval(c->ctx, c->ids + p->first, p->n, &e);
    }
    free(moved);
    return s == QSAE_OK ? CMD_OK : complain_library("--check", &e);
}

/* ---- one SAE ---- */

typedef struct work {
    sae_apply apply;
    float *made;          /* [SAE_APPLY_ROWS, d_out] */
    unsigned char *fired; /* [d_sae] */
    unsigned char *sink;  /* [n] */
    double *sums[2];      /* of fidelity.h: KEPT, ALL */
} work;

static void work_free(work *w)
{
    sae_apply_end(&w->apply);
    free(w->made);
    free(w->fired);
    free(w->sink);
    free(w->sums[KEPT]);
    free(w->sums[ALL]);
}

static int work_begin(work *w, const sae_check *c, const member *m)
{
    size_t d_out = (size_t)m->info.d_out;
    memset(w, 0, sizeof *w);
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    int threads = processors < 1 ? 1 : processors > 64 ? 64 : (int)processors;
    w->made = malloc(d_out * SAE_APPLY_ROWS * sizeof *w->made);
    w->fired = calloc((size_t)m->info.d_sae, 1);
    w->sink = calloc(c->n, 1);
    w->sums[KEPT] = calloc(fidelity_size(d_out), sizeof(double));
    w->sums[ALL] = calloc(fidelity_size(d_out), sizeof(double));
    if (!w->made || !w->fired || !w->sink || !w->sums[KEPT] || !w->sums[ALL] ||
        sae_apply_begin(&w->apply, m->sae, threads))
        return complain(CMD_FAILED, "out of memory");
    return CMD_OK;
}

static void sum_row(work *w, const member *m, size_t at, size_t i)
{
    size_t width = (size_t)m->info.d_out;
    const float *y = m->out + (at + i) * width, *z = w->made + i * width;
    const qsae_rows *f = &w->apply.sparse;
    fidelity_row r;
    fidelity_measure(&r, y, z, NULL, width);
    r.l0 = (double)(f->start[i + 1] - f->start[i]);
    r.sum_f = 0;
    for (size_t k = f->start[i]; k < f->start[i + 1]; k++) {
        w->fired[f->index[k]] = 1;
        r.sum_f += (double)f->value[k];
    }
    fidelity_add(w->sums[ALL], &r, y, z, width);
    if (!w->sink[at + i])
        fidelity_add(w->sums[KEPT], &r, y, z, width);
}

/* ---- sinks ---- */

static int order_double(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Marks rows of x [n, width] with a norm above SINK medians; *n_large counts them, and
 * *largest is the largest norm over the median. */
static int mark_large(const sae_check *c, const float *x, size_t width,
                      unsigned char *sink, size_t *n_large, double *largest)
{
    double *norm = malloc(2 * c->n * sizeof *norm), *sorted = norm + c->n;
    if (!norm)
        return complain(CMD_FAILED, "out of memory");
    for (size_t i = 0; i < c->n; i++) {
        double s = 0;
        for (size_t k = 0; k < width; k++)
            s += (double)x[i * width + k] * (double)x[i * width + k];
        norm[i] = sorted[i] = sqrt(s);
    }
    qsort(sorted, c->n, sizeof *sorted, order_double);
    double median = sorted[c->n / 2];
    *n_large = 0;
    *largest = median > 0 ? sorted[c->n - 1] / median : 0;
    for (size_t i = 0; i < c->n; i++)
        if (norm[i] > SINK * median) {
            sink[i] = 1;
            ++*n_large;
        }
    free(norm);
    return CMD_OK;
}

static int mark_sinks(const sae_check *c, const member *m, work *w, size_t *n_large,
                      double *largest)
{
    size_t more;
    double far;
    if (m->out != m->in &&
        mark_large(c, m->out, (size_t)m->info.d_out, w->sink, &more, &far) != CMD_OK)
        return CMD_FAILED;
    if (mark_large(c, m->in, (size_t)m->info.d_in, w->sink, n_large, largest) != CMD_OK)
        return CMD_FAILED;
    for (size_t i = 0; i < c->n_pieces; i++)
        w->sink[c->pieces[i].first] = 1;
    return CMD_OK;
}

/* ---- numbers ---- */

static fidelity measure(const member *m, const work *w, int which)
{
    fidelity f;
    fidelity_result(w->sums[which], (size_t)m->info.d_out, &f);
    return f;
}

static void print_result(const char *what, const fidelity *f)
{
    if (!(f->n > 0))
        printf("  %-14s      0\n", what);
    else
        printf("  %-14s %6.0f  %8.1f  %8.4f  %8.4f  %7.4f  %9.4g  %8.4f\n", what, f->n,
               f->l0, f->ev_mean, f->fvu_mean, f->cosine, f->mean_f, f->norm_ratio);
}

/* hint: of scan */
static void verdict(const member *m, const fidelity *r, const char *hint)
{
    static const char *wrong =
        "this looks like a wrong load (site, layer, orientation or normalisation?)";
    double d_sae = (double)m->info.d_sae;
    if (!(r->n > 0))
        printf(
            "  warning: every token is a sink; give a longer text with --check-text\n");
    else if (r->l0 == 0)
        printf("  warning: no feature fires: %s\n", wrong);
    else if (!(r->ev_mean >= BAD_EV))
        printf("  warning: EV %.2f: %s\n", r->ev_mean, wrong);
    else if (r->l0 > d_sae / 4)
        printf("  warning: L0 %.0f of %.0f features: %s\n", r->l0, d_sae, wrong);
    else if (r->ev_mean < LOW_EV)
        printf(
            "  EV %.2f: low; compare with what its authors report, or with text like "
            "theirs (--check-text)\n",
            r->ev_mean);
    else if (!hint[0])
        printf("  EV %.2f: it explains this site\n", r->ev_mean);
    if (hint[0])
        printf("  warning: %s\n", hint);
}

static void print_head(const member *m)
{
    const qsae_sae_info *s = &m->info;
    printf("%s %d", qsae_site_name(s->site_in), (int)s->layer_in);
    if (s->is_transcoder)
        printf(" to %s %d", qsae_site_name(s->site_out), (int)s->layer_out);
    printf(" \"%s\"\n  %-14s %6s  %8s  %8s  %8s  %7s  %9s  %8s\n", s->name, "tokens",
           "n", "L0", "EV", "FVU", "cosine", "|f|", "|z|/|y|");
}

/* Every token of the text through one SAE, and which of them are sinks. */
static int evaluate(const sae_check *c, const member *m, work *w, size_t *n_large,
                    double *largest)
{
    qsae_error e;
    int code = work_begin(w, c, m);
    if (code == CMD_OK)
        code = mark_sinks(c, m, w, n_large, largest);
    for (size_t at = 0; at < c->n && code == CMD_OK; at += SAE_APPLY_ROWS) {
        size_t n = c->n - at < SAE_APPLY_ROWS ? c->n - at : SAE_APPLY_ROWS;
        if (sae_apply_rows(&w->apply, m->in + at * (size_t)m->info.d_in, 0, n, w->made,
                           &e) != QSAE_OK)
            return complain_library("--check", &e);
        for (size_t i = 0; i < n; i++)
            sum_row(w, m, at, i);
    }
    return code;
}

/* ---- where would it fit? ---- */

/* The beginnings of some sequences, as a text of its own. */
static int short_text(const sae_check *c, sae_check *s)
{
    *s = *c;
    s->n = s->n_pieces = 0;
    s->ids = malloc(SCAN_TOKENS * sizeof *s->ids);
    s->pieces = malloc(SCAN_PIECES * sizeof *s->pieces);
    if (!s->ids || !s->pieces)
        return complain(CMD_FAILED, "out of memory");
    size_t pieces = c->n_pieces < SCAN_PIECES ? c->n_pieces : SCAN_PIECES;
    for (size_t i = 0; i < pieces; i++) {
        const piece *p = &c->pieces[i];
        size_t n = p->n < SCAN_TOKENS / pieces ? p->n : SCAN_TOKENS / pieces;
        memcpy(s->ids + s->n, c->ids + p->first, n * sizeof *s->ids);
        s->pieces[s->n_pieces++] = (piece){s->n, n};
        s->n += n;
    }
    return CMD_OK;
}

static int is_residual(qsae_site site)
{
    return site == QSAE_RESID_PRE || site == QSAE_RESID_MID || site == QSAE_RESID_POST;
}

/* Where else to look: at its site, or if that is one of the residual stream's at all of
 * these, in the layers beside its own; if it explains nothing where it is, at every site
 * of its width. RESID_PRE is RESID_POST of the layer before. */
static int is_candidate(const sae_check *c, const member *m, qsae_site site, int layer,
                        int everywhere)
{
    int near = layer >= m->info.layer_in - 1 && layer <= m->info.layer_in + 1;
    if (site == m->info.site_in)
        return near || everywhere;
    if (qsae_site_width(c->model, site) != (size_t)m->info.d_in ||
        (site == QSAE_RESID_PRE && layer > 0))
        return 0;
    return everywhere || (near && is_residual(site) && is_residual(m->info.site_in));
}

static int want_candidates(const sae_check *c, const member *m, int everywhere, rows *r)
{
    for (int layer = 0; layer < c->info.n_layers; layer++)
        for (int site = 0; site < QSAE_SITE_COUNT; site++)
            if (is_candidate(c, m, (qsae_site)site, layer, everywhere) &&
                !want_rows(c, r, (qsae_site)site, layer))
                return complain(CMD_FAILED, "out of memory");
    return CMD_OK;
}

/* EV of the SAE at every candidate: *best, and *own where it says it belongs. */
static int scan_rows(const sae_check *c, const member *m, const rows *r, fidelity *own,
                     fidelity *best, size_t *best_at)
{
    for (size_t i = 0; i < r->n; i++) {
        member there = *m;
        work w;
        fidelity e;
        size_t n_large;
        double largest;
        there.in = there.out = r->list[i].rows;
        int code = evaluate(c, &there, &w, &n_large, &largest);
        if (code == CMD_OK)
            e = measure(&there, &w, KEPT);
        work_free(&w);
        if (code != CMD_OK)
            return code;
        if (r->list[i].site == m->info.site_in && r->list[i].layer == m->info.layer_in)
            *own = e;
        if (i == 0 || e.ev_mean > best->ev_mean) {
            *best = e;
            *best_at = i;
        }
    }
    return CMD_OK;
}

/* A sentence if another site or layer fits clearly better, else "". */
static int scan(const sae_check *c, const member *m, int everywhere, char *hint,
                size_t room)
{
    sae_check s;
    rows r = {calloc(QSAE_SITE_COUNT * (size_t)c->info.n_layers, sizeof *r.list), 0};
    fidelity own, best;
    memset(&own, 0, sizeof own);
    best = own;
    size_t at = 0;
    int code = r.list ? CMD_OK : complain(CMD_FAILED, "out of memory");
    int have = short_text(c, &s);
    if (code == CMD_OK)
        code = have;
    if (code == CMD_OK)
        code = want_candidates(&s, m, everywhere, &r);
    if (code == CMD_OK)
        code = run_model(&s, &r);
    if (code == CMD_OK)
        code = scan_rows(&s, m, &r, &own, &best, &at);
    if (code == CMD_OK && best.n > 1 && best.ev_mean > LOW_EV &&
        best.ev_mean > own.ev_mean + BETTER)
        snprintf(
            hint, room,
            "%s of layer %d fits better: EV %.2f, here %.2f (of %.0f tokens); --site "
            "%s --layer %d?",
            qsae_site_name(r.list[at].site), (int)r.list[at].layer, best.ev_mean,
            own.ev_mean, best.n, qsae_site_name(r.list[at].site),
            (int)r.list[at].layer);
    free(s.ids);
    free(s.pieces);
    free_rows(&r);
    return code;
}

/* ---- the report on one SAE ---- */

static int check_member(const sae_check *c, const member *m)
{
    work w;
    fidelity without, with;
    memset(&without, 0, sizeof without);
    with = without;
    size_t n_large = 0, n_fired = 0;
    double largest = 0;
    char hint[256] = "";
    int code = evaluate(c, m, &w, &n_large, &largest);
    if (code == CMD_OK) {
        without = measure(m, &w, KEPT);
        with = measure(m, &w, ALL);
    }
    for (int32_t i = 0; i < m->info.d_sae && code == CMD_OK; i++)
        n_fired += w.fired[i];
    work_free(&w);
    if (code == CMD_OK && without.n > 0 && !m->info.is_transcoder)
        code = scan(c, m, !(without.ev_mean >= BAD_EV), hint, sizeof hint);
    if (code != CMD_OK)
        return code;
    print_head(m);
    print_result("without sinks", &without);
    print_result("all", &with);
    printf(
        "  %zu of %d features fired; %.2f%% of the tokens have a norm above 10 x the "
        "median (largest %.1f x)\n",
        n_fired, (int)m->info.d_sae, 100 * (double)n_large / (double)c->n, largest);
    verdict(m, &without, hint);
    return CMD_OK;
}

/* ---- all of a file ---- */

static int open_member(const char *path, int32_t i, member *m)
{
    qsae_error e;
    qsae_sae_options o;
    memset(&o, 0, sizeof o);
    memset(m, 0, sizeof *m);
    o.select = QSAE_SELECT_INDEX;
    o.index = i;
    if (qsae_sae_open(path, &o, &m->sae, &e) != QSAE_OK)
        return complain_library(path, &e);
    qsae_sae_get_info(m->sae, &m->info);
    return CMD_OK;
}

/* Rows of its sites; 0 if that is more than fits besides the others. */
static int take_rows(const sae_check *c, rows *r, member *m, int *taken)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < r->n; i++)
        bytes += c->n * qsae_site_width(c->model, r->list[i].site) * sizeof(float);
    *taken =
        r->n == 0 || bytes + c->n * sizeof(float) *
                                 ((uint64_t)m->info.d_in + (uint64_t)m->info.d_out) <=
                         MAX_ROWS;
    if (!*taken)
        return CMD_OK;
    m->in = want_rows(c, r, m->info.site_in, m->info.layer_in);
    m->out = m->in ? want_rows(c, r, m->info.site_out, m->info.layer_out) : NULL;
    return m->out ? CMD_OK : complain(CMD_FAILED, "out of memory");
}

/* The SAEs from *first on whose rows fit in memory: one pass of the model. */
static int check_group(sae_check *c, const char *path, int32_t *first, int32_t n)
{
    rows r = {malloc(2 * (size_t)n * sizeof(qsae_capture)), 0};
    member *list = malloc((size_t)n * sizeof *list);
    int code = r.list && list ? CMD_OK : complain(CMD_FAILED, "out of memory");
    int32_t count = 0, taken = 1;
    while (code == CMD_OK && taken && *first + count < n) {
        code = open_member(path, *first + count, &list[count]);
        if (code == CMD_OK)
            code = take_rows(c, &r, &list[count], &taken);
        if (code == CMD_OK && taken)
            count++;
        else
            qsae_sae_close(list[count].sae);
    }
    if (code == CMD_OK)
        code = run_model(c, &r);
    for (int32_t i = 0; i < count; i++) {
        if (code == CMD_OK)
            code = check_member(c, &list[i]);
        qsae_sae_close(list[i].sae);
    }
    *first += count;
    free(list);
    free_rows(&r);
    return code;
}

int check_run(sae_check *c, const char *sae_path)
{
    member m;
    int code = open_member(sae_path, 0, &m);
    if (code != CMD_OK)
        return code;
    int32_t n = m.info.n_members;
    qsae_sae_close(m.sae);
    printf("check: %zu tokens of %.300s%s through %.300s\n"
           "sinks: the first token of each of %zu sequences, and norms above 10 x the "
           "median\n",
           c->n, c->text_path ? c->text_path : "the built-in text",
           c->cut ? " (its beginning)" : "", c->model_path, c->n_pieces);
    for (int32_t i = 0; i < n && code == CMD_OK;)
        code = check_group(c, sae_path, &i, n);
    return code;
}
