// `athanor bench stream`: teacher and students training together over the link, against the teacher alone and
// the students alone from recorded signals, alternating in one job.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "parallel/communicator.hpp"
#include "parallel/process_grid.hpp"
#include "train/bench_support.hpp"
#include "train/signal_plan.hpp"
#include "train/student_objective.hpp"
#include "train/trainer.hpp"

namespace athanor::train {

struct BenchStreamOptions {
  std::int64_t warmup_steps = 3;
  std::int64_t rounds = 5;
  std::int64_t steps_per_round = 3;
  TrainerOptions trainer;                  ///< of this rank's role
  std::shared_ptr<SignalOptions> signals;  ///< with one stage; total_steps is set by the benchmark
  std::optional<StudentOptions> student;   ///< students only
  /// Payload of a step to all students by the codecs' formulae.
  std::int64_t formula_payload_bytes = 0;
};

/// One round: seconds of a step of the slowest rank, and shares of a step of the slowest rank's wait.
struct StreamRound {
  double pair_s = 0.0;       ///< all together; of the slower role
  double teacher_s = 0.0;    ///< the teacher alone: plain training, no signals
  double students_s = 0.0;   ///< the students alone, from signals in their memory
  double pair_cpu_s = 0.0;   ///< processor time of all ranks together: what counts on shared cores
  double alone_cpu_s = 0.0;  ///< of the teacher alone and of the students alone, added
  double student_wait = 0.0;
  double teacher_wait = 0.0;
  /// Against max(teacher, students): 1 is perfect overlap on cores of their own.
  double ratio() const;
  /// Against teacher + students: 1 when both share cores and nothing is lost.
  double ratio_to_sum() const { return pair_s / (teacher_s + students_s); }
};

/// Bytes of a step over the link, headers included.
struct StreamBytes {
  std::int64_t sent = 0;      ///< handed to MPI by the teacher's ranks, counted
  std::int64_t received = 0;  ///< taken by the students' ranks, counted
  std::int64_t formula = 0;   ///< the codecs' payload and a header for each packet of the plan
  std::int64_t packets = 0;   ///< of the plan
  bool agree() const { return sent == formula && received == formula; }
};

/// What is known of one role.
struct StreamRole {
  std::string name;
  int ranks = 0;
  std::int64_t peak_rss_bytes = 0;  ///< largest rank, while all train together, before anything is recorded
  StepTimes together;               ///< mean of a step on the role's first rank
  StepTimes alone;
};

struct BenchStreamResult {
  std::int64_t tokens_per_step = 0;
  std::vector<StreamRound> rounds;
  StreamBytes bytes;
  std::vector<StreamRole> roles;  ///< the teacher, then the students
};

/// Collective over `world`; the first role is the teacher. Ranks whose role has nothing to do sleep.
BenchStreamResult bench_stream(const BenchStreamOptions& options, const parallel::Communicator& world,
                               const parallel::RoleSplit& roles);

}  // namespace athanor::train
