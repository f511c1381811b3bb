// Fewer experts in student initialisation: chosen, merged, and made into dense layers.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "distill/student_init.hpp"
#include "distill/student_init_fixture.hpp"

namespace athanor::distill {
namespace {

using testing::ElementsAre;

ModelShape one_sparse_layer() {
  ModelShape shape = full_shape();
  shape.shared_ffn = 0;
  shape.sparse = {true};
  return shape;
}

ModelShape with_experts(ModelShape shape, std::int64_t experts) {
  shape.experts = experts;
  return shape;
}

std::vector<std::int64_t> first_parts(const LayerPlan& layer) {
  std::vector<std::int64_t> experts;
  for (const ExpertPlan& expert : layer.experts) {
    experts.push_back(expert.parts.front().expert);
  }
  return experts;
}

TEST(StudentInitExperts, TheMostUsedStayInTheirOrder) {
  const ModelShape shape = one_sparse_layer();
  MemoryWeights source(shape);
  source.uses[0] = {1, 9, 0, 4, 4, 8};
  const StudentPlan plan = make_student_plan(shape, with_experts(shape, 3), {}, source);
  EXPECT_THAT(first_parts(plan.layer_plans[0]), ElementsAre(1, 3, 5));
  const at::Tensor kept = at::tensor({1, 3, 5});
  for (const char* name :
       {"layers.0.moe.router.weight", "layers.0.moe.experts.gate_up", "layers.0.moe.experts.down"}) {
    EXPECT_TRUE(at::equal(whole_tensor(plan, name, source), source[name].index_select(0, kept))) << name;
  }
}

TEST(StudentInitExperts, WithoutCountsTheWeightsDecide) {
  const ModelShape shape = one_sparse_layer();
  MemoryWeights source(shape);
  source["layers.0.moe.experts.down"][2].mul_(30.0);
  source["layers.0.moe.router.weight"][4].mul_(30.0);
  source.uses[0] = {0, 0, 0, 0, 0, 0};  // nothing was counted yet
  const StudentPlan plan = make_student_plan(shape, with_experts(shape, 2), {}, source);
  EXPECT_THAT(first_parts(plan.layer_plans[0]), ElementsAre(2, 4));
}

TEST(StudentInitExperts, GroupsOfRoutingStayGroups) {
  ModelShape shape = one_sparse_layer();
  shape.expert_groups = 2;
  MemoryWeights source(shape);
  source.uses[0] = {9, 8, 7, 1, 2, 3};
  const StudentPlan plan = make_student_plan(shape, with_experts(shape, 4), {}, source);
  EXPECT_THAT(first_parts(plan.layer_plans[0]), ElementsAre(0, 1, 4, 5));
}

TEST(StudentInitExperts, NarrowerExpertsKeepTheirBestChannels) {
  const ModelShape shape = one_sparse_layer();
  ModelShape student = shape;
  student.expert_ffn = 2;
  MemoryWeights source(shape);
  source["layers.0.moe.experts.gate_up"].fill_(1.0);
  at::Tensor& down = source["layers.0.moe.experts.down"];
  down.fill_(1.0);
  down[3].select(1, 1).mul_(2.0);
  down[3].select(1, 4).mul_(2.0);
  const StudentPlan plan = make_student_plan(shape, student, {}, source);
  EXPECT_THAT(plan.layer_plans[0].experts[3].parts[0].channels, ElementsAre(1, 4));
  EXPECT_THAT(plan.layer_plans[0].experts[0].parts[0].channels, ElementsAre(0, 1));
  EXPECT_TRUE(at::equal(whole_tensor(plan, "layers.0.moe.experts.down", source)[3],
                        down[3].index_select(1, at::tensor({1, 4}))));
}

// Experts 0 and 3 and experts 1, 2 have like router rows; 4 and 5 like none.
MemoryWeights clustered(const ModelShape& shape) {
  MemoryWeights source(shape);
  at::Tensor& router = source["layers.0.moe.router.weight"];
  router.zero_();
  const int rows[] = {0, 1, 1, 0, 2, 3};
  for (int expert = 0; expert < 6; ++expert) {
    router[expert][rows[expert]] = 1.0;
    router[expert][11] = 0.01 * expert;
  }
  source.uses[0] = {6, 1, 4, 2, 9, 8};
  return source;
}

TEST(StudentInitExperts, SimilarOnesBecomeTheirMeanByUse) {
  const ModelShape shape = one_sparse_layer();
  MemoryWeights source = clustered(shape);
  const StudentPlan plan =
      make_student_plan(shape, with_experts(shape, 4), {{}, ExpertReduction::merge}, source);
  const std::vector<ExpertPlan>& experts = plan.layer_plans[0].experts;
  ASSERT_THAT(first_parts(plan.layer_plans[0]), ElementsAre(0, 2, 4, 5));
  ASSERT_EQ(experts[0].parts.size(), 2u);
  ASSERT_EQ(experts[1].parts.size(), 2u);
  EXPECT_EQ(experts[0].parts[1].expert, 3);
  EXPECT_EQ(experts[1].parts[1].expert, 1);
  EXPECT_DOUBLE_EQ(experts[0].parts[0].weight, 0.75);
  EXPECT_DOUBLE_EQ(experts[1].parts[0].weight, 0.8);

  const at::Tensor& router = source["layers.0.moe.router.weight"];
  const at::Tensor made = whole_tensor(plan, "layers.0.moe.router.weight", source);
  EXPECT_TRUE(at::allclose(made[0], router[0] * 0.75 + router[3] * 0.25));
  EXPECT_TRUE(at::equal(made[2], router[4])) << "alone: as it was";
  const at::Tensor& down = source["layers.0.moe.experts.down"];
  const at::Tensor order = at::tensor(experts[0].parts[1].channels, at::kLong);
  EXPECT_TRUE(at::allclose(whole_tensor(plan, "layers.0.moe.experts.down", source)[0],
                           down[0] * 0.75 + down[3].index_select(1, order) * 0.25));
}

TEST(StudentInitExperts, APermutedCopyMergesIntoTheOriginal) {
  const ModelShape shape = one_sparse_layer();
  MemoryWeights source = clustered(shape);
  at::Tensor& gate_up = source["layers.0.moe.experts.gate_up"];
  at::Tensor& down = source["layers.0.moe.experts.down"];
  const at::Tensor order = at::tensor({3, 0, 4, 1, 2});
  gate_up[3].copy_(at::cat({gate_up[0].index_select(0, order), gate_up[0].index_select(0, order + 5)}));
  down[3].copy_(down[0].index_select(1, order));
  const StudentPlan plan =
      make_student_plan(shape, with_experts(shape, 4), {{}, ExpertReduction::merge}, source);
  EXPECT_THAT(plan.layer_plans[0].experts[0].parts[1].channels, ElementsAre(1, 3, 4, 0, 2));
  EXPECT_TRUE(at::allclose(whole_tensor(plan, "layers.0.moe.experts.gate_up", source)[0], gate_up[0]));
  EXPECT_TRUE(at::allclose(whole_tensor(plan, "layers.0.moe.experts.down", source)[0], down[0]));
}

TEST(StudentInitExperts, ADenseLayerHasTheirChannelsInTurn) {
  ModelShape shape = one_sparse_layer();
  shape.shared_ffn = 4;
  ModelShape student = shape;
  student.sparse = {false};
  student.experts = student.expert_ffn = student.shared_ffn = 0;
  student.ffn = 4 + 5 + 3;  // the shared ones, one expert, three channels of another
  MemoryWeights source(shape);
  source.uses[0] = {1, 6, 0, 2, 1, 1};
  at::Tensor& down = source["layers.0.moe.experts.down"];
  source["layers.0.moe.experts.gate_up"].fill_(1.0);
  down.fill_(1.0);
  down[3].select(1, 0).mul_(0.5);
  down[3].select(1, 2).mul_(0.5);
  const StudentPlan plan = make_student_plan(shape, student, {}, source);
  const LayerPlan& layer = plan.layer_plans[0];
  EXPECT_THAT(first_parts(layer), ElementsAre(1, 3));
  EXPECT_DOUBLE_EQ(layer.experts[0].gate, 0.75);
  EXPECT_DOUBLE_EQ(layer.experts[1].gate, 0.25);
  EXPECT_THAT(layer.experts[1].parts[0].channels, ElementsAre(1, 3, 4));
  const at::Tensor made = whole_tensor(plan, "layers.0.ffn.down.weight", source);
  EXPECT_TRUE(at::equal(made.narrow(1, 0, 4), source["layers.0.moe.shared.down.weight"]));
  EXPECT_TRUE(at::equal(made.narrow(1, 4, 5), down[1] * 0.75));
  EXPECT_TRUE(at::equal(made.narrow(1, 9, 3), down[3].index_select(1, at::tensor({1, 3, 4})) * 0.25));
  const std::vector<std::int64_t> sizes = {2, student.ffn, student.hidden};
  const at::Tensor gate_up = whole_tensor(plan, "layers.0.ffn.gate_up.weight", source);
  const at::Tensor piece = make_student_tensor(plan, "layers.0.ffn.gate_up.weight",
                                               parallel::ShardSpec::slice(sizes, 1, 3, 7), source);
  EXPECT_TRUE(at::equal(piece, gate_up.narrow(1, 3, 7)));
}

TEST(StudentInitExperts, ADenseLayerOfMergedOnes) {
  const ModelShape shape = one_sparse_layer();
  ModelShape student = shape;
  student.sparse = {false};
  student.experts = student.expert_ffn = 0;
  student.ffn = 5;
  MemoryWeights source = clustered(shape);
  const StudentPlan plan = make_student_plan(shape, student, {{}, ExpertReduction::merge}, source);
  const std::vector<ExpertPlan>& experts = plan.layer_plans[0].experts;
  ASSERT_EQ(experts.size(), 1u);
  EXPECT_EQ(experts[0].parts.size(), 6u);
  EXPECT_DOUBLE_EQ(experts[0].gate, 1.0);
  double total = 0.0;
  for (const ExpertPart& part : experts[0].parts) {
    total += part.weight;
  }
  EXPECT_DOUBLE_EQ(total, 1.0);
}

}  // namespace
}  // namespace athanor::distill
