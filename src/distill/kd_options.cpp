#include "distill/kd_options.hpp"

#include <array>

#include "base/error.hpp"

namespace athanor::distill {

std::string_view name_of(KdLoss loss) {
  constexpr std::array<std::string_view, 6> names = {"forward_kl",      "reverse_kl", "skew_kl",
                                                     "skew_reverse_kl", "jsd",        "logit_mse"};
  return names[static_cast<std::size_t>(loss)];
}

KdOptions KdOptions::canonical() const {
  KdOptions result = *this;
  if ((loss == KdLoss::skew_kl && skew == 0.0) || (loss == KdLoss::jsd && beta == 0.0)) {
    result.loss = KdLoss::forward_kl;
  } else if ((loss == KdLoss::skew_reverse_kl && skew == 0.0) || (loss == KdLoss::jsd && beta == 1.0)) {
    result.loss = KdLoss::reverse_kl;
  }
  return result;
}

void validate(const KdOptions& options, PayloadKind payload) {
  if (!(options.skew >= 0.0 && options.skew < 1.0)) {
    throw base::ConfigError("the skew {} is out of range (at 1 the loss is 0 everywhere) give 0 to below 1",
                            options.skew);
  }
  if (!(options.beta >= 0.0 && options.beta <= 1.0)) {
    throw base::ConfigError("the beta {} of jsd is out of range (it is the teacher's share) give 0 to 1",
                            options.beta);
  }
  const bool partial = payload == PayloadKind::topk || payload == PayloadKind::sampled;
  if (partial && options.canonical().loss != KdLoss::forward_kl) {
    throw base::ConfigError(
        "the loss {} cannot be computed from the payload {} (it needs the teacher's probability of every id "
        "that "
        "the student may choose) use forward_kl, or the codec hidden or full",
        name_of(options.loss), name_of(payload));
  }
}

}  // namespace athanor::distill
