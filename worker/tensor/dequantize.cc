#include "worker/tensor/dequantize.h"

#include <bit>
#include <cstring>

#include "common/base/check.h"
#include "worker/tensor/integer_block.h"

namespace kvist::worker {
namespace {

using gguf::TensorType;

constexpr uint32_t kFloatInfinity = 0x7f800000;

}  // namespace

void DequantizeBlock(TensorType type, const IntegerBlock& block, std::span<float> out) {
  const float d = HalfToFloat(block.d);
  const int offset = IntegerOffset(type);
  switch (type) {
    case TensorType::kQ8_0:
      for (size_t c = 0; c < 32; ++c)
        out[c] = d * static_cast<float>(static_cast<int8_t>(block.q[c]));
      return;
    case TensorType::kQ4_1:
    case TensorType::kQ5_1: {
      const float m = HalfToFloat(block.m);
      for (size_t c = 0; c < 32; ++c) out[c] = d * static_cast<float>(block.q[c]) + m;
      return;
    }
    case TensorType::kQ4_K:
    case TensorType::kQ5_K: {
      const float m = HalfToFloat(block.m);
      for (size_t c = 0; c < 256; ++c) {
        const float scale = d * static_cast<float>(block.scale[c / 32]);
        const float min = m * static_cast<float>(block.min[c / 32]);
        out[c] = scale * static_cast<float>(block.q[c]) - min;
      }
      return;
    }
    case TensorType::kQ6_K:
      for (size_t c = 0; c < 256; ++c) {
        out[c] =
            d * static_cast<float>(block.scale[c / 16]) * static_cast<float>(block.q[c] - offset);
      }
      return;
    default:
      for (size_t c = 0; c < 32; ++c) out[c] = d * static_cast<float>(block.q[c] - offset);
      return;
  }
}

// Integer arithmetic only, so that the result does not depend on the thread's denormal mode, as
// F16C does not.
float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 31;
  const uint32_t mantissa = half & 0x3ff;
  if (exponent == 31) {
    const uint32_t quiet = mantissa != 0 ? 0x400000 : 0;
    return std::bit_cast<float>(sign | kFloatInfinity | (mantissa << 13) | quiet);
  }
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  if (mantissa == 0) return std::bit_cast<float>(sign);
  const int shift = std::countl_zero(mantissa) - 21;  // brings the leading bit to bit 10
  return std::bit_cast<float>(sign | (static_cast<uint32_t>(113 - shift) << 23) |
                              (((mantissa << shift) & 0x3ff) << 13));
}

uint16_t FloatToHalf(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > kFloatInfinity) {  // NaN: keep the upper payload, make it quiet
    return static_cast<uint16_t>(sign | 0x7e00 | ((magnitude >> 13) & 0x3ff));
  }
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // 65520 and above round to infinity
  uint32_t shift = 13;
  uint32_t significand =
      magnitude - (uint32_t{112} << 23);  // exponent rebased; the carry of rounding may enter it
  if (magnitude < 0x38800000) {           // below 2^-14: a denormal half
    const uint32_t exponent = magnitude >> 23;
    if (exponent < 102) return sign;  // below 2^-25, which itself ties to even, to zero
    shift = 126 - exponent;
    significand = (magnitude & 0x7fffff) | 0x800000;
  }
  const uint32_t half_unit = uint32_t{1} << (shift - 1);
  const uint32_t odd = (significand >> shift) & 1;
  return static_cast<uint16_t>(sign | ((significand + half_unit - 1 + odd) >> shift));
}

float Bf16ToFloat(uint16_t value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value) << 16);
}

uint16_t FloatToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffff) > kFloatInfinity) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

void Dequantize(TensorType type, std::span<const std::byte> blocks, std::span<float> out) {
  const gguf::BlockShape shape = gguf::BlockShapeOf(type);
  const auto block_elements = static_cast<size_t>(shape.elements);
  const auto block_bytes = static_cast<size_t>(shape.bytes);
  KVIST_CHECK(out.size() % block_elements == 0);
  KVIST_CHECK(blocks.size() == out.size() / block_elements * block_bytes);
  if (out.empty()) return;
  if (type == TensorType::kF32) {
    std::memcpy(out.data(), blocks.data(), blocks.size());
    return;
  }
  if (type == TensorType::kF16 || type == TensorType::kBF16) {
    for (size_t i = 0; i < out.size(); ++i) {
      uint16_t bits;
      std::memcpy(&bits, blocks.data() + 2 * i, sizeof(bits));
      out[i] = type == TensorType::kF16 ? HalfToFloat(bits) : Bf16ToFloat(bits);
    }
    return;
  }
  IntegerBlock block;
  for (size_t b = 0; b * block_elements < out.size(); ++b) {
    DecodeBlock(type, blocks.data() + b * block_bytes, block);
    DequantizeBlock(type, block, out.subspan(b * block_elements, block_elements));
  }
}

}  // namespace kvist::worker
