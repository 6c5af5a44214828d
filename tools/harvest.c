/* `qsae harvest`: activations of a text to files, once, for any number of trainings. */

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#ifndef QSAE_WITH_FORMAT
#define QSAE_WITH_FORMAT
#endif
#include "harvest.h"
#include "cmd.h"
#include "input.h"
#include "outfile.h"
#include "progress.h"
#include "qfile.h"
#include "qread.h"
#include "safetensors.h"
#include "sinks.h"
#include "places.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* clang-format off */
static const char usage[] =
    "Usage: qsae harvest MODEL.qsae --data FILE|DIR[:WEIGHT]... --sites S,... --layers L\n"
    "                    [options] -o DIR\n"
    "Runs the model over a text once and writes the activations to DIR, as\n"
    "shard-NNNNN.safetensors; `qsae train --from DIR` trains on them what it would have\n"
    "trained on the model, bit for bit (f32).\n"
    "\n"
    "  --sites S,...     resid_pre attn_z attn_out resid_mid mlp_input mlp_out resid_post\n"
    "  --layers L        0-27, or 3,5, or all\n"
    "  --data PATH[:W]   .txt, .jsonl or a folder, with its weight; may be repeated\n"
    "  --tokens N        rows; default one reading of the text, which is the most\n"
    "  --context N       tokens the model sees at once; default 1024, or what it can\n"
    "  --text-field F    of a line of JSON; --special: control tokens in texts are tokens\n"
    "  --skip-first N    tokens at the beginning of a sequence that are left out; default 1\n"
    "  --exclude X,...   token ids, or classes (text system user assistant template)\n"
    "  --type T          f32 (default) or bf16, rounded to nearest even\n"
    "  --shard-rows N    rows of a shard, which is held in memory; default 16384\n"
    "  --resume          go on behind the shards that are there\n"
    "  --threads N       default all processors, 1 for a model below 64 MB; --isa NAME\n"
    "  --no-verify       do not check the checksums of the model\n"
    "  --help            this text\n"
    "Interrupted (SIGINT, SIGTERM) it finishes nothing, loses at most one shard and exits\n"
    "with code 3.\n";
/* clang-format on */

enum {
    OPT_DATA = OPT_OWN,
    OPT_SITES,
    OPT_LAYERS,
    OPT_COUNT,
    OPT_CONTEXT,
    OPT_TEXT_FIELD,
    OPT_SKIP_FIRST,
    OPT_EXCLUDE,
    OPT_TYPE,
    OPT_SHARD_ROWS,
    OPT_RESUME,
    OPT_OUT
};

static const args_option option_table[] = {
    {"data", 0, OPT_DATA, ARGS_VALUE | ARGS_MANY},
    {"sites", 0, OPT_SITES, ARGS_VALUE},
    {"layers", 0, OPT_LAYERS, ARGS_VALUE},
    {"tokens", 0, OPT_COUNT, ARGS_VALUE},
    {"context", 0, OPT_CONTEXT, ARGS_VALUE},
    {"text-field", 0, OPT_TEXT_FIELD, ARGS_VALUE},
    {"special", 0, OPT_SPECIAL, 0},
    {"skip-first", 0, OPT_SKIP_FIRST, ARGS_VALUE},
    {"exclude", 0, OPT_EXCLUDE, ARGS_VALUE},
    {"type", 0, OPT_TYPE, ARGS_VALUE},
    {"shard-rows", 0, OPT_SHARD_ROWS, ARGS_VALUE},
    {"resume", 0, OPT_RESUME, 0},
    {"threads", 0, OPT_THREADS, ARGS_VALUE},
    {"isa", 0, OPT_ISA, ARGS_VALUE},
    {"no-verify", 0, OPT_NO_VERIFY, 0},
    {"out", 'o', OPT_OUT, ARGS_VALUE},
    {NULL, 0, 0, 0},
};

typedef struct harvest_run {
    input in;
    const char *model_path, *out, *layers, *text_field;
    const char **data; /* [n_data] */
    size_t n_data;
    places_list sites;
    places_excluded excluded;
    int64_t tokens, context, skip_first, shard_rows;
    int bf16, resume;
    qsae_model *model;
    corpus *text;
    feed *feed;
    feed_options options;
    feed_stream *streams; /* [n_streams] */
    size_t n_streams, room;
    uint64_t model_hash;
    char *settings;
    /* the shard that is being collected */
    float **rows;                                   /* [n_streams]: [room, width] */
    int32_t *ids, *positions, *sequences, *classes; /* [room] */
    size_t n;
    uint64_t *shard_rows_of; /* [n_shards] */
    size_t n_shards, cap_shards;
    progress shown;
} harvest_run;

static volatile int stop;

static void on_signal(int sig)
{
    stop = sig;
    signal(sig, SIG_DFL);
}

/* --------------------------------------------------------------------- command line */

static int take_option(void *run, const args *a, int id)
{
    harvest_run *r = run;
    switch (id) {
    case OPT_DATA: r->data[r->n_data++] = a->value; return CMD_OK;
    case OPT_SITES: return places_take(&r->sites, a, 0);
    case OPT_LAYERS: r->layers = a->value; return CMD_OK;
    case OPT_COUNT: return args_integer(a->option, a->value, 1, INT64_MAX, &r->tokens);
    case OPT_CONTEXT: return args_integer(a->option, a->value, 2, 65536, &r->context);
    case OPT_TEXT_FIELD: r->text_field = a->value; return CMD_OK;
    case OPT_SKIP_FIRST:
        return args_integer(a->option, a->value, 0, 65536, &r->skip_first);
    case OPT_EXCLUDE: return places_exclude(&r->excluded, a);
    case OPT_TYPE:
        r->bf16 = strcmp(a->value, "bf16") == 0;
        if (!r->bf16 && strcmp(a->value, "f32") != 0)
            return complain(CMD_USAGE, "--type: '%.60s' is none of f32 bf16", a->value);
        return CMD_OK;
    case OPT_SHARD_ROWS:
        return args_integer(a->option, a->value, 1, 1 << 26, &r->shard_rows);
    case OPT_RESUME: r->resume = 1; return CMD_OK;
    case OPT_OUT: r->out = a->value; return CMD_OK;
    default: return input_take(&r->in, a, id);
    }
}

static int check(const harvest_run *r)
{
    if (!r->model_path || !r->n_data || !r->sites.n || !r->layers || !r->out)
        return complain(CMD_USAGE, "harvest needs %s (see: qsae harvest --help)",
                        !r->model_path ? "MODEL.qsae"
                        : !r->n_data   ? "--data"
                        : !r->sites.n  ? "--sites"
                        : !r->layers   ? "--layers"
                                       : "-o DIR");
    return CMD_OK;
}

/* ------------------------------------------------------------------------ beginning */

static int hash_model(harvest_run *r)
{
    qread q;
    char err[ERR_CAP];
    if (qread_open(&q, r->model_path, err, sizeof err))
        return complain(CMD_FAILED, "%s", err);
    r->model_hash = q.head.hash;
    qread_close(&q);
    return CMD_OK;
}

static int list_streams(harvest_run *r)
{
    qsae_model_info info;
    qsae_model_get_info(r->model, &info);
    char *wanted = calloc((size_t)info.n_layers + 1, 1);
    r->streams =
        calloc((size_t)info.n_layers * QSAE_SITE_COUNT + 1, sizeof *r->streams);
    int code = wanted && r->streams ? places_layers(r->layers, info.n_layers, wanted)
                                    : complain(CMD_FAILED, "out of memory");
    for (int32_t l = 0; code == CMD_OK && l < info.n_layers; l++)
        for (int site = 0; wanted[l] && site < QSAE_SITE_COUNT; site++)
            for (size_t i = 0; i < r->sites.n; i++)
                if (r->sites.list[i].site == site) {
                    r->streams[r->n_streams++] = (feed_stream){
                        (qsae_site)site, l, qsae_site_width(r->model, (qsae_site)site)};
                    break;
                }
    free(wanted);
    if (code == CMD_OK && r->n_streams > HARVEST_MAX_STREAMS)
        return complain(CMD_FAILED, "%zu streams, a harvest has at most %d",
                        r->n_streams, HARVEST_MAX_STREAMS);
    return code;
}

static int open_text(harvest_run *r)
{
    char err[ERR_CAP];
    corpus_options o;
    memset(&o, 0, sizeof o);
    o.sources = r->data;
    o.n_sources = r->n_data;
    o.context = (size_t)r->context;
    o.text_field = r->text_field;
    o.special = r->in.special;
    r->text = corpus_open(&o, r->model, err, sizeof err);
    if (!r->text)
        return complain(CMD_FAILED, "%s", err);
    feed_options *f = &r->options;
    f->streams = r->streams;
    f->n_streams = r->n_streams;
    f->context = (size_t)r->context;
    f->skip_first = (size_t)r->skip_first;
    f->exclude = r->excluded.ids;
    f->n_exclude = r->excluded.n;
    f->exclude_classes = r->excluded.classes;
    f->once = 1;
    f->threads = input_threads(&r->in, r->model);
    r->feed = feed_open_model(r->model, r->text, f, err, sizeof err);
    return r->feed ? CMD_OK : complain(CMD_FAILED, "%s", err);
}

/* What all shards have in common. */
static int describe(harvest_run *r)
{
    char err[ERR_CAP], name[64];
    qfile_meta m;
    memset(&m, 0, sizeof m);
    qfile_meta_add(&m, "context", "%" PRId64, r->context);
    qfile_meta_add(&m, "skip_first", "%" PRId64, r->skip_first);
    qfile_meta_add(&m, "shard_rows", "%" PRId64, r->shard_rows);
    qfile_meta_add(&m, "type", "%s", r->bf16 ? "bf16" : "f32");
    qfile_meta_add(&m, "text", "%016" PRIx64, corpus_fingerprint(r->text));
    qfile_meta_add(&m, "model", "%016" PRIx64, r->model_hash);
    qfile_meta_add(&m, "exclude_classes", "%u", (unsigned)r->excluded.classes);
    for (size_t i = 0; i < r->excluded.n; i++) {
        snprintf(name, sizeof name, "exclude.%zu", i);
        qfile_meta_add(&m, name, "%d", (int)r->excluded.ids[i]);
    }
    for (size_t i = 0; i < r->n_streams; i++) {
        snprintf(name, sizeof name, "stream.%05zu", i);
        qfile_meta_add(&m, name, "%s", feed_stream_name(&r->streams[i]).text);
    }
    if (qfile_meta_finish(&m, err, sizeof err))
        return complain(CMD_FAILED, "%s", err);
    r->settings = m.text;
    return CMD_OK;
}

static int make_room(harvest_run *r)
{
    r->room = (size_t)(r->shard_rows + r->context);
    r->rows = calloc(r->n_streams + 1, sizeof *r->rows);
    r->ids = malloc(r->room * sizeof *r->ids);
    r->positions = malloc(r->room * sizeof *r->positions);
    r->sequences = malloc(r->room * sizeof *r->sequences);
    r->classes = malloc(r->room * sizeof *r->classes);
    int ok = r->rows && r->ids && r->positions && r->sequences && r->classes;
    for (size_t i = 0; ok && i < r->n_streams; i++) {
        r->rows[i] = malloc(r->room * r->streams[i].width * sizeof(float));
        ok = r->rows[i] != NULL;
    }
    return ok ? CMD_OK
              : complain(CMD_FAILED,
                         "out of memory for shards of %zu rows (--shard-rows)",
                         r->room);
}

/* ---------------------------------------------------------------------- one shard */

/* The cursor is integers only: as decimal numbers, without the zeros at the end. */
static char *cursor_text(const feed_cursor *c)
{
    uint64_t v[sizeof *c / sizeof(uint64_t)];
    size_t n = sizeof v / sizeof v[0], at = 0;
    char *text = malloc(n * 21 + 1);
    memcpy(v, c, sizeof v);
    while (n > 0 && v[n - 1] == 0)
        n--;
    for (size_t i = 0; text && i < n; i++)
        at += (size_t)sprintf(text + at, "%s%" PRIu64, i ? " " : "", v[i]);
    if (text)
        text[at] = 0;
    return text;
}

static int cursor_parse(const char *text, feed_cursor *c)
{
    uint64_t v[sizeof *c / sizeof(uint64_t)];
    memset(v, 0, sizeof v);
    for (size_t i = 0; *text; i++) {
        char *end;
        if (i == sizeof v / sizeof v[0] || *text < '0' || *text > '9')
            return -1;
        v[i] = strtoull(text, &end, 10);
        text = *end == ' ' ? end + 1 : end;
    }
    memcpy(c, v, sizeof v);
    return 0;
}

static int put_rows(harvest_run *r, st_writer *w, size_t stream, char *err, size_t cap)
{
    size_t count = r->n * r->streams[stream].width;
    float *v = r->rows[stream];
    uint16_t *half = (void *)v; /* in place: the upper half of each */
    if (!r->bf16)
        return st_writer_data(w, v, count * sizeof *v, err, cap);
    for (size_t i = 0; i < count; i++) {
        float x = qfile_round_bf16(v[i]);
        uint32_t bits;
        if (!isfinite(x))
            return err_set(err, cap, "%g does not fit in bf16 (--type f32)",
                           (double)v[i]);
        memcpy(&bits, &x, sizeof bits);
        uint16_t upper = (uint16_t)(bits >> 16);
        memcpy((unsigned char *)half + 2 * i, &upper, sizeof upper);
    }
    return st_writer_data(w, half, count * sizeof *half, err, cap);
}

static int put_shard(harvest_run *r, st_writer *w, const char *cursor, char *err,
                     size_t cap)
{
    static const char *const names[] = {"tokens", "positions", "sequences", "classes"};
    const int32_t *const ints[] = {r->ids, r->positions, r->sequences, r->classes};
    uint64_t shape[2] = {r->n, 0};
    if (st_writer_metadata(w, "cursor", cursor, err, cap) ||
        st_writer_metadata(w, "settings", r->settings, err, cap))
        return -1;
    for (size_t i = 0; i < r->n_streams; i++) {
        char name[64];
        harvest_tensor_name(&r->streams[i], name, sizeof name);
        shape[1] = r->streams[i].width;
        if (st_writer_declare(w, name, r->bf16 ? TENSOR_BF16 : TENSOR_F32, 2, shape,
                              err, cap))
            return -1;
    }
    for (size_t i = 0; i < 4; i++)
        if (st_writer_declare(w, names[i], TENSOR_I32, 1, shape, err, cap))
            return -1;
    for (size_t i = 0; i < r->n_streams; i++)
        if (put_rows(r, w, i, err, cap))
            return -1;
    for (size_t i = 0; i < 4; i++)
        if (st_writer_data(w, ints[i], r->n * 4, err, cap))
            return -1;
    return 0;
}

static int note_shard(harvest_run *r, uint64_t rows)
{
    if (r->n_shards == r->cap_shards) {
        size_t cap = 2 * r->cap_shards + 64;
        uint64_t *list = realloc(r->shard_rows_of, cap * sizeof *list);
        if (!list)
            return complain(CMD_FAILED, "out of memory");
        r->shard_rows_of = list;
        r->cap_shards = cap;
    }
    r->shard_rows_of[r->n_shards++] = rows;
    return CMD_OK;
}

static int write_shard(harvest_run *r)
{
    char path[4096], err[ERR_CAP];
    feed_cursor at;
    feed_tell(r->feed, &at);
    char *cursor = cursor_text(&at);
    harvest_shard_path(r->out, r->n_shards, path, sizeof path);
    st_writer *w = cursor ? st_writer_create(path, err, sizeof err) : NULL;
    int status = w ? put_shard(r, w, cursor, err, sizeof err)
                   : (cursor ? -1 : err_set(err, sizeof err, "out of memory"));
    if (!status)
        status = st_writer_commit(w, err, sizeof err);
    else
        st_writer_abort(w);
    free(cursor);
    if (status)
        return complain(CMD_FAILED, "%s", err);
    int code = note_shard(r, r->n);
    r->n = 0;
    return code;
}

/* ------------------------------------------------------------------------ the work */

static int take_part(harvest_run *r, const feed_part *p)
{
    char err[ERR_CAP];
    for (size_t s = 0; s < r->n_streams; s++) {
        size_t w = r->streams[s].width;
        for (size_t i = 0; i < p->n; i++)
            if (!isfinite(sinks_norm(p->rows[s] + i * w, w))) {
                feed_bad_row(&r->options, p, s, i, err, sizeof err);
                return complain(CMD_FAILED, "%s", err);
            }
        memcpy(r->rows[s] + r->n * w, p->rows[s], p->n * w * sizeof(float));
    }
    int32_t base = r->n ? r->sequences[r->n - 1] + 1 : 0;
    for (size_t i = 0; i < p->n; i++) {
        r->ids[r->n + i] = p->ids[i];
        r->positions[r->n + i] = p->positions[i];
        r->classes[r->n + i] = p->classes[i];
        r->sequences[r->n + i] = base + (int32_t)p->sequence[i];
    }
    r->n += p->n;
    return CMD_OK;
}

static uint64_t rows_so_far(const harvest_run *r)
{
    uint64_t sum = r->n;
    for (size_t i = 0; i < r->n_shards; i++)
        sum += r->shard_rows_of[i];
    return sum;
}

static int collect(harvest_run *r, uint64_t total)
{
    char err[ERR_CAP];
    for (uint64_t have = rows_so_far(r); have < total;) {
        feed_part p;
        uint64_t most = (uint64_t)r->shard_rows - r->n;
        if (stop) {
            progress_end(&r->shown);
            fprintf(stderr, "qsae: stopped; --resume goes on behind %zu shards\n",
                    r->n_shards);
            return CMD_STOPPED;
        }
        int got =
            feed_next(r->feed, (size_t)(total - have < most ? total - have : most), &p,
                      err, sizeof err);
        if (got < 0)
            return complain(CMD_FAILED, "%s", err);
        if (got == 0)
            break;
        int code = take_part(r, &p);
        have += p.n;
        progress_say(&r->shown, "harvest: %" PRIu64 " of %" PRIu64 " rows", have,
                     total);
        if (code == CMD_OK && r->n >= (size_t)r->shard_rows)
            code = write_shard(r);
        if (code != CMD_OK)
            return code;
    }
    return r->n > 0 ? write_shard(r) : CMD_OK;
}

static int text_manifest(harvest_run *r, outfile *o, char *err, size_t cap)
{
    if (outfile_text(o, err, cap,
                     "{\"format\": \"qsae-harvest-1\", \"bf16\": %s,\n"
                     " \"context\": %" PRId64 ", \"skip_first\": %" PRId64
                     ", \"exclude_classes\": %u,\n \"text\": \"%016" PRIx64
                     "\", \"model\": \"%016" PRIx64 "\",\n \"exclude\": [",
                     r->bf16 ? "true" : "false", r->context, r->skip_first,
                     (unsigned)r->excluded.classes, corpus_fingerprint(r->text),
                     r->model_hash))
        return -1;
    for (size_t i = 0; i < r->excluded.n; i++)
        if (outfile_text(o, err, cap, "%s%d", i ? ", " : "", (int)r->excluded.ids[i]))
            return -1;
    for (size_t i = 0; i < r->n_streams; i++)
        if (outfile_text(o, err, cap,
                         "%s{\"site\": \"%s\", \"layer\": %d, \"width\": %zu}",
                         i ? ",\n  " : "],\n \"streams\": [\n  ",
                         qsae_site_name(r->streams[i].site), (int)r->streams[i].layer,
                         r->streams[i].width))
            return -1;
    for (size_t i = 0; i < r->n_shards; i++)
        if (outfile_text(o, err, cap, "%s%" PRIu64, i ? ", " : "],\n \"shards\": [",
                         r->shard_rows_of[i]))
            return -1;
    return outfile_text(o, err, cap, "]}\n");
}

static int write_manifest(harvest_run *r)
{
    char path[4096], err[ERR_CAP];
    snprintf(path, sizeof path, "%.4000s/harvest.json", r->out);
    outfile *o = outfile_create(path, err, sizeof err);
    int status = o ? text_manifest(r, o, err, sizeof err) : -1;
    if (!status)
        status = outfile_commit(o, err, sizeof err);
    else
        outfile_abort(o);
    return status ? complain(CMD_FAILED, "%s", err) : CMD_OK;
}

/* A shard that is there: it must be of this harvest. *cursor receives where it ends. */
static int known_shard(harvest_run *r, const char *path, feed_cursor *cursor)
{
    char err[ERR_CAP];
    tensor_file *f = tensors_open(path, err, sizeof err);
    if (!f)
        return complain(CMD_FAILED, "%s", err);
    const char *settings = tensors_meta(f, "settings"), *at = tensors_meta(f, "cursor");
    const tensor *ids = tensors_find(f, "tokens");
    int code = CMD_OK;
    if (!settings || !at || !ids || cursor_parse(at, cursor))
        code = complain(CMD_FAILED, "%.300s: not a shard of a harvest", path);
    else if (strcmp(settings, r->settings) != 0)
        code =
            complain(CMD_FAILED,
                     "%.300s: a shard of a harvest with other settings, or of another "
                     "text or model",
                     path);
    else
        code = note_shard(r, ids->n);
    tensors_close(f);
    return code;
}

static int go_on(harvest_run *r)
{
    char path[4096], err[ERR_CAP];
    feed_cursor at;
    int code = CMD_OK;
    while (code == CMD_OK) {
        harvest_shard_path(r->out, r->n_shards, path, sizeof path);
        if (access(path, F_OK) != 0)
            break;
        if (!r->resume)
            return complain(
                CMD_FAILED,
                "%.300s exists: --resume goes on behind it, or choose another "
                "folder",
                path);
        code = known_shard(r, path, &at);
    }
    if (code == CMD_OK && r->n_shards > 0 && feed_seek(r->feed, &at, err, sizeof err))
        return complain(CMD_FAILED, "%s", err);
    return code;
}

static int begin(harvest_run *r)
{
    qsae_model_info info;
    int code = input_open_model(&r->in, r->model_path, &r->model);
    if (code == CMD_OK)
        code = hash_model(r);
    if (code != CMD_OK)
        return code;
    qsae_model_get_info(r->model, &info);
    if (!r->context)
        r->context = info.max_positions < 1024 ? info.max_positions : 1024;
    if (r->context > info.max_positions)
        return complain(CMD_FAILED, "--context %" PRId64 ": the model has %d positions",
                        r->context, (int)info.max_positions);
    code = list_streams(r);
    if (code == CMD_OK)
        code = open_text(r);
    if (code == CMD_OK)
        code = describe(r);
    return code == CMD_OK ? make_room(r) : code;
}

static int work(harvest_run *r)
{
    char err[ERR_CAP];
    uint64_t tokens, rows, total = (uint64_t)r->tokens;
    struct stat st;
    int code = begin(r);
    if (code != CMD_OK)
        return code;
    if (mkdir(r->out, 0777) != 0 &&
        (errno != EEXIST || stat(r->out, &st) != 0 || !S_ISDIR(st.st_mode)))
        return complain(CMD_FAILED, "%.300s: cannot make the folder: %s", r->out,
                        strerror(errno));
    if (feed_count(r->text, &r->options, 0, &tokens, &rows, err, sizeof err))
        return complain(CMD_FAILED, "%s", err);
    if (total > rows)
        return complain(CMD_FAILED,
                        "--tokens %" PRIu64 ": the text has %" PRIu64
                        " rows, and a harvest reads it once",
                        total, rows);
    if (total == 0)
        total = rows;
    code = go_on(r);
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    progress_begin(&r->shown, "harvest", 0);
    if (code == CMD_OK)
        code = collect(r, total);
    progress_end(&r->shown);
    if (code == CMD_OK)
        code = write_manifest(r);
    if (code == CMD_OK)
        printf("%s: %" PRIu64 " rows of %zu sites in %zu shards\n", r->out,
               rows_so_far(r), r->n_streams, r->n_shards);
    return code;
}

int cmd_harvest(int argc, char **argv)
{
    int help = 0;
    harvest_run r;
    memset(&r, 0, sizeof r);
    r.skip_first = 1;
    r.shard_rows = 16384;
    r.data = calloc((size_t)argc + 1, sizeof *r.data);
    args a = args_begin(argc, argv, option_table, usage);
    const char **const slots[] = {&r.model_path};
    int code = r.data ? args_walk(&a, slots, 1, take_option, &r, &help)
                      : complain(CMD_FAILED, "out of memory");
    if (code == CMD_OK && !help)
        code = check(&r);
    if (code == CMD_OK && !help)
        code = work(&r);
    for (size_t i = 0; r.rows && i < r.n_streams; i++)
        free(r.rows[i]);
    free(r.rows);
    free(r.ids);
    free(r.positions);
    free(r.sequences);
    free(r.classes);
    free(r.shard_rows_of);
    free(r.settings);
    feed_close(r.feed);
    corpus_close(r.text);
    qsae_model_close(r.model);
    free(r.streams);
    free(r.data);
    return code;
}
