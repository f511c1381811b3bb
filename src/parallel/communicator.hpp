// A group of ranks: an owned, duplicated MPI communicator, or null, which behaves as a group of one.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/call_site.hpp"
#include "parallel/traffic.hpp"

namespace athanor::parallel {

class CollectiveBackend;

namespace detail {
struct CommunicatorState;  // holds the MPI_Comm; see detail/mpi_handle.hpp
}

/// Move-only handle of a communicator. A default-constructed one is null: rank 0 of 1, no MPI needed, every
/// collective on it is the identity. All errors of MPI calls on it are thrown as CommError naming call, group
/// and rank.
class Communicator {
 public:
  Communicator();
  ~Communicator();
  Communicator(Communicator&&) noexcept;
  Communicator& operator=(Communicator&&) noexcept;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  /// Takes ownership of an MPI communicator wrapped by detail::make_state.
  explicit Communicator(std::unique_ptr<detail::CommunicatorState> state);

  int rank() const noexcept;
  int size() const noexcept;
  bool is_null() const noexcept { return state_ == nullptr; }
  /// Name for messages, e.g. "world.teacher.tp".
  const std::string& name() const noexcept;

  /// Group of the ranks that pass the same `color` (>= 0), ordered by `key`, then by rank here; its name is
  /// this one's name, a dot and `name`. A negative color gives a null communicator. Collective over this
  /// group.
  Communicator split(int color, int key, const std::string& name) const;
  /// The same ranks with a context of their own. Collective over this group.
  Communicator duplicate(const std::string& name) const;
  /// Collective.
  void barrier(base::CallSite site = base::CallSite::current()) const;
  /// How many collectives this rank began on this communicator before; counts one more. Ranks of a group that
  /// agree on what they do have equal numbers.
  std::int64_t count_collective() const noexcept;

  /// Counters shared with the communicator this one was split from; never null.
  TrafficCounters& traffic() const noexcept;
  /// The implementation of collectives for this group (NullBackend-like identity for groups of one).
  CollectiveBackend& backend() const noexcept;
  detail::CommunicatorState* state() const noexcept { return state_.get(); }

 private:
  std::unique_ptr<detail::CommunicatorState> state_;
};

}  // namespace athanor::parallel
