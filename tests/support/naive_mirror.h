// The blocks and sessions of an engine as its events tell them.
#ifndef KVIST_TESTS_SUPPORT_NAIVE_MIRROR_H_
#define KVIST_TESTS_SUPPORT_NAIVE_MIRROR_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <variant>
#include <vector>

#include "cache_manager/event_log.h"
#include "cache_manager/tier_index.h"
#include "cache_manager/worker_mirror.h"
#include "gtest/gtest.h"
#include "tests/support/hash_reference.h"
#include "worker/engine/engine.h"

namespace kvist::worker {

// What the events say, kept as simply as can be, and the manager's own mirror fed with the same.
// Single-threaded.
class NaiveMirror {
 public:
  // Keeps the manager's own mirror beside it.
  void Start(const EngineState& state) {
    cache_manager::WorkerInfo info{.id = WorkerId("w"), .block_tokens = 0};
    for (const auto& pool : state.pools) {
      const cache_manager::BlockPool::Options& options = pool->options();
      info.block_tokens = static_cast<uint32_t>(options.block_tokens);
      info.pools.push_back({.group = Numbered("group", options.id),
                            .format = "f16",
                            .block_tokens = info.block_tokens,
                            .bytes_per_block = 1,
                            .num_blocks = static_cast<uint32_t>(options.num_blocks)});
    }
    manager_ = std::make_unique<cache_manager::WorkerMirror>(info);
  }
  void Drain(cache_manager::EventLog& log) {
    while (log.waiting() > 0) {
      const cache_manager::EventRun run = log.TakeBatch();
      EXPECT_EQ(run.first_seq, next_seq_);
      next_seq_ += run.events.size();
      for (const cache_manager::Event& event : run.events) {
        const absl::Status status = manager_->Apply(event, cache_manager::ApplyMode::kInOrder);
        ASSERT_TRUE(status.ok()) << status;
        std::visit([this](const auto& e) { Apply(e); }, event);
      }
    }
  }
  void ExpectEqual(EngineState state) const {
    for (size_t p = 0; p < state.pools.size(); ++p) {
      std::set<cache_manager::BlockKey> named;
      const cache_manager::BlockPool& pool = *state.pools[p];
      for (int32_t b = 0; b < pool.options().num_blocks; ++b) {
        if (!pool.Facts(b).key.empty()) named.insert(pool.Facts(b).key);
      }
      EXPECT_EQ(StoredIn(p, cache_manager::Tier::kDevice), named);
      if (!state.tiers.empty()) {
        std::set<cache_manager::BlockKey> on_disk;
        for (int32_t slot = 0; slot < state.tiers[p]->num_slots(); ++slot) {
          if (const auto block = state.tiers[p]->At(slot)) on_disk.insert(block->key);
        }
        EXPECT_EQ(StoredIn(p, cache_manager::Tier::kDisk), on_disk);
      }
      EXPECT_EQ(manager_->digest(static_cast<cache_manager::PoolIndex>(p)),
                state.events.digests()[p]);
    }
    EXPECT_TRUE(manager_->CheckInvariants().ok()) << manager_->CheckInvariants();
    EXPECT_EQ(phases_.size(), state.sessions.size());
    for (const auto& [place, chain] : chains_) {
      const auto held = state.sessions.Chain(place.first, place.second);
      EXPECT_EQ(chain, std::vector<cache_manager::BlockKey>(held.begin(), held.end()));
    }
  }
  void ExpectAllIdleWithoutUnnamedBlocks() const {
    for (const auto& [session, phase] : phases_) {
      EXPECT_EQ(phase, cache_manager::SessionPhase::kIdle) << session.value();
    }
    for (const auto& [place, blocks] : unnamed_) EXPECT_EQ(blocks, 0u);
  }

 private:
  std::set<cache_manager::BlockKey> StoredIn(size_t pool, cache_manager::Tier tier) const {
    const auto stored = stored_.find({pool, tier});
    return stored == stored_.end() ? std::set<cache_manager::BlockKey>{} : stored->second;
  }
  void Apply(const cache_manager::BlockStored& e) {
    EXPECT_TRUE((stored_[{e.pool, e.tier}].insert(e.key).second));
  }
  void Apply(const cache_manager::BlockEvicted& e) {
    EXPECT_EQ((stored_[{e.pool, e.tier}].erase(e.key)), 1u);
  }
  void Apply(const cache_manager::SessionHolds& e) {
    std::vector<cache_manager::BlockKey>& chain = chains_[{e.session, e.pool}];
    ASSERT_LE(e.first_block, chain.size());
    chain.resize(e.first_block);
    chain.insert(chain.end(), e.keys.begin(), e.keys.end());
    phases_.try_emplace(e.session, cache_manager::SessionPhase::kActive);
  }
  void Apply(const cache_manager::SessionReleased& e) {
    std::erase_if(chains_, [&](const auto& c) { return c.first.first == e.session; });
    std::erase_if(unnamed_, [&](const auto& c) { return c.first.first == e.session; });
    phases_.erase(e.session);
  }
  void Apply(const cache_manager::SessionUnnamed& e) {
    unnamed_[{e.session, e.pool}] = e.partial_blocks + e.reserved_blocks;
  }
  void Apply(const cache_manager::SessionPhaseChanged& e) { phases_[e.session] = e.phase; }

  std::unique_ptr<cache_manager::WorkerMirror> manager_;
  uint64_t next_seq_ = 1;
  std::map<std::pair<size_t, cache_manager::Tier>, std::set<cache_manager::BlockKey>> stored_;
  std::map<std::pair<SessionId, uint16_t>, std::vector<cache_manager::BlockKey>> chains_;
  std::map<std::pair<SessionId, uint16_t>, uint32_t> unnamed_;
  std::map<SessionId, cache_manager::SessionPhase> phases_;
};

}  // namespace kvist::worker

#endif  // KVIST_TESTS_SUPPORT_NAIVE_MIRROR_H_
