/* make big-convert: a SAELens folder of 2 x 65,536 x 4,096 f32 (2 GiB) is converted.
 * Shown: time and speed, peak memory of the converter (it must stay below 256 MB), the
 * time of a plain copy of the file, the time to read one matrix against its grain; then the converter is killed at random moments, and
 * nothing may stand under the name of its output. Needs 5 GiB of disk; not part of `make
 * test`.
 *
 *     big_convert QSAE FOLDER [FEATURES] [WIDTH] [KILLS] */

#define _DEFAULT_SOURCE

#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../tools/safetensors.h"
#include "test.h"

#define MAX_RSS_MB 256.0

static char err[ERR_CAP];
static const char *program;
static char folder[400];

static const char *in_folder(const char *name)
{
    static char paths[4][512];
    static int next;
    char *p = paths[next++ % 4];
    snprintf(p, sizeof paths[0], "%s/%s", folder, name);
    return p;
}

static double now(void)
{
    struct timeval t;
    gettimeofday(&t, NULL);
    return (double)t.tv_sec + (double)t.tv_usec * 1e-6;
}

/* ---- the source ---- */

static int write_values(st_writer *w, uint64_t n)
{
    static float part[1 << 16];
    static uint32_t state = 1;
    for (uint64_t at = 0; at < n;) {
        uint64_t m = n - at < sizeof part / 4 ? n - at : sizeof part / 4;
        for (uint64_t i = 0; i < m; i++) {
            state = state * 1664525u + 1013904223u;
            part[i] = ((float)(state >> 8) - 0x1p23f) * 0x1p-30f;
        }
        if (st_writer_data(w, part, (size_t)m * 4, err, sizeof err))
            return -1;
        at += m;
    }
    return 0;
}

static int write_source(uint64_t F, uint64_t d)
{
    const struct {
        const char *name;
        uint32_t rank;
        uint64_t shape[2], n;
    } list[] = {{"W_enc", 2, {d, F}, d * F},
                {"W_dec", 2, {F, d}, d * F},
                {"b_enc", 1, {F, 0}, F},
                {"b_dec", 1, {d, 0}, d}};
    FILE *cfg = fopen(in_folder("cfg.json"), "w");
    if (!cfg)
        return -1;
    fprintf(cfg,
            "{\"architecture\": \"standard\", \"d_in\": %" PRIu64
            ", \"d_sae\": %" PRIu64
            ", \"dtype\": \"float32\", \"apply_b_dec_to_input\": true,\n"
            "\"normalize_activations\": \"none\", \"metadata\": {\"hook_name\": "
            "\"blocks.1.hook_resid_post\", \"sae_lens_version\": \"6.54.12\"}}\n",
            d, F);
    fclose(cfg);
    st_writer *w =
        st_writer_create(in_folder("sae_weights.safetensors"), err, sizeof err);
    for (int i = 0; w && i < 4; i++)
        if (st_writer_declare(w, list[i].name, TENSOR_F32, list[i].rank, list[i].shape,
                              err, sizeof err))
            return -1;
    for (int i = 0; w && i < 4; i++)
        if (write_values(w, list[i].n))
            return -1;
    return w ? st_writer_commit(w, err, sizeof err) : -1;
}

/* W_enc as [F, d], which it is column-major, in parts as the converter's writer asks for
 * them: seconds, -1 on failure. */
static double read_columns(uint64_t F, uint64_t d)
{
    const uint64_t step = 4096;
    double begin = now();
    tensor_file *f =
        tensors_open(in_folder("sae_weights.safetensors"), err, sizeof err);
    float *part = malloc((size_t)(step * d) * sizeof *part);
    if (!CHECK(f && part))
        return -1;
    tensor t = tensor_transposed(tensors_find(f, "W_enc"));
    for (uint64_t row = 0; row < F; row += step)
        CHECK(tensor_block_f32(&t, row, F - row < step ? F - row : step, 0, d, part,
                               err, sizeof err) == 0);
    free(part);
    tensors_close(f);
    return now() - begin;
}

/* ---- runs ---- */

static pid_t start(char *const *argv)
{
    pid_t child = fork();
    if (child == 0) {
        int null = open("/dev/null", O_WRONLY);
        if (null >= 0)
            dup2(null, 1);
        execvp(argv[0], argv);
        _exit(127);
    }
    return child;
}

/* Seconds, -1 if it failed; *mb: its peak memory. */
static double timed(char *const *argv, double *mb)
{
    struct rusage use;
    int status;
    double begin = now();
    pid_t child = start(argv);
    if (child < 0 || wait4(child, &status, 0, &use) != child || !WIFEXITED(status) ||
        WEXITSTATUS(status) != 0)
        return -1;
    *mb = (double)use.ru_maxrss / 1024;
    return now() - begin;
}

static void drop_temporaries(void)
{
    char command[600];
    snprintf(command, sizeof command, "rm -f '%s'/out.qsae.tmp-*", folder);
    CHECK(system(command) == 0);
}

static void test_kills(char *const *argv, double whole, int kills)
{
    int left = 0, finished = 0;
    unsigned state = 12345;
    for (int i = 0; i < kills; i++) {
        int status;
        unlink(in_folder("out.qsae"));
        pid_t child = start(argv);
        state = state * 1664525u + 1013904223u;
        usleep((useconds_t)(whole * 1e6 * (double)(state >> 8) / 0x1p24));
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
        int there = access(in_folder("out.qsae"), F_OK) == 0;
        finished += WIFEXITED(status);
        left += there && !WIFEXITED(status);
        /* in between: renamed, but not yet ended. Then it must be whole. */
        if (there) {
            char file[512];
            char *info[] = {(char *)(uintptr_t)program, "info", file, NULL};
            double mb;
            snprintf(file, sizeof file, "%s", in_folder("out.qsae"));
            CHECK(timed(info, &mb) >= 0);
        }
        drop_temporaries();
    }
    printf(
        "killed %d times: %d had finished, %d files under the final name, all whole\n",
        kills, finished, left);
}

int main(int argc, char **argv)
{
    uint64_t F = argc > 3 ? strtoull(argv[3], NULL, 10) : 65536;
    uint64_t d = argc > 4 ? strtoull(argv[4], NULL, 10) : 4096;
    int kills = argc > 5 ? atoi(argv[5]) : 20;
    char source[512], out[512], weights[512], copy[512];
    double mb = 0, copied_mb = 0, size = 8.0 * (double)F * (double)d;
    if (argc < 3)
        return 2;
    program = argv[1];
    snprintf(folder, sizeof folder, "%s", argv[2]);
    mkdir(folder, 0777);
    snprintf(source, sizeof source, "%s", folder);
    snprintf(out, sizeof out, "%s", in_folder("out.qsae"));
    snprintf(weights, sizeof weights, "%s", in_folder("sae_weights.safetensors"));
    snprintf(copy, sizeof copy, "%s", in_folder("copy"));
    if (!CHECK(write_source(F, d) == 0)) {
        fprintf(stderr, "%s\n", err);
        return test_done("big_convert");
    }
    char *convert[] = {argv[1], "convert", source, "-o", out, NULL};
    char *plain[] = {"sh",    "-c", "cp \"$0\" \"$1\" && sync \"$1\"",
                     weights, copy, NULL};
    double copied = timed(plain, &copied_mb);
    unlink(copy);
    double seconds = timed(convert, &mb);
    CHECK(copied > 0 && seconds > 0);
    CHECK(mb < MAX_RSS_MB);
    printf("2 x %" PRIu64 " x %" PRIu64
           " f32, %.0f MB: converted in %.1f s, %.0f MB/s, peak "
           "memory %.0f MB; copied in %.1f s\n",
           F, d, size / 1e6, seconds, size / 1e6 / seconds, mb, copied);
    double columns = read_columns(F, d);
    printf(
        "a column-major matrix of %.0f MB read in parts of rows: %.1f s, %.0f MB/s\n",
        size / 2e6, columns, size / 2e6 / columns);
    if (seconds > 0)
        test_kills(convert, seconds, kills);
    unlink(out);
    unlink(weights);
    unlink(in_folder("cfg.json"));
    rmdir(folder);
    return test_done("big_convert");
}
