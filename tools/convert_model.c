/* Tensors, tokenizer and numbers of a Qwen3, wherever they come from, as a model file. */

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#define _FILE_OFFSET_BITS 64

#include "convert.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- which tensors the file will have ---- */

typedef struct want {
    uint32_t group, role, type, layout;
    uint64_t rows, cols; /* a vector has rows 1 */
    char name[80];       /* in the source, "" for what is computed */
    const tensor *t;
} want;

typedef struct plan {
    const convert_options *o;
    model_source *source;
    want *list; /* [n], in the order of the file */
    size_t n;
    int tied;          /* as the file will have it */
    const char *embed; /* the tensor that becomes EMBED */
    char *err;
    size_t cap;
} plan;

static const tensor *find(const plan *p, const char *name)
{
    for (size_t i = 0; i < p->source->n_files; i++) {
        const tensor *t = tensors_find(p->source->files[i], name);
        if (t)
            return t;
    }
    return NULL;
}

/* rows 1: a vector */
static want *add(plan *p, uint32_t group, uint32_t role, uint64_t rows, uint64_t cols,
                 const char *name)
{
    want *w = &p->list[p->n++];
    memset(w, 0, sizeof *w);
    w->group = group;
    w->role = role;
    w->rows = rows;
    w->cols = cols;
    w->layout = QSAE_LAYOUT_BLOCK16;
    w->type = QSAE_TYPE_F32;
    snprintf(w->name, sizeof w->name, "%s", name);
    return w;
}

static want *add_vector(plan *p, uint32_t group, uint32_t role, uint64_t cols,
                        const char *name)
{
    want *w = add(p, group, role, 1, cols, name);
    w->layout = QSAE_LAYOUT_VECTOR;
    return w;
}

static void add_bytes(plan *p, uint32_t role, size_t size)
{
    want *w = add(p, 0, role, 1, size, "");
    w->layout = QSAE_LAYOUT_BYTES;
    w->type = QSAE_TYPE_BYTES;
}

static void add_layer(plan *p, uint32_t layer)
{
    const qsae_model_record *r = &p->source->config.record;
    const model_names *n = p->source->names;
    uint64_t d = r->d_model, q = (uint64_t)r->n_heads * r->head_dim;
    uint64_t kv = (uint64_t)r->n_kv_heads * r->head_dim, ff = r->d_ff;
    const struct {
        uint32_t role;
        uint64_t rows, cols; /* rows 0: a vector */
    } tensors[CONVERT_PARTS] = {
        {QSAE_ROLE_ATTN_NORM, 0, d},
        {QSAE_ROLE_Q, q, d},
        {QSAE_ROLE_K, kv, d},
        {QSAE_ROLE_V, kv, d},
        {QSAE_ROLE_Q_NORM, 0, r->head_dim},
        {QSAE_ROLE_K_NORM, 0, r->head_dim},
        {QSAE_ROLE_O, d, q},
        {QSAE_ROLE_MLP_NORM, 0, d},
        {QSAE_ROLE_GATE, ff, d},
        {QSAE_ROLE_UP, ff, d},
        {QSAE_ROLE_DOWN, d, ff},
    };
    for (size_t i = 0; i < CONVERT_PARTS; i++) {
        char name[80];
        snprintf(name, sizeof name, "%s%u.%s.weight", n->layer, layer, n->parts[i]);
        if (tensors[i].rows)
            add(p, 1 + layer, tensors[i].role, tensors[i].rows, tensors[i].cols, name);
        else
            add_vector(p, 1 + layer, tensors[i].role, tensors[i].cols, name);
    }
}

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
    const model_names *n = p->source->names;
    const tensor *e = find(p, n->embed), *h = find(p, n->head);
    int stored = p->o->head == HEAD_STORED, tied = p->o->head == HEAD_TIED;
    int equal = 1, said = p->source->config.tied;
    p->embed = n->embed;
    p->tied = said;
    if (!stored && !tied && said && e && h &&
        equal_values(e, h, &equal, p->err, p->cap))
        return -1;
    if (stored && !h)
        return err_set(p->err, p->cap, "--head stored: the checkpoint has no %s",
                       n->head);
    if (stored || tied) {
        p->tied = tied;
    } else if (!equal) {
        return err_set(
            p->err, p->cap,
            "%s ties the output head to the embedding, but %s is stored with "
            "other values; --head stored takes it (as transformers does), "
            "--head tied takes the embedding",
            n->config, n->head);
    } else if (!said && !h) {
        return err_set(
            p->err, p->cap,
            "tensor %s is missing, and %s does not tie the output head "
            "(tie_word_embeddings is false or absent); --head tied takes the "
            "embedding",
            n->head, n->config);
    }
    if (p->tied && !e && h)
        p->embed = n->head; /* the reference ties in both directions */
    return 0;
}

static int make_plan(plan *p)
{
    const model_source *s = p->source;
    const qsae_model_record *r = &s->config.record;
    p->list = calloc((size_t)r->n_layers * CONVERT_PARTS + 8, sizeof *p->list);
    if (!p->list)
        return err_set(p->err, p->cap, "out of memory");
    add(p, 0, QSAE_ROLE_EMBED, r->vocab_size, r->d_model, p->embed);
    add_vector(p, 0, QSAE_ROLE_FINAL_NORM, r->d_model, s->names->final_norm);
    if (!p->tied)
        add(p, 0, QSAE_ROLE_LM_HEAD, r->vocab_size, r->d_model, s->names->head);
    add_vector(p, 0, QSAE_ROLE_ROPE, r->head_dim / 2, "");
    if (s->blob)
        add_bytes(p, QSAE_ROLE_TOKENIZER, s->blob_size);
    add_bytes(p, QSAE_ROLE_META, s->meta.len);
    for (uint32_t layer = 0; layer < r->n_layers; layer++)
        add_layer(p, layer);
    return 0;
}

/* Which numbers of the configuration give a matrix its shape. */
static void explain(const model_names *n, uint32_t role, char *out, size_t room)
{
    const char *heads =
        role == QSAE_ROLE_K || role == QSAE_ROLE_V ? n->n_kv_heads : n->n_heads;
    switch (role) {
    case QSAE_ROLE_EMBED:
    case QSAE_ROLE_LM_HEAD:
        snprintf(out, room, " (%s, %s)", n->vocab, n->d_model);
        break;
    case QSAE_ROLE_Q:
    case QSAE_ROLE_K:
    case QSAE_ROLE_V:
        snprintf(out, room, " (%s x %s, %s)", heads, n->head_dim, n->d_model);
        break;
    case QSAE_ROLE_O:
        snprintf(out, room, " (%s, %s x %s)", n->d_model, heads, n->head_dim);
        break;
    case QSAE_ROLE_GATE:
    case QSAE_ROLE_UP: snprintf(out, room, " (%s, %s)", n->d_ff, n->d_model); break;
    case QSAE_ROLE_DOWN: snprintf(out, room, " (%s, %s)", n->d_model, n->d_ff); break;
    default: out[0] = 0;
    }
}

/* ---- the source against the plan ---- */

static int check_tensor(plan *p, want *w)
{
    int vector = w->layout == QSAE_LAYOUT_VECTOR;
    uint64_t shape[2] = {vector ? w->cols : w->rows, w->cols};
    uint32_t rank = vector ? 1 : 2;
    const tensor *t = w->t = find(p, w->name);
    char why[200];
    if (!t)
        return err_set(p->err, p->cap, "tensor %s is missing", w->name);
    explain(p->source->names, w->role, why, sizeof why);
    if (t->rank != rank || memcmp(t->shape, shape, rank * sizeof shape[0]) != 0)
        return err_set(p->err, p->cap, "tensor %s has shape %s, %s implies %s%s",
                       w->name, tensor_shape(t).text, p->source->names->config,
                       tensor_shape_of(rank, shape).text, why);
    if (!tensor_is_float(t) || t->type == TENSOR_F64)
        return err_set(p->err, p->cap, "tensor %s is %s; %s are supported", w->name,
                       tensor_type_name(t->type), p->source->names->types);
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
    if (strstr(name, ".experts.") || strstr(name, ".mlp.gate.weight") ||
        strstr(name, "_exps.") || strstr(name, "_gate_inp"))
        return "mixtures of experts are not supported";
    if (strstr(name, "lora_"))
        return "an adapter: merge it into the model first";
    if (strstr(name, "scale") || strstr(name, "qweight") || strstr(name, "zeros"))
        return "quantized checkpoints are not supported";
    if (strstr(name, "rope_freqs"))
        return "only plain RoPE is supported";
    if (strstr(name, "visual"))
        return "vision models are not supported";
    return "a dense Qwen3 of this configuration has no such tensor";
}

static int check_strangers(plan *p)
{
    const model_source *s = p->source;
    for (size_t i = 0; i < s->n_files; i++) {
        for (size_t j = 0; j < tensors_count(s->files[i]); j++) {
            const tensor *t = tensors_at(s->files[i], j);
            int known = p->tied && (strcmp(t->name, s->names->head) == 0 ||
                                    strcmp(t->name, s->names->embed) == 0);
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
        float dim = (float)p->source->config.record.head_dim;
        for (size_t i = 0; i < n; i++)
            v[i] = 1.0f / (float)pow(p->source->config.record.rope_theta,
                                     (double)((float)(2 * i) / dim));
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
        return qfile_bytes(q, p->source->blob, p->err, p->cap);
    if (w->role == QSAE_ROLE_META)
        return qfile_bytes(q, p->source->meta.text, p->err, p->cap);
    if (w->layout == QSAE_LAYOUT_VECTOR)
        return write_vector(p, q, w);
    t = *w->t;
    if (qfile_matrix(q, fill, &t, why, sizeof why) == 0)
        return 0;
    if (strncmp(why, "row ", 4) == 0) /* the writer knows the place, not the name */
        return err_set(p->err, p->cap, "tensor %s: %.300s", w->name, why);
    return err_set(p->err, p->cap, "%s", why);
}

static int write_file(plan *p)
{
    qfile *q = qfile_create(p->o->out, QSAE_KIND_MODEL, 1, p->err, p->cap);
    int status = q ? 0 : -1;
    if (q) {
        qsae_model_record *r = qfile_record(q, 0);
        *r = p->source->config.record;
        r->flags = (p->tied ? QSAE_MODEL_TIED : 0) | p->source->chat_flags;
        status = convert_name(p->source->path, p->o, r->name, sizeof r->name, p->err,
                              p->cap);
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

/* The note about --type. */
static const char *type_note(uint32_t type)
{
    switch (type) {
    case QSAE_TYPE_F32: return "all as f32";
    case QSAE_TYPE_BF16: return "all rounded to bf16, nearest even";
    case QSAE_TYPE_Q8:
        return "all quantized to q8: 8 bits and, for 256 inputs of a row, a scale of "
               "absmax / 127; nearest even";
    case QSAE_TYPE_Q4:
        return "all quantized to q4: 4 bits, 4 more for 32 inputs of a row, a scale for "
               "256; searched for least squared error";
    default: return "as stored";
    }
}

/* What was read and chosen. No date and no path: equal sources make equal files. */
static int describe(plan *p)
{
    qfile_meta *m = &p->source->meta;
    qfile_meta_add(m, "converter", "qsae %d.%d.%d", QSAE_VERSION_MAJOR,
                   QSAE_VERSION_MINOR, QSAE_VERSION_PATCH);
    qfile_meta_add(m, "eos.from", "%s", p->source->config.eos_from);
    qfile_meta_add(m, "head", "%s", p->tied ? "tied to the embedding" : "stored");
    if (p->o->head)
        qfile_meta_add(m, "head.option", "--head %s",
                       p->o->head == HEAD_TIED ? "tied" : "stored");
    qfile_meta_add(m, "weights", "%s", type_note(p->o->type));
    if (!p->source->blob)
        qfile_meta_add(m, "tokenizer", "none");
    return qfile_meta_finish(m, p->err, p->cap);
}

static void report(const plan *p)
{
    const qsae_model_record *r = &p->source->config.record;
    unsigned types = 0; /* one bit each */
    for (size_t i = 0; i < p->n; i++)
        if (p->list[i].layout == QSAE_LAYOUT_BLOCK16)
            types |= 1u << p->list[i].type;
    printf("%s: model, %u layers x %u, vocabulary %u, %s weights, %s head, %s\n",
           p->o->out, r->n_layers, r->d_model, r->vocab_size,
           types == 1u << QSAE_TYPE_F32    ? "f32"
           : types == 1u << QSAE_TYPE_BF16 ? "bf16"
           : types == 1u << QSAE_TYPE_Q8   ? "q8"
           : types == 1u << QSAE_TYPE_Q4   ? "q4"
                                           : "f32 and bf16",
           p->tied ? "tied" : "stored", p->source->blob ? "with tokenizer" : "no tokenizer");
}

int convert_write_model(model_source *source, const convert_options *o, char *err,
                        size_t cap)
{
    plan p;
    memset(&p, 0, sizeof p);
    p.o = o;
    p.source = source;
    p.err = err;
    p.cap = cap;
    int status = choose_head(&p) || describe(&p) || make_plan(&p) || check_plan(&p) ||
                 write_file(&p);
    if (!status)
        report(&p);
    free(p.list);
    return status ? -1 : 0;
}
