/* A GGUF file of a Qwen3, as a source of a model file.
 *
 * Names and meaning of keys: github.com/ggml-org/ggml docs/gguf.md; what llama.cpp writes
 * for a Qwen3: its conversion/qwen.py and conversion/base.py. The matrices are those of
 * the checkpoint, row for row: queries and keys are not permuted (RoPE of this
 * architecture turns i with i + head_dim/2, as the checkpoint's). A key that belongs to
 * the architecture or the tokenizer and is not known here is refused. */

#include "convert.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "gguf.h"
#include "tok_build.h"

#define ARCH        "qwen3"
#define MAX_STRINGS (1u << 21) /* tokens or merges */

typedef struct gguf_input {
    const convert_options *o;
    const tensor_file *f;
    model_source *s;
    char *err;
    size_t cap;
} gguf_input;

static const model_names names = {
    "the metadata",
    "token_embd.weight",
    "output_norm.weight",
    "output.weight",
    "blk.",
    {"attn_norm", "attn_q", "attn_k", "attn_v", "attn_q_norm", "attn_k_norm",
     "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"},
    "rows of token_embd",
    ARCH ".embedding_length",
    ARCH ".attention.head_count",
    ARCH ".attention.head_count_kv",
    ARCH ".attention.key_length",
    ARCH ".feed_forward_length",
    "F32, BF16, F16, Q8_0, Q6_K and Q4_0",
};

/* ---- keys ---- */

/* Keys of the architecture and the tokenizer that are read below, or that say nothing
 * about how logits follow from ids, or ids from text. */
static const char *const known_keys[] = {
    ARCH ".attention.head_count",   ARCH ".attention.head_count_kv",
    ARCH ".attention.key_length",   ARCH ".attention.layer_norm_rms_epsilon",
    ARCH ".attention.value_length", ARCH ".block_count",
    ARCH ".context_length",         ARCH ".embedding_length",
    ARCH ".expert_count",           ARCH ".expert_used_count",
    ARCH ".feed_forward_length",    ARCH ".rope.dimension_count",
    ARCH ".rope.freq_base",         ARCH ".rope.scaling.factor",
    ARCH ".rope.scaling.finetuned", ARCH ".rope.scaling.original_context_length",
    ARCH ".rope.scaling.type",      ARCH ".vocab_size",
    "tokenizer.chat_template",      "tokenizer.chat_templates",
    "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.add_sep_token", "tokenizer.ggml.add_space_prefix",
    "tokenizer.ggml.merges",        "tokenizer.ggml.model",
    "tokenizer.ggml.pre",           "tokenizer.ggml.scores", /* of sentence pieces */
    "tokenizer.ggml.token_type",    "tokenizer.ggml.token_type_count",
    "tokenizer.ggml.tokens",
};

static int starts(const char *key, const char *prefix)
{
    return strncmp(key, prefix, strlen(prefix)) == 0;
}

static int ends(const char *key, const char *tail)
{
    size_t n = strlen(key), m = strlen(tail);
    return n >= m && strcmp(key + n - m, tail) == 0;
}

static int is_known(const char *key)
{
    for (size_t i = 0; i < sizeof known_keys / sizeof known_keys[0]; i++)
        if (strcmp(key, known_keys[i]) == 0)
            return 1;
    /* names of special tokens, and further templates */
    return (starts(key, "tokenizer.ggml.") && ends(key, "_token_id")) ||
           starts(key, "tokenizer.chat_template.");
}

static int check_keys(gguf_input *g)
{
    const gguf_value *v;
    for (size_t i = 0; (v = gguf_at(g->f, i)) != NULL; i++) {
        int tokenizer = starts(v->key, "tokenizer.");
        if (is_known(v->key) || starts(v->key, "general.") ||
            starts(v->key, "split.") || starts(v->key, "quantize.") ||
            convert_ignored(g->o, v->key) || (tokenizer && g->o->no_tokenizer))
            continue;
        if (!tokenizer && !starts(v->key, ARCH ".")) {
            convert_note("metadata %s is not read: Qwen3 has no such key",
                         name_z(v->key).text);
            continue;
        }
        return err_set(g->err, g->cap,
                       "metadata %s (%s) is not known; --ignore-key %s says that it "
                       "changes no number",
                       name_z(v->key).text, gguf_text(v).text, name_z(v->key).text);
    }
    return 0;
}

static int wrong(gguf_input *g, const char *key, const gguf_value *v, const char *want)
{
    return err_set(g->err, g->cap, "metadata %s is %s, not %s", key, gguf_text(v).text,
                   want);
}

/* *out keeps its value if the key is absent; 0 there means that it must be present. */
static int get_int(gguf_input *g, const char *key, int64_t min, int64_t max,
                   uint32_t *out)
{
    const gguf_value *v = gguf_find(g->f, key);
    int64_t x = (int64_t)*out;
    if (!v && x == 0)
        return err_set(g->err, g->cap, "metadata %s is missing", key);
    if (v && !gguf_int(v, &x))
        return wrong(g, key, v, "a whole number");
    if (x < min || x > max)
        return err_set(g->err, g->cap,
                       "metadata %s is %" PRId64 "%s, it must be in %" PRId64
                       "..%" PRId64,
                       key, x, v ? "" : " (the default)", min, max);
    *out = (uint32_t)x;
    return 0;
}

static int get_real(gguf_input *g, const char *key, double *out)
{
    const gguf_value *v = gguf_find(g->f, key);
    return v && !gguf_real(v, out) ? wrong(g, key, v, "a floating-point number") : 0;
}

/* ---- what the file is ---- */

static int check_kind(gguf_input *g)
{
    const gguf_value *arch = gguf_find(g->f, "general.architecture");
    const gguf_value *type = gguf_find(g->f, "general.type");
    const gguf_value *version = gguf_find(g->f, "general.quantization_version");
    int64_t parts = 1, q = 2;
    if (!arch)
        return err_set(g->err, g->cap, "metadata general.architecture is missing");
    if (!gguf_is(arch, ARCH))
        return err_set(g->err, g->cap,
                       "metadata general.architecture is %s; only " ARCH
                       " (dense Qwen3, not MoE, not VL) is supported",
                       gguf_text(arch).text);
    if (type && !gguf_is(type, "model"))
        return err_set(g->err, g->cap,
                       "metadata general.type is %s; only model is supported",
                       gguf_text(type).text);
    if (gguf_int(gguf_find(g->f, "split.count"), &parts) && parts > 1)
        return err_set(g->err, g->cap,
                       "the file is one of %" PRId64
                       "; put them together with llama-gguf-split --merge",
                       parts);
    if (version && (!gguf_int(version, &q) || q != 2))
        return wrong(g, "general.quantization_version", version, "2");
    return 0;
}

/* ---- sizes ---- */

static int read_heads(gguf_input *g, qsae_model_record *r)
{
    uint32_t value;
    if (get_int(g, ARCH ".attention.head_count", 1, 1024, &r->n_heads))
        return -1;
    r->n_kv_heads = r->n_heads;
    if (get_int(g, ARCH ".attention.head_count_kv", 1, 1024, &r->n_kv_heads))
        return -1;
    if (r->n_heads % r->n_kv_heads != 0)
        return err_set(g->err, g->cap,
                       "metadata " ARCH ".attention.head_count %u is not a multiple of "
                       "head_count_kv %u",
                       r->n_heads, r->n_kv_heads);
    r->head_dim = r->d_model / r->n_heads; /* gguf.md: the default of both lengths */
    if (!gguf_find(g->f, ARCH ".attention.key_length") && r->d_model % r->n_heads != 0)
        return err_set(g->err, g->cap,
                       "metadata " ARCH ".attention.key_length is missing");
    value = r->head_dim;
    if (get_int(g, ARCH ".attention.key_length", 2, 1024, &r->head_dim) ||
        get_int(g, ARCH ".attention.value_length", 2, 1024, &value))
        return -1;
    if (r->head_dim % 2 != 0)
        return err_set(g->err, g->cap,
                       "metadata " ARCH ".attention.key_length %u is odd", r->head_dim);
    if (value != r->head_dim)
        return err_set(g->err, g->cap,
                       "metadata " ARCH ".attention.value_length is %u, key_length %u; "
                       "they must be equal",
                       value, r->head_dim);
    return 0;
}

static int read_sizes(gguf_input *g, qsae_model_record *r)
{
    const tensor *embed = tensors_find(g->f, names.embed);
    uint32_t experts = 0, vocab;
    double eps = 0;
    if (get_int(g, ARCH ".block_count", 1, CONVERT_MAX_LAYERS, &r->n_layers) ||
        get_int(g, ARCH ".embedding_length", 1, 65536, &r->d_model) ||
        get_int(g, ARCH ".feed_forward_length", 1, 1 << 20, &r->d_ff) ||
        get_int(g, ARCH ".context_length", 1, 1 << 30, &r->max_positions) ||
        read_heads(g, r))
        return -1;
    if (gguf_find(g->f, ARCH ".expert_count") &&
        get_int(g, ARCH ".expert_count", 0, 0, &experts))
        return -1;
    if (!embed || embed->rank != 2 || embed->shape[0] > 1 << 20)
        return err_set(g->err, g->cap, "tensor %s %s%s", names.embed,
                       embed ? "has shape " : "is missing",
                       embed ? tensor_shape(embed).text : "");
    vocab = r->vocab_size = (uint32_t)embed->shape[0];
    if (get_int(g, ARCH ".vocab_size", 1, 1 << 20, &vocab))
        return -1;
    if (vocab != r->vocab_size)
        return err_set(g->err, g->cap,
                       "metadata " ARCH ".vocab_size is %u, tensor %s has %u rows",
                       vocab, names.embed, r->vocab_size);
    if (!gguf_find(g->f, ARCH ".attention.layer_norm_rms_epsilon"))
        return err_set(g->err, g->cap,
                       "metadata " ARCH ".attention.layer_norm_rms_epsilon is missing");
    if (get_real(g, ARCH ".attention.layer_norm_rms_epsilon", &eps))
        return -1;
    r->rms_eps = (float)eps;
    if (!(r->rms_eps > 0 && r->rms_eps < 1))
        return err_set(g->err, g->cap,
                       "metadata " ARCH
                       ".attention.layer_norm_rms_epsilon is %g, it must "
                       "be above 0 and below 1",
                       eps);
    return 0;
}

static int read_rope(gguf_input *g, qsae_model_record *r)
{
    const gguf_value *type = gguf_find(g->f, ARCH ".rope.scaling.type");
    uint32_t turned = r->head_dim;
    double factor = 1;
    r->rope_theta = 0;
    if (get_real(g, ARCH ".rope.freq_base", &r->rope_theta) ||
        get_real(g, ARCH ".rope.scaling.factor", &factor) ||
        get_int(g, ARCH ".rope.dimension_count", 1, 1024, &turned))
        return -1;
    if (type && !gguf_is(type, "none"))
        return err_set(g->err, g->cap,
                       "metadata " ARCH
                       ".rope.scaling.type is %s; only none (plain RoPE) "
                       "is supported",
                       gguf_text(type).text);
    if (!type && factor != 1 && factor != 0)
        return err_set(g->err, g->cap,
                       "metadata " ARCH
                       ".rope.scaling.factor is %g; only plain RoPE is "
                       "supported",
                       factor);
    if (turned != r->head_dim)
        return err_set(g->err, g->cap,
                       "metadata " ARCH
                       ".rope.dimension_count is %u, the heads have %u: "
                       "they must turn as a whole",
                       turned, r->head_dim);
    if (!gguf_find(g->f, ARCH ".rope.freq_base"))
        return err_set(g->err, g->cap, "metadata " ARCH ".rope.freq_base is missing");
    if (!(r->rope_theta >= 1 && r->rope_theta <= 1e30))
        return err_set(g->err, g->cap,
                       "metadata " ARCH ".rope.freq_base is %g, it must be in 1..1e30",
                       r->rope_theta);
    return 0;
}

/* ---- end tokens ---- */

static int read_id(gguf_input *g, const char *key, const qsae_model_record *r,
                   int32_t *id)
{
    const gguf_value *v = gguf_find(g->f, key);
    int64_t x;
    *id = -1;
    if (!v)
        return 0;
    if (!gguf_int(v, &x) || x < 0 || x >= (int64_t)r->vocab_size)
        return err_set(g->err, g->cap,
                       "metadata %s is %s, not a token below %u (the rows of %s)", key,
                       gguf_text(v).text, r->vocab_size, names.embed);
    *id = (int32_t)x;
    return 0;
}

static int read_token_ids(gguf_input *g, model_config *c)
{
    static const char *const ends_with[] = {"tokenizer.ggml.eos_token_id",
                                            "tokenizer.ggml.eot_token_id",
                                            "tokenizer.ggml.eom_token_id"};
    qsae_model_record *r = &c->record;
    int32_t id;
    for (size_t i = 0; i < sizeof ends_with / sizeof ends_with[0]; i++) {
        int seen = 0;
        if (read_id(g, ends_with[i], r, &id))
            return -1;
        for (uint32_t k = 0; k < r->n_eos; k++)
            seen |= r->eos[k] == id;
        if (id >= 0 && !seen)
            r->eos[r->n_eos++] = id;
    }
    c->eos_from = r->n_eos ? "the GGUF file" : "none";
    if (r->n_eos == 0)
        convert_note("no end token is named: a generation ends only at its length");
    return read_id(g, "tokenizer.ggml.bos_token_id", r, &r->bos);
}

/* ---- tokenizer ---- */

static const gguf_value *get_strings(gguf_input *g, const char *key)
{
    const gguf_value *v = gguf_find(g->f, key);
    if (v && v->is_array && v->type == GGUF_STRING && v->n <= MAX_STRINGS)
        return v;
    if (v && v->is_array && v->n > MAX_STRINGS)
        err_set(g->err, g->cap, "metadata %s has %" PRIu64 " entries, the limit is %u",
                key, v->n, MAX_STRINGS);
    else if (v)
        wrong(g, key, v, "an array of strings");
    else
        err_set(g->err, g->cap, "metadata %s is missing", key);
    return NULL;
}

static tok_item *read_items(gguf_input *g, const gguf_value *v)
{
    size_t at = 0, n;
    tok_item *list = size_native(v->n, &n) ? NULL : calloc(n + 1, sizeof *list);
    if (!list) {
        err_set(g->err, g->cap, "out of memory");
        return NULL;
    }
    for (size_t i = 0; i < n; i++)
        list[i].text = gguf_next_string(v, &at, &list[i].len);
    return list;
}

/* llama.cpp's token types: 1 normal, 3 control, 4 user-defined, 5 unused (what pads the
 * vocabulary to the rows of the embedding). Its converter makes control tokens of those
 * that the checkpoint calls special, and of all that look like <|this|>. */
static int read_kinds(gguf_input *g, tok_item *tokens, uint64_t n)
{
    static const char key[] = "tokenizer.ggml.token_type";
    const gguf_value *v = gguf_find(g->f, key);
    if (!v || !v->is_array || v->n != n)
        return err_set(g->err, g->cap,
                       "metadata %s is %s, not the types of %" PRIu64
                       " tokens (--no-tokenizer leaves the tokenizer out)",
                       key, gguf_text(v).text, n);
    for (uint64_t i = 0; i < n; i++) {
        int64_t type = 0;
        if (!gguf_int_at(v, i, &type))
            return wrong(g, key, v, "an array of whole numbers");
        switch (type) {
        case 1: tokens[i].kind = TOK_NORMAL; break;
        case 3: tokens[i].kind = TOK_SPECIAL; break;
        case 4: tokens[i].kind = TOK_ADDED; break;
        case 5: tokens[i].kind = TOK_UNUSED; break;
        default:
            return err_set(g->err, g->cap,
                           "metadata %s: token %" PRIu64 " has type %" PRId64
                           "; 1 (normal), 3 (control), 4 (user-defined) and 5 (unused) "
                           "are supported (--no-tokenizer leaves the tokenizer out)",
                           key, i, type);
        }
    }
    return 0;
}

/* Qwen3's pipeline, and nothing that is put around a text. */
static int check_pipeline(gguf_input *g)
{
    static const char *const off[] = {
        "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token",
        "tokenizer.ggml.add_sep_token", "tokenizer.ggml.add_space_prefix"};
    static const struct {
        const char *key, *value;
    } fixed[] = {{"tokenizer.ggml.model", "gpt2"}, {"tokenizer.ggml.pre", "qwen2"}};
    for (size_t i = 0; i < 2; i++) {
        const gguf_value *v = gguf_find(g->f, fixed[i].key);
        if (!gguf_is(v, fixed[i].value))
            return err_set(g->err, g->cap,
                           "metadata %s is %s; only %s is supported (--no-tokenizer "
                           "leaves the tokenizer out)",
                           fixed[i].key, gguf_text(v).text, fixed[i].value);
    }
    for (size_t i = 0; i < sizeof off / sizeof off[0]; i++) {
        const gguf_value *v = gguf_find(g->f, off[i]);
        int on = 0;
        if (v && !gguf_bool(v, &on))
            return wrong(g, off[i], v, "true or false");
        if (on && !convert_ignored(g->o, off[i]))
            return err_set(
                g->err, g->cap,
                "metadata %s is true; Qwen3's tokenizer adds nothing to a text "
                "(--ignore-key %s: this one does not either)",
                off[i], off[i]);
    }
    return 0;
}

static int build_tokenizer(gguf_input *g)
{
    char why[ERR_CAP] = "";
    const gguf_value *tokens, *merges;
    if (check_pipeline(g) || !(tokens = get_strings(g, "tokenizer.ggml.tokens")) ||
        !(merges = get_strings(g, "tokenizer.ggml.merges")))
        return -1;
    if (tokens->n > g->s->config.record.vocab_size)
        return err_set(g->err, g->cap,
                       "metadata tokenizer.ggml.tokens has %" PRIu64
                       " tokens, tensor %s has %u rows",
                       tokens->n, names.embed, g->s->config.record.vocab_size);
    tok_item *list = read_items(g, tokens),
             *pairs = list ? read_items(g, merges) : NULL;
    int status = pairs ? read_kinds(g, list, tokens->n) : -1;
    if (!status &&
        !tok_build_from_lists(list, (size_t)tokens->n, pairs, (size_t)merges->n,
                              &g->s->blob, &g->s->blob_size, why, sizeof why))
        status = err_set(g->err, g->cap,
                         "the tokenizer: %s (--no-tokenizer leaves it out)", why);
    free(list);
    free(pairs);
    return status;
}

/* tokenizer.chat_template is what a chat gets unless another is asked for by name. */
static int read_template(gguf_input *g)
{
    const gguf_value *v = gguf_find(g->f, "tokenizer.chat_template");
    size_t len = 0;
    const char *text = gguf_string(v, &len);
    if (v && !text)
        return wrong(g, "tokenizer.chat_template", v, "a string");
    convert_judge_template(text, len, g->o, &g->s->meta, &g->s->chat_flags);
    return 0;
}

static int read_text(gguf_input *g)
{
    if (g->o->no_tokenizer)
        return 0;
    if (!gguf_find(g->f, "tokenizer.ggml.model")) {
        convert_note("no tokenizer in the file: the model will take and give token ids "
                     "only");
        return 0;
    }
    return build_tokenizer(g) || read_template(g) ? -1 : 0;
}

/* ---- all of it ---- */

static void describe(gguf_input *g)
{
    size_t count[TENSOR_TYPE_COUNT] = {0};
    char types[160] = "";
    for (size_t i = 0; i < tensors_count(g->f); i++)
        count[tensors_at(g->f, i)->type]++;
    for (int t = 0; t < TENSOR_TYPE_COUNT; t++) {
        size_t at = strlen(types);
        if (count[t])
            snprintf(types + at, sizeof types - at, "%s%zu %s", at ? ", " : "",
                     count[t], tensor_type_name((tensor_type)t));
    }
    qfile_meta_add(&g->s->meta, "source", "GGUF file, architecture " ARCH);
    qfile_meta_add(&g->s->meta, "source.tensors", "%s", types);
}

int convert_gguf(const char *path, const convert_options *o, char *err, size_t cap)
{
    model_source s;
    memset(&s, 0, sizeof s);
    s.path = path;
    s.names = &names;
    tensor_file *f = tensors_open(path, err, cap);
    if (!f)
        return -1;
    const tensor_file *files[] = {f};
    gguf_input g = {o, f, &s, err, cap};
    s.files = files;
    s.n_files = 1;
    s.config.tied = tensors_find(f, names.head) == NULL;
    int status = check_kind(&g) || check_keys(&g) || read_sizes(&g, &s.config.record) ||
                 read_rope(&g, &s.config.record) || read_token_ids(&g, &s.config) ||
                 read_text(&g);
    describe(&g);
    if (!status)
        status = convert_write_model(&s, o, err, cap);
    else
        err_prefix(err, cap, "%s", name_z(path).text);
    free(s.blob);
    qfile_meta_free(&s.meta);
    tensors_close(f);
    return status ? -1 : 0;
}
