/* Which SAEs a folder or a file holds, and which family each is of.
 *
 * An SAE is a file of tensors and, in most families, a configuration beside it. Where
 * there is one, it says which family it is; else names and shapes of the tensors do. */

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#define _FILE_OFFSET_BITS 64

#include "sae_source.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_DEPTH 8

static const sae_family *const families[] = {
    &sae_saelens,     &sae_qwen_scope,   &sae_dictionary_learning, &sae_sparsify,
    &sae_llama_scope, &sae_llamascopium, &sae_circuit_tracer,      &sae_gemma_scope,
};
enum { N_FAMILIES = sizeof families / sizeof families[0] };

int sae_is_family(const char *name)
{
    for (int i = 0; i < N_FAMILIES; i++)
        if (strcmp(families[i]->name, name) == 0)
            return 1;
    return 0;
}

/* ---- folders ---- */

static char *copy_of(const char *text)
{
    size_t n = strlen(text) + 1;
    char *copy = malloc(n);
    if (copy)
        memcpy(copy, text, n);
    return copy;
}

void sae_units_free(sae_unit *list, int n)
{
    for (int i = 0; i < n; i++) {
        free(list[i].folder);
        free(list[i].weights);
        free(list[i].config);
    }
    free(list);
}

/* One more unit; takes `weights`. */
static int add_unit(sae_unit **list, int *n, const char *folder, char *weights,
                    const char *config, char *err, size_t cap)
{
    sae_unit *more = realloc(*list, ((size_t)*n + 1) * sizeof *more);
    sae_unit u = {copy_of(folder), weights, config ? copy_of(config) : NULL};
    if (more)
        *list = more;
    if (!more || !u.folder || !u.weights || (config && !u.config)) {
        free(u.folder);
        free(u.weights);
        free(u.config);
        return err_set(err, cap, "out of memory");
    }
    more[(*n)++] = u;
    return 0;
}

static int is_folder(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static int ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n > m && strcmp(text + n - m, end) == 0;
}

int sae_is_config(const char *folder, const char *name)
{
    static const char *const keys[] = {"sae_type", "trainer", "hook_point_in",
                                       "hf_hook_point_in", "affine_connection"};
    char why[ERR_CAP];
    json_doc *doc;
    int yes = 0;
    if (!convert_exists(folder, name) ||
        convert_read_json(folder, name, &doc, why, sizeof why))
        return 0;
    const json_value *root = json_root(doc),
                     *arch = json_get(doc, root, "architecture");
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        yes |= json_get(doc, root, keys[i]) != NULL;
    yes |= sae_is_text(arch, "jump_relu");
    json_free(doc);
    return yes && !sae_is_model(folder);
}

int sae_is_model(const char *folder)
{
    char why[ERR_CAP];
    json_doc *doc;
    if (!convert_exists(folder, "config.json") ||
        convert_read_json(folder, "config.json", &doc, why, sizeof why))
        return 0;
    const json_value *root = json_root(doc);
    int yes = json_get(doc, root, "model_type") || json_get(doc, root, "architectures");
    json_free(doc);
    return yes;
}

/* The configuration in a folder: *name, NULL for none. -1: more than one. */
static int find_config(const char *folder, const char **name, char *err, size_t cap)
{
    json_doc *doc = NULL;
    *name = NULL;
    /* one that cannot be read says neither that it is an SAE's nor that it is not */
    if (convert_exists(folder, "config.json") &&
        convert_read_json(folder, "config.json", &doc, err, cap))
        return err_prefix(err, cap, "%s", name_z(folder).text);
    json_free(doc);
    const char *const list[] = {
        convert_exists(folder, "cfg.json") ? "cfg.json" : NULL,
        convert_exists(folder, "hyperparams.json") ? "hyperparams.json" : NULL,
        sae_is_config(folder, "config.json") ? "config.json" : NULL,
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        if (!list[i])
            continue;
        if (*name)
            return err_set(err, cap,
                           "%s: holds both %s and %s, the configurations of two SAEs",
                           name_z(folder).text, *name, list[i]);
        *name = list[i];
    }
    if (!*name && convert_exists(folder, "config.yaml"))
        *name = "config.yaml";
    return 0;
}

typedef struct entries {
    char **name;
    size_t n;
} entries;

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void entries_free(entries *e)
{
    for (size_t i = 0; i < e->n; i++)
        free(e->name[i]);
    free(e->name);
}

/* Names in a folder, sorted, without those that start with a dot. */
static int list_folder(const char *path, entries *e, char *err, size_t cap)
{
    DIR *d = opendir(path);
    memset(e, 0, sizeof *e);
    if (!d)
        return err_set(err, cap, "%s: %s", name_z(path).text, strerror(errno));
    int status = 0;
    for (struct dirent *f; !status && (f = readdir(d)) != NULL;) {
        if (f->d_name[0] == '.')
            continue;
        char **more = realloc(e->name, (e->n + 1) * sizeof *more);
        char *name = copy_of(f->d_name);
        if (more)
            e->name = more;
        if (!more || !name) {
            free(name);
            status = err_set(err, cap, "out of memory");
        } else {
            e->name[e->n++] = name;
        }
    }
    closedir(d);
    if (!status && e->n)
        qsort(e->name, e->n, sizeof *e->name, by_name);
    return status;
}

/* sparsity.safetensors, which SAELens writes next to the weights: it holds
 * statistics */
static int is_statistics(const char *path)
{
    char why[ERR_CAP];
    tensor_file *f = ends_with(path, "sparsity.safetensors")
                         ? tensors_open(path, why, sizeof why)
                         : NULL;
    int yes = f && tensors_count(f) == 1 && tensors_find(f, "sparsity") != NULL;
    tensors_close(f);
    return yes;
}

static int is_weights(const char *folder, const char *name)
{
    static const char *const ends[] = {".safetensors", ".pt", ".pth", ".npz"};
    int yes = 0;
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++)
        yes |= ends_with(name, ends[i]);
    char *path = yes ? convert_path(folder, name) : NULL;
    yes = path && !is_folder(path) && !is_statistics(path);
    free(path);
    return yes;
}

/* The weights that belong to a configuration: the name that the producer gives them, or
 * the only file of tensors in the folder. */
static int find_weights(const char *folder, const char *config, const entries *e,
                        char **weights, char *err, size_t cap)
{
    static const struct {
        const char *config, *weights;
    } names[] = {
        {"cfg.json", "sae_weights.safetensors"},
        {"cfg.json", "sae.safetensors"},
        {"hyperparams.json", "sae_weights.safetensors"},
        {"hyperparams.json", "sae_weights.pt"},
        {"hyperparams.json", "checkpoints/pruned.safetensors"},
        {"hyperparams.json", "checkpoints/pruned.pt"},
        {"hyperparams.json", "checkpoints/final.safetensors"},
        {"hyperparams.json", "checkpoints/final.pt"},
        {"config.json", "sae_weights.safetensors"},
        {"config.json", "sae_weights.pt"},
        {"config.json", "ae.pt"},
        {"config.json", "params.safetensors"},
    };
    const char *found = NULL, *expected = "";
    int n_found = 0;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(names[i].config, config) != 0)
            continue;
        expected = *expected ? expected : names[i].weights;
        if (!convert_exists(folder, names[i].weights))
            continue;
        if (found)
            return err_set(err, cap, "%s: holds both %s and %s; name the file itself",
                           name_z(folder).text, found, names[i].weights);
        found = names[i].weights;
        n_found = 1;
    }
    for (size_t i = 0; i < e->n && !found; i++)
        if (is_weights(folder, e->name[i]))
            n_found++;
    for (size_t i = 0; i < e->n && !found && n_found == 1; i++)
        if (is_weights(folder, e->name[i]))
            found = e->name[i];
    if (n_found != 1)
        return err_set(err, cap,
                       "%s: holds %s and %d files of tensors; the weights (%s) are %s",
                       name_z(folder).text, config, n_found, expected,
                       n_found ? "not told apart: name the file itself" : "missing");
    *weights = convert_path(folder, found);
    return *weights ? 0 : err_set(err, cap, "out of memory");
}

static int has_config_below(const char *folder, const entries *e)
{
    int yes = 0;
    for (size_t i = 0; i < e->n && !yes; i++) {
        char *path = convert_path(folder, e->name[i]);
        yes = path && is_folder(path) && convert_exists(path, "cfg.json");
        free(path);
    }
    return yes;
}

/* What sparsify's trainer saves beside the folders of its hookpoints. */
static int is_of_trainer(const char *name)
{
    return strcmp(name, "state.pt") == 0 || strncmp(name, "optimizer", 9) == 0 ||
           strncmp(name, "lr_scheduler", 12) == 0 ||
           (strncmp(name, "rank_", 5) == 0 && ends_with(name, "_state.pt"));
}

static int find_folder(const char *folder, int depth, sae_unit **list, int *n,
                       char *err, size_t cap)
{
    entries e;
    const char *config;
    char *weights = NULL;
    if (depth > MAX_DEPTH)
        return err_set(err, cap, "%s: folders more than %d deep", name_z(folder).text,
                       MAX_DEPTH);
    if (sae_is_model(folder))
        return 0;
    if (find_config(folder, &config, err, cap) || list_folder(folder, &e, err, cap))
        return -1;
    int one = config && strcmp(config, "config.yaml") != 0, status = 0;
    int run = !config && has_config_below(folder, &e);
    if (one)
        status = find_weights(folder, config, &e, &weights, err, cap) ||
                 add_unit(list, n, folder, weights, config, err, cap);
    for (size_t i = 0; i < e.n && !one && !status; i++) {
        char *path = convert_path(folder, e.name[i]);
        if (!path)
            status = err_set(err, cap, "out of memory");
        else if (is_folder(path))
            status = find_folder(path, depth + 1, list, n, err, cap);
        else if (is_weights(folder, e.name[i]) && !(run && is_of_trainer(e.name[i])))
            status = add_unit(list, n, folder, copy_of(path), config, err, cap);
        free(path);
    }
    entries_free(&e);
    return status ? -1 : 0;
}

/* A file itself: the configuration is beside it or, of one in checkpoints/, above. */
static int find_file(const char *path, sae_unit **list, int *n, char *err, size_t cap)
{
    char *folder = copy_of(path), *slash = folder ? strrchr(folder, '/') : NULL;
    const char *config;
    int status = 0;
    if (!folder)
        return err_set(err, cap, "out of memory");
    if (slash && slash > folder)
        *slash = 0;
    else if (slash)
        slash[1] = 0;
    const char *where = slash ? folder : ".";
    status = find_config(where, &config, err, cap);
    if (!status && !config && ends_with(folder, "/checkpoints")) {
        folder[strlen(folder) - strlen("/checkpoints")] = 0;
        if (convert_exists(folder, "hyperparams.json"))
            config = "hyperparams.json";
    }
    if (!status)
        status = add_unit(list, n, where, copy_of(path), config, err, cap);
    free(folder);
    return status ? -1 : 0;
}

int sae_find(const char *path, sae_unit **list, int *n, char *err, size_t cap)
{
    int before = *n;
    if (!is_folder(path))
        return find_file(path, list, n, err, cap);
    if (find_folder(path, 0, list, n, err, cap))
        return -1;
    if (*n == before)
        return err_set(err, cap, "%s: no SAE is in it", name_z(path).text), 1;
    return 0;
}

/* ---- families ---- */

/* "ae." if every tensor is of a training checkpoint's SAE, and so on. */
static const char *find_prefix(const tensor_file *f)
{
    static const char *const prefixes[] = {"ae.", "sae."};
    for (size_t p = 0; p < sizeof prefixes / sizeof prefixes[0]; p++) {
        size_t len = strlen(prefixes[p]), hits = 0, other = 0;
        for (size_t i = 0; i < tensors_count(f); i++) {
            const char *name = tensors_at(f, i)->name;
            if (strncmp(name, prefixes[p], len) == 0)
                hits++;
            else if (strncmp(name, "optimizer.", 10) != 0 &&
                     strcmp(name, "norm_factor") != 0 && strcmp(name, "step") != 0)
                other++;
        }
        if (hits && !other)
            return prefixes[p];
    }
    return "";
}

/* What is known, but not supported: the reason, or NULL. */
static const char *known_stranger(const sae_source *s)
{
    if (sae_tensor(s, "pre_bias") && sae_tensor(s, "latent_bias"))
        return "an SAE of OpenAI's sparse_autoencoder; it is not supported";
    if (sae_tensor(s, "encoder_linear.weight"))
        return "an SAE of Goodfire; it is not supported";
    for (size_t i = 0; i < tensors_count(s->file); i++) {
        const char *name = tensors_at(s->file, i)->name;
        if (sae_number_in(name, "W_enc_", "") >= 0 ||
            sae_number_in(name, "W_dec_", "") >= 0)
            return "a part of a cross-layer transcoder (it writes several layers); it "
                   "is not supported";
    }
    if (tensors_find(s->file, "model.embed_tokens.weight"))
        return "a language model, not an SAE";
    return NULL;
}

/* Two tensors of a matrix and its bias, either way round. */
static int is_shape(const tensor *t, uint64_t rows, uint64_t cols)
{
    return t->rank == 2 && t->shape[0] == rows && t->shape[1] == cols;
}

/* What keeps tensors W_enc, W_dec, b_enc, b_dec from being of a family. */
static void explain_shapes(const sae_source *s, char *out, size_t cap)
{
    const tensor *e = sae_tensor(s, "W_enc"), *d = sae_tensor(s, "W_dec"),
                 *b = sae_tensor(s, "b_enc"), *c = sae_tensor(s, "b_dec");
    const char *lacks = !e   ? "W_enc"
                        : !d ? "W_dec"
                        : !b ? "b_enc"
                        : !c ? "b_dec"
                             : NULL;
    if (lacks) {
        snprintf(out, cap, "%s is missing, which qwen-scope, saelens and others have",
                 lacks);
        return;
    }
    uint64_t F = b->n, I = c->n;
    int rows = is_shape(e, F, I), columns = is_shape(e, I, F);
    if (!rows && !columns)
        snprintf(out, cap, "W_enc %.50s does not fit b_enc %.50s and b_dec %.50s",
                 tensor_shape(e).text, tensor_shape(b).text, tensor_shape(c).text);
    else if (!is_shape(d, F, I) && !is_shape(d, I, F))
        snprintf(out, cap, "W_dec %.50s does not fit b_enc %.50s and b_dec %.50s",
                 tensor_shape(d).text, tensor_shape(b).text, tensor_shape(c).text);
    else if (columns)
        snprintf(
            out, cap,
            "W_enc %.50s with b_enc %.50s is as saelens has it, whose cfg.json is not "
            "beside it; for qwen-scope it is transposed",
            tensor_shape(e).text, tensor_shape(b).text);
    else if (tensors_count(s->file) > 4)
        snprintf(out, cap, "qwen-scope has W_enc, W_dec, b_enc and b_dec only");
    else
        snprintf(out, cap, "qwen-scope has W_dec [%u, %u]: is W_dec %.50s transposed?",
                 (unsigned)I, (unsigned)F, tensor_shape(d).text);
}

/* The family that comes nearest, and what it lacks; "" if none does. */
static void explain(const sae_source *s, char *out, size_t cap)
{
    *out = 0;
    if (sae_tensor(s, "W_enc") || sae_tensor(s, "W_dec"))
        explain_shapes(s, out, cap);
    else if (sae_tensor(s, "encoder.weight"))
        snprintf(out, cap,
                 "encoder.weight comes with decoder.weight and a bias of the output in "
                 "dictionary-learning, with W_dec in sparsify");
    else if (sae_tensor(s, "W_E") || sae_tensor(s, "W_D"))
        snprintf(out, cap, "llamascopium has both W_E and W_D");
}

static int no_family(sae_source *s)
{
    char names[ERR_CAP / 2] = "", near[ERR_CAP / 2];
    const char *what = known_stranger(s);
    if (what)
        return sae_bad_file(s, "it is %s", what);
    for (size_t i = 0; i < tensors_count(s->file) && i < 6; i++) {
        size_t used = strlen(names);
        const tensor *t = tensors_at(s->file, i);
        snprintf(names + used, sizeof names - used, "%s%.40s %s", i ? ", " : "",
                 name_z(t->name).text, tensor_shape(t).text);
    }
    if (tensors_count(s->file) > 6)
        strncat(names, ", ...", sizeof names - strlen(names) - 1);
    explain(s, near, sizeof near);
    return sae_bad_file(
        s,
        "which SAE family it is cannot be told from its tensors (%s)%s%s; "
        "--family NAME says it",
        names, *near ? ": " : "", near);
}

static int find_family(sae_source *s, const sae_family **out)
{
    const sae_family *hit[N_FAMILIES];
    char names[256] = "";
    int n = 0;
    for (int i = 0; i < N_FAMILIES; i++)
        if (s->o->family ? strcmp(s->o->family, families[i]->name) == 0
                         : families[i]->recognise(s))
            hit[n++] = families[i];
    if (n == 0)
        return no_family(s);
    for (int i = 0; i < n && n > 1; i++) {
        size_t used = strlen(names);
        snprintf(names + used, sizeof names - used, "%s--family %s", i ? " or " : "",
                 hit[i]->name);
    }
    if (n > 1)
        return sae_bad_file(
            s, "its tensors could be of %d SAE families, which compute differently: %s",
            n, names);
    *out = hit[0];
    return 0;
}

int sae_open(sae_source *s)
{
    const sae_unit *u = s->unit;
    const sae_family *family;
    if (u->config && ends_with(u->config, ".json")) {
        if (convert_read_json(u->folder, u->config, &s->doc, s->err, s->cap))
            return -1;
        s->cfg = json_root(s->doc);
    }
    s->file = tensors_open(u->weights, s->err, s->cap);
    if (!s->file)
        return -1;
    if (tensors_container(s->file) == TENSORS_GGUF ||
        tensors_container(s->file) == TENSORS_NPY)
        return sae_bad_file(s, "no SAE is published in this format");
    s->prefix = find_prefix(s->file);
    s->fold.enc = s->fold.bias = s->fold.dec = s->fold.out = s->fold.theta = 1;
    if (find_family(s, &family))
        return -1;
    s->family = family->name;
    return family->read(s);
}

void sae_close(sae_source *s)
{
    json_free(s->doc);
    tensors_close(s->file);
    free(s->c);
    free(s->n);
    free(s->rows);
    free(s->t);
    qfile_meta_free(&s->lines);
}
