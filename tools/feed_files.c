/* Activations from the files of a harvest (see harvest.h). */

#include "convert.h"
#include "feed_impl.h"
#include "harvest.h"
#include "tensors.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define AT_ONCE 1024 /* rows */

void harvest_shard_path(const char *folder, uint64_t shard, char *out, size_t cap)
{
    snprintf(out, cap, "%.3900s/shard-%05" PRIu64 ".safetensors", folder, shard);
}

void harvest_tensor_name(const feed_stream *s, char *out, size_t cap)
{
    snprintf(out, cap, "layers.%d.%s", (int)s->layer, qsae_site_name(s->site));
}

/* ---- harvest.json ---- */

typedef struct manifest {
    harvest *h;
    json_doc *doc;
    const json_value *root;
    char *err;
    size_t cap;
} manifest;

static int bad(manifest *m, const char *what)
{
    return err_set(m->err, m->cap, "%.200s/harvest.json: %s is missing or wrong",
                   m->h->folder, what);
}

static int get_size(manifest *m, const json_value *object, const char *key,
                    uint64_t most, uint64_t *out)
{
    int64_t v;
    if (!json_int(json_get(m->doc, object, key), &v) || v < 0 || (uint64_t)v > most)
        return bad(m, key);
    *out = (uint64_t)v;
    return 0;
}

static int get_hash(manifest *m, const char *key, uint64_t *out)
{
    const json_value *v = json_get(m->doc, m->root, key);
    char *end;
    if (!v || v->type != JSON_STRING || v->len != 16 ||
        strspn(v->str, "0123456789abcdef") != 16)
        return bad(m, key);
    *out = strtoull(v->str, &end, 16);
    return 0;
}

static int get_streams(manifest *m)
{
    const json_value *list = json_get(m->doc, m->root, "streams");
    harvest *h = m->h;
    if (!list || list->type != JSON_ARRAY || list->n == 0 ||
        list->n > HARVEST_MAX_STREAMS)
        return bad(m, "streams");
    h->streams = calloc(list->n, sizeof *h->streams);
    if (!h->streams)
        return err_set(m->err, m->cap, "out of memory");
    for (const json_value *v = json_first(m->doc, list); v; v = json_next(m->doc, v)) {
        feed_stream *s = &h->streams[h->n_streams++];
        const json_value *name = json_get(m->doc, v, "site");
        uint64_t layer, width;
        int site =
            name && name->type == JSON_STRING ? qsae_site_from_name(name->str) : -1;
        if (site < 0 || site >= QSAE_SITE_COUNT)
            return bad(m, "a stream's site");
        if (get_size(m, v, "layer", 511, &layer) ||
            get_size(m, v, "width", 1 << 20, &width) || width == 0)
            return bad(m, "a stream");
        *s = (feed_stream){(qsae_site)site, (int32_t)layer, (size_t)width};
    }
    return 0;
}

static int get_shards(manifest *m)
{
    const json_value *list = json_get(m->doc, m->root, "shards");
    harvest *h = m->h;
    if (!list || list->type != JSON_ARRAY || list->n == 0)
        return bad(m, "shards");
    h->shard_rows = calloc(list->n, sizeof *h->shard_rows);
    if (!h->shard_rows)
        return err_set(m->err, m->cap, "out of memory");
    for (const json_value *v = json_first(m->doc, list); v; v = json_next(m->doc, v)) {
        int64_t n;
        if (!json_int(v, &n) || n < 1 || n > INT32_MAX)
            return bad(m, "a shard's number of rows");
        h->shard_rows[h->n_shards++] = (uint64_t)n;
        h->rows += (uint64_t)n;
    }
    return 0;
}

static int get_excluded(manifest *m)
{
    const json_value *list = json_get(m->doc, m->root, "exclude");
    harvest *h = m->h;
    if (!list || list->type != JSON_ARRAY || list->n > HARVEST_MAX_EXCLUDE)
        return bad(m, "exclude");
    for (const json_value *v = json_first(m->doc, list); v; v = json_next(m->doc, v)) {
        int64_t id;
        if (!json_int(v, &id) || id < 0 || id > INT32_MAX)
            return bad(m, "an excluded token");
        h->exclude[h->n_exclude++] = (int32_t)id;
    }
    return 0;
}

static int read_manifest(manifest *m)
{
    harvest *h = m->h;
    const json_value *v = json_get(m->doc, m->root, "format");
    if (!v || v->type != JSON_STRING || strcmp(v->str, "qsae-harvest-1") != 0)
        return bad(m, "format");
    if (!json_bool(json_get(m->doc, m->root, "bf16"), &h->bf16))
        return bad(m, "bf16");
    return get_streams(m) || get_shards(m) || get_excluded(m) ||
                   get_size(m, m->root, "context", 65536, &h->context) ||
                   get_size(m, m->root, "skip_first", 65536, &h->skip_first) ||
                   get_size(m, m->root, "exclude_classes", 1 << CORPUS_CLASSES,
                            &h->exclude_classes) ||
                   get_hash(m, "text", &h->text_hash) ||
                   get_hash(m, "model", &h->model_hash)
               ? -1
               : 0;
}

int harvest_open(harvest *h, const char *folder, char *err, size_t cap)
{
    char why[ERR_CAP];
    memset(h, 0, sizeof *h);
    manifest m = {h, NULL, NULL, err, cap};
    h->folder = malloc(strlen(folder) + 1);
    if (!h->folder)
        return err_set(err, cap, "out of memory");
    strcpy(h->folder, folder);
    if (convert_read_json(folder, "harvest.json", &m.doc, why, sizeof why)) {
        harvest_close(h);
        return err_set(err, cap, "%s is no finished harvest: %.300s",
                       name_z(folder).text, why);
    }
    m.root = json_root(m.doc);
    int status = read_manifest(&m);
    json_free(m.doc);
    if (status)
        harvest_close(h);
    return status;
}

void harvest_close(harvest *h)
{
    free(h->folder);
    free(h->streams);
    free(h->shard_rows);
    memset(h, 0, sizeof *h);
}

/* ---- rows ---- */

typedef struct files_feed {
    feed base;
    const harvest *h;
    tensor_file *file; /* of shard `open`; NULL: none */
    uint64_t open;
    const tensor **streams;                            /* [n_streams] in it */
    int32_t *tokens, *positions, *sequences, *classes; /* [rows of the shard] */
} files_feed;

static void close_shard(files_feed *m)
{
    tensors_close(m->file);
    free(m->tokens);
    free(m->positions);
    free(m->sequences);
    free(m->classes);
    m->file = NULL;
    m->tokens = m->positions = m->sequences = m->classes = NULL;
}

static int32_t *read_ints(files_feed *m, const char *name, uint64_t n, char *err,
                          size_t cap)
{
    const tensor *t = tensors_find(m->file, name);
    int32_t *out = NULL;
    if (!t || !tensor_is_int(t) || t->n != n || !(out = malloc((size_t)n * 4))) {
        err_set(err, cap, "%s is missing or has not %" PRIu64 " numbers", name, n);
        return NULL;
    }
    for (uint64_t i = 0; i < n; i++) {
        int64_t v;
        if (tensor_int(t, i, &v, err, cap) || v < 0 || v > INT32_MAX) {
            free(out);
            err_set(err, cap, "%s: number %" PRIu64 " is out of range", name, i);
            return NULL;
        }
        out[i] = (int32_t)v;
    }
    return out;
}

static int read_shard(files_feed *m, char *err, size_t cap)
{
    uint64_t n = m->h->shard_rows[m->open];
    for (size_t i = 0; i < m->base.o.n_streams; i++) {
        const feed_stream *s = &m->base.o.streams[i];
        char name[64];
        harvest_tensor_name(s, name, sizeof name);
        const tensor *t = m->streams[i] = tensors_find(m->file, name);
        if (!t || t->rank != 2 || t->shape[0] != n || t->shape[1] != s->width)
            return err_set(err, cap, "%s is missing or not [%" PRIu64 ", %zu]", name, n,
                           s->width);
    }
    m->tokens = read_ints(m, "tokens", n, err, cap);
    m->positions = m->tokens ? read_ints(m, "positions", n, err, cap) : NULL;
    m->sequences = m->positions ? read_ints(m, "sequences", n, err, cap) : NULL;
    m->classes = m->sequences ? read_ints(m, "classes", n, err, cap) : NULL;
    return m->classes ? 0 : -1;
}

static int open_shard(files_feed *m, uint64_t shard, char *err, size_t cap)
{
    char path[4096];
    if (m->file && m->open == shard)
        return 0;
    close_shard(m);
    harvest_shard_path(m->h->folder, shard, path, sizeof path);
    m->file = tensors_open(path, err, cap);
    m->open = shard;
    if (m->file && read_shard(m, err, cap)) {
        close_shard(m);
        return err_prefix(err, cap, "%s", name_z(path).text);
    }
    return m->file ? 0 : -1;
}

/* Whole sequences: as many as there is room for, none after `most` is reached. */
static size_t rows_here(const files_feed *m, size_t most)
{
    uint64_t at = m->base.at.row, end = at, left = m->h->shard_rows[m->open];
    while (end < left && end - at < most) {
        uint64_t next = end + 1;
        while (next < left && m->sequences[next] == m->sequences[next - 1])
            next++;
        if (next - at > m->base.room)
            break;
        end = next;
    }
    return (size_t)(end - at);
}

static int files_next(feed *f, size_t most, feed_part *part, char *err, size_t cap)
{
    files_feed *m = (files_feed *)f;
    if (f->at.shard == m->h->n_shards)
        return 0;
    if (open_shard(m, f->at.shard, err, cap))
        return -1;
    size_t n = rows_here(m, most);
    if (n == 0)
        return err_set(err, cap, "shard %" PRIu64 ": a sequence of more than %zu rows",
                       f->at.shard, f->room);
    for (size_t i = 0; i < f->o.n_streams; i++) {
        uint64_t w = f->o.streams[i].width;
        if (tensor_f32(m->streams[i], f->at.row * w, n * w, f->rows[i], err, cap))
            return -1;
    }
    for (size_t i = 0; i < n; i++) {
        uint64_t at = f->at.row + i;
        f->ids[i] = m->tokens[at];
        f->positions[i] = m->positions[at];
        f->classes[i] = (uint8_t)m->classes[at];
        f->sequence[i] = (uint32_t)m->sequences[at];
    }
    part->n = part->n_tokens = n;
    f->at.row += n;
    if (f->at.row == m->h->shard_rows[m->open]) {
        f->at.shard++;
        f->at.row = 0;
    }
    return 1;
}

static int files_rewind(feed *f, char *err, size_t cap)
{
    (void)err, (void)cap;
    f->at.shard = f->at.row = 0;
    return 0;
}

static int files_seek(feed *f, const feed_cursor *to, char *err, size_t cap)
{
    const harvest *h = ((files_feed *)f)->h;
    if (to->shard < h->n_shards ? to->row < h->shard_rows[to->shard]
                                : to->shard == h->n_shards && to->row == 0)
        return 0;
    return err_set(err, cap, "the harvest has no row %" PRIu64 " in shard %" PRIu64,
                   to->row, to->shard);
}

static void files_close(feed *f)
{
    close_shard((files_feed *)f);
    free(((files_feed *)f)->streams);
}

feed *feed_open_files(const harvest *h, const feed_options *o, char *err, size_t cap)
{
    files_feed *m = calloc(1, sizeof *m);
    if (!m) {
        err_set(err, cap, "out of memory");
        return NULL;
    }
    m->base.o = *o;
    m->base.next = files_next;
    m->base.rewind = files_rewind;
    m->base.seek = files_seek;
    m->base.close = files_close;
    m->h = h;
    m->streams = calloc(o->n_streams + 1, sizeof *m->streams);
    size_t room = (size_t)(h->context > AT_ONCE ? h->context : AT_ONCE);
    if (!m->streams || feed_make_room(&m->base, room, err, cap)) {
        feed_close(&m->base);
        return NULL;
    }
    return &m->base;
}
