/* The tokenizer section of qsae.c and tools/tok_build.c, on a small tokenizer made here. The comparison with the
 * reference on the real one is tests/reference/compare_tokenizer.py. */

#include "../qsae.c"

#include "../tools/tok_build.h"

#include "test.h"

static uint32_t rnd_state = 12345;

static uint32_t rnd(uint32_t below)
{
    rnd_state = rnd_state * 1664525u + 1013904223u;
    return (uint32_t)((uint64_t)(rnd_state >> 4) * below >> 28);
}

/* ----------------------------------------------------------- a small tokenizer.json */

#define REGEX "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|" \
              "\\\\p{N}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|" \
              "\\\\s+(?!\\\\S)|\\\\s+"
#define FLAGS "\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
#define ADDED(id, content, special) \
    "{\"id\":" id ",\"content\":\"" content "\"," FLAGS \
    "\"normalized\":false,\"special\":" special "}"

static const char HEAD[] =
    "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":["
    ADDED("300", "<|end|>", "true") "," ADDED("301", "<|end|>!", "false") ","
    ADDED("303", "<think>", "false") "," ADDED("304", "\\u00e9\\ufffd", "false") "],"
    "\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":\"Sequence\","
    "\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" REGEX "\"},"
    "\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\","
    "\"add_prefix_space\":false,\"trim_offsets\":false,\"use_regex\":false}]},"
    "\"post_processor\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
    "\"trim_offsets\":false,\"use_regex\":false},\"decoder\":{\"type\":\"ByteLevel\","
    "\"add_prefix_space\":false,\"trim_offsets\":false,\"use_regex\":false},"
    "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,"
    "\"continuing_subword_prefix\":\"\",\"end_of_word_suffix\":\"\",\"fuse_unk\":false,"
    "\"byte_fallback\":false,\"ignore_merges\":false,\"vocab\":{";

/* ids: byte b is token b; then these, ranks in this order */
static const char *const MERGES[][2] = {
    {"a", "b"}, {"b", "c"}, {"a", "a"}, {"ab", "c"}, {"aa", "aa"}, {"\304\240", "a"},
    {"\304\240", "\304\240"}, {"\303\203", "\302\251"}, {"x", "y"}, {"y", "x"},
    {"xy", "xy"}, {"yx", "yx"}, {"a", "bc"}, {"t", "h"}, {"th", "e"},
};
#define N_MERGES ((int)(sizeof MERGES / sizeof MERGES[0]))

static size_t put_symbol(char *s, int byte)
{
    int cp = byte, k = 256, b;

    if (!((byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173)))
        for (b = 0, cp = -1; b <= byte; b++)
            if (!((b >= 33 && b <= 126) || (b >= 161 && b != 173)))
                cp = k++;
    return qs_utf8_put((uint8_t *)s, (uint32_t)cp);
}

/* The file; pairs: merges as ["a","b"].  Caller frees. */
static char *make_json(int pairs)
{
    char *s = malloc(1 << 16), *p = s;
    int i, id = 256;

    p += sprintf(p, "%s", HEAD);
    for (i = 0; i < 256; i++) {
        p += sprintf(p, "%s\"%s", i ? "," : "", i == '"' || i == '\\' ? "\\" : "");
        p += put_symbol(p, i);
        p += sprintf(p, "\":%d", i);
    }
    for (i = 0; i < N_MERGES; i++)
        if (i != 12)                     /* a + bc gives abc again */
            p += sprintf(p, ",\"%s%s\":%d", MERGES[i][0], MERGES[i][1], id++);
    p += sprintf(p, "},\"merges\":[");
    for (i = 0; i < N_MERGES; i++)
        p += sprintf(p, pairs ? "%s[\"%s\",\"%s\"]" : "%s\"%s %s\"", i ? "," : "",
                     MERGES[i][0], MERGES[i][1]);
    sprintf(p, "]}}");
    return s;
}

static uint8_t *aligned(const uint8_t *from, size_t n)
{
    void *p = NULL;

    if (posix_memalign(&p, 64, n ? n : 1))
        exit(2);
    if (n)
        memcpy(p, from, n);
    return p;
}

static uint8_t *blob;
static size_t blob_size;
static uint64_t tok_room[1 << 16], other_room[1 << 16]; /* blobs here have at most some 100 merges */
static qs_tok tok;

static void test_build(void)
{
    char *json = make_json(0), *json2 = make_json(1), err[512] = "";
    uint8_t *b, *b2;
    size_t n, n2;
    qsae_error e;

    CHECK(tok_build_from_json(json, strlen(json), &b, &n, err, sizeof err));
    CHECK(tok_build_from_json(json2, strlen(json2), &b2, &n2, err, sizeof err));
    if (err[0])
        printf("%s\n", err);
    CHECK(n == n2 && memcmp(b, b2, n) == 0);
    blob = aligned(b, n);
    blob_size = n;
    e.text[0] = 0;
    CHECK(qs_tok_bind(&tok, blob, n, tok_room, &e) == QSAE_OK);
    if (e.text[0])
        printf("%s\n", e.text);
    free(b);
    free(b2);
    free(json);
    free(json2);
}

/* ------------------------------------------------------------------------- refusals */

static void refuse(const char *from, const char *to, const char *says)
{
    char *json = make_json(0), *out = malloc(1 << 17), *at = strstr(json, from);
    char err[512] = "";
    uint8_t *b = NULL;
    size_t n, k;
    int ok;

    if (!at) {
        printf("not in the file: %s\n", from);
        CHECK(at);
        return;
    }
    k = (size_t)(at - json);
    memcpy(out, json, k);
    sprintf(out + k, "%s%s", to, at + strlen(from));
    ok = tok_build_from_json(out, strlen(out), &b, &n, err, sizeof err);
    if (!CHECK(!ok && strstr(err, says)))
        printf("%s -> %s: %s \"%s\", not \"%s\"\n", from, to,
               ok ? "accepted" : "refused", err, says);
    free(b);
    free(json);
    free(out);
}

static void test_refusals(void)
{
    refuse("\"NFC\"", "\"NFKC\"", "normalizer: unsupported type \"NFKC\"");
    refuse("{\"type\":\"NFC\"}", "null", "normalizer: must be an object");
    refuse("{\"type\":\"NFC\"}", "{}", "normalizer: has no type");
    refuse("{\"type\":\"NFC\"", "{\"type\":\"NFC\",\"x\":1", "unknown member \"x\"");
    refuse("\\\\p{N}|", "\\\\p{N}{1,3}|", "regular expression");
    refuse("\"Regex\"", "\"String\"", "unknown member \"String\"");
    refuse("Isolated", "Removed", "behavior");
    refuse("\"invert\":false", "\"invert\":true", "invert");
    refuse("\"Split\"", "\"Whitespace\"", "unsupported type \"Whitespace\"");
    refuse("\"Sequence\"", "\"ByteLevel\"", "pre_tokenizer: unsupported type");
    refuse("\"add_prefix_space\":false", "\"add_prefix_space\":true",
           "add_prefix_space");
    refuse("\"use_regex\":false", "\"use_regex\":true", "use_regex");
    refuse("\"post_processor\":{\"type\":\"ByteLevel\"",
           "\"post_processor\":{\"type\":\"TemplateProcessing\"", "post_processor");
    refuse("\"decoder\":{\"type\":\"ByteLevel\"", "\"decoder\":{\"type\":\"WordPiece\"",
           "decoder: unsupported type");
    refuse("\"BPE\"", "\"Unigram\"", "model: unsupported type \"Unigram\"");
    refuse("\"byte_fallback\":false", "\"byte_fallback\":true", "byte_fallback");
    refuse("\"ignore_merges\":false", "\"ignore_merges\":true", "ignore_merges");
    refuse("\"fuse_unk\":false", "\"fuse_unk\":true", "fuse_unk");
    refuse("\"dropout\":null", "\"dropout\":0.1", "dropout");
    refuse("\"unk_token\":null", "\"unk_token\":\"\"", "unk_token");
    refuse("\"continuing_subword_prefix\":\"\"", "\"continuing_subword_prefix\":\"##\"",
           "continuing_subword_prefix");
    refuse("\"end_of_word_suffix\":\"\"", "\"end_of_word_suffix\":\"</w>\"",
           "end_of_word_suffix");
    refuse("\"version\":\"1.0\"", "\"version\":\"2.0\"", "version");
    refuse("\"padding\":null", "\"padding\":{}", "padding");
    refuse("\"truncation\":null", "\"truncation\":{}", "truncation");
    refuse("\"truncation\"", "\"trunk\"", "unknown member \"trunk\"");
    refuse("\"a b\"", "\"a\"", "merge 0 is neither");
    refuse("\"a b\"", "\"a b c\"", "merge 0 is neither");
    refuse("\"a b\"", "7", "merge 0 is neither");
    refuse("\"a b\"", "[\"a\",\"b\",\"c\"]", "merge 0 is neither");
    refuse("\"a b\"", "\"a qq\"", "merge 0: \"qq\" is not in the vocabulary");
    refuse("\"a b\"", "\"q q\"", "merge 0: the result");
    refuse("\"b c\"", "\"a b\"", "merge 1 is the same as merge 0");
    refuse("\"ab\":256", "\"ab\":97", "id 97 is given to \"a\" and to \"ab\"");
    refuse("\"ab\":256", "\"ab\":-1", "\"ab\"");
    refuse("\"ab\":256", "\"ab\":2.5", "\"ab\"");
    refuse("\"ab\":256", "\"ab\":\"256\"", "\"ab\"");
    refuse("\"ab\":256", "\"ab\":1048576", "cap");
    refuse("\"ab\":256", "\"ab\":99999999999999999999", "\"ab\"");
    refuse("\"ab\":256", "\"\":256", "empty");
    refuse("\"bc\":257", "\"a\":257", "\"a\"");
    refuse("\"ab\":256", "\"ab\":256,\"a b\":299", "not spelled in byte symbols");
    refuse("\"q\":113", "\"qqq\":113", "symbol \"q\", byte 0x71");
    refuse("\"id\":300", "\"id\":97", "id 97 is \"a\" in the vocabulary");
    refuse("\"id\":301", "\"id\":300", "another added token");
    refuse("\"content\":\"<think>\"", "\"content\":\"<|end|>\"", "appears twice");
    refuse("\"content\":\"<think>\"", "\"content\":\"ab\"", "vocabulary has it as 256");
    refuse("\"content\":\"<think>\"", "\"content\":\"\"", "empty");
    refuse("\"lstrip\":false", "\"lstrip\":true", "lstrip");
    refuse("\"rstrip\":false", "\"rstrip\":true", "rstrip");
    refuse("\"single_word\":false", "\"single_word\":true", "single_word");
    refuse("\"normalized\":false", "\"normalized\":true", "normalized");
    refuse("\"special\":true", "\"special\":1", "special");
    refuse("\"special\":true", "\"special\":true,\"more\":1",
           "unknown member \"more\"");
    refuse("\"merges\":[", "\"merges\":null,\"x\":[", "model: unknown member \"x\"");
    refuse("]}}", "]}", "");             /* cut short */
}

/* ---------------------------------------------------------------------------- texts */

static size_t encode(const char *s, size_t n, int special, int32_t *ids, size_t cap)
{
    size_t room = qs_tok_scratch(n), count = 0;
    uint8_t *scratch = malloc(room);     /* exact, so that ASan sees a byte too far */
    qsae_error e;

    CHECK(qs_tok_encode(&tok, s, n, special, ids, cap, &count, scratch, room, &e)
          == QSAE_OK);
    free(scratch);
    return count;
}

/* The ids, as "97 98"; special tokens are recognised. */
static void expect(const char *s, const char *want, int special, int line)
{
    int32_t ids[256];
    char got[2048] = "";
    size_t n = encode(s, strlen(s), special, ids, 256), i, w = 0;

    for (i = 0; i < n && i < 256; i++)
        w += (size_t)sprintf(got + w, "%s%d", i ? " " : "", (int)ids[i]);
    test_check(strcmp(got, want) == 0, __FILE__, line, s);
    if (strcmp(got, want) != 0)
        printf("  got %s, want %s\n", got, want);
}

#define EXPECT(s, want) expect(s, want, 1, __LINE__)
#define EXPECT_PLAIN(s, want) expect(s, want, 0, __LINE__)

static void test_encode(void)
{
    EXPECT("", "");
    EXPECT("abc", "259");                /* ab, then ab c */
    EXPECT("bca", "257 97");
    EXPECT("aaa", "258 97");             /* ties leftmost */
    EXPECT("aaaaa", "260 97");
    EXPECT("xyxyxy", "266 264");         /* xy xy xy -> xyxy xy, never yxyx */
    EXPECT("yxyxyx", "121 266 120");     /* xy has the lower rank than yx */
    EXPECT(" a", "261");
    EXPECT("  a", "32 261");             /* the last blank belongs to the word */
    EXPECT("the", "269");
    EXPECT("1a2", "49 97 50");
    EXPECT("\303\251", "263");           /* e acute: bytes C3 A9 */
    EXPECT("e\314\201", "263");          /* e + combining acute, composed */
    EXPECT("<|end|>", "300");
    EXPECT("<|end|>!", "301");           /* longest */
    EXPECT("<|end|><think>a", "300 303 97");
    EXPECT_PLAIN("<think>", "60 268 105 110 107 62");
    EXPECT("<|end|", "60 124 101 110 100 124");
    EXPECT("e<|end|>\314\201", "101 300 204 129");   /* NFC never across a token */
    EXPECT("\xff", "239 191 189");
    EXPECT("\xe4\xbd", "239 191 189");
    EXPECT("\303\251\xff", "304");       /* the replacement comes first */
}

static void split(const char *s, const char *want, int line)
{
    char got[256];
    size_t n = strlen(s), at = 0, w = 0, len;

    for (; at < n; at += len) {
        len = qs_piece(&tok, (const uint8_t *)s + at, n - at);
        CHECK(len > 0 && len <= n - at);
        memcpy(got + w, s + at, len);
        w += len;
        got[w++] = '^';
    }
    got[w] = 0;
    test_check(strcmp(got, want) == 0, __FILE__, line, want);
    if (strcmp(got, want) != 0)
        printf("  got %s\n", got);
}

#define SPLIT(s, want) split(s, want, __LINE__)

static void test_split(void)
{
    SPLIT("I'll've don'T", "I^'ll^'ve^ don^'T^");
    SPLIT("'start 'll'x'", "'s^tart^ '^ll^'x^'^");
    SPLIT("it'\305\277 x", "it^'\305\277^ x^");
    SPLIT("'r 're'vE'l", "'r^ '^re^'vE^'l^");
    SPLIT(" a  b\tc\n d", " a^ ^ b^\tc^\n^ d^");
    SPLIT("a   \n  \n   b", "a^   \n  \n^  ^ b^");
    SPLIT("a   ", "a^   ^");
    SPLIT("a \r\nb", "a^ \r\n^b^");
    SPLIT("12 3", "1^2^ ^3^");
    SPLIT("  1", " ^ ^1^");
    SPLIT(" !?\n\n x", " !?\n\n^ x^");
    SPLIT("! !a", "!^ !^a^");
    SPLIT("!a-b", "!a^-b^");
    SPLIT("!!a", "!!^a^");
    SPLIT("\302\240a\302\240\302\240b", "\302\240a^\302\240^\302\240b^");
    SPLIT("\na", "\n^a^");
    SPLIT("a\314\201b", "a^\314\201b^");
    SPLIT("\342\205\247x", "\342\205\247^x^");
}

static void nfc(const char *s, const char *want, int line)
{
    uint32_t room[256];
    size_t n = strlen(s);
    int quick = qs_nfc_quick(&tok, (const uint8_t *)s, n);

    n = qs_nfc((const uint8_t *)s, n, room, sizeof room);
    test_check(n == strlen(want) && memcmp(room, want, n) == 0, __FILE__, line, s);
    if (quick)
        test_check(strcmp(s, want) == 0, __FILE__, line, "quick");
}

#define NFC(s, want) nfc(s, want, __LINE__)

static void test_nfc(void)
{
    NFC("abc", "abc");
    NFC("e\314\201", "\303\251");
    NFC("o\314\243\314\202", "\341\273\231");       /* o, dot below, circumflex */
    NFC("o\314\202\314\243", "\341\273\231");
    NFC("\342\204\253", "\303\205");                       /* Angstrom */
    NFC("\315\204", "\314\210\314\201");                   /* U+0344 */
    NFC("\341\204\200\341\205\241\341\206\250", "\352\260\201");
    NFC("\352\260\200\341\206\250", "\352\260\201");
    NFC("\352\260\201\341\206\250", "\352\260\201\341\206\250");
    NFC("\340\245\230", "\340\244\225\340\244\274");       /* U+0958 is excluded */
    NFC("\xf0\xaf\xa0\x80", "\344\270\275");               /* U+2F800 */
    NFC("\314\201a", "\314\201a");
    NFC("\xf0\x91\xa4\xb5\xf0\x91\xa4\xb0",          /* U+11935 U+11930: Unicode 13 */
        "\xf0\x91\xa4\xb5\xf0\x91\xa4\xb0");
}

static void test_utf8(void)
{
    static const char *const chars[] = {
        "a", "\303\251", "\344\275\240", "\360\237\230\200", "\357\277\275",
        "\355\237\277", "\364\217\277\277"};
    static const char *const wrong[] = {
        "\x80", "\xff", "\xc0", "\xc1\x80", "\xe0\x80", "\xed\xa0", "\xf0\x80",
        "\xf4\x90", "\xf5", "a\x80", "\344\275a", "\xf0\x9f\x98\x80\x80",
        "\xe4\xe4\x41"};
    size_t i, k;

    for (i = 0; i < sizeof chars / sizeof *chars; i++) {
        uint8_t buf[8] = "z";
        size_t n = strlen(chars[i]);
        memcpy(buf + 1, chars[i], n);
        CHECK(qs_utf8_complete(buf, n + 1) == n + 1);
        for (k = 1; k < n; k++) {
            CHECK(qs_utf8_complete(buf, 1 + k) == 1);
            CHECK(qs_utf8_complete(buf + 1, k) == 0);
        }
    }
    for (i = 0; i < sizeof wrong / sizeof *wrong; i++)
        CHECK(qs_utf8_complete((const uint8_t *)wrong[i], strlen(wrong[i]))
              == strlen(wrong[i]));
    CHECK(qs_utf8_complete(NULL, 0) == 0);
}

static void test_queries(void)
{
    const uint8_t *p;
    int32_t id = -5;
    size_t n;

    p = qs_tok_text(&tok, 259, &n);
    CHECK(n == 3 && memcmp(p, "abc", 3) == 0);
    p = qs_tok_text(&tok, 300, &n);
    CHECK(n == 7 && memcmp(p, "<|end|>", 7) == 0);
    CHECK(!qs_tok_text(&tok, 299, &n) && n == 0);          /* a gap */
    CHECK(!qs_tok_text(&tok, -1, &n) && !qs_tok_text(&tok, 305, &n));
    CHECK(!qs_tok_text(&tok, INT32_MAX, &n) && !qs_tok_text(&tok, INT32_MIN, &n));
    CHECK(qs_tok_find_added(&tok, "<|end|>", 7, &id) && id == 300);
    CHECK(qs_tok_find_added(&tok, "<|end|>!", 8, &id) && id == 301);
    CHECK(!qs_tok_find_added(&tok, "<|end|>!!", 9, &id) && id == 301);
    CHECK(!qs_tok_find_added(&tok, "<|end", 5, &id));
    CHECK(!qs_tok_find_added(&tok, "abc", 3, &id));
    CHECK(!qs_tok_find_added(&tok, "", 0, &id));
}

static void test_limits(void)
{
    char text[] = "a b\314\201 \xff aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    size_t len = sizeof text - 1, room = qs_tok_scratch(len), n, full, k;
    uint8_t *scratch = malloc(room + 8);
    int32_t ids[64], all[64];
    qsae_error e;

    CHECK(qs_tok_scratch(SIZE_MAX / 2) == SIZE_MAX);
    full = encode(text, len, 1, all, 64);
    for (k = 0; k < 64; k++) {           /* nothing past cap, the count always */
        ids[k] = -7;
        CHECK(qs_tok_encode(&tok, text, len, 1, ids, k, &n, scratch, room, &e)
              == QSAE_OK && n == full && ids[k] == -7);
        CHECK(memcmp(ids, all, 4 * (k < n ? k : n)) == 0);
    }
    for (k = 0; k < room; k++) {         /* too little scratch: an error, no crash */
        uint8_t *tight = malloc(k ? k : 1);
        qsae_status st = qs_tok_encode(&tok, text, len, 1, ids, 64, &n, tight, k, &e);
        CHECK(st == QSAE_OK ? n == full : st == QSAE_E_NOMEM && n == 0);
        free(tight);
    }
    for (k = 0; k < 8; k++)              /* any alignment */
        CHECK(qs_tok_encode(&tok, text, len, 1, ids, 64, &n, scratch + k, room, &e)
              == QSAE_OK && n == full && memcmp(ids, all, 4 * full) == 0);
    CHECK(qs_tok_encode(&tok, NULL, 1, 1, ids, 64, &n, scratch, room, &e)
          == QSAE_E_ARG);
    CHECK(qs_tok_encode(&tok, "a", 1, 1, NULL, 1, &n, scratch, room, &e) == QSAE_E_ARG);
    CHECK(qs_tok_encode(&tok, "a", 1, 1, NULL, 0, &n, NULL, 0, NULL) == QSAE_OK
          && n == 1);
    CHECK(qs_tok_encode(&tok, NULL, 0, 1, NULL, 0, &n, NULL, 0, NULL) == QSAE_OK
          && n == 0);
    CHECK(qs_tok_encode(&tok, "a", (size_t)INT32_MAX + 1, 1, ids, 64, &n, scratch, room,
                        &e) == QSAE_E_LIMIT);
    free(scratch);
}

/* The worst texts for the scratch, with exactly qs_tok_scratch bytes (see encode). */
static void test_scratch(void)
{
    static const char *const units[] = {
        "\xff", "\316\220", "\341\276\202", "\xf0\x9d\x85\xa0", "\315\204",
        "\352\260\201", "a", " ", "\314\201", "\314\201\314\243", "\xe4\xbd",
        "\316\220\xff", "\xff\316\220",
        "\315\204\xff", "\xf0\x9d\x85\xa0\xff\xff", "e\314\201\xff", "\r\n", "!"};
    char text[4096];
    int32_t *ids = malloc(3 * sizeof text * sizeof *ids);
    size_t i, n, k;

    for (i = 0; i < sizeof units / sizeof *units; i++)
        for (k = 1; k < 400; k += k < 12 ? 1 : 97) {
            size_t u = strlen(units[i]), j;
            for (n = 0, j = 0; j < k; j++, n += u)
                memcpy(text + n, units[i], u);
            CHECK(encode(text, n, 0, ids, 3 * sizeof text) <= 3 * n);
        }
    free(ids);
}

/* Lowest rank, ties leftmost, by its definition. */
static size_t naive(const char *s, size_t n, uint32_t *id)
{
    size_t i, best;

    for (i = 0; i < n; i++)
        id[i] = tok.byte_id[(uint8_t)s[i]];
    for (;;) {
        uint32_t low = QS_TOK_NONE, r;
        for (best = 0, i = 0; i + 1 < n; i++)
            if ((r = qs_tok_rank(&tok, id[i], id[i + 1])) < low) {
                low = r;
                best = i;
            }
        if (low == QS_TOK_NONE)
            return n;
        id[best] = tok.merges[low].result;
        memmove(id + best + 1, id + best + 2, (n - best - 2) * sizeof *id);
        n--;
    }
}

static void test_merges(void)
{
    char text[200];
    uint32_t want[200];
    int32_t ids[200];
    int round;

    for (round = 0; round < 20000; round++) {
        size_t n = 1 + rnd(round % 2 ? 40 : 200), i, count, k;
        uint32_t letters = 2 + rnd(5);
        for (i = 0; i < n; i++)
            text[i] = "abxyczthe"[rnd(letters)];
        k = naive(text, n, want);
        count = encode(text, n, 1, ids, 200);
        CHECK(count == k && memcmp(ids, want, 4 * k) == 0);
    }
}

/* ------------------------------------------------------------------------ bad blobs */

static const char FUZZ_TEXT[] =
    "<|end|>! abc aaaa  the <think> xyxyxyx\303\251\xff 12\n\n'll "
    "aaaaaaaaaaaaaaaaaaaaaaabcabcaaaaaaaaaaaaaaaaaaxyxyxyxyxy\314\201";

/* Error, or a tokenizer that works: encodes into ids that exist and spell something. */
static int bind_and_use(const uint8_t *b, size_t n)
{
    static uint8_t scratch[64 * sizeof FUZZ_TEXT + 1024];
    int32_t ids[512];
    size_t count, i, len;
    static qs_tok t;
    qsae_error e;

    e.text[0] = 0;
    CHECK(qs_tok_room(b, n) <= sizeof other_room);
    if (qs_tok_bind(&t, b, n, other_room, &e) != QSAE_OK) {
        CHECK(e.text[0] != 0);
        return 0;
    }
    CHECK(qs_tok_encode(&t, FUZZ_TEXT, sizeof FUZZ_TEXT - 1, 1, ids, 512, &count,
                        scratch, sizeof scratch, &e) == QSAE_OK && count <= 512);
    for (i = 0; i < count; i++)
        CHECK(qs_tok_text(&t, ids[i], &len) && len > 0);
    return 1;
}

static void test_bad_blobs(void)
{
    size_t n, i, good = 0;
    uint8_t *b, *c;
    uint32_t merges;
    static qs_tok t;
    qsae_error e;
    int k;

    for (n = 0; n < blob_size; n++) {
        b = aligned(blob, n);
        CHECK(!bind_and_use(b, n));
        free(b);
    }
    b = realloc(aligned(blob, blob_size), blob_size + 128);
    c = aligned(b, blob_size + 128);     /* longer than its header says */
    memset(c + blob_size, 0, 128);
    CHECK(!bind_and_use(c, blob_size + 64) && !bind_and_use(c, blob_size + 1));
    memmove(c + 4, blob, blob_size);
    CHECK(!bind_and_use(c + 4, blob_size));
    free(b);
    free(c);
    b = aligned(blob, blob_size);        /* a pair that is there twice */
    memcpy(&merges, b + offsetof(qs_tok_header, off_merges), 4);
    memcpy(b + merges + sizeof(qs_tok_merge), b + merges, sizeof(qs_tok_merge));
    CHECK(qs_tok_bind(&t, b, blob_size, other_room, &e) == QSAE_E_FORMAT
          && strstr(e.text, "merges 0 and 1 are of one pair"));
    free(b);
    b = aligned(blob, blob_size);        /* exact, so that ASan sees a byte too far */
    CHECK(bind_and_use(b, blob_size));
    for (i = 0; i < blob_size; i++) {
        uint8_t was = b[i];
        for (k = 0; k < 12; k++) {
            b[i] = (uint8_t)(k < 8 ? was ^ 1 << k : was + "\1\377\200\101"[k - 8]);
            good += (size_t)bind_and_use(b, blob_size);
        }
        b[i] = was;
    }
    for (k = 0; k < 200000; k++) {       /* two or three words changed at once */
        size_t at[3];
        uint32_t was[3], x;
        int j, m = 2 + (k & 1);
        for (j = 0; j < m; j++) {
            at[j] = 4 * rnd((uint32_t)(blob_size / 4));
            memcpy(&was[j], b + at[j], 4);
            x = rnd(4) ? rnd(320) : was[j] + rnd(3) - 1;
            memcpy(b + at[j], &x, 4);
        }
        good += (size_t)bind_and_use(b, blob_size);
        while (j-- > 0)
            memcpy(b + at[j], &was[j], 4);
    }
    CHECK(memcmp(b, blob, blob_size) == 0);
    printf("bad blobs: %zu bytes, %zu changes still valid\n", blob_size, good);
    free(b);
}

/* Cut and corrupted tokenizer.json: error or a blob that binds. */
/* What the other refusals leave of the catalogue of bad tokenizer files: keys twice (T3), surrogates (T7), sizes
   (T8), the names of sections inside strings (T11), an end at every byte (T12). */
static void test_catalogue(void)
{
    static const char twins[] = "\"content\":\"\\ud83d\\ude00\"";
    static const char names[] = "\"content\":\"\\\"vocab\\\":{\\\"merges\\\":[\"";
    char big[1200] = "\"content\":\"", err[512] = "", *json;
    size_t len, k, n, built = 0;
    uint8_t *b;
    int32_t id = 0;
    qs_tok t;
    qsae_error e;

    refuse("\"ab\":256", "\"ab\":256,\"ab\":299", "appears twice");
    refuse("\"content\":\"<think>\"", "\"content\":\"\\ud83d\"", "surrogate");
    refuse("\"content\":\"<think>\"", "\"content\":\"\\ude00\\ud83d\"", "surrogate");
    memset(big + strlen(big), 'a', 1025);
    strcat(big, "\"");
    refuse("\"content\":\"<think>\"", big, "1024");
    for (k = 0; k < 2; k++) {
        const char *to = k ? names : twins;
        json = malloc(1 << 17);
        char *good = make_json(0), *at = strstr(good, "\"content\":\"<think>\"");
        sprintf(json, "%.*s%s%s", (int)(at - good), good, to, at + strlen("\"content\":\"<think>\""));
        CHECK(tok_build_from_json(json, strlen(json), &b, &n, err, sizeof err));
        uint8_t *c = aligned(b, n);
        CHECK(qs_tok_bind(&t, c, n, other_room, &e) == QSAE_OK);
        CHECK(k ? qs_tok_find_added(&t, "\"vocab\":{\"merges\":[", 19, &id)
                : qs_tok_find_added(&t, "\360\237\230\200", 4, &id));
        CHECK(id == 303);
        free(c);
        free(b);
        free(good);
        free(json);
    }
    json = make_json(0);
    len = strlen(json);
    for (k = 0; k < len; k++) {
        char *cut = malloc(k ? k : 1);   /* ends where the text does, for the sanitizers */
        memcpy(cut, json, k);
        built += (size_t)tok_build_from_json(cut, k, &b, &n, err, sizeof err);
        free(cut);
    }
    CHECK(built == 0);
    free(json);
}

static void test_bad_json(void)
{
    char *json = make_json(1), err[512];
    size_t len = strlen(json), n, size, built = 0;
    uint8_t *b, *c;
    qs_tok t;
    qsae_error e;
    int k;

    for (k = 0; k < 400; k++) {
        size_t at = k < 200 ? (size_t)k * len / 200 : rnd((uint32_t)len);
        char was = json[at];
        n = k < 200 ? at : len;
        if (k >= 200)
            json[at] = (char)(was ^ 1 << rnd(7));
        if (tok_build_from_json(json, n, &b, &size, err, sizeof err)) {
            c = aligned(b, size);
            CHECK(qs_tok_bind(&t, c, size, other_room, &e) == QSAE_OK);
            free(c);
            built++;
        }
        free(b);
        json[at] = was;
    }
    printf("bad json: %zu of 400 built\n", built);
    free(json);
}

int main(void)
{
    test_build();
    test_refusals();
    test_encode();
    test_split();
    test_nfc();
    test_utf8();
    test_queries();
    test_limits();
    test_scratch();
    test_merges();
    test_bad_blobs();
    test_catalogue();
    test_bad_json();
    return test_done("test_tokenizer");
}
