// Which named blocks of one pool a slower tier has, in which slot of it, and which slot is taken
// next. Holds no KV data.
#ifndef KVIST_CACHE_MANAGER_TIER_INDEX_H_
#define KVIST_CACHE_MANAGER_TIER_INDEX_H_

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "cache_manager/block_key.h"
#include "cache_manager/events.h"
#include "cache_manager/eviction/policy.h"

namespace kvist::cache_manager {

class EventLog;

// A stored block of a tier.
struct TierBlock {
  BlockKey key;
  BlockKey parent;
};

// A slot is free, being written (nobody finds it), or stored (found, and taken for another block
// when it is the one used longest ago and none is free). Tells the log of stored and evicted
// blocks. Takes all memory at construction. Single-threaded. Invariants:
// tier_index.cc.
class TierIndex {
 public:
  struct Options {
    PoolIndex pool = 0;
    Tier tier = Tier::kDisk;
    int32_t num_slots = 0;
  };
  // A stored block that was found at start.
  struct Found {
    int32_t slot = 0;
    TierBlock block;
  };
  // Keeps a pointer to `log`, which must outlive it. `found` is in order of use; of two with one
  // key or slot the later one holds. REQUIRES: 0 < num_slots <= kMaxBlocksPerPool; the slots are
  // below it.
  TierIndex(const Options& options, const std::vector<Found>& found, EventLog* log);

  // A slot to write the block to, evicting another if need be; nullopt if the key is stored or
  // being written (its use is counted), or every slot is being written. REQUIRES: no key is empty.
  std::optional<int32_t> Begin(const TierBlock& block);
  // The block was written: it is stored, unless it was evicted meanwhile.
  // REQUIRES: the slot is being written.
  void Finish(int32_t slot);
  // It was not: the slot is free. REQUIRES: the slot is being written.
  void Abandon(int32_t slot);

  // The slot of a stored block. Counts as a use.
  std::optional<int32_t> Find(const BlockKey& key);
  bool Contains(const BlockKey& key) const;
  // Drops a block, also one that is being written. Its slot is to be wiped. Returns whether it was
  // there.
  bool Evict(const BlockKey& key, EvictionCause cause);
  // A slot of a block that Evict dropped and that no other block was given; it is forgotten here.
  std::optional<int32_t> TakeWipe();
  size_t wipes() const { return wipes_.size(); }  // that can be taken

  int32_t num_slots() const { return options_.num_slots; }
  int32_t stored() const { return stored_; }
  // The stored block in a slot; nullopt: none. REQUIRES: 0 <= slot < num_slots().
  std::optional<TierBlock> At(int32_t slot) const;
  const Options& options() const { return options_; }
  // By EvictionCause, since construction.
  const std::array<uint64_t, kNumEvictionCauses>& evictions() const { return evictions_; }
  // What the stored blocks have in the log's placement digest of the pool.
  uint64_t placement() const { return placement_; }
  // Of the heap. Constant.
  int64_t memory_bytes() const;
  // INTERNAL with a description of the first violated invariant. O(slots).
  absl::Status CheckInvariants() const;

 private:
  enum class State : uint8_t { kFree, kWriting, kDropped, kStored };
  struct Slot {
    State state = State::kFree;
    bool wipe = false;
    TierBlock block;
    uint64_t last_use = 0;
  };

  Slot& at(int32_t slot) { return slots_[static_cast<size_t>(slot)]; }
  void Store(int32_t slot);
  void Remove(int32_t slot, EvictionCause cause);
  void Free(int32_t slot);
  void FreeToWipe(int32_t slot);
  void Use(int32_t slot);

  const Options options_;
  EventLog* const log_;
  std::vector<Slot> slots_;
  std::vector<int32_t> free_;  // taken from the back
  absl::flat_hash_map<BlockKey, int32_t> by_key_;
  std::unique_ptr<EvictionPolicy> victims_;
  std::vector<int32_t> wipes_;
  uint64_t uses_ = 0;
  int32_t stored_ = 0;
  std::array<uint64_t, kNumEvictionCauses> evictions_{};
  uint64_t placement_ = 0;
};

}  // namespace kvist::cache_manager

#endif  // KVIST_CACHE_MANAGER_TIER_INDEX_H_
