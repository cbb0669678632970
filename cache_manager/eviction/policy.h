// What decides which block goes next. A policy picks, the pool executes: policies see facts and
// indices, no blocks.
#ifndef KVIST_CACHE_MANAGER_EVICTION_POLICY_H_
#define KVIST_CACHE_MANAGER_EVICTION_POLICY_H_

#include <cstdint>
#include <memory>

#include "cache_manager/block_index.h"

namespace kvist::cache_manager {

// Facts about a block that may be evicted.
struct EvictionCandidate {
  BlockIndex block = kNoBlock;
  // The pool's count of uses when the block was last one's: larger is later. Unique per block of a
  // pool.
  uint64_t last_use = 0;
};

// An order over the candidates of one pool. Pure: no clock, no randomness, no state but the
// candidates. Every method takes at most O(log candidates) and allocates nothing. Single-threaded.
class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;
  // REQUIRES: the block is no candidate now, and below the capacity given at construction.
  virtual void Insert(const EvictionCandidate& candidate) = 0;
  // REQUIRES: the block is a candidate.
  virtual void Remove(BlockIndex block) = 0;
  // The candidate to evict next; kNoBlock if there is none. Does not modify.
  virtual BlockIndex Victim() const = 0;
  virtual bool Contains(BlockIndex block) const = 0;
  virtual int32_t size() const = 0;
  // Of the heap, all taken at construction. Constant.
  int64_t memory_bytes() const { return memory_bytes_; }

 protected:
  explicit EvictionPolicy(int64_t memory_bytes) : memory_bytes_(memory_bytes) {}

 private:
  const int64_t memory_bytes_;
};

// Makes a policy for a pool of `capacity` blocks, taking all its memory at once.
using EvictionPolicyFactory = std::unique_ptr<EvictionPolicy> (*)(int32_t capacity);

}  // namespace kvist::cache_manager

#endif  // KVIST_CACHE_MANAGER_EVICTION_POLICY_H_
