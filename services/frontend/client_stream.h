// The way back to one client. A client that does not read makes Write wait, and is closed after a
// while.
#ifndef KVIST_SERVICES_FRONTEND_CLIENT_STREAM_H_
#define KVIST_SERVICES_FRONTEND_CLIENT_STREAM_H_

#include <grpcpp/grpcpp.h>
#include <grpcpp/support/sync_stream.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "absl/container/flat_hash_set.h"
#include "common/base/clock.h"
#include "common/base/mutex.h"
#include "proto/kvist/v1/inference.pb.h"

namespace kvist::services {

// Write: by one thread at a time. Gone: by any, also while one waits in Write; it does not wait.
class ClientStream {
 public:
  virtual ~ClientStream() = default;
  // false: the client is gone.
  virtual bool Write(const v1::GenerateResponse& response) = 0;
  virtual bool Gone() = 0;
};

// Closes calls whose Write has waited too long. Thread-safe. Owns a thread; outlives its streams.
class SlowClientWatch {
 public:
  SlowClientWatch(std::chrono::milliseconds patience, const Clock* clock);
  ~SlowClientWatch();

  // A synchronous gRPC stream under watch. Called as ClientStream says.
  class Stream final : public ClientStream {
   public:
    Stream(SlowClientWatch* watch, grpc::ServerContext* context,
           grpc::ServerWriter<v1::GenerateResponse>* writer);
    ~Stream() override;
    bool Write(const v1::GenerateResponse& response) override;
    bool Gone() override;
    // Whether the watch closed the call.
    bool closed_as_slow() const { return closed_; }

   private:
    friend class SlowClientWatch;
    SlowClientWatch* const watch_;
    grpc::ServerContext* const context_;
    grpc::ServerWriter<v1::GenerateResponse>* const writer_;
    std::atomic<MonotonicTime::rep> waiting_since_ = 0;  // 0: not in Write
    std::atomic<bool> closed_ = false;
  };

 private:
  void Loop();

  const std::chrono::milliseconds patience_;
  const Clock* const clock_;
  Mutex mutex_;
  CondVar wake_;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  absl::flat_hash_set<Stream*> streams_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_CLIENT_STREAM_H_
