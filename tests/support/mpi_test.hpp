// What an MPI test sees of its launch.
#pragma once

#include "parallel/communicator.hpp"

namespace athanor::tests {

/// The world of this test run; lives for the whole process.
const parallel::Communicator& world();

}  // namespace athanor::tests
