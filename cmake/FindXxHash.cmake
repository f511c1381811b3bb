# Finds xxHash's headers (used header-only) and defines XxHash::xxhash.
find_path(XxHash_INCLUDE_DIR xxh3.h)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(XxHash REQUIRED_VARS XxHash_INCLUDE_DIR)
if(XxHash_FOUND AND NOT TARGET XxHash::xxhash)
  add_library(XxHash::xxhash INTERFACE IMPORTED)
  target_include_directories(XxHash::xxhash SYSTEM INTERFACE ${XxHash_INCLUDE_DIR})
endif()
