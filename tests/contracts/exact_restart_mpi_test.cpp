// Contract 3 (exact restart): a run that is stopped and goes on equals the uninterrupted one bit for bit at
// its layout, and within contract 1's tolerance at any other.
#include <gtest/gtest.h>

#include <ATen/ATen.h>

#include <cmath>
#include <cstring>
#include <map>

#include "checkpoint/checkpoint_reader.hpp"
#include "contracts/restart_case.hpp"
#include "contracts/run_record.hpp"
#include "support/mpi_test.hpp"
#include "train/job_checkpoints.hpp"
#include "train/state_dict.hpp"

namespace athanor::tests {
namespace {

// The whole tensors of a checkpoint as bytes, by name.
std::map<std::string, std::string> whole_tensors(const std::string& path) {
  const checkpoint::CheckpointReader reader(path);
  std::map<std::string, std::string> tensors;
  for (const auto& [name, stored] : reader.manifest().tensors) {
    checkpoint::TensorSlice slice{
        name, stored.type, checkpoint::SliceExtent::whole_box(parallel::ShardSpec::whole(stored.shape)),
        nullptr};
    std::string bytes(static_cast<std::size_t>(slice.bytes()), '\0');
    slice.data = bytes.data();
    reader.read({slice});
    tensors[name] = std::move(bytes);
  }
  return tensors;
}

// The checkpoint's whole tensors are the trainer's, element by element of the global index (so expert e of
// the file is expert e of the model, for weights and both moments).
void expect_holds(const std::map<std::string, std::string>& stored,
                  const std::map<std::string, at::Tensor>& expected, const std::string& kind) {
  for (const auto& [name, value] : expected) {
    const auto found = stored.find("teacher/" + kind + "/" + name);
    ASSERT_NE(found, stored.end()) << kind << " of " << name;
    const at::Tensor f64 = value.contiguous();
    ASSERT_EQ(found->second.size(), f64.nbytes()) << name;
    EXPECT_EQ(std::memcmp(found->second.data(), f64.data_ptr(), f64.nbytes()), 0) << kind << " of " << name;
  }
}

std::string save_once(train::Trainer& trainer, const std::string& folder,
                      const parallel::Communicator& role) {
  train::JobCheckpoints checkpoints(make_job(folder, false, 0, 0), trainer, role);
  checkpoints.save();
  checkpoints.finish();
  return checkpoints.last_path();
}

// Saves at layout `from`, loads and saves at `to`, and goes on at `to`. Collective over the first
// max(from, to) ranks of `all`.
void check_pair(const Case& test, const Layout& from, const Layout& to, const RunRecord& reference,
                const std::string& name, const parallel::Communicator& all) {
  constexpr int steps_before = 3;
  const RunFolder folder(name, all);
  std::string path;
  const parallel::Communicator first = all.split(all.rank() < from.ranks ? 0 : -1, all.rank(), "from");
  if (all.rank() < from.ranks) {
    train::Trainer trainer(trainer_options(test, from), first);
    for (int step = 0; step < steps_before; ++step) {
      train_step(test, trainer);
    }
    path = save_once(trainer, folder.path() + "/from", first);
    const RunRecord record = collect_record(trainer, first);
    if (all.rank() == 0) {
      const auto stored = whole_tensors(path);
      expect_holds(stored, record.parameters, "parameters");
      expect_holds(stored, record.exp_avg, "exp_avg");
      expect_holds(stored, record.exp_avg_sq, "exp_avg_sq");
    }
  }
  all.barrier();
  const parallel::Communicator second = all.split(all.rank() < to.ranks ? 0 : -1, all.rank(), "to");
  if (all.rank() < to.ranks) {
    train::TrainerOptions options = trainer_options(test, to);
    options.seed = 11;
    train::Trainer trainer(options, second);
    const auto resumed = train::resume({}, folder.path() + "/from", {}, trainer, second);
    ASSERT_TRUE(resumed);
    EXPECT_EQ(trainer.state().step, steps_before);
    const std::string again = save_once(trainer, folder.path() + "/to", second);
    if (all.rank() == 0) {
      EXPECT_TRUE(whole_tensors(resumed->path) == whole_tensors(again))
          << "save, load, save changed a tensor";
    }
    for (int step = steps_before; step < test.steps; ++step) {
      const train::StepMetrics metrics = train_step(test, trainer);
      const double expected = reference.steps[static_cast<std::size_t>(step)].loss;
      EXPECT_LE(std::abs(metrics.loss - expected), 1e-9 * expected) << "step " << step + 1;
    }
    const RunRecord record = collect_record(trainer, second);
    for (const auto& [tensor_name, expected] : reference.parameters) {
      const double difference = (record.parameters.at(tensor_name) - expected).abs().max().item<double>();
      EXPECT_LE(difference, 1e-9 * expected.abs().max().item<double>()) << tensor_name;
    }
  }
}

// Parameter: how far apart in the list of layouts writer and reader are.
class Resharding : public testing::TestWithParam<std::size_t> {};

TEST_P(Resharding, EveryLayoutReadsEveryOther) {
  ASSERT_EQ(world().size(), 8);
  Case test = restart_case(base::ComputeType::f64);
  test.steps = 5;
  RunRecord reference;
  if (world().rank() == 0) {
    reference = run_layout(test, Layout{}, parallel::Communicator());
  }
  reference = broadcast_record(reference, 0, world());
  const std::vector<Layout> layouts = {
      {1, 1, 1, 1, 1}, {2, 1, 2, 1, 1}, {2, 2, 1, 3, 0}, {3, 1, 3, 1, 1}, {3, 1, 1, 2, 0}, {4, 2, 4, 1, 1},
      {4, 4, 2, 1, 1}, {4, 1, 2, 2, 0}, {6, 2, 3, 2, 1}, {6, 1, 6, 1, 1}, {8, 4, 8, 1, 1},
  };
  for (std::size_t i = 0; i < layouts.size(); ++i) {
    const Layout& from = layouts[i];
    const Layout& to = layouts[(i + GetParam()) % layouts.size()];
    SCOPED_TRACE(from.describe() + " -> " + to.describe());
    const int ranks = std::max(from.ranks, to.ranks);
    const parallel::Communicator all = world().split(world().rank() < ranks ? 0 : -1, world().rank(), "pair");
    if (world().rank() < ranks) {
      check_pair(test, from, to, reference, "pair", all);
    }
  }
  world().barrier();
}

INSTANTIATE_TEST_SUITE_P(ElevenPairs, Resharding, testing::Values(1, 4),
                         [](const testing::TestParamInfo<std::size_t>& info) {
                           return "Apart" + std::to_string(info.param);
                         });

}  // namespace
}  // namespace athanor::tests
