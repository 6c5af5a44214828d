/* One of two files that use the header; with two_b.c and qsae.c they make one program. */

#include "../qsae.h"

uint32_t version_of_b(void);

int main(void)
{
    return qsae_version() == QSAE_VERSION_HEX && version_of_b() == QSAE_VERSION_HEX ? 0
                                                                                    : 1;
}
