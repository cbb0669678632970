#include "common/text/utf8.h"

#include "common/text/utf8_stream.h"

namespace kvist::text {
namespace {

// What a lead byte allows: how many bytes follow it, and the range of the first of them.
struct Lead {
  size_t trailing = 0;
  uint8_t second_low = 0x80;
  uint8_t second_high = 0xBF;
  bool valid = true;
};

Lead LeadOf(uint8_t byte) {
  if (byte < 0x80) return {.trailing = 0};
  if (byte >= 0xC2 && byte <= 0xDF) return {.trailing = 1};
  if (byte == 0xE0) return {.trailing = 2, .second_low = 0xA0};   // no overlong forms
  if (byte == 0xED) return {.trailing = 2, .second_high = 0x9F};  // no surrogates
  if (byte >= 0xE1 && byte <= 0xEF) return {.trailing = 2};
  if (byte == 0xF0) return {.trailing = 3, .second_low = 0x90};
  if (byte >= 0xF1 && byte <= 0xF3) return {.trailing = 3};
  if (byte == 0xF4) return {.trailing = 3, .second_high = 0x8F};  // up to U+10FFFF
  return {.valid = false};
}

}  // namespace

Utf8Unit DecodeUtf8(std::string_view bytes) {
  using State = Utf8Unit::State;
  const uint8_t first = static_cast<uint8_t>(bytes[0]);
  const Lead lead = LeadOf(first);
  if (!lead.valid) return {.state = State::kInvalid, .size_bytes = 1};
  if (lead.trailing == 0) return {.code_point = first, .size_bytes = 1};
  char32_t code_point = first & (0x3Fu >> lead.trailing);
  for (size_t i = 1; i <= lead.trailing; ++i) {
    if (i >= bytes.size()) return {.state = State::kUnfinished, .size_bytes = i};
    const uint8_t byte = static_cast<uint8_t>(bytes[i]);
    const uint8_t low = i == 1 ? lead.second_low : 0x80;
    const uint8_t high = i == 1 ? lead.second_high : 0xBF;
    if (byte < low || byte > high) return {.state = State::kInvalid, .size_bytes = i};
    code_point = (code_point << 6) | (byte & 0x3Fu);
  }
  return {.code_point = code_point, .size_bytes = lead.trailing + 1};
}

bool IsValidUtf8(std::string_view bytes) {
  while (!bytes.empty()) {
    const Utf8Unit unit = DecodeUtf8(bytes);
    if (unit.state != Utf8Unit::State::kCharacter) return false;
    bytes.remove_prefix(unit.size_bytes);
  }
  return true;
}

std::string ReplaceInvalidUtf8(std::string_view bytes) {
  Utf8Stream stream;
  std::string text = stream.Push(bytes);
  text += stream.Finish();
  return text;
}

void AppendUtf8(char32_t code_point, std::string* text) {
  const auto trailing = [code_point](int shift) {
    return static_cast<char>(0x80 | ((code_point >> shift) & 0x3F));
  };
  if (code_point < 0x80) {
    text->push_back(static_cast<char>(code_point));
  } else if (code_point < 0x800) {
    text->push_back(static_cast<char>(0xC0 | (code_point >> 6)));
    text->push_back(trailing(0));
  } else if (code_point < 0x10000) {
    text->push_back(static_cast<char>(0xE0 | (code_point >> 12)));
    text->push_back(trailing(6));
    text->push_back(trailing(0));
  } else {
    text->push_back(static_cast<char>(0xF0 | (code_point >> 18)));
    text->push_back(trailing(12));
    text->push_back(trailing(6));
    text->push_back(trailing(0));
  }
}

}  // namespace kvist::text
