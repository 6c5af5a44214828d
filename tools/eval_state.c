/* The sums so far, in a file, to go on after a kill (see eval.h). It is for the machine that
 * wrote it: native byte order, which the first number shows. */

#include "eval.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "cmd.h"
#include "outfile.h"

#define MAGIC 0x4C4156452D455351u /* "QSE-EVAL" where the least byte comes first */

/* Then sums [n_sums] and seq [n_seq, seq_width] of doubles, then the hash of all. */
typedef struct state {
    uint64_t magic, fingerprint, slice, n_slices, phase, given, total_tokens,
        total_sequences, dropped, n_sums, n_seq, seq_width;
    corpus_cursor at;
} state;

void eval_path(const eval *e, const char *ending, char *path, size_t cap)
{
    if (e->o->n_slices)
        snprintf(path, cap, "%s/eval-%lld-of-%lld.%s", e->o->out,
                 (long long)e->o->slice, (long long)e->o->n_slices, ending);
    else
        snprintf(path, cap, "%s/eval.%s", e->o->out, ending);
}

static state describe(const eval *e)
{
    state s;
    memset(&s, 0, sizeof s);
    s.magic = MAGIC;
    s.fingerprint = e->fingerprint;
    s.slice = (uint64_t)e->o->slice;
    s.n_slices = (uint64_t)e->o->n_slices;
    s.phase = (uint64_t)e->phase;
    s.given = e->given;
    s.total_tokens = e->total_tokens;
    s.total_sequences = e->total_sequences;
    s.dropped = e->dropped;
    s.n_sums = e->n_sums;
    s.n_seq = e->n_seq;
    s.seq_width = e->phase == 2 ? e->seq_width : 0;
    corpus_tell(e->text, &s.at);
    return s;
}

int eval_state_save(eval *e)
{
    char path[4096], err[ERR_CAP];
    state s = describe(e);
    qsae_hash h;
    eval_path(e, "state", path, sizeof path);
    outfile *out = outfile_create(path, err, sizeof err);
    size_t sums = e->n_sums * sizeof *e->sums;
    size_t seq = e->n_seq * (size_t)s.seq_width * sizeof *e->seq;
    qsae_hash_begin(&h);
    qsae_hash_add(&h, &s, sizeof s);
    qsae_hash_add(&h, e->sums, sums);
    if (seq)
        qsae_hash_add(&h, e->seq, seq);
    uint64_t hash = qsae_hash_end(&h);
    int status = out ? outfile_write(out, &s, sizeof s, err, sizeof err) : -1;
    if (!status)
        status = outfile_write(out, e->sums, sums, err, sizeof err);
    if (!status && seq)
        status = outfile_write(out, e->seq, seq, err, sizeof err);
    if (!status)
        status = outfile_write(out, &hash, sizeof hash, err, sizeof err);
    if (!status)
        status = outfile_commit(out, err, sizeof err);
    else
        outfile_abort(out);
    return status ? complain(CMD_FAILED, "%s", err) : CMD_OK;
}

int eval_state_remove(eval *e)
{
    char path[4096];
    eval_path(e, "state", path, sizeof path);
    if (unlink(path) && errno != ENOENT)
        return complain(CMD_FAILED, "%.300s: %s", path, strerror(errno));
    return CMD_OK;
}

static int damaged(const char *path)
{
    return complain(CMD_FAILED, "%.300s is damaged: delete it to begin again", path);
}

/* The head fits this run, and the sizes what follows. */
static int check(const eval *e, const state *s, const char *path)
{
    if (s->magic != MAGIC)
        return damaged(path);
    if (s->fingerprint != e->fingerprint || s->slice != (uint64_t)e->o->slice ||
        s->n_slices != (uint64_t)e->o->n_slices)
        return complain(
            CMD_FAILED,
            "%.300s is of other settings, or of other files: choose another "
            "folder with -o, or delete it",
            path);
    if ((s->phase != 1 && s->phase != 2) || s->n_sums != e->n_sums ||
        s->seq_width != (s->phase == 2 ? e->seq_width : 0) ||
        s->n_seq > SIZE_MAX / sizeof(double) / (e->seq_width + 1))
        return damaged(path);
    return CMD_OK;
}

static void take(eval *e, const state *s)
{
    e->phase = (int)s->phase;
    e->given = s->given;
    e->total_tokens = s->total_tokens;
    e->total_sequences = s->total_sequences;
    e->dropped = s->dropped;
    e->n_seq = e->cap_seq = (size_t)s->n_seq;
    if (e->phase == 1)
        e->cap_seq = 0; /* n_seq only counts */
}

static int read_rest(eval *e, FILE *f, const state *s, const char *path)
{
    char err[ERR_CAP];
    uint64_t hash = 0;
    qsae_hash h;
    size_t n = (size_t)s->n_seq * (size_t)s->seq_width;
    e->seq = malloc((n + 1) * sizeof *e->seq);
    if (!e->seq)
        return complain(CMD_FAILED, "out of memory for %llu sequences",
                        (unsigned long long)s->n_seq);
    if (fread(e->sums, sizeof *e->sums, e->n_sums, f) != e->n_sums ||
        fread(e->seq, sizeof *e->seq, n, f) != n ||
        fread(&hash, sizeof hash, 1, f) != 1 || fgetc(f) != EOF)
        return damaged(path);
    qsae_hash_begin(&h);
    qsae_hash_add(&h, s, sizeof *s);
    qsae_hash_add(&h, e->sums, e->n_sums * sizeof *e->sums);
    qsae_hash_add(&h, e->seq, n * sizeof *e->seq);
    if (qsae_hash_end(&h) != hash)
        return damaged(path);
    if (corpus_seek(e->text, &s->at, err, sizeof err))
        return complain(CMD_FAILED, "%.300s: %s", path, err);
    take(e, s);
    return CMD_OK;
}

int eval_state_load(eval *e)
{
    char path[4096];
    state s;
    eval_path(e, "state", path, sizeof path);
    FILE *f = fopen(path, "rb");
    if (!f)
        return errno == ENOENT
                   ? CMD_OK
                   : complain(CMD_FAILED, "%.300s: %s", path, strerror(errno));
    int code = fread(&s, sizeof s, 1, f) == 1 ? check(e, &s, path) : damaged(path);
    if (code == CMD_OK)
        code = read_rest(e, f, &s, path);
    fclose(f);
    return code;
}
