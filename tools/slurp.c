/* What the commands that work on standard input share (see slurp.h). */

#include "slurp.h"
#include "cmd.h"
#include "input.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int slurp_stdin(char **text, size_t *len)
{
    size_t n = 0, cap = 1 << 16;
    char *buffer = malloc(cap);
    for (;;) {
        if (!buffer)
            return complain(CMD_FAILED, "out of memory for standard input");
        n += fread(buffer + n, 1, cap - n - 1, stdin);
        if (n < cap - 1)
            break;
        char *grown = cap <= SIZE_MAX / 2 ? realloc(buffer, cap *= 2) : NULL;
        if (!grown)
            free(buffer);
        buffer = grown;
    }
    if (ferror(stdin)) {
        free(buffer);
        return complain(CMD_FAILED, "cannot read standard input: %s", strerror(errno));
    }
    buffer[n] = '\0';
    *text = buffer;
    *len = n;
    return CMD_OK;
}

static int take_flag(void *flags, const args *a, int id)
{
    (void)a;
    *(int *)flags |= id;
    return CMD_OK;
}

int slurp_arguments(int argc, char **argv, const args_option *options,
                    const char *usage, const char **model, int *flags)
{
    int help = 0;
    *model = NULL;
    *flags = 0;
    args a = args_begin(argc, argv, options, usage);
    const char **const slots[] = {model};
    int code = args_walk(&a, slots, 1, take_flag, flags, &help);
    if (code != CMD_OK || help) {
        *model = NULL;
        return code;
    }
    if (!*model)
        return complain(CMD_USAGE, "%s needs MODEL.qsae (see: qsae %s --help)", argv[0],
                        argv[0]);
    return CMD_OK;
}

int slurp_open(const char *path, qsae_model **model)
{
    qsae_error err;
    if (qsae_model_open(path, NULL, model, &err) != QSAE_OK)
        return complain_library(path, &err);
    return CMD_OK;
}
