#include "common/text/tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/text/limits.h"
#include "common/text/utf8.h"

namespace kvist::text {
namespace {

using Ids = std::vector<int32_t>;

int32_t Append(Vocabulary& v, std::string piece, TokenKind kind, float score = 0) {
  v.pieces.push_back(std::move(piece));
  v.kinds.push_back(kind);
  if (v.algorithm == Algorithm::kSentencePieceBpe) v.scores.push_back(score);
  return static_cast<int32_t>(v.pieces.size()) - 1;
}

// Letters a..e and the space, "ab", "abc", a control and two user-defined tokens.
Vocabulary ByteVocabulary() {
  Vocabulary v;
  v.algorithm = Algorithm::kByteBpe;
  v.pretokenizer = Pretokenizer::kGpt2;
  for (const char* piece : {"a", "b", "c", "d", "e", "\u0120", "ab", "abc"}) {
    Append(v, piece, TokenKind::kNormal);
  }
  Append(v, "<|end|>", TokenKind::kControl);   // 8
  Append(v, "<t>", TokenKind::kUserDefined);   // 9
  Append(v, "<t>>", TokenKind::kUserDefined);  // 10
  v.merges = {"a b", "ab c"};
  v.eos_id = 8;
  v.stop_ids = {8};
  return v;
}

Vocabulary SentencePieceVocabulary() {
  Vocabulary v;
  v.algorithm = Algorithm::kSentencePieceBpe;
  Append(v, "<unk>", TokenKind::kUnknown);
  Append(v, "<s>", TokenKind::kControl);
  for (int byte = 0; byte < 256; ++byte) {
    Append(v, absl::StrFormat("<0x%02X>", byte), TokenKind::kByte);
  }
  Append(v, "\u2581", TokenKind::kNormal, -1);   // 258
  Append(v, "a", TokenKind::kNormal, -2);        // 259
  Append(v, "b", TokenKind::kNormal, -3);        // 260
  Append(v, "ab", TokenKind::kNormal, -5);       // 261
  Append(v, "\u2581a", TokenKind::kNormal, -4);  // 262
  Append(v, "  ", TokenKind::kUserDefined, 0);   // 263
  v.unknown_id = 0;
  v.bos_id = 1;
  return v;
}

std::unique_ptr<const Tokenizer> Make(Vocabulary vocabulary) {
  auto tokenizer = Tokenizer::Create(std::move(vocabulary));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

TEST(ByteBpe, JoinsByRankAndDropsBytesWithoutAToken) {
  const auto tokenizer = Make(ByteVocabulary());
  EXPECT_EQ(tokenizer->Encode("abcab", ControlTokens::kPlain), (Ids{7, 6}));
  EXPECT_EQ(tokenizer->Encode("axb", ControlTokens::kPlain), (Ids{6}));  // x is dropped first
  EXPECT_EQ(tokenizer->Encode("", ControlTokens::kPlain), Ids{});
  EXPECT_EQ(tokenizer->Decode(Ids{7, 5, 8, 9}), "abc <|end|><t>");
}

TEST(ByteBpe, UserDefinedTokensAreFoundLongestFirstAndControlTokensOnlyWhenTrusted) {
  const auto tokenizer = Make(ByteVocabulary());
  EXPECT_EQ(tokenizer->Encode("a<t>>b<t>", ControlTokens::kPlain), (Ids{0, 10, 1, 9}));
  EXPECT_EQ(tokenizer->Encode("a<|end|>", ControlTokens::kRecognised), (Ids{0, 8}));
  EXPECT_EQ(tokenizer->Encode("a<|end|>", ControlTokens::kPlain), (Ids{0, 4, 3}));  // "end" less n
  EXPECT_EQ(tokenizer->FindSpecial("<|end|>"), 8);
  EXPECT_EQ(tokenizer->FindSpecial("<t>"), 9);
  EXPECT_EQ(tokenizer->FindSpecial("<t"), std::nullopt);
  EXPECT_EQ(tokenizer->FindSpecial("ab"), std::nullopt);
  EXPECT_EQ(tokenizer->FindSpecial(""), std::nullopt);
}

// A vocabulary whose merges spell a control token must not turn plain text into it.
TEST(ByteBpe, MergesNeverMakeAControlToken) {
  Vocabulary v = ByteVocabulary();
  Append(v, "de", TokenKind::kControl);
  v.merges.push_back("d e");
  const auto tokenizer = Make(v);
  EXPECT_EQ(tokenizer->Encode("de", ControlTokens::kPlain), (Ids{3, 4}));
  EXPECT_EQ(tokenizer->Encode("de", ControlTokens::kRecognised), Ids{11});
}

TEST(ByteBpe, LlamaTakesAWordThatIsATokenPastTheMerges) {
  Vocabulary v = ByteVocabulary();
  Append(v, "cde", TokenKind::kNormal);
  EXPECT_EQ(Make(v)->Encode("cde", ControlTokens::kPlain), (Ids{2, 3, 4}));
  v.pretokenizer = Pretokenizer::kLlamaBpe;
  EXPECT_EQ(Make(v)->Encode("cde", ControlTokens::kPlain), Ids{11});
}

TEST(SentencePieceBpe, JoinsByScoreAndFallsBackToBytes) {
  const auto tokenizer = Make(SentencePieceVocabulary());
  EXPECT_EQ(tokenizer->Encode("ab", ControlTokens::kPlain), Ids{261});
  EXPECT_EQ(tokenizer->Encode(" ab", ControlTokens::kPlain), (Ids{262, 260}));  // -4 beats -5
  EXPECT_EQ(tokenizer->Encode("\u00e9", ControlTokens::kPlain), (Ids{2 + 0xC3, 2 + 0xA9}));
  EXPECT_EQ(tokenizer->Encode("a  b", ControlTokens::kPlain), (Ids{259, 263, 260}));
  EXPECT_EQ(tokenizer->Decode(Ids{262, 260, 2 + 0xC3, 2 + 0xA9, 263, 1}), " ab\u00e9  <s>");
  EXPECT_EQ(tokenizer->Decode(Ids{2 + 0xC3}), "\uFFFD");
}

TEST(SentencePieceBpe, PlainTextNeverBecomesAControlUnknownOrByteToken) {
  const auto tokenizer = Make(SentencePieceVocabulary());
  EXPECT_EQ(tokenizer->Encode("<s>", ControlTokens::kRecognised), Ids{1});
  EXPECT_EQ(tokenizer->Encode("<unk>", ControlTokens::kRecognised), Ids{0});
  EXPECT_EQ(tokenizer->Encode("<s>", ControlTokens::kPlain), (Ids{2 + '<', 2 + 's', 2 + '>'}));
  EXPECT_EQ(tokenizer->Encode("<0x41>", ControlTokens::kRecognised).size(), 6);
}

TEST(SentencePieceBpe, WithoutBytePiecesACharacterIsUnknown) {
  Vocabulary v = SentencePieceVocabulary();
  for (TokenKind& kind : v.kinds) {
    if (kind == TokenKind::kByte) kind = TokenKind::kUnused;
  }
  EXPECT_EQ(Make(v)->Encode("a\u00e9", ControlTokens::kPlain), (Ids{259, 0}));
  v.unknown_id.reset();
  EXPECT_EQ(Make(v)->Encode("a\u00e9", ControlTokens::kPlain), Ids{259});
}

TEST(SentencePieceBpe, TheSpacePrefixFollowsTheStartAndEachSpecialToken) {
  Vocabulary v = SentencePieceVocabulary();
  v.add_space_prefix = true;
  const auto tokenizer = Make(v);
  EXPECT_EQ(tokenizer->Encode("a", ControlTokens::kPlain), Ids{262});
  EXPECT_EQ(tokenizer->Encode("a<s>a", ControlTokens::kRecognised), (Ids{262, 1, 262}));
  EXPECT_EQ(tokenizer->Encode("", ControlTokens::kPlain), Ids{});
}

TEST(Tokenizer, InvalidBytesAreReadAsReplacementCharacters) {
  for (const bool sentencepiece : {false, true}) {
    const auto tokenizer = Make(sentencepiece ? SentencePieceVocabulary() : ByteVocabulary());
    for (int byte = 0x80; byte < 0x100; ++byte) {
      const std::string text = {'a', static_cast<char>(byte), 'b'};
      EXPECT_EQ(tokenizer->Encode(text, ControlTokens::kPlain),
                tokenizer->Encode("a\uFFFD"
                                  "b",
                                  ControlTokens::kPlain));
    }
  }
}

struct BadVocabulary {
  std::string name;
  bool sentencepiece;
  std::string field;  // what the message must name
  std::function<void(Vocabulary&)> change;
};

// A vocabulary also arrives over the network: everything in it is checked.
TEST(Tokenizer, BadVocabulariesAreRefusedByName) {
  const std::vector<BadVocabulary> cases = {
      {"no tokens", false, "pieces",
       [](Vocabulary& v) {
         v.pieces.clear();
         v.kinds.clear();
       }},
      {"kinds missing", false, "kinds", [](Vocabulary& v) { v.kinds.pop_back(); }},
      {"unknown kind", false, "kinds", [](Vocabulary& v) { v.kinds[0] = TokenKind{7}; }},
      {"kind zero", false, "kinds", [](Vocabulary& v) { v.kinds[0] = TokenKind{0}; }},
      {"duplicate piece", false, "pieces", [](Vocabulary& v) { v.pieces[1] = v.pieces[0]; }},
      {"piece not UTF-8", false, "pieces", [](Vocabulary& v) { v.pieces[4].assign(1, '\xFF'); }},
      {"piece too long", false, "pieces",
       [](Vocabulary& v) { v.pieces[4] = std::string(kMaxPieceBytes + 1, 'e'); }},
      {"merge of unknown pieces", false, "merges",
       [](Vocabulary& v) {
         v.merges = {"x y", "ab c"};
       }},
      {"merge to an unknown piece", false, "merges",
       [](Vocabulary& v) {
         v.merges = {"b a", "ab c"};
       }},
      {"merge of one piece", false, "merges", [](Vocabulary& v) { v.merges = {"ab"}; }},
      {"empty merge", false, "merges", [](Vocabulary& v) { v.merges[0].clear(); }},
      {"too many stop ids", false, "stop_ids",
       [](Vocabulary& v) { v.stop_ids.assign(kMaxStopIds + 1, 0); }},
      {"stop id out of range", false, "stop_ids", [](Vocabulary& v) { v.stop_ids = {11}; }},
      {"negative stop id", false, "stop_ids", [](Vocabulary& v) { v.stop_ids = {-1}; }},
      {"bos out of range", false, "bos_id", [](Vocabulary& v) { v.bos_id = 11; }},
      {"eos negative", false, "eos_id", [](Vocabulary& v) { v.eos_id = -1; }},
      {"unknown out of range", false, "unknown_id", [](Vocabulary& v) { v.unknown_id = 99; }},
      {"bos wanted but absent", false, "add_bos", [](Vocabulary& v) { v.add_bos = true; }},
      {"eos wanted but absent", false, "add_eos",
       [](Vocabulary& v) {
         v.add_eos = true;
         v.eos_id.reset();
       }},
      {"no pre-tokenizer", false, "pretokenizer",
       [](Vocabulary& v) { v.pretokenizer = Pretokenizer::kNone; }},
      {"unknown pre-tokenizer", false, "pretokenizer",
       [](Vocabulary& v) { v.pretokenizer = Pretokenizer{9}; }},
      {"byte-level with scores", false, "scores", [](Vocabulary& v) { v.scores = {1}; }},
      {"unknown algorithm", false, "algorithm", [](Vocabulary& v) { v.algorithm = Algorithm{5}; }},
      {"template too long", false, "chat_template",
       [](Vocabulary& v) { v.chat_template.assign(kMaxChatTemplateBytes + 1, ' '); }},
      {"scores missing", true, "scores", [](Vocabulary& v) { v.scores.pop_back(); }},
      {"score not a number", true, "scores", [](Vocabulary& v) { v.scores[3] = std::nanf(""); }},
      {"score infinite", true, "scores",
       [](Vocabulary& v) { v.scores[3] = std::numeric_limits<float>::infinity(); }},
      {"SentencePiece with merges", true, "merges", [](Vocabulary& v) { v.merges = {"a b"}; }},
      {"SentencePiece with splitter", true, "pretokenizer",
       [](Vocabulary& v) { v.pretokenizer = Pretokenizer::kGpt2; }},
  };
  for (const BadVocabulary& test : cases) {
    Vocabulary v = test.sentencepiece ? SentencePieceVocabulary() : ByteVocabulary();
    test.change(v);
    const auto tokenizer = Tokenizer::Create(std::move(v));
    ASSERT_FALSE(tokenizer.ok()) << test.name;
    EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument) << test.name;
    EXPECT_NE(tokenizer.status().message().find("vocabulary." + test.field), std::string::npos)
        << test.name << ": " << tokenizer.status();
  }
}

TEST(Tokenizer, VocabulariesAtTheLimitsPass) {
  Vocabulary v = ByteVocabulary();
  v.pieces[4] = std::string(kMaxPieceBytes, 'e');
  v.stop_ids.assign(kMaxStopIds, 8);
  v.chat_template.assign(kMaxChatTemplateBytes, ' ');
  Append(v, "", TokenKind::kUnused);
  Append(v, "", TokenKind::kUnused);  // empty pieces are no duplicates
  EXPECT_NE(Make(v), nullptr);
}

double EncodeSeconds(const Tokenizer& tokenizer, const std::string& text) {
  const auto start = std::chrono::steady_clock::now();
  const size_t ids = tokenizer.Encode(text, ControlTokens::kRecognised).size();
  EXPECT_GT(ids, 0);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Ten times the text may take somewhat more than ten times as long (n log n, caches); a quadratic
// path takes a hundred.
TEST(Tokenizer, HostileTextTakesTimeInProportionToItsLength) {
  for (const bool sentencepiece : {false, true}) {
    Vocabulary v = sentencepiece ? SentencePieceVocabulary() : ByteVocabulary();
    const auto tokenizer = Make(v);
    for (const std::string unit :
         {"a", " ", "ab", "<", "<|end|", "\n", "'", "1", "\u0301\u0323", "\xFF"}) {
      const auto text_of = [&unit](size_t bytes) {
        std::string text = "a";
        while (text.size() < bytes) text += unit;
        return text;
      };
      double best_ratio = 1e9;
      for (int attempt = 0; attempt < 3 && best_ratio > 40; ++attempt) {
        const double small = EncodeSeconds(*tokenizer, text_of(100'000));
        best_ratio = std::min(best_ratio, EncodeSeconds(*tokenizer, text_of(1'000'000)) / small);
      }
      EXPECT_LT(best_ratio, 40) << "'" << unit << "', SentencePiece " << sentencepiece;
    }
  }
}

}  // namespace
}  // namespace kvist::text
