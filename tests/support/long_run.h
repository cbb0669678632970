// How much a test does: a usual run, or one of tests/run.sh --long.
#ifndef KVIST_TESTS_SUPPORT_LONG_RUN_H_
#define KVIST_TESTS_SUPPORT_LONG_RUN_H_

#include <cstdint>
#include <cstdlib>

namespace kvist {

// Whether tests/run.sh --long set KVIST_LONG.
inline bool IsLongRun() { return std::getenv("KVIST_LONG") != nullptr; }

// How many seeds a random test tries.
inline uint64_t Seeds(uint64_t usual) { return IsLongRun() ? 10 * usual : usual; }

}  // namespace kvist

#endif  // KVIST_TESTS_SUPPORT_LONG_RUN_H_
