# Finds LibTorch and defines LibTorch::cpu and, where this LibTorch has CUDA libraries, LibTorch::cuda.
#
# LIBTORCH_ROOT (CMake or environment variable) names a LibTorch folder: one with include/ and lib/, a Python
# wheel's torch/ folder, or a folder that holds torch/. Default: the wheel that scripts/install_dependencies.sh
# puts under .deps/. The wheel's own CMake package insists on a CUDA toolkit, so its libraries are linked directly.
set(LIBTORCH_ROOT "$ENV{LIBTORCH_ROOT}" CACHE PATH "LibTorch folder (include/ and lib/ inside)")
set(_libtorch_hints ${LIBTORCH_ROOT} ${LIBTORCH_ROOT}/torch)
if(NOT LIBTORCH_ROOT)
  set(_libtorch_hints ${PROJECT_SOURCE_DIR}/.deps/libtorch/torch)
endif()

find_path(LibTorch_INCLUDE_DIR ATen/ATen.h HINTS ${_libtorch_hints} PATH_SUFFIXES include NO_DEFAULT_PATH)
find_library(LibTorch_CPU_LIBRARY torch_cpu HINTS ${_libtorch_hints} PATH_SUFFIXES lib NO_DEFAULT_PATH)
find_library(LibTorch_C10_LIBRARY c10 HINTS ${_libtorch_hints} PATH_SUFFIXES lib NO_DEFAULT_PATH)
find_library(LibTorch_C10_CUDA_LIBRARY c10_cuda HINTS ${_libtorch_hints} PATH_SUFFIXES lib NO_DEFAULT_PATH)
find_library(LibTorch_CUDA_LIBRARY torch_cuda HINTS ${_libtorch_hints} PATH_SUFFIXES lib NO_DEFAULT_PATH)

# The CUDA build of the wheel needs these two at load time, from a toolkit or from the small NVIDIA wheels.
set(_libtorch_runtime_hints
  ${PROJECT_SOURCE_DIR}/.deps/libtorch/nvidia/cu13/lib
  /usr/local/cuda/lib64 /usr/local/cuda/lib /usr/local/cuda/extras/CUPTI/lib64
  /usr/local/cuda-13.0/lib64 /usr/local/cuda-13.0/lib)
find_file(LibTorch_CUDART_LIBRARY libcudart.so.13 HINTS ${_libtorch_runtime_hints} NO_DEFAULT_PATH)
find_file(LibTorch_CUPTI_LIBRARY libcupti.so.13 HINTS ${_libtorch_runtime_hints} NO_DEFAULT_PATH)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibTorch
  REQUIRED_VARS LibTorch_CPU_LIBRARY LibTorch_C10_LIBRARY LibTorch_INCLUDE_DIR
  REASON_FAILURE_MESSAGE "run scripts/install_dependencies.sh, or pass -DLIBTORCH_ROOT=<folder>")

if(LibTorch_FOUND AND NOT TARGET LibTorch::cpu)
  get_filename_component(_libtorch_lib_dir ${LibTorch_CPU_LIBRARY} DIRECTORY)
  add_library(LibTorch::cpu INTERFACE IMPORTED)
  target_include_directories(LibTorch::cpu SYSTEM INTERFACE
    ${LibTorch_INCLUDE_DIR} ${LibTorch_INCLUDE_DIR}/torch/csrc/api/include)
  target_link_libraries(LibTorch::cpu INTERFACE ${LibTorch_CPU_LIBRARY} ${LibTorch_C10_LIBRARY})
  set(_libtorch_rpath ${_libtorch_lib_dir})
  foreach(_runtime IN ITEMS ${LibTorch_CUDART_LIBRARY} ${LibTorch_CUPTI_LIBRARY})
    if(EXISTS "${_runtime}")
      get_filename_component(_runtime_dir ${_runtime} DIRECTORY)
      list(APPEND _libtorch_rpath ${_runtime_dir})
    endif()
  endforeach()
  list(REMOVE_DUPLICATES _libtorch_rpath)
  # DT_RPATH, not DT_RUNPATH: it also serves the libraries that libtorch_cpu itself needs.
  target_link_options(LibTorch::cpu INTERFACE -Wl,--disable-new-dtags -Wl,--allow-shlib-undefined)
  foreach(_dir IN LISTS _libtorch_rpath)
    target_link_options(LibTorch::cpu INTERFACE -Wl,-rpath,${_dir})
  endforeach()
endif()

# Only c10_cuda (streams, the caching allocator) is linked. libtorch_cuda, with its operators, is loaded at start by a
# run that asks for a GPU: it needs cuDNN, cuSPARSELt, NVSHMEM, cuFile and a recent NCCL, without which a program that
# is linked to it could not even say what is missing.
if(LibTorch_FOUND AND LibTorch_C10_CUDA_LIBRARY AND LibTorch_CUDA_LIBRARY AND NOT TARGET LibTorch::cuda)
  add_library(LibTorch::cuda INTERFACE IMPORTED)
  target_link_libraries(LibTorch::cuda INTERFACE LibTorch::cpu ${LibTorch_C10_CUDA_LIBRARY})
endif()
