#include "parallel/nccl/nccl_library.hpp"

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <cstdlib>
#include <cstring>

#include <fmt/format.h>

#include "base/error.hpp"
#include "base/log.hpp"
#include "device/stream.hpp"

namespace athanor::parallel {
namespace {

static_assert(sizeof(ncclUniqueId) == sizeof(NcclUniqueId));
static_assert(static_cast<int>(NcclCode::unhandled_device_error) == ncclUnhandledCudaError);
static_assert(static_cast<int>(NcclCode::system_error) == ncclSystemError);
static_assert(static_cast<int>(NcclCode::internal_error) == ncclInternalError);
static_assert(static_cast<int>(NcclCode::invalid_argument) == ncclInvalidArgument);
static_assert(static_cast<int>(NcclCode::invalid_usage) == ncclInvalidUsage);
static_assert(static_cast<int>(NcclCode::remote_error) == ncclRemoteError);
static_assert(static_cast<int>(NcclCode::in_progress) == ncclInProgress);

NcclCode code_of(ncclResult_t result) {
  return static_cast<NcclCode>(result);
}

void check_cuda(cudaError_t error, const char* call) {
  if (error != cudaSuccess) {
    static_cast<void>(cudaGetLastError());  // does not become the error of whoever asks next
    throw base::CommError(
        "{} failed ({}) look for an earlier error of a kernel, or check the GPU with nvidia-smi", call,
        cudaGetErrorString(error));
  }
}

// For destructors.
void warn_cuda(cudaError_t error, const char* call) noexcept {
  if (error == cudaSuccess || error == cudaErrorCudartUnloading) {
    return;
  }
  static_cast<void>(cudaGetLastError());
  try {
    base::log_local(base::LogLevel::warning, fmt::format("{} failed: {}", call, cudaGetErrorString(error)));
  } catch (...) {  // nobody is left to tell
    return;
  }
}

ncclDataType_t type_of(NcclType type) {
  switch (type) {
    case NcclType::uint8:
      return ncclUint8;
    case NcclType::int32:
      return ncclInt32;
    case NcclType::int64:
      return ncclInt64;
    case NcclType::float32:
      return ncclFloat32;
    case NcclType::float64:
      return ncclFloat64;
  }
  return ncclUint8;
}

ncclRedOp_t op_of(NcclReduction op) {
  switch (op) {
    case NcclReduction::sum:
      return ncclSum;
    case NcclReduction::max:
      return ncclMax;
    case NcclReduction::min:
      return ncclMin;
  }
  return ncclSum;
}

void pin(const char* variable, const std::string& value) {
  constexpr int keep_the_users = 0;
  ::setenv(variable, value.c_str(), keep_the_users);
}

int current_device() {
  int index = 0;
  check_cuda(cudaGetDevice(&index), "cudaGetDevice");
  return index;
}

class NcclLibrary final : public NcclApi {
 public:
  NcclLibrary()
      : version_(nccl_version()), device_(c10::kCUDA, static_cast<c10::DeviceIndex>(current_device())) {
    if (version_ == 0) {
      throw base::CommError(
          "ncclGetVersion failed (the NCCL library does not answer) check which libnccl is loaded");
    }
  }

  int version() const override { return version_; }
  std::string description() const override {
    return fmt::format("NCCL {} with NCCL_ALGO={} NCCL_PROTO={}", version_, std::getenv("NCCL_ALGO"),
                       std::getenv("NCCL_PROTO"));
  }
  c10::Device device() const override { return device_; }
  std::string error_text(NcclCode code, NcclCommHandle comm) const override {
    const char* last = ncclGetLastError(comm);
    return fmt::format("{}{}{}", ncclGetErrorString(static_cast<ncclResult_t>(code)),
                       last == nullptr || *last == '\0' ? "" : ": ", last == nullptr ? "" : last);
  }

  NcclCode get_unique_id(NcclUniqueId& id) override {
    ncclUniqueId made{};
    const ncclResult_t result = ncclGetUniqueId(&made);
    std::memcpy(id.data(), &made, sizeof(made));
    return code_of(result);
  }
  NcclCode comm_init_rank(NcclCommHandle& comm, int size, const NcclUniqueId& id, int rank) override {
    ncclUniqueId wanted{};
    std::memcpy(&wanted, id.data(), sizeof(wanted));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    return code_of(ncclCommInitRankConfig(&comm, size, wanted, rank, &config));
  }
  NcclCode state_of(NcclCommHandle comm) override {
    ncclResult_t state = ncclSuccess;
    const ncclResult_t result = ncclCommGetAsyncError(comm, &state);
    return code_of(result == ncclSuccess ? state : result);
  }
  NcclCode comm_finalize(NcclCommHandle comm) override { return code_of(ncclCommFinalize(comm)); }
  NcclCode comm_destroy(NcclCommHandle comm) override { return code_of(ncclCommDestroy(comm)); }
  NcclCode comm_abort(NcclCommHandle comm) override { return code_of(ncclCommAbort(comm)); }

  NcclCode group_start() override { return code_of(ncclGroupStart()); }
  NcclCode group_end() override { return code_of(ncclGroupEnd()); }
  NcclCode send(const void* buffer, std::size_t count, NcclType type, int peer, NcclCommHandle comm,
                device::StreamHandle stream) override {
    return code_of(ncclSend(buffer, count, type_of(type), peer, comm, stream));
  }
  NcclCode receive(void* buffer, std::size_t count, NcclType type, int peer, NcclCommHandle comm,
                   device::StreamHandle stream) override {
    return code_of(ncclRecv(buffer, count, type_of(type), peer, comm, stream));
  }
  NcclCode all_gather(const void* input, void* output, std::size_t count_of_rank, NcclType type,
                      NcclCommHandle comm, device::StreamHandle stream) override {
    return code_of(ncclAllGather(input, output, count_of_rank, type_of(type), comm, stream));
  }
  NcclCode all_reduce(const void* input, void* output, std::size_t count, NcclType type, NcclReduction op,
                      NcclCommHandle comm, device::StreamHandle stream) override {
    return code_of(ncclAllReduce(input, output, count, type_of(type), op_of(op), comm, stream));
  }
  NcclCode reduce_scatter(const void* input, void* output, std::size_t count_of_rank, NcclType type,
                          NcclReduction op, NcclCommHandle comm, device::StreamHandle stream) override {
    return code_of(ncclReduceScatter(input, output, count_of_rank, type_of(type), op_of(op), comm, stream));
  }
  NcclCode broadcast(const void* input, void* output, std::size_t count, NcclType type, int root,
                     NcclCommHandle comm, device::StreamHandle stream) override {
    return code_of(ncclBroadcast(input, output, count, type_of(type), root, comm, stream));
  }

  device::StreamHandle compute_stream() override { return device::current_stream(); }
  // High priority: a transfer that others wait for should not queue behind kernels that it overlaps with.
  device::StreamHandle create_stream() override {
    int least = 0;
    int greatest = 0;
    check_cuda(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
    cudaStream_t stream = nullptr;
    check_cuda(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, greatest),
               "cudaStreamCreateWithPriority");
    return stream;
  }
  void destroy_stream(device::StreamHandle stream) noexcept override {
    warn_cuda(cudaStreamDestroy(stream), "cudaStreamDestroy");
  }
  device::EventHandle create_event() override {
    cudaEvent_t event = nullptr;
    check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
    return event;
  }
  void destroy_event(device::EventHandle event) noexcept override {
    warn_cuda(cudaEventDestroy(event), "cudaEventDestroy");
  }
  void record_event(device::EventHandle event, device::StreamHandle stream) override {
    check_cuda(cudaEventRecord(event, stream), "cudaEventRecord");
  }
  void wait_event(device::StreamHandle stream, device::EventHandle event) override {
    check_cuda(cudaStreamWaitEvent(stream, event, 0), "cudaStreamWaitEvent");
  }
  bool query_event(device::EventHandle event) override {
    const cudaError_t state = cudaEventQuery(event);
    if (state == cudaErrorNotReady) {
      static_cast<void>(cudaGetLastError());
      return false;
    }
    check_cuda(state, "cudaEventQuery");
    return true;
  }

 private:
  int version_;
  c10::Device device_;
};

}  // namespace

int nccl_version() {
  int version = 0;
  return ncclGetVersion(&version) == ncclSuccess ? version : 0;
}

std::shared_ptr<NcclApi> make_nccl_library(const NcclLibraryOptions& options) {
  pin("NCCL_ALGO", options.algorithm);
  pin("NCCL_PROTO", options.protocol);
  return std::make_shared<NcclLibrary>();
}

}  // namespace athanor::parallel
