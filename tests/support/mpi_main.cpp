// main() of the MPI tests: one gtest run on all ranks. Rank 0 prints; after each test the failures of the
// other ranks are gathered and become failures of rank 0, each printed once. A rank that hangs, or that
// others leave waiting because they failed, ends the job through a watchdog that names test and rank.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "parallel/collectives/collectives.hpp"
#include "parallel/mpi_environment.hpp"
#include "parallel/nccl/enable_nccl.hpp"
#include "support/mpi_test.hpp"
#include "support/nccl_over_mpi.hpp"
#include "support/skip_code.hpp"
#include "support/watched_memory.hpp"

namespace athanor::tests {
namespace {

constexpr int default_deadline_s = 100;
// After a failure here the others may wait for this rank for ever: the time they get to arrive all the same.
constexpr int grace_s = 15;

const parallel::Communicator* world_instance = nullptr;

int deadline_s() {
  const char* text = std::getenv("ATHANOR_TEST_DEADLINE_S");
  const int value = text == nullptr ? 0 : std::atoi(text);
  return value > 0 ? value : default_deadline_s;
}

// Ends the process (and by mpirun's doing the job) when a test outlives its deadline. The thread makes no MPI
// call.
class HangWatchdog {
 public:
  explicit HangWatchdog(std::string rank_name)
      : rank_name_(std::move(rank_name)), thread_([this] { run(); }) {}
  ~HangWatchdog() {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
    }
    changed_.notify_one();
    thread_.join();
  }

  // From now on `what` may take `seconds`; `note` is printed with the report if it takes longer.
  void expect(std::string what, int seconds, std::string note = {}) {
    {
      const std::lock_guard lock(mutex_);
      what_ = std::move(what);
      note_ = std::move(note);
      seconds_ = seconds;
      deadline_ = Clock::now() + std::chrono::seconds(seconds);
    }
    changed_.notify_one();
  }

 private:
  using Clock = std::chrono::steady_clock;

  void run() {
    std::unique_lock lock(mutex_);
    while (!stopped_) {
      if (changed_.wait_until(lock, deadline_) == std::cv_status::timeout && Clock::now() >= deadline_ &&
          !stopped_) {
        std::fprintf(stderr, "[  HANG    ] %s waited %d s for %s to end\n%s\n", rank_name_.c_str(), seconds_,
                     what_.c_str(), note_.c_str());
        std::fflush(nullptr);
        std::_Exit(EXIT_FAILURE);
      }
    }
  }

  std::string rank_name_;
  std::string what_ = "the start of the test program";
  std::string note_;
  int seconds_ = default_deadline_s;
  Clock::time_point deadline_ = Clock::now() + std::chrono::seconds(default_deadline_s);
  bool stopped_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::thread thread_;  // last: it uses the others
};

std::string full_name(const testing::TestInfo& test) {
  return std::string(test.test_suite_name()) + "." + test.name();
}

// Keeps this rank's failures and shares them at the end of each test.
class RankFailures final : public testing::EmptyTestEventListener {
 public:
  RankFailures(const parallel::Communicator& comm, HangWatchdog& watchdog)
      : comm_(comm), watchdog_(watchdog) {}

  void OnTestStart(const testing::TestInfo& test) override {
    watchdog_.expect(full_name(test), deadline_s());
  }

  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed() || sharing_) {
      return;
    }
    std::ostringstream text;
    text << (result.file_name() == nullptr ? "unknown file" : result.file_name()) << ":"
         << result.line_number() << ": " << result.message() << "\n";
    failures_ += text.str();
  }

  void OnTestEnd(const testing::TestInfo& test) override {
    share(full_name(test));
    watchdog_.expect("what follows " + full_name(test), deadline_s());
  }

  // Failures outside tests (set-up of suites and the like).
  void OnTestProgramEnd(const testing::UnitTest& /*unit_test*/) override { share("the end of the tests"); }

 private:
  void share(const std::string& where) {
    if (failures_.empty()) {
      watchdog_.expect(where + " of the other ranks", deadline_s());
    } else {
      watchdog_.expect(where + " of the other ranks after this one failed", grace_s, failures_);
    }
    const auto by_rank = parallel::all_gather_strings(failures_, comm_);
    sharing_ = true;
    for (int rank = 0; rank < comm_.size(); ++rank) {
      const std::string& text = by_rank[static_cast<std::size_t>(rank)];
      if (!text.empty() && rank != comm_.rank()) {
        ADD_FAILURE() << "rank " << rank << " of " << comm_.size() << " failed:\n" << text;
      }
    }
    sharing_ = false;
    failures_.clear();
  }

  const parallel::Communicator& comm_;
  HangWatchdog& watchdog_;
  std::string failures_;
  bool sharing_ = false;
};

// `sharing` is for failures: no test uses it.
int run_tests(const parallel::Communicator& comm, const parallel::Communicator& sharing) {
  HangWatchdog watchdog("rank " + std::to_string(comm.rank()) + " of " + std::to_string(comm.size()));
  auto& listeners = testing::UnitTest::GetInstance()->listeners();
  if (comm.rank() > 0) {
    delete listeners.Release(listeners.default_result_printer());
    delete listeners.Release(listeners.default_xml_generator());
  }
  auto failures = std::make_unique<RankFailures>(sharing, watchdog);
  listeners.Append(failures.get());
  const int result = exit_code(RUN_ALL_TESTS());
  listeners.Release(failures.get());
  return static_cast<int>(parallel::all_reduce_max(static_cast<std::int64_t>(result), sharing));
}

bool wants_nccl_double() {
  const char* backend = std::getenv("ATHANOR_TEST_BACKEND");
  return backend != nullptr && std::string_view(backend) == "nccl_over_mpi";
}

// 0, or 1 and a report of what the double still holds against the run on this rank.
int judge(const NcclOverMpi& nccl, int rank) {
  std::string report;
  for (const auto& [title, lines] :
       {std::pair("complaint", nccl.complaints()), std::pair("leak", nccl.leaks())}) {
    for (const std::string& line : lines) {
      report += std::string(title) + " on rank " + std::to_string(rank) + ": " + line + "\n";
    }
  }
  std::fputs(report.c_str(), stderr);
  if (rank == 0) {
    std::printf("%lld operations went through NcclBackend on rank 0\n",
                static_cast<long long>(nccl.num_operations()));
  }
  return report.empty() ? 0 : 1;
}

int run_over_nccl(const parallel::MpiEnvironment& environment, const parallel::Communicator& sharing) {
  watch_tensor_memory();
  const auto nccl = std::make_shared<NcclOverMpi>();
  set_memory_listener([&](const void* data, std::size_t bytes) { nccl->memory_is_freed(data, bytes); });
  int result = 0;
  {
    parallel::Communicator world = environment.make_world();
    parallel::enable_nccl(world, nccl, {.init_deadline_s = 60.0, .deadline_s = 60.0});
    world_instance = &world;
    result = run_tests(world, sharing);
  }
  set_memory_listener({});
  const int verdict = judge(*nccl, sharing.rank());
  return std::max(result,
                  static_cast<int>(parallel::all_reduce_max(static_cast<std::int64_t>(verdict), sharing)));
}

}  // namespace

void let_all_arrive(const parallel::Communicator& comm) {
  parallel::exchange_counts(at::zeros({comm.size()}, at::kLong), comm, parallel::Traffic::other);
}

const parallel::Communicator& world() {
  return *world_instance;
}

}  // namespace athanor::tests

int main(int argc, char** argv) {
  athanor::parallel::MpiEnvironment environment(&argc, &argv);
  testing::InitGoogleTest(&argc, argv);
  at::set_num_threads(1);  // ranks share the cores
  const athanor::parallel::Communicator sharing = environment.make_world();
  if (athanor::tests::wants_nccl_double()) {
    return athanor::tests::run_over_nccl(environment, sharing);
  }
  const athanor::parallel::Communicator world = environment.make_world();
  athanor::tests::world_instance = &world;
  return athanor::tests::run_tests(world, sharing);
}
