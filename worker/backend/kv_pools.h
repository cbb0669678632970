// The KV pools of a backend: their sizes, their memory, and whole blocks in and out.
#ifndef KVIST_WORKER_BACKEND_KV_POOLS_H_
#define KVIST_WORKER_BACKEND_KV_POOLS_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/backend/backend.h"
#include "worker/kv/layout.h"
#include "worker/tensor/arena.h"

namespace kvist::worker {

// How much memory which pools get.
struct KvPoolsOptions {
  std::vector<KvFormat> formats;
  int32_t block_tokens = 16;
  int64_t context_tokens = 0;  // of the longest sequence
  int64_t max_batch_tokens = 0;
  int64_t kv_bytes = 0;         // of all pools together
  int32_t blocks_per_pool = 0;  // > 0: this many in each, whatever kv_bytes is
};

// What can be said before the pools are sized: INVALID_ARGUMENT naming the option, and for a format
// that cannot hold a group's heads the format and the head size.
absl::Status CheckKvPools(const std::vector<LayerGroup>& groups, const KvPoolsOptions& options);

// The pools' specs, ordered by (format, group), by this rule. Each pool first gets what one
// sequence of context_tokens needs: all its tokens in a group without a window; the window, a batch
// and a block in a group with one. What is left is dealt out so that every pool gets the same
// number of tokens more: short sequences need the same in each group, and a prefix can only be
// reused where the windowed groups still hold its last tokens. INVALID_ARGUMENT as CheckKvPools,
// and naming the least kv_bytes where they are too few.
absl::StatusOr<std::vector<PoolSpec>> PlanKvPools(const std::vector<LayerGroup>& groups,
                                                  const KvPoolsOptions& options);

// Bytes of all pools with `blocks` blocks each. REQUIRES: CheckKvPools(groups, options) is OK.
int64_t KvBytesOf(const std::vector<LayerGroup>& groups, const KvPoolsOptions& options,
                  int64_t blocks);

// kv_bytes where nobody chose: a quarter of `available_bytes` of memory, but no more than pools of
// 65,536 blocks, a few GB; more must be asked for.
int64_t DefaultKvBytes(const std::vector<LayerGroup>& groups, const KvPoolsOptions& options,
                       int64_t available_bytes);

// Owns the pools' arenas. Thread-compatible; blocks are written by many threads at once only at
// different places.
class KvPools {
 public:
  // RESOURCE_EXHAUSTED if there is no memory.
  static absl::StatusOr<KvPools> Create(const std::vector<LayerGroup>& groups,
                                        std::vector<PoolSpec> specs);

  const std::vector<PoolSpec>& specs() const { return specs_; }
  // Index of the pool of (group, format), or -1.
  int32_t Find(int32_t group, KvFormat format) const;
  const KvLayout& layout(int32_t pool) const { return layouts_[static_cast<size_t>(pool)]; }
  std::byte* arena(int32_t pool) const { return arenas_[static_cast<size_t>(pool)].data(); }
  int64_t taken_bytes() const;  // of all arenas
  // The bytes of a block. REQUIRES: valid indices.
  std::span<std::byte> Block(int32_t pool, int32_t block) const;

 private:
  std::vector<PoolSpec> specs_;
  std::vector<KvLayout> layouts_;
  std::vector<Arena> arenas_;
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_BACKEND_KV_POOLS_H_
