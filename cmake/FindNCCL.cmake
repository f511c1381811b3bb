# Finds NCCL and defines NCCL::nccl and NCCL_VERSION (of the header).
#
# NCCL_ROOT (CMake or environment variable) names a folder with include/ and lib/. Otherwise: the wheel beside
# LibTorch's under .deps/, then the CUDA toolkit's folder, then the system's.
set(_nccl_hints ${NCCL_ROOT} $ENV{NCCL_ROOT})
set(_nccl_defaults ${PROJECT_SOURCE_DIR}/.deps/libtorch/nvidia/nccl ${CUDAToolkit_TARGET_DIR}
  ${CUDAToolkit_LIBRARY_ROOT})
find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${_nccl_hints} ${_nccl_defaults} PATH_SUFFIXES include)
get_filename_component(_nccl_prefix "${NCCL_INCLUDE_DIR}" DIRECTORY)
find_library(NCCL_LIBRARY NAMES nccl libnccl.so.2 HINTS ${_nccl_hints} ${_nccl_prefix} ${_nccl_defaults}
  PATH_SUFFIXES lib lib64 lib/x86_64-linux-gnu)
if(NCCL_INCLUDE_DIR)
  file(STRINGS ${NCCL_INCLUDE_DIR}/nccl.h _nccl_lines REGEX "#define NCCL_(MAJOR|MINOR|PATCH) +[0-9]+")
  string(REGEX REPLACE ".*NCCL_MAJOR +([0-9]+).*NCCL_MINOR +([0-9]+).*NCCL_PATCH +([0-9]+).*" "\\1.\\2.\\3"
    NCCL_VERSION "${_nccl_lines}")
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(NCCL REQUIRED_VARS NCCL_LIBRARY NCCL_INCLUDE_DIR VERSION_VAR NCCL_VERSION
  REASON_FAILURE_MESSAGE "install libnccl-dev or the wheel nvidia-nccl-cu13, or pass -DNCCL_ROOT=<folder>")
if(NCCL_FOUND AND NOT TARGET NCCL::nccl)
  get_filename_component(_nccl_lib_dir ${NCCL_LIBRARY} DIRECTORY)
  add_library(NCCL::nccl INTERFACE IMPORTED)
  target_include_directories(NCCL::nccl SYSTEM INTERFACE ${NCCL_INCLUDE_DIR})
  target_link_libraries(NCCL::nccl INTERFACE ${NCCL_LIBRARY})
  target_link_options(NCCL::nccl INTERFACE -Wl,-rpath,${_nccl_lib_dir})
endif()
