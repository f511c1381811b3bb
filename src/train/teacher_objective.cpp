#include "train/teacher_objective.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "distill/codec.hpp"
#include "parallel/collectives/collectives.hpp"
#include "train/row_tags.hpp"

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
  StepSettings settings;
  std::int64_t step = 0;
  const std::vector<data::Batch>* micro_batches = nullptr;

  State(std::shared_ptr<SignalOptions> signal_options, const model::Transformer& transformer,
        const parallel::ProcessGrid& process_grid, parallel::PointToPoint& point_to_point)
      : options(std::move(signal_options)), model(transformer), grid(process_grid), wire(point_to_point) {}

  const parallel::Communicator& tp() const { return grid.comm(parallel::Axis::tensor); }
  bool wants_payload() const { return settings.numbers.phase->uses_kd(); }
  model::LayerCapture make_capture() const;
  distill::TeacherSignal encode(const at::Tensor& logits_Cv, std::int64_t first_token,
                                const nn::TokenBatch& batch) const;
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
  state.sender.emplace(state.wire, state.grid.role().rank(), plans_of(state.options),
                       distill::LinkOptions{state.options->window, first_step, state.options->total_steps,
                                            state.options->deadline_s, while_waiting});
}

void TeacherObjective::begin_step(const ObjectiveStep& step) {
  State& state = *state_;
  state.step = step.step;
  state.settings = settings_of(*state.options, step.step);
  state.micro_batches = step.micro_batches;
  const auto control = step.save_requests > 0 ? distill::ControlWord::cut : distill::ControlWord::go;
  state.sender->begin_step({step.step, step.updates, control});
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
  nn::CrossEntropyOptions options;
  if (state.wants_payload()) {
    options.observe_logits = [&](at::Tensor& logits_Cv, std::int64_t first_token) {
      chunks.push_back(state.encode(logits_Cv, first_token, micro.batch));
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
