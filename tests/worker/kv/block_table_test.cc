#include "worker/kv/block_table.h"

#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "cache_manager/event_log.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvist::worker {
namespace {

using cache_manager::AttentionSpan;
using cache_manager::BlockKey;
using cache_manager::BlockPool;
using cache_manager::EventLog;
using ::testing::ElementsAre;

constexpr int32_t kBlock = 16;

std::vector<int32_t> Tokens(int64_t n, int32_t salt = 0) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < n; ++i) tokens.push_back(static_cast<int32_t>(i * 31 + salt));
  return tokens;
}

struct Copy {
  int32_t pool, from, to;
};

// Pools of the given windows, with as many blocks each.
class BlockTableTest : public testing::Test {
 protected:
  void Make(const std::vector<int64_t>& windows, const std::vector<int32_t>& blocks) {
    log = std::make_unique<EventLog>(EventLog::Options{.num_pools = windows.size()});
    std::vector<CacheGroup> groups;
    for (size_t g = 0; g < windows.size(); ++g) {
      pools.push_back(std::make_unique<BlockPool>(
          BlockPool::Options{.id = static_cast<cache_manager::PoolIndex>(g),
                             .num_blocks = blocks[g],
                             .block_tokens = kBlock,
                             .evict_leaves_only = windows[g] == 0},
          log.get()));
      groups.push_back({pools.back().get(), static_cast<int32_t>(g), windows[g]});
    }
    cache = std::make_unique<KvCache>(KvFormat::kF16, std::move(groups),
                                      [this](int32_t pool, int32_t from, int32_t to) {
                                        copies.push_back({pool, from, to});
                                      });
    root = cache_manager::RootKey({.model_fingerprint = "m", .attention = "full"});
  }
  SequenceBlocks New(Sharing sharing = Sharing::kShared, const AttentionSpan& attention = {}) {
    return SequenceBlocks(
        cache.get(),
        {.root = root, .sharing = sharing, .attention = attention, .max_tokens = 1000});
  }
  SequenceBlocks NewWindowed(const AttentionSpan& attention) {
    return New(Sharing::kShared, attention);
  }
  // Grows to all tokens and says that they were written.
  void Write(SequenceBlocks& blocks, const std::vector<int32_t>& tokens) {
    const int64_t n = static_cast<int64_t>(tokens.size());
    ASSERT_EQ(blocks.GrowTo(n), n);
    blocks.MarkWritten(tokens, n);
    Check(blocks);
  }
  // A sequence of these tokens comes and goes.
  void Leave(const std::vector<int32_t>& tokens, const AttentionSpan& attention = {}) {
    SequenceBlocks blocks = NewWindowed(attention);
    Write(blocks, tokens);
    blocks.Release(tokens);
    Check(blocks);
  }
  void Check(const SequenceBlocks& blocks) {
    EXPECT_TRUE(blocks.CheckInvariants().ok()) << blocks.CheckInvariants();
    for (const auto& pool : pools) EXPECT_TRUE(pool->CheckInvariants().ok());
  }
  int32_t Active(size_t pool) { return pools[pool]->Counts().active; }
  void Evict(size_t pool, const std::vector<int32_t>& tokens, size_t block) {
    const std::vector<BlockKey> keys = cache_manager::KeysOf(root, tokens, kBlock);
    EXPECT_TRUE(pools[pool]->Evict(keys[block], cache_manager::EvictionCause::kCommand));
  }

  std::unique_ptr<EventLog> log;
  std::vector<std::unique_ptr<BlockPool>> pools;
  std::unique_ptr<KvCache> cache;
  BlockKey root;
  std::vector<Copy> copies;
};

TEST_F(BlockTableTest, AMatchTakesWholeBlocksAndLeavesTheLastTokenOut) {
  Make({0}, {20});
  Leave(Tokens(64));
  SequenceBlocks blocks = New();
  EXPECT_EQ(blocks.MatchBlocks(Tokens(64), 63), 48);
  EXPECT_EQ(Active(0), 3);
  EXPECT_EQ(blocks.MatchPartial(Tokens(64), 63), 15);  // 15 tokens of the fourth, by copy
  EXPECT_EQ(blocks.stored_tokens(), 63);
  ASSERT_EQ(copies.size(), 1u);
  EXPECT_EQ(copies[0].to, blocks.table(0)[3]);
  EXPECT_NE(copies[0].from, copies[0].to);
  EXPECT_EQ(Active(0), 4);
  Check(blocks);
}

TEST_F(BlockTableTest, AKeptPartialBlockIsFound) {
  Make({0}, {20});
  Leave(Tokens(40));
  SequenceBlocks blocks = New();
  EXPECT_EQ(blocks.MatchBlocks(Tokens(100), 99), 32);
  EXPECT_EQ(blocks.MatchPartial(Tokens(100), 99), 8);
  Write(blocks, Tokens(100));
  EXPECT_EQ(blocks.named().size(), 6u);
}

TEST_F(BlockTableTest, APartialMatchIsWhatAllGroupsAgreeOn) {
  Make({0, 0}, {20, 20});
  Leave(Tokens(40));
  // The second pool loses its partial block and has another one with less in common.
  pools[1]->EvictSome(1, cache_manager::EvictionCause::kCommand);
  std::vector<int32_t> other = Tokens(40);
  other[35] = 7;
  Leave(other);
  SequenceBlocks blocks = New();
  EXPECT_EQ(blocks.MatchBlocks(Tokens(100), 99), 32);
  EXPECT_EQ(blocks.MatchPartial(Tokens(100), 99), 3);
  EXPECT_EQ(blocks.table(0).size(), 3u);
  EXPECT_EQ(blocks.table(1).size(), 3u);
  Check(blocks);
}

TEST_F(BlockTableTest, WithoutABlockToCopyToThereIsNoPartialMatch) {
  Make({0}, {3});
  Leave(Tokens(40));
  SequenceBlocks blocks = New();
  EXPECT_EQ(blocks.MatchBlocks(Tokens(100), 99), 32);
  EXPECT_EQ(blocks.MatchPartial(Tokens(100), 99), 0);
  EXPECT_EQ(blocks.stored_tokens(), 32);
  EXPECT_EQ(Active(0), 2);
  Check(blocks);
}

TEST_F(BlockTableTest, AFullGroupWithAHoleEndsTheMatchThere) {
  Make({0, 16}, {20, 20});
  Leave(Tokens(80));
  Evict(0, Tokens(80), 4);
  SequenceBlocks blocks = New();
  EXPECT_EQ(blocks.MatchBlocks(Tokens(100), 99), 64);
  EXPECT_THAT(blocks.table(1).first(3), ElementsAre(-1, -1, -1));
  EXPECT_EQ(Active(1), 1);
  Check(blocks);
}

TEST_F(BlockTableTest, AWindowedGroupNeedsOnlyItsLastWindow) {
  Make({0, 20}, {20, 20});
  Leave(Tokens(96));
  // Far behind the window: not missed.
  Evict(1, Tokens(96), 0);
  Evict(1, Tokens(96), 2);
  {
    SequenceBlocks blocks = New();
    EXPECT_EQ(blocks.MatchBlocks(Tokens(100), 99), 96);
    EXPECT_EQ(Active(1), 2);  // tokens 76 .. 95
    Check(blocks);
  }
  // In the window of 96 and of 80, not of 64: what follows block 4 is of no use without it.
  Evict(1, Tokens(96), 4);
  SequenceBlocks blocks = New();
  EXPECT_EQ(blocks.MatchBlocks(Tokens(100), 99), 0);  // 64 needs block 2 as well, 48 too
  blocks.Discard();
  Leave(Tokens(64));
  EXPECT_EQ(blocks.MatchBlocks(Tokens(100), 99), 64);
  Check(blocks);
}

TEST_F(BlockTableTest, BlocksBehindTheWindowAreGivenUpAndStayCached) {
  Make({0, 20}, {20, 20});
  SequenceBlocks blocks = New();
  for (int64_t n = 1; n <= 100; ++n) {
    Write(blocks, Tokens(n));
    EXPECT_LE(Active(1), 3);
    EXPECT_EQ(Active(0), (n + 15) / 16);
  }
  EXPECT_THAT(blocks.table(1).first(5), ElementsAre(-1, -1, -1, -1, -1));
  EXPECT_EQ(pools[1]->Counts().cached, 5);
}

TEST_F(BlockTableTest, ASequenceThatCompletesAPresentBlockAdoptsIt) {
  Make({0}, {20});
  SequenceBlocks a = New(), b = New();
  Write(a, Tokens(10));
  Write(b, Tokens(10));
  EXPECT_NE(a.table(0)[0], b.table(0)[0]);
  Write(a, Tokens(16));
  Write(b, Tokens(16));
  EXPECT_EQ(a.table(0)[0], b.table(0)[0]);
  EXPECT_EQ(Active(0), 1);
}

TEST_F(BlockTableTest, GrowingGivesAllGroupsTheSameLengthOrLess) {
  Make({0, 0}, {10, 3});
  SequenceBlocks blocks = New();
  EXPECT_FALSE(blocks.Fits(49, 0));
  EXPECT_TRUE(blocks.Fits(48, 0));
  EXPECT_FALSE(blocks.Fits(48, 1));
  EXPECT_EQ(blocks.GrowTo(100), 48);
  EXPECT_EQ(Active(0), 3);
  EXPECT_EQ(blocks.GrowTo(100), 48);
  EXPECT_EQ(cache->CapacityTokens({}), 48);
}

TEST_F(BlockTableTest, AWindowedPoolThatHoldsItsWindowHasNoCapacityLimit) {
  Make({0, 20, 16}, {10, 3, 2});
  EXPECT_EQ(cache->CapacityTokens({}), 160);
  SequenceBlocks blocks = New();
  EXPECT_TRUE(blocks.Fits(160, 0));
  for (int64_t n = 1; n <= 160; ++n) Write(blocks, Tokens(n));
}

TEST_F(BlockTableTest, AWindowedPoolBelowItsWindowIsTheLimit) {
  Make({0, 20}, {10, 2});
  EXPECT_EQ(cache->CapacityTokens({}), 32);
  SequenceBlocks blocks = New();
  EXPECT_TRUE(blocks.Fits(32, 0));
  EXPECT_FALSE(blocks.Fits(33, 0));
}

TEST_F(BlockTableTest, ASequencesOwnWindowKeepsItsSinksAndOutlivesThePool) {
  Make({0}, {5});
  constexpr AttentionSpan kSpan{.window_tokens = 32, .sink_tokens = 4};
  EXPECT_EQ(cache->CapacityTokens({}), 80);
  EXPECT_EQ(cache->CapacityTokens(kSpan), std::numeric_limits<int64_t>::max());
  // A sink block and two of the window, and one more to start the next in.
  EXPECT_EQ(cache->CapacityTokens({.window_tokens = 64, .sink_tokens = 4}), 80);
  SequenceBlocks blocks = NewWindowed(kSpan);
  EXPECT_TRUE(blocks.Fits(1000, 1));
  EXPECT_FALSE(blocks.Fits(1000, 2));
  for (int64_t n = 1; n <= 300; ++n) {
    Write(blocks, Tokens(n));
    EXPECT_LE(Active(0), 4);
  }
  EXPECT_GE(blocks.table(0)[0], 0);
  EXPECT_EQ(blocks.table(0)[1], -1);
  EXPECT_EQ(blocks.table(0)[15], -1);
  EXPECT_GE(blocks.table(0)[16], 0);  // tokens 256 and up: 268 is the first that 299 sees
}

TEST_F(BlockTableTest, InAGroupWithItsOwnWindowTheNarrowerHoldsAndThereAreNoSinks) {
  Make({0, 20, 200}, {20, 20, 20});
  SequenceBlocks blocks = NewWindowed({.window_tokens = 64, .sink_tokens = 4});
  for (int64_t n = 1; n <= 160; ++n) Write(blocks, Tokens(n));
  EXPECT_EQ(Active(0), 1 + 4);
  EXPECT_EQ(Active(1), 2);
  EXPECT_EQ(Active(2), 4);
}

TEST_F(BlockTableTest, AHitNeedsTheSinksAndTheLastWindow) {
  Make({0}, {20});
  constexpr AttentionSpan kSpan{.window_tokens = 32, .sink_tokens = 20};
  Leave(Tokens(160), kSpan);
  Evict(0, Tokens(160), 9);
  Evict(0, Tokens(160), 8);
  // A hole between the sinks (blocks 0 and 1) and the window of 128 tokens (6 and 7).
  pools[0]->Find(cache_manager::KeysOf(root, Tokens(160), kBlock)[6]).Reset();
  SequenceBlocks blocks = NewWindowed(kSpan);
  EXPECT_EQ(blocks.MatchBlocks(Tokens(200), 199), 128);
  EXPECT_EQ(Active(0), 4);
  EXPECT_THAT(blocks.table(0).subspan(2, 4), ElementsAre(-1, -1, -1, -1));
  Check(blocks);
  blocks.Discard();
  // Blocks 2 to 7 go, from the leaf on; what is left ends with the sinks.
  for (size_t block = 7; block >= 2; --block) Evict(0, Tokens(160), block);
  EXPECT_EQ(blocks.MatchBlocks(Tokens(200), 199), 32);
  blocks.Discard();
  Evict(0, Tokens(160), 1);
  EXPECT_EQ(blocks.MatchBlocks(Tokens(200), 199), 16);
  Check(blocks);
}

TEST_F(BlockTableTest, AMissingSinkBlockRulesOutTheMatch) {
  Make({0}, {6});
  Leave(Tokens(96));
  {
    // With the others in use, the first one is what goes for a new block.
    std::vector<cache_manager::BlockRef> used;
    for (const BlockKey& key : cache_manager::KeysOf(root, Tokens(96), kBlock)) {
      used.push_back(pools[0]->Find(key));
    }
    used[0].Reset();
    EXPECT_TRUE(pools[0]->Allocate().ok());
  }
  SequenceBlocks blocks = NewWindowed({.window_tokens = 32});
  EXPECT_EQ(blocks.MatchBlocks(Tokens(100), 99), 96);
  SequenceBlocks with_sinks = NewWindowed({.window_tokens = 32, .sink_tokens = 4});
  EXPECT_EQ(with_sinks.MatchBlocks(Tokens(100), 99), 0);
  Check(with_sinks);
}

TEST_F(BlockTableTest, APromiseIsKeptWhateverOthersTake) {
  Make({0}, {20});
  SequenceBlocks blocks = New();
  EXPECT_EQ(cache->PromisableTokens({}), 160);
  EXPECT_FALSE(blocks.Reserve(161, 0));
  EXPECT_FALSE(blocks.Reserve(160, 11));
  ASSERT_TRUE(blocks.Reserve(160, 10));
  EXPECT_EQ(blocks.ReservedBlocks(0), 10);
  SequenceBlocks other = New();
  EXPECT_EQ(other.GrowTo(1000), 160);
  EXPECT_EQ(pools[0]->Available(), 0);
  for (int64_t n = 1; n <= 160; ++n) Write(blocks, Tokens(n));
  EXPECT_EQ(blocks.ReservedBlocks(0), 0);
  EXPECT_EQ(blocks.GrowTo(161), 160);
  blocks.Release(Tokens(160));
  Check(blocks);
  EXPECT_TRUE(blocks.Reserve(160, 0));
}

TEST_F(BlockTableTest, AMatchCountsTowardsThePromise) {
  Make({0}, {20});
  Leave(Tokens(100));
  SequenceBlocks blocks = New();
  EXPECT_EQ(blocks.MatchBlocks(Tokens(120), 119), 96);
  ASSERT_TRUE(blocks.Reserve(160, 0));
  EXPECT_EQ(blocks.ReservedBlocks(0), 4);
  EXPECT_EQ(blocks.MatchPartial(Tokens(120), 119), 4);
  EXPECT_EQ(blocks.ReservedBlocks(0), 3);
  SequenceBlocks second = New();
  EXPECT_FALSE(second.Reserve(16, 0));
  Check(blocks);
}

TEST_F(BlockTableTest, WhatAWindowGivesUpComesBackToThePromise) {
  Make({0}, {12});
  constexpr AttentionSpan kSpan{.window_tokens = 32, .sink_tokens = 4};
  EXPECT_EQ(cache->PromisableTokens(kSpan), std::numeric_limits<int64_t>::max());
  SequenceBlocks blocks = NewWindowed(kSpan);
  ASSERT_TRUE(blocks.Reserve(300, 0));
  EXPECT_EQ(blocks.ReservedBlocks(0), 4);
  SequenceBlocks other = New();
  EXPECT_EQ(other.GrowTo(1000), 128);
  for (int64_t n = 1; n <= 300; ++n) {
    Write(blocks, Tokens(n));
    EXPECT_EQ(Active(0) - 8 + blocks.ReservedBlocks(0), 4);
  }
}

TEST_F(BlockTableTest, APromiseWaitsForBlocksThatOthersStillUse) {
  Make({0}, {8});
  constexpr AttentionSpan kSpan{.window_tokens = 32};
  SequenceBlocks blocks = NewWindowed(kSpan);
  ASSERT_TRUE(blocks.Reserve(300, 0));
  Write(blocks, Tokens(47));
  SequenceBlocks reader = NewWindowed(kSpan);
  EXPECT_EQ(reader.MatchBlocks(Tokens(40), 40), 32);
  SequenceBlocks other = New();
  EXPECT_EQ(other.GrowTo(1000), 80);
  Write(blocks, Tokens(48));
  EXPECT_EQ(blocks.GrowTo(49), 48);  // block 0, which was given up, is the reader's
  reader.Discard();
  EXPECT_EQ(blocks.GrowTo(49), 49);
  Check(blocks);
}

TEST_F(BlockTableTest, ScratchIsNeitherMatchedNorKept) {
  Make({0, 20}, {20, 20});
  Leave(Tokens(64));
  const int32_t cached = pools[0]->Counts().cached;
  SequenceBlocks blocks = New(Sharing::kScratch);
  EXPECT_EQ(blocks.MatchBlocks(Tokens(64), 63), 0);
  EXPECT_EQ(blocks.MatchPartial(Tokens(64), 63), 0);
  Write(blocks, Tokens(70));
  EXPECT_EQ(Active(0), 5);
  blocks.Release(Tokens(70));
  EXPECT_EQ(Active(0), 0);
  EXPECT_EQ(pools[0]->Counts().cached, cached);
  Check(blocks);
}

TEST_F(BlockTableTest, DiscardKeepsNamedBlocksOnly) {
  Make({0}, {20});
  SequenceBlocks blocks = New();
  Write(blocks, Tokens(40));
  EXPECT_EQ(blocks.UnnamedBlocks(0), 1);
  blocks.Discard();
  EXPECT_EQ(pools[0]->Counts().cached, 2);
  EXPECT_EQ(blocks.stored_tokens(), 0);
  Check(blocks);
}

TEST_F(BlockTableTest, BlocksGrownAheadOfThePartialOneAreFreedOnRelease) {
  Make({0}, {20});
  SequenceBlocks blocks = New();
  Write(blocks, Tokens(24));
  EXPECT_EQ(blocks.GrowTo(60), 60);
  blocks.Release(Tokens(24));
  EXPECT_EQ(pools[0]->Counts().cached, 2);  // one named, one kept partial
  EXPECT_EQ(pools[0]->Counts().free, 18);
}

}  // namespace
}  // namespace kvist::worker
