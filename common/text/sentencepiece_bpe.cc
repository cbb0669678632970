#include "common/text/sentencepiece_bpe.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "common/base/status.h"
#include "common/text/utf8.h"

namespace kvist::text {
namespace {

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581

std::string MarkSpaces(std::string_view text) {
  std::string marked;
  marked.reserve(text.size() + text.size() / 2);
  for (const char c : text) {
    if (c == ' ') {
      marked.append(kSpaceMark);
    } else {
      marked.push_back(c);
    }
  }
  return marked;
}

std::string UnmarkSpaces(std::string_view piece) {
  std::string text;
  while (!piece.empty()) {
    if (piece.starts_with(kSpaceMark)) {
      text.push_back(' ');
      piece.remove_prefix(kSpaceMark.size());
    } else {
      text.push_back(piece.front());
      piece.remove_prefix(1);
    }
  }
  return text;
}

// The byte that a piece such as "<0x0A>" stands for.
std::optional<uint8_t> ByteOf(std::string_view piece) {
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece.back() != '>') return std::nullopt;
  uint8_t byte = 0;
  const auto [end, error] = std::from_chars(piece.data() + 3, piece.data() + 5, byte, 16);
  if (error != std::errc() || end != piece.data() + 5) return std::nullopt;
  return byte;
}

}  // namespace

SentencePieceBpeTokenizer::SentencePieceBpeTokenizer(Vocabulary vocabulary)
    : Tokenizer(std::move(vocabulary)) {
  const Vocabulary& v = this->vocabulary();
  byte_ids_.fill(-1);
  token_bytes_.reserve(v.pieces.size());
  for (size_t i = 0; i < v.pieces.size(); ++i) {
    const std::string& piece = v.pieces[i];
    const int32_t id = static_cast<int32_t>(i);
    token_bytes_.push_back(piece);
    if (piece.empty()) continue;
    switch (v.kinds[i]) {
      case TokenKind::kControl:
      case TokenKind::kUnknown:
        special_.Add(MarkSpaces(piece), id, v.kinds[i]);
        break;
      case TokenKind::kUserDefined:
        special_.Add(MarkSpaces(piece), id, v.kinds[i]);
        token_bytes_.back() = UnmarkSpaces(piece);
        break;
      case TokenKind::kByte:
        if (const std::optional<uint8_t> byte = ByteOf(piece)) {
          byte_ids_[*byte] = id;
          token_bytes_.back() = std::string(1, static_cast<char>(*byte));
        }
        break;
      case TokenKind::kNormal:
      case TokenKind::kUnused:
        token_bytes_.back() = UnmarkSpaces(piece);
        pieces_.emplace(ToAbsl(piece), id);
        longest_piece_bytes_ = std::max(longest_piece_bytes_, piece.size());
        break;
    }
  }
}

int32_t SentencePieceBpeTokenizer::FindPiece(std::string_view piece) const {
  if (piece.size() > longest_piece_bytes_) return -1;
  const auto found = pieces_.find(ToAbsl(piece));
  return found == pieces_.end() ? -1 : found->second;
}

void SentencePieceBpeTokenizer::EmitSymbol(const Symbol& symbol, std::string_view text,
                                           std::vector<int32_t>* ids) const {
  if (symbol.id >= 0) {
    ids->push_back(symbol.id);
    return;
  }
  const std::string_view bytes = text.substr(symbol.begin, symbol.size_bytes);
  const bool all_known = std::all_of(bytes.begin(), bytes.end(), [this](char c) {
    return byte_ids_[static_cast<uint8_t>(c)] >= 0;
  });
  if (all_known) {
    for (const char c : bytes) ids->push_back(byte_ids_[static_cast<uint8_t>(c)]);
  } else if (vocabulary().unknown_id) {
    ids->push_back(*vocabulary().unknown_id);
  }
}

void SentencePieceBpeTokenizer::EncodePlain(std::string_view text, PairMerger& merger,
                                            std::vector<int32_t>* ids) const {
  merger.Clear();
  for (size_t begin = 0; begin < text.size();) {
    const size_t size = DecodeUtf8(text.substr(begin)).size_bytes;
    merger.Add({.begin = begin, .size_bytes = size, .id = FindPiece(text.substr(begin, size))});
    begin += size;
  }
  const auto find = [this, text](const Symbol& left,
                                 const Symbol& right) -> std::optional<PairMerge> {
    const int32_t id = FindPiece(text.substr(left.begin, left.size_bytes + right.size_bytes));
    if (id < 0) return std::nullopt;
    return PairMerge{.priority = -double{vocabulary().scores[id]}, .id = id};
  };
  merger.Merge(find, [&](const Symbol& symbol) { EmitSymbol(symbol, text, ids); });
}

std::vector<int32_t> SentencePieceBpeTokenizer::Encode(std::string_view text,
                                                       ControlTokens control) const {
  const std::string marked = MarkSpaces(IsValidUtf8(text) ? text : ReplaceInvalidUtf8(text));
  std::vector<int32_t> ids;
  PairMerger merger;
  std::string prefixed;
  bool after_special = true;  // the start counts as after a special token
  for (const SpecialTokens::Fragment& fragment : special_.Split(marked, control)) {
    if (fragment.id) {
      ids.push_back(*fragment.id);
      after_special = true;
      continue;
    }
    std::string_view plain = fragment.text;
    if (vocabulary().add_space_prefix && after_special) {
      prefixed = kSpaceMark;
      prefixed.append(plain);
      plain = prefixed;
    }
    EncodePlain(plain, merger, &ids);
    after_special = false;
  }
  return ids;
}

}  // namespace kvist::text
