#include "distill/signal_gap.hpp"

#include <ATen/ATen.h>

#include "base/philox.hpp"
#include "distill/distill_loss.hpp"

namespace athanor::distill {

SignalGap& SignalGap::operator+=(const SignalGap& other) {
  payload_kl += other.payload_kl;
  full_kl += other.full_kl;
  difference += other.difference;
  tokens += other.tokens;
  return *this;
}

at::Tensor measured_tokens(const TokenPlaces& places, double fraction, std::uint64_t seed) {
  const base::PhiloxStream stream(seed, base::RandomPurpose::signal_sampling, "distill.gap");
  const at::Tensor samples = places.sample_ids_C.contiguous(), positions = places.positions_C.contiguous();
  const at::Tensor measured = at::zeros({samples.numel()}, at::kBool);
  for (std::int64_t i = 0; i < samples.numel(); ++i) {
    measured.data_ptr<bool>()[i] =
        stream.uniform(static_cast<std::uint64_t>(samples.const_data_ptr<std::int64_t>()[i]),
                       static_cast<std::uint64_t>(positions.const_data_ptr<std::int64_t>()[i])) < fraction;
  }
  return measured;
}

SignalGap measure_gap(const at::Tensor& student_Cv, const at::Tensor& teacher_Cv, std::int64_t first_id,
                      const TeacherSignal& signal, std::int64_t temperature,
                      const parallel::Communicator& tp) {
  const double t = signal.temperatures[static_cast<std::size_t>(temperature)];
  const at::Tensor payload = payload_kl(student_Cv, first_id, signal, t, tp).value_C.to(at::kDouble);
  const at::Tensor full = forward_kl(student_Cv, teacher_Cv, t, tp).value_C.to(at::kDouble);
  return {payload.sum().item<double>(), full.sum().item<double>(),
          (payload - full).abs().sum().item<double>(), payload.numel()};
}

}  // namespace athanor::distill
