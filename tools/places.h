/* places.h: the lists of sites, layers and excluded tokens that `train` and `harvest` take.
 * Functions return CMD_OK, or another exit code after a complaint. */

#ifndef QSAE_TOOLS_PLACES_H
#define QSAE_TOOLS_PLACES_H

#include "args.h"

#define PLACES_MAX      32
#define PLACES_EXCLUDED 64

typedef struct place {
    int site, site_out; /* equal unless it is a pair */
} place;

typedef struct places_list {
    place list[PLACES_MAX];
    size_t n;
} places_list;

typedef struct places_excluded {
    int32_t ids[PLACES_EXCLUDED];
    size_t n;
    uint32_t classes; /* bit 1 << corpus_class */
} places_excluded;

/* Appends "resid_post,mlp_out", or with pairs "mlp_input:mlp_out,...". */
int places_take(places_list *p, const args *a, int pairs);
/* "0-3,7" or "all" marks wanted[0 .. n_layers - 1]. */
int places_layers(const char *text, int32_t n_layers, char *wanted);
/* "5,17,template": token ids and classes of tokens. */
int places_exclude(places_excluded *e, const args *a);

/* The next item of a list with commas to out[cap]: 1; 0 at the end; -1 if it is no item. */
int places_item(const char **list, char *out, size_t cap);
/* "--sites: '...' is no list of sites" */
int places_bad_list(const args *a, const char *what);

#endif
