// Generated token ids to what a client may see: whole characters, nothing of a stop string.
#ifndef KVIST_SERVICES_FRONTEND_OUTPUT_TEXT_H_
#define KVIST_SERVICES_FRONTEND_OUTPUT_TEXT_H_

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/text/tokenizer.h"
#include "common/text/utf8_stream.h"
#include "proto/kvist/v1/types.pb.h"
#include "services/frontend/stop_matcher.h"

namespace kvist::services {

// A token that the client may have now, with its text (empty for a piece of a character or a
// control token).
struct VisibleToken {
  std::optional<v1::Token> token;  // nullopt: only what was left of a character at the very end
  std::string text;
};

// Text is let go token by token: a token is held back as long as its text may be the beginning of a
// stop string. So the text a client has is a function of the number of tokens it has, which is what
// Resume needs. Single-threaded.
class OutputText {
 public:
  // Keeps a pointer to the tokenizer, which must outlive it.
  OutputText(const text::Tokenizer* tokenizer, std::vector<std::string> stop_strings);

  // Takes the next token and appends to `out` what became visible. Returns true when a stop string
  // was found: `out` then holds everything that is kept (a token is kept if its text begins before
  // the match; its text is cut there) and the stream has ended. REQUIRES: no end yet; the id is in
  // the vocabulary.
  bool Push(const v1::Token& token, std::vector<VisibleToken>* out);
  // The end: lets everything go. Returns true if what was left of a character completed a stop
  // string.
  bool Finish(std::vector<VisibleToken>* out);

 private:
  struct Held {
    VisibleToken visible;
    int64_t begin = 0;  // offset of its text in the whole output
  };
  bool Take(std::string_view text, std::vector<VisibleToken>* out);

  const text::Tokenizer* tokenizer_;
  text::Utf8Stream characters_;
  StopMatcher stops_;
  std::deque<Held> held_;
  int64_t end_ = 0;  // bytes of text so far
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_OUTPUT_TEXT_H_
