#include "config/key.hpp"

#include <cmath>

#include "base/error.hpp"

namespace athanor::config {

std::string_view command_name(Command command) {
  switch (command) {
    case Command::tokenize:
      return "tokenize";
    case Command::train:
      return "train";
    case Command::distill:
      return "distill";
    case Command::evaluate:
      return "evaluate";
    case Command::generate:
      return "generate";
    case Command::bench_step:
      return "bench step";
    case Command::bench_checkpoint:
      return "bench checkpoint";
    case Command::bench_stream:
      return "bench stream";
    case Command::bench_collectives:
      return "bench collectives";
    case Command::bench_dispatch:
      return "bench dispatch";
    case Command::bench_kernels:
      return "bench kernels";
    case Command::checkpoint_list:
      return "checkpoint list";
    case Command::checkpoint_verify:
      return "checkpoint verify";
    case Command::checkpoint_show:
      return "checkpoint show";
    case Command::checkpoint_diff:
      return "checkpoint diff";
    case Command::checkpoint_merge:
      return "checkpoint merge";
    case Command::checkpoint_export:
      return "checkpoint export";
    case Command::checkpoint_import:
      return "checkpoint import";
  }
  return "";
}

bool converts_checkpoints(Command command) {
  return command_name(command).starts_with("checkpoint ");
}

bool has_model(Command command) {
  return command != Command::tokenize && command != Command::bench_collectives &&
         !converts_checkpoints(command);
}

bool has_students(Command command) {
  return command == Command::distill || command == Command::bench_stream;
}

CommandSet commands(std::initializer_list<Command> list) {
  CommandSet set;
  for (const Command command : list) {
    set.set(static_cast<std::size_t>(command));
  }
  return set;
}

bool Range::holds(double value) const {
  const bool is_high_enough = min_is_legal ? value >= min : value > min;
  const bool is_low_enough = max_is_legal ? value <= max : value < max;
  return is_high_enough && is_low_enough;  // false for NaN
}

std::string Range::text() const {
  if (std::isfinite(min) && std::isfinite(max)) {
    return fmt::format("in {}{}, {}{}", min_is_legal ? '[' : '(', min, max, max_is_legal ? ']' : ')');
  }
  if (std::isfinite(min)) {
    return fmt::format("{} {}", min_is_legal ? ">=" : ">", min);
  }
  return "";
}

std::string Key::section() const {
  const std::size_t dot = name.find('.');
  return dot == std::string::npos ? "" : name.substr(0, dot);
}

std::string Key::describe_type() const {
  return legal.empty() ? type : type + " " + legal;
}

const Key* find_key(const std::string& name) {
  for (const Key& key : all_keys()) {
    if (key.name == name) {
      return &key;
    }
  }
  return nullptr;
}

}  // namespace athanor::config
