#include "train/student_objective.hpp"

#include <ATen/ATen.h>

#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "distill/codec.hpp"
#include "distill/distill_loss.hpp"
#include "distill/token_weights.hpp"
#include "parallel/collectives/collectives.hpp"
#include "train/row_tags.hpp"

namespace athanor::train {
namespace {

// Sums of a step, reduced over the role.
enum Sum : std::size_t { sum_ce, sum_kd, sum_hidden, sum_attention, sum_teacher_ce, sum_objective, num_sums };

distill::HiddenTerm::Options hidden_options(const SignalOptions& options, const StudentOptions& student) {
  distill::HiddenTerm::Options hidden;
  hidden.pairs = options.students[student.index].hidden_pairs;
  hidden.student_width = student.model.hidden;
  hidden.teacher_width = options.teacher.hidden;
  hidden.loss = student.hidden;
  return hidden;
}

}  // namespace

struct StudentObjective::State {
  std::shared_ptr<SignalOptions> options;
  StudentOptions student;
  const parallel::ProcessGrid& grid;
  std::optional<distill::HiddenTerm> hidden;
  parallel::PointToPoint& wire;
  std::optional<distill::SignalReceiver> receiver;  // from start() on
  distill::MaturityGate gate;
  StepSettings settings;
  ObjectiveStep step;
  const distill::ReceivedStep* received = nullptr;
  at::Tensor kept_head;         // of a frozen teacher: sent once
  double attention_factor = 1;  // N over what the attention term is divided by
  std::int64_t next_row = 0;    // of this replica, of the next micro-batch
  std::array<double, num_sums> sums{};

  State(std::shared_ptr<SignalOptions> signal_options, const StudentOptions& student_options,
        parallel::ParameterMap& parameters, const parallel::ProcessGrid& process_grid,
        parallel::PointToPoint& point_to_point)
      : options(std::move(signal_options)),
        student(student_options),
        grid(process_grid),
        wire(point_to_point),
        gate(student_options.maturity) {
    if (!signals().hidden_pairs.empty()) {
      hidden.emplace(hidden_options(*options, student), parameters);
    }
  }

  const StudentSignals& signals() const { return options->students[student.index]; }
  const parallel::Communicator& tp() const { return grid.comm(parallel::Axis::tensor); }
  bool counts() const { return tp().rank() == 0; }  // sums that all tp ranks have count once
  at::ScalarType accumulation() const { return parallel::accumulation_type(student.type); }

  at::Tensor rows_of(const std::string& name, at::ScalarType type, std::int64_t rows) const;
  distill::TeacherSignal make_signal(std::int64_t rows) const;
  distill::TokenTerms make_terms(const nn::TokenBatch& batch, const data::Batch& source) const;
  model::LayerCapture make_capture() const;
  at::Tensor hidden_objective(const model::LayerCapture& capture, const nn::TokenBatch& batch);
  at::Tensor attention_objective(const model::LayerCapture& capture, const nn::TokenBatch& batch);
  void count_attention_rows();
};

StudentObjective::StudentObjective(std::shared_ptr<SignalOptions> options, const StudentOptions& student,
                                   parallel::ParameterMap& parameters, const parallel::ProcessGrid& grid,
                                   parallel::PointToPoint& wire)
    : state_(std::make_unique<State>(std::move(options), student, parameters, grid, wire)) {}

StudentObjective::~StudentObjective() = default;

// A field's rows of the current micro-batch, [rows, positions, columns], without a copy.
at::Tensor StudentObjective::State::rows_of(const std::string& name, at::ScalarType type,
                                            std::int64_t rows) const {
  const distill::ReceivedField& field = received->field(name);
  const std::array<std::int64_t, 3>& shape = field.shape;
  ATHANOR_CHECK(field.element_bytes == static_cast<std::int64_t>(c10::elementSize(type)),
                "field {} has elements of {} bytes", name, field.element_bytes);
  // The buffer is read only; at::from_blob wants a pointer to mutable memory.
  auto* data = const_cast<std::byte*>(field.bytes.data());
  const at::Tensor whole = at::from_blob(data, {shape[0], shape[1], shape[2]}, at::TensorOptions(type));
  return whole.narrow(0, next_row, rows);
}

distill::TeacherSignal StudentObjective::State::make_signal(std::int64_t rows) const {
  distill::TeacherSignal signal{settings.temperatures, distill::NoSignal{}};
  if (!settings.numbers.phase->uses_kd()) {
    return signal;
  }
  const at::ScalarType accumulation = parallel::accumulation_type(options->teacher_type);
  const auto tokens = [&](const char* name, at::ScalarType type) {
    return rows_of(name, type, rows).flatten(0, 1);
  };
  const auto num_temperatures = static_cast<std::int64_t>(settings.temperatures.size());
  const distill::CodecOptions& codec = settings.numbers.phase->codec;
  switch (codec.kind) {
    case distill::PayloadKind::full:
      signal.payload = distill::FullSignal{tokens(field::full, options->teacher_type)};
      break;
    case distill::PayloadKind::hidden:
      signal.payload = distill::HiddenSignal{tokens(field::hidden, options->teacher_type), kept_head};
      break;
    case distill::PayloadKind::topk:
      signal.payload =
          distill::TopKSignal{tokens(field::topk_ids, at::kInt), tokens(field::topk_logits, accumulation),
                              tokens(field::topk_lse_1, accumulation).squeeze(1),
                              tokens(field::topk_lse, accumulation), tokens(field::topk_tail, accumulation)};
      break;
    case distill::PayloadKind::sampled: {
      const auto draws = [&](const char* name) {
        return tokens(name, at::kInt).unflatten(1, {num_temperatures, codec.samples});
      };
      signal.payload = distill::SampledSignal{draws(field::sampled_ids), draws(field::sampled_counts),
                                              tokens(field::sampled_entropy, accumulation)};
      break;
    }
    case distill::PayloadKind::none:
      break;
  }
  return signal;
}

distill::TokenTerms StudentObjective::State::make_terms(const nn::TokenBatch& batch,
                                                        const data::Batch& source) const {
  distill::TokenTerms terms;
  terms.labels_N = batch.labels_BS.flatten();
  const at::Tensor has_label_N = terms.labels_N.ne(nn::ignored_label);
  const distill::PhaseController::Step& numbers = settings.numbers;
  at::Tensor gate_N;
  if (student.uses_maturity_gate) {
    gate_N = at::full(has_label_N.sizes(), gate.factor(), at::TensorOptions(accumulation()));
  }
  const distill::TokenWeights weights =
      distill::token_weights(has_label_N, has_label_N, gate_N, accumulation(),
                             {numbers.ce, numbers.kd, step.valid_labels, step.valid_labels});
  terms.ce_weight_N = weights.ce_N;
  terms.kd_weight_N = numbers.phase->uses_kd() ? weights.kd_N : at::Tensor();
  if (settings.temperatures.size() > 1) {
    const at::Tensor index_BS = at::empty(batch.tokens_BS.sizes(), at::kLong);
    for (std::int64_t row = 0; row < source.rows; ++row) {
      const auto domain = static_cast<std::size_t>(source.domains[static_cast<std::size_t>(row)]);
      const double temperature =
          numbers.phase->temperature.at(numbers.step_in_phase, options->domains[domain]);
      index_BS[row].fill_(distill::temperature_index(settings.temperatures, temperature));
    }
    terms.temperature_N = index_BS.flatten();
  }
  return terms;
}

model::LayerCapture StudentObjective::State::make_capture() const {
  model::LayerCapture capture;
  if (settings.numbers.phase->uses_hidden()) {
    for (const distill::LayerPair& pair : signals().hidden_pairs) {
      capture.hidden_layers.push_back(pair.student_layer);
    }
  }
  if (settings.numbers.phase->uses_attention()) {
    for (const distill::LayerPair& pair : signals().attention_pairs) {
      capture.attention_layers.push_back(pair.student_layer);
    }
  }
  return capture;
}

// Undefined when the phase has no such term.
at::Tensor StudentObjective::State::hidden_objective(const model::LayerCapture& capture,
                                                     const nn::TokenBatch& batch) {
  if (!settings.numbers.phase->uses_hidden() || !hidden) {
    return {};
  }
  const std::int64_t rows = batch.tokens_BS.size(0);
  std::vector<at::Tensor> teacher_states;
  for (const distill::LayerPair& pair : hidden->pairs()) {
    distill::EncodedStates encoded;
    const at::Tensor data = rows_of(field::state(pair.teacher_layer), state_type(*options), rows);
    encoded.data_ND = data.flatten(0, 1);
    if (options->state_wire == base::WireType::fp8) {
      encoded.scale_NB = rows_of(field::state(pair.teacher_layer, true), at::kFloat, rows).flatten(0, 1);
    }
    teacher_states.push_back(distill::decode_states(encoded, options->fp8_format, accumulation())
                                 .view({rows, data.size(1), options->teacher.hidden}));
  }
  const nn::SequenceSlice slice =
      nn::SequenceSlice::of(batch.tokens_BS.size(1), batch.real_seq, tp().rank(), tp().size());
  const at::Tensor weight_Bs =
      batch.labels_BS.narrow(1, slice.first, slice.count).ne(nn::ignored_label).to(accumulation());
  const distill::HiddenLoss loss = hidden->loss(capture.hidden_BsD, teacher_states, weight_Bs);
  sums[sum_hidden] += loss.per_token_n.sum().item<double>();  // every tp rank has tokens of its own
  return loss.objective * settings.numbers.hidden;
}

at::Tensor StudentObjective::State::attention_objective(const model::LayerCapture& capture,
                                                        const nn::TokenBatch& batch) {
  if (!settings.numbers.phase->uses_attention()) {
    return {};
  }
  const std::int64_t rows = batch.tokens_BS.size(0);
  const at::Tensor mask_BS = batch.labels_BS.ne(nn::ignored_label).to(accumulation());
  const std::int64_t head_dim = options->teacher.resolved_head_dim();
  const distill::AttentionLossOptions loss_options{settings.numbers.phase->attention_loss,
                                                   student.model.heads, options->teacher.heads};
  at::Tensor objective;
  const std::vector<distill::LayerPair>& pairs = signals().attention_pairs;
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const auto teacher_part = [&](char part) {
      return rows_of(field::attention(pairs[i].teacher_layer, part), options->teacher_type, rows)
          .unflatten(2, {-1, head_dim});
    };
    const double weight = pairs[i].weight * attention_factor;
    const distill::AttentionLoss loss = distill::attention_map_loss(
        {capture.attention[i].q_BSHC, capture.attention[i].k_BSGC}, {teacher_part('q'), teacher_part('k')},
        mask_BS * weight, batch.documents_BS, tp(), loss_options);
    sums[sum_attention] += counts() ? loss.sum.item<double>() : 0.0;
    const at::Tensor part = loss.objective * settings.numbers.attention;
    objective = objective.defined() ? objective + part : part;
  }
  return objective;
}

// The mse of maps is a mean over pairs of positions, the rest over rows.
void StudentObjective::State::count_attention_rows() {
  attention_factor = 1.0;
  if (!settings.numbers.phase->uses_attention() ||
      settings.numbers.phase->attention_loss != distill::AttentionLossKind::mse) {
    return;
  }
  std::int64_t pairs = 0;
  for (const data::Batch& batch : *step.micro_batches) {
    const at::TensorOptions ints(at::kInt);
    const std::vector<std::int64_t> shape = {batch.rows, batch.seq};
    const at::Tensor labels = at::from_blob(const_cast<std::int32_t*>(batch.labels.data()), shape, ints);
    const at::Tensor documents =
        at::from_blob(const_cast<std::int32_t*>(batch.documents.data()), shape, ints);
    pairs += distill::attention_pairs(
        labels.ne(static_cast<std::int32_t>(nn::ignored_label)).to(accumulation()), documents.to(at::kLong));
  }
  pairs = parallel::all_reduce_sum(counts() ? pairs : 0, grid.role());
  attention_factor = pairs > 0 ? step.valid_labels / static_cast<double>(pairs) : 0.0;
}

void StudentObjective::progress() {
  if (state_->receiver) {
    state_->receiver->progress();
  }
}

void StudentObjective::start(std::int64_t first_step, const std::function<void()>& while_waiting) {
  State& state = *state_;
  state.options->first_step = first_step;
  state.receiver.emplace(state.wire, state.grid.role().rank(), make_plan(state.options, state.student.index),
                         distill::LinkOptions{state.options->window, first_step, state.options->total_steps,
                                              state.options->deadline_s, while_waiting});
}

void StudentObjective::begin_step(const ObjectiveStep& step) {
  State& state = *state_;
  state.step = step;
  state.settings = settings_of(*state.options, step.step);
  state.sums = {};
  state.next_row = 0;
  state.received = &state.receiver->wait_step(step.step, tags_of(*step.micro_batches));
  for (const distill::ReceivedField& received : state.received->fields) {
    if (received.name == field::head) {
      auto* data = const_cast<std::byte*>(received.bytes.data());
      const at::Tensor head = at::from_blob(data, {received.shape[1], received.shape[2]},
                                            at::TensorOptions(state.options->teacher_type));
      state.kept_head = state.options->teacher_frozen ? head.clone() : head;
    }
  }
  state.count_attention_rows();
}

double StudentObjective::forward(const model::Transformer& model, const model::ForwardContext& context,
                                 std::int64_t index, MicroBatch& micro) {
  State& state = *state_;
  const data::Batch& source = (*state.step.micro_batches)[static_cast<std::size_t>(index)];
  model::LayerCapture capture = state.make_capture();
  model::ForwardContext with_capture = context;
  with_capture.capture = &capture;
  const at::Tensor x_BsD = model.embed(micro.batch, with_capture);
  const model::Transformer::Hidden hidden = model.blocks(x_BsD, micro.batch, with_capture);
  const distill::TokenTerms terms = state.make_terms(micro.batch, source);
  const distill::HeadLoss head = distill::distill_head_loss(
      hidden.h_BsD, model.head_weight(), model.head_first_id(), terms, state.make_signal(source.rows),
      state.tp(), {state.settings.numbers.phase->kd_loss});
  micro.objective = head.objective;
  micro.aux = hidden.aux.defined() && state.settings.numbers.balance != 1.0
                  ? hidden.aux * state.settings.numbers.balance
                  : hidden.aux;
  const double ce = head.tokens.ce_N.sum(at::kDouble).item<double>();
  if (state.counts()) {
    state.sums[sum_ce] += ce;
    state.sums[sum_kd] += head.tokens.kd_N.sum(at::kDouble).item<double>();
    state.sums[sum_objective] += head.objective.item<double>();
    const at::Tensor teacher_ce =
        state.rows_of(field::ce, parallel::accumulation_type(state.options->teacher_type), source.rows)
            .flatten();
    state.sums[sum_teacher_ce] +=
        teacher_ce.masked_select(terms.labels_N.ne(nn::ignored_label)).sum(at::kDouble).item<double>();
  }
  for (const at::Tensor& part :
       {state.hidden_objective(capture, micro.batch), state.attention_objective(capture, micro.batch)}) {
    if (part.defined()) {
      state.sums[sum_objective] += part.item<double>();
      micro.objective = micro.objective + part;
    }
  }
  state.next_row += source.rows;
  return ce;
}

bool StudentObjective::accepts_step() {
  const distill::StepOutcome outcome = state_->receiver->wait_trailer(state_->step.step);
  return outcome == distill::StepOutcome::finite;
}

void StudentObjective::report(StepMetrics& metrics, const parallel::Communicator& role) {
  State& state = *state_;
  at::Tensor sums = at::empty({num_sums}, at::kDouble);
  std::copy(state.sums.begin(), state.sums.end(), sums.mutable_data_ptr<double>());
  parallel::all_reduce_(sums, parallel::ReduceOp::sum, role, parallel::Traffic::other);
  const double* sum = sums.const_data_ptr<double>();
  const double labels = state.step.valid_labels;
  const distill::PhaseController::Step& numbers = state.settings.numbers;
  metrics.phase = numbers.phase->name;
  metrics.total_loss += sum[sum_objective] / labels - metrics.loss;
  metrics.figures["kd_loss"] = sum[sum_kd] / labels;
  metrics.figures["hidden_loss"] = sum[sum_hidden] / labels;
  metrics.figures["attention_loss"] = sum[sum_attention] / labels;
  metrics.figures["teacher_loss"] = sum[sum_teacher_ce] / labels;
  metrics.figures["alpha"] = numbers.phase->uses_kd() ? numbers.alpha : 0.0;
  metrics.figures["temperature"] = numbers.temperature;
  if (state.student.uses_maturity_gate) {
    metrics.figures["maturity_gate"] = state.gate.factor();
  }
  const distill::SourceStats& stats = state.receiver->stats();
  metrics.figures["link_wait_s"] = stats.last_step_wait_s;
  metrics.figures["link_bytes"] =
      static_cast<double>(parallel::all_reduce_sum(stats.last_step_received_bytes, role));
  // Saves are decided by the leading role and travel with the signals.
  metrics.save_requests = state.received->control == distill::ControlWord::go ? 0 : 1;
  state.gate.update(sum[sum_ce] / labels, sum[sum_teacher_ce] / labels);
}

void StudentObjective::end_step(bool) {
  state_->receiver->release(state_->step.step);
}

std::string StudentObjective::state() const {
  const distill::MaturityState& gate = state_->gate.state();
  return nlohmann::json{
      {"student_ce", gate.student_ce}, {"teacher_ce", gate.teacher_ce}, {"steps", gate.steps}}
      .dump();
}

void StudentObjective::restore(const std::string& state) {
  if (state.empty()) {
    return;
  }
  try {
    const nlohmann::json json = nlohmann::json::parse(state);
    state_->gate.restore({json.at("student_ce").get<double>(), json.at("teacher_ce").get<double>(),
                          json.at("steps").get<std::int64_t>()});
  } catch (const nlohmann::json::exception& error) {
    throw base::CheckpointError("the student's state cannot be read ({}) it is damaged or of another program",
                                error.what());
  }
}

}  // namespace athanor::train
