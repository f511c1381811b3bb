#include "train/signal_source_factory.hpp"

#include <utility>

#include "distill/link/teacher_link.hpp"

namespace athanor::train {

SignalSourceFactory make_link_source(std::shared_ptr<SignalOptions> options, std::size_t student,
                                     parallel::PointToPoint& wire) {
  return [options = std::move(options), student, &wire](const SourceStart& start) {
    return std::make_unique<distill::SignalReceiver>(
        wire, start.role_rank, make_plan(options, student),
        distill::LinkOptions{options->window, start.first_step, options->total_steps, options->deadline_s,
                             start.while_waiting});
  };
}

}  // namespace athanor::train
