/* `qsae merge`: SAE files to one suite. */

#include "checked.h"
#include "cmd.h"
#include "input.h"
#include "output.h"
#include "qfile.h"
#include "qread.h"
#include "sae_choice.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
static const char usage[] =
    "Usage: qsae merge OUT.qsae IN.qsae...\n"
    "Joins SAE files to one suite, its members in the order of their places: the slices\n"
    "of `qsae train --only` give the bytes of the file that one run would have written.\n"
    "Two SAEs of one name are refused.\n"
    "\n"
    "  --no-verify       do not check the checksums of the weights\n"
    "  --help            this text\n";
/* clang-format on */

static const args_option option_table[] = {
    {"no-verify", 0, OPT_NO_VERIFY, 0},
    {NULL, 0, 0, 0},
};

typedef struct member {
    const qread *file;
    uint32_t index; /* in its file */
    qsae_sae_record record;
} member;

typedef struct merge_run {
    input in;
    const char *out;
    const char **paths; /* [n] */
    qread *files;       /* [n] */
    size_t n;
    member *members; /* [n_members] */
    size_t n_members;
} merge_run;

static int by_place(const void *a, const void *b)
{
    const qsae_sae_record *x = &((const member *)a)->record,
                          *y = &((const member *)b)->record;
    const uint32_t p[4] = {x->layer_in, x->site_in, x->layer_out, x->site_out};
    const uint32_t q[4] = {y->layer_in, y->site_in, y->layer_out, y->site_out};
    for (int i = 0; i < 4; i++)
        if (p[i] != q[i])
            return p[i] < q[i] ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const member *)a)->record.name, ((const member *)b)->record.name);
}

static int open_all(merge_run *r)
{
    r->files = calloc(r->n, sizeof *r->files);
    if (!r->files)
        return complain(CMD_FAILED, "out of memory");
    for (size_t i = 0; i < r->n; i++) {
        int code = output_check(r->out, r->paths[i], "one of the inputs");
        if (code == CMD_OK)
            code = sae_index(&r->in, r->paths[i], &r->files[i]);
        if (code != CMD_OK)
            return code;
        r->n_members += r->files[i].head.n_records;
    }
    if (r->n_members > 65536)
        return complain(CMD_FAILED, "%zu SAEs, a file holds at most 65536",
                        r->n_members);
    return CMD_OK;
}

static int list_members(merge_run *r)
{
    size_t at = 0;
    r->members = calloc(r->n_members, sizeof *r->members);
    if (!r->members)
        return complain(CMD_FAILED, "out of memory");
    for (size_t i = 0; i < r->n; i++)
        for (uint32_t k = 0; k < r->files[i].head.n_records; k++)
            r->members[at++] = (member){&r->files[i], k, qread_sae(&r->files[i], k)};
    qsort(r->members, r->n_members, sizeof *r->members, by_name);
    for (size_t i = 1; i < r->n_members; i++)
        if (by_name(&r->members[i - 1], &r->members[i]) == 0)
            return complain(CMD_FAILED, "%.200s and %.200s both have an SAE called %s",
                            r->members[i - 1].file->path, r->members[i].file->path,
                            name_z(r->members[i].record.name).text);
    qsort(r->members, r->n_members, sizeof *r->members, by_place);
    return CMD_OK;
}

static int declare(const member *m, uint32_t group, qfile *q, char *err, size_t cap)
{
    for (uint32_t i = 0; i < m->file->head.n_tensors; i++) {
        const qsae_tensor_record *t = &m->file->dir[i];
        if (t->group == 1 + m->index &&
            qfile_declare(q, group, t->role, t->type, t->layout, t->rows, t->cols, err,
                          cap))
            return -1;
    }
    return 0;
}

typedef struct source {
    const qread *file;
    const qsae_tensor_record *tensor;
} source;

static int read_part(void *user, uint64_t offset, void *out, size_t size, char *err,
                     size_t cap)
{
    const source *s = user;
    return qread_bytes(s->file, s->tensor, offset, size, out, err, cap);
}

static int copy(const member *m, qfile *q, char *err, size_t cap)
{
    for (uint32_t i = 0; i < m->file->head.n_tensors; i++) {
        source s = {m->file, &m->file->dir[i]};
        if (s.tensor->group == 1 + m->index &&
            qfile_copy(q, read_part, &s, s.tensor->hash, err, cap))
            return -1;
    }
    return 0;
}

static int write_file(const merge_run *r)
{
    char err[ERR_CAP];
    qfile *q =
        qfile_create(r->out, QSAE_KIND_SAE, (uint32_t)r->n_members, err, sizeof err);
    int status = q ? 0 : -1;
    for (size_t i = 0; i < r->n_members && !status; i++) {
        memcpy(qfile_record(q, (uint32_t)i), &r->members[i].record,
               sizeof r->members[i].record);
        status = declare(&r->members[i], 1 + (uint32_t)i, q, err, sizeof err);
    }
    for (size_t i = 0; i < r->n_members && !status; i++)
        status = copy(&r->members[i], q, err, sizeof err);
    if (!status)
        status = qfile_finish(q, qfile_check_sae, err, sizeof err);
    else
        qfile_abort(q);
    if (status)
        return complain(CMD_FAILED, "%s", err);
    printf("%s: %zu SAEs from %zu files\n", r->out, r->n_members, r->n);
    return CMD_OK;
}

/* Group 0 belongs to no SAE, and nothing says how it would be joined. */
static int check(const merge_run *r)
{
    for (size_t i = 0; i < r->n; i++)
        if (r->files[i].head.n_tensors > 0 && r->files[i].dir[0].group == 0)
            return complain(
                CMD_FAILED,
                "%.300s: it holds something that belongs to no SAE (role %u)",
                r->paths[i], (unsigned)r->files[i].dir[0].role);
    return CMD_OK;
}

static int run(merge_run *r, int argc, char **argv)
{
    args a = args_begin(argc, argv, option_table, usage);
    for (int id; (id = args_next(&a)) != ARGS_END;) {
        if (id == ARGS_HELP || id == ARGS_ERROR)
            return id == ARGS_HELP ? CMD_OK : CMD_USAGE;
        if (id == OPT_NO_VERIFY)
            r->in.no_verify = 1;
        else if (!r->out)
            r->out = a.value;
        else
            r->paths[r->n++] = a.value;
    }
    if (!r->out || r->n == 0)
        return complain(CMD_USAGE, "merge needs OUT.qsae and at least one IN.qsae");
    int code = output_replaces(r->out, QSAE_FILE_MAGIC, 8, ".qsae file");
    if (code == CMD_OK)
        code = open_all(r);
    if (code == CMD_OK)
        code = check(r);
    if (code == CMD_OK)
        code = list_members(r);
    return code == CMD_OK ? write_file(r) : code;
}

int cmd_merge(int argc, char **argv)
{
    merge_run r;
    memset(&r, 0, sizeof r);
    r.paths = calloc((size_t)argc + 1, sizeof *r.paths);
    int code = r.paths ? run(&r, argc, argv) : complain(CMD_FAILED, "out of memory");
    for (size_t i = 0; r.files && i < r.n; i++)
        qread_close(&r.files[i]);
    free(r.files);
    free(r.members);
    free(r.paths);
    return code;
}
