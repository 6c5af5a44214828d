/* SAELens folders (cfg.json, sae_weights.safetensors).
 *
 * Followed: SAELens 6.54. cfg keys: saes/<architecture>_sae.py and transcoder.py, the
 * dataclasses; files from before 6.0: loading/pretrained_sae_loaders.py,
 * handle_pre_6_0_config, and, for scaling_factor, the same file's disk loader and 5.x
 * sae.py decode. Forward passes: encode and decode of the classes. With n_i the norm of
 * decoder row i and s the input scale, folded are
 *
 *     rescale_acts_by_decoder_norm   E_i *= n_i, b_i *= n_i, D_i /= n_i
 *     expected_average_only_in       E *= s, D /= s, c /= s  (n_i is then of D / s)
 *     apply_b_dec_to_input           b_i -= E'_i . c         (gated: both biases)
 *     log_threshold                  theta = exp of it
 *     topk_threshold                 one theta for all features (BatchTopK)
 *     scaling_factor                 D_i *= scaling_factor_i (before 6.0)
 *
 * The other two norms are the library's. A transcoder's output is not scaled back, so
 * those two are exact for it too; expected_average_only_in is refused there, because
 * SAELens would divide an output that was never scaled. */

#include "sae_source.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

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
    /* training checkpoints; at inference they are JumpReLU with one threshold */
    {"batchtopk", QSAE_ACT_JUMPRELU, BATCH},
    {"matryoshka_batchtopk", QSAE_ACT_JUMPRELU, BATCH},
    {"transcoder", QSAE_ACT_RELU, TRANSCODER},
    {"skip_transcoder", QSAE_ACT_RELU, TRANSCODER | SKIP},
    {"jumprelu_transcoder", QSAE_ACT_JUMPRELU, TRANSCODER},
    {"jumprelu_skip_transcoder", QSAE_ACT_JUMPRELU, TRANSCODER | SKIP},
};

/* What this reader alone needs to know. */
typedef struct saelens {
    const json_value *meta; /* where the hook is named; v6 "metadata", else cfg */
    int legacy;             /* written before SAELens 6 */
    const architecture *arch;
    double scale; /* s; 1: none */
    int rescale;
} saelens;

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
    NULL,
};

/* Before 6.0.0 the keys were flat and some had other names and defaults. */
static void find_version(sae_source *s, saelens *w)
{
    const json_value *meta = sae_get(s, s->cfg, "metadata");
    const json_value *v = sae_get(s, s->cfg, "sae_lens_version");
    if (!v)
        v = sae_get(s, meta, "sae_lens_version");
    w->legacy = !v || v->type != JSON_STRING || strtol(v->str, NULL, 10) < 6;
    w->meta = meta && meta->type == JSON_OBJECT ? meta : s->cfg;
    if (v && v->type == JSON_STRING)
        qfile_meta_add(&s->lines, "source.sae_lens", "%s", name_n(v->str, v->len).text);
}

/* What SAELens has and this program cannot compute, with the reason. */
static const char *known_architecture(const json_value *v)
{
    static const char *const list[][2] = {
        {"abstopk", " (its features have signs)"},
        {"matching_pursuit", " (it encodes in rounds)"},
        {"temporal", " (its features depend on earlier tokens)"},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        if (sae_is_text(v, list[i][0]))
            return list[i][1];
    return "";
}

static int read_architecture(sae_source *s, saelens *w)
{
    const json_value *v = sae_get(s, s->cfg, "architecture");
    const json_value *fn = sae_get(s, s->cfg, "activation_fn"),
                     *kwargs = sae_get(s, s->cfg, "activation_fn_kwargs");
    if (!fn)
        fn = sae_get(s, s->cfg, "activation_fn_str");
    const char *name = v && v->type == JSON_STRING ? v->str
                       : w->legacy && !v           ? "standard"
                                                   : "";
    if (sae_is_text(fn, "topk")) {
        if (!sae_get(s, kwargs, "k") && !sae_get(s, s->cfg, "k") && !s->o->k)
            return sae_bad_config(s, "activation_fn is topk, but there is no k; --k K "
                                     "says it");
        if (strcmp(name, "standard") == 0)
            name = "topk";
    } else if (fn && !sae_is_text(fn, "relu")) {
        return sae_bad_config(s, "activation_fn is %s; relu and topk are supported",
                              sae_text(fn).text);
    }
    for (size_t i = 0; i < sizeof architectures / sizeof architectures[0]; i++)
        if (strcmp(name, architectures[i].name) == 0)
            w->arch = &architectures[i];
    if (!w->arch)
        return sae_bad_config(
            s,
            "architecture is %s; supported are standard, jumprelu, topk, gated, "
            "batchtopk, matryoshka_batchtopk, and transcoder, skip_transcoder, "
            "jumprelu_transcoder, jumprelu_skip_transcoder%s",
            sae_text(v).text, known_architecture(v));
    s->record.activation = w->arch->activation;
    s->class_name = w->arch->name;
    qfile_meta_add(&s->lines, "source.architecture", "%s", w->arch->name);
    return 0;
}

static int read_sizes(sae_source *s, const saelens *w)
{
    qsae_sae_record *r = &s->record;
    const json_value *kwargs = sae_get(s, s->cfg, "activation_fn_kwargs"),
                     *k = sae_get(s, s->cfg, "k");
    int64_t n;
    if (sae_get_size(s, "d_in", SAE_MAX_D, &r->d_in) ||
        sae_get_size(s, "d_sae", SAE_MAX_D_SAE, &r->d_sae))
        return -1;
    r->d_out = r->d_in;
    if (w->arch->flags & TRANSCODER) {
        const tensor *dec = sae_tensor(s, "W_dec");
        if (!sae_get(s, s->cfg, "d_out") && dec && dec->rank == 2 &&
            dec->shape[1] >= 1 && dec->shape[1] <= SAE_MAX_D)
            r->d_out = (uint32_t)dec->shape[1];
        else if (sae_get_size(s, "d_out", SAE_MAX_D, &r->d_out))
            return -1;
    }
    if (r->activation != QSAE_ACT_TOPK)
        return 0;
    if (w->legacy && sae_get(s, kwargs, "k"))
        k = sae_get(s, kwargs, "k");
    n = 0; /* TopKSAEConfig's default of 100 says nothing about this file */
    if (!k && !s->o->k)
        return sae_bad_config(s, "architecture is topk, but there is no k; --k K says "
                                 "it");
    if (k && (!json_int(k, &n) || n < 1 || n > (int64_t)r->d_sae))
        return sae_bad_config(s, "k is %s, it must be a whole number in 1..%u (d_sae)",
                              sae_text(k).text, r->d_sae);
    return sae_set_k(s, n, "k");
}

/* The value of activation_scaler.json, which SAELens writes next to a checkpoint, for
 * the message. */
static void scale_advice(const sae_source *s, char *out, size_t cap)
{
    char why[ERR_CAP];
    json_doc *doc;
    double x;
    snprintf(
        out, cap,
        "--norm-scale X settles it, where X is what activations were multiplied by");
    if (!convert_exists(s->unit->folder, "activation_scaler.json") ||
        convert_read_json(s->unit->folder, "activation_scaler.json", &doc, why,
                          sizeof why))
        return;
    if (json_real(json_get(doc, json_root(doc), "scaling_factor"), &x))
        snprintf(out, cap, "activation_scaler.json next to it says: --norm-scale %.17g",
                 x);
    json_free(doc);
}

static int read_norm(sae_source *s, saelens *w)
{
    const json_value *v = sae_get(s, s->cfg, "normalize_activations");
    char advice[200];
    int given = s->o->norm_scale > 0,
        expected = sae_is_text(v, "expected_average_only_in");
    qsae_sae_record *r = &s->record;
    if (w->legacy && v && (v->type == JSON_TRUE || v->type == JSON_FALSE)) {
        expected = v->type == JSON_TRUE;
        v = NULL;
    }
    if ((w->arch->flags & TRANSCODER) && expected)
        return sae_bad_config(
            s, "a transcoder with normalize_activations expected_average_only_in is "
               "not supported: its output scale is not defined");
    if (expected && !given) {
        scale_advice(s, advice, sizeof advice);
        return sae_bad_config(
            s,
            "normalize_activations is expected_average_only_in, but the scale is not "
            "in the file; %s",
            advice);
    }
    if (given && !expected)
        return sae_bad_config(s, "normalize_activations is not "
                                 "expected_average_only_in, so --norm-scale has no "
                                 "place");
    if (expected)
        w->scale = s->o->norm_scale;
    else if (sae_is_text(v, "constant_norm_rescale"))
        r->norm = QSAE_NORM_CONSTANT;
    else if (sae_is_text(v, "layer_norm"))
        r->norm = QSAE_NORM_LAYER;
    else if (v && !sae_is_text(v, "none"))
        return sae_bad_config(
            s,
            "normalize_activations is %s; none, expected_average_only_in, "
            "constant_norm_rescale and layer_norm are supported",
            sae_text(v).text);
    return 0;
}

static int read_options(sae_source *s, saelens *w)
{
    int transcoder = w->arch->flags & TRANSCODER;
    int topk = w->arch->activation == QSAE_ACT_TOPK;
    s->fold.subtract = transcoder ? 0 : 1; /* SAEConfig's default */
    /* TopKTrainingSAEConfig's default; TopKSAEConfig: false */
    w->rescale = w->arch->flags & BATCH ? 1 : 0;
    if (sae_get_bool(s, "apply_b_dec_to_input", &s->fold.subtract) ||
        sae_get_bool(s, "rescale_acts_by_decoder_norm", &w->rescale))
        return -1;
    if (transcoder && s->fold.subtract)
        return sae_bad_config(s, "apply_b_dec_to_input is true, which SAELens does not "
                                 "allow for a transcoder");
    if (!topk && !(w->arch->flags & BATCH))
        w->rescale = 0; /* no other class has the key */
    return read_norm(s, w);
}

/* ---- where it reads and writes ---- */

/* One end: from the options, else from the hook's name. */
static int read_site(sae_source *s, const saelens *w, const char *key, int out)
{
    const json_value *v = sae_get(s, w->meta, key);
    int site = -1, layer = -1;
    if (!v && !out && w->legacy)
        v = sae_get(s, w->meta, "hook_point");
    if (!v)
        v = sae_get(s, s->cfg, key);
    int text = v && v->type == JSON_STRING && strlen(v->str) == v->len;
    if (text)
        sae_parse_hook(v->str, &site, &layer);
    return sae_set_place(s, out, site, layer, key,
                         text ? v->str
                         : v  ? sae_text(v).text
                              : NULL);
}

static int read_places(sae_source *s, const saelens *w)
{
    qsae_sae_record *r = &s->record;
    const json_value *head = sae_get(s, w->meta, "hook_head_index"),
                     *layer = sae_get(s, s->cfg, "hook_layer");
    const json_value *reshape = sae_get(s, s->cfg, "reshape_activations");
    const convert_options *o = s->o;
    int64_t x;
    if (!head)
        head = sae_get(s, s->cfg, "hook_point_head_index");
    if (head)
        return sae_bad_config(
            s, "hook_head_index is %s; SAEs of a single head are not supported",
            sae_text(head).text);
    if (read_site(s, w, "hook_name", 0))
        return -1;
    if (o->layer < 0 && layer && (!json_int(layer, &x) || x != (int64_t)r->layer_in))
        return sae_bad_config(
            s, "hook_layer is %s, the hook's name says layer %u; --layer N settles it",
            sae_text(layer).text, r->layer_in);
    r->site_out = r->site_in;
    r->layer_out = r->layer_in;
    if (w->arch->flags & TRANSCODER) {
        if (read_site(s, w, "hook_name_out", 1) || sae_check_places(s))
            return -1;
        if (r->norm && r->site_in == r->site_out && r->layer_in == r->layer_out)
            return sae_bad_config(
                s, "a transcoder with normalize_activations that writes where it reads "
                   "is not supported: SAELens does not scale its output back");
    } else if (o->site_out >= 0 || o->layer_out >= 0) {
        return sae_bad_config(s, "--site-out and --layer-out are for transcoders");
    }
    /* z flattened over heads is our attn_z; without it each head went in alone */
    int hook_z = sae_is_text(reshape, "hook_z") ||
                 (!reshape && w->legacy && r->site_in == QSAE_ATTN_Z);
    if (reshape && !hook_z && !sae_is_text(reshape, "none"))
        return sae_bad_config(
            s, "reshape_activations is %s; none and hook_z are supported",
            sae_text(reshape).text);
    if (hook_z != (r->site_in == QSAE_ATTN_Z))
        return sae_bad_config(
            s, hook_z ? "reshape_activations is hook_z, but the site is not attn_z"
                      : "the site is attn_z, but reshape_activations is not hook_z");
    return 0;
}

static void describe_source(sae_source *s, const saelens *w)
{
    static const char *const keys[] = {"model_name", "prepend_bos", "context_size",
                                       "dataset_path", "neuronpedia_id"};
    sae_describe(s, "SAELens");
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        char key[64];
        const json_value *v = sae_get(s, w->meta, keys[i]);
        snprintf(key, sizeof key, "source.%s", keys[i]);
        if (v && v->type != JSON_ARRAY && v->type != JSON_OBJECT)
            qfile_meta_add(&s->lines, key, "%s", sae_text(v).text);
    }
}

static int read_cfg(sae_source *s, saelens *w)
{
    find_version(s, w);
    describe_source(s, w);
    if ((!w->legacy && sae_check_keys(s, s->cfg, known_keys)) ||
        read_architecture(s, w) || read_sizes(s, w) || read_options(s, w) ||
        read_places(s, w))
        return -1;
    /* per-token norms and an input scale leave f in the SAE's own scale; a unit decoder
     * brings it back */
    s->record.feature_unit = s->record.norm || (w->scale != 1 && !w->rescale)
                                 ? QSAE_UNIT_NORMALIZED
                                 : QSAE_UNIT_RAW;
    return 0;
}

/* ---- tensors ---- */

/* threshold [F]; log_threshold [F] before 6.48; topk_threshold, one number, in
 * BatchTopK checkpoints. The classes compute relu(z) where z > theta, so that a
 * threshold below 0 acts as 0; but the one number of BatchTopK averages positive values,
 * so below 0 it is damaged. */
static int take_threshold(sae_source *s, const saelens *w)
{
    const tensor *t = sae_tensor(s, "topk_threshold");
    int batch = w->arch->flags & BATCH;
    s->fold.gated_by_relu = !batch;
    /* as BatchTopKTrainingSAE.fold_activation_norm_scaling_factor */
    if (batch && w->rescale)
        s->fold.theta = 1 / w->scale;
    if (batch && t) {
        if (t->n != 1 || !tensor_is_float(t))
            return sae_bad_file(s, "topk_threshold has shape %s, it must be one number",
                                tensor_shape(t).text);
        s->theta = *t;
        sae_ignore(s, t);
        return 0;
    }
    s->theta_is_log = !(w->arch->flags & (BATCH | TRANSCODER)) &&
                      !sae_tensor(s, "threshold") && sae_tensor(s, "log_threshold");
    return sae_take(s, s->theta_is_log ? "log_threshold" : "threshold", 0,
                    s->record.d_sae, &s->theta);
}

/* scaling_factor of ones is what SAELens itself drops (torch.allclose). Any other was
 * applied before the decoder by SAELens 5 where cfg.json says so; 6 has no such
 * thing. */
static int take_scaling_factor(sae_source *s, const saelens *w)
{
    const tensor *t = sae_tensor(s, "scaling_factor");
    tensor scale;
    int used = 0, ones = 1;
    if (!t)
        return 0;
    if (sae_take(s, "scaling_factor", 0, s->record.d_sae, &scale))
        return -1;
    for (uint64_t i = 0; i < t->n && ones; i++) {
        double x;
        if (tensor_f64(t, i, 1, &x, s->err, s->cap))
            return err_prefix(s->err, s->cap, "%s", sae_file_name(s));
        ones = fabs(x - 1) <= 1e-8 + 1e-5;
        if (!ones && !w->legacy)
            return sae_bad_file(s,
                                "scaling_factor has %g at %" PRIu64
                                "; finetuning scales other than 1 are only known of "
                                "SAELens before 6.0",
                                x, i);
    }
    if (ones)
        return 0;
    if (sae_get_bool(s, "finetuning_scaling_factor", &used))
        return -1;
    if (!used)
        return sae_bad_file(s, "scaling_factor is not 1, but cfg.json does not say "
                               "that finetuning_scaling_factor is true");
    s->dec_rows = scale;
    qfile_meta_add(&s->lines, "folded.scaling_factor",
                   "decoder rows *= scaling_factor (finetuning_scaling_factor)");
    return 0;
}

static int read_weights(sae_source *s, const saelens *w)
{
    const qsae_sae_record *r = &s->record;
    int gated = w->arch->flags & GATED;
    if (sae_take_transposed(s, "W_enc", r->d_sae, r->d_in, &s->enc) ||
        sae_take(s, "W_dec", r->d_sae, r->d_out, &s->dec) ||
        sae_take(s, gated ? "b_gate" : "b_enc", 0, r->d_sae, &s->b_enc) ||
        sae_take(s, "b_dec", 0, r->d_out, &s->b_dec))
        return -1;
    if (gated && (sae_take(s, "r_mag", 0, r->d_sae, &s->r_mag) ||
                  sae_take(s, "b_mag", 0, r->d_sae, &s->b_mag)))
        return -1;
    if (r->activation == QSAE_ACT_JUMPRELU && take_threshold(s, w))
        return -1;
    if ((w->arch->flags & SKIP) && sae_take(s, "W_skip", r->d_out, r->d_in, &s->skip))
        return -1;
    if (take_scaling_factor(s, w))
        return -1;
    return sae_no_strangers(s);
}

static int read_saelens(sae_source *s)
{
    saelens w;
    memset(&w, 0, sizeof w);
    w.scale = 1;
    if (!s->cfg)
        return sae_bad_file(s, "SAELens' cfg.json is not beside it");
    s->implied = "cfg.json";
    if (read_cfg(s, &w) || read_weights(s, &w))
        return -1;
    s->fold.enc = w.scale;
    s->fold.dec = s->fold.out = 1 / w.scale;
    s->fold.scale_name = "expected_average_only_in";
    s->fold.subtract_name = "apply_b_dec_to_input";
    if (w.rescale) {
        s->fold.norms = NORMS_TO_ENC;
        s->fold.floor = 1e-8; /* as get_W_dec_norm */
        s->fold.slack = 1e-6; /* what SAELens saves after training has norm 1 */
        s->fold.norms_name = "rescale_acts_by_decoder_norm";
    }
    return 0;
}

/* sparsify has a cfg.json too */
static int is_saelens(const sae_source *s)
{
    return s->cfg && strcmp(s->unit->config, "cfg.json") == 0 &&
           !sae_sparsify.recognise(s);
}

const sae_family sae_saelens = {"saelens", is_saelens, read_saelens};
