/* slurp.h: what the commands that work on standard input share. */

#ifndef QSAE_TOOLS_SLURP_H
#define QSAE_TOOLS_SLURP_H

#include "../qsae.h"
#include "args.h"

/* Standard input to its last byte, from malloc, with a NUL behind it. CMD_OK, or CMD_FAILED
 * after a complaint. */
int slurp_stdin(char **text, size_t *len);

/* A command line of MODEL and options without values. *flags gets the ids of those
 * given, or'ed; *model is NULL if the usage was printed. CMD_OK or CMD_USAGE. */
int slurp_arguments(int argc, char **argv, const args_option *options,
                    const char *usage, const char **model, int *flags);

/* Opens a model for its tokenizer: no weight is read. */
int slurp_open(const char *path, qsae_model **model);

#endif
