// The largest logits of each row on a GPU. The CPU's are in the distillation's codec, which has what is
// around them.
//
// Legend: rows, v vocabulary entries of this rank (may be 0), K kept, A the accumulation type.
#pragma once

#include <cstdint>

#include "device/stream_handle.hpp"
#include "kernels/element.hpp"

namespace athanor::kernels {

/// Most entries that a row's selection holds at a time: they are sorted in the shared memory of a block.
inline constexpr std::int64_t topk_capacity = 2048;

// Defined in a build with CUDA only. Pointers are to the device's memory; a call only queues its work on
// `stream`, and throws DeviceError when that is refused.
namespace cuda {

/// logits [rows, v] -> the K largest of each row with first_id + their index, largest first, equal ones by
/// ascending id: values and ids [rows, K]. NaN and -infinity are never kept; what is missing is -infinity
/// with id -1. Needs K <= topk_capacity.
template <typename T>
void topk_logits(const T* logits, std::int64_t rows, std::int64_t vocab, std::int64_t first_id,
                 std::int64_t top_k, accumulation_t<T>* values, std::int32_t* ids,
                 device::StreamHandle stream);

/// The K first of what `ranks` slices kept, [ranks, rows, K] each -> [rows, K]. Needs ranks * K <=
/// topk_capacity.
template <typename A>
void merge_topk(const A* all_values, const std::int32_t* all_ids, std::int64_t ranks, std::int64_t rows,
                std::int64_t top_k, A* values, std::int32_t* ids, device::StreamHandle stream);

}  // namespace cuda

}  // namespace athanor::kernels
