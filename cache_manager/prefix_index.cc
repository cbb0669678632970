// Invariants:
//   1. by_key_ holds exactly the indexed blocks with a key, each under its own key.
//   2. the children of a parent are one doubly linked list from newest_child_[parent]; every
//      indexed block is in exactly the list of its parent; no empty list is kept.
//   3. a partial block has fewer than block_tokens tokens, a named one exactly so many.
#include "cache_manager/prefix_index.h"

#include <algorithm>
#include <utility>

#include "cache_manager/limits.h"
#include "common/base/check.h"
#include "common/base/container_bytes.h"

namespace kvist::cache_manager {
namespace {

// flat_hash_map reuses deleted slots without growing while it is at most 25/32 full.
size_t CapacityWithoutGrowth(int32_t entries) { return static_cast<size_t>(entries) * 5 / 4 + 1; }

}  // namespace

PrefixIndex::PrefixIndex(const Shape& shape) : shape_(shape) {
  KVIST_CHECK(shape.num_blocks > 0 && shape.block_tokens > 0);
  entries_.resize(static_cast<size_t>(shape.num_blocks));
  tokens_.resize(static_cast<size_t>(shape.num_blocks) * static_cast<size_t>(shape.block_tokens));
  by_key_.reserve(CapacityWithoutGrowth(shape.num_blocks));
  newest_child_.reserve(CapacityWithoutGrowth(shape.num_blocks));
}

int64_t PrefixIndex::memory_bytes() const {
  return HeapBytes(entries_) + HeapBytes(tokens_) + FlatHashBytes(by_key_) +
         FlatHashBytes(newest_child_);
}

void PrefixIndex::Insert(BlockIndex block, const BlockKey& parent, const BlockKey& key,
                         std::span<const int32_t> tokens) {
  KVIST_CHECK(!Contains(block));
  KVIST_CHECK(!tokens.empty() && tokens.size() <= static_cast<size_t>(shape_.block_tokens));
  Entry& added = mutable_entry(block);
  added.key = key;
  added.parent = parent;
  added.num_tokens = static_cast<int32_t>(tokens.size());
  std::copy(tokens.begin(), tokens.end(),
            tokens_.begin() + static_cast<ptrdiff_t>(block) * shape_.block_tokens);
  if (!key.empty()) KVIST_CHECK(by_key_.emplace(key, block).second, "a key exists once per pool");

  const auto [newest, first] = newest_child_.try_emplace(parent, block);
  added.newer = kNoBlock;
  added.older = first ? kNoBlock : newest->second;
  if (!first) mutable_entry(newest->second).newer = block;
  newest->second = block;
}

void PrefixIndex::Erase(BlockIndex block) {
  KVIST_CHECK(Contains(block));
  Entry& erased = mutable_entry(block);
  if (!erased.key.empty()) by_key_.erase(erased.key);
  if (erased.older != kNoBlock) mutable_entry(erased.older).newer = erased.newer;
  if (erased.newer != kNoBlock) {
    mutable_entry(erased.newer).older = erased.older;
  } else if (erased.older != kNoBlock) {
    newest_child_.find(erased.parent)->second = erased.older;
  } else {
    newest_child_.erase(erased.parent);
  }
  erased = Entry{};
}

BlockIndex PrefixIndex::Find(const BlockKey& key) const {
  const auto found = by_key_.find(key);
  return found == by_key_.end() ? kNoBlock : found->second;
}

bool PrefixIndex::HasChildren(const BlockKey& parent) const {
  return !parent.empty() && newest_child_.contains(parent);
}

BlockIndex PrefixIndex::NewestChild(const BlockKey& parent) const {
  const auto found = newest_child_.find(parent);
  return found == newest_child_.end() ? kNoBlock : found->second;
}

PrefixIndex::Agreement PrefixIndex::LongestAgreement(const BlockKey& parent,
                                                     std::span<const int32_t> wanted) const {
  Agreement best;
  int32_t looked_at = 0;
  for (BlockIndex child = NewestChild(parent); child != kNoBlock; child = entry(child).older) {
    if (looked_at++ == kMaxChildrenLookedAt) break;
    const std::span<const int32_t> have = tokens(child);
    const auto end = have.begin() + static_cast<ptrdiff_t>(std::min(have.size(), wanted.size()));
    const auto differs = std::mismatch(have.begin(), end, wanted.begin()).first;
    const int32_t agreed = static_cast<int32_t>(differs - have.begin());
    if (agreed > best.tokens || (agreed == best.tokens && agreed > 0 && child < best.block)) {
      best = {child, agreed};
    }
  }
  return best;
}

std::span<const int32_t> PrefixIndex::tokens(BlockIndex block) const {
  const size_t first = static_cast<size_t>(block) * static_cast<size_t>(shape_.block_tokens);
  return std::span(tokens_).subspan(first, static_cast<size_t>(entry(block).num_tokens));
}

absl::Status PrefixIndex::CheckInvariants() const {
  size_t indexed = 0, named = 0, listed = 0;
  for (BlockIndex block = 0; block < shape_.num_blocks; ++block) {
    if (!Contains(block)) continue;
    ++indexed;
    const Entry& e = entry(block);
    if ((e.num_tokens == shape_.block_tokens) == e.key.empty()) {
      return absl::InternalError("prefix index 3: tokens and name disagree");
    }
    if (e.key.empty()) continue;
    ++named;
    if (Find(e.key) != block) return absl::InternalError("prefix index 1: key leads elsewhere");
  }
  if (named != by_key_.size()) return absl::InternalError("prefix index 1: stale key");
  for (const auto& [parent, newest] : newest_child_) {
    BlockIndex newer = kNoBlock;
    for (BlockIndex child = newest; child != kNoBlock; child = entry(child).older) {
      if (!Contains(child) || entry(child).parent != parent || entry(child).newer != newer) {
        return absl::InternalError("prefix index 2: list of children broken");
      }
      if (++listed > indexed) return absl::InternalError("prefix index 2: list of children loops");
      newer = child;
    }
  }
  if (listed != indexed) return absl::InternalError("prefix index 2: block in no list");
  return absl::OkStatus();
}

}  // namespace kvist::cache_manager
