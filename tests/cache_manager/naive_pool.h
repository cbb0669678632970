// A block pool as slow and plain as can be, to compare the real one with.
#ifndef KVIST_TESTS_CACHE_MANAGER_NAIVE_POOL_H_
#define KVIST_TESTS_CACHE_MANAGER_NAIVE_POOL_H_

#include <algorithm>
#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "cache_manager/block_pool.h"

namespace kvist::cache_manager {

struct NaiveBlock {
  int references = 0;  // 0: cached
  BlockKey key;
  BlockKey parent;
  std::vector<int32_t> tokens;  // empty: not findable
  uint64_t last_use = 0;
};

// Knows active and cached blocks by index; free and reserved ones are only counted.
class NaivePool {
 public:
  NaivePool(int num_blocks, bool leaves_only)
      : num_blocks_(num_blocks), leaves_only_(leaves_only) {}

  int reserved() const { return reserved_; }
  int active() const { return static_cast<int>(blocks_.size()) - cached(); }
  int cached() const {
    return static_cast<int>(std::count_if(blocks_.begin(), blocks_.end(),
                                          [](const auto& b) { return b.second.references == 0; }));
  }
  int free() const { return num_blocks_ - reserved_ - static_cast<int>(blocks_.size()); }
  const std::map<BlockIndex, NaiveBlock>& blocks() const { return blocks_; }
  NaiveBlock& at(BlockIndex index) { return blocks_.at(index); }

  bool HasChildren(const BlockKey& key) const {
    return std::any_of(blocks_.begin(), blocks_.end(), [&](const auto& b) {
      return !b.second.tokens.empty() && !key.empty() && b.second.parent == key;
    });
  }
  BlockIndex Victim() const {
    BlockIndex best = kNoBlock;
    bool best_is_inner = true;
    for (const auto& [index, b] : blocks_) {
      if (b.references > 0) continue;
      const bool inner = leaves_only_ && HasChildren(b.key);
      const bool better = best == kNoBlock || (best_is_inner && !inner) ||
                          (best_is_inner == inner && b.last_use < blocks_.at(best).last_use);
      if (better) best = index, best_is_inner = inner;
    }
    return best;
  }
  void Evict(BlockIndex index) {
    evicted_.push_back(blocks_.at(index).key);
    blocks_.erase(index);
  }
  // Takes one free block out of the books, evicting if need be. False if there is none.
  bool MakeRoom() {
    if (free() > 0) return true;
    if (Victim() == kNoBlock) return false;
    Evict(Victim());
    return true;
  }
  bool Reserve(const ReservationRequest& request, int max_promised) {
    const int more = request.blocks - request.held;
    if (promised_ + request.blocks > max_promised) return false;
    if (more + request.spare > free() + cached()) return false;
    promised_ += request.blocks;
    Refill(more);
    return true;
  }
  // Returns how many of `blocks` were there.
  int Refill(int blocks) {
    int taken = 0;
    while (taken < blocks && MakeRoom()) ++taken, ++reserved_;
    return taken;
  }
  void TakeReserved() { --reserved_; }
  void EndPromise(int promised, int remaining) {
    promised_ -= promised;
    reserved_ -= remaining;
  }
  // False if the real pool took a block that was not to be had.
  bool Allocated(BlockIndex index) {
    const bool fresh = !blocks_.contains(index) && index >= 0 && index < num_blocks_;
    blocks_[index].references = 1;
    return fresh;
  }

  BlockIndex Find(const BlockKey& key) const {
    for (const auto& [index, b] : blocks_) {
      if (!b.key.empty() && b.key == key) return index;
    }
    return kNoBlock;
  }
  std::pair<BlockIndex, int> FindPartial(const BlockKey& parent,
                                         std::span<const int32_t> wanted) const {
    std::pair<BlockIndex, int> best = {kNoBlock, 0};
    for (const auto& [index, b] : blocks_) {
      if (b.tokens.empty() || b.parent != parent) continue;
      size_t agreed = 0;
      while (agreed < std::min(b.tokens.size(), wanted.size()) &&
             b.tokens[agreed] == wanted[agreed]) {
        ++agreed;
      }
      if (static_cast<int>(agreed) > best.second) best = {index, static_cast<int>(agreed)};
    }
    return best;
  }

  void Reference(BlockIndex index) { ++blocks_.at(index).references; }
  void Unreference(BlockIndex index) {
    NaiveBlock& b = blocks_.at(index);
    if (--b.references > 0) return;
    b.last_use = ++uses_;
    if (b.tokens.empty()) blocks_.erase(index);
  }
  void DropCovered(const BlockKey& parent, std::span<const int32_t> tokens) {
    std::erase_if(blocks_, [&](const auto& entry) {
      const NaiveBlock& b = entry.second;
      return b.references == 0 && b.key.empty() && b.parent == parent &&
             b.tokens.size() <= tokens.size() &&
             std::equal(b.tokens.begin(), b.tokens.end(), tokens.begin());
    });
  }

  // Keys evicted since the last call, in order, without the empty ones of partial blocks.
  std::vector<BlockKey> TakeEvicted() {
    std::erase(evicted_, BlockKey{});
    return std::exchange(evicted_, {});
  }

 private:
  const int num_blocks_;
  const bool leaves_only_;
  std::map<BlockIndex, NaiveBlock> blocks_;
  std::vector<BlockKey> evicted_;
  int reserved_ = 0;
  int promised_ = 0;
  uint64_t uses_ = 0;
};

}  // namespace kvist::cache_manager

#endif  // KVIST_TESTS_CACHE_MANAGER_NAIVE_POOL_H_
