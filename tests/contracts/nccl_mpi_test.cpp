// Contracts 1, 2 and 6 through NcclBackend: a run whose collectives all go through it, on the test double of
// NCCL, has every bit of the run through MPI, cold experts and ranks, overlapped exchanges and rounded wires
// included. What holds there against one rank (layout_invariance_mpi_test.cpp) so holds here.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

#include <ATen/ATen.h>

#include "contracts/run_record.hpp"
#include "parallel/nccl/enable_nccl.hpp"
#include "support/mpi_test.hpp"
#include "support/nccl_over_mpi.hpp"
#include "support/watched_memory.hpp"

namespace athanor::tests {
namespace {

Case make_case(const std::string& name, base::ComputeType compute) {
  Case test;
  test.name = name;
  test.role.compute = compute;
  test.role.model.vocab_size = 61;
  test.role.model.layers = 2;
  test.role.model.hidden = 24;
  test.role.model.heads = 12;
  test.role.model.kv_heads = 2;
  test.role.model.head_dim = 4;
  test.role.model.ffn = 25;
  test.role.model.max_seq = 32;
  test.role.model.moe.num_experts = 24;
  test.role.model.moe.top_k = 3;
  test.role.model.moe.ffn = 5;
  test.role.model.moe.balance_weight = 0.05;
  test.role.optim.clip = 1.0;
  test.role.optim.bucket_elements = 1024;
  test.data.vocab = test.role.model.vocab_size;
  test.data.seq = 13;
  test.data.global_batch = 24;
  test.steps = 3;
  return test;
}

void expect_equal_tensors(const std::map<std::string, at::Tensor>& ours,
                          const std::map<std::string, at::Tensor>& theirs) {
  ASSERT_EQ(ours.size(), theirs.size());
  for (const auto& [name, value] : theirs) {
    EXPECT_TRUE(at::equal(ours.at(name), value)) << name;
  }
}

void expect_equal_runs(const RunRecord& ours, const RunRecord& theirs) {
  ASSERT_EQ(ours.steps.size(), theirs.steps.size());
  for (std::size_t i = 0; i < ours.steps.size(); ++i) {
    SCOPED_TRACE("step " + std::to_string(i + 1));
    EXPECT_EQ(ours.steps[i].loss, theirs.steps[i].loss);
    EXPECT_EQ(ours.steps[i].grad_norm, theirs.steps[i].grad_norm);
    EXPECT_EQ(ours.steps[i].expert_counts, theirs.steps[i].expert_counts);
    EXPECT_EQ(ours.steps[i].bytes_sent, theirs.steps[i].bytes_sent);
  }
  expect_equal_tensors(ours.parameters, theirs.parameters);
  expect_equal_tensors(ours.exp_avg, theirs.exp_avg);
  expect_equal_tensors(ours.exp_avg_sq, theirs.exp_avg_sq);
}

class NcclContracts : public testing::Test {
 protected:
  // Roles of layout.ranks ranks side by side, over MPI and over NCCL.
  void expect_same_bits(const Case& test, const Layout& layout) const {
    SCOPED_TRACE(test.name + " at " + layout.describe());
    const int color = world().rank() / layout.ranks;
    const RunRecord expected = run_layout(test, layout, world().split(color, world().rank(), "mpi"));
    watch_tensor_memory();
    const auto nccl = std::make_shared<NcclOverMpi>();
    set_memory_listener([&](const void* data, std::size_t bytes) { nccl->memory_is_freed(data, bytes); });
    {
      parallel::Communicator role = world().split(color, world().rank(), "nccl");
      parallel::enable_nccl(role, nccl, {.init_deadline_s = 60.0, .deadline_s = 60.0});
      expect_equal_runs(run_layout(test, layout, role), expected);
    }
    set_memory_listener({});
    EXPECT_THAT(nccl->complaints(), testing::IsEmpty());
    EXPECT_THAT(nccl->leaks(), testing::IsEmpty());
    EXPECT_GT(nccl->num_operations(), 0);
  }
};

TEST_F(NcclContracts, EveryLayoutHasTheBitsOfMpi) {
  const Case test = make_case("f64", base::ComputeType::f64);
  for (const Layout& layout :
       {Layout{8, 2, 8, 1, 1}, Layout{8, 4, 4, 2, 1}, Layout{4, 1, 2, 2, 0}, Layout{2, 2, 2, 1, 1}}) {
    expect_same_bits(test, layout);
  }
}

TEST_F(NcclContracts, ColdExpertsAndRanksHaveTheBitsOfMpi) {
  Case test = make_case("cold", base::ComputeType::f64);
  test.cold_experts = true;
  for (const Layout& layout : {Layout{8, 1, 8, 1, 1}, Layout{4, 2, 4, 1, 1}}) {
    expect_same_bits(test, layout);
  }
}

TEST_F(NcclContracts, OverlapAndRoundedWiresHaveTheBitsOfMpi) {
  Case test = make_case("overlap", base::ComputeType::f32);
  test.role.optim.overlap_reduce = true;
  test.role.optim.overlap_gather = true;
  expect_same_bits(test, {8, 2, 4, 2, 1});
  test.role.grad_wire = {base::WireType::fp8, base::Fp8Format::e4m3, true};
  expect_same_bits(test, {4, 1, 4, 1, 1});
}

}  // namespace
}  // namespace athanor::tests
