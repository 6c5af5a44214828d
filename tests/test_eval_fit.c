/* `qsae eval` of things that do not fit: an SAE of another width, of a layer that is not
 * there, a model whose activations are not finite. */

#ifndef _XOPEN_SOURCE
#define _XOPEN_SOURCE 700
#endif

#include "tiny.h"

#include "../tools/cmd.h"
#include "test.h"

#include <sys/stat.h>
#include <unistd.h>

static char build[200], work[300];

static const char *at(const char *name)
{
    static char path[4][600];
    static int next;
    char *p = path[next++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", work, name);
    return p;
}

static void put(const char *path, const void *data, size_t n)
{
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(data, 1, n, f) == n);
    if (f)
        fclose(f);
}

static uint8_t *get(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    uint8_t *data = tiny_alloc(16 << 20);
    *n = f ? fread(data, 1, 16 << 20, f) : 0;
    CHECK(*n > 0 && *n < 16 << 20);
    if (f)
        fclose(f);
    return data;
}

/* The command fails, and says so with these words. */
static void refused(const char *model, const char *sae, const char *words)
{
    char said[2000] = "", text[600], out[600];
    snprintf(text, sizeof text, "%s", at("text.txt"));
    snprintf(out, sizeof out, "%s", at("out"));
    char *argv[] = {"eval",
                    (char *)(uintptr_t)model,
                    (char *)(uintptr_t)sae,
                    "--data",
                    text,
                    "-o",
                    out,
                    "--no-verify",
                    NULL};
    fflush(stderr);
    int keep = dup(2);
    FILE *f = freopen(at("stderr"), "w+", stderr);
    int code = f ? cmd_eval(8, argv) : -1;
    fflush(stderr);
    rewind(stderr);
    said[fread(said, 1, sizeof said - 1, stderr)] = 0;
    dup2(keep, 2);
    close(keep);
    clearerr(stderr);
    CHECK(code == CMD_FAILED);
    if (!strstr(said, words))
        CHECK_STR(said, words);
    CHECK(strstr(said, words) != NULL);
    CHECK(access(at("out/eval.json"), F_OK) != 0);
}

static const char *sae_file(tiny_sae s, const char *name)
{
    size_t n;
    uint8_t *image = tiny_sae_file(&s, 3, &n);
    put(at(name), image, n);
    free(image);
    return at(name);
}

int main(int argc, char **argv)
{
    char toy[300];
    size_t n;
    snprintf(build, sizeof build, "%s", argc > 1 ? argv[1] : "build");
    snprintf(work, sizeof work, "%s/tmp/test_eval_fit", build);
    snprintf(toy, sizeof toy, "%s/toy.qsae", build);
    mkdir(work, 0777);
    put(at("text.txt"), "The cat sat by the door.", 24);
    tiny_sae s;
    memset(&s, 0, sizeof s);
    s.site_in = s.site_out = QSAE_RESID_POST;
    s.d_in = s.d_out = 48;
    s.d_sae = 64;
    s.activation = QSAE_ACT_RELU;
    refused(toy, sae_file(s, "narrow.qsae"),
            "reads rows of 48, resid_post of the model has 128");
    s.d_in = s.d_out = 128;
    s.layer_in = s.layer_out = 4;
    refused(toy, sae_file(s, "deep.qsae"), "is for layer 4, the model has layers 0..3");
    s.layer_in = s.layer_out = 1;
    s.site_in = QSAE_RESID_PRE;
    s.site_out = QSAE_ATTN_Z;
    refused(toy, sae_file(s, "wide.qsae"),
            "writes rows of 128, attn_z of the model has 160");
    s.site_in = s.site_out = QSAE_RESID_POST;
    uint8_t *image = get(toy, &n);
    /* embeddings of 3e38: sums of them overflow */
    for (uint64_t id = 0; id < 1040; id++)
        for (uint64_t k = 0; k < 128; k++)
            tiny_poke(image, 0, QSAE_ROLE_EMBED, id, k, 3e38f);
    put(at("huge.qsae"), image, n);
    free(image);
    char huge[600];
    snprintf(huge, sizeof huge, "%s", at("huge.qsae"));
    refused(huge, sae_file(s, "fits.qsae"),
            "resid_post of layer 1 is not finite at token 0");
    return test_done("test_eval_fit");
}
