// Manifests of checkpoints: what is taken says the same when it is written again.
#include "checkpoint/manifest.hpp"
#include "fuzz/fuzz.hpp"

using namespace athanor;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(fuzz::as_text(data, size));
  fuzz::takes([&] {
    const checkpoint::Manifest manifest = checkpoint::manifest_from_text(text);
    const nlohmann::json written = checkpoint::to_json(manifest);
    fuzz::require(manifest.payload_bytes() >= 0);
    fuzz::require(checkpoint::to_json(checkpoint::manifest_from_json(written)) == written);
  });
  return 0;
}
