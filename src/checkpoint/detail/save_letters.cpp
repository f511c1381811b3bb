#include "checkpoint/detail/save_letters.hpp"

#include <algorithm>
#include <utility>

#include <nlohmann/json.hpp>

#include "base/error.hpp"
#include "checkpoint/detail/manifest_checks.hpp"

namespace athanor::checkpoint::detail {
namespace {

using nlohmann::json;

// Part of the available memory that snapshots may take.
constexpr double memory_share = 0.95;

// Messages of the system need not be UTF-8; a report must get through all the same.
std::string dump(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

json tensors_to_json(const std::map<std::string, StoredTensor>& tensors) {
  json result = json::object();
  for (const auto& [name, tensor] : tensors) {
    result[name] = {{"dtype", element_type_name(tensor.type)}, {"shape", tensor.shape}};
  }
  return result;
}

void add_tensors(Manifest& manifest, const RankReport& report) {
  for (const auto& [name, tensor] : report.tensors) {
    const auto [known, is_new] = manifest.tensors.emplace(name, tensor);
    if (known->second.type != tensor.type || known->second.shape != tensor.shape) {
      throw base::CheckpointError(
          "tensor {} is {} of shape [{}] on rank {} ({} of shape [{}] on an earlier rank) give all parts of "
          "a "
          "tensor one type and shape",
          name, element_type_name(tensor.type), fmt::join(tensor.shape, ", "), report.rank,
          element_type_name(known->second.type), fmt::join(known->second.shape, ", "));
    }
  }
}

}  // namespace

std::string to_text(const RankReport& report) {
  json value = {{"rank", report.rank},
                {"attempt", report.attempt},
                {"step", report.step},
                {"failure", report.failure},
                {"slices", slices_to_json(report.slices)},
                {"tensors", tensors_to_json(report.tensors)}};
  if (report.file) {
    value["file"] = {{"name", report.file->name}, {"bytes", report.file->bytes}};
  }
  if (report.role) {
    value["role"] = {{"name", report.role->name},
                     {"kind", report.role->kind},
                     {"layout", report.role->layout},
                     {"state", report.role->state}};
  }
  return dump(value);
}

RankReport report_from_text(const std::string& text) {
  const json value = json::parse(text);
  RankReport report;
  report.rank = value.at("rank").get<int>();
  report.attempt = value.at("attempt").get<std::int64_t>();
  report.step = value.at("step").get<std::int64_t>();
  report.failure = value.at("failure").get<std::string>();
  report.slices = slices_from_json(value.at("slices"));
  for (const auto& [name, tensor] : value.at("tensors").items()) {
    report.tensors[name] = {element_type_from_name(tensor.at("dtype").get<std::string>()),
                            tensor.at("shape").get<std::vector<std::int64_t>>()};
  }
  if (value.contains("file")) {
    const json& file = value.at("file");
    report.file =
        StoredFile{file.at("name").get<std::string>(), file.at("bytes").get<std::int64_t>(), report.rank};
  }
  if (value.contains("role")) {
    const json& role = value.at("role");
    report.role = StoredRole{role.at("name").get<std::string>(), role.at("kind").get<std::string>(),
                             role.at("layout"), role.at("state")};
  }
  return report;
}

Manifest merge_reports(Manifest head, const std::vector<RankReport>& reports) {
  const auto failed = [](const RankReport& report) { return !report.failure.empty(); };
  if (const auto first = std::ranges::find_if(reports, failed); first != reports.end()) {
    const auto others = std::ranges::count_if(reports, failed) - 1;
    throw base::IoError("rank {}: {}{}", first->rank, first->failure,
                        others == 0 ? "" : fmt::format(" [and {} more ranks failed]", others));
  }
  Manifest manifest = std::move(head);
  for (const RankReport& report : reports) {
    if (report.attempt != reports.front().attempt || report.step != reports.front().step) {
      throw base::InternalError(
          "rank {} saves step {} while rank 0 saves step {} (every rank must save the same steps in one "
          "order)",
          report.rank, report.step, reports.front().step);
    }
    add_tensors(manifest, report);
    manifest.slices.insert(manifest.slices.end(), report.slices.begin(), report.slices.end());
    if (report.file) {
      manifest.files.push_back(*report.file);
    }
    if (report.role) {
      manifest.roles.push_back(*report.role);
    }
  }
  check_manifest(manifest);
  return manifest;
}

std::string to_text(const VerdictLetter& letter) {
  return dump({{"attempt", letter.attempt},
               {"step", letter.verdict.step},
               {"published", letter.verdict.published},
               {"path", letter.verdict.path},
               {"reason", letter.verdict.reason}});
}

VerdictLetter verdict_from_text(const std::string& text) {
  const json value = json::parse(text);
  return {value.at("attempt").get<std::int64_t>(),
          {value.at("step").get<std::int64_t>(), value.at("published").get<bool>(),
           value.at("path").get<std::string>(), value.at("reason").get<std::string>()}};
}

std::string to_text(const PrepareLetter& letter) {
  return dump({{"host", letter.host},
               {"snapshot_bytes", letter.snapshot_bytes},
               {"held_bytes", letter.held_bytes},
               {"available_bytes", letter.available_bytes},
               {"shard_bytes", letter.shard_bytes}});
}

PrepareLetter prepare_from_text(const std::string& text) {
  const json value = json::parse(text);
  return {value.at("host").get<std::string>(), value.at("snapshot_bytes").get<std::int64_t>(),
          value.at("held_bytes").get<std::int64_t>(), value.at("available_bytes").get<std::int64_t>(),
          value.at("shard_bytes").get<std::int64_t>()};
}

Preparation decide_preparation(const std::vector<PrepareLetter>& letters) {
  Preparation preparation;
  std::map<std::string, PrepareLetter> hosts;
  for (const PrepareLetter& letter : letters) {
    preparation.whole_bytes += letter.shard_bytes;
    const auto [entry, is_new] = hosts.try_emplace(letter.host);
    PrepareLetter& host = entry->second;
    host.snapshot_bytes += letter.snapshot_bytes;
    host.held_bytes += letter.held_bytes;
    host.available_bytes =
        is_new ? letter.available_bytes : std::min(host.available_bytes, letter.available_bytes);
  }
  for (const auto& [name, host] : hosts) {
    const std::int64_t usable =
        static_cast<std::int64_t>(memory_share * static_cast<double>(host.available_bytes));
    if (host.snapshot_bytes > usable + host.held_bytes && preparation.memory_shortage.empty()) {
      preparation.memory_shortage = fmt::format("{} bytes are needed on {}, {} are available",
                                                host.snapshot_bytes, name, usable + host.held_bytes);
    }
  }
  return preparation;
}

std::string to_text(const Preparation& preparation) {
  return dump({{"whole_bytes", preparation.whole_bytes}, {"memory_shortage", preparation.memory_shortage}});
}

Preparation preparation_from_text(const std::string& text) {
  const json value = json::parse(text);
  return {value.at("whole_bytes").get<std::int64_t>(), value.at("memory_shortage").get<std::string>()};
}

}  // namespace athanor::checkpoint::detail
