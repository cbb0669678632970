#include "common/text/utf8_stream.h"

#include "common/text/utf8.h"

namespace kvist::text {

std::string Utf8Stream::Push(std::string_view bytes) {
  // pending_ is at most 3 bytes, so joining costs one copy of the input.
  std::string joined;
  std::string_view rest = bytes;
  if (!pending_.empty()) {
    joined = std::move(pending_);
    pending_.clear();
    joined.append(bytes);
    rest = joined;
  }
  std::string text;
  text.reserve(rest.size());
  while (!rest.empty()) {
    const Utf8Unit unit = DecodeUtf8(rest);
    if (unit.state == Utf8Unit::State::kUnfinished) {
      pending_ = std::string(rest);
      break;
    }
    text.append(unit.state == Utf8Unit::State::kCharacter ? rest.substr(0, unit.size_bytes)
                                                          : kReplacementCharacter);
    rest.remove_prefix(unit.size_bytes);
  }
  return text;
}

std::string Utf8Stream::Finish() {
  if (pending_.empty()) return {};
  pending_.clear();
  return std::string(kReplacementCharacter);
}

}  // namespace kvist::text
