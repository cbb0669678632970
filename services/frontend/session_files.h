// Sessions as files: Export and Import of the Sessions service. The record comes from the cache
// manager and goes to it, the blocks are those of a worker.
#ifndef KVIST_SERVICES_FRONTEND_SESSION_FILES_H_
#define KVIST_SERVICES_FRONTEND_SESSION_FILES_H_

#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "common/base/mutex.h"
#include "proto/kvist/v1/session.grpc.pb.h"
#include "proto/kvist/v1/worker.pb.h"
#include "services/frontend/frontend_state.h"
#include "worker/kv/session_file.h"

namespace kvist::services {

// Errors as session.proto says. Both hold the caller's thread; a client that stands still for
// kSessionFilePatience, or takes kMaxSessionFileTime for it all, is cancelled.
absl::Status ExportSession(FrontendState& state, const v1::ExportSessionRequest& request,
                           grpc::ServerContext* context,
                           grpc::ServerWriter<v1::ExportSessionResponse>* writer);
absl::Status ImportSession(FrontendState& state, grpc::ServerContext* context,
                           grpc::ServerReader<v1::ImportSessionRequest>* reader,
                           v1::ImportSessionResponse* response);

// Cancels a call whose client stands still for kSessionFilePatience or is not done
// kMaxSessionFileTime after the beginning. Single-threaded.
class CallPatience {
 public:
  // REQUIRES: the context outlives it.
  explicit CallPatience(grpc::ServerContext* context);
  ~CallPatience();
  CallPatience(const CallPatience&) = delete;
  CallPatience& operator=(const CallPatience&) = delete;

  // Around each wait for the client.
  void Start();
  void Stop() { alarm_.reset(); }

 private:
  struct Target {
    Mutex mutex;
    grpc::ServerContext* context ABSL_GUARDED_BY(mutex) = nullptr;
  };
  const std::chrono::system_clock::time_point last_;
  const std::shared_ptr<Target> target_;  // also the alarm's, which may come late
  std::unique_ptr<grpc::Alarm> alarm_;
};

// What names the blocks of a session on a worker. `cache` is the session's.
v1::SessionHistory HistoryOf(const FrontendState& state, const std::string& id,
                             const worker::SessionFileRecord& record, const v1::CacheParams& cache);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_SESSION_FILES_H_
