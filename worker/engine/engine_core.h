// The engine without its thread: everything that a step does, in a class that a test steps by hand.
#ifndef KVIST_WORKER_ENGINE_ENGINE_CORE_H_
#define KVIST_WORKER_ENGINE_ENGINE_CORE_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cache_manager/event_log.h"
#include "worker/engine/engine.h"
#include "worker/engine/live_request.h"
#include "worker/engine/offload.h"
#include "worker/engine/request_limits.h"
#include "worker/engine/session_copies.h"
#include "worker/engine/session_holds.h"
#include "worker/engine/speculation.h"
#include "worker/engine/step_pace.h"
#include "worker/engine/token_chooser.h"
#include "worker/scheduler/scheduler.h"

namespace kvist::worker {

// Owns backend, pools, sessions and live requests. Invariants: engine_core.cc. Single-threaded, but
// limits() may be read by anyone.
class EngineCore final : private BlockLedger {
 public:
  // REQUIRES: clock outlives the core; the backend has a pool for every layer group in every
  // format, in the order that backend.h says.
  EngineCore(const EngineOptions& options, std::unique_ptr<Backend> backend, const Clock* clock);
  ~EngineCore() override;
  EngineCore(const EngineCore&) = delete;
  EngineCore& operator=(const EngineCore&) = delete;

  // What PrepareRequest needs. Constant.
  const RequestLimits& limits() const { return limits_; }

  // Called with each request's id just before its OnFinished: the id is free again.
  void SetOnEnd(std::function<void(const RequestId&)> on_end) { on_end_ = std::move(on_end); }

  // Takes a request over. REQUIRES: it went through PrepareRequest; no live request has its id.
  void Add(GenerateRequest request, std::shared_ptr<TokenSink> sink, MonotonicTime queued);
  // Ends it as cancelled; nothing happens if it is unknown.
  void Cancel(const RequestId& id);
  // Ends everything with `status` (kError).
  void EndAll(const absl::Status& status);
  // Waits until blocks that are to be offloaded have reached the disk, at most so long.
  void FlushOffload(std::chrono::milliseconds most);
  // One step: expire deadlines, schedule, run, sample, publish. False if nothing could run and the
  // disk tier has nothing to do before the disk has.
  bool Step();

  bool idle() const { return live_.empty(); }
  // Requests that were never scheduled.
  size_t unscheduled() const { return unscheduled_; }
  EngineState state();
  cache_manager::WorkerLoad load() const;
  EngineStats stats() const;
  const Backend& backend() const { return *backend_; }
  // See Engine::memory. Constant.
  const std::vector<MemoryPart>& memory() const { return memory_; }
  // INTERNAL naming the first violated invariant of pools, sessions, blocks or this class.
  // O(blocks).
  absl::Status CheckInvariants() const;

 private:
  bool Admit(Sequence& sequence, int64_t spare_blocks) override;
  int64_t Grow(Sequence& sequence, int64_t tokens) override;
  std::optional<Loss> LossOf(const Sequence& victim, const Sequence& needy) const override;
  void Preempt(Sequence& sequence) override;

  void MakePools();
  std::vector<MemoryPart> SumMemory() const;
  void ExpireDeadlines();
  const Batch& MakeBatch();
  void FailBatch(const absl::Status& status);
  void Postprocess(const Logits& logits);
  // All of the chunk but its drafts.
  void AdvanceChunk(const ScheduledChunk& chunk, LiveRequest& live);
  // The KV of so many tokens more is in the blocks.
  void Store(int64_t tokens, LiveRequest& live);
  // Chooses from the chunk's rows of logits, publishes and ends the request if its last token came.
  void TakeTokens(const ScheduledChunk& chunk, const Logits& rows, LiveRequest& live);
  void Finish(LiveRequest& live, FinishReason reason, const absl::Status& status);

  // --- forks of one prompt (engine_core_forks.cc)
  // The live request that `live` is a fork of; null if there is none.
  LiveRequest* SiblingOf(const LiveRequest& live) const;
  // Has the request wait for its leader's prompt. False if it has no leader to wait for.
  bool Follow(LiveRequest& live);
  // The leader's prompt is stored: the followers go on, from its logits if there are any.
  void LetFollowersGo(LiveRequest& leader, const Logits& logits);
  void ForkFrom(const LiveRequest& leader, const Logits& logits, LiveRequest& live);
  // The request ends: nobody waits for it any more, nor it for anybody.
  void LeaveSiblings(LiveRequest& live);
  void CountStep(int64_t prefill_tokens, double seconds);

  const EngineOptions options_;
  std::unique_ptr<Backend> backend_;
  const Clock* clock_;
  RequestLimits limits_;
  std::vector<MemoryPart> memory_;
  std::function<void(const RequestId&)> on_end_;

  cache_manager::EventLog events_;
  std::vector<std::unique_ptr<cache_manager::BlockPool>> pools_;
  cache_manager::SessionTable sessions_;
  SessionHolds session_holds_;
  std::unique_ptr<Offload> offload_;  // null: no disk tier
  std::vector<std::unique_ptr<FormatCache>> formats_;
  SessionCopies copies_{backend_.get(), &formats_, &sessions_};
  Scheduler scheduler_;
  Speculation speculation_;
  TokenChooser chooser_;
  StepPace pace_;

  absl::flat_hash_map<RequestId, std::unique_ptr<LiveRequest>> live_;
  uint64_t arrivals_ = 0;
  size_t unscheduled_ = 0;
  size_t followers_ = 0;  // requests that wait for another's prompt
  Plan plan_;
  Batch batch_;
  std::vector<std::vector<std::span<const int32_t>>>
      spare_tables_;  // kept from earlier, larger batches
  EngineStats stats_;
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_ENGINE_ENGINE_CORE_H_
