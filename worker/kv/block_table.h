// The blocks of one sequence over all layer groups: what the prefix cache gave, what was allocated,
// what was named and what the windows have passed.
#ifndef KVIST_WORKER_KV_BLOCK_TABLE_H_
#define KVIST_WORKER_KV_BLOCK_TABLE_H_

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "cache_manager/attention_span.h"
#include "cache_manager/block_key.h"
#include "cache_manager/block_pool.h"
#include "worker/kernels/kernel_table.h"

namespace kvist::worker {

// One layer group's pool in one KV format.
struct CacheGroup {
  cache_manager::BlockPool* pool = nullptr;
  int32_t backend_pool = 0;  // its index in Backend::pools()
  int64_t window = 0;        // the layers' own: positions a query sees, itself included; 0: all
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
  // The most tokens that a sequence of that span can store, alone in the pools. With a window in
  // every group, and pools that hold the windows, there is no limit (the largest int64_t).
  int64_t CapacityTokens(const cache_manager::AttentionSpan& attention) const;
  // The most that it can be promised (SequenceBlocks::Reserve) while nobody else has a promise.
  int64_t PromisableTokens(const cache_manager::AttentionSpan& attention) const;

 private:
  friend class SequenceBlocks;
  // With a span as SpanInLayers gives it for a group:
  // Leading logical blocks that hold sinks.
  int64_t SinkBlocks(const cache_manager::AttentionSpan& span) const;
  // The first logical block behind the sinks that a sequence with `stored` tokens still needs: with
  // a window, the blocks of the last min(stored, window) tokens.
  int64_t FirstNeeded(const cache_manager::AttentionSpan& span, int64_t stored) const;
  // The most blocks that are needed at once to grow token by token to `total` tokens.
  int64_t MostHeld(const cache_manager::AttentionSpan& span, int64_t total) const;
  // The most tokens of such a sequence if each pool has as many blocks as `blocks_of` says.
  int64_t TokensWithin(const cache_manager::AttentionSpan& attention,
                       int32_t (*blocks_of)(const cache_manager::BlockPool& pool)) const;

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

struct SequenceBlocksOptions {
  cache_manager::BlockKey root;  // names the scope (cache_manager::RootKey), the span included
  Sharing sharing = Sharing::kShared;
  cache_manager::AttentionSpan attention;
  int64_t max_tokens = 0;  // memory for so many is taken at once: growing allocates nothing
};

// Owns references to the blocks. The tokens are the caller's: every call gets all of them, and
// those already seen must not have changed. Invariants: block_table.cc. Single-threaded. Movable.
class SequenceBlocks {
 public:
  // REQUIRES: cache outlives this.
  SequenceBlocks(KvCache* cache, const SequenceBlocksOptions& options);

  // Takes references to the longest prefix of `tokens` that every group has in whole blocks, at
  // most `limit` tokens: full groups all of it, windowed ones its sinks and last min(length,
  // window) tokens. Returns its length, which is stored from then on. REQUIRES: nothing is held.
  int64_t MatchBlocks(std::span<const int32_t> tokens, int64_t limit);
  // A block that the pools lack, for the sequence's prefix.
  struct AbsentBlock {
    size_t group = 0;
    cache_manager::BlockKey key;
  };
  // What MatchBlocks would return if the pools also had the blocks that `elsewhere` says are
  // elsewhere; `absent` gets those that it would take from there, first blocks first. Takes
  // nothing. REQUIRES: nothing is held.
  int64_t MatchWith(
      std::span<const int32_t> tokens, int64_t limit,
      absl::FunctionRef<bool(size_t group, const cache_manager::BlockKey& key)> elsewhere,
      std::vector<AbsentBlock>* absent);
  // Continues a match inside a block: copies the block that agrees with most of the next tokens in
  // every group. Returns the tokens gained; 0 also where there is no block to copy to. REQUIRES:
  // only matched blocks are held.
  int64_t MatchPartial(std::span<const int32_t> tokens, int64_t limit);
  // The same, but the block that is copied is the one at that place of `other`, which may go on
  // writing behind the tokens that were copied. REQUIRES: both are of one cache and span, and their
  // tokens agree before `limit`; only matched blocks are held.
  int64_t MatchPartialOf(const SequenceBlocks& other, int64_t limit);
  // Takes references to all blocks that `other` has written: its tokens are stored here from then
  // on. A partial last block belongs to both until one of them writes: that one copies it (GrowTo).
  // REQUIRES: nothing is held; neither is scratch; both are of one cache, root and span.
  void Fork(const SequenceBlocks& other);

  // Whether the pools have the blocks for `total` tokens now, with `spare` blocks left in each.
  bool Fits(int64_t total, int64_t spare) const;
  // Has every pool promise the blocks for `total` tokens, those held included, with `spare` blocks
  // left in each. Blocks that a window gives up come back to the promise, so that growing token by
  // token to `total` always finds one: at once, unless others still use all blocks that were given
  // up. False, and nothing is promised, if the pools cannot. The promise ends with Release or
  // Discard. A promise covers no block that another writes to: a partial block that is shared is
  // copied at once. REQUIRES: none stands; only matched or forked blocks are held.
  bool Reserve(int64_t total, int64_t spare);
  // Allocates blocks to cover up to `total` tokens, in all groups or in none; promised ones first.
  // Copies a partial last block that is shared before anything may be written. Returns how many are
  // covered now: `total`, or fewer if the pools have no more (the stored ones if there is none for
  // the copy).
  int64_t GrowTo(int64_t total);
  // The same for tokens behind the next one that may turn out not to be the sequence's: one with a
  // promise gets no more than was promised, one without leaves `spare` blocks in each pool for
  // others. REQUIRES: the next token is covered.
  int64_t GrowForDrafts(int64_t total, int64_t spare);
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
  // How many of them there may be before growing takes memory.
  size_t named_capacity() const { return keys_.capacity(); }
  // Held blocks of a group that have no name.
  int64_t UnnamedBlocks(size_t group) const {
    return static_cast<int64_t>(groups_[group].table.size()) - named_;
  }
  // Blocks of a group that are set aside for this sequence.
  int64_t ReservedBlocks(size_t group) const { return groups_[group].reservation.remaining(); }
  // Whether others refer to the partial last block, so that it may not be written.
  bool SharesTail() const;
  // Stored tokens that stay stored if the blocks that nobody else refers to are given back and
  // taken by others: those before the first such block that is not `elsewhere` either.
  int64_t KeptWithout(
      absl::FunctionRef<bool(size_t group, const cache_manager::BlockKey& key)> elsewhere) const;
  // Whether giving all back leaves no pool without a block to hand out.
  bool FreesWhatIsShort() const;
  // INTERNAL naming the first violated invariant (block_table.cc).
  absl::Status CheckInvariants() const;

 private:
  struct Group {
    std::vector<cache_manager::BlockRef> refs;  // by logical block; empty where given up
    std::vector<int32_t> table;                 // their indices, or -1
    cache_manager::AttentionSpan span;          // in the group's layers
    int64_t sink_blocks = 0;
    int64_t first_held = 0;  // of those behind the sinks
    cache_manager::Reservation reservation;

    bool Holds(int64_t block) const { return block < sink_blocks || block >= first_held; }
    int64_t Held() const {
      const int64_t given_up = first_held > sink_blocks ? first_held - sink_blocks : 0;
      return static_cast<int64_t>(table.size()) - given_up;
    }
  };

  // Whether the sequence has that block of the group and nobody else refers to it.
  bool IsOnlyHolder(size_t group, size_t block) const;
  // Keys of the first `blocks` full blocks of `tokens`.
  void ComputeKeys(std::span<const int32_t> tokens, int64_t blocks);
  const cache_manager::BlockKey& ParentOf(int64_t block) const;
  // The most leading blocks, of the first `blocks`, that every group can take of what is present.
  int64_t LongestMatch(int64_t blocks,
                       absl::FunctionRef<bool(size_t group, int64_t block)> present) const;
  bool InPool(size_t group, int64_t block) const;
  void Append(size_t group, cache_manager::BlockRef ref);
  // Appends a copy of each of these blocks, one per group. False, and nothing is held, if a pool
  // has none to copy to.
  bool AppendCopies(std::span<const int32_t> from);
  // A partial last block that is shared becomes an own copy, in all groups or in none (false).
  bool OwnTail();
  // What the windows gave up comes back to the promises, as far as the pools have it.
  void RefillPromises();

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
