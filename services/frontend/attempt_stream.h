// One attempt's stream from a worker, readable with a time limit and bounded in memory.
#ifndef KVIST_SERVICES_FRONTEND_ATTEMPT_STREAM_H_
#define KVIST_SERVICES_FRONTEND_ATTEMPT_STREAM_H_

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstddef>
#include <deque>
#include <memory>

#include "absl/status/status.h"
#include "common/base/clock.h"
#include "common/base/mutex.h"
#include "proto/kvist/v1/worker.grpc.pb.h"

namespace kvist::services {

// Reads ahead up to `max_buffered_bytes`, then lets the worker wait (HTTP/2 flow control). One
// reader; Thread-safe against gRPC's threads. Destruction cancels what is left and waits until gRPC
// has let go, which it does at once.
class AttemptStream final : private grpc::ClientReadReactor<v1::WorkerGenerateResponse> {
 public:
  struct Options {
    std::chrono::system_clock::time_point deadline;
    size_t max_buffered_bytes = size_t{1} << 20;
  };
  // REQUIRES: the stub's channel outlives the stream.
  AttemptStream(v1::Worker::StubInterface* stub, const v1::WorkerGenerateRequest& request,
                const Options& options);
  ~AttemptStream() override;

  enum class Event { kMessage, kEnd, kTimeout };
  // Waits until `until` for the next message. kEnd: `*status` is how the call ended; every message
  // came before.
  Event Next(MonotonicTime until, v1::WorkerGenerateResponse* message, absl::Status* status)
      ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void OnReadDone(bool ok) override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnDone(const grpc::Status& status) override ABSL_LOCKS_EXCLUDED(mutex_);

  const size_t max_buffered_bytes_;
  v1::WorkerGenerateRequest request_;
  grpc::ClientContext context_;
  v1::WorkerGenerateResponse incoming_;  // gRPC's while a read is on its way

  Mutex mutex_;
  CondVar changed_;
  std::deque<v1::WorkerGenerateResponse> messages_ ABSL_GUARDED_BY(mutex_);
  size_t buffered_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool reading_ ABSL_GUARDED_BY(mutex_) = true;
  bool held_ ABSL_GUARDED_BY(mutex_) = true;      // our hold, that lets Next start reads
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;  // nobody calls Next any more
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_ATTEMPT_STREAM_H_
