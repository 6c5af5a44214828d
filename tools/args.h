/* Command lines: strict option parsing and number parsing, shared by the subcommands.
 *
 *     static const args_option options[] = {
 *         {"threads", 0, OPT_THREADS, ARGS_VALUE},
 *         {NULL, 'o', OPT_OUT, ARGS_VALUE},
 *         {NULL, 0, 0, 0}};
 *     args a = args_begin(argc, argv, options, usage);
 *     for (int id; (id = args_next(&a)) != ARGS_END;) switch (id) { ... }
 *
 * Accepted: `--name`, `--name value`, `--name=value`, `-x`, `-x value`, `--` (all that
 * follows is positional). An option's value is the next argument, whatever it looks
 * like. An unknown option, a missing or unwanted value, and an option that is given
 * twice without ARGS_MANY are errors. */

#ifndef QSAE_ARGS_H
#define QSAE_ARGS_H

#include <stddef.h>
#include <stdint.h>

enum {
    ARGS_VALUE = 1,
    ARGS_MANY = 2
}; /* option flags: takes a value; may be repeated */

typedef struct args_option {
    const char *name; /* without the "--"; NULL: only a letter */
    char letter;      /* without the "-"; 0: only a name */
    int id;           /* > 0 */
    int flags;
} args_option; /* a table ends with id 0 and holds at most 64 */

typedef struct args {
    int argc, at;
    char **argv;
    const args_option *options;
    const char *usage;
    int only_positional;
    uint64_t seen;     /* bit i: options[i] was given */
    char option[40];   /* the option as the user would write it, for messages */
    const char *value; /* its value, or the positional argument */
} args;

/* What args_next returns besides the id of an option. */
enum {
    ARGS_END = 0,
    ARGS_POSITIONAL = -1,
    ARGS_HELP = -2, /* --help or -h: the usage was printed, return CMD_OK */
    ARGS_ERROR = -3 /* was reported, return CMD_USAGE */
};

args args_begin(int argc, char **argv, const args_option *options, const char *usage);
int args_next(args *a);

/* A whole command line: options go to take(run, a, id), positional arguments in order to
   *slots[0], *slots[1], ... of n_slots. Returns CMD_OK, CMD_USAGE or what take returned;
   *help is set to 1 where the usage was printed. */
typedef int (*args_take)(void *run, const args *a, int id);
int args_walk(args *a, const char **const *slots, size_t n_slots, args_take take,
              void *run, int *help);

/* One line `qsae: ...` on stderr; control characters in it are replaced, so that it
   stays one line. * Returns `code`, so that a caller can say: return
   complain(CMD_FAILED, "..."). */
int complain(int code, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 2, 3)))
#endif
    ;

/* Flushes stdout. CMD_OK, or CMD_FAILED after a complaint if anything could not be
   written. */
int finish_stdout(void);

/* Numbers. `what` names the option in the complaint. Return CMD_OK or CMD_USAGE;
   *out is set on success * only. The whole text must be a number: digits with an
   optional sign, for a real also a point and an * exponent. The program never calls
   setlocale, so strtod reads and printf writes a point. */
int args_integer(const char *what, const char *text, int64_t min, int64_t max,
                 int64_t *out);
int args_unsigned(const char *what, const char *text, uint64_t *out);
int args_real(const char *what, const char *text, double min, double max, float *out);

#endif
