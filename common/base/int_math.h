// Integer arithmetic that cannot wrap silently.
#ifndef KVIST_COMMON_BASE_INT_MATH_H_
#define KVIST_COMMON_BASE_INT_MATH_H_

#include <concepts>
#include <cstdint>
#include <optional>

namespace kvist {

// a + b, or nullopt on overflow.
template <std::integral T>
constexpr std::optional<T> CheckedAdd(T a, T b) {
  T result{};
  if (__builtin_add_overflow(a, b, &result)) return std::nullopt;
  return result;
}

// a * b, or nullopt on overflow.
template <std::integral T>
constexpr std::optional<T> CheckedMultiply(T a, T b) {
  T result{};
  if (__builtin_mul_overflow(a, b, &result)) return std::nullopt;
  return result;
}

// Smallest integer not below a / b. REQUIRES: a >= 0, b > 0.
template <std::integral T>
constexpr T CeilDiv(T a, T b) {
  return a / b + (a % b != 0 ? 1 : 0);
}

// Smallest multiple of b not below a. REQUIRES: a >= 0, b > 0, the result fits.
template <std::integral T>
constexpr T RoundUp(T a, T b) {
  return CeilDiv(a, b) * b;
}

constexpr bool IsPowerOfTwo(uint64_t value) { return value != 0 && (value & (value - 1)) == 0; }

// The 64-bit finalizer of MurmurHash3: a bijection that mixes every bit into every other.
constexpr uint64_t Mix64(uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdULL;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ULL;
  x ^= x >> 33;
  return x;
}

}  // namespace kvist

#endif  // KVIST_COMMON_BASE_INT_MATH_H_
