// `athanor checkpoint import` and `export` from outside, on folders written here: no transformers needed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "checkpoint/safetensors_folder.hpp"
#include "model/hf_names.hpp"
#include "support/program.hpp"

namespace athanor {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;
using tests::Outcome;
using tests::read_file;

model::TransformerConfig small_model() {
  model::TransformerConfig config;
  config.vocab_size = 29;
  config.layers = 2;
  config.hidden = 16;
  config.heads = 2;
  config.kv_heads = 1;
  config.head_dim = 6;
  config.max_seq = 32;
  config.ffn = 20;
  config.moe.num_experts = 3;
  config.moe.top_k = 2;
  config.moe.ffn = 8;
  config.moe.every = 2;
  return config;
}

// What a test folder holds, changed before it is written.
struct Contents {
  json config = model::make_hf_config(small_model(), {});
  std::vector<checkpoint::SafetensorsEntry> tensors;
  std::map<std::string, std::string> data;
  std::int64_t max_file_bytes = 1'000'000;

  explicit Contents(const std::string& dtype = "F32",
                    model::HfExpertNames experts = model::HfExpertNames::per_expert) {
    std::mt19937 random(1);
    const std::int64_t bytes = checkpoint::safetensors_element_bytes(dtype);
    for (const model::HfTensor& tensor : model::hf_tensors(small_model(), experts)) {
      tensors.push_back({tensor.name, dtype, tensor.shape, 0, 0});
      std::string& values = data[tensor.name];
      for (std::int64_t i = 0; i < tensor.numel(); ++i) {
        // The upper bytes of small floats, whatever the format; the lower ones are random.
        std::uint32_t bits = 0x3C000000U | (random() & 0x80FFFFFFU);
        bits = bytes == 2 ? bits >> 16 : bits;
        values.append(reinterpret_cast<const char*>(&bits), static_cast<std::size_t>(bytes));
      }
    }
  }
  checkpoint::SafetensorsEntry& tensor(const std::string& name) {
    for (checkpoint::SafetensorsEntry& entry : tensors) {
      if (entry.name == name) {
        return entry;
      }
    }
    throw base::InternalError("no tensor {}", name);
  }
};

class Exchange : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "athanor-exchange-XXXXXX").string();
    work_ = ::mkdtemp(name.data());
  }
  void TearDown() override { fs::remove_all(work_); }

  Outcome run(const std::string& arguments) const {
    return tests::run_program(work_, "checkpoint " + arguments);
  }
  Outcome import(const fs::path& from, const fs::path& to) const {
    return run(fmt::format("import --from={} --to={} --json", from.string(), to.string()));
  }
  Outcome export_to(const fs::path& from, const fs::path& to, const std::string& options = "") const {
    return run(fmt::format("export --from={} --to={} --json {}", from.string(), to.string(), options));
  }
  static void write(const fs::path& folder, const Contents& contents) {
    fs::create_directories(folder);
    checkpoint::SafetensorsFolderWriter writer(folder.string(), contents.tensors, contents.max_file_bytes);
    for (const checkpoint::SafetensorsEntry& tensor : contents.tensors) {
      writer.write(tensor.name, contents.data.at(tensor.name).data());
    }
    writer.finish();
    std::ofstream(folder / "config.json") << contents.config;
  }
  // Names of the files of both folders whose bytes differ, or that only one of them has.
  static std::vector<std::string> different_files(const fs::path& a, const fs::path& b) {
    std::map<std::string, int> names;
    for (const fs::path& folder : {a, b}) {
      for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
        ++names[entry.path().filename().string()];
      }
    }
    std::vector<std::string> different;
    for (const auto& [name, count] : names) {
      if (name != "config.json" && (count != 2 || read_file(a / name) != read_file(b / name))) {
        different.push_back(name);
      }
    }
    return different;
  }
  // The message of an import that must fail with this code and leave nothing.
  std::string refusal(const fs::path& folder, base::ExitCode code) {
    const Outcome outcome = import(folder, work_ / "run");
    EXPECT_EQ(outcome.exit_code, static_cast<int>(code)) << outcome.err;
    for (const fs::directory_entry& entry : fs::directory_iterator(work_)) {
      EXPECT_EQ(entry.path().filename().string().find("run"), std::string::npos) << entry.path();
    }
    return outcome.err;
  }

  fs::path work_;
};

TEST_F(Exchange, RoundTripGivesTheSameFiles) {
  using model::HfExpertNames;
  for (const auto& [dtype, experts] :
       {std::pair("F32", HfExpertNames::per_expert), std::pair("BF16", HfExpertNames::fused),
        std::pair("F16", HfExpertNames::per_expert)}) {
    Contents contents(dtype, experts);
    contents.config.erase("torch_dtype");
    contents.config["eos_token_id"] = 5;
    contents.config["made_by"] = "somebody";
    const fs::path original = work_ / dtype;
    write(original, contents);
    std::ofstream(original / "tokenizer.json") << "{\"kept\": 1}";
    std::ofstream(original / "generation_config.json") << "{ }";
    const fs::path run_folder = original.string() + "-run";
    const fs::path exported = original.string() + "-exported";
    const Outcome imported = import(original, run_folder);
    ASSERT_EQ(imported.exit_code, 0) << imported.err;
    EXPECT_THAT(imported.err, HasSubstr("no SentencePiece model"));
    const Outcome back = export_to(run_folder, exported);
    ASSERT_EQ(back.exit_code, 0) << back.err;
    EXPECT_EQ(different_files(original, exported), std::vector<std::string>{}) << dtype;
    EXPECT_EQ(json::parse(read_file(exported / "config.json")), contents.config);
  }
}

TEST_F(Exchange, ShardsRoundTripAndWiden) {
  Contents contents("BF16");
  contents.max_file_bytes = 3000;
  write(work_ / "original", contents);
  ASSERT_EQ(import(work_ / "original", work_ / "imported").exit_code, 0);
  const Outcome exported = export_to(work_ / "imported", work_ / "exported", "--shard_bytes=3000");
  ASSERT_EQ(exported.exit_code, 0) << exported.err;
  EXPECT_GT(json::parse(exported.out)["files"], 2);
  EXPECT_EQ(different_files(work_ / "original", work_ / "exported"),
            std::vector<std::string>{"generation_config.json"});
  ASSERT_EQ(export_to(work_ / "imported", work_ / "wide", "--dtype=f32").exit_code, 0);
  EXPECT_EQ(json::parse(read_file(work_ / "wide" / "config.json"))["dtype"], "float32");
  const checkpoint::SafetensorsFolder wide((work_ / "wide").string());
  for (const auto& [name, data] : contents.data) {
    std::string bytes(2 * data.size(), '\0');
    wide.read(name, 0, static_cast<std::int64_t>(bytes.size()), bytes.data());
    for (std::size_t i = 0; i < data.size() / 2; ++i) {
      ASSERT_EQ(bytes.substr(4 * i, 4), std::string(2, '\0') + data.substr(2 * i, 2)) << name;
    }
  }
  EXPECT_EQ(run("verify --from=" + (work_ / "imported").string()).exit_code, 0);
}

TEST_F(Exchange, RefusesDamagedFoldersAndLeavesNothing) {
  const std::string q = "model.layers.1.self_attn.q_proj.weight";
  struct Damage {
    std::function<void(Contents&)> change;
    std::string names;
  };
  const std::vector<Damage> damages = {
      {[&](Contents& c) { std::erase_if(c.tensors, [&](const auto& e) { return e.name == q; }); }, q},
      {[&](Contents& c) {
         c.tensors.push_back({"extra", "F32", {1}, 0, 0});
         c.data["extra"] = "abcd";
       },
       "extra is unexpected"},
      {[&](Contents& c) { std::swap(c.tensor(q).shape[0], c.tensor(q).shape[1]); }, "[16, 12]"},
      {[&](Contents& c) { c.tensor(q).dtype = "I32"; }, "I32"},
      {[&](Contents& c) { c.data[q].replace(4, 4, "\xff\xff\xff\xff"); }, "element 1 of tensor " + q},
      {[&](Contents& c) { c.config["model_type"] = "llama"; }, "llama"},
      {[&](Contents& c) { c.config["num_hidden_layers"] = 3; }, "model.layers.2."},
      {[&](Contents& c) {
         c.config["num_hidden_layers"] = 16384;
         c.config["num_local_experts"] = 16384;
       },
       "describes"},
      {[&](Contents& c) { c.config["tie_word_embeddings"] = true; }, "lm_head.weight is not the embedding"},
  };
  for (const Damage& damage : damages) {
    Contents contents;
    damage.change(contents);
    write(work_ / "bad", contents);
    EXPECT_THAT(refusal(work_ / "bad", base::ExitCode::bad_data), HasSubstr(damage.names));
    fs::remove_all(work_ / "bad");
  }
}

TEST_F(Exchange, RefusesTruncatedAndMissingFiles) {
  write(work_ / "bad", Contents());
  const fs::path weights = work_ / "bad" / "model.safetensors";
  for (const std::uintmax_t bytes : {fs::file_size(weights) - 1, std::uintmax_t{100}, std::uintmax_t{0}}) {
    fs::resize_file(weights, bytes);
    EXPECT_THAT(refusal(work_ / "bad", base::ExitCode::bad_data), HasSubstr("model.safetensors"));
  }
  fs::remove(weights);
  EXPECT_THAT(refusal(work_ / "bad", base::ExitCode::missing_input), HasSubstr("holds no weights"));
  std::ofstream(work_ / "bad" / "config.json") << "{";
  EXPECT_THAT(refusal(work_ / "bad", base::ExitCode::bad_data), HasSubstr("not a JSON object"));
  fs::remove(work_ / "bad" / "config.json");
  EXPECT_THAT(refusal(work_ / "bad", base::ExitCode::missing_input), HasSubstr("config.json"));
}

TEST_F(Exchange, TargetsMustBeEmpty) {
  write(work_ / "original", Contents());
  fs::create_directory(work_ / "taken");
  std::ofstream(work_ / "taken" / "file") << "mine";
  const int taken = static_cast<int>(base::ExitCode::cannot_create);
  EXPECT_EQ(import(work_ / "original", work_ / "taken").exit_code, taken);
  EXPECT_EQ(import(work_ / "original", work_ / "taken" / "file").exit_code, taken);
  fs::create_directory(work_ / "empty");
  ASSERT_EQ(import(work_ / "original", work_ / "empty").exit_code, 0);
  EXPECT_EQ(import(work_ / "original", work_ / "empty").exit_code, taken);
  EXPECT_EQ(export_to(work_ / "empty", work_ / "taken").exit_code, taken);
  EXPECT_EQ(read_file(work_ / "taken" / "file"), "mine");
}

}  // namespace
}  // namespace athanor
