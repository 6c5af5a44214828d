/* progress.h: one line on stderr about work that takes long: "writing  45 %  310 MB/s
 * ETA 3 s". Nothing where stderr is not a terminal, and nothing in the first half
 * second. */

#ifndef QSAE_TOOLS_PROGRESS_H
#define QSAE_TOOLS_PROGRESS_H

#include <stdint.h>

typedef struct progress {
    const char *what;                   /* not copied */
    uint64_t total, done, begun, shown; /* bytes; milliseconds */
    int terminal, width;                /* characters on the screen */
} progress;

void progress_begin(progress *p, const char *what, uint64_t total);
void progress_add(progress *p, uint64_t bytes);
/* A line of the caller's own in its place, shown at most five times a second. */
void progress_say(progress *p, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 2, 3)))
#endif
    ;
/* Wipes the line; also before anything else is printed. */
void progress_end(progress *p);

#endif
