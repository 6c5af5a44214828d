/* qsae convert: a Qwen3 checkpoint or SAEs, as their producers save them, to one .qsae
 * file. */

#ifndef _XOPEN_SOURCE
#define _XOPEN_SOURCE 700 /* realpath */
#endif
#define _FILE_OFFSET_BITS 64

#include "convert.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "args.h"
#include "check.h"
#include "cmd.h"
#include "output.h"
#include "sae_source.h"
#include "text.h"

static const char usage[] =
    "usage: qsae convert IN... -o FILE.qsae [options]\n"
    "\n"
    "IN is a Qwen3 checkpoint as Hugging Face saves it (config.json, *.safetensors,\n"
    "tokenizer.json), a GGUF file of one (F32, F16, BF16, Q8_0, Q6_K, Q4_0), or an\n"
    "SAE: a folder of one, a folder of many (layer by layer), or its file of tensors\n"
    "(.safetensors, .pt, .npz). Several SAEs become one suite. Weights keep their\n"
    "stored values: bf16 stays bf16, all else becomes f32. A folder with\n"
    "tokenizer.json and neither configuration nor weights becomes a file that holds\n"
    "the tokenizer alone.\n"
    "\n"
    "  -o, --out FILE        the file to write; it appears whole or not at all\n"
    "      --type f32|bf16   every matrix in this type (bf16 rounds to nearest even)\n"
    "      --type q8|q4      models: every matrix in about 8 or 4 bits a weight\n"
    "      --name NAME       its name inside the file; default: the folder's\n"
    "      --force           replace FILE even if it is not a .qsae file\n"
    "      --ignore-key KEY  this key of the configuration changes no number\n"
    "model:\n"
    "      --head tied|stored  which output head, where config and tensors disagree\n"
    "      --no-tokenizer    leave the tokenizer out\n"
    "      --chat-template qwen3  chats are Qwen3's, whatever template the folder has\n"
    "SAE:\n"
    "      --family NAME     which format it is, where its content does not say:\n"
    "                        saelens, qwen-scope, dictionary-learning, sparsify,\n"
    "                        llama-scope, llamascopium, circuit-tracer, gemma-scope\n"
    "      --site SITE --layer N          what it reads: resid_pre, attn_z, attn_out,\n"
    "                                     resid_mid, mlp_input, mlp_out, resid_post\n"
    "      --site-out SITE --layer-out N  what it writes (transcoders)\n"
    "      --k K             features that a TopK SAE keeps (Qwen-Scope: the number\n"
    "                        after L0_ in the repository's name)\n"
    "      --norm-scale X    inputs were multiplied by X (expected_average_only_in)\n"
    "      --class NAME      class of a dictionary_learning file without config.json\n"
    "      --decoder-layout features|columns  whether rows of circuit-tracer's W_dec\n"
    "                        are features, where d_sae = d_in leaves it open\n"
    "      --negative-thresholds zero     thresholds of a JumpReLU SAE that are below 0\n"
    "                                     count as 0, which is how they act\n"
    "      --screen yes|no   an 8-bit copy of the encoder, with which encoding takes half\n"
    "                        the time and gives the same bits (default: from 4,096\n"
    "                        features on)\n"
    "      --check MODEL.qsae             then run a short text through this model and\n"
    "                                     say what the SAE makes of it\n"
    "      --check-text FILE              that text\n";

/* ---- files ---- */

char *convert_path(const char *dir, const char *name)
{
    size_t n = strlen(dir), m = strlen(name);
    char *path = malloc(n + m + 2);
    if (!path)
        return NULL;
    memcpy(path, dir, n);
    if (n > 0 && dir[n - 1] != '/')
        path[n++] = '/';
    memcpy(path + n, name, m + 1);
    return path;
}

int convert_exists(const char *dir, const char *name)
{
    struct stat st;
    char *path = convert_path(dir, name);
    int yes = path && stat(path, &st) == 0;
    free(path);
    return yes;
}

static int read_fd(int fd, const char *path, uint64_t limit, char **text, size_t *len,
                   char *err, size_t cap)
{
    struct stat st;
    safe_name shown = name_z(path);
    if (fstat(fd, &st))
        return err_set(err, cap, "%s: %s", shown.text, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return err_set(err, cap, "%s: not a regular file", shown.text);
    if ((uint64_t)st.st_size > limit)
        return err_set(err, cap, "%s: %" PRIu64 " bytes, the limit is %" PRIu64,
                       shown.text, (uint64_t)st.st_size, limit);
    size_t size = (size_t)st.st_size, at = 0;
    char *buffer = malloc(size + 1);
    if (!buffer)
        return err_set(err, cap, "out of memory");
    while (at < size) {
        ssize_t n = read(fd, buffer + at, size - at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            free(buffer);
            return err_set(err, cap, "%s: cannot read: %s", shown.text,
                           n < 0 ? strerror(errno) : "it became shorter");
        }
        at += (size_t)n;
    }
    buffer[size] = 0;
    *text = buffer;
    *len = size;
    return 0;
}

int convert_read(const char *dir, const char *name, uint64_t limit, char **text,
                 size_t *len, char *err, size_t cap)
{
    char *path = convert_path(dir, name);
    if (!path)
        return err_set(err, cap, "out of memory");
    int fd = open(path, O_RDONLY | O_NONBLOCK), status;
    if (fd < 0) {
        status = err_set(err, cap, "%s: cannot open: %s", name_z(path).text,
                         strerror(errno));
    } else {
        status = read_fd(fd, path, limit, text, len, err, cap);
        close(fd);
    }
    free(path);
    return status;
}

int convert_read_json(const char *dir, const char *name, json_doc **doc, char *err,
                      size_t cap)
{
    char *text, why[ERR_CAP];
    size_t len;
    if (convert_read(dir, name, (uint64_t)16 << 20, &text, &len, err, cap))
        return -1;
    int pointer = strncmp(text, "version https://git-lfs", 23) == 0;
    if (len == 0 || pointer) {
        free(text);
        return err_set(err, cap, "%s: %s", name,
                       pointer
                           ? "a pointer file of Git LFS, not the file itself (git lfs "
                             "pull fetches it)"
                           : "the file is empty");
    }
    *doc = json_parse(text, len, why, sizeof why);
    free(text);
    if (!*doc)
        return err_set(err, cap, "%s: %s", name, why);
    if (json_root(*doc)->type != JSON_OBJECT) {
        json_free(*doc);
        *doc = NULL;
        return err_set(err, cap, "%s: not a JSON object", name);
    }
    return 0;
}

/* ---- names, notes, numbers ---- */

int convert_name(const char *dir, const convert_options *o, char *out, size_t room,
                 char *err, size_t cap)
{
    if (o->name) {
        if (strlen(o->name) >= room || o->name[0] == 0)
            return err_set(err, cap, "--name: 1 to %zu bytes", room - 1);
        strcpy(out, o->name);
        return 0;
    }
    int valid = 1;
    char *full = realpath(dir, NULL); /* so that "." and "x/.." have a name too */
    const char *slash = full ? strrchr(full, '/') : NULL,
               *base = slash ? slash + 1 : dir;
    if (*base == 0)
        base = "unnamed";
    size_t n = strlen(base);
    if (n > 5 && strcmp(base + n - 5, ".gguf") == 0)
        n -= 5;
    if (n >= room)
        for (n = room - 1; n > 0 && ((unsigned char)base[n] & 0xC0) == 0x80;)
            n--;
    memcpy(out, base, n);
    out[n] = 0;
    free(full);
    for (size_t i = 0; i < n && valid;) {
        uint32_t c;
        i += text_next(out + i, n - i, &c, &valid);
        valid &= c >= 0x20;
    }
    return valid
               ? 0
               : err_set(
                     err, cap,
                     "%s: the folder's name is not plain UTF-8 text; --name NAME gives "
                     "another",
                     name_z(dir).text);
}

int convert_ignored(const convert_options *o, const char *key)
{
    for (int i = 0; i < o->n_ignore; i++)
        if (strcmp(o->ignore[i], key) == 0)
            return 1;
    return 0;
}

void convert_note(const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    printf("note: ");
    vprintf(format, ap);
    printf("\n");
    va_end(ap);
}

/* ---- the command ---- */

enum {
    OPT_OUT = 1,
    OPT_TYPE,
    OPT_NAME,
    OPT_FORCE,
    OPT_IGNORE,
    OPT_HEAD,
    OPT_NO_TOKENIZER,
    OPT_CHAT_TEMPLATE,
    OPT_SITE,
    OPT_LAYER,
    OPT_SITE_OUT,
    OPT_LAYER_OUT,
    OPT_NORM_SCALE,
    OPT_FAMILY,
    OPT_CLASS,
    OPT_K,
    OPT_DECODER_LAYOUT,
    OPT_SCREEN,
    OPT_NEGATIVE,
    OPT_CHECK,
    OPT_CHECK_TEXT
};

static const args_option options[] = {
    {"out", 'o', OPT_OUT, ARGS_VALUE},
    {"type", 0, OPT_TYPE, ARGS_VALUE},
    {"name", 0, OPT_NAME, ARGS_VALUE},
    {"force", 0, OPT_FORCE, 0},
    {"ignore-key", 0, OPT_IGNORE, ARGS_VALUE | ARGS_MANY},
    {"head", 0, OPT_HEAD, ARGS_VALUE},
    {"no-tokenizer", 0, OPT_NO_TOKENIZER, 0},
    {"chat-template", 0, OPT_CHAT_TEMPLATE, ARGS_VALUE},
    {"site", 0, OPT_SITE, ARGS_VALUE},
    {"layer", 0, OPT_LAYER, ARGS_VALUE},
    {"site-out", 0, OPT_SITE_OUT, ARGS_VALUE},
    {"layer-out", 0, OPT_LAYER_OUT, ARGS_VALUE},
    {"norm-scale", 0, OPT_NORM_SCALE, ARGS_VALUE},
    {"family", 0, OPT_FAMILY, ARGS_VALUE},
    {"class", 0, OPT_CLASS, ARGS_VALUE},
    {"k", 0, OPT_K, ARGS_VALUE},
    {"decoder-layout", 0, OPT_DECODER_LAYOUT, ARGS_VALUE},
    {"screen", 0, OPT_SCREEN, ARGS_VALUE},
    {"negative-thresholds", 0, OPT_NEGATIVE, ARGS_VALUE},
    {"check", 0, OPT_CHECK, ARGS_VALUE},
    {"check-text", 0, OPT_CHECK_TEXT, ARGS_VALUE},
    {NULL, 0, 0, 0},
};

static int take_word(const char *option, const char *value, const char *a,
                     const char *b, int *out)
{
    *out = strcmp(value, a) == 0 ? 1 : strcmp(value, b) == 0 ? 2 : 0;
    if (*out)
        return CMD_OK;
    return complain(CMD_USAGE, "%s: '%.60s' is not %s or %s", option, value, a, b);
}

static int take_type(const char *value, uint32_t *out)
{
    static const struct {
        const char *name;
        uint32_t type;
    } types[] = {{"f32", QSAE_TYPE_F32},
                 {"bf16", QSAE_TYPE_BF16},
                 {"q8", QSAE_TYPE_Q8},
                 {"q4", QSAE_TYPE_Q4}};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (strcmp(value, types[i].name) == 0) {
            *out = types[i].type;
            return CMD_OK;
        }
    return complain(CMD_USAGE, "--type: '%.60s' is not f32, bf16, q8 or q4", value);
}

static int take_site(const char *option, const char *value, int *out)
{
    *out = qsae_site_from_name(value);
    if (*out >= 0)
        return CMD_OK;
    return complain(CMD_USAGE, "%s: '%.60s' is not a site (see: qsae convert --help)",
                    option, value);
}

static int take_layer(const char *option, const char *value, int *out)
{
    int64_t n;
    int status = args_integer(option, value, 0, CONVERT_MAX_LAYERS - 1, &n);
    if (status == CMD_OK)
        *out = (int)n;
    return status;
}

/* In double: the factor is folded in double. */
static int take_scale(const char *value, double *out)
{
    float check;
    int status = args_real("--norm-scale", value, 1e-30, 1e30, &check);
    if (status == CMD_OK)
        *out = strtod(value, NULL);
    return status;
}

static int take_family(const char *value, const char **out)
{
    *out = value;
    if (sae_is_family(value))
        return CMD_OK;
    return complain(CMD_USAGE,
                    "--family: '%.60s' is not saelens, qwen-scope, "
                    "dictionary-learning, sparsify, llama-scope, llamascopium, "
                    "circuit-tracer or gemma-scope",
                    value);
}

static int take_k(const char *value, int *out)
{
    int64_t n;
    int status = args_integer("--k", value, 1, 1 << 24, &n);
    if (status == CMD_OK)
        *out = (int)n;
    return status;
}

static int take(convert_options *o, int *force, const args *a, int id)
{
    int status = CMD_OK;
    switch (id) {
    case OPT_OUT: o->out = a->value; break;
    case OPT_NAME: o->name = a->value; break;
    case OPT_FORCE: *force = 1; break;
    case OPT_NO_TOKENIZER: o->no_tokenizer = 1; break;
    case OPT_CHAT_TEMPLATE:
        o->assume_chat = 1;
        if (strcmp(a->value, "qwen3") != 0)
            return complain(CMD_USAGE, "--chat-template: '%.60s' is not qwen3",
                            a->value);
        break;
    case OPT_TYPE: status = take_type(a->value, &o->type); break;
    case OPT_HEAD:
        status = take_word("--head", a->value, "tied", "stored", &o->head);
        break;
    case OPT_SITE: status = take_site("--site", a->value, &o->site); break;
    case OPT_SITE_OUT: status = take_site("--site-out", a->value, &o->site_out); break;
    case OPT_LAYER: status = take_layer("--layer", a->value, &o->layer); break;
    case OPT_LAYER_OUT:
        status = take_layer("--layer-out", a->value, &o->layer_out);
        break;
    case OPT_NORM_SCALE: status = take_scale(a->value, &o->norm_scale); break;
    case OPT_FAMILY: status = take_family(a->value, &o->family); break;
    case OPT_CLASS: o->dict_class = a->value; break;
    case OPT_K: status = take_k(a->value, &o->k); break;
    case OPT_DECODER_LAYOUT:
        status = take_word("--decoder-layout", a->value, "features", "columns",
                           &o->decoder_layout);
        break;
    case OPT_SCREEN:
        status = take_word("--screen", a->value, "yes", "no", &o->screen);
        break;
    case OPT_NEGATIVE:
        o->negative_thresholds = 1;
        if (strcmp(a->value, "zero") != 0)
            return complain(CMD_USAGE, "--negative-thresholds: '%.60s' is not zero",
                            a->value);
        break;
    case OPT_CHECK: o->check_model = a->value; break;
    case OPT_CHECK_TEXT: o->check_text = a->value; break;
    case OPT_IGNORE:
        if (o->n_ignore == CONVERT_MAX_IGNORE)
            return complain(CMD_USAGE, "--ignore-key: at most %d times",
                            CONVERT_MAX_IGNORE);
        o->ignore[o->n_ignore++] = a->value;
        break;
    default: break;
    }
    return status;
}

/* The output exists: is it of our kind, or did the user say so? */
static int may_replace(const char *path, int force)
{
    return force ? CMD_OK
                 : output_replaces(path, QSAE_FILE_MAGIC, 8,
                                   ".qsae file; --force replaces it");
}

/* Neither kind of folder: only a tokenizer? */
static int only_tokenizer(const char *dir)
{
    static const char *const weights[] = {
        "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
        "pytorch_model.bin.index.json", "sae_weights.safetensors"};
    for (size_t i = 0; i < sizeof weights / sizeof weights[0]; i++)
        if (convert_exists(dir, weights[i]))
            return 0;
    return convert_exists(dir, "tokenizer.json");
}

/* Or something there that cannot be read: then it is said what. */
static int has_saes(const char *dir)
{
    sae_unit *list = NULL;
    int n = 0;
    char why[ERR_CAP];
    if (convert_exists(dir, "model.safetensors")) /* a model without its config.json */
        return 0;
    int found = sae_find(dir, &list, &n, why, sizeof why) <= 0 || n > 0;
    sae_units_free(list, n);
    return found;
}

/* config.json is a model's if it has the keys of one; if it has neither those nor an
 * SAE's, where no SAE lies in the folder or below. */
static int is_model(const char *dir)
{
    if (!convert_exists(dir, "config.json") || sae_is_config(dir, "config.json"))
        return 0;
    return sae_is_model(dir) || convert_exists(dir, "cfg.json") || !has_saes(dir);
}

/* 3: a GGUF file, 2: a tokenizer alone, 1: SAEs, 0: checkpoint, -1: none of them */
static int input_kind(const char *path, char *err, size_t cap)
{
    struct stat st;
    safe_name shown = name_z(path);
    char why[ERR_CAP];
    if (stat(path, &st))
        return err_set(err, cap, "%s: %s", shown.text, strerror(errno));
    if (!S_ISDIR(st.st_mode)) {
        tensor_file *f = tensors_open(path, why, sizeof why);
        if (!f)
            return err_set(
                err, cap,
                "%.400s (not a folder, and not a file of tensors that can be "
                "read)",
                why);
        int gguf = tensors_container(f) == TENSORS_GGUF;
        tensors_close(f);
        return gguf ? 3 : 1;
    }
    int sae = convert_exists(path, "cfg.json"), model = is_model(path);
    if (model && sae)
        return err_set(err, cap,
                       "%s: holds both config.json (a model) and cfg.json (an SAE)",
                       shown.text);
    if (model)
        return 0;
    if (!sae && only_tokenizer(path))
        return 2;
    /* a configuration without weights is an SAE too: then it is said what is missing */
    if (sae || convert_exists(path, "config.json") ||
        convert_exists(path, "hyperparams.json") || has_saes(path))
        return 1;
    return err_set(err, cap,
                   "%s: neither config.json (a Hugging Face checkpoint) nor an SAE is "
                   "in it",
                   shown.text);
}

static int convert_inputs(const char *const *paths, int n, const convert_options *o,
                          char *err, size_t cap)
{
    int kind = input_kind(paths[0], err, cap);
    for (int i = 1; i < n && kind >= 0; i++) {
        int other = input_kind(paths[i], err, cap);
        if (other >= 0 && (other != 1 || kind != 1))
            return err_set(
                err, cap,
                "several folders make a suite of SAEs; a model goes into a file of "
                "its own");
        if (other < 0)
            kind = -1;
    }
    if (kind < 0)
        return -1;
    int sae_option = o->site >= 0 || o->layer >= 0 || o->site_out >= 0 ||
                     o->layer_out >= 0 || o->norm_scale > 0 || o->family ||
                     o->dict_class || o->k || o->decoder_layout || o->screen ||
                     o->negative_thresholds;
    if (kind != 1 && (sae_option || o->check))
        return err_set(err, cap,
                       "%s is a model; --site, --layer and --norm-scale are for SAEs, "
                       "as are --family, --k, --class, --decoder-layout, --screen, "
                       "--negative-thresholds and --check",
                       name_z(paths[0]).text);
    if (kind == 1 && (o->head || o->no_tokenizer || o->assume_chat))
        return err_set(
            err, cap,
            "%s is an SAE; --head, --no-tokenizer and --chat-template are for "
            "models",
            name_z(paths[0]).text);
    if (kind == 1 && o->type != 0 && o->type != QSAE_TYPE_F32 &&
        o->type != QSAE_TYPE_BF16)
        return err_set(
            err, cap,
            "%s is an SAE; --type q8 and q4 are for models: rounded that far, "
            "other features would fire; f32 and bf16 are possible",
            name_z(paths[0]).text);
    if (kind == 2 && (o->head || o->no_tokenizer || o->type || o->n_ignore))
        return err_set(err, cap,
                       "%s has only a tokenizer; --head, --no-tokenizer, --type and "
                       "--ignore-key are for weights",
                       name_z(paths[0]).text);
    if (kind == 3)
        return convert_gguf(paths[0], o, err, cap);
    if (kind == 2)
        return convert_tokenizer(paths[0], o, err, cap);
    return kind == 1 ? convert_sae(paths, n, o, err, cap)
                     : convert_model(paths[0], o, err, cap);
}

int cmd_convert(int argc, char **argv)
{
    convert_options o;
    char err[ERR_CAP] = "";
    int force = 0, n = 0, status = CMD_OK;
    memset(&o, 0, sizeof o);
    o.site = o.layer = o.site_out = o.layer_out = -1;
    const char **dirs = malloc(((size_t)argc + 1) * sizeof *dirs);
    if (!dirs)
        return complain(CMD_FAILED, "out of memory");
    args a = args_begin(argc, argv, options, usage);
    for (int id; status == CMD_OK && (id = args_next(&a)) != ARGS_END;) {
        if (id == ARGS_HELP || id == ARGS_ERROR) {
            free(dirs);
            return id == ARGS_HELP ? CMD_OK : CMD_USAGE;
        }
        if (id == ARGS_POSITIONAL)
            dirs[n++] = a.value;
        else
            status = take(&o, &force, &a, id);
    }
    if (status == CMD_OK && (n == 0 || !o.out))
        status = complain(CMD_USAGE, "convert: %s (see: qsae convert --help)",
                          n == 0 ? "which folder?" : "-o FILE is missing");
    if (status == CMD_OK && o.check_text && !o.check_model)
        status = complain(CMD_USAGE, "--check-text needs --check MODEL.qsae");
    if (status == CMD_OK)
        status = may_replace(o.out, force);
    if (status == CMD_OK && o.check_model)
        status = check_open(o.check_model, o.check_text, &o.check);
    if (status == CMD_OK && convert_inputs(dirs, n, &o, err, sizeof err))
        status = complain(CMD_FAILED, "%s", err);
    if (status == CMD_OK && o.check)
        status = check_run(o.check, o.out);
    check_close(o.check);
    free(dirs);
    return status == CMD_OK ? finish_stdout() : status;
}
