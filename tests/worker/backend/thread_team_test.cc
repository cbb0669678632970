#include "worker/backend/thread_team.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvist::worker {
namespace {

std::unique_ptr<ThreadTeam> NewTeam(int threads) {
  auto team = ThreadTeam::Create(threads, [] {});
  EXPECT_TRUE(team.ok()) << team.status();
  return *std::move(team);
}

TEST(ThreadTeamTest, RefusesFewerThanOneAndMoreThanTheMost) {
  EXPECT_EQ(ThreadTeam::Create(0, [] {}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ThreadTeam::Create(kMaxTeamThreads + 1, [] {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(NewTeam(kMaxTeamThreads)->size(), kMaxTeamThreads);
}

TEST(ThreadTeamTest, EveryMemberRunsOnceOnAThreadOfItsOwnAndTheFirstOnTheCallers) {
  for (const int size : {1, 2, 3, 8}) {
    const auto team = NewTeam(size);
    std::vector<std::thread::id> ids(static_cast<size_t>(size));
    std::vector<int> runs(static_cast<size_t>(size), 0);
    team->Run([&](int member) {
      ids[static_cast<size_t>(member)] = std::this_thread::get_id();
      ++runs[static_cast<size_t>(member)];
    });
    EXPECT_THAT(runs, ::testing::Each(1));
    EXPECT_EQ(ids[0], std::this_thread::get_id());
    std::sort(ids.begin(), ids.end());
    EXPECT_EQ(std::unique(ids.begin(), ids.end()), ids.end());
  }
}

TEST(ThreadTeamTest, PreparesEachThreadItStartsBeforeItsFirstRun) {
  static std::atomic<int> prepared{0};
  prepared = 0;
  auto team = ThreadTeam::Create(4, [] { ++prepared; });
  ASSERT_TRUE(team.ok());
  (*team)->Run([](int) {});
  EXPECT_EQ(prepared, 3);
}

TEST(ThreadTeamTest, RunsStagesInOrderAndEveryItemOnce) {
  for (const int size : {1, 2, 3, 8}) {
    const auto team = NewTeam(size);
    const std::vector<int32_t> stages = {3, 0, 0, 1, 200, 7, 0};
    std::vector<std::vector<int>> calls;
    for (const int32_t items : stages) calls.emplace_back(static_cast<size_t>(items), 0);
    std::atomic<int64_t> open{0};
    std::atomic<int> wrong{0};
    team->RunStages(stages, [&](int member, int64_t stage, int64_t item) {
      if (member < 0 || member >= size || open.exchange(stage) > stage) ++wrong;
      ++calls[static_cast<size_t>(stage)][static_cast<size_t>(item)];
    });
    EXPECT_EQ(wrong, 0);
    for (const std::vector<int>& stage : calls) EXPECT_THAT(stage, ::testing::Each(1));
  }
}

TEST(ThreadTeamTest, RunsWithoutItemsReturnAndLeaveTheTeamUsable) {
  const auto team = NewTeam(2);
  int items = 0;
  const auto body = [&](int, int64_t, int64_t) { ++items; };
  team->RunStages({}, body);
  const int32_t none[] = {0, 0};
  team->RunStages(none, body);
  const int32_t one[] = {1};
  team->RunStages(one, body);
  EXPECT_EQ(items, 1);
}

// Plain ints on purpose: under ThreadSanitizer a stage that does not order memory is a report.
TEST(ThreadTeamTest, StagesOrderMemoryBetweenManyStagesAndRuns) {
  constexpr int kRuns = 50;
  const std::vector<int32_t> stages(40, 4);
  for (const int size : {1, 2, 3, 4}) {
    const auto team = NewTeam(size);
    // Stage s reads what all items of stage s - 1 wrote and writes the other half.
    int64_t values[2][4] = {};
    std::atomic<int> wrong{0};
    for (int run = 0; run < kRuns; ++run) {
      team->RunStages(stages, [&](int, int64_t stage, int64_t item) {
        const int64_t* const before = values[(stage + 1) % 2];
        if (before[0] != before[1] || before[0] != before[2] || before[0] != before[3]) ++wrong;
        values[stage % 2][item] = before[0] + 1;
      });
    }
    EXPECT_EQ(wrong, 0) << size << " threads";
    EXPECT_EQ(values[1][0], int64_t{kRuns} * 40) << size << " threads";
  }
}

// One member is kept inside an item, as if it had lost its core: the other does all the rest.
TEST(ThreadTeamTest, AMemberInsideAnItemLeavesTheOthersToTheRest) {
  const auto team = NewTeam(2);
  const int32_t stages[] = {2, 50};
  std::vector<int> takers(50, -1);
  std::atomic<bool> rest_done{false};
  team->RunStages(stages, [&](int member, int64_t stage, int64_t item) {
    if (stage == 0) return;
    takers[static_cast<size_t>(item)] = member;
    if (item == 0) rest_done.wait(false);
    if (item == 49) {
      rest_done = true;
      rest_done.notify_all();
    }
  });
  for (size_t item = 1; item < takers.size(); ++item) EXPECT_EQ(takers[item], 1 - takers[0]);
}

TEST(ThreadTeamTest, MembersThatFellAsleepWakeUp) {
  const auto team = NewTeam(3);
  // Far longer than spinning lasts: the others wait on their futex, between stages and runs.
  const auto work = [] {
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(20);
    while (std::chrono::steady_clock::now() < until) std::this_thread::yield();
  };
  std::atomic<int> done{0};
  for (int run = 0; run < 3; ++run) {
    work();
    team->Run([&](int) { ++done; });
    const int32_t stages[] = {1, 3};
    team->RunStages(stages, [&](int, int64_t stage, int64_t) {
      if (stage == 0) work();
      ++done;
    });
  }
  EXPECT_EQ(done, 3 * (3 + 4));
}

TEST(ThreadTeamTest, ParallelForCallsEveryIndexOnce) {
  for (const int size : {1, 2, 5}) {
    const auto team = NewTeam(size);
    for (const int64_t count : {0, 1, 4, 1000}) {
      std::vector<int> calls(static_cast<size_t>(count), 0);
      team->ParallelFor(count, [&](int64_t i) { ++calls[static_cast<size_t>(i)]; });
      EXPECT_THAT(calls, ::testing::Each(1));
    }
  }
}

}  // namespace
}  // namespace kvist::worker
