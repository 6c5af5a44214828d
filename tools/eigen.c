/* Eigenvectors of a symmetric matrix (see eigen.h): Householder's reflections make it
 * tridiagonal, implicit QL steps with Wilkinson's shift make that diagonal. Golub and Van
 * Loan, Matrix Computations, chapter 8. */

#include "eigen.h"

#include <math.h>
#include <string.h>

#define NOTHING    1e-40 /* of a part of a matrix */
#define MOST_STEPS 60    /* QL steps for one eigenvalue; two or three are usual */

/* Reflects away all of column k below the subdiagonal, for every k; the reflections'
 * vectors stay in a, row k holding that of column k, scaled so that H = 1 - v v^T / h, and
 * d[k] = h. e[k] is the subdiagonal. */
static void reduce(double *a, size_t n, double *d, double *e)
{
    double size = 0;
    for (size_t i = 0; i < n * n; i++)
        if (fabs(a[i]) > size)
            size = fabs(a[i]);
    for (size_t k = 0; k + 2 < n; k++) {
        double *v = a + k * n, scale = 0, h = 0, along = 0;
        for (size_t i = k + 1; i < n; i++)
            scale += fabs(v[i]);
        e[k] = v[k + 1];
        d[k] = 0;
        /* nothing to reflect away, or next to nothing, whose squares would underflow */
        if (scale <= fabs(v[k + 1]) || scale <= NOTHING * size)
            continue;
        for (size_t i = k + 1; i < n; i++)
            h += (v[i] / scale) * (v[i] / scale);
        double length = scale * sqrt(h);
        if (v[k + 1] > 0)
            length = -length;
        e[k] = length;
        v[k + 1] -= length;
        h = 0;
        for (size_t i = k + 1; i < n; i++)
            h += v[i] * v[i];
        h /= 2;
        d[k] = h;
        /* A - v q^T - q v^T with q = p - (v.p / 2h) v, p = A v / h */
        memset(e + k + 1, 0, (n - k - 1) * sizeof *e);
        for (size_t i = k + 1; i < n; i++)
            for (size_t j = k + 1; j < n; j++)
                e[j] += a[i * n + j] * v[i];
        for (size_t i = k + 1; i < n; i++) {
            e[i] /= h;
            along += e[i] * v[i];
        }
        for (size_t i = k + 1; i < n; i++)
            e[i] -= along / (2 * h) * v[i];
        for (size_t i = k + 1; i < n; i++)
            for (size_t j = k + 1; j < n; j++)
                a[i * n + j] -= v[i] * e[j] + e[i] * v[j];
    }
    if (n >= 2)
        e[n - 2] = a[(n - 2) * n + n - 1];
    e[n - 1] = 0;
}

/* The product of the reflections in place of their vectors, transposed: row i will be an
 * eigenvector. d becomes the diagonal. */
static void gather(double *a, size_t n, double *d, double *tmp)
{
    for (size_t k = n; k-- > 0;) {
        double h = k + 2 < n ? d[k] : 0, *v = a + k * n;
        d[k] = v[k];
        if (h > 0) { /* Q <- H Q in the corner below and right of k */
            for (size_t i = k + 1; i < n; i++) {
                double dot = 0, *row = a + i * n; /* row i: column i of Q */
                for (size_t j = k + 1; j < n; j++)
                    dot += row[j] * v[j];
                tmp[i] = dot / h;
            }
            for (size_t i = k + 1; i < n; i++)
                for (size_t j = k + 1; j < n; j++)
                    a[i * n + j] -= tmp[i] * v[j];
        }
        for (size_t i = 0; i < n; i++) {
            if (i > k)
                a[i * n + k] = 0;
            v[i] = i == k;
        }
    }
}

/* One QL step on the part l .. m; rows of q turn with it. */
static void turn(double *q, size_t n, double *d, double *e, size_t l, size_t m)
{
    double g = (d[l + 1] - d[l]) / (2 * e[l]), r = sqrt(g * g + 1);
    double s = 1, c = 1, p = 0;
    g = d[m] - d[l] + e[l] / (g + (g < 0 ? -r : r));
    for (size_t i = m; i-- > l;) {
        double f = s * e[i], b = c * e[i];
        r = sqrt(f * f + g * g);
        e[i + 1] = r;
        if (!(r > 0)) { /* the part splits here */
            d[i + 1] -= p;
            e[m] = 0;
            return;
        }
        s = f / r;
        c = g / r;
        g = d[i + 1] - p;
        double t = (d[i] - g) * s + 2 * c * b;
        p = s * t;
        d[i + 1] = g + p;
        g = c * t - b;
        double *low = q + i * n, *high = low + n;
        for (size_t k = 0; k < n; k++) {
            double x = high[k], y = low[k];
            high[k] = s * y + c * x;
            low[k] = c * y - s * x;
        }
    }
    d[l] -= p;
    e[l] = g;
    e[m] = 0;
}

static int diagonalize(double *q, size_t n, double *d, double *e)
{
    double size = 0; /* small against the whole matrix is nothing, as of a null space */
    for (size_t i = 0; i < n; i++)
        if (fabs(d[i]) + fabs(e[i]) > size)
            size = fabs(d[i]) + fabs(e[i]);
    for (size_t l = 0; l < n; l++)
        for (int step = 0;; step++) {
            size_t m = l;
            while (m + 1 < n && size + fabs(e[m]) > size)
                m++;
            if (!isfinite(d[m]) || step == MOST_STEPS)
                return -1;
            if (m == l)
                break;
            turn(q, n, d, e, l, m);
        }
    return 0;
}

static void swap(double *a, double *b, size_t n)
{
    for (size_t k = 0; k < n; k++) {
        double t = a[k];
        a[k] = b[k];
        b[k] = t;
    }
}

int eigen_symmetric(double *a, size_t n, double *values, double *work)
{
    for (size_t i = 0; i < n * n; i++)
        if (!isfinite(a[i]))
            return -1;
    if (n == 0)
        return 0;
    reduce(a, n, values, work);
    gather(a, n, values, work + n);
    if (diagonalize(a, n, values, work))
        return -1;
    for (size_t i = 0; i < n; i++) {
        size_t most = i;
        for (size_t k = i + 1; k < n; k++)
            if (values[k] > values[most])
                most = k;
        if (most == i)
            continue;
        swap(&values[i], &values[most], 1);
        swap(a + i * n, a + most * n, n);
    }
    return 0;
}
