// How a stage's work is cut into items.
#ifndef KVIST_WORKER_BACKEND_WORK_SHARES_H_
#define KVIST_WORKER_BACKEND_WORK_SHARES_H_

#include <algorithm>
#include <cstdint>

#include "common/base/int_math.h"

namespace kvist::worker {

// Units 0 .. units-1 in ascending items: first `large` items of `large_units`, then items of
// `small_units`, the last perhaps shorter.
struct WorkShares {
  struct Range {
    int64_t first = 0;
    int64_t count = 0;
  };

  int64_t units = 0;
  int64_t large = 0;
  int64_t large_units = 0;
  int64_t small_units = 1;

  int64_t items() const { return large + CeilDiv(units - large * large_units, small_units); }
  Range Of(int64_t item) const {
    if (item < large) return {item * large_units, large_units};
    const int64_t first = large * large_units + (item - large) * small_units;
    return {first, std::min(small_units, units - first)};
  }
};

// Items of `small_units` each. REQUIRES: units >= 0, small_units > 0.
inline WorkShares EqualShares(int64_t units, int64_t small_units) {
  return {.units = units, .small_units = small_units};
}

// A long run of memory for each member, because one that is read in pieces by turns comes at little
// more than one member's speed, and small items of the last sixteenth, so that members finish
// together. REQUIRES: units >= 0, members > 0, small_units > 0.
inline WorkShares StreamShares(int64_t units, int64_t members, int64_t small_units) {
  const int64_t large_units = units * 15 / 16 / members;
  if (large_units <= small_units) return EqualShares(units, small_units);
  return {.units = units, .large = members, .large_units = large_units, .small_units = small_units};
}

}  // namespace kvist::worker

#endif  // KVIST_WORKER_BACKEND_WORK_SHARES_H_
