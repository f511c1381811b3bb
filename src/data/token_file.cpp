#include "data/token_file.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/error.hpp"
#include "base/hash.hpp"
#include "base/mapped_file.hpp"
#include "data/detail/token_index.hpp"

namespace athanor::data {

namespace {

// The fields of the index are not aligned (the header is 34 bytes), and .bin positions need not be.
template <typename T>
T load(const std::byte* bytes, std::int64_t index = 0) {
  T value;
  std::memcpy(&value, bytes + index * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
  return value;
}

// Calls `body` with a value of the C++ type of `type`.
template <typename Body>
auto dispatch(TokenType type, Body body) {
  switch (type) {
    case TokenType::uint8:
      return body(std::uint8_t{});
    case TokenType::int8:
      return body(std::int8_t{});
    case TokenType::int16:
      return body(std::int16_t{});
    case TokenType::uint16:
      return body(std::uint16_t{});
    case TokenType::int32:
      return body(std::int32_t{});
    case TokenType::int64:
      return body(std::int64_t{});
  }
  throw base::InternalError("token type {} (it is not in the table) report this", static_cast<int>(type));
}

}  // namespace

std::int64_t token_bytes(TokenType type) {
  return dispatch(type, [](auto id) { return static_cast<std::int64_t>(sizeof(id)); });
}

TokenType token_type_for(std::int64_t vocab_size) {
  return vocab_size <= std::numeric_limits<std::uint16_t>::max() + 1 ? TokenType::uint16 : TokenType::int32;
}

std::string token_file_prefix(const std::string& path) {
  const std::string_view view(path);
  return std::string(view.ends_with(".bin") || view.ends_with(".idx") ? view.substr(0, view.size() - 4)
                                                                      : view);
}

struct TokenFile::State {
  explicit State(const std::string& prefix_in)
      : prefix(prefix_in), index(prefix_in + ".idx"), bin(prefix_in + ".bin") {}

  std::string prefix;
  base::MappedFile index;
  base::MappedFile bin;
  TokenType type = TokenType::int32;
  std::int64_t sequences = 0;
  std::int64_t documents = 0;
  std::int64_t tokens = 0;
  const std::byte* sizes = nullptr;             // int32 [sequences]
  const std::byte* pointers = nullptr;          // int64 [sequences]
  const std::byte* document_entries = nullptr;  // int64, at least [documents]
  // Stream offset of each sequence; empty when the sequences lie end to end in .bin, where it follows from
  // the position in the file (large corpora then need no memory at all).
  std::vector<std::int64_t> starts;

  void parse_header();
  void check_sizes();
  void check_modes() const;
  void check_sequences();
  void check_documents();
  template <typename Body>
  void for_each_piece(std::int64_t first, std::int64_t count, Body body) const;
};

void TokenFile::State::parse_header() {
  const auto bytes = index.bytes();
  if (bytes.size() < detail::index_magic.size() ||
      std::memcmp(bytes.data(), detail::index_magic.data(), detail::index_magic.size()) != 0) {
    throw base::DataError(
        "{} is not a token index (it does not begin with MMIDIDX) make token files with `athanor tokenize` "
        "or "
        "Megatron-LM's preprocess_data.py",
        index.path());
  }
  if (static_cast<std::int64_t>(bytes.size()) < detail::index_header_bytes) {
    throw base::DataError(
        "{} is truncated (its header takes {} bytes, the file has {}) copy or make it again", index.path(),
        detail::index_header_bytes, bytes.size());
  }
  const auto version = load<std::uint64_t>(bytes.data() + 9);
  if (version != detail::index_version) {
    throw base::DataError("{} has format version {} (only version {} is known) convert it with Megatron-LM",
                          index.path(), version, detail::index_version);
  }
  const auto code = load<std::uint8_t>(bytes.data() + 17);
  if (code != 1 && code != 2 && code != 3 && code != 4 && code != 5 && code != 8) {
    throw base::DataError(
        "{} holds ids of type code {} (integers are 1 uint8, 2 int8, 3 int16, 4 int32, 5 int64, 8 uint16) "
        "convert it to int32 or uint16",
        index.path(), code);
  }
  type = static_cast<TokenType>(code);
}

void TokenFile::State::check_sizes() {
  const auto bytes = index.bytes();
  const auto size = static_cast<std::int64_t>(bytes.size());
  const auto s = load<std::uint64_t>(bytes.data() + 18);
  const auto d = load<std::uint64_t>(bytes.data() + 26);
  // Counts beyond the file's own size would overflow the sum below.
  const bool absurd = s > bytes.size() || d > bytes.size();
  const std::int64_t expected = absurd ? std::numeric_limits<std::int64_t>::max()
                                       : detail::index_header_bytes + static_cast<std::int64_t>(s) * 12 +
                                             static_cast<std::int64_t>(d) * 8;
  if (size < expected) {
    throw base::DataError(
        "{} is truncated or damaged (it announces {} sequences and {} document entries, which take {}, the "
        "file "
        "has {} bytes) copy or make it again",
        index.path(), s, d, absurd ? "more than any file" : fmt::format("{} bytes", expected), size);
  }
  sequences = static_cast<std::int64_t>(s);
  documents = static_cast<std::int64_t>(d);
  const std::int64_t with_modes = expected + sequences;
  if (size != expected && size != with_modes) {
    throw base::DataError(
        "{} is damaged or foreign (its {} sequences and {} document entries take {} bytes, or {} with modes, "
        "the "
        "file has {}) copy or make it again",
        index.path(), s, d, expected, with_modes, size);
  }
  sizes = bytes.data() + detail::index_header_bytes;
  pointers = sizes + sequences * 4;
  document_entries = pointers + sequences * 8;
}

void TokenFile::State::check_modes() const {
  const std::byte* modes = document_entries + documents * 8;
  for (const std::byte* mode = modes; mode != index.bytes().data() + index.bytes().size(); ++mode) {
    if (*mode != std::byte{0}) {
      throw base::DataError(
          "{} is multimodal (sequence {} has mode {}, only mode 0, text, can be trained on) take the text "
          "out into "
          "a file of its own",
          index.path(), mode - modes, static_cast<int>(*mode));
    }
  }
}

void TokenFile::State::check_sequences() {
  const std::int64_t item = token_bytes(type);
  const auto bin_size = static_cast<std::int64_t>(bin.bytes().size());
  bool end_to_end = true;
  std::int64_t needed = 0;
  for (std::int64_t i = 0; i < sequences; ++i) {
    const std::int64_t count = load<std::int32_t>(sizes, i);
    const std::int64_t pointer = load<std::int64_t>(pointers, i);
    if (count < 0 || pointer < 0 || pointer > std::numeric_limits<std::int64_t>::max() - count * item) {
      throw base::DataError("{} is damaged (sequence {} has {} ids at byte {}) copy or make it again",
                            index.path(), i, count, pointer);
    }
    end_to_end = end_to_end && pointer == tokens * item;
    tokens += count;
    needed = std::max(needed, pointer + count * item);
  }
  if (bin_size < needed || (end_to_end && bin_size != needed)) {
    throw base::DataError(
        "{} does not match its index ({} describes {} bytes, the file has {}) {}", bin.path(), index.path(),
        needed, bin_size,
        bin_size < needed ? "it is truncated: copy or make it again" : "copy both files from one source");
  }
  if (!end_to_end) {
    starts.resize(static_cast<std::size_t>(sequences) + 1);
    for (std::int64_t i = 0; i < sequences; ++i) {
      const auto at = static_cast<std::size_t>(i);
      starts[at + 1] = starts[at] + load<std::int32_t>(sizes, i);
    }
  }
}

void TokenFile::State::check_documents() {
  if (documents == 0 && sequences > 0) {
    throw base::DataError("{} has sequences but no document entries (there is at least one) make it again",
                          index.path());
  }
  std::int64_t previous = 0;
  for (std::int64_t i = 0; i < documents; ++i) {
    const auto entry = load<std::int64_t>(document_entries, i);
    if (entry < previous || entry > sequences || (i == 0 && entry != 0)) {
      throw base::DataError(
          "{} is damaged (document entry {} is {}, expected {} to {}: entries start at 0 and do not fall) "
          "copy or "
          "make it again",
          index.path(), i, entry, previous, i == 0 ? 0 : sequences);
    }
    previous = entry;
  }
  // A last document that was never ended has no closing entry.
  if (previous == sequences && documents > 0) {
    --documents;
  }
}

// Calls body(pointer to the first id, offset in the range, ids) for each contiguous run of ids of a stream
// range.
template <typename Body>
void TokenFile::State::for_each_piece(std::int64_t first, std::int64_t count, Body body) const {
  const std::int64_t item = token_bytes(type);
  if (starts.empty()) {
    if (count > 0) {
      body(bin.bytes().data() + first * item, std::int64_t{0}, count);
    }
    return;
  }
  auto sequence = std::upper_bound(starts.begin(), starts.end(), first) - starts.begin() - 1;
  for (std::int64_t done = 0; done < count; ++sequence) {
    const auto at = static_cast<std::size_t>(sequence);
    const std::int64_t skip = first + done - starts[at];
    const std::int64_t take = std::min(count - done, starts[at + 1] - first - done);
    body(bin.bytes().data() + load<std::int64_t>(pointers, sequence) + skip * item, done, take);
    done += take;
  }
}

TokenFile::TokenFile(const std::string& prefix) : state_(std::make_unique<State>(token_file_prefix(prefix))) {
  state_->parse_header();
  state_->check_sizes();
  state_->check_modes();
  state_->check_sequences();
  state_->check_documents();
}

TokenFile::~TokenFile() = default;
TokenFile::TokenFile(TokenFile&&) noexcept = default;
TokenFile& TokenFile::operator=(TokenFile&&) noexcept = default;

const std::string& TokenFile::prefix() const {
  return state_->prefix;
}
TokenType TokenFile::type() const {
  return state_->type;
}
std::int64_t TokenFile::num_tokens() const {
  return state_->tokens;
}
std::int64_t TokenFile::num_sequences() const {
  return state_->sequences;
}
std::int64_t TokenFile::num_documents() const {
  return state_->documents;
}

std::int64_t TokenFile::sequence_start(std::int64_t sequence) const {
  ATHANOR_CHECK(sequence >= 0 && sequence <= state_->sequences, "sequence {} of {}", sequence,
                state_->sequences);
  if (sequence == state_->sequences) {
    return state_->tokens;
  }
  return state_->starts.empty() ? load<std::int64_t>(state_->pointers, sequence) / token_bytes(state_->type)
                                : state_->starts[static_cast<std::size_t>(sequence)];
}

std::int64_t TokenFile::document_start(std::int64_t document) const {
  ATHANOR_CHECK(document >= 0 && document <= state_->documents, "document {} of {}", document,
                state_->documents);
  return document == state_->documents
             ? state_->tokens
             : sequence_start(load<std::int64_t>(state_->document_entries, document));
}

std::int64_t TokenFile::first_document_from(std::int64_t token) const {
  std::int64_t low = 0;
  std::int64_t high = state_->documents;
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    if (document_start(middle) < token) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

void TokenFile::read(std::int64_t first, std::span<std::int32_t> out) const {
  const auto count = static_cast<std::int64_t>(out.size());
  ATHANOR_CHECK(first >= 0 && first + count <= state_->tokens, "ids [{}, {}) of {} in {}", first,
                first + count, state_->tokens, state_->prefix);
  dispatch(state_->type, [&](auto id) {
    using Id = decltype(id);
    state_->for_each_piece(first, count, [&](const std::byte* ids, std::int64_t done, std::int64_t run) {
      for (std::int64_t i = 0; i < run; ++i) {
        const auto value = static_cast<std::int64_t>(load<Id>(ids, i));
        if (value < 0 || value > std::numeric_limits<std::int32_t>::max()) {
          throw base::DataError("{}.bin holds the id {} at {} (ids are 0 to 2147483647) make it again",
                                state_->prefix, value, first + done + i);
        }
        out[static_cast<std::size_t>(done + i)] = static_cast<std::int32_t>(value);
      }
    });
  });
}

std::int64_t TokenFile::max_token_id() const {
  std::int64_t largest = -1;
  dispatch(state_->type, [&](auto id) {
    using Id = decltype(id);
    state_->for_each_piece(0, state_->tokens, [&](const std::byte* ids, std::int64_t, std::int64_t run) {
      Id best = 0;
      for (std::int64_t i = 0; i < run; ++i) {
        best = std::max(best, load<Id>(ids, i));
      }
      largest = std::max(largest, static_cast<std::int64_t>(best));
    });
  });
  return largest;
}

std::uint64_t TokenFile::fingerprint() const {
  const auto bytes = state_->index.bytes();
  const std::uint64_t parts[2] = {state_->bin.bytes().size(), base::hash_bytes(bytes.data(), bytes.size())};
  return base::hash_bytes(parts, sizeof(parts));
}

}  // namespace athanor::data
