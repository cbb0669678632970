// The engine: continuous batching over one backend. Handlers queue and read; one loop owns all
// state: drain the queue, schedule, run, sample, publish.
#ifndef KVIST_WORKER_ENGINE_ENGINE_H_
#define KVIST_WORKER_ENGINE_ENGINE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cache_manager/block_pool.h"
#include "cache_manager/events.h"
#include "cache_manager/session_table.h"
#include "common/base/clock.h"
#include "worker/backend/backend.h"
#include "worker/engine/request.h"
#include "worker/engine/speculation.h"

namespace kvist::cache_manager {
class EventLog;
class TierIndex;
}  // namespace kvist::cache_manager

namespace kvist::worker {

class DiskStore;
class SessionCopies;

struct EngineOptions {
  size_t max_queue = 256;  // requests waiting for their first schedule; one more is refused
  int32_t max_running_sequences = 64;
  int64_t max_step_tokens =
      256;  // token budget of a step: decode first, the rest for prefill chunks
  // A step with a decode in it is cut to take about so long, if there are prompts to cut
  // (step_pace.h); 0: as many tokens as a step may have.
  double max_step_seconds = 0;
  size_t max_sessions = 65536;      // in the session table
  std::shared_ptr<DiskStore> disk;  // of the backend's pools and this engine's alone; null: none
  // Drafts of one sequence in a step at most (speculation.h), up to kMaxSpeculativeTokens; 0: none.
  // The output is the same.
  int32_t speculative_tokens = 0;
  // Called after each step and at least every 100 ms when something changed, on the loop's thread.
  std::function<void()> on_step;
};

// Of the disk tier, since start.
struct OffloadStats {
  uint64_t written_blocks = 0, written_bytes = 0;
  uint64_t restored_blocks = 0, restored_bytes = 0;
  uint64_t restores = 0;        // sequences that waited for blocks
  uint64_t recomputes = 0;      // those for which computing was measured to be cheaper
  uint64_t damaged_blocks = 0;  // read, and not what was written
  uint64_t read_errors = 0, write_errors = 0;
  uint64_t wipe_errors = 0;     // blocks that were dropped and may be in their file still
  uint64_t dropped_writes = 0;  // evicted before their turn to be written, or too many waited
};

// Numbers of requests by their cache: allocation, with a window or not, format, offload tier.
// Thread-compatible.
class CacheRequestCounts {
 public:
  // REQUIRES: the format is set, as by PrepareRequest.
  uint64_t& operator[](const CacheOptions& cache) { return counts_[IndexOf(cache)]; }
  uint64_t operator[](const CacheOptions& cache) const { return counts_[IndexOf(cache)]; }

  friend bool operator==(const CacheRequestCounts&, const CacheRequestCounts&) = default;

 private:
  static constexpr size_t kFormats = static_cast<size_t>(KvFormat::kQ4) + 1;

  static size_t IndexOf(const CacheOptions& cache) {
    const size_t window = cache.attention.window_tokens > 0 ? 1 : 0;
    const size_t attention = static_cast<size_t>(cache.allocation) * 2 + window;
    const size_t format = attention * kFormats + static_cast<size_t>(*cache.kv_format);
    return format * kNumOffloadTiers + static_cast<size_t>(cache.offload);
  }

  std::array<uint64_t, kNumAllocations * 2 * kFormats * kNumOffloadTiers> counts_{};
};

// A step's numbers for metrics, accumulated since start. Read by anyone.
struct EngineStats {
  uint64_t steps = 0;
  uint64_t prefill_tokens = 0;
  uint64_t decode_tokens = 0;
  uint64_t prefix_tokens_asked = 0;
  uint64_t prefix_tokens_hit = 0;
  uint64_t preemptions = 0;
  SpeculationStats speculation;
  uint64_t forks = 0;           // requests that began with the blocks and the logits of another
  uint64_t copied_blocks = 0;   // before a write: shared ones, and partial hits; in all pools
  uint64_t finished[5] = {};    // by FinishReason
  CacheRequestCounts requests;  // taken in
  OffloadStats offload;
  int64_t running = 0;
  int64_t waiting = 0;
  int64_t last_batch_tokens = 0;
  double last_step_seconds = 0;
};

// What the loop's thread may touch when asked to run something between two steps.
struct EngineState {
  std::vector<std::unique_ptr<cache_manager::BlockPool>>& pools;
  cache_manager::SessionTable& sessions;
  cache_manager::EventLog& events;
  cache_manager::WorkerLoad load;
  SessionCopies& copies;
  // Of the disk, one for each pool; empty: none.
  std::span<const std::unique_ptr<cache_manager::TierIndex>> tiers;
};

// Thread-safe. Owns the backend and, between Start and Stop, one thread.
class Engine {
 public:
  // REQUIRES: clock outlives the engine.
  Engine(const EngineOptions& options, std::unique_ptr<Backend> backend, const Clock* clock);
  ~Engine();  // stops

  void Start();
  // Everything running and waiting ends with kError, UNAVAILABLE (kDraining); returns when the loop
  // has ended. Idempotent. REQUIRES: not called on the loop's thread.
  void Stop();
  // No new requests (UNAVAILABLE, kDraining); what runs goes on.
  void BeginDrain();
  bool idle() const;

  // Queues a request. INVALID_ARGUMENT / OUT_OF_RANGE (field named) if it can never run here;
  // RESOURCE_EXHAUSTED (kOverload) if the queue is full; UNAVAILABLE if draining; ABORTED if a live
  // request has the same id. On error the sink is never called.
  absl::Status Submit(GenerateRequest request, std::shared_ptr<TokenSink> sink);
  // Ends within the next step the request that was submitted with `sink`; no-op if it is not live.
  // The id alone would do for an earlier attempt, or a refused one, what is meant for another: the
  // id may be a live request's again.
  void Cancel(const RequestId& id, const TokenSink* sink);
  // Runs `work` on the loop's thread between two steps (at once if idle) and returns when it has
  // run; true. Called on the loop's thread itself, it does not wait: from on_step it runs `work` at
  // once, from a sink after the step. false, and `work` never runs, if the engine is stopped.
  // REQUIRES: after Start.
  bool RunBetweenSteps(std::function<void(EngineState&)> work);
  // The same without waiting: `work` runs on the loop's thread after what was asked before it.
  // true: it will, also if the engine is stopped meanwhile.
  bool PostBetweenSteps(std::function<void(EngineState&)> work);

  EngineStats stats() const;
  cache_manager::WorkerLoad load() const;
  // All memory that grows with the model, the pools or the options, every byte in one part: taken
  // when the engine was made. Not in it, and bounded by limits: requests and their tokens,
  // sessions' chains, events and writes that wait. Constant.
  const std::vector<MemoryPart>& memory() const;
  const Backend& backend() const;  // its const facts only

 private:
  class Loop;
  std::unique_ptr<Loop> loop_;
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_ENGINE_ENGINE_H_
