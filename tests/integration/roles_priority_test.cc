// A request's priority, from a client to the worker's queue.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "common/base/mutex.h"
#include "tests/integration/roles_fixture.h"

namespace kvist::services {
namespace {

using ::testing::ElementsAre;

// Lets a worker's steps through one by one, or all, and notes in which order prompts begin, each
// by its first token. Thread-safe.
class Gate {
 public:
  void Pass(const worker::Batch& batch) ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(mutex_);
    for (const worker::SequenceSlice& slice : batch.slices) {
      if (slice.first_position == 0) begun_.push_back(slice.tokens.front());
    }
    while (!open_ && steps_ == 0) changed_.Wait(mutex_);
    if (!open_) --steps_;
  }
  void LetOneThrough() ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(mutex_);
    steps_ = 1;
    changed_.NotifyAll();
  }
  void Open() ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(mutex_);
    open_ = true;
    changed_.NotifyAll();
  }
  std::vector<int32_t> begun() const ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(mutex_);
    return begun_;
  }

 private:
  mutable Mutex mutex_;
  CondVar changed_;
  bool open_ ABSL_GUARDED_BY(mutex_) = false;
  int steps_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<int32_t> begun_ ABSL_GUARDED_BY(mutex_);
};

// `count` tokens that begin with `first`.
v1::GenerateRequest RequestFrom(int32_t first, size_t count, int64_t max_new) {
  std::vector<int32_t> ids = RandomIds(count, static_cast<uint32_t>(first));
  ids.front() = first;
  return IdsRequest(ids, max_new);
}

// Steps go on until so many requests wait, but one in twenty looks only: what runs has more tokens
// than there are steps until Until gives up.
bool StepUntilWaiting(const RoleCluster& cluster, Gate& gate, int64_t waiting) {
  int looks = 0;
  return RoleCluster::Until([&] {
    if (++looks % 20 == 0) gate.LetOneThrough();
    return cluster.workers[0]->engine().load().waiting_sequences == waiting;
  });
}

// Request 1 runs, before all others, request 2 waits, then request 3 comes. Two of them never fit
// into the pool at once. In which order they begin.
std::vector<int32_t> OrderWith(int32_t priority_of_2, int32_t priority_of_3) {
  Gate gate;
  RoleCluster cluster(
      {.num_blocks = 64, .on_run = [&gate](const worker::Batch& batch) { gate.Pass(batch); }});
  v1::GenerateRequest first = RequestFrom(1, 600, 400);
  first.set_priority(100);
  v1::GenerateRequest second = RequestFrom(2, 600, 3);
  second.set_priority(priority_of_2);
  v1::GenerateRequest third = RequestFrom(3, 600, 3);
  third.set_priority(priority_of_3);
  std::vector<std::unique_ptr<Background>> streams;
  const absl::Cleanup open = [&gate] { gate.Open(); };
  streams.push_back(std::make_unique<Background>(cluster.Connect(), first));
  EXPECT_TRUE(RoleCluster::Until([&] { return !gate.begun().empty(); }));
  streams.push_back(std::make_unique<Background>(cluster.Connect(), second));
  EXPECT_TRUE(StepUntilWaiting(cluster, gate, 1));
  streams.push_back(std::make_unique<Background>(cluster.Connect(), third));
  EXPECT_TRUE(StepUntilWaiting(cluster, gate, 2));
  gate.Open();
  for (auto& stream : streams) {
    stream->Join();
    EXPECT_TRUE(stream->status.ok()) << stream->status;
  }
  return gate.begun();
}

TEST(RolesPriorityTest, TheHigherOneOvertakesTheLowerThatWaitsForThePool) {
  EXPECT_THAT(OrderWith(0, 50), ElementsAre(1, 3, 2));
  EXPECT_THAT(OrderWith(-50, 0), ElementsAre(1, 3, 2));
}

TEST(RolesPriorityTest, OfEqualOnesAndBehindAHigherTheOlderIsFirst) {
  EXPECT_THAT(OrderWith(0, 0), ElementsAre(1, 2, 3));
  EXPECT_THAT(OrderWith(50, 0), ElementsAre(1, 2, 3));
}

}  // namespace
}  // namespace kvist::services
