# athanor_add_tests(FOLDER [ATEN] [NP 1 2 ...] [TIMEOUT seconds] [LABELS ...] [LINK targets...])
#
# tests/FOLDER/*_test.cpp become the executable FOLDER_tests (one process, ctest name FOLDER.unit) and
# tests/FOLDER/*_mpi_test.cpp become FOLDER_mpi_tests, run under mpirun once for each rank count in NP
# (ctest names FOLDER.mpi.npN). Labels: the folder's name, and `mpi` or `unit`. In a build with CUDA there are
# also *_gpu_test.cpp, *_gpu_test.cu (FOLDER_gpu_tests, FOLDER.gpu) and *_gpu_mpi_test.cpp (FOLDER_gpu_mpi_tests,
# FOLDER.gpu.npN), all with the label gpu: without a device they are skipped.
find_package(GTest)

function(athanor_add_tests folder)
  cmake_parse_arguments(ARG "ATEN" "TIMEOUT" "NP;LABELS;LINK" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  file(GLOB mpi_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${folder}/*_mpi_test.cpp)
  file(GLOB unit_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${folder}/*_test.cpp)
  set(gpu_sources ${unit_sources} ${mpi_sources})
  list(FILTER gpu_sources INCLUDE REGEX "_gpu(_mpi)?_test\\.cpp$")
  if(gpu_sources)
    list(REMOVE_ITEM unit_sources ${gpu_sources})
    list(REMOVE_ITEM mpi_sources ${gpu_sources})
  endif()
  # Other sources of the folder are shared by the executables.
  file(GLOB helper_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${folder}/*.cpp)
  list(FILTER helper_sources EXCLUDE REGEX "_test\\.cpp$")
  if(mpi_sources)
    list(REMOVE_ITEM unit_sources ${mpi_sources})
  endif()
  if(unit_sources)
    add_executable(${folder}_tests ${unit_sources} ${helper_sources})
    target_link_libraries(${folder}_tests PRIVATE ${ARG_LINK} athanor_test_support GTest::gtest_main)
    athanor_test_settings(${folder}_tests ${ARG_ATEN})
    add_test(NAME ${folder}.unit COMMAND ${folder}_tests)
    set_tests_properties(${folder}.unit PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${folder};unit;${ARG_LABELS}"
      ENVIRONMENT "OMP_NUM_THREADS=1")
  endif()
  if(mpi_sources)
    add_executable(${folder}_mpi_tests ${mpi_sources} ${helper_sources})
    target_link_libraries(${folder}_mpi_tests PRIVATE ${ARG_LINK} athanor_test_support athanor_mpi_main)
    athanor_test_settings(${folder}_mpi_tests ON)
    math(EXPR deadline "${ARG_TIMEOUT} * 5 / 6")  # of one test: it ends with a report, ctest's limit without
    set(mpi_environment ATHANOR_TEST_DEADLINE_S=${deadline} OMP_NUM_THREADS=1 OMPI_MCA_mpi_yield_when_idle=1
      OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1)
    foreach(np IN LISTS ARG_NP)
      set(test ${folder}.mpi.np${np})
      add_test(NAME ${test} COMMAND ${MPIEXEC_EXECUTABLE} --oversubscribe --bind-to none -np ${np}
        $<TARGET_FILE:${folder}_mpi_tests>)
      set_tests_properties(${test} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${folder};mpi;${ARG_LABELS}"
        PROCESSORS ${np} ENVIRONMENT "${mpi_environment}")
    endforeach()
  endif()
  if(ATHANOR_CUDA)
    athanor_add_gpu_tests(${folder} TIMEOUT ${ARG_TIMEOUT} NP ${ARG_NP} LINK ${ARG_LINK}
      SOURCES ${gpu_sources} HELPERS ${helper_sources})
  endif()
endfunction()

# On a machine with GPUs one test at a time uses them; NP beyond their number is skipped by the tests themselves.
function(athanor_add_gpu_tests folder)
  cmake_parse_arguments(ARG "" "TIMEOUT" "NP;LINK;SOURCES;HELPERS" ${ARGN})
  file(GLOB device_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${folder}/*_gpu_test.cu)
  set(mpi_sources ${ARG_SOURCES})
  list(FILTER mpi_sources INCLUDE REGEX "_gpu_mpi_test\\.cpp$")
  set(unit_sources ${ARG_SOURCES} ${device_sources})
  if(mpi_sources)
    list(REMOVE_ITEM unit_sources ${mpi_sources})
  endif()
  if(unit_sources)
    add_executable(${folder}_gpu_tests ${unit_sources} ${ARG_HELPERS})
    target_link_libraries(${folder}_gpu_tests PRIVATE ${ARG_LINK} athanor_gpu_test_support athanor_gpu_main)
    athanor_test_settings(${folder}_gpu_tests ON)
    add_test(NAME ${folder}.gpu COMMAND ${folder}_gpu_tests)
    set(tests ${folder}.gpu)
  endif()
  if(mpi_sources)
    add_executable(${folder}_gpu_mpi_tests ${mpi_sources} ${ARG_HELPERS})
    target_link_libraries(${folder}_gpu_mpi_tests PRIVATE ${ARG_LINK} athanor_gpu_test_support athanor_mpi_main)
    athanor_test_settings(${folder}_gpu_mpi_tests ON)
    foreach(np IN LISTS ARG_NP)
      add_test(NAME ${folder}.gpu.np${np} COMMAND ${MPIEXEC_EXECUTABLE} --oversubscribe --bind-to none -np ${np}
        $<TARGET_FILE:${folder}_gpu_mpi_tests>)
      list(APPEND tests ${folder}.gpu.np${np})
    endforeach()
  endif()
  if(tests)
    math(EXPR deadline "${ARG_TIMEOUT} * 5 / 6")
    set(environment ATHANOR_TEST_SKIP_CODE=77 ATHANOR_TEST_DEADLINE_S=${deadline} OMP_NUM_THREADS=1
      OMPI_MCA_mpi_yield_when_idle=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1)
    set_tests_properties(${tests} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${folder};gpu" RESOURCE_LOCK gpu
      SKIP_RETURN_CODE 77 ENVIRONMENT "${environment}")
  endif()
endfunction()

function(athanor_test_settings target aten)
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  if(aten)
    target_link_libraries(${target} PRIVATE LibTorch::cpu)
    # The precompiled header is made with -fPIC; executables get -fPIE by default, which would not match.
    target_compile_options(${target} PRIVATE -fPIC)
    target_precompile_headers(${target} REUSE_FROM athanor_pch)
  endif()
endfunction()
