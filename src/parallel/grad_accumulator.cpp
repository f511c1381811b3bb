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
  empty_ = true;
}

void GradAccumulator::add(const at::Tensor& gradient) {
  ATHANOR_CHECK(is_attached() && gradient.sizes() == buffer_.sizes(),
                "a gradient without an attached buffer of its shape");
  const at::NoGradGuard no_grad;
  if (empty_) {
    buffer_.copy_(gradient);
  } else {
    buffer_.add_(gradient);
  }
  empty_ = false;
}

void GradAccumulator::add_matmul(const at::Tensor& a, const at::Tensor& b) {
  ATHANOR_CHECK(is_attached() && a.dim() == 2 && b.dim() == 2 && a.size(0) * b.size(1) == buffer_.numel(),
                "a product does not have the size of the attached gradient buffer");
  accumulate_product(buffer_.view({a.size(0), b.size(1)}), a, b, empty_);
  empty_ = false;
}

void GradAccumulator::add_matmul_part(std::int64_t index, const at::Tensor& a, const at::Tensor& b) {
  ATHANOR_CHECK(is_attached() && buffer_.dim() >= 1 && a.dim() == 2 && b.dim() == 2 &&
                    a.size(0) * b.size(1) * buffer_.size(0) == buffer_.numel(),
                "a product does not have the size of part {} of the attached gradient buffer", index);
  accumulate_product(buffer_.select(0, index).view({a.size(0), b.size(1)}), a, b, empty_);
}

void GradAccumulator::zero_part_if_empty(std::int64_t index) {
  ATHANOR_CHECK(is_attached(), "no gradient buffer is attached");
  if (empty_) {
    buffer_.select(0, index).zero_();
  }
}

void GradAccumulator::finish() {
  ATHANOR_CHECK(is_attached(), "no gradient buffer is attached");
  if (empty_) {
    buffer_.zero_();
    empty_ = false;
  }
}

}  // namespace athanor::parallel
