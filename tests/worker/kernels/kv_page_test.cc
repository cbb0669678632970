// What store_kv writes in the quantised formats.
#include "worker/kernels/kv_page.h"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/kernels/attention_case.h"
#include "tests/worker/kernels/tested_kernels.h"
#include "worker/kernels/kernel_table.h"

namespace kvist::worker {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// One page, every byte 0xff until written.
class Page {
 public:
  Page(const KernelTable& table, KvFormat format, int64_t head_dim)
      : table_(table),
        format_(format),
        dim_(head_dim),
        bytes_(KvPageLayoutOf(format, head_dim).bytes) {
    std::memset(bytes_.data(), 0xff, static_cast<size_t>(bytes_.size()));
  }
  void Write(int64_t slot, const std::vector<float>& k, const std::vector<float>& v) {
    const int32_t block = 0;
    const KvPages pages{format_, bytes_.data(), &block, bytes_.size(), 1, 0, bytes_.size()};
    table_.store_kv({pages, dim_, slot, k.data(), v.data()});
  }
  std::vector<double> Key(int64_t slot) const {
    return StoredKey(format_, dim_, bytes_.data(), slot);
  }
  std::vector<double> Value(int64_t slot) const {
    return StoredValue(format_, dim_, bytes_.data(), slot);
  }
  double ScaleOf(const Q8Element& element) const { return Q8Scale(bytes_.data(), dim_, element); }
  template <typename T>
  T At(int64_t offset) const {
    return ReadAt<T>(bytes_.data(), offset);
  }
  std::span<const std::byte> bytes() { return bytes_.span(); }

 private:
  const KernelTable& table_;
  KvFormat format_;
  int64_t dim_;
  AlignedArray<std::byte> bytes_;
};

class KvPageTest : public testing::TestWithParam<const KernelTable*> {
 protected:
  void SetUp() override { SetFloatEnvironment(); }
  const KernelTable& table() const { return *GetParam(); }
};

INSTANTIATE_TEST_SUITE_P(Tables, KvPageTest, testing::ValuesIn(TestedKernels()),
                         [](const auto& test) { return std::string(test.param->name); });

bool AllNan(const std::vector<double>& row) {
  return std::all_of(row.begin(), row.end(), [](double x) { return std::isnan(x); });
}

TEST_P(KvPageTest, Q8IsWithinHalfAScaleOfWhatWasStored) {
  std::mt19937 rng(1);
  for (int64_t dim = 8; dim <= 256; dim += 8) {
    Page page(table(), KvFormat::kQ8, dim);
    for (const int64_t slot : {0, 7, 15}) {
      const std::vector<float> rows[] = {RandomFloats(dim, rng), RandomFloats(dim, rng)};
      page.Write(slot, rows[0], rows[1]);
      for (const bool is_key : {true, false}) {
        const std::vector<float>& row = rows[is_key ? 0 : 1];
        const std::vector<double> stored = is_key ? page.Key(slot) : page.Value(slot);
        for (int64_t first = 0; first < dim; first += 64) {
          const int64_t end = std::min(first + 64, dim);
          float largest = 0;
          for (int64_t d = first; d < end; ++d) {
            largest = std::max(largest, std::abs(row[static_cast<size_t>(d)]));
          }
          const double scale = page.ScaleOf({is_key, slot, first});
          EXPECT_EQ(scale, largest / 127.0f);
          for (auto d = static_cast<size_t>(first); d < static_cast<size_t>(end); ++d) {
            ASSERT_NEAR(stored[d], row[d], 0.50001 * scale) << dim << " " << d;
          }
        }
      }
    }
  }
}

// The minimum is rounded to f16, by at most 2^-11 of it, and so is the step.
void ExpectWithinHalfAStep(const std::vector<double>& stored, const std::vector<double>& row,
                           int steps) {
  for (auto first = row.begin(); first != row.end(); first += 32) {
    const auto [least, most] = std::minmax_element(first, first + 32);
    const double bound = 0.51 * (*most - *least) / steps + std::abs(*least) * 0x1p-11 + 1e-5;
    for (auto x = first; x != first + 32; ++x) {
      ASSERT_NEAR(stored[static_cast<size_t>(x - row.begin())], *x, bound) << row.size();
    }
  }
}

TEST_P(KvPageTest, Q4IsWithinHalfAStepOfWhatWasStored) {
  std::mt19937 rng(2);
  for (int64_t dim = 32; dim <= 512; dim += 32) {
    Page page(table(), KvFormat::kQ4, dim);
    for (const int64_t slot : {0, 7, 15}) {
      const std::vector<float> k = RandomFloats(dim, rng);
      std::vector<float> v = RandomFloats(dim, rng);
      for (float& x : v) x = 30.0f + 0.2f * x;  // far from 0
      page.Write(slot, k, v);
      ExpectWithinHalfAStep(page.Key(slot), Rotated(k), 31);
      ExpectWithinHalfAStep(page.Value(slot), {v.begin(), v.end()}, 15);
    }
  }
}

TEST_P(KvPageTest, BytesAreThoseOfTheDescription) {
  Page q8(table(), KvFormat::kQ8, 8);
  q8.Write(3, {0, 1, -2, 127, -127, 0.5f, 1.5f, -0.5f}, {8, 4, 2, 1, 0, -1, -2, -63.5f});
  const int expected[] = {0, 1, -2, 127, -127, 0, 2, 0};  // half to even
  const int doubled[] = {16, 8, 4, 2, 0, -2, -4, -127};
  EXPECT_EQ(q8.At<float>(256 + 3 * 4), 1.0f);
  EXPECT_EQ(q8.At<float>(256 + 64 + 3 * 4), 0.5f);
  for (int d = 0; d < 8; ++d) {
    EXPECT_EQ(q8.At<int8_t>(d * 16 + 3), expected[d]);
    EXPECT_EQ(q8.At<int8_t>(128 + 3 * 8 + d), doubled[d]);
  }
  EXPECT_EQ(q8.At<uint8_t>(2), 0xff);  // slots beside it are untouched
  EXPECT_EQ(q8.At<uint8_t>(128 + 4 * 8), 0xff);

  // In dimensions 64 and more another scale.
  Page wide(table(), KvFormat::kQ8, 72);
  std::vector<float> row(72, 127.0f);
  for (size_t d = 64; d < 72; ++d) row[d] = -0.5f;
  wide.Write(15, row, row);
  for (const int64_t scales : {32 * 72, 32 * 72 + 128}) {
    EXPECT_EQ(wide.At<float>(scales + 15 * 4), 1.0f);
    EXPECT_EQ(wide.At<float>(scales + 64 + 15 * 4), 0.5f / 127.0f);
  }
  EXPECT_EQ(wide.At<int8_t>(63 * 16 + 15), 127);
  EXPECT_EQ(wide.At<int8_t>(64 * 16 + 15), -127);
  EXPECT_EQ(wide.At<int8_t>(16 * 72 + 15 * 72 + 64), -127);

  // A key of which the rotation is -4, -3.75, ... 3.75 in each 32 dimensions.
  std::vector<float> wanted(64), v(64);
  for (size_t d = 0; d < 64; ++d) {
    wanted[d] = -4.0f + 0.25f * static_cast<float>(d % 32);
    v[d] = d < 32 ? 3.0f : d == 40 ? 16.0f : 1.0f;
  }
  const std::vector<double> k = Rotated(wanted);
  Page q4(table(), KvFormat::kQ4, 64);
  q4.Write(5, {k.begin(), k.end()}, v);
  for (int i = 0; i < 32; ++i) EXPECT_EQ(q4.At<uint8_t>(i * 16 + 5), i % 16 * 17);
  for (int i = 0; i < 32; ++i) EXPECT_EQ(q4.At<uint8_t>(512 + 5 * 32 + i), i == 24 ? 15 : 0);
  const auto half_at = [&](int64_t offset) { return HalfToFloat(q4.At<uint16_t>(offset)); };
  for (int group = 0; group < 2; ++group) {
    EXPECT_EQ(half_at(1024 + group * 32 + 5 * 2), 0.25f);
    EXPECT_EQ(half_at(1024 + 64 + group * 32 + 5 * 2), -4.0f);
    EXPECT_EQ(q4.At<uint16_t>(1024 + 128 + group * 64 + 5 * 2), 0);  // fifth bits
    EXPECT_EQ(q4.At<uint16_t>(1024 + 128 + group * 64 + 32 + 5 * 2), 0xffff);
  }
  const float steps[] = {0, 1}, minima[] = {3, 1};
  for (int group = 0; group < 2; ++group) {
    EXPECT_EQ(half_at(1280 + group * 32 + 5 * 2), steps[group]);
    EXPECT_EQ(half_at(1280 + 64 + group * 32 + 5 * 2), minima[group]);
  }
}

TEST_P(KvPageTest, Q8KeepsEveryFiniteSizeAndTurnsTheRestIntoNan) {
  const std::vector<float> plain(16, 127.0f);
  for (const float largest : {FLT_MAX, -FLT_MAX, 1e30f, 1e-30f, 0x1.fcp-120f}) {
    Page page(table(), KvFormat::kQ8, 16);
    std::vector<float> row(16, largest / 2);
    row[9] = largest;
    page.Write(0, row, plain);
    EXPECT_NEAR(page.Key(0)[9] / largest, 1, 1e-6);
    EXPECT_NEAR(page.Key(0)[1] / largest, 0.5, 0.5001 / 127);  // 63.5 steps: half of one
  }
  for (const float tiny : {0.0f, -0.0f, FLT_MIN, 1e-40f, 126 * FLT_MIN}) {
    Page page(table(), KvFormat::kQ8, 16);
    page.Write(0, std::vector<float>(16, tiny), plain);
    EXPECT_EQ(page.Key(0), std::vector<double>(16, 0.0)) << tiny;
  }
  for (const float bad : {kInfinity, -kInfinity, kNan, -kNan}) {
    Page page(table(), KvFormat::kQ8, 16);
    std::vector<float> row = plain;
    row[9] = bad;
    page.Write(0, plain, row);
    page.Write(1, row, plain);
    EXPECT_TRUE(AllNan(page.Value(0)) && AllNan(page.Key(1))) << bad;
    EXPECT_EQ(page.Key(0), std::vector<double>(plain.begin(), plain.end()));
    EXPECT_EQ(page.Value(1), std::vector<double>(plain.begin(), plain.end()));
  }
}

TEST_P(KvPageTest, Q4KeepsWhatF16KeepsAndTurnsTheRestOfAGroupIntoNan) {
  const std::vector<float> zeros(64, 0.0f);
  for (const float largest : {65519.0f, -65519.0f, 100.0f, 0.01f}) {
    Page page(table(), KvFormat::kQ4, 64);
    std::vector<float> row(64, -largest);
    row[9] = largest;
    page.Write(0, zeros, row);
    EXPECT_NEAR(page.Value(0)[9] / largest, 1, 2e-3);
    EXPECT_NEAR(page.Value(0)[1] / largest, -1, 2e-3);
    EXPECT_EQ(page.Key(0), std::vector<double>(64, 0.0));
  }
  for (const float small : {0.0f, -0.0f, 0x1p-24f, -0x1p-24f, 0.125f, -3.0f, 60000.0f}) {
    Page page(table(), KvFormat::kQ4, 64);  // all values equal: the minimum alone says it
    page.Write(0, zeros, std::vector<float>(64, small));
    EXPECT_EQ(page.Value(0), std::vector<double>(64, HalfToFloat(FloatToHalf(small)))) << small;
  }
  for (const float bad : {65520.0f, -65520.0f, FLT_MAX, kInfinity, -kInfinity, kNan, -kNan}) {
    Page page(table(), KvFormat::kQ4, 64);
    std::vector<float> row = zeros;
    row[40] = bad;
    page.Write(0, zeros, row);
    const std::vector<double> value = page.Value(0);
    EXPECT_EQ(std::vector<double>(value.begin(), value.begin() + 32), std::vector<double>(32));
    EXPECT_TRUE(AllNan({value.begin() + 32, value.end()})) << bad;
    EXPECT_EQ(page.Key(0), std::vector<double>(64));
    row[40] = 8 * bad;  // more than an eighth of it in each dimension of its group, rotated
    page.Write(1, row, zeros);
    const std::vector<double> key = page.Key(1);
    EXPECT_EQ(std::vector<double>(key.begin(), key.begin() + 32), std::vector<double>(32));
    EXPECT_TRUE(AllNan({key.begin() + 32, key.end()})) << bad;
    EXPECT_EQ(page.Value(1), std::vector<double>(64));
  }
}

// In keys, one dimension that is far larger than the others takes no precision from them.
TEST_P(KvPageTest, Q4SpreadsALargeDimensionOfAKey) {
  std::mt19937 rng(4);
  std::vector<float> k = RandomFloats(64, rng);
  k[7] = 40.0f;
  Page page(table(), KvFormat::kQ4, 64);
  page.Write(0, k, k);
  const std::vector<double> key = Rotated(page.Key(0)), value = page.Value(0);
  double key_error = 0, value_error = 0;
  for (size_t d = 0; d < 32; ++d) {
    key_error += (key[d] - k[d]) * (key[d] - k[d]);
    value_error += (value[d] - k[d]) * (value[d] - k[d]);
  }
  EXPECT_LT(4 * key_error, value_error);
}

// Of every size and kind, in groups of like and of unlike values.
TEST_P(KvPageTest, AnyFloatsGiveTheBytesOfTheFirstTable) {
  std::mt19937 rng(3);
  const auto any_float = [&](int kind, float near) {
    if (kind == 0) return std::bit_cast<float>(static_cast<uint32_t>(rng()));
    const float spread = std::ldexp(static_cast<float>(rng() % 4096), -12 - kind * 3);
    return near * (1.0f + spread);
  };
  for (const KvFormat format : {KvFormat::kQ8, KvFormat::kQ4}) {
    for (const int64_t dim : {32, 96}) {
      Page expected(*AvailableKernels().front(), format, dim);
      Page page(table(), format, dim);
      for (int round = 0; round < 2000; ++round) {
        const float near =
            std::ldexp(rng() % 2 == 0 ? 1.3f : -1.3f, static_cast<int>(rng() % 60) - 40);
        std::vector<float> k, v;
        for (int64_t d = 0; d < dim; ++d) {
          k.push_back(any_float(round % 8, near));
          v.push_back(any_float(round % 7, near));
        }
        expected.Write(round % 16, k, v);
        page.Write(round % 16, k, v);
        ASSERT_TRUE(std::equal(page.bytes().begin(), page.bytes().end(), expected.bytes().begin()))
            << dim << " round " << round;
      }
    }
  }
}

TEST(HoldsHeadDimTest, OnlyQ4WantsGroups) {
  for (int64_t dim = 8; dim <= 256; dim += 8) {
    for (const KvFormat format : {KvFormat::kF32, KvFormat::kF16, KvFormat::kBF16, KvFormat::kQ8}) {
      EXPECT_TRUE(HoldsHeadDim(format, dim));
    }
    EXPECT_EQ(HoldsHeadDim(KvFormat::kQ4, dim), dim % 32 == 0);
  }
}

}  // namespace
}  // namespace kvist::worker
