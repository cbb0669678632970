#include "worker/engine/session_holds.h"

#include <algorithm>
#include <span>

#include "cache_manager/limits.h"

namespace kvist::worker {

using cache_manager::BlockKey;
using cache_manager::PoolIndex;
using cache_manager::SessionPhase;

void SessionHolds::Begin(SessionMember& member, const SequenceBlocks& blocks) {
  Live& live = live_[member.session];
  ++live.members;
  live.unnamed.resize(num_pools_);
  member.unnamed.assign(member.pools->size(), 0);
  // The table makes a session with its first chain, even an empty one.
  for (const PoolIndex pool : *member.pools) {
    const uint32_t length = static_cast<uint32_t>(table_->Chain(member.session, pool).size());
    table_->SetChain(member.session, member.tenant, pool, length, {});
  }
  table_->SetPhase(member.session, SessionPhase::kActive);
  Update(member, blocks);
}

void SessionHolds::Update(SessionMember& member, const SequenceBlocks& blocks) {
  const std::span<const BlockKey> all = blocks.named();
  const auto named = all.first(std::min(all.size(), cache_manager::kMaxChainBlocks));
  for (size_t g = 0; g < member.pools->size(); ++g) {
    const PoolIndex pool = (*member.pools)[g];
    const std::span<const BlockKey> chain = table_->Chain(member.session, pool);
    const auto [in_chain, in_named] =
        std::mismatch(chain.begin(), chain.end(), named.begin(), named.end());
    if (in_chain != chain.end() || in_named != named.end()) {
      const size_t common = static_cast<size_t>(in_named - named.begin());
      table_->SetChain(member.session, member.tenant, pool, static_cast<uint32_t>(common),
                       named.subspan(common));
    }
    SetUnnamed(member, g, static_cast<uint32_t>(blocks.UnnamedBlocks(g)));
  }
}

void SessionHolds::Pause(SessionMember& member) {
  for (size_t g = 0; g < member.pools->size(); ++g) SetUnnamed(member, g, 0);
}

void SessionHolds::End(SessionMember& member) {
  Pause(member);
  const auto live = live_.find(member.session);
  if (--live->second.members > 0) return;
  live_.erase(live);
  table_->SetPhase(member.session, SessionPhase::kIdle);
}

void SessionHolds::SetUnnamed(SessionMember& member, size_t group, uint32_t blocks) {
  const PoolIndex pool = (*member.pools)[group];
  uint32_t& sum = live_[member.session].unnamed[pool];
  sum += blocks - member.unnamed[group];
  member.unnamed[group] = blocks;
  table_->SetUnnamed(member.session, pool, sum, 0);
}

}  // namespace kvist::worker
