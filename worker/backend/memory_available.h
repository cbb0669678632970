// How much memory this process may still take.
#ifndef KVIST_WORKER_BACKEND_MEMORY_AVAILABLE_H_
#define KVIST_WORKER_BACKEND_MEMORY_AVAILABLE_H_

#include <cstdint>

#include "absl/status/statusor.h"

namespace kvist::worker {

// The least of what the machine has available (/proc/meminfo) and what the control group has left.
// INTERNAL where the first cannot be read.
absl::StatusOr<int64_t> MemoryAvailableBytes();

}  // namespace kvist::worker

#endif  // KVIST_WORKER_BACKEND_MEMORY_AVAILABLE_H_
