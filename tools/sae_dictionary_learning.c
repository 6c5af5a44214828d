/* dictionary_learning: trainer_i/{ae.pt, config.json}.
 *
 * Followed: dictionary_learning 0.1.0 dictionary.py and trainers/{top_k, batch_top_k,
 * matryoshka_batch_top_k}.py, encode and decode at their defaults, and utils.py
 * load_dictionary; later versions' training.py for the checkpoint that an interrupted
 * run leaves. Linear layers are stored [out, in], the other matrices [in, out], and
 * their strides are honoured, for encoders are column-major. By class:
 *
 *     AutoEncoder             relu, b_i -= E_i . bias; its loader makes the decoder's
 *                             columns unit vectors (E_i *= n_i, b_i *= n_i, D_i /= n_i)
 *                             unless all norms are within 1e-5 of 1
 *     AutoEncoderNew          relu
 *     GatedAutoEncoder        gated, both biases -= E_i . decoder_bias
 *     JumpReluAutoEncoder     theta per feature, no subtraction
 *     AutoEncoderTopK         topk k, b_i -= E_i . b_dec. Its threshold is for
 *                             encode(use_threshold=True) only
 *     BatchTopKSAE, MatryoshkaBatchTopKSAE
 *                             jumprelu with one threshold, b_i -= E_i . b_dec; the
 *                             threshold is -1 until training sets it: then --k K makes
 *                             it TopK, one token at a time
 *
 * A checkpoint {step, ae, optimizer, config, norm_factor} was trained on x /
 * norm_factor: biases and thresholds *= norm_factor, as scale_biases does at the end of
 * a run. */

#include "sae_source.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct dict_class {
    const char *name;
    uint32_t activation;
    int linear;                /* encoder.weight, decoder.weight; else W_enc, W_dec */
    const char *b_enc, *b_dec; /* their names */
    int subtract, one_theta, has_k; /* has_k: the tensors k and threshold */
} dict_class;

static const dict_class classes[] = {
    {"AutoEncoder", QSAE_ACT_RELU, 1, "encoder.bias", "bias", 1, 0, 0},
    {"AutoEncoderNew", QSAE_ACT_RELU, 1, "encoder.bias", "decoder.bias", 0, 0, 0},
    {"GatedAutoEncoder", QSAE_ACT_GATED, 1, "gate_bias", "decoder_bias", 1, 0, 0},
    {"JumpReluAutoEncoder", QSAE_ACT_JUMPRELU, 0, "b_enc", "b_dec", 0, 0, 0},
    {"AutoEncoderTopK", QSAE_ACT_TOPK, 1, "encoder.bias", "b_dec", 1, 0, 1},
    {"BatchTopKSAE", QSAE_ACT_JUMPRELU, 1, "encoder.bias", "b_dec", 1, 1, 1},
    {"MatryoshkaBatchTopKSAE", QSAE_ACT_JUMPRELU, 0, "b_enc", "b_dec", 1, 1, 1},
};

static const dict_class *class_called(const char *name)
{
    for (size_t i = 0; i < sizeof classes / sizeof classes[0]; i++)
        if (strcmp(classes[i].name, name) == 0)
            return &classes[i];
    return NULL;
}

/* "config.KEY" of a checkpoint, or trainer.KEY of config.json, as text. */
static int trainer_text(const sae_source *s, const char *key, safe_name *out)
{
    char full[64];
    const json_value *v = sae_get(s, sae_get(s, s->cfg, "trainer"), key);
    snprintf(full, sizeof full, "config.%s", key);
    const char *text = *s->prefix ? tensors_meta(s->file, full) : NULL;
    if (v)
        *out = sae_text(v);
    else if (text)
        *out = name_z(text);
    return v || text;
}

/* The class by its tensors, where only one has them; NULL: not known. */
static const dict_class *class_by_tensors(const sae_source *s)
{
    if (sae_tensor(s, "group_sizes"))
        return class_called("MatryoshkaBatchTopKSAE");
    if (sae_tensor(s, "r_mag"))
        return class_called("GatedAutoEncoder");
    if (sae_tensor(s, "bias"))
        return class_called("AutoEncoder");
    if (sae_tensor(s, "W_enc"))
        return class_called("JumpReluAutoEncoder");
    return NULL;
}

static int find_class(sae_source *s, const dict_class **out)
{
    safe_name named;
    const char *option = s->o->dict_class;
    int has = trainer_text(s, "dict_class", &named);
    if (option && has && strcmp(option, named.text) != 0)
        return sae_bad_config(s, "dict_class is %s, --class says %.60s", named.text,
                              option);
    if (option || has) {
        *out = class_called(option ? option : named.text);
        if (*out)
            return 0;
        return sae_bad_config(
            s,
            "dict_class is %.60s; supported are AutoEncoder, AutoEncoderNew, "
            "GatedAutoEncoder, JumpReluAutoEncoder, AutoEncoderTopK, BatchTopKSAE and "
            "MatryoshkaBatchTopKSAE",
            option ? option : named.text);
    }
    *out = class_by_tensors(s);
    if (*out)
        return 0;
    if (sae_tensor(s, "k"))
        return sae_bad_file(s,
                            "no config.json says whether it is an AutoEncoderTopK or "
                            "a BatchTopKSAE, which have the same tensors: --class "
                            "NAME does");
    return sae_bad_file(s, "no config.json says which class of dictionary_learning it "
                           "is: --class NAME does");
}

/* ---- where it reads ---- */

/* "resid_post_layer_18" */
static int site_of(const char *submodule, int *layer)
{
    static const struct {
        const char *before;
        int site;
    } names[] = {
        {"resid_post_layer_", QSAE_RESID_POST}, {"resid_pre_layer_", QSAE_RESID_PRE},
        {"mlp_out_layer_", QSAE_MLP_OUT},       {"attention_out_layer_", QSAE_ATTN_OUT},
        {"attn_out_layer_", QSAE_ATTN_OUT},
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        *layer = sae_number_in(submodule, names[i].before, "");
        if (*layer >= 0)
            return names[i].site;
    }
    return -1;
}

static int read_place(sae_source *s)
{
    safe_name name, number;
    int site = -1, layer = -1, has = trainer_text(s, "submodule_name", &name);
    if (has)
        site = site_of(name.text, &layer);
    if (trainer_text(s, "layer", &number)) {
        int said = sae_number_in(number.text, "", "");
        if (layer >= 0 && said != layer && s->o->layer < 0)
            return sae_bad_config(
                s,
                "layer is %s, submodule_name is %s; --layer N settles "
                "it",
                number.text, name.text);
        layer = layer < 0 ? said : layer;
    }
    return sae_set_place(s, 0, site, layer, "submodule_name", has ? name.text : NULL) ||
           sae_same_place(s);
}

/* ---- tensors ---- */

static int read_factor(sae_source *s)
{
    const char *text = tensors_meta(s->file, "norm_factor");
    sae_fold *f = &s->fold;
    char *end;
    if (strcmp(s->prefix, "ae.") != 0)
        return 0;
    char number[32];
    const tensor *t = tensors_find(s->file, "norm_factor");
    if (t && t->n == 1 && tensor_is_float(t)) { /* a number all the same */
        double value;
        if (tensor_f64(t, 0, 1, &value, s->err, s->cap))
            return err_prefix(s->err, s->cap, "%s", name_z(sae_file_name(s)).text);
        snprintf(number, sizeof number, "%.17g", value);
        text = number;
    }
    if (text && strcmp(text, "None") == 0)
        text = NULL;
    double x = text ? strtod(text, &end) : 0;
    if (!text || *end || !(x > 0) || !isfinite(x))
        return sae_bad_file(s,
                            "it is a checkpoint of an interrupted run, and its "
                            "norm_factor is %s: what its inputs were divided by is not "
                            "known",
                            text ? name_z(text).text : "(absent)");
    f->bias = f->out = f->theta = x;
    f->scale_name = "norm_factor of an interrupted run";
    return 0;
}

static int whole_number(sae_source *s, const char *name, int64_t *out)
{
    double x;
    if (sae_take_number(s, name, &x))
        return -1;
    if (x != floor(x) || fabs(x) > 1e15)
        return sae_bad_file(s, "%s is %g, it must be a whole number", name, x);
    *out = (int64_t)x;
    return 0;
}

/* The scalars k and threshold: they say what the SAE computes. */
static int read_selection(sae_source *s, const dict_class *c)
{
    qsae_sae_record *r = &s->record;
    safe_name said;
    int64_t k = 0;
    double theta = 0;
    if (whole_number(s, "k", &k) || sae_take_number(s, "threshold", &theta))
        return -1;
    if (k < 1 || k > (int64_t)r->d_sae)
        return sae_bad_file(s, "k is %lld, it must be a whole number in 1..%u (d_sae)",
                            (long long)k, r->d_sae);
    if (trainer_text(s, "k", &said) && strtoll(said.text, NULL, 10) != (long long)k)
        return sae_bad_config(s, "k is %s, the tensor k is %lld", said.text,
                              (long long)k);
    if (c->one_theta && theta < 0 && !s->o->k)
        return sae_bad_file(s,
                            "threshold is %g: training had not set it; --k %lld makes "
                            "it keep the %lld largest features of each token instead",
                            theta, (long long)k, (long long)k);
    if (c->one_theta && s->o->k && theta >= 0)
        return sae_bad_file(s,
                            "--k has no place: %s has a threshold (%g), which decides "
                            "what fires",
                            c->name, theta);
    if (c->one_theta && theta < 0) {
        r->activation = QSAE_ACT_TOPK;
        qfile_meta_add(&s->lines, "folded.threshold",
                       "none was set: the k largest of each token (--k)");
    }
    if (r->activation == QSAE_ACT_TOPK)
        return sae_set_k(s, k, "k");
    s->theta = *sae_tensor(s, "threshold");
    return 0;
}

/* Group sizes only say how the features were trained, if they cover them all. */
static int check_groups(sae_source *s)
{
    const tensor *t = sae_tensor(s, "group_sizes");
    uint64_t sum = 0;
    if (!t)
        return sae_bad_file(s, "tensor group_sizes is missing, which class %s has",
                            s->class_name);
    if (t->rank != 1 || !tensor_is_int(t) || t->n > s->record.d_sae)
        return sae_bad_file(s,
                            "tensor group_sizes has shape %s and type %s, it must "
                            "be whole numbers",
                            tensor_shape(t).text, tensor_type_name(t->type));
    for (uint64_t i = 0; i < t->n; i++) {
        int64_t x;
        if (tensor_int(t, i, &x, s->err, s->cap))
            return err_prefix(s->err, s->cap, "%s", sae_file_name(s));
        if (x < 1 || x > SAE_MAX_D_SAE)
            return sae_bad_file(s, "group_sizes has %lld at %llu", (long long)x,
                                (unsigned long long)i);
        sum += (uint64_t)x;
    }
    if (sum != s->record.d_sae)
        return sae_bad_file(s,
                            "the group_sizes are %llu together, there are %u "
                            "features",
                            (unsigned long long)sum, s->record.d_sae);
    sae_ignore(s, t);
    return 0;
}

static int read_tensors(sae_source *s, const dict_class *c)
{
    qsae_sae_record *r = &s->record;
    const uint32_t F = r->d_sae, d = r->d_in;
    if (c->linear ? sae_take(s, "encoder.weight", F, d, &s->enc) ||
                        sae_take_transposed(s, "decoder.weight", F, d, &s->dec)
                  : sae_take_transposed(s, "W_enc", F, d, &s->enc) ||
                        sae_take(s, "W_dec", F, d, &s->dec))
        return -1;
    if (sae_take(s, c->b_enc, 0, F, &s->b_enc) ||
        sae_take(s, c->b_dec, 0, d, &s->b_dec))
        return -1;
    if (r->activation == QSAE_ACT_GATED && (sae_take(s, "r_mag", 0, F, &s->r_mag) ||
                                            sae_take(s, "mag_bias", 0, F, &s->b_mag)))
        return -1;
    if (c->has_k)
        return read_selection(s, c);
    if (r->activation != QSAE_ACT_JUMPRELU)
        return 0;
    s->fold.gated_by_relu = 1; /* relu(z (z > theta)) */
    return sae_take(s, "threshold", 0, F, &s->theta);
}

/* activation_dim and dict_size are said twice */
static int check_sizes(sae_source *s)
{
    static const char *const keys[] = {"activation_dim", "dict_size"};
    for (int i = 0; i < 2; i++) {
        safe_name said;
        uint32_t is = i ? s->record.d_sae : s->record.d_in;
        if (trainer_text(s, keys[i], &said) &&
            strtoull(said.text, NULL, 10) != (unsigned long long)is)
            return sae_bad_config(s, "%s is %s, the biases have %u", keys[i], said.text,
                                  is);
    }
    return 0;
}

static int read_dictionary_learning(sae_source *s)
{
    const dict_class *c;
    safe_name model;
    sae_describe(s, "dictionary_learning");
    if (find_class(s, &c))
        return -1;
    s->class_name = c->name;
    s->record.activation = c->activation;
    qfile_meta_add(&s->lines, "source.class", "%s", c->name);
    if (trainer_text(s, "lm_name", &model))
        qfile_meta_add(&s->lines, "source.model_name", "%s", model.text);
    if (sae_sizes(s, c->b_enc, c->b_dec) || check_sizes(s))
        return -1;
    if (!c->linear && !s->o->dict_class && sae_not_square(s))
        return -1;
    if (read_factor(s) || read_tensors(s, c) ||
        (strcmp(c->name, "MatryoshkaBatchTopKSAE") == 0 && check_groups(s)) ||
        sae_no_strangers(s))
        return -1;
    s->fold.subtract = c->subtract;
    s->fold.subtract_name = c->name;
    if (strcmp(c->name, "AutoEncoder") == 0) {
        s->fold.norms = NORMS_TO_ENC;
        s->fold.slack = 1e-5;
        s->fold.norms_name = "AutoEncoder.from_pretrained";
    }
    return read_place(s);
}

/* config.json has "trainer"; without it names and, of JumpReLU, shapes in a .pt */
static int is_dictionary_learning(const sae_source *s)
{
    const tensor *e = sae_tensor(s, "W_enc"), *d = sae_tensor(s, "W_dec"),
                 *b = sae_tensor(s, "b_enc"), *t = sae_tensor(s, "threshold");
    if (s->unit->config)
        return s->cfg && strcmp(s->unit->config, "config.json") == 0 &&
               sae_get(s, s->cfg, "trainer") != NULL;
    if (strcmp(s->prefix, "ae.") == 0 || sae_tensor(s, "group_sizes"))
        return 1;
    if (sae_tensor(s, "encoder.weight") && sae_tensor(s, "decoder.weight"))
        return sae_tensor(s, "bias") || sae_tensor(s, "decoder_bias") ||
               sae_tensor(s, "b_dec");
    return e && d && b && t && tensors_container(s->file) == TENSORS_TORCH &&
           e->rank == 2 && d->rank == 2 && t->rank == 1 && e->shape[1] == b->n &&
           d->shape[0] == b->n;
}

const sae_family sae_dictionary_learning = {
    "dictionary-learning", is_dictionary_learning, read_dictionary_learning};
