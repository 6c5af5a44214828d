/* What the evaluating commands share: their common options, opening the model and
   its SAEs with a clean * complaint, and turning --text, --tokens or --chat into
   token ids. */

#ifndef QSAE_INPUT_H
#define QSAE_INPUT_H

#ifndef QSAE_WITH_FORMAT
#define QSAE_WITH_FORMAT
#endif
#include "../qsae.h"
#include "args.h"

enum {
    OPT_TEXT = 1, /* --text of capture and features, --prompt of generate */
    OPT_TOKENS,
    OPT_CHAT,
    OPT_SYSTEM,
    OPT_NO_THINK,
    OPT_SPECIAL,
    OPT_THREADS,
    OPT_CHUNK,
    OPT_ISA,
    OPT_NO_VERIFY,
    OPT_SITE,
    OPT_LAYER,
    OPT_NAME,
    OPT_OWN /* a command's own options start here */
};

/* clang-format off */
#define INPUT_OPTIONS(text_name)                    \
    {text_name, 0, OPT_TEXT, ARGS_VALUE},           \
    {"tokens", 0, OPT_TOKENS, ARGS_VALUE},          \
    {"chat", 0, OPT_CHAT, ARGS_VALUE},              \
    {"system", 0, OPT_SYSTEM, ARGS_VALUE},          \
    {"no-think", 0, OPT_NO_THINK, 0},               \
    {"special", 0, OPT_SPECIAL, 0},                 \
    {"threads", 0, OPT_THREADS, ARGS_VALUE},        \
    {"chunk", 0, OPT_CHUNK, ARGS_VALUE},            \
    {"isa", 0, OPT_ISA, ARGS_VALUE},                \
    {"no-verify", 0, OPT_NO_VERIFY, 0}

/* The part of a command's usage that describes INPUT_OPTIONS. */
#define INPUT_USAGE(text_name)                                                         \
    "Input, one of:\n"                                                                 \
    "  --" text_name " T          the tokens of this text\n"                           \
    "  --tokens 1,2,3    these token ids\n"                                            \
    "  --chat T          a chat: the user says T, and it is the assistant's turn\n"    \
    "With --" text_name ":\n"                                                          \
    "  --special         recognise control tokens such as <|im_start|> in the text\n"  \
    "With --chat:\n"                                                                   \
    "  --system T        begin with this system message\n"                             \
    "  --no-think        close the thinking block of the assistant's turn at once\n"

#define RUN_USAGE                                                                      \
    "Running (no choice here changes a bit of the result):\n"                          \
    "  --threads N       1..1024; default all processors, 1 for a model below 64 MB\n" \
    "  --chunk N|all     tokens evaluated together; default 64\n"                      \
    "  --isa NAME        auto, scalar, avx2, avx512, avx512vnni, neon, neondot\n"     \
    "  --no-verify       do not check the checksums of the weights\n"                  \
    "  --help            this text\n"
/* clang-format on */

typedef struct input {
    const char *text_name; /* "text" or "prompt" */
    const char *text, *tokens, *chat, *system;
    int special, no_think, no_verify;
    int32_t threads, chunk; /* 0: default; chunk -1: all */
    qsae_isa isa;
} input;

/* All functions below return CMD_OK, or another exit code after a complaint. */

/* Takes one option of INPUT_OPTIONS; ids of other options are not for this function. */
int input_take(input *in, const args *a, int id);
/* After the last option: exactly one input, and nothing that does not belong to it. */
int input_check(const input *in);

int input_open_model(const input *in, const char *path, qsae_model **model);
/* *ids [*n] with n >= 1 receives the tokens, all of them in the vocabulary; free()
   it. */
int input_ids(const input *in, const qsae_model *model, int32_t **ids, size_t *n);
/* Threads for a context: --threads, or what the model deserves. */
int32_t input_threads(const input *in, const qsae_model *model);
/* A context for n_ctx tokens, of which at most n_prompt are evaluated at once.
   *chunk receives how many * tokens an eval should get. */
int input_context(const input *in, const qsae_model *model, size_t n_ctx,
                  size_t n_prompt, qsae_ctx **ctx, size_t *chunk);

/* Threads for a model and what runs with it: --threads, or 1 for a small model, or all
 * processors. */
int32_t input_threads(const input *in, const qsae_model *model);

/* Complains unless the SAE reads rows of a site that the model has. */
int sae_check_model(const char *path, const qsae_sae *sae, const qsae_model *model);

/* CMD_FAILED after the complaint "path: text of err", or "text" if path is NULL. */
int complain_library(const char *path, const qsae_error *err);
/* The site of that name, with --site in the complaint. */
int parse_site(const char *text, int *site);

#endif
