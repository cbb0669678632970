// How many seeds a random test tries.
#ifndef KVIST_TESTS_SUPPORT_LONG_RUN_H_
#define KVIST_TESTS_SUPPORT_LONG_RUN_H_

#include <cstdint>
#include <cstdlib>

namespace kvist {

// `usual`, or ten times as many where tests/run.sh --long set KVIST_LONG.
inline uint64_t Seeds(uint64_t usual) {
  return std::getenv("KVIST_LONG") == nullptr ? usual : 10 * usual;
}

}  // namespace kvist

#endif  // KVIST_TESTS_SUPPORT_LONG_RUN_H_
