#include "parallel/nccl/nccl_comm.hpp"

#include <algorithm>
#include <cstring>
#include <exception>

#include <fmt/format.h>

#include "base/error.hpp"
#include "base/log.hpp"
#include "parallel/detail/mpi_handle.hpp"
#include "parallel/nccl/detail/polling.hpp"
#include "parallel/nccl/detail/rendezvous.hpp"

namespace athanor::parallel {
namespace {

// An answer of rank 0 is a reason to give up, or what was asked for.
constexpr char refused = '!';
constexpr char granted = '=';

std::string refuse(const std::string& reason) {
  return refused + reason;
}

// Hands out the id if all ranks have the same library and settings.
std::string answer_with_id(NcclApi& api, const std::vector<std::string>& descriptions,
                           const std::vector<int>& world_ranks) {
  for (std::size_t r = 1; r < descriptions.size(); ++r) {
    if (descriptions[r] != descriptions[0]) {
      return refuse(fmt::format(
          "world rank {} has {}, world rank {} has {} (all ranks need the same NCCL and settings) give all "
          "nodes the same library and environment",
          world_ranks[0], descriptions[0], world_ranks[r], descriptions[r]));
    }
  }
  NcclUniqueId id{};
  if (const NcclCode code = api.get_unique_id(id); code != NcclCode::success) {
    return refuse(
        fmt::format("ncclGetUniqueId failed on world rank {} ({}) look at its log with NCCL_DEBUG=INFO",
                    world_ranks[0], api.error_text(code, nullptr)));
  }
  std::string answer(1, granted);
  answer.append(reinterpret_cast<const char*>(id.data()), id.size());
  return answer;
}

std::string answer_with_errors(const std::vector<std::string>& errors, const std::vector<int>& world_ranks) {
  std::string all;
  for (std::size_t r = 0; r < errors.size(); ++r) {
    if (!errors[r].empty()) {
      all += fmt::format("{}world rank {}: {}", all.empty() ? "" : "; ", world_ranks[r], errors[r]);
    }
  }
  return all.empty() ? std::string(1, granted) : refuse(all);
}

}  // namespace

NcclComm::NcclComm(const detail::CommunicatorState& state, NcclRuntime& runtime)
    : state_(state), runtime_(runtime), api_(runtime.api()) {
  runtime_.check();
  initialise(join());
  runtime_.add(*this);
}

// The unique id, which only rank 0 makes.
std::string NcclComm::join() {
  std::string answer;
  try {
    answer = detail::meet(state_, "the start of NCCL", runtime_.options().init_deadline_s, api_.description(),
                          [&](const auto& texts) { return answer_with_id(api_, texts, state_.world_ranks); });
  } catch (const base::CommError& error) {
    runtime_.fail(error.what());
  }
  if (answer.front() == refused) {
    runtime_.fail(fmt::format("NCCL does not start on group {}: {}", state_.unique_name, answer.substr(1)));
  }
  return answer.substr(1);
}

// Empty, or why this rank could not initialise.
void NcclComm::initialise(const std::string& id_text) {
  NcclUniqueId id{};
  std::memcpy(id.data(), id_text.data(), std::min(id.size(), id_text.size()));
  std::string error;
  NcclCode code = api_.comm_init_rank(comm_, state_.size, id, state_.rank);
  if (code == NcclCode::in_progress) {
    const double deadline_s = runtime_.options().init_deadline_s;
    const bool has_ended = detail::poll_until(
        [&] { return (code = api_.state_of(comm_)) != NcclCode::in_progress; }, deadline_s);
    if (!has_ended) {
      error = fmt::format("not connected within {} s", deadline_s);
    }
  }
  if (error.empty() && code != NcclCode::success) {
    error = api_.error_text(code, comm_);
  }
  std::string answer;
  try {
    // Twice the time: a rank that NCCL leaves waiting comes when its own is over.
    answer = detail::meet(state_, "the end of NCCL's start", 2 * runtime_.options().init_deadline_s, error,
                          [&](const auto& texts) { return answer_with_errors(texts, state_.world_ranks); });
  } catch (const base::CommError& missing) {
    abort();
    runtime_.fail(missing.what());
  }
  if (answer.front() == refused) {
    abort();
    runtime_.fail(fmt::format(
        "NCCL does not start on group {} ({}) check the network between the nodes, and NCCL's own log with "
        "NCCL_DEBUG=INFO",
        state_.unique_name, answer.substr(1)));
  }
}

NcclOperation NcclComm::begin(std::string_view name) {
  runtime_.check();
  return {name, ++operations_, runtime_.options().deadline_s};
}

void NcclComm::check(const NcclOperation& operation, NcclCode code, std::string_view call) {
  if (code != NcclCode::success && code != NcclCode::in_progress) {
    fail(operation, fmt::format("{}: {}", call, api_.error_text(code, comm_)));
  }
}

void NcclComm::settle(const NcclOperation& operation) {
  NcclCode code = NcclCode::success;
  const bool is_settled = detail::poll_until(
      [&] {
        runtime_.check();
        code = api_.state_of(comm_);
        return code != NcclCode::in_progress;
      },
      operation.deadline_s);
  if (!is_settled) {
    fail(operation, fmt::format("not enqueued within {} s", operation.deadline_s));
  }
  check(operation, code, "NCCL");
}

bool NcclComm::test(const NcclOperation& operation, device::EventHandle event) {
  runtime_.check();
  check(operation, api_.state_of(comm_), "NCCL");
  if (api_.query_event(event)) {
    return true;
  }
  if (operation.since.seconds() > operation.deadline_s) {
    fail(operation,
         fmt::format("not ended after {} s: a rank of the group does not take part, or the network "
                     "between them does not work",
                     operation.deadline_s));
  }
  return false;
}

void NcclComm::wait(const NcclOperation& operation, device::EventHandle event) {
  // test() has the deadline; this one only ends the loop should the clocks differ.
  detail::poll_until([&] { return test(operation, event); }, 2 * operation.deadline_s);
}

void NcclComm::fail(const NcclOperation& operation, std::string_view reason) {
  runtime_.fail(
      fmt::format("{}, operation {} over NCCL, failed on rank {} of {} (world rank {}) of group {} ({}) look "
                  "for the first "
                  "failure in the other ranks' logs; NCCL_DEBUG=INFO shows NCCL's own",
                  operation.name, operation.number, state_.rank, state_.size,
                  state_.world_ranks[static_cast<std::size_t>(state_.rank)], state_.unique_name, reason));
}

void NcclComm::abort() noexcept {
  if (!is_aborted_ && comm_ != nullptr) {
    is_aborted_ = true;
    api_.comm_abort(comm_);
  }
}

// Empty, or why it could not be finalised.
std::string NcclComm::finish() noexcept {
  try {
    NcclCode code = api_.comm_finalize(comm_);
    const bool has_ended = detail::poll_until(
        [&] {
          return code != NcclCode::in_progress || (code = api_.state_of(comm_)) != NcclCode::in_progress;
        },
        runtime_.options().init_deadline_s);
    if (!has_ended) {
      return fmt::format("not finalised within {} s", runtime_.options().init_deadline_s);
    }
    if (code == NcclCode::success) {
      code = api_.comm_destroy(comm_);
    }
    return code == NcclCode::success ? "" : api_.error_text(code, comm_);
  } catch (const std::exception& error) {
    return error.what();
  }
}

NcclComm::~NcclComm() {
  runtime_.remove(*this);
  if (comm_ == nullptr || is_aborted_) {
    return;
  }
  if (std::uncaught_exceptions() > 0) {
    abort();  // the others may not come to finalise it
    return;
  }
  if (const std::string problem = finish(); !problem.empty()) {
    try {
      base::log_local(base::LogLevel::warning, "the NCCL communicator of group " + state_.unique_name +
                                                   " is aborted at its end: " + problem);
    } catch (...) {  // a destructor must not throw
    }
    abort();
  }
}

}  // namespace athanor::parallel
