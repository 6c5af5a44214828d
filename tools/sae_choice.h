/* Which SAE of a file a command means, and by which numbers its features go. Shared by
 * every command that reads an SAE file. Functions return CMD_OK, or another exit code
 * after a complaint, unless they say otherwise. */

#ifndef QSAE_SAE_CHOICE_H
#define QSAE_SAE_CHOICE_H

#include "args.h"
#include "input.h"
#include "qread.h"

/* ---- the member ---- */

typedef struct sae_choice {
    int site, layer;  /* what it reads; -1: any */
    const char *name; /* NULL: any */
} sae_choice;

/* clang-format off */
#define SAE_OPTIONS                     \
    {"site", 0, OPT_SITE, ARGS_VALUE},   \
    {"layer", 0, OPT_LAYER, ARGS_VALUE}, \
    {"name", 0, OPT_NAME, ARGS_VALUE}

#define SAE_USAGE                                             \
    "Of a file that holds several SAEs, the one that\n"       \
    "  --site S --layer L      reads this site and layer\n"   \
    "  --name N                has this name\n"

/* For commands that run an SAE without a model. */
#define SAE_RUN_OPTIONS                      \
    {"threads", 0, OPT_THREADS, ARGS_VALUE}, \
    {"isa", 0, OPT_ISA, ARGS_VALUE},         \
    {"no-verify", 0, OPT_NO_VERIFY, 0}

#define SAE_RUN_USAGE                                                                  \
    "Running (no choice here changes a bit of the result):\n"                          \
    "  --threads N       1..1024; default all processors\n"                            \
    "  --isa NAME        auto, scalar, avx2, avx512, neon; default auto\n"             \
    "  --no-verify       do not check the checksums of the weights\n"                  \
    "  --help            this text\n"
/* clang-format on */

sae_choice sae_choice_any(void);
/* Takes one of SAE_OPTIONS; ids of other options are not for this function. */
int sae_choice_take(sae_choice *c, const args *a, int id);

/* Opens the one member that fits. If none or several do, the complaint lists what there
 * is. */
int sae_open_choice(const input *in, const char *path, const sae_choice *c,
                    qsae_sae **sae);

/* The same in parts, for commands that look into several files. */
int sae_index(const input *in, const char *path, qread *q); /* checked by the library */
int sae_choice_fits(const qread *q, uint32_t member, const sae_choice *c);
uint32_t sae_choice_count(const qread *q, const sae_choice *c);
int sae_choice_complain(const qread *q, const sae_choice *c); /* CMD_FAILED */
/* Appends `resid_post.2 "name"` of every member that fits to text[cap]; what does not
 * find room is counted. */
void sae_choice_list(const qread *q, const sae_choice *c, char *text, size_t cap);
int sae_open_member(const input *in, const char *path, uint32_t member, qsae_sae **sae);

/* Threads for an SAE: --threads, or all processors. */
int sae_threads(const input *in);

/* ---- feature numbers ----
 *
 * A pack (`qsae extract`) holds some features of an SAE. In every command they go by the
 * numbers they have there, which its META keeps: a number means the same feature
 * whichever file it is read from. The library knows only rows, 0 .. d_sae - 1. */

typedef struct sae_numbers {
    uint32_t n;     /* d_sae */
    uint32_t *list; /* [n] of row i, ascending; NULL: i itself */
} sae_numbers;

int sae_numbers_read(const char *path, const qsae_sae_info *info, sae_numbers *out);
void sae_numbers_free(sae_numbers *n);
uint32_t sae_number(const sae_numbers *n, uint32_t row);
/* 1 and *row, or 0 if no feature has that number. */
int sae_row(const sae_numbers *n, uint32_t number, uint32_t *row);
/* CMD_FAILED after "WHAT: the SAE has ...": what there is instead of feature `number`. */
int sae_complain_number(const sae_numbers *n, const char *what, uint32_t number);

#endif
