// The gap between what a codec says of the teacher and the teacher's full logits, on a few tokens.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

#include "distill/distill_loss.hpp"
#include "distill/signal_gap.hpp"
#include "model/transformer.hpp"
#include "parallel/communicator.hpp"
#include "train/student_step.hpp"

namespace athanor::train {

/// What a measurement is made of, for one micro-batch.
struct GapInput {
  const StudentRows& rows;
  at::Tensor h_BsD;                      ///< the student's states after its final norm
  const distill::TokenTerms& terms;      ///< their temperatures
  const distill::TeacherSignal& signal;  ///< of all tokens
  at::Tensor teacher_BPv;                ///< the teacher's logits of the measured positions
  at::Tensor positions_BP;               ///< of those
};

/// Sums over the measured tokens that have a label, each at its own temperature, in chunks of rows: no more
/// than [chunk, v] of the student's logits exist at a time. The same on all tp ranks. Collective over tp.
distill::SignalGap measure_gap(const model::Transformer& model, const GapInput& input,
                               const parallel::Communicator& tp, std::int64_t chunk_tokens);

}  // namespace athanor::train
