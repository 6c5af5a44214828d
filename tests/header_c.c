/* The header alone, as strict C99, compiled with and without QSAE_WITH_FORMAT. */

#include "../qsae.h"
#include "../qsae.h"

#ifdef QSAE_WITH_FORMAT
typedef char header_is_64[sizeof(qsae_file_header) == 64 ? 1 : -1];
typedef char model_record_is_256[sizeof(qsae_model_record) == 256 ? 1 : -1];
typedef char sae_record_is_256[sizeof(qsae_sae_record) == 256 ? 1 : -1];
typedef char tensor_record_is_64[sizeof(qsae_tensor_record) == 64 ? 1 : -1];
#endif

int header_c(void);
int header_c(void)
{
    qsae_open_options options = {0};
    return (int)options.isa + QSAE_SITE_COUNT;
}
