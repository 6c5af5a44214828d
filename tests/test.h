/* Checks for the test programs. A failed check is reported with its place and counted;
 * the program goes on, so that one run shows everything that is wrong.
 *
 *     int main(void)
 *     {
 *         CHECK(1 + 1 == 2);
 *         CHECK_STR(name, "toy");
 *         return test_done("arithmetic");
 *     } */

#ifndef QSAE_TEST_H
#define QSAE_TEST_H

#include <stdio.h>
#include <string.h>

static long test_passed, test_failed;

#define TEST_MAX_SHOWN 40 /* a broken loop should not fill the screen */

static inline int test_check(int ok, const char *file, int line, const char *what)
{
    if (ok) {
        test_passed++;
        return 1;
    }
    if (++test_failed <= TEST_MAX_SHOWN)
        fprintf(stderr, "%s:%d: failed: %s\n", file, line, what);
    return 0;
}

static inline int test_check_str(const char *a, const char *b, const char *file,
                                 int line, const char *what)
{
    int ok = a == b || (a && b && strcmp(a, b) == 0);
    test_check(ok, file, line, what);
    if (!ok && test_failed <= TEST_MAX_SHOWN)
        fprintf(stderr, "    is:     %s\n    wanted: %s\n", a ? a : "(null)",
                b ? b : "(null)");
    return ok;
}

/* Both are true if the check held: a test can stop where going on makes no sense. */
#define CHECK(cond)     test_check((cond) ? 1 : 0, __FILE__, __LINE__, #cond)
#define CHECK_STR(a, b) test_check_str((a), (b), __FILE__, __LINE__, #a " equals " #b)

/* Prints the counts, returns the exit code. A program that checked nothing failed. */
static inline int test_done(const char *name)
{
    if (test_passed + test_failed == 0)
        test_failed = 1;
    printf("%s: %ld passed, %ld failed\n", name, test_passed, test_failed);
    return test_failed ? 1 : 0;
}

#endif
