#include "checkpoint/checkpoint_reader.hpp"

#include <gtest/gtest.h>
#include <hdf5.h>
#include <sys/mman.h>

#include <utility>

#include "base/error.hpp"
#include "checkpoint/detail/hdf5_handle.hpp"
#include "checkpoint/io_thread.hpp"
#include "reader_test.hpp"

namespace athanor::checkpoint {
namespace {

namespace fs = std::filesystem;
using samples::Slices;
using Reader = samples::ReaderTest;
using samples::flip_bit;
using samples::refusal;
using samples::says;
using samples::slice_offset;

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
