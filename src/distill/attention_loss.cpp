#include "distill/attention_loss.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/error.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/parameter_map.hpp"

namespace athanor::distill {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

/// Rows [first, first + rows) of one sequence and the positions [0, first + rows) that they may see.
struct Tile {
  std::int64_t sequence;
  std::int64_t first;
  std::int64_t rows;
  std::int64_t columns() const { return first + rows; }
};

/// bool [rows, columns]: what is hidden from a row.
at::Tensor hidden_from(const Tile& tile, const at::Tensor& documents_BS) {
  const at::Tensor row = at::arange(tile.first, tile.columns(), at::kLong).unsqueeze(1);
  at::Tensor hidden = at::arange(tile.columns(), at::kLong).unsqueeze(0).gt(row);
  if (documents_BS.defined()) {
    const at::Tensor documents = documents_BS[tile.sequence];
    hidden = hidden.logical_or(documents.narrow(0, tile.first, tile.rows)
                                   .unsqueeze(1)
                                   .ne(documents.narrow(0, 0, tile.columns()).unsqueeze(0)));
  }
  return hidden;
}

/// Queries [H, rows, C] and keys [H, columns, C] of a tile in the accumulation type, keys repeated over their
/// queries.
struct TileHeads {
  at::Tensor q_HRC;
  at::Tensor k_HLC;
};

TileHeads heads_of(const QueriesKeys& layer, const Tile& tile, at::ScalarType type) {
  const at::Tensor q = layer.q_BSHC[tile.sequence].narrow(0, tile.first, tile.rows).transpose(0, 1).to(type);
  const at::Tensor k = layer.k_BSGC[tile.sequence].narrow(0, 0, tile.columns()).transpose(0, 1).to(type);
  return {q.contiguous(), k.repeat_interleave(layer.q_BSHC.size(2) / layer.k_BSGC.size(2), 0)};
}

/// log A [H, rows, columns], -infinity where hidden.
at::Tensor log_maps(const TileHeads& heads, const at::Tensor& hidden_RL) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(heads.q_HRC.size(2)));
  at::Tensor scores = at::bmm(heads.q_HRC, heads.k_HLC.transpose(1, 2)).mul_(scale);
  return at::log_softmax(scores.masked_fill_(hidden_RL, -std::numeric_limits<double>::infinity()), 2);
}

/// Divergence of each row [H, rows] of maps, and its derivative [H, rows, columns] by the student's map (kl:
/// by the student's map as well, for maps that are means).
struct MapDivergence {
  at::Tensor value_HR;
  at::Tensor slope_HRL;
};

MapDivergence mean_map_divergence(const at::Tensor& student, const at::Tensor& teacher,
                                  AttentionLossKind kind) {
  if (kind == AttentionLossKind::mse) {
    const at::Tensor difference = student - teacher;
    return {difference.square().sum(2), difference * 2.0};
  }
  // Hidden columns, and columns that the teacher gives nothing, contribute nothing.
  const at::Tensor none = teacher.le(0);
  const at::Tensor ratio = (teacher / student).masked_fill(none, 1.0);
  return {(teacher * ratio.log()).sum(2), (-ratio).masked_fill(none, 0.0)};
}

/// One layer's loss, filled tile by tile.
struct MapLoss {
  const QueriesKeys& student;
  const QueriesKeys& teacher;
  const at::Tensor& weight_BS;
  const at::Tensor& documents_BS;
  const parallel::Communicator& tp;
  const AttentionLossOptions& options;
  bool wants_gradient = false;
  at::Tensor value{};  ///< f64, this rank's share
  at::Tensor dq_BSHC{};
  at::Tensor dk_BSGC{};

  void run();

 private:
  void one_tile(const Tile& tile);
  at::Tensor score_gradients(const at::Tensor& log_student, const at::Tensor& log_teacher,
                             const at::Tensor& weight_R);
  at::Tensor mean_over_heads(const at::Tensor& maps_HRL, std::int64_t heads) const;
  void add_gradients(const Tile& tile, const TileHeads& heads, const at::Tensor& dscores_HRL);
};

at::Tensor MapLoss::mean_over_heads(const at::Tensor& maps_HRL, std::int64_t heads) const {
  at::Tensor mean = maps_HRL.sum(0, true) / static_cast<double>(heads);
  parallel::all_reduce_(mean, parallel::ReduceOp::sum, tp, parallel::Traffic::other);
  return mean;
}

/// Adds the tile's value; returns the gradient by the student's scores (before the scale) [H, rows, columns].
at::Tensor MapLoss::score_gradients(const at::Tensor& log_student, const at::Tensor& log_teacher,
                                    const at::Tensor& weight_R) {
  const at::Tensor student_maps = log_student.exp(), teacher_maps = log_teacher.exp();
  const double per_head = 1.0 / static_cast<double>(options.student_heads);
  const at::Tensor weight = weight_R.unsqueeze(1) * per_head;  // [rows, 1]
  const bool one_by_one = options.student_heads == options.teacher_heads;
  if (one_by_one && options.kind == AttentionLossKind::kl) {
    const at::Tensor terms = teacher_maps * (log_teacher - log_student);
    value += (terms.masked_fill(teacher_maps.eq(0), 0.0).sum(2) * weight.squeeze(1)).sum().to(at::kDouble);
    return (student_maps - teacher_maps).mul_(weight);
  }
  MapDivergence divergence;
  if (one_by_one) {
    divergence = mean_map_divergence(student_maps, teacher_maps, options.kind);
    value += (divergence.value_HR * weight.squeeze(1)).sum().to(at::kDouble);
  } else {
    divergence = mean_map_divergence(mean_over_heads(student_maps, options.student_heads),
                                     mean_over_heads(teacher_maps, options.teacher_heads), options.kind);
    // Every rank has the whole value: each reports its equal share of it.
    value += (divergence.value_HR * weight_R).sum().to(at::kDouble) / static_cast<double>(tp.size());
  }
  // Through the softmax: ds = A (g - sum A g).
  const at::Tensor centred = divergence.slope_HRL - (student_maps * divergence.slope_HRL).sum(2, true);
  return (student_maps * centred).mul_(weight);
}

void MapLoss::add_gradients(const Tile& tile, const TileHeads& heads, const at::Tensor& dscores_HRL) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(heads.q_HRC.size(2)));
  const at::Tensor dq = at::bmm(dscores_HRL, heads.k_HLC).mul_(scale);
  dq_BSHC[tile.sequence].narrow(0, tile.first, tile.rows).copy_(dq.transpose(0, 1));
  const at::Tensor dk = at::bmm(dscores_HRL.transpose(1, 2), heads.q_HRC).mul_(scale);  // [H, columns, C]
  const std::int64_t groups = dk_BSGC.size(2);
  const at::Tensor dk_group = dk.view({groups, dk.size(0) / groups, dk.size(1), dk.size(2)}).sum(1);
  dk_BSGC[tile.sequence].narrow(0, 0, tile.columns()).add_(dk_group.transpose(0, 1));
}

void MapLoss::one_tile(const Tile& tile) {
  const at::ScalarType type = weight_BS.scalar_type();
  const at::Tensor hidden = hidden_from(tile, documents_BS);
  const TileHeads student_heads = heads_of(student, tile, type);
  const at::Tensor log_teacher = log_maps(heads_of(teacher, tile, type), hidden);
  const at::Tensor weight_R = weight_BS[tile.sequence].narrow(0, tile.first, tile.rows);
  const at::Tensor dscores = score_gradients(log_maps(student_heads, hidden), log_teacher, weight_R);
  if (wants_gradient) {
    add_gradients(tile, student_heads, dscores);
  }
}

void MapLoss::run() {
  value = at::zeros({}, at::kDouble);
  dq_BSHC = at::zeros(student.q_BSHC.sizes(), weight_BS.options());
  dk_BSGC = at::zeros(student.k_BSGC.sizes(), weight_BS.options());
  const std::int64_t positions = student.q_BSHC.size(1);
  for (std::int64_t b = 0; b < student.q_BSHC.size(0); ++b) {
    for (std::int64_t first = 0; first < positions; first += options.tile_rows) {
      one_tile({b, first, std::min(options.tile_rows, positions - first)});
    }
  }
}

struct AttentionMapLoss : Function<AttentionMapLoss> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& q_BSHC, const at::Tensor& k_BSGC,
                               const QueriesKeys& teacher, const at::Tensor& weight_BS,
                               const std::optional<at::Tensor>& documents_BS,
                               const parallel::Communicator& tp, const AttentionLossOptions& options,
                               bool wants_gradient) {
    const QueriesKeys student{q_BSHC, k_BSGC};
    const at::Tensor documents = documents_BS.value_or(at::Tensor());
    MapLoss loss{student, teacher, weight_BS, documents, tp, options};
    loss.wants_gradient = wants_gradient && (q_BSHC.requires_grad() || k_BSGC.requires_grad());
    loss.run();
    if (loss.wants_gradient) {
      ctx->saved_data["dq"] = loss.dq_BSHC.to(q_BSHC.scalar_type());
      ctx->saved_data["dk"] = loss.dk_BSGC.to(k_BSGC.scalar_type());
    }
    return {loss.value.to(weight_BS.scalar_type())};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list result(8);
    const double seed = grads[0].item<double>();
    result[0] = ctx->saved_data["dq"].toTensor() * seed;
    result[1] = ctx->saved_data["dk"].toTensor() * seed;
    return result;
  }
};

void check(const QueriesKeys& layer, const at::Tensor& weight_BS, const char* role) {
  ATHANOR_CHECK(layer.q_BSHC.dim() == 4 && layer.k_BSGC.dim() == 4 &&
                    layer.q_BSHC.size(0) == weight_BS.size(0) && layer.q_BSHC.size(1) == weight_BS.size(1) &&
                    layer.k_BSGC.size(1) == weight_BS.size(1) && layer.k_BSGC.size(2) > 0 &&
                    layer.q_BSHC.size(2) % layer.k_BSGC.size(2) == 0,
                "queries and keys of the {} do not fit {} weights", role, weight_BS.numel());
}

}  // namespace

AttentionLoss attention_map_loss(const QueriesKeys& student, const QueriesKeys& teacher,
                                 const at::Tensor& weight_BS, const at::Tensor& documents_BS,
                                 const parallel::Communicator& tp, const AttentionLossOptions& options) {
  check(student, weight_BS, "student");
  check(teacher, weight_BS, "teacher");
  ATHANOR_CHECK(options.tile_rows > 0 && options.student_heads > 0 && options.teacher_heads > 0,
                "attention of {} and {} heads in tiles of {}", options.student_heads, options.teacher_heads,
                options.tile_rows);
  ATHANOR_CHECK(
      options.student_heads != options.teacher_heads || student.q_BSHC.size(2) == teacher.q_BSHC.size(2),
      "{} heads of the student meet {} of the teacher", student.q_BSHC.size(2), teacher.q_BSHC.size(2));
  const at::Tensor weight = weight_BS.detach().to(parallel::accumulation_type(student.q_BSHC.scalar_type()));
  const QueriesKeys fixed{teacher.q_BSHC.detach(), teacher.k_BSGC.detach()};
  const auto out =
      AttentionMapLoss::apply(student.q_BSHC, student.k_BSGC, fixed, weight,
                              documents_BS.defined() ? std::optional<at::Tensor>(documents_BS) : std::nullopt,
                              tp, options, at::GradMode::is_enabled());
  at::Tensor sum = out[0].detach().clone().view({1});
  parallel::all_reduce_(sum, parallel::ReduceOp::sum, tp, parallel::Traffic::other);
  return {out[0], sum.squeeze(0)};
}

std::int64_t attention_pairs(const at::Tensor& weight_BS, const at::Tensor& documents_BS) {
  std::int64_t pairs = 0;
  constexpr std::int64_t tile_rows = 256;
  for (std::int64_t b = 0; b < weight_BS.size(0); ++b) {
    for (std::int64_t first = 0; first < weight_BS.size(1); first += tile_rows) {
      const Tile tile{b, first, std::min(tile_rows, weight_BS.size(1) - first)};
      const at::Tensor counted = weight_BS[b].narrow(0, first, tile.rows).ne(0).unsqueeze(1);
      pairs += hidden_from(tile, documents_BS).logical_not().logical_and(counted).sum().item<std::int64_t>();
    }
  }
  return pairs;
}

}  // namespace athanor::distill
