#include "device/graph.hpp"

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>

#include "device/cuda/check.hpp"

namespace athanor::device {
namespace {

namespace allocator = c10::cuda::CUDACachingAllocator;

// Pools of ours; LibTorch counts its own from 1.
c10::MempoolId_t next_pool() {
  static std::atomic<std::uint64_t> count{std::uint64_t{1} << 40};
  return {++count, 0};
}

// The recording that `stream` is part of, 0 if none.
unsigned long long recording_of(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long id = 0;
  ATHANOR_CUDA_CALL(cudaStreamGetCaptureInfo(stream, &status, &id, nullptr, nullptr, nullptr, nullptr));
  return status == cudaStreamCaptureStatusActive ? id : 0;
}

}  // namespace

struct Graph::Recorded {
  cudaGraphExec_t executable = nullptr;
  c10::MempoolId_t pool = next_pool();
  c10::DeviceIndex device = c10::cuda::current_device();
  bool has_pool = false;

  Recorded() = default;
  Recorded(const Recorded&) = delete;
  Recorded& operator=(const Recorded&) = delete;
  ~Recorded() {
    if (executable != nullptr) {
      ATHANOR_CUDA_WARN(cudaGraphExecDestroy(executable));
    }
    if (has_pool) {
      allocator::releasePool(device, pool);
    }
  }

  // From here on memory for tensors of the recorded streams comes from the pool.
  void begin(const Stream& stream) {
    auto id = std::make_shared<unsigned long long>(0);
    allocator::beginAllocateToPool(device, pool, [id, recording = stream.handle()](cudaStream_t asking) {
      if (*id == 0) {
        *id = recording_of(recording);
      }
      return *id != 0 && recording_of(asking) == *id;
    });
    has_pool = true;
    // Other threads (transfers, the watchdog) may go on calling CUDA meanwhile.
    const cudaError_t status = cudaStreamBeginCapture(stream.handle(), cudaStreamCaptureModeThreadLocal);
    if (status != cudaSuccess) {
      allocator::endAllocateToPool(device, pool);
    }
    check_cuda(status, "cudaStreamBeginCapture", __FILE__, __LINE__);
    allocator::markCaptureBegin(device);
  }

  void end(const Stream& stream, bool keep) {
    cudaGraph_t graph = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(stream.handle(), &graph);
    allocator::markCaptureEnd(device);
    allocator::endAllocateToPool(device, pool);
    if (keep) {
      check_cuda(ended, "cudaStreamEndCapture", __FILE__, __LINE__);
      const cudaError_t made = cudaGraphInstantiate(&executable, graph, 0);
      ATHANOR_CUDA_WARN(cudaGraphDestroy(graph));
      check_cuda(made, "cudaGraphInstantiate", __FILE__, __LINE__);
    } else {
      static_cast<void>(cudaGetLastError());  // the body's own error is thrown on
      if (graph != nullptr) {
        ATHANOR_CUDA_WARN(cudaGraphDestroy(graph));
      }
    }
  }
};

bool graphs_supported() noexcept {
  return true;
}

Graph Graph::record(const Stream& stream, const ShapeKey& key, const std::function<void()>& body) {
  auto recorded = std::make_unique<Recorded>();
  const StreamScope scope(stream);
  recorded->begin(stream);
  try {
    body();
  } catch (...) {
    recorded->end(stream, false);
    throw;
  }
  recorded->end(stream, true);
  return Graph(std::move(recorded), key);
}

Graph::Graph(std::unique_ptr<Recorded> recorded, ShapeKey key)
    : recorded_(std::move(recorded)), key_(std::move(key)) {}
Graph::~Graph() = default;
Graph::Graph(Graph&& other) noexcept = default;
Graph& Graph::operator=(Graph&& other) noexcept = default;

void Graph::launch(const Stream& stream) const {
  ATHANOR_CUDA_CALL(cudaGraphLaunch(recorded_->executable, stream.handle()));
}

}  // namespace athanor::device
