// How far a payload's divergence is from the full one, measured on a sample of tokens.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include <ATen/core/Tensor.h>

#include "distill/codec.hpp"
#include "distill/signal.hpp"
#include "parallel/communicator.hpp"

namespace athanor::distill {

/// Sums over measured tokens; those of several micro-batches and ranks add up.
struct SignalGap {
  double payload_kl = 0.0;  ///< sum of the payload's KL (with T^2)
  double full_kl = 0.0;     ///< sum of the full KL
  double difference = 0.0;  ///< sum of |payload - full|
  std::int64_t tokens = 0;

  SignalGap& operator+=(const SignalGap& other);
};

/// Positions of a sample that are measured: ceil(fraction * seq), at least 1.
inline std::int64_t num_measured(std::int64_t seq, double fraction) {
  const auto share = static_cast<std::int64_t>(std::ceil(fraction * static_cast<double>(seq)));
  return std::clamp<std::int64_t>(share, 1, seq);
}

/// int64 [B, count]: distinct ascending positions of [0, seq) for each sample, drawn by (seed, sample):
/// teacher and student name the same ones on any layout.
at::Tensor measured_positions(const at::Tensor& sample_ids_B, std::int64_t seq, std::int64_t count,
                              std::uint64_t seed);

/// Compares the forward KL of a payload with that of the teacher's full logits on the same rows. student and
/// teacher logits [C, v] are this rank's slice from first_id on; `signal` is of these C tokens at temperature
/// number `temperature`. The same on all tp ranks. Collective over tp.
SignalGap measure_gap(const at::Tensor& student_Cv, const at::Tensor& teacher_Cv, std::int64_t first_id,
                      const TeacherSignal& signal, std::int64_t temperature,
                      const parallel::Communicator& tp);

}  // namespace athanor::distill
