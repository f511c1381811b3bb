#include "parallel/collectives/algorithms/contiguous_type.hpp"

#include "parallel/collectives/row_units.hpp"

namespace athanor::parallel::detail {

ContiguousType::ContiguousType(std::int64_t bytes, const CommunicatorState& state) {
  if (bytes == 1) {
    return;
  }
  const TypeFactors factors = type_factors(bytes);
  MPI_Datatype inner = MPI_DATATYPE_NULL;
  ATHANOR_MPI_CALL(state, MPI_Type_contiguous(factors.inner, MPI_BYTE, &inner));
  MPI_Datatype outer = MPI_DATATYPE_NULL;
  const int code = MPI_Type_contiguous(factors.outer, inner, &outer);
  MPI_Type_free(&inner);  // `outer` keeps what it needs of it
  ATHANOR_MPI_CALL(state, code /* MPI_Type_contiguous */);
  type_ = outer;
  ATHANOR_MPI_CALL(state, MPI_Type_commit(&type_));
}

ContiguousType::~ContiguousType() {
  if (type_ != MPI_BYTE) {
    MPI_Type_free(&type_);
  }
}

}  // namespace athanor::parallel::detail
