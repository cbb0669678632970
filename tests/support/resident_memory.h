// Whether the memory of this process grows.
#ifndef KVIST_TESTS_SUPPORT_RESIDENT_MEMORY_H_
#define KVIST_TESTS_SUPPORT_RESIDENT_MEMORY_H_

#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <vector>

namespace kvist {

// Resident bytes of this process; 0 if the system does not say.
inline int64_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  int64_t pages = 0, resident_pages = 0;
  file >> pages >> resident_pages;
  return resident_pages * static_cast<int64_t>(sysconf(_SC_PAGESIZE));
}

// Samples at equal distances over a run. Single-threaded.
class MemoryTrace {
 public:
  // Room for `samples` is taken now, so that the trace itself does not grow.
  explicit MemoryTrace(size_t samples) { samples_.reserve(samples); }

  // Samples beyond the room are not kept.
  void Add(int64_t bytes) {
    if (samples_.size() < samples_.capacity()) samples_.push_back(bytes);
  }
  size_t size() const { return samples_.size(); }
  // Median of the last quarter less that of the second: what fills in the first quarter (pools,
  // tables, the heap's lists) does not count, nor does a single step. REQUIRES: size() >= 4.
  int64_t GrowthBytes() const { return MedianOfQuarter(3) - MedianOfQuarter(1); }
  int64_t MedianOfQuarter(size_t quarter) const {
    const auto at = [&](size_t q) {
      return samples_.begin() + static_cast<std::ptrdiff_t>(samples_.size() * q / 4);
    };
    std::vector<int64_t> sorted(at(quarter), at(quarter + 1));
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }

 private:
  std::vector<int64_t> samples_;
};

}  // namespace kvist

#endif  // KVIST_TESTS_SUPPORT_RESIDENT_MEMORY_H_
