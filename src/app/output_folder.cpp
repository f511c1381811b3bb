#include "app/output_folder.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "base/error.hpp"

namespace athanor::app {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void refuse(const std::string& target, const std::string& reason) {
  throw base::CannotCreateError("{} cannot be created ({}) choose a folder that does not exist yet", target,
                                reason);
}

void check_target(const fs::path& target) {
  std::error_code error;
  const fs::file_status status = fs::status(target, error);
  if (fs::exists(status) && !fs::is_directory(status)) {
    refuse(target.string(), "it is a file");
  }
  if (fs::is_directory(status) && !fs::is_empty(target, error)) {
    refuse(target.string(), error ? error.message() : "it is not empty");
  }
}

void sync(const fs::path& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const bool flushed = file >= 0 && ::fsync(file) == 0;
  const int reason = errno;
  if (file >= 0) {
    ::close(file);
  }
  if (!flushed) {
    throw base::IoError("{} cannot be flushed to disk ({}) check the file system", path.string(),
                        std::strerror(reason));
  }
}

}  // namespace

OutputFolder::OutputFolder(const std::string& target) {
  fs::path path = fs::absolute(target).lexically_normal();
  if (!path.has_filename()) {
    path = path.parent_path();
  }
  target_ = path.string();
  check_target(path);
  const std::string name = fmt::format(".{}.unfinished-{}", path.filename().string(), ::getpid());
  unfinished_ = (path.parent_path() / name).string();
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  if (error || !fs::create_directory(unfinished_, error)) {
    refuse(target_, error ? error.message() : unfinished_ + " is there");
  }
}

OutputFolder::~OutputFolder() {
  if (!published_) {
    std::error_code error;
    fs::remove_all(unfinished_, error);
  }
}

void OutputFolder::write(const std::string& name, const std::string& bytes) const {
  const fs::path path = fs::path(unfinished_) / name;
  std::ofstream file(path, std::ios::binary);
  file << bytes << std::flush;
  if (!file) {
    throw base::IoError("{} cannot be written ({}) free space or choose another folder", path.string(),
                        std::strerror(errno));
  }
}

void OutputFolder::copy(const std::string& source, const std::string& name) const {
  std::error_code error;
  fs::copy_file(source, fs::path(unfinished_) / name, error);
  if (error) {
    throw base::IoError("{} cannot be copied to {} ({}) check both", source, unfinished_, error.message());
  }
}

void OutputFolder::publish() {
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(unfinished_)) {
    sync(entry.path());
  }
  sync(unfinished_);
  std::error_code error;
  fs::rename(unfinished_, target_, error);
  if (error) {
    refuse(target_, error.message());
  }
  published_ = true;
  sync(fs::path(target_).parent_path());
}

}  // namespace athanor::app
