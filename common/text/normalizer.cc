#include "common/text/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "common/base/check.h"
#include "common/text/utf8.h"

namespace kvist::text {
namespace {

int CombiningClass(utf8proc_int32_t code_point) {
  return utf8proc_get_property(code_point)->combining_class;
}

// Canonical decomposition, not yet in canonical order.
std::vector<utf8proc_int32_t> Decompose(std::string_view text) {
  std::vector<utf8proc_int32_t> code_points;
  code_points.reserve(text.size());
  // The longest canonical decomposition of one character has 4 code points.
  std::array<utf8proc_int32_t, 16> buffer{};
  while (!text.empty()) {
    const Utf8Unit unit = DecodeUtf8(text);
    int boundary = 0;
    const utf8proc_ssize_t count = utf8proc_decompose_char(
        static_cast<utf8proc_int32_t>(unit.code_point), buffer.data(), buffer.size(),
        static_cast<utf8proc_option_t>(UTF8PROC_DECOMPOSE | UTF8PROC_STABLE), &boundary);
    KVIST_CHECK(count >= 0 && static_cast<size_t>(count) <= buffer.size());
    code_points.insert(code_points.end(), buffer.begin(), buffer.begin() + count);
    text.remove_prefix(unit.size_bytes);
  }
  return code_points;
}

// utf8proc's own reordering is an exchange sort: quadratic on a long run of combining marks. This
// one sorts each run.
void OrderMarks(std::vector<utf8proc_int32_t>& code_points) {
  const auto is_mark = [](utf8proc_int32_t c) { return CombiningClass(c) != 0; };
  auto begin = code_points.begin();
  while (true) {
    begin = std::find_if(begin, code_points.end(), is_mark);
    if (begin == code_points.end()) return;
    const auto end = std::find_if_not(begin, code_points.end(), is_mark);
    std::stable_sort(begin, end, [](utf8proc_int32_t a, utf8proc_int32_t b) {
      return CombiningClass(a) < CombiningClass(b);
    });
    begin = end;
  }
}

}  // namespace

std::string NormalizeNfc(std::string_view text) {
  // Below U+0300 (lead bytes up to 0xCB) every text is in form C already.
  const bool normal =
      std::all_of(text.begin(), text.end(), [](char c) { return static_cast<uint8_t>(c) < 0xCC; });
  if (normal) return std::string(text);
  std::vector<utf8proc_int32_t> code_points = Decompose(text);
  OrderMarks(code_points);
  const utf8proc_ssize_t count = utf8proc_normalize_utf32(
      code_points.data(), static_cast<utf8proc_ssize_t>(code_points.size()),
      static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
  KVIST_CHECK(count >= 0);
  std::string normalized;
  normalized.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < count; ++i) {
    AppendUtf8(static_cast<char32_t>(code_points[static_cast<size_t>(i)]), &normalized);
  }
  return normalized;
}

}  // namespace kvist::text
