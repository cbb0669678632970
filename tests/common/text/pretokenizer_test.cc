#include "common/text/pretokenizer.h"

#include <gtest/gtest.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/text/normalizer.h"
#include "common/text/tokenizer.h"
#include "tests/support/model_files.h"

namespace kvist::text {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;
using Words = std::vector<std::string>;

Words WordsOf(Pretokenizer pretokenizer, std::string_view text) {
  std::vector<std::string_view> words;
  SplitWords(pretokenizer, text, &words);
  return {words.begin(), words.end()};
}

// Words and ids from Hugging Face's tokenizers, over small vocabularies
// (tests/golden/make_pretokenizer_cases.py).
class PretokenizerGolden : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto lines = kvist::testing::ReadGoldenLines(GetParam());
    ASSERT_TRUE(lines.ok()) << lines.status();
    lines_ = *std::move(lines);
    ASSERT_GT(lines_.size(), 200);
    const json header = json::parse(lines_.front());
    vocabulary_.pretokenizer = *PretokenizerFromName(header.at("pretokenizer").get<std::string>());
    vocabulary_.pieces = header.at("pieces").get<std::vector<std::string>>();
    for (const int kind : header.at("kinds")) {
      vocabulary_.kinds.push_back(static_cast<TokenKind>(kind));
    }
    vocabulary_.merges = header.at("merges").get<std::vector<std::string>>();
  }

  std::vector<std::string> lines_;
  Vocabulary vocabulary_;
};

TEST_P(PretokenizerGolden, WordsEqualTheRegularExpression) {
  for (size_t i = 1; i < lines_.size(); ++i) {
    const json test = json::parse(lines_[i]);
    std::string text = test.at("text");
    if (NormalizesNfc(vocabulary_.pretokenizer)) text = NormalizeNfc(text);
    EXPECT_EQ(WordsOf(vocabulary_.pretokenizer, text), test.at("words").get<Words>()) << lines_[i];
  }
}

TEST_P(PretokenizerGolden, IdsEqualTheReference) {
  const auto tokenizer = Tokenizer::Create(vocabulary_);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  for (size_t i = 1; i < lines_.size(); ++i) {
    const json test = json::parse(lines_[i]);
    const std::string text = test.at("text");
    const Ids ids = test.at("ids");
    const Ids plain = test.contains("ids_plain") ? test.at("ids_plain").get<Ids>() : ids;
    EXPECT_EQ((*tokenizer)->Encode(text, ControlTokens::kRecognised), ids) << lines_[i];
    EXPECT_EQ((*tokenizer)->Encode(text, ControlTokens::kPlain), plain) << lines_[i];
  }
}

INSTANTIATE_TEST_SUITE_P(All, PretokenizerGolden,
                         ::testing::Values("pretokenizer_gpt2.jsonl", "pretokenizer_llama3.jsonl",
                                           "pretokenizer_qwen2.jsonl"),
                         [](const auto& test) {
                           const std::string name = test.param;
                           return name.substr(13, name.find('.') - 13);
                         });

TEST(Pretokenizer, SmolLmSplitsEachDigitBeforeAnythingElse) {
  EXPECT_EQ(WordsOf(Pretokenizer::kSmolLm, "a 12  3b"),
            (Words{"a", " ", "1", "2", "  ", "3", "b"}));
}

TEST(Pretokenizer, NoneKeepsTheTextWhole) {
  EXPECT_EQ(WordsOf(Pretokenizer::kNone, "a b"), Words{"a b"});
  EXPECT_EQ(WordsOf(Pretokenizer::kNone, ""), Words{});
}

TEST(Pretokenizer, UnknownNamesAreRefused) {
  EXPECT_EQ(PretokenizerFromName("llama3"), Pretokenizer::kLlamaBpe);
  EXPECT_EQ(PretokenizerFromName("default"), std::nullopt);
  EXPECT_EQ(PretokenizerFromName(""), std::nullopt);
}

// Any text comes back whole and in order from every splitter.
TEST(Pretokenizer, WordsJoinToTheText) {
  const std::vector<std::string> atoms = {"a",      "Z",      "'s",     "'",         " ",  "  ",
                                          "\n",     "\r\n",   "\t",     "1",         "23", "!",
                                          "\u00e9", "\u0301", "\u00a0", "\U0001f600"};
  uint64_t state = 7;
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (int i = 0; i < 12; ++i) {
      state = state * 6364136223846793005ULL + 1442695040888963407ULL;
      text += atoms[(state >> 33) % atoms.size()];
    }
    for (const Pretokenizer pretokenizer :
         {Pretokenizer::kNone, Pretokenizer::kGpt2, Pretokenizer::kSmolLm, Pretokenizer::kLlamaBpe,
          Pretokenizer::kQwen2}) {
      std::string joined;
      for (const std::string& word : WordsOf(pretokenizer, text)) {
        EXPECT_FALSE(word.empty());
        joined += word;
      }
      ASSERT_EQ(joined, text);
    }
  }
}

}  // namespace
}  // namespace kvist::text
