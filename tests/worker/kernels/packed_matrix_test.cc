#include "worker/kernels/packed_matrix.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/kernels/product_case.h"
#include "worker/kernels/packed_layout.h"

namespace kvist::worker {
namespace {

using gguf::TensorType;

TEST(PackedMatrixTest, SizesAreThoseOfTheLayout) {
  EXPECT_EQ(*PackedPanelBytes(TensorType::kQ4_1, 576), 18 * 320);
  EXPECT_EQ(*PackedPanelBytes(TensorType::kQ8_0, 576), 18 * 544);
  EXPECT_EQ(*PackedPanelBytes(TensorType::kQ8_0, 32), 576);  // padded to whole cache lines
  EXPECT_EQ(*PackedPanelBytes(TensorType::kF16, 3), 128);
  EXPECT_EQ(*PackedBytes(TensorType::kQ4_1, 17, 64), 2 * 2 * 320);
  EXPECT_EQ(*PackedBytes(TensorType::kF32, 0, 64), 0);
}

// The K types grow by what widening 6-bit scales to bytes costs, the others only by padding.
TEST(PackedMatrixTest, TakesNoMoreThanTheFileWithinThreePercent) {
  for (TensorType type : kAllTypes) {
    const gguf::BlockShape shape = gguf::BlockShapeOf(type);
    const int64_t stored = 16 * 1536 / shape.elements * shape.bytes;
    EXPECT_LE(*PackedPanelBytes(type, 1536), stored + stored * 3 / 100)
        << gguf::TensorTypeName(type);
    EXPECT_GE(*PackedPanelBytes(type, 1536), stored) << gguf::TensorTypeName(type);
  }
}

TEST(PackedMatrixTest, RefusesRowsThatAreNotWholeBlocks) {
  EXPECT_EQ(PackedPanelBytes(TensorType::kQ4_1, 48).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(PackedPanelBytes(TensorType::kQ6_K, 576).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(PackedPanelBytes(TensorType::kF32, 0).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(PackedBytes(TensorType::kF32, -1, 4).status().code(),
            absl::StatusCode::kInvalidArgument);
  const int64_t huge = std::numeric_limits<int64_t>::max() / 64;
  EXPECT_FALSE(PackedBytes(TensorType::kF32, huge, 32).ok());
  EXPECT_FALSE(PackedPanelBytes(TensorType::kF32, huge * 2).ok());
}

// One stored block at a time: a bit that the packer moves to a place of its own for every bit of
// the block is lossless.
TEST(PackedMatrixTest, EveryStoredBitHasAPlaceOfItsOwn) {
  for (TensorType type : kAllTypes) {
    const gguf::BlockShape shape = gguf::BlockShapeOf(type);
    const int64_t bytes = *PackedBytes(type, 16, shape.elements);
    std::vector<int> uses(static_cast<size_t>(bytes * 8), 0);
    const int64_t row = 5;
    for (int64_t bit = 0; bit < shape.bytes * 8; ++bit) {
      std::vector<std::byte> source(static_cast<size_t>(16 * shape.bytes));
      source[static_cast<size_t>(row * shape.bytes + bit / 8)] =
          static_cast<std::byte>(1 << (bit % 8));
      AlignedArray<std::byte> packed(bytes);
      PackPanels(type, 16, shape.elements, source, 0, 1, packed.span());
      int set = 0;
      for (int64_t i = 0; i < bytes * 8; ++i) {
        if ((packed[i / 8] & static_cast<std::byte>(1 << (i % 8))) == std::byte{0}) continue;
        ++uses[static_cast<size_t>(i)];
        ++set;
      }
      ASSERT_EQ(set, 1) << gguf::TensorTypeName(type) << " bit " << bit;
    }
    EXPECT_EQ(*std::max_element(uses.begin(), uses.end()), 1) << gguf::TensorTypeName(type);
  }
}

// Q4_1, in the numbers of KERNELS.md 1.1: word g of row r of a step is the row's original word g.
TEST(PackedMatrixTest, Q4_1IsATransposeOfWords) {
  std::mt19937 rng(1);
  const std::vector<std::byte> source = RandomBlocks(TensorType::kQ4_1, 16, 64, rng);
  AlignedArray<std::byte> packed(*PackedBytes(TensorType::kQ4_1, 16, 64));
  PackPanels(TensorType::kQ4_1, 16, 64, source, 0, 1, packed.span());
  for (int block = 0; block < 2; ++block) {
    for (int row = 0; row < 16; ++row) {
      const std::byte* from = source.data() + (row * 2 + block) * 20;
      const std::byte* to = packed.data() + block * 320;
      EXPECT_EQ(std::memcmp(to + 2 * row, from, 2), 0);
      EXPECT_EQ(std::memcmp(to + 32 + 2 * row, from + 2, 2), 0);
      for (int g = 0; g < 4; ++g)
        EXPECT_EQ(std::memcmp(to + 64 + 64 * g + 4 * row, from + 4 + 4 * g, 4), 0);
    }
  }
}

TEST(PackedMatrixTest, PanelsPackedApartAreThoseOfTheWholeAndMissingRowsAreZero) {
  std::mt19937 rng(2);
  for (TensorType type : kAllTypes) {
    const int64_t rows = 37, cols = 512;
    const std::vector<std::byte> source = RandomBlocks(type, rows, cols, rng);
    const TestMatrix whole(type, rows, cols, source);
    AlignedArray<std::byte> apart(whole.packed.size());
    std::memset(apart.data(), 0xee, static_cast<size_t>(apart.size()));
    for (int64_t p : {2, 0, 1}) PackPanels(type, rows, cols, source, p, p + 1, apart.span());
    EXPECT_EQ(std::memcmp(apart.data(), whole.packed.data(), static_cast<size_t>(apart.size())), 0);
  }
}

TEST(PackedMatrixTest, AnUnpackedRowIsTheStoredRow) {
  std::mt19937 rng(3);
  for (TensorType type : kAllTypes) {
    const int64_t rows = 21, cols = 512;
    const TestMatrix w(type, rows, cols, RandomBlocks(type, rows, cols, rng));
    for (int64_t row = 0; row < rows; ++row) {
      std::vector<float> values(static_cast<size_t>(cols));
      UnpackRow(w.view, row, values);
      EXPECT_TRUE(SameBits(values, std::span(w.values).subspan(static_cast<size_t>(row * cols),
                                                               static_cast<size_t>(cols))))
          << gguf::TensorTypeName(type) << " " << row;
    }
  }
}

}  // namespace
}  // namespace kvist::worker
