/* Folds what a family's reader found, and writes it: sae_source.h has the formulas. */

#include "sae_source.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK (1 << 18) /* elements read at once */

static int out_of_memory(sae_source *s)
{
    return err_set(s->err, s->cap, "out of memory");
}

static int in_file(sae_source *s)
{
    return err_prefix(s->err, s->cap, "%s", name_z(sae_file_name(s)).text);
}

static int stored_as(const tensor *t, tensor_type type)
{
    return !t->file || t->type == type;
}

/* ---- before the first byte is written ---- */

/* |D_i| of the stored rows into s->n. */
static int decoder_norms(sae_source *s)
{
    uint64_t F = s->record.d_sae, O = s->record.d_out;
    uint64_t step = BLOCK / O < 1 ? 1 : BLOCK / O;
    double *rows = malloc((size_t)(step * O) * sizeof *rows);
    int status = 0;
    s->n = malloc((size_t)F * sizeof *s->n);
    if (!rows || !s->n)
        status = out_of_memory(s);
    for (uint64_t at = 0; at < F && !status; at += step) {
        uint64_t n = F - at < step ? F - at : step;
        status = tensor_block_f64(&s->dec, at, n, 0, O, rows, s->err, s->cap);
        for (uint64_t i = 0; i < n && !status; i++) {
            double sum = 0;
            for (uint64_t j = 0; j < O; j++)
                sum += rows[i * O + j] * rows[i * O + j];
            s->n[at + i] = fmax(sqrt(sum), s->fold.floor);
            if (s->n[at + i] == 0.0 && s->fold.norms != NORMS_TO_THETA)
                status = err_set(s->err, s->cap,
                                 "tensor %s: the decoder row of feature %" PRIu64
                                 " is zero, and its norm is divided by",
                                 s->dec.name, at + i);
        }
    }
    free(rows);
    return status ? in_file(s) : 0;
}

/* n_i of s_dec D_i. A decoder that is normalized already is left alone: multiplying by
 * 1.0000001 would only move the last bits. */
static int use_norms(sae_source *s)
{
    sae_fold *f = &s->fold;
    double worst = 0;
    if (f->norms == NORMS_UNUSED)
        return 0;
    if (decoder_norms(s))
        return -1;
    int to_enc = f->norms == NORMS_TO_ENC || f->norms == NORMS_TO_SELECT;
    for (uint64_t i = 0; i < s->record.d_sae && to_enc; i++) {
        s->n[i] *= fabs(f->dec);
        worst = fmax(worst, fabs(s->n[i] - 1));
    }
    if (to_enc && worst <= f->slack) {
        free(s->n);
        s->n = NULL;
        f->norms = NORMS_UNUSED;
    }
    if (f->norms == NORMS_TO_SELECT) {
        s->record.activation = QSAE_ACT_TOPK_SCALED;
        qfile_meta_add(&s->lines, "folded.decoder_norms",
                       "features are selected by value times norm_i (%s)",
                       f->norms_name);
    } else if (f->norms == NORMS_TO_THETA)
        qfile_meta_add(&s->lines, "folded.decoder_norms", "theta_i /= norm_i (%s)",
                       f->norms_name);
    else
        qfile_meta_add(&s->lines, "folded.decoder_norms", "%s%s%s",
                       s->n ? "yes (" : "not needed: the decoder rows have norm 1",
                       s->n ? f->norms_name : "", s->n ? ")" : "");
    return 0;
}

/* What E_i and b_i are multiplied by beside the factors. */
static int scales_enc(const sae_source *s)
{
    return s->fold.norms == NORMS_TO_ENC || s->fold.norms == NORMS_TO_SELECT;
}

static double norm_of(const sae_source *s, uint64_t i)
{
    return scales_enc(s) ? s->n[i] : 1.0;
}

static int has_theta(const sae_source *s)
{
    return s->record.activation == QSAE_ACT_JUMPRELU;
}

/* theta'_i from theta_i */
static int fold_one_theta(sae_source *s, uint64_t i, double *x)
{
    const tensor *t = &s->theta;
    if (s->theta_is_log)
        *x = exp(*x);
    if (*x < 0 && !s->fold.gated_by_relu)
        return err_set(s->err, s->cap, "%s is %g, it cannot be below 0",
                       s->theta_is_number ? "the threshold" : t->name, *x);
    *x *= s->fold.theta;
    if (s->fold.norms != NORMS_TO_THETA)
        return 0;
    /* z_i n_i > theta_i, which is at least 0, is never so */
    *x = s->n[i] == 0 ? (double)FLT_MAX : *x / s->n[i];
    return 0;
}

/* Thresholds below 0 are more likely something else, such as their logarithms, than
 * thresholds: whoever converts has to say what they are. */
static int check_below(sae_source *s, const double *stored, uint64_t *below)
{
    uint64_t first = 0;
    if (s->theta_is_log || !s->fold.gated_by_relu)
        return 0;
    for (uint64_t i = s->theta.n; i-- > 0;)
        if (stored[i] < 0) {
            ++*below;
            first = i;
        }
    if (*below == 0 || s->o->negative_thresholds)
        return 0;
    return err_set(
        s->err, s->cap,
        "tensor %s: %" PRIu64 " of %" PRIu64 " are below 0, the first at %" PRIu64
        ": %g. Logarithms are not read as thresholds; if they are thresholds, "
        "--negative-thresholds zero makes these 0, which is how they act",
        name_z(s->theta.name).text, *below, s->theta.n, first, stored[first]);
}

/* How many features no input can make fire, their decoder rows being zero. */
static uint64_t count_dead(const sae_source *s)
{
    uint64_t dead = 0;
    for (uint64_t i = 0; i < s->record.d_sae && s->fold.norms == NORMS_TO_THETA; i++)
        dead += s->n[i] == 0;
    return dead;
}

/* theta' into s->t; says what was done. */
static int fold_thetas(sae_source *s)
{
    uint64_t below = 0, F = s->record.d_sae;
    int one = s->theta_is_number || s->theta.n == 1;
    double *stored = malloc((size_t)F * sizeof *stored);
    int status = 0;
    s->t = malloc((size_t)F * sizeof *s->t);
    if (!stored || !s->t)
        status = out_of_memory(s);
    if (!status && !s->theta_is_number)
        status = tensor_f64(&s->theta, 0, s->theta.n, stored, s->err, s->cap);
    if (!status && !s->theta_is_number)
        status = check_below(s, stored, &below);
    for (uint64_t i = 0; i < F && !status; i++) {
        double x = s->theta_is_number ? s->theta_number : stored[one ? 0 : i];
        status = fold_one_theta(s, i, &x);
        s->t[i] = x <= 0 ? 0 : (float)x; /* -0 too */
        if (!status && !isfinite(s->t[i]))
            status = err_set(
                s->err, s->cap, "%s: feature %" PRIu64 " does not fit in f32: %g",
                s->theta_is_number ? "the threshold" : s->theta.name, i, x);
    }
    free(stored);
    if (status)
        return in_file(s);
    if (count_dead(s) > 0)
        qfile_meta_add(&s->lines, "folded.zero_rows",
                       "%" PRIu64 " features whose decoder rows are zero never fire",
                       count_dead(s));
    if (one && F != 1)
        qfile_meta_add(&s->lines, "folded.threshold",
                       "one threshold for all features (%s)",
                       s->class_name ? s->class_name : s->family);
    else if (below > 0)
        qfile_meta_add(&s->lines, "folded.threshold",
                       "%" PRIu64 " below 0 became 0 (--negative-thresholds zero)",
                       below);
    else if (s->theta_is_log)
        qfile_meta_add(&s->lines, "folded.threshold", "exp of %s", s->theta.name);
    return 0;
}

/* The decoder rows' own factors into s->rows. */
static int load_rows(sae_source *s)
{
    size_t F = s->record.d_sae;
    if (!s->dec_rows.file)
        return 0;
    s->rows = malloc(F * sizeof *s->rows);
    if (!s->rows)
        return out_of_memory(s);
    return tensor_f64(&s->dec_rows, 0, F, s->rows, s->err, s->cap) ? in_file(s) : 0;
}

static int scales(const sae_source *s)
{
    return s->fold.enc != 1 || s->fold.dec != 1 || s->dec_rows.file || scales_enc(s);
}

static void choose_type(sae_source *s)
{
    int exact = stored_as(&s->enc, TENSOR_BF16) && stored_as(&s->dec, TENSOR_BF16) &&
                stored_as(&s->skip, TENSOR_BF16) && !scales(s);
    int rounded = s->enc.type == TENSOR_F64 || s->dec.type == TENSOR_F64 ||
                  (s->skip.file && s->skip.type == TENSOR_F64) || scales(s);
    s->type = s->o->type ? s->o->type : exact ? QSAE_TYPE_BF16 : QSAE_TYPE_F32;
    qfile_meta_add(&s->lines, "weights", "%s",
                   s->o->type == QSAE_TYPE_BF16 ? "rounded to bf16, nearest even"
                   : rounded                    ? "rounded once to f32"
                                                : "as stored");
}

/* "encoder *= 2, decoder *= 0.5 (why)" */
static void describe_factors(sae_source *s)
{
    const sae_fold *f = &s->fold;
    const struct {
        const char *what;
        double by;
    } list[] = {{"encoder", f->enc},
                {"encoder bias", f->bias},
                {"decoder", f->dec},
                {"decoder bias", f->out},
                {"threshold", has_theta(s) ? f->theta : 1}};
    char text[300] = "";
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        size_t used = strlen(text);
        if (list[i].by != 1)
            snprintf(text + used, sizeof text - used, "%s%s *= %.17g", used ? ", " : "",
                     list[i].what, list[i].by);
    }
    if (*text)
        qfile_meta_add(&s->lines, "folded.norm_scale", "%s (%s)", text, f->scale_name);
}

int sae_prepare(sae_source *s)
{
    size_t O = s->record.d_out;
    const sae_fold *f = &s->fold;
    s->record.flags = s->skip.file ? QSAE_SAE_SKIP : 0;
    s->c = calloc(O, sizeof *s->c);
    if (!s->c)
        return out_of_memory(s);
    if (s->b_dec.file && tensor_f64(&s->b_dec, 0, O, s->c, s->err, s->cap))
        return in_file(s);
    for (size_t j = 0; j < O; j++)
        s->c[j] *= f->out;
    if (use_norms(s) || load_rows(s) || (has_theta(s) && fold_thetas(s)))
        return -1;
    if (f->subtract)
        qfile_meta_add(&s->lines, "folded.b_dec", "b_enc -= W_enc . b_dec (%s)",
                       f->subtract_name);
    describe_factors(s);
    choose_type(s);
    return 0;
}

/* ---- matrices ---- */

/* What row i is multiplied by. */
typedef double (*row_factor)(const sae_source *s, uint64_t i);

static double enc_factor(const sae_source *s, uint64_t i)
{
    return s->fold.enc * norm_of(s, i);
}

static double dec_factor(const sae_source *s, uint64_t i)
{
    double n = s->fold.norms == NORMS_TO_ENC ? s->n[i] : 1.0;
    return s->fold.dec * (s->rows ? s->rows[i] : 1.0) / n;
}

static double no_factor(const sae_source *s, uint64_t i)
{
    (void)s, (void)i;
    return 1;
}

/* Rows of a matrix in double, times their factors. */
static int fill_rows(sae_source *s, const tensor *t, const qfile_part *p,
                     row_factor factor, float *out, char *err, size_t cap)
{
    uint64_t count = p->n_rows * p->n_cols;
    double *v = malloc((size_t)count * sizeof *v + 1);
    int status =
        v ? tensor_block_f64(t, p->row, p->n_rows, p->col, p->n_cols, v, err, cap)
          : err_set(err, cap, "out of memory");
    for (uint64_t i = 0; i < p->n_rows && !status; i++) {
        double by = factor(s, p->row + i);
        for (uint64_t j = 0; j < p->n_cols; j++)
            out[i * p->n_cols + j] = (float)(v[i * p->n_cols + j] * by);
    }
    free(v);
    return status;
}

/* ENC, and the shift of the biases for these rows. */
static int fill_enc(void *user, const qfile_part *p, float *out, char *err, size_t cap)
{
    sae_source *s = user;
    uint64_t I = s->record.d_in;
    int plain = s->fold.enc == 1 && !scales_enc(s) && s->enc.type != TENSOR_F64;
    if (plain ? tensor_block_f32(&s->enc, p->row, p->n_rows, 0, I, out, err, cap)
              : fill_rows(s, &s->enc, p, enc_factor, out, err, cap))
        return -1;
    for (uint64_t i = 0; i < p->n_rows * I && s->type == QSAE_TYPE_BF16; i++)
        if (isfinite(out[i]))
            out[i] = qfile_round_bf16(out[i]);
    for (uint64_t i = 0; i < p->n_rows && s->fold.subtract; i++) {
        double sum = 0;
        for (uint64_t j = 0; j < I; j++)
            sum += (double)out[i * I + j] * s->c[j];
        s->shift[p->row + i] = sum;
    }
    return 0;
}

static int fill_dec(void *user, const qfile_part *p, float *out, char *err, size_t cap)
{
    sae_source *s = user;
    if (!scales(s) && s->dec.type != TENSOR_F64)
        return tensor_block_f32(&s->dec, p->row, p->n_rows, p->col, p->n_cols, out, err,
                                cap);
    return fill_rows(s, &s->dec, p, dec_factor, out, err, cap);
}

static int fill_skip(void *user, const qfile_part *p, float *out, char *err, size_t cap)
{
    sae_source *s = user;
    if (s->skip.type == TENSOR_F64) /* rounded once, and refused only if not finite */
        return fill_rows(s, &s->skip, p, no_factor, out, err, cap);
    return tensor_block_f32(&s->skip, p->row, p->n_rows, p->col, p->n_cols, out, err,
                            cap);
}

static int write_matrix(sae_source *s, qfile *q, const tensor *t, qfile_fill fill)
{
    char why[ERR_CAP];
    if (qfile_matrix(q, fill, s, why, sizeof why) == 0)
        return 0;
    /* the writer knows the place in our matrix, not the name */
    int bare = strncmp(why, "row ", 4) == 0;
    return sae_bad_file(s, "%s%s%s%.300s", bare ? "tensor " : "",
                        bare ? name_z(t->name).text : "", bare ? ": " : "", why);
}

/* ---- vectors ---- */

/* Feature i's number, from the stored one. */
typedef int (*fold_fn)(sae_source *s, uint64_t i, double *x);

static int fold_bias(sae_source *s, uint64_t i, double *x)
{
    *x = *x * s->fold.bias * norm_of(s, i) - s->shift[i];
    return 0;
}

static int fold_mag_scale(sae_source *s, uint64_t i, double *x)
{
    double r = *x;
    *x = exp(r);
    if ((float)*x > 0 && isfinite((float)*x))
        return 0;
    return err_set(s->err, s->cap,
                   "exp(r_mag) of feature %" PRIu64 " does not fit in f32: r_mag is %g",
                   i, r);
}

static int fold_mag_bias(sae_source *s, uint64_t i, double *x)
{
    double r;
    if (tensor_f64(&s->r_mag, i, 1, &r, s->err, s->cap))
        return -1;
    /* the scale as the file has it */
    *x = *x * s->fold.bias - (double)(float)exp(r) * s->shift[i];
    return 0;
}

static int write_vector(sae_source *s, qfile *q, const tensor *t, fold_fn fold)
{
    size_t F = s->record.d_sae;
    float *v = malloc(F * sizeof *v);
    double *stored = calloc(F, sizeof *stored);
    int status = v && stored ? 0 : out_of_memory(s);
    if (!status)
        status = tensor_f64(t, 0, F, stored, s->err, s->cap);
    for (size_t i = 0; i < F && !status; i++) {
        double x = stored[i];
        status = fold(s, i, &x);
        v[i] = status ? 0 : (float)x;
        if (!status && !isfinite(v[i]))
            status = err_set(s->err, s->cap,
                             "tensor %s: feature %zu does not fit in f32: %g", t->name,
                             i, x);
    }
    if (!status)
        status = qfile_vector(q, v, s->err, s->cap);
    free(stored);
    free(v);
    return status ? in_file(s) : 0;
}

/* What brings the features of TOPK_SCALED back: 1 / n_i. */
static int write_scales(sae_source *s, qfile *q)
{
    size_t F = s->record.d_sae;
    float *v = malloc(F * sizeof *v);
    int status = v ? 0 : out_of_memory(s);
    for (size_t i = 0; i < F && !status; i++)
        v[i] = (float)(1 / s->n[i]);
    if (!status)
        status = qfile_vector(q, v, s->err, s->cap);
    free(v);
    return status ? in_file(s) : 0;
}

static int write_b_dec(sae_source *s, qfile *q)
{
    size_t O = s->record.d_out;
    float *v = malloc(O * sizeof *v);
    int status = v ? 0 : out_of_memory(s);
    for (size_t j = 0; j < O && !status; j++)
        v[j] = (float)s->c[j];
    if (!status)
        status = qfile_vector(q, v, s->err, s->cap);
    free(v);
    return status
               ? err_prefix(s->err, s->cap, "%s: b_dec", name_z(sae_file_name(s)).text)
               : 0;
}

/* ---- the member of the file ---- */

int sae_declare(const sae_source *s, qfile *q, uint32_t group, char *err, size_t cap)
{
    const qsae_sae_record *r = &s->record;
    const uint32_t rows = QSAE_LAYOUT_ROWS, vec = QSAE_LAYOUT_VECTOR,
                   f32 = QSAE_TYPE_F32;
    int gated = r->activation == QSAE_ACT_GATED;
    if (qfile_declare(q, group, QSAE_ROLE_META, QSAE_TYPE_BYTES, QSAE_LAYOUT_BYTES, 1,
                      s->lines.len, err, cap) ||
        qfile_declare(q, group, QSAE_ROLE_ENC, s->type, rows, r->d_sae, r->d_in, err,
                      cap) ||
        qfile_declare(q, group, QSAE_ROLE_DEC, s->type, rows, r->d_sae, r->d_out, err,
                      cap) ||
        qfile_declare(q, group, QSAE_ROLE_B_ENC, f32, vec, 1, r->d_sae, err, cap))
        return -1;
    if (has_theta(s) &&
        qfile_declare(q, group, QSAE_ROLE_THETA, f32, vec, 1, r->d_sae, err, cap))
        return -1;
    if ((gated || r->activation == QSAE_ACT_TOPK_SCALED) &&
        qfile_declare(q, group, QSAE_ROLE_MAG_SCALE, f32, vec, 1, r->d_sae, err, cap))
        return -1;
    if (gated &&
        qfile_declare(q, group, QSAE_ROLE_MAG_BIAS, f32, vec, 1, r->d_sae, err, cap))
        return -1;
    if (qfile_declare(q, group, QSAE_ROLE_B_DEC, f32, vec, 1, r->d_out, err, cap))
        return -1;
    if (s->skip.file && qfile_declare(q, group, QSAE_ROLE_SKIP, s->type,
                                      QSAE_LAYOUT_BLOCK16, r->d_out, r->d_in, err, cap))
        return -1;
    return sae_has_screen(s) ? sae_screen_declare(s, q, group, err, cap) : 0;
}

static int write_all(sae_source *s, qfile *q)
{
    if (qfile_bytes(q, s->lines.text, s->err, s->cap) ||
        write_matrix(s, q, &s->enc, fill_enc) ||
        write_matrix(s, q, &s->dec, fill_dec) ||
        write_vector(s, q, &s->b_enc, fold_bias))
        return -1;
    if (has_theta(s) && qfile_vector(q, s->t, s->err, s->cap))
        return in_file(s);
    if (s->record.activation == QSAE_ACT_TOPK_SCALED && write_scales(s, q))
        return -1;
    if (s->r_mag.file && (write_vector(s, q, &s->r_mag, fold_mag_scale) ||
                          write_vector(s, q, &s->b_mag, fold_mag_bias)))
        return -1;
    if (write_b_dec(s, q))
        return -1;
    if (s->skip.file && write_matrix(s, q, &s->skip, fill_skip))
        return -1;
    return sae_has_screen(s) && sae_screen_write(s, q, fill_enc) ? in_file(s) : 0;
}

int sae_write(sae_source *s, qfile *q)
{
    s->shift = calloc(s->record.d_sae, sizeof *s->shift);
    int status = s->shift ? write_all(s, q) : out_of_memory(s);
    free(s->shift);
    s->shift = NULL;
    return status;
}
