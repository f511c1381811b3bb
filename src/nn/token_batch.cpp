#include "nn/token_batch.hpp"

#include <algorithm>

#include "base/error.hpp"

namespace athanor::nn {

SequenceSlice SequenceSlice::of(std::int64_t padded_seq, std::int64_t real_seq, int tp_rank, int tp_size) {
  ATHANOR_CHECK(padded_seq % tp_size == 0 && real_seq <= padded_seq,
                "a sequence of {} positions ({} of them real) is cut into {} equal parts", padded_seq,
                real_seq, tp_size);
  SequenceSlice slice;
  slice.count = padded_seq / tp_size;
  slice.first = tp_rank * slice.count;
  slice.real_count = std::clamp<std::int64_t>(real_seq - slice.first, 0, slice.count);
  return slice;
}

}  // namespace athanor::nn
