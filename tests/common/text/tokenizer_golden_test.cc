// Every tokenizer case of tests/golden on the vocabularies of the two public models.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/gguf/gguf_file.h"
#include "common/text/chat_template.h"
#include "common/text/tokenizer.h"
#include "tests/support/model_files.h"

namespace kvist::text {
namespace {

using ::kvist::testing::FindModelFile;
using ::kvist::testing::kGemma3File;
using ::kvist::testing::kSmolLm2File;
using ::kvist::testing::ReadGoldenLines;
using nlohmann::json;
using Ids = std::vector<int32_t>;

std::unique_ptr<const Tokenizer> LoadTokenizer(std::string_view model) {
  const auto path = FindModelFile(model);
  if (!path.ok()) {
    ADD_FAILURE() << path.status();
    return nullptr;
  }
  const auto file = gguf::File::Open(*path);
  if (!file.ok()) {
    ADD_FAILURE() << file.status();
    return nullptr;
  }
  auto vocabulary = ReadVocabulary(**file);
  if (!vocabulary.ok()) {
    ADD_FAILURE() << vocabulary.status();
    return nullptr;
  }
  auto tokenizer = Tokenizer::Create(*std::move(vocabulary));
  if (!tokenizer.ok()) {
    ADD_FAILURE() << tokenizer.status();
    return nullptr;
  }
  return *std::move(tokenizer);
}

void ExpectAllCases(const Tokenizer& tokenizer, std::string_view golden, size_t expected_cases) {
  const auto lines = ReadGoldenLines(golden);
  ASSERT_TRUE(lines.ok()) << lines.status();
  ASSERT_EQ(lines->size(), expected_cases);
  for (const std::string& line : *lines) {
    const json test = json::parse(line);
    const std::string text = test.at("text");
    const Ids ids = test.at("ids");
    const Ids plain = test.contains("ids_plain") ? test.at("ids_plain").get<Ids>() : ids;
    EXPECT_EQ(tokenizer.Encode(text, ControlTokens::kRecognised), ids) << line;
    EXPECT_EQ(tokenizer.Encode(text, ControlTokens::kPlain), plain) << line;
    EXPECT_EQ(tokenizer.Decode(ids), test.at("decoded").get<std::string>()) << line;
    EXPECT_TRUE(std::none_of(plain.begin(), plain.end(), [&](int32_t id) {
      return tokenizer.IsControl(id);
    })) << line;
  }
}

TEST(TokenizerGolden, SmolLm2CasesAreExact) {
  const auto tokenizer = LoadTokenizer(kSmolLm2File);
  ASSERT_NE(tokenizer, nullptr);
  ExpectAllCases(*tokenizer, "tokenizer_smollm2.jsonl", 397);
}

TEST(TokenizerGolden, Gemma3CasesAreExact) {
  const auto tokenizer = LoadTokenizer(kGemma3File);
  ASSERT_NE(tokenizer, nullptr);
  ExpectAllCases(*tokenizer, "tokenizer_gemma3.jsonl", 397);
}

TEST(TokenizerGolden, Gemma3ReadsALiteralSpaceMarkAsASpace) {
  const auto tokenizer = LoadTokenizer(kGemma3File);
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->Encode("\u2581\u2581", ControlTokens::kPlain), Ids{138});
}

TEST(TokenizerGolden, SmolLm2VocabularyIsReadWhole) {
  const auto tokenizer = LoadTokenizer(kSmolLm2File);
  ASSERT_NE(tokenizer, nullptr);
  const Vocabulary& v = tokenizer->vocabulary();
  EXPECT_EQ(tokenizer->size(), 49152);
  EXPECT_EQ(v.pretokenizer, Pretokenizer::kSmolLm);
  EXPECT_EQ(v.bos_id, 1);
  EXPECT_EQ(v.eos_id, 2);
  EXPECT_FALSE(v.add_bos);
  EXPECT_EQ(v.stop_ids, (Ids{2, 0}));
}

TEST(TokenizerGolden, Gemma3VocabularyIsReadWhole) {
  const auto tokenizer = LoadTokenizer(kGemma3File);
  ASSERT_NE(tokenizer, nullptr);
  const Vocabulary& v = tokenizer->vocabulary();
  EXPECT_EQ(tokenizer->size(), 262144);
  EXPECT_EQ(v.algorithm, Algorithm::kSentencePieceBpe);
  EXPECT_TRUE(v.add_bos);
  EXPECT_FALSE(v.add_space_prefix);
  EXPECT_EQ(v.stop_ids, (Ids{1, 106}));
}

ChatMessage::Role RoleOf(const std::string& name) {
  if (name == "system") return ChatMessage::Role::kSystem;
  return name == "user" ? ChatMessage::Role::kUser : ChatMessage::Role::kAssistant;
}

// The golden prompts with messages were rendered by the model's own Jinja template.
TEST(TokenizerGolden, SmolLm2ChatsEqualTheRenderedTemplate) {
  const auto tokenizer = LoadTokenizer(kSmolLm2File);
  ASSERT_NE(tokenizer, nullptr);
  const std::string& jinja = tokenizer->vocabulary().chat_template;
  const auto format = RecognizeChatTemplate(jinja);
  ASSERT_TRUE(format.ok()) << format.status();
  EXPECT_EQ(*format, ChatFormat::kChatMl);
  const auto encoder =
      ChatEncoder::Create(tokenizer.get(), *format, ChatEncoder::DefaultSystem(jinja));
  ASSERT_TRUE(encoder.ok()) << encoder.status();
  const auto lines = ReadGoldenLines("chat_smollm2.jsonl");
  ASSERT_TRUE(lines.ok()) << lines.status();
  ASSERT_EQ(lines->size(), 3);
  for (const std::string& line : *lines) {
    const json test = json::parse(line);
    std::vector<ChatMessage> messages;
    for (const json& message : test.at("messages")) {
      messages.push_back({.role = RoleOf(message.at("role")), .content = message.at("content")});
    }
    const auto ids = encoder->EncodeConversation(messages);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, test.at("ids").get<Ids>()) << line;
    EXPECT_EQ(tokenizer->Decode(*ids), test.at("text").get<std::string>());
  }
}

}  // namespace
}  // namespace kvist::text
