#include "common/text/byte_bpe.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/text/normalizer.h"
#include "common/text/pretokenizer.h"
#include "common/text/utf8.h"

namespace kvist::text {
namespace {

// GPT-2 spells bytes as characters: printable Latin-1 as itself, the rest as U+0100 and up in
// order.
constexpr char32_t kFirstSubstitute = 0x100;

constexpr bool IsOwnSpelling(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr std::array<char32_t, 256> MakeSpellings() {
  std::array<char32_t, 256> spellings{};
  char32_t next = kFirstSubstitute;
  for (int byte = 0; byte < 256; ++byte) {
    spellings[byte] = IsOwnSpelling(byte) ? static_cast<char32_t>(byte) : next++;
  }
  return spellings;
}

constexpr std::array<char32_t, 256> kSpellings = MakeSpellings();
constexpr char32_t kSpellingEnd = kSpellings[0xAD] + 1;  // 0xAD is the last byte with a substitute

// By character: the byte it spells, or -1.
constexpr std::array<int16_t, kSpellingEnd> MakeBytes() {
  std::array<int16_t, kSpellingEnd> bytes{};
  for (int16_t& byte : bytes) byte = -1;
  for (int byte = 0; byte < 256; ++byte) {
    bytes[kSpellings[byte]] = static_cast<int16_t>(byte);
  }
  return bytes;
}

constexpr std::array<int16_t, kSpellingEnd> kBytes = MakeBytes();

// The bytes that `piece` spells; nullopt if a character of it spells none.
std::optional<std::string> BytesOf(std::string_view piece) {
  std::string bytes;
  for (std::string_view rest = piece; !rest.empty();) {
    const Utf8Unit unit = DecodeUtf8(rest);
    if (unit.code_point >= kSpellingEnd || kBytes[unit.code_point] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(kBytes[unit.code_point]));
    rest.remove_prefix(unit.size_bytes);
  }
  return bytes;
}

bool IsSpecial(TokenKind kind) {
  return kind == TokenKind::kControl || kind == TokenKind::kUnknown ||
         kind == TokenKind::kUserDefined;
}

uint64_t PairKey(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

}  // namespace

ByteBpeTokenizer::ByteBpeTokenizer(Vocabulary vocabulary) : Tokenizer(std::move(vocabulary)) {
  const Vocabulary& v = this->vocabulary();
  byte_ids_.fill(-1);
  token_bytes_.reserve(v.pieces.size());
  const bool whole_words = v.pretokenizer == Pretokenizer::kLlamaBpe;
  for (size_t i = 0; i < v.pieces.size(); ++i) {
    const std::string& piece = v.pieces[i];
    const int32_t id = static_cast<int32_t>(i);
    token_bytes_.push_back(piece);
    if (piece.empty()) continue;
    if (IsSpecial(v.kinds[i])) {
      special_.Add(piece, id, v.kinds[i]);
      continue;
    }
    const std::optional<std::string> bytes = BytesOf(piece);
    if (!bytes) continue;  // stands for itself, and no text becomes it
    token_bytes_.back() = *bytes;
    if (bytes->size() == 1) byte_ids_[static_cast<uint8_t>(bytes->front())] = id;
    if (whole_words && v.kinds[i] == TokenKind::kNormal) {
      whole_words_.emplace(ToAbsl(token_bytes_.back()), id);
    }
  }
}

absl::StatusOr<std::unique_ptr<const Tokenizer>> ByteBpeTokenizer::Create(Vocabulary vocabulary) {
  std::unique_ptr<ByteBpeTokenizer> tokenizer(new ByteBpeTokenizer(std::move(vocabulary)));
  KVIST_RETURN_IF_ERROR(tokenizer->AddMerges());
  return std::unique_ptr<const Tokenizer>(std::move(tokenizer));
}

absl::Status ByteBpeTokenizer::AddMerges() {
  const Vocabulary& v = vocabulary();
  absl::flat_hash_map<absl::string_view, int32_t> ids;
  ids.reserve(v.pieces.size());
  for (size_t i = 0; i < v.pieces.size(); ++i) {
    if (!v.pieces[i].empty()) ids.emplace(ToAbsl(v.pieces[i]), static_cast<int32_t>(i));
  }
  const auto id_of = [&ids](std::string_view piece) {
    const auto found = ids.find(ToAbsl(piece));
    return found == ids.end() ? -1 : found->second;
  };
  merges_.reserve(v.merges.size());
  std::string joined;
  for (size_t rank = 0; rank < v.merges.size(); ++rank) {
    const std::string_view merge = v.merges[rank];
    const size_t space = merge.find(' ');
    const std::string field = "vocabulary.merges";
    if (space == std::string_view::npos) {
      return InvalidField(field, absl::StrCat("merge ", rank, " is not two pieces"));
    }
    const std::string_view left = merge.substr(0, space);
    const std::string_view right = merge.substr(space + 1);
    joined.assign(left).append(right);
    const int32_t left_id = id_of(left);
    const int32_t right_id = id_of(right);
    const int32_t id = id_of(joined);
    if (left_id < 0 || right_id < 0 || id < 0) {
      return InvalidField(field, absl::StrCat("merge ", rank, " has a piece that is no token"));
    }
    // A merge must not make a control token out of plain text.
    if (IsSpecial(v.kinds[id])) continue;
    merges_.try_emplace(PairKey(left_id, right_id),
                        PairMerge{.priority = static_cast<double>(rank), .id = id});
  }
  return absl::OkStatus();
}

void ByteBpeTokenizer::EncodeWord(std::string_view word, PairMerger& merger,
                                  std::vector<int32_t>* ids) const {
  if (!whole_words_.empty()) {
    const auto whole = whole_words_.find(ToAbsl(word));
    if (whole != whole_words_.end()) {
      ids->push_back(whole->second);
      return;
    }
  }
  merger.Clear();
  for (size_t i = 0; i < word.size(); ++i) {
    const int32_t id = byte_ids_[static_cast<uint8_t>(word[i])];
    if (id >= 0) merger.Add({.begin = i, .size_bytes = 1, .id = id});
  }
  const auto find = [this](const Symbol& left, const Symbol& right) -> std::optional<PairMerge> {
    const auto found = merges_.find(PairKey(left.id, right.id));
    if (found == merges_.end()) return std::nullopt;
    return found->second;
  };
  merger.Merge(find, [ids](const Symbol& symbol) { ids->push_back(symbol.id); });
}

std::vector<int32_t> ByteBpeTokenizer::Encode(std::string_view text, ControlTokens control) const {
  std::string replaced;
  if (!IsValidUtf8(text)) {
    replaced = ReplaceInvalidUtf8(text);
    text = replaced;
  }
  std::vector<int32_t> ids;
  std::vector<std::string_view> words;
  std::string normalized;
  PairMerger merger;
  for (const SpecialTokens::Fragment& fragment : special_.Split(text, control)) {
    if (fragment.id) {
      ids.push_back(*fragment.id);
      continue;
    }
    std::string_view plain = fragment.text;
    if (NormalizesNfc(vocabulary().pretokenizer)) {
      normalized = NormalizeNfc(plain);
      plain = normalized;
    }
    words.clear();
    SplitWords(vocabulary().pretokenizer, plain, &words);
    for (const std::string_view word : words) EncodeWord(word, merger, &ids);
  }
  return ids;
}

}  // namespace kvist::text
