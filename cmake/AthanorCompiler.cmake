# Compiler settings shared by every target: warnings, sanitizers, ccache.
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  # The sloppiness lets ccache serve files that use the precompiled header; the base folder makes it see relative
  # paths, so that builds of different presets with equal flags share objects.
  set(_launcher
      ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
      CCACHE_DIR=${PROJECT_SOURCE_DIR}/.deps/ccache CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} ${CCACHE_PROGRAM})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${_launcher})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${_launcher})
endif()

add_library(athanor_flags INTERFACE)
add_library(athanor::flags ALIAS athanor_flags)
set(_warnings -Wall -Wextra -Wpedantic -Wnon-virtual-dtor -Woverloaded-virtual -fpch-preprocess
  $<$<BOOL:${ATHANOR_WERROR}>:-Werror>)
target_compile_options(athanor_flags INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${_warnings}>")
# Hidden by default in Release only: no -ffast-math anywhere, results must not depend on reassociation.
if(ATHANOR_SANITIZE)
  target_compile_options(athanor_flags INTERFACE
    -fsanitize=${ATHANOR_SANITIZE} -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
  target_link_options(athanor_flags INTERFACE -fsanitize=${ATHANOR_SANITIZE})
endif()
