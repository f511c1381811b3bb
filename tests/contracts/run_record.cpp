#include "contracts/run_record.hpp"

#include <ATen/ATen.h>

#include <cstring>
#include <limits>
#include <sstream>
#include <utility>

#include "nn/token_batch.hpp"
#include "parallel/collectives/collectives.hpp"

namespace athanor::tests {
namespace {

// All tokens choose experts [0, K): every other expert, and every rank that holds only others, stays cold.
train::Trainer::RoutingForcer cold_forcer(const train::Trainer& trainer) {
  return [&trainer](const nn::TokenBatch& batch) {
    const auto& tp = trainer.grid().comm(parallel::Axis::tensor);
    const nn::SequenceSlice slice =
        nn::SequenceSlice::of(batch.tokens_BS.size(1), batch.real_seq, tp.rank(), tp.size());
    const std::int64_t tokens = batch.tokens_BS.size(0) * slice.real_count;
    const std::int64_t top_k = trainer.model().config().moe.top_k;
    const at::Tensor ids_TK = at::arange(top_k, at::kLong).unsqueeze(0).expand({tokens, top_k}).contiguous();
    return std::vector<at::Tensor>(static_cast<std::size_t>(trainer.model().num_sparse_layers()), ids_TK);
  };
}

// Whole tensors from flat ranges of slices, wherever and however often they are held: the largest of the
// holders' values, exactly.
class TensorCollector {
 public:
  explicit TensorCollector(const parallel::ParameterMap& parameters) {
    for (const auto& parameter : parameters.all()) {
      values_[parameter->name] =
          at::full(parameter->shard.global_shape, -std::numeric_limits<double>::infinity(), at::kDouble);
    }
  }
  void add(const parallel::Parameter& parameter, std::int64_t first, const at::Tensor& flat) {
    const at::Tensor values = flat.detach().to(at::kDouble).contiguous();
    auto* whole = values_[parameter.name].data_ptr<double>();
    for (std::int64_t i = 0; i < values.numel(); ++i) {
      whole[parameter.shard.global_index(first + i)] = values.data_ptr<double>()[i];
    }
  }
  std::map<std::string, at::Tensor> collect(const parallel::Communicator& role) {
    for (auto& [name, values] : values_) {
      parallel::all_reduce_(values, parallel::ReduceOp::max, role, parallel::Traffic::other);
    }
    return values_;  // minus infinity where nobody holds an element
  }

 private:
  std::map<std::string, at::Tensor> values_;
};

void collect_tensors(train::Trainer& trainer, const parallel::Communicator& role, RunRecord& record) {
  TensorCollector parameters(trainer.parameters()), exp_avg(trainer.parameters()),
      exp_avg_sq(trainer.parameters());
  for (const auto& parameter : trainer.parameters().all()) {
    parameters.add(*parameter, 0, parameter->value.flatten());
  }
  for (const optim::OwnedState& owned : trainer.optimizer().owned_state()) {
    exp_avg.add(*owned.parameter, owned.first, owned.exp_avg);
    exp_avg_sq.add(*owned.parameter, owned.first, owned.exp_avg_sq);
  }
  record.parameters = parameters.collect(role);
  record.exp_avg = exp_avg.collect(role);
  record.exp_avg_sq = exp_avg_sq.collect(role);
}

// Flat text-and-binary form of a record, for broadcasting.
void put(std::string& out, double value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}
double take(const char*& at) {
  double value = 0.0;
  std::memcpy(&value, at, sizeof(value));
  at += sizeof(value);
  return value;
}
void put(std::string& out, const std::string& text) {
  put(out, static_cast<double>(text.size()));
  out += text;
}
std::string take_text(const char*& at) {
  const auto size = static_cast<std::size_t>(take(at));
  std::string text(at, size);
  at += size;
  return text;
}

void put(std::string& out, const std::map<std::string, at::Tensor>& tensors) {
  put(out, static_cast<double>(tensors.size()));
  for (const auto& [name, tensor] : tensors) {
    put(out, name);
    const at::Tensor values = tensor.contiguous();
    put(out, std::string(static_cast<const char*>(values.data_ptr()), values.nbytes()));
    put(out, static_cast<double>(tensor.dim()));
    for (const std::int64_t extent : tensor.sizes()) {
      put(out, static_cast<double>(extent));
    }
  }
}

std::map<std::string, at::Tensor> take_tensors(const char*& at) {
  std::map<std::string, at::Tensor> tensors;
  const auto count = static_cast<int>(take(at));
  for (int i = 0; i < count; ++i) {
    const std::string name = take_text(at);
    const std::string bytes = take_text(at);
    std::vector<std::int64_t> shape(static_cast<std::size_t>(take(at)));
    for (std::int64_t& extent : shape) {
      extent = static_cast<std::int64_t>(take(at));
    }
    at::Tensor tensor = at::empty(shape, at::kDouble);
    std::memcpy(tensor.data_ptr(), bytes.data(), bytes.size());
    tensors[name] = tensor;
  }
  return tensors;
}

std::string serialise(const RunRecord& record) {
  std::string out;
  put(out, static_cast<double>(record.steps.size()));
  for (const train::StepMetrics& step : record.steps) {
    put(out, step.loss);
    put(out, step.total_loss);
    put(out, step.balance_loss);
    put(out, step.grad_norm);
    put(out, static_cast<double>(step.dropped));
    put(out, static_cast<double>(step.balance_terms.size()));
    for (const auto& [name, value] : step.balance_terms) {
      put(out, name);
      put(out, value);
    }
    put(out, static_cast<double>(step.expert_counts.size()));
    for (const auto& layer : step.expert_counts) {
      put(out, static_cast<double>(layer.size()));
      for (const std::int64_t count : layer) {
        put(out, static_cast<double>(count));
      }
    }
  }
  put(out, record.parameters);
  put(out, record.exp_avg);
  put(out, record.exp_avg_sq);
  return out;
}

RunRecord deserialise(const std::string& bytes) {
  const char* at = bytes.data();
  RunRecord record;
  record.steps.resize(static_cast<std::size_t>(take(at)));
  for (train::StepMetrics& step : record.steps) {
    step.loss = take(at);
    step.total_loss = take(at);
    step.balance_loss = take(at);
    step.grad_norm = take(at);
    step.dropped = static_cast<std::int64_t>(take(at));
    const auto terms = static_cast<int>(take(at));
    for (int i = 0; i < terms; ++i) {
      const std::string name = take_text(at);
      step.balance_terms[name] = take(at);
    }
    step.expert_counts.resize(static_cast<std::size_t>(take(at)));
    for (auto& layer : step.expert_counts) {
      layer.resize(static_cast<std::size_t>(take(at)));
      for (std::int64_t& count : layer) {
        count = static_cast<std::int64_t>(take(at));
      }
    }
  }
  record.parameters = take_tensors(at);
  record.exp_avg = take_tensors(at);
  record.exp_avg_sq = take_tensors(at);
  return record;
}

}  // namespace

train::TrainerOptions trainer_options(const Case& test, const Layout& layout) {
  train::TrainerOptions options;
  options.role = test.role;
  options.role.tp = layout.tp;
  options.role.ep = layout.ep;
  options.role.optim.zero = layout.zero;
  options.global_batch = test.data.global_batch;
  options.seq = test.data.seq;
  options.total_steps = test.steps;
  options.seed = 11;
  options.role.micro_batch = test.data.global_batch / (layout.ranks / layout.tp) / layout.accumulation;
  return options;
}

train::StepMetrics train_step(const Case& test, train::Trainer& trainer) {
  return trainer.step(
      synthetic_step(test.data, trainer.replica(), trainer.options().role.micro_batch, trainer.state().step));
}

RunRecord collect_record(train::Trainer& trainer, const parallel::Communicator& role) {
  RunRecord record;
  collect_tensors(trainer, role, record);
  return record;
}

RunRecord run_layout(const Case& test, const Layout& layout, const parallel::Communicator& role) {
  train::Trainer trainer(trainer_options(test, layout), role);
  if (test.cold_experts) {
    trainer.force_routing(cold_forcer(trainer));
  }
  std::vector<train::StepMetrics> steps;
  for (int step = 0; step < test.steps; ++step) {
    steps.push_back(train_step(test, trainer));
  }
  RunRecord record = collect_record(trainer, role);
  record.steps = std::move(steps);
  return record;
}

RunRecord broadcast_record(const RunRecord& record, int root, const parallel::Communicator& comm) {
  return deserialise(parallel::broadcast_string(comm.rank() == root ? serialise(record) : "", root, comm));
}

}  // namespace athanor::tests
