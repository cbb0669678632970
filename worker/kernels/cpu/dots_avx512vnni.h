// Integer dot products and per-lane weights with AVX-512 VNNI: all 16 rows of a panel are one
// register, each 32-bit lane one row. vpdpbusd adds four products of unsigned weights and signed
// activations to a lane and cannot overflow here: a step's sum stays below 32 * 255 * 127 = 2^20.
#ifndef KVIST_WORKER_KERNELS_CPU_DOTS_AVX512VNNI_H_
#define KVIST_WORKER_KERNELS_CPU_DOTS_AVX512VNNI_H_

#include <immintrin.h>
#include <stdint.h>

#include "common/gguf/tensor_type.h"
#include "worker/kernels/cpu/product_types.h"
#include "worker/kernels/cpu/vec16_avx512.h"

namespace kvist::worker {
namespace {

constexpr int kLanes = 16;  // rows per group
// Tokens per tile: a sum and an accumulator of each, two words of weights and constants fill the 32
// registers.
constexpr int kMaxColumns = 10;
constexpr int GroupsFor(int) { return 1; }
constexpr int64_t kLeastExpandedTokens = 0;  // never: unpacking is 5 to 12 % of a full tile

using LaneFloats = Vec16;
using LaneInts = Int16Lanes;

KVIST_INLINE LaneFloats ZeroLanes() { return _mm512_setzero_ps(); }
KVIST_INLINE LaneFloats BroadcastLanes(const float* x) { return _mm512_set1_ps(*x); }
KVIST_INLINE LaneFloats LoadHalfLanes(const uint16_t* p) { return LoadHalf(p); }
KVIST_INLINE LaneFloats LoadByteLanes(const uint8_t* p) {
  return _mm512_cvtepi32_ps(
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
KVIST_INLINE LaneFloats ToFloatLanes(LaneInts v) { return _mm512_cvtepi32_ps(v); }
KVIST_INLINE void StoreLanes(float* p, LaneFloats v) { Store(p, v); }
KVIST_INLINE LaneFloats LoadFloatLanes(const float* p) { return Load(p); }
KVIST_INLINE void PrefetchWeights(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
}

KVIST_INLINE __m512i LoadWords(const void* p) { return _mm512_loadu_si512(p); }

// Four bytes in memory that are taken for one element of a broadcast.
using Word = int32_t __attribute__((may_alias, aligned(1)));

// sum + in each lane, the products of its four unsigned weights with the four activations at `a`.
KVIST_INLINE __m512i AddDot(__m512i sum, __m512i weights, const int8_t* a) {
#if defined(__AVX512VNNI__) && !defined(__clang__)
  // gcc 12 would load the broadcast apart: 40 % more instructions in a tile.
  __asm__("vpdpbusd %2%{1to16%}, %1, %0"
          : "+v"(sum)
          : "v"(weights), "m"(*reinterpret_cast<const Word*>(a)));
  return sum;
#else
  return _mm512_dpbusd_epi32(sum, weights, _mm512_set1_epi32(*reinterpret_cast<const Word*>(a)));
#endif
}
// sum + factor * the sum of the two numbers at `pair`.
KVIST_INLINE __m512i AddPair(__m512i sum, int factor, const int16_t* pair) {
  const __m512i factors = _mm512_set1_epi16(static_cast<int16_t>(factor));
#if defined(__AVX512VNNI__) && !defined(__clang__)
  __asm__("vpdpwssd %2%{1to16%}, %1, %0"
          : "+v"(sum)
          : "v"(factors), "m"(*reinterpret_cast<const Word*>(pair)));
  return sum;
#else
  return _mm512_dpwssd_epi32(sum, factors, _mm512_set1_epi32(*reinterpret_cast<const Word*>(pair)));
#endif
}

constexpr bool HasFiveBits(gguf::TensorType type) {
  return type == gguf::TensorType::kQ5_0 || type == gguf::TensorType::kQ5_1 ||
         type == gguf::TensorType::kQ5_K;
}
// What the unsigned weights are above the type's integers.
constexpr int16_t OffsetOf(gguf::TensorType type) {
  return type == gguf::TensorType::kQ4_0   ? 8
         : type == gguf::TensorType::kQ5_0 ? 16
         : type == gguf::TensorType::kQ6_K ? 32
         : type == gguf::TensorType::kQ8_0 ? 128
                                           : 0;
}

// The bits of `mask` from `high`, the others from `low`.
KVIST_INLINE __m512i SelectBits(__m512i mask, __m512i high, __m512i low) {
  return _mm512_ternarylogic_epi32(mask, high, low, 0xca);
}

// Unsigned weights of words `word` (columns 4 word ..) and 4 + word (columns 16 + 4 word ..).
struct WordPair {
  __m512i first, second;
};

template <gguf::TensorType kType>
KVIST_INLINE WordPair UnpackWords(const WeightStep& w, int word) {
  if constexpr (kType == gguf::TensorType::kQ8_0) {
    const __m512i sign = _mm512_set1_epi8(-128);
    return {_mm512_xor_si512(LoadWords(w.q + word * 64), sign),
            _mm512_xor_si512(LoadWords(w.q + (4 + word) * 64), sign)};
  }
  const __m512i raw = LoadWords(w.q + word * 64);
  const __m512i nibble = _mm512_set1_epi8(15);
  WordPair r = {_mm512_and_si512(raw, nibble), _mm512_and_si512(_mm512_srli_epi16(raw, 4), nibble)};
  if constexpr (HasFiveBits(kType)) {
    const __m512i high = LoadWords(w.high);
    const __m512i bit = _mm512_set1_epi8(16);
    r.first = SelectBits(bit, _mm512_slli_epi16(high, static_cast<unsigned>(4 - word)), r.first);
    r.second = SelectBits(bit, _mm512_srli_epi16(high, static_cast<unsigned>(word)), r.second);
  } else if constexpr (kType == gguf::TensorType::kQ6_K) {
    const __m512i bits = _mm512_set1_epi8(48);
    const auto shifted = [word](__m512i high) {
      return word < 2 ? _mm512_slli_epi16(high, static_cast<unsigned>(4 - 2 * word))
                      : _mm512_srli_epi16(high, static_cast<unsigned>(2 * word - 4));
    };
    r.first = SelectBits(bits, shifted(LoadWords(w.high)), r.first);
    r.second = SelectBits(bits, shifted(LoadWords(w.high + 64)), r.second);
  }
  return r;
}

// Activations of one step. Tokens are reached from every fourth one's row: with one base the
// compiler keeps an offset for each token and runs out of registers for them.
struct StepInput {
  const int8_t* a[(kMaxColumns + 3) / 4];
  int64_t a_stride;
  const int16_t* pair_sums;
  int64_t pair_stride;

  KVIST_INLINE const int8_t* Word(int t, int word) const {
    return a[t / 4] + t % 4 * a_stride + 4 * word;
  }
  // Two numbers whose sum is that of all 32 activations (part 0) or of the last 16 (part 1).
  KVIST_INLINE const int16_t* PairSums(int t, int part) const {
    return pair_sums + t * pair_stride + 2 * part;
  }
};

template <int kColumns>
KVIST_INLINE StepInput StepInputAt(const TileInput& tile, int64_t step) {
  StepInput x;
  x.a[0] = tile.q + step * 32;
  for (int i = 1; i < (kColumns + 3) / 4; ++i) {
    x.a[i] = x.a[i - 1] + 4 * tile.q_stride;
    __asm__("" : "+r"(x.a[i]));  // a base of its own
  }
  x.a_stride = tile.q_stride;
  x.pair_sums = tile.pair_sums + step * 4;
  x.pair_stride = 4 * tile.block_stride;
  return x;
}

// All types but Q6_K.
template <gguf::TensorType kType, int kColumns>
KVIST_INLINE void StepDots(const WeightStep& w, const StepInput& x, __m512i (&sums)[kColumns]) {
  constexpr int kOffset = OffsetOf(kType);
  for (int t = 0; t < kColumns; ++t) {
    sums[t] = _mm512_setzero_si512();
    if constexpr (kOffset != 0) sums[t] = AddPair(sums[t], -kOffset, x.PairSums(t, 0));
  }
#pragma GCC unroll 4
  for (int word = 0; word < 4; ++word) {
    const WordPair weights = UnpackWords<kType>(w, word);
    for (int t = 0; t < kColumns; ++t) sums[t] = AddDot(sums[t], weights.first, x.Word(t, word));
    for (int t = 0; t < kColumns; ++t)
      sums[t] = AddDot(sums[t], weights.second, x.Word(t, 4 + word));
  }
}

// Sixteen sub-scales as floats.
KVIST_INLINE Vec16 LoadSubScales(const int8_t* p) { return LoadInt8(p); }

// Q6_K: each half's sum times its sub-scale as floats, which is exact: at most 2 * 128 * 16 * 32 *
// 127 < 2^24. (vpmulld would take twice the instructions.) Zero is added to the first product, so
// that it is never -0.
template <int kColumns>
KVIST_INLINE void SixBitDots(const WeightStep& w, const StepInput& x, Vec16 (&sums)[kColumns]) {
  constexpr gguf::TensorType kType = gguf::TensorType::kQ6_K;
  constexpr int kOffset = OffsetOf(kType);
  __m512i half[kColumns];
  for (int t = 0; t < kColumns; ++t) {
    half[t] = AddPair(_mm512_setzero_si512(), -kOffset, x.PairSums(t, 0));
    half[t] = AddPair(half[t], kOffset, x.PairSums(t, 1));
  }
#pragma GCC unroll 4
  for (int word = 0; word < 4; ++word) {
    const __m512i weights = UnpackWords<kType>(w, word).first;
    for (int t = 0; t < kColumns; ++t) half[t] = AddDot(half[t], weights, x.Word(t, word));
  }
  const Vec16 scale0 = LoadSubScales(w.scale);
  for (int t = 0; t < kColumns; ++t) sums[t] = Fma(scale0, ToFloatLanes(half[t]), ZeroLanes());
  for (int t = 0; t < kColumns; ++t)
    half[t] = AddPair(_mm512_setzero_si512(), -kOffset, x.PairSums(t, 1));
#pragma GCC unroll 4
  for (int word = 0; word < 4; ++word) {
    const __m512i weights = UnpackWords<kType>(w, word).second;
    for (int t = 0; t < kColumns; ++t) half[t] = AddDot(half[t], weights, x.Word(t, 4 + word));
  }
  const Vec16 scale1 = LoadSubScales(w.scale + 16);
  for (int t = 0; t < kColumns; ++t) sums[t] = Fma(scale1, ToFloatLanes(half[t]), sums[t]);
}

// What IntegerDots gives for each token: integers, in Q6_K as floats.
template <gguf::TensorType kType>
struct StepSumOf {
  using Type = LaneInts;
};
template <>
struct StepSumOf<gguf::TensorType::kQ6_K> {
  using Type = LaneFloats;
};
template <gguf::TensorType kType>
using StepSum = typename StepSumOf<kType>::Type;
KVIST_INLINE LaneFloats ToFloatLanes(LaneFloats v) { return v; }

// sums[t] = the exact integer dot product of the step with token t of the tile: offset removed;
// Q6_K: each half of 16 columns times its sub-scale.
template <gguf::TensorType kType, int kColumns>
KVIST_INLINE void IntegerDots(const WeightStep& w, const TileInput& tile, int64_t step,
                              StepSum<kType> (&sums)[kColumns]) {
  const StepInput x = StepInputAt<kColumns>(tile, step);
  if constexpr (kType == gguf::TensorType::kQ6_K) {
    SixBitDots<kColumns>(w, x, sums);
  } else {
    StepDots<kType, kColumns>(w, x, sums);
  }
}

}  // namespace
}  // namespace kvist::worker

#endif  // KVIST_WORKER_KERNELS_CPU_DOTS_AVX512VNNI_H_
