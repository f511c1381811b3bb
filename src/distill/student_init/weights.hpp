// Reading the larger model for student initialisation: tensors by layer, boxes by lists of indices, norms
// whose bits depend on nothing but the weights.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "distill/student_init.hpp"

namespace athanor::distill::student_init {

using Indices = std::vector<std::int64_t>;

/// 0 .. count - 1.
Indices all_of(std::int64_t count);
/// The `count` largest scores' indices, rising; of equal scores the first.
Indices largest(const std::vector<double>& scores, std::int64_t count);
/// list[first .. first + count).
Indices part_of(const Indices& list, std::int64_t first, std::int64_t count);

/// Shape of the tensor `name` (without "layers.N.") in a model of this shape; a dimension less than two:
/// norms. Throws InternalError for a name that no model has.
std::vector<std::int64_t> tensor_shape(const ModelShape& shape, const std::string& name);
/// "layers.3.moe.router.weight".
std::string layer_name(std::int64_t layer, const std::string& name);

/// Elements of `name` with index lists[d][i] in dimension d, in that order. Reads pieces that cover them.
at::Tensor gather(const WeightSource& source, const std::string& name, const std::vector<std::int64_t>& shape,
                  const std::vector<Indices>& lists);

/// Walks over a tensor [..., columns] of `shape` as rows, in order, a piece at a time: visit(first row,
/// rows [n, columns]).
void for_each_rows(const WeightSource& source, const std::string& name,
                   const std::vector<std::int64_t>& shape,
                   const std::function<void(std::int64_t, const at::Tensor&)>& visit);

/// Sums of squares of a matrix's rows and columns, one element after another in f64. `gain` multiplies
/// columns; empty: 1.
std::vector<double> row_squares(const at::Tensor& matrix, const std::vector<double>& gain = {});
void add_column_squares(const at::Tensor& matrix, const std::vector<double>& gain, std::vector<double>& sums);

std::vector<double> to_doubles(const at::Tensor& vector);

/// An expert as it is.
ExpertPlan whole_expert(const StudentPlan& plan, std::int64_t expert);
/// `count` experts out of all those of a layer, chosen or merged as the plan says, by rising index of their
/// first parts; uses[i] is the use of experts[i].
struct ReducedExperts {
  std::vector<ExpertPlan> experts;
  std::vector<double> uses;
};
ReducedExperts reduce_experts(const StudentPlan& plan, std::int64_t source_layer, std::int64_t count,
                              const WeightSource& source);
/// Leaves the `width` most important channels of an expert.
void keep_channels(const StudentPlan& plan, std::int64_t source_layer, std::int64_t width,
                   const WeightSource& source, ExpertPlan& expert);
/// Weighted mean of the parts' gate and up rows [2, F, kept D] and down columns [kept D, F], f64.
struct ExpertWeights {
  at::Tensor gate_up_2FD;
  at::Tensor down_DF;
};
ExpertWeights expert_weights(const StudentPlan& plan, std::int64_t source_layer, const ExpertPlan& expert,
                             const WeightSource& source);
/// |gate_f| |up_f| |down_f| of each channel.
std::vector<double> channel_scores(const at::Tensor& gate_up_2FD, const at::Tensor& down_DF,
                                   const std::vector<double>& gain);

/// The source's channels of a narrower head's rotary pairs: first halves, then second halves.
Indices rotary_channels(std::int64_t source, std::int64_t student);

/// The gains of a norm over the kept channels.
std::vector<double> kept_gain(const StudentPlan& plan, const std::string& name, const WeightSource& source);

}  // namespace athanor::distill::student_init
