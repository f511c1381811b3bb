// How kernel bodies are marked: arithmetic that the CPU's loops, the CUDA kernels and the tests share.
//
// A body is inlined everywhere: on the CPU into a loop's instruction set (cpu/dispatch.hpp), on the device
// into the kernel. Device code is compiled without contraction of a*b + c, so a body gives there the bits
// that it gives on a host without it; only the library functions of f64 (exp, log) may differ, by one unit.
#pragma once

#include <cstdint>

#include "device/host_device.hpp"

/// An ordinary body: a function of numbers.
#define ATHANOR_BODY [[gnu::always_inline]] ATHANOR_HD inline

/// Before a body that is a template over the team that runs it (team.hpp): of such a function nvcc must not
/// complain that its host form would call a device team.
#if defined(__CUDACC__)
#define ATHANOR_TEAM_BODY _Pragma("nv_exec_check_disable")
#else
#define ATHANOR_TEAM_BODY
#endif

namespace athanor::kernels::bodies {

/// The bits of a number as another type of its size.
template <typename To, typename From>
ATHANOR_BODY To bits_as(From x) {
  static_assert(sizeof(To) == sizeof(From));
  return __builtin_bit_cast(To, x);
}

/// condition ? a : b without a branch: where one side comes of floating-point arithmetic, which may trap, the
/// compiler would neither compute it always nor vectorise the loop.
ATHANOR_BODY std::uint32_t select(bool condition, std::uint32_t a, std::uint32_t b) {
  const std::uint32_t mask = 0u - static_cast<std::uint32_t>(condition);
  return (a & mask) | (b & ~mask);
}

}  // namespace athanor::kernels::bodies
