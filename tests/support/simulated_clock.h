// A clock that moves only when a test says so.
#ifndef KVIST_TESTS_SUPPORT_SIMULATED_CLOCK_H_
#define KVIST_TESTS_SUPPORT_SIMULATED_CLOCK_H_

#include <atomic>
#include <chrono>
#include <cstdint>

#include "common/base/clock.h"

namespace kvist {

// Starts one second after the epoch. Thread-safe.
class SimulatedClock final : public Clock {
 public:
  MonotonicTime Now() const override {
    return MonotonicTime(std::chrono::nanoseconds(nanoseconds_.load()));
  }
  std::chrono::system_clock::time_point WallNow() const override {
    return std::chrono::system_clock::time_point(
        std::chrono::duration_cast<std::chrono::system_clock::duration>(
            std::chrono::nanoseconds(nanoseconds_.load())));
  }
  void Advance(std::chrono::nanoseconds by) { nanoseconds_ += by.count(); }

 private:
  std::atomic<int64_t> nanoseconds_{1'000'000'000};
};

}  // namespace kvist

#endif  // KVIST_TESTS_SUPPORT_SIMULATED_CLOCK_H_
