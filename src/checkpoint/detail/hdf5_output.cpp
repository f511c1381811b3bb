#include "checkpoint/detail/hdf5_output.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include "base/error.hpp"
#include "checkpoint/detail/hdf5_handle.hpp"

namespace athanor::checkpoint::detail {

void write_new_hdf5(const std::string& path, const std::function<void()>& write) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) == 0) {
    throw base::IoError("cannot write {} (it is there already) write into a new folder", path);
  }
  try {
    write();
  } catch (const Hdf5Failure& failure) {
    ::unlink(path.c_str());
    throw base::IoError("cannot write {} ({}) check the storage and its free space", path, failure.what());
  } catch (...) {
    ::unlink(path.c_str());
    throw;
  }
}

}  // namespace athanor::checkpoint::detail
