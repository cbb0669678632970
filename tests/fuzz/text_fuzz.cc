// Feeds arbitrary bytes to the tokenizers and to the UTF-8 stream, and checks what must hold for
// any text. The first byte chooses the tokenizer, the second where the stream's input is split.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/base/check.h"
#include "common/text/tokenizer.h"
#include "common/text/utf8.h"
#include "common/text/utf8_stream.h"

namespace kvist::text {
namespace {

constexpr size_t kTokenizers = 5;

void AppendSpecials(Vocabulary& v) {
  for (const char* piece : {"<|im_start|>", "<|im_end|>", "<t>"}) {
    v.pieces.emplace_back(piece);
    v.kinds.push_back(TokenKind::kControl);
  }
  v.kinds.back() = TokenKind::kUserDefined;
}

// All bytes and a few merges, so that every text survives encoding and decoding.
Vocabulary ByteVocabulary(Pretokenizer pretokenizer) {
  Vocabulary v;
  v.algorithm = Algorithm::kByteBpe;
  v.pretokenizer = pretokenizer;
  char32_t substitute = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool own =
        (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    v.pieces.emplace_back();
    AppendUtf8(own ? static_cast<char32_t>(byte) : substitute++, &v.pieces.back());
  }
  for (const auto& [left, right] :
       {std::pair{"a", "a"}, {"aa", "aa"}, {"\u0120", "t"}, {"1", "2"}}) {
    v.merges.push_back(absl::StrFormat("%s %s", left, right));
    v.pieces.push_back(absl::StrFormat("%s%s", left, right));
  }
  v.kinds.assign(v.pieces.size(), TokenKind::kNormal);
  AppendSpecials(v);
  return v;
}

Vocabulary SentencePieceVocabulary() {
  Vocabulary v;
  v.algorithm = Algorithm::kSentencePieceBpe;
  for (int byte = 0; byte < 256; ++byte) v.pieces.push_back(absl::StrFormat("<0x%02X>", byte));
  v.kinds.assign(256, TokenKind::kByte);
  for (const char* piece : {"\u2581", "a", "aa", "aaaa", "\u2581t", "\u00e9"}) {
    v.pieces.emplace_back(piece);
    v.kinds.push_back(TokenKind::kNormal);
  }
  AppendSpecials(v);
  for (size_t i = 0; i < v.pieces.size(); ++i) v.scores.push_back(-static_cast<float>(i));
  return v;
}

std::unique_ptr<const Tokenizer> Make(Vocabulary vocabulary) {
  auto tokenizer = Tokenizer::Create(std::move(vocabulary));
  KVIST_CHECK(tokenizer.ok());
  return *std::move(tokenizer);
}

const Tokenizer& TokenizerAt(size_t index) {
  static const std::array<std::unique_ptr<const Tokenizer>, kTokenizers> kAll = {
      Make(ByteVocabulary(Pretokenizer::kGpt2)), Make(ByteVocabulary(Pretokenizer::kSmolLm)),
      Make(ByteVocabulary(Pretokenizer::kLlamaBpe)), Make(ByteVocabulary(Pretokenizer::kQwen2)),
      Make(SentencePieceVocabulary())};
  return *kAll[index];
}

void CheckStream(std::string_view bytes, size_t part_bytes) {
  Utf8Stream stream;
  std::string text;
  for (size_t begin = 0; begin < bytes.size(); begin += part_bytes) {
    text += stream.Push(bytes.substr(begin, part_bytes));
    KVIST_CHECK(IsValidUtf8(text));
  }
  text += stream.Finish();
  KVIST_CHECK(text == ReplaceInvalidUtf8(bytes));
}

void CheckTokenizer(const Tokenizer& tokenizer, std::string_view bytes) {
  const std::vector<int32_t> ids = tokenizer.Encode(bytes, ControlTokens::kPlain);
  for (const int32_t id : ids) {
    KVIST_CHECK(id >= 0 && id < tokenizer.size());
    KVIST_CHECK(!tokenizer.IsControl(id));
  }
  const std::string decoded = tokenizer.Decode(ids);
  // Normalisation (Qwen 2) and U+2581 (SentencePiece) change text; nothing else may.
  const bool keeps_text = tokenizer.vocabulary().algorithm == Algorithm::kByteBpe &&
                          tokenizer.vocabulary().pretokenizer != Pretokenizer::kQwen2;
  if (keeps_text) KVIST_CHECK(decoded == ReplaceInvalidUtf8(bytes));
  KVIST_CHECK(tokenizer.Decode(tokenizer.Encode(decoded, ControlTokens::kPlain)) == decoded);
  KVIST_CHECK(tokenizer.Encode(bytes, ControlTokens::kPlain) == ids);
  const std::vector<int32_t> trusted = tokenizer.Encode(bytes, ControlTokens::kRecognised);
  if (keeps_text) KVIST_CHECK(tokenizer.Decode(trusted) == decoded);
}

}  // namespace
}  // namespace kvist::text

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 2, size - 2);
  kvist::text::CheckStream(bytes, 1 + data[1] % 8);
  kvist::text::CheckTokenizer(kvist::text::TokenizerAt(data[0] % kvist::text::kTokenizers), bytes);
  return 0;
}
