// What a worker does when a session was forked.
#include <string>
#include <variant>
#include <vector>

#include "gtest/gtest.h"
#include "tests/cache_manager/stream/stream_cluster.h"

namespace kvist::cache_manager {
namespace {

TEST(ForkStreamTest, AForkedSessionHoldsTheSameBlocksAndSparesThem) {
  Cluster cluster;
  Cluster::Node node({.seed = 31});
  ASSERT_TRUE(cluster.Connect(node).ok());
  const std::vector<int32_t> tokens(48, 5);
  node.worker.Hold(SessionId("s"), TenantId("t"), tokens);
  cluster.Settle(node);
  const WorkerId id = node.worker.info().id;
  const ForkCommand fork{
      .request = RequestId("f"), .session = SessionId("s"), .new_session = SessionId("t")};
  ASSERT_TRUE(cluster.manager->Send(id, fork).ok());
  EXPECT_EQ(cluster.manager->Send(id, fork).code(), absl::StatusCode::kAborted);
  cluster.Exchange(node);
  auto outcomes = cluster.manager->TakeOutcomes();
  ASSERT_EQ(outcomes.size(), 1u);
  EXPECT_EQ(outcomes[0].outcome.result, CommandResult::kDone);
  // The mirror has it when the outcome comes.
  const auto& sessions = cluster.entry(node).mirror->sessions();
  ASSERT_TRUE(sessions.contains(SessionId("t")));
  EXPECT_EQ(sessions.at(SessionId("t")).pools[0].keys, sessions.at(SessionId("s")).pools[0].keys);
  ASSERT_TRUE(
      cluster.manager->Send(id, EvictCommand{.request = RequestId("e"), .session = SessionId("s")})
          .ok());
  ASSERT_TRUE(cluster.manager
                  ->Send(id, ForkCommand{.request = RequestId("g"),
                                         .session = SessionId("nobody"),
                                         .new_session = SessionId("u")})
                  .ok());
  cluster.Exchange(node);
  outcomes = cluster.manager->TakeOutcomes();
  ASSERT_EQ(outcomes.size(), 2u);
  EXPECT_EQ(outcomes[0].outcome.evicted_blocks, 0u);
  EXPECT_EQ(outcomes[1].outcome.result, CommandResult::kRefused);
  cluster.Settle(node);
}

TEST(ForkStreamTest, ARepeatedForkIsExecutedOnce) {
  SimulatedWorker worker({.seed = 32});
  worker.Hold(SessionId("s"), TenantId("t"), std::vector<int32_t>(64, 5));
  WorkerSide side(worker.info(), {worker.pools(), &worker.sessions(), &worker.log()});
  side.Connect(0);
  ForkCommand command{.incarnation = worker.info().incarnation,
                      .request = RequestId("r"),
                      .session = SessionId("s"),
                      .new_session = SessionId("t")};
  ASSERT_TRUE(side.Receive(command).ok());
  ASSERT_TRUE(side.Receive(command).ok());
  command.incarnation = Incarnation(99);
  ASSERT_TRUE(side.Receive(command).ok());
  command.new_session = SessionId();
  EXPECT_EQ(side.Receive(command).code(), absl::StatusCode::kInvalidArgument);
  std::vector<CommandResult> results;
  for (const WorkerMessage& message : side.Poll(1, {}, kNoLimit)) {
    if (const auto* o = std::get_if<CommandOutcome>(&message)) results.push_back(o->result);
  }
  EXPECT_EQ(results,
            (std::vector{CommandResult::kDone, CommandResult::kDone, CommandResult::kRefused}));
  EXPECT_FALSE(worker.sessions().Chain(SessionId("t"), 0).empty());
}

TEST(ForkStreamTest, AWorkerOfTheVersionBeforeIsToldOfNoForks) {
  Cluster cluster;
  Cluster::Node node({.seed = 33});
  node.connection = 1;
  Hello hello = node.side.Connect(cluster.now_ms);
  hello.protocol_version = kProtocolVersion - 1;
  ASSERT_TRUE(cluster.manager->Receive(node.connection, hello, cluster.now_ms).ok());
  cluster.Settle(node);
  const ForkCommand fork{
      .request = RequestId("f"), .session = SessionId("s"), .new_session = SessionId("t")};
  EXPECT_EQ(cluster.manager->Send(node.worker.info().id, fork).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(cluster.manager->TakeOutgoing().empty());
}

// A fork onto the name of a session that is to go first does not overtake the command that ends it.
TEST(ForkStreamTest, CommandsInFlightAreSentAgainInTheirOrder) {
  Cluster cluster;
  Cluster::Node node({.seed = 34});
  ASSERT_TRUE(cluster.Connect(node).ok());
  cluster.Settle(node);
  const WorkerId id = node.worker.info().id;
  std::vector<RequestId> sent;
  for (int i = 0; i < 40; ++i) {
    sent.push_back(RequestId("r" + std::to_string(i)));
    const SessionId from("s" + std::to_string(i)), to("s" + std::to_string(i + 1));
    const absl::Status status =
        i % 2 == 0
            ? cluster.manager->Send(id, EvictCommand{.request = sent.back(), .session = to})
            : cluster.manager->Send(
                  id, ForkCommand{.request = sent.back(), .session = from, .new_session = to});
    ASSERT_TRUE(status.ok()) << status;
  }
  cluster.manager->TakeOutgoing();  // lost
  cluster.Cut(node);
  ASSERT_TRUE(cluster.Connect(node).ok());
  std::vector<RequestId> again;
  for (const auto& [connection, message] : cluster.manager->TakeOutgoing()) {
    if (const auto* evict = std::get_if<EvictCommand>(&message)) again.push_back(evict->request);
    if (const auto* fork = std::get_if<ForkCommand>(&message)) again.push_back(fork->request);
  }
  EXPECT_EQ(again, sent);
}

}  // namespace
}  // namespace kvist::cache_manager
