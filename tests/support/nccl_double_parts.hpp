// The insides of the NCCL test double.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "support/nccl_over_mpi.hpp"

namespace athanor::tests {

// Operations that start together, on one stream.
struct NcclOverMpi::Launch {
  struct Entry {
    std::unique_ptr<Operation> operation;
    parallel::NcclCommHandle comm;
  };
  std::vector<Entry> entries;
  bool has_started = false;
  bool is_cancelled = false;
  int awaited = 0;  // messages
  std::vector<std::vector<std::byte>> messages;
  std::vector<MPI_Request> sends;

  bool has_comm(parallel::NcclCommHandle comm) const {
    for (const Entry& entry : entries) {
      if (entry.comm == comm) {
        return true;
      }
    }
    return false;
  }
  bool uses(const void* data, std::size_t bytes) const {
    for (const Entry& entry : entries) {
      if (entry.operation->input().overlaps(data, bytes) || entry.operation->output().overlaps(data, bytes)) {
        return true;
      }
    }
    return false;
  }
};

struct NcclOverMpi::Stream {
  // One of: a wait, a launch, work of the host.
  struct Item {
    std::shared_ptr<Stream> source{};
    std::uint64_t position = 0;
    std::shared_ptr<Launch> launch{};
    std::function<void()> work{};
  };
  std::deque<Item> items;
  std::uint64_t enqueued = 0;  // items ever
  std::uint64_t ran = 0;
  std::vector<std::pair<std::uint64_t, std::shared_ptr<Launch>>> undelivered;  // ended, and nobody looked
  std::uint64_t last_launch = 0;                                               // its position
  std::uint64_t consumed = 0;      // the compute stream waits for what is before
  std::uint64_t synced_epoch = 0;  // of the compute stream, that this one waits for

  void push(Item item) {
    items.push_back(std::move(item));
    ++enqueued;
  }
};

struct NcclOverMpi::Comm {
  enum class Stage { connecting, ready, ending, ended };

  int tag = 0;   // of its messages; two tags of the control communicator
  int root = 0;  // world rank that made the id
  int rank = 0;
  int size = 1;
  Stage stage = Stage::connecting;
  std::vector<int> world_ranks;  // once connected
  int unsettled = 0;             // looks at the state that still say "in progress"
  std::int64_t numbered = 0;     // operations other than sends and receives
  std::shared_ptr<Launch> end;   // the message that nothing is behind, on a stream of its own
  std::shared_ptr<Stream> end_stream = std::make_shared<Stream>();

  // The start: everybody tells the root its rank, which tells everybody all world ranks.
  std::array<int, 2> hello{};
  std::vector<int> table;  // the root's
  int num_hellos = 0;
  std::vector<MPI_Request> requests;
};

struct NcclOverMpi::Event {
  std::shared_ptr<Stream> stream;  // null: never recorded
  std::uint64_t position = 0;
  std::uint64_t epoch = 0;
};

// A message that an operation waits for.
struct NcclOverMpi::Awaited {
  std::shared_ptr<Launch> launch;
  Operation* operation = nullptr;
  int source = 0;  // rank in the communicator
  MPI_Request request = MPI_REQUEST_NULL;
  bool is_arriving = false;
  std::vector<std::byte> message;
};

}  // namespace athanor::tests
