#include "train/student_terms.hpp"

#include <ATen/ATen.h>

#include <utility>
#include <vector>

#include "base/error.hpp"
#include "distill/attention_loss.hpp"
#include "distill/codec.hpp"
#include "distill/signal_gap.hpp"
#include "distill/token_weights.hpp"

namespace athanor::train {
namespace {

distill::HiddenTerm::Options hidden_options(const SignalOptions& options, const StudentOptions& student) {
  distill::HiddenTerm::Options hidden;
  hidden.pairs = options.students[student.index].hidden_pairs;
  hidden.student_width = student.model.hidden;
  hidden.teacher_width = options.teacher.hidden;
  hidden.loss = student.hidden;
  return hidden;
}

}  // namespace

StudentTerms::StudentTerms(std::shared_ptr<SignalOptions> options, const StudentOptions& student,
                           parallel::ParameterMap& parameters, const parallel::ProcessGrid& grid)
    : options_(std::move(options)), student_(student), grid_(&grid) {
  if (!signals().hidden_pairs.empty()) {
    hidden_.emplace(hidden_options(*options_, student_), parameters);
  }
}

void StudentTerms::begin_step(const StudentStep& step) {
  for (const distill::ReceivedField& received : step.received->fields) {
    if (received.name == field::head) {
      auto* data = const_cast<std::byte*>(received.bytes.data());
      const at::Tensor head = at::from_blob(data, {received.shape[1], received.shape[2]},
                                            at::TensorOptions(options_->teacher_type));
      head_vD_ = options_->teacher_frozen ? head.clone() : head;
    }
  }
}

model::LayerCapture StudentTerms::make_capture(const StudentStep& step) const {
  model::LayerCapture capture;
  if (step.uses_hidden()) {
    for (const distill::LayerPair& pair : signals().hidden_pairs) {
      capture.hidden_layers.push_back(pair.student_layer);
    }
  }
  if (step.uses_attention()) {
    for (const distill::LayerPair& pair : signals().attention_pairs) {
      capture.attention_layers.push_back(pair.student_layer);
    }
  }
  return capture;
}

// A field's rows of the micro-batch, [rows, positions, columns], without a copy.
at::Tensor StudentTerms::rows_of(const StudentStep& step, const StudentRows& rows, const std::string& name,
                                 at::ScalarType type) const {
  const distill::ReceivedField& field = step.received->field(name);
  const std::array<std::int64_t, 3>& shape = field.shape;
  ATHANOR_CHECK(field.element_bytes == static_cast<std::int64_t>(c10::elementSize(type)),
                "field {} has elements of {} bytes", name, field.element_bytes);
  // The buffer is read only; at::from_blob wants a pointer to mutable memory.
  auto* data = const_cast<std::byte*>(field.bytes.data());
  const at::Tensor whole = at::from_blob(data, {shape[0], shape[1], shape[2]}, at::TensorOptions(type));
  return whole.narrow(0, rows.first_row, rows.source.rows);
}

distill::TeacherSignal StudentTerms::signal(const StudentStep& step, const StudentRows& rows) const {
  distill::TeacherSignal signal{step.settings.temperatures, distill::NoSignal{}};
  if (!step.uses_kd()) {
    return signal;
  }
  const at::ScalarType accumulation = parallel::accumulation_type(options_->teacher_type);
  const auto tokens = [&](const char* name, at::ScalarType type) {
    return rows_of(step, rows, name, type).flatten(0, 1);
  };
  const auto num_temperatures = static_cast<std::int64_t>(step.settings.temperatures.size());
  const distill::CodecOptions& codec = step.phase().codec;
  switch (codec.kind) {
    case distill::PayloadKind::full:
      signal.payload = distill::FullSignal{tokens(field::full, options_->teacher_type)};
      break;
    case distill::PayloadKind::hidden:
      signal.payload = distill::HiddenSignal{tokens(field::hidden, options_->teacher_type), head_vD_};
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

at::Tensor StudentTerms::teacher_ce(const StudentStep& step, const StudentRows& rows) const {
  return rows_of(step, rows, field::ce, parallel::accumulation_type(options_->teacher_type)).flatten();
}

at::Tensor StudentTerms::gap_logits(const StudentStep& step, const StudentRows& rows) const {
  const std::int64_t count = distill::num_measured(rows.batch.real_seq, options_->gap_fraction);
  return rows_of(step, rows, field::gap_logits, options_->teacher_type).narrow(1, 0, count);
}

at::Tensor StudentTerms::gap_positions(const StudentRows& rows) const {
  const std::int64_t count = distill::num_measured(rows.batch.real_seq, options_->gap_fraction);
  return distill::measured_positions(rows.batch.sample_ids_B, rows.batch.real_seq, count, options_->seed);
}

distill::TokenTerms StudentTerms::token_terms(const StudentStep& step, const StudentRows& rows,
                                              const at::Tensor& alpha_factor_N) const {
  const distill::PhaseController::Step& numbers = step.settings.numbers;
  distill::TokenTerms terms;
  terms.labels_N = rows.batch.labels_BS.flatten();
  const at::Tensor learns_N = rows.learns_BS.flatten();
  const double mean = step.mean_factor();
  const distill::TokenWeights weights =
      distill::token_weights(learns_N, learns_N, alpha_factor_N, accumulation(),
                             {numbers.ce * mean, numbers.kd * mean, step.labels, step.labels});
  terms.ce_weight_N = weights.ce_N;
  terms.kd_weight_N = step.uses_kd() ? weights.kd_N : at::Tensor();
  if (step.settings.temperatures.size() > 1) {
    const at::Tensor index_BS = at::empty(rows.batch.tokens_BS.sizes(), at::kLong);
    for (std::int64_t row = 0; row < rows.source.rows; ++row) {
      const auto domain = static_cast<std::size_t>(rows.source.domains[static_cast<std::size_t>(row)]);
      const double temperature =
          step.phase().temperature.at(numbers.step_in_phase, options_->domains[domain]);
      index_BS[row].fill_(distill::temperature_index(step.settings.temperatures, temperature));
    }
    terms.temperature_N = index_BS.flatten();
  }
  return terms;
}

std::vector<at::Tensor> StudentTerms::teacher_states(const StudentStep& step, const StudentRows& rows) const {
  std::vector<at::Tensor> states;
  for (const distill::LayerPair& pair : hidden_->pairs()) {
    distill::EncodedStates encoded;
    const at::Tensor data = rows_of(step, rows, field::state(pair.teacher_layer), state_type(*options_));
    encoded.data_ND = data.flatten(0, 1);
    if (options_->state_wire == base::WireType::fp8) {
      encoded.scale_NB =
          rows_of(step, rows, field::state(pair.teacher_layer, true), at::kFloat).flatten(0, 1);
    }
    states.push_back(distill::decode_states(encoded, options_->fp8_format, accumulation())
                         .view({rows.source.rows, data.size(1), options_->teacher.hidden}));
  }
  return states;
}

at::Tensor StudentTerms::hidden(StudentStep& step, const StudentRows& rows,
                                const model::LayerCapture& capture, double factor) const {
  if (!step.uses_hidden() || !hidden_) {
    return {};
  }
  const nn::TokenBatch& batch = rows.batch;
  const nn::SequenceSlice slice =
      nn::SequenceSlice::of(batch.tokens_BS.size(1), batch.real_seq, tp().rank(), tp().size());
  const at::Tensor weight_Bs = rows.learns_BS.narrow(1, slice.first, slice.count).to(accumulation());
  const distill::HiddenLoss loss =
      hidden_->loss(capture.hidden_BsD, teacher_states(step, rows), weight_Bs, step.phase().hidden_loss);
  step.sums[sum_hidden] += loss.per_token_n.sum().item<double>();  // every tp rank has tokens of its own
  return loss.objective * (step.settings.numbers.hidden * factor * step.mean_factor());
}

at::Tensor StudentTerms::attention(StudentStep& step, const StudentRows& rows,
                                   const model::LayerCapture& capture, double factor) const {
  if (!step.uses_attention() || step.attention_rows == 0.0) {
    return {};
  }
  const at::Tensor mask_BS = rows.learns_BS.to(accumulation());
  const distill::AttentionLossOptions loss_options{step.phase().attention_loss, student_.model.heads,
                                                   options_->teacher.heads};
  at::Tensor objective;
  const std::vector<distill::LayerPair>& pairs = signals().attention_pairs;
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const auto teacher_part = [&](char part) {
      return rows_of(step, rows, field::attention(pairs[i].teacher_layer, part), options_->teacher_type)
          .unflatten(2, {-1, options_->teacher.resolved_head_dim()});
    };
    const distill::AttentionLoss loss = distill::attention_map_loss(
        {capture.attention[i].q_BSHC, capture.attention[i].k_BSGC}, {teacher_part('q'), teacher_part('k')},
        mask_BS * (pairs[i].weight * step.labels / step.attention_rows), rows.batch.documents_BS, tp(),
        loss_options);
    step.sums[sum_attention] += tp().rank() == 0 ? loss.sum.item<double>() : 0.0;
    const at::Tensor part = loss.objective * (step.settings.numbers.attention * factor * step.mean_factor());
    objective = objective.defined() ? objective + part : part;
  }
  return objective;
}

}  // namespace athanor::train
