// Sixteen float lanes without instruction-set intrinsics: four compiler vectors of four, which
// every compiler can lower to what the target has (SSE2 on any x86-64). The truth that the other
// tables are compared with.
#ifndef KVIST_WORKER_KERNELS_CPU_VEC16_SCALAR_H_
#define KVIST_WORKER_KERNELS_CPU_VEC16_SCALAR_H_

#include <cmath>
#include <cstdint>
#include <cstring>

#include "worker/tensor/dequantize.h"

#define KVIST_INLINE inline __attribute__((always_inline))

namespace kvist::worker {
namespace {

using Float4 = float __attribute__((vector_size(16)));
using Int4 = int32_t __attribute__((vector_size(16)));
using UnsignedInt4 = uint32_t __attribute__((vector_size(16)));

struct Vec16 {
  Float4 part[4];
};
struct Int16Lanes {
  Int4 part[4];
};
using Mask16 = Int16Lanes;  // all ones or all zeros

constexpr int kRowTile = 4;  // rows of attention that share loads of K and V in registers

KVIST_INLINE Vec16 Load(const float* p) {
  Vec16 r;
  std::memcpy(&r, p, sizeof(r));
  return r;
}
KVIST_INLINE void Store(float* p, Vec16 v) { std::memcpy(p, &v, sizeof(v)); }
KVIST_INLINE Vec16 Broadcast(float x) {
  const Float4 f = {x, x, x, x};
  return {{f, f, f, f}};
}
KVIST_INLINE Int16Lanes BroadcastInt(int32_t x) {
  const Int4 i = {x, x, x, x};
  return {{i, i, i, i}};
}

KVIST_INLINE Vec16 Add(Vec16 a, Vec16 b) {
  for (int i = 0; i < 4; ++i) a.part[i] += b.part[i];
  return a;
}
KVIST_INLINE Vec16 Sub(Vec16 a, Vec16 b) {
  for (int i = 0; i < 4; ++i) a.part[i] -= b.part[i];
  return a;
}
KVIST_INLINE Vec16 Mul(Vec16 a, Vec16 b) {
  for (int i = 0; i < 4; ++i) a.part[i] *= b.part[i];
  return a;
}
KVIST_INLINE Vec16 Div(Vec16 a, Vec16 b) {
  for (int i = 0; i < 4; ++i) a.part[i] /= b.part[i];
  return a;
}
// a * b + c rounded once.
KVIST_INLINE Vec16 Fma(Vec16 a, Vec16 b, Vec16 c) {
  Vec16 r;
  for (int i = 0; i < 4; ++i) {
    const Float4 x = a.part[i];
    const Float4 y = b.part[i];
    const Float4 z = c.part[i];
    r.part[i] = Float4{std::fma(x[0], y[0], z[0]), std::fma(x[1], y[1], z[1]),
                       std::fma(x[2], y[2], z[2]), std::fma(x[3], y[3], z[3])};
  }
  return r;
}
KVIST_INLINE Mask16 Greater(Vec16 a, Vec16 b) {
  Mask16 r;
  for (int i = 0; i < 4; ++i) r.part[i] = a.part[i] > b.part[i];
  return r;
}
KVIST_INLINE Mask16 IsNan(Vec16 a) {
  Mask16 r;
  for (int i = 0; i < 4; ++i) r.part[i] = a.part[i] != a.part[i];
  return r;
}
// Lanes begin <= i < end.
KVIST_INLINE Mask16 LaneRange(int begin, int end) {
  Mask16 r;
  const Int4 low = {begin - 1, begin - 1, begin - 1, begin - 1};
  const Int4 high = {end, end, end, end};
  for (int i = 0; i < 4; ++i) {
    const Int4 lane = {4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3};
    r.part[i] = (lane > low) & (lane < high);
  }
  return r;
}
KVIST_INLINE Vec16 Select(Mask16 mask, Vec16 yes, Vec16 no) {
  Vec16 r;
  for (int i = 0; i < 4; ++i) {
    r.part[i] = reinterpret_cast<Float4>((mask.part[i] & reinterpret_cast<Int4>(yes.part[i])) |
                                         (~mask.part[i] & reinterpret_cast<Int4>(no.part[i])));
  }
  return r;
}
KVIST_INLINE Int16Lanes SelectInt(Mask16 mask, Int16Lanes yes, Int16Lanes no) {
  for (int i = 0; i < 4; ++i)
    no.part[i] = (mask.part[i] & yes.part[i]) | (~mask.part[i] & no.part[i]);
  return no;
}
// a > b ? a : b, so b if either is NaN.
KVIST_INLINE Vec16 Max(Vec16 a, Vec16 b) { return Select(Greater(a, b), a, b); }

// Wraps around: the exponents of NaN and infinities are unused garbage.
KVIST_INLINE Int16Lanes SubInt(Int16Lanes a, Int16Lanes b) {
  for (int i = 0; i < 4; ++i) {
    a.part[i] = reinterpret_cast<Int4>(reinterpret_cast<UnsignedInt4>(a.part[i]) -
                                       reinterpret_cast<UnsignedInt4>(b.part[i]));
  }
  return a;
}
KVIST_INLINE Int16Lanes AddInt(Int16Lanes a, Int16Lanes b) {
  for (int i = 0; i < 4; ++i) a.part[i] += b.part[i];
  return a;
}
KVIST_INLINE Int16Lanes MaxInt(Int16Lanes a, Int16Lanes b) {
  Mask16 greater;
  for (int i = 0; i < 4; ++i) greater.part[i] = a.part[i] > b.part[i];
  return SelectInt(greater, a, b);
}
KVIST_INLINE Int16Lanes MinInt(Int16Lanes a, Int16Lanes b) {
  Mask16 greater;
  for (int i = 0; i < 4; ++i) greater.part[i] = a.part[i] > b.part[i];
  return SelectInt(greater, b, a);
}
KVIST_INLINE Int16Lanes Bits(Vec16 a) {
  Int16Lanes r;
  for (int i = 0; i < 4; ++i) r.part[i] = reinterpret_cast<Int4>(a.part[i]);
  return r;
}
KVIST_INLINE Int16Lanes AndInt(Int16Lanes a, int32_t bits) {
  for (int i = 0; i < 4; ++i) a.part[i] &= bits;
  return a;
}
// Lanes in which bit number `bit` is set.
KVIST_INLINE Mask16 HasBit(Int16Lanes a, int bit) {
  Mask16 r;
  for (int i = 0; i < 4; ++i) {
    r.part[i] = (a.part[i] & static_cast<int32_t>(1u << bit)) != 0;
  }
  return r;
}
// 2^n for n of -126 .. 127; anything for other n.
KVIST_INLINE Vec16 PowerOfTwo(Int16Lanes n) {
  Vec16 r;
  for (int i = 0; i < 4; ++i) {
    r.part[i] = reinterpret_cast<Float4>((reinterpret_cast<UnsignedInt4>(n.part[i]) + 127u) << 23);
  }
  return r;
}
KVIST_INLINE Int16Lanes HalveInt(Int16Lanes n) {
  for (int i = 0; i < 4; ++i) n.part[i] >>= 1;
  return n;
}
KVIST_INLINE void StoreInt(int32_t* p, Int16Lanes v) { std::memcpy(p, &v, sizeof(v)); }
// The lanes' low bytes.
KVIST_INLINE void StoreBytes(int8_t* p, Int16Lanes v) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(v.part[i / 4][i % 4]);
}

KVIST_INLINE int32_t MaxLaneInt(Int16Lanes v) {
  int32_t largest = v.part[0][0];
  for (int i = 1; i < 16; ++i) {
    const int32_t lane = v.part[i / 4][i % 4];
    largest = lane > largest ? lane : largest;
  }
  return largest;
}
// The sums over lanes i with i % 4 < 2 and with i % 4 >= 2, of a and then of b, as 16-bit integers.
KVIST_INLINE void StorePairSums(int16_t* p, Int16Lanes a, Int16Lanes b) {
  const Int4 sums[2] = {(a.part[0] + a.part[1]) + (a.part[2] + a.part[3]),
                        (b.part[0] + b.part[1]) + (b.part[2] + b.part[3])};
  for (int i = 0; i < 2; ++i) {
    p[2 * i] = static_cast<int16_t>(sums[i][0] + sums[i][1]);
    p[2 * i + 1] = static_cast<int16_t>(sums[i][2] + sums[i][3]);
  }
}

// ((0+8)+(4+12)) + ((2+10)+(6+14)) and so on: lane i meets i+8, then i+4, i+2, i+1.
KVIST_INLINE float Sum(Vec16 v) {
  const Float4 a = (v.part[0] + v.part[2]) + (v.part[1] + v.part[3]);
  return (a[0] + a[2]) + (a[1] + a[3]);
}
KVIST_INLINE float MaxOf(float a, float b) { return a > b ? a : b; }
KVIST_INLINE float MaxLane(Vec16 v) {
  float a[4];
  for (int i = 0; i < 4; ++i) {
    a[i] = MaxOf(MaxOf(v.part[0][i], v.part[2][i]), MaxOf(v.part[1][i], v.part[3][i]));
  }
  return MaxOf(MaxOf(a[0], a[2]), MaxOf(a[1], a[3]));
}

// Lane j of the result is MaxLane(v[j]) or Sum(v[j]); lanes from N on are 0.
template <int N>
KVIST_INLINE Vec16 MaxLanes(const Vec16 (&v)[N]) {
  Vec16 r = Broadcast(0.0f);
  for (int j = 0; j < N; ++j) r.part[j / 4][j % 4] = MaxLane(v[j]);
  return r;
}
template <int N>
KVIST_INLINE Vec16 SumLanes(const Vec16 (&v)[N]) {
  Vec16 r = Broadcast(0.0f);
  for (int j = 0; j < N; ++j) r.part[j / 4][j % 4] = Sum(v[j]);
  return r;
}
KVIST_INLINE float SquareRoot(float x) { return std::sqrt(x); }

// binary16 to float by integer operations and one exact int-to-float conversion for denormals, so
// that the thread's denormal mode does not matter.
KVIST_INLINE Vec16 LoadHalf(const uint16_t* p) {
  Vec16 r;
  for (int i = 0; i < 4; ++i) {
    const Int4 h = {p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3]};
    const Int4 sign = (h & 0x8000) << 16;
    const Int4 magnitude = h & 0x7fff;
    const Int4 special = magnitude >= 0x7c00;  // infinity, NaN
    const Int4 nan = magnitude > 0x7c00;
    const Int4 small = magnitude < 0x400;
    const Int4 normal = (magnitude << 13) + (112 << 23) + (special & (112 << 23));
    const Float4 denormal = __builtin_convertvector(magnitude, Float4) * 0x1p-24f;
    const Int4 bits = (small & reinterpret_cast<Int4>(denormal)) | (~small & normal);
    r.part[i] = reinterpret_cast<Float4>(bits | sign | (nan & 0x400000));
  }
  return r;
}
KVIST_INLINE Vec16 LoadBf16(const uint16_t* p) {
  Vec16 r;
  for (int i = 0; i < 4; ++i) {
    const Int4 h = {p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3]};
    r.part[i] = reinterpret_cast<Float4>(h << 16);
  }
  return r;
}
KVIST_INLINE Vec16 LoadInt8(const int8_t* p) {
  Vec16 r;
  for (int i = 0; i < 4; ++i) {
    const Int4 q = {p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3]};
    r.part[i] = __builtin_convertvector(q, Float4);
  }
  return r;
}
KVIST_INLINE Int16Lanes LoadUint16(const uint16_t* p) {
  Int16Lanes r;
  for (int i = 0; i < 4; ++i) {
    r.part[i] = Int4{p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3]};
  }
  return r;
}
// The low and the high nibbles of 16 bytes.
KVIST_INLINE void LoadNibbles(const uint8_t* p, Vec16* low, Vec16* high) {
  for (int i = 0; i < 4; ++i) {
    const Int4 bytes = {p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3]};
    low->part[i] = __builtin_convertvector(bytes & 15, Float4);
    high->part[i] = __builtin_convertvector(bytes >> 4, Float4);
  }
}
KVIST_INLINE void StoreHalf(uint16_t* p, Vec16 v) {
  for (int i = 0; i < 16; ++i) p[i] = FloatToHalf(v.part[i / 4][i % 4]);
}
KVIST_INLINE void StoreBf16(uint16_t* p, Vec16 v) {
  for (int i = 0; i < 16; ++i) p[i] = FloatToBf16(v.part[i / 4][i % 4]);
}

}  // namespace
}  // namespace kvist::worker

#endif  // KVIST_WORKER_KERNELS_CPU_VEC16_SCALAR_H_
