// Loss and perplexity of a model on held-out token files, per domain.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/dataset.hpp"
#include "model/transformer.hpp"
#include "parallel/process_grid.hpp"

namespace athanor::infer {

struct EvaluatorOptions {
  std::int64_t rows_per_replica = 8;  ///< sequences of one replica in one forward pass
  /// At most this many sequences of each domain, the first ones; 0: all. Counted in sequences, not in passes,
  /// so that the result does not depend on the layout (training passes train.eval_batches * batch.global).
  std::int64_t max_sequences = 0;
  /// Asked on every rank of the role before each pass, where it may communicate over the role; false, on all
  /// of them alike, breaks the evaluation off. Empty: always true.
  std::function<bool()> goes_on{};
};

/// Loss of one domain, or of all.
struct DomainLoss {
  std::string domain;
  double loss = 0.0;        ///< mean nats per valid label
  double perplexity = 0.0;  ///< exp(loss); infinite when that overflows
  std::int64_t tokens = 0;  ///< valid labels
};

struct EvaluationResult {
  std::vector<DomainLoss> domains;  ///< in the order of Dataset::domain_names()
  DomainLoss total;                 ///< over all tokens; its domain is empty
  bool is_complete = true;          ///< false: broken off by EvaluatorOptions::goes_on
};

/// Scores a model. Changes nothing of it: no dropout, no statistics, balance state only read.
class Evaluator {
 public:
  /// `model` and `grid` must outlive the evaluator. Throws ConfigError for options out of range.
  Evaluator(const model::Transformer& model, const parallel::ProcessGrid& grid,
            const EvaluatorOptions& options);

  /// Collective over the role; the same result on every rank. Sequences are divided over the replicas; a
  /// replica without one takes part in the pass with zero rows. `balance` as in model::ForwardContext (the
  /// experts' biases).
  EvaluationResult evaluate(const data::Dataset& dataset, const moe::BalanceState* balance) const;

 private:
  struct Sums;
  Sums sum_domain(const data::Dataset& dataset, std::int64_t domain, const moe::BalanceState* balance) const;

  const model::Transformer* model_ = nullptr;
  const parallel::ProcessGrid* grid_ = nullptr;
  EvaluatorOptions options_;
};

}  // namespace athanor::infer
