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
constexpr int64_t kLeastExpandedTokens = 0;  // never: the packed blocks are the reference

using LaneFloats = Vec16;
using LaneInts = Int16Lanes;
// What IntegerDots gives for each token.
template <gguf::TensorType>
using StepSum = LaneInts;

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
KVIST_INLINE LaneFloats LoadFloatLanes(const float* p) { return Load(p); }
KVIST_INLINE void PrefetchWeights(const void* p) { __builtin_prefetch(p); }

using Short8 = int16_t __attribute__((vector_size(16)));
using UnsignedShort8 = uint16_t __attribute__((vector_size(16)));

// Integers of one step with the type's offset removed. Sixteen stored bytes are four rows' words;
// taken as 16-bit lanes, the lower byte of each lane belongs to column 0 or 2 of the word and the
// upper to column 1 or 3, and two neighbouring lanes, one 32-bit lane, to one row.
struct StepIntegers {
  Short8 lower[8][4];  // [word][four rows]
  Short8 upper[8][4];
};

KVIST_INLINE UnsignedShort8 LoadShorts(const uint8_t* p) {
  UnsignedShort8 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

template <gguf::TensorType kType>
KVIST_INLINE void UnpackBytes(const WeightStep& w, int word, int rows, StepIntegers& out) {
  const auto v = reinterpret_cast<Short8>(LoadShorts(w.q + word * 64 + rows * 16));
  out.lower[word][rows] = (v << 8) >> 8;
  out.upper[word][rows] = v >> 8;
}

template <gguf::TensorType kType>
KVIST_INLINE void UnpackNibbles(const WeightStep& w, int word, int rows, StepIntegers& out) {
  using gguf::TensorType;
  constexpr int16_t kOffset =
      kType == TensorType::kQ4_0
          ? 8
          : (kType == TensorType::kQ5_0 ? 16 : (kType == TensorType::kQ6_K ? 32 : 0));
  const UnsignedShort8 v = LoadShorts(w.q + (word % 4) * 64 + rows * 16) >> (word < 4 ? 0 : 4);
  UnsignedShort8 lower = v & 15;
  UnsignedShort8 upper = (v >> 8) & 15;
  if constexpr (kType == TensorType::kQ5_0 || kType == TensorType::kQ5_1 ||
                kType == TensorType::kQ5_K) {
    const UnsignedShort8 high = LoadShorts(w.high + rows * 16) >> word;
    lower |= (high & 1) << 4;
    upper |= ((high >> 8) & 1) << 4;
  } else if constexpr (kType == TensorType::kQ6_K) {
    const uint8_t* part = w.high + (word / 4) * 64;
    const UnsignedShort8 high = LoadShorts(part + rows * 16) >> (2 * (word % 4));
    lower |= (high & 3) << 4;
    upper |= ((high >> 8) & 3) << 4;
  }
  out.lower[word][rows] = reinterpret_cast<Short8>(lower) - kOffset;
  out.upper[word][rows] = reinterpret_cast<Short8>(upper) - kOffset;
}

template <gguf::TensorType kType>
KVIST_INLINE void UnpackStep(const WeightStep& w, StepIntegers& out) {
  for (int word = 0; word < 8; ++word) {
    for (int rows = 0; rows < 4; ++rows) {
      if constexpr (kType == gguf::TensorType::kQ8_0) {
        UnpackBytes<kType>(w, word, rows, out);
      } else {
        UnpackNibbles<kType>(w, word, rows, out);
      }
    }
  }
}

// Columns 4 word + first and 4 word + first + 2 of `a` in the 16-bit lanes.
KVIST_INLINE Short8 ColumnPair(const int8_t* a, int word, int first) {
  const int16_t x = a[4 * word + first];
  const int16_t y = a[4 * word + first + 2];
  return Short8{x, y, x, y, x, y, x, y};
}

// sum += the dot product over words [begin, end) of 16 columns. kWords words fit a 16-bit sum: two
// products of each, 2 * 128 * 127 < 2^15 for bytes, 8 * 32 * 127 for what has at most 6 bits.
template <int kWords>
KVIST_INLINE void DotWords(const StepIntegers& w, const int8_t* a, int begin, int end,
                           Int16Lanes& sum) {
  for (int word = begin; word < end; word += kWords) {
    Short8 pairs[4] = {};
    for (int i = word; i < word + kWords; ++i) {
      const Short8 lower = ColumnPair(a, i, 0);
      const Short8 upper = ColumnPair(a, i, 1);
      for (int rows = 0; rows < 4; ++rows) {
        pairs[rows] += w.lower[i][rows] * lower + w.upper[i][rows] * upper;
      }
    }
    for (int rows = 0; rows < 4; ++rows) {
      const auto both = reinterpret_cast<Int4>(pairs[rows]);
      sum.part[rows] += ((both << 16) >> 16) + (both >> 16);
    }
  }
}

KVIST_INLINE Int16Lanes LoadSignedByteLanes(const int8_t* p) {
  int32_t lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = p[i];
  Int16Lanes r;
  std::memcpy(&r, lanes, sizeof(r));
  return r;
}

// sums[t] = the step's exact integer dot product with token t of the tile: offset removed; Q6_K:
// each half of 16 columns times its sub-scale.
template <gguf::TensorType kType, int kColumns>
KVIST_INLINE void IntegerDots(const WeightStep& w, const TileInput& x, int64_t step,
                              LaneInts (&sums)[kColumns]) {
  constexpr int kWords = kType == gguf::TensorType::kQ8_0 ? 1 : 4;
  StepIntegers integers;
  UnpackStep<kType>(w, integers);
  for (int t = 0; t < kColumns; ++t) {
    const int8_t* a = x.q + t * x.q_stride + step * 32;
    LaneInts first = BroadcastInt(0);
    LaneInts second = BroadcastInt(0);
    DotWords<kWords>(integers, a, 0, 4, first);
    DotWords<kWords>(integers, a, 4, 8, second);
    if constexpr (kType == gguf::TensorType::kQ6_K) {
      const Int16Lanes scale0 = LoadSignedByteLanes(w.scale);
      const Int16Lanes scale1 = LoadSignedByteLanes(w.scale + 16);
      for (int i = 0; i < 4; ++i) {
        first.part[i] *= scale0.part[i];
        second.part[i] *= scale1.part[i];
      }
    }
    for (int i = 0; i < 4; ++i) sums[t].part[i] = first.part[i] + second.part[i];
  }
}

}  // namespace
}  // namespace kvist::worker

#endif  // KVIST_WORKER_KERNELS_CPU_DOTS_SCALAR_H_
