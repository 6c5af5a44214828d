/* Checkpoints: everything that a run needs to go on as if nothing had happened, in one
 * file that appears whole or not at all:
 *
 *     "QSAETRN1"                     8 bytes
 *     u64 length, the identity       settings and members, as text
 *     integers and rows              in the order of `carry`
 *     each trainer's state           as the library writes it
 *     u64                            XXH64 of all before
 *
 * One function, carry, names every part once and either writes or reads it. */

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#define _FILE_OFFSET_BITS 64

#include "cmd.h"
#include "outfile.h"
#include "train.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAGIC "QSAETRN1"

typedef struct carrier {
    train_run *run;
    outfile *out; /* writing, or */
    FILE *in;     /* reading */
    qsae_hash hash;
    char err[ERR_CAP];
} carrier;

/* ---- bytes, either way ---- */

static int put(void *user, const void *data, size_t size)
{
    carrier *c = user;
    qsae_hash_add(&c->hash, data, size);
    return outfile_write(c->out, data, size, c->err, sizeof c->err);
}

static int get(void *user, void *data, size_t size)
{
    carrier *c = user;
    if (size > 0 && fread(data, size, 1, c->in) != 1)
        return err_set(c->err, sizeof c->err, "%.200s: %s", c->run->state_path,
                       ferror(c->in) ? strerror(errno) : "it ends too early");
    return 0;
}

static int move(carrier *c, void *data, size_t size)
{
    return c->out ? put(c, data, size) : get(c, data, size);
}

/* ---- the parts ---- */

static int carry_u64(carrier *c, uint64_t *v)
{
    return move(c, v, sizeof *v);
}

/* A number that a file must not be believed about: at most `most`. */
static int carry_size(carrier *c, size_t *v, size_t most)
{
    uint64_t x = *v;
    if (carry_u64(c, &x))
        return -1;
    if (x > most)
        return err_set(c->err, sizeof c->err,
                       "%.200s: damaged: %" PRIu64 " of at most %zu",
                       c->run->state_path, x, most);
    *v = (size_t)x;
    return 0;
}

static int carry_int(carrier *c, int *v, int most)
{
    size_t x = (size_t)*v;
    if (carry_size(c, &x, (size_t)most))
        return -1;
    *v = (int)x;
    return 0;
}

static int carry_lane(carrier *c, train_lane *l)
{
    const train_run *r = c->run;
    size_t in = r->streams[l->in].width, out = r->streams[l->out].width;
    size_t batch = (size_t)r->s.batch;
    if (carry_u64(c, &l->steps) || carry_u64(c, &l->left_out) ||
        carry_size(c, &l->at, r->buffer.cap) || carry_size(c, &l->filled, batch) ||
        move(c, &l->limit_in, sizeof(float)) || move(c, &l->limit_out, sizeof(float)) ||
        move(c, &l->scale_in, sizeof(float)) || move(c, &l->scale_out, sizeof(float)))
        return -1;
    if (move(c, l->x, l->filled * in * sizeof(float)))
        return -1;
    return l->y ? move(c, l->y, l->filled * out * sizeof(float)) : 0;
}

static int carry_buffer(carrier *c)
{
    shuffle *b = &c->run->buffer;
    if (carry_size(c, &b->n, b->cap))
        return -1;
    for (size_t i = 0; i < b->n_columns; i++)
        if (move(c, b->norm[i], b->n * sizeof(float)) ||
            (!b->path && move(c, b->rows[i], b->n * b->width[i] * sizeof(float))))
            return -1;
    return 0;
}

static int carry_trainer(carrier *c, train_member *m)
{
    qsae_error e;
    qsae_status s = c->out ? qsae_trainer_save(m->trainer, put, c, &e)
                           : qsae_trainer_load(m->trainer, get, c, &e);
    if (s == QSAE_OK)
        return move(c, &m->last, sizeof m->last);
    return *c->err ? -1 : err_set(c->err, sizeof c->err, "%s: %s", m->name, e.text);
}

/* The log: what is behind `length` was written after this checkpoint. */
static int carry_log(carrier *c)
{
    train_run *r = c->run;
    uint64_t length = c->out ? (uint64_t)ftell(r->log) : 0;
    if (carry_u64(c, &length))
        return -1;
    if (c->out)
        return 0;
    r->log = fopen(r->log_path, "r+");
    if (!r->log && errno == ENOENT)
        r->log = fopen(r->log_path, "w"); /* someone took it away: not ours to judge */
    if (!r->log)
        return err_set(c->err, sizeof c->err, "%.200s: %s", r->log_path,
                       strerror(errno));
    if (fseek(r->log, 0, SEEK_END))
        return err_set(c->err, sizeof c->err, "%.200s: %s", r->log_path,
                       strerror(errno));
    if ((uint64_t)ftell(r->log) > length &&
        ftruncate(fileno(r->log), (off_t)length) != 0)
        return err_set(c->err, sizeof c->err, "%.200s: %s", r->log_path,
                       strerror(errno));
    return fseek(r->log, 0, SEEK_END) ? -1 : 0;
}

static int carry_position(carrier *c)
{
    train_run *r = c->run;
    feed_cursor at;
    memset(&at, 0, sizeof at);
    if (c->out)
        feed_tell(r->feed, &at);
    if (carry_u64(c, &r->bucket) || carry_u64(c, &r->pushed) ||
        carry_int(c, &r->phase, TRAIN_USE) || carry_int(c, &r->calibrated, 1) ||
        carry_size(c, &r->lane, r->n_lanes) || move(c, &at, sizeof at))
        return -1;
    return c->out ? 0 : feed_seek(r->feed, &at, c->err, sizeof c->err);
}

static int carry(carrier *c)
{
    train_run *r = c->run;
    if (carry_position(c) || carry_buffer(c))
        return -1;
    for (size_t i = 0; i < r->n_lanes; i++)
        if (carry_lane(c, &r->lanes[i]))
            return -1;
    if (c->in && r->calibrated && train_create_trainers(r) != CMD_OK)
        return err_set(c->err, sizeof c->err, "the trainers cannot be made again");
    for (size_t i = 0; i < r->n_members && r->calibrated; i++)
        if (carry_trainer(c, &r->members[i]))
            return -1;
    return carry_log(c);
}

/* ---- writing ---- */

int train_save(train_run *r)
{
    carrier c;
    uint64_t n = strlen(r->identity), hash;
    memset(&c, 0, sizeof c);
    c.run = r;
    if (shuffle_sync(&r->buffer, c.err, sizeof c.err))
        return complain(CMD_FAILED, "%s", c.err);
    c.out = outfile_create(r->state_path, c.err, sizeof c.err);
    if (!c.out)
        return complain(CMD_FAILED, "%s", c.err);
    qsae_hash_begin(&c.hash);
    int bad = put(&c, MAGIC, 8) || put(&c, &n, sizeof n) || put(&c, r->identity, n) ||
              carry(&c);
    hash = qsae_hash_end(&c.hash);
    if (!bad)
        bad = outfile_write(c.out, &hash, sizeof hash, c.err, sizeof c.err);
    if (bad)
        outfile_abort(c.out);
    else
        bad = outfile_commit(c.out, c.err, sizeof c.err);
    r->saved = train_now();
    if (!bad)
        return CMD_OK;
    return complain(CMD_FAILED, "checkpoint: %s%s", c.err,
                    access(r->state_path, F_OK) == 0
                        ? " (the one before it is intact: --resume)"
                        : "");
}

/* ---- reading ---- */

static int damaged(carrier *c, const char *what)
{
    return err_set(c->err, sizeof c->err, "%.200s: %s", c->run->state_path, what);
}

/* All bytes against the sum at the end, before any of them is believed. */
static int check_sum(carrier *c)
{
    unsigned char part[1 << 16];
    uint64_t stored, left;
    qsae_hash h;
    if (fseeko(c->in, 0, SEEK_END))
        return damaged(c, strerror(errno));
    off_t size = ftello(c->in);
    if (size < 24)
        return damaged(c, "not a checkpoint of `qsae train`");
    rewind(c->in);
    qsae_hash_begin(&h);
    for (left = (uint64_t)size - 8; left > 0;) {
        size_t n = left < sizeof part ? (size_t)left : sizeof part;
        if (get(c, part, n))
            return -1;
        if (left == (uint64_t)size - 8 && memcmp(part, MAGIC, 8) != 0)
            return damaged(c, "not a checkpoint of `qsae train`");
        qsae_hash_add(&h, part, n);
        left -= n;
    }
    if (get(c, &stored, sizeof stored))
        return -1;
    if (stored != qsae_hash_end(&h))
        return damaged(c, "damaged: its checksum is wrong");
    rewind(c->in);
    return 0;
}

/* The first line that is not the same. */
static int other_settings(carrier *c, const char *old)
{
    const char *now = c->run->identity;
    while (*old && *now) {
        size_t a = strcspn(old, "\n"), b = strcspn(now, "\n");
        if (a != b || memcmp(old, now, a) != 0)
            break;
        old += a + (old[a] != 0);
        now += b + (now[b] != 0);
    }
    return err_set(
        c->err, sizeof c->err,
        "%.150s: the checkpoint is from other settings: %.*s there, %.*s now "
        "(--force without --resume begins anew)",
        c->run->state_path, *old ? (int)strcspn(old, "\n") : 7, *old ? old : "nothing",
        *now ? (int)strcspn(now, "\n") : 7, *now ? now : "nothing");
}

static int read_identity(carrier *c)
{
    uint64_t n, most = (uint64_t)1 << 26;
    char magic[8];
    if (get(c, magic, 8) || get(c, &n, sizeof n))
        return -1;
    if (n > most)
        return damaged(c, "damaged: its settings are too long");
    char *old = malloc((size_t)n + 1);
    if (!old)
        return damaged(c, "out of memory");
    int bad = get(c, old, (size_t)n);
    old[bad ? 0 : n] = 0;
    if (!bad && strcmp(old, c->run->identity) != 0)
        bad = other_settings(c, old);
    free(old);
    return bad;
}

int train_load(train_run *r, int *found)
{
    carrier c;
    memset(&c, 0, sizeof c);
    c.run = r;
    *found = 0;
    c.in = fopen(r->state_path, "rb");
    if (!c.in && errno == ENOENT)
        return CMD_OK;
    if (!c.in)
        return complain(CMD_FAILED, "%.300s: %s", r->state_path, strerror(errno));
    int bad = check_sum(&c) || read_identity(&c);
    int code = bad ? CMD_FAILED : train_make_room(r, 1);
    if (!bad && code == CMD_OK)
        bad = carry(&c);
    fclose(c.in);
    *found = !bad;
    if (bad)
        return complain(CMD_FAILED, "%s", c.err);
    return code;
}

void train_remove_state(train_run *r)
{
    unlink(r->state_path);
    rmdir(r->state_dir); /* if no other slice is at work there */
}

uint64_t train_state_bytes(const train_run *r)
{
    uint64_t sum = strlen(r->identity) + sizeof(feed_cursor);
    size_t cap = train_buffer_rows(r) + (size_t)r->s.context;
    for (size_t i = 0; i < r->n_streams; i++)
        sum += (uint64_t)cap * 4 * (1 + (r->s.buffer_file ? 0 : r->streams[i].width));
    for (size_t i = 0; i < r->n_members; i++) {
        const train_lane *l = &r->lanes[r->members[i].lane];
        sum += (uint64_t)r->s.base.d_sae * 12 *
               (r->streams[l->in].width + r->streams[l->out].width + 3);
    }
    return sum;
}
