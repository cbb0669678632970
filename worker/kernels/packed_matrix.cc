#include "worker/kernels/packed_matrix.h"

#include <array>
#include <cstring>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/int_math.h"
#include "common/base/status.h"
#include "worker/kernels/packed_layout.h"
#include "worker/tensor/integer_block.h"

namespace kvist::worker {
namespace {

using gguf::TensorType;

constexpr int64_t kAlignment = 64;

// The low four bits of each of four bytes.
constexpr uint32_t kNibbles = 0x0F0F0F0F;

// Four neighbouring integers of one row: the unit in which a panel interleaves its rows.
using Word = uint32_t;

// Lays the 32 integers of a step, eight words, into their row of a packed block.
void PackStep(TensorType type, const PackedLayout& layout, int row, int step,
              const uint8_t* integers, std::byte* block) {
  constexpr int kWords = 8;
  std::array<Word, kWords> word;
  std::memcpy(word.data(), integers, sizeof(word));
  const auto put = [row](std::byte* words, int i, Word value) {
    std::memcpy(words + (i * kPanelRows + row) * sizeof(Word), &value, sizeof(Word));
  };
  std::byte* q = block + layout.q + step * layout.q_stride;
  if (type == TensorType::kQ8_0) {
    for (int i = 0; i < kWords; ++i) put(q, i, word[i]);
    return;
  }
  for (int i = 0; i < 4; ++i) put(q, i, (word[i] & kNibbles) | (word[i + 4] & kNibbles) << 4);
  if (layout.high < 0) return;
  const int bits = type == TensorType::kQ6_K ? 2 : 1;
  const int words_in_one = 8 / bits;
  std::byte* high = block + layout.high + step * layout.high_stride;
  for (int i = 0; i < kWords / words_in_one; ++i) {
    Word value = 0;
    for (int k = 0; k < words_in_one; ++k)
      value |= (word[i * words_in_one + k] >> 4 & kNibbles) << (bits * k);
    put(high, i, value);
  }
}

void PackScales(TensorType type, const PackedLayout& layout, int row, const IntegerBlock& in,
                std::byte* block) {
  std::memcpy(block + 2 * row, &in.d, 2);
  if (layout.m >= 0) std::memcpy(block + layout.m + 2 * row, &in.m, 2);
  if (layout.scale < 0) return;
  const int scales = type == TensorType::kQ6_K ? 16 : 8;
  for (int i = 0; i < scales; ++i)
    block[layout.scale + 16 * i + row] = static_cast<std::byte>(in.scale[i]);
  if (layout.min < 0) return;
  for (int i = 0; i < 8; ++i) block[layout.min + 16 * i + row] = static_cast<std::byte>(in.min[i]);
}

void PackQuantizedRow(TensorType type, int64_t cols, int row, const std::byte* source,
                      std::byte* panel) {
  const PackedLayout layout = PackedLayoutOf(type);
  const int64_t source_bytes = gguf::BlockShapeOf(type).bytes;
  IntegerBlock block{};
  for (int64_t b = 0; b < cols / layout.cols; ++b) {
    std::byte* out = panel + b * layout.bytes;
    DecodeBlock(type, source + b * source_bytes, block);
    PackScales(type, layout, row, block, out);
    for (int step = 0; step < layout.cols / 32; ++step)
      PackStep(type, layout, row, step, block.q.data() + 32 * step, out);
  }
}

void PackFloatRow(int64_t element_bytes, int64_t cols, int row, const std::byte* source,
                  std::byte* panel) {
  for (int64_t c = 0; c < cols; ++c) {
    std::memcpy(panel + (c * kPanelRows + row) * element_bytes, source + c * element_bytes,
                element_bytes);
  }
}

}  // namespace

bool UsesQuantizedActivations(TensorType type) {
  return type != TensorType::kF32 && type != TensorType::kF16 && type != TensorType::kBF16;
}

absl::StatusOr<int64_t> PackedPanelBytes(TensorType type, int64_t cols) {
  const PackedLayout layout = PackedLayoutOf(type);
  if (layout.bytes == 0 || cols <= 0 || cols % layout.cols != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("a row of ", cols, " columns is not a whole number of ",
                     std::string(gguf::TensorTypeName(type)), " blocks"));
  }
  const std::optional<int64_t> bytes = CheckedMultiply(cols / layout.cols, layout.bytes);
  if (!bytes.has_value() || *bytes > INT64_MAX - kAlignment) {
    return absl::InvalidArgumentError(absl::StrCat("a row of ", cols, " columns is too long"));
  }
  return RoundUp(*bytes, kAlignment);
}

absl::StatusOr<int64_t> PackedBytes(TensorType type, int64_t rows, int64_t cols) {
  KVIST_ASSIGN_OR_RETURN(const int64_t panel_bytes, PackedPanelBytes(type, cols));
  const std::optional<int64_t> bytes =
      rows < 0 ? std::nullopt : CheckedMultiply(CeilDiv(rows, kPanelRows), panel_bytes);
  if (!bytes.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot pack ", rows, " rows of ", cols, " columns"));
  }
  return *bytes;
}

void PackPanels(TensorType type, int64_t rows, int64_t cols, std::span<const std::byte> source,
                int64_t first_panel, int64_t last_panel, std::span<std::byte> out) {
  const absl::StatusOr<int64_t> panel_bytes = PackedPanelBytes(type, cols);
  KVIST_CHECK(panel_bytes.ok(), "PackPanels of a shape that cannot be packed");
  const gguf::BlockShape shape = gguf::BlockShapeOf(type);
  const int64_t row_bytes = cols / shape.elements * shape.bytes;
  const int64_t panels = CeilDiv(rows, kPanelRows);
  KVIST_CHECK(static_cast<int64_t>(source.size()) == rows * row_bytes);
  KVIST_CHECK(static_cast<int64_t>(out.size()) == panels * *panel_bytes);
  KVIST_CHECK(0 <= first_panel && first_panel <= last_panel && last_panel <= panels);
  for (int64_t p = first_panel; p < last_panel; ++p) {
    std::byte* panel = out.data() + p * *panel_bytes;
    std::memset(panel, 0, static_cast<size_t>(*panel_bytes));
    for (int row = 0; row < kPanelRows && p * kPanelRows + row < rows; ++row) {
      const std::byte* from = source.data() + (p * kPanelRows + row) * row_bytes;
      if (UsesQuantizedActivations(type)) {
        PackQuantizedRow(type, cols, row, from, panel);
      } else {
        PackFloatRow(shape.bytes, cols, row, from, panel);
      }
    }
  }
}

}  // namespace kvist::worker
