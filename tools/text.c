/* Bytes of tokens as text that is safe to print (see text.h). */

#include "text.h"

/* Unicode 3.9, table 3-7: by the first byte, how many bytes follow and the range of
   the second. */
static size_t lead_byte(unsigned b, unsigned *low, unsigned *high)
{
    *low = 0x80;
    *high = 0xBF;
    if (b >= 0xC2 && b <= 0xDF)
        return 1;
    if (b >= 0xE0 && b <= 0xEF) {
        if (b == 0xE0)
            *low = 0xA0; /* no overlong forms */
        if (b == 0xED)
            *high = 0x9F; /* no surrogates */
        return 2;
    }
    if (b >= 0xF0 && b <= 0xF4) {
        if (b == 0xF0)
            *low = 0x90;
        if (b == 0xF4)
            *high = 0x8F; /* at most U+10FFFF */
        return 3;
    }
    return 0;
}

size_t text_next(const char *s, size_t len, uint32_t *cp, int *valid)
{
    unsigned b = (unsigned char)s[0], low, high;
    *valid = 1;
    if (b < 0x80) {
        *cp = b;
        return 1;
    }
    size_t follow = lead_byte(b, &low, &high), i;
    uint32_t v = b & (0x3Fu >> follow);
    for (i = 1; i <= follow; i++) {
        unsigned c = i < len ? (unsigned char)s[i] : 0;
        if (c < low || c > high)
            break;
        v = v << 6 | (c & 0x3F);
        low = 0x80;
        high = 0xBF;
    }
    if (follow > 0 && i > follow) {
        *cp = v;
        return i;
    }
    *cp = TEXT_REPLACEMENT;
    *valid = 0;
    return i;
}

void text_json(FILE *f, const char *s, size_t len)
{
    fputc('"', f);
    for (size_t i = 0; i < len;) {
        uint32_t cp;
        int valid;
        size_t n = text_next(s + i, len - i, &cp, &valid);
        if (!valid || cp < 0x20 || cp == 0x7F)
            fprintf(f, "\\u%04x", (unsigned)cp);
        else if (cp == '"' || cp == '\\')
            fprintf(f, "\\%c", (int)cp);
        else
            fwrite(s + i, 1, n, f);
        i += n;
    }
    fputc('"', f);
}

size_t text_quoted(FILE *f, const char *s, size_t len)
{
    size_t width = 2;
    fputc('"', f);
    for (size_t i = 0; i < len;) {
        uint32_t cp;
        int valid;
        size_t n = text_next(s + i, len - i, &cp, &valid);
        if (!valid || cp < 0x20 || (cp >= 0x7F && cp < 0xA0)) {
            if (cp == '\n' || cp == '\t')
                width += (size_t)fprintf(f, "\\%c", cp == '\n' ? 'n' : 't');
            else
                for (size_t k = 0; k < n; k++)
                    width += (size_t)fprintf(f, "\\x%02x",
                                             (unsigned)(unsigned char)s[i + k]);
        } else {
            fwrite(s + i, 1, n, f);
            width++;
        }
        i += n;
    }
    fputc('"', f);
    return width;
}
