/* `qsae encode`: the features of rows of numbers. */

#include "checked.h"
#include "cmd.h"
#include "output.h"
#include "rows.h"
#include "sinks.h"
#include "sparse.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
static const char usage[] =
    "Usage: qsae encode SAE.qsae IN -o OUT [options]\n"
    "Encodes every row of IN.\n"
    "\n"
    "IN is a safetensors file with one tensor of floats, or an npy file: [n, d_in], F32,\n"
    "F16 or BF16. `qsae capture` writes such files.\n"
    "  --tensor NAME     the tensor to read, where there are several\n"
    "OUT, by its name:\n"
    "  -o X.jsonl        a line for each row: {\"row\":0,\"features\":[[index,value],...]}\n"
    "  -o X.safetensors  CSR: indptr I64 [n+1], indices I32, values F32\n"
    "Both hold the same bits. Every row is there; rows more than 10 times as long as the\n"
    "median one are reported: their features say little.\n"
    SAE_USAGE
    SAE_RUN_USAGE;
/* clang-format on */

enum { OPT_TENSOR = OPT_OWN, OPT_OUT };

static const args_option option_table[] = {
    SAE_OPTIONS,
    SAE_RUN_OPTIONS,
    {"tensor", 0, OPT_TENSOR, ARGS_VALUE},
    {NULL, 'o', OPT_OUT, ARGS_VALUE},
    {NULL, 0, 0, 0},
};

typedef struct encode_run {
    input in;
    const char *sae_path, *in_path, *out_path, *tensor;
    sae_choice choice;
    qsae_sae *sae;
    qsae_sae_info info;
    sae_numbers numbers;
    rows_in rows;
    sparse_writer *out;
    size_t batch;     /* rows at once */
    float *x;         /* [batch, d_in] */
    qsae_rows sparse; /* of a batch */
    void *scratch;
    size_t scratch_size;
    sinks sinks;
    uint64_t n_entries;
} encode_run;

static int take_option(void *run, const args *a, int id)
{
    encode_run *r = run;
    switch (id) {
    case OPT_TENSOR: r->tensor = a->value; return CMD_OK;
    case OPT_OUT: r->out_path = a->value; return CMD_OK;
    case OPT_THREADS:
    case OPT_ISA:
    case OPT_NO_VERIFY: return input_take(&r->in, a, id);
    default: return sae_choice_take(&r->choice, a, id);
    }
}

static int parse(encode_run *r, int argc, char **argv, int *help)
{
    args a = args_begin(argc, argv, option_table, usage);
    const char **const slots[] = {&r->sae_path, &r->in_path};
    int code = args_walk(&a, slots, 2, take_option, r, help);
    if (code != CMD_OK || *help)
        return code;
    if (!r->sae_path || !r->in_path || !r->out_path)
        return complain(CMD_USAGE,
                        "encode needs SAE.qsae, IN and -o OUT (see: qsae encode "
                        "--help)");
    if (!sparse_name_ok(r->out_path))
        return complain(CMD_USAGE, "-o %.200s: the name ends in .jsonl or .safetensors",
                        r->out_path);
    return CMD_OK;
}

/* ------------------------------------------------------------------------ the work */

/* So many rows that a batch of dense ones stays small. */
static size_t batch_rows(const qsae_sae_info *info)
{
    size_t n = ((size_t)1 << 22) / (size_t)info->d_sae;
    return n < 1 ? 1 : n > 256 ? 256 : n;
}

static int prepare(encode_run *r)
{
    char err[ERR_CAP];
    r->batch = batch_rows(&r->info);
    r->scratch_size = qsae_sae_scratch_size(r->sae, r->batch);
    if (r->scratch_size == SIZE_MAX)
        return complain(CMD_FAILED, "%.300s: this SAE is too large", r->sae_path);
    r->x = malloc(r->batch * (size_t)r->info.d_in * sizeof *r->x);
    r->scratch = malloc(r->scratch_size + 1);
    r->sparse.start = malloc((r->batch + 1) * sizeof(size_t));
    if (!r->x || !r->scratch || !r->sparse.start || sinks_begin(&r->sinks) ||
        sparse_reserve(&r->sparse, r->batch * 128))
        return complain(CMD_FAILED, "out of memory for %zu rows", r->batch);
    r->out = sparse_create(r->out_path, &r->numbers, err, sizeof err);
    return r->out ? CMD_OK : complain(CMD_FAILED, "%s", err);
}

static int encode(encode_run *r, uint64_t first, size_t n)
{
    qsae_error err;
    for (;;) {
        qsae_status s = qsae_sae_encode(r->sae, r->x, n, 0, &r->sparse, r->scratch,
                                        r->scratch_size, sae_threads(&r->in), &err);
        if (s == QSAE_OK)
            return CMD_OK;
        size_t need = s == QSAE_E_LIMIT ? r->sparse.start[n] : 0;
        if (need <= r->sparse.cap)
            return complain(CMD_FAILED, "%.200s: rows %" PRIu64 "..%" PRIu64 ": %s",
                            r->in_path, first, first + n - 1, err.text);
        if (sparse_reserve(&r->sparse, need))
            return complain(CMD_FAILED, "out of memory for %zu features", need);
    }
}

static int encode_batch(encode_run *r, uint64_t first, size_t n)
{
    char err[ERR_CAP];
    size_t width = (size_t)r->info.d_in;
    if (rows_read(&r->rows, first, n, r->x, err, sizeof err))
        return complain(CMD_FAILED, "%s", err);
    int code = encode(r, first, n);
    if (code != CMD_OK)
        return code;
    for (size_t i = 0; i < n; i++)
        sinks_add(&r->sinks, first + i, sinks_norm(r->x + i * width, width));
    r->n_entries += r->sparse.start[n];
    if (sparse_write(r->out, &r->sparse, err, sizeof err))
        return complain(CMD_FAILED, "%s", err);
    return CMD_OK;
}

static void report(const encode_run *r)
{
    float median = sinks_median(&r->sinks);
    uint64_t n = sinks_count(&r->sinks);
    printf("%s: %" PRIu64 " rows", r->out_path, r->rows.n);
    if (r->rows.n)
        printf(", %.1f features a row", (double)r->n_entries / (double)r->rows.n);
    printf("\n");
    if (n == 0)
        return;
    printf("note: %" PRIu64 " row%s more than %d times as long as the median one "
           "(%.4g), so probably sinks, whose features say little:",
           n, n == 1 ? " is" : "s are", SINK_RATIO, (double)median);
    for (uint64_t i = 0; i < n && i < SINK_NAMED; i++)
        printf("%s row %" PRIu64 " (%.0fx)", i ? "," : "", r->sinks.top[i].row,
               (double)(r->sinks.top[i].norm / median));
    printf(n > SINK_NAMED ? ", ...\n" : "\n");
}

static int work(encode_run *r)
{
    char err[ERR_CAP];
    int code = output_check(r->out_path, r->sae_path, "the SAE");
    if (code == CMD_OK)
        code = output_check(r->out_path, r->in_path, "the input");
    if (code == CMD_OK)
        code = sae_open_choice(&r->in, r->sae_path, &r->choice, &r->sae);
    if (code != CMD_OK)
        return code;
    qsae_sae_get_info(r->sae, &r->info);
    code = sae_numbers_read(r->sae_path, &r->info, &r->numbers);
    if (code == CMD_OK && rows_open(&r->rows, r->in_path, r->tensor,
                                    (uint64_t)r->info.d_in, err, sizeof err))
        code = complain(CMD_FAILED, "%s", err);
    if (code == CMD_OK)
        code = prepare(r);
    for (uint64_t at = 0; at < r->rows.n && code == CMD_OK; at += r->batch)
        code = encode_batch(
            r, at, r->rows.n - at < r->batch ? (size_t)(r->rows.n - at) : r->batch);
    if (code != CMD_OK)
        return code;
    int bad = sparse_commit(r->out, err, sizeof err);
    r->out = NULL;
    if (bad)
        return complain(CMD_FAILED, "%s", err);
    report(r);
    return CMD_OK;
}

int cmd_encode(int argc, char **argv)
{
    int help = 0;
    encode_run r;
    memset(&r, 0, sizeof r);
    r.choice = sae_choice_any();
    int code = parse(&r, argc, argv, &help);
    if (code == CMD_OK && !help)
        code = work(&r);
    sparse_abort(r.out);
    rows_close(&r.rows);
    qsae_sae_close(r.sae);
    sae_numbers_free(&r.numbers);
    sinks_end(&r.sinks);
    free(r.x);
    free(r.scratch);
    free(r.sparse.start);
    free(r.sparse.index);
    free(r.sparse.value);
    return code;
}
