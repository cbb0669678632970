// Which blocks of a pool continue which: names to blocks, parents to children.
#ifndef KVIST_CACHE_MANAGER_PREFIX_INDEX_H_
#define KVIST_CACHE_MANAGER_PREFIX_INDEX_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "cache_manager/block_index.h"
#include "cache_manager/block_key.h"

namespace kvist::cache_manager {

// Named blocks by key, and for each parent key its children: named ones and partial ones (no key,
// fewer tokens). A child does not need its parent to be here. Owns the blocks' tokens; takes all
// memory at construction. Every method is O(1) unless it says otherwise. Single-threaded.
// Invariants: prefix_index.cc.
class PrefixIndex {
 public:
  struct Shape {
    int32_t num_blocks = 0;
    int32_t block_tokens = 0;
  };
  // What a block is in the index. An empty key: a partial block.
  struct Entry {
    BlockKey key;
    BlockKey parent;
    int32_t num_tokens = 0;                         // 0: not in the index
    BlockIndex newer = kNoBlock, older = kNoBlock;  // siblings by time of insertion
  };
  struct Agreement {
    BlockIndex block = kNoBlock;
    int32_t tokens = 0;
  };

  explicit PrefixIndex(const Shape& shape);

  // Adds a child of `parent`. REQUIRES: `block` is not in the index, `key` is empty or names no
  // block here, 0 < tokens.size() <= block_tokens.
  void Insert(BlockIndex block, const BlockKey& parent, const BlockKey& key,
              std::span<const int32_t> tokens);
  // REQUIRES: `block` is in the index.
  void Erase(BlockIndex block);

  // The block of that name, or kNoBlock.
  BlockIndex Find(const BlockKey& key) const;
  // False for the empty key.
  bool HasChildren(const BlockKey& parent) const;
  // The newest child of `parent`, or kNoBlock; older ones by entry().older.
  BlockIndex NewestChild(const BlockKey& parent) const;
  // The child of `parent` that agrees with most leading `tokens` (at least one); ties: the lowest
  // index. Looks at the newest kMaxChildrenLookedAt children. O(that many tokens).
  Agreement LongestAgreement(const BlockKey& parent, std::span<const int32_t> tokens) const;

  bool Contains(BlockIndex block) const { return entry(block).num_tokens > 0; }
  const Entry& entry(BlockIndex block) const { return entries_[static_cast<size_t>(block)]; }
  std::span<const int32_t> tokens(BlockIndex block) const;

  // Of the heap. Constant.
  int64_t memory_bytes() const;

  // INTERNAL naming the first violated invariant. O(blocks).
  absl::Status CheckInvariants() const;

 private:
  Entry& mutable_entry(BlockIndex block) { return entries_[static_cast<size_t>(block)]; }

  const Shape shape_;
  std::vector<Entry> entries_;   // [num_blocks]
  std::vector<int32_t> tokens_;  // [num_blocks, block_tokens]
  absl::flat_hash_map<BlockKey, BlockIndex> by_key_;
  absl::flat_hash_map<BlockKey, BlockIndex> newest_child_;  // by parent
};

}  // namespace kvist::cache_manager

#endif  // KVIST_CACHE_MANAGER_PREFIX_INDEX_H_
