// Communicators: splitting, names, errors, byte counts.
#include "parallel/communicator.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <utility>
#include <vector>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/detail/mpi_handle.hpp"
#include "parallel/mpi_environment.hpp"
#include "support/mpi_test.hpp"

namespace athanor::parallel {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;
using tests::world;

TEST(Communicator, SplitsByColorAndOrdersByKey) {
  const Communicator half = world().split(world().rank() % 2, -world().rank(), "half");
  const int members = (world().size() + 1 - world().rank() % 2) / 2;
  EXPECT_EQ(half.size(), members);
  EXPECT_EQ(half.rank(), members - 1 - world().rank() / 2);  // reversed by the key
  EXPECT_EQ(half.name(), "world.half");
  EXPECT_EQ(&half.traffic(), &world().traffic());
  EXPECT_EQ(all_reduce_sum(std::int64_t{1}, half), members);
}

TEST(Communicator, NegativeColorGivesANullOne) {
  const Communicator first = world().split(world().rank() == 0 ? 0 : -1, 0, "first");
  EXPECT_EQ(first.is_null(), world().rank() != 0);
  EXPECT_EQ(first.size(), 1);
  EXPECT_EQ(first.rank(), 0);
}

TEST(Communicator, MovesLeaveANullOne) {
  Communicator one = world().duplicate("one");
  Communicator other = std::move(one);
  EXPECT_TRUE(one.is_null());  // NOLINT(bugprone-use-after-move): that is what is tested
  EXPECT_EQ(other.name(), "world.one");
  Communicator third = world().duplicate("three");
  third = std::move(other);
  EXPECT_EQ(third.name(), "world.one");
  EXPECT_EQ(all_reduce_sum(std::int64_t{1}, third), world().size());
  const Communicator null;
  EXPECT_TRUE(null.duplicate("x").is_null());
  EXPECT_TRUE(null.split(0, 0, "x").is_null());
}

TEST(Communicator, MpiErrorsNameCallGroupAndRank) {
  const Communicator group = world().duplicate("errors");
  const std::string rank = "rank " + std::to_string(world().rank()) + " of " + std::to_string(world().size());
  EXPECT_THAT(
      [&] {
        int value = 0;
        ATHANOR_MPI_CALL(*group.state(), MPI_Bcast(&value, 1, MPI_INT, 99, group.state()->comm));
      },
      ThrowsMessage<base::CommError>(AllOf(HasSubstr("MPI_Bcast(&value, 1, MPI_INT, 99"),
                                           HasSubstr("world.errors"), HasSubstr(rank),
                                           HasSubstr("MPI_ERR_ROOT"))));
  if (world().size() > 1) {
    at::Tensor tensor = at::ones({3});
    EXPECT_THAT([&] { broadcast_(tensor, world().size(), group, Traffic::other); },
                ThrowsMessage<base::CommError>(AllOf(HasSubstr("MPI_Bcast"), HasSubstr("world.errors"))));
  }
  EXPECT_EQ(all_reduce_sum(std::int64_t{1}, group), world().size());  // and goes on
}

TEST(MpiBackend, AMessageLongerThanExpectedIsAnErrorOfItsReceiver) {
  if (world().size() == 1) {
    return;  // a group of one has no MPI backend
  }
  const Communicator group = world().duplicate("lengths");
  std::vector<std::byte> buffer(64);
  std::vector<Bytes> send(static_cast<std::size_t>(group.size()));
  std::vector<MutableBytes> receive(send.size());
  if (group.rank() == 0) {
    send[1] = Bytes(buffer).first(16);
  }
  if (group.rank() == 1) {
    receive[0] = MutableBytes(buffer).first(8);
    EXPECT_THAT([&] { group.backend().exchange(receive, send, at::kCPU); },
                ThrowsMessage<base::CommError>(AllOf(HasSubstr("exchange with rank 0"),
                                                     HasSubstr("world.lengths"), HasSubstr("TRUNCATE"))));
  } else {
    group.backend().exchange(receive, send, at::kCPU);
  }
}

TEST(Communicator, EveryCommunicatorReturnsErrors) {
  const Communicator duplicate = world().duplicate("d");
  const Communicator split = world().split(0, 0, "s");
  for (const Communicator* comm : {&world(), &duplicate, &split}) {
    MPI_Errhandler handler = MPI_ERRHANDLER_NULL;
    ASSERT_EQ(MPI_Comm_get_errhandler(comm->state()->comm, &handler), MPI_SUCCESS);
    EXPECT_EQ(handler, MPI_ERRORS_RETURN);
    MPI_Errhandler_free(&handler);
  }
}

TEST(MpiEnvironment, ExistsOnce) {
  EXPECT_THAT([] { MpiEnvironment second(nullptr, nullptr); },
              ThrowsMessage<base::CommError>(HasSubstr("already initialised")));
}

TEST(MpiBackend, RefusesTensorsItCannotSend) {
  if (world().size() == 1) {
    return;  // a group of one has no MPI backend
  }
  at::Tensor transposed = at::ones({2, 3}).t();
  EXPECT_THROW(world().backend().broadcast(transposed, 0), base::InternalError);
  at::Tensor floats = at::ones({2});
  EXPECT_THROW(world().backend().all_reduce_integers(floats, ReduceOp::sum), base::InternalError);
}

// Bytes that one call adds on this rank.
template <typename Call>
std::int64_t bytes_of(Traffic purpose, Call call) {
  const auto before = world().traffic().all();
  call();
  const auto after = world().traffic().all();
  for (std::size_t kind = 0; kind < after.size(); ++kind) {
    if (kind != static_cast<std::size_t>(purpose)) {
      EXPECT_EQ(after[kind], before[kind]) << traffic_names[kind];
    }
  }
  return after[static_cast<std::size_t>(purpose)] - before[static_cast<std::size_t>(purpose)];
}

TEST(Traffic, CountsBytesForOtherRanksExactly) {
  const std::int64_t n = world().size();
  const std::int64_t r = world().rank();
  const auto rows = std::vector<std::int64_t>(static_cast<std::size_t>(n), 3);
  EXPECT_EQ(bytes_of(Traffic::dispatch,
                     [&] {
                       all_to_all_v(at::ones({3 * n, 5}), rows, rows, world(), Traffic::dispatch);
                     }),
            (n - 1) * 3 * 5 * 4);
  EXPECT_EQ(
      bytes_of(Traffic::combine,
               [&] {
                 all_to_all_v(at::ones({3 * n, 5}, at::kBFloat16), rows, rows, world(), Traffic::combine);
               }),
      (n - 1) * 3 * 5 * 2);
  EXPECT_EQ(
      bytes_of(Traffic::param_gather, [&] { all_gather(at::ones({7}), world(), Traffic::param_gather); }),
      (n - 1) * 7 * 4);
  EXPECT_EQ(bytes_of(Traffic::grad_expert,
                     [&] { reduce_scatter_sum(at::ones({2 * n}), world(), Traffic::grad_expert); }),
            (n - 1) * 2 * 4);
  EXPECT_EQ(bytes_of(Traffic::link,
                     [&] {
                       at::Tensor tensor = at::ones({10});
                       broadcast_(tensor, 0, world(), Traffic::link);
                     }),
            r == 0 ? (n - 1) * 40 : 0);
}

TEST(Traffic, AllReduceCountsAsReduceScatterAndAllGatherOnBothPaths) {
  const std::int64_t n = world().size();
  for (const std::int64_t rows : {4, 5000, 700'000}) {  // gathered whole, in blocks, in several pieces
    EXPECT_EQ(bytes_of(Traffic::grad_dense,
                       [&] {
                         at::Tensor tensor = at::ones({rows * n});
                         all_reduce_(tensor, ReduceOp::sum, world(), Traffic::grad_dense);
                       }),
              2 * (n - 1) * rows * 4);
  }
  std::int64_t sent = bytes_of(Traffic::other, [&] {
    at::Tensor counts = at::ones({n * 3 + 1}, at::kLong);  // blocks of unequal size
    all_reduce_(counts, ReduceOp::sum, world(), Traffic::other);
  });
  EXPECT_EQ(all_reduce_sum(sent, world()), 2 * (n - 1) * (n * 3 + 1) * 8);
  sent = bytes_of(Traffic::other, [&] {
    at::Tensor tensor = at::ones({1'100'003});
    all_reduce_(tensor, ReduceOp::sum, world(), Traffic::other);
  });
  EXPECT_EQ(all_reduce_sum(sent, world()), 2 * (n - 1) * std::int64_t{1'100'003} * 4);
}

}  // namespace
}  // namespace athanor::parallel
