#include "checkpoint/safetensors_folder.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.hpp"
#include "checkpoint/detail/durable_files.hpp"

namespace athanor::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr const char* single_name = "model.safetensors";
constexpr const char* index_name = "model.safetensors.index.json";
constexpr std::int64_t max_io_bytes = std::int64_t{1} << 30;  // of one system call

/// An open file descriptor.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) {
      ::close(fd_);
    }
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  int get() const { return fd_; }

 private:
  int fd_ = -1;
};

Descriptor create_file_at(const std::string& path) {
  Descriptor file(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (file.get() < 0) {
    throw base::CannotCreateError("{} cannot be created ({}) choose a folder you may write to", path,
                                  std::strerror(errno));
  }
  return file;
}

void write_at(const Descriptor& file, const std::string& path, const void* data, std::int64_t bytes,
              std::int64_t offset) {
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t done =
        ::pwrite(file.get(), from, static_cast<std::size_t>(std::min(bytes, max_io_bytes)), offset);
    if (done < 0 && errno == EINTR) {
      continue;
    }
    if (done <= 0) {
      throw base::IoError("{} cannot be written ({}) free space or choose another folder", path,
                          std::strerror(errno));
    }
    from += done;
    bytes -= done;
    offset += done;
  }
}

void sync(const Descriptor& file, const std::string& path) {
  if (::fsync(file.get()) != 0) {
    throw base::IoError("{} cannot be flushed to disk ({}) check the file system", path,
                        std::strerror(errno));
  }
}

// The index's map from tensor to file name; names lead nowhere but into the folder.
std::map<std::string, std::string> read_weight_map(const fs::path& path) {
  const nlohmann::json json =
      nlohmann::json::parse(detail::read_whole_file(path.string()), nullptr, /*allow_exceptions=*/false);
  const auto map = json.is_object() ? json.find("weight_map") : json.end();
  if (!json.is_object() || map == json.end() || !map->is_object() || map->empty()) {
    throw base::DataError("{} has no weight_map (damaged, or not an index of safetensors files)",
                          path.string());
  }
  std::map<std::string, std::string> weights;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string() || fs::path(file.get<std::string>()).filename() != file.get<std::string>()) {
      throw base::DataError("{}: the file of tensor {} is not a plain file name (damaged index)",
                            path.string(), tensor);
    }
    weights[tensor] = file.get<std::string>();
  }
  return weights;
}

}  // namespace

/// One file that is read; opened at the first use.
class SafetensorsFolder::File {
 public:
  File(std::string path, std::int64_t data_begin) : path_(std::move(path)), data_begin_(data_begin) {}

  const std::string& path() const { return path_; }

  void read_at(void* data, std::int64_t bytes, std::int64_t offset) const {
    open();
    char* to = static_cast<char*>(data);
    offset += data_begin_;
    while (bytes > 0) {
      const ssize_t done =
          ::pread(file_.get(), to, static_cast<std::size_t>(std::min(bytes, max_io_bytes)), offset);
      if (done < 0 && errno == EINTR) {
        continue;
      }
      if (done == 0) {
        throw base::DataError("{} ends at byte {} (it was cut off while it was read) copy it again", path_,
                              offset);
      }
      if (done < 0) {
        throw base::IoError("{} cannot be read ({}) check the file system", path_, std::strerror(errno));
      }
      to += done;
      bytes -= done;
      offset += done;
    }
  }

 private:
  void open() const {
    if (file_.get() >= 0) {
      return;
    }
    file_ = Descriptor(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
    if (file_.get() < 0) {
      throw base::IoError("{} cannot be opened ({}) check its permissions", path_, std::strerror(errno));
    }
  }

  std::string path_;
  std::int64_t data_begin_;
  mutable Descriptor file_;
};

SafetensorsFolder::SafetensorsFolder(const std::string& folder) {
  const fs::path path(folder);
  if (!fs::is_directory(path)) {
    throw base::MissingInputError("{} is not a folder (a model's files lie in one) give the folder", folder);
  }
  if (fs::exists(path / single_name)) {
    add_file((path / single_name).string(), single_name, nullptr);
    return;
  }
  if (!fs::exists(path / index_name)) {
    throw base::MissingInputError(
        "{} holds no weights (neither {} nor {} is there) give a model's folder; weights in other formats "
        "must "
        "be saved as safetensors first",
        folder, single_name, index_name);
  }
  const auto index = read_weight_map(path / index_name);
  std::map<std::string, std::string> a_tensor_of;  // each file once, with one of its tensors
  for (const auto& [tensor, file] : index) {
    a_tensor_of[file] = tensor;
  }
  for (const auto& [file, tensor] : a_tensor_of) {
    if (!fs::exists(path / file)) {
      throw base::MissingInputError("{} is missing ({} names it for tensor {}) copy it again",
                                    (path / file).string(), index_name, tensor);
    }
  }
  for (const auto& [file, tensor] : a_tensor_of) {
    add_file((path / file).string(), file, &index);
  }
  for (const auto& [tensor, file] : index) {
    if (!tensors_.contains(tensor)) {
      throw base::DataError("{}: tensor {} is not in it ({} says so) copy both again", (path / file).string(),
                            tensor, index_name);
    }
  }
}

SafetensorsFolder::~SafetensorsFolder() = default;

void SafetensorsFolder::add_file(const std::string& path, const std::string& file_name,
                                 const std::map<std::string, std::string>* index) {
  SafetensorsHeader header = read_safetensors_header(path);
  files_.push_back(std::make_unique<File>(path, header.data_begin));
  for (SafetensorsEntry& entry : header.entries) {
    const std::string name = entry.name;
    if (index != nullptr) {
      const auto found = index->find(name);
      if (found == index->end() || found->second != file_name) {
        throw base::DataError("{}: tensor {} should not be in it (by {}) copy both again", path, name,
                              index_name);
      }
    }
    tensors_.emplace(name, std::move(entry));
    file_of_tensor_.emplace(name, files_.back().get());
  }
}

const std::string& SafetensorsFolder::file_of(const std::string& name) const {
  return file_of_tensor_.at(name)->path();
}

void SafetensorsFolder::read(const std::string& name, std::int64_t first_byte, std::int64_t bytes,
                             void* to) const {
  const SafetensorsEntry& entry = tensors_.at(name);
  ATHANOR_CHECK(first_byte >= 0 && bytes >= 0 && bytes <= entry.end - entry.begin - first_byte,
                "bytes {} to {} of tensor {}", first_byte, first_byte + bytes, name);
  file_of_tensor_.at(name)->read_at(to, bytes, entry.begin + first_byte);
}

struct SafetensorsFolderWriter::File {
  std::string path;
  SafetensorsHeader header;
  std::map<std::string, const SafetensorsEntry*> entries;
  Descriptor descriptor;
};

SafetensorsFolderWriter::SafetensorsFolderWriter(const std::string& folder,
                                                 std::vector<SafetensorsEntry> tensors,
                                                 std::int64_t max_file_bytes)
    : folder_(folder) {
  std::sort(tensors.begin(), tensors.end(),
            [](const SafetensorsEntry& a, const SafetensorsEntry& b) { return a.name < b.name; });
  std::vector<std::vector<SafetensorsEntry>> groups(1);
  std::int64_t group_bytes = 0;
  for (SafetensorsEntry& tensor : tensors) {
    std::int64_t elements = 1;
    for (const std::int64_t extent : tensor.shape) {
      elements *= extent;
    }
    const std::int64_t bytes = elements * safetensors_element_bytes(tensor.dtype);
    if (bytes > 0 && group_bytes + bytes > max_file_bytes && !groups.back().empty()) {
      groups.emplace_back();
      group_bytes = 0;
    }
    group_bytes += bytes;
    tensor_bytes_ += bytes;
    num_elements_ += elements;
    groups.back().push_back(std::move(tensor));
  }
  for (std::size_t i = 0; i < groups.size(); ++i) {
    create_file(std::move(groups[i]), i + 1, groups.size());
  }
}

SafetensorsFolderWriter::~SafetensorsFolderWriter() = default;

void SafetensorsFolderWriter::create_file(std::vector<SafetensorsEntry> tensors, std::size_t number,
                                          std::size_t count) {
  auto file = std::make_unique<File>();
  const std::string name =
      count == 1 ? single_name : fmt::format("model-{:05}-of-{:05}.safetensors", number, count);
  file->path = (fs::path(folder_) / name).string();
  file->header.metadata["format"] = "pt";
  file->header.entries = std::move(tensors);
  // Wider elements first, so that all are aligned; then by name.
  std::stable_sort(file->header.entries.begin(), file->header.entries.end(),
                   [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
                     return safetensors_element_bytes(a.dtype) > safetensors_element_bytes(b.dtype);
                   });
  const std::string bytes = layout_safetensors(file->header);
  file->descriptor = create_file_at(file->path);
  write_at(file->descriptor, file->path, bytes.data(), static_cast<std::int64_t>(bytes.size()), 0);
  for (const SafetensorsEntry& entry : file->header.entries) {
    file->entries.emplace(entry.name, &entry);
    file_of_tensor_.emplace(entry.name, file.get());
  }
  files_.push_back(std::move(file));
}

void SafetensorsFolderWriter::write(const std::string& name, const void* data) {
  const File& file = *file_of_tensor_.at(name);
  const SafetensorsEntry& entry = *file.entries.at(name);
  write_at(file.descriptor, file.path, data, entry.end - entry.begin, file.header.data_begin + entry.begin);
  ++num_written_;
}

void SafetensorsFolderWriter::finish() {
  ATHANOR_CHECK(num_written_ == file_of_tensor_.size(), "{} of {} tensors were written", num_written_,
                file_of_tensor_.size());
  for (const auto& file : files_) {
    sync(file->descriptor, file->path);
  }
  if (files_.size() > 1) {
    write_index();
  }
  detail::fsync_path(folder_);
}

void SafetensorsFolderWriter::write_index() const {
  nlohmann::json json;
  json["metadata"] = {{"total_parameters", num_elements_}, {"total_size", tensor_bytes_}};
  for (const auto& [tensor, file] : file_of_tensor_) {
    json["weight_map"][tensor] = fs::path(file->path).filename().string();
  }
  detail::write_durably(folder_, index_name, json.dump(2) + "\n");
}

}  // namespace athanor::checkpoint
