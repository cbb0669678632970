// Which blocks each session holds in which pool, and its phase. The worker keeps one (the truth
// that snapshots are taken from); the mirror is built from the events it emits.
#ifndef KVIST_CACHE_MANAGER_SESSION_TABLE_H_
#define KVIST_CACHE_MANAGER_SESSION_TABLE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "cache_manager/events.h"

namespace kvist::cache_manager {

class EventLog;

// What is known of one session.
struct SessionFacts {
  SessionId session;
  TenantId tenant;
  SessionPhase phase = SessionPhase::kActive;
};

// Bounded in sessions and in keys of all chains: beyond either limit the session longest without a
// change that is not active is released. Owns its records. Single-threaded. Invariants:
// session_table.cc.
class SessionTable {
 public:
  // Keeps a pointer to `log`, which gets every event and must outlive the table.
  // REQUIRES: 0 < max_sessions <= kMaxSessionsPerWorker.
  SessionTable(size_t max_sessions, EventLog* log);
  ~SessionTable();
  SessionTable(const SessionTable&) = delete;
  SessionTable& operator=(const SessionTable&) = delete;

  // The chain of `session` in `pool` from `first_block` on becomes `keys`. Creates the session
  // (phase active). Nothing happens if the table is full of active sessions, or if first_block is
  // beyond the chain's length now (the session found no room before, or was released): that
  // session's blocks then show under no session until a call from block 0 on finds room. REQUIRES:
  // first_block + keys.size() <= kMaxChainBlocks; the log knows the pool.
  void SetChain(const SessionId& session, const TenantId& tenant, PoolIndex pool,
                uint32_t first_block, std::span<const BlockKey> keys);
  // Takes memory for chains of so many blocks: a chain that grows to them takes none. The session
  // must exist, else nothing happens.
  void Reserve(const SessionId& session, PoolIndex pool, size_t blocks);
  // Absolute counts; emits only on change. The session must exist, else nothing happens.
  void SetUnnamed(const SessionId& session, PoolIndex pool, uint32_t partial_blocks,
                  uint32_t reserved_blocks);
  // `to` becomes an idle session that holds the chains of `from`. False, and nothing happens, if
  // `from` is unknown, `to` is known or there is no room.
  bool Fork(const SessionId& from, const SessionId& to);
  // The chain of `session` in every pool keeps at most its first `blocks`. Nothing happens to one
  // that is unknown, or active: its running sequences say themselves what it holds.
  void Cut(const SessionId& session, uint32_t blocks);
  // Emits only on change. The session must exist, else nothing happens.
  void SetPhase(const SessionId& session, SessionPhase phase);
  // Forgets the session. The blocks stay in their pools. Nothing happens if it is unknown.
  void Release(const SessionId& session);

  // Chain of the session in the pool; empty if unknown. Valid until the next change of the table.
  std::span<const BlockKey> Chain(const SessionId& session, PoolIndex pool) const;
  // Leading blocks of that chain which another session holds too. O(sessions).
  size_t SharedBlocks(const SessionId& session, PoolIndex pool) const;
  size_t size() const;

  // Records have slots, [0, slots()), which they keep for life: what a snapshot walks along.
  size_t slots() const;
  // nullopt: the slot is empty. REQUIRES: slot < slots().
  std::optional<SessionFacts> FactsAt(size_t slot) const;
  // What the session of a filled slot holds in a pool; the keys are valid until the next change of
  // the table.
  struct Holding {
    std::span<const BlockKey> keys;
    uint32_t partial_blocks = 0;
    uint32_t reserved_blocks = 0;
  };
  Holding HoldingAt(size_t slot, PoolIndex pool) const;

  // INTERNAL with a description of the first violated invariant. O(sessions).
  absl::Status CheckInvariants() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kvist::cache_manager

#endif  // KVIST_CACHE_MANAGER_SESSION_TABLE_H_
