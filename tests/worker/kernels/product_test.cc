#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/kernels/product_case.h"
#include "worker/kernels/kernel_table.h"

namespace kvist::worker {
namespace {

using gguf::TensorType;

struct Shape {
  int64_t rows, cols;
};

std::vector<Shape> ShapesOf(TensorType type) {
  if (gguf::BlockShapeOf(type).elements == 256) return {{16, 256}, {300, 512}, {33, 1536}, {17, 2048}};
  if (gguf::BlockShapeOf(type).elements == 32) return {{1, 32}, {16, 64}, {300, 576}, {48, 640}, {33, 1536}, {17, 2048}};
  return {{1, 1}, {5, 7}, {300, 576}, {33, 1536}};
}

// One table, so that a failure names it.
class ProductTest : public testing::TestWithParam<const KernelTable*> {
 protected:
  void SetUp() override { SetFloatEnvironment(); }
};

std::string TableName(const testing::TestParamInfo<const KernelTable*>& info) { return std::string(info.param->name); }

INSTANTIATE_TEST_SUITE_P(Tables, ProductTest, testing::ValuesIn(AvailableKernels()), TableName);

// |y - exact| <= sum_c |w_c| * (da_c / 2) for the quantisation of x, where a product with a minimum also sees the rounding only
// through the same da; plus (2 * blocks + 4) roundings of a sum of magnitudes.
TEST_P(ProductTest, AgreesWithDoubleArithmeticOnDequantizedWeights) {
  std::mt19937 rng(1);
  for (TensorType type : kAllTypes) {
    for (const Shape& shape : ShapesOf(type)) {
      const TestMatrix w(type, shape.rows, shape.cols, RandomBlocks(type, shape.rows, shape.cols, rng));
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
            if (quantized) half_steps += std::abs(weight) * 0.501 * x.quantized().scale[t * x.quantized().block_stride + c / 32];
          }
          const double roundings = quantized ? 4.0 * static_cast<double>(shape.cols) / 32 + 8 : static_cast<double>(shape.cols) + 2;
          // With a minimum, scale * sum(q) and m * sum(a) are larger than their sum: 16 covers the cancellation.
          const double tolerance = half_steps + 16 * roundings * 0x1p-24 * (magnitude + half_steps) + 1e-30;
          ASSERT_NEAR(y[static_cast<size_t>(t * shape.rows + r)], exact, tolerance)
              << gguf::TensorTypeName(type) << " " << shape.rows << "x" << shape.cols << " row " << r << " token " << t;
        }
      }
    }
  }
}

// The recipe itself, in float operations with std::fma, on integers recovered from the dequantised weights' blocks.
TEST_P(ProductTest, GivesTheBitsOfTheFirstTableForAnyBatchPositionAndPanelSplit) {
  const KernelTable& reference = *AvailableKernels().front();
  std::mt19937 rng(2);
  for (TensorType type : kAllTypes) {
    for (const Shape& shape : ShapesOf(type)) {
      const TestMatrix w(type, shape.rows, shape.cols, RandomBlocks(type, shape.rows, shape.cols, rng));
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
          ASSERT_TRUE(SameBits(y, std::span(expected).subspan(static_cast<size_t>(first * shape.rows), y.size())))
              << gguf::TensorTypeName(type) << " " << shape.rows << "x" << shape.cols << " rows " << count;
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
