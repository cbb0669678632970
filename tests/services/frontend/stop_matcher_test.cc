#include "services/frontend/stop_matcher.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace kvist::services {
namespace {

// By definition: the first end of a stop string, then its earliest beginning.
std::optional<int64_t> Naive(const std::string& text, const std::vector<std::string>& stops) {
  for (size_t end = 1; end <= text.size(); ++end) {
    std::optional<int64_t> begin;
    for (const std::string& stop : stops) {
      if (stop.size() > end || text.compare(end - stop.size(), stop.size(), stop) != 0) continue;
      const auto candidate = static_cast<int64_t>(end - stop.size());
      if (!begin.has_value() || candidate < *begin) begin = candidate;
    }
    if (begin.has_value()) return begin;
  }
  return std::nullopt;
}

// By definition: text up to here cannot belong to a match, whatever follows.
int64_t NaiveSafe(const std::string& text, const std::vector<std::string>& stops) {
  for (size_t from = 0; from < text.size(); ++from) {
    for (const std::string& stop : stops) {
      const std::string rest = text.substr(from);
      if (rest.size() < stop.size() && stop.compare(0, rest.size(), rest) == 0) {
        return static_cast<int64_t>(from);
      }
    }
  }
  return static_cast<int64_t>(text.size());
}

TEST(StopMatcherTest, AgreesWithTheNaiveSearchHoweverTheTextIsCut) {
  std::mt19937 random(1);
  int matches = 0;
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::string> stops(random() % 4);
    for (std::string& stop : stops) {
      const size_t length = 1 + random() % 5;
      for (size_t i = 0; i < length; ++i) stop += static_cast<char>('a' + random() % 2);
    }
    std::string text(random() % 30, 'a');
    for (char& c : text) c = static_cast<char>('a' + random() % 3);
    StopMatcher matcher(stops);
    std::optional<int64_t> found;
    std::string pushed;
    for (size_t at = 0; at < text.size() && !found.has_value();) {
      const size_t length = 1 + random() % 4;
      const std::string piece = text.substr(at, length);
      at += length;
      pushed += piece;
      found = matcher.Push(piece);
      if (!found.has_value()) {
        ASSERT_EQ(matcher.safe_offset(), NaiveSafe(pushed, stops)) << pushed;
      }
    }
    ASSERT_EQ(found, Naive(pushed, stops)) << text;
    if (!found.has_value()) {
      ASSERT_EQ(Naive(text, stops), std::nullopt);
    } else {
      ++matches;
    }
  }
  EXPECT_GT(matches, 5000);
}

TEST(StopMatcherTest, WithoutStopStringsEverythingIsSafeAtOnce) {
  StopMatcher matcher({});
  EXPECT_EQ(matcher.Push("abc"), std::nullopt);
  EXPECT_EQ(matcher.safe_offset(), 3);
}

TEST(StopMatcherTest, LongStopStringOverManyPieces) {
  const std::string stop(256, 'x');
  StopMatcher matcher({stop});
  EXPECT_EQ(matcher.Push("y"), std::nullopt);
  for (int i = 0; i < 255; ++i) {
    EXPECT_EQ(matcher.Push("x"), std::nullopt);
    EXPECT_EQ(matcher.safe_offset(), 1);
  }
  EXPECT_EQ(matcher.Push("x"), 1);
}

}  // namespace
}  // namespace kvist::services
