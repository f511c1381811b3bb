// The grid's communicators, and the gradient groups of every layout of this number of ranks.
#include "parallel/reduction_groups.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/process_grid.hpp"
#include "support/mpi_test.hpp"

namespace athanor::parallel {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;
using tests::world;

std::vector<ParallelDims> layouts() {
  std::vector<ParallelDims> result;
  for (int tp = 1; tp <= world().size(); ++tp) {
    for (int ep = 1; ep <= world().size(); ++ep) {
      if (world().size() % tp == 0 && world().size() % ep == 0) {
        result.push_back(ParallelDims::from_role_size(world().size(), tp, ep));
      }
    }
  }
  return result;
}

std::vector<std::int64_t> members(const Communicator& comm) {
  const at::Tensor ranks = all_gather(at::full({1}, world().rank(), at::kLong), comm, Traffic::other);
  return {ranks.const_data_ptr<std::int64_t>(), ranks.const_data_ptr<std::int64_t>() + ranks.numel()};
}

TEST(ProcessGrid, CommunicatorsJoinTheRanksOfEqualCoordinates) {
  for (const ParallelDims& dims : layouts()) {
    const ProcessGrid grid(dims, world());
    const auto own = grid.coordinates();
    std::map<Axis, std::vector<std::int64_t>> expected;
    for (int r = 0; r < world().size(); ++r) {
      const auto c = RankCoordinates::of(dims, r);
      const auto add = [&](Axis axis, bool same) {
        if (same) {
          expected[axis].push_back(r);
        }
      };
      add(Axis::data, c.tp_rank == own.tp_rank);
      add(Axis::tensor, c.dp_rank == own.dp_rank);
      add(Axis::expert, c.expert_data_rank == own.expert_data_rank);
      add(Axis::expert_data, c.ep_rank == own.ep_rank);
      add(Axis::pipeline, r == world().rank());
      add(Axis::context, r == world().rank());
    }
    for (const auto& [axis, ranks] : expected) {
      EXPECT_EQ(members(grid.comm(axis)), ranks) << grid.describe();
    }
    EXPECT_EQ(grid.rank(Axis::data), own.dp_rank);
    EXPECT_EQ(grid.rank(Axis::tensor), own.tp_rank);
    EXPECT_EQ(grid.rank(Axis::expert), own.ep_rank);
    EXPECT_EQ(grid.rank(Axis::expert_data), own.expert_data_rank);
    EXPECT_EQ(grid.role().size(), world().size());
    EXPECT_EQ(grid.comm(Axis::tensor).name(), "world.tp");
  }
}

TEST(RoleSplit, GivesEachRoleItsRanksInOrder) {
  const int n = world().size();
  if (n == 1) {
    const RoleSplit split(world(), {{"teacher", RoleKind::teacher, 1}});
    EXPECT_EQ(split.comm().name(), "world.teacher");
    return;
  }
  const RoleSplit split(world(), {{"teacher", RoleKind::teacher, n - 1}, {"student", RoleKind::student, 1}});
  const bool is_student = world().rank() == n - 1;
  EXPECT_EQ(split.role_index(), is_student ? 1 : 0);
  EXPECT_EQ(split.role().name, is_student ? "student" : "teacher");
  EXPECT_EQ(split.comm().size(), is_student ? 1 : n - 1);
  EXPECT_EQ(split.comm().rank(), is_student ? 0 : world().rank());
  EXPECT_EQ(split.first_world_rank(1), n - 1);
  EXPECT_THROW(RoleSplit(world(), {{"teacher", RoleKind::teacher, n + 1}}), base::ConfigError);
  EXPECT_THROW(RoleSplit(world(), {{"a", RoleKind::teacher, n}, {"b", RoleKind::student, 0}}),
               base::ConfigError);
}

// The slices of a small model on the rank of these coordinates.
std::vector<std::pair<std::string, ShardSpec>> model_slices(const ParallelDims& dims,
                                                            const RankCoordinates& at) {
  const auto block_slice = [](std::vector<std::int64_t> shape, std::int64_t dim, int parts, int index) {
    const Block block = block_of(shape[static_cast<std::size_t>(dim)], parts, index);
    return ShardSpec::slice(shape, dim, block.first, block.count);
  };
  constexpr int kv_heads = 2;
  const int kv_parts = std::min(dims.tp, kv_heads);
  return {
      {"embedding",
       block_slice({10, 4}, 0, dims.tp, at.tp_rank)},  // blocks that tp does not divide, or empty ones
      {"norm", ShardSpec::whole({4})},
      {"q", block_slice({24, 4}, 0, dims.tp, at.tp_rank)},
      {"kv", block_slice({kv_heads * 2, 4}, 0, kv_parts, at.tp_rank * kv_parts / dims.tp)},
      {"o", block_slice({4, 24}, 1, dims.tp, at.tp_rank)},
      {"experts", block_slice({24, 3, 4}, 0, dims.ep, at.ep_rank)},
      {"tiny", block_slice({2}, 0, dims.tp, at.tp_rank)},  // empty on the ranks beyond
  };
}

ParameterMap make_model(const std::vector<std::pair<std::string, ShardSpec>>& slices) {
  ParameterMap map(ParameterMap::Options{});
  for (const auto& [name, shard] : slices) {
    ParameterOptions options;
    options.name = name;
    options.shard = shard;
    map.add(options);
  }
  return map;
}

TEST(ReductionGroups, AreExactlyTheHoldersOfEachSlice) {
  for (const ParallelDims& dims : layouts()) {
    if (dims.tp > 2 && dims.tp % 2 != 0) {
      continue;  // two kv heads cannot be replicated over an odd number of ranks
    }
    const auto own = model_slices(dims, RankCoordinates::of(dims, world().rank()));
    const ParameterMap map = make_model(own);
    const auto groups = build_reduction_groups(map, world());
    std::set<std::string> seen;
    for (const ReductionGroup& group : groups) {
      const auto ranks = members(group.comm);
      for (const auto& parameter : group.parameters) {
        EXPECT_TRUE(seen.insert(parameter->name).second);
        std::vector<std::int64_t> expected;
        for (int r = 0; r < world().size(); ++r) {
          for (const auto& [name, shard] : model_slices(dims, RankCoordinates::of(dims, r))) {
            const bool both_empty = shard.local_numel() == 0 && parameter->shard.local_numel() == 0;
            if (name == parameter->name && (shard == parameter->shard || both_empty)) {
              expected.push_back(r);
            }
          }
        }
        EXPECT_EQ(ranks, expected) << parameter->name << " at dp " << dims.dp << " tp " << dims.tp << " ep "
                                   << dims.ep;
      }
    }
    EXPECT_EQ(seen.size(), own.size());
  }
}

TEST(ReductionGroups, ParametersOfEqualHoldersShareAGroup) {
  const ParallelDims dims = ParallelDims::from_role_size(world().size(), world().size(), world().size());
  const ParameterMap map = make_model(model_slices(dims, RankCoordinates::of(dims, world().rank())));
  map.find("norm")->trainable = false;
  for (const ReductionGroup& group : build_reduction_groups(map, world())) {
    for (const auto& parameter : group.parameters) {
      EXPECT_NE(parameter->name, "norm");  // frozen
    }
    if (group.parameters[0]->name == "q") {
      ASSERT_GE(group.parameters.size(), 2u);
      EXPECT_EQ(group.comm.size(), 1);
    }
  }
}

TEST(ReductionGroups, CountEachSliceOnceInASumOverGroups) {
  // Contract 1's norm: each slice counted once gives the number of elements of the logical model.
  for (const ParallelDims& dims : layouts()) {
    if (dims.tp > 2 && dims.tp % 2 != 0) {
      continue;
    }
    const ParameterMap map = make_model(model_slices(dims, RankCoordinates::of(dims, world().rank())));
    std::int64_t owned = 0;
    for (const ReductionGroup& group : build_reduction_groups(map, world())) {
      for (const auto& parameter : group.parameters) {
        owned += group.comm.rank() == 0 ? parameter->shard.local_numel() : 0;
      }
    }
    EXPECT_EQ(all_reduce_sum(owned, world()), map.global_numel());
  }
}

TEST(ReductionGroups, RefuseModelsThatDifferBetweenRanks) {
  if (world().size() == 1) {
    return;
  }
  const bool is_last = world().rank() == world().size() - 1;
  const ParameterMap other_name =
      make_model({{"a", ShardSpec::whole({2})}, {is_last ? "c" : "b", ShardSpec::whole({2})}});
  EXPECT_THAT(
      [&] { build_reduction_groups(other_name, world()); },
      ThrowsMessage<base::CommError>(HasSubstr(is_last ? "here c of shape [2]" : "here b of shape [2]")));
  const ParameterMap other_shape = make_model({{"a", ShardSpec::whole({is_last ? 3 : 2})}});
  EXPECT_THROW(build_reduction_groups(other_shape, world()), base::CommError);
  auto slices = std::vector<std::pair<std::string, ShardSpec>>{{"a", ShardSpec::whole({2})}};
  if (is_last) {
    slices.emplace_back("b", ShardSpec::whole({2}));
  }
  const ParameterMap other_count = make_model(slices);
  EXPECT_THAT([&] { build_reduction_groups(other_count, world()); },
              ThrowsMessage<base::CommError>(HasSubstr("rank 0 has 1 trainable parameters")));
}

TEST(ReductionGroups, OfANullRoleHoldOneGroup) {
  const ParameterMap map = make_model({{"a", ShardSpec::whole({2})}, {"b", ShardSpec::whole({3})}});
  const auto groups = build_reduction_groups(map, Communicator());
  ASSERT_EQ(groups.size(), 1u);
  EXPECT_EQ(groups[0].parameters.size(), 2u);
}

}  // namespace
}  // namespace athanor::parallel
