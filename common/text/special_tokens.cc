#include "common/text/special_tokens.h"

namespace kvist::text {

void SpecialTokens::Add(std::string_view spelling, int32_t id, TokenKind kind) {
  uint32_t node = 0;
  starts_[static_cast<uint8_t>(spelling.front())] = true;
  for (const char byte : spelling) {
    const auto [edge, added] =
        edges_.try_emplace(EdgeKey(node, byte), static_cast<uint32_t>(nodes_.size()));
    if (added) nodes_.emplace_back();
    node = edge->second;
  }
  nodes_[node] = {.id = id, .control = kind != TokenKind::kUserDefined};
}

SpecialTokens::Match SpecialTokens::LongestAt(std::string_view text, ControlTokens control) const {
  Match match;
  uint32_t node = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto edge = edges_.find(EdgeKey(node, text[i]));
    if (edge == edges_.end()) break;
    node = edge->second;
    const Node& end = nodes_[node];
    if (end.id >= 0 && (!end.control || control == ControlTokens::kRecognised)) {
      match = {.size_bytes = i + 1, .id = end.id};
    }
  }
  return match;
}

std::vector<SpecialTokens::Fragment> SpecialTokens::Split(std::string_view text,
                                                          ControlTokens control) const {
  std::vector<Fragment> fragments;
  size_t plain = 0;  // where the text not yet in a fragment begins
  for (size_t position = 0; position < text.size();) {
    if (!starts_[static_cast<uint8_t>(text[position])]) {
      ++position;
      continue;
    }
    const Match match = LongestAt(text.substr(position), control);
    if (match.size_bytes == 0) {
      ++position;
      continue;
    }
    if (position > plain) {
      fragments.push_back({text.substr(plain, position - plain), std::nullopt});
    }
    fragments.push_back({text.substr(position, match.size_bytes), match.id});
    position += match.size_bytes;
    plain = position;
  }
  if (plain < text.size()) fragments.push_back({text.substr(plain), std::nullopt});
  return fragments;
}

std::optional<int32_t> SpecialTokens::Find(std::string_view spelling) const {
  uint32_t node = 0;
  for (const char byte : spelling) {
    const auto edge = edges_.find(EdgeKey(node, byte));
    if (edge == edges_.end()) return std::nullopt;
    node = edge->second;
  }
  if (nodes_[node].id < 0) return std::nullopt;
  return nodes_[node].id;
}

}  // namespace kvist::text
