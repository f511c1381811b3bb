#include "support/emulated_cuda/fibers.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <new>

namespace athanor::emulated_cuda {
namespace {

constexpr std::size_t stack_bytes = 128 * 1024;

std::size_t page_bytes() {
  return static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
}

Fibers* being_made = nullptr;  // makecontext() hands over no pointers

}  // namespace

void fill_with_poison(void* memory, std::size_t words, std::uint32_t poison) {
  auto* word = static_cast<std::uint32_t*>(memory);
  for (std::size_t i = 0; i < words; ++i) {
    word[i] = poison;
  }
}

std::byte* map_before_guard(std::size_t bytes) {
  void* memory =
      ::mmap(nullptr, bytes + page_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    throw std::bad_alloc();
  }
  auto* pages = static_cast<std::byte*>(memory);
  if (::mprotect(pages + bytes, page_bytes(), PROT_NONE) != 0) {
    throw std::bad_alloc();
  }
  return pages;
}

Fibers::~Fibers() {
  for (std::byte* stack : stacks_) {
    ::munmap(stack - page_bytes(), page_bytes() + stack_bytes + page_bytes());
  }
}

void Fibers::make(int count) {
  while (static_cast<int>(stacks_.size()) < count) {
    // Stacks grow downwards: the page that counts is the one before. The other keeps neighbours apart.
    std::byte* pages = map_before_guard(page_bytes() + stack_bytes);
    stacks_.push_back(pages + page_bytes());
    places_.emplace_back();
    if (::mprotect(pages, page_bytes(), PROT_NONE) != 0) {
      throw std::bad_alloc();
    }
  }
  for (; parked_ < count; ++parked_) {
    current_ = parked_;
    ucontext_t start;
    ::getcontext(&start);
    start.uc_stack.ss_sp = stacks_[static_cast<std::size_t>(parked_)];
    // Not all at one place of their pages, which would be one set of the cache.
    start.uc_stack.ss_size = stack_bytes - static_cast<std::size_t>(parked_ * 5 % 32) * 128;
    start.uc_link = nullptr;
    ::makecontext(&start, entry, 0);
    being_made = this;
    ::swapcontext(&maker_, &start);
  }
}

void Fibers::entry() {
  Fibers& all = *being_made;
  const auto self = static_cast<std::size_t>(all.current_);
  all.park(all.places_[self]);
  for (;;) {
    const int next = all.work_();
    if (_setjmp(all.places_[self].registers) != 0) {
      continue;  // run() starts this fiber again
    }
    if (next < 0) {
      all.leave();
    }
    all.jump_to(next);
  }
}

void Fibers::park(Place& place) {
  if (_setjmp(place.registers) == 0) {
    ::setcontext(&maker_);
  }
}

void Fibers::jump_to(int fiber) {
  current_ = fiber;
  _longjmp(places_[static_cast<std::size_t>(fiber)].registers, 1);
}

void Fibers::run(int first) {
  if (_setjmp(caller_) == 0) {
    jump_to(first);
  }
}

void Fibers::go_on_with(int next) {
  if (_setjmp(places_[static_cast<std::size_t>(current_)].registers) == 0) {
    jump_to(next);
  }
}

void Fibers::leave() {
  _longjmp(caller_, 1);
}

}  // namespace athanor::emulated_cuda
