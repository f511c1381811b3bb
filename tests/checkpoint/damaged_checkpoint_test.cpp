// Whatever happens to the files of a checkpoint: an error that names it, never a crash or wrong values.
#include <gtest/gtest.h>

#include <filesystem>
#include <limits>
#include <random>

#include "reader_test.hpp"

namespace athanor::checkpoint {
namespace {

namespace fs = std::filesystem;
using samples::flip_bit;
using samples::refusal;
using samples::refusal_of_reading;
using samples::says;
using samples::slice_of;
using samples::slice_offset;
using samples::Slices;

using DamagedCheckpoint = samples::ReaderTest;

TEST_F(DamagedCheckpoint, NeedsTheMarkerOfItsManifest) {
  write();
  const std::string marker = samples::read_file(folder() / "COMPLETE");
  for (std::size_t i = 0; i < marker.size(); ++i) {
    flip_bit(folder() / "COMPLETE", static_cast<std::int64_t>(i), static_cast<int>(i % 8));
    EXPECT_TRUE(says(refusal_of_reading(folder()), {folder().string(), "COMPLETE"}));
    samples::write_file(folder() / "COMPLETE", marker);
  }
  for (const std::string& other :
       {std::string(), marker.substr(0, 20), marker + "x", std::string(1 << 20, 'x')}) {
    samples::write_file(folder() / "COMPLETE", other);
    EXPECT_TRUE(says(refusal_of_reading(folder()), {"COMPLETE"}));
  }
  fs::remove(folder() / "COMPLETE");
  EXPECT_TRUE(says(refusal_of_reading(folder()), {"COMPLETE is missing"}));
  fs::create_directory(folder() / "COMPLETE");
  EXPECT_TRUE(says(refusal_of_reading(folder()), {"COMPLETE"}));
}

TEST_F(DamagedCheckpoint, AnyChangedByteOfTheManifestIsSeen) {
  write();
  const std::string text = samples::read_file(folder() / "manifest.json");
  for (std::size_t i = 0; i < text.size(); i += 31) {
    std::string changed = text;
    changed[i] ^= static_cast<char>(1 << (i % 8));
    samples::write_file(folder() / "manifest.json", changed);
    ASSERT_TRUE(says(refusal_of_reading(folder()), {"COMPLETE", "manifest.json"})) << i;
  }
  samples::write_file(folder() / "manifest.json", text.substr(0, text.size() - 1));
  EXPECT_TRUE(says(refusal_of_reading(folder()), {"manifest.json"}));
  fs::remove(folder() / "manifest.json");
  EXPECT_TRUE(says(refusal_of_reading(folder()), {"manifest.json"}));
}

// Somebody who forges the marker too: no accident, but still no crash.
TEST_F(DamagedCheckpoint, ForgedManifestsAreErrorsOrHarmless) {
  write();
  const std::string text = nlohmann::json::parse(samples::read_file(folder() / "manifest.json")).dump();
  std::mt19937 random(4);
  const std::string alphabet = "0123456789-.eE\"[]{}:,/\\ntfau \xff";
  int refused = 0;
  constexpr int trials = 600;
  for (int trial = 0; trial < trials; ++trial) {
    std::string changed = text;
    for (int change = 0; change <= trial % 4; ++change) {
      const std::size_t at = random() % changed.size();
      switch (random() % 3) {
        case 0:
          changed[at] = alphabet[random() % alphabet.size()];
          break;
        case 1:
          changed.insert(at, 1, alphabet[random() % alphabet.size()]);
          break;
        default:
          changed.erase(at, 1 + random() % 8);
          break;
      }
    }
    samples::write_manifest_text(folder(), changed);
    refused += refusal_of_reading(folder()).empty() ? 0 : 1;
  }
  EXPECT_GT(refused, trials / 3);
}

TEST_F(DamagedCheckpoint, RefusesWhatIsNoManifest) {
  write();
  for (const std::string& text : {std::string(), std::string("{"), std::string("null"), std::string("[1]"),
                                  std::string("{}"), std::string(100'000, '['), std::string("\xff\xfe")}) {
    samples::write_manifest_text(folder(), text);
    EXPECT_TRUE(says(refusal_of_reading(folder()), {folder().string()})) << text.substr(0, 10);
  }
}

TEST_F(DamagedCheckpoint, NewerFormatIsRefusedByNumber) {
  write();
  auto value = nlohmann::json::parse(samples::read_file(folder() / "manifest.json"));
  value["format_version"] = 2;
  value["slices"] = "something new";
  samples::write_manifest_text(folder(), value.dump());
  EXPECT_TRUE(says(refusal_of_reading(folder()), {"version 2", "up to 1"}));
}

TEST_F(DamagedCheckpoint, TruncatedFilesAreNamedBeforeAnyRead) {
  const Manifest manifest = write();
  const fs::path file = folder() / "rank-00001.h5";
  const std::string bytes = samples::read_file(file);
  for (const std::size_t size : {bytes.size() - 1, std::size_t{512}, std::size_t{0}, bytes.size() + 1}) {
    fs::resize_file(file, size);
    EXPECT_TRUE(says(refusal([&] { CheckpointReader(folder().string()); }),
                     {"rank-00001.h5", std::to_string(size), std::to_string(bytes.size())}));
  }
}

TEST_F(DamagedCheckpoint, MissingFileIsNamed) {
  write();
  fs::remove(folder() / "rank-00002.h5");
  EXPECT_TRUE(says(refusal([&] { CheckpointReader(folder().string()); }), {"rank-00002.h5", "No such file"}));
  fs::create_directory(folder() / "rank-00002.h5");
  EXPECT_TRUE(says(refusal([&] { CheckpointReader(folder().string()); }), {"rank-00002.h5"}));
}

TEST_F(DamagedCheckpoint, FlippedBitIsNamedByTensorSliceAndFile) {
  const Manifest manifest = write();
  for (const StoredSlice& slice : manifest.slices) {
    const std::int64_t at = slice_offset(folder(), slice) + slice.extent.count - 1;
    flip_bit(folder() / slice.file, at);
    EXPECT_TRUE(says(refusal_of_reading(folder()), {slice.tensor, slice.dataset, slice.file, "checksum"}));
    const auto problems = CheckpointReader(folder().string()).verify();
    ASSERT_EQ(problems.size(), 1u);
    EXPECT_TRUE(says(problems[0], {slice.tensor, slice.dataset, slice.file, "checksum"}));
    flip_bit(folder() / slice.file, at);
  }
  EXPECT_EQ(refusal_of_reading(folder()), "");
}

TEST_F(DamagedCheckpoint, HoleIsAnError) {
  const Manifest manifest = write();
  const StoredSlice& slice = slice_of(manifest, "teacher/parameters/embedding.weight");
  std::string bytes = samples::read_file(folder() / slice.file);
  bytes.replace(static_cast<std::size_t>(slice_offset(folder(), slice)),
                static_cast<std::size_t>(slice.extent.count * 4),
                static_cast<std::size_t>(slice.extent.count * 4), '\0');
  samples::write_file(folder() / slice.file, bytes);
  EXPECT_TRUE(says(refusal_of_reading(folder()), {slice.tensor, slice.file, "hole"}));
}

TEST_F(DamagedCheckpoint, ExchangedFilesAreRecognised) {
  // Four ranks: ranks 1 and 2 have files of equal size.
  write(4);
  fs::rename(folder() / "rank-00001.h5", folder() / "aside");
  fs::rename(folder() / "rank-00002.h5", folder() / "rank-00001.h5");
  fs::rename(folder() / "aside", folder() / "rank-00002.h5");
  const std::string message = refusal_of_reading(folder());
  EXPECT_TRUE(says(message, {"rank-00001.h5"}));
  EXPECT_TRUE(says(message, {"exchanged"}) || says(message, {"bytes"}));
}

TEST_F(DamagedCheckpoint, FileOfAnotherStepRunOrRankIsRecognised) {
  write();
  const fs::path other = scratch_.path() / "other";
  const auto replace_from = [&](std::int64_t step, const std::string& run_id) {
    fs::remove_all(other);
    samples::write_sample(other, 3, step, run_id);
    fs::copy_file(other / "rank-00001.h5", folder() / "rank-00001.h5", fs::copy_options::overwrite_existing);
  };
  replace_from(200, "0123456789abcdef");
  EXPECT_TRUE(says(refusal_of_reading(folder()), {"rank-00001.h5", "step 200", "exchanged"}));
  replace_from(100, "fedcba9876543210");
  EXPECT_TRUE(says(refusal_of_reading(folder()), {"rank-00001.h5", "run fedcba9876543210", "exchanged"}));
  const auto problems = CheckpointReader(folder().string()).verify();
  ASSERT_EQ(problems.size(), 1u);
  EXPECT_TRUE(says(problems[0], {"rank-00001.h5", "exchanged"}));
  fs::copy_file(folder() / "rank-00000.h5", folder() / "rank-00001.h5", fs::copy_options::overwrite_existing);
  auto value = nlohmann::json::parse(samples::read_file(folder() / "manifest.json"));
  value["files"][1]["bytes"] = fs::file_size(folder() / "rank-00000.h5");
  samples::write_manifest_text(folder(), value.dump());
  EXPECT_TRUE(says(refusal_of_reading(folder()), {"rank-00001.h5", "rank 0", "exchanged"}));
}

// Bytes all over a file: an error that names the file, or an unused byte and the right values.
TEST_F(DamagedCheckpoint, AnyChangedByteOfAShardIsAnErrorOrUnused) {
  write(3);
  const fs::path file = folder() / "rank-00001.h5";
  const std::string bytes = samples::read_file(file);
  const CheckpointReader reader(folder().string());
  int refused = 0;
  for (std::size_t i = 0; i < bytes.size(); i += 17) {
    flip_bit(file, static_cast<std::int64_t>(i), static_cast<int>(i % 8));
    Slices targets = samples::slices_of_rank(1, 3);
    const std::string message = refusal([&] { reader.read(samples::views(targets)); });
    if (message.empty()) {
      ASSERT_EQ(samples::count_wrong(targets), 0) << "byte " << i;
    } else {
      ASSERT_TRUE(says(message, {"rank-00001.h5"}));
      ++refused;
    }
    flip_bit(file, static_cast<std::int64_t>(i), static_cast<int>(i % 8));
  }
  EXPECT_GT(refused, 100);
}

TEST_F(DamagedCheckpoint, NonFiniteElementIsRefused) {
  Slices slices;
  slices.emplace_back("t/w", ElementType::f32, SliceExtent::whole_box(parallel::ShardSpec::whole({40, 8})));
  samples::fill(slices);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(slices[0].memory.data() + 4 * 100, &nan, 4);
  samples::write_checkpoint(folder(), {samples::views(slices)});
  const CheckpointReader reader(folder().string());
  Slices targets;
  targets.emplace_back("t/w", ElementType::f32, SliceExtent::whole_box(parallel::ShardSpec::whole({40, 8})));
  EXPECT_TRUE(says(refusal([&] { reader.read(samples::views(targets)); }), {"t/w", "element 100", "finite"}));
  Slices columns;
  columns.emplace_back("t/w", ElementType::f32,
                       SliceExtent::whole_box(parallel::ShardSpec::slice({40, 8}, 1, 4, 2)));
  EXPECT_TRUE(says(refusal([&] { reader.read(samples::views(columns)); }), {"t/w", "element 100", "finite"}));
  Slices others;  // do not use the element
  others.emplace_back("t/w", ElementType::f32,
                      SliceExtent::whole_box(parallel::ShardSpec::slice({40, 8}, 1, 0, 2)));
  EXPECT_EQ(refusal([&] { reader.read(samples::views(others)); }), "");
  EXPECT_EQ(samples::count_wrong(others), 0);
  EXPECT_EQ(reader.verify().size(), 1u);
}

TEST_F(DamagedCheckpoint, VerifyComparesAttributesWithTheManifest) {
  write(1);
  auto value = nlohmann::json::parse(samples::read_file(folder() / "manifest.json"));
  for (auto& slice : value["slices"]) {
    if (slice["tensor"] == "teacher/parameters/router.weight") {  // [5, 11], now claimed to be [11, 5]
      slice["global_shape"] = slice["shape"] = {11, 5};
    }
  }
  value["tensors"]["teacher/parameters/router.weight"]["shape"] = {11, 5};
  samples::write_manifest_text(folder(), value.dump());
  const auto problems = CheckpointReader(folder().string()).verify();
  ASSERT_EQ(problems.size(), 1u);
  EXPECT_TRUE(says(problems[0], {"router.weight", "attributes"}));
}

TEST_F(DamagedCheckpoint, TypeOfADatasetIsChecked) {
  write(1);
  auto value = nlohmann::json::parse(samples::read_file(folder() / "manifest.json"));
  value["tensors"]["student/parameters/norm.weight"]["dtype"] = "bf16";  // stored as f16
  samples::write_manifest_text(folder(), value.dump());
  Slices targets;
  targets.emplace_back("student/parameters/norm.weight", ElementType::bf16,
                       SliceExtent::whole_box(parallel::ShardSpec::whole({9})));
  EXPECT_TRUE(says(refusal([&] { CheckpointReader(folder().string()).read(samples::views(targets)); }),
                   {"norm.weight", "bf16"}));
}

}  // namespace
}  // namespace athanor::checkpoint
