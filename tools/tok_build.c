/* tok_build.c - tokenizer.json (Hugging Face), or its lists -> tokenizer blob
   (tools/FORMAT.md).

   Order of work: parse; check every component against the one pipeline we implement;
   read the vocabulary (symbols -> bytes, hash by symbols); place the added tokens;
   resolve the merges; write the tables. */

#include "tok_build.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "text.h"

#define MAX_TOKENS (1u << 20)
#define MAX_MERGES (1u << 21)
#define MAX_ADDED (1u << 16)
#define MAX_TEXT (1u << 28)
#define MAX_TOKEN 1024u
#define MAX_CHAIN 64u
#define NONE UINT32_MAX

static const char QWEN_PATTERN[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}"
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/* One id.  sym: the vocabulary's spelling; text: the bytes it stands for. */
typedef struct token {
    const char *sym;
    uint8_t *text;
    uint32_t sym_len, text_len;
    uint32_t next;                       /* next id in the same slot of the hash */
    uint8_t in_vocab, is_added, special;
} token;

typedef struct merge {
    uint32_t left, right, result;
    uint32_t next;                       /* of the same bucket, to find a pair that comes twice */
} merge;

typedef struct build {
    json_doc *doc;
    token *tok;                          /* [MAX_TOKENS]; untouched past the last id */
    uint32_t *slot;                      /* [MAX_TOKENS] hash of vocab by spelling */
    uint32_t n_tokens, n_merges, n_added;
    merge *merges;
    uint32_t *buckets, n_buckets;
    uint32_t *added;                     /* ids, ascending by content */
    uint64_t text_bytes;
    char *err;
    size_t err_cap;
    char quoted[2][224];                 /* quote's results */
    int turn;
} build;

/* ------------------------------------------------------------------------- messages */

static int fail(build *b, const char *fmt, ...)
{
    va_list ap;

    if (b->err_cap > 0) {
        va_start(ap, fmt);
        vsnprintf(b->err, b->err_cap, fmt, ap);
        va_end(ap);
    }
    return 0;
}

/* A string of the file, fit for a message: quoted, control bytes escaped, cut at 48
   bytes but never inside a character.  Two results live at once. */
static const char *quote(build *b, const char *s, size_t len)
{
    char *q = b->quoted[b->turn ^= 1];
    size_t i, w = 0, n = len;

    if (n > 48)
        for (n = 48; n > 0 && ((unsigned char)s[n] & 0xC0) == 0x80; n--)
            ;
    q[w++] = '"';
    for (i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c < 32 || c == 127)
            w += (size_t)snprintf(q + w, 5, "\\x%02x", c);
        else
            q[w++] = s[i];
    }
    snprintf(q + w, sizeof b->quoted[0] - w, n < len ? "...\"" : "\"");
    return q;
}

/* --------------------------------------------------------------- checked components */

static int is_null(const json_value *v)
{
    return !v || v->type == JSON_NULL;
}

static int is_text(const json_value *v, const char *text)
{
    return v && v->type == JSON_STRING && v->len == strlen(text)
           && memcmp(v->str, text, v->len) == 0;
}

/* Every member of obj is one of the names (NULL-terminated); where names it. */
static int only_members(build *b, const json_value *obj, const char *where,
                        const char *const *names)
{
    const json_value *m;
    const char *const *name, *key;
    size_t len;

    for (m = json_first(b->doc, obj); m; m = json_next(b->doc, m)) {
        key = json_key(b->doc, m, &len);
        for (name = names; *name; name++)
            if (strlen(*name) == len && memcmp(*name, key, len) == 0)
                break;
        if (!*name)
            return fail(b, "%s: unknown member %s", where, quote(b, key, len));
    }
    return 1;
}

/* obj is an object whose "type" is type. */
static int typed(build *b, const json_value *obj, const char *where, const char *type)
{
    const json_value *t;

    if (!obj || obj->type != JSON_OBJECT)
        return fail(b, "%s: must be an object of type %s", where, type);
    t = json_get(b->doc, obj, "type");
    if (!t || t->type != JSON_STRING)
        return fail(b, "%s: has no type", where);
    if (!is_text(t, type))
        return fail(b, "%s: unsupported type %s; only %s is", where,
                    quote(b, t->str, t->len), type);
    return 1;
}

/* Member key of obj is this boolean. */
static int flag_is(build *b, const json_value *obj, const char *where, const char *key,
                   int want)
{
    const json_value *v = json_get(b->doc, obj, key);
    int got;

    if (!v || !json_bool(v, &got))
        return fail(b, "%s: %s is missing or not a boolean", where, key);
    if (got != want)
        return fail(b, "%s: unsupported %s = %s", where, key, got ? "true" : "false");
    return 1;
}

static int check_normalizer(build *b, const json_value *root)
{
    static const char *const names[] = {"type", NULL};
    const json_value *v = json_get(b->doc, root, "normalizer");

    return typed(b, v, "normalizer", "NFC") && only_members(b, v, "normalizer", names);
}

static int check_split(build *b, const json_value *v)
{
    static const char *const names[] = {"type", "pattern", "behavior", "invert", NULL};
    static const char *const pattern_names[] = {"Regex", NULL};
    static const char where[] = "pre_tokenizer split";
    const json_value *p, *r;

    if (!typed(b, v, where, "Split") || !only_members(b, v, where, names))
        return 0;
    p = json_get(b->doc, v, "pattern");
    if (!p || p->type != JSON_OBJECT)
        return fail(b, "%s: pattern must be a Regex", where);
    if (!only_members(b, p, where, pattern_names))
        return 0;
    r = json_get(b->doc, p, "Regex");
    if (!r || r->type != JSON_STRING)
        return fail(b, "%s: pattern must be a Regex", where);
    if (!is_text(r, QWEN_PATTERN))
        return fail(b, "%s: unsupported regular expression %s; only Qwen's is", where,
                    quote(b, r->str, r->len));
    if (!is_text(json_get(b->doc, v, "behavior"), "Isolated"))
        return fail(b, "%s: behavior must be Isolated", where);
    return flag_is(b, v, where, "invert", 0);
}

static const char *const byte_level_names[] = {
    "type", "add_prefix_space", "trim_offsets", "use_regex", NULL};

static int check_pre_tokenizer(build *b, const json_value *root)
{
    static const char *const names[] = {"type", "pretokenizers", NULL};
    static const char where[] = "pre_tokenizer", bytes[] = "pre_tokenizer byte level";
    const json_value *v = json_get(b->doc, root, "pre_tokenizer");
    const json_value *list, *split, *level;

    if (!typed(b, v, where, "Sequence") || !only_members(b, v, where, names))
        return 0;
    list = json_get(b->doc, v, "pretokenizers");
    if (!list || list->type != JSON_ARRAY || list->n != 2)
        return fail(b, "%s: must be the sequence Split, ByteLevel", where);
    split = json_first(b->doc, list);
    level = json_next(b->doc, split);
    return check_split(b, split) && typed(b, level, bytes, "ByteLevel")
           && only_members(b, level, bytes, byte_level_names)
           && flag_is(b, level, bytes, "add_prefix_space", 0)
           && flag_is(b, level, bytes, "use_regex", 0);
}

/* The post-processor may only move offsets; the decoder must undo the byte symbols. */
static int check_output(build *b, const json_value *root)
{
    const json_value *post = json_get(b->doc, root, "post_processor");
    const json_value *dec = json_get(b->doc, root, "decoder");

    if (!is_null(post)
        && (!typed(b, post, "post_processor", "ByteLevel")
            || !only_members(b, post, "post_processor", byte_level_names)))
        return 0;
    return typed(b, dec, "decoder", "ByteLevel")
           && only_members(b, dec, "decoder", byte_level_names);
}

static int check_model(build *b, const json_value *model)
{
    static const char *const names[] = {
        "type", "dropout", "unk_token", "continuing_subword_prefix",
        "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges", "vocab",
        "merges", NULL};
    static const char *const empty[] = {
        "unk_token", "continuing_subword_prefix", "end_of_word_suffix", NULL};
    static const char *const off[] = {
        "fuse_unk", "byte_fallback", "ignore_merges", NULL};
    const char *const *name;
    const json_value *v;
    double p = 0;
    int on;

    if (!typed(b, model, "model", "BPE") || !only_members(b, model, "model", names))
        return 0;
    v = json_get(b->doc, model, "dropout");
    if (!is_null(v) && (!json_real(v, &p) || p != 0))
        return fail(b, "model: dropout is set; it makes tokens random");
    for (name = empty; *name; name++) {
        v = json_get(b->doc, model, *name);
        /* an unk_token of "" would still be a token that must exist */
        if (!is_null(v) && !(name != empty && is_text(v, "")))
            return fail(b, "model: unsupported %s; it must be null", *name);
    }
    for (name = off; *name; name++) {
        v = json_get(b->doc, model, *name);
        if (!is_null(v) && (!json_bool(v, &on) || on))
            return fail(b, "model: unsupported %s; it must be false", *name);
    }
    return 1;
}

static int check_root(build *b, const json_value *root)
{
    static const char *const names[] = {
        "version", "truncation", "padding", "added_tokens", "normalizer",
        "pre_tokenizer", "post_processor", "decoder", "model", NULL};

    if (root->type != JSON_OBJECT)
        return fail(b, "the file is not a JSON object");
    if (!only_members(b, root, "tokenizer", names))
        return 0;
    if (!is_text(json_get(b->doc, root, "version"), "1.0"))
        return fail(b, "version must be \"1.0\"");
    if (!is_null(json_get(b->doc, root, "truncation")))
        return fail(b, "truncation is set; it must be null");
    if (!is_null(json_get(b->doc, root, "padding")))
        return fail(b, "padding is set; it must be null");
    return check_normalizer(b, root) && check_pre_tokenizer(b, root)
           && check_output(b, root) && check_model(b, json_get(b->doc, root, "model"));
}

/* ---------------------------------------------------------------------- vocabulary */

static uint32_t hash_bytes(const char *s, size_t n)
{
    uint32_t h = 2166136261u;            /* FNV-1a */

    while (n-- > 0)
        h = (h ^ (unsigned char)*s++) * 16777619u;
    return (h ^ h >> 15) & (MAX_TOKENS - 1);
}

/* Id of the vocabulary entry spelled head tail, or NONE. */
static uint32_t find_sym(const build *b, const char *head, size_t n_head,
                         const char *tail, size_t n_tail)
{
    char sym[2 * 2 * MAX_TOKEN];
    uint32_t id;

    if (n_head + n_tail > sizeof sym)
        return NONE;
    memcpy(sym, head, n_head);
    memcpy(sym + n_head, tail, n_tail);
    id = b->slot[hash_bytes(sym, n_head + n_tail)];
    while (id != NONE && (b->tok[id].sym_len != n_head + n_tail
                          || memcmp(b->tok[id].sym, sym, n_head + n_tail) != 0))
        id = b->tok[id].next;
    return id;
}

/* The byte that a symbol's code point stands for, or -1.  GPT-2's alphabet: printable
   Latin-1 is itself, the other 68 bytes follow from U+0100 on, in order. */
static int symbol_byte(uint32_t cp)
{
    if ((cp >= 33 && cp <= 126) || (cp >= 161 && cp <= 255 && cp != 173))
        return (int)cp;
    if (cp < 256 || cp >= 256 + 68)
        return -1;
    cp -= 256;
    return (int)(cp < 33 ? cp : cp < 67 ? cp - 33 + 127 : 173);
}

/* Symbols (UTF-8) to bytes, at most as many; -1 if one is outside the alphabet.  The
   alphabet ends below U+0800: two bytes of UTF-8 at most. */
static int spell(const char *sym, size_t n, uint8_t *out)
{
    size_t i = 0;
    int w = 0, byte;

    while (i < n) {
        uint32_t c = (unsigned char)sym[i++];
        if (c >= 0xE0)
            return -1;
        if (c >= 0x80 && i < n)
            c = (c & 0x1F) << 6 | ((unsigned char)sym[i++] & 0x3Fu);
        byte = symbol_byte(c);
        if (byte < 0)
            return -1;
        out[w++] = (uint8_t)byte;
    }
    return w;
}

static int set_text(build *b, uint32_t id, const uint8_t *text, size_t n)
{
    token *t = &b->tok[id];

    t->text = malloc(n);
    if (!t->text)
        return fail(b, "out of memory");
    memcpy(t->text, text, n);
    t->text_len = (uint32_t)n;
    b->text_bytes += n;
    if (b->text_bytes > MAX_TEXT)
        return fail(b, "the texts of all tokens exceed %u bytes", MAX_TEXT);
    if (id >= b->n_tokens)
        b->n_tokens = id + 1;
    return 1;
}

static int read_id(build *b, const json_value *v, const char *name, size_t len,
                   uint32_t *id)
{
    int64_t x;

    if (!v || v->type != JSON_NUMBER || !json_int(v, &x) || x < 0)
        return fail(b, "token %s: its id is not a whole number from 0 on",
                    quote(b, name, len));
    if (x >= MAX_TOKENS)
        return fail(b, "token %s: id %lld is beyond the cap of %u",
                    quote(b, name, len), (long long)x, MAX_TOKENS);
    *id = (uint32_t)x;
    return 1;
}

/* The token spelled sym; its text follows unless it is an added token's alone. */
static int add_vocab(build *b, const char *sym, size_t len, uint32_t id)
{
    size_t h;
    uint8_t text[2 * MAX_TOKEN];
    int n;

    if (len == 0)
        return fail(b, "vocab: a token is the empty string");
    if (len > sizeof text)
        return fail(b, "vocab: token %s has %zu bytes, the cap is %u",
                    quote(b, sym, len), len, MAX_TOKEN);
    if (b->tok[id].in_vocab)
        return fail(b, "vocab: id %u is given to %s and to %s", (unsigned)id,
                    quote(b, b->tok[id].sym, b->tok[id].sym_len), quote(b, sym, len));
    if (find_sym(b, sym, len, "", 0) != NONE)
        return fail(b, "vocab: token %s appears twice", quote(b, sym, len));
    b->tok[id].in_vocab = 1;
    b->tok[id].sym = sym;
    b->tok[id].sym_len = (uint32_t)len;
    h = hash_bytes(sym, len);
    b->tok[id].next = b->slot[h];
    b->slot[h] = id;
    n = spell(sym, len, text);
    if (n > (int)MAX_TOKEN)
        return fail(b, "vocab: token %s stands for %d bytes, the cap is %u",
                    quote(b, sym, len), n, MAX_TOKEN);
    /* no text yet if it is not spelled in byte symbols: fine for an added token only */
    return n < 0 ? 1 : set_text(b, id, text, (size_t)n);
}

static int read_vocab(build *b, const json_value *model)
{
    const json_value *v = json_get(b->doc, model, "vocab"), *m;
    const char *sym;
    size_t len;
    uint32_t id;

    if (!v || v->type != JSON_OBJECT)
        return fail(b, "model: vocab is missing or not an object");
    if (v->n > MAX_TOKENS)
        return fail(b, "vocab: %u tokens, the cap is %u", (unsigned)v->n, MAX_TOKENS);
    for (m = json_first(b->doc, v); m; m = json_next(b->doc, m)) {
        sym = json_key(b->doc, m, &len);
        if (!read_id(b, m, sym, len, &id) || !add_vocab(b, sym, len, id))
            return 0;
    }
    return 1;
}

/* --------------------------------------------------------------------- added tokens */

static int check_added_flags(build *b, const json_value *v, const char *where)
{
    static const char *const names[] = {
        "id", "content", "single_word", "lstrip", "rstrip", "normalized", "special",
        NULL};

    return only_members(b, v, where, names) && flag_is(b, v, where, "single_word", 0)
           && flag_is(b, v, where, "lstrip", 0) && flag_is(b, v, where, "rstrip", 0)
           && flag_is(b, v, where, "normalized", 0);
}

/* The added token s; its id must be free, or belong to the same spelling already. */
static int add_added(build *b, const char *s, size_t len, uint32_t id, int special)
{
    token *t = &b->tok[id];
    uint32_t other = find_sym(b, s, len, "", 0);

    if (len == 0)
        return fail(b, "added_tokens: a token is the empty string");
    if (len > MAX_TOKEN)
        return fail(b, "added token %s has %zu bytes, the cap is %u", quote(b, s, len),
                    len, MAX_TOKEN);

    if (t->is_added)
        return fail(b, "added token %s: id %u is another added token's",
                    quote(b, s, len), (unsigned)id);
    if (other != NONE && other != id)
        return fail(b, "added token %s: id %u, but the vocabulary has it as %u",
                    quote(b, s, len), (unsigned)id, (unsigned)other);
    if (t->in_vocab && other == NONE)
        return fail(b, "added token %s: id %u is %s in the vocabulary",
                    quote(b, s, len), (unsigned)id,
                    quote(b, t->sym, t->sym_len));
    if (t->text && (t->text_len != len || memcmp(t->text, s, len) != 0))
        return fail(b, "added token %s: the vocabulary's symbols spell other bytes",
                    quote(b, s, len));
    t->is_added = 1;
    t->special = (uint8_t)special;
    b->added[b->n_added++] = id;
    return t->text ? 1 : set_text(b, id, (const uint8_t *)s, len);
}

static int read_one_added(build *b, const json_value *v)
{
    const json_value *c, *s;
    char where[256];
    uint32_t id;
    int special;

    c = v->type == JSON_OBJECT ? json_get(b->doc, v, "content") : NULL;
    if (!c || c->type != JSON_STRING)
        return fail(b, "added_tokens: an entry has no content");
    snprintf(where, sizeof where, "added token %s", quote(b, c->str, c->len));
    if (!check_added_flags(b, v, where))
        return 0;
    s = json_get(b->doc, v, "special");
    if (!s || !json_bool(s, &special))
        return fail(b, "%s: special is missing or not a boolean", where);
    return read_id(b, json_get(b->doc, v, "id"), c->str, c->len, &id)
           && add_added(b, c->str, c->len, id, special);
}

/* memcmp order of the texts, a prefix before what it starts. */
static int order_text(const token *x, const token *y)
{
    uint32_t n = x->text_len < y->text_len ? x->text_len : y->text_len;
    int c = memcmp(x->text, y->text, n);

    return c ? c : (x->text_len > y->text_len) - (x->text_len < y->text_len);
}

/* Sorts id[n] by text; tmp[n].  A merge sort: qsort cannot see the tokens. */
static void sort_added(const token *tok, uint32_t *id, uint32_t *tmp, uint32_t n)
{
    uint32_t half = n / 2, i = 0, j = half, w = 0;

    if (n < 2)
        return;
    sort_added(tok, id, tmp, half);
    sort_added(tok, id + half, tmp, n - half);
    while (i < half || j < n)
        tmp[w++] = j == n || (i < half && order_text(&tok[id[i]], &tok[id[j]]) <= 0)
                       ? id[i++] : id[j++];
    memcpy(id, tmp, n * sizeof *id);
}

/* Room for n added tokens, and as much to sort them. */
static int begin_added(build *b, size_t n)
{
    if (n > MAX_ADDED)
        return fail(b, "added_tokens: %zu tokens, the cap is %u", n, MAX_ADDED);
    b->added = malloc((2 * n + 1) * sizeof *b->added);
    return b->added ? 1 : fail(b, "out of memory");
}

/* After the last: sorted, each once; and all other tokens have a text. */
static int end_added(build *b)
{
    uint32_t i, id;

    sort_added(b->tok, b->added, b->added + b->n_added, b->n_added);
    for (i = 1; i < b->n_added; i++)
        if (order_text(&b->tok[b->added[i - 1]], &b->tok[b->added[i]]) == 0)
            return fail(b, "added token %s appears twice, as id %u and %u",
                        quote(b, (const char *)b->tok[b->added[i]].text,
                              b->tok[b->added[i]].text_len),
                        (unsigned)b->added[i - 1], (unsigned)b->added[i]);
    for (id = 0; id < MAX_TOKENS; id++)
        if (b->tok[id].in_vocab && !b->tok[id].text)
            return fail(b, "vocab: token %s is not spelled in byte symbols",
                        quote(b, b->tok[id].sym, b->tok[id].sym_len));
    return 1;
}

static int read_added(build *b, const json_value *root)
{
    const json_value *list = json_get(b->doc, root, "added_tokens"), *v;

    if (!is_null(list) && list->type != JSON_ARRAY)
        return fail(b, "added_tokens is not an array");
    if (!begin_added(b, is_null(list) ? 0 : list->n))
        return 0;
    for (v = is_null(list) ? NULL : json_first(b->doc, list); v; v = json_next(b->doc, v))
        if (!read_one_added(b, v))
            return 0;
    return end_added(b);
}

/* --------------------------------------------------------------------------- merges */

/* The two parts of merge "a b", which has exactly one blank. */
static int split_merge(const char *s, size_t n, const char *part[2], size_t len[2])
{
    const char *blank = memchr(s, ' ', n);

    if (!blank)
        return 0;
    part[0] = s;
    len[0] = (size_t)(blank - s);
    part[1] = blank + 1;
    len[1] = n - len[0] - 1;
    return len[0] > 0 && len[1] > 0 && !memchr(part[1], ' ', len[1]);
}

/* Those of merge v: ["a", "b"], or "a b". */
static int merge_parts(const build *b, const json_value *v, const char *part[2],
                       size_t len[2])
{
    const json_value *x, *y;

    if (v->type == JSON_STRING)
        return split_merge(v->str, v->len, part, len);
    if (v->type != JSON_ARRAY || v->n != 2)
        return 0;
    x = json_first(b->doc, v);
    y = json_next(b->doc, x);
    if (x->type != JSON_STRING || y->type != JSON_STRING || !x->len || !y->len)
        return 0;
    part[0] = x->str;
    len[0] = x->len;
    part[1] = y->str;
    len[1] = y->len;
    return 1;
}

static uint32_t merge_hash(uint32_t left, uint32_t right)
{
    uint32_t h = left * 0x9E3779B1u ^ right * 0x85EBCA6Bu;

    h ^= h >> 15;
    h *= 0xC2B2AE35u;
    return h ^ h >> 16;
}

/* Puts merge `rank` in front of the others of its bucket, none of which may be equal. */
static int chain_merge(build *b, uint32_t rank)
{
    merge *m = &b->merges[rank];
    uint32_t *first = &b->buckets[merge_hash(m->left, m->right) & (b->n_buckets - 1)];
    uint32_t at, n = 0;

    for (at = *first; at != NONE; at = b->merges[at].next) {
        if (b->merges[at].left == m->left && b->merges[at].right == m->right)
            return fail(b, "merge %u is the same as merge %u", (unsigned)rank,
                        (unsigned)at);
        if (++n == MAX_CHAIN)            /* made so: no search may take long */
            return fail(b, "merge %u: more than %u merges share a bucket",
                        (unsigned)rank, MAX_CHAIN);
    }
    m->next = *first;
    *first = rank;
    return 1;
}

static int add_merge(build *b, const char *const part[2], const size_t len[2],
                     uint32_t rank)
{
    merge *m = &b->merges[rank];

    m->left = find_sym(b, part[0], len[0], "", 0);
    m->right = find_sym(b, part[1], len[1], "", 0);
    m->result = find_sym(b, part[0], len[0], part[1], len[1]);
    if (m->left == NONE || m->right == NONE)
        return fail(b, "merge %u: %s is not in the vocabulary", (unsigned)rank,
                    m->left == NONE ? quote(b, part[0], len[0])
                                    : quote(b, part[1], len[1]));
    if (m->result == NONE)
        return fail(b, "merge %u: the result of %s and %s is not in the vocabulary",
                    (unsigned)rank, quote(b, part[0], len[0]),
                    quote(b, part[1], len[1]));
    /* the lengths differ if an added token, not spelled in byte symbols, takes part */
    if (b->tok[m->left].text_len + b->tok[m->right].text_len
        != b->tok[m->result].text_len)
        return fail(b, "merge %u: %s is not spelled in byte symbols", (unsigned)rank,
                    quote(b, b->tok[m->result].sym, b->tok[m->result].sym_len));
    return chain_merge(b, rank);
}

static int begin_merges(build *b, size_t n)
{
    if (n > MAX_MERGES)
        return fail(b, "merges: %zu of them, the cap is %u", n, MAX_MERGES);
    b->n_merges = (uint32_t)n;
    for (b->n_buckets = 1; b->n_buckets < 2 * b->n_merges;)
        b->n_buckets *= 2;
    b->merges = calloc((size_t)b->n_merges + 1, sizeof *b->merges);
    b->buckets = malloc(b->n_buckets * sizeof *b->buckets);
    if (!b->merges || !b->buckets)
        return fail(b, "out of memory");
    memset(b->buckets, 0xFF, b->n_buckets * sizeof *b->buckets);
    return 1;
}

static int read_merges(build *b, const json_value *model)
{
    const json_value *list = json_get(b->doc, model, "merges"), *v;
    const char *part[2];
    size_t len[2];
    uint32_t rank = 0;

    if (!list || list->type != JSON_ARRAY)
        return fail(b, "model: merges is missing or not an array");
    if (!begin_merges(b, list->n))
        return 0;
    for (v = json_first(b->doc, list); v; v = json_next(b->doc, v)) {
        if (!merge_parts(b, v, part, len))
            return fail(b, "merge %u is neither \"a b\" nor [\"a\", \"b\"]",
                        (unsigned)rank);
        if (!add_merge(b, part, len, rank++))
            return 0;
    }
    return 1;
}

/* --------------------------------------------------------------------------- output */

static void put_u32(uint8_t *p, uint32_t x)
{
    p[0] = (uint8_t)x;
    p[1] = (uint8_t)(x >> 8);
    p[2] = (uint8_t)(x >> 16);
    p[3] = (uint8_t)(x >> 24);
}

/* Offsets of the five tables and, last, the size; all are multiples of 64. */
static size_t table_offsets(const build *b, size_t off[6])
{
    size_t size[5];
    int i;

    size[0] = 256 * 4;
    size[1] = 4 * ((size_t)b->n_tokens + 1);
    size[2] = (size_t)b->text_bytes;
    size[3] = 12 * (size_t)b->n_merges;
    size[4] = 8 * (size_t)b->n_added;
    off[0] = 64;
    for (i = 0; i < 5; i++)
        off[i + 1] = (off[i] + size[i] + 63) / 64 * 64;
    return off[5];
}

static void put_header(const build *b, const size_t off[6], uint8_t *p)
{
    uint32_t h[16] = {0x4B4F5451u, 2, 1};        /* "QTOK", version, pipeline */
    int i;

    h[3] = b->n_tokens;
    h[4] = b->n_merges;
    h[5] = b->n_added;
    h[6] = (uint32_t)b->text_bytes;
    for (i = 0; i < 6; i++)
        h[7 + i] = (uint32_t)off[i];
    for (i = 0; i < 16; i++)
        put_u32(p + 4 * i, h[i]);
}

/* text_off and text */
static void put_texts(const build *b, const size_t off[6], uint8_t *p)
{
    uint32_t id, at = 0;

    for (id = 0; id < b->n_tokens; id++) {
        const token *t = &b->tok[id];
        put_u32(p + off[1] + 4 * (size_t)id, at);
        if (t->text_len)
            memcpy(p + off[2] + at, t->text, t->text_len);
        at += t->text_len;
    }
    put_u32(p + off[1] + 4 * (size_t)id, at);
}

/* byte_id; 0 if a byte has no token: then some text could not be encoded */
static int put_bytes(build *b, const size_t off[6], uint8_t *p)
{
    char sym[2];
    uint32_t cp, id;
    size_t n;
    int byte;

    for (cp = 0; cp < 256 + 68; cp++) {
        if ((byte = symbol_byte(cp)) < 0)
            continue;
        n = cp < 0x80 ? 1 : 2;
        sym[0] = (char)(n == 1 ? cp : 0xC0 | cp >> 6);
        sym[1] = (char)(0x80 | (cp & 0x3F));
        id = find_sym(b, sym, n, "", 0);
        if (id == NONE)
            return fail(b, "vocab: symbol %s, byte 0x%02x, is missing",
                        quote(b, sym, n), (unsigned)byte);
        put_u32(p + off[0] + 4 * (size_t)byte, id);
    }
    return 1;
}

static int write_blob(build *b, uint8_t **blob, size_t *blob_size)
{
    size_t off[6], size = table_offsets(b, off), i;
    uint8_t *p = calloc(size, 1), *q;

    if (!p)
        return fail(b, "out of memory");
    put_header(b, off, p);
    if (!put_bytes(b, off, p)) {
        free(p);
        return 0;
    }
    put_texts(b, off, p);
    for (i = 0, q = p + off[3]; i < b->n_merges; i++, q += 12) {
        put_u32(q, b->merges[i].left);
        put_u32(q + 4, b->merges[i].right);
        put_u32(q + 8, b->merges[i].result);
    }
    for (i = 0, q = p + off[4]; i < b->n_added; i++, q += 8) {
        put_u32(q, b->added[i]);
        put_u32(q + 4, b->tok[b->added[i]].special);
    }
    *blob = p;
    *blob_size = size;
    return 1;
}

static void release(build *b)
{
    uint32_t id;

    for (id = 0; b->tok && id < b->n_tokens; id++)
        free(b->tok[id].text);
    free(b->tok);
    free(b->slot);
    free(b->merges);
    free(b->buckets);
    free(b->added);
    json_free(b->doc);
}

/* Tables for every id there can be. */
static int begin(build *b, char *err, size_t err_cap)
{
    memset(b, 0, sizeof *b);
    b->err = err;
    b->err_cap = err_cap;
    b->tok = calloc(MAX_TOKENS, sizeof *b->tok);
    b->slot = malloc(MAX_TOKENS * sizeof *b->slot);
    if (!b->tok || !b->slot)
        return fail(b, "out of memory");
    memset(b->slot, 0xFF, MAX_TOKENS * sizeof *b->slot);
    return 1;
}

int tok_build_from_json(const char *json, size_t len, uint8_t **blob, size_t *blob_size,
                        char *err, size_t err_cap)
{
    const json_value *root, *model;
    build b;
    int ok = begin(&b, err, err_cap);

    *blob = NULL;
    *blob_size = 0;
    b.doc = ok ? json_parse(json, len, err, err_cap) : NULL;
    if (b.doc) {
        root = json_root(b.doc);
        ok = check_root(&b, root) && (model = json_get(b.doc, root, "model")) != NULL
             && read_vocab(&b, model) && read_added(&b, root) && read_merges(&b, model)
             && write_blob(&b, blob, blob_size);
    } else {
        ok = 0;
    }
    release(&b);
    return ok;
}

/* ---------------------------------------------------------------------------- lists */

/* JSON has checked this; of a list nobody has. */
static int check_utf8(build *b, const char *what, size_t i, const tok_item *t)
{
    uint32_t c;
    int valid = 1;
    size_t at = 0;

    while (valid && at < t->len)
        at += text_next(t->text + at, t->len - at, &c, &valid);
    return valid ? 1 : fail(b, "%s %zu is not UTF-8", what, i);
}

/* 1 if s as symbols spells s: then it is the same token as a vocabulary's. */
static int spells_itself(const tok_item *t)
{
    size_t i;

    for (i = 0; i < t->len; i++)
        if (t->text[i] < 33 || t->text[i] > 126)
            return 0;
    return t->len <= MAX_TOKEN;
}

static int list_tokens(build *b, const tok_item *tokens, size_t n)
{
    size_t i, n_added = 0;
    int added;

    if (n > MAX_TOKENS)
        return fail(b, "vocab: %zu tokens, the cap is %u", n, MAX_TOKENS);
    for (i = 0; i < n; i++) {
        added = tokens[i].kind == TOK_ADDED || tokens[i].kind == TOK_SPECIAL;
        n_added += (size_t)added;
        if (!check_utf8(b, "token", i, &tokens[i]))
            return 0;
        if (tokens[i].kind == TOK_NORMAL || (added && spells_itself(&tokens[i])))
            if (!add_vocab(b, tokens[i].text, tokens[i].len, (uint32_t)i))
                return 0;
    }
    if (!begin_added(b, n_added))
        return 0;
    for (i = 0; i < n; i++)
        if (tokens[i].kind == TOK_ADDED || tokens[i].kind == TOK_SPECIAL)
            if (!add_added(b, tokens[i].text, tokens[i].len, (uint32_t)i,
                           tokens[i].kind == TOK_SPECIAL))
                return 0;
    return end_added(b);
}

static int list_merges(build *b, const tok_item *merges, size_t n)
{
    const char *part[2];
    size_t len[2], i;

    if (!begin_merges(b, n))
        return 0;
    for (i = 0; i < n; i++) {
        if (!check_utf8(b, "merge", i, &merges[i]))
            return 0;
        if (!split_merge(merges[i].text, merges[i].len, part, len))
            return fail(b, "merge %zu is not \"a b\"", i);
        if (!add_merge(b, part, len, (uint32_t)i))
            return 0;
    }
    return 1;
}

int tok_build_from_lists(const tok_item *tokens, size_t n_tokens, const tok_item *merges,
                         size_t n_merges, uint8_t **blob, size_t *blob_size, char *err,
                         size_t err_cap)
{
    build b;
    int ok = begin(&b, err, err_cap);

    *blob = NULL;
    *blob_size = 0;
    ok = ok && list_tokens(&b, tokens, n_tokens) && list_merges(&b, merges, n_merges)
         && write_blob(&b, blob, blob_size);
    release(&b);
    return ok;
}
