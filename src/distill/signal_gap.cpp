#include "distill/signal_gap.hpp"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

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

at::Tensor measured_positions(const at::Tensor& sample_ids_B, std::int64_t seq, std::int64_t count,
                              std::uint64_t seed) {
  const base::PhiloxStream stream(seed, base::RandomPurpose::signal_sampling, "distill.gap");
  const at::Tensor samples_B = sample_ids_B.contiguous();
  const at::Tensor positions_BP = at::empty({samples_B.numel(), count}, at::kLong);
  std::vector<std::pair<std::uint64_t, std::int64_t>> keys(static_cast<std::size_t>(seq));
  for (std::int64_t row = 0; row < samples_B.numel(); ++row) {
    const auto sample = static_cast<std::uint64_t>(samples_B.const_data_ptr<std::int64_t>()[row]);
    for (std::int64_t position = 0; position < seq; ++position) {
      keys[static_cast<std::size_t>(position)] = {stream.bits(sample, static_cast<std::uint64_t>(position)),
                                                  position};
    }
    std::nth_element(keys.begin(), keys.begin() + (count - 1), keys.end());
    auto* positions = positions_BP.mutable_data_ptr<std::int64_t>() + row * count;
    std::transform(keys.begin(), keys.begin() + count, positions, [](const auto& key) { return key.second; });
    std::sort(positions, positions + count);
  }
  return positions_BP;
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
