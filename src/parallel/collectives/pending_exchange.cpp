#include "parallel/collectives/pending_exchange.hpp"

#include <optional>
#include <span>
#include <utility>

#include <ATen/ATen.h>

#include "base/activity.hpp"
#include "base/error.hpp"
#include "parallel/collectives/backend.hpp"
#include "parallel/collectives/collective_check.hpp"
#include "parallel/collectives/detail/collective_scope.hpp"
#include "parallel/collectives/detail/shapes.hpp"
#include "parallel/detail/mpi_handle.hpp"

namespace athanor::parallel {

struct PendingExchange::State {
  const Communicator* comm = nullptr;
  Traffic purpose = Traffic::other;
  std::int64_t number = 0;
  base::CallSite site;
  std::vector<at::Tensor> receive;
  std::vector<at::Tensor> send;
  std::unique_ptr<StartedExchange> started;

  base::Span span(std::string_view name, std::int64_t bytes) const {
    return {.kind = base::SpanKind::collective,
            .name = name,
            .group = comm->name(),
            .bytes = bytes,
            .number = number,
            .site = site,
            .members = comm->state()->world_ranks};
  }
};

PendingExchange::PendingExchange() = default;
PendingExchange::PendingExchange(PendingExchange&&) noexcept = default;

PendingExchange& PendingExchange::operator=(PendingExchange&& other) noexcept {
  PendingExchange old(std::move(*this));  // gives up what it had
  state_ = std::move(other.state_);
  return *this;
}

PendingExchange::~PendingExchange() {
  if (state_ != nullptr && state_->started != nullptr && !state_->started->give_up()) {
    static_cast<void>(state_.release());  // MPI may still write to the tensors
  }
}

bool PendingExchange::test() {
  if (state_ == nullptr) {
    return true;
  }
  const TrafficScope scope(state_->comm->traffic(), state_->purpose, 0);
  CollectiveCheck* check = CollectiveCheck::active();
  if (check != nullptr && !check->compare_announced(*state_->comm, state_->number, WaitMode::look)) {
    return false;  // somebody has not started it yet
  }
  if (!state_->started->test()) {
    return false;
  }
  const base::ScopedSpan span(state_->span("end_exchange", 0));  // with start_exchange what traces draw
  state_.reset();
  return true;
}

void PendingExchange::wait() {
  if (test()) {
    return;
  }
  const base::ScopedSpan span(state_->span("wait_exchange", 0));
  const TrafficScope scope(state_->comm->traffic(), state_->purpose, 0);
  if (CollectiveCheck* check = CollectiveCheck::active(); check != nullptr) {
    check->compare_announced(*state_->comm, state_->number, WaitMode::wait);
  }
  state_->started->wait();
  state_.reset();
}

// Debug mode: what this rank starts is compared when it is waited for.
void PendingExchange::announce(const State& state, const Communicator& comm, std::int64_t bytes) {
  CollectiveCheck* check = CollectiveCheck::active();
  if (check == nullptr) {
    return;
  }
  std::vector<std::int64_t> sent(state.send.size());
  std::vector<std::int64_t> received(sent.size());
  for (std::size_t r = 0; r < sent.size(); ++r) {
    if (r != static_cast<std::size_t>(comm.rank())) {
      sent[r] = detail::total_bytes(state.send[r]);
      received[r] = detail::total_bytes(state.receive[r]);
    }
  }
  check->announce(comm,
                  {.operation = "start_exchange",
                   .purpose = state.purpose,
                   .bytes = bytes,
                   .site = state.site,
                   .sent_rows = sent,
                   .received_rows = received},
                  state.number);
}

namespace {

// Where the parts for and from the other ranks lie.
at::Device common_device(std::span<const at::Tensor> receive, std::span<const at::Tensor> send,
                         const Communicator& comm) {
  std::optional<at::Device> device;
  for (const auto parts : {receive, send}) {
    for (std::size_t r = 0; r < parts.size(); ++r) {
      if (r != static_cast<std::size_t>(comm.rank()) && parts[r].defined()) {
        device = device.value_or(parts[r].device());
        ATHANOR_CHECK(parts[r].device() == *device, "an exchange on group {} got parts on {} and on {}",
                      comm.name(), device->str(), parts[r].device().str());
      }
    }
  }
  return device.value_or(at::kCPU);
}

}  // namespace

PendingExchange start_exchange(std::vector<at::Tensor> receive, std::vector<at::Tensor> send,
                               const Communicator& comm, Traffic purpose, base::CallSite site) {
  const auto size = static_cast<std::size_t>(comm.size());
  ATHANOR_CHECK(receive.size() == size && send.size() == size,
                "an exchange on group {} of {} ranks got {} tensors to fill and {} to send", comm.name(),
                size, receive.size(), send.size());
  PendingExchange pending;
  if (size == 1) {
    return pending;
  }
  std::vector<MutableBytes> to(size);
  std::vector<Bytes> from(size);
  std::int64_t bytes = 0;
  const at::Device device = common_device(receive, send, comm);
  for (std::size_t r = 0; r < size; ++r) {
    if (r != static_cast<std::size_t>(comm.rank())) {
      to[r] = detail::mutable_bytes_of(receive[r], 0, receive[r].numel());
      from[r] = detail::bytes_of(send[r], 0, send[r].numel());
      bytes += static_cast<std::int64_t>(from[r].size());
    }
  }
  pending.state_ = std::make_unique<PendingExchange::State>();
  PendingExchange::State& state = *pending.state_;
  state.comm = &comm;
  state.purpose = purpose;
  state.number = comm.count_collective();
  state.site = site;
  state.receive = std::move(receive);
  state.send = std::move(send);
  const base::ScopedSpan span(state.span("start_exchange", bytes));
  const TrafficScope scope(comm.traffic(), purpose, bytes);
  PendingExchange::announce(state, comm, bytes);
  state.started = comm.backend().start_exchange(to, from, device);
  return pending;
}

}  // namespace athanor::parallel
