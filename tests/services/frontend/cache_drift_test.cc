#include "services/frontend/cache_drift.h"

#include <gtest/gtest.h>

namespace kvist::services {
namespace {

constexpr auto kLeast = CacheDrift::kLeastRequests;
const WorkerLives kDoubted = {{"w", 1}};

TEST(CacheDriftTest, TooFewRequestsTellNothing) {
  CacheDrift drift;
  for (size_t i = 1; i < kLeast; ++i) EXPECT_FALSE(drift.Record("w", 1, {1000, 0}));
  EXPECT_TRUE(drift.TakeDoubted().empty());
  EXPECT_TRUE(drift.Record("w", 1, {1000, 0}));
  EXPECT_EQ(drift.TakeDoubted(), kDoubted);
  EXPECT_TRUE(drift.TakeDoubted().empty());
}

TEST(CacheDriftTest, NineTenthsOfTheTokensAreEnoughAndOneLessIsNot) {
  CacheDrift enough, short_of_it;
  for (size_t i = 0; i < kLeast; ++i) {
    EXPECT_FALSE(enough.Record("w", 1, {100, 90}));
    EXPECT_EQ(short_of_it.Record("w", 1, {100, i == 0 ? 89 : 90}), i + 1 == kLeast);
  }
  EXPECT_TRUE(enough.TakeDoubted().empty());
  EXPECT_EQ(short_of_it.TakeDoubted(), kDoubted);
}

TEST(CacheDriftTest, FindingMoreThanPromisedMakesGoodForNothing) {
  CacheDrift drift;
  for (size_t i = 0; i < kLeast; ++i) drift.Record("w", 1, {100, i % 2 == 0 ? 0 : 1000});
  EXPECT_EQ(drift.TakeDoubted(), kDoubted);
}

TEST(CacheDriftTest, OnlyTheLatestRequestsCount) {
  CacheDrift drift;
  for (size_t i = 0; i < 1000; ++i) EXPECT_FALSE(drift.Record("w", 1, {100, 100}));
  size_t bad = 1;
  while (!drift.Record("w", 1, {100, 0})) ++bad;
  EXPECT_EQ(bad, CacheDrift::kWindowRequests / 10 + 1);
  // The window begins anew.
  for (size_t i = 1; i < kLeast; ++i) EXPECT_FALSE(drift.Record("w", 1, {100, 0}));
}

TEST(CacheDriftTest, WorkersAndTheirLivesAreJudgedApart) {
  CacheDrift drift;
  for (size_t i = 1; i < kLeast; ++i) {
    EXPECT_FALSE(drift.Record("w", 1, {100, 0}));
    EXPECT_FALSE(drift.Record("other", 1, {100, 100}));
  }
  EXPECT_FALSE(drift.Record("w", 2, {100, 0}));  // started again
  EXPECT_TRUE(drift.TakeDoubted().empty());
}

TEST(CacheDriftTest, WhatCouldNotBeToldIsTakenAgain) {
  CacheDrift drift;
  for (size_t i = 0; i < kLeast; ++i) drift.Record("w", 1, {100, 0});
  drift.PutBack(drift.TakeDoubted());
  EXPECT_EQ(drift.TakeDoubted(), kDoubted);
}

}  // namespace
}  // namespace kvist::services
