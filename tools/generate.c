/* `qsae generate`: continues a text or answers a chat, with SAE features edited if
   asked. */

#include "cmd.h"
#include "edit.h"
#include "sae_choice.h"

#include <float.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
static const char usage[] =
    "Usage: qsae generate MODEL.qsae (--prompt T | --tokens 1,2,3 | --chat T)\n"
    "                     [options]\n"
    "Prints the continuation as it comes, until an end token or -n tokens.\n"
    "\n"
    INPUT_USAGE("prompt")
    "Choosing tokens:\n"
    "  -n N              at most N tokens; default 256\n"
    "  --temp X          temperature; default 0: always the most likely token\n"
    "  --top-k K         sample among the K most likely (0: all)\n"
    "  --top-p P         ... among the most likely that together have probability P\n"
    "  --min-p P         ... among those at least P times as likely as the first\n"
    "  --seed S          the same seed gives the same text; default 0\n"
    "  --preset NAME     thinking (temperature 0.6, top-p 0.95, top-k 20) or\n"
    "                    non-thinking (0.7, 0.8, 20), as recommended for Qwen3, or greedy;\n"
    "                    the options above change single settings of it\n"
    "  --repetition-penalty R  divide the logits of tokens that occurred by R (multiply\n"
    "                    those below 0); default 1\n"
    "  --presence-penalty X    subtract X from the logits of tokens generated before\n"
    "Steering, on every token of prompt and continuation:\n"
    "  --sae FILE        an SAE whose features can be edited; may be repeated\n"
    "  --name N          of the SAE file before it, only the member of this name\n"
    "  --edit E          SITE.LAYER:FEATURE=OP:VALUE, such as resid_post.2:317=set:0;\n"
    "                    may be repeated: edits act in the order given. OP is one of\n"
    "                      add    add VALUE times the feature's direction\n"
    "                      set    make the feature VALUE\n"
    "                      scale  multiply it by VALUE\n"
    "                      min    make it at least VALUE\n"
    "                      max    make it at most VALUE\n"
    "                    SITE.LAYER is where the SAE reads; an edit of a transcoder's\n"
    "                    feature changes the site that it writes\n"
    RUN_USAGE;
/* clang-format on */

enum {
    OPT_N = OPT_OWN,
    OPT_TEMP,
    OPT_TOP_K,
    OPT_TOP_P,
    OPT_MIN_P,
    OPT_SEED,
    OPT_PRESET,
    OPT_REPETITION,
    OPT_PRESENCE,
    OPT_SAE,
    OPT_EDIT
};

static const args_option option_table[] = {
    INPUT_OPTIONS("prompt"),
    {NULL, 'n', OPT_N, ARGS_VALUE},
    {"temp", 0, OPT_TEMP, ARGS_VALUE},
    {"top-k", 0, OPT_TOP_K, ARGS_VALUE},
    {"top-p", 0, OPT_TOP_P, ARGS_VALUE},
    {"min-p", 0, OPT_MIN_P, ARGS_VALUE},
    {"seed", 0, OPT_SEED, ARGS_VALUE},
    {"preset", 0, OPT_PRESET, ARGS_VALUE},
    {"repetition-penalty", 0, OPT_REPETITION, ARGS_VALUE},
    {"presence-penalty", 0, OPT_PRESENCE, ARGS_VALUE},
    {"sae", 0, OPT_SAE, ARGS_VALUE | ARGS_MANY},
    {"name", 0, OPT_NAME, ARGS_VALUE | ARGS_MANY},
    {"edit", 0, OPT_EDIT, ARGS_VALUE | ARGS_MANY},
    {NULL, 0, 0, 0},
};

typedef struct sae_file {
    const char *path, *name;
} sae_file;

/* One --edit, and the SAE it acts on: `sae` is one of the run's, shared by edits of
   one place. */
typedef struct edit_request {
    edit_text e;
    const char *path; /* of the file that sae is from */
    qsae_sae *sae;
    uint32_t row; /* of the feature, in sae */
    int owns;     /* closes sae */
} edit_request;

typedef struct generate_run {
    input in;
    const char *model_path;
    int32_t n;
    int has_temp, has_top_k, has_top_p; /* given as options of their own */
    const char *sampling; /* an option that is useless without --temp, or NULL */
    const char *preset;   /* NULL: none */
    qsae_sample_options sample;
    sae_file *files; /* [n_files] */
    edit_request *edits;
    size_t n_files, n_edits;
    qsae_model *model;
    qsae_ctx *ctx;
    int32_t *ids;
    size_t n_prompt;
    void *scratch;
} generate_run;

/* --------------------------------------------------------------------------- edits */

/* Looks for the place of an edit in one file: counts what fits, opens the first, and
   lists what there is. */
static int search_file(generate_run *r, edit_request *e, const sae_file *file,
                       uint32_t *n_fit, char *there, char *fitting, size_t cap)
{
    qread q;
    sae_choice choice = {e->e.site, e->e.layer, file->name}, any = {-1, -1, file->name};
    int code = sae_index(&r->in, file->path, &q);
    if (code != CMD_OK)
        return code;
    uint32_t here = sae_choice_count(&q, &choice), i = 0;
    sae_choice_list(&q, &any, there, cap);
    sae_choice_list(&q, &choice, fitting, cap);
    while (here && !sae_choice_fits(&q, i, &choice))
        i++;
    if (here && *n_fit == 0) {
        code = sae_open_member(&r->in, file->path, i, &e->sae);
        e->owns = code == CMD_OK;
        e->path = file->path;
    }
    *n_fit += here;
    qread_close(&q);
    return code;
}

/* Finds the one SAE that reads the place of an edit, among all files given. */
static int open_edit_sae(generate_run *r, edit_request *e)
{
    char there[400] = "", fitting[400] = "";
    uint32_t n_fit = 0;
    for (size_t f = 0; f < r->n_files; f++) {
        int code =
            search_file(r, e, &r->files[f], &n_fit, there, fitting, sizeof there);
        if (code != CMD_OK)
            return code;
    }
    if (n_fit == 0)
        return complain(CMD_FAILED,
                        "--edit '%.100s': no SAE given reads %s of layer %d%s%s",
                        e->e.text, qsae_site_name((qsae_site)e->e.site), e->e.layer,
                        *there ? "; there are " : "", there);
    if (n_fit > 1)
        return complain(
            CMD_FAILED,
            "--edit '%.100s': %u SAEs given read %s of layer %d; choose with "
            "--name: %s",
            e->e.text, (unsigned)n_fit, qsae_site_name((qsae_site)e->e.site),
            e->e.layer, fitting);
    return sae_check_model(e->path, e->sae, r->model);
}

/* Without an edit the files are not needed; one that cannot be opened is an error
   all the same. */
static int try_files(generate_run *r)
{
    for (size_t f = 0; f < r->n_files; f++) {
        sae_choice choice = {-1, -1, r->files[f].name};
        qsae_sae *sae = NULL;
        qread q;
        int code = sae_index(&r->in, r->files[f].path, &q);
        if (code != CMD_OK)
            return code;
        uint32_t n_fit = sae_choice_count(&q, &choice), i = 0;
        while (n_fit == 1 && !sae_choice_fits(&q, i, &choice))
            i++;
        qread_close(&q);
        if (n_fit == 1)
            code = sae_open_member(&r->in, r->files[f].path, i, &sae);
        qsae_sae_close(sae);
        if (code != CMD_OK)
            return code;
    }
    return CMD_OK;
}

/* The row of the edit's feature in its SAE. */
static int find_feature(edit_request *e)
{
    char what[140];
    sae_numbers numbers;
    qsae_sae_info info;
    qsae_sae_get_info(e->sae, &info);
    int code = sae_numbers_read(e->path, &info, &numbers);
    if (code != CMD_OK)
        return code;
    snprintf(what, sizeof what, "--edit '%.100s'", e->e.text);
    if (!sae_row(&numbers, e->e.feature, &e->row))
        code = sae_complain_number(&numbers, what, e->e.feature);
    sae_numbers_free(&numbers);
    return code;
}

static int open_saes(generate_run *r)
{
    if (r->n_edits == 0)
        return try_files(r);
    for (size_t i = 0; i < r->n_edits; i++) {
        edit_request *e = &r->edits[i];
        for (size_t k = 0; k < i && !e->sae; k++) {
            if (r->edits[k].e.site != e->e.site || r->edits[k].e.layer != e->e.layer)
                continue;
            e->sae = r->edits[k].sae;
            e->path = r->edits[k].path;
        }
        int code = e->sae ? CMD_OK : open_edit_sae(r, e);
        if (code == CMD_OK)
            code = find_feature(e);
        if (code != CMD_OK)
            return code;
    }
    return CMD_OK;
}

static int set_edits(generate_run *r)
{
    qsae_error err;
    if (r->n_edits == 0)
        return CMD_OK;
    qsae_edit *list = calloc(r->n_edits, sizeof *list);
    if (!list)
        return complain(CMD_FAILED, "out of memory for %zu edits", r->n_edits);
    for (size_t i = 0; i < r->n_edits; i++)
        list[i] = qsae_edit_feature(r->edits[i].sae, r->edits[i].row,
                                    r->edits[i].e.kind, r->edits[i].e.value);
    qsae_status s = qsae_set_edits(r->ctx, list, r->n_edits, &err);
    free(list);
    return s == QSAE_OK ? CMD_OK : complain_library(NULL, &err);
}

/* -------------------------------------------------------------------- command line */

static int take_sampling(generate_run *r, const args *a, int id)
{
    int64_t k;
    int code;
    if (id == OPT_TEMP) {
        r->has_temp = 1;
        return args_real(a->option, a->value, 0, 1e6, &r->sample.temperature);
    }
    if (id == OPT_SEED)
        return args_unsigned(a->option, a->value, &r->sample.seed);
    if (id == OPT_PRESET) {
        r->preset = a->value;
        return CMD_OK;
    }
    if (id == OPT_REPETITION)
        return args_real(a->option, a->value, 1e-3, 1e3, &r->sample.repetition_penalty);
    if (id == OPT_PRESENCE)
        return args_real(a->option, a->value, -100, 100, &r->sample.presence_penalty);
    r->has_top_k |= id == OPT_TOP_K;
    r->has_top_p |= id == OPT_TOP_P;
    r->sampling = id == OPT_TOP_K ? "--top-k" : id == OPT_TOP_P ? "--top-p" : "--min-p";
    if (id == OPT_TOP_P) {
        code = args_real(a->option, a->value, 0, 1, &r->sample.top_p);
        if (code == CMD_OK && r->sample.top_p == 0.0f)
            r->sample.top_p = FLT_MIN; /* the most likely alone; 0 is the default, 1 */
        return code;
    }
    if (id == OPT_MIN_P)
        return args_real(a->option, a->value, 0, 1, &r->sample.min_p);
    code = args_integer(a->option, a->value, 0, INT32_MAX, &k);
    if (code == CMD_OK)
        r->sample.top_k = (int32_t)k;
    return code;
}

/* The settings of the preset, where no option gave another. */
static int apply_preset(generate_run *r)
{
    for (int i = 0; r->preset && i < QSAE_PRESET_COUNT; i++) {
        if (strcmp(r->preset, qsae_preset_name((qsae_preset)i)) != 0)
            continue;
        qsae_sample_options o = qsae_preset_options((qsae_preset)i);
        if (!r->has_temp)
            r->sample.temperature = o.temperature;
        if (!r->has_top_k)
            r->sample.top_k = o.top_k;
        if (!r->has_top_p)
            r->sample.top_p = o.top_p;
        r->has_temp |= o.temperature > 0;
        return CMD_OK;
    }
    if (!r->preset)
        return CMD_OK;
    return complain(CMD_USAGE,
                    "--preset: '%.60s' is none of greedy thinking non-thinking",
                    r->preset);
}

static int take_option(void *run, const args *a, int id)
{
    generate_run *r = run;
    int64_t n;
    int code;
    switch (id) {
    case OPT_N:
        code = args_integer(a->option, a->value, 0, INT32_MAX, &n);
        if (code == CMD_OK)
            r->n = (int32_t)n;
        return code;
    case OPT_TEMP:
    case OPT_TOP_K:
    case OPT_TOP_P:
    case OPT_MIN_P:
    case OPT_SEED:
    case OPT_PRESET:
    case OPT_REPETITION:
    case OPT_PRESENCE: return take_sampling(r, a, id);
    case OPT_SAE: r->files[r->n_files++].path = a->value; return CMD_OK;
    case OPT_NAME:
        if (r->n_files == 0 || r->files[r->n_files - 1].name)
            return complain(CMD_USAGE, "--name belongs to the --sae before it, once");
        r->files[r->n_files - 1].name = a->value;
        return CMD_OK;
    case OPT_EDIT: return edit_parse(a->value, &r->edits[r->n_edits++].e);
    default: return input_take(&r->in, a, id);
    }
}

static int parse(generate_run *r, int argc, char **argv, int *help)
{
    args a = args_begin(argc, argv, option_table, usage);
    const char **const slots[] = {&r->model_path};
    int code = args_walk(&a, slots, 1, take_option, r, help);
    if (code != CMD_OK || *help)
        return code;
    if (!r->model_path)
        return complain(CMD_USAGE,
                        "generate needs MODEL.qsae (see: qsae generate --help)");
    code = apply_preset(r);
    if (code != CMD_OK)
        return code;
    if (r->sampling && !r->has_temp)
        return complain(CMD_USAGE,
                        "%s needs --temp: without it the most likely token is taken",
                        r->sampling);
    return input_check(&r->in);
}

/* ---------------------------------------------------------------------- generation */

/* Bytes that are printed as soon as they are whole characters. */
typedef struct stream {
    char *bytes;
    size_t n, cap;
} stream;

static int stream_add(stream *s, const char *text, size_t len)
{
    if (len > s->cap - s->n) {
        size_t cap = s->n + len + 256;
        char *bytes = realloc(s->bytes, cap);
        if (!bytes)
            return complain(CMD_FAILED, "out of memory for the text of a token");
        s->bytes = bytes;
        s->cap = cap;
    }
    if (len)
        memcpy(s->bytes + s->n, text, len);
    s->n += len;
    size_t whole = s->n ? qsae_utf8_complete(s->bytes, s->n) : 0;
    if (whole == 0)
        return CMD_OK;
    fwrite(s->bytes, 1, whole, stdout);
    memmove(s->bytes, s->bytes + whole, s->n - whole);
    s->n -= whole;
    return fflush(stdout) == 0 ? CMD_OK : finish_stdout();
}

static int is_end(const qsae_model_info *info, int32_t id)
{
    for (int32_t i = 0; i < info->n_eos; i++)
        if (info->eos[i] == id)
            return 1;
    return 0;
}

/* The next token, given all those before it. */
static qsae_status next_token(generate_run *r, size_t vocab_size, size_t scratch,
                              int32_t *id, qsae_error *err)
{
    int32_t pos = qsae_ctx_pos(r->ctx);
    r->sample.history = qsae_ctx_tokens(r->ctx);
    r->sample.n_history = (size_t)pos;
    r->sample.n_prompt = r->n_prompt;
    return qsae_sample(qsae_logits(r->ctx), vocab_size, &r->sample, (uint64_t)pos,
                       r->scratch, scratch, id, err);
}

static int continue_text(generate_run *r, stream *out)
{
    qsae_error err;
    qsae_model_info info;
    qsae_model_get_info(r->model, &info);
    if (info.n_tokens == 0)
        return complain(CMD_FAILED, "%.200s has no tokenizer: its tokens have no text",
                        r->model_path);
    size_t scratch = qsae_sample_scratch_size((size_t)info.vocab_size);
    r->scratch = malloc(scratch ? scratch : 1);
    if (!r->scratch)
        return complain(CMD_FAILED, "out of memory for sampling");
    for (int32_t i = 0; i < r->n; i++) {
        int32_t id;
        size_t len;
        if (next_token(r, (size_t)info.vocab_size, scratch, &id, &err) != QSAE_OK)
            return complain_library(NULL, &err);
        if (is_end(&info, id))
            break;
        const char *text = qsae_token_text(r->model, id, &len);
        int code = stream_add(out, text, text ? len : 0);
        if (code != CMD_OK)
            return code;
        if (i + 1 < r->n && qsae_eval(r->ctx, &id, 1, &err) != QSAE_OK)
            return complain_library(NULL, &err);
    }
    return CMD_OK;
}

static int work(generate_run *r)
{
    qsae_error err;
    size_t n, chunk;
    int code = input_open_model(&r->in, r->model_path, &r->model);
    if (code == CMD_OK)
        code = open_saes(r);
    if (code == CMD_OK)
        code = input_ids(&r->in, r->model, &r->ids, &n);
    if (code == CMD_OK)
        code = input_context(&r->in, r->model, n + (size_t)r->n, n, &r->ctx, &chunk);
    if (code == CMD_OK)
        code = set_edits(r);
    if (code != CMD_OK)
        return code;
    for (size_t done = 0; done < n; done += chunk) {
        size_t part = n - done < chunk ? n - done : chunk;
        if (qsae_eval(r->ctx, r->ids + done, part, &err) != QSAE_OK)
            return complain_library(NULL, &err);
    }
    stream out = {NULL, 0, 0};
    r->n_prompt = n;
    code = continue_text(r, &out);
    if (out.n)
        fwrite(out.bytes, 1, out.n, stdout); /* what never became a whole character */
    putchar('\n');
    fflush(stdout);
    free(out.bytes);
    return code;
}

int cmd_generate(int argc, char **argv)
{
    int help = 0, code;
    generate_run r;
    memset(&r, 0, sizeof r);
    r.in.text_name = "prompt";
    r.n = 256;
    r.files = calloc((size_t)argc,
                     sizeof *r.files); /* no list is longer than the command line */
    r.edits = calloc((size_t)argc, sizeof *r.edits);
    if (!r.files || !r.edits)
        code = complain(CMD_FAILED, "out of memory");
    else
        code = parse(&r, argc, argv, &help);
    if (code == CMD_OK && !help)
        code = work(&r);
    qsae_ctx_destroy(r.ctx); /* before the SAEs that its edits name */
    for (size_t i = 0; i < r.n_edits; i++)
        if (r.edits[i].owns)
            qsae_sae_close(r.edits[i].sae);
    qsae_model_close(r.model);
    free(r.files);
    free(r.edits);
    free(r.ids);
    free(r.scratch);
    return code;
}
