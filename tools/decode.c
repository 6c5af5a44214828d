/* `qsae decode`: sparse rows of features back to rows of numbers. */

#include "checked.h"
#include "cmd.h"
#include "output.h"
#include "npy.h"
#include "rows.h"
#include "sparse.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
static const char usage[] =
    "Usage: qsae decode SAE.qsae FEATURES -o OUT.npy [--input IN] [options]\n"
    "Decodes rows of features, as `qsae encode` writes them (.jsonl or .safetensors), to\n"
    "an npy file of float32 [n, d_out].\n"
    "\n"
    "  -o OUT.npy        the file to write\n"
    "  --input IN        the rows that were encoded (as for encode): needed where the SAE\n"
    "                    has a skip connection or scales every row by its own norm; else\n"
    "                    only its shape is compared\n"
    "  --tensor NAME     the tensor of IN, where there are several\n"
    SAE_USAGE
    SAE_RUN_USAGE;
/* clang-format on */

enum { OPT_TENSOR = OPT_OWN, OPT_INPUT, OPT_OUT };

static const args_option option_table[] = {
    SAE_OPTIONS,
    SAE_RUN_OPTIONS,
    {"tensor", 0, OPT_TENSOR, ARGS_VALUE},
    {"input", 0, OPT_INPUT, ARGS_VALUE},
    {NULL, 'o', OPT_OUT, ARGS_VALUE},
    {NULL, 0, 0, 0},
};

typedef struct decode_run {
    input in;
    const char *sae_path, *features_path, *out_path, *input_path, *tensor;
    sae_choice choice;
    qsae_sae *sae;
    qsae_sae_info info;
    sae_numbers numbers;
    sparse_reader *features;
    rows_in rows;
    npy_writer *out;
    size_t batch;     /* rows at once */
    qsae_rows sparse; /* of a batch */
    float *x, *y;     /* [batch, d_in], [batch, d_out] */
    void *scratch;
    size_t scratch_size;
} decode_run;

static int take_option(void *run, const args *a, int id)
{
    decode_run *r = run;
    switch (id) {
    case OPT_TENSOR: r->tensor = a->value; return CMD_OK;
    case OPT_INPUT: r->input_path = a->value; return CMD_OK;
    case OPT_OUT: r->out_path = a->value; return CMD_OK;
    case OPT_THREADS:
    case OPT_ISA:
    case OPT_NO_VERIFY: return input_take(&r->in, a, id);
    default: return sae_choice_take(&r->choice, a, id);
    }
}

static int parse(decode_run *r, int argc, char **argv, int *help)
{
    args a = args_begin(argc, argv, option_table, usage);
    const char **const slots[] = {&r->sae_path, &r->features_path};
    int code = args_walk(&a, slots, 2, take_option, r, help);
    if (code != CMD_OK || *help)
        return code;
    if (!r->sae_path || !r->features_path || !r->out_path)
        return complain(CMD_USAGE,
                        "decode needs SAE.qsae, FEATURES and -o OUT.npy (see: "
                        "qsae decode --help)");
    if (r->tensor && !r->input_path)
        return complain(CMD_USAGE, "--tensor needs --input");
    size_t n = strlen(r->out_path);
    if (n < 4 || strcmp(r->out_path + n - 4, ".npy") != 0)
        return complain(CMD_USAGE, "-o %.200s: the name ends in .npy", r->out_path);
    return CMD_OK;
}

/* ------------------------------------------------------------------------ the work */

/* A norm's scale leaves and comes back with every row; a transcoder's output has none. */
static int needs_input(const qsae_sae_info *s)
{
    return s->has_skip || (s->norm != QSAE_NORM_NONE && !s->is_transcoder);
}

static int open_input(decode_run *r)
{
    char err[ERR_CAP];
    uint64_t n = sparse_count(r->features);
    if (!r->input_path && needs_input(&r->info))
        return complain(
            CMD_FAILED,
            "%.200s: decoding needs the rows that were encoded, --input IN: "
            "the SAE %s",
            r->sae_path,
            r->info.has_skip ? "has a skip connection"
                             : "scales every row by its own norm");
    if (!r->input_path)
        return CMD_OK;
    if (rows_open(&r->rows, r->input_path, r->tensor, (uint64_t)r->info.d_in, err,
                  sizeof err))
        return complain(CMD_FAILED, "%s", err);
    if (r->rows.n != n)
        return complain(CMD_FAILED, "%.200s has %" PRIu64 " rows, %.200s has %" PRIu64,
                        r->input_path, r->rows.n, r->features_path, n);
    return CMD_OK;
}

static int prepare(decode_run *r)
{
    char err[ERR_CAP];
    size_t wide = (size_t)(r->info.d_in > r->info.d_out ? r->info.d_in : r->info.d_out);
    r->batch = ((size_t)1 << 22) / wide < 256 ? ((size_t)1 << 22) / wide : 256;
    r->scratch_size = qsae_sae_scratch_size(r->sae, r->batch);
    if (r->scratch_size == SIZE_MAX)
        return complain(CMD_FAILED, "%.300s: this SAE is too large", r->sae_path);
    r->x = r->rows.file ? malloc(r->batch * (size_t)r->info.d_in * sizeof *r->x) : NULL;
    r->y = malloc(r->batch * (size_t)r->info.d_out * sizeof *r->y);
    r->scratch = malloc(r->scratch_size + 1);
    r->sparse.start = malloc((r->batch + 1) * sizeof(size_t));
    if ((r->rows.file && !r->x) || !r->y || !r->scratch || !r->sparse.start)
        return complain(CMD_FAILED, "out of memory for %zu rows", r->batch);
    uint64_t shape[2] = {sparse_count(r->features), (uint64_t)r->info.d_out};
    r->out = npy_writer_create(r->out_path, TENSOR_F32, 2, shape, err, sizeof err);
    return r->out ? CMD_OK : complain(CMD_FAILED, "%s", err);
}

static int decode_batch(decode_run *r, uint64_t first)
{
    char text[ERR_CAP];
    qsae_error err;
    size_t n = r->sparse.n_rows;
    if (r->x && rows_read(&r->rows, first, n, r->x, text, sizeof text))
        return complain(CMD_FAILED, "%s", text);
    if (qsae_sae_decode(r->sae, &r->sparse, r->x, 0, r->y, r->scratch, r->scratch_size,
                        sae_threads(&r->in), &err) != QSAE_OK)
        return complain(CMD_FAILED, "%.200s: rows %" PRIu64 "..%" PRIu64 ": %s",
                        r->features_path, first, first + n - 1, err.text);
    if (npy_writer_data(r->out, r->y, n * (size_t)r->info.d_out * sizeof *r->y, text,
                        sizeof text))
        return complain(CMD_FAILED, "%s", text);
    return CMD_OK;
}

static int decode_all(decode_run *r)
{
    char err[ERR_CAP];
    for (uint64_t at = 0;; at += r->sparse.n_rows) {
        if (sparse_read(r->features, r->batch, &r->sparse, err, sizeof err))
            return complain(CMD_FAILED, "%s", err);
        if (r->sparse.n_rows == 0)
            break;
        int code = decode_batch(r, at);
        if (code != CMD_OK)
            return code;
    }
    int bad = npy_writer_commit(r->out, err, sizeof err);
    r->out = NULL;
    if (bad)
        return complain(CMD_FAILED, "%s", err);
    printf("%s: %" PRIu64 " rows of %d%s\n", r->out_path, sparse_count(r->features),
           (int)r->info.d_out,
           r->numbers.list ? ", the part of a pack's features only" : "");
    return CMD_OK;
}

static int work(decode_run *r)
{
    char err[ERR_CAP];
    int code = output_check(r->out_path, r->sae_path, "the SAE");
    if (code == CMD_OK)
        code = output_check(r->out_path, r->features_path, "the features");
    if (code == CMD_OK)
        code = output_check(r->out_path, r->input_path, "the input");
    if (code == CMD_OK)
        code = sae_open_choice(&r->in, r->sae_path, &r->choice, &r->sae);
    if (code != CMD_OK)
        return code;
    qsae_sae_get_info(r->sae, &r->info);
    code = sae_numbers_read(r->sae_path, &r->info, &r->numbers);
    if (code != CMD_OK)
        return code;
    r->features = sparse_open(r->features_path, &r->numbers, err, sizeof err);
    if (!r->features)
        return complain(CMD_FAILED, "%s", err);
    code = open_input(r);
    if (code == CMD_OK)
        code = prepare(r);
    return code == CMD_OK ? decode_all(r) : code;
}

int cmd_decode(int argc, char **argv)
{
    int help = 0;
    decode_run r;
    memset(&r, 0, sizeof r);
    r.choice = sae_choice_any();
    int code = parse(&r, argc, argv, &help);
    if (code == CMD_OK && !help)
        code = work(&r);
    npy_writer_abort(r.out);
    sparse_close(r.features);
    rows_close(&r.rows);
    qsae_sae_close(r.sae);
    sae_numbers_free(&r.numbers);
    free(r.x);
    free(r.y);
    free(r.scratch);
    free(r.sparse.start);
    free(r.sparse.index);
    free(r.sparse.value);
    return code;
}
