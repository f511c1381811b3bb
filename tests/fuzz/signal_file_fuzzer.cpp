// Recordings of signals: an index and a data file. Their checksums are put right after every mutation, so
// that what lies behind them is reached; now and then they are left wrong.
#include <cstring>
#include <vector>

#include "base/hash.hpp"
#include "distill/signal_file/detail/block.hpp"
#include "distill/signal_file/detail/index.hpp"
#include "distill/signal_file/reader.hpp"
#include "fuzz/fuzz.hpp"

using namespace athanor;
namespace signals = athanor::distill::signal_file;

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

namespace {

// Places in the index, as docs/signal_files.md has them.
constexpr std::size_t index_head_bytes = 56;
constexpr std::size_t description_size_at = 16;
constexpr std::size_t table_checksum_at = 40;
constexpr std::size_t head_checksum_at = 48;
// In a block's header.
constexpr std::size_t block_checksum_at = 8;

template <typename Value>
Value value_at(const std::string& bytes, std::size_t offset) {
  Value value;
  std::memcpy(&value, bytes.data() + offset, sizeof(Value));
  return value;
}

void put_hash(std::string& bytes, std::size_t offset, std::string_view hashed) {
  const std::uint64_t hash = base::hash_bytes(hashed.data(), hashed.size());
  std::memcpy(bytes.data() + offset, &hash, sizeof(hash));
}

// The header of the block in the first entry of the table, whose size the entry says.
void seal_first_block(std::string& index, std::size_t table_at) {
  const std::size_t header_at = table_at + signals::detail::entry_bytes;
  if (index.size() < header_at + block_checksum_at + sizeof(std::uint64_t)) {
    return;
  }
  const std::size_t size =
      std::min<std::size_t>(value_at<std::uint32_t>(index, table_at + 4), index.size() - header_at);
  if (size >= block_checksum_at + sizeof(std::uint64_t)) {
    std::memset(index.data() + header_at + block_checksum_at, 0, sizeof(std::uint64_t));
    put_hash(index, header_at + block_checksum_at, std::string_view(index).substr(header_at, size));
  }
}

void seal(std::string& index) {
  if (index.size() < index_head_bytes) {
    return;
  }
  const auto description = value_at<std::uint64_t>(index, description_size_at);
  if (description > index.size() - index_head_bytes) {
    return;
  }
  const std::size_t table_at = index_head_bytes + static_cast<std::size_t>(description);
  seal_first_block(index, table_at);
  put_hash(index, table_checksum_at, std::string_view(index).substr(table_at));
  std::memset(index.data() + head_checksum_at, 0, sizeof(std::uint64_t));
  put_hash(index, head_checksum_at, std::string_view(index).substr(0, table_at));
}

void read_everything(const signals::MappedRecording& recording) {
  for (const signals::RecordedStep& step : recording.steps()) {
    for (const signals::MappedBlock& block : step.blocks) {
      const signals::BlockHeader header = recording.header_of(block);
      recording.check_records(block, header, header.samples);
      recording.check_step_part(block, header);
    }
    signals::verify_samples(recording, step.samples, 0, 1);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::TwoParts parts = fuzz::split_in_two(fuzz::as_text(data, size));
  fuzz::folder().write(signals::index_name, parts.first);
  fuzz::folder().write(signals::data_file_name(0), parts.second);
  fuzz::takes([] { read_everything(signals::MappedRecording(fuzz::folder().path())); });
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t max_size,
                                               unsigned int seed) {
  const std::size_t mutated = LLVMFuzzerMutate(data, size, max_size);
  if (seed % 8 == 0) {
    return mutated;
  }
  const fuzz::TwoParts parts = fuzz::split_in_two(fuzz::as_text(data, mutated));
  std::string index(parts.first);
  seal(index);
  std::memcpy(data + std::min<std::size_t>(2, mutated), index.data(), index.size());
  return mutated;
}
