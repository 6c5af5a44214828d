/* What there is to evaluate (see eval.h). */

#define _POSIX_C_SOURCE 200809L

#include "eval.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "cmd.h"

#define DEFAULT_CONTEXT 512
#define BATCH           64 /* tokens whose changed logits are held at once */
#define VERSION         1  /* of the arithmetic: part of the fingerprint */

static int no_memory(void)
{
    return complain(CMD_FAILED, "out of memory");
}

const char *eval_group_name(int group)
{
    return group == GROUP_KEPT ? "kept"
           : group == GROUP_ALL
               ? "all"
               : corpus_class_name((corpus_class)(group - GROUP_CLASS));
}

/* Room for one more item, zeroed, at the end of a list of n; NULL if there is none. */
static void *append(void *list, size_t *n, size_t size)
{
    char **p = list;
    char *more = realloc(*p, (*n + 1) * size);
    if (!more)
        return NULL;
    *p = more;
    memset(more + *n * size, 0, size);
    return more + (*n)++ * size;
}

/* ------------------------------------------------------------------------- families */

/* A joint splice: SAEs of one variant, at most one for each place. */
typedef struct group {
    char name[128];
    uint32_t *list; /* [n] records */
    size_t n;
    int twice; /* two SAEs of one layer */
} group;

/* What a name says beyond its site and layer: ".l0_40" of "resid_post.2.l0_40". */
static const char *variant(const qsae_sae_record *r)
{
    char begin[64];
    int n = snprintf(begin, sizeof begin, "%s.%u",
                     qsae_site_name((qsae_site)r->site_in), (unsigned)r->layer_in);
    return strncmp(r->name, begin, (size_t)n) == 0 && (!r->name[n] || r->name[n] == '.')
               ? r->name + n
               : "";
}

static int add_to_group(const eval *e, group **groups, size_t *n, const char *what,
                        uint32_t record)
{
    qsae_sae_record r = qread_sae(&e->q, record);
    char name[sizeof(*groups)->name];
    snprintf(name, sizeof name, "joint.%s%.80s", what, name_z(variant(&r)).text);
    group *g = NULL;
    for (size_t i = 0; i < *n && !g; i++)
        if (strcmp((*groups)[i].name, name) == 0)
            g = &(*groups)[i];
    if (!g && !(g = append(groups, n, sizeof *g)))
        return no_memory();
    memcpy(g->name, name, sizeof name);
    for (size_t i = 0; i < g->n; i++) {
        qsae_sae_record other = qread_sae(&e->q, g->list[i]);
        g->twice |= other.site_out == r.site_out && other.layer_out == r.layer_out;
    }
    uint32_t *at = append(&g->list, &g->n, sizeof *at);
    if (!at)
        return no_memory();
    *at = record;
    return CMD_OK;
}

static int find_groups(const eval *e, const uint32_t *records, size_t n, group **groups,
                       size_t *n_groups)
{
    int code = CMD_OK;
    for (size_t i = 0; i < n && (e->o->joint & JOINT_SITE) && code == CMD_OK; i++) {
        qsae_sae_record r = qread_sae(&e->q, records[i]);
        code = add_to_group(e, groups, n_groups, qsae_site_name((qsae_site)r.site_in),
                            records[i]);
    }
    for (size_t i = 0; i < n && (e->o->joint & JOINT_ALL) && code == CMD_OK; i++)
        code = add_to_group(e, groups, n_groups, "all", records[i]);
    return code;
}

/* Groups that cannot be made leave the list, and a word why. */
static int drop_groups(eval *e, group *groups, size_t *n)
{
    size_t kept = 0, len = 0;
    char text[2048] = "";
    for (size_t i = 0; i < *n; i++) {
        group g = groups[i];
        if (g.n > 1 && !g.twice) {
            groups[i] = groups[kept];
            groups[kept++] = g;
            continue;
        }
        if (len < sizeof text - 256)
            len += (size_t)snprintf(
                text + len, sizeof text - len, "%s%s: %s", len ? "; " : "", g.name,
                g.twice ? "two SAEs of one site and layer" : "only one SAE");
        free(g.list);
        groups[i].list = NULL;
    }
    *n = kept;
    if (len && !(e->skipped = strdup(text)))
        return no_memory();
    return CMD_OK;
}

/* ---------------------------------------------------------------- spots, places, ... */

static size_t spot_of(eval *e, qsae_site site, int layer)
{
    for (size_t i = 0; i < e->n_spots; i++)
        if (e->spots[i].site == site && e->spots[i].layer == layer)
            return i;
    eval_spot *s = append(&e->spots, &e->n_spots, sizeof *s);
    if (!s)
        return SIZE_MAX;
    s->site = site;
    s->layer = layer;
    s->width = qsae_site_width(e->model, site);
    s->rows = malloc(e->context * s->width * sizeof *s->rows);
    s->norm = malloc(e->context * sizeof *s->norm);
    return s->rows && s->norm && sinks_begin(&s->sinks) == 0 ? e->n_spots - 1
                                                             : SIZE_MAX;
}

static size_t place_of(eval *e, const qsae_sae_info *s)
{
    size_t in = spot_of(e, s->site_in, s->layer_in);
    size_t out = in == SIZE_MAX ? in : spot_of(e, s->site_out, s->layer_out);
    for (size_t i = 0; i < e->n_places; i++)
        if (e->places[i].in == in && e->places[i].out == out)
            return i;
    eval_place *p =
        out == SIZE_MAX ? NULL : append(&e->places, &e->n_places, sizeof *p);
    if (!p)
        return SIZE_MAX;
    p->in = in;
    p->out = out;
    p->d = e->spots[out].width;
    p->excluded = malloc(e->context);
    p->mean = calloc(p->d, sizeof *p->mean);
    return p->excluded && p->mean ? e->n_places - 1 : SIZE_MAX;
}

static int fits_model(const eval *e, const qsae_sae_info *s)
{
    size_t out = qsae_site_width(e->model, s->site_out);
    if (out != (size_t)s->d_out)
        return complain(CMD_FAILED,
                        "%.200s: the SAE %s writes rows of %d, %s of the model has %zu",
                        e->o->sae, name_z(s->name).text, (int)s->d_out,
                        qsae_site_name(s->site_out), out);
    return CMD_OK;
}

/* The member of that record, opened if it was not; *at receives its number. */
static int member_of(eval *e, uint32_t record, size_t *at)
{
    for (*at = 0; *at < e->n_members; ++*at)
        if (e->members[*at].index == record)
            return CMD_OK;
    eval_member *m = append(&e->members, &e->n_members, sizeof *m);
    if (!m)
        return no_memory();
    m->index = record;
    int code = sae_open_member(&e->o->in, e->o->sae, record, &m->sae);
    if (code == CMD_OK)
        code = sae_check_model(e->o->sae, m->sae, e->model);
    if (code != CMD_OK)
        return code;
    qsae_sae_get_info(m->sae, &m->info);
    code = fits_model(e, &m->info);
    if (code == CMD_OK && (m->place = place_of(e, &m->info)) == SIZE_MAX)
        code = no_memory();
    if (code == CMD_OK &&
        sae_apply_begin(&m->apply, m->sae, input_threads(&e->o->in, e->model)))
        code = no_memory();
    return code;
}

static int same_places(const eval_ablation *a, const size_t *places, size_t n)
{
    return a->n == n && memcmp(a->places, places, n * sizeof *places) == 0;
}

static size_t ablation_of(eval *e, const size_t *places, size_t n)
{
    for (size_t i = 0; i < e->n_ablations; i++)
        if (same_places(&e->ablations[i], places, n))
            return i;
    eval_ablation *a = append(&e->ablations, &e->n_ablations, sizeof *a);
    if (!a || !(a->places = malloc(n * sizeof *places)))
        return SIZE_MAX;
    memcpy(a->places, places, n * sizeof *places);
    a->n = n;
    for (int i = 0; i < 2; i++) {
        a->ce[i] = malloc(e->context * sizeof *a->ce[i]);
        a->kl[i] = malloc(e->context * sizeof *a->kl[i]);
        if (!a->ce[i] || !a->kl[i])
            return SIZE_MAX;
    }
    return e->n_ablations - 1;
}

static int add_unit(eval *e, eval_kind kind, const char *name, const uint32_t *records,
                    size_t n)
{
    int code = CMD_OK;
    eval_unit *u = append(&e->units, &e->n_units, sizeof *u);
    if (!u)
        return no_memory();
    u->kind = kind;
    u->name = name ? strdup(name) : NULL;
    u->members = malloc(n * sizeof *u->members);
    size_t *places = malloc(n * sizeof *places);
    if (!u->members || !places || (name && !u->name))
        code = no_memory();
    for (size_t i = 0; i < n && code == CMD_OK; i++) {
        code = member_of(e, records[i], &u->members[i]);
        if (code == CMD_OK)
            places[i] = e->members[u->members[i]].place;
        u->n_members = i + 1;
    }
    if (code == CMD_OK && (u->ablation = ablation_of(e, places, n)) == SIZE_MAX)
        code = no_memory();
    free(places);
    return code;
}

static int add_family(eval *e, uint32_t record)
{
    int code = add_unit(e, UNIT_SAE, NULL, &record, 1);
    if (code != CMD_OK)
        return code;
    eval_member *m = &e->members[e->units[e->n_units - 1].members[0]];
    if (m->info.is_transcoder) /* the controls are made of what is read */
        return CMD_OK;
    if (e->o->controls & CONTROL_RANDOM)
        code = add_unit(e, UNIT_RANDOM, NULL, &record, 1);
    if (code == CMD_OK && (e->o->controls & CONTROL_PCA)) {
        e->places[m->place].needs_products = 1;
        code = add_unit(e, UNIT_PCA, NULL, &record, 1);
    }
    return code;
}

static int add_joint(eval *e, const group *g)
{
    int code = add_unit(e, UNIT_JOINT, g->name, g->list, g->n);
    for (size_t i = 0; i < g->n && code == CMD_OK; i++) {
        eval_member *m = &e->members[e->units[e->n_units - 1].members[i]];
        if (!m->info.is_transcoder || m->live)
            continue;
        m->live = malloc(e->context * (size_t)m->info.d_out * sizeof *m->live);
        if (!m->live)
            code = no_memory();
    }
    return code;
}

/* Families first .. last - 1 of the SAEs, then the joint splices. */
static int add_families(eval *e, const uint32_t *records, size_t n, const group *groups,
                        size_t n_groups)
{
    const eval_options *o = e->o;
    size_t all = e->n_families = n + n_groups, parts = (size_t)o->n_slices;
    size_t first = 0, last = all;
    int code = CMD_OK;
    if (o->n_slices) {
        if (parts > all)
            return complain(CMD_FAILED,
                            "--only: %zu slices of %zu SAEs and joint splices: at most "
                            "one for each",
                            parts, all);
        first = all * (size_t)(o->slice - 1) / parts;
        last = all * (size_t)o->slice / parts;
    }
    for (size_t i = first; i < last && code == CMD_OK; i++)
        code = i < n ? add_family(e, records[i]) : add_joint(e, &groups[i - n]);
    return code;
}

static int choose(eval *e)
{
    uint32_t n_all = e->q.head.n_records;
    uint32_t *records = malloc(((size_t)n_all + 1) * sizeof *records);
    group *groups = NULL;
    size_t n = 0, n_groups = 0;
    if (!records)
        return no_memory();
    for (uint32_t i = 0; i < n_all; i++)
        if (sae_choice_fits(&e->q, i, &e->o->choice))
            records[n++] = i;
    int code = n ? find_groups(e, records, n, &groups, &n_groups)
                 : sae_choice_complain(&e->q, &e->o->choice);
    size_t n_found = n_groups;
    if (code == CMD_OK)
        code = drop_groups(e, groups, &n_groups);
    if (code == CMD_OK)
        code = add_families(e, records, n, groups, n_groups);
    for (size_t i = 0; i < (code == CMD_OK ? n_groups : n_found); i++)
        free(groups[i].list);
    free(groups);
    free(records);
    return code;
}

/* ----------------------------------------------------------------------------- sums */

static size_t take(eval *e, size_t n)
{
    size_t at = e->n_sums;
    e->n_sums += n;
    return at;
}

size_t eval_unit_d(const eval *e, const eval_unit *u)
{
    return e->places[e->members[u->members[0]].place].d;
}

static int lay_out(eval *e)
{
    e->at_classes = take(e, CORPUS_CLASSES);
    e->at_orig = take(e, 2 * (1 + CORPUS_CLASSES));
    for (size_t i = 0; i < e->n_places; i++) {
        eval_place *p = &e->places[i];
        p->sums = take(e, 1 + p->d + (p->needs_products ? p->d * p->d : 0));
    }
    for (size_t i = 0; i < e->n_members; i++)
        e->members[i].sums = take(e, 2);
    for (size_t i = 0; i < e->n_units; i++) {
        eval_unit *u = &e->units[i];
        size_t rows =
            u->kind == UNIT_JOINT ? 0 : N_GROUPS * fidelity_size(eval_unit_d(e, u));
        u->sums = take(e, rows + N_GROUPS * P_SUMS);
        if (u->kind == UNIT_SAE) {
            u->fired = take(e, 2 * (size_t)e->members[u->members[0]].info.d_sae);
            u->self = take(e, 2);
        }
        u->seq = e->seq_width;
        e->seq_width += S_SUMS;
    }
    e->sums = calloc(e->n_sums, sizeof *e->sums);
    return e->sums ? CMD_OK : no_memory();
}

static int make_room(eval *e)
{
    size_t widest = 1, n = e->context, vocab = (size_t)e->info.vocab_size;
    for (size_t i = 0; i < e->n_spots; i++)
        if (e->spots[i].width > widest)
            widest = e->spots[i].width;
    e->n_batch = n < BATCH ? n : BATCH;
    e->ids = malloc(n * sizeof *e->ids);
    e->classes = malloc(n);
    e->logits = malloc(n * vocab * sizeof *e->logits);
    e->other = malloc(e->n_batch * vocab * sizeof *e->other);
    e->log_sum = malloc(n * sizeof *e->log_sum);
    e->ce = malloc(n * sizeof *e->ce);
    e->top = malloc(n * sizeof *e->top);
    e->made = malloc(n * widest * sizeof *e->made);
    e->extra =
        malloc((n > SAE_APPLY_ROWS ? n : SAE_APPLY_ROWS) * widest * sizeof *e->extra);
    e->l0 = malloc(n * sizeof *e->l0);
    e->new_ce = malloc(n * sizeof *e->new_ce);
    e->new_kl = malloc(n * sizeof *e->new_kl);
    e->same = malloc(n);
    if (!e->ids || !e->classes || !e->logits || !e->other || !e->log_sum || !e->ce ||
        !e->top || !e->made || !e->extra || !e->l0 || !e->new_ce || !e->new_kl ||
        !e->same)
        return complain(CMD_FAILED,
                        "out of memory for the logits of %zu tokens; less: --context",
                        n);
    return CMD_OK;
}

/* ---------------------------------------------------------------------- fingerprint */

static int model_hash(const eval *e, uint64_t *hash)
{
    qsae_file_header h;
    FILE *f = fopen(e->o->model, "rb");
    size_t n = f ? fread(&h, sizeof h, 1, f) : 0;
    if (f)
        fclose(f);
    if (n != 1)
        return complain(CMD_FAILED, "%.300s: %s", e->o->model, strerror(errno));
    *hash = h.hash;
    return CMD_OK;
}

/* The hash of a file's index covers the hashes of all its tensors. */
static int set_fingerprint(eval *e)
{
    uint64_t model = 0;
    qsae_hash h;
    char text[512];
    int code = model_hash(e, &model);
    if (code != CMD_OK)
        return code;
    qsae_hash_begin(&h);
    int n = snprintf(
        text, sizeof text, "%d %016llx %016llx %016llx %lld %zu %llu %d %d %d %d ",
        VERSION, (unsigned long long)model, (unsigned long long)e->q.head.hash,
        (unsigned long long)corpus_fingerprint(e->text), (long long)e->o->tokens,
        e->context, (unsigned long long)e->o->seed, e->o->controls, e->o->joint,
        e->o->choice.site, e->o->choice.layer);
    qsae_hash_add(&h, text, (size_t)n);
    if (e->o->choice.name)
        qsae_hash_add(&h, e->o->choice.name, strlen(e->o->choice.name));
    e->fingerprint = qsae_hash_end(&h);
    return CMD_OK;
}

static int open_text(eval *e)
{
    char err[ERR_CAP];
    corpus_options c;
    memset(&c, 0, sizeof c);
    c.sources = e->o->data;
    c.n_sources = e->o->n_data;
    c.context = e->context;
    c.text_field = e->o->text_field;
    c.special = e->o->special;
    e->text = corpus_open(&c, e->model, err, sizeof err);
    return e->text ? CMD_OK : complain(CMD_FAILED, "--data: %s", err);
}

static int set_context(eval *e)
{
    size_t most = (size_t)e->info.max_positions;
    e->context = e->o->context ? (size_t)e->o->context : DEFAULT_CONTEXT;
    if (!e->o->context && e->context > most)
        e->context = most;
    if (e->context > most)
        return complain(CMD_FAILED, "--context %zu: the model has %zu positions",
                        e->context, most);
    return CMD_OK;
}

int eval_plan(eval *e, const eval_options *o)
{
    size_t chunk;
    memset(e, 0, sizeof *e);
    e->o = o;
    int code = input_open_model(&o->in, o->model, &e->model);
    if (code != CMD_OK)
        return code;
    qsae_model_get_info(e->model, &e->info);
    code = set_context(e);
    if (code == CMD_OK)
        code = open_text(e);
    if (code == CMD_OK)
        code = sae_index(&o->in, o->sae, &e->q);
    if (code == CMD_OK)
        code = set_fingerprint(e);
    if (code == CMD_OK)
        code = choose(e);
    if (code == CMD_OK)
        code = lay_out(e);
    if (code == CMD_OK)
        code = make_room(e);
    if (code == CMD_OK)
        code = input_context(&o->in, e->model, e->context, e->n_batch, &e->ctx, &chunk);
    return code;
}

static void free_lists(eval *e)
{
    for (size_t i = 0; i < e->n_spots; i++) {
        free(e->spots[i].rows);
        free(e->spots[i].norm);
        sinks_end(&e->spots[i].sinks);
    }
    for (size_t i = 0; i < e->n_places; i++) {
        free(e->places[i].excluded);
        free(e->places[i].mean);
        free(e->places[i].basis);
    }
    for (size_t i = 0; i < e->n_members; i++) {
        sae_apply_end(&e->members[i].apply);
        free(e->members[i].live);
        qsae_sae_close(e->members[i].sae);
    }
    for (size_t i = 0; i < e->n_units; i++) {
        free(e->units[i].name);
        free(e->units[i].members);
    }
    for (size_t i = 0; i < e->n_ablations; i++) {
        free(e->ablations[i].places);
        for (int k = 0; k < 2; k++) {
            free(e->ablations[i].ce[k]);
            free(e->ablations[i].kl[k]);
        }
    }
    for (size_t i = 0; i < e->n_randoms; i++)
        free(e->randoms[i].columns);
}

void eval_free(eval *e)
{
    qsae_ctx_destroy(e->ctx);
    free_lists(e);
    void *const rest[] = {e->spots,   e->places,  e->members, e->units,   e->ablations,
                          e->randoms, e->skipped, e->sums,    e->seq,     e->ids,
                          e->classes, e->logits,  e->other,   e->log_sum, e->ce,
                          e->top,     e->made,    e->extra,   e->l0,      e->new_ce,
                          e->new_kl,  e->same};
    for (size_t i = 0; i < sizeof rest / sizeof *rest; i++)
        free(rest[i]);
    corpus_close(e->text);
    qread_close(&e->q);
    qsae_model_close(e->model);
    memset(e, 0, sizeof *e);
}
