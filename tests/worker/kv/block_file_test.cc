#include "worker/kv/block_file.h"

#include <numeric>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvist::worker {
namespace {

using cache_manager::BlockKey;
using cache_manager::ChildKey;
using ::testing::HasSubstr;

constexpr BlockFileScope kScope = {.model_fingerprint = "fingerprint",
                                   .numerics_id = "cpu 1",
                                   .group = 1,
                                   .format = KvFormat::kQ8,
                                   .block_tokens = 16,
                                   .block_bytes = 96};

BlockKey Root() { return cache_manager::RootKey({.model_fingerprint = "fingerprint"}); }

BlockFileEntry Full(uint64_t sequence = 7) {
  BlockFileEntry entry{.parent = Root(), .sequence = sequence};
  for (int32_t i = 0; i < 16; ++i) entry.tokens.push_back(i == 3 ? -1 : 1000 * i);
  entry.key = ChildKey(entry.parent, entry.tokens);
  return entry;
}

BlockFileEntry Partial(size_t tokens) {
  BlockFileEntry entry = Full();
  entry.key = BlockKey();
  entry.tokens.resize(tokens);
  return entry;
}

std::vector<std::byte> RecordOf(const BlockFile& file, const BlockFileEntry& entry) {
  std::vector<std::byte> record(file.record_bytes());
  for (std::byte& b : file.BlockOf(std::span(record))) {
    b = static_cast<std::byte>(&b - record.data());
  }
  file.Encode(entry, record);
  return record;
}

// Puts the header's own checksum right after a change: a forger can do that too.
void Sign(std::vector<std::byte>& record) {
  const BlockFile other({.model_fingerprint = "", .numerics_id = "", .block_bytes = 688});
  // The digest of 688 bytes is what a record of them has at 112.
  std::vector<std::byte> carrier(other.record_bytes());
  std::copy_n(record.begin(), 688, other.BlockOf(std::span(carrier)).begin());
  BlockFileEntry entry = Full();
  other.Encode(entry, carrier);
  std::copy_n(carrier.begin() + 112, 16, record.begin() + 688);
}

TEST(BlockFileTest, WhatWasEncodedIsDecodedFullOrPartial) {
  const BlockFile file(kScope);
  EXPECT_EQ(file.record_bytes(), kBlockHeaderBytes + 96);
  for (const BlockFileEntry& entry : {Full(), Partial(1), Partial(15), Full(UINT64_MAX)}) {
    const std::vector<std::byte> record = RecordOf(file, entry);
    const auto decoded = file.Decode(record);
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    EXPECT_EQ(*decoded, entry);
    EXPECT_EQ(file.DecodeHeader(std::span(record).first(kBlockHeaderBytes)).value(), entry);
    const std::span<const std::byte> block = file.BlockOf(std::span(record));
    EXPECT_EQ(block.size(), 96u);
    EXPECT_EQ(block[5], static_cast<std::byte>(kBlockHeaderBytes + 5));
  }
}

TEST(BlockFileTest, TheFormStaysAsItIsWritten) {
  const std::vector<std::byte> record = RecordOf(BlockFile(kScope), Full());
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(record.data()), 8), "kvistblk");
  auto u32 = [&record](size_t at) {
    uint32_t value = 0;
    for (size_t i = 4; i-- > 0;) value = value << 8 | static_cast<uint8_t>(record[at + i]);
    return value;
  };
  EXPECT_EQ(u32(8), 1u);
  EXPECT_EQ(u32(12), 1u);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(record.data()) + 16), "q8");
  EXPECT_EQ(u32(24), 16u);
  EXPECT_EQ(u32(28), 16u);
  EXPECT_EQ(u32(32), 96u);
  EXPECT_EQ(u32(40), 7u);
  EXPECT_EQ(u32(128 + 4 * 3), 0xffffffffu);
  EXPECT_EQ(u32(128 + 4 * 15), 15000u);
  EXPECT_EQ(u32(128 + 4 * 16), 0u);
  const BlockKey key = Full().key;
  EXPECT_TRUE(std::equal(key.bytes.begin(), key.bytes.end(),
                         reinterpret_cast<const uint8_t*>(record.data()) + 80));
}

TEST(BlockFileTest, AnyFlippedBitIsFound) {
  const BlockFile file(kScope);
  const std::vector<std::byte> record = RecordOf(file, Full());
  for (size_t at = 0; at < record.size(); ++at) {
    std::vector<std::byte> damaged = record;
    damaged[at] ^= static_cast<std::byte>(1 << (at % 8));
    const auto decoded = file.Decode(damaged);
    ASSERT_FALSE(decoded.ok()) << at;
    const bool named = at < 12;  // magic and version tell what it is not
    EXPECT_EQ(decoded.status().code(),
              named ? absl::StatusCode::kInvalidArgument : absl::StatusCode::kDataLoss)
        << at << decoded.status();
  }
}

TEST(BlockFileTest, ARecordOfAnyOtherLengthIsDamaged) {
  const BlockFile file(kScope);
  std::vector<std::byte> record = RecordOf(file, Full());
  for (size_t size = 0; size < record.size(); ++size) {
    const auto decoded = file.Decode(std::span(record).first(size));
    EXPECT_EQ(decoded.status().code(), absl::StatusCode::kDataLoss) << size;
  }
  record.push_back(std::byte{0});
  EXPECT_EQ(file.Decode(record).status().code(), absl::StatusCode::kDataLoss);
}

TEST(BlockFileTest, ABlockOfAnotherScopeIsRefusedByTheFieldThatDiffers) {
  const std::vector<std::byte> record = RecordOf(BlockFile(kScope), Full());
  struct Case {
    const char* field;
    BlockFileScope scope;
  };
  std::vector<Case> cases(6, {"", kScope});
  cases[0].field = "model";
  cases[0].scope.model_fingerprint = "fingerprinT";
  cases[1].field = "numerics_id";
  cases[1].scope.numerics_id = "cpu 2";
  cases[2].field = "group";
  cases[2].scope.group = 0;
  cases[3].field = "kv_format";
  cases[3].scope.format = KvFormat::kF16;
  cases[4].field = "block_tokens";
  cases[4].scope.block_tokens = 32;
  cases[5].field = "block_bytes";
  cases[5].scope.block_bytes = 97;
  for (const Case& c : cases) {
    const absl::Status status = BlockFile(c.scope).Decode(record).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.field;
    EXPECT_THAT(std::string(status.message()), ::testing::StartsWith(std::string(c.field) + ":"));
  }
}

TEST(BlockFileTest, AForgedHeaderWithARightChecksumIsStillChecked) {
  const BlockFile file(kScope);
  struct Case {
    const char* problem;
    size_t at;
    std::vector<uint8_t> bytes;
  };
  const std::vector<Case> cases = {
      {"number of tokens", 28, {0, 0, 0, 0}},
      {"number of tokens", 28, {17, 0, 0, 0}},
      {"number of tokens", 28, {0xff, 0xff, 0xff, 0xff}},
      {"behind its tokens", 28, {15, 0, 0, 0}},
      {"key", 80, {1, 2, 3}},
      {"key", 96, {1, 2, 3}},
      {"key", 128, {9}},
      {"parent", 96, std::vector<uint8_t>(16, 0)},
      {"behind its tokens", 128 + 64, {1}},
      {"behind its tokens", 687, {1}},
      {"block_bytes", 32, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
      {"version", 8, {2}},
  };
  for (const Case& c : cases) {
    std::vector<std::byte> record = RecordOf(file, Full());
    for (size_t i = 0; i < c.bytes.size(); ++i) record[c.at + i] = std::byte{c.bytes[i]};
    Sign(record);
    const absl::Status status = file.Decode(record).status();
    EXPECT_FALSE(status.ok()) << c.problem;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.problem));
  }
  std::vector<std::byte> untouched = RecordOf(file, Full());
  Sign(untouched);
  EXPECT_TRUE(file.Decode(untouched).ok());
}

}  // namespace
}  // namespace kvist::worker
