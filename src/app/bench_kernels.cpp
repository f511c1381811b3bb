// `athanor bench kernels`.
#include "train/bench_kernels.hpp"

#include <fmt/format.h>

#include "app/bench_figures.hpp"
#include "app/commands.hpp"
#include "app/role_setup.hpp"
#include "app/run_device.hpp"
#include "config/validate.hpp"
#include "train/bench_gpu_kernels.hpp"

namespace athanor::app {

CommandResult run_bench_kernels(const config::RunConfig& config, const parallel::Communicator& world) {
  const train::RoleOptions role = make_role_options(config.roles[0]);
  train::BenchKernelsOptions options;
  options.model = role.model;
  options.tokens = config.batch.global * config.batch.seq / world.size();
  options.seq = config.batch.seq;
  options.expert_ranks = role.ep;
  options.rounds = config.bench.rounds;
  const bool on_gpu = take_device(config, world).is_cuda();
  const std::vector<train::KernelFigure> kernels =
      on_gpu ? train::bench_gpu_kernels(options, world) : train::bench_kernels(options, world);

  std::vector<BenchFigure> figures;
  for (const train::KernelFigure& kernel : kernels) {
    figures.push_back({kernel.name, kernel.unit, kernel.rate, kernel.limit_name, kernel.limit, kernel.ratio});
  }
  CommandResult result{to_text(figures), {{"ranks", world.size()}, {"figures", to_json(figures)}}};
  if (on_gpu) {
    return result;  // the plain reference is the CPU's
  }
  result.text += fmt::format("\n{:<44} {:>9} {:>9} (smallest to largest)\n",
                             "against the plain f32 reference", "", "times");
  for (std::size_t i = 0; i < kernels.size(); ++i) {
    const train::KernelFigure& kernel = kernels[i];
    result.text +=
        fmt::format("{:<44} {:>9.2f} {:>9.1f} ({:.1f} to {:.1f})\n", kernel.name, kernel.reference_rate,
                    kernel.speedup.median, kernel.speedup.min, kernel.speedup.max);
    put_number(result.json["figures"][i], "reference", kernel.reference_rate);
    put_spread(result.json["figures"][i], "speedup", kernel.speedup);
  }
  return result;
}

}  // namespace athanor::app
