#include "parallel/collectives/self_backend.hpp"

#include <ATen/ATen.h>

namespace athanor::parallel {
namespace {

class Ended final : public StartedExchange {
 public:
  bool test() override { return true; }
  void wait() override {}
  bool give_up() noexcept override { return true; }
};

}  // namespace

std::unique_ptr<StartedExchange> SelfBackend::start_exchange(std::span<const MutableBytes> /*receive*/,
                                                             std::span<const Bytes> /*send*/,
                                                             at::Device /*device*/) {
  return std::make_unique<Ended>();
}

void SelfBackend::all_gather_v(at::Tensor& output, const at::Tensor& input,
                               std::span<const std::int64_t> /*rows*/) {
  if (output.const_data_ptr() != input.const_data_ptr()) {
    output.copy_(input);
  }
}

}  // namespace athanor::parallel
