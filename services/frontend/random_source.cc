#include "services/frontend/random_source.h"

#include <random>

#include "absl/strings/str_cat.h"

namespace kvist::services {

uint64_t SystemRandom::Next() {
  thread_local std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

std::string DrawName(RandomSource& random, const char* prefix) {
  return absl::StrCat(prefix, absl::Hex(random.Next(), absl::kZeroPad16));
}

}  // namespace kvist::services
