#include "checkpoint/detail/hdf5_image.hpp"

#include <algorithm>
#include <cstring>
#include <new>

namespace athanor::checkpoint::detail {
namespace {

constexpr hsize_t align_from_bytes = 64 << 10;  // smaller data need no page of their own
constexpr hsize_t align_bytes = 4 << 10;

// What the driver is told by way of the access properties.
struct DriverInfo {
  SparseBytes* contents = nullptr;
};

// A file of the driver; the library fills in the public part, which comes first.
struct DriverFile {
  H5FD_t base;
  SparseBytes* contents;
};

SparseBytes& contents_of(const H5FD_t* file) {
  return *reinterpret_cast<const DriverFile*>(file)->contents;
}

// The callbacks are called by C, so nothing may be thrown: memory that runs out for a page ends the process.
H5FD_t* driver_open(const char* /*name*/, unsigned flags, hid_t access, haddr_t /*maximum*/) noexcept {
  if ((flags & H5F_ACC_CREAT) == 0) {
    return nullptr;  // the library asks first whether the file exists
  }
  const auto* info = static_cast<const DriverInfo*>(H5Pget_driver_info(access));
  if (info == nullptr) {
    return nullptr;
  }
  auto* file = new (std::nothrow) DriverFile{};
  if (file == nullptr) {
    return nullptr;
  }
  file->contents = info->contents;
  return &file->base;
}

herr_t driver_close(H5FD_t* file) noexcept {
  delete reinterpret_cast<DriverFile*>(file);
  return 0;
}

herr_t driver_query(const H5FD_t* /*file*/, unsigned long* flags) noexcept {
  if (flags != nullptr) {
    *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_AGGREGATE_SMALLDATA;
  }
  return 0;
}

haddr_t driver_allocated_end(const H5FD_t* file, H5FD_mem_t /*type*/) noexcept {
  return contents_of(file).allocated_end;
}

herr_t driver_set_allocated_end(H5FD_t* file, H5FD_mem_t /*type*/, haddr_t address) noexcept {
  contents_of(file).allocated_end = address;
  return 0;
}

haddr_t driver_written_end(const H5FD_t* file, H5FD_mem_t /*type*/) noexcept {
  return contents_of(file).written_end;
}

herr_t driver_read(H5FD_t* file, H5FD_mem_t /*type*/, hid_t /*transfer*/, haddr_t address, size_t size,
                   void* buffer) noexcept {
  contents_of(file).read(address, size, static_cast<std::byte*>(buffer));
  return 0;
}

herr_t driver_write(H5FD_t* file, H5FD_mem_t /*type*/, hid_t /*transfer*/, haddr_t address, size_t size,
                    const void* buffer) noexcept {
  contents_of(file).write(address, size, static_cast<const std::byte*>(buffer));
  return 0;
}

H5FD_class_t driver_class() {
  H5FD_class_t driver{};
  driver.name = "athanor-image";
  driver.maxaddr = static_cast<haddr_t>(INT64_MAX);
  driver.fc_degree = H5F_CLOSE_WEAK;
  driver.fapl_size = sizeof(DriverInfo);
  driver.open = driver_open;
  driver.close = driver_close;
  driver.query = driver_query;
  driver.get_eoa = driver_allocated_end;
  driver.set_eoa = driver_set_allocated_end;
  driver.get_eof = driver_written_end;
  driver.read = driver_read;
  driver.write = driver_write;
  const H5FD_mem_t free_lists[] = H5FD_FLMAP_DICHOTOMY;
  std::ranges::copy(free_lists, driver.fl_map);
  return driver;
}

Hdf5Handle create_file(const Hdf5Handle& driver, SparseBytes* contents, std::int64_t metadata_bytes) {
  const Hdf5Handle access = file_access();
  const DriverInfo info{contents};
  hdf5_check(H5Pset_driver(access.id(), driver.id(), &info), "set the file driver");
  hdf5_check(H5Pset_alignment(access.id(), align_from_bytes, align_bytes), "set the alignment");
  hdf5_check(H5Pset_meta_block_size(access.id(), static_cast<hsize_t>(metadata_bytes)),
             "set the size of metadata blocks");
  return {H5Fcreate("image", H5F_ACC_TRUNC, H5P_DEFAULT, access.id()), H5Fclose, "lay out a file"};
}

// Calls `part` with (page number, begin in the page, begin in the range, bytes) for each page of a range.
template <typename Part>
void for_pages(std::uint64_t begin, std::size_t bytes, const Part& part) {
  for (std::size_t done = 0; done < bytes;) {
    const std::uint64_t at = begin + done;
    const std::uint64_t within = at % SparseBytes::page_bytes;
    const std::size_t count = std::min<std::size_t>(SparseBytes::page_bytes - within, bytes - done);
    part(at / SparseBytes::page_bytes, within, done, count);
    done += count;
  }
}

}  // namespace

void SparseBytes::write(std::uint64_t begin, std::size_t bytes, const std::byte* data) {
  for_pages(begin, bytes, [&](std::uint64_t page, std::uint64_t within, std::size_t done, std::size_t count) {
    std::memcpy(pages[page].data() + within, data + done, count);
  });
  written_end = std::max(written_end, begin + bytes);
}

void SparseBytes::read(std::uint64_t begin, std::size_t bytes, std::byte* data) const {
  for_pages(begin, bytes, [&](std::uint64_t page, std::uint64_t within, std::size_t done, std::size_t count) {
    const auto found = pages.find(page);
    if (found == pages.end()) {
      std::memset(data + done, 0, count);
    } else {
      std::memcpy(data + done, found->second.data() + within, count);
    }
  });
}

Hdf5Image::Hdf5Image(std::int64_t metadata_bytes) : contents_(std::make_unique<SparseBytes>()) {
  const H5FD_class_t driver = driver_class();
  driver_ = {H5FDregister(&driver), H5FDunregister, "register the file driver"};
  file_ = create_file(driver_, contents_.get(), metadata_bytes);
}

void Hdf5Image::close() {
  file_.close("complete the metadata");
}

std::int64_t Hdf5Image::bytes() const {
  return static_cast<std::int64_t>(std::max(contents_->allocated_end, contents_->written_end));
}

void Hdf5Image::write_to(const PayloadFile& file) const {
  for (const auto& [number, page] : contents_->pages) {
    const auto begin = static_cast<std::int64_t>(number * SparseBytes::page_bytes);
    const auto count = std::min(static_cast<std::int64_t>(SparseBytes::page_bytes), bytes() - begin);
    static_cast<void>(file.write(page.data(), count, begin));
  }
}

}  // namespace athanor::checkpoint::detail
