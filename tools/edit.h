/* An edit of a feature as a command line says it: SITE.LAYER:FEATURE=OP:VALUE. */

#ifndef QSAE_EDIT_H
#define QSAE_EDIT_H

#ifndef QSAE_WITH_FORMAT
#define QSAE_WITH_FORMAT
#endif
#include "../qsae.h"

typedef struct edit_text {
    const char *text; /* borrowed */
    int site, layer;  /* where the SAE reads */
    uint32_t feature; /* its number (sae_choice.h) */
    qsae_edit_kind kind;
    float value;
} edit_text;

/* CMD_OK, or CMD_USAGE after a complaint. */
int edit_parse(const char *text, edit_text *e);

#endif
