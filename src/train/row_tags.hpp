// Which samples a rank's rows are, for both ends of a link to compare.
#pragma once

#include <vector>

#include "data/batch.hpp"
#include "distill/link/signal_packet.hpp"

namespace athanor::train {

/// Tags of the rows of one micro-batch, or of several that follow each other.
distill::RowTags tags_of(const data::Batch& batch);
distill::RowTags tags_of(const std::vector<data::Batch>& batches);

}  // namespace athanor::train
