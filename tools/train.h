/* train.h: what the files of `qsae train` share.
 *
 *     train.c          the command: options and what they mean together
 *     train_suite.c    which SAEs are trained, by which streams; slices
 *     train_run.c      the work: fill the buffer, train on it, and again
 *     train_state.c    checkpoints
 *     train_plan.c     memory, disk and time, measured and calculated before the start
 *     train_write.c    the finished SAEs as a .qsae file
 *
 * A stream is one site of one layer. A lane is a stream that is read and one that is
 * predicted (the same, but for transcoders); its members are the SAEs that are trained
 * on it, on the same batches. What happens to a member depends on nothing but the text,
 * the settings and its own name: so slices of a suite, trained anywhere, are the suite.
 * Functions return CMD_OK, or another exit code after a complaint. */

#ifndef QSAE_TOOLS_TRAIN_H
#define QSAE_TOOLS_TRAIN_H

#ifndef QSAE_WITH_FORMAT
#define QSAE_WITH_FORMAT
#endif
#include "harvest.h"
#include "input.h"
#include "places.h"
#include "progress.h"
#include "qfile.h"
#include "shuffle.h"

#define TRAIN_MAX_TARGETS 16
#define TRAIN_MAX_LAYERS  512

typedef struct train_settings {
    input in; /* threads, isa, no_verify */
    const char *model_path, *from, *out;
    const char **data; /* [n_data] */
    size_t n_data;
    places_list places;
    const char *layers; /* "0-27", "3,5", "all" */
    double targets[TRAIN_MAX_TARGETS];
    size_t n_targets; /* 0: one SAE a place, with a fixed coefficient */
    uint64_t tokens;  /* rows each SAE is trained on; 0: what the text has */
    uint64_t context, batch, buffer, buffer_size, skip_first;
    const char *buffer_file;
    places_excluded excluded;
    const char *text_field;
    int special;
    float norm_ratio; /* rows longer than so many medians are left out; 0: none */
    int b_dec_zero;
    uint64_t dead_tokens;
    int64_t lr_warmup, lr_decay, l0_warmup; /* steps; -1: from the number of steps */
    size_t prefixes[64];
    size_t n_prefixes;
    int has_lr;
    qsae_trainer_options base; /* what all members share */
    uint64_t seed;
    float checkpoint_minutes;
    uint64_t log_every;
    int resume, keep_checkpoint, export, plan, force;
    uint64_t slice, n_slices; /* 1 .. n_slices */
} train_settings;

typedef struct train_member {
    char name[96];
    size_t lane;
    double target; /* 0: none */
    qsae_trainer *trainer;
    qsae_train_stats last;
} train_member;

typedef struct train_lane {
    int32_t layer;
    int site, site_out;
    char name[80];
    size_t in, out;            /* streams */
    size_t member, n;          /* its members, one behind the other */
    uint64_t steps;            /* done */
    float *x, *y;              /* [batch, width]: the batch that is being collected */
    size_t filled;             /* rows of it */
    uint32_t *order;           /* [n_order] rows of the bucket */
    size_t n_order, at;        /* those before `at` were used */
    float limit_in, limit_out; /* longer rows are left out; 0: none are */
    float scale_in, scale_out;
    uint64_t left_out; /* rows, so far */
} train_lane;

enum { TRAIN_FILL, TRAIN_USE };

typedef struct train_run {
    train_settings s;
    qsae_model *model; /* NULL with --from */
    corpus *text;
    harvest harvest; /* of --from */
    feed *feed;
    feed_options feed_options;
    feed_stream *streams; /* [n_streams] of this slice */
    size_t n_streams, n_all_streams;
    uint64_t all_width; /* of all streams of the suite, in floats */
    train_lane *lanes;  /* [n_lanes] */
    size_t n_lanes;
    train_member *members; /* [n_members] in the order of the file */
    size_t n_members, n_all_members;
    uint64_t steps; /* each lane does */
    uint64_t model_hash, text_hash, model_size;
    char *description; /* lines key=value: all that shapes the result */
    char *identity;    /* the same, and which slice this is */
    /* the state, beside that of the lanes */
    shuffle buffer;
    uint64_t bucket, pushed; /* buckets before this one; rows before this bucket */
    int phase;
    size_t lane;    /* in phase USE: the one that trains */
    int calibrated; /* limits and scales are known, the trainers exist */
    /* not saved */
    char suite_path[4096], log_path[4096], state_path[4096], state_dir[4096];
    FILE *log;
    progress shown;
    double began, saved;             /* seconds */
    double busy_forward, busy_train; /* seconds */
    uint64_t rows_now, steps_now;    /* that were got and done in these */
} train_run;

double train_now(void);         /* seconds, of a clock that only goes forward */
extern volatile int train_stop; /* the signal that asks to stop */

/* ---- train_suite.c ---- */
int train_make_suite(train_run *r);
/* Trainer options of a member; scales from its lane. */
qsae_trainer_options train_options(const train_run *r, const train_member *m);
size_t train_buffer_rows(const train_run *r); /* a bucket */

/* ---- train_run.c ---- */
int train_create_trainers(train_run *r);
/* Batches and buffer, where they are not there yet; keep_file: the buffer's file has
 * what a checkpoint counts on. */
int train_make_room(train_run *r, int keep_file);
int train_work(train_run *r);

/* ---- train_state.c ---- */
int train_save(train_run *r);
/* *found 0: there is none. */
int train_load(train_run *r, int *found);
void train_remove_state(train_run *r);
uint64_t train_state_bytes(const train_run *r);

/* ---- train_plan.c ---- */
/* Complains where memory or disk do not suffice. */
int train_check_room(train_run *r);
int train_plan_print(train_run *r);

/* ---- train_write.c ---- */
int train_write_suite(train_run *r);
int train_write_exports(train_run *r);
/* The settings that made the finished suite at path: 1 if they are r's, 0 if others, -1 if
 * the file cannot be read. */
int train_made_by(const train_run *r, const char *path);

#endif
