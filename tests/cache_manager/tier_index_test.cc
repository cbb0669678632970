#include "cache_manager/tier_index.h"

#include <algorithm>
#include <list>
#include <map>
#include <random>
#include <set>
#include <string>

#include "cache_manager/event_log.h"
#include "cache_manager/snapshot.h"
#include "cache_manager/worker_mirror.h"
#include "gtest/gtest.h"

namespace kvist::cache_manager {
namespace {

BlockKey Key(uint8_t n) {
  BlockKey key;
  key.bytes.fill(n);
  return key;
}
TierBlock Block(uint8_t n) { return {Key(n), Key(200)}; }

class TierIndexTest : public testing::Test {
 protected:
  void Write(uint8_t n) {
    const auto slot = tier_.Begin(Block(n));
    ASSERT_TRUE(slot.has_value());
    tier_.Finish(*slot);
  }
  EventLog log_{{.num_pools = 1}};
  TierIndex tier_{{.num_slots = 3}, {}, &log_};
};

TEST_F(TierIndexTest, ABlockIsFoundOnceItIsWritten) {
  const auto slot = tier_.Begin(Block(1));
  ASSERT_TRUE(slot.has_value());
  EXPECT_FALSE(tier_.Contains(Key(1)));
  EXPECT_FALSE(tier_.Begin(Block(1)).has_value());
  tier_.Finish(*slot);
  EXPECT_EQ(tier_.Find(Key(1)), slot);
  EXPECT_EQ(tier_.At(*slot)->parent, Key(200));
  EXPECT_FALSE(tier_.Begin(Block(1)).has_value());
  EXPECT_EQ(log_.digests()[0].placement, PlacementHash(Key(1), Tier::kDisk));
}

TEST_F(TierIndexTest, TheBlockUsedLongestAgoMakesRoom) {
  for (const uint8_t n : {1, 2, 3}) Write(n);
  EXPECT_TRUE(tier_.Find(Key(1)).has_value());
  EXPECT_FALSE(tier_.Begin(Block(2)).has_value());  // counts as a use
  Write(4);
  EXPECT_FALSE(tier_.Contains(Key(3)));
  EXPECT_TRUE(tier_.Contains(Key(1)) && tier_.Contains(Key(2)) && tier_.Contains(Key(4)));
  EXPECT_EQ(tier_.evictions()[static_cast<size_t>(EvictionCause::kCapacity)], 1u);
}

TEST_F(TierIndexTest, SlotsBeingWrittenAreNobodysVictims) {
  for (const uint8_t n : {1, 2, 3}) ASSERT_TRUE(tier_.Begin(Block(n)).has_value());
  EXPECT_FALSE(tier_.Begin(Block(4)).has_value());
  tier_.Abandon(0);
  EXPECT_TRUE(tier_.Begin(Block(4)).has_value());
}

TEST_F(TierIndexTest, EvictedBlocksAreToBeWipedUnlessTheirSlotIsTaken) {
  for (const uint8_t n : {1, 2, 3}) Write(n);
  EXPECT_TRUE(tier_.Evict(Key(2), EvictionCause::kClosed));
  EXPECT_FALSE(tier_.Evict(Key(2), EvictionCause::kClosed));
  EXPECT_EQ(tier_.wipes(), 1u);
  EXPECT_EQ(tier_.TakeWipe(), 1);
  EXPECT_EQ(tier_.TakeWipe(), std::nullopt);
  EXPECT_TRUE(tier_.Evict(Key(1), EvictionCause::kClosed));
  EXPECT_EQ(tier_.Begin(Block(5)), 0);
  EXPECT_EQ(tier_.TakeWipe(), std::nullopt);
}

TEST_F(TierIndexTest, ABlockEvictedWhileItIsWrittenIsWipedAfterwards) {
  const auto slot = tier_.Begin(Block(1));
  EXPECT_TRUE(tier_.Evict(Key(1), EvictionCause::kClosed));
  EXPECT_EQ(tier_.TakeWipe(), std::nullopt);
  tier_.Finish(*slot);
  EXPECT_FALSE(tier_.Contains(Key(1)));
  EXPECT_EQ(tier_.TakeWipe(), slot);
  const auto again = tier_.Begin(Block(1));
  EXPECT_TRUE(tier_.Evict(Key(1), EvictionCause::kClosed));
  tier_.Abandon(*again);  // it may be there in part
  EXPECT_EQ(tier_.TakeWipe(), again);
  EXPECT_EQ(log_.last_seq(), 0u);
}

TEST_F(TierIndexTest, FoundBlocksAreStoredAndOfTwoAlikeTheLaterOne) {
  TierIndex tier({.num_slots = 4}, {{2, Block(1)}, {0, Block(2)}, {3, Block(1)}}, &log_);
  EXPECT_EQ(tier.stored(), 2);
  EXPECT_EQ(tier.Find(Key(1)), 3);
  EXPECT_TRUE(tier.CheckInvariants().ok()) << tier.CheckInvariants();
  EXPECT_TRUE(tier.Begin(Block(3)).has_value() && tier.Begin(Block(4)).has_value());
  const auto slot = tier.Begin(Block(5));  // takes 2's: 1 was used later
  EXPECT_EQ(slot, 0);
}

// A mirror made from a snapshot of the tier beside an empty pool has the log's digest.
void ExpectSnapshotToGiveTheDigest(const std::vector<std::unique_ptr<TierIndex>>& tiers,
                                   const WorkerInfo& info, EventLog& log) {
  std::vector<std::unique_ptr<BlockPool>> pools;
  pools.push_back(std::make_unique<BlockPool>(BlockPool::Options{.num_blocks = 4}, &log));
  ASSERT_TRUE(pools[0]->CheckInvariants(tiers[0]->placement()).ok());
  SessionTable sessions(4, &log);
  SnapshotBuilder snapshot({pools, &sessions, &log, tiers});
  WorkerMirror copy(info);
  for (bool last = false; !last;) {
    const SnapshotBuilder::Slice slice = snapshot.NextSlice(3);
    for (const Event& event : slice.events) {
      ASSERT_TRUE(copy.Apply(event, ApplyMode::kInOrder).ok());
    }
    last = slice.last;
  }
  EXPECT_EQ(copy.digest(0), log.digests()[0]);
}

// Against a list of keys in order of use; a mirror that hears the events agrees, and so does one
// made from a snapshot.
TEST(TierIndexRandomTest, EveryOperationIsThatOfANaiveModel) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    std::mt19937_64 random(seed);
    EventLog log({.num_pools = 1});
    std::vector<std::unique_ptr<TierIndex>> tiers;
    const int32_t slots = static_cast<int32_t>(1 + random() % 12);
    tiers.push_back(std::make_unique<TierIndex>(TierIndex::Options{.num_slots = slots},
                                                std::vector<TierIndex::Found>(), &log));
    TierIndex& tier = *tiers[0];
    const WorkerInfo info{.id = WorkerId("w"),
                          .pools = {{.group = "full", .format = "f16", .num_blocks = 1}}};
    WorkerMirror mirror(info);
    std::list<uint8_t> stored;  // used longest ago first
    std::map<int32_t, uint8_t> writing;
    std::set<int32_t> dropped;
    for (int step = 0; step < 400; ++step) {
      const uint8_t n = static_cast<uint8_t>(1 + random() % 20);
      const auto place = std::find(stored.begin(), stored.end(), n);
      const bool is_writing = std::any_of(writing.begin(), writing.end(), [&](const auto& w) {
        return w.second == n && !dropped.contains(w.first);
      });
      switch (random() % 4) {
        case 0: {
          const auto slot = tier.Begin(Block(n));
          const bool full = stored.empty() && static_cast<int32_t>(writing.size()) == slots;
          ASSERT_EQ(slot.has_value(), place == stored.end() && !is_writing && !full);
          if (place != stored.end()) stored.splice(stored.end(), stored, place);
          if (!slot.has_value()) break;
          if (static_cast<int32_t>(stored.size() + writing.size()) == slots) stored.pop_front();
          ASSERT_TRUE(writing.emplace(*slot, n).second);
          break;
        }
        case 1: {
          if (writing.empty()) break;
          const auto [slot, key] = *writing.begin();
          const bool ok = random() % 4 != 0;
          ok ? tier.Finish(slot) : tier.Abandon(slot);
          if (ok && !dropped.contains(slot)) stored.push_back(key);
          dropped.erase(slot);
          writing.erase(slot);
          break;
        }
        case 2:
          ASSERT_EQ(tier.Find(Key(n)).has_value(), place != stored.end());
          if (place != stored.end()) stored.splice(stored.end(), stored, place);
          break;
        default:
          ASSERT_EQ(tier.Evict(Key(n), EvictionCause::kClosed),
                    place != stored.end() || is_writing);
          if (place != stored.end()) stored.erase(place);
          for (const auto& [slot, key] : writing) {
            if (key == n) dropped.insert(slot);
          }
          if (random() % 2 == 0) (void)tier.TakeWipe();
      }
      ASSERT_TRUE(tier.CheckInvariants().ok()) << tier.CheckInvariants() << " seed " << seed;
      ASSERT_EQ(tier.stored(), static_cast<int32_t>(stored.size()));
      for (const Event& event : log.TakeBatch().events) {
        const absl::Status applied = mirror.Apply(event, ApplyMode::kInOrder);
        ASSERT_TRUE(applied.ok()) << applied;
      }
      ASSERT_EQ(mirror.digest(0), log.digests()[0]);
      ASSERT_EQ(mirror.counts(0).stored[static_cast<size_t>(Tier::kDisk)], stored.size());
    }
    ExpectSnapshotToGiveTheDigest(tiers, info, log);
  }
}

}  // namespace
}  // namespace kvist::cache_manager
