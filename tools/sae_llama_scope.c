/* Llama-Scope as first published (lm_saes): NAME/{hyperparams.json,
 * checkpoints/final.safetensors}.
 *
 * Followed: OpenMOSS Language-Model-SAEs of 2024-12, lm_saes/sae.py, from_config (which
 * folds as it loads) and encode; the result agrees with SAELens 6.54's llama_scope
 * loader on the published files. With s_in = sqrt(d)/norm_in, s_out = sqrt(d)/norm_out,
 * in this order:
 *
 *     norm_activation dataset-wise    b /= s_in, D *= s_in/s_out, c /= s_out
 *     sparsity_include_decoder_norm   E_i *= n_i, b_i *= n_i, D_i /= n_i, n_i of that D
 *     apply_decoder_bias_to_pre_encoder   b_i -= E'_i . c
 *
 * jump_relu_threshold is one number that is compared after all of this, so it is in raw
 * units and stays as it is. A topk with such a threshold is a jumprelu, as there. */

#include "sae_source.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const known_keys[] = {
    "act_fn",
    "apply_decoder_bias_to_pre_encoder",
    "d_model",
    "d_sae",
    "dataset_average_activation_norm",
    "expansion_factor",
    "hook_point_in",
    "hook_point_out",
    "jump_relu_threshold",
    "norm_activation",
    "sparsity_include_decoder_norm",
    "top_k",
    "use_decoder_bias",
    "use_glu_encoder",
    /* training and provenance */
    "bias_init_method",
    "ddp_size",
    "decoder_exactly_fixed_norm",
    "device",
    "dtype",
    "init_decoder_norm",
    "init_encoder_norm",
    "init_encoder_with_decoder_transpose",
    "initial_k",
    "k_warmup_steps",
    "l1_coefficient",
    "l1_coefficient_warmup_steps",
    "lp",
    "sae_pretrained_name_or_path",
    "seed",
    "strict_loading",
    "tp_size",
    "use_batch_norm_mse",
    "use_ghost_grads",
    NULL,
};

static int norm_of(sae_source *s, const char *end, double *out)
{
    const json_value *norms = sae_get(s, s->cfg, "dataset_average_activation_norm"),
                     *v = sae_get(s, norms, end);
    if (!json_real(v, out) || !(*out > 0))
        return sae_bad_config(
            s,
            "dataset_average_activation_norm.%s is %s, norm_activation "
            "dataset-wise needs a number above 0",
            end, sae_text(v).text);
    return 0;
}

static int read_norm(sae_source *s)
{
    const json_value *v = sae_get(s, s->cfg, "norm_activation");
    double root = sqrt((double)s->record.d_in), in, out;
    if (sae_is_text(v, "none") || sae_is_text(v, "inference"))
        return 0;
    if (sae_is_text(v, "token-wise")) {
        s->record.norm = QSAE_NORM_CONSTANT;
        s->record.feature_unit = QSAE_UNIT_NORMALIZED;
        return 0;
    }
    if (!sae_is_text(v, "dataset-wise"))
        return sae_bad_config(
            s,
            "norm_activation is %s; none, token-wise and dataset-wise are supported%s",
            sae_text(v).text,
            sae_is_text(v, "batch-wise") ? " (batch-wise depends on the other tokens)"
                                         : "");
    if (norm_of(s, "in", &in) || norm_of(s, "out", &out))
        return -1;
    s->fold.bias = in / root;
    s->fold.dec = out / in;
    s->fold.out = out / root;
    s->fold.scale_name = "norm_activation dataset-wise";
    return 0;
}

static int read_activation(sae_source *s)
{
    const json_value *v = sae_get(s, s->cfg, "act_fn"),
                     *t = sae_get(s, s->cfg, "jump_relu_threshold"),
                     *k = sae_get(s, s->cfg, "top_k");
    qsae_sae_record *r = &s->record;
    double theta = 0;
    int64_t n = 0;
    int topk = sae_is_text(v, "topk");
    if (t && !json_real(t, &theta))
        return sae_bad_config(s, "jump_relu_threshold is %s, it must be a number",
                              sae_text(t).text);
    if (sae_is_text(v, "relu")) {
        r->activation = QSAE_ACT_RELU;
        return 0;
    }
    if (sae_is_text(v, "jumprelu") || (topk && theta > 0)) {
        if (!t)
            return sae_bad_config(s, "act_fn is jumprelu, but there is no "
                                     "jump_relu_threshold");
        r->activation = QSAE_ACT_JUMPRELU;
        s->theta_is_number = 1;
        s->theta_number = theta;
        return theta < 0 ? sae_bad_config(s,
                                          "jump_relu_threshold is %g, it cannot be "
                                          "below 0",
                                          theta)
                         : 0;
    }
    if (!topk)
        return sae_bad_config(s, "act_fn is %s; relu, jumprelu and topk are supported",
                              sae_text(v).text);
    r->activation = QSAE_ACT_TOPK;
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
    if (in && in->type == JSON_STRING)
        sae_parse_hook(in->str, &site, &layer);
    if (sae_set_place(s, 0, site, layer, "hook_point_in", in ? in->str : NULL))
        return -1;
    if (!out || (in && sae_is_text(out, in->str)))
        return sae_same_place(s);
    site = layer = -1;
    if (out->type == JSON_STRING)
        sae_parse_hook(out->str, &site, &layer);
    if (s->record.norm)
        return sae_bad_config(s, "norm_activation is token-wise in a transcoder: its "
                                 "output is scaled by a norm that is not known");
    return sae_set_place(s, 1, site, layer, "hook_point_out", out->str) ||
           sae_check_places(s);
}

static int read_options(sae_source *s, int *bias)
{
    int glu = 0, unit = -1, subtract = -1;
    *bias = -1;
    if (sae_get_bool(s, "use_glu_encoder", &glu) ||
        sae_get_bool(s, "use_decoder_bias", bias) ||
        sae_get_bool(s, "sparsity_include_decoder_norm", &unit) ||
        sae_get_bool(s, "apply_decoder_bias_to_pre_encoder", &subtract))
        return -1;
    if (glu)
        return sae_bad_config(s, "use_glu_encoder is true; gated linear encoders are "
                                 "not supported");
    if (*bias < 0 || unit < 0 || subtract < 0)
        return sae_bad_config(s, "%s is missing, which decides what is computed",
                              *bias < 0  ? "use_decoder_bias"
                              : unit < 0 ? "sparsity_include_decoder_norm"
                                         : "apply_decoder_bias_to_pre_encoder");
    s->fold.subtract = subtract && *bias;
    s->fold.subtract_name = "apply_decoder_bias_to_pre_encoder";
    if (unit) {
        s->fold.norms = NORMS_TO_ENC;
        s->fold.slack = 1e-6;
        s->fold.norms_name = "sparsity_include_decoder_norm";
    }
    return 0;
}

static int read_llama_scope(sae_source *s)
{
    qsae_sae_record *r = &s->record;
    int bias;
    s->class_name = "SparseAutoEncoder";
    sae_describe(s, "lm_saes (Llama-Scope)");
    if (!s->cfg)
        return sae_bad_file(s, "Llama-Scope's hyperparams.json is not beside it");
    s->implied = s->unit->config;
    if (sae_check_keys(s, s->cfg, known_keys) ||
        sae_get_size(s, "d_model", SAE_MAX_D, &r->d_in) ||
        sae_get_size(s, "d_sae", SAE_MAX_D_SAE, &r->d_sae))
        return -1;
    r->d_out = r->d_in;
    if (read_options(s, &bias) || read_norm(s) || read_activation(s) ||
        read_places(s) || sae_take(s, "encoder.weight", r->d_sae, r->d_in, &s->enc) ||
        sae_take_transposed(s, "decoder.weight", r->d_sae, r->d_out, &s->dec) ||
        sae_take(s, "encoder.bias", 0, r->d_sae, &s->b_enc))
        return -1;
    if (bias && sae_take(s, "decoder.bias", 0, r->d_out, &s->b_dec))
        return -1;
    return sae_no_strangers(s);
}

static int is_llama_scope(const sae_source *s)
{
    return s->cfg && strcmp(s->unit->config, "hyperparams.json") == 0;
}

const sae_family sae_llama_scope = {"llama-scope", is_llama_scope, read_llama_scope};
