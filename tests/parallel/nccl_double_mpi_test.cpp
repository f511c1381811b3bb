// Each check of the NCCL test double sees what it is for: every test breaks one rule on purpose.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/nccl/options.hpp"
#include "support/mpi_test.hpp"
#include "support/nccl_over_mpi.hpp"
#include "support/watched_memory.hpp"

namespace athanor::parallel {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;
using tests::NcclOverMpi;
using tests::world;

std::shared_ptr<NcclOverMpi> lenient_double() {
  return std::make_shared<NcclOverMpi>(tests::NcclOverMpiOptions{.complaints = tests::Complaints::listed});
}

// A group over the double with what the tests need of a communicator by hand.
class NcclDouble : public testing::Test {
 protected:
  void SetUp() override {
    if (world().size() == 1) {
      GTEST_SKIP() << "a group of one has no NCCL";
    }
    nccl_ = lenient_double();
    NcclUniqueId id{};
    if (world().rank() == 0) {
      nccl_->get_unique_id(id);
    }
    at::Tensor bytes = at::from_blob(id.data(), {static_cast<std::int64_t>(id.size())}, at::kByte);
    broadcast_(bytes, 0, world(), Traffic::other);
    nccl_->comm_init_rank(comm_, world().size(), id, world().rank());
    settle();
    stream_ = nccl_->create_stream();
    event_ = nccl_->create_event();
  }

  void settle() const {
    while (nccl_->state_of(comm_) == NcclCode::in_progress) {
    }
  }
  // What an orderly operation does first.
  void wait_for_compute() const {
    nccl_->record_event(event_, nccl_->compute_stream());
    nccl_->wait_event(stream_, event_);
  }
  void deliver() const {
    settle();
    nccl_->record_event(event_, stream_);
    nccl_->wait_event(nccl_->compute_stream(), event_);
  }
  void reduce(at::Tensor& tensor) const {
    nccl_->all_reduce(tensor.const_data_ptr(), tensor.data_ptr(), static_cast<std::size_t>(tensor.numel()),
                      NcclType::float32, NcclReduction::sum, comm_, stream_);
  }
  void close() const {
    nccl_->comm_finalize(comm_);
    settle();
    nccl_->comm_destroy(comm_);
    nccl_->destroy_stream(stream_);
    nccl_->destroy_event(event_);
  }
  void expect_complaint(const std::string& text) const {
    EXPECT_THAT(nccl_->complaints(), Contains(HasSubstr(text)));
  }

  std::shared_ptr<NcclOverMpi> nccl_;
  NcclCommHandle comm_ = nullptr;
  device::StreamHandle stream_ = nullptr;
  device::EventHandle event_ = nullptr;
};

TEST_F(NcclDouble, OrderlyUseIsNotComplainedOf) {
  at::Tensor tensor = at::ones({3});
  wait_for_compute();
  reduce(tensor);
  deliver();
  EXPECT_TRUE(at::equal(tensor, at::full({3}, static_cast<float>(world().size()))));
  close();
  EXPECT_THAT(nccl_->complaints(), IsEmpty());
  EXPECT_THAT(nccl_->leaks(), IsEmpty());
}

TEST_F(NcclDouble, AnOperationThatDoesNotWaitForComputeReadsTooEarly) {
  at::Tensor tensor = at::full({3}, -7.0f);
  nccl_->enqueue_compute([&] { tensor.fill_(1.0f); });
  reduce(tensor);
  deliver();
  nccl_->synchronize_compute();
  EXPECT_FALSE(at::equal(tensor, at::full({3}, static_cast<float>(world().size()))));
  close();
  expect_complaint("does not wait for the compute stream");
}

TEST_F(NcclDouble, AnOperationThatWaitsForComputeReadsWhatItWrote) {
  at::Tensor tensor = at::full({3}, -7.0f);
  nccl_->enqueue_compute([&] { tensor.fill_(1.0f); });
  wait_for_compute();
  reduce(tensor);
  deliver();
  nccl_->synchronize_compute();
  EXPECT_TRUE(at::equal(tensor, at::full({3}, static_cast<float>(world().size()))));
  close();
  EXPECT_THAT(nccl_->complaints(), IsEmpty());
}

TEST_F(NcclDouble, AResultThatNobodyWaitsForIsPoison) {
  at::Tensor tensor = at::ones({3});
  wait_for_compute();
  reduce(tensor);
  settle();
  EXPECT_TRUE(tensor.isnan().all().item<bool>());
  close();
  expect_complaint("never waits for an operation");
}

TEST_F(NcclDouble, OtherSizesOnOtherRanksAreSeen) {
  at::Tensor tensor = at::ones({world().rank() == 0 ? 3 : 4});
  wait_for_compute();
  reduce(tensor);
  deliver();
  close();
  expect_complaint("ranks do not make the same operations");
}

TEST_F(NcclDouble, OtherOperationsOnOtherRanksAreSeen) {
  at::Tensor tensor = at::ones({3});
  for (const bool reduces : {world().rank() == 0, world().rank() != 0}) {
    wait_for_compute();
    if (reduces) {
      reduce(tensor);
    } else {
      nccl_->broadcast(tensor.const_data_ptr(), tensor.data_ptr(), 3, NcclType::float32, 0, comm_, stream_);
    }
    deliver();
  }
  close();
  expect_complaint("ranks do not make the same operations");
}

TEST_F(NcclDouble, AnOperationThatOneRankLeavesOutIsSeenAtTheEnd) {
  at::Tensor tensor = at::ones({3});
  if (world().rank() == 0) {
    wait_for_compute();
    nccl_->group_start();
    nccl_->send(tensor.const_data_ptr(), 3, NcclType::float32, 1, comm_, stream_);
    nccl_->group_end();
    deliver();
  }
  close();
  if (world().rank() == 1) {
    expect_complaint("ranks do not make the same operations");
  }
}

TEST_F(NcclDouble, GroupsMustBeBalanced) {
  nccl_->group_end();
  expect_complaint("a group is ended that was not started");
  nccl_->group_start();
  nccl_->record_event(event_, stream_);
  expect_complaint("recorded in an open group");
  EXPECT_THAT(nccl_->leaks(), Contains("an open group"));
  nccl_->group_end();
  close();
}

TEST_F(NcclDouble, SendsBelongInGroupsAndGroupsHaveALimit) {
  wait_for_compute();
  at::Tensor tensor = at::ones({3});
  const int next = (world().rank() + 1) % world().size();
  const int previous = (world().rank() + world().size() - 1) % world().size();
  nccl_->send(tensor.const_data_ptr(), 3, NcclType::float32, next, comm_, stream_);
  nccl_->receive(tensor.data_ptr(), 3, NcclType::float32, previous, comm_, stream_);
  expect_complaint("outside a group");
  nccl_->group_start();
  for (int i = 0; i <= max_operations_per_group; i += 2) {
    nccl_->send(tensor.const_data_ptr(), 1, NcclType::float32, next, comm_, stream_);
    nccl_->receive(tensor.data_ptr(), 1, NcclType::float32, previous, comm_, stream_);
  }
  nccl_->group_end();
  expect_complaint("more operations than NCCL takes");
  deliver();
  close();
}

TEST_F(NcclDouble, EventsMustNotBeRecordedBeforeTheCallsAreEnqueued) {
  at::Tensor tensor = at::ones({3});
  wait_for_compute();
  reduce(tensor);
  nccl_->record_event(event_, stream_);
  expect_complaint("before the operations on a communicator are enqueued");
  deliver();
  close();
}

TEST_F(NcclDouble, MemoryThatIsFreedTooEarlyIsSeen) {
  tests::watch_tensor_memory();
  tests::set_memory_listener(
      [this](const void* data, std::size_t bytes) { nccl_->memory_is_freed(data, bytes); });
  {
    at::Tensor tensor = at::ones({3});
    wait_for_compute();
    reduce(tensor);
    deliver();
  }
  EXPECT_THAT(nccl_->complaints(), IsEmpty());
  auto kept = std::make_unique<at::Tensor>(at::ones({3}));
  wait_for_compute();
  reduce(*kept);
  settle();
  kept.reset();
  expect_complaint("memory of an operation is freed");
  nccl_->comm_abort(comm_);  // or it would write there
  tests::set_memory_listener({});
  nccl_->destroy_stream(stream_);
  nccl_->destroy_event(event_);
}

TEST_F(NcclDouble, HandlesThatAreLeftAreCounted) {
  nccl_->create_event();
  nccl_->create_stream();
  close();
  EXPECT_THAT(nccl_->leaks(), testing::SizeIs(2));
}

TEST_F(NcclDouble, HandlesThatAreGoneAreRefused) {
  close();
  EXPECT_THROW(nccl_->state_of(comm_), base::InternalError);
  EXPECT_THROW(nccl_->query_event(event_), base::InternalError);
  EXPECT_THROW(nccl_->record_event(event_, nccl_->compute_stream()), base::InternalError);
  nccl_->destroy_stream(stream_);
  expect_complaint("a stream is destroyed twice");
}

}  // namespace
}  // namespace athanor::parallel
