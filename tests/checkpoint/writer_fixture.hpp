// What the tests of saving share: a rank's state, its expected contents, a folder of the test's own.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "base/fault_point.hpp"
#include "checkpoint/checkpoint_reader.hpp"
#include "checkpoint/checkpoint_writer.hpp"
#include "parallel/collectives/collectives.hpp"
#include "support/mpi_test.hpp"

namespace athanor::tests {

inline constexpr const char* matrix_name = "teacher/weight/layers.0.w";
inline constexpr const char* counts_name = "teacher/counts/experts";
inline constexpr std::int64_t columns = 5;

inline float matrix_value(std::int64_t step, std::int64_t index) {
  return static_cast<float>(step * 1000 + index);
}

// What one of `ranks` ranks holds: rows of a matrix and, on the first rank, a list of counts.
class RankState {
 public:
  RankState(int rank, int ranks, std::int64_t rows_each = 3)
      : rank_(rank), ranks_(ranks), rows_each_(rows_each) {
    matrix_.resize(static_cast<std::size_t>(rows() * columns));
    counts_.resize(4);
  }

  std::int64_t total_rows() const { return ranks_ * rows_each_; }
  std::int64_t rows() const { return rows_each_; }

  void fill(std::int64_t step) {
    for (std::size_t i = 0; i < matrix_.size(); ++i) {
      matrix_[i] = matrix_value(step, rank_ * rows_each_ * columns + static_cast<std::int64_t>(i));
    }
    for (std::size_t i = 0; i < counts_.size(); ++i) {
      counts_[i] = step + static_cast<std::int64_t>(i);
    }
  }

  std::vector<checkpoint::TensorSlice> slices() {
    const auto box = parallel::ShardSpec::slice({total_rows(), columns}, 0, rank_ * rows_each_, rows_each_);
    std::vector<checkpoint::TensorSlice> all = {
        {matrix_name, checkpoint::ElementType::f32, checkpoint::SliceExtent::whole_box(box), matrix_.data()}};
    if (rank_ == 0) {
      all.push_back({counts_name, checkpoint::ElementType::i64,
                     checkpoint::SliceExtent::whole_box(parallel::ShardSpec::whole({4})), counts_.data()});
    }
    return all;
  }

 private:
  int rank_;
  int ranks_;
  std::int64_t rows_each_;
  std::vector<float> matrix_;
  std::vector<std::int64_t> counts_;
};

inline void expect_stored(const std::string& path, std::int64_t step, std::int64_t total_rows) {
  const checkpoint::CheckpointReader reader(path);
  EXPECT_EQ(reader.manifest().step, step);
  std::vector<float> matrix(static_cast<std::size_t>(total_rows * columns));
  std::vector<std::int64_t> counts(4);
  reader.read(
      {{matrix_name, checkpoint::ElementType::f32,
        checkpoint::SliceExtent::whole_box(parallel::ShardSpec::whole({total_rows, columns})), matrix.data()},
       {counts_name, checkpoint::ElementType::i64,
        checkpoint::SliceExtent::whole_box(parallel::ShardSpec::whole({4})), counts.data()}});
  for (std::size_t i = 0; i < matrix.size(); ++i) {
    ASSERT_EQ(matrix[i], matrix_value(step, static_cast<std::int64_t>(i))) << i;
  }
  EXPECT_THAT(counts, testing::ElementsAre(step, step + 1, step + 2, step + 3));
}

class CheckpointWriterTest : public testing::TestWithParam<checkpoint::SaveMode> {
 protected:
  void SetUp() override {
    if (world().rank() == 0) {
      std::string pattern = (std::filesystem::temp_directory_path() / "writer_XXXXXX").string();
      ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
      root_ = pattern;
    }
    root_ = parallel::broadcast_string(root_.string(), 0, world());
    options_.checkpoints_dir = (root_ / "run" / "checkpoints").string();
    options_.run_id = "0123456789abcdef";
    options_.retention.keep = 100;
  }
  void TearDown() override {
    base::set_faults("");
    world().barrier();
    if (world().rank() == 0) {
      std::filesystem::remove_all(root_);
    }
  }

  checkpoint::WriterOptions with_mode(checkpoint::SaveMode mode) const {
    checkpoint::WriterOptions options = options_;
    options.mode = mode;
    return options;
  }
  static checkpoint::SaveRequest request(std::int64_t step, std::vector<checkpoint::TensorSlice> slices) {
    checkpoint::SaveRequest result;
    result.step = step;
    result.slices = std::move(slices);
    if (world().rank() == 0) {
      result.role =
          checkpoint::StoredRole{"teacher", "teacher", {{"ranks", world().size()}}, {{"step", step}}};
      result.head.config = "[run]\nseed=1\n";
      result.head.program = "athanor test";
    }
    return result;
  }
  // Saves on all ranks and waits for the verdict.
  static checkpoint::SaveVerdict save(checkpoint::CheckpointWriter& writer, RankState& state,
                                      std::int64_t step) {
    state.fill(step);
    writer.save(request(step, state.slices()));
    const auto verdict = writer.finish();
    EXPECT_TRUE(verdict.has_value());
    return verdict.value_or(checkpoint::SaveVerdict{});
  }
  std::vector<std::string> names_in_folder() const {
    std::vector<std::string> names;
    for (const auto& item : std::filesystem::directory_iterator(options_.checkpoints_dir)) {
      names.push_back(item.path().filename().string());
    }
    std::ranges::sort(names);
    return names;
  }
  // The same on all ranks.
  static void expect_agreed(const checkpoint::SaveVerdict& verdict) {
    const std::string text =
        fmt::format("{} {} {} {}", verdict.step, verdict.published, verdict.path, verdict.reason);
    EXPECT_THAT(parallel::all_gather_strings(text, world()), testing::Each(text));
  }

  std::filesystem::path root_;
  checkpoint::WriterOptions options_;
};

}  // namespace athanor::tests
