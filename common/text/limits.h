// Limits on vocabularies. They come from files and from other processes, and are untrusted until
// Tokenizer::Create has checked them.
#ifndef KVIST_COMMON_TEXT_LIMITS_H_
#define KVIST_COMMON_TEXT_LIMITS_H_

#include <cstddef>

namespace kvist::text {

// Tokens. The largest published vocabularies have 262,144; each costs about 150 bytes in the
// tables.
inline constexpr size_t kMaxVocabularyTokens = 1 << 20;
// Merges of a byte-level vocabulary: published ones have up to 600,000.
inline constexpr size_t kMaxMerges = 4 << 20;
// Bytes of one piece in the file's spelling. Bounds the work per position of the text; the longest
// in use are runs of spaces, below 300.
inline constexpr size_t kMaxPieceBytes = 1024;
// Ids that end a generation: each is compared with each new token.
inline constexpr size_t kMaxStopIds = 64;
// Bytes of a chat template; published ones are below 100 KB.
inline constexpr size_t kMaxChatTemplateBytes = 1 << 20;

}  // namespace kvist::text

#endif  // KVIST_COMMON_TEXT_LIMITS_H_
