// The ordered log of what happened to a worker's blocks and sessions, waiting to be sent to a
// manager.
#ifndef KVIST_CACHE_MANAGER_EVENT_LOG_H_
#define KVIST_CACHE_MANAGER_EVENT_LOG_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cache_manager/digest.h"
#include "cache_manager/events.h"
#include "cache_manager/limits.h"

namespace kvist::cache_manager {

// Events `first_seq`, `first_seq` + 1, ... A receiver that expected another number has a gap.
struct EventRun {
  uint64_t first_seq = 0;
  std::vector<Event> events;
};

// Numbers events from 1 on, keeps those that were not taken yet, and keeps each pool's digests:
// whoever changes state (pool, session table) appends the event and adds its change to the digest.
// Owns the waiting events. Single-threaded, as the pools that write to it.
class EventLog {
 public:
  struct Options {
    size_t num_pools = 1;
    // One more event drops all that wait: a gap, seen by the receiver in the next run's first_seq.
    size_t max_waiting = kMaxWaitingEvents;
    // The same for one more key of a SessionHolds.
    size_t max_waiting_keys = kMaxWaitingKeys;
  };

  // REQUIRES: 0 < num_pools <= kMaxPoolsPerWorker, max_waiting > 0, max_waiting_keys >=
  // kMaxKeysPerEvent.
  explicit EventLog(const Options& options);

  // Gives `event` the next sequence number.
  void Append(Event event);
  // Adds to both sums of `pool`, mod 2^64. REQUIRES: pool < num_pools.
  void AddToDigest(PoolIndex pool, PoolDigest change);

  // Removes and returns the first waiting events: at most `max_events`, and no more than fit into
  // kMaxKeysPerBatch keys. Empty (with the number that comes next) if nothing waits.
  EventRun TakeBatch(size_t max_events = kMaxEventsPerBatch);
  // Drops what waits up to and including `seq`.
  void DropThrough(uint64_t seq);

  // The sequence number of the newest event; 0 before the first.
  uint64_t last_seq() const { return first_waiting_seq_ + waiting_ - 1; }
  size_t waiting() const { return waiting_; }
  // Keys of the holdings that wait.
  size_t waiting_keys() const { return waiting_keys_; }
  // How often events were dropped because too many waited.
  uint64_t overflows() const { return overflows_; }
  // Digests of all pools after event last_seq().
  std::span<const PoolDigest> digests() const { return digests_; }

 private:
  Event& at(size_t i) { return ring_[(first_ + i) % ring_.size()]; }
  void DropFirst(size_t count);

  const size_t max_waiting_;
  const size_t max_waiting_keys_;
  // A ring that grows when it is full: in a worker whose events are taken, appending takes no
  // memory.
  std::vector<Event> ring_;
  size_t first_ = 0;    // place of the oldest waiting event
  size_t waiting_ = 0;  // from there on
  size_t waiting_keys_ = 0;
  uint64_t first_waiting_seq_ = 1;
  uint64_t overflows_ = 0;
  std::vector<PoolDigest> digests_;
};

}  // namespace kvist::cache_manager

#endif  // KVIST_CACHE_MANAGER_EVENT_LOG_H_
