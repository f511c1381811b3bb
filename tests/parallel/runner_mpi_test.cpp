#include <gtest/gtest.h>
#include "support/mpi_test.hpp"
#include "parallel/collectives/collectives.hpp"
#include <stdexcept>
namespace athanor { namespace {
TEST(Runner, Passes) { EXPECT_EQ(parallel::all_reduce_sum(std::int64_t{1}, tests::world()), tests::world().size()); }
TEST(Runner, FailsOnRank1) { EXPECT_NE(tests::world().rank(), 1); }
TEST(Runner, ThrowsOnRank1) { if (tests::world().rank() == 1) throw std::runtime_error("boom"); tests::world().barrier(); }
}}
