// Text to tokenize: the first byte chooses between JSON lines and plain text, and how small the chunks are.
#include "data/text_reader.hpp"
#include "data/utf8.hpp"
#include "fuzz/fuzz.hpp"

using namespace athanor;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) {
    return 0;
  }
  const bool is_json = (data[0] & 1) != 0;
  data::TextOptions options;
  options.inputs = {
      fuzz::folder().write(is_json ? "text.jsonl" : "text.txt", fuzz::as_text(data + 1, size - 1))};
  options.split = (data[0] & 2) != 0 ? data::DocumentSplit::files : data::DocumentSplit::blank_lines;
  options.max_chunk_bytes = (data[0] & 4) != 0 ? 64 : 4096;
  fuzz::takes([&] {
    data::TextReader reader(options);
    data::TextChunk chunk;
    bool is_open = false;
    while (reader.next(chunk)) {
      fuzz::require(chunk.starts_document == !is_open);
      is_open = !chunk.ends_document;
    }
    fuzz::require(!is_open);
  });
  return 0;
}
