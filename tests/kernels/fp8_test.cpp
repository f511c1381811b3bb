// Block-scaled FP8 against the plain reference, and the reference against the formats' definitions.
#include "kernels/fp8.hpp"

#include <c10/util/Float8_e4m3fn.h>
#include <c10/util/Float8_e5m2.h>

#include <array>
#include <cstring>
#include <limits>

#include "kernels/bodies/fp8.hpp"
#include "kernels/cpu/elements.hpp"
#include "kernels/kernel_test.hpp"

namespace athanor::kernels {
namespace {

using base::Fp8Format;
using tests::random_values;

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr std::array<Fp8Format, 2> formats = {Fp8Format::e4m3, Fp8Format::e5m2};

float largest_of(Fp8Format format) {
  return format == Fp8Format::e4m3 ? 448.0f : 57344.0f;
}
int last_code(Fp8Format format) {
  return format == Fp8Format::e4m3 ? 0x7e : 0x7b;
}

float decode_c10(std::uint8_t code, Fp8Format format) {
  return format == Fp8Format::e4m3
             ? c10::detail::fp8e4m3fn_to_fp32_value(code)
             : static_cast<float>(c10::Float8_e5m2(code, c10::Float8_e5m2::from_bits()));
}
std::uint8_t encode_c10(float x, Fp8Format format) {
  return format == Fp8Format::e4m3 ? c10::detail::fp8e4m3fn_from_fp32_value(x)
                                   : c10::detail::fp8e5m2_from_fp32_value(x);
}

/// Numbers up to the largest: all codes, the ties between them and the numbers beside each, of both signs.
std::vector<float> hard_numbers(Fp8Format format) {
  std::vector<float> numbers;
  for (int code = 0; code <= last_code(format); ++code) {
    const float number = reference::decode_fp8(static_cast<std::uint8_t>(code), format);
    const float next = code < last_code(format)
                           ? reference::decode_fp8(static_cast<std::uint8_t>(code + 1), format)
                           : number;
    const float middle = (number + next) / 2.0f;  // exact
    for (const float x : {number, middle, std::nextafter(middle, 0.0f), std::nextafter(middle, next)}) {
      numbers.push_back(x);
      numbers.push_back(-x);
    }
  }
  for (const float tiny : {1e-30f, 1e-40f, std::numeric_limits<float>::denorm_min()}) {
    numbers.push_back(tiny);
    numbers.push_back(-tiny);
  }
  return numbers;
}

TEST(Fp8Reference, CodesAreThoseOfTheFormats) {
  for (const Fp8Format format : formats) {
    for (int code = 0; code < 256; ++code) {
      const float mine = reference::decode_fp8(static_cast<std::uint8_t>(code), format);
      const float theirs = decode_c10(static_cast<std::uint8_t>(code), format);
      if (std::isnan(theirs)) {
        EXPECT_TRUE(std::isnan(mine)) << code;
      } else {
        EXPECT_EQ(std::bit_cast<std::uint32_t>(mine), std::bit_cast<std::uint32_t>(theirs)) << code;
      }
    }
    for (const float x : hard_numbers(format)) {
      EXPECT_EQ(reference::encode_fp8(x, format), encode_c10(x, format)) << x;
    }
    EXPECT_EQ(reference::encode_fp8(nan, format), 0x7f);
  }
}

template <typename F>
struct CodesBody {
  ATHANOR_KERNEL_INLINE static void run(const float* x, std::int64_t n, std::uint8_t* codes, float* back) {
    for (std::int64_t i = 0; i < n; ++i) {
      codes[i] = static_cast<std::uint8_t>(bodies::encode<F>(x[i]));
    }
    for (std::int64_t i = 0; i < 256; ++i) {
      back[i] = bodies::decode<F>(static_cast<std::uint32_t>(i));
    }
  }
};

template <typename F>
void expect_codes_at_every_level(Fp8Format format) {
  std::vector<float> numbers = hard_numbers(format);
  for (float& x : numbers) {
    x = std::abs(x);
  }
  for (const cpu::InstructionSet level :
       {cpu::InstructionSet::baseline, cpu::InstructionSet::x86_64_v3, cpu::InstructionSet::x86_64_v4}) {
    if (level > cpu::instruction_set()) {
      continue;
    }
    std::vector<std::uint8_t> codes(numbers.size());
    std::vector<float> back(256);
    cpu::dispatch_to<CodesBody<F>>(level, static_cast<const float*>(numbers.data()),
                                   static_cast<std::int64_t>(numbers.size()), codes.data(), back.data());
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      EXPECT_EQ(codes[i], reference::encode_fp8(numbers[i], format)) << numbers[i];
    }
    for (std::size_t code = 0; code < 256; ++code) {
      const float expected = reference::decode_fp8(static_cast<std::uint8_t>(code), format);
      EXPECT_TRUE(std::isnan(expected)
                      ? std::isnan(back[code])
                      : std::bit_cast<std::uint32_t>(back[code]) == std::bit_cast<std::uint32_t>(expected))
          << code << ": " << back[code] << " for " << expected;
    }
  }
}

TEST(Fp8Codes, EveryLevelGivesEveryCodeAndTie) {
  expect_codes_at_every_level<bodies::E4m3>(Fp8Format::e4m3);
  expect_codes_at_every_level<bodies::E5m2>(Fp8Format::e5m2);
}

struct Quantized {
  explicit Quantized(const Fp8Rows& rows)
      : codes(static_cast<std::size_t>(rows.rows * rows.width)),
        scales(static_cast<std::size_t>(rows.rows * fp8_blocks(rows.width))) {}
  std::vector<std::uint8_t> codes;
  std::vector<float> scales;
  Fp8Counts counts;
};

/// Quantises and reads back both ways; all bits must agree. Returns what the fast kernels read back.
template <typename T>
std::vector<T> expect_matches_reference(const std::vector<T>& x, std::int64_t rows_count, std::int64_t width,
                                        Fp8Format format, Fp8Counts* counts = nullptr) {
  const Fp8Rows rows = Fp8Rows::apart(rows_count, width);
  std::vector<float> x32(x.size());
  std::transform(x.begin(), x.end(), x32.begin(), [](T value) { return static_cast<float>(value); });
  Quantized expected(rows), actual(rows);
  reference::quantize_fp8_blocks(x32.data(), rows, format, expected.codes.data(), expected.scales.data(),
                                 expected.counts);
  cpu::quantize_fp8_blocks(x.data(), rows, format, actual.codes.data(), actual.scales.data(), actual.counts);
  EXPECT_EQ(actual.codes, expected.codes);
  EXPECT_EQ(std::memcmp(actual.scales.data(), expected.scales.data(), 4 * expected.scales.size()), 0);
  EXPECT_EQ(actual.counts.underflow, expected.counts.underflow);
  EXPECT_EQ(actual.counts.nonfinite, expected.counts.nonfinite);

  std::vector<float> back32(x.size());
  std::vector<T> back(x.size());
  reference::dequantize_fp8_blocks(expected.codes.data(), expected.scales.data(), rows, format,
                                   back32.data());
  cpu::dequantize_fp8_blocks(actual.codes.data(), actual.scales.data(), rows, format, back.data());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const T rounded = static_cast<T>(back32[i]);
    EXPECT_TRUE(std::isnan(back32[i]) ? std::isnan(static_cast<float>(back[i])) : back[i] == rounded)
        << i << ": " << static_cast<float>(back[i]) << " for " << back32[i];
  }
  if (counts != nullptr) {
    *counts = actual.counts;
  }
  return back;
}

template <typename T>
class Fp8Blocks : public ::testing::Test {};
using Fp8Types = ::testing::Types<float, c10::BFloat16, c10::Half>;
TYPED_TEST_SUITE(Fp8Blocks, Fp8Types);

TYPED_TEST(Fp8Blocks, MatchReferenceAtEveryWidth) {
  for (const Fp8Format format : formats) {
    for (const std::int64_t width : {0, 1, 3, 127, 128, 129, 256, 300}) {
      for (const std::int64_t rows : {0, 1, 5}) {
        SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(width));
        auto x = random_values<TypeParam>(rows * width, 17 + static_cast<std::uint64_t>(width), 3.0);
        for (std::size_t i = 0; i < x.size(); i += 7) {
          x[i] = static_cast<TypeParam>(static_cast<float>(x[i]) * 1e-4f);  // subnormal codes, underflow
        }
        expect_matches_reference(x, rows, width, format);
      }
    }
  }
}

TYPED_TEST(Fp8Blocks, RoundOnceWithinTheFormat) {
  for (const Fp8Format format : formats) {
    const std::vector<TypeParam> x = random_values<TypeParam>(20 * 256, 5);
    const std::vector<TypeParam> back = expect_matches_reference(x, 20, 256, format);
    const double half_unit = format == Fp8Format::e4m3 ? 1.0 / 16 : 1.0 / 8;
    const double half_subnormal = (format == Fp8Format::e4m3 ? 0x1p-10 : 0x1p-17) / largest_of(format);
    for (std::size_t block = 0; block < x.size(); block += 128) {
      double largest = 0.0;
      for (std::size_t i = block; i < block + 128; ++i) {
        largest = std::max(largest, std::abs(static_cast<double>(x[i])));
      }
      for (std::size_t i = block; i < block + 128; ++i) {
        const double exact = static_cast<double>(x[i]);
        const double allowed = std::max(half_unit * std::abs(exact), half_subnormal * largest);
        EXPECT_LE(std::abs(static_cast<double>(back[i]) - exact),
                  1.001 * allowed + tests::unit_roundoff<TypeParam>() * std::abs(exact));
      }
    }
  }
}

TEST(Fp8BlocksExhaustive, HardNumbersInABlockOfScaleOne) {
  for (const Fp8Format format : formats) {
    const std::vector<float> numbers = hard_numbers(format);
    std::vector<float> x;
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      if (x.size() % 128 == 0) {
        x.push_back(largest_of(format));  // makes the scale 1
      }
      x.push_back(numbers[i]);
    }
    expect_matches_reference(x, 1, static_cast<std::int64_t>(x.size()), format);
  }
}

TEST(Fp8BlocksExhaustive, EveryBf16) {
  for (const Fp8Format format : formats) {
    std::vector<c10::BFloat16> consecutive(65536), mixed(65536);
    for (std::uint32_t bits = 0; bits < 65536; ++bits) {
      const c10::BFloat16 value(static_cast<std::uint16_t>(bits), c10::BFloat16::from_bits());
      consecutive[bits] = value;
      mixed[bits * 40503u % 65536u] = value;  // an odd factor: a permutation
    }
    expect_matches_reference(consecutive, 1, 65536, format);
    expect_matches_reference(mixed, 512, 128, format);
  }
}

TEST(Fp8BlocksExhaustive, RandomBitsOfF32) {
  std::mt19937_64 generator(3);
  std::vector<float> x(128 * 64);
  for (float& value : x) {
    const auto bits = static_cast<std::uint32_t>(generator());
    value = std::bit_cast<float>((bits & 0x87ffffffu) | 0x38000000u);  // of a like size, so that codes differ
  }
  for (const Fp8Format format : formats) {
    expect_matches_reference(x, 64, 128, format);
  }
}

TEST(Fp8Rounding, ANonFiniteNumberSpoilsItsBlockAndNoOther) {
  for (const Fp8Format format : formats) {
    for (const float bad : {nan, -nan, infinity, -infinity}) {
      for (const std::size_t at : {std::size_t{128}, std::size_t{255}, std::size_t{256}, std::size_t{299}}) {
        std::vector<float> x = random_values<float>(300, 4);
        x[at] = bad;
        Fp8Counts counts;
        const std::vector<float> back = expect_matches_reference(x, 1, 300, format, &counts);
        EXPECT_EQ(counts.nonfinite, 1);
        for (std::size_t i = 0; i < 300; ++i) {
          EXPECT_EQ(std::isnan(back[i]), i / 128 == at / 128) << i;
        }
        std::vector<std::uint8_t> codes(300);
        std::vector<float> scales(3), sum(300, 1.0f);
        cpu::quantize_fp8_blocks(x.data(), Fp8Rows::apart(1, 300), format, codes.data(), scales.data(),
                                 counts);
        cpu::add_fp8_blocks(codes.data(), scales.data(), Fp8Rows::apart(1, 300), format, sum.data());
        EXPECT_TRUE(std::isnan(sum[at]));
        EXPECT_FALSE(std::isnan(sum[0]));
      }
    }
  }
}

TEST(Fp8Rounding, CountsWhatBecomesZero) {
  for (const Fp8Format format : formats) {
    const float unit = format == Fp8Format::e4m3 ? 0x1p-9f : 0x1p-16f;
    std::vector<float> x(128, 0.0f);
    x[0] = largest_of(format);
    x[1] = -0.0f;
    x[2] = unit / 2;                            // a tie, to the even zero
    x[3] = -std::nextafter(unit / 2, 0.0f);     // below it
    x[4] = std::nextafter(unit / 2, infinity);  // above it: one unit
    x[5] = std::numeric_limits<float>::denorm_min();
    Fp8Counts counts;
    const std::vector<float> back = expect_matches_reference(x, 1, 128, format, &counts);
    EXPECT_EQ(counts.underflow, 3);
    EXPECT_EQ(back[4], unit);
    EXPECT_TRUE(std::signbit(back[1]) && std::signbit(back[3]) && back[3] == 0.0f);
  }
}

TEST(Fp8Rounding, TheSmallestAndLargestBlocks) {
  for (const Fp8Format format : formats) {
    Fp8Counts counts;
    std::vector<float> x(128, std::numeric_limits<float>::max());
    const std::vector<float> back = expect_matches_reference(x, 1, 128, format, &counts);
    EXPECT_TRUE(std::isfinite(back[0]));  // nothing saturates
    EXPECT_NEAR(back[0] / x[0], 1.0f, 1e-6f);
    x.assign(128, std::numeric_limits<float>::min());  // no scale can be that small
    expect_matches_reference(x, 1, 128, format, &counts);
    EXPECT_EQ(counts.underflow, 128);
    x.assign(128, 0.0f);
    expect_matches_reference(x, 1, 128, format, &counts);
    EXPECT_EQ(counts.underflow, 0);
    x.assign(128, 1e-30f);
    EXPECT_NEAR(expect_matches_reference(x, 1, 128, format, &counts)[7] / 1e-30f, 1.0f, 1e-6f);
    EXPECT_EQ(counts.underflow, 0);
  }
}

TEST(Fp8Rounding, RecordsHoldTheSameAsArraysApart) {
  for (const std::int64_t width : {1, 126, 128, 300}) {
    const std::vector<float> x = random_values<float>(6 * width, 9);
    const Fp8Rows apart = Fp8Rows::apart(6, width);
    const Fp8Rows records = Fp8Rows::in_records(6, width);
    ASSERT_EQ(records.code_stride % 4, 0);
    Quantized expected(apart);
    cpu::quantize_fp8_blocks(x.data(), apart, Fp8Format::e4m3, expected.codes.data(), expected.scales.data(),
                             expected.counts);
    std::vector<float> storage(static_cast<std::size_t>(6 * records.scale_stride));
    auto* codes = reinterpret_cast<std::uint8_t*>(storage.data());
    float* scales = storage.data() + fp8_scale_offset(width) / 4;
    cpu::quantize_fp8_blocks(x.data(), records, Fp8Format::e4m3, codes, scales, expected.counts);
    std::vector<float> a(x.size()), b(x.size()), sum(x.size(), 0.5f);
    cpu::dequantize_fp8_blocks(expected.codes.data(), expected.scales.data(), apart, Fp8Format::e4m3,
                               a.data());
    cpu::dequantize_fp8_blocks(codes, scales, records, Fp8Format::e4m3, b.data());
    EXPECT_EQ(a, b);
    std::vector<float> expected_sum = sum;
    reference::add_fp8_blocks(codes, scales, records, Fp8Format::e4m3, expected_sum.data());
    cpu::add_fp8_blocks(codes, scales, records, Fp8Format::e4m3, sum.data());
    tests::expect_near(sum, tests::widen(expected_sum), 2.4e-7, "sum");
  }
}

TEST(Fp8Rounding, WhatIsExactStaysExact) {
  // Multiples of a power of two with few digits, the largest of them a code: nothing is rounded.
  std::vector<float> x(128);
  for (std::size_t i = 0; i < 128; ++i) {
    x[i] = reference::decode_fp8(static_cast<std::uint8_t>(i == 127 ? 0x7e : i), Fp8Format::e4m3) * 0x1p-20f;
  }
  EXPECT_EQ(expect_matches_reference(x, 1, 128, Fp8Format::e4m3), x);
}

}  // namespace
}  // namespace athanor::kernels
