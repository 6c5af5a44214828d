/* Controls: what dictionaries reach that learned nothing (see eval.h). */

#include "eval.h"

#include <math.h>
#include <stdlib.h>

#include "cmd.h"
#include "eigen.h"

/* splitmix64, Steele, Lea and Flood 2014 */
uint64_t eval_next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

/* Nearly normal: twelve uniform numbers added, so that no library function takes part. */
static double normal(uint64_t *state)
{
    double sum = -6;
    for (int i = 0; i < 12; i++)
        sum += (double)(eval_next_random(state) >> 11) / 9007199254740992.0;
    return sum;
}

static int fill(eval_random *r, uint64_t seed)
{
    double *v = malloc(r->d * sizeof *v);
    if (!v)
        return -1;
    for (size_t i = 0; i < r->n; i++) {
        uint64_t state = seed + i;
        double size = 0;
        state = eval_next_random(&state);
        for (size_t k = 0; k < r->d; k++) {
            v[k] = normal(&state);
            size += v[k] * v[k];
        }
        for (size_t k = 0; k < r->d; k++)
            r->columns[k * r->n + i] = (float)(v[k] / sqrt(size));
    }
    free(v);
    return 0;
}

eval_random *eval_random_get(eval *e, size_t d, size_t n)
{
    for (size_t i = 0; i < e->n_randoms; i++)
        if (e->randoms[i].d == d && e->randoms[i].n == n)
            return &e->randoms[i];
    eval_random *more = realloc(e->randoms, (e->n_randoms + 1) * sizeof *more);
    if (!more)
        return NULL;
    e->randoms = more;
    more += e->n_randoms;
    more->d = d;
    more->n = n;
    more->columns = malloc(d * n * sizeof *more->columns);
    if (!more->columns)
        return NULL;
    e->n_randoms++;
    return fill(more, e->o->seed) ? NULL : more;
}

/* Is column a less than column b: by product, ties to the lower number. */
static int less(const double *z, size_t a, size_t b)
{
    return z[a] < z[b] || (!(z[a] > z[b]) && a > b);
}

/* Puts heap[i] where it belongs below i; the least is on top. */
static void sift(double *heap, size_t i, size_t n, const double *z)
{
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && less(z, (size_t)heap[child + 1], (size_t)heap[child]))
            child++;
        if (!less(z, (size_t)heap[child], (size_t)heap[i]))
            return;
        double t = heap[i];
        heap[i] = heap[child];
        heap[child] = t;
    }
}

/* The numbers of the k largest, to heap [k]. */
static void largest(const double *z, size_t n, size_t k, double *heap)
{
    for (size_t i = 0; i < k; i++)
        heap[i] = (double)i;
    for (size_t i = k / 2; i-- > 0;)
        sift(heap, i, k, z);
    for (size_t i = k; k && i < n; i++)
        if (less(z, (size_t)heap[0], i)) {
            heap[0] = (double)i;
            sift(heap, 0, k, z);
        }
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

size_t eval_random_row(const eval_random *r, const float *x, const float *mean,
                       size_t k, float *out, double *scratch)
{
    double *z = scratch, *heap = z + r->n, *made = heap + r->n, along = 0, size = 0;
    size_t used = 0;
    memset(z, 0, r->n * sizeof *z);
    memset(made, 0, r->d * sizeof *made);
    for (size_t j = 0; j < r->d; j++) {
        double c = (double)x[j] - (double)mean[j];
        const float *row = r->columns + j * r->n;
        for (size_t i = 0; i < r->n; i++)
            z[i] += c * (double)row[i];
    }
    if (k > r->n)
        k = r->n;
    largest(z, r->n, k, heap);
    qsort(heap, k, sizeof *heap, ascending);
    for (size_t i = 0; i < k; i++) {
        size_t at = (size_t)heap[i];
        if (!(z[at] > 0))
            continue;
        used++;
        for (size_t j = 0; j < r->d; j++)
            made[j] += z[at] * (double)r->columns[j * r->n + at];
    }
    for (size_t j = 0; j < r->d; j++) {
        along += made[j] * ((double)x[j] - (double)mean[j]);
        size += made[j] * made[j];
    }
    double scale = size > 0 ? along / size : 0;
    for (size_t j = 0; j < r->d; j++)
        out[j] = (float)((double)mean[j] + scale * made[j]);
    return used;
}

/* ------------------------------------------------------------------ principal components */

static size_t largest_rank(const eval *e, const eval_place *p)
{
    size_t rank = 0;
    for (size_t i = 0; i < e->n_members; i++)
        if (&e->places[e->members[i].place] == p && e->members[i].rank > rank)
            rank = e->members[i].rank;
    return rank < p->d ? rank : p->d;
}

static int find_components(eval *e, eval_place *p)
{
    size_t d = p->d;
    double *a = malloc(d * d * sizeof *a), *work = malloc(3 * d * sizeof *work);
    const double *sums = e->sums + p->sums, *products = sums + 1 + d;
    int code = CMD_OK;
    p->n_basis = largest_rank(e, p);
    free(p->basis);
    p->basis = malloc((p->n_basis * d + 1) * sizeof *p->basis);
    if (!a || !work || !p->basis)
        code =
            complain(CMD_FAILED, "out of memory for the components of %zu numbers", d);
    for (size_t i = 0; i < d && code == CMD_OK; i++)
        for (size_t j = 0; j < d; j++)
            a[i * d + j] = products[i * d + j] / sums[0] -
                           sums[1 + i] / sums[0] * (sums[1 + j] / sums[0]);
    if (code == CMD_OK && eigen_symmetric(a, d, work, work + d))
        code = complain(CMD_FAILED, "%s of layer %d: no principal components are found",
                        qsae_site_name(e->spots[p->out].site), e->spots[p->out].layer);
    if (code == CMD_OK)
        memcpy(p->basis, a, p->n_basis * d * sizeof *a);
    free(a);
    free(work);
    return code;
}

int eval_components(eval *e)
{
    int code = CMD_OK;
    for (size_t i = 0; i < e->n_places && code == CMD_OK; i++)
        if (e->places[i].needs_products)
            code = find_components(e, &e->places[i]);
    return code;
}

void eval_component_row(const eval_place *p, size_t rank, const float *x, float *z,
                        double *scratch)
{
    size_t d = p->d;
    for (size_t k = 0; k < d; k++)
        scratch[k] = (double)p->mean[k];
    for (size_t i = 0; i < rank; i++) {
        const double *v = p->basis + i * d;
        double along = 0;
        for (size_t k = 0; k < d; k++)
            along += v[k] * ((double)x[k] - (double)p->mean[k]);
        for (size_t k = 0; k < d; k++)
            scratch[k] += along * v[k];
    }
    for (size_t k = 0; k < d; k++)
        z[k] = (float)scratch[k];
}
