#include "worker/engine/session_holds.h"

#include <algorithm>
#include <span>

#include "cache_manager/limits.h"

namespace kvist::worker {

using cache_manager::BlockKey;
using cache_manager::PoolIndex;
using cache_manager::SessionPhase;

void SessionHolds::Begin(const SessionId& session, const TenantId& tenant,
                         const std::vector<PoolIndex>& pools, const SequenceBlocks& blocks) {
  ++live_[session];
  // The table makes a session with its first chain, even an empty one.
  for (const PoolIndex pool : pools) {
    const uint32_t length = static_cast<uint32_t>(table_->Chain(session, pool).size());
    table_->SetChain(session, tenant, pool, length, {});
  }
  table_->SetPhase(session, SessionPhase::kActive);
  Update(session, tenant, pools, blocks);
}

void SessionHolds::Update(const SessionId& session, const TenantId& tenant,
                          const std::vector<PoolIndex>& pools, const SequenceBlocks& blocks) {
  const std::span<const BlockKey> all = blocks.named();
  const auto named = all.first(std::min(all.size(), cache_manager::kMaxChainBlocks));
  for (size_t g = 0; g < pools.size(); ++g) {
    const std::span<const BlockKey> chain = table_->Chain(session, pools[g]);
    const auto [in_chain, in_named] =
        std::mismatch(chain.begin(), chain.end(), named.begin(), named.end());
    if (in_chain != chain.end() || in_named != named.end()) {
      const size_t common = static_cast<size_t>(in_named - named.begin());
      table_->SetChain(session, tenant, pools[g], static_cast<uint32_t>(common),
                       named.subspan(common));
    }
    table_->SetUnnamed(session, pools[g], static_cast<uint32_t>(blocks.UnnamedBlocks(g)), 0);
  }
}

void SessionHolds::Pause(const SessionId& session, const std::vector<PoolIndex>& pools) {
  for (const PoolIndex pool : pools) table_->SetUnnamed(session, pool, 0, 0);
}

void SessionHolds::End(const SessionId& session, const std::vector<PoolIndex>& pools) {
  const auto live = live_.find(session);
  if (live == live_.end() || --live->second > 0) return;
  live_.erase(live);
  Pause(session, pools);
  table_->SetPhase(session, SessionPhase::kIdle);
}

}  // namespace kvist::worker
