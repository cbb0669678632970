// Who uses how much: bytes and blocks by session, tenant, state, tier, worker and pool, from the
// mirrors.
#ifndef KVIST_CACHE_MANAGER_ACCOUNTING_H_
#define KVIST_CACHE_MANAGER_ACCOUNTING_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cache_manager/cluster_index.h"

namespace kvist::cache_manager {

// Blocks of one pool and their bytes. A block in two tiers counts once.
struct BlockUse {
  uint64_t blocks = 0;
  uint64_t bytes = 0;

  void Add(const BlockUse& other) {
    blocks += other.blocks;
    bytes += other.bytes;
  }
};

// What a session has in one pool of one worker.
struct HoldingMemory {
  WorkerId worker;
  PoolIndex pool = 0;
  std::string group, format;
  Confidence confidence = Confidence::kBlind;
  uint64_t chain_blocks = 0;  // length of the chain, stored or not
  BlockUse stored;            // distinct named blocks that are there: exclusive + shared
  BlockUse exclusive;         // in no other session's chain
  BlockUse shared;            // also in another session's chain on this worker
  BlockUse partial;           // last blocks without a name
  BlockUse reserved;          // promised, not written yet
  std::array<BlockUse, kNumTiers> by_tier{};  // of stored, by the fastest tier
};

struct SessionMemory {
  TenantId tenant;
  SessionPhase phase = SessionPhase::kIdle;  // the first that is not idle, by worker id
  std::vector<HoldingMemory> holdings;       // by worker id and pool
};

// One named block.
struct ListedBlock {
  BlockKey key;
  MirrorBlock block;
};

struct ListBlocksQuery {
  WorkerId worker;
  PoolIndex pool = 0;
  BlockKey after;           // of the last page's last block; empty: from the start
  size_t limit = 0;         // 1 .. kMaxPageItems
  bool stored_only = true;  // else also those that are only in chains
};

// One session on one worker.
struct ListedSession {
  SessionId session;
  WorkerId worker;
  TenantId tenant;
  SessionPhase phase = SessionPhase::kIdle;
};

struct ListSessionsQuery {
  std::optional<TenantId> tenant;  // nullopt: all
  std::optional<WorkerId> worker;  // nullopt: all
  SessionId after;                 // likewise
  size_t limit = 0;                // sessions, 1 .. kMaxPageItems
};

// NOT_FOUND: no worker's mirror has the session. O(workers + its chains).
absl::StatusOr<SessionMemory> MemoryOfSession(const ClusterIndex& index, const SessionId& session,
                                              int64_t now_ms);
// The next blocks in the order of keys, which changes of the pool do not disturb. NOT_FOUND: no
// such worker or pool. INVALID_ARGUMENT: limit. O(blocks of the pool).
absl::StatusOr<std::vector<ListedBlock>> ListBlocks(const ClusterIndex& index,
                                                    const ListBlocksQuery& query);
// The next sessions in the order of ids; one that is on several workers has several rows on the
// same page. INVALID_ARGUMENT: limit. O(sessions).
absl::StatusOr<std::vector<ListedSession>> ListSessions(const ClusterIndex& index,
                                                        const ListSessionsQuery& query);

}  // namespace kvist::cache_manager

#endif  // KVIST_CACHE_MANAGER_ACCOUNTING_H_
