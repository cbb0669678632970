// Tokens that are found in text as they are spelled, before any other splitting: control tokens
// ("<|im_end|>"), which only trusted text may hold, and user-defined ones, which any text may.
#ifndef KVIST_COMMON_TEXT_SPECIAL_TOKENS_H_
#define KVIST_COMMON_TEXT_SPECIAL_TOKENS_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/text/tokenizer.h"

namespace kvist::text {

// A trie of spellings. Thread-compatible (const after the last Add).
class SpecialTokens {
 public:
  // A stretch of text: either a special token or text to be tokenised further.
  struct Fragment {
    std::string_view text;
    std::optional<int32_t> id;
  };

  SpecialTokens() { nodes_.emplace_back(); }

  // REQUIRES: !spelling.empty().
  void Add(std::string_view spelling, int32_t id, TokenKind kind);

  // Cuts `text` at special tokens, from the left, the longest at each place. Control and unknown
  // tokens count only if `control` says so. O(text size times the longest spelling). The fragments
  // point into `text`; none is empty.
  std::vector<Fragment> Split(std::string_view text, ControlTokens control) const;

  // The token spelled exactly so.
  std::optional<int32_t> Find(std::string_view spelling) const;

 private:
  struct Node {
    int32_t id = -1;       // of the token that ends here, or -1
    bool control = false;  // whether that token needs ControlTokens::kRecognised
  };
  struct Match {
    size_t size_bytes = 0;  // 0: none
    int32_t id = -1;
  };

  static uint64_t EdgeKey(uint32_t node, char byte) {
    return uint64_t{node} << 8 | static_cast<uint8_t>(byte);
  }
  Match LongestAt(std::string_view text, ControlTokens control) const;

  std::vector<Node> nodes_;  // [0] is the root
  absl::flat_hash_map<uint64_t, uint32_t> edges_;
  std::array<bool, 256> starts_{};  // bytes with which some spelling begins
};

}  // namespace kvist::text

#endif  // KVIST_COMMON_TEXT_SPECIAL_TOKENS_H_
