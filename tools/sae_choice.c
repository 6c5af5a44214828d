/* Which SAE of a file a command means, and its features' numbers (see sae_choice.h). */

#define _POSIX_C_SOURCE 200809L

#include "sae_choice.h"
#include "checked.h"
#include "cmd.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

sae_choice sae_choice_any(void)
{
    sae_choice c = {-1, -1, NULL};
    return c;
}

int sae_choice_take(sae_choice *c, const args *a, int id)
{
    int64_t layer;
    int code;
    switch (id) {
    case OPT_SITE: return parse_site(a->value, &c->site);
    case OPT_LAYER:
        code = args_integer(a->option, a->value, 0, INT32_MAX, &layer);
        if (code == CMD_OK)
            c->layer = (int)layer;
        return code;
    case OPT_NAME: c->name = a->value; return CMD_OK;
    default: return complain(CMD_USAGE, "%s is not an option here", a->option);
    }
}

/* ---- the member ---- */

int sae_choice_fits(const qread *q, uint32_t member, const sae_choice *c)
{
    qsae_sae_record r = qread_sae(q, member);
    return (c->site < 0 || (int)r.site_in == c->site) &&
           (c->layer < 0 || (int64_t)r.layer_in == c->layer) &&
           (!c->name || strcmp(c->name, r.name) == 0);
}

uint32_t sae_choice_count(const qread *q, const sae_choice *c)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < q->head.n_records; i++)
        count += (uint32_t)sae_choice_fits(q, i, c);
    return count;
}

void sae_choice_list(const qread *q, const sae_choice *c, char *text, size_t cap)
{
    const size_t reserve = 24; /* for "and 65536 more" */
    uint32_t left = 0;
    for (uint32_t i = 0; i < q->head.n_records; i++) {
        char item[200];
        size_t at = strlen(text);
        if (!sae_choice_fits(q, i, c))
            continue;
        qsae_sae_record r = qread_sae(q, i);
        int n = snprintf(item, sizeof item, "%s%s.%u \"%.100s\"", at ? ", " : "",
                         qsae_site_name((qsae_site)r.site_in), (unsigned)r.layer_in,
                         name_z(r.name).text);
        if (left || n < 0 || (size_t)n >= sizeof item || at + (size_t)n + reserve > cap)
            left++;
        else
            memcpy(text + at, item, (size_t)n + 1);
    }
    if (left) {
        size_t at = strlen(text);
        snprintf(text + at, cap - at, "%s%u more", at ? ", and " : "", (unsigned)left);
    }
}

int sae_choice_complain(const qread *q, const sae_choice *c)
{
    char wanted[200] = "", list[500] = "";
    size_t at = 0;
    uint32_t n_fit = sae_choice_count(q, c);
    sae_choice any = sae_choice_any();
    sae_choice_list(q, n_fit ? c : &any, list, sizeof list);
    if (c->site >= 0)
        at += (size_t)snprintf(wanted, sizeof wanted, " at %s",
                               qsae_site_name((qsae_site)c->site));
    if (c->layer >= 0)
        at +=
            (size_t)snprintf(wanted + at, sizeof wanted - at, " of layer %d", c->layer);
    if (c->name)
        snprintf(wanted + at, sizeof wanted - at, " called '%.99s'", c->name);
    if (n_fit == 0)
        return complain(CMD_FAILED, "%.200s: none of its %u SAEs is%s: it has %s",
                        q->path, (unsigned)q->head.n_records, wanted, list);
    return complain(
        CMD_FAILED,
        "%.200s: %u of its %u SAEs fit%s; choose with --site, --layer, --name: %s",
        q->path, (unsigned)n_fit, (unsigned)q->head.n_records, wanted, list);
}

int sae_open_member(const input *in, const char *path, uint32_t member, qsae_sae **sae)
{
    qsae_error err;
    qsae_sae_options options;
    memset(&options, 0, sizeof options);
    options.open.isa = in->isa;
    options.open.verify = !in->no_verify;
    options.select = QSAE_SELECT_INDEX;
    options.index = (int32_t)member;
    if (qsae_sae_open(path, &options, sae, &err) != QSAE_OK)
        return complain_library(path, &err);
    return CMD_OK;
}

int sae_index(const input *in, const char *path, qread *q)
{
    char err[ERR_CAP];
    input quick = *in;
    qsae_sae *first = NULL;
    quick.no_verify = 1; /* the member that is used is verified when it is opened */
    int code = sae_open_member(&quick, path, 0, &first);
    qsae_sae_close(first);
    if (code == CMD_OK && qread_open(q, path, err, sizeof err))
        code = complain(CMD_FAILED, "%s", err);
    return code;
}

int sae_open_choice(const input *in, const char *path, const sae_choice *c,
                    qsae_sae **sae)
{
    qread q;
    int code = sae_index(in, path, &q);
    if (code != CMD_OK)
        return code;
    if (sae_choice_count(&q, c) != 1) {
        code = sae_choice_complain(&q, c);
    } else {
        uint32_t i = 0;
        while (!sae_choice_fits(&q, i, c))
            i++;
        code = sae_open_member(in, path, i, sae);
    }
    qread_close(&q);
    return code;
}

int sae_threads(const input *in)
{
    long n = in->threads ? in->threads : sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > 1024 ? 1024 : (int)n;
}

/* ---- feature numbers ---- */

/* "3,17,204": n numbers, ascending. */
static int parse_numbers(const char *text, size_t len, uint32_t n, uint32_t *list)
{
    size_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t v = 0;
        size_t begin = at;
        for (; at < len && text[at] >= '0' && text[at] <= '9' && v <= UINT32_MAX; at++)
            v = 10 * v + (uint64_t)(text[at] - '0');
        if (at == begin || v > UINT32_MAX || (i > 0 && v <= list[i - 1]))
            return -1;
        if (at < len ? i + 1 == n || text[at++] != ',' : i + 1 != n)
            return -1;
        list[i] = (uint32_t)v;
    }
    return 0;
}

int sae_numbers_read(const char *path, const qsae_sae_info *info, sae_numbers *out)
{
    char err[ERR_CAP], *meta = NULL;
    qread q;
    size_t len;
    int code = CMD_OK;
    memset(out, 0, sizeof *out);
    out->n = (uint32_t)info->d_sae;
    if (qread_open(&q, path, err, sizeof err))
        return complain(CMD_FAILED, "%s", err);
    if (qread_meta(&q, 1 + (uint32_t)info->index, &meta, err, sizeof err))
        code = complain(CMD_FAILED, "%s", err);
    const char *value = qread_meta_value(meta, "extract.features", &len);
    if (code == CMD_OK && value) {
        out->list = malloc(out->n * sizeof *out->list);
        if (!out->list)
            code = complain(CMD_FAILED, "out of memory");
        else if (parse_numbers(value, len, out->n, out->list))
            code = complain(CMD_FAILED,
                            "%.300s: extract.features is not a list of %u ascending "
                            "numbers",
                            path, (unsigned)out->n);
    }
    if (code != CMD_OK)
        sae_numbers_free(out);
    free(meta);
    qread_close(&q);
    return code;
}

void sae_numbers_free(sae_numbers *n)
{
    free(n->list);
    n->list = NULL;
}

uint32_t sae_number(const sae_numbers *n, uint32_t row)
{
    return n->list ? n->list[row] : row;
}

int sae_row(const sae_numbers *n, uint32_t number, uint32_t *row)
{
    uint32_t low = 0, high = n->n;
    if (!n->list) {
        *row = number;
        return number < n->n;
    }
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (n->list[mid] < number)
            low = mid + 1;
        else
            high = mid;
    }
    *row = low;
    return low < n->n && n->list[low] == number;
}

int sae_complain_number(const sae_numbers *n, const char *what, uint32_t number)
{
    if (!n->list)
        return complain(CMD_FAILED, "%.200s: the SAE has features 0..%u, not %u", what,
                        (unsigned)n->n - 1, (unsigned)number);
    return complain(CMD_FAILED,
                    "%.200s: the SAE is a pack of %u features in %u..%u, and %u is not "
                    "among them",
                    what, (unsigned)n->n, (unsigned)n->list[0],
                    (unsigned)n->list[n->n - 1], (unsigned)number);
}
