/* Which SAEs `qsae train` makes: layers times places times targets; a slice of them. */

#include "cmd.h"
#include "train.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- lanes and members ---- */

static void name_lane(train_lane *l)
{
    if (l->site == l->site_out)
        snprintf(l->name, sizeof l->name, "%s.%d", qsae_site_name((qsae_site)l->site),
                 (int)l->layer);
    else
        snprintf(l->name, sizeof l->name, "%s-%s.%d",
                 qsae_site_name((qsae_site)l->site),
                 qsae_site_name((qsae_site)l->site_out), (int)l->layer);
}

static int by_place(const void *a, const void *b)
{
    const train_lane *x = a, *y = b;
    if (x->layer != y->layer)
        return x->layer < y->layer ? -1 : 1;
    if (x->site != y->site)
        return x->site < y->site ? -1 : 1;
    return x->site_out < y->site_out ? -1 : x->site_out > y->site_out;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const train_member *)a)->name, ((const train_member *)b)->name);
}

static int all_lanes(train_run *r, const char *wanted, int32_t n_layers)
{
    const train_settings *s = &r->s;
    r->lanes = calloc((size_t)n_layers * s->places.n + 1, sizeof *r->lanes);
    if (!r->lanes)
        return complain(CMD_FAILED, "out of memory");
    for (int32_t layer = 0; layer < n_layers; layer++)
        for (size_t i = 0; wanted[layer] && i < s->places.n; i++) {
            train_lane *l = &r->lanes[r->n_lanes++];
            l->layer = layer;
            l->site = s->places.list[i].site;
            l->site_out = s->places.list[i].site_out;
            name_lane(l);
        }
    qsort(r->lanes, r->n_lanes, sizeof *r->lanes, by_place);
    for (size_t i = 1; i < r->n_lanes; i++)
        if (by_place(&r->lanes[i - 1], &r->lanes[i]) == 0)
            return complain(CMD_USAGE, "%s is asked for twice", r->lanes[i].name);
    return r->n_lanes ? CMD_OK : complain(CMD_USAGE, "no layer is chosen");
}

static int all_members(train_run *r)
{
    const train_settings *s = &r->s;
    size_t per = s->n_targets ? s->n_targets : 1;
    r->members = calloc(r->n_lanes * per + 1, sizeof *r->members);
    if (!r->members)
        return complain(CMD_FAILED, "out of memory");
    for (size_t i = 0; i < r->n_lanes; i++) {
        train_lane *l = &r->lanes[i];
        l->member = r->n_members;
        l->n = per;
        for (size_t t = 0; t < per; t++) {
            train_member *m = &r->members[r->n_members++];
            m->target = s->n_targets ? s->targets[t] : 0;
            if (per > 1)
                snprintf(m->name, sizeof m->name, "%s.l0_%g", l->name, m->target);
            else
                snprintf(m->name, sizeof m->name, "%s", l->name);
        }
        qsort(r->members + l->member, per, sizeof *r->members, by_name);
    }
    r->n_all_members = r->n_members;
    return CMD_OK;
}

/* ---- slices ---- */

/* What is divided: layers, since the model runs for a layer; of a harvest, members. */
static size_t n_units(const train_run *r)
{
    size_t n = 0;
    if (r->s.from)
        return r->n_members;
    for (size_t i = 0; i < r->n_lanes; i++)
        n += i == 0 || r->lanes[i].layer != r->lanes[i - 1].layer;
    return n;
}

/* Keeps units first .. end - 1. */
static void keep(train_run *r, size_t first, size_t end)
{
    size_t unit = 0, lanes = 0, members = 0;
    int32_t layer = r->lanes[0].layer;
    for (size_t i = 0; i < r->n_lanes; i++) {
        train_lane l = r->lanes[i];
        size_t from = l.member, n = l.n;
        unit += !r->s.from && l.layer != layer;
        layer = l.layer;
        l.member = members;
        l.n = 0;
        for (size_t m = 0; m < n; m++) {
            if (unit >= first && unit < end)
                r->members[members + l.n++] = r->members[from + m];
            unit += r->s.from != NULL;
        }
        members += l.n;
        if (l.n > 0)
            r->lanes[lanes++] = l;
    }
    r->n_lanes = lanes;
    r->n_members = members;
}

static int slice(train_run *r)
{
    uint64_t n = n_units(r), of = r->s.n_slices, i = r->s.slice;
    if (of == 0)
        return CMD_OK;
    if (of > n)
        return complain(CMD_USAGE,
                        "--only %" PRIu64 "/%" PRIu64 ": there are %" PRIu64 " %s to "
                        "divide",
                        i, of, n, r->s.from ? "SAEs" : "layers");
    keep(r, (size_t)(n * (i - 1) / of), (size_t)(n * i / of));
    return CMD_OK;
}

/* ---- streams ---- */

static size_t stream(feed_stream *list, size_t *n, int site, int32_t layer)
{
    for (size_t i = 0; i < *n; i++)
        if ((int)list[i].site == site && list[i].layer == layer)
            return i;
    list[*n].site = (qsae_site)site;
    list[*n].layer = layer;
    return (*n)++;
}

/* The width of a stream of the harvest; 0: it has it not. */
static size_t harvested(const train_run *r, const feed_stream *s)
{
    for (size_t i = 0; i < r->harvest.n_streams; i++)
        if (r->harvest.streams[i].site == s->site &&
            r->harvest.streams[i].layer == s->layer)
            return r->harvest.streams[i].width;
    return 0;
}

static int streams(train_run *r)
{
    free(r->streams);
    r->n_streams = 0;
    r->streams = calloc(2 * r->n_lanes + 1, sizeof *r->streams);
    if (!r->streams)
        return complain(CMD_FAILED, "out of memory");
    for (size_t i = 0; i < r->n_lanes; i++) {
        train_lane *l = &r->lanes[i];
        l->in = stream(r->streams, &r->n_streams, l->site, l->layer);
        l->out = stream(r->streams, &r->n_streams, l->site_out, l->layer);
    }
    for (size_t i = 0; i < r->n_streams; i++) {
        feed_stream *s = &r->streams[i];
        s->width = r->model ? qsae_site_width(r->model, s->site) : harvested(r, s);
        if (s->width == 0)
            return complain(CMD_FAILED, "%.300s has no rows of %s", r->s.from,
                            feed_stream_name(s).text);
    }
    return CMD_OK;
}

static int layer_harvested(const train_run *r, int32_t layer)
{
    for (size_t i = 0; i < r->harvest.n_streams; i++)
        if (r->harvest.streams[i].layer == layer)
            return 1;
    return 0;
}

int train_make_suite(train_run *r)
{
    char wanted[TRAIN_MAX_LAYERS];
    int32_t n_layers = 0;
    memset(wanted, 0, sizeof wanted);
    if (r->model) {
        qsae_model_info info;
        qsae_model_get_info(r->model, &info);
        n_layers = info.n_layers;
    }
    for (size_t i = 0; i < r->harvest.n_streams; i++) /* those that were harvested */
        if (r->harvest.streams[i].layer >= n_layers)
            n_layers = r->harvest.streams[i].layer + 1;
    if (n_layers > TRAIN_MAX_LAYERS)
        return complain(CMD_FAILED, "%d layers, train takes at most %d", (int)n_layers,
                        TRAIN_MAX_LAYERS);
    int code = places_layers(r->s.layers, n_layers, wanted);
    for (int32_t l = 0; r->s.from && strcmp(r->s.layers, "all") == 0 && l < n_layers;
         l++)
        wanted[l] = (char)layer_harvested(r, l);
    if (code == CMD_OK)
        code = all_lanes(r, wanted, n_layers);
    if (code == CMD_OK)
        code = all_members(r);
    if (code == CMD_OK)
        code = streams(r);
    if (code != CMD_OK)
        return code;
    r->n_all_streams = r->n_streams;
    for (size_t i = 0; i < r->n_streams; i++)
        r->all_width += r->streams[i].width;
    code = slice(r);
    for (size_t i = 0; i < r->n_lanes; i++)
        for (size_t m = 0; m < r->lanes[i].n; m++)
            r->members[r->lanes[i].member + m].lane = i;
    return code == CMD_OK ? streams(r) : code;
}

/* From the whole suite: what a slice is trained on must not depend on the slice. */
size_t train_buffer_rows(const train_run *r)
{
    uint64_t n = r->s.buffer;
    if (r->s.buffer_size) {
        n = r->s.buffer_size / 4 / r->all_width;
        n = n > r->s.context ? n - r->s.context : 0;
    }
    return (size_t)(n < r->steps * r->s.batch ? n : r->steps * r->s.batch);
}

qsae_trainer_options train_options(const train_run *r, const train_member *m)
{
    const train_settings *s = &r->s;
    const train_lane *l = &r->lanes[m->lane];
    qsae_trainer_options o = s->base;
    o.d_in = r->streams[l->in].width;
    o.d_out = r->streams[l->out].width;
    o.max_rows = (size_t)s->batch;
    if (o.arch == QSAE_TRAIN_JUMPRELU)
        o.l0_target = (float)m->target;
    else
        o.k = m->target;
    o.prefixes = s->prefixes;
    o.n_prefixes = s->n_prefixes;
    if (l->site != l->site_out)
        o.no_b_dec_input = 1; /* c lives where the output does */
    o.scale_in = l->scale_in;
    o.scale_out = l->scale_out;
    o.steps = r->steps;
    o.seed = shuffle_seed(s->seed, m->name);
    return o;
}
