#include "app/checkpoint_import.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "app/element_conversion.hpp"
#include "app/hugging_face_origin.hpp"
#include "app/output_folder.hpp"
#include "base/error.hpp"
#include "base/log.hpp"
#include "checkpoint/catalog.hpp"
#include "checkpoint/io_thread.hpp"
#include "checkpoint/safetensors_folder.hpp"
#include "checkpoint/shard_file.hpp"
#include "config/ini.hpp"
#include "config/key.hpp"
#include "data/tokenizer.hpp"
#include "model/hf_names.hpp"

namespace athanor::app {
namespace {

namespace fs = std::filesystem;
using checkpoint::ElementType;
using checkpoint::SafetensorsEntry;
using checkpoint::SafetensorsFolder;

constexpr std::int64_t max_config_bytes = 64 << 20;
constexpr const char* tied_head = "lm_head.weight";

nlohmann::json read_config(const std::string& path) {
  if (!fs::is_regular_file(path)) {
    throw base::MissingInputError("{} does not exist (a Hugging Face folder has one) give the model's folder",
                                  path);
  }
  if (static_cast<std::int64_t>(fs::file_size(path)) > max_config_bytes) {
    throw base::DataError("{} has {} bytes (no model's config is that long)", path, fs::file_size(path));
  }
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  return nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
}

model::HfExpertNames expert_names(const SafetensorsFolder& weights) {
  for (const auto& [name, entry] : weights.tensors()) {
    if (name.ends_with(".mlp.experts.gate_up_proj") || name.ends_with(".mlp.experts.down_proj")) {
      return model::HfExpertNames::fused;
    }
  }
  return model::HfExpertNames::per_expert;
}

void check_tensor(const SafetensorsFolder& weights, const model::HfTensor& expected) {
  const auto found = weights.tensors().find(expected.name);
  if (found == weights.tensors().end()) {
    throw base::DataError(
        "tensor {} is missing (config.json describes a model that has it) copy the folder again",
        expected.name);
  }
  const SafetensorsEntry& entry = found->second;
  const std::string& file = weights.file_of(expected.name);
  if (entry.shape != expected.shape) {
    throw base::DataError("{}: tensor {} is [{}] (by config.json it is [{}]) copy the folder again", file,
                          expected.name, fmt::join(entry.shape, ", "), fmt::join(expected.shape, ", "));
  }
  if (!element_type_of(entry.dtype)) {
    throw base::DataError("{}: tensor {} is {} (F32, BF16 and F16 are read) save it in one of them", file,
                          expected.name, entry.dtype);
  }
}

// Some writers store the head of a tied model as well; it must then be the embedding.
void check_tied_head(const SafetensorsFolder& weights) {
  const std::string embedding = "model.embed_tokens.weight";
  const SafetensorsEntry& a = weights.tensors().at(embedding);
  const SafetensorsEntry& b = weights.tensors().at(tied_head);
  bool same = a.dtype == b.dtype && a.shape == b.shape;
  constexpr std::int64_t step = 1 << 20;
  std::vector<std::byte> bytes_a(step);
  std::vector<std::byte> bytes_b(step);
  for (std::int64_t first = 0; same && first < a.end - a.begin; first += step) {
    const std::int64_t count = std::min(step, a.end - a.begin - first);
    weights.read(embedding, first, count, bytes_a.data());
    weights.read(tied_head, first, count, bytes_b.data());
    same = std::equal(bytes_a.begin(), bytes_a.begin() + count, bytes_b.begin());
  }
  if (!same) {
    throw base::DataError(
        "{}: tensor {} is not the embedding (config.json has tie_word_embeddings=true) set that to false",
        weights.file_of(tied_head), tied_head);
  }
}

// Exactly the model's tensors, with its shapes, in formats that are read.
void check_tensors(const SafetensorsFolder& weights, const model::TransformerConfig& config,
                   model::HfExpertNames names, const std::vector<model::HfTensor>& expected) {
  std::set<std::string> known;
  for (const model::HfTensor& tensor : expected) {
    check_tensor(weights, tensor);
    known.insert(tensor.name);
  }
  for (const auto& [name, entry] : weights.tensors()) {
    if (known.contains(name)) {
      continue;
    }
    if (!config.tie_embeddings || name != tied_head) {
      throw base::DataError("{}: tensor {} is unexpected (config.json describes a model without it{})",
                            weights.file_of(name), name,
                            names == model::HfExpertNames::fused ? ", with fused experts" : "");
    }
    check_tied_head(weights);
  }
}

// Before lists as long as a hostile config.json asks for are made.
void check_count(const SafetensorsFolder& weights, const model::TransformerConfig& config,
                 model::HfExpertNames names) {
  const std::int64_t expected = count_hf_tensors(config, names);
  const auto found = static_cast<std::int64_t>(weights.tensors().size());
  constexpr std::int64_t slack = 1000;  // small differences are better named tensor by tensor
  if (expected > 2 * found + slack) {
    throw base::DataError("config.json describes {} tensors (the files hold {}) copy the folder again",
                          expected, found);
  }
}

HuggingFaceOrigin remember(const nlohmann::json& config, const SafetensorsFolder& weights,
                           model::HfExpertNames names, const std::vector<model::HfTensor>& tensors) {
  HuggingFaceOrigin origin;
  origin.config = config.dump();
  origin.experts = names;
  std::map<ElementType, std::int64_t> elements;
  for (const model::HfTensor& tensor : tensors) {
    elements[*element_type_of(weights.tensors().at(tensor.name).dtype)] += tensor.numel();
  }
  origin.dtype = std::max_element(elements.begin(), elements.end(), [](const auto& a, const auto& b) {
                   return a.second < b.second;
                 })->first;
  for (const model::HfTensor& tensor : tensors) {
    const ElementType type = *element_type_of(weights.tensors().at(tensor.name).dtype);
    if (type != origin.dtype) {
      origin.exceptions[tensor.name] = type;
    }
  }
  return origin;
}

/// Writes the parameters, a file's worth at a time.
class WeightsImport {
 public:
  WeightsImport(const SafetensorsFolder& weights, const ImportOptions& options, std::string folder,
                checkpoint::Manifest& manifest)
      : weights_(weights), options_(options), folder_(std::move(folder)), manifest_(manifest) {}

  void write(const std::vector<model::ParameterShape>& parameters,
             const std::vector<model::HfTensor>& tensors) {
    std::map<std::string, std::vector<const model::HfTensor*>> parts;
    for (const model::HfTensor& tensor : tensors) {
      parts[tensor.parameter].push_back(&tensor);
    }
    for (const model::ParameterShape& parameter : parameters) {
      const std::int64_t bytes = parameter.numel() * element_bytes(ElementType::f32);
      if (pending_bytes_ + bytes > options_.max_file_bytes && !slices_.empty()) {
        flush();
      }
      pending_bytes_ += bytes;
      add(parameter, parts.at(parameter.name));
    }
    flush();
    manifest_.world_size = static_cast<int>(manifest_.files.size());
  }

 private:
  void add(const model::ParameterShape& parameter, const std::vector<const model::HfTensor*>& parts) {
    const std::string name = options_.role + "/parameters/" + parameter.name;
    values_.emplace_back(static_cast<std::size_t>(parameter.numel()));
    for (const model::HfTensor* part : parts) {
      read(*part, values_.back().data() + part->first);
    }
    manifest_.tensors[name] = {ElementType::f32, parameter.shape};
    slices_.push_back({name, ElementType::f32,
                       checkpoint::SliceExtent::whole_box(parallel::ShardSpec::whole(parameter.shape)),
                       values_.back().data()});
  }

  void read(const model::HfTensor& tensor, float* to) {
    const SafetensorsEntry& entry = weights_.tensors().at(tensor.name);
    bytes_.resize(static_cast<std::size_t>(entry.end - entry.begin));
    weights_.read(tensor.name, 0, entry.end - entry.begin, bytes_.data());
    const std::int64_t bad = to_f32(bytes_.data(), *element_type_of(entry.dtype), tensor.numel(), to);
    if (bad >= 0) {
      throw base::DataError("{}: element {} of tensor {} is not a finite number (damaged weights)",
                            weights_.file_of(tensor.name), bad, tensor.name);
    }
  }

  void flush() {
    const checkpoint::ShardIdentity identity{manifest_.run_id, manifest_.step,
                                             static_cast<int>(manifest_.files.size())};
    checkpoint::WrittenShard written;
    checkpoint::run_on_io_thread([&] { written = checkpoint::write_shard(folder_, identity, slices_); });
    manifest_.files.push_back(std::move(written.file));
    std::move(written.slices.begin(), written.slices.end(), std::back_inserter(manifest_.slices));
    slices_.clear();
    values_.clear();
    pending_bytes_ = 0;
  }

  const SafetensorsFolder& weights_;
  const ImportOptions& options_;
  std::string folder_;
  checkpoint::Manifest& manifest_;
  std::vector<std::vector<float>> values_;
  std::vector<checkpoint::TensorSlice> slices_;
  std::int64_t pending_bytes_ = 0;
  std::vector<std::byte> bytes_;
};

// The keys that describe the model, as a configuration file. Others keep their defaults in a run.
std::string describe_in_ini(const model::TransformerConfig& model, bool has_tokenizer) {
  const std::vector<std::string> common = {
      "model.vocab_size", "model.layers",  "model.hidden",     "model.heads",   "model.kv_heads",
      "model.head_dim",   "model.qk_norm", "model.rope_theta", "model.max_seq", "model.tie_embeddings",
      "model.norm_eps",   "model.ffn",     "model.init_std",   "moe.experts"};
  const std::vector<std::string> sparse = {
      "moe.top_k",       "moe.ffn",   "moe.shared_experts",  "moe.groups",
      "moe.group_top_k", "moe.score", "moe.normalize_top_k", "moe.capacity_factor",
      "moe.every"};
  config::RunConfig run;
  run.roles[0].model = model;
  std::map<std::string, std::string> sections;
  const auto add = [&](const std::vector<std::string>& names) {
    for (const std::string& name : names) {
      const config::Key& key = *config::find_key(name);
      const std::size_t dot = name.find('.');
      sections[name.substr(0, dot)] +=
          fmt::format("{} = {}\n", name.substr(dot + 1), config::ini_value(key.get(run, run.roles[0])));
    }
  };
  add(common);
  if (model.moe.num_experts > 0) {
    add(sparse);
  }
  std::string text;
  for (const auto& [section, lines] : sections) {
    text += fmt::format("[{}]\n{}", section, lines);
  }
  return text + (has_tokenizer ? fmt::format("[data]\ntokenizer = {}\n", checkpoint::tokenizer_file) : "");
}

std::string random_id() {
  std::random_device device;
  return fmt::format("{:08x}{:08x}", device(), device());
}

std::string utc_now() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

// Files to keep in the checkpoint: name there, path here.
std::vector<std::pair<std::string, std::string>> extra_files(const fs::path& folder, bool has_sentencepiece) {
  std::vector<std::pair<std::string, std::string>> files;
  if (has_sentencepiece) {
    files.emplace_back(checkpoint::tokenizer_file, (folder / checkpoint::tokenizer_file).string());
  }
  for (const std::string& name : kept_files()) {
    if (fs::is_regular_file(folder / name)) {
      files.emplace_back(kept_prefix + name, (folder / name).string());
    }
  }
  return files;
}

// Whether there is a tokenizer.model; it must be one, and its ids must fit the model.
bool check_tokenizer(const fs::path& folder, const model::TransformerConfig& model) {
  const fs::path path = folder / checkpoint::tokenizer_file;
  if (!fs::is_regular_file(path)) {
    return false;
  }
  const std::int64_t tokens = data::Tokenizer(path.string()).vocab_size();
  if (tokens > model.vocab_size) {
    throw base::DataError("{} has {} tokens (the model's vocab_size is {}) copy the folder again",
                          path.string(), tokens, model.vocab_size);
  }
  return true;
}

}  // namespace

ImportResult import_from_hugging_face(const ImportOptions& options) {
  const fs::path from(options.from);
  const std::string config_path = (from / "config.json").string();
  const nlohmann::json config = read_config(config_path);
  ImportResult result;
  result.model = model::read_hf_config(config, config_path);
  const SafetensorsFolder weights(options.from);
  const model::HfExpertNames names = expert_names(weights);
  check_count(weights, result.model, names);
  const std::vector<model::HfTensor> tensors = model::hf_tensors(result.model, names);
  check_tensors(weights, result.model, names, tensors);
  result.has_sentencepiece = check_tokenizer(from, result.model);
  if (!result.has_sentencepiece) {
    base::log_warning(
        "{} has no SentencePiece model ({}): training and evaluation on token files work, commands that read "
        "or "
        "write text need one",
        options.from, checkpoint::tokenizer_file);
  }

  OutputFolder out(options.to);
  checkpoint::Manifest manifest;
  manifest.run_id = random_id();
  manifest.created = utc_now();
  manifest.program = fmt::format("athanor {}", config::version);
  manifest.config = describe_in_ini(result.model, result.has_sentencepiece);
  manifest.data = to_json(remember(config, weights, names, tensors));
  const nlohmann::json layout = {{"ranks", 1}, {"dp", 1}, {"tp", 1}, {"ep", 1}, {"zero", 1}};
  manifest.roles = {{options.role, options.role == "teacher" ? "teacher" : "student", layout, nullptr}};
  const std::string checkpoints = out.path() + "/checkpoints";
  const std::string unfinished = checkpoints + "/" + checkpoint::unfinished_folder_name(0, manifest.run_id);
  fs::create_directories(unfinished);
  const std::vector<model::ParameterShape> parameters = model::parameter_shapes(result.model);
  WeightsImport(weights, options, unfinished, manifest).write(parameters, tensors);
  checkpoint::run_on_io_thread([&] {
    checkpoint::publish_checkpoint({checkpoints, unfinished, extra_files(from, result.has_sentencepiece)},
                                   manifest);
  });
  out.publish();
  for (const model::ParameterShape& parameter : parameters) {
    result.parameters += parameter.numel();
  }
  result.checkpoint = out.target() + "/checkpoints/" + checkpoint::step_folder_name(0);
  return result;
}

}  // namespace athanor::app
