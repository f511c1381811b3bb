# The CUDA language and libraries; included with ATHANOR_CUDA=ON only.
#
# CMAKE_CUDA_ARCHITECTURES (default 80, 90 and 100) chooses the devices. CUDAToolkit_ROOT, CUDACXX and NCCL_ROOT name
# a toolkit and an NCCL of your own. Defines athanor::cuda_flags for sources that are compiled with CUDA only.
set(CMAKE_CUDA_ARCHITECTURES "80;90;100" CACHE STRING "Compute capabilities to generate code for")

if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(_nvcc nvcc HINTS ${CUDAToolkit_ROOT} ENV CUDAToolkit_ROOT ENV CUDA_HOME /usr/local/cuda
    PATH_SUFFIXES bin NO_CACHE)
  if(NOT _nvcc)
    message(FATAL_ERROR "ATHANOR_CUDA=ON needs CUDA's compiler, and there is no nvcc (neither in PATH nor in "
      "/usr/local/cuda/bin): install a CUDA 13 toolkit, name one with -DCUDAToolkit_ROOT=<folder>, or configure "
      "without ATHANOR_CUDA for the program on CPUs.")
  endif()
  set(CMAKE_CUDA_COMPILER ${_nvcc})
endif()
# One CUDA runtime in the process: LibTorch's libraries load the shared one.
set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
set(CMAKE_CUDA_USE_RESPONSE_FILE_FOR_INCLUDES OFF)
enable_language(CUDA)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # a CMake older than nvcc's C++20
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
# What g++ searches anyway must not be named to nvcc: it would come before the compiler's own headers.
list(APPEND CMAKE_CUDA_IMPLICIT_INCLUDE_DIRECTORIES ${CMAKE_CXX_IMPLICIT_INCLUDE_DIRECTORIES})
find_package(CUDAToolkit 13 REQUIRED)
find_package(NCCL REQUIRED)
if(NOT TARGET LibTorch::cuda)
  message(FATAL_ERROR "ATHANOR_CUDA=ON needs a LibTorch with CUDA, and ${LibTorch_INCLUDE_DIR} belongs to one without "
    "(no libc10_cuda or libtorch_cuda beside libtorch_cpu): point LIBTORCH_ROOT to a CUDA build.")
endif()

# Line directives in what nvcc generates are no ISO C++, hence no -Wpedantic for the host part.
set(_cuda_warnings -Xcompiler=-Wall,-Wextra $<$<BOOL:${ATHANOR_WERROR}>:-Werror=all-warnings>
  $<$<BOOL:${ATHANOR_WERROR}>:-Xcompiler=-Werror>)
target_compile_options(athanor_flags INTERFACE
  "$<$<COMPILE_LANGUAGE:CUDA>:${_cuda_warnings};--expt-relaxed-constexpr>")

add_library(athanor_cuda INTERFACE)
add_library(athanor::cuda ALIAS athanor_cuda)
target_link_libraries(athanor_cuda INTERFACE LibTorch::cuda CUDA::cudart CUDA::cublas CUDA::cublasLt)
# Of two cuBLAS of one major version the newer serves both, and LibTorch's wheel is built with the one that comes with
# it.
foreach(_dir IN ITEMS ${PROJECT_SOURCE_DIR}/.deps/libtorch/nvidia/cu13/lib ${CUDAToolkit_LIBRARY_DIR})
  if(EXISTS ${_dir}/libcublas.so.13)
    target_link_options(athanor_cuda INTERFACE -Wl,--disable-new-dtags -Wl,-rpath,${_dir})
  endif()
endforeach()
