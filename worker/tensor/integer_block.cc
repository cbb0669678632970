#include "worker/tensor/integer_block.h"

#include <cstring>

#include "common/base/check.h"

namespace kvist::worker {
namespace {

using gguf::TensorType;

uint8_t ByteAt(const std::byte* p) { return std::to_integer<uint8_t>(*p); }

uint16_t Load16(const std::byte* p) {
  uint16_t value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

uint32_t Load32(const std::byte* p) {
  uint32_t value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

// Low nibbles are columns 0..15, high nibbles 16..31. `high_bits`: bit c is the fifth bit of column
// c.
void DecodeNibbles32(const std::byte* nibbles, uint32_t high_bits, IntegerBlock& out) {
  for (int i = 0; i < 16; ++i) {
    const uint8_t byte = ByteAt(nibbles + i);
    out.q[i] = static_cast<uint8_t>((byte & 15) | (((high_bits >> i) & 1) << 4));
    out.q[i + 16] = static_cast<uint8_t>((byte >> 4) | (((high_bits >> (i + 16)) & 1) << 4));
  }
}

// Twelve bytes hold eight 6-bit scales and eight 6-bit minima: the first four of each in bytes 0..3
// and 4..7, the low nibbles of the others in bytes 8..11, and their upper two bits on top of bytes
// 0..7.
void DecodeKScales(const std::byte* packed, IntegerBlock& out) {
  for (int j = 0; j < 4; ++j) {
    const uint8_t low = ByteAt(packed + j);
    const uint8_t middle = ByteAt(packed + 4 + j);
    const uint8_t high = ByteAt(packed + 8 + j);
    out.scale[j] = static_cast<int8_t>(low & 63);
    out.min[j] = static_cast<uint8_t>(middle & 63);
    out.scale[j + 4] = static_cast<int8_t>((high & 15) | ((low >> 6) << 4));
    out.min[j + 4] = static_cast<uint8_t>((high >> 4) | ((middle >> 6) << 4));
  }
}

// Every 32 bytes of nibbles are 64 columns: low nibbles the first 32, high nibbles the second 32.
// `high_bits` (or null): 32 bytes, bit s of byte i is the fifth bit of column 32 * s + i.
void DecodeK45(const std::byte* nibbles, const std::byte* high_bits, IntegerBlock& out) {
  for (int chunk = 0; chunk < 4; ++chunk) {
    for (int i = 0; i < 32; ++i) {
      const uint8_t byte = ByteAt(nibbles + 32 * chunk + i);
      const int high = high_bits == nullptr ? 0 : ByteAt(high_bits + i) >> (2 * chunk);
      out.q[64 * chunk + i] = static_cast<uint8_t>((byte & 15) | ((high & 1) << 4));
      out.q[64 * chunk + 32 + i] = static_cast<uint8_t>((byte >> 4) | ((high & 2) << 3));
    }
  }
}

// ql[128] nibbles, qh[64] upper two bits, scales[16], d. Halves of 128 columns as four runs of 32.
void DecodeQ6K(const std::byte* block, IntegerBlock& out) {
  for (int half = 0; half < 2; ++half) {
    const std::byte* low = block + 64 * half;
    const std::byte* high = block + 128 + 32 * half;
    for (int run = 0; run < 4; ++run) {
      for (int i = 0; i < 32; ++i) {
        const uint8_t byte = ByteAt(low + 32 * (run & 1) + i);
        const int nibble = run < 2 ? byte & 15 : byte >> 4;
        const int upper = (ByteAt(high + i) >> (2 * run)) & 3;
        out.q[128 * half + 32 * run + i] = static_cast<uint8_t>(nibble | (upper << 4));
      }
    }
  }
  std::memcpy(out.scale.data(), block + 192, 16);
  out.d = Load16(block + 208);
}

}  // namespace

int IntegerOffset(TensorType type) {
  switch (type) {
    case TensorType::kQ4_0:
      return 8;
    case TensorType::kQ5_0:
      return 16;
    case TensorType::kQ6_K:
      return 32;
    default:
      return 0;
  }
}

void DecodeBlock(TensorType type, const std::byte* block, IntegerBlock& out) {
  out.d = Load16(block);
  switch (type) {
    case TensorType::kQ4_0:
      return DecodeNibbles32(block + 2, 0, out);
    case TensorType::kQ4_1:
      out.m = Load16(block + 2);
      return DecodeNibbles32(block + 4, 0, out);
    case TensorType::kQ5_0:
      return DecodeNibbles32(block + 6, Load32(block + 2), out);
    case TensorType::kQ5_1:
      out.m = Load16(block + 2);
      return DecodeNibbles32(block + 8, Load32(block + 4), out);
    case TensorType::kQ8_0:
      std::memcpy(out.q.data(), block + 2, 32);
      return;
    case TensorType::kQ4_K:
      out.m = Load16(block + 2);
      DecodeKScales(block + 4, out);
      return DecodeK45(block + 16, nullptr, out);
    case TensorType::kQ5_K:
      out.m = Load16(block + 2);
      DecodeKScales(block + 4, out);
      return DecodeK45(block + 48, block + 16, out);
    case TensorType::kQ6_K:
      return DecodeQ6K(block, out);
    case TensorType::kF32:
    case TensorType::kF16:
    case TensorType::kBF16:
      break;
  }
  KVIST_CHECK(false, "DecodeBlock of a type without blocks");
}

}  // namespace kvist::worker
