/* The shuffle buffer: orders, rows in memory and in a file, what is refused. */

#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "../tools/checked.h"
#include "../tools/shuffle.h"
#include "test.h"

static char err[ERR_CAP];
static char path[600];

static void orders(void)
{
    uint32_t a[1000], b[1000];
    char seen[1000] = {0};
    for (uint32_t i = 0; i < 1000; i++)
        a[i] = b[i] = i;
    shuffle_order(a, 1000, 7, 3);
    shuffle_order(b, 1000, 7, 3);
    CHECK(memcmp(a, b, sizeof a) == 0);
    for (int i = 0; i < 1000; i++)
        seen[a[i]]++;
    CHECK(memchr(seen, 0, sizeof seen) == NULL);
    for (uint32_t i = 0; i < 1000; i++)
        b[i] = i;
    shuffle_order(b, 1000, 7, 4);
    int same = 0;
    for (int i = 0; i < 1000; i++)
        same += a[i] == b[i];
    CHECK(same < 20); /* one is expected */
    CHECK(shuffle_seed(1, "resid_post.1") != shuffle_seed(1, "resid_post.2"));
    CHECK(shuffle_seed(1, "a") != shuffle_seed(2, "a"));
    shuffle_order(a, 0, 1, 1);
    shuffle_order(a, 1, 1, 1);
}

/* All 24 orders of 4, as often as they should be: chi-squared of 23 degrees of freedom is
 * below 60 but once in 30,000. */
static void is_fair(void)
{
    int count[256] = {0}, used = 0;
    double chi = 0;
    for (uint64_t t = 0; t < 24000; t++) {
        uint32_t o[4] = {0, 1, 2, 3};
        shuffle_order(o, 4, 99, t);
        count[o[0] | o[1] << 2 | o[2] << 4 | o[3] << 6]++;
    }
    for (int i = 0; i < 256; i++)
        if (count[i]) {
            used++;
            chi += (count[i] - 1000.0) * (count[i] - 1000.0) / 1000.0;
        }
    CHECK(used == 24);
    CHECK(chi < 60);
}

/* Two columns, of 3 and 2 numbers: row i is i, i + 0.5, ... */
static int append(shuffle *s, size_t first, size_t n)
{
    float a[30], b[20];
    const float *columns[] = {a, b};
    size_t row, column;
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < 3; k++) {
            a[3 * i + k] = (float)(first + i) + 0.5f * (float)k;
            if (k < 2)
                b[2 * i + k] = -a[3 * i + k];
        }
    return shuffle_append(s, columns, n, &row, &column, err, sizeof err);
}

static void rows(const char *file)
{
    const size_t widths[] = {3, 2};
    float x[3];
    shuffle s;
    unlink(path);
    CHECK(shuffle_open(&s, widths, 2, 10, file, 0, err, sizeof err) == 0);
    CHECK(append(&s, 0, 6) == 0 && append(&s, 6, 4) == 0);
    CHECK(append(&s, 0, 1) != 0); /* full */
    CHECK(shuffle_sync(&s, err, sizeof err) == 0);
    CHECK(shuffle_get(&s, 0, 7, x, err, sizeof err) == 0);
    CHECK(x[0] == 7 && x[1] == 7.5f && x[2] == 8);
    CHECK(shuffle_get(&s, 1, 0, x, err, sizeof err) == 0);
    CHECK(x[0] == 0 && x[1] == -0.5f);
    CHECK(s.norm[1][0] == 0.5f);
    shuffle_clear(&s);
    CHECK(append(&s, 20, 1) == 0 && shuffle_get(&s, 0, 0, x, err, sizeof err) == 0);
    CHECK(x[0] == 20);
    shuffle_close(&s);
}

static void refused(void)
{
    const size_t widths[] = {3, 2}, huge[] = {(size_t)1 << 40, 1};
    const float nan_row[3] = {1, NAN, 2}, row[3] = {1, 2, 3};
    size_t bad_row = 9, bad_column = 9;
    float x[3];
    shuffle s;
    unlink(path);
    CHECK(shuffle_open(&s, widths, 2, 10, path, 1, err, sizeof err) != 0); /* not there */
    CHECK(shuffle_open(&s, huge, 2, 1u << 30, NULL, 0, err, sizeof err) != 0);
    CHECK(shuffle_open(&s, widths, 2, 0, NULL, 0, err, sizeof err) != 0);
    CHECK(shuffle_open(&s, widths, 2, 10, path, 0, err, sizeof err) == 0);
    const float *bad[] = {row, nan_row + 1};
    CHECK(shuffle_append(&s, bad, 1, &bad_row, &bad_column, err, sizeof err) != 0);
    CHECK(bad_row == 0 && bad_column == 1 && s.n == 0);
    CHECK(append(&s, 0, 4) == 0);
    FILE *f = fopen(path, "r+b"); /* someone else writes into row 1 */
    CHECK(f && fseek(f, 12, SEEK_SET) == 0 && fputc(77, f) == 77 && fclose(f) == 0);
    CHECK(shuffle_get(&s, 0, 0, x, err, sizeof err) == 0);
    CHECK(shuffle_get(&s, 0, 1, x, err, sizeof err) != 0 && strstr(err, "changed"));
    shuffle_close(&s);
    CHECK(shuffle_open(&s, widths, 2, 11, path, 1, err, sizeof err) != 0);
    CHECK(strstr(err, "200 bytes") && strstr(err, "220"));
    CHECK(shuffle_open(&s, widths, 2, 11, path, 0, err, sizeof err) != 0);
    CHECK(strstr(err, "is not a buffer file") != NULL);
    CHECK(shuffle_open(&s, widths, 2, 10, path, 1, err, sizeof err) == 0);
    shuffle_close(&s);
    unlink(path);
}

int main(int argc, char **argv)
{
    snprintf(path, sizeof path, "%s/tmp/test_shuffle.buffer", argc > 1 ? argv[1] : "build");
    orders();
    is_fair();
    rows(NULL);
    rows(path);
    refused();
    return test_done("test_shuffle");
}
