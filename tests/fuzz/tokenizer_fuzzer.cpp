// Tokenizer model files, as far as we read them ourselves.
#include "data/detail/sentencepiece_model.hpp"
#include "fuzz/fuzz.hpp"

using namespace athanor;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::takes([&] { data::detail::parse_sentencepiece_model(fuzz::as_text(data, size), "tokenizer.model"); });
  return 0;
}
