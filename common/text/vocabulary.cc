// Reading a Vocabulary from a model file's metadata.
#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/gguf/gguf_file.h"
#include "common/text/limits.h"
#include "common/text/pretokenizer.h"
#include "common/text/tokenizer.h"
#include "common/text/utf8.h"

namespace kvist::text {
namespace {

constexpr std::string_view kModelKey = "tokenizer.ggml.model";
constexpr std::string_view kPreKey = "tokenizer.ggml.pre";
constexpr std::string_view kTokensKey = "tokenizer.ggml.tokens";
constexpr std::string_view kScoresKey = "tokenizer.ggml.scores";
constexpr std::string_view kKindsKey = "tokenizer.ggml.token_type";
constexpr std::string_view kMergesKey = "tokenizer.ggml.merges";
constexpr std::string_view kTemplateKey = "tokenizer.chat_template";

// Spellings that have ended an answer in published chat models; files do not list them all as end
// of sequence.
constexpr std::array<std::string_view, 6> kStopSpellings = {
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>", "<|endoftext|>"};

// Spellings that are control tokens whatever the file says: some converted files mark them
// user-defined or normal, and then text from a user could open and close turns. (llama.cpp
// overrides them for the same reason.)
constexpr std::array<std::string_view, 12> kAlwaysControl = {
    "<|im_start|>",      "<|im_end|>",      "<|endoftext|>", "<|begin_of_text|>",
    "<|eot_id|>",        "<|end_of_text|>", "<|eom_id|>",    "<|start_header_id|>",
    "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>", "<bos>"};

template <size_t N>
bool Contains(const std::array<std::string_view, N>& all, std::string_view one) {
  return std::find(all.begin(), all.end(), one) != all.end();
}

// The id under `key`; nullopt if the key is absent.
absl::StatusOr<std::optional<int32_t>> ReadId(const gguf::File& file, std::string_view key,
                                              size_t tokens) {
  if (file.FindValue(key) == nullptr) return std::optional<int32_t>();
  KVIST_ASSIGN_OR_RETURN(const int64_t id, file.GetInt(key));
  if (id < 0 || static_cast<uint64_t>(id) >= tokens) {
    return InvalidField(key, absl::StrCat(id, " is no token of this vocabulary"));
  }
  return std::optional<int32_t>(static_cast<int32_t>(id));
}

absl::StatusOr<bool> ReadFlag(const gguf::File& file, std::string_view key, bool otherwise) {
  if (file.FindValue(key) == nullptr) return otherwise;
  return file.GetBool(key);
}

// A look-up in which absence is the file's fault.
absl::Status Required(const absl::Status& status, std::string_view key) {
  if (!absl::IsNotFound(status)) return status;
  return InvalidField(key, "the key is missing");
}

absl::Status ReadAlgorithm(const gguf::File& file, Vocabulary* vocabulary) {
  const absl::StatusOr<std::string> model = file.GetString(kModelKey);
  if (!model.ok()) return Required(model.status(), kModelKey);
  if (*model == "llama") {
    vocabulary->algorithm = Algorithm::kSentencePieceBpe;
    vocabulary->pretokenizer = Pretokenizer::kNone;
    return absl::OkStatus();
  }
  if (*model != "gpt2") {
    return InvalidField(kModelKey,
                        absl::StrCat("'", *model, "' is unknown (gpt2 and llama are known)"));
  }
  vocabulary->algorithm = Algorithm::kByteBpe;
  const absl::StatusOr<std::string> pre = file.GetString(kPreKey);
  if (!pre.ok()) return Required(pre.status(), kPreKey);
  const std::optional<Pretokenizer> pretokenizer = PretokenizerFromName(*pre);
  if (!pretokenizer) {
    return InvalidField(
        kPreKey, absl::StrCat("'", *pre, "' is unknown; known: ", ToAbsl(PretokenizerNames())));
  }
  vocabulary->pretokenizer = *pretokenizer;
  return absl::OkStatus();
}

absl::Status ReadPieces(const gguf::File& file, Vocabulary* vocabulary) {
  const auto pieces = file.GetStrings(kTokensKey);
  if (!pieces.ok()) return Required(pieces.status(), kTokensKey);
  const auto kinds = file.GetInts(kKindsKey);
  if (!kinds.ok()) return Required(kinds.status(), kKindsKey);
  vocabulary->pieces = **pieces;
  if ((*kinds)->size() != vocabulary->pieces.size()) {
    return InvalidField(kKindsKey, absl::StrCat((*kinds)->size(), " entries for ",
                                                vocabulary->pieces.size(), " tokens"));
  }
  for (size_t i = 0; i < vocabulary->pieces.size(); ++i) {
    const int64_t number = (**kinds)[i];
    if (number < static_cast<int64_t>(TokenKind::kNormal) ||
        number > static_cast<int64_t>(TokenKind::kByte)) {
      return InvalidField(kKindsKey, absl::StrCat("token ", i, " has the unknown type ", number));
    }
    vocabulary->kinds.push_back(Contains(kAlwaysControl, vocabulary->pieces[i])
                                    ? TokenKind::kControl
                                    : static_cast<TokenKind>(number));
  }
  if (vocabulary->algorithm == Algorithm::kSentencePieceBpe) {
    const auto scores = file.GetFloats(kScoresKey);
    if (!scores.ok()) return Required(scores.status(), kScoresKey);
    vocabulary->scores = **scores;
    if (vocabulary->scores.size() != vocabulary->pieces.size()) {
      return InvalidField(kScoresKey, absl::StrCat(vocabulary->scores.size(), " entries for ",
                                                   vocabulary->pieces.size(), " tokens"));
    }
    return absl::OkStatus();
  }
  const auto merges = file.GetStrings(kMergesKey);
  if (!merges.ok()) return Required(merges.status(), kMergesKey);
  vocabulary->merges = **merges;
  return absl::OkStatus();
}

absl::Status ReadSpecialIds(const gguf::File& file, Vocabulary* vocabulary) {
  const size_t tokens = vocabulary->pieces.size();
  KVIST_ASSIGN_OR_RETURN(vocabulary->bos_id, ReadId(file, "tokenizer.ggml.bos_token_id", tokens));
  KVIST_ASSIGN_OR_RETURN(vocabulary->eos_id, ReadId(file, "tokenizer.ggml.eos_token_id", tokens));
  KVIST_ASSIGN_OR_RETURN(vocabulary->unknown_id,
                         ReadId(file, "tokenizer.ggml.unknown_token_id", tokens));
  KVIST_ASSIGN_OR_RETURN(const auto eot, ReadId(file, "tokenizer.ggml.eot_token_id", tokens));
  KVIST_ASSIGN_OR_RETURN(const auto eom, ReadId(file, "tokenizer.ggml.eom_token_id", tokens));
  std::vector<int32_t>& stops = vocabulary->stop_ids;
  const auto add_stop = [&stops](int32_t id) {
    if (std::find(stops.begin(), stops.end(), id) == stops.end()) stops.push_back(id);
  };
  for (const std::optional<int32_t>& id : {vocabulary->eos_id, eot, eom}) {
    if (id) add_stop(*id);
  }
  for (size_t i = 0; i < tokens; ++i) {
    if (stops.size() < kMaxStopIds && vocabulary->kinds[i] == TokenKind::kControl &&
        Contains(kStopSpellings, vocabulary->pieces[i])) {
      add_stop(static_cast<int32_t>(i));
    }
  }
  return absl::OkStatus();
}

// Defaults where a file does not say: SentencePiece vocabularies and Llama 3 begin with BOS (as in
// llama.cpp).
absl::Status ReadFlags(const gguf::File& file, Vocabulary* vocabulary) {
  const bool sentencepiece = vocabulary->algorithm == Algorithm::kSentencePieceBpe;
  const bool llama3 = vocabulary->pretokenizer == Pretokenizer::kLlamaBpe;
  const bool bos_by_default = vocabulary->bos_id.has_value() && (sentencepiece || llama3);
  KVIST_ASSIGN_OR_RETURN(vocabulary->add_bos,
                         ReadFlag(file, "tokenizer.ggml.add_bos_token", bos_by_default));
  KVIST_ASSIGN_OR_RETURN(vocabulary->add_eos,
                         ReadFlag(file, "tokenizer.ggml.add_eos_token", false));
  KVIST_ASSIGN_OR_RETURN(vocabulary->add_space_prefix,
                         ReadFlag(file, "tokenizer.ggml.add_space_prefix", sentencepiece));
  // Byte-level files carry the key too, where it means nothing.
  vocabulary->add_space_prefix = vocabulary->add_space_prefix && sentencepiece;
  if (vocabulary->add_bos && !vocabulary->bos_id) {
    return InvalidField("tokenizer.ggml.bos_token_id",
                        "the key is missing, but prompts begin with it");
  }
  if (vocabulary->add_eos && !vocabulary->eos_id) {
    return InvalidField("tokenizer.ggml.eos_token_id",
                        "the key is missing, but prompts end with it");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Vocabulary> ReadVocabulary(const gguf::File& file) {
  Vocabulary vocabulary;
  KVIST_RETURN_IF_ERROR(ReadAlgorithm(file, &vocabulary));
  KVIST_RETURN_IF_ERROR(ReadPieces(file, &vocabulary));
  KVIST_RETURN_IF_ERROR(ReadSpecialIds(file, &vocabulary));
  KVIST_RETURN_IF_ERROR(ReadFlags(file, &vocabulary));
  if (file.FindValue(kTemplateKey) != nullptr) {
    KVIST_ASSIGN_OR_RETURN(vocabulary.chat_template, file.GetString(kTemplateKey));
    // It travels in messages that carry nothing else.
    if (!IsValidUtf8(vocabulary.chat_template)) return InvalidField(kTemplateKey, "must be UTF-8");
  }
  return vocabulary;
}

}  // namespace kvist::text
