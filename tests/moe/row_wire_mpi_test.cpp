// Dispatch and combine with rows in bf16 and FP8: what is rounded and how often, the bytes, NaN, cold ranks.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <ATen/ATen.h>

#include "kernels/fp8.hpp"
#include "moe/detail/row_wire.hpp"
#include "moe/token_dispatcher.hpp"
#include "moe_fixture.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/process_grid.hpp"
#include "support/finite_difference.hpp"
#include "support/mpi_test.hpp"

namespace athanor::tests {
namespace {

using base::Fp8Format;
using base::WireType;
using moe::RowWire;
using parallel::Traffic;

constexpr std::int64_t experts_per_rank = 3;

at::Tensor through_fp8(const at::Tensor& rows, Fp8Format format) {
  const at::Tensor x = rows.to(at::kFloat).contiguous();
  const auto shape = kernels::Fp8Rows::apart(x.size(0), x.size(1));
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(x.numel()));
  std::vector<float> scales(static_cast<std::size_t>(x.size(0) * kernels::fp8_blocks(x.size(1))));
  kernels::Fp8Counts counts;
  kernels::reference::quantize_fp8_blocks(x.const_data_ptr<float>(), shape, format, codes.data(),
                                          scales.data(), counts);
  at::Tensor back = at::empty_like(x);
  kernels::reference::dequantize_fp8_blocks(codes.data(), scales.data(), shape, format,
                                            back.mutable_data_ptr<float>());
  return back.to(rows.scalar_type());
}

/// Rows [n, D] after one exchange between ranks.
at::Tensor through(const at::Tensor& rows, WireType wire, Fp8Format format) {
  if (world().size() == 1 || wire == WireType::full) {
    return rows;
  }
  return wire == WireType::bf16 ? rows.to(at::kBFloat16).to(rows.scalar_type()) : through_fp8(rows, format);
}

moe::Routing make_routing(std::int64_t tokens, std::int64_t choices) {
  const std::int64_t experts = experts_per_rank * world().size();
  moe::Routing routing;
  routing.topk_ids_TK = (at::arange(tokens * choices, at::kLong) * 7 + world().rank() * 2)
                            .remainder(experts)
                            .view({tokens, choices})
                            .contiguous();
  routing.gates_TK =
      random_tensor({tokens, choices}, static_cast<std::uint64_t>(world().rank()) + 1).to(at::kFloat);
  return routing;
}

struct Passed {
  at::Tensor y_TD, dx_TD, dgates_TK;
};

/// Dispatch and combine with experts that change nothing.
Passed pass(const moe::TokenDispatcher& dispatcher, const moe::Routing& routing, const at::Tensor& x_TD,
            const at::Tensor& seed_TD) {
  const auto plan = dispatcher.plan(routing);
  const at::Tensor x = x_TD.clone().requires_grad_();
  const at::Tensor gates = routing.gates_TK.clone().requires_grad_();
  const at::Tensor y = dispatcher.combine(dispatcher.dispatch(x, plan), gates, plan);
  y.backward(seed_TD);
  return {y.detach(), x.grad(), gates.grad()};
}

/// The same on paper: a remote choice is rounded on each way, straight through backward; an own one never.
Passed expected_pass(const RowWire& wire, const moe::Routing& routing, const at::Tensor& x_TD,
                     const at::Tensor& seed_TD) {
  const std::int64_t choices = routing.topk_ids_TK.size(1);
  const at::Tensor is_own =
      routing.topk_ids_TK.div(experts_per_rank, "floor").eq(world().rank()).unsqueeze(2);  // [T, K, 1]
  const at::Tensor there =
      through(through(x_TD, wire.dispatch, wire.fp8_format), wire.combine, wire.fp8_format);
  Passed expected{at::zeros_like(x_TD), at::zeros_like(x_TD), at::zeros_like(routing.gates_TK)};
  for (std::int64_t k = 0; k < choices; ++k) {
    const at::Tensor gate = routing.gates_TK.select(1, k).unsqueeze(1);
    const at::Tensor own = is_own.select(1, k);
    const at::Tensor row = at::where(own, x_TD, there);
    expected.y_TD += gate * row;
    expected.dgates_TK.select(1, k).copy_((row * seed_TD).sum(1));
    const at::Tensor drow = gate * seed_TD;
    const at::Tensor back =
        through(through(drow, wire.dispatch, wire.fp8_format), wire.combine, wire.fp8_format);
    expected.dx_TD += at::where(own, drow, back);
  }
  return expected;
}

std::vector<RowWire> all_wires() {
  std::vector<RowWire> wires;
  for (const WireType dispatch : {WireType::full, WireType::bf16, WireType::fp8}) {
    for (const WireType combine : {WireType::full, WireType::bf16}) {
      wires.push_back({dispatch, combine, Fp8Format::e4m3});
    }
  }
  wires.push_back({WireType::fp8, WireType::bf16, Fp8Format::e5m2});
  return wires;
}

TEST(RowWire, EachWayRoundsOnceAndOnlyWhatChangesRanks) {
  for (const RowWire& wire : all_wires()) {
    for (const std::int64_t width : {1, 130, 256}) {
      const std::int64_t tokens = world().rank() == 1 ? 0 : 9;  // one rank has none
      const moe::TokenDispatcher dispatcher(experts_per_rank * world().size(), world(), wire);
      const moe::Routing routing = make_routing(tokens, 2);
      const at::Tensor x = random_tensor({tokens, width}, 21).to(at::kFloat);
      const at::Tensor seed = random_tensor({tokens, width}, 22).to(at::kFloat);
      const Passed actual = pass(dispatcher, routing, x, seed);
      const Passed expected = expected_pass(wire, routing, x, seed);
      // f32 rounding alone; the widest rows add up to 256 numbers in dgates.
      expect_close(actual.y_TD, expected.y_TD, 1e-6, "y");
      expect_close(actual.dx_TD, expected.dx_TD, 1e-6, "dx");
      expect_close(actual.dgates_TK, expected.dgates_TK, 1e-5, "dgates");
    }
  }
}

TEST(RowWire, Bf16RowsTravelInBf16AsTheyAre) {
  const moe::Routing routing = make_routing(7, 2);
  const at::Tensor x = random_tensor({7, 64}, 23).to(at::kBFloat16);
  const auto rows_of = [&](const RowWire& wire) {
    const moe::TokenDispatcher dispatcher(experts_per_rank * world().size(), world(), wire);
    const auto plan = dispatcher.plan(routing);
    return dispatcher.combine(dispatcher.dispatch(x, plan), routing.gates_TK, plan);
  };
  const at::Tensor full = rows_of({});
  EXPECT_TRUE(rows_of({WireType::bf16, WireType::bf16}).equal(full));
  EXPECT_TRUE(
      at::allclose(rows_of({WireType::fp8, WireType::bf16}).to(at::kFloat), full.to(at::kFloat), 0.1, 0.2));
}

TEST(RowWire, NonFiniteTokensArriveAsSuch) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    const RowWire wire{WireType::fp8, WireType::bf16};
    const moe::TokenDispatcher dispatcher(experts_per_rank * world().size(), world(), wire);
    moe::Routing routing = make_routing(4, 2);
    routing.gates_TK.fill_(0.5);
    at::Tensor x = random_tensor({4, 256}, 24).to(at::kFloat);
    x[2][200] = bad;
    world().traffic().reset();
    const Passed passed = pass(dispatcher, routing, x, at::ones({4, 256}, at::kFloat));
    EXPECT_EQ(world().traffic().losses().nonfinite, world().size() == 1 ? 0 : 1);
    EXPECT_FALSE(std::isfinite(passed.y_TD[2][200].item<float>()));
    EXPECT_TRUE(at::isfinite(passed.y_TD[2].narrow(0, 0, 128)).all().item<bool>());  // the other block
    EXPECT_TRUE(at::isfinite(passed.y_TD[1]).all().item<bool>());
  }
}

/// Bytes of one forward and backward pass of a layer at the width and number of experts of the bench shape,
/// summed over the ranks.
struct Bytes {
  std::int64_t dispatch = 0;
  std::int64_t combine = 0;
};
Bytes bytes_of_layer(const RowWire& wire) {
  constexpr std::int64_t hidden = 256;
  constexpr std::int64_t sequences = 12;
  constexpr std::int64_t seq = 32;
  moe::MoeOptions options;
  options.num_experts = 128 / world().size() * world().size();
  options.top_k = 4;
  options.ffn = 4;
  options.wire = wire;
  const parallel::ProcessGrid grid(parallel::ParallelDims::from_role_size(world().size(), 1, world().size()),
                                   world());
  const LayerUnderTest test(options, hidden, grid, at::kFloat);
  const std::int64_t count = sequences / world().size();
  const nn::TokenBatch batch = make_batch(world().rank() * count, count, seq, seq);
  moe::MoeContext context = make_context(batch, sequences, seq);
  const at::Tensor x = random_tensor({count, seq, hidden}, 5).to(at::kFloat).requires_grad_();
  world().traffic().reset();
  test.layer->forward(x, context).y_BsD.sum().backward();
  const std::int64_t dispatch = world().traffic().bytes(Traffic::dispatch);
  const std::int64_t combine = world().traffic().bytes(Traffic::combine);
  return {parallel::all_reduce_sum(dispatch, world()), parallel::all_reduce_sum(combine, world())};
}

TEST(RowWire, BytesAreTheFormulasAndBelowTheirBounds) {
  const Bytes full = bytes_of_layer({});
  const Bytes fp8 = bytes_of_layer({WireType::fp8, WireType::bf16});
  if (world().size() == 1) {
    EXPECT_EQ(full.dispatch + full.combine + fp8.dispatch + fp8.combine, 0);
    return;
  }
  // Routing does not depend on the wire in the first layer, so the same rows travel.
  const std::int64_t counts = world().size() * (world().size() - 1) * (128 / world().size()) * 8;
  const std::int64_t rows = full.combine / 2 / 1024;
  EXPECT_EQ(full.dispatch, 2 * rows * 1024 + counts);
  EXPECT_EQ(fp8.dispatch, 2 * rows * (256 + 2 * 4) + counts);
  EXPECT_EQ(fp8.combine, 2 * rows * 512);
  EXPECT_LE(static_cast<double>(fp8.dispatch), 0.27 * static_cast<double>(full.dispatch));
  EXPECT_LE(static_cast<double>(fp8.dispatch + fp8.combine),
            0.4 * static_cast<double>(full.dispatch + full.combine));
}

TEST(RowWire, PackedRowsHaveTheBytesOfTheFormula) {
  for (const std::int64_t width : {1, 127, 128, 130, 256}) {
    const at::Tensor rows = random_tensor({3, width}, 6).to(at::kFloat);
    for (const WireType wire : {WireType::full, WireType::bf16, WireType::fp8}) {
      const at::Tensor packed = moe::detail::pack_rows(rows, wire, Fp8Format::e4m3, world().traffic());
      EXPECT_EQ(static_cast<std::int64_t>(packed.nbytes()),
                3 * moe::detail::packed_row_bytes(width, wire, at::kFloat));
    }
  }
  // The bench shape: 256 wide, and 128 experts' counts for 2,048 tokens of 4 choices, half of them remote.
  const double rows = 2.0 * 4096;
  const double counts = 64 * 8;
  const auto bytes = static_cast<double>(moe::detail::packed_row_bytes(256, WireType::fp8, at::kFloat));
  EXPECT_LE(rows * bytes + counts, 0.27 * (rows * 1024 + counts));
}

}  // namespace
}  // namespace athanor::tests
