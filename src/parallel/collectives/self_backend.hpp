// The collectives of a group of one: copies.
#pragma once

#include "parallel/collectives/backend.hpp"

namespace athanor::parallel {

/// Backend of null communicators and groups of one rank; needs no MPI.
class SelfBackend final : public CollectiveBackend {
 public:
  void exchange(std::span<const MutableBytes> /*receive*/, std::span<const Bytes> /*send*/,
                at::Device /*device*/) override {}
  std::unique_ptr<StartedExchange> start_exchange(std::span<const MutableBytes> receive,
                                                  std::span<const Bytes> send, at::Device device) override;
  void all_gather_v(at::Tensor& output, const at::Tensor& input, std::span<const std::int64_t> rows) override;
  void all_reduce_integers(at::Tensor& /*tensor*/, ReduceOp /*op*/) override {}
  void broadcast(at::Tensor& /*tensor*/, int /*root*/) override {}
  void barrier() override {}
};

}  // namespace athanor::parallel
