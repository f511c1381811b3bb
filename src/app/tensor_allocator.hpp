// Where tensors of the program get their memory.
#pragma once

namespace athanor::app {

/// Takes tensors' memory from malloc instead of posix_memalign. glibc's heap asks for more than the tensor to
/// align it and gives the rest back, so the gap that a freed tensor leaves is too small for the next one of
/// the same size, and the heap grows over the steps by up to a quarter. New parts of the heap get huge pages
/// (base::use_huge_pages). Call once at start, before the first tensor.
void reuse_tensor_memory();

}  // namespace athanor::app
