// The whole run as plain values: what the command line and the config file resolve to.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/precision.hpp"
#include "config/plan/plan_section.hpp"
#include "data/tokenize.hpp"
#include "distill/attention_loss.hpp"
#include "distill/codec.hpp"
#include "distill/gates.hpp"
#include "distill/hidden_loss.hpp"
#include "distill/kd_options.hpp"
#include "distill/phase.hpp"
#include "distill/schedules.hpp"
#include "distill/student_init.hpp"
#include "model/transformer_config.hpp"
#include "optim/optim_options.hpp"
#include "parallel/process_grid.hpp"

namespace athanor::config {

/// The version that --version prints; a test keeps it equal to the build's.
inline constexpr std::string_view version = "0.1.0";

/// What the program is asked to do.
enum class Command {
  tokenize,
  train,
  distill,
  evaluate,
  generate,
  bench_step,
  bench_checkpoint,
  bench_stream,
  bench_collectives,
  bench_dispatch,
  bench_kernels,
  checkpoint_list,
  checkpoint_verify,
  checkpoint_show,
  checkpoint_diff,
  checkpoint_merge,
  checkpoint_export,
  checkpoint_import
};

inline constexpr std::array<Command, 18> all_commands = {
    Command::tokenize,          Command::train,
    Command::distill,           Command::evaluate,
    Command::generate,          Command::bench_step,
    Command::bench_checkpoint,  Command::bench_stream,
    Command::bench_collectives, Command::bench_dispatch,
    Command::bench_kernels,     Command::checkpoint_list,
    Command::checkpoint_verify, Command::checkpoint_show,
    Command::checkpoint_diff,   Command::checkpoint_merge,
    Command::checkpoint_export, Command::checkpoint_import};
/// The words on the command line: "train", "bench step".
std::string_view command_name(Command command);

/// Whether the command looks at or converts checkpoints: it takes no model, and one rank does.
bool converts_checkpoints(Command command);

/// Whether the command has a model, and with it roles and a plan of their memory.
bool has_model(Command command);

/// Whether the command has a teacher and students, and `distill.*`.
bool has_students(Command command);

enum class DeviceKind { cpu, cuda };
enum class OnSaveError { retry, stop };
enum class GuardAction { off, warn, skip, rollback };
enum class InitMode { exact, shrink };
enum class OnTeacherLoss { stop, labels };
enum class SearchKind { none, temperature };
enum class ExchangeFormat { hf };
enum class ExchangeType { stored, f32, bf16 };

/// `run.*`.
struct RunSection {
  std::string dir = "runs/default";
  std::uint64_t seed = 0;
  DeviceKind device = DeviceKind::cpu;
  std::string resume = "auto";  ///< auto, never, or a path
  std::string allow_mismatch;   ///< list of keys that may differ from the checkpoint's
  std::int64_t end_time = 0;    ///< seconds since 1970; 0: unknown
  double stop_margin_s = 60.0;
  bool check_collectives = false;
  double check_deadline_s = 600.0;
};

/// `watchdog.*`: longest times without progress; 0: not watched.
struct WatchdogSection {
  double start_s = 1800.0;
  double step_s = 600.0;
  double evaluate_s = 600.0;
  double save_s = 1800.0;
  double hard_factor = 3.0;      ///< 0: told of, never ended
  double straggler_score = 0.5;  ///< 0: stragglers are not looked for
};

/// `checkpoint.*`.
struct CheckpointSection {
  std::int64_t every = 500;
  std::int64_t keep = 3;
  std::string pinned;  ///< list of steps
  bool async = true;
  std::string dir;  ///< empty: <run.dir>/checkpoints
  OnSaveError on_error = OnSaveError::retry;
};

/// `guard.*`.
struct GuardSection {
  GuardAction action = GuardAction::warn;
  std::int64_t window = 128;
  double loss_mads = 10.0;
  double norm_factor = 10.0;
  std::int64_t min_steps = 64;
  std::int64_t max_trips = 5;
  std::int64_t hold_steps = 20;
  std::int64_t max_rollbacks = 3;
  std::int64_t skip_batches = 0;
  std::int64_t replica_every = 100;
};

/// `monitor.*`.
struct MonitorSection {
  double expert_use_std = 0.15;
  double loss_fluctuation = 0.3;
  double step_time_ratio = 2.0;
  std::int64_t window = 100;
  std::int64_t repeat_every = 1000;
};

/// `distill.*`; what it means for the layers and steps of a run: distill_plan.hpp.
struct DistillSection {
  std::string students;  ///< list of names; empty: one student, whose role is called student
  std::int64_t window = 2;
  bool overlap_sends = true;
  std::string phases = "three_stage";        ///< a preset, or a list of kind:fraction
  std::string phase_settings;                ///< a list of stage.key=value
  distill::AlphaSchedule alpha;              ///< alpha_schedule, alpha, alpha_end
  distill::TemperatureSchedule temperature;  ///< as written: a period of 0 spreads the steps over a phase
  distill::CodecOptions codec;               ///< codec, top_k, samples
  distill::KdOptions kd;                     ///< loss, skew, beta
  std::string hidden_layers = "1";           ///< a count, or a list of student:teacher[:weight]; 0: none
  distill::HiddenOptions hidden;             ///< hidden_loss, hidden_gradient_scale
  double hidden_weight = distill::FeatureMix{}.hidden;
  base::WireType hidden_wire = base::WireType::full;  ///< of layers' hidden states
  std::string attention_layers = "0";                 ///< as hidden_layers
  distill::AttentionLossKind attention_loss = distill::AttentionLossOptions{}.kind;
  double attention_weight = distill::FeatureMix{}.attention;
  bool maturity_gate = false;
  distill::MaturityOptions maturity;  ///< maturity_margin
  bool difficulty_gate = false;
  distill::DifficultyOptions difficulty;  ///< difficulty_full_until, difficulty_zero_from
  bool balance_losses = false;
  distill::WeightSchedule hidden_schedule;     ///< hidden_warmup_steps, hidden_decay; its base is not used
  distill::WeightSchedule attention_schedule;  ///< attention_warmup_steps, attention_decay; likewise
  std::int64_t decay_period = 100;
  double held_out = 0.0;                   ///< share of samples that students are not trained on
  distill::EarlyStoppingOptions stopping;  ///< patience, min_improvement
  OnTeacherLoss on_teacher_loss = OnTeacherLoss::stop;
  std::int64_t gap_every = 0;
  double gap_fraction = 0.01;
  double deadline_s = 300.0;        ///< longest wait for the other side of the link
  std::string source = "live";      ///< or the folder of a recording
  std::string record;               ///< folder to record in; empty: none
  std::string record_temperatures;  ///< list
  SearchKind search = SearchKind::none;
  std::int64_t trials = 20;
  std::int64_t trial_steps = 100;
};

/// `from`, `to`, `format`, `dtype`: what the checkpoint commands read and write.
struct ExchangeSection {
  std::string from;
  std::string to;
  ExchangeFormat format = ExchangeFormat::hf;
  ExchangeType dtype = ExchangeType::stored;
  std::int64_t shard_bytes = 5'000'000'000;
};

/// `data.*`; lists of path[:weight[:domain]].
struct DataSection {
  std::string train;
  std::string valid;
  std::string tokenizer;
  bool reset_attention = false;
};

/// `batch.*` of the run; `batch.micro` belongs to a role.
struct BatchSection {
  std::int64_t global = 8;
  std::int64_t seq = 256;
};

/// `parallel.*` of a role; the data-parallel degree follows from its number of ranks.
struct ParallelSection {
  int tp = 1;
  int ep = 1;
};

/// `precision.*` of a role.
struct PrecisionSection {
  base::ComputeType compute = base::ComputeType::f32;
  base::WireType grad_comm = base::WireType::full;
  base::WireType dispatch_comm = base::WireType::full;
  base::WireType combine_comm = base::WireType::full;
  base::Fp8Format fp8_format = base::Fp8Format::e4m3;
  bool error_feedback = false;
  std::vector<nn::ActivationClass> store_activations;
  optim::StoredGradients store_gradients = optim::StoredGradients::none;
};

/// `train.*`.
struct TrainSection {
  std::int64_t steps = 100;
  std::int64_t log_every = 10;
  std::int64_t eval_every = 0;
  std::int64_t eval_batches = 0;
  std::int64_t trace = 0;
  std::int64_t trace_from = 0;
};

/// `generate.*`.
struct GenerateSection {
  std::string prompt;
  std::int64_t max_new_tokens = 256;
  std::int64_t min_new_tokens = 0;
  std::int64_t top_k = 50;
  double top_p = 1.0;
  double temperature = 1.0;
  double repetition_penalty = 1.2;
  double length_penalty = 0.8;
  std::int64_t beams = 1;
  std::uint64_t seed = 0;
};

/// `bench.*`.
struct BenchSection {
  std::int64_t warmup_steps = 3;
  std::int64_t rounds = 5;
  std::int64_t steps_per_round = 3;
  bool compare_balanced = false;
  bool worst_routing = false;
  std::int64_t min_bytes = 1024;
  std::int64_t max_bytes = 64 * 1024 * 1024;
  std::string table;  ///< file to write the best algorithms to; empty: none
};

/// `input` (a comma-separated list), `output`, `tokenizer` and `tokenize.*`.
struct TokenizeSection {
  std::string input;
  data::TokenizeOptions options;
};

/// `checkpoint` and `role`: which weights evaluate and generate read.
struct SourceSection {
  std::string checkpoint;
  std::string role = "teacher";
};

/// One role of the job: everything that may differ between teacher and student.
struct RoleConfig {
  std::string name = "teacher";
  parallel::RoleKind kind = parallel::RoleKind::teacher;
  int ranks = 0;     ///< 0: all ranks of the job that no other role has
  std::string init;  ///< a checkpoint, run or checkpoints folder whose weights it starts from; empty: random
  InitMode init_mode = InitMode::exact;  ///< shrink: `init` holds a larger model
  std::string init_layers;               ///< of the larger model, a list; empty: equally spaced
  distill::ExpertReduction init_experts = distill::StudentInitOptions{}.experts;
  bool frozen = false;  ///< teacher only: it does not train
  model::TransformerConfig model;
  ParallelSection parallel;
  optim::OptimOptions optim;
  PrecisionSection precision;
  std::int64_t batch_micro = 0;  ///< sequences; 0: global / dp
};

struct RunConfig {
  Command command = Command::train;
  RunSection run;
  DataSection data;
  BatchSection batch;
  std::string collectives;  ///< parallel.collectives: of the run, not of a role
  TrainSection train;
  CheckpointSection checkpoint;
  WatchdogSection watchdog;
  GuardSection guard;
  MonitorSection monitor;
  PlanSection plan;
  DistillSection distill;
  ExchangeSection exchange;
  GenerateSection generate;
  BenchSection bench;
  TokenizeSection tokenize;
  SourceSection source;
  /// distill: the teacher, then the students. Other commands: one role, the teacher, or for evaluate and
  /// generate the one they read.
  std::vector<RoleConfig> roles = {RoleConfig{}};
};

}  // namespace athanor::config
