#include "checkpoint/manifest.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <random>

#include "base/error.hpp"
#include "sample_checkpoint.hpp"

namespace athanor::checkpoint {
namespace {

using nlohmann::json;

// A manifest of two files and three tensors, made without any file.
Manifest small_manifest() {
  using parallel::ShardSpec;
  Manifest manifest = samples::empty_manifest(2, 100, "0123456789abcdef");
  manifest.files = {{"rank-00000.h5", 100000, 0}, {"rank-00001.h5", 100000, 1}};
  manifest.tensors = {{"a", {ElementType::f32, {4, 6}}},
                      {"b/c", {ElementType::bf16, {5}}},
                      {"none", {ElementType::f32, {3, 0}}}};
  manifest.slices = {
      {"a", "rank-00000.h5", "a/0", SliceExtent::whole_box(ShardSpec::slice({4, 6}, 1, 0, 4)), {1}},
      {"a", "rank-00001.h5", "a/0", {ShardSpec::slice({4, 6}, 1, 4, 2), 0, 5}, {2}},
      {"a", "rank-00001.h5", "a/1", {ShardSpec::slice({4, 6}, 1, 4, 2), 5, 3}, {0xfedcba9876543210}},
      {"b/c", "rank-00001.h5", "b/c/0", SliceExtent::whole_box(ShardSpec::whole({5})), {4}}};
  return manifest;
}

std::string refusal(const json& value) {
  try {
    manifest_from_json(value);
  } catch (const base::CheckpointError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(Manifest, GoesThroughJsonUnchanged) {
  const Manifest manifest = small_manifest();
  const Manifest read = manifest_from_json(json::parse(to_json(manifest).dump()));
  EXPECT_EQ(to_json(read), to_json(manifest));
  EXPECT_EQ(read.run_id, manifest.run_id);
  EXPECT_EQ(read.step, 100);
  EXPECT_EQ(read.tensors.at("b/c").type, ElementType::bf16);
  ASSERT_EQ(read.slices.size(), 4u);
  EXPECT_EQ(read.slices[2].extent, manifest.slices[2].extent);
  EXPECT_EQ(read.slices[2].checksums, manifest.slices[2].checksums);
  EXPECT_EQ(read.payload_bytes(), 24 * 4 + 5 * 2);
  ASSERT_NE(read.find_role("student"), nullptr);
  EXPECT_TRUE(read.find_role("student")->state.is_null());
  EXPECT_EQ(read.find_role("teacher")->state.at("step"), 100);
  EXPECT_EQ(read.find_role("nobody"), nullptr);
}

TEST(Manifest, RanksReportTheirSlices) {
  const auto slices = slices_from_json(json::parse(slices_to_json(small_manifest().slices).dump()));
  ASSERT_EQ(slices.size(), 4u);
  EXPECT_EQ(slices[1].extent, small_manifest().slices[1].extent);
  EXPECT_TRUE(slices_from_json(slices_to_json({})).empty());
}

struct Hostile {
  const char* pointer;
  json value;
  const char* expected;  // part of the message
};

class HostileManifest : public testing::TestWithParam<Hostile> {};

TEST_P(HostileManifest, IsRefusedByName) {
  json value = to_json(small_manifest());
  value[json::json_pointer(GetParam().pointer)] = GetParam().value;
  EXPECT_NE(refusal(value).find(GetParam().expected), std::string::npos)
      << GetParam().pointer << " = " << GetParam().value << ": " << refusal(value);
}

INSTANTIATE_TEST_SUITE_P(
    Cases, HostileManifest,
    testing::Values(
        Hostile{"/format", "other", "format"}, Hostile{"/format_version", 2, "version 2"},
        Hostile{"/format_version", 0, "format_version"}, Hostile{"/format_version", 1.0, "format_version"},
        Hostile{"/checksum_block_bytes", 1024, "checksum_block_bytes"}, Hostile{"/step", -1, "step"},
        Hostile{"/step", 1e30, "step"}, Hostile{"/step", UINT64_MAX, "step"},
        Hostile{"/world_size", 0, "world_size"}, Hostile{"/world_size", 1ull << 40, "world_size"},
        Hostile{"/run_id", 5, "run_id"}, Hostile{"/config", nullptr, "config"}, Hostile{"/roles", 3, "roles"},
        Hostile{"/roles/0", "x", "role 0"}, Hostile{"/files/0/name", "../rank-00000.h5", "no name of a file"},
        Hostile{"/files/0/name", "..", "no name of a file"},
        Hostile{"/files/0/name", "", "no name of a file"},
        Hostile{"/files/0/name", "/etc/passwd", "no name of a file"},
        Hostile{"/files/0/name", "rank-00001.h5", "twice"}, Hostile{"/files/0/bytes", -5, "bytes"},
        Hostile{"/files/0/bytes", 20, "does not fit"}, Hostile{"/files/1/rank", -1, "rank"},
        Hostile{"/slices/0/file", "rank-00007.h5", "does not list"},
        Hostile{"/slices/0/tensor", "z", "does not list"}, Hostile{"/slices/0/dataset", "a//0", "name"},
        Hostile{"/slices/0/dataset", "a/../0", "name"}, Hostile{"/slices/0/dataset", "", "name"},
        Hostile{"/slices/1/dataset", "a/1", "twice"},
        Hostile{"/slices/0/offset", json::array({0}), "outside"}, Hostile{"/slices/0/offset/0", -1, "offset"},
        Hostile{"/slices/0/offset/1", 3, "outside"}, Hostile{"/slices/0/offset/1", INT64_MAX, "outside"},
        Hostile{"/slices/0/shape/0", INT64_MAX, "outside"}, Hostile{"/slices/0/shape", "4", "shape"},
        Hostile{"/slices/0/first", 1, "elements"}, Hostile{"/slices/0/first", INT64_MAX, "elements"},
        Hostile{"/slices/0/count", 0, "at least one"}, Hostile{"/slices/0/count", INT64_MAX, "does not fit"},
        Hostile{"/slices/0/count", 15, "are stored"}, Hostile{"/slices/1/count", 6, "overlap"},
        Hostile{"/slices/2/offset/1", 3, "overlap"}, Hostile{"/slices/1/first", 1, "overlap"},
        Hostile{"/slices/0/global_shape", json::array({6, 4}), "is of shape"},
        Hostile{"/slices/0/checksums", json::array(), "checksums"},
        Hostile{"/slices/0/checksums/0", "12", "checksums"},
        Hostile{"/slices/0/checksums/0", "000000000000000g", "checksums"},
        Hostile{"/slices/0/checksums/0", 7, "checksums"}, Hostile{"/slices/0", json::array(), "slice 0"},
        Hostile{"/tensors/a/dtype", "f8", "f8"}, Hostile{"/tensors/a/shape", json::array(), "dimensions"},
        Hostile{"/tensors/a/shape", json::array({1ull << 40, 1ull << 40}), "impossible"},
        Hostile{"/tensors/none/shape", json::array({1ull << 40, 1ull << 40, 0}), "impossible"},
        Hostile{"/tensors/a/shape", std::vector<int>(33, 1), "dimensions"},
        Hostile{"/tensors/x", json{{"dtype", "f32"}, {"shape", {2}}}, "are stored"},
        Hostile{"/tensors", json::array(), "tensors"}, Hostile{"/data", json{}, "accepted"}));

TEST(Manifest, TypeOfATensorMustFitItsBytes) {
  // Twice the bytes still fit the file and one block: caught only where the dataset is opened.
  json value = to_json(small_manifest());
  value["tensors"]["b/c"]["dtype"] = "f32";
  EXPECT_EQ(refusal(value), "accepted");
}

TEST(Manifest, EveryKeyIsRequired) {
  const json whole = to_json(small_manifest());
  int refused = 0;
  const std::function<void(json&, const json::json_pointer&, json&)> drop =
      [&](json& root, const json::json_pointer& at, json& node) {
        if (at == json::json_pointer("/data/train") || at == json::json_pointer("/roles/0/layout")) {
          return;  // free content
        }
        const json children = node;
        for (const auto& [key, child] : children.items()) {
          if (node.is_object()) {
            const json kept = node[key];
            node.erase(key);
            const bool is_free = at == json::json_pointer("/data") ||
                                 at == json::json_pointer("/roles/0/state") ||
                                 at == json::json_pointer("/roles/1/layout") || key == "none";
            EXPECT_EQ(refusal(root) == "accepted", is_free) << at.to_string() << "/" << key;
            ++refused;
            node[key] = kept;
            drop(root, at / key, node[key]);
          } else if (node.is_array() && child.is_object()) {
            const std::size_t index = std::stoul(key);
            drop(root, at / index, node[index]);
          }
        }
      };
  json root = whole;
  drop(root, json::json_pointer(), root);
  EXPECT_GT(refused, 60);
}

TEST(Manifest, SurvivesRandomValuesEverywhere) {
  const json whole = to_json(small_manifest());
  const json flat = whole.flatten();
  std::vector<std::string> places;
  for (const auto& [place, value] : flat.items()) {
    places.push_back(place);
  }
  const std::vector<json> values{nullptr,
                                 true,
                                 -1,
                                 0,
                                 1,
                                 2,
                                 3,
                                 7,
                                 INT64_MAX,
                                 INT64_MIN,
                                 1e308,
                                 UINT64_MAX,
                                 "",
                                 "a",
                                 "../x",
                                 json::array(),
                                 json::object(),
                                 1ll << 62,
                                 0.5,
                                 "rank-00000.h5",
                                 json::array({1, 2}),
                                 json::array({-1}),
                                 json::array({1ll << 62, 4})};
  std::mt19937 random(3);
  int refused = 0;
  constexpr int trials = 4000;
  for (int trial = 0; trial < trials; ++trial) {
    json value = whole;
    for (int change = 0; change <= trial % 3; ++change) {
      const json::json_pointer place(places[random() % places.size()]);
      if (value.contains(place)) {
        value[place] = values[random() % values.size()];
      }
    }
    refused += refusal(value) != "accepted" ? 1 : 0;  // any other exception fails the test
  }
  EXPECT_GT(refused, trials / 2);
}

TEST(Manifest, CoverageCheckIsFastForManySlices) {
  using parallel::ShardSpec;
  Manifest manifest = small_manifest();
  manifest.files.push_back({"rank-00002.h5", 1 << 30, 2});
  const std::vector<std::int64_t> shape{200, 300};
  manifest.tensors["many"] = {ElementType::f32, shape};
  for (std::int64_t row = 0; row < 200; ++row) {
    for (std::int64_t column = 0; column < 300; column += 2) {
      manifest.slices.push_back({"many",
                                 "rank-00002.h5",
                                 fmt::format("many/{}", row * 300 + column),
                                 SliceExtent::whole_box(ShardSpec{shape, {row, column}, {1, 2}}),
                                 {0}});
    }
  }
  const json good = to_json(manifest);
  EXPECT_EQ(refusal(good), "accepted");
  manifest.slices.back().extent.box.offset[1] -= 1;
  EXPECT_NE(refusal(to_json(manifest)).find("overlap"), std::string::npos);
}

}  // namespace
}  // namespace athanor::checkpoint
