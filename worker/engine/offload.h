// The disk tier as the engine's loop uses it: blocks go out when their sequence gives them back,
// and come back before it is admitted again.
#ifndef KVIST_WORKER_ENGINE_OFFLOAD_H_
#define KVIST_WORKER_ENGINE_OFFLOAD_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "cache_manager/block_pool.h"
#include "cache_manager/tier_index.h"
#include "common/base/clock.h"
#include "worker/backend/backend.h"
#include "worker/engine/engine.h"
#include "worker/engine/live_request.h"
#include "worker/kv/tiers/disk_store.h"

namespace kvist::worker {

// Blocks that wait to be written, of all sequences: those of the longest chain. One more is not
// written.
inline constexpr size_t kMaxWaitingWrites = 65'536;

// Opens a store for the pools of a backend. Errors as DiskStore::Open.
absl::StatusOr<std::shared_ptr<DiskStore>> OpenDiskStore(const DiskStoreOptions& options,
                                                         const Backend& backend);

// What is measured of restoring and recomputing. 0: not yet.
struct RestoreRates {
  double bytes_per_second = 0;   // of the disk, checksums included
  double tokens_per_second = 0;  // of steps with prefill
};
// Whether to read blocks of so many bytes rather than compute so many tokens. While a rate is not
// known, yes: reading is what measures it.
bool RestoreIsCheaper(const RestoreRates& rates, int64_t bytes, int64_t tokens);

// Owns the tier's indices; copies blocks between the backend and the store's buffers between two
// steps, a few at a time. What goes wrong on the disk is counted and told to the log, and the block
// is a miss. Single-threaded: the engine's loop's. Invariants: offload.cc.
class Offload {
 public:
  using Pools = std::vector<std::unique_ptr<cache_manager::BlockPool>>;
  struct Sources {
    Backend* backend = nullptr;  // all outlive it
    Pools* pools = nullptr;
    cache_manager::EventLog* events = nullptr;
    const Clock* clock = nullptr;
  };
  // Takes over what the store found. REQUIRES: the store is of the backend's pools and nobody else
  // uses it.
  Offload(std::shared_ptr<DiskStore> store, const Sources& sources);

  const std::vector<std::unique_ptr<cache_manager::TierIndex>>& tiers() const { return tiers_; }

  // The named blocks that a sequence holds are to be written, if the disk lacks them.
  void WriteBack(const LiveRequest& live);
  // Whether the sequence is to wait because blocks of its prefix are being read. At most once
  // between two calls of WriteBack for it; not if recomputing is cheaper or `spare` blocks could
  // not be left in each pool. REQUIRES: it holds nothing.
  bool StartRestore(LiveRequest& live, int64_t spare);
  // The sequence ends: nothing refers to it any more.
  void Forget(LiveRequest& live);
  // Puts to their pools what was read, and gives the disk what waits. Between two steps. True:
  // there is more to do that needs no answer of the disk.
  bool Poll();
  // What a step computed.
  void CountStep(int64_t prefill_tokens, int64_t tokens, double seconds);
  // Polls until everything that waits is written or `most` has passed.
  void Flush(std::chrono::milliseconds most);

  const OffloadStats& stats() const { return stats_; }
  absl::Status CheckInvariants() const;

 private:
  // A block and its pool.
  struct Place {
    size_t pool = 0;
    cache_manager::BlockKey key;

    friend bool operator==(const Place&, const Place&) = default;
    template <typename H>
    friend H AbslHashValue(H state, const Place& place) {
      return H::combine(std::move(state), place.pool, place.key);
    }
  };
  struct Restore {
    uint64_t tag = 0;
    LiveRequest* live = nullptr;  // null: it ended
    std::vector<Place> blocks;    // to read, first ones first
    size_t next = 0;              // the first that was not asked for
    size_t reading = 0;
    bool abandoned = false;  // one could not be had: those behind it are of no use
  };

  void EndJob(DiskDone& done);
  void EndRead(DiskDone& done);
  // False: no room for it.
  bool PutIntoPool(const DiskJob& job);
  void PumpWipes();
  void PumpReads();
  bool PumpWrites();
  void EndRestoresThatAreThrough();
  void Tell(const DiskJob& job, const absl::Status& status);

  std::shared_ptr<DiskStore> store_;
  const Sources sources_;
  std::vector<std::unique_ptr<cache_manager::TierIndex>> tiers_;  // by pool
  std::vector<int32_t> free_buffers_;
  std::deque<Place> waiting_;
  absl::flat_hash_set<Place> unwritten_;
  std::list<Restore> restores_;
  uint64_t restores_begun_ = 0;
  int32_t writing_ = 0;  // buffers with writes
  size_t wiping_ = 0;
  uint64_t declined_ = 0;
  RestoreRates rates_;
  OffloadStats stats_;
  std::vector<DiskDone> done_;  // kept, so that an idle poll takes no memory
  bool told_ = false;
  MonotonicTime told_at_;
  uint64_t untold_ = 0;
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_ENGINE_OFFLOAD_H_
