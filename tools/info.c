/* qsae info: what a .qsae file holds. The library opens it with every checksum
 * verified; after that the records and the directory are read again here, for what the
 * public structs do not carry (META, bos). */

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#define _FILE_OFFSET_BITS 64

#define QSAE_WITH_FORMAT
#include "../qsae.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "args.h"
#include "checked.h"
#include "cmd.h"
#include "text.h"

static const char usage[] =
    "usage: qsae info FILE.qsae [options]\n"
    "\n"
    "Shows what the file holds, after checking every checksum.\n"
    "\n"
    "      --json       one JSON object\n"
    "      --tensors    also every tensor\n"
    "      --no-verify  do not read the weights\n";

enum { OPT_JSON = 1, OPT_TENSORS, OPT_NO_VERIFY };

static const args_option options[] = {
    {"json", 0, OPT_JSON, 0},
    {"tensors", 0, OPT_TENSORS, 0},
    {"no-verify", 0, OPT_NO_VERIFY, 0},
    {NULL, 0, 0, 0},
};

static const char *const activations[] = {"?",     "relu",     "jumprelu",   "topk",
                                          "gated", "groupmax", "topk-scaled"};
static const char *const norms[] = {"none", "constant", "layer"};
static const char *const chat_formats[] = {"qwen3", "qwen3-later", "other"};
static const char *const types[] = {"?", "f32", "bf16", "bytes"};
static const char *const layouts[] = {"?", "vector", "block16", "rows", "bytes"};

typedef struct view {
    const char *path;
    FILE *f;
    qsae_file_header head;
    unsigned char *records;  /* [n_records, 256] */
    qsae_tensor_record *dir; /* [n_tensors] */
    int json, tensors, verify;
} view;

#define NAME_OF(table, i) ((i) < sizeof(table) / sizeof(table)[0] ? (table)[i] : "?")

static const char *role_name(uint32_t role)
{
    static const struct {
        uint32_t role;
        const char *name;
    } names[] = {
        {QSAE_ROLE_EMBED, "embed"},
        {QSAE_ROLE_FINAL_NORM, "final_norm"},
        {QSAE_ROLE_LM_HEAD, "lm_head"},
        {QSAE_ROLE_ROPE, "rope"},
        {QSAE_ROLE_TOKENIZER, "tokenizer"},
        {QSAE_ROLE_META, "meta"},
        {QSAE_ROLE_ATTN_NORM, "attn_norm"},
        {QSAE_ROLE_Q, "q"},
        {QSAE_ROLE_K, "k"},
        {QSAE_ROLE_V, "v"},
        {QSAE_ROLE_Q_NORM, "q_norm"},
        {QSAE_ROLE_K_NORM, "k_norm"},
        {QSAE_ROLE_O, "o"},
        {QSAE_ROLE_MLP_NORM, "mlp_norm"},
        {QSAE_ROLE_GATE, "gate"},
        {QSAE_ROLE_UP, "up"},
        {QSAE_ROLE_DOWN, "down"},
        {QSAE_ROLE_ENC, "enc"},
        {QSAE_ROLE_DEC, "dec"},
        {QSAE_ROLE_B_ENC, "b_enc"},
        {QSAE_ROLE_THETA, "theta"},
        {QSAE_ROLE_MAG_SCALE, "mag_scale"},
        {QSAE_ROLE_MAG_BIAS, "mag_bias"},
        {QSAE_ROLE_B_DEC, "b_dec"},
        {QSAE_ROLE_SKIP, "skip"},
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (names[i].role == role)
            return names[i].name;
    return "?";
}

static int fail(const view *v, const char *what)
{
    return complain(CMD_FAILED, "%s: %s", v->path, what);
}

/* ---- reading ---- */

static int read_at(view *v, uint64_t offset, void *out, uint64_t size)
{
    if (offset > INT64_MAX || fseeko(v->f, (off_t)offset, SEEK_SET) != 0 ||
        fread(out, 1, (size_t)size, v->f) != size)
        return fail(v, "cannot read");
    return CMD_OK;
}

/* Which of the two kinds; anything odd is left to the library, which names it. */
static int open_view(view *v)
{
    struct stat st;
    if (stat(v->path, &st) == 0 && !S_ISREG(st.st_mode))
        return fail(v, "not a regular file"); /* a FIFO would make us wait */
    v->f = fopen(v->path, "rb");
    if (!v->f)
        return complain(CMD_FAILED, "%s: cannot open: %s", v->path, strerror(errno));
    if (fread(&v->head, 1, sizeof v->head, v->f) != sizeof v->head)
        memset(&v->head, 0, sizeof v->head);
    return CMD_OK;
}

/* Records and directory of a file that the library has accepted. */
static int read_index(view *v)
{
    uint64_t n_rec = 256 * (uint64_t)v->head.n_records,
             n_dir = 64 * (uint64_t)v->head.n_tensors;
    if (n_rec == 0 || n_rec > (uint64_t)1 << 26 || n_dir == 0 ||
        n_dir > (uint64_t)1 << 28)
        return fail(v, "it changed while it was read");
    v->records = malloc((size_t)n_rec);
    v->dir = malloc((size_t)n_dir);
    if (!v->records || !v->dir)
        return fail(v, "out of memory");
    int status = read_at(v, 64, v->records, n_rec);
    return status ? status : read_at(v, 64 + n_rec, v->dir, n_dir);
}

/* META of a group into *text (malloc, NUL-terminated); *text NULL if it has none. */
static int read_meta(view *v, uint32_t group, char **text)
{
    *text = NULL;
    for (uint32_t i = 0; i < v->head.n_tensors; i++) {
        const qsae_tensor_record *t = &v->dir[i];
        if (t->group != group || t->role != QSAE_ROLE_META)
            continue;
        if (t->cols > (uint64_t)1 << 24)
            return fail(v, "its notes are too long to show");
        *text = malloc((size_t)t->cols + 1);
        if (!*text)
            return fail(v, "out of memory");
        (*text)[t->cols] = 0;
        return read_at(v, t->offset, *text, t->cols);
    }
    return CMD_OK;
}

/* ---- printing ---- */

static void put_member(const char *key, const char *value)
{
    printf(",\"%s\":", key);
    text_json(stdout, value, strlen(value));
}

/* The lines key=value of a group: as members of an object, or as indented lines. */
static int print_meta(view *v, uint32_t group)
{
    char *text;
    int status = read_meta(v, group, &text), first = 1;
    if (status)
        return status;
    if (v->json)
        printf(",\"meta\":{");
    else if (text)
        printf("  notes\n");
    for (char *line = text; line && *line;) {
        size_t n = strcspn(line, "\n"), key = strcspn(line, "=\n"), skip = key < n;
        if (v->json) {
            printf(first ? "" : ",");
            text_json(stdout, line, key);
            printf(":");
            text_json(stdout, line + key + skip, n - key - skip);
        } else {
            printf("    %s\n", name_n(line, n).text);
        }
        first = 0;
        line += line[n] ? n + 1 : n;
    }
    if (v->json)
        printf("}");
    free(text);
    return CMD_OK;
}

static void print_tensors(const view *v)
{
    if (v->json)
        printf(",\"tensors\":[");
    else
        printf("  tensors (group, role, type, layout, rows x columns, offset, bytes, "
               "hash)\n");
    for (uint32_t i = 0; i < v->head.n_tensors; i++) {
        const qsae_tensor_record *t = &v->dir[i];
        const char *form = v->json ? "%s{\"group\":%u,\"role\":\"%s\",\"type\":\"%s\","
                                     "\"layout\":\"%s\",\"rows\":%" PRIu64
                                     ",\"cols\":%" PRIu64 ",\"offset\":%" PRIu64
                                     ",\"size\":%" PRIu64 ",\"hash\":\"%016" PRIx64
                                     "\"}"
                                   : "%s    %3u %-10s %-5s %-7s %" PRIu64 " x %" PRIu64
                                     "  %" PRIu64 "  %" PRIu64 "  %016" PRIx64 "\n";
        printf(form, v->json && i ? "," : "", t->group, role_name(t->role),
               NAME_OF(types, t->type), NAME_OF(layouts, t->layout), t->rows, t->cols,
               t->offset, t->size, t->hash);
    }
    if (v->json)
        printf("]");
}

static void print_size(uint64_t bytes)
{
    if (bytes < 1000000)
        printf("%" PRIu64 " bytes", bytes);
    else if (bytes < 1000000000)
        printf("%.1f MB", (double)bytes / 1e6);
    else
        printf("%.2f GB", (double)bytes / 1e9);
}

/* ---- a model ---- */

static void model_json(const view *v, const qsae_model_info *m,
                       const qsae_model_record *r)
{
    printf("{\"file\":");
    text_json(stdout, v->path, strlen(v->path));
    printf(",\"kind\":\"model\",\"size\":%" PRIu64 ",\"verified\":%s", m->file_size,
           v->verify ? "true" : "false");
    put_member("name", r->name);
    printf(",\"n_layers\":%d,\"d_model\":%d,\"n_heads\":%d,\"n_kv_heads\":%d,\"head_"
           "dim\":%d,\"d_ff\":%d,"
           "\"vocab_size\":%d,\"max_positions\":%d,\"rope_theta\":%.17g,\"rms_eps\":%."
           "9g,\"tied\":%s",
           m->n_layers, m->d_model, m->n_heads, m->n_kv_heads, m->head_dim, m->d_ff,
           m->vocab_size, m->max_positions, m->rope_theta, (double)m->rms_eps,
           m->tied ? "true" : "false");
    printf(",\"eos\":[");
    for (int32_t i = 0; i < m->n_eos; i++)
        printf("%s%d", i ? "," : "", m->eos[i]);
    printf("],\"bos\":");
    printf(r->bos < 0 ? "null" : "%d", r->bos);
    printf(",\"n_tokens\":%d", m->n_tokens);
    put_member("weight_type", m->weight_type);
    put_member("chat_format", NAME_OF(chat_formats, (size_t)m->chat_format));
}

static void model_text(const view *v, const qsae_model_info *m,
                       const qsae_model_record *r)
{
    printf("%s: model \"%s\", ", v->path, name_z(r->name).text);
    print_size(m->file_size);
    printf(v->verify ? ", every checksum is right\n" : ", not verified\n");
    if (m->n_layers == 0) {
        printf("  no weights\n  tokenizer    %d entries\n", m->n_tokens);
        return;
    }
    printf("  layers       %d\n  width        %d\n", m->n_layers, m->d_model);
    printf("  heads        %d of %d, %d for keys and values\n", m->n_heads, m->head_dim,
           m->n_kv_heads);
    printf("  mlp          %d\n  vocabulary   %d\n", m->d_ff, m->vocab_size);
    printf("  positions    %d\n  rope theta   %.17g\n  rms eps      %.9g\n",
           m->max_positions, m->rope_theta, (double)m->rms_eps);
    printf("  output head  %s\n  end tokens  ",
           m->tied ? "tied to the embedding" : "its own");
    for (int32_t i = 0; i < m->n_eos; i++)
        printf(" %d", m->eos[i]);
    printf("%s\n  weights      %s\n", m->n_eos ? "" : " none", m->weight_type);
    if (m->n_tokens)
        printf("  tokenizer    %d entries\n", m->n_tokens);
    else
        printf("  tokenizer    none\n");
}

static int show_model(view *v)
{
    qsae_open_options o;
    qsae_model *m = NULL;
    qsae_model_info info;
    qsae_model_record r;
    qsae_error e;
    memset(&o, 0, sizeof o);
    o.verify = v->verify;
    if (qsae_model_open(v->path, &o, &m, &e))
        return fail(v, e.text);
    qsae_model_get_info(m, &info);
    int status = read_index(v);
    if (status == CMD_OK) {
        memcpy(&r, v->records, sizeof r);
        r.name[sizeof r.name - 1] = 0;
        (v->json ? model_json : model_text)(v, &info, &r);
        status = print_meta(v, 0);
    }
    qsae_model_close(m);
    return status;
}

/* ---- an SAE file ---- */

static void sae_json(const qsae_sae_info *s)
{
    printf("%s{\"index\":%d", s->index ? "," : "", s->index);
    put_member("name", s->name);
    put_member("site_in", qsae_site_name(s->site_in));
    printf(",\"layer_in\":%d", s->layer_in);
    put_member("site_out", qsae_site_name(s->site_out));
    printf(",\"layer_out\":%d,\"d_in\":%d,\"d_out\":%d,\"d_sae\":%d,\"k\":",
           s->layer_out, s->d_in, s->d_out, s->d_sae);
    printf(s->k ? "%d" : "null", s->k);
    put_member("activation", NAME_OF(activations, (size_t)s->activation));
    put_member("norm", NAME_OF(norms, (size_t)s->norm));
    put_member("feature_unit", s->feature_unit);
    put_member("weight_type", s->weight_type);
    printf(",\"skip\":%s,\"transcoder\":%s", s->has_skip ? "true" : "false",
           s->is_transcoder ? "true" : "false");
}

static void sae_text(const qsae_sae_info *s)
{
    printf("  %d  \"%s\": %s of layer %d", s->index, name_z(s->name).text,
           qsae_site_name(s->site_in), s->layer_in);
    if (s->is_transcoder)
        printf(" to %s of layer %d", qsae_site_name(s->site_out), s->layer_out);
    printf(", %d features of %d", s->d_sae, s->d_in);
    if (s->d_out != s->d_in)
        printf(" to %d", s->d_out);
    printf(", %s", NAME_OF(activations, (size_t)s->activation));
    if (s->k)
        printf(" %d", s->k);
    if (s->norm != QSAE_NORM_NONE)
        printf(", %s norm", NAME_OF(norms, (size_t)s->norm));
    printf(", %s units%s, %s\n", s->feature_unit, s->has_skip ? ", skip" : "",
           s->weight_type);
}

static int show_member(view *v, int32_t i, int32_t *n)
{
    qsae_sae_options o;
    qsae_sae_info info;
    qsae_sae *s = NULL;
    qsae_error e;
    memset(&o, 0, sizeof o);
    o.open.verify = v->verify && i == 0; /* covers the whole file */
    o.select = QSAE_SELECT_INDEX;
    o.index = i;
    if (qsae_sae_open(v->path, &o, &s, &e))
        return fail(v, e.text);
    qsae_sae_get_info(s, &info);
    *n = info.n_members;
    int status = i == 0 ? read_index(v) : CMD_OK;
    if (status == CMD_OK && i == 0 && v->json) {
        printf("{\"file\":");
        text_json(stdout, v->path, strlen(v->path));
        printf(",\"kind\":\"sae\",\"size\":%" PRIu64 ",\"verified\":%s,\"members\":[",
               info.file_size, v->verify ? "true" : "false");
    } else if (status == CMD_OK && i == 0) {
        printf("%s: %d SAE%s, ", v->path, *n, *n == 1 ? "" : "s");
        print_size(info.file_size);
        printf(v->verify ? ", every checksum is right\n" : ", not verified\n");
    }
    if (status == CMD_OK) {
        (v->json ? sae_json : sae_text)(&info);
        status = print_meta(v, 1 + (uint32_t)i);
    }
    if (status == CMD_OK && v->json)
        printf("}");
    qsae_sae_close(s);
    return status;
}

static int show_saes(view *v)
{
    int status = CMD_OK;
    int32_t n = 1;
    for (int32_t i = 0; i < n && status == CMD_OK; i++)
        status = show_member(v, i, &n);
    if (status == CMD_OK && v->json)
        printf("]");
    return status;
}

/* ---- the command ---- */

static int show(view *v)
{
    int status = open_view(v);
    if (status == CMD_OK)
        status = v->head.kind == QSAE_KIND_SAE ? show_saes(v) : show_model(v);
    if (status == CMD_OK && v->tensors)
        print_tensors(v);
    if (status == CMD_OK && v->json)
        printf("}\n");
    if (v->f)
        fclose(v->f);
    free(v->records);
    free(v->dir);
    return status;
}

int cmd_info(int argc, char **argv)
{
    view v;
    memset(&v, 0, sizeof v);
    v.verify = 1;
    args a = args_begin(argc, argv, options, usage);
    for (int id; (id = args_next(&a)) != ARGS_END;) {
        switch (id) {
        case OPT_JSON: v.json = 1; break;
        case OPT_TENSORS: v.tensors = 1; break;
        case OPT_NO_VERIFY: v.verify = 0; break;
        case ARGS_POSITIONAL:
            if (v.path)
                return complain(CMD_USAGE,
                                "info takes one file (see: qsae info --help)");
            v.path = a.value;
            break;
        default: return id == ARGS_HELP ? CMD_OK : CMD_USAGE;
        }
    }
    if (!v.path)
        return complain(CMD_USAGE, "info: which file? (see: qsae info --help)");
    int status = show(&v);
    return status == CMD_OK ? finish_stdout() : status;
}
