#include "parallel/nccl/nccl_runtime.hpp"

#include <algorithm>
#include <utility>

#include "base/error.hpp"
#include "parallel/detail/mpi_handle.hpp"
#include "parallel/nccl/nccl_comm.hpp"

namespace athanor::parallel {
namespace {

constexpr int notice_tag = 1;
constexpr std::size_t max_notice_bytes = 1024;  // leaves at once, whoever listens

}  // namespace

NcclRuntime::NcclRuntime(std::shared_ptr<NcclApi> api, const NcclOptions& options)
    : api_(std::move(api)), options_(options) {
  ATHANOR_CHECK(api_ != nullptr && options.max_operations >= 2 && options.max_piece_bytes >= 1 &&
                    options.init_deadline_s > 0 && options.deadline_s > 0,
                "NCCL groups of {} operations, pieces of {} bytes, deadlines of {} and {} s",
                options.max_operations, options.max_piece_bytes, options.init_deadline_s, options.deadline_s);
}

// News of a failure may still be on its way; MPI would give it to the next communicator of the same number.
NcclRuntime::~NcclRuntime() {
  if (!failure_.empty()) {
    static_cast<void>(node_.release());
  }
}

void NcclRuntime::open_node_channel(const detail::CommunicatorState& world) {
  MPI_Comm node = MPI_COMM_NULL;
  ATHANOR_MPI_CALL(world,
                   MPI_Comm_split_type(world.comm, MPI_COMM_TYPE_SHARED, world.rank, MPI_INFO_NULL, &node));
  node_ = detail::make_state(node, world.name + ".node", world.traffic, world.algorithms);
}

void NcclRuntime::check() {
  if (failure_.empty()) {
    take_notices();
  }
  if (!failure_.empty()) {
    throw base::CommError("{}", failure_);
  }
}

void NcclRuntime::take_notices() {
  if (node_ == nullptr) {
    return;
  }
  int has_come = 0;
  MPI_Status status{};
  ATHANOR_MPI_CALL(*node_, MPI_Iprobe(MPI_ANY_SOURCE, notice_tag, node_->comm, &has_come, &status));
  if (has_come == 0) {
    return;
  }
  std::string notice(max_notice_bytes, '\0');
  ATHANOR_MPI_CALL(*node_, MPI_Recv(notice.data(), static_cast<int>(notice.size()), MPI_BYTE,
                                    status.MPI_SOURCE, notice_tag, node_->comm, &status));
  int length = 0;
  ATHANOR_MPI_CALL(*node_, MPI_Get_count(&status, MPI_BYTE, &length));
  notice.resize(static_cast<std::size_t>(std::max(length, 0)));
  failure_ = std::move(notice);
  abort_all();
}

void NcclRuntime::fail(const std::string& message) {
  if (failure_.empty()) {
    failure_ = message;
    tell_node();
    abort_all();
  }
  throw base::CommError("{}", failure_);
}

// Nobody waits here: a rank that does not listen any more must not hold up one that fails.
void NcclRuntime::tell_node() {
  if (node_ == nullptr) {
    return;
  }
  const int count = static_cast<int>(std::min(failure_.size(), max_notice_bytes));
  for (int r = 0; r < node_->size; ++r) {
    if (r == node_->rank) {
      continue;
    }
    MPI_Request request = MPI_REQUEST_NULL;
    if (MPI_Isend(failure_.data(), count, MPI_BYTE, r, notice_tag, node_->comm, &request) == MPI_SUCCESS) {
      MPI_Request_free(&request);  // failure_ never changes again
    }
  }
}

void NcclRuntime::abort_all() noexcept {
  for (NcclComm* comm : comms_) {
    comm->abort();
  }
}

}  // namespace athanor::parallel
