/* The probes of `qsae bench` (see bench_probe.h). Every one is a loop that the compiler
 * can neither shorten nor hoist, with enough independent chains to hide latencies. */

#define _POSIX_C_SOURCE 200809L

#include "bench_probe.h"
#include "bench_team.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
#define PROBE_X86 1
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__)
#define PROBE_NEON 1
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#endif

/* What a team does in one run. Returns the units done by one thread. */
typedef double (*probe_loop)(probe *p, size_t t, size_t n);

struct probe {
    int threads;
    uint8_t *memory; /* [bytes] */
    size_t bytes;
    int avx2, avx512, vnni512, dotprod;
    char name[64];
    probe_loop loop;
    double done[1024]; /* by thread; volatile would not be enough of a sink */
    volatile uint64_t sink;
};

enum {
    READ_ROW = 4096,         /* bytes of a row */
    READ_STEP = 8 * READ_ROW /* eight rows are read side by side */
};

/* ------------------------------------------------------------------ what the CPU has */

#if defined(PROBE_X86)

/* XCR0: which registers the system saves; 0 if it cannot be read. */
static unsigned read_xcr0(void)
{
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & 1u << 27)) /* OSXSAVE */
        return 0;
    __asm__ volatile(".byte 0x0f, 0x01, 0xd0" : "=a"(a), "=d"(d) : "c"(0));
    return a;
}

static void read_name(char *name) /* [49] */
{
    unsigned r[12], top = (unsigned)__get_cpuid_max(0x80000000u, NULL);
    if (top < 0x80000004u)
        return;
    for (unsigned i = 0; i < 3; i++)
        __cpuid(0x80000002u + i, r[4 * i], r[4 * i + 1], r[4 * i + 2], r[4 * i + 3]);
    memcpy(name, r, 48);
    name[48] = '\0';
    memmove(name, name + strspn(name, " "), 48);
    for (size_t n = strlen(name); n > 0 && name[n - 1] == ' '; n--)
        name[n - 1] = '\0';
}

static void detect(probe *p)
{
    unsigned a = 0, b = 0, c = 0, d = 0, xcr0 = read_xcr0();
    read_name(p->name);
    if ((xcr0 & 6) != 6 || !__get_cpuid(1, &a, &b, &c, &d))
        return;
    unsigned wanted = 1u << 28 | 1u << 12; /* AVX, FMA */
    if ((c & wanted) != wanted || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return;
    p->avx2 = (b >> 5) & 1;
    p->avx512 = p->avx2 && (b & 1u << 16) && (xcr0 & 0xE6) == 0xE6;
    p->vnni512 = p->avx512 && (c & 1u << 11);
}

#else

static void detect(probe *p)
{
#if defined(PROBE_NEON) && defined(__linux__)
    p->dotprod = (getauxval(AT_HWCAP) & 1ul << 20) != 0; /* ASIMDDP */
#else
    (void)p;
#endif
}

#endif

/* ----------------------------------------------------------------------- reading */

/* Thread t's part of the memory, whole steps. */
static const uint8_t *read_part(const probe *p, size_t t, size_t n, size_t *steps)
{
    size_t all = p->bytes / READ_STEP, lo = all / n * t + (t < all % n ? t : all % n);
    *steps = all / n + (t < all % n);
    return p->memory + lo * READ_STEP;
}

#if defined(__GNUC__)
#define PREFETCH(at) __builtin_prefetch(at)
#else
#define PREFETCH(at) ((void)0)
#endif

static double read_plain(probe *p, size_t t, size_t n)
{
    size_t steps;
    const uint8_t *at = read_part(p, t, n, &steps);
    uint64_t s[8] = {0};
    for (size_t i = 0; i < steps; i++, at += READ_STEP)
        for (size_t line = 0; line < READ_ROW; line += 64)
            for (size_t row = 0; row < 8; row++) {
                const uint64_t *w =
                    (const uint64_t *)(const void *)(at + row * READ_ROW + line);
                if (i + 1 < steps)
                    PREFETCH(at + READ_STEP + row * READ_ROW + line);
                s[row] ^= w[0] ^ w[1] ^ w[2] ^ w[3] ^ w[4] ^ w[5] ^ w[6] ^ w[7];
            }
    p->sink = s[0] ^ s[1] ^ s[2] ^ s[3] ^ s[4] ^ s[5] ^ s[6] ^ s[7];
    return (double)steps * READ_STEP;
}

#if defined(PROBE_X86)

/* One line of each of eight rows, and the same of the next step ahead. */
#define READ_8(row) \
    row(0);         \
    row(1);         \
    row(2);         \
    row(3);         \
    row(4);         \
    row(5);         \
    row(6);         \
    row(7)

__attribute__((target("avx512f"))) static double read_avx512(probe *p, size_t t,
                                                             size_t n)
{
    size_t steps;
    const uint8_t *at = read_part(p, t, n, &steps);
    __m512i s0, s1, s2, s3, s4, s5, s6, s7;
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = _mm512_setzero_si512();
    for (size_t i = 0; i < steps; i++, at += READ_STEP)
        for (size_t line = 0; line < READ_ROW; line += 64) {
#define ROW(r)                                                                     \
    _mm_prefetch((const char *)at + READ_STEP + r * READ_ROW + line, _MM_HINT_T0); \
    s##r = _mm512_xor_si512(s##r, _mm512_load_si512(at + r * READ_ROW + line))
            READ_8(ROW);
#undef ROW
        }
    s0 = _mm512_xor_si512(_mm512_xor_si512(s0, s1), _mm512_xor_si512(s2, s3));
    s4 = _mm512_xor_si512(_mm512_xor_si512(s4, s5), _mm512_xor_si512(s6, s7));
    uint64_t out[8];
    _mm512_storeu_si512(out, _mm512_xor_si512(s0, s4));
    p->sink = out[0];
    return (double)steps * READ_STEP;
}

__attribute__((target("avx2"))) static double read_avx2(probe *p, size_t t, size_t n)
{
    size_t steps;
    const uint8_t *at = read_part(p, t, n, &steps);
    __m256i s0, s1, s2, s3, s4, s5, s6, s7;
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = _mm256_setzero_si256();
    for (size_t i = 0; i < steps; i++, at += READ_STEP)
        for (size_t line = 0; line < READ_ROW; line += 64) {
#define ROW(r)                                                                \
    do {                                                                      \
        const __m256i *w = (const void *)(at + r * READ_ROW + line);          \
        _mm_prefetch((const char *)(const void *)w + READ_STEP, _MM_HINT_T0); \
        s##r = _mm256_xor_si256(s##r, _mm256_load_si256(w));                  \
        s##r = _mm256_xor_si256(s##r, _mm256_load_si256(w + 1));              \
    } while (0)
            READ_8(ROW);
#undef ROW
        }
    s0 = _mm256_xor_si256(_mm256_xor_si256(s0, s1), _mm256_xor_si256(s2, s3));
    s4 = _mm256_xor_si256(_mm256_xor_si256(s4, s5), _mm256_xor_si256(s6, s7));
    uint64_t out[4];
    _mm256_storeu_si256((void *)out, _mm256_xor_si256(s0, s4));
    p->sink = out[0];
    return (double)steps * READ_STEP;
}

#endif

/* ----------------------------------------------------------------------- computing */

enum { ROUNDS = 1 << 20 }; /* of 12 instructions: some milliseconds */

#define EACH_12(x) x(0) x(1) x(2) x(3) x(4) x(5) x(6) x(7) x(8) x(9) x(10) x(11)

static double fma_plain(probe *p, size_t t, size_t n)
{
    volatile float source[2] = {0.999f, 0.5f};
    float a = source[0], b = source[1];
    (void)t;
    (void)n;
#define START(i) float s##i = (float)i;
#define STEP(i)  s##i = s##i * a + b;
#define SUM(i)   +s##i
    EACH_12(START)
    for (int i = 0; i < ROUNDS; i++) {
        EACH_12(STEP)
    }
    p->sink = (uint64_t)(EACH_12(SUM));
#undef START
#undef STEP
#undef SUM
    return 12.0 * 2 * ROUNDS;
}

#if defined(PROBE_X86)

__attribute__((target("avx512f"))) static double fma_avx512(probe *p, size_t t,
                                                            size_t n)
{
    volatile float source[2] = {0.999f, 0.5f};
    __m512 a = _mm512_set1_ps(source[0]), b = _mm512_set1_ps(source[1]);
    __m512 sum = _mm512_setzero_ps();
    float out[16];
    (void)t;
    (void)n;
#define START(i) __m512 s##i = _mm512_set1_ps((float)i);
#define STEP(i)  s##i = _mm512_fmadd_ps(s##i, a, b);
#define SUM(i)   sum = _mm512_add_ps(sum, s##i);
    EACH_12(START)
    for (int i = 0; i < ROUNDS; i++) {
        EACH_12(STEP)
    }
    EACH_12(SUM)
#undef START
#undef STEP
#undef SUM
    _mm512_storeu_ps(out, sum);
    p->sink = (uint64_t)out[0];
    return 12.0 * 16 * 2 * ROUNDS;
}

__attribute__((target("avx2,fma"))) static double fma_avx2(probe *p, size_t t, size_t n)
{
    volatile float source[2] = {0.999f, 0.5f};
    __m256 a = _mm256_set1_ps(source[0]), b = _mm256_set1_ps(source[1]);
    __m256 sum = _mm256_setzero_ps();
    float out[8];
    (void)t;
    (void)n;
#define START(i) __m256 s##i = _mm256_set1_ps((float)i);
#define STEP(i)  s##i = _mm256_fmadd_ps(s##i, a, b);
#define SUM(i)   sum = _mm256_add_ps(sum, s##i);
    EACH_12(START)
    for (int i = 0; i < ROUNDS; i++) {
        EACH_12(STEP)
    }
    EACH_12(SUM)
#undef START
#undef STEP
#undef SUM
    _mm256_storeu_ps(out, sum);
    p->sink = (uint64_t)out[0];
    return 12.0 * 8 * 2 * ROUNDS;
}

/* The products do not depend on the sums: the factor is hidden from the compiler in
 * every round, or it would multiply once. */
__attribute__((target("avx2"))) static double madd_avx2(probe *p, size_t t, size_t n)
{
    volatile int source = 3;
    __m256i x = _mm256_set1_epi16((short)source), sum = _mm256_setzero_si256();
    int32_t out[8];
    (void)t;
    (void)n;
#define EACH_6(e) e(0) e(1) e(2) e(3) e(4) e(5)
#define START(i)                                           \
    __m256i w##i = _mm256_set1_epi16((short)(source + i)), \
            s##i = _mm256_setzero_si256();
#define STEP(i) s##i = _mm256_add_epi32(s##i, _mm256_madd_epi16(x, w##i));
#define SUM(i)  sum = _mm256_add_epi32(sum, s##i);
    EACH_6(START)
    for (int i = 0; i < 2 * ROUNDS; i++) {
        __asm__ volatile("" : "+x"(x));
        EACH_6(STEP)
    }
    EACH_6(SUM)
#undef EACH_6
#undef START
#undef STEP
#undef SUM
    _mm256_storeu_si256((void *)out, sum);
    p->sink = (uint64_t)out[0];
    return 12.0 * 16 * 2 * ROUNDS;
}

__attribute__((target("avx512f,avx512vnni"))) static double
vnni_avx512(probe *p, size_t t, size_t n)
{
    volatile int source = 0x01020304;
    __m512i a = _mm512_set1_epi32(source), b = _mm512_set1_epi32(source + 1);
    __m512i sum = _mm512_setzero_si512();
    int32_t out[16];
    (void)t;
    (void)n;
#define START(i) __m512i s##i = _mm512_set1_epi32(i);
#define STEP(i)  s##i = _mm512_dpbusd_epi32(s##i, a, b);
#define SUM(i)   sum = _mm512_add_epi32(sum, s##i);
    EACH_12(START)
    for (int i = 0; i < ROUNDS; i++) {
        EACH_12(STEP)
    }
    EACH_12(SUM)
#undef START
#undef STEP
#undef SUM
    _mm512_storeu_si512(out, sum);
    p->sink = (uint64_t)out[0];
    return 12.0 * 64 * 2 * ROUNDS;
}

#elif defined(PROBE_NEON)

static double fma_neon(probe *p, size_t t, size_t n)
{
    volatile float source[2] = {0.999f, 0.5f};
    float32x4_t a = vdupq_n_f32(source[0]), b = vdupq_n_f32(source[1]);
    float32x4_t sum = vdupq_n_f32(0);
    (void)t;
    (void)n;
#define START(i) float32x4_t s##i = vdupq_n_f32((float)i);
#define STEP(i)  s##i = vfmaq_f32(s##i, a, b);
#define SUM(i)   sum = vaddq_f32(sum, s##i);
    EACH_12(START)
    for (int i = 0; i < ROUNDS; i++) {
        EACH_12(STEP)
    }
    EACH_12(SUM)
#undef START
#undef STEP
#undef SUM
    p->sink = (uint64_t)vgetq_lane_f32(sum, 0);
    return 12.0 * 4 * 2 * ROUNDS;
}

__attribute__((target("arch=armv8.2-a+dotprod"))) static double
dot_neon(probe *p, size_t t, size_t n)
{
    volatile int8_t source = 3;
    int8x16_t a = vdupq_n_s8(source), b = vdupq_n_s8((int8_t)(source + 1));
    int32x4_t sum = vdupq_n_s32(0);
    (void)t;
    (void)n;
#define START(i) int32x4_t s##i = vdupq_n_s32(i);
#define STEP(i)  s##i = vdotq_s32(s##i, a, b);
#define SUM(i)   sum = vaddq_s32(sum, s##i);
    EACH_12(START)
    for (int i = 0; i < ROUNDS; i++) {
        EACH_12(STEP)
    }
    EACH_12(SUM)
#undef START
#undef STEP
#undef SUM
    p->sink = (uint64_t)vgetq_lane_s32(sum, 0);
    return 12.0 * 16 * 2 * ROUNDS;
}

#endif

/* ------------------------------------------------------------------------- running */

/* The loop that does `kind` with the instructions of `isa`, NULL if there is none. */
static probe_loop choose(const probe *p, probe_kind kind, qsae_isa isa)
{
    const char *name = isa == QSAE_ISA_AUTO ? NULL : qsae_isa_name(isa);
    int any = !name;
#if defined(PROBE_X86)
    int wide = p->avx512 && (any || !strncmp(name, "avx512", 6));
    int dots = any || strstr(name, "vnni");
    int half = p->avx2 && (any || wide || !strncmp(name, "avx", 3));
    switch (kind) {
    case PROBE_READ: return wide ? read_avx512 : half ? read_avx2 : read_plain;
    case PROBE_FMA: return wide ? fma_avx512 : half ? fma_avx2 : fma_plain;
    case PROBE_MADD: return half ? madd_avx2 : NULL;
    case PROBE_VNNI: return wide && dots && p->vnni512 ? vnni_avx512 : NULL;
    default: return NULL;
    }
#else
#if defined(PROBE_NEON)
    int neon = any || !strncmp(name, "neon", 4);
    int dots = any || (neon && strlen(name) > 4); /* neondot and neoni8mm have both */
    if (kind == PROBE_FMA && neon)
        return fma_neon;
    if (kind == PROBE_VNNI && dots && p->dotprod)
        return dot_neon;
#endif
    (void)p;
    (void)any;
    return kind == PROBE_READ ? read_plain : kind == PROBE_FMA ? fma_plain : NULL;
#endif
}

static void one_thread(void *arg, size_t t, size_t n)
{
    probe *p = arg;
    p->done[t] = p->loop(p, t, n);
}

double probe_run(probe *p, probe_kind kind, qsae_isa isa, int times)
{
    double best = 0;
    p->loop = choose(p, kind, isa);
    for (int i = 0; p->loop && i < times; i++) {
        double units = 0, begin;
        memset(p->done, 0, sizeof p->done);
        begin = team_clock();
        team_run(p->threads, one_thread, p);
        double seconds = team_clock() - begin;
        for (int t = 0; t < p->threads; t++)
            units += p->done[t];
        if (seconds > 0 && units / seconds > best)
            best = units / seconds;
    }
    return best;
}

static void touch(void *arg, size_t t, size_t n)
{
    probe *p = arg;
    size_t steps;
    const uint8_t *part = read_part(p, t, n, &steps);
    memset(p->memory + (part - p->memory), 1 + (int)t, steps * READ_STEP);
}

probe *probe_open(int threads, size_t bytes)
{
    void *memory = NULL;
    probe *p = calloc(1, sizeof *p);
    if (!p || posix_memalign(&memory, 4096, bytes) != 0) {
        free(p);
        return NULL;
    }
    p->threads = team_size(threads);
    p->memory = memory;
    p->bytes = bytes;
    strcpy(p->name, "unknown");
    detect(p);
    team_run(p->threads, touch, p);
    return p;
}

void probe_close(probe *p)
{
    if (!p)
        return;
    free(p->memory);
    free(p);
}

const char *probe_cpu_name(const probe *p)
{
    return p->name;
}
