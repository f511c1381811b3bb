// A larger model in memory for the tests of student initialisation.
#pragma once

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "distill/student_init.hpp"
#include "distill/student_init/weights.hpp"

namespace athanor::distill {

/// Names and shapes of all tensors of a model.
inline std::map<std::string, std::vector<std::int64_t>> tensors_of(const ModelShape& shape) {
  std::map<std::string, std::vector<std::int64_t>> tensors;
  const auto add = [&](std::int64_t layer, const std::string& name) {
    tensors[layer < 0 ? name : student_init::layer_name(layer, name)] =
        student_init::tensor_shape(shape, name);
  };
  add(-1, "embedding.weight");
  add(-1, "final_norm.weight");
  if (!shape.tie_embeddings) {
    add(-1, "head.weight");
  }
  for (std::int64_t layer = 0; layer < shape.num_layers(); ++layer) {
    std::vector<std::string> names = {"attention_norm.weight", "ffn_norm.weight", "attention.q.weight",
                                      "attention.kv.weight", "attention.o.weight"};
    if (shape.qk_norm) {
      names.insert(names.end(), {"attention.q_norm.weight", "attention.k_norm.weight"});
    }
    if (!shape.sparse[static_cast<std::size_t>(layer)]) {
      names.insert(names.end(), {"ffn.gate_up.weight", "ffn.down.weight"});
    } else {
      names.insert(names.end(), {"moe.router.weight", "moe.experts.gate_up", "moe.experts.down"});
      if (shape.shared_ffn > 0) {
        names.insert(names.end(), {"moe.shared.gate_up.weight", "moe.shared.down.weight"});
      }
    }
    for (const std::string& name : names) {
      add(layer, name);
    }
  }
  return tensors;
}

/// Tensors in memory; counts what is read.
class MemoryWeights : public WeightSource {
 public:
  explicit MemoryWeights(const ModelShape& shape, at::ScalarType type = at::kFloat) {
    std::uint64_t seed = 1;
    for (const auto& [name, sizes] : tensors_of(shape)) {
      at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(seed++);
      at::Tensor values = at::randn(sizes, generator, at::TensorOptions(type));
      tensors[name] = name.ends_with("norm.weight") ? values * 0.1 + 1.0 : values * 0.3;
    }
  }

  at::Tensor read(const std::string& name, const parallel::ShardSpec& box) const override {
    at::Tensor part = tensors.at(name);
    ATHANOR_CHECK(part.sizes() == at::IntArrayRef(box.global_shape), "{} has another shape", name);
    for (std::size_t d = 0; d < box.offset.size(); ++d) {
      part = part.narrow(static_cast<std::int64_t>(d), box.offset[d], box.local_shape[d]);
    }
    elements_read += part.numel();
    return part.clone(at::MemoryFormat::Contiguous);
  }
  std::vector<double> expert_uses(std::int64_t layer) const override {
    const auto found = uses.find(layer);
    return found == uses.end() ? std::vector<double>() : found->second;
  }

  at::Tensor& operator[](const std::string& name) { return tensors.at(name); }

  std::map<std::string, at::Tensor> tensors;
  std::map<std::int64_t, std::vector<double>> uses;
  mutable std::int64_t elements_read = 0;
};

/// Three layers, the last two sparse, everything there is.
inline ModelShape full_shape() {
  ModelShape shape;
  shape.vocab_size = 11;
  shape.hidden = 12;
  shape.heads = 6;
  shape.kv_heads = 3;
  shape.head_dim = 4;
  shape.qk_norm = true;
  shape.rope_theta = 10000.0;
  shape.ffn = 10;
  shape.experts = 6;
  shape.expert_ffn = 5;
  shape.shared_ffn = 5;
  shape.sparse = {false, true, true};
  return shape;
}

/// A dense model of one layer.
inline ModelShape dense_shape() {
  ModelShape shape = full_shape();
  shape.experts = shape.expert_ffn = shape.shared_ffn = 0;
  shape.sparse = {false};
  return shape;
}

inline at::Tensor whole_tensor(const StudentPlan& plan, const std::string& name, const WeightSource& source) {
  return make_student_tensor(plan, name, parallel::ShardSpec::whole(tensors_of(plan.student).at(name)),
                             source);
}

}  // namespace athanor::distill
