#include "config/plan/traffic_plan.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "config/distill_plan.hpp"
#include "config/plan/element_bytes.hpp"
#include "config/plan/memory_plan.hpp"
#include "config/plan/parameter_storages.hpp"
#include "config/recording_plan.hpp"
#include "config/validate.hpp"
#include "nn/token_batch.hpp"
#include "nn/vocab_parallel.hpp"

namespace athanor::config {
namespace {

using parallel::Traffic;

// Numbers that all ranks sum when a step begins, and with the gradient's norm (optim::SquareSum).
constexpr std::int64_t opening_counts = 3;
constexpr std::int64_t norm_numbers = 68;

std::vector<int> strided(int count, int stride) {
  std::vector<int> ranks(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) {
    ranks[static_cast<std::size_t>(i)] = i * stride;
  }
  return ranks;
}

class Planner {
 public:
  Planner(const RunConfig& config, const RoleConfig& role, const parallel::ParallelDims& dims)
      : config_(config),
        role_(role),
        model_(role.model),
        dims_(dims),
        trains_(is_trained(config, role)),
        ranks_(dims.num_ranks()),
        element_(compute_bytes(role.precision.compute)),
        layers_(model::resolve_layers(role.model)),
        micro_(resolve_micro_batch(config, role, dims)),
        micros_(std::max<std::int64_t>(config.batch.global / dims.dp / micro_, 1)) {}

  TrafficPlan run() {
    if (model_.moe.num_experts > 0) {
      add_rows();
      add_router();
    }
    add_tensor_parallel();
    if (trains_) {
      add_gradients();
    }
    add("2 (n - 1) (3 + 68) 8: counts and norm", Traffic::other,
        all_reduce(opening_counts + (trains_ ? norm_numbers : 0), ranks_) * 8, strided(ranks_, 1), false);
    add_link();
    return std::move(plan_);
  }

 private:
  // Exchanges of nothing are left out.
  void add(std::string formula, Traffic purpose, std::int64_t bytes, const std::vector<int>& group,
           bool can_hide) {
    if (bytes > 0) {
      plan_.exchanges.push_back({purpose, std::move(formula), bytes, between_nodes(group), can_hide});
    }
  }

  // Share of the other ranks of a group that are on other nodes than its first.
  double between_nodes(const std::vector<int>& group) const {
    const int node = config_.plan.ranks_per_node;
    if (node == 0 || group.size() < 2) {
      return 0.0;
    }
    const auto away =
        std::ranges::count_if(group, [&](int rank) { return rank / node != group.front() / node; });
    return static_cast<double>(away) / static_cast<double>(group.size() - 1);
  }

  // Elements that the ranks of a group send together to sum `elements`.
  static std::int64_t all_reduce(std::int64_t elements, std::int64_t ranks) {
    return 2 * (ranks - 1) * elements;
  }

  std::int64_t sparse_layers() const {
    return std::ranges::count_if(
        layers_, [](const model::LayerSpec& layer) { return layer.ffn == model::FfnKind::sparse; });
  }
  // A recomputed layer runs forward twice.
  std::int64_t forwards() const { return trains_ && model_.recompute ? 2 : 1; }
  std::int64_t backwards() const { return trains_ ? 1 : 0; }

  void add_rows() {
    const base::ComputeType compute = role_.precision.compute;
    const std::int64_t passes = forwards() + backwards();
    const std::int64_t choices = config_.batch.global * config_.batch.seq * model_.moe.top_k;
    const std::int64_t rows = choices / dims_.ep * (dims_.ep - 1) * sparse_layers() * passes;
    const std::int64_t counts = ranks_ * (model_.moe.num_experts - model_.moe.num_experts / dims_.ep) * 8 *
                                sparse_layers() * forwards() * micros_;
    const std::vector<int> group = strided(dims_.ep, 1);
    const std::int64_t tokens = wire_row_bytes(model_.hidden, role_.precision.dispatch_comm, compute);
    const std::int64_t results = wire_row_bytes(model_.hidden, role_.precision.combine_comm, compute);
    const bool can_hide = model_.moe.dispatch_chunks > 1;
    if (dims_.ep > 1) {
      add("T k (ep - 1) / ep x row, layers x passes, + counts", Traffic::dispatch, rows * tokens + counts,
          group, can_hide);
      add("T k (ep - 1) / ep x row, layers x passes", Traffic::combine, rows * results, group, can_hide);
    }
  }

  void add_router() {
    const moe::MoeOptions& moe = model_.moe;
    const std::int64_t passes = sparse_layers() * forwards() * micros_;
    const bool counts_now = moe.balance_counts == moe::BalanceCounts::micro_step && trains_ &&
                            (moe.uses(moe::BalanceKind::squared) || moe.uses(moe::BalanceKind::switch_loss));
    if (counts_now) {
      add("2 (n - 1) (E + 1) 8: counts of a micro-step", Traffic::other,
          all_reduce(moe.num_experts + 1, ranks_) * 8 * passes, strided(ranks_, 1), false);
    }
    const std::vector<int> tensor = strided(dims_.tp, 1);
    if (moe.uses(moe::BalanceKind::sequence)) {
      add("2 (tp - 1) B E 8: counts of sequences", Traffic::other,
          all_reduce(micro_ * moe.num_experts, dims_.tp) * dims_.dp * 8 * passes, tensor, false);
    }
    if (moe.capacity_factor > 0) {
      const std::int64_t number = 8 + accumulation_bytes(role_.precision.compute);
      const std::int64_t own = micro_ * nn::padded_sequence(config_.batch.seq, dims_.tp) / dims_.tp;
      add("(tp - 1) T k (8 + 4): choices of whole sequences", Traffic::other,
          own * moe.top_k * number * (dims_.tp - 1) * ranks_ * passes, tensor, false);
    }
  }

  // Positions are gathered before, and sums scattered after, each block of matrices that tp divides.
  void add_tensor_parallel() {
    if (dims_.tp == 1) {
      return;
    }
    const std::int64_t all = micro_ * nn::padded_sequence(config_.batch.seq, dims_.tp);
    const std::int64_t one = all * model_.hidden * element_ / dims_.tp * (dims_.tp - 1);
    std::int64_t blocks = static_cast<std::int64_t>(layers_.size());  // attention
    for (const model::LayerSpec& layer : layers_) {
      blocks += layer.ffn == model::FfnKind::dense || model_.moe.shared_experts > 0 ? 1 : 0;
    }
    const std::int64_t layers = 2 * blocks * (forwards() + backwards());
    const std::int64_t ends = 2 * (1 + backwards());  // embedding and head
    const std::int64_t chunks = all * 3 * accumulation_bytes(role_.precision.compute) * (dims_.tp - 1);
    add("(tp - 1) / tp x tokens x hidden, 2 a block and pass, + softmax", Traffic::other,
        ((layers + ends) * one + chunks) * ranks_ * micros_, strided(dims_.tp, 1), false);
  }

  // Ranks of one tp rank hold slices of the same size.
  void add_gradients() {
    const base::ComputeType compute = role_.precision.compute;
    for (int tp_rank = 0; tp_rank < dims_.tp; ++tp_rank) {
      for (const ParameterStorage& storage :
           parameter_storages(model_, dims_, tp_rank, extra_parameters(config_, role_))) {
        const std::int64_t others = storage.num_holders() - 1;
        const std::int64_t shard = storage.layout.shard_total();
        const std::int64_t part = wire_gradient_bytes(shard, role_.precision.grad_comm, compute);
        const std::int64_t passes = role_.optim.zero == 0 ? 2 : 1;
        const Traffic purpose = storage.is_expert ? Traffic::grad_expert : Traffic::grad_dense;
        add("P (g - 1) / g x wire: to the owners of the sums", purpose, part * others * passes * dims_.dp,
            storage.holders, role_.optim.overlap_reduce);
        if (role_.optim.zero == 1) {
          add("P (g - 1) / g x compute type: from the owners", Traffic::param_gather,
              shard * element_ * others * dims_.dp, storage.holders, role_.optim.overlap_gather);
        }
      }
    }
  }

  void add_link() {
    if (!has_students(config_.command) || is_replay(config_) || role_.kind != parallel::RoleKind::teacher) {
      return;
    }
    for (std::size_t i = 1; i < config_.roles.size(); ++i) {
      const SignalBytes bytes = signal_bytes(config_, config_.roles[i]);
      const std::int64_t tokens = config_.batch.global * config_.batch.seq;
      add("tokens x signal + head: to " + config_.roles[i].name, Traffic::link,
          tokens * bytes.per_token() + bytes.head, {0, ranks_}, true);
    }
  }

  const RunConfig& config_;
  const RoleConfig& role_;
  const model::TransformerConfig& model_;
  const parallel::ParallelDims& dims_;
  bool trains_;
  int ranks_;
  std::int64_t element_;
  std::vector<model::LayerSpec> layers_;
  std::int64_t micro_;
  std::int64_t micros_;
  TrafficPlan plan_;
};

}  // namespace

std::int64_t TrafficPlan::bytes(Traffic purpose) const {
  std::int64_t sum = 0;
  for (const Exchange& exchange : exchanges) {
    sum += exchange.purpose == purpose ? exchange.bytes : 0;
  }
  return sum;
}

TrafficPlan plan_traffic(const RunConfig& config, const RoleConfig& role,
                         const parallel::ParallelDims& dims) {
  return Planner(config, role, dims).run();
}

}  // namespace athanor::config
