// Random mixed loads against lone answers by definition: pools far too small, shared prefixes,
// windows, formats, kinds, priorities, sessions, samples of one prompt, drafts, cancels and
// deadlines; invariants after each step, and a mirror fed with the events.
#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/captured_log.h"
#include "tests/support/faulty_file.h"
#include "tests/support/hash_backend.h"
#include "tests/support/hash_reference.h"
#include "tests/support/long_run.h"
#include "tests/support/naive_mirror.h"
#include "tests/support/random_requests.h"
#include "tests/support/recording_sink.h"
#include "tests/support/simulated_clock.h"
#include "tests/support/temp_folder.h"
#include "worker/engine/engine_core.h"

namespace kvist::worker {
namespace {

struct LoadOptions {
  uint64_t seed = 0;
  int requests = 60;
  int64_t longest_prompt = 120;
  int64_t most_new = 40;
  double cancel_share = 0.0;  // of all requests; half of them by deadline
  int64_t check_every = 1;    // steps
  bool disk = false;          // two thirds of the requests go to one, which fails at times
  bool drafts = false;        // few sequences at once, of text that repeats
};

struct Running {
  GenerateRequest request;
  std::shared_ptr<RecordingSink> sink;
};

class Load {
 public:
  explicit Load(const LoadOptions& options) : options_(options), random_(options.seed) {
    const std::vector<std::vector<int64_t>> windows = {{0}, {0, 24}, {0, 40, 16}, {20}};
    backend_.windows = windows[Below(windows.size())];
    if (Below(2) == 0) backend_.formats.push_back(KvFormat::kF32);
    backend_.block_tokens = Below(3) == 0 ? 32 : 16;
    // From one longest request at a time to a comfortable pool.
    const int64_t longest = options.longest_prompt + options.most_new;
    backend_.num_blocks = static_cast<int32_t>(longest / backend_.block_tokens + 1 + Below(12));
    engine_.max_running_sequences = static_cast<int32_t>(1 + Below(12));
    engine_.max_step_tokens = engine_.max_running_sequences + static_cast<int64_t>(Below(100));
    if (options.drafts) {
      engine_.max_running_sequences = static_cast<int32_t>(2 + Below(2));
      backend_.num_blocks = static_cast<int32_t>(longest / backend_.block_tokens + 1 + Below(3));
      engine_.speculative_tokens = static_cast<int32_t>(1 + Below(kMaxSpeculativeTokens));
      backend_.repeat_tokens = 3 + static_cast<int64_t>(Below(6));
    }
    control_->on_run = [this](const Batch& batch) {
      EXPECT_LE(batch.TotalTokens(), engine_.max_step_tokens);
      EXPECT_LE(batch.slices.size(), static_cast<size_t>(engine_.max_running_sequences));
    };
    for (int i = 0; i < 4; ++i) stems_.push_back(Ids(options.longest_prompt, 100 + i));
    auto backend = std::make_unique<HashBackend>(backend_, control_);
    if (options.disk) {
      // From a few blocks to all of them.
      const int64_t bytes = 40'000 + static_cast<int64_t>(Below(1'000'000));
      engine_.disk = *OpenDiskStore({.directory = folder_.path(),
                                     .bytes = bytes,
                                     .open = FaultyOpener(faults_),
                                     .clock = &clock_},
                                    *backend);
    }
    core_ = std::make_unique<EngineCore>(engine_, std::move(backend), &clock_);
    mirror_.Start(core_->state());
  }

  void Run() {
    int added = 0;
    for (int64_t step = 0; added < options_.requests || !late_.empty() || !core_->idle(); ++step) {
      ASSERT_LT(step, 1000000);
      while (added < options_.requests && (core_->idle() || Below(3) == 0)) AddRequest(added++);
      while (!late_.empty() && (core_->idle() || Below(4) == 0)) {
        Submit(late_.back());
        late_.pop_back();
      }
      if (Below(100) < 100 * options_.cancel_share) CancelSome();
      clock_.Advance(std::chrono::milliseconds(1));
      if (options_.disk) BreakTheDisk();
      const bool ran = core_->Step();
      if (!ran && !core_->idle()) {
        ASSERT_TRUE(options_.disk && engine_.disk->WaitForDone(std::nullopt))
            << "live requests and nothing runs";
      }
      mirror_.Drain(core_->state().events);
      if (step % options_.check_every == 0) {
        const absl::Status status = core_->CheckInvariants();
        ASSERT_TRUE(status.ok()) << status;
      }
    }
    CheckEnd();
  }
  EngineStats stats() const { return core_->stats(); }
  uint64_t promised() const { return promised_; }

 private:
  uint64_t Below(uint64_t n) { return random_() % n; }

  void BreakTheDisk() {
    faults_->full = Below(20) == 0;
    faults_->unreadable = Below(6) == 0;
    faults_->torn = Below(20) == 0;
  }

  GenerateRequest RandomRequest(int number) {
    std::vector<int32_t> prompt;
    const std::vector<int32_t>& stem = stems_[Below(stems_.size())];
    const size_t length = 1 + Below(static_cast<uint64_t>(options_.longest_prompt));
    prompt.assign(stem.begin(), stem.begin() + static_cast<int64_t>(length));
    if (Below(2) == 0) {
      for (size_t i = length / 2 + Below(length / 2 + 1); i < length; ++i) {
        prompt[i] = static_cast<int32_t>(Below(64));
      }
    }
    GenerateRequest request =
        RequestOf(Numbered("r", number), std::move(prompt),
                  1 + static_cast<int64_t>(Below(static_cast<uint64_t>(options_.most_new))));
    const RequestSpace space{.formats = backend_.formats, .disk = options_.disk};
    DrawDimensions(AnswerDimensions(), space, random_, &request);
    DrawDimensions(RunDimensions(), space, random_, &request);
    if (Below(100) < 50 * options_.cancel_share) {
      request.deadline = clock_.Now() + std::chrono::milliseconds(Below(60));
    }
    return request;
  }

  void AddRequest(int number) {
    GenerateRequest request = RandomRequest(number);
    absl::Status prepared = PrepareRequest(core_->limits(), &request);
    if (prepared.code() == absl::StatusCode::kOutOfRange) {
      // What can never be promised is taken without a promise.
      ASSERT_EQ(request.cache.allocation, Allocation::kStatic) << prepared;
      request.cache.allocation = Allocation::kPaged;
      prepared = PrepareRequest(core_->limits(), &request);
    }
    ASSERT_TRUE(prepared.ok()) << prepared;
    Submit(request);
    if (Below(3) == 0) AddSiblings(request);
  }

  void Submit(const GenerateRequest& request) {
    ++requests_[request.cache];
    if (request.cache.allocation == Allocation::kStatic) ++promised_;
    auto sink = std::make_shared<RecordingSink>();
    all_.push_back({request, sink});
    core_->Add(request, sink, clock_.Now());
  }

  // Further samples, at once or some steps later.
  void AddSiblings(const GenerateRequest& first) {
    const int count = 1 + static_cast<int>(Below(4));
    for (int i = 1; i <= count; ++i) {
      GenerateRequest sibling = first;
      sibling.id = RequestId(Numbered(first.id.value() + ".", i));
      sibling.fork_of = first.id;
      sibling.sampling.sample_index = static_cast<uint32_t>(i);
      if (!first.session.empty() && Below(2) == 0) {
        sibling.session = SessionId(Numbered(first.session.value() + ".", i));
      }
      if (Below(3) == 0) {
        late_.push_back(std::move(sibling));
      } else {
        Submit(sibling);
      }
    }
  }

  void CancelSome() {
    if (all_.empty()) return;
    const size_t back = std::min<size_t>(all_.size(), 1 + Below(20));
    core_->Cancel(all_[all_.size() - back].request.id);
  }

  void CheckEnd() {
    for (const Running& r : all_) {
      ASSERT_TRUE(r.sink->finished.has_value());
      const FinishInfo& info = *r.sink->finished;
      ASSERT_NE(info.reason, FinishReason::kError) << info.status;
      if (r.request.cache.allocation == Allocation::kStatic) {
        ASSERT_EQ(info.preemptions, 0) << r.request.id.value() << " seed " << options_.seed;
      }
      std::vector<int32_t> expected = ByDefinition(backend_, r.request);
      if (info.reason == FinishReason::kCancelled || info.reason == FinishReason::kDeadline) {
        ASSERT_LE(r.sink->ids.size(), expected.size());
        expected.resize(r.sink->ids.size());
      }
      ASSERT_EQ(r.sink->ids, expected) << r.request.id.value() << " seed " << options_.seed;
    }
    EngineState state = core_->state();
    for (const auto& pool : state.pools) {
      EXPECT_EQ(pool->Counts().active, 0);
      EXPECT_EQ(pool->Counts().reserved, 0);
    }
    EXPECT_EQ(state.load.running_sequences + state.load.waiting_sequences, 0u);
    EXPECT_TRUE(core_->stats().requests == requests_);
    mirror_.ExpectEqual(state);
    mirror_.ExpectAllIdleWithoutUnnamedBlocks();
    EXPECT_TRUE(core_->CheckInvariants().ok()) << core_->CheckInvariants();
  }

  LoadOptions options_;
  std::mt19937_64 random_;
  HashBackendOptions backend_;
  EngineOptions engine_;
  std::shared_ptr<HashBackendControl> control_ = std::make_shared<HashBackendControl>();
  SimulatedClock clock_;
  TempFolder folder_;
  std::shared_ptr<DiskFaults> faults_ = std::make_shared<DiskFaults>();
  std::unique_ptr<EngineCore> core_;
  std::vector<std::vector<int32_t>> stems_;
  std::vector<Running> all_;
  std::vector<GenerateRequest> late_;  // samples to come
  CacheRequestCounts requests_;
  uint64_t promised_ = 0;  // of these, static ones
  NaiveMirror mirror_;
};

TEST(EngineLoadTest, MixedLoadsGiveLoneAnswers) {
  uint64_t preemptions = 0, hits = 0, promised = 0, forks = 0, copies = 0;
  for (uint64_t seed = 1; seed <= Seeds(50); ++seed) {
    // Short prompts with long answers outgrow the pools most often.
    const bool grows = seed % 2 == 0;
    Load load({.seed = seed, .longest_prompt = grows ? 40 : 120, .most_new = grows ? 160 : 40});
    load.Run();
    if (testing::Test::HasFatalFailure()) return;
    preemptions += load.stats().preemptions;
    forks += load.stats().forks;
    copies += load.stats().copied_blocks;
    hits += load.stats().prefix_tokens_hit;
    promised += load.promised();
  }
  // The loads are worth nothing without these.
  EXPECT_GT(preemptions, 100u);
  EXPECT_GT(hits, 1000u);
  EXPECT_GT(promised, 100u);
  EXPECT_GT(forks, 500u);
  EXPECT_GT(copies, 500u);
}

TEST(EngineLoadTest, LoadsWithDraftsGiveLoneAnswers) {
  uint64_t preemptions = 0, accepted = 0, rejected = 0;
  for (uint64_t seed = 301; seed <= 300 + Seeds(40); ++seed) {
    const bool grows = seed % 2 == 0;
    Load load({.seed = seed,
               .requests = 80,
               .longest_prompt = grows ? 40 : 120,
               .most_new = grows ? 160 : 60,
               .cancel_share = seed % 4 == 0 ? 0.2 : 0.0,
               .drafts = true});
    load.Run();
    if (testing::Test::HasFatalFailure()) return;
    preemptions += load.stats().preemptions;
    accepted += load.stats().speculation.accepted_tokens;
    rejected += load.stats().speculation.draft_tokens - load.stats().speculation.accepted_tokens;
  }
  EXPECT_GT(preemptions, 20u);
  EXPECT_GT(accepted, 5000u);
  EXPECT_GT(rejected, 5000u);
}

TEST(EngineLoadTest, LoadsWithADiskThatFailsAtTimesGiveLoneAnswers) {
  OffloadStats sum;
  const CapturedLog quiet;
  for (uint64_t seed = 201; seed <= 200 + Seeds(30); ++seed) {
    const bool grows = seed % 2 == 0;
    Load load({.seed = seed,
               .longest_prompt = grows ? 40 : 120,
               .most_new = grows ? 160 : 40,
               .cancel_share = seed % 3 == 0 ? 0.2 : 0.0,
               .disk = true});
    load.Run();
    if (testing::Test::HasFatalFailure()) return;
    const OffloadStats stats = load.stats().offload;
    sum.written_blocks += stats.written_blocks;
    sum.restored_blocks += stats.restored_blocks;
    sum.damaged_blocks += stats.damaged_blocks;
    sum.read_errors += stats.read_errors;
    sum.write_errors += stats.write_errors;
  }
  EXPECT_GT(sum.written_blocks, 1000u);
  // What fails depends on when the disk's thread comes to it.
  EXPECT_GT(sum.restored_blocks, 20u);
  EXPECT_GT(sum.damaged_blocks + sum.read_errors, 0u);
  EXPECT_GT(sum.write_errors, 5u);
}

TEST(EngineLoadTest, CancelsAndDeadlinesLeaveNothingBehind) {
  for (uint64_t seed = 101; seed <= 100 + Seeds(15); ++seed) {
    Load load({.seed = seed, .cancel_share = 0.5});
    load.Run();
    if (testing::Test::HasFatalFailure()) return;
  }
}

TEST(EngineLoadTest, AThousandRequestsWithRandomCancelsLeaveNothingActive) {
  Load load({.seed = 4711, .requests = 1000, .cancel_share = 0.3, .check_every = 10});
  load.Run();
  EXPECT_GT(load.stats().finished[static_cast<size_t>(FinishReason::kCancelled)], 50u);
  EXPECT_GT(load.stats().finished[static_cast<size_t>(FinishReason::kDeadline)], 20u);
  EXPECT_GT(load.stats().finished[static_cast<size_t>(FinishReason::kLength)], 200u);
}

}  // namespace
}  // namespace kvist::worker
