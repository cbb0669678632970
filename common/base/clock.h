// Time as a dependency: production code takes a Clock, tests and simulation step a fake one.
#ifndef KVIST_COMMON_BASE_CLOCK_H_
#define KVIST_COMMON_BASE_CLOCK_H_

#include <chrono>

namespace kvist {

// Monotonic time. The epoch is arbitrary; only differences mean anything.
using MonotonicTime = std::chrono::steady_clock::time_point;

// Source of monotonic and wall time. Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual MonotonicTime Now() const = 0;
  virtual std::chrono::system_clock::time_point WallNow() const = 0;
};

// The machine's clocks.
class SystemClock final : public Clock {
 public:
  MonotonicTime Now() const override { return std::chrono::steady_clock::now(); }
  std::chrono::system_clock::time_point WallNow() const override {
    return std::chrono::system_clock::now();
  }
};

// Seconds between two points in time.
inline double SecondsBetween(MonotonicTime from, MonotonicTime to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace kvist

#endif  // KVIST_COMMON_BASE_CLOCK_H_
