// The NCCL library of this machine behind the table.
#pragma once

#include <memory>
#include <string>

#include "parallel/nccl/nccl_api.hpp"

namespace athanor::parallel {

/// NCCL chooses its algorithm and protocol by size and topology; with these fixed its sums have the same bits
/// in every run on one topology. Given to the library through NCCL_ALGO and NCCL_PROTO, which are set for the
/// process before its first call unless the user has set them already; the ranks of a group refuse to start
/// with different ones.
struct NcclLibraryOptions {
  std::string algorithm = "Ring";  ///< the one that every operation has
  std::string protocol = "Simple";
};

/// Of the library that is loaded, e.g. 23007 for 2.30.7; 0 in a build without CUDA.
int nccl_version();

/// The table of the current device (Device::take_gpu). Make one for a process. Throws ConfigError in a build
/// without CUDA, CommError when NCCL's version cannot be asked.
std::shared_ptr<NcclApi> make_nccl_library(const NcclLibraryOptions& options = {});

}  // namespace athanor::parallel
