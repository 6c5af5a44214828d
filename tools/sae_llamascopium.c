/* llamascopium (OpenMOSS Language-Model-SAEs): {config.json, sae_weights.safetensors},
 * or a .pt with the tensors under "sae".
 *
 * Followed: llamascopium 2.0.0b34 models/sae.py (encode, decode), sparse_dictionary.py
 * (normalize_activations, activation_function_factory) and activation_functions.py.
 * With n_i the norms of the stored decoder rows, s_in = sqrt(d)/norm_in, s_out =
 * sqrt(d)/norm_out, features come out in units of the site:
 *
 *     norm_activation dataset-wise   b /= s_in, D *= s_in/s_out, c /= s_out,
 *                                    theta /= s_in  (its own fold,
 *                                    standardize_parameters_of_dataset_norm, leaves
 *                                    theta, which changes what fires)
 *     norm_activation token-wise     the library's constant norm
 *     log_jumprelu_threshold         theta = exp of it
 *     sparsity_include_decoder_norm  z_i n_i is compared, z_i comes out:
 *                                    jumprelu: theta_i /= n_i, the largest f32
 *                                    where n_i is 0; relu: nothing
 *                                    topk: E_i *= n_i, b_i *= n_i, and what is selected
 *                                    is divided by n_i (the library's topk-scaled)
 *
 * Files of lm_saes between Llama-Scope and llamascopium (2025, as
 * Llama-Scope-R1-Distill) mean the same under other names: encoder.weight [F, d],
 * decoder.weight [d, F], encoder.bias, decoder.bias, log_jumprelu_threshold; and may
 * say apply_decoder_bias_to_pre_encoder: b_i -= E_i . c.
 *
 * The scalars dataset_average_activation_norm.* are in every file, but mean something
 * only for dataset-wise. */

#include "sae_source.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const known_keys[] = {
    "act_fn",
    "d_model",
    "expansion_factor",
    "hook_point_in",
    "hook_point_out",
    "norm_activation",
    "sae_type",
    "sparsity_include_decoder_norm",
    "top_k",
    "use_decoder_bias",
    "use_glu_encoder",
    /* how it is trained and run */
    "d_sae",
    "device",
    "dtype",
    "jumprelu_threshold_window",
    "sparsity_threshold_for_triton_spmm_kernel",
    "use_triton_kernel",
    /* of lm_saes */
    "apply_decoder_bias_to_pre_encoder",
    "force_unit_decoder_norm",
    "jump_relu_threshold",
    "sae_pretrained_name_or_path",
    "strict_loading",
    NULL,
};

/* A file of lm_saes, before the tensors got their names of today. */
static int is_older(const sae_source *s)
{
    return sae_tensor(s, "encoder.weight") != NULL;
}

static int check_type(sae_source *s)
{
    static const char *const known[][2] = {
        {"lorsa", "a sparse replacement of attention"},
        {"clt", "a cross-layer transcoder"},
        {"crosscoder", "a crosscoder of several layers"},
        {"molt", "a mixture of linear transforms"},
    };
    const json_value *v = sae_get(s, s->cfg, "sae_type");
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (sae_is_text(v, known[i][0]))
            return sae_bad_config(s, "sae_type is %s, %s; only sae is supported",
                                  known[i][0], known[i][1]);
    if (!sae_is_text(v, "sae") && (v || !is_older(s)))
        return sae_bad_config(s, "sae_type is %s; only sae is supported",
                              sae_text(v).text);
    return 0;
}

/* d_model; d_sae is int(d_model * expansion_factor) */
static int read_sizes(sae_source *s)
{
    qsae_sae_record *r = &s->record;
    const json_value *e = sae_get(s, s->cfg, "expansion_factor");
    double factor;
    if (sae_get_size(s, "d_model", SAE_MAX_D, &r->d_in))
        return -1;
    double features = json_real(e, &factor) ? floor((double)r->d_in * factor) : 0;
    if (!(features >= 1) || features > SAE_MAX_D_SAE)
        return sae_bad_config(s,
                              "expansion_factor is %s: d_sae, d_model times that, "
                              "must be in 1..%d",
                              sae_text(e).text, SAE_MAX_D_SAE);
    r->d_sae = (uint32_t)features;
    r->d_out = r->d_in;
    return 0;
}

static int norm_of(sae_source *s, const char *hook_key, double *out)
{
    char name[512];
    const json_value *hook = sae_get(s, s->cfg, hook_key);
    if (!hook || hook->type != JSON_STRING)
        return sae_bad_config(s, "%s is %s, norm_activation dataset-wise needs it",
                              hook_key, sae_text(hook).text);
    snprintf(name, sizeof name, "dataset_average_activation_norm.%.400s", hook->str);
    if (sae_take_number(s, name, out))
        return -1;
    if (!(*out > 0))
        return sae_bad_file(s, "%s is %g, it must be above 0", name_z(name).text, *out);
    return 0;
}

static int read_norm(sae_source *s)
{
    const json_value *v = sae_get(s, s->cfg, "norm_activation");
    double root = sqrt((double)s->record.d_in), in, out;
    if (sae_is_text(v, "inference"))
        return 0;
    if (sae_is_text(v, "token-wise")) {
        s->record.norm = QSAE_NORM_CONSTANT;
        s->record.feature_unit = QSAE_UNIT_NORMALIZED;
        return 0;
    }
    if (!sae_is_text(v, "dataset-wise"))
        return sae_bad_config(s,
                              "norm_activation is %s; dataset-wise, token-wise and "
                              "inference are supported%s",
                              sae_text(v).text,
                              sae_is_text(v, "batch-wise")
                                  ? " (batch-wise depends on the other tokens)"
                                  : "");
    if (norm_of(s, "hook_point_in", &in) || norm_of(s, "hook_point_out", &out))
        return -1;
    s->fold.bias = in / root;
    s->fold.theta = in / root;
    s->fold.dec = out / in;
    s->fold.out = out / root;
    s->fold.scale_name = "norm_activation dataset-wise";
    return 0;
}

static int read_activation(sae_source *s)
{
    const json_value *v = sae_get(s, s->cfg, "act_fn"),
                     *k = sae_get(s, s->cfg, "top_k");
    qsae_sae_record *r = &s->record;
    int64_t n = 0;
    int norms = 1; /* the dataclass's default */
    if (sae_get_bool(s, "sparsity_include_decoder_norm", &norms))
        return -1;
    s->fold.norms_name = "sparsity_include_decoder_norm";
    if (sae_is_text(v, "relu")) {
        r->activation = QSAE_ACT_RELU;
        return 0;
    }
    if (sae_is_text(v, "jumprelu")) {
        r->activation = QSAE_ACT_JUMPRELU;
        s->fold.norms = norms ? NORMS_TO_THETA : NORMS_UNUSED;
        s->theta_is_log = 1;
        return sae_take(s,
                        is_older(s) ? "log_jumprelu_threshold"
                                    : "activation_function.log_jumprelu_threshold",
                        0, r->d_sae, &s->theta);
    }
    r->activation = QSAE_ACT_TOPK;
    s->fold.norms = norms ? NORMS_TO_SELECT : NORMS_UNUSED;
    s->fold.slack = 1e-6;
    if (sae_is_text(v, "batchtopk")) {
        if (!s->o->k)
            return sae_bad_config(
                s,
                "act_fn is batchtopk: what fires depends on the other "
                "tokens of a batch; --k %s keeps the k largest of "
                "each token instead",
                sae_text(k).text);
        return sae_set_k(s, 0, "--k");
    }
    if (!sae_is_text(v, "topk"))
        return sae_bad_config(s, "act_fn is %s; relu, jumprelu and topk are supported",
                              sae_text(v).text);
    if (!json_int(k, &n) || n < 1)
        return sae_bad_config(s, "top_k is %s, it must be a whole number in 1..%u",
                              sae_text(k).text, r->d_sae);
    return sae_set_k(s, n, "top_k");
}

static int read_places(sae_source *s)
{
    const json_value *in = sae_get(s, s->cfg, "hook_point_in"),
                     *out = sae_get(s, s->cfg, "hook_point_out");
    int site = -1, layer = -1;
    if (!in || in->type != JSON_STRING || !out || out->type != JSON_STRING)
        return sae_bad_config(s,
                              "hook_point_in is %s, hook_point_out %s: both must be "
                              "names",
                              sae_text(in).text, sae_text(out).text);
    sae_parse_hook(in->str, &site, &layer);
    if (sae_set_place(s, 0, site, layer, "hook_point_in", in->str))
        return -1;
    if (strcmp(in->str, out->str) == 0)
        return sae_same_place(s);
    if (s->record.norm)
        return sae_bad_config(s, "norm_activation is token-wise in a transcoder: its "
                                 "output is scaled by a norm that is not known");
    site = layer = -1;
    sae_parse_hook(out->str, &site, &layer);
    return sae_set_place(s, 1, site, layer, "hook_point_out", out->str) ||
           sae_check_places(s);
}

/* The scalars that every file has, whatever they hold. */
static void ignore_norms(sae_source *s)
{
    static const char *const keys[] = {"hook_point_in", "hook_point_out"};
    char name[512];
    for (int i = 0; i < 2; i++) {
        const json_value *hook = sae_get(s, s->cfg, keys[i]);
        if (!hook || hook->type != JSON_STRING)
            continue;
        snprintf(name, sizeof name, "dataset_average_activation_norm.%.400s",
                 hook->str);
        sae_ignore(s, sae_tensor(s, name));
    }
}

static int read_tensors(sae_source *s, int bias)
{
    const qsae_sae_record *r = &s->record;
    const uint32_t F = r->d_sae, d = r->d_in;
    int older = is_older(s);
    if (older ? sae_take(s, "encoder.weight", F, d, &s->enc) ||
                    sae_take_transposed(s, "decoder.weight", F, d, &s->dec)
              : sae_take_transposed(s, "W_E", F, d, &s->enc) ||
                    sae_take(s, "W_D", F, d, &s->dec))
        return -1;
    if (sae_take(s, older ? "encoder.bias" : "b_E", 0, F, &s->b_enc))
        return -1;
    return bias ? sae_take(s, older ? "decoder.bias" : "b_D", 0, d, &s->b_dec) : 0;
}

/* Only of lm_saes. With a transcoder it would be the bias of another site. */
static int read_subtraction(sae_source *s, int bias)
{
    const qsae_sae_record *r = &s->record;
    int subtract = 0;
    if (sae_get_bool(s, "apply_decoder_bias_to_pre_encoder", &subtract))
        return -1;
    s->fold.subtract = subtract && bias;
    s->fold.subtract_name = "apply_decoder_bias_to_pre_encoder";
    if (s->fold.subtract && (r->site_in != r->site_out || r->layer_in != r->layer_out))
        return sae_bad_config(s, "apply_decoder_bias_to_pre_encoder is true in a "
                                 "transcoder, which is not supported");
    return 0;
}

static int read_llamascopium(sae_source *s)
{
    int bias = 1, glu = 0;
    s->class_name = "SparseAutoEncoder";
    sae_describe(s, "llamascopium");
    if (!s->cfg)
        return sae_bad_file(s, "llamascopium's config.json is not beside it");
    s->implied = s->unit->config;
    if (check_type(s) || sae_check_keys(s, s->cfg, known_keys) ||
        sae_get_bool(s, "use_decoder_bias", &bias) ||
        sae_get_bool(s, "use_glu_encoder", &glu))
        return -1;
    if (glu)
        return sae_bad_config(s, "use_glu_encoder is true; gated linear encoders are "
                                 "not supported");
    if (read_sizes(s) || read_tensors(s, bias) || read_activation(s) || read_norm(s) ||
        read_places(s) || read_subtraction(s, bias))
        return -1;
    ignore_norms(s);
    return sae_no_strangers(s);
}

static int is_llamascopium(const sae_source *s)
{
    if (!s->unit->config)
        return sae_tensor(s, "W_E") && sae_tensor(s, "W_D");
    return s->cfg && strcmp(s->unit->config, "config.json") == 0 &&
           (sae_get(s, s->cfg, "sae_type") || sae_get(s, s->cfg, "hook_point_in"));
}

const sae_family sae_llamascopium = {"llamascopium", is_llamascopium,
                                     read_llamascopium};
