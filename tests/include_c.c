/* qsae.c included as a private part of a program: nothing of it is visible to the linker. */

#define QSAE_API static
#include "../qsae.c"

int main(void)
{
    return qsae_version() == QSAE_VERSION_HEX ? 0 : 1;
}
