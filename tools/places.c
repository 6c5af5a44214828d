#include "places.h"

#include "cmd.h"
#include "corpus.h"
#include "input.h"

#include <stdlib.h>
#include <string.h>

int places_item(const char **list, char *out, size_t cap)
{
    size_t n = strcspn(*list, ",");
    if (**list == 0)
        return 0;
    if (n == 0 || n >= cap || ((*list)[n] == ',' && (*list)[n + 1] == 0))
        return -1;
    memcpy(out, *list, n);
    out[n] = 0;
    *list += n + ((*list)[n] == ',');
    return 1;
}

int places_bad_list(const args *a, const char *what)
{
    return complain(CMD_USAGE, "%s: '%.100s' is no list of %s", a->option, a->value,
                    what);
}

int places_take(places_list *p, const args *a, int pairs)
{
    const char *list = a->value;
    char item[64];
    int got;
    while ((got = places_item(&list, item, sizeof item)) == 1) {
        place *at = &p->list[p->n];
        char *colon = strchr(item, ':');
        if (p->n == PLACES_MAX)
            return complain(CMD_USAGE, "%s: more than %d", a->option, PLACES_MAX);
        if (!pairs != !colon)
            return places_bad_list(a, pairs ? "pairs SITE:SITE" : "sites");
        if (colon)
            *colon = 0;
        int code = parse_site(item, &at->site);
        at->site_out = at->site;
        if (code == CMD_OK && colon)
            code = parse_site(colon + 1, &at->site_out);
        if (code != CMD_OK)
            return code;
        if (colon && at->site == at->site_out)
            return complain(CMD_USAGE, "--pairs: %s to itself is an SAE: --sites",
                            item);
        p->n++;
    }
    return got < 0 ? places_bad_list(a, "sites") : CMD_OK;
}

/* One number of a list, and what stands behind it. */
static int take_number(const char **s, int32_t *out)
{
    char number[8];
    size_t n = strspn(*s, "0123456789");
    if (n == 0 || n >= sizeof number)
        return -1;
    memcpy(number, *s, n);
    number[n] = 0;
    *out = atoi(number);
    *s += n;
    return 0;
}

int places_layers(const char *text, int32_t n_layers, char *wanted)
{
    const char *s = text;
    int32_t a, b;
    if (strcmp(text, "all") == 0) {
        memset(wanted, 1, (size_t)n_layers);
        return CMD_OK;
    }
    for (;;) {
        int bad = take_number(&s, &a);
        b = a;
        if (!bad && *s == '-')
            s++, bad = take_number(&s, &b);
        if (bad || b < a || (*s != 0 && *s != ','))
            return complain(CMD_USAGE, "--layers: '%.60s' is no list such as 0-3,7",
                            text);
        if (b >= n_layers)
            return complain(CMD_FAILED, "--layers: layer %d; there are 0..%d", (int)b,
                            (int)n_layers - 1);
        memset(wanted + a, 1, (size_t)(b - a + 1));
        if (*s++ == 0)
            return CMD_OK;
    }
}

int places_exclude(places_excluded *e, const args *a)
{
    const char *list = a->value;
    char item[32];
    int got;
    while ((got = places_item(&list, item, sizeof item)) == 1) {
        int64_t v;
        int class = 0;
        while (class < CORPUS_CLASSES &&
               strcmp(item, corpus_class_name((corpus_class) class)) != 0)
            class ++;
        if (class < CORPUS_CLASSES) {
            e->classes |= 1u << class;
            continue;
        }
        if (e->n == PLACES_EXCLUDED)
            return complain(CMD_USAGE, "--exclude: more than %d tokens",
                            PLACES_EXCLUDED);
        int code = args_integer("--exclude", item, 0, INT32_MAX, &v);
        if (code != CMD_OK)
            return code;
        e->ids[e->n++] = (int32_t)v;
    }
    return got < 0 ? places_bad_list(a, "token ids and classes") : CMD_OK;
}
