/* export.h: what the files of `qsae export` share.
 *
 *     export.c          the command
 *     export_sae.c      one SAE in another program's layout: folders of SAELens, npz
 *     export_vector.c   edits as a control vector of llama.cpp
 *
 * An export says exactly what the SAE says, or is refused with the reason. Functions
 * return CMD_OK, or another exit code after a complaint. */

#ifndef QSAE_EXPORT_H
#define QSAE_EXPORT_H

#include "edit.h"
#include "sae_choice.h"

typedef struct export_run {
    input in;
    const char *sae_path, *out_path, *format;
    sae_choice choice;
    edit_text *edits; /* [n_edits] */
    size_t n_edits;
} export_run;

int export_saelens(export_run *r);
int export_npz(export_run *r);
int export_vector(export_run *r);

#endif
