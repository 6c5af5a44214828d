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
#include "qread.h"
#include "sae_choice.h"
#include "text.h"

static const char usage[] =
    "usage: qsae info FILE.qsae [options]\n"
    "\n"
    "Shows what the file holds, after checking every checksum.\n"
    "\n"
    "      --json       one JSON object\n"
    "      --tensors    also every tensor\n"
    "      --no-verify  do not read the weights\n"
    "Of a file that holds several SAEs, only those that\n"
    "      --site S --layer L      read this site and layer\n"
    "      --name N                have this name\n";

enum { OPT_JSON = OPT_OWN, OPT_TENSORS };

static const args_option options[] = {
    {"json", 0, OPT_JSON, 0},
    {"tensors", 0, OPT_TENSORS, 0},
    {"no-verify", 0, OPT_NO_VERIFY, 0},
    SAE_OPTIONS,
    {NULL, 0, 0, 0},
};

static const char *const norms[] = {"none", "constant", "layer"};
static const char *const chat_formats[] = {"qwen3", "qwen3-later", "other"};
static const char *const types[] = {"?", "f32", "bf16", "bytes", "q8", "q4"};
static const char *const layouts[] = {"?", "vector", "block16", "rows", "bytes"};

typedef struct view {
    const char *path;
    qread q;
    sae_choice choice;
    int json, tensors, verify;
    int shown; /* members so far */
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
        {QSAE_ROLE_SCREEN, "screen"},
        {QSAE_ROLE_SCREEN_REST, "screen_rest"},
        {QSAE_ROLE_SCREEN_NORM, "screen_norm"},
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

/* Which of the two kinds; anything odd is left to the library, which names it. */
static int is_sae(const view *v)
{
    qsae_file_header head;
    struct stat st;
    FILE *f =
        stat(v->path, &st) == 0 && S_ISREG(st.st_mode) ? fopen(v->path, "rb") : NULL;
    int yes = f && fread(&head, 1, sizeof head, f) == sizeof head &&
              head.kind == QSAE_KIND_SAE;
    if (f)
        fclose(f);
    return yes;
}

static int read_index(view *v)
{
    char err[ERR_CAP];
    return qread_open(&v->q, v->path, err, sizeof err) ? complain(CMD_FAILED, "%s", err)
                                                       : CMD_OK;
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
    char *text, err[ERR_CAP];
    int first = 1;
    if (qread_meta(&v->q, group, &text, err, sizeof err))
        return complain(CMD_FAILED, "%s", err);
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
    for (uint32_t i = 0; i < v->q.head.n_tensors; i++) {
        const qsae_tensor_record *t = &v->q.dir[i];
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
        memcpy(&r, v->q.records, sizeof r);
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
    printf("{\"index\":%d", s->index);
    put_member("name", s->name);
    put_member("site_in", qsae_site_name(s->site_in));
    printf(",\"layer_in\":%d", s->layer_in);
    put_member("site_out", qsae_site_name(s->site_out));
    printf(",\"layer_out\":%d,\"d_in\":%d,\"d_out\":%d,\"d_sae\":%d,\"k\":",
           s->layer_out, s->d_in, s->d_out, s->d_sae);
    printf(s->k ? "%d" : "null", s->k);
    put_member("activation", qsae_activation_name(s->activation));
    put_member("norm", NAME_OF(norms, (size_t)s->norm));
    put_member("feature_unit", s->feature_unit);
    put_member("weight_type", s->weight_type);
    printf(",\"skip\":%s,\"transcoder\":%s,\"screen\":%s", s->has_skip ? "true" : "false",
           s->is_transcoder ? "true" : "false", s->has_screen ? "true" : "false");
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
    printf(", %s", qsae_activation_name(s->activation));
    if (s->k)
        printf(" %d", s->k);
    if (s->norm != QSAE_NORM_NONE)
        printf(", %s norm", NAME_OF(norms, (size_t)s->norm));
    printf(", %s units%s, %s%s\n", s->feature_unit, s->has_skip ? ", skip" : "",
           s->weight_type, s->has_screen ? ", screen" : "");
}

/* Opens member i; the checksums of the first one cover the whole file. */
static int open_member(const view *v, int32_t i, qsae_sae **sae, qsae_sae_info *info)
{
    qsae_sae_options o;
    qsae_error e;
    memset(&o, 0, sizeof o);
    o.open.verify = v->verify && i == 0;
    o.select = QSAE_SELECT_INDEX;
    o.index = i;
    if (qsae_sae_open(v->path, &o, sae, &e))
        return fail(v, e.text);
    qsae_sae_get_info(*sae, info);
    return CMD_OK;
}

static void print_file(const view *v, const qsae_sae_info *s)
{
    if (v->json) {
        printf("{\"file\":");
        text_json(stdout, v->path, strlen(v->path));
        printf(",\"kind\":\"sae\",\"size\":%" PRIu64 ",\"verified\":%s,\"members\":[",
               s->file_size, v->verify ? "true" : "false");
        return;
    }
    printf("%s: %d SAE%s, ", v->path, s->n_members, s->n_members == 1 ? "" : "s");
    print_size(s->file_size);
    printf(v->verify ? ", every checksum is right\n" : ", not verified\n");
}

/* A pack's features by the numbers they have in the SAE they were taken from. */
static int print_numbers(const view *v, const qsae_sae_info *s)
{
    sae_numbers n;
    int status = sae_numbers_read(v->path, s, &n);
    if (status != CMD_OK)
        return status;
    if (v->json) {
        printf(",\"features\":");
        printf(n.list ? "[" : "null");
        for (int32_t i = 0; n.list && i < s->d_sae; i++)
            printf("%s%u", i ? "," : "", (unsigned)n.list[i]);
        printf(n.list ? "]" : "");
    } else if (n.list) {
        printf("  a pack: features %u", (unsigned)n.list[0]);
        for (int32_t i = 1; i < s->d_sae && i < 12; i++)
            printf(", %u", (unsigned)n.list[i]);
        printf(s->d_sae > 12 ? ", ... of the SAE it was taken from\n"
                             : " of the SAE it was taken from\n");
    }
    sae_numbers_free(&n);
    return CMD_OK;
}

static int show_member(view *v, int32_t i)
{
    qsae_sae_info info;
    qsae_sae *s = NULL;
    int status = open_member(v, i, &s, &info);
    if (status != CMD_OK)
        return status;
    if (v->json && v->shown++)
        printf(",");
    (v->json ? sae_json : sae_text)(&info);
    status = print_numbers(v, &info);
    if (status == CMD_OK)
        status = print_meta(v, 1 + (uint32_t)i);
    if (v->json)
        printf("}");
    qsae_sae_close(s);
    return status;
}

static int show_saes(view *v)
{
    qsae_sae_info first;
    qsae_sae *s = NULL;
    int status = open_member(v, 0, &s, &first);
    if (status == CMD_OK)
        status = read_index(v);
    if (status == CMD_OK && sae_choice_count(&v->q, &v->choice) == 0)
        status = sae_choice_complain(&v->q, &v->choice);
    if (status == CMD_OK)
        print_file(v, &first);
    qsae_sae_close(s);
    for (uint32_t i = 0; status == CMD_OK && i < v->q.head.n_records; i++)
        if (sae_choice_fits(&v->q, i, &v->choice))
            status = show_member(v, (int32_t)i);
    if (status == CMD_OK && v->json)
        printf("]");
    return status;
}

/* ---- the command ---- */

static int show(view *v)
{
    int status = is_sae(v) ? show_saes(v) : show_model(v);
    if (status == CMD_OK && v->tensors)
        print_tensors(v);
    if (status == CMD_OK && v->json)
        printf("}\n");
    qread_close(&v->q);
    return status;
}

static int take_option(void *run, const args *a, int id)
{
    view *v = run;
    switch (id) {
    case OPT_JSON: v->json = 1; return CMD_OK;
    case OPT_TENSORS: v->tensors = 1; return CMD_OK;
    case OPT_NO_VERIFY: v->verify = 0; return CMD_OK;
    default: return sae_choice_take(&v->choice, a, id);
    }
}

int cmd_info(int argc, char **argv)
{
    view v;
    int help = 0;
    memset(&v, 0, sizeof v);
    v.verify = 1;
    v.choice = sae_choice_any();
    args a = args_begin(argc, argv, options, usage);
    const char **const slots[] = {&v.path};
    int status = args_walk(&a, slots, 1, take_option, &v, &help);
    if (status != CMD_OK || help)
        return status;
    if (!v.path)
        return complain(CMD_USAGE, "info: which file? (see: qsae info --help)");
    status = show(&v);
    return status == CMD_OK ? finish_stdout() : status;
}
