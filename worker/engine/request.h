// What the engine is asked and what it answers: plain data.
#ifndef KVIST_WORKER_ENGINE_REQUEST_H_
#define KVIST_WORKER_ENGINE_REQUEST_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "cache_manager/attention_span.h"
#include "common/base/clock.h"
#include "common/base/ids.h"
#include "worker/kernels/kernel_table.h"
#include "worker/sampling/sampling_options.h"

namespace kvist::worker {

// How a request gets its blocks. kPaged: one when the last is full. kStatic: on admission, all for
// prompt and max_new_tokens are promised, so that it neither runs out nor is preempted. kNone:
// keeps none, every token computes the whole sequence anew in scratch blocks.
enum class Allocation : uint8_t { kPaged, kStatic, kNone };
inline constexpr size_t kNumAllocations = 3;

// Where named blocks go beside their pool when a sequence ends or is preempted, to come back before
// it runs again. kHost: memory of the host, for devices that have their own.
enum class OffloadTier : uint8_t { kOff, kDisk, kHost };
inline constexpr size_t kNumOffloadTiers = 3;

// Independent of each other: every combination runs but a cache that is not kept and is offloaded.
struct CacheOptions {
  Allocation allocation = Allocation::kPaged;
  cache_manager::AttentionSpan attention;  // sequences of different spans share no blocks
  std::optional<KvFormat> kv_format;       // nullopt: the worker's first configured one
  OffloadTier offload = OffloadTier::kOff;
};

struct GenerateRequest {
  RequestId id;       // unique among live requests of this worker
  RequestId fork_of;  // a request with the same prompt and cache, whose blocks this one shares once
                      // they are computed; empty, not live or of another prompt: nobody's
  SessionId session;  // may be empty: no session holds the blocks
  TenantId tenant;
  std::string tenant_salt;  // separates prefix caches (cache_manager/block_key.h)
  uint32_t attempt = 0;
  std::vector<int32_t> prompt_ids;     // at least one
  std::vector<int32_t> generated_ids;  // tokens an earlier attempt delivered: penalties, limits and
                                       // random numbers go on from them
  SamplingOptions sampling;
  StopOptions stop;
  CacheOptions cache;
  std::optional<MonotonicTime> deadline;
  int32_t priority = 0;  // higher first among waiting ones; -100 .. 100
};

// The most tokens whose KV it stores: the last one is chosen without storing its own.
inline int64_t MostStoredTokens(const GenerateRequest& request) {
  return static_cast<int64_t>(request.prompt_ids.size()) + request.stop.max_new_tokens - 1;
}

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0.0f;
};

struct TokenOutput {
  int64_t index = 0;  // among generated tokens, from 0; rises by exactly one (a replay begins at
                      // generated_ids.size())
  int32_t id = 0;
  std::optional<float> logprob;
  std::vector<TokenLogprob> top_logprobs;
};

enum class FinishReason : uint8_t { kStop, kLength, kCancelled, kDeadline, kError };
std::string_view FinishReasonName(
    FinishReason reason);  // "stop", "length", "cancelled", "deadline", "error"

// Seconds are from admission to the engine's queue.
struct FinishInfo {
  FinishReason reason = FinishReason::kStop;
  absl::Status status;  // not OK for kCancelled, kDeadline, kError
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;     // of the prompt, found in the prefix cache at first admission, or
                                 // shared with the request it is a fork of
  int64_t generated_tokens = 0;  // those of earlier attempts included
  int64_t preemptions = 0;
  int64_t draft_tokens = 0;     // guessed ones that were computed
  int64_t accepted_tokens = 0;  // of these, those that are among the generated
  double queue_seconds = 0;
  double prefill_seconds = 0;  // from first schedule to first token
  double decode_seconds = 0;   // from first to last token
};

// Receives one request's output on the engine's thread. Must not block. The last call is
// OnFinished, exactly once.
class TokenSink {
 public:
  virtual ~TokenSink() = default;
  // New tokens of one step (one, or more under speculation).
  virtual void OnTokens(std::span<const TokenOutput> tokens) = 0;
  // Prefill has come this far: (prompt tokens in the cache now, prompt tokens in all). At most one
  // per step.
  virtual void OnProgress(int64_t done_tokens, int64_t total_tokens) = 0;
  virtual void OnFinished(const FinishInfo& info) = 0;
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_ENGINE_REQUEST_H_
