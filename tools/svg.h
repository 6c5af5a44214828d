/* svg.h: small plots as inline SVG. Colours are the page's: every mark has a class, c0 .. c7
 * for the colours of series, and "axis", "grid", "note" (see the style in eval_report.c). */

#ifndef QSAE_TOOLS_SVG_H
#define QSAE_TOOLS_SVG_H

#include <stddef.h>
#include <stdio.h>

typedef struct plot {
    FILE *f;
    double x0, x1, y0, y1; /* what the axes show */
    int log_x;
    int width, height, left, bottom; /* of the picture; its margins */
} plot;

/* s with the characters that mean something to HTML escaped, and control characters left
 * out. */
void svg_text(FILE *f, const char *s, size_t n);

/* The axes, for values between the limits (equal ones are spread); log_x: those of x are
 * above 0. whole_x: ticks of x at integers only. */
void plot_begin(plot *p, FILE *f, const char *title, const char *x_label,
                const char *y_label, int log_x, int whole_x);
void plot_point(const plot *p, double x, double y, int series, int hollow,
                const char *tip);
/* dash: 0 is a solid line, 1, 2, 3 are dashed more and more finely. */
void plot_line(const plot *p, const double *x, const double *y, size_t n, int series,
               int dash);
void plot_bar(const plot *p, double x0, double x1, double y, int series);
void plot_label(const plot *p, double x, double y, const char *text);
void plot_end(const plot *p);

#endif
