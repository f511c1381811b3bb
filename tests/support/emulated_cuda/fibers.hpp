// Contexts of execution that the threads of an emulated block run on, and the memory they need.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace athanor::emulated_cuda {

/// NaN as f32 and, twice, as f64; not small as an integer.
inline constexpr std::uint32_t nan_poison = 0x7ff4deadu;
void fill_with_poison(void* memory, std::size_t words, std::uint32_t poison);

/// `bytes` (whole pages) of zeros with a page without access behind them; to be unmapped with that page.
std::byte* map_before_guard(std::size_t bytes);

/// Fibers that run work() again and again. Made once: between two runs of a fiber there is no system call.
class Fibers {
 public:
  /// `work` runs on the current fiber and returns the number of the one that goes on, or -1 for the caller of
  /// run().
  explicit Fibers(int (*work)()) : work_(work) {}
  ~Fibers();
  Fibers(const Fibers&) = delete;
  Fibers& operator=(const Fibers&) = delete;

  /// At least `count` fibers, all at their start; also those that were left in the middle.
  void make(int count);
  void restart_all() { parked_ = 0; }

  /// From outside: lets fiber `first` run; returns when some fiber calls leave() or work() returns -1.
  void run(int first);
  /// On a fiber: goes on with fiber `next`; returns when somebody goes on with this one.
  void go_on_with(int next);
  /// On a fiber: back to run()'s caller, for good (until make() starts it again).
  [[noreturn]] void leave();
  int current() const { return current_; }

 private:
  struct Place {
    jmp_buf registers;
  };
  static void entry();
  void park(Place& place);
  [[noreturn]] void jump_to(int fiber);

  int (*work_)();
  std::vector<std::byte*> stacks_;
  std::vector<Place> places_;
  int parked_ = 0;  // the first so many are at their start
  int current_ = -1;
  jmp_buf caller_;
  ucontext_t maker_;
};

}  // namespace athanor::emulated_cuda
