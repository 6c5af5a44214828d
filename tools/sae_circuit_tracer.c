/* circuit-tracer's single-layer transcoders: config.yaml, layer_{i}.safetensors.
 *
 * Followed: circuit-tracer 0.5.0 transcoder/single_layer_transcoder.py (encode, decode,
 * load_relu_transcoder) and activation_functions.py. W_enc [F, d]; W_dec [F, d] or,
 * until 2025-06, [d, F], told apart by shape; b_enc; b_dec; W_skip [d, d] adds W_skip
 * x. The activation is jumprelu where the file has activation_function.threshold, topk
 * where k says so, else relu. Nothing is folded.
 *
 * Its topk and its jumprelu let negative values through: of topk they become 0 here
 * (there is none unless fewer than k are positive), a threshold below 0 is refused.
 * Sites are named in config.yaml, without the layer, which is that of the file's
 * name. */

#include "sae_source.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- config.yaml: of YAML only "key: value" at the left margin ---- */

static const char *const known_keys[] = {
    "activation", "description", "feature_input_hook", "feature_output_hook",
    "k",          "model_kind",  "model_name",         "repo_id",
    "revision",   "scan",        "subfolder",          "transcoders",
    NULL,
};

typedef struct yaml {
    char *text;
    size_t len;
} yaml;

/* The value of a line "key: value", without quotes and comment; 1 if it is one. */
static int yaml_line(const char *line, size_t n, safe_name *key, safe_name *value)
{
    const char *colon = memchr(line, ':', n);
    if (!colon || (colon + 1 < line + n && colon[1] != ' '))
        return 0;
    const char *from = colon + 1, *to = line + n;
    const char *hash = from;
    while (hash < to && !(*hash == '#' && hash[-1] == ' '))
        hash++;
    to = hash;
    while (from < to && *from == ' ')
        from++;
    while (from < to && (to[-1] == ' ' || to[-1] == '\r'))
        to--;
    if (to - from >= 2 && (*from == '"' || *from == '\'') && to[-1] == *from)
        from++, to--;
    *key = name_n(line, (size_t)(colon - line));
    *value = name_n(from, (size_t)(to - from));
    return 1;
}

/* The value of a key; 0 if it is absent or empty. */
static int yaml_get(const yaml *y, const char *wanted, safe_name *value)
{
    for (size_t at = 0; at < y->len;) {
        size_t n = strcspn(y->text + at, "\n");
        const char *line = y->text + at;
        safe_name key;
        at += n + 1;
        if (n && *line != ' ' && *line != '#' && *line != '-' &&
            yaml_line(line, n, &key, value) && strcmp(key.text, wanted) == 0)
            return *value->text && strcmp(value->text, "null") != 0;
    }
    return 0;
}

static int yaml_read(sae_source *s, yaml *y)
{
    if (convert_read(s->unit->folder, s->unit->config, 1 << 20, &y->text, &y->len,
                     s->err, s->cap))
        return -1;
    for (size_t at = 0; at < y->len;) {
        size_t n = strcspn(y->text + at, "\n");
        const char *line = y->text + at;
        safe_name key, value;
        int known = 0;
        at += n + 1;
        if (n == 0 || *line == ' ' || *line == '#' || *line == '-' || *line == '\r')
            continue;
        if (!yaml_line(line, n, &key, &value))
            return sae_bad_config(s, "the line \"%s\" is not \"key: value\"",
                                  name_n(line, n < 60 ? n : 60).text);
        for (size_t i = 0; known_keys[i] && !known; i++)
            known = strcmp(key.text, known_keys[i]) == 0;
        if (!known && !convert_ignored(s->o, key.text))
            return sae_bad_config(s,
                                  "the key %s is not known here (--ignore-key %s if it "
                                  "does not change the computation)",
                                  key.text, key.text);
    }
    return 0;
}

/* ---- the transcoder ---- */

static int read_kind(sae_source *s, const yaml *y)
{
    safe_name kind, model;
    if (yaml_get(y, "model_name", &model))
        qfile_meta_add(&s->lines, "source.model_name", "%s", model.text);
    if (!yaml_get(y, "model_kind", &kind) || strcmp(kind.text, "transcoder_set") == 0)
        return 0;
    return sae_bad_config(s, "model_kind is %s; only transcoder_set is supported%s",
                          kind.text,
                          strcmp(kind.text, "cross_layer_transcoder") == 0
                              ? " (a cross-layer transcoder writes several layers)"
                              : "");
}

static int read_decoder(sae_source *s)
{
    qsae_sae_record *r = &s->record;
    const tensor *t = sae_tensor(s, "W_dec");
    int layout = s->o->decoder_layout;
    if (r->d_sae == r->d_in && !layout)
        return sae_bad_file(
            s,
            "d_sae and d_in are both %u, so the shape of W_dec does not "
            "say what its rows are: --decoder-layout features if a "
            "feature each (since 2025-06), --decoder-layout columns if "
            "they are turned",
            r->d_in);
    if (!layout && t && t->rank == 2 && t->shape[0] == r->d_in &&
        t->shape[1] == r->d_sae)
        layout = 2;
    if (layout == 2)
        qfile_meta_add(&s->lines, "source.decoder", "[d, F], as until 2025-06");
    return layout == 2 ? sae_take_transposed(s, "W_dec", r->d_sae, r->d_in, &s->dec)
                       : sae_take(s, "W_dec", r->d_sae, r->d_in, &s->dec);
}

static int read_threshold(sae_source *s, const tensor *t)
{
    s->record.activation = QSAE_ACT_JUMPRELU;
    if (t->n != 1)
        return sae_take(s, "activation_function.threshold", 0, s->record.d_sae,
                        &s->theta);
    s->theta = *t;
    sae_ignore(s, t);
    return tensor_is_float(t) ? 0
                              : sae_bad_file(s, "tensor %s is %s; it must be a float",
                                             t->name, tensor_type_name(t->type));
}

static int read_topk(sae_source *s, const yaml *y)
{
    safe_name k;
    double x = 0;
    if (sae_tensor(s, "k")) {
        if (sae_take_number(s, "k", &x))
            return -1;
    } else if (yaml_get(y, "k", &k)) {
        char *end;
        x = strtod(k.text, &end);
        if (*end)
            x = -1;
    }
    if (x != floor(x) || x < 0 || x > SAE_MAX_D_SAE)
        return sae_bad_config(s, "k is %g, it must be a whole number in 1..%u (d_sae)",
                              x, s->record.d_sae);
    if (x == 0 && !s->o->k)
        return sae_bad_config(s,
                              "activation is topk, but there is no k; --k K says it");
    s->record.activation = QSAE_ACT_TOPK;
    qfile_meta_add(&s->lines, "folded.topk",
                   "of the k largest, those below 0 become 0 (circuit-tracer keeps "
                   "them)");
    return sae_set_k(s, (int64_t)x, "k");
}

static int read_activation(sae_source *s, const yaml *y)
{
    const tensor *t = sae_tensor(s, "activation_function.threshold");
    safe_name name = name_z("");
    int said = yaml_get(y, "activation", &name);
    int topk = said && strcmp(name.text, "topk") == 0;
    if (said && !topk && strcmp(name.text, "relu") != 0 &&
        strcmp(name.text, "jumprelu") != 0 && strcmp(name.text, "jump_relu") != 0)
        return sae_bad_config(
            s, "activation is %s; relu, jumprelu and topk are supported", name.text);
    if (t && (topk || (said && strcmp(name.text, "relu") == 0)))
        return sae_bad_config(
            s, "activation is %s, but the file has activation_function.threshold",
            name.text);
    if (said && !t && name.text[0] == 'j')
        return sae_bad_config(s,
                              "activation is %s, but the file has no "
                              "activation_function.threshold",
                              name.text);
    if (t)
        return read_threshold(s, t);
    if (topk || sae_tensor(s, "k") || s->o->k)
        return read_topk(s, y);
    s->record.activation = QSAE_ACT_RELU;
    return 0;
}

static int read_places(sae_source *s, const yaml *y)
{
    safe_name in, out;
    int layer = sae_number_in(sae_file_name(s), "layer_", ".safetensors");
    int has_in = yaml_get(y, "feature_input_hook", &in),
        has_out = yaml_get(y, "feature_output_hook", &out);
    if (layer >= 0 && s->o->layer < 0)
        qfile_meta_add(&s->lines, "place.layer", "%d, from the file's name", layer);
    if (sae_set_place(s, 0, has_in ? sae_parse_site(in.text) : -1, layer,
                      "feature_input_hook", has_in ? in.text : NULL))
        return -1;
    if (s->o->layer_out < 0)
        layer = (int)s->record.layer_in;
    return sae_set_place(s, 1, has_out ? sae_parse_site(out.text) : -1, layer,
                         "feature_output_hook", has_out ? out.text : NULL) ||
           sae_check_places(s);
}

static int read_with(sae_source *s, const yaml *y)
{
    qsae_sae_record *r = &s->record;
    if (read_kind(s, y) || sae_sizes(s, "b_enc", "b_dec") || sae_not_square(s) ||
        sae_take(s, "W_enc", r->d_sae, r->d_in, &s->enc) || read_decoder(s) ||
        sae_take(s, "b_enc", 0, r->d_sae, &s->b_enc) ||
        sae_take(s, "b_dec", 0, r->d_in, &s->b_dec))
        return -1;
    if (sae_tensor(s, "W_skip") && sae_take(s, "W_skip", r->d_out, r->d_in, &s->skip))
        return -1;
    return read_activation(s, y) || sae_no_strangers(s) || read_places(s, y);
}

static int read_circuit_tracer(sae_source *s)
{
    yaml y = {NULL, 0};
    s->class_name = "SingleLayerTranscoder";
    sae_describe(s, "circuit-tracer");
    int yes = s->unit->config && strcmp(s->unit->config, "config.yaml") == 0;
    int status = (yes && yaml_read(s, &y)) || read_with(s, &y);
    free(y.text);
    return status ? -1 : 0;
}

static int is_circuit_tracer(const sae_source *s)
{
    const tensor *e = sae_tensor(s, "W_enc"), *d = sae_tensor(s, "W_dec"),
                 *b = sae_tensor(s, "b_enc"), *c = sae_tensor(s, "b_dec");
    if (s->unit->config)
        return strcmp(s->unit->config, "config.yaml") == 0;
    return tensors_container(s->file) == TENSORS_SAFETENSORS && e && d && b && c &&
           e->rank == 2 && d->rank == 2 && e->shape[0] == b->n && e->shape[1] == c->n;
}

const sae_family sae_circuit_tracer = {"circuit-tracer", is_circuit_tracer,
                                       read_circuit_tracer};
