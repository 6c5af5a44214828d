/* `qsae features`: which features of an SAE every token of a text activates. */

#define _POSIX_C_SOURCE 200809L

#include "cmd.h"
#include "input.h"
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
    "    {\"pos\":0,\"token\":1,\"text\":\"a\",\"features\":[[index,value],...]}\n"
    "  --color WHEN      auto, always or never; auto: a terminal, and no NO_COLOR\n"
    "Of a file that holds several SAEs, the one that\n"
    "  --site S --layer L      reads this site and layer\n"
    "  --name N                has this name\n"
    RUN_USAGE;
/* clang-format on */

enum { OPT_TOP = OPT_OWN, OPT_JSON, OPT_COLOR, OPT_SITE, OPT_LAYER, OPT_NAME };

static const args_option option_table[] = {
    INPUT_OPTIONS("text"),
    {"top", 0, OPT_TOP, ARGS_VALUE},
    {"json", 0, OPT_JSON, 0},
    {"color", 0, OPT_COLOR, ARGS_VALUE},
    {"site", 0, OPT_SITE, ARGS_VALUE},
    {"layer", 0, OPT_LAYER, ARGS_VALUE},
    {"name", 0, OPT_NAME, ARGS_VALUE},
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
    int32_t *ids;
    float *rows;      /* [chunk, d_in] */
    qsae_rows sparse; /* of one chunk */
    void *scratch;
    uint64_t *order; /* [cap]: value and place of the entries of one row */
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
    int64_t layer;
    int code;
    switch (id) {
    case OPT_TOP: return args_integer(a->option, a->value, 1, INT32_MAX, &r->top);
    case OPT_JSON: r->json = 1; return CMD_OK;
    case OPT_COLOR: return take_color(r, a->value);
    case OPT_SITE: return parse_site(a->value, &r->choice.site);
    case OPT_LAYER:
        code = args_integer(a->option, a->value, 0, INT32_MAX, &layer);
        if (code == CMD_OK)
            r->choice.layer = (int)layer;
        return code;
    case OPT_NAME: r->choice.name = a->value; return CMD_OK;
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

static int reserve_entries(features_run *r, size_t cap)
{
    if (cap > SIZE_MAX / sizeof(uint64_t))
        return complain(CMD_FAILED, "out of memory for %zu features", cap);
    uint32_t *index = realloc(r->sparse.index, cap * sizeof *index);
    if (index)
        r->sparse.index = index;
    float *value = realloc(r->sparse.value, cap * sizeof *value);
    if (value)
        r->sparse.value = value;
    uint64_t *order = realloc(r->order, cap * sizeof *order);
    if (order)
        r->order = order;
    if (!index || !value || !order)
        return complain(CMD_FAILED, "out of memory for %zu features", cap);
    r->sparse.cap = cap;
    return CMD_OK;
}

/* Captures n tokens from position `done` on and encodes their rows. */
static int encode_chunk(features_run *r, size_t done, size_t n)
{
    qsae_error err;
    qsae_sae_info info;
    qsae_sae_get_info(r->sae, &info);
    size_t scratch = qsae_sae_scratch_size(r->sae, n);
    int threads = r->in.threads ? (int)r->in.threads : 1;
    if (qsae_eval(r->ctx, r->ids + done, n, &err) != QSAE_OK)
        return complain_library(NULL, &err);
    for (;;) {
        qsae_status s = qsae_sae_encode(r->sae, r->rows, n, 0, &r->sparse, r->scratch,
                                        scratch, threads, &err);
        if (s == QSAE_OK)
            return CMD_OK;
        size_t need = s == QSAE_E_LIMIT ? r->sparse.start[n] : 0;
        if (need <= r->sparse.cap)
            return complain_library(NULL, &err);
        int code = reserve_entries(r, need);
        if (code != CMD_OK)
            return code;
    }
}

static int prepare(features_run *r, size_t chunk)
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
    r->sparse.start = malloc((chunk + 1) * sizeof(size_t));
    if (!r->rows || !r->scratch || !r->sparse.start)
        return complain(CMD_FAILED, "out of memory for a chunk of %zu tokens", chunk);
    qsae_capture capture = {info.site_in, info.layer_in, r->rows, chunk};
    if (qsae_set_captures(r->ctx, &capture, 1, &err) != QSAE_OK)
        return complain_library(NULL, &err);
    return reserve_entries(r, chunk * 256); /* grows if needed */
}

/* ------------------------------------------------------------------------ printing */

static void print_json(const features_run *r, size_t row, size_t pos)
{
    size_t len;
    const char *text = qsae_token_text(r->model, r->ids[pos], &len);
    printf("{\"pos\":%zu,\"token\":%d,\"text\":", pos, (int)r->ids[pos]);
    text_json(stdout, text, text ? len : 0);
    fputs(",\"features\":[", stdout);
    size_t begin = r->sparse.start[row], end = r->sparse.start[row + 1];
    for (size_t i = begin; i < end; i++)
        printf("%s[%u,%.9g]", i == begin ? "" : ",", (unsigned)r->sparse.index[i],
               (double)r->sparse.value[i]); /* 9 digits bring a float back exactly */
    fputs("]}\n", stdout);
}

static int descending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* Fills order with the n entries from begin on, strongest first, ties to the lower
   index. The values are * positive, so their bits order as they do. */
static void sort_entries(const features_run *r, size_t begin, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &r->sparse.value[begin + i], sizeof bits);
        r->order[i] = (uint64_t)bits << 32 | (UINT32_MAX - (uint32_t)i);
    }
    qsort(r->order, n, sizeof r->order[0], descending);
}

/* A feature keeps its colour across tokens, so that the eye can follow it. */
static int hue(uint32_t feature)
{
    return 31 + (int)(feature % 6);
}

static void print_row(const features_run *r, size_t row, size_t pos)
{
    size_t len, begin = r->sparse.start[row], n = r->sparse.start[row + 1] - begin;
    const char *text = qsae_token_text(r->model, r->ids[pos], &len);
    printf("%5zu  ", pos);
    size_t width =
        text ? text_quoted(stdout, text, len) : (size_t)printf("#%d", (int)r->ids[pos]);
    printf("%*s", width < 18 ? (int)(18 - width) : 1, "");
    size_t shown = n < (size_t)r->top ? n : (size_t)r->top;
    sort_entries(r, begin, n);
    for (size_t k = 0; k < shown; k++) {
        size_t at = begin + (UINT32_MAX - (uint32_t)r->order[k]);
        uint32_t feature = r->sparse.index[at];
        double value = (double)r->sparse.value[at];
        if (r->color)
            printf("  \033[%s%dm%u\033[0m \033[2m%.4g\033[0m", k == 0 ? "1;" : "",
                   hue(feature), (unsigned)feature, value);
        else
            printf("  %u %.4g", (unsigned)feature, value);
    }
    if (shown < n)
        printf(r->color ? "  \033[2m+%zu\033[0m" : "  +%zu", n - shown);
    putchar('\n');
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
    size_t n, n_fit, chunk;
    int code = input_open_model(&r->in, r->model_path, &r->model);
    if (code == CMD_OK)
        code = sae_open_choice(&r->in, r->sae_path, &r->choice, 0, &r->sae, &n_fit);
    if (code == CMD_OK)
        code = sae_check_model(r->sae_path, r->sae, r->model);
    if (code == CMD_OK)
        code = input_ids(&r->in, r->model, &r->ids, &n);
    if (code == CMD_OK)
        code = input_context(&r->in, r->model, n, n, &r->ctx, &chunk);
    if (code == CMD_OK)
        code = prepare(r, chunk);
    if (code != CMD_OK)
        return code;
    for (size_t done = 0; done < n; done += chunk) {
        size_t part = n - done < chunk ? n - done : chunk;
        code = encode_chunk(r, done, part);
        if (code != CMD_OK)
            return code;
        if (done == 0 && !r->json)
            print_header(r);
        for (size_t i = 0; i < part; i++) {
            if (r->json)
                print_json(r, i, done + i);
            else
                print_row(r, i, done + i);
        }
    }
    return CMD_OK;
}

int cmd_features(int argc, char **argv)
{
    int help = 0;
    features_run r;
    memset(&r, 0, sizeof r);
    r.in.text_name = "text";
    r.choice.site = r.choice.layer = -1;
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
    free(r.sparse.start);
    free(r.sparse.index);
    free(r.sparse.value);
    return code;
}
