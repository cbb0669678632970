// One manager's side of the stream and its workers' sides, joined without a network.
#ifndef KVIST_TESTS_CACHE_MANAGER_STREAM_STREAM_CLUSTER_H_
#define KVIST_TESTS_CACHE_MANAGER_STREAM_STREAM_CLUSTER_H_

#include <optional>
#include <utility>

#include "cache_manager/cluster_index.h"
#include "cache_manager/stream/manager_side.h"
#include "cache_manager/stream/worker_side.h"
#include "gtest/gtest.h"
#include "tests/cache_manager/simulated_worker.h"

namespace kvist::cache_manager {

inline constexpr size_t kNoLimit = 1'000;

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
  void Cut(Node& node, ManagerSide::Ending ending = ManagerSide::Ending::kBroken) {
    manager->Closed(node.connection, ending);
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

}  // namespace kvist::cache_manager

#endif  // KVIST_TESTS_CACHE_MANAGER_STREAM_STREAM_CLUSTER_H_
