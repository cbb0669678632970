// Invariants:
//   1. by_id leads to exactly the filled slots; each other slot is in free_slots.
//   2. the list by_change has exactly the filled slots.
//   3. chain_keys = the sum of all chains' lengths <= kMaxChainKeysPerWorker; sessions <=
//      max_sessions.
//   4. the log's holding digest of each pool is the sum over all sessions.
#include "cache_manager/session_table.h"

#include <algorithm>
#include <list>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "cache_manager/digest.h"
#include "cache_manager/event_log.h"
#include "cache_manager/limits.h"
#include "common/base/check.h"

namespace kvist::cache_manager {
namespace {

struct PoolHolding {
  std::vector<BlockKey> keys;
  uint32_t partial_blocks = 0;
  uint32_t reserved_blocks = 0;

  HoldingState Digestible() const {
    return {.chain_blocks = static_cast<uint32_t>(keys.size()),
            .last_key = keys.empty() ? BlockKey{} : keys.back(),
            .partial_blocks = partial_blocks,
            .reserved_blocks = reserved_blocks};
  }
};

struct Record {
  bool filled = false;
  SessionFacts facts;
  std::vector<PoolHolding> pools;
  std::list<size_t>::iterator by_change;
};

}  // namespace

struct SessionTable::State {
  Record* Find(const SessionId& session) {
    const auto found = by_id.find(session);
    return found == by_id.end() ? nullptr : &records[found->second];
  }
  // The session's record, made if need be; nullptr if there is no room.
  Record* FindOrMake(const SessionId& session, const TenantId& tenant);
  // Releases what changed longest ago and is not active, `keep` excepted. False if there is none.
  bool ReleaseOldest(const SessionId& keep);
  // Releases such until one more session with so many keys has room. False, and nothing happens, if
  // all of them together would not be enough.
  bool MakeRoom(size_t keys);
  void Release(Record& record);
  void Touch(Record& record) { by_change.splice(by_change.end(), by_change, record.by_change); }
  // Runs `change` on one holding and keeps the digest.
  template <typename Change>
  void ChangeHolding(const SessionId& session, PoolIndex pool, PoolHolding& holding,
                     Change change) {
    const uint64_t before = HoldingHash(session, holding.Digestible());
    change();
    const uint64_t after = HoldingHash(session, holding.Digestible());
    log->AddToDigest(pool, {.holding = after - before});
  }

  size_t max_sessions = 0;
  EventLog* log = nullptr;
  size_t num_pools = 0;
  std::vector<Record> records;
  std::vector<size_t> free_slots;
  absl::flat_hash_map<SessionId, size_t> by_id;
  std::list<size_t> by_change;  // slots; longest without a change first
  size_t chain_keys = 0;
};

Record* SessionTable::State::FindOrMake(const SessionId& session, const TenantId& tenant) {
  if (Record* known = Find(session); known != nullptr) return known;
  if (by_id.size() == max_sessions && !ReleaseOldest(session)) return nullptr;
  if (free_slots.empty()) {
    free_slots.push_back(records.size());
    records.emplace_back();
  }
  const size_t slot = free_slots.back();
  free_slots.pop_back();
  by_id.emplace(session, slot);
  Record& record = records[slot];
  record.filled = true;
  record.facts = {.session = session, .tenant = tenant, .phase = SessionPhase::kActive};
  record.pools.resize(num_pools);
  record.by_change = by_change.insert(by_change.end(), slot);
  return &record;
}

bool SessionTable::State::ReleaseOldest(const SessionId& keep) {
  for (const size_t slot : by_change) {
    Record& record = records[slot];
    if (record.facts.phase == SessionPhase::kActive || record.facts.session == keep) continue;
    Release(record);
    return true;
  }
  return false;
}

bool SessionTable::State::MakeRoom(size_t keys) {
  size_t least_sessions = by_id.size(), least_keys = chain_keys;
  for (const size_t slot : by_change) {
    const Record& record = records[slot];
    if (record.facts.phase == SessionPhase::kActive) continue;
    --least_sessions;
    for (const PoolHolding& holding : record.pools) least_keys -= holding.keys.size();
  }
  if (least_sessions == max_sessions || least_keys + keys > kMaxChainKeysPerWorker) return false;
  while (by_id.size() == max_sessions || chain_keys + keys > kMaxChainKeysPerWorker) {
    KVIST_CHECK(ReleaseOldest(SessionId()), "there was one to release");
  }
  return true;
}

void SessionTable::State::Release(Record& record) {
  const size_t slot = *record.by_change;
  const SessionId session = record.facts.session;
  for (size_t pool = 0; pool < num_pools; ++pool) {
    PoolHolding& holding = record.pools[pool];
    chain_keys -= holding.keys.size();
    ChangeHolding(session, static_cast<PoolIndex>(pool), holding, [&] { holding = PoolHolding{}; });
  }
  by_change.erase(record.by_change);
  by_id.erase(session);
  record = Record{};
  free_slots.push_back(slot);
  log->Append(SessionReleased{session});
}

SessionTable::SessionTable(size_t max_sessions, EventLog* log) : state_(std::make_unique<State>()) {
  KVIST_CHECK(max_sessions > 0 && max_sessions <= kMaxSessionsPerWorker && log != nullptr);
  state_->max_sessions = max_sessions;
  state_->log = log;
  state_->num_pools = log->digests().size();
}

SessionTable::~SessionTable() = default;

void SessionTable::SetChain(const SessionId& session, const TenantId& tenant, PoolIndex pool,
                            uint32_t first_block, std::span<const BlockKey> keys) {
  State& s = *state_;
  KVIST_CHECK(pool < s.num_pools && first_block + keys.size() <= kMaxChainBlocks);
  const bool known = s.Find(session) != nullptr;
  const size_t old_size = Chain(session, pool).size();
  if (first_block > old_size) return;
  while (s.chain_keys - old_size + first_block + keys.size() > kMaxChainKeysPerWorker) {
    if (!s.ReleaseOldest(session)) return;
  }
  Record* const record = s.FindOrMake(session, tenant);
  if (record == nullptr) return;
  PoolHolding& holding = record->pools[pool];
  s.Touch(*record);
  if (known && keys.empty() && first_block == old_size) return;
  s.chain_keys -= holding.keys.size();
  s.ChangeHolding(session, pool, holding, [&] {
    holding.keys.resize(first_block);
    holding.keys.insert(holding.keys.end(), keys.begin(), keys.end());
  });
  s.chain_keys += holding.keys.size();
  size_t sent = 0;
  do {
    const size_t count = std::min(keys.size() - sent, kMaxKeysPerEvent);
    const auto part = keys.subspan(sent, count);
    s.log->Append(SessionHolds{session, record->facts.tenant, pool,
                               first_block + static_cast<uint32_t>(sent),
                               EventKeys(part.begin(), part.end())});
    sent += count;
  } while (sent < keys.size());
}

void SessionTable::Reserve(const SessionId& session, PoolIndex pool, size_t blocks) {
  KVIST_CHECK(pool < state_->num_pools);
  Record* const record = state_->Find(session);
  if (record != nullptr) record->pools[pool].keys.reserve(std::min(blocks, kMaxChainBlocks));
}

void SessionTable::SetUnnamed(const SessionId& session, PoolIndex pool, uint32_t partial_blocks,
                              uint32_t reserved_blocks) {
  State& s = *state_;
  KVIST_CHECK(pool < s.num_pools);
  Record* const record = s.Find(session);
  if (record == nullptr) return;
  PoolHolding& holding = record->pools[pool];
  if (holding.partial_blocks == partial_blocks && holding.reserved_blocks == reserved_blocks) {
    return;
  }
  s.Touch(*record);
  s.ChangeHolding(session, pool, holding, [&] {
    holding.partial_blocks = partial_blocks;
    holding.reserved_blocks = reserved_blocks;
  });
  s.log->Append(SessionUnnamed{session, pool, partial_blocks, reserved_blocks});
}

bool SessionTable::Fork(const SessionId& from, const SessionId& to) {
  const Record* const record = state_->Find(from);
  if (record == nullptr || state_->Find(to) != nullptr) return false;
  const TenantId tenant = record->facts.tenant;
  std::vector<std::vector<BlockKey>> chains;  // making room may release `from`
  size_t keys = 0;
  for (const PoolHolding& holding : record->pools) {
    chains.push_back(holding.keys);
    keys += holding.keys.size();
  }
  if (!state_->MakeRoom(keys)) return false;
  for (size_t pool = 0; pool < chains.size(); ++pool) {
    SetChain(to, tenant, static_cast<PoolIndex>(pool), 0, chains[pool]);
  }
  SetPhase(to, SessionPhase::kIdle);
  return true;
}

void SessionTable::Cut(const SessionId& session, uint32_t blocks) {
  const Record* const record = state_->Find(session);
  if (record == nullptr || record->facts.phase == SessionPhase::kActive) return;
  const TenantId tenant = record->facts.tenant;
  for (size_t pool = 0; pool < state_->num_pools; ++pool) {
    const PoolIndex index = static_cast<PoolIndex>(pool);
    if (Chain(session, index).size() > blocks) SetChain(session, tenant, index, blocks, {});
  }
}

void SessionTable::SetPhase(const SessionId& session, SessionPhase phase) {
  Record* const record = state_->Find(session);
  if (record == nullptr || record->facts.phase == phase) return;
  state_->Touch(*record);
  record->facts.phase = phase;
  state_->log->Append(SessionPhaseChanged{session, phase});
}

void SessionTable::Release(const SessionId& session) {
  if (Record* const record = state_->Find(session); record != nullptr) state_->Release(*record);
}

std::span<const BlockKey> SessionTable::Chain(const SessionId& session, PoolIndex pool) const {
  const Record* const record = state_->Find(session);
  if (record == nullptr || pool >= state_->num_pools) return {};
  return record->pools[pool].keys;
}

size_t SessionTable::SharedBlocks(const SessionId& session, PoolIndex pool) const {
  const std::span<const BlockKey> chain = Chain(session, pool);
  const Record* const own = state_->Find(session);
  size_t shared = 0;
  for (const Record& record : state_->records) {
    if (shared == chain.size()) break;
    if (!record.filled || &record == own) continue;
    // A key stands for all that comes before it: chains that differ once differ from there on.
    const std::vector<BlockKey>& other = record.pools[pool].keys;
    while (shared < std::min(chain.size(), other.size()) && chain[shared] == other[shared]) {
      ++shared;
    }
  }
  return shared;
}

size_t SessionTable::size() const { return state_->by_id.size(); }

size_t SessionTable::slots() const { return state_->records.size(); }

std::optional<SessionFacts> SessionTable::FactsAt(size_t slot) const {
  KVIST_CHECK(slot < state_->records.size());
  const Record& record = state_->records[slot];
  if (!record.filled) return std::nullopt;
  return record.facts;
}

SessionTable::Holding SessionTable::HoldingAt(size_t slot, PoolIndex pool) const {
  KVIST_CHECK(slot < state_->records.size() && state_->records[slot].filled);
  KVIST_CHECK(pool < state_->num_pools);
  const PoolHolding& holding = state_->records[slot].pools[pool];
  return {holding.keys, holding.partial_blocks, holding.reserved_blocks};
}

absl::Status SessionTable::CheckInvariants() const {
  const State& s = *state_;
  std::vector<uint64_t> holding_sums(s.num_pools);
  size_t filled = 0, chain_keys = 0;
  for (size_t slot = 0; slot < s.records.size(); ++slot) {
    const Record& record = s.records[slot];
    if (!record.filled) continue;
    ++filled;
    const auto found = s.by_id.find(record.facts.session);
    if (found == s.by_id.end() || found->second != slot) {
      return absl::InternalError("session table 1: id leads elsewhere");
    }
    if (*record.by_change != slot) return absl::InternalError("session table 2: list of changes");
    for (size_t pool = 0; pool < s.num_pools; ++pool) {
      chain_keys += record.pools[pool].keys.size();
      holding_sums[pool] += HoldingHash(record.facts.session, record.pools[pool].Digestible());
    }
  }
  if (filled != s.by_id.size() || filled + s.free_slots.size() != s.records.size()) {
    return absl::InternalError("session table 1: slots");
  }
  if (filled != s.by_change.size()) return absl::InternalError("session table 2: length");
  if (chain_keys != s.chain_keys || chain_keys > kMaxChainKeysPerWorker ||
      filled > s.max_sessions) {
    return absl::InternalError("session table 3: limits");
  }
  for (size_t pool = 0; pool < s.num_pools; ++pool) {
    if (holding_sums[pool] != s.log->digests()[pool].holding) {
      return absl::InternalError("session table 4: holding digest");
    }
  }
  return absl::OkStatus();
}

}  // namespace kvist::cache_manager
