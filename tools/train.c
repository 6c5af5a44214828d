/* `qsae train`: sparse autoencoders from a model and a text (see train.h). */

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include "train.h"
#include "cmd.h"
#include "export.h"
#include "qread.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* clang-format off */
static const char usage[] =
    "Usage: qsae train MODEL.qsae --data FILE|DIR[:WEIGHT]... --sites S,... --layers L\n"
    "                  --width N --l0 T[,T2...] [options] -o DIR\n"
    "       qsae train --from HARVEST --sites S,... --layers L --width N --l0 T -o DIR\n"
    "Trains sparse autoencoders, all side by side on one reading of the text, and writes\n"
    "them as DIR/suite.qsae; DIR/log.jsonl has a line per SAE and --log-every steps.\n"
    "\n"
    "What is trained:\n"
    "  --sites S,...     resid_pre attn_z attn_out resid_mid mlp_input mlp_out resid_post\n"
    "  --pairs A:B,...   transcoders that read A and predict B, such as mlp_input:mlp_out\n"
    "  --layers L        0-27, or 3,5, or all\n"
    "  --width N         features of each SAE\n"
    "  --l0 T[,T2...]    features active on a token; several: an SAE for each\n"
    "  --arch A          jumprelu (default), topk, batchtopk, matryoshka\n"
    "  --prefixes N,...  matryoshka: sizes of the nested SAEs; default width / 16, / 4, / 1\n"
    "The text (.txt, or .jsonl with \"text\" or \"messages\"):\n"
    "  --data PATH[:W]   a file or folder, with its weight in the mixture; may be repeated\n"
    "  --from DIR        rows that `qsae harvest` wrote, and no model\n"
    "  --tokens N        rows each SAE is trained on; default one reading of the text. More\n"
    "                    than the text has: it is read again\n"
    "  --context N       tokens the model sees at once; default 1024, or what it can\n"
    "  --text-field F    of a line of JSON; --special: control tokens in texts are tokens\n"
    "  --skip-first N    tokens at the beginning of a sequence that are left out; default 1\n"
    "  --exclude X,...   token ids, or classes (text system user assistant template)\n"
    "  --norm-ratio R    rows longer than R times the median are left out (attention sinks);\n"
    "                    default 10; 0: none\n"
    "  --buffer ROWS     rows that are mixed; default 65536\n"
    "  --buffer-file F   mixed in a file, of --buffer rows or --buffer-size BYTES\n"
    "Training. Rows are scaled to a mean square of 1; every default is in README.md:\n"
    "  --batch N         rows of a step; default 2048\n"
    "  --lr X            default 2e-4; 7e-5 from 100 million tokens on\n"
    "  --lr-warmup N     steps; default 1000, at most a tenth; --lr-cosine: along a cosine\n"
    "  --lr-decay N      last steps, over which it falls to 0; default a fifth of all\n"
    "  --beta1 B --beta2 B --adam-eps E     default 0, 0.999, 1e-8\n"
    "  --clip X          largest gradient norm; default 0: none\n"
    "  --sparsity S      jumprelu: target (default) step quadratic tanh\n"
    "  --l0-coefficient X      default 1; needed for step and tanh, which take no --l0\n"
    "  --l0-warmup N     steps; default 5000, at most a tenth\n"
    "  --bandwidth X --threshold X          jumprelu: default 0.001, 0.001\n"
    "  --tanh-scale X --pre-act X --ste-to-input   jumprelu: as SAELens has them\n"
    "  --aux X           topk kinds: weight of the loss of dead features; default 1/32\n"
    "  --dead-tokens N   a feature is dead after N rows without it; default 10 million, at\n"
    "                    most a tenth of all\n"
    "  --no-rescale      topk kinds: select by z, not by z times the decoder's norm\n"
    "  --free-decoder    decoder rows need not have norm 1; --decoder-norm X: at the start\n"
    "  --no-pre-bias     the encoder reads x, not x - b_dec\n"
    "  --b-dec zero      start b_dec at 0; default the mean of the first rows\n"
    "  --seed N          default 0\n"
    "Running:\n"
    "  --checkpoint-every M    minutes; default 15; 0: only when stopped\n"
    "  --resume          go on from DIR's checkpoint, or begin if it has none\n"
    "  --keep-checkpoint when all is done, too\n"
    "  --only I/N        slice I of N, whole layers (--from: whole SAEs); `qsae merge` joins\n"
    "                    DIR/suite-I-of-N.qsae to what one run makes, bit for bit\n"
    "  --plan            measure and calculate memory, disk and time, and do no more\n"
    "  --export          also DIR/saelens/NAME, folders that SAELens reads\n"
    "  --force           replace what a run before left in DIR\n"
    "  --log-every N     steps; default 100\n"
    "  --threads N       default all processors, 1 where there is little to do; no bit depends\n"
    "                    on it, nor on --isa NAME and --no-screen\n"
    "  --no-verify       do not check the checksums of the model\n"
    "  --help            this text\n"
    "Interrupted (SIGINT, SIGTERM) it writes a checkpoint and exits with code 3. A run that\n"
    "was stopped or killed at any moment and resumed makes the same bits as one that was not.\n";
/* clang-format on */

enum {
    OPT_DATA = OPT_OWN,
    OPT_FROM,
    OPT_SITES,
    OPT_PAIRS,
    OPT_LAYERS,
    OPT_L0,
    OPT_ARCH,
    OPT_PREFIXES,
    OPT_TEXT_FIELD,
    OPT_EXCLUDE,
    OPT_BUFFER_FILE,
    OPT_SPARSITY,
    OPT_B_DEC,
    OPT_ONLY,
    OPT_OUT,
    OPT_FLAGS,
    OPT_NUMBERS = OPT_FLAGS + 16
};

/* Options that only set a number or a flag. */
static const struct number {
    const char *name;
    char kind; /* u: uint64_t, i: int64_t, f: float, z: size_t */
    size_t at;
    double min, max;
} numbers[] = {
#define S(field) offsetof(train_settings, field)
    {"width", 'z', S(base.d_sae), 1, 1 << 24},
    {"tokens", 'u', S(tokens), 1, 1e18},
    {"context", 'u', S(context), 2, 65536},
    {"batch", 'u', S(batch), 1, 1 << 20},
    {"buffer", 'u', S(buffer), 1, 4e9},
    {"buffer-size", 'u', S(buffer_size), 1, 1e18},
    {"skip-first", 'u', S(skip_first), 0, 65536},
    {"norm-ratio", 'f', S(norm_ratio), 0, 1e30},
    {"lr", 'f', S(base.lr), 1e-30, 1e3},
    {"lr-warmup", 'i', S(lr_warmup), 0, 1e15},
    {"lr-decay", 'i', S(lr_decay), 0, 1e15},
    {"l0-warmup", 'i', S(l0_warmup), 0, 1e15},
    {"beta1", 'f', S(base.beta1), 0, 0.999999},
    {"beta2", 'f', S(base.beta2), 0, 0.9999999},
    {"adam-eps", 'f', S(base.eps), 1e-30, 1},
    {"clip", 'f', S(base.clip), 0, 1e30},
    {"l0-coefficient", 'f', S(base.l0_coefficient), 0, 1e9},
    {"bandwidth", 'f', S(base.bandwidth), 1e-12, 1e6},
    {"threshold", 'f', S(base.threshold_init), 1e-12, 1e6},
    {"tanh-scale", 'f', S(base.tanh_scale), 1e-6, 1e6},
    {"pre-act", 'f', S(base.pre_act_coefficient), 0, 1e6},
    {"aux", 'f', S(base.aux_coefficient), 0, 1e6},
    {"dead-tokens", 'u', S(dead_tokens), 1, 1e18},
    {"decoder-norm", 'f', S(base.decoder_norm), 1e-6, 1e6},
    {"seed", 'u', S(seed), 0, 1.8e19},
    {"checkpoint-every", 'f', S(checkpoint_minutes), 0, 1e6},
    {"log-every", 'u', S(log_every), 1, 1e15},
};

static const struct flag {
    const char *name;
    size_t at;
    int value;
} flags[] = {
    {"special", S(special), 1},
    {"lr-cosine", S(base.lr_cosine), 1},
    {"ste-to-input", S(base.ste_to_input), 1},
    {"no-rescale", S(base.no_rescale), 1},
    {"free-decoder", S(base.unit_decoder), 0},
    {"no-pre-bias", S(base.no_b_dec_input), 1},
    {"no-screen", S(base.no_screen), 1},
    {"resume", S(resume), 1},
    {"keep-checkpoint", S(keep_checkpoint), 1},
    {"plan", S(plan), 1},
    {"export", S(export), 1},
    {"force", S(force), 1},
#undef S
};

enum {
    N_NUMBERS = (int)(sizeof numbers / sizeof numbers[0]),
    N_FLAGS = (int)(sizeof flags / sizeof flags[0])
};

static const args_option own_options[] = {
    {"data", 0, OPT_DATA, ARGS_VALUE | ARGS_MANY},
    {"from", 0, OPT_FROM, ARGS_VALUE},
    {"sites", 0, OPT_SITES, ARGS_VALUE},
    {"pairs", 0, OPT_PAIRS, ARGS_VALUE},
    {"layers", 0, OPT_LAYERS, ARGS_VALUE},
    {"l0", 0, OPT_L0, ARGS_VALUE},
    {"arch", 0, OPT_ARCH, ARGS_VALUE},
    {"prefixes", 0, OPT_PREFIXES, ARGS_VALUE},
    {"text-field", 0, OPT_TEXT_FIELD, ARGS_VALUE},
    {"exclude", 0, OPT_EXCLUDE, ARGS_VALUE},
    {"buffer-file", 0, OPT_BUFFER_FILE, ARGS_VALUE},
    {"sparsity", 0, OPT_SPARSITY, ARGS_VALUE},
    {"b-dec", 0, OPT_B_DEC, ARGS_VALUE},
    {"only", 0, OPT_ONLY, ARGS_VALUE},
    {"out", 'o', OPT_OUT, ARGS_VALUE},
    {"threads", 0, OPT_THREADS, ARGS_VALUE},
    {"isa", 0, OPT_ISA, ARGS_VALUE},
    {"no-verify", 0, OPT_NO_VERIFY, 0},
};

enum { N_OWN = (int)(sizeof own_options / sizeof own_options[0]) };

/* --------------------------------------------------------------------- command line */

static const char *const arch_names[] = {"jumprelu", "topk", "batchtopk", "matryoshka"};
static const char *const sparsity_names[] = {"step", "target", "quadratic", "tanh"};

static int take_number(train_settings *s, const struct number *n, const args *a)
{
    void *to = (char *)s + n->at;
    int64_t v;
    if (n->kind == 'f')
        return args_real(a->option, a->value, n->min, n->max, to);
    if (strcmp(n->name, "seed") == 0)
        return args_unsigned(a->option, a->value, to);
    int code = args_integer(a->option, a->value, (int64_t)n->min, (int64_t)n->max, &v);
    if (code != CMD_OK)
        return code;
    if (n->kind == 'z')
        *(size_t *)to = (size_t)v;
    else
        memcpy(to, &v, sizeof v); /* what is unsigned has min >= 0 */
    return CMD_OK;
}

static int choose(const args *a, const char *const *names, int n, int *out)
{
    for (int i = 0; i < n; i++)
        if (strcmp(a->value, names[i]) == 0) {
            *out = i;
            return CMD_OK;
        }
    return complain(CMD_USAGE, "%s: '%.60s' is none of %s %s %s %s", a->option,
                    a->value, names[0], names[1], names[2], names[3]);
}

static int take_targets(train_settings *s, const args *a)
{
    const char *list = a->value;
    char item[32];
    int got;
    while ((got = places_item(&list, item, sizeof item)) == 1) {
        float v;
        if (s->n_targets == TRAIN_MAX_TARGETS)
            return complain(CMD_USAGE, "--l0: more than %d", TRAIN_MAX_TARGETS);
        int code = args_real("--l0", item, 1e-3, 1 << 24, &v);
        if (code != CMD_OK)
            return code;
        for (size_t i = 0; i < s->n_targets; i++)
            if (s->targets[i] == (double)v)
                return complain(CMD_USAGE, "--l0: %g is there twice", (double)v);
        s->targets[s->n_targets++] = (double)v;
    }
    return got < 0 ? places_bad_list(a, "numbers") : CMD_OK;
}

static int take_prefixes(train_settings *s, const args *a)
{
    const char *list = a->value;
    char item[32];
    int got;
    while ((got = places_item(&list, item, sizeof item)) == 1) {
        int64_t v;
        if (s->n_prefixes == sizeof s->prefixes / sizeof s->prefixes[0])
            return complain(CMD_USAGE, "--prefixes: too many");
        int code = args_integer("--prefixes", item, 1, 1 << 24, &v);
        if (code != CMD_OK)
            return code;
        s->prefixes[s->n_prefixes++] = (size_t)v;
    }
    return got < 0 ? places_bad_list(a, "numbers") : CMD_OK;
}

static int take_only(train_settings *s, const args *a)
{
    const char *slash = strchr(a->value, '/');
    char first[24];
    int64_t i, n;
    if (!slash || slash - a->value >= (int)sizeof first)
        return complain(CMD_USAGE, "--only: '%.60s' is not I/N", a->value);
    snprintf(first, sizeof first, "%.*s", (int)(slash - a->value), a->value);
    int code = args_integer("--only", slash + 1, 1, 65536, &n);
    if (code == CMD_OK)
        code = args_integer("--only", first, 1, n, &i);
    if (code != CMD_OK)
        return code;
    s->slice = (uint64_t)i;
    s->n_slices = (uint64_t)n;
    return CMD_OK;
}

static int take_option(void *run, const args *a, int id)
{
    train_settings *s = run;
    int choice = 0, code = CMD_OK;
    if (id >= OPT_NUMBERS)
        return take_number(s, &numbers[id - OPT_NUMBERS], a);
    if (id >= OPT_FLAGS) {
        *(int *)((char *)s + flags[id - OPT_FLAGS].at) = flags[id - OPT_FLAGS].value;
        return CMD_OK;
    }
    switch (id) {
    case OPT_DATA: s->data[s->n_data++] = a->value; return CMD_OK;
    case OPT_FROM: s->from = a->value; return CMD_OK;
    case OPT_SITES: return places_take(&s->places, a, 0);
    case OPT_PAIRS: return places_take(&s->places, a, 1);
    case OPT_LAYERS: s->layers = a->value; return CMD_OK;
    case OPT_L0: return take_targets(s, a);
    case OPT_PREFIXES: return take_prefixes(s, a);
    case OPT_TEXT_FIELD: s->text_field = a->value; return CMD_OK;
    case OPT_EXCLUDE: return places_exclude(&s->excluded, a);
    case OPT_BUFFER_FILE: s->buffer_file = a->value; return CMD_OK;
    case OPT_ARCH:
        code = choose(a, arch_names, 4, &choice);
        s->base.arch = (qsae_train_arch)choice;
        return code;
    case OPT_SPARSITY:
        code = choose(a, sparsity_names, 4, &choice);
        s->base.sparsity = (qsae_train_sparsity)choice;
        return code;
    case OPT_B_DEC:
        s->b_dec_zero = strcmp(a->value, "zero") == 0;
        if (!s->b_dec_zero && strcmp(a->value, "mean") != 0)
            return complain(CMD_USAGE, "--b-dec: '%.60s' is none of zero mean",
                            a->value);
        return CMD_OK;
    case OPT_ONLY: return take_only(s, a);
    case OPT_OUT: s->out = a->value; return CMD_OK;
    default: return input_take(&s->in, a, id);
    }
}

static void set_defaults(train_settings *s)
{
    s->base.sparsity = QSAE_TRAIN_TARGET;
    s->base.l0_coefficient = -1;
    s->base.bandwidth = s->base.threshold_init = 0.001f;
    s->base.has_betas = 1;
    s->base.beta1 = 0;
    s->base.beta2 = 0.999f;
    s->base.eps = 1e-8f;
    s->base.aux_coefficient = 1.0f / 32;
    s->base.unit_decoder = 1;
    s->base.lr = 0;
    s->batch = 2048;
    s->skip_first = 1;
    s->norm_ratio = 10;
    s->lr_warmup = s->lr_decay = s->l0_warmup = -1;
    s->checkpoint_minutes = 15;
    s->log_every = 100;
}

/* ------------------------------------------------------- what they mean together */

static int check_targets(train_settings *s)
{
    qsae_trainer_options *o = &s->base;
    int jump = o->arch == QSAE_TRAIN_JUMPRELU;
    int fixed =
        jump && (o->sparsity == QSAE_TRAIN_STEP || o->sparsity == QSAE_TRAIN_TANH);
    if (fixed && (s->n_targets || o->l0_coefficient < 0))
        return complain(
            CMD_USAGE,
            "--sparsity %s takes --l0-coefficient and no --l0: nothing aims "
            "at an L0",
            sparsity_names[o->sparsity]);
    if (!fixed && s->n_targets == 0)
        return complain(CMD_USAGE, "train needs --l0 T");
    if (!jump && o->l0_coefficient >= 0)
        return complain(CMD_USAGE, "--l0-coefficient belongs to --arch jumprelu");
    for (size_t i = 0; i < s->n_targets; i++) {
        double t = s->targets[i];
        if (t > (double)o->d_sae)
            return complain(CMD_USAGE, "--l0 %g is more than --width %zu", t, o->d_sae);
        if (o->arch == QSAE_TRAIN_TOPK && t != (double)(int64_t)t)
            return complain(CMD_USAGE, "--l0 %g: topk keeps a whole number", t);
    }
    if (jump && o->l0_coefficient < 0)
        o->l0_coefficient = 1;
    if (!jump)
        o->l0_coefficient = 0;
    if (jump)
        o->aux_coefficient = 0;
    return CMD_OK;
}

static int check_prefixes(train_settings *s)
{
    size_t width = s->base.d_sae, last = 0;
    if (s->base.arch != QSAE_TRAIN_MATRYOSHKA)
        return s->n_prefixes == 0
                   ? CMD_OK
                   : complain(CMD_USAGE, "--prefixes belongs to --arch matryoshka");
    if (s->n_prefixes == 0)
        for (size_t by = 16; by > 0; by /= 4)
            if (width / by > last)
                last = s->prefixes[s->n_prefixes++] = width / by;
    last = 0;
    for (size_t i = 0; i < s->n_prefixes; i++) {
        if (s->prefixes[i] <= last)
            return complain(CMD_USAGE, "--prefixes: %zu does not come after %zu",
                            s->prefixes[i], last);
        last = s->prefixes[i];
    }
    if (last != width)
        return complain(CMD_USAGE, "--prefixes: the last is %zu, --width is %zu", last,
                        width);
    return CMD_OK;
}

static int check(train_settings *s)
{
    if (!s->model_path == !s->from)
        return complain(CMD_USAGE, "train needs either MODEL.qsae or --from (see: qsae "
                                   "train --help)");
    if (s->from && (s->n_data || s->context || s->excluded.classes || s->excluded.n))
        return complain(CMD_USAGE, "--data, --context and --exclude have no place with "
                                   "--from: the harvest has settled them");
    if (!s->from && !s->n_data)
        return complain(CMD_USAGE, "train needs --data");
    if (!s->places.n || !s->layers || !s->base.d_sae || !s->out)
        return complain(CMD_USAGE, "train needs %s",
                        !s->places.n     ? "--sites or --pairs"
                        : !s->layers     ? "--layers"
                        : !s->base.d_sae ? "--width"
                                         : "-o DIR");
    if (s->buffer_size && (s->buffer || !s->buffer_file))
        return complain(CMD_USAGE, "--buffer-size goes with --buffer-file, in place of "
                                   "--buffer");
    if (!s->buffer && !s->buffer_size)
        s->buffer = 65536;
    int code = check_targets(s);
    return code == CMD_OK ? check_prefixes(s) : code;
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Of a step that takes a thread some milliseconds, waiting for one another is the most. */
static int trainer_threads(const train_run *r)
{
    size_t width = 1;
    for (size_t i = 0; i < r->n_streams; i++)
        if (r->streams[i].width > width)
            width = r->streams[i].width;
    double work = (double)width * (double)r->s.base.d_sae * (double)r->s.batch;
    return r->s.in.threads || work >= 1e9 ? sae_threads(&r->s.in) : 1;
}

/* What follows from the number of steps. */
static void settle_schedule(train_run *r)
{
    train_settings *s = &r->s;
    qsae_trainer_options *o = &s->base;
    uint64_t n = r->steps;
    if (o->lr == 0)
        o->lr = n * s->batch < 100000000 ? 2e-4f : 7e-5f;
    o->lr_warmup = s->lr_warmup < 0 ? least(1000, n / 10) : (uint64_t)s->lr_warmup;
    o->lr_decay = s->lr_decay < 0 ? n / 5 : (uint64_t)s->lr_decay;
    o->l0_warmup = s->l0_warmup < 0 ? least(5000, n / 10) : (uint64_t)s->l0_warmup;
    if (!s->dead_tokens)
        s->dead_tokens = least(10000000, n * s->batch / 10);
    o->dead_steps = s->dead_tokens / s->batch;
    if (o->dead_steps == 0)
        o->dead_steps = 1;
    o->n_threads = trainer_threads(r);
    o->isa = s->in.isa;
}

/* The header's hash covers those of all tensors. */
static int hash_model(train_run *r)
{
    qread q;
    char err[ERR_CAP];
    if (qread_open(&q, r->s.model_path, err, sizeof err))
        return complain(CMD_FAILED, "%s", err);
    r->model_hash = q.head.hash;
    r->model_size = q.head.file_size;
    qread_close(&q);
    return CMD_OK;
}

static void set_feed_options(train_run *r)
{
    train_settings *s = &r->s;
    feed_options *f = &r->feed_options;
    f->streams = r->streams;
    f->n_streams = r->n_streams;
    f->context = (size_t)s->context;
    f->skip_first = (size_t)s->skip_first;
    f->exclude = s->excluded.ids;
    f->n_exclude = s->excluded.n;
    f->exclude_classes = s->excluded.classes;
    f->threads = r->model ? input_threads(&s->in, r->model) : 1;
}

/* Opens the text and counts what has to be known of it. */
static int open_text(train_run *r)
{
    train_settings *s = &r->s;
    char err[ERR_CAP];
    corpus_options o;
    uint64_t tokens, rows;
    memset(&o, 0, sizeof o);
    o.sources = s->data;
    o.n_sources = s->n_data;
    o.context = (size_t)s->context;
    o.text_field = s->text_field;
    o.special = s->special;
    r->text = corpus_open(&o, r->model, err, sizeof err);
    if (!r->text)
        return complain(CMD_FAILED, "%s", err);
    r->text_hash = corpus_fingerprint(r->text);
    set_feed_options(r);
    if (feed_count(r->text, &r->feed_options, s->tokens ? s->context : 0, &tokens,
                   &rows, err, sizeof err))
        return complain(CMD_FAILED, "%s", err);
    if (tokens < s->context)
        return complain(CMD_FAILED,
                        "the text has %" PRIu64
                        " tokens, less than one context of %" PRIu64
                        ": give more text, or a smaller --context",
                        tokens, s->context);
    if (!s->tokens)
        s->tokens = rows;
    return CMD_OK;
}

static int open_model(train_run *r)
{
    train_settings *s = &r->s;
    qsae_model_info info;
    int code = input_open_model(&s->in, s->model_path, &r->model);
    if (code == CMD_OK)
        code = hash_model(r);
    if (code != CMD_OK)
        return code;
    qsae_model_get_info(r->model, &info);
    if (!s->context)
        s->context = least(1024, (uint64_t)info.max_positions);
    if (s->context > (uint64_t)info.max_positions)
        return complain(CMD_FAILED, "--context %" PRIu64 ": the model has %d positions",
                        s->context, (int)info.max_positions);
    return open_text(r);
}

static int open_harvest(train_run *r)
{
    train_settings *s = &r->s;
    const harvest *h = &r->harvest;
    char err[ERR_CAP];
    if (harvest_open(&r->harvest, s->from, err, sizeof err))
        return complain(CMD_FAILED, "%s", err);
    if (!s->tokens)
        s->tokens = h->rows;
    s->context = h->context;
    s->skip_first = h->skip_first;
    s->excluded.classes = (uint32_t)h->exclude_classes;
    memcpy(s->excluded.ids, h->exclude, sizeof h->exclude);
    s->excluded.n = h->n_exclude;
    r->text_hash = h->text_hash;
    r->model_hash = h->model_hash;
    return CMD_OK;
}

static int settle(train_run *r)
{
    train_settings *s = &r->s;
    r->steps = s->tokens / s->batch;
    if (r->steps == 0)
        return complain(CMD_FAILED,
                        "%" PRIu64 " rows are less than one batch of %" PRIu64
                        ": give more text or --tokens, or a smaller --batch",
                        s->tokens, s->batch);
    settle_schedule(r);
    if (s->buffer_size && train_buffer_rows(r) < s->context)
        return complain(CMD_FAILED,
                        "--buffer-size %" PRIu64 " has room for %zu rows of %" PRIu64
                        " numbers, one context has %" PRIu64,
                        s->buffer_size, train_buffer_rows(r), r->all_width, s->context);
    return CMD_OK;
}

/* ------------------------------------------------------------------- the settings */

/* All that the result depends on but the slice: the META lines of every member, and what
 * a checkpoint is compared with. */
static int describe(train_run *r)
{
    const train_settings *s = &r->s;
    const qsae_trainer_options *o = &s->base;
    char err[ERR_CAP], list[1024] = "";
    qfile_meta m;
    memset(&m, 0, sizeof m);
#define ADD(key, ...) qfile_meta_add(&m, "train." key, __VA_ARGS__)
    ADD("arch", "%s", arch_names[o->arch]);
    if (o->arch == QSAE_TRAIN_JUMPRELU) {
        ADD("sparsity", "%s", sparsity_names[o->sparsity]);
        ADD("l0-coefficient", "%.9g", (double)o->l0_coefficient);
        ADD("l0-warmup", "%" PRIu64, o->l0_warmup);
        ADD("bandwidth", "%.9g", (double)o->bandwidth);
        ADD("threshold", "%.9g", (double)o->threshold_init);
        ADD("tanh-scale", "%.9g", (double)o->tanh_scale);
        ADD("pre-act", "%.9g", (double)o->pre_act_coefficient);
        ADD("ste-to-input", "%d", o->ste_to_input);
    } else {
        ADD("aux", "%.9g", (double)o->aux_coefficient);
        ADD("no-rescale", "%d", o->no_rescale);
    }
    for (size_t i = 0, at = 0; i < s->n_prefixes && at + 24 < sizeof list; i++)
        at += (size_t)snprintf(list + at, sizeof list - at, "%s%zu", i ? "," : "",
                               s->prefixes[i]);
    if (s->n_prefixes)
        ADD("prefixes", "%s", list);
    ADD("width", "%zu", o->d_sae);
    ADD("tokens", "%" PRIu64, s->tokens);
    ADD("batch", "%" PRIu64, s->batch);
    ADD("context", "%" PRIu64, s->context);
    ADD("buffer", "%zu", train_buffer_rows(r));
    ADD("skip-first", "%" PRIu64, s->skip_first);
    if (r->harvest.bf16)
        ADD("rows", "bf16");
    list[0] = 0;
    for (size_t i = 0, at = 0; i < s->excluded.n && at + 24 < sizeof list; i++)
        at += (size_t)snprintf(list + at, sizeof list - at, "%s%d", i ? "," : "",
                               (int)s->excluded.ids[i]);
    if (s->excluded.n)
        ADD("exclude", "%s", list);
    if (s->excluded.classes)
        ADD("exclude-classes", "%u", (unsigned)s->excluded.classes);
    ADD("norm-ratio", "%.9g", (double)s->norm_ratio);
    ADD("b-dec", "%s", s->b_dec_zero ? "zero" : "mean");
    ADD("no-pre-bias", "%d", o->no_b_dec_input);
    ADD("free-decoder", "%d", !o->unit_decoder);
    ADD("decoder-norm", "%.9g", (double)o->decoder_norm);
    ADD("lr", "%.9g", (double)o->lr);
    ADD("lr-warmup", "%" PRIu64, o->lr_warmup);
    ADD("lr-decay", "%" PRIu64, o->lr_decay);
    ADD("lr-cosine", "%d", o->lr_cosine);
    ADD("beta1", "%.9g", (double)o->beta1);
    ADD("beta2", "%.9g", (double)o->beta2);
    ADD("adam-eps", "%.9g", (double)o->eps);
    ADD("clip", "%.9g", (double)o->clip);
    ADD("dead-tokens", "%" PRIu64, s->dead_tokens);
    ADD("seed", "%" PRIu64, s->seed);
    ADD("text", "%016" PRIx64, r->text_hash);
    ADD("model", "%016" PRIx64, r->model_hash);
#undef ADD
    if (qfile_meta_finish(&m, err, sizeof err)) {
        qfile_meta_free(&m);
        return complain(CMD_FAILED, "%s", err);
    }
    r->description = m.text;
    return CMD_OK;
}

/* And the slice, by its members. */
static int identify(train_run *r)
{
    size_t n = strlen(r->description) + r->n_members * 110 + 1, at;
    r->identity = malloc(n);
    if (!r->identity)
        return complain(CMD_FAILED, "out of memory");
    at = (size_t)snprintf(r->identity, n, "%s", r->description);
    for (size_t i = 0; i < r->n_members; i++)
        at += (size_t)snprintf(r->identity + at, n - at, "member.%zu=%s\n", i,
                               r->members[i].name);
    return CMD_OK;
}

/* ------------------------------------------------------------------------- places */

static int set_paths(train_run *r)
{
    char part[64] = "";
    const char *dir = r->s.out;
    if (strlen(dir) > 3000)
        return complain(CMD_FAILED, "-o: the path is too long");
    if (r->s.n_slices)
        snprintf(part, sizeof part, "-%" PRIu64 "-of-%" PRIu64, r->s.slice,
                 r->s.n_slices);
    snprintf(r->suite_path, sizeof r->suite_path, "%s/suite%s.qsae", dir, part);
    snprintf(r->log_path, sizeof r->log_path, "%s/log%s.jsonl", dir, part);
    snprintf(r->state_dir, sizeof r->state_dir, "%s/checkpoint", dir);
    snprintf(r->state_path, sizeof r->state_path, "%s/checkpoint/state%s", dir, part);
    return CMD_OK;
}

static int make_folder(const char *path)
{
    struct stat st;
    if (mkdir(path, 0777) == 0 ||
        (errno == EEXIST && stat(path, &st) == 0 && S_ISDIR(st.st_mode)))
        return CMD_OK;
    return complain(CMD_FAILED, "%.300s: cannot make the folder: %s", path,
                    strerror(errno));
}

/* What a run before left in DIR. *done: the suite is there, by these settings. */
static int look_around(train_run *r, int *done)
{
    int suite = access(r->suite_path, F_OK) == 0,
        state = access(r->state_path, F_OK) == 0;
    *done = 0;
    if (r->s.force && !r->s.resume) {
        if (state && unlink(r->state_path) != 0)
            return complain(CMD_FAILED, "%.300s: %s", r->state_path, strerror(errno));
        return CMD_OK;
    }
    if (!r->s.resume && (suite || state))
        return complain(CMD_FAILED, "%.300s has %s: %s, or --force begins anew",
                        r->s.out,
                        state ? "the checkpoint of a run that was not finished"
                              : "a finished suite",
                        state ? "--resume goes on" : "choose another folder");
    if (suite && !state) {
        int same = train_made_by(r, r->suite_path);
        if (same != 1)
            return complain(CMD_FAILED, "%.300s is there%s; --force begins anew",
                            r->suite_path,
                            same < 0 ? " and cannot be read" : ", from other settings");
        *done = 1;
    }
    return CMD_OK;
}

/* --------------------------------------------------------------------------- signals */

volatile int train_stop;

static void on_signal(int sig)
{
    train_stop = sig;
    signal(sig, SIG_DFL); /* the second time it is not asked again */
}

double train_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* -------------------------------------------------------------------------- the work */

static int open_feed(train_run *r)
{
    char err[ERR_CAP];
    set_feed_options(r);
    r->feed =
        r->model ? feed_open_model(r->model, r->text, &r->feed_options, err, sizeof err)
                 : feed_open_files(&r->harvest, &r->feed_options, err, sizeof err);
    return r->feed ? CMD_OK : complain(CMD_FAILED, "%s", err);
}

static int prepare(train_run *r)
{
    int code = r->s.from ? open_harvest(r) : open_model(r);
    if (code == CMD_OK)
        code = train_make_suite(r);
    if (code == CMD_OK)
        code = settle(r);
    if (code == CMD_OK)
        code = describe(r);
    if (code == CMD_OK)
        code = identify(r);
    return code == CMD_OK ? set_paths(r) : code;
}

static int begin(train_run *r)
{
    int found = 0, code = make_folder(r->s.out);
    if (code == CMD_OK)
        code = make_folder(r->state_dir);
    if (code == CMD_OK)
        code = open_feed(r);
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    r->began = r->saved = train_now();
    if (code == CMD_OK && r->s.resume)
        code = train_load(r, &found);
    return code == CMD_OK ? train_work(r) : code;
}

static int work(train_run *r)
{
    int done = 0, code = prepare(r);
    if (code == CMD_OK)
        code = train_check_room(r);
    if (code != CMD_OK)
        return code;
    if (r->s.plan) {
        code = open_feed(r);
        return code == CMD_OK ? train_plan_print(r) : code;
    }
    code = look_around(r, &done);
    if (code == CMD_OK && done) {
        printf("%s is there: nothing is left to do\n", r->suite_path);
        return CMD_OK;
    }
    return code == CMD_OK ? begin(r) : code;
}

static void close_run(train_run *r)
{
    progress_end(&r->shown);
    if (r->log)
        fclose(r->log);
    for (size_t i = 0; i < r->n_members; i++)
        qsae_trainer_destroy(r->members[i].trainer);
    for (size_t i = 0; i < r->n_lanes; i++) {
        free(r->lanes[i].x);
        free(r->lanes[i].y);
        free(r->lanes[i].order);
    }
    shuffle_close(&r->buffer);
    feed_close(r->feed);
    harvest_close(&r->harvest);
    corpus_close(r->text);
    qsae_model_close(r->model);
    free(r->lanes);
    free(r->members);
    free(r->streams);
    free(r->description);
    free(r->identity);
    free(r->s.data);
}

int cmd_train(int argc, char **argv)
{
    args_option table[N_OWN + N_FLAGS + N_NUMBERS + 1];
    train_run *r = calloc(1, sizeof *r);
    int help = 0, n = 0;
    if (!r)
        return complain(CMD_FAILED, "out of memory");
    memset(table, 0, sizeof table);
    for (int i = 0; i < N_OWN; i++)
        table[n++] = own_options[i];
    for (int i = 0; i < N_FLAGS; i++)
        table[n++] = (args_option){flags[i].name, 0, OPT_FLAGS + i, 0};
    for (int i = 0; i < N_NUMBERS; i++)
        table[n++] = (args_option){numbers[i].name, 0, OPT_NUMBERS + i, ARGS_VALUE};
    set_defaults(&r->s);
    r->s.data = calloc((size_t)argc + 1, sizeof *r->s.data);
    args a = args_begin(argc, argv, table, usage);
    const char **const slots[] = {&r->s.model_path};
    int code = r->s.data ? args_walk(&a, slots, 1, take_option, &r->s, &help)
                         : complain(CMD_FAILED, "out of memory");
    if (code == CMD_OK && !help)
        code = check(&r->s);
    if (code == CMD_OK && !help)
        code = work(r);
    close_run(r);
    free(r);
    return code;
}
