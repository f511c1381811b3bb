#include "parallel/process_grid.hpp"

#include <utility>

#include <fmt/format.h>

#include "base/error.hpp"

namespace athanor::parallel {
namespace {

std::string factors_text(const ParallelDims& dims) {
  return fmt::format("pp {} x dp {} x cp {} x tp {} = {} ranks, ep {}", dims.pp, dims.dp, dims.cp, dims.tp,
                     dims.num_ranks(), dims.ep);
}

void check_positive(const char* option, int value) {
  if (value < 1) {
    throw base::ConfigError("{}={} (a degree of parallelism counts ranks) choose 1 or more", option, value);
  }
}

}  // namespace

void ParallelDims::validate(int role_size) const {
  check_positive("parallel.tp", tp);
  check_positive("parallel.ep", ep);
  if (pp != 1 || cp != 1) {
    throw base::ConfigError(
        "pipeline degree {} and context degree {} (only 1 is supported for both) set them to 1", pp, cp);
  }
  if (dp < 1 || num_ranks() != role_size) {
    throw base::ConfigError(
        "the degrees of parallelism do not fit {} ranks ({}; dp is ranks / parallel.tp) choose "
        "parallel.tp={} so that "
        "it divides the number of ranks",
        role_size, factors_text(*this), tp);
  }
  if ((dp * tp) % ep != 0) {
    throw base::ConfigError(
        "parallel.ep={} does not divide the {} ranks of the role ({}; every expert-parallel group takes ep "
        "of the "
        "dp x tp ranks) choose a divisor of {}",
        ep, dp * tp, factors_text(*this), dp * tp);
  }
}

ParallelDims ParallelDims::from_role_size(int role_size, int tp, int ep) {
  check_positive("parallel.tp", tp);
  check_positive("parallel.ep", ep);
  ParallelDims dims;
  dims.tp = tp;
  dims.ep = ep;
  if (role_size < 1 || role_size % tp != 0) {
    throw base::ConfigError(
        "parallel.tp={} does not divide the {} ranks of the role (ranks = pp 1 x dp x cp 1 x tp {}, ep {}, "
        "with dp a "
        "whole number) choose a divisor of {}, or another number of ranks",
        tp, role_size, tp, ep, role_size);
  }
  dims.dp = role_size / tp;
  dims.validate(role_size);
  return dims;
}

RankCoordinates RankCoordinates::of(const ParallelDims& dims, int role_rank) {
  ATHANOR_CHECK(role_rank >= 0 && role_rank < dims.num_ranks(), "rank {} of a grid of {}", role_rank,
                dims.num_ranks());
  RankCoordinates at;
  at.tp_rank = role_rank % dims.tp;
  at.cp_rank = role_rank / dims.tp % dims.cp;
  at.dp_rank = role_rank / (dims.tp * dims.cp) % dims.dp;
  at.pp_rank = role_rank / (dims.tp * dims.cp * dims.dp);
  const int plane_rank = at.dp_rank * dims.tp + at.tp_rank;
  at.ep_rank = plane_rank % dims.ep;
  at.expert_data_rank = plane_rank / dims.ep;
  return at;
}

ProcessGrid::ProcessGrid() = default;

ProcessGrid::ProcessGrid(const ParallelDims& dims, const Communicator& role) : dims_(dims) {
  dims_.validate(role.size());
  coordinates_ = RankCoordinates::of(dims_, role.rank());
  const RankCoordinates& c = coordinates_;
  role_ = role.duplicate("role");
  // The color numbers the groups of an axis: all other coordinates of the rank. One order on all ranks.
  const auto make = [&](Axis axis, int color, int key, const char* name) {
    axes_[static_cast<std::size_t>(axis)] = role.split(color, key, name);
  };
  const int plane = c.pp_rank * dims_.cp + c.cp_rank;
  make(Axis::pipeline, (c.dp_rank * dims_.cp + c.cp_rank) * dims_.tp + c.tp_rank, c.pp_rank, "pp");
  make(Axis::data, plane * dims_.tp + c.tp_rank, c.dp_rank, "dp");
  make(Axis::context, (c.pp_rank * dims_.dp + c.dp_rank) * dims_.tp + c.tp_rank, c.cp_rank, "cp");
  make(Axis::tensor, plane * dims_.dp + c.dp_rank, c.tp_rank, "tp");
  const int expert_groups = dims_.dp * dims_.tp / dims_.ep;
  make(Axis::expert, plane * expert_groups + c.expert_data_rank, c.ep_rank, "ep");
  make(Axis::expert_data, plane * dims_.ep + c.ep_rank, c.expert_data_rank, "expert_data");
}

std::string ProcessGrid::describe() const {
  return fmt::format("dp {} x tp {}, ep {} (expert-data {})", dims_.dp, dims_.tp, dims_.ep,
                     dims_.dp * dims_.tp / dims_.ep);
}

RoleSplit::RoleSplit(const Communicator& world, std::vector<RoleRanks> roles) : roles_(std::move(roles)) {
  int total = 0;
  std::string parts;
  for (std::size_t i = 0; i < roles_.size(); ++i) {
    check_positive((roles_[i].name + ".ranks").c_str(), roles_[i].ranks);
    if (world.rank() >= total) {
      role_index_ = static_cast<int>(i);
    }
    total += roles_[i].ranks;
    parts += fmt::format("{}{} {}", i == 0 ? "" : " + ", roles_[i].name, roles_[i].ranks);
  }
  if (total != world.size()) {
    throw base::ConfigError(
        "the roles need {} ranks but {} were started ({}) change the roles' ranks or the number of processes",
        total, world.size(), parts);
  }
  comm_ = world.split(role_index_, world.rank(), role().name);
}

int RoleSplit::first_world_rank(int index) const {
  ATHANOR_CHECK(index >= 0 && index < static_cast<int>(roles_.size()), "role {} of {}", index, roles_.size());
  int first = 0;
  for (int i = 0; i < index; ++i) {
    first += roles_[static_cast<std::size_t>(i)].ranks;
  }
  return first;
}

}  // namespace athanor::parallel
