// Streaming bytes to whole characters.
#ifndef KVIST_COMMON_TEXT_UTF8_STREAM_H_
#define KVIST_COMMON_TEXT_UTF8_STREAM_H_

#include <string>
#include <string_view>

namespace kvist::text {

// Holds back an unfinished UTF-8 character until its bytes are there. Output is always valid UTF-8:
// bytes that can belong to no character become U+FFFD (one per maximal subpart, Unicode 15,
// section 3.9). Single-threaded.
class Utf8Stream {
 public:
  // Takes more bytes; returns the characters that are complete now.
  std::string Push(std::string_view bytes);
  // The end: an unfinished character becomes U+FFFD. The stream is empty afterwards.
  std::string Finish();

 private:
  std::string pending_;  // at most 3 bytes
};

}  // namespace kvist::text

#endif  // KVIST_COMMON_TEXT_UTF8_STREAM_H_
