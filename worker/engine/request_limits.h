// Whether a request can run here at all, and what it is cut to.
#ifndef KVIST_WORKER_ENGINE_REQUEST_LIMITS_H_
#define KVIST_WORKER_ENGINE_REQUEST_LIMITS_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "worker/engine/request.h"
#include "worker/kv/block_table.h"

namespace kvist::worker {

struct RequestLimits {
  int64_t vocab = 0;
  int64_t context_tokens = 0;
  // One for each KV format that is served, the first is the default. Only their constants are read.
  std::vector<const KvCache*> formats;
  bool disk = false;  // there is a disk tier
};
inline constexpr int32_t kMaxPriority = 100;

// Checks every field and completes the request: the KV format is set, max_new_tokens (and
// min_new_tokens with it) is cut to what the context and the pools hold. INVALID_ARGUMENT or
// OUT_OF_RANGE with the field named; `request` is then unspecified. OUT_OF_RANGE is also a static
// request that can never be promised its blocks; the message says how many tokens can. A later
// attempt is not offloaded where there is no disk.
absl::Status PrepareRequest(const RequestLimits& limits, GenerateRequest* request);

}  // namespace kvist::worker

#endif  // KVIST_WORKER_ENGINE_REQUEST_LIMITS_H_
