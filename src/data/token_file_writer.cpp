#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "base/error.hpp"
#include "data/detail/output_file.hpp"
#include "data/detail/token_index.hpp"
#include "data/token_file.hpp"

namespace athanor::data {

namespace {

// Sizes are int32 in the index: a longer document takes several sequences.
constexpr std::int64_t max_sequence = std::int64_t{1} << 30;

template <typename T>
void put(detail::OutputFile& file, T value) {
  file.write(&value, sizeof(value));
}

// Converts and writes ids, refusing those the stored type cannot hold.
template <typename Id>
void put_ids(detail::OutputFile& file, std::span<const std::int32_t> ids, const std::string& prefix) {
  std::vector<Id> stored(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 ||
        static_cast<std::int64_t>(ids[i]) > static_cast<std::int64_t>(std::numeric_limits<Id>::max())) {
      throw base::DataError("the id {} cannot be written to {}.bin (its ids are 0 to {}) use a wider type",
                            ids[i], prefix, std::numeric_limits<Id>::max());
    }
    stored[i] = static_cast<Id>(ids[i]);
  }
  file.write(stored.data(), stored.size() * sizeof(Id));
}

}  // namespace

struct TokenFileWriter::State {
  State(const std::string& prefix_in, TokenType type_in)
      : prefix(prefix_in), type(type_in), bin(prefix_in + ".bin"), index(prefix_in + ".idx") {}

  std::string prefix;
  TokenType type;
  detail::OutputFile bin;
  detail::OutputFile index;
  std::vector<std::int32_t> sizes;
  std::vector<std::int64_t> document_entries{0};
  std::int64_t tokens = 0;
  std::int64_t open_tokens = 0;  // of the sequence being written

  void close_sequence() {
    sizes.push_back(static_cast<std::int32_t>(open_tokens));
    open_tokens = 0;
  }
};

TokenFileWriter::TokenFileWriter(const std::string& prefix, TokenType type)
    : state_(std::make_unique<State>(token_file_prefix(prefix), type)) {
  ATHANOR_CHECK(type == TokenType::uint16 || type == TokenType::int32,
                "token files are written as uint16 or int32");
}

TokenFileWriter::~TokenFileWriter() = default;
TokenFileWriter::TokenFileWriter(TokenFileWriter&&) noexcept = default;
TokenFileWriter& TokenFileWriter::operator=(TokenFileWriter&&) noexcept = default;

void TokenFileWriter::add(std::span<const std::int32_t> ids) {
  while (!ids.empty()) {
    const auto run = static_cast<std::size_t>(
        std::min<std::int64_t>(static_cast<std::int64_t>(ids.size()), max_sequence - state_->open_tokens));
    if (state_->type == TokenType::uint16) {
      put_ids<std::uint16_t>(state_->bin, ids.first(run), state_->prefix);
    } else {
      put_ids<std::int32_t>(state_->bin, ids.first(run), state_->prefix);
    }
    state_->open_tokens += static_cast<std::int64_t>(run);
    state_->tokens += static_cast<std::int64_t>(run);
    ids = ids.subspan(run);
    if (state_->open_tokens == max_sequence) {
      state_->close_sequence();
    }
  }
}

void TokenFileWriter::end_document() {
  if (state_->open_tokens > 0) {
    state_->close_sequence();
  }
  state_->document_entries.push_back(static_cast<std::int64_t>(state_->sizes.size()));
}

void TokenFileWriter::finish() {
  if (state_->open_tokens > 0) {
    end_document();
  }
  detail::OutputFile& index = state_->index;
  index.write(detail::index_magic.data(), detail::index_magic.size());
  put(index, detail::index_version);
  put(index, static_cast<std::uint8_t>(state_->type));
  put(index, static_cast<std::uint64_t>(state_->sizes.size()));
  put(index, static_cast<std::uint64_t>(state_->document_entries.size()));
  index.write(state_->sizes.data(), state_->sizes.size() * sizeof(std::int32_t));
  std::int64_t pointer = 0;
  for (const std::int32_t size : state_->sizes) {
    put(index, pointer);
    pointer += size * token_bytes(state_->type);
  }
  index.write(state_->document_entries.data(), state_->document_entries.size() * sizeof(std::int64_t));
  state_->bin.finish();
  index.finish();
}

std::int64_t TokenFileWriter::num_tokens() const {
  return state_->tokens;
}
std::int64_t TokenFileWriter::num_documents() const {
  return static_cast<std::int64_t>(state_->document_entries.size()) - 1;
}

}  // namespace athanor::data
