// Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM): words of bytes, joined by a ranked list of merges.
#ifndef KVIST_COMMON_TEXT_BYTE_BPE_H_
#define KVIST_COMMON_TEXT_BYTE_BPE_H_

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "common/text/pair_merger.h"
#include "common/text/special_tokens.h"
#include "common/text/tokenizer.h"

namespace kvist::text {

// As the model's own pipeline (Hugging Face tokenizers), which llama.cpp equals but in corners: a
// byte that the vocabulary has no token for is dropped before merging; Llama 3 takes a word that is
// a token whole, past the merges. Immutable; Thread-safe.
class ByteBpeTokenizer final : public Tokenizer {
 public:
  // INVALID_ARGUMENT for a merge that is not two known pieces making a known one.
  // REQUIRES: the vocabulary passed Tokenizer::Create's checks.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> Create(Vocabulary vocabulary);

  std::vector<int32_t> Encode(std::string_view text, ControlTokens control) const override;
  std::string_view TokenBytes(int32_t id) const override { return token_bytes_[id]; }
  std::optional<int32_t> FindSpecial(std::string_view piece) const override {
    return special_.Find(piece);
  }

 private:
  explicit ByteBpeTokenizer(Vocabulary vocabulary);

  absl::Status AddMerges();
  void EncodeWord(std::string_view word, PairMerger& merger, std::vector<int32_t>* ids) const;

  std::vector<std::string> token_bytes_;  // by id
  SpecialTokens special_;
  std::array<int32_t, 256> byte_ids_;                // the token of each single byte, -1 for none
  absl::flat_hash_map<uint64_t, PairMerge> merges_;  // by left id << 32 | right id
  // Words that are tokens, where the vocabulary prefers them to merging; else empty. Keys point
  // into token_bytes_.
  absl::flat_hash_map<absl::string_view, int32_t> whole_words_;
};

}  // namespace kvist::text

#endif  // KVIST_COMMON_TEXT_BYTE_BPE_H_
