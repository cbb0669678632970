// Stop strings in a stream of text.
#ifndef KVIST_SERVICES_FRONTEND_STOP_MATCHER_H_
#define KVIST_SERVICES_FRONTEND_STOP_MATCHER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kvist::services {

// Finds the stop string that ends first (of several that end together, the one that begins first),
// however the text is cut into pieces. Offsets count bytes from the beginning of the stream.
// Single-threaded.
class StopMatcher {
 public:
  // REQUIRES: each is UTF-8 of at least one byte. None at all matches nothing.
  explicit StopMatcher(std::vector<std::string> stops);

  // Takes more text. Returns where the match begins once there is one; after that takes nothing
  // more.
  std::optional<int64_t> Push(std::string_view text);
  // Text before this offset can be part of no match any more.
  int64_t safe_offset() const { return safe_offset_; }

 private:
  void UpdateSafeOffset();

  std::vector<std::string> stops_;
  size_t longest_ = 0;
  std::string tail_;        // the last longest_ - 1 bytes of the stream, at most
  int64_t end_offset_ = 0;  // bytes pushed
  int64_t safe_offset_ = 0;
  std::optional<int64_t> match_;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_STOP_MATCHER_H_
