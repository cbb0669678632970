// What is measured decides whether blocks are read or computed again. Time passes only where a disk
// or a step takes it, so each choice is certain.
#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/faulty_file.h"
#include "tests/support/hash_backend.h"
#include "tests/support/hash_reference.h"
#include "tests/support/recording_sink.h"
#include "tests/support/simulated_clock.h"
#include "tests/support/temp_folder.h"
#include "worker/engine/engine_core.h"
#include "worker/engine/offload.h"

namespace kvist::worker {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::nanoseconds;

// Of one block. A step takes 10 ms, and computes all that the blocks hold.
constexpr nanoseconds kSlowRead = milliseconds(100);
constexpr nanoseconds kFastRead = microseconds(1);
constexpr int64_t kBlocks = 12;

class OffloadChoiceTest : public testing::Test {
 protected:
  void SetUp() override {
    control_->on_run = [this](const Batch&) { clock_.Advance(milliseconds(10)); };
    faults_->on_read = [this] { clock_.Advance(nanoseconds(read_.load())); };
    auto hash = std::make_unique<HashBackend>(backend_, control_);
    auto disk = OpenDiskStore({.directory = folder_.path(),
                               .bytes = 1 << 20,
                               .open = FaultyOpener(faults_),
                               .clock = &clock_},
                              *hash);
    ASSERT_TRUE(disk.ok()) << disk.status();
    disk_ = *disk;
    core_ = std::make_unique<EngineCore>(EngineOptions{.disk = disk_}, std::move(hash), &clock_);
    request_ = RequestOf("a", Ids(16 * kBlocks + 8, 1), 4);
    request_.cache.offload = OffloadTier::kDisk;
    expected_ = ByDefinition(backend_, request_);
    EXPECT_EQ(Turn(kSlowRead), 0);  // nothing is stored yet; its step is measured
  }

  // Runs the request while all of its blocks are on the disk and none is in a pool, with so long a
  // read: the tokens that were not computed.
  int64_t Turn(nanoseconds read) {
    read_ = read.count();
    for (const auto& pool : core_->state().pools) {
      pool->EvictSome(backend_.num_blocks, cache_manager::EvictionCause::kCapacity);
    }
    GenerateRequest request = request_;
    EXPECT_TRUE(PrepareRequest(core_->limits(), &request).ok());
    auto sink = std::make_shared<RecordingSink>();
    core_->Add(std::move(request), sink, clock_.Now());
    while (!core_->idle()) {
      const bool goes_on = core_->Step() || disk_->WaitForDone(std::nullopt);
      EXPECT_TRUE(goes_on) << "nothing runs";
      EXPECT_TRUE(core_->CheckInvariants().ok()) << core_->CheckInvariants();
      if (!goes_on) return -1;
    }
    EXPECT_EQ(sink->ids, expected_);
    core_->FlushOffload(std::chrono::seconds(60));
    EXPECT_EQ(core_->state().tiers[0]->stored(), kBlocks);
    return sink->finished->cached_tokens;
  }
  OffloadStats stats() const { return core_->stats().offload; }

  TempFolder folder_;
  HashBackendOptions backend_;
  std::shared_ptr<HashBackendControl> control_ = std::make_shared<HashBackendControl>();
  std::shared_ptr<DiskFaults> faults_ = std::make_shared<DiskFaults>();
  std::atomic<int64_t> read_{0};  // nanoseconds of each
  SimulatedClock clock_;
  std::shared_ptr<DiskStore> disk_;
  std::unique_ptr<EngineCore> core_;
  GenerateRequest request_;
  std::vector<int32_t> expected_;
};

TEST_F(OffloadChoiceTest, ADiskSlowerThanComputingIsAskedOnceInSixteenTimes) {
  // Nothing is known of the disk: reading measures it.
  EXPECT_EQ(Turn(kSlowRead), 16 * kBlocks);
  EXPECT_EQ(stats().restores, 1u);
  EXPECT_EQ(stats().recomputes, 0u);
  for (uint64_t round = 1; round <= 2; ++round) {
    for (int turn = 1; turn <= 15; ++turn) EXPECT_EQ(Turn(kSlowRead), 0) << turn;
    EXPECT_EQ(stats().recomputes, 15 * round);
    EXPECT_EQ(stats().restores, round);
    EXPECT_EQ(stats().restored_blocks, kBlocks * round);
    EXPECT_EQ(Turn(kSlowRead), 16 * kBlocks);
    EXPECT_EQ(stats().recomputes, 15 * round);
    EXPECT_EQ(stats().restores, round + 1);
  }
}

TEST_F(OffloadChoiceTest, ADiskThatBecameFastIsUsedAgainAndOneThatBecameSlowNoMore) {
  Turn(kSlowRead);
  // That it is fast by now nobody knows before it is asked again.
  for (int turn = 1; turn <= 15; ++turn) EXPECT_EQ(Turn(kFastRead), 0) << turn;
  for (int turn = 0; turn < 20; ++turn) EXPECT_EQ(Turn(kFastRead), 16 * kBlocks) << turn;
  EXPECT_EQ(stats().recomputes, 15u);
  EXPECT_EQ(stats().restores, 21u);
  // The newest reads count most: two slow restores outweigh all the fast ones.
  EXPECT_EQ(Turn(kSlowRead), 16 * kBlocks);
  EXPECT_EQ(Turn(kSlowRead), 16 * kBlocks);
  EXPECT_EQ(Turn(kSlowRead), 0);
  EXPECT_EQ(stats().recomputes, 16u);
}

}  // namespace
}  // namespace kvist::worker
