// Drafts on the engine's core and a model that mostly repeats itself: the answers are those by
// definition, whatever is drafted.
#include "worker/engine/speculation.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/hash_engine_test.h"
#include "tests/support/hash_reference.h"
#include "worker/engine/engine_core.h"

namespace kvist::worker {
namespace {

class SpeculationTest : public HashEngineTest {
 protected:
  SpeculationTest() {
    backend.repeat_tokens = 5;
    options.speculative_tokens = 4;
    control->on_run = [this](const Batch& batch) { OnRun(batch); };
  }
  std::shared_ptr<RecordingSink> RunAlone(const GenerateRequest& request) {
    auto sink = Add(request);
    RunToEnd();
    EXPECT_EQ(sink->ids, ByDefinition(backend, request));
    return sink;
  }
  SpeculationStats stats() const { return core->stats().speculation; }

  virtual void OnRun(const Batch& batch) {
    most_slice_tokens = 0;
    last_position = 0;
    for (const SequenceSlice& slice : batch.slices) {
      const int64_t tokens = static_cast<int64_t>(slice.tokens.size());
      most_slice_tokens = std::max(most_slice_tokens, tokens);
      last_position = std::max(last_position, slice.first_position + tokens);
    }
    if (fail_with_drafts != nullptr && most_slice_tokens == 5) {
      std::exchange(fail_with_drafts, nullptr)->store(true);
    }
  }

  std::atomic<bool>* fail_with_drafts = nullptr;  // set in the first step of five rows
  // Of the last step:
  int64_t most_slice_tokens = 0;
  int64_t last_position = 0;  // behind the last token
};

TEST_F(SpeculationTest, TextThatRepeatsComesInFewerSteps) {
  Make();
  const auto sink = RunAlone(RequestOf("a", Ids(40, 1), 200));
  EXPECT_LT(core->stats().steps, 120u);
  EXPECT_GT(stats().accepted_tokens, 80u);
  EXPECT_GT(stats().draft_tokens, stats().accepted_tokens);
  EXPECT_GT(stats().drafts, 0u);
  EXPECT_EQ(core->stats().decode_tokens, 199u);  // one each, whatever was drafted
  EXPECT_EQ(sink->finished->draft_tokens, static_cast<int64_t>(stats().draft_tokens));
  EXPECT_EQ(sink->finished->accepted_tokens, static_cast<int64_t>(stats().accepted_tokens));
}

TEST_F(SpeculationTest, WithoutItEveryStepGivesOneToken) {
  options.speculative_tokens = 0;
  Make();
  RunAlone(RequestOf("a", Ids(40, 1), 200));
  EXPECT_EQ(core->stats().steps, 200u);
  EXPECT_EQ(stats().draft_tokens, 0u);
}

TEST_F(SpeculationTest, ADraftMayBeWrongAtEveryPlace) {
  options.speculative_tokens = kMaxSpeculativeTokens;
  Make();
  std::set<std::pair<int64_t, int64_t>> seen;  // drafts, accepted
  for (int salt = 0; salt < 20; ++salt) {
    const GenerateRequest request = RequestOf("a", Ids(30 + salt, salt), 150);
    auto sink = Add(request);
    Step();
    while (!core->idle()) {
      const size_t before = sink->ids.size();
      Step();
      seen.insert({most_slice_tokens - 1, static_cast<int64_t>(sink->ids.size() - before) - 1});
    }
    ASSERT_EQ(sink->ids, ByDefinition(backend, request)) << salt;
  }
  for (int64_t accepted = 0; accepted <= kMaxSpeculativeTokens; ++accepted) {
    EXPECT_TRUE(seen.contains({kMaxSpeculativeTokens, accepted})) << accepted;
  }
}

TEST_F(SpeculationTest, NothingIsDraftedBehindTheLastToken) {
  Make();
  for (int64_t most_new = 1; most_new < 40; ++most_new) {
    auto sink = Add(RequestOf("a", Ids(40, 1), most_new));
    while (!core->idle()) {
      Step();
      EXPECT_LE(last_position, 40 + most_new - 1);
    }
    EXPECT_EQ(sink->ids, ByDefinition(backend, RequestOf("a", Ids(40, 1), most_new)));
    EXPECT_EQ(sink->finished->reason, FinishReason::kLength);
  }
  EXPECT_GT(stats().accepted_tokens, 0u);
}

TEST_F(SpeculationTest, TheContextIsFilledToItsEndAndNotBeyond) {
  backend.context_tokens = 100;
  Make();
  auto sink = Add(RequestOf("a", Ids(60, 1), 1000));
  RunToEnd();
  EXPECT_EQ(sink->ids.size(), 40u);
  EXPECT_GT(stats().accepted_tokens, 0u);
}

TEST_F(SpeculationTest, AStopIdWithinADraftEnds) {
  Make();
  const GenerateRequest free_run = RequestOf("a", Ids(30, 1), 100);
  const std::vector<int32_t> whole = ByDefinition(backend, free_run);
  int stopped_within = 0;
  for (size_t at = 0; at < whole.size(); ++at) {
    GenerateRequest request = free_run;
    request.stop.stop_ids = {whole[at]};
    request.stop.min_new_tokens = static_cast<int64_t>(at);
    auto sink = Add(request);
    size_t last = 0;
    while (!core->idle()) {
      last = sink->ids.size();
      Step();
    }
    ASSERT_EQ(sink->ids, ByDefinition(backend, request)) << at;
    stopped_within += static_cast<int64_t>(sink->ids.size() - last) < most_slice_tokens ? 1 : 0;
    // What was drafted behind the stop is not stored for others.
    ASSERT_EQ(core->state().pools[0]->Counts().active, 0);
  }
  EXPECT_GT(stopped_within, 10);
}

TEST_F(SpeculationTest, AnAnswerContinuesFromItsCacheAsFromNone) {
  Make();
  const GenerateRequest first = RequestOf("a", Ids(30, 1), 90);
  const auto sink = RunAlone(first);
  GenerateRequest second = first;
  second.prompt_ids.insert(second.prompt_ids.end(), sink->ids.begin(), sink->ids.end());
  second.prompt_ids.push_back(3);
  const auto again = RunAlone(second);
  EXPECT_EQ(again->finished->cached_tokens, 30 + 90 - 1);  // but the last, whose KV is not needed
}

TEST_F(SpeculationTest, SeedsPenaltiesAndLogprobsAreThoseOfPlainSteps) {
  backend.logit_span = 12;
  uint64_t accepted = 0;
  for (const SamplingOptions& sampling :
       {SamplingOptions{.temperature = 0.6f, .seed = 5, .logprobs = 5},
        SamplingOptions{.temperature = 1.0f, .top_k = 20, .top_p = 0.9f, .seed = 77},
        SamplingOptions{.repetition_penalty = 1.05f, .frequency_penalty = 0.05f, .logprobs = 20},
        SamplingOptions{.temperature = 0.5f, .presence_penalty = 0.4f, .seed = 1, .logprobs = 0}}) {
    GenerateRequest request = RequestOf("a", Ids(30, 2), 120);
    request.sampling = sampling;
    options.speculative_tokens = 0;
    Make();
    const auto plain = RunAlone(request);
    options.speculative_tokens = 4;
    Make();
    const auto drafted = RunAlone(request);
    ASSERT_EQ(drafted->outputs.size(), plain->outputs.size());
    for (size_t i = 0; i < plain->outputs.size(); ++i) {
      const TokenOutput& a = plain->outputs[i];
      const TokenOutput& b = drafted->outputs[i];
      ASSERT_EQ(a.logprob, b.logprob) << i;
      ASSERT_EQ(a.top_logprobs.size(), b.top_logprobs.size()) << i;
      for (size_t t = 0; t < a.top_logprobs.size(); ++t) {
        ASSERT_EQ(a.top_logprobs[t].id, b.top_logprobs[t].id) << i;
        ASSERT_EQ(a.top_logprobs[t].logprob, b.top_logprobs[t].logprob) << i;
      }
    }
    accepted += stats().accepted_tokens;
  }
  EXPECT_GT(accepted, 50u);
}

TEST_F(SpeculationTest, AReplayGoesOnWhereTheEarlierAttemptStopped) {
  Make();
  GenerateRequest request = RequestOf("a", Ids(30, 1), 80);
  request.sampling = {.temperature = 0.5f, .presence_penalty = 0.2f, .seed = 5};
  const std::vector<int32_t> whole = ByDefinition(backend, request);
  request.generated_ids.assign(whole.begin(), whole.begin() + 37);
  auto sink = Add(request);
  RunToEnd();
  EXPECT_EQ(sink->ids, std::vector<int32_t>(whole.begin() + 37, whole.end()));
  EXPECT_GT(stats().accepted_tokens, 0u);
}

TEST_F(SpeculationTest, WindowsAndSinksGiveTheSame) {
  for (const std::vector<int64_t>& windows :
       std::vector<std::vector<int64_t>>{{20}, {0, 24}, {0, 40, 16}}) {
    backend.windows = windows;
    Make();
    for (const cache_manager::AttentionSpan span :
         {cache_manager::AttentionSpan{}, {16, 0}, {17, 3}, {30, 20}, {48, 17}}) {
      GenerateRequest request = RequestOf("a", Ids(50, 3), 200);
      request.cache.attention = span;
      RunAlone(request);
      request.cache.allocation = Allocation::kStatic;
      RunAlone(request);
    }
    EXPECT_GT(stats().accepted_tokens, 100u);
  }
}

// The blocks of a window, and one for the token that begins the next: drafts have none of their
// own.
TEST_F(SpeculationTest, AWindowInAPoolThatHoldsNoMoreRunsOn) {
  backend.num_blocks = 4;
  options.max_step_tokens = 16;
  Make();
  GenerateRequest request = RequestOf("a", Ids(200, 4), 250);
  request.cache.attention = {.window_tokens = 33, .sink_tokens = 0};
  RunAlone(request);
  EXPECT_GT(stats().accepted_tokens, 50u);
}

TEST_F(SpeculationTest, APromiseThatIsExactlyFullIsNotOverdrawn) {
  backend.num_blocks = 12;
  Make();
  GenerateRequest promised = RequestOf("promised", Ids(20, 1), 77);  // stores 96: 6 of 12 blocks
  promised.cache.allocation = Allocation::kStatic;
  const GenerateRequest other = RequestOf("other", Ids(20, 2), 77);
  auto promised_sink = Add(promised);
  auto other_sink = Add(other);
  while (!core->idle()) {
    Step();
    const cache_manager::PoolCounts counts = core->state().pools[0]->Counts();
    if (!promised_sink->finished && !other_sink->finished) {
      EXPECT_LE(counts.active + counts.reserved, 12);
    }
  }
  EXPECT_EQ(promised_sink->ids, ByDefinition(backend, promised));
  EXPECT_EQ(other_sink->ids, ByDefinition(backend, other));
  EXPECT_EQ(promised_sink->finished->preemptions, 0);
  EXPECT_GT(promised_sink->finished->accepted_tokens, 0);
}

TEST_F(SpeculationTest, AWindowedPromiseIsNotOverdrawn) {
  backend.num_blocks = 8;
  Make();
  GenerateRequest request = RequestOf("a", Ids(40, 1), 200);
  request.cache = {.allocation = Allocation::kStatic, .attention = {.window_tokens = 32}};
  auto sink = Add(request);
  while (!core->idle()) {
    Step();
    const cache_manager::PoolCounts counts = core->state().pools[0]->Counts();
    if (!core->idle()) {
      EXPECT_LE(counts.active + counts.reserved, 4);  // the window and one: the promise
    }
  }
  EXPECT_EQ(sink->ids, ByDefinition(backend, request));
  EXPECT_GT(stats().accepted_tokens, 50u);
}

TEST_F(SpeculationTest, DraftsTakeNoBlocksFromOthersAndPreemptionForgetsThem) {
  backend.num_blocks = 8;
  Make();
  std::vector<GenerateRequest> requests;
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 2; ++i) {
    requests.push_back(RequestOf(Numbered("r", i), Ids(20, i), 100));
    sinks.push_back(Add(requests.back()));
  }
  RunToEnd();
  EXPECT_EQ(sinks[0]->finished->preemptions, 0);
  EXPECT_GT(sinks[1]->finished->preemptions, 0);
  EXPECT_GT(sinks[1]->finished->accepted_tokens, 0);
  for (size_t i = 0; i < 2; ++i) EXPECT_EQ(sinks[i]->ids, ByDefinition(backend, requests[i]));
}

// Where no draft was right, all goes as without: the block that one took is not missed by the
// other.
TEST_F(SpeculationTest, WrongDraftsCauseNoPreemption) {
  backend.repeat_tokens = 0;
  backend.vocab = 20;  // runs are found, and mean nothing
  int compared = 0;
  for (int salt = 0; salt < 60; ++salt) {
    backend.num_blocks = 7 + salt % 3;
    uint64_t preemptions[2];
    for (const int32_t drafts : {0, 4}) {
      options.speculative_tokens = drafts;
      Make();
      for (int i = 0; i < 2; ++i) {
        GenerateRequest request = RequestOf(Numbered("r", i), {}, 30 + 40 * i + salt % 7);
        for (int j = 0; j < 25; ++j) request.prompt_ids.push_back((j * j + salt + i) % 19);
        Add(request);
      }
      RunToEnd();
      preemptions[drafts / 4] = core->stats().preemptions;
    }
    if (stats().draft_tokens == 0 || stats().accepted_tokens > 0) continue;
    ++compared;
    EXPECT_EQ(preemptions[1], preemptions[0]) << salt;
  }
  EXPECT_GT(compared, 5);
}

TEST_F(SpeculationTest, WhoIsLeftAloneDraftsHoweverManyRanBefore) {
  Make();
  std::vector<GenerateRequest> requests;
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 5; ++i) {
    requests.push_back(RequestOf(Numbered("r", i), Ids(20, i), 40 + 30 * i));
    sinks.push_back(Add(requests.back()));
  }
  RunToEnd();
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(sinks[i]->ids, ByDefinition(backend, requests[i]));
  EXPECT_EQ(sinks[1]->finished->draft_tokens, 0);
  EXPECT_GT(sinks[3]->finished->accepted_tokens, 0);
  EXPECT_GT(sinks[4]->finished->accepted_tokens, sinks[3]->finished->accepted_tokens);
  // One that comes later takes the place of one that is gone.
  RunAlone(RequestOf("later", Ids(33, 9), 200));
  EXPECT_GT(stats().accepted_tokens, 80u);
}

TEST_F(SpeculationTest, KindNoneDraftsNothing) {
  Make();
  GenerateRequest request = RequestOf("a", Ids(40, 1), 60);
  request.cache.allocation = Allocation::kNone;
  RunAlone(request);
  EXPECT_EQ(stats().draft_tokens, 0u);
}

TEST_F(SpeculationTest, ManySequencesDraftNothing) {
  Make();
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < kMaxDraftingSequences + 1; ++i) {
    sinks.push_back(Add(RequestOf(Numbered("r", i), Ids(20, i), 60)));
  }
  while (std::none_of(sinks.begin(), sinks.end(), [](const auto& s) { return s->finished; })) {
    Step();
    EXPECT_EQ(stats().draft_tokens, 0u);
  }
  RunToEnd();
}

TEST_F(SpeculationTest, AStepThatReadsAPromptDraftsNothing) {
  options.max_step_tokens = 64;
  Make();
  Add(RequestOf("a", Ids(20, 1), 300));
  for (int i = 0; i < 60; ++i) Step();
  EXPECT_GT(stats().draft_tokens, 0u);
  const uint64_t before = stats().draft_tokens;
  auto prompt = Add(RequestOf("b", Ids(160, 2), 1));
  while (!prompt->finished) Step();
  EXPECT_EQ(stats().draft_tokens, before);
}

TEST_F(SpeculationTest, TokensOfAStepAndRowsOfLogitsAreTheLimit) {
  options.max_running_sequences = 2;
  options.max_step_tokens = 3;
  Make();
  Add(RequestOf("a", Ids(20, 1), 80));
  Add(RequestOf("b", Ids(20, 2), 80));
  while (!core->idle()) {
    Step();
    EXPECT_LE(core->stats().last_batch_tokens, 3);
  }
  EXPECT_GT(stats().accepted_tokens, 0u);
  backend.max_logit_rows = 2;  // the backend refuses more
  options.max_step_tokens = 64;
  options.max_running_sequences = 1;
  Make();
  RunAlone(RequestOf("a", Ids(20, 1), 80));
  EXPECT_GT(stats().accepted_tokens, 0u);
}

TEST_F(SpeculationTest, AFailedStepWithDraftsEndsItsRequestAndTheNextOneRuns) {
  Make();
  auto sink = Add(RequestOf("a", Ids(20, 1), 200));
  fail_with_drafts = &control->fail_next_run;
  RunToEnd();
  EXPECT_EQ(most_slice_tokens, 5);
  EXPECT_EQ(sink->finished->reason, FinishReason::kError);
  RunAlone(RequestOf("a", Ids(20, 1), 200));
}

TEST_F(SpeculationTest, LogitsThatAreNoNumbersEndTheRequestBehindItsTokens) {
  Make();
  const GenerateRequest request = RequestOf("a", Ids(20, 1), 200);
  auto sink = Add(request);
  fail_with_drafts = &control->nan_next_run;
  RunToEnd();
  EXPECT_EQ(most_slice_tokens, 5);
  EXPECT_EQ(sink->finished->status.code(), absl::StatusCode::kInternal);
  const std::vector<int32_t> whole = ByDefinition(backend, request);
  EXPECT_TRUE(std::equal(sink->ids.begin(), sink->ids.end(), whole.begin()));
}

// Steps take as long as their rows say.
class SpeculationCostTest : public SpeculationTest {
 protected:
  void OnRun(const Batch& batch) override {
    const double more = row_cost * static_cast<double>(batch.TotalTokens() - 1);
    clock.Advance(std::chrono::microseconds(static_cast<int64_t>(10000 * (1 + more))));
    SpeculationTest::OnRun(batch);
  }
  double row_cost = 0;  // of each row beside the first, in plain steps
};

TEST_F(SpeculationCostTest, WhereARowCostsAStepItSwitchesItselfOff) {
  row_cost = 1;
  backend.context_tokens = 3000;
  backend.num_blocks = 200;
  Make();
  RunAlone(RequestOf("a", Ids(40, 1), 2000));
  // A few to learn it, and a trial now and then.
  EXPECT_LT(stats().draft_tokens, 100u);
}

TEST_F(SpeculationCostTest, WhereTextDoesNotRepeatItSwitchesItselfOff) {
  row_cost = 0.3;
  backend.repeat_tokens = 0;
  backend.vocab = 20;  // runs are found all the time, and mean nothing
  backend.context_tokens = 3000;
  backend.num_blocks = 200;
  Make();
  GenerateRequest request = RequestOf("a", {}, 2000);
  for (int i = 0; i < 40; ++i) request.prompt_ids.push_back(i * i % 19);
  RunAlone(request);
  EXPECT_GT(stats().draft_tokens, 0u);
  EXPECT_LT(stats().draft_tokens, 150u);
}

TEST_F(SpeculationCostTest, WhereItPaysAnswersComeSooner) {
  row_cost = 0.2;
  backend.context_tokens = 3000;
  backend.num_blocks = 200;
  double seconds[2];
  for (const int32_t drafts : {0, 4}) {
    options.speculative_tokens = drafts;
    Make();
    const MonotonicTime start = clock.Now();
    RunAlone(RequestOf("a", Ids(40, 1), 1000));
    seconds[drafts / 4] = SecondsBetween(start, clock.Now());
  }
  EXPECT_LT(seconds[1], 0.75 * seconds[0]);
}

}  // namespace
}  // namespace kvist::worker
