// Both sides of the stream against each other, over a network that loses, repeats and delays.
#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cache_manager/limits.h"
#include "gtest/gtest.h"
#include "tests/cache_manager/stream/stream_cluster.h"
#include "tests/support/long_run.h"

namespace kvist::cache_manager {
namespace {

TEST(StreamTest, EverythingIsBlindUntilItsSnapshotIsIn) {
  Cluster cluster;
  Cluster::Node node({.seed = 1});
  for (int i = 0; i < 200; ++i) node.worker.RandomStep();
  ASSERT_TRUE(cluster.Connect(node).ok());
  EXPECT_EQ(cluster.confidence(node), Confidence::kBlind);
  cluster.Settle(node);
  EXPECT_EQ(cluster.entry(node).resyncs, 1u);
}

TEST(StreamTest, FollowsLiveEventsWithoutAnotherSnapshot) {
  Cluster cluster;
  Cluster::Node node({.seed = 2});
  ASSERT_TRUE(cluster.Connect(node).ok());
  for (int i = 0; i < 3'000; ++i) {
    node.worker.RandomStep();
    cluster.Exchange(node);
  }
  cluster.Settle(node);
  EXPECT_EQ(cluster.entry(node).resyncs, 1u);
  EXPECT_EQ(cluster.entry(node).drifts, 0u);
}

TEST(StreamTest, ADroppedEventIsFoundByTheDigestWithinOneRound) {
  Cluster cluster;
  Cluster::Node node({.seed = 3});
  ASSERT_TRUE(cluster.Connect(node).ok());
  for (int i = 0; i < 50; ++i) node.worker.RandomStep();
  cluster.Settle(node);
  node.worker.Hold(SessionId("drifting"), TenantId("t"), std::vector<int32_t>(16, 77));
  // The event is replaced by a harmless one, so that the sequence has no gap.
  cluster.now_ms += kHeartbeatIntervalMs;
  for (WorkerMessage& message : node.side.Poll(cluster.now_ms, {}, kNoLimit)) {
    if (auto* batch = std::get_if<EventBatch>(&message)) {
      for (Event& event : batch->events) {
        if (auto* stored = std::get_if<BlockStored>(&event)) stored->key.bytes[0] ^= 1;
      }
    }
    ASSERT_TRUE(cluster.manager->Receive(node.connection, message, cluster.now_ms).ok());
  }
  EXPECT_EQ(cluster.confidence(node), Confidence::kResync);
  EXPECT_EQ(cluster.entry(node).drifts, 1u);
  cluster.Settle(node);
}

// How many messages of the kind are under way to the worker.
template <typename Kind>
size_t TakeCount(Cluster& cluster, Cluster::Node& node) {
  size_t count = 0;
  for (const auto& [connection, message] : cluster.manager->TakeOutgoing()) {
    count += std::holds_alternative<Kind>(message);
    EXPECT_TRUE(node.side.Receive(message).ok());
  }
  return count;
}

TEST(StreamTest, ADoubtBringsTheDigestsAtOnceAndTheySettleIt) {
  Cluster cluster;
  Cluster::Node node({.seed = 17});
  ASSERT_TRUE(cluster.Connect(node).ok());
  for (int i = 0; i < 50; ++i) node.worker.RandomStep();
  cluster.Settle(node);
  const WorkerInfo& info = node.worker.info();
  cluster.now_ms += kHeartbeatIntervalMs;
  node.side.Poll(cluster.now_ms, {}, kNoLimit);  // the regular heartbeat of now: lost
  // The mirror drifts, and no heartbeat is due.
  node.worker.Hold(SessionId("drifting"), TenantId("t"), std::vector<int32_t>(16, 77));
  for (WorkerMessage& message : node.side.Poll(cluster.now_ms, {}, kNoLimit)) {
    auto* batch = std::get_if<EventBatch>(&message);
    ASSERT_TRUE(batch != nullptr);
    for (Event& event : batch->events) {
      if (auto* stored = std::get_if<BlockStored>(&event)) stored->key.bytes[0] ^= 1;
    }
    ASSERT_TRUE(cluster.manager->Receive(node.connection, message, cluster.now_ms).ok());
  }
  EXPECT_TRUE(node.side.Poll(cluster.now_ms, {}, kNoLimit).empty());
  EXPECT_EQ(cluster.entry(node).drifts, 0u);
  EXPECT_TRUE(cluster.manager->AskForDigest(info.id, info.incarnation, cluster.now_ms));
  EXPECT_EQ(TakeCount<DigestRequest>(cluster, node), 1u);
  for (WorkerMessage& message : node.side.Poll(cluster.now_ms, {}, kNoLimit)) {
    EXPECT_TRUE(std::holds_alternative<Heartbeat>(message));
    ASSERT_TRUE(cluster.manager->Receive(node.connection, message, cluster.now_ms).ok());
  }
  EXPECT_EQ(cluster.entry(node).drifts, 1u);
  EXPECT_EQ(cluster.confidence(node), Confidence::kResync);
  cluster.Settle(node);
}

TEST(StreamTest, OfADoubtedWorkerDigestsAreAskedForOnceAnIntervalAndOnlyIfItCanAnswer) {
  Cluster cluster;
  Cluster::Node node({.seed = 18});
  const WorkerInfo& info = node.worker.info();
  const auto ask = [&](const Incarnation& incarnation) {
    return cluster.manager->AskForDigest(info.id, incarnation, cluster.now_ms);
  };
  EXPECT_FALSE(ask(info.incarnation));  // never seen
  ASSERT_TRUE(cluster.Connect(node).ok());
  EXPECT_FALSE(ask(info.incarnation));  // its snapshot comes anyway
  cluster.Settle(node);
  EXPECT_FALSE(ask(Incarnation(99)));
  EXPECT_TRUE(ask(info.incarnation));
  EXPECT_FALSE(ask(info.incarnation));
  cluster.now_ms += kHeartbeatIntervalMs - 1;
  EXPECT_FALSE(ask(info.incarnation));
  cluster.now_ms += 1;
  EXPECT_TRUE(ask(info.incarnation));
  EXPECT_EQ(TakeCount<DigestRequest>(cluster, node), 2u);
  cluster.Cut(node);
  EXPECT_FALSE(ask(info.incarnation));
  ASSERT_TRUE(cluster.Connect(node).ok());
  EXPECT_TRUE(ask(info.incarnation));
}

TEST(StreamTest, AWorkerOfTheVersionBeforeIsNotAskedForDigests) {
  Cluster cluster;
  Cluster::Node node({.seed = 19});
  node.connection = 1;
  Hello hello = node.side.Connect(cluster.now_ms);
  hello.protocol_version = kOldestProtocolVersion;
  ASSERT_TRUE(cluster.manager->Receive(node.connection, hello, cluster.now_ms).ok());
  cluster.Settle(node);
  const WorkerInfo& info = node.worker.info();
  EXPECT_FALSE(cluster.manager->AskForDigest(info.id, info.incarnation, cluster.now_ms));
  EXPECT_TRUE(cluster.manager->TakeOutgoing().empty());
}

TEST(StreamTest, AnEventThatContradictsTheMirrorForcesAResync) {
  Cluster cluster;
  Cluster::Node node({.seed = 4});
  ASSERT_TRUE(cluster.Connect(node).ok());
  cluster.Settle(node);
  const uint64_t next = node.worker.log().last_seq() + 1;
  node.worker.log().Append(SessionReleased{SessionId("never seen")});
  ASSERT_EQ(node.worker.log().last_seq(), next);
  cluster.Exchange(node);
  EXPECT_EQ(cluster.confidence(node), Confidence::kResync);
  cluster.Settle(node);
}

TEST(StreamTest, OverflowOfTheLogIsAGapAndHeals) {
  Cluster cluster;
  Cluster::Node node({.seed = 5, .max_waiting = 32});
  ASSERT_TRUE(cluster.Connect(node).ok());
  cluster.Settle(node);
  while (node.worker.log().overflows() == 0) node.worker.RandomStep();
  cluster.Exchange(node);
  EXPECT_EQ(cluster.confidence(node), Confidence::kResync);
  cluster.Settle(node);
  EXPECT_EQ(cluster.entry(node).drifts, 0u);
}

TEST(StreamTest, ChangesWhileASnapshotIsReadAreNoDrift) {
  Cluster cluster;
  Cluster::Node node({.seed = 15, .num_blocks = 20'000});
  for (int i = 0; i < 100; ++i) node.worker.RandomStep();
  ASSERT_TRUE(cluster.Connect(node).ok());
  for (int i = 0; i < 40; ++i) {
    for (int steps = 0; steps < 5; ++steps) node.worker.RandomStep();
    cluster.Exchange(node);
  }
  cluster.Settle(node);
  EXPECT_EQ(cluster.entry(node).resyncs, 1u);
  EXPECT_EQ(cluster.entry(node).drifts, 0u);
}

TEST(StreamTest, AReconnectWithoutLossNeedsNoSnapshot) {
  Cluster cluster;
  Cluster::Node node({.seed = 6});
  ASSERT_TRUE(cluster.Connect(node).ok());
  cluster.Settle(node);
  cluster.Cut(node);
  EXPECT_EQ(cluster.confidence(node), Confidence::kLagging);
  for (int i = 0; i < 100; ++i) node.worker.RandomStep();
  ASSERT_TRUE(cluster.Connect(node).ok());
  cluster.Settle(node);
  EXPECT_EQ(cluster.entry(node).resyncs, 1u);
}

TEST(StreamTest, ARestartedManagerIsBlindAndThenExact) {
  Cluster cluster;
  Cluster::Node node({.seed = 7});
  ASSERT_TRUE(cluster.Connect(node).ok());
  for (int i = 0; i < 100; ++i) node.worker.RandomStep();
  cluster.Settle(node);
  node.side.Disconnect();
  cluster.RestartManager();
  ASSERT_TRUE(cluster.Connect(node).ok());
  EXPECT_EQ(cluster.confidence(node), Confidence::kBlind);
  cluster.Settle(node);
}

TEST(StreamTest, OldIncarnationsChangeNothing) {
  Cluster cluster;
  Cluster::Node old_life({.seed = 8, .incarnation = 1});
  Cluster::Node new_life({.seed = 9, .incarnation = 2});
  for (int i = 0; i < 100; ++i) old_life.worker.RandomStep();
  ASSERT_TRUE(cluster.Connect(old_life).ok());
  cluster.Settle(old_life);
  ASSERT_TRUE(cluster.Connect(new_life).ok());
  EXPECT_EQ(cluster.manager->TakeClosing(), std::vector<ConnectionId>{old_life.connection});
  old_life.worker.RandomStep();
  const Heartbeat late{.seq = 1, .digests = std::vector<PoolDigest>(2)};
  EXPECT_EQ(cluster.manager->Receive(old_life.connection, late, cluster.now_ms).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(cluster.Connect(old_life).code(), absl::StatusCode::kFailedPrecondition);
  cluster.Settle(new_life);
}

TEST(StreamTest, SilenceMakesSuspectAndThenLost) {
  Cluster cluster;
  Cluster::Node node({.seed = 10});
  ASSERT_TRUE(cluster.Connect(node).ok());
  cluster.Settle(node);
  const WorkerEntry& entry = cluster.entry(node);
  const int64_t heard = entry.last_heard_ms;
  EXPECT_EQ(entry.LivenessAt(heard + kSuspectAfterMs - 1), Liveness::kAlive);
  EXPECT_EQ(entry.LivenessAt(heard + kSuspectAfterMs), Liveness::kSuspect);
  EXPECT_EQ(entry.LivenessAt(heard + kLostAfterMs - 1), Liveness::kSuspect);
  EXPECT_EQ(entry.LivenessAt(heard + kLostAfterMs), Liveness::kLost);
  cluster.Cut(node, ManagerSide::Ending::kRefused);
  EXPECT_EQ(entry.LivenessAt(heard), Liveness::kLost);
}

TEST(StreamTest, AnEngineInALongStepKeepsItsWorkerAliveAndItsMirrorInDoubt) {
  Cluster cluster;
  Cluster::Node node({.seed = 16});
  ASSERT_TRUE(cluster.Connect(node).ok());
  cluster.Settle(node);
  // Changes of the step that nobody has heard of yet: an Alive compares nothing.
  for (int i = 0; i < 20; ++i) node.worker.RandomStep();
  SignOfLife life;
  life.Sent(cluster.now_ms, kHeartbeatIntervalMs);
  int sent = 0;
  for (int64_t waited_ms = 0; waited_ms < 3 * kLostAfterMs; waited_ms += 100) {
    cluster.now_ms += 100;
    const std::optional<Alive> alive = life.Poll(cluster.now_ms);
    if (alive.has_value()) {
      ++sent;
      ASSERT_TRUE(cluster.manager->Receive(node.connection, *alive, cluster.now_ms).ok());
    }
    cluster.manager->Tick(cluster.now_ms);
    ASSERT_EQ(cluster.entry(node).LivenessAt(cluster.now_ms), Liveness::kAlive);
  }
  EXPECT_EQ(sent, 3 * kLostAfterMs / kHeartbeatIntervalMs);
  EXPECT_EQ(cluster.confidence(node), Confidence::kLagging);
  cluster.Settle(node);
  EXPECT_EQ(cluster.entry(node).resyncs, 1u);
  EXPECT_EQ(cluster.entry(node).drifts, 0u);
}

TEST(StreamTest, AliveBeforeHelloIsRefused) {
  Cluster cluster;
  EXPECT_EQ(cluster.manager->Receive(999, Alive{}, 0).code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(StreamTest, ASnapshotThatStopsIsAskedForAgain) {
  Cluster cluster;
  Cluster::Node node({.seed = 11});
  ASSERT_TRUE(cluster.Connect(node).ok());
  cluster.manager->TakeOutgoing();  // Welcome and the request for a snapshot are lost
  cluster.now_ms += kSnapshotPatienceMs;
  cluster.manager->Tick(cluster.now_ms);
  cluster.Settle(node);
  EXPECT_EQ(cluster.entry(node).resyncs, 2u);
}

TEST(StreamTest, ACommandUnderAnOlderIntentIsRefused) {
  SimulatedWorker worker({.seed = 14});
  worker.Hold(SessionId("s"), TenantId("t"), std::vector<int32_t>(64, 5));
  WorkerSide side(worker.info(), {worker.pools(), &worker.sessions(), &worker.log()});
  side.Connect(0);
  ASSERT_TRUE(side.Receive(Welcome{.heartbeat_interval_ms = 500, .intent_version = 5}).ok());
  ASSERT_TRUE(side.Receive(EvictCommand{.incarnation = worker.info().incarnation,
                                        .intent_version = 4,
                                        .request = RequestId("r"),
                                        .blocks = 1})
                  .ok());
  EXPECT_EQ(worker.pools()[0]->Counts().cached, 4);
}

// Loss, repetition, cut connections with messages still under way, small logs, restarts of the
// manager.
TEST(StreamRandomTest, TheMirrorIsExactAfterAnyTroubleHeals) {
  for (uint64_t seed = 1; seed <= Seeds(60); ++seed) {
    SCOPED_TRACE(seed);
    Cluster cluster;
    // Every fourth worker is so large that its snapshot takes several steps, with changes between
    // them.
    const int32_t num_blocks = seed % 4 == 0 ? 4'000 : 30 + static_cast<int32_t>(seed % 40);
    Cluster::Node node({.seed = seed,
                        .num_blocks = num_blocks,
                        .max_waiting = seed % 3 == 0 ? 40 : kMaxWaitingEvents});
    Cluster::Node other({.seed = seed + 1000, .name = "w2", .incarnation = 3});
    std::mt19937_64& rng = node.worker.rng();
    std::deque<std::pair<ConnectionId, WorkerMessage>> network;
    ASSERT_TRUE(cluster.Connect(other).ok());
    cluster.Settle(other);
    for (int i = 0; i < 600; ++i) {
      cluster.now_ms += static_cast<int64_t>(rng() % 300);
      for (size_t steps = rng() % 5; steps > 0; --steps) node.worker.RandomStep();
      if (node.connection == 0) {
        ASSERT_TRUE(cluster.Connect(node).ok());
      }
      if (rng() % 4 != 0)
        cluster.DeliverToWorker(node);
      else if (rng() % 4 == 0)
        cluster.manager->TakeOutgoing();
      for (WorkerMessage& message : node.side.Poll(cluster.now_ms, {}, 1 + rng() % 4)) {
        if (rng() % 12 == 0) continue;
        if (rng() % 12 == 0) network.emplace_back(node.connection, message);
        network.emplace_back(node.connection, std::move(message));
      }
      for (size_t n = rng() % 6; n > 0 && !network.empty(); --n) {
        auto [connection, message] = std::move(network.front());
        network.pop_front();
        const absl::Status status =
            cluster.manager->Receive(connection, std::move(message), cluster.now_ms);
        ASSERT_TRUE(status.ok() || connection != node.connection) << status;
      }
      cluster.manager->Tick(cluster.now_ms);
      if (rng() % 40 == 0) cluster.Cut(node);
      if (rng() % 200 == 0) {
        node.side.Disconnect();
        node.connection = 0;
        cluster.RestartManager();
        ASSERT_TRUE(cluster.Connect(other).ok());
      }
    }
    if (node.connection != 0) cluster.Cut(node);
    ASSERT_TRUE(cluster.Connect(node).ok());
    cluster.Settle(node);
    // The troubles of one stream never reached the other.
    cluster.Settle(other);
    if (testing::Test::HasFailure()) return;
  }
}

}  // namespace
}  // namespace kvist::cache_manager
