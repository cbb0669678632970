// The mirror of all workers behind one lock: what worker streams feed and what lookups read.
#ifndef KVIST_SERVICES_CACHE_MANAGER_CLUSTER_H_
#define KVIST_SERVICES_CACHE_MANAGER_CLUSTER_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "cache_manager/cluster_index.h"
#include "cache_manager/stream/manager_side.h"
#include "common/base/clock.h"
#include "common/base/mutex.h"
#include "proto/kvist/v1/cache_manager.pb.h"
#include "services/runtime/metrics.h"
#include "services/runtime/stream_wire.h"

namespace kvist::services {

// The manager's end of one worker stream. Called under the cluster's lock: must not block or call
// back.
class WorkerConnection {
 public:
  virtual ~WorkerConnection() = default;
  virtual void Send(v1::ManagerMessage message) = 0;
  // Ends the stream; another took its place.
  virtual void Close(const absl::Status& status) = 0;
};

// Thread-safe. Nothing under its lock waits for a disk or the network.
class Cluster {
 public:
  struct Options {
    std::string manager_id;
    const Clock* clock = nullptr;       // outlives the cluster
    ManagerMetrics* metrics = nullptr;  // likewise
  };
  explicit Cluster(const Options& options);

  // --- worker streams
  // RESOURCE_EXHAUSTED beyond kMaxWorkerStreams.
  absl::StatusOr<cache_manager::ConnectionId> Open(std::shared_ptr<WorkerConnection> connection);
  // Not OK: end the stream with that status; the connection is forgotten.
  absl::Status Receive(cache_manager::ConnectionId id, const v1::WorkerMessage& message);
  // No-op if unknown.
  void Closed(cache_manager::ConnectionId id);
  // Ends all streams with `status`.
  void CloseAll(const absl::Status& status);
  // Liveness and patience; also brings the metrics up to date, with kBlocks those too that cost
  // O(blocks).
  enum class Recount { kCheap, kBlocks };
  void Tick(Recount recount);

  // --- lookups. Errors: INVALID_ARGUMENT with the field named, NOT_FOUND.
  // Also asks the workers that the caller doubts for their digests.
  absl::StatusOr<v1::LocateResponse> Locate(const v1::LocateRequest& request);
  v1::ListWorkersResponse ListWorkers() const;
  // NOT_FOUND if no worker holds anything of it.
  absl::StatusOr<v1::SessionMemory> MemoryOf(const SessionId& session) const;
  absl::StatusOr<v1::GetSessionMemoryResponse> MemoryPage(const std::string& after,
                                                          int32_t page_size) const;
  absl::StatusOr<v1::ListBlocksResponse> ListBlocks(const v1::ListBlocksRequest& request) const;
  v1::GetStatsResponse Stats() const;

  // --- commands
  // Sends to one worker or to all connected ones and waits for their outcomes until `deadline`. A
  // worker that does not answer in time is told as refused with that reason. Errors as
  // ManagerSide::Send.
  absl::StatusOr<v1::EvictResponse> Evict(const v1::EvictRequest& request,
                                          std::chrono::steady_clock::time_point deadline);
  // Tells every connected worker that the new session holds what the other does, and waits until
  // the mirrors show it or `deadline`. Whoever is not there or does not answer learns of the new
  // session with its next turn.
  void ForkSession(const SessionId& session, const SessionId& new_session,
                   std::chrono::steady_clock::time_point deadline);
  // Tells every connected worker that the session's history was cut to its first `keep_tokens` (0:
  // nothing of it is left), and waits until the mirrors show it or `deadline`. What a worker that
  // is not there holds goes when the session's next turn ends there, or with the room.
  void CutSession(const SessionId& session, uint64_t keep_tokens,
                  std::chrono::steady_clock::time_point deadline);
  // Tells every connected worker that the session was deleted, and waits until the mirrors show it
  // or `deadline`: a release that came later would meet the next session of that name.
  void ReleaseSession(const SessionId& session, std::chrono::steady_clock::time_point deadline);
  // The same of a session that is gone, whose name another one takes, if a mirror shows it still.
  void ReleaseNamesake(const SessionId& session, std::chrono::steady_clock::time_point deadline);
  // The same to one worker. Errors as ManagerSide::Send.
  absl::Status ReleaseSessionOn(const WorkerId& worker, const SessionId& session);

  // --- sessions deleted while a worker was away: what it holds is looked up once after each Hello
  struct HeldSession {
    SessionId id;
    bool active = false;  // a request of it runs
  };
  struct HeldPage {
    WorkerId worker;
    SessionId after;                    // where the page begins
    std::vector<HeldSession> sessions;  // by id, implicit ones left out
    SessionId last;                     // where the next one begins; empty: it was the last
  };
  // Of a worker whose mirror is exact and was not looked through since it came: the next sessions,
  // `limit` at most. The same again until Checked. nullopt: nothing to look at now. O(sessions of
  // the worker). REQUIRES: limit is 1 .. kMaxPageItems.
  std::optional<HeldPage> NextUnchecked(size_t limit) const;
  // The page was looked through. `again`: something in it has to wait, so the worker is looked
  // through once more after its last page.
  void Checked(const HeldPage& page, bool again);

 private:
  using OutcomeKey = std::pair<WorkerId, RequestId>;

  int64_t NowMs() const;
  void Dispatch() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Another worker's address is its own no longer.
  void ForgetOthersAt(const std::string& address, const WorkerId& worker)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ForgetLost(int64_t now_ms) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void UpdateMetrics(int64_t now_ms, Recount recount) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  v1::WorkerInfo Info(const cache_manager::WorkerEntry& entry, int64_t now_ms) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<v1::SessionMemory> MemoryLocked(const SessionId& session, int64_t now_ms) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<v1::ListBlocksResponse> BlocksOfSession(const cache_manager::WorkerEntry& entry,
                                                         const v1::ListBlocksRequest& request) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::vector<WorkerId> ConnectedWorkers() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // To every connected worker, and waits for the outcomes until `deadline`; what they say is
  // dropped.
  template <typename Command>
  void SendToAll(const Command& command, const RequestId& request,
                 std::chrono::steady_clock::time_point deadline)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Until all have come or `deadline`.
  void WaitForOutcomes(const std::vector<OutcomeKey>& sent,
                       std::chrono::steady_clock::time_point deadline)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Options options_;
  mutable Mutex mutex_;
  CondVar outcome_came_;
  cache_manager::ClusterIndex index_ ABSL_GUARDED_BY(mutex_);
  cache_manager::ManagerSide side_ ABSL_GUARDED_BY(mutex_);
  cache_manager::ConnectionId next_connection_ ABSL_GUARDED_BY(mutex_) = 1;
  absl::flat_hash_map<cache_manager::ConnectionId, std::shared_ptr<WorkerConnection>> connections_
      ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<WorkerId, WorkerDescription> descriptions_ ABSL_GUARDED_BY(mutex_);
  // Workers that came, and how far their sessions were looked through.
  struct Unchecked {
    SessionId after;
    bool again = false;
  };
  absl::flat_hash_map<WorkerId, Unchecked> unchecked_ ABSL_GUARDED_BY(mutex_);
  // The series that there are.
  absl::flat_hash_map<WorkerId, prometheus::Gauge*> confidence_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<OutcomeKey> awaited_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<OutcomeKey, cache_manager::CommandOutcome> outcomes_ ABSL_GUARDED_BY(mutex_);
  uint64_t resyncs_counted_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_CACHE_MANAGER_CLUSTER_H_
