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
#include "tests/support/hash_backend.h"
#include "tests/support/recording_sink.h"
#include "tests/support/simulated_clock.h"

namespace kvist::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<int32_t> Ids(int64_t n, int32_t salt, int64_t vocab = 64) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < n; ++i) {
    ids.push_back(static_cast<int32_t>((i * 7 + i * i * 3 + salt * 11 + i * salt) % vocab));
  }
  return ids;
}

GenerateRequest RequestOf(const std::string& id, std::vector<int32_t> prompt, int64_t max_new) {
  GenerateRequest request;
  request.id = RequestId(id);
  request.prompt_ids = std::move(prompt);
  request.stop.max_new_tokens = max_new;
  return request;
}

// What the model says by definition, token after token, without engine, blocks or batches.
std::vector<int32_t> ByDefinition(const HashBackendOptions& options, const GenerateRequest& r,
                                  KvFormat format = KvFormat::kF16) {
  Sampler sampler(options.vocab);
  TokenCounts counts;
  counts.AddPrompt(r.prompt_ids);
  std::vector<int32_t> tokens = r.prompt_ids;
  std::vector<int32_t> ids;
  while (static_cast<int64_t>(ids.size()) < r.stop.max_new_tokens) {
    const std::vector<float> logits = HashLogits(options, format, tokens);
    const bool masked = static_cast<int64_t>(ids.size()) < r.stop.min_new_tokens;
    SampleOutput out;
    const absl::Status status =
        sampler.Sample({.logits = logits,
                        .options = r.sampling,
                        .counts = &counts,
                        .masked_ids = masked ? r.stop.stop_ids : std::vector<int32_t>{},
                        .position = static_cast<int64_t>(tokens.size())},
                       &out);
    EXPECT_TRUE(status.ok()) << status;
    ids.push_back(out.id);
    tokens.push_back(out.id);
    counts.AddOutput(out.id);
    const auto& stops = r.stop.stop_ids;
    if (std::find(stops.begin(), stops.end(), out.id) != stops.end()) break;
  }
  return ids;
}

class EngineCoreTest : public testing::Test {
 protected:
  void Make() {
    core = std::make_unique<EngineCore>(
        options, std::make_unique<HashBackend>(backend, control), &clock);
  }
  std::shared_ptr<RecordingSink> Add(GenerateRequest request) {
    EXPECT_TRUE(PrepareRequest(core->limits(), &request).ok());
    auto sink = std::make_shared<RecordingSink>(static_cast<int64_t>(request.generated_ids.size()));
    core->Add(std::move(request), sink, clock.Now());
    return sink;
  }
  bool Step() {
    clock.Advance(std::chrono::milliseconds(1));
    const bool ran = core->Step();
    EXPECT_TRUE(core->CheckInvariants().ok()) << core->CheckInvariants();
    return ran;
  }
  void RunToEnd() {
    for (int step = 0; !core->idle(); ++step) {
      ASSERT_TRUE(Step()) << "live requests and nothing runs";
      ASSERT_LT(step, 100000);
    }
  }
  void ExpectNothingActive() {
    for (const auto& pool : core->state().pools) {
      EXPECT_EQ(pool->Counts().active, 0);
      EXPECT_EQ(pool->Counts().reserved, 0);
    }
    EXPECT_TRUE(core->CheckInvariants().ok());
  }

  HashBackendOptions backend;
  EngineOptions options;
  std::shared_ptr<HashBackendControl> control = std::make_shared<HashBackendControl>();
  SimulatedClock clock;
  std::unique_ptr<EngineCore> core;
};

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

}  // namespace
}  // namespace kvist::worker
