// How much of the heap containers hold, for sums of memory.
#ifndef KVIST_COMMON_BASE_CONTAINER_BYTES_H_
#define KVIST_COMMON_BASE_CONTAINER_BYTES_H_

#include <cstdint>
#include <vector>

namespace kvist {

// What a vector has taken.
template <typename T>
int64_t HeapBytes(const std::vector<T>& vector) {
  return static_cast<int64_t>(vector.capacity() * sizeof(T));
}

// What an absl flat map or set has taken: a slot and a control byte for each place, and one group
// of control bytes.
template <typename Map>
int64_t FlatHashBytes(const Map& map) {
  return static_cast<int64_t>(map.capacity() * (sizeof(typename Map::value_type) + 1) + 16);
}

}  // namespace kvist

#endif  // KVIST_COMMON_BASE_CONTAINER_BYTES_H_
