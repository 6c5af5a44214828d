/* Bytes of tokens as text that is safe to print. */

#ifndef QSAE_TEXT_H
#define QSAE_TEXT_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define TEXT_REPLACEMENT 0xFFFDu

/* The next character of s[len], len > 0: returns the bytes it takes, *cp receives
   the code point. * Invalid bytes, one maximal subpart at a time, read as U+FFFD
   with *valid 0. */
size_t text_next(const char *s, size_t len, uint32_t *cp, int *valid);

/* Writes s[len] as a JSON string with its quotes. Invalid UTF-8 becomes \ufffd. */
void text_json(FILE *f, const char *s, size_t len);

/* Writes s[len] between quotes for a person: control characters as \n, \t, \xNN,
   invalid bytes as \xNN. * Returns the number of characters written. */
size_t text_quoted(FILE *f, const char *s, size_t len);

#endif
