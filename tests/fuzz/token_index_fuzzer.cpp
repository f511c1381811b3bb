// Token files: an index and its ids. What is taken can be read from end to end.
#include <vector>

#include "data/token_file.hpp"
#include "fuzz/fuzz.hpp"

using namespace athanor;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::TwoParts parts = fuzz::split_in_two(fuzz::as_text(data, size));
  fuzz::folder().write("tokens.idx", parts.first);
  fuzz::folder().write("tokens.bin", parts.second);
  fuzz::takes([] {
    const data::TokenFile file(fuzz::folder().path() + "/tokens");
    file.max_token_id();
    file.fingerprint();
    for (std::int64_t document = 0; document < file.num_documents(); ++document) {
      fuzz::require(file.document_start(document) <= file.num_tokens());
    }
    for (std::int64_t sequence = 0; sequence < file.num_sequences(); ++sequence) {
      fuzz::require(file.sequence_start(sequence) <= file.num_tokens());
    }
    std::vector<std::int32_t> ids(static_cast<std::size_t>(file.num_tokens()));
    file.read(0, ids);
    for (const std::int64_t token : {std::int64_t{0}, file.num_tokens() / 2, file.num_tokens()}) {
      fuzz::require(file.first_document_from(token) <= file.num_documents());
    }
  });
  return 0;
}
