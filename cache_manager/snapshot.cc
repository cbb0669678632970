#include "cache_manager/snapshot.h"

#include <algorithm>
#include <optional>

#include "cache_manager/limits.h"
#include "common/base/check.h"

namespace kvist::cache_manager {

SnapshotBuilder::SnapshotBuilder(const Sources& sources)
    : sources_(sources), base_seq_(sources.log->last_seq()) {
  KVIST_CHECK(!sources.pools.empty() && sources.sessions != nullptr);
}

SnapshotBuilder::Slice SnapshotBuilder::NextSlice(size_t max_items) {
  KVIST_CHECK(max_items > 0 && max_items <= kMaxEventsPerBatch);
  Slice slice;
  size_t items = 0;
  while (items < max_items && (ReadBlock(slice.events) || ReadTierBlock(slice.events))) ++items;
  while (items < max_items && slot_ < sources_.sessions->slots()) {
    items += ReadSessionPart(slice.events, max_items - items);
  }
  slice.end_seq = sources_.log->last_seq();
  slice.last = pool_ == sources_.pools.size() && tier_ == sources_.tiers.size() &&
               slot_ >= sources_.sessions->slots();
  return slice;
}

// Looks at one block slot; false when all are done.
bool SnapshotBuilder::ReadBlock(std::vector<Event>& out) {
  if (pool_ == sources_.pools.size()) return false;
  const BlockPool& pool = *sources_.pools[pool_];
  const BlockFacts facts = pool.Facts(block_);
  if (!facts.key.empty()) {
    out.push_back(BlockStored{pool.options().id, facts.key, facts.parent, Tier::kDevice});
  }
  if (++block_ == pool.options().num_blocks) {
    block_ = 0;
    ++pool_;
  }
  return true;
}

bool SnapshotBuilder::ReadTierBlock(std::vector<Event>& out) {
  if (tier_ == sources_.tiers.size()) return false;
  const TierIndex& tier = *sources_.tiers[tier_];
  if (const std::optional<TierBlock> block = tier.At(tier_slot_); block.has_value()) {
    out.push_back(BlockStored{tier.options().pool, block->key, block->parent, tier.options().tier});
  }
  if (++tier_slot_ == tier.num_slots()) {
    tier_slot_ = 0;
    ++tier_;
  }
  return true;
}

void SnapshotBuilder::NextSession() {
  ++slot_;
  part_ = 0;
  key_ = 0;
}

// Reads one part of the session in slot_, at most `max_keys` of its keys; returns the items that it
// took. A session that came into the slot after its first part was read came after base_seq(): its
// events tell about it.
size_t SnapshotBuilder::ReadSessionPart(std::vector<Event>& out, size_t max_keys) {
  const std::optional<SessionFacts> facts = sources_.sessions->FactsAt(slot_);
  const bool begins = part_ == 0 && key_ == 0;
  if (!facts.has_value() || (!begins && facts->session != session_)) {
    NextSession();
    return 1;
  }
  session_ = facts->session;
  if (part_ == 2 * sources_.pools.size()) {
    out.push_back(SessionPhaseChanged{facts->session, facts->phase});
    NextSession();
    return 1;
  }
  const PoolIndex pool = static_cast<PoolIndex>(part_ / 2);
  const SessionTable::Holding holding = sources_.sessions->HoldingAt(slot_, pool);
  if (part_ % 2 == 1) {
    if (holding.partial_blocks > 0 || holding.reserved_blocks > 0) {
      out.push_back(
          SessionUnnamed{facts->session, pool, holding.partial_blocks, holding.reserved_blocks});
    }
    ++part_;
    return 1;
  }
  // The chain may have been cut since its last part was read: then there is nothing more to read of
  // it.
  const size_t left = holding.keys.size() - std::min(key_, holding.keys.size());
  const auto keys = holding.keys.last(left).first(std::min({left, max_keys, kMaxKeysPerEvent}));
  if (begins || !keys.empty()) {
    out.push_back(SessionHolds{facts->session, facts->tenant, pool, static_cast<uint32_t>(key_),
                               EventKeys(keys.begin(), keys.end())});
  }
  key_ += keys.size();
  if (keys.size() == left) {
    ++part_;
    key_ = 0;
  }
  return 1 + keys.size();
}

}  // namespace kvist::cache_manager
