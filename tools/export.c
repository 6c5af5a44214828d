/* `qsae export`: an SAE, or edits of its features, in the formats of other programs. */

#include "export.h"
#include "cmd.h"
#include "output.h"

#include <stdlib.h>
#include <string.h>

/* clang-format off */
static const char usage[] =
    "Usage: qsae export SAE.qsae -o DIR --format saelens|npz [options]\n"
    "       qsae export SAE.qsae -o OUT.gguf --format control-vector --edit E... [options]\n"
    "Writes what others read; converting it back gives the same tensors. What a format\n"
    "cannot say is refused.\n"
    "\n"
    "  --format NAME     saelens         a folder that SAELens loads\n"
    "                    npz             DIR/params.npz with W_enc [d_in, d_sae], W_dec\n"
    "                                    [d_sae, d_out], b_enc, b_dec, threshold, as Gemma\n"
    "                                    Scope has them: relu and jumprelu\n"
    "                    control-vector  GGUF for llama.cpp's --control-vector: vectors\n"
    "                                    added to the output of layers 1, 2, ...\n"
    "  -o PATH           what to write; a folder must not exist yet, or be empty\n"
    "  --edit E          SITE.LAYER:FEATURE=add:VALUE, as for generate; may be repeated:\n"
    "                    edits of one layer add up\n"
    SAE_USAGE
    "  --no-verify       do not check the checksums of the weights\n"
    "  --help            this text\n";
/* clang-format on */

enum { OPT_FORMAT = OPT_OWN, OPT_EDIT, OPT_OUT };

static const args_option option_table[] = {
    SAE_OPTIONS,
    {"format", 0, OPT_FORMAT, ARGS_VALUE},
    {"edit", 0, OPT_EDIT, ARGS_VALUE | ARGS_MANY},
    {"no-verify", 0, OPT_NO_VERIFY, 0},
    {NULL, 'o', OPT_OUT, ARGS_VALUE},
    {NULL, 0, 0, 0},
};

static const struct {
    const char *name;
    int (*run)(export_run *r);
} formats[] = {
    {"saelens", export_saelens},
    {"npz", export_npz},
    {"control-vector", export_vector},
};

static int take_option(void *run, const args *a, int id)
{
    export_run *r = run;
    switch (id) {
    case OPT_FORMAT: r->format = a->value; return CMD_OK;
    case OPT_EDIT: return edit_parse(a->value, &r->edits[r->n_edits++]);
    case OPT_OUT: r->out_path = a->value; return CMD_OK;
    case OPT_NO_VERIFY: return input_take(&r->in, a, id);
    default: return sae_choice_take(&r->choice, a, id);
    }
}

static int check(const export_run *r)
{
    int vector = strcmp(r->format, "control-vector") == 0;
    if (vector && r->n_edits == 0)
        return complain(
            CMD_USAGE, "--format control-vector needs --edit SITE.LAYER:FEATURE=add:V");
    if (vector && (r->choice.site >= 0 || r->choice.layer >= 0))
        return complain(CMD_USAGE,
                        "--site and --layer have no place here: an --edit says "
                        "both itself");
    if (!vector && r->n_edits)
        return complain(CMD_USAGE, "--edit belongs to --format control-vector");
    if (vector && output_replaces(r->out_path, "GGUF", 4, "GGUF file") != CMD_OK)
        return CMD_FAILED;
    return output_check(r->out_path, r->sae_path, "the SAE");
}

static int run(export_run *r, int argc, char **argv)
{
    int help = 0;
    args a = args_begin(argc, argv, option_table, usage);
    const char **const slots[] = {&r->sae_path};
    int code = args_walk(&a, slots, 1, take_option, r, &help);
    if (code != CMD_OK || help)
        return code;
    if (!r->sae_path || !r->out_path || !r->format)
        return complain(CMD_USAGE, "export needs SAE.qsae, --format and -o (see: qsae "
                                   "export --help)");
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++) {
        if (strcmp(r->format, formats[i].name) != 0)
            continue;
        code = check(r);
        return code == CMD_OK ? formats[i].run(r) : code;
    }
    return complain(CMD_USAGE,
                    "--format: '%.60s' is none of saelens npz control-vector",
                    r->format);
}

int cmd_export(int argc, char **argv)
{
    export_run r;
    memset(&r, 0, sizeof r);
    r.choice = sae_choice_any();
    r.edits = calloc((size_t)argc + 1, sizeof *r.edits);
    int code = r.edits ? run(&r, argc, argv) : complain(CMD_FAILED, "out of memory");
    free(r.edits);
    return code;
}
