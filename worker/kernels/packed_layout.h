// Where the parts of a packed block are (layout R16): shared by the packer and the kernels. A
// packed block is 16 rows by `cols` columns; within it columns go in steps of 32. Word w (0..7) of
// a step and row means its columns 4w .. 4w+3.
#ifndef KVIST_WORKER_KERNELS_PACKED_LAYOUT_H_
#define KVIST_WORKER_KERNELS_PACKED_LAYOUT_H_

#include <cstddef>
#include <cstdint>

#include "common/gguf/tensor_type.h"

namespace kvist::worker {

inline constexpr int64_t kPanelRows = 16;

// A packed [rows, cols] matrix: a view, the bytes belong to the model's weight arena. The last
// panel is padded with zero rows.
struct PackedMatrix {
  gguf::TensorType type = gguf::TensorType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  const std::byte* data = nullptr;  // 64-byte aligned; panel p begins at data + p * panel_bytes
  int64_t panel_bytes = 0;

  int64_t panels() const { return (rows + kPanelRows - 1) / kPanelRows; }
};

// Offsets in bytes from the block's start; -1 where the type has no such part.
struct PackedLayout {
  int64_t cols;  // 32, 256 (K types) or 1 (floats: the block is one column of 16 elements)
  int64_t bytes;
  int64_t m;      // f16[16]; d is f16[16] at offset 0
  int64_t scale;  // per step u8[16] (Q4_K, Q5_K) or i8[2][16] (Q6_K: first and second 16 columns)
  int64_t scale_stride;  // bytes per step
  int64_t min;           // per step u8[16]
  // Bits 4 and above. 5-bit types, per step [16 rows][4]: bit w of byte b belongs to column 4w + b.
  // Q6_K, per step [2][16 rows][4]: bits 2s, 2s+1 of byte b of part j belong to column 16j + 4s +
  // b.
  int64_t high;
  int64_t high_stride;
  // Lowest four bits, per step [4][16 rows][4]: low nibble of byte b of word g is column 4g + b,
  // high nibble column 16 + 4g + b. Q8_0: per step [8][16 rows][4], byte b of word w is column 4w +
  // b.
  int64_t q;
  int64_t q_stride;
};

constexpr PackedLayout PackedLayoutOf(gguf::TensorType type) {
  using gguf::TensorType;
  switch (type) {
    case TensorType::kQ4_0:
      return {32, 288, -1, -1, 0, -1, -1, 0, 32, 256};
    case TensorType::kQ4_1:
      return {32, 320, 32, -1, 0, -1, -1, 0, 64, 256};
    case TensorType::kQ5_0:
      return {32, 352, -1, -1, 0, -1, 32, 64, 96, 256};
    case TensorType::kQ5_1:
      return {32, 384, 32, -1, 0, -1, 64, 64, 128, 256};
    case TensorType::kQ8_0:
      return {32, 544, -1, -1, 0, -1, -1, 0, 32, 512};
    case TensorType::kQ4_K:
      return {256, 2368, 32, 64, 16, 192, -1, 0, 320, 256};
    case TensorType::kQ5_K:
      return {256, 2880, 32, 64, 16, 192, 320, 64, 832, 256};
    case TensorType::kQ6_K:
      return {256, 3360, -1, 32, 32, -1, 288, 128, 1312, 256};
    case TensorType::kF32:
      return {1, 64, -1, -1, 0, -1, -1, 0, 0, 0};
    case TensorType::kF16:
    case TensorType::kBF16:
      return {1, 32, -1, -1, 0, -1, -1, 0, 0, 0};
  }
  return {1, 0, -1, -1, 0, -1, -1, 0, 0, 0};
}

}  // namespace kvist::worker

#endif  // KVIST_WORKER_KERNELS_PACKED_LAYOUT_H_
