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
  live.reserved.resize(num_pools_);
  member.unnamed.assign(member.pools->size(), 0);
  member.reserved.assign(member.pools->size(), 0);
  // The table makes a session with its first chain, even an empty one.
  for (const PoolIndex pool : *member.pools) {
    const uint32_t length = static_cast<uint32_t>(table_->Chain(member.session, pool).size());
    table_->SetChain(member.session, member.tenant, pool, length, {});
    table_->Reserve(member.session, pool, blocks.named_capacity());
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
    SetUnnamed(member, g,
               {.blocks = static_cast<uint32_t>(blocks.UnnamedBlocks(g)),
                .reserved = static_cast<uint32_t>(blocks.ReservedBlocks(g))});
  }
}

void SessionHolds::Pause(SessionMember& member) {
  for (size_t g = 0; g < member.pools->size(); ++g) SetUnnamed(member, g, {});
}

void SessionHolds::End(SessionMember& member) {
  Pause(member);
  const auto live = live_.find(member.session);
  if (--live->second.members > 0) return;
  live_.erase(live);
  table_->SetPhase(member.session, SessionPhase::kIdle);
}

void SessionHolds::SetUnnamed(SessionMember& member, size_t group, const Unnamed& held) {
  const PoolIndex pool = (*member.pools)[group];
  Live& live = live_[member.session];
  live.unnamed[pool] += held.blocks - member.unnamed[group];
  live.reserved[pool] += held.reserved - member.reserved[group];
  member.unnamed[group] = held.blocks;
  member.reserved[group] = held.reserved;
  table_->SetUnnamed(member.session, pool, live.unnamed[pool], live.reserved[pool]);
}

}  // namespace kvist::worker
