// Integer dot products and per-lane weights without intrinsics. All 16 rows of a panel are one
// group of lanes.
#ifndef KVIST_WORKER_KERNELS_CPU_DOTS_SCALAR_H_
#define KVIST_WORKER_KERNELS_CPU_DOTS_SCALAR_H_

#include <cstdint>

#include "common/gguf/tensor_type.h"
#include "worker/kernels/cpu/product_types.h"
#include "worker/kernels/cpu/vec16_scalar.h"

namespace kvist::worker {
namespace {

constexpr int kLanes = 16;      // rows per group
constexpr int kMaxColumns = 4;  // tokens per tile
constexpr int GroupsFor(int) { return 1; }

using LaneFloats = Vec16;
using LaneInts = Int16Lanes;

KVIST_INLINE LaneFloats ZeroLanes() { return Broadcast(0.0f); }
KVIST_INLINE LaneFloats BroadcastLanes(const float* x) { return Broadcast(*x); }
KVIST_INLINE LaneFloats LoadHalfLanes(const uint16_t* p) { return LoadHalf(p); }
KVIST_INLINE LaneFloats LoadByteLanes(const uint8_t* p) {
  float lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = static_cast<float>(p[i]);
  return Load(lanes);
}
KVIST_INLINE LaneFloats ToFloatLanes(LaneInts v) {
  Vec16 r;
  for (int i = 0; i < 4; ++i) r.part[i] = __builtin_convertvector(v.part[i], Float4);
  return r;
}
KVIST_INLINE void StoreLanes(float* p, LaneFloats v) { Store(p, v); }
KVIST_INLINE void PrefetchWeights(const void* p) { __builtin_prefetch(p); }

// Integers of one step with the type's offset removed, as [column][row].
template <gguf::TensorType kType>
KVIST_INLINE void UnpackStep(const WeightStep& w, int16_t (&out)[32][16]) {
  using gguf::TensorType;
  for (int word = 0; word < 8; ++word) {
    for (int row = 0; row < 16; ++row) {
      for (int b = 0; b < 4; ++b) {
        const int at = row * 4 + b;
        int value;
        if constexpr (kType == TensorType::kQ8_0) {
          value = static_cast<int8_t>(w.q[word * 64 + at]);
        } else {
          value = word < 4 ? w.q[word * 64 + at] & 15 : w.q[(word - 4) * 64 + at] >> 4;
        }
        if constexpr (kType == TensorType::kQ5_0 || kType == TensorType::kQ5_1 ||
                      kType == TensorType::kQ5_K) {
          value |= ((w.high[at] >> word) & 1) << 4;
        }
        if constexpr (kType == TensorType::kQ6_K) {
          value |= ((w.high[(word / 4) * 64 + at] >> (2 * (word % 4))) & 3) << 4;
        }
        if constexpr (kType == TensorType::kQ4_0) value -= 8;
        if constexpr (kType == TensorType::kQ5_0) value -= 16;
        if constexpr (kType == TensorType::kQ6_K) value -= 32;
        out[4 * word + b][row] = static_cast<int16_t>(value);
      }
    }
  }
}

// sum[row] += weights [columns][row] . a over 16 columns. Two products fit 16 bits: 2 * 128 * 127 <
// 2^15.
KVIST_INLINE void DotHalf(const int16_t (*weights)[16], const int8_t* a, int32_t (&sum)[16]) {
  for (int c = 0; c < 16; c += 2) {
    const int16_t a0 = a[c];
    const int16_t a1 = a[c + 1];
    int16_t pair[16];
    for (int row = 0; row < 16; ++row) {
      pair[row] = static_cast<int16_t>(weights[c][row] * a0 + weights[c + 1][row] * a1);
    }
    for (int row = 0; row < 16; ++row) sum[row] += pair[row];
  }
}

// sums[t] = the step's exact integer dot product with token t of the tile: offset removed; Q6_K:
// each half of 16 columns times its sub-scale.
template <gguf::TensorType kType, int kColumns>
KVIST_INLINE void IntegerDots(const WeightStep& w, const TileInput& x, int64_t step,
                              LaneInts (&sums)[kColumns]) {
  alignas(64) int16_t weights[32][16];
  UnpackStep<kType>(w, weights);
  for (int t = 0; t < kColumns; ++t) {
    const int8_t* a = x.q + t * x.q_stride + step * 32;
    alignas(64) int32_t sum[16] = {};
    DotHalf(weights, a, sum);
    if constexpr (kType == gguf::TensorType::kQ6_K) {
      alignas(64) int32_t second[16] = {};
      DotHalf(weights + 16, a + 16, second);
      for (int row = 0; row < 16; ++row)
        sum[row] = sum[row] * w.scale[row] + second[row] * w.scale[16 + row];
    } else {
      DotHalf(weights + 16, a + 16, sum);
    }
    std::memcpy(&sums[t], sum, sizeof(sum));
  }
}

}  // namespace
}  // namespace kvist::worker

#endif  // KVIST_WORKER_KERNELS_CPU_DOTS_SCALAR_H_
