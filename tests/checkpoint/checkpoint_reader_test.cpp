#include "checkpoint/checkpoint_reader.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <hdf5.h>
#include <sys/mman.h>
#include <unistd.h>

#include <functional>
#include <limits>
#include <random>

#include "base/error.hpp"
#include "checkpoint/detail/hdf5_handle.hpp"
#include "checkpoint/io_thread.hpp"
#include "sample_checkpoint.hpp"

namespace athanor::checkpoint {
namespace {

namespace fs = std::filesystem;
using samples::Slices;

void flip_bit(const fs::path& path, std::int64_t byte, int bit = 3) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekg(byte);
  const int value = file.get();
  file.seekp(byte);
  file.put(static_cast<char>(value ^ (1 << bit)));
  if (!file) {
    throw std::runtime_error("cannot flip a bit of " + path.string());
  }
}

// Where the elements of a stored slice begin in its file.
std::int64_t slice_offset(const fs::path& folder, const StoredSlice& slice) {
  std::int64_t offset = 0;
  run_on_io_thread([&] {
    const auto file = detail::open_hdf5_file((folder / slice.file).string());
    const detail::Hdf5Handle data(H5Dopen2(file.id(), slice.dataset.c_str(), H5P_DEFAULT), H5Dclose, "open");
    offset = detail::data_offset(data);
  });
  return offset;
}

const StoredSlice& slice_of(const Manifest& manifest, const std::string& tensor) {
  return *std::ranges::find(manifest.slices, tensor, &StoredSlice::tensor);
}

// What a CheckpointError says; "" when there is none. Other exceptions fail the test.
std::string refusal(const std::function<void()>& action) {
  try {
    action();
  } catch (const base::CheckpointError& error) {
    return error.what();
  }
  return "";
}

std::string refusal_of_reading(const fs::path& folder) {
  return refusal([&] {
    Slices targets = samples::whole_slices();
    CheckpointReader(folder.string()).read(samples::views(targets));
  });
}

testing::AssertionResult says(const std::string& message, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) {
    if (message.find(part) == std::string::npos) {
      return testing::AssertionFailure() << "'" << part << "' is not in '" << message << "'";
    }
  }
  return testing::AssertionSuccess();
}

class Reader : public testing::Test {
 protected:
  // The sample by three ranks.
  Manifest write(int ranks = 3) { return samples::write_sample(folder(), ranks); }
  fs::path folder() const { return scratch_.path() / "step-00000100"; }

  samples::ScratchFolder scratch_;
};

class Reshard : public Reader, public testing::WithParamInterface<std::pair<int, int>> {};

TEST_P(Reshard, AnyNumberOfRanksReadsWhatAnyNumberWrote) {
  const auto [writers, readers] = GetParam();
  write(writers);
  const CheckpointReader reader(folder().string());
  for (int rank = 0; rank < readers; ++rank) {
    Slices targets = samples::slices_of_rank(rank, readers);
    reader.read(samples::views(targets));
    EXPECT_EQ(samples::count_wrong(targets), 0) << "rank " << rank;
  }
}

std::vector<std::pair<int, int>> layout_pairs() {
  std::vector<std::pair<int, int>> pairs;
  for (const int writers : {1, 2, 3, 4, 6}) {
    for (const int readers : {1, 2, 3, 5, 8}) {
      pairs.emplace_back(writers, readers);
    }
  }
  return pairs;
}
INSTANTIATE_TEST_SUITE_P(Pairs, Reshard, testing::ValuesIn(layout_pairs()));

TEST_F(Reader, GivesManifestAndWholeTensors) {
  write();
  const CheckpointReader reader(folder().string());
  EXPECT_EQ(reader.folder(), folder().string());
  EXPECT_EQ(reader.manifest().step, 100);
  EXPECT_EQ(reader.manifest().world_size, 3);
  Slices targets = samples::whole_slices();
  reader.read(samples::views(targets));
  EXPECT_EQ(samples::count_wrong(targets), 0);
  EXPECT_TRUE(reader.verify().empty());
  reader.read({});
}

TEST_F(Reader, RefusesTargetsThatAreNotInIt) {
  write();
  const CheckpointReader reader(folder().string());
  const auto refuse = [&](const std::string& name, ElementType type, std::vector<std::int64_t> shape) {
    Slices targets;
    targets.emplace_back(name, type, SliceExtent::whole_box(parallel::ShardSpec::whole(std::move(shape))));
    return refusal([&] { reader.read(samples::views(targets)); });
  };
  EXPECT_TRUE(says(refuse("teacher/parameters/other", ElementType::f32, {2}), {"teacher/parameters/other"}));
  EXPECT_TRUE(says(refuse("student/counts/tokens", ElementType::f32, {3}), {"i64 [3]", "f32 [3]"}));
  EXPECT_TRUE(says(refuse("student/counts/tokens", ElementType::i64, {4}), {"[3]", "[4]"}));
}

TEST_F(Reader, AbsentFolderAndFileAreMissingInput) {
  EXPECT_THROW(CheckpointReader(folder().string()), base::MissingInputError);
  samples::write_file(scratch_.path() / "file", "x");
  EXPECT_THROW(CheckpointReader((scratch_.path() / "file").string()), base::MissingInputError);
}

TEST_F(Reader, NeedsTheMarkerOfItsManifest) {
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

TEST_F(Reader, AnyChangedByteOfTheManifestIsSeen) {
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
TEST_F(Reader, ForgedManifestsAreErrorsOrHarmless) {
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

TEST_F(Reader, RefusesWhatIsNoManifest) {
  write();
  for (const std::string& text : {std::string(), std::string("{"), std::string("null"), std::string("[1]"),
                                  std::string("{}"), std::string(100'000, '['), std::string("\xff\xfe")}) {
    samples::write_manifest_text(folder(), text);
    EXPECT_TRUE(says(refusal_of_reading(folder()), {folder().string()})) << text.substr(0, 10);
  }
}

TEST_F(Reader, NewerFormatIsRefusedByNumber) {
  write();
  auto value = nlohmann::json::parse(samples::read_file(folder() / "manifest.json"));
  value["format_version"] = 2;
  value["slices"] = "something new";
  samples::write_manifest_text(folder(), value.dump());
  EXPECT_TRUE(says(refusal_of_reading(folder()), {"version 2", "up to 1"}));
}

TEST_F(Reader, TruncatedFilesAreNamedBeforeAnyRead) {
  const Manifest manifest = write();
  const fs::path file = folder() / "rank-00001.h5";
  const std::string bytes = samples::read_file(file);
  for (const std::size_t size : {bytes.size() - 1, std::size_t{512}, std::size_t{0}, bytes.size() + 1}) {
    fs::resize_file(file, size);
    EXPECT_TRUE(says(refusal([&] { CheckpointReader(folder().string()); }),
                     {"rank-00001.h5", std::to_string(size), std::to_string(bytes.size())}));
  }
}

TEST_F(Reader, MissingFileIsNamed) {
  write();
  fs::remove(folder() / "rank-00002.h5");
  EXPECT_TRUE(says(refusal([&] { CheckpointReader(folder().string()); }), {"rank-00002.h5", "No such file"}));
  fs::create_directory(folder() / "rank-00002.h5");
  EXPECT_TRUE(says(refusal([&] { CheckpointReader(folder().string()); }), {"rank-00002.h5"}));
}

TEST_F(Reader, FlippedBitIsNamedByTensorSliceAndFile) {
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

TEST_F(Reader, HoleIsAnError) {
  const Manifest manifest = write();
  const StoredSlice& slice = slice_of(manifest, "teacher/parameters/embedding.weight");
  std::string bytes = samples::read_file(folder() / slice.file);
  bytes.replace(static_cast<std::size_t>(slice_offset(folder(), slice)),
                static_cast<std::size_t>(slice.extent.count * 4),
                static_cast<std::size_t>(slice.extent.count * 4), '\0');
  samples::write_file(folder() / slice.file, bytes);
  EXPECT_TRUE(says(refusal_of_reading(folder()), {slice.tensor, slice.file, "hole"}));
}

TEST_F(Reader, ExchangedFilesAreRecognised) {
  // Four ranks: ranks 1 and 2 have files of equal size.
  write(4);
  fs::rename(folder() / "rank-00001.h5", folder() / "aside");
  fs::rename(folder() / "rank-00002.h5", folder() / "rank-00001.h5");
  fs::rename(folder() / "aside", folder() / "rank-00002.h5");
  const std::string message = refusal_of_reading(folder());
  EXPECT_TRUE(says(message, {"rank-00001.h5"}));
  EXPECT_TRUE(says(message, {"exchanged"}) || says(message, {"bytes"}));
}

TEST_F(Reader, FileOfAnotherStepRunOrRankIsRecognised) {
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
TEST_F(Reader, AnyChangedByteOfAShardIsAnErrorOrUnused) {
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

TEST_F(Reader, NonFiniteElementIsRefused) {
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

// Slices of several checksum blocks: only blocks that are used are read.
TEST_F(Reader, ReadsAndChecksBlockByBlock) {
  const std::int64_t rows = checksum_block_bytes / 4 / 1000 * 2;  // a little less than two blocks
  const std::vector<std::int64_t> shape{rows, 1000};
  Slices slices;
  slices.emplace_back("t/w", ElementType::f32, SliceExtent::whole_box(parallel::ShardSpec::whole(shape)));
  samples::fill(slices);
  const Manifest manifest = samples::write_checkpoint(folder(), {samples::views(slices)});
  ASSERT_EQ(manifest.slices.at(0).checksums.size(), 2u);
  const CheckpointReader reader(folder().string());
  const auto read = [&](std::int64_t dim, std::int64_t first, std::int64_t count) {
    Slices targets;
    targets.emplace_back("t/w", ElementType::f32,
                         SliceExtent::whole_box(parallel::ShardSpec::slice(shape, dim, first, count)));
    const std::string message = refusal([&] { reader.read(samples::views(targets)); });
    return message.empty() && samples::count_wrong(targets) > 0 ? "wrong values" : message;
  };
  EXPECT_EQ(read(0, 0, rows), "");
  EXPECT_EQ(read(0, 5, rows - 9), "");
  EXPECT_EQ(read(1, 3, 7), "");
  flip_bit(folder() / "rank-00000.h5", slice_offset(folder(), manifest.slices[0]) + 4000);
  EXPECT_EQ(read(0, rows - 100, 100), "");
  EXPECT_TRUE(says(read(0, 100, 1), {"bytes 0 to 16777216", "checksum"}));
  EXPECT_TRUE(says(read(1, 3, 1), {"checksum"}));
}

TEST_F(Reader, PartsOfAVerificationCoverEverything) {
  const Manifest manifest = write(5);
  for (const StoredSlice& slice : manifest.slices) {
    flip_bit(folder() / slice.file, slice_offset(folder(), slice));
  }
  const CheckpointReader reader(folder().string());
  EXPECT_EQ(reader.verify().size(), manifest.slices.size());
  for (const int parts : {2, 3, 40}) {
    std::size_t found = 0;
    for (int part = 0; part < parts; ++part) {
      found += reader.verify(part, parts).size();
    }
    EXPECT_EQ(found, manifest.slices.size()) << parts;
  }
}

TEST_F(Reader, VerifyComparesAttributesWithTheManifest) {
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

TEST_F(Reader, TypeOfADatasetIsChecked) {
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

TEST_F(Reader, MergeWritesWholeTensors) {
  write(3);
  const CheckpointReader reader(folder().string());
  const std::string path = (scratch_.path() / "merged.h5").string();
  merge_checkpoint(reader, path);
  run_on_io_thread([&] {
    const auto file = detail::open_hdf5_file(path);
    EXPECT_EQ(detail::read_integer_attribute(file.id(), "step"), 100);
    for (samples::OwnedSlice& owned : samples::whole_slices()) {
      const detail::Hdf5Handle data(H5Dopen2(file.id(), owned.slice.name.c_str(), H5P_DEFAULT), H5Dclose,
                                    "open");
      EXPECT_EQ(detail::read_text_attribute(data.id(), "dtype"), element_type_name(owned.slice.type));
      const detail::Hdf5Handle type = detail::hdf5_type(owned.slice.type);
      detail::hdf5_check(H5Dread(data.id(), type.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT, owned.slice.data),
                         "read");
      Slices one;
      one.push_back(std::move(owned));
      EXPECT_EQ(samples::count_wrong(one), 0) << one[0].slice.name;
    }
  });
  EXPECT_THROW(merge_checkpoint(reader, path), base::CannotCreateError);
  EXPECT_THROW(merge_checkpoint(reader, (scratch_.path() / "absent/merged.h5").string()),
               base::CannotCreateError);
}

TEST_F(Reader, FailedMergeLeavesNothing) {
  const Manifest manifest = write(3);
  const StoredSlice& slice = manifest.slices.back();
  flip_bit(folder() / slice.file, slice_offset(folder(), slice));
  const CheckpointReader reader(folder().string());
  EXPECT_NE(refusal([&] { merge_checkpoint(reader, (scratch_.path() / "merged.h5").string()); }), "");
  EXPECT_EQ(std::distance(fs::directory_iterator(scratch_.path()), fs::directory_iterator()), 1);
}

// Takes 2.2 GB of disk and some seconds: run with --gtest_also_run_disabled_tests.
TEST_F(Reader, DISABLED_TensorBeyondTwoGigabytes) {
  const std::int64_t rows = 270'000;
  const std::vector<std::int64_t> shape{rows, 1001};  // f64
  const auto bytes = static_cast<std::size_t>(rows * 1001 * 8);
  void* memory =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  static_cast<double*>(memory)[rows * 1001 - 1] = 42.0;
  const TensorSlice source{"t/w", ElementType::f64, SliceExtent::whole_box(parallel::ShardSpec::whole(shape)),
                           memory};
  samples::write_checkpoint(folder(), {{source}});
  ::munmap(memory, bytes);
  const CheckpointReader reader(folder().string());
  Slices last;
  last.emplace_back("t/w", ElementType::f64,
                    SliceExtent::whole_box(parallel::ShardSpec::slice(shape, 0, rows - 1, 1)));
  reader.read(samples::views(last));
  EXPECT_EQ(static_cast<double*>(last[0].slice.data)[1000], 42.0);
  EXPECT_TRUE(reader.verify().empty());
  flip_bit(folder() / "rank-00000.h5", slice_offset(folder(), reader.manifest().slices[0]) + 2'150'000'000);
  EXPECT_EQ(reader.verify().size(), 1u);
}

}  // namespace
}  // namespace athanor::checkpoint
