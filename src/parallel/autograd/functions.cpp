#include "parallel/autograd/functions.hpp"

#include <cstdint>
#include <utility>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/error.hpp"
#include "parallel/collectives/collectives.hpp"

namespace athanor::parallel::autograd {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// The graph keeps addresses of communicators, which outlive the backward pass by the contract of the header.
void save_comm(AutogradContext* ctx, const Communicator& comm) {
  ctx->saved_data["comm"] = static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(&comm));
}

const Communicator& saved_comm(AutogradContext* ctx) {
  return *reinterpret_cast<const Communicator*>(static_cast<std::intptr_t>(ctx->saved_data["comm"].toInt()));
}

void save_purpose(AutogradContext* ctx, Traffic purpose) {
  ctx->saved_data["purpose"] = static_cast<std::int64_t>(purpose);
}

Traffic saved_purpose(AutogradContext* ctx) {
  return static_cast<Traffic>(ctx->saved_data["purpose"].toInt());
}

std::int64_t checked_dim(const at::Tensor& x, std::int64_t dim) {
  const std::int64_t wrapped = dim < 0 ? dim + x.dim() : dim;
  ATHANOR_CHECK(wrapped >= 0 && wrapped < x.dim(), "dimension {} of a tensor of {}", dim, x.dim());
  return wrapped;
}

// [.., d, ..] on each of n ranks -> [.., n * d, ..] on all.
at::Tensor gather_dim(const at::Tensor& x, std::int64_t dim, const Communicator& comm, Traffic purpose) {
  const at::Tensor stacked = all_gather(x.unsqueeze(0), comm, purpose);  // [n, .., d, ..]
  return stacked.movedim(0, dim).flatten(dim, dim + 1);
}

// [.., n * d, ..] on each of n ranks -> the sum's [.., d, ..] of this rank.
at::Tensor scatter_dim(const at::Tensor& x, std::int64_t dim, const Communicator& comm, Traffic purpose) {
  const std::int64_t size = comm.size();
  ATHANOR_CHECK(x.size(dim) % size == 0,
                "a reduce-scatter of a dimension of {} over the {} ranks of group {}", x.size(dim), size,
                comm.name());
  const at::Tensor stacked = x.unflatten(dim, {size, x.size(dim) / size}).movedim(dim, 0);  // [n, .., d, ..]
  return reduce_scatter_sum(stacked, comm, purpose).squeeze(0);
}

at::Tensor all_reduced(const at::Tensor& x, const Communicator& comm, Traffic purpose) {
  at::Tensor sum = x.clone(at::MemoryFormat::Contiguous);
  all_reduce_(sum, ReduceOp::sum, comm, purpose);
  return sum;
}

struct AllGatherDim : Function<AllGatherDim> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, std::int64_t dim,
                            const Communicator& comm, Traffic purpose) {
    save_comm(ctx, comm);
    save_purpose(ctx, purpose);
    ctx->saved_data["dim"] = dim;
    return gather_dim(x, dim, comm, purpose);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    return {scatter_dim(grads[0], ctx->saved_data["dim"].toInt(), saved_comm(ctx), saved_purpose(ctx)),
            {},
            {},
            {}};
  }
};

struct ReduceScatterDim : Function<ReduceScatterDim> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, std::int64_t dim,
                            const Communicator& comm, Traffic purpose) {
    save_comm(ctx, comm);
    save_purpose(ctx, purpose);
    ctx->saved_data["dim"] = dim;
    return scatter_dim(x, dim, comm, purpose);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    return {gather_dim(grads[0], ctx->saved_data["dim"].toInt(), saved_comm(ctx), saved_purpose(ctx)),
            {},
            {},
            {}};
  }
};

struct CopyToGroup : Function<CopyToGroup> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const Communicator& comm,
                            Traffic purpose) {
    save_comm(ctx, comm);
    save_purpose(ctx, purpose);
    return x.view_as(x);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    return {all_reduced(grads[0], saved_comm(ctx), saved_purpose(ctx)), {}, {}};
  }
};

struct ReduceFromGroup : Function<ReduceFromGroup> {
  static at::Tensor forward(AutogradContext* /*ctx*/, const at::Tensor& x, const Communicator& comm,
                            Traffic purpose) {
    return all_reduced(x, comm, purpose);
  }
  static variable_list backward(AutogradContext* /*ctx*/, const variable_list& grads) {
    return {grads[0], {}, {}};
  }
};

struct AllToAllV : Function<AllToAllV> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x,
                            const std::vector<std::int64_t>& send_rows,
                            const std::vector<std::int64_t>& receive_rows, const Communicator& comm,
                            Traffic forward_purpose, Traffic backward_purpose) {
    save_comm(ctx, comm);
    save_purpose(ctx, backward_purpose);
    ctx->saved_data["send_rows"] = send_rows;
    ctx->saved_data["receive_rows"] = receive_rows;
    return parallel::all_to_all_v(x, send_rows, receive_rows, comm, forward_purpose);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto send_rows = ctx->saved_data["send_rows"].toIntVector();
    const auto receive_rows = ctx->saved_data["receive_rows"].toIntVector();
    const at::Tensor grad =
        parallel::all_to_all_v(grads[0], receive_rows, send_rows, saved_comm(ctx), saved_purpose(ctx));
    return {grad, {}, {}, {}, {}, {}};
  }
};

}  // namespace

at::Tensor all_gather_dim(const at::Tensor& x, std::int64_t dim, const Communicator& comm, Traffic purpose) {
  return comm.size() == 1 ? x : AllGatherDim::apply(x, checked_dim(x, dim), comm, purpose);
}

at::Tensor reduce_scatter_dim(const at::Tensor& x, std::int64_t dim, const Communicator& comm,
                              Traffic purpose) {
  return comm.size() == 1 ? x : ReduceScatterDim::apply(x, checked_dim(x, dim), comm, purpose);
}

at::Tensor copy_to_group(const at::Tensor& x, const Communicator& comm, Traffic purpose) {
  return comm.size() == 1 ? x : CopyToGroup::apply(x, comm, purpose);
}

at::Tensor reduce_from_group(const at::Tensor& x, const Communicator& comm, Traffic purpose) {
  return comm.size() == 1 ? x : ReduceFromGroup::apply(x, comm, purpose);
}

at::Tensor all_to_all_v(const at::Tensor& x, std::vector<std::int64_t> send_rows,
                        std::vector<std::int64_t> receive_rows, const Communicator& comm,
                        Traffic forward_purpose, Traffic backward_purpose) {
  return comm.size() == 1
             ? x
             : AllToAllV::apply(x, send_rows, receive_rows, comm, forward_purpose, backward_purpose);
}

}  // namespace athanor::parallel::autograd
