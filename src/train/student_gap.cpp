#include "train/student_gap.hpp"

#include <ATen/ATen.h>

#include <algorithm>

#include "nn/token_batch.hpp"
#include "parallel/autograd/functions.hpp"

namespace athanor::train {

distill::SignalGap measure_gap(const model::Transformer& model, const GapInput& input,
                               const parallel::Communicator& tp, std::int64_t chunk_tokens) {
  const at::NoGradGuard no_grad;
  const nn::TokenBatch& batch = input.rows.batch;
  const at::Tensor first_B1 = at::arange(batch.tokens_BS.size(0), at::kLong).unsqueeze(1);
  const at::Tensor tokens_M = (input.positions_BP + first_B1 * batch.tokens_BS.size(1)).flatten();
  const at::Tensor has_label_M = batch.labels_BS.flatten().index_select(0, tokens_M).ne(nn::ignored_label);
  const at::Tensor h_BSD =
      parallel::autograd::all_gather_dim(input.h_BsD.detach(), 1, tp, parallel::Traffic::other);
  const at::Tensor h_ND = h_BSD.flatten(0, 1);
  const at::Tensor teacher_Mv = input.teacher_BPv.flatten(0, 1);
  distill::SignalGap gap;
  for (std::size_t j = 0; j < input.signal.temperatures.size(); ++j) {
    at::Tensor here_M = has_label_M;
    if (input.terms.temperature_N.defined()) {
      here_M = here_M.logical_and(
          input.terms.temperature_N.index_select(0, tokens_M).eq(static_cast<std::int64_t>(j)));
    }
    const at::Tensor measured = at::nonzero(here_M).squeeze(1);
    for (std::int64_t first = 0; first < measured.numel(); first += chunk_tokens) {
      const at::Tensor chunk = measured.narrow(0, first, std::min(chunk_tokens, measured.numel() - first));
      const at::Tensor tokens = tokens_M.index_select(0, chunk);
      const at::Tensor student_Cv = at::mm(h_ND.index_select(0, tokens), model.head_weight().tensor.t());
      gap += distill::measure_gap(student_Cv, teacher_Mv.index_select(0, chunk), model.head_first_id(),
                                  input.signal.select(tokens), static_cast<std::int64_t>(j), tp);
    }
  }
  return gap;
}

}  // namespace athanor::train
