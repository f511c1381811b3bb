// Losses between hidden states of chosen layers of student and teacher.
//
// Legend: n tokens of this rank's slice of the sequence-parallel stream (any leading shape [..., width]); Ds,
// Dt widths of student and teacher; s = P h of a token, P [Dt, Ds] the pair's projection (identity without
// one); t the teacher's state; A accumulation type. All statistics in A.
//
//   mse         |s - t|^2 / Dt
//   relative    |s - t|^2 / (|t|^2 + eps)
//   cosine      1 - s.t / (|s| |t|)
//   normalized  |s/|s| - t/|t||^2, summed over the width (twice the cosine loss)
//
// with |.| not below eps. Sums over tokens; 1/N is applied outside (distill_loss.hpp). Nothing here
// communicates: each rank owns its tokens, and a projection's gradient is summed over its holders like that
// of any parameter held whole.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "nn/weight.hpp"
#include "parallel/parameter_map.hpp"

namespace athanor::distill {

enum class HiddenLossKind { mse, relative, cosine, normalized };

struct HiddenOptions {
  HiddenLossKind kind = HiddenLossKind::mse;
  double eps = 1e-8;
  /// Factor of the gradient into the student's state (not into the projection); 1: the true gradient.
  double gradient_scale = 0.1;
};

struct HiddenLoss {
  /// Scalar A, differentiable: sum of weight * loss over this rank's tokens.
  at::Tensor objective;
  /// [n] A, not differentiable: the loss of each token without its weight; 0 where the weight is 0.
  at::Tensor per_token_n;
};

/// One pair of layers. `weight_n` (A, the leading shape of the states) is 0 where the term does not apply;
/// states there are not looked at (padding may hold anything). `projection` undefined: the identity, Ds = Dt.
/// The projection's gradient goes to its sink. Teacher states of any float type, not differentiated.
HiddenLoss hidden_state_loss(const at::Tensor& student, const at::Tensor& teacher, const at::Tensor& weight_n,
                             const nn::Weight& projection, const HiddenOptions& options);

/// Which layer of the student follows which of the teacher, and how much. Layer i is the state after block i.
struct LayerPair {
  std::int64_t student_layer = 0;
  std::int64_t teacher_layer = 0;
  double weight = 1.0;
};

/// Weights divided by their sum. Throws ConfigError when a layer is out of range, a weight is not positive,
/// or a pair is there twice.
std::vector<LayerPair> checked_pairs(std::vector<LayerPair> pairs, std::int64_t student_layers,
                                     std::int64_t teacher_layers);
/// `count` pairs of equal weight at equal relative depth, the last layers included.
std::vector<LayerPair> uniform_pairs(std::int64_t count, std::int64_t student_layers,
                                     std::int64_t teacher_layers);

/// The hidden-state term of a student: its pairs and their projections.
class HiddenTerm {
 public:
  struct Options {
    std::vector<LayerPair> pairs;  ///< as checked_pairs() returns them
    std::int64_t student_width = 0;
    std::int64_t teacher_width = 0;
    HiddenOptions loss;  ///< the kind is given with each call
    /// Learned P per pair even between equal widths; otherwise only where widths differ.
    bool always_project = false;
  };
  /// Adds a parameter "distill.projection.<student layer>.<teacher layer>.weight" [Dt, Ds] for each
  /// projection; it is trained and saved with the student and dropped at export. Initial values: normal with
  /// variance 1/Ds.
  HiddenTerm(const Options& options, parallel::ParameterMap& parameters);

  const std::vector<LayerPair>& pairs() const { return options_.pairs; }
  /// Sum over pairs of pair weight * loss of that kind; states in the order of pairs(). per_token_n is the
  /// weighted sum too.
  HiddenLoss loss(const std::vector<at::Tensor>& student, const std::vector<at::Tensor>& teacher,
                  const at::Tensor& weight_n, HiddenLossKind kind) const;
  /// nullptr: the identity.
  const std::shared_ptr<parallel::Parameter>& projection(std::size_t pair) const {
    return projections_[pair];
  }

 private:
  Options options_;
  std::vector<std::shared_ptr<parallel::Parameter>> projections_;
};

}  // namespace athanor::distill
