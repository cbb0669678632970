// Counts what a piece of a test allocates.
#ifndef KVIST_TESTS_SUPPORT_ALLOCATION_COUNTER_H_
#define KVIST_TESTS_SUPPORT_ALLOCATION_COUNTER_H_

#include <cstdint>

namespace kvist::testing {

// The calls of operator new, by all threads, since the last StartCountingAllocations. A program
// that links this has its own operator new.
void StartCountingAllocations();
int64_t StopCountingAllocations();
// What operator new has given and operator delete not taken back: bytes of the heap, with what it
// rounds up. By all threads, since the program began.
int64_t HeldBytes();

}  // namespace kvist::testing

#endif  // KVIST_TESTS_SUPPORT_ALLOCATION_COUNTER_H_
