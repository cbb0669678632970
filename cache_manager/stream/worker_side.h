// The worker's side of its stream to one manager.
#ifndef KVIST_CACHE_MANAGER_STREAM_WORKER_SIDE_H_
#define KVIST_CACHE_MANAGER_STREAM_WORKER_SIDE_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "cache_manager/limits.h"
#include "cache_manager/snapshot.h"
#include "cache_manager/stream/messages.h"

namespace kvist::cache_manager {

// A pure state machine: messages in, messages out, time as an argument (milliseconds, monotonic).
// Takes events from the log, reads pools and sessions for snapshots, and executes commands on them.
// What it is asked to send waits where it is (the log, the builder), so that a slow manager costs
// bounded memory: beyond it the log drops events and a snapshot heals the mirror. Single-threaded,
// on the thread of the pools (the engine's, between steps).
class WorkerSide {
 public:
  struct Sources {
    Pools pools;
    SessionTable* sessions = nullptr;
    EventLog* log = nullptr;
    Tiers tiers;
  };

  // REQUIRES: the sources outlive it; `info` describes the pools.
  WorkerSide(WorkerInfo info, const Sources& sources);

  // A connection stands: returns the first message to send on it. What the last connection had
  // under way is dropped.
  Hello Connect(int64_t now_ms);
  void Disconnect();
  bool connected() const { return connected_; }

  // A message came. INVALID_ARGUMENT: close the connection; nothing changed.
  absl::Status Receive(const ManagerMessage& message);

  // At most `max_messages` messages to send now, in this order; the rest comes with the next call.
  // Call once per engine step, at least every 100 ms. Empty while not connected.
  std::vector<WorkerMessage> Poll(int64_t now_ms, const WorkerLoad& load, size_t max_messages);
  // Whether the next Poll has something to send beside heartbeats.
  bool has_more() const;
  // What the manager wished, or the default until it did.
  int64_t heartbeat_interval_ms() const { return heartbeat_interval_ms_; }

 private:
  // Of a command that is not to be executed: meant for another life, or executed before.
  std::optional<CommandOutcome> Settled(const RequestId& request,
                                        const Incarnation& incarnation) const;
  CommandOutcome Execute(const EvictCommand& command);
  CommandOutcome Execute(const ForkCommand& command);
  CommandOutcome Evict(const EvictCommand& command);
  void EvictSession(const EvictCommand& command, CommandOutcome& outcome);
  uint32_t KeptBlocks(const EvictCommand& command) const;
  void EvictFromTiers(PoolIndex pool, const BlockKey& key, EvictionCause cause);
  void Remember(const CommandOutcome& outcome);
  SnapshotChunk NextChunk();

  const WorkerInfo info_;
  const Sources sources_;
  bool connected_ = false;
  int64_t heartbeat_interval_ms_;
  std::optional<int64_t> last_heartbeat_ms_;  // nullopt: one is due
  std::optional<SnapshotBuilder> snapshot_;
  uint64_t resync_id_ = 0;
  uint32_t next_chunk_ = 0;
  uint64_t intent_version_ = 0;          // newest seen
  std::deque<CommandOutcome> outcomes_;  // to send
  absl::flat_hash_map<RequestId, CommandOutcome> executed_;
  std::deque<RequestId> executed_order_;  // oldest first
};

// Says when the worker must show that it lives while its WorkerSide cannot be asked: an engine in a
// step of ten seconds would else be taken for lost. Pure, time as an argument. Single-threaded, on
// the thread that writes to the stream.
class SignOfLife {
 public:
  // A message was written, whatever it said; `interval_ms`: how long silence may be.
  void Sent(int64_t now_ms, int64_t interval_ms) {
    last_sent_ms_ = now_ms;
    interval_ms_ = interval_ms;
  }
  // Alive if it is due, and counted as sent.
  std::optional<Alive> Poll(int64_t now_ms) {
    if (now_ms - last_sent_ms_ < interval_ms_) return std::nullopt;
    last_sent_ms_ = now_ms;
    return Alive{};
  }

 private:
  int64_t last_sent_ms_ = 0;
  int64_t interval_ms_ = kHeartbeatIntervalMs;
};

}  // namespace kvist::cache_manager

#endif  // KVIST_CACHE_MANAGER_STREAM_WORKER_SIDE_H_
