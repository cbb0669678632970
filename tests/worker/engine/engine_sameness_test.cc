// Tiny models on the CPU backend: token ids and log probabilities are equal in every bit, however a
// request was run.
#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/hash_reference.h"
#include "tests/support/recording_sink.h"
#include "tests/support/session_move.h"
#include "tests/support/simulated_clock.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_model.h"
#include "worker/backend/cpu_backend.h"
#include "worker/engine/engine_core.h"

namespace kvist::worker {
namespace {

// One way to run requests.
struct Arrangement {
  int32_t block_tokens = 16;
  int32_t blocks_per_pool = 200;
  int threads = 1;
  std::string kernels = "auto";
  int64_t max_step_tokens = 256;
  int32_t max_running_sequences = 8;
  int32_t speculative_tokens = 0;
  std::string disk = {};  // a folder; empty: none
};

// What can be observed of an answer, with floats as bits.
struct Answer {
  std::vector<int32_t> ids;
  std::vector<uint32_t> logprob_bits;  // the chosen token's and the 20 best, per token
  int64_t cached_tokens = 0;
  int64_t preemptions = 0;

  bool SameTokensAndBits(const Answer& other) const {
    return ids == other.ids && logprob_bits == other.logprob_bits;
  }
};

Answer AnswerOf(const RecordingSink& sink) {
  Answer answer;
  answer.ids = sink.ids;
  for (const TokenOutput& output : sink.outputs) {
    answer.logprob_bits.push_back(std::bit_cast<uint32_t>(output.logprob.value_or(1.0f)));
    for (const TokenLogprob& top : output.top_logprobs) {
      answer.logprob_bits.push_back(static_cast<uint32_t>(top.id));
      answer.logprob_bits.push_back(std::bit_cast<uint32_t>(top.logprob));
    }
  }
  answer.cached_tokens = sink.finished->cached_tokens;
  answer.preemptions = sink.finished->preemptions;
  return answer;
}

struct Case {
  std::string model;
  KvFormat format = KvFormat::kF16;

  friend void PrintTo(const Case& c, std::ostream* out) { *out << c.model; }
};

class EngineSamenessTest : public ::testing::TestWithParam<Case> {
 protected:
  std::unique_ptr<EngineCore> MakeCore(const Arrangement& arrangement) {
    CpuBackendOptions options = kvist::testing::TinyOptions();
    options.threads = arrangement.threads;
    options.kernels = arrangement.kernels;
    options.block_tokens = arrangement.block_tokens;
    options.blocks_per_pool = arrangement.blocks_per_pool;
    options.kv_formats = {GetParam().format};
    options.max_batch_tokens = arrangement.max_step_tokens;
    auto backend = kvist::testing::OpenTinyModel(GetParam().model, options);
    EngineOptions engine{.max_running_sequences = arrangement.max_running_sequences,
                         .max_step_tokens = arrangement.max_step_tokens,
                         .speculative_tokens = arrangement.speculative_tokens};
    disk_.reset();
    if (!arrangement.disk.empty()) {
      auto disk = OpenDiskStore(
          {.directory = arrangement.disk, .bytes = 32 << 20, .clock = &clock_}, *backend);
      EXPECT_TRUE(disk.ok()) << disk.status();
      engine.disk = disk_ = *disk;
    }
    return std::make_unique<EngineCore>(engine, std::move(backend), &clock_);
  }

  std::shared_ptr<RecordingSink> Add(EngineCore& core, GenerateRequest request) {
    const absl::Status status = PrepareRequest(core.limits(), &request);
    EXPECT_TRUE(status.ok()) << status;
    auto sink = std::make_shared<RecordingSink>();
    core.Add(std::move(request), sink, clock_.Now());
    return sink;
  }

  void RunToEnd(EngineCore& core) {
    while (!core.idle()) {
      ASSERT_TRUE(core.Step() || (disk_ != nullptr && disk_->WaitForDone(std::nullopt)));
      const absl::Status status = core.CheckInvariants();
      ASSERT_TRUE(status.ok()) << status;
    }
  }

  // Each step and then all that the disk has to do: a disk as fast as the steps, so that what is
  // written and read does not depend on the machine.
  void RunToEndSettled(EngineCore& core) {
    while (!core.idle() && !HasFatalFailure()) {
      core.Step();
      do {
        core.FlushOffload(std::chrono::seconds(60));
      } while (disk_->WaitForDone(std::nullopt));
      const absl::Status status = core.CheckInvariants();
      ASSERT_TRUE(status.ok()) << status;
    }
  }

  Answer RunAlone(EngineCore& core, const GenerateRequest& request) {
    auto sink = Add(core, request);
    RunToEnd(core);
    return AnswerOf(*sink);
  }
  Answer RunCold(const Arrangement& arrangement, const GenerateRequest& request) {
    return RunAlone(*MakeCore(arrangement), request);
  }

  // Greedy and sampled ones, of several lengths, two of them with a common stem.
  std::vector<GenerateRequest> Requests() {
    std::vector<GenerateRequest> requests;
    for (int i = 0; i < 6; ++i) {
      GenerateRequest request = RequestOf(Numbered("r", i), Ids(9 + 17 * i, i / 2), 24 + i);
      request.sampling.logprobs = 20;
      if (i % 2 == 1) {
        request.sampling.temperature = 0.8f;
        request.sampling.top_p = 0.9f;
        request.sampling.seed = 99 + static_cast<uint64_t>(i);
      }
      requests.push_back(std::move(request));
    }
    return requests;
  }

  // The same, of all kinds.
  std::vector<GenerateRequest> MixedRequests() {
    std::vector<GenerateRequest> requests = Requests();
    requests[0].cache.allocation = Allocation::kStatic;
    requests[2].cache.attention = {.window_tokens = 32, .sink_tokens = 4};
    requests[3].cache.allocation = Allocation::kNone;
    requests[4].cache = {.allocation = Allocation::kStatic, .attention = {18, 17}};
    requests[5].cache = {.allocation = Allocation::kNone, .attention = {20, 0}};
    return requests;
  }

  SimulatedClock clock_;
  TempFolder folder_;
  std::shared_ptr<DiskStore> disk_;  // of the core made last
};

TEST_P(EngineSamenessTest, EveryArrangementGivesTheSameAlone) {
  const GenerateRequest request = Requests()[5];
  const Answer expected = RunCold({}, request);
  ASSERT_EQ(expected.ids.size(), 29u);
  for (const Arrangement& arrangement :
       std::vector<Arrangement>{{.block_tokens = 32},
                                {.block_tokens = 64},
                                {.threads = 2},
                                {.kernels = "scalar"},
                                {.max_step_tokens = 8},
                                {.max_step_tokens = 13},
                                {.max_step_tokens = 1, .max_running_sequences = 1}}) {
    EXPECT_TRUE(RunCold(arrangement, request).SameTokensAndBits(expected))
        << "block tokens " << arrangement.block_tokens << ", threads " << arrangement.threads
        << ", " << arrangement.kernels << ", step tokens " << arrangement.max_step_tokens;
  }
}

TEST_P(EngineSamenessTest, MixedBatchesGiveTheSameAsAlone) {
  const std::vector<GenerateRequest> requests = MixedRequests();
  auto core = MakeCore({.threads = 2, .max_step_tokens = 40});
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (const GenerateRequest& request : requests) {
    sinks.push_back(Add(*core, request));
    core->Step();
  }
  RunToEnd(*core);
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_TRUE(AnswerOf(*sinks[i]).SameTokensAndBits(RunCold({}, requests[i]))) << i;
  }
}

TEST_P(EngineSamenessTest, APrefixHitGivesTheSameAsACold) {
  auto core = MakeCore({});
  for (const int64_t length : {90, 80, 75, 96, 33, 90}) {
    // Hits of whole blocks and of parts of one, behind and beyond the window.
    GenerateRequest request = RequestOf("a", Ids(length, 1), 12);
    request.sampling.logprobs = 20;
    const Answer warm = RunAlone(*core, request);
    const Answer cold = RunCold({}, request);
    EXPECT_TRUE(warm.SameTokensAndBits(cold)) << length;
    EXPECT_EQ(cold.cached_tokens, 0);
  }
  const Answer last = RunAlone(*core, RequestOf("a", Ids(90, 1), 1));
  EXPECT_EQ(last.cached_tokens, 89);
}

TEST_P(EngineSamenessTest, WithoutACacheItIsTheSame) {
  for (GenerateRequest request : Requests()) {
    const Answer paged = RunCold({}, request);
    request.cache.allocation = Allocation::kNone;
    EXPECT_TRUE(RunCold({.max_step_tokens = 32}, request).SameTokensAndBits(paged));
  }
}

TEST_P(EngineSamenessTest, StaticAndWindowedRequestsAreTheSameHoweverTheyRun) {
  GenerateRequest request = Requests()[5];
  const Answer full = RunCold({}, request);
  request.cache.allocation = Allocation::kStatic;
  EXPECT_TRUE(RunCold({.max_step_tokens = 32}, request).SameTokensAndBits(full));
  for (const cache_manager::AttentionSpan span :
       {cache_manager::AttentionSpan{16, 0}, {40, 3}, {40, 18}}) {
    request.cache = {.attention = span};
    const Answer expected = RunCold({}, request);
    EXPECT_FALSE(expected.SameTokensAndBits(full));
    // A pool that holds the window and not the sequence.
    auto core = MakeCore({.blocks_per_pool = 9, .threads = 2, .max_step_tokens = 30});
    for (const Allocation allocation :
         {Allocation::kPaged, Allocation::kNone, Allocation::kPaged, Allocation::kStatic}) {
      request.cache.allocation = allocation;
      if (allocation == Allocation::kStatic) core = MakeCore({.blocks_per_pool = 16});
      EXPECT_TRUE(RunAlone(*core, request).SameTokensAndBits(expected))
          << cache_manager::AttentionText(span) << static_cast<int>(allocation);
    }
    request.cache.allocation = Allocation::kPaged;
    EXPECT_TRUE(
        RunCold({.block_tokens = 64, .max_step_tokens = 7}, request).SameTokensAndBits(expected));
    EXPECT_TRUE(RunCold({.kernels = "scalar"}, request).SameTokensAndBits(expected));
  }
}

// Two run at once, and some alone.
TEST_P(EngineSamenessTest, DraftsChangeNothing) {
  uint64_t drafted = 0;
  for (const int32_t most : {3, 7}) {
    auto core = MakeCore({.threads = 2, .max_running_sequences = 2, .speculative_tokens = most});
    std::vector<GenerateRequest> requests = MixedRequests();
    std::vector<std::shared_ptr<RecordingSink>> sinks;
    for (GenerateRequest& request : requests) {
      const std::vector<int32_t> once = request.prompt_ids;
      request.prompt_ids.insert(request.prompt_ids.end(), once.begin(), once.end());
      request.stop.max_new_tokens = 60;
      // Tokens that came are likely to come again, so that there are drafts: in one model they are
      // right, in another wrong, in a third both in turn.
      request.sampling.temperature = 1.0f;
      request.sampling.presence_penalty = -2.0f;
      request.sampling.frequency_penalty = -0.1f;
      request.sampling.seed = 7;
      sinks.push_back(Add(*core, request));
    }
    RunToEnd(*core);
    for (size_t i = 0; i < requests.size(); ++i) {
      EXPECT_TRUE(AnswerOf(*sinks[i]).SameTokensAndBits(RunCold({}, requests[i]))) << i;
    }
    drafted += core->stats().speculation.draft_tokens;
  }
  EXPECT_GT(drafted, 0u);
}

TEST_P(EngineSamenessTest, ASessionMovedAsASnapshotGivesTheSame) {
  std::vector<GenerateRequest> requests = Requests();
  requests[2].cache.attention = {.window_tokens = 32, .sink_tokens = 4};
  requests[4].cache = {.allocation = Allocation::kStatic, .attention = {18, 17}};
  for (const GenerateRequest& request : requests) {
    auto from = MakeCore({});
    const SessionHistory history = HistoryOf(request, RunAlone(*from, request).ids);
    GenerateRequest next = request;
    next.prompt_ids = history.tokens;
    next.prompt_ids.push_back(3);
    const Answer cold = RunCold({}, next);
    auto to = MakeCore({.threads = 2, .max_step_tokens = 40});
    const int64_t found = PutIn(*to, history, TakeOut(*from, history));
    const Answer moved = RunAlone(*to, next);
    EXPECT_TRUE(moved.SameTokensAndBits(cold)) << request.id.value();
    EXPECT_EQ(found, static_cast<int64_t>(history.tokens.size()) - 1);
    EXPECT_EQ(moved.cached_tokens, found);
  }
}

TEST_P(EngineSamenessTest, PreemptedRequestsGiveTheSame) {
  std::vector<GenerateRequest> requests = Requests();
  requests[0].cache.allocation = Allocation::kStatic;
  requests[2].cache.attention = {.window_tokens = 32, .sink_tokens = 4};
  requests[3].cache.allocation = Allocation::kNone;
  auto core = MakeCore({.blocks_per_pool = 9});
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (size_t i = 0; i < requests.size(); ++i) {
    GenerateRequest request = requests[i];
    request.priority = static_cast<int32_t>(i);  // later ones push earlier ones out
    sinks.push_back(Add(*core, request));
    for (int step = 0; step < 3; ++step) core->Step();
  }
  RunToEnd(*core);
  int64_t preemptions = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    const Answer answer = AnswerOf(*sinks[i]);
    EXPECT_TRUE(answer.SameTokensAndBits(RunCold({}, requests[i]))) << i;
    preemptions += answer.preemptions;
  }
  EXPECT_GT(preemptions, 0);
}

TEST_P(EngineSamenessTest, RestoredFromADiskItIsTheSameAlsoAfterARestart) {
  std::vector<GenerateRequest> requests = Requests();
  requests[2].cache.attention = {.window_tokens = 32, .sink_tokens = 4};
  std::vector<Answer> cold;
  for (const GenerateRequest& request : requests) cold.push_back(RunCold({}, request));
  // A next turn: windowed layers have kept what it needs.
  GenerateRequest next = requests[5];
  next.prompt_ids.insert(next.prompt_ids.end(), cold[5].ids.begin(), cold[5].ids.end());
  next.prompt_ids.push_back(1);
  const Answer cold_next = RunCold({}, next);
  for (GenerateRequest& request : requests) request.cache.offload = OffloadTier::kDisk;
  next.cache.offload = OffloadTier::kDisk;
  auto core = MakeCore({.disk = folder_.path()});
  for (const bool restart : {false, true}) {
    for (size_t i = 0; i < requests.size(); ++i) {
      for (const auto& pool : core->state().pools) {
        pool->EvictSome(200, cache_manager::EvictionCause::kCapacity);
      }
      EXPECT_TRUE(RunAlone(*core, requests[i]).SameTokensAndBits(cold[i])) << i;
      core->FlushOffload(std::chrono::seconds(60));
    }
    core.reset();
    disk_.reset();
    if (!restart) core = MakeCore({.threads = 2, .max_step_tokens = 40, .disk = folder_.path()});
  }
  core = MakeCore({.disk = folder_.path()});
  const Answer restored = RunAlone(*core, next);
  EXPECT_TRUE(restored.SameTokensAndBits(cold_next));
  EXPECT_EQ(restored.cached_tokens, 112);
  EXPECT_GT(core->stats().offload.restored_blocks, 0u);
}

TEST_P(EngineSamenessTest, SwappedRequestsGiveTheSame) {
  const std::vector<GenerateRequest> requests = Requests();
  auto core = MakeCore({.blocks_per_pool = 9, .disk = folder_.path()});
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (size_t i = 0; i < requests.size(); ++i) {
    GenerateRequest request = requests[i];
    request.cache.offload = OffloadTier::kDisk;
    request.priority = static_cast<int32_t>(i);  // later ones push earlier ones out
    sinks.push_back(Add(*core, request));
    for (int step = 0; step < 3; ++step) core->Step();
  }
  RunToEnd(*core);
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_TRUE(AnswerOf(*sinks[i]).SameTokensAndBits(RunCold({}, requests[i]))) << i;
  }
  EXPECT_GT(core->stats().preemptions, 0u);
  core->FlushOffload(std::chrono::seconds(60));
  EXPECT_GT(core->stats().offload.written_blocks, 0u);
}

// Both grow until the pools are full. The other one takes the blocks of the one that gives way, all
// but the first of them when they are on the disk already.
TEST_P(EngineSamenessTest, ASwappedRequestIsReadBackAndGivesTheSame) {
  for (const float temperature : {0.0f, 0.8f}) {
    GenerateRequest low = RequestOf("low", Ids(40, 1), 60);
    GenerateRequest high = RequestOf("high", Ids(20, 2), 100);
    for (GenerateRequest* request : {&low, &high}) {
      request->sampling = {.temperature = temperature, .seed = 3, .logprobs = 20};
    }
    const Answer cold_low = RunCold({}, low);
    const Answer cold_high = RunCold({}, high);
    low.cache.offload = high.cache.offload = OffloadTier::kDisk;
    high.priority = 1;
    TempFolder folder;
    auto core = MakeCore({.blocks_per_pool = 9, .disk = folder.path()});
    auto swapped = Add(*core, low);
    auto other = Add(*core, high);
    RunToEndSettled(*core);
    const Answer answer = AnswerOf(*swapped);
    EXPECT_TRUE(answer.SameTokensAndBits(cold_low)) << temperature;
    EXPECT_TRUE(AnswerOf(*other).SameTokensAndBits(cold_high)) << temperature;
    EXPECT_EQ(answer.preemptions, 1);
    // The clock stands still: no rate is ever known, so reading is always preferred.
    EXPECT_GT(core->stats().offload.restored_blocks, 0u);
    EXPECT_EQ(core->stats().offload.recomputes, 0u);
  }
}

TEST_P(EngineSamenessTest, SamplesOfOnePromptAreTheSameAsAlone) {
  for (const int64_t prompt : {33, 48, 94}) {
    std::vector<GenerateRequest> samples;
    for (int i = 0; i < 4; ++i) {
      GenerateRequest request = RequestOf("a", Ids(prompt, 1), 20);
      // Hot enough for the surest of the tiny models to give different answers.
      request.sampling = {.temperature = 30.0f,
                          .top_p = 0.99f,
                          .seed = 5,
                          .sample_index = static_cast<uint32_t>(i),
                          .logprobs = 20};
      if (i > 0) {
        request.id = RequestId(Numbered("a.", i));
        request.fork_of = RequestId("a");
      }
      samples.push_back(std::move(request));
    }
    std::vector<Answer> alone;
    for (const GenerateRequest& request : samples) alone.push_back(RunCold({}, request));
    EXPECT_NE(alone[0].ids, alone[1].ids);
    // Comfortably, and in pools that only some of them fit into.
    for (const int32_t blocks : {200, 12}) {
      auto core = MakeCore({.blocks_per_pool = blocks, .threads = 2, .max_step_tokens = 40});
      std::vector<std::shared_ptr<RecordingSink>> sinks;
      for (const GenerateRequest& request : samples) sinks.push_back(Add(*core, request));
      RunToEnd(*core);
      EXPECT_EQ(core->stats().forks, 3u);
      for (size_t i = 0; i < samples.size(); ++i) {
        EXPECT_TRUE(AnswerOf(*sinks[i]).SameTokensAndBits(alone[i]))
            << i << " of " << prompt << " tokens, " << blocks << " blocks";
      }
    }
  }
}

std::string NameOf(const ::testing::TestParamInfo<Case>& info) {
  std::string name = info.param.model + "_" + std::string(KvFormatName(info.param.format));
  std::replace(name.begin(), name.end(), '.', '_');
  return name;
}
INSTANTIATE_TEST_SUITE_P(
    TinyModels, EngineSamenessTest,
    ::testing::Values(Case{"llama_a.Q4_1"}, Case{"llama_k.Q4_K"}, Case{"qwen2_a.Q8_0"},
                      Case{"gemma3_a.Q4_0"}, Case{"gemma3_a.F32"},
                      Case{"llama_a.Q4_1", KvFormat::kQ8}, Case{"gemma3_a.Q4_0", KvFormat::kQ8},
                      Case{"llama_k.Q4_K", KvFormat::kQ4}, Case{"gemma3_a.Q4_0", KvFormat::kQ4}),
    NameOf);

}  // namespace
}  // namespace kvist::worker
