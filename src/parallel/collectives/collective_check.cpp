#include "parallel/collectives/collective_check.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/checked_cast.hpp"
#include "base/error.hpp"
#include "base/stopwatch.hpp"
#include "parallel/collectives/detail/collective_scope.hpp"
#include "parallel/detail/mpi_handle.hpp"

namespace athanor::parallel {
namespace {

using detail::CollectiveCall;

std::atomic<CollectiveCheck*> active_check = nullptr;

constexpr int call_tag = 1;
constexpr int announcement_tag = 2;
constexpr int looks_before_sleep = 200;
constexpr auto pause_between_looks = std::chrono::microseconds(50);

template <std::size_t size>
void put_text(std::array<char, size>& field, std::string_view text) {
  field.fill('\0');
  text.copy(field.data(), size - 1);
}

template <std::size_t size>
std::string_view text_of(const std::array<char, size>& field) {
  return {field.data(), ::strnlen(field.data(), size)};
}

// The end of a path tells files apart better than its beginning.
std::string_view tail_of(std::string_view text, std::size_t size) {
  return text.size() <= size ? text : text.substr(text.size() - size);
}

// A call as it travels; the counts follow it.
struct CallHead {
  std::array<char, 32> operation{};
  std::array<char, 16> reduction{};
  std::array<char, 24> dtype{};
  std::array<char, 96> group{};
  std::array<char, 128> file{};
  std::int64_t number = 0;
  std::int64_t elements = 0;
  std::int64_t line = 0;
  std::int32_t root = -1;
  std::int32_t purpose = 0;
  std::int64_t num_gathered = 0;
  std::int64_t num_sent = 0;
  std::int64_t num_received = 0;
};

struct Call {
  CallHead head;
  std::vector<std::int64_t> gathered;
  std::vector<std::int64_t> sent;
  std::vector<std::int64_t> received;
};

Call make_call(const Communicator& comm, const CollectiveCall& from, std::int64_t number) {
  Call call;
  put_text(call.head.operation, from.operation);
  put_text(call.head.reduction, from.reduction);
  put_text(call.head.dtype, from.dtype);
  put_text(call.head.group, tail_of(comm.state()->unique_name, call.head.group.size() - 1));
  put_text(call.head.file, tail_of(from.site.file, call.head.file.size() - 1));
  call.head.number = number;
  call.head.elements = from.elements;
  call.head.line = from.site.line;
  call.head.root = from.root;
  call.head.purpose = static_cast<std::int32_t>(from.purpose);
  call.gathered.assign(from.gathered_rows.begin(), from.gathered_rows.end());
  call.sent.assign(from.sent_rows.begin(), from.sent_rows.end());
  call.received.assign(from.received_rows.begin(), from.received_rows.end());
  call.head.num_gathered = static_cast<std::int64_t>(call.gathered.size());
  call.head.num_sent = static_cast<std::int64_t>(call.sent.size());
  call.head.num_received = static_cast<std::int64_t>(call.received.size());
  return call;
}

std::vector<std::byte> pack(const Call& call) {
  std::vector<std::byte> bytes(sizeof(CallHead));
  std::memcpy(bytes.data(), &call.head, sizeof(CallHead));
  for (const auto* counts : {&call.gathered, &call.sent, &call.received}) {
    const auto* data = reinterpret_cast<const std::byte*>(counts->data());
    bytes.insert(bytes.end(), data, data + counts->size() * sizeof(std::int64_t));
  }
  return bytes;
}

Call unpack(const std::vector<std::byte>& bytes) {
  Call call;
  ATHANOR_CHECK(bytes.size() >= sizeof(CallHead), "a call of {} bytes", bytes.size());
  std::memcpy(&call.head, bytes.data(), sizeof(CallHead));
  const std::byte* next = bytes.data() + sizeof(CallHead);
  for (auto [counts, size] :
       {std::pair(&call.gathered, call.head.num_gathered), std::pair(&call.sent, call.head.num_sent),
        std::pair(&call.received, call.head.num_received)}) {
    const std::size_t count_bytes = static_cast<std::size_t>(size) * sizeof(std::int64_t);
    ATHANOR_CHECK(next + count_bytes <= bytes.data() + bytes.size(), "a call of {} bytes", bytes.size());
    counts->resize(static_cast<std::size_t>(size));
    if (count_bytes > 0) {  // memcpy takes no null pointer, not even for nothing
      std::memcpy(counts->data(), next, count_bytes);
    }
    next += count_bytes;
  }
  return call;
}

std::string site_of(const CallHead& head) {
  return fmt::format("{}:{}", text_of(head.file), head.line);
}

std::string describe(const Call& call) {
  const CallHead& head = call.head;
  std::string text =
      fmt::format("{} number {} of group {}", text_of(head.operation), head.number, text_of(head.group));
  if (head.dtype[0] != '\0') {
    text += fmt::format(", {} x {}", head.elements, text_of(head.dtype));
  }
  if (head.reduction[0] != '\0') {
    text += fmt::format(", {}", text_of(head.reduction));
  }
  if (head.root >= 0) {
    text += fmt::format(", root {}", head.root);
  }
  if (!call.gathered.empty()) {
    text += fmt::format(", rows [{}]", fmt::join(call.gathered, " "));
  }
  return fmt::format("{}, for {}, at {}", text,
                     traffic_names[static_cast<std::size_t>(
                         std::clamp<std::int32_t>(head.purpose, 0, num_traffic_kinds - 1))],
                     site_of(head));
}

// What is not the same in two calls of one collective, in the order in which it is worth knowing; "" for
// equal ones. `a` and `b` are the callers' ranks in the group.
std::string difference(const Call& first, int a, const Call& second, int b) {
  const CallHead& x = first.head;
  const CallHead& y = second.head;
  const std::array<std::pair<bool, const char*>, 10> comparisons = {{
      {x.group == y.group, "the group"},
      {x.operation == y.operation, "the operation"},
      {x.number == y.number, "the number"},
      {x.dtype == y.dtype, "the element type"},
      {x.elements == y.elements, "the number of elements"},
      {x.reduction == y.reduction, "the reduction"},
      {x.root == y.root, "the root"},
      {first.gathered == second.gathered, "the rows of each rank"},
      {x.purpose == y.purpose, "the purpose"},
      {x.line == y.line && x.file == y.file, "the call site"},
  }};
  for (const auto& [is_equal, what] : comparisons) {
    if (!is_equal) {
      return fmt::format("{} differs", what);
    }
  }
  const char* unit = x.dtype.front() == '\0' ? "bytes" : "rows";
  const auto from = static_cast<std::size_t>(a);
  const auto to = static_cast<std::size_t>(b);
  if (to < first.sent.size() && from < second.received.size()) {
    if (first.sent[to] != second.received[from]) {
      return fmt::format("rank {} sends {} {} to rank {}, which waits for {}", a, first.sent[to], unit, b,
                         second.received[from]);
    }
    if (first.received[to] != second.sent[from]) {
      return fmt::format("rank {} sends {} {} to rank {}, which waits for {}", b, second.sent[from], unit, a,
                         first.received[to]);
    }
  }
  return "";
}

// Throws unless all calls of a group (by rank in it) are one collective. Ranks that have all of them find the
// same pair.
void check_equal(const std::vector<std::optional<Call>>& calls, const std::vector<int>& world_ranks) {
  for (std::size_t a = 0; a < calls.size(); ++a) {
    for (std::size_t b = a + 1; b < calls.size(); ++b) {
      if (!calls[a] || !calls[b]) {
        continue;
      }
      const std::string what = difference(*calls[a], static_cast<int>(a), *calls[b], static_cast<int>(b));
      if (!what.empty()) {
        throw base::InternalError(
            "the ranks of a group do not make the same collective (world rank {} calls {}; world rank {} "
            "calls {}: {}) look at why the two took different paths or sizes",
            world_ranks[a], describe(*calls[a]), world_ranks[b], describe(*calls[b]), what);
      }
    }
  }
}

// Messages that nobody may ever receive: MPI keeps the bytes until then, so they stay until all are sent.
class Announcement {
 public:
  Announcement(std::vector<std::byte> bytes, const detail::CommunicatorState& mpi)
      : mpi_(mpi), bytes_(std::make_unique<std::vector<std::byte>>(std::move(bytes))) {}
  ~Announcement() {
    int is_done = 0;
    const int count = static_cast<int>(requests_.size());
    if (MPI_Testall(count, requests_.data(), &is_done, MPI_STATUSES_IGNORE) != MPI_SUCCESS || is_done == 0) {
      (void)bytes_.release();  // an error unwinds, and the process ends soon
    }
  }
  Announcement(const Announcement&) = delete;
  Announcement& operator=(const Announcement&) = delete;

  void send(int target, int tag) {
    const int count = base::checked_cast<int>(bytes_->size(), "the bytes of a call");
    ATHANOR_MPI_CALL(mpi_, MPI_Isend(bytes_->data(), count, MPI_BYTE, target, tag, mpi_.comm,
                                     &requests_.emplace_back(MPI_REQUEST_NULL)));
  }
  void send_to_others(const std::vector<int>& world_ranks, std::size_t own, int tag) {
    requests_.reserve(world_ranks.size());
    for (std::size_t r = 0; r < world_ranks.size(); ++r) {
      if (r != own) {
        send(world_ranks[r], tag);
      }
    }
  }
  bool is_sent() {
    int is_done = 0;
    ATHANOR_MPI_CALL(mpi_, MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &is_done,
                                       MPI_STATUSES_IGNORE));
    return is_done != 0;
  }
  void wait() {
    for (MPI_Request& request : requests_) {
      ATHANOR_MPI_CALL(mpi_, MPI_Wait(&request, MPI_STATUS_IGNORE));
    }
  }

 private:
  const detail::CommunicatorState& mpi_;
  std::unique_ptr<std::vector<std::byte>> bytes_;
  std::vector<MPI_Request> requests_;
};

}  // namespace

struct CollectiveCheck::State {
  Communicator channel;
  CollectiveCheckOptions options;
  // Exchanges under way:
  std::list<Announcement> unsent;
  std::list<Call> started;                   // by this rank, not compared yet
  std::map<int, std::list<Call>> announced;  // by others, by world rank
  bool has_failed = false;                   // a comparison threw

  const detail::CommunicatorState& mpi() const { return *channel.state(); }

  // The next call of world rank `source`; nothing when none has arrived.
  std::optional<Call> take(int source, int tag) const {
    int arrived = 0;
    MPI_Message message = MPI_MESSAGE_NULL;
    MPI_Status status;
    ATHANOR_MPI_CALL(mpi(), MPI_Improbe(source, tag, mpi().comm, &arrived, &message, &status));
    if (arrived == 0) {
      return std::nullopt;
    }
    int count = 0;
    ATHANOR_MPI_CALL(mpi(), MPI_Get_count(&status, MPI_BYTE, &count));
    std::vector<std::byte> bytes(static_cast<std::size_t>(count));
    ATHANOR_MPI_CALL(mpi(), MPI_Mrecv(bytes.data(), count, MPI_BYTE, &message, MPI_STATUS_IGNORE));
    return unpack(bytes);
  }

  // Fills in the other ranks' calls with what `take_from` has of each. Returns whether all came: now, or
  // before the deadline.
  template <typename TakeFrom>
  bool gather(std::vector<std::optional<Call>>& calls, const std::vector<int>& world_ranks, WaitMode mode,
              const TakeFrom& take_from) const {
    const base::Stopwatch watch;
    for (int looks = 0;; ++looks) {
      bool is_complete = true;
      for (std::size_t r = 0; r < calls.size(); ++r) {
        if (!calls[r]) {
          calls[r] = take_from(world_ranks[r]);
          is_complete = is_complete && calls[r].has_value();
        }
      }
      if (is_complete) {
        return true;
      }
      if (mode == WaitMode::look || (options.deadline_s > 0 && watch.seconds() >= options.deadline_s)) {
        return false;
      }
      if (looks < looks_before_sleep) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(pause_between_looks);
      }
    }
  }

  // What world rank `source` has announced of an exchange; nothing yet.
  std::optional<Call> take_announced(int source, std::string_view group, std::int64_t number) {
    std::list<Call>& from_source = announced[source];
    while (std::optional<Call> next = take(source, announcement_tag)) {
      from_source.push_back(std::move(*next));
    }
    for (auto call = from_source.begin(); call != from_source.end(); ++call) {
      if (call->head.number == number && text_of(call->head.group) == group) {
        Call found = std::move(*call);
        from_source.erase(call);
        return found;
      }
    }
    return std::nullopt;
  }
};

namespace {

std::string join_missing(const std::vector<std::optional<Call>>& calls, const std::vector<int>& world_ranks) {
  std::vector<int> missing;
  for (std::size_t r = 0; r < calls.size(); ++r) {
    if (!calls[r]) {
      missing.push_back(world_ranks[r]);
    }
  }
  return fmt::format("{}", fmt::join(missing, ", "));
}

[[noreturn]] void throw_missing(const std::vector<std::optional<Call>>& calls,
                                const std::vector<int>& world_ranks, const Call& own, double deadline_s) {
  throw base::CommError(
      "world rank(s) {} did not come to {} within {} s (they hang, or took a path without it) look at what "
      "they "
      "do instead, or raise run.check_deadline_s",
      join_missing(calls, world_ranks), describe(own), deadline_s);
}

}  // namespace

CollectiveCheck::CollectiveCheck(const Communicator& world, const CollectiveCheckOptions& options)
    : state_(std::make_unique<State>()) {
  ATHANOR_CHECK(active() == nullptr, "two checks of collectives in one process");
  state_->options = options;
  if (!world.is_null()) {
    state_->channel = detail::duplicate_for_hosts(world, "check");
    active_check.store(this);
  }
}

// After an error, calls that nobody received may be under way for ever. MPI would give the number of a freed
// communicator to the next one, which would then receive them: so its number stays taken.
CollectiveCheck::~CollectiveCheck() {
  active_check.store(nullptr);
  if (state_->has_failed) {
    static_cast<void>(std::make_unique<Communicator>(std::move(state_->channel)).release());
  }
}

CollectiveCheck* CollectiveCheck::active() noexcept {
  return active_check.load(std::memory_order_relaxed);
}

void CollectiveCheck::compare(const Communicator& comm, const CollectiveCall& call, std::int64_t number) {
  const std::vector<int>& world_ranks = comm.state()->world_ranks;
  std::vector<std::optional<Call>> calls(world_ranks.size());
  const auto own = static_cast<std::size_t>(comm.rank());
  calls[own] = make_call(comm, call, number);
  Announcement announcement(pack(*calls[own]), state_->mpi());
  announcement.send_to_others(world_ranks, own, call_tag);
  const bool is_complete = state_->gather(calls, world_ranks, WaitMode::wait,
                                          [&](int source) { return state_->take(source, call_tag); });
  state_->has_failed = true;  // unless what follows returns
  check_equal(calls, world_ranks);
  if (!is_complete) {
    throw_missing(calls, world_ranks, *calls[own], state_->options.deadline_s);
  }
  state_->has_failed = false;
  announcement.wait();
}

void CollectiveCheck::announce(const Communicator& comm, const CollectiveCall& call, std::int64_t number) {
  const auto own = static_cast<std::size_t>(comm.rank());
  state_->started.push_back(make_call(comm, call, number));
  state_->unsent.remove_if([](Announcement& announcement) { return announcement.is_sent(); });
  state_->unsent.emplace_back(pack(state_->started.back()), state_->mpi())
      .send_to_others(comm.state()->world_ranks, own, announcement_tag);
}

bool CollectiveCheck::compare_announced(const Communicator& comm, std::int64_t number, WaitMode mode) {
  const std::vector<int>& world_ranks = comm.state()->world_ranks;
  const auto own = static_cast<std::size_t>(comm.rank());
  const CollectiveCall wanted{};
  const std::string group(text_of(make_call(comm, wanted, number).head.group));
  const auto mine = std::find_if(state_->started.begin(), state_->started.end(), [&](const Call& call) {
    return call.head.number == number && text_of(call.head.group) == group;
  });
  if (mine == state_->started.end()) {
    return true;  // compared before, or started without this check
  }
  std::vector<std::optional<Call>> calls(world_ranks.size());
  calls[own] = *mine;
  const bool is_complete = state_->gather(
      calls, world_ranks, mode, [&](int source) { return state_->take_announced(source, group, number); });
  if (is_complete || mode == WaitMode::wait) {
    state_->has_failed = true;  // unless what follows returns
    check_equal(calls, world_ranks);
    if (!is_complete) {
      throw_missing(calls, world_ranks, *mine, state_->options.deadline_s);
    }
    state_->has_failed = false;
  }
  for (std::size_t r = 0; r < calls.size() && !is_complete; ++r) {  // kept until all have come
    if (calls[r] && r != own) {
      state_->announced[world_ranks[r]].push_front(std::move(*calls[r]));
    }
  }
  if (is_complete) {
    state_->started.erase(mine);
  }
  return is_complete;
}

}  // namespace athanor::parallel
