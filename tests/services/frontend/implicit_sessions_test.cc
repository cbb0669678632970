#include "services/frontend/implicit_sessions.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"

namespace kvist::services {
namespace {

using cache_manager::BlockKey;
using cache_manager::ChildKey;

// The keys of a chain of words: equal words below equal parents have equal keys, as blocks do.
std::vector<BlockKey> Chain(const std::vector<int32_t>& words) {
  std::vector<BlockKey> keys;
  BlockKey parent;
  for (const int32_t word : words) {
    parent = ChildKey(parent, std::vector<int32_t>{word});
    keys.push_back(parent);
  }
  return keys;
}

TEST(ImplicitSessionsTest, PromptThatContinuesAnAnswerIsTheSameSession) {
  ImplicitSessions sessions("s", {});
  const SessionId first = sessions.Begin(Chain({1, 2}));
  sessions.End(first, Chain({1, 2, 3}));
  EXPECT_EQ(sessions.Begin(Chain({1, 2, 3, 4})), first);
  ASSERT_TRUE(sessions.CheckInvariants().ok());
}

TEST(ImplicitSessionsTest, RetoldAnswerInOtherTokensIsStillTheSameSession) {
  ImplicitSessions sessions("s", {});
  const SessionId first = sessions.Begin(Chain({1, 2}));
  sessions.End(first, Chain({1, 2, 3}));
  EXPECT_EQ(sessions.Begin(Chain({1, 2, 9, 4})), first);
}

TEST(ImplicitSessionsTest, PromptThatPartsBeforeTheLastPromptsEndIsAnother) {
  ImplicitSessions sessions("s", {});
  const SessionId first = sessions.Begin(Chain({1, 2}));
  sessions.End(first, Chain({1, 2, 3}));
  EXPECT_NE(sessions.Begin(Chain({1, 7})), first);
}

TEST(ImplicitSessionsTest, CommonSystemPromptMakesNoConversation) {
  ImplicitSessions sessions("s", {});
  const SessionId first = sessions.Begin(Chain({1, 2}));
  sessions.End(first, Chain({1, 2}));
  const SessionId second = sessions.Begin(Chain({1, 5}));
  sessions.End(second, Chain({1, 5}));
  const SessionId third = sessions.Begin(Chain({1}));
  EXPECT_NE(third, first);
  EXPECT_NE(third, second);
  sessions.End(third, Chain({1}));
  EXPECT_EQ(sessions.Begin(Chain({1, 5, 6})), second);
}

TEST(ImplicitSessionsTest, SessionInUseIsNotContinued) {
  ImplicitSessions sessions("s", {});
  const SessionId first = sessions.Begin(Chain({1, 2}));
  EXPECT_NE(sessions.Begin(Chain({1, 2, 3})), first);
}

TEST(ImplicitSessionsTest, PromptsWithoutAFullBlockStayApart) {
  ImplicitSessions sessions("s", {});
  const SessionId first = sessions.Begin({});
  sessions.End(first, {});
  EXPECT_NE(sessions.Begin({}), first);
}

TEST(ImplicitSessionsTest, LimitForgetsTheLongestUnusedButNoneInUse) {
  ImplicitSessions sessions("s", {.max_sessions = 2, .max_blocks = 100});
  const SessionId kept = sessions.Begin(Chain({1}));
  const SessionId old = sessions.Begin(Chain({2}));
  sessions.End(old, Chain({2}));
  EXPECT_EQ(sessions.size(), 2u);
  const SessionId young = sessions.Begin(Chain({3}));
  EXPECT_EQ(sessions.size(), 2u);
  sessions.End(kept, Chain({1}));
  sessions.End(young, Chain({3}));
  EXPECT_EQ(sessions.Begin(Chain({1, 4})), kept);
  EXPECT_NE(sessions.Begin(Chain({2, 4})), old);
  ASSERT_TRUE(sessions.CheckInvariants().ok());
}

TEST(ImplicitSessionsTest, BlocksStayWithinTheLimit) {
  ImplicitSessions sessions("s", {.max_sessions = 100, .max_blocks = 8});
  for (int32_t i = 0; i < 20; ++i) {
    const auto chain = Chain({100 + i, 1, 2});
    sessions.End(sessions.Begin(chain), chain);
    EXPECT_LE(sessions.blocks(), 8u);
    ASSERT_TRUE(sessions.CheckInvariants().ok());
  }
  EXPECT_EQ(sessions.size(), 2u);
}

// The deepest known block decides, told by comparing whole chains.
class NaiveSessions {
 public:
  int Begin(const std::vector<int32_t>& words) {
    size_t depth = 0;
    std::vector<int> holders;
    for (const auto& [number, session] : sessions_) {
      size_t common = 0;
      while (common < words.size() && common < session.words.size() &&
             words[common] == session.words[common]) {
        ++common;
      }
      if (common == 0 || common < depth) continue;
      if (common > depth) holders.clear();
      depth = common;
      holders.push_back(number);
    }
    int number = next_;
    if (holders.size() == 1) {
      const Session& session = sessions_[holders.front()];
      if (!session.in_use && depth >= session.prompt) number = holders.front();
    }
    if (number == next_) ++next_;
    sessions_[number] = {words, words.size(), true};
    return number;
  }
  void End(int number, const std::vector<int32_t>& words) {
    sessions_[number].words = words;
    sessions_[number].in_use = false;
  }

 private:
  struct Session {
    std::vector<int32_t> words;
    size_t prompt = 0;
    bool in_use = false;
  };
  std::map<int, Session> sessions_;
  int next_ = 0;
};

TEST(ImplicitSessionsTest, RandomConversationsAgreeWithTheNaiveModel) {
  std::mt19937 random(3);
  ImplicitSessions sessions("s", {});
  NaiveSessions naive;
  std::vector<std::vector<int32_t>> told = {{}};
  std::vector<std::pair<int, std::vector<int32_t>>> running;
  int continued = 0;
  for (int round = 0; round < 3000; ++round) {
    if (!running.empty() && random() % 2 == 0) {
      const size_t i = random() % running.size();
      auto [number, words] = running[i];
      running.erase(running.begin() + static_cast<int64_t>(i));
      words.push_back(static_cast<int32_t>(random() % 4));
      naive.End(number, words);
      sessions.End(SessionId(absl::StrCat("s", number)), Chain(words));
      told.push_back(words);
    } else {
      std::vector<int32_t> words = told[random() % told.size()];
      if (words.size() > 8) words.resize(2);
      words.push_back(static_cast<int32_t>(random() % 4));
      const int number = naive.Begin(words);
      ASSERT_EQ(sessions.Begin(Chain(words)), SessionId(absl::StrCat("s", number)));
      continued += number < static_cast<int>(sessions.size()) - 1 ? 1 : 0;
      running.emplace_back(number, words);
    }
    if (round % 50 == 0) {
      ASSERT_TRUE(sessions.CheckInvariants().ok());
    }
  }
  EXPECT_GT(continued, 20);
}

}  // namespace
}  // namespace kvist::services
