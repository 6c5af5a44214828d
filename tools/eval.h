/* eval.h: what the files of `qsae eval` share.
 *
 *     eval.c          the command line
 *     eval_plan.c     which SAEs, sites and splices there are; the slices; the fingerprint
 *     eval_run.c      the passes of the model over the text, and their sums
 *     eval_control.c  random dictionaries and principal components
 *     eval_state.c    the sums in a file, to go on after a kill
 *     eval_write.c    results by named formulas, as JSON
 *     eval_merge.c    slices to eval.json and eval.csv
 *     eval_report.c   eval.json to report.html
 *
 * Words. A spot is a site of a layer. A place is the pair of spots that an SAE reads and
 * writes: one spot for an SAE, two for a transcoder. A unit is what gets numbers of its own:
 * an SAE, a control made after it, or a joint splice of several SAEs. A family is an SAE
 * with its controls, or a joint splice: slices (--only) are of whole families. An ablation
 * is a set of places; units that write the same places share its numbers.
 *
 * Three passes over the text: the median norm of every spot (from the first MEDIAN_TOKENS
 * tokens), the mean of every place, the metrics. A token is excluded at a place if it is the
 * first of its sequence, or if its row at one of the two spots is a sink (sinks.h): its row
 * is never replaced, and it counts in the group "all" only.
 *
 * All sums are doubles in one array, added sequence by sequence in the order of the text.
 * So a run that goes on from a saved state, and one that does only some of the families,
 * add the same numbers in the same order as one that does it all at once. */

#ifndef QSAE_TOOLS_EVAL_H
#define QSAE_TOOLS_EVAL_H

#ifndef QSAE_WITH_FORMAT
#define QSAE_WITH_FORMAT
#endif
#include "checked.h"
#include "corpus.h"
#include "fidelity.h"
#include "input.h"
#include "qread.h"
#include "sae_apply.h"
#include "sae_choice.h"
#include "sinks.h"

#define MEDIAN_TOKENS 8192
#define RESAMPLES     1000 /* of the bootstrap */

enum { CONTROL_RANDOM = 1, CONTROL_PCA = 2 };
enum { JOINT_SITE = 1, JOINT_ALL = 2 };

typedef struct eval_options {
    const char *model, *sae, *out, *merge, *text_field;
    const char *data[CORPUS_MAX_SOURCES];
    size_t n_data;
    int64_t tokens, context, save_every; /* 0: all, default, default */
    uint64_t seed;
    int controls, joint, special;
    int64_t slice, n_slices; /* slice 1 .. n_slices; 0: --only was not given */
    sae_choice choice;
    input in;
} eval_options;

/* Tokens that numbers are given for, each by itself. Activations go by the token's own
 * class, predictions by that of the token predicted. */
enum { GROUP_KEPT, GROUP_ALL, GROUP_CLASS, N_GROUPS = GROUP_CLASS + CORPUS_CLASSES };

const char *eval_group_name(int group);

/* Sums of predictions, over tokens that have a next one. */
enum {
    P_N,
    P_ORIG, /* -log p(next) */
    P_SPLICED,
    P_ZERO,
    P_MEAN,
    P_KL, /* original against spliced, ... */
    P_KL_ZERO,
    P_KL_MEAN,
    P_TOP1,
    P_SUMS
};

/* Of one sequence, kept tokens only: for the bootstrap. */
enum {
    S_N,
    S_ERROR,
    S_ABOUT,
    S_L0,
    S_COSINE,
    S_PREDICTIONS,
    S_SUMS = S_PREDICTIONS + P_SUMS
};

typedef struct eval_spot {
    qsae_site site;
    int layer;
    size_t width;
    float *rows; /* [context, width] of the present sequence */
    float *norm; /* [context] */
    sinks sinks;
    float median;
} eval_spot;

typedef struct eval_place {
    size_t in, out;    /* spots */
    size_t d;          /* width of out */
    uint8_t *excluded; /* [context] of the present sequence */
    size_t sums;       /* n, sum of rows [d]; with PCA sum of products [d, d] */
    int needs_products;
    float *mean;   /* [d] over kept tokens, after the second pass */
    double *basis; /* [n_basis, d] principal components, rows */
    size_t n_basis;
} eval_place;

typedef struct eval_member {
    qsae_sae *sae;
    qsae_sae_info info;
    sae_apply apply;
    uint32_t index;     /* in the file */
    size_t place, sums; /* sums: active features, tokens, of the second pass */
    size_t rank;        /* rounded mean L0 over kept tokens, at least 1 */
    float *live;        /* [context, d_out] for a transcoder in a joint splice */
} eval_member;

typedef enum { UNIT_SAE, UNIT_RANDOM, UNIT_PCA, UNIT_JOINT } eval_kind;

typedef struct eval_unit {
    eval_kind kind;
    char *name;      /* of a joint splice */
    size_t *members; /* [n_members] */
    size_t n_members, ablation;
    size_t sums;  /* fidelity [N_GROUPS], unless joint; then P_SUMS [N_GROUPS] */
    size_t fired; /* UNIT_SAE: tokens that fired, kept [d_sae] and all [d_sae] */
    size_t self;  /* UNIT_SAE: labels and change of loss of the self-test */
    size_t seq;   /* place in a sequence's sums */
} eval_unit;

typedef struct eval_ablation {
    size_t *places;
    size_t n;
    double *ce[2], *kl[2]; /* [context] zero, mean */
} eval_ablation;

/* A random dictionary, one for all SAEs of a shape. */
typedef struct eval_random {
    size_t d, n;
    float *columns; /* [d, n]: unit vectors as columns */
} eval_random;

typedef struct eval {
    const eval_options *o;
    uint64_t fingerprint;
    qsae_model *model;
    qsae_model_info info;
    qread q; /* of the SAE file */
    corpus *text;
    qsae_ctx *ctx;
    size_t context, n_batch;
    eval_spot *spots;
    eval_place *places;
    eval_member *members;
    eval_unit *units;
    eval_ablation *ablations;
    eval_random *randoms;
    size_t n_spots, n_places, n_members, n_units, n_ablations, n_randoms;
    size_t n_families; /* of the whole file */
    char *skipped;     /* what was not made, and why; NULL: nothing */
    /* sums */
    double *sums; /* [n_sums] */
    size_t n_sums;
    double *seq; /* [n_seq, seq_width] */
    size_t n_seq, cap_seq, seq_width;
    size_t at_classes, at_orig; /* tokens by class; (labels, CE) all and by class */
    int phase;                  /* 1: means, 2: metrics */
    uint64_t given;             /* tokens of this phase so far */
    uint64_t total_tokens, total_sequences, dropped; /* of the text, after phase 1 */
    /* the present sequence */
    int32_t *ids;
    uint8_t *classes;
    size_t n;
    float *logits; /* [context, vocab] original */
    float *other;  /* [n_batch, vocab] */
    double *log_sum, *ce;
    size_t *top;
    float *made, *extra; /* [context, widest spot]; [SAE_APPLY_ROWS, widest spot] */
    double *l0, *new_ce, *new_kl; /* [context] */
    uint8_t *same;
    char err[ERR_CAP]; /* of the hook */
} eval;

/* ---- eval_plan.c: CMD_OK, or another code after a complaint ---- */
int eval_plan(eval *e, const eval_options *o);
void eval_free(eval *e);
size_t eval_unit_d(const eval *e, const eval_unit *u); /* width of its rows */

/* ---- eval_run.c ---- */
int eval_run(eval *e);

/* ---- eval_control.c ---- */
/* The dictionary of that shape, made if it is not there; NULL if out of memory. */
eval_random *eval_random_get(eval *e, size_t d, size_t n);
/* x [d] by the k columns with the largest product with x - mean, scaled to the smallest
 * error: to z. scratch [2 n + d] doubles. Returns how many were used (positive ones). */
size_t eval_random_row(const eval_random *r, const float *x, const float *mean,
                       size_t k, float *z, double *scratch);
/* Principal components of every place that needs them. */
int eval_components(eval *e);
void eval_component_row(const eval_place *p, size_t rank, const float *x, float *z,
                        double *scratch);
uint64_t eval_next_random(uint64_t *state);

/* ---- eval_state.c ---- */
/* Takes up the state of an earlier run, if there is one; *phase 0: there is none. */
int eval_state_load(eval *e);
int eval_state_save(eval *e);
int eval_state_remove(eval *e);
void eval_path(const eval *e, const char *ending, char *path, size_t cap);

/* ---- eval_write.c ---- */
/* The JSON of this run (one slice, or all), malloc; NULL if out of memory. */
char *eval_json(const eval *e, size_t *len);

/* ---- eval_merge.c ---- */
/* eval.json, eval.csv and report.html in the folder out, of the texts of all slices. */
int eval_finish(const char *out, char *const *texts, const size_t *lens, size_t n);
int eval_merge(const eval_options *o);
/* A file of results, malloc. */
int eval_read(const char *path, char **text, size_t *len);

/* ---- eval_report.c ---- */
struct json_doc;
/* The whole page, malloc; NULL if out of memory. */
char *eval_report(const struct json_doc *doc, size_t *len);

#endif
