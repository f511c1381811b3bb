#include "config/suggest.hpp"

#include <gtest/gtest.h>

namespace athanor::config {
namespace {

TEST(EditDistance, CountsInsertionsDeletionsReplacementsAndSwaps) {
  EXPECT_EQ(edit_distance("layers", "layers"), 0);
  EXPECT_EQ(edit_distance("layer", "layers"), 1);
  EXPECT_EQ(edit_distance("layerss", "layers"), 1);
  EXPECT_EQ(edit_distance("lapers", "layers"), 1);
  EXPECT_EQ(edit_distance("laeyrs", "layers"), 1);
  EXPECT_EQ(edit_distance("", "abc"), 3);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3);
}

TEST(EditDistance, IgnoresCaseAndDashes) {
  EXPECT_EQ(edit_distance("MOE.Top-K", "moe.top_k"), 0);
}

TEST(Nearest, FindsTheMeantKey) {
  const std::vector<std::string> keys = {"model.layers", "model.hidden", "moe.top_k", "optim.lr"};
  EXPECT_EQ(nearest("model.layer", keys), "model.layers");
  EXPECT_EQ(nearest("modle.hiden", keys), "model.hidden");
  EXPECT_EQ(nearest("moe.topk", keys), "moe.top_k");
}

TEST(Nearest, FindsAKeyWithoutItsSectionOrWithAnother) {
  const std::vector<std::string> keys = {"model.layers", "moe.top_k", "optim.lr"};
  EXPECT_EQ(nearest("layers", keys), "model.layers");
  EXPECT_EQ(nearest("train.lr", keys), "optim.lr");
}

TEST(Nearest, SaysNothingWhenNothingIsNear) {
  EXPECT_EQ(nearest("completely.different", {"model.layers", "optim.lr"}), "");
}

}  // namespace
}  // namespace athanor::config
