/* config.json and generation_config.json of a Qwen3 checkpoint.
 *
 * Meaning and defaults are those of the reference, transformers 5.23:
 * models/qwen3/configuration_qwen3.py (Qwen3Config), configuration_utils.py
 * (PreTrainedConfig) and modeling_rope_utils.py (convert_rope_params_to_dict). A key
 * that the reference would read and that changes a number is followed or refused. A key
 * that nobody here knows is refused if its name speaks of the computation, or noted. */

#include "convert.h"

#include <math.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

typedef struct config {
    const convert_options *o;
    const json_doc *doc;
    const json_value *root;
    char *err;
    size_t cap;
} config;

/* Keys whose value is read below. */
static const char *const known_keys[] = {
    "architectures",
    "attention_bias",
    "bos_token_id",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "partial_rotary_factor",
    "quantization_config",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "transformers_version",
    "use_sliding_window",
    "vocab_size",
};

/* Keys that say nothing about how logits follow from token ids. */
static const char *const harmless_keys[] = {
    /* storage, provenance, training */
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_commit_hash",
    "_experts_implementation",
    "_name_or_path",
    "attention_dropout",
    "attn_implementation",
    "dtype",
    "experts_implementation",
    "finetuning_task",
    "hidden_dropout",
    "initializer_range",
    "model_max_length",
    "name_or_path",
    "original_max_position_embeddings",
    "problem_type",
    "torch_dtype",
    "tokenizer_class",
    "torchscript",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_flash_attn",
    "pretraining_tp",
    "trl_version",
    "task_specific_params",
    "id2label",
    "label2id",
    "num_labels",
    "_num_labels",
    /* what a forward pass returns, and to whom */
    "chunk_size_feed_forward",
    "is_decoder",
    "is_encoder_decoder",
    "keys_to_ignore_at_inference",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "tf_legacy_loss",
    "use_return_dict",
    "tie_last_hidden_states",
    "router_aux_loss_coef",
    "output_router_logits",
    /* token ids and generation settings that older versions kept here */
    "bad_words_ids",
    "begin_suppress_tokens",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_p",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "pad_token_id",
    "prefix",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "think_token_id",
    "chat_template",
};

/* Parts of names that speak of the computation. */
static const char *const suspicious[] = {
    "adapter",   "alibi",   "auto_map",   "bias",    "causal", "cross_attention",
    "deepstack", "expert",  "factor",     "gate",    "kernel", "layer",
    "linear",    "logit",   "lora",       "mamba",   "mix",    "moe",
    "mrope",     "mtp",     "multiplier", "norm",    "prun",   "quant",
    "residual",  "rope",    "rotary",     "router",  "scal",   "sink",
    "sliding",   "softcap", "sparse",     "sparsif", "vision", "window",
};

static int listed(const char *key, const char *const *list, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(key, list[i]) == 0)
            return 1;
    return 0;
}

#define LISTED(key, list) listed(key, list, sizeof(list) / sizeof(list)[0])

/* null, false, 0, "", [] and {} switch nothing on. */
static int says_nothing(const json_value *v)
{
    double x;
    if (v->type == JSON_NUMBER)
        return json_real(v, &x) && x == 0;
    return v->type == JSON_NULL || v->type == JSON_FALSE ||
           (v->type == JSON_STRING && v->len == 0) ||
           ((v->type == JSON_ARRAY || v->type == JSON_OBJECT) && v->n == 0);
}

static int check_keys(config *c)
{
    for (const json_value *v = json_first(c->doc, c->root); v;
         v = json_next(c->doc, v)) {
        const char *key = json_key(c->doc, v, NULL);
        if (LISTED(key, known_keys) || LISTED(key, harmless_keys) || says_nothing(v))
            continue;
        safe_name shown = name_z(key);
        for (size_t i = 0; i < sizeof suspicious / sizeof suspicious[0]; i++)
            if (strstr(key, suspicious[i]) && !convert_ignored(c->o, key))
                return err_set(
                    c->err, c->cap,
                    "config.json: the key %s is not known here and may change the "
                    "computation (--ignore-key %s if it does not)",
                    shown.text, shown.text);
        convert_note("config.json: %s is not read: Qwen3 has no such key", shown.text);
    }
    return 0;
}

/* ---- typed values; an absent key leaves *out, which holds the default ---- */

static int wrong(config *c, const char *key, const char *want)
{
    return err_set(c->err, c->cap, "config.json: %s is not %s", key, want);
}

static int get_int(config *c, const char *key, int64_t min, int64_t max, uint32_t *out)
{
    const json_value *v = json_get(c->doc, c->root, key);
    int64_t x = (int64_t)*out;
    if (v && !json_int(v, &x))
        return wrong(c, key, "a whole number");
    if (x < min || x > max)
        return err_set(c->err, c->cap,
                       "config.json: %s is %" PRId64 "%s, it must be in %" PRId64
                       "..%" PRId64,
                       key, x, v ? "" : " (the default)", min, max);
    *out = (uint32_t)x;
    return 0;
}

static int get_real(config *c, const json_value *object, const char *key, double *out)
{
    const json_value *v = json_get(c->doc, object, key);
    if (v && !json_real(v, out))
        return wrong(c, key, "a number in the range of double");
    return 0;
}

static int get_bool(config *c, const char *key, int *out)
{
    const json_value *v = json_get(c->doc, c->root, key);
    if (v && v->type != JSON_NULL && !json_bool(v, out))
        return wrong(c, key, "true or false");
    return 0;
}

static int is_text(const json_value *v, const char *text)
{
    return v && v->type == JSON_STRING && v->len == strlen(text) &&
           strcmp(v->str, text) == 0;
}

static safe_name text_of(const json_value *v)
{
    if (!v)
        return name_z("(absent)");
    if (v->type == JSON_STRING || v->type == JSON_NUMBER)
        return name_n(v->str, v->len);
    return name_z(v->type == JSON_NULL    ? "null"
                  : v->type == JSON_TRUE  ? "true"
                  : v->type == JSON_FALSE ? "false"
                  : v->type == JSON_ARRAY ? "[...]"
                                          : "{...}");
}

/* ---- the parts ---- */

static int check_architecture(config *c)
{
    const json_value *type = json_get(c->doc, c->root, "model_type");
    const json_value *list = json_get(c->doc, c->root, "architectures");
    if (!is_text(type, "qwen3"))
        return err_set(
            c->err, c->cap,
            "config.json: model_type is %s; only qwen3 (dense Qwen3, not MoE, not "
            "VL) is supported",
            text_of(type).text);
    if (!list || list->type == JSON_NULL)
        return 0;
    if (list->type != JSON_ARRAY || list->n != 1 ||
        !is_text(json_first(c->doc, list), "Qwen3ForCausalLM"))
        return err_set(c->err, c->cap,
                       "config.json: architectures is %s; only [Qwen3ForCausalLM] is "
                       "supported",
                       text_of(json_first(c->doc, list)).text);
    return 0;
}

/* Sizes, with Qwen3Config's defaults. The bounds are those of FORMAT.md. */
static int read_sizes(config *c, qsae_model_record *r)
{
    const json_value *kv = json_get(c->doc, c->root, "num_key_value_heads");
    double eps = 1e-6;
    r->vocab_size = 151936;
    r->d_model = 4096;
    r->d_ff = 22016;
    r->n_layers = 32;
    r->n_heads = 32;
    r->head_dim =
        128; /* also where hidden_size / num_attention_heads is another number */
    r->max_positions = 32768;
    if (get_int(c, "vocab_size", 1, 1 << 20, &r->vocab_size) ||
        get_int(c, "hidden_size", 1, 65536, &r->d_model) ||
        get_int(c, "intermediate_size", 1, 1 << 20, &r->d_ff) ||
        get_int(c, "num_hidden_layers", 1, CONVERT_MAX_LAYERS, &r->n_layers) ||
        get_int(c, "num_attention_heads", 1, 1024, &r->n_heads) ||
        get_int(c, "head_dim", 2, 1024, &r->head_dim) ||
        get_int(c, "max_position_embeddings", 1, 1 << 30, &r->max_positions))
        return -1;
    r->n_kv_heads =
        kv && kv->type == JSON_NULL ? r->n_heads : 32; /* null: as many as heads */
    if (!(kv && kv->type == JSON_NULL) &&
        get_int(c, "num_key_value_heads", 1, 1024, &r->n_kv_heads))
        return -1;
    if (r->n_heads % r->n_kv_heads != 0)
        return err_set(c->err, c->cap,
                       "config.json: num_attention_heads %u is not a multiple of "
                       "num_key_value_heads %u",
                       r->n_heads, r->n_kv_heads);
    if (r->head_dim % 2 != 0)
        return err_set(c->err, c->cap, "config.json: head_dim %u is odd", r->head_dim);
    if (get_real(c, c->root, "rms_norm_eps", &eps))
        return -1;
    if (!json_get(c->doc, c->root, "rms_norm_eps"))
        convert_note("config.json: rms_norm_eps is absent: 1e-6, the reference's default");
    r->rms_eps = (float)eps;
    if (!(r->rms_eps > 0 && r->rms_eps < 1))
        return err_set(
            c->err, c->cap,
            "config.json: rms_norm_eps is %g, it must be above 0 and below 1", eps);
    return 0;
}

/* One object with rotary parameters: rope_parameters (transformers 5) or rope_scaling
 * (before). Only the type "default" is plain RoPE. *theta is set where the object has
 * rope_theta. */
static int read_rope_object(config *c, const char *name, double *theta)
{
    const json_value *rope = json_get(c->doc, c->root, name);
    double factor = 1, before = *theta;
    if (!rope || rope->type == JSON_NULL)
        return 0;
    if (rope->type != JSON_OBJECT)
        return wrong(c, name, "an object");
    for (const json_value *v = json_first(c->doc, rope); v; v = json_next(c->doc, v)) {
        const char *key = json_key(c->doc, v, NULL);
        if (strcmp(key, "rope_type") == 0 || strcmp(key, "type") == 0) {
            if (!is_text(v, "default"))
                return err_set(c->err, c->cap,
                               "config.json: %s.%s is %s; only default (plain RoPE) is "
                               "supported",
                               name, key, text_of(v).text);
        } else if (strcmp(key, "rope_theta") != 0 &&
                   strcmp(key, "partial_rotary_factor") != 0 &&
                   strcmp(key, "original_max_position_embeddings") != 0 &&
                   !says_nothing(v) && !convert_ignored(c->o, key)) {
            return err_set(c->err, c->cap,
                           "config.json: %s has the key %s, which plain RoPE does not",
                           name, name_z(key).text);
        }
    }
    if (get_real(c, rope, "rope_theta", theta) ||
        get_real(c, rope, "partial_rotary_factor", &factor))
        return -1;
    if (factor != 1)
        return err_set(
            c->err, c->cap,
            "config.json: %s.partial_rotary_factor is %g, only 1 is supported", name,
            factor);
    if (json_get(c->doc, rope, "rope_theta") && !(*theta > 0))
        return err_set(c->err, c->cap,
                       "config.json: %s.rope_theta is %g, it must be above 0", name,
                       *theta);
    if (before > 0 && before != *theta)
        return err_set(c->err, c->cap,
                       "config.json: rope_theta is %.17g in one place and %.17g in %s",
                       before, *theta, name);
    return 0;
}

static int read_rope(config *c, qsae_model_record *r)
{
    double theta = 0, factor = 1;
    const json_value *top = json_get(c->doc, c->root, "rope_theta");
    const json_value *partial = json_get(c->doc, c->root, "partial_rotary_factor");
    if (top && top->type != JSON_NULL && get_real(c, c->root, "rope_theta", &theta))
        return -1;
    if (top && top->type != JSON_NULL && !(theta > 0))
        return err_set(c->err, c->cap,
                       "config.json: rope_theta is %g, it must be above 0", theta);
    if (partial && partial->type != JSON_NULL &&
        get_real(c, c->root, "partial_rotary_factor", &factor))
        return -1;
    if (factor != 1)
        return err_set(c->err, c->cap,
                       "config.json: partial_rotary_factor is %g, only 1 is supported",
                       factor);
    const json_value *now = json_get(c->doc, c->root, "rope_parameters");
    const json_value *old = json_get(c->doc, c->root, "rope_scaling");
    if (theta == 0 && now && old && now->n && old->n)
        return err_set(c->err, c->cap,
                       "config.json has rope_parameters and rope_scaling, of which the "
                       "reference would drop one; remove the one that is not meant");
    if (read_rope_object(c, "rope_parameters", &theta) ||
        read_rope_object(c, "rope_scaling", &theta))
        return -1;
    if (theta == 0) {
        theta = 10000; /* RotaryEmbeddingConfigMixin.default_theta */
        convert_note("config.json: rope_theta is absent: 10000, the reference's default");
    }
    if (!(theta > 0))
        return err_set(c->err, c->cap,
                       "config.json: rope_theta is %g, it must be above 0", theta);
    r->rope_theta = theta;
    return 0;
}

/* Every layer must see every position. Qwen3Config.__post_init__: without layer_types,
 * layers from max_window_layers on slide if use_sliding_window is set and
 * sliding_window is not null. */
static int check_windows(config *c, const qsae_model_record *r)
{
    const json_value *types = json_get(c->doc, c->root, "layer_types");
    const json_value *window = json_get(c->doc, c->root, "sliding_window");
    uint32_t from = 28, layer = 0;
    int use = 0;
    if (get_bool(c, "use_sliding_window", &use) ||
        get_int(c, "max_window_layers", 0, INT32_MAX, &from))
        return -1;
    if (types && types->type != JSON_NULL) {
        if (types->type != JSON_ARRAY || types->n != r->n_layers)
            return err_set(c->err, c->cap,
                           "config.json: layer_types has %u entries for %u layers",
                           types->n, r->n_layers);
        for (const json_value *v = json_first(c->doc, types); v;
             v = json_next(c->doc, v), layer++)
            if (!is_text(v, "full_attention"))
                return err_set(c->err, c->cap,
                               "config.json: layer_types: layer %u is %s; only "
                               "full_attention is supported",
                               layer, text_of(v).text);
        return 0;
    }
    if (use && !(window && window->type == JSON_NULL) && from < r->n_layers)
        return err_set(
            c->err, c->cap,
            "config.json: use_sliding_window is true and acts on layers %u..%u; "
            "sliding windows are not supported",
            from, r->n_layers - 1);
    return 0;
}

static int check_rest(config *c, int *tied)
{
    const json_value *act = json_get(c->doc, c->root, "hidden_act");
    const json_value *quant = json_get(c->doc, c->root, "quantization_config");
    int bias = 0;
    if (act && !is_text(act, "silu") &&
        !is_text(act, "swish")) /* one function in transformers' ACT2FN */
        return err_set(c->err, c->cap,
                       "config.json: hidden_act is %s; only silu is supported",
                       text_of(act).text);
    if (get_bool(c, "attention_bias", &bias) ||
        get_bool(c, "tie_word_embeddings", tied))
        return -1;
    if (bias)
        return err_set(c->err, c->cap,
                       "config.json: attention_bias is true; Qwen3 with biases is not "
                       "supported");
    if (quant && !says_nothing(quant)) {
        const json_value *method = json_get(c->doc, quant, "quant_method");
        return err_set(
            c->err, c->cap,
            "config.json: quantization_config (%s): convert the checkpoint that "
            "it was made from",
            text_of(method).text);
    }
    return 0;
}

/* ---- end tokens ---- */

/* An id, or a list of ids, as transformers takes both. Returns how many, 0 if absent or
 * null. */
static int read_eos(config *c, const char *file, const json_doc *doc,
                    const json_value *v, qsae_model_record *r)
{
    const json_value *e = v && v->type == JSON_ARRAY ? json_first(doc, v) : v;
    if (!v || v->type == JSON_NULL)
        return 0;
    for (; e; e = v->type == JSON_ARRAY ? json_next(doc, e) : NULL) {
        int64_t id;
        int seen = 0;
        if (!json_int(e, &id) || id < 0 || id >= (int64_t)r->vocab_size)
            return err_set(c->err, c->cap,
                           "%s: eos_token_id %s is not a token below vocab_size %u",
                           file, text_of(e).text, r->vocab_size);
        for (uint32_t i = 0; i < r->n_eos; i++)
            seen |= r->eos[i] == (int32_t)id;
        if (seen)
            continue;
        if (r->n_eos == QSAE_MAX_EOS)
            return err_set(c->err, c->cap, "%s: more than %d end tokens", file,
                           QSAE_MAX_EOS);
        r->eos[r->n_eos++] = (int32_t)id;
    }
    return 0;
}

static int read_bos(config *c, const json_value *v, qsae_model_record *r)
{
    int64_t id;
    r->bos = -1;
    if (!v || v->type == JSON_NULL)
        return 0;
    if (!json_int(v, &id) || id < 0 || id >= (int64_t)r->vocab_size)
        return err_set(
            c->err, c->cap,
            "config.json: bos_token_id %s is not a token below vocab_size %u",
            text_of(v).text, r->vocab_size);
    r->bos = (int32_t)id;
    return 0;
}

/* generation_config.json decides if it names end tokens, as it does in transformers'
 * generate(); else config.json. */
static int read_token_ids(config *c, const char *dir, model_config *out)
{
    json_doc *doc = NULL;
    int status = 0;
    qsae_model_record *r = &out->record;
    out->eos_from = "generation_config.json";
    if (convert_exists(dir, out->eos_from)) {
        if (convert_read_json(dir, out->eos_from, &doc, c->err, c->cap))
            return -1;
        status = read_eos(c, out->eos_from, doc,
                          json_get(doc, json_root(doc), "eos_token_id"), r);
        json_free(doc);
    }
    if (!status && r->n_eos == 0) {
        out->eos_from = "config.json";
        status = read_eos(c, out->eos_from, c->doc,
                          json_get(c->doc, c->root, "eos_token_id"), r);
    }
    if (!status && r->n_eos == 0) {
        out->eos_from = "none";
        convert_note("no end token is named: a generation ends only at its length");
    }
    return status ? -1 : read_bos(c, json_get(c->doc, c->root, "bos_token_id"), r);
}

int convert_config(const char *dir, const convert_options *o, model_config *out,
                   char *err, size_t cap)
{
    json_doc *doc;
    memset(out, 0, sizeof *out);
    if (convert_read_json(dir, "config.json", &doc, err, cap))
        return -1;
    config c = {o, doc, json_root(doc), err, cap};
    int status = check_architecture(&c) || check_keys(&c) ||
                 read_sizes(&c, &out->record) || read_rope(&c, &out->record) ||
                 check_windows(&c, &out->record) || check_rest(&c, &out->tied) ||
                 read_token_ids(&c, dir, out);
    const json_value *version = json_get(doc, c.root, "transformers_version");
    if (!status && version && version->type == JSON_STRING)
        out->version = name_n(version->str, version->len);
    json_free(doc);
    return status ? -1 : 0;
}
