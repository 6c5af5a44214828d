/* eval.json as one page (see eval.h): no script, nothing from elsewhere, light and dark. */

#define _POSIX_C_SOURCE 200809L

#include "eval.h"

#include <math.h>
#include <stdlib.h>

#include "json.h"
#include "svg.h"

#define MOST_HISTOGRAMS 120
#define LEAST_COST      0.05
#define PANEL_WIDTH     380
#define PANEL_HEIGHT    280

static const char style[] =
    ":root{--bg:#fbfbf9;--ink:#1c1d21;--soft:#5d606a;--line:#dfe0e4;--card:#fff;"
    "--s0:#2563c9;--s1:#c2410c;--s2:#0f7b5f;--s3:#8b3fb8;--s4:#9a6a00;--s5:#b02a5b;"
    "--s6:#4b5563;--s7:#0e7490}\n"
    "@media(prefers-color-scheme:dark){:root{--bg:#15161a;--ink:#e8e9ed;--soft:#a2a5b0;"
    "--line:#32343c;--card:#1d1f25;--s0:#7aa8ff;--s1:#ff9a62;--s2:#4cc9a0;--s3:#cf95f5;"
    "--s4:#e0b040;--s5:#ff82ab;--s6:#aab0bc;--s7:#5cc8e0}}\n"
    "*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);"
    "font:16px/1.5 system-ui,-apple-system,\"Segoe UI\",Roboto,sans-serif}\n"
    "main{max-width:1240px;margin:0 auto;padding:24px 16px 64px}\n"
    "h1{font-size:26px;line-height:1.2;margin:8px 0 4px}h2{font-size:19px;margin:36px 0 4px}"
    "p{max-width:70ch;margin:4px 0 12px}.soft{color:var(--soft)}\n"
    ".facts{display:flex;flex-wrap:wrap;gap:4px 28px;margin:12px 0;padding:0;"
    "list-style:none}.facts b{font-variant-numeric:tabular-nums}\n"
    ".plots{display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(min(340px,"
    "100%),1fr))}.small{grid-template-columns:repeat(auto-fill,minmax(min(200px,46%),1fr))}"
    "\n"
    "svg{width:100%;height:auto;background:var(--card);border:1px solid var(--line);"
    "border-radius:8px;display:block}\n"
    "text{font:11.5px system-ui,-apple-system,\"Segoe UI\",Roboto,sans-serif;"
    "fill:var(--soft)}text.title{fill:var(--ink);font-weight:600;font-size:13px}"
    "text.note{fill:var(--ink);font-size:10.5px}\n"
    ".small text{font-size:13px}.small text.title{font-size:13.5px}\n"
    ".grid{stroke:var(--line);stroke-width:1}.frame{stroke:var(--soft);stroke-width:1}\n"
    ".legend{display:flex;flex-wrap:wrap;gap:2px 18px;margin:6px 0 10px;padding:0;"
    "list-style:none;font-size:14px}.legend i{display:inline-block;width:11px;height:11px;"
    "border-radius:50%;margin-right:6px;border:2px solid transparent}\n"
    ".scroll{overflow-x:auto;border:1px solid var(--line);border-radius:8px;"
    "background:var(--card)}table{border-collapse:collapse;font-size:13.5px;width:100%;"
    "font-variant-numeric:tabular-nums}th,td{padding:5px 10px;text-align:right;"
    "white-space:nowrap;border-bottom:1px solid var(--line)}th{color:var(--soft);"
    "font-weight:600}th:first-child,td:first-child{text-align:left;position:sticky;left:0;"
    "background:var(--card)}tr:last-child td{border-bottom:0}td small{color:var(--soft)}\n"
    "details{margin:16px 0}summary{cursor:pointer}dt{font-family:ui-monospace,Menlo,"
    "Consolas,monospace;font-size:13.5px;margin-top:6px}dd{margin:0 0 0 16px;"
    "color:var(--soft)}\n";

/* One unit, as far as the page needs it. */
typedef struct row {
    const json_value *unit, *kept;
    const char *kind, *name, *site, *variant;
    int64_t layer;
    double l0, ev, recovered, delta;
} row;

typedef struct page {
    const json_doc *doc;
    FILE *f;
    row *rows; /* [n] */
    size_t n;
} page;

static const char *text_of(const json_doc *doc, const json_value *v, const char *key)
{
    const json_value *t = json_get(doc, v, key);
    return t && t->type == JSON_STRING ? t->str : "";
}

static double number_of(const json_doc *doc, const json_value *v, const char *key)
{
    double x;
    return json_real(json_get(doc, v, key), &x) ? x : NAN;
}

static void put(FILE *f, const char *s)
{
    svg_text(f, s, strlen(s));
}

/* What a name says beyond its site and layer. */
static const char *variant_of(const row *r)
{
    char begin[64];
    int n = snprintf(begin, sizeof begin, "%.40s.%lld", r->site, (long long)r->layer);
    return strncmp(r->name, begin, (size_t)n) == 0 ? r->name + n : r->name;
}

static int read_rows(page *p)
{
    const json_value *units = json_get(p->doc, json_root(p->doc), "units");
    p->rows = calloc(units ? units->n + 1 : 1, sizeof *p->rows);
    if (!p->rows)
        return -1;
    for (const json_value *u = json_first(p->doc, units); u; u = json_next(p->doc, u)) {
        row *r = &p->rows[p->n++];
        r->unit = u;
        r->kept = json_get(p->doc, json_get(p->doc, u, "groups"), "kept");
        r->kind = text_of(p->doc, u, "kind");
        r->name = text_of(p->doc, u, "name");
        r->site = text_of(p->doc, u, "site");
        if (!json_int(json_get(p->doc, u, "layer"), &r->layer))
            r->layer = -1;
        r->variant = variant_of(r);
        r->l0 = number_of(p->doc, r->kept, "L0");
        r->ev = number_of(p->doc, r->kept, "EV_mean");
        r->recovered = number_of(p->doc, r->kept, "recovered_mean");
        r->delta = number_of(p->doc, r->kept, "delta_loss");
        double orig = number_of(p->doc, r->kept, "CE_orig");
        if (!(number_of(p->doc, r->kept, "CE_mean") - orig >= LEAST_COST * orig))
            r->recovered = NAN; /* next to nothing to recover: no plot of that */
    }
    return 0;
}

static int is_sae(const row *r)
{
    return strcmp(r->kind, "sae") == 0 || strcmp(r->kind, "transcoder") == 0;
}

static int is_joint(const row *r)
{
    return strcmp(r->kind, "joint") == 0;
}

/* The three sites of the paper first. */
static int color_of(const char *site)
{
    static const char *const order[] = {"resid_post", "mlp_out",   "attn_out",
                                        "resid_pre",  "resid_mid", "mlp_input",
                                        "attn_z"};
    for (int i = 0; i < 7; i++)
        if (strcmp(order[i], site) == 0)
            return i;
    return 7;
}

static double value_of(const row *r, int what)
{
    return what == 0 ? r->ev : what == 1 ? r->recovered : r->delta;
}

static void grow(double v, double *low, double *high)
{
    *low = v < *low ? v : *low;
    *high = v > *high ? v : *high;
}

/* ------------------------------------------------------------------------------- plots */

static int by_l0(const void *a, const void *b)
{
    const row *x = *(const row *const *)a, *y = *(const row *const *)b;
    if (x->layer != y->layer)
        return x->layer < y->layer ? -1 : 1;
    return (x->l0 > y->l0) - (x->l0 < y->l0);
}

static void tip_of(const row *r, char *text, size_t cap)
{
    snprintf(text, cap,
             "%.80s%s%.20s: L0 %.1f, EV %.4f, recovered %.4f, delta loss %.4f", r->name,
             is_sae(r) ? "" : ", ", is_sae(r) ? "" : r->kind, r->l0, r->ev,
             r->recovered, r->delta);
}

/* A control that is far out would leave no room for the SAEs: it is in the table only. */
static int is_shown(const row *r, int what)
{
    double v = value_of(r, what);
    return is_sae(r) || (v > 0 && v < 1.5);
}

/* L0 against EV (0) or recovered (1) of one site: a line joins the SAEs of a layer. */
static void trade_off(page *p, const char *site, int what)
{
    static const char *const labels[] = {"EV_mean", "recovered_mean"};
    plot g = {p->f,        INFINITY,     0, INFINITY, -INFINITY, 1,
              PANEL_WIDTH, PANEL_HEIGHT, 0, 0};
    const row **list = malloc((p->n + 1) * sizeof *list);
    double *x = malloc(2 * (p->n + 1) * sizeof *x), *y = x + p->n + 1;
    size_t n = 0;
    char tip[256], label[24];
    for (size_t i = 0; i < p->n && list && x; i++) {
        const row *r = &p->rows[i];
        if (is_joint(r) || strcmp(r->site, site) != 0 || !(r->l0 > 0) ||
            !isfinite(value_of(r, what)) || !is_shown(r, what))
            continue;
        list[n++] = r;
        grow(r->l0, &g.x0, &g.x1);
        grow(value_of(r, what), &g.y0, &g.y1);
    }
    if (n > 0 && isfinite(g.y0)) {
        grow(1, &g.y0, &g.y1);
        qsort(list, n, sizeof *list, by_l0);
        plot_begin(&g, p->f, site, "L0", labels[what], 1, 0);
        for (size_t i = 0; i < n;) {
            size_t m = 0, from = i;
            for (; i < n && list[i]->layer == list[from]->layer; i++)
                if (is_sae(list[i])) {
                    x[m] = list[i]->l0;
                    y[m++] = value_of(list[i], what);
                }
            plot_line(&g, x, y, m, color_of(site), 0);
        }
        for (size_t i = 0; i < n; i++) {
            tip_of(list[i], tip, sizeof tip);
            plot_point(&g, list[i]->l0, value_of(list[i], what),
                       is_sae(list[i])                        ? color_of(site)
                       : strcmp(list[i]->kind, "random") == 0 ? 6
                                                              : 4,
                       !is_sae(list[i]), tip);
            snprintf(label, sizeof label, "%lld", (long long)list[i]->layer);
            if (is_sae(list[i]))
                plot_label(&g, list[i]->l0, value_of(list[i], what), label);
        }
        plot_end(&g);
    }
    free(list);
    free(x);
}

/* The number of a row's variant, in the order of their first rows. */
static int dash_of(const page *p, size_t i)
{
    int n = 0;
    for (size_t k = 0; k < i; k++) {
        size_t j = 0;
        if (strcmp(p->rows[k].variant, p->rows[i].variant) == 0)
            return dash_of(p, k);
        while (j < k && strcmp(p->rows[j].variant, p->rows[k].variant) != 0)
            j++;
        n += j == k && is_sae(&p->rows[k]);
    }
    return n;
}

/* Every (site, variant) once: is row i the first of its curve? */
static int begins_curve(const page *p, size_t i)
{
    for (size_t k = 0; k < i; k++)
        if (is_sae(&p->rows[k]) && strcmp(p->rows[k].site, p->rows[i].site) == 0 &&
            strcmp(p->rows[k].variant, p->rows[i].variant) == 0)
            return 0;
    return is_sae(&p->rows[i]);
}

/* By layer: EV, recovered, delta loss; a curve for every site and variant. */
static void by_layer(page *p, int what)
{
    static const char *const titles[] = {"Explained variance by layer",
                                         "Loss recovered by layer",
                                         "Delta loss by layer"};
    static const char *const labels[] = {"EV_mean", "recovered_mean",
                                         "delta_loss, nats"};
    plot g = {p->f, INFINITY,    -INFINITY,    INFINITY, -INFINITY,
              0,    PANEL_WIDTH, PANEL_HEIGHT, 0,        0};
    double *x = malloc(2 * (p->n + 1) * sizeof *x), *y = x + p->n + 1;
    char tip[256];
    for (size_t i = 0; i < p->n; i++)
        if (is_sae(&p->rows[i]) && isfinite(value_of(&p->rows[i], what))) {
            grow((double)p->rows[i].layer, &g.x0, &g.x1);
            grow(value_of(&p->rows[i], what), &g.y0, &g.y1);
        }
    if (!x || !isfinite(g.y0)) {
        free(x);
        return;
    }
    grow(what == 2 ? 0 : 1, &g.y0, &g.y1);
    plot_begin(&g, p->f, titles[what], "layer", labels[what], 0, 1);
    for (size_t i = 0; i < p->n; i++) {
        const row *first = &p->rows[i];
        size_t n = 0;
        if (!begins_curve(p, i))
            continue;
        for (int64_t layer = (int64_t)floor(g.x0); (double)layer <= g.x1; layer++)
            for (size_t k = i; k < p->n; k++) {
                const row *r = &p->rows[k];
                if (!is_sae(r) || r->layer != layer ||
                    strcmp(r->site, first->site) != 0 ||
                    strcmp(r->variant, first->variant) != 0 ||
                    !isfinite(value_of(r, what)) || n > p->n)
                    continue;
                x[n] = (double)layer;
                y[n++] = value_of(r, what);
                tip_of(r, tip, sizeof tip);
                plot_point(&g, x[n - 1], y[n - 1], color_of(r->site), 0, tip);
            }
        plot_line(&g, x, y, n, color_of(first->site), dash_of(p, i));
    }
    plot_end(&g);
    free(x);
}

/* Share of the features in every quarter decade. */
static void histogram(page *p, const row *r)
{
    const json_value *features = json_get(p->doc, r->unit, "features");
    const json_value *bins = json_get(p->doc, features, "histogram");
    double total = number_of(p->doc, features, "n"), most = 0, x = -7, v;
    plot g = {p->f, -7, 0, 0, 0, 0, 260, 170, 0, 0};
    char title[160];
    if (!bins || bins->n == 0 || !(total > 0))
        return;
    double step = 7.0 / bins->n;
    for (const json_value *b = json_first(p->doc, bins); b; b = json_next(p->doc, b))
        if (json_real(b, &v) && v / total > most)
            most = v / total;
    g.y1 = most;
    snprintf(title, sizeof title, "%.28s: %.1f %% dead", r->name,
             100 * number_of(p->doc, features, "dead"));
    plot_begin(&g, p->f, title, "", "", 0, 1);
    for (const json_value *b = json_first(p->doc, bins); b;
         b = json_next(p->doc, b), x += step)
        if (json_real(b, &v) && v > 0)
            plot_bar(&g, x, x + step, v / total, color_of(r->site));
    plot_end(&g);
}

/* ------------------------------------------------------------------------------- table */

static void cell(page *p, const json_value *from, const char *key, int digits,
                 const json_value *intervals)
{
    double v = number_of(p->doc, from, key), low, high;
    if (!isfinite(v)) {
        fputs("<td>&ndash;</td>", p->f);
        return;
    }
    fprintf(p->f, "<td>%.*f", digits, v);
    const json_value *pair = json_get(p->doc, intervals, key);
    const json_value *first = pair && pair->n == 2 ? json_first(p->doc, pair) : NULL;
    if (first && json_real(first, &low) && json_real(json_next(p->doc, first), &high))
        fprintf(p->f, " <small>%.*f&hairsp;&ndash;&hairsp;%.*f</small>", digits, low,
                digits, high);
    fputs("</td>", p->f);
}

static void table_row(page *p, const row *r)
{
    const json_value *ci = json_get(p->doc, r->unit, "ci95");
    const json_value *features = json_get(p->doc, r->unit, "features");
    fputs("<tr><td>", p->f);
    put(p->f, r->name);
    if (!is_sae(r))
        fprintf(p->f, " <small>%s</small>", r->kind);
    fputs("</td>", p->f);
    cell(p, r->kept, "L0", 1, NULL);
    cell(p, r->kept, "EV_mean", 4, ci);
    cell(p, r->kept, "FVE_var", 4, NULL);
    cell(p, r->kept, "FVU_zero", 4, NULL);
    cell(p, r->kept, "cosine", 4, NULL);
    cell(p, r->kept, "L2_ratio", 3, NULL);
    cell(p, features, "dead", 3, NULL);
    cell(p, r->kept, "delta_loss", 4, ci);
    cell(p, r->kept, "recovered_mean", 4, ci);
    cell(p, r->kept, "recovered_zero", 4, NULL);
    cell(p, r->kept, "KL", 4, ci);
    cell(p, r->kept, "top1", 4, NULL);
    fputs("</tr>\n", p->f);
}

static void table(page *p, int joint)
{
    fputs(
        "<div class=\"scroll\"><table><thead><tr><th>name</th><th>L0</th><th>EV_mean</th>"
        "<th>FVE_var</th><th>FVU_zero</th><th>cosine</th><th>L2_ratio</th><th>dead</th>"
        "<th>delta_loss</th><th>recovered_mean</th><th>recovered_zero</th><th>KL</th>"
        "<th>top1</th></tr></thead><tbody>\n",
        p->f);
    for (size_t i = 0; i < p->n; i++)
        if (is_joint(&p->rows[i]) == joint)
            table_row(p, &p->rows[i]);
    fputs("</tbody></table></div>\n", p->f);
}

static void table_classes(page *p)
{
    static const char *const groups[] = {"all",  "text",      "system",
                                         "user", "assistant", "template"};
    fputs("<div class=\"scroll\"><table><thead><tr><th>name</th>", p->f);
    for (size_t g = 0; g < 6; g++)
        fprintf(p->f, "<th>EV, %s</th><th>&Delta; loss, %s</th>", groups[g], groups[g]);
    fputs("</tr></thead><tbody>\n", p->f);
    for (size_t i = 0; i < p->n; i++) {
        if (!is_sae(&p->rows[i]))
            continue;
        const json_value *all = json_get(p->doc, p->rows[i].unit, "groups");
        fputs("<tr><td>", p->f);
        put(p->f, p->rows[i].name);
        fputs("</td>", p->f);
        for (size_t g = 0; g < 6; g++) {
            cell(p, json_get(p->doc, all, groups[g]), "EV_mean", 4, NULL);
            cell(p, json_get(p->doc, all, groups[g]), "delta_loss", 4, NULL);
        }
        fputs("</tr>\n", p->f);
    }
    fputs("</tbody></table></div>\n", p->f);
}

/* -------------------------------------------------------------------------------- page */

static void fact(page *p, const char *what, double v)
{
    fprintf(p->f, "<li>%s <b>%.6g</b></li>", what, v);
}

static void head(page *p)
{
    const json_value *root = json_root(p->doc);
    const json_value *model = json_get(p->doc, root, "model");
    const json_value *data = json_get(p->doc, root, "data");
    const json_value *original =
        json_get(p->doc, json_get(p->doc, root, "original"), "all");
    fputs("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
          "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
          "<meta name=\"color-scheme\" content=\"light dark\"><title>",
          p->f);
    put(p->f, text_of(p->doc, model, "saes"));
    fprintf(p->f, "</title>\n<style>%s", style);
    for (int i = 0; i < 8; i++)
        fprintf(
            p->f,
            ".c%d{fill:var(--s%d)}.h%d{fill:none;stroke:var(--s%d);stroke-width:1.6}"
            ".l%d{fill:none;stroke:var(--s%d);stroke-width:1.6}\n",
            i, i, i, i, i, i);
    fputs("</style></head><body><main>\n<h1>", p->f);
    put(p->f, text_of(p->doc, model, "saes"));
    fputs("</h1>\n<p class=\"soft\">Sparse autoencoders of ", p->f);
    put(p->f, text_of(p->doc, model, "file"));
    fputs(", measured by <code>qsae eval</code></p>\n<ul class=\"facts\">", p->f);
    fact(p, "units", (double)p->n);
    fact(p, "tokens", number_of(p->doc, data, "tokens"));
    fact(p, "sequences", number_of(p->doc, data, "sequences"));
    fact(p, "context", number_of(p->doc, data, "context"));
    fact(p, "loss of the model, nats", number_of(p->doc, original, "CE"));
    fputs(
        "</ul>\n<p>L0 is how many features are active for a token. EV_mean is how much of "
        "the rows' variance around their mean the reconstruction explains. Delta loss is "
        "what the model's prediction loses when rows are replaced by their "
        "reconstructions; recovered_mean is the share of the way back from rows replaced "
        "by their mean. Excluded: ",
        p->f);
    put(p->f, text_of(p->doc, root, "excluded"));
    fputs(".</p>\n", p->f);
}

/* Is row i the first of its site? */
static int begins_site(const page *p, size_t i)
{
    for (size_t k = 0; k < i; k++)
        if (is_sae(&p->rows[k]) && strcmp(p->rows[k].site, p->rows[i].site) == 0)
            return 0;
    return is_sae(&p->rows[i]);
}

static int has_kind(const page *p, const char *kind)
{
    for (size_t i = 0; i < p->n; i++)
        if (strcmp(p->rows[i].kind, kind) == 0)
            return 1;
    return 0;
}

static void legend(page *p, int controls)
{
    fputs("<ul class=\"legend\">", p->f);
    for (size_t i = 0; i < p->n; i++)
        if (begins_site(p, i)) {
            fprintf(p->f, "<li><i style=\"background:var(--s%d)\"></i>",
                    color_of(p->rows[i].site));
            put(p->f, p->rows[i].site);
            fputs("</li>", p->f);
        }
    if (controls && has_kind(p, "random"))
        fputs(
            "<li><i style=\"border-color:var(--s6)\"></i>random dictionary of the same "
            "L0</li>",
            p->f);
    if (controls && has_kind(p, "pca"))
        fputs("<li><i style=\"border-color:var(--s4)\"></i>as many principal "
              "components</li>",
              p->f);
    fputs("</ul>\n", p->f);
}

/* Which line is which, where a site has several. */
static void variants(page *p)
{
    static const char *const looks[] = {"solid", "dashed", "dotted", "finely dotted"};
    int n = 0, last = -1;
    fputs("<p>A line for every site", p->f);
    for (size_t i = 0; i < p->n; i++)
        n = is_sae(&p->rows[i]) && dash_of(p, i) > n ? dash_of(p, i) : n;
    for (size_t i = 0; i < p->n && n > 0 && n < 4; i++) {
        if (!is_sae(&p->rows[i]) || dash_of(p, i) <= last)
            continue;
        last = dash_of(p, i);
        fprintf(p->f, "%s%s: ", last ? ", " : "; ", looks[last]);
        put(p->f, p->rows[i].variant + (p->rows[i].variant[0] == '.'));
    }
    fputs(n < 4 ? ".</p>\n" : " and variant.</p>\n", p->f);
}

static void plots(page *p)
{
    fputs(
        "<h2>Sparsity and fidelity</h2>\n<p>A point is an SAE, the number its layer; a "
        "line joins the SAEs of one layer. recovered_mean is plotted "
        "where replacing rows by their mean costs at least 5 % of the loss: of less "
        "there is little to recover.</p>\n",
        p->f);
    legend(p, 1);
    fputs("<div class=\"plots\">\n", p->f);
    for (int what = 0; what < 2; what++)
        for (size_t i = 0; i < p->n; i++)
            if (begins_site(p, i))
                trade_off(p, p->rows[i].site, what);
    fputs("</div>\n<h2>By layer</h2>\n", p->f);
    variants(p);
    legend(p, 0);
    fputs("<div class=\"plots\">\n", p->f);
    for (int what = 0; what < 3; what++)
        by_layer(p, what);
    fputs("</div>\n", p->f);
}

static void histograms(page *p)
{
    size_t shown = 0, all = 0;
    for (size_t i = 0; i < p->n; i++)
        all += (size_t)is_sae(&p->rows[i]);
    fputs(
        "<h2>How often features fire</h2>\n<p>Share of the features by log10 of the share "
        "of tokens that fire them. Features that never fire are not in the bars.",
        p->f);
    if (all > MOST_HISTOGRAMS)
        fprintf(p->f, " The first %d of %zu SAEs; eval.json has all.", MOST_HISTOGRAMS,
                all);
    fputs("</p>\n<div class=\"plots small\">\n", p->f);
    for (size_t i = 0; i < p->n && shown < MOST_HISTOGRAMS; i++)
        if (is_sae(&p->rows[i])) {
            histogram(p, &p->rows[i]);
            shown++;
        }
    fputs("</div>\n", p->f);
}

static void formulas(page *p)
{
    const json_value *list = json_get(p->doc, json_root(p->doc), "formulas");
    fputs("<details><summary>Formulas</summary><dl>\n", p->f);
    for (const json_value *v = json_first(p->doc, list); v; v = json_next(p->doc, v)) {
        size_t n;
        const char *key = json_key(p->doc, v, &n);
        fputs("<dt>", p->f);
        svg_text(p->f, key, n);
        fputs("</dt><dd>", p->f);
        if (v->type == JSON_STRING)
            put(p->f, v->str);
        fputs("</dd>\n", p->f);
    }
    fputs("</dl></details>\n", p->f);
}

static void write_page(page *p)
{
    const char *skipped = text_of(p->doc, json_root(p->doc), "skipped");
    head(p);
    plots(p);
    fputs(
        "<h2>All numbers</h2>\n<p>Over the kept tokens; the small range is a 95 % bootstrap "
        "interval over sequences.</p>\n",
        p->f);
    table(p, 0);
    if (has_kind(p, "joint")) {
        fputs("<h2>Joint splices</h2>\n<p>The rows of several SAEs replaced at once: a "
              "different and much harder number than any above.</p>\n",
              p->f);
        table(p, 1);
    }
    if (skipped[0]) {
        fputs("<p class=\"soft\">Not made: ", p->f);
        put(p->f, skipped);
        fputs(".</p>\n", p->f);
    }
    fputs(
        "<h2>By class of token</h2>\n<p>\"all\" has the excluded tokens, too; the other "
        "groups have not.</p>\n",
        p->f);
    table_classes(p);
    histograms(p);
    formulas(p);
    fputs("</main></body></html>\n", p->f);
}

char *eval_report(const struct json_doc *doc, size_t *len)
{
    char *text = NULL;
    page p = {doc, NULL, NULL, 0};
    if (read_rows(&p))
        return NULL;
    p.f = open_memstream(&text, len);
    if (p.f)
        write_page(&p);
    int bad = !p.f || ferror(p.f);
    if (p.f)
        bad |= fclose(p.f);
    free(p.rows);
    if (bad) {
        free(text);
        return NULL;
    }
    return text;
}
