// The number formats a user can choose: of the computation and of what goes over the wire.
#pragma once

namespace athanor::base {

/// Type of weights and activations in forward and backward (`precision.compute`). f64 is for tests: the
/// accumulation type (gradients, master weights, statistics, wire) is then f64 too; it is f32 for the other
/// three.
enum class ComputeType { f32, bf16, fp16, f64 };

/// Type of a payload on the wire; `full` is the accumulation type.
enum class WireType { full, bf16, fp8 };

/// The two FP8 formats (OCP): 4 exponent and 3 mantissa bits, or 5 and 2.
enum class Fp8Format { e4m3, e5m2 };

}  // namespace athanor::base
