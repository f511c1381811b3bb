// Launches, and the meetings of a block's threads.
#include <cuda_runtime.h>
#include <cxxabi.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "support/emulated_cuda/emulated_cuda.hpp"
#include "support/emulated_cuda/fibers.hpp"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace athanor::kernels::cuda {
// What block_memory() of launch_kernel.cuh declares, and room to see writes past what a launch asked for.
constexpr std::size_t watched_words = 256;
extern uint4 words_of_block[emulated_cuda::most_shared_bytes / sizeof(uint4) + watched_words];
uint4 words_of_block[emulated_cuda::most_shared_bytes / sizeof(uint4) + watched_words];
}  // namespace athanor::kernels::cuda

namespace athanor::emulated_cuda {
namespace {

constexpr unsigned warp_threads = 32;

/// Threads that wait for each other.
struct Meeting {
  int expected = 0;
  std::uint64_t number = 0;  // how many have taken place
  Place place;
  std::vector<int> waiting{};

  void start(int threads) {
    expected = threads;
    number = 0;
    waiting.clear();
  }
};

struct Warp {
  Meeting meeting;
  // Of shuffles by turns: a thread may be one ahead of those that still read.
  std::array<std::array<std::uint32_t, warp_threads>, 2> words;
};

bool same(const Place& a, const Place& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

std::string text(const Place& place) {
  return fmt::format("{}:{}", place.file_name(), place.line());
}

std::string demangled(const char* name) {
  int status = 0;
  char* readable = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  const std::string out = status == 0 ? readable : name;
  std::free(readable);
  return out;
}

/// The kernel's name where the program exports it, else its type, which has the body's name in it.
std::string kernel_name(const void* kernel, const std::type_info& type) {
  Dl_info info{};
  if (::dladdr(kernel, &info) != 0 && info.dli_sname != nullptr && info.dli_saddr == kernel) {
    return demangled(info.dli_sname);
  }
  return demangled(type.name());
}

class Block {
 public:
  Block();
  void seed(std::uint64_t seed) { random_ = seed * 0x9e3779b97f4a7c15u + 1; }
  /// Throws KernelError.
  void run(void (*thread)(const void*), const void* context, const dim3& size, std::size_t shared_bytes);

  void meet(Meeting& meeting, const Place& place);
  Meeting& block_meeting() { return block_; }
  Warp& warp() { return warps_[static_cast<std::size_t>(fibers_.current()) / warp_threads]; }
  unsigned lane() const { return static_cast<unsigned>(fibers_.current()) % warp_threads; }
  void require_whole_warp(unsigned mask, const Place& place);
  void disturb();
  [[noreturn]] void fail(std::string what);

  /// The body of all fibers: one thread; returns the next.
  int run_thread();

 private:
  std::uint64_t random();
  int take_ready();
  void go_on_with(int thread);
  std::string who_waits() const;
  void check_shared_memory();

  Fibers fibers_;
  Meeting block_;
  std::vector<Warp> warps_;
  std::vector<int> ready_;
  std::vector<uint3> places_;
  bool newest_first_ = false;
  int left_ = 0;
  std::string failure_;
  void (*thread_)(const void*) = nullptr;
  const void* context_ = nullptr;
  std::size_t shared_words_ = 0;
  std::uint32_t poison_ = 0;
  std::uint64_t random_ = 1;
};

Block& the_block() {
  static Block block;
  return block;
}

Block* running = nullptr;  // the_block(), without asking whether it has been made

Block::Block() : fibers_([] { return running->run_thread(); }) {
  const char* value = std::getenv("ATHANOR_EMULATED_CUDA_SEED");
  seed(value == nullptr ? 1 : std::strtoull(value, nullptr, 10));
}

std::uint64_t Block::random() {  // xorshift*
  random_ ^= random_ >> 12;
  random_ ^= random_ << 25;
  random_ ^= random_ >> 27;
  return random_ * 0x2545f4914f6cdd1du >> 32;
}

/// A thread that may run. Blocks by turns let any thread go on, or those that came free last: then some warps
/// run far ahead of others.
int Block::take_ready() {
  if (!newest_first_) {
    std::swap(ready_[random() % ready_.size()], ready_.back());
  }
  const int thread = ready_.back();
  ready_.pop_back();
  return thread;
}

int Block::run_thread() {
  threadIdx = places_[static_cast<std::size_t>(fibers_.current())];
  thread_(context_);
  --left_;
  if (ready_.empty()) {
    return -1;
  }
  const int next = take_ready();
  threadIdx = places_[static_cast<std::size_t>(next)];
  return next;
}

void Block::go_on_with(int thread) {
  const int self = fibers_.current();
  if (thread != self) {
    threadIdx = places_[static_cast<std::size_t>(thread)];
    fibers_.go_on_with(thread);
  }
}

void Block::meet(Meeting& meeting, const Place& place) {
  if (meeting.waiting.empty()) {
    meeting.place = place;
  } else if (!same(meeting.place, place)) {
    fail(fmt::format("thread {} is at {} while {}", fibers_.current(), text(place), who_waits()));
  }
  meeting.waiting.push_back(fibers_.current());
  if (static_cast<int>(meeting.waiting.size()) == meeting.expected) {
    ++meeting.number;
    ready_.insert(ready_.end(), meeting.waiting.begin(), meeting.waiting.end());
    meeting.waiting.clear();
  }
  if (ready_.empty()) {
    fibers_.leave();  // run() sees who waits for whom
  }
  go_on_with(take_ready());
}

void Block::disturb() {
  if (random() % 4 == 0) {
    ready_.push_back(fibers_.current());
    std::swap(ready_[random() % ready_.size()], ready_.back());
    go_on_with(take_ready());
  }
}

void Block::require_whole_warp(unsigned mask, const Place& place) {
  const auto threads = static_cast<unsigned>(warp().meeting.expected);
  const unsigned whole = threads == warp_threads ? 0xffffffffu : (1u << threads) - 1;
  if ((mask & whole) != whole) {
    fail(fmt::format(
        "thread {} is at {} with the mask {:#x}, which leaves lanes of its warp out; the double knows "
        "whole warps only",
        fibers_.current(), text(place), mask));
  }
}

void Block::fail(std::string what) {
  failure_ = std::move(what);
  fibers_.leave();
}

std::string Block::who_waits() const {
  std::string out;
  const auto add = [&](const char* unit, std::size_t number, const Meeting& meeting) {
    if (!meeting.waiting.empty()) {
      out += fmt::format("{}{} of {} threads of {} {} wait at {} (the first is {})", out.empty() ? "" : ", ",
                         meeting.waiting.size(), meeting.expected, unit, number, text(meeting.place),
                         meeting.waiting.front());
    }
  };
  add("block", blockIdx.x, block_);
  for (std::size_t w = 0; w < warps_.size(); ++w) {
    add("warp", w, warps_[w].meeting);
  }
  return out;
}

void Block::check_shared_memory() {
  const auto* words = reinterpret_cast<const std::uint32_t*>(kernels::cuda::words_of_block);
  for (std::size_t i = shared_words_; i < shared_words_ + 4 * kernels::cuda::watched_words; ++i) {
    if (words[i] != poison_) {
      failure_ = fmt::format("byte {} of shared memory was written, and the launch asked for {}", 4 * i,
                             4 * shared_words_);
      return;
    }
  }
}

void Block::run(void (*thread)(const void*), const void* context, const dim3& size,
                std::size_t shared_bytes) {
  const unsigned threads = size.x * size.y * size.z;
  fibers_.make(static_cast<int>(threads));
  block_.start(static_cast<int>(threads));
  warps_.resize((threads + warp_threads - 1) / warp_threads);
  for (std::size_t w = 0; w < warps_.size(); ++w) {
    warps_[w].meeting.start(
        static_cast<int>(std::min<std::size_t>(warp_threads, threads - w * warp_threads)));
  }
  places_.resize(threads);
  ready_.clear();
  for (unsigned t = 0; t < threads; ++t) {
    places_[t] = {t % size.x, t / size.x % size.y, t / size.x / size.y};
    ready_.push_back(static_cast<int>(t));
    std::swap(ready_[random() % ready_.size()], ready_.back());
  }
  newest_first_ = random() % 2 == 0;
  constexpr std::array<std::uint32_t, 3> poisons = {nan_poison, 0xdeadbeefu,
                                                    0x7f7fdeadu};  // and huge numbers
  poison_ = poisons[random() % poisons.size()];
  shared_words_ = (shared_bytes + 3) / 4;
  fill_with_poison(kernels::cuda::words_of_block, shared_words_ + 4 * kernels::cuda::watched_words, poison_);
  left_ = static_cast<int>(threads);
  thread_ = thread;
  context_ = context;
  failure_.clear();
  fibers_.run(take_ready());
  if (failure_.empty() && left_ > 0) {
    failure_ = fmt::format("{}, for threads that do not come: {} have returned from the kernel", who_waits(),
                           static_cast<int>(threads) - left_);
  }
  if (failure_.empty()) {
    check_shared_memory();
  }
  if (!failure_.empty()) {
    fibers_.restart_all();
    throw KernelError(failure_);
  }
}

cudaError_t last_error = cudaSuccess;

cudaError_t refusal_of(const cudaLaunchConfig_t& config) {
  const dim3 &grid = config.gridDim, &block = config.blockDim;
  const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
  if (grid.x == 0 || grid.x > 2147483647u || grid.y == 0 || grid.y > 65535 || grid.z == 0 || grid.z > 65535 ||
      threads == 0 || block.x > 1024 || block.y > 1024 || block.z > 64 || threads > most_block_threads) {
    return cudaErrorInvalidConfiguration;
  }
  if (config.dynamicSmemBytes > most_shared_bytes || config.numAttrs != 0) {
    return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

}  // namespace

void set_seed(std::uint64_t seed) {
  the_block().seed(seed);
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, const std::type_info& type,
                   void (*thread)(const void*), const void* context) {
  const cudaError_t refusal = refusal_of(config);
  if (refusal != cudaSuccess) {
    last_error = refusal;
    return refusal;
  }
  running = &the_block();
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  for (unsigned z = 0; z < gridDim.z; ++z) {
    for (unsigned y = 0; y < gridDim.y; ++y) {
      for (unsigned x = 0; x < gridDim.x; ++x) {
        blockIdx = {x, y, z};
        try {
          running->run(thread, context, blockDim, config.dynamicSmemBytes);
        } catch (const KernelError& error) {
          throw KernelError(fmt::format("kernel {}, block ({}, {}, {}): {}", kernel_name(kernel, type), x, y,
                                        z, error.what()));
        }
      }
    }
  }
  return cudaSuccess;
}

void block_barrier(const Place& place) {
  running->meet(running->block_meeting(), place);
}

void warp_barrier(unsigned mask, const Place& place) {
  running->require_whole_warp(mask, place);
  running->meet(running->warp().meeting, place);
}

std::uint32_t shuffle(unsigned mask, std::uint32_t word, unsigned from, const Place& place) {
  Block& block = *running;
  block.require_whole_warp(mask, place);
  Warp& warp = block.warp();
  auto& words = warp.words[warp.meeting.number % 2];
  const unsigned source = from < warp_threads ? from : block.lane();
  if (source >= static_cast<unsigned>(warp.meeting.expected)) {
    block.fail(fmt::format("lane {} reads lane {} at {}, and its warp has {}", block.lane(), source,
                           text(place), warp.meeting.expected));
  }
  words[block.lane()] = word;
  block.meet(warp.meeting, place);
  return words[source];
}

unsigned lane() {
  return running->lane();
}

void disturb() {
  running->disturb();
}

}  // namespace athanor::emulated_cuda

const char* cudaGetErrorName(cudaError_t status) {
  switch (status) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    default:
      return "an error that the double does not make";
  }
}

const char* cudaGetErrorString(cudaError_t status) {
  return status == cudaSuccess ? "no error" : "the launch is over CUDA's limits";
}

cudaError_t cudaGetLastError() {
  return std::exchange(athanor::emulated_cuda::last_error, cudaSuccess);
}
