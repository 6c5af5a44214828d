/* pickle.h: reads what torch.save writes of Python's pickle format (protocol 2) as plain
 * data. Nothing is imported and nothing is called: a global name is a text, a call is a
 * node that remembers the name and the arguments. Names must be on the caller's list,
 * every other is refused, and so is every opcode that torch.save does not write.
 * https://docs.python.org/3/library/pickletools.html has the opcodes.
 *
 * Limits: 2^21 values, 64 levels; no value contains itself. */

#ifndef QSAE_TOOLS_PICKLE_H
#define QSAE_TOOLS_PICKLE_H

#include <stddef.h>
#include <stdint.h>

#define PICKLE_MAX_VALUES ((uint32_t)1 << 21)
#define PICKLE_MAX_DEPTH  64

typedef enum pickle_kind {
    PICKLE_NONE,
    PICKLE_BOOL,
    PICKLE_INT,
    PICKLE_FLOAT,
    PICKLE_STRING,
    PICKLE_TUPLE,
    PICKLE_LIST,
    PICKLE_DICT, /* collections.OrderedDict too */
    PICKLE_GLOBAL,
    PICKLE_CALL,      /* items: the global, the tuple of arguments */
    PICKLE_PERSISTENT /* items: the id */
} pickle_kind;

typedef struct pickle_value {
    pickle_kind kind;
    uint32_t n;      /* items; of a DICT two for each entry, key and value */
    const char *str; /* STRING; GLOBAL "module\nname". len bytes, no NUL behind them */
    size_t len;
    int64_t i; /* INT, BOOL */
    double f;  /* FLOAT */
    /* private */
    uint32_t *items, room;
    int mark;
} pickle_value;

typedef struct pickle pickle;

/* NULL on failure. `data` is borrowed. `allowed`: "module\nname", NULL at the end. */
pickle *pickle_parse(const char *data, size_t size, const char *const *allowed,
                     char *err, size_t cap);
void pickle_free(pickle *p); /* NULL is a no-op */

const pickle_value *pickle_root(const pickle *p);
/* Item i < v->n. */
const pickle_value *pickle_item(const pickle *p, const pickle_value *v, uint32_t i);
/* 1 if v is this global, or a call of it. */
int pickle_is(const pickle *p, const pickle_value *v, const char *global);

#endif
