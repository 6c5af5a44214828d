/* What the evaluating commands share (see input.h). */

#define _POSIX_C_SOURCE   200809L
#define _FILE_OFFSET_BITS 64

#include "input.h"
#include "cmd.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SMALL_MODEL \
    ((uint64_t)64 << 20) /* below this a thread costs more than it brings */

int complain_library(const char *path, const qsae_error *err)
{
    if (path && !strstr(err->text, path))
        return complain(CMD_FAILED, "%.300s: %s", path, err->text);
    return complain(CMD_FAILED, "%s", err->text);
}

int parse_site(const char *text, int *site)
{
    int found = qsae_site_from_name(text);
    if (found < 0 || found >= QSAE_SITE_COUNT)
        return complain(
            CMD_USAGE,
            "--site: '%.60s' is none of resid_pre attn_z attn_out resid_mid mlp_input"
            " mlp_out resid_post",
            text);
    *site = found;
    return CMD_OK;
}

/* ------------------------------------------------------------------------- options */

static int take_isa(input *in, const char *text)
{
    for (int i = 0; i < QSAE_ISA_COUNT; i++) {
        const char *name = qsae_isa_name((qsae_isa)i);
        if (!name || strcmp(name, text) != 0)
            continue;
        if (!qsae_isa_available((qsae_isa)i))
            return complain(CMD_FAILED, "--isa: this build or this machine has no %s",
                            name);
        in->isa = (qsae_isa)i;
        return CMD_OK;
    }
    return complain(CMD_USAGE,
                    "--isa: '%.60s' is none of auto scalar avx2 avx512 avx512vnni neon "
                    "neondot neoni8mm",
                    text);
}

static int take_int32(const args *a, int32_t max, int32_t *out)
{
    int64_t v;
    int code = args_integer(a->option, a->value, 1, max, &v);
    if (code == CMD_OK)
        *out = (int32_t)v;
    return code;
}

static int take_kv(input *in, const char *text)
{
    for (int i = 0; i < QSAE_KV_COUNT; i++)
        if (strcmp(qsae_kv_name((qsae_kv_type)i), text) == 0) {
            in->kv = (qsae_kv_type)i;
            return CMD_OK;
        }
    return complain(CMD_USAGE, "--kv: '%.60s' is none of f32 f16 bf16", text);
}

int input_take(input *in, const args *a, int id)
{
    switch (id) {
    case OPT_TEXT: in->text = a->value; return CMD_OK;
    case OPT_TOKENS: in->tokens = a->value; return CMD_OK;
    case OPT_CHAT: in->chat = a->value; return CMD_OK;
    case OPT_SYSTEM: in->system = a->value; return CMD_OK;
    case OPT_NO_THINK: in->no_think = 1; return CMD_OK;
    case OPT_SPECIAL: in->special = 1; return CMD_OK;
    case OPT_NO_VERIFY: in->no_verify = 1; return CMD_OK;
    case OPT_THREADS: return take_int32(a, 1024, &in->threads);
    case OPT_ISA: return take_isa(in, a->value);
    case OPT_KV: return take_kv(in, a->value);
    case OPT_CHUNK:
        if (strcmp(a->value, "all") == 0) {
            in->chunk = -1;
            return CMD_OK;
        }
        return take_int32(a, INT32_MAX, &in->chunk);
    default: return complain(CMD_USAGE, "%s is not an option here", a->option);
    }
}

int input_check(const input *in)
{
    int n = (in->text != NULL) + (in->tokens != NULL) + (in->chat != NULL);
    if (n != 1)
        return complain(CMD_USAGE, "give %s of --%s, --tokens and --chat",
                        n ? "only one" : "one", in->text_name);
    if (in->special && !in->text)
        return complain(CMD_USAGE, "--special needs --%s", in->text_name);
    if ((in->system || in->no_think) && !in->chat)
        return complain(CMD_USAGE, "%s needs --chat",
                        in->system ? "--system" : "--no-think");
    return CMD_OK;
}

/* --------------------------------------------------------------- model and context */

int input_open_model(const input *in, const char *path, qsae_model **model)
{
    qsae_error err;
    qsae_open_options options;
    memset(&options, 0, sizeof options);
    options.isa = in->isa;
    options.verify = !in->no_verify;
    if (qsae_model_open(path, &options, model, &err) != QSAE_OK)
        return complain_library(path, &err);
    qsae_model_info info;
    qsae_model_get_info(*model, &info);
    if (info.n_layers == 0)
        return complain(CMD_FAILED, "%.300s: the file has only a tokenizer, no weights",
                        path);
    return CMD_OK;
}

int32_t input_threads(const input *in, const qsae_model *model)
{
    qsae_model_info info;
    if (in->threads)
        return in->threads;
    qsae_model_get_info(model, &info);
    long n = info.file_size < SMALL_MODEL ? 1 : sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > 1024 ? 1024 : (int32_t)n;
}

int input_context(const input *in, const qsae_model *model, size_t n_ctx,
                  size_t n_prompt, qsae_ctx **ctx, size_t *chunk)
{
    qsae_error err;
    qsae_ctx_options options;
    if (n_ctx > INT32_MAX)
        return complain(CMD_FAILED, "%zu tokens are more than a context can hold",
                        n_ctx);
    size_t n = in->chunk < 0 ? n_prompt : in->chunk ? (size_t)in->chunk : 64;
    if (n > n_prompt)
        n = n_prompt;
    memset(&options, 0, sizeof options);
    options.n_ctx = (int32_t)n_ctx;
    options.n_batch = (int32_t)n;
    options.n_threads = input_threads(in, model);
    options.kv_type = in->kv;
    if (qsae_ctx_create(model, &options, ctx, &err) != QSAE_OK)
        return complain_library(NULL, &err);
    *chunk = n;
    return CMD_OK;
}

/* -------------------------------------------------------------------------- tokens */

/* "1,2,3", blanks around numbers allowed; ids [cap] may be NULL to count only. */
static int parse_ids(const char *s, int32_t vocab_size, int32_t *ids, size_t *n)
{
    *n = 0;
    for (;;) {
        char number[16];
        int64_t v;
        s += strspn(s, " \t\r\n");
        size_t len = strcspn(s, ", \t\r\n");
        if (len == 0 || len >= sizeof number)
            return complain(
                CMD_USAGE,
                "--tokens: '%.*s' is not a token id (number %zu of the list)",
                (int)(len < 40 ? len : 40), s, *n + 1);
        memcpy(number, s, len);
        number[len] = '\0';
        int code = args_integer("--tokens", number, 0, vocab_size - 1, &v);
        if (code != CMD_OK)
            return code;
        if (ids)
            ids[*n] = (int32_t)v;
        ++*n;
        s += len;
        s += strspn(s, " \t\r\n");
        if (*s == '\0')
            return CMD_OK;
        if (*s++ != ',')
            return complain(CMD_USAGE,
                            "--tokens: no comma after number %zu of the list", *n);
    }
}

static qsae_status run_tokenizer(const input *in, const qsae_model *model, int32_t *ids,
                                 size_t cap, size_t *n, qsae_error *err)
{
    qsae_message messages[2];
    size_t count = 0;
    memset(messages, 0, sizeof messages);
    if (in->text)
        return qsae_tokenize(model, in->text, strlen(in->text),
                             in->special ? QSAE_TOK_SPECIAL : 0, ids, cap, n, err);
    if (in->system) {
        messages[count].role = "system";
        messages[count].content = in->system;
        messages[count++].content_len = strlen(in->system);
    }
    messages[count].role = "user";
    messages[count].content = in->chat;
    messages[count++].content_len = strlen(in->chat);
    return qsae_chat_tokens(model, messages, count,
                            in->no_think ? QSAE_CHAT_NO_THINK : 0, ids, cap, n, err);
}

/* The first pass, without a buffer, only counts. */
static int count_ids(const input *in, const qsae_model *model, int32_t vocab_size,
                     size_t *n)
{
    qsae_error err;
    *n = 0;
    if (in->tokens)
        return parse_ids(in->tokens, vocab_size, NULL, n);
    qsae_status s = run_tokenizer(in, model, NULL, 0, n, &err);
    if (s != QSAE_OK && !(s == QSAE_E_LIMIT && *n > 0))
        return complain_library(NULL, &err);
    if (*n == 0)
        return complain(CMD_FAILED, "the text is empty: there is no token to evaluate");
    return CMD_OK;
}

int input_ids(const input *in, const qsae_model *model, int32_t **ids, size_t *n)
{
    qsae_error err;
    qsae_model_info info;
    qsae_model_get_info(model, &info);
    int code = count_ids(in, model, info.vocab_size, n);
    if (code != CMD_OK)
        return code;
    size_t cap = *n;
    int32_t *list = cap <= SIZE_MAX / sizeof *list ? malloc(cap * sizeof *list) : NULL;
    if (!list)
        return complain(CMD_FAILED, "out of memory for %zu tokens", cap);
    if (in->tokens)
        code = parse_ids(in->tokens, info.vocab_size, list, n);
    else if (run_tokenizer(in, model, list, cap, n, &err) != QSAE_OK)
        code = complain_library(NULL, &err);
    for (size_t i = 0; code == CMD_OK && i < *n; i++)
        if (list[i] < 0 || list[i] >= info.vocab_size)
            code = complain(CMD_FAILED, "the tokenizer gave token %d; the model has %d",
                            (int)list[i], (int)info.vocab_size);
    if (code != CMD_OK) {
        free(list);
        return code;
    }
    *ids = list;
    return CMD_OK;
}

/* ---------------------------------------------------------------------------- SAEs */

int sae_check_model(const char *path, const qsae_sae *sae, const qsae_model *model)
{
    qsae_model_info m;
    qsae_sae_info s;
    qsae_model_get_info(model, &m);
    qsae_sae_get_info(sae, &s);
    if (s.layer_in >= m.n_layers || s.layer_out >= m.n_layers)
        return complain(
            CMD_FAILED, "%.300s: the SAE is for layer %d, the model has layers 0..%d",
            path, (int)(s.layer_in > s.layer_out ? s.layer_in : s.layer_out),
            (int)m.n_layers - 1);
    size_t width = qsae_site_width(model, s.site_in);
    if (width != (size_t)s.d_in)
        return complain(CMD_FAILED,
                        "%.300s: the SAE reads rows of %d, %s of the model has %zu",
                        path, (int)s.d_in, qsae_site_name(s.site_in), width);
    return CMD_OK;
}
