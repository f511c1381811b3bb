// A teacher that does not exist: signals that are a pure function of sample, position and column, for tests
// of a student without another role.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/philox.hpp"
#include "distill/link/signal_source.hpp"
#include "distill/signal_gap.hpp"
#include "train/signal_plan.hpp"
#include "train/signal_source_factory.hpp"

namespace athanor::train::tests {

/// Where the teacher falls silent.
struct Silence {
  std::int64_t step = -1;
  bool in_trailer = false;
  std::function<bool(int role_rank)> ranks = [](int) { return true; };
};

/// A teacher's cross-entropy of a token.
inline double invented_ce(std::int64_t sample, std::int64_t position) {
  const base::PhiloxStream stream(11, base::RandomPurpose::test, "ce");
  return 0.5 + 3.0 * stream.uniform(static_cast<std::uint64_t>(sample), static_cast<std::uint64_t>(position));
}

/// All fields in f64.
class InventedTeacher final : public distill::SignalSource {
 public:
  InventedTeacher(std::shared_ptr<SignalOptions> options, const SourceStart& start, Silence silence)
      : options_(std::move(options)),
        plan_of_step_(make_plan(options_, 0)),
        role_rank_(start.role_rank),
        silence_(std::move(silence)) {}

  const distill::ReceivedStep& wait_step(std::int64_t step, const distill::RowTags& own_rows) override {
    fall_silent(step, false);
    const std::shared_ptr<const distill::LinkPlan> plan = plan_of_step_(step);
    received_ = {};
    received_.step = step;
    buffers_.clear();
    for (const distill::Field& field : plan->fields()) {
      const distill::Box& box = field.receiver[static_cast<std::size_t>(role_rank_)].memory;
      buffers_.push_back(values_of(field, box, own_rows.first_sample_id));
      const auto& [rows, positions, columns] = box.dims;
      received_.fields.push_back({field.name,
                                  {rows.count, positions.count, columns.count},
                                  field.element_bytes,
                                  std::as_bytes(std::span(buffers_.back()))});
    }
    return received_;
  }
  distill::StepOutcome wait_trailer(std::int64_t step) override {
    fall_silent(step, true);
    return distill::StepOutcome::finite;
  }
  void release(std::int64_t) override {}
  void progress() override {}
  const distill::SourceStats& stats() const override { return stats_; }

 private:
  void fall_silent(std::int64_t step, bool in_trailer) const {
    if (step == silence_.step && in_trailer == silence_.in_trailer && silence_.ranks(role_rank_)) {
      throw distill::LinkTimeout("nothing of step {} came to rank {}", step, role_rank_);
    }
  }

  // The first row of the box is `first_sample`.
  std::vector<double> values_of(const distill::Field& field, const distill::Box& box,
                                std::int64_t first_sample) const {
    const auto& [rows, positions, columns] = box.dims;
    std::vector<double> values;
    for (std::int64_t row = 0; row < rows.count; ++row) {
      const std::int64_t sample = first_sample + row;
      const bool is_gap = field.name == field::gap_logits;
      const at::Tensor measured =
          is_gap ? measured_positions(sample, field.shape.dims[1].count) : at::Tensor();
      for (std::int64_t index = positions.first; index < positions.end(); ++index) {
        const bool is_real = index < field.shape.dims[1].end();
        const std::int64_t position = is_gap && is_real ? measured[index].item<std::int64_t>() : index;
        for (std::int64_t column = columns.first; column < columns.end(); ++column) {
          values.push_back(is_real ? value_at(is_gap ? field::full : field.name, sample, position, column)
                                   : 0.0);
        }
      }
    }
    return values;
  }

  at::Tensor measured_positions(std::int64_t sample, std::int64_t count) const {
    const at::Tensor id = at::full({1}, sample, at::kLong);
    return distill::measured_positions(id, options_->teacher_layout.seq, count, options_->seed)[0];
  }

  static double value_at(const std::string& field, std::int64_t sample, std::int64_t position,
                         std::int64_t column) {
    if (field == field::ce) {
      return invented_ce(sample, position);
    }
    const base::PhiloxStream stream(12, base::RandomPurpose::test, field);
    return 4.0 * stream.uniform(static_cast<std::uint64_t>(sample),
                                static_cast<std::uint64_t>(position * 1000 + column)) -
           2.0;
  }

  std::shared_ptr<SignalOptions> options_;
  distill::PlanOfStep plan_of_step_;
  int role_rank_;
  Silence silence_;
  distill::ReceivedStep received_;
  std::vector<std::vector<double>> buffers_;
  distill::SourceStats stats_;
};

}  // namespace athanor::train::tests
