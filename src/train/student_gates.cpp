#include "train/student_gates.hpp"

#include <ATen/ATen.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.hpp"

namespace athanor::train {
namespace {

constexpr std::size_t hidden_term = 0;
constexpr std::size_t attention_term = 1;

// A new member of a state does not compile here until it is saved.
nlohmann::json to_json(const distill::MaturityState& state) {
  const auto& [student_ce, teacher_ce, steps] = state;
  return {{"student_ce", student_ce}, {"teacher_ce", teacher_ce}, {"steps", steps}};
}
nlohmann::json to_json(const distill::DifficultyState& state) {
  const auto& [teacher_ce, steps] = state;
  return {{"teacher_ce", teacher_ce}, {"steps", steps}};
}
nlohmann::json to_json(const distill::BalancerState& state) {
  const auto& [mean, steps] = state;
  return {{"mean", mean}, {"steps", steps}};
}
nlohmann::json to_json(const distill::EarlyStoppingState& state) {
  const auto& [best, best_step, bad] = state;
  return {{"best", best}, {"best_step", best_step}, {"bad", bad}};
}

void read(const nlohmann::json& json, distill::MaturityState& state) {
  auto& [student_ce, teacher_ce, steps] = state;
  json.at("student_ce").get_to(student_ce);
  json.at("teacher_ce").get_to(teacher_ce);
  json.at("steps").get_to(steps);
}
void read(const nlohmann::json& json, distill::DifficultyState& state) {
  auto& [teacher_ce, steps] = state;
  json.at("teacher_ce").get_to(teacher_ce);
  json.at("steps").get_to(steps);
}
void read(const nlohmann::json& json, distill::BalancerState& state) {
  auto& [mean, steps] = state;
  json.at("mean").get_to(mean);
  json.at("steps").get_to(steps);
}
void read(const nlohmann::json& json, distill::EarlyStoppingState& state) {
  auto& [best, best_step, bad] = state;
  json.at("best").get_to(best);
  json.at("best_step").get_to(best_step);
  json.at("bad").get_to(bad);
}

template <typename Gate, typename State>
void restore_from(const nlohmann::json& json, Gate& gate, State state) {
  read(json, state);
  gate.restore(state);
}

}  // namespace

StudentGates::StudentGates(const GateOptions& options)
    : options_(options),
      maturity_(options.maturity),
      difficulty_(options.difficulty),
      to_kd_(options.balancer, 2),
      to_ce_(options.balancer, 2),
      stopping_(options.stopping) {}

at::Tensor StudentGates::alpha_factors(const at::Tensor& teacher_ce_N) const {
  at::Tensor factors;
  if (options_.uses_maturity) {
    factors = at::full_like(teacher_ce_N, maturity_.factor());
  }
  if (options_.uses_difficulty) {
    const at::Tensor by_difficulty = difficulty_.factors(teacher_ce_N);
    factors = factors.defined() ? factors * by_difficulty : by_difficulty;
  }
  return factors;
}

StudentGates::TermFactors StudentGates::term_factors(bool has_kd) const {
  if (!options_.balances_losses) {
    return {};
  }
  const distill::LossBalancer& balancer = has_kd ? to_kd_ : to_ce_;
  return {balancer.factor(hidden_term), balancer.factor(attention_term)};
}

bool StudentGates::update(const StudentStep& step, const StudentMeans& means, bool begins_measure) {
  maturity_.update(means.ce, means.teacher_ce);
  difficulty_.update(means.teacher_ce);
  to_kd_.update({means.kd, means.hidden, means.attention});
  to_ce_.update({means.ce, means.hidden, means.attention});
  if (begins_measure) {
    stopping_.restore({});
    held_out_sum_ = 0.0;
    held_out_labels_ = 0;
  }
  if (has_stopped() || options_.stopping.patience == 0) {
    return false;
  }
  if (step.uses_kd() && std::isfinite(means.held_out_kd_sum)) {
    held_out_sum_ += means.held_out_kd_sum;
    held_out_labels_ += static_cast<std::int64_t>(step.held_out_labels);
  }
  const std::int64_t steps_done = step.given.step + 1;
  return steps_done % options_.evaluate_every == 0 && evaluate(steps_done);
}

// Without a held-out token since the last evaluation there is none.
bool StudentGates::evaluate(std::int64_t steps_done) {
  if (held_out_labels_ == 0) {
    return false;
  }
  const double loss = held_out_sum_ / static_cast<double>(held_out_labels_);
  held_out_sum_ = 0.0;
  held_out_labels_ = 0;
  if (stopping_.update(steps_done, loss)) {
    stopped_at_ = steps_done;
  }
  return has_stopped();
}

std::string StudentGates::state() const {
  nlohmann::json json = to_json(maturity_.state());  // where earlier versions had it alone
  json["difficulty"] = to_json(difficulty_.state());
  json["to_kd"] = to_json(to_kd_.state());
  json["to_ce"] = to_json(to_ce_.state());
  json["stopping"] = to_json(stopping_.state());
  json["held_out_sum"] = held_out_sum_;
  json["held_out_labels"] = held_out_labels_;
  json["stopped_at"] = stopped_at_;
  return json.dump();
}

void StudentGates::restore(const std::string& state) {
  if (state.empty()) {
    return;
  }
  try {
    const nlohmann::json json = nlohmann::json::parse(state);
    restore_from(json, maturity_, maturity_.state());
    if (!json.contains("difficulty")) {  // written before there was more
      return;
    }
    restore_from(json.at("difficulty"), difficulty_, difficulty_.state());
    restore_from(json.at("to_kd"), to_kd_, to_kd_.state());
    restore_from(json.at("to_ce"), to_ce_, to_ce_.state());
    restore_from(json.at("stopping"), stopping_, stopping_.state());
    json.at("held_out_sum").get_to(held_out_sum_);
    json.at("held_out_labels").get_to(held_out_labels_);
    json.at("stopped_at").get_to(stopped_at_);
  } catch (const nlohmann::json::exception& error) {
    throw base::CheckpointError("the student's state cannot be read ({}) it is damaged or of another program",
                                error.what());
  }
}

}  // namespace athanor::train
