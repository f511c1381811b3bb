#include "app/checkpoint_export.hpp"

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "app/element_conversion.hpp"
#include "app/hugging_face_origin.hpp"
#include "app/output_folder.hpp"
#include "base/error.hpp"
#include "base/log.hpp"
#include "checkpoint/checkpoint_reader.hpp"
#include "checkpoint/safetensors_folder.hpp"
#include "data/tokenizer.hpp"
#include "data/tokenizer_json.hpp"
#include "model/hf_names.hpp"

namespace athanor::app {
namespace {

namespace fs = std::filesystem;
using checkpoint::CheckpointReader;
using checkpoint::ElementType;
using checkpoint::StoredTensor;

// The stored tensor `name` ("<role>/<kind>/..."), in its own type.
std::vector<std::byte> read_tensor(const CheckpointReader& reader, const std::string& name) {
  const StoredTensor& stored = reader.manifest().tensors.at(name);
  const auto extent = checkpoint::SliceExtent::whole_box(parallel::ShardSpec::whole(stored.shape));
  std::vector<std::byte> bytes(static_cast<std::size_t>(extent.count * element_bytes(stored.type)));
  reader.read({{name, stored.type, extent, bytes.data()}});
  return bytes;
}

// The checkpoint's parameters are those of the model, no more and no fewer.
void check_parameters(const CheckpointReader& reader, const ExportOptions& options) {
  const std::string prefix = options.role + "/parameters/";
  const auto& tensors = reader.manifest().tensors;
  std::size_t found = 0;
  for (const model::ParameterShape& parameter : model::parameter_shapes(options.model)) {
    const auto stored = tensors.find(prefix + parameter.name);
    if (stored == tensors.end() || stored->second.shape != parameter.shape) {
      throw base::CheckpointError(
          "{}: tensor {}{} is {} (its configuration says [{}]) the checkpoint is damaged or of another "
          "program",
          reader.folder(), prefix, parameter.name,
          stored == tensors.end() ? "missing" : fmt::format("[{}]", fmt::join(stored->second.shape, ", ")),
          fmt::join(parameter.shape, ", "));
    }
    ++found;
  }
  for (const auto& [name, stored] : tensors) {
    // Projections of a distillation are no part of the model.
    found -= name.starts_with(prefix) && !name.starts_with(prefix + "distill.") ? 1 : 0;
  }
  if (found != 0) {
    throw base::CheckpointError(
        "{} holds more parameters of {} than its configuration names (it is damaged or of another program)",
        reader.folder(), options.role);
  }
}

// Biases that have moved change which experts are chosen, and nothing there can say so.
void check_no_bias(const CheckpointReader& reader, const std::string& role) {
  const std::string name = role + "/balance/bias";
  if (!reader.manifest().tensors.contains(name)) {
    return;
  }
  const StoredTensor& stored = reader.manifest().tensors.at(name);
  const std::vector<std::byte> bytes = read_tensor(reader, name);
  if (std::any_of(bytes.begin(), bytes.end(), [](std::byte byte) { return byte != std::byte{0}; })) {
    throw base::ConfigError(
        "moe.balance=bias has no equivalent in Hugging Face's Qwen3-MoE ({} holds expert biases that are not "
        "zero, {} of {} layers) only models trained without it can be exported",
        reader.folder(), name, stored.shape.empty() ? 0 : stored.shape[0]);
  }
}

ElementType dtype_of(const ExportOptions& options, const std::optional<HuggingFaceOrigin>& origin,
                     const std::string& tensor) {
  return options.dtype ? *options.dtype : origin ? origin->dtype_of(tensor) : ElementType::f32;
}

// Their tensors by the parameter of ours that holds them.
using TensorsOfParameter = std::map<std::string, std::vector<model::HfTensor>>;

/// Writes the weights of one export.
class WeightsExport {
 public:
  WeightsExport(const CheckpointReader& reader, const ExportOptions& options,
                const std::optional<HuggingFaceOrigin>& origin)
      : reader_(reader), options_(options), origin_(origin) {
    const auto names = origin ? origin->experts : model::HfExpertNames::per_expert;
    for (model::HfTensor& tensor : model::hf_tensors(options.model, names)) {
      layout_.push_back(
          {tensor.name, safetensors_dtype(dtype_of(options, origin, tensor.name)), tensor.shape});
      tensors_[tensor.parameter].push_back(std::move(tensor));
    }
  }

  void write(const std::string& folder, ExportResult& result) {
    checkpoint::SafetensorsFolderWriter writer(folder, layout_, options_.max_file_bytes);
    for (const auto& [parameter, tensors] : tensors_) {
      write_parameter(parameter, tensors, writer);
    }
    writer.finish();
    result.tensors = static_cast<std::int64_t>(layout_.size());
    result.files = writer.num_files();
    result.bytes = writer.tensor_bytes();
  }

 private:
  void write_parameter(const std::string& parameter, const std::vector<model::HfTensor>& tensors,
                       checkpoint::SafetensorsFolderWriter& writer) {
    const std::string name = options_.role + "/parameters/" + parameter;
    const ElementType stored = reader_.manifest().tensors.at(name).type;
    const std::vector<std::byte> bytes = read_tensor(reader_, name);
    for (const model::HfTensor& tensor : tensors) {
      const std::int64_t count = tensor.numel();
      const ElementType type = dtype_of(options_, origin_, tensor.name);
      values_.resize(static_cast<std::size_t>(count));
      converted_.resize(static_cast<std::size_t>(count * element_bytes(type)));
      const std::int64_t narrowed =
          to_f32(bytes.data() + tensor.first * element_bytes(stored), stored, count, values_.data());
      const std::int64_t rounded = from_f32(values_.data(), count, type, converted_.data());
      if (narrowed >= 0 || rounded >= 0) {
        throw base::DataError(
            "element {} of {} is beyond the range of {} (it would become infinite) use --dtype=f32",
            std::max(narrowed, rounded), tensor.name, torch_dtype(type));
      }
      writer.write(tensor.name, converted_.data());
    }
  }

  const CheckpointReader& reader_;
  const ExportOptions& options_;
  const std::optional<HuggingFaceOrigin>& origin_;
  std::vector<checkpoint::SafetensorsEntry> layout_;
  TensorsOfParameter tensors_;
  std::vector<float> values_;
  std::vector<std::byte> converted_;
};

// A key of config.json that older and newer versions of transformers spell differently.
void set_dtype(nlohmann::json& config, const std::string& dtype) {
  const bool has_old = config.contains("torch_dtype");
  if (has_old) {
    config["torch_dtype"] = dtype;
  }
  if (config.contains("dtype") || !has_old) {
    config["dtype"] = dtype;
  }
}

// The config.json that came in when it still describes the model, otherwise one of ours.
nlohmann::json make_config(const ExportOptions& options, const std::optional<HuggingFaceOrigin>& origin,
                           const std::string& dtype, std::int64_t eos_token_id) {
  nlohmann::json config;
  if (origin) {
    config = nlohmann::json::parse(origin->config);
  }
  if (!origin ||
      !describe_same_model(model::read_hf_config(config, "config.json of the import"), options.model)) {
    config = model::make_hf_config(options.model, {dtype, eos_token_id});
  }
  if (!origin || options.dtype) {
    set_dtype(config, dtype);
  }
  return config;
}

// Gives back the files that an import kept; whether a tokenizer was among them.
bool restore_kept_files(const fs::path& checkpoint, const OutputFolder& out) {
  bool has_tokenizer = false;
  for (const std::string& name : kept_files()) {
    if (const fs::path kept = checkpoint / (kept_prefix + name); fs::exists(kept)) {
      out.copy(kept.string(), name);
      has_tokenizer = has_tokenizer || name == "tokenizer.json" || name == "vocab.json";
    }
  }
  return has_tokenizer;
}

void write_tokenizer(const std::string& model_path, std::int64_t max_seq, const OutputFolder& out) {
  const data::HfTokenizer files = data::make_hf_tokenizer(model_path, max_seq);
  out.write("tokenizer.json", files.tokenizer_json);
  out.write("tokenizer_config.json", files.tokenizer_config_json);
}

}  // namespace

ExportResult export_to_hugging_face(const ExportOptions& options) {
  model::check_hf_equivalent(options.model);
  const CheckpointReader reader(options.from);
  checkpoint::stored_role_with_weights(reader, options.role);
  check_parameters(reader, options);
  check_no_bias(reader, options.role);
  const std::optional<HuggingFaceOrigin> origin = find_origin(reader.manifest());

  OutputFolder out(options.to);
  ExportResult result;
  result.folder = out.target();
  result.dtype = torch_dtype(options.dtype.value_or(origin ? origin->dtype : ElementType::f32));
  std::int64_t eos_token_id = -1;
  result.has_tokenizer = restore_kept_files(options.from, out);
  if (const fs::path model = fs::path(options.from) / checkpoint::tokenizer_file; fs::exists(model)) {
    out.copy(model.string(), checkpoint::tokenizer_file);
    eos_token_id = data::Tokenizer(model.string()).end_of_document();
    if (!result.has_tokenizer) {
      write_tokenizer(model.string(), options.model.max_seq, out);
      result.has_tokenizer = true;
    }
  }
  if (!result.has_tokenizer) {
    base::log_warning("{} has no tokenizer (it was made without one): the exported folder has none either",
                      options.from);
  }
  out.write("config.json", make_config(options, origin, result.dtype, eos_token_id).dump(2) + "\n");
  if (!fs::exists(fs::path(out.path()) / "generation_config.json")) {
    nlohmann::json generation = {{"_from_model_config", true}};
    if (eos_token_id >= 0) {
      generation["eos_token_id"] = eos_token_id;
    }
    out.write("generation_config.json", generation.dump(2) + "\n");
  }
  WeightsExport(reader, options, origin).write(out.path(), result);
  out.publish();
  return result;
}

}  // namespace athanor::app
