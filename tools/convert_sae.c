/* SAELens folders (cfg.json, sae_weights.safetensors), written as an SAE file.
 *
 * Followed: SAELens 6.54. cfg keys: saes/<architecture>_sae.py and transcoder.py, the
 * dataclasses; files from before 6.0: loading/pretrained_sae_loaders.py,
 * handle_pre_6_0_config. Forward passes: encode and decode of the same classes. What
 * its formulas do beyond f = act(E norm(x) + b), y = unnorm(D f + c) is folded here, in
 * double, into the tensors; the META lines folded.* of the file say what. With n_i the
 * norm of decoder row i, s the input scale, E' = E as it is stored (rounded if the file
 * is bf16):
 *
 *     rescale_acts_by_decoder_norm   E_i *= n_i, b_i *= n_i, D_i /= n_i
 *     expected_average_only_in       E *= s, D /= s, c /= s  (n_i is then of D / s)
 *     apply_b_dec_to_input           b_i -= E'_i . c         (gated: both biases) */

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include "convert.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define WEIGHTS   "sae_weights.safetensors"
#define MAX_D     65536
#define MAX_D_SAE (1 << 24)

enum { GATED = 1, TRANSCODER = 2, SKIP = 4, BATCH = 8 };

typedef struct architecture {
    const char *name;
    uint32_t activation;
    int flags;
} architecture;

static const architecture architectures[] = {
    {"standard", QSAE_ACT_RELU, 0},
    {"jumprelu", QSAE_ACT_JUMPRELU, 0},
    {"topk", QSAE_ACT_TOPK, 0},
    {"gated", QSAE_ACT_GATED, GATED},
    {"batchtopk", QSAE_ACT_JUMPRELU,
     BATCH}, /* training checkpoints; at inference they are */
    {"matryoshka_batchtopk", QSAE_ACT_JUMPRELU,
     BATCH}, /* JumpReLU with one threshold */
    {"transcoder", QSAE_ACT_RELU, TRANSCODER},
    {"skip_transcoder", QSAE_ACT_RELU, TRANSCODER | SKIP},
    {"jumprelu_transcoder", QSAE_ACT_JUMPRELU, TRANSCODER},
    {"jumprelu_skip_transcoder", QSAE_ACT_JUMPRELU, TRANSCODER | SKIP},
};

typedef struct sae {
    const char *dir;
    const convert_options *o;
    json_doc *doc;
    const json_value *cfg,
        *meta;  /* meta: where the hook is named; v6 "metadata", else cfg */
    int legacy; /* written before SAELens 6 */
    const architecture *arch;
    qsae_sae_record record;
    int subtract, rescale; /* what to fold */
    double scale;          /* s; 1: none */
    tensor_file *file;
    /* d_in = I, d_sae = F, d_out = O */
    const tensor *w_enc, *w_dec, *b_enc,
        *b_dec; /* [I, F], [F, O], [F] (gated: b_gate), [O] */
    const tensor *theta, *r_mag, *b_mag,
        *skip; /* [F] or one number, [F], [F], [O, I] */
    int theta_is_log;
    uint32_t type; /* of the matrices */
    double *c;     /* [O] decoder bias, scaled */
    double *n;     /* [F] decoder norms n_i, NULL: not rescaled */
    double *shift; /* [F] E'_i . c */
    qfile_meta lines;
    char *err;
    size_t cap;
} sae;

/* ---- cfg.json ---- */

/* Keys of a v6 file that are read below, or that only concern training and provenance.
 * Before 6.0 the training run's whole configuration was stored, and SAELens reads a
 * fixed set of it. */
static const char *const known_keys[] = {
    "activation_fn",
    "activation_fn_kwargs",
    "activation_fn_str",
    "apply_b_dec_to_input",
    "architecture",
    "d_in",
    "d_out",
    "d_sae",
    "device",
    "dtype",
    "finetuning_scaling_factor",
    "hook_head_index",
    "hook_layer",
    "hook_name",
    "hook_name_out",
    "k",
    "metadata",
    "model_name",
    "normalize_activations",
    "rescale_acts_by_decoder_norm",
    "reshape_activations",
    "sae_lens_training_version",
    "sae_lens_version",
    "aux_loss_coefficient",
    "context_size",
    "dataset_path",
    "dataset_trust_remote_code",
    "decoder_heuristic_init",
    "decoder_init_norm",
    "exclude_special_tokens",
    "hf_hook_name",
    "init_encoder_as_decoder_transpose",
    "jumprelu_bandwidth",
    "jumprelu_init_threshold",
    "jumprelu_sparsity_loss_mode",
    "jumprelu_ste_to_input",
    "jumprelu_tanh_scale",
    "l0_coefficient",
    "l0_warm_up_steps",
    "l1_coefficient",
    "l1_warm_up_steps",
    "lp_norm",
    "matryoshka_widths",
    "model_class_name",
    "model_from_pretrained_kwargs",
    "mse_loss_normalization",
    "neuronpedia_id",
    "noise_factor",
    "normalize_sae_decoder",
    "pre_act_loss_coefficient",
    "prepend_bos",
    "scale_sparsity_penalty_by_decoder_norm",
    "seqpos_slice",
    "target_l0",
    "topk_threshold_lr",
    "use_ghost_grads",
    "use_matryoshka_aux_loss",
    "use_sparse_activations",
};

static int refuse(sae *s, const char *what)
{
    return err_set(s->err, s->cap, "cfg.json: %s", what);
}

static const json_value *get(const sae *s, const json_value *object, const char *key)
{
    const json_value *v = json_get(s->doc, object, key);
    return v && v->type != JSON_NULL ? v : NULL;
}

static int is_text(const json_value *v, const char *text)
{
    return v && v->type == JSON_STRING && v->len == strlen(text) &&
           strcmp(v->str, text) == 0;
}

static safe_name text_of(const json_value *v)
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

static int get_bool(sae *s, const char *key, int *out)
{
    const json_value *v = get(s, s->cfg, key);
    if (v && !json_bool(v, out))
        return err_set(s->err, s->cap, "cfg.json: %s is %s, not true or false", key,
                       text_of(v).text);
    return 0;
}

/* A required whole number. */
static int get_size(sae *s, const char *key, int64_t max, uint32_t *out)
{
    const json_value *v = get(s, s->cfg, key);
    int64_t x;
    if (!json_int(v, &x) || x < 1 || x > max)
        return err_set(s->err, s->cap,
                       "cfg.json: %s is %s, it must be a whole number in 1..%" PRId64,
                       key, text_of(v).text, max);
    *out = (uint32_t)x;
    return 0;
}

static int check_keys(sae *s)
{
    for (const json_value *v = json_first(s->doc, s->cfg); v && !s->legacy;
         v = json_next(s->doc, v)) {
        const char *key = json_key(s->doc, v, NULL);
        int known = convert_ignored(s->o, key) || v->type == JSON_NULL;
        for (size_t i = 0; i < sizeof known_keys / sizeof known_keys[0] && !known; i++)
            known = strcmp(key, known_keys[i]) == 0;
        if (!known)
            return err_set(
                s->err, s->cap,
                "cfg.json: the key %s is not known here (--ignore-key %s if it "
                "does not change the computation)",
                name_z(key).text, name_z(key).text);
    }
    return 0;
}

/* Before 6.0.0 the keys were flat and some had other names and defaults. */
static void find_version(sae *s)
{
    const json_value *meta = get(s, s->cfg, "metadata");
    const json_value *v = get(s, s->cfg, "sae_lens_version");
    if (!v)
        v = get(s, meta, "sae_lens_version");
    s->legacy = !v || v->type != JSON_STRING || strtol(v->str, NULL, 10) < 6;
    s->meta = meta && meta->type == JSON_OBJECT ? meta : s->cfg;
    if (v && v->type == JSON_STRING)
        qfile_meta_add(&s->lines, "source.sae_lens", "%s", name_n(v->str, v->len).text);
}

static int read_architecture(sae *s)
{
    const json_value *v = get(s, s->cfg, "architecture");
    const json_value *fn = get(s, s->cfg, "activation_fn"),
                     *kwargs = get(s, s->cfg, "activation_fn_kwargs");
    if (!fn)
        fn = get(s, s->cfg, "activation_fn_str");
    const char *name = v && v->type == JSON_STRING ? v->str
                       : s->legacy && !v           ? "standard"
                                                   : "";
    if (is_text(fn, "topk")) {
        if (!get(s, kwargs, "k") && !get(s, s->cfg, "k"))
            return refuse(s, "activation_fn is topk, but there is no k");
        if (strcmp(name, "standard") == 0)
            name = "topk";
    } else if (fn && !is_text(fn, "relu")) {
        return err_set(s->err, s->cap,
                       "cfg.json: activation_fn is %s; relu and topk are supported",
                       text_of(fn).text);
    }
    for (size_t i = 0; i < sizeof architectures / sizeof architectures[0]; i++)
        if (strcmp(name, architectures[i].name) == 0)
            s->arch = &architectures[i];
    if (!s->arch)
        return err_set(
            s->err, s->cap,
            "cfg.json: architecture is %s; supported are standard, jumprelu, topk, "
            "gated, batchtopk, matryoshka_batchtopk, and transcoder, skip_transcoder, "
            "jumprelu_transcoder, jumprelu_skip_transcoder",
            text_of(v).text);
    s->record.activation = s->arch->activation;
    s->record.flags = s->arch->flags & SKIP ? QSAE_SAE_SKIP : 0;
    qfile_meta_add(&s->lines, "source.architecture", "%s", s->arch->name);
    return 0;
}

static int read_sizes(sae *s)
{
    qsae_sae_record *r = &s->record;
    const json_value *kwargs = get(s, s->cfg, "activation_fn_kwargs"),
                     *k = get(s, s->cfg, "k");
    int64_t n;
    if (get_size(s, "d_in", MAX_D, &r->d_in) ||
        get_size(s, "d_sae", MAX_D_SAE, &r->d_sae))
        return -1;
    r->d_out = r->d_in;
    if (s->arch->flags & TRANSCODER) {
        r->d_out = 768; /* TranscoderConfig's default */
        if (get(s, s->cfg, "d_out") && get_size(s, "d_out", MAX_D, &r->d_out))
            return -1;
    }
    if (r->activation != QSAE_ACT_TOPK)
        return 0;
    if (s->legacy && get(s, kwargs, "k"))
        k = get(s, kwargs, "k");
    n = 100; /* TopKSAEConfig's default */
    if ((k && !json_int(k, &n)) || n < 1 || n > (int64_t)r->d_sae)
        return err_set(s->err, s->cap,
                       "cfg.json: k is %s, it must be a whole number in 1..%u (d_sae)",
                       k ? text_of(k).text : "100 (the default)", r->d_sae);
    r->k = (uint32_t)n;
    return 0;
}

/* The value of activation_scaler.json, which SAELens writes next to a checkpoint, for
 * the message. */
static void scale_advice(const sae *s, char *out, size_t cap)
{
    char why[ERR_CAP];
    json_doc *doc;
    double x;
    snprintf(
        out, cap,
        "--norm-scale X settles it, where X is what activations were multiplied by");
    if (!convert_exists(s->dir, "activation_scaler.json") ||
        convert_read_json(s->dir, "activation_scaler.json", &doc, why, sizeof why))
        return;
    if (json_real(json_get(doc, json_root(doc), "scaling_factor"), &x))
        snprintf(out, cap, "activation_scaler.json next to it says: --norm-scale %.17g",
                 x);
    json_free(doc);
}

static int read_norm(sae *s)
{
    const json_value *v = get(s, s->cfg, "normalize_activations");
    char advice[200];
    int given = s->o->norm_scale > 0, expected = is_text(v, "expected_average_only_in");
    qsae_sae_record *r = &s->record;
    if (s->legacy && v && (v->type == JSON_TRUE || v->type == JSON_FALSE)) {
        expected = v->type == JSON_TRUE;
        v = NULL;
    }
    s->scale = 1;
    if (expected && !given) {
        scale_advice(s, advice, sizeof advice);
        return err_set(
            s->err, s->cap,
            "cfg.json: normalize_activations is expected_average_only_in, but the "
            "scale is not in the file; %s",
            advice);
    }
    if (given && !expected)
        return refuse(s, "normalize_activations is not expected_average_only_in, so "
                         "--norm-scale has no place");
    if (expected)
        s->scale = s->o->norm_scale;
    else if (is_text(v, "constant_norm_rescale"))
        r->norm = QSAE_NORM_CONSTANT;
    else if (is_text(v, "layer_norm"))
        r->norm = QSAE_NORM_LAYER;
    else if (v && !is_text(v, "none"))
        return err_set(
            s->err, s->cap,
            "cfg.json: normalize_activations is %s; none, expected_average_only_in, "
            "constant_norm_rescale and layer_norm are supported",
            text_of(v).text);
    if ((s->arch->flags & TRANSCODER) && (expected || r->norm))
        return refuse(s, "a transcoder with normalize_activations is not supported: "
                         "its output scale is not "
                         "defined");
    return 0;
}

static int read_options(sae *s)
{
    int transcoder = s->arch->flags & TRANSCODER;
    int topk = s->arch->activation == QSAE_ACT_TOPK;
    s->subtract = transcoder ? 0 : 1; /* SAEConfig's default */
    s->rescale = s->arch->flags & BATCH
                     ? 1
                     : 0; /* TopKTrainingSAEConfig's default; TopKSAEConfig: false */
    if (get_bool(s, "apply_b_dec_to_input", &s->subtract) ||
        get_bool(s, "rescale_acts_by_decoder_norm", &s->rescale))
        return -1;
    if (transcoder && s->subtract)
        return refuse(s, "apply_b_dec_to_input is true, which SAELens does not allow "
                         "for a transcoder");
    if (!topk && !(s->arch->flags & BATCH))
        s->rescale = 0; /* no other class has the key */
    return read_norm(s);
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

/* *site stays -1 where the name does not say which site. */
static void parse_hook(const char *hook, int *site, int *layer)
{
    const char *rest = split_layer(hook, "blocks.", layer);
    if (rest && *rest == '.')
        for (size_t i = 0; i < sizeof hooks / sizeof hooks[0]; i++)
            if (strcmp(rest + 1, hooks[i].name) == 0)
                *site = hooks[i].site;
    rest = rest ? NULL : split_layer(hook, "model.layers.", layer);
    for (size_t i = 0; rest && i < sizeof modules / sizeof modules[0]; i++)
        if (strcmp(rest, modules[i].name) == 0)
            *site = modules[i].site;
}

static const char *hook_advice(const char *hook)
{
    if (strstr(hook, "hook_mlp_in"))
        return " (hook_mlp_in is before the norm, which is resid_mid; some tools mean "
               "mlp_input)";
    if (strstr(hook, "ln2.hook_normalized"))
        return " (the norm's output without its weight, unless the weight was folded: "
               "then mlp_input)";
    return "";
}

/* One end: from the options, else from the hook's name. `out` is "" or "-out". */
static int read_site(sae *s, const char *key, const char *out, int site_option,
                     int layer_option, uint32_t *site, uint32_t *layer)
{
    const json_value *v = get(s, s->meta, key);
    int from_site = -1, from_layer = -1;
    if (!v && !*out && s->legacy)
        v = get(s, s->meta, "hook_point");
    if (!v)
        v = get(s, s->cfg, key);
    if (v && v->type == JSON_STRING && strlen(v->str) == v->len) {
        parse_hook(v->str, &from_site, &from_layer);
        qfile_meta_add(&s->lines, *out ? "source.hook_out" : "source.hook", "%s",
                       name_z(v->str).text);
    }
    if ((site_option >= 0 && from_site >= 0 && site_option != from_site) ||
        (layer_option >= 0 && from_layer >= 0 && layer_option != from_layer))
        convert_note("cfg.json says %s, the options say otherwise: they are followed",
                     text_of(v).text);
    if (site_option >= 0)
        from_site = site_option;
    if (layer_option >= 0)
        from_layer = layer_option;
    if (from_site < 0 || from_layer < 0)
        return err_set(
            s->err, s->cap,
            "cfg.json: %s is %s: which %s is meant is not clear%s; --site%s SITE "
            "and --layer%s N settle it",
            key, text_of(v).text, from_site < 0 ? "site" : "layer",
            v && v->type == JSON_STRING ? hook_advice(v->str) : "", out, out);
    *site = (uint32_t)from_site;
    *layer = (uint32_t)from_layer;
    return 0;
}

static int read_places(sae *s)
{
    qsae_sae_record *r = &s->record;
    const json_value *head = get(s, s->meta, "hook_head_index"),
                     *layer = get(s, s->cfg, "hook_layer");
    const json_value *reshape = get(s, s->cfg, "reshape_activations");
    const convert_options *o = s->o;
    int64_t x;
    if (!head)
        head = get(s, s->cfg, "hook_point_head_index");
    if (head)
        return err_set(s->err, s->cap,
                       "cfg.json: hook_head_index is %s; SAEs of a single head are not "
                       "supported",
                       text_of(head).text);
    if (read_site(s, "hook_name", "", o->site, o->layer, &r->site_in, &r->layer_in))
        return -1;
    if (o->layer < 0 && layer && (!json_int(layer, &x) || x != (int64_t)r->layer_in))
        return err_set(
            s->err, s->cap,
            "cfg.json: hook_layer is %s, the hook's name says layer %u; --layer N "
            "settles it",
            text_of(layer).text, r->layer_in);
    r->site_out = r->site_in;
    r->layer_out = r->layer_in;
    if (s->arch->flags & TRANSCODER) {
        if (read_site(s, "hook_name_out", "-out", o->site_out, o->layer_out,
                      &r->site_out, &r->layer_out))
            return -1;
        if (r->layer_out < r->layer_in ||
            (r->layer_out == r->layer_in && r->site_out < r->site_in))
            return refuse(s, "it writes a site that comes before the one it reads");
    } else if (o->site_out >= 0 || o->layer_out >= 0) {
        return refuse(s, "--site-out and --layer-out are for transcoders");
    }
    /* z flattened over heads is our attn_z; without it each head went in alone */
    int hook_z = is_text(reshape, "hook_z") ||
                 (!reshape && s->legacy && r->site_in == QSAE_ATTN_Z);
    if (reshape && !hook_z && !is_text(reshape, "none"))
        return err_set(
            s->err, s->cap,
            "cfg.json: reshape_activations is %s; none and hook_z are supported",
            text_of(reshape).text);
    if (hook_z != (r->site_in == QSAE_ATTN_Z))
        return refuse(
            s, hook_z ? "reshape_activations is hook_z, but the site is not attn_z"
                      : "the site is attn_z, but reshape_activations is not hook_z");
    return 0;
}

static void describe_source(sae *s)
{
    static const char *const keys[] = {"model_name", "prepend_bos", "context_size",
                                       "dataset_path", "neuronpedia_id"};
    qfile_meta_add(&s->lines, "converter", "qsae %d.%d.%d", QSAE_VERSION_MAJOR,
                   QSAE_VERSION_MINOR, QSAE_VERSION_PATCH);
    qfile_meta_add(&s->lines, "source", "SAELens");
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        char key[64];
        const json_value *v = get(s, s->meta, keys[i]);
        snprintf(key, sizeof key, "source.%s", keys[i]);
        if (v && v->type != JSON_ARRAY && v->type != JSON_OBJECT)
            qfile_meta_add(&s->lines, key, "%s", text_of(v).text);
    }
}

static int read_cfg(sae *s)
{
    if (convert_read_json(s->dir, "cfg.json", &s->doc, s->err, s->cap))
        return -1;
    s->cfg = json_root(s->doc);
    find_version(s);
    describe_source(s);
    if (check_keys(s) || read_architecture(s) || read_sizes(s) || read_options(s) ||
        read_places(s))
        return -1;
    /* per-token norms and an input scale leave f in the SAE's own scale; a unit decoder
     * brings it back */
    s->record.feature_unit = s->record.norm || (s->scale != 1 && !s->rescale)
                                 ? QSAE_UNIT_NORMALIZED
                                 : QSAE_UNIT_RAW;
    return 0;
}

/* ---- sae_weights.safetensors ---- */

static int take(sae *s, const char *name, uint64_t rows, uint64_t cols,
                const tensor **out)
{
    uint64_t shape[2] = {rows ? rows : cols, cols};
    uint32_t rank = rows ? 2 : 1;
    const tensor *t = *out = tensors_find(s->file, name);
    if (!t)
        return err_set(s->err, s->cap,
                       WEIGHTS ": tensor %s is missing, which architecture %s has",
                       name, s->arch->name);
    if (t->rank != rank || memcmp(t->shape, shape, rank * sizeof shape[0]) != 0)
        return err_set(s->err, s->cap,
                       WEIGHTS
                       ": tensor %s has shape %s, cfg.json implies %s (d_in %u, d_sae "
                       "%u, d_out %u)",
                       name, tensor_shape(t).text, tensor_shape_of(rank, shape).text,
                       s->record.d_in, s->record.d_sae, s->record.d_out);
    if (!tensor_is_float(t))
        return err_set(s->err, s->cap,
                       WEIGHTS
                       ": tensor %s is %s; F32, BF16, F16 and F64 are supported",
                       name, tensor_type_name(t->type));
    return 0;
}

/* threshold [F]; log_threshold [F] before 6.48; topk_threshold, one number, in
 * BatchTopK checkpoints. */
static int take_threshold(sae *s)
{
    const tensor *t = tensors_find(s->file, "topk_threshold");
    if ((s->arch->flags & BATCH) && t) {
        if (t->n != 1 || !tensor_is_float(t))
            return err_set(s->err, s->cap,
                           WEIGHTS
                           ": topk_threshold has shape %s, it must be one number",
                           tensor_shape(t).text);
        s->theta = t;
        return 0;
    }
    s->theta_is_log = !(s->arch->flags & (BATCH | TRANSCODER)) &&
                      !tensors_find(s->file, "threshold") &&
                      tensors_find(s->file, "log_threshold");
    return take(s, s->theta_is_log ? "log_threshold" : "threshold", 0, s->record.d_sae,
                &s->theta);
}

/* scaling_factor of ones is what SAELens itself drops (torch.allclose); any other is
 * refused. */
static int drop_scaling_factor(sae *s, const tensor *t)
{
    for (uint64_t i = 0; i < t->n; i++) {
        double x;
        if (!tensor_is_float(t))
            break;
        if (tensor_f64(t, i, 1, &x, s->err, s->cap))
            return err_prefix(s->err, s->cap, WEIGHTS);
        if (!(fabs(x - 1) <= 1e-8 + 1e-5))
            return err_set(s->err, s->cap,
                           WEIGHTS ": scaling_factor has %g at %" PRIu64
                                   "; finetuning scales "
                                   "other than 1 are not supported",
                           x, i);
    }
    return 0;
}

static int check_strangers(sae *s)
{
    const tensor *used[] = {s->w_enc, s->w_dec, s->b_enc, s->b_dec,
                            s->theta, s->r_mag, s->b_mag, s->skip};
    for (size_t i = 0; i < tensors_count(s->file); i++) {
        const tensor *t = tensors_at(s->file, i);
        int known = 0;
        for (size_t j = 0; j < sizeof used / sizeof used[0]; j++)
            known |= t == used[j];
        if (!known && strcmp(t->name, "scaling_factor") == 0) {
            if (drop_scaling_factor(s, t))
                return -1;
        } else if (!known) {
            return err_set(s->err, s->cap,
                           WEIGHTS
                           ": tensor %s is not known: architecture %s has no such "
                           "tensor",
                           name_z(t->name).text, s->arch->name);
        }
    }
    return 0;
}

static int read_weights(sae *s)
{
    const qsae_sae_record *r = &s->record;
    int gated = s->arch->flags & GATED;
    char *path = convert_path(s->dir, WEIGHTS);
    s->file = path ? tensors_open(path, s->err, s->cap) : NULL;
    if (!path)
        err_set(s->err, s->cap, "out of memory");
    free(path);
    if (!s->file || take(s, "W_enc", r->d_in, r->d_sae, &s->w_enc) ||
        take(s, "W_dec", r->d_sae, r->d_out, &s->w_dec) ||
        take(s, gated ? "b_gate" : "b_enc", 0, r->d_sae, &s->b_enc) ||
        take(s, "b_dec", 0, r->d_out, &s->b_dec))
        return -1;
    if (gated && (take(s, "r_mag", 0, r->d_sae, &s->r_mag) ||
                  take(s, "b_mag", 0, r->d_sae, &s->b_mag)))
        return -1;
    if (r->activation == QSAE_ACT_JUMPRELU && take_threshold(s))
        return -1;
    if ((s->arch->flags & SKIP) && take(s, "W_skip", r->d_out, r->d_in, &s->skip))
        return -1;
    return check_strangers(s);
}

/* ---- what is folded ---- */

/* n_i of D / s. A decoder that is normalized already (every n_i is 1 up to f32
 * rounding, as in what SAELens saves after training) is left alone: multiplying
 * by 1.0000001 would only move the last bits. */
static int decoder_norms(sae *s)
{
    uint64_t F = s->record.d_sae, O = s->record.d_out;
    double *row = malloc((size_t)O * sizeof *row), worst = 0;
    int status = 0;
    s->n = malloc((size_t)F * sizeof *s->n);
    if (!row || !s->n)
        status = err_set(s->err, s->cap, "out of memory");
    for (uint64_t i = 0; i < F && !status; i++) {
        double sum = 0;
        status = tensor_f64(s->w_dec, i * O, O, row, s->err, s->cap);
        for (uint64_t j = 0; j < O && !status; j++)
            sum += row[j] * row[j];
        s->n[i] =
            fmax(sqrt(sum), 1e-8) / s->scale; /* 1e-8 as in SAELens' get_W_dec_norm */
        worst = fmax(worst, fabs(s->n[i] - 1));
    }
    free(row);
    if (status)
        return -1;
    if (worst <= 1e-6) {
        free(s->n);
        s->n = NULL;
    }
    qfile_meta_add(&s->lines, "folded.decoder_norms", "%s",
                   s->n ? "yes (rescale_acts_by_decoder_norm)"
                        : "not needed: the decoder rows have norm 1");
    return 0;
}

static int describe_thresholds(sae *s)
{
    uint64_t below = 0;
    for (uint64_t i = 0; i < s->theta->n && !s->theta_is_log; i++) {
        double x;
        if (tensor_f64(s->theta, i, 1, &x, s->err, s->cap))
            return err_prefix(s->err, s->cap, WEIGHTS);
        below += x < 0;
    }
    if (s->theta->n == 1 && s->record.d_sae != 1)
        qfile_meta_add(&s->lines, "folded.threshold",
                       "one threshold for all features (%s)", s->arch->name);
    else if (below > 0)
        qfile_meta_add(&s->lines, "folded.threshold",
                       "%" PRIu64 " below 0 became 0, which is the same", below);
    return 0;
}

static int prepare(sae *s)
{
    size_t O = s->record.d_out, F = s->record.d_sae;
    s->c = malloc(O * sizeof *s->c);
    s->shift = calloc(F, sizeof *s->shift);
    if (!s->c || !s->shift)
        return err_set(s->err, s->cap, "out of memory");
    if (tensor_f64(s->b_dec, 0, O, s->c, s->err, s->cap))
        return err_prefix(s->err, s->cap, WEIGHTS);
    for (size_t j = 0; j < O; j++)
        s->c[j] /= s->scale;
    if (s->rescale && decoder_norms(s))
        return err_prefix(s->err, s->cap, WEIGHTS);
    if (s->subtract)
        qfile_meta_add(&s->lines, "folded.b_dec",
                       "b_enc -= W_enc . b_dec (apply_b_dec_to_input)");
    if (s->scale != 1)
        qfile_meta_add(&s->lines, "folded.norm_scale",
                       "%.17g (expected_average_only_in)", s->scale);
    if (s->theta && describe_thresholds(s))
        return -1;
    int exact = s->w_enc->type == TENSOR_BF16 && s->w_dec->type == TENSOR_BF16 &&
                (!s->skip || s->skip->type == TENSOR_BF16) && s->scale == 1 && !s->n;
    s->type = s->o->type ? s->o->type : exact ? QSAE_TYPE_BF16 : QSAE_TYPE_F32;
    qfile_meta_add(&s->lines, "weights", "%s",
                   s->o->type == QSAE_TYPE_BF16 ? "rounded to bf16, nearest even"
                   : s->w_enc->type == TENSOR_F64 || s->w_dec->type == TENSOR_F64 ||
                           s->scale != 1 || s->n
                       ? "rounded once to f32"
                       : "as stored");
    return 0;
}

/* ---- tensors of the file ---- */

static double norm_of(const sae *s, uint64_t i)
{
    return s->n ? s->n[i] : 1.0;
}

/* ENC [F, I] from W_enc [I, F], and the shift of the biases for these rows. */
static int fill_enc(void *user, const qfile_part *p, float *out, char *err, size_t cap)
{
    sae *s = user;
    const uint64_t I = s->record.d_in, n = p->n_rows;
    double *v = malloc((size_t)(64 * n) * sizeof *v);
    int status = v ? 0 : err_set(err, cap, "out of memory");
    for (uint64_t j = 0; j < I && !status; j += 64) {
        uint64_t m = I - j < 64 ? I - j : 64; /* rows of W_enc: v[m, n] */
        status = tensor_block_f64(s->w_enc, j, m, p->row, n, v, err, cap);
        for (uint64_t i = 0; i < n && !status; i++) {
            double by = s->scale * norm_of(s, p->row + i);
            for (uint64_t k = 0; k < m; k++) {
                float x = (float)(v[k * n + i] * by);
                out[i * I + j + k] =
                    s->type == QSAE_TYPE_BF16 && isfinite(x) ? qfile_round_bf16(x) : x;
            }
        }
    }
    free(v);
    if (status)
        return -1;
    for (uint64_t i = 0; i < p->n_rows && s->subtract; i++) {
        double sum = 0;
        for (uint64_t j = 0; j < I; j++)
            sum += (double)out[i * I + j] * s->c[j];
        s->shift[p->row + i] = sum;
    }
    return 0;
}

/* DEC [F, O] */
static int fill_dec(void *user, const qfile_part *p, float *out, char *err, size_t cap)
{
    sae *s = user;
    uint64_t O = s->record.d_out;
    double *v = malloc((size_t)O * sizeof *v);
    int status = v ? 0 : err_set(err, cap, "out of memory");
    for (uint64_t i = 0; i < p->n_rows && !status; i++) {
        double by = s->scale * norm_of(s, p->row + i);
        status = tensor_block_f64(s->w_dec, p->row + i, 1, 0, O, v, err, cap);
        for (uint64_t j = 0; j < O && !status; j++)
            out[i * O + j] = (float)(v[j] / by);
    }
    free(v);
    return status;
}

/* SKIP [O, I] */
static int fill_skip(void *user, const qfile_part *p, float *out, char *err, size_t cap)
{
    sae *s = user;
    return tensor_block_f32(s->skip, p->row, p->n_rows, p->col, p->n_cols, out, err,
                            cap);
}

/* A vector [F] from a tensor t [F] or [1]; feature i is what `fold` makes of it. */
typedef int (*fold_fn)(sae *s, uint64_t i, double *x);

static int fold_bias(sae *s, uint64_t i, double *x)
{
    *x = *x * norm_of(s, i) - s->shift[i];
    return 0;
}

/* A threshold below 0 is 0: SAELens' inference classes compute relu(z) where z > theta,
 * so nothing below 0 comes through. Not so the one number of a BatchTopK checkpoint:
 * it averages positive values, so below 0 it is damaged. */
static int fold_theta(sae *s, uint64_t i, double *x)
{
    (void)i;
    if (s->theta_is_log)
        *x = exp(*x);
    if (*x < 0 && (s->arch->flags & BATCH))
        return err_set(s->err, s->cap, "%s is %g, it cannot be below 0", s->theta->name,
                       *x);
    /* the scale: as BatchTopKTrainingSAE.fold_activation_norm_scaling_factor */
    if ((s->arch->flags & BATCH) && s->rescale)
        *x /= s->scale;
    *x = *x <= 0 ? 0 : *x; /* -0 too */
    return 0;
}

static int fold_mag_scale(sae *s, uint64_t i, double *x)
{
    double r = *x;
    *x = exp(r);
    if ((float)*x > 0 && isfinite((float)*x))
        return 0;
    return err_set(s->err, s->cap,
                   "exp(r_mag) of feature %" PRIu64 " does not fit in f32: r_mag is %g",
                   i, r);
}

static int fold_mag_bias(sae *s, uint64_t i, double *x)
{
    double r;
    if (tensor_f64(s->r_mag, i, 1, &r, s->err, s->cap))
        return -1;
    *x -= (double)(float)exp(r) * s->shift[i]; /* the scale as the file has it */
    return 0;
}

static int write_vector(sae *s, qfile *q, const tensor *t, fold_fn fold)
{
    size_t F = s->record.d_sae;
    float *v = malloc(F * sizeof *v);
    int status = v ? 0 : err_set(s->err, s->cap, "out of memory");
    for (size_t i = 0; i < F && !status; i++) {
        double x;
        status =
            tensor_f64(t, t->n == 1 ? 0 : i, 1, &x, s->err, s->cap) || fold(s, i, &x);
        v[i] = status ? 0 : (float)x;
        if (!status && !isfinite(v[i]))
            status = err_set(s->err, s->cap,
                             "tensor %s: feature %zu does not fit in f32: %g", t->name,
                             i, x);
    }
    if (!status)
        status = qfile_vector(q, v, s->err, s->cap);
    free(v);
    return status ? err_prefix(s->err, s->cap, WEIGHTS) : 0;
}

static int write_b_dec(sae *s, qfile *q)
{
    size_t O = s->record.d_out;
    float *v = malloc(O * sizeof *v);
    int status = v ? 0 : err_set(s->err, s->cap, "out of memory");
    for (size_t j = 0; j < O && !status; j++)
        v[j] = (float)s->c[j];
    if (!status)
        status = qfile_vector(q, v, s->err, s->cap);
    free(v);
    return status ? err_prefix(s->err, s->cap, WEIGHTS ": b_dec") : 0;
}

static int write_matrix(sae *s, qfile *q, const char *name, qfile_fill fill)
{
    char why[ERR_CAP];
    if (qfile_matrix(q, fill, s, why, sizeof why) == 0)
        return 0;
    /* the writer knows the place in our matrix, not the name */
    return err_set(s->err, s->cap, WEIGHTS ": %s%.*s%s%.300s",
                   strncmp(why, "row ", 4) == 0 ? "tensor " : "",
                   strncmp(why, "row ", 4) == 0 ? 16 : 0, name,
                   strncmp(why, "row ", 4) == 0 ? ": " : "", why);
}

static int declare(const sae *s, qfile *q, uint32_t group, char *err, size_t cap)
{
    const qsae_sae_record *r = &s->record;
    const uint32_t rows = QSAE_LAYOUT_ROWS, vec = QSAE_LAYOUT_VECTOR,
                   f32 = QSAE_TYPE_F32;
    int gated = r->activation == QSAE_ACT_GATED,
        jump = r->activation == QSAE_ACT_JUMPRELU;
    if (qfile_declare(q, group, QSAE_ROLE_META, QSAE_TYPE_BYTES, QSAE_LAYOUT_BYTES, 1,
                      s->lines.len, err, cap) ||
        qfile_declare(q, group, QSAE_ROLE_ENC, s->type, rows, r->d_sae, r->d_in, err,
                      cap) ||
        qfile_declare(q, group, QSAE_ROLE_DEC, s->type, rows, r->d_sae, r->d_out, err,
                      cap) ||
        qfile_declare(q, group, QSAE_ROLE_B_ENC, f32, vec, 1, r->d_sae, err, cap))
        return -1;
    if (jump &&
        qfile_declare(q, group, QSAE_ROLE_THETA, f32, vec, 1, r->d_sae, err, cap))
        return -1;
    if (gated &&
        (qfile_declare(q, group, QSAE_ROLE_MAG_SCALE, f32, vec, 1, r->d_sae, err,
                       cap) ||
         qfile_declare(q, group, QSAE_ROLE_MAG_BIAS, f32, vec, 1, r->d_sae, err, cap)))
        return -1;
    if (qfile_declare(q, group, QSAE_ROLE_B_DEC, f32, vec, 1, r->d_out, err, cap))
        return -1;
    return s->skip ? qfile_declare(q, group, QSAE_ROLE_SKIP, s->type,
                                   QSAE_LAYOUT_BLOCK16, r->d_out, r->d_in, err, cap)
                   : 0;
}

static int write_sae(sae *s, qfile *q)
{
    if (qfile_bytes(q, s->lines.text, s->err, s->cap) ||
        write_matrix(s, q, "W_enc", fill_enc) ||
        write_matrix(s, q, "W_dec", fill_dec) ||
        write_vector(s, q, s->b_enc, fold_bias))
        return -1;
    if (s->theta && write_vector(s, q, s->theta, fold_theta))
        return -1;
    if (s->r_mag && (write_vector(s, q, s->r_mag, fold_mag_scale) ||
                     write_vector(s, q, s->b_mag, fold_mag_bias)))
        return -1;
    if (write_b_dec(s, q))
        return -1;
    return s->skip ? write_matrix(s, q, "W_skip", fill_skip) : 0;
}

/* ---- one file from all folders ---- */

static void sae_free(sae *s)
{
    json_free(s->doc);
    tensors_close(s->file);
    free(s->c);
    free(s->n);
    free(s->shift);
    qfile_meta_free(&s->lines);
}

static int sae_read(sae *s)
{
    if (read_cfg(s) || read_weights(s) || prepare(s) ||
        convert_name(s->dir, s->o, s->record.name, sizeof s->record.name, s->err,
                     s->cap))
        return -1;
    return qfile_meta_finish(&s->lines, s->err, s->cap);
}

static int by_place(const void *a, const void *b)
{
    const qsae_sae_record *x = &((const sae *)a)->record,
                          *y = &((const sae *)b)->record;
    const uint32_t p[4] = {x->layer_in, x->site_in, x->layer_out, x->site_out};
    const uint32_t r[4] = {y->layer_in, y->site_in, y->layer_out, y->site_out};
    for (int i = 0; i < 4; i++)
        if (p[i] != r[i])
            return p[i] < r[i] ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int same_names(const sae *list, int n, int *a, int *b)
{
    for (*a = 0; *a < n; ++*a)
        for (*b = *a + 1; *b < n; ++*b)
            if (strcmp(list[*a].record.name, list[*b].record.name) == 0)
                return 1;
    return 0;
}

/* Names are unique in a file. Where folders are called alike, as layer_3/sae and
 * layer_4/sae, members are called after their site: resid_post.3 */
static int name_members(sae *list, int n, char *err, size_t cap)
{
    int a, b;
    if (!same_names(list, n, &a, &b))
        return 0;
    for (int i = 0; i < n; i++) {
        qsae_sae_record *r = &list[i].record;
        memset(r->name, 0, sizeof r->name);
        snprintf(r->name, sizeof r->name, "%s.%u",
                 qsae_site_name((qsae_site)r->site_in), r->layer_in);
    }
    if (!same_names(list, n, &a, &b))
        return 0;
    return err_set(
        err, cap,
        "%s and %s have one folder name and one site, so nothing tells them apart",
        name_z(list[a].dir).text, name_z(list[b].dir).text);
}

static int write_file(sae *list, int n, const convert_options *o, char *err, size_t cap)
{
    qfile *q = qfile_create(o->out, QSAE_KIND_SAE, (uint32_t)n, err, cap);
    int status = q ? 0 : -1;
    for (int i = 0; i < n && !status; i++) {
        memcpy(qfile_record(q, (uint32_t)i), &list[i].record, sizeof list[i].record);
        status = declare(&list[i], q, 1 + (uint32_t)i, err, cap);
    }
    for (int i = 0; i < n && !status; i++) {
        status = write_sae(&list[i], q);
        if (status && n > 1)
            err_prefix(err, cap, "%s", name_z(list[i].dir).text);
    }
    if (!status)
        return qfile_finish(q, qfile_check_sae, err, cap);
    qfile_abort(q);
    return -1;
}

static void report(const sae *s, const char *out)
{
    static const char *const activations[] = {"", "relu", "jumprelu", "topk", "gated"};
    const qsae_sae_record *r = &s->record;
    printf("%s: SAE \"%s\", %s of layer %u", out, name_z(r->name).text,
           qsae_site_name((qsae_site)r->site_in), r->layer_in);
    if (r->site_out != r->site_in || r->layer_out != r->layer_in)
        printf(" to %s of layer %u", qsae_site_name((qsae_site)r->site_out),
               r->layer_out);
    printf(", %u features of %u, %s", r->d_sae, r->d_in, activations[r->activation]);
    if (r->k)
        printf(" %u", r->k);
    printf(", %s weights\n", s->type == QSAE_TYPE_BF16 ? "bf16" : "f32");
    for (const char *p = s->lines.text; (p = strstr(p, "folded.")) != NULL; p++)
        if (p == s->lines.text || p[-1] == '\n')
            printf("  %.*s\n", (int)strcspn(p, "\n"), p);
}

int convert_sae(const char *const *dirs, int n, const convert_options *o, char *err,
                size_t cap)
{
    sae *list = calloc((size_t)n, sizeof *list);
    int status = list ? 0 : err_set(err, cap, "out of memory");
    if (!status && n > 65536)
        status = err_set(err, cap, "%d folders, a file holds at most 65536 SAEs", n);
    for (int i = 0; i < n && !status; i++) {
        sae *s = &list[i];
        s->dir = dirs[i];
        s->o = o;
        s->err = err;
        s->cap = cap;
        status = sae_read(s);
        if (status && n > 1)
            err_prefix(err, cap, "%s", name_z(dirs[i]).text);
    }
    if (!status)
        status = name_members(list, n, err, cap);
    if (!status) {
        qsort(list, (size_t)n, sizeof *list, by_place);
        status = write_file(list, n, o, err, cap);
    }
    for (int i = 0; list && i < n; i++) {
        if (!status)
            report(&list[i], o->out);
        sae_free(&list[i]);
    }
    free(list);
    return status ? -1 : 0;
}
