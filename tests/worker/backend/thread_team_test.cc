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

// Plain ints on purpose: under ThreadSanitizer a barrier that does not order memory is a report.
TEST(ThreadTeamTest, BarriersOrderMemoryBetweenManyRoundsAndRuns) {
  constexpr int kRuns = 50;
  constexpr int kRounds = 40;
  for (const int size : {2, 3, 4}) {
    const auto team = NewTeam(size);
    std::vector<int64_t> values(static_cast<size_t>(size), 0);
    int64_t wrong = 0;
    for (int run = 0; run < kRuns; ++run) {
      team->Run([&](int member) {
        for (int round = 0; round < kRounds; ++round) {
          values[static_cast<size_t>(member)] += member + 1;
          team->Barrier();
          const int64_t sum = std::accumulate(values.begin(), values.end(), int64_t{0});
          const int64_t rounds_done = int64_t{run} * kRounds + round + 1;
          if (member == 0 && sum != rounds_done * size * (size + 1) / 2) ++wrong;
          team->Barrier();
        }
      });
    }
    EXPECT_EQ(wrong, 0) << size << " threads";
  }
}

TEST(ThreadTeamTest, MembersThatFellAsleepWakeUp) {
  const auto team = NewTeam(3);
  std::atomic<int> done{0};
  for (int run = 0; run < 3; ++run) {
    // Far longer than spinning lasts: the others wait on their futex, at the barrier and between
    // runs.
    const auto work = [] {
      const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(20);
      while (std::chrono::steady_clock::now() < until) std::this_thread::yield();
    };
    work();
    team->Run([&](int member) {
      if (member == run % 3) work();
      team->Barrier();
      ++done;
    });
  }
  EXPECT_EQ(done, 9);
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
