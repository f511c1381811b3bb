#include "data/packed_stream.hpp"

#include <algorithm>
#include <utility>

#include "base/error.hpp"

namespace athanor::data {

PackedStream::PackedStream(std::vector<TokenFile> files) : files_(std::move(files)) {
  for (const TokenFile& file : files_) {
    starts_.push_back(starts_.back() + file.num_tokens());
  }
}

template <typename Body>
void PackedStream::for_each_file(std::int64_t first, std::int64_t count, Body body) const {
  ATHANOR_CHECK(first >= 0 && first + count <= num_tokens(), "ids [{}, {}) of {}", first, first + count,
                num_tokens());
  auto file =
      static_cast<std::size_t>(std::upper_bound(starts_.begin(), starts_.end(), first) - starts_.begin() - 1);
  for (std::int64_t done = 0; done < count; ++file) {
    const std::int64_t take = std::min(count - done, starts_[file + 1] - first - done);
    if (take > 0) {
      body(files_[file], first + done - starts_[file], take, done);
      done += take;
    }
  }
}

void PackedStream::read(std::int64_t first, std::span<std::int32_t> out) const {
  for_each_file(first, static_cast<std::int64_t>(out.size()),
                [&](const TokenFile& file, std::int64_t begin, std::int64_t count, std::int64_t done) {
                  file.read(begin,
                            out.subspan(static_cast<std::size_t>(done), static_cast<std::size_t>(count)));
                });
}

std::vector<std::int64_t> PackedStream::document_starts(std::int64_t first, std::int64_t count) const {
  std::vector<std::int64_t> offsets;
  for_each_file(first, count,
                [&](const TokenFile& file, std::int64_t begin, std::int64_t run, std::int64_t done) {
                  for (std::int64_t d = file.first_document_from(begin); d < file.num_documents(); ++d) {
                    const std::int64_t start = file.document_start(d);
                    if (start >= begin + run) {
                      break;
                    }
                    const std::int64_t offset = done + start - begin;
                    // Empty documents share their start with the next one.
                    if (offset > 0 && (offsets.empty() || offsets.back() != offset)) {
                      offsets.push_back(offset);
                    }
                  }
                });
  return offsets;
}

std::int64_t PackedStream::max_token_id() const {
  std::int64_t largest = -1;
  for (const TokenFile& file : files_) {
    largest = std::max(largest, file.max_token_id());
  }
  return largest;
}

}  // namespace athanor::data
