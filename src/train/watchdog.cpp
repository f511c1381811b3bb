#include "train/watchdog.hpp"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <mutex>
#include <optional>
#include <random>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/activity.hpp"
#include "base/error.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/run_agreed.hpp"
#include "train/activity_board.hpp"
#include "train/watchdog_marker.hpp"
#include "train/watchdog_rules.hpp"

namespace athanor::train {
namespace {

namespace fs = std::filesystem;
using base::Heartbeat;

constexpr double ticks_per_deadline = 20.0;
constexpr double shortest_tick_s = 0.05;
constexpr double longest_tick_s = 5.0;
// Share of the deadline after which a rank looks at the others, so that the report comes at the deadline.
constexpr double early_share = 0.7;
// The lowest ranks try to speak first, a tick after one another; the others at once after them.
constexpr int ticks_of_precedence = 4;
constexpr double shortest_silence_s = 3.0;
constexpr double silent_ticks = 10.0;

void write_all(int file, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(file, text.data(), text.size());
    if (written < 0 && errno == EINTR) {
      continue;
    }
    if (written <= 0) {
      return;  // nobody reads it
    }
    text.remove_prefix(static_cast<std::size_t>(written));
  }
}

// As the log writes, but past it: the main thread may hang while it holds the log.
void say(const std::string& log_file, const std::vector<std::string>& lines) {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  ::localtime_r(&now, &local);
  std::string text;
  for (const std::string& line : lines) {
    text += fmt::format("{:02}:{:02}:{:02} error WATCHDOG: {}\n", local.tm_hour, local.tm_min, local.tm_sec,
                        line);
  }
  write_all(STDERR_FILENO, text);
  if (!log_file.empty()) {
    const int file = ::open(log_file.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (file >= 0) {
      write_all(file, text);
      ::close(file);
    }
  }
}

const char* key_of(base::WatchedPhase phase) {
  constexpr std::array<const char*, base::num_watched_phases> keys = {
      "watchdog.start_s", "watchdog.step_s", "watchdog.evaluate_s", "watchdog.save_s"};
  return keys[static_cast<std::size_t>(phase)];
}

double tick_of(const WatchdogOptions& options) {
  double shortest_s = 0.0;
  for (const double soft_s : options.soft_s) {
    if (soft_s > 0) {
      shortest_s = shortest_s == 0.0 ? soft_s : std::min(shortest_s, soft_s);
    }
  }
  return std::clamp(shortest_s / ticks_per_deadline, shortest_tick_s, longest_tick_s);
}

bool watches(const WatchdogOptions& options) {
  return std::any_of(options.soft_s.begin(), options.soft_s.end(), [](double soft_s) { return soft_s > 0; });
}

std::string host_name() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

// Every signal is for the other threads.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_{};
};

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Rank 0 makes the folder empty and gives the job a number.
std::uint64_t open_folder(const std::string& folder, const parallel::Communicator& world) {
  std::string job;
  parallel::run_agreed(world, [&] {
    if (world.rank() != 0) {
      return;
    }
    std::error_code error;
    fs::remove_all(folder, error);
    fs::create_directories(folder, error);
    if (error) {
      throw base::CannotCreateError("{} cannot be created ({}) choose another run.dir", folder,
                                    error.message());
    }
    std::random_device device;
    job = std::to_string((std::uint64_t{device()} << 32) | device());
  });
  return std::stoull(parallel::broadcast_string(job, 0, world));
}

}  // namespace

struct Watchdog::State {
  WatchdogOptions options;
  int rank = 0;
  int size = 1;
  double tick_s = 1.0;
  std::uint64_t job = 0;
  ActivityBoard board;
  base::SpanObservation observation{board};
  Heartbeat own;
  StallClock clock;
  ReportMarker marker;
  std::vector<std::string> paths;  // of all ranks' heartbeats

  // While this rank speaks for all.
  std::vector<RankSight> sights;
  bool has_reported = false;
  // While another does.
  std::optional<ReportMarker::Content> heard;
  double unheard_s = 0.0;
  int ticks_waited = 0;
  bool has_complained = false;

  std::mutex mutex;
  std::condition_variable changed;
  bool stops = false;
  std::thread thread;

  State(const WatchdogOptions& watchdog, std::uint64_t job_number, const parallel::Communicator& world)
      : options(watchdog),
        rank(world.rank()),
        size(world.size()),
        tick_s(tick_of(watchdog)),
        job(job_number),
        clock(tick_s),
        marker(watchdog.folder, job_number, world.rank()) {
    own.host.set(host_name());
    own.role.set(options.role);
    own.rank = rank;
    own.pid = ::getpid();
    own.process_start = base::process_state(own.pid).value_or(base::ProcessState{}).start;
    for (int r = 0; r < size; ++r) {
      paths.push_back(fmt::format("{}/rank-{:05}", options.folder, r));
    }
  }

  double soft_s() const { return options.soft_s[static_cast<std::size_t>(own.phase)]; }
  double hard_s() const { return soft_s() * options.hard_factor; }
  double silence_s() const { return std::max(silent_ticks * tick_s, shortest_silence_s); }
  bool speaks() const { return !sights.empty(); }

  void run() {
    std::unique_lock lock(mutex);
    while (!changed.wait_for(lock, std::chrono::duration<double>(tick_s), [this] { return stops; })) {
      lock.unlock();
      tick();
      lock.lock();
    }
  }

  void tick() {
    const std::uint64_t progress = board.read(own);
    clock.tick(now_s(), progress);
    own.stalled_s = clock.stalled_s();
    const double soft = soft_s();
    own.is_late = soft > 0 && own.stalled_s >= soft && own.has_own_deadline == 0 ? 1 : 0;
    ++own.beats;
    const bool is_published = publish();
    const std::optional<ReportMarker::Content> said = marker.read();
    if (said && said->word == MarkerWord::leave) {
      leave();
    }
    if (soft == 0 || own.stalled_s < early_share * soft) {
      go_on();
      return;
    }
    if (!is_published && !said) {
      judge_alone();
    } else if (said && said->rank == rank) {
      speak();
    } else {
      listen(said);
    }
  }

  bool publish() {
    int problem = base::write_heartbeat(paths[static_cast<std::size_t>(rank)], job, own);
    if (problem == ENOENT) {
      std::error_code ignored;
      fs::create_directory(options.folder, ignored);  // its parent is gone, too: complained of below
      problem = base::write_heartbeat(paths[static_cast<std::size_t>(rank)], job, own);
    }
    if (problem != 0 && !has_complained) {
      has_complained = true;
      say("", {fmt::format("rank {} cannot write its heartbeat to {} ({}): nobody can say what it waits for",
                           rank, options.folder, std::strerror(problem))});
    }
    return problem == 0;
  }

  // There is progress.
  void go_on() {
    if (has_reported) {
      say(options.log_file, {fmt::format("rank {} goes on", rank)});
    }
    if (speaks()) {
      marker.remove();
    }
    sights.clear();
    heard.reset();
    has_reported = false;
    unheard_s = 0.0;
    ticks_waited = 0;
  }

  // Another rank speaks for all, or nobody yet.
  void listen(const std::optional<ReportMarker::Content>& said) {
    sights.clear();
    has_reported = false;
    if (!said) {
      if (ticks_waited++ >= std::min(rank, ticks_of_precedence) && marker.claim()) {
        start_speaking();
      }
      return;
    }
    const bool is_alive = !heard || heard->rank != said->rank || heard->sequence != said->sequence;
    unheard_s = is_alive ? 0.0 : unheard_s + clock.elapsed_s();
    heard = said;
    if (unheard_s >= silence_s() + tick_s * std::min(rank, ticks_of_precedence) &&
        marker.write(MarkerWord::looking)) {
      start_speaking();
    }
  }

  void start_speaking() {
    sights.assign(paths.size(), RankSight{});
    look();
  }

  // The last heartbeats of all ranks, and for how long each has been silent.
  void look() {
    for (int r = 0; r < size; ++r) {
      RankSight& sight = sights[static_cast<std::size_t>(r)];
      if (r == rank) {
        sight.beat = own;
        sight.life = ProcessLife::running;
        continue;
      }
      const auto beat = base::read_heartbeat(paths[static_cast<std::size_t>(r)], job);
      const bool is_new = beat && (!sight.beat || sight.beat->beats != beat->beats);
      sight.silent_s = is_new || clock.has_jumped() ? 0.0 : sight.silent_s + clock.elapsed_s();
      if (beat) {
        sight.beat = beat;
      }
      look_at_process(sight);
    }
  }

  // Of this machine's ranks the kernel knows more.
  void look_at_process(RankSight& sight) const {
    if (!sight.beat || sight.beat->host.view() != own.host.view()) {
      return;
    }
    const auto process = base::process_state(sight.beat->pid);
    const bool is_there = process && process->start == sight.beat->process_start && process->letter != 'Z';
    sight.process_state = is_there ? process->letter : '?';
    sight.life = !is_there                                          ? ProcessLife::gone
                 : process->letter == 'T' || process->letter == 't' ? ProcessLife::stopped
                                                                    : ProcessLife::running;
  }

  void speak() {
    if (!speaks()) {  // took the word in a tick before, or a jump came between
      start_speaking();
    }
    look();
    const Verdict verdict = own.stalled_s >= soft_s() ? judge(sights, rank, silence_s()) : Verdict{};
    if (!verdict.is_hang) {
      marker.write(MarkerWord::looking);
      return;
    }
    if (!has_reported) {
      has_reported = true;
      report(verdict);
    }
    const bool ends = options.hard_factor > 0 && own.stalled_s >= hard_s() &&
                      !somebody_goes_on(sights, silence_s(), early_share * soft_s());
    if (ends) {
      say(options.log_file,
          {fmt::format(
              "no progress for {:.1f} s ({} x watchdog.hard_factor): the job ends with exit code {}{}",
              own.stalled_s, key_of(own.phase), static_cast<int>(base::ExitCode::internal), blame(verdict))});
    }
    marker.write(ends ? MarkerWord::leave : MarkerWord::hang);
    if (ends) {
      // Others leave at their next tick; when this process ends with them the launcher ends what is left.
      std::this_thread::sleep_for(std::chrono::duration<double>(2.0 * tick_s));
      leave();
    }
  }

  static std::string blame(const Verdict& verdict) {
    return verdict.causes.empty() ? "" : fmt::format("; rank(s) {} hang", rank_list(verdict.causes));
  }

  void report(const Verdict& verdict) {
    std::vector<std::string> lines = {fmt::format("no progress for {:.1f} s in {} on rank {} ({}={}){}",
                                                  own.stalled_s, base::phase_name(own.phase), rank,
                                                  key_of(own.phase), soft_s(), blame(verdict))};
    for (std::string& line : describe_ranks(sights, verdict)) {
      lines.push_back(std::move(line));
    }
    lines.push_back(
        options.hard_factor > 0
            ? fmt::format(
                  "the job ends after {:.1f} s without progress; docs/operations.md says how to read this",
                  hard_s())
            : "the job is left alone (watchdog.hard_factor=0); docs/operations.md says how to read this");
    say(options.log_file, lines);
  }

  // The folder is lost: what this rank knows of itself has to do.
  void judge_alone() {
    if (own.is_late == 0) {
      return;
    }
    if (!has_reported) {
      has_reported = true;
      RankSight self;
      self.beat = own;
      say(options.log_file,
          {fmt::format("no progress, and no folder to tell others: {}", describe_rank(rank, self))});
    }
    if (options.hard_factor > 0 && own.stalled_s >= hard_s()) {
      say(options.log_file, {fmt::format("rank {} ends with exit code {} (no progress for {:.1f} s)", rank,
                                         static_cast<int>(base::ExitCode::internal), own.stalled_s)});
      leave();
    }
  }

  // Without destructors: the main thread may be anywhere.
  [[noreturn]] static void leave() { ::_exit(static_cast<int>(base::ExitCode::internal)); }

  void stop() {
    {
      const std::lock_guard lock(mutex);
      stops = true;
    }
    changed.notify_one();
    if (thread.joinable()) {
      thread.join();
    }
  }
};

Watchdog::Watchdog(const WatchdogOptions& options, const parallel::Communicator& world) {
  if (!watches(options)) {
    return;
  }
  const std::uint64_t job = open_folder(options.folder, world);
  state_ = std::make_unique<State>(options, job, world);
  state_->publish();  // who this is, should it hang before the first tick
  const SignalsBlocked blocked;
  state_->thread = std::thread([state = state_.get()] { state->run(); });
}

Watchdog::~Watchdog() {
  if (state_) {
    state_->stop();
  }
}

void Watchdog::finish(const parallel::Communicator& world) {
  if (!state_) {
    return;
  }
  state_->stop();
  state_->go_on();  // if somebody was told otherwise
  world.barrier();
  if (world.rank() == 0) {
    std::error_code ignored;  // what stays is removed by the next job
    fs::remove_all(state_->options.folder, ignored);
  }
}

}  // namespace athanor::train
