// The mirror, snapshots, the lookup over workers and the accounts that are drawn from them.
#include <string>
#include <utility>
#include <vector>

#include "cache_manager/accounting.h"
#include "cache_manager/cluster_index.h"
#include "cache_manager/limits.h"
#include "cache_manager/snapshot.h"
#include "cache_manager/worker_mirror.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cache_manager/simulated_worker.h"
#include "tests/support/long_run.h"

namespace kvist::cache_manager {
namespace {

constexpr int64_t kNow = 1'000;

TEST(WorkerMirrorTest, FollowsEveryEventOfARandomWorker) {
  SimulatedWorker worker({.seed = 1});
  WorkerMirror mirror(worker.info());
  for (int i = 0; i < 5'000; ++i) {
    worker.RandomStep();
    for (const Event& event : worker.log().TakeBatch().events) {
      const absl::Status status = mirror.Apply(event, ApplyMode::kInOrder);
      ASSERT_TRUE(status.ok()) << status;
    }
    if (i % 100 == 0) ExpectSame(mirror, worker);
  }
  for (PoolIndex pool = 0; pool < 2; ++pool) {
    EXPECT_EQ(mirror.counts(pool).evictions, worker.pools()[pool]->evictions());
  }
}

// Slices of every size, with random changes between them, and then the replay of all events since
// the start.
TEST(SnapshotTest, InterleavedWithLiveChangesIsConsistentAfterReplay) {
  for (uint64_t seed = 1; seed <= Seeds(300); ++seed) {
    SCOPED_TRACE(seed);
    SimulatedWorker worker({.seed = seed, .num_blocks = 30});
    for (int i = 0; i < 60; ++i) worker.RandomStep();
    worker.log().DropThrough(worker.log().last_seq());
    SnapshotBuilder builder({worker.pools(), &worker.sessions(), &worker.log()});
    WorkerMirror mirror(worker.info());
    const size_t max_items = 1 + worker.rng()() % 12;
    for (bool last = false; !last;) {
      const SnapshotBuilder::Slice slice = builder.NextSlice(max_items);
      for (const Event& event : slice.events) {
        ASSERT_TRUE(mirror.Apply(event, ApplyMode::kReplay).ok());
      }
      last = slice.last;
      if (last) break;
      for (size_t steps = worker.rng()() % 4; steps > 0; --steps) worker.RandomStep();
    }
    const EventRun run = worker.log().TakeBatch(kMaxWaitingEvents);
    ASSERT_TRUE(run.events.empty() || run.first_seq == builder.base_seq() + 1);
    for (const Event& event : run.events) {
      ASSERT_TRUE(mirror.Apply(event, ApplyMode::kReplay).ok());
    }
    ExpectSame(mirror, worker);
    if (testing::Test::HasFailure()) return;
  }
}

TEST(SnapshotTest, AnEmptyWorkerHasOneLastSlice) {
  SimulatedWorker worker({.num_blocks = 10});
  SnapshotBuilder builder({worker.pools(), &worker.sessions(), &worker.log()});
  EXPECT_FALSE(builder.NextSlice(19).last);
  const SnapshotBuilder::Slice slice = builder.NextSlice(1);
  EXPECT_TRUE(slice.last);
  EXPECT_TRUE(slice.events.empty());
}

class ClusterTest : public testing::Test {
 protected:
  static constexpr uint32_t kBlockTokens = SimulatedWorker::kBlockTokens;
  // Copies what the worker has now into the index.
  WorkerEntry& Mirror(SimulatedWorker& worker) {
    WorkerEntry& entry = *index_.Put(worker.info(), kNow);
    entry.has_snapshot = entry.verified = entry.connected = true;
    entry.mirror = std::make_unique<WorkerMirror>(worker.info());
    SnapshotBuilder builder({worker.pools(), &worker.sessions(), &worker.log()});
    for (bool last = false; !last;) {
      SnapshotBuilder::Slice slice = builder.NextSlice(kMaxEventsPerBatch);
      for (const Event& e : slice.events) {
        EXPECT_TRUE(entry.mirror->Apply(e, ApplyMode::kReplay).ok());
      }
      last = slice.last;
    }
    return entry;
  }
  std::vector<WorkerMatch> Locate(const std::vector<BlockKey>& keys,
                                  const AttentionSpan& attention = {}) {
    auto matches = index_.Locate({.model_fingerprint = "model",
                                  .attention = attention,
                                  .format = "f16",
                                  .block_tokens = kBlockTokens,
                                  .keys = keys},
                                 kNow);
    EXPECT_TRUE(matches.ok());
    return *std::move(matches);
  }
  static std::vector<int32_t> Tokens(size_t blocks, int32_t first = 0) {
    std::vector<int32_t> tokens;
    for (size_t i = 0; i < blocks; ++i) {
      tokens.insert(tokens.end(), kBlockTokens, first + static_cast<int32_t>(i));
    }
    return tokens;
  }
  ClusterIndex index_;
};

TEST_F(ClusterTest, LocateGivesEachWorkersLongestPrefix) {
  SimulatedWorker a({.name = "a"}), b({.name = "b"}), c({.name = "c"});
  a.Hold(SessionId("s"), TenantId("t"), Tokens(6));
  b.Hold(SessionId("s"), TenantId("t"), Tokens(2));
  Mirror(a), Mirror(b), Mirror(c);
  const auto matches = Locate(KeysOf(a.Root(), Tokens(8), kBlockTokens));
  ASSERT_EQ(matches.size(), 3u);
  EXPECT_EQ(matches[0].matched_tokens, 6 * kBlockTokens);
  EXPECT_EQ(matches[0].tokens_up_to_tier[0], 6 * kBlockTokens);
  EXPECT_EQ(matches[1].matched_tokens, 2 * kBlockTokens);
  EXPECT_EQ(matches[2].matched_tokens, 0u);
  EXPECT_EQ(matches[0].confidence, Confidence::kExact);
}

TEST_F(ClusterTest, WhatSlowerTiersAddIsToldApart) {
  SimulatedWorker worker({});
  const auto keys = KeysOf(worker.Root(), Tokens(8), kBlockTokens);
  worker.Hold(SessionId("s"), TenantId("t"), Tokens(8));
  WorkerEntry& entry = Mirror(worker);
  const auto move = [&](PoolIndex pool, size_t block, Tier tier) {
    const BlockKey parent = block == 0 ? worker.Root() : keys[block - 1];
    for (const Event& event : std::vector<Event>{
             BlockStored{pool, keys[block], parent, tier},
             BlockEvicted{pool, keys[block], Tier::kDevice, EvictionCause::kCapacity}}) {
      ASSERT_TRUE(entry.mirror->Apply(event, ApplyMode::kInOrder).ok());
    }
  };
  move(0, 5, Tier::kHost);
  WorkerMatch match = Locate(keys)[0];
  EXPECT_EQ(match.matched_tokens, 8 * kBlockTokens);
  EXPECT_THAT(match.tokens_up_to_tier,
              ::testing::ElementsAre(5 * kBlockTokens, 8 * kBlockTokens, 8 * kBlockTokens));
  move(0, 2, Tier::kDisk);
  EXPECT_THAT(Locate(keys)[0].tokens_up_to_tier,
              ::testing::ElementsAre(2 * kBlockTokens, 2 * kBlockTokens, 8 * kBlockTokens));
  // The window of the whole is 4 blocks, and one is not on the device.
  move(1, 7, Tier::kDisk);
  EXPECT_THAT(Locate(keys)[0].tokens_up_to_tier,
              ::testing::ElementsAre(2 * kBlockTokens, 2 * kBlockTokens, 8 * kBlockTokens));
  Mirror(worker);
  move(1, 7, Tier::kDisk);
  EXPECT_THAT(Locate(keys)[0].tokens_up_to_tier,
              ::testing::ElementsAre(7 * kBlockTokens, 7 * kBlockTokens, 8 * kBlockTokens));
}

TEST_F(ClusterTest, WindowedPoolsNeedOnlyTheLastBlocks) {
  SimulatedWorker worker({});
  const auto keys = KeysOf(worker.Root(), Tokens(8), kBlockTokens);
  worker.Hold(SessionId("s"), TenantId("t"), Tokens(8));
  BlockPool& windowed = *worker.pools()[1];  // 64 tokens: 4 blocks
  for (size_t i = 0; i < 4; ++i) ASSERT_TRUE(windowed.Evict(keys[i], EvictionCause::kCommand));
  Mirror(worker);
  EXPECT_EQ(Locate(keys)[0].matched_tokens, 8 * kBlockTokens);
  // One more is gone: no length from 1 to 8 has its window whole.
  ASSERT_TRUE(windowed.Evict(keys[4], EvictionCause::kCommand));
  Mirror(worker);
  EXPECT_EQ(Locate(keys)[0].matched_tokens, 0u);
}

TEST_F(ClusterTest, AHoleInTheWindowLeavesTheShorterPrefix) {
  SimulatedWorker worker({});
  const auto keys = KeysOf(worker.Root(), Tokens(8), kBlockTokens);
  worker.Hold(SessionId("s"), TenantId("t"), Tokens(8));
  ASSERT_TRUE(worker.pools()[1]->Evict(keys[5], EvictionCause::kCommand));
  Mirror(worker);
  EXPECT_EQ(Locate(keys)[0].matched_tokens, 5 * kBlockTokens);
  ASSERT_TRUE(worker.pools()[0]->Evict(keys[7], EvictionCause::kCommand));
  Mirror(worker);
  EXPECT_EQ(Locate(keys)[0].matched_tokens, 5 * kBlockTokens);
}

TEST_F(ClusterTest, ASequencesOwnWindowNeedsItsSinksAndLastBlocks) {
  SimulatedWorker worker({});
  const auto keys = KeysOf(worker.Root(), Tokens(8), kBlockTokens);
  worker.Hold(SessionId("s"), TenantId("t"), Tokens(8));
  constexpr AttentionSpan kSpan{.window_tokens = 2 * kBlockTokens, .sink_tokens = 1};
  WorkerEntry& entry = Mirror(worker);
  const auto evict = [&](size_t block) {
    const BlockEvicted event{0, keys[block], Tier::kDevice, EvictionCause::kCapacity};
    ASSERT_TRUE(entry.mirror->Apply(event, ApplyMode::kInOrder).ok());
  };
  evict(2);
  EXPECT_EQ(Locate(keys)[0].matched_tokens, 2 * kBlockTokens);
  EXPECT_EQ(Locate(keys, kSpan)[0].matched_tokens, 8 * kBlockTokens);
  evict(6);
  EXPECT_EQ(Locate(keys, kSpan)[0].matched_tokens, 6 * kBlockTokens);
  evict(0);
  EXPECT_EQ(Locate(keys, kSpan)[0].matched_tokens, 0u);
}

TEST_F(ClusterTest, LocateLeavesOutOtherModelsFormatsAndLostWorkers) {
  SimulatedWorker worker({});
  Mirror(worker);
  const auto count = [&](LocateQuery query, int64_t now_ms) {
    return index_.Locate(query, now_ms)->size();
  };
  const LocateQuery query{.model_fingerprint = "model", .format = "f16", .block_tokens = 16};
  EXPECT_EQ(count(query, kNow), 1u);
  LocateQuery other = query;
  other.model_fingerprint = "other";
  EXPECT_EQ(count(other, kNow), 0u);
  other = query, other.format = "q8";
  EXPECT_EQ(count(other, kNow), 0u);
  other = query, other.block_tokens = 32;
  EXPECT_EQ(count(other, kNow), 0u);
  EXPECT_EQ(count(query, kNow + kLostAfterMs - 1), 1u);
  EXPECT_EQ(count(query, kNow + kLostAfterMs), 0u);
  const std::vector<BlockKey> too_many(kMaxLocateKeys + 1);
  other = query, other.keys = std::span(too_many).first(kMaxLocateKeys);
  EXPECT_TRUE(index_.Locate(other, kNow).ok());
  other.keys = too_many;
  EXPECT_EQ(index_.Locate(other, kNow).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ClusterTest, TwoSessionsWithOneSystemPromptShareItsBlocks) {
  SimulatedWorker worker({});
  std::vector<int32_t> first = Tokens(3), second = Tokens(3);
  for (const int32_t token : Tokens(2, 100)) first.push_back(token);
  for (const int32_t token : Tokens(4, 200)) second.push_back(token);
  worker.Hold(SessionId("a"), TenantId("t"), first);
  worker.Hold(SessionId("b"), TenantId("t"), second);
  worker.sessions().SetUnnamed(SessionId("a"), 0, 1, 2);
  worker.sessions().SetPhase(SessionId("a"), SessionPhase::kWaiting);
  Mirror(worker);
  const auto a = MemoryOfSession(index_, SessionId("a"), kNow);
  ASSERT_TRUE(a.ok());
  ASSERT_EQ(a->holdings.size(), 2u);
  EXPECT_EQ(a->phase, SessionPhase::kWaiting);
  EXPECT_EQ(a->holdings[0].shared.blocks, 3u);
  EXPECT_EQ(a->holdings[0].shared.bytes, 3'000u);
  EXPECT_EQ(a->holdings[0].exclusive.bytes, 2'000u);
  EXPECT_EQ(a->holdings[0].partial.bytes, 1'000u);
  EXPECT_EQ(a->holdings[0].reserved.bytes, 2'000u);
  EXPECT_EQ(MemoryOfSession(index_, SessionId("b"), kNow)->holdings[0].exclusive.bytes, 4'000u);
  EXPECT_EQ(MemoryOfSession(index_, SessionId("c"), kNow).status().code(),
            absl::StatusCode::kNotFound);
  const MirrorPoolCounts& counts = index_.Workers()[0]->mirror->counts(0);
  EXPECT_EQ(counts.active, 7u);  // b's chain
  EXPECT_EQ(counts.stored[0], 9u);
}

TEST_F(ClusterTest, EvictedBlocksOfAChainAreNotCounted) {
  SimulatedWorker worker({});
  worker.Hold(SessionId("a"), TenantId("t"), Tokens(4));
  worker.pools()[0]->EvictSome(3, EvictionCause::kDrained);
  Mirror(worker);
  const auto a = MemoryOfSession(index_, SessionId("a"), kNow);
  EXPECT_EQ(a->holdings[0].chain_blocks, 4u);
  EXPECT_EQ(a->holdings[0].stored.blocks, 1u);
}

TEST_F(ClusterTest, BlocksAndSessionsAreListedInPages) {
  SimulatedWorker worker({});
  for (int i = 0; i < 5; ++i) {
    worker.Hold(SessionId("s" + std::to_string(i)), TenantId(i < 2 ? "t" : "u"), Tokens(2, 10 * i));
  }
  Mirror(worker);
  std::vector<BlockKey> listed;
  ListBlocksQuery query{.worker = worker.info().id, .pool = 0, .limit = 3};
  for (;;) {
    const auto page = ListBlocks(index_, query);
    ASSERT_TRUE(page.ok());
    for (const ListedBlock& block : *page) listed.push_back(block.key);
    if (page->empty()) break;
    query.after = page->back().key;
  }
  EXPECT_EQ(listed.size(), 10u);
  EXPECT_TRUE(std::is_sorted(listed.begin(), listed.end()));
  query.limit = kMaxPageItems + 1;
  EXPECT_EQ(ListBlocks(index_, query).status().code(), absl::StatusCode::kInvalidArgument);
  query.limit = kMaxPageItems, query.pool = 2;
  EXPECT_EQ(ListBlocks(index_, query).status().code(), absl::StatusCode::kNotFound);
  const auto sessions =
      ListSessions(index_, {.tenant = TenantId("u"), .after = SessionId("s2"), .limit = 1});
  ASSERT_TRUE(sessions.ok() && sessions->size() == 1);
  EXPECT_EQ(sessions->front().session, SessionId("s3"));
}

TEST_F(ClusterTest, ConfidenceFollowsDoubtAndSilence) {
  WorkerEntry entry;
  EXPECT_EQ(entry.ConfidenceAt(0), Confidence::kBlind);
  entry.has_snapshot = entry.verified = entry.connected = true;
  EXPECT_EQ(entry.ConfidenceAt(2 * kHeartbeatIntervalMs), Confidence::kExact);
  EXPECT_EQ(entry.ConfidenceAt(2 * kHeartbeatIntervalMs + 1), Confidence::kLagging);
  entry.in_resync = true;
  EXPECT_EQ(entry.ConfidenceAt(0), Confidence::kResync);
}

}  // namespace
}  // namespace kvist::cache_manager
