// The manager's side of its streams to all workers.
#ifndef KVIST_CACHE_MANAGER_STREAM_MANAGER_SIDE_H_
#define KVIST_CACHE_MANAGER_STREAM_MANAGER_SIDE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cache_manager/cluster_index.h"
#include "cache_manager/stream/messages.h"

namespace kvist::cache_manager {

// Given by the adapter, never used twice.
using ConnectionId = uint64_t;

// A pure state machine that keeps the cluster index true to what workers send; time as an argument
// (milliseconds, monotonic, never going back). No message of one worker can disturb another's
// mirror. Single-threaded.
class ManagerSide {
 public:
  struct Outgoing {
    ConnectionId connection = 0;
    ManagerMessage message;
  };
  struct Outcome {
    WorkerId worker;
    CommandOutcome outcome;
  };

  // kRefused: the worker's address refuses new connections too, so it is lost.
  enum class Ending { kBroken, kRefused };

  // REQUIRES: `index` outlives it; nobody else changes it.
  explicit ManagerSide(ClusterIndex* index);
  ~ManagerSide();
  ManagerSide(const ManagerSide&) = delete;
  ManagerSide& operator=(const ManagerSide&) = delete;

  // A message came over `connection`; the first of each must be Hello. Not OK: close the connection
  // with that status (then Closed need not be called). INVALID_ARGUMENT: no honest worker sends
  // this. FAILED_PRECONDITION: another connection or a newer incarnation took this one's place.
  // RESOURCE_EXHAUSTED: too many workers.
  absl::Status Receive(ConnectionId connection, WorkerMessage message, int64_t now_ms);
  // The connection is gone. No-op if unknown.
  void Closed(ConnectionId connection, Ending ending);
  // Drops a worker that is not connected, with all that is known of it. No-op if unknown or
  // connected.
  void Forget(const WorkerId& worker);
  // Asks again for snapshots that stopped, and gives up on commands to lost workers. Call about
  // once per second.
  void Tick(int64_t now_ms);

  // Sends a command; `command.incarnation` is filled in. Those without an outcome are sent again
  // after a reconnect, in the same order. NOT_FOUND: no such worker. UNAVAILABLE: not connected.
  // INVALID_ARGUMENT: bounds. RESOURCE_EXHAUSTED: too many in flight. ABORTED: that request id is
  // in flight.
  absl::Status Send(const WorkerId& worker, EvictCommand command);
  // The same. FAILED_PRECONDITION: the worker's version does not understand it.
  absl::Status Send(const WorkerId& worker, ForkCommand command);

  // Somebody was promised blocks that were not there: the worker is to send its digests now, and if
  // the mirror drifted, the snapshot follows. At most one in kHeartbeatIntervalMs. false: not sent,
  // because that life of the worker is not connected, is in resync, was asked just now, or does not
  // understand.
  bool AskForDigest(const WorkerId& worker, const Incarnation& incarnation, int64_t now_ms);

  // What is to be sent, in order, and forgotten here.
  std::vector<Outgoing> TakeOutgoing() { return std::exchange(outgoing_, {}); }
  // Connections that another took the place of: close them.
  std::vector<ConnectionId> TakeClosing() { return std::exchange(closing_, {}); }
  // Outcomes of commands sent.
  std::vector<Outcome> TakeOutcomes() { return std::exchange(outcomes_, {}); }

 private:
  struct Peer;

  absl::Status OnHello(ConnectionId connection, const Hello& hello, int64_t now_ms);
  absl::Status OnMessage(Peer& peer, EventBatch& batch, int64_t now_ms);
  absl::Status OnMessage(Peer& peer, Heartbeat& heartbeat, int64_t now_ms);
  absl::Status OnMessage(Peer& peer, SnapshotChunk& chunk, int64_t now_ms);
  absl::Status OnMessage(Peer& peer, CommandOutcome& outcome, int64_t now_ms);

  absl::Status ApplyInOrder(Peer& peer, EventBatch& batch, size_t skip, int64_t now_ms);
  absl::Status ApplyOne(Peer& peer, const Event& event);
  void Buffer(Peer& peer, EventBatch& batch, int64_t now_ms);
  absl::Status FinishSnapshot(Peer& peer, uint64_t end_seq, int64_t now_ms);
  void StartResync(Peer& peer, int64_t now_ms);
  // The peer that a command can be sent to.
  absl::StatusOr<Peer*> PeerFor(const WorkerId& worker, const RequestId& request);
  template <typename Command>
  void SendTo(Peer& peer, Command command);
  absl::Status MakeRoom(int64_t now_ms);
  void StartOver(Peer& peer, const Incarnation& earlier);
  void RefuseCommands(Peer& peer, const char* reason);
  void Disconnect(Peer& peer);

  ClusterIndex* const index_;
  absl::flat_hash_map<WorkerId, std::unique_ptr<Peer>> peers_;
  absl::flat_hash_map<ConnectionId, Peer*> connections_;
  std::vector<Outgoing> outgoing_;
  std::vector<ConnectionId> closing_;
  std::vector<Outcome> outcomes_;
  uint64_t next_resync_id_ = 1;
};

}  // namespace kvist::cache_manager

#endif  // KVIST_CACHE_MANAGER_STREAM_MANAGER_SIDE_H_
