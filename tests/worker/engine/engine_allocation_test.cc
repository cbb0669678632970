// A step of decode takes no memory, from scheduling to the last sink, whatever its requests'
// caches: every operator new while Step runs is counted. Offload is left out: writing back takes a
// little.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/allocation_counter.h"
#include "tests/support/hash_reference.h"
#include "tests/support/simulated_clock.h"
#include "tests/support/tiny_model.h"
#include "worker/engine/engine_core.h"

namespace kvist::worker {
namespace {

// Counts and keeps nothing.
class CountingSink final : public TokenSink {
 public:
  void OnTokens(std::span<const TokenOutput> tokens) override {
    count_ += static_cast<int64_t>(tokens.size());
  }
  void OnProgress(int64_t, int64_t) override {}
  void OnFinished(const FinishInfo&) override {}
  int64_t count() const { return count_; }

 private:
  int64_t count_ = 0;
};

struct SamplingRow {
  const char* name;
  SamplingOptions options;
};
const SamplingRow kSampling[] = {
    {"greedy", {}},
    {"sampled", {.temperature = 0.8f, .top_k = 40, .top_p = 0.9f, .min_p = 0.01f, .seed = 7}},
    {"penalties and logprobs",
     {.temperature = 0.8f, .repetition_penalty = 1.1f, .presence_penalty = 0.5f, .logprobs = 5}},
};

// Of text that repeats: there is something to draft.
const SamplingRow kRepeating[] = {
    {"greedy", {.frequency_penalty = -2.0f}},
    {"sampled, logprobs",
     {.temperature = 1.0f, .presence_penalty = -2.0f, .frequency_penalty = -0.1f, .logprobs = 5}},
};

struct CacheRow {
  const char* name;
  CacheOptions options;
};
const CacheRow kCaches[] = {
    {"paged", {}},
    {"static", {.allocation = Allocation::kStatic}},
    {"window and sinks", {.attention = {.window_tokens = 20, .sink_tokens = 3}}},
    {"none", {.allocation = Allocation::kNone}},
    {"q8", {.kv_format = KvFormat::kQ8}},
    {"q4", {.kv_format = KvFormat::kQ4}},
};

struct ModelRow {
  const char* name;
  bool holds_q4;
};

class EngineAllocationTest : public ::testing::TestWithParam<ModelRow> {
 protected:
  void Make(int32_t drafts) {
    CpuBackendOptions options = kvist::testing::TinyOptions();
    options.threads = 2;
    options.kernels = "auto";
    options.kv_formats = {KvFormat::kF16, KvFormat::kQ8};
    if (GetParam().holds_q4) options.kv_formats.push_back(KvFormat::kQ4);
    core_ = std::make_unique<EngineCore>(EngineOptions{.speculative_tokens = drafts},
                                         kvist::testing::OpenTinyModel(GetParam().name, options),
                                         &clock_);
    sink_ = std::make_shared<CountingSink>();
  }

  void Add(int i, const SamplingRow& row, bool in_session, int64_t most_new,
           const CacheOptions& cache = {}) {
    GenerateRequest request = RequestOf(Numbered("r", i), Ids(5 + 13 * i, i), most_new);
    // Longer than what a string holds without memory.
    if (in_session) request.session = SessionId(Numbered("a session with a long name ", i));
    if (in_session) request.tenant = TenantId("a tenant with a long name");
    request.sampling = row.options;
    request.cache = cache;
    const absl::Status status = PrepareRequest(core_->limits(), &request);
    ASSERT_TRUE(status.ok()) << status;
    core_->Add(std::move(request), sink_, clock_.Now());
  }

  // Three requests, past their prefill and so far in decode that every reused buffer has had its
  // full size.
  void Begin(const SamplingRow& row, bool in_sessions, int32_t drafts = 0,
             const CacheOptions& cache = {}) {
    Make(drafts);
    const int requests = drafts == 0 ? kRequests : 1;
    for (int i = 0; i < requests; ++i) Add(i, row, in_sessions, drafts == 0 ? 120 : 240, cache);
    for (int i = 0; i < 20; ++i) ASSERT_TRUE(core_->Step());
  }

  int64_t AllocationsOfAStep() {
    testing::StartCountingAllocations();
    const bool ran = core_->Step();
    const int64_t taken = testing::StopCountingAllocations();
    EXPECT_TRUE(ran);
    return taken;
  }

  static constexpr int kRequests = 3;
  // Over the ends of several blocks of each sequence: they are named, and new ones taken.
  static constexpr int kSteps = 80;
  SimulatedClock clock_;
  std::unique_ptr<EngineCore> core_;
  std::shared_ptr<CountingSink> sink_;
};

TEST_P(EngineAllocationTest, AStepOfDecodeTakesNoMemory) {
  for (const SamplingRow& row : kSampling) {
    Begin(row, /*in_sessions=*/false);
    const int64_t before = sink_->count();
    for (int i = 0; i < kSteps; ++i) {
      EXPECT_EQ(AllocationsOfAStep(), 0) << row.name << ", step " << i;
    }
    EXPECT_EQ(sink_->count() - before, kRequests * kSteps);
    EXPECT_FALSE(core_->idle());
  }
}

TEST_P(EngineAllocationTest, AStepWithDraftsTakesNoMemory) {
  uint64_t drafts = 0, accepted = 0;
  for (const SamplingRow& row : kRepeating) {
    Begin(row, /*in_sessions=*/false, kMaxSpeculativeTokens);
    const uint64_t before = core_->stats().speculation.draft_tokens;
    // So many that a step more is not the last.
    for (int i = 0; sink_->count() < 240 - (1 + kMaxSpeculativeTokens); ++i) {
      EXPECT_EQ(AllocationsOfAStep(), 0) << row.name << ", step " << i;
    }
    EXPECT_FALSE(core_->idle());
    drafts += core_->stats().speculation.draft_tokens - before;
    accepted += core_->stats().speculation.accepted_tokens;
  }
  EXPECT_GT(drafts, 50u);
  EXPECT_GT(accepted, 50u);
}

// What is drafted from is the engine's, taken at its start: with many requests nobody needs it.
TEST_P(EngineAllocationTest, ARequestTakesNoMemoryOfItsOwnToDraftFrom) {
  int64_t taken[2];
  for (const int32_t drafts : {0, 1}) {
    Make(drafts);
    for (int i = 0; i < kRequests; ++i) Add(i, kSampling[0], /*in_session=*/false, 120);
    taken[drafts] = 0;
    for (int i = 0; i < 20; ++i) taken[drafts] += AllocationsOfAStep();
    EXPECT_EQ(sink_->count(), kRequests * 20);
  }
  EXPECT_EQ(taken[1], taken[0]);
}

TEST_P(EngineAllocationTest, NorInASessionWhateverTheCache) {
  for (const CacheRow& cache : kCaches) {
    if (cache.options.kv_format == KvFormat::kQ4 && !GetParam().holds_q4) continue;
    Begin(kSampling[1], /*in_sessions=*/true, /*drafts=*/0, cache.options);
    const int64_t before = sink_->count();
    const uint64_t last = core_->state().events.last_seq();
    for (int i = 0; i < kSteps; ++i) {
      EXPECT_EQ(AllocationsOfAStep(), 0) << cache.name << ", step " << i;
    }
    // What is computed anew for every token does not fit into a step together.
    const bool kept = cache.options.allocation != Allocation::kNone;
    EXPECT_GE(sink_->count() - before, kept ? kRequests * kSteps : kSteps);
    EXPECT_EQ(core_->state().events.last_seq() > last, kept) << "blocks were filled, and told";
  }
}

INSTANTIATE_TEST_SUITE_P(Tiny, EngineAllocationTest,
                         ::testing::Values(ModelRow{"llama_a.Q4_1", false},
                                           ModelRow{"gemma3_a.Q4_0", true}),
                         [](const auto& test) { return std::string(test.param.name, 5); });

}  // namespace
}  // namespace kvist::worker
