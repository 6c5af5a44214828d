/* Sampling: which ids may come, how often they come, and that the choice depends on nothing but its arguments.
 * Frequencies are compared with exact probabilities by chi-square; seeds are fixed, so a run repeats. */

#include "test.h"
#include "tiny.h"

#include <math.h>

enum { N = 40, DRAWS = 20000 };

static char scratch[N * 8 + 64 + 16];

static int32_t draw(const float *x, size_t n, qsae_sample_options o, uint64_t pos)
{
    int32_t id = -1;
    qsae_error e;
    /* counted only if wrong: there are a million draws */
    if (qsae_sample(x, n, &o, pos, scratch, sizeof scratch, &id, &e) || id < 0 || (size_t)id >= n) CHECK(id == -2);
    return id < 0 || (size_t)id >= n ? 0 : id;
}

static qsae_sample_options options(float temperature, int32_t top_k, float top_p, float min_p, uint64_t seed)
{
    qsae_sample_options o;
    memset(&o, 0, sizeof o);
    o.temperature = temperature;
    o.top_k = top_k;
    o.top_p = top_p;
    o.min_p = min_p;
    o.seed = seed;
    return o;
}

static void random_logits(float *x, uint64_t seed, double spread)
{
    for (int i = 0; i < N; i++) x[i] = (float)(spread * tiny_uniform(&seed));
}

/* ---- the probabilities, in double, step by step as Hugging Face's processors ---- */

static int larger(const double *p, int a, int b) { return p[a] != p[b] ? p[a] > p[b] : a < b; }

static void normalize(double *p)
{
    double sum = 0;
    for (int i = 0; i < N; i++) sum += p[i];
    for (int i = 0; i < N; i++) p[i] /= sum;
}

static void reference(const float *x, qsae_sample_options o, double *p)
{
    double best = -INFINITY, most = 0;
    int rank[N], order[N];
    for (int i = 0; i < N; i++) best = x[i] > best ? (double)x[i] : best;
    for (int i = 0; i < N; i++) p[i] = exp(((double)x[i] - best) / (double)o.temperature);
    for (int i = 0; i < N; i++) {
        rank[i] = 0;
        for (int j = 0; j < N; j++) rank[i] += j != i && larger(p, j, i);
        order[rank[i]] = i;
    }
    if (o.top_k && o.top_k < N) { /* ties with the k-th stay */
        double least = p[order[o.top_k - 1]];
        for (int i = 0; i < N; i++)
            if (p[i] < least) p[i] = 0;
    }
    normalize(p);
    double before = 0; /* the share of the larger ones */
    for (int r = 0; o.top_p > 0 && r < N; r++) {
        double own = p[order[r]];
        if (before >= (double)o.top_p) p[order[r]] = 0;
        before += own;
    }
    normalize(p);
    for (int i = 0; i < N; i++) most = p[i] > most ? p[i] : most;
    for (int i = 0; i < N; i++)
        if (p[i] < (double)o.min_p * most) p[i] = 0;
    normalize(p);
}

static void check_frequencies(const float *x, qsae_sample_options o)
{
    double p[N], chi = 0, rare = 0, rare_seen = 0;
    long seen[N] = {0};
    int df = -1;
    reference(x, o, p);
    for (uint64_t i = 0; i < DRAWS; i++) seen[draw(x, N, o, i)]++;
    for (int i = 0; i < N; i++) {
        double want = p[i] * DRAWS;
        if (p[i] == 0) CHECK(seen[i] == 0);
        if (want < 10) { /* too few for the statistic: taken together */
            rare += want, rare_seen += (double)seen[i];
            continue;
        }
        chi += ((double)seen[i] - want) * ((double)seen[i] - want) / want;
        df++;
    }
    if (rare >= 10) chi += (rare_seen - rare) * (rare_seen - rare) / rare, df++;
    /* about 1e-4 of honest generators are above; the seeds are fixed, so this one is below for good */
    if (df > 0 && !CHECK(chi < df + 4 * sqrt(2.0 * df) + 8))
        fprintf(stderr, "    chi-square %g of %d: T %g, top_k %d, top_p %g, min_p %g\n", chi, df,
                (double)o.temperature, o.top_k, (double)o.top_p, (double)o.min_p);
}

static void check_distributions(void)
{
    float x[N];
    for (uint64_t s = 1; s <= 3; s++) {
        random_logits(x, s, 3);
        check_frequencies(x, options(1, 0, 0, 0, s));
        check_frequencies(x, options(0.7f, 0, 1, 0, s));
        check_frequencies(x, options(2.5f, 0, 0, 0, s));
        check_frequencies(x, options(1, 7, 0, 0, s));
        check_frequencies(x, options(1, 0, 0.8f, 0, s));
        check_frequencies(x, options(1.3f, 20, 0.9f, 0, s));
        check_frequencies(x, options(1, 0, 0, 0.1f, s));
        check_frequencies(x, options(0.9f, 25, 0.95f, 0.05f, s));
        check_frequencies(x, options(1, N, 0.5f, 0, s));
        check_frequencies(x, options(1, N + 100, 0, 0, s));
    }
    for (int i = 0; i < N; i += 3) x[i] = -INFINITY; /* never drawn */
    check_frequencies(x, options(1, 0, 0, 0, 9));
    check_frequencies(x, options(1, 30, 0.99f, 0, 9));
    for (int i = 0; i < N; i++) x[i] = 1;
    check_frequencies(x, options(1, 0, 0, 0, 10));
    check_frequencies(x, options(100, 5, 0, 0, 10)); /* all: they tie */
    check_frequencies(x, options(100, 5, 0.5f, 0, 10)); /* the lower half of the ids */
}

/* ---- edges ---- */

static void check_greedy(void)
{
    float x[N];
    int32_t id = -1;
    qsae_error e;
    random_logits(x, 4, 1);
    x[11] = x[30] = x[12] = 2;
    CHECK(qsae_sample(x, N, NULL, 0, NULL, 0, &id, &e) == QSAE_OK && id == 11);
    for (uint64_t pos = 0; pos < 20; pos++) {
        CHECK(draw(x, N, options(0, 3, 0.5f, 0.5f, pos), pos) == 11);
        int32_t tied = draw(x, N, options(1, 1, 0, 0, pos), pos);     /* top-1: ties stay */
        CHECK(tied == 11 || tied == 12 || tied == 30);
        CHECK(draw(x, N, options(1, 0, 1e-6f, 0, pos), pos) == 11);   /* at least one stays */
        CHECK(draw(x, N, options(1e-30f, 1, 1e-6f, 0, pos), pos) == 11);
    }
    x[0] = 2;
    CHECK(draw(x, N, options(0, 0, 0, 0, 0), 0) == 0);
    x[0] = -0.0f, x[1] = 0.0f;
    CHECK(draw(x, 2, options(0, 0, 0, 0, 0), 0) == 0); /* -0 is no less than 0 */
    CHECK(draw(x, 1, options(1, 0, 0, 0, 0), 7) == 0); /* one logit */
    x[0] = x[2] = -INFINITY;
    CHECK(draw(x, 3, options(0, 0, 0, 0, 0), 0) == 1);
    CHECK(draw(x, 3, options(5, 0, 0, 0, 0), 0) == 1);
    x[0] = -3e38f, x[1] = 3e38f, x[2] = -INFINITY; /* the difference overflows */
    CHECK(draw(x, 3, options(1, 0, 0, 0, 0), 0) == 1);
    CHECK(draw(x, 3, options(1e-45f, 0, 0.9f, 0, 0), 0) == 1);
}

/* Which ids ever come, as bits. */
static uint64_t support(const float *x, qsae_sample_options o)
{
    uint64_t bits = 0;
    for (uint64_t i = 0; i < 4000; i++) bits |= (uint64_t)1 << draw(x, N, o, i);
    return bits;
}

static void check_filters(void)
{
    float x[N];
    for (int i = 0; i < N; i++) x[i] = -INFINITY;
    x[8] = x[9] = x[30] = x[31] = 1; /* exactly a quarter each */
    CHECK(support(x, options(1, 0, 0.25f, 0, 1)) == 1ull << 8);
    CHECK(support(x, options(1, 0, 0.5f, 0, 1)) == (1ull << 8 | 1ull << 9));
    CHECK(support(x, options(1, 0, 0.50001f, 0, 1)) == (1ull << 8 | 1ull << 9 | 1ull << 30));
    for (int i = 0; i < N; i++) x[i] = -20;
    x[3] = x[17] = x[21] = x[39] = 0; /* four of a quarter each; the rest is below rounding */
    CHECK(support(x, options(1, 4, 0, 0, 1)) == (1ull << 3 | 1ull << 17 | 1ull << 21 | 1ull << 39));
    for (int k = 1; k < 4; k++) /* ties with the k-th stay, as in Hugging Face */
        CHECK(support(x, options(1, k, 0, 0, 1)) == (1ull << 3 | 1ull << 17 | 1ull << 21 | 1ull << 39));
    CHECK(support(x, options(1, 4, 0.5f, 0, 1)) == (1ull << 3 | 1ull << 17)); /* exactly half */
    CHECK(support(x, options(1, 4, 0.51f, 0, 1)) == (1ull << 3 | 1ull << 17 | 1ull << 21));
    CHECK(support(x, options(1, 0, 0.24f, 0, 1)) == 1ull << 3);
    CHECK(support(x, options(1, 0, 0, 0.5f, 1)) == (1ull << 3 | 1ull << 17 | 1ull << 21 | 1ull << 39));
    x[17] = -0.7f; /* exp: 0.4966 */
    CHECK(support(x, options(1, 0, 0, 0.49f, 1)) == (1ull << 3 | 1ull << 17 | 1ull << 21 | 1ull << 39));
    CHECK(support(x, options(1, 0, 0, 0.5f, 1)) == (1ull << 3 | 1ull << 21 | 1ull << 39));
    CHECK(support(x, options(2, 0, 0, 0.5f, 1)) ==
          (1ull << 3 | 1ull << 17 | 1ull << 21 | 1ull << 39)); /* after the temperature */
    CHECK(support(x, options(1, 0, 0, 0.9999999f, 1)) == (1ull << 3 | 1ull << 21 | 1ull << 39));
    CHECK(support(x, options(1, 0, 0, 1, 1)) == (1ull << 3 | 1ull << 21 | 1ull << 39));
    CHECK(support(x, options(1, 0, 1, 0, 1)) == support(x, options(1, 0, 0, 0, 1)));
}

/* Penalties: the same as logits that were changed beforehand, and each id counted once. */
static void check_penalties(void)
{
    static const int32_t history[] = {5, 9, 5, 30, 9, 0, 5, 30};
    enum { LEN = 8, PROMPT = 4 };
    float x[N], y[N];
    for (uint64_t s = 1; s <= 40; s++) {
        qsae_sample_options plain = options(s % 3 ? 0.8f : 0, s % 2 ? 10 : 0, s % 5 ? 0 : 0.9f, 0, s);
        qsae_sample_options o = plain;
        random_logits(x, s, 3);
        memcpy(y, x, sizeof x);
        o.history = history;
        o.n_history = LEN;
        o.n_prompt = PROMPT;
        o.repetition_penalty = s % 4 ? 1.3f : 0;
        o.presence_penalty = s % 7 ? 0.75f : 0;
        for (int i = 0; i < N; i++) {
            int before = i == 5 || i == 9 || i == 30 || i == 0, made = i == 9 || i == 0 || i == 5 || i == 30;
            if (before && o.repetition_penalty != 0) y[i] = y[i] < 0 ? y[i] * 1.3f : y[i] / 1.3f;
            if (made) y[i] -= o.presence_penalty;
        }
        for (uint64_t pos = 0; pos < 50; pos++) CHECK(draw(x, N, o, pos) == draw(y, N, plain, pos));
        o.n_prompt = LEN; /* nothing generated: only the repetition counts */
        memcpy(y, x, sizeof x);
        for (int i = 0; i < N && o.repetition_penalty != 0; i++)
            if (i == 5 || i == 9 || i == 30 || i == 0) y[i] = y[i] < 0 ? y[i] * 1.3f : y[i] / 1.3f;
        for (uint64_t pos = 0; pos < 50; pos++) CHECK(draw(x, N, o, pos) == draw(y, N, plain, pos));
    }
    random_logits(x, 3, 2);
    qsae_sample_options o = options(1.1f, 0, 0, 0, 3);
    o.repetition_penalty = 1;
    o.history = history;
    o.n_history = LEN;
    CHECK(draw(x, N, o, 4) == draw(x, N, options(1.1f, 0, 0, 0, 3), 4)); /* 1 is none */
}

static void check_presets(void)
{
    qsae_sample_options t = qsae_preset_options(QSAE_PRESET_THINKING);
    qsae_sample_options n = qsae_preset_options(QSAE_PRESET_NON_THINKING);
    qsae_sample_options g = qsae_preset_options(QSAE_PRESET_GREEDY);
    CHECK(t.temperature == 0.6f && t.top_p == 0.95f && t.top_k == 20 && t.min_p == 0);
    CHECK(n.temperature == 0.7f && n.top_p == 0.8f && n.top_k == 20 && n.min_p == 0);
    CHECK(g.temperature == 0 && g.top_k == 0 && g.top_p == 0 && g.seed == 0 && !g.history);
    CHECK(qsae_preset_options(QSAE_PRESET_COUNT).temperature == 0);
    CHECK_STR(qsae_preset_name(QSAE_PRESET_GREEDY), "greedy");
    CHECK_STR(qsae_preset_name(QSAE_PRESET_THINKING), "thinking");
    CHECK_STR(qsae_preset_name(QSAE_PRESET_NON_THINKING), "non-thinking");
    CHECK(qsae_preset_name(QSAE_PRESET_COUNT) == NULL);
}

/* The same arguments give the same id; seed and position both matter. */
static void check_purity(void)
{
    float x[N], copy[N];
    long same_seed = 0, same_pos = 0, near = 0;
    random_logits(x, 5, 1);
    memcpy(copy, x, sizeof x);
    for (uint64_t i = 0; i < 2000; i++) {
        int32_t a = draw(x, N, options(1, 0, 0, 0, 42), i);
        memset(scratch, (int)i, sizeof scratch);
        int32_t b = -1;
        qsae_sample_options o = options(1, 0, 0, 0, 42);
        size_t need = qsae_sample_scratch_size(N);
        if (qsae_sample(x, N, &o, i, scratch + i % 9, need, &b, NULL)) b = -1;
        if (a != b) CHECK(a == b);
        same_seed += a == draw(x, N, options(1, 0, 0, 0, 43), i);
        same_pos += a == draw(x, N, options(1, 0, 0, 0, 42), i + 1);
        near += a == draw(x, N, options(1, 0, 0, 0, i), 42);
    }
    CHECK(memcmp(x, copy, sizeof x) == 0); /* the logits stay as they are */
    CHECK(same_seed < 300 && same_pos < 300 && near < 300); /* 1 in 25 or so by chance */
    int32_t a = draw(x, N, options(1, 0, 0, 0, UINT64_MAX), UINT64_MAX);
    CHECK(a == draw(x, N, options(1, 0, 0, 0, UINT64_MAX), UINT64_MAX));
}

static void check_sizes(void)
{
    CHECK(qsae_sample_scratch_size(N) <= sizeof scratch);
    CHECK(qsae_sample_scratch_size(151936) >= 151936 * 8);
    CHECK(qsae_sample_scratch_size(SIZE_MAX) == SIZE_MAX);
    CHECK(qsae_sample_scratch_size(SIZE_MAX / 8) == SIZE_MAX);
}

static void fails(const float *x, size_t n, qsae_sample_options o, void *s, size_t size, int status, const char *text)
{
    int32_t id = 77;
    qsae_error e;
    memset(&e, 0, sizeof e);
    CHECK((int)qsae_sample(x, n, &o, 0, s, size, &id, &e) == status);
    CHECK((int)e.status == status && id == 77);
    if (!CHECK(strstr(e.text, text) != NULL)) fprintf(stderr, "    %s\n", e.text);
    CHECK((int)qsae_sample(x, n, &o, 0, s, size, &id, NULL) == status);
}

static void check_errors(void)
{
    float x[N];
    const size_t size = sizeof scratch, need = qsae_sample_scratch_size(N);
    char text[64];
    random_logits(x, 6, 1);
    qsae_sample_options o = options(1, 0, 0, 0, 0);
    fails(x, N, options(-1, 0, 0, 0, 0), scratch, size, QSAE_E_ARG, "temperature is -1");
    fails(x, N, options(NAN, 0, 0, 0, 0), scratch, size, QSAE_E_ARG, "temperature is");
    fails(x, N, options(INFINITY, 0, 0, 0, 0), scratch, size, QSAE_E_ARG, "temperature is inf");
    fails(x, N, options(1, -1, 0, 0, 0), scratch, size, QSAE_E_ARG, "top_k is -1");
    fails(x, N, options(1, 0, -0.1f, 0, 0), scratch, size, QSAE_E_ARG, "top_p is -0.1");
    fails(x, N, options(1, 0, 1.5f, 0, 0), scratch, size, QSAE_E_ARG, "top_p is 1.5");
    fails(x, N, options(1, 0, NAN, 0, 0), scratch, size, QSAE_E_ARG, "top_p is");
    fails(x, N, options(1, 0, 0, 1.5f, 0), scratch, size, QSAE_E_ARG, "min_p is 1.5");
    fails(x, N, options(1, 0, 0, NAN, 0), scratch, size, QSAE_E_ARG, "min_p is");
    fails(x, N, options(1, 0, 0, -1, 0), scratch, size, QSAE_E_ARG, "min_p is -1");
    fails(x, N, options(0, -1, 0, 0, 0), NULL, 0, QSAE_E_ARG, "top_k is -1"); /* greedy, too */
    int32_t history[2] = {0, N};
    qsae_sample_options h = o;
    h.history = history;
    h.n_history = 2;
    fails(x, N, h, scratch, size, QSAE_E_ARG, "id 1 of the history is 40, there are 40 logits");
    history[1] = -1;
    fails(x, N, h, scratch, size, QSAE_E_ARG, "id 1 of the history is -1");
    history[1] = 1;
    h.n_prompt = 3;
    fails(x, N, h, scratch, size, QSAE_E_ARG, "2 ids, 3 of them the prompt");
    h.n_prompt = 0;
    h.history = NULL;
    fails(x, N, h, scratch, size, QSAE_E_ARG, "at NULL");
    h.history = history;
    h.repetition_penalty = -1;
    fails(x, N, h, scratch, size, QSAE_E_ARG, "repetition_penalty is -1");
    h.repetition_penalty = NAN;
    fails(x, N, h, scratch, size, QSAE_E_ARG, "repetition_penalty is");
    h.repetition_penalty = 0;
    h.presence_penalty = INFINITY;
    fails(x, N, h, scratch, size, QSAE_E_ARG, "presence_penalty is inf");
    h.presence_penalty = 1;
    h.temperature = 0;
    fails(x, N, h, NULL, 0, QSAE_E_ARG, "scratch has 0 bytes"); /* penalties need it, greedy too */
    h.presence_penalty = -3e38f;
    x[0] = 3e38f;
    fails(x, N, h, scratch, size, QSAE_E_NUM, "after the penalties");
    x[0] = 0;
    fails(NULL, N, o, scratch, size, QSAE_E_ARG, "NULL");
    fails(x, 0, o, scratch, size, QSAE_E_ARG, "0 logits");
    fails(x, (size_t)INT32_MAX + 1, o, scratch, size, QSAE_E_ARG, "2147483648 logits");
    snprintf(text, sizeof text, "scratch has %zu bytes, needs %zu", need - 1, need);
    fails(x, N, o, scratch, need - 1, QSAE_E_ARG, text);
    snprintf(text, sizeof text, "scratch has 0 bytes, needs %zu", need);
    fails(x, N, o, NULL, need, QSAE_E_ARG, text);
    CHECK(qsae_sample(x, N, &o, 0, scratch, size, NULL, NULL) == QSAE_E_ARG);
    for (int greedy = 0; greedy < 2; greedy++) {
        o.temperature = greedy ? 0.0f : 1.0f;
        for (int at = 0; at < N; at += N - 1) {
            float keep = x[at];
            x[at] = NAN;
            fails(x, N, o, scratch, size, QSAE_E_NUM, "NaN");
            x[at] = INFINITY;
            fails(x, N, o, scratch, size, QSAE_E_NUM, "+Inf");
            x[at] = -INFINITY;
            (void)draw(x, N, o, 0);
            x[at] = keep;
        }
    }
    for (int i = 0; i < N; i++) x[i] = -INFINITY;
    fails(x, N, o, scratch, size, QSAE_E_NUM, "all are -Inf");
}

int main(void)
{
    check_distributions();
    check_greedy();
    check_filters();
    check_penalties();
    check_presets();
    check_purity();
    check_sizes();
    check_errors();
    return test_done("test_sample");
}
