// Owned HDF5 identifiers and checked calls. Everything here is for the I/O thread.
#pragma once

#include <hdf5.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/tensor_slice.hpp"

namespace athanor::checkpoint::detail {

/// A failed HDF5 call, with what the library says of it. Callers turn it into an error that names the file.
class Hdf5Failure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// An identifier that is closed once. A close that can lose data must be done by close().
class Hdf5Handle {
 public:
  using Closer = herr_t (*)(hid_t);

  Hdf5Handle() = default;
  /// Takes over `id`; throws Hdf5Failure naming `action` when it is negative.
  Hdf5Handle(hid_t id, Closer closer, const char* action);
  ~Hdf5Handle();
  Hdf5Handle(Hdf5Handle&& other) noexcept;
  Hdf5Handle& operator=(Hdf5Handle&& other) noexcept;
  Hdf5Handle(const Hdf5Handle&) = delete;
  Hdf5Handle& operator=(const Hdf5Handle&) = delete;

  hid_t id() const { return id_; }
  /// Closes; throws Hdf5Failure naming `action`.
  void close(const char* action);

 private:
  hid_t id_ = H5I_INVALID_HID;
  Closer closer_ = nullptr;
};

/// Throws Hdf5Failure naming `action` when `status`, the result of a call, is negative.
void hdf5_check(std::int64_t status, const char* action);

/// Properties for opening and creating files: format V110, no file locks (checkpoints never change; some file
/// systems have none).
Hdf5Handle file_access();
/// An existing file, read only.
Hdf5Handle open_hdf5_file(const std::string& path);

/// The stored type of elements: little-endian; bf16 as unsigned 16-bit integers.
Hdf5Handle hdf5_type(ElementType type);
Hdf5Handle simple_space(const std::vector<std::int64_t>& shape);
/// Properties of a dataset whose space is laid out in one piece at creation and never filled.
Hdf5Handle contiguous_layout();
/// Properties of a link whose UTF-8 name's groups are made as needed.
Hdf5Handle link_with_groups();
/// Where the data of a contiguous dataset begin in its file; throws Hdf5Failure when they are not in one
/// piece of that file.
std::int64_t data_offset(const Hdf5Handle& dataset);

/// Attributes: 64-bit integers (a scalar, or a list) and fixed-length UTF-8 strings.
void write_attribute(hid_t object, const char* name, std::int64_t value);
void write_attribute(hid_t object, const char* name, const std::vector<std::int64_t>& values);
void write_attribute(hid_t object, const char* name, const std::string& value);
/// The inverse; throw Hdf5Failure when absent or of another type. Lists have at most 32 entries, strings 4096
/// bytes.
std::int64_t read_integer_attribute(hid_t object, const char* name);
std::vector<std::int64_t> read_list_attribute(hid_t object, const char* name);
std::string read_text_attribute(hid_t object, const char* name);

}  // namespace athanor::checkpoint::detail
