// The largest logits of a row by one team.
//
// Most of a row is ruled out by a bar: the K-th largest of the lanes' own maxima, which at least K logits
// reach. If what reaches it fits into the buffer, it is sorted there. If not (many equal logits, or more
// wanted than there are lanes), the K are found digit by digit: the bytes of the number, then those of the
// id, so that no two are equal.
#pragma once

#include "kernels/bodies/order.hpp"
#include "kernels/topk.hpp"

namespace athanor::kernels::bodies {

/// A number as an unsigned integer in the same order; both zeros are one.
ATHANOR_BODY std::uint32_t ordered_key(float x) {
  const auto bits = bits_as<std::uint32_t>(x == 0.0f ? 0.0f : x);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}
ATHANOR_BODY std::uint64_t ordered_key(double x) {
  const auto bits = bits_as<std::uint64_t>(x == 0.0 ? 0.0 : x);
  return (bits >> 63) != 0 ? ~bits : bits | 0x8000000000000000ull;
}

/// The smallest power of two >= n, 1 at least.
ATHANOR_BODY std::int64_t next_power_of_two(std::int64_t n) {
  std::int64_t power = 1;
  while (power < n) {
    power *= 2;
  }
  return power;
}

/// Bitonic sort of `size` candidates, a power of two, in memory that the team shares.
ATHANOR_TEAM_BODY
template <typename Team, typename A>
ATHANOR_BODY void sort_candidates(const Team& team, Candidate<A>* list, std::int64_t size) {
  for (std::int64_t run = 2; run <= size; run *= 2) {
    for (std::int64_t stride = run / 2; stride > 0; stride /= 2) {
      team.sync();
      team.for_each(size / 2, [&](std::int64_t i) {
        const std::int64_t low = i / stride * 2 * stride + i % stride, high = low + stride;
        const bool forward = (low & run) == 0;
        const Candidate<A> a = list[low], b = list[high];
        if (forward ? comes_before(b, a) : comes_before(a, b)) {
          list[low] = b;
          list[high] = a;
        }
      });
    }
  }
  team.sync();
}

/// Writes the first `top_k` of a sorted list of `size`, and "none" behind them.
ATHANOR_TEAM_BODY
template <typename Team, typename A>
ATHANOR_BODY void write_candidates(const Team& team, const Candidate<A>* list, std::int64_t size,
                                   std::int64_t top_k, A* values, std::int32_t* ids) {
  team.for_each(top_k, [&](std::int64_t k) {
    const bool there = k < size && list[k].id >= 0;
    values[k] = there ? list[k].value : minus_infinity<A>();
    ids[k] = there ? static_cast<std::int32_t>(list[k].id) : -1;
  });
}

/// Digits of an element's place in the order: bytes of the key, then of the complement of the index.
template <typename A>
struct Digits {
  using Key = decltype(ordered_key(A(0)));
  static constexpr int levels = static_cast<int>(sizeof(Key)) + 4;
  Key key;
  std::uint32_t place;  ///< ~index: the lower index is before

  ATHANOR_BODY static Digits of(A value, std::int64_t index) {
    return {ordered_key(value), ~static_cast<std::uint32_t>(index)};
  }
  ATHANOR_BODY std::uint32_t at(int level) const {
    constexpr int key_levels = static_cast<int>(sizeof(Key));
    return level < key_levels ? static_cast<std::uint32_t>(key >> (8 * (key_levels - 1 - level))) & 0xffu
                              : (place >> (8 * (levels - 1 - level))) & 0xffu;
  }
  /// Sign of the comparison of the first `count` digits: 1 if this one's are the larger.
  ATHANOR_BODY int compare(const Digits& other, int count) const {
    for (int level = 0; level < count; ++level) {
      if (at(level) != other.at(level)) {
        return at(level) > other.at(level) ? 1 : -1;
      }
    }
    return 0;
  }
  ATHANOR_BODY void set(int level, std::uint32_t digit) {
    constexpr int key_levels = static_cast<int>(sizeof(Key));
    if (level < key_levels) {
      key |= static_cast<Key>(digit) << (8 * (key_levels - 1 - level));
    } else {
      place |= digit << (8 * (levels - 1 - level));
    }
  }
};

template <typename T>
struct TopkRow {
  using A = accumulation_t<T>;
  static constexpr int lanes = block_lanes;
  static constexpr int bins = 256;
  const T* logits;
  std::int64_t vocab;
  std::int64_t first_id;
  std::int64_t top_k;
  A* values;
  std::int32_t* ids;

  /// In the team's scratch memory, behind the list.
  struct Shared {
    A lane_maximum[lanes];
    std::uint32_t histogram[bins];
    std::uint32_t taken;
    std::uint32_t digit;
    std::uint32_t wanted;
    std::uint32_t here;
    A bar;
  };

  /// Room for what reaches the bar.
  ATHANOR_BODY std::int64_t capacity() const {
    const std::int64_t room = next_power_of_two(2 * top_k < bins ? bins : 2 * top_k);
    return room < topk_capacity ? room : topk_capacity;
  }
  std::size_t scratch_bytes() const {
    if (top_k > topk_capacity) {
      return std::size_t{1} << 40;  // more than there can be: refused by the launch
    }
    return static_cast<std::size_t>(capacity()) * sizeof(Candidate<A>) + sizeof(Shared);
  }

  /// Whether a logit can be kept at all; NaN compares as false.
  ATHANOR_BODY static bool is_there(A x) { return x > minus_infinity<A>(); }

  /// What at least top_k logits reach, or -infinity.
  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY A bar_of(const Team& team, const T* row, Shared& shared) const {
    if (top_k > lanes) {
      return minus_infinity<A>();
    }
    team.fold_lanes(
        vocab, minus_infinity<A>(), [&](std::int64_t i) { return A(load(row[i])); },
        [](A a, A b) { return b > a ? b : a; }, shared.lane_maximum);
    team.sync();
    team.for_each(lanes, [&](std::int64_t j) {
      std::int64_t before = 0;
      const Candidate<A> mine{shared.lane_maximum[j], j};
      for (std::int64_t other = 0; other < lanes; ++other) {
        before += comes_before(Candidate<A>{shared.lane_maximum[other], other}, mine) ? 1 : 0;
      }
      if (before == top_k - 1) {
        shared.bar = mine.value;
      }
    });
    team.sync();
    return shared.bar;
  }

  /// The digits, as many as `levels`, of the last one that is kept when more than `top_k` reach the bar.
  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY Digits<A> last_kept(const Team& team, const T* row, A bar, Shared& shared, int& levels) const {
    Digits<A> prefix{0, 0};
    std::uint32_t wanted = static_cast<std::uint32_t>(top_k);
    for (levels = 0; levels < Digits<A>::levels;) {
      team.for_each(bins, [&](std::int64_t bin) { shared.histogram[bin] = 0; });
      team.sync();
      team.for_each(vocab, [&](std::int64_t i) {
        const A x = load(row[i]);
        const Digits<A> digits = Digits<A>::of(x, i);
        if (is_there(x) && x >= bar && digits.compare(prefix, levels) == 0) {
          team.take(&shared.histogram[digits.at(levels)]);
        }
      });
      team.sync();
      team.once([&] {
        std::uint32_t above = 0, digit = bins - 1;
        while (digit > 0 && above + shared.histogram[digit] < wanted) {
          above += shared.histogram[digit];
          --digit;
        }
        shared.digit = digit;
        shared.wanted = wanted - above;
        shared.here = shared.histogram[digit];
      });
      team.sync();
      prefix.set(levels, shared.digit);
      wanted = shared.wanted;
      ++levels;
      const bool exact = shared.here == wanted;
      team.sync();
      if (exact) {
        break;
      }
    }
    return prefix;
  }

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t r) const {
    auto* list = static_cast<Candidate<A>*>(team.scratch());
    Shared& shared = *reinterpret_cast<Shared*>(list + capacity());
    const T* row = logits + r * vocab;
    const A bar = bar_of(team, row, shared);
    const auto reaching = team_sum<std::int64_t>(team, vocab, [&](std::int64_t i) {
      const A x = load(row[i]);
      return static_cast<std::int64_t>(is_there(x) && x >= bar);
    });
    int levels = 0;
    const Digits<A> last =
        reaching > capacity() ? last_kept(team, row, bar, shared, levels) : Digits<A>{0, 0};
    const std::int64_t kept = reaching > capacity() ? top_k : reaching;
    const std::int64_t size = next_power_of_two(kept);
    team.for_each(size, [&](std::int64_t i) { list[i] = Candidate<A>{A(0), -1}; });
    team.once([&] { shared.taken = 0; });
    team.sync();
    // Places are taken in any order: the sort makes it one.
    team.for_each(vocab, [&](std::int64_t i) {
      const A x = load(row[i]);
      if (is_there(x) && x >= bar && Digits<A>::of(x, i).compare(last, levels) >= 0) {
        list[team.take(&shared.taken)] = Candidate<A>{x, first_id + i};
      }
    });
    sort_candidates(team, list, size);
    write_candidates(team, list, size, top_k, values + r * top_k, ids + r * top_k);
  }
};

template <typename A>
struct MergeTopkRow {
  static constexpr int lanes = block_lanes;
  const A* all_values;
  const std::int32_t* all_ids;
  std::int64_t ranks;
  std::int64_t rows;
  std::int64_t top_k;
  A* values;
  std::int32_t* ids;

  std::size_t scratch_bytes() const {
    return static_cast<std::size_t>(next_power_of_two(ranks * top_k)) * sizeof(Candidate<A>);
  }

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t r) const {
    auto* list = static_cast<Candidate<A>*>(team.scratch());
    const std::int64_t size = next_power_of_two(ranks * top_k);
    team.for_each(size, [&](std::int64_t i) {
      const std::int64_t rank = i / top_k, entry = (rank * rows + r) * top_k + (i - rank * top_k);
      const bool there = rank < ranks && all_ids[entry] >= 0;
      list[i] = there ? Candidate<A>{all_values[entry], all_ids[entry]} : Candidate<A>{A(0), -1};
    });
    sort_candidates(team, list, size);
    write_candidates(team, list, size, top_k, values + r * top_k, ids + r * top_k);
  }
};

}  // namespace athanor::kernels::bodies
