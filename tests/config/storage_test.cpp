// precision.store_activations and store_gradients: what they read as and what is refused.
#include "config/validate.hpp"

#include "config/parse.hpp"

namespace athanor::config {
namespace {

using tests::expect_error;
using tests::parse;

RunConfig train_with(std::vector<std::string> more) {
  more.insert(more.begin(),
              {"train", "--data.train=corpus/a", "--model.vocab_size=512", "--batch.global=24"});
  return parse(more).config;
}

void refused(const std::vector<std::string>& more, const std::vector<std::string>& parts) {
  const RunConfig config = train_with(more);
  expect_error([&] { validate(config, 2); }, base::ExitCode::usage, parts);
}

TEST(Storage, NothingIsStoredInFp8Unasked) {
  const PrecisionSection precision = train_with({}).roles.at(0).precision;
  EXPECT_TRUE(precision.store_activations.empty());
  EXPECT_EQ(precision.store_gradients, optim::StoredGradients::none);
}

TEST(Storage, ClassesAreAListOfWords) {
  using nn::ActivationClass;
  const RunConfig config = train_with({"--precision.store_activations=attention,experts"});
  EXPECT_EQ(config.roles.at(0).precision.store_activations,
            (std::vector<ActivationClass>{ActivationClass::attention, ActivationClass::experts}));
  EXPECT_NO_THROW(validate(config, 2));
  EXPECT_TRUE(
      train_with({"--precision.store_activations=none"}).roles.at(0).precision.store_activations.empty());
  expect_error([] { train_with({"--precision.store_activations=heads"}); }, base::ExitCode::usage,
               {"precision.store_activations", "heads", "attention, ffn, experts, norm"});
  expect_error([] { train_with({"--precision.store_activations=norm,norm"}); }, base::ExitCode::usage,
               {"norm", "twice"});
}

TEST(Storage, ActivationsGoWithEveryFormatButF64) {
  for (const char* compute : {"f32", "bf16", "fp16"}) {
    EXPECT_NO_THROW(validate(train_with({"--precision.store_activations=attention,ffn,experts,norm",
                                         std::string("--precision.compute=") + compute}),
                             2));
  }
  refused({"--precision.store_activations=norm", "--precision.compute=f64"},
          {"precision.store_activations=norm", "precision.compute=f64", "none"});
}

TEST(Storage, GradientsAreStoredAsTheyTravel) {
  const std::string all = "--precision.store_gradients=all", fp8 = "--precision.grad_comm=fp8";
  EXPECT_NO_THROW(validate(train_with({all, fp8}), 2));
  EXPECT_NO_THROW(validate(train_with({all, fp8, "--batch.micro=12"}), 2));
  refused({all}, {"precision.store_gradients=all", "precision.grad_comm=full", "fp8"});
  refused({all, "--precision.grad_comm=bf16"}, {"precision.grad_comm=bf16"});
  refused({all, fp8, "--precision.error_feedback=true"}, {"precision.error_feedback=true"});
  refused({all, fp8, "--batch.micro=6"}, {"batch.micro=6", "2 micro-batches", "batch.micro=0 or 12"});
  refused({all, fp8, "--model.tie_embeddings=true"}, {"model.tie_embeddings=true", "experts"});
  EXPECT_NO_THROW(
      validate(train_with({"--precision.store_gradients=experts", fp8, "--model.tie_embeddings=true"}), 2));
}

}  // namespace
}  // namespace athanor::config
