// Splitting text into words before byte-level BPE. Each splitter is a hand-written state machine
// that equals the regular expression its vocabulary was trained with (no std::regex: it recurses
// per character and knows no Unicode).
#ifndef KVIST_COMMON_TEXT_PRETOKENIZER_H_
#define KVIST_COMMON_TEXT_PRETOKENIZER_H_

#include <optional>
#include <string_view>
#include <vector>

#include "common/text/tokenizer.h"

namespace kvist::text {

// The splitter of a file's `tokenizer.ggml.pre`; nullopt for an unknown name.
std::optional<Pretokenizer> PretokenizerFromName(std::string_view name);
// Names that PretokenizerFromName knows, for messages.
std::string_view PretokenizerNames();

// Whether text is brought into normalisation form C first (as Qwen's own tokenizer does; llama.cpp
// does not).
bool NormalizesNfc(Pretokenizer pretokenizer);

// Appends the words of `text`, which together are all of it, to `*words`; they point into `text`.
// Linear time. kNone gives the whole text as one word.
//
//   kGpt2      's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//   kSmolLm    first each \p{N} by itself, then kGpt2 on what lies between
//   kLlamaBpe  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}
//              | ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
//   kQwen2     as kLlamaBpe with \p{N} in place of \p{N}{1,3}
//
// REQUIRES: text is valid UTF-8.
void SplitWords(Pretokenizer pretokenizer, std::string_view text,
                std::vector<std::string_view>* words);

}  // namespace kvist::text

#endif  // KVIST_COMMON_TEXT_PRETOKENIZER_H_
