/* EleutherAI sparsify: HOOKPOINT/{cfg.json, sae.safetensors}.
 *
 * Followed: eai-sparsify 1.3.3 sparse_coder.py and fused_encoder.py: z = max(E x + b,
 * 0), where x -= b_dec unless cfg transcode; topk keeps the k largest of z, groupmax
 * the largest of each of k groups of consecutive features; y = sum f_i D_i + b_dec (+
 * W_skip x, on the x that was not subtracted from). multi_topk concerns training only.
 * What is here is that forward pass in f32; on a GPU sparsify computes it in bf16.
 *
 * A hookpoint is the path of a module, layers.N or layers.N.mlp, and only the folder's
 * name says it: an SAE reads and writes the module's output, a transcoder (cfg
 * transcode) reads its input. Transcoders from before sparsify 1.1 (2025-02) were
 * trained with the subtraction, and nothing in their files tells. */

#ifndef _XOPEN_SOURCE
#define _XOPEN_SOURCE 700 /* realpath */
#endif

#include "sae_source.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const known_keys[] = {
    "activation",
    "d_in",
    "expansion_factor",
    "k",
    "multi_topk",
    "normalize_decoder",
    "num_latents",
    "skip_connection",
    "signed",
    "transcode",
    NULL,
};

/* The hookpoint in the folder's name, or, of layers.3/seed1, in that of the one
 * above. */
static void hookpoint(const sae_source *s, char *out, size_t cap)
{
    char *full = realpath(s->unit->folder, NULL); /* so that "." has a name too */
    char *last = full ? strrchr(full, '/') : NULL;
    if (last && strncmp(last + 1, "seed", 4) == 0) {
        *last = 0;
        last = strrchr(full, '/');
    }
    snprintf(out, cap, "%.200s", last ? last + 1 : s->unit->folder);
    free(full);
}

static int read_place(sae_source *s, int transcode)
{
    char name[256];
    int site = -1, layer = -1, in;
    hookpoint(s, name, sizeof name);
    sae_parse_hook(name, &site, &layer);
    in = !transcode                ? site
         : site == QSAE_MLP_OUT    ? QSAE_MLP_INPUT
         : site == QSAE_RESID_POST ? QSAE_RESID_PRE
                                   : -1; /* no site is the input of self_attn */
    if (site >= 0)
        qfile_meta_add(&s->lines, "place.hookpoint", "%s, from the folder's name",
                       name_z(name).text);
    if (sae_set_place(s, 0, in, layer, "the folder's name", name))
        return -1;
    if (!transcode)
        return sae_same_place(s);
    return sae_set_place(s, 1, site, layer, "the folder's name", name) ||
           sae_check_places(s);
}

static int read_activation(sae_source *s)
{
    const json_value *v = sae_get(s, s->cfg, "activation"),
                     *k = sae_get(s, s->cfg, "k");
    int64_t n = 0;
    int multi = 0, normalize = 0;
    if (v && !sae_is_text(v, "topk") && !sae_is_text(v, "groupmax"))
        return sae_bad_config(s, "activation is %s; topk and groupmax are supported",
                              sae_text(v).text);
    /* absent: from before there was another than topk */
    s->record.activation =
        sae_is_text(v, "groupmax") ? QSAE_ACT_GROUPMAX : QSAE_ACT_TOPK;
    if (!json_int(k, &n) || n < 1)
        return sae_bad_config(s, "k is %s, it must be a whole number in 1..%u (d_sae)",
                              sae_text(k).text, s->record.d_sae);
    if (sae_get_bool(s, "multi_topk", &multi) ||
        sae_get_bool(s, "normalize_decoder", &normalize))
        return -1;
    return sae_set_k(s, n, "k");
}

/* d_in, and num_latents or (0: it is not said) d_in expansion_factor */
static int check_sizes(sae_source *s)
{
    const qsae_sae_record *r = &s->record;
    const json_value *d = sae_get(s, s->cfg, "d_in"),
                     *f = sae_get(s, s->cfg, "num_latents"),
                     *e = sae_get(s, s->cfg, "expansion_factor");
    int64_t x = 0;
    if (!json_int(d, &x) || x != (int64_t)r->d_in)
        return sae_bad_config(s, "d_in is %s, tensor b_dec has %u", sae_text(d).text,
                              r->d_in);
    int64_t features = 0, factor;
    if (f && (!json_int(f, &features) || features < 0))
        return sae_bad_config(s, "num_latents is %s, it must be a whole number",
                              sae_text(f).text);
    if (features == 0) {
        if (!json_int(e, &factor) || factor < 1 || factor > SAE_MAX_D_SAE)
            return sae_bad_config(s,
                                  "num_latents is 0 and expansion_factor %s: the "
                                  "number of features is not said",
                                  sae_text(e).text);
        features = factor * (int64_t)r->d_in;
    }
    if (features != (int64_t)r->d_sae)
        return sae_bad_config(s, "it implies %lld features, tensor encoder.bias has %u",
                              (long long)features, r->d_sae);
    return 0;
}

static int read_sparsify(sae_source *s)
{
    qsae_sae_record *r = &s->record;
    int transcode = 0, skip = 0, has_sign = 0; /* signed: of old files */
    sae_describe(s, "EleutherAI sparsify");
    if (!s->cfg)
        return sae_bad_file(s, "sparsify's cfg.json is not beside it");
    if (sae_check_keys(s, s->cfg, known_keys) || sae_get_bool(s, "signed", &has_sign) ||
        sae_get_bool(s, "transcode", &transcode) ||
        sae_get_bool(s, "skip_connection", &skip))
        return -1;
    if (has_sign)
        return sae_bad_config(s, "signed is true: features with signs are not "
                                 "supported");
    s->class_name = transcode ? "Transcoder" : "SparseCoder";
    qfile_meta_add(&s->lines, "source.class", "%s%s", s->class_name,
                   skip ? " with skip_connection" : "");
    if (sae_sizes(s, "encoder.bias", "b_dec") || check_sizes(s) || read_activation(s) ||
        sae_take(s, "encoder.weight", r->d_sae, r->d_in, &s->enc) ||
        sae_take(s, "W_dec", r->d_sae, r->d_in, &s->dec) ||
        sae_take(s, "encoder.bias", 0, r->d_sae, &s->b_enc) ||
        sae_take(s, "b_dec", 0, r->d_in, &s->b_dec))
        return -1;
    if (skip && sae_take(s, "W_skip", r->d_in, r->d_in, &s->skip))
        return -1;
    s->fold.subtract = !transcode;
    s->fold.subtract_name = "sparsify, not transcode";
    return sae_no_strangers(s) || read_place(s, transcode);
}

static int is_sparsify(const sae_source *s)
{
    if (!s->unit->config)
        return sae_tensor(s, "encoder.weight") && sae_tensor(s, "W_dec");
    return s->cfg && strcmp(s->unit->config, "cfg.json") == 0 &&
           !sae_get(s, s->cfg, "d_sae") && !sae_get(s, s->cfg, "architecture") &&
           (sae_get(s, s->cfg, "expansion_factor") ||
            sae_get(s, s->cfg, "num_latents") || sae_get(s, s->cfg, "transcode"));
}

const sae_family sae_sparsify = {"sparsify", is_sparsify, read_sparsify};
