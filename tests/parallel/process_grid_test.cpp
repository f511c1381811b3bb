#include "parallel/process_grid.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <tuple>

#include "base/error.hpp"

namespace athanor::parallel {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

std::vector<ParallelDims> all_dims(int max_ranks) {
  std::vector<ParallelDims> result;
  for (int ranks = 1; ranks <= max_ranks; ++ranks) {
    for (int tp = 1; tp <= ranks; ++tp) {
      for (int ep = 1; ep <= ranks; ++ep) {
        if (ranks % tp == 0 && ranks % ep == 0) {
          result.push_back(ParallelDims::from_role_size(ranks, tp, ep));
        }
      }
    }
  }
  return result;
}

TEST(RankCoordinates, FollowTheDocumentedOrderForEveryWorldSize) {
  for (const ParallelDims& dims : all_dims(48)) {
    for (int rank = 0; rank < dims.num_ranks(); ++rank) {
      const auto c = RankCoordinates::of(dims, rank);
      EXPECT_EQ(c.dp_rank * dims.tp + c.tp_rank, rank);
      EXPECT_EQ(c.ep_rank, rank % dims.ep);
      EXPECT_EQ(c.expert_data_rank, rank / dims.ep);
      EXPECT_EQ(c.pp_rank, 0);
      EXPECT_EQ(c.cp_rank, 0);
      EXPECT_LT(c.tp_rank, dims.tp);
      EXPECT_LT(c.dp_rank, dims.dp);
    }
  }
}

TEST(RankCoordinates, EveryExpertGroupHoldsEachBlockOnce) {
  for (const ParallelDims& dims : all_dims(32)) {
    std::map<int, std::set<int>> blocks_of_group;
    std::map<int, std::set<int>> groups_of_block;
    for (int rank = 0; rank < dims.num_ranks(); ++rank) {
      const auto c = RankCoordinates::of(dims, rank);
      EXPECT_TRUE(blocks_of_group[c.expert_data_rank].insert(c.ep_rank).second);
      EXPECT_TRUE(groups_of_block[c.ep_rank].insert(c.expert_data_rank).second);
    }
    EXPECT_EQ(blocks_of_group.size(), static_cast<std::size_t>(dims.num_ranks() / dims.ep));
    EXPECT_EQ(groups_of_block.size(), static_cast<std::size_t>(dims.ep));
  }
}

TEST(RankCoordinates, PipelineIsSlowestAndTensorFastest) {
  ParallelDims dims;
  dims.pp = 2;
  dims.dp = 3;
  dims.cp = 2;
  dims.tp = 4;
  dims.ep = 6;
  std::set<std::tuple<int, int, int, int>> seen;
  int rank = 0;
  for (int pp = 0; pp < 2; ++pp) {
    for (int dp = 0; dp < 3; ++dp) {
      for (int cp = 0; cp < 2; ++cp) {
        for (int tp = 0; tp < 4; ++tp, ++rank) {
          const auto c = RankCoordinates::of(dims, rank);
          EXPECT_EQ(std::tuple(c.pp_rank, c.dp_rank, c.cp_rank, c.tp_rank), std::tuple(pp, dp, cp, tp));
          EXPECT_EQ(c.ep_rank, (dp * 4 + tp) % 6);
          EXPECT_EQ(c.expert_data_rank, (dp * 4 + tp) / 6);
        }
      }
    }
  }
}

TEST(RankCoordinates, RefusesARankOutsideTheGrid) {
  EXPECT_THROW(RankCoordinates::of(ParallelDims{}, 1), base::InternalError);
  EXPECT_THROW(RankCoordinates::of(ParallelDims{}, -1), base::InternalError);
}

TEST(ParallelDims, DerivesDataParallelDegree) {
  const auto dims = ParallelDims::from_role_size(12, 2, 4);
  EXPECT_EQ(dims.dp, 6);
  EXPECT_EQ(dims.tp, 2);
  EXPECT_EQ(dims.ep, 4);
  EXPECT_EQ(dims.num_ranks(), 12);
}

TEST(ParallelDims, RefusesTensorDegreeThatDoesNotDivideTheRanks) {
  EXPECT_THAT([] { ParallelDims::from_role_size(8, 3, 1); },
              ThrowsMessage<base::ConfigError>(AllOf(HasSubstr("parallel.tp=3"), HasSubstr("8 ranks"))));
}

TEST(ParallelDims, RefusesExpertDegreeThatDoesNotDivideTheRanks) {
  EXPECT_THAT([] { ParallelDims::from_role_size(6, 2, 4); },
              ThrowsMessage<base::ConfigError>(
                  AllOf(HasSubstr("parallel.ep=4"), HasSubstr("pp 1 x dp 3 x cp 1 x tp 2 = 6 ranks, ep 4"))));
}

TEST(ParallelDims, RefusesAProductThatIsNotTheNumberOfRanks) {
  ParallelDims dims;
  dims.dp = 2;
  dims.tp = 2;
  EXPECT_THAT([&] { dims.validate(6); },
              ThrowsMessage<base::ConfigError>(
                  AllOf(HasSubstr("6 ranks"), HasSubstr("pp 1 x dp 2 x cp 1 x tp 2 = 4 ranks, ep 1"))));
}

TEST(ParallelDims, RefusesDegreesBelowOneAndAxesNotBuiltYet) {
  EXPECT_THROW(ParallelDims::from_role_size(4, 0, 1), base::ConfigError);
  EXPECT_THROW(ParallelDims::from_role_size(4, 1, -2), base::ConfigError);
  EXPECT_THROW(ParallelDims::from_role_size(0, 1, 1), base::ConfigError);
  ParallelDims pipeline;
  pipeline.pp = 2;
  EXPECT_THROW(pipeline.validate(2), base::ConfigError);
  ParallelDims context;
  context.cp = 2;
  EXPECT_THROW(context.validate(2), base::ConfigError);
}

TEST(ProcessGrid, OfOneRankNeedsNoMpi) {
  const ProcessGrid grid;
  for (const Axis axis :
       {Axis::pipeline, Axis::data, Axis::context, Axis::tensor, Axis::expert, Axis::expert_data}) {
    EXPECT_EQ(grid.rank(axis), 0);
    EXPECT_EQ(grid.size(axis), 1);
  }
  EXPECT_TRUE(grid.role().is_null());
  EXPECT_EQ(grid.describe(), "dp 1 x tp 1, ep 1 (expert-data 1)");
  EXPECT_THROW(ProcessGrid(ParallelDims::from_role_size(2, 1, 1), Communicator()), base::ConfigError);
}

TEST(RoleSplit, OfANullWorldIsOneRole) {
  const RoleSplit split(Communicator(), {{"teacher", RoleKind::teacher, 1}});
  EXPECT_EQ(split.role_index(), 0);
  EXPECT_EQ(split.first_world_rank(0), 0);
  EXPECT_THROW(RoleSplit(Communicator(), {{"teacher", RoleKind::teacher, 2}}), base::ConfigError);
}

}  // namespace
}  // namespace athanor::parallel
