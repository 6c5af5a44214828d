/* convert.h: what the files of `qsae convert` share.
 *
 *     convert.c         the command: options, kinds of folders, reading small files
 *     convert_checkpoint.c  a Qwen3 checkpoint folder: its shards
 *     convert_config.c  its config.json and generation_config.json
 *     convert_gguf.c    a GGUF file of a Qwen3
 *     convert_model.c   what either of them gives, written as a model file
 *     convert_tokenizer.c  tokenizer and chat template; a folder that has nothing else
 *     convert_sae.c     SAEs, written as an SAE file (sae_source.h has the families)
 *
 * The rule of all of them: what the source says is followed exactly, or refused by
 * name; nothing that could change a number is ignored. Functions return 0, or -1 with
 * err set. */

#ifndef QSAE_TOOLS_CONVERT_H
#define QSAE_TOOLS_CONVERT_H

#include "checked.h"
#include "json.h"
#include "qfile.h"
#include "tensors.h"

#define CONVERT_MAX_IGNORE 32

enum { SCREEN_YES = 1, SCREEN_NO };
enum { HEAD_FROM_CONFIG = 0, HEAD_TIED, HEAD_STORED };
enum { LAYOUT_BY_SHAPE = 0, LAYOUT_FEATURES, LAYOUT_COLUMNS };

typedef struct convert_options {
    const char *out, *name; /* name NULL: that of the folder */
    uint32_t type;          /* QSAE_TYPE_ for every matrix; 0: as stored. Q8 and Q4 are
                             * for models only */
    int head;               /* HEAD_ */
    int no_tokenizer;
    int assume_chat; /* the chat template is Qwen3's, whatever the folder says */
    int site, layer; /* -1: from the source. What the SAE reads */
    int site_out, layer_out; /* what it writes */
    double norm_scale;       /* 0: none given */
    const char *family;      /* of an SAE; NULL: told by content */
    const char *dict_class;  /* of dictionary_learning; NULL: told by content */
    int k;                   /* features that a TopK SAE keeps; 0: from the source */
    int decoder_layout;      /* LAYOUT_ */
    int screen;              /* SCREEN_; 0: where it pays */
    int negative_thresholds; /* 1: of JumpReLU, below 0 means 0 */
    const char
        *ignore[CONVERT_MAX_IGNORE]; /* config keys that the user says do not matter */
    int n_ignore;
    const char *check_model, *check_text; /* --check, --check-text */
    struct sae_check *check; /* NULL: none. Whether an SAE fits its model (check.h) */
} convert_options;

/* A file with the tokenizer alone, from a folder without weights. */
int convert_tokenizer(const char *dir, const convert_options *o, char *err, size_t cap);
int convert_model(const char *dir, const convert_options *o, char *err, size_t cap);
int convert_gguf(const char *path, const convert_options *o, char *err, size_t cap);
/* One file with the SAEs of n folders and files. */
int convert_sae(const char *const *paths, int n, const convert_options *o, char *err,
                size_t cap);

/* "dir/name" from malloc; NULL if out of memory. */
char *convert_path(const char *dir, const char *name);
/* 1 if dir/name exists, whatever it is. */
int convert_exists(const char *dir, const char *name);
/* The whole file dir/name of at most `limit` bytes, from malloc, NUL-terminated. */
int convert_read(const char *dir, const char *name, uint64_t limit, char **text,
                 size_t *len, char *err, size_t cap);
/* The same, parsed. */
int convert_read_json(const char *dir, const char *name, json_doc **doc, char *err,
                      size_t cap);
/* The folder's own name into out[cap], cut at a character's boundary; or o->name, which
 * must fit. */
int convert_name(const char *dir, const convert_options *o, char *out, size_t room,
                 char *err, size_t cap);
/* 1 if the user gave --ignore-key KEY. */
int convert_ignored(const convert_options *o, const char *key);
/* A line "note: ..." about something the user may want to know. */
void convert_note(const char *format, ...) CHECK_FORMAT(1, 2);

/* ---- tokenizer and chat template ---- */

/* Reads dir/tokenizer.json. *blob is from malloc; *count is one more than the largest
 * id, at most max_tokens. */
int convert_build_tokenizer(const char *dir, uint64_t max_tokens, uint8_t **blob,
                            size_t *size, uint64_t *count, char *err, size_t cap);
/* Compares the folder's chat template with those of Qwen3: *flags receives
 * QSAE_MODEL_CHAT_ bits, meta a line. */
int convert_chat_template(const char *dir, const convert_options *o, qfile_meta *meta,
                          uint32_t *flags, char *err, size_t cap);

/* The same of a template itself; text NULL: there is none. */
void convert_judge_template(const char *text, size_t len, const convert_options *o,
                            qfile_meta *meta, uint32_t *flags);

/* ---- Qwen3 ---- */

#define CONVERT_MAX_LAYERS 512

typedef struct model_config {
    qsae_model_record record; /* all but the name */
    int tied;                 /* tie_word_embeddings */
    const char *eos_from;     /* which file named the end tokens; constant */
    safe_name version;        /* of transformers, "" if unknown */
} model_config;

int convert_config(const char *dir, const convert_options *o, model_config *c,
                   char *err, size_t cap);

#define CONVERT_PARTS 11 /* tensors of a layer, QSAE_ROLE_ATTN_NORM to _DOWN */

/* How a kind of source calls things. */
typedef struct model_names {
    const char *config; /* where the sizes stand */
    const char *embed, *final_norm, *head;
    const char *layer;                /* LAYER N . PART .weight */
    const char *parts[CONVERT_PARTS]; /* by role */
    const char *vocab, *d_model, *n_heads, *n_kv_heads, *head_dim, *d_ff;
    const char *types; /* of tensors that are read */
} model_names;

/* A Qwen3, wherever it comes from. */
typedef struct model_source {
    const char *path; /* of the folder or file */
    const model_names *names;
    model_config config;
    const tensor_file *const
        *files; /* [n_files]; together they have each tensor once */
    size_t n_files;
    uint8_t *blob; /* tokenizer, NULL: none */
    size_t blob_size;
    uint32_t chat_flags; /* QSAE_MODEL_CHAT_ */
    qfile_meta meta;     /* what the source has to say */
} model_source;

/* Checks every tensor of the source against its configuration and writes the file. */
int convert_write_model(model_source *source, const convert_options *o, char *err,
                        size_t cap);

#endif
