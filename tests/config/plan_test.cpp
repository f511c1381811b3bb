// The plans of memory, bytes and time: formulae that can be added up by hand, and the big plan on paper.
#include "config/estimate.hpp"
#include "config/parse.hpp"
#include "config/plan/parameter_storages.hpp"
#include "config/roles.hpp"
#include "config/validate.hpp"

namespace athanor::config {
namespace {

using parallel::Traffic;
using tests::parse;

RunConfig config_of(const char* file, const std::vector<std::string>& more = {}) {
  std::vector<std::string> words = {"train", "--data.train=x",
                                    "--config=" + (tests::source_folder() / "configs" / file).string()};
  words.insert(words.end(), more.begin(), more.end());
  return parse(words).config;
}

TrafficPlan traffic_of(const RunConfig& config, int ranks) {
  return plan_traffic(config, config.roles[0], resolve_dims(config.roles[0], ranks));
}

MemoryPlan memory_of(const RunConfig& config, int ranks) {
  return plan_memory(config, config.roles[0], resolve_dims(config.roles[0], ranks));
}

TEST(PlanStorages, HoldEveryParameterOnce) {
  const RunConfig config = config_of("bench-s.ini", {"--moe.shared_experts=1", "--moe.every=2"});
  const model::TransformerConfig& model = config.roles[0].model;
  for (const parallel::ParallelDims& dims : std::vector<parallel::ParallelDims>{
           {}, {.dp = 4, .ep = 2}, {.dp = 2, .tp = 4, .ep = 8}, {.tp = 8, .ep = 4}}) {
    // Each holder of a slice counts as its part of one.
    double held = 0.0;
    for (int rank = 0; rank < dims.num_ranks(); ++rank) {
      for (const ParameterStorage& storage : parameter_storages(model, dims, rank)) {
        for (const auto& piece : storage.layout.pieces(storage.layout.whole())) {
          held += static_cast<double>(piece.count) / storage.num_holders();
        }
      }
    }
    EXPECT_DOUBLE_EQ(held, static_cast<double>(model::count_parameters(model).total));
  }
}

TEST(PlanTraffic, OneRankSendsNothing) {
  EXPECT_TRUE(traffic_of(config_of("bench-s.ini", {"--parallel.ep=1"}), 1).exchanges.empty());
}

TEST(PlanTraffic, BenchShapeByHand) {
  const TrafficPlan plan = traffic_of(config_of("bench-s.ini"), 2);
  // 4,096 tokens, 4 choices, half of them away, rows of 256 f32, 4 layers, forward and backward.
  const std::int64_t rows = 4096 * 4 / 2 * 256 * 4 * 4 * 2;
  EXPECT_EQ(plan.bytes(Traffic::combine), rows);
  EXPECT_EQ(plan.bytes(Traffic::dispatch), rows + 2 * 64 * 8 * 4);  // and counts of the other's experts
  EXPECT_EQ(plan.bytes(Traffic::grad_expert), 0);                   // every expert is on one rank
  EXPECT_EQ(plan.bytes(Traffic::other), 2 * (3 + 68) * 8);
  // Half of the dense parameters from each rank to the other, and back; padded to blocks.
  const RankParameters count =
      count_rank_parameters(config_of("bench-s.ini").roles[0].model, {.dp = 2, .ep = 2});
  const std::int64_t dense = (count.total() - count.expert) * 4;
  EXPECT_GE(plan.bytes(Traffic::grad_dense), dense);
  EXPECT_LE(plan.bytes(Traffic::grad_dense), dense + 40 * 256 * 4);
  EXPECT_EQ(plan.bytes(Traffic::param_gather), plan.bytes(Traffic::grad_dense));
}

TEST(PlanTraffic, WiresScaleTheBytes) {
  const TrafficPlan full = traffic_of(config_of("bench-s.ini"), 2);
  const TrafficPlan rounded =
      traffic_of(config_of("bench-s.ini", {"--precision.grad_comm=fp8", "--precision.dispatch_comm=fp8",
                                           "--precision.combine_comm=bf16"}),
                 2);
  EXPECT_EQ(rounded.bytes(Traffic::grad_dense) * 512, full.bytes(Traffic::grad_dense) * 132);
  EXPECT_EQ(rounded.bytes(Traffic::combine) * 2, full.bytes(Traffic::combine));
  EXPECT_LT(static_cast<double>(rounded.bytes(Traffic::dispatch)),
            0.27 * static_cast<double>(full.bytes(Traffic::dispatch)));
  EXPECT_EQ(rounded.bytes(Traffic::param_gather), full.bytes(Traffic::param_gather));
}

TEST(PlanTraffic, NodesShareGroups) {
  RunConfig config = config_of("bench-s.ini", {"--batch.global=16", "--parallel.ep=4"});
  config.plan.ranks_per_node = 2;
  for (const Exchange& exchange : traffic_of(config, 8).exchanges) {
    // Of rank 0's expert group {0..3} two of three others are away; of the role {0..7} six of seven; of the
    // holders of its experts {0, 4} the other one.
    const double away = exchange.purpose == Traffic::dispatch || exchange.purpose == Traffic::combine
                            ? 2.0 / 3
                        : exchange.purpose == Traffic::grad_expert ? 1.0
                                                                   : 6.0 / 7;
    if (exchange.purpose != Traffic::param_gather) {
      EXPECT_DOUBLE_EQ(exchange.between_nodes, away) << exchange.formula;
    }
  }
}

TEST(PlanMemory, StateIsExactAndFollowsSharding) {
  const RunConfig f32 = config_of("bench-s.ini");
  const RankParameters count = count_rank_parameters(f32.roles[0].model, {.dp = 2, .ep = 2});
  const double elements = static_cast<double>(count.total());
  const double dense = elements - static_cast<double>(count.expert);
  const auto near = [](std::int64_t bytes, double expected) {
    EXPECT_NEAR(static_cast<double>(bytes), expected, 1e-3 * expected);
  };
  const MemoryPlan one = memory_of(f32, 2);
  near(one.parameters, 4 * elements);
  near(one.gradients, 4 * elements + 2 * dense);  // and the sums that it owns
  near(one.optimizer, 8 * (elements - dense / 2));
  near(one.snapshot, 12 * (elements - dense / 2));
  const MemoryPlan two = memory_of(
      config_of("bench-s.ini", {"--precision.compute=bf16", "--optim.zero=0", "--checkpoint.async=false"}),
      2);
  near(two.parameters, 2 * elements);
  near(two.optimizer, 12 * elements);  // master weights and two moments on every holder
  EXPECT_EQ(two.snapshot, 0);
}

TEST(PlanMemory, ActivationsFollowTokensAndOptions) {
  const auto peak = [](const std::vector<std::string>& more) {
    return memory_of(config_of("bench-s.ini", more), 2).activations.peak;
  };
  const std::int64_t all = peak({});
  EXPECT_LT(peak({"--model.recompute=true"}), all / 2);
  EXPECT_LT(peak({"--batch.micro=4"}), 6 * all / 10);
  EXPECT_GT(peak({"--batch.micro=4"}), 4 * all / 10);
  EXPECT_LT(peak({"--precision.compute=bf16"}), 65 * all / 100);
  EXPECT_LT(peak({"--precision.store_activations=attention,ffn,experts,norm"}), 55 * all / 100);
}

TEST(PlanMemory, WorstRoutingIsBoundedByCapacity) {
  const RunConfig free = config_of("bench-s.ini");
  const parallel::ParallelDims dims{.dp = 2, .ep = 2};
  const RoutedRows even = even_rows(free.roles[0].model, dims, 2048);
  EXPECT_EQ(even.computed, 2048 * 4);
  EXPECT_EQ(even.sent, 2048 * 2);
  const RoutedRows worst = worst_rows(free.roles[0].model, dims, 2048, 256);
  EXPECT_EQ(worst.computed, 2 * 2048 * 4);
  EXPECT_EQ(worst.sent, 0);
  EXPECT_EQ(worst.received, 2048 * 4);
  const RunConfig bounded = config_of("bench-s.ini", {"--moe.capacity_factor=1"});
  EXPECT_EQ(worst_rows(bounded.roles[0].model, dims, 2048, 256).computed, 16 * 64 * 8);
  // A rank with fewer experts than a token has choices.
  const RoutedRows few = worst_rows(free.roles[0].model, {.dp = 128, .ep = 128}, 16, 256);
  EXPECT_EQ(few.computed, 128 * 16);
  EXPECT_EQ(few.sent, 16 * 3);
  const MemoryPlan plan = memory_of(free, 2);
  EXPECT_GT(plan.worst.peak, plan.activations.peak);
  EXPECT_EQ(memory_of(config_of("bench-s.ini", {"--parallel.ep=1"}), 2).worst.peak,
            memory_of(config_of("bench-s.ini", {"--parallel.ep=1"}), 2).activations.peak);
}

TEST(PlanTime, AddsUpByHand) {
  RunConfig config = config_of("bench-s.ini", {"--moe.experts=0", "--parallel.ep=1", "--moe.balance=none"});
  config.plan.flops_per_s = 1e9;
  config.plan.gemm_efficiency = 0.5;
  config.plan.link_bytes_per_s = 1e6;
  config.plan.ranks_per_node = 1;
  const parallel::ParallelDims dims = resolve_dims(config.roles[0], 2);
  const TrafficPlan traffic = plan_traffic(config, config.roles[0], dims);
  const TimePlan time = plan_time(config, config.roles[0], dims, traffic);
  // q, kv and o; attention over half of 256 positions, twice; gate, up and down; the head.
  const double token = 4 * (256 * 256 * 3 + 256 * 256 + 3 * 256 * 1024) + 256 * 8192;
  EXPECT_DOUBLE_EQ(time.flops, 6 * 4096 * token);
  EXPECT_DOUBLE_EQ(time.compute_s, time.flops / 2 / 0.5e9);
  double bytes = 0.0;
  for (const Exchange& exchange : traffic.exchanges) {
    bytes += static_cast<double>(exchange.bytes);
  }
  EXPECT_DOUBLE_EQ(time.link_s, bytes / 2 / 1e6);
  EXPECT_EQ(time.node_s, 0.0);
  EXPECT_DOUBLE_EQ(time.serial_s(), time.compute_s + time.link_s);
  EXPECT_LT(plan_time(config, config.roles[0], dims, with_all_overlap(traffic)).overlapped_s(),
            time.serial_s());
}

TEST(PlanOnPaper, TeacherOfOneTrillionThreeHundredBillion) {
  const RunConfig config = config_of("teacher-1.3t.ini");
  validate(config, 1024);
  EXPECT_EQ(planned_ranks(config, 1), 1024);
  const RoleConfig& role = config.roles[0];
  EXPECT_EQ(role.model.moe.num_experts, 128);
  EXPECT_EQ(role.model.moe.top_k, 4);
  const model::ParameterCount count = model::count_parameters(role.model);
  EXPECT_NEAR(static_cast<double>(count.total), 1.3e12, 0.005e12);
  EXPECT_NEAR(static_cast<double>(count.active), 52e9, 0.5e9);

  const parallel::ParallelDims dims = resolve_dims(role, 1024);
  const MemoryPlan memory = plan_memory(config, role, dims);
  EXPECT_GT(memory.total(), 80e9);  // does not fit a GPU of 80 GB
  EXPECT_LT(memory.total(), 141e9);
  EXPECT_LT(memory.worst_total(), 141e9);
  // Shards of all ranks are the whole model once: 12 bytes a parameter of master weights and moments.
  EXPECT_NEAR(static_cast<double>(memory.optimizer) * 1024, 12.0 * static_cast<double>(count.total),
              1e-3 * 12 * 1.3e12);
  EXPECT_NO_THROW(check_memory(config, memory, 1, 1));  // plan.memory_bytes counts, not this machine

  const TrafficPlan traffic = plan_traffic(config, role, dims);
  for (const Traffic purpose : {Traffic::dispatch, Traffic::combine, Traffic::grad_dense,
                                Traffic::grad_expert, Traffic::param_gather, Traffic::other}) {
    EXPECT_GT(traffic.bytes(purpose), 0);
  }
  // Three passes (forward, again, backward): each row in 8,192 codes and 64 scales of 4 bytes.
  const double rows = 8388608.0 * 4 * 127 / 128 * 64 * 3;
  EXPECT_NEAR(static_cast<double>(traffic.bytes(Traffic::dispatch)), rows * (8192 + 256), 1e-3 * rows * 8448);
  const TimePlan time = plan_time(config, role, dims, traffic);
  // 6 FLOP for each active parameter and token but the embedding's, 2 more for the second forward, attention.
  EXPECT_NEAR(time.flops, 8 * 52e9 * 8388608, 0.1 * 8 * 52e9 * 8388608);
  EXPECT_GT(time.serial_s(), time.compute_s);
  const std::string text = describe_plan(config, role, dims);
  for (const char* part : {"dp 128 x tp 8, ep 128 (expert-data 8)", "memory of a rank", "param_gather",
                           "expected time of a step"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  }
}

}  // namespace
}  // namespace athanor::config
