/* `qsae train` killed again and again at random moments, with SIGKILL and now and then with
 * SIGTERM, and resumed each time: the suite must have the bytes of the run that nobody
 * disturbed. Part of `make test` with a few kills; `make train-kill` has many.
 *
 *     train_kill QSAE MODEL TEXT FOLDER [KILLS] [SEED]
 *
 * Half of them with the shuffle buffer in memory, half with it in a file. */

#define _DEFAULT_SOURCE

#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include "test.h"

static const char *program, *model, *text, *folder;
static uint64_t state;

static uint32_t draw(uint32_t n)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((state >> 33) % n);
}

static double now(void)
{
    struct timeval t;
    gettimeofday(&t, NULL);
    return (double)t.tv_sec + (double)t.tv_usec * 1e-6;
}

static pid_t start(const char *out, const char *buffer, int resume)
{
    const char *args[48] = {program,       "train",     model,
                            "--data",      text,        "--sites",
                            "resid_post",  "--pairs",   "mlp_input:mlp_out",
                            "--layers",    "1,2",       "--width",
                            "96",          "--l0",      "6,12",
                            "--arch",      "jumprelu",  "--batch",
                            "100",         "--context", "64",
                            "--tokens",    "6000",      "--buffer",
                            "1500",        "--threads", "1",
                            "--log-every", "7",         "--checkpoint-every",
                            "0.0003",      "-o"};
    int n = 32;
    args[n++] = out;
    if (buffer) {
        args[n++] = "--buffer-file";
        args[n++] = buffer;
    }
    if (resume)
        args[n++] = "--resume";
    args[n] = NULL;
    pid_t child = fork();
    if (child == 0) {
        if (!freopen("/dev/null", "w", stdout) ||
            (resume && !freopen("/dev/null", "w", stderr)))
            _exit(97);
        execv(program, (char *const *)args);
        _exit(98);
    }
    return child;
}

static int finish(pid_t child)
{
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child)
        return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

static int same_file(const char *a, const char *b)
{
    FILE *f = fopen(a, "rb"), *g = fopen(b, "rb");
    int same = f && g, c = 0;
    while (same && c != EOF) {
        c = getc(f);
        same = c == getc(g);
    }
    if (f)
        fclose(f);
    if (g)
        fclose(g);
    return same;
}

/* Runs until `kills` signals have hit one; how many signals that took. */
static int disturbed(int with_file, int kills, double whole)
{
    char out[512], buffer[512], suite[600], reference[600];
    int hit = 0, code;
    snprintf(out, sizeof out, "%s/disturbed-%d", folder, with_file);
    snprintf(buffer, sizeof buffer, "%s/buffer", folder);
    int i = 0;
    for (; hit < kills && i < 20 * kills; i++) {
        pid_t child = start(out, with_file ? buffer : NULL, 1);
        usleep((useconds_t)(whole * 1e6 * draw(1000) / 1000 * 0.6));
        int sig = draw(4) == 0 ? SIGTERM : SIGKILL;
        kill(child, sig);
        code = finish(child);
        if (code == 256 + sig || code == 3)
            hit++;
        else if (!CHECK(code == 0))
            fprintf(stderr, "    exit code %d after kill %d\n", code, i);
        if (code == 0) { /* it was done already: from the beginning */
            snprintf(suite, sizeof suite, "%s/suite.qsae", out);
            snprintf(reference, sizeof reference, "%s/whole/suite.qsae", folder);
            CHECK(same_file(suite, reference));
            unlink(suite);
        }
    }
    code = finish(start(out, with_file ? buffer : NULL, 1));
    CHECK(code == 0);
    snprintf(suite, sizeof suite, "%s/suite.qsae", out);
    snprintf(reference, sizeof reference, "%s/whole/suite.qsae", folder);
    CHECK(same_file(suite, reference));
    CHECK(hit == kills);
    return i;
}

/* What a run of this test before left. */
static void clean(void)
{
    static const char *const names[] = {"whole/suite.qsae",
                                        "whole/checkpoint/state",
                                        "disturbed-0/suite.qsae",
                                        "disturbed-0/checkpoint/state",
                                        "disturbed-1/suite.qsae",
                                        "disturbed-1/checkpoint/state",
                                        "buffer"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[600];
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
}

int main(int argc, char **argv)
{
    char out[512];
    if (argc < 5)
        return 2;
    program = argv[1];
    model = argv[2];
    text = argv[3];
    folder = argv[4];
    int kills = argc > 5 ? atoi(argv[5]) : 60;
    state = argc > 6 ? (uint64_t)atoll(argv[6]) : (uint64_t)(now() * 1e6);
    printf("train_kill: seed %llu\n", (unsigned long long)state);
    fflush(stdout); /* before fork copies what is in the buffer */
    mkdir(folder, 0777);
    clean();
    snprintf(out, sizeof out, "%s/whole", folder);
    double begin = now();
    if (!CHECK(finish(start(out, NULL, 0)) == 0))
        return test_done("train_kill");
    double whole = now() - begin;
    int sent = disturbed(0, kills / 2, whole) + disturbed(1, kills - kills / 2, whole);
    printf("train_kill: %d of %d signals hit a run of %.2f s\n", kills, sent, whole);
    return test_done("train_kill");
}
