/* `qsae compare`: how far two files of one model differ on a text, where "one model" means
 * one shape: f32 against bf16, q8 or q4, say. B is measured against A.
 *
 * All sums are of doubles. With p and q the probabilities of A and B (softmax of the logits)
 * after one token, a and b the rows of a site, f and g the features of an SAE:
 *     KL            sum over the vocabulary of p (log p - log q); mean and largest
 *     top-1         share of the tokens after which both rank the same id first (ties: lower id)
 *     perplexity    exp(mean of -log p(next)), over tokens that have a next one in their part
 *     site          |a - b| / |a| of every row; root of the mean square, and largest
 *     same set      share of the tokens with the same active features
 *     Jaccard       active in both / active in either, 1 where none is; mean
 *     value error   sqrt(sum (f - g)^2 / sum f^2) over all features of all tokens */

#define _POSIX_C_SOURCE 200809L

#include "cmd.h"
#include "input.h"
#include "logits.h"
#include "text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* clang-format off */
static const char usage[] =
    "Usage: qsae compare A.qsae B.qsae (--text FILE | --random N) [options]\n"
    "How far B is from A, two files of one model with different types of weights.\n"
    "\n"
    "  --text FILE       the text to run both on, UTF-8\n"
    "  --random N        N random tokens instead (models without a tokenizer)\n"
    "  --tokens N        at most so many tokens of the text; default 1024\n"
    "  --context N       the text is cut into parts of so many tokens, each evaluated\n"
    "                    by itself; default 512\n"
    "  --sae SAE.qsae    also compare the features of every SAE of this file\n"
    "  --json            one object\n"
    "  --threads N, --isa NAME, --kv TYPE, --no-verify    as everywhere; --help: this\n"
    "\n"
    "With p and q the probabilities of A and B after a token, a and b the rows of a\n"
    "site, f and g the features; sums in double precision:\n"
    "  KL            sum of p (log p - log q) over the vocabulary\n"
    "  top-1         tokens after which both have the same most likely next one\n"
    "  perplexity    exp(mean of -log p(next token))\n"
    "  site          |a - b| / |a|: root of the mean square, and largest, over tokens\n"
    "  same set      tokens with the same active features\n"
    "  Jaccard       features active in both / in either, 1 where none is; mean\n"
    "  value error   sqrt(sum (f - g)^2 / sum f^2) over all tokens\n";
/* clang-format on */

enum { OPT_FILE = OPT_OWN, OPT_RANDOM, OPT_LIMIT, OPT_CONTEXT, OPT_SAE, OPT_JSON };

static const args_option option_table[] = {
    {"text", 0, OPT_FILE, ARGS_VALUE},
    {"random", 0, OPT_RANDOM, ARGS_VALUE},
    {"tokens", 0, OPT_LIMIT, ARGS_VALUE},
    {"context", 0, OPT_CONTEXT, ARGS_VALUE},
    {"sae", 0, OPT_SAE, ARGS_VALUE},
    {"json", 0, OPT_JSON, 0},
    {"threads", 0, OPT_THREADS, ARGS_VALUE},
    {"isa", 0, OPT_ISA, ARGS_VALUE},
    {"kv", 0, OPT_KV, ARGS_VALUE},
    {"no-verify", 0, OPT_NO_VERIFY, 0},
    {NULL, 0, 0, 0},
};

enum { CHUNK = 32 }; /* tokens whose rows are held at once */
enum { A = 0, B = 1 };

/* Errors of one site of one layer so far. */
typedef struct site_error {
    double sum, largest; /* of squares; of the error itself */
} site_error;

/* One SAE of the file. */
typedef struct member {
    qsae_sae *sae;
    qsae_sae_info info;
    qsae_rows rows[2]; /* of A and B */
    void *scratch;
    size_t scratch_size;
    double same, jaccard, difference, size; /* sums over tokens */
    uint64_t active[2];
} member;

/* One of the two models. */
typedef struct side {
    const char *path;
    qsae_model *model;
    qsae_model_info info;
    qsae_ctx *ctx;
    qsae_capture *list; /* [n_sites + 1], the last the logits */
    double loss;        /* sum of -log p(next) */
} side;

typedef struct compare_run {
    input in;
    const char *text_path, *sae_path;
    int64_t limit, context, random;
    int json;
    side side[2];
    int32_t *ids;
    size_t n, n_sites; /* tokens; layers * QSAE_SITE_COUNT */
    double kl, kl_largest;
    uint64_t same_top, predicted;
    site_error *sites; /* [n_sites] */
    member *members;
    size_t n_members;
} compare_run;

/* --------------------------------------------------------------------- command line */

static int take_option(void *run, const args *a, int id)
{
    compare_run *r = run;
    switch (id) {
    case OPT_FILE: r->text_path = a->value; return CMD_OK;
    case OPT_SAE: r->sae_path = a->value; return CMD_OK;
    case OPT_JSON: r->json = 1; return CMD_OK;
    case OPT_RANDOM: return args_integer(a->option, a->value, 1, 1 << 24, &r->random);
    case OPT_LIMIT: return args_integer(a->option, a->value, 1, 1 << 24, &r->limit);
    case OPT_CONTEXT: return args_integer(a->option, a->value, 1, 1 << 20, &r->context);
    default: return input_take(&r->in, a, id);
    }
}

static int parse(compare_run *r, int argc, char **argv, int *help)
{
    args a = args_begin(argc, argv, option_table, usage);
    const char **const slots[] = {&r->side[A].path, &r->side[B].path};
    int code = args_walk(&a, slots, 2, take_option, r, help);
    if (code != CMD_OK || *help)
        return code;
    if (!r->side[B].path)
        return complain(CMD_USAGE,
                        "compare needs A.qsae and B.qsae (see: qsae compare --help)");
    if (!r->text_path == !r->random)
        return complain(CMD_USAGE, "give %s of --text and --random",
                        r->text_path ? "only one" : "one");
    if (r->random && r->limit)
        return complain(CMD_USAGE,
                        "--tokens needs --text: --random has its own number");
    if (!r->limit)
        r->limit = 1024;
    return CMD_OK;
}

/* ------------------------------------------------------------------- the two models */

static int differ(const compare_run *r, const char *what, double a, double b)
{
    return complain(CMD_FAILED,
                    "not two files of one model: %s is %.9g in %.200s, %.9g in %.200s",
                    what, a, r->side[A].path, b, r->side[B].path);
}

/* What makes two files comparable: the same numbers in the record. */
static int check_shapes(const compare_run *r)
{
    const qsae_model_info *a = &r->side[A].info, *b = &r->side[B].info;
    const struct {
        const char *what;
        double a, b;
    } same[] = {
        {"n_layers", a->n_layers, b->n_layers},
        {"d_model", a->d_model, b->d_model},
        {"n_heads", a->n_heads, b->n_heads},
        {"n_kv_heads", a->n_kv_heads, b->n_kv_heads},
        {"head_dim", a->head_dim, b->head_dim},
        {"d_ff", a->d_ff, b->d_ff},
        {"vocab_size", a->vocab_size, b->vocab_size},
        {"rope_theta", a->rope_theta, b->rope_theta},
        {"rms_eps", (double)a->rms_eps, (double)b->rms_eps},
    };
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        if (same[i].a < same[i].b || same[i].a > same[i].b)
            return differ(r, same[i].what, same[i].a, same[i].b);
    if (a->n_tokens && b->n_tokens && a->n_tokens != b->n_tokens)
        return differ(r, "the number of the tokenizer's tokens", a->n_tokens,
                      b->n_tokens);
    return CMD_OK;
}

static int open_models(compare_run *r)
{
    for (int i = 0; i < 2; i++) {
        side *s = &r->side[i];
        int code = input_open_model(&r->in, s->path, &s->model);
        if (code != CMD_OK)
            return code;
        qsae_model_get_info(s->model, &s->info);
    }
    return check_shapes(r);
}

/* -------------------------------------------------------------------------- the text */

static int read_text(const char *path, char **text, size_t *len)
{
    size_t cap = 1 << 16, n;
    FILE *f = fopen(path, "rb");
    if (!f)
        return complain(CMD_FAILED, "cannot open %.300s", path);
    *text = malloc(cap);
    *len = 0;
    while (*text && (n = fread(*text + *len, 1, cap - *len, f)) > 0) {
        *len += n;
        if (*len < cap)
            continue;
        char *more = cap < SIZE_MAX / 2 ? realloc(*text, cap * 2) : NULL;
        if (!more)
            free(*text);
        *text = more;
        cap *= 2;
    }
    int bad = ferror(f);
    fclose(f);
    if (!*text)
        return complain(CMD_FAILED, "out of memory for %.300s", path);
    return bad ? complain(CMD_FAILED, "cannot read %.300s", path) : CMD_OK;
}

static int tokenize(const side *s, const char *text, size_t len, int32_t **ids,
                    size_t *n)
{
    qsae_error err;
    qsae_status status = qsae_tokenize(s->model, text, len, 0, NULL, 0, n, &err);
    if (status != QSAE_OK && status != QSAE_E_LIMIT)
        return complain_library(s->path, &err);
    *ids = malloc(*n * sizeof **ids + 1);
    if (!*ids)
        return complain(CMD_FAILED, "out of memory for %zu tokens", *n);
    if (qsae_tokenize(s->model, text, len, 0, *ids, *n, n, &err) != QSAE_OK)
        return complain_library(s->path, &err);
    return CMD_OK;
}

/* The ids of the text; where both files have a tokenizer, they must agree on them. */
static int make_text_ids(compare_run *r)
{
    char *text = NULL;
    size_t len = 0, n_other = 0;
    int32_t *other = NULL;
    int first = r->side[A].info.n_tokens ? A : B;
    if (!r->side[first].info.n_tokens)
        return complain(CMD_FAILED, "neither file has a tokenizer: use --random N");
    int code = read_text(r->text_path, &text, &len);
    if (code == CMD_OK)
        code = tokenize(&r->side[first], text, len, &r->ids, &r->n);
    if (code == CMD_OK && first == A && r->side[B].info.n_tokens) {
        code = tokenize(&r->side[B], text, len, &other, &n_other);
        if (code == CMD_OK &&
            (n_other != r->n || memcmp(other, r->ids, r->n * sizeof *other) != 0))
            code =
                complain(CMD_FAILED,
                         "the tokenizers differ: %zu tokens of %.200s in %.200s, %zu in"
                         " %.200s, or others",
                         r->n, r->text_path, r->side[A].path, n_other, r->side[B].path);
    }
    free(other);
    free(text);
    if (code == CMD_OK && r->n == 0)
        code = complain(CMD_FAILED, "%.300s: the text is empty", r->text_path);
    if (r->n > (size_t)r->limit)
        r->n = (size_t)r->limit;
    return code;
}

static int make_ids(compare_run *r)
{
    uint64_t x = 1;
    int32_t most = r->side[A].info.vocab_size;
    if (!r->random) {
        int code = make_text_ids(r);
        for (size_t i = 0; code == CMD_OK && i < r->n; i++)
            if (r->ids[i] >= most)
                code = complain(CMD_FAILED,
                                "the tokenizer gave token %d; the model has %d",
                                (int)r->ids[i], (int)most);
        return code;
    }
    r->n = (size_t)r->random;
    r->ids = malloc(r->n * sizeof *r->ids);
    if (!r->ids)
        return complain(CMD_FAILED, "out of memory for %zu tokens", r->n);
    for (size_t i = 0; i < r->n; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        r->ids[i] = (int32_t)((x >> 33) % (uint64_t)most);
    }
    return CMD_OK;
}

/* ----------------------------------------------------------------- contexts and SAEs */

static int open_side(compare_run *r, side *s)
{
    qsae_error err;
    size_t parts = (size_t)r->context < r->n ? (size_t)r->context : r->n, chunk;
    int code = input_context(&r->in, s->model, parts, CHUNK < parts ? CHUNK : parts,
                             &s->ctx, &chunk);
    s->list = calloc(r->n_sites + 1, sizeof *s->list);
    if (code == CMD_OK && !s->list)
        code = complain(CMD_FAILED, "out of memory");
    for (size_t i = 0; i <= r->n_sites && code == CMD_OK; i++) {
        qsae_capture *c = &s->list[i];
        c->site = i == r->n_sites ? QSAE_LOGITS : (qsae_site)(i % QSAE_SITE_COUNT);
        c->layer = i == r->n_sites ? 0 : (int32_t)(i / QSAE_SITE_COUNT);
        c->max_rows = CHUNK;
        c->rows = malloc(CHUNK * qsae_site_width(s->model, c->site) * sizeof *c->rows);
        if (!c->rows)
            code = complain(CMD_FAILED, "out of memory for the rows of a site");
    }
    if (code == CMD_OK &&
        qsae_set_captures(s->ctx, s->list, r->n_sites + 1, &err) != QSAE_OK)
        code = complain_library(NULL, &err);
    return code;
}

static int open_member(compare_run *r, member *m, int32_t index)
{
    qsae_error err;
    qsae_sae_options o;
    memset(&o, 0, sizeof o);
    o.open.isa = r->in.isa;
    o.open.verify = !r->in.no_verify;
    o.select = QSAE_SELECT_INDEX;
    o.index = index;
    if (qsae_sae_open(r->sae_path, &o, &m->sae, &err) != QSAE_OK)
        return complain_library(r->sae_path, &err);
    qsae_sae_get_info(m->sae, &m->info);
    int code = sae_check_model(r->sae_path, m->sae, r->side[A].model);
    if (code != CMD_OK)
        return code;
    size_t cap = (size_t)CHUNK * (size_t)m->info.d_sae;
    m->scratch_size = qsae_sae_scratch_size(m->sae, CHUNK);
    m->scratch = malloc(m->scratch_size + 1);
    for (int i = 0; i < 2; i++) {
        m->rows[i].cap = cap;
        m->rows[i].start = malloc((CHUNK + 1) * sizeof(size_t));
        m->rows[i].index = malloc(cap * sizeof(uint32_t));
        m->rows[i].value = malloc(cap * sizeof(float));
        if (!m->scratch || !m->rows[i].start || !m->rows[i].index || !m->rows[i].value)
            return complain(CMD_FAILED, "out of memory for %zu features", cap);
    }
    return CMD_OK;
}

static int open_members(compare_run *r)
{
    int code = CMD_OK;
    size_t n = 1;
    for (size_t i = 0; r->sae_path && i < n && code == CMD_OK; i++) {
        member *more = realloc(r->members, (i + 1) * sizeof *more);
        if (!more)
            return complain(CMD_FAILED, "out of memory");
        r->members = more;
        memset(&more[i], 0, sizeof *more);
        r->n_members = i + 1;
        code = open_member(r, &more[i], (int32_t)i);
        n = (size_t)more[i].info.n_members;
    }
    return code;
}

static void close_all(compare_run *r)
{
    for (size_t i = 0; i < r->n_members; i++) {
        member *m = &r->members[i];
        qsae_sae_close(m->sae);
        free(m->scratch);
        for (int k = 0; k < 2; k++) {
            free(m->rows[k].start);
            free(m->rows[k].index);
            free(m->rows[k].value);
        }
    }
    for (int k = 0; k < 2; k++) {
        side *s = &r->side[k];
        qsae_ctx_destroy(s->ctx);
        for (size_t i = 0; s->list && i <= r->n_sites; i++)
            free(s->list[i].rows);
        free(s->list);
        qsae_model_close(s->model);
    }
    free(r->members);
    free(r->sites);
    free(r->ids);
}

/* --------------------------------------------------------------------- the arithmetic */

/* next: the id that follows, -1 for none. */
static int add_logits(compare_run *r, const float *a, const float *b, int32_t next,
                      size_t token)
{
    size_t n = (size_t)r->side[A].info.vocab_size, top_a, top_b;
    double la = logits_log_sum(a, n, &top_a), lb = logits_log_sum(b, n, &top_b);
    if (isnan(la) || isnan(lb))
        return complain(CMD_FAILED, "%.300s: a logit after token %zu is not finite",
                        r->side[isnan(la) ? A : B].path, token);
    double kl = logits_kl(a, la, b, lb, n);
    r->kl += kl;
    if (kl > r->kl_largest)
        r->kl_largest = kl;
    r->same_top += top_a == top_b;
    if (next >= 0) {
        r->side[A].loss += la - (double)a[next];
        r->side[B].loss += lb - (double)b[next];
        r->predicted++;
    }
    return CMD_OK;
}

static void add_row(site_error *e, const float *a, const float *b, size_t n)
{
    double difference = 0, size = 0, error = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)a[i] - (double)b[i];
        difference += d * d;
        size += (double)a[i] * (double)a[i];
    }
    if (difference > 0) /* infinite if a is all zeros */
        error = sqrt(difference / size);
    e->sum += error * error;
    if (error > e->largest)
        e->largest = error;
}

/* Both rows' features, ascending by index, side by side. */
static void add_features(member *m, size_t row)
{
    size_t i = m->rows[A].start[row], end_a = m->rows[A].start[row + 1];
    size_t j = m->rows[B].start[row], end_b = m->rows[B].start[row + 1];
    size_t both = 0, either = 0;
    m->active[A] += end_a - i;
    m->active[B] += end_b - j;
    while (i < end_a || j < end_b) {
        uint32_t ia = i < end_a ? m->rows[A].index[i] : UINT32_MAX;
        uint32_t ib = j < end_b ? m->rows[B].index[j] : UINT32_MAX;
        double f = ia <= ib ? (double)m->rows[A].value[i++] : 0;
        double g = ib <= ia ? (double)m->rows[B].value[j++] : 0;
        both += ia == ib;
        either++;
        m->difference += (f - g) * (f - g);
        m->size += f * f;
    }
    m->same += both == either;
    m->jaccard += either ? (double)both / (double)either : 1;
}

static int add_member(compare_run *r, member *m, size_t n)
{
    qsae_error err;
    size_t at = (size_t)m->info.layer_in * QSAE_SITE_COUNT + (size_t)m->info.site_in;
    for (int i = 0; i < 2; i++)
        if (qsae_sae_encode(m->sae, r->side[i].list[at].rows, n, 0, &m->rows[i],
                            m->scratch, m->scratch_size, r->in.threads,
                            &err) != QSAE_OK)
            return complain_library(r->sae_path, &err);
    for (size_t row = 0; row < n; row++)
        add_features(m, row);
    return CMD_OK;
}

/* Tokens begin .. begin + n - 1; the part that they belong to ends before `end`. */
static int add_chunk(compare_run *r, size_t begin, size_t n, size_t end)
{
    qsae_error err;
    const qsae_capture *a = r->side[A].list, *b = r->side[B].list;
    size_t vocab = (size_t)r->side[A].info.vocab_size;
    int code = CMD_OK;
    for (int i = 0; i < 2; i++)
        if (qsae_eval(r->side[i].ctx, r->ids + begin, n, &err) != QSAE_OK)
            return complain_library(r->side[i].path, &err);
    for (size_t i = 0; i < r->n_sites; i++) {
        size_t width = qsae_site_width(r->side[A].model, a[i].site);
        for (size_t row = 0; row < n; row++)
            add_row(&r->sites[i], a[i].rows + row * width, b[i].rows + row * width,
                    width);
    }
    for (size_t row = 0; row < n && code == CMD_OK; row++) {
        int32_t next = begin + row + 1 < end ? r->ids[begin + row + 1] : -1;
        code = add_logits(r, a[r->n_sites].rows + row * vocab,
                          b[r->n_sites].rows + row * vocab, next, begin + row);
    }
    for (size_t i = 0; i < r->n_members && code == CMD_OK; i++)
        code = add_member(r, &r->members[i], n);
    return code;
}

static int evaluate(compare_run *r)
{
    qsae_error err;
    size_t part = (size_t)r->context;
    int progress = isatty(STDERR_FILENO), code = CMD_OK;
    for (size_t begin = 0; begin < r->n && code == CMD_OK; begin += part) {
        size_t end = r->n - begin < part ? r->n : begin + part;
        for (int i = 0; i < 2; i++)
            if (qsae_ctx_rewind(r->side[i].ctx, 0, &err) != QSAE_OK)
                return complain_library(NULL, &err);
        for (size_t at = begin; at < end && code == CMD_OK; at += CHUNK) {
            if (progress)
                fprintf(stderr, "\r\033[Kqsae compare: token %zu of %zu", at, r->n);
            code = add_chunk(r, at, end - at < CHUNK ? end - at : CHUNK, end);
        }
    }
    if (progress)
        fputs("\r\033[K", stderr);
    return code;
}

/* --------------------------------------------------------------------------- output */

/* JSON has no infinity. */
static void put_number(const char *key, double v)
{
    if (isfinite(v))
        printf("\"%s\":%.9g", key, v);
    else
        printf("\"%s\":null", key);
}

static double perplexity(const compare_run *r, int i)
{
    return r->predicted ? exp(r->side[i].loss / (double)r->predicted) : NAN;
}

static double site_rms(const compare_run *r, size_t i)
{
    return sqrt(r->sites[i].sum / (double)r->n);
}

static double value_error(const member *m)
{
    return m->difference > 0 ? sqrt(m->difference / m->size) : 0;
}

static void json_side(const char *key, const side *s)
{
    printf("\"%s\":{\"file\":", key);
    text_json(stdout, s->path, strlen(s->path));
    printf(",\"type\":\"%s\"},", s->info.weight_type);
}

static void print_json(const compare_run *r)
{
    double n = (double)r->n;
    printf("{");
    json_side("a", &r->side[A]);
    json_side("b", &r->side[B]);
    printf("\"tokens\":%zu,", r->n);
    put_number("kl_mean", r->kl / n);
    printf(",");
    put_number("kl_max", r->kl_largest);
    printf(",");
    put_number("top1", (double)r->same_top / n);
    printf(",");
    put_number("perplexity_a", perplexity(r, A));
    printf(",");
    put_number("perplexity_b", perplexity(r, B));
    printf(",\"sites\":[");
    for (size_t i = 0; i < r->n_sites; i++) {
        printf("%s\n{\"layer\":%zu,\"site\":\"%s\",", i ? "," : "", i / QSAE_SITE_COUNT,
               qsae_site_name((qsae_site)(i % QSAE_SITE_COUNT)));
        put_number("rms", site_rms(r, i));
        printf(",");
        put_number("max", r->sites[i].largest);
        printf("}");
    }
    printf("],\"saes\":[");
    for (size_t i = 0; i < r->n_members; i++) {
        const member *m = &r->members[i];
        printf("%s\n{\"name\":", i ? "," : "");
        text_json(stdout, m->info.name, strlen(m->info.name));
        printf(",\"site\":\"%s\",\"layer\":%d,", qsae_site_name(m->info.site_in),
               (int)m->info.layer_in);
        put_number("active_a", (double)m->active[A] / n);
        printf(",");
        put_number("active_b", (double)m->active[B] / n);
        printf(",");
        put_number("same_set", m->same / n);
        printf(",");
        put_number("jaccard", m->jaccard / n);
        printf(",");
        put_number("value_error", value_error(m));
        printf("}");
    }
    printf("]}\n");
}

static void print_sites(const compare_run *r)
{
    printf("\nrelative error of the rows, rms / largest\nlayer");
    for (int s = 0; s < QSAE_SITE_COUNT; s++)
        printf("  %-17s", qsae_site_name((qsae_site)s));
    for (size_t i = 0; i < r->n_sites; i++) {
        if (i % QSAE_SITE_COUNT == 0)
            printf("\n%5zu", i / QSAE_SITE_COUNT);
        printf("  %-8.2e %-8.2e", site_rms(r, i), r->sites[i].largest);
    }
    printf("\n");
}

static void print_table(const compare_run *r)
{
    double n = (double)r->n;
    for (int i = 0; i < 2; i++)
        printf("%c: %s, %s, %.1f MB\n", "AB"[i], r -> side[i].path,
               r->side[i].info.weight_type, (double)r->side[i].info.file_size / 1e6);
    printf("%zu tokens, in parts of %lld\n\n", r->n, (long long)r->context);
    printf("KL(A||B)     mean %.3e  largest %.3e\n", r->kl / n, r->kl_largest);
    printf("top-1        the same after %.2f %% of the tokens\n",
           100 * (double)r->same_top / n);
    if (r->predicted)
        printf("perplexity   A %.5f  B %.5f\n", perplexity(r, A), perplexity(r, B));
    print_sites(r);
    for (size_t i = 0; i < r->n_members; i++) {
        const member *m = &r->members[i];
        if (i == 0)
            printf("\nfeatures\n%-20s %5s %-10s %9s %9s %9s %8s %11s\n", "SAE", "layer",
                   "site", "active A", "active B", "same set", "Jaccard",
                   "value error");
        text_quoted(stdout, m->info.name, strlen(m->info.name));
        printf("%*s %5d %-10s %9.1f %9.1f %7.2f %% %8.5f %11.2e\n",
               (int)(strlen(m->info.name) < 18 ? 18 - strlen(m->info.name) : 0), "",
               (int)m->info.layer_in, qsae_site_name(m->info.site_in),
               (double)m->active[A] / n, (double)m->active[B] / n, 100 * m->same / n,
               m->jaccard / n, value_error(m));
    }
}

static int work(compare_run *r)
{
    int code = open_models(r);
    if (code == CMD_OK)
        code = make_ids(r);
    if (code != CMD_OK)
        return code;
    r->n_sites = (size_t)r->side[A].info.n_layers * QSAE_SITE_COUNT;
    r->sites = calloc(r->n_sites, sizeof *r->sites);
    if (!r->sites)
        return complain(CMD_FAILED, "out of memory");
    for (int i = 0; i < 2 && code == CMD_OK; i++)
        code = open_side(r, &r->side[i]);
    if (code == CMD_OK)
        code = open_members(r);
    if (code == CMD_OK)
        code = evaluate(r);
    if (code == CMD_OK) {
        if (r->json)
            print_json(r);
        else
            print_table(r);
    }
    return code;
}

int cmd_compare(int argc, char **argv)
{
    int help = 0, code;
    compare_run r;
    memset(&r, 0, sizeof r);
    r.in.text_name = "text";
    r.context = 512;
    code = parse(&r, argc, argv, &help);
    if (code == CMD_OK && !help)
        code = work(&r);
    close_all(&r);
    return code;
}
