// Several samples of one prompt on the hash backend, where a wrong table, a lost copy or a write
// into a shared block changes the output.
#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/hash_engine_test.h"
#include "tests/support/hash_reference.h"
#include "worker/engine/engine_core.h"

namespace kvist::worker {
namespace {

struct Sample {
  GenerateRequest request;
  std::shared_ptr<RecordingSink> sink;
};

class EngineForksTest : public HashEngineTest {
 protected:
  Sample Add(GenerateRequest request) {
    EXPECT_TRUE(PrepareRequest(core->limits(), &request).ok());
    return {request, HashEngineTest::Add(request)};
  }
  // Sample `index` of a sampled request; all but the first are forks of it.
  static GenerateRequest SampleOf(GenerateRequest request, int index) {
    request.sampling = {.temperature = 0.9f,
                        .frequency_penalty = 0.2f,
                        .seed = 7,
                        .sample_index = static_cast<uint32_t>(index)};
    if (index == 0) return request;
    request.fork_of = request.id;
    request.id = RequestId(Numbered(request.id.value() + ".", index));
    return request;
  }
  std::vector<Sample> AddSamples(const GenerateRequest& request, int count) {
    std::vector<Sample> samples;
    for (int i = 0; i < count; ++i) samples.push_back(Add(SampleOf(request, i)));
    return samples;
  }
  void ExpectLoneAnswers(const std::vector<Sample>& samples) {
    for (const Sample& sample : samples) {
      ASSERT_TRUE(sample.sink->finished.has_value());
      EXPECT_TRUE(sample.sink->finished->status.ok()) << sample.sink->finished->status;
      EXPECT_EQ(sample.sink->ids, ByDefinition(backend, sample.request))
          << sample.request.id.value();
    }
  }
};

TEST_F(EngineForksTest, SamplesAreLoneAnswersAndThePromptIsComputedOnce) {
  for (const int64_t prompt : {1, 15, 16, 17, 31, 32, 33, 40, 100}) {
    Make();
    control->tokens = 0;
    const std::vector<Sample> samples = AddSamples(RequestOf("a", Ids(prompt, 1), 20), 4);
    RunToEnd();
    ExpectLoneAnswers(samples);
    EXPECT_NE(samples[0].sink->ids, samples[1].sink->ids);
    EXPECT_EQ(control->tokens, static_cast<uint64_t>(prompt + 4 * 19)) << prompt;
    EXPECT_EQ(samples[0].sink->finished->cached_tokens, 0);
    EXPECT_EQ(samples[3].sink->finished->cached_tokens, prompt);
    EXPECT_EQ(core->stats().forks, 3u);
    // All but the last writer copy the partial block.
    EXPECT_EQ(core->stats().copied_blocks, prompt % 16 == 0 ? 0u : 3u) << prompt;
  }
}

TEST_F(EngineForksTest, GreedySamplesAreEqualAndAdoptEachOthersBlocks) {
  Make();
  GenerateRequest request = RequestOf("a", Ids(40, 1), 30);
  std::vector<Sample> samples = {Add(request)};
  request.fork_of = request.id;
  request.id = RequestId("b");
  samples.push_back(Add(request));
  while (core->stats().decode_tokens < 2 * 9) Step();
  // 49 stored tokens each: three full blocks in common, and a partial one each.
  EXPECT_EQ(core->state().pools[0]->Counts().active, 3 + 2);
  RunToEnd();
  ExpectLoneAnswers(samples);
  EXPECT_EQ(samples[0].sink->ids, samples[1].sink->ids);
}

TEST_F(EngineForksTest, WhoEndsWithItsFirstTokenCopiesNothing) {
  Make();
  const std::vector<Sample> samples = AddSamples(RequestOf("a", Ids(40, 1), 1), 5);
  RunToEnd();
  ExpectLoneAnswers(samples);
  EXPECT_EQ(core->stats().copied_blocks, 0u);
}

TEST_F(EngineForksTest, WindowsAndSinksAreShared) {
  backend.windows = {0, 24};
  options.max_step_tokens = 64;
  for (const int64_t prompt : {20, 48, 90, 147}) {
    Make();
    GenerateRequest request = RequestOf("a", Ids(prompt, 2), 60);
    request.cache.attention = {.window_tokens = 40, .sink_tokens = 5};
    const std::vector<Sample> samples = AddSamples(request, 3);
    RunToEnd();
    ExpectLoneAnswers(samples);
    EXPECT_EQ(core->stats().forks, 2u);
  }
}

TEST_F(EngineForksTest, StaticSamplesHaveTheirPromisesOrWaitForThem) {
  backend.num_blocks = 20;  // ten may be promised: two samples of five blocks
  Make();
  GenerateRequest request = RequestOf("a", Ids(40, 2), 40);
  request.cache.allocation = Allocation::kStatic;
  const std::vector<Sample> samples = AddSamples(request, 4);
  Step();
  for (const Sample& sample : samples) EXPECT_EQ(sample.sink->ids.size(), 1u);
  EXPECT_EQ(core->stats().running, 2);
  EXPECT_EQ(core->stats().waiting, 2);
  EXPECT_EQ(core->stats().copied_blocks, 1u);  // at once: its promise holds no shared block
  RunToEnd();
  ExpectLoneAnswers(samples);
  for (const Sample& sample : samples) EXPECT_EQ(sample.sink->finished->preemptions, 0);
}

TEST_F(EngineForksTest, WithoutACacheTheFirstTokenIsShared) {
  options.max_step_tokens = 64;
  Make();
  GenerateRequest request = RequestOf("a", Ids(50, 2), 3);
  request.cache.allocation = Allocation::kNone;
  const std::vector<Sample> samples = AddSamples(request, 2);
  RunToEnd();
  ExpectLoneAnswers(samples);
  EXPECT_EQ(control->tokens, 50u + 2 * (51u + 52u));
}

TEST_F(EngineForksTest, SamplesThatOutgrowThePoolArePreemptedAndGiveTheSame) {
  backend.num_blocks = 9;
  Make();
  const std::vector<Sample> samples = AddSamples(RequestOf("a", Ids(40, 2), 60), 4);
  RunToEnd();
  ExpectLoneAnswers(samples);
  EXPECT_GT(core->stats().preemptions, 0u);
}

TEST_F(EngineForksTest, WhoFindsNoPlaceHasItsFirstTokenAndWaits) {
  options.max_running_sequences = 2;
  Make();
  const std::vector<Sample> samples = AddSamples(RequestOf("a", Ids(40, 2), 20), 4);
  Step();
  for (const Sample& sample : samples) EXPECT_EQ(sample.sink->ids.size(), 1u);
  EXPECT_EQ(core->stats().running, 2);
  RunToEnd();
  ExpectLoneAnswers(samples);
}

TEST_F(EngineForksTest, NobodyWhoWaitsIsOvertakenBySamplesOfALaterPrompt) {
  backend.num_blocks = 12;
  options.max_running_sequences = 4;
  Make();
  const Sample large = Add(RequestOf("large", Ids(150, 3), 30));
  Step();
  const Sample waits = Add(RequestOf("waits", Ids(100, 4), 2));  // does not fit beside it
  const std::vector<Sample> samples = AddSamples(RequestOf("a", Ids(17, 2), 2), 3);
  bool begun_before = false;
  while (!core->idle()) {
    Step();
    begun_before |= waits.sink->ids.empty() && !samples[1].sink->ids.empty();
  }
  EXPECT_FALSE(begun_before);
  ExpectLoneAnswers(samples);
  ExpectLoneAnswers({large, waits});
}

TEST_F(EngineForksTest, IfTheLeaderIsCancelledBeforeThePromptTheNextOneComputesIt) {
  options.max_step_tokens = 64;
  Make();
  std::vector<Sample> samples = AddSamples(RequestOf("a", Ids(150, 2), 10), 4);
  Step();
  EXPECT_EQ(core->stats().running, 1);
  EXPECT_EQ(core->load().waiting_sequences, 3u);
  EXPECT_EQ(core->load().queued_prefill_tokens, 150u - 64u);
  core->Cancel(samples[0].request.id);
  Step();
  EXPECT_EQ(core->stats().running, 1);
  RunToEnd();
  EXPECT_EQ(samples[0].sink->finished->reason, FinishReason::kCancelled);
  samples.erase(samples.begin());
  ExpectLoneAnswers(samples);
  EXPECT_EQ(core->stats().forks, 2u);
  EXPECT_EQ(control->tokens, 150u + 3 * 9);  // what was computed is found again
}

TEST_F(EngineForksTest, ALeaderThatIsCancelledAfterTheForkLeavesTheOthersTheirBlocks) {
  Make();
  std::vector<Sample> samples = AddSamples(RequestOf("a", Ids(40, 2), 20), 3);
  Step();
  core->Cancel(samples[0].request.id);
  RunToEnd();
  EXPECT_EQ(samples[0].sink->finished->reason, FinishReason::kCancelled);
  samples.erase(samples.begin());
  ExpectLoneAnswers(samples);
  EXPECT_EQ(core->stats().copied_blocks, 1u);  // the other one wrote in place
}

TEST_F(EngineForksTest, AFollowerThatEndsWhileItWaitsLeavesTheOthers) {
  options.max_step_tokens = 64;
  Make();
  const GenerateRequest request = RequestOf("a", Ids(150, 2), 10);
  std::vector<Sample> samples = AddSamples(request, 3);
  GenerateRequest hurried = SampleOf(request, 3);
  hurried.deadline = clock.Now() + std::chrono::milliseconds(2);
  const Sample late = Add(hurried);
  Step();
  core->Cancel(samples[1].request.id);
  RunToEnd();
  EXPECT_EQ(samples[1].sink->finished->reason, FinishReason::kCancelled);
  EXPECT_EQ(late.sink->finished->reason, FinishReason::kDeadline);
  ExpectLoneAnswers({samples[0], samples[2]});
}

TEST_F(EngineForksTest, WhoComesAfterThePromptFindsAllOfItButTheLastToken) {
  for (const int64_t prompt : {10, 32, 40}) {
    for (const int steps : {1, 3, 30}) {  // the last: its sibling has ended
      Make();
      const GenerateRequest request = RequestOf("a", Ids(prompt, 2), 10);
      std::vector<Sample> samples = {Add(SampleOf(request, 0))};
      for (int i = 0; i < steps; ++i) Step();
      samples.push_back(Add(SampleOf(request, 1)));
      RunToEnd();
      ExpectLoneAnswers(samples);
      EXPECT_EQ(samples[1].sink->finished->cached_tokens, prompt - 1) << prompt << " " << steps;
    }
  }
}

TEST_F(EngineForksTest, AForkOfNobodyOrOfAnotherPromptRunsAsAnyRequest) {
  options.max_step_tokens = 64;
  Make();
  const GenerateRequest request = RequestOf("a", Ids(100, 2), 5);
  std::vector<Sample> samples = {Add(request)};
  std::vector<GenerateRequest> others(6, request);
  others[0].fork_of = RequestId("nobody");
  for (GenerateRequest& other : others) {
    if (other.fork_of.empty()) other.fork_of = request.id;
  }
  others[1].prompt_ids.back() ^= 1;
  others[2].tenant_salt = "another";
  others[3].cache.attention = {.window_tokens = 32};
  others[4].cache.allocation = Allocation::kNone;
  others[5].fork_of = RequestId("r5");  // itself
  for (size_t i = 0; i < others.size(); ++i) {
    others[i].id = RequestId(Numbered("r", static_cast<int>(i)));
    samples.push_back(Add(others[i]));
  }
  EXPECT_EQ(core->load().queued_prefill_tokens, 7u * 100u);
  RunToEnd();
  ExpectLoneAnswers(samples);
  EXPECT_EQ(core->stats().forks, 0u);
}

TEST_F(EngineForksTest, AReplayWaitsForThePromptAndGoesOnFromItsOwnTokens) {
  options.max_step_tokens = 64;
  Make();
  const GenerateRequest request = RequestOf("a", Ids(120, 2), 12);
  std::vector<Sample> samples = {Add(SampleOf(request, 0))};
  GenerateRequest replay = SampleOf(request, 1);
  const std::vector<int32_t> all = ByDefinition(backend, replay);
  replay.generated_ids.assign(all.begin(), all.begin() + 5);
  const Sample replayed = Add(replay);
  EXPECT_EQ(core->load().queued_prefill_tokens, 120u);
  RunToEnd();
  ExpectLoneAnswers(samples);
  EXPECT_EQ(replayed.sink->ids, std::vector<int32_t>(all.begin() + 5, all.end()));
  EXPECT_EQ(replayed.sink->finished->cached_tokens, 112);  // in whole blocks
}

TEST_F(EngineForksTest, AFailedStepOfTheLeaderLeavesThePromptToTheNext) {
  Make();
  std::vector<Sample> samples = AddSamples(RequestOf("a", Ids(40, 2), 10), 3);
  control->fail_next_run = true;
  Step();
  EXPECT_EQ(samples[0].sink->finished->reason, FinishReason::kError);
  RunToEnd();
  samples.erase(samples.begin());
  ExpectLoneAnswers(samples);
}

TEST_F(EngineForksTest, LogitsThatAreNoNumbersEndAllThatDrawFromThem) {
  Make();
  const std::vector<Sample> samples = AddSamples(RequestOf("a", Ids(40, 2), 10), 3);
  control->nan_next_run = true;
  Step();
  for (const Sample& sample : samples) {
    ASSERT_TRUE(sample.sink->finished.has_value());
    EXPECT_EQ(sample.sink->finished->status.code(), absl::StatusCode::kInternal);
  }
  EXPECT_TRUE(core->idle());
}

TEST_F(EngineForksTest, EachSampleHoldsItsChainUnderItsOwnSession) {
  Make();
  std::vector<Sample> samples;
  for (int i = 0; i < 2; ++i) {
    GenerateRequest request = SampleOf(RequestOf("a", Ids(40, 2), 20), i);
    request.session = SessionId(Numbered("s", i));
    samples.push_back(Add(request));
  }
  RunToEnd();
  const auto& sessions = core->state().sessions;
  EXPECT_EQ(sessions.Chain(SessionId("s0"), 0).size(), 3u);
  EXPECT_EQ(sessions.Chain(SessionId("s1"), 0).size(), 3u);
  EXPECT_EQ(sessions.SharedBlocks(SessionId("s1"), 0), 2u);
  EXPECT_EQ(sessions.FactsAt(1)->phase, cache_manager::SessionPhase::kIdle);
}

TEST_F(EngineForksTest, TimesOfAForkCountTheWaitForThePrompt) {
  options.max_step_tokens = 64;
  Make();
  const std::vector<Sample> samples = AddSamples(RequestOf("a", Ids(128, 2), 5), 2);
  RunToEnd();
  for (const Sample& sample : samples) {
    EXPECT_NEAR(sample.sink->finished->queue_seconds, 0.001, 1e-9);
    EXPECT_NEAR(sample.sink->finished->prefill_seconds, 0.001, 1e-9);
    EXPECT_NEAR(sample.sink->finished->decode_seconds, 0.004, 1e-9);
  }
}

}  // namespace
}  // namespace kvist::worker
