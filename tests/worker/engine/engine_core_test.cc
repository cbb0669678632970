#include "worker/engine/engine_core.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/hash_engine_test.h"
#include "tests/support/hash_reference.h"

namespace kvist::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class EngineCoreTest : public HashEngineTest {};

TEST_F(EngineCoreTest, GeneratesWhatTheModelSays) {
  Make();
  const GenerateRequest request = RequestOf("a", Ids(40, 1), 30);
  auto sink = Add(request);
  RunToEnd();
  EXPECT_EQ(sink->ids, ByDefinition(backend, request));
  ASSERT_TRUE(sink->finished.has_value());
  EXPECT_EQ(sink->finished->reason, FinishReason::kLength);
  EXPECT_TRUE(sink->finished->status.ok());
  EXPECT_EQ(sink->finished->prompt_tokens, 40);
  EXPECT_EQ(sink->finished->generated_tokens, 30);
  EXPECT_EQ(sink->finished->cached_tokens, 0);
  ExpectNothingActive();
}

TEST_F(EngineCoreTest, ProgressRisesToThePromptInChunksOfTheBudget) {
  options.max_step_tokens = 64;
  Make();
  auto sink = Add(RequestOf("a", Ids(150, 1), 2));
  RunToEnd();
  EXPECT_THAT(sink->progress, ElementsAre(64, 128, 150));
}

TEST_F(EngineCoreTest, ASecondRequestFindsThePrefixAndGivesTheSame) {
  Make();
  const GenerateRequest request = RequestOf("a", Ids(100, 1), 20);
  auto cold = Add(request);
  RunToEnd();
  const uint64_t cold_tokens = control->tokens;
  auto warm = Add(request);
  RunToEnd();
  EXPECT_EQ(warm->ids, cold->ids);
  EXPECT_EQ(warm->finished->cached_tokens,
            99);  // all but the last: 6 blocks and 3 tokens of a seventh
  EXPECT_EQ(control->tokens - cold_tokens, 1u + 19u);
  EXPECT_GT(control->copies, 0u);
}

TEST_F(EngineCoreTest, AnotherTenantsSaltFindsNothing) {
  Make();
  GenerateRequest request = RequestOf("a", Ids(100, 1), 5);
  request.tenant_salt = "one";
  auto first = Add(request);
  RunToEnd();
  request.tenant_salt = "two";
  auto second = Add(request);
  RunToEnd();
  EXPECT_EQ(second->ids, first->ids);
  EXPECT_EQ(second->finished->cached_tokens, 0);
}

TEST_F(EngineCoreTest, APartialBlockIsContinuedByCopyWithoutTouchingTheOriginal) {
  Make();
  const std::vector<int32_t> stem = Ids(40, 3);
  std::vector<int32_t> left = stem, right = stem;
  left.push_back(1);
  right.push_back(2);
  auto a = Add(RequestOf("a", left, 4));
  RunToEnd();
  auto b = Add(RequestOf("b", right, 4));
  RunToEnd();
  EXPECT_EQ(b->finished->cached_tokens, 40);
  EXPECT_EQ(b->ids, ByDefinition(backend, RequestOf("b", right, 4)));
  auto again = Add(RequestOf("c", left, 4));
  RunToEnd();
  EXPECT_EQ(again->ids, a->ids);
}

TEST_F(EngineCoreTest, WindowedGroupsGiveUpBlocksAndHitOnTheLastWindow) {
  backend.windows = {0, 24};
  backend.context_tokens = 800;
  Make();
  const GenerateRequest request = RequestOf("a", Ids(300, 2), 40);
  auto cold = Add(request);
  int32_t most_windowed = 0;
  while (!core->idle()) {
    Step();
    most_windowed = std::max(most_windowed, core->state().pools[1]->Counts().active);
  }
  EXPECT_EQ(cold->ids, ByDefinition(backend, request));
  EXPECT_LE(most_windowed, 16 + 3);  // a chunk of 256 and the window
  auto warm = Add(request);
  RunToEnd();
  EXPECT_EQ(warm->ids, cold->ids);
  EXPECT_EQ(warm->finished->cached_tokens, 299);
}

TEST_F(EngineCoreTest, KindNoneKeepsNothingAndGivesTheSame) {
  backend.windows = {0, 24};
  options.max_step_tokens = 64;
  Make();
  GenerateRequest request = RequestOf("a", Ids(100, 4), 10);
  auto paged = Add(request);
  RunToEnd();
  const uint64_t before = control->tokens;
  request.cache.allocation = Allocation::kNone;
  auto none = Add(request);
  RunToEnd();
  EXPECT_EQ(none->ids, paged->ids);
  EXPECT_EQ(none->finished->cached_tokens, 0);
  EXPECT_EQ(control->tokens - before, 10u * 100u + 45u);  // 100, 101, ... 109
  EXPECT_THAT(none->progress, ElementsAre(64, 100));
  ExpectNothingActive();
}

TEST_F(EngineCoreTest, AWindowedSequenceOutlivesThePoolAndGivesTheSameCachedOrNot) {
  backend.num_blocks = 8;
  options.max_step_tokens = 64;
  Make();
  GenerateRequest request = RequestOf("a", Ids(200, 4), 100);
  request.cache.attention = {.window_tokens = 48, .sink_tokens = 5};
  auto cold = Add(request);
  RunToEnd();
  EXPECT_EQ(cold->ids, ByDefinition(backend, request));
  auto warm = Add(request);
  RunToEnd();
  EXPECT_EQ(warm->ids, cold->ids);
  request.cache.allocation = Allocation::kNone;
  auto none = Add(request);
  RunToEnd();
  EXPECT_EQ(none->ids, cold->ids);
  request.cache.attention = {};
  EXPECT_EQ(PrepareRequest(core->limits(), &request).code(), absl::StatusCode::kOutOfRange);
  ExpectNothingActive();
}

TEST_F(EngineCoreTest, SequencesOfDifferentSpansShareNothing) {
  Make();
  GenerateRequest request = RequestOf("a", Ids(100, 4), 3);
  for (const cache_manager::AttentionSpan span :
       {cache_manager::AttentionSpan{}, {64, 0}, {64, 4}, {65, 4}}) {
    request.cache.attention = span;
    auto first = Add(request);
    RunToEnd();
    EXPECT_EQ(first->finished->cached_tokens, 0);
    auto second = Add(request);
    RunToEnd();
    EXPECT_EQ(second->finished->cached_tokens, 99);
    EXPECT_EQ(second->ids, ByDefinition(backend, request));
  }
}

TEST_F(EngineCoreTest, ContradictingSpansAreRefused) {
  Make();
  for (const cache_manager::AttentionSpan span :
       {cache_manager::AttentionSpan{15, 0}, {513, 0}, {0, 1}, {64, 64}, {-64, 0}}) {
    GenerateRequest request = RequestOf("a", Ids(10, 1), 3);
    request.cache.attention = span;
    EXPECT_EQ(PrepareRequest(core->limits(), &request).code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(EngineCoreTest, AStaticRequestIsNeverPreemptedAndOthersAre) {
  backend.num_blocks = 12;
  Make();
  std::vector<GenerateRequest> requests;
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 4; ++i) {
    requests.push_back(RequestOf(Numbered("r", i), Ids(20, i), 70));
    // The last of all, which would be the first to go.
    if (i == 3) requests.back().cache.allocation = Allocation::kStatic;
    requests.back().priority = i == 3 ? -1 : 0;
    sinks.push_back(Add(requests.back()));
  }
  RunToEnd();
  EXPECT_GT(core->stats().preemptions, 0u);
  EXPECT_EQ(sinks[3]->finished->preemptions, 0);
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(sinks[i]->ids, ByDefinition(backend, requests[i]));
  CacheOptions cache{.kv_format = KvFormat::kF16};
  EXPECT_EQ(core->stats().requests[cache], 3u);
  cache.allocation = Allocation::kStatic;
  EXPECT_EQ(core->stats().requests[cache], 1u);
  ExpectNothingActive();
}

TEST_F(EngineCoreTest, AStaticRequestThatCanNeverBePromisedIsToldHowMuchCan) {
  backend.num_blocks = 12;
  Make();
  GenerateRequest request = RequestOf("a", Ids(60, 1), 37);  // stores 96: 6 of 12 blocks
  request.cache.allocation = Allocation::kStatic;
  EXPECT_TRUE(PrepareRequest(core->limits(), &request).ok());
  request.stop.max_new_tokens = 38;
  const absl::Status status = PrepareRequest(core->limits(), &request);
  EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(DetailsOf(status).field, "cache.allocation");
  EXPECT_THAT(std::string(status.message()), HasSubstr("96 can be promised"));
  request.cache.attention = {.window_tokens = 32};
  EXPECT_TRUE(PrepareRequest(core->limits(), &request).ok());
}

TEST_F(EngineCoreTest, AStaticRequestWaitsUntilItCanBePromised) {
  backend.num_blocks = 12;
  Make();
  GenerateRequest request = RequestOf("a", Ids(40, 1), 41);  // 5 blocks of 6
  request.cache.allocation = Allocation::kStatic;
  auto first = Add(request);
  request.id = RequestId("b");
  request.prompt_ids = Ids(40, 2);
  request.session = SessionId("s");
  auto second = Add(request);
  Step();
  EXPECT_EQ(core->state().pools[0]->Counts().active, 3);
  EXPECT_EQ(core->state().pools[0]->Counts().reserved, 2);
  EXPECT_TRUE(second->progress.empty());
  while (!first->finished.has_value()) Step();
  EXPECT_TRUE(second->ids.empty());
  Step();
  EXPECT_EQ(second->ids.size(), 1u);
  const auto& sessions = core->state().sessions;
  EXPECT_EQ(sessions.HoldingAt(0, 0).partial_blocks, 1u);
  EXPECT_EQ(sessions.HoldingAt(0, 0).reserved_blocks, 2u);
  RunToEnd();
  EXPECT_EQ(sessions.HoldingAt(0, 0).reserved_blocks, 0u);
  EXPECT_EQ(second->ids, ByDefinition(backend, request));
  ExpectNothingActive();
}

TEST_F(EngineCoreTest, OneBlockLessThanNeededIsRefusedAndExactlyEnoughRuns) {
  backend.num_blocks = 4;
  Make();
  GenerateRequest fits = RequestOf("a", Ids(64, 1), 100);
  ASSERT_TRUE(PrepareRequest(core->limits(), &fits).ok());
  EXPECT_EQ(fits.stop.max_new_tokens, 1);  // stores nothing of its own
  auto sink = Add(RequestOf("a", Ids(64, 1), 100));
  RunToEnd();
  EXPECT_EQ(sink->finished->reason, FinishReason::kLength);
  GenerateRequest over = RequestOf("b", Ids(65, 1), 1);
  const absl::Status status = PrepareRequest(core->limits(), &over);
  EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(std::string(status.message()), HasSubstr("KV memory"));
}

TEST_F(EngineCoreTest, DecodesGoOnWhileALongPromptIsRead) {
  options.max_step_tokens = 32;
  Make();
  auto short_one = Add(RequestOf("short", Ids(8, 1), 60));
  Step();
  auto long_one = Add(RequestOf("long", Ids(400, 2), 1));
  for (size_t step = 2; !long_one->finished.has_value(); ++step) {
    Step();
    EXPECT_EQ(short_one->ids.size(), step);  // one token every step
  }
}

// As many milliseconds as tokens, three times as many from the middle on: as a prompt that gets
// deep.
TEST_F(EngineCoreTest, AStepWithADecodeTakesAboutTheTimeThatIsAllowed) {
  options.max_step_tokens = 200;
  options.max_step_seconds = 0.06;
  Make();
  int64_t ms_per_token = 1;
  std::vector<int64_t> steps_ms;
  control->on_run = [&](const Batch& batch) {
    int64_t tokens = 0;
    for (const SequenceSlice& slice : batch.slices) tokens += std::ssize(slice.tokens);
    steps_ms.push_back(tokens * ms_per_token);
    clock.Advance(std::chrono::milliseconds(steps_ms.back()));
  };
  const GenerateRequest request = RequestOf("short", Ids(8, 1), 60);
  auto decoding = Add(request);
  Step();
  const GenerateRequest prompt = RequestOf("long", Ids(490, 2), 2);
  auto reading = Add(prompt);
  Step();
  EXPECT_EQ(steps_ms.back(), 64);  // nothing was measured
  for (int step = 0; step < 3; ++step) {
    Step();
    EXPECT_EQ(steps_ms.back(), 60);
  }
  ms_per_token = 3;
  for (int step = 0; step < 7; ++step) Step();
  EXPECT_NEAR(static_cast<double>(steps_ms.back()), 60, 6);
  RunToEnd();
  EXPECT_EQ(decoding->ids, ByDefinition(backend, request));
  EXPECT_EQ(reading->ids, ByDefinition(backend, prompt));
}

TEST_F(EngineCoreTest, PreemptionChangesNoToken) {
  backend.num_blocks = 8;
  Make();
  std::vector<GenerateRequest> requests;
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 3; ++i) {
    requests.push_back(RequestOf(Numbered("r", i), Ids(20, i), 70));
    sinks.push_back(Add(requests.back()));
  }
  RunToEnd();
  EXPECT_GT(core->stats().preemptions, 0u);
  EXPECT_EQ(sinks[0]->finished->preemptions, 0);  // the first is never the victim
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(sinks[i]->ids, ByDefinition(backend, requests[i]));
  ExpectNothingActive();
}

// The short one has more tokens behind its last full block, and fewer in all.
TEST_F(EngineCoreTest, TheVictimIsTheOneWithTheLeastToComputeAgain) {
  backend.num_blocks = 8;  // 2 + 3 + 1, and as many as run stay spare at the last one's admission
  Make();
  auto needy = Add(RequestOf("needy", Ids(30, 1), 10));
  auto longer = Add(RequestOf("long", Ids(47, 2), 10));
  auto shorter = Add(RequestOf("short", Ids(16, 3), 10));
  RunToEnd();
  EXPECT_EQ(needy->finished->preemptions, 0);
  EXPECT_EQ(longer->finished->preemptions, 0);
  EXPECT_EQ(shorter->finished->preemptions, 1);
}

TEST_F(EngineCoreTest, HigherPriorityIsServedFirst) {
  options.max_running_sequences = 1;
  Make();
  GenerateRequest low = RequestOf("low", Ids(8, 1), 3);
  GenerateRequest high = RequestOf("high", Ids(8, 2), 3);
  low.priority = -1;
  high.priority = 1;
  auto low_sink = Add(low);
  auto high_sink = Add(high);
  while (!high_sink->finished.has_value()) Step();
  EXPECT_TRUE(low_sink->ids.empty());
  RunToEnd();
  EXPECT_EQ(low_sink->ids, ByDefinition(backend, low));
}

TEST_F(EngineCoreTest, AStopIdEndsAndBelongsToTheIds) {
  Make();
  GenerateRequest request = RequestOf("a", Ids(30, 1), 50);
  const std::vector<int32_t> free_run = ByDefinition(backend, request);
  request.stop.stop_ids = {free_run[10]};
  auto sink = Add(request);
  RunToEnd();
  EXPECT_EQ(sink->finished->reason, FinishReason::kStop);
  EXPECT_EQ(sink->ids.back(), free_run[10]);
  EXPECT_EQ(sink->ids, ByDefinition(backend, request));
}

TEST_F(EngineCoreTest, StopIdsAreNotChosenBeforeMinNewTokens) {
  Make();
  GenerateRequest request = RequestOf("a", Ids(30, 1), 50);
  const std::vector<int32_t> free_run = ByDefinition(backend, request);
  request.stop.stop_ids = {free_run[2], free_run[5]};
  request.stop.min_new_tokens = 20;
  auto sink = Add(request);
  RunToEnd();
  EXPECT_GT(sink->ids.size(), 20u);
  EXPECT_EQ(sink->ids, ByDefinition(backend, request));
}

TEST_F(EngineCoreTest, AReplayGoesOnWhereTheEarlierAttemptStopped) {
  Make();
  GenerateRequest request = RequestOf("a", Ids(30, 1), 40);
  request.sampling.temperature = 1.0f;
  request.sampling.seed = 5;
  request.sampling.repetition_penalty = 1.3f;
  request.sampling.presence_penalty = 0.5f;
  const std::vector<int32_t> whole = ByDefinition(backend, request);
  request.generated_ids.assign(whole.begin(), whole.begin() + 17);
  auto sink = Add(request);
  RunToEnd();
  EXPECT_EQ(sink->ids, std::vector<int32_t>(whole.begin() + 17, whole.end()));
  EXPECT_EQ(sink->outputs[0].index, 17);
  EXPECT_EQ(sink->finished->generated_tokens, 40);
}

TEST_F(EngineCoreTest, AReplayOfACompleteAnswerEndsWithoutAToken) {
  Make();
  GenerateRequest request = RequestOf("a", Ids(30, 1), 5);
  request.generated_ids = ByDefinition(backend, request);
  auto full = Add(request);
  ASSERT_TRUE(full->finished.has_value());
  EXPECT_EQ(full->finished->reason, FinishReason::kLength);
  request.stop.max_new_tokens = 50;
  request.stop.stop_ids = {request.generated_ids.back()};
  auto stopped = Add(request);
  ASSERT_TRUE(stopped->finished.has_value());
  EXPECT_EQ(stopped->finished->reason, FinishReason::kStop);
  EXPECT_TRUE(core->idle());
}

TEST_F(EngineCoreTest, CancelEndsWaitingPrefillingAndDecodingRequestsOnce) {
  options.max_running_sequences = 2;
  options.max_step_tokens = 32;
  Make();
  auto decoding = Add(RequestOf("decoding", Ids(8, 1), 100));
  Step();
  auto prefilling = Add(RequestOf("prefilling", Ids(200, 2), 10));
  auto waiting = Add(RequestOf("waiting", Ids(8, 3), 10));
  Step();
  ASSERT_FALSE(prefilling->progress.empty());
  ASSERT_TRUE(waiting->progress.empty());
  for (const char* id : {"decoding", "prefilling", "waiting", "waiting", "unknown"}) {
    core->Cancel(RequestId(id));
  }
  for (const auto& sink : {decoding, prefilling, waiting}) {
    ASSERT_TRUE(sink->finished.has_value());
    EXPECT_EQ(sink->finished->reason, FinishReason::kCancelled);
    EXPECT_EQ(sink->finished->status.code(), absl::StatusCode::kCancelled);
  }
  EXPECT_EQ(decoding->finished->generated_tokens, 2);
  EXPECT_TRUE(core->idle());
  ExpectNothingActive();
}

TEST_F(EngineCoreTest, ADeadlineEndsQueuedAndDecodingRequests) {
  options.max_running_sequences = 1;
  Make();
  GenerateRequest first = RequestOf("first", Ids(8, 1), 100);
  GenerateRequest second = RequestOf("second", Ids(8, 2), 100);
  first.deadline = clock.Now() + std::chrono::milliseconds(10);
  second.deadline = clock.Now() + std::chrono::milliseconds(5);
  auto decoding = Add(first);
  auto queued = Add(second);
  for (int i = 0; i < 20 && !core->idle(); ++i) Step();
  EXPECT_EQ(decoding->finished->reason, FinishReason::kDeadline);
  EXPECT_EQ(queued->finished->reason, FinishReason::kDeadline);
  EXPECT_EQ(queued->finished->status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(decoding->ids.size(), 9u);
  EXPECT_TRUE(queued->ids.empty());
  ExpectNothingActive();
}

TEST_F(EngineCoreTest, AFailedStepEndsItsRequestsAndTheNextOnesRun) {
  Make();
  auto sink = Add(RequestOf("a", Ids(20, 1), 10));
  Step();
  control->fail_next_run = true;
  Step();
  ASSERT_TRUE(sink->finished.has_value());
  EXPECT_EQ(sink->finished->reason, FinishReason::kError);
  EXPECT_EQ(sink->finished->status.code(), absl::StatusCode::kInternal);
  ExpectNothingActive();
  const GenerateRequest next = RequestOf("b", Ids(20, 1), 10);
  auto next_sink = Add(next);
  RunToEnd();
  EXPECT_EQ(next_sink->ids, ByDefinition(backend, next));
}

TEST_F(EngineCoreTest, LogitsThatAreNoNumbersEndTheRequestWithAnError) {
  Make();
  auto sink = Add(RequestOf("a", Ids(20, 1), 10));
  control->nan_next_run = true;
  Step();
  ASSERT_TRUE(sink->finished.has_value());
  EXPECT_EQ(sink->finished->status.code(), absl::StatusCode::kInternal);
  ExpectNothingActive();
}

TEST_F(EngineCoreTest, SecondsAreCountedFromTheQueueOn) {
  options.max_running_sequences = 1;
  Make();
  auto first = Add(RequestOf("first", Ids(8, 1), 5));
  auto second = Add(RequestOf("second", Ids(8, 2), 5));
  RunToEnd();
  EXPECT_NEAR(second->finished->queue_seconds, 0.006, 1e-9);
  EXPECT_NEAR(second->finished->prefill_seconds, 0.0, 1e-9);
  EXPECT_NEAR(second->finished->decode_seconds, 0.004, 1e-9);
}

TEST_F(EngineCoreTest, ASessionHoldsItsChainAfterTheTurnAndIsIdle) {
  Make();
  GenerateRequest request = RequestOf("a", Ids(40, 1), 10);
  request.session = SessionId("s");
  request.tenant = TenantId("t");
  Add(request);
  Step();
  auto& sessions = core->state().sessions;
  EXPECT_EQ(sessions.Chain(SessionId("s"), 0).size(), 2u);
  EXPECT_EQ(sessions.FactsAt(0)->phase, cache_manager::SessionPhase::kActive);
  EXPECT_EQ(sessions.HoldingAt(0, 0).partial_blocks, 1u);
  RunToEnd();
  EXPECT_EQ(sessions.Chain(SessionId("s"), 0).size(), 3u);  // 49 stored tokens
  EXPECT_EQ(sessions.FactsAt(0)->phase, cache_manager::SessionPhase::kIdle);
  EXPECT_EQ(sessions.HoldingAt(0, 0).partial_blocks, 0u);
}

}  // namespace
}  // namespace kvist::worker
