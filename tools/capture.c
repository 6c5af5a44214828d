/* `qsae capture`: activations of every token of a text, as a safetensors file. */

#include "cmd.h"
#include "input.h"
#include "output.h"
#include "safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
static const char usage[] =
    "Usage: qsae capture MODEL.qsae (--text T | --tokens 1,2,3 | --chat T)\n"
    "                    [--site S [--layer L]...]... [--logits] -o OUT.safetensors\n"
    "Writes float32 tensors `layers.<L>.<site>` [n_tokens, width] and `logits`\n"
    "[n_tokens, vocab], and the token ids `tokens` (int32).\n"
    "\n"
    INPUT_USAGE("text")
    "What to capture; without --site and --logits: all sites of all layers:\n"
    "  --site S          resid_pre attn_z attn_out resid_mid mlp_input mlp_out\n"
    "                    resid_post, or all; may be repeated\n"
    "  --layer L|all     of the --site before it; default all; may be repeated\n"
    "  --logits          the logits of every token\n"
    "  -o FILE           the file to write; what is asked for twice is in it once\n"
    RUN_USAGE;
/* clang-format on */

enum { OPT_LOGITS = OPT_OWN, OPT_OUT };
enum { ALL = -1, NOT_SAID = -2 };

static const args_option option_table[] = {
    INPUT_OPTIONS("text"),
    {"site", 0, OPT_SITE, ARGS_VALUE | ARGS_MANY},
    {"layer", 0, OPT_LAYER, ARGS_VALUE | ARGS_MANY},
    {"logits", 0, OPT_LOGITS, 0},
    {NULL, 'o', OPT_OUT, ARGS_VALUE},
    {NULL, 0, 0, 0},
};

typedef struct request {
    int site;  /* or ALL */
    int layer; /* or ALL, or NOT_SAID: all, unless a --layer follows */
} request;

typedef struct capture_run {
    input in;
    const char *model_path, *out_path;
    request *requests; /* [n_requests] */
    size_t n_requests;
    int logits;
    qsae_model *model;
    qsae_ctx *ctx;
    int32_t *ids;        /* [n] */
    qsae_capture *list;  /* [n_list], as in the file; rows hold all n tokens */
    qsae_capture *moved; /* [n_list], the same with rows at the present chunk */
    size_t n, n_list, chunk;
    st_writer *out;
} capture_run;

/* --------------------------------------------------------------------- command line */

static int add_site(capture_run *r, const char *name)
{
    int site = ALL;
    if (strcmp(name, "all") != 0) {
        int code = parse_site(name, &site);
        if (code != CMD_OK)
            return code;
    }
    r->requests[r->n_requests].site = site;
    r->requests[r->n_requests++].layer = NOT_SAID;
    return CMD_OK;
}

static int add_layer(capture_run *r, const char *text)
{
    int64_t layer = ALL;
    if (r->n_requests == 0)
        return complain(CMD_USAGE,
                        "--layer belongs to the --site before it; there is none");
    if (strcmp(text, "all") != 0) {
        int code = args_integer("--layer", text, 0, INT32_MAX, &layer);
        if (code != CMD_OK)
            return code;
    }
    request *last = &r->requests[r->n_requests - 1];
    if (last->layer != NOT_SAID) {
        last[1] = last[0];
        last++;
        r->n_requests++;
    }
    last->layer = (int)layer;
    return CMD_OK;
}

static int take_option(void *run, const args *a, int id)
{
    capture_run *r = run;
    switch (id) {
    case OPT_SITE: return add_site(r, a->value);
    case OPT_LAYER: return add_layer(r, a->value);
    case OPT_LOGITS: r->logits = 1; return CMD_OK;
    case OPT_OUT: r->out_path = a->value; return CMD_OK;
    default: return input_take(&r->in, a, id);
    }
}

static int parse(capture_run *r, int argc, char **argv, int *help)
{
    args a = args_begin(argc, argv, option_table, usage);
    const char **const slots[] = {&r->model_path};
    int code = args_walk(&a, slots, 1, take_option, r, help);
    if (code != CMD_OK || *help)
        return code;
    if (!r->model_path)
        return complain(CMD_USAGE,
                        "capture needs MODEL.qsae (see: qsae capture --help)");
    if (!r->out_path)
        return complain(CMD_USAGE, "capture needs -o OUT.safetensors");
    if (r->n_requests == 0 && !r->logits)
        add_site(r, "all");
    return input_check(&r->in);
}

/* ------------------------------------------------------------------ what to capture */

/* wanted [n_layers][QSAE_SITE_COUNT]: 1 where a request asks for it. */
static int mark(const capture_run *r, int n_layers, char *wanted)
{
    for (size_t i = 0; i < r->n_requests; i++) {
        const request *q = &r->requests[i];
        if (q->layer >= n_layers)
            return complain(CMD_FAILED, "--layer %d: the model has layers 0..%d",
                            q->layer, n_layers - 1);
        for (int layer = 0; layer < n_layers; layer++)
            for (int site = 0; site < QSAE_SITE_COUNT; site++)
                if ((q->layer < 0 || q->layer == layer) &&
                    (q->site == ALL || q->site == site))
                    wanted[layer * QSAE_SITE_COUNT + site] = 1;
    }
    return CMD_OK;
}

static int add_capture(capture_run *r, qsae_site site, int layer)
{
    size_t width = qsae_site_width(r->model, site);
    qsae_capture *c = &r->list[r->n_list];
    if (r->n <= SIZE_MAX / sizeof(float) / width)
        c->rows = malloc(r->n * width * sizeof(float));
    if (!c->rows)
        return complain(CMD_FAILED, "out of memory for %s of %zu tokens",
                        site == QSAE_LOGITS ? "logits" : qsae_site_name(site), r->n);
    c->site = site;
    c->layer = layer;
    c->max_rows = r->n;
    r->n_list++;
    return CMD_OK;
}

static int plan(capture_run *r)
{
    qsae_model_info info;
    qsae_model_get_info(r->model, &info);
    size_t most = (size_t)info.n_layers * QSAE_SITE_COUNT + 1;
    char *wanted = calloc(most, 1);
    r->list = calloc(most, sizeof *r->list);
    r->moved = calloc(most, sizeof *r->moved);
    int code = wanted && r->list && r->moved ? mark(r, info.n_layers, wanted)
                                             : complain(CMD_FAILED, "out of memory");
    for (size_t i = 0; code == CMD_OK && i + 1 < most; i++)
        if (wanted[i])
            code = add_capture(r, (qsae_site)(i % QSAE_SITE_COUNT),
                               (int)(i / QSAE_SITE_COUNT));
    if (code == CMD_OK && r->logits)
        code = add_capture(r, QSAE_LOGITS, 0);
    free(wanted);
    return code;
}

/* ------------------------------------------------------------------------ the work */

static int evaluate(capture_run *r)
{
    qsae_error err;
    for (size_t done = 0; done < r->n; done += r->chunk) {
        size_t part = r->n - done < r->chunk ? r->n - done : r->chunk;
        for (size_t i = 0; i < r->n_list; i++) {
            r->moved[i] = r->list[i];
            r->moved[i].rows += done * qsae_site_width(r->model, r->list[i].site);
            r->moved[i].max_rows = part;
        }
        if (qsae_set_captures(r->ctx, r->moved, r->n_list, &err) != QSAE_OK ||
            qsae_eval(r->ctx, r->ids + done, part, &err) != QSAE_OK)
            return complain_library(NULL, &err);
    }
    return CMD_OK;
}

static int declare(capture_run *r, char *err, size_t cap)
{
    uint64_t shape[2] = {r->n, 0};
    for (size_t i = 0; i < r->n_list; i++) {
        char name[64] = "logits";
        const qsae_capture *c = &r->list[i];
        if (c->site != QSAE_LOGITS)
            snprintf(name, sizeof name, "layers.%d.%s", (int)c->layer,
                     qsae_site_name(c->site));
        shape[1] = qsae_site_width(r->model, c->site);
        if (st_writer_declare(r->out, name, TENSOR_F32, 2, shape, err, cap))
            return -1;
    }
    return st_writer_declare(r->out, "tokens", TENSOR_I32, 1, shape, err, cap);
}

static int write_file(capture_run *r)
{
    char err[600];
    int bad = declare(r, err, sizeof err);
    for (size_t i = 0; !bad && i < r->n_list; i++) {
        size_t width = qsae_site_width(r->model, r->list[i].site);
        bad = st_writer_data(r->out, r->list[i].rows, r->n * width * sizeof(float), err,
                             sizeof err);
    }
    if (!bad)
        bad = st_writer_data(r->out, r->ids, r->n * sizeof *r->ids, err, sizeof err);
    if (!bad) {
        bad = st_writer_commit(r->out, err, sizeof err);
        r->out = NULL; /* commit frees it, also on failure */
    }
    return bad ? complain(CMD_FAILED, "%s", err) : CMD_OK;
}

static int work(capture_run *r)
{
    char err[600];
    int code = output_check(r->out_path, r->model_path, "the model");
    if (code == CMD_OK)
        code = input_open_model(&r->in, r->model_path, &r->model);
    if (code == CMD_OK)
        code = input_ids(&r->in, r->model, &r->ids, &r->n);
    if (code == CMD_OK)
        code = plan(r);
    if (code == CMD_OK)
        code = input_context(&r->in, r->model, r->n, r->n, &r->ctx, &r->chunk);
    if (code != CMD_OK)
        return code;
    r->out = st_writer_create(r->out_path, err, sizeof err); /* before the long work */
    if (!r->out)
        return complain(CMD_FAILED, "%s", err);
    code = evaluate(r);
    return code == CMD_OK ? write_file(r) : code;
}

int cmd_capture(int argc, char **argv)
{
    int help = 0, code;
    capture_run r;
    memset(&r, 0, sizeof r);
    r.in.text_name = "text";
    r.requests = calloc((size_t)argc + 1, sizeof *r.requests);
    code = r.requests ? parse(&r, argc, argv, &help)
                      : complain(CMD_FAILED, "out of memory");
    if (code == CMD_OK && !help)
        code = work(&r);
    st_writer_abort(r.out);
    qsae_ctx_destroy(r.ctx);
    qsae_model_close(r.model);
    for (size_t i = 0; i < r.n_list; i++)
        free(r.list[i].rows);
    free(r.list);
    free(r.moved);
    free(r.ids);
    free(r.requests);
    return code;
}
