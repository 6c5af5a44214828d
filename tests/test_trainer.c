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
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(scale * (uniform() + uniform() + uniform()));
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
    for (size_t j = 0; j < d_out; j++)
        s += p->dec[i][j] * p->dec[i][j];
    return sqrt(s);
}

static double scale_in(void)
{
    return options.scale_in != 0 ? (double)options.scale_in : 1;
}
static double scale_out(void)
{
    return options.scale_out != 0 ? (double)options.scale_out : scale_in();
}

static double z_of(const params *p, int b, int i)
{
    double z = p->b[i];
    for (int j = 0; j < (int)options.d_in; j++)
        z += p->enc[i][j] * (x[b * (int)options.d_in + j] * scale_in() -
                             (options.no_b_dec_input ? 0 : p->c[j]));
    return z;
}

static double target(int b, size_t j)
{
    return y[(size_t)b * d_out + j] * scale_out();
}

/* The loss with everything in `at` fixed; with `take`, fills the residuals in. */
static double loss(const params *p, base *at, int take)
{
    double total = 0, mean_l0 = 0, l0s[B];
    int n_prefixes = options.arch == QSAE_TRAIN_MATRYOSHKA ? 3 : 1;
    const double width = (double)options.bandwidth, l = (double)options.l0_coefficient;
    const double T = (double)options.l0_target;
    for (int b = 0; b < B; b++) {
        double out[D], aux[D] = {0}, f[M], l0 = 0;
        for (size_t j = 0; j < d_out; j++)
            out[j] = p->c[j];
        for (int i = 0, k = 0; i < M; i++) {
            double z = z_of(p, b, i), n = norm_of(p, i),
                   off = p->theta[i] - at->theta[i];
            f[i] = at->on[b][i] ? z : 0;
            l0 += at->on[b][i];
            if (options.ste_to_input)
                off -= z - at->z[b][i];
            if (at->window[b][i]) {
                f[i] -= at->theta[i] / width * off;
                l0 -= off / width;
            }
            for (size_t j = 0; j < d_out; j++) {
                out[j] += f[i] * p->dec[i][j];
                if (at->aux[b][i])
                    aux[j] += z * p->dec[i][j];
            }
            if (options.arch == QSAE_TRAIN_JUMPRELU &&
                options.sparsity == QSAE_TRAIN_TANH)
                total +=
                    l *
                    tanh((options.tanh_scale != 0 ? (double)options.tanh_scale : 4) *
                         f[i] * n) /
                    B;
            if (at->dead[i] && p->theta[i] > z)
                total +=
                    (double)options.pre_act_coefficient * (p->theta[i] - z) * n / B;
            if (n_prefixes > 1 && (size_t)i + 1 == prefixes[k]) {
                for (size_t j = 0; j < d_out && k < 2; j++)
                    total += weights[k] * (out[j] - target(b, j)) *
                             (out[j] - target(b, j)) / B;
                k++;
            }
        }
        for (size_t j = 0; j < d_out; j++) {
            double e = out[j] - target(b, j), a;
            total += (n_prefixes > 1 ? weights[2] : 1) * e * e / B;
            if (take)
                at->residual[b][j] = -e;
            a = aux[j] - at->residual[b][j];
            total += at->aux_scale * a * a / B;
        }
        l0s[b] = l0;
        mean_l0 += l0 / B;
    }
    if (options.arch != QSAE_TRAIN_JUMPRELU)
        return total;
    if (options.sparsity == QSAE_TRAIN_STEP)
        total += l * mean_l0;
    if (options.sparsity == QSAE_TRAIN_TARGET)
        total += l * (mean_l0 / T - 1) * (mean_l0 / T - 1);
    for (int b = 0; b < B && options.sparsity == QSAE_TRAIN_QUADRATIC; b++)
        total += l * 2 / T * (l0s[b] - T) * (l0s[b] - T) / B;
    return total;
}

/* Marks the n largest of key[0..count) that pass `min` in on[..], stride apart; ties do not occur. */
static void mark(const double *key, int count, int n, double min, int *on)
{
    for (int i = 0; i < count; i++) {
        int larger = 0;
        for (int j = 0; j < count; j++)
            larger += key[j] > key[i];
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
    for (int i = 0; i < M; i++)
        n_dead += at->dead[i];
    for (int b = 0; b < B; b++)
        for (int i = 0; i < M; i++) {
            double z = at->z[b][i] = z_of(p, b, i);
            key[b * M + i] = z * (options.no_rescale ? 1 : norm_of(p, i));
            if (options.arch != QSAE_TRAIN_JUMPRELU)
                continue;
            at->on[b][i] = z > p->theta[i];
            at->window[b][i] = fabs(z - p->theta[i]) < width / 2;
        }
    if (options.arch == QSAE_TRAIN_TOPK)
        for (int b = 0; b < B; b++)
            mark(key + b * M, M, (int)options.k, 0, on + b * M);
    else if (options.arch != QSAE_TRAIN_JUMPRELU)
        mark(key, B * M, (int)(options.k * B), 0, on);
    if (options.arch != QSAE_TRAIN_JUMPRELU)
        memcpy(at->on, on, sizeof on);
    at->aux_scale = 0;
    if (options.aux_coefficient > 0 && n_dead > 0) {
        at->aux_scale = (double)options.aux_coefficient *
                        (n_dead < half ? (double)n_dead / half : 1);
        for (int b = 0; b < B; b++) {
            double dead_key[M];
            for (int i = 0; i < M; i++)
                dead_key[i] = at->dead[i] ? key[b * M + i] : -1e30;
            mark(dead_key, M, half < n_dead ? half : n_dead, -1e29, at->aux[b]);
        }
    }
}

static void get_part(const qsae_trainer *t, qsae_train_part part, double *to, size_t ld)
{
    size_t rows, cols;
    static float v[M * D];
    qsae_trainer_shape(t, part, &rows, &cols);
    if (!rows)
        return;
    CHECK(qsae_trainer_get(t, part, 0, rows, v, NULL) == QSAE_OK);
    if (rows == 1 && part == QSAE_PART_THETA)
        return; /* the moving average */
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < cols; c++)
            to[r * ld + c] = (double)v[r * cols + c];
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
        if (!rows || (part == QSAE_PART_THETA && rows == 1))
            continue;
        fill(v, rows * cols, part <= QSAE_PART_DEC ? 0.2 : 0.1);
        for (size_t i = 0; i < rows * cols && part == QSAE_PART_THETA; i++)
            v[i] = fabsf(v[i]);
        CHECK(qsae_trainer_set(t, (qsae_train_part)part, 0, rows, v, NULL) == QSAE_OK);
    }
    for (int i = 0; i < M; i++)
        v[i] = (float)(i % 3 == 1 ? 2000 : i % 3);
    if (options.aux_coefficient > 0 || options.pre_act_coefficient > 0)
        CHECK(qsae_trainer_set(t, QSAE_PART_FIRED, 0, M, v, NULL) == QSAE_OK);
}

/* |a - b| / |b| over one part's gradient, by central differences */
static double compare_part(params *p, base *at, double *of, const double *grad,
                           size_t rows, size_t cols)
{
    double off = 0, all = 0, h = 1e-5;
    size_t ld = cols > 1 ? D : 1;
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < cols; c++) {
            if (cols > 1 && (3 * r + c) % 16)
                continue; /* a sixteenth of a matrix will do */
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
    if (d_out == options.d_in && !options.no_b_dec_input)
        memcpy(y, x, sizeof y);
    disturb(t);
    get_params(t, 0, &p);
    memset(at.dead, 0, sizeof at.dead);
    for (int i = 0; i < M; i++)
        at.dead[i] = i % 3 == 1 &&
                     (options.aux_coefficient > 0 || options.pre_act_coefficient > 0);
    take_base(&p, &at);
    double wanted = loss(&p, &at, 1);
    wanted = loss(&p, &at, 0);
    if (!CHECK(qsae_trainer_step(t, x, y, B, &s, &e) == QSAE_OK))
        fprintf(stderr, "    %s: %s\n", name, e.text);
    if (!CHECK(fabs(s.loss - wanted) <= 1e-6 * wanted))
        fprintf(stderr, "    %s: loss %.9g, wanted %.9g\n", name, s.loss, wanted);
    get_params(t, QSAE_PART_ENC_M, &g);
    for (double *v = (double *)(void *)&g; v < (double *)(void *)(&g + 1); v++)
        *v /= 1 - (double)0.9f;
    double off[5] = {compare_part(&p, &at, p.enc[0], g.enc[0], M, options.d_in),
                     compare_part(&p, &at, p.dec[0], g.dec[0], M, d_out),
                     compare_part(&p, &at, p.b, g.b, M, 1),
                     options.arch == QSAE_TRAIN_JUMPRELU
                         ? compare_part(&p, &at, p.theta, g.theta, M, 1)
                         : 0,
                     compare_part(&p, &at, p.c, g.c, d_out, 1)};
    for (int i = 0; i < 5; i++)
        if (!CHECK(off[i] < 2e-6))
            fprintf(stderr, "    %s: part %d is off by %.2g\n", name, i, off[i]);
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
            options.no_b_dec_input =
                1; /* a transcoder of the same width, then of another */
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

/* ---- the same bits whatever computes them ---- */

typedef struct bytes {
    uint8_t *data;
    size_t size, cap, at, stop; /* stop: writing and reading fail there */
} bytes;

static int put(void *user, const void *data, size_t size)
{
    bytes *b = user;
    if (b->size + size > b->stop)
        return 1;
    if (b->size + size > b->cap) {
        b->cap = 2 * (b->size + size);
        b->data = realloc(b->data, b->cap);
    }
    memcpy(b->data + b->size, data, size);
    b->size += size;
    return 0;
}

static int take(void *user, void *data, size_t size)
{
    bytes *b = user;
    if (b->at + size > b->size || b->at + size > b->stop)
        return 1;
    memcpy(data, b->data + b->at, size);
    b->at += size;
    return 0;
}

static bytes saved(const qsae_trainer *t)
{
    bytes b = {NULL, 0, 0, 0, SIZE_MAX};
    CHECK(qsae_trainer_save(t, put, &b, NULL) == QSAE_OK);
    return b;
}

/* n rows that a dictionary of 3 d atoms makes, the same for the same `which` */
static void draw_rows(float *rows, size_t n, size_t d, uint64_t which)
{
    memset(rows, 0, n * d * sizeof *rows);
    for (size_t b = 0; b < n; b++) {
        for (int a = 0; a < 6; a++) {
            seed = which * 1000003 + b * 7919 + (uint64_t)a;
            for (int i = 0; i < 5; i++)
                uniform();
            double u = uniform(), w = 1 + uniform();
            uint64_t atom = (uint64_t)(u * u * 3 * (double)d);
            seed = atom * 2654435761u + 99;
            for (size_t j = 0; j < d; j++)
                rows[b * d + j] += (float)(w * (uniform() + uniform()));
        }
    }
}

/* Trains for `steps` and returns the state; the last steps have fewer rows. */
static bytes train(qsae_trainer_options o, size_t steps, uint64_t first,
                   qsae_train_stats *last)
{
    size_t d = o.d_in, d_y = o.d_out ? o.d_out : d;
    float *rows = malloc(o.max_rows * d * sizeof *rows),
          *target = malloc(o.max_rows * d_y * sizeof *rows);
    qsae_trainer *t = make(&o);
    for (size_t i = 0; i < steps; i++) {
        size_t n = i % 3 == 2 ? o.max_rows - 5 : o.max_rows;
        qsae_error e = {0};
        draw_rows(rows, n, d, first + i);
        draw_rows(target, n, d_y, first + i + 1);
        if (!CHECK(qsae_trainer_step(t, rows, o.d_out ? target : NULL, n, last, &e) ==
                   QSAE_OK))
            fprintf(stderr, "    %s\n", e.text);
    }
    bytes b = saved(t);
    qsae_trainer_destroy(t);
    free(rows);
    free(target);
    return b;
}

/* An emulator runs this: it needs minutes for what takes seconds. */
static int emulated(void)
{
    const char *run = getenv("RUN");
    return run && *run;
}

enum { SAME_STEPS = 4 };
static int screened; /* runs whose last step was */

static void check_same(qsae_trainer_options o, const char *name)
{
    static const int threads[3] = {1, 2, 5};
    qsae_train_stats first, s;
    o.isa = QSAE_ISA_SCALAR;
    o.no_screen = 1;
    o.n_threads = 1;
    bytes reference = train(o, SAME_STEPS, 1, &first);
    CHECK(first.loss > 0 && first.l0 > 0);
    for (int isa = QSAE_ISA_SCALAR; isa < QSAE_ISA_COUNT; isa++) {
        if (!qsae_isa_available((qsae_isa)isa))
            continue;
        for (int i = 0; i < 3; i++) {
            if (isa == QSAE_ISA_SCALAR && i != 1)
                continue; /* the reference has one thread; slow */
            if (emulated() && (isa != QSAE_ISA_NEON || i != 1))
                continue;
            o.isa = (qsae_isa)isa;
            o.n_threads = threads[i];
            o.no_screen = i == 1;
            bytes b = train(o, SAME_STEPS, 1, &s);
            if (!CHECK(b.size == reference.size &&
                       memcmp(b.data, reference.data, b.size) == 0) ||
                !CHECK(s.loss == first.loss && s.l0 == first.l0 &&
                       s.grad_norm == first.grad_norm))
                fprintf(stderr, "    %s: %s, %d threads\n", name, qsae_isa_name(o.isa),
                        threads[i]);
            if (isa == QSAE_ISA_AVX512_VNNI && i != 1)
                screened += s.screened < 1;
            free(b.data);
        }
    }
    free(reference.data);
}

static void train_options(qsae_train_arch arch)
{
    start(arch);
    options.d_in = 72;
    options.d_sae = 300;
    options.max_rows = 101;
    options.lr = 3e-3f;
    options.lr_warmup = 3;
    options.clip = 1;
    options.dead_steps = 1;
    prefixes[0] = 40, prefixes[1] = 130, prefixes[2] = 300;
}

static void test_same_bits(void)
{
    for (int arch = 0; arch < 4; arch++) {
        train_options((qsae_train_arch)arch);
        options.aux_coefficient = arch ? 0.5f : 0;
        options.sparsity = QSAE_TRAIN_TANH;
        options.l0_coefficient = 0.1f;
        options.threshold_init = 0.5f;
        options.pre_act_coefficient = arch ? 0 : 0.1f;
        check_same(options, "clip");
        options.clip = 0;
        options.no_rescale = 1;
        options.unit_decoder = 1;
        options.has_betas = 1;
        options.beta2 = 0.99f;
        options.sparsity = QSAE_TRAIN_QUADRATIC;
        options.l0_target = 20;
        options.lr_cosine = 1;
        check_same(options, "unit decoder");
        options.d_out = 33;
        options.no_b_dec_input = 1;
        options.pre_act_coefficient = 0;
        options.max_rows = 48;
        check_same(options, "transcoder");
    }
    CHECK(screened > 0 ||
          !qsae_isa_available(QSAE_ISA_AVX512_VNNI)); /* the screen was at work */
}

/* Pairs for which the screen's bound is nearly reached: what coding takes from the encoder (or from the rows) lies along
 * the other. They fire by a hair, so a bound that is too small by a few percent loses them. */
static void test_screen_bound(void)
{
    enum { W = 64, LATENTS = 512, ROWS = 96 };
    static float enc[LATENTS * W], rows[ROWS * W], bias[LATENTS], theta[LATENTS];
    for (int of_rows = 0; of_rows < 2; of_rows++) {
        qsae_train_stats s;
        qsae_error e = {0};
        start(QSAE_TRAIN_JUMPRELU);
        options.d_in = W;
        options.d_sae = LATENTS;
        options.max_rows = ROWS;
        options.bandwidth = 1e-6f;
        options.n_threads = 1;
        qsae_trainer *t = make(&options);
        for (size_t i = 0; i < LATENTS; i++) {
            double z = 0, step = (double)(i / 32 + 3) + 0.49;
            for (size_t j = 0; j < W; j++) {
                float sign = j % 3 ? 1.0f : -1.0f, odd = j ? (float)(step / 127) : 1.0f,
                      even = 1.0f;
                enc[i * W + j] = sign * (of_rows ? even : odd);
                z += (double)(odd * even);
            }
            bias[i] = i % 32 == 9 ? 0.0f : -100.0f; /* of 32 latents one */
            theta[i] = (float)(z * (1 - 1e-5));
        }
        for (size_t b = 0; b < ROWS; b++) /* each row is of the kind of one of them */
            for (size_t j = 0; j < W; j++) {
                double step = (double)(b % 16 + 3) + 0.49;
                float sign = j % 3 ? 1.0f : -1.0f;
                rows[b * W + j] = sign * (of_rows && j ? (float)(step / 127) : 1.0f);
            }
        CHECK(qsae_trainer_set(t, QSAE_PART_ENC, 0, LATENTS, enc, NULL) == QSAE_OK);
        CHECK(qsae_trainer_set(t, QSAE_PART_B_ENC, 0, LATENTS, bias, NULL) == QSAE_OK);
        CHECK(qsae_trainer_set(t, QSAE_PART_THETA, 0, LATENTS, theta, NULL) == QSAE_OK);
        CHECK(qsae_trainer_step(t, rows, NULL, ROWS, &s, &e) == QSAE_OK);
        if (qsae_isa_available(QSAE_ISA_AVX512_VNNI))
            CHECK(s.screened < 0.08);
        double fired =
            0; /* a row coarser than a latent's threshold asks for does not fire it */
        for (int b = 0; b < ROWS; b++)
            fired += of_rows ? b % 16 + 1 : 16;
        if (!CHECK(s.l0 * ROWS == fired))
            fprintf(stderr, "    of %d: %g pairs fire, wanted %g\n", of_rows,
                    s.l0 * ROWS, fired);
        qsae_trainer_destroy(t);
    }
}

/* A JumpReLU that fires nearly everywhere needs several rounds when the arena is small: the same bits as with a large
 * one, which more rows than are ever given make. */
static void test_rounds(void)
{
    start(QSAE_TRAIN_JUMPRELU);
    options.d_in = 16;
    options.d_sae = 2000;
    options.max_rows = 200;
    options.threshold_init = 1e-6f;
    options.clip = 1;
    options.lr = 1e-3f;
    qsae_train_stats s;
    bytes a = train(options, 3, 5, &s), b;
    float *rows = malloc(200 * 16 * sizeof *rows);
    CHECK(
        s.l0 >
        700); /* 140,000 pairs; the arena of one thread has room for a block of 256 latents x 240 rows */
    options.max_rows = 4000;
    qsae_trainer *t = make(&options);
    for (uint64_t i = 0; i < 3; i++) {
        draw_rows(rows, i == 2 ? 195 : 200, 16, 5 + i);
        CHECK(qsae_trainer_step(t, rows, NULL, i == 2 ? 195 : 200, NULL, NULL) ==
              QSAE_OK);
    }
    b = saved(t);
    CHECK(a.size == b.size && memcmp(a.data, b.data, a.size) == 0);
    qsae_trainer_destroy(t);
    free(a.data);
    free(b.data);
    free(rows);
}

/* ---- save and load ---- */

/* TopK guesses cut-offs from evenly spaced rows. Here these are along single latents, far above what the others reach,
 * and there is no room for the others' lists without cut-offs. */
static void test_misled_guess(void)
{
    enum { W = 16, LATENTS = 2048, ROWS = 1600, SAMPLE = 48 };
    static float rows[ROWS * W], enc[LATENTS * W];
    for (int screen = 0; screen < 2; screen++) {
        qsae_train_stats s;
        qsae_error e = {0};
        start(QSAE_TRAIN_TOPK);
        options.d_in = W;
        options.d_sae = LATENTS;
        options.max_rows = ROWS;
        options.k = 5;
        options.no_screen = !screen;
        qsae_trainer *t = make(&options);
        CHECK(qsae_trainer_get(t, QSAE_PART_ENC, 0, LATENTS, enc, NULL) == QSAE_OK);
        draw_rows(rows, ROWS, W, 3);
        for (int i = 0; i < ROWS; i++)
            rows[i * W] += 30; /* mostly one direction, which few latents have */
        for (int i = 0; i < LATENTS; i++)
            enc[i * W] = i < 8 ? 0.4f : enc[i * W] * 0.01f;
        CHECK(qsae_trainer_set(t, QSAE_PART_ENC, 0, LATENTS, enc, NULL) == QSAE_OK);
        for (int i = 0; i < ROWS; i++) {
            int sampled = 0;
            for (int j = 0; j < SAMPLE; j++)
                sampled |= i == (2 * j + 1) * ROWS / (2 * SAMPLE);
            if (!sampled)
                rows[i * W] = 0;
        }
        if (!CHECK(qsae_trainer_step(t, rows, NULL, ROWS, &s, &e) == QSAE_OK))
            fprintf(stderr, "    %s\n", e.text);
        CHECK(s.l0 > 4.9 && s.l0 <= 5);
        qsae_trainer_destroy(t);
    }
}

static void test_resume(void)
{
    for (int arch = 0; arch < 4; arch++) {
        train_options((qsae_train_arch)arch);
        options.aux_coefficient = arch ? 0.5f : 0;
        options.l0_coefficient = 0.1f;
        options.threshold_init = 0.5f;
        options.l0_warmup = 5;
        options.steps = 8;
        options.lr_decay = 3;
        bytes whole = train(options, 6, 1, NULL);
        for (size_t cut = 1; cut < 6; cut++) {
            bytes part = train(options, cut, 1, NULL);
            qsae_trainer *t = make(&options);
            static float rows[101 * 72];
            CHECK(qsae_trainer_load(t, take, &part, NULL) == QSAE_OK);
            CHECK(part.at == part.size);
            for (size_t i = cut; i < 6; i++) {
                size_t n = i % 3 == 2 ? 96 : 101;
                draw_rows(rows, n, 72, 1 + i);
                CHECK(qsae_trainer_step(t, rows, NULL, n, NULL, NULL) == QSAE_OK);
            }
            bytes b = saved(t);
            CHECK(b.size == whole.size && memcmp(b.data, whole.data, b.size) == 0);
            free(b.data);
            free(part.data);
            qsae_trainer_destroy(t);
        }
        free(whole.data);
    }
}

static qsae_status try_load(qsae_trainer *t, bytes b, qsae_error *e)
{
    b.at = 0;
    memset(e, 0, sizeof *e);
    return qsae_trainer_load(t, take, &b, e);
}

static void test_bad_states(void)
{
    train_options(QSAE_TRAIN_MATRYOSHKA);
    options.d_sae = 40;
    prefixes[0] = 8, prefixes[1] = 20, prefixes[2] = 40;
    qsae_error e;
    bytes good = train(options, 2, 1, NULL), bad = good;
    qsae_trainer *t = make(&options);
    float rows[2 * 72] = {1};
    for (size_t n = 0; n < good.size;
         n += n < 1400 ? 7 : 1031) { /* cut short: in the options, or later */
        bad.size = n;
        CHECK(try_load(t, bad, &e) == QSAE_E_TRUNC && e.text[0]);
    }
    CHECK(qsae_trainer_step(t, rows, NULL, 2, NULL, &e) == QSAE_E_STATE);
    CHECK(qsae_trainer_save(t, put, &bad, &e) == QSAE_E_STATE);
    CHECK(try_load(t, good, &e) == QSAE_OK);
    CHECK(qsae_trainer_step(t, rows, NULL, 2, NULL, &e) == QSAE_OK);
    bad = good;
    bad.data = malloc(good.size);
    for (size_t at = 0; at < good.size;
         at += at < 1400 ? 3 : 1031) { /* one bit another */
        memcpy(bad.data, good.data, good.size);
        bad.data[at] ^= 4;
        qsae_status st = try_load(t, bad, &e);
        CHECK(st == QSAE_E_FORMAT || st == QSAE_E_VERSION || st == QSAE_E_MISMATCH);
    }
    CHECK(try_load(t, good, &e) == QSAE_OK);
    bytes again = saved(t);
    CHECK(again.size == good.size && memcmp(again.data, good.data, good.size) == 0);
    again.size = 0;
    again.stop = 5000;
    CHECK(qsae_trainer_save(t, put, &again, &e) == QSAE_E_IO);
    qsae_trainer_destroy(t);
    /* other options, each named */
    qsae_trainer_options same = options;
    for (int i = 0; i < 7; i++) {
        static const char *const names[7] = {"d_sae", "lr", "prefix",  "prefix",
                                             "seed",  "k",  "scale_in"};
        options = same;
        if (i == 0)
            options.d_sae = prefixes[2] = 41;
        if (i == 1)
            options.lr *= 2;
        if (i == 2)
            prefixes[1] = 21;
        if (i == 3)
            weights[1] = 0.75f;
        if (i == 4)
            options.seed = 1;
        if (i == 5)
            options.k = 4.25;
        if (i == 6)
            options.scale_in = 2;
        t = make(&options);
        CHECK(try_load(t, good, &e) == QSAE_E_MISMATCH && strstr(e.text, names[i]));
        CHECK(qsae_trainer_step(t, rows, NULL, 2, NULL, &e) == QSAE_OK); /* untouched */
        qsae_trainer_destroy(t);
        prefixes[1] = 20, prefixes[2] = 40, weights[1] = 0.5f;
    }
    free(again.data);
    free(bad.data);
    free(good.data);
}

/* ---- export ---- */

/* What the exported parts compute for a raw row, and which features fire, against the trainer's own parts. */
static void check_export(const qsae_trainer *t, const float *raw, size_t n)
{
    static params p;
    static float enc[M * D], dec[M * D], b_enc[M], theta[M], c[D], average;
    size_t d = options.d_in, d_y = options.d_out ? options.d_out : d, differ = 0,
           fired = 0;
    double worst = 0;
    get_params(t, 0, &p);
    int jump = qsae_trainer_activation(t) == QSAE_ACT_JUMPRELU;
    CHECK(jump == (options.arch != QSAE_TRAIN_TOPK));
    CHECK(qsae_trainer_export(t, QSAE_PART_ENC, 0, M, enc, NULL) == QSAE_OK);
    CHECK(qsae_trainer_export(t, QSAE_PART_DEC, 0, M, dec, NULL) == QSAE_OK);
    CHECK(qsae_trainer_export(t, QSAE_PART_B_ENC, 0, M, b_enc, NULL) == QSAE_OK);
    CHECK(qsae_trainer_export(t, QSAE_PART_B_DEC, 0, d_y, c, NULL) == QSAE_OK);
    CHECK(qsae_trainer_export(t, QSAE_PART_THETA, 0, M, theta, NULL) ==
          (jump ? QSAE_OK : QSAE_E_ARG));
    if (jump && options.arch != QSAE_TRAIN_JUMPRELU)
        CHECK(qsae_trainer_get(t, QSAE_PART_THETA, 0, 1, &average, NULL) == QSAE_OK &&
              average > 0);
    d_out = d_y;
    memcpy(x, raw, n * d * sizeof *x);
    for (int i = 0; i < M; i++) { /* unit norm, where the selection allows it */
        double s = 0;
        for (size_t j = 0; j < d_y; j++)
            s += (double)dec[(size_t)i * d_y + j] * (double)dec[(size_t)i * d_y + j];
        CHECK(!jump || fabs(s - 1) < 1e-6);
    }
    for (size_t b = 0; b < n; b++) {
        double key[M], key_raw[M], z[M], z_raw[M], y0[D] = {0}, y1[D] = {0},
                                                   size = 1e-9;
        int on[M], on_raw[M];
        for (int i = 0; i < M; i++) {
            double norm = norm_of(&p, i);
            z[i] = z_of(&p, (int)b, i);
            z_raw[i] = (double)b_enc[i];
            for (size_t j = 0; j < d; j++)
                z_raw[i] += (double)enc[(size_t)i * d + j] * (double)raw[b * d + j];
            key[i] = options.no_rescale ? z[i] : z[i] * norm;
            key_raw[i] = z_raw[i];
            on[i] = key[i] > (options.arch == QSAE_TRAIN_JUMPRELU ? p.theta[i]
                                                                  : (double)average);
            if (options.arch == QSAE_TRAIN_JUMPRELU)
                on[i] = z[i] > p.theta[i];
            on_raw[i] = jump && z_raw[i] > (double)theta[i];
        }
        if (!jump)
            mark(key, M, (int)options.k, 0, on),
                mark(key_raw, M, (int)options.k, 0, on_raw);
        for (int i = 0; i < M; i++) {
            differ += (size_t)(on[i] != on_raw[i]);
            fired += (size_t)on[i];
            for (size_t j = 0; j < d_y; j++) {
                y0[j] += on[i] ? z[i] * p.dec[i][j] : 0;
                y1[j] += on[i] ? z_raw[i] * (double)dec[(size_t)i * d_y + j] : 0;
            }
        }
        for (size_t j = 0; j < d_y; j++) {
            double want = (y0[j] + p.c[j]) / scale_out(),
                   off = fabs(want - (y1[j] + (double)c[j]));
            size = fabs(want) > size ? fabs(want) : size;
            worst = off / size > worst ? off / size : worst;
        }
    }
    CHECK(differ == 0);
    CHECK(fired > n);
    if (!CHECK(worst < 1e-5))
        fprintf(stderr, "    arch %d: off by %.2g\n", (int)options.arch, worst);
}

static void test_export(void)
{
    static float raw[B * D];
    for (int arch = 0; arch < 4; arch++)
        for (int kind = 0; kind < 4; kind++) {
            start((qsae_train_arch)arch);
            prefixes[0] = 8, prefixes[1] = 20, prefixes[2] = M;
            options.d_sae = M;
            options.max_rows = B;
            options.no_rescale = kind & 1;
            if (kind >= 2) {
                options.scale_in = 0.37f;
                options.scale_out = 1.9f;
                options.no_b_dec_input = 1;
                options.d_out = D_OUT;
            } else {
                options.scale_in = 3.25f;
            }
            seed = 5;
            fill(raw, sizeof raw / sizeof *raw, 0.4);
            fill(y, sizeof y / sizeof *y, 0.4);
            qsae_trainer *t = make(&options);
            disturb(t);
            for (int i = 0; i < 30; i++)
                CHECK(qsae_trainer_step(t, raw, kind >= 2 ? y : NULL, B, NULL, NULL) ==
                      QSAE_OK);
            check_export(t, raw, B);
            qsae_trainer_destroy(t);
        }
}

/* ---- what is refused ---- */

static void refuse(qsae_trainer_options o, qsae_status status, const char *word)
{
    qsae_error e = {0};
    qsae_trainer *t = (qsae_trainer *)&o;
    CHECK(qsae_trainer_size(&o, &e) == 0 && e.status == status);
    memset(&e, 0, sizeof e);
    CHECK(qsae_trainer_create(&o, &t, &e) == status && t == (qsae_trainer *)&o);
    if (!CHECK(strstr(e.text, word) != NULL))
        fprintf(stderr, "    \"%s\" lacks \"%s\"\n", e.text, word);
}

#define REFUSE(field, value, word)        \
    do {                                  \
        qsae_trainer_options o = options; \
        o.field = value;                  \
        refuse(o, QSAE_E_ARG, word);      \
    } while (0)

static void *no_memory(void *user, size_t size, size_t align)
{
    (void)align;
    *(size_t *)user = size;
    return NULL;
}

static void release_nothing(void *user, void *p, size_t size)
{
    (void)user, (void)p, (void)size;
}

static void test_bad_options(void)
{
    train_options(QSAE_TRAIN_JUMPRELU);
    REFUSE(d_in, 0, "d_in");
    REFUSE(d_in, SIZE_MAX, "d_in");
    REFUSE(d_sae, 0, "d_sae");
    REFUSE(d_sae, SIZE_MAX / 2, "d_sae");
    REFUSE(max_rows, SIZE_MAX, "max_rows");
    REFUSE(d_out, 71, "no_b_dec_input");
    REFUSE(arch, (qsae_train_arch)4, "arch");
    REFUSE(arch, (qsae_train_arch)-1, "arch");
    REFUSE(sparsity, (qsae_train_sparsity)9, "sparsity");
    REFUSE(sparsity, QSAE_TRAIN_TARGET, "l0_target");
    REFUSE(l0_coefficient, -1.0f, "l0_coefficient");
    REFUSE(l0_coefficient, NAN, "l0_coefficient");
    REFUSE(bandwidth, -1.0f, "bandwidth");
    REFUSE(threshold_init, -1.0f, "threshold_init");
    REFUSE(lr, INFINITY, "lr");
    REFUSE(lr, NAN, "lr");
    REFUSE(eps, -1e-8f, "eps");
    REFUSE(clip, -1.0f, "clip");
    REFUSE(scale_in, -1.0f, "scale_in");
    REFUSE(scale_out, NAN, "scale_out");
    REFUSE(decoder_norm, -1.0f, "decoder_norm");
    REFUSE(n_prefixes, 1, "n_prefixes");
    REFUSE(n_threads, -1, "n_threads");
    REFUSE(n_threads, 5000, "n_threads");
    REFUSE(isa, (qsae_isa)99, "isa");
    REFUSE(lr_decay, 5, "lr_decay");
    options.has_betas = 1;
    REFUSE(beta1, 1.0f, "beta1");
    REFUSE(beta2, -0.5f, "beta2");
    options.unit_decoder = 1;
    REFUSE(decoder_norm, 0.5f, "decoder_norm");
    train_options(QSAE_TRAIN_TOPK);
    REFUSE(k, 0, "k is");
    REFUSE(k, 4.5, "whole");
    REFUSE(k, 301, "k is");
    REFUSE(k, NAN, "k is");
    REFUSE(aux_coefficient, -1.0f, "aux_coefficient");
    train_options(QSAE_TRAIN_MATRYOSHKA);
    REFUSE(n_prefixes, 0, "n_prefixes");
    REFUSE(n_prefixes, 65, "n_prefixes");
    REFUSE(n_prefixes, 2, "last prefix");
    REFUSE(prefixes, NULL, "n_prefixes");
    prefixes[1] = prefixes[0];
    REFUSE(k, 4, "prefix 1");
    prefixes[1] = 130;
    weights[0] = -1;
    REFUSE(k, 4, "weight");
    weights[0] = 1;
    /* sizes: what is asked for is what size() says; too much is an error, not a crash */
    size_t asked = 0;
    qsae_error e;
    qsae_trainer *t;
    options.allocator.alloc = no_memory;
    options.allocator.release = release_nothing;
    options.allocator.user = &asked;
    CHECK(qsae_trainer_create(&options, &t, &e) == QSAE_E_NOMEM &&
          asked == qsae_trainer_size(&options, NULL));
    options.d_in = (size_t)1 << 24;
    options.d_sae = prefixes[2] = (size_t)1 << 28;
    options.max_rows = (size_t)1 << 20;
    options.n_threads = 1024;
    qsae_status st = qsae_trainer_create(&options, &t, &e);
    CHECK(st == QSAE_E_NOMEM || st == QSAE_E_LIMIT);
    options.allocator.release = NULL;
    CHECK(qsae_trainer_create(&options, &t, &e) == QSAE_E_ARG);
    CHECK(qsae_trainer_create(NULL, &t, &e) == QSAE_E_ARG &&
          qsae_trainer_size(NULL, &e) == 0);
    qsae_trainer_destroy(NULL);
    prefixes[2] = 300;
}

static void test_bad_rows(void)
{
    static float rows[101 * 72];
    qsae_error e;
    train_options(QSAE_TRAIN_BATCHTOPK);
    qsae_trainer *t = make(&options);
    draw_rows(rows, 101, 72, 3);
    CHECK(qsae_trainer_step(t, rows, NULL, 101, NULL, &e) == QSAE_OK);
    bytes before = saved(t);
    CHECK(qsae_trainer_step(t, rows, NULL, 0, NULL, &e) == QSAE_E_ARG);
    CHECK(qsae_trainer_step(t, NULL, NULL, 5, NULL, &e) == QSAE_E_ARG);
    CHECK(qsae_trainer_step(NULL, rows, NULL, 5, NULL, &e) == QSAE_E_ARG);
    CHECK(qsae_trainer_step(t, rows, NULL, 102, NULL, &e) == QSAE_E_LIMIT);
    static const float bad[3] = {NAN, INFINITY,
                                 3e38f}; /* the last: finite, but its square is not */
    for (int i = 0; i < 3; i++) {
        float was = rows[50 * 72 + 71];
        rows[50 * 72 + 71] = bad[i];
        CHECK(qsae_trainer_step(t, rows, NULL, 101, NULL, &e) == QSAE_E_NUM &&
              e.text[0]);
        rows[50 * 72 + 71] = was;
    }
    bytes after = saved(t);
    CHECK(before.size == after.size &&
          memcmp(before.data, after.data, after.size) == 0);
    float one[72] = {NAN};
    CHECK(qsae_trainer_set(t, QSAE_PART_ENC, 0, 1, one, &e) == QSAE_E_NUM);
    one[0] = -1;
    CHECK(qsae_trainer_set(t, QSAE_PART_ENC_V, 0, 1, one, &e) == QSAE_E_ARG);
    CHECK(qsae_trainer_set(t, QSAE_PART_FIRED, 0, 1, one, &e) == QSAE_E_ARG);
    CHECK(qsae_trainer_set(t, QSAE_PART_THETA, 0, 1, one, &e) == QSAE_E_ARG);
    CHECK(qsae_trainer_get(t, QSAE_PART_ENC, 300, 1, one, &e) == QSAE_E_ARG);
    CHECK(qsae_trainer_get(t, QSAE_PART_THETA_M, 0, 1, one, &e) == QSAE_E_ARG);
    CHECK(qsae_trainer_get(t, (qsae_train_part)-1, 0, 1, one, &e) == QSAE_E_ARG);
    CHECK(qsae_trainer_get(t, QSAE_PART_COUNT, 0, 1, one, &e) == QSAE_E_ARG);
    CHECK(qsae_trainer_get(t, QSAE_PART_ENC, 1, SIZE_MAX, one, &e) == QSAE_E_ARG);
    CHECK(qsae_trainer_export(t, QSAE_PART_ENC_M, 0, 1, one, &e) == QSAE_E_ARG);
    CHECK(qsae_trainer_export(t, QSAE_PART_DEC, 299, 2, one, &e) == QSAE_E_ARG);
    qsae_trainer_destroy(t);
    free(before.data);
    free(after.data);
}

/* Inputs on which every row is zero, or the same, or reconstructed perfectly */
static void test_degenerate(void)
{
    static float rows[101 * 72];
    for (int arch = 0; arch < 4; arch++)
        for (int kind = 0; kind < 3; kind++) {
            qsae_train_stats s;
            train_options((qsae_train_arch)arch);
            options.threshold_init = 0.2f;
            options.aux_coefficient = arch ? 1 : 0;
            qsae_trainer *t = make(&options);
            memset(rows, 0, sizeof rows);
            for (size_t i = 0; i < 101 * 72 && kind; i++)
                rows[i] = (float)((i % 72) % 5) - 2;
            if (kind == 2)
                CHECK(qsae_trainer_set(t, QSAE_PART_B_DEC, 0, 72, rows, NULL) ==
                      QSAE_OK);
            for (int i = 0; i < 4; i++) {
                qsae_error e = {0};
                if (!CHECK(qsae_trainer_step(t, rows, NULL, 101, &s, &e) == QSAE_OK))
                    fprintf(stderr, "    arch %d kind %d: %s\n", arch, kind, e.text);
                CHECK(s.loss >= 0 && s.loss < 1e6);
                if (kind != 1)
                    CHECK(s.mse == 0 && s.l0 == 0 &&
                          s.grad_norm == 0); /* nothing to learn */
                CHECK(s.ev == 0);            /* no variance */
            }
            CHECK(kind != 1 || s.l0 > 0);
            qsae_trainer_destroy(t);
        }
}

/* It learns: on rows of a dictionary, the loss falls, and the schedules are what the header says. */
static void test_learning(void)
{
    static float rows[101 * 72];
    for (int arch = 0; arch < 4; arch++) {
        qsae_train_stats s, first = {0};
        train_options((qsae_train_arch)arch);
        options.l0_coefficient = 0.5f;
        options.l0_warmup = 4;
        options.threshold_init = 0.1f;
        options.steps = 200;
        options.lr_decay = 50;
        options.lr_warmup = 10;
        options.lr = 5e-3f;
        qsae_trainer *t = make(&options);
        for (uint64_t i = 0; i < 200; i++) {
            draw_rows(rows, 101, 72, i);
            CHECK(qsae_trainer_step(t, rows, NULL, 101, &s, NULL) == QSAE_OK);
            if (!i)
                first = s;
            double lr = (double)options.lr;
            double want = i < 10    ? lr * (double)(i + 1) / 10
                          : i > 150 ? lr * (double)(200 - i) / 50
                                    : lr;
            CHECK(fabs(s.lr - want) < 1e-9 && s.step == i && s.n_rows == 101 &&
                  s.screened <= 1);
            CHECK(s.l0_coefficient == (arch ? 0 : i < 4 ? 0.5 * (double)i / 4 : 0.5));
            if (arch == QSAE_TRAIN_BATCHTOPK)
                CHECK(s.l0 <= 4.5);
            if (arch == QSAE_TRAIN_TOPK)
                CHECK(s.l0 <= 5);
        }
        CHECK(s.mse < 0.6 * first.mse && s.ev > 0.3);
        CHECK(s.l0_coefficient >= 0 && s.grad_norm > 0);
        qsae_trainer_destroy(t);
    }
}

int main(void)
{
    const char *emulator = getenv(
        "RUN"); /* under it, minutes; what it shows is the same on all machines */
    if (!emulator || !*emulator)
        test_gradients();
    test_same_bits();
    test_screen_bound();
    test_rounds();
    test_misled_guess();
    test_resume();
    test_bad_states();
    test_export();
    test_bad_options();
    test_bad_rows();
    test_degenerate();
    test_learning();
    return test_done("test_trainer");
}
