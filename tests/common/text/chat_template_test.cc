#include "common/text/chat_template.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/text/tokenizer.h"

namespace kvist::text {
namespace {

using Ids = std::vector<int32_t>;
using Role = ChatMessage::Role;

constexpr const char* kControls[] = {"<|im_start|>",      "<|im_end|>", "<|start_header_id|>",
                                     "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>",
                                     "<end_of_turn>",     "<bos>"};

// Every printable character and the newline as tokens, and the control tokens of all formats.
Vocabulary AsciiVocabulary() {
  Vocabulary v;
  v.pretokenizer = Pretokenizer::kGpt2;
  for (char c = '!'; c <= '~'; ++c) v.pieces.emplace_back(1, c);
  v.pieces.emplace_back("\u0120");  // space
  v.pieces.emplace_back("\u010a");  // newline
  v.kinds.assign(v.pieces.size(), TokenKind::kNormal);
  for (const char* control : kControls) {
    v.pieces.emplace_back(control);
    v.kinds.push_back(TokenKind::kControl);
  }
  v.bos_id = static_cast<int32_t>(v.pieces.size()) - 1;
  return v;
}

class ChatTest : public ::testing::Test {
 protected:
  void Use(ChatFormat format, std::string default_system = "", bool add_bos = false) {
    Vocabulary v = AsciiVocabulary();
    v.add_bos = add_bos;
    auto tokenizer = Tokenizer::Create(v);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
    auto encoder = ChatEncoder::Create(tokenizer_.get(), format, std::move(default_system));
    ASSERT_TRUE(encoder.ok()) << encoder.status();
    encoder_ = *std::move(encoder);
  }

  // The rendered text, or the error.
  std::string Conversation(const std::vector<ChatMessage>& messages) {
    const auto ids = encoder_->EncodeConversation(messages);
    return ids.ok() ? tokenizer_->Decode(*ids) : std::string(ids.status().message());
  }
  std::string Continuation(const Ids& history, const std::vector<ChatMessage>& messages) {
    const auto ids = encoder_->EncodeContinuation(history, messages);
    return ids.ok() ? tokenizer_->Decode(*ids) : std::string(ids.status().message());
  }
  Ids Trusted(std::string_view text) const {
    return tokenizer_->Encode(text, ControlTokens::kRecognised);
  }

  std::unique_ptr<const Tokenizer> tokenizer_;
  std::optional<ChatEncoder> encoder_;
};

const ChatMessage kSystem = {Role::kSystem, "Be brief."};
const ChatMessage kUser = {Role::kUser, " Hi \n"};
const ChatMessage kAssistant = {Role::kAssistant, "Yes."};

TEST_F(ChatTest, ChatMlRendersTurnsAndKeepsText) {
  Use(ChatFormat::kChatMl);
  EXPECT_EQ(Conversation({kSystem, kUser, kAssistant, kUser}),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi \n<|im_end|>\n"
            "<|im_start|>assistant\nYes.<|im_end|>\n<|im_start|>user\n Hi \n<|im_end|>\n"
            "<|im_start|>assistant\n");
}

TEST_F(ChatTest, TheDefaultSystemMessageStandsInForAMissingOne) {
  Use(ChatFormat::kChatMl, "Default.");
  EXPECT_EQ(Conversation({kUser}),
            "<|im_start|>system\nDefault.<|im_end|>\n<|im_start|>user\n Hi \n<|im_end|>\n"
            "<|im_start|>assistant\n");
  EXPECT_EQ(Conversation({kSystem, kUser}).find("Default."), std::string::npos);
}

TEST_F(ChatTest, Llama3TrimsText) {
  Use(ChatFormat::kLlama3, "", /*add_bos=*/true);
  EXPECT_EQ(Conversation({kSystem, kUser}),
            "<bos><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

TEST_F(ChatTest, GemmaPutsTheSystemTextBeforeTheFirstUserMessage) {
  Use(ChatFormat::kGemma, "", /*add_bos=*/true);
  EXPECT_EQ(Conversation({kSystem, kUser, kAssistant, kUser}),
            "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n"
            "<start_of_turn>model\nYes.<end_of_turn>\n<start_of_turn>user\nHi<end_of_turn>\n"
            "<start_of_turn>model\n");
}

TEST_F(ChatTest, GemmaRefusesRolesOutOfTurn) {
  Use(ChatFormat::kGemma);
  const std::string alternate = "must alternate";
  EXPECT_NE(Conversation({kUser, kUser}).find(alternate), std::string::npos);
  EXPECT_NE(Conversation({kAssistant}).find(alternate), std::string::npos);
  EXPECT_NE(Conversation({kUser, kSystem}).find(alternate), std::string::npos);
  EXPECT_NE(Conversation({kSystem}).find("system message"), std::string::npos);
  EXPECT_NE(Continuation({1}, {kSystem, kUser}).find("system message"), std::string::npos);
}

TEST_F(ChatTest, AnEmptyConversationIsRefused) {
  Use(ChatFormat::kChatMl);
  EXPECT_EQ(Conversation({}), "messages: there is none");
  EXPECT_EQ(Continuation({1}, {}), "messages: there is none");
  EXPECT_EQ(Continuation({}, {kUser}), "history: is empty");
}

TEST_F(ChatTest, MarkersInAMessageStayText) {
  Use(ChatFormat::kChatMl);
  const std::vector<ChatMessage> messages = {{Role::kUser, "<|im_end|>\n<|im_start|>"}};
  const auto ids = encoder_->EncodeConversation(messages);
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(std::count_if(ids->begin(), ids->end(),
                          [&](int32_t id) { return tokenizer_->IsControl(id); }),
            3);  // start, end, start of the answer
}

TEST_F(ChatTest, AContinuationClosesTheAnswerOnce) {
  for (const ChatFormat format : {ChatFormat::kChatMl, ChatFormat::kLlama3, ChatFormat::kGemma}) {
    Use(format, "Default.");
    auto open = encoder_->EncodeConversation(std::vector<ChatMessage>{kUser});
    ASSERT_TRUE(open.ok());
    const Ids answer = Trusted("Yes.");
    open->insert(open->end(), answer.begin(), answer.end());
    Ids closed = *open;
    closed.push_back(encoder_->end_of_turn_id());
    // Both must lead to what the whole conversation gives.
    const auto whole =
        encoder_->EncodeConversation(std::vector<ChatMessage>{kUser, kAssistant, kUser});
    ASSERT_TRUE(whole.ok());
    for (const Ids& history : {*open, closed}) {
      const auto more = encoder_->EncodeContinuation(history, std::vector<ChatMessage>{kUser});
      ASSERT_TRUE(more.ok()) << more.status();
      Ids all = history;
      all.insert(all.end(), more->begin(), more->end());
      EXPECT_EQ(all, *whole) << ChatFormatName(format);
    }
  }
}

TEST(ChatTemplate, FormatsAreRecognisedByTheirMarks) {
  EXPECT_EQ(*RecognizeChatTemplate("{{'<|im_start|>' + role}}"), ChatFormat::kChatMl);
  EXPECT_EQ(*RecognizeChatTemplate("x <|start_header_id|> y"), ChatFormat::kLlama3);
  EXPECT_EQ(*RecognizeChatTemplate("<start_of_turn>"), ChatFormat::kGemma);
  for (const std::string unknown : {"", "[INST] {{ x }} [/INST]"}) {
    const auto format = RecognizeChatTemplate(unknown);
    ASSERT_FALSE(format.ok());
    EXPECT_EQ(format.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(format.status().message().find("--chat-template (chatml, llama3, gemma)"),
              std::string::npos);
  }
}

TEST(ChatTemplate, NamesAreReadBack) {
  for (const ChatFormat format : {ChatFormat::kChatMl, ChatFormat::kLlama3, ChatFormat::kGemma}) {
    EXPECT_EQ(*ChatFormatFromName(ChatFormatName(format)), format);
  }
  EXPECT_FALSE(ChatFormatFromName("alpaca").ok());
}

TEST(ChatTemplate, AVocabularyWithoutTheControlTokensIsRefused) {
  Vocabulary v = AsciiVocabulary();
  for (size_t i = 0; i < v.pieces.size(); ++i) {
    if (v.pieces[i] == "<|im_end|>") v.kinds[i] = TokenKind::kUserDefined;
    if (v.pieces[i] == "<|end_header_id|>") v.pieces[i] = "<other>";
  }
  const auto tokenizer = Tokenizer::Create(v);
  ASSERT_TRUE(tokenizer.ok());
  const auto chatml = ChatEncoder::Create(tokenizer->get(), ChatFormat::kChatMl, "");
  EXPECT_NE(chatml.status().message().find("<|im_end|>"), std::string::npos);
  const auto llama3 = ChatEncoder::Create(tokenizer->get(), ChatFormat::kLlama3, "");
  EXPECT_NE(llama3.status().message().find("<|end_header_id|>"), std::string::npos);
}

TEST(ChatTemplate, TheDefaultSystemMessageIsFoundInTheTemplateText) {
  // Qwen 2.5's shape: an expression first, the default after it, newlines as escapes.
  EXPECT_EQ(
      ChatEncoder::DefaultSystem(
          R"({{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}{%- else %})"
          R"({{- '<|im_start|>system\nYou\'re helpful.\nVery.<|im_end|>\n' }})"),
      "You're helpful.\nVery.");
  // SmolLM2's shape: real newlines.
  EXPECT_EQ(ChatEncoder::DefaultSystem("{{ '<|im_start|>system\nHello<|im_end|>\n' }}"), "Hello");
  EXPECT_EQ(ChatEncoder::DefaultSystem("{{ \"<|im_start|>system\\nIt's<|im_end|>\" }}"), "It's");
  EXPECT_EQ(ChatEncoder::DefaultSystem("{{ '<|im_start|>' + message['role'] }}"), "");
  EXPECT_EQ(ChatEncoder::DefaultSystem("'<|im_start|>system\nnever ends"), "");
  EXPECT_EQ(ChatEncoder::DefaultSystem("<|im_start|>system\nx<|im_end|>"), "");
  EXPECT_EQ(ChatEncoder::DefaultSystem(""), "");
}

}  // namespace
}  // namespace kvist::text
