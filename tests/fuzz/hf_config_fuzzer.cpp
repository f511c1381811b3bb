// config.json of Hugging Face folders.
#include <nlohmann/json.hpp>

#include "fuzz/fuzz.hpp"
#include "model/hf_names.hpp"

using namespace athanor;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const nlohmann::json json = nlohmann::json::parse(fuzz::as_text(data, size), nullptr, false);
  fuzz::takes([&] { model::read_hf_config(json, "config.json"); });
  return 0;
}
