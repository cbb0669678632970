// Whether a batch may run: the limits of backend.h, checked before anything is touched.
#ifndef KVIST_WORKER_BACKEND_BATCH_CHECK_H_
#define KVIST_WORKER_BACKEND_BATCH_CHECK_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "worker/backend/backend.h"
#include "worker/backend/batch.h"

namespace kvist::worker {

struct BatchLimits {
  int64_t vocab = 0;
  int64_t context_tokens = 0;
  int64_t max_batch_tokens = 0;
  int64_t max_logit_rows = 0;
};

// Which slice of a batch writes which block. Owns 8 bytes per block of every pool, taken at
// construction, so that one look at a block tells; a new batch costs nothing. Single-threaded.
class BlockWriters {
 public:
  BlockWriters() = default;
  explicit BlockWriters(const std::vector<PoolSpec>& pools);

  // A batch of so many slices begins, in which nothing is written yet.
  void Begin(size_t slices);
  // The slice that wrote the block before in this batch, if one did; it is `slice`'s from now on.
  // REQUIRES: valid indices.
  std::optional<size_t> Write(size_t pool, int32_t block, size_t slice);

 private:
  // Of each block, by pool: the mark of the slice that wrote it last. Slice i of the batch under
  // way has first_mark_ + i; marks are never used twice.
  std::vector<std::vector<uint64_t>> marks_;
  uint64_t first_mark_ = 1;
  uint64_t next_mark_ = 1;
};

// INTERNAL naming the slice and what is wrong with it: tokens outside the vocabulary, positions
// beyond the context, a span of attention that contradicts itself, a format that is not served,
// block tables too short, or with an index outside the pool where a position that a query sees or
// writes lies; a block that two slices (both are named) or one slice twice would write; too many
// tokens or rows of logits in all. O(tokens + blocks seen); does not allocate unless it fails.
// REQUIRES: `writers` is of these pools.
absl::Status CheckBatch(const Batch& batch, const BatchLimits& limits,
                        const std::vector<LayerGroup>& groups, const std::vector<PoolSpec>& pools,
                        BlockWriters& writers);

}  // namespace kvist::worker

#endif  // KVIST_WORKER_BACKEND_BATCH_CHECK_H_
