#include "worker/kv/tiers/disk_store.h"

#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <string>

#include "common/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/captured_log.h"
#include "tests/support/faulty_file.h"
#include "tests/support/temp_folder.h"

namespace kvist::worker {
namespace {

using cache_manager::BlockKey;
using ::testing::HasSubstr;

constexpr BlockFileScope kScope = {
    .model_fingerprint = "model", .numerics_id = "cpu 1", .block_bytes = 200};
constexpr int64_t kSlotBytes = 960;  // 704 + 200, to whole vectors
constexpr int64_t kSlots = 6;

BlockFileEntry Entry(int32_t number) {
  BlockFileEntry entry{.parent = cache_manager::RootKey({.model_fingerprint = "model"})};
  entry.tokens.assign(16, number);
  entry.key = cache_manager::ChildKey(entry.parent, entry.tokens);
  return entry;
}

class DiskStoreTest : public testing::Test {
 protected:
  absl::Status Open(const BlockFileScope& scope = kScope, int64_t slots = kSlots) {
    store_.reset();
    auto store = DiskStore::Open({.directory = folder_.path(),
                                  .bytes = 2 * (4096 + slots * kSlotBytes) + 100,
                                  .open = FaultyOpener(faults_),
                                  .clock = &clock_},
                                 {scope, scope});
    if (store.ok()) store_ = *std::move(store);
    return store.status();
  }
  DiskDone Do(DiskJob job) {
    store_->Submit(std::move(job));
    EXPECT_TRUE(store_->WaitForDone(std::nullopt));
    std::vector<DiskDone> done;
    store_->TakeDone(&done);
    EXPECT_EQ(done.size(), 1u);
    return std::move(done.front());
  }
  absl::Status Write(size_t pool, int32_t slot, int32_t number) {
    const auto block = store_->records(pool).BlockOf(store_->Record(0, pool));
    std::fill(block.begin(), block.end(), static_cast<std::byte>(number));
    return Do({.kind = DiskJob::Kind::kWrite,
               .pool = pool,
               .slot = slot,
               .buffer = 0,
               .entry = Entry(number)})
        .status;
  }
  // The number that was written there, or -1.
  int32_t Read(size_t pool, int32_t slot) {
    const DiskDone done =
        Do({.kind = DiskJob::Kind::kRead, .pool = pool, .slot = slot, .buffer = 1});
    if (!done.status.ok()) {
      EXPECT_TRUE(absl::IsDataLoss(done.status) || absl::IsInvalidArgument(done.status));
      return -1;
    }
    const int32_t number = done.job.entry.tokens[0];
    EXPECT_EQ(done.job.entry.key, Entry(number).key);
    for (const std::byte b : store_->records(pool).BlockOf(store_->Record(1, pool))) {
      EXPECT_EQ(b, static_cast<std::byte>(number));
    }
    return number;
  }
  std::string PathOf(size_t pool) {
    return folder_.path() + "/pool-" + std::to_string(pool) + ".slab";
  }
  void Flip(size_t pool, int64_t offset) {
    std::fstream file(PathOf(pool), std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(offset);
    const char byte = static_cast<char>(file.get() ^ 1);
    file.seekp(offset);
    file.put(byte);
  }

  TempFolder folder_;
  const SystemClock clock_{};
  std::shared_ptr<DiskFaults> faults_ = std::make_shared<DiskFaults>();
  std::unique_ptr<DiskStore> store_;
};

TEST_F(DiskStoreTest, BlocksComeBackAlsoAfterARestart) {
  ASSERT_TRUE(Open().ok());
  EXPECT_EQ(store_->slots(), kSlots);
  EXPECT_TRUE(store_->found(0).empty());
  EXPECT_GE(store_->memory_bytes(), (kStagingBuffers + 1) * kSlotBytes);
  ASSERT_TRUE(Write(0, 3, 7).ok());
  ASSERT_TRUE(Write(0, 1, 8).ok());
  ASSERT_TRUE(Write(1, 1, 9).ok());
  EXPECT_EQ(Read(0, 3), 7);
  ASSERT_TRUE(Open().ok());
  ASSERT_EQ(store_->found(0).size(), 2u);  // in order of writing
  EXPECT_EQ(store_->found(0)[0].slot, 3);
  EXPECT_EQ(store_->found(0)[1].block.key, Entry(8).key);
  EXPECT_EQ(Read(1, 1), 9);
  EXPECT_EQ(Read(1, 0), -1);
}

TEST_F(DiskStoreTest, WipedSlotsHoldZeros) {
  ASSERT_TRUE(Open().ok());
  ASSERT_TRUE(Write(0, 0, 7).ok());
  EXPECT_TRUE(Do({.kind = DiskJob::Kind::kWipe, .pool = 0, .slot = 0}).status.ok());
  store_.reset();
  std::ifstream file(PathOf(0), std::ios::binary);
  file.seekg(4096);
  std::string slot(kSlotBytes, 'x');
  file.read(slot.data(), kSlotBytes);
  EXPECT_EQ(slot, std::string(kSlotBytes, '\0'));
}

TEST_F(DiskStoreTest, AFileOfAnotherModelIsRefusedAndLeftAlone) {
  ASSERT_TRUE(Open().ok());
  ASSERT_TRUE(Write(0, 0, 7).ok());
  BlockFileScope other = kScope;
  other.model_fingerprint = "another";
  const absl::Status status = Open(other);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(DetailsOf(status).field, "offload_dir");
  EXPECT_THAT(std::string(status.message()), HasSubstr("pool-0.slab has blocks of another model"));
  ASSERT_TRUE(Open().ok());
  EXPECT_EQ(Read(0, 0), 7);
}

TEST_F(DiskStoreTest, AFileThatIsNotOursIsRefusedAndLeftAlone) {
  std::filesystem::create_directories(folder_.path());
  std::ofstream(PathOf(1)) << "a diary";
  const absl::Status status = Open();
  EXPECT_THAT(std::string(status.message()), HasSubstr("pool-1.slab is no file of blocks"));
  std::string line;
  std::getline(std::ifstream(PathOf(1)), line);
  EXPECT_EQ(line, "a diary");
}

TEST_F(DiskStoreTest, OtherNumericsOrLayoutsBeginAnew) {
  BlockFileScope numerics = kScope;
  numerics.numerics_id = "cpu 2";
  BlockFileScope layout = kScope;
  layout.block_tokens = 32;
  layout.block_bytes = 190;
  for (const BlockFileScope& other : {numerics, layout}) {
    ASSERT_TRUE(Open().ok());
    ASSERT_TRUE(Write(0, 0, 7).ok());
    const CapturedLog log;
    ASSERT_TRUE(Open(other).ok());
    EXPECT_TRUE(store_->found(0).empty());
    EXPECT_EQ(log.Lines("begun anew").size(), 2u);
    ASSERT_TRUE(Open().ok());
    EXPECT_EQ(Read(0, 0), -1);
  }
}

TEST_F(DiskStoreTest, AnotherBudgetKeepsWhatFits) {
  ASSERT_TRUE(Open().ok());
  ASSERT_TRUE(Write(0, 1, 7).ok());
  ASSERT_TRUE(Write(0, 5, 8).ok());
  ASSERT_TRUE(Open(kScope, 3).ok());
  EXPECT_EQ(store_->found(0).size(), 1u);
  EXPECT_EQ(Read(0, 1), 7);
  ASSERT_TRUE(Open(kScope, 10).ok());
  EXPECT_EQ(Read(0, 1), 7);
  EXPECT_EQ(Read(0, 5), -1);
}

TEST_F(DiskStoreTest, ADamagedFileHeaderCostsTheRecordsNothingElse) {
  ASSERT_TRUE(Open().ok());
  ASSERT_TRUE(Write(0, 0, 7).ok());
  store_.reset();
  Flip(0, 60);
  ASSERT_TRUE(Open().ok());
  EXPECT_TRUE(store_->found(0).empty());
  ASSERT_TRUE(Write(0, 0, 8).ok());
  EXPECT_EQ(Read(0, 0), 8);
}

TEST_F(DiskStoreTest, ASlotThatCannotBeReadAtTheStartCostsItsRecordAndALine) {
  ASSERT_TRUE(Open().ok());
  for (int32_t slot = 0; slot < 3; ++slot) ASSERT_TRUE(Write(0, slot, slot).ok());
  faults_->bad_offset = 4096 + kSlotBytes;
  const CapturedLog log;
  const absl::Status status = Open();
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_EQ(store_->found(0).size(), 2u);
  EXPECT_EQ(store_->found(0)[1].slot, 2);
  EXPECT_EQ(log.Lines("1 of 6 slots cannot be read: Input/output error").size(), 2u);  // pools
}

TEST_F(DiskStoreTest, FilesOfPoolsThatWentAreRemoved) {
  ASSERT_TRUE(Open().ok());
  ASSERT_TRUE(Write(1, 0, 7).ok());
  store_.reset();
  std::ofstream(folder_.path() + "/pool-x.slab") << "a diary";
  const DiskStoreOptions options{.directory = folder_.path(), .bytes = 1 << 20, .clock = &clock_};
  const CapturedLog log;
  {
    auto store = DiskStore::Open(options, {kScope});
    ASSERT_TRUE(store.ok()) << store.status();
    EXPECT_EQ(log.Lines("pool-1.slab is removed").size(), 1u);
    EXPECT_FALSE(std::filesystem::exists(PathOf(1)));
    EXPECT_TRUE(std::filesystem::exists(folder_.path() + "/pool-x.slab"));
  }
  std::ofstream(PathOf(1)) << "a diary";
  EXPECT_THAT(std::string(DiskStore::Open(options, {kScope}).status().message()),
              HasSubstr("pool-1.slab is no file of blocks"));
  EXPECT_TRUE(std::filesystem::exists(PathOf(1)));
}

TEST_F(DiskStoreTest, WhatCannotBeOpenedIsNamed) {
  const absl::Status small = Open(kScope, 0);
  EXPECT_EQ(DetailsOf(small).field, "offload_bytes");
  EXPECT_THAT(std::string(small.message()), HasSubstr("the least are"));
  ASSERT_TRUE(Open().ok());
  auto second = DiskStore::Open({.directory = folder_.path(), .bytes = 1 << 20, .clock = &clock_},
                                {kScope, kScope});
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("another worker uses it"));
  store_.reset();
  const std::string file = PathOf(0);
  auto in_a_file = DiskStore::Open({.directory = file + "/x", .bytes = 1 << 20, .clock = &clock_},
                                   {kScope, kScope});
  EXPECT_EQ(DetailsOf(in_a_file.status()).field, "offload_dir");
  EXPECT_THAT(std::string(in_a_file.status().message()), HasSubstr("Not a directory"));
  auto read_only = DiskStore::Open(
      {.directory = folder_.path(),
       .bytes = 1 << 20,
       .open = [](const std::string& path) -> absl::StatusOr<std::unique_ptr<TierFile>> {
         return absl::UnknownError(path + ": Read-only file system");
       },
       .clock = &clock_},
      {kScope, kScope});
  EXPECT_EQ(DetailsOf(read_only.status()).field, "offload_dir");
  EXPECT_THAT(std::string(read_only.status().message()), HasSubstr("Read-only file system"));
}

TEST_F(DiskStoreTest, AFullDiskIsFoundAtTheStart) {
  faults_->full = true;
  const absl::Status status = Open();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(DetailsOf(status).field, "offload_bytes");
  EXPECT_THAT(std::string(status.message()), HasSubstr("No space left"));
}

TEST_F(DiskStoreTest, TheSystemsOwnLimitOfFilesIsTold) {
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit little{.rlim_cur = 4096, .rlim_max = before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &little), 0);
  const absl::Status status = Open();
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(DetailsOf(status).field, "offload_bytes");
  EXPECT_THAT(std::string(status.message()), HasSubstr("File too large"));
}

TEST_F(DiskStoreTest, TroubleInFlightIsTheJobsStatus) {
  ASSERT_TRUE(Open().ok());
  ASSERT_TRUE(Write(0, 0, 7).ok());
  faults_->full = true;
  EXPECT_EQ(Write(0, 0, 8).code(), absl::StatusCode::kResourceExhausted);
  faults_->full = false;
  EXPECT_EQ(Read(0, 0), 7);
  faults_->unreadable = true;
  EXPECT_EQ(Do({.kind = DiskJob::Kind::kRead, .pool = 0, .slot = 0, .buffer = 0}).status.code(),
            absl::StatusCode::kUnknown);
  faults_->unreadable = false;
  faults_->torn = true;
  EXPECT_TRUE(Write(0, 0, 9).ok());
  EXPECT_EQ(Read(0, 0), -1);
}

// Against a map of what is where: writes, wipes, torn writes, flipped bits, cut files and restarts.
// What is read is what was written last, or a miss where it was damaged.
TEST_F(DiskStoreTest, RandomOperationsGiveWhatWasWrittenOrAMiss) {
  std::mt19937_64 random(7);
  std::map<std::pair<size_t, int32_t>, int32_t> model;  // -1: damaged
  ASSERT_TRUE(Open().ok());
  int hits = 0, misses = 0;
  for (int step = 0; step < 3000; ++step) {
    const size_t pool = random() % 2;
    const int32_t slot = static_cast<int32_t>(random() % kSlots);
    const int64_t offset = 4096 + slot * kSlotBytes;
    int32_t& there = model.try_emplace({pool, slot}, -1).first->second;
    switch (random() % 8) {
      case 0:
      case 1:
      case 2:
        there = static_cast<int32_t>(random() % 100);
        ASSERT_TRUE(Write(pool, slot, there).ok());
        break;
      case 3:
        if (there < 0) break;
        Flip(pool, offset + static_cast<int64_t>(random() % 904));
        there = -1;
        break;
      case 4:
        faults_->torn = true;
        ASSERT_TRUE(Write(pool, slot, 200).ok());
        faults_->torn = false;
        there = -1;
        break;
      case 5:
        ASSERT_TRUE(Do({.kind = DiskJob::Kind::kWipe, .pool = pool, .slot = slot}).status.ok());
        there = -1;
        break;
      case 6:
        if (random() % 10 != 0) break;
        store_.reset();
        std::filesystem::resize_file(PathOf(pool), static_cast<uint64_t>(offset));
        for (int32_t s = slot; s < kSlots; ++s) model[{pool, s}] = -1;
        ASSERT_TRUE(Open().ok());
        break;
      default:
        if (random() % 10 == 0) {
          ASSERT_TRUE(Open().ok());
        }
    }
    for (const auto& [place, number] : model) {
      const int32_t read = Read(place.first, place.second);
      ASSERT_EQ(read, number) << step;
      ++(read < 0 ? misses : hits);
    }
  }
  EXPECT_GT(hits, 1000);
  EXPECT_GT(misses, 1000);
}

}  // namespace
}  // namespace kvist::worker
