#include <cstring>
#include <vector>

#include <ATen/ATen.h>

#include "parallel/collectives/collectives.hpp"

namespace athanor::parallel {
namespace {

at::Tensor bytes_of(const std::string& text) {
  at::Tensor bytes = at::empty({static_cast<std::int64_t>(text.size())}, at::kByte);
  if (!text.empty()) {
    std::memcpy(bytes.mutable_data_ptr(), text.data(), text.size());
  }
  return bytes;
}

std::string text_of(const at::Tensor& bytes) {
  if (bytes.numel() == 0) {
    return {};
  }
  return {static_cast<const char*>(bytes.const_data_ptr()), static_cast<std::size_t>(bytes.numel())};
}

}  // namespace

std::vector<std::string> all_gather_strings(const std::string& text, const Communicator& comm,
                                            CallSite site) {
  const at::Tensor lengths = all_gather(at::full({1}, static_cast<std::int64_t>(text.size()), at::kLong),
                                        comm, Traffic::other, site);
  const std::vector<std::int64_t> rows(lengths.const_data_ptr<std::int64_t>(),
                                       lengths.const_data_ptr<std::int64_t>() + lengths.numel());
  const at::Tensor bytes = all_gather_v(bytes_of(text), rows, comm, Traffic::other, site);
  std::vector<std::string> texts;
  std::int64_t first = 0;
  for (const std::int64_t length : rows) {
    texts.push_back(text_of(bytes.narrow(0, first, length)));
    first += length;
  }
  return texts;
}

std::string broadcast_string(const std::string& text, int root, const Communicator& comm, CallSite site) {
  at::Tensor length = at::full({1}, static_cast<std::int64_t>(text.size()), at::kLong);
  broadcast_(length, root, comm, Traffic::other, site);
  at::Tensor bytes =
      comm.rank() == root ? bytes_of(text) : at::empty({length.item<std::int64_t>()}, at::kByte);
  broadcast_(bytes, root, comm, Traffic::other, site);
  return text_of(bytes);
}

}  // namespace athanor::parallel
