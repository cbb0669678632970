#include <algorithm>
#include <array>
#include <bit>
#include <cfloat>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/kernels/attention_case.h"
#include "tests/worker/kernels/product_case.h"
#include "tests/worker/kernels/tested_kernels.h"
#include "worker/kernels/kernel_table.h"

namespace kvist::worker {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class ElementwiseTest : public testing::TestWithParam<const KernelTable*> {
 protected:
  void SetUp() override { SetFloatEnvironment(); }
  const KernelTable& table() { return *GetParam(); }
  const KernelTable& reference() { return *AvailableKernels().front(); }
};

std::string TableName(const testing::TestParamInfo<const KernelTable*>& info) {
  return std::string(info.param->name);
}

INSTANTIATE_TEST_SUITE_P(Tables, ElementwiseTest, testing::ValuesIn(TestedKernels()), TableName);

const int64_t kLengths[] = {1, 2, 15, 16, 17, 31, 33, 64, 576, 1000};

// Values of every size that activations take, and the special ones.
std::vector<float> WideFloats(int64_t n, std::mt19937& rng) {
  std::vector<float> out = RandomFloats(n, rng);
  for (float& v : out) {
    if (rng() % 2 == 0) v *= std::ldexp(1.0f, static_cast<int>(rng() % 40) - 30);
  }
  return out;
}

double Silu(double x) { return x / (1 + std::exp(-x)); }
double Gelu(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

TEST_P(ElementwiseTest, RmsNormAgreesWithDoubleAndMayBeInPlace) {
  std::mt19937 rng(11);
  for (int64_t cols : kLengths) {
    const int64_t rows = 3, stride = cols + 5;
    const std::vector<float> x = WideFloats(rows * stride, rng);
    const std::vector<float> weight = RandomFloats(cols, rng);
    std::vector<float> y(x.size(), 9.0f), in_place = x, first(x.size(), 9.0f);
    table().rms_norm(x.data(), stride, rows, cols, weight.data(), 1e-5f, y.data(), stride);
    table().rms_norm(in_place.data(), stride, rows, cols, weight.data(), 1e-5f, in_place.data(),
                     stride);
    reference().rms_norm(x.data(), stride, rows, cols, weight.data(), 1e-5f, first.data(), stride);
    EXPECT_TRUE(SameBits(y, first)) << cols;
    for (int64_t row = 0; row < rows; ++row) {
      double squares = 0;
      for (int64_t c = 0; c < cols; ++c)
        squares += std::pow(static_cast<double>(x[static_cast<size_t>(row * stride + c)]), 2);
      const double factor = 1 / std::sqrt(squares / static_cast<double>(cols) + 1e-5);
      for (int64_t c = 0; c < cols; ++c) {
        const auto at = static_cast<size_t>(row * stride + c);
        const double expected = x[at] * factor * weight[static_cast<size_t>(c)];
        // cols / 16 + 4 roundings of a sum of squares, halved by the root, and five more.
        EXPECT_NEAR(y[at], expected,
                    std::abs(expected) * (static_cast<double>(cols) / 32 + 8) * 0x1p-24 + 1e-37);
        EXPECT_EQ(y[at], in_place[at]);
      }
      for (int64_t c = cols; c < stride; ++c)
        EXPECT_EQ(y[static_cast<size_t>(row * stride + c)], 9.0f);
    }
  }
}

TEST_P(ElementwiseTest, RopeRotatesPairsOfBothStylesAndLeavesTheRest) {
  std::mt19937 rng(12);
  const int64_t heads = 3;
  for (int64_t head_dim : {8, 40, 64, 128}) {
    for (int64_t pairs : {head_dim / 2, head_dim / 4}) {
      std::vector<float> cosine, sine;
      for (int64_t i = 0; i < pairs; ++i) {
        cosine.push_back(static_cast<float>(std::cos(0.3 * static_cast<double>(i + 1))));
        sine.push_back(static_cast<float>(std::sin(0.3 * static_cast<double>(i + 1))));
      }
      for (RopeStyle style : {RopeStyle::kInterleaved, RopeStyle::kHalves}) {
        const std::vector<float> x = RandomFloats(heads * head_dim, rng);
        std::vector<float> y = x, first = x;
        table().rope(y.data(), heads, head_dim, pairs, cosine.data(), sine.data(), style);
        reference().rope(first.data(), heads, head_dim, pairs, cosine.data(), sine.data(), style);
        EXPECT_TRUE(SameBits(y, first));
        std::vector<double> expected(x.begin(), x.end());
        for (int64_t h = 0; h < heads; ++h) {
          for (int64_t i = 0; i < pairs; ++i) {
            const bool halves = style == RopeStyle::kHalves;
            const auto a = static_cast<size_t>(h * head_dim + (halves ? i : 2 * i));
            const auto b = static_cast<size_t>(h * head_dim + (halves ? i + pairs : 2 * i + 1));
            const auto p = static_cast<size_t>(i);
            expected[a] =
                static_cast<double>(x[a]) * cosine[p] - static_cast<double>(x[b]) * sine[p];
            expected[b] =
                static_cast<double>(x[a]) * sine[p] + static_cast<double>(x[b]) * cosine[p];
          }
        }
        for (size_t i = 0; i < y.size(); ++i) EXPECT_NEAR(y[i], expected[i], 1e-6);
      }
    }
  }
}

TEST_P(ElementwiseTest, AddAndScaleRoundOnce) {
  std::mt19937 rng(13);
  for (int64_t n : kLengths) {
    const std::vector<float> x = WideFloats(n, rng), y = WideFloats(n, rng);
    std::vector<float> sum = y, scaled = x;
    table().add(sum.data(), x.data(), n);
    table().scale(scaled.data(), 0.37f, n);
    for (size_t i = 0; i < x.size(); ++i) {
      EXPECT_EQ(sum[i], y[i] + x[i]);
      EXPECT_EQ(scaled[i], x[i] * 0.37f);
    }
  }
}

TEST_P(ElementwiseTest, GatedActivationsAgreeWithDoubleAndWithTheFirstTable) {
  std::mt19937 rng(14);
  for (int64_t n : kLengths) {
    const std::vector<float> gate = WideFloats(n, rng), up = RandomFloats(n, rng);
    std::vector<float> silu(gate.size()), gelu(gate.size()), first(gate.size());
    std::vector<float> in_place = gate;
    table().silu_multiply(gate.data(), up.data(), silu.data(), n);
    table().gelu_multiply(gate.data(), up.data(), gelu.data(), n);
    table().silu_multiply(in_place.data(), up.data(), in_place.data(), n);
    EXPECT_TRUE(SameBits(in_place, silu));
    reference().silu_multiply(gate.data(), up.data(), first.data(), n);
    EXPECT_TRUE(SameBits(silu, first)) << n;
    reference().gelu_multiply(gate.data(), up.data(), first.data(), n);
    EXPECT_TRUE(SameBits(gelu, first)) << n;
    for (size_t i = 0; i < gate.size(); ++i) {
      // exp(-x) amplifies the rounding of its argument by |x|; where |x| is large and negative the
      // result is tiny.
      EXPECT_NEAR(silu[i], Silu(gate[i]) * up[i], 1e-6 * std::abs(gate[i] * up[i]) + 1e-37)
          << gate[i];
      EXPECT_NEAR(gelu[i], Gelu(gate[i]) * up[i], 2e-6 * std::abs(gate[i] * up[i]) + 1e-37)
          << gate[i];
    }
  }
}

// silu with up = 1 shows the exponential: gate / silu - 1 = exp(-gate).
TEST_P(ElementwiseTest, ActivationsAreFiniteOverTheWholeRangeAndKeepNan) {
  std::vector<float> gate;
  for (float x = -100.0f; x <= 100.0f; x += 0.0625f) gate.push_back(x);
  for (float x :
       {-FLT_MAX, FLT_MAX, -1e30f, 1e30f, 0.0f, -0.0f, 88.7228f, -88.7228f, 87.3365f, -87.3366f})
    gate.push_back(x);
  const std::vector<float> up(gate.size(), 1.0f);
  std::vector<float> out(gate.size()), first(gate.size());
  table().silu_multiply(gate.data(), up.data(), out.data(), static_cast<int64_t>(gate.size()));
  reference().silu_multiply(gate.data(), up.data(), first.data(),
                            static_cast<int64_t>(gate.size()));
  EXPECT_TRUE(SameBits(out, first));
  for (size_t i = 0; i < gate.size(); ++i) {
    EXPECT_TRUE(std::isfinite(out[i])) << gate[i];
    const double expected = Silu(gate[i]);
    if (std::abs(gate[i]) < 80) {
      EXPECT_NEAR(out[i], expected, std::abs(expected) * 4 * 0x1p-23) << gate[i];
    }
  }
  const float nan_gate[2] = {kNan, 1.0f};
  const float ones[2] = {1.0f, 1.0f};
  float y[2];
  table().silu_multiply(nan_gate, ones, y, 2);
  EXPECT_TRUE(std::isnan(y[0]));
  EXPECT_FALSE(std::isnan(y[1]));
}

TEST_P(ElementwiseTest, ArgMaxTakesTheLowestIndexOfTies) {
  for (int64_t n : {1, 5, 16, 17, 100, 257}) {
    std::vector<float> x(static_cast<size_t>(n), 1.0f);
    EXPECT_EQ(table().argmax(x.data(), n), 0);
    for (int64_t first = 0; first < n; first += 3) {
      std::vector<float> tied = x;
      for (int64_t i = first; i < n; i += 2) tied[static_cast<size_t>(i)] = 2.0f;
      EXPECT_EQ(table().argmax(tied.data(), n), first) << n;
    }
  }
}

TEST_P(ElementwiseTest, ArgMaxNeverPicksNan) {
  for (int64_t n : {1, 16, 17, 40}) {
    std::vector<float> x(static_cast<size_t>(n), kNan);
    EXPECT_EQ(table().argmax(x.data(), n), 0);
    for (int64_t at = 0; at < n; ++at) {
      std::vector<float> one = x;
      one[static_cast<size_t>(at)] = -kInfinity;
      EXPECT_EQ(table().argmax(one.data(), n), at) << n;
      one[static_cast<size_t>(at)] = -3.0f;
      EXPECT_EQ(table().argmax(one.data(), n), at) << n;
    }
  }
}

TEST_P(ElementwiseTest, ArgMaxAgreesWithALoop) {
  std::mt19937 rng(15);
  for (int round = 0; round < 300; ++round) {
    std::vector<float> x(1 + rng() % 200);
    for (float& v : x) v = static_cast<float>(rng() % 8);
    EXPECT_EQ(table().argmax(x.data(), static_cast<int64_t>(x.size())),
              std::max_element(x.begin(), x.end()) - x.begin());
  }
}

TEST_P(ElementwiseTest, QuantizationRoundsHalfToEvenWithinHalfAStep) {
  std::mt19937 rng(16);
  TestInput x(4, 576), first(4, 576);
  const std::vector<float> wide = WideFloats(4 * 576, rng);
  for (int64_t i = 0; i < 4 * 576; ++i)
    x.at(i / 576, i % 576) = first.at(i / 576, i % 576) = wide[static_cast<size_t>(i)];
  x.Quantize(table());
  first.Quantize(reference());
  const QuantizedRows q = x.quantized(), r = first.quantized();
  for (int64_t row = 0; row < 4; ++row) {
    for (int64_t b = 0; b < 18; ++b) {
      const float scale = q.scale[row * q.block_stride + b];
      float largest = 0;
      int sum = 0;
      std::array<int16_t, 4> pair_sums{};
      for (int64_t c = 32 * b; c < 32 * b + 32; ++c) {
        const int value = q.q[row * q.q_stride + c];
        EXPECT_EQ(value, r.q[row * q.q_stride + c]);
        EXPECT_LE(std::abs(value), 127);
        EXPECT_NEAR(value * static_cast<double>(scale), x.at(row, c), 0.50001 * scale);
        EXPECT_EQ(value, static_cast<int>(std::nearbyint(x.at(row, c) * (1.0f / scale))));
        largest = std::max(largest, std::abs(x.at(row, c)));
        sum += value;
        const size_t half_lane = c % 4 < 2 ? 0 : 1;
        pair_sums[half_lane] = static_cast<int16_t>(pair_sums[half_lane] + value);
        if (c % 32 < 16) continue;
        pair_sums[2 + half_lane] = static_cast<int16_t>(pair_sums[2 + half_lane] + value);
      }
      EXPECT_EQ(scale, largest / 127.0f);
      const int64_t block = row * q.block_stride + b;
      EXPECT_TRUE(std::equal(pair_sums.begin(), pair_sums.end(), q.pair_sums + 4 * block));
      EXPECT_TRUE(std::equal(pair_sums.begin(), pair_sums.end(), r.pair_sums + 4 * block));
      EXPECT_EQ(q.scaled_sum[row * q.block_stride + b], scale * static_cast<float>(sum));
      EXPECT_EQ(r.scaled_sum[row * q.block_stride + b], q.scaled_sum[row * q.block_stride + b]);
    }
  }
}

TEST_P(ElementwiseTest, QuantizationOfZerosDenormalsAndNonFiniteBlocks) {
  TestInput x(1, 192);
  x.at(0, 33) = FLT_MIN / 2;    // denormal
  x.at(0, 65) = FLT_MIN * 100;  // the scale would be denormal
  x.at(0, 97) = FLT_MIN * 128;
  x.at(0, 128) = kNan;
  x.at(0, 129) = 5.0f;
  x.at(0, 161) = kInfinity;
  x.Quantize(table());
  const QuantizedRows q = x.quantized();
  for (int64_t b : {0, 1, 2}) {
    EXPECT_EQ(q.scale[b], 0.0f);
    EXPECT_EQ(q.scaled_sum[b], 0.0f);
  }
  EXPECT_EQ(q.q[97], 127);
  EXPECT_TRUE(std::isnan(q.scale[4]));
  EXPECT_TRUE(std::isinf(q.scale[5]));
  EXPECT_TRUE(std::isnan(q.scaled_sum[5]));
  for (int64_t c = 0; c < 192; ++c) {
    EXPECT_EQ(q.q[c], c == 97 ? 127 : 0) << c;
  }
}

// Every binary16 through a page and back out: the same bits as the functions of worker/tensor, in
// this thread's denormal mode.
TEST_P(ElementwiseTest, EveryHalfIsReadAsTheReferenceReadsIt) {
  const int64_t rows = 65536;
  std::vector<std::byte> stored(2 * rows);
  for (uint32_t h = 0; h < 65536; ++h) {
    const auto half = static_cast<uint16_t>(h);
    std::memcpy(stored.data() + 2 * h, &half, 2);
  }
  const TestMatrix w(gguf::TensorType::kF16, rows, 1, stored);
  TestInput x(1, 1);
  x.at(0, 0) = 1.0f;
  const std::vector<float> y = RunProduct(table(), w, x.Input(0, 1));
  for (uint32_t h = 0; h < 65536; ++h) {
    const float expected = HalfToFloat(static_cast<uint16_t>(h));
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(y[h]));
    } else {
      EXPECT_EQ(y[h], expected) << h;
    }
  }
}

TEST_P(ElementwiseTest, StoredHalvesRoundAsTheReferenceRounds) {
  std::vector<float> values = {0.0f,
                               -0.0f,
                               65519.996f,
                               65520.0f,
                               -65520.0f,
                               kInfinity,
                               -kInfinity,
                               kNan,
                               -kNan,
                               0x1p-24f,
                               0x1p-25f,
                               0x1.000002p-25f,
                               0x1.8p-24f,
                               0x1p-14f,
                               0x1.ffcp-15f,
                               FLT_MIN,
                               FLT_MIN / 2,
                               1.0f + 0x1p-11f,
                               1.0f + 3 * 0x1p-11f,
                               std::bit_cast<float>(0x7f800001u),
                               std::bit_cast<float>(0x7fa12345u)};
  std::mt19937 rng(17);
  while (values.size() < 40000)
    values.push_back(std::bit_cast<float>(static_cast<uint32_t>(rng())));
  while (values.size() < 80000)
    values.push_back(std::ldexp(1.0f + static_cast<float>(rng() % 4096) * 0x1p-12f,
                                static_cast<int>(rng() % 48) - 28));
  const int64_t head_dim = static_cast<int64_t>(values.size());
  for (KvFormat format : {KvFormat::kF16, KvFormat::kBF16}) {
    AlignedArray<std::byte> arena(2 * kPageTokens * head_dim * 2);
    const int32_t block = 0;
    KvPages pages{format, arena.data(), &block, arena.size(), 1, 0, arena.size()};
    table().store_kv({pages, head_dim, 5, values.data(), values.data()});
    for (int64_t d = 0; d < head_dim; ++d) {
      uint16_t key, value;
      std::memcpy(&key, arena.data() + 2 * (d * kPageTokens + 5), 2);
      std::memcpy(&value, arena.data() + 2 * ((kPageTokens + 5) * head_dim + d), 2);
      const float x = values[static_cast<size_t>(d)];
      const uint16_t expected = format == KvFormat::kF16 ? FloatToHalf(x) : FloatToBf16(x);
      ASSERT_EQ(key, expected) << x;
      ASSERT_EQ(value, expected) << x;
    }
  }
}

TEST(SelectKernelsTest, FindsByNameAndListsWhatThereIs) {
  EXPECT_EQ((*SelectKernels("scalar"))->name, "scalar");
  EXPECT_EQ(*SelectKernels("auto"), AvailableKernels().back());
  EXPECT_EQ(*SelectKernels(""), AvailableKernels().back());
  const auto unknown = SelectKernels("mmx");
  EXPECT_EQ(unknown.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(unknown.status().message()), testing::HasSubstr("scalar"));
}

}  // namespace
}  // namespace kvist::worker
