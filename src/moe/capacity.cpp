#include "moe/capacity.hpp"

#include <algorithm>
#include <numeric>
#include <vector>

#include <ATen/ATen.h>

#include "base/error.hpp"

namespace athanor::moe {
namespace {

/// Visits the choices of one sequence in `order` and keeps them while their expert has room.
void keep_in_order(const std::int64_t* ids, const std::vector<std::int64_t>& order, std::int64_t capacity,
                   std::vector<std::int64_t>& used_E, bool* kept) {
  std::fill(used_E.begin(), used_E.end(), 0);
  for (const std::int64_t choice : order) {
    const std::int64_t expert = ids[choice];
    if (expert >= 0 && used_E[static_cast<std::size_t>(expert)] < capacity) {
      ++used_E[static_cast<std::size_t>(expert)];
      kept[choice] = true;
    }
  }
}

}  // namespace

at::Tensor keep_within_capacity(const at::Tensor& ids_BSK, const at::Tensor& scores_BSK,
                                std::int64_t num_experts, std::int64_t capacity, DropPolicy policy) {
  ATHANOR_CHECK(ids_BSK.dim() == 3 && ids_BSK.sizes() == scores_BSK.sizes(),
                "ids and scores must be [B, S, K]");
  const at::Tensor ids = ids_BSK.contiguous();
  // A NaN would break the sort; a step with one is skipped later anyway.
  const at::Tensor scores = at::nan_to_num(scores_BSK.to(at::kDouble), -1.0).contiguous();
  at::Tensor kept = at::zeros(ids.sizes(), ids.options().dtype(at::kBool));
  const std::int64_t choices = ids.size(1) * ids.size(2);
  std::vector<std::int64_t> order(static_cast<std::size_t>(choices));
  std::vector<std::int64_t> used(static_cast<std::size_t>(num_experts));
  for (std::int64_t sequence = 0; sequence < ids.size(0); ++sequence) {
    // Flattened (position, choice) order is "earlier token first, of one token the better choice first".
    std::iota(order.begin(), order.end(), 0);
    if (policy == DropPolicy::score) {
      const double* score = scores.const_data_ptr<double>() + sequence * choices;
      std::stable_sort(order.begin(), order.end(),
                       [score](std::int64_t a, std::int64_t b) { return score[a] > score[b]; });
    }
    keep_in_order(ids.const_data_ptr<std::int64_t>() + sequence * choices, order, capacity, used,
                  kept.mutable_data_ptr<bool>() + sequence * choices);
  }
  return kept;
}

}  // namespace athanor::moe
