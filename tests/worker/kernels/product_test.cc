#include <bit>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/kernels/product_case.h"
#include "tests/worker/kernels/tested_kernels.h"
#include "worker/kernels/kernel_table.h"
#include "worker/tensor/integer_block.h"

namespace kvist::worker {
namespace {

using gguf::TensorType;

struct Shape {
  int64_t rows, cols;
};

std::vector<Shape> ShapesOf(TensorType type) {
  if (gguf::BlockShapeOf(type).elements == 256)
    return {{16, 256}, {300, 512}, {33, 1536}, {17, 2048}};
  if (gguf::BlockShapeOf(type).elements == 32)
    return {{1, 32}, {16, 64}, {300, 576}, {48, 640}, {33, 1536}, {17, 2048}};
  return {{1, 1}, {5, 7}, {300, 576}, {33, 1536}};
}

// One table, so that a failure names it.
class ProductTest : public testing::TestWithParam<const KernelTable*> {
 protected:
  void SetUp() override { SetFloatEnvironment(); }
};

std::string TableName(const testing::TestParamInfo<const KernelTable*>& info) {
  return std::string(info.param->name);
}

INSTANTIATE_TEST_SUITE_P(Tables, ProductTest, testing::ValuesIn(TestedKernels()), TableName);

// |y - exact| <= sum_c |w_c| * (da_c / 2) for the quantisation of x, where a product with a minimum
// also sees the rounding only through the same da; plus (2 * blocks + 4) roundings of a sum of
// magnitudes.
TEST_P(ProductTest, AgreesWithDoubleArithmeticOnDequantizedWeights) {
  std::mt19937 rng(1);
  for (TensorType type : kAllTypes) {
    for (const Shape& shape : ShapesOf(type)) {
      const TestMatrix w(type, shape.rows, shape.cols,
                         RandomBlocks(type, shape.rows, shape.cols, rng));
      TestInput x(5, shape.cols);
      x.FillNormal(rng);
      x.Quantize(*GetParam());
      const std::vector<float> y = RunProduct(*GetParam(), w, x.Input(0, 5));
      const bool quantized = UsesQuantizedActivations(type);
      for (int64_t t = 0; t < 5; ++t) {
        for (int64_t r = 0; r < shape.rows; ++r) {
          double exact = 0, magnitude = 0, half_steps = 0;
          for (int64_t c = 0; c < shape.cols; ++c) {
            const double weight = w.values[static_cast<size_t>(r * shape.cols + c)];
            exact += weight * x.at(t, c);
            magnitude += std::abs(weight * x.at(t, c));
            if (quantized)
              half_steps += std::abs(weight) * 0.501 *
                            x.quantized().scale[t * x.quantized().block_stride + c / 32];
          }
          const double roundings = quantized ? 4.0 * static_cast<double>(shape.cols) / 32 + 8
                                             : static_cast<double>(shape.cols) + 2;
          // With a minimum, scale * sum(q) and m * sum(a) are larger than their sum: 16 covers the
          // cancellation.
          const double tolerance =
              half_steps + 16 * roundings * 0x1p-24 * (magnitude + half_steps) + 1e-30;
          ASSERT_NEAR(y[static_cast<size_t>(t * shape.rows + r)], exact, tolerance)
              << gguf::TensorTypeName(type) << " " << shape.rows << "x" << shape.cols << " row "
              << r << " token " << t;
        }
      }
    }
  }
}

// The product's definition (product_quantized.inc), read from the stored blocks and with 64-bit
// integer sums.
float RecipeDot(TensorType type, const std::byte* row, int64_t cols, const QuantizedRows& x) {
  const gguf::BlockShape shape = gguf::BlockShapeOf(type);
  const int offset = IntegerOffset(type);
  float acc = 0.0f;
  IntegerBlock block{};
  for (int64_t step = 0; step < cols / 32; ++step) {
    const int64_t in_block = step % (shape.elements / 32);
    if (in_block == 0) DecodeBlock(type, row + step * 32 / shape.elements * shape.bytes, block);
    int64_t sums[2] = {0, 0};
    for (int64_t c = 0; c < 32; ++c) {
      const uint8_t stored = block.q[static_cast<size_t>(in_block * 32 + c)];
      const int64_t q = type == TensorType::kQ8_0 ? static_cast<int8_t>(stored) : stored - offset;
      sums[c / 16] += q * x.q[step * 32 + c];
    }
    int64_t sum = sums[0] + sums[1];
    float d = HalfToFloat(block.d);
    float m = HalfToFloat(block.m);
    const auto sub = static_cast<size_t>(in_block);
    if (type == TensorType::kQ6_K)
      sum = sums[0] * block.scale[2 * sub] + sums[1] * block.scale[2 * sub + 1];
    if (type == TensorType::kQ4_K || type == TensorType::kQ5_K) {
      d *= static_cast<float>(block.scale[sub]);
      m = 0.0f - m * static_cast<float>(block.min[sub]);
    }
    acc = std::fma(d * x.scale[step], static_cast<float>(sum), acc);
    const bool minimum = type == TensorType::kQ4_1 || type == TensorType::kQ5_1 ||
                         type == TensorType::kQ4_K || type == TensorType::kQ5_K;
    if (minimum) acc = std::fma(m, x.scaled_sum[step], acc);
  }
  return acc;
}

void ExpectRecipe(const KernelTable& table, TensorType type, const TestMatrix& w, TestInput& x) {
  x.Quantize(table);
  const std::vector<float> y = RunProduct(table, w, x.Input(0, x.rows()));
  const int64_t row_bytes = static_cast<int64_t>(w.source.size()) / w.view.rows;
  for (int64_t t = 0; t < x.rows(); ++t) {
    for (int64_t r = 0; r < w.view.rows; ++r) {
      const float expected =
          RecipeDot(type, w.source.data() + r * row_bytes, w.view.cols, x.Input(t, 1).quantized);
      const float got = y[static_cast<size_t>(t * w.view.rows + r)];
      ASSERT_EQ(std::bit_cast<uint32_t>(got), std::bit_cast<uint32_t>(expected))
          << gguf::TensorTypeName(type) << " row " << r << " token " << t << ": " << got << " "
          << expected;
    }
  }
}

TEST_P(ProductTest, QuantizedTypesFollowTheirRecipeBitForBit) {
  std::mt19937 rng(8);
  for (TensorType type : kAllTypes) {
    if (!UsesQuantizedActivations(type)) continue;
    const TestMatrix w(type, 33, 512, RandomBlocks(type, 33, 512, rng));
    TestInput x(5, 512);
    x.FillNormal(rng);
    ExpectRecipe(*GetParam(), type, w, x);
  }
}

// Largest and smallest stored integers and sub-scales against activations of -127 and 127: where
// 16-bit sums would saturate.
TEST_P(ProductTest, ExtremeIntegersDoNotSaturate) {
  std::mt19937 rng(9);
  for (TensorType type : kAllTypes) {
    if (!UsesQuantizedActivations(type)) continue;
    for (int fill : {0xff, 0x00, 0x80, 0x7f, 0x81}) {
      std::vector<std::byte> stored = RandomBlocks(type, 17, 512, rng);
      const gguf::BlockShape shape = gguf::BlockShapeOf(type);
      for (size_t i = 0; i < stored.size(); ++i) {
        const auto in_block = static_cast<int64_t>(i) % shape.bytes;
        const bool scale = type == TensorType::kQ6_K ? in_block >= 208 : in_block < 4;
        if (!scale || (in_block >= 2 && in_block < 4 && type == TensorType::kQ8_0))
          stored[i] = static_cast<std::byte>(fill);
      }
      const TestMatrix w(type, 17, 512, stored);
      TestInput x(4, 512);
      for (int64_t c = 0; c < 512; ++c) {
        x.at(0, c) = 127.0f;
        x.at(1, c) = -127.0f;
        x.at(2, c) = c % 2 == 0 ? 127.0f : -127.0f;
        x.at(3, c) = c % 32 < 16 ? 127.0f : -127.0f;
      }
      ExpectRecipe(*GetParam(), type, w, x);
    }
  }
}

// Scales that are denormal halves, and products of scales that would be denormal floats; zeros of
// both signs.
TEST_P(ProductTest, TinyScalesAndSignedZerosFollowTheRecipe) {
  std::mt19937 rng(10);
  for (TensorType type : kAllTypes) {
    if (!UsesQuantizedActivations(type)) continue;
    std::vector<std::byte> stored = RandomBlocks(type, 32, 512, rng);
    const gguf::BlockShape shape = gguf::BlockShapeOf(type);
    for (size_t block = 0; block * static_cast<size_t>(shape.bytes) < stored.size(); ++block) {
      const size_t d =
          block * static_cast<size_t>(shape.bytes) + (type == TensorType::kQ6_K ? 208 : 0);
      const auto bits =
          static_cast<uint16_t>((rng() & 0x8000) | (rng() % 4 == 0 ? 0 : rng() % 0x400));
      std::memcpy(stored.data() + d, &bits, 2);
    }
    const TestMatrix w(type, 32, 512, stored);
    TestInput x(3, 512);
    x.FillNormal(rng);
    for (int64_t c = 0; c < 512; ++c) {
      x.at(0, c) *= 0x1p-118f;
      x.at(1, c) = c < 256 ? -0.0f : 0.0f;
    }
    ExpectRecipe(*GetParam(), type, w, x);
  }
}

TEST_P(ProductTest, FloatTypesAddProductsInOrder) {
  std::mt19937 rng(11);
  for (TensorType type : {TensorType::kF32, TensorType::kF16, TensorType::kBF16}) {
    const TestMatrix w(type, 19, 77, RandomBlocks(type, 19, 77, rng));
    TestInput x(6, 77);
    x.FillNormal(rng);
    const std::vector<float> y = RunProduct(*GetParam(), w, x.Input(0, 6));
    for (int64_t t = 0; t < 6; ++t) {
      for (int64_t r = 0; r < 19; ++r) {
        float acc = 0.0f;
        for (int64_t c = 0; c < 77; ++c)
          acc = acc + w.values[static_cast<size_t>(r * 77 + c)] * x.at(t, c);
        ASSERT_EQ(y[static_cast<size_t>(t * 19 + r)], acc);
      }
    }
  }
}

TEST_P(ProductTest, WritesOnlyTheRowsOfItsPanels) {
  std::mt19937 rng(12);
  const TestMatrix w(TensorType::kQ4_1, 40, 64, RandomBlocks(TensorType::kQ4_1, 40, 64, rng));
  TestInput x(3, 64);
  x.FillNormal(rng);
  x.Quantize(*GetParam());
  const int64_t stride = 45;
  std::vector<float> y(3 * stride, -9.0f);
  GetParam()->product(w.view, 1, 3, x.Input(0, 3), y.data(), stride);
  for (int64_t i = 0; i < 3 * stride; ++i) {
    const bool written = i % stride >= 16 && i % stride < 40;
    EXPECT_EQ(y[static_cast<size_t>(i)] != -9.0f, written) << i;
  }
}

TEST_P(ProductTest, GivesTheBitsOfTheFirstTableForAnyBatchPositionAndPanelSplit) {
  const KernelTable& reference = *AvailableKernels().front();
  std::mt19937 rng(2);
  for (TensorType type : kAllTypes) {
    for (const Shape& shape : ShapesOf(type)) {
      const TestMatrix w(type, shape.rows, shape.cols,
                         RandomBlocks(type, shape.rows, shape.cols, rng));
      TestInput x(17, shape.cols);
      x.FillNormal(rng);
      x.Quantize(reference);
      std::vector<float> expected;
      for (int64_t t = 0; t < 17; ++t) {
        const std::vector<float> one = RunProduct(reference, w, x.Input(t, 1));
        expected.insert(expected.end(), one.begin(), one.end());
      }
      x.Quantize(*GetParam());
      for (int64_t count = 1; count <= 17; ++count) {
        for (int64_t first : {int64_t{0}, 17 - count}) {
          const std::vector<float> y = RunProduct(*GetParam(), w, x.Input(first, count));
          ASSERT_TRUE(SameBits(
              y, std::span(expected).subspan(static_cast<size_t>(first * shape.rows), y.size())))
              << gguf::TensorTypeName(type) << " " << shape.rows << "x" << shape.cols << " rows "
              << count;
        }
      }
      std::vector<float> split(expected.size(), -1.0f);
      for (int64_t p = 0; p < w.view.panels(); ++p) {
        GetParam()->product(w.view, p, p + 1, x.Input(0, 17), split.data(), shape.rows);
      }
      ASSERT_TRUE(SameBits(split, expected)) << gguf::TensorTypeName(type);
    }
  }
}

}  // namespace
}  // namespace kvist::worker
