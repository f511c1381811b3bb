// Run-time choice of the instruction set: each kernel body is compiled three times (x86-64 levels 4, 3 and
// the compiler's default) and the best one that this CPU has is called. The binary runs anywhere.
//
// A body is a struct with a `run` template marked ATHANOR_KERNEL_INLINE, written as plain loops that the
// compiler vectorises. Everything it calls in its loops must be ATHANOR_KERNEL_INLINE too, or it is compiled
// for the default instruction set.
#pragma once

#define ATHANOR_KERNEL_INLINE [[gnu::always_inline]] inline

namespace athanor::kernels::cpu {

enum class InstructionSet { baseline, x86_64_v3, x86_64_v4 };

/// The best level of this CPU; the same for the whole process.
inline InstructionSet instruction_set() {
#if defined(__x86_64__)
  static const InstructionSet level = __builtin_cpu_supports("x86-64-v4")   ? InstructionSet::x86_64_v4
                                      : __builtin_cpu_supports("x86-64-v3") ? InstructionSet::x86_64_v3
                                                                            : InstructionSet::baseline;
  return level;
#else
  return InstructionSet::baseline;
#endif
}

#if defined(__x86_64__)
template <typename Body, typename... Args>
[[gnu::target("arch=x86-64-v4")]] void run_x86_64_v4(Args... args) {
  Body::run(args...);
}
template <typename Body, typename... Args>
[[gnu::target("arch=x86-64-v3")]] void run_x86_64_v3(Args... args) {
  Body::run(args...);
}
#endif

/// Body::run(args...) compiled for `level` (which this CPU must have).
template <typename Body, typename... Args>
void dispatch_to(InstructionSet level, Args... args) {
#if defined(__x86_64__)
  if (level == InstructionSet::x86_64_v4) {
    return run_x86_64_v4<Body>(args...);
  }
  if (level == InstructionSet::x86_64_v3) {
    return run_x86_64_v3<Body>(args...);
  }
#endif
  static_cast<void>(level);
  Body::run(args...);
}

template <typename Body, typename... Args>
void dispatch(Args... args) {
  dispatch_to<Body>(instruction_set(), args...);
}

}  // namespace athanor::kernels::cpu
