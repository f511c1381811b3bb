// Student initialisation keeps what a model computes: dead channels, heads and layers' order aside.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "distill/student_init.hpp"
#include "infer/token_batch.hpp"
#include "model/transformer.hpp"
#include "support/synthetic_batches.hpp"
#include "train/student_weights.hpp"

namespace athanor::train {
namespace {

using Tensors = std::map<std::string, at::Tensor>;

// One rank's model in f64.
struct Model {
  explicit Model(const model::TransformerConfig& config)
      : parameters(options()), transformer(config, parameters, grid) {}
  static parallel::ParameterMap::Options options() {
    parallel::ParameterMap::Options options;
    options.seed = 3;
    options.dtype = at::kDouble;
    return options;
  }
  void load(const distill::StudentPlan& plan, const distill::WeightSource& source) {
    const at::NoGradGuard no_grad;
    for (const auto& parameter : parameters.all()) {
      parameter->value.copy_(distill::make_student_tensor(plan, parameter->name, parameter->shard, source));
    }
  }
  double loss() const {
    const at::NoGradGuard no_grad;
    const nn::TokenBatch batch = infer::make_token_batch(
        tests::synthetic_rows({transformer.config().vocab_size, 9, 3, 5, false}, 0, 3), 1);
    model::ForwardContext context;
    context.training = false;
    const auto hidden = transformer.blocks(transformer.embed(batch, context), batch, context);
    return transformer.head_loss(hidden.h_BsD, batch).sum.item<double>();
  }

  parallel::ProcessGrid grid;
  parallel::ParameterMap parameters;
  model::Transformer transformer;
};

class MapSource : public distill::WeightSource {
 public:
  explicit MapSource(Tensors tensors) : tensors_(std::move(tensors)) {}
  at::Tensor read(const std::string& name, const parallel::ShardSpec& box) const override {
    at::Tensor part = tensors_.at(name);
    ATHANOR_CHECK(part.sizes() == at::IntArrayRef(box.global_shape), "{} has another shape", name);
    for (std::size_t d = 0; d < box.offset.size(); ++d) {
      part = part.narrow(static_cast<std::int64_t>(d), box.offset[d], box.local_shape[d]);
    }
    return part.clone(at::MemoryFormat::Contiguous);
  }
  std::vector<double> expert_uses(std::int64_t) const override { return {}; }

 private:
  Tensors tensors_;
};

// Spreads a dimension over a longer one: element i goes to places[i]; the others get `rest`, which is
// broadcast.
at::Tensor spread(const at::Tensor& values, std::int64_t dim, const std::vector<std::int64_t>& places,
                  std::int64_t size, double rest) {
  std::vector<std::int64_t> sizes = values.sizes().vec();
  sizes[static_cast<std::size_t>(dim)] = size;
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(17);
  at::Tensor result = at::randn(sizes, generator, values.options()) * rest;
  result.index_copy_(dim, at::tensor(places, at::kLong), values);
  return result;
}

model::TransformerConfig small_config() {
  model::TransformerConfig config;
  config.vocab_size = 37;
  config.layers = 2;
  config.hidden = 16;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 4;
  config.ffn = 24;
  config.init_std = 0.3;
  config.norm_eps = 1e-15;  // a constant part of the mean square that no scale can keep
  config.moe.num_experts = 4;
  config.moe.top_k = 2;
  config.moe.ffn = 6;
  config.moe.every = 2;
  return config;
}

// Places of what lives among what is dead, in an order of its own.
const std::vector<std::int64_t> stream_places = {4, 0, 7, 2, 19, 9, 10, 3, 12, 13, 1, 15, 17, 5, 18, 8};
const std::vector<std::int64_t> ffn_places = {29, 1,  2,  3,  4,  5,  6,  8,  9,  10, 11, 12,
                                              13, 14, 15, 17, 18, 20, 21, 22, 24, 25, 26, 28};

// A model of more channels and a head more in each group, none of which does anything.
Tensors inflate(const Model& model) {
  Tensors tensors;
  for (const auto& parameter : model.parameters.all()) {
    const std::string& name = parameter->name;
    at::Tensor values = parameter->value.detach().clone();
    const auto heads = [&](std::int64_t dim) {  // 2 + 2 query heads of width 4 become 3 + 3
      std::vector<std::int64_t> places;
      for (const std::int64_t head : {0, 2, 3, 4}) {
        for (std::int64_t c = 0; c < 4; ++c) {
          places.push_back(head * 4 + c);
        }
      }
      values = spread(values, dim, places, 24, name.ends_with("o.weight") ? 0.0 : 0.3);
    };
    if (name.ends_with("attention.q.weight")) {
      heads(0);
    } else if (name.ends_with("o.weight")) {
      heads(1);
    } else if (name.ends_with("ffn.gate_up.weight")) {
      values = spread(values, 1, ffn_places, 30, 0.3);
    } else if (name.ends_with("ffn.down.weight")) {
      values = spread(values, 1, ffn_places, 30, 0.0);
    }
    const bool writes = name.ends_with("o.weight") || name.ends_with("down.weight");
    if (name.ends_with("experts.down")) {
      values = spread(values, 1, stream_places, 20, 0.0);
    } else if (writes) {
      values = spread(values, 0, stream_places, 20, 0.0);
    } else if (!name.ends_with("q_norm.weight") && !name.ends_with("k_norm.weight")) {
      values = spread(values, -1 + values.dim(), stream_places, 20, name == "embedding.weight" ? 0.0 : 0.01);
    }
    tensors[name] = values;
  }
  return tensors;
}

// RMS norms of the larger model divide by the mean square over more channels.
void scale_gains(Tensors& tensors) {
  for (auto& [name, values] : tensors) {
    if (name.ends_with("_norm.weight") && values.size(0) == 20) {
      values *= std::sqrt(16.0 / 20.0);
    }
  }
}

TEST(StudentFunction, WhatIsDeadCanGoWithoutAChange) {
  const model::TransformerConfig small = small_config();
  Model original(small);
  model::TransformerConfig large = small;
  large.hidden = 20;
  large.heads = 6;
  large.ffn = 30;
  Tensors tensors = inflate(original);
  scale_gains(tensors);
  const MapSource source(std::move(tensors));

  Model inflated(large);
  const distill::ModelShape large_shape = describe_model(large);
  inflated.load(distill::make_student_plan(large_shape, large_shape, {}, source), source);
  EXPECT_NEAR(inflated.loss(), original.loss(), 1e-9) << "the larger model computes the same";

  Model student(small);
  const distill::StudentPlan plan =
      distill::make_student_plan(large_shape, describe_model(small), {}, source);
  student.load(plan, source);
  EXPECT_NEAR(student.loss(), original.loss(), 1e-9);
  std::vector<std::int64_t> living = stream_places;
  std::ranges::sort(living);
  EXPECT_EQ(plan.hidden, living);
}

}  // namespace
}  // namespace athanor::train
