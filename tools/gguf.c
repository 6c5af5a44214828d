/* GGUF: not read yet. */

#include "checked.h"
#include "tensors_impl.h"

int gguf_read(tensor_file *f, char *err, size_t cap)
{
    (void)f;
    return err_set(err, cap, "a GGUF file; this program does not read them yet");
}
