// Both sides of the stream against each other, over a network that loses, repeats and delays.
#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cache_manager/cluster_index.h"
#include "cache_manager/limits.h"
#include "cache_manager/stream/manager_side.h"
#include "cache_manager/stream/worker_side.h"
#include "gtest/gtest.h"
#include "tests/cache_manager/simulated_worker.h"
#include "tests/support/long_run.h"

namespace kvist::cache_manager {
namespace {

constexpr size_t kNoLimit = 1'000;

// One manager, its clock and its workers' connections.
class Cluster {
 public:
  struct Node {
    explicit Node(const SimulatedWorker::Options& options)
        : worker(options),
          side(worker.info(), {worker.pools(), &worker.sessions(), &worker.log()}) {}
    SimulatedWorker worker;
    WorkerSide side;
    ConnectionId connection = 0;  // 0: none
  };

  const WorkerEntry& entry(const Node& node) const { return *index.Find(node.worker.info().id); }
  Confidence confidence(const Node& node) const { return entry(node).ConfidenceAt(now_ms); }

  absl::Status Connect(Node& node) {
    node.connection = ++last_connection_;
    return manager->Receive(node.connection, node.side.Connect(now_ms), now_ms);
  }
  void Cut(Node& node, bool refused = false) {
    manager->Closed(node.connection, refused);
    node.side.Disconnect();
    node.connection = 0;
  }
  void RestartManager() {
    index = ClusterIndex();
    manager.emplace(&index);
  }
  void DeliverToWorker(Node& node) {
    for (auto& [connection, message] : manager->TakeOutgoing()) {
      if (connection != node.connection) continue;
      EXPECT_TRUE(node.side.Receive(message).ok());
    }
  }
  // One engine step's exchange without trouble.
  void Exchange(Node& node) {
    now_ms += 100;
    DeliverToWorker(node);
    for (WorkerMessage& message : node.side.Poll(now_ms, {}, kNoLimit)) {
      const absl::Status status = manager->Receive(node.connection, std::move(message), now_ms);
      EXPECT_TRUE(status.ok()) << status;
    }
    manager->Tick(now_ms);
  }
  // Until exact; fails after a minute of its time.
  void Settle(Node& node) {
    for (int i = 0; i < 600; ++i) {
      Exchange(node);
      if (confidence(node) == Confidence::kExact) break;
    }
    EXPECT_EQ(confidence(node), Confidence::kExact);
    ExpectSame(*entry(node).mirror, node.worker);
  }

  ClusterIndex index;
  std::optional<ManagerSide> manager{&index};
  int64_t now_ms = 1'000'000;

 private:
  ConnectionId last_connection_ = 0;
};

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
  cluster.Cut(node, /*refused=*/true);
  EXPECT_EQ(entry.LivenessAt(heard), Liveness::kLost);
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

TEST(StreamTest, EvictReportsDoneClippedAndRefused) {
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

TEST(StreamTest, ARepeatedCommandIsExecutedOnce) {
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

TEST(StreamTest, EvictingASessionLeavesTheTailsOfThoseThatShareItsPrefix) {
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
    EXPECT_TRUE(pool->Contains(keys[1]) || pool->options().id == 1);
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

class HostileStreamTest : public testing::Test {
 protected:
  HostileStreamTest() {
    EXPECT_TRUE(cluster_.Connect(good_).ok());
    cluster_.Settle(good_);
    EXPECT_TRUE(cluster_.Connect(bad_).ok());
    cluster_.Settle(bad_);
  }
  // The stream is closed with INVALID_ARGUMENT, nobody else is disturbed, and a reconnect heals.
  void ExpectRefused(WorkerMessage message) {
    const absl::Status status =
        cluster_.manager->Receive(bad_.connection, std::move(message), cluster_.now_ms);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_FALSE(cluster_.entry(bad_).connected);
    cluster_.Settle(good_);
    ASSERT_TRUE(cluster_.Connect(bad_).ok());
    cluster_.Settle(bad_);
  }
  void ExpectTaken(WorkerMessage message) {
    const absl::Status status =
        cluster_.manager->Receive(bad_.connection, std::move(message), cluster_.now_ms);
    EXPECT_TRUE(status.ok()) << status;
  }
  // Events were made up, so the worker is behind what the manager saw of it: a new connection heals
  // that.
  void Reconnect() {
    cluster_.Cut(bad_);
    ASSERT_TRUE(cluster_.Connect(bad_).ok());
    cluster_.Settle(bad_);
    cluster_.Settle(good_);
  }
  uint64_t NextSeq() { return bad_.worker.log().last_seq() + 1; }
  EventBatch Batch(Event event, size_t count = 1) {
    return {.first_seq = NextSeq(), .events = std::vector<Event>(count, event)};
  }

  Cluster cluster_;
  Cluster::Node good_{{.seed = 1, .name = "good"}};
  Cluster::Node bad_{{.seed = 2, .name = "bad"}};
};

TEST_F(HostileStreamTest, BatchesAreTakenAtTheLimitAndRefusedBeyond) {
  const SessionHolds holds{.session = SessionId("s"), .pool = 0};
  ExpectTaken(Batch(holds, kMaxEventsPerBatch));
  Reconnect();
  ExpectRefused(Batch(holds, kMaxEventsPerBatch + 1));
  SessionHolds long_chain = holds;
  long_chain.keys.resize(kMaxKeysPerEvent + 1);
  ExpectRefused(Batch(long_chain));
  long_chain.keys.resize(kMaxKeysPerEvent);
  ExpectRefused(Batch(long_chain, kMaxKeysPerBatch / kMaxKeysPerEvent + 1));
  long_chain.first_block = kMaxChainBlocks;
  ExpectRefused(Batch(long_chain));
}

TEST_F(HostileStreamTest, WrongPoolsEnumsAndIdsAreRefused) {
  BlockKey key;
  key.bytes[0] = 1;
  ExpectRefused(Batch(BlockStored{.pool = 2, .key = key}));
  ExpectRefused(Batch(BlockStored{.pool = 0, .key = key, .tier = static_cast<Tier>(3)}));
  ExpectRefused(Batch(BlockStored{.pool = 0}));
  ExpectRefused(Batch(SessionHolds{.session = SessionId(std::string(kMaxIdBytes + 1, 's'))}));
  ExpectRefused(Batch(SessionHolds{}));
  ExpectRefused(Batch(SessionReleased{}));
  ExpectRefused(EventBatch{.first_seq = 0});
  ExpectRefused(EventBatch{.first_seq = ~uint64_t{0}});
  ExpectRefused(Heartbeat{.seq = 0, .digests = std::vector<PoolDigest>(3)});
  ExpectRefused(Hello{.info = bad_.worker.info()});
  ExpectRefused(CommandOutcome{.request = RequestId(std::string(kMaxIdBytes + 1, 'r'))});
}

TEST_F(HostileStreamTest, AWorkerCannotStoreMoreThanItsPoolHas) {
  std::vector<Event> events;
  for (uint32_t i = 0; i <= bad_.worker.info().pools[0].num_blocks; ++i) {
    BlockKey key;
    key.bytes[0] = static_cast<uint8_t>(i);
    key.bytes[1] = 1;
    events.push_back(BlockStored{.pool = 0, .key = key});
  }
  ExpectTaken(EventBatch{.first_seq = NextSeq(), .events = events});
  EXPECT_EQ(cluster_.confidence(bad_), Confidence::kResync);
  EXPECT_LE(cluster_.entry(bad_).mirror->blocks(0).size(), events.size() - 1);
  Reconnect();
}

TEST_F(HostileStreamTest, HelloIsChecked) {
  const Hello good{.info = bad_.worker.info()};
  const auto refused = [&](auto change) {
    Hello hello = good;
    hello.info.id = WorkerId("third");
    change(hello);
    return cluster_.manager->Receive(777, hello, 0).code() == absl::StatusCode::kInvalidArgument;
  };
  EXPECT_TRUE(refused([](Hello& h) { h.protocol_version = kProtocolVersion + 1; }));
  EXPECT_TRUE(refused([](Hello& h) { h.info.id = WorkerId(); }));
  EXPECT_TRUE(refused([](Hello& h) { h.info.incarnation = Incarnation(); }));
  EXPECT_TRUE(refused([](Hello& h) { h.info.pools.clear(); }));
  EXPECT_TRUE(refused([](Hello& h) { h.info.pools.resize(kMaxPoolsPerWorker + 1); }));
  EXPECT_TRUE(refused([](Hello& h) { h.info.pools[0].num_blocks = kMaxBlocksPerPool + 1; }));
  EXPECT_TRUE(refused([](Hello& h) { h.info.pools[0].bytes_per_block = 0; }));
  EXPECT_TRUE(refused([](Hello& h) { h.info.block_tokens = 24; }));
  EXPECT_FALSE(refused([](Hello& h) { h.info.pools[0].num_blocks = kMaxBlocksPerPool; }));
  // The same life cannot change its pools.
  Hello changed = good;
  changed.info.pools[0].num_blocks += 1;
  EXPECT_EQ(cluster_.manager->Receive(778, changed, 0).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(HostileStreamTest, MessagesBeforeHelloAreRefused) {
  EXPECT_EQ(cluster_.manager->Receive(999, EventBatch{.first_seq = 1}, 0).code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace kvist::cache_manager
