#include "worker/kv/session_file.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/kv/block_file.h"

namespace kvist::worker {
namespace {

using ::testing::HasSubstr;

std::span<const std::byte> Bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

SessionFileRecord RecordOf(size_t tokens) {
  SessionFileRecord record{.id = "kitchen",
                           .model_fingerprint = std::string(64, 'a'),
                           .model_name = "Sm\u00f8l",
                           .turns = 3,
                           .time_to_live_ms = 5000,
                           .allocation = "static",
                           .kv_format = "q8",
                           .offload = "disk",
                           .attention = {.window_tokens = 32, .sink_tokens = 4}};
  for (size_t i = 0; i < tokens; ++i) record.token_ids.push_back(static_cast<int32_t>(7 * i));
  return record;
}

SessionFileRecord WithBlocks() {
  SessionFileRecord record = RecordOf(40);
  record.blocks = SessionFileBlocks{.numerics_id = "cpu-1",
                                    .kv_format = "q8",
                                    .block_tokens = 16,
                                    .tokens = 39,
                                    .groups = {{.block_bytes = 64, .blocks = 3}, {100, 2}}};
  return record;
}

std::string BlockBytes(const SessionFileRecord& record) {
  std::string bytes;
  if (!record.blocks.has_value()) return bytes;
  for (uint64_t i = 0; i < record.blocks->records_bytes(); ++i) {
    bytes.push_back(static_cast<char>(i * 31));
  }
  return bytes;
}

// With a checksum and a seal that agree with whatever comes before.
std::string Sealed(std::string bytes, std::string_view key = "key") {
  SessionFileChecksum checksum;
  checksum.Add(Bytes(bytes));
  return bytes + SessionFileTrailer(checksum.Finish(), key);
}

std::string FileOf(const SessionFileRecord& record) {
  return Sealed(EncodeSessionFileHead(record) + BlockBytes(record));
}

struct ReadResult {
  absl::Status status;
  std::optional<SessionFileRecord> record;
  std::string blocks;
  bool sealed = false;
};

ReadResult ReadFile(std::string_view file, size_t piece) {
  SessionFileReader reader;
  ReadResult result;
  while (!file.empty() && result.status.ok()) {
    const std::string_view part = file.substr(0, piece);
    result.status = reader.Add(Bytes(part));
    result.blocks.append(reinterpret_cast<const char*>(reader.blocks().data()),
                         reader.blocks().size());
    file.remove_prefix(part.size());
  }
  if (result.status.ok()) result.status = reader.Finish();
  if (result.status.ok()) result.sealed = reader.SealedWith("key");
  result.record = reader.record();
  return result;
}

TEST(SessionFileTest, WhatWasWrittenIsReadInPiecesOfAnySize) {
  for (const SessionFileRecord& record : {RecordOf(0), RecordOf(300), WithBlocks()}) {
    const std::string file = FileOf(record);
    EXPECT_EQ(file.size(), SessionFileBytes(record));
    for (const size_t piece : {size_t{1}, size_t{7}, size_t{64}, file.size()}) {
      const ReadResult read = ReadFile(file, piece);
      ASSERT_TRUE(read.status.ok()) << read.status;
      EXPECT_EQ(read.record, record);
      EXPECT_EQ(read.blocks, BlockBytes(record));
      EXPECT_TRUE(read.sealed);
    }
  }
}

TEST(SessionFileTest, OnlyTheKeyThatSealedItOpensTheSeal) {
  SessionFileReader reader;
  ASSERT_TRUE(reader.Add(Bytes(FileOf(WithBlocks()))).ok());
  ASSERT_TRUE(reader.Finish().ok());
  EXPECT_TRUE(reader.SealedWith("key"));
  EXPECT_FALSE(reader.SealedWith("another"));
  EXPECT_FALSE(reader.SealedWith(""));
  EXPECT_NE(SessionSealKey("one"), SessionSealKey("two"));
  // Not the salt of any tenant, whose ids have no spaces.
  EXPECT_NE(SessionSealKey("one"), cache_manager::TenantSalt("one", "session-file"));
}

TEST(SessionFileTest, EveryChangedByteIsNoticed) {
  const std::string file = FileOf(WithBlocks());
  for (size_t i = 0; i < file.size(); ++i) {
    std::string damaged = file;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x10);
    const ReadResult read = ReadFile(damaged, file.size());
    // The seal's own bytes are only looked at by who knows the key.
    const bool in_seal = i >= file.size() - 32;
    EXPECT_EQ(read.status.ok(), in_seal) << i;
    EXPECT_FALSE(read.sealed) << i;
    if (in_seal) continue;
    EXPECT_FALSE(DetailsOf(read.status).field.empty()) << read.status;
  }
}

TEST(SessionFileTest, AFileThatEndsEarlyOrGoesOnIsDamaged) {
  const std::string file = FileOf(WithBlocks());
  for (size_t size = 0; size < file.size(); ++size) {
    const ReadResult read = ReadFile(std::string_view(file).substr(0, size), 512);
    EXPECT_EQ(read.status.code(), absl::StatusCode::kDataLoss) << size << read.status;
    EXPECT_THAT(std::string(read.status.message()), HasSubstr("cut off")) << size;
  }
  EXPECT_EQ(ReadFile(file + "x", file.size() + 1).status.code(), absl::StatusCode::kDataLoss);
}

// Files whose checksum and seal are right and whose contents are not.
TEST(SessionFileTest, HostileContentsAreRefusedWithTheirField) {
  struct Row {
    const char* field;
    absl::StatusCode code;
    std::function<void(std::string&)> change;
  };
  const auto put = [](size_t at, auto value) {
    return [=](std::string& file) { std::memcpy(file.data() + at, &value, sizeof(value)); };
  };
  const SessionFileRecord record = WithBlocks();
  const std::string head = EncodeSessionFileHead(record);
  // Places from the record's two ends.
  const size_t tail = head.size();
  const size_t groups = tail - 2 * 16 - 4;
  const size_t ids = kSessionFileFrontBytes + 2 + record.id.size() + 2 + 64 + 2 +
                     record.model_name.size() + 4 + 8 + 2 + 6 + 2 + 2 + 2 + 4 + 16;
  using enum absl::StatusCode;
  const std::vector<Row> rows = {
      {"magic", kInvalidArgument, put(0, 'K')},
      {"version", kInvalidArgument, put(8, uint32_t{2})},
      {"record_bytes", kOutOfRange, put(12, uint32_t{0})},
      {"record_bytes", kOutOfRange, put(12, ~uint32_t{0})},
      {"blocks_bytes", kOutOfRange, put(16, ~uint64_t{0})},
      {"blocks_bytes", kInvalidArgument, put(16, uint64_t{1})},
      {"session", kInvalidArgument, put(24, uint16_t{0xffff})},
      {"session", kInvalidArgument, put(24 + 2, '\x1b')},
      {"model_fingerprint", kInvalidArgument, put(24 + 2 + 7, uint16_t{0x7fff})},
      {"model_name", kInvalidArgument, put(24 + 2 + 7 + 2 + 64 + 2, '\xff')},
      {"token_ids", kInvalidArgument, put(ids, ~uint32_t{0})},
      {"token_ids", kInvalidArgument, put(ids + 4, int32_t{-1})},
      {"cache.offload", kInvalidArgument, put(ids - 16 - 4, '\n')},
      {"cache.offload", kInvalidArgument, put(ids - 16 - 6, uint16_t{0xffff})},
      {"cache.attention.window_tokens", kInvalidArgument, put(ids - 16, int64_t{-5})},
      {"cache.attention.sink_tokens", kInvalidArgument, put(ids - 8, int64_t{33})},
      {"blocks", kInvalidArgument, put(ids + 4 + 4 * 40, uint8_t{2})},
      {"blocks.block_tokens", kInvalidArgument, put(groups - 12, int32_t{17})},
      {"blocks.tokens", kInvalidArgument, put(groups - 8, int64_t{41})},
      {"blocks.tokens", kInvalidArgument, put(groups - 8, int64_t{0})},
      {"blocks.groups", kInvalidArgument, put(groups, ~uint32_t{0})},
      {"blocks.groups", kInvalidArgument, put(groups, uint32_t{0})},
      {"blocks.groups.block_bytes", kOutOfRange, put(tail - 16, int64_t{-1})},
      {"blocks.groups.block_bytes", kOutOfRange, put(tail - 16, int64_t{1} << 40)},
      {"blocks.groups.blocks", kOutOfRange, put(tail - 8, int64_t{4})},
      {"blocks.groups.blocks", kOutOfRange, put(tail - 8, int64_t{0})},
  };
  for (size_t i = 0; i < rows.size(); ++i) {
    std::string file = head;
    rows[i].change(file);
    const ReadResult read = ReadFile(Sealed(file + BlockBytes(record)), 1000);
    std::string field = DetailsOf(read.status).field;
    // With no group left, what stands behind is too much.
    if (field == "record_bytes" && rows[i].field == std::string("blocks.groups")) {
      field = "blocks.groups";
    }
    EXPECT_EQ(field, rows[i].field) << i << ": " << read.status;
    EXPECT_EQ(read.status.code(), rows[i].code) << i << ": " << read.status;
  }
}

TEST(SessionFileTest, LimitsAreMetAndNotPassed) {
  SessionFileRecord record = RecordOf(1);
  record.id = std::string(64, 'i');
  EXPECT_TRUE(Validate(record).ok());
  record.id += 'i';
  EXPECT_EQ(DetailsOf(Validate(record)).field, "session");
  record = RecordOf(size_t{1} << 20);
  EXPECT_TRUE(Validate(record).ok());
  EXPECT_LE(EncodeSessionFileHead(record).size(), kSessionFileFrontBytes + kMaxSessionRecordBytes);
  record.token_ids.push_back(1);
  EXPECT_EQ(Validate(record).code(), absl::StatusCode::kOutOfRange);
  record = RecordOf(1);
  record.model_fingerprint.clear();
  EXPECT_EQ(DetailsOf(Validate(record)).field, "model_fingerprint");
}

TEST(SessionFileTest, TheRootOfItsKeysHasNothingOfATenant) {
  const auto root = SessionFileRoot("model", {}, 16);
  EXPECT_EQ(root, SessionFileRoot("model", {}, 16));
  EXPECT_NE(root, SessionFileRoot("other", {}, 16));
  EXPECT_NE(root, SessionFileRoot("model", {.window_tokens = 32}, 16));
  EXPECT_NE(root, SessionFileRoot("model", {}, 32));
}

}  // namespace
}  // namespace kvist::worker
