// A vocabulary whose tokens are easy to read in a test.
#ifndef KVIST_TESTS_SERVICES_FRONTEND_LETTER_VOCABULARY_H_
#define KVIST_TESTS_SERVICES_FRONTEND_LETTER_VOCABULARY_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "common/text/tokenizer.h"

namespace kvist::services {

// Byte-level: ids 0 .. 93 are the characters '!' .. '~', then space, newline, the two bytes of
// U+00E9 (é), the pair "ab", and the control tokens of ChatML.
inline constexpr int32_t kSpaceId = 94;
inline constexpr int32_t kNewlineId = 95;
inline constexpr int32_t kByteC3Id = 96;
inline constexpr int32_t kByteA9Id = 97;
inline constexpr int32_t kAbId = 98;
inline constexpr int32_t kStartId = 99;
inline constexpr int32_t kEndId = 100;  // ends a generation
inline constexpr int32_t kLetterVocabularySize = 101;

inline text::Vocabulary LetterVocabulary() {
  text::Vocabulary vocabulary;
  for (char c = '!'; c <= '~'; ++c) vocabulary.pieces.emplace_back(1, c);
  for (const char* piece : {"\u0120", "\u010a", "\u00c3", "\u00a9", "ab"}) {
    vocabulary.pieces.emplace_back(piece);
  }
  vocabulary.kinds.assign(vocabulary.pieces.size(), text::TokenKind::kNormal);
  for (const char* piece : {"<|im_start|>", "<|im_end|>"}) {
    vocabulary.pieces.emplace_back(piece);
    vocabulary.kinds.push_back(text::TokenKind::kControl);
  }
  vocabulary.eos_id = kEndId;
  vocabulary.stop_ids = {kEndId};
  vocabulary.chat_template = "<|im_start|> <|im_end|>";
  return vocabulary;
}

inline std::unique_ptr<const text::Tokenizer> LetterTokenizer() {
  return text::Tokenizer::Create(LetterVocabulary()).value();
}

// The id of a character from '!' to '~'.
inline int32_t LetterId(char c) { return c - '!'; }

}  // namespace kvist::services

#endif  // KVIST_TESTS_SERVICES_FRONTEND_LETTER_VOCABULARY_H_
