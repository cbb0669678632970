#include "common/text/utf8_stream.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "common/text/utf8.h"

namespace kvist::text {
namespace {

const std::string kBad = "\uFFFD";

std::string Whole(std::string_view bytes) {
  Utf8Stream stream;
  std::string text = stream.Push(bytes);
  return text + stream.Finish();
}

TEST(Utf8Stream, HoldsACharacterBackUntilItIsWhole) {
  Utf8Stream stream;
  EXPECT_EQ(stream.Push("a\xF0"), "a");
  EXPECT_EQ(stream.Push("\x9F"), "");
  EXPECT_EQ(stream.Push("\x98"), "");
  EXPECT_EQ(stream.Push("\x80"
                        "b"),
            "\U0001F600b");
  EXPECT_EQ(stream.Finish(), "");
}

TEST(Utf8Stream, FinishReplacesAnUnfinishedCharacterOnceAndEmptiesTheStream) {
  Utf8Stream stream;
  EXPECT_EQ(stream.Push("\xF0\x9F\x98"), "");
  EXPECT_EQ(stream.Finish(), kBad);
  EXPECT_EQ(stream.Finish(), "");
  EXPECT_EQ(stream.Push("x"), "x");
}

TEST(Utf8Stream, ABrokenCharacterIsReleasedWithTheByteThatBreaksIt) {
  Utf8Stream stream;
  EXPECT_EQ(stream.Push("\xE2\x82"), "");
  EXPECT_EQ(stream.Push("a"), kBad + "a");
}

// The examples of Unicode 15, section 3.9, tables 3-8 to 3-11: one replacement per maximal subpart.
TEST(Utf8Stream, ReplacesMaximalSubparts) {
  EXPECT_EQ(Whole("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"),
            kBad + kBad + kBad + kBad + kBad + kBad + kBad + kBad + "A");
  EXPECT_EQ(Whole("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"),
            kBad + kBad + kBad + kBad + kBad + kBad + kBad + kBad + "A");
  EXPECT_EQ(Whole("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"),
            kBad + kBad + kBad + kBad + kBad + "A" + kBad + kBad + "B");
  EXPECT_EQ(Whole("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), kBad + kBad + kBad + kBad + "A");
}

TEST(Utf8Stream, KeepsEveryCharacterOfUnicode) {
  std::string all;
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c < 0xD800 || c > 0xDFFF) AppendUtf8(c, &all);
  }
  EXPECT_TRUE(IsValidUtf8(all));
  EXPECT_EQ(Whole(all), all);
}

TEST(Utf8Stream, AnySplitGivesTheSameTextAndOnlyValidPieces) {
  const std::vector<std::string> atoms = {"a",    "\u00e9", "\u20ac", "\U0001F600",   "\xF0\x9F",
                                          "\xE2", "\x80",   "\xC0",   "\xED\xA0\x80", "\xF4\x90",
                                          "\xFF"};
  uint64_t state = 11;
  const auto next = [&state](size_t limit) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (state >> 33) % limit;
  };
  for (int round = 0; round < 5000; ++round) {
    std::string bytes;
    for (int i = 0; i < 10; ++i) bytes += atoms[next(atoms.size())];
    Utf8Stream stream;
    std::string text;
    for (size_t begin = 0; begin < bytes.size();) {
      const size_t size = std::min(bytes.size() - begin, next(4));
      const std::string part = stream.Push(std::string_view(bytes).substr(begin, size));
      ASSERT_TRUE(IsValidUtf8(part));
      text += part;
      begin += size;
    }
    text += stream.Finish();
    ASSERT_EQ(text, Whole(bytes));
    ASSERT_EQ(text, ReplaceInvalidUtf8(bytes));
  }
}

}  // namespace
}  // namespace kvist::text
