#include "train/bench_checkpoint.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <functional>
#include <optional>
#include <utility>

#include "base/error.hpp"
#include "base/stopwatch.hpp"
#include "checkpoint/checkpoint_reader.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/run_agreed.hpp"
#include "train/job_checkpoints.hpp"
#include "train/state_dict.hpp"

namespace athanor::train {
namespace {

namespace fs = std::filesystem;
constexpr std::int64_t piece_bytes = std::int64_t{16} << 20;

class RawFile {
 public:
  RawFile(const std::string& path, int flags) : fd_(::open(path.c_str(), flags, 0644)) {
    if (fd_ < 0) {
      throw base::CannotCreateError("{} cannot be opened ({}) choose another run.dir", path,
                                    std::strerror(errno));
    }
  }
  ~RawFile() { ::close(fd_); }
  RawFile(const RawFile&) = delete;
  RawFile& operator=(const RawFile&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_ = -1;
};

[[noreturn]] void fail(const char* call) {
  throw base::IoError("{} failed ({}) choose another run.dir", call, std::strerror(errno));
}

void write_raw(const std::string& path, const std::vector<char>& bytes) {
  const RawFile file(path, O_WRONLY | O_CREAT | O_TRUNC);
  for (std::size_t at = 0; at < bytes.size();) {
    const std::size_t size = std::min<std::size_t>(piece_bytes, bytes.size() - at);
    const ssize_t done = ::write(file.fd(), &bytes[at], size);
    if (done <= 0) {
      fail("write");
    }
    at += static_cast<std::size_t>(done);
  }
  if (::fsync(file.fd()) != 0) {
    fail("fsync");
  }
}

void read_raw(const std::string& path, std::vector<char>& bytes) {
  const RawFile file(path, O_RDONLY);
  for (std::size_t at = 0; at < bytes.size();) {
    const ssize_t done = ::read(file.fd(), &bytes[at], std::min<std::size_t>(piece_bytes, bytes.size() - at));
    if (done <= 0) {
      fail("read");
    }
    at += static_cast<std::size_t>(done);
  }
}

// The next read comes from the disk.
void drop_page_cache(const std::string& path) {
  const RawFile file(path, O_RDONLY);
  if (::posix_fadvise(file.fd(), 0, 0, POSIX_FADV_DONTNEED) != 0) {
    fail("posix_fadvise");
  }
}

// Seconds of the slowest rank.
double time_together(const parallel::Communicator& world, const std::function<void()>& action) {
  world.barrier();
  const base::Stopwatch watch;
  action();
  const double seconds = watch.seconds();
  const std::vector<std::string> all = parallel::all_gather_strings(fmt::format("{}", seconds), world);
  double slowest = 0.0;
  for (const std::string& text : all) {
    slowest = std::max(slowest, std::stod(text));
  }
  return slowest;
}

std::int64_t folder_bytes(const std::string& folder) {
  std::int64_t bytes = 0;
  for (const auto& entry : fs::directory_iterator(folder)) {
    bytes += static_cast<std::int64_t>(entry.file_size());
  }
  return bytes;
}

// Everything one round measures, in seconds.
struct Samples {
  std::vector<double> raw_write, save, raw_read, load, stall, copy, step, overlapped;
};

class CheckpointBench {
 public:
  CheckpointBench(const BenchCheckpointOptions& options, const parallel::Communicator& world)
      : options_(options), world_(world), trainer_(options.trainer, world) {
    for (const checkpoint::TensorSlice& slice : written_slices(trainer_)) {
      own_bytes_ += slice.bytes();
    }
    raw_.assign(static_cast<std::size_t>(own_bytes_), 1);
    copy_.assign(static_cast<std::size_t>(own_bytes_), 2);
    raw_path_ = fmt::format("{}/raw-{}", options.folder, world.rank());
    for (int i = 0; i < 3; ++i) {
      train_one();
    }
    sync_.emplace(job("sync", false), trainer_, world);
    async_.emplace(job("async", true), trainer_, world);
  }

  BenchCheckpointResult run() {
    for (std::int64_t round = 0; round <= options_.rounds; ++round) {
      measure_files();
      measure_overlap();
      if (round == 0) {  // everything is touched once before it counts
        samples_ = {};
      }
    }
    BenchCheckpointResult result;
    result.bytes = parallel::all_reduce_sum(own_bytes_, world_);
    result.disk_bytes = folder_bytes(sync_->last_path());
    result.parameters = trainer_.parameters().global_numel();
    const auto rate = [&](std::vector<double> seconds) {
      for (double& value : seconds) {
        value = static_cast<double>(result.bytes) / value;
      }
      return spread_of(std::move(seconds));
    };
    result.raw_write = rate(samples_.raw_write);
    result.save = rate(samples_.save);
    result.save_ratio = ratio(samples_.raw_write, samples_.save);
    result.raw_read = rate(samples_.raw_read);
    result.load = rate(samples_.load);
    result.load_ratio = ratio(samples_.raw_read, samples_.load);
    result.stall_s = spread_of(samples_.stall);
    result.copy_s = spread_of(samples_.copy);
    result.step_s = spread_of(samples_.step);
    result.overlapped_step_s = spread_of(samples_.overlapped);
    result.slowdown = ratio(samples_.overlapped, samples_.step);
    world_.barrier();
    return result;
  }

 private:
  JobCheckpoints::Job job(const std::string& name, bool async) const {
    JobCheckpoints::Job job;
    job.options.dir = options_.folder + "/" + name;
    job.options.keep = 1;
    job.options.async = async;
    job.options.on_error = OnSaveError::stop;
    job.head.run_id = "0000000000000000";
    job.head.program = "athanor bench";
    job.head.world_size = world_.size();
    parallel::run_agreed(world_, [&] { fs::create_directories(job.options.dir); });
    return job;
  }

  static Spread ratio(const std::vector<double>& above, const std::vector<double>& below) {
    std::vector<double> ratios;
    for (std::size_t i = 0; i < above.size(); ++i) {
      ratios.push_back(above[i] / below[i]);
    }
    return spread_of(std::move(ratios));
  }

  double train_one() {
    const StepMetrics metrics =
        trainer_.step(synthetic_step(options_.trainer, trainer_.replica(), trainer_.state().step));
    return metrics.times.total_s;
  }

  void measure_files() {
    train_one();  // another step number, other contents
    samples_.raw_write.push_back(time_together(world_, [&] { write_raw(raw_path_, raw_); }));
    samples_.save.push_back(time_together(world_, [&] {
      sync_->save();
      sync_->finish();
    }));
    drop_page_cache(raw_path_);
    samples_.raw_read.push_back(time_together(world_, [&] { read_raw(raw_path_, raw_); }));
    if (world_.rank() == 0) {
      for (const auto& entry : fs::directory_iterator(sync_->last_path())) {
        drop_page_cache(entry.path().string());
      }
    }
    samples_.load.push_back(time_together(world_, [&] {
      const checkpoint::CheckpointReader reader(sync_->last_path());
      StagedState staged(trainer_, reader);
      std::move(staged).apply(trainer_);
    }));
    fs::remove(raw_path_);
  }

  // Steps beside a save in flight, between steps without one.
  void measure_overlap() {
    samples_.copy.push_back(
        time_together(world_, [&] { std::memcpy(copy_.data(), raw_.data(), raw_.size()); }));
    const double before = train_one();
    const double stall = async_->save();
    std::vector<double> overlapped;
    do {
      overlapped.push_back(train_one());
      async_->poll();
    } while (parallel::all_reduce_max(async_->is_saving() ? 1 : 0, world_) > 0);
    async_->finish();
    const double after = train_one();
    samples_.stall.push_back(stall);
    samples_.step.push_back(0.5 * (before + after));
    samples_.overlapped.push_back(spread_of(overlapped).median);
  }

  const BenchCheckpointOptions& options_;
  const parallel::Communicator& world_;
  Trainer trainer_;
  std::optional<JobCheckpoints> sync_;
  std::optional<JobCheckpoints> async_;
  std::int64_t own_bytes_ = 0;
  std::vector<char> raw_;
  std::vector<char> copy_;
  std::string raw_path_;
  Samples samples_;
};

}  // namespace

BenchCheckpointResult bench_checkpoint(const BenchCheckpointOptions& options,
                                       const parallel::Communicator& world) {
  return CheckpointBench(options, world).run();
}

}  // namespace athanor::train
