// MPI's datatype of many bytes, for counts beyond int.
#pragma once

#include <cstdint>

#include "parallel/detail/mpi_handle.hpp"

namespace athanor::parallel::detail {

/// A committed datatype of `bytes` contiguous bytes; MPI_BYTE for one.
class ContiguousType {
 public:
  ContiguousType(std::int64_t bytes, const CommunicatorState& state);
  ~ContiguousType();
  ContiguousType(const ContiguousType&) = delete;
  ContiguousType& operator=(const ContiguousType&) = delete;
  MPI_Datatype get() const { return type_; }

 private:
  MPI_Datatype type_ = MPI_BYTE;
};

}  // namespace athanor::parallel::detail
