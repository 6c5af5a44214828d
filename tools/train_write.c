/* The finished SAEs as a .qsae file, and as folders of SAELens. */

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include "cmd.h"
#include "export.h"
#include "sae_source.h"
#include "train.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct writing {
    sae_source s; /* for sae_screen.c, which asks for the record and the options */
    convert_options options;
    const train_run *run;
    const train_member *member;
    qsae_train_part part;
    qfile_meta meta;
} writing;

/* ---- one member ---- */

static void make_record(writing *w, qsae_sae_record *out)
{
    const train_run *r = w->run;
    const train_lane *l = &r->lanes[w->member->lane];
    qsae_sae_record *e = &w->s.record;
    memset(e, 0, sizeof *e);
    memcpy(e->name, w->member->name, strlen(w->member->name));
    e->site_in = (uint32_t)l->site;
    e->site_out = (uint32_t)l->site_out;
    e->layer_in = e->layer_out = (uint32_t)l->layer;
    e->d_in = (uint32_t)r->streams[l->in].width;
    e->d_out = (uint32_t)r->streams[l->out].width;
    e->d_sae = (uint32_t)r->s.base.d_sae;
    e->activation = (uint32_t)qsae_trainer_activation(w->member->trainer);
    e->k = e->activation == QSAE_ACT_TOPK ? (uint32_t)w->member->target : 0;
    e->norm = QSAE_NORM_NONE;
    e->feature_unit = QSAE_UNIT_RAW;
    *out = *e;
}

static int make_meta(writing *w, char *err, size_t cap)
{
    const train_lane *l = &w->run->lanes[w->member->lane];
    qfile_meta *m = &w->meta;
    char line[256];
    for (const char *p = w->run->description; *p;) {
        size_t n = strcspn(p, "\n"), key = strcspn(p, "=");
        if (key < sizeof line) {
            memcpy(line, p, key);
            line[key] = 0;
            qfile_meta_add(m, line, "%.*s", (int)(n - key - 1), p + key + 1);
        }
        p += n + 1;
    }
    uint32_t v = qsae_version();
    qfile_meta_add(m, "producer", "qsae %u.%u.%u train", (unsigned)(v >> 16),
                   (unsigned)(v >> 8 & 255), (unsigned)(v & 255));
    if (w->member->target > 0)
        qfile_meta_add(m, "trained.l0", "%.9g", w->member->target);
    qfile_meta_add(m, "trained.norm-limit", "%.9g", (double)l->limit_in);
    qfile_meta_add(m, "trained.rows-left-out", "%" PRIu64, l->left_out);
    qfile_meta_add(m, "trained.scale-in", "%.9g", (double)l->scale_in);
    qfile_meta_add(m, "trained.scale-out", "%.9g", (double)l->scale_out);
    qfile_meta_add(m, "trained.steps", "%" PRIu64, l->steps);
    return qfile_meta_finish(m, err, cap);
}

static int has_theta(const writing *w)
{
    return w->s.record.activation == QSAE_ACT_JUMPRELU;
}

static int declare(writing *w, qfile *q, uint32_t group, char *err, size_t cap)
{
    const qsae_sae_record *e = &w->s.record;
    const uint32_t f32 = QSAE_TYPE_F32, vec = QSAE_LAYOUT_VECTOR,
                   rows = QSAE_LAYOUT_ROWS;
    if (qfile_declare(q, group, QSAE_ROLE_META, QSAE_TYPE_BYTES, QSAE_LAYOUT_BYTES, 1,
                      w->meta.len, err, cap) ||
        qfile_declare(q, group, QSAE_ROLE_ENC, f32, rows, e->d_sae, e->d_in, err,
                      cap) ||
        qfile_declare(q, group, QSAE_ROLE_DEC, f32, rows, e->d_sae, e->d_out, err,
                      cap) ||
        qfile_declare(q, group, QSAE_ROLE_B_ENC, f32, vec, 1, e->d_sae, err, cap))
        return -1;
    if (has_theta(w) &&
        qfile_declare(q, group, QSAE_ROLE_THETA, f32, vec, 1, e->d_sae, err, cap))
        return -1;
    if (qfile_declare(q, group, QSAE_ROLE_B_DEC, f32, vec, 1, e->d_out, err, cap))
        return -1;
    return sae_has_screen(&w->s) ? sae_screen_declare(&w->s, q, group, err, cap) : 0;
}

/* user: a writing, or the sae_source that it begins with */
static int fill(void *user, const qfile_part *p, float *out, char *err, size_t cap)
{
    const writing *w = user;
    qsae_error e;
    if (qsae_trainer_export(w->member->trainer, w->part, (size_t)p->row,
                            (size_t)p->n_rows, out, &e))
        return err_set(err, cap, "%s: %s", w->member->name, e.text);
    return 0;
}

static int write_matrix(writing *w, qfile *q, qsae_train_part part, char *err,
                        size_t cap)
{
    w->part = part;
    return qfile_matrix(q, fill, w, err, cap);
}

static int write_vector(writing *w, qfile *q, qsae_train_part part, size_t n, char *err,
                        size_t cap)
{
    qfile_part all = {0, n, 0, 1};
    float *v = malloc(n * sizeof *v);
    w->part = part;
    int status = v ? fill(w, &all, v, err, cap) : err_set(err, cap, "out of memory");
    if (!status)
        status = qfile_vector(q, v, err, cap);
    free(v);
    return status;
}

static int write_member(writing *w, qfile *q, char *err, size_t cap)
{
    const qsae_sae_record *e = &w->s.record;
    if (qfile_bytes(q, w->meta.text, err, cap) ||
        write_matrix(w, q, QSAE_PART_ENC, err, cap) ||
        write_matrix(w, q, QSAE_PART_DEC, err, cap) ||
        write_vector(w, q, QSAE_PART_B_ENC, e->d_sae, err, cap) ||
        (has_theta(w) && write_vector(w, q, QSAE_PART_THETA, e->d_sae, err, cap)) ||
        write_vector(w, q, QSAE_PART_B_DEC, e->d_out, err, cap))
        return -1;
    w->part = QSAE_PART_ENC;
    w->s.err = err;
    w->s.cap = cap;
    return sae_has_screen(&w->s) ? sae_screen_write(&w->s, q, fill) : 0;
}

/* ---- the file ---- */

static int write_all(const train_run *r, writing *list, char *err, size_t cap)
{
    qfile *q =
        qfile_create(r->suite_path, QSAE_KIND_SAE, (uint32_t)r->n_members, err, cap);
    int status = q ? 0 : -1;
    for (size_t i = 0; i < r->n_members && !status; i++) {
        writing *w = &list[i];
        w->run = r;
        w->member = &r->members[i];
        w->s.o = &w->options;
        make_record(w, qfile_record(q, (uint32_t)i));
        status = make_meta(w, err, cap) || declare(w, q, 1 + (uint32_t)i, err, cap);
    }
    for (size_t i = 0; i < r->n_members && !status; i++)
        status = write_member(&list[i], q, err, cap);
    if (!status)
        return qfile_finish(q, qfile_check_sae, err, cap);
    qfile_abort(q);
    return -1;
}

int train_write_suite(train_run *r)
{
    char err[ERR_CAP];
    writing *list = calloc(r->n_members, sizeof *list);
    int status = list ? write_all(r, list, err, sizeof err)
                      : err_set(err, sizeof err, "out of memory");
    for (size_t i = 0; list && i < r->n_members; i++)
        qfile_meta_free(&list[i].meta);
    free(list);
    return status ? complain(CMD_FAILED, "%s", err) : CMD_OK;
}

int train_made_by(const train_run *r, const char *path)
{
    char err[ERR_CAP], *meta = NULL;
    const char *want = r->description;
    qread q;
    int same = 1;
    if (qread_open(&q, path, err, sizeof err))
        return -1;
    if (qread_meta(&q, 1, &meta, err, sizeof err) || !meta)
        same = -1;
    for (const char *p = meta; same == 1 && *p;) {
        size_t n = strcspn(p, "\n") + 1;
        if (strncmp(p, "train.", 6) == 0) {
            same = strncmp(p, want, n) == 0;
            want += same ? n : 0;
        }
        p += n;
    }
    if (same == 1)
        same = *want == 0 && q.head.n_records == r->n_members;
    for (uint32_t i = 0; same == 1 && i < q.head.n_records; i++)
        same = strcmp(qread_sae(&q, i).name, r->members[i].name) == 0;
    free(meta);
    qread_close(&q);
    return same;
}

/* ---- SAELens ---- */

int train_write_exports(train_run *r)
{
    char folder[4200], path[4400];
    snprintf(folder, sizeof folder, "%.3000s/saelens", r->s.out);
    if (mkdir(folder, 0777) && errno != EEXIST)
        return complain(CMD_FAILED, "%.300s: %s", folder, strerror(errno));
    for (size_t i = 0; i < r->n_members; i++) {
        export_run e;
        memset(&e, 0, sizeof e);
        e.in = r->s.in;
        e.sae_path = r->suite_path;
        e.out_path = path;
        e.choice = sae_choice_any();
        e.choice.name = r->members[i].name;
        snprintf(path, sizeof path, "%s/%s", folder, r->members[i].name);
        if (r->s.resume && access(path, F_OK) == 0)
            continue; /* they appear whole: written before this run was stopped */
        int code = export_saelens(&e);
        if (code != CMD_OK)
            return code;
    }
    return CMD_OK;
}
