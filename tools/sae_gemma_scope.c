/* Gemma-Scope 1 (params.npz) and 2 (config.json, params.safetensors).
 *
 * Followed: the Gemma-Scope report's JumpReLU, max(z, 0) where z > theta, no
 * subtraction; SAELens 6.54 loading/pretrained_sae_loaders.py gemma_2 and gemma_3;
 * circuit-tracer 0.5.0 load_gemma_scope_transcoder and load_gemma_scope_2_transcoder.
 * W_enc [d, F], W_dec [F, d], b_enc, b_dec, threshold [F]; in 2 w_enc and w_dec, and a
 * transcoder may have affine_skip_connection [d_in, d_out], which adds x times it.
 * Nothing is folded. Sites are named by the repository alone: --site; the layer is that
 * of a folder layer_L. */

#ifndef _XOPEN_SOURCE
#define _XOPEN_SOURCE 700 /* realpath */
#endif

#include "sae_source.h"

#include <stdlib.h>
#include <string.h>

static const char *const known_keys[] = {
    "affine_connection",
    "architecture",
    "hf_hook_point_in",
    "hf_hook_point_out",
    "l0",
    "model_name",
    "type",
    "width",
    NULL,
};

/* The layer in the path, ".../layer_20/..." or ".../layer_20_width_16k_l0_small/...";
 * -1: none. */
static int layer_in_path(const sae_source *s, int *embedding)
{
    char *full = realpath(s->unit->folder, NULL);
    int layer = -1;
    *embedding = 0;
    for (char *part = full ? strtok(full, "/") : NULL; part; part = strtok(NULL, "/")) {
        size_t n = strncmp(part, "layer_", 6) == 0 ? strspn(part + 6, "0123456789") : 0;
        if (n && n < 4 && (part[6 + n] == 0 || part[6 + n] == '_'))
            layer = atoi(part + 6);
        *embedding |= strcmp(part, "embedding") == 0;
    }
    free(full);
    return layer < CONVERT_MAX_LAYERS ? layer : -1;
}

static int read_place(sae_source *s)
{
    int embedding, layer = layer_in_path(s, &embedding);
    if (embedding)
        return sae_bad_file(s, "it is in a folder called embedding: SAEs of the "
                               "embedding are scaled otherwise and not supported");
    if (layer >= 0 && s->o->layer < 0)
        qfile_meta_add(&s->lines, "place.layer", "%d, from a folder's name", layer);
    if (sae_set_place(s, 0, -1, layer, "the site", NULL))
        return -1;
    if (s->skip.file && s->o->site_out < 0)
        return sae_bad_file(s, "it has affine_skip_connection, so it is a transcoder: "
                               "--site-out SITE says where it writes");
    return sae_same_place(s);
}

static int read_gemma_scope(sae_source *s)
{
    qsae_sae_record *r = &s->record;
    int two = sae_tensor(s, "w_enc") != NULL;
    const tensor *dec = sae_tensor(s, two ? "w_dec" : "W_dec");
    s->class_name = two ? "Gemma-Scope 2" : "Gemma-Scope";
    sae_describe(s, s->class_name);
    if (s->cfg) {
        const json_value *arch = sae_get(s, s->cfg, "architecture");
        if (sae_check_keys(s, s->cfg, known_keys))
            return -1;
        if (!sae_is_text(arch, "jump_relu"))
            return sae_bad_config(s, "architecture is %s; only jump_relu is supported",
                                  sae_text(arch).text);
    }
    if (dec && dec->rank == 3)
        return sae_bad_file(s,
                            "%s has shape %s: a cross-layer transcoder, which is not "
                            "supported",
                            dec->name, tensor_shape(dec).text);
    if (sae_sizes(s, "b_enc", "b_dec") || sae_not_square(s))
        return -1;
    r->activation = QSAE_ACT_JUMPRELU;
    s->fold.gated_by_relu = 1;
    if (sae_take_transposed(s, two ? "w_enc" : "W_enc", r->d_sae, r->d_in, &s->enc) ||
        sae_take(s, two ? "w_dec" : "W_dec", r->d_sae, r->d_out, &s->dec) ||
        sae_take(s, "b_enc", 0, r->d_sae, &s->b_enc) ||
        sae_take(s, "b_dec", 0, r->d_out, &s->b_dec) ||
        sae_take(s, "threshold", 0, r->d_sae, &s->theta))
        return -1;
    if (sae_tensor(s, "affine_skip_connection") &&
        sae_take_transposed(s, "affine_skip_connection", r->d_out, r->d_in, &s->skip))
        return -1;
    return sae_no_strangers(s) || read_place(s);
}

static int is_gemma_scope(const sae_source *s)
{
    const tensor *e = sae_tensor(s, "W_enc"), *b = sae_tensor(s, "b_enc");
    if (s->unit->config)
        return s->cfg && strcmp(s->unit->config, "config.json") == 0 &&
               (sae_is_text(sae_get(s, s->cfg, "architecture"), "jump_relu") ||
                sae_get(s, s->cfg, "hf_hook_point_in") ||
                sae_get(s, s->cfg, "affine_connection"));
    if (sae_tensor(s, "w_enc") && sae_tensor(s, "w_dec"))
        return 1;
    return tensors_container(s->file) == TENSORS_NPZ && e && b && e->rank == 2 &&
           e->shape[1] == b->n && sae_tensor(s, "threshold");
}

const sae_family sae_gemma_scope = {"gemma-scope", is_gemma_scope, read_gemma_scope};
