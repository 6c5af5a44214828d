/* qsae: run a Qwen3 model, look inside it through sparse autoencoders (SAEs), and steer it.
 *
 * Two files, no dependency beyond libc and libm:   cc app.c qsae.c -lm      (-fopenmp optional)
 *
 *     qsae_model *m; qsae_ctx *c; qsae_error e;
 *     if (qsae_model_open("toy.qsae", NULL, &m, &e)) { puts(e.text); return 1; }
 *     if (qsae_ctx_create(m, NULL, &c, &e))          { puts(e.text); return 1; }
 *     int32_t ids[64]; size_t n;
 *     qsae_tokenize(m, "Hello", 5, 0, ids, 64, &n, &e);
 *     qsae_eval(c, ids, n, &e);
 *     const float *logits = qsae_logits(c);                 // [vocab_size], for the last token
 *     qsae_ctx_destroy(c); qsae_model_close(m);
 *
 * Contents
 *   1 concepts   2 rules that hold everywhere   3 configuration macros   4 status, error, allocator
 *   5 model      6 tokenizer and chat           7 sparse autoencoders    8 sites, capture, edits, hook
 *   9 context   10 evaluation                  11 sampling              12 references  13 file format
 *  14 training
 *
 * ---------------------------------------------------------------------------------------------------
 * 1 Concepts
 *
 *   model   weights of one Qwen3 (dense) checkpoint, converted by `qsae convert`. Immutable.
 *   sae     one sparse autoencoder or transcoder of one site of one layer. Immutable.
 *   ctx     one timeline: a token sequence, its KV cache, and the captures and edits that act on it.
 *   site    a named place in a transformer block where activations are read or changed:
 *
 *        x ---RESID_PRE---+--> norm -> attention heads --ATTN_Z--> o_proj --ATTN_OUT--> (+) --RESID_MID--+
 *                         +------------------------------------------------------------^                 |
 *        +--------------------------------------------------------------------------------------------- +
 *        +--> norm --MLP_INPUT--> gate,up -> silu*up -> down --MLP_OUT--> (+) --RESID_POST--> next block
 *        +---------------------------------------------------------------^
 *
 *   capture copies of the rows of a site, taken after the edits and the hook at that site.
 *   edit    a change of a site's rows given as data: add a vector, set a feature, ...  (section 8)
 *
 * 2 Rules that hold everywhere
 *
 *   Layout     activations are float32, row-major [row, width]; token ids are int32_t; positions are
 *              0-based; `layer` is 0-based. Sizes are size_t and count elements unless called bytes.
 *   Ownership  what a function creates, the caller frees with its close/destroy. Input pointers are
 *              read during the call only, except where a comment says "borrowed".
 *   Errors     every fallible call returns a qsae_status and fills *err if err is not NULL. On failure
 *              outputs are untouched unless a comment says otherwise.
 *   Threads    model and sae: any number of threads at once. ctx: one thread at a time.
 *   Memory     the allocator in an object's options serves that object. Evaluating allocates nothing.
 *   Numerics   a token's logits, activations and features are the same bits whatever the number of
 *              threads, the way a prompt was split into calls, the other contexts in the pass, and the
 *              instruction set (section 6 of qsae.c states the order of every sum).
 *   Options    a zeroed options struct, or NULL, means the defaults.
 *   The library never prints, exits, aborts, reads the environment, or keeps a mutable global. */

#ifndef QSAE_H
#define QSAE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---------------------------------------------------------------------------------------------------
 * 3 Configuration macros (define before compiling qsae.c)
 *
 *   QSAE_API             linkage of every public function; "static" lets a program include qsae.c
 *   QSAE_NO_MMAP         read files into memory instead of mapping them
 *   QSAE_NO_TOKENIZER    leave out the tokenizer and its Unicode tables (about 60 KB); models then run on ids
 *   QSAE_NO_TRAINING     leave out section 14, the trainer
 *   QSAE_NO_AVX2, QSAE_NO_AVX512, QSAE_NO_NEON      leave out one set of kernels
 *   QSAE_NO_OPENMP       ignore OpenMP even where the compiler has it switched on */

#ifndef QSAE_API
#define QSAE_API extern
#endif

#define QSAE_VERSION_MAJOR 0
#define QSAE_VERSION_MINOR 1
#define QSAE_VERSION_PATCH 0
#define QSAE_VERSION_HEX   0x000100

/* Version of the compiled qsae.c, as QSAE_VERSION_HEX; compare it with the header's. */
QSAE_API uint32_t qsae_version(void);

/* ---------------------------------------------------------------------------------------------------
 * 4 Status, error, allocator */

typedef enum qsae_status {
    QSAE_OK = 0,
    QSAE_E_ARG,       /* an argument is wrong: NULL, out of range, not finite */
    QSAE_E_NOMEM,     /* the allocator returned NULL */
    QSAE_E_IO,        /* the operating system refused: open, read, map */
    QSAE_E_TRUNC,     /* the file ends before its header says so */
    QSAE_E_MAGIC,     /* not a .qsae file */
    QSAE_E_VERSION,   /* a .qsae file of another format version */
    QSAE_E_FORMAT,    /* malformed: a field, a size or a checksum is wrong */
    QSAE_E_UNSUP,     /* valid, but not supported by this build or this library */
    QSAE_E_LIMIT,     /* larger than a documented cap, or than the caller's buffer */
    QSAE_E_MISMATCH,  /* two things do not fit together: tensor and config, sae and model, ctx and ctx */
    QSAE_E_STATE,     /* not now: the context is full, busy, or has nothing to give */
    QSAE_E_CANCELLED, /* the hook asked to stop */
    QSAE_E_NUM        /* not finite where a finite number is needed */
} qsae_status;

/* Caller-owned; filled on failure, untouched on success. */
typedef struct qsae_error {
    qsae_status status;
    uint64_t offset; /* byte offset in the file or text where the trouble is, 0 if it has no place */
    char text[256];  /* English, one line, NUL-terminated, names the thing and both numbers; ASCII */
} qsae_error;

/* Constant text for a status, never NULL. Threads: any. */
QSAE_API const char *qsae_status_string(qsae_status status);

/* Both functions set, or both NULL for malloc/free. `align` is a power of two, at most 64. `size` in
 * release() is the size that was asked for. Called only on the thread that called the library. */
typedef struct qsae_allocator {
    void *(*alloc)(void *user, size_t size, size_t align); /* NULL: out of memory */
    void (*release)(void *user, void *ptr, size_t size);
    void *user;
} qsae_allocator;

/* Instruction sets for the kernels. All give the same bits. */
typedef enum qsae_isa {
    QSAE_ISA_AUTO = 0, /* the widest that this build and this machine have */
    QSAE_ISA_SCALAR,   /* portable C: the reference that the others are tested against */
    QSAE_ISA_AVX2,     /* AVX2, FMA and F16C */
    QSAE_ISA_AVX512,   /* AVX-512 F */
    QSAE_ISA_AVX512_VNNI, /* also BW and VNNI, for integer weights */
    QSAE_ISA_NEON,     /* aarch64 */
    QSAE_ISA_NEON_DOT, /* also dot products of bytes (ARMv8.2), for integer weights */
    QSAE_ISA_NEON_I8MM, /* also matrix products of bytes (ARMv8.6), for integer weights */
    QSAE_ISA_COUNT
} qsae_isa;

/* Lower-case name ("scalar", "avx2", ...), or NULL if isa is not a value of the enum. */
QSAE_API const char *qsae_isa_name(qsae_isa isa);
/* 1 if this build has the kernels and this machine runs them, else 0. AUTO and SCALAR: always 1. */
QSAE_API int qsae_isa_available(qsae_isa isa);

/* ---------------------------------------------------------------------------------------------------
 * 5 Model */

typedef struct qsae_model qsae_model; /* opaque, immutable, shared by any number of threads */

typedef struct qsae_open_options {
    qsae_allocator allocator;
    qsae_isa isa;
    int no_mmap; /* read the file into memory: immune to later changes of the file (a file that is
                    truncated while it is mapped kills the process with SIGBUS) */
    int verify;  /* check the checksum of every tensor and that every weight is finite: reads it all */
} qsae_open_options;

#define QSAE_MAX_EOS 8

/* The checkpoint's chat template. The two of Qwen3 mean the same for messages whose fields are texts. */
typedef enum qsae_chat_format {
    QSAE_CHAT_QWEN3 = 0,   /* as published first; also where the checkpoint has no template */
    QSAE_CHAT_QWEN3_LATER, /* as published later: what is not a text counts as an empty one */
    QSAE_CHAT_OTHER        /* another: chats are refused */
} qsae_chat_format;

typedef struct qsae_model_info {
    int32_t n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ff, vocab_size; /* n_layers 0: a file with
                                       only a tokenizer; no ctx can be made of it */
    int32_t max_positions;          /* longest sequence the checkpoint declares (RoPE is exact beyond) */
    double rope_theta;
    float rms_eps;
    int32_t tied;                   /* 1: the output head is the embedding */
    int32_t n_eos, eos[QSAE_MAX_EOS]; /* tokens that end a generation */
    int32_t n_tokens;               /* entries of the tokenizer, 0 if the file has none */
    const char *weight_type;        /* "f32", "bf16", "q8", "q4", "mixed", or "none"; constant */
    qsae_isa isa;                   /* kernels in use */
    uint64_t file_size;             /* bytes */
    int32_t chat_format;            /* qsae_chat_format */
} qsae_model_info;

/* Opens a model file. The header, the directory and the tokenizer are validated completely; weight pages
 * are not touched unless options->verify. Time and allocations do not depend on the size of the weights.
 *   options  NULL for defaults
 *   out      receives the model; close it with qsae_model_close after every ctx on it is destroyed
 * Returns QSAE_OK, ARG, NOMEM, IO, TRUNC, MAGIC, VERSION, FORMAT, UNSUP, LIMIT, MISMATCH, NUM.
 * Threads: any. Allocates: a fixed number of blocks. */
QSAE_API qsae_status qsae_model_open(const char *path, const qsae_open_options *options,
                                     qsae_model **out, qsae_error *err);

/* The same from memory: data[size] is borrowed and must outlive the model; 64-byte aligned. */
QSAE_API qsae_status qsae_model_open_memory(const void *data, size_t size,
                                            const qsae_open_options *options, qsae_model **out,
                                            qsae_error *err);

/* NULL is a no-op. Every ctx on the model must be destroyed first. */
QSAE_API void qsae_model_close(qsae_model *model);

/* Fills *info; its strings live as long as the model. Cannot fail. Threads: any. */
QSAE_API void qsae_model_get_info(const qsae_model *model, qsae_model_info *info);

/* ---------------------------------------------------------------------------------------------------
 * 6 Tokenizer and chat
 *
 * Source: the `tokenizers` pipeline of Qwen3's tokenizer.json: added tokens, NFC, split pattern,
 * byte-level BPE. Text is UTF-8 with a length, NUL is an ordinary character. Each maximal invalid
 * sequence is read as U+FFFD. */

#define QSAE_TOK_SPECIAL 1u /* recognise added tokens such as <|im_start|> in the text */

/* Text to ids.
 *   text   [len] bytes; may be NULL if len is 0
 *   ids    [cap]; may be NULL if cap is 0
 *   n      receives the number of ids the text has, also when that exceeds cap
 * Returns QSAE_OK; LIMIT if *n > cap (the first cap ids are written) or len > INT32_MAX; STATE if the
 * file has no tokenizer; ARG; NOMEM. Threads: any. Allocates: one temporary block. */
QSAE_API qsae_status qsae_tokenize(const qsae_model *model, const char *text, size_t len,
                                   unsigned flags, int32_t *ids, size_t cap, size_t *n,
                                   qsae_error *err);

/* Bytes of one token, [*len] (len is not NULL), not NUL-terminated, valid as long as the model; possibly a part of a UTF-8
 * character. NULL and *len = 0 if the id has no text or there is no tokenizer. Threads: any. */
QSAE_API const char *qsae_token_text(const qsae_model *model, int32_t id, size_t *len);

/* How many leading bytes of text[len] are complete characters: print these, keep the rest (at most 3)
 * for the next token. Bytes that can never become a character count as complete. */
QSAE_API size_t qsae_utf8_complete(const char *text, size_t len);

typedef struct qsae_tool_call {
    const char *name;      /* UTF-8 */
    size_t name_len;
    const char *arguments; /* JSON text, put in as it is */
    size_t arguments_len;
} qsae_tool_call;

/* Only role and content are needed: zero the rest. */
typedef struct qsae_message {
    const char *role;      /* "system", "user", "assistant" or "tool" (the response to a tool call) */
    const char *content;   /* UTF-8; may be NULL if content_len is 0 */
    size_t content_len;
    const char *reasoning; /* assistant. NULL: what stands before </think> in the content, if anything does */
    size_t reasoning_len;
    const qsae_tool_call *tool_calls; /* assistant: [n_tool_calls] */
    size_t n_tool_calls;
    const char *tools;     /* first message, whatever its role: the tools offered, one JSON object a line; */
    size_t tools_len;      /* NULL: none */
} qsae_message;

#define QSAE_CHAT_NO_GENERATION 1u /* do not open an assistant turn at the end */
#define QSAE_CHAT_NO_THINK      2u /* append the empty <think></think> block to the opened turn */
#define QSAE_CHAT_SPECIAL       4u /* tokens: recognise added tokens inside the messages, too */
#define QSAE_CHAT_ANY_ROLE      8u /* skip a message of any other role, as the template does; else ARG */

/* Renders messages as Qwen3's chat_template does: ChatML turns; the tools in the system turn; tool responses
 * that follow one another in one user turn; reasoning only in answers after the last message of a user,
 * and there in an empty block if the last answer has none.
 *   text   [cap]; may be NULL if cap is 0; not NUL-terminated
 *   len    receives the number of bytes the text has, also when that exceeds cap
 * Returns QSAE_OK; LIMIT if *len > cap (the first cap bytes are written); ARG for no messages, an unknown role,
 * or a field that its role does not have; UNSUP if the checkpoint's template was found not to be Qwen3's.
 * Threads: any. Allocates: nothing. Source: chat_template of Qwen3's tokenizer_config.json. */
QSAE_API qsae_status qsae_chat_render(const qsae_model *model, const qsae_message *messages,
                                      size_t n_messages, unsigned flags, char *text, size_t cap,
                                      size_t *len, qsae_error *err);

/* The same as token ids. What the template itself writes, <|im_start|> and the like, becomes control tokens;
 * the same characters inside a message stay text, so a message cannot forge a turn (QSAE_CHAT_SPECIAL: they
 * are recognised, and the ids are those of the rendered text).
 * ids, cap, n, returns, threads and allocation: as qsae_tokenize, and as above; STATE if the tokenizer lacks
 * <|im_start|> or <|im_end|>. */
QSAE_API qsae_status qsae_chat_tokens(const qsae_model *model, const qsae_message *messages,
                                      size_t n_messages, unsigned flags, int32_t *ids, size_t cap,
                                      size_t *n, qsae_error *err);

/* ---------------------------------------------------------------------------------------------------
 * 7 Sparse autoencoders
 *
 * With x [d_in] read at one site and y [d_out] its reconstruction (or, for a transcoder, the prediction
 * of another site), rows e_i of the encoder, d_i of the decoder:
 *     z_i = e_i . norm(x) + b_i         f = activation(z)         y = unnorm(b_dec + sum_i f_i d_i) [+ skip x]
 *   RELU      f_i = max(z_i, 0)
 *   JUMPRELU  f_i = z_i if z_i > theta_i and z_i > 0, else 0   (strict; a BatchTopK SAE is one theta for all)
 *   TOPK      the k largest z_i, ties to the lower index; then max(z_i, 0)
 *   GROUPMAX  of each of k groups of d_sae/k consecutive features the largest z_i, ties to the lower index;
 *             then max(z_i, 0)
 *   TOPK_SCALED  as TOPK, then f_i = s_i max(z_i, 0): an SAE that selects by its features times their decoder
 *             norms, e_i and b_i having that norm, and s_i being one over it
 *   GATED     f_i = max(s_i (e_i . norm(x)) + m_i, 0) if z_i > 0, else 0
 * Everything a source format expresses otherwise (pre-bias, input scales, decoder norms) was folded by
 * the converter. Sources: arXiv 2407.14435 (JumpReLU), 2406.04093 (TopK), 2404.16014 (gated),
 * 2412.06410 (BatchTopK), 2406.11944 (transcoders); SAELens saes/<name>_sae.py for the exact forms, EleutherAI sparsify
 * fused_encoder.py for GROUPMAX, OpenMOSS llamascopium sae.py for TOPK_SCALED. */

typedef enum qsae_site {
    /*                     TransformerLens name        Hugging Face module (Qwen3DecoderLayer)          */
    QSAE_RESID_PRE = 0, /* hook_resid_pre              input of layers[L]                               */
    QSAE_ATTN_Z,        /* attn.hook_z, heads joined   input of self_attn.o_proj; n_heads*head_dim wide */
    QSAE_ATTN_OUT,      /* hook_attn_out               output of self_attn, before the add              */
    QSAE_RESID_MID,     /* hook_resid_mid              input of post_attention_layernorm                */
    QSAE_MLP_INPUT,     /* mlp.hook_in                 output of post_attention_layernorm, weight applied;
                           NOT hook_mlp_in (before the norm), NOT ln2.hook_normalized (no weight)       */
    QSAE_MLP_OUT,       /* hook_mlp_out                output of mlp, before the add                    */
    QSAE_RESID_POST,    /* hook_resid_post             output of layers[L]; hidden_states[L+1], except for
                           the last layer, whose hidden_states entry is after the final norm            */
    QSAE_SITE_COUNT,
    QSAE_LOGITS = QSAE_SITE_COUNT /* capture only: the logits of every token; layer must be 0 */
} qsae_site;

/* "resid_pre", ...; NULL if not a site. */
QSAE_API const char *qsae_site_name(qsae_site site);
/* The site of that name, or -1. */
QSAE_API int qsae_site_from_name(const char *name);
/* Width of a site's rows in this model: d_model, n_heads*head_dim for ATTN_Z, vocab_size for LOGITS. */
QSAE_API size_t qsae_site_width(const qsae_model *model, qsae_site site);

typedef enum qsae_activation {
    QSAE_ACT_RELU = 1,
    QSAE_ACT_JUMPRELU,
    QSAE_ACT_TOPK,
    QSAE_ACT_GATED,
    QSAE_ACT_GROUPMAX,
    QSAE_ACT_TOPK_SCALED
} qsae_activation;

/* Lower-case name ("jumprelu", "topk-scaled", ...), constant, or NULL if a is not a value of the enum. Threads: any. */
QSAE_API const char *qsae_activation_name(qsae_activation a);

typedef enum qsae_norm {
    QSAE_NORM_NONE = 0,
    QSAE_NORM_CONSTANT, /* x sqrt(d_in)/|x| in, and the inverse factor out (SAELens constant_norm_rescale) */
    QSAE_NORM_LAYER     /* (x - mean)/(std + 1e-5) in, std with n - 1; and back out (SAELens layer_norm) */
} qsae_norm;            /* a transcoder's output is not scaled back: it predicts another site */

typedef struct qsae_sae qsae_sae; /* opaque, immutable, shared by any number of threads */

typedef enum qsae_select {
    QSAE_SELECT_ONLY = 0, /* the file must hold exactly one SAE */
    QSAE_SELECT_INDEX,    /* member number `index` */
    QSAE_SELECT_SITE      /* the member that reads (site, layer), and is called `name` if that is not NULL */
} qsae_select;

typedef struct qsae_sae_options {
    qsae_open_options open;
    qsae_select select; /* which member of a suite */
    int32_t index;
    qsae_site site;
    int32_t layer;
    const char *name;
    int32_t no_screen; /* 1: encode densely though the file has a screen. The same bits, more time */
} qsae_sae_options;

typedef struct qsae_sae_info {
    const char *name;          /* lives as long as the sae */
    const char *feature_unit;  /* "raw" (units of the site) or "normalized" (the SAE's own input scale) */
    qsae_site site_in, site_out;
    int32_t layer_in, layer_out; /* site_in/layer_in: read. site_out/layer_out: written, or predicted */
    int32_t d_in, d_out, d_sae, k; /* k: TOPK, GROUPMAX, TOPK_SCALED, else 0 */
    qsae_activation activation;
    qsae_norm norm;
    int32_t has_skip;          /* a skip connection: decode needs the input */
    int32_t is_transcoder;     /* written site differs from the read one */
    int32_t has_screen;        /* encode looks at an 8-bit copy first and computes what may fire */
    const char *weight_type;   /* "f32", "bf16", or "mixed" */
    int32_t index, n_members;  /* place in the file, SAEs in the file */
    qsae_isa isa;
    uint64_t file_size;
} qsae_sae_info;

/* Opens one SAE of a file. As qsae_model_open; ARG if the selection fits none or several, naming them. */
QSAE_API qsae_status qsae_sae_open(const char *path, const qsae_sae_options *options, qsae_sae **out,
                                   qsae_error *err);
QSAE_API qsae_status qsae_sae_open_memory(const void *data, size_t size,
                                          const qsae_sae_options *options, qsae_sae **out,
                                          qsae_error *err);
/* NULL is a no-op. No ctx may still hold edits that name the sae. */
QSAE_API void qsae_sae_close(qsae_sae *sae);
QSAE_API void qsae_sae_get_info(const qsae_sae *sae, qsae_sae_info *info);

/* Sparse rows (CSR), caller-owned: row r has entries start[r] .. start[r+1]-1, ascending index. */
typedef struct qsae_rows {
    size_t n_rows;    /* out */
    size_t *start;    /* [n + 1] */
    uint32_t *index;  /* [cap] */
    float *value;     /* [cap], > 0 */
    size_t cap;       /* n * d_sae never overflows */
    uint64_t n_exact; /* out of encode: encoder rows computed exactly, of n * d_sae; a screen spares the others */
} qsae_rows;

/* Bytes of caller scratch that encode and decode need for calls of at most n rows. SIZE_MAX on overflow. */
QSAE_API size_t qsae_sae_scratch_size(const qsae_sae *sae, size_t n);

/* Dense rows to sparse features.
 *   x       [n, d_in], rows ld floats apart (0 means d_in)
 *   out     receives n rows
 *   scratch [scratch_size] bytes, any alignment, at least qsae_sae_scratch_size(sae, n)
 *   n_threads  0 means 1; used only with OpenMP
 * Returns QSAE_OK; LIMIT if out->cap is too small (out->start is then filled and out->start[n] is the
 * number of entries needed); NUM if x has a value that is not finite, or one so large that a product overflows
 * (the arrays are unspecified then); ARG. Allocates: nothing. */
QSAE_API qsae_status qsae_sae_encode(const qsae_sae *sae, const float *x, size_t n, size_t ld,
                                     qsae_rows *out, void *scratch, size_t scratch_size,
                                     int n_threads, qsae_error *err);

/* Sparse features to dense rows: y = unnorm(b_dec + sum f_i d_i) [+ skip x], indices ascending.
 *   x   [n, d_in] inputs, ld apart (0 means d_in): needed if has_skip, or if norm != NONE and it is no
 *       transcoder (a transcoder's output is in its own scale: unnorm does nothing); else may be NULL
 *   y   [n, d_out]
 * Returns QSAE_OK; ARG for an index out of range, not ascending, or a missing x; NUM. Allocates: nothing. */
QSAE_API qsae_status qsae_sae_decode(const qsae_sae *sae, const qsae_rows *in, const float *x, size_t ld,
                                     float *y, void *scratch, size_t scratch_size, int n_threads,
                                     qsae_error *err);

/* One feature's parameters, copied out as float32; any pointer may be NULL.
 *   encoder [d_in], decoder [d_out], bias, threshold (0 where the activation has none). Returns OK, ARG. */
QSAE_API qsae_status qsae_sae_feature(const qsae_sae *sae, uint32_t feature, float *encoder,
                                      float *decoder, float *bias, float *threshold, qsae_error *err);

/* ---------------------------------------------------------------------------------------------------
 * 8 Sites, capture, edits, hook
 *
 * At every site of every layer, in this order: the edits in list order, the hook, the captures.
 * RESID_POST of a layer comes before RESID_PRE of the next, though both are the same rows. */

/* Where to put the rows of one site. The memory is the caller's and is borrowed until the capture list
 * is replaced or the ctx destroyed. Row i is token i of the eval call. */
typedef struct qsae_capture {
    qsae_site site;  /* a site, or QSAE_LOGITS */
    int32_t layer;
    float *rows;     /* [max_rows, width], width = qsae_site_width */
    size_t max_rows; /* an eval of more tokens than this fails before it starts */
} qsae_capture;

typedef enum qsae_edit_kind {
    /* h: the row. c: strength. v: vector. a: the feature's value. d: the feature's decoder row. x: value */
    QSAE_ADD = 1,        /* h += c v                                                                     */
    QSAE_PROJECT_OUT,    /* h -= c v (v.h)/(v.v)                                                         */
    QSAE_REPLACE,        /* h += c (v - h); exactly v if c is 1                                          */
    QSAE_FEATURE_ADD,    /* h += c x d                                                                   */
    QSAE_FEATURE_SET,    /* h += c (x - a) d                                                             */
    QSAE_FEATURE_SCALE,  /* h += c (x - 1) a d;   x = 0 ablates                                          */
    QSAE_FEATURE_MIN,    /* h += c max(x - a, 0) d     at least x                                        */
    QSAE_FEATURE_MAX,    /* h += c min(x - a, 0) d     at most x                                         */
    QSAE_SAE_REPLACE     /* h += c (decode(encode(h)) - h); exactly the reconstruction if c is 1         */
} qsae_edit_kind;

#define QSAE_END ((int32_t)0) /* pos_end: no end */

/* A gate lets an edit act only on rows where a value is above a threshold: a feature's activation, or the
 * product of a row with a probe vector. It is read before any edit of its site acts. */
typedef struct qsae_gate {
    const qsae_sae *sae; /* borrowed while the edit list is set; NULL: use probe */
    uint32_t feature;
    const float *probe;  /* [width of site], copied; NULL and sae NULL: no gate */
    qsae_site site;      /* of the probe; a feature is read at its SAE's own site */
    int32_t layer;
    float threshold;     /* acts where value > threshold */
} qsae_gate;

/* One change. The feature kinds add a multiple of the decoder row, so what the SAE does not explain of
 * the row is kept. A feature's value a is its activation before any edit of its site acted; several edits
 * of one feature in one list pass the changed value on, in list order. With a per-token norm the
 * decoder row is in the row's own scale. A transcoder's feature is read at site_in and written at
 * site_out. Strength 0, or a change of 0, leaves the row's bits alone.
 * The KV cache remembers the edits that were active when it was filled: rewind to undo. */
typedef struct qsae_edit {
    qsae_edit_kind kind;
    float strength;           /* c: 1 is the whole change, 0 is none; use qsae_edit_feature to start from 1 */
    float value;              /* x: feature kinds */
    int32_t pos_begin, pos_end; /* acts on positions begin <= p < end; end QSAE_END: no end */
    qsae_site site;           /* vector kinds; the others act where the SAE says */
    int32_t layer;
    const float *vector;      /* vector kinds: [width of site], copied */
    const qsae_sae *sae;      /* feature kinds and SAE_REPLACE: borrowed while the list is set */
    uint32_t feature;         /* feature kinds */
    qsae_gate gate;
} qsae_edit;

/* An edit of one feature with strength 1, all positions, no gate. Cannot fail. */
QSAE_API qsae_edit qsae_edit_feature(const qsae_sae *sae, uint32_t feature, qsae_edit_kind kind,
                                     float value);

typedef struct qsae_ctx qsae_ctx; /* opaque, mutable, one thread at a time */

typedef struct qsae_event {
    qsae_ctx *ctx;
    qsae_site site;
    int32_t layer;
    int32_t pos;      /* position of row 0; row i is position pos + i */
    size_t n_rows, width, ld; /* rows are ld floats apart */
} qsae_event;

/* Called with the live rows of a site: change them in place if you like. Runs on the thread that called
 * eval, outside any parallel region. Calls that would change a context of this eval return STATE; others may
 * be used. Return 0 to go on; else the eval stops with CANCELLED. How many calls an eval makes for a site is unspecified. */
typedef int (*qsae_hook_fn)(void *user, const qsae_event *event, float *rows);

typedef struct qsae_hook {
    qsae_hook_fn fn;     /* NULL: no hook */
    void *user;
    uint32_t sites;      /* bit 1u << site */
    int32_t layer_begin, layer_end; /* begin <= layer < end; end 0: all layers */
} qsae_hook;

/* ---------------------------------------------------------------------------------------------------
 * 9 Context */

/* How the KV cache holds keys and values. All arithmetic is float32: a 16-bit cache rounds them once, to nearest
 * even, on the way in. Each type has bits of its own, the same everywhere. */
typedef enum qsae_kv_type {
    QSAE_KV_F32 = 0,
    QSAE_KV_F16,  /* half the memory; 11 significant bits, what is beyond 65504 becomes infinite */
    QSAE_KV_BF16, /* half the memory; 8 significant bits, float32's range */
    QSAE_KV_COUNT
} qsae_kv_type;

/* "f32", "f16", "bf16"; NULL if not a type. */
QSAE_API const char *qsae_kv_name(qsae_kv_type type);

typedef struct qsae_ctx_options {
    int32_t n_ctx;     /* positions of the KV cache, at most 2^20; 0: min(max_positions, 4096) */
    int32_t n_batch;   /* tokens computed together, at most 65536; 0: 64. Changes speed and memory, never a bit */
    int32_t n_threads; /* at most 1024; 0: 1; used only with OpenMP */
    qsae_allocator allocator;
    qsae_kv_type kv_type;
    int32_t n_layers;  /* 0: all; else only so many are run: no logits, nothing deeper to capture, hook or edit */
} qsae_ctx_options;

/* Bytes of the one block that qsae_ctx_create will ask for; 0 if the options are not valid. The KV cache is
 * 2 * n_layers * n_kv_heads * head_dim * n_ctx numbers of it (n_layers as run, head_dim and n_ctx up to a multiple of 16). */
QSAE_API size_t qsae_ctx_size(const qsae_model *model, const qsae_ctx_options *options);

/* A new, empty timeline; the model is borrowed. Returns OK, ARG, LIMIT, NOMEM, STATE (no weights). Allocates: one block.
 * Its KV cache is first written when positions are: a system that gives memory on first use gives it then. */
QSAE_API qsae_status qsae_ctx_create(const qsae_model *model, const qsae_ctx_options *options,
                                     qsae_ctx **out, qsae_error *err);
QSAE_API void qsae_ctx_destroy(qsae_ctx *ctx); /* NULL is a no-op */

/* Makes dst's timeline (tokens, KV cache, position, last logits) a copy of src's. Lists and hook are not
 * copied. Both on one model, with one type of KV cache and as many layers; dst's n_ctx must hold src's position, else MISMATCH. */
QSAE_API qsae_status qsae_ctx_copy(qsae_ctx *dst, const qsae_ctx *src, qsae_error *err);

/* Forgets everything from position pos on. ARG if pos is negative or beyond the present position. The
 * logits are gone (qsae_logits gives NULL) unless pos is the present position. */
QSAE_API qsae_status qsae_ctx_rewind(qsae_ctx *ctx, int32_t pos, qsae_error *err);

/* Tokens consumed so far; and the ids, [qsae_ctx_pos], valid until the next eval, copy or rewind. */
QSAE_API int32_t qsae_ctx_pos(const qsae_ctx *ctx);
QSAE_API const int32_t *qsae_ctx_tokens(const qsae_ctx *ctx);

/* Replace the lists; n = 0 clears. On failure the old list stays. Returns OK, ARG, MISMATCH (SAE and
 * model differ in width or layers), NUM (a vector or number is not finite), NOMEM, STATE (from a hook).
 * Allocates: one block each, released when replaced or with the ctx. */
QSAE_API qsae_status qsae_set_captures(qsae_ctx *ctx, const qsae_capture *list, size_t n,
                                       qsae_error *err);
QSAE_API qsae_status qsae_set_edits(qsae_ctx *ctx, const qsae_edit *list, size_t n, qsae_error *err);
/* NULL clears. Returns OK, ARG. */
QSAE_API qsae_status qsae_set_hook(qsae_ctx *ctx, const qsae_hook *hook, qsae_error *err);

/* ---------------------------------------------------------------------------------------------------
 * 10 Evaluation
 *
 * Source of the arithmetic: transformers modeling_qwen3.py in float32, eager attention. */

/* Appends n tokens and runs all layers.
 * Returns OK; ARG for an id outside 0..vocab_size-1 or a capture that is too small; STATE if the tokens
 * do not fit in n_ctx, or from the hook of an eval of this ctx; CANCELLED; NUM if a row is not finite where an edit
 * reads a feature. On failure the position is as before; the logits are gone if the pass had begun. n = 0 does nothing.
 * Allocates: nothing. */
QSAE_API qsae_status qsae_eval(qsae_ctx *ctx, const int32_t *tokens, size_t n, qsae_error *err);

/* One context's part of a joint pass. */
typedef struct qsae_batch {
    qsae_ctx *ctx;
    const int32_t *tokens; /* [n] */
    size_t n;
} qsae_batch;

/* Evaluates several contexts of one model together, reading the weights once for all of them: the same
 * bits as one qsae_eval each. A ctx may appear once. Batch and threads are those of the first ctx.
 * Returns as qsae_eval, and MISMATCH if the models differ; on failure no context has moved. */
QSAE_API qsae_status qsae_eval_many(const qsae_batch *batch, size_t n, qsae_error *err);

/* Logits [vocab_size] of the last token evaluated, valid until the next call on ctx; NULL if none. */
QSAE_API const float *qsae_logits(const qsae_ctx *ctx);

/* ---------------------------------------------------------------------------------------------------
 * 11 Sampling */

/* Every field may be zero. The steps and their order, those of Hugging Face's generate():
 *   1 repetition  for every id in the history, once: logit * r if it is below 0, else logit / r
 *   2 presence    for every id generated, once: logit - presence (Hugging Face has no such step; this is vLLM's)
 *   3 temperature logit / temperature
 *   4 top-k       what is below the k-th largest goes; ties with the k-th stay
 *   5 top-p       of what is left, the largest that together have probability top_p stay, the one that reaches it
 *                 included, at least one; ties to the lower id (Hugging Face leaves that open)
 *   6 min-p       what is less than min_p times as likely as the largest goes */
typedef struct qsae_sample_options {
    float temperature; /* 0: after steps 1 and 2, the largest logit, ties to the lower id */
    int32_t top_k;     /* 0: all */
    float top_p;       /* 0..1; 0: 1 */
    float min_p;       /* 0..1 */
    uint64_t seed;
    float repetition_penalty; /* r > 0; 0: 1, none */
    float presence_penalty;   /* 0: none */
    const int32_t *history;   /* [n_history] for the penalties: the prompt, then what was generated; such as */
    size_t n_history;         /* qsae_ctx_tokens */
    size_t n_prompt;          /* so many of the history are the prompt */
} qsae_sample_options;

/* What Qwen recommends for Qwen3 (both advise against greedy decoding when thinking; where answers repeat
 * themselves, a presence_penalty of up to 2). */
typedef enum qsae_preset {
    QSAE_PRESET_GREEDY = 0,   /* all zero */
    QSAE_PRESET_THINKING,     /* temperature 0.6, top-p 0.95, top-k 20, min-p 0 */
    QSAE_PRESET_NON_THINKING, /* temperature 0.7, top-p 0.8, top-k 20, min-p 0 */
    QSAE_PRESET_COUNT
} qsae_preset;

/* "greedy", "thinking", "non-thinking"; NULL if not a preset. */
QSAE_API const char *qsae_preset_name(qsae_preset preset);
/* Its settings, all other fields zero; all zero if not a preset. */
QSAE_API qsae_sample_options qsae_preset_options(qsae_preset preset);

/* Bytes of scratch for qsae_sample over n logits. */
QSAE_API size_t qsae_sample_scratch_size(size_t n);

/* Picks one id. A pure function: the random number depends on seed and position alone, so resuming equals
 * running through.
 *   logits [n]; scratch [scratch_size] bytes, any alignment; not needed (NULL) for the largest logit without
 *   penalties
 * Returns OK, ARG, NUM (a logit is NaN or +Inf, also after the penalties, or all are -Inf). Threads: any.
 * Allocates: nothing. */
QSAE_API qsae_status qsae_sample(const float *logits, size_t n, const qsae_sample_options *options,
                                 uint64_t position, void *scratch, size_t scratch_size, int32_t *id,
                                 qsae_error *err);

/* ---------------------------------------------------------------------------------------------------
 * 12 References
 *
 *   Qwen3            arXiv 2505.09388; transformers models/qwen3/modeling_qwen3.py
 *   this system      arXiv 2606.26620, Discovering Millions of Interpretable Features with Sparse Autoencoders
 *   file format      tools/FORMAT.md */

/* ---------------------------------------------------------------------------------------------------
 * 13 File format constants, for programs that write .qsae files (define QSAE_WITH_FORMAT first)
 *
 * tools/FORMAT.md is the specification. All fields are little-endian; every struct is free of padding. */

#ifdef QSAE_WITH_FORMAT

#define QSAE_FILE_MAGIC   "QSAE\r\n\x1a\n" /* 8 bytes: a text-mode copy breaks it */
#define QSAE_FILE_VERSION 1u
#define QSAE_FILE_ENDIAN  0x01020304u
#define QSAE_FILE_ALIGN   64u

enum { QSAE_KIND_MODEL = 1, QSAE_KIND_SAE = 2 };

typedef struct qsae_file_header { /* 64 bytes at offset 0 */
    uint8_t magic[8];
    uint32_t version, endian;
    uint64_t file_size;
    uint32_t kind, n_records;    /* model: 1 record; SAE file: one per SAE */
    uint32_t n_tensors, zero0;
    uint64_t index_size;         /* bytes of records and directory, which follow the header */
    uint64_t zero1;
    uint64_t hash;               /* XXH64 (seed 0) of header, records, directory, with this field 0 */
} qsae_file_header;

enum { /* flags */
    QSAE_MODEL_TIED = 1,
    QSAE_MODEL_TOKENIZER_ONLY = 2, /* no weights: all sizes but vocab_size are 0 */
    QSAE_MODEL_CHAT_OTHER = 4,     /* qsae_chat_format; neither bit: QSAE_CHAT_QWEN3 */
    QSAE_MODEL_CHAT_LATER = 8
};

typedef struct qsae_model_record { /* 256 bytes */
    char name[64];               /* UTF-8, NUL-padded */
    uint32_t n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ff, vocab_size, max_positions;
    double rope_theta;
    float rms_eps;
    uint32_t flags;
    uint32_t n_eos;
    int32_t eos[8];              /* unused entries 0 */
    int32_t bos;                 /* -1: none */
    uint8_t zero[104];
} qsae_model_record;

enum { QSAE_SAE_SKIP = 1 };      /* flags */
enum { QSAE_UNIT_RAW = 0, QSAE_UNIT_NORMALIZED = 1 };

typedef struct qsae_sae_record { /* 256 bytes */
    char name[96];               /* UTF-8, NUL-padded */
    uint32_t site_in, layer_in, site_out, layer_out; /* qsae_site */
    uint32_t d_in, d_out, d_sae, k;
    uint32_t activation, norm;   /* qsae_activation, qsae_norm */
    uint32_t flags, feature_unit;
    uint8_t zero[112];
} qsae_sae_record;

/* Q8 and Q4: integers with a scale per row and 256 columns, BLOCK16 only (tools/FORMAT.md). 5 was an earlier Q4. */
enum { QSAE_TYPE_F32 = 1, QSAE_TYPE_BF16 = 2, QSAE_TYPE_BYTES = 3, QSAE_TYPE_Q8 = 4, QSAE_TYPE_Q4 = 6 };

enum {
    QSAE_LAYOUT_VECTOR = 1,  /* [cols] f32, zero-padded to a multiple of 16; rows = 1 */
    QSAE_LAYOUT_BLOCK16 = 2, /* matrix, 16 rows interleaved: a lane is an output row */
    QSAE_LAYOUT_ROWS = 3,    /* row-major, each row zero-padded to a multiple of 64 bytes */
    QSAE_LAYOUT_BYTES = 4    /* [cols] bytes, zero-padded to a multiple of 64; rows = 1 */
};

typedef struct qsae_tensor_record { /* 64 bytes */
    uint32_t group;          /* 0: whole file; 1 + layer, or 1 + member of an SAE file */
    uint32_t role;           /* QSAE_ROLE_ */
    uint32_t type, layout;
    uint64_t rows, cols;     /* logical shape */
    uint64_t offset, size;   /* bytes, from the start of the file */
    uint64_t hash;           /* XXH64 (seed 0) of the size bytes */
    uint64_t zero;
} qsae_tensor_record;

enum {
    /* group 0 */
    QSAE_ROLE_EMBED = 1,      /* [vocab_size, d_model] BLOCK16 */
    QSAE_ROLE_FINAL_NORM = 2, /* [d_model] VECTOR */
    QSAE_ROLE_LM_HEAD = 3,    /* [vocab_size, d_model] BLOCK16, absent if tied */
    QSAE_ROLE_ROPE = 4,       /* [head_dim/2] VECTOR: inverse frequencies */
    QSAE_ROLE_TOKENIZER = 5,  /* BYTES, optional */
    QSAE_ROLE_META = 6,       /* BYTES, optional: lines key=value, sorted, UTF-8 (any group) */
    /* group 1 + layer */
    QSAE_ROLE_ATTN_NORM = 16, /* [d_model] */
    QSAE_ROLE_Q = 17,         /* [n_heads * head_dim, d_model] */
    QSAE_ROLE_K = 18,         /* [n_kv_heads * head_dim, d_model] */
    QSAE_ROLE_V = 19,
    QSAE_ROLE_Q_NORM = 20,    /* [head_dim] */
    QSAE_ROLE_K_NORM = 21,
    QSAE_ROLE_O = 22,         /* [d_model, n_heads * head_dim] */
    QSAE_ROLE_MLP_NORM = 23,  /* [d_model] */
    QSAE_ROLE_GATE = 24,      /* [d_ff, d_model] */
    QSAE_ROLE_UP = 25,
    QSAE_ROLE_DOWN = 26,      /* [d_model, d_ff] */
    /* group 1 + member */
    QSAE_ROLE_ENC = 32,       /* [d_sae, d_in] ROWS */
    QSAE_ROLE_DEC = 33,       /* [d_sae, d_out] ROWS */
    QSAE_ROLE_B_ENC = 34,     /* [d_sae]; for GATED the gate's bias */
    QSAE_ROLE_THETA = 35,     /* [d_sae], JUMPRELU only */
    QSAE_ROLE_MAG_SCALE = 36, /* [d_sae], GATED and TOPK_SCALED: s */
    QSAE_ROLE_MAG_BIAS = 37,  /* [d_sae], GATED only: m */
    QSAE_ROLE_B_DEC = 38,     /* [d_out] */
    QSAE_ROLE_SKIP = 39,      /* [d_out, d_in] BLOCK16, with QSAE_SAE_SKIP only */
    /* the screen, all three or none: a Q8 copy of ENC; per row at least |ENC - copy|; at least |copy| */
    QSAE_ROLE_SCREEN = 40,      /* [d_sae, d_in] BLOCK16, Q8 */
    QSAE_ROLE_SCREEN_REST = 41, /* [d_sae] */
    QSAE_ROLE_SCREEN_NORM = 42  /* [d_sae] */
};

/* Bytes that a tensor occupies, or 0 if the combination is not valid or the size overflows. */
QSAE_API uint64_t qsae_tensor_bytes(uint32_t type, uint32_t layout, uint64_t rows, uint64_t cols);
/* Streaming XXH64 with seed 0, to hash a tensor that is written in parts. A zeroed state is not valid:
 * call begin first. */
typedef struct qsae_hash { uint64_t acc[4], total; uint8_t part[32]; } qsae_hash;
QSAE_API void qsae_hash_begin(qsae_hash *h);
QSAE_API void qsae_hash_add(qsae_hash *h, const void *data, size_t size);
QSAE_API uint64_t qsae_hash_end(const qsae_hash *h);

#endif /* QSAE_WITH_FORMAT */

/* ---------------------------------------------------------------------------------------------------
 * 14 Training
 *
 * A trainer holds one SAE or transcoder that is being trained, with its optimizer's state. It needs no model: it is
 * given rows. Per step of B rows, x read and y to be predicted (x itself, or another site's rows), both times
 * their scale, c = b_dec, w_i and d_i the rows of encoder and decoder, n_i = |d_i|:
 *
 *     z_bi = w_i . (x_b - c) + b_i        e_b = c + sum_i f_bi d_i - y_b        loss = mean_b |e_b|^2 + S + aux
 *
 *   JUMPRELU    f = z if z > theta_i, else 0. S is one of
 *                 STEP       l mean_b L0_b                TARGET  l (mean_b L0_b / T - 1)^2
 *                 QUADRATIC  l mean_b 2/T (L0_b - T)^2    TANH    l mean_b sum_i tanh(s f_bi n_i)
 *               theta_i >= 0 is trained by the straight-through estimator: with K = 1 if |z - theta_i| < bandwidth / 2,
 *               dL/dtheta_i = -sum_b K (theta_i dL/df_bi + dS/dL0_b) / bandwidth. The window is two-sided, and on z.
 *               ste_to_input: the same with the opposite sign also goes to z.
 *               pre_act_coefficient p: + p mean_b sum over dead i of max(theta_i - z_bi, 0) n_i
 *   TOPK        of each row the k largest z_bi n_i (no_rescale: z_bi), ties to the lower i; of these f = max(z, 0)
 *   BATCHTOPK   of the batch's max(z_bi n_i, 0) the int(k B) largest, ties to the lower i, then to the lower row. The
 *               threshold of inference is a moving average, rate 0.01, of the least value kept
 *   MATRYOSHKA  as BATCHTOPK; the loss is the weighted sum of |e_b|^2 over reconstructions from the first m_1, m_2, ...
 *               latents
 *   aux         TOPK kinds: a mean_b |r_b - sum_i z_bi d_i|^2 over the min(d_in / 2, n_dead) dead latents with the largest
 *               z_bi n_i, times min(n_dead / (d_in / 2), 1); r = y - reconstruction, taken as constant
 *
 * Then, in this order: unit_decoder: the part of each d_i's gradient along d_i goes; clip: the gradient of everything, as
 * one vector, is scaled by min(1, clip / (norm + 1e-6)); Adam; unit_decoder: d_i /= |d_i|; theta_i = max(theta_i, 0).
 *
 * The gradients are exact, though only the pairs (row, latent) that fire, or lie in the window, are visited: the others
 * have none. After the same calls a trainer's state has the same bits whatever the number of threads, the instruction
 * set, and whether the encode was screened; saving and loading in between changes nothing.
 *
 * Sources: arXiv 2407.14435, 2408.05147 (JumpReLU), 2406.04093 (TopK, aux), 2412.06410 (BatchTopK), 2503.17547
 * (Matryoshka); the exact forms are those of SAELens 6.54 saes/<name>_sae.py, TARGET that of dictionary_learning
 * trainers/jumprelu.py (whose L0 term sees only half the window; here it is whole). */

#ifndef QSAE_NO_TRAINING

typedef struct qsae_trainer qsae_trainer; /* opaque, mutable, one thread at a time */

typedef enum qsae_train_arch {
    QSAE_TRAIN_JUMPRELU = 0,
    QSAE_TRAIN_TOPK,
    QSAE_TRAIN_BATCHTOPK,
    QSAE_TRAIN_MATRYOSHKA,
    QSAE_TRAIN_ARCH_COUNT
} qsae_train_arch;

typedef enum qsae_train_sparsity {
    QSAE_TRAIN_STEP = 0,
    QSAE_TRAIN_TARGET,
    QSAE_TRAIN_QUADRATIC,
    QSAE_TRAIN_TANH,
    QSAE_TRAIN_SPARSITY_COUNT
} qsae_train_sparsity;

/* Zero the rest: 0 means what the comment says first. The order of the fields is part of the interface. */
typedef struct qsae_trainer_options {
    size_t d_in, d_out, d_sae; /* d_out 0: d_in */
    size_t max_rows;           /* rows of the largest step, at most 2^20; 0: 4096 */
    qsae_train_arch arch;
    qsae_train_sparsity sparsity;
    float l0_coefficient;      /* l; 0: no penalty */
    float l0_target;           /* T > 0, for TARGET and QUADRATIC */
    float bandwidth;           /* 0: 0.05 */
    float threshold_init;      /* 0: 0.01 */
    float tanh_scale;          /* s; 0: 4 */
    float pre_act_coefficient; /* p; 0: none */
    int ste_to_input;
    int no_b_dec_input;        /* 1: the encoder sees x, not x - c. Needed if d_in and d_out differ */
    int no_rescale;            /* TOPK kinds. 1: select by z, not by z n */
    double k;                  /* TOPK kinds: > 0; a whole number for TOPK */
    float aux_coefficient;     /* a; 0: none */
    uint64_t dead_steps;       /* a latent is dead when it has not fired for more than so many steps; 0: 1000 */
    size_t n_prefixes;         /* MATRYOSHKA, at most 64 */
    const size_t *prefixes;    /* [n_prefixes] ascending, the last is d_sae; read by create only */
    const float *prefix_weights; /* [n_prefixes] >= 0; NULL: 1 each; read by create only */
    float lr;                  /* 0: 3e-4 */
    int has_betas;             /* 0: beta1 0.9, beta2 0.999, whatever stands in the next two */
    float beta1, beta2;        /* 0 <= beta < 1; Gemma Scope: 0 and 0.999 */
    float eps;                 /* 0: 1e-8 */
    float clip;                /* norm; 0: none, and no gradient is kept in memory (4 bytes less per parameter) */
    uint64_t steps;            /* of the whole run; needed only for lr_decay */
    uint64_t lr_warmup;        /* step n < lr_warmup: lr (n + 1) / lr_warmup; 0: none */
    uint64_t lr_decay;         /* the last so many of `steps`: linearly towards 0; 0: none */
    int lr_cosine;             /* 1: the warm-up is lr (0.1 + 0.9 (1 - cos(pi n / lr_warmup)) / 2) (Gemma Scope) */
    uint64_t l0_warmup;        /* l at step n: l min(n / l0_warmup, 1); 0: none */
    int unit_decoder;          /* 1: |d_i| = 1 after every step, gradients projected */
    float scale_in, scale_out; /* > 0: rows are multiplied by these first; export takes them out; 0: 1, scale_in */
    float decoder_norm;        /* |d_i| at the start; 0: 0.1, unit_decoder: 1 */
    uint64_t seed;
    int no_screen;             /* 1: compute every pair exactly. The same bits, more time */
    int n_threads;             /* at most 1024; 0: 1; used only with OpenMP */
    qsae_isa isa;
    double (*clock)(void *user); /* seconds; NULL: qsae_train_stats.seconds stay 0 */
    void *clock_user;
    qsae_allocator allocator;
} qsae_trainer_options;

/* Parts of a step, for qsae_train_stats.seconds */
enum {
    QSAE_TIME_PREPARE = 0, /* scale, subtract c, pack */
    QSAE_TIME_SCREEN,      /* bounds of all pairs, and those computed exactly after them */
    QSAE_TIME_ENCODE,      /* the dense encode */
    QSAE_TIME_SELECT,
    QSAE_TIME_DECODE,
    QSAE_TIME_BACKWARD,    /* with clip 0: and update */
    QSAE_TIME_UPDATE,
    QSAE_TIME_AUX
};

typedef struct qsae_train_stats {
    uint64_t step;         /* number of this step, from 0 */
    size_t n_rows;
    double loss, mse;      /* mse: mean_b |e_b|^2 of the whole reconstruction */
    double sparsity, aux;  /* S and pre-act loss; aux */
    double l0;             /* mean_b L0_b */
    double ev;             /* 1 - sum |e|^2 / sum |y - mean y|^2 of this batch; 0 if the latter is 0 */
    double grad_norm;      /* before the clip */
    double lr, l0_coefficient;
    double screened;       /* share of the pairs that were computed exactly; 1: dense */
    size_t n_dead;         /* before this step */
    double seconds[8];
} qsae_train_stats;

/* Bytes that qsae_trainer_create will ask for, exactly; 0 and *err if the options are not valid or the size overflows. */
QSAE_API size_t qsae_trainer_size(const qsae_trainer_options *options, qsae_error *err);

/* A trainer at step 0: decoder rows uniform, scaled to decoder_norm; encoder rows the same (d_in = d_out; else drawn too);
 * biases 0. Returns OK, ARG, LIMIT, NOMEM, UNSUP. Allocates: one block. */
QSAE_API qsae_status qsae_trainer_create(const qsae_trainer_options *options, qsae_trainer **out, qsae_error *err);
QSAE_API void qsae_trainer_destroy(qsae_trainer *trainer); /* NULL is a no-op */

/* One step on n rows.
 *   x  [n, d_in]      y  [n, d_out], or NULL: x (d_in = d_out)
 *   stats  may be NULL
 * Returns OK; ARG; LIMIT if n > max_rows, or if more pairs tie for the largest than there is room for; NUM if a row, the
 * loss or the gradient is not finite; STATE. The trainer is unchanged then, but for one case: with clip 0 a gradient that
 * is not finite is seen too late, and the trainer can only be loaded or destroyed after that. Allocates: nothing. */
QSAE_API qsae_status qsae_trainer_step(qsae_trainer *trainer, const float *x, const float *y, size_t n,
                                       qsae_train_stats *stats, qsae_error *err);

/* The whole state in one sequence of bytes, little-endian, with the options that shape it and a checksum.
 *   write  gets the next size bytes; returns 0, or what stops the save with IO
 *   read   fills size bytes; returns 0, or what stops the load with TRUNC
 * load: into a trainer made with the same options (threads, isa, screen, clock, max_rows and allocator may differ), else
 * MISMATCH, naming the first that differs; FORMAT or VERSION for other bytes; NUM for values that are not finite. When load
 * fails after the options, the trainer must not be used but for another load or destroy (STATE). */
QSAE_API qsae_status qsae_trainer_save(const qsae_trainer *trainer,
                                       int (*write)(void *user, const void *data, size_t size), void *user,
                                       qsae_error *err);
QSAE_API qsae_status qsae_trainer_load(qsae_trainer *trainer, int (*read)(void *user, void *data, size_t size),
                                       void *user, qsae_error *err);

/* The state by parts. A row of a matrix is one latent; of a vector, one value. */
typedef enum qsae_train_part {
    QSAE_PART_ENC = 0, /* [d_sae, d_in] */
    QSAE_PART_DEC,     /* [d_sae, d_out] */
    QSAE_PART_B_ENC,   /* [d_sae] */
    QSAE_PART_THETA,   /* [d_sae] JUMPRELU; [1] BATCHTOPK, MATRYOSHKA: the moving average; not TOPK */
    QSAE_PART_B_DEC,   /* [d_out] */
    QSAE_PART_ENC_M,   /* Adam's moments of each: [..]. With beta1 and one step, the gradient is M / (1 - beta1) */
    QSAE_PART_DEC_M,
    QSAE_PART_B_ENC_M,
    QSAE_PART_THETA_M, /* JUMPRELU only, and V */
    QSAE_PART_B_DEC_M,
    QSAE_PART_ENC_V,
    QSAE_PART_DEC_V,
    QSAE_PART_B_ENC_V,
    QSAE_PART_THETA_V,
    QSAE_PART_B_DEC_V,
    QSAE_PART_FIRED,   /* [d_sae] steps since the latent fired, as a float; exact up to 2^24 */
    QSAE_PART_COUNT
} qsae_train_part;

/* Rows and columns of a part; 0 and 0 if this trainer has it not. */
QSAE_API void qsae_trainer_shape(const qsae_trainer *trainer, qsae_train_part part, size_t *rows, size_t *cols);
/* Copies rows first .. first + n - 1 out or in, in the units of training (scaled rows). Returns OK, ARG; set: NUM for a
 * value that is not finite, ARG for a negative theta, second moment or count. */
QSAE_API qsae_status qsae_trainer_get(const qsae_trainer *trainer, qsae_train_part part, size_t first, size_t n,
                                      float *out, qsae_error *err);
QSAE_API qsae_status qsae_trainer_set(qsae_trainer *trainer, qsae_train_part part, size_t first, size_t n,
                                      const float *in, qsae_error *err);

/* Which activation a .qsae member with the exported parts has: QSAE_ACT_JUMPRELU, or QSAE_ACT_TOPK for TOPK. */
QSAE_API qsae_activation qsae_trainer_activation(const qsae_trainer *trainer);

/* ENC, DEC, B_ENC, THETA ([d_sae] for all but TOPK) or B_DEC as a .qsae file holds them: raw units, scale_in, scale_out
 * and c before the encoder folded away, decoder rows of norm 1 (not for TOPK with no_rescale, where the norms are no
 * part of the selection). The same features fire, but for roundings at the threshold. */
QSAE_API qsae_status qsae_trainer_export(const qsae_trainer *trainer, qsae_train_part part, size_t first, size_t n,
                                         float *out, qsae_error *err);

#endif /* QSAE_NO_TRAINING */

#ifdef __cplusplus
}
#endif
#endif /* QSAE_H */
