// Depth, width and slices of student initialisation, on small models made by hand.
#include "distill/student_init.hpp"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "base/error.hpp"
#include "distill/student_init_fixture.hpp"

namespace athanor::distill {
namespace {

using parallel::ShardSpec;
using student_init::Indices;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(StudentInit, EqualShapesAreTheIdentityBitForBit) {
  const ModelShape shape = full_shape();
  const MemoryWeights source(shape);
  const StudentPlan plan = make_student_plan(shape, shape, {}, source);
  EXPECT_EQ(source.elements_read, 0) << "nothing is to be chosen";
  for (const auto& [name, values] : source.tensors) {
    EXPECT_TRUE(at::equal(whole_tensor(plan, name, source), values)) << name;
  }
}

TEST(StudentInit, LayersAreSpreadWithFirstAndLast) {
  ModelShape source = dense_shape();
  ModelShape student = dense_shape();
  const auto layers = [&](std::int64_t from, std::int64_t to) {
    source.sparse.assign(static_cast<std::size_t>(from), false);
    student.sparse.assign(static_cast<std::size_t>(to), false);
    return start_plan(source, student, {}).layers;
  };
  EXPECT_THAT(layers(5, 3), ElementsAre(0, 2, 4));
  EXPECT_THAT(layers(4, 2), ElementsAre(0, 3));
  EXPECT_THAT(layers(6, 4), ElementsAre(0, 2, 3, 5));
  EXPECT_THAT(layers(3, 3), ElementsAre(0, 1, 2));
  EXPECT_THAT(layers(3, 1), ElementsAre(0));
}

TEST(StudentInit, FewerLayersAreCopiedBitForBit) {
  const ModelShape shape = full_shape();
  ModelShape student = shape;
  student.sparse = {false, true};
  const MemoryWeights source(shape);
  const StudentPlan plan = make_student_plan(shape, student, {{0, 2}, ExpertReduction::merge}, source);
  for (const auto& [name, sizes] : tensors_of(student)) {
    const std::string from = name.starts_with("layers.1.") ? "layers.2." + name.substr(9) : name;
    EXPECT_TRUE(at::equal(whole_tensor(plan, name, source), source.tensors.at(from))) << name;
  }
}

// One channel of everything that has the stream's width.
void scale_channel(MemoryWeights& source, std::int64_t channel, double reading, double writing) {
  for (auto& [name, values] : source.tensors) {
    const bool writes_rows = name.ends_with("o.weight") || name.ends_with("down.weight");
    if (name.ends_with("experts.down")) {
      values.select(1, channel).mul_(writing);
    } else if (writes_rows) {
      values[channel].mul_(writing);
    } else if (name == "embedding.weight") {
      values.select(1, channel).mul_(writing);
    } else if (!name.ends_with("norm.weight")) {
      values.select(-1, channel).mul_(reading);
    }
  }
}

TEST(StudentInit, ResidualChannelsAreThoseReadAndWrittenMost) {
  const ModelShape shape = full_shape();
  ModelShape student = shape;
  student.hidden = 9;
  MemoryWeights source(shape);
  for (const std::int64_t channel : {1, 4, 8}) {
    scale_channel(source, channel, 0.1, 0.0);
  }
  StudentPlan plan = make_student_plan(shape, student, {}, source);
  EXPECT_THAT(plan.hidden, ElementsAre(0, 2, 3, 5, 6, 7, 9, 10, 11));
  // All that is written is kept, so the mean square grows by 12 / 9.
  EXPECT_NEAR(plan.norm_scale, std::sqrt(12.0 / 9.0), 1e-12);
  const at::Tensor kept = at::tensor(plan.hidden, at::kLong);
  EXPECT_TRUE(at::equal(whole_tensor(plan, "embedding.weight", source),
                        source["embedding.weight"].index_select(1, kept)));
  EXPECT_TRUE(at::equal(whole_tensor(plan, "layers.0.ffn.down.weight", source),
                        source["layers.0.ffn.down.weight"].index_select(0, kept)));
  EXPECT_TRUE(at::allclose(whole_tensor(plan, "final_norm.weight", source),
                           source["final_norm.weight"].index_select(0, kept) * plan.norm_scale));
}

// Energies by hand: votes are shares of each matrix, readers with the gains of their norm.
TEST(StudentInit, ResidualVotesAreSharesOfEachMatrix) {
  ModelShape shape = dense_shape();
  shape.hidden = 2;
  shape.vocab_size = 1;
  ModelShape student = shape;
  student.hidden = 1;
  MemoryWeights source(shape);
  source["embedding.weight"] = at::tensor({3.0F, 4.0F}).view({1, 2});
  source["head.weight"] = at::tensor({1.0F, 1.0F}).view({1, 2});
  source["final_norm.weight"] = at::tensor({1.0F, 3.0F});
  const StudentPlan plan = start_plan(shape, student, {});
  const at::Tensor votes_2D = score_hidden_part(plan, 0, source);
  EXPECT_TRUE(at::allclose(votes_2D, at::tensor({0.1, 0.9, 0.36, 0.64}, at::kDouble).view({2, 2})));
}

TEST(StudentInit, HeadsStayWithTheirKeyValueHead) {
  const ModelShape shape = dense_shape();  // 6 query heads, 3 key/value heads, width 4
  ModelShape student = shape;
  student.heads = 2;
  student.kv_heads = 2;
  MemoryWeights source(shape);
  at::Tensor& o = source["layers.0.attention.o.weight"];
  o.fill_(1.0);
  source["layers.0.attention.kv.weight"].fill_(1.0);
  o.narrow(1, 1 * 4, 4).mul_(3.0);  // head 1 of group 0
  o.narrow(1, 4 * 4, 4).mul_(2.0);  // head 4 of group 2
  const StudentPlan plan = make_student_plan(shape, student, {}, source);
  const LayerPlan& layer = plan.layer_plans[0];
  EXPECT_THAT(layer.q_rows, ElementsAre(4, 5, 6, 7, 16, 17, 18, 19));
  EXPECT_EQ(layer.o_columns, layer.q_rows);
  EXPECT_THAT(layer.k_rows, ElementsAre(0, 1, 2, 3, 8, 9, 10, 11));
  EXPECT_EQ(layer.v_rows, layer.k_rows);
}

TEST(StudentInit, QueryAndKeySizesCountOnlyWithoutTheirNorm) {
  ModelShape shape = dense_shape();
  ModelShape student = shape;
  student.heads = 3;  // one of two for each key/value head
  for (const bool qk_norm : {true, false}) {
    shape.qk_norm = student.qk_norm = qk_norm;
    MemoryWeights source(shape);
    source["layers.0.attention.o.weight"].fill_(1.0);
    source["layers.0.attention.q.weight"].fill_(1.0);
    source["layers.0.attention.q.weight"].narrow(0, 5 * 4, 4).mul_(2.0);  // head 5
    const LayerPlan layer = make_student_plan(shape, student, {}, source).layer_plans[0];
    EXPECT_EQ(layer.q_rows.back(), qk_norm ? 4 * 4 + 3 : 5 * 4 + 3) << "of equal heads the first";
  }
}

TEST(StudentInit, NarrowerHeadsKeepFrequenciesAndTheirBestValues) {
  EXPECT_THAT(student_init::rotary_channels(8, 4), ElementsAre(0, 2, 4, 6));
  EXPECT_THAT(student_init::rotary_channels(12, 8), ElementsAre(0, 2, 3, 5, 6, 8, 9, 11));
  EXPECT_THAT(student_init::rotary_channels(6, 6), ElementsAre(0, 1, 2, 3, 4, 5));

  const ModelShape shape = dense_shape();
  ModelShape student = shape;
  student.head_dim = 2;
  MemoryWeights source(shape);
  at::Tensor& kv = source["layers.0.attention.kv.weight"];
  kv.fill_(1.0);
  source["layers.0.attention.o.weight"].fill_(1.0);
  kv[1][1].mul_(5.0);
  kv[1][3].mul_(4.0);
  const StudentPlan plan = make_student_plan(shape, student, {}, source);
  const LayerPlan& layer = plan.layer_plans[0];
  EXPECT_THAT(Indices(layer.k_rows.begin(), layer.k_rows.begin() + 2), ElementsAre(0, 2));
  EXPECT_THAT(Indices(layer.q_rows.begin(), layer.q_rows.begin() + 4), ElementsAre(0, 2, 4, 6));
  EXPECT_THAT(Indices(layer.v_rows.begin(), layer.v_rows.begin() + 2), ElementsAre(1, 3));
  EXPECT_THAT(Indices(layer.o_columns.begin(), layer.o_columns.begin() + 4), ElementsAre(1, 3, 5, 7));
  EXPECT_TRUE(at::allclose(
      whole_tensor(plan, "layers.0.attention.q_norm.weight", source),
      source["layers.0.attention.q_norm.weight"].index_select(0, at::tensor({0, 2})) * std::sqrt(2.0)));
  EXPECT_TRUE(at::equal(whole_tensor(plan, "layers.0.attention.k_norm.weight", source),
                        source["layers.0.attention.k_norm.weight"].index_select(0, at::tensor({0, 2}))));
}

TEST(StudentInit, FeedForwardChannelsByTheProductOfTheirNorms) {
  const ModelShape shape = dense_shape();
  ModelShape student = shape;
  student.ffn = 3;
  MemoryWeights source(shape);
  at::Tensor& gate_up = source["layers.0.ffn.gate_up.weight"];
  at::Tensor& down = source["layers.0.ffn.down.weight"];
  gate_up.fill_(1.0);
  down.fill_(1.0);
  gate_up[0][7].mul_(4.0);
  gate_up[1][2].mul_(3.0);
  down.select(1, 5).mul_(2.0);
  gate_up[0][9].mul_(9.0);
  down.select(1, 9).mul_(0.1);  // large, but hardly seen
  const StudentPlan plan = make_student_plan(shape, student, {}, source);
  EXPECT_THAT(plan.layer_plans[0].channels, ElementsAre(2, 5, 7));
  const at::Tensor kept = at::tensor({2, 5, 7});
  EXPECT_TRUE(
      at::equal(whole_tensor(plan, "layers.0.ffn.gate_up.weight", source), gate_up.index_select(1, kept)));
  EXPECT_TRUE(at::equal(whole_tensor(plan, "layers.0.ffn.down.weight", source), down.index_select(1, kept)));
}

TEST(StudentInit, TiedEmbeddingsGiveAnOutputHead) {
  ModelShape shape = dense_shape();
  shape.tie_embeddings = true;
  ModelShape student = shape;
  student.tie_embeddings = false;
  MemoryWeights source(shape);
  const StudentPlan plan = make_student_plan(shape, student, {}, source);
  EXPECT_TRUE(at::equal(whole_tensor(plan, "head.weight", source), source["embedding.weight"]));
}

// How tensors are cut on `parts` ranks: by the first dimension of this list that the tensor may be cut in.
std::int64_t cut_dim(const std::string& name) {
  if (name.ends_with("norm.weight") || name.ends_with("router.weight")) {
    return -1;
  }
  if (name.ends_with("kv.weight") || name.ends_with("gate_up.weight") || name.ends_with("o.weight") ||
      name.ends_with("down.weight")) {
    return 1;
  }
  return 0;
}

TEST(StudentInit, AnySplitGivesThePiecesOfTheWhole) {
  const ModelShape shape = full_shape();
  ModelShape student = shape;
  student.hidden = 8;
  student.heads = student.kv_heads = 2;
  student.head_dim = 2;
  student.ffn = 7;
  student.experts = 4;
  student.expert_ffn = 3;
  student.shared_ffn = 3;
  student.sparse = {false, true};
  MemoryWeights source(shape);
  source.uses[2] = {1, 5, 2, 0, 7, 3};
  for (const ExpertReduction experts : {ExpertReduction::choose, ExpertReduction::merge}) {
    const StudentPlan plan = make_student_plan(shape, student, {{}, experts}, source);
    for (const auto& [name, sizes] : tensors_of(student)) {
      const at::Tensor whole = whole_tensor(plan, name, source);
      ASSERT_EQ(whole.sizes(), at::IntArrayRef(sizes)) << name;
      const std::int64_t dim = cut_dim(name);
      for (std::int64_t part = 0; part < 3 && dim >= 0; ++part) {
        const parallel::Block block = parallel::block_of(sizes[static_cast<std::size_t>(dim)], 3, part);
        const at::Tensor piece =
            make_student_tensor(plan, name, ShardSpec::slice(sizes, dim, block.first, block.count), source);
        EXPECT_TRUE(at::equal(piece, whole.narrow(dim, block.first, block.count))) << name << " " << part;
      }
    }
  }
}

TEST(StudentInit, PlansTravelAsBytes) {
  const ModelShape shape = full_shape();
  ModelShape student = shape;
  student.heads = 3;
  student.ffn = 7;
  student.experts = 2;
  MemoryWeights source(shape);
  const StudentPlan plan = make_student_plan(shape, student, {{}, ExpertReduction::merge}, source);
  for (const LayerPlan& layer : plan.layer_plans) {
    EXPECT_EQ(decode_layer_plan(encode_layer_plan(layer)), layer);
  }
  EXPECT_THROW(decode_layer_plan(encode_layer_plan(plan.layer_plans[1]).substr(0, 40)), base::InternalError);
}

TEST(StudentInit, RefusesWhatTheSourceCannotGive) {
  struct Case {
    std::function<void(ModelShape&)> change;
    const char* word;
  };
  const Case cases[] = {
      {[](ModelShape& s) { s.vocab_size = 12; }, "model.vocab_size=12"},
      {[](ModelShape& s) { s.hidden = 13; }, "model.hidden=13"},
      {[](ModelShape& s) { s.heads = 12; }, "model.heads=12"},
      {[](ModelShape& s) { s.kv_heads = 6; }, "model.kv_heads=6"},
      {[](ModelShape& s) { s.kv_heads = 1; }, "for each key/value head"},
      {[](ModelShape& s) { s.head_dim = 6; }, "model.head_dim=6"},
      {[](ModelShape& s) { s.ffn = 11; }, "model.ffn=11"},
      {[](ModelShape& s) { s.experts = 7; }, "moe.experts=7"},
      {[](ModelShape& s) { s.expert_ffn = 6; }, "moe.ffn=6"},
      {[](ModelShape& s) { s.shared_ffn = 6; }, "moe.shared_experts"},
      {[](ModelShape& s) { s.shared_ffn = 0; }, "moe.shared_experts=0"},
      {[](ModelShape& s) { s.qk_norm = false; }, "model.qk_norm=false"},
      {[](ModelShape& s) { s.rope_theta = 1e6; }, "model.rope_theta"},
      {[](ModelShape& s) { s.tie_embeddings = true; }, "model.tie_embeddings=true"},
      {[](ModelShape& s) { s.sigmoid_scores = true; }, "moe.score=sigmoid"},
      {[](ModelShape& s) {
         s.sparse = {true, true, true};
       },
       "layer 0 is sparse"},
      {[](ModelShape& s) {
         s.sparse = {false, false, false}, s.ffn = 100;
       },
       "model.ffn=100"},
      {[](ModelShape& s) { s.sparse.push_back(true); }, "model.layers=4"},
  };
  for (const Case& test : cases) {
    ModelShape student = full_shape();
    test.change(student);
    try {
      start_plan(full_shape(), student, {});
      ADD_FAILURE() << "not refused: " << test.word;
    } catch (const base::ConfigError& error) {
      EXPECT_THAT(error.what(), HasSubstr(test.word));
    }
  }
}

TEST(StudentInit, RefusesLayersThatAreNotThere) {
  ModelShape student = full_shape();
  student.sparse = {false, true};
  const std::pair<std::vector<std::int64_t>, const char*> cases[] = {{{0}, "one source layer for each"},
                                                                     {{0, 3}, "out of range"},
                                                                     {{-1, 2}, "out of range"},
                                                                     {{2, 1}, "rising"}};
  for (const auto& [layers, word] : cases) {
    try {
      start_plan(full_shape(), student, {layers, ExpertReduction::choose});
      ADD_FAILURE() << "not refused: " << word;
    } catch (const base::ConfigError& error) {
      EXPECT_THAT(error.what(), HasSubstr(word));
    }
  }
}

}  // namespace
}  // namespace athanor::distill
