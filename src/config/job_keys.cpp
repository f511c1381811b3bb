// The keys of `guard.*`, `monitor.*`, `watchdog.*` and `plan.*`: what keeps a long job in order.
#include "config/command_sets.hpp"
#include "config/key_group.hpp"

namespace athanor::config {

#define RUN(expression)           \
  [](auto& run, auto&) -> auto& { \
    return run.expression;        \
  }

void add_guard_keys(std::vector<Key>& keys) {
  KeyGroup(keys, "guard", trains)
      .add("action", RUN(guard.action),
           {"What follows from a step whose loss or gradient norm stands out. off: nothing; warn: a line in "
            "the log; skip: the step is run again, and unless that shows a passing fault of the hardware its "
            "update is left out; rollback (train only): as skip, and after guard.max_trips in a row back to "
            "a checkpoint and past the batches. Only skip and rollback change a curve."})
      .add("window", RUN(guard.window),
           {"Last ordinary steps whose losses and norms say what is ordinary.", "steps", at_least(8)})
      .add("loss_mads", RUN(guard.loss_mads),
           {"A loss stands out that is so many median absolute deviations (at least 1 % of the median each) "
            "above the window's median.",
            "", above(0)})
      .add("norm_factor", RUN(guard.norm_factor),
           {"A gradient norm stands out that is so many times the window's median.", "", above(1)})
      .add("min_steps", RUN(guard.min_steps),
           {"Steps in the window before anything stands out.", "steps", at_least(2)})
      .add("max_trips", RUN(guard.max_trips),
           {"Steps in a row that stand out after which the run rolls back, or stops with exit code 70.",
            "steps", at_least(1)})
      .add("hold_steps", RUN(guard.hold_steps),
           {"Steps after one that stood out without a periodic checkpoint (train, with skip and rollback); "
            "one due by then is made after them.",
            "steps", at_least(0)})
      .add("max_rollbacks", RUN(guard.max_rollbacks),
           {"Rollbacks of a run after which it stops with exit code 70.", "rollbacks", at_least(0)})
      .add("skip_batches", RUN(guard.skip_batches),
           {"Batches passed over at a rollback, besides those up to the last bad step.", "batches",
            at_least(0)})
      .add("replica_every", RUN(guard.replica_every),
           {"Every so many steps parameters are compared over the ranks that hold them, and with what they "
            "were after the last update; a damaged one is restored, or the run stops with exit code 70. 0: "
            "never.",
            "steps", at_least(0)});
  KeyGroup(keys, "monitor", trains)
      .add("expert_use_std", RUN(monitor.expert_use_std),
           {"A line in the log when the std over experts of f / mu is above this, as a mean of the window; "
            "0: never.",
            "", at_least(0)})
      .add("loss_fluctuation", RUN(monitor.loss_fluctuation),
           {"A line in the log when std / mean of the losses in the guard's window is above this; 0: never.",
            "", at_least(0)})
      .add("step_time_ratio", RUN(monitor.step_time_ratio),
           {"A line in the log when the P99 of the window's step times is above so many medians; 0: never.",
            "", at_least(0)})
      .add("window", RUN(monitor.window), {"Last steps that these figures are of.", "steps", at_least(2)})
      .add("repeat_every", RUN(monitor.repeat_every),
           {"Steps until a figure that stays above its threshold is told of again.", "steps", at_least(1)});
}

void add_watchdog_keys(std::vector<Key>& keys) {
  KeyGroup(keys, "watchdog", trains)
      .add("start_s", RUN(watchdog.start_s),
           {"Longest time without progress before the first step (loading included); then each rank's place "
            "is "
            "printed and the ranks that the others wait for are named. 0: not watched.",
            "seconds", at_least(0)})
      .add("step_s", RUN(watchdog.step_s),
           {"The same inside and between steps: time without any layer, exchange or phase beginning or "
            "ending. "
            "Waits between roles have distill.deadline_s of their own.",
            "seconds", at_least(0)})
      .add("evaluate_s", RUN(watchdog.evaluate_s), {"The same in an evaluation.", "seconds", at_least(0)})
      .add("save_s", RUN(watchdog.save_s), {"The same in a save.", "seconds", at_least(0)})
      .add("hard_factor", RUN(watchdog.hard_factor),
           {"After so many times these times the job is ended with exit code 70; 0: never.", "", at_least(0)})
      .add("straggler_score", RUN(watchdog.straggler_score),
           {"A rank is named in the log when the median rank's own time for a step, waits left out, is less "
            "than "
            "this share of its own; looked at every train.log_every steps. 0: never.",
            "", between(0, 1)});
}

void add_plan_keys(std::vector<Key>& keys) {
  KeyGroup(keys, "plan", builds_model)
      .add("memory_bytes", RUN(plan.memory_bytes),
           {"Memory that a rank may use; 0: what this machine has free, shared by its ranks.", "bytes",
            at_least(0)})
      .add("worst_case", RUN(plan.worst_case),
           {"When the memory would not do if every token chose the experts of one rank: refuse to start, or "
            "say so and start."})
      .add("flops_per_s", RUN(plan.flops_per_s),
           {"Peak of a rank in the compute type, for the times of --dry-run; 0: none are printed.", "FLOP/s",
            at_least(0)})
      .add("gemm_efficiency", RUN(plan.gemm_efficiency),
           {"Share of plan.flops_per_s that matrix products reach.",
            "",
            {.min = 0, .max = 1, .min_is_legal = false}})
      .add("link_bytes_per_s", RUN(plan.link_bytes_per_s),
           {"What a rank sends to other nodes; 0: exchanges between nodes take no time.", "bytes/s",
            at_least(0)})
      .add("node_bytes_per_s", RUN(plan.node_bytes_per_s),
           {"What a rank sends to ranks of its own node; 0: as plan.link_bytes_per_s.", "bytes/s",
            at_least(0)})
      .add("ranks_per_node", RUN(plan.ranks_per_node),
           {"Ranks of a node, neighbours by number; 0: all ranks are on one.", "ranks", at_least(0)});
}

#undef RUN

}  // namespace athanor::config
