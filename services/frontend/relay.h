// One request's way over the workers: an attempt at a time, replayed on another worker when one is
// lost, so that the tokens that come out rise by exactly one whatever happens behind
// (ARCHITECTURE.md 6, step 7).
#ifndef KVIST_SERVICES_FRONTEND_RELAY_H_
#define KVIST_SERVICES_FRONTEND_RELAY_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/clock.h"
#include "proto/kvist/v1/worker.grpc.pb.h"
#include "services/frontend/attempt_stream.h"
#include "services/frontend/in_flight.h"

namespace kvist::services {

// A worker that was chosen for one attempt.
struct ChosenWorker {
  std::string id;
  uint64_t incarnation = 0;
  std::shared_ptr<v1::Worker::StubInterface> stub;
  int64_t located_tokens = 0;  // of the prompt, as the mirror promised
  InFlight::Place place;       // counts as load while it lives
};

// (id, incarnation): a worker that was started again is another one.
using WorkerLives = absl::flat_hash_set<std::pair<std::string, uint64_t>>;

// Chooses workers. Called by one request's thread; several requests at once.
class WorkerChooser {
 public:
  virtual ~WorkerChooser() = default;
  // UNAVAILABLE (kNoWorker) if there is none beside `failed`.
  virtual absl::StatusOr<ChosenWorker> Choose(const WorkerLives& failed) = 0;
  virtual void MarkFailed(const ChosenWorker& worker) = 0;
};

// Receives what a client may get. All calls come from the thread that runs the relay.
class RelaySink {
 public:
  enum class Verdict { kGoOn, kStop, kGone };
  virtual ~RelaySink() = default;
  // Whether nobody wants the rest: the client left, or the turn was cancelled. Asked at least every
  // 50 ms.
  virtual bool Gone() = 0;
  // A worker took the request; only the first time. false: the client is gone.
  virtual bool OnStarted(const std::string& worker_id) = 0;
  virtual bool OnProgress(int64_t prompt_tokens_done, int64_t prompt_tokens) = 0;
  // New tokens, indices rising by one. kStop: a stop string was found, the rest is not wanted.
  virtual Verdict OnTokens(std::span<const v1::Token> tokens) = 0;
};

struct RelayOptions {
  std::chrono::milliseconds silence_limit{3000};  // a worker sends something every 500 ms
  std::chrono::milliseconds replay_wait{15'000};  // for a worker to come back, since the last news
  std::chrono::milliseconds first_wait{3000};     // for a first worker to take the request
  int32_t max_fruitless_attempts =
      4;  // taken by a worker and lost without a token: the request may be the cause
  size_t max_buffered_bytes = size_t{1} << 20;
};

struct RelayRequest {
  v1::WorkerGenerateRequest base;  // attempt and generated_ids are the relay's to fill
  MonotonicTime deadline;
  int64_t vocabulary = 0;  // ids are below it: a worker that sends another is faulty
  std::function<bool(int32_t id)>
      is_stop;  // ends the generation, for a worker lost right after its last token
};

struct RelayResult {
  absl::Status status;  // not OK: how the call ends
  v1::FinishReason reason = v1::FINISH_REASON_UNSPECIFIED;
  bool lost = false;               // nobody went on: another attempt may, later
  std::vector<int32_t> generated;  // passed to the sink
  bool has_usage = false;          // a worker finished and told the usage
  v1::Usage usage;                 // of the worker that finished
  v1::Timings timings;             // the same
  uint32_t attempts = 0;           // workers that took the request
  std::string worker_id;           // the last of them
  uint64_t worker_incarnation = 0;
  int64_t located_tokens = 0;  // promised on the first of them
  MonotonicTime first_token_at;
  MonotonicTime last_token_at;
};

// Runs the request to its end. Blocks. `reason` is STOP, LENGTH, CANCELLED (the sink's verdict
// kStop counts as STOP), DEADLINE with DEADLINE_EXCEEDED, or ERROR with: the worker's refusal as it
// is; UNAVAILABLE (kNoWorker) if none took the request; INTERNAL if its invariants broke at a
// worker and at a second one, or no second one was there; ABORTED with resume_index if workers were
// lost and no replay was possible (`lost`).
RelayResult RunRelay(const RelayRequest& request, const RelayOptions& options,
                     WorkerChooser& chooser, RelaySink& sink, const Clock& clock);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_RELAY_H_
