#include "config/help.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <string>
#include <vector>

#include "config/ini.hpp"
#include "config/key.hpp"

namespace athanor::config {
namespace {

struct CommandText {
  std::string usage;
  std::string does;
};

CommandText command_text(Command command) {
  switch (command) {
    case Command::tokenize:
      return {"athanor tokenize --input=FILES --output=PATH [--tokenizer=MODEL]",
              "Text or JSON lines -> a tokenizer and token files."};
    case Command::train:
      return {"mpirun -np N athanor train --config=run.ini [--section.key=value ...]",
              "Pretrains the teacher."};
    case Command::distill:
      return {"mpirun -np N athanor distill --config=run.ini [--teacher.ranks=2 --student.ranks=2 ...]",
              "Teacher and students in one job: students learn from the teacher while it trains."};
    case Command::evaluate:
      return {"mpirun -np N athanor evaluate --checkpoint=RUN --data.valid=FILES",
              "Loss and perplexity of a checkpoint on token files, per domain."};
    case Command::generate:
      return {"mpirun -np N athanor generate --checkpoint=RUN --generate.prompt=TEXT",
              "Text from a checkpoint."};
    case Command::bench_step:
      return {"mpirun -np N athanor bench step --config=configs/bench-s.ini",
              "Times whole training steps and, in the same run, the GEMM limit."};
    case Command::bench_checkpoint:
      return {"mpirun -np N athanor bench checkpoint --config=configs/bench-s.ini",
              "Times saving and loading a checkpoint and, in the same run, raw writes and reads of as many "
              "bytes."};
    case Command::bench_stream:
      return {
          "mpirun -np N athanor bench stream --config=configs/bench-distill.ini",
          "Times teacher and students together and, in the same run, each alone; counts the bytes between "
          "them."};
    case Command::bench_collectives:
      return {"mpirun -np N athanor bench collectives [--bench.table=FILE]",
              "Times each algorithm of each collective against a memory copy of the bytes that must move."};
    case Command::bench_dispatch:
      return {"mpirun -np N athanor bench dispatch --config=configs/bench-s.ini",
              "Times tokens to their experts and back, in each number format of the wire, against a memory "
              "copy of as many bytes."};
    case Command::bench_kernels:
      return {"mpirun -np N athanor bench kernels --config=configs/bench-s.ini",
              "Times each kernel at the run's shape against its plain reference and against the machine's "
              "memory or product rate in the same run."};
    case Command::checkpoint_list:
      return {"athanor checkpoint list --from=RUN",
              "The checkpoints of a run: step, size, whole or not, why."};
    case Command::checkpoint_verify:
      return {"[mpirun -np N] athanor checkpoint verify --from=CHECKPOINT",
              "Reads every byte and compares it with its checksum; exit code 65 when something is wrong."};
    case Command::checkpoint_show:
      return {"athanor checkpoint show --from=CHECKPOINT",
              "What a checkpoint holds: step, roles, layouts, state, every tensor with type and shape."};
    case Command::checkpoint_diff:
      return {"athanor checkpoint diff --from=CHECKPOINT --to=CHECKPOINT",
              "Compares two checkpoints: tensors, state, configuration; exit code 65 when tensors differ."};
    case Command::checkpoint_merge:
      return {"athanor checkpoint merge --from=CHECKPOINT --to=FILE.h5", "One HDF5 file with whole tensors."};
    case Command::checkpoint_export:
      return {"athanor checkpoint export --from=CHECKPOINT --to=FOLDER --format=hf",
              "A Hugging Face folder: config.json, safetensors, tokenizer."};
    case Command::checkpoint_import:
      return {"athanor checkpoint import --from=FOLDER --to=RUN --format=hf",
              "A Hugging Face folder -> a checkpoint of weights at step 0."};
  }
  return {};
}

constexpr std::string_view common_options =
    "Every command:\n"
    "  --config=FILE    config file; the command line wins over it\n"
    "  --help           this text\n"
    "  --print-config   print the whole resolved configuration as a config file, and exit\n"
    "  --dry-run        check everything, print grid, parameters and memory, and exit\n"
    "  --json           one JSON object with the results as the last line of stdout\n"
    "  --version        print the version\n";

std::string key_help(const Key& key, const RunConfig& defaults) {
  const std::string value = key.get(defaults, defaults.roles[0]);
  std::string type = key.describe_type();
  if (!key.unit.empty()) {
    type += ", " + key.unit;
  }
  return fmt::format("  --{}={}\n      {} ({})\n", key.name, ini_value(value), key.help, type);
}

// '|' separates the columns of a table.
std::string escape_cell(const std::string& text) {
  std::string escaped;
  for (const char letter : text) {
    escaped += letter == '|' ? "\\|" : std::string(1, letter);
  }
  return escaped;
}

std::string users_of(const Key& key) {
  std::vector<std::string_view> users;
  for (const Command command : all_commands) {
    if (contains(key.commands, command)) {
      users.push_back(command_name(command));
    }
  }
  return users.size() == all_commands.size() ? "all" : fmt::format("{}", fmt::join(users, ", "));
}

std::string section_table(const Section& section, const RunConfig& defaults) {
  std::string text = section.name.empty() ? fmt::format("\n## {}\n\n", section.help)
                                          : fmt::format("\n## `{}`: {}\n\n", section.name, section.help);
  text += "| key | default | value | unit | meaning | commands |\n|---|---|---|---|---|---|\n";
  for (const Key& key : all_keys()) {
    if (key.section() == section.name) {
      const std::string value = key.get(defaults, defaults.roles[0]);
      text += fmt::format("| `{}`{} | {} | {} | {} | {} | {} |\n", key.name, key.per_role ? " †" : "",
                          value.empty() ? "" : "`" + value + "`", escape_cell(key.describe_type()), key.unit,
                          escape_cell(key.help), users_of(key));
    }
  }
  return text;
}

constexpr std::string_view documentation_head =
    "# Configuration\n"
    "\n"
    "<!-- Written by `athanor --dump-docs`. A test compares the two: do not edit, run\n"
    "     `athanor --dump-docs > docs/configuration.md`. -->\n"
    "\n"
    "    athanor <command> [--config=run.ini] [--section.key=value ...]\n"
    "\n"
    "A value comes from the default, then from the config file, then from the command line: later wins. "
    "Names are exact\n"
    "(no abbreviations). A key that is repeated within one source is refused, and so is an unknown one, with "
    "the nearest\n"
    "key suggested. Numbers use a decimal point; integers are digits only; lists are comma-separated without "
    "blanks.\n"
    "\n"
    "A config file has `[section]` lines and `key = value` lines; options without a section stand before the "
    "first\n"
    "section. `#` and `;` start a comment, on a line of its own or after white space. A value may be put in "
    "double quotes\n"
    "(`\\\"`, `\\\\`, `\\n`, `\\t` and `\\r` inside). One file may serve several commands: sections and keys "
    "that a command\n"
    "does not use are read, their values are checked, and they are left out. The same keys on the command "
    "line are\n"
    "refused, because whoever writes them there expects an effect.\n"
    "\n"
    "Keys marked † belong to a role. With the role's name before them they are set for that role alone and "
    "win over the\n"
    "unprefixed key wherever either is written: `--teacher.model.layers=8`, or `[teacher.model]` and `layers "
    "= 8`. The\n"
    "roles of `distill` are `teacher` and `student`; with `distill.students=a,b` there are several students, "
    "`student.a`\n"
    "and `student.b`, and `student.` sets a key for all of them. Other commands have the one role `teacher`; "
    "`evaluate`,\n"
    "`generate` and `checkpoint export` read the role that `--role` names.\n"
    "\n"
    "`evaluate` and `generate` take `model.*`, `moe.*`, `data.*`, `batch.global`, `batch.seq` and "
    "`precision.compute`\n"
    "from the configuration stored with the checkpoint. `model.*` and `moe.*` cannot be changed there; the "
    "others can,\n"
    "where the table lists the command.\n"
    "\n";

}  // namespace

std::string command_list() {
  std::vector<std::string_view> names;
  for (const Command command : all_commands) {
    names.push_back(command_name(command));
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

std::string general_help() {
  std::string text =
      fmt::format("athanor {}: pretrains and distils sparse language models on many ranks\n\n", version);
  text += "Usage: athanor <command> [--config=run.ini] [--section.key=value ...]\n\nCommands:\n";
  for (const Command command : all_commands) {
    text += fmt::format("  {:<12}{}\n", command_name(command), command_text(command).does);
  }
  return text + fmt::format("\n{}\nathanor <command> --help lists the keys of a command.\n", common_options);
}

std::string command_help(Command command) {
  RunConfig defaults;
  defaults.command = command;
  const CommandText text = command_text(command);
  std::string help = fmt::format("{}\n\nUsage: {}\n\n{}", text.does, text.usage, common_options);
  for (const Section& section : all_sections()) {
    std::string keys;
    for (const Key& key : all_keys()) {
      if (key.section() == section.name && contains(key.commands, command)) {
        keys += key_help(key, defaults);
      }
    }
    if (!keys.empty()) {
      help += fmt::format("\n{}:\n{}", section.help, keys);
    }
  }
  return help;
}

std::string documentation() {
  const RunConfig defaults;
  std::string text(documentation_head);
  text +=
      "| option of every command | meaning |\n|---|---|\n"
      "| `--config=FILE` | config file |\n"
      "| `--help` | usage and the command's keys |\n"
      "| `--print-config` | print the whole resolved configuration as a config file, and exit |\n"
      "| `--dry-run` | check everything, print grid, parameters and memory, and exit |\n"
      "| `--json` | one JSON object with the results as the last line of stdout; logs go to stderr |\n"
      "| `--version` | print the version |\n";
  for (const Section& section : all_sections()) {
    text += section_table(section, defaults);
  }
  return text;
}

}  // namespace athanor::config
