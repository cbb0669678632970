#include "common/base/bounded_queue.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

namespace kvist {
namespace {

using Steady = std::chrono::steady_clock;

TEST(BoundedQueue, KeepsOrderAndRefusesOneOverItsCapacity) {
  BoundedQueue<int> queue(2);
  int one = 1, two = 2, three = 3;
  EXPECT_TRUE(queue.TryPush(one));
  EXPECT_TRUE(queue.TryPush(two));
  EXPECT_FALSE(queue.TryPush(three));
  EXPECT_EQ(queue.size(), 2);
  EXPECT_EQ(queue.Pop(), 1);
  EXPECT_TRUE(queue.TryPush(three));
  EXPECT_EQ(queue.Drain(), (std::vector<int>{2, 3}));
  EXPECT_EQ(queue.size(), 0);
  EXPECT_EQ(queue.capacity(), 2);
}

TEST(BoundedQueue, ARefusedValueStaysWithTheCaller) {
  BoundedQueue<std::unique_ptr<int>> queue(1);
  auto first = std::make_unique<int>(1);
  auto second = std::make_unique<int>(2);
  EXPECT_TRUE(queue.TryPush(first));
  EXPECT_EQ(first, nullptr);
  EXPECT_FALSE(queue.TryPush(second));
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(*second, 2);
}

TEST(BoundedQueue, AfterCloseWhatWaitsCanStillBeTaken) {
  BoundedQueue<int> queue(4);
  int value = 5;
  ASSERT_TRUE(queue.TryPush(value));
  queue.Close();
  EXPECT_FALSE(queue.TryPush(value));
  EXPECT_EQ(queue.Pop(), 5);
  EXPECT_EQ(queue.Pop(), std::nullopt);
  EXPECT_EQ(queue.PopUntil(Steady::now() + std::chrono::hours(1)), std::nullopt);
}

TEST(BoundedQueue, PopUntilGivesUpAtItsDeadline) {
  BoundedQueue<int> queue(1);
  EXPECT_EQ(queue.PopUntil(Steady::now() - std::chrono::seconds(1)), std::nullopt);
  EXPECT_EQ(queue.PopUntil(Steady::now() + std::chrono::milliseconds(1)), std::nullopt);
  int value = 3;
  ASSERT_TRUE(queue.TryPush(value));
  EXPECT_EQ(queue.PopUntil(Steady::now() - std::chrono::seconds(1)), 3);
}

TEST(BoundedQueue, CloseWakesEveryWaiter) {
  BoundedQueue<int> queue(1);
  std::atomic<int> ended = 0;
  {
    std::vector<std::jthread> waiters;
    for (int i = 0; i < 4; ++i) {
      waiters.emplace_back([&] {
        EXPECT_EQ(queue.Pop(), std::nullopt);
        ++ended;
      });
    }
    queue.Close();
  }
  EXPECT_EQ(ended, 4);
}

// One thread, random operations, beside a plain deque.
TEST(BoundedQueue, EqualsADequeUnderRandomOperations) {
  BoundedQueue<int> queue(5);
  std::deque<int> model;
  uint64_t state = 1;
  for (int step = 0; step < 20'000; ++step) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    const uint64_t choice = (state >> 33) % 20;
    if (choice < 10) {
      int value = step;
      const bool expected = model.size() < 5;
      ASSERT_EQ(queue.TryPush(value), expected);
      if (expected) model.push_back(step);
    } else if (choice < 19) {
      const auto popped = queue.PopUntil(Steady::time_point::min());
      ASSERT_EQ(popped.has_value(), !model.empty());
      if (popped) {
        ASSERT_EQ(*popped, model.front());
        model.pop_front();
      }
    } else {
      ASSERT_EQ(queue.Drain(), std::vector<int>(model.begin(), model.end()));
      model.clear();
    }
    ASSERT_EQ(queue.size(), model.size());
  }
}

TEST(BoundedQueue, ManyThreadsLoseAndRepeatNothingAndKeepEachProducersOrder) {
  constexpr int kProducers = 4;
  constexpr int kConsumers = 3;
  constexpr int kPerProducer = 5000;
  BoundedQueue<int> queue(8);
  std::vector<std::vector<int>> taken(kConsumers);
  {
    std::vector<std::jthread> consumers;
    for (int c = 0; c < kConsumers; ++c) {
      consumers.emplace_back([&queue, &mine = taken[static_cast<size_t>(c)]] {
        while (const auto value = queue.Pop()) mine.push_back(*value);
      });
    }
    {
      std::vector<std::jthread> producers;
      for (int p = 0; p < kProducers; ++p) {
        producers.emplace_back([&queue, p] {
          for (int i = 0; i < kPerProducer; ++i) {
            int value = p * kPerProducer + i;
            while (!queue.TryPush(value)) std::this_thread::yield();
          }
        });
      }
    }
    queue.Close();
  }
  std::vector<int> all;
  for (const std::vector<int>& mine : taken) {
    std::vector<int> last(kProducers, -1);
    for (const int value : mine) {
      int& previous = last[static_cast<size_t>(value / kPerProducer)];
      ASSERT_LT(previous, value);
      previous = value;
    }
    all.insert(all.end(), mine.begin(), mine.end());
  }
  std::sort(all.begin(), all.end());
  ASSERT_EQ(all.size(), size_t{kProducers} * kPerProducer);
  for (size_t i = 0; i < all.size(); ++i) ASSERT_EQ(all[i], static_cast<int>(i));
}

}  // namespace
}  // namespace kvist
