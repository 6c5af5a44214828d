/* Results as JSON (see eval.h). Every number stands under the name of its formula, which
 * "formulas" spells out; what cannot be had is null.
 *     format     "qsae-eval-1"
 *     settings   fingerprint of files and options, 16 hex digits
 *     slice      [i, n], in the files of --only
 *     model      weights, n_layers, d_model, file, saes (the file's name), seed
 *     data       sources, sequences, tokens, dropped, context, by_class {class: tokens}
 *     original   {all or class: {labels, CE}} of the model as it is
 *     excluded   the rule for sinks, in words
 *     skipped    joint splices that could not be made, and why; or null
 *     formulas   {name: text}
 *     units      a list, one line each:
 *       kind       sae, transcoder, random, pca, joint
 *       name, site_in, layer_in, site, layer (written), d_in, d_out, d_sae or rank,
 *       activation, k, median_norm; of a joint splice name and members
 *       groups     {kept, all, text, system, user, assistant, template: metrics}; a class
 *                  that has no tokens is left out
 *       features   n, dead, dead_with_sinks, high_density_*, histogram (saes only)
 *       self_test_delta_loss (saes only)
 *       ci95       {metric: [low, high]} */

#define _POSIX_C_SOURCE 200809L

#include "eval.h"

#include <math.h>
#include <stdlib.h>

#include "text.h"

#define N_BINS 28 /* of the histogram of densities: quarter decades from 1e-7 to 1 */

static const struct {
    const char *name, *text;
} formulas[] = {
    {"tokens", "tokens that the activation metrics are over"},
    {"L0", "mean number of active features"},
    {"MSE", "mean over tokens of |e|^2, e = z - x, summed over the coordinates"},
    {"MSE_coord", "MSE divided by the width"},
    {"FVU_mean", "sum |e|^2 / sum |x - mean x|^2, the mean over the same tokens"},
    {"EV_mean", "1 - FVU_mean"},
    {"FVE_var", "1 - sum_j Var(e_j) / sum_j Var(x_j): a constant error is free"},
    {"FVU_zero", "sum |e|^2 / sum |x|^2: against 0, not against the mean"},
    {"nMSE", "mean of |e|^2 / |x|^2"},
    {"EV_legacy", "1 - mean of |e|^2 / |x - m|^2, m the mean of the kept tokens"},
    {"cosine", "mean of x.z / (|x| |z|)"},
    {"L2_ratio", "mean of |z| / |x|"},
    {"norm_ratio", "sum |z| / sum |x|"},
    {"bias", "E|z|^2 / E[x.z]: 1 is unbiased, less is shrinkage"},
    {"mean_f", "mean value of an active feature"},
    {"labels", "tokens with a next one, which the metrics below are over"},
    {"CE_orig", "mean of -log p(next token) of the model as it is"},
    {"CE_spliced", "the same with the rows replaced by their reconstructions"},
    {"CE_zero", "the same with the rows replaced by 0"},
    {"CE_mean", "the same with the rows replaced by the mean of the kept tokens"},
    {"delta_loss", "CE_spliced - CE_orig, nats"},
    {"delta_loss_percent", "100 delta_loss / CE_orig"},
    {"recovered_zero", "(CE_zero - CE_spliced) / (CE_zero - CE_orig)"},
    {"recovered_mean", "(CE_mean - CE_spliced) / (CE_mean - CE_orig)"},
    {"KL", "mean of sum_v p (log p - log q), p of the model as it is, q spliced"},
    {"KL_zero", "the same, q with the rows replaced by 0"},
    {"KL_mean", "the same, q with the rows replaced by their mean"},
    {"KL_score_zero", "(KL_zero - KL) / KL_zero"},
    {"KL_score_mean", "(KL_mean - KL) / KL_mean"},
    {"top1", "share of labels for which both have the same most likely token"},
    {"dead", "share of the features that no kept token fires"},
    {"high_density_0.1",
     "share of the features that more than 10 % of kept tokens fire"},
    {"high_density_0.01",
     "share of the features that more than 1 % of kept tokens fire"},
    {"histogram",
     "features by log10 of the share of kept tokens that fire them, bins of "
     "0.25 from -7 to 0; dead ones are in no bin"},
    {"self_test_delta_loss",
     "change of the loss of the first sequence with x replaced by "
     "z + (x - z)"},
    {"ci95",
     "percentile bootstrap over sequences, 1000 resamples, kept tokens; EV_mean "
     "with the mean held fixed"},
};

static void number(FILE *f, const char *key, double v)
{
    if (isfinite(v))
        fprintf(f, "\"%s\":%.12g", key, v);
    else
        fprintf(f, "\"%s\":null", key);
}

static void string(FILE *f, const char *key, const char *s)
{
    fprintf(f, "\"%s\":", key);
    text_json(f, s, strlen(s));
}

/* A file's name without its folders, which are of no interest elsewhere. */
static const char *base(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash && slash[1] ? slash + 1 : path;
}

/* ------------------------------------------------------------------------- metrics */

typedef struct predictions {
    double n, orig, spliced, zero, mean, delta, percent, recovered_zero, recovered_mean,
        kl, kl_zero, kl_mean, score_zero, score_mean, top1;
} predictions;

/* (a - b) / (a - c) of means of sums */
static double recovered(double a, double b, double c)
{
    return a > c || a < c ? (a - b) / (a - c) : NAN;
}

static predictions predict(const double *s)
{
    double n = s[P_N];
    predictions p = {n,
                     s[P_ORIG] / n,
                     s[P_SPLICED] / n,
                     s[P_ZERO] / n,
                     s[P_MEAN] / n,
                     (s[P_SPLICED] - s[P_ORIG]) / n,
                     100 * (s[P_SPLICED] - s[P_ORIG]) / s[P_ORIG],
                     recovered(s[P_ZERO], s[P_SPLICED], s[P_ORIG]),
                     recovered(s[P_MEAN], s[P_SPLICED], s[P_ORIG]),
                     s[P_KL] / n,
                     s[P_KL_ZERO] / n,
                     s[P_KL_MEAN] / n,
                     recovered(s[P_KL_ZERO], s[P_KL], 0),
                     recovered(s[P_KL_MEAN], s[P_KL], 0),
                     s[P_TOP1] / n};
    return p;
}

static void put_rows(FILE *out, const double *sums, size_t d)
{
    fidelity f;
    fidelity_result(sums, d, &f);
    const struct {
        const char *key;
        double v;
    } list[] = {{"tokens", f.n},
                {"L0", f.l0},
                {"MSE", f.mse},
                {"MSE_coord", f.mse_coord},
                {"FVU_mean", f.fvu_mean},
                {"EV_mean", f.ev_mean},
                {"FVE_var", f.fve_var},
                {"FVU_zero", f.fvu_zero},
                {"nMSE", f.nmse},
                {"EV_legacy", f.ev_legacy},
                {"cosine", f.cosine},
                {"L2_ratio", f.l2_ratio},
                {"norm_ratio", f.norm_ratio},
                {"bias", f.bias},
                {"mean_f", f.mean_f}};
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        number(out, list[i].key, list[i].v);
        fputc(',', out);
    }
}

static void put_predictions(FILE *out, const double *sums)
{
    predictions p = predict(sums);
    const struct {
        const char *key;
        double v;
    } list[] = {{"labels", p.n},
                {"CE_orig", p.orig},
                {"CE_spliced", p.spliced},
                {"CE_zero", p.zero},
                {"CE_mean", p.mean},
                {"delta_loss", p.delta},
                {"delta_loss_percent", p.percent},
                {"recovered_zero", p.recovered_zero},
                {"recovered_mean", p.recovered_mean},
                {"KL", p.kl},
                {"KL_zero", p.kl_zero},
                {"KL_mean", p.kl_mean},
                {"KL_score_zero", p.score_zero},
                {"KL_score_mean", p.score_mean},
                {"top1", p.top1}};
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        if (i)
            fputc(',', out);
        number(out, list[i].key, list[i].v);
    }
}

static void put_groups(FILE *out, const eval *e, const eval_unit *u)
{
    size_t d = eval_unit_d(e, u), size = fidelity_size(d);
    size_t rows = u->kind == UNIT_JOINT ? 0 : N_GROUPS * size;
    const double *sums = e->sums + u->sums;
    int first = 1;
    fputs("\"groups\":{", out);
    for (int g = 0; g < N_GROUPS; g++) {
        if (!(sums[rows + (size_t)g * P_SUMS] > 0) && g >= GROUP_CLASS)
            continue; /* no such tokens */
        fprintf(out, "%s\"%s\":{", first ? "" : ",", eval_group_name(g));
        first = 0;
        if (rows)
            put_rows(out, sums + (size_t)g * size, d);
        put_predictions(out, sums + rows + (size_t)g * P_SUMS);
        fputc('}', out);
    }
    fputc('}', out);
}

/* ------------------------------------------------------------------------- features */

/* The bin of a density: comparisons only, as log10 may differ between machines. */
static size_t bin_of(double density)
{
    static const double decade[] = {1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1};
    static const double quarter[] = {1, 1.7782794100389228, 3.1622776601683795,
                                     5.6234132519034907};
    size_t bin = N_BINS - 1;
    while (bin > 0 && density < decade[bin / 4] * quarter[bin % 4])
        bin--;
    return bin;
}

static void put_features(FILE *out, const eval *e, const eval_unit *u)
{
    size_t n = (size_t)e->members[u->members[0]].info.d_sae;
    const double *kept = e->sums + u->fired, *all = kept + n;
    const eval_place *p = &e->places[e->members[u->members[0]].place];
    double tokens = e->sums[p->sums];
    size_t bins[N_BINS] = {0}, dead = 0, never = 0, tenth = 0, hundredth = 0;
    for (size_t i = 0; i < n; i++) {
        never += !(all[i] > 0);
        if (!(kept[i] > 0)) {
            dead++;
            continue;
        }
        double density = kept[i] / tokens;
        tenth += density > 0.1;
        hundredth += density > 0.01;
        bins[bin_of(density)]++;
    }
    fprintf(out, ",\"features\":{\"n\":%zu,", n);
    number(out, "dead", (double)dead / (double)n);
    fprintf(out, ",\"dead_with_sinks\":");
    fprintf(out, "%.12g,", (double)never / (double)n);
    number(out, "high_density_0.1", (double)tenth / (double)n);
    fputc(',', out);
    number(out, "high_density_0.01", (double)hundredth / (double)n);
    fputs(",\"histogram\":[", out);
    for (size_t i = 0; i < N_BINS; i++)
        fprintf(out, "%s%zu", i ? "," : "", bins[i]);
    fputs("]}", out);
}

/* ------------------------------------------------------------------------ bootstrap */

enum {
    B_L0,
    B_MSE,
    B_EV,
    B_COSINE,
    B_CE,
    B_DELTA,
    B_ZERO,
    B_MEAN,
    B_KL,
    B_TOP1,
    N_BOOT
};

static void resampled(const double *s, double *v)
{
    predictions p = predict(s + S_PREDICTIONS);
    v[B_L0] = s[S_L0] / s[S_N];
    v[B_MSE] = s[S_ERROR] / s[S_N];
    v[B_EV] = 1 - s[S_ERROR] / s[S_ABOUT];
    v[B_COSINE] = s[S_COSINE] / s[S_N];
    v[B_CE] = p.spliced;
    v[B_DELTA] = p.delta;
    v[B_ZERO] = p.recovered_zero;
    v[B_MEAN] = p.recovered_mean;
    v[B_KL] = p.kl;
    v[B_TOP1] = p.top1;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The same sequences are drawn for every unit. v [N_BOOT, RESAMPLES] */
static void resample(const eval *e, const eval_unit *u, double *v)
{
    uint64_t state = e->o->seed;
    for (size_t r = 0; r < RESAMPLES; r++) {
        double sums[S_SUMS] = {0}, one[N_BOOT];
        for (size_t i = 0; i < e->n_seq; i++) {
            size_t at = (size_t)(eval_next_random(&state) % e->n_seq);
            const double *seq = e->seq + at * e->seq_width + u->seq;
            for (size_t k = 0; k < S_SUMS; k++)
                sums[k] += seq[k];
        }
        resampled(sums, one);
        for (size_t k = 0; k < N_BOOT; k++)
            v[k * RESAMPLES + r] = one[k];
    }
}

static void put_interval(FILE *out, const char *key, double *v)
{
    fprintf(out, "\"%s\":", key);
    for (size_t i = 0; i < RESAMPLES; i++)
        if (!isfinite(v[i])) {
            fputs("null", out);
            return;
        }
    qsort(v, RESAMPLES, sizeof *v, by_value);
    fprintf(out, "[%.12g,%.12g]", v[RESAMPLES / 40], v[RESAMPLES - 1 - RESAMPLES / 40]);
}

static int put_intervals(FILE *out, const eval *e, const eval_unit *u)
{
    static const char *const keys[N_BOOT] = {
        "L0",         "MSE",        "EV_mean",        "cosine",
        "CE_spliced", "delta_loss", "recovered_zero", "recovered_mean",
        "KL",         "top1"};
    double *v = malloc(N_BOOT * RESAMPLES * sizeof *v);
    if (!v)
        return -1;
    resample(e, u, v);
    fputs(",\"ci95\":{", out);
    for (size_t k = u->kind == UNIT_JOINT ? B_CE : 0, first = k; k < N_BOOT; k++) {
        if (k > first)
            fputc(',', out);
        put_interval(out, keys[k], v + k * RESAMPLES);
    }
    fputc('}', out);
    free(v);
    return 0;
}

/* ----------------------------------------------------------------------------- units */

static const char *kind_name(const eval *e, const eval_unit *u)
{
    static const char *const names[] = {"sae", "random", "pca", "joint"};
    return u->kind == UNIT_SAE && e->members[u->members[0]].info.is_transcoder
               ? "transcoder"
               : names[u->kind];
}

static void put_member(FILE *out, const eval *e, const eval_unit *u)
{
    const eval_member *m = &e->members[u->members[0]];
    const eval_place *p = &e->places[m->place];
    const qsae_sae_info *s = &m->info;
    string(out, "name", s->name);
    fprintf(out,
            ",\"site_in\":\"%s\",\"layer_in\":%d,\"site\":\"%s\",\"layer\":%d,"
            "\"d_in\":%d,\"d_out\":%d,",
            qsae_site_name(s->site_in), (int)s->layer_in, qsae_site_name(s->site_out),
            (int)s->layer_out, (int)s->d_in, (int)s->d_out);
    if (u->kind == UNIT_PCA)
        fprintf(out, "\"rank\":%zu,", m->rank < p->n_basis ? m->rank : p->n_basis);
    else
        fprintf(out, "\"d_sae\":%d,", (int)s->d_sae);
    if (u->kind == UNIT_SAE)
        fprintf(out, "\"activation\":\"%s\",\"k\":%d,",
                qsae_activation_name(s->activation), (int)s->k);
    number(out, "median_norm", (double)e->spots[p->out].median);
    fputc(',', out);
}

static void put_members(FILE *out, const eval *e, const eval_unit *u)
{
    string(out, "name", u->name);
    fputs(",\"members\":[", out);
    for (size_t i = 0; i < u->n_members; i++) {
        const char *name = e->members[u->members[i]].info.name;
        if (i)
            fputc(',', out);
        text_json(out, name, strlen(name));
    }
    fputs("],", out);
}

static int put_unit(FILE *out, const eval *e, const eval_unit *u)
{
    fprintf(out, "{\"kind\":\"%s\",", kind_name(e, u));
    if (u->kind == UNIT_JOINT)
        put_members(out, e, u);
    else
        put_member(out, e, u);
    put_groups(out, e, u);
    if (u->kind == UNIT_SAE) {
        put_features(out, e, u);
        fputc(',', out);
        number(out, "self_test_delta_loss", e->sums[u->self + 1] / e->sums[u->self]);
    }
    if (put_intervals(out, e, u))
        return -1;
    fputc('}', out);
    return 0;
}

/* ----------------------------------------------------------------------------- whole */

static void put_data(FILE *out, const eval *e)
{
    fputs("\"data\":{\"sources\":[", out);
    for (size_t i = 0; i < e->o->n_data; i++) {
        const char *name = base(e->o->data[i]);
        if (i)
            fputc(',', out);
        text_json(out, name, strlen(name));
    }
    fprintf(out,
            "],\"sequences\":%llu,\"tokens\":%llu,\"dropped\":%llu,\"context\":%zu,"
            "\"by_class\":{",
            (unsigned long long)e->total_sequences, (unsigned long long)e->total_tokens,
            (unsigned long long)e->dropped, e->context);
    for (size_t i = 0; i < CORPUS_CLASSES; i++)
        fprintf(out, "%s\"%s\":%.0f", i ? "," : "", corpus_class_name((corpus_class)i),
                e->sums[e->at_classes + i]);
    fputs("}},\n\"original\":{", out);
    for (size_t i = 0; i <= CORPUS_CLASSES; i++) {
        const double *s = e->sums + e->at_orig + 2 * i;
        fprintf(out, "%s\"%s\":{\"labels\":%.0f,", i ? "," : "",
                i ? corpus_class_name((corpus_class)(i - 1)) : "all", s[0]);
        number(out, "CE", s[1] / s[0]);
        fputc('}', out);
    }
    fputs("},\n", out);
}

static void put_head(FILE *out, const eval *e)
{
    fprintf(out, "{\"format\":\"qsae-eval-1\",\n\"settings\":\"%016llx\",\n",
            (unsigned long long)e->fingerprint);
    fprintf(out, "\"slice\":[%lld,%lld],\n",
            e->o->n_slices ? (long long)e->o->slice : 1LL,
            e->o->n_slices ? (long long)e->o->n_slices : 1LL);
    fprintf(out, "\"model\":{\"weights\":\"%s\",\"n_layers\":%d,\"d_model\":%d,",
            e->info.weight_type, (int)e->info.n_layers, (int)e->info.d_model);
    string(out, "file", base(e->o->model));
    fputs(",", out);
    string(out, "saes", base(e->o->sae));
    fprintf(out, ",\"seed\":%llu},\n", (unsigned long long)e->o->seed);
    put_data(out, e);
    fprintf(
        out,
        "\"excluded\":\"the first token of every sequence, and tokens whose row is "
        "longer than %d times the median norm of its site: never replaced; only in the "
        "group all\",\n\"skipped\":",
        SINK_RATIO);
    if (e->skipped)
        text_json(out, e->skipped, strlen(e->skipped));
    else
        fputs("null", out);
    fputs(",\n\"formulas\":{", out);
    for (size_t i = 0; i < sizeof formulas / sizeof *formulas; i++) {
        fputs(i ? ",\n" : "\n", out);
        string(out, formulas[i].name, formulas[i].text);
    }
    fputs("},\n\"units\":[", out);
}

char *eval_json(const eval *e, size_t *len)
{
    char *text = NULL;
    int bad = 0;
    FILE *out = open_memstream(&text, len);
    if (!out)
        return NULL;
    put_head(out, e);
    for (size_t i = 0; i < e->n_units && !bad; i++) {
        fputs(i ? ",\n" : "\n", out);
        bad = put_unit(out, e, &e->units[i]);
    }
    fputs("\n]}\n", out);
    bad |= ferror(out);
    if (fclose(out) || bad) {
        free(text);
        return NULL;
    }
    return text;
}
