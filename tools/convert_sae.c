/* SAEs of any family to one .qsae file: its members, their names, the file. */

#ifndef _XOPEN_SOURCE
#define _XOPEN_SOURCE 700 /* realpath */
#endif

#include "sae_source.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "check.h"

/* ---- reading one ---- */

/* Options that are for some SAEs only. */
static int check_options(const sae_source *s)
{
    const convert_options *o = s->o;
    const char *circuit = sae_circuit_tracer.name, *dl = sae_dictionary_learning.name;
    if (o->k && !s->record.k)
        return err_set(
            s->err, s->cap,
            "--k %d has no place: this SAE has no number of features to keep", o->k);
    if (o->norm_scale > 0 && strcmp(s->family, sae_saelens.name) != 0)
        return err_set(s->err, s->cap, "--norm-scale has no place: it is for SAELens");
    if (o->decoder_layout && strcmp(s->family, circuit) != 0)
        return err_set(s->err, s->cap, "--decoder-layout has no place: it is for %s",
                       circuit);
    if (o->negative_thresholds && !s->fold.gated_by_relu)
        return err_set(
            s->err, s->cap,
            "--negative-thresholds has no place: it is for JumpReLU SAEs that "
            "have a threshold for each feature");
    if (o->dict_class && strcmp(s->family, dl) != 0)
        return err_set(s->err, s->cap, "--class has no place: it is for %s", dl);
    return 0;
}

/* The name that a member gets: --name, the folder's, or that of the file if the SAE is
 * a file of its own with a name of its own. */
static int name_member(sae_source *s)
{
    static const char *const common[] = {"ae", "final", "params", "sae", "sae_weights"};
    char stem[512];
    int own = !s->unit->config;
    snprintf(stem, sizeof stem, "%s", sae_file_name(s));
    char *dot = strchr(stem, '.');
    if (dot && dot > stem)
        *dot = 0;
    for (size_t i = 0; i < sizeof common / sizeof common[0]; i++)
        own &= strcmp(stem, common[i]) != 0;
    return convert_name(own ? stem : s->unit->folder, s->o, s->record.name,
                        sizeof s->record.name, s->err, s->cap);
}

/* The number after `before` in one of the folders on the way to the SAE, the nearest one;
 * *folder is its name. -1: none. */
static int number_in_path(char *path, const char *before, const char **folder)
{
    for (char *slash; (slash = strrchr(path, '/')) != NULL; *slash = 0) {
        const char *at = strstr(slash + 1, before);
        size_t n = strlen(before), digits = at ? strspn(at + n, "0123456789") : 0;
        if (digits == 0 || digits > 5)
            continue;
        *folder = slash + 1;
        return atoi(at + n);
    }
    return -1;
}

/* Does a folder's name say another site or layer than the configuration? */
static void note_name(const sae_source *s, const char *name)
{
    static const char *const layers[] = {"layers.", "layer_", "blocks.", "layer"};
    static const int sites[] = {QSAE_RESID_PRE, QSAE_RESID_MID, QSAE_RESID_POST,
                                QSAE_ATTN_OUT, QSAE_MLP_OUT};
    const qsae_sae_record *r = &s->record;
    for (size_t i = 0; i < sizeof sites / sizeof sites[0]; i++)
        if (strstr(name, qsae_site_name((qsae_site)sites[i])) &&
            (int)r->site_in != sites[i] && (int)r->site_out != sites[i])
            convert_note("a folder is called %s, but the SAE is taken to read %s",
                         name_z(name).text, qsae_site_name((qsae_site)r->site_in));
    for (size_t i = 0; i < sizeof layers / sizeof layers[0]; i++) {
        const char *at = strstr(name, layers[i]);
        size_t n = strlen(layers[i]);
        if (!at || at[n] < '0' || at[n] > '9')
            continue;
        if (atoi(at + n) != (int)r->layer_in && atoi(at + n) != (int)r->layer_out)
            convert_note("a folder is called %s, but the SAE is taken to read layer %u",
                         name_z(name).text, r->layer_in);
        return;
    }
}

/* What folders' names say is not followed where something else says it too; but where
 * they contradict, one of the two may be a mistake. */
static void note_folders(const sae_source *s)
{
    const char *folder = NULL;
    char *full = realpath(s->unit->folder, NULL), *slash;
    for (int i = 0; i < 2 && full && s->cfg && (slash = strrchr(full, '/')); i++) {
        note_name(s, slash + 1);
        *slash = 0;
    }
    free(full);
    full = s->o->k ? realpath(s->unit->folder, NULL) : NULL;
    int k = full ? number_in_path(full, "L0_", &folder) : -1;
    if (k > 0 && k != s->o->k)
        convert_note("a folder is called %s, but --k is %d: --k is followed",
                     name_z(folder).text, s->o->k);
    free(full);
}

static int read_one(sae_source *s)
{
    if (sae_open(s))
        return -1;
    if (sae_prepare(s) || check_options(s) || name_member(s))
        return -1;
    if (s->record.d_sae == s->record.d_in)
        convert_note("d_sae = d_in = %u: which way the matrices lie is taken from the "
                     "family's layout (%s)",
                     s->record.d_in, s->family);
    note_folders(s);
    return qfile_meta_finish(&s->lines, s->err, s->cap);
}

/* ---- members ---- */

static int by_place(const void *a, const void *b)
{
    const qsae_sae_record *x = &((const sae_source *)a)->record,
                          *y = &((const sae_source *)b)->record;
    const uint32_t p[4] = {x->layer_in, x->site_in, x->layer_out, x->site_out};
    const uint32_t r[4] = {y->layer_in, y->site_in, y->layer_out, y->site_out};
    for (int i = 0; i < 4; i++)
        if (p[i] != r[i])
            return p[i] < r[i] ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int same_names(const sae_source *list, int n, int *a, int *b)
{
    for (*a = 0; *a < n; ++*a)
        for (*b = *a + 1; *b < n; ++*b)
            if (strcmp(list[*a].record.name, list[*b].record.name) == 0)
                return 1;
    return 0;
}

/* "resid_post.3", or with the name it has, "resid_post.3.trainer_0" */
static void name_by_site(sae_source *s, const char *own)
{
    qsae_sae_record *r = &s->record;
    size_t n = own ? strlen(own) : 0;
    if (n > 75) /* cut at a character's boundary */
        for (n = 75; n > 0 && ((unsigned char)own[n] & 0xC0) == 0x80;)
            n--;
    memset(r->name, 0, sizeof r->name);
    snprintf(r->name, sizeof r->name, "%s.%u%s%.*s",
             qsae_site_name((qsae_site)r->site_in), r->layer_in, n ? "." : "", (int)n,
             own ? own : "");
}

/* Names are unique in a file. Where folders are called alike, as layer_3/sae and
 * layer_4/sae, members are called after their site; where a layer has several, as
 * layer_3/trainer_0 and layer_3/trainer_1, after both. */
static int name_members(sae_source *list, int n, char *err, size_t cap)
{
    int a, b;
    if (!same_names(list, n, &a, &b))
        return 0;
    char(*own)[sizeof list->record.name] = malloc((size_t)n * sizeof *own);
    if (!own)
        return err_set(err, cap, "out of memory");
    for (int i = 0; i < n; i++) {
        memcpy(own[i], list[i].record.name, sizeof own[i]);
        name_by_site(&list[i], NULL);
    }
    if (same_names(list, n, &a, &b))
        for (int i = 0; i < n; i++)
            name_by_site(&list[i], own[i]);
    free(own);
    if (!same_names(list, n, &a, &b))
        return 0;
    return err_set(
        err, cap,
        "%s and %s have one folder name and one site, so nothing tells them apart",
        name_z(list[a].unit->folder).text, name_z(list[b].unit->folder).text);
}

/* SAEs of two families in one folder are more likely a mistake than a suite. */
static int check_mixture(const sae_source *list, int n, char *err, size_t cap)
{
    char shown[ERR_CAP / 2] = "";
    int mixed = 0;
    for (int i = 0; i < n; i++) {
        size_t used = strlen(shown);
        mixed |= strcmp(list[i].family, list[0].family) != 0;
        if (i == 0 || strcmp(list[i].family, list[i - 1].family) != 0)
            snprintf(shown + used, sizeof shown - used, "%s%s (%s)", i ? ", " : "",
                     name_z(list[i].unit->weights).text, list[i].family);
    }
    if (!mixed)
        return 0;
    return err_set(err, cap, "a file holds SAEs of one family; these are mixed: %s",
                   shown);
}

static int write_file(sae_source *list, int n, const convert_options *o, char *err,
                      size_t cap)
{
    qfile *q = qfile_create(o->out, QSAE_KIND_SAE, (uint32_t)n, err, cap);
    int status = q ? 0 : -1;
    for (int i = 0; i < n && !status; i++) {
        memcpy(qfile_record(q, (uint32_t)i), &list[i].record, sizeof list[i].record);
        status = sae_declare(&list[i], q, 1 + (uint32_t)i, err, cap);
    }
    for (int i = 0; i < n && !status; i++) {
        status = sae_write(&list[i], q);
        if (status && n > 1)
            err_prefix(err, cap, "%s", name_z(list[i].unit->folder).text);
    }
    if (!status)
        return qfile_finish(q, qfile_check_sae, err, cap);
    qfile_abort(q);
    return -1;
}

static void report(const sae_source *s, const char *out)
{
    const qsae_sae_record *r = &s->record;
    printf("%s: SAE \"%s\", %s of layer %u", out, name_z(r->name).text,
           qsae_site_name((qsae_site)r->site_in), r->layer_in);
    if (r->site_out != r->site_in || r->layer_out != r->layer_in)
        printf(" to %s of layer %u", qsae_site_name((qsae_site)r->site_out),
               r->layer_out);
    printf(", %u features of %u, %s", r->d_sae, r->d_in,
           qsae_activation_name((qsae_activation)r->activation));
    if (r->k)
        printf(" %u", r->k);
    printf(", %s weights, %s units\n", s->type == QSAE_TYPE_BF16 ? "bf16" : "f32",
           r->feature_unit == QSAE_UNIT_RAW ? "raw" : "normalized");
    for (const char *p = s->lines.text; *p; p += strcspn(p, "\n") + 1)
        if (strncmp(p, "folded.", 7) == 0 || strncmp(p, "place.", 6) == 0)
            printf("  %.*s\n", (int)strcspn(p, "\n"), p);
}

/* ---- the conversion ---- */

/* `path`: the input, if there is one only. A message names the SAE's folder unless that
 * is the input. */
static int convert_units(const sae_unit *units, int n, const char *path,
                         const convert_options *o, char *err, size_t cap)
{
    sae_source *list = calloc((size_t)n, sizeof *list);
    int status = list ? 0 : err_set(err, cap, "out of memory");
    if (!status && n > 65536)
        status = err_set(err, cap, "%d SAEs, a file holds at most 65536", n);
    if (!status && n > 1 &&
        (o->name || o->layer >= 0 || o->layer_out >= 0 || o->norm_scale > 0))
        status = err_set(err, cap,
                         "--name, --layer, --layer-out and --norm-scale go with one "
                         "SAE, here are %d",
                         n);
    for (int i = 0; i < n && !status; i++) {
        sae_source *s = &list[i];
        s->unit = &units[i];
        s->o = o;
        s->err = err;
        s->cap = cap;
        status = read_one(s);
        int named = path && (strcmp(units[i].folder, path) == 0 ||
                             strcmp(units[i].weights, path) == 0);
        if (status && (n > 1 || !named))
            err_prefix(err, cap, "%s", name_z(units[i].folder).text);
    }
    if (!status)
        status = check_mixture(list, n, err, cap) || name_members(list, n, err, cap);
    for (int i = 0; i < n && !status; i++)
        status = check_fits(o->check, &list[i].record, err, cap);
    if (!status) {
        qsort(list, (size_t)n, sizeof *list, by_place);
        status = write_file(list, n, o, err, cap);
    }
    for (int i = 0; list && i < n; i++) {
        if (!status)
            report(&list[i], o->out);
        sae_close(&list[i]);
    }
    free(list);
    return status ? -1 : 0;
}

int convert_sae(const char *const *paths, int n, const convert_options *o, char *err,
                size_t cap)
{
    sae_unit *units = NULL;
    int n_units = 0, status = 0;
    for (int i = 0; i < n && !status; i++)
        status = sae_find(paths[i], &units, &n_units, err, cap);
    if (!status)
        status = convert_units(units, n_units, n == 1 ? paths[0] : NULL, o, err, cap);
    sae_units_free(units, n_units);
    return status;
}
