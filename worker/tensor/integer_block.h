// The integers inside a stored quantised block, each at its column: the one place that knows ggml's
// bit order. Format: https://github.com/ggml-org/ggml (block_q4_0 ... block_q6_K); checked against
// gguf-py in the tests.
#ifndef KVIST_WORKER_TENSOR_INTEGER_BLOCK_H_
#define KVIST_WORKER_TENSOR_INTEGER_BLOCK_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "common/gguf/tensor_type.h"

namespace kvist::worker {

// One block. Which fields hold something depends on the type:
//   Q4_0, Q5_0, Q8_0   value = d * (q - offset)                    32 columns
//   Q4_1, Q5_1         value = d * q + m                           32 columns
//   Q4_K, Q5_K         value = d * scale[c / 32] * q - m * min[c / 32]   256 columns
//   Q6_K               value = d * scale[c / 16] * (q - offset)    256 columns
struct IntegerBlock {
  std::array<uint8_t, 256> q;    // stored integer of each column; Q8_0: the bits of an int8
  std::array<int8_t, 16> scale;  // Q4_K, Q5_K: 8 values of 0..63; Q6_K: 16 signed
  std::array<uint8_t, 8> min;    // Q4_K, Q5_K: 0..63
  uint16_t d;                    // binary16
  uint16_t m;                    // binary16: the block's minimum, or the K types' scale of `min`
};

// What is subtracted from a stored integer: 8, 16, 32 or 0.
int IntegerOffset(gguf::TensorType type);

// Decodes one block of a block-quantised type. REQUIRES: `block` has BlockShapeOf(type).bytes
// bytes.
void DecodeBlock(gguf::TensorType type, const std::byte* block, IntegerBlock& out);

// The values of a decoded block. REQUIRES: out.size() is BlockShapeOf(type).elements.
void DequantizeBlock(gguf::TensorType type, const IntegerBlock& block, std::span<float> out);

}  // namespace kvist::worker

#endif  // KVIST_WORKER_TENSOR_INTEGER_BLOCK_H_
