/* output.h: may an output be written where the user says? */

#ifndef QSAE_TOOLS_OUTPUT_H
#define QSAE_TOOLS_OUTPUT_H

#include <stddef.h>

/* Complains if the output is the source itself, under whatever name: it would be
   replaced. `what` says what the source is. source may be NULL. */
int output_check(const char *out, const char *source, const char *what);
/* Complains if the output exists and does not begin with magic[n], n <= 16: a file of
   another kind would be replaced. `kind` says which: ".qsae file". */
int output_replaces(const char *out, const char *magic, size_t n, const char *kind);

#endif
