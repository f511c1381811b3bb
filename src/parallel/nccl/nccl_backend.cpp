#include "parallel/nccl/nccl_backend.hpp"

#include <algorithm>
#include <cstddef>
#include <utility>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "parallel/collectives/detail/shapes.hpp"
#include "parallel/detail/mpi_handle.hpp"
#include "parallel/nccl/piece_plan.hpp"

namespace athanor::parallel {
namespace {

// The calls between construction and close() are launched as one operation. Also closed while an error
// unwinds the stack: groups are counted by thread, not by communicator.
class Group {
 public:
  Group(NcclApi& api, NcclComm& comm, const NcclOperation& operation)
      : api_(api), comm_(comm), operation_(operation) {
    comm_.check(operation_, api_.group_start(), "ncclGroupStart");
  }
  ~Group() {
    if (is_open_) {
      api_.group_end();
    }
  }
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;
  void close() {
    is_open_ = false;
    comm_.check(operation_, api_.group_end(), "ncclGroupEnd");
    comm_.settle(operation_);
  }

 private:
  NcclApi& api_;
  NcclComm& comm_;
  const NcclOperation& operation_;
  bool is_open_ = true;
};

NcclType integer_type(at::ScalarType type) {
  switch (type) {
    case at::kInt:
      return NcclType::int32;
    case at::kLong:
      return NcclType::int64;
    case at::kByte:
    case at::kBool:
      return NcclType::uint8;
    default:
      throw base::InternalError(
          "all_reduce_integers got {} (int32, int64, uint8 and bool are supported) convert the tensor",
          c10::toString(type));
  }
}

NcclType float_type(at::ScalarType type) {
  return type == at::kDouble ? NcclType::float64 : NcclType::float32;
}

// A sum of bools is their disjunction.
NcclReduction reduction(ReduceOp op, at::ScalarType type) {
  if (op == ReduceOp::min) {
    return NcclReduction::min;
  }
  return op == ReduceOp::sum && type != at::kBool ? NcclReduction::sum : NcclReduction::max;
}

std::vector<std::int64_t> sizes_of(auto parts) {
  std::vector<std::int64_t> sizes;
  for (const auto& part : parts) {
    sizes.push_back(static_cast<std::int64_t>(part.size()));
  }
  return sizes;
}

std::size_t element_count(const at::Tensor& tensor) {
  return static_cast<std::size_t>(tensor.numel());
}

std::size_t byte_count(const at::Tensor& tensor) {
  return static_cast<std::size_t>(detail::total_bytes(tensor));
}

}  // namespace

// An exchange that the host does not wait for.
class NcclBackend::Started final : public StartedExchange {
 public:
  Started(NcclBackend& backend, const NcclOperation& operation, device::EventHandle ended)
      : backend_(backend), operation_(operation), ended_(ended) {}
  ~Started() override { backend_.events_.give_back(ended_); }
  Started(const Started&) = delete;
  Started& operator=(const Started&) = delete;

  bool test() override {
    if (!backend_.comm_.test(operation_, ended_)) {
      return false;
    }
    backend_.api_.wait_event(backend_.api_.compute_stream(), ended_);
    return true;
  }
  void wait() override { backend_.let_compute_wait(operation_, ended_); }
  bool give_up() noexcept override {
    try {
      return backend_.comm_.is_aborted() || backend_.api_.query_event(ended_);
    } catch (...) {  // the caller keeps the memory
      return false;
    }
  }

 private:
  NcclBackend& backend_;
  NcclOperation operation_;
  device::EventHandle ended_;
};

NcclBackend::NcclBackend(const detail::CommunicatorState& state, std::shared_ptr<NcclRuntime> runtime)
    : state_(state),
      runtime_(std::move(runtime)),
      api_(runtime_->api()),
      host_(state),
      events_(api_),
      stream_(api_),
      comm_(state, *runtime_) {
  connect();
}

NcclBackend::~NcclBackend() {
  for (const UnderWay& operation : under_way_) {
    events_.give_back(operation.ended);
  }
}

// NCCL connects two ranks when they first exchange something, and both hosts wait for that.
void NcclBackend::connect() {
  const at::Tensor bytes = at::zeros({2, state_.size}, at::TensorOptions(at::kByte).device(api_.device()));
  std::vector<MutableBytes> receive;
  std::vector<Bytes> send;
  for (int r = 0; r < state_.size; ++r) {
    receive.push_back(detail::mutable_bytes_of(bytes, r, 1));
    send.push_back(detail::bytes_of(bytes, state_.size + r, 1));
  }
  NcclOperation operation = begin("connect");
  operation.deadline_s = runtime_->options().init_deadline_s;
  send_and_receive(operation, receive, send);
  const device::EventHandle ended = record_end(operation);
  comm_.wait(operation, ended);
  api_.wait_event(api_.compute_stream(), ended);
  events_.give_back(ended);
}

bool NcclBackend::is_ours(at::Device device, std::string_view operation) const {
  const at::Device ours = api_.device();
  ATHANOR_CHECK(device == ours || device.is_cpu(), "{} on group {} got a tensor on {} (NCCL's are on {})",
                operation, state_.name, device.str(), ours.str());
  return device == ours;
}

bool NcclBackend::is_ours(const at::Tensor& tensor, std::string_view operation) const {
  ATHANOR_CHECK(tensor.defined() && tensor.is_contiguous(), "{} on group {} needs contiguous tensors",
                operation, state_.name);
  return is_ours(tensor.device(), operation);
}

bool NcclBackend::host_waits() const {
  return runtime_->options().host_wait == HostWait::always || api_.device().is_cpu();
}

// Our stream waits for what the current one was given so far.
NcclOperation NcclBackend::begin(std::string_view name) {
  const NcclOperation operation = comm_.begin(name);
  forget_ended();
  const device::EventHandle ready = events_.take();
  api_.record_event(ready, api_.compute_stream());
  api_.wait_event(stream_.get(), ready);
  events_.give_back(ready);
  return operation;
}

// The host may be far ahead: an operation is stuck when its own time is over, whatever came after it.
void NcclBackend::forget_ended() {
  while (!under_way_.empty() && comm_.test(under_way_.front().operation, under_way_.front().ended)) {
    events_.give_back(under_way_.front().ended);
    under_way_.pop_front();
  }
}

device::EventHandle NcclBackend::record_end(const NcclOperation& operation) {
  comm_.settle(operation);
  const device::EventHandle ended = events_.take();
  api_.record_event(ended, stream_.get());
  return ended;
}

void NcclBackend::let_compute_wait(const NcclOperation& operation, device::EventHandle ended) {
  if (host_waits()) {
    comm_.wait(operation, ended);
  }
  api_.wait_event(api_.compute_stream(), ended);
}

void NcclBackend::end(const NcclOperation& operation) {
  const device::EventHandle ended = record_end(operation);
  under_way_.push_back({operation, ended});
  let_compute_wait(operation, ended);
  if (host_waits()) {
    forget_ended();
  }
}

void NcclBackend::send_and_receive(const NcclOperation& operation, std::span<const MutableBytes> receive,
                                   std::span<const Bytes> send) {
  const PieceLimits limits{runtime_->options().max_operations, runtime_->options().max_piece_bytes};
  for (const auto& pieces : plan_pieces(state_.rank, sizes_of(send), sizes_of(receive), limits)) {
    Group group(api_, comm_, operation);
    for (const Piece& piece : pieces) {
      const auto peer = static_cast<std::size_t>(piece.peer);
      const auto count = static_cast<std::size_t>(piece.bytes);
      if (piece.direction == Piece::Direction::send) {
        comm_.check(operation,
                    api_.send(send[peer].data() + piece.first, count, NcclType::uint8, piece.peer,
                              comm_.handle(), stream_.get()),
                    "ncclSend");
      } else {
        comm_.check(operation,
                    api_.receive(receive[peer].data() + piece.first, count, NcclType::uint8, piece.peer,
                                 comm_.handle(), stream_.get()),
                    "ncclRecv");
      }
    }
    group.close();
  }
}

void NcclBackend::exchange(std::span<const MutableBytes> receive, std::span<const Bytes> send,
                           at::Device device) {
  ATHANOR_CHECK(receive.size() == static_cast<std::size_t>(state_.size) && send.size() == receive.size(),
                "an exchange needs one part for each of the {} ranks of group {}", state_.size, state_.name);
  if (!is_ours(device, "exchange")) {
    return host_.exchange(receive, send, device);
  }
  const NcclOperation operation = begin("exchange");
  send_and_receive(operation, receive, send);
  end(operation);
}

std::unique_ptr<StartedExchange> NcclBackend::start_exchange(std::span<const MutableBytes> receive,
                                                             std::span<const Bytes> send, at::Device device) {
  ATHANOR_CHECK(receive.size() == static_cast<std::size_t>(state_.size) && send.size() == receive.size(),
                "an exchange needs one part for each of the {} ranks of group {}", state_.size, state_.name);
  if (!is_ours(device, "start_exchange")) {
    return host_.start_exchange(receive, send, device);
  }
  const NcclOperation operation = begin("start_exchange");
  send_and_receive(operation, receive, send);
  return std::make_unique<Started>(*this, operation, record_end(operation));
}

void NcclBackend::all_gather_v(at::Tensor& output, const at::Tensor& input,
                               std::span<const std::int64_t> rows) {
  ATHANOR_CHECK(output.device() == input.device(), "all_gather_v on group {} from {} to {}", state_.name,
                input.device().str(), output.device().str());
  if (!is_ours(input, "all_gather_v") || !is_ours(output, "all_gather_v")) {
    return host_.all_gather_v(output, input, rows);
  }
  if (output.numel() == 0) {
    return;
  }
  if (std::ranges::all_of(rows, [&](std::int64_t count) { return count == rows.front(); })) {
    const NcclOperation operation = begin("all_gather");
    comm_.check(operation,
                api_.all_gather(input.const_data_ptr(), output.data_ptr(), byte_count(input), NcclType::uint8,
                                comm_.handle(), stream_.get()),
                "ncclAllGather");
    return end(operation);
  }
  const std::int64_t before = detail::sum_before(rows, state_.rank);
  at::Tensor own = output.narrow(0, before, rows[static_cast<std::size_t>(state_.rank)]);
  if (own.numel() > 0 && own.const_data_ptr() != input.const_data_ptr()) {
    own.copy_(input, /*non_blocking=*/true);
  }
  const NcclOperation operation = begin("all_gather_v");
  gather_unequal(operation, output, rows);
  end(operation);
}

// This rank's rows are in their place already.
void NcclBackend::gather_unequal(const NcclOperation& operation, at::Tensor& output,
                                 std::span<const std::int64_t> rows) {
  const std::int64_t row_elements = detail::row_elements(output);
  std::vector<MutableBytes> receive;
  std::int64_t first = 0;
  for (const std::int64_t count : rows) {
    receive.push_back(detail::mutable_bytes_of(output, first * row_elements, count * row_elements));
    first += count;
  }
  const MutableBytes own = receive[static_cast<std::size_t>(state_.rank)];
  const std::vector<Bytes> send(receive.size(), Bytes(own.data(), own.size()));
  send_and_receive(operation, receive, send);
}

void NcclBackend::all_reduce_integers(at::Tensor& tensor, ReduceOp op) {
  if (!is_ours(tensor, "all_reduce_integers")) {
    return host_.all_reduce_integers(tensor, op);
  }
  const NcclType type = integer_type(tensor.scalar_type());
  if (tensor.numel() == 0) {
    return;
  }
  const NcclOperation operation = begin("all_reduce");
  comm_.check(operation,
              api_.all_reduce(tensor.const_data_ptr(), tensor.data_ptr(), element_count(tensor), type,
                              reduction(op, tensor.scalar_type()), comm_.handle(), stream_.get()),
              "ncclAllReduce");
  end(operation);
}

void NcclBackend::broadcast(at::Tensor& tensor, int root) {
  if (!is_ours(tensor, "broadcast")) {
    return host_.broadcast(tensor, root);
  }
  ATHANOR_CHECK(root >= 0 && root < state_.size, "a broadcast from rank {} of group {} of {} ranks", root,
                state_.name, state_.size);
  if (tensor.numel() == 0) {
    return;
  }
  const NcclOperation operation = begin("broadcast");
  comm_.check(operation,
              api_.broadcast(tensor.const_data_ptr(), tensor.data_ptr(), byte_count(tensor), NcclType::uint8,
                             root, comm_.handle(), stream_.get()),
              "ncclBroadcast");
  end(operation);
}

void NcclBackend::barrier() {
  host_.barrier();
}

bool NcclBackend::sums_floats(const at::Tensor& tensor) const {
  const at::ScalarType type = tensor.scalar_type();
  return runtime_->options().float_sums == FloatSums::nccl && tensor.device() == api_.device() &&
         (type == at::kFloat || type == at::kDouble);
}

void NcclBackend::all_reduce_floats(at::Tensor& tensor) {
  ATHANOR_CHECK(sums_floats(tensor) && tensor.is_contiguous(), "a float sum that is not NCCL's");
  const NcclOperation operation = begin("all_reduce");
  comm_.check(
      operation,
      api_.all_reduce(tensor.const_data_ptr(), tensor.data_ptr(), element_count(tensor),
                      float_type(tensor.scalar_type()), NcclReduction::sum, comm_.handle(), stream_.get()),
      "ncclAllReduce");
  end(operation);
}

void NcclBackend::reduce_scatter_floats(at::Tensor& output, const at::Tensor& input) {
  ATHANOR_CHECK(sums_floats(input) && output.scalar_type() == input.scalar_type() && input.is_contiguous() &&
                    output.is_contiguous() && output.device() == input.device() &&
                    output.numel() * state_.size == input.numel(),
                "a reduce-scatter that is not NCCL's");
  const NcclOperation operation = begin("reduce_scatter");
  comm_.check(
      operation,
      api_.reduce_scatter(input.const_data_ptr(), output.data_ptr(), element_count(output),
                          float_type(input.scalar_type()), NcclReduction::sum, comm_.handle(), stream_.get()),
      "ncclReduceScatter");
  end(operation);
}

}  // namespace athanor::parallel
