// Safetensors files: every tensor of a header that is taken lies inside the file and can be read.
#include <vector>

#include "checkpoint/safetensors_folder.hpp"
#include "fuzz/fuzz.hpp"

using namespace athanor;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::folder().write("model.safetensors", fuzz::as_text(data, size));
  fuzz::takes([&] {
    const checkpoint::SafetensorsFolder folder(fuzz::folder().path());
    for (const auto& [name, entry] : folder.tensors()) {
      const std::int64_t bytes = entry.end - entry.begin;
      fuzz::require(bytes >= 0 && bytes <= static_cast<std::int64_t>(size));
      std::vector<std::byte> values(static_cast<std::size_t>(bytes));
      folder.read(name, 0, bytes, values.data());
    }
  });
  return 0;
}
