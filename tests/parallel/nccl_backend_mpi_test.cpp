// NcclBackend over the test double: the results of MpiBackend, on the right way, in the right order; and
// every fault ends in an error that names it.
#include "parallel/nccl/nccl_backend.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "base/stopwatch.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/collectives/pending_exchange.hpp"
#include "parallel/nccl/enable_nccl.hpp"
#include "parallel/point_to_point.hpp"
#include "support/mpi_test.hpp"
#include "support/nccl_over_mpi.hpp"

namespace athanor::parallel {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::ThrowsMessage;
using tests::Complaints;
using tests::NcclOverMpi;
using tests::world;

// A world of its own over a double of its own; what the double saw is looked at when the test has ended.
class NcclGroup {
 public:
  explicit NcclGroup(const NcclOptions& options = {.init_deadline_s = 30.0, .deadline_s = 30.0},
                     const tests::NcclOverMpiOptions& table = {})
      : nccl_(std::make_shared<NcclOverMpi>(table)), comm_(world().duplicate("nccl")) {
    enable_nccl(comm_, nccl_, options);
  }
  const Communicator& comm() const { return comm_; }
  NcclOverMpi& nccl() const { return *nccl_; }
  void expect_clean_end() {
    comm_ = {};
    EXPECT_THAT(nccl_->complaints(), IsEmpty());
    EXPECT_THAT(nccl_->leaks(), IsEmpty());
  }
  void end() { comm_ = {}; }

 private:
  std::shared_ptr<NcclOverMpi> nccl_;
  Communicator comm_;
};

// Groups of one have no NCCL, and a world that runs over the double already cannot compare with MPI.
#define SKIP_WITHOUT_OTHERS()                                            \
  if (world().size() == 1 || uses_nccl(world())) {                       \
    GTEST_SKIP() << "needs other ranks, and a world over MPI beside it"; \
  }

// Sums over ranks stay below 256: MPI and NCCL may differ in what a sum of bytes beyond that is.
at::Tensor own_data(std::int64_t rows, at::ScalarType type) {
  const double first = 1.0 + 37.0 * world().rank();
  return (at::arange(first, first + static_cast<double>(rows * 3), 1.0, at::kDouble) * 0.37)
      .fmod(24.0)
      .to(type)
      .view({rows, 3});
}

std::int64_t rows_between(int from, int to) {
  return (from * 5 + to * 3) % 4;  // sometimes none
}

std::vector<std::int64_t> send_rows(const Communicator& comm) {
  std::vector<std::int64_t> rows;
  for (int r = 0; r < comm.size(); ++r) {
    rows.push_back(rows_between(comm.rank(), r));
  }
  return rows;
}

std::vector<std::int64_t> receive_rows(const Communicator& comm) {
  std::vector<std::int64_t> rows;
  for (int r = 0; r < comm.size(); ++r) {
    rows.push_back(rows_between(r, comm.rank()));
  }
  return rows;
}

// The results of every collective on a group, in one order.
std::vector<at::Tensor> run_all(const Communicator& comm) {
  std::vector<at::Tensor> results;
  const std::vector<std::int64_t> sent = send_rows(comm);
  const std::vector<std::int64_t> received = receive_rows(comm);
  std::vector<std::int64_t> gathered;
  std::int64_t num_sent = 0;
  for (int r = 0; r < comm.size(); ++r) {
    gathered.push_back(r % 3);
    num_sent += sent[static_cast<std::size_t>(r)];
  }
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16, at::kLong, at::kByte}) {
    results.push_back(all_to_all_v(own_data(num_sent, type), sent, received, comm, Traffic::dispatch));
    results.push_back(all_gather(own_data(2, type), comm, Traffic::other));
    results.push_back(all_gather_v(own_data(comm.rank() % 3, type), gathered, comm, Traffic::other));
    at::Tensor copied = own_data(5, type);
    broadcast_(copied, comm.size() - 1, comm, Traffic::other);
    results.push_back(copied);
    for (const ReduceOp op : {ReduceOp::sum, ReduceOp::max, ReduceOp::min}) {
      at::Tensor reduced = own_data(700, type);  // blocks and rest
      all_reduce_(reduced, op, comm, Traffic::other);
      results.push_back(reduced);
    }
    if (at::isFloatingType(type)) {
      results.push_back(reduce_scatter_sum(own_data(2 * comm.size(), type), comm, Traffic::grad_dense));
    }
  }
  at::Tensor flags = at::full({3}, comm.rank() == 0, at::kBool);
  all_reduce_(flags, ReduceOp::sum, comm, Traffic::other);
  results.push_back(flags);
  results.push_back(exchange_counts(at::arange(comm.size(), at::kLong), comm, Traffic::other));
  comm.barrier();
  return results;
}

void expect_equal(const std::vector<at::Tensor>& ours, const std::vector<at::Tensor>& theirs) {
  ASSERT_EQ(ours.size(), theirs.size());
  for (std::size_t i = 0; i < ours.size(); ++i) {
    EXPECT_TRUE(at::equal(ours[i], theirs[i])) << "result " << i;
  }
}

TEST(NcclBackend, HasTheBitsOfMpiBackend) {
  SKIP_WITHOUT_OTHERS();
  const std::vector<at::Tensor> expected = run_all(world());
  NcclGroup group;
  EXPECT_TRUE(uses_nccl(group.comm()));
  expect_equal(run_all(group.comm()), expected);
  group.expect_clean_end();
}

TEST(NcclBackend, SplitsLongAndManyMessages) {
  SKIP_WITHOUT_OTHERS();
  const std::vector<at::Tensor> expected = run_all(world());
  for (const int operations : {2, 3, 6}) {
    NcclGroup group(
        {.init_deadline_s = 30.0, .deadline_s = 30.0, .max_operations = operations, .max_piece_bytes = 29});
    expect_equal(run_all(group.comm()), expected);
    group.expect_clean_end();
  }
}

TEST(NcclBackend, GroupsThatAreMadeOfItUseNcclToo) {
  SKIP_WITHOUT_OTHERS();
  NcclGroup group;
  {
    const Communicator halves = group.comm().split(world().rank() % 2, world().rank(), "half");
    const Communicator twin = group.comm().duplicate("twin");
    EXPECT_EQ(uses_nccl(halves), halves.size() > 1);
    EXPECT_TRUE(uses_nccl(twin));
    const int before = group.nccl().num_communicators();
    const PointToPoint wire(group.comm(), "wire");
    EXPECT_EQ(group.nccl().num_communicators(), before) << "messages of hosts need no NCCL";
    const int members = halves.size();
    EXPECT_EQ(all_reduce_sum(std::int64_t{1}, halves), members);
    EXPECT_EQ(all_reduce_sum(std::int64_t{1}, twin), world().size());
    const Communicator none = group.comm().split(-1, 0, "none");
    EXPECT_TRUE(none.is_null());
  }
  EXPECT_EQ(group.nccl().num_communicators(), 1);
  group.expect_clean_end();
}

TEST(NcclBackend, NcclsOwnSumsAreAnOption) {
  SKIP_WITHOUT_OTHERS();
  NcclGroup group({.init_deadline_s = 30.0, .deadline_s = 30.0, .float_sums = FloatSums::nccl});
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16}) {
    at::Tensor sum = own_data(40, type);
    all_reduce_(sum, ReduceOp::sum, group.comm(), Traffic::other);
    at::Tensor expected = own_data(40, type);
    all_reduce_(expected, ReduceOp::sum, world(), Traffic::other);
    EXPECT_TRUE(at::allclose(sum, expected, 1e-6, 0.0));
    const at::Tensor input = own_data(2 * world().size(), type);
    const std::int64_t before = group.nccl().num_operations();
    const at::Tensor part = reduce_scatter_sum(input, group.comm(), Traffic::grad_dense);
    const bool is_nccls = type != at::kBFloat16;  // which would round at every addition
    EXPECT_EQ(group.nccl().num_operations() - before == 1, is_nccls);
    EXPECT_TRUE(at::allclose(part, reduce_scatter_sum(input, world(), Traffic::grad_dense), 1e-6, 0.0));
  }
  group.expect_clean_end();
}

// The device of a tensor chooses the way: with a table of another device, host tensors never come to it.
TEST(NcclBackend, HostTensorsGoThroughMpiAndForeignOnesAreRefused) {
  SKIP_WITHOUT_OTHERS();
  const std::vector<at::Tensor> expected = run_all(world());
  NcclGroup group({.init_deadline_s = 30.0, .deadline_s = 30.0}, {.device = c10::kMeta});
  const std::int64_t before = group.nccl().num_operations();
  expect_equal(run_all(group.comm()), expected);
  EXPECT_EQ(group.nccl().num_operations(), before);
  at::Tensor device_tensor = at::empty({4}, at::TensorOptions(at::kLong).device(at::kMeta));
  broadcast_(device_tensor, 0, group.comm(), Traffic::other);
  EXPECT_EQ(group.nccl().num_operations(), before + 1);
  at::Tensor host_tensor = at::zeros({4 * world().size()}, at::kLong);
  EXPECT_THROW(all_gather_into(host_tensor, device_tensor, group.comm(), Traffic::other),
               base::InternalError);
  NcclGroup host_group;
  EXPECT_THROW(broadcast_(device_tensor, 0, host_group.comm(), Traffic::other), base::InternalError);
  host_group.expect_clean_end();
  group.expect_clean_end();
}

TEST(NcclBackend, AStartedExchangeShowsItsDataWhenItIsWaitedFor) {
  SKIP_WITHOUT_OTHERS();
  NcclGroup group;
  const Communicator lane = group.comm().duplicate("lane");
  std::vector<PendingExchange> pending;
  std::vector<std::vector<at::Tensor>> received;
  for (int exchange = 0; exchange < 3; ++exchange) {
    std::vector<at::Tensor> send;
    std::vector<at::Tensor> receive;
    for (int r = 0; r < lane.size(); ++r) {
      send.push_back(at::full({5 + exchange}, 100.0 * exchange + 10.0 * lane.rank() + r));
      receive.push_back(at::zeros({5 + exchange}));
    }
    pending.push_back(start_exchange(receive, send, lane, Traffic::grad_dense));
    received.push_back(std::move(receive));
  }
  at::Tensor busy = at::ones({4});
  all_reduce_(busy, ReduceOp::sum, group.comm(), Traffic::other);  // meanwhile, on another group
  for (const int exchange : {1, 0, 2}) {
    auto& one = pending[static_cast<std::size_t>(exchange)];
    if (exchange == 0) {
      while (!one.test()) {
      }
    } else {
      one.wait();
    }
    for (int r = 0; r < lane.size(); ++r) {
      const at::Tensor& tensor = received[static_cast<std::size_t>(exchange)][static_cast<std::size_t>(r)];
      const double expected = r == lane.rank() ? 0.0 : 100.0 * exchange + 10.0 * r + lane.rank();
      EXPECT_TRUE(at::equal(tensor, at::full_like(tensor, expected))) << exchange << " from " << r;
    }
  }
  EXPECT_THAT(group.nccl().complaints(), IsEmpty());
}

// Leaving out any one call of the backend's protocol is seen by the double, or by the numbers.
TEST(NcclBackend, EveryCallThatIsLeftOutIsSeen) {
  SKIP_WITHOUT_OTHERS();
  for (const std::string call : {"wait_event", "wait_event_compute", "group_start", "group_end",
                                 "destroy_event", "destroy_stream", "comm_destroy"}) {
    SCOPED_TRACE(call);
    NcclGroup group({.init_deadline_s = 10.0, .deadline_s = 10.0, .host_wait = HostWait::always},
                    {.complaints = Complaints::listed});
    // A wait of the compute stream is made up for by the next one: the last is left out.
    group.nccl().skip_call(call, call == "wait_event_compute" ? 2 : 1);
    bool is_seen = false;
    try {
      at::Tensor tensor = own_data(4, at::kFloat);
      all_reduce_(tensor, ReduceOp::sum, group.comm(), Traffic::other);
      const std::vector<std::int64_t> ones(static_cast<std::size_t>(world().size()), 1);
      all_to_all_v(own_data(world().size(), at::kFloat), ones, ones, group.comm(), Traffic::dispatch);
    } catch (const base::Error&) {
      is_seen = true;
    }
    group.end();
    EXPECT_TRUE(is_seen || !group.nccl().complaints().empty() || !group.nccl().leaks().empty());
  }
}

TEST(NcclBackend, ARankThatDoesNotComeToTheStartIsNamed) {
  SKIP_WITHOUT_OTHERS();
  const int absent = world().size() - 1;
  Communicator comm = world().duplicate("late");
  const auto nccl = std::make_shared<NcclOverMpi>();
  if (world().rank() != absent) {
    EXPECT_THAT([&] { enable_nccl(comm, nccl, {.init_deadline_s = 1.0}); },
                ThrowsMessage<base::CommError>(AllOf(HasSubstr("world rank(s) " + std::to_string(absent)),
                                                     HasSubstr("world.late"), HasSubstr("1 s"))));
  }
  EXPECT_THAT(nccl->leaks(), IsEmpty());
  world().barrier();
}

TEST(NcclBackend, ARankThatDoesNotConnectIsNamed) {
  SKIP_WITHOUT_OTHERS();
  Communicator comm = world().duplicate("stuck");
  const auto nccl = std::make_shared<NcclOverMpi>();
  nccl->set_stuck(world().rank() == 1);
  EXPECT_THAT([&] { enable_nccl(comm, nccl, {.init_deadline_s = 1.0}); },
              ThrowsMessage<base::CommError>(
                  AllOf(HasSubstr("world rank 1: not connected within 1 s"), HasSubstr("world.stuck"))));
  EXPECT_THAT(nccl->leaks(), IsEmpty());
  world().barrier();
}

TEST(NcclBackend, OtherSettingsOnARankAreRefused) {
  SKIP_WITHOUT_OTHERS();
  Communicator comm = world().duplicate("settings");
  const auto nccl = std::make_shared<NcclOverMpi>(
      tests::NcclOverMpiOptions{.description = world().rank() == 1 ? "NCCL 2.31" : "NCCL 2.30"});
  EXPECT_THAT([&] { enable_nccl(comm, nccl, {.init_deadline_s = 20.0}); },
              ThrowsMessage<base::CommError>(
                  AllOf(HasSubstr("world rank 1 has NCCL 2.31"), HasSubstr("world rank 0 has NCCL 2.30"))));
  world().barrier();
}

// One rank meets an error: it says which operation, the others of its node hear of it at once, all groups
// end.
TEST(NcclBackend, AnErrorOfOneRankEndsTheOperationOnAll) {
  SKIP_WITHOUT_OTHERS();
  NcclGroup group({.init_deadline_s = 30.0, .deadline_s = 30.0});
  const Communicator twin = group.comm().duplicate("twin");
  world().barrier();  // all have it: the error comes in the operations below
  if (world().rank() == 1) {
    group.nccl().report_error(NcclCode::remote_error);
    group.nccl().set_stuck(true);  // or the others may have their result before
  }
  const base::Stopwatch watch;
  at::Tensor tensor = at::ones({4});
  const auto expect_error = [&](const Communicator& comm) {
    EXPECT_THAT([&] { all_reduce_(tensor, ReduceOp::sum, comm, Traffic::other); },
                ThrowsMessage<base::CommError>(AllOf(HasSubstr("all_gather, operation 2 over NCCL"),
                                                     HasSubstr("(world rank 1)"), HasSubstr("world.nccl"),
                                                     HasSubstr("NCCL code 6"))));
  };
  expect_error(group.comm());
  expect_error(twin);  // nobody waits there any more
  EXPECT_LT(watch.seconds(), 20.0);
  EXPECT_EQ(group.nccl().num_communicators(), 0) << "all are aborted";
  world().barrier();
}

TEST(NcclBackend, AnOperationThatDoesNotEndIsNamedAtItsDeadline) {
  SKIP_WITHOUT_OTHERS();
  NcclGroup group({.init_deadline_s = 30.0, .deadline_s = 1.2});
  at::Tensor tensor = at::ones({4});
  all_reduce_(tensor, ReduceOp::sum, group.comm(), Traffic::other);
  world().barrier();
  if (world().rank() != 0) {
    EXPECT_THAT(
        [&] { all_reduce_(tensor, ReduceOp::sum, group.comm(), Traffic::other); },
        ThrowsMessage<base::CommError>(AllOf(HasSubstr("all_gather, operation 3 over NCCL"),
                                             HasSubstr("not ended after 1.2 s"), HasSubstr("world.nccl"))));
  }
  world().barrier();
  if (world().rank() == 0) {  // hears of it with its next call
    EXPECT_THAT([&] { all_reduce_(tensor, ReduceOp::sum, group.comm(), Traffic::other); },
                ThrowsMessage<base::CommError>(HasSubstr("not ended after 1.2 s")));
  }
  EXPECT_EQ(group.nccl().num_communicators(), 0);
  world().barrier();
}

TEST(NcclBackend, WhileAnErrorUnwindsGroupsAreAborted) {
  SKIP_WITHOUT_OTHERS();
  const auto nccl = std::make_shared<NcclOverMpi>();
  const base::Stopwatch watch;
  EXPECT_THROW(
      {
        Communicator comm = world().duplicate("unwound");
        enable_nccl(comm, nccl, {.init_deadline_s = 30.0});
        if (world().rank() == 0) {
          world().barrier();  // the others finalise at once
        }
        throw base::InternalError("on purpose");
      },
      base::InternalError);
  if (world().rank() != 0) {
    world().barrier();
  }
  EXPECT_LT(watch.seconds(), 25.0);
  EXPECT_THAT(nccl->leaks(), IsEmpty());
}

TEST(NcclBackend, AGroupOfOneNeedsNoNccl) {
  Communicator alone = world().split(world().rank(), 0, "alone");
  const auto nccl = std::make_shared<NcclOverMpi>();
  enable_nccl(alone, nccl);
  EXPECT_FALSE(uses_nccl(alone));
  EXPECT_EQ(all_reduce_sum(std::int64_t{3}, alone), 3);
  EXPECT_EQ(nccl->num_operations(), 0);
}

}  // namespace
}  // namespace athanor::parallel
