/* See two_a.c. */

#include "../qsae.h"

uint32_t version_of_b(void);

uint32_t version_of_b(void)
{
    return qsae_version();
}
