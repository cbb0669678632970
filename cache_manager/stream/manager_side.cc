// A peer is in one of two states.
//   following: events are applied in order; next_seq is the one that comes next. Events up to
//   replay_through were
//     under way while a snapshot was read and are applied as replay.
//   resync (resync_id != 0): the mirror stands still. Snapshot parts build `shadow`; live events
//   wait in `buffer`,
//     without holes, from buffer_first_seq on. The last part swaps shadow and mirror, drains the
//     buffer, and leads back to following.
// A hole in the buffer drops it: it then begins after the hole. Only a snapshot that began before
// the hole is of no use any more, and is asked for again.
#include "cache_manager/stream/manager_side.h"

#include <algorithm>
#include <deque>
#include <iterator>
#include <optional>
#include <type_traits>

#include "cache_manager/limits.h"
#include "cache_manager/stream/validate.h"
#include "common/base/check.h"
#include "common/base/status.h"

namespace kvist::cache_manager {
namespace {

constexpr uint32_t kVersionOfForks = 3;

}  // namespace

struct ManagerSide::Peer {
  WorkerEntry* entry = nullptr;  // the index's; never null after the first Hello
  std::optional<ConnectionId> connection;
  std::deque<Incarnation> replaced;  // earlier lives, newest last
  uint32_t protocol_version = 0;     // of the worker
  std::optional<int64_t> digest_asked_ms;

  uint64_t next_seq = 1;
  uint64_t replay_through = 0;

  uint64_t resync_id = 0;
  int64_t progress_at_ms = 0;  // of the snapshot
  std::unique_ptr<WorkerMirror> shadow;
  uint32_t next_chunk = 0;
  uint64_t base_seq = 0;  // of the snapshot, known with its first part
  uint64_t buffer_first_seq = 0;
  std::vector<Event> buffer;
  size_t buffer_keys = 0;  // of the holdings in it; of no meaning while buffer_first_seq is 0

  // In flight, in the order of their sending, which is that of sending them again: a fork may need
  // the eviction before it. At most kMaxCommandsInFlight.
  std::vector<std::pair<RequestId, ManagerMessage>> commands;

  auto Find(const RequestId& request) {
    return std::find_if(commands.begin(), commands.end(),
                        [&](const auto& command) { return command.first == request; });
  }
};

ManagerSide::ManagerSide(ClusterIndex* index) : index_(index) { KVIST_CHECK(index != nullptr); }
ManagerSide::~ManagerSide() = default;

absl::Status ManagerSide::Receive(ConnectionId connection, WorkerMessage message, int64_t now_ms) {
  const bool only_alive = std::holds_alternative<Alive>(message);
  if (const auto* hello = std::get_if<Hello>(&message)) return OnHello(connection, *hello, now_ms);
  const auto found = connections_.find(connection);
  if (found == connections_.end()) {
    return absl::FailedPreconditionError("no Hello came, or another connection took the place");
  }
  Peer& peer = *found->second;
  const absl::Status status = std::visit(
      [&](auto& m) -> absl::Status {
        using M = std::decay_t<decltype(m)>;
        if constexpr (std::is_same_v<M, Hello>) {
          return absl::OkStatus();
        } else if constexpr (std::is_same_v<M, Alive>) {
          return absl::OkStatus();  // it was heard: that is all
        } else if constexpr (std::is_same_v<M, CommandOutcome>) {
          KVIST_RETURN_IF_ERROR(Validate(m));
          return OnMessage(peer, m, now_ms);
        } else {
          KVIST_RETURN_IF_ERROR(Validate(m, peer.entry->info.pools.size()));
          return OnMessage(peer, m, now_ms);
        }
      },
      message);
  if (status.ok()) {
    peer.entry->last_heard_ms = now_ms;
    if (!only_alive) peer.entry->told_at_ms = now_ms;
    return status;
  }
  Disconnect(peer);
  // A refused event may have changed the mirror in part.
  peer.resync_id = next_resync_id_++;
  peer.entry->in_resync = true;
  return status;
}

absl::Status ManagerSide::OnHello(ConnectionId connection, const Hello& hello, int64_t now_ms) {
  KVIST_RETURN_IF_ERROR(Validate(hello));
  if (connections_.contains(connection)) {
    Disconnect(*connections_[connection]);
    return InvalidField("hello", "came twice");
  }
  const auto known = peers_.find(hello.info.id);
  if (known != peers_.end()) {
    Peer& peer = *known->second;
    const auto& replaced = peer.replaced;
    if (std::find(replaced.begin(), replaced.end(), hello.info.incarnation) != replaced.end()) {
      return absl::FailedPreconditionError("a newer incarnation took this one's place");
    }
    const WorkerInfo& info = peer.entry->info;
    if (info.incarnation == hello.info.incarnation && info != hello.info) {
      return InvalidField("hello", "differs from the same incarnation's earlier one");
    }
  }
  Incarnation earlier;
  if (known != peers_.end()) earlier = known->second->entry->info.incarnation;
  const bool is_new_life = earlier != hello.info.incarnation;
  if (known == peers_.end()) KVIST_RETURN_IF_ERROR(MakeRoom(now_ms));
  WorkerEntry* const entry = index_->Put(hello.info, now_ms);
  std::unique_ptr<Peer>& place = peers_[hello.info.id];
  if (place == nullptr) place = std::make_unique<Peer>();
  Peer& peer = *place;
  if (peer.connection.has_value()) closing_.push_back(*peer.connection);
  if (peer.connection.has_value()) connections_.erase(*peer.connection);
  peer.entry = entry;
  peer.connection = connection;
  peer.protocol_version = hello.protocol_version;
  peer.digest_asked_ms.reset();
  connections_[connection] = &peer;
  entry->connected = true;
  entry->refused = false;
  entry->verified = false;
  entry->last_heard_ms = now_ms;
  entry->told_at_ms = now_ms;
  outgoing_.push_back({connection, Welcome{.protocol_version = hello.protocol_version,
                                           .heartbeat_interval_ms = kHeartbeatIntervalMs}});
  if (is_new_life) StartOver(peer, earlier);
  // The worker cannot have sent events that it does not have: whatever they were, start from a
  // snapshot.
  const bool ahead = hello.last_seq + 1 < peer.next_seq;
  if (is_new_life || ahead || peer.resync_id != 0) StartResync(peer, now_ms);
  for (const auto& [request, command] : peer.commands) outgoing_.push_back({connection, command});
  return absl::OkStatus();
}

// The worker lost for longest makes room for a new one.
absl::Status ManagerSide::MakeRoom(int64_t now_ms) {
  if (peers_.size() < kMaxWorkers) return absl::OkStatus();
  const Peer* longest_lost = nullptr;
  for (const auto& [id, peer] : peers_) {
    if (peer->entry->LivenessAt(now_ms) != Liveness::kLost || peer->connection) continue;
    if (longest_lost == nullptr ||
        peer->entry->last_heard_ms < longest_lost->entry->last_heard_ms) {
      longest_lost = peer.get();
    }
  }
  if (longest_lost == nullptr) {
    return absl::ResourceExhaustedError("the manager has as many workers as it can take");
  }
  Forget(WorkerId(longest_lost->entry->info.id));
  return absl::OkStatus();
}

void ManagerSide::Forget(const WorkerId& worker) {
  const auto found = peers_.find(worker);
  if (found == peers_.end() || found->second->connection.has_value()) return;
  RefuseCommands(*found->second, "the worker is lost");
  peers_.erase(found);
  index_->Remove(worker);
}

// The peer's entry is a new one: nothing of the earlier life counts.
void ManagerSide::StartOver(Peer& peer, const Incarnation& earlier) {
  RefuseCommands(peer, "the worker restarted");
  peer.resync_id = 0;
  peer.next_seq = 1;
  peer.replay_through = 0;
  if (earlier.empty()) return;
  peer.replaced.push_back(earlier);
  if (peer.replaced.size() > kMaxRememberedIncarnations) peer.replaced.pop_front();
}

absl::Status ManagerSide::OnMessage(Peer& peer, EventBatch& batch, int64_t now_ms) {
  peer.entry->load = batch.load;
  peer.entry->load_at_ms = now_ms;
  if (peer.resync_id != 0) {
    Buffer(peer, batch, now_ms);
    return absl::OkStatus();
  }
  if (batch.first_seq > peer.next_seq) {
    StartResync(peer, now_ms);
    Buffer(peer, batch, now_ms);
    return absl::OkStatus();
  }
  const uint64_t seen = peer.next_seq - batch.first_seq;
  if (seen >= batch.events.size()) return absl::OkStatus();
  return ApplyInOrder(peer, batch, static_cast<size_t>(seen), now_ms);
}

absl::Status ManagerSide::ApplyOne(Peer& peer, const Event& event) {
  const bool replay = peer.next_seq <= peer.replay_through;
  KVIST_RETURN_IF_ERROR(
      peer.entry->mirror->Apply(event, replay ? ApplyMode::kReplay : ApplyMode::kInOrder));
  peer.entry->last_seq = peer.next_seq++;
  return absl::OkStatus();
}

absl::Status ManagerSide::ApplyInOrder(Peer& peer, EventBatch& batch, size_t skip, int64_t now_ms) {
  for (size_t i = skip; i < batch.events.size(); ++i) {
    const absl::Status status = ApplyOne(peer, batch.events[i]);
    if (status.ok()) continue;
    if (!absl::IsFailedPrecondition(status)) return status;
    ++peer.entry->drifts;
    StartResync(peer, now_ms);
    batch.first_seq += i;
    batch.events.erase(batch.events.begin(), batch.events.begin() + static_cast<ptrdiff_t>(i));
    Buffer(peer, batch, now_ms);
    return absl::OkStatus();
  }
  return absl::OkStatus();
}

void ManagerSide::Buffer(Peer& peer, EventBatch& batch, int64_t now_ms) {
  const uint64_t next = peer.buffer_first_seq + peer.buffer.size();
  const bool empty = peer.buffer_first_seq == 0;
  if (!empty && batch.first_seq < next) {
    const uint64_t seen = next - batch.first_seq;
    if (seen >= batch.events.size()) return;
    batch.events.erase(batch.events.begin(), batch.events.begin() + static_cast<ptrdiff_t>(seen));
    batch.first_seq = next;
  }
  const bool hole = !empty && batch.first_seq > next;
  size_t keys = 0;
  for (const Event& event : batch.events) keys += KeyCount(event);
  const bool full = peer.buffer.size() + batch.events.size() > kMaxBufferedEvents ||
                    peer.buffer_keys + keys > kMaxBufferedKeys;
  if (empty || hole || full) {
    peer.buffer.clear();
    peer.buffer_keys = 0;
    peer.buffer_first_seq = batch.first_seq;
  }
  peer.buffer_keys += keys;
  std::move(batch.events.begin(), batch.events.end(), std::back_inserter(peer.buffer));
  const bool useless = peer.next_chunk > 0 && peer.base_seq + 1 < peer.buffer_first_seq;
  if (useless) StartResync(peer, now_ms);
}

absl::Status ManagerSide::OnMessage(Peer& peer, Heartbeat& heartbeat, int64_t now_ms) {
  WorkerEntry& entry = *peer.entry;
  entry.load = heartbeat.load;
  entry.load_at_ms = now_ms;
  if (peer.resync_id != 0 || heartbeat.seq + 1 < peer.next_seq) return absl::OkStatus();
  if (heartbeat.seq + 1 > peer.next_seq) {  // events before it were lost
    StartResync(peer, now_ms);
    return absl::OkStatus();
  }
  for (size_t i = 0; i < heartbeat.digests.size(); ++i) {
    if (entry.mirror->digest(static_cast<PoolIndex>(i)) == heartbeat.digests[i]) continue;
    ++entry.drifts;
    StartResync(peer, now_ms);
    return absl::OkStatus();
  }
  entry.verified = true;
  return absl::OkStatus();
}

absl::Status ManagerSide::OnMessage(Peer& peer, SnapshotChunk& chunk, int64_t now_ms) {
  if (chunk.resync_id != peer.resync_id || peer.resync_id == 0) return absl::OkStatus();
  if (chunk.index < peer.next_chunk) return absl::OkStatus();
  if (chunk.index > peer.next_chunk) {  // one before it was lost
    StartResync(peer, now_ms);
    return absl::OkStatus();
  }
  if (chunk.index == 0) peer.base_seq = chunk.base_seq;
  if (chunk.base_seq != peer.base_seq) return InvalidField("base_seq", "changed in a snapshot");
  ++peer.next_chunk;
  peer.progress_at_ms = now_ms;
  if (peer.buffer_first_seq > peer.base_seq + 1) {  // events between the two were lost
    StartResync(peer, now_ms);
    return absl::OkStatus();
  }
  for (const Event& event : chunk.events) {
    KVIST_RETURN_IF_ERROR(peer.shadow->Apply(event, ApplyMode::kReplay));
  }
  return chunk.last ? FinishSnapshot(peer, chunk.end_seq, now_ms) : absl::OkStatus();
}

absl::Status ManagerSide::FinishSnapshot(Peer& peer, uint64_t end_seq, int64_t now_ms) {
  WorkerEntry& entry = *peer.entry;
  peer.shadow->AddEvictionCounts(*entry.mirror);
  entry.mirror = std::move(peer.shadow);
  entry.has_snapshot = true;
  entry.in_resync = false;
  entry.last_seq = peer.base_seq;
  peer.resync_id = 0;
  peer.next_seq = peer.base_seq + 1;
  peer.replay_through = end_seq;
  EventBatch buffered{.first_seq = peer.buffer_first_seq, .events = std::move(peer.buffer)};
  peer.buffer.clear();
  const uint64_t skip = buffered.events.empty() ? 0 : peer.next_seq - buffered.first_seq;
  if (skip >= buffered.events.size()) return absl::OkStatus();
  return ApplyInOrder(peer, buffered, static_cast<size_t>(skip), now_ms);
}

absl::Status ManagerSide::OnMessage(Peer& peer, CommandOutcome& outcome, int64_t) {
  const auto command = peer.Find(outcome.request);
  if (command == peer.commands.end()) return absl::OkStatus();
  peer.commands.erase(command);
  outcomes_.push_back({peer.entry->info.id, std::move(outcome)});
  return absl::OkStatus();
}

// Keeps what the buffer has: the next snapshot may begin before it.
void ManagerSide::StartResync(Peer& peer, int64_t now_ms) {
  WorkerEntry& entry = *peer.entry;
  if (peer.resync_id == 0) {
    peer.buffer.clear();
    peer.buffer_first_seq = 0;
  }
  ++entry.resyncs;
  entry.in_resync = true;
  entry.verified = false;
  peer.resync_id = next_resync_id_++;
  peer.progress_at_ms = now_ms;
  peer.shadow = std::make_unique<WorkerMirror>(entry.info);
  peer.next_chunk = 0;
  peer.base_seq = 0;
  if (peer.connection.has_value()) {
    outgoing_.push_back({*peer.connection, ResyncRequest{.resync_id = peer.resync_id}});
  }
}

void ManagerSide::Closed(ConnectionId connection, Ending ending) {
  const auto found = connections_.find(connection);
  if (found == connections_.end()) return;
  found->second->entry->refused = ending == Ending::kRefused;
  Disconnect(*found->second);
}

void ManagerSide::Disconnect(Peer& peer) {
  if (!peer.connection.has_value()) return;
  connections_.erase(*peer.connection);
  peer.connection.reset();
  peer.entry->connected = false;
  peer.entry->verified = false;
  // A new connection starts its snapshot over; meanwhile the parts only cost memory.
  peer.shadow.reset();
  peer.buffer.clear();
  peer.buffer.shrink_to_fit();
  peer.buffer_first_seq = 0;
}

void ManagerSide::Tick(int64_t now_ms) {
  for (const auto& [id, peer] : peers_) {
    if (!peer->commands.empty() && peer->entry->LivenessAt(now_ms) == Liveness::kLost) {
      RefuseCommands(*peer, "the worker is lost");
    }
    const bool stopped = peer->resync_id != 0 && peer->connection.has_value() &&
                         now_ms - peer->progress_at_ms >= kSnapshotPatienceMs;
    if (stopped) StartResync(*peer, now_ms);
  }
}

void ManagerSide::RefuseCommands(Peer& peer, const char* reason) {
  for (const auto& [request, command] : peer.commands) {
    outcomes_.push_back(
        {peer.entry->info.id,
         CommandOutcome{.request = request, .result = CommandResult::kRefused, .reason = reason}});
  }
  peer.commands.clear();
}

absl::StatusOr<ManagerSide::Peer*> ManagerSide::PeerFor(const WorkerId& worker,
                                                        const RequestId& request) {
  const auto found = peers_.find(worker);
  if (found == peers_.end()) return absl::NotFoundError("no such worker");
  Peer& peer = *found->second;
  if (!peer.connection.has_value()) {
    return Unavailable(ErrorReason::kNoWorker, "the worker is not connected");
  }
  if (peer.Find(request) != peer.commands.end()) {
    return absl::AbortedError("a command with this request id is in flight");
  }
  if (peer.commands.size() >= kMaxCommandsInFlight) {
    return Overloaded("commands in flight to the worker", kHeartbeatIntervalMs);
  }
  return &peer;
}

template <typename Command>
void ManagerSide::SendTo(Peer& peer, Command command) {
  command.incarnation = peer.entry->info.incarnation;
  outgoing_.push_back({*peer.connection, command});
  const RequestId request = command.request;
  peer.commands.emplace_back(request, std::move(command));
}

absl::Status ManagerSide::Send(const WorkerId& worker, EvictCommand command) {
  KVIST_ASSIGN_OR_RETURN(Peer* const peer, PeerFor(worker, command.request));
  KVIST_RETURN_IF_ERROR(Validate(command));
  SendTo(*peer, std::move(command));
  return absl::OkStatus();
}

absl::Status ManagerSide::Send(const WorkerId& worker, ForkCommand command) {
  KVIST_ASSIGN_OR_RETURN(Peer* const peer, PeerFor(worker, command.request));
  if (peer->protocol_version < kVersionOfForks) {
    return absl::FailedPreconditionError("the worker knows no forks");
  }
  KVIST_RETURN_IF_ERROR(Validate(command));
  SendTo(*peer, std::move(command));
  return absl::OkStatus();
}

bool ManagerSide::AskForDigest(const WorkerId& worker, const Incarnation& incarnation,
                               int64_t now_ms) {
  const auto found = peers_.find(worker);
  if (found == peers_.end() || found->second->entry->info.incarnation != incarnation) return false;
  Peer& peer = *found->second;
  const bool understands = peer.protocol_version >= 2;
  const bool asked_just_now =
      peer.digest_asked_ms.has_value() && now_ms - *peer.digest_asked_ms < kHeartbeatIntervalMs;
  if (!peer.connection.has_value() || peer.resync_id != 0 || asked_just_now || !understands) {
    return false;
  }
  peer.digest_asked_ms = now_ms;
  outgoing_.push_back({*peer.connection, DigestRequest()});
  return true;
}

}  // namespace kvist::cache_manager
