/* Every kernel of every instruction set of this build and machine against the portable reference, bit for
 * bit (NaN may differ in its payload), and exp against double precision. */
#include "../qsae.c"

#include "test.h"

static int cases_shown;

static void check(int ok, const char *isa, const char *what, size_t a, size_t b, size_t c, size_t d)
{
    if (ok) {
        test_passed++;
        return;
    }
    test_failed++;
    if (cases_shown++ < 30) printf("FAIL %s %s %zu %zu %zu %zu\n", isa, what, a, b, c, d);
}

/* xorshift64*: the same numbers everywhere */
static uint64_t rng_state = 88172645463325252u;
static uint32_t rnd(void)
{
    rng_state ^= rng_state >> 12;
    rng_state ^= rng_state << 25;
    rng_state ^= rng_state >> 27;
    return (uint32_t)((rng_state * 2685821657736338717u) >> 32);
}

static float bits_f32(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static uint32_t f32_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

/* kind 0: -1..1; 1: wild exponents, denormals, zeros of both signs; 2: with infinities and NaN */
static float value(int kind)
{
    uint32_t u = rnd();
    float plain = ((float)(int32_t)u) * (1.0f / 2147483648.0f);
    if (kind == 0) return plain;
    switch (rnd() % 16) {
    case 0: return 0.0f;
    case 1: return -0.0f;
    case 2: return bits_f32(u & 0x807FFFFFu); /* denormal */
    case 3: return bits_f32(u & 0x80000001u); /* the smallest denormal */
    case 4: return plain * 1e-25f;
    case 5: return plain * 1e20f;
    default: break;
    }
    if (kind == 2 && u % 300 == 0) {
        static const uint32_t special[4] = {0x7F800000u, 0xFF800000u, 0x7FC00000u, 0x7F7FFFFFu};
        return bits_f32(special[rnd() % 4]);
    }
    return plain;
}

static uint16_t value_bf16(int kind)
{
    uint16_t h = (uint16_t)(f32_bits(value(kind)) >> 16);
    return h;
}

static void fill(float *p, size_t n, int kind)
{
    for (size_t i = 0; i < n; i++) p[i] = value(kind);
}

static void fill_bf16(uint16_t *p, size_t n, int kind)
{
    for (size_t i = 0; i < n; i++) p[i] = value_bf16(kind);
}

static int same(const float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t u = f32_bits(a[i]), v = f32_bits(b[i]);
        int nan_u = (u & 0x7FFFFFFFu) > 0x7F800000u, nan_v = (v & 0x7FFFFFFFu) > 0x7F800000u;
        if (nan_u != nan_v || (!nan_u && u != v)) return 0;
    }
    return 1;
}

static float w_at(const void *w, int bf16, size_t i)
{
    if (!bf16) return ((const float *)w)[i];
    return bits_f32((uint32_t)((const uint16_t *)w)[i] << 16);
}

/* The references, written from the text of the contract: one output at a time. */
static void ref_mm(int bf16, const char *w, size_t ws, size_t nb, size_t kp, const float *x, size_t xs,
                   size_t nt, float *y, size_t ys)
{
    for (size_t b = 0; b < nb; b++)
        for (size_t t = 0; t < nt; t++)
            for (size_t r = 0; r < 16; r++) {
                float sum = 0.0f, c = 0.0f;
                for (size_t k = 0; k < kp; k++) {
                    size_t i = bf16 ? k / 2 * 32 + 2 * r + k % 2 : 16 * k + r;
                    c = fmaf(w_at(w + b * ws, bf16, i), x[t * xs + k], c);
                    if (k % 256 == 255 || k + 1 == kp) {
                        sum = sum + c;
                        c = 0.0f;
                    }
                }
                y[t * ys + 16 * b + r] = sum;
            }
}

static void ref_dots(int bf16, const char *w, size_t row_bytes, size_t nr, size_t n, const float *x,
                     size_t xs, size_t nt, float *z, size_t zs)
{
    for (size_t t = 0; t < nt; t++)
        for (size_t r = 0; r < nr; r++) {
            float c[16] = {0};
            for (size_t k = 0; k < n; k++)
                c[k % 16] = fmaf(w_at(w + r * row_bytes, bf16, k), x[t * xs + k], c[k % 16]);
            for (size_t s = 8; s > 0; s /= 2)
                for (size_t j = 0; j < s; j++) c[j] = c[j] + c[j + s];
            z[t * zs + r] = c[0];
        }
}

static void *get(size_t bytes)
{
    void *p = malloc(bytes + 64);
    if (!p) abort();
    return p; /* never freed: a test */
}

enum { MAX_K = 2048, MAX_B = 20, MAX_T = 14, Y_SIZE = 16 * (16 * MAX_B + 64) + 64 };

/* Guard values around and between the rows of y must survive. */
static void test_mm(const qs_kernels *q, const char *isa, int bf16, size_t kp, size_t nb, size_t nt,
                    size_t shift)
{
    static char *w;
    static float *x, *y, *want;
    if (!w) {
        w = get(64 * (MAX_K + 8) * MAX_B);
        x = get(4 * (MAX_K + 40) * (MAX_T + 1));
        y = get(4 * Y_SIZE);
        want = get(4 * Y_SIZE);
    }
    int kind = (int)(rnd() % 3);
    size_t line = bf16 ? 32 : 64, ws = line * kp + 64 * (shift % 3);
    size_t xs = kp + (shift * 7) % 13, ys = 16 * nb + (shift * 5) % 11, off = shift % 4;
    if (bf16)
        fill_bf16((uint16_t *)(void *)w, ws * nb / 2, kind);
    else
        fill((float *)(void *)w, ws * nb / 4, kind);
    fill(x, off + xs * nt + 1, kind);
    for (size_t i = 0; i < Y_SIZE; i++) y[i] = want[i] = bits_f32(0x4B000000u + (uint32_t)i);
    ref_mm(bf16, w, ws, nb, kp, x + off, xs, nt, want + 8 + off, ys);
    q->mm[1 + bf16](w, ws, nb, kp, x + off, xs, nt, y + 8 + off, ys);
    check(same(y, want, Y_SIZE), isa, bf16 ? "mm_bf16 kp nb nt shift" : "mm_f32 kp nb nt shift", kp, nb,
          nt, shift);
}

static void test_dots(const qs_kernels *q, const char *isa, int bf16, size_t n, size_t nr, size_t nt,
                      size_t shift)
{
    static char *w;
    static float *x, *z, *want;
    enum { Z_SIZE = 2048 };
    if (!w) {
        w = get(4 * (MAX_K + 40) * 80);
        x = get(4 * (MAX_K + 40) * (MAX_T + 1));
        z = get(4 * Z_SIZE);
        want = get(4 * Z_SIZE);
    }
    int kind = (int)(rnd() % 3);
    size_t row = (bf16 ? 2 : 4) * (n + (shift * 3) % 7), xs = n + (shift * 7) % 13;
    size_t zs = nr + shift % 5, off = shift % 4;
    if (bf16)
        fill_bf16((uint16_t *)(void *)w, row * nr / 2, kind);
    else
        fill((float *)(void *)w, row * nr / 4, kind);
    fill(x, off + xs * nt + 1, kind);
    for (size_t i = 0; i < Z_SIZE; i++) z[i] = want[i] = bits_f32(0x4B000000u + (uint32_t)i);
    ref_dots(bf16, w, row, nr, n, x + off, xs, nt, want + 8 + off, zs);
    q->dots[1 + bf16](w, row, nr, n, x + off, xs, nt, z + 8 + off, zs);
    check(same(z, want, Z_SIZE), isa, bf16 ? "dots_bf16 n nr nt shift" : "dots_f32 n nr nt shift", n, nr,
          nt, shift);
}

static void test_axpy(const qs_kernels *q, const char *isa, int bf16, size_t n, size_t off)
{
    static float w[600], y[600], want[600];
    for (int kind = 0; kind < 3; kind++) {
        float a = value(kind);
        if (bf16)
            fill_bf16((uint16_t *)(void *)w, n + off, kind);
        else
            fill(w, n + off, kind);
        fill(y, 600, kind);
        memcpy(want, y, sizeof y);
        const void *wp = bf16 ? (const void *)((uint16_t *)(void *)w + off) : (const void *)(w + off);
        for (size_t j = 0; j < n; j++) want[off + j] = fmaf(a, w_at(wp, bf16, j), want[off + j]);
        q->axpy[1 + bf16](a, wp, n, y + off);
        check(same(y, want, 600), isa, bf16 ? "axpy_bf16 n off kind" : "axpy_f32 n off kind", n, off,
              (size_t)kind, 0);
    }
}

/* values around every limit of exp, then random ones */
static void fill_exp(float *p, size_t n)
{
    static const float edge[] = {0.0f, -0.0f, 88.0f, -87.0f, 88.00001f, -87.00001f, 87.99999f, -86.99999f,
                                 1e-40f, -1e-40f, 3e38f, -3e38f, 0.34657359f, -0.34657359f, 1.0f, -1.0f};
    for (size_t i = 0; i < n; i++) {
        uint32_t u = rnd();
        switch (u % 8) {
        case 0: p[i] = edge[(u >> 8) % (sizeof edge / sizeof edge[0])]; break;
        case 1: p[i] = bits_f32(rnd()); break; /* anything */
        case 2: p[i] = u & 256 ? INFINITY : u & 512 ? -INFINITY : NAN; break;
        default: p[i] = 100.0f * value(0); break;
        }
    }
}

static void test_elementwise(const qs_kernels *q, const char *isa, size_t n, size_t off)
{
    static float a[4200], b[4200], want[4200];
    fill_exp(a, 4200);
    memcpy(want, a, sizeof a);
    fill_exp(b, 4200);
    for (size_t j = off; j < off + n; j++) want[j] = (want[j] / (1.0f + qs_exp(-want[j]))) * b[j];
    q->silu_mul(a + off, b + off, n);
    check(same(a, want, 4200), isa, "silu_mul n off", n, off, 0, 0);
}

/* The softmax of a tile: n <= 256 scores */
static void test_soften(const qs_kernels *q, const char *isa, size_t n)
{
    float a[QS_ATT_TILE], want[QS_ATT_TILE], c[16] = {0}, scale = n % 2 ? 0.125f : 1.0f, got_max;
    float old = n % 3 == 0 ? -INFINITY : n % 3 == 1 ? 30.0f * value(0) : 100.0f, max = old;
    if (n % 4 == 3) fill_exp(a, QS_ATT_TILE);
    else
        for (size_t j = 0; j < QS_ATT_TILE; j++) a[j] = 40.0f * value(0);
    memcpy(want, a, sizeof a);
    for (size_t j = 0; j < n; j++) {
        want[j] = want[j] * scale;
        if (want[j] > max) max = want[j];
    }
    for (size_t j = 0; j < n; j++) {
        want[j] = qs_exp(want[j] - max);
        c[j % 16] = c[j % 16] + want[j];
    }
    for (size_t s = 8; s > 0; s /= 2)
        for (size_t j = 0; j < s; j++) c[j] = c[j] + c[j + s];
    float sum = q->soften(a, n, scale, &got_max, old);
    check(same(a, want, n) && same(&sum, c, 1) && got_max == max, isa, "soften n", n, 0, 0, 0);
    check(same(a + qs_up16(n), want + qs_up16(n), QS_ATT_TILE - qs_up16(n)), isa, "soften writes beyond", n, 0, 0, 0);
}

/* every stride-th float through exp, in runs of 4096: those below 0 by soften, all by silu_mul */
static void test_exp_sweep(const qs_kernels *q, const char *isa, uint32_t stride)
{
    static float a[4096], b[4096], want[4096], one[4096];
    int ok = 1;
    for (size_t i = 0; i < 4096; i++) one[i] = 1.0f;
    for (uint64_t u = 0; u < (uint64_t)1 << 32; u += (uint64_t)stride * 4096) {
        float max;
        for (uint32_t i = 0; i < 4096; i++) {
            a[i] = b[i] = bits_f32((uint32_t)u + i * stride);
            want[i] = a[i] / (1.0f + qs_exp(-a[i]));
        }
        q->silu_mul(b, one, 4096);
        ok &= same(b, want, 4096);
        if (!(a[0] < 0.0f) || !(a[4095] < 0.0f)) continue;
        for (uint32_t i = 0; i < 4096; i++) want[i] = qs_exp(a[i]);
        q->soften(a, 4096, 1.0f, &max, 0.0f);
        ok &= same(a, want, 4096);
    }
    check(ok, isa, "exp sweep", stride, 0, 0, 0);
}

/* ---- 16-bit floats ---- */

/* The value of a f16 by its definition. */
static double f16_value(unsigned h)
{
    int e = (int)(h >> 10 & 31), m = (int)(h & 1023);
    double v = e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);
    return h >> 15 ? -v : v;
}

static void test_widen(const qs_kernels *q, const char *isa)
{
    static uint16_t h[65536];
    static float x[65536];
    int ok = 1;
    for (uint32_t i = 0; i < 65536; i++) h[i] = (uint16_t)i;
    q->widen[0](h, 65536, x);
    for (uint32_t i = 0; i < 65536; i++)
        if ((i & 0x7C00) != 0x7C00) ok &= (double)x[i] == f16_value(i) && !!signbit(x[i]) == (int)(i >> 15);
        else if (i & 1023) ok &= x[i] != x[i];
        else ok &= x[i] == (i >> 15 ? -INFINITY : INFINITY);
    check(ok, isa, "widen f16", 0, 0, 0, 0);
    ok = 1;
    q->widen[1](h, 65536, x);
    for (uint32_t i = 0; i < 65536; i++) ok &= f32_bits(x[i]) == i << 16 || (x[i] != x[i] && (i & 0x7FFF) > 0x7F80);
    check(ok, isa, "widen bf16", 0, 0, 0, 0);
    memset(x, 0x5A, sizeof x);
    q->widen[0](h, 48, x);
    q->widen[1](h, 32, x + 100);
    check(f32_bits(x[48]) == 0x5A5A5A5Au && f32_bits(x[99]) == 0x5A5A5A5Au && f32_bits(x[132]) == 0x5A5A5A5Au, isa,
          "widen writes beyond", 0, 0, 0, 0);
}

/* Every pair of neighbours: both stay, what lies between goes to the nearer, the middle to the even one. */
static void test_narrow(void)
{
    int ok16 = 1, okb = 1;
    for (uint32_t i = 0; i < 0x7C00; i++) {
        double next = i == 0x7BFF ? 65536.0 : f16_value(i + 1);
        float v = (float)f16_value(i), middle = (float)((f16_value(i) + next) / 2); /* exact */
        unsigned even = i & 1 ? i + 1 : i;
        ok16 &= qs_f32_f16(v) == i && qs_f32_f16(middle) == even && qs_f32_f16(-middle) == (even | 0x8000) &&
                qs_f32_f16(bits_f32(f32_bits(middle) - 1)) == i && qs_f32_f16(bits_f32(f32_bits(middle) + 1)) == i + 1;
    }
    ok16 &= qs_f32_f16(INFINITY) == 0x7C00 && qs_f32_f16(-3e38f) == 0xFC00 && qs_f32_f16(1e-40f) == 0;
    ok16 &= (qs_f32_f16(NAN) & 0x7FFF) > 0x7C00 && qs_f32_f16(-0.0f) == 0x8000;
    for (uint32_t i = 0; i < 0x7F80; i++) {
        uint32_t u = i << 16, even = i + (i & 1);
        okb &= qs_f32_bf16(bits_f32(u)) == i && qs_f32_bf16(bits_f32(u + 0x8000)) == even &&
               qs_f32_bf16(bits_f32(u + 0x7FFF)) == i && qs_f32_bf16(bits_f32((u | 0x80000000u) + 0x8001)) == (0x8000u | (i + 1));
    }
    okb &= qs_f32_bf16(INFINITY) == 0x7F80 && (qs_f32_bf16(bits_f32(0x7F800001u)) & 0x7FFF) > 0x7F80;
    check(ok16, "scalar", "f32 to f16", 0, 0, 0, 0);
    check(okb, "scalar", "f32 to bf16", 0, 0, 0, 0);
}

/* ---- integer weights ---- */

enum { MAX_G = 3 };

/* The X of one value: the contract's words in double, which is exact up to the one rounding. */
static int32_t ref_integer(float x, float max)
{
    float scaled = x * (32639.0f / max);
    double r = nearbyint((double)scaled);
    return (int32_t)r;
}

static void ref_pack(const float *x, size_t n, int32_t *X, float *scale)
{
    float max = 0.0f;
    int finite = 1;
    for (size_t j = 0; j < n; j++) {
        finite &= isfinite(x[j]) != 0;
        max = fmaxf(max, fabsf(x[j]));
    }
    int none = !finite || max == 0.0f || isinf(32639.0f / max);
    *scale = !finite ? NAN : none ? 0.0f : max / 32639.0f;
    for (size_t j = 0; j < QS_GROUP; j++) X[j] = none || j >= n ? 0 : ref_integer(x[j], max);
}

static void test_pack(const qs_kernels *q, const char *isa, size_t n, int kind)
{
    float x[MAX_G * QS_GROUP] = {0};
    qs_group out[MAX_G], portable[MAX_G];
    int32_t X[QS_GROUP];
    float scale;
    size_t groups = (n + QS_GROUP - 1) / QS_GROUP;
    int ok = 1;
    fill(x, n, kind);
    memset(out, 0x5A, sizeof out);
    memset(portable, 0xA5, sizeof portable);
    q->pack(x, n, out, 1);
    qs_pack_scalar(x, n, portable, 1);
    for (size_t g = 0; g < groups; g++) {
        ref_pack(x + g * QS_GROUP, n - g * QS_GROUP < QS_GROUP ? n - g * QS_GROUP : QS_GROUP, X, &scale);
        int32_t sum = 0;
        for (size_t j = 0; j < QS_GROUP; j++) {
            sum += X[j];
            ok &= 256 * out[g].p1[j] + out[g].p2[j] == X[j];
            ok &= out[g].pairs[j / 4 * 4 + (size_t)"\0\2\1\3"[j % 4]] == X[j];
            if (j % 32 == 31) {
                int32_t part = 0;
                for (size_t i = j - 31; i <= j; i++) part += X[i];
                ok &= out[g].sums[j / 32] == part;
            }
        }
        ok &= out[g].sum == sum && same(&out[g].scale, &scale, 1);
        out[g].scale = portable[g].scale; /* NaN's payload */
    }
    ok &= memcmp(out, portable, groups * sizeof *out) == 0;
    check(ok, isa, "pack", n, (size_t)kind, 0, 0);
}

/* The weight of row r, column k of a superblock, by the words of tools/FORMAT.md. */
static int weight_q8(const uint8_t *p, size_t r, size_t k) { return (int8_t)p[k / 4 * 64 + 4 * r + k % 4]; }
static int weight_q4(const uint8_t *p, size_t r, size_t k)
{
    uint8_t byte = p[k / 8 * 64 + 4 * r + k % 4];
    int q = (k % 8 < 4 ? byte & 15 : byte >> 4) - 8;
    uint8_t m = p[2048 + 4 * r + k / 32 / 2];
    q *= k / 32 % 2 ? m >> 4 : m & 15;
    return p[2112 + 4 * r] >> k / 32 & 1 ? -q : q;
}
static float scale_of(const uint8_t *p, size_t r, int q4)
{
    uint8_t a[4];
    float f;
    memcpy(a, p + (q4 ? 2112 : 4096) + 4 * r, 4);
    if (q4) a[0] = 0;
    memcpy(&f, a, 4);
    return f;
}

/* Any bytes are weights; extreme: all of the largest size, to see that nothing saturates. */
static void fill_superblock(uint8_t *p, int q4, int extreme)
{
    size_t n = q4 ? 2112 : 4096;
    for (size_t i = 0; i < n; i++) p[i] = extreme ? (q4 ? (i < 2048 ? 0 : 0xFF) : (uint8_t)(extreme == 1 ? 0x80 : 0x7F)) : (uint8_t)rnd();
    fill((float *)(void *)(p + n), 16, 0);
    for (size_t r = 0; extreme && r < 16; r++) p[n + 4 * r] = extreme == 1 ? 0 : 0xFF; /* Q4: the signs */
}

static void test_mmq(const qs_kernels *q, const char *isa, int q4, size_t ng, size_t nb, size_t nt, int extreme)
{
    size_t super = q4 ? QS_Q4_BYTES : QS_Q8_BYTES, ws = ng * super + 64, ys = 16 * nb + 5, n = ng * QS_GROUP;
    uint8_t *w = malloc(nb * ws + 64);
    float *x = calloc(nt * n + 1, sizeof *x), *y = malloc((nt * ys + 1) * sizeof *y), *z = malloc((nt * ys + 1) * sizeof *z);
    qs_group *packed = calloc(nt * ng + 1, sizeof *packed);
    fill(x, nt * n, extreme ? 0 : 1);
    for (size_t i = 0; extreme && i < nt * n; i++) x[i] = 1.0f;
    for (size_t t = 0; t < nt; t++) q->pack(x + t * n, n, packed + t, nt);
    for (size_t b = 0; b < nb; b++)
        for (size_t g = 0; g < ng; g++) fill_superblock(w + b * ws + g * super, q4, extreme);
    for (size_t i = 0; i <= nt * ys; i++) y[i] = z[i] = 77.0f;
    for (size_t t = 0; t < nt; t++)
        for (size_t row = 0; row < 16 * nb; row++) {
            float sum = 0.0f;
            for (size_t g = 0; g < ng; g++) {
                const uint8_t *p = w + row / 16 * ws + g * super;
                const qs_group *X = packed + g * nt + t;
                int64_t s = 0;
                for (size_t k = 0; k < QS_GROUP; k++)
                    s += (int64_t)(q4 ? weight_q4(p, row % 16, k) : weight_q8(p, row % 16, k)) * (256 * X->p1[k] + X->p2[k]);
                sum = fmaf((float)s, scale_of(p, row % 16, q4) * X->scale, sum);
            }
            z[t * ys + row] = sum;
        }
    q->mmq[q4](w, ws, nb, ng, packed, nt, y, ys);
    check(same(y, z, nt * ys + 1), isa, q4 ? "mmq q4" : "mmq q8", ng, nb, nt, (size_t)extreme);
    free(w);
    free(x);
    free(y);
    free(z);
    free(packed);
}

static void test_integers(const qs_kernels *q, const char *isa)
{
    long before = test_failed, count = test_passed;
    for (size_t n = 0; n <= MAX_G * QS_GROUP; n += n % 256 < 3 || n % 256 > 252 ? 1u : 50u)
        for (int kind = 0; kind < 3; kind++) test_pack(q, isa, n, kind);
    for (int q4 = 0; q4 < 2; q4++)
        for (size_t nb = 0; nb <= 13; nb++)
            for (size_t nt = 0; nt <= 9; nt++)
                for (size_t ng = 1; ng <= MAX_G; ng++) test_mmq(q, isa, q4, ng, nb, nt, 0);
    for (int q4 = 0; q4 < 2; q4++) /* enough tokens for weights of 16 bits everywhere */
        for (size_t nb = 1; nb <= 3; nb++)
            for (size_t nt = 10; nt <= 50; nt++) test_mmq(q, isa, q4, 1 + nt % 2, nb, nt, 0);
    for (int extreme = 1; extreme <= 2; extreme++)
        for (size_t nt = 1; nt <= 36; nt += nt < 4 ? 1 : 8)
            for (int q4 = 0; q4 < 2; q4++) test_mmq(q, isa, q4, 1, 9, nt, extreme);
    printf("%-10s integers: %ld same, %ld not\n", isa, test_passed - count, test_failed - before);
}

static void test_isa(const qs_kernels *q, const char *isa)
{
    static const size_t ks[] = {255, 256, 257, 258, 510, 511, 512, 513, 514, 767, 768, 770, 2048};
    long before = test_failed, count = test_passed;
    size_t shift = 0;
    for (size_t kp = 1; kp <= 70; kp++)
        for (size_t nb = 0; nb <= 9; nb += kp > 8 && nb % 3 == 1 ? 2u : 1u)
            for (size_t nt = 0; nt <= MAX_T; nt++, shift++) {
                if (kp > 16 && (kp + nb + nt) % 3) continue;
                test_mm(q, isa, 0, kp, nb, nt, shift);
                if (kp % 2 == 0) test_mm(q, isa, 1, kp, nb, nt, shift);
            }
    for (size_t i = 0; i < sizeof ks / sizeof ks[0]; i++)
        for (size_t nt = 0; nt <= MAX_T; nt++, shift++) {
            if (ks[i] == 2048 && nt % 3 == 2) continue;
            size_t nb = ks[i] == 2048 ? nt % 10 : (nt * 7 + i) % (MAX_B + 1);
            test_mm(q, isa, 0, ks[i], nb, nt, shift);
            if (ks[i] % 2 == 0) test_mm(q, isa, 1, ks[i], nb, nt, shift);
        }
    for (size_t n = 0; n <= 96; n += 16)
        for (size_t nr = 0; nr <= 75; nr += nr < 18 ? 1 : 7)
            for (size_t nt = 0; nt <= MAX_T; nt++, shift++) {
                test_dots(q, isa, 0, n, nr, nt, shift);
                test_dots(q, isa, 1, n, nr, nt, shift);
            }
    for (size_t n = 256; n <= 2048; n += n < 1024 ? 16 : 256) {
        test_dots(q, isa, 0, n, n / 16 % 12, n / 16 % MAX_T, shift++);
        test_dots(q, isa, 1, n, n / 16 % 12, n / 16 % MAX_T, shift++);
    }
    for (size_t n = 0; n <= 512; n += 16)
        for (size_t off = 0; off < 4; off++) {
            test_axpy(q, isa, 0, n, off);
            test_axpy(q, isa, 1, n, off);
        }
    for (size_t n = 0; n < 200; n++) test_elementwise(q, isa, n, n % 5);
    test_elementwise(q, isa, 4099, 3);
    for (size_t n = 1; n <= QS_ATT_TILE; n++) test_soften(q, isa, n);
    test_widen(q, isa);
    test_exp_sweep(q, isa, 4999);
    printf("%-7s %ld checks, %ld differences\n", isa, test_passed - count + test_failed - before, test_failed - before);
}

/* ulp of the float nearest to y (y > 0, normal) */
static double ulp_of(double y)
{
    int e;
    frexp(y, &e);
    return ldexp(1.0, e - 24);
}

static void test_exp(void)
{
    double worst = 0.0;
    float worst_x = 0.0f, last = 0.0f;
    int monotone = 1;
    long down = 0;
    /* upwards from -87 to 88, about 20 million values */
    for (uint32_t u = f32_bits(-87.0f) + 0; u > 0x80000000u; u = u < 0x80000000u + 53 ? 0x80000000u : u - 53) {
        float x = bits_f32(u), y = qs_exp(x);
        double want = exp((double)x), err = fabs((double)y - want) / ulp_of(want);
        if (err > worst) worst = err, worst_x = x;
        if (y < last) monotone = 0, down++;
        last = y;
    }
    for (uint32_t u = 0; u <= f32_bits(88.0f); u += 53) {
        float x = bits_f32(u), y = qs_exp(x);
        double want = exp((double)x), err = fabs((double)y - want) / ulp_of(want);
        if (err > worst) worst = err, worst_x = x;
        if (y < last) monotone = 0, down++;
        last = y;
    }
    printf("exp     max error %.3f ulp at %.9g; %ld downward steps over the sweep\n", worst,
           (double)worst_x, down);
    check(worst < 1.0, "exp", "ulp", 0, 0, 0, 0);
    check(monotone, "exp", "monotone", 0, 0, 0, 0);
    check(qs_exp(0.0f) == 1.0f && qs_exp(-0.0f) == 1.0f, "exp", "of zero", 0, 0, 0, 0);
    check(qs_exp(-87.1f) == 0.0f && !signbit(qs_exp(-INFINITY)), "exp", "low", 0, 0, 0, 0);
    check(qs_exp(-87.0f) > 1.1754944e-38f, "exp", "of -87 is normal", 0, 0, 0, 0);
    check(isinf(qs_exp(88.1f)) && isinf(qs_exp(INFINITY)), "exp", "high", 0, 0, 0, 0);
    check(!isinf(qs_exp(88.0f)), "exp", "of 88 is finite", 0, 0, 0, 0);
    check(isnan(qs_exp(NAN)), "exp", "of NaN", 0, 0, 0, 0);
}

/* the reference of this file against the portable kernels of the library */
static void test_portable(void)
{
    for (size_t kp = 1; kp < 600; kp = kp * 3 / 2 + 1)
        for (size_t nt = 0; nt < 5; nt++) test_mm(&QS_KERNELS_SCALAR, "scalar", 0, kp, nt, nt, kp);
    for (size_t n = 0; n <= 96; n += 16) test_dots(&QS_KERNELS_SCALAR, "scalar", 0, n, 3, 2, n);
    for (size_t n = 0; n <= 96; n += 16) test_axpy(&QS_KERNELS_SCALAR, "scalar", 0, n, 1);
    for (size_t n = 0; n <= 40; n++) test_elementwise(&QS_KERNELS_SCALAR, "scalar", n, 1);
    for (size_t n = 1; n <= QS_ATT_TILE; n++) test_soften(&QS_KERNELS_SCALAR, "scalar", n);
    test_widen(&QS_KERNELS_SCALAR, "scalar");
    test_narrow();
    test_integers(&QS_KERNELS_SCALAR, "scalar");
}

int main(void)
{
    test_exp();
    test_portable();
#if defined(QS_HAVE_AVX2)
    if (qs_isa_runs(QSAE_ISA_AVX2))
        test_isa(&QS_KERNELS_AVX2, "avx2"), test_integers(&QS_KERNELS_AVX2, "avx2");
    else
        printf("avx2    not on this machine\n");
#endif
#if defined(QS_HAVE_AVX512)
    if (qs_isa_runs(QSAE_ISA_AVX512))
        test_isa(&QS_KERNELS_AVX512, "avx512");
    else
        printf("avx512  not on this machine\n");
    if (qs_isa_runs(QSAE_ISA_AVX512_VNNI))
        test_integers(&QS_KERNELS_AVX512_VNNI, "avx512vnni");
    else
        printf("avx512vnni not on this machine\n");
#endif
#if defined(QS_HAVE_NEON)
    test_isa(&QS_KERNELS_NEON, "neon");
    test_integers(&QS_KERNELS_NEON, "neon");
    if (qs_isa_runs(QSAE_ISA_NEON_DOT))
        test_integers(&QS_KERNELS_NEON_DOT, "neondot");
    else
        printf("neondot not on this machine\n");
    if (qs_isa_runs(QSAE_ISA_NEON_I8MM))
        test_integers(&QS_KERNELS_NEON_I8MM, "neoni8mm");
    else
        printf("neoni8mm not on this machine\n");
#endif
    check(qs_isa_runs(QSAE_ISA_SCALAR) == 1 && qs_isa_runs(QSAE_ISA_COUNT) == 0, "isa", "runs", 0, 0, 0, 0);
    return test_done("test_kernels");
}
