#include "services/frontend/output_text.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "tests/services/frontend/letter_vocabulary.h"

namespace kvist::services {
namespace {

v1::Token TokenOf(int32_t id, int64_t index) {
  v1::Token token;
  token.set_id(id);
  token.set_index(index);
  return token;
}

struct Shown {
  std::string text;
  std::vector<int32_t> ids;
  bool stopped = false;
};

Shown Show(const text::Tokenizer& tokenizer, const std::vector<int32_t>& ids,
           const std::vector<std::string>& stops) {
  OutputText output(&tokenizer, stops);
  std::vector<VisibleToken> visible;
  Shown shown;
  for (size_t i = 0; i < ids.size() && !shown.stopped; ++i) {
    shown.stopped = output.Push(TokenOf(ids[i], static_cast<int64_t>(i)), &visible);
  }
  if (!shown.stopped) shown.stopped = output.Finish(&visible);
  for (const VisibleToken& token : visible) {
    if (token.token.has_value()) shown.ids.push_back(token.token->id());
    shown.text += token.text;
  }
  return shown;
}

std::vector<int32_t> Letters(const std::string& text) {
  std::vector<int32_t> ids;
  for (const char c : text) ids.push_back(LetterId(c));
  return ids;
}

TEST(OutputTextTest, CharacterOfTwoTokensAppearsWhole) {
  const auto tokenizer = LetterTokenizer();
  OutputText output(tokenizer.get(), {});
  std::vector<VisibleToken> visible;
  EXPECT_FALSE(output.Push(TokenOf(kByteC3Id, 0), &visible));
  std::string text;
  for (const VisibleToken& token : visible) text += token.text;
  EXPECT_EQ(text, "");
  EXPECT_FALSE(output.Push(TokenOf(kByteA9Id, 1), &visible));
  for (const VisibleToken& token : visible) text += token.text;
  EXPECT_EQ(text, "\u00e9");
}

TEST(OutputTextTest, UnfinishedCharacterAtTheEndIsReplaced) {
  const auto tokenizer = LetterTokenizer();
  EXPECT_EQ(Show(*tokenizer, {LetterId('x'), kByteC3Id}, {}).text, "x\uFFFD");
}

TEST(OutputTextTest, ControlTokensAreIdsWithoutText) {
  const auto tokenizer = LetterTokenizer();
  const Shown shown = Show(*tokenizer, {LetterId('x'), kEndId}, {});
  EXPECT_EQ(shown.text, "x");
  EXPECT_EQ(shown.ids, (std::vector<int32_t>{LetterId('x'), kEndId}));
}

TEST(OutputTextTest, MatchCutsTextAndTokens) {
  const auto tokenizer = LetterTokenizer();
  const Shown shown = Show(*tokenizer, Letters("hello.END.more"), {"END"});
  EXPECT_TRUE(shown.stopped);
  EXPECT_EQ(shown.text, "hello.");
  EXPECT_EQ(shown.ids, Letters("hello."));
}

TEST(OutputTextTest, TokenThatReachesIntoTheMatchIsKeptWithItsTextCut) {
  const auto tokenizer = LetterTokenizer();
  const Shown shown = Show(*tokenizer, {LetterId('x'), kAbId, LetterId('c')}, {"bc"});
  EXPECT_TRUE(shown.stopped);
  EXPECT_EQ(shown.text, "xa");
  EXPECT_EQ(shown.ids, (std::vector<int32_t>{LetterId('x'), kAbId}));
}

TEST(OutputTextTest, BeginningOfAStopStringIsHeldBackAndLetGo) {
  const auto tokenizer = LetterTokenizer();
  OutputText output(tokenizer.get(), {"END"});
  std::vector<VisibleToken> visible;
  EXPECT_FALSE(output.Push(TokenOf(LetterId('E'), 0), &visible));
  EXPECT_FALSE(output.Push(TokenOf(LetterId('N'), 1), &visible));
  EXPECT_TRUE(visible.empty());
  EXPECT_FALSE(output.Push(TokenOf(LetterId('x'), 2), &visible));
  EXPECT_EQ(visible.size(), 3u);
}

// Whatever the tokens: the text is that of all tokens up to the first match, and the text of the
// first n tokens depends on nothing but them (which is what Resume relies on).
TEST(OutputTextTest, RandomTokensAgreeWithCuttingTheWholeText) {
  const auto tokenizer = LetterTokenizer();
  std::mt19937 random(5);
  const std::vector<int32_t> alphabet = {LetterId('a'), LetterId('b'), LetterId('c'), kAbId,
                                         kByteC3Id,     kByteA9Id,     kEndId};
  for (int round = 0; round < 5000; ++round) {
    std::vector<int32_t> ids(random() % 25);
    for (int32_t& id : ids) id = alphabet[random() % alphabet.size()];
    std::vector<std::string> stops(random() % 3);
    for (std::string& stop : stops) {
      for (size_t i = 0; i < 1 + random() % 4; ++i) stop += static_cast<char>('a' + random() % 3);
      if (stop.empty()) stop.assign(1, 'c');
    }
    const Shown plain = Show(*tokenizer, ids, {});
    EXPECT_EQ(plain.ids, ids);
    const Shown shown = Show(*tokenizer, ids, stops);
    StopMatcher matcher(stops);
    const auto match = matcher.Push(plain.text);
    ASSERT_EQ(shown.stopped, match.has_value()) << plain.text;
    ASSERT_EQ(shown.text, plain.text.substr(0, match.value_or(plain.text.size())));
    ASSERT_TRUE(std::equal(shown.ids.begin(), shown.ids.end(), ids.begin()));
  }
}

}  // namespace
}  // namespace kvist::services
