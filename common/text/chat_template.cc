#include "common/text/chat_template.h"

#include <array>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace kvist::text {
namespace {

using Role = ChatMessage::Role;

// What tells the formats apart and what they are made of.
struct FormatRow {
  ChatFormat format;
  std::string_view name;
  std::string_view start_of_turn;  // also the mark by which a template is recognised
  std::string_view end_of_header;  // empty: the role's line ends the header
  std::string_view end_of_turn;
  std::string_view after_header;  // between role and text
  std::string_view after_turn;
  std::string_view assistant;  // the assistant's role name
  bool trims;                  // whether the text of a message is trimmed
  bool has_system_role;  // if not, roles alternate and the system text joins the first user message
};

constexpr std::array<FormatRow, 3> kFormats = {{
    {.format = ChatFormat::kChatMl,
     .name = "chatml",
     .start_of_turn = "<|im_start|>",
     .end_of_header = "",
     .end_of_turn = "<|im_end|>",
     .after_header = "\n",
     .after_turn = "\n",
     .assistant = "assistant",
     .trims = false,
     .has_system_role = true},
    {.format = ChatFormat::kLlama3,
     .name = "llama3",
     .start_of_turn = "<|start_header_id|>",
     .end_of_header = "<|end_header_id|>",
     .end_of_turn = "<|eot_id|>",
     .after_header = "\n\n",
     .after_turn = "",
     .assistant = "assistant",
     .trims = true,
     .has_system_role = true},
    {.format = ChatFormat::kGemma,
     .name = "gemma",
     .start_of_turn = "<start_of_turn>",
     .end_of_header = "",
     .end_of_turn = "<end_of_turn>",
     .after_header = "\n",
     .after_turn = "\n",
     .assistant = "model",
     .trims = true,
     .has_system_role = false},
}};

constexpr std::string_view kSystemMark = "<|im_start|>system";
constexpr std::string_view kEndMark = "<|im_end|>";

const FormatRow& RowOf(ChatFormat format) {
  for (const FormatRow& row : kFormats) {
    if (row.format == format) return row;
  }
  return kFormats[0];
}

std::string FormatNames() {
  std::string names;
  for (const FormatRow& row : kFormats) {
    absl::StrAppend(&names, names.empty() ? "" : ", ", ToAbsl(row.name));
  }
  return names;
}

std::string_view RoleName(const FormatRow& row, Role role) {
  switch (role) {
    case Role::kSystem:
      return "system";
    case Role::kUser:
      return "user";
    case Role::kAssistant:
      return row.assistant;
  }
  return "user";
}

absl::StatusOr<int32_t> FindControl(const Tokenizer& tokenizer, const FormatRow& row,
                                    std::string_view piece) {
  const std::optional<int32_t> id = tokenizer.FindSpecial(piece);
  // A user-defined token would be read from users' text too.
  if (!id || !tokenizer.IsControl(*id)) {
    return InvalidField("chat_template",
                        absl::StrCat("the format ", ToAbsl(row.name), " needs the control token '",
                                     ToAbsl(piece), "', which the vocabulary lacks"));
  }
  return *id;
}

// The text of a Jinja string literal between its quotes.
std::string Unescape(std::string_view literal) {
  std::string text;
  for (size_t i = 0; i < literal.size(); ++i) {
    if (literal[i] != '\\' || i + 1 == literal.size()) {
      text.push_back(literal[i]);
      continue;
    }
    const char escaped = literal[++i];
    text.push_back(escaped == 'n' ? '\n' : escaped == 't' ? '\t' : escaped);
  }
  return text;
}

// Whether `quote` stands in `literal` without a backslash before it, so that the literal ends
// there.
bool EndsInside(std::string_view literal, char quote) {
  for (size_t i = 0; i < literal.size(); ++i) {
    if (literal[i] == '\\') {
      ++i;
    } else if (literal[i] == quote) {
      return true;
    }
  }
  return false;
}

}  // namespace

// Collects ids; text between two control tokens is encoded as one stretch, as it would be in the
// rendered template.
class ChatEncoder::Builder {
 public:
  explicit Builder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  void Control(int32_t id) {
    Flush();
    ids_.push_back(id);
  }
  void Text(std::string_view text) { pending_.append(text); }
  std::vector<int32_t> Take() {
    Flush();
    return std::move(ids_);
  }

 private:
  void Flush() {
    if (pending_.empty()) return;
    const std::vector<int32_t> ids = tokenizer_.Encode(pending_, ControlTokens::kPlain);
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    pending_.clear();
  }

  const Tokenizer& tokenizer_;
  std::string pending_;
  std::vector<int32_t> ids_;
};

absl::StatusOr<ChatFormat> RecognizeChatTemplate(std::string_view jinja) {
  for (const FormatRow& row : kFormats) {
    if (jinja.find(row.start_of_turn) != std::string_view::npos) return row.format;
  }
  return InvalidField("chat_template",
                      absl::StrCat(jinja.empty() ? "the model has none" : "the model's is unknown",
                                   "; choose one with --chat-template (", FormatNames(), ")"));
}

absl::StatusOr<ChatFormat> ChatFormatFromName(std::string_view name) {
  for (const FormatRow& row : kFormats) {
    if (row.name == name) return row.format;
  }
  return InvalidField("chat-template", absl::StrCat("must be one of ", FormatNames()));
}

std::string_view ChatFormatName(ChatFormat format) { return RowOf(format).name; }

absl::StatusOr<ChatEncoder> ChatEncoder::Create(const Tokenizer* tokenizer, ChatFormat format,
                                                std::string default_system) {
  const FormatRow& row = RowOf(format);
  ChatEncoder encoder;
  encoder.tokenizer_ = tokenizer;
  encoder.format_ = format;
  encoder.default_system_ = std::move(default_system);
  KVIST_ASSIGN_OR_RETURN(encoder.control_.start_of_turn,
                         FindControl(*tokenizer, row, row.start_of_turn));
  KVIST_ASSIGN_OR_RETURN(encoder.control_.end_of_turn,
                         FindControl(*tokenizer, row, row.end_of_turn));
  if (!row.end_of_header.empty()) {
    KVIST_ASSIGN_OR_RETURN(encoder.control_.end_of_header,
                           FindControl(*tokenizer, row, row.end_of_header));
  }
  return encoder;
}

std::string ChatEncoder::DefaultSystem(std::string_view jinja) {
  for (size_t at = jinja.find(kSystemMark); at != std::string_view::npos;
       at = jinja.find(kSystemMark, at + 1)) {
    if (at == 0) continue;
    const char quote = jinja[at - 1];
    if (quote != '\'' && quote != '"') continue;
    std::string_view literal = jinja.substr(at + kSystemMark.size());
    const size_t end = literal.find(kEndMark);
    if (end == std::string_view::npos) continue;
    literal = literal.substr(0, end);
    // '<|im_start|>system\n' + message['content'] + ... is no default: its literal ends before
    // <|im_end|>.
    if (EndsInside(literal, quote)) continue;
    const std::string text = Unescape(literal);
    if (text.starts_with('\n')) return text.substr(1);
  }
  return {};
}

absl::Status ChatEncoder::CheckRoles(std::span<const ChatMessage> messages, bool continuing) const {
  if (messages.empty()) return InvalidField("messages", "there is none");
  const FormatRow& row = RowOf(format_);
  if (row.has_system_role) return absl::OkStatus();
  size_t first = 0;
  if (messages[0].role == Role::kSystem) {
    if (continuing || messages.size() == 1) {
      return InvalidField("messages", absl::StrCat("in the format ", ToAbsl(row.name),
                                                   " a system message must be followed by the "
                                                   "first user message"));
    }
    first = 1;
  }
  for (size_t i = first; i < messages.size(); ++i) {
    const Role expected = (i - first) % 2 == 0 ? Role::kUser : Role::kAssistant;
    if (messages[i].role != expected) {
      return InvalidField(
          "messages", absl::StrCat("in the format ", ToAbsl(row.name),
                                   " user and assistant must alternate; message ", i, " does not"));
    }
  }
  return absl::OkStatus();
}

void ChatEncoder::AddTurns(std::span<const ChatMessage> messages, Builder& builder) const {
  const FormatRow& row = RowOf(format_);
  const auto add_header = [&](Role role) {
    builder.Control(control_.start_of_turn);
    builder.Text(RoleName(row, role));
    if (!row.end_of_header.empty()) builder.Control(control_.end_of_header);
    builder.Text(row.after_header);
  };
  std::string before_user;  // a system text that the format has no role for
  for (const ChatMessage& message : messages) {
    if (message.role == Role::kSystem && !row.has_system_role) {
      before_user = absl::StrCat(message.content, "\n\n");
      continue;
    }
    add_header(message.role);
    builder.Text(before_user);
    before_user.clear();
    if (row.trims) {
      const absl::string_view trimmed = absl::StripAsciiWhitespace(message.content);
      builder.Text({trimmed.data(), trimmed.size()});
    } else {
      builder.Text(message.content);
    }
    builder.Control(control_.end_of_turn);
    builder.Text(row.after_turn);
  }
  add_header(Role::kAssistant);
}

absl::StatusOr<std::vector<int32_t>> ChatEncoder::EncodeConversation(
    std::span<const ChatMessage> messages) const {
  KVIST_RETURN_IF_ERROR(CheckRoles(messages, /*continuing=*/false));
  std::vector<ChatMessage> all;
  if (!default_system_.empty() && messages[0].role != Role::kSystem) {
    all.push_back({.role = Role::kSystem, .content = default_system_});
  }
  all.insert(all.end(), messages.begin(), messages.end());
  Builder builder(*tokenizer_);
  const Vocabulary& vocabulary = tokenizer_->vocabulary();
  if (vocabulary.add_bos && vocabulary.bos_id) builder.Control(*vocabulary.bos_id);
  AddTurns(all, builder);
  return builder.Take();
}

absl::StatusOr<std::vector<int32_t>> ChatEncoder::EncodeContinuation(
    std::span<const int32_t> history, std::span<const ChatMessage> messages) const {
  if (history.empty()) return InvalidField("history", "is empty");
  KVIST_RETURN_IF_ERROR(CheckRoles(messages, /*continuing=*/true));
  Builder builder(*tokenizer_);
  if (history.back() != control_.end_of_turn) builder.Control(control_.end_of_turn);
  builder.Text(RowOf(format_).after_turn);
  AddTurns(messages, builder);
  return builder.Take();
}

}  // namespace kvist::text
