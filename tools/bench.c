/* `qsae bench`: how fast this machine is, and how much of that is used. */

#define _POSIX_C_SOURCE 200809L

#include "bench_run.h"
#include "cmd.h"
#include "input.h"
#include "text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

/* clang-format off */
static const char usage[] =
    "Usage: qsae bench [--shape S [--type T] | --model FILE.qsae] [options]\n"
    "Measures this machine, then the library on it, and says how much of the machine's\n"
    "limit each figure is. Needs no checkpoint: speed does not depend on the weights.\n"
    "\n"
    "  --shape S         random weights of a Qwen3 of 0.6B, 1.7B, 4B or 8B; default 1.7B\n"
    "  --type T          of those and of the SAEs: f32, bf16, q8 or q4; default q8\n"
    "                    (SAEs are f32 for f32, else bf16)\n"
    "  --model FILE      this model instead\n"
    "  --only A,B,...    some of:\n"
    "    probe             the machine alone (always measured)\n"
    "    rss               peak memory of a process that opens the model and reads 128\n"
    "                      tokens; its limit is the file and the context. `n`: 128\n"
    "    open              seconds to open the model and make a context (`n` 0), and by\n"
    "                      how much a first prompt of 128 tokens is later than a second\n"
    "                      one, opening included (`n` 128)\n"
    "    decode            one token after another, 64 of them. `n`: 1\n"
    "    prefill           prompts of 128, 512 and 2048 tokens. `n`: tokens\n"
    "    eval_many         2, 4 and 8 contexts, a token each at a time. `n`: contexts\n"
    "    eval_edits        the same for 8, each with an edit of its own in every layer\n"
    "    sae_all           decode, and an SAE of 32768 features encoding a row of every\n"
    "                      layer after each token: four SAEs in turn, more than caches\n"
    "                      hold; rows of variance 1. `n`: SAEs\n"
    "    sensors           the same with 64 features a layer, each of its own SAE\n"
    "    capture_all       128 tokens, resid_post of every layer captured. `n`: 128\n"
    "    sae_encode        2048 x 16384, 32768, 65536; 1, 8, 128 rows. `n`: rows; with\n"
    "                      the screen, whose `exact` rows are computed\n"
    "    sae_encode_dense  the same without the screen\n"
    "                    and only if named, as they take long:\n"
    "    decode_context    decode behind 128, 512, 2048, 8192, 32768 tokens, as far as\n"
    "                      --context goes (default 2048 here). `n`: those tokens\n"
    "    eval_many_batch   1, 2, 4, 8 and 16 contexts, a token each at a time\n"
    "  --seconds S       for each figure, about; default 2. Slow calls are made three\n"
    "                    times, or fewer if that is five times too long\n"
    "  --threads N       1..1024; default all processors\n"
    "  --batch N         tokens computed together in a prefill; default 128\n"
    "  --context N       tokens before those that decode is timed on; default 1\n"
    "  --kv TYPE         keys and values kept as f32 (default), f16 or bf16\n"
    "  --isa NAME        the library's kernels: auto, scalar, avx2, avx512, avx512vnni,\n"
    "                    neon, neondot, neoni8mm\n"
    "  --json            one object; all samples and the limit of each\n"
    "  --help            this text\n"
    "\n"
    "The limit of a figure is the time that its bytes of weights, keys and values take\n"
    "at the bandwidth probed, or its multiplications at the peak probed, whichever is\n"
    "longer, by the probes just before and after it: f32 FMA for f32 and bf16 weights,\n"
    "SAEs and attention; for q8 and q4 half of the int8 peak (VNNI, dotprod:\n"
    "activations have two planes of 8 bits), or int16 vpmaddwd where there is none.\n"
    "Weights that fit in the caches can be read faster than the probe reads memory.\n"
    "The best sample counts. Machines drift: compare only what ran at one time.\n";
/* clang-format on */

enum {
    OPT_SHAPE = OPT_OWN,
    OPT_TYPE,
    OPT_MODEL,
    OPT_ONLY,
    OPT_SECONDS,
    OPT_BATCH,
    OPT_CONTEXT,
    OPT_JSON
};

static const args_option option_table[] = {
    {"shape", 0, OPT_SHAPE, ARGS_VALUE},
    {"type", 0, OPT_TYPE, ARGS_VALUE},
    {"model", 0, OPT_MODEL, ARGS_VALUE},
    {"only", 0, OPT_ONLY, ARGS_VALUE},
    {"seconds", 0, OPT_SECONDS, ARGS_VALUE},
    {"threads", 0, OPT_THREADS, ARGS_VALUE},
    {"batch", 0, OPT_BATCH, ARGS_VALUE},
    {"context", 0, OPT_CONTEXT, ARGS_VALUE},
    {"isa", 0, OPT_ISA, ARGS_VALUE},
    {"kv", 0, OPT_KV, ARGS_VALUE},
    {"json", 0, OPT_JSON, 0},
    {NULL, 0, 0, 0},
};

typedef struct bench_command {
    input in; /* threads and isa */
    bench_setup setup;
    int json;
} bench_command;

/* --------------------------------------------------------------------- command line */

static int take_shape(bench_command *c, const char *text)
{
    c->setup.shape = image_find_shape(text);
    if (c->setup.shape)
        return CMD_OK;
    return complain(CMD_USAGE, "--shape: '%.60s' is none of 0.6B 1.7B 4B 8B", text);
}

static int take_type(bench_command *c, const char *text)
{
    static const struct {
        const char *name;
        uint32_t type;
    } types[] = {{"f32", QSAE_TYPE_F32},
                 {"bf16", QSAE_TYPE_BF16},
                 {"q8", QSAE_TYPE_Q8},
                 {"q4", QSAE_TYPE_Q4}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(types[i].name, text) == 0) {
            c->setup.type = types[i].type;
            return CMD_OK;
        }
    return complain(CMD_USAGE, "--type: '%.60s' is none of f32 bf16 q8 q4", text);
}

/* The bit of a name of --only; 0 for "probe", -1 for none. */
static int only_bit(const char *text, size_t len)
{
    if (len == 5 && memcmp(text, "probe", 5) == 0)
        return 0;
    for (int i = 0; i < BENCH_COUNT; i++) {
        const char *name = bench_name_text((bench_name)i);
        if (strlen(name) == len && memcmp(name, text, len) == 0)
            return 1 << i;
    }
    return -1;
}

static int take_only(bench_command *c, const char *text)
{
    c->setup.only = 0;
    for (;;) {
        size_t len = strcspn(text, ",");
        int bit = only_bit(text, len);
        if (bit < 0)
            return complain(CMD_USAGE,
                            "--only: '%.*s' is none of probe rss open decode prefill"
                            " eval_many eval_edits sae_all sensors capture_all"
                            " sae_encode sae_encode_dense decode_context"
                            " eval_many_batch",
                            (int)(len < 60 ? len : 60), text);
        c->setup.only |= (unsigned)bit;
        if (text[len] == '\0')
            return CMD_OK;
        text += len + 1;
    }
}

static int take_count(const args *a, int64_t most, int32_t *out)
{
    int64_t v;
    int code = args_integer(a->option, a->value, 1, most, &v);
    if (code == CMD_OK)
        *out = (int32_t)v;
    return code;
}

static int take_option(void *run, const args *a, int id)
{
    bench_command *c = run;
    float seconds;
    int code;
    switch (id) {
    case OPT_SHAPE: return take_shape(c, a->value);
    case OPT_TYPE: return take_type(c, a->value);
    case OPT_MODEL: c->setup.model_path = a->value; return CMD_OK;
    case OPT_ONLY: return take_only(c, a->value);
    case OPT_BATCH: return take_count(a, 65536, &c->setup.batch);
    case OPT_CONTEXT: return take_count(a, 1 << 19, &c->setup.context);
    case OPT_JSON: c->json = 1; return CMD_OK;
    case OPT_SECONDS:
        code = args_real(a->option, a->value, 0.001, 3600, &seconds);
        if (code == CMD_OK)
            c->setup.seconds = (double)seconds;
        return code;
    default: return input_take(&c->in, a, id);
    }
}

static int parse(bench_command *c, int argc, char **argv, int *help)
{
    args a = args_begin(argc, argv, option_table, usage);
    int code = args_walk(&a, NULL, 0, take_option, c, help);
    if (code != CMD_OK || *help)
        return code;
    bench_setup *s = &c->setup;
    if (s->model_path && s->shape)
        return complain(CMD_USAGE, "give only one of --shape and --model");
    if (s->model_path && s->type)
        return complain(CMD_USAGE, "--type is for random weights: --model has its own");
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    s->threads = c->in.threads ? c->in.threads
                 : cpus < 1    ? 1
                 : cpus > 1024 ? 1024
                               : (int)cpus;
    s->isa = c->in.isa;
    s->kv = c->in.kv;
    s->progress = isatty(STDERR_FILENO);
    if (!s->type)
        s->type = QSAE_TYPE_Q8;
    if (!s->model_path && !s->shape)
        s->shape = image_find_shape("1.7B");
    return CMD_OK;
}

/* --------------------------------------------------------------------------- output */

static const char *compiler(void)
{
#if defined(__clang__)
    return __VERSION__; /* says clang itself */
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#else
    return "unknown";
#endif
}

static int has_openmp(void)
{
#if defined(_OPENMP)
    return 1;
#else
    return 0;
#endif
}

static void put_text(const char *key, const char *text)
{
    printf("\"%s\":", key);
    text_json(stdout, text, strlen(text));
}

/* A number that is not known, which is 0, as null. */
static void put_number(const char *key, double v)
{
    if (v > 0)
        printf(",\"%s\":%.6g", key, v);
    else
        printf(",\"%s\":null", key);
}

static void print_json(const bench_report *r)
{
    struct utsname u;
    memset(&u, 0, sizeof u);
    uname(&u);
    uint32_t v = qsae_version();
    printf("{\"machine\":{");
    put_text("cpu", r->cpu);
    printf(",");
    put_text("arch", u.machine);
    printf(",");
    put_text("os", u.sysname);
    printf(",");
    put_text("compiler", compiler());
    printf(
        ",\"cpus\":%ld,\"threads\":%d,\"openmp\":%s,\"isa\":\"%s\",\"qsae\":\"%u.%u.%u\"}",
        sysconf(_SC_NPROCESSORS_ONLN), r->threads, has_openmp() ? "true" : "false",
        qsae_isa_name(r->isa), (unsigned)(v >> 16), (unsigned)(v >> 8 & 255),
        (unsigned)(v & 255));
    printf(",\"probe\":{\"read_gbs\":%.6g", r->probe[PROBE_READ] / 1e9);
    put_number("fma_gflops", r->probe[PROBE_FMA] / 1e9);
    put_number("madd_gops", r->probe[PROBE_MADD] / 1e9);
    put_number("vnni_gops", r->probe[PROBE_VNNI] / 1e9);
    printf(",\"amx_gops\":null"); /* there are no kernels for AMX yet */
    printf("},\"results\":[");
    for (size_t i = 0; i < r->n; i++) {
        const bench_result *b = &r->results[i];
        printf("%s\n{\"name\":\"%s\",", i ? "," : "", bench_name_text(b->name));
        put_text("type", b->type);
        printf(",");
        put_text("shape", b->shape);
        printf(",\"n\":%lld", (long long)b->n);
        if (b->context > 0)
            printf(",\"context\":%lld", (long long)b->context);
        printf(",\"value\":%.6g,\"unit\":\"%s\"", b->value, b->unit);
        put_number("limit", b->limit);
        put_number("share", b->share);
        if (b->exact >= 0)
            put_number("exact", b->exact);
        printf(",\"samples\":[");
        for (size_t k = 0; k < b->n_samples; k++)
            printf("%s%.6g", k ? "," : "", b->samples[k]);
        printf("],\"limits\":[");
        for (size_t k = 0; k < b->n_samples && b->limits[k] > 0; k++)
            printf("%s%.6g", k ? "," : "", b->limits[k]);
        printf("]}");
    }
    printf("%s]}\n", r->n ? "\n" : "");
}

static void print_peak(const char *name, double rate, const char *unit)
{
    if (rate > 0)
        printf("  %s %.4g %s", name, rate / 1e9, unit);
}

static void print_value(double v, const char *unit)
{
    if (strcmp(unit, "bytes") == 0)
        printf(" %8.1f MB    ", v / 1e6);
    else if (strcmp(unit, "s") == 0)
        printf(" %8.2f ms    ", v * 1e3);
    else
        printf(" %8.*f %-6s", v < 100 ? 2 : 1, v, unit);
}

static void print_result(const bench_result *b)
{
    double least = b->samples[0], most = b->samples[0];
    for (size_t i = 1; i < b->n_samples; i++) {
        least = b->samples[i] < least ? b->samples[i] : least;
        most = b->samples[i] > most ? b->samples[i] : most;
    }
    printf("%-16s  %-5s %-12.24s %5lld ", bench_name_text(b->name), b->type, b->shape,
           (long long)b->n);
    print_value(b->value, b->unit);
    if (b->limit > 0) {
        print_value(b->limit, b->unit);
        printf(" %4.0f %%", 100 * b->share);
    } else {
        printf(" %8s %-6s %6s", "-", "", "-");
    }
    double scale = strcmp(b->unit, "bytes") == 0 ? 1e-6
                   : strcmp(b->unit, "s") == 0   ? 1e3
                                                 : 1;
    printf("   %.4g..%.4g (%zu)", least * scale, most * scale, b->n_samples);
    if (b->exact >= 0)
        printf(", %.2f %% exact", 100 * b->exact);
    putchar('\n');
}

static void print_table(const bench_report *r)
{
    uint32_t v = qsae_version();
    printf("%s, %d thread%s, kernels %s; qsae %u.%u.%u, %s%s\n", r->cpu, r->threads,
           r->threads == 1 ? "" : "s", qsae_isa_name(r->isa), (unsigned)(v >> 16),
           (unsigned)(v >> 8 & 255), (unsigned)(v & 255), compiler(),
           has_openmp() ? ", OpenMP" : "");
    printf("probed:");
    print_peak("read", r->probe[PROBE_READ], "GB/s");
    print_peak("f32 FMA", r->probe[PROBE_FMA], "GFLOP/s");
    print_peak("int16 madd", r->probe[PROBE_MADD], "GOP/s");
    print_peak("int8 dot", r->probe[PROBE_VNNI], "GOP/s");
    printf("\n");
    if (r->n == 0)
        return;
    printf("\n%-16s  %-5s %-12s %5s  %8s        %8s         %s   samples\n", "name",
           "type", "shape", "n", "best", "limit", "share");
    for (size_t i = 0; i < r->n; i++)
        print_result(&r->results[i]);
}

int cmd_bench(int argc, char **argv)
{
    int help = 0, code;
    bench_command c;
    bench_report *r = calloc(1, sizeof *r);
    if (!r)
        return complain(CMD_FAILED, "out of memory");
    memset(&c, 0, sizeof c);
    c.in.text_name = "text";
    c.setup.seconds = 2;
    c.setup.batch = 128;
    c.setup.only =
        (1u << BENCH_DECODE_CONTEXT) - 1; /* the first of those that take long */
    code = parse(&c, argc, argv, &help);
    if (code == CMD_OK && !help)
        code = bench_run(&c.setup, r);
    if (code == CMD_OK && !help) {
        if (c.json)
            print_json(r);
        else
            print_table(r);
    }
    free(r);
    return code;
}
