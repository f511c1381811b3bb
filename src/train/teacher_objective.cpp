#include "train/teacher_objective.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "base/log.hpp"
#include "distill/codec.hpp"
#include "distill/signal_gap.hpp"
#include "parallel/collectives/collectives.hpp"
#include "train/row_tags.hpp"
#include "train/teacher_loss.hpp"

namespace athanor::train {
namespace {

std::vector<distill::PlanOfStep> plans_of(const std::shared_ptr<SignalOptions>& options) {
  std::vector<distill::PlanOfStep> plans;
  for (std::size_t student = 0; student < options->students.size(); ++student) {
    plans.push_back(make_plan(options, student));
  }
  return plans;
}

// Tensors by field name, contiguous, alive while they are sent.
class FieldTensors {
 public:
  void add(std::string name, const at::Tensor& tensor) {
    tensors_.emplace_back(std::move(name), tensor.detach().contiguous());
  }
  std::vector<distill::FieldView> views() const {
    std::vector<distill::FieldView> views;
    for (const auto& [name, tensor] : tensors_) {
      views.push_back({name, {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()}});
    }
    return views;
  }

 private:
  std::vector<std::pair<std::string, at::Tensor>> tensors_;
};

}  // namespace

struct TeacherObjective::State {
  std::shared_ptr<SignalOptions> options;
  const model::Transformer& model;
  const parallel::ProcessGrid& grid;
  parallel::PointToPoint& wire;
  std::optional<distill::SignalSender> sender;  // from start() on
  std::optional<FarewellBox> farewells;
  std::function<void()> while_waiting;
  StepSettings settings;
  std::int64_t step = 0;
  const std::vector<data::Batch>* micro_batches = nullptr;

  State(std::shared_ptr<SignalOptions> signal_options, const model::Transformer& transformer,
        const parallel::ProcessGrid& process_grid, parallel::PointToPoint& point_to_point)
      : options(std::move(signal_options)), model(transformer), grid(process_grid), wire(point_to_point) {}

  const parallel::Communicator& tp() const { return grid.comm(parallel::Axis::tensor); }
  [[noreturn]] void wait_for_the_end() const;
  bool wants_payload() const { return settings.numbers.phase->uses_kd(); }
  model::LayerCapture make_capture() const;
  distill::TeacherSignal encode(const at::Tensor& logits_Cv, std::int64_t first_token,
                                const nn::TokenBatch& batch) const;
  at::Tensor measured_tokens(const nn::TokenBatch& batch) const;
  void add_gap(const std::vector<at::Tensor>& chunks, const nn::TokenBatch& batch,
               FieldTensors& fields) const;
  void add_payload(const distill::TeacherSignal& signal, const at::Tensor& h_BsD, FieldTensors& fields) const;
  void add_captured(const model::LayerCapture& capture, FieldTensors& fields) const;
};

TeacherObjective::TeacherObjective(std::shared_ptr<SignalOptions> options, const model::Transformer& model,
                                   const parallel::ProcessGrid& grid, parallel::PointToPoint& wire)
    : state_(std::make_unique<State>(std::move(options), model, grid, wire)) {}

TeacherObjective::~TeacherObjective() = default;

void TeacherObjective::progress() {
  if (state_->sender) {
    state_->sender->progress();
  }
}

void TeacherObjective::start(std::int64_t first_step, const std::function<void()>& while_waiting) {
  State& state = *state_;
  state.options->first_step = first_step;
  state.sender.emplace(
      state.wire, state.grid.role().rank(), plans_of(state.options),
      distill::LinkOptions{state.options->window, first_step, state.options->total_steps,
                           state.options->deadline_s, while_waiting, state.options->overlap_sends});
  state.while_waiting = while_waiting;
  if (state.options->students_may_leave) {
    std::vector<int> first_ranks;
    for (const StudentSignals& student : state.options->students) {
      first_ranks.push_back(student.layout.world_ranks.front());
    }
    state.farewells.emplace(state.wire, first_ranks);
  }
}

// The student that went on ends the job when it is through: ending it here would take its work away.
void TeacherObjective::State::wait_for_the_end() const {
  base::log_local(
      base::LogLevel::warning,
      fmt::format("a student went on without this teacher, which was more than {} s late: waiting "
                  "for the student to end the job (distill.on_teacher_loss=labels)",
                  options->deadline_s));
  for (;;) {
    wire.wait_until([] { return false; }, 1.0);
    if (while_waiting) {
      while_waiting();
    }
  }
}

void TeacherObjective::begin_step(const ObjectiveStep& step) {
  State& state = *state_;
  state.step = step.step;
  state.settings = settings_of(*state.options, step.step);
  state.micro_batches = step.micro_batches;
  const auto control = step.stop_requests > 0   ? distill::ControlWord::cut_and_stop
                       : step.save_requests > 0 ? distill::ControlWord::cut
                                                : distill::ControlWord::go;
  try {
    state.sender->begin_step({step.step, step.updates, control});
  } catch (const distill::LinkTimeout&) {
    if (!state.farewells || !state.farewells->has_any()) {
      throw;
    }
    state.wait_for_the_end();
  }
  if (state.sender->wants(field::head)) {
    FieldTensors fields;
    fields.add(field::head, state.model.head_weight().tensor);
    state.sender->send_step_fields(fields.views());
  }
}

// The layers that some student asks for in this phase.
model::LayerCapture TeacherObjective::State::make_capture() const {
  model::LayerCapture capture;
  const auto add = [](std::vector<std::int64_t>& layers, std::int64_t layer) {
    if (std::find(layers.begin(), layers.end(), layer) == layers.end()) {
      layers.push_back(layer);
    }
  };
  for (const StudentSignals& student : options->students) {
    for (const distill::LayerPair& pair : student.hidden_pairs) {
      if (settings.numbers.phase->uses_hidden()) {
        add(capture.hidden_layers, pair.teacher_layer);
      }
    }
    for (const distill::LayerPair& pair : student.attention_pairs) {
      if (settings.numbers.phase->uses_attention()) {
        add(capture.attention_layers, pair.teacher_layer);
      }
    }
  }
  return capture;
}

distill::TeacherSignal TeacherObjective::State::encode(const at::Tensor& logits_Cv, std::int64_t first_token,
                                                       const nn::TokenBatch& batch) const {
  const distill::CodecOptions& codec = settings.numbers.phase->codec;
  distill::TeacherSignal signal{settings.temperatures, distill::NoSignal{}};
  switch (codec.kind) {
    case distill::PayloadKind::full:
      signal.payload = distill::FullSignal{logits_Cv.clone()};
      break;
    case distill::PayloadKind::topk:
      signal.payload =
          distill::encode_topk(logits_Cv, model.head_first_id(), codec.top_k, settings.temperatures, tp());
      break;
    case distill::PayloadKind::sampled: {
      const std::int64_t seq = batch.tokens_BS.size(1);
      const at::Tensor tokens = at::arange(first_token, first_token + logits_Cv.size(0), at::kLong);
      const at::Tensor rows = at::div(tokens, seq, "floor");
      const distill::TokenPlaces places{batch.sample_ids_B.index_select(0, rows), tokens - rows * seq};
      signal.payload = distill::encode_sampled(logits_Cv, model.head_first_id(), codec.samples,
                                               settings.temperatures, places, options->seed, tp());
      break;
    }
    case distill::PayloadKind::hidden:
    case distill::PayloadKind::none:
      break;
  }
  return signal;
}

void TeacherObjective::State::add_payload(const distill::TeacherSignal& signal, const at::Tensor& h_BsD,
                                          FieldTensors& fields) const {
  if (settings.numbers.phase->codec.kind == distill::PayloadKind::hidden) {
    fields.add(field::hidden, h_BsD);
  } else if (const auto* full = std::get_if<distill::FullSignal>(&signal.payload)) {
    fields.add(field::full, full->logits_Nv);
  } else if (const auto* topk = std::get_if<distill::TopKSignal>(&signal.payload)) {
    fields.add(field::topk_ids, topk->ids_NK);
    fields.add(field::topk_logits, topk->logits_NK);
    fields.add(field::topk_lse_1, topk->lse_1_N);
    fields.add(field::topk_lse, topk->lse_NJ);
    fields.add(field::topk_tail, topk->log_tail_NJ);
  } else if (const auto* sampled = std::get_if<distill::SampledSignal>(&signal.payload)) {
    fields.add(field::sampled_ids, sampled->ids_NJM);
    fields.add(field::sampled_counts, sampled->counts_NJM);
    fields.add(field::sampled_entropy, sampled->entropy_NJ);
  }
}

// Ascending indices of the micro-batch's tokens whose logits are sent whole; undefined: none are.
at::Tensor TeacherObjective::State::measured_tokens(const nn::TokenBatch& batch) const {
  if (!settings.measures_gap) {
    return {};
  }
  const std::int64_t count = distill::num_measured(batch.real_seq, options->gap_fraction);
  const at::Tensor positions_BP =
      distill::measured_positions(batch.sample_ids_B, batch.real_seq, count, options->seed);
  const at::Tensor first_B1 = at::arange(batch.tokens_BS.size(0), at::kLong).unsqueeze(1);
  return (positions_BP + first_B1 * batch.tokens_BS.size(1)).flatten();
}

// Rows of the measured tokens, padded as the positions of a sample are.
void TeacherObjective::State::add_gap(const std::vector<at::Tensor>& chunks, const nn::TokenBatch& batch,
                                      FieldTensors& fields) const {
  if (chunks.empty()) {
    return;
  }
  const at::Tensor logits_BPv = at::cat(chunks).unflatten(0, {batch.tokens_BS.size(0), -1});
  const std::int64_t count = logits_BPv.size(1);
  fields.add(field::gap_logits,
             at::constant_pad_nd(logits_BPv, {0, 0, 0, nn::padded_sequence(count, tp().size()) - count}));
}

void TeacherObjective::State::add_captured(const model::LayerCapture& capture, FieldTensors& fields) const {
  for (std::size_t i = 0; i < capture.hidden_layers.size(); ++i) {
    const distill::EncodedStates encoded =
        distill::encode_states(capture.hidden_BsD[i].detach(), options->state_wire, options->fp8_format);
    fields.add(field::state(capture.hidden_layers[i]), encoded.data_ND);
    if (encoded.scale_NB.defined()) {
      fields.add(field::state(capture.hidden_layers[i], true), encoded.scale_NB);
    }
  }
  for (std::size_t i = 0; i < capture.attention_layers.size(); ++i) {
    fields.add(field::attention(capture.attention_layers[i], 'q'), capture.attention[i].q_BSHC);
    fields.add(field::attention(capture.attention_layers[i], 'k'), capture.attention[i].k_BSGC);
  }
}

double TeacherObjective::forward(const model::Transformer& model, const model::ForwardContext& context,
                                 std::int64_t index, MicroBatch& micro) {
  State& state = *state_;
  model::LayerCapture capture = state.make_capture();
  model::ForwardContext with_capture = context;
  with_capture.capture = &capture;
  const at::Tensor x_BsD = model.embed(micro.batch, with_capture);
  const model::Transformer::Hidden hidden = model.blocks(x_BsD, micro.batch, with_capture);

  std::vector<distill::TeacherSignal> chunks;
  std::vector<at::Tensor> measured;
  nn::CrossEntropyOptions options;
  if (state.wants_payload()) {
    const at::Tensor measured_N = state.measured_tokens(micro.batch);
    options.observe_logits = [&, measured_N](at::Tensor& logits_Cv, std::int64_t first_token) {
      chunks.push_back(state.encode(logits_Cv, first_token, micro.batch));
      if (measured_N.defined()) {
        const at::Tensor rows = measured_N - first_token;
        const at::Tensor is_here = rows.ge(0).logical_and(rows.lt(logits_Cv.size(0)));
        measured.push_back(logits_Cv.index_select(0, rows.masked_select(is_here)));
      }
    };
  }
  const nn::CrossEntropy loss = model.head_loss(hidden.h_BsD, micro.batch, options);
  micro.objective = loss.sum;
  micro.aux = hidden.aux;

  FieldTensors fields;
  fields.add(field::ce, loss.per_token);
  if (state.wants_payload() && !chunks.empty()) {
    state.add_payload(distill::concatenate(chunks), hidden.h_BsD, fields);
  }
  state.add_gap(measured, micro.batch, fields);
  state.add_captured(capture, fields);
  state.sender->send_rows(index, tags_of((*state.micro_batches)[static_cast<std::size_t>(index)]),
                          fields.views());
  return micro.objective.item<double>();
}

void TeacherObjective::report(StepMetrics& metrics, const parallel::Communicator& role) {
  const distill::SenderStats& stats = state_->sender->stats();
  metrics.phase = state_->settings.numbers.phase->name;
  metrics.figures["link_wait_s"] = stats.last_step_wait_s;
  metrics.figures["link_bytes"] =
      static_cast<double>(parallel::all_reduce_sum(stats.last_step_sent_bytes, role));
}

void TeacherObjective::end_step(bool skipped) {
  state_->sender->end_step(skipped ? distill::StepOutcome::skipped : distill::StepOutcome::finite);
}

void TeacherObjective::finish() {
  state_->sender->finish();
}

}  // namespace athanor::train
