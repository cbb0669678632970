// Chat formats: messages to token ids. A file's Jinja template is recognised by its marks and never
// executed.
//
//   chatml  <|im_start|>ROLE\nTEXT<|im_end|>\n
//           roles system, user, assistant in any order
//   llama3  <|start_header_id|>ROLE<|end_header_id|>\n\nTEXT<|eot_id|>
//           the same roles; text is trimmed
//   gemma   <start_of_turn>ROLE\nTEXT<end_of_turn>\n
//           user and model by turns; text is trimmed; a first system message is put before the
//           first user message with an empty line between
//
// What published templates add beyond that (tools, dates of Llama 3.1, thinking of Qwen 3) is left
// out.
#ifndef KVIST_COMMON_TEXT_CHAT_TEMPLATE_H_
#define KVIST_COMMON_TEXT_CHAT_TEMPLATE_H_

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/text/tokenizer.h"

namespace kvist::text {

enum class ChatFormat : uint8_t { kChatMl, kLlama3, kGemma };

struct ChatMessage {
  enum class Role : uint8_t { kSystem, kUser, kAssistant };
  Role role = Role::kUser;
  std::string content;
};

// The format of a model's template. INVALID_ARGUMENT for an empty or unknown one: the message asks
// for --chat-template and lists the names.
absl::StatusOr<ChatFormat> RecognizeChatTemplate(std::string_view jinja);
// "chatml", "llama3", "gemma". INVALID_ARGUMENT listing the names.
absl::StatusOr<ChatFormat> ChatFormatFromName(std::string_view name);
std::string_view ChatFormatName(ChatFormat format);

// Turns conversations into ids. Control tokens come from the format alone; message text is encoded
// plainly. Immutable; Thread-safe. Keeps a pointer to the tokenizer, which must outlive it.
class ChatEncoder {
 public:
  // INVALID_ARGUMENT if the vocabulary lacks a token that the format needs. `default_system`: what
  // the model's own template inserts when the first message is no system message (SmolLM2 has one);
  // empty for none.
  static absl::StatusOr<ChatEncoder> Create(const Tokenizer* tokenizer, ChatFormat format,
                                            std::string default_system);
  // The default system message that `jinja` inserts, or empty.
  static std::string DefaultSystem(std::string_view jinja);

  // A whole conversation from its start (BOS where the vocabulary says so), ending with the
  // generation prompt. INVALID_ARGUMENT: no message, or roles in an order that the format cannot
  // express.
  absl::StatusOr<std::vector<int32_t>> EncodeConversation(
      std::span<const ChatMessage> messages) const;
  // What continues `history` (ids of an earlier conversation whose last part is a generated answer)
  // with new messages: closes the answer if its end-of-turn token is missing, then the messages and
  // the generation prompt. Returns only the ids to append.
  absl::StatusOr<std::vector<int32_t>> EncodeContinuation(
      std::span<const int32_t> history, std::span<const ChatMessage> messages) const;

  // The token that ends a turn.
  int32_t end_of_turn_id() const { return control_.end_of_turn; }

 private:
  class Builder;
  struct ControlIds {
    int32_t start_of_turn = -1;
    int32_t end_of_header = -1;  // Llama 3 only
    int32_t end_of_turn = -1;
  };

  ChatEncoder() = default;
  // Checks the order of roles; `continuing` whether an answer stands before the first message.
  absl::Status CheckRoles(std::span<const ChatMessage> messages, bool continuing) const;
  void AddTurns(std::span<const ChatMessage> messages, Builder& builder) const;

  const Tokenizer* tokenizer_ = nullptr;
  ChatFormat format_ = ChatFormat::kChatMl;
  std::string default_system_;
  ControlIds control_;
};

}  // namespace kvist::text

#endif  // KVIST_COMMON_TEXT_CHAT_TEMPLATE_H_
