#include "train/bench_collectives.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <utility>

#include "base/error.hpp"
#include "parallel/collectives/algorithms/mpi_sums.hpp"
#include "parallel/collectives/collectives.hpp"

namespace athanor::train {
namespace {

using parallel::Algorithm;
using parallel::AlgorithmTable;
using parallel::Communicator;
using parallel::Operation;
using parallel::Traffic;

constexpr std::int64_t small_bytes = 16 * 1024;         // counts are never more
constexpr std::int64_t gather_bytes = 4 * 1024 * 1024;  // gathering whole tensors takes `ranks` times as much
constexpr std::int64_t bytes_of_round = 8 * 1024 * 1024;  // calls are repeated up to about that

// One collective at one size, ready to be called.
struct Work {
  CollectiveCase result;
  std::function<void()> call;
  std::function<void()> mpi_sum;  ///< empty: there is none
};

at::Tensor floats(std::int64_t bytes) {
  return at::full({bytes / 4}, 1.0, at::kFloat);
}

CollectiveCase make_case(const char* name, Operation operation, std::int64_t bytes, std::int64_t moved) {
  return {name, operation, bytes, moved, {}, {}};
}

Work exchange_work(const Communicator& world, std::int64_t bytes) {
  const std::int64_t others = world.size() - 1;
  const std::int64_t part = std::max<std::int64_t>(bytes / others, 1);
  std::vector<std::int64_t> rows(static_cast<std::size_t>(world.size()), part);
  rows[static_cast<std::size_t>(world.rank())] = 0;
  const at::Tensor sent = at::ones({part * others}, at::kByte);
  const at::Tensor received = at::empty_like(sent);
  return {make_case("all_to_all_v", Operation::exchange, part * others, part * others),
          [=, &world] { all_to_all_v_into(received, sent, rows, rows, world, Traffic::other); },
          {}};
}

Work counts_work(const Communicator& world, std::int64_t bytes) {
  const std::int64_t numbers = std::max<std::int64_t>(bytes / 8 / (world.size() - 1), 1);
  const at::Tensor counts = at::ones({world.size(), numbers}, at::kLong);
  const std::int64_t sent = numbers * 8 * (world.size() - 1);
  return {make_case("exchange_counts", Operation::exchange, sent, sent),
          [=, &world] { exchange_counts(counts, world, Traffic::other); },
          {}};
}

Work reduce_scatter_work(const Communicator& world, std::int64_t bytes) {
  const std::int64_t part = std::max<std::int64_t>(bytes / 4 / world.size(), 1) * 4;
  const at::Tensor input = floats(part * world.size());
  const at::Tensor output = floats(part);
  return {
      make_case("reduce_scatter_sum", Operation::exchange, part * world.size(), part * (world.size() - 1)),
      [=, &world] {
        at::Tensor sum = output;
        reduce_scatter_sum_into(sum, input, world, Traffic::other);
      },
      [=, &world] {
        at::Tensor sum = output;
        mpi_reduce_scatter_sum(sum, input, world);
      }};
}

Work all_gather_work(const Communicator& world, std::int64_t bytes) {
  const std::int64_t part = std::max<std::int64_t>(bytes / world.size(), 1);
  const at::Tensor whole = at::ones({part * world.size()}, at::kByte);
  const at::Tensor own = whole.narrow(0, part * world.rank(), part);
  return {make_case("all_gather", Operation::all_gather, part * world.size(), part * (world.size() - 1)),
          [=, &world] {
            at::Tensor output = whole;
            all_gather_into(output, own, world, Traffic::other);
          },
          {}};
}

Work all_reduce_work(const Communicator& world, std::int64_t bytes) {
  const at::Tensor tensor = at::zeros({std::max<std::int64_t>(bytes / 4, 1)}, at::kFloat);
  const std::int64_t total = tensor.numel() * 4;
  return {
      make_case("all_reduce", Operation::all_reduce, total, 2 * total / world.size() * (world.size() - 1)),
      [=, &world] {
        at::Tensor sum = tensor;
        all_reduce_(sum, parallel::ReduceOp::sum, world, Traffic::other);
      },
      [=, &world] {
        at::Tensor sum = tensor;
        mpi_all_reduce_sum(sum, world);
      }};
}

Work broadcast_work(const Communicator& world, std::int64_t bytes) {
  const at::Tensor tensor = at::ones({bytes}, at::kByte);
  return {make_case("broadcast", Operation::broadcast, bytes, bytes),
          [=, &world] {
            at::Tensor target = tensor;
            broadcast_(target, 0, world, Traffic::other);
          },
          {}};
}

Work barrier_work(const Communicator& world) {
  return {make_case("barrier", Operation::barrier, 0, 64), [&world] { world.barrier(); }, {}};
}

double slowest(double seconds, const Communicator& world) {
  at::Tensor all = at::full({1}, seconds, at::kDouble);
  all_reduce_(all, parallel::ReduceOp::max, world, Traffic::other);
  return all.item<double>();
}

// Seconds of one call on the slowest rank.
double time_calls(const std::function<void()>& call, std::int64_t calls, const Communicator& world) {
  world.barrier();
  const auto start = std::chrono::steady_clock::now();
  for (std::int64_t i = 0; i < calls; ++i) {
    call();
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  return slowest(seconds.count() / static_cast<double>(calls), world);
}

// A table for the length of one measurement.
class WithTable {
 public:
  WithTable(const Communicator& world, const AlgorithmTable& table)
      : table_(parallel::algorithms_of(world)), before_(table_) {
    table_ = table;
  }
  ~WithTable() { table_ = std::move(before_); }
  WithTable(const WithTable&) = delete;
  WithTable& operator=(const WithTable&) = delete;

 private:
  AlgorithmTable& table_;
  AlgorithmTable before_;
};

bool is_worth_measuring(Operation operation, Algorithm algorithm, std::int64_t bytes) {
  return operation != Operation::all_reduce || algorithm != Algorithm::gather || bytes <= gather_bytes;
}

CollectiveCase measure(Work work, const BenchCollectivesOptions& options, const Communicator& world) {
  CollectiveCase& result = work.result;
  const Algorithm chosen = parallel::chosen_algorithm(world, result.operation, result.bytes);
  std::vector<std::function<double(std::int64_t)>> timers;
  for (const Algorithm algorithm : parallel::algorithms_for(result.operation)) {
    if (algorithm != chosen && !is_worth_measuring(result.operation, algorithm, result.bytes)) {
      continue;
    }
    result.algorithms.push_back({std::string(name_of(algorithm)), algorithm, algorithm == chosen, {}, {}});
    timers.emplace_back([&, algorithm](std::int64_t calls) {
      const WithTable table(
          world, AlgorithmTable({{result.operation, parallel::any_ranks, parallel::any_bytes, algorithm}}));
      return time_calls(work.call, calls, world);
    });
  }
  if (work.mpi_sum) {
    result.algorithms.push_back({"MPI's sum", std::nullopt, false, {}, {}});
    timers.emplace_back([&](std::int64_t calls) { return time_calls(work.mpi_sum, calls, world); });
  }
  const at::Tensor from = at::ones({result.moved_bytes}, at::kByte);
  const at::Tensor to = at::ones({result.moved_bytes}, at::kByte);
  const auto copy = [&] {
    std::memcpy(to.mutable_data_ptr(), from.const_data_ptr(), static_cast<std::size_t>(result.moved_bytes));
  };
  const std::int64_t calls = std::clamp<std::int64_t>(bytes_of_round / result.moved_bytes, 1, 100);
  std::vector<double> copies;
  std::vector<std::vector<double>> seconds(timers.size()), ratios(timers.size());
  for (std::int64_t round = -1; round < options.rounds;
       ++round) {  // the first touches memory and is not counted
    const double copy_s = time_calls(copy, calls, world);
    for (std::size_t i = 0; i < timers.size(); ++i) {
      const double call_s = timers[i](calls);
      if (round >= 0) {
        seconds[i].push_back(call_s);
        ratios[i].push_back(copy_s / call_s);
      }
    }
    if (round >= 0) {
      copies.push_back(copy_s);
    }
  }
  result.copy_s = spread_of(copies);
  for (std::size_t i = 0; i < timers.size(); ++i) {
    result.algorithms[i].seconds = spread_of(seconds[i]);
    result.algorithms[i].ratio = spread_of(ratios[i]);
  }
  return std::move(result);
}

// The algorithm of a rule for one size: the table's unless another is clearly faster. The ranks of one
// exchange may choose differently, which MPI's all-to-all does not stand.
Algorithm worth_choosing(const CollectiveCase& measured) {
  const AlgorithmTime& chosen = measured.algorithms[measured.chosen()];
  const AlgorithmTime* best = &chosen;
  for (const AlgorithmTime& time : measured.algorithms) {
    const bool may_be = time.algorithm.has_value() && !(measured.operation == Operation::exchange &&
                                                        *time.algorithm == Algorithm::collective);
    if (may_be && time.seconds.median < 0.95 * chosen.seconds.median &&
        time.seconds.median < best->seconds.median) {
      best = &time;
    }
  }
  return *best->algorithm;
}

}  // namespace

std::size_t CollectiveCase::chosen() const {
  const auto found =
      std::ranges::find_if(algorithms, [](const AlgorithmTime& time) { return time.is_chosen; });
  ATHANOR_CHECK(found != algorithms.end(), "the table's algorithm for {} was not measured", name);
  return static_cast<std::size_t>(found - algorithms.begin());
}

std::size_t CollectiveCase::best() const {
  std::size_t best = chosen();
  for (std::size_t i = 0; i < algorithms.size(); ++i) {
    if (algorithms[i].algorithm && algorithms[i].seconds.median < algorithms[best].seconds.median) {
      best = i;
    }
  }
  return best;
}

std::vector<CollectiveCase> bench_collectives(const BenchCollectivesOptions& options,
                                              const Communicator& world) {
  std::vector<CollectiveCase> cases;
  if (world.size() == 1) {
    return cases;
  }
  std::vector<std::int64_t> sizes;
  for (std::int64_t bytes = options.min_bytes; bytes <= options.max_bytes; bytes *= 4) {
    sizes.push_back(bytes);
  }
  using Maker = Work (*)(const Communicator&, std::int64_t);
  const std::pair<Maker, std::int64_t> makers[] = {{counts_work, small_bytes},
                                                   {exchange_work, options.max_bytes},
                                                   {reduce_scatter_work, options.max_bytes},
                                                   {all_gather_work, options.max_bytes},
                                                   {all_reduce_work, options.max_bytes},
                                                   {broadcast_work, options.max_bytes}};
  cases.push_back(measure(barrier_work(world), options, world));
  for (const auto& [make, largest] : makers) {
    for (const std::int64_t bytes : sizes) {
      if (bytes <= largest) {
        cases.push_back(measure(make(world, bytes), options, world));
      }
    }
  }
  return cases;
}

std::vector<parallel::AlgorithmRule> best_rules(const std::vector<CollectiveCase>& cases, int ranks) {
  std::vector<parallel::AlgorithmRule> rules;
  for (const Operation operation : parallel::all_operations()) {
    const CollectiveCase* before = nullptr;
    const std::size_t first = rules.size();
    for (const CollectiveCase& measured : cases) {
      // What an exchange is chosen by is the exchange alone, not the sums and counts that use it too.
      if (measured.operation != operation || measured.name == "exchange_counts" ||
          measured.name == "reduce_scatter_sum") {
        continue;
      }
      const Algorithm algorithm = worth_choosing(measured);
      if (rules.size() > first && rules.back().algorithm == algorithm) {
        before = &measured;
        continue;
      }
      if (before != nullptr) {  // up to the middle of two sizes, on a scale of factors
        rules.back().max_bytes = 2 * before->bytes;
      }
      rules.push_back({operation, ranks, parallel::any_bytes, algorithm});
      before = &measured;
    }
  }
  return rules;
}

}  // namespace athanor::train
