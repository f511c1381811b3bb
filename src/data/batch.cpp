#include "data/batch.hpp"

#include <algorithm>

namespace athanor::data {

std::int64_t Batch::valid_labels() const {
  return std::count_if(labels.begin(), labels.end(), [](std::int32_t label) { return label >= 0; });
}

}  // namespace athanor::data
