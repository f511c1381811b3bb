// A meeting of all ranks of a group over MPI that ends even if some of them do not come.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/detail/mpi_handle.hpp"

namespace athanor::parallel::detail {

/// Longest text of a meeting, in bytes; what is longer is cut off.
inline constexpr std::size_t max_meeting_text = 1000;

/// Every rank gives `text`; rank 0 makes an answer of all of them, in rank order, which every rank gets.
/// Throws CommError on all ranks that came, naming `purpose`, the group and the world ranks that did not come
/// within `deadline_s` of rank 0's coming. Collective over the group of `state`, which has at least two
/// ranks.
std::string meet(const CommunicatorState& state, std::string_view purpose, double deadline_s,
                 const std::string& text,
                 const std::function<std::string(const std::vector<std::string>&)>& answer);

}  // namespace athanor::parallel::detail
