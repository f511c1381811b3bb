#include "distill/link/buffer_pool.hpp"

#include <algorithm>
#include <utility>

namespace athanor::distill {
namespace {

bool has_less_room(const parallel::ByteBuffer& buffer, std::size_t size) {
  return buffer.capacity() < size;
}

}  // namespace

parallel::ByteBuffer BufferPool::take(std::size_t size) {
  // Not one of more than twice the size, or small packets would bind the memory of large ones.
  const auto found = std::lower_bound(free_.begin(), free_.end(), size, has_less_room);
  if (found == free_.end() || found->capacity() > 2 * size) {
    return parallel::ByteBuffer(size);
  }
  parallel::ByteBuffer buffer = std::move(*found);
  free_.erase(found);
  buffer.resize(size);
  return buffer;
}

void BufferPool::give_back(parallel::ByteBuffer buffer) {
  if (buffer.capacity() > 0) {
    const auto place = std::lower_bound(free_.begin(), free_.end(), buffer.capacity(), has_less_room);
    free_.insert(place, std::move(buffer));
  }
}

}  // namespace athanor::distill
