#include "worker/engine/prompt_lookup.h"

#include <algorithm>
#include <optional>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/long_run.h"

namespace kvist::worker {
namespace {

std::optional<LookupMatch> ByDefinition(const std::vector<int32_t>& tokens) {
  const size_t n = tokens.size();
  for (int length = kMostLookupLength; length >= kLeastLookupLength; --length) {
    const size_t size = static_cast<size_t>(length);
    for (size_t end = n; end-- > size;) {
      if (std::equal(tokens.end() - length, tokens.end(),
                     tokens.begin() + static_cast<int64_t>(end - size))) {
        return LookupMatch{.length = length, .place = end};
      }
    }
  }
  return std::nullopt;
}

void ExpectSame(const std::optional<LookupMatch>& found, const std::vector<int32_t>& tokens) {
  const std::optional<LookupMatch> expected = ByDefinition(tokens);
  ASSERT_EQ(found.has_value(), expected.has_value()) << tokens.size();
  if (!found.has_value()) return;
  EXPECT_EQ(found->length, expected->length) << tokens.size();
  EXPECT_EQ(found->place, expected->place) << tokens.size();
}

TEST(PromptLookupTest, FindsTheLatestPlaceOfTheLongestRun) {
  PromptLookup lookup(32);
  lookup.Begin(32);
  const std::vector<int32_t> tokens = {1, 2, 3, 4, 9, 1, 2, 3, 4, 8, 3, 4, 7, 1, 2, 3, 4};
  const auto found = lookup.Find(tokens);
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->length, 4);
  EXPECT_EQ(found->place, 9u);
  EXPECT_EQ(tokens[found->place], 8);
}

TEST(PromptLookupTest, AShorterRunIsFoundWhereNoLongerOneIs) {
  PromptLookup lookup(16);
  lookup.Begin(16);
  const auto found = lookup.Find(std::vector<int32_t>{5, 3, 4, 7, 6, 3, 4});
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->length, 2);
  EXPECT_EQ(found->place, 3u);
}

TEST(PromptLookupTest, NothingIsFoundInWhatDoesNotRepeatOrIsTooShort) {
  PromptLookup lookup(16);
  for (const std::vector<int32_t>& tokens : {std::vector<int32_t>{}, {1}, {1, 1}, {1, 1, 2, 3}}) {
    lookup.Begin(tokens.size());
    EXPECT_FALSE(lookup.Find(tokens).has_value());
  }
  lookup.Begin(16);
  EXPECT_FALSE(lookup.Find(std::vector<int32_t>{1, 2, 3, 4, 5, 6, 2}).has_value());
}

TEST(PromptLookupTest, ARunIsNotItsOwnPlace) {
  PromptLookup lookup(16);
  lookup.Begin(16);
  const auto found = lookup.Find(std::vector<int32_t>{7, 7, 7});
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->length, 2);
  EXPECT_EQ(found->place, 2u);
}

TEST(PromptLookupTest, AnotherSequenceFindsNothingOfTheOneBefore) {
  PromptLookup lookup(100);
  lookup.Begin(100);
  EXPECT_TRUE(lookup.Find(std::vector<int32_t>{5, 3, 4, 7, 6, 3, 4}).has_value());
  for (const size_t most : {7, 100}) {
    lookup.Begin(most);
    EXPECT_FALSE(lookup.Find(std::vector<int32_t>{1, 2, 5, 3, 4}).has_value());
    const auto found = lookup.Find(std::vector<int32_t>{1, 2, 5, 3, 4, 1, 2});
    ASSERT_TRUE(found.has_value());
    EXPECT_EQ(found->place, 2u);
  }
}

TEST(PromptLookupTest, RandomSequencesGiveWhatASearchGives) {
  for (uint64_t seed = 1; seed <= Seeds(40); ++seed) {
    std::mt19937_64 random(seed);
    const uint64_t alphabet = 2 + random() % 40;
    const size_t size = 1 + random() % 300;
    PromptLookup lookup(size);
    lookup.Begin(size);
    std::vector<int32_t> tokens;
    while (tokens.size() < size) {
      // Several at once, as a prompt is and accepted drafts are.
      for (size_t i = 1 + random() % 6; i > 0 && tokens.size() < size; --i) {
        tokens.push_back(static_cast<int32_t>(random() % alphabet));
      }
      ExpectSame(lookup.Find(tokens), tokens);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

}  // namespace
}  // namespace kvist::worker
