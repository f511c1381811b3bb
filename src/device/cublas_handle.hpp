// cuBLAS and cuBLASLt: handles and workspace of one stream.
#pragma once

#include <cstddef>

#include "device/memory.hpp"
#include "device/stream.hpp"

struct cublasContext;
struct cublasLtContext;

namespace athanor::device {

struct CublasOptions {
  /// Bytes of device memory that matrix products may use for partial sums; 32 MiB is what cuBLAS wants on
  /// compute capability 9.0 and later. A fixed workspace of one stream is also what makes cuBLAS' results
  /// repeat bit for bit, and what lets its calls be captured into a graph.
  std::size_t workspace_bytes = std::size_t{32} << 20;
};

/// One cuBLAS and one cuBLASLt handle with their workspace, for one stream at a time. f32 products stay f32
/// (no TF32), and 16-bit products are accumulated in f32 throughout. Move-only. Constructing one in a build
/// without CUDA throws DeviceError.
class CublasHandle {
 public:
  explicit CublasHandle(const Stream& stream, const CublasOptions& options = {});
  ~CublasHandle();
  CublasHandle(CublasHandle&& other) noexcept;
  CublasHandle& operator=(CublasHandle&& other) noexcept;

  /// Later calls are queued on `stream`. The workspace goes along: the caller orders the two streams.
  void set_stream(const Stream& stream);

  /// cublasHandle_t and cublasLtHandle_t.
  cublasContext* blas() const noexcept { return blas_; }
  cublasLtContext* blas_lt() const noexcept { return blas_lt_; }
  std::byte* workspace() const noexcept { return workspace_.data(); }
  std::size_t workspace_bytes() const noexcept { return workspace_.size(); }
  StreamHandle stream() const noexcept { return stream_; }

 private:
  cublasContext* blas_ = nullptr;
  cublasLtContext* blas_lt_ = nullptr;
  DeviceBuffer workspace_;
  StreamHandle stream_ = nullptr;
};

}  // namespace athanor::device
