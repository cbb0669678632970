#include "worker/backend/work_shares.h"

#include <cstdint>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvist::worker {
namespace {

std::vector<int64_t> CountsOf(const WorkShares& shares) {
  std::vector<int64_t> counts;
  int64_t next = 0;
  for (int64_t item = 0; item < shares.items(); ++item) {
    const WorkShares::Range range = shares.Of(item);
    EXPECT_EQ(range.first, next);
    EXPECT_GT(range.count, 0);
    next += range.count;
    counts.push_back(range.count);
  }
  EXPECT_EQ(next, shares.units);
  return counts;
}

TEST(WorkSharesTest, EqualSharesAreOfOneSizeButTheLast) {
  EXPECT_THAT(CountsOf(EqualShares(10, 4)), ::testing::ElementsAre(4, 4, 2));
  EXPECT_THAT(CountsOf(EqualShares(8, 4)), ::testing::ElementsAre(4, 4));
  EXPECT_THAT(CountsOf(EqualShares(0, 4)), ::testing::IsEmpty());
}

TEST(WorkSharesTest, StreamSharesGiveEachMemberALongRunAndThenSmallOnes) {
  EXPECT_THAT(CountsOf(StreamShares(64, 2, 2)), ::testing::ElementsAre(30, 30, 2, 2));
  EXPECT_THAT(CountsOf(StreamShares(96, 3, 4)), ::testing::ElementsAre(30, 30, 30, 4, 2));
}

TEST(WorkSharesTest, StreamSharesOfLittleWorkAreEqual) {
  EXPECT_THAT(CountsOf(StreamShares(8, 2, 4)), ::testing::ElementsAre(4, 4));
  EXPECT_THAT(CountsOf(StreamShares(1, 8, 1)), ::testing::ElementsAre(1));
}

TEST(WorkSharesTest, EveryUnitIsSharedOutOnce) {
  for (int64_t units = 0; units < 200; ++units) {
    for (int64_t members = 1; members < 9; ++members) {
      for (const int64_t small : {1, 2, 5, 64}) CountsOf(StreamShares(units, members, small));
    }
  }
}

}  // namespace
}  // namespace kvist::worker
