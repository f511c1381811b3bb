// What a CUDA stream and event are called in signatures, without any header of CUDA.
#pragma once

struct CUstream_st;
struct CUevent_st;

namespace athanor::device {

/// cudaStream_t. Null is the legacy default stream; in a build without CUDA there is no other.
using StreamHandle = ::CUstream_st*;
/// cudaEvent_t.
using EventHandle = ::CUevent_st*;

}  // namespace athanor::device
