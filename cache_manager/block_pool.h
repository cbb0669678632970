// One worker's blocks of one kind (a layer group in a KV format): who references them, which are
// named, which can be taken. Holds no KV data: the backend's arena does, under the same indices.
#ifndef KVIST_CACHE_MANAGER_BLOCK_POOL_H_
#define KVIST_CACHE_MANAGER_BLOCK_POOL_H_

#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cache_manager/block_index.h"
#include "cache_manager/block_key.h"
#include "cache_manager/events.h"
#include "cache_manager/eviction/lru.h"
#include "cache_manager/eviction/policy.h"

namespace kvist::cache_manager {

class BlockPool;
class EventLog;

// A counted reference to one block of a pool; gives it back when it goes. Move-only. Empty by
// default. REQUIRES: the pool outlives it. Single-threaded, as its pool.
class BlockRef {
 public:
  BlockRef() = default;
  BlockRef(BlockRef&& other) noexcept;
  BlockRef& operator=(BlockRef&& other) noexcept;
  ~BlockRef();

  bool empty() const { return pool_ == nullptr; }
  BlockIndex index() const { return index_; }
  // Another reference to the same block (which is shared from then on: nobody may write it).
  BlockRef Share() const;
  void Reset();

 private:
  friend class BlockPool;
  BlockRef(BlockPool* pool, BlockIndex index) : pool_(pool), index_(index) {}
  BlockPool* pool_ = nullptr;
  BlockIndex index_ = -1;
};

// Blocks promised to one sequence: those it holds and those set aside for it, which Allocate takes
// first. Ends the promise when it goes. Move-only. REQUIRES: the pool outlives it. Single-threaded,
// as its pool.
class Reservation {
 public:
  Reservation() = default;
  Reservation(Reservation&& other) noexcept;
  Reservation& operator=(Reservation&& other) noexcept;
  ~Reservation();
  int32_t promised() const { return promised_; }
  int32_t remaining() const { return remaining_; }  // set aside

 private:
  friend class BlockPool;
  Reservation(BlockPool* pool, int32_t promised, int32_t remaining)
      : pool_(pool), promised_(promised), remaining_(remaining) {}
  BlockPool* pool_ = nullptr;
  int32_t promised_ = 0;
  int32_t remaining_ = 0;
};

// What a sequence asks a pool to promise.
struct ReservationRequest {
  int32_t blocks = 0;  // the most it will hold at once
  int32_t held = 0;    // of them, those it holds already
  int32_t spare = 0;   // blocks that must stay available to others
};

// free: nobody's. reserved: promised to a sequence. active: referenced. cached: unreferenced and
// findable. moving: unreferenced and being copied to another tier or worker (nothing does that
// yet).
enum class BlockState : uint8_t { kFree, kReserved, kActive, kCached, kMoving };
inline constexpr size_t kNumBlockStates = 5;

// Counts by state; they add up to `total`. `reserved` are unreferenced blocks promised to
// sequences.
struct PoolCounts {
  int32_t total = 0, free = 0, reserved = 0, active = 0, cached = 0, moving = 0;
};

// A cached block whose first tokens agree with what a sequence needs next.
struct PartialMatch {
  BlockRef block;              // stays until it was copied; empty if nothing matched
  int32_t matched_tokens = 0;  // leading tokens that agree
};

// What the pool knows about one block. The keys are empty where there is none.
struct BlockFacts {
  BlockState state = BlockState::kFree;
  int32_t references = 0;
  BlockKey key;            // empty: not named
  BlockKey parent;         // of named and of kept partial blocks
  int32_t num_tokens = 0;  // findable tokens: block_tokens if named, fewer if kept partial, else 0
};

// Owns the states of its blocks; takes all memory at construction. Every method is O(log blocks)
// unless it says otherwise. Single-threaded. Invariants: block_pool.cc.
class BlockPool {
 public:
  struct Options {
    PoolIndex id = 0;
    int32_t num_blocks = 0;
    int32_t block_tokens = 16;
    // Promises take at most this share of the pool, held blocks included: the rest is for those who
    // were promised nothing.
    double max_reserved_share = 0.5;
    // Full-attention groups: a block is of use only with all its ancestors, so victims are leaves
    // (while there is an unreferenced one). Windowed groups: false.
    bool evict_leaves_only = true;
    EvictionPolicyFactory make_policy = &MakeLruPolicy;
  };

  // Keeps a pointer to `log`, which gets every event and must outlive the pool.
  // REQUIRES: num_blocks > 0, block_tokens > 0, max_reserved_share in [0, 1], the log has digests
  // for `id`.
  BlockPool(const Options& options, EventLog* log);
  // REQUIRES: every BlockRef and Reservation is gone.
  ~BlockPool();
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  // An unshared, unnamed block to write: from `reservation` if given and not used up, else a free
  // one, else by evicting a cached one. RESOURCE_EXHAUSTED if every block is referenced or
  // promised.
  absl::StatusOr<BlockRef> Allocate(Reservation* reservation = nullptr);
  // Blocks that Allocate could hand out now without a reservation.
  int32_t Available() const;
  // Sets the blocks that are not held aside at once, evicting cached ones if need be: a promise to
  // evict later could be broken by hits. RESOURCE_EXHAUSTED (and nothing is evicted) if they are
  // not there or all promises would pass their share. REQUIRES: 0 <= held <= blocks, 0 <= spare.
  absl::StatusOr<Reservation> Reserve(const ReservationRequest& request);
  // The holder gave blocks back and will need others: sets more aside until `blocks` are, as far as
  // there are unreferenced ones. REQUIRES: a reservation of this pool, blocks <= its promised().
  void Refill(Reservation* reservation, int32_t blocks);
  // The most blocks that all promises together may have. Constant.
  int32_t MaxPromised() const;

  // Names a full block. If the key exists already, gives `block` back and returns a reference to
  // the existing one (adopt it); else returns `block`. Kept partial blocks that it covers go, if
  // unreferenced. REQUIRES: tokens.size() == block_tokens; `block` unshared and unnamed; neither
  // key empty.
  BlockRef Commit(BlockRef block, const BlockKey& parent, const BlockKey& key,
                  std::span<const int32_t> tokens);
  // Keeps a last, partial block findable by FindPartial (instead of freeing it). It has no key,
  // only copies of it are ever written, and it is evicted like a leaf. If another child of `parent`
  // has these tokens already, the block is freed; unreferenced partial blocks that it covers go.
  // REQUIRES: 0 < tokens.size() < block_tokens; `block` unshared and unnamed.
  void KeepPartial(BlockRef block, const BlockKey& parent, std::span<const int32_t> tokens);

  // A reference to the block of that name, or empty. Counts as a use.
  BlockRef Find(const BlockKey& key);
  bool Contains(const BlockKey& key) const;
  // The child of `parent` (named or kept partial) that agrees with most of the leading `tokens`;
  // ties: lowest index. Looks at the newest kMaxChildrenLookedAt children. Counts as a use.
  PartialMatch FindPartial(const BlockKey& parent, std::span<const int32_t> tokens);

  // Evicts the named block if it is unreferenced (and, where leaves only, childless). Returns
  // whether it did.
  bool Evict(const BlockKey& key, EvictionCause cause);
  // Evicts the unreferenced partial children of `parent`, which keep it from being childless. Looks
  // at the newest kMaxChildrenLookedAt children.
  void EvictPartials(const BlockKey& parent, EvictionCause cause);
  // Evicts up to `blocks` unreferenced ones in the policy's order; returns how many.
  int32_t EvictSome(int32_t blocks, EvictionCause cause);

  PoolCounts Counts() const;
  // Evictions by EvictionCause since construction, partial blocks included.
  const std::array<uint64_t, kNumEvictionCauses>& evictions() const;
  // REQUIRES: 0 <= block < num_blocks.
  BlockFacts Facts(BlockIndex block) const;
  // The tokens of a findable block (BlockFacts::num_tokens of them); valid while it is.
  // REQUIRES: 0 <= block < num_blocks.
  std::span<const int32_t> Tokens(BlockIndex block) const;
  const Options& options() const;
  // What the pool itself takes of the heap: its blocks' states, names and tokens. Constant.
  int64_t memory_bytes() const;
  // INTERNAL with a description of the first violated invariant (block_pool.cc). O(blocks).
  // `elsewhere`: what other tiers have in the log's placement digest of this pool.
  absl::Status CheckInvariants(uint64_t elsewhere = 0) const;

 private:
  friend class BlockRef;
  friend class Reservation;
  struct State;
  void Reference(BlockIndex block);
  void Unreference(BlockIndex block);
  void EndPromise(int32_t promised, int32_t remaining);
  std::unique_ptr<State> state_;
};

}  // namespace kvist::cache_manager

#endif  // KVIST_CACHE_MANAGER_BLOCK_POOL_H_
