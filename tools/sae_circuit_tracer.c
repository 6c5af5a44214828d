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
 * Sites are named in config.yaml, without the layer, which its list of transcoders says
 * by order, else the file's name. */

#include "sae_source.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- config.yaml: of YAML only "key: value" at the left margin, and a list of
 * transcoders ---- */

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

/* A line with a key at the left margin. */
static int is_key_line(const char *line, size_t n)
{
    return n > 0 && !strchr(" #-\t\r", *line);
}

/* The value of a key; 0 if it is absent or empty. */
static int yaml_get(const yaml *y, const char *wanted, safe_name *value)
{
    for (size_t at = 0; at < y->len;) {
        size_t n = strcspn(y->text + at, "\n");
        const char *line = y->text + at;
        safe_name key;
        at += n + 1;
        if (is_key_line(line, n) && yaml_line(line, n, &key, value) &&
            strcmp(key.text, wanted) == 0)
            return *value->text && strcmp(value->text, "null") != 0;
    }
    return 0;
}

/* Is the key at the left margin before `end` too? */
static int yaml_seen(const yaml *y, size_t end, const char *wanted)
{
    for (size_t at = 0; at < end;) {
        size_t n = strcspn(y->text + at, "\n");
        safe_name key, value;
        if (is_key_line(y->text + at, n) && yaml_line(y->text + at, n, &key, &value) &&
            strcmp(key.text, wanted) == 0)
            return 1;
        at += n + 1;
    }
    return 0;
}

static int yaml_read(sae_source *s, yaml *y)
{
    safe_name last = name_z(""); /* the key that indented lines belong to */
    if (convert_read(s->unit->folder, s->unit->config, 1 << 20, &y->text, &y->len,
                     s->err, s->cap))
        return -1;
    for (size_t at = 0; at < y->len;) {
        size_t n = strcspn(y->text + at, "\n");
        const char *line = y->text + at;
        safe_name key, value;
        int known = 0;
        size_t here = at, blank = strspn(line, " \t\r");
        at += n + 1;
        if (blank >= n || line[blank] == '#' ||
            (!*last.text && n >= 3 && strncmp(line, "---", 3) == 0))
            continue;
        if (!is_key_line(line, n)) {
            if (strcmp(last.text, "transcoders") != 0 &&
                strcmp(last.text, "description") != 0 &&
                !convert_ignored(s->o, last.text))
                return sae_bad_config(s, "the line \"%s\" under %s is not understood",
                                      name_n(line, n < 60 ? n : 60).text,
                                      *last.text ? last.text : "no key");
            continue;
        }
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
        if (yaml_seen(y, here, key.text))
            return sae_bad_config(s, "the key %s appears twice", key.text);
        last = key;
    }
    return 0;
}

/* ---- its list of transcoders ---- */

/* One entry: a path, or id, layer and filepath of its own. */
typedef struct entry {
    safe_name path, layer; /* "": absent */
    int index;             /* the entry's number, from 0 */
} entry;

/* The file's name in "hf://owner/repo/layer_3.safetensors?revision=x" is this file's. */
static int names_file(const sae_source *s, const char *path)
{
    const char *file = sae_file_name(s), *slash = strrchr(path, '/');
    const char *base = slash ? slash + 1 : path;
    size_t n = strcspn(base, "?@"), full = strlen(file),
           stem = full > 12 && strcmp(file + full - 12, ".safetensors") == 0 ? full - 12
                                                                             : full;
    return (n == full || n == stem) && strncmp(base, file, n) == 0;
}

/* What an entry says of this SAE's file: *layer. */
static int use_entry(sae_source *s, const entry *e, int *layer, int *hits)
{
    if (!*e->path.text)
        return sae_bad_config(s, "transcoders: entry %d has no path", e->index);
    if (!names_file(s, e->path.text))
        return 0;
    *layer = *e->layer.text ? sae_number_in(e->layer.text, "", "") : e->index;
    ++*hits;
    if (*layer < 0)
        return sae_bad_config(s, "transcoders: the layer of entry %d is %s", e->index,
                              e->layer.text);
    return 0;
}

/* "key: value" inside an entry. */
static int read_member(sae_source *s, entry *e, const char *line, size_t n)
{
    safe_name key, value;
    if (!yaml_line(line, n, &key, &value))
        return sae_bad_config(s, "transcoders: the line \"%s\" is not understood",
                              name_n(line, n < 60 ? n : 60).text);
    if (strcmp(key.text, "filepath") == 0)
        e->path = value;
    else if (strcmp(key.text, "layer") == 0)
        e->layer = value;
    else if (strcmp(key.text, "id") != 0 && strcmp(key.text, "repo_id") != 0 &&
             strcmp(key.text, "revision") != 0 && strcmp(key.text, "subfolder") != 0)
        return sae_bad_config(s,
                              "transcoders: the key %s of entry %d is not known here",
                              key.text, e->index);
    return 0;
}

/* The text after "- ": a path, or the first member. */
static int read_first(sae_source *s, entry *e, const char *line, size_t n)
{
    char text[NAME_CAP + 8];
    static const char flow[] = "[{&*|>!"; /* more of YAML than is read */
    safe_name key, value;
    int hf = n > 5 && (strncmp(line, "hf:", 3) == 0 || strncmp(line, "\"hf:", 4) == 0);
    if (n > 0 && !hf && !strchr(flow, *line) && yaml_line(line, n, &key, &value))
        return read_member(s, e, line, n);
    if (n == 0 || strchr(flow, *line) || n >= NAME_CAP)
        return sae_bad_config(s, "transcoders: entry %d, \"%s\", is not understood",
                              e->index, name_n(line, n < 60 ? n : 60).text);
    /* as a value: without quotes and comment */
    snprintf(text, sizeof text, "x: %.*s", (int)n, line);
    yaml_line(text, strlen(text), &key, &e->path);
    return 0;
}

/* The lines under `transcoders:` name each layer's file, in the order of the layers or
 * with a layer each; *layer is this file's, and -1 where there is no such list. */
static int read_list(sae_source *s, const yaml *y, int *layer)
{
    entry e = {name_z(""), name_z(""), -1};
    safe_name key, value;
    int inside = 0, hits = 0, status = 0;
    *layer = -1;
    if (yaml_get(y, "transcoders", &value) && strcmp(value.text, "[]") != 0)
        return sae_bad_config(s,
                              "transcoders is %s; only a list of lines \"- path\" is "
                              "read",
                              value.text);
    for (size_t at = 0; at < y->len && !status;) {
        size_t n = strcspn(y->text + at, "\n"), blank;
        const char *line = y->text + at;
        at += n + 1;
        while (n > 0 && strchr(" \r", line[n - 1]))
            n--;
        if (is_key_line(line, n))
            inside = yaml_line(line, n, &key, &value) &&
                     strcmp(key.text, "transcoders") == 0;
        blank = strspn(line, " ");
        if (!inside || is_key_line(line, n) || blank >= n || line[blank] == '#')
            continue;
        if (line[blank] == '-') {
            status = e.index >= 0 ? use_entry(s, &e, layer, &hits) : 0;
            e.path = e.layer = name_z("");
            e.index++;
            blank++;
            blank += strspn(line + blank, " ");
            status =
                status || read_first(s, &e, line + blank, n > blank ? n - blank : 0);
        } else if (e.index < 0) {
            status = sae_bad_config(s, "transcoders: the line \"%s\" is not understood",
                                    name_n(line, n < 60 ? n : 60).text);
        } else {
            status = read_member(s, &e, line + blank, n - blank);
        }
    }
    if (!status && e.index >= 0)
        status = use_entry(s, &e, layer, &hits);
    if (status)
        return -1;
    if (e.index >= 0 && hits != 1 && s->o->layer < 0)
        return sae_bad_config(s,
                              "transcoders names %s %s, so its layer is not known; "
                              "--layer N settles it",
                              name_z(sae_file_name(s)).text,
                              hits ? "more than once" : "nowhere");
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
    safe_name k;
    if (!said && yaml_get(y, "k", &k) && !s->o->k && !convert_ignored(s->o, "k"))
        return sae_bad_config(s,
                              "k is %s, but activation is absent; --k %s says that it "
                              "is topk, --ignore-key k that k does not matter",
                              k.text, k.text);
    if (said && !topk && yaml_get(y, "k", &k) && !convert_ignored(s->o, "k"))
        return sae_bad_config(s,
                              "k is %s, but activation is %s (--ignore-key k if k does "
                              "not matter)",
                              k.text, name.text);
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
    int named = sae_number_in(sae_file_name(s), "layer_", ".safetensors"), layer;
    if (read_list(s, y, &layer))
        return -1;
    if (layer >= 0 && named >= 0 && layer != named && s->o->layer < 0)
        convert_note("transcoders in config.yaml makes %s layer %d: it is followed",
                     name_z(sae_file_name(s)).text, layer);
    if (layer >= 0 && s->o->layer < 0)
        qfile_meta_add(&s->lines, "place.layer", "%d, from transcoders in config.yaml",
                       layer);
    else if (named >= 0 && s->o->layer < 0)
        qfile_meta_add(&s->lines, "place.layer", "%d, from the file's name", named);
    layer = layer >= 0 ? layer : named;
    int has_in = yaml_get(y, "feature_input_hook", &in),
        has_out = yaml_get(y, "feature_output_hook", &out);
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
