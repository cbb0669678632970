#include "cache_manager/accounting.h"

#include <algorithm>
#include <bit>
#include <iterator>
#include <set>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "cache_manager/limits.h"
#include "common/base/status.h"

namespace kvist::cache_manager {
namespace {

BlockUse Use(uint64_t blocks, const PoolSpec& spec) {
  return {.blocks = blocks, .bytes = blocks * spec.bytes_per_block};
}

HoldingMemory EmptyHolding(const WorkerEntry& entry, PoolIndex pool, int64_t now_ms) {
  HoldingMemory memory;
  memory.worker = entry.info.id;
  memory.pool = pool;
  memory.group = entry.info.pools[pool].group;
  memory.format = entry.info.pools[pool].format;
  memory.confidence = entry.ConfidenceAt(now_ms);
  return memory;
}

// Adds a session's holding to `memory`, each key once.
void AddHolding(const WorkerEntry& entry, const MirrorHolding& holding, HoldingMemory& memory) {
  const PoolSpec& spec = entry.info.pools[memory.pool];
  const WorkerMirror::Blocks& blocks = entry.mirror->blocks(memory.pool);
  memory.chain_blocks += holding.keys.size();
  memory.partial.Add(Use(holding.partial_blocks, spec));
  memory.reserved.Add(Use(holding.reserved_blocks, spec));
  absl::flat_hash_set<BlockKey> counted;
  for (const BlockKey& key : holding.keys) {
    const MirrorBlock& block = blocks.find(key)->second;  // held, so it is there
    if (!block.stored() || !counted.insert(key).second) continue;
    const BlockUse one = Use(1, spec);
    memory.stored.Add(one);
    (block.holders > 1 ? memory.shared : memory.exclusive).Add(one);
    memory.by_tier[static_cast<size_t>(std::countr_zero(block.tiers))].Add(one);
  }
}

absl::Status CheckLimit(size_t limit) {
  if (limit == 0 || limit > kMaxPageItems) return InvalidField("limit", "out of range");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SessionMemory> MemoryOfSession(const ClusterIndex& index, const SessionId& session,
                                              int64_t now_ms) {
  SessionMemory memory;
  bool found_any = false;
  for (const WorkerEntry* entry : index.Workers()) {
    const auto found = entry->mirror->sessions().find(session);
    if (found == entry->mirror->sessions().end()) continue;
    if (!found_any || memory.phase == SessionPhase::kIdle) memory.phase = found->second.phase;
    found_any = true;
    memory.tenant = found->second.tenant;
    for (size_t i = 0; i < found->second.pools.size(); ++i) {
      memory.holdings.push_back(EmptyHolding(*entry, static_cast<PoolIndex>(i), now_ms));
      AddHolding(*entry, found->second.pools[i], memory.holdings.back());
    }
  }
  if (!found_any) return absl::NotFoundError("no worker holds blocks of the session");
  return memory;
}

absl::StatusOr<std::vector<ListedBlock>> ListBlocks(const ClusterIndex& index,
                                                    const ListBlocksQuery& query) {
  KVIST_RETURN_IF_ERROR(CheckLimit(query.limit));
  const WorkerEntry* const entry = index.Find(query.worker);
  if (entry == nullptr) return absl::NotFoundError("no such worker");
  if (query.pool >= entry->info.pools.size()) return absl::NotFoundError("no such pool");
  // A heap of the smallest keys seen, the largest of them on top.
  const auto by_key = [](const ListedBlock& a, const ListedBlock& b) { return a.key < b.key; };
  std::vector<ListedBlock> page;
  for (const auto& [key, block] : entry->mirror->blocks(query.pool)) {
    if ((query.stored_only && !block.stored()) || key <= query.after) continue;
    if (page.size() == query.limit) {
      if (page.front().key <= key) continue;
      std::pop_heap(page.begin(), page.end(), by_key);
      page.pop_back();
    }
    page.push_back({key, block});
    std::push_heap(page.begin(), page.end(), by_key);
  }
  std::sort_heap(page.begin(), page.end(), by_key);
  return page;
}

absl::StatusOr<std::vector<ListedSession>> ListSessions(const ClusterIndex& index,
                                                        const ListSessionsQuery& query) {
  KVIST_RETURN_IF_ERROR(CheckLimit(query.limit));
  const std::vector<const WorkerEntry*> workers = index.Workers();
  std::set<SessionId> ids;  // the smallest `limit` seen
  const auto wanted = [&](const WorkerEntry& entry, const SessionId& id,
                          const MirrorSession& session) {
    return (!query.worker.has_value() || *query.worker == entry.info.id) &&
           (!query.tenant.has_value() || *query.tenant == session.tenant) && id > query.after;
  };
  for (const WorkerEntry* entry : workers) {
    for (const auto& [id, session] : entry->mirror->sessions()) {
      if (!wanted(*entry, id, session)) continue;
      if (ids.size() == query.limit && *ids.rbegin() < id) continue;
      ids.insert(id);
      if (ids.size() > query.limit) ids.erase(std::prev(ids.end()));
    }
  }
  std::vector<ListedSession> page;
  for (const SessionId& id : ids) {
    for (const WorkerEntry* entry : workers) {
      const auto found = entry->mirror->sessions().find(id);
      if (found == entry->mirror->sessions().end() || !wanted(*entry, id, found->second)) continue;
      page.push_back({id, entry->info.id, found->second.tenant, found->second.phase});
    }
  }
  return page;
}

}  // namespace kvist::cache_manager
