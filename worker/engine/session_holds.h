// Tells the session table what the running sequences of each session hold.
#ifndef KVIST_WORKER_ENGINE_SESSION_HOLDS_H_
#define KVIST_WORKER_ENGINE_SESSION_HOLDS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "cache_manager/session_table.h"
#include "common/base/ids.h"
#include "worker/kv/block_table.h"

namespace kvist::worker {

// One sequence of a session.
struct SessionMember {
  SessionId session;
  TenantId tenant;
  const std::vector<cache_manager::PoolIndex>* pools = nullptr;  // by layer group of its format
  // By layer group, as last told:
  std::vector<uint32_t> unnamed;
  std::vector<uint32_t> reserved;
};

// Owns counts by session; keeps a pointer to the table. Single-threaded.
class SessionHolds {
 public:
  SessionHolds(size_t num_pools, cache_manager::SessionTable* table)
      : num_pools_(num_pools), table_(table) {}

  // The member has its first blocks: the session is active. Takes the memory for all of its chain.
  void Begin(SessionMember& member, const SequenceBlocks& blocks);
  // The chain in each pool becomes the sequence's named blocks, and the unnamed ones and those set
  // aside for it are counted.
  // Emits only what changed.
  void Update(SessionMember& member, const SequenceBlocks& blocks);
  // The sequence gave its blocks back for now: the chains stay, it holds nothing unnamed.
  void Pause(SessionMember& member);
  // The sequence is gone. If it was the last of its session, the session is idle and keeps its
  // chains.
  void End(SessionMember& member);

 private:
  struct Live {
    int32_t members = 0;
    // By pool, of all members:
    std::vector<uint32_t> unnamed;
    std::vector<uint32_t> reserved;
  };
  struct Unnamed {
    uint32_t blocks = 0;
    uint32_t reserved = 0;
  };
  void SetUnnamed(SessionMember& member, size_t group, const Unnamed& held);

  size_t num_pools_;
  cache_manager::SessionTable* table_;
  absl::flat_hash_map<SessionId, Live> live_;
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_ENGINE_SESSION_HOLDS_H_
