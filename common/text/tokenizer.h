// Text to token ids and back, over a vocabulary that came from a model file or from a worker.
#ifndef KVIST_COMMON_TEXT_TOKENIZER_H_
#define KVIST_COMMON_TEXT_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/gguf/gguf_file.h"

namespace kvist::text {

enum class TokenKind : uint8_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };
enum class Algorithm : uint8_t { kByteBpe, kSentencePieceBpe };
enum class Pretokenizer : uint8_t { kNone, kGpt2, kSmolLm, kLlamaBpe, kQwen2 };

// Everything about a model's text side, as plain data: read from a file by the worker, sent to
// frontends (GetModel).
struct Vocabulary {
  Algorithm algorithm = Algorithm::kByteBpe;
  Pretokenizer pretokenizer = Pretokenizer::kNone;
  std::vector<std::string>
      pieces;  // by token id, in the file's spelling (byte-level BPE: mapped characters)
  std::vector<float> scores;        // by token id; SentencePiece only
  std::vector<TokenKind> kinds;     // by token id
  std::vector<std::string> merges;  // "left right", best first; byte-level BPE only
  std::optional<int32_t> bos_id, eos_id, unknown_id;
  std::vector<int32_t> stop_ids;  // ids that end a generation: eos, end of turn, ...
  bool add_bos = false;           // prompts begin with bos_id
  bool add_eos = false;
  bool add_space_prefix = false;
  std::string
      chat_template;  // the file's Jinja text, only ever recognised, never executed; may be empty
};

// Reads the tokenizer.* keys. INVALID_ARGUMENT naming the key for a wrong or missing one or an
// unknown model or pre-tokenizer.
absl::StatusOr<Vocabulary> ReadVocabulary(const gguf::File& file);

// Whether control tokens written in the text ("<|im_end|>") become their ids. Untrusted text is
// always kPlain. User-defined tokens are recognised either way.
enum class ControlTokens { kPlain, kRecognised };

// Immutable after construction; Thread-safe.
class Tokenizer {
 public:
  // Checks the vocabulary as untrusted data. INVALID_ARGUMENT naming what is wrong.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> Create(Vocabulary vocabulary);
  virtual ~Tokenizer() = default;

  // Ids of `text` (UTF-8; invalid bytes are handled as the reference implementations do), with no
  // BOS or other token added. Time and memory are linear in the text up to a logarithm, hostile
  // text included.
  virtual std::vector<int32_t> Encode(std::string_view text, ControlTokens control) const = 0;
  // The bytes that `id` stands for (may be part of a character). Control tokens give their
  // spelling. REQUIRES: 0 <= id < size().
  virtual std::string_view TokenBytes(int32_t id) const = 0;
  // Concatenated bytes, as UTF-8 with U+FFFD for what is no character. REQUIRES: ids in range.
  std::string Decode(std::span<const int32_t> ids) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }
  int32_t size() const { return static_cast<int32_t>(vocabulary_.pieces.size()); }
  bool IsControl(int32_t id) const { return vocabulary_.kinds[id] == TokenKind::kControl; }
  bool IsStop(int32_t id) const;
  // The control or user-defined token spelled `piece`, if there is one.
  virtual std::optional<int32_t> FindSpecial(std::string_view piece) const = 0;

 protected:
  explicit Tokenizer(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {}

 private:
  Vocabulary vocabulary_;
};

}  // namespace kvist::text

#endif  // KVIST_COMMON_TEXT_TOKENIZER_H_
