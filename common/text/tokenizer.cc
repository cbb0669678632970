#include "common/text/tokenizer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/text/byte_bpe.h"
#include "common/text/limits.h"
#include "common/text/sentencepiece_bpe.h"
#include "common/text/utf8.h"

namespace kvist::text {
namespace {

absl::Status CheckSizes(const Vocabulary& v) {
  const size_t tokens = v.pieces.size();
  if (tokens == 0) return InvalidField("vocabulary.pieces", "is empty");
  if (tokens > kMaxVocabularyTokens) {
    return InvalidField("vocabulary.pieces", absl::StrCat(tokens, " tokens are over the limit of ",
                                                          kMaxVocabularyTokens));
  }
  if (v.kinds.size() != tokens) {
    return InvalidField("vocabulary.kinds",
                        absl::StrCat(v.kinds.size(), " entries for ", tokens, " tokens"));
  }
  if (v.merges.size() > kMaxMerges) {
    return InvalidField(
        "vocabulary.merges",
        absl::StrCat(v.merges.size(), " merges are over the limit of ", kMaxMerges));
  }
  if (v.stop_ids.size() > kMaxStopIds) {
    return InvalidField(
        "vocabulary.stop_ids",
        absl::StrCat(v.stop_ids.size(), " ids are over the limit of ", kMaxStopIds));
  }
  if (v.chat_template.size() > kMaxChatTemplateBytes) {
    return InvalidField("vocabulary.chat_template",
                        absl::StrCat(v.chat_template.size(), " bytes are over the limit of ",
                                     kMaxChatTemplateBytes));
  }
  return absl::OkStatus();
}

absl::Status CheckPieces(const Vocabulary& v) {
  absl::flat_hash_set<absl::string_view> seen;
  seen.reserve(v.pieces.size());
  for (size_t i = 0; i < v.pieces.size(); ++i) {
    const std::string& piece = v.pieces[i];
    const auto problem = [i](std::string_view what) {
      return InvalidField("vocabulary.pieces", absl::StrCat("token ", i, " ", ToAbsl(what)));
    };
    if (piece.size() > kMaxPieceBytes) {
      return problem(absl::StrCat("is longer than the limit of ", kMaxPieceBytes, " bytes"));
    }
    if (!IsValidUtf8(piece)) return problem("is not UTF-8");
    if (!piece.empty() && !seen.insert(ToAbsl(piece)).second) {
      return problem("is spelled as an earlier one");
    }
    if (v.kinds[i] < TokenKind::kNormal || v.kinds[i] > TokenKind::kByte) {
      return InvalidField("vocabulary.kinds", absl::StrCat("token ", i, " has an unknown kind"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckIds(const Vocabulary& v) {
  const auto in_range = [&v](int32_t id) {
    return id >= 0 && static_cast<size_t>(id) < v.pieces.size();
  };
  if (v.bos_id && !in_range(*v.bos_id)) {
    return InvalidField("vocabulary.bos_id", "is no token of this vocabulary");
  }
  if (v.eos_id && !in_range(*v.eos_id)) {
    return InvalidField("vocabulary.eos_id", "is no token of this vocabulary");
  }
  if (v.unknown_id && !in_range(*v.unknown_id)) {
    return InvalidField("vocabulary.unknown_id", "is no token of this vocabulary");
  }
  if (!std::all_of(v.stop_ids.begin(), v.stop_ids.end(), in_range)) {
    return InvalidField("vocabulary.stop_ids", "holds an id that is no token of this vocabulary");
  }
  if (v.add_bos && !v.bos_id) return InvalidField("vocabulary.add_bos", "there is no bos_id");
  if (v.add_eos && !v.eos_id) return InvalidField("vocabulary.add_eos", "there is no eos_id");
  return absl::OkStatus();
}

absl::Status CheckSentencePiece(const Vocabulary& v) {
  if (v.pretokenizer != Pretokenizer::kNone) {
    return InvalidField("vocabulary.pretokenizer", "SentencePiece has none");
  }
  if (!v.merges.empty()) return InvalidField("vocabulary.merges", "SentencePiece has none");
  if (v.scores.size() != v.pieces.size()) {
    return InvalidField("vocabulary.scores",
                        absl::StrCat(v.scores.size(), " entries for ", v.pieces.size(), " tokens"));
  }
  if (!std::all_of(v.scores.begin(), v.scores.end(), [](float s) { return std::isfinite(s); })) {
    return InvalidField("vocabulary.scores", "holds a score that is not finite");
  }
  return absl::OkStatus();
}

absl::Status CheckByteBpe(const Vocabulary& v) {
  if (v.pretokenizer <= Pretokenizer::kNone || v.pretokenizer > Pretokenizer::kQwen2) {
    return InvalidField("vocabulary.pretokenizer", "is unknown");
  }
  if (!v.scores.empty()) return InvalidField("vocabulary.scores", "byte-level BPE has none");
  if (v.add_space_prefix) {
    return InvalidField("vocabulary.add_space_prefix", "byte-level BPE has none");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::Create(Vocabulary vocabulary) {
  KVIST_RETURN_IF_ERROR(CheckSizes(vocabulary));
  KVIST_RETURN_IF_ERROR(CheckPieces(vocabulary));
  KVIST_RETURN_IF_ERROR(CheckIds(vocabulary));
  switch (vocabulary.algorithm) {
    case Algorithm::kByteBpe:
      KVIST_RETURN_IF_ERROR(CheckByteBpe(vocabulary));
      return ByteBpeTokenizer::Create(std::move(vocabulary));
    case Algorithm::kSentencePieceBpe:
      KVIST_RETURN_IF_ERROR(CheckSentencePiece(vocabulary));
      return std::unique_ptr<const Tokenizer>(
          std::make_unique<SentencePieceBpeTokenizer>(std::move(vocabulary)));
  }
  return InvalidField("vocabulary.algorithm", "is unknown");
}

std::string Tokenizer::Decode(std::span<const int32_t> ids) const {
  std::string bytes;
  for (const int32_t id : ids) bytes += TokenBytes(id);
  return ReplaceInvalidUtf8(bytes);
}

bool Tokenizer::IsStop(int32_t id) const {
  return std::find(vocabulary_.stop_ids.begin(), vocabulary_.stop_ids.end(), id) !=
         vocabulary_.stop_ids.end();
}

}  // namespace kvist::text
