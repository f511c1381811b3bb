#include "kernels/bodies/topk.hpp"
#include "kernels/cuda/device_team.cuh"

namespace athanor::kernels::cuda {

template <typename T>
void topk_logits(const T* logits, std::int64_t rows, std::int64_t vocab, std::int64_t first_id,
                 std::int64_t top_k, accumulation_t<T>* values, std::int32_t* ids,
                 device::StreamHandle stream) {
  launch_rows(bodies::TopkRow<T>{logits, vocab, first_id, top_k, values, ids}, top_k == 0 ? 0 : rows, stream,
              "topk_logits");
}

template <typename A>
void merge_topk(const A* all_values, const std::int32_t* all_ids, std::int64_t ranks, std::int64_t rows,
                std::int64_t top_k, A* values, std::int32_t* ids, device::StreamHandle stream) {
  launch_rows(bodies::MergeTopkRow<A>{all_values, all_ids, ranks, rows, top_k, values, ids},
              top_k == 0 ? 0 : rows, stream, "merge_topk");
}

#define ATHANOR_INSTANTIATE(T)                                                                   \
  template void topk_logits<T>(const T*, std::int64_t, std::int64_t, std::int64_t, std::int64_t, \
                               accumulation_t<T>*, std::int32_t*, device::StreamHandle);
ATHANOR_FOR_EACH_ELEMENT(ATHANOR_INSTANTIATE)
#undef ATHANOR_INSTANTIATE

template void merge_topk<float>(const float*, const std::int32_t*, std::int64_t, std::int64_t, std::int64_t,
                                float*, std::int32_t*, device::StreamHandle);
template void merge_topk<double>(const double*, const std::int32_t*, std::int64_t, std::int64_t, std::int64_t,
                                 double*, std::int32_t*, device::StreamHandle);

}  // namespace athanor::kernels::cuda
