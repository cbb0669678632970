// What happened to a worker's blocks, as plain values: the only thing that the mirror is built
// from.
#ifndef KVIST_CACHE_MANAGER_EVENTS_H_
#define KVIST_CACHE_MANAGER_EVENTS_H_

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <variant>

#include "absl/container/inlined_vector.h"
#include "cache_manager/block_key.h"
#include "common/base/ids.h"

namespace kvist::cache_manager {

enum class Tier : uint8_t { kDevice, kHost, kDisk };
enum class EvictionCause : uint8_t {
  kCapacity,
  kQuota,
  kRetentionEnded,
  kClosed,
  kDrained,
  kCommand
};
inline constexpr size_t kNumTiers = 3;
inline constexpr size_t kNumEvictionCauses = 6;
inline constexpr size_t kNumSessionPhases = 5;
enum class SessionPhase : uint8_t { kActive, kWaiting, kPaused, kIdle, kClosed };
std::string_view TierName(Tier tier);
std::string_view EvictionCauseName(EvictionCause cause);
std::string_view SessionPhaseName(SessionPhase phase);

// One pool of one worker: a layer group in a KV format. Index into the worker's list of pools
// (Hello carries it).
using PoolIndex = uint16_t;

// A full block got its name. `parent` is the scope's root for a first block.
struct BlockStored {
  PoolIndex pool = 0;
  BlockKey key;
  BlockKey parent;
  Tier tier = Tier::kDevice;
};
// A named block left a tier.
struct BlockEvicted {
  PoolIndex pool = 0;
  BlockKey key;
  Tier tier = Tier::kDevice;
  EvictionCause cause = EvictionCause::kCapacity;
};
// Most events have one: it takes no memory of its own.
using EventKeys = absl::InlinedVector<BlockKey, 1>;
// The session's chain in `pool` from block index `first_block` on is now `keys` (what was beyond is
// cut). A session keeps its chain when its turn ends: whether the blocks are still there is told by
// stored and evicted.
struct SessionHolds {
  SessionId session;
  TenantId tenant;
  PoolIndex pool = 0;
  uint32_t first_block = 0;
  EventKeys keys;
};
// The session's chains are gone in every pool (deleted, moved, or forgotten by the worker).
struct SessionReleased {
  SessionId session;
};
// Blocks of the session that have no name now: partial last blocks and reservations. Absolute
// counts.
struct SessionUnnamed {
  SessionId session;
  PoolIndex pool = 0;
  uint32_t partial_blocks = 0;
  uint32_t reserved_blocks = 0;
};
struct SessionPhaseChanged {
  SessionId session;
  SessionPhase phase = SessionPhase::kActive;
};

using Event = std::variant<BlockStored, BlockEvicted, SessionHolds, SessionReleased, SessionUnnamed,
                           SessionPhaseChanged>;

// Keys that the event carries beside its own: what makes one as large as thousands.
inline size_t KeyCount(const Event& event) {
  const auto* holds = std::get_if<SessionHolds>(&event);
  return holds == nullptr ? 0 : holds->keys.size();
}

// A step's load, sent with each batch and heartbeat.
struct WorkerLoad {
  uint32_t running_sequences = 0;
  uint32_t waiting_sequences = 0;
  uint64_t queued_prefill_tokens = 0;
  uint32_t max_sequences = 0;
  bool draining = false;
};

}  // namespace kvist::cache_manager

#endif  // KVIST_CACHE_MANAGER_EVENTS_H_
