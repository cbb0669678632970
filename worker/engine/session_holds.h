// Tells the session table what the running sequences of each session hold.
#ifndef KVIST_WORKER_ENGINE_SESSION_HOLDS_H_
#define KVIST_WORKER_ENGINE_SESSION_HOLDS_H_

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "cache_manager/session_table.h"
#include "common/base/ids.h"
#include "worker/kv/block_table.h"

namespace kvist::worker {

// Owns a count of live sequences by session; keeps a pointer to the table. Single-threaded.
class SessionHolds {
 public:
  explicit SessionHolds(cache_manager::SessionTable* table) : table_(table) {}

  // A sequence of `session` has its first blocks: the session is active. `pools` are the worker's pool numbers of its format.
  void Begin(const SessionId& session, const TenantId& tenant,
             const std::vector<cache_manager::PoolIndex>& pools, const SequenceBlocks& blocks);
  // The chain in each pool becomes the sequence's named blocks, and the unnamed ones are counted. Emits only what changed.
  void Update(const SessionId& session, const TenantId& tenant,
              const std::vector<cache_manager::PoolIndex>& pools, const SequenceBlocks& blocks);
  // The sequence gave its blocks back for now: its chains stay, nothing unnamed is held.
  void Pause(const SessionId& session, const std::vector<cache_manager::PoolIndex>& pools);
  // The sequence is gone; if it was the last of its session: the session is idle and keeps its chains.
  void End(const SessionId& session, const std::vector<cache_manager::PoolIndex>& pools);

 private:
  cache_manager::SessionTable* table_;
  absl::flat_hash_map<SessionId, int32_t> live_;
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_ENGINE_SESSION_HOLDS_H_
