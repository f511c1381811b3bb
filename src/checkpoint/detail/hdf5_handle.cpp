#include "checkpoint/detail/hdf5_handle.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "base/error.hpp"

namespace athanor::checkpoint::detail {
namespace {

constexpr std::size_t max_list = 32;
constexpr std::size_t max_text = 4096;

// Keeps the innermost reason: the walk goes from the failed call inwards.
herr_t keep_last(unsigned /*depth*/, const H5E_error2_t* error, void* text) {
  auto& reason = *static_cast<std::string*>(text);
  reason = fmt::format("{}: {}", error->func_name == nullptr ? "?" : error->func_name,
                       error->desc == nullptr ? "?" : error->desc);
  return 0;
}

[[noreturn]] void fail(const char* action) {
  std::string reason = "no reason given";
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, keep_last, &reason);
  H5Eclear2(H5E_DEFAULT);
  throw Hdf5Failure(fmt::format("HDF5 cannot {}: {}", action, reason));
}

Hdf5Handle scalar_space() {
  return {H5Screate(H5S_SCALAR), H5Sclose, "make a scalar space"};
}

Hdf5Handle text_type(std::size_t size) {
  Hdf5Handle type(H5Tcopy(H5T_C_S1), H5Tclose, "make a string type");
  hdf5_check(H5Tset_size(type.id(), std::max<std::size_t>(size, 1)), "set a string's size");
  hdf5_check(H5Tset_cset(type.id(), H5T_CSET_UTF8), "set a string's encoding");
  hdf5_check(H5Tset_strpad(type.id(), H5T_STR_NULLPAD), "set a string's padding");
  return type;
}

void write_attribute(hid_t object, const char* name, const Hdf5Handle& space, hid_t file_type,
                     hid_t memory_type, const void* data) {
  Hdf5Handle attribute(H5Acreate2(object, name, file_type, space.id(), H5P_DEFAULT, H5P_DEFAULT), H5Aclose,
                       "create an attribute");
  hdf5_check(H5Awrite(attribute.id(), memory_type, data), "write an attribute");
}

struct OpenAttribute {
  Hdf5Handle attribute;
  Hdf5Handle type;
  std::int64_t count = 0;
};

OpenAttribute open_attribute(hid_t object, const char* name, H5T_class_t expected) {
  OpenAttribute open;
  open.attribute = {H5Aopen(object, name, H5P_DEFAULT), H5Aclose, "open an attribute"};
  open.type = {H5Aget_type(open.attribute.id()), H5Tclose, "read an attribute's type"};
  if (H5Tget_class(open.type.id()) != expected) {
    throw Hdf5Failure(fmt::format("attribute {} is of another type", name));
  }
  const Hdf5Handle space(H5Aget_space(open.attribute.id()), H5Sclose, "read an attribute's shape");
  open.count = H5Sget_simple_extent_npoints(space.id());
  return open;
}

}  // namespace

Hdf5Handle::Hdf5Handle(hid_t id, Closer closer, const char* action) : id_(id), closer_(closer) {
  if (id < 0) {
    fail(action);
  }
}

Hdf5Handle::~Hdf5Handle() {
  if (id_ >= 0 && closer_(id_) < 0) {
    H5Eclear2(H5E_DEFAULT);
  }
}

Hdf5Handle::Hdf5Handle(Hdf5Handle&& other) noexcept
    : id_(std::exchange(other.id_, H5I_INVALID_HID)), closer_(other.closer_) {}

Hdf5Handle& Hdf5Handle::operator=(Hdf5Handle&& other) noexcept {
  std::swap(id_, other.id_);
  std::swap(closer_, other.closer_);
  return *this;
}

void Hdf5Handle::close(const char* action) {
  if (id_ >= 0) {
    hdf5_check(closer_(std::exchange(id_, H5I_INVALID_HID)), action);
  }
}

void hdf5_check(std::int64_t status, const char* action) {
  if (status < 0) {
    fail(action);
  }
}

Hdf5Handle file_access() {
  Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "make properties");
  hdf5_check(H5Pset_libver_bounds(access.id(), H5F_LIBVER_V110, H5F_LIBVER_V110), "set the format version");
  hdf5_check(H5Pset_file_locking(access.id(), false, true), "switch file locks off");
  // Objects that an error left open must not keep their file open.
  hdf5_check(H5Pset_fclose_degree(access.id(), H5F_CLOSE_STRONG), "set the closing mode");
  return access;
}

Hdf5Handle open_hdf5_file(const std::string& path) {
  const Hdf5Handle access = file_access();
  return {H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.id()), H5Fclose, "open the file"};
}

Hdf5Handle hdf5_type(ElementType type) {
  hid_t known = H5T_IEEE_F32LE;
  switch (type) {
    case ElementType::f64:
      known = H5T_IEEE_F64LE;
      break;
    case ElementType::f32:
      known = H5T_IEEE_F32LE;
      break;
    case ElementType::bf16:
      known = H5T_STD_U16LE;
      break;
    case ElementType::i64:
      known = H5T_STD_I64LE;
      break;
    case ElementType::f16: {
      // IEEE half: 1 sign, 5 exponent (bias 15), 10 mantissa bits; the library names no such type.
      Hdf5Handle half(H5Tcopy(H5T_IEEE_F32LE), H5Tclose, "make the half type");
      hdf5_check(H5Tset_fields(half.id(), 15, 10, 5, 0, 10), "make the half type");
      hdf5_check(H5Tset_size(half.id(), 2), "make the half type");
      hdf5_check(H5Tset_ebias(half.id(), 15), "make the half type");
      return half;
    }
  }
  return {H5Tcopy(known), H5Tclose, "copy a type"};
}

Hdf5Handle simple_space(const std::vector<std::int64_t>& shape) {
  const std::vector<hsize_t> extents(shape.begin(), shape.end());
  return {H5Screate_simple(static_cast<int>(extents.size()), extents.data(), nullptr), H5Sclose,
          "make a shape"};
}

Hdf5Handle contiguous_layout() {
  Hdf5Handle layout(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "make properties");
  hdf5_check(H5Pset_layout(layout.id(), H5D_CONTIGUOUS), "set the layout");
  hdf5_check(H5Pset_alloc_time(layout.id(), H5D_ALLOC_TIME_EARLY), "set early allocation");
  hdf5_check(H5Pset_fill_time(layout.id(), H5D_FILL_TIME_NEVER), "switch filling off");
  hdf5_check(H5Pset_obj_track_times(layout.id(), false), "switch time stamps off");
  return layout;
}

Hdf5Handle link_with_groups() {
  Hdf5Handle link(H5Pcreate(H5P_LINK_CREATE), H5Pclose, "make properties");
  hdf5_check(H5Pset_create_intermediate_group(link.id(), 1), "set group creation");
  hdf5_check(H5Pset_char_encoding(link.id(), H5T_CSET_UTF8), "set the names' encoding");
  return link;
}

std::int64_t data_offset(const Hdf5Handle& dataset) {
  const Hdf5Handle properties(H5Dget_create_plist(dataset.id()), H5Pclose, "read a dataset's layout");
  const haddr_t offset = H5Dget_offset(dataset.id());
  if (H5Pget_layout(properties.id()) != H5D_CONTIGUOUS || H5Pget_external_count(properties.id()) != 0 ||
      offset == HADDR_UNDEF || offset > static_cast<haddr_t>(INT64_MAX)) {
    H5Eclear2(H5E_DEFAULT);
    throw Hdf5Failure("a dataset is not stored in one piece");
  }
  return static_cast<std::int64_t>(offset);
}

void write_attribute(hid_t object, const char* name, std::int64_t value) {
  write_attribute(object, name, scalar_space(), H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
}

void write_attribute(hid_t object, const char* name, const std::vector<std::int64_t>& values) {
  const std::vector<std::int64_t> shape{static_cast<std::int64_t>(values.size())};
  write_attribute(object, name, simple_space(shape), H5T_STD_I64LE, H5T_NATIVE_INT64, values.data());
}

void write_attribute(hid_t object, const char* name, const std::string& value) {
  const Hdf5Handle type = text_type(value.size());
  write_attribute(object, name, scalar_space(), type.id(), type.id(), value.c_str());
}

std::int64_t read_integer_attribute(hid_t object, const char* name) {
  const OpenAttribute open = open_attribute(object, name, H5T_INTEGER);
  if (open.count != 1) {
    throw Hdf5Failure(fmt::format("attribute {} has {} values instead of one", name, open.count));
  }
  std::int64_t value = 0;
  hdf5_check(H5Aread(open.attribute.id(), H5T_NATIVE_INT64, &value), "read an attribute");
  return value;
}

std::vector<std::int64_t> read_list_attribute(hid_t object, const char* name) {
  const OpenAttribute open = open_attribute(object, name, H5T_INTEGER);
  if (open.count < 0 || open.count > static_cast<std::int64_t>(max_list)) {
    throw Hdf5Failure(fmt::format("attribute {} has {} values", name, open.count));
  }
  std::array<std::int64_t, max_list> values{};
  hdf5_check(H5Aread(open.attribute.id(), H5T_NATIVE_INT64, values.data()), "read an attribute");
  return {values.begin(), values.begin() + open.count};
}

std::string read_text_attribute(hid_t object, const char* name) {
  const OpenAttribute open = open_attribute(object, name, H5T_STRING);
  const std::size_t size = H5Tget_size(open.type.id());
  if (open.count != 1 || H5Tis_variable_str(open.type.id()) != 0 || size == 0 || size > max_text) {
    throw Hdf5Failure(fmt::format("attribute {} is not one string of fixed length", name));
  }
  std::string value(size, '\0');
  const Hdf5Handle type = text_type(size);
  hdf5_check(H5Aread(open.attribute.id(), type.id(), value.data()), "read an attribute");
  value.resize(std::min(value.find('\0'), value.size()));
  return value;
}

}  // namespace athanor::checkpoint::detail
