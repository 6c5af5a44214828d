/* `qsae extract`: some features of an SAE as an SAE file of their own, a pack.
 *
 * A feature with a threshold depends on no other one, so its value, its direction and
 * every edit of it are the same bits in the pack. What selects among all features (TopK)
 * cannot be taken apart: refused. */

#include "checked.h"
#include "cmd.h"
#include "output.h"
#include "outfile.h"
#include "qfile.h"
#include "sae_choice.h"

#include <stdlib.h>
#include <string.h>

/* clang-format off */
static const char usage[] =
    "Usage: qsae extract SAE.qsae --features 1,2,3 -o PACK.qsae [options]\n"
    "Writes an SAE file with only these features: their encoder and decoder rows,\n"
    "biases and thresholds, for watching or editing them where the whole SAE is too\n"
    "large. Their values and edits are the same bits as the whole SAE's. In every\n"
    "command they keep the numbers they had; the library numbers them 0, 1, ... in\n"
    "ascending order. The decoder's bias is kept, but what a pack decodes to is only\n"
    "these features' part, not a reconstruction. SAEs that choose among all features\n"
    "(topk) cannot be taken apart.\n"
    "\n"
    "  --features 1,2,3  in any order, each once\n"
    "  -o FILE           the file to write\n"
    SAE_USAGE
    "  --no-verify       do not check the checksums of the weights\n"
    "  --help            this text\n";
/* clang-format on */

enum { OPT_FEATURES = OPT_OWN, OPT_OUT };

static const args_option option_table[] = {
    SAE_OPTIONS,
    {"features", 0, OPT_FEATURES, ARGS_VALUE},
    {"no-verify", 0, OPT_NO_VERIFY, 0},
    {NULL, 'o', OPT_OUT, ARGS_VALUE},
    {NULL, 0, 0, 0},
};

typedef struct extract_run {
    input in;
    const char *sae_path, *out_path, *features;
    sae_choice choice;
    qsae_sae *sae;
    qsae_sae_info info;
    sae_numbers numbers;
    qread q;
    uint32_t *wanted; /* [n] numbers, ascending */
    uint32_t *rows;   /* [n] their rows */
    uint32_t n;
    qfile_meta meta;
} extract_run;

/* -------------------------------------------------------------------- command line */

static int ascending(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

/* "3,1,204" to wanted, sorted. */
static int parse_features(extract_run *r)
{
    const char *s = r->features;
    r->wanted = malloc((strlen(s) / 2 + 1) * sizeof *r->wanted);
    r->rows = malloc((strlen(s) / 2 + 1) * sizeof *r->rows);
    if (!r->wanted || !r->rows)
        return complain(CMD_FAILED, "out of memory");
    for (;;) {
        char number[16];
        int64_t v;
        size_t len = strcspn(s, ",");
        if (len == 0 || len >= sizeof number)
            return complain(CMD_USAGE,
                            "--features: '%.*s' is not a feature (number %u of the "
                            "list)",
                            (int)(len < 40 ? len : 40), s, (unsigned)r->n + 1);
        memcpy(number, s, len);
        number[len] = '\0';
        int code = args_integer("--features", number, 0, UINT32_MAX, &v);
        if (code != CMD_OK)
            return code;
        r->wanted[r->n++] = (uint32_t)v;
        if (s[len] == '\0')
            break;
        s += len + 1;
    }
    qsort(r->wanted, r->n, sizeof *r->wanted, ascending);
    for (uint32_t i = 1; i < r->n; i++)
        if (r->wanted[i] == r->wanted[i - 1])
            return complain(CMD_USAGE, "--features: %u is there twice",
                            (unsigned)r->wanted[i]);
    return CMD_OK;
}

static int take_option(void *run, const args *a, int id)
{
    extract_run *r = run;
    switch (id) {
    case OPT_FEATURES: r->features = a->value; return CMD_OK;
    case OPT_OUT: r->out_path = a->value; return CMD_OK;
    case OPT_NO_VERIFY: return input_take(&r->in, a, id);
    default: return sae_choice_take(&r->choice, a, id);
    }
}

static int parse(extract_run *r, int argc, char **argv, int *help)
{
    args a = args_begin(argc, argv, option_table, usage);
    const char **const slots[] = {&r->sae_path};
    int code = args_walk(&a, slots, 1, take_option, r, help);
    if (code != CMD_OK || *help)
        return code;
    if (!r->sae_path || !r->out_path || !r->features)
        return complain(CMD_USAGE, "extract needs SAE.qsae, --features and -o (see: "
                                   "qsae extract --help)");
    return parse_features(r);
}

/* ------------------------------------------------------------------------ the work */

static int check(extract_run *r)
{
    int activation = r->info.activation;
    if (activation == QSAE_ACT_TOPK || activation == QSAE_ACT_TOPK_SCALED)
        return complain(
            CMD_FAILED,
            "%.300s: a %s SAE chooses the %d largest of all its features, "
            "so some of them alone do not say which would be active",
            r->sae_path, qsae_activation_name(r->info.activation), (int)r->info.k);
    if (activation == QSAE_ACT_GROUPMAX)
        return complain(
            CMD_FAILED,
            "%.300s: a groupmax SAE chooses the largest of each of %d groups of its "
            "features, so some of them alone do not say which would be active",
            r->sae_path, (int)r->info.k);
    if (activation != QSAE_ACT_RELU && activation != QSAE_ACT_JUMPRELU &&
        activation != QSAE_ACT_GATED)
        return complain(CMD_FAILED,
                        "%.300s: its activation, %s, is not one whose features are "
                        "known not to depend on each other",
                        r->sae_path, qsae_activation_name(r->info.activation));
    for (uint32_t i = 0; i < r->n; i++)
        if (!sae_row(&r->numbers, r->wanted[i], &r->rows[i]))
            return sae_complain_number(&r->numbers, "--features", r->wanted[i]);
    return CMD_OK;
}

/* The notes of the whole SAE, and which features these are. */
static int make_meta(extract_run *r, char *err, size_t cap)
{
    char *text = NULL, *list = malloc((size_t)r->n * 11 + 1);
    size_t at = 0;
    if (!list)
        return err_set(err, cap, "out of memory");
    if (qread_meta(&r->q, 1 + (uint32_t)r->info.index, &text, err, cap)) {
        free(list);
        return -1;
    }
    for (char *line = text; line && *line;) {
        size_t n = strcspn(line, "\n"), key = strcspn(line, "=\n");
        char *next = line + n + (line[n] != 0);
        line[n] = 0;
        if (key < n && strncmp(line, "extract.", 8) != 0) {
            line[key] = 0;
            qfile_meta_add(&r->meta, line, "%s", line + key + 1);
        }
        line = next;
    }
    for (uint32_t i = 0; i < r->n; i++)
        at += (size_t)sprintf(list + at, "%s%u", i ? "," : "", (unsigned)r->wanted[i]);
    qfile_meta_add(&r->meta, "extract.features", "%s", list);
    qfile_meta_add(&r->meta, "extract.from", "%s", name_z(r->info.name).text);
    free(text);
    free(list);
    return qfile_meta_finish(&r->meta, err, cap);
}

/* What of a tensor belongs to one feature. A role that is not known here is refused. */
enum { WHOLE, NOTES, ROW, ENTRY, LEFT_OUT };

static int part_of(uint32_t role)
{
    switch (role) {
    case QSAE_ROLE_META: return NOTES;
    case QSAE_ROLE_ENC:
    case QSAE_ROLE_DEC: return ROW;
    case QSAE_ROLE_B_ENC:
    case QSAE_ROLE_THETA:
    case QSAE_ROLE_MAG_SCALE:
    case QSAE_ROLE_MAG_BIAS: return ENTRY;
    case QSAE_ROLE_B_DEC:
    case QSAE_ROLE_SKIP: return WHOLE;
    case QSAE_ROLE_SCREEN: /* a pack is small: all its rows are computed */
    case QSAE_ROLE_SCREEN_REST:
    case QSAE_ROLE_SCREEN_NORM: return LEFT_OUT;
    default: return -1;
    }
}

typedef struct source {
    const extract_run *run;
    const qsae_tensor_record *tensor;
} source;

static int fill(void *user, const qfile_part *p, float *out, char *err, size_t cap)
{
    const source *s = user;
    for (uint64_t i = 0; i < p->n_rows; i++) {
        uint64_t row =
            part_of(s->tensor->role) == ROW ? s->run->rows[p->row + i] : p->row + i;
        if (qread_block(&s->run->q, s->tensor, row, 1, p->col, p->n_cols,
                        out + i * p->n_cols, err, cap))
            return -1;
    }
    return 0;
}

static int write_vector(const extract_run *r, qfile *q, const qsae_tensor_record *t,
                        char *err, size_t cap)
{
    int by_feature = part_of(t->role) == ENTRY;
    uint64_t n = by_feature ? r->n : t->cols;
    float *v = malloc((size_t)n * sizeof *v);
    int bad = v ? 0 : err_set(err, cap, "out of memory");
    if (!bad && !by_feature)
        bad = qread_block(&r->q, t, 0, 1, 0, n, v, err, cap);
    for (uint64_t i = 0; by_feature && i < n && !bad; i++)
        bad = qread_block(&r->q, t, 0, 1, r->rows[i], 1, v + i, err, cap);
    if (!bad)
        bad = qfile_vector(q, v, err, cap);
    free(v);
    return bad;
}

/* The tensors of the member, in the order of its file: that is the order of ours. */
static int declare(const extract_run *r, qfile *q, const qsae_tensor_record *t,
                   char *err, size_t cap)
{
    int part = part_of(t->role);
    uint64_t rows = part == ROW ? r->n : t->rows;
    uint64_t cols = part == NOTES ? r->meta.len : part == ENTRY ? r->n : t->cols;
    if (part == LEFT_OUT)
        return 0;
    if (part < 0)
        return err_set(err, cap,
                       "%.300s: a tensor of role %u, which extract does not know",
                       r->sae_path, (unsigned)t->role);
    return qfile_declare(q, 1, t->role, t->type, t->layout, rows, cols, err, cap);
}

static int write_tensor(extract_run *r, qfile *q, const qsae_tensor_record *t,
                        char *err, size_t cap)
{
    source s = {r, t};
    if (part_of(t->role) == LEFT_OUT)
        return 0;
    if (t->role == QSAE_ROLE_META)
        return qfile_bytes(q, r->meta.text, err, cap);
    if (t->layout == QSAE_LAYOUT_VECTOR)
        return write_vector(r, q, t, err, cap);
    return qfile_matrix(q, fill, &s, err, cap);
}

static int write_all(extract_run *r, qfile *q, char *err, size_t cap)
{
    uint32_t group = 1 + (uint32_t)r->info.index;
    const qsae_tensor_record *dir = r->q.dir, *end = dir + r->q.head.n_tensors;
    /* META has the lowest role; a source without it gets one all the same */
    if (!qread_find(&r->q, group, QSAE_ROLE_META) &&
        qfile_declare(q, 1, QSAE_ROLE_META, QSAE_TYPE_BYTES, QSAE_LAYOUT_BYTES, 1,
                      r->meta.len, err, cap))
        return -1;
    for (const qsae_tensor_record *t = dir; t < end; t++)
        if (t->group == group && declare(r, q, t, err, cap))
            return -1;
    if (!qread_find(&r->q, group, QSAE_ROLE_META) &&
        qfile_bytes(q, r->meta.text, err, cap))
        return -1;
    for (const qsae_tensor_record *t = dir; t < end; t++)
        if (t->group == group && write_tensor(r, q, t, err, cap))
            return -1;
    return 0;
}

static int write_pack(extract_run *r)
{
    char err[ERR_CAP];
    qfile *q = NULL;
    if (qread_open(&r->q, r->sae_path, err, sizeof err) ||
        make_meta(r, err, sizeof err) ||
        !(q = qfile_create(r->out_path, QSAE_KIND_SAE, 1, err, sizeof err)))
        return complain(CMD_FAILED, "%s", err);
    qsae_sae_record record = qread_sae(&r->q, (uint32_t)r->info.index);
    record.d_sae = r->n;
    memcpy(qfile_record(q, 0), &record, sizeof record);
    if (write_all(r, q, err, sizeof err)) {
        qfile_abort(q);
        return complain(CMD_FAILED, "%s", err);
    }
    if (qfile_finish(q, qfile_check_sae, err, sizeof err))
        return complain(CMD_FAILED, "%s", err);
    printf("%s: %u of %d features of \"%s\", %s of layer %d\n", r->out_path,
           (unsigned)r->n, (int)r->info.d_sae, name_z(r->info.name).text,
           qsae_site_name(r->info.site_in), (int)r->info.layer_in);
    return CMD_OK;
}

static int work(extract_run *r)
{
    int code = output_check(r->out_path, r->sae_path, "the SAE");
    if (code == CMD_OK)
        code = output_replaces(r->out_path, QSAE_FILE_MAGIC, 8, ".qsae file");
    if (code == CMD_OK)
        code = sae_open_choice(&r->in, r->sae_path, &r->choice, &r->sae);
    if (code != CMD_OK)
        return code;
    qsae_sae_get_info(r->sae, &r->info);
    code = sae_numbers_read(r->sae_path, &r->info, &r->numbers);
    if (code == CMD_OK)
        code = check(r);
    return code == CMD_OK ? write_pack(r) : code;
}

int cmd_extract(int argc, char **argv)
{
    int help = 0;
    extract_run r;
    memset(&r, 0, sizeof r);
    r.choice = sae_choice_any();
    int code = parse(&r, argc, argv, &help);
    if (code == CMD_OK && !help)
        code = work(&r);
    qread_close(&r.q);
    qsae_sae_close(r.sae);
    sae_numbers_free(&r.numbers);
    qfile_meta_free(&r.meta);
    free(r.wanted);
    free(r.rows);
    return code;
}
