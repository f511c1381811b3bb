#include "optim/optim_options.hpp"

#include <cmath>
#include <string_view>

#include "base/error.hpp"

namespace athanor::optim {
namespace {

void require(bool legal, std::string_view option, double value, std::string_view why,
             std::string_view legal_values) {
  if (!legal) {
    throw base::ConfigError("optim.{}={} ({}) set {}", option, value, why, legal_values);
  }
}

bool is_finite_non_negative(double value) {
  return std::isfinite(value) && value >= 0.0;
}

}  // namespace

void validate(const OptimOptions& options) {
  require(is_finite_non_negative(options.lr), "lr", options.lr,
          "a learning rate is a finite number from 0 up", "optim.lr >= 0");
  require(is_finite_non_negative(options.min_lr), "min_lr", options.min_lr,
          "a learning rate is a finite number from 0 up", "optim.min_lr >= 0");
  const bool decays = options.schedule != ScheduleKind::constant;
  require(!decays || options.min_lr <= options.lr, "min_lr", options.min_lr,
          "the schedule ends there and cannot end above optim.lr", "optim.min_lr <= optim.lr");
  require(options.beta1 >= 0.0 && options.beta1 < 1.0, "beta1", options.beta1,
          "it is the weight of an average", "0 <= optim.beta1 < 1");
  require(options.beta2 >= 0.0 && options.beta2 < 1.0, "beta2", options.beta2,
          "it is the weight of an average", "0 <= optim.beta2 < 1");
  require(std::isfinite(options.eps) && options.eps > 0.0, "eps", options.eps,
          "it keeps the update of a parameter without gradient finite", "optim.eps > 0");
  require(is_finite_non_negative(options.weight_decay), "weight_decay", options.weight_decay,
          "a negative decay lets weights grow without bound", "optim.weight_decay >= 0");
  require(options.warmup_steps >= 0, "warmup_steps", static_cast<double>(options.warmup_steps),
          "it counts steps", "optim.warmup_steps >= 0");
  require(is_finite_non_negative(options.clip), "clip", options.clip, "it is a norm; 0 means no clipping",
          "optim.clip >= 0");
  require(options.zero == 0 || options.zero == 1, "zero", static_cast<double>(options.zero),
          "only the optimizer's state can be sharded", "optim.zero to 0 or 1");
  require(options.max_skips >= 1, "max_skips", static_cast<double>(options.max_skips),
          "it counts steps until the run stops", "optim.max_skips >= 1");
  ATHANOR_CHECK(options.bucket_elements >= 1, "a bucket needs elements, not {}", options.bucket_elements);
}

namespace {

// What is stored is what travels, so it travels in FP8 as it is.
void validate_stored(const GradientWire& wire) {
  const char* name = wire.stored == StoredGradients::all ? "all" : "experts";
  if (wire.stored != StoredGradients::none && wire.type != base::WireType::fp8) {
    throw base::ConfigError(
        "precision.store_gradients={} (precision.grad_comm={}: a gradient that waits in FP8 would not be "
        "what "
        "travels) set precision.grad_comm=fp8 or precision.store_gradients=none",
        name, wire.type == base::WireType::full ? "full" : "bf16");
  }
  if (wire.stored != StoredGradients::none && wire.error_feedback) {
    throw base::ConfigError(
        "precision.store_gradients={} (precision.error_feedback=true keeps 4 bytes for each gradient, more "
        "than "
        "storing them in FP8 saves) leave one of the two out",
        name);
  }
}

}  // namespace

void validate(const GradientWire& wire, const OptimOptions& options, bool is_f64) {
  validate_stored(wire);
  if (wire.type == base::WireType::full) {
    if (wire.error_feedback) {
      throw base::ConfigError(
          "precision.error_feedback=true (precision.grad_comm=full rounds nothing that could be fed back) "
          "leave it out or set precision.grad_comm to bf16 or fp8");
    }
    return;
  }
  const char* name = wire.type == base::WireType::bf16 ? "bf16" : "fp8";
  if (is_f64) {
    throw base::ConfigError("precision.grad_comm={} (precision.compute=f64 sends full values only) use full",
                            name);
  }
  if (options.zero != 1) {
    throw base::ConfigError(
        "precision.grad_comm={} (optim.zero={}: sums that every holder needs would be rounded twice) use "
        "optim.zero=1 or precision.grad_comm=full",
        name, options.zero);
  }
}

}  // namespace athanor::optim
