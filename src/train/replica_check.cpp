#include "train/replica_check.hpp"

#include <fmt/format.h>

#include <ATen/ATen.h>

#include <algorithm>
#include <cstddef>
#include <map>

#include "base/hash.hpp"
#include "parallel/collectives/collectives.hpp"

namespace athanor::train {
namespace {

// What all members of a group know of one another: [ranks][parameters].
struct GroupHashes {
  std::vector<int> role_ranks;
  std::vector<std::vector<std::uint64_t>> now;
  std::vector<std::vector<bool>> is_same;
};

GroupHashes gather_hashes(const std::vector<std::uint64_t>& now, const std::vector<std::uint64_t>* before,
                          int role_rank, const parallel::Communicator& comm) {
  const auto count = static_cast<std::int64_t>(now.size());
  at::Tensor mine = at::empty({1, 2 * count + 1}, at::kLong);
  auto* value = mine.mutable_data_ptr<std::int64_t>();
  *value++ = role_rank;
  for (std::size_t i = 0; i < now.size(); ++i) {
    value[2 * i] = static_cast<std::int64_t>(now[i]);
    value[2 * i + 1] = before == nullptr || (*before)[i] == now[i] ? 1 : 0;
  }
  const at::Tensor all = parallel::all_gather(mine, comm, parallel::Traffic::other);
  GroupHashes gathered;
  for (std::int64_t rank = 0; rank < comm.size(); ++rank) {
    const std::int64_t* row = all.const_data_ptr<std::int64_t>() + rank * (2 * count + 1);
    gathered.role_ranks.push_back(static_cast<int>(*row++));
    gathered.now.emplace_back();
    gathered.is_same.emplace_back();
    for (std::int64_t i = 0; i < count; ++i) {
      gathered.now.back().push_back(static_cast<std::uint64_t>(row[2 * i]));
      gathered.is_same.back().push_back(row[2 * i + 1] == 1);
    }
  }
  return gathered;
}

// One number instead of the table, in the usual case that all is well.
bool all_agree(const std::vector<std::uint64_t>& now, const std::vector<std::uint64_t>* before,
               const parallel::Communicator& comm) {
  const bool is_same = before == nullptr || *before == now;
  if (comm.size() == 1) {
    return is_same;
  }
  const std::uint64_t mine = base::hash_bytes(now.data(), now.size() * sizeof(std::uint64_t));
  at::Tensor numbers = at::empty({1, 2}, at::kLong);
  numbers.mutable_data_ptr<std::int64_t>()[0] = static_cast<std::int64_t>(mine);
  numbers.mutable_data_ptr<std::int64_t>()[1] = is_same ? 1 : 0;
  const at::Tensor all = parallel::all_gather(numbers, comm, parallel::Traffic::other);
  const auto* row = all.const_data_ptr<std::int64_t>();
  bool agree = true;
  for (std::int64_t rank = 0; rank < comm.size(); ++rank) {
    agree = agree && row[2 * rank] == row[0] && row[2 * rank + 1] == 1;
  }
  return agree;
}

}  // namespace

int choose_source(const std::vector<std::uint64_t>& hashes, const std::vector<bool>& is_same) {
  std::map<std::uint64_t, std::pair<int, int>> votes;  // hash -> how many, the lowest holder
  for (std::size_t holder = 0; holder < hashes.size(); ++holder) {
    if (is_same[holder]) {
      auto [vote, is_new] = votes.try_emplace(hashes[holder], 0, static_cast<int>(holder));
      ++vote->second.first;
    }
  }
  int source = -1;
  int most = 0;
  for (const auto& [hash, vote] : votes) {
    if (vote.first > most) {
      most = vote.first;
      source = vote.second;
    } else if (vote.first == most) {
      source = -1;
    }
  }
  return source;
}

ReplicaCheck::ReplicaCheck(const std::vector<parallel::ReductionGroup>& groups,
                           const parallel::Communicator& role)
    : groups_(&groups), role_(&role) {}

ReplicaCheck::Hashes ReplicaCheck::hash_group(const parallel::ReductionGroup& group) const {
  Hashes hashes;
  hashes.reserve(group.parameters.size());
  for (const auto& parameter : group.parameters) {
    parameter->wait_until_readable();
    const at::Tensor value = parameter->value.detach().contiguous();
    hashes.push_back(base::hash_bytes(value.const_data_ptr(), value.nbytes()));
  }
  return hashes;
}

void ReplicaCheck::remember() {
  remembered_.clear();
  for (const parallel::ReductionGroup& group : *groups_) {
    remembered_.push_back(hash_group(group));
  }
}

// All members of a group come to the same result; its first one counts and tells it.
std::string ReplicaCheck::compare(const parallel::ReductionGroup& group, const Hashes& now,
                                  const Hashes* before, Result& result) const {
  const GroupHashes gathered = gather_hashes(now, before, role_->rank(), group.comm);
  const at::NoGradGuard no_grad;
  std::string text;
  for (std::size_t i = 0; i < now.size(); ++i) {
    std::vector<std::uint64_t> hashes;
    std::vector<bool> is_same;
    for (std::size_t rank = 0; rank < gathered.now.size(); ++rank) {
      hashes.push_back(gathered.now[rank][i]);
      is_same.push_back(gathered.is_same[rank][i]);
    }
    const int source = choose_source(hashes, is_same);
    std::vector<int> damaged;  // role ranks
    for (std::size_t rank = 0; rank < hashes.size(); ++rank) {
      const bool is_whole = source >= 0 && hashes[rank] == hashes[static_cast<std::size_t>(source)];
      if (!is_whole) {
        damaged.push_back(gathered.role_ranks[rank]);
      }
    }
    if (damaged.empty()) {
      continue;
    }
    text += fmt::format("{}{} of rank {}", text.empty() ? "" : ", ", group.parameters[i]->name,
                        fmt::join(damaged, " and "));
    if (source < 0) {
      result.unrepaired += static_cast<std::int64_t>(damaged.size());
      text += group.comm.size() == 1 ? " (nobody else holds it)" : " (no majority)";
      continue;
    }
    at::Tensor value = group.parameters[i]->value.detach();
    parallel::broadcast_(value, source, group.comm, parallel::Traffic::other);
    result.repaired += static_cast<std::int64_t>(damaged.size());
  }
  return group.comm.rank() == 0 ? text : "";
}

ReplicaCheck::Result ReplicaCheck::check() {
  Result mine;
  std::string text;
  for (std::size_t i = 0; i < groups_->size(); ++i) {
    const parallel::ReductionGroup& group = (*groups_)[i];
    const Hashes now = hash_group(group);
    const Hashes* before = remembered_.empty() ? nullptr : &remembered_[i];
    if (all_agree(now, before, group.comm)) {
      continue;
    }
    Result of_group;
    const std::string told = compare(group, now, before, of_group);
    if (group.comm.rank() == 0) {
      mine.repaired += of_group.repaired;
      mine.unrepaired += of_group.unrepaired;
      text += (text.empty() || told.empty() ? "" : ", ") + told;
    }
  }
  Result result;
  if (parallel::all_reduce_max(mine.repaired + mine.unrepaired, *role_) == 0) {
    return result;
  }
  result.repaired = parallel::all_reduce_sum(mine.repaired, *role_);
  result.unrepaired = parallel::all_reduce_sum(mine.unrepaired, *role_);
  for (const std::string& part : parallel::all_gather_strings(text, *role_)) {
    result.text += (result.text.empty() || part.empty() ? "" : ", ") + part;
  }
  return result;
}

}  // namespace athanor::train
