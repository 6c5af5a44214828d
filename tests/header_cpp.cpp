// The header from C++11: it compiles alone, and the functions link against qsae.c as C.

#define QSAE_WITH_FORMAT
#include "../qsae.h"

static_assert(sizeof(qsae_file_header) == 64, "file header");
static_assert(sizeof(qsae_tensor_record) == 64, "tensor record");

int main()
{
    qsae_model *model = nullptr;
    qsae_error err{};
    qsae_status status = qsae_model_open(nullptr, nullptr, &model, &err);
    qsae_model_close(model);
    return status == QSAE_E_ARG && qsae_version() == QSAE_VERSION_HEX ? 0 : 1;
}
