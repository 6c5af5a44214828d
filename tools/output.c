#include "output.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "args.h"
#include "cmd.h"

int output_check(const char *out, const char *source, const char *what)
{
    struct stat a, b;
    if (source && stat(source, &a) == 0 && stat(out, &b) == 0 && a.st_dev == b.st_dev &&
        a.st_ino == b.st_ino)
        return complain(CMD_FAILED, "%.200s is %s: choose another output", out, what);
    return CMD_OK;
}

int output_replaces(const char *out, const char *magic, size_t n, const char *kind)
{
    char begin[16] = {0};
    struct stat st;
    FILE *f = stat(out, &st) == 0 && S_ISREG(st.st_mode) ? fopen(out, "rb") : NULL;
    size_t got = f ? fread(begin, 1, n, f) : 0;
    if (!f)
        return CMD_OK; /* not there, or no regular file: the writer says so */
    fclose(f);
    if (got == n && memcmp(begin, magic, n) == 0)
        return CMD_OK;
    return complain(CMD_FAILED, "%.300s exists and is not a %s", out, kind);
}
