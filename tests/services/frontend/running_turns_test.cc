#include "services/frontend/running_turns.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <thread>
#include <vector>

namespace kvist::services {
namespace {

TEST(RunningTurnsTest, ATurnIsEnteredOnceUntilItsEntryIsGone) {
  RunningTurns turns;
  auto first = turns.TryEnter(SessionId("s"), TurnId("t"));
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(turns.TryEnter(SessionId("s"), TurnId("t")), nullptr);
  EXPECT_EQ(turns.TryEnter(SessionId("s"), TurnId("t")),
            nullptr);  // the refused one took nothing away
  EXPECT_NE(turns.TryEnter(SessionId("s"), TurnId("other")), nullptr);
  EXPECT_EQ(turns.All().size(), 1u);
  turns.CancelSession(SessionId("s"));
  EXPECT_TRUE(first->cancelled());
  first.reset();
  EXPECT_TRUE(turns.All().empty());
  EXPECT_NE(turns.TryEnter(SessionId("s"), TurnId("t")), nullptr);
}

TEST(RunningTurnsTest, OfManyThreadsOneEnters) {
  RunningTurns turns;
  std::vector<std::unique_ptr<RunningTurns::Entry>> entries(8);
  std::vector<std::thread> threads;
  for (auto& entry : entries) {
    threads.emplace_back([&turns, &entry] { entry = turns.TryEnter(SessionId("s"), TurnId("t")); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(std::count(entries.begin(), entries.end(), nullptr), 7);
}

}  // namespace
}  // namespace kvist::services
