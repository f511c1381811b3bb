#include "support/nccl_over_mpi.hpp"

#include <algorithm>
#include <cstring>
#include <thread>

#include <fmt/format.h>

#include "base/error.hpp"
#include "base/stopwatch.hpp"
#include "parallel/nccl/options.hpp"
#include "support/nccl_double_parts.hpp"

namespace athanor::tests {
namespace {

using parallel::NcclCode;
using parallel::NcclCommHandle;
using parallel::NcclReduction;
using parallel::NcclType;

constexpr double compute_deadline_s = 60.0;
constexpr int ids_per_rank = 1 << 18;

template <typename Handle>
Handle as_handle(void* object) {
  return reinterpret_cast<Handle>(object);
}

}  // namespace

NcclOverMpi::NcclOverMpi(NcclOverMpiOptions options)
    : options_(std::move(options)), compute_(std::make_shared<Stream>()) {
  MPI_Comm_dup(MPI_COMM_WORLD, &control_);
  MPI_Comm_dup(MPI_COMM_WORLD, &data_);
  MPI_Comm_rank(MPI_COMM_WORLD, &world_rank_);
  streams_[as_handle<device::StreamHandle>(compute_.get())] = compute_;
}

NcclOverMpi::~NcclOverMpi() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized == 0) {
    MPI_Comm_free(&control_);
    MPI_Comm_free(&data_);
  }
}

std::vector<std::string> NcclOverMpi::leaks() const {
  std::vector<std::string> lines;
  for (const auto& [handle, comm] : comms_) {
    lines.push_back(fmt::format("a communicator of {} ranks", comm->size));
  }
  for (const auto& [handle, stream] : streams_) {
    if (stream != compute_) {
      lines.push_back(fmt::format("a stream that was given {} items", stream->enqueued));
    }
  }
  for (const auto& [handle, event] : events_) {
    lines.push_back(event->stream == nullptr ? "an event, never recorded" : "an event");
  }
  if (depth_ > 0) {
    lines.push_back("an open group");
  }
  return lines;
}

void NcclOverMpi::skip_call(const std::string& name, int nth) {
  skips_[name] = nth;
}

bool NcclOverMpi::is_skipped(const std::string& name) {
  const auto found = skips_.find(name);
  if (found == skips_.end() || --found->second > 0) {
    return false;
  }
  skips_.erase(found);
  return true;
}

void NcclOverMpi::note(const std::string& what) {
  complaints_.push_back(what);
}

void NcclOverMpi::complain(const std::string& what) {
  note(what);
  if (options_.complaints == Complaints::thrown) {
    throw base::InternalError("{}", what);
  }
}

void NcclOverMpi::enqueue_compute(std::function<void()> work) {
  ++compute_epoch_;
  compute_->push({.work = std::move(work)});
}

void NcclOverMpi::synchronize_compute() {
  const base::Stopwatch watch;
  for (progress(); !compute_->items.empty(); progress()) {
    if (watch.seconds() > compute_deadline_s) {
      note("the compute stream does not end");
      throw base::InternalError("the compute stream does not end");
    }
    std::this_thread::yield();
  }
}

void NcclOverMpi::memory_is_freed(const void* data, std::size_t bytes) {
  if (std::this_thread::get_id() != owner_) {
    return;
  }
  const auto check = [&](const std::shared_ptr<Launch>& launch) {
    if (launch != nullptr && !launch->is_cancelled && launch->uses(data, bytes)) {
      note(fmt::format("memory of an operation is freed before it has ended: {}",
                       launch->entries.front().operation->header().describe()));
    }
  };
  for (const auto& [handle, stream] : streams_) {
    for (const Stream::Item& item : stream->items) {
      check(item.launch);
    }
    for (const auto& [position, launch] : stream->undelivered) {
      check(launch);
    }
  }
}

NcclOverMpi::Comm& NcclOverMpi::comm_of(NcclCommHandle handle) {
  const auto found = comms_.find(handle);
  if (found == comms_.end()) {
    throw base::InternalError("a communicator is used that does not exist (any more)");
  }
  return *found->second;
}

std::shared_ptr<NcclOverMpi::Stream> NcclOverMpi::stream_of(device::StreamHandle handle) {
  const auto found = streams_.find(handle);
  if (found == streams_.end()) {
    throw base::InternalError("a stream is used that does not exist (any more)");
  }
  return found->second;
}

NcclOverMpi::Event& NcclOverMpi::event_of(device::EventHandle handle) {
  const auto found = events_.find(handle);
  if (found == events_.end()) {
    throw base::InternalError("an event is used that does not exist (any more)");
  }
  return *found->second;
}

std::string NcclOverMpi::error_text(NcclCode code, NcclCommHandle /*comm*/) const {
  return fmt::format("NCCL code {} of the test double", static_cast<int>(code));
}

NcclCode NcclOverMpi::get_unique_id(parallel::NcclUniqueId& id) {
  const std::array<std::int32_t, 2> content{world_rank_, next_id_++};
  std::memcpy(id.data(), content.data(), sizeof(content));
  return NcclCode::success;
}

NcclCode NcclOverMpi::comm_init_rank(NcclCommHandle& comm, int size, const parallel::NcclUniqueId& id,
                                     int rank) {
  std::array<std::int32_t, 2> content{};
  std::memcpy(content.data(), id.data(), sizeof(content));
  auto made = std::make_unique<Comm>();
  made->root = content[0];
  made->tag = content[0] * ids_per_rank + 2 * (content[1] % (ids_per_rank / 2));
  made->rank = rank;
  made->size = size;
  made->hello = {rank, world_rank_};
  MPI_Isend(made->hello.data(), 2, MPI_INT, made->root, made->tag, control_,
            &made->requests.emplace_back(MPI_REQUEST_NULL));
  comm = as_handle<NcclCommHandle>(made.get());
  comms_[comm] = std::move(made);
  return NcclCode::in_progress;
}

NcclCode NcclOverMpi::state_of(NcclCommHandle handle) {
  Comm& comm = comm_of(handle);
  if (reported_ != NcclCode::success) {
    return reported_;
  }
  progress();
  if (comm.unsettled > 0) {
    --comm.unsettled;
    return NcclCode::in_progress;
  }
  if (comm.stage == Comm::Stage::connecting) {
    connect(comm);
    return comm.stage == Comm::Stage::ready ? NcclCode::success : NcclCode::in_progress;
  }
  if (comm.stage != Comm::Stage::ending) {
    return NcclCode::success;
  }
  const bool is_busy = std::ranges::any_of(streams_, [&](const auto& entry) {
    return std::ranges::any_of(entry.second->items, [&](const Stream::Item& item) {
      return item.launch != nullptr && item.launch->has_comm(handle);
    });
  });
  if (!is_busy && comm.end == nullptr) {
    comm.end = std::make_shared<Launch>();
    const OperationHeader header{.kind = OperationKind::end, .number = comm.numbered};
    comm.end->entries.push_back(
        {std::make_unique<Operation>(header, Half::both, nullptr, nullptr, -1, comm.rank, comm.size),
         handle});
    launch(comm.end_stream, comm.end);
  }
  if (comm.end == nullptr) {
    return NcclCode::in_progress;
  }
  step(*comm.end_stream);
  if (comm.end_stream->items.empty()) {
    comm.stage = Comm::Stage::ended;
  }
  return comm.stage == Comm::Stage::ended ? NcclCode::success : NcclCode::in_progress;
}

NcclCode NcclOverMpi::comm_finalize(NcclCommHandle handle) {
  Comm& comm = comm_of(handle);
  if (depth_ > 0 || comm.stage != Comm::Stage::ready) {
    complain("a communicator is finalised in an open group, twice, or before it is connected");
  }
  comm.stage = Comm::Stage::ending;
  return NcclCode::in_progress;
}

NcclCode NcclOverMpi::comm_destroy(NcclCommHandle handle) {
  if (is_skipped("comm_destroy")) {
    return NcclCode::success;
  }
  if (comm_of(handle).stage != Comm::Stage::ended) {
    complain("a communicator is destroyed that is not finalised");
  }
  comms_.erase(handle);
  return NcclCode::success;
}

NcclCode NcclOverMpi::comm_abort(NcclCommHandle handle) {
  forget(handle);
  comms_.erase(handle);
  return NcclCode::success;
}

NcclCode NcclOverMpi::group_start() {
  if (!is_skipped("group_start")) {
    ++depth_;
  }
  return NcclCode::success;
}

NcclCode NcclOverMpi::group_end() {
  if (is_skipped("group_end")) {
    return NcclCode::success;
  }
  if (depth_ == 0) {
    complain("a group is ended that was not started");
    return NcclCode::invalid_usage;
  }
  if (--depth_ > 0) {
    return NcclCode::success;
  }
  const auto opened = std::move(open_);
  open_.clear();
  if (std::exchange(grouped_, 0) > parallel::max_operations_per_group) {
    complain("a group has more operations than NCCL takes");
  }
  for (const auto& [stream, entry] : opened) {
    launch(stream, entry);
  }
  return NcclCode::in_progress;
}

NcclCode NcclOverMpi::add(const OperationHeader& wanted, Half half, const void* input, void* output, int peer,
                          NcclCommHandle handle, device::StreamHandle stream_handle) {
  Comm& comm = comm_of(handle);
  const std::shared_ptr<Stream> stream = stream_of(stream_handle);
  OperationHeader header = wanted;
  ++operations_;
  if (header.kind != OperationKind::point_to_point) {
    header.number = ++comm.numbered;
  } else if (depth_ == 0) {
    complain("a send or receive is outside a group");
  }
  if (comm.stage != Comm::Stage::ready) {
    complain("an operation on a communicator that is not ready");
    return NcclCode::invalid_usage;
  }
  const bool has_memory = options_.device != c10::kMeta;
  auto operation = std::make_unique<Operation>(header, half, has_memory ? input : nullptr,
                                               has_memory ? output : nullptr, peer, comm.rank, comm.size);
  if (depth_ > 0) {
    ++grouped_;
    const auto found = std::ranges::find_if(open_, [&](const auto& entry) { return entry.first == stream; });
    auto& target = found == open_.end() ? open_.emplace_back(stream, std::make_shared<Launch>()) : *found;
    target.second->entries.push_back({std::move(operation), handle});
    return NcclCode::success;
  }
  auto single = std::make_shared<Launch>();
  single->entries.push_back({std::move(operation), handle});
  launch(stream, single);
  return NcclCode::in_progress;
}

// An operation starts as early as its stream lets it: without a wait for its input it reads what is there
// now.
void NcclOverMpi::launch(const std::shared_ptr<Stream>& stream, const std::shared_ptr<Launch>& launched) {
  const bool is_end = launched->entries.front().operation->header().kind == OperationKind::end;
  for (const Launch::Entry& entry : launched->entries) {
    comm_of(entry.comm).unsettled = is_end ? 0 : 1;
  }
  stream->push({.launch = launched});
  stream->last_launch = stream->enqueued;
  if (!is_stuck_) {
    step(*stream);
  }
  if (!is_end && stream->synced_epoch < compute_epoch_) {
    complain("an operation does not wait for the compute stream: " +
             launched->entries.front().operation->header().describe());
  }
}

NcclCode NcclOverMpi::send(const void* buffer, std::size_t count, NcclType type, int peer,
                           NcclCommHandle comm, device::StreamHandle stream) {
  return add({.type = type, .count = static_cast<std::int64_t>(count)}, Half::sends, buffer, nullptr, peer,
             comm, stream);
}

NcclCode NcclOverMpi::receive(void* buffer, std::size_t count, NcclType type, int peer, NcclCommHandle comm,
                              device::StreamHandle stream) {
  return add({.type = type, .count = static_cast<std::int64_t>(count)}, Half::receives, nullptr, buffer, peer,
             comm, stream);
}

NcclCode NcclOverMpi::all_gather(const void* input, void* output, std::size_t count_of_rank, NcclType type,
                                 NcclCommHandle comm, device::StreamHandle stream) {
  return add(
      {.kind = OperationKind::all_gather, .type = type, .count = static_cast<std::int64_t>(count_of_rank)},
      Half::both, input, output, -1, comm, stream);
}

NcclCode NcclOverMpi::all_reduce(const void* input, void* output, std::size_t count, NcclType type,
                                 NcclReduction op, NcclCommHandle comm, device::StreamHandle stream) {
  return add(
      {.kind = OperationKind::all_reduce, .type = type, .op = op, .count = static_cast<std::int64_t>(count)},
      Half::both, input, output, -1, comm, stream);
}

NcclCode NcclOverMpi::reduce_scatter(const void* input, void* output, std::size_t count_of_rank,
                                     NcclType type, NcclReduction op, NcclCommHandle comm,
                                     device::StreamHandle stream) {
  return add({.kind = OperationKind::reduce_scatter,
              .type = type,
              .op = op,
              .count = static_cast<std::int64_t>(count_of_rank)},
             Half::both, input, output, -1, comm, stream);
}

NcclCode NcclOverMpi::broadcast(const void* input, void* output, std::size_t count, NcclType type, int root,
                                NcclCommHandle comm, device::StreamHandle stream) {
  return add({.kind = OperationKind::broadcast,
              .type = type,
              .root = root,
              .count = static_cast<std::int64_t>(count)},
             Half::both, input, output, -1, comm, stream);
}

}  // namespace athanor::tests
