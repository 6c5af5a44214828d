/* Fuzz target of the safetensors reader: no input crashes it, and every tensor that it
 * gives can be read. */

#include "fuzz_tensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint64_t total = 0;
    tensor_file *f = tensors_open_memory(data, size, "fuzz", NULL, 0);
    for (size_t i = 0; f && i < tensors_count(f); i++)
        if (tensors_container(f) == TENSORS_SAFETENSORS)
            total += tensors_at(f, i)->n * tensor_type_bytes(tensors_at(f, i)->type);
    need(total <= size); /* tensors do not overlap */
    tensors_close(f);
    fuzz_tensors(data, size);
    return 0;
}
