// Digests that tell drift between a pool and its mirror: sums mod 2^64 of mixed hashes, kept
// incrementally and alike on both sides. They detect drift, not lies.
#ifndef KVIST_CACHE_MANAGER_DIGEST_H_
#define KVIST_CACHE_MANAGER_DIGEST_H_

#include <cstdint>

#include "cache_manager/block_key.h"
#include "cache_manager/events.h"
#include "common/base/ids.h"

namespace kvist::cache_manager {

// Both sums of one pool. The zero digest is that of an empty pool.
struct PoolDigest {
  uint64_t placement = 0;  // over (key, tier) of every named block
  uint64_t holding = 0;    // over HoldingState of every session

  friend bool operator==(const PoolDigest&, const PoolDigest&) = default;
};

// What one session holds in one pool, as far as the digest goes: the last key stands for the whole
// chain.
struct HoldingState {
  uint32_t chain_blocks = 0;
  BlockKey last_key;
  uint32_t partial_blocks = 0;
  uint32_t reserved_blocks = 0;
};

uint64_t PlacementHash(const BlockKey& key, Tier tier);
// 0 for a session that holds nothing, so that knowing it or not makes no difference.
uint64_t HoldingHash(const SessionId& session, const HoldingState& state);

}  // namespace kvist::cache_manager

#endif  // KVIST_CACHE_MANAGER_DIGEST_H_
