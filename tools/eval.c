/* `qsae eval`: how faithful SAEs are, by what they make of activations and by what the model
 * makes of their reconstructions (see eval.h). */

#define _POSIX_C_SOURCE 200809L

#include "eval.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "cmd.h"
#include "json.h"
#include "outfile.h"

#define SAVE_EVERY 64 /* sequences */
#define SEED       1

/* clang-format off */
static const char usage[] =
    "Usage: qsae eval MODEL.qsae SAE.qsae --data FILE|DIR[:WEIGHT]... -o DIR [options]\n"
    "       qsae eval --merge DIR -o DIR\n"
    "Measures every SAE of the file on a text: how much of the activations it explains,\n"
    "and how the model predicts with its reconstructions in their place. Writes eval.json\n"
    "(all numbers, with their formulas), eval.csv and report.html to the folder DIR.\n"
    "\n"
    "  --data FILE|DIR   .txt, or .jsonl with \"text\" or \"messages\"; with :WEIGHT a\n"
    "                    mixture; may be repeated\n"
    "  --text-field F    the member of a line of .jsonl that is the text\n"
    "  --special         recognise control tokens such as <|im_start|> in text\n"
    "  --tokens N        at most so many tokens; default all\n"
    "  --context N       longer documents are cut into sequences of N; default 512\n"
    "  -o DIR            the folder for the results; made if it is not there\n"
    "Only some of a file's SAEs:\n"
    "  --site S, --layer L, --name N    those that read this site, this layer, have this\n"
    "                    name\n"
    "More:\n"
    "  --controls random,pca    for every SAE also a random dictionary with as many\n"
    "                    active features for each token, and as many principal components\n"
    "                    of this text as it has active features on average\n"
    "  --joint site,all  also replace the rows of all SAEs of a site, or of all SAEs, at\n"
    "                    once: a much harder test, shown apart\n"
    "  --seed N          of the random dictionary and of the bootstrap; default 1\n"
    "Large runs:\n"
    "  --only I/N        slice I of N: some of the SAEs, to DIR/eval-I-of-N.json\n"
    "  --merge DIR       joins all slices in DIR: the same files as a run of the whole\n"
    "  --save-every N    the state is saved after so many sequences, and a run that was\n"
    "                    killed goes on from there; default 64\n"
    "  --threads N, --isa NAME, --no-verify    as everywhere; --help: this text\n"
    "\n"
    "The first token of a sequence, and those whose row is longer than 10 times the median\n"
    "(sinks), are left as they are and out of all metrics but those named \"all\".\n";
/* clang-format on */

enum {
    OPT_DATA = OPT_OWN,
    OPT_LIMIT,
    OPT_CONTEXT,
    OPT_OUT,
    OPT_FIELD,
    OPT_CONTROLS,
    OPT_JOINT,
    OPT_SEED,
    OPT_ONLY,
    OPT_MERGE,
    OPT_SAVE
};

static const args_option option_table[] = {
    {"data", 0, OPT_DATA, ARGS_VALUE | ARGS_MANY},
    {"text-field", 0, OPT_FIELD, ARGS_VALUE},
    {"special", 0, OPT_SPECIAL, 0},
    {"tokens", 0, OPT_LIMIT, ARGS_VALUE},
    {"context", 0, OPT_CONTEXT, ARGS_VALUE},
    {NULL, 'o', OPT_OUT, ARGS_VALUE},
    SAE_OPTIONS,
    {"controls", 0, OPT_CONTROLS, ARGS_VALUE},
    {"joint", 0, OPT_JOINT, ARGS_VALUE},
    {"seed", 0, OPT_SEED, ARGS_VALUE},
    {"only", 0, OPT_ONLY, ARGS_VALUE},
    {"merge", 0, OPT_MERGE, ARGS_VALUE},
    {"save-every", 0, OPT_SAVE, ARGS_VALUE},
    SAE_RUN_OPTIONS,
    {NULL, 0, 0, 0},
};

/* ------------------------------------------------------------------------ command line */

/* "a,b": the bits of the words. */
static int take_words(const args *a, const char *const words[2], int *bits)
{
    for (const char *s = a->value;;) {
        size_t n = strcspn(s, ",");
        int bit = 0;
        for (int i = 0; i < 2; i++)
            if (strlen(words[i]) == n && memcmp(s, words[i], n) == 0)
                bit = 1 << i;
        if (!bit || (*bits & bit))
            return complain(CMD_USAGE, "%s: '%.60s' is not %s, %s or %s,%s", a->option,
                            a->value, words[0], words[1], words[0], words[1]);
        *bits |= bit;
        if (!s[n])
            return CMD_OK;
        s += n + 1;
    }
}

static int take_slice(eval_options *o, const args *a)
{
    char first[24];
    const char *slash = strchr(a->value, '/');
    if (!slash || (size_t)(slash - a->value) >= sizeof first)
        return complain(CMD_USAGE, "--only: '%.60s' is not of the form 1/4", a->value);
    memcpy(first, a->value, (size_t)(slash - a->value));
    first[slash - a->value] = 0;
    int code = args_integer("--only", slash + 1, 1, 1000000, &o->n_slices);
    return code == CMD_OK ? args_integer("--only", first, 1, o->n_slices, &o->slice)
                          : code;
}

static int take_option(void *run, const args *a, int id)
{
    static const char *const controls[] = {"random", "pca"};
    static const char *const joints[] = {"site", "all"};
    eval_options *o = run;
    switch (id) {
    case OPT_DATA:
        if (o->n_data == CORPUS_MAX_SOURCES)
            return complain(CMD_USAGE, "--data more than %d times", CORPUS_MAX_SOURCES);
        o->data[o->n_data++] = a->value;
        return CMD_OK;
    case OPT_OUT: o->out = a->value; return CMD_OK;
    case OPT_MERGE: o->merge = a->value; return CMD_OK;
    case OPT_FIELD: o->text_field = a->value; return CMD_OK;
    case OPT_SPECIAL: o->special = 1; return CMD_OK;
    case OPT_CONTROLS: return take_words(a, controls, &o->controls);
    case OPT_JOINT: return take_words(a, joints, &o->joint);
    case OPT_ONLY: return take_slice(o, a);
    case OPT_SEED: return args_unsigned(a->option, a->value, &o->seed);
    case OPT_LIMIT: return args_integer(a->option, a->value, 2, INT64_MAX, &o->tokens);
    case OPT_CONTEXT: return args_integer(a->option, a->value, 2, 1 << 20, &o->context);
    case OPT_SAVE:
        return args_integer(a->option, a->value, 1, INT64_MAX, &o->save_every);
    case OPT_SITE:
    case OPT_LAYER:
    case OPT_NAME: return sae_choice_take(&o->choice, a, id);
    default: return input_take(&o->in, a, id);
    }
}

static int parse(eval_options *o, int argc, char **argv, int *help)
{
    args a = args_begin(argc, argv, option_table, usage);
    const char **const slots[] = {&o->model, &o->sae};
    int code = args_walk(&a, slots, 2, take_option, o, help);
    if (code != CMD_OK || *help)
        return code;
    if (!o->out)
        return complain(CMD_USAGE, "-o DIR is needed (see: qsae eval --help)");
    if (o->merge)
        return o->model || o->n_data || o->n_slices
                   ? complain(CMD_USAGE, "--merge DIR takes only -o DIR")
                   : CMD_OK;
    if (!o->sae)
        return complain(CMD_USAGE,
                        "eval needs MODEL.qsae and SAE.qsae (see: qsae eval --help)");
    if (!o->n_data)
        return complain(CMD_USAGE, "--data FILE or DIR is needed: the text");
    return CMD_OK;
}

/* ------------------------------------------------------------------------------- output */

static int make_folder(const char *path)
{
    struct stat st;
    if (mkdir(path, 0777) == 0)
        return CMD_OK;
    if (errno != EEXIST)
        return complain(CMD_FAILED, "-o %.300s: %s", path, strerror(errno));
    if (stat(path, &st) || !S_ISDIR(st.st_mode))
        return complain(CMD_FAILED, "-o %.300s is not a folder", path);
    return CMD_OK;
}

/* Results that are there: *done if they are of these settings; of others they are not
 * replaced. */
static int look_for_results(const eval *e, int *done)
{
    char path[4096], err[ERR_CAP], *text;
    size_t len;
    eval_path(e, "json", path, sizeof path);
    FILE *f = fopen(path, "rb");
    if (!f)
        return errno == ENOENT
                   ? CMD_OK
                   : complain(CMD_FAILED, "%.300s: %s", path, strerror(errno));
    fclose(f);
    int code = eval_read(path, &text, &len);
    if (code != CMD_OK)
        return code;
    json_doc *doc = json_parse(text, len, err, sizeof err);
    const json_value *v = doc ? json_get(doc, json_root(doc), "settings") : NULL;
    char mine[17];
    snprintf(mine, sizeof mine, "%016llx", (unsigned long long)e->fingerprint);
    *done = v && v->type == JSON_STRING && strcmp(v->str, mine) == 0;
    json_free(doc);
    free(text);
    if (!*done)
        return complain(
            CMD_FAILED,
            "%.300s is of other settings, or of other files: choose another "
            "folder with -o, or delete it",
            path);
    return CMD_OK;
}

static int write_slice(const eval *e, const char *text, size_t len)
{
    char path[4096], err[ERR_CAP];
    eval_path(e, "json", path, sizeof path);
    outfile *out = outfile_create(path, err, sizeof err);
    if (out && outfile_write(out, text, len, err, sizeof err) == 0) {
        if (outfile_commit(out, err, sizeof err) == 0)
            return CMD_OK;
    } else {
        outfile_abort(out);
    }
    return complain(CMD_FAILED, "%s", err);
}

static int write_results(eval *e)
{
    size_t len = 0;
    char *text = eval_json(e, &len);
    int code;
    if (!text)
        return complain(CMD_FAILED, "out of memory for the results");
    if (e->o->n_slices)
        code = write_slice(e, text, len);
    else
        code = eval_finish(e->o->out, &text, &len, 1);
    free(text);
    return code == CMD_OK ? eval_state_remove(e) : code;
}

static int work(eval *e, const eval_options *o)
{
    int done = 0;
    int code = eval_plan(e, o);
    if (code == CMD_OK)
        code = make_folder(o->out);
    if (code == CMD_OK)
        code = look_for_results(e, &done);
    if (code == CMD_OK && done) {
        printf("%s has the results of these settings\n", o->out);
        return CMD_OK;
    }
    if (code == CMD_OK)
        code = eval_run(e);
    if (code == CMD_OK)
        code = write_results(e);
    return code;
}

int cmd_eval(int argc, char **argv)
{
    int help = 0;
    eval_options o;
    eval e;
    memset(&o, 0, sizeof o);
    memset(&e, 0, sizeof e);
    o.choice = sae_choice_any();
    o.seed = SEED;
    o.save_every = SAVE_EVERY;
    int code = parse(&o, argc, argv, &help);
    if (code != CMD_OK || help)
        return code;
    if (o.merge) {
        code = make_folder(o.out);
        return code == CMD_OK ? eval_merge(&o) : code;
    }
    code = work(&e, &o);
    eval_free(&e);
    return code;
}
