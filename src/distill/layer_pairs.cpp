// Which layers are compared: the part of hidden_loss.hpp that needs no tensors.
#include <algorithm>
#include <cmath>
#include <string_view>

#include "base/error.hpp"
#include "distill/hidden_loss.hpp"

namespace athanor::distill {

std::vector<LayerPair> checked_pairs(std::vector<LayerPair> pairs, std::int64_t student_layers,
                                     std::int64_t teacher_layers) {
  double sum = 0.0;
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const LayerPair& pair = pairs[i];
    const auto check = [](std::string_view role, std::int64_t layer, std::int64_t layers) {
      if (layer < 0 || layer >= layers) {
        throw base::ConfigError("layer {} of the {} cannot be distilled (it has {} layers) give 0 to {}",
                                layer, role, layers, layers - 1);
      }
    };
    check("student", pair.student_layer, student_layers);
    check("teacher", pair.teacher_layer, teacher_layers);
    if (!(std::isfinite(pair.weight) && pair.weight > 0.0)) {
      throw base::ConfigError(
          "the weight {} of the layers {} and {} is out of range (weights are shares) give a number above 0",
          pair.weight, pair.student_layer, pair.teacher_layer);
    }
    for (std::size_t j = 0; j < i; ++j) {
      if (pairs[j].student_layer == pair.student_layer && pairs[j].teacher_layer == pair.teacher_layer) {
        throw base::ConfigError(
            "the layers {} and {} are paired twice (a pair has one weight) name them once",
            pair.student_layer, pair.teacher_layer);
      }
    }
    sum += pair.weight;
  }
  for (LayerPair& pair : pairs) {
    pair.weight /= sum;
  }
  return pairs;
}

std::vector<LayerPair> uniform_pairs(std::int64_t count, std::int64_t student_layers,
                                     std::int64_t teacher_layers) {
  if (count < 1 || count > student_layers || count > teacher_layers) {
    throw base::ConfigError(
        "{} pairs of layers cannot be made (the student has {} layers, the teacher {}) give 1 to {}", count,
        student_layers, teacher_layers, std::min(student_layers, teacher_layers));
  }
  std::vector<LayerPair> pairs;
  for (std::int64_t i = 1; i <= count; ++i) {
    pairs.push_back(
        {i * student_layers / count - 1, i * teacher_layers / count - 1, 1.0 / static_cast<double>(count)});
  }
  return pairs;
}

}  // namespace athanor::distill
