// The inverse of packed_matrix.cc for one row: stored integers and scales out of a panel, then
// their values.
#include <cstring>

#include "common/base/check.h"
#include "worker/kernels/packed_layout.h"
#include "worker/kernels/packed_matrix.h"
#include "worker/tensor/dequantize.h"
#include "worker/tensor/integer_block.h"

namespace kvist::worker {
namespace {

using gguf::TensorType;

// The stored integer at (row, col) of a packed block.
uint8_t UnpackInteger(TensorType type, const PackedLayout& layout, int row, int col,
                      const std::byte* block) {
  const int step = col / 32;
  const int word = col % 32 / 4;
  const int byte = col % 4;
  const std::byte* q = block + layout.q + step * layout.q_stride;
  if (type == TensorType::kQ8_0) return std::to_integer<uint8_t>(q[word * 64 + row * 4 + byte]);
  const int nibbles = std::to_integer<int>(q[(word % 4) * 64 + row * 4 + byte]);
  const int low = word < 4 ? nibbles & 15 : nibbles >> 4;
  if (layout.high < 0) return static_cast<uint8_t>(low);
  const std::byte* high = block + layout.high + step * layout.high_stride;
  if (type == TensorType::kQ6_K) {
    const int bits = std::to_integer<int>(high[(word / 4) * 64 + row * 4 + byte]);
    return static_cast<uint8_t>(low | ((bits >> (2 * (word % 4))) & 3) << 4);
  }
  return static_cast<uint8_t>(low | ((std::to_integer<int>(high[row * 4 + byte]) >> word) & 1)
                                        << 4);
}

void UnpackScales(TensorType type, const PackedLayout& layout, int row, const std::byte* block,
                  IntegerBlock& out) {
  std::memcpy(&out.d, block + 2 * row, 2);
  if (layout.m >= 0) std::memcpy(&out.m, block + layout.m + 2 * row, 2);
  if (layout.scale < 0) return;
  const size_t scales = type == TensorType::kQ6_K ? 16 : 8;
  for (size_t i = 0; i < scales; ++i) {
    out.scale[i] = std::to_integer<int8_t>(block[static_cast<size_t>(layout.scale + row) + 16 * i]);
  }
  if (layout.min < 0) return;
  for (size_t i = 0; i < 8; ++i) {
    out.min[i] = std::to_integer<uint8_t>(block[static_cast<size_t>(layout.min + row) + 16 * i]);
  }
}

}  // namespace

void UnpackRow(const PackedMatrix& matrix, int64_t row, std::span<float> out) {
  KVIST_CHECK(0 <= row && row < matrix.rows && static_cast<int64_t>(out.size()) == matrix.cols);
  const std::byte* panel = matrix.data + row / kPanelRows * matrix.panel_bytes;
  const int lane = static_cast<int>(row % kPanelRows);
  if (!UsesQuantizedActivations(matrix.type)) {
    const size_t element_bytes = static_cast<size_t>(gguf::BlockShapeOf(matrix.type).bytes);
    for (size_t c = 0; c < out.size(); ++c) {
      const std::byte* value = panel + (c * kPanelRows + static_cast<size_t>(lane)) * element_bytes;
      Dequantize(matrix.type, {value, element_bytes}, out.subspan(c, 1));
    }
    return;
  }
  const PackedLayout layout = PackedLayoutOf(matrix.type);
  IntegerBlock block{};
  for (int64_t b = 0; b < matrix.cols / layout.cols; ++b) {
    const std::byte* packed = panel + b * layout.bytes;
    UnpackScales(matrix.type, layout, lane, packed, block);
    for (int c = 0; c < layout.cols; ++c) {
      block.q[static_cast<size_t>(c)] = UnpackInteger(matrix.type, layout, lane, c, packed);
    }
    DequantizeBlock(
        matrix.type, block,
        out.subspan(static_cast<size_t>(b * layout.cols), static_cast<size_t>(layout.cols)));
  }
}

}  // namespace kvist::worker
