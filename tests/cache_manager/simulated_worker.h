// A worker's pools and sessions under random turns, for tests of mirrors and streams.
#ifndef KVIST_TESTS_CACHE_MANAGER_SIMULATED_WORKER_H_
#define KVIST_TESTS_CACHE_MANAGER_SIMULATED_WORKER_H_

#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cache_manager/block_pool.h"
#include "cache_manager/event_log.h"
#include "cache_manager/session_table.h"
#include "cache_manager/snapshot.h"
#include "cache_manager/worker_info.h"
#include "cache_manager/worker_mirror.h"
#include "gtest/gtest.h"

namespace kvist::cache_manager {

// Two pools: full attention and a window of 64 tokens.
class SimulatedWorker {
 public:
  static constexpr int32_t kBlockTokens = 16;
  struct Options {
    uint64_t seed = 1;
    int32_t num_blocks = 40;
    size_t max_sessions = 6;
    size_t max_waiting = kMaxWaitingEvents;
    std::string name = "w1";
    uint64_t incarnation = 7;
  };

  explicit SimulatedWorker(const Options& options)
      : rng_(options.seed),
        log_({.num_pools = 2, .max_waiting = options.max_waiting}),
        sessions_(options.max_sessions, &log_) {
    info_.id = WorkerId(options.name);
    info_.incarnation = Incarnation(options.incarnation);
    info_.model_fingerprint = "model";
    info_.block_tokens = kBlockTokens;
    for (const uint32_t window : {0u, 64u}) {
      info_.pools.push_back({.group = window == 0 ? "full" : "window",
                             .format = "f16",
                             .window_tokens = window,
                             .block_tokens = kBlockTokens,
                             .bytes_per_block = 1000,
                             .num_blocks = static_cast<uint32_t>(options.num_blocks)});
      pools_.push_back(std::make_unique<BlockPool>(
          BlockPool::Options{.id = static_cast<PoolIndex>(pools_.size()),
                             .num_blocks = options.num_blocks,
                             .block_tokens = kBlockTokens,
                             .evict_leaves_only = window == 0},
          &log_));
    }
  }

  const WorkerInfo& info() const { return info_; }
  const std::vector<std::unique_ptr<BlockPool>>& pools() const { return pools_; }
  SessionTable& sessions() { return sessions_; }
  EventLog& log() { return log_; }
  std::mt19937_64& rng() { return rng_; }
  BlockKey Root() const {
    return RootKey(
        {.model_fingerprint = "model", .attention = "full", .block_tokens = kBlockTokens});
  }

  // Something that an engine could do: a turn of some session, a phase, an end, an eviction.
  void RandomStep() {
    const SessionId session("s" + std::to_string(rng_() % 9));
    switch (rng_() % 9) {
      case 0:
        return sessions_.SetPhase(session, static_cast<SessionPhase>(rng_() % kNumSessionPhases));
      case 1:
        return sessions_.Release(session);
      case 2:
        pools_[rng_() % 2]->EvictSome(static_cast<int32_t>(rng_() % 4), EvictionCause::kDrained);
        return;
      case 3:
        return sessions_.SetUnnamed(session, static_cast<PoolIndex>(rng_() % 2),
                                    static_cast<uint32_t>(rng_() % 2),
                                    static_cast<uint32_t>(rng_() % 3));
      case 4:
        return sessions_.Cut(session, static_cast<uint32_t>(rng_() % 4));
      default:
        return RandomTurn(session);
    }
  }

  // Stores the chain of `tokens` in every pool and says that `session` holds it, from its common
  // prefix on.
  void Hold(const SessionId& session, const TenantId& tenant, const std::vector<int32_t>& tokens) {
    const std::vector<BlockKey> keys = KeysOf(Root(), tokens, kBlockTokens);
    for (PoolIndex pool = 0; pool < pools_.size(); ++pool) {
      Store(*pools_[pool], keys, tokens);
      const auto chain = sessions_.Chain(session, pool);
      uint32_t same = 0;
      while (same < chain.size() && same < keys.size() && chain[same] == keys[same]) ++same;
      sessions_.SetChain(session, tenant, pool, same, std::span(keys).subspan(same));
    }
  }

 private:
  void RandomTurn(const SessionId& session) {
    // Few different blocks, so that sessions share prefixes.
    std::vector<int32_t> tokens;
    for (size_t blocks = rng_() % 10; blocks > 0; --blocks) {
      tokens.insert(tokens.end(), kBlockTokens, static_cast<int32_t>(rng_() % 3));
    }
    sessions_.SetPhase(session, SessionPhase::kActive);
    Hold(session, TenantId("t" + session.value()), tokens);
    if (rng_() % 4 != 0) sessions_.SetPhase(session, SessionPhase::kWaiting);
  }

  static void Store(BlockPool& pool, const std::vector<BlockKey>& keys,
                    const std::vector<int32_t>& tokens) {
    BlockKey parent =
        RootKey({.model_fingerprint = "model", .attention = "full", .block_tokens = kBlockTokens});
    std::vector<BlockRef> refs;
    for (size_t i = 0; i < keys.size(); ++i) {
      refs.push_back(pool.Find(keys[i]));
      if (refs.back().empty()) {
        absl::StatusOr<BlockRef> block = pool.Allocate();
        ASSERT_TRUE(block.ok());
        refs.back() = pool.Commit(*std::move(block), parent, keys[i],
                                  std::span(tokens).subspan(i * kBlockTokens, kBlockTokens));
      }
      parent = keys[i];
    }
  }

  std::mt19937_64 rng_;
  WorkerInfo info_;
  EventLog log_;
  std::vector<std::unique_ptr<BlockPool>> pools_;
  SessionTable sessions_;
};

// Fails unless the mirror shows exactly the worker's pools and sessions.
inline void ExpectSame(const WorkerMirror& mirror, SimulatedWorker& worker) {
  for (PoolIndex pool = 0; pool < worker.pools().size(); ++pool) {
    const BlockPool& real = *worker.pools()[pool];
    std::map<BlockKey, BlockKey> expected, shown;
    for (BlockIndex i = 0; i < real.options().num_blocks; ++i) {
      const BlockFacts facts = real.Facts(i);
      if (!facts.key.empty()) expected[facts.key] = facts.parent;
    }
    for (const auto& [key, block] : mirror.blocks(pool)) {
      if (block.stored()) shown[key] = block.parent;
    }
    EXPECT_EQ(shown, expected);
    EXPECT_EQ(mirror.digest(pool), worker.log().digests()[pool]);
  }
  size_t sessions = 0;
  for (size_t slot = 0; slot < worker.sessions().slots(); ++slot) {
    const auto facts = worker.sessions().FactsAt(slot);
    if (!facts.has_value()) continue;
    ++sessions;
    const auto found = mirror.sessions().find(facts->session);
    ASSERT_TRUE(found != mirror.sessions().end());
    EXPECT_EQ(found->second.tenant, facts->tenant);
    EXPECT_EQ(found->second.phase, facts->phase);
    for (PoolIndex pool = 0; pool < worker.pools().size(); ++pool) {
      const SessionTable::Holding holding = worker.sessions().HoldingAt(slot, pool);
      const MirrorHolding& shown = found->second.pools[pool];
      EXPECT_EQ(shown.keys, std::vector<BlockKey>(holding.keys.begin(), holding.keys.end()));
      EXPECT_EQ(shown.partial_blocks, holding.partial_blocks);
      EXPECT_EQ(shown.reserved_blocks, holding.reserved_blocks);
    }
  }
  EXPECT_EQ(mirror.sessions().size(), sessions);
  const absl::Status mirror_status = mirror.CheckInvariants();
  EXPECT_TRUE(mirror_status.ok()) << mirror_status;
  const absl::Status table_status = worker.sessions().CheckInvariants();
  EXPECT_TRUE(table_status.ok()) << table_status;
}

}  // namespace kvist::cache_manager

#endif  // KVIST_TESTS_CACHE_MANAGER_SIMULATED_WORKER_H_
