// A student that starts from a checkpoint of its teacher, on any layout.
#include "train/student_weights.hpp"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "base/error.hpp"
#include "parallel/dtype.hpp"
#include "support/mpi_test.hpp"
#include "support/synthetic_batches.hpp"
#include "train/job_checkpoints.hpp"
#include "train/state_dict.hpp"

namespace athanor::train {
namespace {

using tests::world;

tests::SyntheticData data() {
  return {53, 12, 16, 9, false};
}

// Two dense and two sparse layers.
TrainerOptions teacher_options() {
  TrainerOptions options;
  options.role.model.vocab_size = 53;
  options.role.model.layers = 4;
  options.role.model.hidden = 32;
  options.role.model.heads = 8;
  options.role.model.kv_heads = 4;
  options.role.model.ffn = 48;
  options.role.model.max_seq = 16;
  options.role.model.init_std = 0.1;
  options.role.model.moe.num_experts = 8;
  options.role.model.moe.top_k = 2;
  options.role.model.moe.ffn = 16;
  options.role.model.moe.shared_experts = 1;
  options.role.model.moe.every = 2;
  options.role.model.moe.balance = {moe::BalanceKind::squared, moe::BalanceKind::bias};
  options.role.optim.lr = 5e-3;
  options.role.optim.schedule = optim::ScheduleKind::constant;
  options.role.ep = world().size();
  options.global_batch = data().global_batch;
  options.seq = data().seq;
  options.total_steps = 100;
  options.seed = 5;
  return options;
}

// Smaller in everything.
TrainerOptions student_options() {
  TrainerOptions options = teacher_options();
  options.role.name = "student";
  options.role.kind = parallel::RoleKind::student;
  options.role.model.layers = 2;
  options.role.model.hidden = 20;
  options.role.model.heads = 4;
  options.role.model.kv_heads = 4;
  options.role.model.head_dim = 2;
  options.role.model.ffn = 29;
  options.role.model.moe.num_experts = 4;
  options.role.model.moe.ffn = 11;
  options.role.ep = 1;
  options.seed = 11;
  return options;
}

StepMetrics train_step(Trainer& trainer, std::int64_t step) {
  return trainer.step(
      tests::synthetic_step(data(), trainer.replica(), data().global_batch / trainer.replica().count, step));
}

// A teacher that has learnt something, and its checkpoint; made once.
class TrainedTeacher {
 public:
  TrainedTeacher() : trainer_(teacher_options(), world()) {
    path_ = (std::filesystem::temp_directory_path() / fmt::format("athanor_student_np{}", world().size()))
                .string();
    if (world().rank() == 0) {
      std::filesystem::remove_all(path_);
      std::filesystem::create_directories(path_);
    }
    world().barrier();
    for (std::int64_t step = 0; step < 60; ++step) {
      train_step(trainer_, step);
    }
    JobCheckpoints::Job job;
    job.options.dir = path_;
    job.options.on_error = OnSaveError::stop;
    job.head.run_id = "0123456789abcdef";
    JobCheckpoints checkpoints(std::move(job), trainer_, world());
    checkpoints.save();
    checkpoints.finish();
    reader_ = std::make_unique<checkpoint::CheckpointReader>(checkpoints.last_path());
  }
  ~TrainedTeacher() {
    if (world().rank() == 0) {
      std::filesystem::remove_all(path_);
    }
  }
  TrainedTeacher(const TrainedTeacher&) = delete;
  TrainedTeacher& operator=(const TrainedTeacher&) = delete;
  Trainer& trainer() { return trainer_; }
  const checkpoint::CheckpointReader& reader() const { return *reader_; }

 private:
  Trainer trainer_;
  std::string path_;
  std::unique_ptr<checkpoint::CheckpointReader> reader_;
};

class StudentWeights : public testing::Test {
 protected:
  static void SetUpTestSuite() { teacher_ = std::make_unique<TrainedTeacher>(); }
  static void TearDownTestSuite() { teacher_.reset(); }
  static ShrinkOptions shrink(distill::ExpertReduction experts, std::vector<std::int64_t> layers) {
    return {"teacher", teacher_options().role.model, {std::move(layers), experts}};
  }
  static std::unique_ptr<TrainedTeacher> teacher_;
};
std::unique_ptr<TrainedTeacher> StudentWeights::teacher_;

// What one rank alone would make of each of the trainer's slices.
void expect_slices_of_one_rank(const Trainer& trainer, const checkpoint::CheckpointReader& reader,
                               const ShrinkOptions& options) {
  const CheckpointWeights source(reader, options);
  const distill::StudentPlan plan =
      distill::make_student_plan(describe_model(options.source), describe_model(trainer.options().role.model),
                                 options.reduction, source);
  for (const auto& parameter : trainer.parameters().all()) {
    at::Tensor part = distill::make_student_tensor(
        plan, parameter->name, parallel::ShardSpec::whole(parameter->shard.global_shape), source);
    for (std::size_t d = 0; d < parameter->shard.offset.size(); ++d) {
      part = part.narrow(static_cast<std::int64_t>(d), parameter->shard.offset[d],
                         parameter->shard.local_shape[d]);
    }
    EXPECT_TRUE(at::equal(parameter->value.detach(), part.to(parameter->value.scalar_type())))
        << parameter->name << " on rank " << world().rank() << ", " << trainer.grid().describe();
  }
}

TEST_F(StudentWeights, EveryLayoutHasTheSlicesOfOneRanksResult) {
  const int ranks = world().size();
  for (const auto experts : {distill::ExpertReduction::choose, distill::ExpertReduction::merge}) {
    for (const int tp : {1, 2, 4}) {
      for (const int ep : {1, 2, 4}) {
        if (ranks % tp != 0 || ranks % ep != 0) {
          continue;
        }
        TrainerOptions options = student_options();
        options.role.tp = tp;
        options.role.ep = ep;
        options.role.optim.zero = (tp + ep) % 2;
        Trainer trainer(options, world());
        const ShrinkOptions from = shrink(experts, {0, 3});
        start_from_larger(trainer, teacher_->reader(), from);
        expect_slices_of_one_rank(trainer, teacher_->reader(), from);
        EXPECT_EQ(trainer.state().step, 0);
        EXPECT_EQ(trainer.optimizer().updates(), 0);
      }
    }
  }
}

TEST_F(StudentWeights, OtherNumberFormatsAndFrozenRoles) {
  for (const auto compute : {base::ComputeType::bf16, base::ComputeType::f64}) {
    for (const bool frozen : {false, true}) {
      TrainerOptions options = student_options();
      options.role.compute = compute;
      options.role.frozen = frozen;
      Trainer trainer(options, world());
      const ShrinkOptions from = shrink(distill::ExpertReduction::choose, {});
      start_from_larger(trainer, teacher_->reader(), from);
      expect_slices_of_one_rank(trainer, teacher_->reader(), from);
    }
  }
}

TEST_F(StudentWeights, AllLayersAreTheTeacherItself) {
  TrainerOptions options = teacher_options();
  options.role.name = "student";
  options.seed = 12;
  Trainer student(options, world());
  start_from_larger(student, teacher_->reader(), shrink(distill::ExpertReduction::choose, {}));
  TrainerOptions same = teacher_options();
  Trainer copy(same, world());
  StagedState(copy, teacher_->reader()).apply(copy);
  EXPECT_EQ(train_step(student, 900).loss, train_step(copy, 900).loss);
}

TEST_F(StudentWeights, BiasesGoWithTheirExperts) {
  Trainer student(student_options(), world());
  const ShrinkOptions from = shrink(distill::ExpertReduction::choose, {0, 3});
  start_from_larger(student, teacher_->reader(), from);
  const CheckpointWeights source(teacher_->reader(), from);
  const distill::StudentPlan plan = distill::make_student_plan(
      describe_model(from.source), describe_model(student_options().role.model), from.reduction, source);
  const at::Tensor biases = source.biases();
  ASSERT_TRUE(biases[3].abs().max().item<double>() > 0.0);
  for (std::size_t i = 0; i < 4; ++i) {
    const std::int64_t expert = plan.layer_plans[1].experts[i].parts[0].expert;
    EXPECT_FLOAT_EQ(student.state().balance.bias_PE[1][static_cast<std::int64_t>(i)].item<float>(),
                    biases[3][expert].item<float>());
  }
}

// The loss of a batch nobody has seen, before the first update.
double first_loss(const TrainerOptions& options, const std::function<void(Trainer&)>& start) {
  Trainer trainer(options, world());
  start(trainer);
  return train_step(trainer, 1000).loss;
}

TEST_F(StudentWeights, HalfATeacherStartsFarBelowARandomStudent) {
  const double random = first_loss(teacher_options(), [](Trainer&) {});
  const double teacher = first_loss(teacher_options(), [](Trainer& trainer) {
    start_from_larger(trainer, teacher_->reader(), shrink(distill::ExpertReduction::choose, {}));
  });
  ASSERT_LT(teacher, random - 0.4);
  struct Case {
    const char* name;
    std::function<void(model::TransformerConfig&)> change;
    double kept;  // of the teacher's lead, at least
  };
  const Case cases[] = {
      {"half the experts", [](auto& model) { model.moe.num_experts = 4; }, 0.5},
      {"half the ffn", [](auto& model) { model.ffn = 24, model.moe.ffn = 8; }, 0.5},
      {"half the heads", [](auto& model) { model.head_dim = 4, model.heads = 4; }, 0.5},
      {"a dense model", [](auto& model) { model.moe.num_experts = 0; }, 0.5},
      {"3/4 of the stream", [](auto& model) { model.head_dim = 4, model.hidden = 24; }, 0.3},
      {"half the layers", [](auto& model) { model.layers = 2; }, 0.3},
  };
  for (const Case& test : cases) {
    for (const auto experts : {distill::ExpertReduction::choose, distill::ExpertReduction::merge}) {
      TrainerOptions options = teacher_options();
      options.role.ep = 1;
      test.change(options.role.model);
      const std::vector<std::int64_t> layers =
          options.role.model.layers == 2 ? std::vector<std::int64_t>{0, 3} : std::vector<std::int64_t>();
      const double loss = first_loss(options, [&](Trainer& trainer) {
        start_from_larger(trainer, teacher_->reader(), shrink(experts, layers));
      });
      EXPECT_LT(loss, random - test.kept * (random - teacher))
          << test.name << ", teacher " << teacher << ", random " << random;
    }
  }
}

TEST_F(StudentWeights, AnotherShapeIsRefusedAndShrinkNamed) {
  const Trainer student(student_options(), world());
  try {
    check_same_shapes(student, teacher_->reader());
    ADD_FAILURE() << "not refused";
  } catch (const base::CheckpointError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("init_mode=shrink"));
  }
  EXPECT_NO_THROW(check_same_shapes(teacher_->trainer(), teacher_->reader()));
}

TEST_F(StudentWeights, AnotherTokenizerIsRefused) {
  checkpoint::Manifest stored;
  stored.data = {{"tokenizer", "aa"}};
  const ShrinkOptions from = shrink(distill::ExpertReduction::choose, {0, 3});
  const model::TransformerConfig model = student_options().role.model;
  EXPECT_NO_THROW(check_shrink(from, model, stored, "aa"));
  EXPECT_NO_THROW(check_shrink(from, model, stored, ""));
  EXPECT_THROW(check_shrink(from, model, stored, "bb"), base::ConfigError);
}

}  // namespace
}  // namespace athanor::train
