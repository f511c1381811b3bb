// The adjoint pairs: <A x, y> = <x, A^T y> over the group for every pair, against plain tensor code where
// that exists.
#include "parallel/autograd/functions.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "parallel/collectives/collectives.hpp"
#include "rank_data.hpp"
#include "support/mpi_test.hpp"

namespace athanor::parallel {
namespace {

using tests::rank_values;
using tests::uneven_rows;
using tests::world;
using Operation = std::function<at::Tensor(const at::Tensor&)>;

double inner_product(const at::Tensor& a, const at::Tensor& b) {
  return (a * b).sum().item<double>();
}

struct Products {
  double forward = 0.0;   // <A x, y> of this rank
  double backward = 0.0;  // <x, A^T y> of this rank
  at::Tensor gradient;
};

Products products(const Operation& operation, std::vector<std::int64_t> shape) {
  at::Tensor x = rank_values(world().rank(), std::move(shape), at::kDouble).requires_grad_();
  const at::Tensor output = operation(x);
  const at::Tensor y = rank_values(world().rank(), output.sizes().vec(), at::kDouble, 7);
  output.backward(y);
  return {inner_product(output.detach(), y), inner_product(x.detach(), x.grad()), x.grad()};
}

void expect_adjoint(const Operation& operation, std::vector<std::int64_t> shape) {
  const Products p = products(operation, std::move(shape));
  const double forward = all_reduce_sum(p.forward, world());
  const double backward = all_reduce_sum(p.backward, world());
  EXPECT_NEAR(forward, backward, 1e-12 * std::max(1.0, std::abs(forward)));
}

TEST(AllGatherDim, ConcatenatesAlongEachDimension) {
  for (std::int64_t dim = -1; dim < 3; ++dim) {
    std::vector<at::Tensor> parts;
    for (int r = 0; r < world().size(); ++r) {
      parts.push_back(rank_values(r, {2, 3, 4}, at::kDouble));
    }
    const at::Tensor output = autograd::all_gather_dim(rank_values(world().rank(), {2, 3, 4}, at::kDouble),
                                                       dim, world(), Traffic::other);
    EXPECT_TRUE(at::equal(output, at::cat(parts, dim)));
  }
  EXPECT_THROW(
      {
        if (world().size() == 1) {
          throw base::InternalError("a group of one returns its input");
        }
        autograd::all_gather_dim(at::ones({2}), 1, world(), Traffic::other);
      },
      base::InternalError);
}

TEST(AllGatherDim, IsAdjointToReduceScatter) {
  for (std::int64_t dim = 0; dim < 3; ++dim) {
    expect_adjoint(
        [&](const at::Tensor& x) { return autograd::all_gather_dim(x, dim, world(), Traffic::other); },
        {2, 3, 4});
  }
  expect_adjoint([](const at::Tensor& x) { return autograd::all_gather_dim(x, 1, world(), Traffic::other); },
                 {2, 0, 4});
}

TEST(ReduceScatterDim, KeepsThisRanksPartOfTheSum) {
  for (std::int64_t dim = 0; dim < 3; ++dim) {
    std::vector<std::int64_t> shape{2, 3, 4};
    shape[static_cast<std::size_t>(dim)] *= world().size();
    at::Tensor sum = at::zeros(shape, at::kDouble);
    for (int r = 0; r < world().size(); ++r) {
      sum += rank_values(r, shape, at::kDouble);
    }
    const at::Tensor output = autograd::reduce_scatter_dim(rank_values(world().rank(), shape, at::kDouble),
                                                           dim, world(), Traffic::other);
    EXPECT_TRUE(at::equal(output, sum.chunk(world().size(), dim)[static_cast<std::size_t>(world().rank())]));
  }
}

TEST(ReduceScatterDim, IsAdjointToAllGather) {
  for (std::int64_t dim = 0; dim < 3; ++dim) {
    std::vector<std::int64_t> shape{2, 3, 4};
    shape[static_cast<std::size_t>(dim)] *= world().size();
    expect_adjoint(
        [&](const at::Tensor& x) { return autograd::reduce_scatter_dim(x, dim, world(), Traffic::other); },
        shape);
  }
}

TEST(ReduceScatterDim, RefusesALengthThatTheGroupDoesNotDivide) {
  if (world().size() > 1) {
    EXPECT_THROW(autograd::reduce_scatter_dim(at::ones({world().size() + 1}), 0, world(), Traffic::other),
                 base::InternalError);
  }
}

// The input of copy_to_group and the output of reduce_from_group are one replicated tensor, which counts
// once.
TEST(CopyToGroup, SumsTheGradientsOfTheCopies) {
  at::Tensor x = rank_values(0, {3, 2}, at::kDouble).requires_grad_();
  const at::Tensor output = autograd::copy_to_group(x, world(), Traffic::other);
  EXPECT_TRUE(at::equal(output.detach(), x.detach()));
  output.backward(rank_values(world().rank(), {3, 2}, at::kDouble, 7));
  at::Tensor sum = at::zeros({3, 2}, at::kDouble);
  for (int r = 0; r < world().size(); ++r) {
    sum += rank_values(r, {3, 2}, at::kDouble, 7);
  }
  EXPECT_TRUE(at::equal(x.grad(), sum));
}

TEST(ReduceFromGroup, SumsForwardAndCopiesBackward) {
  at::Tensor x = rank_values(world().rank(), {3, 2}, at::kDouble).requires_grad_();
  const at::Tensor before = x.detach().clone();
  const at::Tensor output = autograd::reduce_from_group(x, world(), Traffic::other);
  at::Tensor sum = at::zeros({3, 2}, at::kDouble);
  for (int r = 0; r < world().size(); ++r) {
    sum += rank_values(r, {3, 2}, at::kDouble);
  }
  EXPECT_TRUE(at::equal(output.detach(), sum));
  EXPECT_TRUE(at::equal(x.detach(), before));
  const at::Tensor y = rank_values(0, {3, 2}, at::kDouble, 7);
  output.backward(y);
  EXPECT_TRUE(at::equal(x.grad(), y));
}

TEST(CopyThenReduce, GradientOfAReplicatedFunctionIsThatOfOneRank) {
  // f(x) = sum over ranks of (r+1) x^2: the tensor-parallel pattern. Its gradient by finite differences.
  const auto f = [](const at::Tensor& x) {
    const at::Tensor copied = autograd::copy_to_group(x, world(), Traffic::other);
    return autograd::reduce_from_group((copied * copied * (world().rank() + 1)).sum(), world(),
                                       Traffic::other);
  };
  at::Tensor x = rank_values(0, {4}, at::kDouble).requires_grad_();
  f(x).backward();
  for (std::int64_t i = 0; i < 4; ++i) {
    at::Tensor plus = x.detach().clone();
    at::Tensor minus = x.detach().clone();
    plus[i] += 1e-5;
    minus[i] -= 1e-5;
    const double difference = (f(plus).item<double>() - f(minus).item<double>()) / 2e-5;
    EXPECT_NEAR(x.grad()[i].item<double>(), difference, 1e-7);
  }
}

TEST(AllToAllVFunction, IsAdjointToTheReverseExchange) {
  std::vector<std::int64_t> send;
  std::vector<std::int64_t> receive;
  for (int r = 0; r < world().size(); ++r) {
    send.push_back(uneven_rows(world().rank(), r));
    receive.push_back(uneven_rows(r, world().rank()));
  }
  const std::int64_t rows = std::accumulate(send.begin(), send.end(), std::int64_t{0});
  expect_adjoint(
      [&](const at::Tensor& x) {
        return autograd::all_to_all_v(x, send, receive, world(), Traffic::dispatch, Traffic::combine);
      },
      {rows, 3});
}

TEST(AllToAllVFunction, RanksWithoutRowsTakePartInBothDirections) {
  std::vector<std::int64_t> send(static_cast<std::size_t>(world().size()), world().rank() == 0 ? 2 : 0);
  std::vector<std::int64_t> receive(static_cast<std::size_t>(world().size()), 0);
  receive[0] = 2;
  const std::int64_t rows = world().rank() == 0 ? 2 * world().size() : 0;
  expect_adjoint(
      [&](const at::Tensor& x) {
        return autograd::all_to_all_v(x, send, receive, world(), Traffic::dispatch, Traffic::combine);
      },
      {rows, 3});
}

TEST(AllToAllVFunction, CountsForwardAndBackwardBytesApart) {
  const std::vector<std::int64_t> rows(static_cast<std::size_t>(world().size()), 2);
  const std::int64_t expected = (world().size() - 1) * 2 * 3 * 8;
  const auto before = world().traffic().all();
  at::Tensor x = at::ones({2 * world().size(), 3}, at::kDouble).requires_grad_();
  const at::Tensor output =
      autograd::all_to_all_v(x, rows, rows, world(), Traffic::dispatch, Traffic::combine);
  EXPECT_EQ(world().traffic().bytes(Traffic::dispatch) - before[0], expected);
  EXPECT_EQ(world().traffic().bytes(Traffic::combine) - before[1], 0);
  output.sum().backward();
  EXPECT_EQ(world().traffic().bytes(Traffic::dispatch) - before[0], expected);
  EXPECT_EQ(world().traffic().bytes(Traffic::combine) - before[1], expected);
}

TEST(AutogradFunctions, OfAGroupOfOneReturnTheirInput) {
  const Communicator null;
  const at::Tensor x = at::ones({2, 2}).requires_grad_();
  EXPECT_TRUE(autograd::all_gather_dim(x, 0, null, Traffic::other).is_same(x));
  EXPECT_TRUE(autograd::reduce_scatter_dim(x, 1, null, Traffic::other).is_same(x));
  EXPECT_TRUE(autograd::copy_to_group(x, null, Traffic::other).is_same(x));
  EXPECT_TRUE(autograd::reduce_from_group(x, null, Traffic::other).is_same(x));
  EXPECT_TRUE(autograd::all_to_all_v(x, {2}, {2}, null, Traffic::other, Traffic::other).is_same(x));
}

}  // namespace
}  // namespace athanor::parallel
