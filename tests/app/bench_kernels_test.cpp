// `athanor bench kernels` from outside.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "support/program.hpp"

namespace athanor {
namespace {

namespace fs = std::filesystem;
using tests::Outcome;

TEST(BenchKernels, ComparesEveryKernelWithItsLimitAndItsReference) {
  std::string name = (fs::temp_directory_path() / "athanor_kernels_XXXXXX").string();
  const fs::path folder = mkdtemp(name.data());
  const Outcome outcome = tests::run_program(
      folder,
      "bench kernels --model.vocab_size=130 --model.layers=1 --model.hidden=32 --model.heads=2 "
      "--model.kv_heads=1 --moe.experts=4 --moe.top_k=2 --moe.ffn=16 --batch.global=2 --batch.seq=32 "
      "--bench.rounds=2 --json",
      tests::on_ranks(1));
  fs::remove_all(folder);
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  std::set<std::string> names;
  const nlohmann::json result = outcome.json();
  for (const auto& figure : result["figures"]) {
    names.insert(figure["name"].get<std::string>());
    for (const char* key : {"figure", "limit", "ratio", "ratio_min", "ratio_max", "reference", "speedup"}) {
      EXPECT_GT(figure.at(key).get<double>(), 0.0) << figure["name"] << " " << key;
    }
    EXPECT_LE(figure["ratio_min"], figure["ratio_max"]);
  }
  for (const char* kernel :
       {"expert products, forward, bf16", "permute, f32", "unpermute (weighted sum), bf16",
        "quantise to fp8, f32", "dequantise from fp8, bf16", "SwiGLU, backward, f32",
        "RMSNorm, forward, bf16", "rotary positions, f32", "AdamW, bf16",
        "softmax cross-entropy with gradient, bf16", "attention, forward, f32",
        "forward KL with gradient, f32"}) {
    EXPECT_TRUE(names.count(kernel) == 1) << kernel;
  }
}

}  // namespace
}  // namespace athanor
