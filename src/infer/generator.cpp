#include "infer/generator.hpp"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>

#include "base/error.hpp"
#include "infer/detail/decoding.hpp"
#include "infer/detail/gather_results.hpp"
#include "infer/key_value_cache.hpp"
#include "infer/token_batch.hpp"
#include "parallel/collectives/collectives.hpp"

namespace athanor::infer {
namespace {

using Members = std::vector<std::size_t>;  // indices into the requests

// Groups of requests with equal prompt length, small enough for all replicas to get some where there are
// several.
std::vector<Members> make_groups(std::span<const GenerationRequest> requests, std::int64_t max_batch,
                                 int replicas) {
  std::map<std::size_t, Members> by_length;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    by_length[requests[i].prompt.size()].push_back(i);
  }
  std::vector<Members> groups;
  for (const auto& [length, members] : by_length) {
    const auto total = static_cast<std::int64_t>(members.size());
    const std::int64_t rows = std::min(max_batch, (total + replicas - 1) / replicas);
    for (std::int64_t first = 0; first < total; first += rows) {
      const auto begin = members.begin() + first;
      groups.emplace_back(begin, begin + std::min(rows, total - first));
    }
  }
  return groups;
}

}  // namespace

std::string_view to_string(FinishReason reason) {
  switch (reason) {
    case FinishReason::end_of_document:
      return "end_of_document";
    case FinishReason::max_new_tokens:
      return "max_new_tokens";
    case FinishReason::max_seq:
      return "max_seq";
  }
  return "";
}

// A group in decoding: its requests' rows, in order of the members, are the rows of the next pass.
struct Generator::ActiveBatch {
  struct Entry {
    std::size_t index = 0;  // in the list of requests
    std::unique_ptr<detail::Decoding> decoding;
    std::int64_t num_rows = 1;
  };
  std::vector<Entry> entries;
  std::vector<detail::IndexedResult> finished;
  std::vector<std::vector<std::int64_t>> rows;  // tokens that the next pass reads
  std::int64_t first_position = 0;              // of those tokens
  std::unique_ptr<KeyValueCache> cache;

  // Gives each request its logits, drops the finished ones and sets the next pass up.
  void advance(const at::Tensor& logits_RV);
};

void Generator::ActiveBatch::advance(const at::Tensor& logits_RV) {
  first_position += static_cast<std::int64_t>(rows.front().size());
  std::vector<Entry> going_on;
  std::vector<std::int64_t> parents;
  rows.clear();
  std::int64_t first_row = 0;
  for (Entry& entry : entries) {
    const auto continuations = entry.decoding->advance(logits_RV.narrow(0, first_row, entry.num_rows));
    for (const detail::Continuation& next : continuations) {
      parents.push_back(first_row + next.parent);
      rows.push_back({next.token});
    }
    first_row += entry.num_rows;
    if (continuations.empty()) {
      finished.push_back({entry.index, entry.decoding->result()});
    } else {
      entry.num_rows = static_cast<std::int64_t>(continuations.size());
      going_on.push_back(std::move(entry));
    }
  }
  entries = std::move(going_on);
  cache->select_rows(parents);
}

Generator::Generator(const model::Transformer& model, const parallel::ProcessGrid& grid,
                     const GenerationOptions& options)
    : model_(&model), grid_(&grid), options_(options) {
  options_.validate();
}

std::vector<GenerationRequest> Generator::checked(std::span<const GenerationRequest> requests) const {
  const std::int64_t vocab = model_->config().vocab_size;
  const std::int64_t max_seq = model_->config().max_seq;
  std::vector<GenerationRequest> out(requests.begin(), requests.end());
  for (GenerationRequest& request : out) {
    if (request.prompt.empty() && options_.end_of_document >= 0) {
      request.prompt.push_back(options_.end_of_document);
    }
    if (request.prompt.empty()) {
      throw base::ConfigError(
          "generate.prompt is empty (there is no end-of-document token to start from) give a prompt");
    }
    if (static_cast<std::int64_t>(request.prompt.size()) >= max_seq) {
      throw base::ConfigError(
          "generate.prompt has {} tokens (model.max_seq is {}, no room for a new one) shorten it",
          request.prompt.size(), max_seq);
    }
    for (std::int64_t token : request.prompt) {
      if (token < 0 || token >= vocab) {
        throw base::ConfigError(
            "generate.prompt has the token id {} (the model's vocabulary is [0, {})) use the "
            "tokenizer the model was trained with",
            token, vocab);
      }
    }
  }
  return out;
}

Generator::ActiveBatch Generator::start(std::span<const GenerationRequest> requests,
                                        std::span<const std::size_t> members) const {
  ActiveBatch batch;
  for (std::size_t index : members) {
    const GenerationRequest& request = requests[index];
    batch.entries.push_back({index, detail::make_decoding(request, options_, model_->config().max_seq), 1});
    batch.rows.push_back(request.prompt);
  }
  batch.cache = std::make_unique<KeyValueCache>(model_->config().layers);
  return batch;
}

// One forward pass of this replica; without a batch it only takes part in the exchange with the others'
// experts.
void Generator::run_pass(ActiveBatch* batch, const moe::BalanceState* balance) const {
  const bool idle = batch == nullptr;
  const int tp = grid_->size(parallel::Axis::tensor);
  const std::int64_t seq = idle ? 1 : static_cast<std::int64_t>(batch->rows.front().size());
  const std::span<const std::vector<std::int64_t>> rows =
      idle ? std::span<const std::vector<std::int64_t>>{}
           : std::span<const std::vector<std::int64_t>>(batch->rows);
  const nn::TokenBatch tokens = make_token_batch(rows, seq, idle ? 0 : batch->first_position, tp);
  model::ForwardContext context;
  context.training = false;
  context.balance = balance;
  context.store = idle ? nullptr : batch->cache.get();
  const at::Tensor x_BsD = model_->embed(tokens, context);
  const at::Tensor h_BsD = model_->blocks(x_BsD, tokens, context).h_BsD;
  if (!idle) {  // the head is a matter of the replica alone
    batch->advance(model_->head_logits(h_BsD, seq - 1));
  }
}

std::vector<GenerationResult> Generator::generate(std::span<const GenerationRequest> requests,
                                                  const moe::BalanceState* balance) const {
  at::NoGradGuard no_grad;
  const std::vector<GenerationRequest> all = checked(requests);
  const auto& replicas = grid_->comm(parallel::Axis::data);
  const std::vector<Members> groups = make_groups(all, options_.max_batch, replicas.size());
  auto next_group = static_cast<std::size_t>(replicas.rank());
  std::optional<ActiveBatch> active;
  std::vector<detail::IndexedResult> finished;
  while (true) {
    if (!active && next_group < groups.size()) {
      active = start(all, groups[next_group]);
      next_group += static_cast<std::size_t>(replicas.size());
    }
    // Expert exchanges span replicas, so all make as many passes as the busiest.
    if (parallel::all_reduce_max(std::int64_t{active.has_value()}, grid_->role()) == 0) {
      break;
    }
    run_pass(active ? &*active : nullptr, balance);
    if (active && active->entries.empty()) {
      finished.insert(finished.end(), active->finished.begin(), active->finished.end());
      active.reset();
    }
  }
  return detail::gather_results(finished, all.size(), replicas);
}

}  // namespace athanor::infer
