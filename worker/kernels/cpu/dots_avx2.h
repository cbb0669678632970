// Integer dot products and per-lane weights with AVX2: eight rows of a panel are one group of
// lanes, each 32-bit lane one row.
#ifndef KVIST_WORKER_KERNELS_CPU_DOTS_AVX2_H_
#define KVIST_WORKER_KERNELS_CPU_DOTS_AVX2_H_

#include <immintrin.h>
#include <stdint.h>

#include "common/gguf/tensor_type.h"
#include "worker/kernels/cpu/product_types.h"
#include "worker/kernels/cpu/vec16_avx2.h"

namespace kvist::worker {
namespace {

constexpr int kLanes = 8;       // rows per group
constexpr int kMaxColumns = 4;  // tokens per tile
// Groups of a panel in one pass: both when few tokens leave the accumulators for it.
constexpr int GroupsFor(int columns) { return columns <= 2 ? 2 : 1; }
// From so many tokens on a panel is unpacked once for all of them (product_expanded.inc).
constexpr int64_t kLeastExpandedTokens = 12;

using LaneFloats = __m256;
using LaneInts = __m256i;
// What IntegerDots gives for each token.
template <gguf::TensorType>
using StepSum = LaneInts;

KVIST_INLINE __m256 ZeroLanes() { return _mm256_setzero_ps(); }
KVIST_INLINE __m256 BroadcastLanes(const float* x) { return _mm256_broadcast_ss(x); }
KVIST_INLINE __m256 LoadHalfLanes(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
KVIST_INLINE __m256 LoadByteLanes(const uint8_t* p) {
  return _mm256_cvtepi32_ps(
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
KVIST_INLINE __m256 ToFloatLanes(__m256i v) { return _mm256_cvtepi32_ps(v); }
KVIST_INLINE void StoreLanes(float* p, __m256 v) { _mm256_storeu_ps(p, v); }
KVIST_INLINE __m256 Mul(__m256 a, __m256 b) { return _mm256_mul_ps(a, b); }
KVIST_INLINE __m256 Sub(__m256 a, __m256 b) { return _mm256_sub_ps(a, b); }
KVIST_INLINE __m256 Fma(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
KVIST_INLINE void PrefetchWeights(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
}

KVIST_INLINE __m256i LoadLanes(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
KVIST_INLINE void StoreLanes(void* p, __m256i v) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), v);
}
KVIST_INLINE __m256 LoadFloatLanes(const float* p) { return _mm256_loadu_ps(p); }
// The four bytes at p in every lane.
KVIST_INLINE __m256i BroadcastWord(const void* p) {
  int32_t word;
  __builtin_memcpy(&word, p, sizeof(word));
  return _mm256_set1_epi32(word);
}

constexpr bool HasFiveBits(gguf::TensorType type) {
  return type == gguf::TensorType::kQ5_0 || type == gguf::TensorType::kQ5_1 ||
         type == gguf::TensorType::kQ5_K;
}

// Unsigned integers of words `word` (columns 4 word ..) and 4 + word (columns 16 + 4 word ..) of
// the group.
struct WordPair {
  __m256i first, second;
};

template <gguf::TensorType kType>
KVIST_INLINE WordPair UnpackWords(const WeightStep& w, int word) {
  const __m256i raw = LoadLanes(w.q + word * 64);
  const __m256i nibble = _mm256_set1_epi8(15);
  WordPair r = {_mm256_and_si256(raw, nibble), _mm256_and_si256(_mm256_srli_epi16(raw, 4), nibble)};
  if constexpr (HasFiveBits(kType)) {
    const __m256i high = LoadLanes(w.high);
    const __m256i bit = _mm256_set1_epi8(16);
    r.first = _mm256_or_si256(r.first, _mm256_and_si256(_mm256_slli_epi16(high, 4 - word), bit));
    r.second = _mm256_or_si256(r.second, _mm256_and_si256(_mm256_srli_epi16(high, word), bit));
  } else if constexpr (kType == gguf::TensorType::kQ6_K) {
    const __m256i bits = _mm256_set1_epi8(48);
    const __m256i high0 = LoadLanes(w.high);
    const __m256i high1 = LoadLanes(w.high + 64);
    const __m256i shifted0 =
        word < 2 ? _mm256_slli_epi16(high0, 4 - 2 * word) : _mm256_srli_epi16(high0, 2 * word - 4);
    const __m256i shifted1 =
        word < 2 ? _mm256_slli_epi16(high1, 4 - 2 * word) : _mm256_srli_epi16(high1, 2 * word - 4);
    r.first = _mm256_or_si256(r.first, _mm256_and_si256(shifted0, bits));
    r.second = _mm256_or_si256(r.second, _mm256_and_si256(shifted1, bits));
  }
  return r;
}

// Activations of one step: of token t, a word's four bytes in every lane, and pair sums: part 0 of
// all 32 columns, part 1 of the last 16.
struct StepInput {
  const int8_t* a;
  int64_t a_stride;
  const int16_t* pair_sums;
  int64_t pair_stride;

  KVIST_INLINE __m256i Word(int t, int word) const {
    return BroadcastWord(a + t * a_stride + 4 * word);
  }
  KVIST_INLINE __m256i PairSums(int t, int part) const {
    return BroadcastWord(pair_sums + t * pair_stride + 2 * part);
  }
};

KVIST_INLINE StepInput StepInputAt(const TileInput& tile, int64_t step) {
  return {tile.q + step * 32, tile.q_stride, tile.pair_sums + step * 4, 4 * tile.block_stride};
}

// maddubs adds products of unsigned weights and signed activations in pairs, and 16-bit sums of
// such pairs may wrap around on the way as long as the end fits. All eight of a step do
//   for 4 bits:               15 * 127 * 16 = 30480
//   with 16 or 8 taken off:   16 * 127 * 16 = 32512 (what is taken off: that times the pair sums)
// four do for 5 bits (31 * 127 * 8 = 31496) and for 6 bits with 32 taken off (32 * 127 * 8).
constexpr int OffsetBits(gguf::TensorType type) {
  return type == gguf::TensorType::kQ4_0   ? 3
         : type == gguf::TensorType::kQ5_0 ? 4
         : type == gguf::TensorType::kQ6_K ? 5
                                           : 0;
}
constexpr bool StepFits16Bits(gguf::TensorType type) {
  return type == gguf::TensorType::kQ4_0 || type == gguf::TensorType::kQ4_1 ||
         type == gguf::TensorType::kQ4_K || type == gguf::TensorType::kQ5_0;
}

// What a type's offset adds to the 16-bit sums of a step (part 0), of its first half (1) or of its
// second (2).
template <gguf::TensorType kType>
KVIST_INLINE __m256i OffsetSums(const StepInput& x, int t, int part) {
  const __m256i second = part == 0 ? _mm256_setzero_si256() : x.PairSums(t, 1);
  const __m256i sums = part == 2 ? second : _mm256_sub_epi16(x.PairSums(t, 0), second);
  return _mm256_slli_epi16(sums, OffsetBits(kType));
}

// Keeps the compiler from putting additions off: it would store all products first.
KVIST_INLINE void AddNow(__m256i& sum) { __asm__("" : "+x"(sum)); }

KVIST_INLINE __m256i Widen(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }

// Nibble types with at most 5 bits.
template <gguf::TensorType kType, int kColumns>
KVIST_INLINE void NibbleDots(const WeightStep& w, const StepInput& x, __m256i (&sums)[kColumns]) {
  constexpr int kWordsPerSum = StepFits16Bits(kType) ? 4 : 2;
  for (int word = 0; word < 4; word += kWordsPerSum) {
    __m256i pairs[kColumns];
    for (int i = 0; i < kWordsPerSum; ++i) {
      const WordPair weights = UnpackWords<kType>(w, word + i);
      for (int t = 0; t < kColumns; ++t) {
        const __m256i first = _mm256_maddubs_epi16(weights.first, x.Word(t, word + i));
        const __m256i second = _mm256_maddubs_epi16(weights.second, x.Word(t, 4 + word + i));
        pairs[t] = i == 0 ? first : _mm256_add_epi16(pairs[t], first);
        pairs[t] = _mm256_add_epi16(pairs[t], second);
        AddNow(pairs[t]);
      }
    }
    for (int t = 0; t < kColumns; ++t) {
      if constexpr (OffsetBits(kType) != 0)
        pairs[t] = _mm256_sub_epi16(pairs[t], OffsetSums<kType>(x, t, 0));
      sums[t] = word == 0 ? Widen(pairs[t]) : _mm256_add_epi32(sums[t], Widen(pairs[t]));
    }
  }
}

// The group's sub-scales of 16 columns, twice in each lane: pmaddwd multiplies by them while it
// widens.
KVIST_INLINE __m256i LoadSubScales(const int8_t* p) {
  const __m256i scale = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  return _mm256_or_si256(_mm256_and_si256(scale, _mm256_set1_epi32(0xffff)),
                         _mm256_slli_epi32(scale, 16));
}

template <int kColumns>
KVIST_INLINE void SixBitDots(const WeightStep& w, const StepInput& x, __m256i (&sums)[kColumns]) {
  constexpr gguf::TensorType kType = gguf::TensorType::kQ6_K;
  const __m256i scale0 = LoadSubScales(w.scale);
  const __m256i scale1 = LoadSubScales(w.scale + 16);
  __m256i first[kColumns], second[kColumns];
  for (int t = 0; t < kColumns; ++t) {
    first[t] = _mm256_sub_epi16(_mm256_setzero_si256(), OffsetSums<kType>(x, t, 1));
    second[t] = _mm256_sub_epi16(_mm256_setzero_si256(), OffsetSums<kType>(x, t, 2));
  }
  for (int word = 0; word < 4; ++word) {
    const WordPair weights = UnpackWords<kType>(w, word);
    for (int t = 0; t < kColumns; ++t) {
      first[t] = _mm256_add_epi16(first[t], _mm256_maddubs_epi16(weights.first, x.Word(t, word)));
      second[t] =
          _mm256_add_epi16(second[t], _mm256_maddubs_epi16(weights.second, x.Word(t, 4 + word)));
      AddNow(first[t]);
      AddNow(second[t]);
    }
  }
  for (int t = 0; t < kColumns; ++t) {
    sums[t] =
        _mm256_add_epi32(_mm256_madd_epi16(first[t], scale0), _mm256_madd_epi16(second[t], scale1));
  }
}

// |w| unsigned times a with the sign of w: at most 2 * 128 * 127 = 32512 per pair, so each maddubs
// is widened by itself.
template <int kColumns>
KVIST_INLINE void ByteDots(const WeightStep& w, const StepInput& x, __m256i (&sums)[kColumns]) {
  for (int word = 0; word < 8; ++word) {
    const __m256i weights = LoadLanes(w.q + word * 64);
    const __m256i magnitudes = _mm256_abs_epi8(weights);
    for (int t = 0; t < kColumns; ++t) {
      const __m256i pairs =
          _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(x.Word(t, word), weights));
      const __m256i wide = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
      sums[t] = word == 0 ? wide : _mm256_add_epi32(sums[t], wide);
    }
  }
}

// sums[t] = the exact integer dot product of the group's step with token t of the tile: offset
// removed; Q6_K: each half of 16 columns times its sub-scale.
template <gguf::TensorType kType, int kColumns>
KVIST_INLINE void IntegerDots(const WeightStep& w, const TileInput& tile, int64_t step,
                              __m256i (&sums)[kColumns]) {
  const StepInput x = StepInputAt(tile, step);
  if constexpr (kType == gguf::TensorType::kQ8_0) {
    ByteDots<kColumns>(w, x, sums);
  } else if constexpr (kType == gguf::TensorType::kQ6_K) {
    SixBitDots<kColumns>(w, x, sums);
  } else {
    NibbleDots<kType, kColumns>(w, x, sums);
  }
}

}  // namespace
}  // namespace kvist::worker

#endif  // KVIST_WORKER_KERNELS_CPU_DOTS_AVX2_H_
