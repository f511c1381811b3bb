// The files of a recording: what is written is read, at any layout; what is damaged is refused.
#include <gtest/gtest.h>

#include "base/error.hpp"
#include "distill/signal_file_fixture.hpp"

namespace athanor::distill::signal_file {
namespace {

namespace fs = std::filesystem;
using tests::batch;
using tests::make_fields;
using tests::make_tensor;
using tests::Recorder;
using tests::ScratchFolder;
using tests::seq;
using tests::Split;

// Every rank of a layout reads `rows` samples from `first` on, and has what it needs of them.
void expect_reads_back(const MappedRecording& recording, const Split& split, std::int64_t first,
                       std::int64_t rows, const std::vector<double>& temperatures) {
  const std::vector<FieldInfo>& infos = recording.info().fields;
  const std::vector<Field> fields = make_fields(split, rows, temperatures.size());
  const RoleLayout layout = tests::make_layout("student", 1, split, rows, seq);
  for (int rank = 0; rank < layout.num_ranks(); ++rank) {
    const Range own{first + layout.rows_of(rank).first, layout.rows_of(rank).count};
    std::vector<std::vector<std::int64_t>> tensors(fields.size());
    std::vector<FieldTarget> targets;
    for (std::size_t i = 0; i < fields.size(); ++i) {
      const FieldShare& share = fields[i].receiver[static_cast<std::size_t>(rank)];
      tensors[i].assign(static_cast<std::size_t>(share.memory.numel()), 0);
      FieldTarget target{static_cast<std::uint32_t>(recording.info().field_index(fields[i].name)),
                         share.memory, share.active, reinterpret_cast<std::byte*>(tensors[i].data())};
      if (fields[i].cadence == Cadence::step) {
        read_step_field(recording, *recording.step_of(first), target);
      } else {
        target.memory = share.memory.with_rows(own);
        target.active = share.active.is_empty() ? Box{} : share.active.with_rows(own);
        targets.push_back(target);
      }
    }
    read_samples(recording, own, temperatures, targets);
    for (std::size_t i = 0; i < fields.size(); ++i) {
      const FieldShare& share = fields[i].receiver[static_cast<std::size_t>(rank)];
      const auto& info = infos[static_cast<std::size_t>(recording.info().field_index(fields[i].name))];
      const std::int64_t base = fields[i].cadence == Cadence::step ? recording.step_of(first)->step : first;
      EXPECT_EQ(tensors[i], make_tensor(info, share.memory, share.active, base, temperatures))
          << info.name << " on rank " << rank << " of " << split.dp << " x " << split.tp;
    }
  }
}

template <typename Action>
void expect_error(base::ExitCode code, const std::string& part, Action action) {
  try {
    action();
    FAIL() << "nothing was thrown";
  } catch (const base::Error& error) {
    EXPECT_EQ(error.exit_code(), code) << error.what();
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST(SignalFile, AnyLayoutReadsWhatAnyOtherWrote) {
  const Split splits[] = {{1, 1, 1}, {2, 1, 1}, {3, 1, 1}, {1, 2, 1}, {2, 2, 1}, {1, 8, 1}};
  for (const Split& writers : splits) {
    const ScratchFolder scratch;
    tests::record(scratch / "signals", writers, 2);
    const MappedRecording recording(scratch / "signals");
    EXPECT_TRUE(recording.is_complete());
    ASSERT_EQ(recording.steps().size(), 2u);
    for (const Split& readers : splits) {
      expect_reads_back(recording, readers, batch, batch, tests::temperatures_of(1));
    }
  }
}

TEST(SignalFile, SamplesComeFromAnyStepsAtAnyBatch) {
  const ScratchFolder scratch;
  tests::record(scratch / "signals", {3, 2, 1}, 4);
  const MappedRecording recording(scratch / "signals");
  for (const std::int64_t rows : {6, 30, 42}) {
    // 2.5 is the one temperature that all steps have, first in some and last in others.
    expect_reads_back(recording, {2, 1, 1}, 3, rows, {2.5});
  }
}

TEST(SignalFile, TheDescriptionComesBack) {
  const ScratchFolder scratch;
  tests::record(scratch / "signals", {1, 1, 1}, 3);
  const RecordingInfo info = read_info(scratch / "signals");
  const RecordingInfo own = tests::make_info();
  EXPECT_EQ(info.id, own.id);
  EXPECT_EQ(info.dataset, own.dataset);
  EXPECT_EQ(info.mixture, own.mixture);
  EXPECT_EQ(info.seed, own.seed);
  EXPECT_EQ(info.seq, own.seq);
  EXPECT_EQ(info.teacher, own.teacher);
  EXPECT_EQ(info.fields, own.fields);
  const MappedRecording recording(scratch / "signals");
  EXPECT_EQ(recording.steps()[2].outcome, StepOutcome::skipped);
  EXPECT_EQ(recording.steps()[1].outcome, StepOutcome::finite);
  EXPECT_EQ(recording.steps()[1].teacher_version, 1);
  EXPECT_EQ(recording.kinds().size(), 2u);  // two sets of temperatures
  EXPECT_EQ(recording.step_of(3 * batch), nullptr);
  EXPECT_EQ(recording.step_of(2 * batch)->step, 2);
  const std::int64_t bytes = verify_samples(recording, {0, 3 * batch}, 0, 1);
  EXPECT_EQ(verify_samples(recording, {0, 3 * batch}, 0, 2) + verify_samples(recording, {0, 3 * batch}, 1, 2),
            bytes);
}

TEST(SignalFile, StepsBehindTheIndexCountWhenTheyAreWhole) {
  const ScratchFolder scratch;
  Recorder recorder(scratch / "signals", {2, 1, 1}, 0, 10);
  recorder.write(0);
  recorder.publish(false);
  recorder.write(1);
  recorder.write(2);
  recorder.write(3, 0);  // the other rank has not come so far
  const MappedRecording recording(scratch / "signals");
  EXPECT_FALSE(recording.is_complete());
  ASSERT_EQ(recording.steps().size(), 3u);
  expect_reads_back(recording, {1, 1, 1}, 2 * batch, batch, tests::temperatures_of(2));
  expect_error(base::ExitCode::bad_data, "does not hold sample 36", [&] {
    verify_samples(recording, {0, 4 * batch}, 0, 1);
  });
}

// What a kill leaves at the end of a file, cut at every place.
TEST(SignalFile, ATornBlockIsNoBlock) {
  const ScratchFolder scratch;
  Recorder recorder(scratch / "signals", {1, 1, 1}, 0, 10);
  recorder.write(0);
  const std::string path = scratch / "signals/signals-00000.bin";
  const std::size_t whole = fs::file_size(path);
  recorder.write(1);
  const std::vector<char> bytes = tests::read_file(path);
  for (std::size_t size = whole; size < bytes.size(); size += 1 + (bytes.size() - whole) / 60) {
    tests::write_file(path, {bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size)});
    EXPECT_EQ(MappedRecording(scratch / "signals").steps().size(), 1u) << size;
  }
  tests::write_file(path, bytes);
  EXPECT_EQ(MappedRecording(scratch / "signals").steps().size(), 2u);
}

TEST(SignalFile, ARecordingThatGoesOnHasEachStepOnce) {
  for (const Split& second : {Split{2, 1, 1}, Split{1, 1, 1}, Split{3, 2, 1}}) {
    const ScratchFolder scratch;
    {
      Recorder first(scratch / "signals", {2, 1, 1}, 0, 6);
      first.write(0);
      first.write(1);
      first.publish(false);
      first.write(2);
      first.write(3);
      first.write(4, 1);
    }
    Recorder(scratch / "signals", second, 2, 6).write_to_the_end(2);
    const MappedRecording recording(scratch / "signals");
    EXPECT_TRUE(recording.is_complete());
    ASSERT_EQ(recording.steps().size(), 6u);
    for (std::int64_t step = 0; step < 6; ++step) {
      EXPECT_EQ(recording.steps()[static_cast<std::size_t>(step)].step, step);
      expect_reads_back(recording, {1, 1, 1}, step * batch, batch, tests::temperatures_of(step));
    }
  }
}

TEST(SignalFile, TheSameLayoutGoesOnToTheSameBytes) {
  const ScratchFolder scratch;
  tests::record(scratch / "whole", {2, 1, 1}, 5);
  {
    Recorder first(scratch / "resumed", {2, 1, 1}, 0, 5);
    first.write(0);
    first.write(1);
    first.write(2);
  }
  Recorder(scratch / "resumed", {2, 1, 1}, 1, 5).write_to_the_end(1);
  for (const char* name : {"/signals-00000.bin", "/signals-00001.bin"}) {
    EXPECT_EQ(tests::read_file(scratch / "resumed" + name), tests::read_file(scratch / "whole" + name));
  }
  // A job with nothing left to do leaves it complete.
  prepare_recording(scratch / "resumed", tests::make_info(), 5, 5);
  EXPECT_TRUE(MappedRecording(scratch / "resumed").is_complete());
  prepare_recording(scratch / "resumed", tests::make_info(), 5, 6);
  EXPECT_FALSE(MappedRecording(scratch / "resumed").is_complete());
}

TEST(SignalFile, AnyChangedByteOfTheIndexIsSeen) {
  const ScratchFolder scratch;
  tests::record(scratch / "signals", {2, 1, 1}, 2);
  const std::string path = scratch / "signals/signals.index";
  const std::vector<char> bytes = tests::read_file(path);
  for (std::size_t i = 0; i < bytes.size(); i += i < 64 ? 1 : 31) {
    std::vector<char> damaged = bytes;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x10);
    tests::write_file(path, damaged);
    EXPECT_THROW(MappedRecording(scratch / "signals"), base::DataError) << "byte " << i;
  }
  for (std::size_t size = 0; size < bytes.size(); size += 397) {
    tests::write_file(path, {bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size)});
    EXPECT_THROW(MappedRecording(scratch / "signals"), base::DataError) << "cut to " << size;
  }
}

TEST(SignalFile, AnyChangedByteOfARecordIsSeen) {
  const ScratchFolder scratch;
  tests::record(scratch / "signals", {2, 1, 1}, 2);
  const std::string path = scratch / "signals/signals-00001.bin";
  const std::vector<char> bytes = tests::read_file(path);
  const MappedRecording whole(scratch / "signals");
  std::int64_t headers = 0;  // the index has copies of these, which count
  for (const RecordedStep& step : whole.steps()) {
    headers += static_cast<std::int64_t>(step.blocks[1].header.size());
  }
  std::int64_t unseen = 0;
  for (std::size_t i = 0; i < bytes.size(); i += 61) {
    std::vector<char> damaged = bytes;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x01);
    tests::write_file(path, damaged);
    try {
      const MappedRecording recording(scratch / "signals");
      verify_samples(recording, {0, 2 * batch}, 0, 1);
      ++unseen;
    } catch (const base::DataError& error) {
      EXPECT_NE(std::string(error.what()).find("signals-00001.bin"), std::string::npos) << error.what();
    }
  }
  EXPECT_LE(unseen, headers / 61 + 2);
}

TEST(SignalFile, RefusesWhatIsNotThere) {
  const ScratchFolder scratch;
  expect_error(base::ExitCode::missing_input, "is no folder", [&] { read_info(scratch / "nowhere"); });
  fs::create_directory(scratch / "empty");
  expect_error(base::ExitCode::missing_input, "no recording", [&] { read_info(scratch / "empty"); });
  tests::record(scratch / "signals", {2, 1, 1}, 2);
  const std::string data = scratch / "signals/signals-00001.bin";
  const std::vector<char> bytes = tests::read_file(data);
  fs::resize_file(data, bytes.size() - 1);
  expect_error(base::ExitCode::bad_data, "signals-00001.bin", [&] { MappedRecording(scratch / "signals"); });
  fs::remove(data);
  expect_error(base::ExitCode::bad_data, "signals-00001.bin is missing",
               [&] { MappedRecording(scratch / "signals"); });
  tests::write_file(data, bytes);
  // The file of another rank in its place.
  tests::write_file(data, tests::read_file(scratch / "signals/signals-00000.bin"));
  expect_error(base::ExitCode::bad_data, "signals-00001.bin", [&] { MappedRecording(scratch / "signals"); });
}

TEST(SignalFile, RefusesANewerFormat) {
  const ScratchFolder scratch;
  tests::record(scratch / "signals", {1, 1, 1}, 1);
  const std::string path = scratch / "signals/signals.index";
  std::vector<char> bytes = tests::read_file(path);
  bytes[8] = 2;
  tests::write_file(path, bytes);
  expect_error(base::ExitCode::bad_data, "format version 2", [&] { read_info(scratch / "signals"); });
}

TEST(SignalFile, RefusesToMixRecordings) {
  const ScratchFolder scratch;
  tests::record(scratch / "signals", {1, 1, 1}, 2);
  RecordingInfo other = tests::make_info();
  other.dataset = "other text";
  expect_error(base::ExitCode::usage, "training text",
               [&] { prepare_recording(scratch / "signals", other, 1, 4); });
  other = tests::make_info();
  other.fields[0].columns = 5;
  expect_error(base::ExitCode::usage, "field ids",
               [&] { prepare_recording(scratch / "signals", other, 1, 4); });
  EXPECT_EQ(MappedRecording(scratch / "signals").steps().size(), 2u);  // nothing was lost
  fs::remove(scratch / "signals/signals.index");
  expect_error(base::ExitCode::cannot_create, "signals-00000.bin",
               [&] { prepare_recording(scratch / "signals", tests::make_info(), 0, 4); });
  tests::write_file(scratch / "file", {'x'});
  expect_error(base::ExitCode::cannot_create, "cannot be made",
               [&] { prepare_recording(scratch / "file", tests::make_info(), 0, 4); });
}

TEST(SignalFile, AHoleIsNamed) {
  const ScratchFolder scratch;
  tests::record(scratch / "signals", {1, 1, 1}, 2);
  const MappedRecording recording(scratch / "signals");
  // A temperature that the step does not have leaves its columns empty.
  const Box box{{Range{0, 2}, Range{0, seq}, Range{0, 1}}};
  std::vector<std::int64_t> values(static_cast<std::size_t>(box.numel()));
  const FieldTarget target{static_cast<std::uint32_t>(recording.info().field_index("lse")), box, box,
                           reinterpret_cast<std::byte*>(values.data())};
  expect_error(base::ExitCode::bad_data, "field lse", [&] {
    read_samples(recording, {0, 2}, {4.0}, std::span(&target, 1));
  });
  // Steps that were not recorded.
  Recorder later(scratch / "later", {1, 1, 1}, 3, 5);
  later.write_to_the_end(3);
  const MappedRecording rest(scratch / "later");
  EXPECT_EQ(rest.step_of(0), nullptr);
  EXPECT_EQ(rest.step_of(3 * batch)->step, 3);
}

}  // namespace
}  // namespace athanor::distill::signal_file
