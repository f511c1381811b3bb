// `athanor checkpoint list`, `verify`, `show`, `diff` and `merge`.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "app/commands.hpp"
#include "base/error.hpp"
#include "checkpoint/catalog.hpp"
#include "checkpoint/checkpoint_reader.hpp"
#include "config/command_line.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/run_agreed.hpp"

namespace athanor::app {
namespace {

using checkpoint::CheckpointReader;
using checkpoint::Manifest;

std::string status_name(checkpoint::CheckpointStatus status) {
  switch (status) {
    case checkpoint::CheckpointStatus::whole:
      return "whole";
    case checkpoint::CheckpointStatus::incomplete:
      return "incomplete";
    case checkpoint::CheckpointStatus::bad:
      return "bad";
  }
  return "";
}

// The folder whose step-* folders are listed: of a run, or the checkpoints folder itself.
std::string checkpoints_folder(const std::string& path) {
  namespace fs = std::filesystem;
  if (!fs::is_directory(path)) {
    throw base::MissingInputError("--from={} (there is no such folder) give a run or its checkpoints folder",
                                  path);
  }
  const fs::path inside = fs::path(path) / "checkpoints";
  return fs::is_directory(inside) ? inside.string() : path;
}

std::string megabytes(std::int64_t bytes) {
  return fmt::format("{:.1f} MB", static_cast<double>(bytes) / 1e6);
}

std::int64_t num_parameters(const Manifest& manifest) {
  std::int64_t count = 0;
  for (const auto& [name, tensor] : manifest.tensors) {
    if (name.find("/parameters/") != std::string::npos) {
      std::int64_t elements = 1;
      for (const std::int64_t extent : tensor.shape) {
        elements *= extent;
      }
      count += elements;
    }
  }
  return count;
}

std::int64_t bytes_on_disk(const std::string& folder) {
  std::int64_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    bytes += entry.is_regular_file() ? static_cast<std::int64_t>(entry.file_size()) : 0;
  }
  return bytes;
}

nlohmann::json describe(const CheckpointReader& reader) {
  const Manifest& manifest = reader.manifest();
  nlohmann::json json = {{"path", reader.folder()},
                         {"step", manifest.step},
                         {"created", manifest.created},
                         {"program", manifest.program},
                         {"run_id", manifest.run_id},
                         {"format_version", manifest.version},
                         {"world_size", manifest.world_size},
                         {"payload_bytes", manifest.payload_bytes()},
                         {"disk_bytes", bytes_on_disk(reader.folder())},
                         {"parameters", num_parameters(manifest)},
                         {"data", manifest.data}};
  for (const checkpoint::StoredRole& role : manifest.roles) {
    json["roles"][role.name] = {{"kind", role.kind}, {"layout", role.layout}, {"state", role.state}};
  }
  for (const auto& [name, tensor] : manifest.tensors) {
    json["tensors"][name] = {{"dtype", checkpoint::element_type_name(tensor.type)}, {"shape", tensor.shape}};
  }
  return json;
}

// Whole tensor `name` as bytes.
std::vector<char> read_whole(const CheckpointReader& reader, const std::string& name) {
  const checkpoint::StoredTensor& tensor = reader.manifest().tensors.at(name);
  checkpoint::TensorSlice slice{name, tensor.type,
                                checkpoint::SliceExtent::whole_box(parallel::ShardSpec::whole(tensor.shape)),
                                nullptr};
  std::vector<char> bytes(static_cast<std::size_t>(slice.bytes()));
  slice.data = bytes.data();
  reader.read({slice});
  return bytes;
}

// How tensor `name` differs between two checkpoints; empty: not at all.
std::string difference_of(const CheckpointReader& a, const CheckpointReader& b, const std::string& name) {
  const auto in_a = a.manifest().tensors.find(name);
  const auto in_b = b.manifest().tensors.find(name);
  if (in_a == a.manifest().tensors.end() || in_b == b.manifest().tensors.end()) {
    return fmt::format("only in {}", in_a == a.manifest().tensors.end() ? b.folder() : a.folder());
  }
  if (in_a->second.shape != in_b->second.shape) {
    return fmt::format("shapes [{}] and [{}]", fmt::join(in_a->second.shape, ", "),
                       fmt::join(in_b->second.shape, ", "));
  }
  if (in_a->second.type != in_b->second.type) {
    return fmt::format("types {} and {}", checkpoint::element_type_name(in_a->second.type),
                       checkpoint::element_type_name(in_b->second.type));
  }
  const std::vector<char> bytes_a = read_whole(a, name);
  const std::vector<char> bytes_b = read_whole(b, name);
  const std::int64_t width = checkpoint::element_bytes(in_a->second.type);
  std::int64_t different = 0;
  double largest = 0.0;
  for (std::size_t at = 0; at < bytes_a.size(); at += static_cast<std::size_t>(width)) {
    if (std::memcmp(&bytes_a[at], &bytes_b[at], static_cast<std::size_t>(width)) == 0) {
      continue;
    }
    ++different;
    if (in_a->second.type == checkpoint::ElementType::f32) {
      float x = 0.0F;
      float y = 0.0F;
      std::memcpy(&x, &bytes_a[at], sizeof(x));
      std::memcpy(&y, &bytes_b[at], sizeof(y));
      largest = std::max(largest, std::abs(static_cast<double>(x) - static_cast<double>(y)));
    }
  }
  if (different == 0) {
    return "";
  }
  return fmt::format(
      "{} of {} elements differ{}", different, static_cast<std::int64_t>(bytes_a.size()) / width,
      in_a->second.type == checkpoint::ElementType::f32 ? fmt::format(", by at most {:.3g}", largest) : "");
}

}  // namespace

CommandResult run_checkpoint_list(const config::RunConfig& config) {
  CommandResult result{"", {{"checkpoints", nlohmann::json::array()}}};
  for (const checkpoint::CatalogEntry& entry :
       checkpoint::list_checkpoints(checkpoints_folder(config.exchange.from))) {
    const std::int64_t bytes = bytes_on_disk(entry.path);
    const std::string status = status_name(entry.status);
    result.text += fmt::format("{}  step {:>8}  {:>12}  {}{}\n", entry.path, entry.step, megabytes(bytes),
                               status, entry.reason.empty() ? "" : fmt::format(" ({})", entry.reason));
    result.json["checkpoints"].push_back({{"path", entry.path},
                                          {"step", entry.step},
                                          {"disk_bytes", bytes},
                                          {"status", status},
                                          {"reason", entry.reason}});
  }
  if (result.text.empty()) {
    result.text = fmt::format("{} has no checkpoints\n", config.exchange.from);
  }
  return result;
}

CommandResult run_checkpoint_verify(const config::RunConfig& config, const parallel::Communicator& world) {
  std::vector<std::string> problems;
  std::string folder;
  parallel::run_agreed(world, [&] {
    folder = checkpoint::resolve_checkpoint(config.exchange.from);
    problems = CheckpointReader(folder).verify(world.rank(), world.size());
  });
  std::string own;
  for (const std::string& problem : problems) {
    own += problem + "\n";
  }
  CommandResult result{"", {{"path", folder}, {"problems", nlohmann::json::array()}}};
  for (const std::string& text : parallel::all_gather_strings(own, world)) {
    result.text += text;
  }
  for (std::size_t begin = 0; begin < result.text.size();) {
    const std::size_t end = result.text.find('\n', begin);
    result.json["problems"].push_back(result.text.substr(begin, end - begin));
    begin = end + 1;
  }
  if (!result.text.empty()) {
    result.exit_code = base::ExitCode::bad_data;
    result.text += fmt::format("{}: DAMAGED, {} problems\n", folder, result.json["problems"].size());
    return result;
  }
  const CheckpointReader reader(folder);
  const Manifest& manifest = reader.manifest();
  result.text =
      fmt::format("{}: whole, {} in {} slices of {} tensors verified\n", folder,
                  megabytes(manifest.payload_bytes()), manifest.slices.size(), manifest.tensors.size());
  return result;
}

CommandResult run_checkpoint_show(const config::RunConfig& config) {
  const CheckpointReader reader(checkpoint::resolve_checkpoint(config.exchange.from));
  const Manifest& manifest = reader.manifest();
  CommandResult result{"", describe(reader)};
  const auto disk = result.json["disk_bytes"].get<std::int64_t>();
  const std::int64_t parameters = num_parameters(manifest);
  result.text = fmt::format(
      "{}\n  step {}, {} by {}, run {}, format {}\n  {} parameters, {} on disk ({:.2f} bytes a parameter), "
      "{} "
      "files\n",
      reader.folder(), manifest.step, manifest.created, manifest.program, manifest.run_id, manifest.version,
      parameters, megabytes(disk),
      parameters > 0 ? static_cast<double>(disk) / static_cast<double>(parameters) : 0.0,
      manifest.files.size());
  for (const checkpoint::StoredRole& role : manifest.roles) {
    result.text += fmt::format("  {} ({}): layout {}, state {}\n", role.name, role.kind, role.layout.dump(),
                               role.state.is_null() ? "none (weights only)" : role.state.dump());
  }
  for (const auto& [name, tensor] : manifest.tensors) {
    result.text += fmt::format("  {:<60} {:<5} [{}]\n", name, checkpoint::element_type_name(tensor.type),
                               fmt::join(tensor.shape, ", "));
  }
  return result;
}

CommandResult run_checkpoint_diff(const config::RunConfig& config) {
  const CheckpointReader a(checkpoint::resolve_checkpoint(config.exchange.from));
  const CheckpointReader b(checkpoint::resolve_checkpoint(config.exchange.to));
  CommandResult result{"", {{"tensors", nlohmann::json::object()}, {"state", nlohmann::json::object()}}};
  std::set<std::string> names;
  for (const CheckpointReader* reader : {&a, &b}) {
    for (const auto& [name, tensor] : reader->manifest().tensors) {
      names.insert(name);
    }
  }
  for (const std::string& name : names) {
    if (const std::string difference = difference_of(a, b, name); !difference.empty()) {
      result.text += fmt::format("{}: {}\n", name, difference);
      result.json["tensors"][name] = difference;
      result.exit_code = base::ExitCode::bad_data;
    }
  }
  for (const checkpoint::StoredRole& role : a.manifest().roles) {
    const checkpoint::StoredRole* other = b.manifest().find_role(role.name);
    if (other == nullptr || other->state != role.state) {
      const std::string theirs = other == nullptr ? "no such role" : other->state.dump();
      result.text += fmt::format("{} state: {} and {}\n", role.name, role.state.dump(), theirs);
      result.json["state"][role.name] = {role.state, other == nullptr ? nlohmann::json() : other->state};
    }
  }
  const std::string keys = config::first_difference(a.manifest().config, b.manifest().config);
  result.text += keys.empty() ? "" : fmt::format("configuration, first of the differing keys: {}\n", keys);
  result.json["tensors_equal"] = result.exit_code == base::ExitCode::ok;
  result.text += fmt::format("{} of {} tensors are equal bit for bit\n",
                             names.size() - result.json["tensors"].size(), names.size());
  return result;
}

CommandResult run_checkpoint_merge(const config::RunConfig& config) {
  const CheckpointReader reader(checkpoint::resolve_checkpoint(config.exchange.from));
  checkpoint::merge_checkpoint(reader, config.exchange.to);
  const auto bytes = static_cast<std::int64_t>(std::filesystem::file_size(config.exchange.to));
  return {fmt::format("{}: {} tensors of {}, {}\n", config.exchange.to, reader.manifest().tensors.size(),
                      reader.folder(), megabytes(bytes)),
          {{"path", config.exchange.to}, {"bytes", bytes}, {"tensors", reader.manifest().tensors.size()}}};
}

}  // namespace athanor::app
