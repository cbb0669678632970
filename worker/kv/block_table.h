// The blocks of one sequence over all layer groups: what the prefix cache gave, what was allocated,
// what was named and what the windows have passed.
#ifndef KVIST_WORKER_KV_BLOCK_TABLE_H_
#define KVIST_WORKER_KV_BLOCK_TABLE_H_

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "cache_manager/block_key.h"
#include "cache_manager/block_pool.h"
#include "worker/kernels/kernel_table.h"

namespace kvist::worker {

// One layer group's pool in one KV format.
struct CacheGroup {
  cache_manager::BlockPool* pool = nullptr;
  int32_t backend_pool = 0;  // its index in Backend::pools()
  int64_t window = 0;        // positions a query sees, itself included; 0: all
};

// The pools of one KV format, one per layer group, and their arithmetic. Owns nothing.
// REQUIRES: the pools outlive it; all have the same block_tokens. Single-threaded, as the pools.
class KvCache {
 public:
  // Copies the KV of block `from` to block `to` of a backend pool.
  using CopyBlock = std::function<void(int32_t pool, int32_t from, int32_t to)>;

  KvCache(KvFormat format, std::vector<CacheGroup> groups, CopyBlock copy_block);

  KvFormat format() const { return format_; }
  int32_t block_tokens() const { return block_tokens_; }
  const std::vector<CacheGroup>& groups() const { return groups_; }
  // The most tokens that a sequence alone in the pools can store.
  int64_t CapacityTokens() const;

 private:
  friend class SequenceBlocks;
  // The first logical block of `group` that a sequence with `stored` tokens still needs: a windowed
  // group keeps the blocks of the last min(stored, window) tokens.
  int64_t FirstNeeded(const CacheGroup& group, int64_t stored) const;
  // The most blocks that a windowed group needs at once when it grows token by token; of a full
  // group: without limit.
  int64_t MostHeld(const CacheGroup& group) const;

  KvFormat format_;
  int32_t block_tokens_;
  std::vector<CacheGroup> groups_;
  CopyBlock copy_block_;
};

// What becomes of a sequence's named blocks and of its written, partial last one.
enum class Sharing : uint8_t {
  kShared,   // full blocks are named and found by others; the partial one can be copied by others
  kScratch,  // nothing is matched, named or kept
};

// Owns references to the blocks. The tokens are the caller's: every call gets all of them, and
// those already seen must not have changed. Invariants: block_table.cc. Single-threaded. Movable.
class SequenceBlocks {
 public:
  // `root` names the scope (cache_manager::RootKey). Takes memory for `max_tokens` tokens, so that
  // growing allocates nothing. REQUIRES: cache outlives this.
  SequenceBlocks(KvCache* cache, const cache_manager::BlockKey& root, Sharing sharing,
                 int64_t max_tokens);

  // Takes references to the longest prefix of `tokens` that every group has in whole blocks, at
  // most `limit` tokens: full groups all of it, windowed ones its last min(length, window) tokens.
  // Returns its length, which is stored from then on. REQUIRES: nothing is held.
  int64_t MatchBlocks(std::span<const int32_t> tokens, int64_t limit);
  // Continues a match inside a block: copies the block that agrees with most of the next tokens in
  // every group. Returns the tokens gained; 0 also where there is no block to copy to. REQUIRES:
  // only matched blocks are held.
  int64_t MatchPartial(std::span<const int32_t> tokens, int64_t limit);

  // Whether the pools have the blocks for `total` tokens now, with `spare` blocks left in each.
  bool Fits(int64_t total, int64_t spare) const;
  // Allocates blocks to cover up to `total` tokens, in all groups or in none. Returns how many are
  // covered now: `total`, or fewer if the pools have no more.
  int64_t GrowTo(int64_t total);
  // The KV of all tokens before `total` is in the blocks: names those that are full (adopting
  // blocks of that name that exist) and gives up those behind the windows. REQUIRES:
  // stored_tokens() <= total <= covered.
  void MarkWritten(std::span<const int32_t> tokens, int64_t total);
  // Lets go of all blocks. Named ones stay cached; of a shared sequence so does the last, partial
  // one. Nothing is stored after.
  void Release(std::span<const int32_t> tokens);
  // As Release, but what has no name is freed: after a failed step.
  void Discard();

  int64_t stored_tokens() const { return stored_; }
  // The physical block of each logical one of a group; -1 where it was given up or never taken.
  std::span<const int32_t> table(size_t group) const { return groups_[group].table; }
  // Names of the leading full blocks, the same in every group (whether or not a windowed group
  // still holds them).
  std::span<const cache_manager::BlockKey> named() const {
    return std::span(keys_).first(static_cast<size_t>(named_));
  }
  // Held blocks of a group that have no name.
  int64_t UnnamedBlocks(size_t group) const {
    return static_cast<int64_t>(groups_[group].table.size()) - named_;
  }
  // INTERNAL naming the first violated invariant (block_table.cc).
  absl::Status CheckInvariants() const;

 private:
  struct Group {
    std::vector<cache_manager::BlockRef> refs;  // by logical block; empty where given up
    std::vector<int32_t> table;                 // their indices, or -1
    int64_t first_held = 0;
  };

  // Keys of the first `blocks` full blocks of `tokens`.
  void ComputeKeys(std::span<const int32_t> tokens, int64_t blocks);
  const cache_manager::BlockKey& ParentOf(int64_t block) const;
  int64_t LongestMatch(int64_t blocks) const;
  void Append(size_t group, cache_manager::BlockRef ref);

  KvCache* cache_;
  cache_manager::BlockKey root_;
  Sharing sharing_;
  std::vector<Group> groups_;                  // as KvCache::groups()
  std::vector<cache_manager::BlockKey> keys_;  // computed once per block, kept when blocks go
  int64_t named_ = 0;                          // leading blocks that have their name
  int64_t stored_ = 0;
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_KV_BLOCK_TABLE_H_
