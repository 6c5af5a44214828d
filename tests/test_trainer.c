/* The trainer: its gradients against central differences of the loss in double, the same bits whatever computes them,
 * saving and loading, export, and what it refuses. */

#include "test.h"
#include "../qsae.h"

#include <math.h>
#include <stdlib.h>

static uint64_t seed = 1;

static double uniform(void) /* -1..1 */
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(int64_t)(seed >> 11) / 4503599627370496.0 - 1.0;
}

static void fill(float *x, size_t n, double scale)
{
    for (size_t i = 0; i < n; i++) x[i] = (float)(scale * (uniform() + uniform() + uniform()));
}

static qsae_trainer *make(const qsae_trainer_options *o)
{
    qsae_trainer *t = NULL;
    qsae_error e = {0};
    if (!CHECK(qsae_trainer_create(o, &t, &e) == QSAE_OK)) {
        fprintf(stderr, "    %s\n", e.text);
        exit(1);
    }
    return t;
}

/* ---- gradients ----
 *
 * The straight-through estimator is the derivative of no loss. It is that of this one at the base point (z0, theta0),
 * with the masks there: f = [z0 > theta0] z - K theta0 / width (theta - theta0 [- (z - z0)]), and L0 alike. Selections,
 * too, are those of the base point. So central differences can check every gradient. */

enum { D = 20, D_OUT = 12, M = 40, B = 30, K_MAX = 4 };

typedef struct params {
    double enc[M][D], dec[M][D], b[M], theta[M], c[D];
} params;

typedef struct base { /* what is held fixed */
    double z[B][M], theta[M], residual[B][D];
    int on[B][M], window[B][M], aux[B][M], dead[M];
    double aux_scale;
} base;

static qsae_trainer_options options;
static size_t d_out;
static float x[B * D], y[B * D];
static size_t prefixes[3] = {8, 20, M};
static float weights[3] = {1.0f, 0.5f, 2.0f};

static double norm_of(const params *p, int i)
{
    double s = 0;
    for (size_t j = 0; j < d_out; j++) s += p->dec[i][j] * p->dec[i][j];
    return sqrt(s);
}

static double scale_in(void) { return options.scale_in ? (double)options.scale_in : 1; }
static double scale_out(void) { return options.scale_out ? (double)options.scale_out : scale_in(); }

static double z_of(const params *p, int b, int i)
{
    double z = p->b[i];
    for (int j = 0; j < (int)options.d_in; j++)
        z += p->enc[i][j] * (x[b * (int)options.d_in + j] * scale_in() - (options.no_b_dec_input ? 0 : p->c[j]));
    return z;
}

static double target(int b, size_t j) { return y[(size_t)b * d_out + j] * scale_out(); }

/* The loss with everything in `at` fixed; with `take`, fills the residuals in. */
static double loss(const params *p, base *at, int take)
{
    double total = 0, mean_l0 = 0, l0s[B];
    int n_prefixes = options.arch == QSAE_TRAIN_MATRYOSHKA ? 3 : 1;
    const double width = (double)options.bandwidth, l = (double)options.l0_coefficient;
    const double T = (double)options.l0_target;
    for (int b = 0; b < B; b++) {
        double out[D], aux[D] = {0}, f[M], l0 = 0;
        for (size_t j = 0; j < d_out; j++) out[j] = p->c[j];
        for (int i = 0, k = 0; i < M; i++) {
            double z = z_of(p, b, i), n = norm_of(p, i), off = p->theta[i] - at->theta[i];
            f[i] = at->on[b][i] ? z : 0;
            l0 += at->on[b][i];
            if (options.ste_to_input) off -= z - at->z[b][i];
            if (at->window[b][i]) {
                f[i] -= at->theta[i] / width * off;
                l0 -= off / width;
            }
            for (size_t j = 0; j < d_out; j++) {
                out[j] += f[i] * p->dec[i][j];
                if (at->aux[b][i]) aux[j] += z * p->dec[i][j];
            }
            if (options.arch == QSAE_TRAIN_JUMPRELU && options.sparsity == QSAE_TRAIN_TANH)
                total += l * tanh((options.tanh_scale ? (double)options.tanh_scale : 4) * f[i] * n) / B;
            if (at->dead[i] && p->theta[i] > z)
                total += (double)options.pre_act_coefficient * (p->theta[i] - z) * n / B;
            if (n_prefixes > 1 && (size_t)i + 1 == prefixes[k]) {
                for (size_t j = 0; j < d_out && k < 2; j++)
                    total += weights[k] * (out[j] - target(b, j)) * (out[j] - target(b, j)) / B;
                k++;
            }
        }
        for (size_t j = 0; j < d_out; j++) {
            double e = out[j] - target(b, j), a;
            total += (n_prefixes > 1 ? weights[2] : 1) * e * e / B;
            if (take) at->residual[b][j] = -e;
            a = aux[j] - at->residual[b][j];
            total += at->aux_scale * a * a / B;
        }
        l0s[b] = l0;
        mean_l0 += l0 / B;
    }
    if (options.arch != QSAE_TRAIN_JUMPRELU) return total;
    if (options.sparsity == QSAE_TRAIN_STEP) total += l * mean_l0;
    if (options.sparsity == QSAE_TRAIN_TARGET) total += l * (mean_l0 / T - 1) * (mean_l0 / T - 1);
    for (int b = 0; b < B && options.sparsity == QSAE_TRAIN_QUADRATIC; b++)
        total += l * 2 / T * (l0s[b] - T) * (l0s[b] - T) / B;
    return total;
}

/* Marks the n largest of key[0..count) that pass `min` in on[..], stride apart; ties do not occur. */
static void mark(const double *key, int count, int n, double min, int *on)
{
    for (int i = 0; i < count; i++) {
        int larger = 0;
        for (int j = 0; j < count; j++) larger += key[j] > key[i];
        on[i] = larger < n && key[i] > min;
    }
}

static void take_base(const params *p, base *at)
{
    static double key[B * M];
    static int on[B * M];
    int n_dead = 0, half = (int)options.d_in / 2;
    const double width = (double)options.bandwidth;
    memset(at->on, 0, sizeof at->on);
    memset(at->window, 0, sizeof at->window);
    memset(at->aux, 0, sizeof at->aux);
    memcpy(at->theta, p->theta, sizeof at->theta);
    for (int i = 0; i < M; i++) n_dead += at->dead[i];
    for (int b = 0; b < B; b++)
        for (int i = 0; i < M; i++) {
            double z = at->z[b][i] = z_of(p, b, i);
            key[b * M + i] = z * (options.no_rescale ? 1 : norm_of(p, i));
            if (options.arch != QSAE_TRAIN_JUMPRELU) continue;
            at->on[b][i] = z > p->theta[i];
            at->window[b][i] = fabs(z - p->theta[i]) < width / 2;
        }
    if (options.arch == QSAE_TRAIN_TOPK)
        for (int b = 0; b < B; b++) mark(key + b * M, M, (int)options.k, 0, on + b * M);
    else if (options.arch != QSAE_TRAIN_JUMPRELU)
        mark(key, B * M, (int)(options.k * B), 0, on);
    if (options.arch != QSAE_TRAIN_JUMPRELU) memcpy(at->on, on, sizeof on);
    at->aux_scale = 0;
    if (options.aux_coefficient > 0 && n_dead > 0) {
        at->aux_scale = (double)options.aux_coefficient * (n_dead < half ? (double)n_dead / half : 1);
        for (int b = 0; b < B; b++) {
            double dead_key[M];
            for (int i = 0; i < M; i++) dead_key[i] = at->dead[i] ? key[b * M + i] : -1e30;
            mark(dead_key, M, half < n_dead ? half : n_dead, -1e29, at->aux[b]);
        }
    }
}

static void get_part(const qsae_trainer *t, qsae_train_part part, double *to, size_t ld)
{
    size_t rows, cols;
    static float v[M * D];
    qsae_trainer_shape(t, part, &rows, &cols);
    if (!rows) return;
    CHECK(qsae_trainer_get(t, part, 0, rows, v, NULL) == QSAE_OK);
    if (rows == 1 && part == QSAE_PART_THETA) return; /* the moving average */
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < cols; c++) to[r * ld + c] = (double)v[r * cols + c];
}

static void get_params(const qsae_trainer *t, int moment, params *p)
{
    memset(p, 0, sizeof *p);
    get_part(t, (qsae_train_part)(QSAE_PART_ENC + moment), p->enc[0], D);
    get_part(t, (qsae_train_part)(QSAE_PART_DEC + moment), p->dec[0], D);
    get_part(t, (qsae_train_part)(QSAE_PART_B_ENC + moment), p->b, 1);
    get_part(t, (qsae_train_part)(QSAE_PART_THETA + moment), p->theta, 1);
    get_part(t, (qsae_train_part)(QSAE_PART_B_DEC + moment), p->c, 1);
}

/* Puts values in that make every branch happen: biases, thresholds within reach, rows of different norms. */
static void disturb(qsae_trainer *t)
{
    float v[M * D];
    size_t rows, cols;
    for (int part = QSAE_PART_ENC; part <= QSAE_PART_B_DEC; part++) {
        qsae_trainer_shape(t, (qsae_train_part)part, &rows, &cols);
        if (!rows || (part == QSAE_PART_THETA && rows == 1)) continue;
        fill(v, rows * cols, part <= QSAE_PART_DEC ? 0.2 : 0.1);
        for (size_t i = 0; i < rows * cols && part == QSAE_PART_THETA; i++) v[i] = fabsf(v[i]);
        CHECK(qsae_trainer_set(t, (qsae_train_part)part, 0, rows, v, NULL) == QSAE_OK);
    }
    for (int i = 0; i < M; i++) v[i] = (float)(i % 3 == 1 ? 2000 : i % 3);
    if (options.aux_coefficient > 0 || options.pre_act_coefficient > 0)
        CHECK(qsae_trainer_set(t, QSAE_PART_FIRED, 0, M, v, NULL) == QSAE_OK);
}

/* |a - b| / |b| over one part's gradient, by central differences */
static double compare_part(params *p, base *at, double *of, const double *grad, size_t rows, size_t cols)
{
    double off = 0, all = 0, h = 1e-5;
    size_t ld = cols > 1 ? D : 1;
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < cols; c++) {
            double *v = of + r * ld + c, was = *v, g;
            *v = was + h;
            g = loss(p, at, 0);
            *v = was - h;
            g = (g - loss(p, at, 0)) / (2 * h);
            *v = was;
            double d = grad[r * ld + c] - g;
            off += d * d;
            all += g * g;
        }
    return all > 0 ? sqrt(off / all) : sqrt(off);
}

static void check_gradients(const char *name)
{
    static params p, g;
    static base at;
    options.d_sae = M;
    options.max_rows = B;
    d_out = options.d_out ? options.d_out : options.d_in;
    qsae_trainer *t = make(&options);
    qsae_train_stats s;
    qsae_error e = {0};
    seed = 12;
    fill(x, B * options.d_in, 0.5);
    fill(y, B * d_out, 0.5);
    if (d_out == options.d_in && !options.no_b_dec_input) memcpy(y, x, sizeof y);
    disturb(t);
    get_params(t, 0, &p);
    memset(at.dead, 0, sizeof at.dead);
    for (int i = 0; i < M; i++)
        at.dead[i] = i % 3 == 1 && (options.aux_coefficient > 0 || options.pre_act_coefficient > 0);
    take_base(&p, &at);
    double wanted = loss(&p, &at, 1);
    wanted = loss(&p, &at, 0);
    if (!CHECK(qsae_trainer_step(t, x, y, B, &s, &e) == QSAE_OK)) fprintf(stderr, "    %s: %s\n", name, e.text);
    if (!CHECK(fabs(s.loss - wanted) <= 1e-6 * wanted))
        fprintf(stderr, "    %s: loss %.9g, wanted %.9g\n", name, s.loss, wanted);
    get_params(t, QSAE_PART_ENC_M, &g);
    for (double *v = (double *)(void *)&g; v < (double *)(void *)(&g + 1); v++) *v /= 1 - (double)0.9f;
    double off[5] = {compare_part(&p, &at, p.enc[0], g.enc[0], M, options.d_in),
                     compare_part(&p, &at, p.dec[0], g.dec[0], M, d_out),
                     compare_part(&p, &at, p.b, g.b, M, 1),
                     options.arch == QSAE_TRAIN_JUMPRELU ? compare_part(&p, &at, p.theta, g.theta, M, 1) : 0,
                     compare_part(&p, &at, p.c, g.c, d_out, 1)};
    for (int i = 0; i < 5; i++)
        if (!CHECK(off[i] < 2e-6)) fprintf(stderr, "    %s: part %d is off by %.2g\n", name, i, off[i]);
    qsae_trainer_destroy(t);
}

static void start(qsae_train_arch arch)
{
    memset(&options, 0, sizeof options);
    options.d_in = D;
    options.arch = arch;
    options.lr = 1e-6f;
    options.bandwidth = 0.3f;
    options.k = arch == QSAE_TRAIN_TOPK ? 5 : 4.5;
    if (arch == QSAE_TRAIN_MATRYOSHKA) {
        options.n_prefixes = 3;
        options.prefixes = prefixes;
        options.prefix_weights = weights;
    }
}

static void test_gradients(void)
{
    static const char *const modes[4] = {"step", "target", "quadratic", "tanh"};
    static const char *const archs[4] = {"jumprelu", "topk", "batchtopk", "matryoshka"};
    for (int mode = 0; mode < 4; mode++)
        for (int ste = 0; ste < 2; ste++) {
            start(QSAE_TRAIN_JUMPRELU);
            options.sparsity = (qsae_train_sparsity)mode;
            options.l0_coefficient = 0.3f;
            options.l0_target = 7;
            options.ste_to_input = ste;
            check_gradients(modes[mode]);
            options.pre_act_coefficient = 0.2f;
            options.clip = ste ? 1e20f : 0; /* gradients stored, but not scaled */
            check_gradients("pre-act");
            options.no_b_dec_input = 1; /* a transcoder of the same width, then of another */
            options.scale_in = 1.5f;
            options.scale_out = 0.75f;
            check_gradients("transcoder");
            options.d_out = D_OUT;
            check_gradients("transcoder of another width");
        }
    for (int arch = 1; arch < 4; arch++)
        for (int plain = 0; plain < 2; plain++) {
            start((qsae_train_arch)arch);
            options.no_rescale = plain;
            check_gradients(archs[arch]);
            options.aux_coefficient = 0.7f; /* 13 dead, 10 of them taken */
            check_gradients("aux");
            options.d_out = D_OUT;
            options.no_b_dec_input = 1;
            options.clip = 1e20f;
            check_gradients("aux of a transcoder");
        }
}

int main(void)
{
    test_gradients();
    return test_done("test_trainer");
}
