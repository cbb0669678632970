#include "services/cache_manager/answers.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/base/status.h"
#include "services/runtime/stream_wire.h"

namespace kvist::services {
namespace {

namespace cm = ::kvist::cache_manager;

uint64_t StoredBlocks(const cm::MirrorPoolCounts& counts) {
  uint64_t blocks = 0;
  for (const uint64_t in_tier : counts.stored) blocks += in_tier;
  return blocks;
}

// The row of `worker`, made if it is the first of its pools.
v1::SessionMemoryOnWorker* RowOf(const WorkerId& worker, v1::SessionMemory* message) {
  for (auto& row : *message->mutable_workers()) {
    if (row.worker_id() == worker.value()) return &row;
  }
  v1::SessionMemoryOnWorker* row = message->add_workers();
  row->set_worker_id(worker.value());
  return row;
}

absl::Status BadToken() { return InvalidField("page_token", "is not one that a page returned"); }

}  // namespace

v1::Confidence ToProto(cm::Confidence confidence) {
  switch (confidence) {
    case cm::Confidence::kExact:
      return v1::EXACT;
    case cm::Confidence::kLagging:
      return v1::LAGGING;
    case cm::Confidence::kResync:
      return v1::RESYNC;
    case cm::Confidence::kBlind:
      return v1::BLIND;
  }
  return v1::BLIND;
}

v1::WorkerInfo ToProto(const cm::WorkerEntry& entry, int64_t now_ms) {
  v1::WorkerInfo info;
  info.set_worker_id(entry.info.id.value());
  info.set_incarnation(entry.info.incarnation.value());
  info.set_address(entry.info.address);
  info.set_model_fingerprint(entry.info.model_fingerprint);
  info.set_numerics_id(entry.info.numerics_id);
  *info.mutable_load() = ToProto(entry.load);
  info.set_load_age_ms(now_ms - entry.load_at_ms);
  info.set_confidence(ToProto(entry.ConfidenceAt(now_ms)));
  info.set_lag_ms(entry.LagMs(now_ms));
  info.set_connected(entry.connected);
  info.set_suspect(entry.LivenessAt(now_ms) != cm::Liveness::kAlive);
  uint64_t mirrored = 0;
  for (size_t i = 0; i < entry.info.pools.size(); ++i) {
    *info.add_pools() = ToProto(entry.info.pools[i]);
    const cm::MirrorPoolCounts& counts = entry.mirror->counts(static_cast<cm::PoolIndex>(i));
    mirrored += StoredBlocks(counts);
    const uint64_t stored = counts.stored[static_cast<size_t>(cm::Tier::kDevice)];
    v1::PoolCounts* out = info.add_counts();
    out->set_total(static_cast<int32_t>(entry.info.pools[i].num_blocks));
    out->set_active(static_cast<int32_t>(counts.active));
    out->set_cached(static_cast<int32_t>(stored - std::min(stored, counts.active)));
    out->set_partial(static_cast<int32_t>(counts.partial));
    out->set_reserved(static_cast<int32_t>(counts.reserved));
    out->set_disk(static_cast<int32_t>(counts.stored[static_cast<size_t>(cm::Tier::kDisk)]));
  }
  info.set_mirrored_blocks(static_cast<int64_t>(mirrored));
  return info;
}

v1::SessionMemory ToProto(const SessionId& session, const cm::SessionMemory& memory,
                          const cm::ClusterIndex& index) {
  v1::SessionMemory message;
  message.set_session_id(session.value());
  message.set_tenant_id(memory.tenant.value());
  message.set_phase(static_cast<v1::SessionPhase>(memory.phase));
  uint64_t blocks = 0, tokens = 0, shared = 0, exclusive = 0;
  for (const cm::HoldingMemory& holding : memory.holdings) {
    v1::SessionMemoryOnWorker* row = RowOf(holding.worker, &message);
    const auto add = [](int64_t have, uint64_t more) { return have + static_cast<int64_t>(more); };
    row->set_named_blocks(add(row->named_blocks(), holding.stored.blocks));
    row->set_partial_blocks(add(row->partial_blocks(), holding.partial.blocks));
    row->set_reserved_blocks(add(row->reserved_blocks(), holding.reserved.blocks));
    row->set_shared_bytes(add(row->shared_bytes(), holding.shared.bytes));
    row->set_exclusive_bytes(add(row->exclusive_bytes(), holding.exclusive.bytes));
    row->set_confidence(ToProto(holding.confidence));
    blocks += holding.stored.blocks;
    shared += holding.shared.bytes;
    exclusive += holding.exclusive.bytes;
    const cm::WorkerEntry* entry = index.Find(holding.worker);
    if (entry == nullptr) continue;
    const cm::PoolSpec& pool = entry->info.pools[holding.pool];
    if (pool.window_tokens == 0) tokens += holding.stored.blocks * pool.block_tokens;
  }
  message.set_shared_bytes(static_cast<int64_t>(shared));
  message.set_exclusive_bytes(static_cast<int64_t>(exclusive));
  message.set_blocks(static_cast<int64_t>(blocks));
  message.set_tokens(static_cast<int64_t>(tokens));
  return message;
}

v1::BlockInfo ToProto(uint32_t pool, const cm::BlockKey& key, const cm::MirrorBlock& block) {
  v1::BlockInfo info;
  info.set_pool(pool);
  info.set_key(KeyBytes(key));
  info.set_parent(KeyBytes(block.parent));
  int tier = 0;  // the fastest
  while (tier + 1 < static_cast<int>(cm::kNumTiers) && (block.tiers & (1 << tier)) == 0) ++tier;
  info.set_tier(static_cast<v1::Tier>(tier));
  info.set_sessions(block.holders);
  return info;
}

void FillOutcome(const WorkerId& worker, const cm::CommandOutcome* outcome,
                 v1::WorkerOutcome* message) {
  message->set_worker_id(worker.value());
  if (outcome == nullptr) {
    message->set_result(v1::CommandOutcome::REFUSED);
    message->set_reason("no answer in time; it may still happen");
    return;
  }
  message->set_result(static_cast<v1::CommandOutcome::Result>(outcome->result));
  message->set_blocks(static_cast<int64_t>(outcome->evicted_blocks));
  message->set_reason(outcome->reason);
}

UseOfWorker UseOf(const cm::WorkerEntry& entry) {
  UseOfWorker use;
  for (size_t i = 0; i < entry.info.pools.size(); ++i) {
    for (const auto& [key, block] : entry.mirror->blocks(static_cast<cm::PoolIndex>(i))) {
      if (!block.stored()) continue;
      ++use.blocks;
      use.bytes += entry.info.pools[i].bytes_per_block;
      if (block.holders > 1) use.shared_bytes += entry.info.pools[i].bytes_per_block;
    }
  }
  return use;
}

absl::StatusOr<BlockCursor> ParseKeyCursor(const std::string& token) {
  BlockCursor cursor;
  if (token.empty()) return cursor;
  const std::vector<std::string> parts = absl::StrSplit(token, ':');
  if (parts.size() != 2 || parts[1].size() != 2 * sizeof(cursor.after.bytes) ||
      !absl::SimpleAtoi(parts[0], &cursor.pool)) {
    return BadToken();
  }
  const std::string bytes = absl::HexStringToBytes(parts[1]);
  std::memcpy(cursor.after.bytes.data(), bytes.data(), bytes.size());
  return cursor;
}

absl::StatusOr<BlockCursor> ParseChainCursor(const std::string& token) {
  BlockCursor cursor;
  if (token.empty()) return cursor;
  const std::vector<std::string> parts = absl::StrSplit(token, ':');
  if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &cursor.pool) ||
      !absl::SimpleAtoi(parts[1], &cursor.index)) {
    return BadToken();
  }
  return cursor;
}

}  // namespace kvist::services
