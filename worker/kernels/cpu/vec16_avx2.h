// Sixteen float lanes as two AVX registers. Same operations, same roundings as vec16_scalar.h.
#ifndef KVIST_WORKER_KERNELS_CPU_VEC16_AVX2_H_
#define KVIST_WORKER_KERNELS_CPU_VEC16_AVX2_H_

#include <immintrin.h>
#include <stdint.h>

#define KVIST_INLINE inline __attribute__((always_inline))

namespace kvist::worker {
namespace {

struct Vec16 {
  __m256 low, high;
};
struct Int16Lanes {
  __m256i low, high;
};
using Mask16 = Int16Lanes;  // all ones or all zeros

constexpr int kRowTile = 6;  // rows of attention that share loads of K and V in registers

KVIST_INLINE Vec16 Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
KVIST_INLINE void Store(float* p, Vec16 v) {
  _mm256_storeu_ps(p, v.low);
  _mm256_storeu_ps(p + 8, v.high);
}
KVIST_INLINE Vec16 Broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
KVIST_INLINE Int16Lanes BroadcastInt(int32_t x) {
  return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}

KVIST_INLINE Vec16 Add(Vec16 a, Vec16 b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
KVIST_INLINE Vec16 Sub(Vec16 a, Vec16 b) {
  return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
KVIST_INLINE Vec16 Mul(Vec16 a, Vec16 b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
KVIST_INLINE Vec16 Div(Vec16 a, Vec16 b) {
  return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
// a * b + c rounded once.
KVIST_INLINE Vec16 Fma(Vec16 a, Vec16 b, Vec16 c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
KVIST_INLINE Mask16 Greater(Vec16 a, Vec16 b) {
  return {_mm256_castps_si256(_mm256_cmp_ps(a.low, b.low, _CMP_GT_OQ)),
          _mm256_castps_si256(_mm256_cmp_ps(a.high, b.high, _CMP_GT_OQ))};
}
KVIST_INLINE Mask16 IsNan(Vec16 a) {
  return {_mm256_castps_si256(_mm256_cmp_ps(a.low, a.low, _CMP_UNORD_Q)),
          _mm256_castps_si256(_mm256_cmp_ps(a.high, a.high, _CMP_UNORD_Q))};
}
// Lanes begin <= i < end.
KVIST_INLINE Mask16 LaneRange(int begin, int end) {
  const __m256i first = _mm256_set1_epi32(begin - 1);
  const __m256i last = _mm256_set1_epi32(end);
  const __m256i low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i high = _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15);
  return {_mm256_and_si256(_mm256_cmpgt_epi32(low, first), _mm256_cmpgt_epi32(last, low)),
          _mm256_and_si256(_mm256_cmpgt_epi32(high, first), _mm256_cmpgt_epi32(last, high))};
}
KVIST_INLINE Vec16 Select(Mask16 mask, Vec16 yes, Vec16 no) {
  return {_mm256_blendv_ps(no.low, yes.low, _mm256_castsi256_ps(mask.low)),
          _mm256_blendv_ps(no.high, yes.high, _mm256_castsi256_ps(mask.high))};
}
KVIST_INLINE Int16Lanes SelectInt(Mask16 mask, Int16Lanes yes, Int16Lanes no) {
  return {_mm256_blendv_epi8(no.low, yes.low, mask.low),
          _mm256_blendv_epi8(no.high, yes.high, mask.high)};
}
// a > b ? a : b, so b if either is NaN: what maxps does.
KVIST_INLINE Vec16 Max(Vec16 a, Vec16 b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}

KVIST_INLINE Int16Lanes SubInt(Int16Lanes a, Int16Lanes b) {
  return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)};
}
KVIST_INLINE Int16Lanes AddInt(Int16Lanes a, Int16Lanes b) {
  return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}
KVIST_INLINE Int16Lanes MaxInt(Int16Lanes a, Int16Lanes b) {
  return {_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)};
}
KVIST_INLINE Int16Lanes MinInt(Int16Lanes a, Int16Lanes b) {
  return {_mm256_min_epi32(a.low, b.low), _mm256_min_epi32(a.high, b.high)};
}
KVIST_INLINE Int16Lanes Bits(Vec16 a) {
  return {_mm256_castps_si256(a.low), _mm256_castps_si256(a.high)};
}
KVIST_INLINE Int16Lanes AndInt(Int16Lanes a, int32_t bits) {
  const __m256i mask = _mm256_set1_epi32(bits);
  return {_mm256_and_si256(a.low, mask), _mm256_and_si256(a.high, mask)};
}
// Lanes in which bit number `bit` is set.
KVIST_INLINE Mask16 HasBit(Int16Lanes a, int bit) {
  const __m256i one = _mm256_set1_epi32(static_cast<int32_t>(1u << bit));
  return {_mm256_cmpeq_epi32(_mm256_and_si256(a.low, one), one),
          _mm256_cmpeq_epi32(_mm256_and_si256(a.high, one), one)};
}
// 2^n for n of -126 .. 127; anything for other n.
KVIST_INLINE Vec16 PowerOfTwo(Int16Lanes n) {
  const __m256i bias = _mm256_set1_epi32(127);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.low, bias), 23)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.high, bias), 23))};
}
KVIST_INLINE Int16Lanes HalveInt(Int16Lanes n) {
  return {_mm256_srai_epi32(n.low, 1), _mm256_srai_epi32(n.high, 1)};
}
KVIST_INLINE void StoreInt(int32_t* p, Int16Lanes v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v.low);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), v.high);
}
// The lanes' values, which must be within -128 .. 127.
KVIST_INLINE void StoreBytes(int8_t* p, Int16Lanes v) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(v.low, v.high), 0xd8);
  const __m128i bytes =
      _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}

KVIST_INLINE int32_t MaxLaneInt(Int16Lanes v) {
  const __m256i eight = _mm256_max_epi32(v.low, v.high);
  const __m128i four =
      _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}
// The sums over lanes i with i % 4 < 2 and with i % 4 >= 2, of a and then of b, as 16-bit integers.
KVIST_INLINE void StorePairSums(int16_t* p, Int16Lanes a, Int16Lanes b) {
  const __m256i a8 = _mm256_add_epi32(a.low, a.high);
  const __m256i b8 = _mm256_add_epi32(b.low, b.high);
  const __m128i a4 = _mm_add_epi32(_mm256_castsi256_si128(a8), _mm256_extracti128_si256(a8, 1));
  const __m128i b4 = _mm_add_epi32(_mm256_castsi256_si128(b8), _mm256_extracti128_si256(b8, 1));
  const __m128i sums = _mm_hadd_epi32(a4, b4);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi32(sums, sums));
}

// Lane i meets i+8, then i+4, i+2, i+1.
KVIST_INLINE float Sum(Vec16 v) {
  const __m256 eight = _mm256_add_ps(v.low, v.high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
KVIST_INLINE float MaxOf(float a, float b) { return a > b ? a : b; }
KVIST_INLINE float MaxLane(Vec16 v) {
  const __m256 eight = _mm256_max_ps(v.low, v.high);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// Lane j of the result is op over the lanes of v[j], in the order of Sum and MaxLane; lanes from N
// on are v[0]'s. Half: lanes `first` .. first + 7.
template <int N, typename Op>
KVIST_INLINE __m256 HalfOverLanes(const Vec16 (&v)[N], int first, Op op) {
  const auto eights = [&](int j) __attribute__((always_inline)) {
    const Vec16 x = v[first + j < N ? first + j : 0];
    return op(x.low, x.high);
  };
  const auto fours = [&](int j) __attribute__((always_inline)) {
    const __m256 x = eights(j), y = eights(j + 4);
    return op(_mm256_permute2f128_ps(x, y, 0x20), _mm256_permute2f128_ps(x, y, 0x31));
  };
  const auto twos = [&](int j) __attribute__((always_inline)) {
    const __m256 x = fours(j), y = fours(j + 1);
    return op(_mm256_shuffle_ps(x, y, 0x44), _mm256_shuffle_ps(x, y, 0xee));
  };
  const __m256 x = twos(0), y = twos(2);
  return op(_mm256_shuffle_ps(x, y, 0x88), _mm256_shuffle_ps(x, y, 0xdd));
}
template <int N, typename Op>
KVIST_INLINE Vec16 OverLanes(const Vec16 (&v)[N], Op op) {
  const __m256 low = HalfOverLanes(v, 0, op);
  if constexpr (N <= 8) {
    return {low, low};
  } else {
    return {low, HalfOverLanes(v, 8, op)};
  }
}
template <int N>
KVIST_INLINE Vec16 MaxLanes(const Vec16 (&v)[N]) {
  return OverLanes(
      v, [](__m256 a, __m256 b) __attribute__((always_inline)) { return _mm256_max_ps(a, b); });
}
template <int N>
KVIST_INLINE Vec16 SumLanes(const Vec16 (&v)[N]) {
  return OverLanes(
      v, [](__m256 a, __m256 b) __attribute__((always_inline)) { return _mm256_add_ps(a, b); });
}
KVIST_INLINE float SquareRoot(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }

KVIST_INLINE Vec16 LoadHalf(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
KVIST_INLINE Vec16 LoadBf16(const uint16_t* p) {
  const __m256i low = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i high =
      _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
}
KVIST_INLINE Vec16 LoadInt8(const int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}
KVIST_INLINE Int16Lanes LoadUint16(const uint16_t* p) {
  return {_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
// The low and the high nibbles of 16 bytes.
KVIST_INLINE void LoadNibbles(const uint8_t* p, Vec16* low, Vec16* high) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m256i first = _mm256_cvtepu8_epi32(bytes);
  const __m256i second = _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8));
  const __m256i mask = _mm256_set1_epi32(15);
  *low = {_mm256_cvtepi32_ps(_mm256_and_si256(first, mask)),
          _mm256_cvtepi32_ps(_mm256_and_si256(second, mask))};
  *high = {_mm256_cvtepi32_ps(_mm256_srli_epi32(first, 4)),
           _mm256_cvtepi32_ps(_mm256_srli_epi32(second, 4))};
}
KVIST_INLINE void StoreHalf(uint16_t* p, Vec16 v) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v.low, kNearest));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(v.high, kNearest));
}
// Half to even by adding 0x7fff and the last kept bit; a NaN keeps its upper payload and becomes
// quiet.
KVIST_INLINE __m256i RoundToBf16(__m256 v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
}
KVIST_INLINE void StoreBf16(uint16_t* p, Vec16 v) {
  const __m256i packed = _mm256_packus_epi32(RoundToBf16(v.low), RoundToBf16(v.high));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}

}  // namespace
}  // namespace kvist::worker

#endif  // KVIST_WORKER_KERNELS_CPU_VEC16_AVX2_H_
