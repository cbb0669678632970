#include "worker/tensor/dequantize.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/tensor/integer_block.h"

namespace kvist::worker {
namespace {

using gguf::TensorType;

std::vector<std::byte> Bytes(const std::vector<int>& values) {
  std::vector<std::byte> out;
  for (int v : values) out.push_back(static_cast<std::byte>(v));
  return out;
}

std::vector<float> Values(TensorType type, const std::vector<std::byte>& block) {
  std::vector<float> out(static_cast<size_t>(gguf::BlockShapeOf(type).elements));
  Dequantize(type, block, out);
  return out;
}

constexpr int kOne[2] = {0x00, 0x3c};   // 1.0 as binary16
constexpr int kTwo[2] = {0x00, 0x40};   // 2.0
constexpr int kHalf[2] = {0x00, 0x38};  // 0.5

// Low nibbles 0..15 at columns 0..15, high nibbles 15..0 at columns 16..31.
std::vector<int> CountingNibbles() {
  std::vector<int> out;
  for (int i = 0; i < 16; ++i) out.push_back(i | ((15 - i) << 4));
  return out;
}

TEST(DequantizeTest, Q4_0SubtractsEight) {
  std::vector<int> block = {kTwo[0], kTwo[1]};
  for (int b : CountingNibbles()) block.push_back(b);
  const std::vector<float> values = Values(TensorType::kQ4_0, Bytes(block));
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(values[i], 2.0f * (i - 8));
    EXPECT_EQ(values[16 + i], 2.0f * (15 - i - 8));
  }
}

TEST(DequantizeTest, Q4_1AddsTheMinimum) {
  std::vector<int> block = {kTwo[0], kTwo[1], kHalf[0], kHalf[1]};
  for (int b : CountingNibbles()) block.push_back(b);
  const std::vector<float> values = Values(TensorType::kQ4_1, Bytes(block));
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(values[i], 2.0f * i + 0.5f);
    EXPECT_EQ(values[16 + i], 2.0f * (15 - i) + 0.5f);
  }
}

TEST(DequantizeTest, Q5TakesItsFifthBitsFromTheWord) {
  std::vector<int> block = {kOne[0], kOne[1], 0x01, 0x80, 0x02, 0x40};  // bits 0, 15, 17, 30
  for (int b : CountingNibbles()) block.push_back(b);
  const std::vector<float> values = Values(TensorType::kQ5_0, Bytes(block));
  for (int i = 0; i < 32; ++i) {
    const int high = i == 0 || i == 15 || i == 17 || i == 30 ? 16 : 0;
    const int nibble = i < 16 ? i : 31 - i;
    EXPECT_EQ(values[i], static_cast<float>(nibble + high - 16)) << i;
  }
}

TEST(DequantizeTest, Q8_0IsSigned) {
  std::vector<int> block = {kHalf[0], kHalf[1]};
  for (int i = 0; i < 32; ++i) block.push_back(i == 31 ? 128 : 256 - i);
  const std::vector<float> values = Values(TensorType::kQ8_0, Bytes(block));
  EXPECT_EQ(values[0], 0.0f);
  for (int i = 1; i < 31; ++i) EXPECT_EQ(values[i], -0.5f * i);
  EXPECT_EQ(values[31], -64.0f);
}

TEST(DequantizeTest, Q6KScalesRunsOfSixteen) {
  std::vector<int> block(210, 0);
  for (int i = 0; i < 16; ++i) block[192 + i] = i % 2 == 0 ? i + 1 : 256 - i;
  block[208] = kOne[0];
  block[209] = kOne[1];
  const std::vector<float> values = Values(TensorType::kQ6_K, Bytes(block));
  for (int c = 0; c < 256; ++c) {
    const int run = c / 16;
    EXPECT_EQ(values[c], -32.0f * static_cast<float>(run % 2 == 0 ? run + 1 : -run)) << c;
  }
}

// Random blocks of every type as another implementation reads them
// (tests/golden/make_dequantize_cases.py).
TEST(DequantizeTest, AgreesBitForBitWithGgufPy) {
  std::ifstream file("tests/golden/dequantize_cases.bin", std::ios::binary);
  ASSERT_TRUE(file.good());
  const std::string data((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  size_t at = 0;
  int types = 0;
  while (at < data.size()) {
    uint32_t header[3];
    ASSERT_LE(at + sizeof(header), data.size());
    std::memcpy(header, data.data() + at, sizeof(header));
    at += sizeof(header);
    const auto type = gguf::TensorTypeFromNumber(header[0]);
    ASSERT_TRUE(type.has_value());
    std::vector<std::byte> blocks(header[2]);
    std::vector<float> expected(header[1]), values(header[1]);
    std::memcpy(blocks.data(), data.data() + at, blocks.size());
    std::memcpy(expected.data(), data.data() + at + blocks.size(), expected.size() * sizeof(float));
    at += blocks.size() + expected.size() * sizeof(float);
    Dequantize(*type, blocks, values);
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_EQ(values[i], expected[i]) << gguf::TensorTypeName(*type) << " " << i;
    }
    ++types;
  }
  EXPECT_EQ(types, 10);
}

TEST(HalfTest, EveryFiniteHalfHasItsValueAndComesBack) {
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const auto half = static_cast<uint16_t>(h);
    const int exponent = (h >> 10) & 31;
    const int mantissa = h & 0x3ff;
    const float value = HalfToFloat(half);
    if (exponent == 31) {
      EXPECT_EQ(std::isnan(value), mantissa != 0);
      EXPECT_EQ(std::isinf(value), mantissa == 0);
      if (mantissa != 0) {
        EXPECT_EQ(FloatToHalf(value), half | 0x200);
        continue;
      }
    } else {
      const double magnitude =
          exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
      EXPECT_EQ(value, (h & 0x8000) != 0 ? -magnitude : magnitude) << h;
    }
    EXPECT_EQ(FloatToHalf(value), half) << h;
  }
}

TEST(HalfTest, RoundsToTheNearestAndTiesToEven) {
  for (uint32_t h = 0; h < 0x7bff; ++h) {
    const auto half = static_cast<uint16_t>(h);
    const double low = HalfToFloat(half);
    const double high = HalfToFloat(static_cast<uint16_t>(h + 1));
    const auto middle = static_cast<float>((low + high) / 2);
    EXPECT_EQ(FloatToHalf(middle), h % 2 == 0 ? h : h + 1) << h;
    EXPECT_EQ(FloatToHalf(std::nextafter(middle, 0.0f)), h) << h;
    EXPECT_EQ(FloatToHalf(std::nextafter(middle, 1e9f)), h + 1) << h;
    EXPECT_EQ(FloatToHalf(-middle), 0x8000 | (h % 2 == 0 ? h : h + 1)) << h;
  }
  EXPECT_EQ(FloatToHalf(65519.996f), 0x7bff);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToHalf(1e30f), 0x7c00);
  EXPECT_EQ(FloatToHalf(-1e-30f), 0x8000);
}

TEST(Bf16Test, RoundsTiesToEvenAndKeepsNan) {
  EXPECT_EQ(Bf16ToFloat(0x3f80), 1.0f);
  EXPECT_EQ(FloatToBf16(1.0f), 0x3f80);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f808000u)), 0x3f80);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f818000u)), 0x3f82);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_EQ(FloatToBf16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x7f800001u)), 0x7fc0);
  EXPECT_EQ(FloatToBf16(-0.0f), 0x8000);
}

}  // namespace
}  // namespace kvist::worker
