// How the NCCL test double moves along.
#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "support/nccl_double_parts.hpp"

namespace athanor::tests {

// The compute stream last: as late as it may be.
void NcclOverMpi::progress() {
  if (is_stuck_) {
    return;
  }
  bool moved = true;
  while (moved) {
    moved = false;
    take_messages();
    for (const auto& [handle, stream] : streams_) {
      if (stream != compute_) {
        moved = step(*stream) || moved;
      }
    }
    moved = step(*compute_) || moved;
  }
}

// Runs what can run; whether anything did.
bool NcclOverMpi::step(Stream& stream) {
  bool moved = false;
  while (!stream.items.empty()) {
    Stream::Item& item = stream.items.front();
    if (item.source != nullptr) {
      if (item.source->ran < item.position) {
        return moved;
      }
      deliver(*item.source, item.position);
    } else if (item.launch != nullptr) {
      if (!item.launch->has_started && !item.launch->is_cancelled) {
        deliver(stream, stream.ran);
        start(*item.launch);
        for (Launch::Entry& entry : item.launch->entries) {
          const Comm& comm = comm_of(entry.comm);
          for (const int source : entry.operation->sources()) {
            auto awaited = std::make_unique<Awaited>();
            awaited->launch = item.launch;
            awaited->operation = entry.operation.get();
            awaited->source = source;
            awaited_[{comm.world_ranks[static_cast<std::size_t>(source)], comm.tag}].push_back(
                std::move(awaited));
          }
        }
        take_messages();
      }
      if (!has_arrived(*item.launch)) {
        return moved;
      }
      stream.undelivered.emplace_back(stream.ran + 1, item.launch);
    } else {
      item.work();
    }
    stream.items.pop_front();
    ++stream.ran;
    moved = true;
  }
  return moved;
}

void NcclOverMpi::start(Launch& launch) {
  launch.has_started = true;
  for (Launch::Entry& entry : launch.entries) {
    entry.operation->read();
  }
  for (Launch::Entry& entry : launch.entries) {
    entry.operation->poison_output();
  }
  for (Launch::Entry& entry : launch.entries) {
    const Comm& comm = comm_of(entry.comm);
    launch.awaited += static_cast<int>(entry.operation->sources().size());
    for (const int target : entry.operation->targets()) {
      const auto& message = launch.messages.emplace_back(entry.operation->message_for(target));
      MPI_Isend(message.data(), static_cast<int>(message.size()), MPI_BYTE,
                comm.world_ranks[static_cast<std::size_t>(target)], comm.tag, data_,
                &launch.sends.emplace_back(MPI_REQUEST_NULL));
    }
  }
}

bool NcclOverMpi::has_arrived(Launch& launch) {
  if (launch.is_cancelled) {
    return true;
  }
  for (MPI_Request& request : launch.sends) {
    int is_done = 0;
    MPI_Test(&request, &is_done, MPI_STATUS_IGNORE);
    if (is_done == 0) {
      return false;
    }
  }
  return launch.awaited == 0;
}

void NcclOverMpi::take_messages() {
  for (auto& [route, queue] : awaited_) {
    while (!queue.empty()) {
      Awaited& front = *queue.front();
      if (!front.is_arriving && front.launch->is_cancelled) {
        queue.pop_front();
        continue;
      }
      if (!front.is_arriving) {
        int has_come = 0;
        int bytes = 0;
        MPI_Message message = MPI_MESSAGE_NULL;
        MPI_Status status{};
        MPI_Improbe(route.first, route.second, data_, &has_come, &message, &status);
        if (has_come == 0) {
          break;
        }
        MPI_Get_count(&status, MPI_BYTE, &bytes);
        front.message.resize(static_cast<std::size_t>(bytes));
        MPI_Imrecv(front.message.data(), bytes, MPI_BYTE, &message, &front.request);
        front.is_arriving = true;
      }
      int is_done = 0;
      MPI_Test(&front.request, &is_done, MPI_STATUS_IGNORE);
      if (is_done == 0) {
        break;
      }
      const std::unique_ptr<Awaited> arrived = std::move(queue.front());
      queue.pop_front();
      OperationHeader header;
      std::memcpy(&header, arrived->message.data(), sizeof(header));
      arrived->operation->take_message(arrived->source, arrived->message.data() + sizeof(header),
                                       arrived->message.size() - sizeof(header));
      --arrived->launch->awaited;
      if (header != arrived->operation->header() && !arrived->launch->is_cancelled) {
        complain(fmt::format(
            "ranks do not make the same operations: rank {} of the communicator made {}, here is {}",
            arrived->source, header.describe(), arrived->operation->header().describe()));
      }
    }
  }
}

// Results of the stream's first `position` items become visible.
void NcclOverMpi::deliver(Stream& stream, std::uint64_t position) {
  while (!stream.undelivered.empty() && stream.undelivered.front().first <= position) {
    const std::shared_ptr<Launch> launch = stream.undelivered.front().second;
    stream.undelivered.erase(stream.undelivered.begin());
    for (Launch::Entry& entry : launch->entries) {
      if (!launch->is_cancelled) {
        entry.operation->write();
      }
    }
  }
}

void NcclOverMpi::connect(Comm& comm) {
  if (is_stuck_) {
    return;
  }
  int has_come = 0;
  if (world_rank_ == comm.root && comm.num_hellos < comm.size) {
    MPI_Status status{};
    MPI_Iprobe(MPI_ANY_SOURCE, comm.tag, control_, &has_come, &status);
    if (has_come != 0) {
      std::array<int, 2> hello{};
      MPI_Recv(hello.data(), 2, MPI_INT, status.MPI_SOURCE, comm.tag, control_, MPI_STATUS_IGNORE);
      comm.table.resize(static_cast<std::size_t>(comm.size));
      comm.table[static_cast<std::size_t>(hello[0])] = hello[1];
      ++comm.num_hellos;
    }
    for (int r = 0; comm.num_hellos == comm.size && r < comm.size; ++r) {
      MPI_Isend(comm.table.data(), comm.size, MPI_INT, comm.table[static_cast<std::size_t>(r)], comm.tag + 1,
                control_, &comm.requests.emplace_back(MPI_REQUEST_NULL));
    }
  }
  MPI_Iprobe(comm.root, comm.tag + 1, control_, &has_come, MPI_STATUS_IGNORE);
  if (has_come != 0) {
    comm.world_ranks.resize(static_cast<std::size_t>(comm.size));
    MPI_Recv(comm.world_ranks.data(), comm.size, MPI_INT, comm.root, comm.tag + 1, control_,
             MPI_STATUS_IGNORE);
    MPI_Waitall(static_cast<int>(comm.requests.size()), comm.requests.data(), MPI_STATUSES_IGNORE);
    comm.requests.clear();
    comm.stage = Comm::Stage::ready;
  }
}

// An abort: nothing of it touches memory from now on.
void NcclOverMpi::forget(parallel::NcclCommHandle handle) {
  const auto cancel = [&](Stream& stream, const std::shared_ptr<Launch>& launch) {
    if (launch != nullptr && launch->has_comm(handle)) {
      launch->is_cancelled = true;
      stream.last_launch = 0;
      abandoned_.push_back(launch);
    }
  };
  Comm& comm = comm_of(handle);
  std::vector<Stream*> all{comm.end_stream.get()};
  for (auto& [stream_handle, stream] : streams_) {
    all.push_back(stream.get());
  }
  for (Stream* stream : all) {
    for (const Stream::Item& item : stream->items) {
      cancel(*stream, item.launch);
    }
    for (const auto& [position, launch] : stream->undelivered) {
      cancel(*stream, launch);
    }
  }
  for (MPI_Request& request : comm.requests) {
    MPI_Wait(&request, MPI_STATUS_IGNORE);
  }
}

}  // namespace athanor::tests
