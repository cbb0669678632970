// The manager's picture of one worker's pools and sessions, built from events alone.
#ifndef KVIST_CACHE_MANAGER_WORKER_MIRROR_H_
#define KVIST_CACHE_MANAGER_WORKER_MIRROR_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "cache_manager/digest.h"
#include "cache_manager/events.h"
#include "cache_manager/worker_info.h"

namespace kvist::cache_manager {

// A key of one pool that is stored, or in a session's chain, or both. 28 bytes beside the key.
struct MirrorBlock {
  BlockKey parent;              // empty if it was never seen stored
  uint32_t holders = 0;         // chains of sessions that have it
  uint32_t active_holders = 0;  // those of sessions in phase active
  uint8_t tiers = 0;            // bit i: stored in Tier(i)

  bool stored() const { return tiers != 0; }
  bool in_pool() const { return (tiers & 1) != 0; }
};

// What one session holds in one pool.
struct MirrorHolding {
  std::vector<BlockKey> keys;
  uint32_t partial_blocks = 0;
  uint32_t reserved_blocks = 0;
};

struct MirrorSession {
  TenantId tenant;
  SessionPhase phase = SessionPhase::kActive;
  std::vector<MirrorHolding> pools;
};

// Sums over one pool, kept with every event.
struct MirrorPoolCounts {
  std::array<uint64_t, kNumTiers> stored{};  // a block in two tiers counts in both
  uint64_t active = 0;                       // in the pool, in a chain of an active session
  uint64_t partial = 0, reserved = 0;        // without names, over all sessions
  std::array<uint64_t, kNumEvictionCauses> evictions{};
};

// How an event relates to the picture. In order: each event describes a change of exactly this
// state, and anything else is drift. Replay: the picture was copied while the event happened, and
// may show it already, or a later one.
enum class ApplyMode : uint8_t { kInOrder, kReplay };

// Owns its tables; bounded by the worker's own numbers and limits.h. Single-threaded.
class WorkerMirror {
 public:
  explicit WorkerMirror(const WorkerInfo& info);

  // Changes the picture as `event` says. FAILED_PRECONDITION: the event contradicts the picture (in
  // order only): it drifted, and must be made anew. INVALID_ARGUMENT: no honest worker sends this.
  // On error the picture may have changed in part.
  absl::Status Apply(const Event& event, ApplyMode mode);
  // Takes over the counts of evictions of the mirror that this one replaces.
  void AddEvictionCounts(const WorkerMirror& replaced);

  size_t num_pools() const { return pools_.size(); }
  const PoolDigest& digest(PoolIndex pool) const { return pools_[pool].digest; }
  const MirrorPoolCounts& counts(PoolIndex pool) const { return pools_[pool].counts; }
  using Blocks = absl::flat_hash_map<BlockKey, MirrorBlock>;
  using Sessions = absl::flat_hash_map<SessionId, MirrorSession>;
  const Blocks& blocks(PoolIndex pool) const { return pools_[pool].blocks; }
  const Sessions& sessions() const { return sessions_; }

  // INTERNAL naming the first count or digest that differs from a recount. O(blocks + chains).
  absl::Status CheckInvariants() const;

 private:
  struct Pool {
    Blocks blocks;
    MirrorPoolCounts counts;
    PoolDigest digest;
    uint64_t max_stored = 0;
  };

  absl::Status ApplyOne(const BlockStored& event, ApplyMode mode);
  absl::Status ApplyOne(const BlockEvicted& event, ApplyMode mode);
  absl::Status ApplyOne(const SessionHolds& event, ApplyMode mode);
  absl::Status ApplyOne(const SessionReleased& event, ApplyMode mode);
  absl::Status ApplyOne(const SessionUnnamed& event, ApplyMode mode);
  absl::Status ApplyOne(const SessionPhaseChanged& event, ApplyMode mode);
  absl::Status CheckPool(PoolIndex pool) const;

  // Runs `change` on the block of `key` (made if need be) and keeps the pool's counts and digest. A
  // block that is neither stored nor held afterwards goes.
  template <typename Change>
  static void ChangeBlock(Pool& pool, const BlockKey& key, Change change);
  void Hold(Pool& pool, const BlockKey& key, bool active);
  void Unhold(Pool& pool, const BlockKey& key, bool active);
  static uint64_t HashOf(const SessionId& session, const MirrorHolding& holding);

  std::vector<Pool> pools_;
  Sessions sessions_;
  size_t chain_keys_ = 0;  // in all chains
};

}  // namespace kvist::cache_manager

#endif  // KVIST_CACHE_MANAGER_WORKER_MIRROR_H_
