// SentencePiece BPE (Gemma, Llama 2): characters joined by the score of the piece they make.
#ifndef KVIST_COMMON_TEXT_SENTENCEPIECE_BPE_H_
#define KVIST_COMMON_TEXT_SENTENCEPIECE_BPE_H_

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/text/pair_merger.h"
#include "common/text/special_tokens.h"
#include "common/text/tokenizer.h"

namespace kvist::text {

// Spaces are spelled U+2581. The neighbours that make the piece of the highest score are joined
// first, the leftmost of equals. A character without a piece becomes its bytes ("<0x0A>"), or the
// unknown token where there are no byte pieces. Immutable; Thread-safe.
class SentencePieceBpeTokenizer final : public Tokenizer {
 public:
  // REQUIRES: the vocabulary passed Tokenizer::Create's checks.
  explicit SentencePieceBpeTokenizer(Vocabulary vocabulary);

  std::vector<int32_t> Encode(std::string_view text, ControlTokens control) const override;
  std::string_view TokenBytes(int32_t id) const override { return token_bytes_[id]; }
  std::optional<int32_t> FindSpecial(std::string_view piece) const override {
    return special_.Find(piece);
  }

 private:
  // `text` has its spaces spelled U+2581 already.
  void EncodePlain(std::string_view text, PairMerger& merger, std::vector<int32_t>* ids) const;
  void EmitSymbol(const Symbol& symbol, std::string_view text, std::vector<int32_t>* ids) const;
  int32_t FindPiece(std::string_view piece) const;  // -1: none

  std::vector<std::string> token_bytes_;  // by id
  SpecialTokens special_;                 // spellings with spaces as U+2581
  std::array<int32_t, 256> byte_ids_;     // the byte pieces, -1 for none
  absl::flat_hash_map<absl::string_view, int32_t>
      pieces_;                      // what plain text may become; keys point into the vocabulary
  size_t longest_piece_bytes_ = 0;  // of pieces_
};

}  // namespace kvist::text

#endif  // KVIST_COMMON_TEXT_SENTENCEPIECE_BPE_H_
