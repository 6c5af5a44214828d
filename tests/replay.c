/* Runs a fuzz target without a fuzzer: its seeds (tests/corpus/NAME for fuzz_NAME),
 * what can be made from them by cutting and changing bytes, and random inputs; the same
 * in every run. A crash ends the program, which tests/run.sh counts as a failure. */

#define _POSIX_C_SOURCE 200809L

#include "test.h"

#include <dirent.h>
#include <stdint.h>
#include <stdlib.h>

enum { MAX_SEED = 1 << 16, N_CHANGED = 400, N_RANDOM = 3000, MAX_RANDOM = 96 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t state = 88172645463325252u;

static uint32_t next(uint32_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)((state >> 20) % below);
}

/* From a block of exactly that size, so that a sanitizer sees a read beyond it. */
static void run(const uint8_t *data, size_t size)
{
    uint8_t *exact = malloc(size ? size : 1);
    if (!exact) {
        CHECK(exact != NULL);
        return;
    }
    if (size)
        memcpy(exact, data, size);
    if (LLVMFuzzerTestOneInput(exact, size) != 0)
        test_check(0, __FILE__, __LINE__, "the target takes the input");
    free(exact);
}

static void run_seed(const uint8_t *seed, size_t size)
{
    static uint8_t changed[MAX_SEED];
    run(seed, size);
    for (int i = 0; i < N_CHANGED && size > 0; i++) {
        memcpy(changed, seed, size);
        for (uint32_t k = next(3) + 1; k > 0; k--)
            changed[next((uint32_t)size)] = (uint8_t)next(256);
        run(changed, size);
        run(seed, next((uint32_t)size));
    }
}

static void run_corpus(const char *path)
{
    static uint8_t seed[MAX_SEED];
    char name[2048];
    DIR *dir = opendir(path);
    if (!dir)
        return; /* a target may need no seeds */
    for (struct dirent *d; (d = readdir(dir)) != NULL;) {
        if (d->d_name[0] == '.')
            continue;
        snprintf(name, sizeof name, "%s/%s", path, d->d_name);
        FILE *f = fopen(name, "rb");
        if (!CHECK(f != NULL))
            continue;
        run_seed(seed, fread(seed, 1, sizeof seed, f));
        fclose(f);
    }
    closedir(dir);
}

int main(int argc, char **argv)
{
    char path[1024];
    uint8_t random[MAX_RANDOM];
    const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
    const char *program = slash ? slash + 1 : argc > 0 ? argv[0] : "fuzz_";
    snprintf(path, sizeof path, "tests/corpus/%s", program + strlen("fuzz_"));
    run_corpus(path);
    run(random, 0);
    for (int i = 0; i < N_RANDOM; i++) {
        size_t n = next(MAX_RANDOM) + 1;
        for (size_t k = 0; k < n; k++)
            random[k] = (uint8_t)next(256);
        run(random, n);
    }
    CHECK(1); /* it got here */
    return test_done(program);
}
