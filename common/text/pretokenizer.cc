#include "common/text/pretokenizer.h"

#include <utf8proc.h>

#include <array>
#include <cstdint>
#include <utility>

#include "common/text/utf8.h"

namespace kvist::text {
namespace {

// The classes that the expressions tell apart.
enum class CharClass : uint8_t { kLetter, kNumber, kSpace, kNewline, kOther, kEnd };

struct Char {
  CharClass cls = CharClass::kEnd;
  char32_t code_point = 0;
  size_t size_bytes = 0;
};

// The Unicode property White_Space, which \s means; utf8proc has no query for it.
bool IsWhiteSpace(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

CharClass ClassOf(char32_t c) {
  if (c == '\n' || c == '\r') return CharClass::kNewline;
  if (IsWhiteSpace(c)) return CharClass::kSpace;
  if (c < 0x80) {
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) return CharClass::kLetter;
    return c >= '0' && c <= '9' ? CharClass::kNumber : CharClass::kOther;
  }
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
      return CharClass::kLetter;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
      return CharClass::kNumber;
    default:
      return CharClass::kOther;
  }
}

bool IsSpace(CharClass cls) { return cls == CharClass::kSpace || cls == CharClass::kNewline; }

// Text with look-ups by byte position; positions are always at character boundaries.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  Char At(size_t position) const {
    if (position >= text_.size()) return {};
    const Utf8Unit unit = DecodeUtf8(text_.substr(position));
    return {ClassOf(unit.code_point), unit.code_point, unit.size_bytes};
  }

  // The end of the longest run of `cls` from `position`, at most `limit` characters.
  size_t RunEnd(size_t position, CharClass cls, size_t limit = SIZE_MAX) const {
    for (size_t taken = 0; taken < limit; ++taken) {
      const Char c = At(position);
      if (c.cls != cls) break;
      position += c.size_bytes;
    }
    return position;
  }

  // The end of a contraction ('s 't 're 've 'm 'll 'd) at `position`, or `position` if there is
  // none.
  size_t ContractionEnd(size_t position, bool ignore_case) const {
    static constexpr std::array<std::string_view, 7> kSuffixes = {"s", "t",  "re", "ve",
                                                                  "m", "ll", "d"};
    if (At(position).code_point != '\'') return position;
    for (const std::string_view suffix : kSuffixes) {
      size_t end = position + 1;
      bool matches = true;
      for (const char expected : suffix) {
        const Char c = At(end);
        matches = matches && Folded(c.code_point, ignore_case) == static_cast<char32_t>(expected);
        end += c.size_bytes;
      }
      if (matches) return end;
    }
    return position;
  }

  // \s+(?!\S)|\s+ : a run of white space leaves its last character to the word that follows.
  // REQUIRES: white space at `position`.
  size_t SpaceEnd(size_t position) const {
    size_t last = position;
    size_t end = position;
    for (Char c = At(end); IsSpace(c.cls); c = At(end)) {
      last = end;
      end += c.size_bytes;
    }
    return end >= text_.size() || last == position ? end : last;
  }

  // \s*[\r\n]+ : up to the last newline of a run of white space; `position` if there is none.
  size_t NewlinesEnd(size_t position) const {
    size_t newline_end = position;
    size_t end = position;
    for (Char c = At(end); IsSpace(c.cls); c = At(end)) {
      end += c.size_bytes;
      if (c.cls == CharClass::kNewline) newline_end = end;
    }
    return newline_end;
  }

 private:
  static char32_t Folded(char32_t c, bool ignore_case) {
    if (!ignore_case) return c;
    if (c == 0x17F)
      return 's';  // LATIN SMALL LETTER LONG S: the only other character that folds to one of these
    return c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c;
  }

  std::string_view text_;
};

size_t Gpt2WordEnd(const Scanner& scan, size_t position) {
  if (const size_t end = scan.ContractionEnd(position, /*ignore_case=*/false); end != position) {
    return end;
  }
  const Char first = scan.At(position);
  const size_t start = first.code_point == ' ' ? position + 1 : position;
  const CharClass cls = scan.At(start).cls;
  if (cls == CharClass::kLetter || cls == CharClass::kNumber || cls == CharClass::kOther) {
    return scan.RunEnd(start, cls);
  }
  return scan.SpaceEnd(position);
}

// The expression of Llama 3 and Qwen 2, which differ in how many digits make a word.
size_t Llama3WordEnd(const Scanner& scan, size_t position, size_t digits) {
  if (const size_t end = scan.ContractionEnd(position, /*ignore_case=*/true); end != position) {
    return end;
  }
  const Char first = scan.At(position);
  if (first.cls == CharClass::kLetter) return scan.RunEnd(position, CharClass::kLetter);
  if (first.cls == CharClass::kNumber) return scan.RunEnd(position, CharClass::kNumber, digits);
  const size_t second = position + first.size_bytes;
  if (first.cls != CharClass::kNewline && scan.At(second).cls == CharClass::kLetter) {
    return scan.RunEnd(second, CharClass::kLetter);
  }
  const size_t start = first.code_point == ' ' ? second : position;
  if (scan.At(start).cls == CharClass::kOther) {
    return scan.RunEnd(scan.RunEnd(start, CharClass::kOther), CharClass::kNewline);
  }
  if (const size_t end = scan.NewlinesEnd(position); end != position) return end;
  return scan.SpaceEnd(position);
}

template <typename WordEnd>
void SplitBy(std::string_view text, const WordEnd& word_end, std::vector<std::string_view>* words) {
  const Scanner scan(text);
  for (size_t position = 0; position < text.size();) {
    const size_t end = word_end(scan, position);
    words->push_back(text.substr(position, end - position));
    position = end;
  }
}

void SplitSmolLm(std::string_view text, std::vector<std::string_view>* words) {
  const Scanner scan(text);
  size_t part = 0;
  for (size_t position = 0; position < text.size();) {
    const Char c = scan.At(position);
    if (c.cls == CharClass::kNumber) {
      SplitBy(text.substr(part, position - part), Gpt2WordEnd, words);
      words->push_back(text.substr(position, c.size_bytes));
      part = position + c.size_bytes;
    }
    position += c.size_bytes;
  }
  SplitBy(text.substr(part), Gpt2WordEnd, words);
}

constexpr std::array<std::pair<std::string_view, Pretokenizer>, 6> kNames = {{
    {"gpt-2", Pretokenizer::kGpt2},
    {"smollm", Pretokenizer::kSmolLm},
    {"llama-bpe", Pretokenizer::kLlamaBpe},
    {"llama3", Pretokenizer::kLlamaBpe},
    {"llama-v3", Pretokenizer::kLlamaBpe},
    {"qwen2", Pretokenizer::kQwen2},
}};

}  // namespace

std::optional<Pretokenizer> PretokenizerFromName(std::string_view name) {
  for (const auto& [known, pretokenizer] : kNames) {
    if (known == name) return pretokenizer;
  }
  return std::nullopt;
}

std::string_view PretokenizerNames() { return "gpt-2, smollm, llama-bpe, qwen2"; }

bool NormalizesNfc(Pretokenizer pretokenizer) { return pretokenizer == Pretokenizer::kQwen2; }

void SplitWords(Pretokenizer pretokenizer, std::string_view text,
                std::vector<std::string_view>* words) {
  switch (pretokenizer) {
    case Pretokenizer::kNone:
      if (!text.empty()) words->push_back(text);
      return;
    case Pretokenizer::kGpt2:
      return SplitBy(text, Gpt2WordEnd, words);
    case Pretokenizer::kSmolLm:
      return SplitSmolLm(text, words);
    case Pretokenizer::kLlamaBpe:
      return SplitBy(
          text, [](const Scanner& s, size_t p) { return Llama3WordEnd(s, p, 3); }, words);
    case Pretokenizer::kQwen2:
      return SplitBy(
          text, [](const Scanner& s, size_t p) { return Llama3WordEnd(s, p, 1); }, words);
  }
}

}  // namespace kvist::text
