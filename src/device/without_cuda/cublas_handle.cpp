#include "device/cublas_handle.hpp"

#include "base/error.hpp"

namespace athanor::device {

CublasHandle::CublasHandle(const Stream& /*stream*/, const CublasOptions& /*options*/) {
  throw base::DeviceError(
      "cuBLAS was asked for in a program built for CPUs only (run.device=cuda is refused at start): this is "
      "a mistake of the program, report it");
}

CublasHandle::~CublasHandle() = default;
CublasHandle::CublasHandle(CublasHandle&& other) noexcept = default;
CublasHandle& CublasHandle::operator=(CublasHandle&& other) noexcept = default;

void CublasHandle::set_stream(const Stream& stream) {
  stream_ = stream.handle();
}

}  // namespace athanor::device
