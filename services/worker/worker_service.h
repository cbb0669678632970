// The Worker service over an engine.
#ifndef KVIST_SERVICES_WORKER_WORKER_SERVICE_H_
#define KVIST_SERVICES_WORKER_WORKER_SERVICE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/base/clock.h"
#include "common/base/mutex.h"
#include "proto/kvist/v1/worker.grpc.pb.h"
#include "services/runtime/metrics.h"
#include "services/worker/session_transfer.h"
#include "services/worker/stream_relay.h"
#include "worker/engine/engine.h"

namespace kvist::services {

// Generate holds no thread (callbacks and the relay); the other methods are synchronous.
// Thread-safe.
class WorkerService final : public v1::Worker::WithCallbackMethod_Generate<v1::Worker::Service> {
 public:
  struct Options {
    worker::Engine* engine = nullptr;  // all outlive the service
    StreamRelay* relay = nullptr;
    const Clock* clock = nullptr;
    WorkerMetrics* metrics = nullptr;
    v1::GetModelResponse model;      // whole; stop ids are taken from its vocabulary
    std::function<void()> on_drain;  // the worker takes nothing new from now on; may come again
  };
  explicit WorkerService(Options options);

  grpc::ServerWriteReactor<v1::WorkerGenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::WorkerGenerateRequest* request) override;
  grpc::Status GetModel(grpc::ServerContext* context, const v1::GetModelRequest* request,
                        v1::GetModelResponse* response) override;
  grpc::Status GetLoad(grpc::ServerContext* context, const v1::GetLoadRequest* request,
                       v1::GetLoadResponse* response) override;
  grpc::Status Drain(grpc::ServerContext* context, const v1::DrainRequest* request,
                     v1::DrainResponse* response) override;
  grpc::Status ExportSession(grpc::ServerContext* context, const v1::WorkerExportRequest* request,
                             grpc::ServerWriter<v1::WorkerExportResponse>* writer) override;
  grpc::Status ImportSession(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::WorkerImportResponse, v1::WorkerImportRequest>* stream) override;

  // Cancels the live requests of a session.
  void CancelSession(const SessionId& session) ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits until nothing runs or waits; false: `deadline` passed or `cancelled` said so.
  bool WaitUntilIdle(std::chrono::steady_clock::time_point deadline,
                     const std::function<bool()>& cancelled) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  absl::Status Submit(const v1::WorkerGenerateRequest& request,
                      grpc::CallbackServerContext* context,
                      std::shared_ptr<worker::TokenSink> sink);
  void Forget(const SessionId& session, const RequestId& request) ABSL_LOCKS_EXCLUDED(mutex_);

  const Options options_;
  const v1::GetModelResponse model_;  // without the vocabulary, which has megabytes
  const std::vector<int32_t> model_stop_ids_;
  SessionTransfer transfer_;
  std::atomic<int> drain_calls_{0};

  Mutex mutex_;
  CondVar request_ended_;
  // With their sinks, which live at least until the request is forgotten here.
  absl::flat_hash_map<SessionId, absl::flat_hash_map<RequestId, const worker::TokenSink*>> live_
      ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_WORKER_WORKER_SERVICE_H_
