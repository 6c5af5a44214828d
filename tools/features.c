/* `qsae features`: which features of an SAE every token of a text activates. */

#define _POSIX_C_SOURCE 200809L

#include "cmd.h"
#include "sae_choice.h"
#include "sinks.h"
#include "text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* clang-format off */
static const char usage[] =
    "Usage: qsae features MODEL.qsae SAE.qsae (--text T | --tokens 1,2,3 | --chat T)\n"
    "                     [options]\n"
    "Shows, token by token, the strongest features at the site that the SAE reads.\n"
    "\n"
    INPUT_USAGE("text")
    "Output:\n"
    "  --top K           features to show of each token, strongest first; default 5\n"
    "  --json            one object a line with all active features, by index,\n"
    "                    whatever --top says:\n"
    "    {\"pos\":0,\"token\":1,\"text\":\"a\",\"features\":[[index,value],...],\n"
    "     \"norm\":12.5,\"sink\":false}\n"
    "A token is a sink, marked with * and the times, if the row that the SAE reads is\n"
    "more than 10 times as long as the median one of the text: its features say little.\n"
    "  --color WHEN      auto, always or never; auto: a terminal, and no NO_COLOR\n"
    SAE_USAGE
    RUN_USAGE;
/* clang-format on */

enum { OPT_TOP = OPT_OWN, OPT_JSON, OPT_COLOR };

static const args_option option_table[] = {
    INPUT_OPTIONS("text"),
    {"top", 0, OPT_TOP, ARGS_VALUE},
    {"json", 0, OPT_JSON, 0},
    {"color", 0, OPT_COLOR, ARGS_VALUE},
    SAE_OPTIONS,
    {NULL, 0, 0, 0},
};

typedef struct features_run {
    input in;
    const char *model_path, *sae_path;
    sae_choice choice;
    int64_t top;
    int json, color;
    qsae_model *model;
    qsae_sae *sae;
    qsae_ctx *ctx;
    sae_numbers numbers;
    int32_t *ids;
    float *rows;    /* [chunk, d_in] */
    qsae_rows part; /* of one chunk */
    qsae_rows all;  /* of the text */
    float *norm;    /* [n]: length of every row that the SAE read */
    void *scratch;
    uint64_t *order; /* [n]: value and place of the entries of one row */
    size_t order_cap;
    sinks sinks;
    float median;
} features_run;

/* -------------------------------------------------------------------- command line */

static int take_color(features_run *r, const char *when)
{
    const char *no_color = getenv("NO_COLOR"), *term = getenv("TERM");
    if (strcmp(when, "always") == 0)
        r->color = 1;
    else if (strcmp(when, "never") == 0)
        r->color = 0;
    else if (strcmp(when, "auto") == 0)
        r->color = isatty(STDOUT_FILENO) && !(no_color && *no_color) &&
                   !(term && strcmp(term, "dumb") == 0);
    else
        return complain(CMD_USAGE, "--color: '%.60s' is none of auto always never",
                        when);
    return CMD_OK;
}

static int take_option(void *run, const args *a, int id)
{
    features_run *r = run;
    switch (id) {
    case OPT_TOP: return args_integer(a->option, a->value, 1, INT32_MAX, &r->top);
    case OPT_JSON: r->json = 1; return CMD_OK;
    case OPT_COLOR: return take_color(r, a->value);
    case OPT_SITE:
    case OPT_LAYER:
    case OPT_NAME: return sae_choice_take(&r->choice, a, id);
    default: return input_take(&r->in, a, id);
    }
}

static int parse(features_run *r, int argc, char **argv, int *help)
{
    args a = args_begin(argc, argv, option_table, usage);
    const char **const slots[] = {&r->model_path, &r->sae_path};
    int code = args_walk(&a, slots, 2, take_option, r, help);
    if (code != CMD_OK || *help)
        return code;
    if (!r->sae_path)
        return complain(
            CMD_USAGE,
            "features needs MODEL.qsae and SAE.qsae (see: qsae features --help)");
    return input_check(&r->in);
}

/* ----------------------------------------------------------------------- one chunk */

static int reserve(qsae_rows *rows, size_t cap)
{
    if (cap <= rows->cap)
        return CMD_OK;
    if (cap > SIZE_MAX / sizeof *rows->index / 2)
        return complain(CMD_FAILED, "out of memory for %zu features", cap);
    if (cap < 2 * rows->cap)
        cap = 2 * rows->cap;
    uint32_t *index = realloc(rows->index, cap * sizeof *index);
    if (index)
        rows->index = index;
    float *value = realloc(rows->value, cap * sizeof *value);
    if (value)
        rows->value = value;
    if (!index || !value)
        return complain(CMD_FAILED, "out of memory for %zu features", cap);
    rows->cap = cap;
    return CMD_OK;
}

/* Captures n tokens from position `done` on and encodes their rows. */
static int encode_chunk(features_run *r, size_t done, size_t n)
{
    qsae_error err;
    size_t scratch = qsae_sae_scratch_size(r->sae, n);
    int threads = r->in.threads ? (int)r->in.threads : 1;
    if (qsae_eval(r->ctx, r->ids + done, n, &err) != QSAE_OK)
        return complain_library(NULL, &err);
    for (;;) {
        qsae_status s = qsae_sae_encode(r->sae, r->rows, n, 0, &r->part, r->scratch,
                                        scratch, threads, &err);
        if (s == QSAE_OK)
            return CMD_OK;
        size_t need = s == QSAE_E_LIMIT ? r->part.start[n] : 0;
        if (need <= r->part.cap)
            return complain_library(NULL, &err);
        int code = reserve(&r->part, need);
        if (code != CMD_OK)
            return code;
    }
}

/* Keeps what was encoded: which rows are sinks shows only at the end of the text. */
static int keep_chunk(features_run *r, size_t done, size_t n)
{
    qsae_sae_info info;
    qsae_sae_get_info(r->sae, &info);
    size_t at = r->all.start[done], more = r->part.start[n];
    int code = reserve(&r->all, at + more);
    if (code != CMD_OK)
        return code;
    memcpy(r->all.index + at, r->part.index, more * sizeof *r->all.index);
    memcpy(r->all.value + at, r->part.value, more * sizeof *r->all.value);
    for (size_t i = 0; i < n; i++) {
        r->all.start[done + i + 1] = at + r->part.start[i + 1];
        r->norm[done + i] =
            sinks_norm(r->rows + i * (size_t)info.d_in, (size_t)info.d_in);
        sinks_add(&r->sinks, done + i, r->norm[done + i]);
    }
    return CMD_OK;
}

static int prepare(features_run *r, size_t n, size_t chunk)
{
    qsae_error err;
    qsae_sae_info info;
    qsae_sae_get_info(r->sae, &info);
    size_t scratch = qsae_sae_scratch_size(r->sae, chunk), width = (size_t)info.d_in;
    if (scratch == SIZE_MAX || chunk > SIZE_MAX / sizeof(float) / width)
        return complain(CMD_FAILED, "a chunk of %zu tokens is too large for this SAE",
                        chunk);
    r->rows = malloc(chunk * width * sizeof(float));
    r->scratch = malloc(scratch ? scratch : 1);
    r->part.start = malloc((chunk + 1) * sizeof(size_t));
    r->all.start = calloc(n + 1, sizeof(size_t));
    r->norm = malloc(n * sizeof *r->norm);
    if (!r->rows || !r->scratch || !r->part.start || !r->all.start || !r->norm ||
        sinks_begin(&r->sinks))
        return complain(CMD_FAILED, "out of memory for a chunk of %zu tokens", chunk);
    qsae_capture capture = {info.site_in, info.layer_in, r->rows, chunk};
    if (qsae_set_captures(r->ctx, &capture, 1, &err) != QSAE_OK)
        return complain_library(NULL, &err);
    return reserve(&r->part, chunk * 256); /* grows if needed */
}

/* ------------------------------------------------------------------------ printing */

static void print_json(const features_run *r, size_t pos)
{
    size_t len;
    const char *text = qsae_token_text(r->model, r->ids[pos], &len);
    printf("{\"pos\":%zu,\"token\":%d,\"text\":", pos, (int)r->ids[pos]);
    text_json(stdout, text, text ? len : 0);
    fputs(",\"features\":[", stdout);
    size_t begin = r->all.start[pos], end = r->all.start[pos + 1];
    for (size_t i = begin; i < end; i++)
        printf("%s[%u,%.9g]", i == begin ? "" : ",",
               (unsigned)sae_number(&r->numbers, r->all.index[i]),
               (double)r->all.value[i]); /* 9 digits bring a float back exactly */
    printf("],\"norm\":%.9g,\"sink\":%s}\n", (double)r->norm[pos],
           sinks_is(r->norm[pos], r->median) ? "true" : "false");
}

static int descending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* Fills order with the n entries from begin on, strongest first, ties to the lower
   index. The values are * positive, so their bits order as they do. */
static int sort_entries(features_run *r, size_t begin, size_t n)
{
    if (n > r->order_cap) {
        uint64_t *order = realloc(r->order, n * sizeof *order);
        if (!order)
            return complain(CMD_FAILED, "out of memory for %zu features", n);
        r->order = order;
        r->order_cap = n;
    }
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &r->all.value[begin + i], sizeof bits);
        r->order[i] = (uint64_t)bits << 32 | (UINT32_MAX - (uint32_t)i);
    }
    qsort(r->order, n, sizeof r->order[0], descending);
    return CMD_OK;
}

/* A feature keeps its colour across tokens, so that the eye can follow it. */
static int hue(uint32_t feature)
{
    return 31 + (int)(feature % 6);
}

static int print_row(features_run *r, size_t pos)
{
    size_t len, begin = r->all.start[pos], n = r->all.start[pos + 1] - begin;
    const char *text = qsae_token_text(r->model, r->ids[pos], &len);
    size_t shown = n < (size_t)r->top ? n : (size_t)r->top;
    int code = n ? sort_entries(r, begin, n) : CMD_OK;
    if (code != CMD_OK)
        return code;
    printf("%5zu  ", pos);
    size_t width =
        text ? text_quoted(stdout, text, len) : (size_t)printf("#%d", (int)r->ids[pos]);
    printf("%*s", width < 18 ? (int)(18 - width) : 1, "");
    for (size_t k = 0; k < shown; k++) {
        size_t at = begin + (UINT32_MAX - (uint32_t)r->order[k]);
        uint32_t feature = sae_number(&r->numbers, r->all.index[at]);
        double value = (double)r->all.value[at];
        if (r->color)
            printf("  \033[%s%dm%u\033[0m \033[2m%.4g\033[0m", k == 0 ? "1;" : "",
                   hue(feature), (unsigned)feature, value);
        else
            printf("  %u %.4g", (unsigned)feature, value);
    }
    if (shown < n)
        printf(r->color ? "  \033[2m+%zu\033[0m" : "  +%zu", n - shown);
    if (sinks_is(r->norm[pos], r->median))
        printf("  *sink, %.0fx", (double)(r->norm[pos] / r->median));
    putchar('\n');
    return CMD_OK;
}

static void print_header(const features_run *r)
{
    qsae_sae_info info;
    qsae_sae_get_info(r->sae, &info);
    printf("features of %s, layer %d: feature and value, strongest first\n",
           qsae_site_name(info.site_in), (int)info.layer_in);
}

/* --------------------------------------------------------------------- the command */

static int work(features_run *r)
{
    size_t n, chunk;
    qsae_sae_info info;
    int code = input_open_model(&r->in, r->model_path, &r->model);
    if (code == CMD_OK)
        code = sae_open_choice(&r->in, r->sae_path, &r->choice, &r->sae);
    if (code == CMD_OK)
        code = sae_check_model(r->sae_path, r->sae, r->model);
    if (code == CMD_OK)
        code = input_ids(&r->in, r->model, &r->ids, &n);
    if (code == CMD_OK)
        code = input_context(&r->in, r->model, n, n, &r->ctx, &chunk);
    if (code == CMD_OK)
        code = prepare(r, n, chunk);
    if (code != CMD_OK)
        return code;
    qsae_sae_get_info(r->sae, &info);
    code = sae_numbers_read(r->sae_path, &info, &r->numbers);
    for (size_t done = 0; done < n && code == CMD_OK; done += chunk) {
        size_t part = n - done < chunk ? n - done : chunk;
        code = encode_chunk(r, done, part);
        if (code == CMD_OK)
            code = keep_chunk(r, done, part);
    }
    if (code != CMD_OK)
        return code;
    r->median = sinks_median(&r->sinks);
    if (!r->json)
        print_header(r);
    for (size_t i = 0; i < n && code == CMD_OK; i++) {
        if (r->json)
            print_json(r, i);
        else
            code = print_row(r, i);
    }
    return code;
}

int cmd_features(int argc, char **argv)
{
    int help = 0;
    features_run r;
    memset(&r, 0, sizeof r);
    r.in.text_name = "text";
    r.choice = sae_choice_any();
    r.top = 5;
    take_color(&r, "auto");
    int code = parse(&r, argc, argv, &help);
    if (code == CMD_OK && !help)
        code = work(&r);
    qsae_ctx_destroy(r.ctx);
    qsae_sae_close(r.sae);
    qsae_model_close(r.model);
    free(r.ids);
    free(r.rows);
    free(r.scratch);
    free(r.order);
    free(r.norm);
    free(r.part.start);
    free(r.part.index);
    free(r.part.value);
    free(r.all.start);
    free(r.all.index);
    free(r.all.value);
    sae_numbers_free(&r.numbers);
    sinks_end(&r.sinks);
    return code;
}
