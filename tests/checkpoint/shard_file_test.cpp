#include "checkpoint/shard_file.hpp"

#include <gtest/gtest.h>
#include <hdf5.h>
#include <sys/resource.h>

#include <filesystem>
#include <limits>
#include <numeric>

#include "base/error.hpp"
#include "checkpoint/detail/hdf5_handle.hpp"
#include "checkpoint/detail/payload_file.hpp"
#include "checkpoint/io_thread.hpp"
#include "sample_checkpoint.hpp"

namespace athanor::checkpoint {
namespace {

namespace fs = std::filesystem;
using samples::Slices;

class ShardFile : public testing::Test {
 protected:
  // Reads a dataset by the HDF5 library alone, as another program would.
  static std::vector<std::byte> read_dataset(const fs::path& file, const std::string& name, ElementType type,
                                             std::size_t count) {
    std::vector<std::byte> bytes(count * static_cast<std::size_t>(element_bytes(type)));
    run_on_io_thread([&] {
      const detail::Hdf5Handle input = detail::open_hdf5_file(file.string());
      const detail::Hdf5Handle data(H5Dopen2(input.id(), name.c_str(), H5P_DEFAULT), H5Dclose, "open");
      const detail::Hdf5Handle space(H5Dget_space(data.id()), H5Sclose, "space");
      if (H5Sget_simple_extent_npoints(space.id()) != static_cast<hssize_t>(count)) {
        throw std::runtime_error("another number of elements");
      }
      const detail::Hdf5Handle memory = detail::hdf5_type(type);
      detail::hdf5_check(H5Dread(data.id(), memory.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT, bytes.data()),
                         "read");
    });
    return bytes;
  }

  std::string folder() const { return scratch_.path().string(); }

  samples::ScratchFolder scratch_;
};

TEST_F(ShardFile, HoldsOrdinaryDatasetsWithAttributes) {
  Slices slices = samples::slices_of_rank(1, 3);
  samples::fill(slices);
  const WrittenShard shard = write_shard(folder(), {"run0", 7, 1}, samples::views(slices));
  EXPECT_EQ(shard.file.name, "rank-00001.h5");
  EXPECT_EQ(shard.file.rank, 1);
  EXPECT_EQ(shard.file.bytes, static_cast<std::int64_t>(fs::file_size(scratch_.path() / "rank-00001.h5")));
  EXPECT_LE(shard.file.bytes, estimate_shard_bytes(samples::views(slices)));
  std::size_t stored = 0;
  for (const samples::OwnedSlice& owned : slices) {
    stored += owned.slice.extent.count > 0 ? 1 : 0;
  }
  ASSERT_EQ(shard.slices.size(), stored);
  ASSERT_LT(stored, slices.size()) << "the sample has an empty slice";
  for (const StoredSlice& stored_slice : shard.slices) {
    const auto owned = std::ranges::find_if(
        slices, [&](const auto& candidate) { return candidate.slice.name == stored_slice.tensor; });
    EXPECT_EQ(read_dataset(scratch_.path() / shard.file.name, stored_slice.dataset, owned->slice.type,
                           static_cast<std::size_t>(owned->slice.extent.count)),
              owned->memory)
        << stored_slice.dataset;
    EXPECT_EQ(stored_slice.dataset, stored_slice.tensor + "/0");
    ASSERT_EQ(stored_slice.checksums.size(), 1u);
    EXPECT_EQ(stored_slice.checksums[0], base::hash_bytes(owned->memory.data(), owned->memory.size()));
  }
}

TEST_F(ShardFile, AttributesSayWhatItIs) {
  Slices slices = samples::slices_of_rank(1, 3);
  samples::fill(slices);
  const WrittenShard shard = write_shard(folder(), {"run0", 7, 1}, samples::views(slices));
  run_on_io_thread([&] {
    const auto file = detail::open_hdf5_file(folder() + "/rank-00001.h5");
    EXPECT_EQ(detail::read_text_attribute(file.id(), "run_id"), "run0");
    EXPECT_EQ(detail::read_text_attribute(file.id(), "format"), format_name);
    EXPECT_EQ(detail::read_integer_attribute(file.id(), "format_version"), format_version);
    EXPECT_EQ(detail::read_integer_attribute(file.id(), "step"), 7);
    EXPECT_EQ(detail::read_integer_attribute(file.id(), "rank"), 1);
    for (const StoredSlice& slice : shard.slices) {
      const detail::Hdf5Handle data(H5Dopen2(file.id(), slice.dataset.c_str(), H5P_DEFAULT), H5Dclose,
                                    "open");
      EXPECT_EQ(detail::read_list_attribute(data.id(), "global_shape"), slice.extent.box.global_shape);
      EXPECT_EQ(detail::read_list_attribute(data.id(), "offset"), slice.extent.box.offset);
      EXPECT_EQ(detail::read_list_attribute(data.id(), "shape"), slice.extent.box.local_shape);
      EXPECT_EQ(detail::read_integer_attribute(data.id(), "first"), slice.extent.first);
      EXPECT_EQ(detail::read_integer_attribute(data.id(), "count"), slice.extent.count);
      EXPECT_EQ(detail::read_text_attribute(data.id(), "dtype"),
                element_type_name(samples::tensors().at(slice.tensor).type));
    }
    EXPECT_THROW(detail::read_text_attribute(file.id(), "step"), detail::Hdf5Failure);
    EXPECT_THROW(detail::read_integer_attribute(file.id(), "run_id"), detail::Hdf5Failure);
    EXPECT_THROW(detail::read_integer_attribute(file.id(), "absent"), detail::Hdf5Failure);
  });
}

TEST_F(ShardFile, NumbersPartsOfOneTensorAndAlignsLargeOnes) {
  Slices slices;
  const std::vector<std::int64_t> shape{3, 40'000};
  for (std::int64_t row = 0; row < 3; ++row) {
    slices.emplace_back("t/w", ElementType::f32,
                        SliceExtent::whole_box(parallel::ShardSpec::slice(shape, 0, row, 1)));
  }
  samples::fill(slices);
  const WrittenShard shard = write_shard(folder(), {"r", 0, 0}, samples::views(slices));
  ASSERT_EQ(shard.slices.size(), 3u);
  run_on_io_thread([&] {
    const auto file = detail::open_hdf5_file(folder() + "/rank-00000.h5");
    for (int part = 0; part < 3; ++part) {
      const std::string name = "t/w/" + std::to_string(part);
      EXPECT_EQ(shard.slices[static_cast<std::size_t>(part)].dataset, name);
      const detail::Hdf5Handle data(H5Dopen2(file.id(), name.c_str(), H5P_DEFAULT), H5Dclose, "open");
      EXPECT_EQ(detail::data_offset(data) % 4096, 0);
    }
  });
}

TEST_F(ShardFile, EstimateCoversManySmallSlices) {
  Slices slices;
  for (int i = 0; i < 600; ++i) {
    slices.emplace_back(fmt::format("teacher/exp_avg_sq/layers.{}.attention.q_norm.weight", i),
                        ElementType::f32, SliceExtent::whole_box(parallel::ShardSpec::whole({1, 2, 3, 4})));
  }
  samples::fill(slices);
  const WrittenShard shard = write_shard(folder(), {"r", 0, 0}, samples::views(slices));
  EXPECT_LE(shard.file.bytes, estimate_shard_bytes(samples::views(slices)));
}

TEST_F(ShardFile, BlocksHaveChecksumsOfTheirOwn) {
  Slices slices;
  const std::int64_t count = checksum_block_bytes / 4 * 2 + 5;
  slices.emplace_back("t/w", ElementType::f32, SliceExtent::whole_box(parallel::ShardSpec::whole({count})));
  samples::fill(slices);
  const WrittenShard shard = write_shard(folder(), {"r", 0, 0}, samples::views(slices));
  const std::byte* data = slices[0].memory.data();
  const auto block = static_cast<std::size_t>(checksum_block_bytes);
  EXPECT_EQ(shard.slices.at(0).checksums,
            (std::vector<std::uint64_t>{base::hash_bytes(data, block), base::hash_bytes(data + block, block),
                                        base::hash_bytes(data + 2 * block, 20)}));
}

TEST_F(ShardFile, WithoutSlicesIsAFileNevertheless) {
  const WrittenShard shard = write_shard(folder(), {"r", 0, 4}, {});
  EXPECT_TRUE(shard.slices.empty());
  EXPECT_TRUE(fs::exists(scratch_.path() / "rank-00004.h5"));
}

TEST_F(ShardFile, NeverOverwrites) {
  samples::write_file(scratch_.path() / "rank-00000.h5", "precious");
  EXPECT_THROW(write_shard(folder(), {"r", 0, 0}, {}), base::IoError);
  EXPECT_EQ(samples::read_file(scratch_.path() / "rank-00000.h5"), "precious");
}

TEST_F(ShardFile, AbsentFolderIsAnIoError) {
  EXPECT_THROW(write_shard(folder() + "/absent", {"r", 0, 0}, {}), base::IoError);
}

// The file size limit stands for a full disk: with it, reserving and writing fail in the same places.
TEST_F(ShardFile, WriteErrorLeavesNoFile) {
  Slices slices;
  slices.emplace_back("t/w", ElementType::f32, SliceExtent::whole_box(parallel::ShardSpec::whole({200'000})));
  samples::fill(slices);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  for (const rlim_t limit : {rlim_t{0}, rlim_t{1000}, rlim_t{100'000}, rlim_t{700'000}}) {
    rlimit small = before;
    small.rlim_cur = limit;
    std::string message;
    setrlimit(RLIMIT_FSIZE, &small);
    try {
      write_shard(folder(), {"r", 0, 0}, samples::views(slices));
    } catch (const base::IoError& error) {
      message = error.what();
    }
    setrlimit(RLIMIT_FSIZE, &before);
    EXPECT_NE(message.find("rank-00000.h5"), std::string::npos) << limit << ": " << message;
    EXPECT_TRUE(fs::is_empty(scratch_.path())) << limit;
  }
  EXPECT_EQ(write_shard(folder(), {"r", 0, 0}, samples::views(slices)).slices.size(), 1u) << "afterwards";
}

TEST_F(ShardFile, TooLargeForTheDiskIsRefusedBeforehand) {
  float element = 0;
  const TensorSlice huge{"t/w", ElementType::f32,
                         SliceExtent::whole_box(parallel::ShardSpec::whole({std::int64_t{1} << 55})),
                         &element};
  try {
    write_shard(folder(), {"r", 0, 0}, {huge});
    ADD_FAILURE() << "was written";
  } catch (const base::IoError& error) {
    EXPECT_NE(std::string(error.what()).find("are needed"), std::string::npos) << error.what();
  }
  EXPECT_TRUE(fs::is_empty(scratch_.path()));
}

class Index : public ShardFile, public testing::WithParamInterface<int> {};

TEST_P(Index, ShowsWholeTensors) {
  const fs::path first = scratch_.path() / "first";
  samples::write_sample(first, GetParam());
  const fs::path moved = scratch_.path() / "moved";
  fs::rename(first, moved);
  for (const auto& [name, tensor] : samples::tensors()) {
    Slices whole;
    whole.emplace_back(name, tensor.type, SliceExtent::whole_box(parallel::ShardSpec::whole(tensor.shape)));
    whole[0].memory = read_dataset(moved / "index.h5", name, tensor.type,
                                   static_cast<std::size_t>(whole[0].slice.extent.count));
    whole[0].slice.data = whole[0].memory.data();
    EXPECT_EQ(samples::count_wrong(whole), 0) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, Index, testing::Values(1, 2, 3, 5));

TEST(FindNonFinite, FindsTheFirstOfEachKind) {
  const auto check = [](ElementType type, auto one, auto bad) {
    std::vector<decltype(one)> values(1000, one);
    EXPECT_EQ(detail::find_non_finite(type, values.data(), 1000), -1);
    for (const std::size_t at : {std::size_t{0}, std::size_t{255}, std::size_t{256}, std::size_t{999}}) {
      values[at] = bad;
      values[999] = bad;
      EXPECT_EQ(detail::find_non_finite(type, values.data(), 1000), static_cast<std::int64_t>(at));
      values[at] = one;
      values[999] = one;
    }
    EXPECT_EQ(detail::find_non_finite(type, values.data(), 0), -1);
  };
  const float infinity = std::numeric_limits<float>::infinity();
  check(ElementType::f32, std::numeric_limits<float>::max(), -infinity);
  check(ElementType::f32, std::numeric_limits<float>::denorm_min(), std::numeric_limits<float>::quiet_NaN());
  check(ElementType::f64, -std::numeric_limits<double>::max(), std::numeric_limits<double>::quiet_NaN());
  check(ElementType::bf16, std::uint16_t{0xff7f}, std::uint16_t{0xff80});
  check(ElementType::f16, std::uint16_t{0x7bff}, std::uint16_t{0x7c01});
  std::vector<std::int64_t> integers(300, -1);
  EXPECT_EQ(detail::find_non_finite(ElementType::i64, integers.data(), 300), -1);
}

TEST(IoThread, RunsTasksInOrderAndPassesErrorsOn) {
  std::vector<int> order;
  auto first = post_to_io_thread([&] { order.push_back(1); });
  auto failing = post_to_io_thread([] { throw base::IoError("a reason"); });
  run_on_io_thread([&] { run_on_io_thread([&] { order.push_back(2); }); });
  EXPECT_EQ(order, (std::vector<int>{1, 2}));
  EXPECT_THROW(failing.get(), base::IoError);
  EXPECT_THROW(run_on_io_thread([] { throw base::IoError("a reason"); }), base::IoError);
}

}  // namespace
}  // namespace athanor::checkpoint
