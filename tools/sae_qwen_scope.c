/* Qwen-Scope: layer{n}.sae.pt, a dict of W_enc [F, d], W_dec [d, F], b_enc [F], b_dec
 * [d].
 *
 * Followed: the model cards of Qwen/SAE-Res-* (encode: the k largest of W_enc x +
 * b_enc, no subtraction of b_dec) and SAELens 6.54 loading/pretrained_sae_loaders.py,
 * qwen_scope (max(z, 0) after the selection). The card keeps a selected value that is
 * negative, SAELens and this program make it 0; there is none unless fewer than k are
 * positive.
 *
 * Nothing says k but the repository's name, so --k is required, unless a number k lies
 * beside the tensors. The file is the output
 * of block n: the layer is taken from a name layer{n}.sae.pt. Nothing is folded. */

#ifndef _XOPEN_SOURCE
#define _XOPEN_SOURCE 700 /* realpath */
#endif

#include "sae_source.h"

#include <stdlib.h>
#include <string.h>

/* A folder on the way to the file is called ...-L0_50: what to ask about. */
static void k_advice(const sae_source *s, char *out, size_t cap)
{
    char *full = realpath(s->unit->folder, NULL);
    const char *at = full ? strstr(full, "-L0_") : NULL;
    int k = at ? atoi(at + 4) : 0;
    snprintf(out, cap,
             "--k K says how many features are kept, the number after L0_ in "
             "the name of the repository");
    if (k > 0 && k < 100000)
        snprintf(
            out, cap,
            "--k K says how many features are kept; a folder's name ends in L0_%d: "
            "--k %d?",
            k, k);
    free(full);
}

/* The number k beside the tensors of a .pt; 0: there is none. */
static int stored_k(sae_source *s, int64_t *k)
{
    const char *text =
        tensors_container(s->file) == TENSORS_TORCH ? tensors_meta(s->file, "k") : NULL;
    char *end;
    *k = 0;
    if (!text || convert_ignored(s->o, "k"))
        return 0;
    *k = strtoll(text, &end, 10);
    if (*end || *k < 1 || *k > (int64_t)s->record.d_sae)
        return sae_bad_file(s, "k is %s, it must be a whole number in 1..%u (d_sae)",
                            name_z(text).text, s->record.d_sae);
    return 0;
}

static int read_qwen_scope(sae_source *s)
{
    qsae_sae_record *r = &s->record;
    int layer = sae_number_in(sae_file_name(s), "layer", ".sae.pt");
    char advice[200];
    int64_t k;
    s->class_name = "Qwen-Scope";
    sae_describe(s, "Qwen-Scope");
    if (sae_sizes(s, "b_enc", "b_dec") || sae_not_square(s))
        return -1;
    r->activation = QSAE_ACT_TOPK;
    if (sae_take(s, "W_enc", r->d_sae, r->d_in, &s->enc) ||
        sae_take_transposed(s, "W_dec", r->d_sae, r->d_in, &s->dec) ||
        sae_take(s, "b_enc", 0, r->d_sae, &s->b_enc) ||
        sae_take(s, "b_dec", 0, r->d_in, &s->b_dec) || stored_k(s, &k))
        return -1;
    if (!s->o->k && !k) {
        k_advice(s, advice, sizeof advice);
        return sae_bad_file(s, "k is not in the file; %s", advice);
    }
    if (sae_set_k(s, k, k ? "k" : "--k") || sae_no_strangers(s))
        return -1;
    if (layer >= 0 && s->o->layer < 0)
        qfile_meta_add(&s->lines, "place.layer", "%d, from the file's name", layer);
    return sae_set_place(s, 0, QSAE_RESID_POST, layer, "the file's name",
                         sae_file_name(s)) ||
           sae_same_place(s);
}

/* Without a configuration; that a .pt of these four is not of another family is sure,
 * of a .safetensors it is not: circuit-tracer's files were once the same. */
static int is_qwen_scope(const sae_source *s)
{
    const tensor *e = sae_tensor(s, "W_enc"), *d = sae_tensor(s, "W_dec"),
                 *b = sae_tensor(s, "b_enc"), *c = sae_tensor(s, "b_dec");
    return !s->unit->config && !*s->prefix && tensors_count(s->file) == 4 && e && d &&
           b && c && e->rank == 2 && d->rank == 2 && e->shape[0] == b->n &&
           e->shape[1] == c->n && d->shape[0] == c->n && d->shape[1] == b->n &&
           (tensors_container(s->file) == TENSORS_TORCH ||
            tensors_container(s->file) == TENSORS_SAFETENSORS);
}

const sae_family sae_qwen_scope = {"qwen-scope", is_qwen_scope, read_qwen_scope};
