#include "train/student_objective.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "base/log.hpp"
#include "distill/attention_loss.hpp"
#include "parallel/collectives/collectives.hpp"
#include "train/held_out.hpp"
#include "train/row_tags.hpp"
#include "train/student_gap.hpp"
#include "train/student_gates.hpp"
#include "train/student_terms.hpp"

namespace athanor::train {
namespace {

double sum_over(const at::Tensor& values_N, const at::Tensor& tokens_BS) {
  return values_N.masked_select(tokens_BS.flatten()).sum(at::kDouble).item<double>();
}

}  // namespace

struct StudentObjective::State {
  std::shared_ptr<SignalOptions> options;
  StudentOptions student;
  const parallel::ProcessGrid& grid;
  SignalSourceFactory make_source;
  StudentTerms terms;
  HeldOutSamples held_out;
  StudentGates gates;
  std::optional<SignalGuard> source;  // from start() on
  StudentStep step;
  std::int64_t next_row = 0;  // of this replica, of the next micro-batch
  bool begins_measure = false;
  std::int64_t teacherless_steps = 0;

  State(std::shared_ptr<SignalOptions> signal_options, const StudentOptions& student_options,
        parallel::ParameterMap& parameters, const parallel::ProcessGrid& process_grid,
        SignalSourceFactory factory)
      : options(std::move(signal_options)),
        student(student_options),
        grid(process_grid),
        make_source(std::move(factory)),
        terms(options, student, parameters, grid),
        held_out(student.held_out, options->seed),
        gates(student.gates) {}

  const parallel::Communicator& tp() const { return grid.comm(parallel::Axis::tensor); }
  bool counts_once() const { return tp().rank() == 0; }  // sums that all tp ranks have count once

  void settle(std::int64_t number);
  void count_tokens();
  std::int64_t attention_pairs() const;
  StudentRows rows_of(const data::Batch& source, const nn::TokenBatch& batch) const;
  void sum_tokens(const StudentRows& rows, const distill::HeadLoss& head, const at::Tensor& alpha_factor_N);
  void sum_gap(const distill::SignalGap& gap);
  StudentMeans reduce_sums(const parallel::Communicator& role);
  void report_measurements(StepMetrics& metrics) const;
  void report_gates(StepMetrics& metrics) const;
};

StudentObjective::StudentObjective(std::shared_ptr<SignalOptions> options, const StudentOptions& student,
                                   parallel::ParameterMap& parameters, const parallel::ProcessGrid& grid,
                                   SignalSourceFactory make_source)
    : state_(std::make_unique<State>(std::move(options), student, parameters, grid, std::move(make_source))) {
}

StudentObjective::~StudentObjective() = default;

void StudentObjective::progress() {
  if (state_->source) {
    state_->source->progress();
  }
}

void StudentObjective::start(std::int64_t first_step, const std::function<void()>& while_waiting) {
  State& state = *state_;
  state.options->first_step = first_step;
  const bool speaks = state.grid.role().rank() == 0;
  state.source.emplace(state.make_source({first_step, state.grid.role().rank(), while_waiting}),
                       state.student.on_teacher_loss, state.grid.role(),
                       speaks ? state.student.say_farewell : nullptr);
}

void StudentObjective::begin_step(const ObjectiveStep& step) {
  State& state = *state_;
  state.step = {};
  state.step.given = step;
  state.next_row = 0;
  state.step.received = state.source->wait_step(step.step, tags_of(*step.micro_batches));
  state.settle(step.step);
  if (state.step.received != nullptr) {
    state.terms.begin_step(state.step);
  }
  state.count_tokens();
}

// The numbers of the step. Without a teacher its share goes to the labels: they have a weight of 1.
void StudentObjective::State::settle(std::int64_t number) {
  StepSettings& settings = step.settings;
  settings = settings_of(*options, number);
  begins_measure = false;
  if (number > 0) {
    const StepSettings before = settings_of(*options, number - 1);
    begins_measure =
        before.numbers.index != settings.numbers.index || before.temperatures != settings.temperatures;
  }
  if (step.received == nullptr) {
    ++teacherless_steps;
    settings.numbers.ce = 1.0;
    settings.numbers.alpha = settings.numbers.kd = settings.numbers.hidden = settings.numbers.attention = 0.0;
  }
}

// What the terms are divided by; nothing is reduced in the usual case that all labels count.
void StudentObjective::State::count_tokens() {
  const bool needs_pairs =
      step.uses_attention() && step.phase().attention_loss == distill::AttentionLossKind::mse;
  step.labels = step.attention_rows = step.given.valid_labels;
  if (!held_out.draws_any() && !needs_pairs) {
    return;
  }
  at::Tensor counts = at::zeros({2}, at::kLong);
  auto* count = counts.mutable_data_ptr<std::int64_t>();
  if (counts_once()) {
    for (const data::Batch& batch : *step.given.micro_batches) {
      count[0] += held_out.valid_labels(batch);
    }
    count[1] = needs_pairs ? attention_pairs() : 0;
  }
  parallel::all_reduce_(counts, parallel::ReduceOp::sum, grid.role(), parallel::Traffic::other);
  step.held_out_labels = static_cast<double>(count[0]);
  step.labels = step.given.valid_labels - step.held_out_labels;
  step.attention_rows = needs_pairs ? static_cast<double>(count[1]) : step.labels;
}

// Of this replica's rows that are trained on: the mse of maps is a mean over pairs of positions.
std::int64_t StudentObjective::State::attention_pairs() const {
  std::int64_t pairs = 0;
  for (const data::Batch& batch : *step.given.micro_batches) {
    const std::vector<bool> held = held_out.rows(batch);
    const std::vector<std::int64_t> shape = {batch.rows, batch.seq};
    const auto view = [&](const std::vector<std::int32_t>& numbers) {
      return at::from_blob(const_cast<std::int32_t*>(numbers.data()), shape, at::TensorOptions(at::kInt));
    };
    at::Tensor weight = view(batch.labels).ne(static_cast<std::int32_t>(nn::ignored_label)).to(at::kDouble);
    for (std::int64_t row = 0; row < batch.rows; ++row) {
      if (held[static_cast<std::size_t>(row)]) {
        weight[row].zero_();
      }
    }
    pairs += distill::attention_pairs(weight, view(batch.documents).to(at::kLong));
  }
  return pairs;
}

bool StudentObjective::trains() const {
  return !state_->gates.has_stopped() && state_->step.labels > 0.0;
}

std::string StudentObjective::stage() const {
  return state_->step.phase().name;
}

double StudentObjective::learning_rate_factor() const {
  return state_->step.phase().learning_rate_factor;
}

StudentRows StudentObjective::State::rows_of(const data::Batch& source, const nn::TokenBatch& batch) const {
  StudentRows rows{source, batch, next_row, batch.labels_BS.ne(nn::ignored_label), {}};
  if (held_out.draws_any()) {
    const std::vector<bool> held = held_out.rows(source);
    const at::Tensor held_B = at::zeros({source.rows}, at::kBool);
    std::ranges::copy(held, held_B.mutable_data_ptr<bool>());
    rows.held_out_BS = rows.learns_BS.logical_and(held_B.unsqueeze(1));
    rows.learns_BS = rows.learns_BS.logical_and(held_B.logical_not().unsqueeze(1));
  }
  return rows;
}

double StudentObjective::forward(const model::Transformer& model, const model::ForwardContext& context,
                                 std::int64_t index, MicroBatch& micro) {
  State& state = *state_;
  StudentStep& step = state.step;
  const StudentRows rows =
      state.rows_of((*step.given.micro_batches)[static_cast<std::size_t>(index)], micro.batch);
  model::LayerCapture capture = state.terms.make_capture(step);
  model::ForwardContext with_capture = context;
  with_capture.capture = &capture;
  const at::Tensor x_BsD = model.embed(micro.batch, with_capture);
  const model::Transformer::Hidden hidden = model.blocks(x_BsD, micro.batch, with_capture);
  const at::Tensor alpha_factor_N =
      step.received != nullptr ? state.gates.alpha_factors(state.terms.teacher_ce(step, rows)) : at::Tensor();
  const distill::TokenTerms terms = state.terms.token_terms(step, rows, alpha_factor_N);
  const distill::TeacherSignal signal = state.terms.signal(step, rows);
  const distill::HeadLoss head =
      distill::distill_head_loss(hidden.h_BsD, model.head_weight(), model.head_first_id(), terms, signal,
                                 state.tp(), {step.phase().kd_loss});
  micro.objective = head.objective;
  micro.aux = hidden.aux.defined() && step.settings.numbers.balance != 1.0
                  ? hidden.aux * step.settings.numbers.balance
                  : hidden.aux;
  state.sum_tokens(rows, head, alpha_factor_N);
  if (step.measures_gap()) {
    state.sum_gap(measure_gap(model,
                              {rows, hidden.h_BsD, terms, signal, state.terms.gap_logits(step, rows),
                               state.terms.gap_positions(rows)},
                              state.tp(), distill::DistillOptions{}.chunk_tokens));
  }
  const StudentGates::TermFactors factors = state.gates.term_factors(step.uses_kd());
  for (const at::Tensor& part : {state.terms.hidden(step, rows, capture, factors.hidden),
                                 state.terms.attention(step, rows, capture, factors.attention)}) {
    if (part.defined()) {
      step.sums[sum_objective] += part.item<double>();
      micro.objective = micro.objective + part;
    }
  }
  state.next_row += rows.source.rows;
  const double ce = sum_over(head.tokens.ce_N, rows.learns_BS);
  return step.labels > 0.0 ? ce * step.mean_factor() : std::numeric_limits<double>::quiet_NaN();
}

// Tokens without a label have losses of 0. All tp ranks have the same: one of them counts.
void StudentObjective::State::sum_tokens(const StudentRows& rows, const distill::HeadLoss& head,
                                         const at::Tensor& alpha_factor_N) {
  if (!counts_once()) {
    return;
  }
  step.sums[sum_objective] += head.objective.item<double>();
  step.sums[sum_ce] += sum_over(head.tokens.ce_N, rows.learns_BS);
  step.sums[sum_kd] += sum_over(head.tokens.kd_N, rows.learns_BS);
  if (step.received != nullptr) {
    step.sums[sum_teacher_ce] += sum_over(terms.teacher_ce(step, rows), rows.learns_BS);
  }
  if (alpha_factor_N.defined()) {
    step.sums[sum_gate] += sum_over(alpha_factor_N, rows.learns_BS);
  }
  if (rows.held_out_BS.defined()) {
    step.sums[sum_held_out_ce] += sum_over(head.tokens.ce_N, rows.held_out_BS);
    step.sums[sum_held_out_kd] += sum_over(head.tokens.kd_N, rows.held_out_BS);
  }
}

void StudentObjective::State::sum_gap(const distill::SignalGap& gap) {
  if (counts_once()) {
    step.sums[train::sum_gap] += gap.difference;
    step.sums[sum_gap_payload] += gap.payload_kl;
    step.sums[sum_gap_full] += gap.full_kl;
    step.sums[sum_gap_tokens] += static_cast<double>(gap.tokens);
  }
}

bool StudentObjective::accepts_step() {
  return state_->source->wait_trailer(state_->step.given.step) == distill::StepOutcome::finite;
}

StudentMeans StudentObjective::State::reduce_sums(const parallel::Communicator& role) {
  at::Tensor reduced = at::empty({num_student_sums}, at::kDouble);
  std::ranges::copy(step.sums, reduced.mutable_data_ptr<double>());
  parallel::all_reduce_(reduced, parallel::ReduceOp::sum, role, parallel::Traffic::other);
  std::copy_n(reduced.const_data_ptr<double>(), step.sums.size(), step.sums.begin());
  const auto mean = [&](StudentSum sum) { return step.sums[sum] / step.labels; };
  const double no_teacher = std::numeric_limits<double>::quiet_NaN();
  return {mean(sum_ce),        step.received != nullptr ? mean(sum_teacher_ce) : no_teacher,
          mean(sum_kd),        mean(sum_hidden),
          mean(sum_attention), step.sums[sum_held_out_kd]};
}

void StudentObjective::report(StepMetrics& metrics, const parallel::Communicator& role) {
  State& state = *state_;
  const StudentMeans means = state.reduce_sums(role);
  const distill::PhaseController::Step& numbers = state.step.settings.numbers;
  metrics.phase = numbers.phase->name;
  metrics.total_loss += state.step.sums[sum_objective] / state.step.given.valid_labels - metrics.loss;
  metrics.figures["kd_loss"] = means.kd;
  metrics.figures["hidden_loss"] = means.hidden;
  metrics.figures["attention_loss"] = means.attention;
  if (state.step.received != nullptr) {
    metrics.figures["teacher_loss"] = means.teacher_ce;
  }
  metrics.figures["alpha"] = state.step.uses_kd() ? numbers.alpha : 0.0;
  metrics.figures["temperature"] = numbers.temperature;
  state.report_measurements(metrics);
  state.report_gates(metrics);
  const distill::SourceStats& stats = state.source->stats();
  metrics.figures["link_wait_s"] = stats.last_step_wait_s;
  metrics.figures["link_bytes"] =
      static_cast<double>(parallel::all_reduce_sum(stats.last_step_received_bytes, role));
  if (state.step.received != nullptr) {
    // Saves and stops are decided by the leading role and travel with the signals.
    const distill::ControlWord control = state.step.received->control;
    metrics.save_requests = control == distill::ControlWord::go ? 0 : 1;
    metrics.stop_requests = control == distill::ControlWord::cut_and_stop ? 1 : 0;
  }
  if (state.gates.update(state.step, means, state.begins_measure) && role.rank() == 0) {
    base::log_local(
        base::LogLevel::info,
        fmt::format("stopped early after step {}: the held-out distillation loss has not improved "
                    "for {} evaluations; later steps are consumed and measured only",
                    state.gates.stopped_at(), state.student.gates.stopping.patience));
  }
}

void StudentObjective::State::report_measurements(StepMetrics& metrics) const {
  if (step.held_out_labels > 0.0) {
    metrics.figures["held_out_loss"] = step.sums[sum_held_out_ce] / step.held_out_labels;
    if (step.uses_kd()) {
      metrics.figures["held_out_kd_loss"] = step.sums[sum_held_out_kd] / step.held_out_labels;
    }
  }
  if (const double tokens = step.sums[sum_gap_tokens]; tokens > 0.0) {
    metrics.figures["gap"] = step.sums[train::sum_gap] / tokens;
    metrics.figures["gap_payload_kl"] = step.sums[sum_gap_payload] / tokens;
    metrics.figures["gap_full_kl"] = step.sums[sum_gap_full] / tokens;
  }
  if (student.gates.stopping.patience > 0) {
    metrics.figures["stopped_early"] = gates.has_stopped() ? 1.0 : 0.0;
  }
}

void StudentObjective::State::report_gates(StepMetrics& metrics) const {
  if (student.gates.uses_maturity) {
    metrics.figures["maturity_gate"] = gates.maturity();
  }
  if (student.gates.uses_difficulty && step.received != nullptr) {
    metrics.figures["alpha_gate"] = step.sums[sum_gate] / step.labels;
  }
  if (student.gates.balances_losses) {
    const StudentGates::TermFactors factors = gates.term_factors(step.uses_kd());
    metrics.figures["hidden_factor"] = factors.hidden;
    metrics.figures["attention_factor"] = factors.attention;
  }
  if (student.on_teacher_loss == OnTeacherLoss::labels) {
    metrics.figures["teacherless_steps"] = static_cast<double>(teacherless_steps);
  }
}

void StudentObjective::end_step(bool) {
  state_->source->release(state_->step.given.step);
}

bool StudentObjective::is_alone() const {
  return state_->source && state_->source->is_lost();
}

std::string StudentObjective::state() const {
  return state_->gates.state();
}

void StudentObjective::restore(const std::string& state) {
  state_->gates.restore(state);
}

}  // namespace athanor::train
