// Which channels of the residual stream a narrower student keeps.
#include <cmath>
#include <utility>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "distill/student_init.hpp"
#include "distill/student_init/weights.hpp"

namespace athanor::distill {
namespace {

using student_init::layer_name;
using student_init::tensor_shape;

// Votes of one part: each matrix spreads one vote over the channels.
class Votes {
 public:
  Votes(const StudentPlan& plan, const WeightSource& source)
      : shape_(plan.source), source_(source), votes_(at::zeros({2, plan.source.hidden}, at::kDouble)) {}

  // The last dimension is the stream's; `norm` is the one before the matrix, "" without.
  void add_reader(const std::string& name, const std::string& suffix, const std::string& norm) {
    add(0, column_energies(name, suffix, norm));
  }
  void add_column_writer(const std::string& name, const std::string& suffix) {
    add(1, column_energies(name, suffix, ""));
  }
  // The last but one dimension is the stream's.
  void add_row_writer(const std::string& name, const std::string& suffix) {
    std::vector<double> sums(static_cast<std::size_t>(shape_.hidden), 0.0);
    student_init::for_each_rows(source_, name, tensor_shape(shape_, suffix),
                                [&](std::int64_t first, const at::Tensor& rows) {
                                  const std::vector<double> squares = student_init::row_squares(rows);
                                  for (std::size_t i = 0; i < squares.size(); ++i) {
                                    sums[(static_cast<std::size_t>(first) + i) % sums.size()] += squares[i];
                                  }
                                });
    add(1, sums);
  }
  at::Tensor take() && { return std::move(votes_); }

 private:
  std::vector<double> column_energies(const std::string& name, const std::string& suffix,
                                      const std::string& norm) const {
    std::vector<double> gain;
    if (!norm.empty()) {
      gain = student_init::to_doubles(source_.read(norm, parallel::ShardSpec::whole({shape_.hidden})));
    }
    std::vector<double> sums;
    student_init::for_each_rows(
        source_, name, tensor_shape(shape_, suffix),
        [&](std::int64_t, const at::Tensor& rows) { student_init::add_column_squares(rows, gain, sums); });
    return sums;
  }
  void add(std::int64_t row, const std::vector<double>& energies) {
    double total = 0.0;
    for (const double energy : energies) {
      total += energy;
    }
    auto* votes = votes_.mutable_data_ptr<double>() + row * shape_.hidden;
    for (std::size_t c = 0; c < energies.size() && total > 0.0; ++c) {
      votes[c] += energies[c] / total;
    }
  }

  const ModelShape& shape_;
  const WeightSource& source_;
  at::Tensor votes_;
};

void add_layer(Votes& votes, const ModelShape& shape, std::int64_t layer) {
  const auto name = [layer](const std::string& suffix) { return layer_name(layer, suffix); };
  const std::string attention_norm = name("attention_norm.weight");
  const std::string ffn_norm = name("ffn_norm.weight");
  const auto read_by = [&](const std::string& suffix, const std::string& norm) {
    votes.add_reader(name(suffix), suffix, norm);
  };
  const auto written_by = [&](const std::string& suffix) { votes.add_row_writer(name(suffix), suffix); };
  read_by("attention.q.weight", attention_norm);
  read_by("attention.kv.weight", attention_norm);
  written_by("attention.o.weight");
  if (!shape.sparse[static_cast<std::size_t>(layer)]) {
    read_by("ffn.gate_up.weight", ffn_norm);
    written_by("ffn.down.weight");
    return;
  }
  read_by("moe.router.weight", ffn_norm);
  read_by("moe.experts.gate_up", ffn_norm);
  written_by("moe.experts.down");
  if (shape.shared_ffn > 0) {
    read_by("moe.shared.gate_up.weight", ffn_norm);
    written_by("moe.shared.down.weight");
  }
}

}  // namespace

bool needs_hidden_scores(const StudentPlan& plan) {
  return plan.student.hidden < plan.source.hidden;
}

std::int64_t num_hidden_parts(const StudentPlan& plan) {
  return 1 + plan.student.num_layers();
}

at::Tensor score_hidden_part(const StudentPlan& plan, std::int64_t part, const WeightSource& source) {
  Votes votes(plan, source);
  if (part == 0) {
    votes.add_column_writer("embedding.weight", "embedding.weight");
    votes.add_reader(plan.source.tie_embeddings ? "embedding.weight" : "head.weight", "head.weight",
                     "final_norm.weight");
  } else {
    add_layer(votes, plan.source, plan.layers[static_cast<std::size_t>(part - 1)]);
  }
  return std::move(votes).take();
}

void choose_hidden(StudentPlan& plan, const at::Tensor& scores_P2D) {
  ATHANOR_CHECK(scores_P2D.scalar_type() == at::kDouble && scores_P2D.dim() == 3 &&
                    scores_P2D.size(2) == plan.source.hidden,
                "scores are f64 [parts, 2, hidden]");
  const at::Tensor scores = scores_P2D.contiguous();
  const auto width = static_cast<std::size_t>(plan.source.hidden);
  std::vector<double> importance(width, 0.0);
  std::vector<double> written(width, 0.0);
  const auto* value = scores.const_data_ptr<double>();
  for (std::int64_t row = 0; row < 2 * scores.size(0); ++row) {
    for (std::size_t c = 0; c < width; ++c, ++value) {
      importance[c] += *value;
      written[c] += row % 2 == 1 ? *value : 0.0;
    }
  }
  plan.hidden = student_init::largest(importance, plan.student.hidden);
  double all = 0.0;
  double kept = 0.0;
  for (const double energy : written) {
    all += energy;
  }
  for (const std::int64_t channel : plan.hidden) {
    kept += written[static_cast<std::size_t>(channel)];
  }
  const double share =
      kept / all * static_cast<double>(plan.source.hidden) / static_cast<double>(plan.student.hidden);
  plan.norm_scale = std::isfinite(share) && share > 0.0 ? std::sqrt(share) : 1.0;
}

}  // namespace athanor::distill
