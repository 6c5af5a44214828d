/* Activations from a model (see feed.h). */

#include "feed_impl.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define TOGETHER 1024 /* tokens of the sequences that are read at once, if the context is shorter */
#define PASS     128  /* tokens computed together */
#define MOST_CTX 64

feed_name feed_stream_name(const feed_stream *s)
{
    feed_name n;
    snprintf(n.text, sizeof n.text, "%s.%d", qsae_site_name(s->site), (int)s->layer);
    return n;
}

/* ---- either kind ---- */

int feed_make_room(feed *f, size_t room, char *err, size_t cap)
{
    f->room = room;
    f->rows = calloc(f->o.n_streams + 1, sizeof *f->rows);
    f->ids = malloc((room + 1) * sizeof *f->ids);
    f->positions = malloc((room + 1) * sizeof *f->positions);
    f->classes = malloc(room + 1);
    f->sequence = malloc((room + 1) * sizeof *f->sequence);
    int ok = f->rows && f->ids && f->positions && f->classes && f->sequence;
    for (size_t i = 0; ok && i < f->o.n_streams; i++) {
        f->rows[i] = malloc(room * f->o.streams[i].width * sizeof(float) + 1);
        ok = f->rows[i] != NULL;
    }
    return ok ? 0 : err_set(err, cap, "out of memory for the rows of %zu tokens", room);
}

void feed_close(feed *f)
{
    if (!f)
        return;
    f->close(f);
    for (size_t i = 0; f->rows && i < f->o.n_streams; i++)
        free(f->rows[i]);
    free(f->rows);
    free(f->ids);
    free(f->positions);
    free(f->classes);
    free(f->sequence);
    free(f);
}

int feed_next(feed *f, size_t most, feed_part *part, char *err, size_t cap)
{
    memset(part, 0, sizeof *part);
    int got = f->next(f, most, part, err, cap);
    if (got == 0) { /* the end of a pass */
        if (f->pass_rows == 0)
            return err_set(err, cap,
                           "no token of the whole text has a row: all are "
                           "excluded (--skip-first, --exclude)");
        f->at.passes++;
        f->pass_rows = 0;
        if (f->o.once)
            return 0;
        if (f->rewind(f, err, cap))
            return -1;
        got = f->next(f, most, part, err, cap);
    }
    if (got != 1)
        return got == 0 ? err_set(err, cap, "the text ended at its beginning") : -1;
    part->rows = (const float *const *)f->rows;
    part->ids = f->ids;
    part->positions = f->positions;
    part->classes = f->classes;
    part->sequence = f->sequence;
    f->pass_rows += part->n;
    f->at.tokens += part->n_tokens;
    f->at.rows += part->n;
    return 1;
}

int feed_bad_row(const feed_options *o, const feed_part *part, size_t stream,
                 size_t row, char *err, size_t cap)
{
    return err_set(err, cap,
                   "NaN or infinity in %s, at token %d (id %d) of sequence %" PRIu64
                   " of the text",
                   feed_stream_name(&o->streams[stream]).text,
                   (int)part->positions[row], (int)part->ids[row],
                   part->first + part->sequence[row]);
}

void feed_tell(const feed *f, feed_cursor *out)
{
    *out = f->at;
}

int feed_seek(feed *f, const feed_cursor *to, char *err, size_t cap)
{
    if (f->seek(f, to, err, cap))
        return -1;
    f->at = *to;
    f->pass_rows = 1; /* unknown; only a whole pass without rows is refused */
    return 0;
}

/* ---- from a model ---- */

typedef struct model_feed {
    feed base;
    const qsae_model *model;
    corpus *text;
    size_t n_ctx;
    qsae_ctx **ctx; /* [n_ctx] */
    qsae_batch *batch;
    int32_t *tokens;                 /* [n_ctx, context] */
    uint8_t *classes;                /* [n_ctx, context] */
    int64_t *row;                    /* [n_ctx, context]: of the token, -1: excluded */
    int *stream_at;                  /* [n_layers, QSAE_SITE_COUNT]: stream, -1: none */
    size_t n_used;                   /* contexts */
} model_feed;

/* Copies rows. */
static int on_rows(void *user, const qsae_event *e, float *rows)
{
    model_feed *m = user;
    const feed *f = &m->base;
    int s = m->stream_at[e->layer * QSAE_SITE_COUNT + (int)e->site];
    size_t k = 0;
    if (s < 0)
        return 0;
    while (m->ctx[k] != e->ctx)
        k++;
    const int64_t *row = m->row + k * f->o.context + e->pos;
    for (size_t i = 0; i < e->n_rows; i++)
        if (row[i] >= 0)
            memcpy(f->rows[s] + (size_t)row[i] * e->width, rows + i * e->ld,
                   e->width * sizeof *rows);
    return 0;
}

static int excluded(const feed_options *o, size_t position, int32_t id, uint8_t class)
{
    if (position < o->skip_first || (o->exclude_classes >> class & 1))
        return 1;
    for (size_t i = 0; i < o->n_exclude; i++)
        if (o->exclude[i] == id)
            return 1;
    return 0;
}

/* Sequence k of a group: which of its tokens have rows. */
static void place_rows(model_feed *m, size_t k, size_t n, feed_part *part)
{
    feed *f = &m->base;
    size_t base = k * f->o.context;
    for (size_t i = 0; i < n; i++) {
        m->row[base + i] = -1;
        if (excluded(&f->o, i, m->tokens[base + i], m->classes[base + i]))
            continue;
        m->row[base + i] = (int64_t)part->n;
        f->ids[part->n] = m->tokens[base + i];
        f->positions[part->n] = (int32_t)i;
        f->classes[part->n] = m->classes[base + i];
        f->sequence[part->n++] = (uint32_t)k;
    }
    m->batch[k] = (qsae_batch){m->ctx[k], m->tokens + base, n};
    part->n_tokens += n;
}

static int evaluate(model_feed *m, char *err, size_t cap)
{
    qsae_error e;
    for (size_t k = 0; k < m->n_used; k++)
        if (qsae_ctx_rewind(m->ctx[k], 0, &e))
            return err_set(err, cap, "%s", e.text);
    if (qsae_eval_many(m->batch, m->n_used, &e))
        return err_set(err, cap, "%s", e.text);
    return 0;
}

static int model_next(feed *f, size_t most, feed_part *part, char *err, size_t cap)
{
    model_feed *m = (model_feed *)f;
    part->first = f->at.text.sequences;
    for (m->n_used = 0; m->n_used < m->n_ctx && (part->n < most || m->n_used == 0);) {
        size_t n, at = m->n_used * f->o.context;
        int got = corpus_next(m->text, m->tokens + at, m->classes + at, f->o.context,
                              &n, err, cap);
        if (got < 0)
            return -1;
        if (got == 0)
            break;
        place_rows(m, m->n_used++, n, part);
    }
    corpus_tell(m->text, &f->at.text);
    if (m->n_used == 0)
        return 0;
    return part->n > 0 && evaluate(m, err, cap) ? -1 : 1;
}

static int model_rewind(feed *f, char *err, size_t cap)
{
    (void)err, (void)cap;
    corpus_rewind(((model_feed *)f)->text);
    corpus_tell(((model_feed *)f)->text, &f->at.text);
    return 0;
}

static int model_seek(feed *f, const feed_cursor *to, char *err, size_t cap)
{
    return corpus_seek(((model_feed *)f)->text, &to->text, err, cap);
}

static void model_close(feed *f)
{
    model_feed *m = (model_feed *)f;
    for (size_t k = 0; m->ctx && k < m->n_ctx; k++)
        qsae_ctx_destroy(m->ctx[k]);
    free(m->ctx);
    free(m->batch);
    free(m->tokens);
    free(m->classes);
    free(m->row);
    free(m->stream_at);
}

static size_t contexts(const feed_options *o)
{
    size_t n = o->context ? TOGETHER / o->context : 1;
    return n < 1 ? 1 : n > MOST_CTX ? MOST_CTX : n;
}

static qsae_ctx_options ctx_options(const feed_options *o)
{
    qsae_ctx_options c;
    memset(&c, 0, sizeof c);
    c.n_ctx = (int32_t)o->context;
    c.n_batch = PASS;
    c.n_threads = o->threads;
    for (size_t i = 0; i < o->n_streams; i++)
        if (o->streams[i].layer >= c.n_layers)
            c.n_layers = o->streams[i].layer + 1;
    return c;
}

uint64_t feed_model_bytes(const qsae_model *model, const feed_options *o)
{
    uint64_t sum = 0, tokens = contexts(o) * o->context;
    qsae_ctx_options c = ctx_options(o);
    size_t size = qsae_ctx_size(model, &c);
    if (size == 0)
        return 0;
    sum += contexts(o) * size;
    for (size_t i = 0; i < o->n_streams; i++)
        sum += tokens * o->streams[i].width * sizeof(float);
    return sum + tokens * 30;
}

static int make_contexts(model_feed *m, char *err, size_t cap)
{
    const feed_options *o = &m->base.o;
    qsae_error e;
    qsae_hook hook;
    memset(&hook, 0, sizeof hook);
    hook.fn = on_rows;
    hook.user = m;
    hook.layer_begin = INT32_MAX;
    for (size_t i = 0; i < o->n_streams; i++) {
        const feed_stream *s = &o->streams[i];
        hook.sites |= 1u << s->site;
        if (s->layer < hook.layer_begin)
            hook.layer_begin = s->layer;
        if (s->layer + 1 > hook.layer_end)
            hook.layer_end = s->layer + 1;
        m->stream_at[s->layer * QSAE_SITE_COUNT + (int)s->site] = (int)i;
    }
    for (size_t k = 0; k < m->n_ctx; k++) {
        qsae_ctx_options c = ctx_options(o);
        if (qsae_ctx_create(m->model, &c, &m->ctx[k], &e) ||
            qsae_set_hook(m->ctx[k], &hook, &e))
            return err_set(err, cap, "%s", e.text);
    }
    return 0;
}

static int model_open(model_feed *m, char *err, size_t cap)
{
    qsae_model_info info;
    size_t tokens = m->n_ctx * m->base.o.context;
    qsae_model_get_info(m->model, &info);
    size_t places = (size_t)info.n_layers * QSAE_SITE_COUNT;
    m->ctx = calloc(m->n_ctx, sizeof *m->ctx);
    m->batch = calloc(m->n_ctx, sizeof *m->batch);
    m->tokens = malloc(tokens * sizeof *m->tokens);
    m->classes = malloc(tokens);
    m->row = malloc(tokens * sizeof *m->row);
    m->stream_at = malloc(places * sizeof *m->stream_at);
    if (!m->ctx || !m->batch || !m->tokens || !m->classes || !m->row || !m->stream_at)
        return err_set(err, cap, "out of memory");
    for (size_t i = 0; i < places; i++)
        m->stream_at[i] = -1;
    return feed_make_room(&m->base, tokens, err, cap) || make_contexts(m, err, cap) ? -1
                                                                                    : 0;
}

feed *feed_open_model(const qsae_model *model, corpus *text, const feed_options *o,
                      char *err, size_t cap)
{
    model_feed *m = calloc(1, sizeof *m);
    if (!m) {
        err_set(err, cap, "out of memory");
        return NULL;
    }
    m->base.o = *o;
    m->base.next = model_next;
    m->base.rewind = model_rewind;
    m->base.seek = model_seek;
    m->base.close = model_close;
    m->model = model;
    m->text = text;
    m->n_ctx = contexts(o);
    if (model_open(m, err, cap)) {
        feed_close(&m->base);
        return NULL;
    }
    corpus_tell(text, &m->base.at.text);
    return &m->base;
}

int feed_count(corpus *text, const feed_options *o, uint64_t enough, uint64_t *tokens,
               uint64_t *rows, char *err, size_t cap)
{
    int32_t *ids = malloc(o->context * sizeof *ids);
    uint8_t *classes = malloc(o->context);
    int got = ids && classes ? 1 : err_set(err, cap, "out of memory");
    *tokens = *rows = 0;
    while (got == 1 && (!enough || *tokens < enough)) {
        size_t n;
        got = corpus_next(text, ids, classes, o->context, &n, err, cap);
        for (size_t i = 0; got == 1 && i < n; i++)
            *rows += !excluded(o, i, ids[i], classes[i]);
        *tokens += got == 1 ? n : 0;
    }
    corpus_rewind(text);
    free(ids);
    free(classes);
    return got < 0 ? -1 : 0;
}
