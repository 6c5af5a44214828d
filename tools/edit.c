/* An edit of a feature as a command line says it (see edit.h). */

#include "edit.h"
#include "args.h"
#include "cmd.h"

#include <float.h>
#include <stdio.h>
#include <string.h>

/* Copies text up to the first `end` into part [cap]; returns what follows it, NULL
   if that fails. */
static const char *take_part(const char *text, char end, char *part, size_t cap)
{
    const char *stop = strchr(text, end);
    if (!stop || (size_t)(stop - text) >= cap)
        return NULL;
    memcpy(part, text, (size_t)(stop - text));
    part[stop - text] = '\0';
    return stop + 1;
}

static int parse_operation(const char *op, qsae_edit_kind *kind)
{
    static const struct {
        const char *name;
        qsae_edit_kind kind;
    } table[] = {{"add", QSAE_FEATURE_ADD},
                 {"set", QSAE_FEATURE_SET},
                 {"scale", QSAE_FEATURE_SCALE},
                 {"min", QSAE_FEATURE_MIN},
                 {"max", QSAE_FEATURE_MAX}};
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        if (strcmp(op, table[i].name) == 0) {
            *kind = table[i].kind;
            return 1;
        }
    }
    return 0;
}

int edit_parse(const char *text, edit_text *e)
{
    char site[24], layer[24], feature[24], op[24], what[160];
    const char *at = text;
    int64_t number;
    if (!(at = take_part(at, '.', site, sizeof site)) ||
        !(at = take_part(at, ':', layer, sizeof layer)) ||
        !(at = take_part(at, '=', feature, sizeof feature)) ||
        !(at = take_part(at, ':', op, sizeof op)))
        return complain(CMD_USAGE, "--edit '%.100s' is not SITE.LAYER:FEATURE=OP:VALUE",
                        text);
    e->text = text;
    e->site = qsae_site_from_name(site);
    if (e->site < 0 || e->site >= QSAE_SITE_COUNT)
        return complain(CMD_USAGE, "--edit '%.100s': there is no site '%s'", text,
                        site);
    if (!parse_operation(op, &e->kind))
        return complain(CMD_USAGE,
                        "--edit '%.100s': '%s' is none of add set scale min max", text,
                        op);
    snprintf(what, sizeof what, "--edit '%.100s': layer", text);
    int code = args_integer(what, layer, 0, INT32_MAX, &number);
    if (code != CMD_OK)
        return code;
    e->layer = (int)number;
    snprintf(what, sizeof what, "--edit '%.100s': feature", text);
    code = args_integer(what, feature, 0, UINT32_MAX, &number);
    if (code != CMD_OK)
        return code;
    e->feature = (uint32_t)number;
    snprintf(what, sizeof what, "--edit '%.100s': value", text);
    return args_real(what, at, -(double)FLT_MAX, (double)FLT_MAX, &e->value);
}
