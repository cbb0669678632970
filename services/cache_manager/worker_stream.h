// One worker's stream at the manager.
#ifndef KVIST_SERVICES_CACHE_MANAGER_WORKER_STREAM_H_
#define KVIST_SERVICES_CACHE_MANAGER_WORKER_STREAM_H_

#include <grpcpp/grpcpp.h>

#include <deque>
#include <memory>
#include <optional>

#include "common/base/mutex.h"
#include "proto/kvist/v1/cache_manager.pb.h"
#include "services/cache_manager/cluster.h"

namespace kvist::services {

// Reads a message, hands it to the cluster, reads the next; writes what the cluster sends, one
// message at a time; a worker for which more than kMaxQueuedManagerMessages wait is closed. Holds
// no thread. Lives until gRPC and the cluster have both let go of it. Thread-safe.
class WorkerStream final : public grpc::ServerBidiReactor<v1::WorkerMessage, v1::ManagerMessage>,
                           public WorkerConnection,
                           public std::enable_shared_from_this<WorkerStream> {
 public:
  // Starts the stream; gRPC owns the result until OnDone. REQUIRES: the cluster outlives the
  // server's calls.
  static WorkerStream* Start(grpc::CallbackServerContext* context, Cluster* cluster);

  void Send(v1::ManagerMessage message) override;
  void Close(const absl::Status& status) override;

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone() override;

 private:
  WorkerStream(grpc::CallbackServerContext* context, Cluster* cluster)
      : context_(context), cluster_(cluster) {}
  // Starts the next write or the end, if it is time. Called without the lock.
  void Advance() ABSL_LOCKS_EXCLUDED(mutex_);

  grpc::CallbackServerContext* const context_;
  Cluster* const cluster_;
  std::shared_ptr<WorkerStream> self_;             // gRPC's share
  std::optional<cache_manager::ConnectionId> id_;  // nullopt: the cluster did not take it
  v1::WorkerMessage incoming_;
  v1::ManagerMessage outgoing_;  // of the write under way

  Mutex mutex_;
  std::deque<v1::ManagerMessage> queue_ ABSL_GUARDED_BY(mutex_);
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_CACHE_MANAGER_WORKER_STREAM_H_
