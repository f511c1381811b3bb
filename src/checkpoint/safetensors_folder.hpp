// A model's tensors as a folder of safetensors files: model.safetensors, or numbered files with the index
// model.safetensors.index.json, as Hugging Face's libraries write and read them.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/safetensors.hpp"

namespace athanor::checkpoint {

/// Reads such a folder. Not thread-safe.
class SafetensorsFolder {
 public:
  /// Reads and checks the index and all headers: index and files hold the same tensors, each once. Throws
  /// MissingInputError (no such folder, no weights in it, a file of the index is missing), DataError.
  explicit SafetensorsFolder(const std::string& folder);
  ~SafetensorsFolder();
  SafetensorsFolder(const SafetensorsFolder&) = delete;
  SafetensorsFolder& operator=(const SafetensorsFolder&) = delete;

  /// All tensors by name.
  const std::map<std::string, SafetensorsEntry>& tensors() const { return tensors_; }
  /// Path of the file that holds a tensor, for messages.
  const std::string& file_of(const std::string& name) const;
  /// Reads `bytes` bytes of a tensor from its byte `first_byte` on. Throws IoError, DataError (cut off since
  /// it was opened).
  void read(const std::string& name, std::int64_t first_byte, std::int64_t bytes, void* to) const;

 private:
  class File;
  void add_file(const std::string& path, const std::string& file_name,
                const std::map<std::string, std::string>* index);

  std::map<std::string, SafetensorsEntry> tensors_;
  std::map<std::string, const File*> file_of_tensor_;
  std::vector<std::unique_ptr<File>> files_;
};

/// Writes such a folder: sizes first, contents in any order.
class SafetensorsFolderWriter {
 public:
  /// Lays the tensors (name, dtype, shape) out in files of at most `max_file_bytes` of tensors, in the order
  /// of names, and creates them in the existing folder. A larger tensor gets a file of its own. Throws
  /// CannotCreateError, IoError.
  SafetensorsFolderWriter(const std::string& folder, std::vector<SafetensorsEntry> tensors,
                          std::int64_t max_file_bytes);
  ~SafetensorsFolderWriter();
  SafetensorsFolderWriter(const SafetensorsFolderWriter&) = delete;
  SafetensorsFolderWriter& operator=(const SafetensorsFolderWriter&) = delete;

  /// A whole tensor; `data` has its dtype. Throws IoError.
  void write(const std::string& name, const void* data);
  /// Writes the index where there is more than one file and flushes everything to disk. Throws IoError,
  /// InternalError when a tensor has not been written.
  void finish();

  std::int64_t num_files() const { return static_cast<std::int64_t>(files_.size()); }
  std::int64_t tensor_bytes() const { return tensor_bytes_; }

 private:
  struct File;
  void create_file(std::vector<SafetensorsEntry> tensors, std::size_t number, std::size_t count);
  void write_index() const;

  std::string folder_;
  std::int64_t tensor_bytes_ = 0;
  std::int64_t num_elements_ = 0;
  std::vector<std::unique_ptr<File>> files_;
  std::map<std::string, File*> file_of_tensor_;
  std::size_t num_written_ = 0;
};

}  // namespace athanor::checkpoint
