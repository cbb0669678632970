// exp for weights of a softmax: the same bits on every machine, whatever the math library.
#ifndef KVIST_WORKER_SAMPLING_EXPONENTIAL_H_
#define KVIST_WORKER_SAMPLING_EXPONENTIAL_H_

#include <bit>
#include <cstdint>

namespace kvist::worker {

// e^x for x <= 0, within 2 ulp; 0 below -700 (where results near the denormals begin). No fused
// operations: the build turns contraction off. Cody-Waite reduction to |r| <= ln(2) / 2, then the
// Taylor series to r^13.
inline double ExpOfNonPositive(double x) {
  if (!(x >= -700.0)) return 0.0;
  constexpr double kLog2E = 1.4426950408889634074;
  constexpr double kLn2High = 6.93147180369123816490e-01;
  constexpr double kLn2Low = 1.90821492927058770002e-10;
  constexpr double kRound = 0x1.8p52;  // adding and subtracting it rounds to the nearest integer
  const double k = (x * kLog2E + kRound) - kRound;
  const double r = (x - k * kLn2High) - k * kLn2Low;
  constexpr double kInverseFactorials[] = {1.0 / 6227020800.0,
                                           1.0 / 479001600.0,
                                           1.0 / 39916800.0,
                                           1.0 / 3628800.0,
                                           1.0 / 362880.0,
                                           1.0 / 40320.0,
                                           1.0 / 5040.0,
                                           1.0 / 720.0,
                                           1.0 / 120.0,
                                           1.0 / 24.0,
                                           1.0 / 6.0,
                                           0.5,
                                           1.0,
                                           1.0};
  double series = kInverseFactorials[0];
  for (int i = 1; i < 14; ++i) series = series * r + kInverseFactorials[i];
  const uint64_t exponent = static_cast<uint64_t>(static_cast<int64_t>(k) + 1023) << 52;
  return series * std::bit_cast<double>(exponent);
}

}  // namespace kvist::worker

#endif  // KVIST_WORKER_SAMPLING_EXPONENTIAL_H_
