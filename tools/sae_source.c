/* What the readers of SAE families share: configuration keys, tensors, places. */

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include "sae_source.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- messages ---- */

static const char *base_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash && slash[1] ? slash + 1 : path;
}

const char *sae_file_name(const sae_source *s)
{
    return base_of(s->unit->weights);
}

const char *sae_folder_name(const sae_source *s)
{
    return base_of(s->unit->folder);
}

int sae_bad_config(sae_source *s, const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    vsnprintf(s->err, s->cap, format, ap);
    va_end(ap);
    return err_prefix(s->err, s->cap, "%s",
                      s->unit->config ? s->unit->config
                                      : name_z(sae_file_name(s)).text);
}

int sae_bad_file(sae_source *s, const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    vsnprintf(s->err, s->cap, format, ap);
    va_end(ap);
    return err_prefix(s->err, s->cap, "%s", name_z(sae_file_name(s)).text);
}

/* ---- configuration ---- */

const json_value *sae_get(const sae_source *s, const json_value *object,
                          const char *key)
{
    const json_value *v = s->doc && object ? json_get(s->doc, object, key) : NULL;
    return v && v->type != JSON_NULL ? v : NULL;
}

int sae_is_text(const json_value *v, const char *text)
{
    return v && v->type == JSON_STRING && v->len == strlen(text) &&
           strcmp(v->str, text) == 0;
}

safe_name sae_text(const json_value *v)
{
    if (v && (v->type == JSON_STRING || v->type == JSON_NUMBER))
        return name_n(v->str, v->len);
    return name_z(!v                      ? "(absent)"
                  : v->type == JSON_TRUE  ? "true"
                  : v->type == JSON_FALSE ? "false"
                  : v->type == JSON_NULL  ? "null"
                  : v->type == JSON_ARRAY ? "[...]"
                                          : "{...}");
}

int sae_get_bool(sae_source *s, const char *key, int *out)
{
    const json_value *v = sae_get(s, s->cfg, key);
    if (v && !json_bool(v, out))
        return sae_bad_config(s, "%s is %s%s%s, not true or false", key,
                              v->type == JSON_STRING ? "the string \"" : "",
                              sae_text(v).text, v->type == JSON_STRING ? "\"" : "");
    return 0;
}

int sae_get_size(sae_source *s, const char *key, int64_t max, uint32_t *out)
{
    const json_value *v = sae_get(s, s->cfg, key);
    int64_t x;
    if (!json_int(v, &x) || x < 1 || x > max)
        return sae_bad_config(s, "%s is %s, it must be a whole number in 1..%" PRId64,
                              key, sae_text(v).text, max);
    *out = (uint32_t)x;
    return 0;
}

int sae_check_keys(sae_source *s, const json_value *object, const char *const *known)
{
    for (const json_value *v = json_first(s->doc, object); v;
         v = json_next(s->doc, v)) {
        const char *key = json_key(s->doc, v, NULL);
        int ok = convert_ignored(s->o, key) || v->type == JSON_NULL;
        for (size_t i = 0; known[i] && !ok; i++)
            ok = strcmp(key, known[i]) == 0;
        if (!ok)
            return sae_bad_config(s,
                                  "the key %s is not known here (--ignore-key %s if it "
                                  "does not change the computation)",
                                  name_z(key).text, name_z(key).text);
    }
    return 0;
}

int sae_set_k(sae_source *s, int64_t stored, const char *where)
{
    qsae_sae_record *r = &s->record;
    if (stored && s->o->k && stored != s->o->k)
        return sae_bad_config(s, "%s is %" PRId64 ", --k says %d", where, stored,
                              s->o->k);
    int64_t k = s->o->k ? s->o->k : stored;
    if (k < 1 || k > (int64_t)r->d_sae)
        return sae_bad_config(
            s, "%s is %" PRId64 ", it must be a whole number in 1..%u (d_sae)",
            stored ? where : "--k", k, r->d_sae);
    if (r->activation == QSAE_ACT_GROUPMAX && r->d_sae % (uint32_t)k)
        return sae_bad_config(
            s, "%s is %" PRId64 ", groupmax needs a divisor of d_sae, which is %u",
            where, k, r->d_sae);
    r->k = (uint32_t)k;
    return 0;
}

/* ---- tensors ---- */

const tensor *sae_tensor(const sae_source *s, const char *name)
{
    char full[TENSOR_MAX_NAME + 8];
    snprintf(full, sizeof full, "%s%s", s->prefix ? s->prefix : "", name);
    return tensors_find(s->file, full);
}

void sae_ignore(sae_source *s, const tensor *t)
{
    if (t && s->n_used < (int)(sizeof s->used / sizeof s->used[0]))
        s->used[s->n_used++] = t;
}

static int missing(sae_source *s, const char *name)
{
    return sae_bad_file(s, "tensor %s%s is missing, which %s %s has", s->prefix, name,
                        strcmp(s->family, "saelens") == 0 ? "architecture" : "class",
                        s->class_name ? s->class_name : s->family);
}

/* stored [rows, cols] */
static const tensor *find_shape(sae_source *s, const char *name, uint64_t rows,
                                uint64_t cols)
{
    uint64_t shape[2] = {rows ? rows : cols, cols};
    uint32_t rank = rows ? 2 : 1;
    const tensor *t = sae_tensor(s, name);
    const qsae_sae_record *r = &s->record;
    if (!t) {
        missing(s, name);
        return NULL;
    }
    if (t->rank != rank || memcmp(t->shape, shape, rank * sizeof shape[0]) != 0) {
        tensor wanted = *t;
        wanted.rank = rank;
        memcpy(wanted.shape, shape, sizeof shape);
        int turned = rank == 2 && t->rank == 2 && t->shape[0] == cols &&
                     t->shape[1] == rows && rows != cols;
        sae_bad_file(s,
                     "tensor %s has shape %s, %s implies %s (d_in %u, d_sae %u, d_out "
                     "%u)%s",
                     t->name, tensor_shape(t).text, s->implied,
                     tensor_shape(&wanted).text, r->d_in, r->d_sae, r->d_out,
                     turned ? ": it is transposed" : "");
        return NULL;
    }
    if (!tensor_is_float(t)) {
        sae_bad_file(s, "tensor %s is %s; F32, BF16, F16 and F64 are supported",
                     t->name, tensor_type_name(t->type));
        return NULL;
    }
    sae_ignore(s, t);
    return t;
}

int sae_take(sae_source *s, const char *name, uint64_t rows, uint64_t cols, tensor *out)
{
    const tensor *t = find_shape(s, name, rows, cols);
    if (t)
        *out = *t;
    return t ? 0 : -1;
}

int sae_take_transposed(sae_source *s, const char *name, uint64_t rows, uint64_t cols,
                        tensor *out)
{
    const tensor *t = find_shape(s, name, cols, rows);
    if (t)
        *out = tensor_transposed(t);
    return t ? 0 : -1;
}

int sae_take_number(sae_source *s, const char *name, double *out)
{
    const tensor *t = sae_tensor(s, name);
    int64_t whole;
    if (!t)
        return missing(s, name);
    if (t->n != 1)
        return sae_bad_file(s, "%s has shape %s, it must be one number", t->name,
                            tensor_shape(t).text);
    sae_ignore(s, t);
    if (tensor_is_float(t))
        return tensor_f64(t, 0, 1, out, s->err, s->cap)
                   ? err_prefix(s->err, s->cap, "%s", name_z(sae_file_name(s)).text)
                   : 0;
    if (!tensor_is_int(t))
        return sae_bad_file(s, "%s is %s, it must be a number", t->name,
                            tensor_type_name(t->type));
    if (tensor_int(t, 0, &whole, s->err, s->cap))
        return err_prefix(s->err, s->cap, "%s", name_z(sae_file_name(s)).text);
    *out = (double)whole;
    return 0;
}

int sae_sizes(sae_source *s, const char *b_enc, const char *b_dec)
{
    const tensor *e = sae_tensor(s, b_enc), *d = sae_tensor(s, b_dec);
    qsae_sae_record *r = &s->record;
    if (!e || !d)
        return missing(s, e ? b_dec : b_enc);
    if (e->rank != 1 || e->n < 1 || e->n > SAE_MAX_D_SAE)
        return sae_bad_file(s, "tensor %s has shape %s, it must be [1..%d]", e->name,
                            tensor_shape(e).text, SAE_MAX_D_SAE);
    if (d->rank != 1 || d->n < 1 || d->n > SAE_MAX_D)
        return sae_bad_file(s, "tensor %s has shape %s, it must be [1..%d]", d->name,
                            tensor_shape(d).text, SAE_MAX_D);
    r->d_sae = (uint32_t)e->n;
    r->d_in = r->d_out = (uint32_t)d->n;
    s->implied = "the biases' length";
    return 0;
}

int sae_not_square(sae_source *s)
{
    if (s->record.d_sae != s->record.d_in || s->o->family || s->unit->config)
        return 0;
    return sae_bad_file(
        s,
        "d_sae and d_in are both %u, so the shapes do not say which way "
        "the matrices lie: --family %s says that it is such a file",
        s->record.d_in, s->family);
}

/* Is this number or text beside the tensors of a .pt one that changes nothing, or is
 * read elsewhere? */
static int entry_is_known(const sae_source *s, const char *key)
{
    static const char *const names[] = {"epoch", "step", "version"};
    char top[64];
    snprintf(top, sizeof top, "%.*s", (int)strcspn(key, "."), key);
    if (convert_ignored(s->o, key) || convert_ignored(s->o, top))
        return 1;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(key, names[i]) == 0)
            return 1;
    /* of a checkpoint of the training */
    return *s->prefix && (strcmp(top, "optimizer") == 0 || strcmp(top, "config") == 0 ||
                          strcmp(key, "norm_factor") == 0);
}

static int check_entry(sae_source *s, const char *key, const char *value)
{
    const qsae_sae_record *r = &s->record;
    safe_name name = name_z(key);
    size_t n = strlen(s->prefix);
    const char *own = strncmp(key, s->prefix, n) == 0 ? key + n : key;
    if (entry_is_known(s, key))
        return 0;
    if (strcmp(own, "k") == 0 && r->k) {
        char number[24];
        snprintf(number, sizeof number, "%u", r->k);
        if (strcmp(value, number) == 0)
            return 0;
        return sae_bad_file(s,
                            "%s is %s, but the SAE keeps %u (--ignore-key %s if that "
                            "is right)",
                            name.text, name_z(value).text, r->k, name.text);
    }
    if (strcmp(own, "activation") == 0 &&
        strcmp(value, qsae_activation_name((qsae_activation)r->activation)) == 0)
        return 0;
    return sae_bad_file(
        s,
        "%s is %s beside the tensors, which is not known here (--ignore-key %s if "
        "it does not change the computation)",
        name.text, name_z(value).text, name.text);
}

/* Numbers and texts beside the tensors of a .pt may say what is computed. */
static int check_entries(sae_source *s)
{
    size_t n =
        tensors_container(s->file) == TENSORS_TORCH ? tensors_meta_count(s->file) : 0;
    for (size_t i = 0; i < n; i++) {
        const char *value, *key = tensors_meta_at(s->file, i, &value);
        if (check_entry(s, key, value))
            return -1;
    }
    return 0;
}

int sae_no_strangers(sae_source *s)
{
    for (size_t i = 0; i < tensors_count(s->file); i++) {
        const tensor *t = tensors_at(s->file, i);
        /* beside the SAE in a checkpoint of the training */
        int known = *s->prefix && (strncmp(t->name, "optimizer.", 10) == 0 ||
                                   strcmp(t->name, "norm_factor") == 0 ||
                                   strcmp(t->name, "step") == 0);
        for (int j = 0; j < s->n_used; j++)
            known |= t == s->used[j];
        if (!known)
            return sae_bad_file(s, "tensor %s is not known: %s %s has no such tensor",
                                name_z(t->name).text,
                                strcmp(s->family, "saelens") == 0 ? "architecture"
                                                                  : "class",
                                s->class_name ? s->class_name : s->family);
    }
    return check_entries(s);
}

/* ---- where it reads and writes ---- */

static const struct {
    const char *name;
    int site;
} hooks[] = {
    {"hook_resid_pre", QSAE_RESID_PRE},   {"hook_resid_mid", QSAE_RESID_MID},
    {"hook_resid_post", QSAE_RESID_POST}, {"attn.hook_z", QSAE_ATTN_Z},
    {"hook_attn_out", QSAE_ATTN_OUT},     {"attn.hook_out", QSAE_ATTN_OUT},
    {"hook_mlp_out", QSAE_MLP_OUT},       {"mlp.hook_out", QSAE_MLP_OUT},
    {"mlp.hook_in", QSAE_MLP_INPUT},
};

static const struct {
    const char *name;
    int site;
} modules[] = {
    /* Hugging Face: a module's output */
    {"", QSAE_RESID_POST},
    {".self_attn", QSAE_ATTN_OUT},
    {".mlp", QSAE_MLP_OUT},
};

/* "PREFIX.N.rest" or "PREFIX.N": the layer and what follows it. */
static const char *split_layer(const char *hook, const char *prefix, int *layer)
{
    size_t n = strlen(prefix);
    char *end;
    if (strncmp(hook, prefix, n) != 0 || hook[n] < '0' || hook[n] > '9')
        return NULL;
    long x = strtol(hook + n, &end, 10);
    if (x >= CONVERT_MAX_LAYERS || (*end && *end != '.'))
        return NULL;
    *layer = (int)x;
    return end;
}

int sae_parse_site(const char *hook)
{
    for (size_t i = 0; i < sizeof hooks / sizeof hooks[0]; i++)
        if (strcmp(hook, hooks[i].name) == 0)
            return hooks[i].site;
    return -1;
}

void sae_parse_hook(const char *hook, int *site, int *layer)
{
    const char *rest = split_layer(hook, "blocks.", layer);
    if (rest && *rest == '.' && sae_parse_site(rest + 1) >= 0)
        *site = sae_parse_site(rest + 1);
    rest = rest ? NULL : split_layer(hook, "model.layers.", layer);
    if (!rest)
        rest = split_layer(hook, "layers.", layer);
    for (size_t i = 0; rest && i < sizeof modules / sizeof modules[0]; i++)
        if (strcmp(rest, modules[i].name) == 0)
            *site = modules[i].site;
}

static const char *hook_advice(const char *hook)
{
    if (hook && strstr(hook, "hook_mlp_in"))
        return " (hook_mlp_in is before the norm, which is resid_mid; some tools mean "
               "mlp_input)";
    if (hook && strstr(hook, "ln2.hook_normalized"))
        return " (the norm's output without its weight, unless the weight was folded: "
               "then mlp_input)";
    return "";
}

int sae_set_place(sae_source *s, int out, int site, int layer, const char *key,
                  const char *value)
{
    const convert_options *o = s->o;
    int site_option = out ? o->site_out : o->site,
        layer_option = out ? o->layer_out : o->layer;
    const char *suffix = out ? "-out" : "";
    if (value)
        qfile_meta_add(&s->lines, out ? "source.hook_out" : "source.hook", "%s",
                       name_z(value).text);
    if ((site_option >= 0 && site >= 0 && site_option != site) ||
        (layer_option >= 0 && layer >= 0 && layer_option != layer))
        convert_note("%s says %s, the options say otherwise: they are followed",
                     s->unit->config ? s->unit->config : key,
                     value ? name_z(value).text : "so");
    /* --layer moves the whole of a transcoder that lies in one layer */
    if (out && layer_option < 0 && layer >= 0 && layer == s->said_layer)
        layer_option = o->layer;
    if (!out)
        s->said_layer = layer;
    if (site_option >= 0)
        site = site_option;
    if (layer_option >= 0)
        layer = layer_option;
    if (!value && strcmp(key, "the site") == 0 && (site < 0 || layer < 0))
        return sae_bad_file(
            s,
            "which %s is meant is not clear: nothing in the file or its "
            "folder's name says it; --site%s SITE and --layer%s N "
            "settle it",
            site >= 0    ? "layer"
            : layer >= 0 ? "site"
                         : "site and layer",
            suffix, suffix);
    if (site < 0 || layer < 0)
        return sae_bad_config(
            s,
            "%s is %s: which %s is meant is not clear%s; --site%s SITE and "
            "--layer%s N settle it",
            key, value ? name_z(value).text : "(absent)", site < 0 ? "site" : "layer",
            hook_advice(value), suffix, suffix);
    if (out) {
        s->record.site_out = (uint32_t)site;
        s->record.layer_out = (uint32_t)layer;
    } else {
        s->record.site_in = (uint32_t)site;
        s->record.layer_in = (uint32_t)layer;
    }
    return 0;
}

int sae_check_places(sae_source *s)
{
    const qsae_sae_record *r = &s->record;
    if (r->layer_out < r->layer_in ||
        (r->layer_out == r->layer_in && r->site_out < r->site_in))
        return sae_bad_config(s, "it writes a site that comes before the one it reads");
    return 0;
}

int sae_same_place(sae_source *s)
{
    qsae_sae_record *r = &s->record;
    r->site_out = s->o->site_out >= 0 ? (uint32_t)s->o->site_out : r->site_in;
    r->layer_out = s->o->layer_out >= 0 ? (uint32_t)s->o->layer_out : r->layer_in;
    return sae_check_places(s);
}

int sae_number_in(const char *text, const char *before, const char *after)
{
    size_t n = strlen(before);
    char *end;
    if (strncmp(text, before, n) != 0 || text[n] < '0' || text[n] > '9')
        return -1;
    long x = strtol(text + n, &end, 10);
    return x < CONVERT_MAX_LAYERS && strcmp(end, after) == 0 ? (int)x : -1;
}

void sae_describe(sae_source *s, const char *producer)
{
    qfile_meta_add(&s->lines, "converter", "qsae %d.%d.%d", QSAE_VERSION_MAJOR,
                   QSAE_VERSION_MINOR, QSAE_VERSION_PATCH);
    qfile_meta_add(&s->lines, "source", "%s", producer);
    qfile_meta_add(&s->lines, "source.family", "%s", s->family);
}
