// A worker's whole state as events that rebuild it from nothing, copied in slices between the
// engine's steps.
#ifndef KVIST_CACHE_MANAGER_SNAPSHOT_H_
#define KVIST_CACHE_MANAGER_SNAPSHOT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cache_manager/block_pool.h"
#include "cache_manager/event_log.h"
#include "cache_manager/events.h"
#include "cache_manager/session_table.h"
#include "cache_manager/tier_index.h"

namespace kvist::cache_manager {

using Pools = std::span<const std::unique_ptr<BlockPool>>;
// Slower tiers, in any order.
using Tiers = std::span<const std::unique_ptr<TierIndex>>;

// The state may change between slices. Whoever applies all slices to an empty mirror and then
// replays the events after base_seq() has the state after the last of them: worker_mirror.cc says
// why. Events up to the last slice's end_seq must be replayed (ApplyMode::kReplay); those after it
// follow in order. Reads only. REQUIRES: the sources outlive it. Single-threaded, as
// they are.
class SnapshotBuilder {
 public:
  struct Sources {
    Pools pools;
    const SessionTable* sessions = nullptr;
    const EventLog* log = nullptr;
    Tiers tiers;
  };
  struct Slice {
    std::vector<Event> events;
    uint64_t end_seq = 0;  // the newest event when the slice was read
    bool last = false;
  };

  explicit SnapshotBuilder(const Sources& sources);

  // The newest event when the builder was made: the snapshot has every event up to it.
  uint64_t base_seq() const { return base_seq_; }
  // Looks at about `max_items` block slots, session parts and keys. REQUIRES: 0 < max_items <=
  // kMaxEventsPerBatch; the last slice was not returned yet.
  Slice NextSlice(size_t max_items);

 private:
  bool ReadBlock(std::vector<Event>& out);
  bool ReadTierBlock(std::vector<Event>& out);
  size_t ReadSessionPart(std::vector<Event>& out, size_t max_keys);
  void NextSession();

  const Sources sources_;
  const uint64_t base_seq_;
  size_t pool_ = 0;  // of the next block slot
  BlockIndex block_ = 0;
  size_t tier_ = 0;  // of the next slot
  int32_t tier_slot_ = 0;
  size_t slot_ = 0;  // of the next session part
  // Even: the chain in pool part_ / 2 from key_ on. Odd: its unnamed counts. After all pools: the
  // phase.
  size_t part_ = 0;
  size_t key_ = 0;
  SessionId session_;  // whose parts before part_ were read
};

}  // namespace kvist::cache_manager

#endif  // KVIST_CACHE_MANAGER_SNAPSHOT_H_
