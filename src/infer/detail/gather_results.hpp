// Results of each replica's requests on every rank.
#pragma once

#include <span>
#include <vector>

#include "infer/generator.hpp"
#include "parallel/communicator.hpp"

namespace athanor::infer::detail {

/// One finished request: its index in the list of requests, and its text.
struct IndexedResult {
  std::size_t index = 0;
  GenerationResult result;
};

/// All replicas' results, `count` in all, by index. Collective over `replicas`.
std::vector<GenerationResult> gather_results(std::span<const IndexedResult> mine, std::size_t count,
                                             const parallel::Communicator& replicas);

}  // namespace athanor::infer::detail
