// What is on disk: status and reasons, finding the newest whole one, publishing, retention arithmetic,
// removal.
#include "checkpoint/catalog.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "base/fault_point.hpp"
#include "checkpoint/detail/complete_marker.hpp"
#include "checkpoint/io_thread.hpp"
#include "checkpoint/shard_file.hpp"

namespace athanor::checkpoint {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::ThrowsMessage;
using testing::UnorderedElementsAre;

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_file(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

class CatalogTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "catalog_XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
    run_ = root_ / "run";
    dir_ = run_ / "checkpoints";
    fs::create_directories(dir_);
  }
  void TearDown() override {
    base::set_faults("");
    fs::remove_all(root_);
  }

  // Just what makes a folder whole for the catalog; tensors are the reader's business.
  fs::path make_whole(std::int64_t step) { return make_whole_at(dir_ / step_folder_name(step), step); }
  static fs::path make_whole_at(const fs::path& folder, std::int64_t step) {
    fs::create_directories(folder);
    const std::string manifest = "{\"step\":" + std::to_string(step) + "}\n";
    write_file(folder / "manifest.json", manifest);
    write_file(folder / "COMPLETE", detail::complete_marker_text(manifest));
    return folder;
  }

  fs::path root_;
  fs::path run_;
  fs::path dir_;
};

TEST_F(CatalogTest, NamesFoldersBySteps) {
  EXPECT_EQ(step_folder_name(100), "step-00000100");
  EXPECT_EQ(step_folder_name(1234567890123), "step-1234567890123");
  EXPECT_EQ(unfinished_folder_name(7, "ab-1"), ".tmp-step-00000007-ab-1");
}

TEST_F(CatalogTest, ListsNewestFirstWithReasons) {
  make_whole(100);
  make_whole(300);
  fs::create_directories(dir_ / "step-00000200");
  fs::remove(make_whole(400) / "manifest.json");
  write_file(make_whole(500) / "manifest.json", "{\"step\":501}\n");
  write_file(make_whole(600) / "COMPLETE", "");
  fs::rename(make_whole(699), dir_ / step_folder_name(700));
  mark_bad(make_whole(800).string(), "tensor w: checksum");
  fs::create_directories(dir_ / "step-0900");  // not our spelling
  fs::create_directories(dir_ / ".tmp-step-00000950-x");
  write_file(dir_ / "step-00000970", "a file");

  const auto entries = list_checkpoints(dir_.string());
  std::vector<std::int64_t> steps;
  std::map<std::int64_t, CatalogEntry> by_step;
  for (const CatalogEntry& entry : entries) {
    steps.push_back(entry.step);
    by_step[entry.step] = entry;
    EXPECT_EQ(entry.path, (dir_ / step_folder_name(entry.step)).string());
  }
  EXPECT_THAT(steps, ElementsAre(800, 700, 600, 500, 400, 300, 200, 100));
  EXPECT_EQ(by_step[100].status, CheckpointStatus::whole);
  EXPECT_EQ(by_step[300].status, CheckpointStatus::whole);
  EXPECT_EQ(by_step[300].reason, "");
  for (const std::int64_t step : {200, 400, 500, 600, 700}) {
    EXPECT_EQ(by_step[step].status, CheckpointStatus::incomplete) << step;
  }
  EXPECT_THAT(by_step[200].reason, HasSubstr("not finished"));
  EXPECT_THAT(by_step[400].reason, HasSubstr("no manifest.json"));
  EXPECT_THAT(by_step[500].reason, HasSubstr("does not fit"));
  EXPECT_THAT(by_step[600].reason, HasSubstr("COMPLETE"));
  EXPECT_THAT(by_step[700].reason, HasSubstr("another step"));
  EXPECT_EQ(by_step[800].status, CheckpointStatus::bad);
  EXPECT_THAT(by_step[800].reason, HasSubstr("tensor w: checksum"));
  EXPECT_THAT(list_checkpoints((root_ / "none").string()), IsEmpty());
}

TEST_F(CatalogTest, ResolvesARunAFolderOfCheckpointsAndACheckpoint) {
  make_whole(100);
  const std::string newest = make_whole(300).string();
  fs::create_directories(dir_ / "step-00000400");
  EXPECT_EQ(resolve_checkpoint(run_.string()), newest);
  EXPECT_EQ(resolve_checkpoint(dir_.string()), newest);
  EXPECT_EQ(resolve_checkpoint(newest), newest);
  const std::string elsewhere = make_whole_at(root_ / "best", 300).string();
  EXPECT_EQ(resolve_checkpoint(elsewhere), elsewhere);
}

TEST_F(CatalogTest, TheHintIsNeverNeededNorTrusted) {
  const std::string newest = make_whole(300).string();
  make_whole(100);
  const fs::path outside = make_whole_at(root_ / "evil" / "step-00000900", 900);
  EXPECT_EQ(resolve_checkpoint(run_.string()), newest);  // missing
  for (const std::string& hint : {std::string("step-00000100\n"), std::string("step-00000700\n"),
                                  outside.string(), std::string("../../evil/step-00000900"), std::string()}) {
    write_file(dir_ / "latest", hint);
    EXPECT_EQ(resolve_checkpoint(run_.string()), newest) << hint;
    EXPECT_THROW(resolve_checkpoint((dir_ / "latest").string()), base::MissingInputError);  // a file
  }
  fs::remove(dir_ / "latest");
  fs::create_symlink(outside, dir_ / "latest");
  EXPECT_EQ(resolve_checkpoint(run_.string()), newest);
  EXPECT_THAT([&] { resolve_checkpoint((dir_ / "latest").string()); },
              ThrowsMessage<base::CheckpointError>(HasSubstr("leads out of")));
}

TEST_F(CatalogTest, LinksThatLeadOutOfTheRunAreNotFollowed) {
  const fs::path outside = make_whole_at(root_ / "evil" / "step-00000900", 900);
  fs::create_directory_symlink(outside, dir_ / "step-00000900");
  fs::create_directory_symlink(dir_ / "gone", dir_ / "step-00000800");
  make_whole_at(run_ / "kept" / "step-00000500", 500);
  fs::create_directory_symlink("../kept/step-00000500", dir_ / "step-00000500");  // stays inside: followed
  const auto entries = list_checkpoints(dir_.string());
  ASSERT_EQ(entries.size(), 3U);
  EXPECT_EQ(entries[0].status, CheckpointStatus::incomplete);
  EXPECT_THAT(entries[0].reason, HasSubstr("leads out of"));
  EXPECT_THAT(entries[1].reason, HasSubstr("link to nothing"));
  EXPECT_EQ(entries[2].status, CheckpointStatus::whole);
  EXPECT_EQ(resolve_checkpoint(run_.string()), entries[2].path);
  EXPECT_THROW(resolve_checkpoint(entries[0].path), base::CheckpointError);

  const fs::path other_run = root_ / "other";
  fs::create_directories(other_run);
  fs::create_directory_symlink(root_ / "evil", other_run / "checkpoints");
  EXPECT_THAT([&] { resolve_checkpoint(other_run.string()); },
              ThrowsMessage<base::CheckpointError>(HasSubstr("leads out of")));
}

TEST_F(CatalogTest, SaysWhyNothingCanBeResolved) {
  EXPECT_THAT([&] { resolve_checkpoint((root_ / "none").string()); },
              ThrowsMessage<base::MissingInputError>(HasSubstr("does not exist")));
  write_file(root_ / "file", "x");
  EXPECT_THAT([&] { resolve_checkpoint((root_ / "file").string()); },
              ThrowsMessage<base::MissingInputError>(HasSubstr("is a file")));
  EXPECT_THAT([&] { resolve_checkpoint(run_.string()); },
              ThrowsMessage<base::MissingInputError>(HasSubstr("has no checkpoint")));
  fs::create_directories(dir_ / "step-00000100");
  mark_bad(make_whole(200).string(), "a bit flipped");
  EXPECT_THAT(
      [&] { resolve_checkpoint(run_.string()); },
      ThrowsMessage<base::CheckpointError>(AllOf(HasSubstr("step-00000100: no COMPLETE"),
                                                 HasSubstr("step-00000200: marked bad: a bit flipped"))));
  EXPECT_THAT([&] { resolve_checkpoint((dir_ / "step-00000200").string()); },
              ThrowsMessage<base::CheckpointError>(HasSubstr("a bit flipped")));
  EXPECT_THAT([&] { resolve_checkpoint((dir_ / "step-00000100/").string()); },
              ThrowsMessage<base::CheckpointError>(HasSubstr("not finished")));
  const fs::path unfinished = make_whole_at(dir_ / ".tmp-step-00000300-x", 300);
  EXPECT_THAT([&] { resolve_checkpoint(unfinished.string()); },
              ThrowsMessage<base::CheckpointError>(HasSubstr("unfinished")));
}

TEST_F(CatalogTest, MarkingAMissingFolderIsAWarningOnly) {
  EXPECT_NO_THROW(mark_bad((dir_ / "step-00000100").string(), "x"));
}

// Entries of the given whole steps, newest first or not.
std::vector<CatalogEntry> whole_entries(const std::vector<std::int64_t>& steps) {
  std::vector<CatalogEntry> entries;
  for (const std::int64_t step : steps) {
    entries.push_back({"d/" + step_folder_name(step), step, CheckpointStatus::whole, ""});
  }
  return entries;
}

std::vector<std::int64_t> removed_steps(const std::vector<CatalogEntry>& entries,
                                        const RetentionPolicy& policy,
                                        const std::vector<std::int64_t>& verified = {}) {
  std::vector<std::string> paths;
  for (const std::int64_t step : verified) {
    paths.push_back("d/" + step_folder_name(step));
  }
  std::vector<std::int64_t> steps;
  for (const CatalogEntry& entry : choose_removals(entries, policy, paths)) {
    steps.push_back(entry.step);
  }
  return steps;
}

TEST(Retention, KeepsTheNewestAndRemovesTheOldestFirst) {
  const auto entries = whole_entries({300, 500, 100, 400, 200});
  EXPECT_THAT(removed_steps(entries, {3, {}}), ElementsAre(100, 200));
  EXPECT_THAT(removed_steps(entries, {1, {}}), ElementsAre(100, 200, 300, 400));
  EXPECT_THAT(removed_steps(entries, {5, {}}), IsEmpty());
  EXPECT_THAT(removed_steps({}, {1, {}}), IsEmpty());
  EXPECT_THROW(removed_steps(entries, {0, {}}), base::InternalError);
}

TEST(Retention, PinnedStepsStayBesideTheNewest) {
  const auto entries = whole_entries({100, 200, 300, 400, 500});
  EXPECT_THAT(removed_steps(entries, {2, {100, 300, 999}}), ElementsAre(200));
  EXPECT_THAT(removed_steps(entries, {2, {500}}), ElementsAre(100, 200, 300));
}

TEST(Retention, TheNewestVerifiedOneStays) {
  const auto entries = whole_entries({100, 200, 300, 400, 500});
  EXPECT_THAT(removed_steps(entries, {1, {}}, {100, 200}), ElementsAre(100, 300, 400));
  EXPECT_THAT(removed_steps(entries, {2, {}}, {500, 100}), ElementsAre(100, 200, 300));
  EXPECT_THAT(removed_steps(entries, {1, {300}}, {700, 100}), ElementsAre(200, 400));
}

TEST(Retention, WhatIsNotWholeNeitherCountsNorGoes) {
  auto entries = whole_entries({100, 200, 300, 400});
  entries[3].status = CheckpointStatus::bad;
  entries[2].status = CheckpointStatus::incomplete;
  EXPECT_THAT(removed_steps(entries, {1, {}}), ElementsAre(100));
  EXPECT_THAT(removed_steps(entries, {2, {}}), IsEmpty());
}

TEST_F(CatalogTest, RemovalLeavesTheOthersAndNoTrash) {
  make_whole(100);
  make_whole(200);
  remove_checkpoint((dir_ / "step-00000100").string());
  EXPECT_EQ(list_checkpoints(dir_.string()).size(), 1U);
  EXPECT_EQ(std::distance(fs::directory_iterator(dir_), fs::directory_iterator()), 1);
  EXPECT_THROW(remove_checkpoint((dir_ / "step-00000100").string()), base::IoError);
}

TEST_F(CatalogTest, AnInterruptedRemovalLeavesTrashThatTheNextJobClears) {
  const fs::path kept = make_whole(200);
  base::set_faults("checkpoint.during_rotation:0:1:throw,checkpoint.during_rotation:0:2:throw");
  EXPECT_THROW(remove_checkpoint(make_whole(100).string()), base::IoError);
  EXPECT_THROW(remove_checkpoint(make_whole(100).string()), base::IoError);  // beside the first one's trash
  EXPECT_EQ(list_checkpoints(dir_.string()).size(), 1U);
  fs::create_directories(dir_ / ".tmp-step-00000300-x");
  write_file(dir_ / ".tmp-latest", "");
  write_file(dir_ / "latest", "step-00000200\n");
  EXPECT_THAT(remove_leftovers(dir_.string()),
              UnorderedElementsAre(".trash-step-00000100", ".trash-step-00000100-1", ".tmp-step-00000300-x",
                                   ".tmp-latest"));
  EXPECT_THAT(remove_leftovers(dir_.string()), IsEmpty());
  EXPECT_TRUE(fs::exists(kept));
  EXPECT_TRUE(fs::exists(dir_ / "latest"));
  EXPECT_THAT(remove_leftovers((root_ / "none").string()), IsEmpty());
}

// A real unfinished save of one rank with one small tensor.
class PublishTest : public CatalogTest {
 protected:
  PublishOptions write_unfinished(std::int64_t step) {
    PublishOptions options;
    options.checkpoints_dir = dir_.string();
    options.unfinished = (dir_ / unfinished_folder_name(step, "t")).string();
    fs::create_directories(options.unfinished);
    manifest_ = Manifest{};
    manifest_.run_id = "00000000000000aa";
    manifest_.step = step;
    const TensorSlice slice{"teacher/weight/w", ElementType::f32,
                            SliceExtent::whole_box(parallel::ShardSpec::whole({2, 3})), values_.data()};
    run_on_io_thread([&] {
      WrittenShard shard = write_shard(options.unfinished, {manifest_.run_id, step, 0}, {slice});
      manifest_.files = {shard.file};
      manifest_.slices = shard.slices;
    });
    manifest_.tensors["teacher/weight/w"] = {ElementType::f32, {2, 3}};
    return options;
  }
  std::string publish(const PublishOptions& options) {
    std::string path;
    run_on_io_thread([&] { path = publish_checkpoint(options, manifest_); });
    return path;
  }

  std::vector<float> values_ = {1, 2, 3, 4, 5, 6};
  Manifest manifest_;
};

TEST_F(PublishTest, MakesAWholeCheckpointWithExtraFilesAndAHint) {
  PublishOptions options = write_unfinished(100);
  write_file(root_ / "tok", "tokenizer bytes");
  options.extra_files = {{"tokenizer.model", (root_ / "tok").string()}};
  const std::string path = publish(options);
  EXPECT_EQ(path, (dir_ / "step-00000100").string());
  EXPECT_EQ(resolve_checkpoint(run_.string()), path);
  EXPECT_FALSE(fs::exists(options.unfinished));
  EXPECT_EQ(read_file(fs::path(path) / "tokenizer.model"), "tokenizer bytes");
  EXPECT_EQ(read_file(dir_ / "latest"), "step-00000100\n");
  std::vector<std::string> names;
  for (const auto& item : fs::directory_iterator(path)) {
    names.push_back(item.path().filename().string());
  }
  EXPECT_THAT(names, UnorderedElementsAre("COMPLETE", "manifest.json", "index.h5", "rank-00000.h5",
                                          "tokenizer.model"));
  const Manifest read =
      manifest_from_json(nlohmann::json::parse(read_file(fs::path(path) / "manifest.json")));
  EXPECT_EQ(read.step, 100);
  EXPECT_EQ(read.files.at(0).name, "rank-00000.h5");
}

TEST_F(PublishTest, RefusesToReplaceAWholeOneAndReplacesOthers) {
  publish(write_unfinished(100));
  const PublishOptions again = write_unfinished(100);
  EXPECT_THAT([&] { publish(again); }, ThrowsMessage<base::IoError>(HasSubstr("there already")));
  EXPECT_EQ(list_checkpoints(dir_.string()).at(0).status, CheckpointStatus::whole);
  fs::remove_all(again.unfinished);
  mark_bad((dir_ / "step-00000100").string(), "x");
  EXPECT_EQ(publish(write_unfinished(100)), (dir_ / "step-00000100").string());
  EXPECT_EQ(list_checkpoints(dir_.string()).at(0).status, CheckpointStatus::whole);
  fs::create_directories(dir_ / "step-00000200" / "remains");
  publish(write_unfinished(200));
  EXPECT_EQ(list_checkpoints(dir_.string()).at(0).status, CheckpointStatus::whole);
  EXPECT_THAT(remove_leftovers(dir_.string()), IsEmpty());
}

TEST_F(PublishTest, NothingIsPublishedWhenAnyStepBeforeTheRenameFails) {
  const std::string older = publish(write_unfinished(100));
  for (const char* point : {"checkpoint.before_complete", "checkpoint.before_rename"}) {
    base::set_faults(std::string(point) + ":0:1:throw");
    EXPECT_THROW(publish(write_unfinished(200)), base::IoError);
    EXPECT_EQ(resolve_checkpoint(run_.string()), older) << point;
    EXPECT_EQ(read_file(dir_ / "latest"), "step-00000100\n");
    fs::remove_all(dir_ / unfinished_folder_name(200, "t"));
  }
}

TEST_F(PublishTest, AStaleHintIsNoFailure) {
  publish(write_unfinished(100));
  base::set_faults("checkpoint.before_latest:0:1:throw");
  const std::string newer = publish(write_unfinished(200));
  EXPECT_EQ(read_file(dir_ / "latest"), "step-00000100\n");
  EXPECT_EQ(resolve_checkpoint(run_.string()), newer);
}

TEST_F(PublishTest, AMissingExtraFileIsNamed) {
  PublishOptions options = write_unfinished(100);
  options.extra_files = {{"tokenizer.model", (root_ / "none").string()}};
  EXPECT_THAT([&] { publish(options); }, ThrowsMessage<base::MissingInputError>(HasSubstr("none")));
  EXPECT_FALSE(fs::exists(dir_ / "step-00000100"));
}

}  // namespace
}  // namespace athanor::checkpoint
