#include "services/frontend/output_text.h"

#include <utility>

namespace kvist::services {

OutputText::OutputText(const text::Tokenizer* tokenizer, std::vector<std::string> stop_strings)
    : tokenizer_(tokenizer), stops_(std::move(stop_strings)) {}

bool OutputText::Push(const v1::Token& token, std::vector<VisibleToken>* out) {
  held_.push_back({.visible = {.token = token, .text = {}}, .begin = end_});
  // Control tokens (an end of turn) are ids for the next turn, not text for a reader.
  if (tokenizer_->IsControl(token.id())) return Take({}, out);
  return Take(characters_.Push(tokenizer_->TokenBytes(token.id())), out);
}

bool OutputText::Finish(std::vector<VisibleToken>* out) {
  std::string rest = characters_.Finish();
  if (held_.empty()) {
    // The last token is out already; what is left of a character can only follow it.
    if (!rest.empty()) out->push_back({.token = std::nullopt, .text = std::move(rest)});
    return false;
  }
  if (Take(rest, out)) return true;
  for (Held& held : held_) out->push_back(std::move(held.visible));
  held_.clear();
  return false;
}

// `text` belongs to the last held token.
bool OutputText::Take(std::string_view text, std::vector<VisibleToken>* out) {
  const auto match = stops_.Push(text);
  end_ += static_cast<int64_t>(text.size());
  held_.back().visible.text += text;
  if (match.has_value()) {
    for (Held& held : held_) {
      if (held.begin >= *match) break;
      const auto left = static_cast<size_t>(*match - held.begin);
      if (held.visible.text.size() > left) held.visible.text.resize(left);
      out->push_back(std::move(held.visible));
    }
    held_.clear();
    return true;
  }
  while (!held_.empty()) {
    const auto length = static_cast<int64_t>(held_.front().visible.text.size());
    if (held_.front().begin + length > stops_.safe_offset()) break;
    out->push_back(std::move(held_.front().visible));
    held_.pop_front();
  }
  return false;
}

}  // namespace kvist::services
