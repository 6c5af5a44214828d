/* The tensors and the tokenizer of a Qwen3 checkpoint folder, as a model file. */

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#define _FILE_OFFSET_BITS 64

#include "convert.h"

#include <dirent.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_SHARDS 1024

/* ---- the shards ---- */

typedef struct shard {
    char *name;
    tensor_file *file;
} shard;
typedef struct checkpoint {
    shard *shards;
    size_t n;
} checkpoint;

static void checkpoint_close(checkpoint *k)
{
    for (size_t i = 0; i < k->n; i++) {
        free(k->shards[i].name);
        tensors_close(k->shards[i].file);
    }
    free(k->shards);
}

static const tensor *find(const checkpoint *k, const char *name)
{
    for (size_t i = 0; i < k->n; i++) {
        const tensor *t = tensors_find(k->shards[i].file, name);
        if (t)
            return t;
    }
    return NULL;
}

static shard *shard_of(checkpoint *k, const char *name)
{
    for (size_t i = 0; i < k->n; i++)
        if (strcmp(k->shards[i].name, name) == 0)
            return &k->shards[i];
    return NULL;
}

/* A file name of the index must not lead anywhere else. (A symbolic link may: the cache
 * of Hugging Face consists of them.) */
static int plain_name(const json_value *v)
{
    static const char end[] = ".safetensors";
    size_t tail = sizeof end - 1;
    if (v->type != JSON_STRING || v->len <= tail || v->len > 255 ||
        strlen(v->str) != v->len)
        return 0;
    return v->str[0] != '.' && !strpbrk(v->str, "/\\:") &&
           strcmp(v->str + v->len - tail, end) == 0;
}

static int same_file(const char *dir, const char *a, const char *b)
{
    struct stat x, y;
    char *pa = convert_path(dir, a), *pb = convert_path(dir, b);
    int same = pa && pb && stat(pa, &x) == 0 && stat(pb, &y) == 0 &&
               x.st_dev == y.st_dev && x.st_ino == y.st_ino;
    free(pa);
    free(pb);
    return same;
}

static int shard_open(checkpoint *k, const char *dir, const char *name, char *err,
                      size_t cap)
{
    for (size_t i = 0; i < k->n; i++)
        if (same_file(dir, name, k->shards[i].name))
            return err_set(err, cap, "%s and %s are one file",
                           name_z(k->shards[i].name).text, name_z(name).text);
    char *path = convert_path(dir, name), *copy = malloc(strlen(name) + 1);
    tensor_file *f = NULL;
    if (path && copy)
        f = tensors_open(path, err, cap);
    else
        err_set(err, cap, "out of memory");
    free(path);
    if (!f) {
        free(copy);
        return -1;
    }
    strcpy(copy, name);
    k->shards[k->n++] = (shard){copy, f};
    return 0;
}

#define INDEX_NAME "model.safetensors.index.json"

/* Every tensor of the map is in the shard that the map names. */
static int check_map(checkpoint *k, const json_doc *doc, const json_value *map,
                     const char *dir, char *err, size_t cap)
{
    for (const json_value *v = json_first(doc, map); v; v = json_next(doc, v)) {
        size_t len;
        const char *name = json_key(doc, v, &len);
        if (!plain_name(v))
            return err_set(err, cap,
                           INDEX_NAME
                           ": tensor %s is mapped to \"%s\", which is not the plain "
                           "name of a .safetensors file",
                           name_n(name, len).text,
                           v->type == JSON_STRING ? name_n(v->str, v->len).text
                                                  : "(not a string)");
        shard *s = shard_of(k, v->str);
        if (!s && k->n == MAX_SHARDS)
            return err_set(err, cap, INDEX_NAME ": more than %d files", MAX_SHARDS);
        if (!s && shard_open(k, dir, v->str, err, cap))
            return -1;
        s = shard_of(k, v->str);
        if (strlen(name) != len || !tensors_find(s->file, name))
            return err_set(err, cap,
                           INDEX_NAME
                           ": tensor %s is mapped to %s, which does not have it",
                           name_n(name, len).text, name_z(v->str).text);
    }
    return 0;
}

/* Every tensor of every shard is in the map, and mapped to that shard. */
static int check_shards(const checkpoint *k, const json_doc *doc, const json_value *map,
                        char *err, size_t cap)
{
    for (size_t i = 0; i < k->n; i++) {
        for (size_t j = 0; j < tensors_count(k->shards[i].file); j++) {
            const char *name = tensors_at(k->shards[i].file, j)->name;
            const json_value *v = json_get(doc, map, name);
            if (!v)
                return err_set(err, cap,
                               "%s has tensor %s, which " INDEX_NAME " does not list",
                               name_z(k->shards[i].name).text, name_z(name).text);
            if (strcmp(v->str, k->shards[i].name) != 0)
                return err_set(err, cap, "tensor %s is in %s and in %s",
                               name_z(name).text, name_z(v->str).text,
                               name_z(k->shards[i].name).text);
        }
    }
    return 0;
}

/* model-00001-of-00002.safetensors that the index does not know: the folder mixes two
 * checkpoints. */
static int check_strays(checkpoint *k, const char *dir, char *err, size_t cap)
{
    DIR *d = opendir(dir);
    int status = 0;
    if (!d)
        return 0;
    for (struct dirent *e; !status && (e = readdir(d)) != NULL;) {
        size_t n = strlen(e->d_name);
        if (n > 18 && strncmp(e->d_name, "model-", 6) == 0 &&
            strcmp(e->d_name + n - 12, ".safetensors") == 0 && !shard_of(k, e->d_name))
            status = err_set(err, cap,
                             "%s is in the folder, but " INDEX_NAME " does not list it",
                             name_z(e->d_name).text);
    }
    closedir(d);
    return status;
}

static int open_sharded(checkpoint *k, const char *dir, char *err, size_t cap)
{
    json_doc *doc;
    if (convert_read_json(dir, INDEX_NAME, &doc, err, cap))
        return -1;
    const json_value *map = json_get(doc, json_root(doc), "weight_map");
    int status = 0;
    if (!map || map->type != JSON_OBJECT || map->n == 0)
        status = err_set(err, cap,
                         INDEX_NAME ": weight_map is missing, empty or not an object");
    if (!status)
        status = check_map(k, doc, map, dir, err, cap) ||
                 check_shards(k, doc, map, err, cap) || check_strays(k, dir, err, cap);
    json_free(doc);
    return status ? -1 : 0;
}

static int checkpoint_open(checkpoint *k, const char *dir, char *err, size_t cap)
{
    int one = convert_exists(dir, "model.safetensors"),
        many = convert_exists(dir, INDEX_NAME);
    memset(k, 0, sizeof *k);
    k->shards = calloc(MAX_SHARDS, sizeof *k->shards);
    if (!k->shards)
        return err_set(err, cap, "out of memory");
    if (convert_exists(dir, "adapter_config.json"))
        return err_set(
            err, cap,
            "the folder holds an adapter (adapter_config.json); merge it into the "
            "model first");
    if (one && many)
        return err_set(err, cap,
                       "the folder holds both model.safetensors and " INDEX_NAME
                       "; remove the one "
                       "that is not meant");
    if (many)
        return open_sharded(k, dir, err, cap);
    if (one)
        return shard_open(k, dir, "model.safetensors", err, cap);
    return err_set(
        err, cap, "neither model.safetensors nor " INDEX_NAME " is in the folder%s",
        convert_exists(dir, "pytorch_model.bin") ||
                convert_exists(dir, "pytorch_model.bin.index.json")
            ? " (pytorch_model.bin is not read: save the model as safetensors)"
            : "");
}

/* ---- which tensors the file will have ---- */

typedef struct want {
    uint32_t group, role, type, layout;
    uint64_t rows, cols; /* a vector has rows 1 */
    char name[80];       /* in the checkpoint, "" for what is computed */
    const char *why;     /* which numbers of config.json give the shape */
    const tensor *t;
} want;

typedef struct plan {
    const convert_options *o;
    const model_config *c;
    checkpoint *k;
    want *list; /* [n], in the order of the file */
    size_t n;
    int tied;          /* as the file will have it */
    const char *embed; /* the tensor that becomes EMBED */
    uint8_t *blob;     /* tokenizer, NULL: none */
    size_t blob_size;
    uint32_t chat_flags; /* QSAE_MODEL_CHAT_ */
    qfile_meta meta;
    char *err;
    size_t cap;
} plan;

static want *add(plan *p, uint32_t group, uint32_t role, uint64_t rows, uint64_t cols,
                 const char *why)
{
    want *w = &p->list[p->n++];
    memset(w, 0, sizeof *w);
    w->group = group;
    w->role = role;
    w->rows = rows;
    w->cols = cols;
    w->layout = why ? QSAE_LAYOUT_BLOCK16 : QSAE_LAYOUT_VECTOR;
    w->type = QSAE_TYPE_F32;
    w->why = why;
    return w;
}

static void add_layer(plan *p, uint32_t layer)
{
    const qsae_model_record *r = &p->c->record;
    uint64_t d = r->d_model, q = (uint64_t)r->n_heads * r->head_dim;
    uint64_t kv = (uint64_t)r->n_kv_heads * r->head_dim, ff = r->d_ff;
    const struct {
        uint32_t role;
        uint64_t rows, cols;
        const char *name, *why;
    } tensors[] = {
        {QSAE_ROLE_ATTN_NORM, 1, d, "input_layernorm", NULL},
        {QSAE_ROLE_Q, q, d, "self_attn.q_proj",
         "num_attention_heads x head_dim, hidden_size"},
        {QSAE_ROLE_K, kv, d, "self_attn.k_proj",
         "num_key_value_heads x head_dim, hidden_size"},
        {QSAE_ROLE_V, kv, d, "self_attn.v_proj",
         "num_key_value_heads x head_dim, hidden_size"},
        {QSAE_ROLE_Q_NORM, 1, r->head_dim, "self_attn.q_norm", NULL},
        {QSAE_ROLE_K_NORM, 1, r->head_dim, "self_attn.k_norm", NULL},
        {QSAE_ROLE_O, d, q, "self_attn.o_proj",
         "hidden_size, num_attention_heads x head_dim"},
        {QSAE_ROLE_MLP_NORM, 1, d, "post_attention_layernorm", NULL},
        {QSAE_ROLE_GATE, ff, d, "mlp.gate_proj", "intermediate_size, hidden_size"},
        {QSAE_ROLE_UP, ff, d, "mlp.up_proj", "intermediate_size, hidden_size"},
        {QSAE_ROLE_DOWN, d, ff, "mlp.down_proj", "hidden_size, intermediate_size"},
    };
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++) {
        want *w = add(p, 1 + layer, tensors[i].role, tensors[i].rows, tensors[i].cols,
                      tensors[i].why);
        snprintf(w->name, sizeof w->name, "model.layers.%u.%s.weight", layer,
                 tensors[i].name);
    }
}

#define EMBED "model.embed_tokens.weight"
#define HEAD  "lm_head.weight"

/* *equal: bit-equal values, whatever the types. -0 and 0 differ, which only costs
 * room. */
static int equal_values(const tensor *a, const tensor *b, int *equal, char *err,
                        size_t cap)
{
    float x[4096], y[4096];
    *equal = 0;
    if (a->rank != b->rank || memcmp(a->shape, b->shape, sizeof a->shape) != 0 ||
        !tensor_is_float(a) || !tensor_is_float(b))
        return 0;
    for (uint64_t i = 0; i < a->n;) {
        uint64_t m = a->n - i < 4096 ? a->n - i : 4096;
        if (tensor_f32(a, i, m, x, err, cap) || tensor_f32(b, i, m, y, err, cap))
            return -1;
        if (memcmp(x, y, (size_t)m * sizeof x[0]) != 0)
            return 0;
        i += m;
    }
    *equal = 1;
    return 0;
}

/* Which matrix makes the logits. transformers 5.23, PreTrainedModel.tie_weights: a tied
 * model whose head is stored with other values is NOT tied there, with a warning; an
 * untied one whose head is missing gets random numbers. Both are refused here until the
 * user says which is meant. */
static int choose_head(plan *p)
{
    const tensor *e = find(p->k, EMBED), *h = find(p->k, HEAD);
    int stored = p->o->head == HEAD_STORED, tied = p->o->head == HEAD_TIED;
    int equal = 1;
    p->embed = EMBED;
    p->tied = p->c->tied;
    if (!stored && !tied && p->c->tied && e && h &&
        equal_values(e, h, &equal, p->err, p->cap))
        return -1;
    if (stored && !h)
        return err_set(p->err, p->cap, "--head stored: the checkpoint has no " HEAD);
    if (stored || tied) {
        p->tied = tied;
    } else if (!equal) {
        return err_set(p->err, p->cap,
                       "config.json ties the output head to the embedding, but " HEAD
                       " is "
                       "stored with other values; --head stored takes it (as "
                       "transformers does), --head tied "
                       "takes the embedding");
    } else if (!p->c->tied && !h) {
        return err_set(p->err, p->cap,
                       "tensor " HEAD
                       " is missing, and config.json does not tie the output "
                       "head (tie_word_embeddings is false or absent); --head tied "
                       "takes the embedding");
    }
    if (p->tied && !e && h)
        p->embed = HEAD; /* the reference ties in both directions */
    return 0;
}

static int make_plan(plan *p)
{
    const qsae_model_record *r = &p->c->record;
    want *w;
    p->list = calloc((size_t)r->n_layers * 11 + 8, sizeof *p->list);
    if (!p->list)
        return err_set(p->err, p->cap, "out of memory");
    w = add(p, 0, QSAE_ROLE_EMBED, r->vocab_size, r->d_model,
            "vocab_size, hidden_size");
    snprintf(w->name, sizeof w->name, "%s", p->embed);
    w = add(p, 0, QSAE_ROLE_FINAL_NORM, 1, r->d_model, NULL);
    snprintf(w->name, sizeof w->name, "model.norm.weight");
    if (!p->tied) {
        w = add(p, 0, QSAE_ROLE_LM_HEAD, r->vocab_size, r->d_model,
                "vocab_size, hidden_size");
        snprintf(w->name, sizeof w->name, HEAD);
    }
    add(p, 0, QSAE_ROLE_ROPE, 1, r->head_dim / 2, NULL);
    if (p->blob) {
        w = add(p, 0, QSAE_ROLE_TOKENIZER, 1, p->blob_size, NULL);
        w->type = QSAE_TYPE_BYTES;
        w->layout = QSAE_LAYOUT_BYTES;
    }
    w = add(p, 0, QSAE_ROLE_META, 1, p->meta.len, NULL);
    w->type = QSAE_TYPE_BYTES;
    w->layout = QSAE_LAYOUT_BYTES;
    for (uint32_t layer = 0; layer < r->n_layers; layer++)
        add_layer(p, layer);
    return 0;
}

/* ---- the checkpoint against the plan ---- */

static int check_tensor(plan *p, want *w)
{
    int vector = w->layout == QSAE_LAYOUT_VECTOR;
    uint64_t shape[2] = {vector ? w->cols : w->rows, w->cols};
    uint32_t rank = vector ? 1 : 2;
    const tensor *t = w->t = find(p->k, w->name);
    if (!t)
        return err_set(p->err, p->cap, "tensor %s is missing", w->name);
    if (t->rank != rank || memcmp(t->shape, shape, rank * sizeof shape[0]) != 0)
        return err_set(p->err, p->cap,
                       "tensor %s has shape %s, config.json implies %s%s%s%s", w->name,
                       tensor_shape(t).text, tensor_shape_of(rank, shape).text,
                       w->why ? " (" : "", w->why ? w->why : "", w->why ? ")" : "");
    if (!tensor_is_float(t) || t->type == TENSOR_F64)
        return err_set(p->err, p->cap,
                       "tensor %s is %s; F32, BF16 and F16 are supported", w->name,
                       tensor_type_name(t->type));
    if (!vector)
        w->type = p->o->type               ? p->o->type
                  : t->type == TENSOR_BF16 ? QSAE_TYPE_BF16
                                           : QSAE_TYPE_F32;
    return 0;
}

/* What a tensor that Qwen3 does not have is probably about. */
static const char *stranger_hint(const char *name)
{
    size_t n = strlen(name);
    if (n > 5 && strcmp(name + n - 5, ".bias") == 0)
        return "Qwen3 with biases is not supported";
    if (strstr(name, ".experts.") || strstr(name, ".mlp.gate.weight"))
        return "mixtures of experts are not supported";
    if (strstr(name, "lora_"))
        return "an adapter: merge it into the model first";
    if (strstr(name, "scale") || strstr(name, "qweight") || strstr(name, "zeros"))
        return "quantized checkpoints are not supported";
    if (strstr(name, "visual"))
        return "vision models are not supported";
    return "a dense Qwen3 of this configuration has no such tensor";
}

static int check_strangers(plan *p)
{
    for (size_t i = 0; i < p->k->n; i++) {
        for (size_t j = 0; j < tensors_count(p->k->shards[i].file); j++) {
            const tensor *t = tensors_at(p->k->shards[i].file, j);
            int known =
                p->tied && (strcmp(t->name, HEAD) == 0 || strcmp(t->name, EMBED) == 0);
            for (size_t w = 0; w < p->n && !known; w++)
                known = p->list[w].name[0] && strcmp(p->list[w].name, t->name) == 0;
            if (!known)
                return err_set(p->err, p->cap, "tensor %s is not known: %s",
                               name_z(t->name).text, stranger_hint(t->name));
        }
    }
    return 0;
}

static int check_plan(plan *p)
{
    if (check_strangers(p))
        return -1;
    for (size_t i = 0; i < p->n; i++)
        if (p->list[i].name[0] && check_tensor(p, &p->list[i]))
            return -1;
    return 0;
}

/* ---- tokenizer ---- */

static int build_tokenizer(plan *p, const char *dir)
{
    uint64_t count;
    if (p->o->no_tokenizer)
        return 0;
    if (!convert_exists(dir, "tokenizer.json")) {
        convert_note("no tokenizer.json in the folder: the model will take and give "
                     "token ids only");
        return 0;
    }
    return convert_build_tokenizer(dir, p->c->record.vocab_size, &p->blob,
                                   &p->blob_size, &count, p->err, p->cap);
}

/* ---- writing ---- */

static int fill(void *user, const qfile_part *part, float *out, char *err, size_t cap)
{
    return tensor_block_f32(user, part->row, part->n_rows, part->col, part->n_cols, out,
                            err, cap);
}

static int write_vector(plan *p, qfile *q, const want *w)
{
    size_t n = (size_t)w->cols;
    float *v = malloc(n * sizeof *v);
    int status = v ? 0 : err_set(p->err, p->cap, "out of memory");
    if (!status && w->role == QSAE_ROLE_ROPE) {
        /* as torch computes it, in float: 1 / theta^(2i / head_dim) */
        float dim = (float)p->c->record.head_dim;
        for (size_t i = 0; i < n; i++)
            v[i] = 1.0f /
                   (float)pow(p->c->record.rope_theta, (double)((float)(2 * i) / dim));
    } else if (!status) {
        status = tensor_f32(w->t, 0, n, v, p->err, p->cap);
    }
    if (!status)
        status = qfile_vector(q, v, p->err, p->cap);
    free(v);
    return status;
}

static int write_tensor(plan *p, qfile *q, const want *w)
{
    char why[ERR_CAP];
    tensor t;
    if (w->role == QSAE_ROLE_TOKENIZER)
        return qfile_bytes(q, p->blob, p->err, p->cap);
    if (w->role == QSAE_ROLE_META)
        return qfile_bytes(q, p->meta.text, p->err, p->cap);
    if (w->layout == QSAE_LAYOUT_VECTOR)
        return write_vector(p, q, w);
    t = *w->t;
    if (qfile_matrix(q, fill, &t, why, sizeof why) == 0)
        return 0;
    if (strncmp(why, "row ", 4) == 0) /* the writer knows the place, not the name */
        return err_set(p->err, p->cap, "tensor %s: %.300s", w->name, why);
    return err_set(p->err, p->cap, "%s", why);
}

static int write_file(plan *p, const char *dir)
{
    qfile *q = qfile_create(p->o->out, QSAE_KIND_MODEL, 1, p->err, p->cap);
    int status = q ? 0 : -1;
    if (q) {
        qsae_model_record *r = qfile_record(q, 0);
        *r = p->c->record;
        r->flags = (p->tied ? QSAE_MODEL_TIED : 0) | p->chat_flags;
        status = convert_name(dir, p->o, r->name, sizeof r->name, p->err, p->cap);
    }
    for (size_t i = 0; i < p->n && !status; i++)
        status = qfile_declare(q, p->list[i].group, p->list[i].role, p->list[i].type,
                               p->list[i].layout, p->list[i].rows, p->list[i].cols,
                               p->err, p->cap);
    for (size_t i = 0; i < p->n && !status; i++)
        status = write_tensor(p, q, &p->list[i]);
    if (!status)
        return qfile_finish(q, qfile_check_model, p->err, p->cap);
    qfile_abort(q);
    return -1;
}

/* What was read and chosen. No date and no path: equal sources make equal files. */
static int describe(plan *p, const char *dir)
{
    qfile_meta *m = &p->meta;
    qfile_meta_add(m, "converter", "qsae %d.%d.%d", QSAE_VERSION_MAJOR,
                   QSAE_VERSION_MINOR, QSAE_VERSION_PATCH);
    qfile_meta_add(m, "source", "Qwen3ForCausalLM checkpoint (safetensors)");
    if (p->c->version.text[0])
        qfile_meta_add(m, "source.transformers", "%s", p->c->version.text);
    qfile_meta_add(m, "eos.from", "%s", p->c->eos_from);
    qfile_meta_add(m, "head", "%s", p->tied ? "tied to the embedding" : "stored");
    if (p->o->head)
        qfile_meta_add(m, "head.option", "--head %s",
                       p->o->head == HEAD_TIED ? "tied" : "stored");
    qfile_meta_add(m, "weights", "%s",
                   p->o->type == QSAE_TYPE_F32    ? "all as f32"
                   : p->o->type == QSAE_TYPE_BF16 ? "all rounded to bf16, nearest even"
                                                  : "as stored");
    if (!p->blob)
        qfile_meta_add(m, "tokenizer", "none");
    if (p->blob && convert_chat_template(dir, p->o, m, &p->chat_flags, p->err, p->cap))
        return -1;
    return qfile_meta_finish(m, p->err, p->cap);
}

static void report(const plan *p)
{
    const qsae_model_record *r = &p->c->record;
    size_t bf16 = 0, f32 = 0;
    for (size_t i = 0; i < p->n; i++)
        if (p->list[i].layout == QSAE_LAYOUT_BLOCK16)
            *(p->list[i].type == QSAE_TYPE_BF16 ? &bf16 : &f32) += 1;
    printf("%s: model, %u layers x %u, vocabulary %u, %s weights, %s head, %s\n",
           p->o->out, r->n_layers, r->d_model, r->vocab_size,
           !f32    ? "bf16"
           : !bf16 ? "f32"
                   : "f32 and bf16",
           p->tied ? "tied" : "stored", p->blob ? "with tokenizer" : "no tokenizer");
}

int convert_model(const char *dir, const convert_options *o, char *err, size_t cap)
{
    model_config c;
    checkpoint k = {NULL, 0};
    plan p;
    memset(&p, 0, sizeof p);
    p.o = o;
    p.c = &c;
    p.k = &k;
    p.err = err;
    p.cap = cap;
    int status = convert_config(dir, o, &c, err, cap);
    if (!status)
        status = checkpoint_open(&k, dir, err, cap);
    if (!status)
        status = build_tokenizer(&p, dir);
    if (!status)
        status =
            choose_head(&p) || describe(&p, dir) || make_plan(&p) || check_plan(&p);
    if (!status)
        status = write_file(&p, dir);
    if (!status)
        report(&p);
    free(p.list);
    free(p.blob);
    qfile_meta_free(&p.meta);
    checkpoint_close(&k);
    return status ? -1 : 0;
}
