#include "worker/engine/draft_policy.h"

#include "gtest/gtest.h"

namespace kvist::worker {
namespace {

constexpr uint64_t kSome = 7;  // an id of sequences

// Plain steps of 10 ms, and what drafts cost beside them.
DraftCosts Measured(std::initializer_list<double> ratios) {
  DraftCosts costs;
  costs.Note({.sequences = 1, .drafts = 0}, kSome, 0.010);
  int64_t drafts = 0;
  for (const double ratio : ratios) {
    costs.Note({.sequences = 1, .drafts = ++drafts}, kSome, 0.010 * ratio);
  }
  return costs;
}

TEST(DraftPolicyTest, MostTokensPerSecondAreChosen) {
  const DraftCosts costs = Measured({1.2, 1.4, 1.6, 2.6});
  // 1 + c + c^2 + ... tokens in the time of the ratio.
  EXPECT_EQ(ChooseDrafts(costs, {}, 1, 0.95, 4).drafts, 3);
  EXPECT_EQ(ChooseDrafts(costs, {}, 1, 0.95, 2).drafts, 2);
  EXPECT_EQ(ChooseDrafts(costs, {}, 1, 0.4, 4).drafts, 1);
  EXPECT_EQ(ChooseDrafts(costs, {}, 1, 0.1, 4).drafts, 0);
  EXPECT_EQ(ChooseDrafts(costs, {}, 1, 0.95, 0).drafts, 0);
  EXPECT_DOUBLE_EQ(ChooseDrafts(costs, {}, 1, 0.5, 1).expected, 1.5);
}

TEST(DraftPolicyTest, ACostThatIsNotKnownIsTried) {
  EXPECT_EQ(ChooseDrafts(DraftCosts(), {}, 1, 0.5, 4).drafts, 4);
  // But it is at least that of fewer drafts.
  EXPECT_EQ(ChooseDrafts(Measured({1.9}), {}, 1, 0.4, 4).drafts, 0);
  EXPECT_EQ(ChooseDrafts(Measured({1.9}), {}, 1, 0.7, 4).drafts, 4);
}

TEST(DraftPolicyTest, TheDraftsOfAnotherSequenceCount) {
  DraftCosts costs;
  costs.Note({.sequences = 2, .drafts = 0}, kSome, 0.010);
  for (int64_t drafts = 1; drafts <= 4; ++drafts) {
    costs.Note({.sequences = 2, .drafts = drafts}, kSome, drafts < 4 ? 0.011 : 0.030);
  }
  EXPECT_EQ(ChooseDrafts(costs, {.sequences = 2, .drafts = 0}, 2, 0.9, 4).drafts, 3);
  EXPECT_EQ(ChooseDrafts(costs, {.sequences = 2, .drafts = 3}, 4, 0.9, 4).drafts, 0);
}

TEST(DraftPolicyTest, ABusyMomentIsForgottenAndASlowerMachineLearned) {
  DraftCosts costs = Measured({1.5});
  costs.Note({.drafts = 1}, kSome, 0.200);
  EXPECT_LT(costs.Ratio({.drafts = 1}), 1.7);
  costs.Note({.drafts = 1}, kSome, 0.015);
  EXPECT_NEAR(costs.Ratio({.drafts = 1}), 1.5, 1e-9);
  for (int i = 0; i < 20; ++i) costs.Note({.drafts = 1}, kSome, 0.030);
  EXPECT_NEAR(costs.Ratio({.drafts = 1}), 3.0, 1e-9);
  for (int i = 0; i < 3000; ++i) costs.Note({.drafts = 0}, kSome, 0.010);
  EXPECT_EQ(costs.Ratio({.drafts = 1}), 1.0);  // to be measured anew
}

TEST(DraftPolicyTest, RatiosAreNeverBelowOneAndNeedAPlainStep) {
  EXPECT_EQ(Measured({0.2}).Ratio({.drafts = 1}), 1.0);
  DraftCosts costs;
  costs.Note({.drafts = 1}, kSome, 0.200);
  EXPECT_EQ(costs.Ratio({.drafts = 1}), 1.0);
  costs.Note({.drafts = 0}, kSome, 0.0);  // a clock that stands still
  costs.Note({.drafts = 1}, kSome, 0.0);
  EXPECT_EQ(costs.Ratio({.drafts = 1}), 1.0);
}

TEST(DraftPolicyTest, APlainStepIsDueForNewSequencesAndOnceInAWhile) {
  DraftCosts costs;
  EXPECT_TRUE(costs.PlainIsDue(1, kSome));
  costs.Note({.drafts = 0}, kSome, 0.010);
  EXPECT_FALSE(costs.PlainIsDue(1, kSome));
  EXPECT_TRUE(costs.PlainIsDue(1, kSome + 1));
  EXPECT_TRUE(costs.PlainIsDue(2, kSome));
  int steps = 0;
  for (; !costs.PlainIsDue(1, kSome); ++steps) costs.Note({.drafts = 2}, kSome, 0.012);
  EXPECT_EQ(steps, 64);
  // Another sequence's step may take longer: that is no cost of drafts.
  costs.Note({.drafts = 0}, kSome + 1, 0.040);
  costs.Note({.drafts = 2}, kSome + 1, 0.048);
  EXPECT_NEAR(costs.Ratio({.drafts = 2}), 1.2, 1e-9);
}

TEST(DraftPolicyTest, AcceptanceFollowsTheDraftsOfEachLength) {
  DraftAcceptance acceptance;
  const double first = acceptance.Chance(3);
  acceptance.Note(3, 4, 4);
  EXPECT_GT(acceptance.Chance(3), 0.8);
  EXPECT_EQ(acceptance.Chance(2), first);
  // Behind a wrong draft nothing is known.
  DraftAcceptance other;
  acceptance.Note(2, 4, 0);
  other.Note(2, 1, 0);
  EXPECT_EQ(acceptance.Chance(2), other.Chance(2));
  for (int i = 0; i < 20; ++i) acceptance.Note(3, 1, 0);
  EXPECT_LT(acceptance.Chance(3), 0.01);
}

TEST(DraftPolicyTest, ATrialIsDueSeldom) {
  DraftAcceptance acceptance;
  int trials = 0;
  for (int i = 0; i < 640; ++i) trials += acceptance.TrialIsDue(2) ? 1 : 0;
  EXPECT_EQ(trials, 10);
  EXPECT_FALSE(acceptance.TrialIsDue(4));
}

}  // namespace
}  // namespace kvist::worker
