#include <utility>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "parallel/parameter_map.hpp"

namespace athanor::parallel {
namespace {

// target (+)= a b; straight from the GEMM when the types agree, else through one product in the compute type.
void accumulate_product(at::Tensor target, const at::Tensor& a, const at::Tensor& b, bool overwrite) {
  const at::NoGradGuard no_grad;
  if (target.scalar_type() == a.scalar_type()) {
    if (overwrite) {
      at::mm_out(target, a, b);
    } else {
      at::addmm_out(target, target, a, b);
    }
    return;
  }
  const at::Tensor product = at::mm(a, b);
  if (overwrite) {
    target.copy_(product);
  } else {
    target.add_(product);
  }
}

}  // namespace

void GradAccumulator::attach(at::Tensor buffer) {
  ATHANOR_CHECK(
      buffer.defined() && buffer.is_floating_point() && buffer.is_contiguous() && !buffer.requires_grad(),
      "a gradient buffer must be a contiguous float tensor outside autograd");
  buffer_ = std::move(buffer);
  taker_ = nullptr;
  reset();
}

void GradAccumulator::attach_taker(std::vector<std::int64_t> shape, const at::TensorOptions& options,
                                   Taker taker) {
  ATHANOR_CHECK(taker, "a gradient without storage needs someone to take it");
  buffer_.reset();
  shape_ = std::move(shape);
  options_ = options;
  taker_ = std::move(taker);
  reset();
}

// With a taker: makes the buffer for the one addition of a step.
void GradAccumulator::hold_buffer() {
  ATHANOR_CHECK(is_attached(), "no gradient buffer is attached");
  if (buffer_.defined()) {
    return;
  }
  ATHANOR_CHECK(empty_, "a second gradient of a parameter whose gradient is taken with its first addition");
  buffer_ = at::empty(shape_, options_);
}

const at::Tensor& GradAccumulator::buffer() {
  hold_buffer();
  return buffer_;
}

const at::Tensor& GradAccumulator::zeroed_buffer() {
  hold_buffer();
  check_open();
  if (empty_) {
    buffer_.zero_();
  }
  return buffer_;
}

void GradAccumulator::check_open() const {
  ATHANOR_CHECK(!closed_, "a gradient comes after its sum was closed (and sent to its owner)");
}

void GradAccumulator::mark_nonempty() {
  check_open();
  empty_ = false;
  if (taker_) {
    ATHANOR_CHECK(buffer_.defined(), "a gradient is taken before it was written");
    taker_(buffer_);
    buffer_.reset();
  }
}

void GradAccumulator::add(const at::Tensor& gradient) {
  hold_buffer();
  ATHANOR_CHECK(gradient.sizes() == buffer_.sizes(), "a gradient without an attached buffer of its shape");
  check_open();
  const at::NoGradGuard no_grad;
  if (empty_) {
    buffer_.copy_(gradient);
  } else {
    buffer_.add_(gradient);
  }
  mark_nonempty();
}

void GradAccumulator::add_matmul(const at::Tensor& a, const at::Tensor& b) {
  hold_buffer();
  ATHANOR_CHECK(a.dim() == 2 && b.dim() == 2 && a.size(0) * b.size(1) == buffer_.numel(),
                "a product does not have the size of the attached gradient buffer");
  check_open();
  accumulate_product(buffer_.view({a.size(0), b.size(1)}), a, b, empty_);
  mark_nonempty();
}

void GradAccumulator::add_matmul_part(std::int64_t index, const at::Tensor& a, const at::Tensor& b) {
  hold_buffer();
  ATHANOR_CHECK(buffer_.dim() >= 1 && a.dim() == 2 && b.dim() == 2 &&
                    a.size(0) * b.size(1) * buffer_.size(0) == buffer_.numel(),
                "a product does not have the size of part {} of the attached gradient buffer", index);
  check_open();
  accumulate_product(buffer_.select(0, index).view({a.size(0), b.size(1)}), a, b, empty_);
}

void GradAccumulator::zero_part_if_empty(std::int64_t index) {
  hold_buffer();
  check_open();
  if (empty_) {
    buffer_.select(0, index).zero_();
  }
}

void GradAccumulator::finish() {
  ATHANOR_CHECK(is_attached(), "no gradient buffer is attached");
  check_open();
  if (empty_) {
    zeroed_buffer();
    mark_nonempty();
  }
}

void GradAccumulator::close() {
  finish();
  closed_ = true;
}

}  // namespace athanor::parallel
