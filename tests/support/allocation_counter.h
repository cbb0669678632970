// Counts what a piece of a test allocates.
#ifndef KVIST_TESTS_SUPPORT_ALLOCATION_COUNTER_H_
#define KVIST_TESTS_SUPPORT_ALLOCATION_COUNTER_H_

#include <cstdint>

namespace kvist::testing {

// The calls of operator new, by all threads, since the last StartCountingAllocations. A program
// that links this has its own operator new.
void StartCountingAllocations();
int64_t StopCountingAllocations();

}  // namespace kvist::testing

#endif  // KVIST_TESTS_SUPPORT_ALLOCATION_COUNTER_H_
