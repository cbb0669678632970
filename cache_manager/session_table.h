// Which blocks each session holds in which pool, and its phase. The worker keeps one (the truth that snapshots
// are taken from); the mirror is built from the events it emits.
#ifndef KVIST_CACHE_MANAGER_SESSION_TABLE_H_
#define KVIST_CACHE_MANAGER_SESSION_TABLE_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "cache_manager/events.h"

namespace kvist::cache_manager {

class EventLog;

// Single-threaded. Bounded: beyond `max_sessions` the session longest without a change and not active is released.
class SessionTable {
 public:
  // Keeps a pointer to `log`, which gets every event.
  SessionTable(size_t max_sessions, EventLog* log);
  ~SessionTable();
  SessionTable(const SessionTable&) = delete;
  SessionTable& operator=(const SessionTable&) = delete;

  // The chain of `session` in `pool` from `first_block` on becomes `keys`. Creates the session (phase active).
  // REQUIRES: first_block <= the chain's length now.
  void SetChain(const SessionId& session, const TenantId& tenant, PoolIndex pool,
                uint32_t first_block, std::span<const BlockKey> keys);
  // Absolute counts; emits only on change. The session must exist, else nothing happens.
  void SetUnnamed(const SessionId& session, PoolIndex pool, uint32_t partial_blocks,
                  uint32_t reserved_blocks);
  void SetPhase(const SessionId& session, SessionPhase phase);
  // Forgets the session. The blocks stay in their pools.
  void Release(const SessionId& session);
  // Chain of the session in the pool; empty if unknown.
  std::span<const BlockKey> Chain(const SessionId& session, PoolIndex pool) const;
  size_t size() const;
  absl::Status CheckInvariants() const;

 private:
  struct State;
  State* state_;
};

}  // namespace kvist::cache_manager

#endif  // KVIST_CACHE_MANAGER_SESSION_TABLE_H_
