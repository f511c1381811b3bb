#include "parallel/nccl/detail/rendezvous.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/error.hpp"
#include "parallel/nccl/detail/polling.hpp"

namespace athanor::parallel::detail {
namespace {

constexpr int text_tag = 33;
constexpr int answer_tag = 34;
constexpr double grace_s = 10.0;  // for what is sent already to leave

enum class Kind : char { text, missing };

// A text as a message of fixed size, short enough to leave at once.
struct Slip {
  Kind kind = Kind::text;
  std::uint16_t length = 0;
  std::array<char, max_meeting_text> bytes{};

  static Slip of(Kind kind, const std::string& text) {
    Slip slip;
    slip.kind = kind;
    slip.length = static_cast<std::uint16_t>(std::min(text.size(), slip.bytes.size()));
    std::memcpy(slip.bytes.data(), text.data(), slip.length);
    return slip;
  }
  std::string text() const { return {bytes.data(), length}; }
};

// The slips of one meeting under way. MPI may still write to those that have not ended when it is given up,
// so their memory then stays until the process ends.
class Slips {
 public:
  Slips(const CommunicatorState& state, std::size_t capacity)
      : state_(state), messages_(std::make_unique<std::vector<Message>>()) {
    messages_->reserve(capacity);
  }
  ~Slips() {
    bool has_ended = true;
    for (Message& message : *messages_) {
      if (message.request != MPI_REQUEST_NULL) {
        has_ended = false;
        MPI_Cancel(&message.request);
        MPI_Request_free(&message.request);
      }
    }
    if (!has_ended) {
      static_cast<void>(messages_.release());
    }
  }
  Slips(const Slips&) = delete;
  Slips& operator=(const Slips&) = delete;

  void receive(int source, int tag) {
    Message& message = messages_->emplace_back();
    ATHANOR_MPI_CALL(
        state_, MPI_Irecv(&message.slip, sizeof(Slip), MPI_BYTE, source, tag, state_.comm, &message.request));
  }
  void send(const Slip& slip, int target, int tag) {
    Message& message = messages_->emplace_back();
    message.slip = slip;
    ATHANOR_MPI_CALL(
        state_, MPI_Isend(&message.slip, sizeof(Slip), MPI_BYTE, target, tag, state_.comm, &message.request));
  }
  bool has_ended(std::size_t index) {
    int is_done = 0;
    ATHANOR_MPI_CALL(state_, MPI_Test(&(*messages_)[index].request, &is_done, MPI_STATUS_IGNORE));
    return is_done != 0;
  }
  bool have_all_ended() {
    bool all = true;
    for (std::size_t i = 0; i < messages_->size(); ++i) {
      all = has_ended(i) && all;
    }
    return all;
  }
  const Slip& slip(std::size_t index) const { return (*messages_)[index].slip; }

 private:
  struct Message {
    Slip slip;
    MPI_Request request = MPI_REQUEST_NULL;
  };
  const CommunicatorState& state_;
  std::unique_ptr<std::vector<Message>> messages_;  // does not move while MPI knows it
};

[[noreturn]] void throw_missing(const std::string& message) {
  throw base::CommError("{}", message);
}

std::string missing_message(const CommunicatorState& state, std::string_view purpose, double deadline_s,
                            const std::vector<int>& missing) {
  return fmt::format(
      "world rank(s) {} did not come to {} of group {} within {} s (they hang, failed, or took a path "
      "without "
      "it) look at what they do instead, or give it more time",
      fmt::join(missing, ", "), purpose, state.unique_name, deadline_s);
}

std::string lead(const CommunicatorState& state, std::string_view purpose, double deadline_s,
                 const std::string& text,
                 const std::function<std::string(const std::vector<std::string>&)>& answer) {
  const auto size = static_cast<std::size_t>(state.size);
  Slips arriving(state, size);
  for (int r = 1; r < state.size; ++r) {
    arriving.receive(r, text_tag);
  }
  poll_until([&] { return arriving.have_all_ended(); }, deadline_s);
  std::vector<std::string> texts{text};
  std::vector<int> missing;
  for (std::size_t r = 1; r < size; ++r) {
    if (arriving.has_ended(r - 1)) {
      texts.push_back(arriving.slip(r - 1).text());
    } else {
      missing.push_back(state.world_ranks[r]);
    }
  }
  const std::string result =
      missing.empty() ? answer(texts) : missing_message(state, purpose, deadline_s, missing);
  const Slip slip = Slip::of(missing.empty() ? Kind::text : Kind::missing, result);
  Slips leaving(state, size);
  for (std::size_t r = 1; r < size; ++r) {
    if (std::ranges::find(missing, state.world_ranks[r]) == missing.end()) {
      leaving.send(slip, static_cast<int>(r), answer_tag);
    }
  }
  poll_until([&] { return leaving.have_all_ended(); }, grace_s);
  if (!missing.empty()) {
    throw_missing(result);
  }
  return slip.text();
}

std::string follow(const CommunicatorState& state, std::string_view purpose, double deadline_s,
                   const std::string& text) {
  Slips slips(state, 2);
  slips.receive(0, answer_tag);
  slips.send(Slip::of(Kind::text, text), 0, text_tag);
  // Rank 0 may come late, and then waits for others as long as it may.
  if (!poll_until([&] { return slips.have_all_ended(); }, 2 * deadline_s + grace_s)) {
    throw_missing(missing_message(state, purpose, 2 * deadline_s + grace_s, {state.world_ranks[0]}));
  }
  if (slips.slip(0).kind == Kind::missing) {
    throw_missing(slips.slip(0).text());
  }
  return slips.slip(0).text();
}

}  // namespace

std::string meet(const CommunicatorState& state, std::string_view purpose, double deadline_s,
                 const std::string& text,
                 const std::function<std::string(const std::vector<std::string>&)>& answer) {
  return state.rank == 0 ? lead(state, purpose, deadline_s, text, answer)
                         : follow(state, purpose, deadline_s, text);
}

}  // namespace athanor::parallel::detail
