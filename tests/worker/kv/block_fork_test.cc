// Forks of a sequence's blocks against a model of what every block contains.
#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "cache_manager/event_log.h"
#include "gtest/gtest.h"
#include "worker/kv/block_table.h"

namespace kvist::worker {
namespace {

using cache_manager::AttentionSpan;
using cache_manager::BlockPool;
using cache_manager::EventLog;

constexpr int32_t kBlock = 16;

// What the model stores for a token: it depends on all tokens before it.
uint64_t ValueAt(const std::vector<int32_t>& tokens, size_t position) {
  uint64_t value = 1469598103934665603u;
  for (size_t i = 0; i <= position; ++i) {
    value = (value ^ static_cast<uint64_t>(tokens[i] + 1)) * 1099511628211u;
  }
  return value;
}

// Pools whose blocks really contain something.
class BlockForkTest : public testing::Test {
 protected:
  struct Branch {
    std::vector<int32_t> tokens;
    SequenceBlocks blocks;
    bool promised = false;
  };

  void Make(const std::vector<int64_t>& windows, int32_t blocks) {
    log_ = std::make_unique<EventLog>(EventLog::Options{.num_pools = windows.size()});
    std::vector<CacheGroup> groups;
    for (size_t g = 0; g < windows.size(); ++g) {
      pools_.push_back(std::make_unique<BlockPool>(
          BlockPool::Options{.id = static_cast<cache_manager::PoolIndex>(g),
                             .num_blocks = blocks,
                             .block_tokens = kBlock,
                             .evict_leaves_only = windows[g] == 0},
          log_.get()));
      arenas_.emplace_back(static_cast<size_t>(blocks * kBlock), 0);
      groups.push_back({pools_.back().get(), static_cast<int32_t>(g), windows[g]});
    }
    windows_ = windows;
    cache_ = std::make_unique<KvCache>(
        KvFormat::kF16, std::move(groups), [this](int32_t pool, int32_t from, int32_t to) {
          std::vector<uint64_t>& arena = arenas_[static_cast<size_t>(pool)];
          std::copy_n(arena.begin() + from * kBlock, kBlock, arena.begin() + to * kBlock);
          ++copies_;
        });
  }
  Branch New(const AttentionSpan& attention = {}) {
    return {
        .tokens = {},
        .blocks = SequenceBlocks(
            cache_.get(),
            {.root = cache_manager::RootKey(
                 {.model_fingerprint = "m", .attention = cache_manager::AttentionText(attention)}),
             .attention = attention,
             .max_tokens = 1000})};
  }
  Branch ForkOf(const Branch& other, const AttentionSpan& attention = {}) {
    Branch fork = New(attention);
    fork.tokens = other.tokens;
    fork.blocks.Fork(other.blocks);
    return fork;
  }
  // Appends tokens and stores what they are. False if there are no blocks: nothing changed then.
  bool Write(Branch& branch, const std::vector<int32_t>& more) {
    const size_t before = branch.tokens.size();
    const size_t total = before + more.size();
    if (branch.blocks.GrowTo(static_cast<int64_t>(total)) < static_cast<int64_t>(total)) {
      return false;
    }
    branch.tokens.insert(branch.tokens.end(), more.begin(), more.end());
    for (size_t g = 0; g < pools_.size(); ++g) {
      for (size_t p = before; p < total; ++p) {
        const int32_t block = branch.blocks.table(g)[p / kBlock];
        EXPECT_EQ(pools_[g]->Facts(block).references, 1) << "a shared block is written";
        EXPECT_TRUE(pools_[g]->Facts(block).key.empty()) << "a named block is written";
        arenas_[g][static_cast<size_t>(block) * kBlock + p % kBlock] = ValueAt(branch.tokens, p);
      }
    }
    branch.blocks.MarkWritten(branch.tokens, static_cast<int64_t>(total));
    return true;
  }
  void Check(const Branch& branch, const AttentionSpan& attention = {}) {
    ASSERT_TRUE(branch.blocks.CheckInvariants().ok()) << branch.blocks.CheckInvariants();
    const auto stored = static_cast<size_t>(branch.blocks.stored_tokens());
    for (size_t g = 0; g < pools_.size(); ++g) {
      ASSERT_TRUE(pools_[g]->CheckInvariants().ok()) << pools_[g]->CheckInvariants();
      const AttentionSpan span = cache_manager::SpanInLayers(windows_[g], attention);
      const auto window = static_cast<size_t>(span.window_tokens);
      for (size_t p = 0; p < stored; ++p) {
        const bool seen =
            window == 0 || p + window >= stored || p < static_cast<size_t>(span.sink_tokens);
        if (!seen) continue;
        const int32_t block = branch.blocks.table(g)[p / kBlock];
        ASSERT_GE(block, 0);
        ASSERT_EQ(arenas_[g][static_cast<size_t>(block) * kBlock + p % kBlock],
                  ValueAt(branch.tokens, p))
            << "position " << p << " of " << stored << ", group " << g;
      }
    }
  }
  void Clear() {
    cache_.reset();
    pools_.clear();
    arenas_.clear();
    log_.reset();
  }
  int32_t Active(size_t pool) { return pools_[pool]->Counts().active; }
  static std::vector<int32_t> Tokens(int64_t n, int32_t salt = 0) {
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < n; ++i) tokens.push_back(static_cast<int32_t>(i * 31 + salt));
    return tokens;
  }

  std::unique_ptr<EventLog> log_;
  std::vector<std::unique_ptr<BlockPool>> pools_;
  std::vector<std::vector<uint64_t>> arenas_;
  std::vector<int64_t> windows_;
  std::unique_ptr<KvCache> cache_;
  int copies_ = 0;
};

TEST_F(BlockForkTest, WhatIsLostWithTheBlocksIsWhatNobodyElseHas) {
  Make({0}, 6);
  const auto nowhere = [](size_t, const cache_manager::BlockKey&) { return false; };
  Branch a = New();
  ASSERT_TRUE(Write(a, Tokens(40)));
  EXPECT_EQ(a.blocks.KeptWithout(nowhere), 0);
  EXPECT_TRUE(a.blocks.FreesWhatIsShort());  // none is short
  EXPECT_EQ(a.blocks.KeptWithout([&](size_t, const cache_manager::BlockKey& key) {
    return key == a.blocks.named()[0];
  }),
            16);
  Branch b = ForkOf(a);
  EXPECT_EQ(a.blocks.KeptWithout(nowhere), 40);
  ASSERT_TRUE(Write(b, Tokens(30, 7)));  // 70 tokens: the partial block was copied, two are new
  EXPECT_EQ(b.blocks.KeptWithout(nowhere), 32);
  EXPECT_EQ(pools_[0]->Available(), 0);
  Branch c = ForkOf(b);
  EXPECT_TRUE(a.blocks.FreesWhatIsShort());  // its partial block is its own again
  EXPECT_FALSE(b.blocks.FreesWhatIsShort());
  EXPECT_FALSE(c.blocks.FreesWhatIsShort());
}

TEST_F(BlockForkTest, AForkTakesNoBlockUntilItWrites) {
  Make({0}, 20);
  Branch a = New();
  ASSERT_TRUE(Write(a, Tokens(40)));
  Branch b = ForkOf(a);
  EXPECT_EQ(b.blocks.stored_tokens(), 40);
  EXPECT_EQ(Active(0), 3);
  EXPECT_TRUE(a.blocks.SharesTail());
  EXPECT_EQ(copies_, 0);
  Check(b);
}

TEST_F(BlockForkTest, WhoWritesFirstCopiesThePartialBlockAndTheLastOneKeepsIt) {
  Make({0, 0}, 20);
  Branch a = New();
  ASSERT_TRUE(Write(a, Tokens(40)));
  Branch b = ForkOf(a), c = ForkOf(a);
  const int32_t shared = a.blocks.table(0)[2];
  ASSERT_TRUE(Write(b, {1}));
  ASSERT_TRUE(Write(a, {2}));
  EXPECT_EQ(copies_, 4);  // two, in two groups
  EXPECT_NE(b.blocks.table(0)[2], shared);
  EXPECT_NE(a.blocks.table(0)[2], shared);
  ASSERT_TRUE(Write(c, {3}));
  EXPECT_EQ(copies_, 4);
  EXPECT_EQ(c.blocks.table(0)[2], shared);
  EXPECT_EQ(Active(0), 2 + 3);
  for (const Branch* branch : {&a, &b, &c}) Check(*branch);
}

TEST_F(BlockForkTest, AtTheEdgeOfABlockNothingIsCopied) {
  Make({0}, 20);
  Branch a = New();
  ASSERT_TRUE(Write(a, Tokens(48)));
  Branch b = ForkOf(a);
  EXPECT_FALSE(b.blocks.SharesTail());
  ASSERT_TRUE(Write(b, {1}));
  ASSERT_TRUE(Write(a, {2}));
  EXPECT_EQ(copies_, 0);
  EXPECT_EQ(Active(0), 3 + 2);
  Check(a);
  Check(b);
}

TEST_F(BlockForkTest, BlocksGrownAheadAreNotShared) {
  Make({0}, 20);
  Branch a = New();
  ASSERT_TRUE(Write(a, Tokens(40)));
  ASSERT_EQ(a.blocks.GrowTo(100), 100);
  Branch b = ForkOf(a);
  EXPECT_EQ(b.blocks.table(0).size(), 3u);
  Check(b);
}

TEST_F(BlockForkTest, ASharedPartialBlockIsKeptByTheLastToLetGo) {
  Make({0}, 20);
  Branch a = New();
  ASSERT_TRUE(Write(a, Tokens(40)));
  Branch b = ForkOf(a);
  a.blocks.Release(a.tokens);
  EXPECT_EQ(pools_[0]->Counts().cached, 0);
  Check(b);
  b.blocks.Release(b.tokens);
  EXPECT_EQ(pools_[0]->Counts().cached, 3);
  Branch c = New();
  c.tokens = Tokens(40);
  EXPECT_EQ(c.blocks.MatchBlocks(c.tokens, 39), 32);
  EXPECT_EQ(c.blocks.MatchPartial(c.tokens, 39), 7);
  Check(c);
}

TEST_F(BlockForkTest, WithoutABlockForTheCopyNothingIsCoveredBeyondWhatIsStored) {
  Make({0}, 4);
  Branch a = New(), other = New();
  ASSERT_TRUE(Write(a, Tokens(40)));
  ASSERT_TRUE(Write(other, Tokens(10, 5)));
  Branch b = ForkOf(a);
  EXPECT_FALSE(b.blocks.Fits(41, 0));
  EXPECT_EQ(b.blocks.GrowTo(41), 40);
  Check(b);
  a.blocks.Release(a.tokens);
  EXPECT_TRUE(b.blocks.Fits(41, 0));
  EXPECT_EQ(b.blocks.GrowTo(41), 41);
  EXPECT_EQ(copies_, 0);
}

TEST_F(BlockForkTest, APromiseCopiesAtOnceSoThatItHoldsWhateverTheOthersDo) {
  Make({0}, 30);
  Branch a = New();
  ASSERT_TRUE(a.blocks.Reserve(60, 0));
  ASSERT_TRUE(Write(a, Tokens(40)));
  Branch b = ForkOf(a);
  EXPECT_FALSE(b.blocks.Reserve(300, 0));
  EXPECT_TRUE(b.blocks.SharesTail());
  ASSERT_TRUE(b.blocks.Reserve(60, 0));
  EXPECT_EQ(copies_, 1);
  EXPECT_FALSE(a.blocks.SharesTail());
  EXPECT_EQ(b.blocks.ReservedBlocks(0), 1);
  Branch other = New();
  other.blocks.GrowTo(1000);
  EXPECT_EQ(pools_[0]->Available(), 0);
  for (int32_t i = 0; i < 20; ++i) {
    ASSERT_TRUE(Write(a, {i}));
    ASSERT_TRUE(Write(b, {100 + i}));
    Check(a);
    Check(b);
  }
}

TEST_F(BlockForkTest, AWindowedForkHoldsTheSinksAndTheLastWindow) {
  constexpr AttentionSpan kSpan{.window_tokens = 32, .sink_tokens = 4};
  Make({0, 20}, 20);
  Branch a = New(kSpan);
  for (int i = 0; i < 9; ++i) ASSERT_TRUE(Write(a, Tokens(10, i)));
  Branch b = ForkOf(a, kSpan);
  EXPECT_EQ(b.blocks.table(0)[1], -1);
  for (int32_t i = 0; i < 50; ++i) {
    ASSERT_TRUE(Write(a, {i}));
    ASSERT_TRUE(Write(b, {100 + i}));
    Check(a, kSpan);
    Check(b, kSpan);
  }
}

TEST_F(BlockForkTest, ALatecomerCopiesThePartialBlockThatItsSiblingWrites) {
  Make({0, 20}, 20);
  Branch a = New();
  ASSERT_TRUE(Write(a, Tokens(40)));
  Branch b = New();
  b.tokens = Tokens(40);
  ASSERT_TRUE(Write(a, {7, 8}));
  EXPECT_EQ(b.blocks.MatchBlocks(b.tokens, 39), 32);
  EXPECT_EQ(b.blocks.MatchPartialOf(a.blocks, 39), 7);
  EXPECT_EQ(b.blocks.stored_tokens(), 39);
  Check(b);
  b.tokens.resize(39);
  ASSERT_TRUE(Write(b, {1, 2, 3}));
  Check(a);
  Check(b);
  // Nothing beyond what the sibling has stored.
  Branch c = New();
  c.tokens = Tokens(40);
  Branch shorter = New();
  ASSERT_TRUE(Write(shorter, Tokens(5)));
  EXPECT_EQ(c.blocks.MatchPartialOf(shorter.blocks, 39), 5);
  Check(c);
}

struct RandomCase {
  std::vector<int64_t> windows;
  AttentionSpan attention;
  int32_t blocks;
};

// Random writes, forks, promises and ends; every branch always reads what it wrote.
class RandomBlockForkTest : public BlockForkTest, public testing::WithParamInterface<RandomCase> {
 protected:
  void Run(const RandomCase& random_case, uint64_t seed) {
    std::mt19937_64 random(seed);
    const auto below = [&](uint64_t n) { return random() % n; };
    Make(random_case.windows, random_case.blocks);
    std::vector<Branch> branches;
    int forks = 0;
    for (int step = 0; step < 600; ++step) {
      if (branches.empty() || below(20) == 0) {
        branches.push_back(New(random_case.attention));
        if (below(4) == 0) branches.back().promised = branches.back().blocks.Reserve(100, 0);
      }
      Branch& branch = branches[below(branches.size())];
      const uint64_t action = below(10);
      if (action < 6) {
        // Few different tokens: branches complete equal blocks and adopt them.
        std::vector<int32_t> more;
        for (uint64_t n = 1 + below(9); n > 0; --n) more.push_back(static_cast<int32_t>(below(2)));
        const size_t most = branch.promised ? 100 : 300;
        const bool fits = branch.tokens.size() + more.size() <= most;
        if (fits && !Write(branch, more)) {
          ASSERT_FALSE(branch.promised) << "a promise was broken";
        }
      } else if (action < 8 && branches.size() < 8) {
        const bool promised = branch.promised;
        Branch fork = ForkOf(branch, random_case.attention);
        fork.promised = promised;
        if (promised && !fork.blocks.Reserve(100, 0)) continue;  // it goes again
        branches.push_back(std::move(fork));
        ++forks;
      } else if (action == 8) {
        branch.blocks.Release(branch.tokens);
        std::swap(branch, branches.back());
        branches.pop_back();
      } else {
        branch.blocks.Discard();
        std::swap(branch, branches.back());
        branches.pop_back();
      }
      for (const Branch& each : branches) {
        Check(each, random_case.attention);
        if (HasFatalFailure()) return;
      }
    }
    EXPECT_GT(forks, 10);
    branches.clear();
    for (size_t g = 0; g < pools_.size(); ++g) EXPECT_EQ(Active(g), 0);
  }
};

TEST_P(RandomBlockForkTest, EveryBranchReadsWhatItWrote) {
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    SCOPED_TRACE(seed);
    Run(GetParam(), seed);
    if (HasFatalFailure()) return;
    Clear();
  }
}

INSTANTIATE_TEST_SUITE_P(Spans, RandomBlockForkTest,
                         ::testing::Values(RandomCase{{0}, {}, 60}, RandomCase{{0}, {}, 200},
                                           RandomCase{{0, 24}, {}, 80},
                                           RandomCase{{0, 40, 16}, {64, 20}, 60},
                                           RandomCase{{20}, {32, 4}, 30}));

}  // namespace
}  // namespace kvist::worker
