/* Edits as a control vector of llama.cpp.
 *
 * Facts from llama.cpp (common/common.cpp common_control_vector_load_one,
 * src/llama-adapter.cpp, src/models: build_cvec): a GGUF file with one-dimensional F32
 * tensors direction.K, all of the model's width. direction.K is added to l_out of block
 * K, 0-based, after the second residual add, at every position; so it is resid_post of
 * layer K. K = 0 is an error there: block 0 has no place for a vector. The keys are
 * those that its cvector-generator writes; the loader reads none of them.
 *
 * GGUF: ggml/docs/gguf.md, version 3. */

#include "checked.h"
#include "cmd.h"
#include "export.h"
#include "outfile.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { GGUF_I32 = 5, GGUF_STRING = 8, GGUF_ALIGN = 32 };

typedef struct direction {
    uint32_t layer, width;
    double *sum; /* [width] */
} direction;

typedef struct vector {
    direction *list; /* [n], by layer */
    size_t n;
} vector;

/* ---- the directions ---- */

/* What the format cannot say of this edit. */
static int check_edit(const edit_text *e, const qsae_sae_info *s)
{
    if (e->kind != QSAE_FEATURE_ADD)
        return complain(
            CMD_FAILED,
            "--edit '%.100s': a control vector only adds a fixed vector; only "
            "the operation add is that",
            e->text);
    if (s->site_out != QSAE_RESID_POST)
        return complain(CMD_FAILED,
                        "--edit '%.100s': the feature writes %s, a control vector is "
                        "added to resid_post only",
                        e->text, qsae_site_name(s->site_out));
    if (s->layer_out == 0)
        return complain(
            CMD_FAILED,
            "--edit '%.100s': llama.cpp has control vectors for layers 1, 2, "
            "..., not for layer 0",
            e->text);
    if (s->norm != QSAE_NORM_NONE && !s->is_transcoder)
        return complain(CMD_FAILED,
                        "--edit '%.100s': the SAE scales every row by its own norm, so "
                        "what is added differs from token to token; a control vector "
                        "does not",
                        e->text);
    return CMD_OK;
}

/* The direction of that layer, at its place in the list. */
static direction *find(vector *v, const qsae_sae_info *s)
{
    size_t at = 0;
    uint32_t layer = (uint32_t)s->layer_out;
    while (at < v->n && v->list[at].layer < layer)
        at++;
    if (at < v->n && v->list[at].layer == layer)
        return &v->list[at];
    double *sum = calloc((size_t)s->d_out, sizeof *sum);
    direction *list = sum ? realloc(v->list, (v->n + 1) * sizeof *list) : NULL;
    if (!list) {
        free(sum);
        return NULL;
    }
    v->list = list;
    memmove(list + at + 1, list + at, (v->n - at) * sizeof *list);
    v->n++;
    list[at].layer = layer;
    list[at].width = (uint32_t)s->d_out;
    list[at].sum = sum;
    return &list[at];
}

static int add_row(vector *v, const edit_text *e, const qsae_sae *sae,
                   const qsae_sae_info *s, uint32_t row)
{
    qsae_error err;
    direction *d = find(v, s);
    float *decoder = d ? malloc((size_t)s->d_out * sizeof *decoder) : NULL;
    int code = CMD_OK;
    if (!decoder)
        return complain(CMD_FAILED, "out of memory");
    if (v->list[0].width != (uint32_t)s->d_out || d->width != (uint32_t)s->d_out)
        code =
            complain(CMD_FAILED,
                     "--edit '%.100s': it writes rows of %d, another edit rows of %u; "
                     "one model has one width",
                     e->text, (int)s->d_out, (unsigned)v->list[0].width);
    else if (qsae_sae_feature(sae, row, NULL, decoder, NULL, NULL, &err) != QSAE_OK)
        code = complain_library(NULL, &err);
    for (int32_t i = 0; i < s->d_out && code == CMD_OK; i++)
        d->sum[i] += (double)e->value * (double)decoder[i];
    free(decoder);
    return code;
}

static int add_edit(export_run *r, const edit_text *e, vector *v)
{
    char what[140];
    sae_choice choice = {e->site, e->layer, r->choice.name};
    sae_numbers numbers = {0, NULL};
    qsae_sae *sae = NULL;
    qsae_sae_info info;
    uint32_t row = 0;
    int code = sae_open_choice(&r->in, r->sae_path, &choice, &sae);
    if (code != CMD_OK)
        return code;
    qsae_sae_get_info(sae, &info);
    code = sae_numbers_read(r->sae_path, &info, &numbers);
    snprintf(what, sizeof what, "--edit '%.100s'", e->text);
    if (code == CMD_OK && !sae_row(&numbers, e->feature, &row))
        code = sae_complain_number(&numbers, what, e->feature);
    if (code == CMD_OK)
        code = check_edit(e, &info);
    if (code == CMD_OK)
        code = add_row(v, e, sae, &info, row);
    sae_numbers_free(&numbers);
    qsae_sae_close(sae);
    return code;
}

/* ---- the file ---- */

typedef struct gguf {
    outfile *o;
    int failed;
    char err[ERR_CAP];
} gguf;

static void put(gguf *g, const void *data, size_t size)
{
    if (!g->failed && outfile_write(g->o, data, size, g->err, sizeof g->err))
        g->failed = 1;
}

static void put_u32(gguf *g, uint32_t x)
{
    unsigned char b[4];
    for (int i = 0; i < 4; i++)
        b[i] = (unsigned char)(x >> 8 * i);
    put(g, b, sizeof b);
}

static void put_u64(gguf *g, uint64_t x)
{
    put_u32(g, (uint32_t)x);
    put_u32(g, (uint32_t)(x >> 32));
}

static void put_text(gguf *g, const char *text)
{
    put_u64(g, strlen(text));
    put(g, text, strlen(text));
}

static void put_padding(gguf *g)
{
    static const char zero[GGUF_ALIGN];
    size_t over = (size_t)(outfile_size(g->o) % GGUF_ALIGN);
    put(g, zero, over ? GGUF_ALIGN - over : 0);
}

static void put_pair(gguf *g, const char *key, const char *text)
{
    put_text(g, key);
    put_u32(g, GGUF_STRING);
    put_text(g, text);
}

static void put_header(gguf *g, const vector *v)
{
    uint64_t offset = 0;
    put(g, "GGUF", 4);
    put_u32(g, 3);
    put_u64(g, v->n);
    put_u64(g, 3);
    put_pair(g, "general.architecture", "controlvector");
    put_pair(g, "controlvector.model_hint", "qwen3");
    put_text(g, "controlvector.layer_count");
    put_u32(g, GGUF_I32);
    put_u32(g, (uint32_t)v->n);
    for (size_t i = 0; i < v->n; i++) {
        char name[40];
        snprintf(name, sizeof name, "direction.%u", (unsigned)v->list[i].layer);
        put_text(g, name);
        put_u32(g, 1); /* dimensions */
        put_u64(g, v->list[i].width);
        put_u32(g, 0); /* F32 */
        put_u64(g, offset);
        offset +=
            ((uint64_t)v->list[i].width * 4 + GGUF_ALIGN - 1) / GGUF_ALIGN * GGUF_ALIGN;
    }
    put_padding(g);
}

static void put_direction(gguf *g, const direction *d)
{
    for (uint32_t i = 0; i < d->width; i++) {
        uint32_t bits;
        float x = (float)d->sum[i];
        if (!isfinite(x) && !g->failed) {
            g->failed = 1;
            err_set(g->err, sizeof g->err,
                    "the sum of the edits of layer %u does not fit in float32",
                    (unsigned)d->layer);
        }
        memcpy(&bits, &x, sizeof bits);
        put_u32(g, bits);
    }
    put_padding(g);
}

static int write_file(const export_run *r, const vector *v)
{
    gguf g;
    memset(&g, 0, sizeof g);
    g.o = outfile_create(r->out_path, g.err, sizeof g.err);
    if (!g.o)
        return complain(CMD_FAILED, "%s", g.err);
    put_header(&g, v);
    for (size_t i = 0; i < v->n; i++)
        put_direction(&g, &v->list[i]);
    if (g.failed) {
        outfile_abort(g.o);
        return complain(CMD_FAILED, "%s", g.err);
    }
    if (outfile_commit(g.o, g.err, sizeof g.err))
        return complain(CMD_FAILED, "%s", g.err);
    printf("%s: control vector of %u values for layer%s", r->out_path,
           (unsigned)v->list[0].width, v->n == 1 ? "" : "s");
    for (size_t i = 0; i < v->n; i++)
        printf("%s %u", i ? "," : "", (unsigned)v->list[i].layer);
    printf("\n");
    return CMD_OK;
}

int export_vector(export_run *r)
{
    vector v = {NULL, 0};
    int code = CMD_OK;
    for (size_t i = 0; i < r->n_edits && code == CMD_OK; i++)
        code = add_edit(r, &r->edits[i], &v);
    if (code == CMD_OK)
        code = write_file(r, &v);
    for (size_t i = 0; i < v.n; i++)
        free(v.list[i].sum);
    free(v.list);
    return code;
}
