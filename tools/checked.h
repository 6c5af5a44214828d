/* checked.h: the vocabulary that every reader and writer in tools/ shares: sizes that
 * cannot wrap, error texts, and names from a file made safe to print. No other size
 * arithmetic on numbers that come from a file. Functions return 0 on success and -1 on
 * failure unless they say otherwise. */

#ifndef QSAE_TOOLS_CHECKED_H
#define QSAE_TOOLS_CHECKED_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define ERR_CAP  512 /* bytes of an error text */
#define NAME_CAP 128 /* bytes of a name made printable */

#if defined(__GNUC__)
#define CHECK_FORMAT(f, a) __attribute__((format(printf, f, a)))
#else
#define CHECK_FORMAT(f, a)
#endif

/* *out = a + b */
static inline int size_add(uint64_t a, uint64_t b, uint64_t *out)
{
    if (b > UINT64_MAX - a)
        return -1;
    *out = a + b;
    return 0;
}

/* *out = a * b */
static inline int size_mul(uint64_t a, uint64_t b, uint64_t *out)
{
    if (b != 0 && a > UINT64_MAX / b)
        return -1;
    *out = a * b;
    return 0;
}

/* *out = a rounded up to a multiple of `to`, a power of two */
static inline int size_align(uint64_t a, uint64_t to, uint64_t *out)
{
    if (a > UINT64_MAX - (to - 1))
        return -1;
    *out = (a + (to - 1)) & ~(to - 1);
    return 0;
}

/* A uint64_t count as a size_t, for malloc and memcpy. */
static inline int size_native(uint64_t a, size_t *out)
{
    if (a > SIZE_MAX / 2)
        return -1;
    *out = (size_t)a;
    return 0;
}

/* Sets the error text and returns -1, so that a failure is one line: return
 * err_set(err, cap, ...). */
CHECK_FORMAT(3, 4)
static inline int err_set(char *err, size_t cap, const char *format, ...)
{
    va_list ap;
    if (!err || cap == 0)
        return -1;
    va_start(ap, format);
    vsnprintf(err, cap, format, ap);
    va_end(ap);
    return -1;
}

/* Puts "where: " in front of an error text that is already set; returns -1. */
CHECK_FORMAT(3, 4)
static inline int err_prefix(char *err, size_t cap, const char *format, ...)
{
    char where[ERR_CAP], old[ERR_CAP];
    va_list ap;
    if (!err || cap == 0)
        return -1;
    va_start(ap, format);
    vsnprintf(where, sizeof where, format, ap);
    va_end(ap);
    snprintf(old, sizeof old, "%s", err);
    where[ERR_CAP / 2 - 1] = 0;
    snprintf(err, cap, "%s: %s", where, old);
    return -1;
}

typedef struct safe_name {
    char text[NAME_CAP];
} safe_name;

/* A name from a file for a message: control bytes, quotes' backslashes and bytes beyond
 * ASCII as \xNN, a long name cut with "...". */
static inline safe_name name_n(const char *s, size_t n)
{
    static const char hex[] = "0123456789abcdef";
    safe_name out;
    size_t o = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if (o + 8 > sizeof out.text) {
            memcpy(out.text + o, "...", 3);
            o += 3;
            break;
        }
        if (c >= 0x20 && c < 0x7F && c != '\\') {
            out.text[o++] = (char)c;
        } else {
            out.text[o++] = '\\';
            out.text[o++] = 'x';
            out.text[o++] = hex[c >> 4];
            out.text[o++] = hex[c & 15];
        }
    }
    out.text[o] = 0;
    return out;
}

static inline safe_name name_z(const char *s)
{
    return name_n(s, strlen(s));
}

#endif
