#include "worker/engine/engine.h"

#include <atomic>
#include <chrono>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cache_manager/event_log.h"
#include "common/base/mutex.h"
#include "common/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/hash_backend.h"
#include "tests/support/hash_reference.h"
#include "tests/support/recording_sink.h"

namespace kvist::worker {
namespace {

using ::testing::HasSubstr;

// A recording sink that another thread can wait for.
class WaitableSink final : public RecordingSink {
 public:
  void OnTokens(std::span<const TokenOutput> tokens) override {
    MutexLock lock(mutex_);
    RecordingSink::OnTokens(tokens);
    changed_.NotifyAll();
  }
  void OnFinished(const FinishInfo& info) override {
    MutexLock lock(mutex_);
    RecordingSink::OnFinished(info);
    changed_.NotifyAll();
  }
  void WaitForEnd() {
    MutexLock lock(mutex_);
    while (!finished.has_value()) changed_.Wait(mutex_);
  }
  void WaitForTokens(size_t n) {
    MutexLock lock(mutex_);
    while (ids.size() < n && !finished.has_value()) changed_.Wait(mutex_);
  }

 private:
  Mutex mutex_;
  CondVar changed_;
};

// Holds the loop's thread inside RunBetweenSteps until opened, so that the queue fills.
class Gate {
 public:
  explicit Gate(Engine& engine)
      : holder_([this, &engine] {
          engine.RunBetweenSteps([this](EngineState&) {
            MutexLock lock(mutex_);
            entered_ = true;
            changed_.NotifyAll();
            while (!open_) changed_.Wait(mutex_);
          });
        }) {
    MutexLock lock(mutex_);
    while (!entered_) changed_.Wait(mutex_);
  }
  ~Gate() { Open(); }
  void Open() {
    {
      MutexLock lock(mutex_);
      open_ = true;
      changed_.NotifyAll();
    }
    if (holder_.joinable()) holder_.join();
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool entered_ = false;
  bool open_ = false;
  std::thread holder_;
};

class EngineTest : public testing::Test {
 protected:
  void Make() {
    engine =
        std::make_unique<Engine>(options, std::make_unique<HashBackend>(backend, control), &clock);
    engine->Start();
  }
  void ExpectNothingActive() {
    EXPECT_TRUE(engine->RunBetweenSteps([](EngineState& state) {
      for (const auto& pool : state.pools) {
        EXPECT_EQ(pool->Counts().active, 0);
        EXPECT_TRUE(pool->CheckInvariants().ok());
      }
      EXPECT_TRUE(state.sessions.CheckInvariants().ok());
    }));
  }

  HashBackendOptions backend;
  EngineOptions options;
  std::shared_ptr<HashBackendControl> control = std::make_shared<HashBackendControl>();
  SystemClock clock;
  std::unique_ptr<Engine> engine;
};

TEST_F(EngineTest, AnswersAndIsIdleAfterwards) {
  Make();
  auto sink = std::make_shared<WaitableSink>();
  const GenerateRequest request = RequestOf("a", Ids(30, 1), 20);
  ASSERT_TRUE(engine->Submit(request, sink).ok());
  sink->WaitForEnd();
  EXPECT_EQ(sink->ids, ByDefinition(backend, request));
  EXPECT_TRUE(engine->idle());
  ExpectNothingActive();
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.prefill_tokens, 30u);
  EXPECT_EQ(stats.decode_tokens, 19u);
  EXPECT_EQ(stats.finished[static_cast<size_t>(FinishReason::kLength)], 1u);
  EXPECT_EQ(stats.running, 0);
}

struct BadRequest {
  std::string field;
  absl::StatusCode code;
  std::function<void(GenerateRequest&)> spoil;
};

TEST_F(EngineTest, BadRequestsAreRefusedByFieldAndTheSinkHearsNothing) {
  backend.context_tokens = 100;
  Make();
  const auto invalid = absl::StatusCode::kInvalidArgument;
  const auto range = absl::StatusCode::kOutOfRange;
  const std::vector<BadRequest> bad = {
      {"request_id", invalid, [](auto& r) { r.id = RequestId(); }},
      {"prompt_ids", invalid, [](auto& r) { r.prompt_ids.clear(); }},
      {"prompt_ids", invalid, [](auto& r) { r.prompt_ids[3] = 64; }},
      {"prompt_ids", invalid, [](auto& r) { r.prompt_ids[3] = -1; }},
      {"prompt_ids", range, [](auto& r) { r.prompt_ids.assign(100, 1); }},
      {"generated_ids", invalid, [](auto& r) { r.generated_ids = {64}; }},
      {"generated_ids", range, [](auto& r) { r.generated_ids.assign(100, 1); }},
      {"temperature", invalid, [](auto& r) { r.sampling.temperature = -1.0f; }},
      {"max_new_tokens", invalid, [](auto& r) { r.stop.max_new_tokens = 0; }},
      {"stop_ids", invalid, [](auto& r) { r.stop.stop_ids = {64}; }},
      {"priority", invalid, [](auto& r) { r.priority = 101; }},
      {"priority", invalid, [](auto& r) { r.priority = -101; }},
      {"kv_format", invalid, [](auto& r) { r.cache.kv_format = KvFormat::kBF16; }},
  };
  for (const BadRequest& b : bad) {
    GenerateRequest request = RequestOf("a", Ids(10, 1), 5);
    b.spoil(request);
    auto sink = std::make_shared<WaitableSink>();
    const absl::Status status = engine->Submit(request, sink);
    EXPECT_EQ(status.code(), b.code) << status;
    EXPECT_EQ(DetailsOf(status).field, b.field);
    EXPECT_FALSE(sink->finished.has_value());
  }
  EXPECT_TRUE(engine->idle());
}

TEST_F(EngineTest, AHugeMaxNewTokensIsCutToTheContext) {
  backend.context_tokens = 50;
  Make();
  auto sink = std::make_shared<WaitableSink>();
  ASSERT_TRUE(
      engine->Submit(RequestOf("a", Ids(49, 1), std::numeric_limits<int64_t>::max()), sink).ok());
  sink->WaitForEnd();
  EXPECT_EQ(sink->ids.size(), 1u);
  auto longer = std::make_shared<WaitableSink>();
  ASSERT_TRUE(engine->Submit(RequestOf("b", Ids(20, 1), 1000000), longer).ok());
  longer->WaitForEnd();
  EXPECT_EQ(longer->ids.size(), 30u);
  EXPECT_EQ(longer->finished->reason, FinishReason::kLength);
}

TEST_F(EngineTest, TheQueueTakesItsLimitAndRefusesOneMore) {
  options.max_queue = 3;
  Make();
  std::vector<std::shared_ptr<WaitableSink>> sinks;
  {
    Gate gate(*engine);
    for (int i = 0; i < 3; ++i) {
      sinks.push_back(std::make_shared<WaitableSink>());
      EXPECT_TRUE(engine->Submit(RequestOf(Numbered("r", i), Ids(10, i), 2), sinks.back()).ok());
    }
    auto over = std::make_shared<WaitableSink>();
    const absl::Status status = engine->Submit(RequestOf("over", Ids(10, 9), 2), over);
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(DetailsOf(status).reason, ErrorReason::kOverload);
    EXPECT_GT(DetailsOf(status).retry_after_ms, 0);
    EXPECT_FALSE(over->finished.has_value());
  }
  for (const auto& sink : sinks) sink->WaitForEnd();
  ExpectNothingActive();  // a step has passed since: the queue is counted anew
  auto later = std::make_shared<WaitableSink>();
  EXPECT_TRUE(engine->Submit(RequestOf("later", Ids(10, 9), 2), later).ok());
  later->WaitForEnd();
}

TEST_F(EngineTest, ALiveIdIsRefusedAndAFinishedOneMayReturn) {
  Make();
  auto first = std::make_shared<WaitableSink>();
  auto second = std::make_shared<WaitableSink>();
  {
    Gate gate(*engine);
    ASSERT_TRUE(engine->Submit(RequestOf("a", Ids(10, 1), 5), first).ok());
    EXPECT_EQ(engine->Submit(RequestOf("a", Ids(10, 1), 5), second).code(),
              absl::StatusCode::kAborted);
  }
  first->WaitForEnd();
  ASSERT_TRUE(engine->Submit(RequestOf("a", Ids(10, 1), 5), second).ok());
  second->WaitForEnd();
  EXPECT_EQ(second->ids, first->ids);
}

TEST_F(EngineTest, ASinkMayResubmitItsIdFromItsLastCall) {
  Make();
  auto first = std::make_shared<WaitableSink>();
  auto second = std::make_shared<WaitableSink>();
  const GenerateRequest request = RequestOf("a", Ids(10, 1), 5);
  first->on_finished = [&] { EXPECT_TRUE(engine->Submit(request, second).ok()); };
  ASSERT_TRUE(engine->Submit(request, first).ok());
  second->WaitForEnd();
  EXPECT_EQ(second->ids, ByDefinition(backend, request));
}

TEST_F(EngineTest, CancelEndsADecodingRequest) {
  backend.context_tokens = 100000;
  backend.num_blocks = 10000;
  Make();
  auto sink = std::make_shared<WaitableSink>();
  ASSERT_TRUE(engine->Submit(RequestOf("a", Ids(10, 1), 5000), sink).ok());
  sink->WaitForTokens(3);
  engine->Cancel(RequestId("a"), sink.get());
  engine->Cancel(RequestId("a"), sink.get());
  engine->Cancel(RequestId("unknown"), sink.get());
  sink->WaitForEnd();
  EXPECT_EQ(sink->finished->reason, FinishReason::kCancelled);
  ExpectNothingActive();
}

TEST_F(EngineTest, CancelOfAnEndedOrRefusedRequestSparesTheLiveOneOfItsName) {
  Make();
  const GenerateRequest request = RequestOf("a", Ids(10, 1), 100);
  auto ended = std::make_shared<WaitableSink>();
  ASSERT_TRUE(engine->Submit(RequestOf("a", Ids(10, 1), 1), ended).ok());
  ended->WaitForEnd();
  auto live = std::make_shared<WaitableSink>();
  auto refused = std::make_shared<WaitableSink>();
  {
    Gate gate(*engine);
    ASSERT_TRUE(engine->Submit(request, live).ok());
    EXPECT_EQ(engine->Submit(request, refused).code(), absl::StatusCode::kAborted);
    engine->Cancel(RequestId("a"), ended.get());
    engine->Cancel(RequestId("a"), refused.get());
  }
  live->WaitForEnd();
  EXPECT_EQ(live->finished->reason, FinishReason::kLength);
  EXPECT_EQ(live->ids, ByDefinition(backend, request));
}

TEST_F(EngineTest, PostedWorkRunsInOrderAndNobodyWaitsForIt) {
  Make();
  std::vector<int> order;
  {
    Gate gate(*engine);
    EXPECT_TRUE(engine->PostBetweenSteps([&](EngineState&) { order.push_back(1); }));
    EXPECT_TRUE(engine->PostBetweenSteps([&](EngineState&) { order.push_back(2); }));
  }
  EXPECT_TRUE(engine->RunBetweenSteps([&](EngineState&) { order.push_back(3); }));
  EXPECT_EQ(order, (std::vector<int>{1, 2, 3}));
  engine->Stop();
  EXPECT_FALSE(engine->PostBetweenSteps([](EngineState&) { FAIL(); }));
}

TEST_F(EngineTest, DrainRefusesNewRequestsAndLetsOldOnesEnd) {
  Make();
  auto sink = std::make_shared<WaitableSink>();
  const GenerateRequest request = RequestOf("a", Ids(10, 1), 100);
  {
    Gate gate(*engine);
    ASSERT_TRUE(engine->Submit(request, sink).ok());
    engine->BeginDrain();
    EXPECT_TRUE(engine->load().draining);
    const absl::Status status =
        engine->Submit(RequestOf("b", Ids(10, 1), 1), std::make_shared<WaitableSink>());
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(DetailsOf(status).reason, ErrorReason::kDraining);
  }
  sink->WaitForEnd();
  EXPECT_EQ(sink->ids, ByDefinition(backend, request));
}

TEST_F(EngineTest, StopEndsEverythingOnce) {
  options.max_running_sequences = 1;
  Make();
  std::vector<std::shared_ptr<WaitableSink>> sinks;
  for (int i = 0; i < 4; ++i) {
    sinks.push_back(std::make_shared<WaitableSink>());
    ASSERT_TRUE(engine->Submit(RequestOf(Numbered("r", i), Ids(10, i), 400), sinks.back()).ok());
  }
  engine->Stop();
  engine->Stop();
  for (const auto& sink : sinks) {
    ASSERT_TRUE(sink->finished.has_value());
    if (sink->finished->reason == FinishReason::kLength) continue;  // was faster
    EXPECT_EQ(sink->finished->reason, FinishReason::kError);
    EXPECT_EQ(DetailsOf(sink->finished->status).reason, ErrorReason::kDraining);
  }
  EXPECT_FALSE(engine->RunBetweenSteps([](EngineState&) { FAIL(); }));
  EXPECT_EQ(engine->Submit(RequestOf("x", Ids(1, 1), 1), sinks[0]).code(),
            absl::StatusCode::kUnavailable);
  EXPECT_TRUE(engine->idle());
}

TEST_F(EngineTest, AnEngineThatNeverStartedStopsToo) {
  engine =
      std::make_unique<Engine>(options, std::make_unique<HashBackend>(backend, control), &clock);
  auto sink = std::make_shared<WaitableSink>();
  ASSERT_TRUE(engine->Submit(RequestOf("a", Ids(10, 1), 5), sink).ok());
  engine.reset();
  ASSERT_TRUE(sink->finished.has_value());
  EXPECT_EQ(sink->finished->reason, FinishReason::kError);
}

TEST_F(EngineTest, OnStepFindsTheEventsOfTheStepAndMayRunWork) {
  std::atomic<uint64_t> events{0};
  options.on_step = [&] {
    engine->RunBetweenSteps(
        [&](EngineState& state) { events += state.events.TakeBatch().events.size(); });
  };
  Make();
  auto sink = std::make_shared<WaitableSink>();
  ASSERT_TRUE(engine->Submit(RequestOf("a", Ids(40, 1), 2), sink).ok());
  sink->WaitForEnd();
  engine->Stop();
  EXPECT_EQ(events, 2u);  // two full blocks were stored
}

TEST_F(EngineTest, ManyThreadsSubmitCancelAndLookAtTheState) {
  backend.windows = {0, 24};
  backend.num_blocks = 24;
  options.max_queue = 16;
  options.max_running_sequences = 6;
  options.on_step = [this] {
    engine->RunBetweenSteps([](EngineState& state) { state.events.TakeBatch(); });
  };
  Make();
  constexpr int kThreads = 4;
  constexpr int kRequests = 60;
  std::atomic<int> answered{0}, refused{0};
  std::atomic<bool> done{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(static_cast<uint32_t>(t));
      for (int i = 0; i < kRequests; ++i) {
        auto sink = std::make_shared<WaitableSink>();
        const std::string id = Numbered("t", t * 1000 + i);
        GenerateRequest request =
            RequestOf(id, Ids(20 + static_cast<int64_t>(random() % 60), i % 5), 12);
        request.session = SessionId(Numbered("s", i % 7));
        if (!engine->Submit(request, sink).ok()) {
          ++refused;
          continue;
        }
        if (random() % 3 == 0) engine->Cancel(RequestId(id), sink.get());
        sink->WaitForEnd();
        std::vector<int32_t> expected = ByDefinition(backend, request);
        expected.resize(sink->ids.size());
        EXPECT_EQ(sink->ids, expected);
        if (sink->finished->reason == FinishReason::kLength) ++answered;
      }
    });
  }
  threads.emplace_back([&] {
    while (!done) {
      engine->RunBetweenSteps([](EngineState& state) {
        for (const auto& pool : state.pools) EXPECT_TRUE(pool->CheckInvariants().ok());
      });
      EXPECT_LE(engine->load().running_sequences, 6u);
      EXPECT_GE(engine->stats().steps, 0u);
      std::this_thread::yield();
    }
  });
  for (int t = 0; t < kThreads; ++t) threads[static_cast<size_t>(t)].join();
  done = true;
  threads.back().join();
  EXPECT_GT(answered, kThreads * kRequests / 3);
  EXPECT_TRUE(engine->idle());
  ExpectNothingActive();
}

}  // namespace
}  // namespace kvist::worker
