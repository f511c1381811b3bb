// The collectives of GPU tensors through the real NCCL have the bits of MPI's on the host. One rank a GPU.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include <ATen/ATen.h>

#include "device/device.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/collectives/pending_exchange.hpp"
#include "parallel/nccl/enable_nccl.hpp"
#include "parallel/nccl/nccl_library.hpp"
#include "support/gpu_test.hpp"
#include "support/mpi_test.hpp"

namespace athanor::parallel {
namespace {

using tests::world;

// All ranks of this test program run on one node.
class NcclOnGpus : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string& reason = tests::why_no_gpu(world().size()); !reason.empty()) {
      GTEST_SKIP() << reason;
    }
    device::load_tensor_library();
    device::Device::take_gpu(world().rank()).make_current();
    comm_ = world().duplicate("gpus");
    enable_nccl(comm_, make_nccl_library(), {.init_deadline_s = 60.0, .deadline_s = 60.0});
  }

  at::Tensor own_data(std::int64_t rows, at::ScalarType type) const {
    const double first = 1.0 + 37.0 * comm_.rank();
    return (at::arange(first, first + static_cast<double>(rows * 3), 1.0, at::kDouble) * 0.37)
        .fmod(24.0)
        .to(type)
        .view({rows, 3});
  }
  static at::Tensor on_gpu(const at::Tensor& tensor) { return tensor.to(at::kCUDA); }
  static void expect_same(const at::Tensor& on_gpu, const at::Tensor& on_host) {
    EXPECT_TRUE(on_gpu.is_cuda() && at::equal(on_gpu.cpu(), on_host));
  }

  Communicator comm_;
};

constexpr at::ScalarType all_types[] = {at::kFloat, at::kDouble, at::kBFloat16,
                                        at::kHalf,  at::kLong,   at::kByte};

TEST_F(NcclOnGpus, AllToAllV) {
  std::vector<std::int64_t> send;
  std::vector<std::int64_t> receive;
  std::int64_t rows = 0;
  for (int r = 0; r < comm_.size(); ++r) {
    send.push_back((comm_.rank() * 5 + r * 3) % 4);
    receive.push_back((r * 5 + comm_.rank() * 3) % 4);
    rows += send.back();
  }
  for (const at::ScalarType type : all_types) {
    const at::Tensor input = own_data(rows, type);
    expect_same(all_to_all_v(on_gpu(input), send, receive, comm_, Traffic::dispatch),
                all_to_all_v(input, send, receive, comm_, Traffic::dispatch));
  }
}

TEST_F(NcclOnGpus, Gathers) {
  std::vector<std::int64_t> rows;
  for (int r = 0; r < comm_.size(); ++r) {
    rows.push_back(r % 3);
  }
  for (const at::ScalarType type : all_types) {
    const at::Tensor equal = own_data(5, type);
    expect_same(all_gather(on_gpu(equal), comm_, Traffic::other), all_gather(equal, comm_, Traffic::other));
    const at::Tensor unequal = own_data(comm_.rank() % 3, type);
    expect_same(all_gather_v(on_gpu(unequal), rows, comm_, Traffic::other),
                all_gather_v(unequal, rows, comm_, Traffic::other));
  }
}

TEST_F(NcclOnGpus, Reductions) {
  for (const at::ScalarType type : all_types) {
    for (const ReduceOp op : {ReduceOp::sum, ReduceOp::max, ReduceOp::min}) {
      for (const std::int64_t num_rows : {1, 70'000}) {  // both algorithms
        at::Tensor on_host = own_data(num_rows, type);
        at::Tensor there = on_gpu(on_host);
        all_reduce_(there, op, comm_, Traffic::other);
        all_reduce_(on_host, op, comm_, Traffic::other);
        expect_same(there, on_host);
      }
    }
    if (at::isFloatingType(type)) {
      const at::Tensor input = own_data(7 * comm_.size(), type);
      expect_same(reduce_scatter_sum(on_gpu(input), comm_, Traffic::grad_dense),
                  reduce_scatter_sum(input, comm_, Traffic::grad_dense));
    }
  }
}

// With algorithm and protocol pinned NCCL's own sums have the same bits every time.
TEST_F(NcclOnGpus, NcclsOwnSumsRepeat) {
  Communicator group = world().duplicate("sums");
  enable_nccl(group, make_nccl_library(),
              {.init_deadline_s = 60.0, .deadline_s = 60.0, .float_sums = FloatSums::nccl});
  const at::Tensor input = on_gpu(own_data(50'000, at::kFloat));
  at::Tensor first = input.clone();
  all_reduce_(first, ReduceOp::sum, group, Traffic::other);
  for (int i = 0; i < 3; ++i) {
    at::Tensor again = input.clone();
    all_reduce_(again, ReduceOp::sum, group, Traffic::other);
    EXPECT_TRUE(at::equal(again, first));
  }
  at::Tensor ours = input.clone();
  all_reduce_(ours, ReduceOp::sum, comm_, Traffic::other);
  EXPECT_TRUE(at::allclose(first, ours, 1e-6, 0.0));
}

TEST_F(NcclOnGpus, Broadcasts) {
  for (const at::ScalarType type : all_types) {
    at::Tensor on_host = own_data(9, type);
    at::Tensor there = on_gpu(on_host);
    broadcast_(there, comm_.size() - 1, comm_, Traffic::other);
    broadcast_(on_host, comm_.size() - 1, comm_, Traffic::other);
    expect_same(there, on_host);
  }
}

// Kernels before and after, with nothing between them that waits.
TEST_F(NcclOnGpus, IsInOrderWithTheKernelsAroundIt) {
  at::Tensor tensor = at::zeros({1 << 20}, at::TensorOptions(at::kFloat).device(at::kCUDA));
  for (int step = 0; step < 20; ++step) {
    tensor.add_(1.0);
    all_reduce_(tensor, ReduceOp::max, comm_, Traffic::other);
    tensor = tensor.clone();  // the old memory may be used again at once
  }
  EXPECT_TRUE((tensor == 20.0).all().item<bool>());
}

TEST_F(NcclOnGpus, StartedExchanges) {
  const Communicator lane = comm_.duplicate("lane");
  std::vector<at::Tensor> send;
  std::vector<at::Tensor> receive;
  for (int r = 0; r < lane.size(); ++r) {
    send.push_back(on_gpu(at::full({1000 + r}, 10.0 * lane.rank() + r)));
    receive.push_back(on_gpu(at::zeros({1000 + lane.rank()})));
  }
  PendingExchange pending = start_exchange(receive, send, lane, Traffic::grad_dense);
  pending.wait();
  for (int r = 0; r < lane.size(); ++r) {
    const double expected = r == lane.rank() ? 0.0 : 10.0 * r + lane.rank();
    EXPECT_TRUE((receive[static_cast<std::size_t>(r)] == expected).all().item<bool>()) << "from " << r;
  }
}

}  // namespace
}  // namespace athanor::parallel
