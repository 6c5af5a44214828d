/* pytext.h: JSON values as Python writes them, which is what a chat template's output holds:
 * json.dumps for tools and arguments, str() for what a template prints as it is. */

#ifndef QSAE_TOOLS_PYTEXT_H
#define QSAE_TOOLS_PYTEXT_H

#include "json.h"

/* Text that grows. Zeroed: empty. After a failure to grow `failed` is set and the text is
 * not complete. */
typedef struct pytext {
    char *s;
    size_t n, cap;
    int failed; /* out of memory */
} pytext;

void pytext_add(pytext *t, const char *s, size_t n);
void pytext_free(pytext *t);

/* json.dumps(v, ensure_ascii=False), as transformers' tojson. 0, or -1 with err set: out of
 * memory, or an integer of more than 4300 digits, which Python does not read. */
int pytext_dumps(pytext *t, const json_doc *doc, const json_value *v, char *err,
                 size_t cap);

/* str(v): a string itself, None, True, False, and repr() of everything else and of what
 * is inside. */
int pytext_str(pytext *t, const json_doc *doc, const json_value *v, char *err,
               size_t cap);

/* bool(v); NULL is false. */
int pytext_truth(const json_value *v);

#endif
