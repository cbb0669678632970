#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "common/gguf/gguf_file.h"
#include "common/text/tokenizer.h"
#include "tests/support/gguf_builder.h"

namespace kvist::text {
namespace {

using ::kvist::testing::AsBytes;
using ::kvist::testing::GgufBuilder;

// The keys of a small byte-level model, each of which a test can leave out or replace.
struct Keys {
  std::string model = "gpt2";
  std::string pre = "llama-bpe";
  std::vector<std::string> tokens = {"a", "b", "ab", "<|begin_of_text|>", "<|eot_id|>", "<|x|>"};
  std::vector<int32_t> kinds = {1, 1, 1, 3, 3, 4};
  std::vector<std::string> merges = {"a b"};
  std::vector<float> scores = {};
  std::string without;  // a key left out
  std::function<void(GgufBuilder&)> more = [](GgufBuilder&) {};
};

absl::StatusOr<Vocabulary> Read(const Keys& keys) {
  GgufBuilder builder;
  const auto wanted = [&keys](std::string_view key) { return keys.without != key; };
  if (wanted("model")) builder.AddString("tokenizer.ggml.model", keys.model);
  if (wanted("pre")) builder.AddString("tokenizer.ggml.pre", keys.pre);
  if (wanted("tokens")) builder.AddStrings("tokenizer.ggml.tokens", keys.tokens);
  if (wanted("token_type")) {
    builder.AddArray("tokenizer.ggml.token_type", GgufBuilder::kInt32, keys.kinds);
  }
  if (wanted("merges")) builder.AddStrings("tokenizer.ggml.merges", keys.merges);
  if (!keys.scores.empty()) {
    builder.AddArray("tokenizer.ggml.scores", GgufBuilder::kFloat32, keys.scores);
  }
  keys.more(builder);
  const std::string bytes = builder.Build();
  const auto file = gguf::File::Parse(AsBytes(bytes));
  EXPECT_TRUE(file.ok()) << file.status();
  return ReadVocabulary(**file);
}

std::string ErrorOf(const Keys& keys) {
  const auto vocabulary = Read(keys);
  if (vocabulary.ok()) return "no error";
  EXPECT_EQ(vocabulary.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(vocabulary.status().message());
}

TEST(ReadVocabulary, ReadsEveryKey) {
  Keys keys;
  keys.more = [](GgufBuilder& b) {
    b.Add<uint32_t>("tokenizer.ggml.bos_token_id", GgufBuilder::kUint32, 3)
        .Add<uint32_t>("tokenizer.ggml.eos_token_id", GgufBuilder::kUint32, 4)
        .Add<uint32_t>("tokenizer.ggml.eom_token_id", GgufBuilder::kUint32, 5)
        .Add<uint8_t>("tokenizer.ggml.add_eos_token", GgufBuilder::kBool, 1)
        .AddString("tokenizer.chat_template", "{{ x }}");
  };
  const auto v = Read(keys);
  ASSERT_TRUE(v.ok()) << v.status();
  EXPECT_EQ(v->pretokenizer, Pretokenizer::kLlamaBpe);
  EXPECT_EQ(v->bos_id, 3);
  EXPECT_TRUE(v->add_bos);  // Llama 3's default
  EXPECT_TRUE(v->add_eos);
  EXPECT_FALSE(v->add_space_prefix);
  EXPECT_EQ(v->stop_ids, (std::vector<int32_t>{4, 5}));
  EXPECT_EQ(v->chat_template, "{{ x }}");
  EXPECT_EQ(v->kinds[5], TokenKind::kUserDefined);
  EXPECT_TRUE(Tokenizer::Create(*v).ok());
}

TEST(ReadVocabulary, AChatTemplateThatIsNotUtf8IsNamed) {
  for (const char* bad : {"\xff", "{{ x }}\xc3", "\xed\xa0\x80"}) {
    Keys keys;
    keys.more = [bad](GgufBuilder& b) { b.AddString("tokenizer.chat_template", bad); };
    EXPECT_EQ(ErrorOf(keys), "tokenizer.chat_template: must be UTF-8");
  }
}

// A file that marks turn tokens as ordinary ones would let users' text open and close turns.
TEST(ReadVocabulary, TurnTokensAreControlWhateverTheFileSays) {
  Keys keys;
  keys.kinds = {1, 1, 1, 1, 4, 4};
  const auto v = Read(keys);
  ASSERT_TRUE(v.ok()) << v.status();
  EXPECT_EQ(v->kinds[3], TokenKind::kControl);
  EXPECT_EQ(v->kinds[4], TokenKind::kControl);
  EXPECT_EQ(v->stop_ids, std::vector<int32_t>{4});
}

TEST(ReadVocabulary, SentencePieceNeedsScoresAndAddsAPrefixByDefault) {
  Keys keys;
  keys.model = "llama";
  keys.without = "merges";
  EXPECT_EQ(ErrorOf(keys), "tokenizer.ggml.scores: the key is missing");
  keys.scores = {1, 2};
  EXPECT_NE(ErrorOf(keys).find("2 entries for 6 tokens"), std::string::npos);
  keys.scores = {1, 2, 3, 4, 5, 6};
  const auto v = Read(keys);
  ASSERT_TRUE(v.ok()) << v.status();
  EXPECT_EQ(v->algorithm, Algorithm::kSentencePieceBpe);
  EXPECT_TRUE(v->add_space_prefix);
  EXPECT_FALSE(v->add_bos);  // there is none
  EXPECT_TRUE(Tokenizer::Create(*v).ok());
}

TEST(ReadVocabulary, MissingKeysAreNamed) {
  for (const std::string key : {"model", "pre", "tokens", "token_type", "merges"}) {
    Keys keys;
    keys.without = key;
    EXPECT_EQ(ErrorOf(keys), "tokenizer.ggml." + key + ": the key is missing");
  }
}

TEST(ReadVocabulary, UnknownNamesAndNumbersAreNamed) {
  Keys keys;
  keys.model = "bert";
  EXPECT_NE(ErrorOf(keys).find("tokenizer.ggml.model: 'bert'"), std::string::npos);
  keys = {};
  keys.pre = "tekken";
  EXPECT_NE(ErrorOf(keys).find("tokenizer.ggml.pre: 'tekken'"), std::string::npos);
  keys = {};
  keys.kinds[2] = 7;
  EXPECT_NE(ErrorOf(keys).find("token 2 has the unknown type 7"), std::string::npos);
  keys = {};
  keys.kinds.pop_back();
  EXPECT_NE(ErrorOf(keys).find("5 entries for 6 tokens"), std::string::npos);
}

TEST(ReadVocabulary, WrongTypesAndIdsOutOfRangeAreNamed) {
  Keys keys;
  keys.more = [](GgufBuilder& b) {
    b.Add<uint32_t>("tokenizer.ggml.eos_token_id", GgufBuilder::kUint32, 6);
  };
  EXPECT_NE(ErrorOf(keys).find("tokenizer.ggml.eos_token_id: 6"), std::string::npos);
  keys.more = [](GgufBuilder& b) {
    b.Add<int32_t>("tokenizer.ggml.bos_token_id", GgufBuilder::kInt32, -1);
  };
  EXPECT_NE(ErrorOf(keys).find("tokenizer.ggml.bos_token_id: -1"), std::string::npos);
  keys.more = [](GgufBuilder& b) { b.AddString("tokenizer.ggml.add_bos_token", "yes"); };
  EXPECT_EQ(ErrorOf(keys), "tokenizer.ggml.add_bos_token: is not a bool");
  keys.more = [](GgufBuilder& b) {
    b.Add<uint8_t>("tokenizer.ggml.add_bos_token", GgufBuilder::kBool, 1);
  };
  EXPECT_NE(ErrorOf(keys).find("tokenizer.ggml.bos_token_id"), std::string::npos);
  keys.more = [](GgufBuilder& b) {
    b.Add<float>("tokenizer.chat_template", GgufBuilder::kFloat32, 1);
  };
  EXPECT_EQ(ErrorOf(keys), "tokenizer.chat_template: is not a string");
}

}  // namespace
}  // namespace kvist::text
