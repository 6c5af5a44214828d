/* outfile.h: output files that appear whole or not at all.
 *
 * Data goes to a file without a name (Linux's O_TMPFILE), or, where that cannot be had,
 * to one named NAME.tmp-PID-N in the destination's directory; commit flushes it to the
 * disk and renames it over the destination. Before that the destination is untouched,
 * whatever fails, and a kill -9 leaves nothing (of a named one: the file, which may be
 * deleted). On SIGINT, SIGTERM, SIGHUP and SIGBUS, where the program has no handler of
 * its own, named ones are removed before the signal takes its course (SIGBUS, for a
 * mapped file that became shorter, says so and exits with code 1).
 *
 * Functions return 0, or -1 with the error text set ("PATH: what failed"). After a
 * failed write every later call fails with the same text. */

#ifndef QSAE_TOOLS_OUTFILE_H
#define QSAE_TOOLS_OUTFILE_H

#include <stddef.h>
#include <stdint.h>

#include "checked.h"

typedef struct outfile outfile;

/* Starts a file that will appear at `path`. What is there now may be a regular file or
 * nothing; a symbolic link is followed. NULL on failure. */
outfile *outfile_create(const char *path, char *err, size_t cap);

/* Appends; buffered. */
int outfile_write(outfile *o, const void *data, size_t size, char *err, size_t cap);
int outfile_text(outfile *o, char *err, size_t cap, const char *format, ...)
    CHECK_FORMAT(4, 5);
/* Overwrites what was written before, at `offset`; the file does not get longer. */
int outfile_write_at(outfile *o, uint64_t offset, const void *data, size_t size,
                     char *err, size_t cap);
/* Reads back what was written, after outfile_flush. */
int outfile_read(outfile *o, uint64_t offset, void *data, size_t size, char *err,
                 size_t cap);
uint64_t outfile_size(const outfile *o); /* bytes appended so far */

/* Hands the data to the file system, so that the file at outfile_temp can be opened and
 * checked. */
int outfile_flush(outfile *o, char *err, size_t cap);
const char *outfile_temp(const outfile *o);

/* Ends the file: it is at its destination, or removed on failure. Frees o anyway. */
int outfile_commit(outfile *o, char *err, size_t cap);
/* Removes what was written and frees o; NULL is a no-op. */
void outfile_abort(outfile *o);

/* Removes the temporary files of all open outfiles. For signal handlers:
 * async-signal-safe. */
void outfile_remove_all(void);

#endif
