// Invariants: every count and both digests of a pool equal a recount of its blocks and of all
// sessions; a block is in the table if and only if it is stored or held.
//
// Replay is right because every event says what is, not what to add. Between the first and the last
// slice of a snapshot each item is read once. If nothing changed it meanwhile, the copy is true.
// Else the last event about it sets it, whatever the copy said. Chains are copied key by key: an
// event "from f on it is K" that lies beyond the copy's end is dropped, since a position that was
// live then and is missing in the copy was cut by an event yet to come, which rewrites everything
// from there on.
#include "cache_manager/worker_mirror.h"

#include <algorithm>
#include <bit>
#include <utility>
#include <variant>

#include "cache_manager/limits.h"
#include "common/base/status.h"

namespace kvist::cache_manager {
namespace {

// While events of a snapshot's time are replayed, blocks that are gone show up again until their
// eviction is replayed too: at most one per buffered event. Sessions and keys get a factor for the
// same reason.
constexpr uint64_t kReplaySlackBlocks = kMaxBufferedEvents;
constexpr size_t kReplaySlackFactor = 2;

absl::Status Drift(const char* what) { return absl::FailedPreconditionError(what); }
absl::Status Refuse(const char* what) { return absl::InvalidArgumentError(what); }
// Beyond a limit: drift if the picture may be at fault, else a worker that lies.
absl::Status Beyond(ApplyMode mode, const char* what) {
  return mode == ApplyMode::kInOrder ? Drift(what) : Refuse(what);
}
// An event about something unknown: nothing to do in a replay.
absl::Status Unknown(ApplyMode mode, const char* what) {
  return mode == ApplyMode::kInOrder ? Drift(what) : absl::OkStatus();
}

size_t Limit(size_t in_order, ApplyMode mode) {
  return mode == ApplyMode::kInOrder ? in_order : in_order * kReplaySlackFactor;
}

}  // namespace

template <typename Change>
void WorkerMirror::ChangeBlock(Pool& pool, const BlockKey& key, Change change) {
  const auto entry = pool.blocks.try_emplace(key).first;
  MirrorBlock& block = entry->second;
  const auto count = [&](uint64_t sign) {
    for (size_t tier = 0; tier < kNumTiers; ++tier) {
      if ((block.tiers >> tier & 1) == 0) continue;
      pool.counts.stored[tier] += sign;
      pool.digest.placement += sign * PlacementHash(key, static_cast<Tier>(tier));
    }
    if (block.in_pool() && block.active_holders > 0) pool.counts.active += sign;
  };
  count(~uint64_t{0});  // minus one, mod 2^64
  change(block);
  count(1);
  if (!block.stored() && block.holders == 0) pool.blocks.erase(entry);
}

void WorkerMirror::Hold(Pool& pool, const BlockKey& key, bool active) {
  MirrorBlock& block = pool.blocks.try_emplace(key).first->second;
  ++block.holders;
  if (active && block.active_holders++ == 0 && block.in_pool()) ++pool.counts.active;
}

void WorkerMirror::Unhold(Pool& pool, const BlockKey& key, bool active) {
  const auto entry = pool.blocks.find(key);
  MirrorBlock& block = entry->second;
  --block.holders;
  if (active && --block.active_holders == 0 && block.in_pool()) --pool.counts.active;
  if (!block.stored() && block.holders == 0) pool.blocks.erase(entry);
}

uint64_t WorkerMirror::HashOf(const SessionId& session, const MirrorHolding& holding) {
  return HoldingHash(session, {.chain_blocks = static_cast<uint32_t>(holding.keys.size()),
                               .last_key = holding.keys.empty() ? BlockKey{} : holding.keys.back(),
                               .partial_blocks = holding.partial_blocks,
                               .reserved_blocks = holding.reserved_blocks});
}

WorkerMirror::WorkerMirror(const WorkerInfo& info) {
  for (const PoolSpec& spec : info.pools) {
    pools_.emplace_back();
    pools_.back().max_stored = spec.num_blocks;
  }
}

absl::Status WorkerMirror::Apply(const Event& event, ApplyMode mode) {
  return std::visit([&](const auto& e) { return ApplyOne(e, mode); }, event);
}

void WorkerMirror::AddEvictionCounts(const WorkerMirror& replaced) {
  for (size_t i = 0; i < std::min(pools_.size(), replaced.pools_.size()); ++i) {
    for (size_t cause = 0; cause < kNumEvictionCauses; ++cause) {
      pools_[i].counts.evictions[cause] += replaced.pools_[i].counts.evictions[cause];
    }
  }
}

absl::Status WorkerMirror::ApplyOne(const BlockStored& event, ApplyMode mode) {
  if (event.pool >= pools_.size()) return Refuse("stored: no such pool");
  if (static_cast<size_t>(event.tier) >= kNumTiers) return Refuse("stored: no such tier");
  if (event.key.empty()) return Refuse("stored: empty key");
  Pool& pool = pools_[event.pool];
  const size_t tier = static_cast<size_t>(event.tier);
  const auto found = pool.blocks.find(event.key);
  if (found != pool.blocks.end() && (found->second.tiers >> tier & 1) != 0) {
    return Unknown(mode, "stored: the block is stored already");
  }
  // Only the device tier's size is known.
  const uint64_t most = event.tier == Tier::kDevice ? pool.max_stored : kMaxBlocksPerPool;
  const uint64_t slack = mode == ApplyMode::kInOrder ? 0 : kReplaySlackBlocks;
  if (pool.counts.stored[tier] >= most + slack) {
    return Beyond(mode, "stored: more blocks than the pool has");
  }
  ChangeBlock(pool, event.key, [&](MirrorBlock& block) {
    block.parent = event.parent;
    block.tiers = static_cast<uint8_t>(block.tiers | 1u << tier);
  });
  return absl::OkStatus();
}

absl::Status WorkerMirror::ApplyOne(const BlockEvicted& event, ApplyMode mode) {
  if (event.pool >= pools_.size()) return Refuse("evicted: no such pool");
  if (static_cast<size_t>(event.tier) >= kNumTiers) return Refuse("evicted: no such tier");
  if (static_cast<size_t>(event.cause) >= kNumEvictionCauses) {
    return Refuse("evicted: no such cause");
  }
  Pool& pool = pools_[event.pool];
  ++pool.counts.evictions[static_cast<size_t>(event.cause)];
  const size_t tier = static_cast<size_t>(event.tier);
  const auto found = pool.blocks.find(event.key);
  if (found == pool.blocks.end() || (found->second.tiers >> tier & 1) == 0) {
    return Unknown(mode, "evicted: the block is not stored");
  }
  ChangeBlock(pool, event.key, [&](MirrorBlock& block) {
    block.tiers = static_cast<uint8_t>(block.tiers & ~(1u << tier));
  });
  return absl::OkStatus();
}

absl::Status WorkerMirror::ApplyOne(const SessionHolds& event, ApplyMode mode) {
  if (event.pool >= pools_.size()) return Refuse("holds: no such pool");
  if (event.session.empty()) return Refuse("holds: empty session id");
  if (event.first_block > kMaxChainBlocks ||
      event.keys.size() > kMaxChainBlocks - event.first_block) {
    return Refuse("holds: chain longer than the limit");
  }
  auto found = sessions_.find(event.session);
  if (found == sessions_.end()) {
    if (event.first_block > 0) return Unknown(mode, "holds: no such session");
    if (sessions_.size() >= Limit(kMaxSessionsPerWorker, mode)) {
      return Beyond(mode, "holds: more sessions than the limit");
    }
    found = sessions_.try_emplace(event.session).first;
    found->second.tenant = event.tenant;
    found->second.pools.resize(pools_.size());
  }
  MirrorSession& session = found->second;
  if (session.tenant != event.tenant) {
    if (mode == ApplyMode::kInOrder) return Drift("holds: the session is another tenant's");
    session.tenant = event.tenant;
  }
  MirrorHolding& holding = session.pools[event.pool];
  if (event.first_block > holding.keys.size()) return Unknown(mode, "holds: beyond the chain");
  const size_t kept_elsewhere = chain_keys_ - holding.keys.size();
  if (kept_elsewhere + event.first_block + event.keys.size() >
      Limit(kMaxChainKeysPerWorker, mode)) {
    return Beyond(mode, "holds: more keys than the limit");
  }
  Pool& pool = pools_[event.pool];
  const bool active = session.phase == SessionPhase::kActive;
  pool.digest.holding -= HashOf(event.session, holding);
  for (size_t i = event.first_block; i < holding.keys.size(); ++i) {
    Unhold(pool, holding.keys[i], active);
  }
  holding.keys.resize(event.first_block);
  holding.keys.insert(holding.keys.end(), event.keys.begin(), event.keys.end());
  for (const BlockKey& key : event.keys) Hold(pool, key, active);
  pool.digest.holding += HashOf(event.session, holding);
  chain_keys_ = kept_elsewhere + holding.keys.size();
  return absl::OkStatus();
}

absl::Status WorkerMirror::ApplyOne(const SessionReleased& event, ApplyMode mode) {
  const auto found = sessions_.find(event.session);
  if (found == sessions_.end()) return Unknown(mode, "released: no such session");
  const bool active = found->second.phase == SessionPhase::kActive;
  for (size_t i = 0; i < pools_.size(); ++i) {
    const MirrorHolding& holding = found->second.pools[i];
    pools_[i].digest.holding -= HashOf(event.session, holding);
    pools_[i].counts.partial -= holding.partial_blocks;
    pools_[i].counts.reserved -= holding.reserved_blocks;
    for (const BlockKey& key : holding.keys) Unhold(pools_[i], key, active);
    chain_keys_ -= holding.keys.size();
  }
  sessions_.erase(found);
  return absl::OkStatus();
}

absl::Status WorkerMirror::ApplyOne(const SessionUnnamed& event, ApplyMode mode) {
  if (event.pool >= pools_.size()) return Refuse("unnamed: no such pool");
  const auto found = sessions_.find(event.session);
  if (found == sessions_.end()) return Unknown(mode, "unnamed: no such session");
  Pool& pool = pools_[event.pool];
  MirrorHolding& holding = found->second.pools[event.pool];
  pool.digest.holding -= HashOf(event.session, holding);
  pool.counts.partial += uint64_t{event.partial_blocks} - holding.partial_blocks;
  pool.counts.reserved += uint64_t{event.reserved_blocks} - holding.reserved_blocks;
  holding.partial_blocks = event.partial_blocks;
  holding.reserved_blocks = event.reserved_blocks;
  pool.digest.holding += HashOf(event.session, holding);
  return absl::OkStatus();
}

absl::Status WorkerMirror::ApplyOne(const SessionPhaseChanged& event, ApplyMode mode) {
  if (static_cast<size_t>(event.phase) >= kNumSessionPhases) return Refuse("phase: no such phase");
  const auto found = sessions_.find(event.session);
  if (found == sessions_.end()) return Unknown(mode, "phase: no such session");
  MirrorSession& session = found->second;
  const bool was_active = session.phase == SessionPhase::kActive;
  const bool is_active = event.phase == SessionPhase::kActive;
  session.phase = event.phase;
  if (was_active == is_active) return absl::OkStatus();
  for (size_t i = 0; i < pools_.size(); ++i) {
    for (const BlockKey& key : session.pools[i].keys) {
      ChangeBlock(pools_[i], key,
                  [&](MirrorBlock& block) { block.active_holders += is_active ? 1u : ~0u; });
    }
  }
  return absl::OkStatus();
}

absl::Status WorkerMirror::CheckPool(PoolIndex index) const {
  const Pool& pool = pools_[index];
  MirrorPoolCounts counts;
  counts.evictions = pool.counts.evictions;
  PoolDigest digest;
  absl::flat_hash_map<BlockKey, std::pair<uint32_t, uint32_t>> holders;
  for (const auto& [id, session] : sessions_) {
    const MirrorHolding& holding = session.pools[index];
    digest.holding += HashOf(id, holding);
    counts.partial += holding.partial_blocks;
    counts.reserved += holding.reserved_blocks;
    for (const BlockKey& key : holding.keys) {
      ++holders[key].first;
      if (session.phase == SessionPhase::kActive) ++holders[key].second;
    }
  }
  size_t held = 0;
  for (const auto& [key, block] : pool.blocks) {
    const auto found = holders.find(key);
    const auto expected = found == holders.end() ? std::pair(0u, 0u) : found->second;
    if (std::pair(block.holders, block.active_holders) != expected) {
      return absl::InternalError("mirror: holders of a block");
    }
    if (block.holders > 0) ++held;
    if (!block.stored() && block.holders == 0) return absl::InternalError("mirror: idle block");
    if (block.in_pool() && block.active_holders > 0) ++counts.active;
    for (size_t tier = 0; tier < kNumTiers; ++tier) {
      if ((block.tiers >> tier & 1) == 0) continue;
      ++counts.stored[tier];
      digest.placement += PlacementHash(key, static_cast<Tier>(tier));
    }
  }
  if (held != holders.size()) return absl::InternalError("mirror: held block missing");
  if (digest != pool.digest) return absl::InternalError("mirror: digest");
  const bool same = counts.stored == pool.counts.stored && counts.active == pool.counts.active &&
                    counts.partial == pool.counts.partial &&
                    counts.reserved == pool.counts.reserved;
  return same ? absl::OkStatus() : absl::InternalError("mirror: counts");
}

absl::Status WorkerMirror::CheckInvariants() const {
  for (size_t i = 0; i < pools_.size(); ++i) {
    KVIST_RETURN_IF_ERROR(CheckPool(static_cast<PoolIndex>(i)));
  }
  size_t chain_keys = 0;
  for (const auto& [id, session] : sessions_) {
    for (const MirrorHolding& holding : session.pools) chain_keys += holding.keys.size();
  }
  return chain_keys == chain_keys_ ? absl::OkStatus() : absl::InternalError("mirror: chain keys");
}

}  // namespace kvist::cache_manager
