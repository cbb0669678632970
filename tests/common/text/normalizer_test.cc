#include "common/text/normalizer.h"

#include <gtest/gtest.h>
#include <utf8proc.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "common/text/utf8.h"

namespace kvist::text {
namespace {

TEST(Normalizer, ComposesAndOrdersMarks) {
  EXPECT_EQ(NormalizeNfc("plain text, caf\u00e9"), "plain text, caf\u00e9");
  EXPECT_EQ(NormalizeNfc("e\u0301"), "\u00e9");
  EXPECT_EQ(NormalizeNfc("e\u0301\u0323"), "\u1eb9\u0301");
  EXPECT_EQ(NormalizeNfc("\u212b"), "\u00c5");
  EXPECT_EQ(NormalizeNfc("\u1100\u1161\u11a8"), "\uac01");
  EXPECT_EQ(NormalizeNfc("\u0958"), "\u0915\u093c");  // excluded from composition
  EXPECT_EQ(NormalizeNfc("\ufb01"), "\ufb01");        // a compatibility form stays
  EXPECT_EQ(NormalizeNfc(std::string("\0\u0301", 3)), std::string("\0\u0301", 3));
}

TEST(Normalizer, EqualsUtf8procOnRandomText) {
  const std::vector<char32_t> alphabet = {'a',    'e',    0x301,  0x323,   0x307,  0x345,  0x5B0,
                                          0x1100, 0x1161, 0x11A8, 0xAC00,  0x1E9B, 0x212B, 0x344,
                                          0xF77,  0x958,  0x2ADC, 0x1D15E, 0x3099, 0x304B};
  uint64_t state = 5;
  for (int round = 0; round < 5000; ++round) {
    std::string text;
    for (int i = 0; i < 10; ++i) {
      state = state * 6364136223846793005ULL + 1442695040888963407ULL;
      AppendUtf8(alphabet[(state >> 33) % alphabet.size()], &text);
    }
    utf8proc_uint8_t* expected =
        utf8proc_NFC(reinterpret_cast<const utf8proc_uint8_t*>(text.c_str()));
    ASSERT_EQ(NormalizeNfc(text), reinterpret_cast<const char*>(expected));
    std::free(expected);
  }
}

// An exchange sort needs 10^11 steps here, and the test's time limit.
TEST(Normalizer, AMegabyteOfUnorderedMarksIsSortedInTime) {
  std::string text = "a";
  for (int i = 0; i < 250'000; ++i) text += "\u0301";
  for (int i = 0; i < 250'000; ++i) text += "\u0323";
  const std::string normalized = NormalizeNfc(text);
  EXPECT_TRUE(normalized.starts_with("\u1ea1\u0323"));
  EXPECT_TRUE(normalized.ends_with("\u0301"));
}

}  // namespace
}  // namespace kvist::text
