#include "kernels/bodies/routing.hpp"
#include "kernels/cuda/device_team.cuh"

namespace athanor::kernels::cuda {

template <typename A>
void choose_experts(const A* scores_TE, const A* bias_E, std::int64_t tokens, const ChoiceShape& shape,
                    std::int64_t* ids_TK, device::StreamHandle stream) {
  launch_rows(bodies::ChooseExpertsRow<A>{scores_TE, bias_E, shape, ids_TK}, tokens, stream,
              "choose_experts");
}

template <typename A>
void normalised_gates(const A* y_TE, const std::int64_t* ids_TK, std::int64_t tokens, std::int64_t experts,
                      std::int64_t choices, A* gates_TK, device::StreamHandle stream) {
  launch_rows(bodies::NormalisedGatesRow<A>{y_TE, ids_TK, experts, choices, gates_TK}, tokens, stream,
              "normalised_gates");
}

template <typename A>
void router_sums(const A* y_TE, const A* normalised_TE, std::int64_t tokens, std::int64_t tokens_per_sequence,
                 std::int64_t experts, double* score_sums_BE, A* lse_T, double* entropy_T, RouterSums* sums,
                 device::StreamHandle stream) {
  if (tokens == 0) {
    return;
  }
  launch_rows(bodies::RouterStatisticsRow<A>{y_TE, normalised_TE, experts, lse_T, entropy_T}, tokens, stream,
              "router_sums");
  launch_rows(bodies::RouterSumsOfTokens<A>{lse_T, entropy_T, tokens, sums}, 1, stream, "router_sums");
  launch_column_step(bodies::ScoreSumColumn<A>{normalised_TE, experts, score_sums_BE},
                     {tokens, experts, tokens_per_sequence}, stream, "router_sums");
}

template <typename A>
void add_balance_gradient(const A* normalised_TE, const A* coefficients, std::int64_t coefficient_rows,
                          std::int64_t tokens, std::int64_t tokens_per_sequence, std::int64_t experts,
                          A scale, A* dy_TE, device::StreamHandle stream) {
  launch_rows(bodies::BalanceGradientRow<A>{normalised_TE, coefficients, coefficient_rows,
                                            tokens_per_sequence, experts, scale, dy_TE},
              tokens, stream, "add_balance_gradient");
}

template <typename A>
void add_gate_gradient(GateKind kind, const A* gates_TK, const A* dgates_TK, const std::int64_t* ids_TK,
                       const A* normalised_TE, std::int64_t tokens, std::int64_t experts,
                       std::int64_t choices, A* dy_TE, device::StreamHandle stream) {
  launch_rows(
      bodies::GateGradientRow<A>{kind, gates_TK, dgates_TK, ids_TK, normalised_TE, experts, choices, dy_TE},
      tokens, stream, "add_gate_gradient");
}

#define ATHANOR_INSTANTIATE(A)                                                                               \
  template void choose_experts<A>(const A*, const A*, std::int64_t, const ChoiceShape&, std::int64_t*,       \
                                  device::StreamHandle);                                                     \
  template void normalised_gates<A>(const A*, const std::int64_t*, std::int64_t, std::int64_t, std::int64_t, \
                                    A*, device::StreamHandle);                                               \
  template void router_sums<A>(const A*, const A*, std::int64_t, std::int64_t, std::int64_t, double*, A*,    \
                               double*, RouterSums*, device::StreamHandle);                                  \
  template void add_balance_gradient<A>(const A*, const A*, std::int64_t, std::int64_t, std::int64_t,        \
                                        std::int64_t, A, A*, device::StreamHandle);                          \
  template void add_gate_gradient<A>(GateKind, const A*, const A*, const std::int64_t*, const A*,            \
                                     std::int64_t, std::int64_t, std::int64_t, A*, device::StreamHandle);
ATHANOR_INSTANTIATE(float)
ATHANOR_INSTANTIATE(double)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::kernels::cuda
