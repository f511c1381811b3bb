# athanor_add_component(NAME [ATEN] [PUBLIC targets...] [PRIVATE targets...])
#
# One static library per folder of src/: every .cpp below the folder belongs to it. ATEN links LibTorch and
# shares the one precompiled header.
add_library(athanor_pch STATIC ${PROJECT_SOURCE_DIR}/cmake/pch/pch.cpp)
target_link_libraries(athanor_pch PUBLIC athanor::flags LibTorch::cpu)
target_precompile_headers(athanor_pch PRIVATE ${PROJECT_SOURCE_DIR}/cmake/pch/pch.hpp)

function(athanor_add_component name)
  cmake_parse_arguments(ARG "ATEN" "" "PUBLIC;PRIVATE" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${name}/*.cpp)
  if(NOT sources)  # headers only
    add_library(athanor_${name} INTERFACE)
    add_library(athanor::${name} ALIAS athanor_${name})
    target_include_directories(athanor_${name} INTERFACE ${PROJECT_SOURCE_DIR}/src)
    target_link_libraries(athanor_${name} INTERFACE athanor::flags ${ARG_PUBLIC} ${ARG_PRIVATE})
    return()
  endif()
  add_library(athanor_${name} STATIC ${sources})
  add_library(athanor::${name} ALIAS athanor_${name})
  target_include_directories(athanor_${name} PUBLIC ${PROJECT_SOURCE_DIR}/src)
  target_link_libraries(athanor_${name} PUBLIC athanor::flags ${ARG_PUBLIC} PRIVATE ${ARG_PRIVATE})
  if(ARG_ATEN)
    target_link_libraries(athanor_${name} PUBLIC LibTorch::cpu)
    target_precompile_headers(athanor_${name} REUSE_FROM athanor_pch)
  endif()
endfunction()
