// Stands before the compiler's header where emulated_avx512.cc is compiled: the AVX-512 intrinsics
// by SIMD Everywhere, and those that its release lacks by Intel's definition, on AVX2 registers.
// The source of the kernels stays as it is.
#ifndef KVIST_TESTS_WORKER_KERNELS_EMULATED_AVX512_IMMINTRIN_H_
#define KVIST_TESTS_WORKER_KERNELS_EMULATED_AVX512_IMMINTRIN_H_

#pragma GCC system_header  // for #include_next
#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <string.h>

namespace emulated_avx512 {

struct Halves {
  __m256i low, high;
};

inline __m512i Join(__m256i low, __m256i high) {
  const Halves halves = {low, high};
  __m512i v;
  memcpy(&v, &halves, sizeof(v));
  return v;
}
inline __m512 JoinFloats(__m256 low, __m256 high) {
  return _mm512_castsi512_ps(Join(_mm256_castps_si256(low), _mm256_castps_si256(high)));
}
inline Halves Split(__m512i v) {
  Halves halves;
  memcpy(&halves, &v, sizeof(halves));
  return halves;
}
inline __m128i Upper(__m128i bytes) { return _mm_srli_si128(bytes, 8); }

inline __m512i CvtEpi8Epi32(__m128i v) {
  return Join(_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(Upper(v)));
}
inline __m512i CvtEpu8Epi32(__m128i v) {
  return Join(_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(Upper(v)));
}
inline __m512i CvtEpu16Epi32(__m256i v) {
  return Join(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(v)),
              _mm256_cvtepu16_epi32(_mm256_extracti128_si256(v, 1)));
}
inline __m512 CvtEpi32Ps(__m512i v) {
  const Halves halves = Split(v);
  return JoinFloats(_mm256_cvtepi32_ps(halves.low), _mm256_cvtepi32_ps(halves.high));
}
inline __m512 CvtPhPs(__m256i v) {
  return JoinFloats(_mm256_cvtph_ps(_mm256_castsi256_si128(v)),
                    _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1)));
}
template <int kRounding>
__m256i CvtPsPh(__m512 v) {
  const Halves halves = Split(_mm512_castps_si512(v));
  return _mm256_set_m128i(_mm256_cvtps_ph(_mm256_castsi256_ps(halves.high), kRounding),
                          _mm256_cvtps_ph(_mm256_castsi256_ps(halves.low), kRounding));
}
// The lower half of each lane.
inline __m256i CvtEpi32Epi16(__m512i v) {
  const Halves halves = Split(v);
  const __m256i kept = _mm256_set1_epi32(0xffff);
  const __m256i words =
      _mm256_packus_epi32(_mm256_and_si256(halves.low, kept), _mm256_and_si256(halves.high, kept));
  return _mm256_permute4x64_epi64(words, 0xd8);
}
inline __m512i SraiEpi32(__m512i v, int count) {
  const Halves halves = Split(v);
  return Join(_mm256_srai_epi32(halves.low, count), _mm256_srai_epi32(halves.high, count));
}
// SIMD Everywhere asks clang for a count that is a constant in the source.
inline __m512i SrliEpi16(__m512i v, unsigned count) {
  const Halves halves = Split(v);
  const __m128i bits = _mm_cvtsi32_si128(static_cast<int>(count));
  return Join(_mm256_srl_epi16(halves.low, bits), _mm256_srl_epi16(halves.high, bits));
}

// Not inlined, or the many places that use these would take minutes to compile.
[[gnu::noinline]] inline __m512i DpBusdEpi32(__m512i sum, __m512i a, __m512i b) {
  return simde_mm512_dpbusd_epi32(sum, a, b);
}
[[gnu::noinline]] inline __m512i DpWssdEpi32(__m512i sum, __m512i a, __m512i b) {
  return simde_mm512_dpwssd_epi32(sum, a, b);
}
// Bit i of kTable for bits of a, b and c that spell i. (SIMD Everywhere's has 256 cases.)
template <int kTable>
[[gnu::noinline]] __m512i TernaryLogic(__m512i a, __m512i b, __m512i c) {
  const __m512i ones = _mm512_set1_epi32(-1);
  __m512i r = _mm512_setzero_si512();
  for (int i = 0; i < 8; ++i) {
    if ((kTable >> i & 1) == 0) continue;
    const __m512i ab = _mm512_and_si512(i & 4 ? a : _mm512_xor_si512(a, ones),
                                        i & 2 ? b : _mm512_xor_si512(b, ones));
    r = _mm512_or_si512(r, _mm512_and_si512(ab, i & 1 ? c : _mm512_xor_si512(c, ones)));
  }
  return r;
}

}  // namespace emulated_avx512

#undef _mm512_dpbusd_epi32
#undef _mm512_dpwssd_epi32
#undef _mm512_srli_epi16
#undef _mm512_ternarylogic_epi32
#define _mm512_dpbusd_epi32(sum, a, b) emulated_avx512::DpBusdEpi32(sum, a, b)
#define _mm512_dpwssd_epi32(sum, a, b) emulated_avx512::DpWssdEpi32(sum, a, b)
#define _mm512_ternarylogic_epi32(a, b, c, table) emulated_avx512::TernaryLogic<table>(a, b, c)
#define _mm512_cvtepi8_epi32(v) emulated_avx512::CvtEpi8Epi32(v)
#define _mm512_cvtepu8_epi32(v) emulated_avx512::CvtEpu8Epi32(v)
#define _mm512_cvtepu16_epi32(v) emulated_avx512::CvtEpu16Epi32(v)
#define _mm512_cvtepi32_ps(v) emulated_avx512::CvtEpi32Ps(v)
#define _mm512_cvtepi32_epi16(v) emulated_avx512::CvtEpi32Epi16(v)
#define _mm512_cvtph_ps(v) emulated_avx512::CvtPhPs(v)
#define _mm512_cvtps_ph(v, rounding) emulated_avx512::CvtPsPh<rounding>(v)
#define _mm512_shuffle_f32x4(a, b, parts) simde_mm512_shuffle_f32x4(a, b, parts)
#define _mm512_srai_epi32(v, count) emulated_avx512::SraiEpi32(v, count)
#define _mm512_srli_epi16(v, count) emulated_avx512::SrliEpi16(v, count)

#endif  // KVIST_TESTS_WORKER_KERNELS_EMULATED_AVX512_IMMINTRIN_H_
