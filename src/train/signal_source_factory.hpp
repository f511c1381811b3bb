// Where a student's signals come from: decided by the job, opened when it knows its first step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "distill/link/signal_source.hpp"
#include "parallel/point_to_point.hpp"
#include "train/signal_plan.hpp"

namespace athanor::train {

/// What is known when a source is opened.
struct SourceStart {
  std::int64_t first_step = 0;  ///< steps done before this job
  int role_rank = 0;
  /// To be called in every wait: moves along what others may wait for.
  std::function<void()> while_waiting;
};

/// Opens this rank's source; called once on every rank of the student.
using SignalSourceFactory = std::function<std::unique_ptr<distill::SignalSource>(const SourceStart&)>;

/// The teacher that runs in this job. `options` are the job's, `student` the index in their students; `wire`
/// outlives the source.
SignalSourceFactory make_link_source(std::shared_ptr<SignalOptions> options, std::size_t student,
                                     parallel::PointToPoint& wire);

}  // namespace athanor::train
