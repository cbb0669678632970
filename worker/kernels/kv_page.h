// KV formats and the bytes of a KV page: 16 consecutive tokens' keys and values of one (sequence,
// layer, kv head). Keys are token-interleaved, so that 16 scores are one vector and need no
// horizontal sums.
//
//   f32, f16, bf16:  K [head_dim][16] | V [16][head_dim]; rounded half to even
//   q8:  K int8 [head_dim][16] | V int8 [16][head_dim] | K scale f32 [groups][16] |
//        V scale f32 [groups][16], groups of 64 dimensions, the last one the rest
//        x ~ q * scale, one scale per token and group: max|x| / 127, q rounded half to even
//   q4:  K [head_dim / 32][16][16] | V [16][head_dim / 32][16] |
//        K step, K minimum f16 [head_dim / 32][16] | K fifth bits u16 [head_dim / 16][16] |
//        V step, V minimum f16 [head_dim / 32][16]
//        x ~ n * step + minimum, one pair per token and 32 dimensions; n of 0 .. 31 in keys and
//        of 0 .. 15 in values. Of each 32 dimensions, byte i of 16 holds the lower four bits of
//        dimension i in the low nibble, of 16 + i in the high one; bit i of the j-th word of fifth
//        bits belongs to dimension 16 * j + i. Keys are rotated first, queries likewise: the dot
//        products stay.
//
// q4 has groups, minima, the rotation and the keys' fifth bit because without them four bits cost
// too much: a few dimensions of a key are far larger than the others. The rotation spreads them,
// but over their own group only: over a whole head they would widen the steps of all groups. The
// figures: tests/bench/results/perplexity.md. The rotation is the orthonormal Hadamard transform
// of each 32 dimensions (QuaRot, arXiv 2404.00456):
//   y[i] = sum over j of (-1)^popcount(i & j) * x[j] / sqrt(32)
//
// Values that a format cannot hold. f32 keeps everything; bf16 and f16 give infinity for what is
// too large and keep NaN. A scale is shared, so in q8 a group's NaN or infinity, and in q4 a
// group's NaN or anything that f16 would store as infinity (65520 and more, of a key after the
// rotation), turns all values that share the scale into NaN: every query that sees the token gives
// NaN. A q8 group whose values are all below 127 * 2^-126 is 0.
#ifndef KVIST_WORKER_KERNELS_KV_PAGE_H_
#define KVIST_WORKER_KERNELS_KV_PAGE_H_

#include <cstdint>

namespace kvist::worker {

inline constexpr int64_t kPageTokens = 16;  // attention: softmax unit and KV page
inline constexpr int64_t kQ8Group = 64;     // dimensions that share a scale in q8
// Dimensions that share 16 bytes of nibbles, a step, a minimum and, in keys, a rotation in q4.
inline constexpr int64_t kQ4Group = 32;

enum class KvFormat : uint8_t { kF16, kF32, kBF16, kQ8, kQ4 };

// Offsets in bytes from the page's start, where K begins; `bytes` is the page's size, a multiple of
// 64.
struct KvPageLayout {
  int64_t values = 0;
  int64_t key_scales = 0;  // q8: scales; q4: steps, then minima, then fifth bits
  int64_t value_scales = 0;
  int64_t bytes = 0;
};

// Whether the format can hold heads of this size, a multiple of 8.
constexpr bool HoldsHeadDim(KvFormat format, int64_t head_dim) {
  return format != KvFormat::kQ4 || head_dim % kQ4Group == 0;
}

// Always inline, as below: no copy compiled for one instruction set may serve the others.
[[gnu::always_inline]] constexpr int64_t Q8Groups(int64_t head_dim) {
  return (head_dim + kQ8Group - 1) / kQ8Group;
}

// REQUIRES: HoldsHeadDim(format, head_dim).
[[gnu::always_inline]] constexpr KvPageLayout KvPageLayoutOf(KvFormat format, int64_t head_dim) {
  int64_t half = kPageTokens * head_dim;  // of K, and of V
  int64_t key_scales = 0;
  int64_t value_scales = 0;
  switch (format) {
    case KvFormat::kF32:
      half *= 4;
      break;
    case KvFormat::kF16:
    case KvFormat::kBF16:
      half *= 2;
      break;
    case KvFormat::kQ8:
      key_scales = kPageTokens * Q8Groups(head_dim) * 4;
      value_scales = kPageTokens * Q8Groups(head_dim) * 4;
      break;
    case KvFormat::kQ4:
      half /= 2;
      key_scales = 4 * kPageTokens * (head_dim / kQ4Group) * 2;
      value_scales = 2 * kPageTokens * (head_dim / kQ4Group) * 2;
      break;
  }
  return {half, 2 * half, 2 * half + key_scales, 2 * half + key_scales + value_scales};
}

}  // namespace kvist::worker

#endif  // KVIST_WORKER_KERNELS_KV_PAGE_H_
