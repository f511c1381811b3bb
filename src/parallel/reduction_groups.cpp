#include "parallel/reduction_groups.hpp"

#include <map>
#include <string>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "base/error.hpp"
#include "base/hash.hpp"
#include "parallel/collectives/collectives.hpp"

namespace athanor::parallel {
namespace {

using Parameters = std::vector<std::shared_ptr<Parameter>>;

std::int64_t hash_of(const std::string& name, const std::vector<std::int64_t>& numbers) {
  const std::string text = fmt::format("{}:{}", name, fmt::join(numbers, ","));
  return static_cast<std::int64_t>(base::hash_string(text));
}

// The logical tensor: must be the same on all ranks.
std::int64_t identity_hash(const Parameter& parameter) {
  return hash_of(parameter.name, parameter.shard.global_shape);
}

// The slice of it: equal where the gradient is to be summed. An empty slice holds nothing wherever it lies,
// so all ranks with one are holders of the same (empty) slice.
std::int64_t slice_hash(const Parameter& parameter) {
  std::vector<std::int64_t> numbers;
  if (parameter.shard.local_numel() > 0) {
    numbers = parameter.shard.offset;
    numbers.insert(numbers.end(), parameter.shard.local_shape.begin(), parameter.shard.local_shape.end());
  }
  return hash_of(parameter.name, numbers);
}

// [ranks, parameters] of a hash of each parameter.
template <typename Hash>
at::Tensor gather_hashes(const Parameters& parameters, const Communicator& role, Hash hash) {
  at::Tensor own = at::empty({1, static_cast<std::int64_t>(parameters.size())}, at::kLong);
  for (std::size_t p = 0; p < parameters.size(); ++p) {
    own.mutable_data_ptr<std::int64_t>()[p] = hash(*parameters[p]);
  }
  return all_gather(own, role, Traffic::other);
}

// Throws on every rank alike, because every rank sees every rank's numbers.
void check_equal_counts(const Parameters& parameters, const Communicator& role) {
  const auto own = static_cast<std::int64_t>(parameters.size());
  const at::Tensor counts = all_gather(at::full({1}, own, at::kLong), role, Traffic::other);
  const auto* count = counts.const_data_ptr<std::int64_t>();
  for (int r = 1; r < role.size(); ++r) {
    if (count[r] != count[0]) {
      throw base::CommError(
          "the ranks of group {} have different models (rank 0 has {} trainable parameters, rank {} has {}) "
          "start all "
          "ranks with one configuration",
          role.name(), count[0], r, count[r]);
    }
  }
}

void check_equal_names(const Parameters& parameters, const Communicator& role) {
  const at::Tensor hashes = gather_hashes(parameters, role, identity_hash);
  const auto* hash = hashes.const_data_ptr<std::int64_t>();
  const std::size_t count = parameters.size();
  for (std::size_t p = 0; p < count; ++p) {
    for (int r = 1; r < role.size(); ++r) {
      if (hash[static_cast<std::size_t>(r) * count + p] != hash[p]) {
        throw base::CommError(
            "the ranks of group {} have different models (parameter {}, here {} of shape [{}], has another "
            "name or "
            "shape on rank {} than on rank 0) start all ranks with one configuration",
            role.name(), p, parameters[p]->name, fmt::join(parameters[p]->shard.global_shape, ", "), r);
      }
    }
  }
}

// For each rank the lowest rank with the same slice of parameter `p`.
std::vector<int> holders(const at::Tensor& slice_hashes, std::size_t p) {
  const auto* hash = slice_hashes.const_data_ptr<std::int64_t>();
  const auto count = static_cast<std::size_t>(slice_hashes.size(1));
  std::vector<int> first_holder;
  std::map<std::int64_t, int> first_with;
  for (int r = 0; r < static_cast<int>(slice_hashes.size(0)); ++r) {
    first_holder.push_back(
        first_with.emplace(hash[static_cast<std::size_t>(r) * count + p], r).first->second);
  }
  return first_holder;
}

}  // namespace

std::vector<ReductionGroup> build_reduction_groups(const ParameterMap& parameters, const Communicator& role) {
  Parameters trainable;
  for (const auto& parameter : parameters.all()) {
    if (parameter->trainable) {
      trainable.push_back(parameter);
    }
  }
  check_equal_counts(trainable, role);
  check_equal_names(trainable, role);
  const at::Tensor slices = gather_hashes(trainable, role, slice_hash);

  // Every rank sees the same partitions in the same order, so the splits below are collective in one order.
  std::vector<ReductionGroup> groups;
  std::map<std::vector<int>, std::size_t> group_of;
  for (std::size_t p = 0; p < trainable.size(); ++p) {
    const std::vector<int> partition = holders(slices, p);
    const auto [entry, is_new] = group_of.emplace(partition, groups.size());
    if (is_new) {
      const int color = partition[static_cast<std::size_t>(role.rank())];
      groups.push_back({role.split(color, role.rank(), fmt::format("reduce{}", groups.size())), {}});
    }
    groups[entry->second].parameters.push_back(trainable[p]);
  }
  return groups;
}

}  // namespace athanor::parallel
