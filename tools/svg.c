/* Small plots as inline SVG (see svg.h). */

#include "svg.h"

#include <math.h>
#include <string.h>

#define TOP   26
#define RIGHT 14

void svg_text(FILE *f, const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c == '<')
            fputs("&lt;", f);
        else if (c == '>')
            fputs("&gt;", f);
        else if (c == '&')
            fputs("&amp;", f);
        else if (c == '"')
            fputs("&quot;", f);
        else if (c >= 0x20 && c != 0x7F)
            fputc(c, f);
    }
}

static double at_x(const plot *p, double x)
{
    double a = p->log_x ? log10(p->x0) : p->x0, b = p->log_x ? log10(p->x1) : p->x1;
    return p->left +
           ((p->log_x ? log10(x) : x) - a) / (b - a) * (p->width - p->left - RIGHT);
}

static double at_y(const plot *p, double y)
{
    return p->height - p->bottom -
           (y - p->y0) / (p->y1 - p->y0) * (p->height - p->bottom - TOP);
}

/* A step of 1, 2 or 5 times a power of ten that gives at most `most` ticks. */
static double step_of(double span, int most)
{
    double step = pow(10, floor(log10(span / most)));
    static const double times[] = {1, 2, 5, 10};
    for (int i = 0; i < 4; i++)
        if (span / (step * times[i]) <= most)
            return step * times[i];
    return step * 10;
}

static void widen(double *low, double *high, double least)
{
    double span = *high - *low;
    if (!(span > least)) {
        double middle = (*low + *high) / 2;
        *low = middle - least / 2;
        *high = middle + least / 2;
        span = least;
    }
    *low -= 0.06 * span;
    *high += 0.06 * span;
}

static void tick_x(const plot *p, double x)
{
    double at = at_x(p, x);
    fprintf(
        p->f,
        "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\"/>"
        "<text class=\"axis\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%.6g</text>\n",
        at, at, TOP, p->height - p->bottom, at, p->height - p->bottom + 15, x);
}

static void ticks_x(const plot *p, int whole)
{
    static const double times[] = {1, 2, 5};
    if (!p->log_x) {
        double step = step_of(p->x1 - p->x0, 8);
        if (whole && step < 1)
            step = 1;
        for (double i = ceil(p->x0 / step); i * step <= p->x1; i++)
            tick_x(p, i * step + 0.0);
        return;
    }
    if (p->x1 / p->x0 < 12) { /* too few powers of ten to go by */
        double step = step_of(p->x1 - p->x0, 6);
        for (double i = ceil(p->x0 / step); i * step <= p->x1; i++)
            tick_x(p, i * step);
        return;
    }
    for (double d = floor(log10(p->x0)); d <= ceil(log10(p->x1)); d++)
        for (int i = 0; i < 3; i++) {
            double x = pow(10, d) * times[i];
            if (x >= p->x0 && x <= p->x1 && (i == 0 || p->x1 / p->x0 < 300))
                tick_x(p, x);
        }
}

static void ticks_y(const plot *p)
{
    double step = step_of(p->y1 - p->y0, 6);
    for (double i = ceil(p->y0 / step); i * step <= p->y1; i++) {
        double at = at_y(p, i * step);
        fprintf(
            p->f,
            "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>"
            "<text class=\"axis\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.6g</text>\n",
            p->left, p->width - RIGHT, at, at, p->left - 6, at + 4, i * step + 0.0);
    }
}

void plot_begin(plot *p, FILE *f, const char *title, const char *x_label,
                const char *y_label, int log_x, int whole_x)
{
    p->f = f;
    p->log_x = log_x;
    if (log_x) {
        double a = log10(p->x0), b = log10(p->x1);
        widen(&a, &b, 0.3);
        p->x0 = pow(10, a);
        p->x1 = pow(10, b);
    } else {
        widen(&p->x0, &p->x1, whole_x ? 1 : 1e-6);
    }
    widen(&p->y0, &p->y1, 1e-3);
    p->bottom = x_label[0] ? 40 : 24;
    p->left = y_label[0] ? 62 : 40;
    fprintf(f, "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"", p->width,
            p->height);
    svg_text(f, title, strlen(title));
    fprintf(f, "\">\n<text class=\"title\" x=\"%d\" y=\"15\">",
            y_label[0] ? p->left : 8);
    svg_text(f, title, strlen(title));
    fputs("</text>\n", f);
    ticks_x(p, whole_x);
    ticks_y(p);
    fprintf(f,
            "<text class=\"axis\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>"
            "<text class=\"axis\" transform=\"translate(13 %.1f) rotate(-90)\" "
            "text-anchor=\"middle\">%s</text>\n",
            (p->left + p->width - RIGHT) / 2.0, p->height - 6, x_label,
            (TOP + p->height - p->bottom) / 2.0, y_label);
}

void plot_point(const plot *p, double x, double y, int series, int hollow,
                const char *tip)
{
    fprintf(p->f, "<circle class=\"%s%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"%d\"><title>",
            hollow ? "h" : "c", series, at_x(p, x), at_y(p, y), hollow ? 3 : 4);
    svg_text(p->f, tip, strlen(tip));
    fputs("</title></circle>\n", p->f);
}

void plot_line(const plot *p, const double *x, const double *y, size_t n, int series,
               int dash)
{
    static const char *const patterns[] = {"", "7 4", "3 3", "1 3"};
    if (n < 2)
        return;
    fprintf(p->f, "<polyline class=\"l%d\"", series);
    if (dash)
        fprintf(p->f, " stroke-dasharray=\"%s\"", patterns[dash < 3 ? dash : 3]);
    fputs(" points=\"", p->f);
    for (size_t i = 0; i < n; i++)
        fprintf(p->f, "%s%.1f,%.1f", i ? " " : "", at_x(p, x[i]), at_y(p, y[i]));
    fputs("\"/>\n", p->f);
}

void plot_bar(const plot *p, double x0, double x1, double y, int series)
{
    double left = at_x(p, x0), top = at_y(p, y), base = at_y(p, 0);
    fprintf(
        p->f,
        "<rect class=\"c%d\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/>",
        series, left + 0.5, top, at_x(p, x1) - left - 1, base - top);
}

void plot_label(const plot *p, double x, double y, const char *text)
{
    fprintf(p->f, "<text class=\"note\" x=\"%.1f\" y=\"%.1f\">", at_x(p, x) + 6,
            at_y(p, y) - 5);
    svg_text(p->f, text, strlen(text));
    fputs("</text>\n", p->f);
}

void plot_end(const plot *p)
{
    fprintf(p->f,
            "<line class=\"frame\" x1=\"%d\" x2=\"%d\" y1=\"%d\" y2=\"%d\"/></svg>\n",
            p->left, p->width - RIGHT, p->height - p->bottom, p->height - p->bottom);
}
