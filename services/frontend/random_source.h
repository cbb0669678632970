// Randomness as a dependency: seeds and names that the frontend draws.
#ifndef KVIST_SERVICES_FRONTEND_RANDOM_SOURCE_H_
#define KVIST_SERVICES_FRONTEND_RANDOM_SOURCE_H_

#include <cstdint>
#include <string>

namespace kvist::services {

// Thread-safe.
class RandomSource {
 public:
  virtual ~RandomSource() = default;
  virtual uint64_t Next() = 0;
};

// The system's generator.
class SystemRandom final : public RandomSource {
 public:
  uint64_t Next() override;
};

// `prefix` and 16 hexadecimal digits.
std::string DrawName(RandomSource& random, const char* prefix);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_RANDOM_SOURCE_H_
