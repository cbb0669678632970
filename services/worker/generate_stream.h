// One Generate call: the engine's sink on one side, the gRPC stream on the other, a bounded buffer
// between.
#ifndef KVIST_SERVICES_WORKER_GENERATE_STREAM_H_
#define KVIST_SERVICES_WORKER_GENERATE_STREAM_H_

#include <grpcpp/grpcpp.h>

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/mutex.h"
#include "proto/kvist/v1/worker.pb.h"
#include "services/worker/stream_relay.h"
#include "worker/engine/request.h"

namespace kvist::services {

// Lives until gRPC and the engine have both let go of it. The engine's thread appends to the
// buffer, the relay's thread starts one write at a time with what waits. A client
// that is gone, or so slow that the buffer is full, cancels its request. Thread-safe.
class GenerateStream final : public grpc::ServerWriteReactor<v1::WorkerGenerateResponse>,
                             public worker::TokenSink,
                             public RelayedStream,
                             public std::enable_shared_from_this<GenerateStream> {
 public:
  struct Options {
    grpc::CallbackServerContext* context = nullptr;  // outlives OnDone
    StreamRelay* relay = nullptr;                    // outlives the stream
    uint32_t attempt = 0;
    uint64_t incarnation = 0;
    int64_t prompt_tokens = 0;
    // Ends in the engine the request that this sink was submitted with; never blocks.
    std::function<void(const worker::TokenSink*)> cancel;
    std::function<void(const worker::FinishInfo&)> on_finished;  // on the engine's thread
  };
  static std::shared_ptr<GenerateStream> Create(Options options);

  // The engine took the request: Accepted goes out, output follows.
  void Begin() ABSL_LOCKS_EXCLUDED(mutex_);
  // The engine refused it. Nothing else may be called afterwards.
  void Refuse(const absl::Status& status);

  void OnTokens(std::span<const worker::TokenOutput> tokens) override;
  void OnProgress(int64_t done_tokens, int64_t total_tokens) override;
  void OnFinished(const worker::FinishInfo& info) override;

  void Pump(MonotonicTime now) override;

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  explicit GenerateStream(Options options) : options_(std::move(options)) {}

  // What Pump does next, decided under the lock.
  enum class Step { kNothing, kWrite, kWriteLast, kCancelCall, kClose };
  Step NextStep(MonotonicTime now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WakeLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void TakeTokens() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Unless the request was refused or has ended.
  void CancelRequest() ABSL_LOCKS_EXCLUDED(mutex_);

  const Options options_;
  std::shared_ptr<GenerateStream> self_;  // gRPC's share, until OnDone
  v1::WorkerGenerateResponse response_;   // owned by the write under way

  Mutex mutex_;
  std::deque<worker::TokenOutput> tokens_ ABSL_GUARDED_BY(mutex_);
  int64_t prompt_done_ ABSL_GUARDED_BY(mutex_) = 0;
  std::optional<worker::FinishInfo> finished_ ABSL_GUARDED_BY(mutex_);
  MonotonicTime last_write_ ABSL_GUARDED_BY(mutex_);
  bool begun_ ABSL_GUARDED_BY(mutex_) = false;
  bool refused_ ABSL_GUARDED_BY(mutex_) = false;
  bool accepted_sent_ ABSL_GUARDED_BY(mutex_) = false;
  bool woken_ ABSL_GUARDED_BY(mutex_) = false;  // waits in the relay's queue
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool overflowed_ ABSL_GUARDED_BY(mutex_) = false;
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;  // nobody reads any more
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;  // Finish was called
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_WORKER_GENERATE_STREAM_H_
