// What a worker does when it is told to evict.
#include <string>
#include <variant>
#include <vector>

#include "cache_manager/limits.h"
#include "cache_manager/stream/validate.h"
#include "gtest/gtest.h"
#include "tests/cache_manager/stream/stream_cluster.h"

namespace kvist::cache_manager {
namespace {

TEST(EvictStreamTest, EvictReportsDoneClippedAndRefused) {
  Cluster cluster;
  Cluster::Node node({.seed = 12});
  ASSERT_TRUE(cluster.Connect(node).ok());
  std::vector<int32_t> tokens(48, 5);
  node.worker.Hold(SessionId("s"), TenantId("t"), tokens);
  cluster.Settle(node);
  BlockRef held = node.worker.pools()[0]->Find(KeysOf(node.worker.Root(), tokens, 16)[0]);
  const WorkerId id = node.worker.info().id;
  const EvictCommand session{.request = RequestId("r1"), .session = SessionId("s")};
  ASSERT_TRUE(cluster.manager->Send(id, session).ok());
  EXPECT_EQ(cluster.manager->Send(id, {.request = RequestId("r1"), .blocks = 1}).code(),
            absl::StatusCode::kAborted);
  cluster.Exchange(node);
  auto outcomes = cluster.manager->TakeOutcomes();
  ASSERT_EQ(outcomes.size(), 1u);
  EXPECT_EQ(outcomes[0].outcome.result, CommandResult::kClipped);
  EXPECT_EQ(outcomes[0].outcome.evicted_blocks, 5u);
  EXPECT_EQ(outcomes[0].outcome.left_blocks, 1u);
  held.Reset();
  ASSERT_TRUE(cluster.manager->Send(id, {.request = RequestId("r2"), .blocks = 1}).ok());
  ASSERT_TRUE(cluster.manager->Send(id, {.request = RequestId("r3"), .pool = 9, .blocks = 1}).ok());
  cluster.Exchange(node);
  outcomes = cluster.manager->TakeOutcomes();
  ASSERT_EQ(outcomes.size(), 2u);
  EXPECT_EQ(outcomes[0].outcome.result, CommandResult::kDone);
  EXPECT_EQ(outcomes[0].outcome.evicted_blocks, 1u);
  EXPECT_EQ(outcomes[1].outcome.result, CommandResult::kRefused);
  cluster.Settle(node);
}

TEST(EvictStreamTest, ARepeatedCommandIsExecutedOnce) {
  SimulatedWorker worker({.seed = 13});
  worker.Hold(SessionId("s"), TenantId("t"), std::vector<int32_t>(64, 5));
  WorkerSide side(worker.info(), {worker.pools(), &worker.sessions(), &worker.log()});
  side.Connect(0);
  const EvictCommand command{
      .incarnation = worker.info().incarnation, .request = RequestId("r"), .blocks = 1};
  EvictCommand old_life = command;
  old_life.incarnation = Incarnation(99);
  ASSERT_TRUE(side.Receive(command).ok());
  ASSERT_TRUE(side.Receive(command).ok());
  ASSERT_TRUE(side.Receive(old_life).ok());
  EXPECT_EQ(worker.pools()[0]->Counts().cached, 3);
  std::vector<CommandResult> results;
  for (const WorkerMessage& message : side.Poll(1, {}, kNoLimit)) {
    if (const auto* o = std::get_if<CommandOutcome>(&message)) results.push_back(o->result);
  }
  EXPECT_EQ(results,
            (std::vector{CommandResult::kDone, CommandResult::kDone, CommandResult::kRefused}));
}

TEST(EvictStreamTest, EvictingASessionLeavesTheTailsOfThoseThatShareItsPrefix) {
  SimulatedWorker worker({.seed = 15});
  std::vector<int32_t> longer(48, 5);
  const std::vector<int32_t> prefix(32, 5);
  const std::vector<int32_t> own_tail(4, 6), other_tail(4, 7);
  worker.Hold(SessionId("a"), TenantId("t"), longer);
  worker.Hold(SessionId("b"), TenantId("t"), prefix);
  const std::vector<BlockKey> keys = KeysOf(worker.Root(), longer, SimulatedWorker::kBlockTokens);
  const auto keep = [&](BlockPool& pool, const BlockKey& parent, const std::vector<int32_t>& tail) {
    pool.KeepPartial(pool.Allocate().value(), parent, tail);
  };
  for (const auto& pool : worker.pools()) {
    keep(*pool, keys[2], own_tail);
    keep(*pool, keys[1], other_tail);
  }
  WorkerSide side(worker.info(), {worker.pools(), &worker.sessions(), &worker.log()});
  side.Connect(0);
  EvictCommand command{.incarnation = worker.info().incarnation,
                       .request = RequestId("r1"),
                       .session = SessionId("a"),
                       .release = true};
  ASSERT_TRUE(side.Receive(command).ok());
  for (const auto& pool : worker.pools()) {
    EXPECT_EQ(pool->FindPartial(keys[2], own_tail).matched_tokens, 0);
    EXPECT_FALSE(pool->Contains(keys[2]));
    EXPECT_EQ(pool->FindPartial(keys[1], other_tail).matched_tokens, 4);
    EXPECT_TRUE(pool->Contains(keys[1]));
  }
  // Alone, the other session takes its tail along.
  command.request = RequestId("r2");
  command.session = SessionId("b");
  ASSERT_TRUE(side.Receive(command).ok());
  for (const auto& pool : worker.pools()) {
    EXPECT_EQ(pool->FindPartial(keys[1], other_tail).matched_tokens, 0);
    EXPECT_EQ(pool->Counts().cached, 0);
  }
}

// The other session's chain ends inside this one's: once the tail behind it is gone, its last block
// has no child in the pool and is referenced by nobody.
TEST(EvictStreamTest, EvictingASessionLeavesWhatAnotherOneHolds) {
  for (const bool release : {false, true}) {
    SimulatedWorker worker({.seed = 16});
    const std::vector<int32_t> longer(64, 5);
    const std::vector<int32_t> prefix(32, 5);
    worker.Hold(SessionId("a"), TenantId("t"), longer);
    worker.Hold(SessionId("b"), TenantId("t"), prefix);
    const std::vector<BlockKey> keys = KeysOf(worker.Root(), longer, SimulatedWorker::kBlockTokens);
    WorkerSide side(worker.info(), {worker.pools(), &worker.sessions(), &worker.log()});
    side.Connect(0);
    ASSERT_TRUE(side.Receive(EvictCommand{.incarnation = worker.info().incarnation,
                                          .request = RequestId("r"),
                                          .session = SessionId("a"),
                                          .release = release})
                    .ok());
    for (const auto& pool : worker.pools()) {
      for (size_t k = 0; k < keys.size(); ++k) EXPECT_EQ(pool->Contains(keys[k]), k < 2) << k;
    }
    std::vector<CommandOutcome> outcomes;
    for (const WorkerMessage& message : side.Poll(1, {}, kNoLimit)) {
      if (const auto* o = std::get_if<CommandOutcome>(&message)) outcomes.push_back(*o);
    }
    ASSERT_EQ(outcomes.size(), 1u);
    EXPECT_EQ(outcomes[0].result, CommandResult::kClipped);
    EXPECT_EQ(outcomes[0].evicted_blocks, 4u);  // two in each pool
    EXPECT_EQ(outcomes[0].left_blocks, 4u);
  }
}

TEST(EvictStreamTest, TokensAreKeptOfASessionThatStays) {
  EvictCommand command{
      .request = RequestId("r"), .session = SessionId("s"), .keep_tokens = uint64_t{5}};
  EXPECT_TRUE(Validate(command).ok());
  command.release = true;
  EXPECT_EQ(Validate(command).code(), absl::StatusCode::kInvalidArgument);
  command.release = false;
  command.session = SessionId();
  command.blocks = 1;
  EXPECT_EQ(Validate(command).code(), absl::StatusCode::kInvalidArgument);
}

TEST(EvictStreamTest, ACutSessionHoldsItsFirstTokensBlocksOnly) {
  SimulatedWorker worker({.seed = 17});
  const SessionId cut("a"), running("b");
  worker.Hold(cut, TenantId("t"), std::vector<int32_t>(64, 5));
  worker.Hold(running, TenantId("t"), std::vector<int32_t>(64, 6));
  worker.sessions().SetPhase(cut, SessionPhase::kIdle);
  worker.sessions().SetPhase(running, SessionPhase::kActive);
  WorkerSide side(worker.info(), {worker.pools(), &worker.sessions(), &worker.log()});
  side.Connect(0);
  const auto cut_to = [&](const SessionId& session, const char* request, uint64_t tokens) {
    ASSERT_TRUE(side.Receive(EvictCommand{.incarnation = worker.info().incarnation,
                                          .request = RequestId(request),
                                          .session = session,
                                          .keep_tokens = tokens})
                    .ok());
  };
  const auto chain_blocks = [&](const SessionId& session, size_t pool) {
    return worker.sessions().Chain(session, static_cast<PoolIndex>(pool)).size();
  };
  cut_to(cut, "r1", 40);  // the third block is not whole
  cut_to(running, "r2", 0);
  cut_to(SessionId("unknown"), "r3", 0);
  for (size_t pool = 0; pool < worker.pools().size(); ++pool) {
    EXPECT_EQ(chain_blocks(cut, pool), 2u);
    EXPECT_EQ(chain_blocks(running, pool), 4u);  // it says itself what it holds
    EXPECT_EQ(worker.pools()[pool]->Counts().cached, 2);
  }
  cut_to(cut, "r4", 0);
  for (size_t pool = 0; pool < worker.pools().size(); ++pool) {
    EXPECT_EQ(chain_blocks(cut, pool), 0u);
    EXPECT_EQ(worker.pools()[pool]->Counts().cached, 0);
  }
  EXPECT_TRUE(worker.sessions().CheckInvariants().ok());
}

}  // namespace
}  // namespace kvist::cache_manager
