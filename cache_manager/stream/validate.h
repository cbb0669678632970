// Bounds of every message of the stream, checked before anything else looks at it.
#ifndef KVIST_CACHE_MANAGER_STREAM_VALIDATE_H_
#define KVIST_CACHE_MANAGER_STREAM_VALIDATE_H_

#include <cstddef>

#include "absl/status/status.h"
#include "cache_manager/stream/messages.h"

namespace kvist::cache_manager {

// All: INVALID_ARGUMENT with the field named. What depends on the receiver's state is not checked
// here.
absl::Status Validate(const Hello& hello);
absl::Status Validate(const EventBatch& batch, size_t num_pools);
absl::Status Validate(const Heartbeat& heartbeat, size_t num_pools);
absl::Status Validate(const SnapshotChunk& chunk, size_t num_pools);
absl::Status Validate(const CommandOutcome& outcome);
absl::Status Validate(const EvictCommand& command);
absl::Status Validate(const ForkCommand& command);

}  // namespace kvist::cache_manager

#endif  // KVIST_CACHE_MANAGER_STREAM_VALIDATE_H_
