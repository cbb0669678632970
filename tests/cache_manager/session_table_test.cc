#include "cache_manager/session_table.h"

#include <string>

#include "cache_manager/event_log.h"
#include "cache_manager/limits.h"
#include "gtest/gtest.h"

namespace kvist::cache_manager {
namespace {

std::vector<BlockKey> Keys(size_t count, uint8_t seed = 0) {
  std::vector<BlockKey> keys(count);
  for (size_t i = 0; i < count; ++i) {
    keys[i].bytes = {seed, 1, static_cast<uint8_t>(i), static_cast<uint8_t>(i >> 8)};
  }
  return keys;
}

class SessionTableTest : public testing::Test {
 protected:
  void SetChain(const std::string& session, uint32_t first, const std::vector<BlockKey>& keys) {
    table_.SetChain(SessionId(session), TenantId("t"), 0, first, keys);
    const absl::Status status = table_.CheckInvariants();
    EXPECT_TRUE(status.ok()) << status;
  }
  size_t ChainLength(const std::string& session) const {
    return table_.Chain(SessionId(session), 0).size();
  }
  EventLog log_{{.num_pools = 2}};
  SessionTable table_{3, &log_};
};

TEST_F(SessionTableTest, ChainsGrowAndAreCut) {
  SetChain("a", 0, Keys(3));
  SetChain("a", 3, Keys(2, 7));
  EXPECT_EQ(ChainLength("a"), 5u);
  SetChain("a", 1, Keys(1, 9));
  EXPECT_EQ(ChainLength("a"), 2u);
  SetChain("a", 5, Keys(1));  // beyond the chain
  EXPECT_EQ(ChainLength("a"), 2u);
  EXPECT_EQ(log_.last_seq(), 3u);
}

TEST_F(SessionTableTest, EmitsOnlyOnChange) {
  SetChain("a", 0, {});
  EXPECT_EQ(log_.last_seq(), 1u);  // the session is new
  SetChain("a", 0, {});
  table_.SetPhase(SessionId("a"), SessionPhase::kActive);
  table_.SetUnnamed(SessionId("a"), 1, 0, 0);
  table_.SetUnnamed(SessionId("unknown"), 1, 1, 1);
  table_.SetPhase(SessionId("unknown"), SessionPhase::kIdle);
  table_.Release(SessionId("unknown"));
  EXPECT_EQ(log_.last_seq(), 1u);
}

TEST_F(SessionTableTest, BeyondTheLimitTheSessionLongestWithoutAChangeIsReleased) {
  for (const char* id : {"a", "b", "c"}) {
    SetChain(id, 0, Keys(1));
    table_.SetPhase(SessionId(id), SessionPhase::kWaiting);
  }
  SetChain("a", 1, Keys(1, 5));
  SetChain("d", 0, Keys(1));
  EXPECT_EQ(table_.size(), 3u);
  EXPECT_EQ(ChainLength("b"), 0u);
  EXPECT_EQ(ChainLength("a"), 2u);
}

TEST_F(SessionTableTest, ActiveSessionsAreNeverReleasedForOthers) {
  for (const char* id : {"a", "b", "c", "d"}) SetChain(id, 0, Keys(1));
  EXPECT_EQ(table_.size(), 3u);
  EXPECT_EQ(ChainLength("d"), 0u);
  SetChain("d", 1, Keys(1));  // its engine goes on as if it had room
  EXPECT_EQ(ChainLength("d"), 0u);
}

TEST_F(SessionTableTest, SharedBlocksAreTheLongestPrefixThatAnotherSessionHolds) {
  SetChain("a", 0, Keys(5));
  EXPECT_EQ(table_.SharedBlocks(SessionId("a"), 0), 0u);
  SetChain("b", 0, Keys(2));
  SetChain("b", 2, Keys(4, 9));
  EXPECT_EQ(table_.SharedBlocks(SessionId("a"), 0), 2u);
  EXPECT_EQ(table_.SharedBlocks(SessionId("b"), 0), 2u);
  SetChain("c", 0, Keys(7));
  EXPECT_EQ(table_.SharedBlocks(SessionId("a"), 0), 5u);
  EXPECT_EQ(table_.SharedBlocks(SessionId("a"), 1), 0u);  // another pool
  EXPECT_EQ(table_.SharedBlocks(SessionId("c"), 0), 5u);
  table_.Release(SessionId("a"));
  EXPECT_EQ(table_.SharedBlocks(SessionId("c"), 0), 2u);
  EXPECT_EQ(table_.SharedBlocks(SessionId("a"), 0), 0u);  // unknown
}

TEST_F(SessionTableTest, LongChainsTakeSeveralEvents) {
  SetChain("a", 0, Keys(kMaxKeysPerEvent));
  EXPECT_EQ(log_.last_seq(), 1u);
  SetChain("b", 0, Keys(kMaxKeysPerEvent + 1));
  EXPECT_EQ(log_.last_seq(), 3u);
}

TEST_F(SessionTableTest, KeysOfAllChainsHaveALimit) {
  EventLog log({.num_pools = 1});
  SessionTable table(kMaxSessionsPerWorker, &log);
  const std::vector<BlockKey> longest = Keys(kMaxChainBlocks);
  const size_t fit = kMaxChainKeysPerWorker / kMaxChainBlocks;
  for (size_t i = 0; i <= fit; ++i) {
    const SessionId id(std::to_string(i));
    table.SetChain(id, TenantId("t"), 0, 0, longest);
    table.SetPhase(id, SessionPhase::kIdle);
  }
  EXPECT_EQ(table.size(), fit);
  EXPECT_TRUE(table.Chain(SessionId("0"), 0).empty());
  EXPECT_TRUE(table.CheckInvariants().ok());
}

TEST_F(SessionTableTest, AForkHoldsTheSameChainsAndIsIdle) {
  SetChain("a", 0, Keys(5));
  EXPECT_TRUE(table_.Fork(SessionId("a"), SessionId("b")));
  EXPECT_EQ(ChainLength("b"), 5u);
  EXPECT_EQ(table_.SharedBlocks(SessionId("b"), 0), 5u);
  for (size_t slot = 0; slot < table_.slots(); ++slot) {
    const auto facts = table_.FactsAt(slot);
    if (facts->session != SessionId("b")) continue;
    EXPECT_EQ(facts->phase, SessionPhase::kIdle);
    EXPECT_EQ(facts->tenant, table_.FactsAt(0)->tenant);
  }
  SetChain("b", 2, Keys(3, 9));
  EXPECT_EQ(ChainLength("a"), 5u);
  EXPECT_EQ(table_.SharedBlocks(SessionId("a"), 0), 2u);
}

TEST_F(SessionTableTest, AForkOfNobodyOrOntoSomebodyChangesNothing) {
  SetChain("a", 0, Keys(5));
  SetChain("b", 0, Keys(2));
  const uint64_t seq = log_.last_seq();
  EXPECT_FALSE(table_.Fork(SessionId("a"), SessionId("b")));
  EXPECT_FALSE(table_.Fork(SessionId("a"), SessionId("a")));
  EXPECT_FALSE(table_.Fork(SessionId("nobody"), SessionId("c")));
  SetChain("c", 0, Keys(1));
  EXPECT_FALSE(table_.Fork(SessionId("a"), SessionId("d")));  // all places are of active ones
  EXPECT_EQ(log_.last_seq(), seq + 1);
}

TEST_F(SessionTableTest, AForkMayTakeThePlaceOfTheOneItIsOf) {
  for (const char* id : {"a", "b", "c"}) SetChain(id, 0, Keys(3));
  table_.SetPhase(SessionId("a"), SessionPhase::kIdle);
  EXPECT_TRUE(table_.Fork(SessionId("a"), SessionId("d")));
  EXPECT_EQ(ChainLength("a"), 0u);
  EXPECT_EQ(ChainLength("d"), 3u);
}

// All chains of a fork, or none: those of one pool alone would be a holding that nobody has.
TEST_F(SessionTableTest, AForkWithRoomForOnePoolsChainOnlyChangesNothing) {
  EventLog log({.num_pools = 2});
  SessionTable table(kMaxSessionsPerWorker, &log);
  const std::vector<BlockKey> longest = Keys(kMaxChainBlocks);
  const size_t fit = kMaxChainKeysPerWorker / kMaxChainBlocks;
  for (const PoolIndex pool : {0, 1})
    table.SetChain(SessionId("a"), TenantId("t"), pool, 0, longest);
  for (size_t i = 2; i + 2 < fit; ++i) {
    table.SetChain(SessionId(std::to_string(i)), TenantId("t"), 0, 0, longest);
  }
  table.SetChain(SessionId("idle"), TenantId("t"), 0, 0, Keys(1));
  table.SetPhase(SessionId("idle"), SessionPhase::kIdle);
  table.SetChain(SessionId("last"), TenantId("t"), 0, 0, Keys(1));
  const uint64_t seq = log.last_seq();
  EXPECT_FALSE(table.Fork(SessionId("a"), SessionId("b")));
  EXPECT_EQ(log.last_seq(), seq);
  EXPECT_TRUE(table.Chain(SessionId("b"), 0).empty());
  EXPECT_EQ(table.Chain(SessionId("idle"), 0).size(), 1u);
  EXPECT_TRUE(table.CheckInvariants().ok());
  // With what an idle session has it is enough.
  table.SetPhase(SessionId("last"), SessionPhase::kIdle);
  EXPECT_TRUE(table.Fork(SessionId("a"), SessionId("b")));
  EXPECT_EQ(table.Chain(SessionId("b"), 1).size(), kMaxChainBlocks);
  EXPECT_TRUE(table.CheckInvariants().ok());
}

}  // namespace
}  // namespace kvist::cache_manager
