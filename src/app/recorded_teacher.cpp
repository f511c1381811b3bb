#include "app/recorded_teacher.hpp"

#include <fmt/format.h>

#include <map>
#include <string>
#include <utility>

#include "base/error.hpp"
#include "checkpoint/catalog.hpp"
#include "checkpoint/checkpoint_reader.hpp"
#include "config/key.hpp"
#include "config/recording_plan.hpp"
#include "config/roles.hpp"
#include "data/dataset.hpp"
#include "train/training.hpp"

namespace athanor::app {
namespace {

using distill::signal_file::RecordingInfo;

// The keys that describe a teacher whose signals are recorded.
bool describes_teacher(const config::Key& key) {
  const std::string section = key.section();
  return key.per_role && (section == "model" || section == "moe" || key.name == "precision.compute" ||
                          key.name == "precision.fp8_format");
}

// The value as the key writes it.
std::string normal_text(const config::Key& key, const std::string& value) {
  config::RunConfig unused;
  key.set(unused, unused.roles[0], value);
  return key.get(unused, unused.roles[0]);
}

void check_teacher_setting(const config::Setting& setting, const config::Key& key, const RecordingInfo& info,
                           const std::string& source) {
  if (key.name == "frozen" || info.teacher.contains(key.name)) {
    const std::string recorded =
        key.name == "frozen" ? (info.teacher_frozen ? "true" : "false") : info.teacher.at(key.name);
    if (const std::string value = normal_text(key, setting.value); value != recorded) {
      throw base::ConfigError("{} (the teacher recorded in {} has {}) leave it out", setting.origin, source,
                              recorded);
    }
    return;
  }
  // A config file may serve the run that recorded, too.
  const bool is_none = key.name == "ranks" && setting.value == "0";
  if (setting.from_command_line && !is_none) {
    throw base::ConfigError("{} (no teacher runs with distill.source={}) leave it out", setting.origin,
                            source);
  }
}

data::Dataset open_training_text(const config::RunConfig& config) {
  return data::Dataset({.sources = data::parse_sources(config.data.train),
                        .seq = config.batch.seq,
                        .seed = config.run.seed,
                        .reset_attention = config.data.reset_attention});
}

std::string fingerprint_of(const data::Dataset& dataset) {
  return fmt::format("{:016x}", dataset.fingerprint());
}

// domain:weight of each source, in order: with the seed, what decides the order of samples.
std::string describe_mixture(const config::RunConfig& config) {
  std::string text;
  for (const data::SourceSpec& source : data::parse_sources(config.data.train)) {
    text += fmt::format("{}{}:{}", text.empty() ? "" : ",", source.domain, source.weight);
  }
  return text;
}

std::string tokenizer_hash(const config::RunConfig& config) {
  return config.data.tokenizer.empty() ? "" : train::file_hash(config.data.tokenizer);
}

std::string identify_teacher(const config::RoleConfig& teacher) {
  if (teacher.init.empty()) {
    return "co-trained";
  }
  const checkpoint::CheckpointReader weights(checkpoint::resolve_checkpoint(teacher.init));
  return fmt::format("{} {} step {}", teacher.frozen ? "frozen" : "co-trained from",
                     weights.manifest().run_id, weights.manifest().step);
}

}  // namespace

void adopt_recorded_teacher(config::ParsedCommand& parsed) {
  config::RunConfig& config = parsed.config;
  if (!config::is_replay(config) || config.distill.source.empty()) {
    return;
  }
  const RecordingInfo info = distill::signal_file::read_info(config.distill.source);
  std::map<std::string, config::Setting> last;  // a later setting of a key replaces an earlier one
  for (const config::Setting& setting : parsed.settings) {
    last[setting.key] = setting;
  }
  for (const auto& [name, setting] : last) {
    if (const config::PrefixedKey parts = config::split_key(name); parts.prefix == "teacher") {
      check_teacher_setting(setting, *parts.key, info, config.distill.source);
    }
  }
  config::RoleConfig& teacher = config.roles.front();
  for (const auto& [name, value] : info.teacher) {
    const config::Key* key = config::find_key(name);
    try {
      if (key == nullptr) {
        throw config::BadValue("(there is no such key)");
      }
      key->set(config, teacher, value);
    } catch (const config::BadValue& bad) {
      throw base::DataError("{} describes its teacher with {}={} {} use the program that recorded it ({})",
                            config.distill.source, name, value, bad.what(), info.program);
    }
  }
  teacher.frozen = info.teacher_frozen;
  teacher.init.clear();
  teacher.ranks = 0;
}

void check_recording(const config::RunConfig& config) {
  if (!config::is_replay(config)) {
    return;
  }
  const std::string& source = config.distill.source;
  const distill::signal_file::MappedRecording recording(source);  // its files are there and fit together
  const RecordingInfo& info = recording.info();
  const auto compare = [&](const std::string& key, const std::string& stored, const std::string& own) {
    if (stored != own) {
      throw base::ConfigError("{}={} (distill.source={} was recorded with {}) set it so, or record again",
                              key, own, source, stored);
    }
  };
  compare("run.seed", fmt::format("{}", info.seed), fmt::format("{}", config.run.seed));
  compare("batch.seq", fmt::format("{}", info.seq), fmt::format("{}", config.batch.seq));
  compare("data.reset_attention", fmt::format("{}", info.reset_attention),
          fmt::format("{}", config.data.reset_attention));
  const auto compare_content = [&](const std::string& key, const std::string& value,
                                   const std::string& stored, const std::string& own) {
    if (stored != own) {
      throw base::DataError(
          "{}={} is not what distill.source={} was recorded with (content {} there, {} here) give that one, "
          "or "
          "record again",
          key, value, source, stored.empty() ? "none" : stored, own.empty() ? "none" : own);
    }
  };
  compare_content("data.tokenizer", config.data.tokenizer, info.tokenizer, tokenizer_hash(config));
  compare_content("data.train", config.data.train, info.dataset, fingerprint_of(open_training_text(config)));
  compare_content("data.train", config.data.train, info.mixture, describe_mixture(config));
}

train::RecordingOptions make_recording_options(const config::RunConfig& config) {
  train::RecordingOptions options;
  options.folder = config.distill.record;
  options.marker = config.run.dir + "/recording";
  options.training_text = std::make_shared<const data::Dataset>(open_training_text(config));
  options.index_every = config.checkpoint.every;
  RecordingInfo& info = options.info;
  info.program = fmt::format("athanor {}", config::version);
  info.dataset = fingerprint_of(*options.training_text);
  info.mixture = describe_mixture(config);
  info.tokenizer = tokenizer_hash(config);
  info.seed = config.run.seed;
  info.seq = config.batch.seq;
  info.reset_attention = config.data.reset_attention;
  const config::RoleConfig& teacher = config.roles.front();
  for (const config::Key& key : config::all_keys()) {
    if (describes_teacher(key)) {
      info.teacher[key.name] = key.get(config, teacher);
    }
  }
  info.teacher_frozen = teacher.frozen;
  info.teacher_identity = identify_teacher(teacher);
  return options;
}

std::string describe_signals(const config::RunConfig& config) {
  return config::is_replay(config)
             ? fmt::format("recording {:016x}", distill::signal_file::read_info(config.distill.source).id)
             : "live";
}

}  // namespace athanor::app
