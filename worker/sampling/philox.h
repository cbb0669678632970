// Philox4x32-10: a counter-based random number generator. Source: Salmon, Moraes, Dror, Shaw,
// "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).
#ifndef KVIST_WORKER_SAMPLING_PHILOX_H_
#define KVIST_WORKER_SAMPLING_PHILOX_H_

#include <array>
#include <cstdint>

namespace kvist::worker {

using PhiloxCounter = std::array<uint32_t, 4>;
using PhiloxKey = std::array<uint32_t, 2>;

// 128 random bits that are a pure function of counter and key.
constexpr PhiloxCounter Philox4x32(PhiloxCounter counter, PhiloxKey key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
               static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
               static_cast<uint32_t>(product0)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

// What a random number belongs to: the same in every batch, after preemption and in every replay.
struct RandomPlace {
  uint64_t seed = 0;
  uint32_t sample_index = 0;
  int64_t position = 0;  // absolute position of the token that is chosen
};

// Uniform in [0, 1), a multiple of 2^-53.
constexpr double UniformAt(const RandomPlace& place) {
  const uint64_t position = static_cast<uint64_t>(place.position);
  const PhiloxCounter bits =
      Philox4x32({static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32),
                  place.sample_index, 0},
                 {static_cast<uint32_t>(place.seed), static_cast<uint32_t>(place.seed >> 32)});
  const uint64_t word = (uint64_t{bits[1]} << 32) | bits[0];
  return static_cast<double>(word >> 11) * 0x1p-53;
}

}  // namespace kvist::worker

#endif  // KVIST_WORKER_SAMPLING_PHILOX_H_
