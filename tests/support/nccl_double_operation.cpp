#include "support/nccl_double_operation.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>
#include <type_traits>

#include <fmt/format.h>

namespace athanor::tests {
namespace {

using parallel::NcclReduction;
using parallel::NcclType;

constexpr std::array<std::string_view, 6> kind_names = {"send/receive",   "all_gather", "all_reduce",
                                                        "reduce_scatter", "broadcast",  "the end"};
constexpr int poison = 0xFF;  // a NaN in every float type

template <typename T>
T combine(T a, T b, NcclReduction op) {
  switch (op) {
    case NcclReduction::sum:
      return static_cast<T>(a + b);
    case NcclReduction::max:
      return std::max(a, b);
    case NcclReduction::min:
      return std::min(a, b);
  }
  return a;
}

template <typename T>
void reduce_typed(std::byte* sum, const std::byte* part, std::size_t bytes, NcclReduction op) {
  for (std::size_t i = 0; i < bytes; i += sizeof(T)) {
    T a{};
    T b{};
    std::memcpy(&a, sum + i, sizeof(T));
    std::memcpy(&b, part + i, sizeof(T));
    a = combine(a, b, op);
    std::memcpy(sum + i, &a, sizeof(T));
  }
}

void reduce(std::vector<std::byte>& sum, const std::vector<std::byte>& part, NcclType type,
            NcclReduction op) {
  switch (type) {
    case NcclType::uint8:
      return reduce_typed<std::uint8_t>(sum.data(), part.data(), sum.size(), op);
    case NcclType::int32:
      return reduce_typed<std::int32_t>(sum.data(), part.data(), sum.size(), op);
    case NcclType::int64:
      return reduce_typed<std::int64_t>(sum.data(), part.data(), sum.size(), op);
    case NcclType::float32:
      return reduce_typed<float>(sum.data(), part.data(), sum.size(), op);
    case NcclType::float64:
      return reduce_typed<double>(sum.data(), part.data(), sum.size(), op);
  }
}

std::vector<int> others(int rank, int size) {
  std::vector<int> ranks;
  for (int r = 0; r < size; ++r) {
    if (r != rank) {
      ranks.push_back(r);
    }
  }
  return ranks;
}

}  // namespace

std::string OperationHeader::describe() const {
  return fmt::format("{} of {} elements (type {}, reduction {}, root {}, number {})",
                     kind_names[static_cast<std::size_t>(kind)], count, static_cast<int>(type),
                     static_cast<int>(op), root, number);
}

Operation::Operation(const OperationHeader& header, Half half, const void* input, void* output, int peer,
                     int rank, int size)
    : header_(header), half_(half), input_(input), output_(output), peer_(peer), rank_(rank), size_(size) {
  part_bytes_ = static_cast<std::size_t>(header.count) * parallel::size_of(header.type);
  const auto ranks = static_cast<std::size_t>(size);
  const bool reads =
      half != Half::receives && (header.kind != OperationKind::broadcast || header.root == rank);
  if (reads) {
    input_bytes_ = part_bytes_ * (header.kind == OperationKind::reduce_scatter ? ranks : 1);
  }
  if (half != Half::sends) {
    output_bytes_ = part_bytes_ * (header.kind == OperationKind::all_gather ? ranks : 1);
  }
  arrived_.resize(ranks);
}

std::vector<int> Operation::targets() const {
  if (header_.kind == OperationKind::point_to_point) {
    return half_ == Half::sends ? std::vector<int>{peer_} : std::vector<int>{};
  }
  if (header_.kind == OperationKind::broadcast && header_.root != rank_) {
    return {};
  }
  return others(rank_, size_);
}

std::vector<int> Operation::sources() const {
  if (header_.kind == OperationKind::point_to_point) {
    return half_ == Half::receives ? std::vector<int>{peer_} : std::vector<int>{};
  }
  if (header_.kind == OperationKind::broadcast) {
    return header_.root == rank_ ? std::vector<int>{} : std::vector<int>{header_.root};
  }
  return others(rank_, size_);
}

MemoryRange Operation::input() const {
  auto* first = static_cast<std::byte*>(const_cast<void*>(input_));
  return {first, first == nullptr ? 0 : input_bytes_};
}

MemoryRange Operation::output() const {
  auto* first = static_cast<std::byte*>(output_);
  return {first, first == nullptr ? 0 : output_bytes_};
}

void Operation::read() {
  read_.assign(input_bytes_, std::byte{0});
  if (input().bytes > 0) {
    std::memcpy(read_.data(), input_, input_bytes_);
  }
  if (header_.kind == OperationKind::reduce_scatter) {
    const std::byte* own = read_.data() + part_bytes_ * static_cast<std::size_t>(rank_);
    arrived_[static_cast<std::size_t>(rank_)].assign(own, own + part_bytes_);
  } else if (header_.kind != OperationKind::point_to_point) {
    arrived_[static_cast<std::size_t>(rank_)] = read_;
  }
}

void Operation::poison_output() {
  if (output().bytes > 0) {
    std::memset(output_, poison, output_bytes_);
  }
}

std::vector<std::byte> Operation::message_for(int target) const {
  std::vector<std::byte> message(sizeof(OperationHeader) + part_bytes_);
  std::memcpy(message.data(), &header_, sizeof(header_));
  const std::byte* first = read_.data();
  if (header_.kind == OperationKind::reduce_scatter) {
    first += part_bytes_ * static_cast<std::size_t>(target);
  }
  if (part_bytes_ > 0) {
    std::memcpy(message.data() + sizeof(header_), first, part_bytes_);
  }
  return message;
}

void Operation::take_message(int source, const std::byte* content, std::size_t bytes) {
  auto& part = arrived_[static_cast<std::size_t>(source)];
  part.assign(content, content + bytes);
  part.resize(part_bytes_);
}

void Operation::write() {
  if (output().bytes == 0) {
    return;
  }
  auto* to = static_cast<std::byte*>(output_);
  switch (header_.kind) {
    case OperationKind::point_to_point:
      std::memcpy(to, arrived_[static_cast<std::size_t>(peer_)].data(), part_bytes_);
      break;
    case OperationKind::broadcast:
      std::memcpy(to, arrived_[static_cast<std::size_t>(header_.root)].data(), part_bytes_);
      break;
    case OperationKind::all_gather:
      for (std::size_t r = 0; r < arrived_.size(); ++r) {
        std::memcpy(to + r * part_bytes_, arrived_[r].data(), part_bytes_);
      }
      break;
    case OperationKind::all_reduce:
    case OperationKind::reduce_scatter: {
      std::vector<std::byte> sum = arrived_[0];
      for (std::size_t r = 1; r < arrived_.size(); ++r) {
        reduce(sum, arrived_[r], header_.type, header_.op);
      }
      std::memcpy(to, sum.data(), sum.size());
      break;
    }
    case OperationKind::end:
      break;
  }
}

}  // namespace athanor::tests
