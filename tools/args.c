/* Command lines: strict option parsing and number parsing (see args.h). */

#include "args.h"
#include "cmd.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int complain(int code, const char *format, ...)
{
    char line[1024];
    va_list list;
    va_start(list, format);
    vsnprintf(line, sizeof line, format, list);
    va_end(list);
    for (char *p = line; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = '?';
    fprintf(stderr, "qsae: %s\n", line);
    return code;
}

int finish_stdout(void)
{
    if (fflush(stdout) != 0 || ferror(stdout))
        return complain(CMD_FAILED, "cannot write to standard output: %s",
                        strerror(errno));
    return CMD_OK;
}

args args_begin(int argc, char **argv, const args_option *options, const char *usage)
{
    args a;
    memset(&a, 0, sizeof a);
    a.argc = argc;
    a.argv = argv;
    a.at = 1;
    a.options = options;
    a.usage = usage;
    return a;
}

static int option_error(const char *option, const char *trouble)
{
    complain(CMD_USAGE, "%s %s", option, trouble);
    return ARGS_ERROR;
}

/* Accepts option number i, whose value is `inlined` (from --name=value) or the next
   argument. */
static int take_option(args *a, int i, const char *inlined)
{
    const args_option *o = &a->options[i];
    if (o->name)
        snprintf(a->option, sizeof a->option, "--%s", o->name);
    else
        snprintf(a->option, sizeof a->option, "-%c", o->letter);
    uint64_t bit = (uint64_t)1 << i;
    if ((a->seen & bit) && !(o->flags & ARGS_MANY))
        return option_error(a->option, "was given twice");
    a->seen |= bit;
    a->value = NULL;
    if (!(o->flags & ARGS_VALUE)) {
        if (inlined)
            return option_error(a->option, "takes no value");
        return o->id;
    }
    if (!inlined && a->at >= a->argc)
        return option_error(a->option, "needs a value");
    a->value = inlined ? inlined : a->argv[a->at++];
    return o->id;
}

static int next_long(args *a, const char *name)
{
    size_t len = strcspn(name, "=");
    const char *inlined = name[len] == '=' ? name + len + 1 : NULL;
    for (int i = 0; a->options[i].id; i++) {
        const char *known = a->options[i].name;
        if (known && strlen(known) == len && memcmp(known, name, len) == 0)
            return take_option(a, i, inlined);
    }
    complain(CMD_USAGE, "unknown option --%.*s (see: qsae %s --help)",
             (int)(len < 200 ? len : 200), name, a->argv[0]);
    return ARGS_ERROR;
}

int args_next(args *a)
{
    if (a->at >= a->argc)
        return ARGS_END;
    const char *arg = a->argv[a->at++];
    if (a->only_positional || arg[0] != '-' || arg[1] == '\0') {
        a->value = arg;
        return ARGS_POSITIONAL;
    }
    if (strcmp(arg, "--") == 0) {
        a->only_positional = 1;
        return args_next(a);
    }
    if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
        fputs(a->usage, stdout);
        return ARGS_HELP;
    }
    if (arg[1] == '-')
        return next_long(a, arg + 2);
    if (arg[2] == '\0')
        for (int i = 0; a->options[i].id; i++)
            if (a->options[i].letter == arg[1])
                return take_option(a, i, NULL);
    complain(CMD_USAGE, "unknown option %.200s (see: qsae %s --help)", arg, a->argv[0]);
    return ARGS_ERROR;
}

/* ------------------------------------------------------------------------- numbers */

static int is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* Checked by hand because strtoll and strtod also take blanks, hexadecimal, "inf"
   and "nan". */
static int looks_whole(const char *s)
{
    if (*s == '-' || *s == '+')
        s++;
    if (!is_digit(*s))
        return 0;
    while (is_digit(*s))
        s++;
    return *s == '\0';
}

static int looks_real(const char *s)
{
    int digits = 0;
    if (*s == '-' || *s == '+')
        s++;
    for (; is_digit(*s); s++)
        digits = 1;
    if (*s == '.')
        for (s++; is_digit(*s); s++)
            digits = 1;
    if (!digits)
        return 0;
    return *s == '\0' || ((*s == 'e' || *s == 'E') && looks_whole(s + 1));
}

int args_integer(const char *what, const char *text, int64_t min, int64_t max,
                 int64_t *out)
{
    if (!looks_whole(text))
        return complain(CMD_USAGE, "%s: '%.100s' is not a whole number", what, text);
    errno = 0;
    long long v = strtoll(text, NULL, 10);
    if (errno == ERANGE || v < min || v > max)
        return complain(CMD_USAGE, "%s: %.100s is not in %" PRId64 "..%" PRId64, what,
                        text, min, max);
    *out = v;
    return CMD_OK;
}

int args_unsigned(const char *what, const char *text, uint64_t *out)
{
    if (!looks_whole(text) || !is_digit(text[0]))
        return complain(CMD_USAGE, "%s: '%.100s' is not a whole number of at least 0",
                        what, text);
    errno = 0;
    unsigned long long v = strtoull(text, NULL, 10);
    if (errno == ERANGE)
        return complain(CMD_USAGE, "%s: %.100s is not in 0..%" PRIu64, what, text,
                        UINT64_MAX);
    *out = v;
    return CMD_OK;
}

int args_real(const char *what, const char *text, double min, double max, float *out)
{
    if (!looks_real(text))
        return complain(CMD_USAGE, "%s: '%.100s' is not a number", what, text);
    float v = strtof(text, NULL); /* not strtod: that would round twice */
    if (!((double)v >= min && (double)v <= max))
        return complain(CMD_USAGE, "%s: %.100s is not in %g..%g", what, text, min, max);
    *out = v;
    return CMD_OK;
}

int args_walk(args *a, const char **const *slots, size_t n_slots, args_take take,
              void *run, int *help)
{
    size_t used = 0;
    for (int id; (id = args_next(a)) != ARGS_END;) {
        int code = CMD_OK;
        if (id == ARGS_HELP || id == ARGS_ERROR) {
            *help = id == ARGS_HELP;
            return *help ? CMD_OK : CMD_USAGE;
        }
        if (id != ARGS_POSITIONAL)
            code = take(run, a, id);
        else if (used == n_slots)
            code = complain(CMD_USAGE, "'%.200s' is one argument too many", a->value);
        else
            *slots[used++] = a->value;
        if (code != CMD_OK)
            return code;
    }
    return CMD_OK;
}
