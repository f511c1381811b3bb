// What all NCCL groups of one process share: the table, the options, and the news of failures.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "parallel/nccl/nccl_api.hpp"
#include "parallel/nccl/options.hpp"

namespace athanor::parallel {

class NcclComm;

namespace detail {
struct CommunicatorState;
}

/// After the first failure of a rank of the node every group of the node's ranks is aborted, because a GPU
/// that waits for a lost peer cannot be called back in any other way, and every later call throws that
/// failure.
class NcclRuntime {
 public:
  NcclRuntime(std::shared_ptr<NcclApi> api, const NcclOptions& options);
  ~NcclRuntime();
  NcclRuntime(const NcclRuntime&) = delete;
  NcclRuntime& operator=(const NcclRuntime&) = delete;

  NcclApi& api() const { return *api_; }
  const NcclOptions& options() const { return options_; }

  /// From now on the ranks of a node hear of each other's failures. Collective over `world`.
  void open_node_channel(const detail::CommunicatorState& world);
  /// Throws CommError when this rank or one of its node has failed.
  void check();
  /// Tells the ranks of this node, aborts this rank's groups and throws CommError with the first failure's
  /// message.
  [[noreturn]] void fail(const std::string& message);

  /// A group to abort on failure; it leaves before it is destroyed.
  void add(NcclComm& comm) { comms_.push_back(&comm); }
  void remove(NcclComm& comm) { std::erase(comms_, &comm); }

 private:
  void take_notices();
  void tell_node();
  void abort_all() noexcept;

  std::shared_ptr<NcclApi> api_;
  NcclOptions options_;
  std::unique_ptr<detail::CommunicatorState> node_;
  std::string failure_;
  std::vector<NcclComm*> comms_;
};

}  // namespace athanor::parallel
