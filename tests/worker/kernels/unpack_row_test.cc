#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "worker/kernels/packed_matrix.h"
#include "worker/tensor/dequantize.h"

namespace kvist::worker {
namespace {

using gguf::TensorType;

class UnpackRowTest : public ::testing::TestWithParam<TensorType> {};

// Random bytes are a legal block of every type.
TEST_P(UnpackRowTest, GivesTheBitsOfDequantizeForEveryRowOfAPartialPanelToo) {
  const TensorType type = GetParam();
  const gguf::BlockShape shape = gguf::BlockShapeOf(type);
  const int64_t rows = 37;
  const int64_t cols = 512;
  const size_t row_bytes = static_cast<size_t>(cols / shape.elements * shape.bytes);
  std::vector<std::byte> source(static_cast<size_t>(rows) * row_bytes);
  std::mt19937_64 random(3);
  for (std::byte& byte : source) byte = static_cast<std::byte>(random());
  const size_t packed_bytes = static_cast<size_t>(*PackedBytes(type, rows, cols));
  std::vector<std::byte> memory(packed_bytes + 64);
  std::byte* const data = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64);
  PackPanels(type, rows, cols, source, 0, 3, {data, packed_bytes});
  const PackedMatrix matrix{.type = type,
                            .rows = rows,
                            .cols = cols,
                            .data = data,
                            .panel_bytes = *PackedPanelBytes(type, cols)};
  std::vector<float> got(static_cast<size_t>(cols));
  std::vector<float> want(static_cast<size_t>(cols));
  for (int64_t row = 0; row < rows; ++row) {
    UnpackRow(matrix, row, got);
    Dequantize(type, std::span(source).subspan(static_cast<size_t>(row) * row_bytes, row_bytes),
               want);
    EXPECT_EQ(std::memcmp(got.data(), want.data(), got.size() * sizeof(float)), 0) << "row " << row;
  }
}

INSTANTIATE_TEST_SUITE_P(All, UnpackRowTest,
                         ::testing::Values(TensorType::kF32, TensorType::kF16, TensorType::kBF16,
                                           TensorType::kQ4_0, TensorType::kQ4_1, TensorType::kQ5_0,
                                           TensorType::kQ5_1, TensorType::kQ8_0, TensorType::kQ4_K,
                                           TensorType::kQ5_K, TensorType::kQ6_K),
                         [](const auto& test) {
                           return std::string(gguf::TensorTypeName(test.param));
                         });

}  // namespace
}  // namespace kvist::worker
