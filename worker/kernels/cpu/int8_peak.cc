#include "worker/kernels/cpu/int8_peak.h"

#include <immintrin.h>

#include <array>

namespace kvist::worker {
namespace {

// Enough independent sums to hide the latency of an addition; with the operands they fit into 16
// registers.
constexpr int kChains = 8;

// Stores keep the compiler from leaving the work out.
volatile int32_t sink;

// A product and an addition in 16 bits: the products of 4-bit weights widen their sums only once a
// block, so to widen each would be no limit for them.
__attribute__((target("avx2"))) int64_t RunAvx2(int64_t iterations) {
  const __m256i a = _mm256_set1_epi8(3);
  __m256i b = _mm256_set1_epi8(2);
  __m256i sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = _mm256_setzero_si256();
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 8
    for (int i = 0; i < kChains; ++i) {
      // The operand must look new each time, or the product is computed once.
      __asm__("" : "+x"(b));
      sums[i] = _mm256_add_epi16(sums[i], _mm256_maddubs_epi16(a, b));
    }
  }
  __m256i all = sums[0];
  for (int i = 1; i < kChains; ++i) all = _mm256_add_epi32(all, sums[i]);
  sink = _mm256_extract_epi32(all, 0);
  return iterations * kChains * 32;
}

// vpdpbusd does the product and the sum; its latency is longer than that of each of the above.
constexpr int kVnniChains = 12;

__attribute__((target("avx512f,avx512vnni"))) int64_t RunAvx512Vnni(int64_t iterations) {
  const __m512i a = _mm512_set1_epi8(3);
  __m512i sums[kVnniChains];
  for (int i = 0; i < kVnniChains; ++i) sums[i] = _mm512_set1_epi32(i);
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 12
    for (int i = 0; i < kVnniChains; ++i) sums[i] = _mm512_dpbusd_epi32(sums[i], a, a);
  }
  __m512i all = sums[0];
  for (int i = 1; i < kVnniChains; ++i) all = _mm512_add_epi32(all, sums[i]);
  int32_t lanes[16];
  _mm512_storeu_si512(lanes, all);
  sink = lanes[0];
  return iterations * kVnniChains * 64;
}

int64_t RunScalar(int64_t iterations) {
  std::array<int32_t, kChains> sums{};
  std::array<int32_t, kChains> b{};
  for (int64_t n = 0; n < iterations; ++n) {
    for (int i = 0; i < kChains; ++i) {
      __asm__("" : "+r"(b[i]));
      sums[i] += 3 * b[i];
    }
  }
  int32_t all = 0;
  for (const int32_t sum : sums) all += sum;
  sink = all;
  return iterations * kChains;
}

}  // namespace

int64_t RunInt8MultiplyAdds(std::string_view kernels, int64_t iterations) {
  if (kernels == "scalar") return RunScalar(iterations);
  return kernels == "avx512vnni" ? RunAvx512Vnni(iterations) : RunAvx2(iterations);
}

}  // namespace kvist::worker
