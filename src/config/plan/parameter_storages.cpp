#include "config/plan/parameter_storages.hpp"

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "optim/optim_options.hpp"
#include "parallel/shard_spec.hpp"

namespace athanor::config {
namespace {

enum class Split { none, tensor, key_value, expert };

// One parameter: `units` of its dimension `split` of `width` elements each.
struct Shape {
  Split split = Split::none;
  std::int64_t units = 1;
  std::int64_t width = 1;
  bool decays = true;
};

class Collector {
 public:
  Collector(const parallel::ParallelDims& dims, int role_rank) : dims_(dims), rank_(role_rank) {}

  void add(const Shape& shape) {
    const std::vector<int>& holders = holders_of(shape);
    const auto key = std::tuple(holders, shape.split == Split::expert, shape.decays);
    sizes_[key].push_back(block_of(shape, rank_).count * shape.width);
  }

  std::vector<ParameterStorage> storages() const {
    std::vector<ParameterStorage> result;
    const std::int64_t bucket = optim::OptimOptions{}.bucket_elements;
    for (const auto& [key, numels] : sizes_) {
      const std::vector<int>& holders = std::get<0>(key);
      result.push_back({std::get<1>(key), holders,
                        optim::FlatLayout(numels, static_cast<std::int64_t>(holders.size()), bucket)});
    }
    return result;
  }

 private:
  parallel::Block block_of(const Shape& shape, int rank) const {
    const parallel::RankCoordinates at = parallel::RankCoordinates::of(dims_, rank);
    switch (shape.split) {
      case Split::none:
        return {0, shape.units};
      case Split::tensor:
        return parallel::block_of(shape.units, dims_.tp, at.tp_rank);
      case Split::key_value:
        return shape.units >= dims_.tp ? parallel::block_of(shape.units, dims_.tp, at.tp_rank)
                                       : parallel::Block{at.tp_rank * shape.units / dims_.tp, 1};
      case Split::expert:
        return parallel::block_of(shape.units, dims_.ep, at.ep_rank);
    }
    return {};
  }

  // Ranks with the same block. Empty slices are all alike, wherever they lie.
  const std::vector<int>& holders_of(const Shape& shape) {
    const auto [entry, is_new] = holders_.try_emplace({shape.split, shape.units});
    if (is_new) {
      const parallel::Block own = block_of(shape, rank_);
      for (int rank = 0; rank < dims_.num_ranks(); ++rank) {
        const parallel::Block other = block_of(shape, rank);
        if (other.count == own.count && (own.count == 0 || other.first == own.first)) {
          entry->second.push_back(rank);
        }
      }
    }
    return entry->second;
  }

  const parallel::ParallelDims& dims_;
  int rank_;
  std::map<std::pair<Split, std::int64_t>, std::vector<int>> holders_;
  std::map<std::tuple<std::vector<int>, bool, bool>, std::vector<std::int64_t>> sizes_;
};

void add_attention(Collector& collector, const model::TransformerConfig& model) {
  const std::int64_t head = model.resolved_head_dim() * model.hidden;
  collector.add({Split::tensor, model.heads, head});
  collector.add({Split::tensor, model.heads, head});
  collector.add({Split::key_value, model.kv_heads, 2 * head});
  for (int i = 0; model.qk_norm && i < 2; ++i) {
    collector.add({Split::none, 1, model.resolved_head_dim(), false});
  }
}

void add_feed_forward(Collector& collector, std::int64_t hidden, std::int64_t ffn) {
  collector.add({Split::tensor, ffn, 2 * hidden});
  collector.add({Split::tensor, ffn, hidden});
}

void add_layer(Collector& collector, const model::TransformerConfig& model, const model::LayerSpec& layer) {
  const Shape norm{Split::none, 1, model.hidden, false};
  collector.add(norm);
  collector.add(norm);
  add_attention(collector, model);
  if (layer.ffn == model::FfnKind::dense) {
    add_feed_forward(collector, model.hidden, model.ffn);
    return;
  }
  const moe::MoeOptions& moe = model.moe;
  collector.add({Split::none, moe.num_experts, model.hidden});
  collector.add({Split::expert, moe.num_experts, 2 * moe.ffn * model.hidden});
  collector.add({Split::expert, moe.num_experts, moe.ffn * model.hidden});
  if (moe.shared_experts > 0) {
    add_feed_forward(collector, model.hidden, moe.shared_experts * moe.ffn);
  }
}

}  // namespace

std::vector<ParameterStorage> parameter_storages(const model::TransformerConfig& model,
                                                 const parallel::ParallelDims& dims, int role_rank,
                                                 const std::vector<std::int64_t>& extra) {
  Collector collector(dims, role_rank);
  for (int i = 0; i < (model.tie_embeddings ? 1 : 2); ++i) {
    collector.add({Split::tensor, model.vocab_size, model.hidden});
  }
  collector.add({Split::none, 1, model.hidden, false});
  for (const model::LayerSpec& layer : model::resolve_layers(model)) {
    add_layer(collector, model, layer);
  }
  for (const std::int64_t numel : extra) {
    collector.add({Split::none, 1, numel});
  }
  return collector.storages();
}

}  // namespace athanor::config
