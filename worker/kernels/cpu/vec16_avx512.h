// Sixteen float lanes as one AVX-512 register. Same operations, same roundings as vec16_scalar.h.
#ifndef KVIST_WORKER_KERNELS_CPU_VEC16_AVX512_H_
#define KVIST_WORKER_KERNELS_CPU_VEC16_AVX512_H_

#include <immintrin.h>
#include <stdint.h>

#define KVIST_INLINE inline __attribute__((always_inline))

namespace kvist::worker {
namespace {

using Vec16 = __m512;
using Int16Lanes = __m512i;
using Mask16 = __mmask16;

constexpr int kRowTile = 16;  // rows of attention that share loads of K and V in registers

KVIST_INLINE Vec16 Load(const float* p) { return _mm512_loadu_ps(p); }
KVIST_INLINE void Store(float* p, Vec16 v) { _mm512_storeu_ps(p, v); }
KVIST_INLINE Vec16 Broadcast(float x) { return _mm512_set1_ps(x); }
KVIST_INLINE Int16Lanes BroadcastInt(int32_t x) { return _mm512_set1_epi32(x); }

KVIST_INLINE Vec16 Add(Vec16 a, Vec16 b) { return _mm512_add_ps(a, b); }
KVIST_INLINE Vec16 Sub(Vec16 a, Vec16 b) { return _mm512_sub_ps(a, b); }
KVIST_INLINE Vec16 Mul(Vec16 a, Vec16 b) { return _mm512_mul_ps(a, b); }
KVIST_INLINE Vec16 Div(Vec16 a, Vec16 b) { return _mm512_div_ps(a, b); }
// a * b + c rounded once.
KVIST_INLINE Vec16 Fma(Vec16 a, Vec16 b, Vec16 c) { return _mm512_fmadd_ps(a, b, c); }
KVIST_INLINE Mask16 Greater(Vec16 a, Vec16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
KVIST_INLINE Mask16 IsNan(Vec16 a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
// Lanes begin <= i < end, both of 0 .. 16.
KVIST_INLINE Mask16 LaneRange(int begin, int end) {
  return static_cast<Mask16>(((1u << end) - 1) & ~((1u << begin) - 1));
}
KVIST_INLINE Vec16 Select(Mask16 mask, Vec16 yes, Vec16 no) {
  return _mm512_mask_blend_ps(mask, no, yes);
}
KVIST_INLINE Int16Lanes SelectInt(Mask16 mask, Int16Lanes yes, Int16Lanes no) {
  return _mm512_mask_blend_epi32(mask, no, yes);
}
// a > b ? a : b, so b if either is NaN: what maxps does.
KVIST_INLINE Vec16 Max(Vec16 a, Vec16 b) { return _mm512_max_ps(a, b); }

KVIST_INLINE Int16Lanes SubInt(Int16Lanes a, Int16Lanes b) { return _mm512_sub_epi32(a, b); }
KVIST_INLINE Int16Lanes AddInt(Int16Lanes a, Int16Lanes b) { return _mm512_add_epi32(a, b); }
KVIST_INLINE Int16Lanes MaxInt(Int16Lanes a, Int16Lanes b) { return _mm512_max_epi32(a, b); }
KVIST_INLINE Int16Lanes MinInt(Int16Lanes a, Int16Lanes b) { return _mm512_min_epi32(a, b); }
KVIST_INLINE Int16Lanes Bits(Vec16 a) { return _mm512_castps_si512(a); }
KVIST_INLINE Int16Lanes AndInt(Int16Lanes a, int32_t bits) {
  return _mm512_and_si512(a, _mm512_set1_epi32(bits));
}
// Lanes in which bit number `bit` is set.
KVIST_INLINE Mask16 HasBit(Int16Lanes a, int bit) {
  return _mm512_test_epi32_mask(a, _mm512_set1_epi32(static_cast<int32_t>(1u << bit)));
}
// 2^n for n of -126 .. 127; anything for other n.
KVIST_INLINE Vec16 PowerOfTwo(Int16Lanes n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
}
KVIST_INLINE Int16Lanes HalveInt(Int16Lanes n) { return _mm512_srai_epi32(n, 1); }
KVIST_INLINE void StoreInt(int32_t* p, Int16Lanes v) { _mm512_storeu_si512(p, v); }
// The lanes' values, which must be within -128 .. 127.
KVIST_INLINE void StoreBytes(int8_t* p, Int16Lanes v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(v));
}

KVIST_INLINE __m256 LowHalf(Vec16 v) { return _mm512_castps512_ps256(v); }
KVIST_INLINE __m256 HighHalf(Vec16 v) {
  return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1));
}
KVIST_INLINE __m256i LowHalfInt(Int16Lanes v) { return _mm512_castsi512_si256(v); }
KVIST_INLINE __m256i HighHalfInt(Int16Lanes v) { return _mm512_extracti64x4_epi64(v, 1); }

KVIST_INLINE int32_t MaxLaneInt(Int16Lanes v) {
  const __m256i eight = _mm256_max_epi32(LowHalfInt(v), HighHalfInt(v));
  const __m128i four =
      _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}
// The sums over lanes i with i % 4 < 2 and with i % 4 >= 2, of a and then of b, as 16-bit integers.
KVIST_INLINE void StorePairSums(int16_t* p, Int16Lanes a, Int16Lanes b) {
  const __m256i a8 = _mm256_add_epi32(LowHalfInt(a), HighHalfInt(a));
  const __m256i b8 = _mm256_add_epi32(LowHalfInt(b), HighHalfInt(b));
  const __m128i a4 = _mm_add_epi32(_mm256_castsi256_si128(a8), _mm256_extracti128_si256(a8, 1));
  const __m128i b4 = _mm_add_epi32(_mm256_castsi256_si128(b8), _mm256_extracti128_si256(b8, 1));
  const __m128i sums = _mm_hadd_epi32(a4, b4);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi32(sums, sums));
}

// Lane i meets i+8, then i+4, i+2, i+1.
KVIST_INLINE float Sum(Vec16 v) {
  const __m256 eight = _mm256_add_ps(LowHalf(v), HighHalf(v));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
KVIST_INLINE float MaxOf(float a, float b) { return a > b ? a : b; }
KVIST_INLINE float MaxLane(Vec16 v) {
  const __m256 eight = _mm256_max_ps(LowHalf(v), HighHalf(v));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// Lane j of the result is op over the lanes of v[j], in the order of Sum and MaxLane; lanes from N
// on are v[0]'s. 45 operations for 16 vectors, where one after the other would be 128.
template <int N, typename Op>
KVIST_INLINE Vec16 OverLanes(const Vec16 (&v)[N], Op op) {
  const auto at = [&v](int j) __attribute__((always_inline)) { return v[j < N ? j : 0]; };
  const auto eights = [&](int j) __attribute__((always_inline)) {
    const Vec16 x = at(j), y = at(j + 4);
    return op(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xee));
  };
  const auto fours = [&](int j) __attribute__((always_inline)) {
    const Vec16 x = eights(j), y = eights(j + 8);
    return op(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
  };
  const auto twos = [&](int j) __attribute__((always_inline)) {
    const Vec16 x = fours(j), y = fours(j + 1);
    return op(_mm512_shuffle_ps(x, y, 0x44), _mm512_shuffle_ps(x, y, 0xee));
  };
  const Vec16 x = twos(0), y = twos(2);
  return op(_mm512_shuffle_ps(x, y, 0x88), _mm512_shuffle_ps(x, y, 0xdd));
}
template <int N>
KVIST_INLINE Vec16 MaxLanes(const Vec16 (&v)[N]) {
  return OverLanes(
      v, [](Vec16 a, Vec16 b) __attribute__((always_inline)) { return Max(a, b); });
}
template <int N>
KVIST_INLINE Vec16 SumLanes(const Vec16 (&v)[N]) {
  return OverLanes(
      v, [](Vec16 a, Vec16 b) __attribute__((always_inline)) { return Add(a, b); });
}
KVIST_INLINE float SquareRoot(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }

KVIST_INLINE Vec16 LoadHalf(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
KVIST_INLINE Vec16 LoadBf16(const uint16_t* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
KVIST_INLINE Vec16 LoadInt8(const int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}
KVIST_INLINE Int16Lanes LoadUint16(const uint16_t* p) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
// The low and the high nibbles of 16 bytes.
KVIST_INLINE void LoadNibbles(const uint8_t* p, Vec16* low, Vec16* high) {
  const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  *low = _mm512_cvtepi32_ps(_mm512_and_si512(bytes, _mm512_set1_epi32(15)));
  *high = _mm512_cvtepi32_ps(_mm512_srli_epi32(bytes, 4));
}
KVIST_INLINE void StoreHalf(uint16_t* p, Vec16 v) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, kNearest));
}
// Half to even by adding 0x7fff and the last kept bit; a NaN keeps its upper payload and becomes
// quiet.
KVIST_INLINE void StoreBf16(uint16_t* p, Vec16 v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __m512i kept = _mm512_srli_epi32(_mm512_mask_blend_epi32(IsNan(v), rounded, quiet), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(kept));
}

}  // namespace
}  // namespace kvist::worker

#endif  // KVIST_WORKER_KERNELS_CPU_VEC16_AVX512_H_
