#include "common/base/int_math.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <set>

namespace kvist {
namespace {

TEST(IntMath, CheckedAddRefusesWhatDoesNotFit) {
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  EXPECT_EQ(CheckedAdd<int64_t>(kMax - 1, 1), kMax);
  EXPECT_EQ(CheckedAdd<int64_t>(kMax, 1), std::nullopt);
  EXPECT_EQ(CheckedAdd<int64_t>(-kMax - 1, -1), std::nullopt);
  EXPECT_EQ(CheckedAdd<uint64_t>(UINT64_MAX, 0), UINT64_MAX);
  EXPECT_EQ(CheckedAdd<uint64_t>(UINT64_MAX, 1), std::nullopt);
}

TEST(IntMath, CheckedMultiplyAgreesWithWiderArithmetic) {
  for (int a = -128; a <= 127; ++a) {
    for (int b = -128; b <= 127; ++b) {
      const int product = a * b;
      const auto checked = CheckedMultiply<int8_t>(static_cast<int8_t>(a), static_cast<int8_t>(b));
      const bool fits = product >= -128 && product <= 127;
      ASSERT_EQ(checked.has_value(), fits) << a << " * " << b;
      if (fits) {
        ASSERT_EQ(*checked, product);
      }
    }
  }
  EXPECT_EQ(CheckedMultiply<int64_t>(int64_t{1} << 32, int64_t{1} << 31), std::nullopt);
}

TEST(IntMath, CeilDivAndRoundUpAgreeWithCounting) {
  for (int b = 1; b <= 20; ++b) {
    for (int a = 0; a <= 100; ++a) {
      int blocks = 0;
      while (blocks * b < a) ++blocks;
      ASSERT_EQ(CeilDiv(a, b), blocks);
      ASSERT_EQ(RoundUp(a, b), blocks * b);
    }
  }
  // No intermediate sum that could wrap.
  EXPECT_EQ(CeilDiv<uint64_t>(UINT64_MAX, 2), uint64_t{1} << 63);
}

TEST(IntMath, PowersOfTwo) {
  EXPECT_FALSE(IsPowerOfTwo(0));
  std::set<uint64_t> powers;
  for (int bit = 0; bit < 64; ++bit) {
    EXPECT_TRUE(IsPowerOfTwo(uint64_t{1} << bit));
    powers.insert(uint64_t{1} << bit);
  }
  for (uint64_t value = 0; value < 5000; ++value) {
    EXPECT_EQ(IsPowerOfTwo(value), powers.contains(value)) << value;
  }
}

TEST(IntMath, Mix64ChangesAboutHalfTheBitsPerInputBit) {
  EXPECT_EQ(Mix64(0), 0);
  for (int bit = 0; bit < 64; ++bit) {
    int changed = 0;
    for (uint64_t value = 1; value <= 100; ++value) {
      changed += __builtin_popcountll(Mix64(value) ^ Mix64(value ^ (uint64_t{1} << bit)));
    }
    EXPECT_GT(changed, 100 * 28) << "bit " << bit;
    EXPECT_LT(changed, 100 * 36) << "bit " << bit;
  }
}

}  // namespace
}  // namespace kvist
