#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include "base/error.hpp"
#include "distill/codec.hpp"
#include "distill/detail/chunk_rows.hpp"
#include "distill/detail/encode_kernels.hpp"
#include "distill/detail/sparse_kernels.hpp"
#include "kernels/element.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/parameter_map.hpp"

namespace athanor::distill {
namespace {

using kernels::accumulation_t;

template <typename A>
struct Entry {
  A logit;
  std::int32_t id;
  /// Whether this one is kept before `other`.
  bool operator<(const Entry& other) const {
    return logit > other.logit || (logit == other.logit && id < other.id);
  }
};

/// Offers entries in ascending order of id and keeps the first K by (logit descending, id ascending).
template <typename A>
class BestEntries {
 public:
  BestEntries(std::int64_t top_k, std::vector<Entry<A>>& storage) : top_k_(top_k), heap_(storage) {
    heap_.clear();
  }
  /// An equal logit of a higher id stays behind; so do NaN and padding.
  bool could_keep(A logit) const { return logit > threshold_; }
  void offer(A logit, std::int64_t id) {
    if (!could_keep(logit)) {
      return;
    }
    if (static_cast<std::int64_t>(heap_.size()) == top_k_) {
      std::pop_heap(heap_.begin(), heap_.end());
      heap_.pop_back();
    }
    heap_.push_back({logit, static_cast<std::int32_t>(id)});
    std::push_heap(heap_.begin(), heap_.end());
    if (static_cast<std::int64_t>(heap_.size()) == top_k_) {
      threshold_ = heap_.front().logit;
    }
  }

 private:
  std::int64_t top_k_;
  std::vector<Entry<A>>& heap_;  ///< the last one kept is at the front
  A threshold_ = -std::numeric_limits<A>::infinity();
};

/// Writes the sorted entries and fills the rest with "none".
template <typename A>
void write_entries(std::vector<Entry<A>>& entries, std::int64_t top_k, A* logits, std::int32_t* ids) {
  std::sort(entries.begin(), entries.end());
  for (std::int64_t k = 0; k < top_k; ++k) {
    const bool there = k < static_cast<std::int64_t>(entries.size());
    logits[k] = there ? entries[static_cast<std::size_t>(k)].logit : -std::numeric_limits<A>::infinity();
    ids[k] = there ? entries[static_cast<std::size_t>(k)].id : -1;
  }
}

/// The largest logits of each row's slice: logits [C, K] of A and ids.
template <typename T>
std::pair<at::Tensor, at::Tensor> local_topk(const at::Tensor& logits_Cv, std::int64_t first_id,
                                             std::int64_t top_k, const at::TensorOptions& numbers) {
  using A = accumulation_t<T>;
  const std::int64_t rows = logits_Cv.size(0), vocab = logits_Cv.size(1);
  const at::Tensor values = at::empty({rows, top_k}, numbers);
  const at::Tensor ids = at::empty({rows, top_k}, numbers.dtype(at::kInt));
  std::vector<Entry<A>> storage;
  std::vector<A> maxima(
      static_cast<std::size_t>((vocab + detail::maximum_block - 1) / detail::maximum_block));
  for (std::int64_t r = 0; r < rows; ++r) {
    const T* row = logits_Cv.const_data_ptr<T>() + r * vocab;
    detail::block_maxima(row, vocab, maxima.data());
    BestEntries<A> best(top_k, storage);
    for (std::size_t block = 0; block < maxima.size(); ++block) {
      if (!best.could_keep(maxima[block])) {
        continue;
      }
      const std::int64_t first = static_cast<std::int64_t>(block) * detail::maximum_block;
      for (std::int64_t i = first; i < std::min(first + detail::maximum_block, vocab); ++i) {
        best.offer(static_cast<A>(row[i]), first_id + i);
      }
    }
    write_entries(storage, top_k, values.data_ptr<A>() + r * top_k, ids.data_ptr<std::int32_t>() + r * top_k);
  }
  return {values, ids};
}

/// The best of the ranks' entries. Slices lie in rank order, so ties are decided alike everywhere.
template <typename A>
void merge_topk(const at::Tensor& all_values, const at::Tensor& all_ids, TopKSignal& signal) {
  const std::int64_t ranks = all_values.size(0), rows = all_values.size(1), top_k = all_values.size(2);
  const A* values = all_values.const_data_ptr<A>();
  const std::int32_t* ids = all_ids.const_data_ptr<std::int32_t>();
  std::vector<Entry<A>> entries;
  for (std::int64_t r = 0; r < rows; ++r) {
    entries.clear();
    for (std::int64_t rank = 0; rank < ranks; ++rank) {
      for (std::int64_t k = 0; k < top_k; ++k) {
        const std::int64_t i = (rank * rows + r) * top_k + k;
        if (ids[i] >= 0) {
          entries.push_back({values[i], ids[i]});
        }
      }
    }
    write_entries(entries, top_k, signal.logits_NK.data_ptr<A>() + r * top_k,
                  signal.ids_NK.data_ptr<std::int32_t>() + r * top_k);
  }
}

/// This rank's sums inside and outside of the kept ids at one temperature, [C, 7] of
/// detail::SparseStatistics.
template <typename T>
at::Tensor outside_statistics(const at::Tensor& logits_Cv, const TopKSignal& kept, std::int64_t first_id,
                              double temperature) {
  using A = accumulation_t<T>;
  using S = detail::SparseStatistics<A>;
  const std::int64_t rows = logits_Cv.size(0), top_k = kept.ids_NK.size(1);
  const at::Tensor statistics = detail::empty_statistics(kept.logits_NK, rows, sizeof(S) / sizeof(A));
  const at::Tensor labels = at::full({rows}, -1, at::kLong);
  const at::Tensor flags = at::full({rows}, detail::row_has_teacher, at::kByte);
  const at::Tensor inverse_t = at::full({rows}, 1.0 / temperature, kept.logits_NK.options());
  const at::Tensor nothing = at::zeros({rows, top_k}, kept.logits_NK.options());
  std::vector<T> taken(static_cast<std::size_t>(top_k));
  const detail::SparseTeacher<A> ids = {kept.ids_NK.const_data_ptr<std::int32_t>(),
                                        nothing.const_data_ptr<A>(), nothing.const_data_ptr<A>(), top_k,
                                        first_id};
  // The kernel takes the kept logits out of a row and puts them back.
  detail::sparse_statistics<T>(logits_Cv.data_ptr<T>(), ids, labels.const_data_ptr<std::int64_t>(),
                               flags.const_data_ptr<std::uint8_t>(), inverse_t.const_data_ptr<A>(), rows,
                               logits_Cv.size(1), taken.data(),
                               reinterpret_cast<S*>(statistics.data_ptr<A>()));
  return statistics;
}

/// logsumexp of all logits / T, and log of the probability outside the kept ids, of each row.
template <typename A>
struct LogSums {
  at::Tensor lse_C;
  at::Tensor log_tail_C;

  LogSums(const at::Tensor& own, double temperature, const parallel::Communicator& tp) {
    using S = detail::SparseStatistics<A>;
    const std::int64_t rows = own.size(0);
    const detail::Gathered<S, A> all{detail::gather_statistics(own, tp), tp.size(), rows};
    const A inverse_t = static_cast<A>(1.0 / temperature);
    lse_C = at::empty({rows}, own.options());
    log_tail_C = at::empty({rows}, own.options());
    for (std::int64_t r = 0; r < rows; ++r) {
      const detail::ExpSum<A> inside = detail::merge(all, r, &S::max, &S::sum_in, inverse_t);
      const detail::ExpSum<A> outside = detail::merge(all, r, &S::max_out, &S::sum_out, inverse_t);
      const bool has_outside = outside.sum > A(0);
      const A share = has_outside ? outside.sum * std::exp((outside.max - inside.max) * inverse_t) : A(0);
      const A lse = inside.max * inverse_t + std::log(inside.sum + share);
      lse_C.data_ptr<A>()[r] = lse;
      log_tail_C.data_ptr<A>()[r] =
          has_outside ? outside.log_sum(inverse_t) - lse : -std::numeric_limits<A>::infinity();
    }
  }
};

template <typename T>
TopKSignal encode(const at::Tensor& logits_Cv, std::int64_t first_id, std::int64_t top_k,
                  const std::vector<double>& temperatures, const parallel::Communicator& tp) {
  using A = accumulation_t<T>;
  const at::TensorOptions numbers =
      logits_Cv.options().dtype(parallel::accumulation_type(logits_Cv.scalar_type())).requires_grad(false);
  const auto [values, ids] = local_topk<T>(logits_Cv, first_id, top_k, numbers);
  TopKSignal signal;
  signal.logits_NK = at::empty(values.sizes(), numbers);
  signal.ids_NK = at::empty(ids.sizes(), ids.options());
  merge_topk<A>(detail::gather_statistics(values, tp), detail::gather_statistics(ids, tp), signal);
  std::vector<at::Tensor> lse, log_tail;
  for (const double temperature : temperatures) {
    const LogSums<A> sums(outside_statistics<T>(logits_Cv, signal, first_id, temperature), temperature, tp);
    lse.push_back(sums.lse_C);
    log_tail.push_back(sums.log_tail_C);
    if (temperature == 1.0) {
      signal.lse_1_N = sums.lse_C;
    }
  }
  if (!signal.lse_1_N.defined()) {
    signal.lse_1_N = LogSums<A>(outside_statistics<T>(logits_Cv, signal, first_id, 1.0), 1.0, tp).lse_C;
  }
  signal.lse_NJ = at::stack(lse, 1);
  signal.log_tail_NJ = at::stack(log_tail, 1);
  return signal;
}

}  // namespace

TopKSignal encode_topk(const at::Tensor& logits_Cv, std::int64_t first_id, std::int64_t top_k,
                       const std::vector<double>& temperatures, const parallel::Communicator& tp) {
  const at::NoGradGuard no_grad;
  ATHANOR_CHECK(logits_Cv.dim() == 2 && top_k >= 1 && !temperatures.empty(),
                "top {} of logits for {} temperatures", top_k, temperatures.size());
  const at::Tensor logits = logits_Cv.contiguous();
  TopKSignal signal;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, logits.scalar_type(), "encode_topk", [&] {
    signal = encode<scalar_t>(logits, first_id, top_k, temperatures, tp);
  });
  return signal;
}

}  // namespace athanor::distill
