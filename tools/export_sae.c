/* One SAE in another program's layout: a folder of SAELens, or Gemma Scope's npz.
 *
 * SAELens 6.54: saes/<architecture>_sae.py, transcoder.py, the dataclasses. Our form has
 * everything folded, so apply_b_dec_to_input is false and nothing is rescaled; the
 * tensors are ours, transposed where theirs are. Matrices keep their type (SAELens reads
 * them as float32, which cfg.json says); numpy has no bf16, so the npz is float32. */

#ifndef _XOPEN_SOURCE
#define _XOPEN_SOURCE 700 /* open_memstream, rmdir */
#endif

#include "checked.h"
#include "cmd.h"
#include "export.h"
#include "npy.h"
#include "outfile.h"
#include "safetensors.h"
#include "text.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define WEIGHTS "sae_weights.safetensors"
#define BLOCK   ((size_t)1 << 24) /* floats of a matrix in memory at once */

typedef struct source {
    const char *path;
    qsae_sae *sae; /* open so that its checksums are checked */
    qsae_sae_info info;
    sae_numbers numbers;
    uint32_t group;
    qread q;
    char *meta; /* may be NULL */
    float *block;
    char err[ERR_CAP];
} source;

static int source_open(source *s, const export_run *r)
{
    memset(s, 0, sizeof *s);
    s->path = r->sae_path;
    int code = sae_open_choice(&r->in, r->sae_path, &r->choice, &s->sae);
    if (code != CMD_OK)
        return code;
    qsae_sae_get_info(s->sae, &s->info);
    s->group = 1 + (uint32_t)s->info.index;
    code = sae_numbers_read(r->sae_path, &s->info, &s->numbers);
    if (code != CMD_OK)
        return code;
    if (qread_open(&s->q, r->sae_path, s->err, sizeof s->err) ||
        qread_meta(&s->q, s->group, &s->meta, s->err, sizeof s->err))
        return complain(CMD_FAILED, "%s", s->err);
    s->block = malloc(BLOCK * sizeof *s->block);
    return s->block ? CMD_OK : complain(CMD_FAILED, "out of memory");
}

static void source_close(source *s)
{
    qread_close(&s->q);
    qsae_sae_close(s->sae);
    sae_numbers_free(&s->numbers);
    free(s->meta);
    free(s->block);
}

/* SAELens' classes for SAEs that write another site, or have a skip connection. */
static int is_transcoder(const qsae_sae_info *s)
{
    return s->is_transcoder || s->has_skip || s->d_in != s->d_out;
}

/* ---- tensors, part by part, to either writer ---- */

/* Receives `size` bytes that belong behind what it got before. */
typedef int (*sink_fn)(void *writer, const void *data, size_t size, char *err,
                       size_t cap);

typedef struct target {
    sink_fn put;
    void *writer;
} target;

/* n floats as the type that is written; bf16 only where they came from one. */
static int put_floats(source *s, const target *t, tensor_type type, float *v, size_t n)
{
    if (type == TENSOR_F32)
        return t->put(t->writer, v, n * sizeof *v, s->err, sizeof s->err);
    uint16_t *half = (void *)v; /* in place: the upper half of each */
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &v[i], sizeof bits);
        uint16_t upper = (uint16_t)(bits >> 16);
        memcpy((unsigned char *)half + 2 * i, &upper, sizeof upper);
    }
    return t->put(t->writer, v, n * sizeof *half, s->err, sizeof s->err);
}

/* The stored [rows, cols], row after row. */
static int put_matrix(source *s, const target *t, tensor_type type,
                      const qsae_tensor_record *m)
{
    uint64_t most = BLOCK / m->cols;
    for (uint64_t row = 0; row < m->rows; row += most) {
        uint64_t n = m->rows - row < most ? m->rows - row : most;
        if (qread_block(&s->q, m, row, n, 0, m->cols, s->block, s->err,
                        sizeof s->err) ||
            put_floats(s, t, type, s->block, (size_t)(n * m->cols)))
            return -1;
    }
    return 0;
}

/* The stored [rows, cols] as [cols, rows]: some columns at a time. Of a matrix with more
 * rows than the block has room for, a piece of one column. */
static int put_transposed(source *s, const target *t, tensor_type type,
                          const qsae_tensor_record *m)
{
    float piece[1024];
    uint64_t most = BLOCK / m->rows;
    most = most < 1 ? 1 : most > 1024 ? 1024 : most;
    for (uint64_t col = 0; col < m->cols; col += most) {
        uint64_t n = m->cols - col < most ? m->cols - col : most;
        for (uint64_t row = 0; row < m->rows; row++) {
            if (qread_block(&s->q, m, row, 1, col, n, piece, s->err, sizeof s->err))
                return -1;
            for (uint64_t j = 0; j < n; j++)
                s->block[j * m->rows + row] = piece[j];
        }
        if (put_floats(s, t, type, s->block, (size_t)(n * m->rows)))
            return -1;
    }
    return 0;
}

static const qsae_tensor_record *stored(const source *s, uint32_t role)
{
    return qread_find(&s->q, s->group, role);
}

/* ---- what is written ---- */

/* A gated SAE's scale s is exp(r_mag). The r_mag that converts back to the same s is a
 * float near log(s), or, where floats are too coarse for that, a double. */
static double log_of(float s, tensor_type type)
{
    double r = log((double)s);
    float near = (float)r;
    const float tries[] = {near, nextafterf(near, -INFINITY),
                           nextafterf(near, INFINITY)};
    for (size_t i = 0; i < 3; i++)
        if ((float)exp((double)tries[i]) == s)
            return (double)tries[i];
    return type == TENSOR_F64 ? r : (double)near;
}

static tensor_type r_mag_type(const float *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if ((float)exp(log_of(s[i], TENSOR_F32)) != s[i])
            return TENSOR_F64;
    return TENSOR_F32;
}

/* A tensor of the file that is written. */
typedef struct item {
    const char *name;
    uint32_t role;
    int transposed;
    tensor_type type;
} item;

static tensor_type matrix_type(const source *s, uint32_t role)
{
    return stored(s, role)->type == QSAE_TYPE_BF16 ? TENSOR_BF16 : TENSOR_F32;
}

static void item_shape(const source *s, const item *it, uint32_t *rank,
                       uint64_t shape[2])
{
    const qsae_tensor_record *t = stored(s, it->role);
    *rank = t->layout == QSAE_LAYOUT_VECTOR ? 1 : 2;
    shape[0] = *rank == 1 || it->transposed ? t->cols : t->rows;
    shape[1] = it->transposed ? t->rows : t->cols;
}

static int put_r_mag(source *s, const target *t, const item *it)
{
    const qsae_tensor_record *m = stored(s, it->role);
    for (uint64_t i = 0; i < m->cols; i++) {
        float v;
        if (qread_block(&s->q, m, 0, 1, i, 1, &v, s->err, sizeof s->err))
            return -1;
        double r = log_of(v, it->type);
        float f = (float)r;
        if (t->put(t->writer, it->type == TENSOR_F64 ? (void *)&r : (void *)&f,
                   it->type == TENSOR_F64 ? sizeof r : sizeof f, s->err, sizeof s->err))
            return -1;
    }
    return 0;
}

static int put_item(source *s, const target *t, const item *it)
{
    if (it->role == QSAE_ROLE_MAG_SCALE)
        return put_r_mag(s, t, it);
    return (it->transposed ? put_transposed : put_matrix)(s, t, it->type,
                                                          stored(s, it->role));
}

/* At most 8 items; returns how many. */
static size_t saelens_items(source *s, item *list)
{
    size_t n = 0;
    int gated = s->info.activation == QSAE_ACT_GATED;
    list[n++] = (item){"W_enc", QSAE_ROLE_ENC, 1, matrix_type(s, QSAE_ROLE_ENC)};
    list[n++] = (item){"W_dec", QSAE_ROLE_DEC, 0, matrix_type(s, QSAE_ROLE_DEC)};
    list[n++] = (item){gated ? "b_gate" : "b_enc", QSAE_ROLE_B_ENC, 0, TENSOR_F32};
    list[n++] = (item){"b_dec", QSAE_ROLE_B_DEC, 0, TENSOR_F32};
    if (s->info.activation == QSAE_ACT_JUMPRELU)
        list[n++] = (item){"threshold", QSAE_ROLE_THETA, 0, TENSOR_F32};
    if (gated) {
        list[n++] = (item){"r_mag", QSAE_ROLE_MAG_SCALE, 0, TENSOR_F32};
        list[n++] = (item){"b_mag", QSAE_ROLE_MAG_BIAS, 0, TENSOR_F32};
    }
    if (s->info.has_skip)
        list[n++] = (item){"W_skip", QSAE_ROLE_SKIP, 0, matrix_type(s, QSAE_ROLE_SKIP)};
    return n;
}

/* ---- SAELens: what it cannot say, and cfg.json ---- */

static const char *saelens_architecture(const qsae_sae_info *s)
{
    if (is_transcoder(s) && s->activation == QSAE_ACT_RELU)
        return s->has_skip ? "skip_transcoder" : "transcoder";
    if (is_transcoder(s) && s->activation == QSAE_ACT_JUMPRELU)
        return s->has_skip ? "jumprelu_skip_transcoder" : "jumprelu_transcoder";
    switch (s->activation) {
    case QSAE_ACT_RELU: return "standard";
    case QSAE_ACT_JUMPRELU: return "jumprelu";
    case QSAE_ACT_TOPK: return "topk";
    case QSAE_ACT_GATED: return "gated";
    default: return NULL;
    }
}

static int saelens_check(const source *s)
{
    const qsae_sae_info *i = &s->info;
    const char *arch = saelens_architecture(i);
    if (!arch)
        return complain(CMD_FAILED,
                        "%.300s: SAELens has no architecture for a %s SAE", s->path,
                        qsae_activation_name(i->activation));
    if (is_transcoder(i) && !strstr(arch, "transcoder"))
        return complain(CMD_FAILED,
                        "%.300s: SAELens has transcoders with relu and jumprelu only, "
                        "this one is %s",
                        s->path, arch);
    if (is_transcoder(i) && i->norm != QSAE_NORM_NONE)
        return complain(
            CMD_FAILED,
            "%.300s: a transcoder with a per-token norm; SAELens would scale "
            "its output back, this one's is not",
            s->path);
    return CMD_OK;
}

static void put_string(FILE *f, const char *key, const char *value)
{
    fprintf(f, "\"%s\": ", key);
    text_json(f, value, strlen(value));
    fputs(", ", f);
}

static void put_hook(FILE *f, const char *key, qsae_site site, int layer)
{
    static const char *const hooks[] = {
        "hook_resid_pre", "attn.hook_z",  "hook_attn_out",  "hook_resid_mid",
        "mlp.hook_in",    "hook_mlp_out", "hook_resid_post"};
    char name[64];
    snprintf(name, sizeof name, "blocks.%d.%s", layer, hooks[site]);
    put_string(f, key, name);
}

/* What META remembers of the source's own metadata. */
static void put_source(FILE *f, const char *meta)
{
    size_t n;
    const char *v = qread_meta_value(meta, "source.model_name", &n);
    if (v) {
        fputs("\"model_name\": ", f);
        text_json(f, v, n);
        fputs(", ", f);
    }
    v = qread_meta_value(meta, "source.prepend_bos", &n);
    if (v && ((n == 4 && !memcmp(v, "true", 4)) || (n == 5 && !memcmp(v, "false", 5))))
        fprintf(f, "\"prepend_bos\": %.*s, ", (int)n, v);
}

static void put_metadata(FILE *f, const source *s)
{
    const qsae_sae_info *i = &s->info;
    fputs("\"metadata\": {", f);
    put_source(f, s->meta);
    put_hook(f, "hook_name", i->site_in, i->layer_in);
    if (is_transcoder(i))
        put_hook(f, "hook_name_out", i->site_out, i->layer_out);
    put_string(f, "feature_unit", i->feature_unit);
    if (s->numbers.list) {
        fputs("\"extract_features\": [", f);
        for (uint32_t k = 0; k < s->numbers.n; k++)
            fprintf(f, "%s%u", k ? ", " : "", (unsigned)s->numbers.list[k]);
        fputs("], ", f);
    }
    put_string(f, "exported_by", "qsae");
    fputs("\"sae_lens_version\": \"6.54.12\"}", f); /* whose layout this is */
}

/* The text of cfg.json, to free(); NULL if out of memory. */
static char *saelens_cfg(const source *s)
{
    static const char *const norms[] = {"none", "constant_norm_rescale", "layer_norm"};
    const qsae_sae_info *i = &s->info;
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    if (!f)
        return NULL;
    fputs("{", f);
    put_string(f, "architecture", saelens_architecture(i));
    fprintf(f, "\"d_in\": %d, \"d_sae\": %d, ", (int)i->d_in, (int)i->d_sae);
    if (is_transcoder(i))
        fprintf(f, "\"d_out\": %d, ", (int)i->d_out);
    if (i->activation == QSAE_ACT_TOPK)
        fprintf(f, "\"k\": %d, \"rescale_acts_by_decoder_norm\": false, ", (int)i->k);
    fputs("\"dtype\": \"float32\", \"device\": \"cpu\", "
          "\"apply_b_dec_to_input\": false, ",
          f);
    put_string(f, "normalize_activations", norms[i->norm]);
    put_string(f, "reshape_activations", i->site_in == QSAE_ATTN_Z ? "hook_z" : "none");
    put_metadata(f, s);
    fputs("}\n", f);
    if (ferror(f) | fclose(f)) {
        free(text);
        return NULL;
    }
    return text;
}

/* ---- a folder that appears whole or not at all ---- */

typedef struct folder {
    const char *path;
    char *temp; /* beside the destination */
    char *file; /* room for a path in temp */
    int made;   /* temp exists */
} folder;

static char *copy_path(const char *path, size_t more)
{
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    char *out = malloc(n + more + 1);
    if (out) {
        memcpy(out, path, n);
        out[n] = 0;
    }
    return out;
}

static int folder_begin(folder *d, const char *path)
{
    memset(d, 0, sizeof *d);
    d->path = path;
    d->temp = copy_path(path, 40);
    d->file = copy_path(path, 100);
    if (!d->temp || !d->file)
        return complain(CMD_FAILED, "out of memory");
    /* an empty folder may be there: rmdir says if it is not */
    if (rmdir(d->file) != 0 && errno != ENOENT)
        return complain(CMD_FAILED, "%.300s: %s", path,
                        errno == ENOTEMPTY || errno == EEXIST
                            ? "the folder is not empty; choose another"
                        : errno == ENOTDIR ? "exists and is not a folder"
                                           : strerror(errno));
    sprintf(d->temp + strlen(d->temp), ".tmp-%ld", (long)getpid());
    if (mkdir(d->temp, 0777) != 0)
        return complain(CMD_FAILED, "%.300s: cannot create a folder there: %s", path,
                        strerror(errno));
    d->made = 1;
    return CMD_OK;
}

static const char *folder_file(folder *d, const char *name)
{
    size_t n = strlen(d->temp);
    memcpy(d->file, d->temp, n);
    sprintf(d->file + n, "/%s", name);
    return d->file;
}

/* Moves the folder to its place, or removes it with the files that may be in it. */
static int folder_end(folder *d, int code, const char *const *names, size_t n)
{
    char *dest = copy_path(d->path, 0);
    if (code == CMD_OK && (!dest || rename(d->temp, dest) != 0))
        code = complain(CMD_FAILED, "%.300s: cannot rename the finished folder: %s",
                        d->path, strerror(errno));
    for (size_t i = 0; code != CMD_OK && d->made && i < n; i++)
        unlink(folder_file(d, names[i]));
    if (code != CMD_OK && d->made)
        rmdir(d->temp);
    free(dest);
    free(d->temp);
    free(d->file);
    return code;
}

/* ---- writing ---- */

static int st_put(void *w, const void *data, size_t size, char *err, size_t cap)
{
    return st_writer_data(w, data, size, err, cap);
}

/* r_mag's type depends on its values. */
static int settle_types(source *s, item *list, size_t n)
{
    const qsae_tensor_record *m = stored(s, QSAE_ROLE_MAG_SCALE);
    for (size_t i = 0; m && i < n; i++) {
        if (list[i].role != QSAE_ROLE_MAG_SCALE)
            continue;
        if (qread_block(&s->q, m, 0, 1, 0, m->cols, s->block, s->err, sizeof s->err))
            return -1;
        list[i].type = r_mag_type(s->block, (size_t)m->cols);
    }
    return 0;
}

static int write_weights(source *s, const char *path)
{
    item list[8];
    size_t n = saelens_items(s, list);
    st_writer *w = st_writer_create(path, s->err, sizeof s->err);
    target t = {st_put, w};
    int bad = !w || settle_types(s, list, n);
    for (size_t i = 0; i < n && !bad; i++) {
        uint32_t rank;
        uint64_t shape[2];
        item_shape(s, &list[i], &rank, shape);
        bad = st_writer_declare(w, list[i].name, list[i].type, rank, shape, s->err,
                                sizeof s->err);
    }
    for (size_t i = 0; i < n && !bad; i++)
        bad = put_item(s, &t, &list[i]);
    if (!bad)
        return st_writer_commit(w, s->err, sizeof s->err);
    st_writer_abort(w);
    return -1;
}

static int write_text(source *s, const char *path, const char *text)
{
    outfile *o = outfile_create(path, s->err, sizeof s->err);
    if (!o)
        return -1;
    if (outfile_write(o, text, strlen(text), s->err, sizeof s->err)) {
        outfile_abort(o);
        return -1;
    }
    return outfile_commit(o, s->err, sizeof s->err);
}

static void report(const source *s, const char *out, const char *format)
{
    printf("%s: %s of \"%s\", %s of layer %d, %d features of %d\n", out, format,
           name_z(s->info.name).text, qsae_site_name(s->info.site_in),
           (int)s->info.layer_in, (int)s->info.d_sae, (int)s->info.d_in);
}

static int write_saelens(source *s, const char *out)
{
    static const char *const names[] = {WEIGHTS, "cfg.json"};
    folder d;
    char *cfg = saelens_cfg(s);
    int code = cfg ? folder_begin(&d, out) : complain(CMD_FAILED, "out of memory");
    if (!cfg)
        return code;
    if (code == CMD_OK && (write_weights(s, folder_file(&d, WEIGHTS)) ||
                           write_text(s, folder_file(&d, "cfg.json"), cfg)))
        code = complain(CMD_FAILED, "%s", s->err);
    code = folder_end(&d, code, names, 2);
    free(cfg);
    if (code == CMD_OK)
        report(s, out, "SAELens folder");
    return code;
}

int export_saelens(export_run *r)
{
    source s;
    int code = source_open(&s, r);
    if (code == CMD_OK)
        code = saelens_check(&s);
    if (code == CMD_OK)
        code = write_saelens(&s, r->out_path);
    source_close(&s);
    return code;
}

/* ---- npz ---- */

static int npz_put(void *w, const void *data, size_t size, char *err, size_t cap)
{
    return npz_writer_data(w, data, size, err, cap);
}

/* Gemma Scope's arrays say z = x W_enc + b_enc, f = z where z > threshold: no more. */
static int npz_check(const source *s)
{
    const qsae_sae_info *i = &s->info;
    const char *what = i->activation == QSAE_ACT_TOPK    ? "topk"
                       : i->activation == QSAE_ACT_GATED ? "gated"
                       : i->norm != QSAE_NORM_NONE       ? "a per-token norm"
                       : i->has_skip                     ? "a skip connection"
                                                         : NULL;
    if (!what && i->activation != QSAE_ACT_RELU && i->activation != QSAE_ACT_JUMPRELU)
        what = "this activation";
    if (what)
        return complain(
            CMD_FAILED,
            "%.300s: the npz layout has no place for %s; --format saelens has", s->path,
            what);
    return CMD_OK;
}

/* relu is jumprelu with thresholds of 0. */
static int put_zeros(source *s, const target *t)
{
    static const float zero[256];
    for (int32_t at = 0; at < s->info.d_sae; at += 256) {
        int32_t n = s->info.d_sae - at < 256 ? s->info.d_sae - at : 256;
        if (t->put(t->writer, zero, (size_t)n * sizeof zero[0], s->err, sizeof s->err))
            return -1;
    }
    return 0;
}

static int write_npz(source *s, const char *path)
{
    static const item list[] = {{"W_enc", QSAE_ROLE_ENC, 1, TENSOR_F32},
                                {"W_dec", QSAE_ROLE_DEC, 0, TENSOR_F32},
                                {"b_enc", QSAE_ROLE_B_ENC, 0, TENSOR_F32},
                                {"b_dec", QSAE_ROLE_B_DEC, 0, TENSOR_F32},
                                {"threshold", QSAE_ROLE_THETA, 0, TENSOR_F32}};
    npz_writer *w = npz_writer_create(path, s->err, sizeof s->err);
    target t = {npz_put, w};
    int bad = !w;
    for (size_t i = 0; i < sizeof list / sizeof list[0] && !bad; i++) {
        uint32_t rank = 1;
        uint64_t shape[2] = {(uint64_t)s->info.d_sae, 0};
        int there = stored(s, list[i].role) != NULL;
        if (there)
            item_shape(s, &list[i], &rank, shape);
        bad = npz_writer_array(w, list[i].name, TENSOR_F32, rank, shape, s->err,
                               sizeof s->err) ||
              (there ? put_item(s, &t, &list[i]) : put_zeros(s, &t));
    }
    if (!bad)
        return npz_writer_commit(w, s->err, sizeof s->err);
    npz_writer_abort(w);
    return -1;
}

static int write_npz_folder(source *s, const char *out)
{
    static const char *const names[] = {"params.npz"};
    folder d;
    int code = folder_begin(&d, out);
    if (code == CMD_OK && write_npz(s, folder_file(&d, "params.npz")))
        code = complain(CMD_FAILED, "%s", s->err);
    return folder_end(&d, code, names, 1);
}

/* A name that ends in .npz is that of the file itself. */
static int write_npz_out(source *s, const char *out)
{
    size_t n = strlen(out);
    if (n < 4 || strcmp(out + n - 4, ".npz") != 0)
        return write_npz_folder(s, out);
    return write_npz(s, out) ? complain(CMD_FAILED, "%s", s->err) : CMD_OK;
}

int export_npz(export_run *r)
{
    source s;
    int code = source_open(&s, r);
    if (code == CMD_OK)
        code = npz_check(&s);
    if (code == CMD_OK)
        code = write_npz_out(&s, r->out_path);
    if (code == CMD_OK)
        report(&s, r->out_path, "npz");
    source_close(&s);
    return code;
}
