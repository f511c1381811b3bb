// Microscaling blocks: the scale is the smallest that does, the codes are the nearest, every scale has its
// place.
#include "kernels/bodies/mx.hpp"

#include <set>

#include "kernels/twin_cases.hpp"

namespace athanor::kernels {
namespace {

/// Blocks of one row quantised on the host.
struct MxRow {
  std::vector<std::uint8_t> codes, scales;
  explicit MxRow(const std::vector<float>& x) : codes(x.size()), scales(512 * ((x.size() / 32 + 3) / 4)) {
    const auto width = static_cast<std::int64_t>(x.size());
    bodies::run_rows(bodies::QuantizeMxBlock<float>{x.data(), width, codes.data(), scales.data()},
                     width / mx_block);
  }
  std::uint8_t scale(std::size_t block, std::size_t blocks) const {
    return scales[static_cast<std::size_t>(
        bodies::mx_scale_place(0, static_cast<std::int64_t>(block), static_cast<std::int64_t>(blocks)))];
  }
};

TEST(MxBlocks, HaveTheSmallestScaleAndTheNearestCodes) {
  auto x = tests::random_values<float>(32 * 64, 1);
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = std::ldexp(x[i], static_cast<int>(i / 32 * 4) - 128);  // blocks of every size
  }
  const MxRow row(x);
  for (std::size_t block = 0; block < 64; ++block) {
    float largest = 0.0f;
    for (std::size_t i = block * 32; i < block * 32 + 32; ++i) {
      largest = std::max(largest, std::abs(x[i]));
    }
    const int exponent = row.scale(block, 64) - 127;
    EXPECT_LE(std::ldexp(static_cast<double>(largest), -exponent), 448.0);
    if (exponent > -127) {
      EXPECT_GT(std::ldexp(static_cast<double>(largest), -exponent), 224.0);
    }
    for (std::size_t i = block * 32; i < block * 32 + 32; ++i) {
      const auto scaled = static_cast<float>(std::ldexp(static_cast<double>(x[i]), -exponent));
      EXPECT_EQ(row.codes[i], reference::encode_fp8(scaled, base::Fp8Format::e4m3)) << x[i];
    }
  }
}

TEST(MxBlocks, TheLargestOfAScaleIs448) {
  std::vector<float> x(96);
  x[5] = 448.0f;
  x[40] = std::nextafter(448.0f, 500.0f);
  const MxRow row(x);
  EXPECT_EQ(row.scale(0, 3), 127);
  EXPECT_EQ(row.codes[5], 0x7e);
  EXPECT_EQ(row.scale(1, 3), 128);
  EXPECT_EQ(row.scale(2, 3), 0);  // zeros
  EXPECT_EQ(row.codes[64], 0);
}

TEST(MxBlocks, ANonFiniteNumberSpoilsItsBlockAndNoOther) {
  std::vector<float> x(96, 1.0f);
  x[3] = std::numeric_limits<float>::quiet_NaN();
  x[70] = -std::numeric_limits<float>::infinity();
  const MxRow row(x);
  EXPECT_EQ(row.scale(0, 3), 0xff);
  EXPECT_EQ(row.codes[0] & 0x7f, 0x7f);
  EXPECT_NE(row.scale(1, 3), 0xff);
  EXPECT_EQ(row.scale(2, 3), 0xff);
}

TEST(MxBlocks, EveryScaleHasAPlaceOfItsOwn) {
  constexpr std::int64_t rows = 300, blocks = 10;
  std::set<std::int64_t> places;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t block = 0; block < blocks; ++block) {
      const std::int64_t place = bodies::mx_scale_place(row, block, blocks);
      EXPECT_GE(place, 0);
      EXPECT_LT(place, mx_scale_bytes(rows, blocks * mx_block));
      places.insert(place);
    }
  }
  EXPECT_EQ(static_cast<std::int64_t>(places.size()), rows * blocks);
  EXPECT_EQ(bodies::mx_scale_place(33, 1, 4), 16 + 4 + 1);  // second line, second four, second byte
  EXPECT_EQ(bodies::mx_scale_place(128, 0, 5), 1024);       // behind two tiles
}

}  // namespace
}  // namespace athanor::kernels
