// UTF-8, one character at a time (Unicode 15, section 3.9, table 3-7).
#ifndef KVIST_COMMON_TEXT_UTF8_H_
#define KVIST_COMMON_TEXT_UTF8_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace kvist::text {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

// What stands at the start of some bytes.
struct Utf8Unit {
  enum class State : uint8_t {
    kCharacter,   // a whole character
    kInvalid,     // a maximal subpart that no further byte can complete
    kUnfinished,  // the bytes end inside a character that could still become whole
  };
  State state = State::kCharacter;
  char32_t code_point = 0;  // of a whole character
  size_t size_bytes = 0;    // at least 1
};

// REQUIRES: !bytes.empty().
Utf8Unit DecodeUtf8(std::string_view bytes);

bool IsValidUtf8(std::string_view bytes);

// `bytes` with U+FFFD in place of each maximal subpart that is no character. Valid text comes back
// as it was.
std::string ReplaceInvalidUtf8(std::string_view bytes);

// Appends `code_point`, a Unicode scalar value, to `*text`.
void AppendUtf8(char32_t code_point, std::string* text);

}  // namespace kvist::text

#endif  // KVIST_COMMON_TEXT_UTF8_H_
