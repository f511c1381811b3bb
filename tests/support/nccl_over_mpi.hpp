// A test double of NCCL and of CUDA's streams and events: the table of parallel/nccl/nccl_api.hpp over MPI on
// host memory. It is for tests only and never part of an installation: slow, and as strict as it can be.
//
// Streams are queues. An operation reads its input when its turn comes and sends it by MPI; what arrives is
// kept aside, and its output holds poison, until somebody may see it: an event behind it is asked for or
// waited for, or the next operation of its stream starts. So a wait that is missing shows as numbers that are
// not there.
//
// It complains (InternalError, and a list) when
// - groups are not closed, closed twice, or larger than NCCL takes; sends and receives are outside a group;
// - ranks do not make the same operations with the same sizes and types on a communicator;
// - an operation does not wait for the compute stream, or the compute stream never waits for an operation;
// - something is recorded or waited for before the calls on a communicator are enqueued;
// - memory of an operation is freed before the operation has ended;
// - handles are used after their end, or left at the end.
#pragma once

#include <mpi.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "parallel/nccl/nccl_api.hpp"
#include "support/nccl_double_operation.hpp"

namespace athanor::tests {

enum class Complaints { thrown, listed };

struct NcclOverMpiOptions {
  c10::Device device = c10::kCPU;  ///< kMeta: tensors without memory, to see which ones come here
  Complaints complaints = Complaints::thrown;
  std::string description = "the test double";
};

class NcclOverMpi final : public parallel::NcclApi {
 public:
  /// Collective over all ranks of the job; MPI is running.
  explicit NcclOverMpi(NcclOverMpiOptions options = {});
  ~NcclOverMpi() override;

  // What it saw.
  const std::vector<std::string>& complaints() const { return complaints_; }
  /// Handles that nobody destroyed, one line for each.
  std::vector<std::string> leaks() const;
  std::int64_t num_operations() const { return operations_; }
  int num_communicators() const { return static_cast<int>(comms_.size()); }

  // What goes wrong.
  /// The `nth` call from now on of a function of this name has no effect: "group_end", "wait_event" (of a
  /// stream of ours), "wait_event_compute", "destroy_event", ...
  void skip_call(const std::string& name, int nth = 1);
  /// Communicators report this error from now on.
  void report_error(parallel::NcclCode code) { reported_ = code; }
  /// Nothing moves on this rank while set.
  void set_stuck(bool is_stuck) { is_stuck_ = is_stuck; }

  // The compute stream, for tests of the order: work of the host that runs as late as it may.
  void enqueue_compute(std::function<void()> work);
  /// Returns when all that is on the compute stream has run.
  void synchronize_compute();
  /// Tensor memory that is given back, see watched_memory.hpp. Other threads' is not looked at.
  void memory_is_freed(const void* data, std::size_t bytes);

  int version() const override { return 22809; }
  std::string description() const override { return options_.description; }
  c10::Device device() const override { return options_.device; }
  std::string error_text(parallel::NcclCode code, parallel::NcclCommHandle comm) const override;
  parallel::NcclCode get_unique_id(parallel::NcclUniqueId& id) override;
  parallel::NcclCode comm_init_rank(parallel::NcclCommHandle& comm, int size,
                                    const parallel::NcclUniqueId& id, int rank) override;
  parallel::NcclCode state_of(parallel::NcclCommHandle comm) override;
  parallel::NcclCode comm_finalize(parallel::NcclCommHandle comm) override;
  parallel::NcclCode comm_destroy(parallel::NcclCommHandle comm) override;
  parallel::NcclCode comm_abort(parallel::NcclCommHandle comm) override;
  parallel::NcclCode group_start() override;
  parallel::NcclCode group_end() override;
  parallel::NcclCode send(const void* buffer, std::size_t count, parallel::NcclType type, int peer,
                          parallel::NcclCommHandle comm, device::StreamHandle stream) override;
  parallel::NcclCode receive(void* buffer, std::size_t count, parallel::NcclType type, int peer,
                             parallel::NcclCommHandle comm, device::StreamHandle stream) override;
  parallel::NcclCode all_gather(const void* input, void* output, std::size_t count_of_rank,
                                parallel::NcclType type, parallel::NcclCommHandle comm,
                                device::StreamHandle stream) override;
  parallel::NcclCode all_reduce(const void* input, void* output, std::size_t count, parallel::NcclType type,
                                parallel::NcclReduction op, parallel::NcclCommHandle comm,
                                device::StreamHandle stream) override;
  parallel::NcclCode reduce_scatter(const void* input, void* output, std::size_t count_of_rank,
                                    parallel::NcclType type, parallel::NcclReduction op,
                                    parallel::NcclCommHandle comm, device::StreamHandle stream) override;
  parallel::NcclCode broadcast(const void* input, void* output, std::size_t count, parallel::NcclType type,
                               int root, parallel::NcclCommHandle comm, device::StreamHandle stream) override;
  device::StreamHandle compute_stream() override;
  device::StreamHandle create_stream() override;
  void destroy_stream(device::StreamHandle stream) noexcept override;
  device::EventHandle create_event() override;
  void destroy_event(device::EventHandle event) noexcept override;
  void record_event(device::EventHandle event, device::StreamHandle stream) override;
  void wait_event(device::StreamHandle stream, device::EventHandle event) override;
  bool query_event(device::EventHandle event) override;

 private:
  struct Comm;
  struct Stream;
  struct Event;
  struct Launch;
  struct Awaited;
  using Route = std::pair<int, int>;  // world rank it comes from, tag

  void note(const std::string& what);      // from where nothing may be thrown
  void complain(const std::string& what);  // as the options have it
  bool is_skipped(const std::string& name);
  Comm& comm_of(parallel::NcclCommHandle handle);
  std::shared_ptr<Stream> stream_of(device::StreamHandle handle);
  Event& event_of(device::EventHandle handle);
  parallel::NcclCode add(const OperationHeader& header, Half half, const void* input, void* output, int peer,
                         parallel::NcclCommHandle comm, device::StreamHandle stream);
  void launch(const std::shared_ptr<Stream>& stream, const std::shared_ptr<Launch>& launch);
  void expect_settled(const std::string& call);

  // Progress.
  void progress();
  bool step(Stream& stream);
  void start(Launch& launch);
  bool has_arrived(Launch& launch);
  void take_messages();
  void deliver(Stream& stream, std::uint64_t position);
  void connect(Comm& comm);
  void forget(parallel::NcclCommHandle handle);

  NcclOverMpiOptions options_;
  MPI_Comm control_ = MPI_COMM_NULL;
  MPI_Comm data_ = MPI_COMM_NULL;
  int world_rank_ = 0;
  std::int32_t next_id_ = 0;
  std::int64_t operations_ = 0;
  parallel::NcclCode reported_ = parallel::NcclCode::success;
  bool is_stuck_ = false;
  std::vector<std::string> complaints_;
  std::map<std::string, int> skips_;

  int depth_ = 0;    // of groups
  int grouped_ = 0;  // operations in the open one
  std::vector<std::pair<std::shared_ptr<Stream>, std::shared_ptr<Launch>>> open_;
  std::uint64_t compute_epoch_ = 1;  // counts what the compute stream was given that operations must wait for
  std::thread::id owner_ = std::this_thread::get_id();
  std::vector<std::shared_ptr<Launch>> abandoned_;  // MPI may still send their messages

  std::shared_ptr<Stream> compute_;
  std::map<parallel::NcclCommHandle, std::unique_ptr<Comm>> comms_;
  std::map<device::StreamHandle, std::shared_ptr<Stream>> streams_;
  std::map<device::EventHandle, std::unique_ptr<Event>> events_;
  std::map<Route, std::deque<std::unique_ptr<Awaited>>> awaited_;  // in the order in which they arrive
};

}  // namespace athanor::tests
