/* The measurements of `qsae bench` (see bench_run.h).
 *
 * A measurement is a row of samples, with probes before and after each. The limit of a
 * sample is the time that the work between two probes would take at their mean: the
 * longer of
 *     bytes of weights, keys and values / read bandwidth
 *     float operations / FMA peak + integer operations / integer peak
 * where the products of quantized matrices are the integer operations, and everything
 * else that multiplies (also attention: scores and values) the float ones. Activations
 * have 16 bits: with int8 units every product is done twice (two planes of 8 bits), so
 * their integer peak is half of the probe. */

#define _XOPEN_SOURCE 700 /* getrusage, clock */

#include "bench_run.h"
#include "bench_team.h"
#include "cmd.h"
#include "input.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

static const char *const names[BENCH_COUNT] = {"rss",
                                               "open",
                                               "decode",
                                               "prefill",
                                               "eval_many",
                                               "eval_edits",
                                               "sae_all",
                                               "sensors",
                                               "capture_all",
                                               "sae_encode",
                                               "sae_encode_dense",
                                               "decode_context",
                                               "eval_many_batch"};

const char *bench_name_text(bench_name name)
{
    return names[name];
}

enum {
    DECODE_TOKENS = 64, /* positions that decode and eval_many go through */
    FIRST_TOKENS = 128, /* prefill of open and rss, pass of capture_all */
    MOST_CONTEXTS = 16,
    EDITED_CONTEXTS = 8,
    ALL_FEATURES = 32768, /* of sae_all */
    SENSOR_FEATURES = 64,
    LONGEST_CONTEXT = 2048, /* of decode_context, if nothing is said */
    SAE_INPUT = 2048,
    PROBE_BYTES = 512 << 20 /* beyond the caches of any processor */
};

typedef struct bench {
    const bench_setup *setup;
    bench_report *report;
    probe *probe;
    image_file image; /* of the random model */
    qsae_model *model;
    qsae_model_info info;
    image_cost cost;
    char shape[64], type[16];
} bench;

/* -------------------------------------------------------------------------- limits */

/* What one call does at least. */
typedef struct work {
    double bytes, float_ops, int_ops;
} work;

/* Integer operations a second that the kernels could do, 0: not known. */
static double integer_peak(bench *b)
{
    qsae_isa isa = b->report->isa;
    double rate = probe_run(b->probe, PROBE_VNNI, isa, 3);
    return rate > 0 ? rate / 2 : probe_run(b->probe, PROBE_MADD, isa, 3);
}

/* Seconds that the work takes at the machine's limit now, 0: not known. */
static double limit_now(bench *b, const work *w)
{
    qsae_isa isa = b->report->isa;
    double compute = 0, memory, peak;
    if (w->int_ops > 0) {
        peak = integer_peak(b);
        if (peak == 0)
            return 0;
        compute += w->int_ops / peak;
    }
    compute += w->float_ops / probe_run(b->probe, PROBE_FMA, isa, 3);
    memory = w->bytes / probe_run(b->probe, PROBE_READ, isa, 2);
    return memory > compute ? memory : compute;
}

/* Scores and values of the tokens at positions begin .. begin + n - 1. */
static double attention_ops(const qsae_model_info *m, double begin, double n)
{
    double pairs = n * begin + n * (n + 1) / 2;
    return 4 * pairs * m->n_heads * m->head_dim * m->n_layers;
}

/* Bytes of keys and values of one position. */
static double cache_bytes(const bench *b)
{
    const qsae_model_info *m = &b->info;
    double numbers = 2.0 * m->n_layers * m->n_kv_heads * m->head_dim;
    return numbers * (b->setup->kv == QSAE_KV_F32 ? 4 : 2);
}

/* A pass over n new tokens behind `begin` others, for each of `contexts`; one row of
 * logits a context. */
static work pass_work(const bench *b, double begin, double n, double contexts)
{
    const image_cost *c = &b->cost;
    work w;
    w.bytes = c->layer_bytes + c->head_bytes + contexts * (begin + n) * cache_bytes(b);
    w.float_ops = contexts * (n * c->layer_float + c->head_float +
                              attention_ops(&b->info, begin, n));
    w.int_ops = contexts * (n * c->layer_int + c->head_int);
    return w;
}

/* ------------------------------------------------------------------------- sampling */

typedef qsae_status (*step_fn)(void *arg, qsae_error *err);

typedef struct job {
    step_fn step;
    void *arg;
    double units; /* of one call: tokens or rows */
    work work;    /* of one call */
} job;

static bench_result *add_result(bench *b, bench_name name, int64_t n, const char *unit)
{
    bench_result *r = &b->report->results[b->report->n++];
    memset(r, 0, sizeof *r);
    r->exact = -1;
    r->name = name;
    r->n = n;
    r->unit = unit;
    memcpy(r->type, b->type, sizeof r->type);
    memcpy(r->shape, b->shape, sizeof r->shape);
    if (b->setup->progress)
        fprintf(stderr, "\r\033[Kqsae bench: %s %lld", names[name], (long long)n);
    return r;
}

static int timed(const job *j, size_t calls, double *seconds)
{
    qsae_error err;
    double begin = team_clock();
    for (size_t i = 0; i < calls; i++)
        if (j->step(j->arg, &err) != QSAE_OK)
            return complain_library(NULL, &err);
    *seconds = team_clock() - begin;
    if (*seconds < 1e-9) /* a clock that coarse */
        *seconds = 1e-9;
    return CMD_OK;
}

/* Adds the sample, whose call takes `limit` seconds at the machine's limit. */
static void add_sample(bench_result *r, double rate, double limit_rate)
{
    r->limits[r->n_samples] = limit_rate;
    r->samples[r->n_samples++] = rate;
    if (rate <= r->value)
        return;
    r->value = rate;
    r->limit = limit_rate;
    r->share = limit_rate > 0 ? rate / limit_rate : 0;
}

/* The first call warms up, unless it alone takes most of the time there is. Then about
 * eight samples; where calls take long three, or fewer if that is five times too long. */
static int measure(bench *b, bench_result *r, const job *j)
{
    double seconds, spent = 0, limit = limit_now(b, &j->work), before;
    int code = timed(j, 1, &seconds), warm = seconds < b->setup->seconds / 2;
    size_t calls = (size_t)(b->setup->seconds / 8 / seconds);
    if (calls < 1)
        calls = 1;
    for (int first = 1; code == CMD_OK; first = 0) {
        size_t done = calls;
        if (first && !warm)
            done = 1; /* the first call is the first sample */
        else
            code = timed(j, calls, &seconds);
        before = limit;
        limit = limit_now(b, &j->work);
        double mean = before > 0 && limit > 0 ? (before + limit) / 2 : 0;
        add_sample(r, (double)done * j->units / seconds,
                   mean > 0 ? j->units / mean : 0);
        spent += seconds;
        if ((spent >= b->setup->seconds && r->n_samples >= 3) ||
            spent >= 5 * b->setup->seconds || r->n_samples == BENCH_SAMPLES)
            break;
    }
    return code;
}

/* ---------------------------------------------------------------------- the model */

static int open_model(bench *b, qsae_model **model)
{
    qsae_error err;
    qsae_open_options o;
    qsae_status s;
    memset(&o, 0, sizeof o);
    o.isa = b->setup->isa;
    if (b->setup->model_path)
        s = qsae_model_open(b->setup->model_path, &o, model, &err);
    else
        s = qsae_model_open_memory(b->image.data, b->image.size, &o, model, &err);
    return s == QSAE_OK ? CMD_OK : complain_library(b->setup->model_path, &err);
}

static int open_context(const bench *b, const qsae_model *model, int32_t n_ctx,
                        int32_t n_batch, qsae_ctx **ctx)
{
    qsae_error err;
    qsae_ctx_options o;
    memset(&o, 0, sizeof o);
    o.n_ctx = n_ctx;
    o.n_batch = n_batch;
    o.n_threads = b->setup->threads;
    o.kv_type = b->setup->kv;
    if (qsae_ctx_create(model, &o, ctx, &err) != QSAE_OK)
        return complain_library(NULL, &err);
    return CMD_OK;
}

/* The directory of the file, which the library has found valid. */
static int read_cost(bench *b)
{
    qsae_file_header h;
    FILE *f = fopen(b->setup->model_path, "rb");
    qsae_tensor_record *list = NULL;
    int ok = f && fread(&h, sizeof h, 1, f) == 1 && h.n_tensors <= 1u << 20 &&
             fseek(f, 64 + 256, SEEK_SET) == 0;
    if (ok)
        list = malloc(h.n_tensors * sizeof *list + 1);
    ok = list && fread(list, sizeof *list, h.n_tensors, f) == h.n_tensors;
    if (ok)
        b->cost = image_model_cost(list, h.n_tensors);
    free(list);
    if (f)
        fclose(f);
    return ok ? CMD_OK
              : complain(CMD_FAILED, "%.300s: cannot read its directory",
                         b->setup->model_path);
}

/* The most tokens that stand before a decode. */
static int32_t longest_context(const bench_setup *s)
{
    if (s->context)
        return s->context;
    return s->only & 1u << BENCH_DECODE_CONTEXT ? LONGEST_CONTEXT : 1;
}

static int prepare_model(bench *b)
{
    char err[600];
    const bench_setup *s = b->setup;
    int code = CMD_OK;
    if (s->model_path) {
        const char *slash = strrchr(s->model_path, '/');
        snprintf(b->shape, sizeof b->shape, "%s", slash ? slash + 1 : s->model_path);
        code = read_cost(b);
    } else {
        uint64_t kv = (uint64_t)s->shape->n_layers * 8 * 128 * 2 *
                      (s->kv == QSAE_KV_F32 ? 4u : 2u);
        uint64_t most = MOST_CONTEXTS * (1 + DECODE_TOKENS); /* positions at one time */
        if (s->only & 1u << BENCH_PREFILL)
            most = 2048;
        uint64_t context = (uint64_t)longest_context(s);
        if (most < context + DECODE_TOKENS)
            most = context + DECODE_TOKENS;
        snprintf(b->shape, sizeof b->shape, "%s", s->shape->name);
        if (image_model(s->shape, s->type, s->threads, kv * most + PROBE_BYTES,
                        &b->image, err, sizeof err))
            return complain(CMD_FAILED, "%s", err);
        const qsae_file_header *h = (const void *)b->image.data;
        b->cost =
            image_model_cost((const void *)(b->image.data + 64 + 256), h->n_tensors);
    }
    if (code == CMD_OK)
        code = open_model(b, &b->model);
    if (code != CMD_OK)
        return code;
    qsae_model_get_info(b->model, &b->info);
    b->report->isa = b->info.isa;
    snprintf(b->type, sizeof b->type, "%s", b->info.weight_type);
    if (b->info.n_layers == 0)
        return complain(CMD_FAILED, "%.300s: the file has only a tokenizer, no weights",
                        s->model_path);
    return CMD_OK;
}

/* n ids, the same for everybody. */
static int32_t *make_ids(const bench *b, size_t n)
{
    int32_t *ids = malloc(n * sizeof *ids);
    uint32_t x = 1;
    for (size_t i = 0; ids && i < n; i++) {
        x = x * 1664525u + 1013904223u;
        ids[i] = (int32_t)((x >> 8) % (uint32_t)b->info.vocab_size);
    }
    return ids;
}

/* A prompt from position 0. */
typedef struct prompt {
    qsae_ctx *ctx;
    int32_t *ids; /* [n] */
    size_t n;
} prompt;

static qsae_status prompt_step(void *arg, qsae_error *err)
{
    prompt *p = arg;
    qsae_status s = qsae_ctx_rewind(p->ctx, 0, err);
    return s == QSAE_OK ? qsae_eval(p->ctx, p->ids, p->n, err) : s;
}

static int prompt_open(const bench *b, const qsae_model *model, size_t n, prompt *p)
{
    int32_t batch = b->setup->batch < (int32_t)n ? b->setup->batch : (int32_t)n;
    p->n = n;
    p->ids = make_ids(b, n);
    if (!p->ids)
        return complain(CMD_FAILED, "out of memory");
    return open_context(b, model, (int32_t)n, batch, &p->ctx);
}

static void prompt_close(prompt *p)
{
    qsae_ctx_destroy(p->ctx);
    free(p->ids);
}

/* -------------------------------------------------------------- opening and memory */

/* From nothing to the first logits of a prompt, then the same prompt once more. */
static int open_once(bench *b, double *open, double *first, double *again)
{
    qsae_model *model = NULL;
    prompt p = {NULL, NULL, 0};
    job j = {prompt_step, &p, 0, {0, 0, 0}};
    double begin = team_clock();
    int code = open_model(b, &model);
    if (code == CMD_OK)
        code = prompt_open(b, model, FIRST_TOKENS, &p);
    *open = team_clock() - begin;
    if (code == CMD_OK)
        code = timed(&j, 1, first);
    *first = team_clock() - begin;
    if (code == CMD_OK)
        code = timed(&j, 1, again);
    prompt_close(&p);
    qsae_model_close(model);
    return code;
}

/* Seconds: less is better, so the best is the least, and there is no limit. */
static void add_seconds(bench_result *r, double seconds)
{
    if (r->n_samples == 0 || seconds < r->value)
        r->value = seconds;
    r->samples[r->n_samples++] = seconds;
}

static int run_open(bench *b)
{
    bench_result *open = add_result(b, BENCH_OPEN, 0, "s");
    bench_result *first = add_result(b, BENCH_OPEN, FIRST_TOKENS, "s");
    double spent = 0;
    int code = CMD_OK;
    for (int i = 0; i < 5 && code == CMD_OK && (i == 0 || spent < b->setup->seconds);
         i++) {
        double t_open = 0, t_first = 0, t_again = 0;
        code = open_once(b, &t_open, &t_first, &t_again);
        if (code != CMD_OK)
            break;
        add_seconds(open, t_open);
        add_seconds(first, t_first - t_again);
        spent += t_first + t_again;
    }
    return code;
}

static double peak_bytes(void)
{
    struct rusage u;
    if (getrusage(RUSAGE_SELF, &u) != 0)
        return 0;
#if defined(__APPLE__)
    return (double)u.ru_maxrss;
#else
    return (double)u.ru_maxrss * 1024;
#endif
}

/* Before any probe has memory of its own. The limit: the file and the context. */
static int run_rss(bench *b)
{
    prompt p = {NULL, NULL, 0};
    job j = {prompt_step, &p, 0, {0, 0, 0}};
    double seconds;
    qsae_ctx_options o;
    bench_result *r = add_result(b, BENCH_RSS, FIRST_TOKENS, "bytes");
    int code = prompt_open(b, b->model, FIRST_TOKENS, &p);
    if (code == CMD_OK)
        code = timed(&j, 1, &seconds);
    prompt_close(&p);
    memset(&o, 0, sizeof o);
    o.n_ctx = FIRST_TOKENS;
    o.n_batch = b->setup->batch < FIRST_TOKENS ? b->setup->batch : FIRST_TOKENS;
    o.n_threads = b->setup->threads;
    o.kv_type = b->setup->kv;
    r->value = r->samples[r->n_samples++] = peak_bytes();
    r->limit = (double)b->info.file_size + (double)qsae_ctx_size(b->model, &o);
    r->share = r->value / r->limit;
    return code;
}

/* ------------------------------------------------------------------ decode, prefill */

/* One token in each of n contexts, from position `first` to `last`, and again. */
typedef struct timelines {
    qsae_ctx *ctx[MOST_CONTEXTS];
    qsae_batch batch[MOST_CONTEXTS];
    int32_t *ids; /* [last] */
    int32_t first, last;
    size_t n;
} timelines;

static qsae_status timelines_step(void *arg, qsae_error *err)
{
    timelines *t = arg;
    qsae_status s = QSAE_OK;
    int32_t pos = qsae_ctx_pos(t->ctx[0]);
    if (pos == t->last)
        pos = t->first;
    for (size_t i = 0; i < t->n && s == QSAE_OK; i++) {
        t->batch[i].ctx = t->ctx[i];
        t->batch[i].tokens = t->ids + (pos + (int32_t)i) % t->last;
        t->batch[i].n = 1;
        s = qsae_ctx_rewind(t->ctx[i], pos, err);
    }
    if (s != QSAE_OK)
        return s;
    return t->n == 1 ? qsae_eval(t->ctx[0], t->batch[0].tokens, 1, err)
                     : qsae_eval_many(t->batch, t->n, err);
}

static int timelines_open(const bench *b, timelines *t, size_t n, int32_t first)
{
    int code = CMD_OK;
    int32_t batch = b->setup->batch < first ? b->setup->batch : first;
    qsae_error err;
    memset(t, 0, sizeof *t);
    t->first = first;
    t->last = first + DECODE_TOKENS;
    t->ids = make_ids(b, (size_t)t->last);
    if (!t->ids)
        return complain(CMD_FAILED, "out of memory");
    for (; t->n < n && code == CMD_OK; t->n++) {
        int32_t rows = batch < (int32_t)n ? (int32_t)n : batch;
        code = open_context(b, b->model, t->last, rows, &t->ctx[t->n]);
        if (code == CMD_OK &&
            qsae_eval(t->ctx[t->n], t->ids, (size_t)first, &err) != QSAE_OK)
            code = complain_library(NULL, &err);
    }
    return code;
}

static void timelines_close(timelines *t)
{
    for (size_t i = 0; i < t->n; i++)
        qsae_ctx_destroy(t->ctx[i]);
    free(t->ids);
}

/* In every layer a vector of another strength, for every context another one. */
static int set_edits(const bench *b, const timelines *t)
{
    size_t layers = (size_t)b->info.n_layers, width = (size_t)b->info.d_model;
    float *vector = malloc(width * sizeof *vector);
    qsae_edit *list = calloc(layers, sizeof *list);
    int code = vector && list ? CMD_OK : complain(CMD_FAILED, "out of memory");
    for (size_t i = 0; i < t->n && code == CMD_OK; i++) {
        qsae_error err;
        for (size_t k = 0; k < width; k++)
            vector[k] = (float)((k * 7 + i) % 13) - 6;
        for (size_t l = 0; l < layers; l++) {
            list[l].kind = QSAE_ADD;
            list[l].strength = 0.001f * (float)(1 + i + l);
            list[l].site = QSAE_RESID_POST;
            list[l].layer = (int32_t)l;
            list[l].vector = vector;
        }
        if (qsae_set_edits(t->ctx[i], list, layers, &err) != QSAE_OK)
            code = complain_library(NULL, &err);
    }
    free(vector);
    free(list);
    return code;
}

static int run_timelines(bench *b, bench_name name, size_t n, int32_t first)
{
    timelines t;
    int64_t shown = name == BENCH_DECODE_CONTEXT ? first : (int64_t)n;
    bench_result *r = add_result(b, name, shown, "tok/s");
    job j = {timelines_step, &t, (double)n, {0, 0, 0}};
    j.work = pass_work(b, first + DECODE_TOKENS / 2.0, 1, (double)n);
    if (name == BENCH_DECODE || name == BENCH_DECODE_CONTEXT)
        r->context = first;
    int code = timelines_open(b, &t, n, first);
    if (code == CMD_OK && name == BENCH_EVAL_EDITS)
        code = set_edits(b, &t);
    if (code == CMD_OK)
        code = measure(b, r, &j);
    timelines_close(&t);
    return code;
}

static int run_eval_many(bench *b)
{
    int code = CMD_OK;
    for (size_t n = 2; n <= EDITED_CONTEXTS && code == CMD_OK; n *= 2)
        code = run_timelines(b, BENCH_EVAL_MANY, n, 1);
    return code;
}

static int run_eval_edits(bench *b)
{
    return run_timelines(b, BENCH_EVAL_EDITS, EDITED_CONTEXTS, 1);
}

static int run_eval_many_batch(bench *b)
{
    int code = CMD_OK;
    for (size_t n = 1; n <= MOST_CONTEXTS && code == CMD_OK; n *= 2)
        code = run_timelines(b, BENCH_EVAL_MANY_BATCH, n, 1);
    return code;
}

static int run_decode_context(bench *b)
{
    int code = CMD_OK;
    int32_t most = longest_context(b->setup);
    for (int32_t n = 128; n <= 32768 && n <= most && code == CMD_OK; n *= 4)
        code = run_timelines(b, BENCH_DECODE_CONTEXT, 1, n);
    return code;
}

static int run_prompt(bench *b, bench_name name, size_t n, const qsae_capture *captures,
                      size_t n_captures)
{
    qsae_error err;
    prompt p = {NULL, NULL, 0};
    bench_result *r = add_result(b, name, (int64_t)n, "tok/s");
    job j = {prompt_step, &p, (double)n, {0, 0, 0}};
    j.work = pass_work(b, 0, (double)n, 1);
    int code = prompt_open(b, b->model, n, &p);
    if (code == CMD_OK &&
        qsae_set_captures(p.ctx, captures, n_captures, &err) != QSAE_OK)
        code = complain_library(NULL, &err);
    if (code == CMD_OK)
        code = measure(b, r, &j);
    prompt_close(&p);
    return code;
}

static int run_prefill(bench *b)
{
    static const size_t lengths[] = {128, 512, 2048};
    int code = CMD_OK;
    for (size_t i = 0; i < 3 && code == CMD_OK; i++)
        code = run_prompt(b, BENCH_PREFILL, lengths[i], NULL, 0);
    return code;
}

static int run_capture_all(bench *b)
{
    size_t layers = (size_t)b->info.n_layers, width = (size_t)b->info.d_model;
    float *rows = malloc(layers * FIRST_TOKENS * width * sizeof *rows);
    qsae_capture *list = calloc(layers, sizeof *list);
    int code = rows && list ? CMD_OK : complain(CMD_FAILED, "out of memory");
    for (size_t l = 0; l < layers && code == CMD_OK; l++) {
        list[l].site = QSAE_RESID_POST;
        list[l].layer = (int32_t)l;
        list[l].rows = rows + l * FIRST_TOKENS * width;
        list[l].max_rows = FIRST_TOKENS;
    }
    if (code == CMD_OK)
        code = run_prompt(b, BENCH_CAPTURE_ALL, FIRST_TOKENS, list, layers);
    free(list);
    free(rows);
    return code;
}

/* ----------------------------------------------------------------------------- SAEs */

enum { SAE_ROWS = 128, SAE_CAP = SAE_ROWS * 1024 };

typedef struct encoding {
    const qsae_sae *sae;
    float *x; /* [SAE_ROWS, SAE_INPUT] */
    size_t n;
    qsae_rows out;
    void *scratch;
    size_t scratch_size;
    int threads;
} encoding;

static qsae_status encode_step(void *arg, qsae_error *err)
{
    encoding *e = arg;
    return qsae_sae_encode(e->sae, e->x, e->n, 0, &e->out, e->scratch, e->scratch_size,
                           e->threads, err);
}

/* Mean 0, variance 1, about normal: the sum of four uniform numbers. */
static void fill_inputs(float *x, size_t n)
{
    uint32_t s = 7;
    for (size_t i = 0; i < n; i++) {
        double sum = 0;
        for (int k = 0; k < 4; k++) {
            s = s * 1664525u + 1013904223u;
            sum += (double)(s >> 8) / 16777216.0 - 0.5;
        }
        x[i] = (float)(sum * sqrt(3.0));
    }
}

static uint32_t sae_type(const bench *b)
{
    return b->setup->type == QSAE_TYPE_F32 ? QSAE_TYPE_F32 : QSAE_TYPE_BF16;
}

/* What one call of n rows costs; `screened`: of the 8-bit copy, its scales included. */
static work sae_work(int screened, uint32_t type, size_t d_in, uint32_t d_sae, double n)
{
    double weights = (double)d_in * d_sae;
    work w = {0, 0, 0};
    w.bytes = weights * (screened ? 4160.0 / 4096 : type == QSAE_TYPE_F32 ? 4 : 2);
    *(screened ? &w.int_ops : &w.float_ops) = 2 * weights * n;
    return w;
}

static int run_width(bench *b, encoding *e, bench_name name, uint32_t type,
                     uint32_t d_sae)
{
    static const size_t rows[] = {1, 8, SAE_ROWS};
    qsae_sae_info info;
    qsae_sae_get_info(e->sae, &info);
    b->report->isa = info.isa;
    snprintf(b->type, sizeof b->type, "%s", info.weight_type);
    snprintf(b->shape, sizeof b->shape, "%dx%u", SAE_INPUT, (unsigned)d_sae);
    int code = CMD_OK;
    e->scratch_size = qsae_sae_scratch_size(e->sae, SAE_ROWS);
    e->scratch = malloc(e->scratch_size + 1);
    if (!e->scratch)
        return complain(CMD_FAILED, "out of memory");
    for (size_t i = 0; i < 3 && code == CMD_OK; i++) {
        bench_result *r = add_result(b, name, (int64_t)rows[i], "rows/s");
        job j = {encode_step, e, (double)rows[i],
                 sae_work(name == BENCH_SAE, type, SAE_INPUT, d_sae, (double)rows[i])};
        e->n = rows[i];
        code = measure(b, r, &j);
        if (name == BENCH_SAE)
            r->exact = (double)e->out.n_exact / ((double)rows[i] * d_sae);
    }
    free(e->scratch);
    e->scratch = NULL;
    return code;
}

/* One way to encode with the SAE of this image. */
static int run_open_sae(bench *b, encoding *e, bench_name name, const image_file *im,
                        uint32_t type, uint32_t d_sae)
{
    qsae_error err;
    qsae_sae_options o;
    qsae_sae *sae = NULL;
    memset(&o, 0, sizeof o);
    o.open.isa = b->setup->isa;
    o.no_screen = name == BENCH_SAE_DENSE;
    if (qsae_sae_open_memory(im->data, im->size, &o, &sae, &err) != QSAE_OK)
        return complain_library(NULL, &err);
    e->sae = sae;
    int code = run_width(b, e, name, type, d_sae);
    qsae_sae_close(sae);
    return code;
}

static int run_sae(bench *b, encoding *e, uint32_t d_sae)
{
    static const bench_name both[] = {BENCH_SAE, BENCH_SAE_DENSE};
    char text[600];
    image_file im = {NULL, 0};
    uint32_t type = sae_type(b);
    if (image_sae(SAE_INPUT, d_sae, type, b->setup->threads, &im, text, sizeof text))
        return complain(CMD_FAILED, "%s", text);
    int code = CMD_OK;
    for (int i = 0; i < 2 && code == CMD_OK; i++)
        if (b->setup->only & 1u << both[i])
            code = run_open_sae(b, e, both[i], &im, type, d_sae);
    image_free(&im);
    return code;
}

/* Decode with SAEs beside it: after each token a row of every layer is encoded. */
typedef struct watched {
    timelines t;
    encoding e;
    image_file *images; /* [n_saes], used in turn */
    qsae_sae **saes;
    size_t n_saes;
    float *rows; /* [n_layers, d_model]: resid_post of every layer */
    float *x;    /* the same size, variance 1: what is encoded */
    size_t layers, width;
} watched;

static qsae_status watched_step(void *arg, qsae_error *err)
{
    watched *w = arg;
    qsae_status s = timelines_step(&w->t, err);
    for (size_t l = 0; l < w->layers && s == QSAE_OK; l++) {
        encoding *e = &w->e;
        s = qsae_sae_encode(w->saes[l % w->n_saes], w->x + l * w->width, 1, 0, &e->out,
                            e->scratch, e->scratch_size, e->threads, err);
    }
    return s;
}

static int watched_open_saes(bench *b, watched *w, uint32_t d_sae)
{
    char text[600];
    qsae_error err;
    qsae_sae_options o;
    memset(&o, 0, sizeof o);
    o.open.isa = b->setup->isa;
    o.no_screen = d_sae == SENSOR_FEATURES; /* `extract` makes none for so few */
    uint32_t type = sae_type(b);
    for (size_t i = 0; i < w->n_saes; i++) {
        if (image_sae((uint32_t)w->width, d_sae, type, b->setup->threads, &w->images[i],
                      text, sizeof text))
            return complain(CMD_FAILED, "%s", text);
        if (qsae_sae_open_memory(w->images[i].data, w->images[i].size, &o, &w->saes[i],
                                 &err) != QSAE_OK)
            return complain_library(NULL, &err);
    }
    w->e.scratch_size = qsae_sae_scratch_size(w->saes[0], 1);
    w->e.scratch = malloc(w->e.scratch_size);
    return w->e.scratch ? CMD_OK : complain(CMD_FAILED, "out of memory");
}

static int watched_open(bench *b, watched *w, uint32_t d_sae)
{
    qsae_error err;
    size_t n = w->layers * w->width;
    qsae_capture *list = calloc(w->layers, sizeof *list);
    w->images = calloc(w->n_saes, sizeof *w->images);
    w->saes = calloc(w->n_saes, sizeof *w->saes);
    w->rows = malloc(n * sizeof *w->rows);
    w->x = malloc(n * sizeof *w->x);
    w->e.out.cap = d_sae;
    w->e.out.start = malloc(2 * sizeof *w->e.out.start);
    w->e.out.index = malloc(d_sae * sizeof *w->e.out.index);
    w->e.out.value = malloc(d_sae * sizeof *w->e.out.value);
    int code = CMD_OK;
    if (!list || !w->images || !w->saes || !w->rows || !w->x || !w->e.out.start ||
        !w->e.out.index || !w->e.out.value)
        code = complain(CMD_FAILED, "out of memory");
    if (code == CMD_OK) {
        fill_inputs(w->x, n);
        code = watched_open_saes(b, w, d_sae);
    }
    if (code == CMD_OK)
        code = timelines_open(b, &w->t, 1, 1);
    for (size_t l = 0; l < w->layers && code == CMD_OK; l++) {
        list[l].site = QSAE_RESID_POST;
        list[l].layer = (int32_t)l;
        list[l].rows = w->rows + l * w->width;
        list[l].max_rows = 1;
    }
    if (code == CMD_OK &&
        qsae_set_captures(w->t.ctx[0], list, w->layers, &err) != QSAE_OK)
        code = complain_library(NULL, &err);
    free(list);
    return code;
}

static void watched_close(watched *w)
{
    timelines_close(&w->t);
    for (size_t i = 0; i < w->n_saes; i++) {
        if (w->saes)
            qsae_sae_close(w->saes[i]);
        if (w->images)
            image_free(&w->images[i]);
    }
    free(w->images);
    free(w->saes);
    free(w->rows);
    free(w->x);
    free(w->e.out.start);
    free(w->e.out.index);
    free(w->e.out.value);
    free(w->e.scratch);
}

static int run_watched(bench *b, bench_name name, uint32_t d_sae, size_t n_saes,
                       int threads)
{
    watched w;
    memset(&w, 0, sizeof w);
    w.layers = (size_t)b->info.n_layers;
    w.width = (size_t)b->info.d_model;
    w.n_saes = n_saes < w.layers ? n_saes : w.layers;
    w.e.threads = threads;
    bench_result *r = add_result(b, name, b->info.n_layers, "tok/s");
    job j = {watched_step, &w, 1, pass_work(b, 1 + DECODE_TOKENS / 2.0, 1, 1)};
    work one = sae_work(name == BENCH_SAE_ALL, sae_type(b), w.width, d_sae, 1);
    j.work.bytes += (double)w.layers * one.bytes;
    j.work.float_ops += (double)w.layers * one.float_ops;
    j.work.int_ops += (double)w.layers * one.int_ops;
    int code = watched_open(b, &w, d_sae);
    if (code == CMD_OK)
        code = measure(b, r, &j);
    watched_close(&w);
    return code;
}

static int run_sae_all(bench *b)
{
    return run_watched(b, BENCH_SAE_ALL, ALL_FEATURES, 4, b->setup->threads);
}

static int run_sensors(bench *b)
{
    return run_watched(b, BENCH_SENSORS, SENSOR_FEATURES, SIZE_MAX, 1);
}

static int run_saes(bench *b)
{
    size_t n = (size_t)SAE_ROWS * SAE_INPUT;
    encoding e;
    memset(&e, 0, sizeof e);
    e.threads = b->setup->threads;
    e.out.cap = SAE_CAP;
    e.x = malloc(n * sizeof *e.x);
    e.out.start = malloc((SAE_ROWS + 1) * sizeof *e.out.start);
    e.out.index = malloc(SAE_CAP * sizeof *e.out.index);
    e.out.value = malloc(SAE_CAP * sizeof *e.out.value);
    int code = CMD_OK;
    if (!e.x || !e.out.start || !e.out.index || !e.out.value)
        code = complain(CMD_FAILED, "out of memory");
    else
        fill_inputs(e.x, n);
    for (uint32_t d_sae = 16384; d_sae <= 65536 && code == CMD_OK; d_sae *= 2)
        code = run_sae(b, &e, d_sae);
    free(e.x);
    free(e.out.start);
    free(e.out.index);
    free(e.out.value);
    return code;
}

/* ------------------------------------------------------------------------------ all */

static int probe_all(bench *b)
{
    uint64_t memory = image_memory() / 8;
    size_t bytes = b->setup->seconds < 0.5 ? (size_t)64 << 20 : (size_t)PROBE_BYTES;
    if (bytes > memory)
        bytes = (size_t)memory & ~(((size_t)1 << 20) - 1);
    b->probe = probe_open(b->setup->threads, bytes + ((size_t)1 << 20));
    if (!b->probe)
        return complain(CMD_FAILED, "no memory for a probe of %zu bytes", bytes);
    for (int i = 0; i < PROBE_COUNT; i++)
        b->report->probe[i] = probe_run(b->probe, (probe_kind)i, QSAE_ISA_AUTO, 5);
    snprintf(b->report->cpu, sizeof b->report->cpu, "%s", probe_cpu_name(b->probe));
    return CMD_OK;
}

static int run_all(bench *b)
{
    static const struct {
        bench_name name;
        int (*run)(bench *);
    } parts[] = {{BENCH_PREFILL, run_prefill},
                 {BENCH_EVAL_MANY, run_eval_many},
                 {BENCH_EVAL_EDITS, run_eval_edits},
                 {BENCH_SAE_ALL, run_sae_all},
                 {BENCH_SENSORS, run_sensors},
                 {BENCH_CAPTURE_ALL, run_capture_all},
                 {BENCH_DECODE_CONTEXT, run_decode_context},
                 {BENCH_EVAL_MANY_BATCH, run_eval_many_batch}};
    const unsigned saes = 1u << BENCH_SAE | 1u << BENCH_SAE_DENSE;
    unsigned only = b->setup->only, of_model = only & ~saes;
    int code = of_model ? prepare_model(b) : CMD_OK;
    if (code == CMD_OK && only & 1u << BENCH_RSS)
        code = run_rss(b);
    if (code == CMD_OK && only & 1u << BENCH_OPEN)
        code = run_open(b);
    if (code == CMD_OK)
        code = probe_all(b);
    if (code == CMD_OK && only & 1u << BENCH_DECODE)
        code = run_timelines(b, BENCH_DECODE, 1,
                             b->setup->context ? b->setup->context : 1);
    for (size_t i = 0; i < sizeof parts / sizeof *parts && code == CMD_OK; i++)
        if (only & 1u << parts[i].name)
            code = parts[i].run(b);
    qsae_model_close(b->model);
    b->model = NULL;
    image_free(&b->image);
    if (code == CMD_OK && only & saes)
        code = run_saes(b);
    return code;
}

int bench_run(const bench_setup *setup, bench_report *report)
{
    bench b;
    memset(&b, 0, sizeof b);
    memset(report, 0, sizeof *report);
    b.setup = setup;
    b.report = report;
    report->isa = setup->isa;
    report->threads = team_size(setup->threads);
    int code = run_all(&b);
    if (setup->progress)
        fputs("\r\033[K", stderr);
    probe_close(b.probe);
    return code;
}
