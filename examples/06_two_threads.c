/* 06 two threads: one model, shared; one context for each thread.
 *
 *     cc -O2 examples/06_two_threads.c qsae.c -lm -pthread -o 06_two_threads
 *     ./06_two_threads build/toy.qsae
 *
 * Expected output: examples/expected/06_two_threads.txt */

#include "../qsae.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

enum { N_THREADS = 2, MAX_TOKENS = 128, MAX_TEXT = 2048 };

typedef struct job {
    const qsae_model *model; /* immutable: any number of threads may use it */
    const char *ask;
    char text[MAX_TEXT];
    size_t len;
    qsae_error error; /* errors are the caller's memory, too: nothing is global */
    int failed;
} job;

/* One answer in a context of its own. */
static qsae_status answer(job *j, qsae_ctx *ctx)
{
    qsae_model_info info;
    qsae_message message = {
        .role = "user", .content = j->ask, .content_len = strlen(j->ask)};
    qsae_sample_options greedy = {0};
    int32_t ids[MAX_TOKENS];
    size_t n;
    qsae_model_get_info(j->model, &info);
    qsae_status s = qsae_chat_tokens(j->model, &message, 1, QSAE_CHAT_NO_THINK, ids,
                                     MAX_TOKENS, &n, &j->error);
    for (int i = 0; s == QSAE_OK && i < 64; i++, n = 1) {
        s = qsae_eval(ctx, ids, n, &j->error);
        if (s == QSAE_OK)
            s = qsae_sample(qsae_logits(ctx), (size_t)info.vocab_size, &greedy,
                            (uint64_t)qsae_ctx_pos(ctx), NULL, 0, ids, &j->error);
        if (s != QSAE_OK || ids[0] == info.eos[0])
            break;
        size_t len;
        const char *text = qsae_token_text(j->model, ids[0], &len);
        if (text && j->len + len <= MAX_TEXT) {
            memcpy(j->text + j->len, text, len);
            j->len += len;
        }
    }
    return s;
}

static void *run(void *user)
{
    job *j = user;
    qsae_ctx *ctx;
    if (qsae_ctx_create(j->model, NULL, &ctx, &j->error)) {
        j->failed = 1;
        return NULL;
    }
    j->failed = answer(j, ctx) != QSAE_OK;
    qsae_ctx_destroy(ctx);
    return NULL;
}

int main(int argc, char **argv)
{
    static job jobs[N_THREADS];
    pthread_t threads[N_THREADS];
    qsae_model *model;
    qsae_error e;
    int code = 0;
    if (qsae_model_open(argc > 1 ? argv[1] : "build/toy.qsae", NULL, &model, &e)) {
        fprintf(stderr, "%s\n", e.text);
        return 1;
    }
    jobs[0].ask = "Where does a duck live?";
    jobs[1].ask = "Where is Greece?";
    for (int i = 0; i < N_THREADS; i++) {
        jobs[i].model = model;
        if (pthread_create(&threads[i], NULL, run, &jobs[i]) != 0)
            return 1;
    }
    for (int i = 0; i < N_THREADS; i++) {
        pthread_join(threads[i], NULL);
        if (jobs[i].failed)
            fprintf(stderr, "%s\n", jobs[i].error.text);
        else
            printf("%s\n  %.*s\n", jobs[i].ask, (int)jobs[i].len, jobs[i].text);
        code |= jobs[i].failed;
    }
    qsae_model_close(model);
    return code;
}
