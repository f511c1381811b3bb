// What every collective does around its work: count it, time it, show it to those who watch, and in debug
// mode compare it over the group.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "base/activity.hpp"
#include "base/call_site.hpp"
#include "parallel/communicator.hpp"
#include "parallel/traffic.hpp"

namespace athanor::parallel::detail {

/// One call of a collective as its caller made it. Texts and counts live as long as the collective runs.
struct CollectiveCall {
  std::string_view operation{};  ///< "all_to_all_v"
  Traffic purpose = Traffic::other;
  std::int64_t bytes = 0;  ///< that this rank sends to others
  base::CallSite site{};

  // Equal on all ranks of the group, for debug mode:
  std::string_view dtype{};      ///< of the elements: "Float"
  std::int64_t elements = 0;     ///< of the tensor; of a row where ranks have other numbers of rows
  std::string_view reduction{};  ///< "sum"
  int root = -1;                 ///< -1: none
  std::span<const std::int64_t> gathered_rows{};  ///< from each rank
  // One for each rank; what I send to you is what you receive from me:
  std::span<const std::int64_t> sent_rows{};
  std::span<const std::int64_t> received_rows{};
};

/// Lives as long as the collective runs on this rank.
class CollectiveScope {
 public:
  /// With a CollectiveCheck (collective_check.hpp) in this process: throws InternalError when the ranks of
  /// the group do not make the same call, CommError when one does not come.
  CollectiveScope(const Communicator& comm, const CollectiveCall& call)
      : CollectiveScope(comm, call, comm.count_collective()) {}

 private:
  CollectiveScope(const Communicator& comm, const CollectiveCall& call, std::int64_t number);

  base::ScopedSpan span_;
  TrafficScope traffic_;
};

}  // namespace athanor::parallel::detail
