# athanor_add_tests(FOLDER [ATEN] [NP 1 2 ...] [TIMEOUT seconds] [LABELS ...] [LINK targets...])
#
# tests/FOLDER/*_test.cpp become the executable FOLDER_tests (one process, ctest name FOLDER.unit) and
# tests/FOLDER/*_mpi_test.cpp become FOLDER_mpi_tests, run under mpirun once for each rank count in NP
# (ctest names FOLDER.mpi.npN). Labels: the folder's name, and `mpi` or `unit`.
find_package(GTest)

function(athanor_add_tests folder)
  cmake_parse_arguments(ARG "ATEN" "TIMEOUT" "NP;LABELS;LINK" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  file(GLOB mpi_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${folder}/*_mpi_test.cpp)
  file(GLOB unit_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${folder}/*_test.cpp)
  # Other sources of the folder are shared by both executables.
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
