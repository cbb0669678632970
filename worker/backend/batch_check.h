// Whether a batch may run: the limits of backend.h, checked before anything is touched.
#ifndef KVIST_WORKER_BACKEND_BATCH_CHECK_H_
#define KVIST_WORKER_BACKEND_BATCH_CHECK_H_

#include <cstdint>
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

// INTERNAL naming the slice and what is wrong with it: tokens outside the vocabulary, positions
// beyond the context, a span of attention that contradicts itself, a format that is not served,
// block tables too short, or with an index outside the pool where a position that a query sees or
// writes lies; too many tokens or rows of logits in all. Does not allocate unless it fails.
absl::Status CheckBatch(const Batch& batch, const BatchLimits& limits,
                        const std::vector<LayerGroup>& groups, const std::vector<PoolSpec>& pools);

}  // namespace kvist::worker

#endif  // KVIST_WORKER_BACKEND_BATCH_CHECK_H_
