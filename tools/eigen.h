/* eigen.h: the eigenvectors of a symmetric matrix, in double, for the PCA control of
 * `eval`. One thread, one order of operations. */

#ifndef QSAE_TOOLS_EIGEN_H
#define QSAE_TOOLS_EIGEN_H

#include <stddef.h>

/* a [n, n] symmetric; becomes its eigenvectors as rows, by falling eigenvalue, in
 * values [n]. work [2 n]. 0, or -1 if it does not converge (a number is not finite). */
int eigen_symmetric(double *a, size_t n, double *values, double *work);

#endif
