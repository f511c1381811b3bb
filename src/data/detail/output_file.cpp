#include "data/detail/output_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/error.hpp"

namespace athanor::data::detail {

namespace {
constexpr std::size_t buffer_bytes = 1 << 20;
}  // namespace

OutputFile::OutputFile(const std::string& path) : path_(path), partial_path_(path + ".partial") {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (!folder.empty()) {
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    if (error) {
      throw base::CannotCreateError("the folder {} cannot be created ({}) choose another output",
                                    folder.string(), error.message());
    }
  }
  descriptor_ = ::open(partial_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor_ < 0) {
    throw base::CannotCreateError("{} cannot be created ({}) choose another output or change the permissions",
                                  partial_path_, std::strerror(errno));
  }
  buffer_.reserve(buffer_bytes);
}

OutputFile::~OutputFile() {
  if (descriptor_ >= 0) {
    ::close(descriptor_);
  }
  if (!finished_) {
    ::unlink(partial_path_.c_str());
  }
}

void OutputFile::fail(const char* what) const {
  throw base::IoError("{} cannot be {} ({}) free space or choose another output", partial_path_, what,
                      std::strerror(errno));
}

void OutputFile::write(const void* data, std::size_t size) {
  const char* bytes = static_cast<const char*>(data);
  buffer_.insert(buffer_.end(), bytes, bytes + size);
  if (buffer_.size() >= buffer_bytes) {
    flush_buffer();
  }
}

void OutputFile::flush_buffer() {
  for (std::size_t done = 0; done < buffer_.size();) {
    const ssize_t written = ::write(descriptor_, buffer_.data() + done, buffer_.size() - done);
    if (written < 0) {
      if (errno == EINTR) {
        continue;
      }
      fail("written");
    }
    done += static_cast<std::size_t>(written);
  }
  buffer_.clear();
}

void OutputFile::finish() {
  flush_buffer();
  if (::fsync(descriptor_) != 0) {
    fail("flushed to disk");
  }
  const int descriptor = descriptor_;
  descriptor_ = -1;
  if (::close(descriptor) != 0 || ::rename(partial_path_.c_str(), path_.c_str()) != 0) {
    fail("given its final name");
  }
  finished_ = true;
}

}  // namespace athanor::data::detail
