#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* O_TMPFILE */
#endif
#define _FILE_OFFSET_BITS 64

#include "outfile.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define BUFFER_SIZE ((size_t)1 << 16)
#define MAX_LIVE    16 /* temporary files that a signal can remove */
#define TEMP_CAP    4096

struct outfile {
    int fd, failed;
    char *dest, *temp; /* temp: how the file can be opened before commit */
    int nameless;      /* no directory has it yet */
    uint64_t size;      /* appended, with what is still in the buffer */
    size_t used;        /* of the buffer */
    int slot;           /* in live[], -1: none */
    char text[ERR_CAP]; /* of the first failure */
    unsigned char buffer[BUFFER_SIZE];
};

/* ---- cleaning up when a signal ends the program ---- */

static char live[MAX_LIVE][TEMP_CAP];
static volatile sig_atomic_t live_used[MAX_LIVE];

void outfile_remove_all(void)
{
    for (int i = 0; i < MAX_LIVE; i++) {
        if (live_used[i])
            unlink(live[i]);
        live_used[i] = 0;
    }
}

static void on_signal(int sig)
{
    outfile_remove_all();
    signal(sig, SIG_DFL);
    raise(sig); /* delivered when the handler returns */
}

/* A mapped file that someone else cut off: reading the lost part raises SIGBUS,
 * which nobody can turn into an error code. */
static void on_sigbus(int sig)
{
    static const char text[] = "qsae: a file became shorter while it was read\n";
    (void)sig;
    outfile_remove_all();
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0)
        _exit(1);
    _exit(1);
}

static void watch_signals(void)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGBUS};
    static int done;
    if (done)
        return;
    done = 1;
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++) {
        struct sigaction now, mine;
        if (sigaction(signals[i], NULL, &now) || now.sa_handler != SIG_DFL)
            continue; /* ignored (nohup), or the program has its own */
        memset(&mine, 0, sizeof mine);
        mine.sa_handler = signals[i] == SIGBUS ? on_sigbus : on_signal;
        sigemptyset(&mine.sa_mask);
        sigaction(signals[i], &mine, NULL);
    }
}

static int live_enter(const char *path)
{
    for (int i = 0; i < MAX_LIVE; i++) {
        if (live_used[i] || strlen(path) >= TEMP_CAP)
            continue;
        strcpy(live[i], path);
        live_used[i] = 1;
        return i;
    }
    return -1;
}

/* ---- creating ---- */

static int io_error(outfile *o, const char *what, char *err, size_t cap)
{
    int code = errno;
    if (!o->failed)
        snprintf(o->text, sizeof o->text, "%s: cannot %s: %s", name_z(o->dest).text,
                 what, strerror(code));
    o->failed = 1;
    return err_set(err, cap, "%s", o->text);
}

static void outfile_free(outfile *o)
{
    free(o->dest);
    free(o->temp);
    free(o);
}

/* Where the data should really go: the file that a symbolic link leads to. */
static char *destination(const char *path, char *err, size_t cap)
{
    struct stat st;
    safe_name shown = name_z(path);
    if (path[0] == 0) {
        err_set(err, cap, "the name of an output file is empty");
        return NULL;
    }
    if (lstat(path, &st) == 0 && S_ISLNK(st.st_mode)) {
        char *target = realpath(path, NULL);
        if (!target)
            err_set(err, cap, "%s: a symbolic link that leads nowhere: %s", shown.text,
                    strerror(errno));
        return target;
    }
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode)) {
        err_set(err, cap, "%s: exists and is not a regular file", shown.text);
        return NULL;
    }
    char *copy = malloc(strlen(path) + 1);
    if (!copy)
        err_set(err, cap, "out of memory");
    else
        strcpy(copy, path);
    return copy;
}

/* Bytes of dest's directory, with its slash. */
static size_t directory_length(const char *dest)
{
    const char *slash = strrchr(dest, '/');
    return slash ? (size_t)(slash - dest) + 1 : 0;
}

#define TEMP_ROOM(dest) (directory_length(dest) + 200 + 64)

/* dir/NAME.tmp-PID-N with the next N. NAME is cut so that the name stays legal. */
static void next_temp_name(const char *dest, char *name)
{
    static unsigned counter;
    size_t dir = directory_length(dest), base = strlen(dest + dir);
    snprintf(name, TEMP_ROOM(dest), "%.*s%.*s.tmp-%ld-%u", (int)dir, dest,
             (int)(base > 200 ? 200 : base), dest + dir, (long)getpid(), counter++);
}

/* A file that no directory has, on the file system of its destination: nothing is left
 * of it however the program ends. Not every system and file system can. */
static int open_nameless(outfile *o)
{
#if defined(O_TMPFILE)
    size_t dir = directory_length(o->dest);
    char *folder = malloc(dir + 2);
    if (!folder)
        return -1;
    memcpy(folder, o->dest, dir);
    strcpy(folder + dir, dir ? "" : ".");
    o->fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0666);
    free(folder);
    if (o->fd < 0)
        return -1;
    snprintf(o->temp, TEMP_ROOM(o->dest), "/proc/self/fd/%d", o->fd);
    o->nameless = access(o->temp, F_OK) == 0;
    if (o->nameless)
        return 0;
    close(o->fd);
    o->fd = -1;
#else
    (void)o;
#endif
    return -1;
}

static int open_named(outfile *o, char *err, size_t cap)
{
    for (int tries = 0; tries < 1000; tries++) {
        next_temp_name(o->dest, o->temp);
        o->fd = open(o->temp, O_RDWR | O_CREAT | O_EXCL, 0666);
        if (o->fd >= 0 || (errno != EEXIST && errno != EINTR))
            break;
    }
    if (o->fd < 0)
        return io_error(o, "create a file in its directory", err, cap);
    fcntl(o->fd, F_SETFD, FD_CLOEXEC);
    o->slot = live_enter(o->temp);
    return 0;
}

static int open_temp(outfile *o, char *err, size_t cap)
{
    o->slot = -1;
    o->temp = malloc(TEMP_ROOM(o->dest));
    if (!o->temp)
        return err_set(err, cap, "out of memory");
    return open_nameless(o) == 0 ? 0 : open_named(o, err, cap);
}

outfile *outfile_create(const char *path, char *err, size_t cap)
{
    outfile *o = calloc(1, sizeof *o);
    if (!o) {
        err_set(err, cap, "out of memory");
        return NULL;
    }
    o->fd = -1;
    watch_signals();
    o->dest = destination(path, err, cap);
    if (!o->dest || open_temp(o, err, cap)) {
        outfile_free(o);
        return NULL;
    }
    return o;
}

/* ---- writing ---- */

static int write_all(outfile *o, uint64_t offset, const unsigned char *p, size_t n,
                     char *err, size_t cap)
{
    while (n > 0) {
        size_t part = n < ((size_t)1 << 30) ? n : (size_t)1 << 30;
        ssize_t done = pwrite(o->fd, p, part, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0) {
            if (done == 0)
                errno = ENOSPC;
            return io_error(o, "write", err, cap);
        }
        p += done;
        n -= (size_t)done;
        offset += (uint64_t)done;
    }
    return 0;
}

static int drain(outfile *o, char *err, size_t cap)
{
    size_t n = o->used;
    if (o->failed)
        return err_set(err, cap, "%s", o->text);
    o->used = 0;
    return write_all(o, o->size - n, o->buffer, n, err, cap);
}

int outfile_write(outfile *o, const void *data, size_t size, char *err, size_t cap)
{
    if (o->failed)
        return err_set(err, cap, "%s", o->text);
    if (size > BUFFER_SIZE - o->used && drain(o, err, cap))
        return -1;
    if (size > BUFFER_SIZE) {
        if (write_all(o, o->size, data, size, err, cap))
            return -1;
    } else if (size > 0) {
        memcpy(o->buffer + o->used, data, size);
        o->used += size;
    }
    o->size += size;
    return 0;
}

int outfile_text(outfile *o, char *err, size_t cap, const char *format, ...)
{
    char line[4096];
    va_list ap;
    va_start(ap, format);
    int n = vsnprintf(line, sizeof line, format, ap);
    va_end(ap);
    if (n < 0 || (size_t)n >= sizeof line)
        return err_set(err, cap, "%s: a line of more than 4095 bytes",
                       name_z(o->dest).text);
    return outfile_write(o, line, (size_t)n, err, cap);
}

int outfile_write_at(outfile *o, uint64_t offset, const void *data, size_t size,
                     char *err, size_t cap)
{
    uint64_t end;
    if (size_add(offset, size, &end) || end > o->size)
        return err_set(err, cap, "%s: write_at beyond the end", name_z(o->dest).text);
    if (drain(o, err, cap))
        return -1;
    return write_all(o, offset, data, size, err, cap);
}

int outfile_read(outfile *o, uint64_t offset, void *data, size_t size, char *err,
                 size_t cap)
{
    unsigned char *p = data;
    while (size > 0) {
        ssize_t done = pread(o->fd, p, size, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done == 0)
            errno = EIO; /* shorter than what was written */
        if (done <= 0)
            return io_error(o, "read back", err, cap);
        p += done;
        size -= (size_t)done;
        offset += (uint64_t)done;
    }
    return 0;
}

uint64_t outfile_size(const outfile *o)
{
    return o->size;
}

const char *outfile_temp(const outfile *o)
{
    return o->temp;
}

int outfile_flush(outfile *o, char *err, size_t cap)
{
    return drain(o, err, cap);
}

/* ---- ending ---- */

static void forget(outfile *o)
{
    if (o->slot >= 0)
        live_used[o->slot] = 0;
    outfile_free(o);
}

void outfile_abort(outfile *o)
{
    if (!o)
        return;
    if (o->fd >= 0)
        close(o->fd);
    if (!o->nameless)
        unlink(o->temp);
    forget(o);
}

/* The rename itself must reach the disk too. Not every file system lets a directory be
 * flushed, and the data is safe by then, so failures here are not reported. */
static void flush_directory(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *dir = malloc(strlen(path) + 2);
    if (!dir)
        return;
    if (!slash) {
        strcpy(dir, ".");
    } else {
        size_t n = (size_t)(slash - path) + 1;
        memcpy(dir, path, n);
        dir[n] = 0;
    }
    int fd = open(dir, O_RDONLY);
    if (fd >= 0) {
        (void)fsync(fd);
        close(fd);
    }
    free(dir);
}

/* A finished file without a name gets one beside its destination, to be renamed: what
 * ends the program in between leaves a whole file. */
static int give_name(outfile *o)
{
    char *name = malloc(TEMP_ROOM(o->dest));
    int status = -1;
    for (int tries = 0; name && tries < 1000 && status; tries++) {
        next_temp_name(o->dest, name);
        status = linkat(AT_FDCWD, o->temp, AT_FDCWD, name, AT_SYMLINK_FOLLOW);
        if (status && errno != EEXIST)
            break;
    }
    if (status) {
        free(name);
        return -1;
    }
    free(o->temp);
    o->temp = name;
    o->nameless = 0;
    o->slot = live_enter(name);
    return 0;
}

int outfile_commit(outfile *o, char *err, size_t cap)
{
    int status = drain(o, err, cap);
    if (!status && fsync(o->fd) && errno != EINVAL && errno != ENOTSUP)
        status = io_error(o, "flush to the disk", err, cap);
    if (!status && o->nameless && give_name(o))
        status = io_error(o, "name the finished file", err, cap);
    if (close(o->fd) && !status)
        status = io_error(o, "close", err, cap);
    o->fd = -1;
    if (!status && rename(o->temp, o->dest))
        status = io_error(o, "rename the finished file", err, cap);
    if (status) {
        outfile_abort(o);
        return -1;
    }
    flush_directory(o->dest);
    forget(o);
    return 0;
}
