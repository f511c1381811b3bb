// An exchange over MPI's non-blocking point-to-point that nobody waits for yet.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "parallel/collectives/backend.hpp"
#include "parallel/detail/mpi_handle.hpp"

namespace athanor::parallel::detail {

/// Messages of a tag of their own: MPI matches those of two ranks in the order in which they were posted.
class MpiExchange final : public StartedExchange {
 public:
  /// As CollectiveBackend::start_exchange. `state` must outlive this.
  MpiExchange(const CommunicatorState& state, std::span<const MutableBytes> receive,
              std::span<const Bytes> send);
  bool test() override;
  void wait() override;
  bool give_up() noexcept override;

 private:
  struct Message {
    MPI_Request request = MPI_REQUEST_NULL;
    int peer = 0;
    bool is_receive = false;
  };
  Message& add(int peer, bool is_receive);
  void post(MutableBytes bytes, int source);
  void post(Bytes bytes, int target);
  void check(int code, const char* call, int peer) const;

  const CommunicatorState& state_;
  std::vector<Message> messages_;
  std::size_t ended_ = 0;  // messages_[0, ended_) have
};

}  // namespace athanor::parallel::detail
