#include "worker/engine/offload.h"

#include <chrono>
#include <filesystem>
#include <fstream>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cache_manager/stream/worker_side.h"
#include "common/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/captured_log.h"
#include "tests/support/faulty_file.h"
#include "tests/support/hash_backend.h"
#include "tests/support/hash_reference.h"
#include "tests/support/recording_sink.h"
#include "tests/support/simulated_clock.h"
#include "tests/support/temp_folder.h"
#include "worker/engine/engine_core.h"

namespace kvist::worker {
namespace {

using ::testing::HasSubstr;

class OffloadTest : public testing::Test {
 protected:
  // A worker over the folder's files, as after a restart.
  void Make(int64_t disk_bytes = 1 << 20) {
    core.reset();
    options.disk.reset();
    auto hash = std::make_unique<HashBackend>(backend, control);
    auto disk = OpenDiskStore({.directory = folder.path(),
                               .bytes = disk_bytes,
                               .open = FaultyOpener(faults),
                               .clock = &clock},
                              *hash);
    ASSERT_TRUE(disk.ok()) << disk.status();
    options.disk = *disk;
    core = std::make_unique<EngineCore>(options, std::move(hash), &clock);
  }
  std::shared_ptr<RecordingSink> Add(GenerateRequest request) {
    const absl::Status status = PrepareRequest(core->limits(), &request);
    EXPECT_TRUE(status.ok()) << status;
    auto sink = std::make_shared<RecordingSink>();
    core->Add(std::move(request), sink, clock.Now());
    return sink;
  }
  // One step, or where nothing can run the next thing from the disk.
  void Step() {
    clock.Advance(std::chrono::milliseconds(1));
    const bool ran = core->Step();
    ASSERT_TRUE(core->CheckInvariants().ok()) << core->CheckInvariants();
    if (!ran && !core->idle()) {
      ASSERT_TRUE(options.disk->WaitForDone(std::nullopt)) << "nothing runs";
    }
  }
  std::shared_ptr<RecordingSink> Run(const GenerateRequest& request) {
    auto sink = Add(request);
    while (!core->idle() && !HasFatalFailure()) Step();
    return sink;
  }
  void Flush() {
    core->FlushOffload(std::chrono::seconds(60));
    EXPECT_TRUE(core->CheckInvariants().ok()) << core->CheckInvariants();
  }
  void EmptyPools() {
    for (const auto& pool : core->state().pools) {
      pool->EvictSome(backend.num_blocks, cache_manager::EvictionCause::kCapacity);
    }
  }
  GenerateRequest Offloaded(const std::string& id, int64_t length, int32_t salt,
                            int64_t max_new = 20) {
    GenerateRequest request = RequestOf(id, Ids(length, salt), max_new);
    request.cache.offload = OffloadTier::kDisk;
    request.session = SessionId("s-" + id);
    return request;
  }
  OffloadStats stats() const { return core->stats().offload; }
  // A record that is right in itself, of no sequence here, where the disk has another; the worker
  // runs. Fewer tokens than a block's: a partial one.
  void PutForeignRecord(int32_t slot, size_t tokens) {
    const BlockFile& records = options.disk->records(0);
    BlockFileEntry entry{.parent = cache_manager::RootKey({.model_fingerprint = "another"})};
    entry.tokens.assign(tokens, 7);
    if (tokens == 16) entry.key = cache_manager::ChildKey(entry.parent, entry.tokens);
    std::vector<std::byte> record(records.record_bytes());
    records.Encode(entry, record);
    std::fstream file(folder.path() + "/pool-0.slab",
                      std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(4096 + slot * 832);
    file.write(reinterpret_cast<const char*>(record.data()),
               static_cast<std::streamsize>(record.size()));
  }
  // What a manager says when a session was deleted.
  void Delete(const SessionId& session) {
    EngineState state = core->state();
    cache_manager::WorkerInfo info{.id = WorkerId("w"), .incarnation = Incarnation(1)};
    info.pools.push_back({.group = "full", .format = "f16", .num_blocks = 64});
    cache_manager::WorkerSide side(info,
                                   {state.pools, &state.sessions, &state.events, state.tiers});
    side.Connect(0);
    ASSERT_TRUE(side.Receive(cache_manager::EvictCommand{.incarnation = Incarnation(1),
                                                         .request = RequestId("c"),
                                                         .session = session,
                                                         .release = true})
                    .ok());
  }

  TempFolder folder;
  HashBackendOptions backend;
  EngineOptions options;
  std::shared_ptr<HashBackendControl> control = std::make_shared<HashBackendControl>();
  std::shared_ptr<DiskFaults> faults = std::make_shared<DiskFaults>();
  SimulatedClock clock;
  std::unique_ptr<EngineCore> core;
};

TEST_F(OffloadTest, ATurnsBlocksGoToTheDiskAndComeBackForTheNext) {
  backend.windows = {0, 24};
  Make();
  const GenerateRequest request = Offloaded("a", 100, 1);
  auto cold = Run(request);
  Flush();
  // 119 stored tokens: 7 full blocks, of which the windowed group still held the last two.
  EXPECT_EQ(stats().written_blocks, 7u + 2u);
  EXPECT_EQ(core->state().tiers[0]->stored(), 7);
  EmptyPools();
  const uint64_t before = control->tokens;
  GenerateRequest next = request;
  next.prompt_ids.insert(next.prompt_ids.end(), cold->ids.begin(), cold->ids.end());
  next.prompt_ids.push_back(3);
  auto warm = Run(next);
  EXPECT_EQ(warm->ids, ByDefinition(backend, next));
  EXPECT_EQ(warm->finished->cached_tokens, 112);
  EXPECT_EQ(control->tokens - before, 9u + 19u);
  EXPECT_EQ(stats().restores, 1u);
  EXPECT_EQ(stats().restored_blocks, 9u);
  EXPECT_GT(stats().restored_bytes, stats().restored_blocks * kBlockHeaderBytes);
  for (const auto& pool : core->state().pools) EXPECT_EQ(pool->Counts().active, 0);
}

TEST_F(OffloadTest, WithoutTheOptionNothingIsWritten) {
  Make();
  GenerateRequest request = Offloaded("a", 100, 1);
  request.cache.offload = OffloadTier::kOff;
  Run(request);
  Flush();
  EXPECT_EQ(stats().written_blocks, 0u);
}

TEST_F(OffloadTest, BlocksSurviveARestart) {
  Make();
  const GenerateRequest request = Offloaded("a", 200, 1);
  auto cold = Run(request);
  Flush();
  Make();
  EXPECT_EQ(core->state().tiers[0]->stored(), 13);
  EXPECT_EQ(core->state().events.digests()[0].placement, core->state().tiers[0]->placement());
  auto warm = Run(request);
  EXPECT_EQ(warm->ids, cold->ids);
  EXPECT_EQ(warm->finished->cached_tokens, 192);
}

TEST_F(OffloadTest, ADamagedBlockIsComputedAgain) {
  Make();
  const GenerateRequest request = Offloaded("a", 200, 1);
  auto cold = Run(request);
  Flush();
  Make();
  options.disk.reset();
  core.reset();
  {
    std::fstream file(folder.path() + "/pool-0.slab",
                      std::ios::in | std::ios::out | std::ios::binary);
    // Bytes of the block in slot 5, which is the eighth: the tail was written first.
    file.seekp(4096 + 5 * 832 + static_cast<int64_t>(kBlockHeaderBytes) + 5);
    file.put('\x55');
  }
  const CapturedLog log;
  Make();
  auto warm = Run(request);
  EXPECT_EQ(warm->ids, cold->ids);
  EXPECT_EQ(warm->finished->cached_tokens, 7 * 16);
  EXPECT_EQ(stats().damaged_blocks, 1u);
  EXPECT_EQ(log.Lines("checksum of the block").size(), 1u);
  EXPECT_EQ(core->state().tiers[0]->stored(), 12);
  // It was written again when the turn ended.
  Flush();
  EXPECT_EQ(core->state().tiers[0]->stored(), 13);
}

TEST_F(OffloadTest, ARecordOfAnotherBlockIsDamagedAndNotBelieved) {
  for (const size_t tokens : {size_t{16}, size_t{3}}) {
    Make();
    const GenerateRequest request = Offloaded("a", 200, 1);
    auto cold = Run(request);
    Flush();
    EmptyPools();
    PutForeignRecord(/*slot=*/5, tokens);
    const uint64_t damaged = stats().damaged_blocks;
    auto warm = Run(request);
    EXPECT_EQ(warm->ids, cold->ids);
    EXPECT_EQ(warm->finished->cached_tokens, 7 * 16);
    EXPECT_EQ(stats().damaged_blocks, damaged + 1);
    // It was written again, so the next turn finds all.
    Flush();
    EmptyPools();
    warm = Run(request);
    EXPECT_EQ(warm->finished->cached_tokens, 12 * 16);
    EXPECT_EQ(stats().damaged_blocks, damaged + 1);
  }
}

TEST_F(OffloadTest, BlocksDeletedWhileTheyAreReadDoNotComeBack) {
  Make();
  const GenerateRequest request = Offloaded("a", 200, 1);
  Run(request);
  Flush();
  EmptyPools();
  const int32_t cached = core->state().pools[0]->Counts().cached;
  Add(request);
  Step();
  ASSERT_FALSE(core->idle());
  Delete(request.session);
  EXPECT_EQ(core->state().tiers[0]->stored(), 0);
  core->Cancel(request.id);
  Flush();
  Step();
  EXPECT_EQ(stats().restored_blocks, 0u);
  EXPECT_EQ(core->state().pools[0]->Counts().cached, cached);
}

TEST_F(OffloadTest, ADiskThatFailsInFlightCostsACounterAndALine) {
  Make();
  const CapturedLog log;
  faults->full = true;
  const GenerateRequest request = Offloaded("a", 200, 1);
  auto cold = Run(request);
  EXPECT_EQ(cold->ids, ByDefinition(backend, request));
  Flush();
  EXPECT_EQ(stats().written_blocks, 0u);
  EXPECT_EQ(stats().write_errors, 13u);
  EXPECT_EQ(log.Lines("could not be written").size(), 1u);  // one a minute
  faults->full = false;
  Run(request);
  Flush();
  EXPECT_EQ(stats().written_blocks, 13u);
  EmptyPools();
  faults->unreadable = true;
  clock.Advance(std::chrono::minutes(2));
  auto again = Run(request);
  EXPECT_EQ(again->ids, cold->ids);
  EXPECT_EQ(again->finished->cached_tokens, 0);
  EXPECT_GT(stats().read_errors, 0u);
  EXPECT_EQ(log.Lines("could not be read").size(), 1u);
}

TEST_F(OffloadTest, RunningSequencesGoOnWhileBlocksAreRead) {
  Make();
  const GenerateRequest request = Offloaded("a", 300, 1);
  Run(request);
  Flush();
  EmptyPools();
  auto other = Add(RequestOf("b", Ids(20, 9), 100));
  Step();
  auto warm = Add(request);
  auto behind = Add(RequestOf("c", Ids(20, 8), 5));
  Step();
  // It waits for the disk, those behind it do not.
  EXPECT_FALSE(warm->finished.has_value() || !warm->progress.empty());
  EXPECT_EQ(behind->ids.size(), 1u);
  while (!core->idle() && !HasFatalFailure()) Step();
  EXPECT_EQ(warm->ids, ByDefinition(backend, request));
  EXPECT_EQ(warm->finished->cached_tokens, 288);
}

TEST_F(OffloadTest, ARequestThatEndsWhileItsBlocksAreReadLeavesNothing) {
  Make();
  const GenerateRequest request = Offloaded("a", 300, 1);
  Run(request);
  Flush();
  EmptyPools();
  auto cancelled = Add(request);
  Step();
  EXPECT_FALSE(core->idle());
  core->Cancel(request.id);
  EXPECT_EQ(cancelled->finished->reason, FinishReason::kCancelled);
  Flush();
  auto warm = Run(request);
  EXPECT_EQ(warm->ids, ByDefinition(backend, request));
}

TEST_F(OffloadTest, APreemptedSequenceIsSwappedAndGivesTheSame) {
  backend.num_blocks = 20;
  Make();
  const GenerateRequest low = Offloaded("low", 100, 1, 120);
  GenerateRequest high = Offloaded("high", 100, 2, 150);
  high.priority = 1;
  auto slow = Add(low);
  for (int step = 0; step < 30; ++step) Step();
  auto fast = Add(high);
  while (!core->idle() && !HasFatalFailure()) {
    Step();
    Flush();  // a disk as fast as the steps
  }
  EXPECT_GT(slow->finished->preemptions, 0);
  EXPECT_EQ(slow->ids, ByDefinition(backend, low));
  EXPECT_EQ(fast->ids, ByDefinition(backend, high));
  EXPECT_GT(stats().restored_blocks, 0u);
}

TEST_F(OffloadTest, ASmallDiskKeepsTheHeadsThatWereUsedLast) {
  Make(/*disk_bytes=*/4096 + 8 * 4096);
  const int32_t slots = options.disk->slots();
  for (int i = 0; i < 6; ++i) {
    const GenerateRequest request = Offloaded(Numbered("r", i), 150, i);
    Run(request);
    Flush();
    EmptyPools();
    auto warm = Run(request);
    EXPECT_EQ(warm->ids, ByDefinition(backend, request));
    EXPECT_GT(warm->finished->cached_tokens, 0);
    EXPECT_LE(core->state().tiers[0]->stored(), slots);
  }
}

TEST_F(OffloadTest, ADeletedSessionsBlocksLeaveTheDiskAndSharedOnesStay) {
  Make();
  const GenerateRequest stem = Offloaded("stem", 64, 1, 1);
  GenerateRequest longer = Offloaded("longer", 64, 1, 1);
  const std::vector<int32_t> tail = Ids(100, 5);
  longer.prompt_ids.insert(longer.prompt_ids.end(), tail.begin(), tail.end());
  Run(stem);
  Run(longer);
  Flush();
  EXPECT_EQ(core->state().tiers[0]->stored(), 10);
  Delete(longer.session);
  EXPECT_EQ(core->state().tiers[0]->stored(), 4);
  Flush();
  EXPECT_EQ(core->state().tiers[0]->wipes(), 0u);
  Make();
  EXPECT_EQ(core->state().tiers[0]->stored(), 4);  // wiped on the disk too
}

TEST_F(OffloadTest, SamplesQueueTheirCommonBlocksOnce) {
  Make();
  const GenerateRequest first = Offloaded("a", 200, 1);
  Add(first);
  for (int sample = 1; sample < 4; ++sample) {
    GenerateRequest request = first;
    request.id = RequestId(Numbered("a-", sample));
    request.session = SessionId();
    request.fork_of = first.id;
    Add(request);
  }
  while (!core->idle() && !HasFatalFailure()) Step();
  // All 13 blocks of it are gone before their turn.
  EmptyPools();
  Flush();
  EXPECT_EQ(stats().written_blocks, 0u);
  EXPECT_EQ(stats().dropped_writes, 13u);
}

TEST_F(OffloadTest, WritesThatCameToNothingDoNotHoldUpAStep) {
  backend.num_blocks = 256;
  backend.context_tokens = 4096;
  Make();
  Run(Offloaded("a", 2000, 1));
  EmptyPools();
  EXPECT_TRUE(core->Step());  // there is more to look at, and nobody to wake the loop
  EXPECT_EQ(stats().dropped_writes, 64u);
  EXPECT_FALSE(core->Step());
  EXPECT_EQ(stats().dropped_writes, 126u);
}

TEST_F(OffloadTest, AnExpiredRequestsBlocksGoOutInTheSameStep) {
  Make();
  GenerateRequest request = Offloaded("a", 100, 1);
  request.deadline = clock.Now() + std::chrono::milliseconds(10);
  auto sink = Add(request);
  for (int step = 0; step < 5; ++step) Step();
  clock.Advance(std::chrono::milliseconds(10));
  EXPECT_FALSE(core->Step());
  EXPECT_EQ(sink->finished->reason, FinishReason::kDeadline);
  EXPECT_TRUE(options.disk->WaitForDone(std::nullopt));
}

TEST_F(OffloadTest, WipesGoOutAFewAtATimeAndTheirErrorsAreTold) {
  Make();
  const GenerateRequest request = Offloaded("a", 200, 1);
  Run(request);
  Flush();
  const CapturedLog log;
  faults->full = true;
  Delete(request.session);
  EXPECT_EQ(core->state().tiers[0]->wipes(), 13u);
  core->Step();
  EXPECT_EQ(core->state().tiers[0]->wipes(), 13u - 8u);
  Flush();
  EXPECT_EQ(core->state().tiers[0]->wipes(), 0u);
  EXPECT_EQ(stats().wipe_errors, 13u);
  EXPECT_EQ(stats().write_errors, 0u);
  EXPECT_EQ(log.Lines("could not be wiped").size(), 1u);
}

TEST_F(OffloadTest, RequestsThatNobodyServesAreRefusedByName) {
  Make();
  GenerateRequest request = Offloaded("a", 10, 1);
  request.cache.offload = OffloadTier::kHost;
  absl::Status status = PrepareRequest(core->limits(), &request);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(DetailsOf(status).field, "cache.offload");
  EXPECT_THAT(std::string(status.message()), HasSubstr("there is off, disk"));
  request.cache = {.allocation = Allocation::kNone, .offload = OffloadTier::kDisk};
  EXPECT_THAT(std::string(PrepareRequest(core->limits(), &request).message()),
              HasSubstr("keeps nothing to offload"));
  options.disk.reset();
  core = std::make_unique<EngineCore>(options, std::make_unique<HashBackend>(backend, control),
                                      &clock);
  request = Offloaded("a", 10, 1);
  status = PrepareRequest(core->limits(), &request);
  EXPECT_EQ(DetailsOf(status).field, "cache.offload");
  EXPECT_THAT(std::string(status.message()), HasSubstr("--offload-dir"));
  // What had begun on a worker with a disk goes on here without one.
  request = Offloaded("a", 10, 1);
  request.attempt = 2;
  EXPECT_TRUE(PrepareRequest(core->limits(), &request).ok());
  EXPECT_EQ(request.cache.offload, OffloadTier::kOff);
}

TEST_F(OffloadTest, AnEngineWritesWhatWaitsBeforeItStops) {
  auto hash = std::make_unique<HashBackend>(backend, control);
  const SystemClock system;
  options.disk =
      *OpenDiskStore({.directory = folder.path(), .bytes = 1 << 20, .clock = &system}, *hash);
  const GenerateRequest request = Offloaded("a", 200, 1, 40);
  {
    Engine engine(options, std::move(hash), &system);
    auto sink = std::make_shared<RecordingSink>();
    std::promise<void> finished;
    sink->on_finished = [&finished] { finished.set_value(); };
    ASSERT_TRUE(engine.Submit(request, sink).ok());
    engine.Start();
    finished.get_future().wait();
    engine.Stop();
  }
  Make();
  EXPECT_EQ(core->state().tiers[0]->stored(), 14);
  auto warm = Run(request);
  EXPECT_EQ(warm->ids, ByDefinition(backend, request));
}

TEST(RestoreIsCheaperTest, RatesDecideOnceTheyAreKnown) {
  EXPECT_TRUE(RestoreIsCheaper({}, 1 << 30, 1));
  EXPECT_TRUE(RestoreIsCheaper({.bytes_per_second = 1e6}, 1 << 30, 1));
  const RestoreRates rates{.bytes_per_second = 1e6, .tokens_per_second = 100};
  EXPECT_TRUE(RestoreIsCheaper(rates, 1'000'000, 101));
  EXPECT_FALSE(RestoreIsCheaper(rates, 1'000'000, 99));
}

}  // namespace
}  // namespace kvist::worker
