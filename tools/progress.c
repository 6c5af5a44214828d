#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#include "progress.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define FIRST_MS 500u
#define EVERY_MS 200u

static uint64_t now_ms(void)
{
    struct timespec t;
    if (clock_gettime(CLOCK_MONOTONIC, &t))
        return 0;
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

void progress_begin(progress *p, const char *what, uint64_t total)
{
    memset(p, 0, sizeof *p);
    p->what = what;
    p->total = total;
    p->terminal = isatty(STDERR_FILENO);
    if (p->terminal)
        p->begun = p->shown = now_ms();
}

static void put(progress *p, const char *text, int n, uint64_t now)
{
    fprintf(stderr, "\r%-*s", p->width, text);
    fflush(stderr);
    p->width = n > p->width ? n : p->width;
    p->shown = now;
}

static void show(progress *p, uint64_t now)
{
    double seconds = (double)(now - p->begun) / 1e3, speed = (double)p->done / seconds;
    uint64_t left = p->total > p->done ? p->total - p->done : 0;
    char text[100];
    int n = snprintf(text, sizeof text, "%s %3.0f %%  %.0f MB/s  ETA %.0f s", p->what,
                     p->total ? 100.0 * (double)p->done / (double)p->total : 100.0,
                     speed / 1e6, speed > 0 ? (double)left / speed : 0.0);
    put(p, text, n, now);
}

static int is_due(const progress *p, uint64_t now)
{
    return now - p->begun >= FIRST_MS && now - p->shown >= EVERY_MS;
}

void progress_add(progress *p, uint64_t bytes)
{
    p->done += bytes;
    if (!p->terminal)
        return;
    uint64_t now = now_ms();
    if (is_due(p, now))
        show(p, now);
}

void progress_say(progress *p, const char *format, ...)
{
    char text[160];
    va_list ap;
    uint64_t now = p->terminal ? now_ms() : 0;
    if (!p->terminal || !is_due(p, now))
        return;
    va_start(ap, format);
    vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    put(p, text, (int)strlen(text), now);
}

void progress_end(progress *p)
{
    if (p->width > 0) {
        fprintf(stderr, "\r%*s\r", p->width, "");
        fflush(stderr);
    }
    p->width = 0;
    p->terminal = 0;
}
