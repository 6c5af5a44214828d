/* sae_source.h: one SAE of whatever family, on its way into a .qsae file.
 *
 *     sae_find.c     which SAEs a folder or file holds; which family each is of
 *     sae_FAMILY.c   a family's reader: fills a sae_source from a file of tensors and
 *                    the configuration beside it
 *     sae_source.c   what the readers share: keys, tensors, places
 *     sae_write.c    folds and writes what a reader found
 *     sae_screen.c   the 8-bit copy of the encoder for a fast encode
 *     convert_sae.c  the command: members of a suite, their names, the file
 *
 * A reader gives views of the stored tensors, one row per feature, and says what to
 * fold. With E_i and D_i the stored rows, b, c, theta stored, s_x the factors of
 * sae_fold, and n_i the norms of s_dec D_i, the file gets, all computed in double:
 *
 *     c' = s_out c        D'_i = s_dec D_i / n_i         theta' = s_theta theta
 *     E'_i = s_enc E_i n_i      b'_i = s_bias b_i n_i - E'_i . c' (if subtract)
 *
 * where n_i is 1 unless fold.norms says otherwise; E' in E' . c' is as the file has it,
 * rounded if that is bf16. */

#ifndef QSAE_TOOLS_SAE_SOURCE_H
#define QSAE_TOOLS_SAE_SOURCE_H

#include "convert.h"
#include "tensors.h"

#define SAE_MAX_D     65536
#define SAE_MAX_D_SAE (1 << 24)

typedef enum sae_norms {
    NORMS_UNUSED,
    NORMS_TO_ENC,    /* n_i as above: the decoder rows become unit vectors */
    NORMS_TO_SELECT, /* as TO_ENC for E and b, so that TopK selects by z_i n_i; then the
                        features are scaled back, and D stays */
    NORMS_TO_THETA   /* theta_i /= |D_i|, the stored row; nothing else changes */
} sae_norms;

typedef struct sae_fold {
    double enc, bias, dec, out, theta; /* the factors; a reader starts with all 1 */
    int subtract;                      /* the source subtracts c before the encoder */
    sae_norms norms;
    double floor; /* norms below are this; 0: a row of zeros is refused */
    double slack; /* TO_ENC: if every n_i is this near to 1, none is used */
    /* the source's names for what is done, for the META lines */
    const char *norms_name, *subtract_name, *scale_name;
    int gated_by_relu; /* relu(z) where z > theta: --negative-thresholds zero is exact */
} sae_fold;

/* One SAE of the input, as it was found. All strings are owned. */
typedef struct sae_unit {
    char *folder;  /* where the weights lie, or the configuration */
    char *weights; /* path of the file of tensors */
    char *config;  /* name of the configuration in folder; NULL: none */
} sae_unit;

typedef struct sae_source {
    const convert_options *o;
    const sae_unit *unit;
    const char *family; /* as --family has it */
    json_doc *doc;      /* of unit->config, if that is JSON */
    const json_value *cfg;
    tensor_file *file;
    const char *prefix;     /* of the SAE's tensors in the file: "", "ae.", "sae." */
    const char *implied;    /* what the sizes are from, for messages: "cfg.json" */
    const char *class_name; /* the family's name for this kind of SAE */

    qsae_sae_record record; /* all but the name */
    /* I = d_in, F = d_sae, O = d_out; file NULL: there is none */
    tensor enc, dec, skip;      /* [F, I], [F, O], [O, I] */
    tensor b_enc, b_dec, b_mag; /* [F], [O], [F] */
    tensor r_mag;               /* [F]: MAG_SCALE is exp of it */
    tensor theta;               /* [F] or one number */
    tensor dec_rows; /* [F]: more factors of the decoder's rows; not with norms */
    int theta_is_log, theta_is_number;
    double theta_number; /* the threshold of every feature, where no tensor has it */
    sae_fold fold;

    /* of sae_write.c */
    uint32_t type; /* of the matrices */
    double *c;     /* [O] c' */
    double *n;     /* [F] norms of the decoder's rows, or NULL */
    double *rows;  /* [F] dec_rows, or NULL */
    float *t;      /* [F] theta', or NULL */
    double *shift; /* [F] E'_i . c' */

    const tensor *used[24];
    int n_used;
    int said_layer; /* where it reads, by the source; before the options */
    qfile_meta lines;
    char *err;
    size_t cap;
} sae_source;

typedef struct sae_family {
    const char *name;
    /* 1 if the configuration or, where there is none, names and shapes of the tensors
     * are this family's. */
    int (*recognise)(const sae_source *s);
    int (*read)(sae_source *s);
} sae_family;

extern const sae_family sae_saelens, sae_qwen_scope, sae_dictionary_learning,
    sae_sparsify, sae_llama_scope, sae_llamascopium, sae_circuit_tracer,
    sae_gemma_scope;

/* ---- sae_find.c ---- */

/* Appends the SAEs at `path`, a folder (searched through) or one file. 1: none is there,
 * which err says too. */
int sae_find(const char *path, sae_unit **list, int *n, char *err, size_t cap);
void sae_units_free(sae_unit *list, int n);
/* 1 if this config.json is an SAE's. */
int sae_is_config(const char *folder, const char *name);
/* 1 if config.json in this folder is a language model's: no SAE is looked for there. */
int sae_is_model(const char *folder);
/* Opens configuration and weights and finds the family; s is zeroed but for o, unit,
 * err, cap. */
int sae_open(sae_source *s);
void sae_close(sae_source *s);
/* Is there such a family? */
int sae_is_family(const char *name);

/* ---- sae_write.c ---- */

int sae_prepare(sae_source *s);
int sae_declare(const sae_source *s, qfile *q, uint32_t group, char *err, size_t cap);
int sae_write(sae_source *s, qfile *q);

/* ---- sae_screen.c ---- */

int sae_has_screen(const sae_source *s);
int sae_screen_declare(const sae_source *s, qfile *q, uint32_t group, char *err,
                       size_t cap);
/* rows: writes the encoder's rows, with s as its user. */
int sae_screen_write(sae_source *s, qfile *q, qfile_fill rows);

/* ---- sae_source.c ---- */

/* Refusals: "cfg.json: ..." and "sae_weights.safetensors: ...". Both return -1. */
int sae_bad_config(sae_source *s, const char *format, ...) CHECK_FORMAT(2, 3);
int sae_bad_file(sae_source *s, const char *format, ...) CHECK_FORMAT(2, 3);
const char *sae_file_name(const sae_source *s); /* the weights' name without folders */
const char *sae_folder_name(const sae_source *s);

/* A member that is there and not null. */
const json_value *sae_get(const sae_source *s, const json_value *object,
                          const char *key);
int sae_is_text(const json_value *v, const char *text);
safe_name sae_text(const json_value *v);
/* Optional; *out stays as it is. */
int sae_get_bool(sae_source *s, const char *key, int *out);
/* Required whole number 1..max. */
int sae_get_size(sae_source *s, const char *key, int64_t max, uint32_t *out);
/* Every key of object is in the list (NULL-terminated), or null, or ignored by
 * option. */
int sae_check_keys(sae_source *s, const json_value *object, const char *const *known);
/* k of a TopK or groupmax SAE: stored (0: not), or --k; they must not differ. */
int sae_set_k(sae_source *s, int64_t stored, const char *where);

const tensor *sae_tensor(const sae_source *s, const char *name); /* with the prefix */
/* A required tensor [rows, cols], or [cols] if rows is 0, of floats. */
int sae_take(sae_source *s, const char *name, uint64_t rows, uint64_t cols,
             tensor *out);
/* The same, stored transposed: [cols, rows]. */
int sae_take_transposed(sae_source *s, const char *name, uint64_t rows, uint64_t cols,
                        tensor *out);
/* One number, float or whole. */
int sae_take_number(sae_source *s, const char *name, double *out);
void sae_ignore(sae_source *s, const tensor *t);
/* d_sae and d_in = d_out from the lengths of the biases. */
int sae_sizes(sae_source *s, const char *b_enc, const char *b_dec);
/* Refuses d_sae = d_in where only --family could say which way the matrices lie. */
int sae_not_square(sae_source *s);
/* Every tensor was taken or ignored, and nothing else is in a .pt that could matter;
 * after activation and k are known. */
int sae_no_strangers(sae_source *s);

/* Site and layer of "blocks.3.hook_resid_post", "model.layers.3.mlp", "layers.3"; each
 * stays as it is where the text does not say. */
void sae_parse_hook(const char *hook, int *site, int *layer);
/* A site alone: "mlp.hook_in"; -1: unknown. */
int sae_parse_site(const char *hook);
/* Where it reads (out 0) or writes (out 1): the options, else what was found, -1 for
 * nothing. `key` and `value` are the place in the source, for messages. */
int sae_set_place(sae_source *s, int out, int site, int layer, const char *key,
                  const char *value);
/* An SAE writes where it reads; --site-out makes a transcoder of one whose family does
 * not say. After sae_set_place(s, 0, ...). */
int sae_same_place(sae_source *s);
int sae_check_places(sae_source *s);
/* "layer12.sae.pt" with "layer" and ".sae.pt": 12; -1 if it is not called so. */
int sae_number_in(const char *text, const char *before, const char *after);

void sae_describe(sae_source *s, const char *producer);

#endif
