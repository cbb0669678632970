// Integer dot products of panels unpacked once for many tokens (product_expanded.inc), with AVX2.
#ifndef KVIST_WORKER_KERNELS_CPU_DOTS_EXPANDED_AVX2_H_
#define KVIST_WORKER_KERNELS_CPU_DOTS_EXPANDED_AVX2_H_

#include "worker/kernels/cpu/dots_avx2.h"

namespace kvist::worker {
namespace {

// The group's integers and sub-scales of one step, whose first row is `row`, into an expanded step.
template <gguf::TensorType kType>
KVIST_INLINE void ExpandIntegers(const WeightStep& w, int64_t row, ExpandedStep& out) {
  for (int word = 0; word < (kType == gguf::TensorType::kQ8_0 ? 8 : 4); ++word) {
    if constexpr (kType == gguf::TensorType::kQ8_0) {
      StoreLanes(out.q[word] + 4 * row, LoadLanes(w.q + word * 64));
    } else {
      const WordPair weights = UnpackWords<kType>(w, word);
      StoreLanes(out.q[word] + 4 * row, weights.first);
      StoreLanes(out.q[4 + word] + 4 * row, weights.second);
    }
  }
  if constexpr (kType == gguf::TensorType::kQ6_K) {
    StoreLanes(out.scale[0] + 2 * row, LoadSubScales(w.scale));
    StoreLanes(out.scale[1] + 2 * row, LoadSubScales(w.scale + 16));
  }
}

// Both groups of an expanded step: an activation word is loaded once for all 16 rows.
template <int kColumns>
using PanelInts = __m256i[2][kColumns];

// pairs = the products of words [kFirst, kFirst + kWords), added up in 16 bits.
template <int kFirst, int kWords, int kColumns>
KVIST_INLINE void AddWords(const ExpandedStep& w, const StepInput& x, PanelInts<kColumns>& pairs) {
#pragma GCC unroll 8
  for (int word = kFirst; word < kFirst + kWords; ++word) {
    const __m256i low = LoadLanes(w.q[word]);
    const __m256i high = LoadLanes(w.q[word] + 32);
    for (int t = 0; t < kColumns; ++t) {
      const __m256i a = x.Word(t, word);
      const __m256i products[2] = {_mm256_maddubs_epi16(low, a), _mm256_maddubs_epi16(high, a)};
      for (int g = 0; g < 2; ++g) {
        pairs[g][t] = word == kFirst ? products[g] : _mm256_add_epi16(pairs[g][t], products[g]);
        AddNow(pairs[g][t]);
      }
    }
  }
}

template <gguf::TensorType kType, int kColumns>
KVIST_INLINE void TakeOffset(const StepInput& x, int part, PanelInts<kColumns>& pairs) {
  if constexpr (OffsetBits(kType) != 0) {
    for (int t = 0; t < kColumns; ++t) {
      const __m256i offset = OffsetSums<kType>(x, t, part);
      for (int g = 0; g < 2; ++g) pairs[g][t] = _mm256_sub_epi16(pairs[g][t], offset);
    }
  }
}

// Half a step at a time: 5 bits without an offset, and 6 bits.
template <gguf::TensorType kType, int kColumns>
KVIST_INLINE void ExpandedHalfDots(const ExpandedStep& w, const StepInput& x,
                                   PanelInts<kColumns>& sums) {
  PanelInts<kColumns> first, second;
  AddWords<0, 4>(w, x, first);
  TakeOffset<kType>(x, 1, first);
  const auto widen = [&](__m256i pairs, int half, int g) {
    if constexpr (kType != gguf::TensorType::kQ6_K) return Widen(pairs);
    return _mm256_madd_epi16(pairs, LoadLanes(w.scale[half] + 16 * g));
  };
  for (int g = 0; g < 2; ++g) {
    for (int t = 0; t < kColumns; ++t) sums[g][t] = widen(first[g][t], 0, g);
  }
  AddWords<4, 4>(w, x, second);
  TakeOffset<kType>(x, 2, second);
  for (int g = 0; g < 2; ++g) {
    for (int t = 0; t < kColumns; ++t)
      sums[g][t] = _mm256_add_epi32(sums[g][t], widen(second[g][t], 1, g));
  }
}

template <int kColumns>
KVIST_INLINE void ExpandedByteDots(const ExpandedStep& w, const StepInput& x,
                                   PanelInts<kColumns>& sums) {
  for (int word = 0; word < 8; ++word) {
    const __m256i weights[2] = {LoadLanes(w.q[word]), LoadLanes(w.q[word] + 32)};
    const __m256i magnitudes[2] = {_mm256_abs_epi8(weights[0]), _mm256_abs_epi8(weights[1])};
    for (int t = 0; t < kColumns; ++t) {
      const __m256i a = x.Word(t, word);
      for (int g = 0; g < 2; ++g) {
        const __m256i wide =
            Widen(_mm256_maddubs_epi16(magnitudes[g], _mm256_sign_epi8(a, weights[g])));
        sums[g][t] = word == 0 ? wide : _mm256_add_epi32(sums[g][t], wide);
        AddNow(sums[g][t]);
      }
    }
  }
}

// As IntegerDots, for all rows of an expanded step.
template <gguf::TensorType kType, int kColumns>
KVIST_INLINE void ExpandedDots(const ExpandedStep& w, const TileInput& tile, int64_t step,
                               PanelInts<kColumns>& sums) {
  const StepInput x = StepInputAt(tile, step);
  if constexpr (kType == gguf::TensorType::kQ8_0) {
    ExpandedByteDots<kColumns>(w, x, sums);
  } else if constexpr (StepFits16Bits(kType)) {
    PanelInts<kColumns> pairs;
    AddWords<0, 8>(w, x, pairs);
    TakeOffset<kType>(x, 0, pairs);
    for (int g = 0; g < 2; ++g) {
      for (int t = 0; t < kColumns; ++t) sums[g][t] = Widen(pairs[g][t]);
    }
  } else {
    ExpandedHalfDots<kType, kColumns>(w, x, sums);
  }
}

}  // namespace
}  // namespace kvist::worker

#endif  // KVIST_WORKER_KERNELS_CPU_DOTS_EXPANDED_AVX2_H_
